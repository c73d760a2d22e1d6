"""Figures of the runs and the law through them: compute, curves, residuals, heatmap.

Legend: N parameters, D examples or tokens, C training FLOPs, L loss.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from bigmodel.laws.figures import style
from bigmodel.laws.figures.study import Study, band, dots
from bigmodel.laws.forms import FLOPS_PER_PARAM_TOKEN


def compute(study: Study, size: style.Size) -> Figure | None:
    """Loss against training compute. Dots: runs. Thin curves: the law at one model size. Dashed line: the lowest loss
    that the law allows for each budget. Shaded: where 95 % of the resamples put it.

    Laws count C = 6 N D; runs may count exactly. Curves of one N are drawn at the C of that N's runs, the frontier at
    6 N D times the runs' median C / (6 N D), so that marks and curves share the axis.
    """
    if not study.plane or study.target != "L":
        return None
    flops, n, d = study.column("C"), study.column("N"), study.column("D")
    exact = flops / (FLOPS_PER_PARAM_TOKEN * n * d)
    figure, (axes,) = size.panels(1)
    norm = style.log_norm(n)
    low, high = float(study.budgets[0]), float(study.budgets[-1])
    budget = np.geomspace(low, high, 120)
    for value in study.spread("N"):
        data = np.geomspace(d.min() / 3, d.max() * 3, 100)
        x = FLOPS_PER_PARAM_TOKEN * value * data * float(np.median(exact[n == value]))
        y = study.at(study.params, N=value, D=data)
        axes.plot(x, y, color=style.colour(norm, value), lw=0.9, alpha=0.75, zorder=2)
    best, losses = study.frontier(study.params, budget), study.observed
    if np.isfinite(best).all():
        losses = np.append(losses, max(best.min(), losses.min() / 1.3))  # a long curve must not squeeze the runs
        pairs = zip(study.sample_params, study.sample_optima, strict=True)
        band(axes, study.budgets, [study.at(params, N=pair[:, 0], D=pair[:, 1]) for params, pair in pairs])
        axes.plot(budget, best, color=style.INK, lw=1.6, ls=style.DASHED, zorder=3, label="Compute-optimal (law)")
        for entry in study.result["holdout"][-1:]:
            refit = study.frontier(entry["params"], budget)
            axes.plot(budget, refit, ":", color=style.VERMILLION, zorder=3, label="Refit without the ringed runs")
    dots(axes, flops, study.observed, c=n, norm=norm, s=size.dot)
    if study.held.any():
        x, y, label = flops[study.held], study.observed[study.held], "Held out in a refit"
        ring = {"edgecolors": style.VERMILLION, "linewidths": 1.1, "zorder": 5, "label": label}
        dots(axes, x, y, s=3.5 * size.dot, color="none", **ring)
    axes.set(xlabel=study.label("C"), ylabel=study.loss)
    style.loss_axis(axes, losses)
    style.log_axis(axes, "x", low, high)
    style.colour_bar(figure, axes, norm, study.label("N"))
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="lower left")  # no run is there: losses fall to the right
    return figure


def curves(study: Study, size: style.Size) -> Figure:
    """The runs against each input of the law. Curves: the law, with its other inputs at the value of the colour or at
    their median."""
    columns = ["N", "D"] if study.plane else list(study.law.columns)[:3]
    # A law of N and D takes C from them.
    rest = {} if study.plane else {c: float(np.exp(np.median(np.log(study.column(c))))) for c in study.law.columns}
    figure, panels = size.panels(len(columns), sharey=True)
    for axes, x, other in zip(panels, columns, [*columns[1:], columns[0]], strict=True):
        values = study.column(x)
        low, high = values.min() / 1.5, values.max() * 1.5
        grid = np.geomspace(low, high, 120)
        if other == x:
            band(axes, grid, [study.at(params, **{x: grid}) for params in study.sample_params])
            axes.plot(grid, study.at(study.params, **{x: grid}), color=style.INK, lw=1.4, zorder=2, label="Law")
            axes.legend(loc="best")
            dots(axes, values, study.observed, s=size.dot)
        else:
            norm = style.log_norm(study.column(other))
            for value in study.spread(other):
                line = study.at(study.params, **(rest | {x: grid, other: value}))
                axes.plot(grid, line, color=style.colour(norm, value), lw=1, zorder=2)
            dots(axes, values, study.observed, c=study.column(other), norm=norm, s=size.dot)
            style.colour_bar(figure, axes, norm, study.label(other))
        axes.set(xlabel=study.label(x), ylabel=study.loss)
        style.loss_axis(axes, study.observed)
        style.log_axis(axes, "x", low, high)
    return figure


def residuals(study: Study, size: style.Size) -> Figure:
    """Residual of each run, relative to the law, or absolute where targets may be 0. A trend means that the law does
    not describe the runs."""
    known = [c for c in ("C", "N", "D") if c in study.frame]
    columns = known if study.plane else list(study.law.columns)[:3]
    linear = study.law.linear
    error = study.observed - study.predicted if linear else 100 * (study.observed / study.predicted - 1)
    reach = max(1.15 * float(np.nanmax(np.abs(error))), 1e-3)
    figure, panels = size.panels(len(columns), 0.8 * size.single[1], sharey=True)
    coloured: dict[str, Any] = {}
    if study.plane:
        coloured = {"c": study.column("N"), "norm": style.log_norm(study.column("N"))}
    for axes, x in zip(panels, columns, strict=True):
        values = study.column(x)
        axes.axhline(0, color=style.INK, lw=0.9, zorder=1)
        dots(axes, values, error, s=size.dot, **coloured)
        axes.set(xlabel=study.label(x), ylim=(-reach, reach))
        if axes.get_subplotspec().is_first_col():
            axes.set_ylabel("Observed − law" + ("" if linear else " (% of law)"))
        style.log_axis(axes, "x", values.min() / 1.5, values.max() * 1.5)
    if coloured:
        style.colour_bar(figure, panels.tolist(), coloured["norm"], study.label("N"))
    return figure


def heatmap(study: Study, size: style.Size) -> Figure | None:
    """Lowest loss of each shape, at the most data on which that shape was trained."""
    if not {"width", "depth", "D", "L"} <= set(study.frame.columns) or study.target != "L":
        return None
    known = study.frame.dropna(subset=["width", "depth"])
    if known.empty:
        return None
    most = known[known["D"] >= known.groupby(["width", "depth"])["D"].transform("max") * (1 - 1e-9)]
    cells = most.sort_values("L").groupby(["width", "depth"], as_index=False).first()
    loss, data = (cells.pivot(index="depth", columns="width", values=name) for name in ("L", "D"))
    depths, widths = loss.shape
    figure, (axes,) = size.panels(1, min(1.6 + 0.5 * depths, 7))
    figure.set_figwidth(float(np.clip(1.7 + 0.75 * widths, size.single[0], size.double)))
    norm, cmap = Normalize(float(cells["L"].min()), float(cells["L"].max()) + 1e-12), style.COLOURS.reversed()
    image = axes.imshow(loss, cmap=cmap, norm=norm, origin="lower", aspect="auto")
    same = cells["D"].max() <= cells["D"].min() * (1 + 1e-9)
    if max(widths, depths) <= 1.2 * size.double:  # readable
        for (i, j), value in np.ndenumerate(loss.to_numpy(dtype=float)):
            if np.isfinite(value):
                text = f"{value:#.4g}" + ("" if same else f"\n{style.short(data.iloc[i, j], 3)}")
                ink = "white" if norm(value) > 0.4 else style.INK
                axes.text(j, i, text, ha="center", va="center", fontsize=size.font - 1.5, color=ink)
    else:
        figure.colorbar(image, ax=axes, pad=0.02, aspect=30)
    axes.set_xticks(range(widths), [f"{value:g}" for value in loss.columns])
    axes.set_yticks(range(depths), [f"{value:g}" for value in loss.index])
    where = f"{style.short(cells['D'].max(), 3)} {study.unit}" if same else f"the most {study.unit} of each shape"
    axes.set(xlabel="Width", ylabel="Depth (layers)", title=f"{study.loss}\nbest run at {where}")
    axes.grid(False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure
