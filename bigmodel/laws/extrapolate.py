"""How well a law predicts runs that it hasn't seen: larger ones, and compared with other laws.

Legend: N parameters, D examples or tokens, C training FLOPs, L loss; n runs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bigmodel.errors import UsageError
from bigmodel.laws import checks, forms, intervals, search
from bigmodel.laws.forms import Law

RUNG_FACTOR = 1.5  # runs of a rung are within this factor of its largest C
RESAMPLES = 200
REFIT_RUNS = 20_000  # refits without some runs use at most so many of the others


def rung_scale(data: Mapping[str, np.ndarray], model: Law) -> tuple[str, np.ndarray, float]:
    """(name, what rungs are ordered by (n,), factor within a rung): C, or where there is none the law's first column.

    Of losses the smallest are the furthest. A rung is never more than a sixth of the whole range of logarithms.
    """
    name = "C" if "C" in data else model.columns[0]
    scale = 1 / data["L"] if name == "L" else data[name]
    return name, scale, min(RUNG_FACTOR, float(scale.max() / scale.min()) ** (1 / 6))


def holdout(
    data: Mapping[str, np.ndarray],
    model: Law,
    delta: float,
    above: float,
    estimator: str,
    rungs: int,
    bootstrap: int,
    seed: int,
    runs: np.ndarray | None = None,
    whole: bool = False,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Refits without the 1 ... `rungs` largest rungs of compute (of the law's first column, where there is no C), and
    their errors on what they haven't seen: the entries that `fit.fit` describes, and warnings.

    `runs` (n,): which run each point is of; `whole`: a run is held out with all of its points, by the furthest.
    """
    scale, factor = rung_scale(data, model)[1:]
    order = furthest(scale, runs) if whole and runs is not None else scale
    left = np.ones(len(scale), dtype=bool)
    out: list[dict[str, Any]] = []
    warned: list[str] = []
    rng = np.random.default_rng(seed)
    for rung in range(1, rungs + 1):
        left &= order < order[left].max() / factor
        inside = {name: column[left] for name, column in data.items()}
        try:
            checks.enough(inside, model, "refit")
        except UsageError as e:
            return out, [*warned, f"no held-out error for {rung} {'rung' if rung == 1 else 'rungs'}: {e}"]
        if left.sum() > REFIT_RUNS:
            part = np.sort(rng.choice(int(left.sum()), REFIT_RUNS, replace=False))
            inside = {name: column[part] for name, column in inside.items()}
        problem = search.problem_of(model, inside, delta, above)
        found = search.search(problem, estimator=estimator)
        outside = {name: column[~left] for name, column in data.items()}
        params = model.named(found.theta)
        error = model.predict(params, outside) / outside[model.target] - 1
        few = min(bootstrap, RESAMPLES) if len(problem.log_loss) <= intervals.SUBSET_RUNS else 0
        own = runs[left] if runs is not None and len(problem.log_loss) == left.sum() else None
        samples, _ = intervals.resample(problem, found, few, seed + rung, estimator, runs=own)
        predicted = np.exp(model.form(samples.T[:, :, None], {k: outside[k] for k in model.columns}))
        spread = np.abs(predicted / outside[model.target] - 1).mean(axis=1, keepdims=True)
        mean, ends = float(np.abs(error).mean()), np.full(2, np.nan)
        if intervals.enough(len(samples), few):
            ends = intervals.percentile(spread)[:, 0]
        if few and mean > search.SAME_RESIDUAL and (why := intervals.doubt(ends, mean)):
            why = f"{len(samples)} of {few} resamples could be fitted" if np.isnan(ends).any() else why
            warned.append(f"no interval of the held-out error for {rung} {'rung' if rung == 1 else 'rungs'}: {why}")
        out.append(
            {
                "rungs": rung,
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


def furthest(scale: np.ndarray, runs: np.ndarray) -> np.ndarray:
    """The largest `scale` of each point's run, (n,)."""
    own = np.unique(runs, return_inverse=True)[1]
    most = np.zeros(own.max() + 1)
    np.maximum.at(most, own, scale)
    return most[own]


def compare(
    result: Mapping[str, Any],
    frame: Any,
    against: Sequence[str],
    rungs: int,
    runs: np.ndarray | None = None,
    whole: bool = False,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Other laws, fitted as `result` was: every law, the best extrapolation first, and warnings.

    A line for each law that has more parameters and extrapolates worse.

    Raises:
      UsageError: a law of another target, or whose columns `frame` lacks.
    """
    keys = ("law", "objective", "n_points", "holdout", "warnings")
    entries = [{**{k: result[k] for k in keys}, "num_params": len(result["params"])}]
    warned: list[str] = []
    how = result["delta"], result["above"], result["estimator"]
    for name in dict.fromkeys(n for n in against if n != result["law"]):
        model = forms.get(name)
        if model.target != result["target"]:
            raise UsageError(f"law {name!r} is for {model.target!r}, {result['law']!r} for {result['target']!r}")
        data = checks.columns_of(frame, model)
        checks.enough(data, model, "fit")
        problem = search.problem_of(model, data, *how[:2])
        found = search.search(problem, estimator=how[2])
        held, lines = holdout(data, model, *how, rungs, 0, 0, runs, whole)
        lines = [*checks.design_warnings(data, model), *checks.search_warnings(problem, found), *lines]
        entry = {"law": name, "objective": found.objective, "n_points": len(problem.log_loss), "holdout": held}
        entries.append({**entry, "warnings": lines, "num_params": len(model.names)})
        warned += [f"{name}: {line}" for line in lines]
    tested = [len(e["holdout"]) for e in entries if e["holdout"]]
    shared = min(tested) if len(tested) > 1 else 0

    def error(entry: Mapping[str, Any]) -> float:
        """Mean error over the refits that every law has, of those that have any; the others come last."""
        if not entry["holdout"]:
            return math.inf
        return float(np.mean([h["mean_abs_rel_error"] for h in entry["holdout"][:shared]])) if shared else math.inf

    entries.sort(key=error)
    lines = warned
    for entry in entries:
        simpler = [e for e in entries if e["num_params"] < entry["num_params"] and error(e) < error(entry)]
        if simpler:
            lines.append(
                f"{entry['law']} ({entry['num_params']} parameters) extrapolates worse than {simpler[0]['law']} "
                f"({simpler[0]['num_params']}): mean held-out error {100 * error(entry):.3g} % against "
                f"{100 * error(simpler[0]):.3g} %"
            )
    return entries, lines
