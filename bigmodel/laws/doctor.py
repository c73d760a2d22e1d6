"""What a grid of sizes does to approach 2: said before its runs, corrected after them.

At a fixed budget, ln L is a parabola in ln N only near the optimum, and symmetric only for equal exponents. Through
sizes that are off-centre, uneven or far apart, the minimum of a fitted parabola isn't N_opt, however small the noise
(Czech 2026, "Problems with Chinchilla Approach 2", github.com/Open-Athena/scaling-law-analysis). The correction fits
L = E + A / N^alpha + B / D^beta to all budgets: it knows the shape of each curve, and needs no minimum inside.

Legend: N parameters, D tokens, C training FLOPs, L loss; n sizes of a budget, S parameter sets.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from bigmodel.errors import UsageError
from bigmodel.laws import checks, forms, intervals, search
from bigmodel.laws.budgets import MIN_SIZES, NEAR, groups_of, least, parabola
from bigmodel.laws.forms import FLOPS_PER_PARAM_TOKEN
from bigmodel.laws.search import Found
from bigmodel.laws.solve import Problem

# (alpha, beta): Besiroglu et al. 2024 (arXiv:2404.10102); Hoffmann et al. 2022 (arXiv:2203.15556), approach 3; and the
# equal and the unequal pair of Czech 2026, between which most of what is published lies.
EXPONENTS = ((0.3478, 0.3658), (0.34, 0.28), (0.31, 0.31), (0.465, 0.155))
FLOOR = 0.6  # E / L_opt: that of Besiroglu et al.'s law at 1e19 FLOPs
TOKENS_PER_PARAM = 20.0  # at the optimum, where no earlier fit says (Hoffmann et al. 2022, table A3)
DELTA = 1e-3  # Huber's threshold on ln L, as of any law
# kind of fault -> what to do. Off-centre: OFF_CENTRE between N_opt and the middle, or beyond the middle half of ln N.
REMEDY = {
    "off-centre": "centre each budget's sizes on the optimum",
    "uneven": "space the sizes evenly in ln N",
    "wide": "take sizes within 4x of the optimum",
}
OFF_CENTRE = 2.0
UNEVEN = 0.25  # distance of the mean of ln N from the middle, in halves of its range
WIDE = 20.0  # largest over smallest size that the parabola sees: 4x to each side, and some room
SMALL = 0.01  # a bias of N_opt under which uneven or wide sizes aren't worth a line
BUDGETED = 0.75  # of a sweep's runs: with fewer in budgets it is a grid of N and D, some of whose C agree
SHOWN = 4  # budgets that a line names


def bias(offset: np.ndarray, alpha: float, beta: float, floor: float = FLOOR) -> tuple[float, float]:
    """Relative errors of N_opt and D_opt, by a parabola through noiseless runs; nan: it has no minimum inside.

    L = E + A / N^alpha + B / D^beta is least at a budget where alpha A / N^alpha = beta B / D^beta (Hoffmann et al.
    2022, equation 4). So of L_opt less E the terms of N and D are beta and alpha parts in alpha + beta.

    Args:
      offset: ln(N / N_opt) of a budget's sizes, (n,).
      floor: E / L_opt.
    """
    curve = (beta * np.exp(-alpha * offset) + alpha * np.exp(beta * offset)) / (alpha + beta)
    away = parabola(offset, np.log(floor + (1 - floor) * curve))[0]
    return float(np.expm1(away)), float(np.expm1(-away))


def fault(log_n: np.ndarray, log_best: float) -> str:
    """What is wrong with a budget's sizes (n,), by where its optimum is: a key of REMEDY, or ""."""
    half = np.ptp(log_n) / 2
    if abs(log_best - (log_n.min() + half)) > min(np.log(OFF_CENTRE), half / 2):
        return "off-centre"
    seen = log_n[np.abs(log_n - log_best) <= np.log(NEAR)]
    if len(seen) and abs(seen.mean() - (seen.min() + seen.max()) / 2) > UNEVEN * np.ptp(seen) / 2:
        return "uneven"
    return "wide" if len(seen) and np.ptp(seen) > np.log(WIDE) else ""


