"""Figures of how far to trust a fit: clouds, fan, forest, comparison.

Legend: N parameters, D examples or tokens, C training FLOPs, L loss; N_opt ~ C^a.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator, NullLocator

from bigmodel.laws.figures import style
from bigmodel.laws.figures.study import Marks, Study
from bigmodel.laws.forms import FLOPS_PER_PARAM_TOKEN

# (who, a, interval, what the interval is). N_opt ~ C^a.
PUBLISHED = (
    # Kaplan et al. 2020, arXiv:2001.08361, table 6 (equation 1.7): no interval.
    ("Kaplan 2020", 0.73, None, ""),
    # Hoffmann et al. 2022, arXiv:2203.15556, table 2: percentiles of 100 bootstraps of 80 % of the runs.
    ("Hoffmann 2022, approach 1", 0.50, (0.488, 0.502), "10th to 90th percentile"),
    ("Hoffmann 2022, approach 2", 0.49, (0.462, 0.534), "10th to 90th percentile"),
    ("Hoffmann 2022, approach 3", 0.46, (0.454, 0.455), "10th to 90th percentile"),
    # Besiroglu et al. 2024, arXiv:2404.10102: a = beta / (alpha + beta) of their refit of approach 3. They print the
    # width of the 80 % interval, 0.051; its ends are those of their 4000 bootstraps, run again.
    ("Besiroglu 2024", 0.513, (0.4913, 0.5428), "10th to 90th percentile"),
    # Porian et al. 2024, arXiv:2406.19146, table 1 (RefinedWeb): Kaplan's setup, and after all of their corrections.
    ("Porian 2024, as Kaplan", 0.835, (0.824, 0.846), "95 %"),
    ("Porian 2024, tuned", 0.497, (0.491, 0.505), "95 %"),
)
KINDS = {"10th to 90th percentile": style.GREY, "95 %": style.INK, "": style.INK}


# -------------------------------------------------------------------------------------- clouds


def clouds(study: Study, size: style.Size, marks: Marks) -> Figure | None:
    """Every pair of parameters, and the exponent a, over the resamples: a corner plot."""
    if len(study.samples) < 10:
        return None
    columns = dict(zip(study.law.names, study.samples.T, strict=True))
    estimates = dict(study.params)
    a = study.result["optimal"]["a"]
    if len(study.exponent_samples) == len(study.samples) and a is not None:
        columns["a"], estimates["a"] = study.exponent_samples, a
    names = _telling(study, list(columns), 4 if size.stacked else 6)
    count = len(names)
    wide = size.single[0] if size.stacked else min(size.double, 1.0 + 1.35 * count)
    tight = ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0.02, hspace=0.02)
    figure = Figure(figsize=(wide, 0.93 * wide if count > 1 else 0.7 * wide), layout=tight)
    grid = figure.subplots(count, count, squeeze=False)
    scales = [_scale(columns[name], estimates[name], study.result["ci"].get(name)) for name in names]
    for i, y in enumerate(names):
        for j, x in enumerate(names):
            axes = grid[i, j]
            if j > i:
                axes.set_axis_off()
                continue
            ends = study.result["ci"].get(x)
            (low, high), log = scales[j]
            axes.set(xlim=(low, high), **({"xscale": "log"} if log else {}))
            axes.grid(False)
            if i == j:
                _histogram(axes, columns[x], low, high, log)
                axes.axvline(estimates[x], color=style.VERMILLION, lw=1.2)
                if _known(ends):
                    axes.axvspan(*ends, color=style.ORANGE, alpha=0.25, lw=0, zorder=0)
                axes.set_yticks([])
                axes.spines["left"].set_visible(False)
            else:
                dots = 5 if not size.stacked else 2.5
                alpha = float(np.clip(120 / len(study.samples), 0.12, 0.7))
                axes.scatter(columns[x], columns[y], s=dots, c=style.BLUE, alpha=alpha, lw=0, rasterized=True)
                axes.set(ylim=scales[i][0], **({"yscale": "log"} if scales[i][1] else {}))
                _cross(axes, estimates[x], estimates[y], ends, study.result["ci"].get(y))
                _few_ticks(axes.yaxis, *scales[i], labels=j == 0)
            _few_ticks(axes.xaxis, *scales[j], labels=i == count - 1)
            if i == count - 1:
                axes.set_xlabel(_marked(study, x))
                axes.tick_params(axis="x", labelrotation=40 if not log else 0)
            if j == 0 and i > 0:
                axes.set_ylabel(_marked(study, y))
    return figure


def _marked(study: Study, name: str) -> str:
    """A parameter's symbol; † where its value or its interval ends at a bound of the search."""
    return style.symbol(name) + ("†" if study.result.get("at_bound", {}).get(name) else "")


