"""Figures of the optimum for a budget: isoflop, frontier, contours.

Legend: N parameters, D examples or tokens, C training FLOPs, L loss; N_opt ~ C^a, D_opt ~ C^b.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from bigmodel.laws.figures import style
from bigmodel.laws.figures.study import Study, band, dots
from bigmodel.laws.forms import FLOPS_PER_PARAM_TOKEN
from bigmodel.laws.texts import has_ends, interval, law_name, number


def isoflop(study: Study, size: style.Size) -> Figure | None:
    """Loss against model size at each compute budget, with a parabola in ln N through each budget's runs."""
    found = [method for method in study.frontiers if method["law"] == "isoflop"]
    if not found:
        return None
    budgets = [b for b in found[0]["budgets"] if len(b["N"])]
    figure, (axes,) = size.panels(1)
    norm = style.log_norm([b["C"] for b in budgets])
    for budget in budgets:
        if budget["parabola"] is not None:
            grid = np.geomspace(min(budget["N"]) / 1.15, max(budget["N"]) * 1.15, 80)
            curve = np.exp(np.polyval(budget["parabola"], np.log(grid)))
            line = ":" if budget["edge"] else "-"
            axes.plot(grid, curve, line, color=style.colour(norm, budget["C"]), lw=1, zorder=2)
    n, loss = (np.concatenate([b[name] for b in budgets]) for name in ("N", "L"))
    dots(axes, n, loss, c=np.repeat([b["C"] for b in budgets], [len(b["N"]) for b in budgets]), norm=norm, s=size.dot)
    inside = [b for b in budgets if not b["edge"] and b["N_opt"] is not None]
    best = np.array([b["N_opt"] for b in inside], dtype=float)
    axes.errorbar(
        best, [b["L_opt"] for b in inside], xerr=np.abs(_ends(inside) - best), fmt="D", color=style.VERMILLION,
        ms=1.2 * size.dot**0.5, mec="white", mew=0.6, zorder=6, label="Minimum, 95 % interval of N",
    )  # fmt: skip
    if own := found[0].get("corrected"):
        best, least = ([b[name] for b in own["budgets"]] for name in ("N_opt", "L_opt"))
        axes.plot(best, least, "X", color=style.INK, ms=1.2 * size.dot**0.5, mec="white", zorder=7, label="Corrected")
    if any(b["edge"] for b in budgets):
        axes.plot([], [], color=style.GREY, lw=1, ls=":", label="No minimum inside the budget's runs")
    axes.set(xlabel=study.label("N"), ylabel=study.loss)
    style.loss_axis(axes, loss)
    style.log_axis(axes, "x", n.min() / 1.5, n.max() * 1.5)
    style.colour_bar(figure, axes, norm, "Budget, C (FLOPs)")
    figure.legend(loc="outside upper center")
    return figure


def _ends(budgets: Any) -> np.ndarray:
    """Ends of each budget's interval of N_opt, (2, k); nan without one."""
    ends = [b["N_ci"] if has_ends(b["N_ci"]) else (np.nan, np.nan) for b in budgets]
    return np.array(ends, dtype=float).reshape(-1, 2).T


