"""Fit a law to runs: every published start, intervals by bootstrap, and the error on runs it hasn't seen.

Legend: N parameters, D examples or tokens, C training FLOPs, L loss; P parameters of the law, R resamples, n runs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bigmodel import files
from bigmodel.errors import UsageError, check_ranges
from bigmodel.laws import checks, choice, extrapolate, forms, frontier, intervals, outliers, reach, search
from bigmodel.laws.forms import FLOPS_PER_PARAM_TOKEN, Law
from bigmodel.laws.search import Found
from bigmodel.laws.solve import Problem

SAVED_SAMPLES, FEW_RESAMPLES = 1000, 100
DEFAULT_INTERVAL = "bias-corrected"


@np.errstate(all="ignore")  # starts and resamples may be where a law overflows: those lose
def fit(
    frame: pd.DataFrame,
    law: str = "chinchilla",
    delta: float = 1e-3,
    bootstrap: int = 1000,
    seed: int = 0,
    holdout: int = 3,
    estimator: str = "huber",
    above: float = 1.0,
    residuals: str = "log",
    against: Sequence[str] = (),
    budgets: Sequence[float] | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Fits a law by Huber loss on ln L, summed over runs (Hoffmann et al. 2022, arXiv:2203.15556, section 3.3).

    Args:
      frame: the law's columns and its target, as `rows.load` returns; C (FLOPs) orders the rungs, 6 N D if absent.
      law: as `forms.get` takes it; "auto", the best of choice.CANDIDATES and `against`; "average", of those that tie
        with it; or "isoflop", "envelope" (Hoffmann's approaches 2 and 1, see frontier.py).
      delta: Huber threshold in units of ln L; the published value is 1e-3.
      bootstrap: resamples of the runs, with replacement; 0 for none (the intervals are then null).
      seed: of the resampling.
      holdout: how many of the largest compute rungs to hold out, one refit for each of 1 ... holdout. A rung is every
        run whose C is within a factor 1.5 of the largest C left; without a C, see `extrapolate.rung_scale`.
      estimator: "huber", or "likelihood": the Huber likelihood with a free scale (Besiroglu et al. 2024).
      above: weight of runs above the law relative to those below; under 1 for runs that may be badly tuned.
      residuals: "log", of ln of the target; or "linear", of the target itself, in whose unit delta then is (the only
        choice for a law whose target may be zero or negative).
      against: further laws, compared by their error on the same held-out runs.
      budgets: of "isoflop", in FLOPs, where the runs' C have no gaps between them.
      say: is called with a line for each stage of the fit.

    Returns:
      A dict. Everything but "bootstrap_samples" is JSON (see `to_json`):
        law, target, columns, params (by name), objective, delta, estimator, above, scale (of the likelihood), n_points;
        n_runs: how many runs the points are of; resamples: {"asked", "fitted"};
        ci: name -> [2.5 %, 97.5 %], also for the exponents "a" and "b" of N_opt ~ C^a, D_opt ~ C^b; interval: how;
          None where too few resamples could be fitted, or where they leave out the estimate or all agree;
        at_bound: name -> which of "low", "high" (ends of its interval), "value" are at the parameter's bound;
        se: name -> standard deviation over the resamples, None where it says nothing (beyond the value of a
          coefficient, which is positive); intervals: method -> name -> [low, high];
        optimal: a, b, tokens_per_param_at (compute in FLOPs as text -> D_opt / N_opt) at 1, 10 and 100 times the
          largest C fitted, and its intervals, tokens_per_param_ci; tokens_per_param_runs, [least, most] of the runs;
        holdout: one entry per refit: rungs, n_held_out, flops_gap (largest C held out / largest C fitted), and
          mean_abs_rel_error and its interval, max_abs_rel_error, mean_rel_error of the prediction (0.01 is 1 %;
          positive: too high), params of the refit, held_out (the index of each such run in frame);
        backtests: errors on the largest runs of refits to ever smaller ones, largest gap first, see choice.py;
        choice: lines that say how a law was chosen among several;
        rungs_of: the column that orders the rungs; leave_one_out: a refit without each rung: left_out, n, params, a;
        compared: every law asked for, as `choice.compare` ranks them;
        range: column -> [least, most] fitted; family, conventions, source: of the rows;
        warnings: one line each; points: N, D, width, depth of each run, where known, in frame's order;
        residuals: observed - predicted of each run, in frame's order, of logarithms or not: residuals_of, "log" or
          "linear";
        bootstrap_samples: (R', P) array of the parameters of the resamples that could be fitted.

    Raises:
      UsageError: unknown law, missing column, bad value, fewer than 5 runs, or a column with a single value.
    """
    options = {"delta": delta, "bootstrap": bootstrap, "seed": seed, "holdout": holdout, "above": above}
    ranges = {"delta": "(0, inf)", "bootstrap": "[0, 100000]", "seed": "[0, inf)", "holdout": "[0, inf)"}
    check_ranges("", options, **ranges, above="(0, 1]")
    if estimator == "likelihood" and above != 1:
        raise UsageError(f"above={above!r}: the likelihood has no such weights; they are the Huber sum's")
    if against and not holdout:
        raise UsageError("against: laws are compared by their held-out error, and holdout=0 asks for none")
    if law in frontier.METHODS:
        if against or (estimator, above, delta, residuals) != ("huber", 1.0, 1e-3, "log"):
            raise UsageError(
                f"law {law!r} fits optima by least squares: against, estimator, above, delta, residuals are not for it"
            )
        say(f"finding the frontier of {len(frame)} points by {law}")
        return frontier.fit(frame, law, bootstrap, seed, budgets) | {
            "n_runs": checks.runs_of(frame, ("N", "D", "L"))[1]
        }
    if budgets is not None:
        raise UsageError(f"law {law!r} has no budgets to name: they are isoflop's")

    compared: list[dict[str, Any]] = []
    reasons: list[str] = []
    if against or law in choice.RULES:
        names = [*(choice.CANDIDATES if law in choice.RULES else [law]), *against]
        say(f"comparing {', '.join(names)}")
        how = {"delta": delta, "above": above, "estimator": estimator, "residuals": residuals}
        compared, reasons = choice.compare(frame, names, how, seed)
        law = choice.named(law, compared)
    chosen = forms.get(law)
    data = checks.columns_of(frame, chosen)
    checks.enough(data, chosen, "fit")
    warnings: list[str] = [*frame.attrs.get("warnings", []), *checks.design_warnings(data, chosen)]
    problem = search.problem_of(chosen, data, delta, above, estimator, residuals)
    say(f"searching for the best {law} of {len(frame)} points")
    found = search.search(problem)
    warnings += checks.search_warnings(problem, found)
    warnings += outliers.warnings(problem, found, frame)
    runs, n_runs, run_warnings = checks.runs_of(frame, (*chosen.columns, chosen.target))
    trunks = runs if frame.attrs.get("checkpoints") else None
    warnings += run_warnings
    if chosen.target == "L" and not chosen.has_floor:
        warnings.append(
            f"{law} has no floor: it predicts a loss of 0 at enough compute, so far extrapolations are too low"
        )

    say(f"refitting {bootstrap} resamples")
    samples, failed = intervals.resample(problem, found, bootstrap, seed, runs=runs)
    fitted = len(samples)
    if failed:
        warnings.append(f"{failed} of {bootstrap} resamples couldn't be fitted (too few distinct runs, or no optimum)")
    if bootstrap and not intervals.enough(fitted, bootstrap):
        warnings.append("most resamples couldn't be fitted: no intervals; run more")
        samples = samples[:0]
    elif 0 < bootstrap < FEW_RESAMPLES:
        warnings.append(f"{bootstrap} resamples: the ends of the intervals are rough")
    # Laws count C = 6 N D, whatever the runs' own C counts.
    known = {"N", "D"} <= data.keys()
    largest = float((FLOPS_PER_PARAM_TOKEN * data["N"] * data["D"]).max()) if known else forms.REFERENCE_FLOPS
    values = chosen.values(samples)
    few = n_runs == len(problem) <= intervals.SUBSET_RUNS
    cells = checks.seed_cells(frame, chosen) if bootstrap and few else None
    seeds = None if cells is None else intervals.resample(problem, found, bootstrap, seed, cells)[0]
    parts, interval_warnings = _intervals(problem, found, values, largest, n_runs, seeds)

    if known:
        ratios = data["D"] / data["N"]
        warnings += reach.untried_ratio(chosen, chosen.named(found.theta), largest, (ratios.min(), ratios.max()))

    say("refitting without the largest runs")
    held, held_warnings = extrapolate.holdout(problem, data, holdout, bootstrap, seed, runs, trunks)
    tests = choice.backtests(problem, data, choice.splits(data, chosen, trunks))[0] if holdout else []
    result = {
        "law": law,
        "target": chosen.target,
        "columns": list(chosen.columns),
        "params": chosen.named(found.theta),
        "objective": found.objective,
        "delta": float(delta),
        "estimator": estimator,
        "above": float(above),
        "scale": found.scale,
        "residuals_of": residuals,
        "n_points": len(problem),
        "n_runs": n_runs,
        "resamples": {"asked": bootstrap, "fitted": fitted},
        **parts,
        "optimal": _optimal(chosen, chosen.named(found.theta), values, largest, data),
        "holdout": held,
        "rungs_of": extrapolate.rung_scale(data, chosen)[0],
        "leave_one_out": extrapolate.leave_one_out(problem, found, data, largest, trunks),
        "backtests": tests,
        "compared": compared,
        "choice": reasons,
        "range": {k: [float(v.min()), float(v.max())] for k, v in data.items()},
        "family": _only(frame, "family"),
        "conventions": dict(frame.attrs.get("conventions", {})),
        "source": str(frame.attrs.get("source", "")),
        "warnings": [*warnings, *interval_warnings, *held_warnings, *_of_rivals(law, compared)],
        "points": _points(frame),
        "residuals": [float(-r) for r in problem.residuals(found.theta[None])[0][0]],
        "bootstrap_samples": values,
    }
    return result