def _is_budget(log_n: pd.Series, log_c: pd.Series) -> bool:
    """Whether runs of about one C are sizes at one budget: not at one D, and not shapes of one size."""
    return log_n.nunique() >= MIN_SIZES and np.ptp(log_n) > max(np.log(2), 2 * np.ptp(log_c))


def _place(kind: str, log_n: np.ndarray, log_best: float) -> str:
    away = log_best - (log_n.min() + log_n.max()) / 2
    if kind == "off-centre":
        return f"it is {np.exp(abs(away)):.2g}x {'above' if away > 0 else 'below'} their middle"
    return f"sizes over {np.exp(np.ptp(log_n)):.2g}x"


def _some(named: Sequence[str]) -> str:
    return ", ".join(named[:SHOWN]) + (f", and {len(named) - SHOWN} more" if len(named) > SHOWN else "")


# --------------------------------------------------------------------------------------- before


def before(runs: pd.DataFrame, optimum: Callable[[float], tuple[float, float]] | None = None) -> list[str]:
    """A line for each fault of planned isoFLOP budgets, with its cost; [] for sound ones and for other sweeps.

    Args:
      runs: columns N, D and C of the planned runs.
      optimum: C under C = 6 N D -> (N, D) of least loss, of an earlier fit; None: D = 20 N is assumed.
    """
    groups = [group for group in groups_of(runs, None) if _is_budget(np.log(group["N"]), np.log(group["C"]))]
    if sum(map(len, groups)) < BUDGETED * len(runs):
        return []
    found = defaultdict(list)  # fault -> (a budget in words, its biases by each of EXPONENTS)
    for group in groups:
        product = float(np.exp(np.log(group["N"] * group["D"]).mean()))
        best = optimum(FLOPS_PER_PARAM_TOKEN * product)[0] if optimum else np.sqrt(product / TOKENS_PER_PARAM)
        log_n, log_best = np.log(np.unique(group["N"])), float(np.log(best)) if best > 0 else np.nan  # nan: no fault
        if kind := fault(log_n, log_best):
            budget = f"{group['C'].median():.3g} ({_place(kind, log_n, log_best)})"
            found[kind].append((budget, [bias(log_n - log_best, *pair) for pair in EXPONENTS]))
    lines = []
    where = "of the earlier fit" if optimum else f"if that is at D/N = {TOKENS_PER_PARAM:g}"
    pairs = ", ".join(f"{alpha:.2g}/{beta:.2g}" for alpha, beta in EXPONENTS)
    for kind, each in found.items():
        errors = 100 * np.array([biases for _, biases in each]).reshape(-1, 2)
        known = errors[np.isfinite(errors).all(axis=1)]
        if kind != "off-centre" and len(known) == len(errors) and np.abs(known).max() < 100 * SMALL:
            continue
        cost = "a parabola has no minimum inside"
        if len(known):
            spans = [f"{n}_opt by {e.min():+.1f} to {e.max():+.1f} %" for n, e in zip("ND", known.T, strict=True)]
            cost = f"a parabola misses {', '.join(spans)}"
            cost += ", or has no minimum inside," if len(known) < len(errors) else ""
        sizes = f"{kind} about the optimum {where}, at C = {_some([budget for budget, _ in each])}"
        lines.append(f"isoFLOP sizes are {sizes}: {cost} for alpha/beta of {pairs}; {REMEDY[kind]}")
    return lines


# ---------------------------------------------------------------------------------------- after