def _telling(study: Study, names: list[str], most: int) -> list[str]:
    """At most `most` of the parameters, those that say most first: exponents, floor, a."""
    rank = {name: k for k, name in enumerate([*study.law.exponent_names, "a", study.law.floor])}
    best = sorted(names, key=lambda name: rank.get(name, len(rank)))[:most]
    return [name for name in names if name in best]


def _known(ends: Any) -> bool:
    return ends is not None and None not in ends and bool(np.isfinite(ends).all())


def _scale(values: np.ndarray, estimate: float, ends: Any) -> tuple[tuple[float, float], bool]:
    """((low, high), whether logarithmic): all but the outermost 1 % of the resamples."""
    finite = values[np.isfinite(values)]
    low, high = np.percentile(finite, [0.5, 99.5])
    inside = [estimate, *(ends if _known(ends) else ())]
    low, high = min(low, *inside), max(high, *inside)
    if low > 0 and high > 20 * low:
        return (low / (high / low) ** 0.05, high * (high / low) ** 0.05), True
    room = 0.06 * (high - low) or 0.01 * abs(high) or 1e-9
    return (low - room, high + room), False


def _histogram(axes: Axes, values: np.ndarray, low: float, high: float, log: bool) -> None:
    edges = np.geomspace(low, high, 28) if log else np.linspace(low, high, 28)
    counts, _ = np.histogram(values[np.isfinite(values)], edges)
    axes.stairs(counts, edges, fill=True, color=style.BLUE, alpha=0.75)
    axes.set_ylim(0, 1.1 * max(1, counts.max()))


def _cross(axes: Axes, x: float, y: float, x_ends: Any, y_ends: Any) -> None:
    line: dict[str, Any] = {"color": style.VERMILLION, "lw": 1.0, "zorder": 5, "solid_capstyle": "butt"}
    if _known(x_ends):
        axes.plot(x_ends, [y, y], **line)
    if _known(y_ends):
        axes.plot([x, x], y_ends, **line)
    axes.plot(x, y, "o", color=style.VERMILLION, ms=3.5, mec="white", mew=0.5, zorder=6)


def _few_ticks(axis: Any, limits: tuple[float, float], log: bool, labels: bool) -> None:
    if log:
        wide = style.power if limits[1] >= 1e5 or limits[0] < 1e-2 else None
        style.log_ticks(axis, *limits, wide, inches=0.8, across=True)
    else:
        axis.set_major_locator(MaxNLocator(nbins=3, steps=[1, 2, 5, 10]))
    if log:
        axis.set_minor_locator(NullLocator())
    if not labels:
        axis.set_tick_params(labelbottom=False, labelleft=False)


# ----------------------------------------------------------------------------------------- fan


