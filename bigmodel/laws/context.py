"""Loss by position in the window: how much of its context does a family use?

A frame here has one row per run and position: family, params, seed, position (1: the window's first token), loss
(nats).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from bigmodel.errors import UsageError
from bigmodel.laws.figures import style

COLUMNS = ("params", "seed", "position", "loss")
FLAT = 0.01  # of the loss: what the rest of a window may still gain where a curve is called flat


def flat_from(loss_L: np.ndarray, tolerance: float = FLAT) -> int:
    """The first position (a power of the square root of 2) from which the rest of the window gains less than
    `tolerance` of the loss: the mean from there to twice as far on, against the mean of the window's last quarter.

    The window's length where no position is such.
    """
    L = len(loss_L)
    end = loss_L[3 * L // 4 :].mean()
    for p in positions(L):
        if 2 * p <= L and loss_L[p : 2 * p].mean() < end * (1 + tolerance):
            return p
    return L


def positions(L: int) -> list[int]:
    return sorted({round(2 ** (k / 2)) for k in range(int(2 * np.log2(L)) + 1)})


def table(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Of each family and size: `flat`, the position from which the loss is flat, mean, least and largest over seeds;
    `gain`, how much lower the loss is in the window's last quarter than near position 100, as a part of it, mean and
    standard deviation; `loss`, of that quarter."""
    found = []
    if len(frame) and frame.position.max() < 125:
        raise UsageError(f"windows of {frame.position.max()} tokens: loss by position asks for at least 125")
    for (family, params), part in frame.groupby(["family", "params"]):
        curves = [run.sort_values("position").loss.to_numpy(float) for _, run in part.groupby("seed")]
        flat = [flat_from(c) for c in curves]
        ends = [c[3 * len(c) // 4 :].mean() for c in curves]
        gains = [1 - end / c[80:125].mean() for c, end in zip(curves, ends, strict=True)]
        spread = float(np.std(gains, ddof=1)) if len(gains) > 1 else float("nan")
        found.append(
            {
                "family": family, "params": int(params), "seeds": len(curves), "flat": float(np.mean(flat)),
                "flat_range": [min(flat), max(flat)], "gain": float(np.mean(gains)), "gain_deviation": spread,
                "loss": float(np.mean(ends)),
            }
        )  # fmt: skip
    return found


def figure(frame: pd.DataFrame) -> Figure:
    """Loss against position, a curve a family and size: the mean over seeds in bins, bands from the least to the
    largest, and a mark where it is flat."""
    fig, (axes,) = style.PAGE.panels(1, height=3.6, squeeze=False)
    summary = {(r["family"], r["params"]): r for r in table(frame)}
    families = list(dict.fromkeys(frame.family))
    L = int(frame.position.max())
    edges = [*positions(L)[:-1], L]
    bins = [(a, b) for a, b in zip([0, *edges], edges, strict=False) if b > a]
    centres = [np.sqrt((a + 1) * b) for a, b in bins]
    low, high = np.inf, 0.0
    for (family, params), part in frame.groupby(["family", "params"]):
        sizes = sorted(frame[frame.family == family].params.unique())
        i, shade = families.index(family), (1 + sizes.index(params)) / len(sizes)
        curves = np.array([run.sort_values("position").loss.to_numpy(float) for _, run in part.groupby("seed")])
        binned = np.array([[c[a:b].mean() for a, b in bins] for c in curves])
        label = f"{family}, {style.short(params, 3)} parameters"
        colour = style.CYCLE[i % 8]
        mean = binned.mean(axis=0)
        axes.plot(
            centres, mean, color=colour, alpha=0.4 + 0.6 * shade, linewidth=0.8 + 0.8 * shade, markersize=3,
            marker=style.MARKERS[i % 8], label=label,
        )  # fmt: skip
        axes.fill_between(centres, binned.min(axis=0), binned.max(axis=0), color=colour, alpha=0.2, linewidth=0)
        flat = summary[family, params]["flat"]
        if flat < L:
            axes.plot([flat], [np.interp(flat, centres, mean)], "o", color=colour, markersize=9, markerfacecolor="none")
        low, high = min(low, binned.min()), max(high, binned[:, 2:].max())
    style.log_axis(axes, "x", 1, L)
    style.log_axis(axes, "y", low * 0.97, high * 1.03)
    axes.set(xlabel="position in the window (tokens)", ylabel="held-out loss (nats)")
    axes.legend(loc="upper right")
    return fig
