"""What to check before a fit and to say after it: usable columns, enough runs, which points share
a run, and what the runs don't determine.

Legend: N parameters, D examples or tokens, C training FLOPs, L loss; P parameters of the law, n runs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from bigmodel.errors import UsageError, nearest
from bigmodel.laws.forms import FLOPS_PER_PARAM_TOKEN, Law
from bigmodel.laws.search import Found
from bigmodel.laws.solve import Problem

MIN_POINTS = 5
MAX_CONDITION = 1e9
LARGEST_LOSS = 12.5  # nats per token: ln of a vocabulary of 270,000
RISING = 0.5
UNITS = {
    1e6: "N or D in millions", 1e9: "N or D in billions", 1e12: "N and D in millions",
    1e15: "N and D in millions and billions", 1e18: "N and D in billions",
    1 / 8.64e19: "in PF-days (a PF-day is 8.64e19 FLOPs)", 1e-18: "in EFLOPs", 1e-21: "in ZFLOPs",
}  # fmt: skip


def columns_of(frame: pd.DataFrame, law: Law) -> dict[str, np.ndarray]:
    """The law's columns and target, and N, D, C, L where there are; UsageError for one that isn't positive, or
    of those that may have either sign (`Law.any_sign`) finite."""
    data: dict[str, np.ndarray] = {}
    needed = (*law.columns, law.target)
    for name in dict.fromkeys(("N", "D", "C", *needed, "L")):
        if name not in frame:
            if name == "C" and {"N", "D"} <= data.keys():
                data["C"] = FLOPS_PER_PARAM_TOKEN * data["N"] * data["D"]
            elif name in needed:
                raise UsageError(f"law {law.name!r} needs column {name!r}{nearest(name, frame.columns)}")
            continue
        values = pd.to_numeric(frame[name], errors="coerce").to_numpy(dtype=np.float64)
        bad = ~(np.isfinite(values) & ((values > 0) | (name in law.any_sign)))
        if bad.any() and name in needed:
            at, kind = int(np.flatnonzero(bad)[0]), "finite" if name in law.any_sign else "positive"
            raise UsageError(f"row {at + 1}: {name!r} is {frame[name].iloc[at]}, expected a {kind} number")
        if not bad.any():
            data[name] = values
    return data


def enough(data: Mapping[str, np.ndarray], law: Law, what: str) -> None:
    n, least = len(data[law.target]), max(MIN_POINTS, law.num_params + 1)
    if n < least:
        raise UsageError(f"can't {what} law {law.name!r} to {n} usable runs: it needs at least {least}")
    for name in law.varying:
        if np.ptp(data[name]) == 0:
            value = data[name][0]
            raise UsageError(f"can't {what} law {law.name!r}: every run has {name} = {value:.4g}; vary it")
    if np.ptp(data[law.target]) == 0:
        raise UsageError(f"can't {what} law {law.name!r}: every run has {law.target} = {data[law.target][0]:.4g}")


def runs_of(frame: pd.DataFrame, columns: Sequence[str]) -> tuple[np.ndarray | None, int, list[str]]:
    """(which run each point is of, (n,), if some runs have several points; how many runs; warnings).

    Rows that are alike in `columns`, all that the law reads and predicts, and in their seed, are one run that is there
    twice.
    """
    n = len(frame)
    same = [c for c in (*columns, "seed") if c in frame]
    twins = frame.groupby(same, sort=False, dropna=False).ngroup() if frame.duplicated(same).any() else None
    if "run_id" in frame and frame["run_id"].dropna().duplicated().any():
        own = frame["run_id"].fillna(pd.Series(np.arange(n).astype(str), index=frame.index)).astype(str)
        # A run that is there twice is one, under whichever name.
        runs = own if twins is None else own.groupby(twins).transform("first")
    elif twins is not None:
        runs = twins.astype(str)
    else:
        return None, n, []
    if (number := runs.nunique()) < MIN_POINTS:
        return None, n, [f"{n} points of {number} runs: intervals take them as independent, and are too narrow"]
    return runs.to_numpy(str), number, []


def seed_cells(frame: pd.DataFrame, law: Law) -> np.ndarray | None:
    """A label per run for runs alike in all that the law reads, if some differ in their seed alone."""
    if "seed" not in frame:
        return None
    cells = frame.groupby(list(law.columns), sort=False).ngroup().to_numpy()
    return cells if (frame.groupby(cells)["seed"].nunique() > 1).any() else None


def unit_warnings(data: Mapping[str, np.ndarray], law: Law) -> list[str]:
    """Columns in another unit, or of something else, as far as numbers tell: a line each.

    A factor that all losses share (bits for nats), one that all N or all D share (examples of one length) where there
    is no C, and a perplexity below LARGEST_LOSS don't show: laws fit such numbers as well.
    """
    out = []
    six = FLOPS_PER_PARAM_TOKEN * data["N"] * data["D"] if {"N", "D"} <= data.keys() else None
    ratio = 1.0 if six is None or "C" not in data else float(np.median(data["C"] / six))
    if not 0.1 < ratio < 10:
        near = [f", or {guess}" for unit, guess in UNITS.items() if 0.2 < ratio / unit < 5]
        near += [f", or D in examples of {ratio:.0f} tokens"] * (64 <= ratio < 2e5)
        out.append(f"C is {ratio:.3g} times 6 N D: is it in FLOPs{near[0] if near else ''}?")
    if law.target == "L" and LARGEST_LOSS < (middle := float(np.median(data["L"]))) <= 1e4 and six is not None:
        out.append(f"L is {middle:.4g} at the median, more than ln of a vocabulary: is it a perplexity, or a sum?")
    if law.target == "L" and six is not None and np.ptp(compute := data.get("C", six)) > 0:
        ranks = [np.unique(column, return_inverse=True)[1] for column in (compute, data["L"])]
        if (rising := float(np.corrcoef(*ranks)[0, 1])) > RISING:
            out.append(
                f"L rises with C (rank correlation {rising:.2f}): is it an accuracy? A loss falls; --L names its column"
            )
    return out


def design_warnings(data: Mapping[str, np.ndarray], law: Law) -> list[str]:
    """What the choice of runs can't tell apart, whatever their losses."""
    out = unit_warnings(data, law)
    names = [name for name in law.varying if name not in law.signed]
    if "U" in law.columns and (data["D"] <= data["U"]).all():
        out.append("no run repeats its data (D > U): R_D isn't determined")
    for i, x in enumerate(names):
        for y in names[i + 1 :]:
            correlation = float(np.corrcoef(np.log(data[x]), np.log(data[y]))[0, 1])
            if abs(correlation) > 0.99:
                what = f"ln {x} and ln {y} are collinear (correlation {correlation:.4f})"
                pair = "alpha and beta" if law.name == "chinchilla" else "their exponents"
                out.append(f"{what}: {pair} can't be told apart; vary {y} at fixed {x}")
    for name in law.varying:
        distinct = len(np.unique(data[name]))
        if distinct == 2 and law.floor:
            out.append(f"only 2 distinct {name}: its exponent and the floor can't be told apart; add a third")
    return out


