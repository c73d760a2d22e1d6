"""Figures of what is best for a budget: isoflop, frontier, contours.

Legend: N parameters, D examples or tokens, C training FLOPs, L loss; N_opt ~ C^a, D_opt ~ C^b.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bigmodel.laws.figures import style
from bigmodel.laws.figures.study import Marks, Study, band
from bigmodel.laws.forms import FLOPS_PER_PARAM_TOKEN


def isoflop(study: Study, size: style.Size, marks: Marks) -> Figure | None:
    """Loss against N at each budget: runs, the parabola in ln N, and its minimum with the interval of N_opt."""
    found = [f for f in study.frontiers if f["law"] == "isoflop"]
    if not found:
        return None
    budgets = [b for b in found[0]["budgets"] if len(b["N"])]
    figure, (axes,) = size.panels(1, size.single[1])
    norm = style.log_norm([b["C"] for b in budgets])
    places: dict[tuple[float, float], list[int]] = {}
    for row, key in enumerate(zip(study.column("N"), study.column("L"), strict=True)):
        places.setdefault((float(key[0]), float(key[1])), []).append(row)
    linked: list[tuple[float, float, float, int]] = []
    for budget in budgets:
        ink = style.colour(norm, budget["C"])
        sizes = np.asarray(budget["N"], dtype=float)
        for n, loss in zip(sizes, budget["L"], strict=True):
            same = places.get((float(n), float(loss)), [])
            if same:
                linked.append((float(n), float(loss), float(budget["C"]), same.pop(0)))
        if budget["parabola"] is not None:
            grid = np.geomspace(sizes.min() / 1.15, sizes.max() * 1.15, 80)
            curve = np.exp(np.polyval(budget["parabola"], np.log(grid)))
            axes.plot(grid, curve, color=ink, lw=1, zorder=2, ls=":" if budget["edge"] else "-")
        if not budget["edge"] and budget["N_opt"] is not None:
            ends = budget["N_ci"]
            if ends is not None and None not in ends and np.isfinite(ends).all():
                axes.plot(ends, [budget["L_opt"]] * 2, color=style.VERMILLION, lw=1.6, zorder=5, solid_capstyle="butt")
            axes.plot(budget["N_opt"], budget["L_opt"], **_minimum(size))
    x, y, shade, rows = np.array(linked, dtype=float).reshape(-1, 4).T
    marks.draw(axes, x, y, norm, shade, rows=rows.astype(int))
    legend = _minimum(size) | {"ls": "-", "color": style.VERMILLION, "lw": 1.6}
    axes.plot([], [], **legend, label="least loss, 95 % interval of its N")
    if any(b["edge"] for b in budgets):
        axes.plot([], [], color=style.GREY, lw=1, ls=":", label="no minimum within its runs: left out")
    axes.set(xlabel=study.label("N"), ylabel=study.loss)
    observed = np.concatenate([b["L"] for b in budgets])
    low, high = float(observed.min()), float(observed.max())
    room = max((high / low) ** 0.08, 1.01)
    style.log_axis(axes, "y", low / room, high * room * (high / low) ** 0.16)  # room for the legend
    every = np.concatenate([b["N"] for b in budgets])
    style.log_axis(axes, "x", every.min() / 1.5, every.max() * 1.5)
    style.colour_bar(figure, axes, norm, "budget C (FLOPs)")
    axes.legend(loc="upper right")
    return figure


def _minimum(size: style.Size) -> dict[str, Any]:
    wide = 1.6 * size.dot**0.5
    return {"marker": "D", "ms": wide, "mfc": style.VERMILLION, "mec": "white", "mew": 0.6, "ls": "", "zorder": 6}


def frontier(study: Study, size: style.Size, marks: Marks) -> Figure | None:
    """N_opt and D_opt against C: by the law, and by each of the frontiers' methods."""
    if not {"N", "D", "C"} <= set(study.frame.columns) or study.target != "L":
        return None
    flops = study.column("C")
    low, high = float(study.budgets[0]), float(study.budgets[-1])
    compute = np.geomspace(low, high, 120)
    best = study.optima(study.params, compute / study.ratio)
    by_law = bool(np.isfinite(best).all())
    if not by_law and not study.frontiers:
        return None
    figure, panels = size.panels(2, 3.3)
    for k, (axes, column, exponent) in enumerate(zip(panels, ("N", "D"), ("a", "b"), strict=True)):
        seen = []
        marks.draw(axes, flops, study.column(column), color="#c4c4c4", s=0.5 * size.dot, zorder=1.5, label="runs")
        seen.append(study.column(column))
        if by_law:
            ends = band(study.sample_optima[:, :, k], study.budgets, compute)
            if ends is not None:
                axes.fill_between(compute, *ends, color=style.ORANGE, alpha=0.3, lw=0)
            text = _power_text(
                study.result["law"], column, study.result["optimal"][exponent], study.result["ci"], exponent
            )
            axes.plot(compute, best[:, k], color=style.INK, lw=1.4, ls=(0, (5, 2)), label=text, zorder=3)
            seen.append(best[:, k])
        for method, ink, mark in zip(study.frontiers, style.CYCLE, style.MARKERS, strict=False):
            seen.append(_method(axes, method, column, exponent, compute, ink, mark, size))
        axes.set(xlabel=study.label("C"), ylabel="best " + study.label(column))
        values = np.concatenate(seen)
        # Beyond the largest run in compute, and beyond every run's N or D, the curves are extrapolated.
        axes.axvline(flops.max(), color=style.GREY, lw=0.8, ls=":", zorder=1, label="end of the runs")
        for end in (study.column(column).min(), study.column(column).max()):
            axes.axhline(end, color=style.GREY, lw=0.8, ls=":", zorder=1)
        style.log_axis(axes, "x", low, high, style.power)
        style.log_axis(axes, "y", float(values.min()) / 1.5, float(values.max()) * 1.5)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), borderaxespad=0.1)
    return figure