def _of_rivals(law: str, compared: Sequence[Mapping[str, Any]]) -> list[str]:
    return [f"{rival['law']}: {line}" for rival in compared if rival["law"] != law for line in rival["warnings"]]


def _only(frame: pd.DataFrame, column: str) -> str | None:
    """The value of a column that has one."""
    found = frame[column].dropna().unique() if column in frame else []
    return str(found[0]) if len(found) == 1 else None


def _points(frame: pd.DataFrame) -> dict[str, list[float]]:
    names = [n for n in ("N", "D", "width", "depth") if n in frame and frame[n].dtype.kind in "if"]
    return {n: [float(v) for v in frame[n]] for n in names if (frame[n] > 0).all()}


# -------------------------------------------------------------------------------- uncertainty


def _intervals(
    problem: Problem, found: Found, values: np.ndarray, largest: float, n_runs: int, seeds: np.ndarray | None
) -> tuple[dict[str, Any], list[str]]:
    """The parts of a fit's dict that say how well the runs determine it, and warnings.

    Args:
      values: (R, P) of the resamples, in the law's own units.
      seeds: theta (R, P) of resamples that draw over the seeds of each configuration; None: no run has several.
    """
    law, theta = problem.law, found.theta
    n, p = len(problem), law.num_params
    names, estimate = list(law.names), law.values(theta)
    if law.exponents is not None:
        names += ["a", "b"]
        best = law.exponents(law.named(theta), largest)
        estimate = np.append(estimate, [best["a"], best["b"]])

    def with_exponents(values: np.ndarray) -> np.ndarray:
        return np.column_stack([values, *intervals.exponent_samples(law, values, largest).values()])

    values = with_exponents(values)
    ends = {
        DEFAULT_INTERVAL: intervals.bias_corrected(values, estimate),
        "percentile": intervals.percentile(values),
        "expanded": intervals.expanded(values, n_runs, p),
    }
    if seeds is not None:
        ends["seeds"] = intervals.percentile(with_exponents(law.values(seeds)))
    if problem.estimator == "huber" and n_runs == n and not law.members:  # both take points as independent
        cov = intervals.covariance(problem, theta)
        ends["delta"] = law.values(intervals.delta_method(problem, theta, cov))
        if n <= intervals.SUBSET_RUNS:
            ends["profile"] = law.values(intervals.profile(problem, theta, cov))
    kinds = {method: intervals.columns(own, names[: own.shape[1]], estimate) for method, own in ends.items()}

    se: dict[str, float | None] = {}
    log = [parameter.log for parameter in law.parameters] + [False] * (len(names) - len(law.names))
    for name, column, value, positive in zip(names, values.T, estimate, log, strict=True):
        spread = float(np.std(column)) if np.isfinite(column).sum() > 1 else math.nan
        # A positive coefficient whose deviation is beyond it: the resamples spread over powers of ten.
        se[name] = spread if math.isfinite(spread) and not (positive and spread > value) else None
    why: dict[str, list[str]] = {}
    exact = bool(np.abs(problem.residuals(theta[None])[0]).max() < search.SAME_RESIDUAL * problem.size)
    for name, own, value in zip(names, ends[DEFAULT_INTERVAL].T, estimate, strict=True):
        reason = intervals.doubt(own, value) if len(values) else ""
        if reason and not (exact and reason == intervals.AGREE):  # runs on the law itself have no scatter to show
            why.setdefault(reason, []).append(name)
    warnings = [f"no interval of {', '.join(which)}: {reason}" for reason, which in why.items()]
    bounds = _at_bound(problem, theta, kinds[DEFAULT_INTERVAL])
    if loose := [name for name, which in bounds.items() if {"low", "high"} & set(which)]:
        warnings.append(f"†: intervals of {', '.join(loose)} end at a bound of the search: the runs don't limit them")
    return {
        "ci": kinds[DEFAULT_INTERVAL],
        "interval": {"method": DEFAULT_INTERVAL, "level": intervals.LEVEL},
        "at_bound": bounds,
        "se": se,
        "intervals": kinds,
    }, warnings