def search_warnings(problem: Problem, found: Found) -> list[str]:
    law, theta = problem.law, found.theta
    out: list[str] = []
    values = law.named(theta)
    for p, parameter in enumerate(law.parameters):
        width = problem.high[p] - problem.low[p]
        for bound in (problem.low[p], problem.high[p]):
            if abs(theta[p] - bound) <= 1e-9 * width:
                number = f"{math.exp(bound):.4g}" if parameter.log and bound < 700 else f"{bound:.4g}"
                number = f"e^{number}" if parameter.log and bound >= 700 else number  # math.exp overflows
                out.append(f"{parameter.name} is at its bound {number}: the runs don't determine it")
    if law.members:  # the rest is of a search, which each member had for itself
        return out
    if law.floor and values[law.floor] < 0.01 * problem.target(problem.observed.min()):
        out.append(f"{law.floor} is about 0: the runs show no irreducible loss, so extrapolations are optimistic")
    condition = _condition(problem, theta)
    if not condition < MAX_CONDITION:
        out.append(f"the objective is flat (condition number {condition:.1e}): other parameters fit nearly as well")
    if not found.settled:
        out.append("the best start hadn't settled when its steps ran out")
    same = found.same
    if same.mean() < 0.5:
        reached = f"only {int(same.sum())} of the {len(same)} surviving starts"
        out.append(f"{reached} reach the best objective: trust it less")
    optima = law.values(found.optima[same])
    for i, name in enumerate(law.names):
        low, high = float(optima[:, i].min()), float(optima[:, i].max())
        spread = high - low if name in law.exponent_names else (high - low) / max(abs(high), 1e-300)
        if (name in law.exponent_names or name == law.floor) and spread > 0.02:
            out.append(f"surviving starts disagree on {name}: {low:.4g} to {high:.4g} fit equally well")
    return out


def _condition(problem: Problem, theta: np.ndarray) -> float:
    """Condition number of the weighted squares' curvature with its diagonal scaled to 1."""
    residual, slopes = problem.residuals(theta[None])
    matrix = problem.irls(residual, slopes, np.ones(residual.shape))[0]
    unit = np.sqrt(np.diag(matrix))
    if not (unit > 0).all():
        return math.inf
    values = np.linalg.eigvalsh(matrix / np.outer(unit, unit))
    return float(values[-1] / values[0]) if values[0] > 0 else math.inf
