"""Which law to believe: laws judged by their error on the largest runs, refitted to ever smaller ones.

All laws see the same runs. The largest rung is held out, and each law is refitted to the runs below a cutoff that moves
down: its error against the gap, the largest C held out over the largest C fitted, is a curve. A law's score is the
geometric mean of its errors over the gaps, the height of its curve on log axes. A law ties with the best one where
resamples, in which all laws see the same draws, can't tell their scores apart. A tie goes to a law with a floor, then
to the least score; of scores within a factor ALIKE of it, to the one with the fewest parameters. A law without a floor
extrapolates as well as others near the runs and fails further away: it is best only if it also has the least error at
the largest gap.

The rule was set on 2026-12-01 on the public runs of Porian et al. 2024, (Mis)Fitting and Gemstones. docs/results.md has
how it did on others.

Legend: N parameters, D examples or tokens, C training FLOPs, L loss; R resamples, n runs, P parameters of a law.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from bigmodel.errors import UsageError
from bigmodel.laws import checks, extrapolate, forms, intervals, search
from bigmodel.laws.forms import Law
from bigmodel.laws.solve import Problem

CANDIDATES = ("gadre", "chinchilla", "farseer", "kaplan_nd")
RULES = ("auto", "average")  # names that `fit` takes for the best law, and the average of those that tie with it
MOST_GAPS = 6
FEWEST_HELD_OUT = 4  # the largest rungs together, until there are as many runs
LEAST_SHARE = 0.25  # of the runs: fewer say too little of the law
RESAMPLES = 100
ALIKE = 1.25  # scores within this factor make no difference to a user


@dataclass(frozen=True)
class Split:
    """Which runs are fitted and which are held out, masks (n,), and the gap between them."""

    fitted: np.ndarray
    held_out: np.ndarray
    gap: float


def splits(data: Mapping[str, np.ndarray], law: Law, trunks: np.ndarray | None = None) -> list[Split]:
    """The splits that a law can be fitted to, the largest gap first; at most MOST_GAPS, spread over the gaps."""
    _, scale, order, factor = extrapolate.rung_scale(data, law, trunks)
    held_out = np.zeros(len(order), dtype=bool)
    while held_out.sum() < min(FEWEST_HELD_OUT, len(order)):
        held_out |= order >= order[~held_out].max() / factor
    found, rest = [], ~held_out
    while rest.any():
        inside = {name: column[rest] for name, column in data.items()}
        if rest.sum() < LEAST_SHARE * len(order) or not _determined(inside, law):
            break
        found.append(Split(rest.copy(), held_out, float(scale[held_out].max() / scale[rest].max())))
        rest &= order < order[rest].max() / factor
    found.reverse()
    keep = np.linspace(0, len(found) - 1, min(MOST_GAPS, len(found))).round().astype(int)
    return [found[i] for i in keep]


def _determined(data: Mapping[str, np.ndarray], law: Law) -> bool:
    """Whether runs may determine a law: more of them than parameters by half, and three values of each column."""
    enough = len(data[law.target]) >= max(checks.MIN_POINTS, math.ceil(1.5 * law.num_params))
    return enough and all(len(np.unique(data[name])) > 2 for name in law.varying) and np.ptp(data[law.target]) > 0


def backtests(
    problem: Problem, data: Mapping[str, np.ndarray], cuts: Sequence[Split]
) -> tuple[list[dict[str, Any]], list[search.Found]]:
    """An entry per split: flops_gap, n_fitted, n_held_out, mean_abs_rel_error, mean_rel_error; and what was found."""
    entries, refits = [], []
    for cut in cuts:
        refit = _part(problem, data, cut)
        found = search.search(refit)
        outside = _rows(data, cut.held_out)
        seen = outside[problem.law.target]
        error = (problem.law.predict(problem.law.named(found.theta), outside) - seen) / np.abs(seen)
        entries.append(
            {
                "flops_gap": cut.gap,
                "n_fitted": int(cut.fitted.sum()),
                "n_held_out": int(cut.held_out.sum()),
                "mean_abs_rel_error": float(np.abs(error).mean()),
                "mean_rel_error": float(error.mean()),
            }
        )
        refits.append(found)
    return entries, refits


def _part(problem: Problem, data: Mapping[str, np.ndarray], cut: Split) -> Problem:
    """The problem of the runs fitted, its starts moved to their size."""
    inside = _rows(data, cut.fitted)
    options = (float(np.max(problem.delta)), problem.above, problem.estimator, problem.residuals_of)
    return search.problem_of(problem.law, inside, *options)


def _rows(data: Mapping[str, np.ndarray], mask: np.ndarray) -> dict[str, np.ndarray]:
    return {name: column[mask] for name, column in data.items()}


# ---------------------------------------------------------------------------------------- comparing


@dataclass
class _Rival:
    law: Law
    data: dict[str, np.ndarray]
    problem: Problem
    objective: float
    tests: list[dict[str, Any]]
    refits: list[search.Found]
    warnings: list[str]


def compare(
    frame: pd.DataFrame,
    names: Sequence[str],
    how: Mapping[str, Any],
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Laws fitted to the same runs and ranked. Points of one run are drawn, and held out, together.

    Args:
      names: of laws of one target; the first names the target.
      how: delta, above, estimator and residuals of the fits.

    Returns:
      An entry per law, best first: law, num_params, floor (whether it has one), objective, n_points, backtests (see
      `backtests`), score (or None), excess: [low, high] of its score over the best one's, or None; ties: whether it
      can't be told from the best, warnings. And lines that say how the first was chosen and what was left out.

    Raises:
      UsageError: a law of another target, or whose columns the runs lack, or too few runs for the first.
    """
    rivals: list[_Rival] = []
    said: list[str] = []
    first_law = forms.get(names[0])
    target = first_law.target
    runs, _, _ = checks.runs_of(frame, (*first_law.columns, target))
    trunks = runs if frame.attrs.get("checkpoints") else None
    for name in dict.fromkeys(names):
        law = forms.get(name)
        if law.target != target:
            raise UsageError(f"law {name!r} is for {law.target!r}, {names[0]!r} for {target!r}")
        data = checks.columns_of(frame, law)
        try:
            checks.enough(data, law, "fit")
        except UsageError as e:
            if name == names[0]:
                raise
            said.append(f"{name} is left out: {e}")
            continue
        problem = search.problem_of(law, data, **how)
        found = search.search(problem)
        lines = [*checks.design_warnings(data, law), *checks.search_warnings(problem, found)]
        rivals.append(_Rival(law, data, problem, found.objective, [], [], lines))
    cuts, tested = _shared(rivals, trunks, said)
    for rival in tested:
        rival.tests, rival.refits = backtests(rival.problem, rival.data, cuts)
    entries = {rival.law.name: _entry(rival) for rival in rivals}
    if cuts:
        _mark_ties(entries, tested, cuts, np.random.default_rng(seed), resamples, runs)
    ranked = sorted(entries.values(), key=lambda e: (not e["ties"], e["score"] is None, e["score"] or 0.0))
    tied = [entry for entry in ranked if entry["ties"] and entry["floor"]] or [e for e in ranked if e["ties"]]
    if tied:
        alike = [entry for entry in tied if entry["score"] <= ALIKE * tied[0]["score"]]
        first = min(alike, key=lambda entry: entry["num_params"])
        ranked.sort(key=lambda entry: entry is not first)
    return ranked, [*said, *_reasons(ranked)]


