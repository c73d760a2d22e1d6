"""How well a law predicts runs that it hasn't seen: the largest ones, and each rung in turn.

A rung is all runs of about the same compute: those within a factor RUNG_FACTOR of the rung's largest C.

Legend: N parameters, D examples or tokens, C training FLOPs, L loss; n runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from bigmodel.errors import UsageError
from bigmodel.laws import checks, intervals, search
from bigmodel.laws.forms import Law
from bigmodel.laws.search import Found
from bigmodel.laws.solve import Problem

RUNG_FACTOR = 1.5  # runs of a rung are within this factor of its largest C
MOST_RUNGS = 8  # to leave out one at a time; of more, neighbours are joined
RESAMPLES = 200
REFIT_RUNS = 20_000  # largest number of runs in a refit that leaves some out


def rung_scale(
    data: Mapping[str, np.ndarray], law: Law, trunks: np.ndarray | None = None
) -> tuple[str, np.ndarray, np.ndarray, float]:
    """What rungs are ordered by: (name, scale (n,), order (n,), factor within a rung).

    The scale is C, or where there is none the law's first column; of losses the smallest are the furthest. A rung is
    never more than a sixth of the whole range of logarithms. With `trunks` (n,), the run that each point is of, a
    point's order is the largest scale of its run, so that a run is held out with all of its points.
    """
    name = "C" if "C" in data else law.columns[0]
    scale = 1 / data["L"] if name == "L" else data[name]
    order = scale if trunks is None else pd.Series(scale).groupby(trunks).transform("max").to_numpy()
    return name, scale, order, min(RUNG_FACTOR, float(np.max(scale) / np.min(scale)) ** (1 / 6))


def holdout(
    problem: Problem,
    data: Mapping[str, np.ndarray],
    most: int,
    bootstrap: int = 0,
    seed: int = 0,
    runs: np.ndarray | None = None,
    trunks: np.ndarray | None = None,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Refits without the 1 ... `most` largest rungs, and their errors on what they haven't seen.

    Args:
      problem: of the law, its objective and all runs.
      data: columns of the runs, each (n,).
      runs: (n,) which run each point is of, for the resamples.
      trunks: see `rung_scale`.

    Returns:
      The entries that `fit.fit` describes, and warnings.
    """
    law = problem.law
    _, scale, order, factor = rung_scale(data, law, trunks)
    left = np.ones(len(scale), dtype=bool)
    out: list[dict[str, Any]] = []
    warned: list[str] = []
    rng = np.random.default_rng(seed)
    for number in range(1, most + 1):
        which = f"{number} {'rung' if number == 1 else 'rungs'}"
        left &= order < order[left].max() / factor
        inside = {name: column[left] for name, column in data.items()}
        own = None if runs is None else runs[left]
        try:
            checks.enough(inside, law, "refit")
        except UsageError as e:
            return out, [*warned, f"no held-out error for {which}: {e}"]
        if left.sum() > REFIT_RUNS:
            part = np.sort(rng.choice(int(left.sum()), REFIT_RUNS, replace=False))
            inside, own = {name: column[part] for name, column in inside.items()}, None
        options = (float(np.max(problem.delta)), problem.above, problem.estimator, problem.residuals_of)
        refit = search.problem_of(law, inside, *options)
        found = search.search(refit)
        outside = {name: column[~left] for name, column in data.items()}
        params = law.named(found.theta)
        seen = outside[law.target]
        error = (law.predict(params, outside) - seen) / np.abs(seen)
        few = min(bootstrap, RESAMPLES) if len(refit) <= intervals.SUBSET_RUNS else 0
        samples, _ = intervals.resample(refit, found, few, seed + number, runs=own)
        spread = np.abs((law.predict_all(samples, outside) - seen) / seen).mean(axis=1, keepdims=True)
        mean, ends = float(np.abs(error).mean()), np.full(2, np.nan)
        if intervals.enough(len(samples), few):
            ends = intervals.percentile(spread)[:, 0]
        if few and mean > search.SAME_RESIDUAL and (why := intervals.doubt(ends, mean)):
            why = f"{len(samples)} of {few} resamples could be fitted" if np.isnan(ends).any() else why
            warned.append(f"no interval of the held-out error for {which}: {why}")
        out.append(
            {
                "rungs": number,
                "n_held_out": int((~left).sum()),
                "flops_gap": float(scale[~left].max() / scale[left].max()),
                "mean_abs_rel_error": mean,
                "mean_abs_rel_error_ci": intervals.pair(ends, mean),
                "max_abs_rel_error": float(np.abs(error).max()),
                "mean_rel_error": float(error.mean()),
                "params": params,
                "held_out": [int(i) for i in np.flatnonzero(~left)],
            }
        )
    return out, warned


def rungs(order: np.ndarray, factor: float) -> list[np.ndarray]:
    """The runs (indices) of each rung, smallest first; at most MOST_RUNGS."""
    groups: list[list[int]] = []
    top = np.inf
    for i in np.argsort(order, kind="stable")[::-1]:
        if order[i] < top / factor:
            groups.append([])
            top = order[i]
        groups[-1].append(int(i))
    groups = groups[::-1]
    parts = np.array_split(np.arange(len(groups)), min(MOST_RUNGS, len(groups)))
    return [np.sort(np.concatenate([groups[k] for k in part])).astype(int) for part in parts]


def leave_one_out(
    problem: Problem, found: Found, data: Mapping[str, np.ndarray], largest: float, trunks: np.ndarray | None = None
) -> list[dict[str, Any]]:
    """Refits without each rung in turn: left_out, n (runs left out), params, a (near C = `largest`)."""
    if len(problem) > REFIT_RUNS:
        return []
    law = problem.law
    name, _, order, factor = rung_scale(data, law, trunks)
    groups = rungs(order, factor)
    out = []
    for group, theta in zip(groups, intervals.without(problem, found, groups), strict=True):
        if theta is None:
            continue
        low, high = float(data[name][group].min()), float(data[name][group].max())
        text = f"{name} {low:.3g}" if high <= low * 1.005 else f"{name} {low:.3g} to {high:.3g}"
        params = law.named(theta)
        a = law.exponents(params, largest)["a"] if law.exponents is not None else None
        out.append({"left_out": text, "n": len(group), "params": params, "a": a})
    return out