def after(
    frame: pd.DataFrame,
    result: dict[str, Any],
    bootstrap: int = 1000,
    seed: int = 0,
    budgets_at: Sequence[float] | None = None,
) -> dict[str, Any]:
    """The dict of `frontier.isoflop` with "corrected", and a warning for each fault of its budgets' sizes.

    Chinchilla's law is fitted to the best run of each size at all budgets, those with their best size at an edge too,
    by the Huber loss on ln L, and to resamples of these runs. The arguments are those of `frontier.isoflop`.

    Returns:
      corrected: None where the runs don't determine the law (a warning says why), or
        law: E, A, alpha, B, beta; params, ci: a, N0, b, D0 of straight lines through the optima of the law;
        budgets: of each of result["budgets"], C, N_opt, D_opt, L_opt, N_ci by the law; fault (see `fault`); bias, of a
        parabola through noiseless runs of the law at these sizes, and difference, of the parabola's N_opt from the
        law's, both relative and None without a minimum inside;
        debiased: params, ci (a, b) of the parabolas' lines less their biases, which takes of the law only the curves'
        shape, and leaves each optimum where its own budget's runs have it; None: under two budgets have both.
    """
    groups = [best for group in groups_of(frame, budgets_at) if len(best := least(group, "N")) >= MIN_SIZES]
    try:
        problem, found = _law_of(pd.concat(groups))
    except UsageError as e:
        return result | {"corrected": None, "warnings": [*result["warnings"], f"no corrected optima: {e}"]}
    law, params = problem.law, problem.law.named(found.theta)
    drawn = law.values(intervals.resample(problem, found, bootstrap, seed)[0])
    values = np.vstack([law.values(found.theta), drawn])
    budgets, optima, faults = [], [], defaultdict(list)
    for best, by in zip(groups, result["budgets"], strict=True):
        row = {name: best[name].to_numpy(float) for name in "ND"}
        log_n, log_d = _optimum(values, row, best["C"].to_numpy(float), by["C"])
        optima.append((log_n, log_d))
        n, d, sizes = np.exp(log_n), np.exp(log_d), np.log(row["N"])
        away = float(parabola(sizes, np.log(law.predict(params, row)))[0] - log_n[0])
        own = float(log_n[0] if by["edge"] or np.isnan(away) else np.log(by["N_opt"]) - away)
        kind = fault(sizes, own)
        budgets.append(
            {
                "C": by["C"],
                "N_opt": float(n[0]),
                "D_opt": float(d[0]),
                "L_opt": float(law.predict(params, {"N": n[:1], "D": d[:1]})[0]),
                "N_ci": _interval(n, bootstrap),
                "difference": None if by["edge"] else float(by["N_opt"] / n[0] - 1),
                "bias": None if np.isnan(away) else float(np.expm1(away)),
                "fault": kind,
            }
        )
        if kind == "off-centre" or (kind and not abs(np.expm1(away)) < SMALL):
            cost = "no minimum inside" if np.isnan(away) else f"N_opt by a parabola {100 * np.expm1(away):+.1f} %"
            faults[kind].append(f"{by['C']:.3g} ({_place(kind, sizes, own)}, {cost})")
    (a, n_0), (b, d_0) = (np.polyfit(np.log([b["C"] for b in budgets]), logs, 1) for logs in zip(*optima, strict=True))
    lines = {"a": a, "N0": np.exp(n_0), "b": b, "D0": np.exp(d_0)}
    corrected: dict[str, Any] = {
        "law": params,
        "params": {name: float(line[0]) for name, line in lines.items()},
        "ci": {name: _interval(line, bootstrap) for name, line in lines.items()},
        "budgets": budgets,
        "debiased": _debiased(result, budgets),
    }
    said = [(kind, _some(faults[kind]), remedy) for kind, remedy in REMEDY.items() if kind in faults]
    warnings = [f"sizes are {kind} about the optimum at C = {where}: {remedy}" for kind, where, remedy in said]
    if bootstrap and corrected["ci"]["a"] is None:
        why = intervals.doubt(intervals.bias_corrected(a[1:, None], a[:1])[:, 0], a[0])
        warnings.append(f"no interval of the corrected a: {why or 'too few resamples have an optimum'}")
    return result | {"corrected": corrected, "warnings": [*result["warnings"], *warnings, *_doubts(result, budgets)]}


