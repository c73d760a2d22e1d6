"""Figures of one model's evaluation: calibration, and sheets of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from bigmodel.laws.figures import style

# Of pictures: rows and columns of a sheet of single ones.
SHEET = (4, 8)


def reliability(bins: Sequence[dict[str, Any]], intervals: Sequence[Sequence[float]]) -> Any:
    """Accuracy by confidence with its interval, and how many examples have which.

    Args:
      bins: `confidence`, `accuracy`, `examples`, and the `low` and `high` of each.
    """
    confidence, accuracy, examples = ([b[key] for b in bins] for key in ("confidence", "accuracy", "examples"))
    figure, (left, right) = style.PAGE.panels(2)
    left.plot([0, 1], [0, 1], color=style.GREY, linestyle=style.DASHED, label="calibrated")
    for at, interval in zip(confidence, intervals, strict=True):
        left.plot([at, at], interval, color=style.SKY)
    left.plot(confidence, accuracy, "o", color=style.BLUE, clip_on=False, label="run, 95 % interval")
    left.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="accuracy")
    left.legend()
    right.bar([b["low"] for b in bins], examples, bins[0]["high"] - bins[0]["low"], align="edge", color=style.SKY)
    right.set(xlim=(0, 1), xlabel="confidence", ylabel="examples")
    return figure


def single(images: Sequence[np.ndarray], titles: Sequence[str]) -> Any:
    """At most SHEET pictures, uint8 (height, width, channels), each under its own title."""
    rows, columns = SHEET
    figure = style.Figure(figsize=(1.15 * columns, 1.4 * rows), layout="constrained")
    axes = figure.subplots(rows, columns).ravel()
    for at in axes:
        at.set_axis_off()
    for at, image, title in zip(axes, images, titles, strict=False):
        at.imshow(np.squeeze(image), cmap="gray", vmin=0, vmax=255)
        at.set_title(title, fontsize=6)
    return figure


def listed(images: Sequence[Sequence[np.ndarray]], titles: Sequence[str], framed: Sequence[Sequence[bool]]) -> Any:
    """A row of pictures under each title; those that are `framed` have a frame."""
    figure = style.Figure(figsize=(0.9 * len(images[0]), 1.15 * len(images)), layout="constrained")
    grid = figure.subplots(len(images), len(images[0]), squeeze=False)
    for row, title, frames, axes in zip(images, titles, framed, grid, strict=True):
        axes[0].set_title(title[:100], fontsize=7, loc="left").set_in_layout(False)  # else it widens its column
        for at, image, frame in zip(axes, row, frames, strict=True):
            at.imshow(np.squeeze(image), cmap="gray", vmin=0, vmax=255)
            at.set(xticks=[], yticks=[])
            at.spines[:].set(visible=frame, color=style.BLUE, linewidth=2)
    return figure