def _method(
    axes: Axes, method: Mapping[str, Any], column: str, exponent: str, compute: np.ndarray, ink: str, mark: str,
    size: style.Size,
) -> np.ndarray:  # fmt: skip
    """One method's optima, its power law, and the fan of its exponent's interval about the middle budget."""
    budgets = [b for b in method["budgets"] if not b["edge"] and b[f"{column}_opt"] is not None]
    c = np.array([b["C"] for b in budgets], dtype=float)
    y = np.array([b[f"{column}_opt"] for b in budgets], dtype=float)
    for budget, at in zip(budgets, y, strict=True):
        ends = budget["N_ci"]
        if ends is not None and None not in ends:
            n = np.array(ends, dtype=float)
            span = n if column == "N" else at * budget["N_opt"] / n  # D at the same budget
            axes.plot([budget["C"]] * 2, span, color=ink, lw=1, zorder=4)
    dots = max(8.0, size.dot * (0.8 if len(c) < 40 else 0.3))
    axes.scatter(c, y, s=dots, c=ink, marker=mark, lw=0.3, edgecolors="white", zorder=5)
    scale, power = method["params"][f"{column}0"], method["params"][exponent]
    line = scale * compute**power
    text = _power_text(method["law"], column, power, method["ci"], exponent)
    axes.plot(compute, line, color=ink, lw=1.1, zorder=3, marker=mark, markevery=[0], ms=3.5, label=text)
    ends = method["ci"].get(exponent)
    if ends is not None and None not in ends and len(c):
        middle = float(np.exp(np.log(c).mean()))
        fan = [scale * middle**power * (compute / middle) ** end for end in ends]
        axes.fill_between(compute, np.minimum(*fan), np.maximum(*fan), color=ink, alpha=0.13, lw=0)
    return np.concatenate([line, y])


def _power_text(name: str, column: str, power: float | None, intervals: Mapping[str, Any], exponent: str) -> str:
    ends = intervals.get(exponent)
    name, text = style.law_name(name), "?" if power is None else f"{power:.3f}"
    label = f"{name}: ${column} \\propto C^{{{text}}}$"
    if ends is None or None in ends or not np.isfinite(ends).all():
        return label
    return f"{label} [{ends[0]:.3f}, {ends[1]:.3f}]"


def contours(study: Study, size: style.Size, marks: Marks) -> Figure | None:
    """Lines of equal predicted loss over D and N, with the runs, lines of equal compute, and the best pairs."""
    if not study.plane:
        return None
    n, d = study.column("N"), study.column("D")
    if n.max() <= n.min() * 1.001 or d.max() <= d.min() * 1.001:
        return None
    figure, (axes,) = size.panels(1, size.single[1])
    xlim, ylim = (d.min() / 2, d.max() * 3), (n.min() / 2, n.max() * 3)
    data, sizes = np.meshgrid(np.geomspace(*xlim, 160), np.geomspace(*ylim, 160))
    loss = study.at(study.params, N=sizes.ravel(), D=data.ravel()).reshape(data.shape)
    observed = study.observed
    norm = style.log_norm(observed)
    levels = np.geomspace(max(float(np.nanmin(loss)), observed.min() / 1.2), observed.max(), 11)
    digits = max(2, int(np.ceil(-np.log10(levels[-1] / levels[0] - 1))) + 2) if levels[-1] > levels[0] * 1.001 else 4
    levels = np.unique([float(f"{v:.{digits}g}") for v in levels])
    low, high = FLOPS_PER_PARAM_TOKEN * xlim[0] * ylim[0], FLOPS_PER_PARAM_TOKEN * xlim[1] * ylim[1]
    for c in 10.0 ** np.arange(np.ceil(np.log10(low)), np.log10(high)):
        axes.plot(xlim, [c / FLOPS_PER_PARAM_TOKEN / x for x in xlim], color="#c9c9c9", lw=0.6, ls=":", zorder=1)
    lines = axes.contour(
        data, sizes, loss, levels=levels, cmap=style.COLOURS.reversed(), norm=norm, linewidths=0.9, zorder=2
    )
    best = study.optima(study.params, np.geomspace(low, high, 200))
    axes.set(xlabel=study.label("D"), ylabel=study.label("N"))
    if np.isfinite(best).any():
        axes.plot(best[:, 1], best[:, 0], color=style.INK, lw=1.5, ls=(0, (5, 2)), zorder=3, label="compute-optimal")
    axes.plot([], [], color="#b0b0b0", lw=0.8, ls=":", label="equal compute")
    marks.draw(axes, d, n, norm, observed, reverse=True)
    style.log_axis(axes, "x", *xlim)
    style.log_axis(axes, "y", *ylim)
    style.colour_bar(figure, axes, norm, study.loss, reverse=True, beside=True)
    axes.clabel(lines, fmt=lambda v: style.short(v, 3), fontsize=size.font - 2, inline_spacing=2)
    axes.grid(False)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, borderaxespad=0.2)
    return figure
