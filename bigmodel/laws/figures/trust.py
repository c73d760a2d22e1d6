"""Figures of how far to trust a fit: comparison, clouds, forest.

Legend: N parameters, D examples or tokens, C training FLOPs, L loss; N_opt ~ C^a.
"""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from bigmodel.laws.figures import style
from bigmodel.laws.figures.study import Study
from bigmodel.laws.forms import REFERENCE_FLOPS
from bigmodel.laws.intervals import exponent_samples
from bigmodel.laws.texts import has_ends, known, law_name, level, rung_name, symbol

# (who, a, interval, what the interval holds of its distribution). N_opt ~ C^a.
PUBLISHED = (
    # Kaplan et al. 2020, arXiv:2001.08361, table 6 (equation 1.7): no interval.
    ("Kaplan 2020", 0.73, None, ""),
    # Hoffmann et al. 2022, arXiv:2203.15556, table 2: percentiles of 100 bootstraps of 80 % of the runs.
    ("Hoffmann 2022, approach 1", 0.50, (0.488, 0.502), "10–90 %"),
    ("Hoffmann 2022, approach 2", 0.49, (0.462, 0.534), "10–90 %"),
    ("Hoffmann 2022, approach 3", 0.46, (0.454, 0.455), "10–90 %"),
    # Besiroglu et al. 2024, arXiv:2404.10102: a = beta / (alpha + beta) of their refit of approach 3. They print the
    # width of the 80 % interval, 0.051; its ends are those of their 4000 bootstraps, run again.
    ("Besiroglu 2024", 0.513, (0.4913, 0.5428), "10–90 %"),
    # Porian et al. 2024, arXiv:2406.19146, table 1 (RefinedWeb): Kaplan's setup, and after all of their corrections.
    ("Porian 2024, as Kaplan", 0.835, (0.824, 0.846), "95 %"),
    ("Porian 2024, tuned", 0.497, (0.491, 0.505), "95 %"),
)


def comparison(study: Study, size: style.Size) -> Figure | None:
    """Error on the largest runs, held out, of a law refitted to ever smaller ones. Lower and flatter is better."""
    alone = {**study.result, "num_params": len(study.params)}
    compared = [entry for entry in study.result["compared"] or [alone] if entry["backtests"]]
    if not compared:
        return None
    names = {entry["law"]: f"{law_name(entry['law'])} ({entry['num_params']} parameters)" for entry in compared}
    held = pd.DataFrame([{"law": entry["law"], **rung} for entry in compared for rung in entry["backtests"]])
    gaps, errors = held["flops_gap"], 100 * held["mean_abs_rel_error"]
    figure, (axes,) = size.panels(1)
    for k, (law, name) in enumerate(names.items()):
        mine, ink, mark = held["law"] == law, style.CYCLE[k % len(style.CYCLE)], style.MARKERS[k % len(style.MARKERS)]
        axes.plot(gaps[mine], errors[mine], color=ink, marker=mark, ms=5, mec="white", mew=0.5, lw=1.1, label=name)
    rungs = rung_name(study.result)
    axes.set(xlabel=f"Gap: largest {rungs} held out / fitted", ylabel="Mean |error| on held-out runs (%)")
    style.log_axis(axes, "x", gaps.min() / 1.12, gaps.max() * 1.12, "{:.3g}×".format)
    if errors.max() > 20 * errors.min() > 0:
        style.log_axis(axes, "y", errors.min() / 1.4, errors.max() * 1.4)
    else:
        axes.set_ylim(bottom=0)
    figure.legend(loc="outside lower center", ncols=2 if size.across > 1 else 1)
    return figure