def fan(study: Study, size: style.Size, marks: Marks) -> Figure | None:
    """Refits without the largest 1, 2, ... compute rungs: their curves, and their errors against the compute gap."""
    entries = study.result["holdout"]
    if not entries:
        return None
    scale = "C" if "C" in study.frame else study.law.columns[0]  # as the fit orders its rungs
    flops = study.column(scale)
    curve = _curve(study, scale)
    figure, panels = size.panels(2 if curve else 1, 3.4)
    inks = [style.colour(style.Normalize(0, max(1, len(entries))), len(entries) - 1 - k) for k in range(len(entries))]
    if curve:
        axes = panels[0]
        low, high = flops.min() / 1.5, flops.max() * 2
        compute = np.geomspace(low, high, 120)
        whole = curve(study.params, compute)
        axes.plot(compute, whole, color=style.INK, lw=1.6, ls=(0, (5, 2)), label="every run", zorder=4)
        for entry, ink, mark in zip(entries, inks, style.MARKERS, strict=False):
            left = flops[~_without(study, entry)].max()
            y = curve(entry["params"], compute)
            axes.plot(compute, y, color=ink, lw=1.3, zorder=3)
            at = float(np.interp(np.log(left), np.log(compute), y))
            label = f"without {entry['n_held_out']}, to ${scale}$ = {style.power(float(f'{left:.1e}'))}"
            axes.plot(left, at, color=ink, marker=mark, ms=5, mec="white", mew=0.5, lw=1.3, label=label, zorder=5)
        marks.draw(axes, flops, study.observed, color=style.GREY, s=0.7 * size.dot, alpha=0.8)
        axes.set(xlabel=study.label(scale), ylabel=study.loss)
        style.loss_axis(axes, study.observed, whole)
        style.log_axis(axes, "x", low, high, style.power if scale == "C" else None)
        axes.legend(loc="best")
    axes = panels[-1]
    axes.axhline(0, color=style.INK, lw=0.9, zorder=1)
    errors, gaps = [np.zeros(1)], []
    for entry, ink, mark in zip(entries, inks, style.MARKERS, strict=False):
        held = np.array(entry["held_out"], dtype=int)
        rows = {name: study.column(name)[held] for name in study.law.columns}
        error = 100 * (study.law.predict(entry["params"], rows) / study.observed[held] - 1)
        gap = flops[held] / flops[~_without(study, entry)].max()
        label = f"without {entry['n_held_out']}: mean {100 * entry['mean_abs_rel_error']:.2g} %"
        marks.draw(axes, gap, error, color=ink, marker=mark, s=1.4 * size.dot, rows=held, label=label)
        errors.append(error)
        gaps.append(gap)
    axes.set(
        xlabel=f"{'compute' if scale == 'C' else scale} over the largest run fitted",
        ylabel="predicted above observed (%)",
    )
    all_errors, every = np.concatenate(errors), np.concatenate(gaps)
    room = max(0.25 * float(np.nanmax(all_errors) - np.nanmin(all_errors)), 1e-3)
    axes.set_ylim(float(np.nanmin(all_errors)) - room, float(np.nanmax(all_errors)) + room)
    style.log_axis(axes, "x", min(1.0, every.min()) / 1.1, every.max() * 1.25, style.times)
    axes.legend(loc="best")
    return figure


def _without(study: Study, entry: Mapping[str, Any]) -> np.ndarray:
    out = np.zeros(len(study.frame), dtype=bool)
    out[entry["held_out"]] = True
    return out


def _curve(study: Study, scale: str) -> Any:
    """(params, C) -> the target along a path through the runs: the law's frontier, or the law itself; None: neither."""
    if study.law.columns == (scale,):
        return lambda params, x: study.at(params, **{scale: x})
    if not study.plane or study.target != "L":
        return None
    if np.isfinite(study.frontier(study.params, study.budgets[[0, -1]])).all():
        return study.frontier
    largest = float(study.column("N").max())
    return lambda params, c: study.at(params, N=largest, D=c / study.ratio / FLOPS_PER_PARAM_TOKEN / largest)


# -------------------------------------------------------------------------- forest, comparison