def named(rule: str, ranked: Sequence[Mapping[str, Any]]) -> str:
    """The law that a rule names; any other name is itself. An average takes laws without a floor if none has one."""
    tied = [entry["law"] for entry in ranked if entry["ties"] and entry["floor"] == ranked[0]["floor"]]
    if rule == "average" and len(tied) > 1:
        return f"average:members={'+'.join(tied)}"
    return str(ranked[0]["law"]) if rule in RULES else rule


def _shared(rivals: Sequence[_Rival], trunks: np.ndarray | None, said: list[str]) -> tuple[list[Split], list[_Rival]]:
    """The splits that all laws can be fitted to, and those laws; a law that would halve the gap is left out."""
    own = {rival.law.name: splits(rival.data, rival.law, trunks) for rival in rivals}
    largest = max((math.log(cuts[0].gap) for cuts in own.values() if cuts), default=0.0)
    tested = []
    for rival in rivals:
        cuts = own[rival.law.name]
        if cuts and math.log(cuts[0].gap) >= 0.5 * largest:
            tested.append(rival)
        else:
            said.append(f"{rival.law.name} is not ranked: too few runs are left for it below the largest")
    if not tested:
        return [], []
    return min((own[rival.law.name] for rival in tested), key=lambda cuts: cuts[0].gap), tested


