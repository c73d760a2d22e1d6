"""Figures of the runs and the law through them: compute, size_data (or curves), residuals, heatmap.

Legend: N parameters, D examples or tokens, C training FLOPs, L loss.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from bigmodel.laws.figures import style
from bigmodel.laws.figures.study import Marks, Study, band
from bigmodel.laws.forms import FLOPS_PER_PARAM_TOKEN


def compute(study: Study, size: style.Size, marks: Marks) -> Figure | None:
    """Loss against compute: runs, the law at constant N, and the law's frontier.

    Laws count C = 6 N D; runs may count exactly. Curves of one N are drawn at the C of that N's runs, the frontier at
    6 N D times the runs' median C / (6 N D), so that marks and curves share the axis.
    """
    if not study.plane or study.target != "L":
        return None
    flops, n, d = study.column("C"), study.column("N"), study.column("D")
    exact = flops / (FLOPS_PER_PARAM_TOKEN * n * d)
    figure, (axes,) = size.panels(1, size.single[1])
    norm = style.log_norm(n)
    low, high = float(study.budgets[0]), float(study.budgets[-1])
    budget = np.geomspace(low, high, 120)
    for value in study.spread("N"):
        data = np.geomspace(d.min() / 3, d.max() * 3, 100)
        x = FLOPS_PER_PARAM_TOKEN * value * data * float(np.median(exact[n == value]))
        y = study.at(study.params, N=value, D=data)
        axes.plot(x, y, color=style.colour(norm, value), lw=0.9, alpha=0.75, zorder=2)
    best = study.frontier(study.params, budget)
    if np.isfinite(best).all():
        ends = band(study.sample_losses, study.budgets, budget)
        if ends is not None:
            axes.fill_between(budget, *ends, color=style.ORANGE, alpha=0.3, lw=0, zorder=1, label="95 % of resamples")
        label = "least loss, by the law"
        axes.plot(budget, best, color=style.INK, lw=1.6, ls=(0, (5, 2)), zorder=3, label=label)
    marks.draw(axes, flops, study.observed, norm, n)
    if study.held.any():
        ring: dict[str, Any] = {"s": 3.5 * size.dot, "facecolors": "none", "edgecolors": style.VERMILLION, "lw": 1.1}
        held = np.intersect1d(np.flatnonzero(study.held), study.shown)
        axes.scatter(flops[held], study.observed[held], zorder=5, label="held out in a refit", **ring)
    axes.set(xlabel=study.label("C"), ylabel=study.loss)
    style.loss_axis(axes, study.observed, best)
    style.log_axis(axes, "x", low, high, style.power)
    style.colour_bar(figure, axes, norm, study.label("N"))
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="lower left")  # where no run is: losses fall to the right
    return figure


def size_data(study: Study, size: style.Size, marks: Marks) -> Figure | None:
    """Loss against N at fixed D, and against D at fixed N."""
    return _against(study, size, marks) if study.plane else None


def curves(study: Study, size: style.Size, marks: Marks) -> Figure | None:
    """For laws of other columns: the target against each of them, and observed against predicted."""
    return None if study.plane else _against(study, size, marks)


def _against(study: Study, size: style.Size, marks: Marks) -> Figure:
    columns = [c for c in study.law.columns if not (study.plane and c == "C")][:3]
    if study.plane:
        columns = ["N", "D"]
    figure, panels = size.panels(len(columns) + (not study.plane), 3.3)
    middle = {c: float(np.exp(np.median(np.log(study.column(c))))) for c in study.law.columns}
    for i, (axes, x) in enumerate(zip(panels, columns, strict=False)):
        values = study.column(x)
        low, high = values.min() / 1.5, values.max() * 1.5
        grid = np.geomspace(low, high, 120)
        other = columns[(i + 1) % len(columns)]
        if other == x:
            line = study.at(study.params, **{x: grid})
            drawn = np.array([study.at(params, **{x: grid}) for params in study.sample_params]).reshape(-1, len(grid))
            ends = band(drawn, grid, grid)
            if ends is not None:
                axes.fill_between(grid, *ends, color=style.ORANGE, alpha=0.3, lw=0, label="95 % of resamples")
            axes.plot(grid, line, color=style.INK, lw=1.4, zorder=2, label="law")
            axes.legend(loc="best")
            marks.draw(axes, values, study.observed)
        else:
            norm = style.log_norm(study.column(other))
            rest = {} if study.plane else middle
            for value in study.spread(other):
                line = study.at(study.params, **(rest | {x: grid, other: value}))
                axes.plot(grid, line, color=style.colour(norm, value), lw=1, zorder=2)
            marks.draw(axes, values, study.observed, norm, study.column(other))
            style.colour_bar(figure, axes, norm, study.label(other).replace("training compute ", ""))
        axes.set(xlabel=study.label(x), ylabel=study.loss if i == 0 or size.stacked or not study.plane else "")
        style.loss_axis(axes, study.observed)
        style.log_axis(axes, "x", low, high, style.power if x == "C" else None)
    if not study.plane:
        axes = panels[-1]
        both = np.concatenate([study.observed, study.predicted[np.isfinite(study.predicted)]])
        low, high = both.min() / 1.05, both.max() * 1.05
        axes.plot([low, high], [low, high], color=style.INK, lw=0.9, zorder=1)
        marks.draw(axes, study.predicted, study.observed)
        axes.set(xlabel=f"{study.loss}, by the law", ylabel=f"{study.loss}, observed")
        style.log_axis(axes, "x", low, high)
        style.log_axis(axes, "y", low, high)
    return figure


def residuals(study: Study, size: style.Size, marks: Marks) -> Figure:
    """How far each run lies from the law, against each of C, N and D (or the columns that the law reads)."""
    known = [c for c in ("C", "N", "D") if c in study.frame]
    columns = known if study.plane else list(study.law.columns)[:3]
    error = 100 * (study.observed / study.predicted - 1)
    reach = max(1.15 * float(np.nanmax(np.abs(error))), 1e-3)
    figure, panels = size.panels(len(columns), 2.9, sharey=not size.stacked)
    shade = study.column("N") if study.plane else None
    norm = style.log_norm(shade) if shade is not None else None
    for i, (axes, x) in enumerate(zip(panels, columns, strict=True)):
        values = study.column(x)
        low, high = values.min() / 1.5, values.max() * 1.5
        axes.axhline(0, color=style.INK, lw=0.9, zorder=1)
        marks.draw(axes, values, error, norm, shade)
        axes.set(xlabel=study.label(x).replace("training ", ""), ylim=(-reach, reach))
        if i == 0 or size.stacked:
            axes.set_ylabel("observed above the law (%)")
        style.log_axis(axes, "x", low, high, style.power if x == "C" else None)
    if norm is not None:
        style.colour_bar(figure, panels.tolist(), norm, study.label("N"))
    return figure


def heatmap(study: Study, size: style.Size, marks: Marks) -> Figure | None:
    """Least loss of each width and depth, at the most data that the cell has."""
    if not {"width", "depth", "D", "L"} <= set(study.frame.columns) or study.target != "L":
        return None
    known = study.frame.dropna(subset=["width", "depth"])
    if known.empty:
        return None
    most = known[known["D"] >= known.groupby(["width", "depth"])["D"].transform("max") * (1 - 1e-9)]
    cells = most.sort_values("L").groupby(["width", "depth"], as_index=False).first()
    widths, depths = sorted(cells["width"].unique()), sorted(cells["depth"].unique())
    table = cells.pivot(index="depth", columns="width", values="L").reindex(index=depths, columns=widths)
    data = cells.pivot(index="depth", columns="width", values="D").reindex(index=depths, columns=widths)
    same = cells["D"].max() <= cells["D"].min() * (1 + 1e-9)
    wide = size.single[0] if size.stacked else float(np.clip(1.7 + 0.75 * len(widths), 3.6, size.double))
    high = float(np.clip(1.3 + 0.5 * len(depths), size.single[1] if size.stacked else 2.6, 7))
    figure, (axes,) = size.panels(1)
    figure.set_size_inches(wide, high)
    norm = Normalize(float(cells["L"].min()), float(cells["L"].max()) + 1e-12)
    image = axes.pcolormesh(
        table.to_numpy(dtype=float), cmap=style.COLOURS.reversed(), norm=norm, edgecolors="white", lw=1.5
    )
    image.set_rasterized(len(widths) * len(depths) > 400)
    points = min(8.0, 72 * (wide - 0.9) / len(widths) / 3.6, 72 * (high - 0.9) / len(depths) / (1.3 if same else 2.6))
    if points >= 4.5:
        for (i, j), value in np.ndenumerate(table.to_numpy(dtype=float)):
            if not np.isfinite(value):
                continue
            red, green, blue, _ = image.cmap(norm(value))
            dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
            text = f"{value:.3f}" if value >= 0.1 else f"{value:.2e}"
            text += "" if same else f"\n{style.short(data.iloc[i, j])}"
            ink = "white" if dark else style.INK
            axes.text(j + 0.5, i + 0.5, text, ha="center", va="center", fontsize=points, color=ink)
    else:  # numbers wouldn't be readable: a scale says what the colours are
        figure.colorbar(image, ax=axes, pad=0.02, aspect=30)
    every = [
        max(1, -(-len(values) * 30 // int(72 * room))) for values, room in ((widths, wide - 0.9), (depths, 2 * high))
    ]
    axes.set_xticks(np.arange(len(widths))[:: every[0]] + 0.5, [f"{w:g}" for w in widths[:: every[0]]])
    axes.set_yticks(np.arange(len(depths))[:: every[1]] + 0.5, [f"{d:g}" for d in depths[:: every[1]]])
    lines = "" if points < 4.5 else " (second line)"
    what = f"at {style.short(cells['D'].max())} {study.unit}" if same else f"at each shape's most {study.unit}{lines}"
    axes.set(xlabel="width", ylabel="depth")
    figure.suptitle(f"best {study.loss}\n{what}", fontsize=size.font)
    axes.grid(False)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return figure
