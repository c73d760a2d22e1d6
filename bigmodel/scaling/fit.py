"""Fit a law to runs: every published start, intervals by bootstrap, and the error on runs it hasn't seen.

Legend: N parameters, D examples or tokens, C training FLOPs, L loss; P parameters of the law, R resamples, n runs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from bigmodel.config import UsageError, nearest
from bigmodel.scaling import laws
from bigmodel.scaling.laws import FLOPS_PER_PARAM_TOKEN, Law
from bigmodel.scaling.solve import Problem, descend

MIN_POINTS = 5
RUNG_FACTOR = 1.5
# (steps, how many of the best starts go on). On Besiroglu et al.'s 240 points every start of the last round arrives.
SCREEN = ((15, 1024), (60, 256), (100, 64))
POLISH_STEPS = 100
RESAMPLE_STEPS = (60, 60)  # irls, then newton
# Objectives this close to the best are the same fit: relatively, or by a root mean square residual of 1e-6 in ln L.
SAME_RELATIVE, SAME_RESIDUAL = 1e-3, 1e-6
MAX_CONDITION = 1e9
SEPARATE_KEYS = ("bootstrap_samples",)


def fit(
    frame: pd.DataFrame,
    law: str = "chinchilla",
    delta: float = 1e-3,
    bootstrap: int = 1000,
    seed: int = 0,
    holdout: int = 1,
) -> dict[str, Any]:
    """Fits a law by Huber loss on ln L, summed over runs (Hoffmann et al. 2022, arXiv:2203.15556, section 3.3).

    Args:
      frame: columns N, D, L, and C (FLOPs; 6 N D if absent), as `rows.load` returns.
      law: name of a function in laws.py.
      delta: Huber threshold in units of ln L; the published value is 1e-3.
      bootstrap: resamples of the runs, with replacement; 0 for none (the intervals are then null).
      seed: of the resampling.
      holdout: how many of the largest compute rungs to hold out, one refit for each of 1 ... holdout.
        A rung is every run whose C is within a factor 1.5 of the largest C left, at least one run.

    Returns:
      A dict. Everything but "bootstrap_samples" is JSON (see `to_json`):
        law, params (by name), objective, delta, n_points;
        ci: name -> [2.5 %, 97.5 %] over resamples, also for the exponents "a" and "b" of N_opt ~ C^a, D_opt ~ C^b;
        optimal: a, b, tokens_per_param_at (compute in FLOPs as text -> D_opt / N_opt) at 1, 10 and 100 times the
          largest C fitted;
        holdout: one entry per refit: rungs, n_held_out, flops_gap (largest C held out / largest C fitted), and
          mean_abs_rel_error, max_abs_rel_error, mean_rel_error of the predicted loss (0.01 is 1 %; positive: too high),
          held_out (the index of each such run in frame);
        warnings: one line each;
        residuals: ln observed - ln predicted of each run, in frame's order;
        bootstrap_samples: (R', P) array of the parameters of the resamples that could be fitted.

    Raises:
      UsageError: unknown law, missing column, bad value, fewer than 5 runs, or a single N or D.
    """
    model = laws.get(law)
    if not (delta > 0 and math.isfinite(delta)):
        raise UsageError(f"delta={delta!r}: expected a positive number")
    if bootstrap < 0 or holdout < 0:
        raise UsageError(f"bootstrap={bootstrap!r}, holdout={holdout!r}: expected 0 or more")
    if seed < 0:
        raise UsageError(f"seed={seed!r}: expected 0 or more")
    data = _columns(frame, model)
    _enough(data, model, "fit")
    warnings: list[str] = [*frame.attrs.get("warnings", []), *_design_warnings(data)]
    problem, theta, objective, basins, found = _solve(model, data, delta)
    warnings += found
    params = dict(zip(model.names, (float(v) for v in model.values(theta)), strict=True))
    samples, failed = _resample(problem, basins, bootstrap, seed)
    if failed:
        warnings.append(f"{failed} of {bootstrap} resamples couldn't be fitted (too few distinct runs, or no optimum)")
    held, held_warnings = _holdout(data, model, delta, holdout)
    return {
        "law": law,
        "params": params,
        "objective": float(objective),
        "delta": float(delta),
        "n_points": len(data["L"]),
        "ci": _intervals(model, samples),
        "optimal": _optimal(model, params, float((6 * data["N"] * data["D"]).max())),
        "holdout": held,
        "warnings": warnings + held_warnings,
        "residuals": [float(r) for r in np.log(data["L"]) - np.log(model.predict(params, data))],
        "bootstrap_samples": samples,
    }


def predict(result: Mapping[str, Any], N: Any, D: Any) -> Any:
    """Loss that a fit predicts for N parameters and D tokens or examples: a float, or an array as N and D broadcast."""
    model = laws.get(result["law"])
    n, d = np.broadcast_arrays(np.asarray(N, dtype=np.float64), np.asarray(D, dtype=np.float64))
    loss = model.predict(result["params"], {"N": n.ravel(), "D": d.ravel()})
    return float(loss[0]) if n.ndim == 0 else loss.reshape(n.shape)


def optimal(result: Mapping[str, Any], C: float) -> tuple[float, float]:
    """(N, D) of least loss for C FLOPs, under C = 6 N D; nan where the law has no optimum."""
    model = laws.get(result["law"])
    return model.optimum(result["params"], C) if model.optimum else (math.nan, math.nan)


def to_json(result: Mapping[str, Any]) -> dict[str, Any]:
    """The fit without its resamples and with null for what isn't a number: what fit.json holds."""

    def clean(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {k: clean(v) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [clean(v) for v in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return {k: clean(v) for k, v in result.items() if k not in SEPARATE_KEYS}


# --------------------------------------------------------------------------------------- data


def _columns(frame: pd.DataFrame, model: Law) -> dict[str, np.ndarray]:
    data: dict[str, np.ndarray] = {}
    for name in dict.fromkeys(("N", "D", "L", "C", *model.columns)):
        if name == "C" and "C" not in frame:
            data["C"] = FLOPS_PER_PARAM_TOKEN * data["N"] * data["D"]
            continue
        if name not in frame:
            raise UsageError(f"law {model.name!r} needs column {name!r}{nearest(name, frame.columns)}")
        data[name] = frame[name].to_numpy(dtype=np.float64)
        bad = ~(np.isfinite(data[name]) & (data[name] > 0))
        if bad.any():
            at = int(np.flatnonzero(bad)[0])
            raise UsageError(f"row {at + 1}: {name!r} is {data[name][at]}, expected a positive number")
    return data


def _enough(data: Mapping[str, np.ndarray], model: Law, what: str) -> None:
    n = len(data["L"])
    if n < MIN_POINTS:
        raise UsageError(f"can't {what} law {model.name!r} to {n} usable runs: it needs at least {MIN_POINTS}")
    for name in model.columns:
        distinct = len(np.unique(data[name]))
        if distinct < 2:
            value = data[name][0]
            raise UsageError(f"can't {what} law {model.name!r}: every run has {name} = {value:.4g}; vary it")


def _design_warnings(data: Mapping[str, np.ndarray]) -> list[str]:
    """What the choice of runs can't tell apart, whatever their losses."""
    out = []
    correlation = float(np.corrcoef(np.log(data["N"]), np.log(data["D"]))[0, 1])
    if abs(correlation) > 0.99:
        what = f"ln N and ln D are collinear (correlation {correlation:.4f})"
        out.append(f"{what}: alpha and beta can't be told apart; vary D at fixed N")
    for name in ("N", "D"):
        distinct = len(np.unique(data[name]))
        if distinct == 2:
            out.append(f"only 2 distinct {name}: its exponent and the floor can't be told apart; add a third")
    return out


# ------------------------------------------------------------------------------------ the fit


def _solve(
    model: Law, data: Mapping[str, np.ndarray], delta: float
) -> tuple[Problem, np.ndarray, float, np.ndarray, list[str]]:
    """(problem, best theta, objective, starts of the distinct best optima (K, P), warnings)"""
    log_loss = np.log(data["L"])
    # The published starts are for a few nats per token. Other units (squared error, bits) move by whole powers of e;
    # between 1 and e^2 nats the grid is the published one to the digit.
    problem = Problem(model, data, log_loss, delta, shift=float(np.trunc(np.median(log_loss) - 1)))
    counts = np.ones(len(log_loss))
    theta = model.starts(problem.shift)
    for steps, keep in SCREEN:
        theta, objective, _ = descend(problem, theta, counts, steps)
        order = np.argsort(objective, kind="stable")[:keep]
        theta, objective = theta[order], objective[order]
    theta, objective, settled = descend(problem, theta, counts, POLISH_STEPS, "newton")
    # Of optima that tie to rounding (too few sizes to determine the law), report the one nearest the grid's centre.
    starts = model.starts(problem.shift)
    away = np.abs((theta - starts.mean(axis=0)) / np.maximum(np.ptp(starts, axis=0), 1e-9)).max(axis=1)
    tied = objective <= objective.min() * (1 + 1e-9) + 1e-6 * _same(log_loss)
    order = np.lexsort((np.where(tied, away, objective), ~tied))
    theta, objective, settled = theta[order], objective[order], settled[order]
    same = objective <= objective.min() * (1 + SAME_RELATIVE) + _same(log_loss)
    basins = _basins(theta, same)
    warnings = _fit_warnings(problem, theta[0], counts)
    if not settled[0]:
        warnings.append("the best start hadn't settled when its steps ran out")
    if same.mean() < 0.5:
        reached = f"only {int(same.sum())} of the {len(same)} surviving starts"
        warnings.append(f"{reached} reach the best objective: trust it less")
    values = model.values(theta[same])
    for i, name in enumerate(model.names):
        low, high = float(values[:, i].min()), float(values[:, i].max())
        spread = high - low if name in model.exponent_names else (high - low) / max(abs(high), 1e-300)
        if (name in model.exponent_names or name == model.floor) and spread > 0.02:
            warnings.append(f"surviving starts disagree on {name}: {low:.4g} to {high:.4g} fit equally well")
    return problem, theta[0], float(objective[0]), basins, warnings


def _same(log_loss: np.ndarray) -> float:
    return 0.5 * len(log_loss) * SAME_RESIDUAL**2


def _basins(theta: np.ndarray, same: np.ndarray, most: int = 4) -> np.ndarray:
    """Starts for the resamples: the best, then what fits as well but lies furthest away, then other optima; (K, P)."""
    kept = [theta[0]]
    for group in (theta[same], theta[~same]):
        while len(group) and len(kept) < most:
            away = np.min([np.abs(group - other).max(axis=1) for other in kept], axis=0)
            if away.max() <= 0.1:
                break
            kept.append(group[int(np.argmax(away))])
    return np.array(kept)


def _fit_warnings(problem: Problem, theta: np.ndarray, counts: np.ndarray) -> list[str]:
    model, out = problem.law, []
    values = dict(zip(model.names, model.values(theta), strict=True))
    for p, parameter in enumerate(model.parameters):
        width = problem.high[p] - problem.low[p]
        for bound in (problem.low[p], problem.high[p]):
            if abs(theta[p] - bound) <= 1e-9 * width:
                number = math.exp(bound) if parameter.log else bound
                out.append(f"{parameter.name} is at its bound {number:.4g}: the runs don't determine it")
    if model.floor and values[model.floor] < 0.01 * math.exp(problem.log_loss.min()):
        out.append(f"{model.floor} is about 0: the runs show no irreducible loss, so extrapolations are optimistic")
    condition = _condition(problem, theta, counts)
    if not condition < MAX_CONDITION:
        out.append(f"the objective is flat (condition number {condition:.1e}): other parameters fit nearly as well")
    return out


def _condition(problem: Problem, theta: np.ndarray, counts: np.ndarray) -> float:
    """Condition number of the weighted squares' curvature with its diagonal scaled to 1."""
    residual, slopes = problem.residuals(theta[None])
    matrix = problem.irls(residual, slopes, counts[None])[0]
    unit = np.sqrt(np.diag(matrix))
    if not (unit > 0).all():
        return math.inf
    values = np.linalg.eigvalsh(matrix / np.outer(unit, unit))
    return float(values[-1] / values[0]) if values[0] > 0 else math.inf


# -------------------------------------------------------------------------------- uncertainty


def _resample(problem: Problem, basins: np.ndarray, resamples: int, seed: int) -> tuple[np.ndarray, int]:
    """Parameters of each resample that could be fitted (R', P), and how many couldn't.

    A resample draws n runs with replacement; here it is n counts, so that all resamples share the same arrays.
    """
    n, names = len(problem.log_loss), len(problem.law.names)
    if not resamples:
        return np.empty((0, names)), 0
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(n, np.full(n, 1 / n), size=resamples).astype(np.float64)
    drawn = counts > 0
    usable = drawn.sum(axis=1) >= min(n, MIN_POINTS)
    for name in problem.law.columns:  # a resample of a single N or D has no law
        column = problem.row[name]
        usable &= np.where(drawn, column, -np.inf).max(axis=1) > np.where(drawn, column, np.inf).min(axis=1)
    counts = counts[usable]
    if not len(counts):
        return np.empty((0, names)), resamples
    found = []
    for start in basins:
        theta = np.repeat(start[None], len(counts), axis=0)
        theta, _, _ = descend(problem, theta, counts, RESAMPLE_STEPS[0])
        found.append(descend(problem, theta, counts, RESAMPLE_STEPS[1], "newton"))
    thetas, objectives, dones = (np.array(column) for column in zip(*found, strict=True))
    # Among optima that tie, one at random: the first would hide that the runs can't tell them apart.
    tied = objectives <= objectives.min(axis=0) * (1 + 1e-6) + _same(problem.log_loss)
    pick = np.where(tied, rng.random(tied.shape), -1.0).argmax(axis=0)
    best, settled = thetas[pick, np.arange(len(counts))], dones[pick, np.arange(len(counts))]
    late = np.flatnonzero(~settled)
    if len(late):
        theta, _, _ = descend(problem, best[late], counts[late], 10 * RESAMPLE_STEPS[0])
        best[late], _, settled[late] = descend(problem, theta, counts[late], 10 * RESAMPLE_STEPS[1], "newton")
    return problem.law.values(best[settled]), resamples - int(settled.sum())


def exponent_samples(model: Law, samples: np.ndarray) -> dict[str, np.ndarray]:
    """The exponents "a" and "b" of each resample, each (R,)."""
    if model.exponents is None:
        return {}
    rows = [model.exponents(dict(zip(model.names, row, strict=True))) for row in samples]
    return {name: np.array([row[name] for row in rows]) for name in ("a", "b")}


def _intervals(model: Law, samples: np.ndarray) -> dict[str, Any]:
    columns = dict(zip(model.names, samples.T, strict=True)) | exponent_samples(model, samples)
    out: dict[str, Any] = {}
    for name, values in columns.items():
        finite = values[np.isfinite(values)]
        out[name] = [float(v) for v in np.percentile(finite, [2.5, 97.5])] if len(finite) > 1 else None
    return out


def _optimal(model: Law, params: Mapping[str, float], largest: float) -> dict[str, Any]:
    out: dict[str, Any] = {"a": None, "b": None}
    if model.exponents is not None:
        out |= {k: float(v) for k, v in model.exponents(params).items()}
    ratios = {}
    for factor in (1, 10, 100):
        n, d = model.optimum(params, factor * largest) if model.optimum is not None else (math.nan, math.nan)
        ratios[f"{factor * largest:.3g}"] = float(d / n) if n > 0 else math.nan
    return out | {"tokens_per_param_at": ratios}


def _holdout(
    data: Mapping[str, np.ndarray], model: Law, delta: float, rungs: int
) -> tuple[list[dict[str, Any]], list[str]]:
    left = np.ones(len(data["L"]), dtype=bool)
    out: list[dict[str, Any]] = []
    for rung in range(1, rungs + 1):
        left &= data["C"] < data["C"][left].max() / RUNG_FACTOR
        inside = {name: column[left] for name, column in data.items()}
        try:
            _enough(inside, model, "refit")
        except UsageError as e:
            return out, [f"no held-out error for {rung} rungs: {e}"]
        _, theta, _, _, _ = _solve(model, inside, delta)
        outside = {name: column[~left] for name, column in data.items()}
        params = dict(zip(model.names, model.values(theta), strict=True))
        error = model.predict(params, outside) / outside["L"] - 1
        out.append(
            {
                "rungs": rung,
                "n_held_out": int((~left).sum()),
                "flops_gap": float(outside["C"].max() / inside["C"].max()),
                "mean_abs_rel_error": float(np.abs(error).mean()),
                "max_abs_rel_error": float(np.abs(error).max()),
                "mean_rel_error": float(error.mean()),
                "held_out": [int(i) for i in np.flatnonzero(~left)],
            }
        )
    return out, []