def forest(study: Study, size: style.Size, marks: Marks) -> Figure | None:
    """The exponent a of this fit, by each method, against published ones."""
    ours = _ours(study)
    if not ours:
        return None
    rows: list[tuple[str, float, Any, str] | None] = [*ours, None, *PUBLISHED]
    wide = size.single[0] if size.stacked else size.single[0] + 0.6
    figure = Figure(figsize=(wide, 0.9 + 0.21 * len(rows) * size.font / 9), layout="constrained")
    axes = figure.add_subplot()
    labelled: set[str] = set()
    for k, row in enumerate(rows):
        if row is None:
            axes.axhline(-k, color="#c9c9c9", lw=0.8)
            continue
        _, a, ends, kind = row
        mine = k < len(ours)
        ink = style.BLUE if mine else KINDS[kind]
        text = f"{kind} (here)" if mine else kind
        label = {"": "no interval"}.get(kind, text)
        if _known(ends):
            axes.plot(ends, [-k, -k], color=ink, lw=2.2 if mine else 1.6, solid_capstyle="butt",
                      ls="-" if kind != "10th to 90th percentile" else (0, (2, 0.7)),
                      label="" if label in labelled else label)  # fmt: skip
            labelled.add(label)
        face = ink if _known(ends) else "white"
        axes.plot(a, -k, "o" if mine else "s", color=ink, ms=4.5, mfc=face, mec=ink, mew=0.8, zorder=4)
    if any(not _known(row[2]) for row in rows if row):
        axes.plot([], [], "s", color=style.INK, mfc="white", ms=4.5, mew=0.8, label="no interval")
    axes.axvline(0.5, color=style.GREY, lw=0.7, ls=":", zorder=0)
    names = [(-k, row[0]) for k, row in enumerate(rows) if row]
    axes.set_yticks([k for k, _ in names], [name for _, name in names])
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="y", visible=False)
    spans = [v for row in rows if row for v in (row[1], *(row[2] if _known(row[2]) else ()))]
    low, high = max(-0.5, min(spans)), min(1.6, max(spans))
    axes.set(xlabel="exponent $a$ of $N_{opt} \\propto C^a$", ylim=(-len(rows) + 0.4, 0.6))
    axes.set_xlim(low - 0.04, high + 0.04)
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def _ours(study: Study) -> list[tuple[str, float, Any, str]]:
    result, level = study.result, f"{100 * study.result['interval']['level']:g} %"
    rows: list[tuple[str, float, Any, str]] = []
    a, name = result["optimal"]["a"], style.law_name(result["law"])
    if a is not None and np.isfinite(a):
        for method, intervals in result["intervals"].items():
            if _known(intervals.get("a")):  # some methods are for parameters alone
                rows.append((f"{name}, {method}", a, intervals["a"], level))
        if not rows:
            rows.append((name, a, None, level))
    for method in study.frontiers:
        rows.append((method["law"], method["params"]["a"], method["ci"].get("a"), level))
    return rows


def comparison(study: Study, size: style.Size, marks: Marks) -> Figure | None:
    """Held-out error of each compared law against the compute gap."""
    compared = [entry for entry in study.result["compared"] if entry["holdout"]]
    if not compared:
        return None
    figure, (axes,) = size.panels(1, size.single[1])
    errors, gaps = [], []
    for k, entry in enumerate(compared):
        x = [h["flops_gap"] for h in entry["holdout"]]
        y = [100 * h["mean_abs_rel_error"] for h in entry["holdout"]]
        ink, mark = style.CYCLE[k % len(style.CYCLE)], style.MARKERS[k % len(style.MARKERS)]
        line = ("-", "--", ":")[k // len(style.CYCLE) % 3]
        label = f"{style.law_name(entry['law'])} ({entry['num_params']})"
        axes.plot(x, y, line, color=ink, marker=mark, ms=5, mec="white", mew=0.5, lw=1.1, label=label)
        errors += y
        gaps += x
    axes.set(xlabel="compute over the largest run fitted", ylabel="held-out mean |error| (%)")
    low, high = min(gaps), max(gaps)
    style.log_axis(axes, "x", low / 1.12, high * 1.12, style.times)
    usable = [e for e in errors if e > 0 and np.isfinite(e)]
    if usable and max(usable) > 20 * min(usable):
        style.log_axis(axes, "y", min(usable) / 1.4, max(usable) * 1.4)
    else:
        axes.set_ylim(0, 1.1 * max([1e-3, *usable]))
    title = "law (parameters)"
    if size.stacked:
        figure.legend(loc="outside lower center", ncols=2, title=title, title_fontsize=size.font - 1)
    else:
        figure.legend(loc="outside right upper", title=title, title_fontsize=size.font - 1)
    return figure
