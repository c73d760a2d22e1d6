"""Figure of a comparison: the runs' losses and frontiers, and the multiplier over compute, or a forest of several.

Legend: N parameters, D examples or tokens, C training FLOPs, L loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from bigmodel.laws import forms, multiplier
from bigmodel.laws.figures import style
from bigmodel.laws.forms import FLOPS_PER_PARAM_TOKEN

WIDEST = 30.0  # what is drawn of a multiplier goes from 1 / WIDEST to WIDEST


def write(result: Mapping[str, Any], frames: Mapping[str, pd.DataFrame], folder: Path) -> None:
    """Writes compare.png, .svg and .pdf: of two inputs a curve with its band, of more a forest."""
    with matplotlib.rc_context(style.PAGE.style()):
        figure, (left, right) = style.PAGE.panels(2, 3.3)
        _losses(left, result, frames)
        _curve(right, result["pairs"][0]) if len(result["pairs"]) == 1 else _forest(right, result["pairs"])
        style.save(figure, folder / "compare")


def _losses(axes: Axes, result: Mapping[str, Any], frames: Mapping[str, pd.DataFrame]) -> None:
    """Runs, and the frontier of each law: dashed beyond its runs."""
    law, drawn = forms.get(result["law"]), [row["C"] for row in result["pairs"][0]["scales"]]
    low, high, losses = min(drawn), max(drawn), []
    for k, (one, frame) in enumerate(zip(result["inputs"], frames.values(), strict=True)):
        ink, mark = style.CYCLE[k % len(style.CYCLE)], style.MARKERS[k % len(style.MARKERS)]
        c = frame["C"] if law.columns == ("C",) else FLOPS_PER_PARAM_TOKEN * frame["N"] * frame["D"]
        axes.scatter(c, frame["L"], s=0.6 * style.PAGE.dot, color=ink, marker=mark, lw=0, alpha=0.7, label=one["name"])
        x = np.log(np.geomspace(low, high, 100))
        loss = np.exp(multiplier.frontier(law, law.theta(one["params"])[None], x, (x[0], x[-1]))[0])
        inside = np.exp(x) <= one["C"][1] * 1.001
        axes.plot(np.exp(x)[inside], loss[inside], color=ink, lw=1.3)
        axes.plot(np.exp(x)[~inside], loss[~inside], color=ink, lw=1.1, ls=style.DASHED)
        losses.append(np.concatenate([frame["L"], loss]))
        low, high = min(low, float(c.min())), max(high, float(c.max()))
    axes.set(xlabel="Training FLOPs", ylabel="Loss")
    style.log_axis(axes, "x", low / 1.3, high * 1.3)
    style.loss_axis(axes, np.concatenate(losses))
    axes.legend(loc="upper right")


def _clipped(values: list[float | None]) -> np.ndarray:
    """Numbers to draw: None is unbounded."""
    return np.clip([np.inf if v is None else v for v in values], 1 / WIDEST / 2, 2 * WIDEST)


def _curve(axes: Axes, pair: Mapping[str, Any]) -> None:
    rows = pair["scales"]
    c, m = np.array([row["C"] for row in rows]), _clipped([row["multiplier"] for row in rows])
    band, alone = ([_clipped([row[k] if i is None else row[k][i] for row in rows]) for k, i in ends] for ends in (
        (("band", 0), ("band", 1)), (("low", None), ("high", None)),
    ))  # fmt: skip
    axes.fill_between(c, *band, color=style.SKY, alpha=0.3, lw=0, label="95 % band over all scales")
    axes.fill_between(c, *alone, color=style.BLUE, alpha=0.3, lw=0, label="95 % at each scale")
    axes.plot(c, m, color=style.BLUE, lw=1.5)
    axes.axhline(1, color=style.INK, lw=0.8)
    top = max(row["C"] for row in rows if row["beyond"] == 1)
    axes.axvspan(top, c[-1], color=style.GREY, alpha=0.12, lw=0, label="extrapolated")
    for cross in pair["crossings"]:
        axes.plot([cross["low"], cross["high"]], [1, 1], color=style.VERMILLION, lw=3, solid_capstyle="butt")
        axes.plot(cross["C"], 1, "o", color=style.VERMILLION, ms=5, label="crossing")
    axes.set(xlabel="Training FLOPs", ylabel=f"Compute multiplier of {pair['b']}")
    style.log_axis(axes, "x", c[0], c[-1])
    ends = np.concatenate([m, *band])
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