def _law_of(runs: pd.DataFrame) -> tuple[Problem, Found]:
    """Chinchilla's law of the runs. UsageError: they don't determine it."""
    law = forms.get("chinchilla")
    data = checks.columns_of(runs, law)
    checks.enough(data, law, "fit")
    problem = search.problem_of(law, data, DELTA)
    found = search.search(problem)
    inside = (found.theta > problem.low + 1e-6) & (found.theta < problem.high - 1e-6)
    if held := [name for name, free in zip(law.names, inside, strict=True) if not free and name != law.floor]:
        raise UsageError(f"of the law of all budgets {', '.join(held)} ends at a bound of the search")
    return problem, found


def _optimum(
    values: np.ndarray, row: Mapping[str, np.ndarray], c: np.ndarray, flops: float
) -> tuple[np.ndarray, np.ndarray]:
    """ln N_opt and ln D_opt of a budget, (S,) each, for sets of E, A, alpha, B, beta (S, 5).

    Counted FLOPs per N D may grow with the size, C / (N D) = k N^kappa. Then L is least where alpha A / N^alpha =
    (1 + kappa) beta B / D^beta; kappa is 0 for C = 6 N D.
    """
    _, a, alpha, b, beta = values.T
    kappa, log_k = np.polyfit(np.log(row["N"]), np.log(c / (row["N"] * row["D"])), 1)
    beta_n, left = beta * (1 + kappa), np.log(flops) - log_k  # ln D = left - (1 + kappa) ln N
    with np.errstate(all="ignore"):  # a resample may have an exponent of 0, and then no optimum
        log_n = (np.log(alpha * a) - np.log(beta_n * b) + beta * left) / (alpha + beta_n)
    log_n[~np.isfinite(log_n)] = np.nan
    return log_n, left - (1 + kappa) * log_n


def _interval(values: np.ndarray, asked: int) -> list[float] | None:
    """Of values[0], by its resamples, the other values."""
    if not intervals.enough(int(np.isfinite(values[1:]).sum()), asked):
        return None
    return intervals.pair(intervals.bias_corrected(values[1:, None], values[:1])[:, 0], float(values[0]))


def _debiased(result: Mapping[str, Any], budgets: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    known = [b for b in budgets if b["bias"] is not None and b["difference"] is not None]
    if len(known) < 2:
        return None
    slope, start = np.polyfit(np.log([b["C"] for b in known]), np.log1p([b["bias"] for b in known]), 1)
    by, ci, factor = result["params"], result["ci"], np.exp(start)
    params = {"a": by["a"] - slope, "N0": by["N0"] / factor, "b": by["b"] + slope, "D0": by["D0"] * factor}
    moved = {name: ci[name] and [end + params[name] - by[name] for end in ci[name]] for name in ("a", "b")}
    return {"params": params, "ci": moved}


def _doubts(result: Mapping[str, Any], budgets: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = []
    if edges := [f"{by['C']:.3g}" for by in result["budgets"] if by["edge"]]:
        lines.append(f"the corrected optima count the budgets without a minimum inside too: C = {_some(edges)}")
    pairs = [(by, b) for by, b in zip(result["budgets"], budgets, strict=True) if by["N_ci"] and b["bias"] is not None]
    apart = sum(not by["N_ci"][0] <= b["N_opt"] * (1 + b["bias"]) <= by["N_ci"][1] for by, b in pairs)
    if len(pairs) > 2 and apart > len(pairs) / 2:
        lines.append(
            f"the law of all budgets puts the least loss elsewhere than the runs have it, beyond the bias, at {apart} "
            f"of {len(pairs)} budgets: it doesn't hold over all of them, and the debiased line is the one to trust"
        )
    return lines
