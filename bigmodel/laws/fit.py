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

from bigmodel.errors import UsageError, nearest
from bigmodel.files import check_whole
from bigmodel.laws import checks, extrapolate, forms, frontier, intervals, outliers, search
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
    against: Sequence[str] = (),
    full_grid: bool = False,
    budgets: Sequence[float] | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Fits a law by Huber loss on ln L, summed over runs (Hoffmann et al. 2022, arXiv:2203.15556, section 3.3).

    Args:
      frame: the law's columns and its target, as `rows.load` returns; C (FLOPs) orders the rungs, 6 N D if absent.
      law: as `laws.get` takes it; or "isoflop", "envelope" (Hoffmann's approaches 2 and 1, see frontier.py).
      delta: Huber threshold in units of ln L; the published value is 1e-3.
      bootstrap: resamples of the runs, with replacement; 0 for none (the intervals are then null).
      seed: of the resampling.
      holdout: how many of the largest compute rungs to hold out, one refit for each of 1 ... holdout.
        A rung is every run whose C is within a factor 1.5 of the largest C left, at least one run; without a C, see
        `extrapolate.rung_scale`.
      estimator: "huber", or "likelihood": the Huber likelihood with a free scale (Besiroglu et al. 2024).
      above: weight of runs above the law relative to those below; under 1 for runs that may be badly tuned.
      against: further laws, compared by their error on the same held-out runs.
      full_grid: every resample gets the whole grid of starts, in place of the optima of the runs: minutes on all cores.
      budgets: of "isoflop", in FLOPs, where the runs' C have no gaps between them.
      say: is told what the fit is at.

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
        leave_one_out: a refit without each rung: left_out, n, params, a;
        compared: every law asked for, best extrapolation first: law, num_params, objective, n_points, holdout;
        range: column -> [least, most] fitted; family, conventions, source: of the rows;
        warnings: one line each;
        points: N, D, width, depth of each run, where known, in frame's order;
        residuals: ln observed - ln predicted of each run, in frame's order;
        bootstrap_samples: (R', P) array of the parameters of the resamples that could be fitted.

    Raises:
      UsageError: unknown law, missing column, bad value, fewer than 5 runs, or a column with a single value.
    """
    _check(delta, bootstrap, seed, holdout, above)
    if estimator == "likelihood" and above != 1:
        raise UsageError(f"above={above!r}: the likelihood has no such weights; they are the Huber sum's")
    if against and not holdout:
        raise UsageError("against: laws are compared by their held-out error, and holdout=0 asks for none")
    if law in frontier.METHODS:
        if against or full_grid or (estimator, above, delta) != ("huber", 1.0, 1e-3):
            raise UsageError(
                f"law {law!r} fits optima by least squares: against, full_grid, estimator, above, delta are not for it"
            )
        say(f"finding the frontier of {len(frame)} points by {law}")
        return frontier.fit(frame, law, bootstrap, seed, budgets) | {"n_runs": _runs(frame, ("N", "D", "L"))[1]}
    if budgets is not None:
        raise UsageError(f"law {law!r} has no budgets to name: they are isoflop's")
    model = forms.get(law)
    data = checks.columns_of(frame, model)
    checks.enough(data, model, "fit")
    warnings: list[str] = [*frame.attrs.get("warnings", []), *checks.design_warnings(data, model)]
    problem = search.problem_of(model, data, delta, above)
    say(f"searching for the best {law} of {len(frame)} points")
    found = search.search(problem, estimator=estimator)
    warnings += checks.search_warnings(problem, found)
    warnings += outliers.warnings(problem, found, frame)
    params = model.named(found.theta)
    of_runs, n_runs, run_warnings = _runs(frame, (*model.columns, model.target))
    whole = bool(frame.attrs.get("checkpoints"))
    warnings += run_warnings
    say(f"refitting {bootstrap} resamples")
    samples, failed = intervals.resample(problem, found, bootstrap, seed, estimator, None, full_grid, of_runs)
    fitted = len(samples)
    if failed:
        warnings.append(f"{failed} of {bootstrap} resamples couldn't be fitted (too few distinct runs, or no optimum)")
    if bootstrap and not intervals.enough(fitted, bootstrap):
        warnings.append("most resamples couldn't be fitted: no intervals; run more")
        samples = samples[:0]
    elif 0 < bootstrap < FEW_RESAMPLES:
        warnings.append(f"{bootstrap} resamples: the ends of the intervals are rough")
    say("refitting without the largest runs")
    held, held_warnings = extrapolate.holdout(
        data, model, delta, above, estimator, holdout, bootstrap, seed, of_runs, whole
    )
    # Laws count C = 6 N D, whatever the runs' own C counts.
    known = {"N", "D"} <= data.keys()
    largest = float((FLOPS_PER_PARAM_TOKEN * data["N"] * data["D"]).max()) if known else forms.REFERENCE_FLOPS
    values = model.values(samples)
    found_intervals, interval_warnings = _intervals(
        model, problem, found, values, frame, largest, bootstrap, seed, estimator, n_runs
    )
    best = _optimal(model, params, values, largest)
    if known:
        ratio = data["D"] / data["N"]
        best["tokens_per_param_runs"] = [float(ratio.min()), float(ratio.max())]
    result = {
        "law": law,
        "target": model.target,
        "columns": list(model.columns),
        "params": params,
        "objective": found.objective,
        "delta": float(delta),
        "estimator": estimator,
        "above": float(above),
        "scale": found.scale,
        "n_points": len(problem.log_loss),
        "n_runs": n_runs,
        "resamples": {"asked": bootstrap, "fitted": fitted},
        **found_intervals,
        "optimal": best,
        "holdout": held,
        "rungs_of": extrapolate.rung_scale(data, model)[0],
        "leave_one_out": _leave_one_out(model, problem, found, data, estimator, largest, of_runs if whole else None),
        "compared": [],
        "range": {k: [float(v.min()), float(v.max())] for k, v in data.items()},
        "family": _only(frame, "family"),
        "conventions": dict(frame.attrs.get("conventions", {})),
        "source": str(frame.attrs.get("source", "")),
        "warnings": [*warnings, *interval_warnings, *held_warnings],
        "points": _points(frame),
        "residuals": [float(-r) for r in problem.residuals(found.theta[None])[0][0]],
        "bootstrap_samples": values,
    }
    if against:
        say(f"fitting {', '.join(against)} to compare")
        result["compared"], lines = extrapolate.compare(result, frame, against, holdout, of_runs, whole)
        result["warnings"] += lines
    return result


def predict(result: Mapping[str, Any], N: Any, D: Any) -> Any:
    """Loss that a fit predicts for N parameters and D tokens or examples: a float, or an array as N and D broadcast."""
    n, d = np.broadcast_arrays(np.asarray(N, dtype=np.float64), np.asarray(D, dtype=np.float64))
    flat = {"N": n.ravel(), "D": d.ravel(), "C": FLOPS_PER_PARAM_TOKEN * n.ravel() * d.ravel()}
    loss = predict_rows(result, flat)
    return float(loss[0]) if n.ndim == 0 else loss.reshape(n.shape)


def predict_rows(result: Mapping[str, Any], row: Any, params: Mapping[str, float] | None = None) -> np.ndarray:
    """What a fit predicts for each row (n,) of a frame or dict with the law's columns; `params` in place of its own."""
    model = forms.get(result["law"])
    missing = [name for name in model.columns if name not in row]
    if missing:
        raise UsageError(f"law {model.name!r} predicts from column {missing[0]!r}, which isn't given")
    return model.predict(params or result["params"], {name: np.asarray(row[name]) for name in model.columns})


def optimal(result: Mapping[str, Any], C: float) -> tuple[float, float]:
    """(N, D) of least loss for C FLOPs, under C = 6 N D; nan where the law has no optimum."""
    model = forms.get(result["law"])
    return model.optimum(result["params"], C) if model.optimum else (math.nan, math.nan)


def to_json(result: Mapping[str, Any]) -> dict[str, Any]:
    """What fit.json holds: null for what isn't a number, and at most 1000 resamples, by parameter, as "samples".

    Of more than 20 000 runs, neither their points nor their residuals.
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
    path = Path(path)
    if not path.is_file():
        siblings = [str(p) for p in path.parent.glob("*.json")] if path.parent.is_dir() else []
        raise UsageError(f"no file {str(path)!r}{nearest(str(path), siblings)}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as e:
        raise UsageError(f"{str(path)!r} is not JSON: {e}") from e
    if isinstance(content, dict):
        check_whole(content, path)
        content.pop("crc32", None)
    need = {"law": str, "params": dict, "n_points": int, "optimal": dict, "holdout": list, "warnings": list}
    need |= {"samples": dict, "ci": dict, "range": dict, "residuals": list}
    for key, kind in need.items():
        if not isinstance(content, dict) or not isinstance(content.get(key), kind):
            raise UsageError(f"{str(path)!r} is not a fit.json of `bigmodel fit`: {key!r} is missing or wrong")
    names = list(content["params"])
    if content["law"] not in frontier.METHODS:
        model = forms.get(content["law"])
        model.theta(content["params"])
        names = list(model.names)
    samples = content.pop("samples")
    try:
        content["bootstrap_samples"] = np.array([samples[n] for n in names], dtype=np.float64).T.reshape(-1, len(names))
    except (KeyError, ValueError, TypeError) as e:
        raise UsageError(f"{str(path)!r} is not a fit.json of `bigmodel fit`: 'samples' is damaged ({e})") from e
    return content


# --------------------------------------------------------------------------------------- data


def _check(delta: float, bootstrap: int, seed: int, holdout: int, above: float) -> None:
    if not (delta > 0 and math.isfinite(delta)):
        raise UsageError(f"delta={delta!r}: expected a positive number")
    if bootstrap < 0 or holdout < 0:
        raise UsageError(f"bootstrap={bootstrap!r}, holdout={holdout!r}: expected 0 or more")
    if bootstrap > 100_000:
        raise UsageError(f"bootstrap={bootstrap!r}: expected at most 100,000 resamples")
    if seed < 0:
        raise UsageError(f"seed={seed!r}: expected 0 or more")
    if not 0 < above <= 1:
        raise UsageError(f"above={above!r}: expected a weight over 0 and at most 1")


def _points(frame: pd.DataFrame) -> dict[str, list[float]]:
    names = [n for n in ("N", "D", "width", "depth") if n in frame and frame[n].dtype.kind in "if"]
    return {n: [float(v) for v in frame[n]] for n in names if (frame[n] > 0).all()}


def _only(frame: pd.DataFrame, column: str) -> str | None:
    """The value of a column that has one."""
    found = frame[column].dropna().unique() if column in frame else []
    return str(found[0]) if len(found) == 1 else None


# -------------------------------------------------------------------------------- uncertainty


def _intervals(
    model: Law,
    problem: Problem,
    found: Found,
    values: np.ndarray,
    frame: pd.DataFrame,
    largest: float,
    bootstrap: int,
    seed: int,
    estimator: str,
    n_runs: int,
) -> tuple[dict[str, Any], list[str]]:
    """The parts of a fit's dict that come from `values` (R, P), of resamples; and warnings."""
    names = list(model.names)
    estimate = model.values(found.theta)
    extra = intervals.exponent_samples(model, values, largest)
    if model.exponents is not None:
        best = model.exponents(model.named(found.theta), largest)
        names += ["a", "b"]
        estimate = np.append(estimate, [best["a"], best["b"]])
        values = np.column_stack([values, extra["a"], extra["b"]])
    n, p = len(problem.log_loss), len(model.names)
    ends = intervals.bias_corrected(values, estimate)
    kinds = {
        "bias-corrected": intervals.columns(ends, names, estimate),
        "percentile": intervals.columns(intervals.percentile(values), names, estimate),
        "expanded": intervals.columns(intervals.expanded(values, n_runs, p), names, estimate),
    }
    seeds = _seed_cells(frame, model, n) if n_runs == n else None
    if seeds is not None and bootstrap:
        theta, _ = intervals.resample(problem, found, bootstrap, seed, estimator, seeds)
        own = model.values(theta)
        more = intervals.exponent_samples(model, own, largest)
        own = np.column_stack([own, *more.values()]) if more else own
        kinds["seeds"] = intervals.columns(intervals.percentile(own), names, estimate)
    if estimator == "huber" and n_runs == n:  # both take points as independent
        cov = intervals.covariance(problem, found.theta)
        theta = found.theta
        kinds["delta"] = intervals.named(model, intervals.delta_method(problem, theta, cov), estimate)
        if n <= intervals.SUBSET_RUNS:
            kinds["profile"] = intervals.named(model, intervals.profile(problem, theta, cov), estimate)
    # A positive coefficient whose deviation is beyond it: the resamples spread over powers of ten.
    log = [parameter.log for parameter in model.parameters] + [False] * (len(names) - p)
    se = {}
    for i, name in enumerate(names):
        spread = float(np.std(values[:, i])) if np.isfinite(values[:, i]).sum() > 1 else math.nan
        se[name] = spread if math.isfinite(spread) and not (log[i] and spread > estimate[i]) else None
    why: dict[str, list[str]] = {}
    exact = bool(np.abs(problem.residuals(found.theta[None])[0]).max() < search.SAME_RESIDUAL)
    for i, name in enumerate(names if len(values) else ()):
        reason = intervals.doubt(ends[:, i], estimate[i])
        if reason and not (exact and reason == intervals.AGREE):  # runs on the law itself have no scatter to show
            why.setdefault(reason, []).append(name)
    bounds = _at_bound(model, problem, found.theta, kinds[DEFAULT_INTERVAL])
    warnings = [f"no interval of {', '.join(which)}: {reason}" for reason, which in why.items()]
    if loose := [name for name, which in bounds.items() if {"low", "high"} & set(which)]:
        warnings.append(f"†: intervals of {', '.join(loose)} end at a bound of the search: the runs don't limit them")
    return {
        "ci": kinds[DEFAULT_INTERVAL],
        "interval": {"method": DEFAULT_INTERVAL, "level": intervals.LEVEL},
        "at_bound": bounds,
        "se": se,
        "intervals": kinds,
    }, warnings


def _at_bound(model: Law, problem: Problem, theta: np.ndarray, ci: Mapping[str, Any]) -> dict[str, list[str]]:
    """name -> which of the value and the ends of its interval are at the bounds of the search."""
    out: dict[str, list[str]] = {}
    bounds = np.array([problem.low, problem.high])
    near = 1e-6 * (bounds[1] - bounds[0])
    for i, parameter in enumerate(model.parameters):
        places = {"value": float(theta[i])}
        for end, number in zip(("low", "high"), ci[parameter.name] or (), strict=False):
            places[end] = math.log(number) if parameter.log and number > 0 else -math.inf if parameter.log else number
        held = [k for k, at in places.items() if at <= bounds[0, i] + near[i] or at >= bounds[1, i] - near[i]]
        if held:
            out[parameter.name] = held
    return out


def _runs(frame: pd.DataFrame, columns: Sequence[str]) -> tuple[np.ndarray | None, int, list[str]]:
    """(which run each point is of, if some runs have several points; how many runs; what to say).

    Rows that are alike in all that the law reads and predicts, and in their seed, are one run that is there twice.
    """
    n = len(frame)
    same = [c for c in (*columns, "seed") if c in frame]
    twins = frame.groupby(same, sort=False, dropna=False).ngroup().to_numpy() if frame.duplicated(same).any() else None
    named = "run_id" in frame and frame["run_id"].dropna().duplicated().any()
    if not named and twins is None:
        return None, n, []
    labels = np.arange(n).astype(str)
    if named:
        own = frame["run_id"].fillna(pd.Series(labels, index=frame.index)).to_numpy(str)
        if twins is not None:  # a run that is there twice is one, under whichever name
            own = pd.Series(own).groupby(twins).transform("first").to_numpy(str)
        labels = own
    elif twins is not None:
        labels = twins.astype(str)
    if (number := len(np.unique(labels))) < intervals.MIN_POINTS:
        return None, n, [f"{n} points of {number} runs: intervals take them as independent, and are too narrow"]
    return labels, number, []


def _seed_cells(frame: pd.DataFrame, model: Law, n: int) -> np.ndarray | None:
    """A label per run for runs alike in all that the law reads, if some differ in their seed alone."""
    if "seed" not in frame or n > intervals.SUBSET_RUNS:
        return None
    cells = frame.groupby(list(model.columns), sort=False).ngroup().to_numpy()
    repeated = frame.groupby(cells)["seed"].nunique()
    return cells if (repeated > 1).any() else None


def _optimal(model: Law, params: Mapping[str, float], values: np.ndarray, largest: float) -> dict[str, Any]:
    out: dict[str, Any] = {"a": None, "b": None}
    if model.exponents is not None:
        out |= {k: float(v) for k, v in model.exponents(params, largest).items()}
    ratios: dict[str, float] = {}
    ends: dict[str, list[float] | None] = {}
    for factor in (1, 10, 100):
        text = f"{factor * largest:.3g}"
        ratios[text], ends[text] = math.nan, None
        if model.optimum is None:
            continue
        n, d = model.optimum(params, factor * largest)
        ratios[text] = float(d / n) if n > 0 else math.nan
        drawn = [model.optimum(dict(zip(model.names, map(float, v), strict=True)), factor * largest) for v in values]
        spread = np.array([[d / n if n > 0 else math.nan] for n, d in drawn]).reshape(-1, 1)
        if intervals.enough(int(np.isfinite(spread).sum()), len(values)):
            ends[text] = intervals.pair(intervals.bias_corrected(spread, np.array([ratios[text]]))[:, 0], ratios[text])
    return out | {"tokens_per_param_at": ratios, "tokens_per_param_ci": ends, "tokens_per_param_runs": None}


def _leave_one_out(
    model: Law,
    problem: Problem,
    found: Found,
    data: Mapping[str, np.ndarray],
    estimator: str,
    largest: float,
    runs: np.ndarray | None,
) -> list[dict[str, Any]]:
    """Refits without each rung; with `runs` (n,) a rung is of whole runs, by the furthest point of each."""
    n = len(problem.log_loss)
    if n > extrapolate.REFIT_RUNS:
        return []
    name, order, factor = extrapolate.rung_scale(data, model)
    order = order if runs is None else extrapolate.furthest(order, runs)
    scale, groups = data[name], intervals.rungs(order, factor)
    out = []
    for group, refit in zip(groups, intervals.leave_one_out(problem, found, groups, estimator), strict=True):
        if refit is None:
            continue
        low, high = float(scale[group].min()), float(scale[group].max())
        params = model.named(refit[1])
        a = model.exponents(params, largest)["a"] if model.exponents is not None else None
        text = f"{name} {low:.3g}" if high <= low * 1.005 else f"{name} {low:.3g} to {high:.3g}"
        out.append({"left_out": text, "n": refit[0], "params": params, "a": a})
    return out
