"""The figure of a coordinate check, and `write`, which draws any figure for a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from bigmodel.laws.figures import style


def write(figure_of: Any, stem: Path, *args: Any) -> Path:
    """Draws figure_of(*args) in the style of a page as stem.png, .svg, .pdf. Returns the path of the PNG."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(style.PAGE.style()):
        style.save(figure_of(*args), stem)
    return stem.with_name(stem.name + ".png")


def coordinates(rows: Sequence[dict[str, Any]]) -> Figure:
    """The change of each module's output against size after the first and last steps, one panel per parametrisation."""
    frame = pd.DataFrame(rows)
    names = list(frame.parametrization.unique())
    axis, last = frame.axis.iloc[0], int(frame.step.max())
    figure, panels = style.PAGE.panels(len(names), height=3.2, sharey=True, squeeze=False)
    sizes = sorted(frame["size"].unique())
    seen = frame[(frame.step > 0) & (frame.change > 0)]
    low, high = seen.change.min() / 1.5, seen.change.max() * 1.5
    for axes, name in zip(panels, names, strict=True):
        for i, module in enumerate(frame.module.unique()):
            here = frame[(frame.parametrization == name) & (frame.module == module)]
            for step, alpha in ((1, 0.35), (last, 1.0)):
                mean = here[here.step == step].groupby("size").change.mean()
                axes.plot(
                    mean.index, mean.to_numpy(), color=style.CYCLE[i % 8], marker=style.MARKERS[i % 8], markersize=3.5,
                    alpha=alpha, linewidth=1.2, label=module if step == last else None,
                )  # fmt: skip
        style.log_axis(axes, "x", sizes[0] / 1.15, sizes[-1] * 1.15)
        style.log_axis(axes, "y", low, high)
        axes.set(xlabel=axis, title=name)
    panels[0].set_ylabel(f"rms change of the output\nafter 1 (pale) and {last} steps")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure
