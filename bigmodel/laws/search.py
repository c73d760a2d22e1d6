"""The best parameters of a law: every start of its grid, culled early, then polished.

Legend: S candidates, P parameters, K optima, n runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import erf

from bigmodel.errors import UsageError, choose
from bigmodel.laws.forms import Law
from bigmodel.laws.solve import Problem, descend

SCREEN_RUNS = 2000  # of more runs, the last starts see this many; the best is then polished on all
# (steps, how many of the best starts go on, how many runs they see). On Besiroglu et al.'s 240 points every start of
# the last round arrives, and no resample was seen for which all 4500 starts, each to its end, do better
# (benchmarks/fit_speed.py).
SCREEN = ((10, 512, 64), (20, 128, SCREEN_RUNS), (60, 32, SCREEN_RUNS))
POLISH_STEPS = 100
# Objectives this close to the best are the same fit: relatively, or by a root mean square residual of 1e-6
# in ln L (of the target's deviation, where residuals are linear).
SAME_RELATIVE, SAME_RESIDUAL = 1e-3, 1e-6
RESIDUALS = ("log", "linear")
ESTIMATORS = ("huber", "likelihood")


@dataclass
class Found:
    """What a search found.

    Attributes:
      theta: the best candidate, (P,).
      objective: its objective.
      scale: scale of the free-scale likelihood, in units of the residuals; 0 for "huber".
      optima: theta of every surviving start, best first, (K, P).
      objectives: (K,)
      basins: starts for resamples: the best, and what else fits about as well, (B, P).
      settled: whether the best had converged.
      same: which optima fit as well as the best, (K,).
    """

    theta: np.ndarray
    objective: float
    scale: float
    optima: np.ndarray
    objectives: np.ndarray
    basins: np.ndarray
    settled: bool
    same: np.ndarray


def problem_of(
    law: Law,
    data: Mapping[str, np.ndarray],
    delta: float,
    above: float = 1.0,
    estimator: str = "huber",
    residuals: str = "log",
) -> Problem:
    """The problem of fitting `law` to columns `data`, its starts moved to the data's size.

    The published starts are for a few nats per token. Other units (squared error, bits) move by whole powers of e;
    between 1 and e^2 nats the grid is the published one to the digit. The starts of a linear law are in the target's
    own unit, and stay.

    Args:
      residuals: "log", or "linear", of the target itself; `delta` has their unit.

    Raises:
      UsageError: an unknown option; a linear law with residuals of logarithms, which its target may not have.
    """
    choose("estimator", estimator, ESTIMATORS)
    choose("residuals", residuals, RESIDUALS)
    if law.linear and residuals == "log":
        raise UsageError(f"law {law.name!r}: its {law.target} may be zero or negative; residuals=linear fits it")
    target = data[law.target]
    linear, first = residuals == "linear", law.columns[0]
    return Problem(
        law,
        {name: data[name] for name in law.columns},
        target if linear else np.log(target),
        delta,
        above,
        estimator,
        shift=0.0 if law.linear else float(np.trunc(np.median(np.log(target)) - 1)),
        x_shift=0.0 if first in law.signed else float(np.median(np.log(data[first]))),
        residuals_of=residuals,
        size=float(np.std(target)) or 1.0 if linear else 1.0,
    )


def negligible(problem: Problem) -> float:
    """An objective that is rounding."""
    small = SAME_RESIDUAL * problem.size
    inner = min(small, float(np.max(problem.delta)))
    return len(problem) * inner * (small - 0.5 * inner)


def search(problem: Problem, counts: np.ndarray | None = None) -> Found:
    """Runs the law's whole grid of starts.

    Args:
      counts: how often each run counts, (n,); None: once.

    Raises:
      UsageError: the law predicts no positive number from any start.
    """
    counts = np.ones(len(problem)) if counts is None else counts
    if problem.law.members:
        return _search_members(problem, counts)
    theta = problem.starts()
    for steps, keep, runs in SCREEN:
        small, few = _part(problem, counts, runs)
        theta, objective, _ = descend(small, theta, few, steps)
        order = np.argsort(objective, kind="stable")[:keep]
        theta = theta[order]
    theta, objective, settled = descend(small, theta, few, POLISH_STEPS, "newton")
    # Of optima that tie to rounding (too few sizes to determine the law), report the one nearest the grid's centre.
    starts = problem.starts()
    away = np.abs((theta - starts.mean(axis=0)) / np.maximum(np.ptp(starts, axis=0), 1e-9)).max(axis=1)
    tied = objective <= objective.min() * (1 + 1e-9) + 1e-6 * negligible(small)
    order = np.lexsort((np.where(tied, away, objective), ~tied))
    theta, objective, settled = theta[order], objective[order], settled[order]
    same = objective <= objective.min() * (1 + SAME_RELATIVE) + negligible(small)
    basins = _basins(theta, same)
    best, least, done = theta[:1], objective[:1], settled[:1]
    if small is not problem:
        best, least, done = descend(problem, best, counts, POLISH_STEPS, "newton")
    if not np.isfinite(least[0]):
        raise UsageError(f"law {problem.law.name!r}: no start predicts a positive number for every run")
    if not done[0]:
        best, least, done = descend(problem, best, counts, 3 * POLISH_STEPS)
        best, least, done = descend(problem, best, counts, 3 * POLISH_STEPS, "newton")
    scale = np.zeros(1)
    if problem.estimator == "likelihood":
        best, least, scale = free_scale(problem, best, counts)
    return Found(best[0], float(least[0]), float(scale[0]), theta, objective, basins, bool(done[0]), same)


def _search_members(problem: Problem, counts: np.ndarray) -> Found:
    """An average's members, each found by itself, with equal weights."""
    found = [search(member, counts) for member in problem.members()]
    theta = np.concatenate([np.full(len(found), 1 / len(found)), *(one.theta for one in found)])
    objective = problem.huber(problem.residuals(theta[None])[0], counts[None])
    settled = all(one.settled for one in found)
    return Found(theta, float(objective[0]), 0.0, theta[None], objective, theta[None], settled, np.ones(1, dtype=bool))