def _at_bound(problem: Problem, theta: np.ndarray, ci: Mapping[str, Any]) -> dict[str, list[str]]:
    """name -> which of the value and the ends of its interval are at the bounds of the search."""
    out: dict[str, list[str]] = {}
    near = 1e-6 * (problem.high - problem.low)
    for i, parameter in enumerate(problem.law.parameters):
        places = {"value": float(theta[i])}
        for end, number in zip(("low", "high"), ci[parameter.name] or (), strict=False):
            places[end] = math.log(number) if parameter.log and number > 0 else -math.inf if parameter.log else number
        low, high = problem.low[i] + near[i], problem.high[i] - near[i]
        held = [which for which, at in places.items() if at <= low or at >= high]
        if held:
            out[parameter.name] = held
    return out


def _optimal(
    law: Law, params: Mapping[str, float], values: np.ndarray, largest: float, data: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """The fit's "optimal"; `values` (R, P) are of the resamples, `largest` is the largest C fitted."""
    exponents = law.exponents(params, largest) if law.exponents is not None else {}
    sets = [params, *(dict(zip(law.names, map(float, row), strict=True)) for row in values)]

    def ratio(flops: float) -> np.ndarray:
        optima = [law.optimum(own, flops) if law.optimum else (math.nan, math.nan) for own in sets]
        return np.array([d / n if n > 0 else math.nan for n, d in optima])

    runs = data["D"] / data["N"] if {"N", "D"} <= data.keys() else None
    return {
        "a": float(exponents["a"]) if exponents else None,
        "b": float(exponents["b"]) if exponents else None,
        **intervals.tokens_per_param(largest, ratio, corrected=True),
        "tokens_per_param_runs": None if runs is None else [float(runs.min()), float(runs.max())],
    }


# --------------------------------------------------------------------------- what is done with a fit


def predict(result: Mapping[str, Any], N: Any, D: Any) -> Any:
    """Loss that a fit predicts for N parameters and D tokens or examples: a float, or an array as N and D broadcast."""
    n, d = np.broadcast_arrays(np.asarray(N, dtype=np.float64), np.asarray(D, dtype=np.float64))
    flat = {"N": n.ravel(), "D": d.ravel(), "C": FLOPS_PER_PARAM_TOKEN * n.ravel() * d.ravel()}
    loss = predict_rows(result, flat)
    return float(loss[0]) if n.ndim == 0 else loss.reshape(n.shape)


def predict_rows(result: Mapping[str, Any], row: Any, params: Mapping[str, float] | None = None) -> np.ndarray:
    """What a fit predicts for each row (n,) of a frame or dict with the law's columns; `params` in place of its own."""
    law = forms.get(result["law"])
    for name in law.columns:
        if name not in row:
            raise UsageError(f"law {law.name!r} predicts from column {name!r}, which isn't given")
    return law.predict(params or result["params"], {name: np.asarray(row[name]) for name in law.columns})


def optimal(result: Mapping[str, Any], C: float) -> tuple[float, float]:
    """(N, D) of least loss for C FLOPs, under C = 6 N D; nan where the law has no optimum."""
    law = forms.get(result["law"])
    return law.optimum(result["params"], C) if law.optimum else (math.nan, math.nan)


def to_json(result: Mapping[str, Any]) -> dict[str, Any]:
    """What fit.json holds: null for what isn't a number, and at most 1000 resamples, by parameter, as "samples".

    Of more than 20,000 runs, neither their points nor their residuals.
    """

    def clean(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {k: clean(v) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [clean(v) for v in value]
        if isinstance(value, np.floating):
            value = float(value)
        return None if isinstance(value, float) and not math.isfinite(value) else value

    out = {k: clean(v) for k, v in result.items() if k != "bootstrap_samples"}
    if result["n_points"] > extrapolate.REFIT_RUNS:
        out |= {"points": {}, "residuals": []}
        for entry in out["holdout"]:
            entry["held_out"] = []
    samples = result["bootstrap_samples"][:SAVED_SAMPLES]
    names = list(result["params"])
    out["samples"] = {n: [float(f"{v:.8g}") for v in samples[:, i]] for i, n in enumerate(names)}
    return out


def read(path: str | Path) -> dict[str, Any]:
    """A fit.json as `fit` returned it, with at most 1000 of its resamples.

    Raises:
      UsageError: no such file, not JSON, or not a fit: which key is missing or wrong.
    """
    wrong = f"{str(path)!r} is not a fit.json of `bigmodel fit`"
    try:
        content = json.loads(files.read_text(path, "fit"))
    except (ValueError, RecursionError) as e:
        raise UsageError(f"fit {str(path)!r} is not JSON: {e}") from e
    need = {"law": str, "params": dict, "n_points": int, "optimal": dict, "holdout": list, "warnings": list}
    need |= {"samples": dict, "ci": dict, "range": dict, "residuals": list}
    for key, kind in need.items():
        if not isinstance(content, dict) or not isinstance(content.get(key), kind):
            raise UsageError(f"{wrong}: {key!r} is missing or wrong")
    files.check_whole(content, path)
    content.pop("crc32", None)
    names = list(content["params"])
    if content["law"] not in frontier.METHODS:
        law = forms.get(content["law"])
        law.theta(content["params"])
        names = list(law.names)
    samples = content.pop("samples")
    try:
        content["bootstrap_samples"] = np.array([samples[n] for n in names], dtype=np.float64).T.reshape(-1, len(names))
    except (KeyError, ValueError, TypeError) as e:
        raise UsageError(f"{wrong}: 'samples' is damaged ({e})") from e
    return content
