"""Figure of a comparison: the multiplier over compute C (training FLOPs), or a forest of several."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes

from bigmodel.laws.figures import style

WIDEST = 30.0  # what is drawn of a multiplier goes from 1 / WIDEST to WIDEST


def write(result: Mapping[str, Any], folder: Path) -> None:
    """Writes compare.png, .svg and .pdf: of two inputs a curve with its band, of more a forest."""
    with matplotlib.rc_context(style.PAGE.style()):
        figure, axes = style.PAGE.panels(1, 3.3)
        _curve(axes[0], result["pairs"][0]) if len(result["pairs"]) == 1 else _forest(axes[0], result["pairs"])
        style.save(figure, folder / "compare")


def _clipped(values: list[float | None]) -> np.ndarray:
    """Numbers to draw: None is unbounded."""
    return np.clip([np.inf if v is None else v for v in values], 1 / WIDEST / 2, 2 * WIDEST)


def _curve(axes: Axes, pair: Mapping[str, Any]) -> None:
    rows = pair["scales"]
    c, m = np.array([row["C"] for row in rows]), _clipped([row["multiplier"] for row in rows])
    low, high = (_clipped([row["band"][i] for row in rows]) for i in (0, 1))
    axes.fill_between(c, low, high, color=style.SKY, alpha=0.3, lw=0, label="95 % band over all scales")
    alone = [_clipped([row[end] for row in rows]) for end in ("low", "high")]
    axes.fill_between(c, alone[0], alone[1], color=style.BLUE, alpha=0.3, lw=0, label="95 % at each scale")
    axes.plot(c, m, color=style.BLUE, lw=1.5)
    axes.axhline(1, color=style.INK, lw=0.8)
    top = max(row["C"] for row in rows if row["beyond"] == 1)
    axes.axvspan(top, c[-1], color=style.GREY, alpha=0.12, lw=0, label="extrapolated")
    for cross in pair["crossings"]:
        axes.plot([cross["low"], cross["high"]], [1, 1], color=style.VERMILLION, lw=3, solid_capstyle="butt")
        axes.plot(cross["C"], 1, "o", color=style.VERMILLION, ms=5, label="crossing")
    axes.set(xlabel="Training FLOPs", ylabel=f"Compute multiplier of {pair['b']}")
    style.log_axis(axes, "x", c[0], c[-1])
    ends = np.concatenate([m, low, high])
    style.log_axis(axes, "y", max(ends.min() / 1.1, 1 / WIDEST), min(ends.max() * 1.1, WIDEST), "{:g}".format)
    axes.legend(loc="best")


def _forest(axes: Axes, pairs: list[Mapping[str, Any]]) -> None:
    """Each input's multiplier over the first at the largest common C, and at the largest asked for (open)."""
    for i, pair in enumerate(pairs):
        inside = [row for row in pair["scales"] if row["beyond"] == 1]
        for row, shift, face in ((inside[-1], -0.12, style.BLUE), (pair["scales"][-1], 0.12, "white")):
            low, m, high = _clipped([row["band"][0], row["multiplier"], row["band"][1]])
            axes.plot([low, high], [i + shift] * 2, color=style.BLUE, lw=1.6, solid_capstyle="butt")
            where = f"{row['C']:.2g} FLOPs" + (", extrapolated" if row["beyond"] > 1 else "")
            axes.plot(m, i + shift, "o", color=style.BLUE, mfc=face, ms=5, mew=1, label=None if i else where)
    axes.axvline(1, color=style.INK, lw=0.8)
    axes.set_yticks(range(len(pairs)), [pair["b"] for pair in pairs])
    axes.set(xlabel=f"Compute multiplier over {pairs[0]['a']}", ylim=(len(pairs) - 0.5, -0.5))
    ends = _clipped([v for p in pairs for row in p["scales"] if row["reported"] for v in row["band"]])
    style.log_axis(axes, "x", max(ends.min() / 1.1, 1 / WIDEST), min(ends.max() * 1.1, WIDEST), "{:g}".format)
    axes.grid(axis="y", visible=False)
    axes.legend(loc="best")
