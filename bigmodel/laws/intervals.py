"""How well the runs determine a law: resamples of the runs, and five methods of making intervals.

All work on the found optimum and return parameters in the law's own units. docs/results.md has how often each method's
intervals cover planted truths; the default is the one that came closest to its level.

Legend: S candidates, P parameters, R resamples, n runs; K quantities.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from scipy import special

from bigmodel.laws.checks import MIN_POINTS
from bigmodel.laws.forms import Law
from bigmodel.laws.search import Found, free_scale, negligible
from bigmodel.laws.solve import Problem, descend

LEVEL = 0.95
IRLS_STEPS, NEWTON_STEPS = 60, 60  # of a resample
# Of a law whose terms are log-linear in the parameters. Of others (kaplan_nd), as few end above the best in 1 % of
# resamples.
FEW_IRLS_STEPS = 10
SUBSET_RUNS = 5000  # beyond, resamples are drawn by the bag of little bootstraps
SUBSETS = 10
PROFILE_POINTS = 12  # each way from the estimate
TIE = 1e-6  # objectives that close are the same optimum
AGREE = "all resamples agree"
WIDTH = 1e-6  # relative; an interval as narrow is none: what it measures isn't in the resamples

# ------------------------------------------------------------------------------------ resamples


def resample(
    problem: Problem,
    found: Found,
    resamples: int,
    seed: int,
    cells: np.ndarray | None = None,
    runs: np.ndarray | None = None,
) -> tuple[np.ndarray, int]:
    """Refits resamples of the runs, drawn with replacement (Efron 1979).

    A resample is n counts, so that all resamples share the same arrays. Each starts from every basin that the grid
    found. Beyond SUBSET_RUNS runs: the bag of little bootstraps (Kleiner et al. 2014, arXiv:1112.5016), subsets of
    n^0.6 runs, each resampled to n; or, with `runs`, resamples of SUBSET_RUNS points spread over all of them.

    Args:
      cells: (n,) a label per run; a resample then draws within each cell, as over the seeds of one configuration.
      runs: (n,) which run each point is of, where one has several (decays of one trunk): they are then drawn together,
        since they share a start, an order of data and most of their steps.

    Returns:
      theta of each resample that could be fitted (R', P), and how many couldn't.
    """
    n = len(problem)
    if not resamples:
        return np.empty((0, len(problem.law.names))), 0
    rng = np.random.default_rng(seed)
    if n > SUBSET_RUNS:
        if runs is None:
            return _little_bootstraps(problem, found, resamples, rng)
        part = np.linspace(0, n - 1, SUBSET_RUNS).round().astype(int)
        own, centre = _centred(problem, found, part)
        theta, failed = resample(own, replace(found, basins=centre), resamples, seed, runs=runs[part])
        return theta - centre + found.theta, failed
    if runs is not None:
        own_run = np.unique(runs, return_inverse=True)[1]
        counts = _drawn(rng, resamples, int(np.max(own_run)) + 1)[:, own_run]
    elif cells is not None:
        counts = np.zeros((resamples, n))
        for cell in np.unique(cells):
            inside = np.flatnonzero(cells == cell)
            counts[:, inside] = _drawn(rng, resamples, len(inside))
    else:
        counts = _drawn(rng, resamples, n)
    counts = counts[usable(problem, counts)]
    theta, settled = refit(problem, found.basins, counts, rng)
    if members := len(problem.law.members):  # see `forms.average`
        theta[:, :members] = np.eye(members)[rng.choice(members, len(theta), p=found.theta[:members])]
    return theta[settled], resamples - int(settled.sum())


def _drawn(rng: np.random.Generator, resamples: int, size: int, total: int = 0) -> np.ndarray:
    """How often each of `size` is drawn in `total` (default: `size`) draws, (R, size)."""
    return rng.multinomial(total or size, np.full(size, 1 / size), size=resamples).astype(np.float64)


def _little_bootstraps(
    problem: Problem, found: Found, resamples: int, rng: np.random.Generator
) -> tuple[np.ndarray, int]:
    n = len(problem)
    size, kept, failed = int(n**0.6), [], 0
    for i in range(SUBSETS):
        own, centre = _centred(problem, found, np.sort(rng.choice(n, size, replace=False)))
        number = resamples // SUBSETS + (i < resamples % SUBSETS)
        theta, settled = refit(own, centre, _drawn(rng, number, size, n), rng)
        kept.append(theta[settled] - centre + found.theta)
        failed += number - int(settled.sum())
    return np.concatenate(kept), failed


def _centred(problem: Problem, found: Found, part: np.ndarray) -> tuple[Problem, np.ndarray]:
    """The problem on a part of its runs, and its own optimum (1, P): only the spread about that is wanted."""
    own = problem.of_runs(part)
    centre, _, _ = descend(own, found.theta[None], np.ones(len(part)), 300, "newton")
    return own, centre


def usable(problem: Problem, counts: np.ndarray) -> np.ndarray:
    """Which resamples (R, n) can have a law: enough distinct runs, and no column with a single value."""
    drawn = counts > 0
    usable = drawn.sum(axis=1) >= max(MIN_POINTS, problem.law.num_params + 1)
    for column in (problem.row[name] for name in problem.law.varying):
        usable &= np.where(drawn, column, -np.inf).max(axis=1) > np.where(drawn, column, np.inf).min(axis=1)
    return usable


def refit(
    problem: Problem, basins: np.ndarray, counts: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """The best of every basin (B, P) for each of the resamples `counts` (R, n): theta (R, P), settled (R,)."""
    if not len(counts):
        return np.empty((0, basins.shape[1])), np.empty(0, dtype=bool)
    if members := problem.members():
        ends = np.cumsum([len(members), *(len(member.law.parameters) for member in members)])
        parts = [refit(own, basins[:, a:b], counts, rng) for own, a, b in zip(members, ends, ends[1:], strict=False)]
        weights = np.repeat(basins[:1, : len(members)], len(counts), axis=0)
        return np.hstack([weights, *(theta for theta, _ in parts)]), np.all([done for _, done in parts], axis=0)
    found = []
    dual = problem.dual(basins[:1], second=True)
    first = FEW_IRLS_STEPS if dual is not None and not dual.edges else IRLS_STEPS
    for start in basins:
        theta = np.repeat(start[None], len(counts), axis=0)
        theta, _, _ = descend(problem, theta, counts, first)
        found.append(descend(problem, theta, counts, NEWTON_STEPS, "newton"))
    thetas, objectives, dones = (np.array(column) for column in zip(*found, strict=True))
    # Among optima that tie, one at random: the first would hide that the runs can't tell them apart.
    tied = objectives <= objectives.min(axis=0) * (1 + TIE) + negligible(problem)
    pick = np.where(tied, rng.random(tied.shape), -1.0).argmax(axis=0)
    best, settled = thetas[pick, np.arange(len(counts))], dones[pick, np.arange(len(counts))]
    late = np.flatnonzero(~settled)
    if len(late):
        theta, _, _ = descend(problem, best[late], counts[late], 10 * IRLS_STEPS)
        best[late], _, settled[late] = descend(problem, theta, counts[late], 10 * NEWTON_STEPS, "newton")
    if problem.estimator == "likelihood" and len(best):
        best, _, _ = free_scale(problem, best, counts)
    return best, settled


def without(problem: Problem, found: Found, groups: Sequence[np.ndarray]) -> list[np.ndarray | None]:
    """theta (P,) of a refit without each group of runs; None where too few are left."""
    counts = np.ones((len(groups), len(problem)))
    for k, group in enumerate(groups):
        counts[k, group] = 0
    possible = usable(problem, counts)
    theta, settled = refit(problem, found.basins[:1], counts[possible], np.random.default_rng(0))
    at = np.cumsum(possible) - 1
    return [theta[at[k]] if possible[k] and settled[at[k]] else None for k in range(len(groups))]


# ------------------------------------------------------------------------------------ intervals


def percentile(samples: np.ndarray) -> np.ndarray:
    """(2, K): the middle 95 % of samples (R, K), of those that are numbers; nan where under two are."""
    return _quantiles(samples, (1 - LEVEL) / 2)


def bias_corrected(samples: np.ndarray, estimate: np.ndarray, level: float = LEVEL) -> np.ndarray:
    """The percentile interval (2, K) with its quantiles moved by the estimate's own place among the samples.

    Efron 1981 (Canadian Journal of Statistics 9:2): quantiles Phi(2 z + z_level), z = Phi^-1(share of samples below the
    estimate). Samples (R, K), estimate (K,); as the plain percentiles, it is the same in any units.
    """
    out = np.full((2, samples.shape[1]), np.nan)
    for i, column in enumerate(samples.T):
        finite = column[np.isfinite(column)]
        if len(finite) < 2 or not np.isfinite(estimate[i]):
            continue
        # Ties count half; an estimate outside all samples counts as half a sample inside.
        share = ((finite < estimate[i]).sum() + 0.5 * (finite == estimate[i]).sum()) / len(finite)
        z = special.ndtri(np.clip(share, 0.5 / len(finite), 1 - 0.5 / len(finite)))
        tails = special.ndtri(np.array([(1 - level) / 2, (1 + level) / 2]))
        out[:, i] = np.quantile(finite, special.ndtr(2 * z + tails))
    return out


def expanded(samples: np.ndarray, n: int, parameters: int) -> np.ndarray:
    """The percentile interval, widened for the degrees of freedom that the fit used.

    Hesterberg 2015 (The American Statistician 69:4), section 3.4: at the quantile Phi(-sqrt(n/(n-P)) t), t of n-P.
    """
    free = max(n - parameters, 1)
    return _quantiles(samples, float(special.ndtr(-np.sqrt(n / free) * special.stdtrit(free, 0.5 + LEVEL / 2))))


def _quantiles(samples: np.ndarray, tail: float) -> np.ndarray:
    out = np.full((2, samples.shape[1]), np.nan)
    for i, column in enumerate(samples.T):
        finite = column[np.isfinite(column)]
        if len(finite) > 1:
            out[:, i] = np.quantile(finite, [tail, 1 - tail])
    return out


def covariance(problem: Problem, theta: np.ndarray) -> np.ndarray:
    """Covariance of theta by the delta method, (P, P); nan where the runs determine nothing.

    For an M-estimator with a loss rho of residuals r that are alike: E[psi^2] / E[psi']^2 (J^T J)^-1 n / (n - P), psi
    = rho' (Huber 1967). psi' is 1 within delta and 0 outside, so E[psi'] is delta times the residuals' density at 0,
    which is counted within Silverman's bandwidth where that is wider than delta.
    """
    residual, slopes = problem.residuals(theta[None])
    r, square = residual[0], slopes[0] @ slopes[0].T
    n, p = len(r), len(theta)
    delta = float(np.max(problem.delta))
    weight = np.broadcast_to(problem.weights(residual, np.ones((1, n))), residual.shape)[0]
    spread = min(float(np.std(r)), float(np.subtract(*np.percentile(r, [75, 25]))) / 1.349) or float(np.std(r))
    width = max(delta, 1.06 * spread * n**-0.2)
    bend = float((weight * (np.abs(r) <= width)).mean()) * delta / width  # E[psi']
    unit = np.sqrt(np.diag(square))
    if n <= p or not bend > 0 or not (unit > 0).all() or not np.isfinite(square).all():
        return np.full((p, p), np.nan)
    inverse = np.linalg.pinv(square / np.outer(unit, unit), rcond=1e-14, hermitian=True) / np.outer(unit, unit)
    return _pull(problem, residual) / bend**2 * inverse * n / (n - p)


def _pull(problem: Problem, residual: np.ndarray) -> float:
    """E[psi^2] of residuals (1, n)."""
    weight = problem.weights(residual, np.ones(residual.shape))
    return float(((weight * np.clip(residual, -problem.delta, problem.delta)) ** 2).mean())


def delta_method(problem: Problem, theta: np.ndarray, cov: np.ndarray) -> np.ndarray:
    """theta -+ t standard errors, (2, P), in theta: a logarithm's interval is multiplicative."""
    free = max(len(problem) - len(theta), 1)
    reach = special.stdtrit(free, 0.5 + LEVEL / 2) * np.sqrt(np.diag(cov))
    return np.array([theta - reach, theta + reach])


def profile(problem: Problem, theta: np.ndarray, cov: np.ndarray) -> np.ndarray:
    """Where the objective, minimised over the other parameters, rises by as much as chance explains; (2, P) of theta.

    The robust likelihood ratio (Hampel et al. 1986, "Robust Statistics", section 7.2): 2 (rho_profile - rho_min)
    E[psi'] / E[psi^2] is chi^2 with one degree of freedom; F of (1, n - P) here. An end that isn't found within 8
    standard errors, or before the parameter's bound, is -inf or inf.
    """
    n, p = len(problem), len(theta)
    out = np.array([np.full(p, -np.inf), np.full(p, np.inf)])
    se = np.sqrt(np.diag(cov))
    if not np.isfinite(se).all():
        return np.full((2, p), np.nan)
    residual, slopes = problem.residuals(theta[None])
    least = float(problem.huber(residual, np.ones((1, n)))[0])
    # cov = E[psi^2] / E[psi']^2 (J^T J)^-1 n / (n - P), so that the ratio follows from any diagonal element.
    inverse = np.linalg.pinv(slopes[0] @ slopes[0].T, hermitian=True)
    ratio = float(np.median(np.diag(cov) / np.maximum(np.diag(inverse), 1e-300)))
    unit = np.sqrt(_pull(problem, residual) * n / (n - p) * ratio)  # E[psi^2] / E[psi'], with n / (n - P)
    threshold = 0.5 * unit * special.fdtri(1, max(n - p, 1), LEVEL)
    reach = np.geomspace(0.25, 8, PROFILE_POINTS)
    for i, (end, sign) in itertools.product(range(p), ((0, -1.0), (1, 1.0))):
        if not se[i] > 0:
            continue
        # Along the direction in which the other parameters follow, then minimised over them.
        start = np.clip(theta + sign * reach[:, None] * cov[i] / se[i], problem.low, problem.high)
        start[:, i] = theta[i] + sign * reach * se[i]
        start = start[(start[:, i] > problem.low[i]) & (start[:, i] < problem.high[i])]
        if not len(start):
            continue
        held = replace(problem, fixed=np.arange(p) == i)
        moved, _, _ = descend(held, start, np.ones(n), 60)
        moved, value, _ = descend(held, moved, np.ones(n), 40, "newton")
        rise = np.concatenate([[0.0], np.maximum.accumulate(value - least)])
        where = np.concatenate([[theta[i]], start[:, i]])
        over = np.flatnonzero(rise > threshold)
        if len(over):
            k = int(over[0])
            # The rise is about quadratic: interpolate its root.
            low, high = np.sqrt(np.maximum(rise[k - 1 : k + 1], 0))
            part = (np.sqrt(threshold) - low) / max(high - low, 1e-300)
            out[end, i] = where[k - 1] + part * (where[k] - where[k - 1])
    return out


# ------------------------------------------------------------------------------- what is printed


def columns(ends: np.ndarray, names: Sequence[str], estimate: np.ndarray) -> dict[str, Any]:
    """(2, K) -> {name: [low, high]}, None where it isn't an interval of `estimate` (K,)."""
    return {name: pair(ends[:, i], float(estimate[i])) for i, name in enumerate(names)}


def pair(ends: np.ndarray, estimate: float) -> list[float] | None:
    return None if doubt(ends, estimate) else [float(ends[0]), float(ends[1])]


def doubt(ends: np.ndarray, estimate: float) -> str:
    """Why two ends are no interval of an estimate; "" where they are."""
    low, high = float(ends[0]), float(ends[1])
    if np.isnan([low, high, estimate]).any():
        return "too few resamples could be fitted"
    if np.isfinite([low, high]).all() and high - low <= WIDTH * max(abs(low), abs(high)):
        return AGREE
    slack = WIDTH * abs(estimate)
    if not low - slack <= estimate <= high + slack:
        return "the resamples leave out the estimate"
    return ""


def enough(fitted: int, asked: int) -> bool:
    """Whether enough of the requested resamples could be fitted for their spread to mean something."""
    return fitted >= max(2, asked / 2)


def tokens_per_param(largest: float, ratio: Callable[[float], np.ndarray], corrected: bool) -> dict[str, Any]:
    """D_opt / N_opt and its interval at 1, 10 and 100 times the largest budget, as `fit.fit` names them.

    Args:
      ratio: FLOPs -> (1 + R,) of the fit, then of each resample.
      corrected: intervals are bias-corrected; else percentiles.
    """
    at: dict[str, float] = {}
    ends: dict[str, list[float] | None] = {}
    for flops in (largest, 10 * largest, 100 * largest):
        text, found = f"{flops:.3g}", ratio(flops)
        drawn = found[1:, None]
        at[text], ends[text] = float(found[0]), None
        if enough(int(np.isfinite(drawn).sum()), len(drawn)):
            own = bias_corrected(drawn, found[:1]) if corrected else percentile(drawn)
            ends[text] = pair(own[:, 0], at[text])
    return {"tokens_per_param_at": at, "tokens_per_param_ci": ends}


def exponent_samples(law: Law, samples: np.ndarray, flops: float) -> dict[str, np.ndarray]:
    """The exponents "a" and "b" of each resample near C = `flops`, each (R,)."""
    if law.exponents is None:
        return {}
    found = [law.exponents(dict(zip(law.names, map(float, row), strict=True)), flops) for row in samples]
    return {name: np.array([row[name] for row in found]) for name in ("a", "b")}