def frontier(study: Study, size: style.Size) -> Figure | None:
    """Compute-optimal model size and data. Shaded: 95 % of the resamples of the law. Bars: 95 % intervals. Beyond the
    dotted lines, the limits of the runs, the curves are extrapolated."""
    if not {"N", "D", "C"} <= set(study.frame.columns) or study.target != "L":
        return None
    flops = study.column("C")
    low, high = float(study.budgets[0]), float(study.budgets[-1])
    compute = np.geomspace(low, high, 120)
    best = study.optima(study.params, compute / study.ratio)
    by_law = bool(np.isfinite(best).all())
    if not by_law and not study.frontiers:
        return None
    figure, panels = size.panels(2, 1.2 * size.single[1])  # room for the legends
    for k, (column, exponent, word) in enumerate((("N", "a", "parameters"), ("D", "b", study.unit))):
        axes = panels[k]
        values = study.column(column)
        dots(axes, flops, values, color="#c4c4c4", s=0.5 * size.dot, zorder=1.5, label="Runs")
        if by_law:
            band(axes, study.budgets, study.sample_optima[:, :, k])
            text = _power_text(study.result, study.result["optimal"], column, exponent)
            axes.plot(compute, best[:, k], color=style.INK, lw=1.4, ls=style.DASHED, label=text, zorder=3)
        for method, ink, mark in zip(study.frontiers, style.CYCLE, style.MARKERS, strict=False):
            budgets = [b for b in method["budgets"] if not b["edge"] and b[f"{column}_opt"] is not None]
            optima = np.array([b[f"{column}_opt"] for b in budgets], dtype=float)
            ends = _ends(budgets)
            if column == "D":  # at the same budget, D is in inverse proportion to N
                ends = optima * np.array([b["N_opt"] for b in budgets]) / ends[::-1]
            axes.errorbar(
                [b["C"] for b in budgets], optima, yerr=np.abs(ends - optima), fmt=mark, color=ink, elinewidth=1,
                ms=0.9 * size.dot**0.5, mec="white", mew=0.3, zorder=5,
            )  # fmt: skip
            line = method["params"][f"{column}0"] * compute ** method["params"][exponent]
            text = _power_text(method, method["params"], column, exponent)
            axes.plot(compute, line, color=ink, lw=1.1, zorder=3, marker=mark, markevery=[0], ms=3.5, label=text)
        axes.axvline(flops.max(), color=style.GREY, lw=0.8, ls=":", zorder=1, label="Limit of the runs")
        axes.hlines([values.min(), values.max()], low, high, color=style.GREY, lw=0.8, ls=":", zorder=1)
        axes.set(xlabel=study.label("C"), ylabel=f"Compute-optimal {word}, {column}")
        style.log_axis(axes, "x", low, high)
        seen = [*values, *best[:, k]] if by_law else values
        style.log_axis(axes, "y", float(min(seen)) / 1.5, float(max(seen)) * 1.5)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), borderaxespad=0.1)
    return figure


def _power_text(result: Mapping[str, Any], values: Mapping[str, Any], column: str, exponent: str) -> str:
    power, ends = values[exponent], result["ci"].get(exponent)
    label = f"{law_name(result['law'])}: ${column} \\propto C^{{{number(power)}}}$"
    return f"{label} {interval(ends)}" if has_ends(ends) else label


def contours(study: Study, size: style.Size) -> Figure | None:
    """Lines of equal loss by the law. Dots: runs, coloured by observed loss on the same scale."""
    if not study.plane or study.law.linear:  # the scale is logarithmic
        return None
    n, d = study.column("N"), study.column("D")
    figure, (axes,) = size.panels(1)
    xlim, ylim = (d.min() / 2, d.max() * 3), (n.min() / 2, n.max() * 3)
    data, sizes = np.meshgrid(np.geomspace(*xlim, 160), np.geomspace(*ylim, 160))
    loss = study.at(study.params, N=sizes.ravel(), D=data.ravel()).reshape(data.shape)
    norm = style.log_norm(study.observed)
    low, high = FLOPS_PER_PARAM_TOKEN * xlim[0] * ylim[0], FLOPS_PER_PARAM_TOKEN * xlim[1] * ylim[1]
    for k, c in enumerate(10.0 ** np.arange(np.ceil(np.log10(low)), np.log10(high))):
        n_of_d = [c / FLOPS_PER_PARAM_TOKEN / x for x in xlim]
        axes.plot(xlim, n_of_d, ":", color="#b0b0b0", lw=0.7, zorder=1, label="" if k else "Equal compute")
    best = study.optima(study.params, np.geomspace(low, high, 200))
    if np.isfinite(best).any():
        axes.plot(best[:, 1], best[:, 0], color=style.INK, lw=1.5, ls=style.DASHED, zorder=3, label="Compute-optimal")
    levels = np.geomspace(max(float(np.nanmin(loss)), study.observed.min() / 1.2), study.observed.max(), 11)
    cmap = style.COLOURS.reversed()
    lines = axes.contour(data, sizes, loss, np.unique(levels), cmap=cmap, norm=norm, linewidths=0.9, zorder=2)
    dots(axes, d, n, c=study.observed, norm=norm, cmap=cmap, s=size.dot)
    axes.set(xlabel=study.label("D"), ylabel=study.label("N"))
    style.log_axis(axes, "x", *xlim)
    style.log_axis(axes, "y", *ylim)
    style.colour_bar(figure, axes, norm, study.loss, reverse=True)
    axes.clabel(lines, fmt=style.short, fontsize=size.font - 2, inline_spacing=2)
    axes.grid(False)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, borderaxespad=0.2)
    return figure