def clouds(study: Study, size: style.Size) -> Figure | None:
    """Refits to resampled runs, without the outermost 1 %. Red: the estimate. Shaded: its interval. †: the value or its
    interval ends at a bound of the search."""
    if len(study.samples) < 10:
        return None
    samples, estimates = pd.DataFrame(study.samples, columns=study.law.names), dict(study.params)
    largest = float(study.column("C").max()) if "C" in study.frame else REFERENCE_FLOPS
    exponents = exponent_samples(study.law, study.samples, largest)
    if exponents and study.result["optimal"]["a"] is not None:
        samples["a"], estimates["a"] = exponents["a"], study.result["optimal"]["a"]
    samples = samples.where((samples >= samples.quantile(0.005)) & (samples <= samples.quantile(0.995)))
    first = ["a", *study.law.exponent_names, study.law.floor, *study.law.names]  # those that say most
    names = [name for name in dict.fromkeys(first) if name in samples][: 6 if size.across > 1 else 4]
    figure = Figure(figsize=(size.double, 0.93 * size.double), layout="constrained")
    grid = figure.subplots(len(names), len(names), squeeze=False, sharex="col")
    few = {"nbins": 3, "steps": [1, 2, 5, 10]}
    for i, y in enumerate(names):
        for axes in grid[i, i + 1 :]:
            axes.set_axis_off()
        for axes, x in zip(grid[i, :i], names, strict=False):
            axes.scatter(samples[x], samples[y], s=0.2 * size.dot, c=style.BLUE, alpha=0.4, lw=0, rasterized=True)
            axes.plot(estimates[x], estimates[y], "o", color=style.VERMILLION, ms=3.5, mec="white", mew=0.5)
            axes.locator_params(**few)
            axes.tick_params(labelleft=axes is grid[i, 0])
        axes, ends = grid[i, i], study.result["ci"].get(y)
        values = samples[y].dropna()
        margin = 1e-9 * values.abs().max()  # of points without noise all samples are one number
        axes.hist(values, 28, (values.min() - margin, values.max() + margin), color=style.BLUE, alpha=0.75)
        axes.axvline(estimates[y], color=style.VERMILLION, lw=1.2)
        if has_ends(ends):
            axes.axvspan(*ends, color=style.ORANGE, alpha=0.25, lw=0, zorder=0)
        axes.locator_params(axis="x", **few)
        axes.yaxis.set_visible(False)
        text = symbol(y) + ("†" if study.result.get("at_bound", {}).get(y) else "")
        grid[-1, i].set_xlabel(text)
        grid[-1, i].tick_params(axis="x", labelrotation=40)
        if i > 0:
            grid[i, 0].set_ylabel(text)
    figure.align_labels()
    return figure


def forest(study: Study, size: style.Size) -> Figure | None:
    """Growth of the compute-optimal model size with compute, here (blue) and as published. In parentheses: what each
    interval covers. An open mark has no interval."""
    a, kind = study.result["optimal"]["a"], level(study.result)
    ours = [(law_name(study.result["law"]), a, study.result["ci"].get("a"), kind)] if known(a) else []
    ours += [(method["law"], method["params"]["a"], method["ci"].get("a"), kind) for method in study.frontiers]
    if not ours:
        return None
    rows = [*ours, *PUBLISHED]
    figure, (axes,) = size.panels(1, 0.9 + 0.023 * size.font * len(rows))
    for k, (_, a, ends, _) in enumerate(rows):
        ink, mark = (style.BLUE, "o") if k < len(ours) else (style.INK, "s")
        if has_ends(ends):
            axes.plot(ends, [k, k], color=ink, lw=2, solid_capstyle="butt")
        axes.plot(a, k, mark, color=ink, ms=4.5, mfc=ink if has_ends(ends) else "white", mew=0.8, zorder=4)
    axes.axhline(len(ours) - 0.5, color="#c9c9c9", lw=0.8)
    axes.axvline(0.5, color=style.GREY, lw=0.7, ls=":", zorder=0)
    axes.set_yticks(range(len(rows)), [f"{name} ({kind})" if has_ends(ends) else name for name, _, ends, kind in rows])
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="y", visible=False)
    spans = [v for _, a, ends, _ in rows for v in (a, *(ends if has_ends(ends) else ()))]
    axes.set_xlim(max(-0.5, min(spans)) - 0.04, min(1.6, max(spans)) + 0.04)
    axes.set(xlabel="Exponent $a$ in $N_{opt} \\propto C^a$", ylim=(len(rows) - 0.4, -0.6))
    return figure
