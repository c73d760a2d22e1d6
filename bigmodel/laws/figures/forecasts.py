"""Figure of forecasts that came true or not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from bigmodel.laws.figures import style


def calibration(found: Mapping[str, Any]) -> Figure:
    """Left: where each observed loss fell in its forecast's distribution (PIT); calibrated forecasts lie on the
    diagonal, within the dashed 95 % band of as many uniform draws. Right: error of the forecast against the compute
    beyond the fitted runs, with the forecast's interval around 0; hollow: not counted."""
    scored = [row for row in found["rows"] if row["score"] and row["score"]["loss"]]
    figure, (left, right) = style.PAGE.panels(2)
    z = np.sort([row["score"]["z"] for row in scored if not row["score"]["uncounted"]])
    n = len(z)
    k = np.arange(1, n + 1)
    left.plot([0, 1], [0, 1], color=style.GREY, lw=0.8)
    for q in (0.025, 0.975):  # of the k-th of n uniform draws
        left.plot(k / (n + 1), stats.beta.ppf(q, k, n + 1 - k), color=style.GREY, lw=0.8, ls=style.DASHED, marker="_")
    left.plot(k / (n + 1), stats.norm.cdf(z), "o", color=style.BLUE, ms=5, mec="white", mew=0.5)
    left.set(xlim=(0, 1), ylim=(0, 1), xlabel="Expected quantile", ylabel="Observed loss as quantile of its forecast")
    gaps = np.array([row["gap"] for row in scored])
    for row, gap in zip(scored, gaps, strict=True):
        run, came = row["prediction"]["run"], row["score"]
        ends = [100 * (run[end] / run["value"] - 1) for end in ("low", "high")]
        right.plot([gap, gap], ends, color=style.SKY, lw=4, alpha=0.6, solid_capstyle="butt")
        face = "white" if came["uncounted"] else style.BLUE
        right.plot(gap, 100 * came["error"], "o", color=style.BLUE, mfc=face, ms=5, zorder=4)
    right.axhline(0, color=style.GREY, lw=0.8)
    right.set(ylabel="Observed loss over the forecast's (%)", xlabel="Gap: C of the run / largest fitted")
    style.log_axis(right, "x", gaps.min() / 1.5, gaps.max() * 1.5, "{:.3g}×".format)
    return figure