def _part(problem: Problem, counts: np.ndarray, runs: int) -> tuple[Problem, np.ndarray]:
    """The problem on `runs` of its runs, always the same ones."""
    if len(problem) <= runs:
        return problem, counts
    part = np.sort(np.random.default_rng(0).choice(len(problem), runs, replace=False))
    return problem.of_runs(part), counts[part]


def _basins(theta: np.ndarray, same: np.ndarray, most: int = 4) -> np.ndarray:
    """Starts for the resamples: the best, then what fits as well but lies furthest away, then other optima; (B, P)."""
    kept = [theta[0]]
    for group in (theta[same], theta[~same]):
        while len(group) and len(kept) < most:
            away = np.min([np.abs(group - other).max(axis=1) for other in kept], axis=0)
            if away.max() <= 0.1:
                break
            kept.append(group[int(np.argmax(away))])
    return np.array(kept)


# -------------------------------------------------------------------- free-scale Huber likelihood


def scale_of(residual: np.ndarray, counts: np.ndarray, delta: float) -> np.ndarray:
    """The most likely scale of residuals (S, n), (S,): sigma = mean of psi_delta(r / sigma) r, psi clips at delta."""
    counts = np.broadcast_to(counts, residual.shape)
    total = counts.sum(axis=1)
    sigma = np.sqrt(np.einsum("sn,sn->s", residual**2, counts) / total)
    for _ in range(60):  # halfway in ln sigma each time: the plain iteration would oscillate
        psi = np.clip(residual / sigma[:, None], -delta, delta)
        new = np.einsum("sn,sn->s", psi * residual, counts) / total
        sigma = np.sqrt(sigma * np.maximum(new, 1e-300))
    return sigma


def free_scale(problem: Problem, theta: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Maximises the Huber likelihood with a free scale, from Huber optima.

        -ln p = sum over runs of Huber_delta(r / sigma) + ln sigma + ln Z,
        Z = sqrt(2 pi) (2 Phi(delta) - 1) + 2 exp(-delta^2 / 2) / delta,

    the headline estimator of Besiroglu et al. 2024 (arXiv:2404.10102): delta counts scales, so that delta = 1e-3 is
    nearly least absolute deviations. The kink is approached by shrinking it in steps.

    Args:
      theta: (S, P); counts: (n,) or (S, n).

    Returns:
      theta (S, P), -ln p (S,), sigma in units of the residuals (S,).
    """
    delta = float(np.max(problem.delta))
    residual, _ = problem.residuals(theta)
    sigma = scale_of(residual, counts, delta)
    kink = np.maximum(delta * sigma, np.sqrt(np.mean(residual**2, axis=1)))
    for _ in range(40):
        kink = np.maximum(0.3 * kink, delta * sigma)
        theta, _, _ = descend(replace(problem, delta=kink[:, None]), theta, counts, 40, "newton")
        residual, _ = problem.residuals(theta)
        old, sigma = sigma, scale_of(residual, counts, delta)
        if (kink <= delta * sigma * 1.001).all() and (np.abs(sigma / old - 1) < 1e-9).all():
            break
    return theta, free_scale_value(problem, theta, counts), sigma


def free_scale_value(problem: Problem, theta: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """-ln p of `free_scale` at theta (S, P) and its most likely scale, (S,)."""
    delta = float(np.max(problem.delta))
    residual, _ = problem.residuals(theta)
    sigma = scale_of(residual, counts, delta)
    unit = np.abs(residual) / sigma[:, None]
    inner = np.minimum(unit, delta)
    each = inner * (unit - 0.5 * inner) + np.log(sigma)[:, None] + np.log(huber_integral(delta))
    return np.einsum("sn,sn->s", each, np.broadcast_to(counts, residual.shape))


def huber_integral(delta: float) -> float:
    """Integral of exp(-Huber_delta(u)) over all u: what makes it a density."""
    return float(np.sqrt(2 * np.pi) * erf(delta / np.sqrt(2)) + 2 * np.exp(-(delta**2) / 2) / delta)