def _entry(rival: _Rival) -> dict[str, Any]:
    return {
        "law": rival.law.name,
        "num_params": rival.law.num_params,
        "floor": rival.law.has_floor,
        "objective": rival.objective,
        "n_points": len(rival.problem),
        "backtests": rival.tests,
        "score": float(np.exp(_mean_log([t["mean_abs_rel_error"] for t in rival.tests]))) if rival.tests else None,
        "excess": None,
        "ties": False,
        "warnings": rival.warnings,
    }


def _mean_log(errors: Any) -> Any:
    """Mean logarithm over the gaps (first axis); a perfect prediction counts as an error of 1e-6."""
    return np.log(np.maximum(errors, 1e-6)).mean(axis=0)


def _mark_ties(
    entries: Mapping[str, dict[str, Any]],
    tested: Sequence[_Rival],
    cuts: Sequence[Split],
    rng: np.random.Generator,
    resamples: int,
    runs: np.ndarray | None,
) -> None:
    """Sets "excess" and "ties" by resamples, shared by all laws, of the runs fitted and of those held out."""
    furthest = min(tested, key=lambda rival: rival.tests[0]["mean_abs_rel_error"])
    good = [rival for rival in tested if rival.law.has_floor or rival is furthest] or tested
    best = min(good, key=lambda rival: entries[rival.law.name]["score"])
    draws = [[_counts(rng, resamples, mask, runs) for mask in (cut.fitted, cut.held_out)] for cut in cuts]
    scores = {}
    for rival in tested:
        errors = [
            _errors(rival, cut, refit, *counts) for cut, refit, counts in zip(cuts, rival.refits, draws, strict=True)
        ]
        scores[rival.law.name] = _mean_log(np.array(errors))
    for rival in tested:
        entry = entries[rival.law.name]
        excess = scores[rival.law.name] - scores[best.law.name]
        known = excess[np.isfinite(excess)]
        if rival is best or not intervals.enough(len(known), resamples):
            entry["ties"] = True  # of laws that most resamples can't be fitted with, nothing tells them apart
            continue
        entry["excess"] = [float(end) for end in np.exp(intervals.percentile(known[:, None])[:, 0])]
        entry["ties"] = entry["excess"][0] <= 1 and entry["excess"][1] >= 1


def _counts(rng: np.random.Generator, resamples: int, mask: np.ndarray, runs: np.ndarray | None) -> np.ndarray:
    """How often each run of a mask is drawn, (R, runs of the mask); points of one run are drawn together."""
    labels = np.arange(int(mask.sum())) if runs is None else np.unique(runs[mask], return_inverse=True)[1]
    size = int(labels.max()) + 1
    return rng.multinomial(size, np.full(size, 1 / size), size=resamples).astype(np.float64)[:, labels]


def _errors(rival: _Rival, cut: Split, refit: search.Found, fitted: np.ndarray, held_out: np.ndarray) -> np.ndarray:
    """Mean |relative error| of each resample (R,); nan where it couldn't be fitted."""
    problem, law = _part(rival.problem, rival.data, cut), rival.law
    possible = intervals.usable(problem, fitted)
    theta, settled = intervals.refit(problem, refit.basins, fitted[possible], np.random.default_rng(0))
    outside = _rows(rival.data, cut.held_out)
    with np.errstate(all="ignore"):
        error = np.abs(law.predict_all(theta, outside) / outside[law.target] - 1)
    out = np.full(len(fitted), np.nan)
    out[np.flatnonzero(possible)[settled]] = np.average(error, axis=1, weights=held_out[possible])[settled]
    return out


def _reasons(ranked: Sequence[Mapping[str, Any]]) -> list[str]:
    """How the first was chosen, in a line."""
    first, tied = ranked[0], [entry for entry in ranked if entry["ties"]]
    if first["score"] is None:
        return [
            f"no law could be tested on larger runs: {first['law']} is first as it was named first, not by an error"
        ]
    gaps = [test["flops_gap"] for test in first["backtests"]]
    over = f"over gaps of {gaps[-1]:.3g}x to {gaps[0]:.3g}x"
    told = ", ".join(f"{entry['law']} {100 * entry['score']:.2g} %" for entry in tied)
    if len(tied) == 1:
        return [f"{first['law']} is best {over} (mean held-out error {told})"]
    others = [entry for entry in tied if entry["floor"] == first["floor"]]
    why = ["has a floor"] if len(others) < len(tied) else []
    if len(others) > 1:
        least = first["score"] <= min(entry["score"] for entry in others)
        why.append(
            "has the least error" if least else f"has fewer parameters, at an error within {ALIKE:g}x of the least"
        )
    return [f"{len(tied)} laws tie {over} (mean held-out errors {told}): {first['law']} {' and '.join(why)}"]
