"""How well the runs determine a law: intervals by five methods, and refits without each compute rung.

All work on the found optimum and return parameters in the law's own units. docs/results.md has how often each method's
intervals cover planted truths; the default is the one that came closest to its level.

Legend: S candidates, P parameters, R resamples, n runs.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from scipy import special

from bigmodel.errors import UsageError
from bigmodel.laws.checks import MIN_POINTS
from bigmodel.laws.forms import Law
from bigmodel.laws.full_grid import refit as every_start
from bigmodel.laws.search import Found, free_scale, negligible
from bigmodel.laws.solve import Problem, descend

LEVEL = 0.95
IRLS_STEPS, NEWTON_STEPS = 60, 60  # of a resample
FEW_IRLS_STEPS = 10  # where the law knows its second derivatives, so that Newton's steps are as cheap
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
    estimator: str = "huber",
    cells: np.ndarray | None = None,
    full_grid: bool = False,
    runs: np.ndarray | None = None,
) -> tuple[np.ndarray, int]:
    """Refits resamples of the runs, drawn with replacement (Efron 1979).

    A resample is n counts, so that all resamples share the same arrays. Each starts from every basin that the grid
    found. Beyond SUBSET_RUNS runs: the bag of little bootstraps (Kleiner et al. 2014, arXiv:1112.5016), subsets of
    n^0.6 runs, each resampled to n.

    Args:
      cells: (n,) a label per run; a resample then draws within each cell, as over the seeds of one configuration.
      full_grid: every resample gets the whole grid of starts, on all cores.
      runs: (n,) which run each point is of, where one has several (decays of one trunk): they are then drawn together,
        since they share a start, an order of data and most of their steps.

    Returns:
      theta of each resample that could be fitted (R', P), and how many couldn't.
    """
    n, names = len(problem.log_loss), len(problem.law.names)
    if not resamples:
        return np.empty((0, names)), 0
    rng = np.random.default_rng(seed)
    if n > SUBSET_RUNS and full_grid:
        raise UsageError(f"full_grid: of {n} runs, over {SUBSET_RUNS}, resamples are of subsets; leave it out")
    if n > SUBSET_RUNS and cells is None and runs is not None:
        return _thinned(problem, found, resamples, seed, estimator, runs)
    if n > SUBSET_RUNS and cells is None:
        return _little_bootstraps(problem, found, resamples, rng, estimator)
    if cells is None and runs is not None:
        own = np.unique(runs, return_inverse=True)[1]
        size = own.max() + 1
        counts = rng.multinomial(size, np.full(size, 1 / size), size=resamples).astype(np.float64)[:, own]
    elif cells is None:
        counts = rng.multinomial(n, np.full(n, 1 / n), size=resamples).astype(np.float64)
    else:
        counts = np.zeros((resamples, n))
        for cell in np.unique(cells):
            own = np.flatnonzero(cells == cell)
            counts[:, own] = rng.multinomial(len(own), np.full(len(own), 1 / len(own)), size=resamples)
    counts = counts[_usable(problem, counts)]
    if full_grid:
        data = {**problem.row, problem.law.target: np.exp(problem.log_loss)}
        law, delta = problem.law.name, float(np.max(problem.delta))
        theta, _ = every_start(law, data, counts, delta, problem.above, estimator, progress=sys.stderr.isatty())
        return theta, resamples - len(theta)
    theta, settled = refit(problem, found.basins, counts, rng, estimator)
    return theta[settled], resamples - int(settled.sum())


def _usable(problem: Problem, counts: np.ndarray) -> np.ndarray:
    """Which resamples (R, n) can have a law: enough distinct runs, and no column with a single value."""
    drawn = counts > 0
    usable = drawn.sum(axis=1) >= max(MIN_POINTS, len(problem.law.names) + 1)
    for column in (problem.row[name] for name in problem.law.varying):
        usable &= np.where(drawn, column, -np.inf).max(axis=1) > np.where(drawn, column, np.inf).min(axis=1)
    return usable


def refit(
    problem: Problem, basins: np.ndarray, counts: np.ndarray, rng: np.random.Generator, estimator: str = "huber"
) -> tuple[np.ndarray, np.ndarray]:
    """The best of every basin (B, P) for each of the resamples `counts` (R, n): theta (R, P), settled (R,)."""
    if not len(counts):
        return np.empty((0, basins.shape[1])), np.empty(0, dtype=bool)
    found = []
    first = IRLS_STEPS if problem.law.bend is None else FEW_IRLS_STEPS
    for start in basins:
        theta = np.repeat(start[None], len(counts), axis=0)
        theta, _, _ = descend(problem, theta, counts, first)
        found.append(descend(problem, theta, counts, NEWTON_STEPS, "newton"))
    thetas, objectives, dones = (np.array(column) for column in zip(*found, strict=True))
    # Among optima that tie, one at random: the first would hide that the runs can't tell them apart.
    tied = objectives <= objectives.min(axis=0) * (1 + TIE) + negligible(counts.shape[1])
    pick = np.where(tied, rng.random(tied.shape), -1.0).argmax(axis=0)
    best, settled = thetas[pick, np.arange(len(counts))], dones[pick, np.arange(len(counts))]
    late = np.flatnonzero(~settled)
    if len(late):
        theta, _, _ = descend(problem, best[late], counts[late], 10 * IRLS_STEPS)
        best[late], _, settled[late] = descend(problem, theta, counts[late], 10 * NEWTON_STEPS, "newton")
    if estimator == "likelihood" and len(best):
        best, _, _ = free_scale(problem, best, counts)
    return best, settled


def _little_bootstraps(
    problem: Problem, found: Found, resamples: int, rng: np.random.Generator, estimator: str
) -> tuple[np.ndarray, int]:
    n = len(problem.log_loss)
    size, kept, failed = int(n**0.6), [], 0
    for i in range(SUBSETS):
        part = np.sort(rng.choice(n, size, replace=False))
        row = {name: column[part] for name, column in problem.row.items()}
        own = replace(problem, row=row, log_loss=problem.log_loss[part])
        centre, _, _ = descend(own, found.theta[None], np.ones(size), 300, "newton")
        number = resamples // SUBSETS + (i < resamples % SUBSETS)
        counts = rng.multinomial(n, np.full(size, 1 / size), size=number).astype(np.float64)
        theta, settled = refit(own, centre, counts, rng, estimator)
        kept.append(theta[settled] - centre + found.theta)  # each subset has its own centre; only the spread is wanted
        failed += number - int(settled.sum())
    return np.concatenate(kept), failed


def _thinned(
    problem: Problem, found: Found, resamples: int, seed: int, estimator: str, runs: np.ndarray
) -> tuple[np.ndarray, int]:
    """Of very many points, SUBSET_RUNS spread over all of them: what differs between runs shows in a part of each."""
    part = np.linspace(0, len(runs) - 1, SUBSET_RUNS).round().astype(int)
    row = {name: column[part] for name, column in problem.row.items()}
    own = replace(problem, row=row, log_loss=problem.log_loss[part])
    centre, _, _ = descend(own, found.theta[None], np.ones(len(part)), 300, "newton")
    near = replace(found, basins=centre)
    theta, failed = resample(own, near, resamples, seed, estimator, runs=runs[part])
    return theta - centre + found.theta, failed


# ------------------------------------------------------------------------------------ intervals


def percentile(samples: np.ndarray, level: float = LEVEL) -> np.ndarray:
    """(2, ...): the middle `level` of samples (R, ...), of those that are numbers; nan where under two are."""
    return _quantiles(samples, (1 - level) / 2)


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


def expanded(samples: np.ndarray, n: int, parameters: int, level: float = LEVEL) -> np.ndarray:
    """The percentile interval, widened for the degrees of freedom that the fit used.

    Hesterberg 2015 (The American Statistician 69:4), section 3.4: at the quantile Phi(-sqrt(n/(n-P)) t), t of n-P.
    """
    free = max(n - parameters, 1)
    tail = special.ndtr(-np.sqrt(n / free) * special.stdtrit(free, 0.5 + level / 2))
    return _quantiles(samples, float(tail))


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
    r, j = residual[0], slopes[0]
    n, p = len(r), len(theta)
    delta = float(np.max(problem.delta))
    weight = problem.weights(residual, np.ones((1, n)))
    weight = np.broadcast_to(weight, residual.shape)[0]
    spread = min(float(np.std(r)), float(np.subtract(*np.percentile(r, [75, 25]))) / 1.349) or float(np.std(r))
    width = max(delta, 1.06 * spread * n**-0.2)
    bend = float((weight * (np.abs(r) <= width)).mean()) * delta / width
    pull = float(((weight * np.clip(r, -delta, delta)) ** 2).mean())
    square = j @ j.T
    unit = np.sqrt(np.diag(square))
    if n <= p or not bend > 0 or not (unit > 0).all() or not np.isfinite(square).all():
        return np.full((p, p), np.nan)
    inverse = np.linalg.pinv(square / np.outer(unit, unit), rcond=1e-14, hermitian=True) / np.outer(unit, unit)
    return pull / bend**2 * inverse * n / (n - p)


def delta_method(problem: Problem, theta: np.ndarray, cov: np.ndarray, level: float = LEVEL) -> np.ndarray:
    """theta -+ t standard errors, (2, P), in theta: a logarithm's interval is multiplicative."""
    free = max(len(problem.log_loss) - len(theta), 1)
    reach = special.stdtrit(free, 0.5 + level / 2) * np.sqrt(np.diag(cov))
    return np.array([theta - reach, theta + reach])


def profile(problem: Problem, theta: np.ndarray, cov: np.ndarray, level: float = LEVEL) -> np.ndarray:
    """Where the objective, minimised over the other parameters, rises by as much as chance explains; (2, P) of theta.

    The robust likelihood ratio (Hampel et al. 1986, "Robust Statistics", section 7.2): 2 (rho_profile - rho_min)
    E[psi'] / E[psi^2] is chi^2 with one degree of freedom; F of (1, n - P) here. An end that isn't found within 8
    standard errors, or before the parameter's bound, is -inf or inf.
    """
    n, p = len(problem.log_loss), len(theta)
    out = np.array([np.full(p, -np.inf), np.full(p, np.inf)])
    se = np.sqrt(np.diag(cov))
    if not np.isfinite(se).all():
        return np.full((2, p), np.nan)
    residual, slopes = problem.residuals(theta[None])
    ones = np.ones((1, n))
    least = float(problem.huber(residual, ones)[0])
    # cov = pull / bend^2 (J^T J)^-1 n / (n - P), so that pull / bend follows from any diagonal element.
    square = slopes[0] @ slopes[0].T
    inverse = np.linalg.pinv(square, hermitian=True)
    ratio = float(np.median(np.diag(cov) / np.maximum(np.diag(inverse), 1e-300)))  # pull / bend^2, with n / (n - P)
    delta = float(np.max(problem.delta))
    weight = problem.weights(residual, ones)
    pull = float(((weight * np.clip(residual, -delta, delta)) ** 2).mean()) * n / (n - p)
    unit = np.sqrt(pull * ratio)  # pull / bend
    threshold = 0.5 * unit * special.fdtri(1, max(n - p, 1), level)
    reach = np.geomspace(0.25, 8, PROFILE_POINTS)
    for i in range(p):
        if not se[i] > 0:
            continue
        for end, sign in ((0, -1.0), (1, 1.0)):
            # Along the direction in which the other parameters follow, then minimised over them.
            start = theta + sign * reach[:, None] * cov[i] / se[i]
            start = np.clip(start, problem.low, problem.high)
            start[:, i] = theta[i] + sign * reach * se[i]
            inside = (start[:, i] > problem.low[i]) & (start[:, i] < problem.high[i])
            if not inside.any():
                continue
            held = replace(problem, fixed=np.arange(p) == i)
            moved, _, _ = descend(held, start[inside], np.ones(n), 60)
            moved, value, _ = descend(held, moved, np.ones(n), 40, "newton")
            rise = np.concatenate([[0.0], np.maximum.accumulate(value - least)])
            where = np.concatenate([[theta[i]], start[inside][:, i]])
            over = np.flatnonzero(rise > threshold)
            if len(over):
                k = int(over[0])
                # The rise is about quadratic: interpolate its root.
                low, high = np.sqrt(np.maximum(rise[k - 1 : k + 1], 0))
                part = (np.sqrt(threshold) - low) / max(high - low, 1e-300)
                out[end, i] = where[k - 1] + part * (where[k] - where[k - 1])
    return out


# ------------------------------------------------------------------------------- leaving out rungs


def rungs(compute: np.ndarray, factor: float, most: int = 8) -> list[np.ndarray]:
    """Runs by compute, smallest first: a rung is all within `factor` of its largest; neighbours joined to `most`."""
    order = np.argsort(compute, kind="stable")
    groups: list[list[int]] = []
    top = np.inf
    for i in order[::-1]:
        if compute[i] < top / factor:
            groups.append([])
            top = compute[i]
        groups[-1].append(int(i))
    groups = groups[::-1]
    parts = np.array_split(np.arange(len(groups)), min(most, len(groups)))
    return [np.sort(np.concatenate([groups[k] for k in part])).astype(int) for part in parts]


def leave_one_out(
    problem: Problem, found: Found, groups: Sequence[np.ndarray], estimator: str = "huber"
) -> list[tuple[int, np.ndarray] | None]:
    """(runs left out, theta) of a refit without each group; None where too few are left."""
    n = len(problem.log_loss)
    counts = np.ones((len(groups), n))
    for k, group in enumerate(groups):
        counts[k, group] = 0
    usable = _usable(problem, counts)
    theta, settled = refit(problem, found.basins[:1], counts[usable], np.random.default_rng(0), estimator)
    at = np.cumsum(usable) - 1
    return [(len(group), theta[at[k]]) if usable[k] and settled[at[k]] else None for k, group in enumerate(groups)]


def named(law: Law, ends: np.ndarray, estimate: np.ndarray) -> dict[str, Any]:
    """(2, P) in theta -> {name: [low, high]} in the law's own units, None where it isn't one of `estimate` (P,)."""
    return columns(law.values(ends), law.names, estimate)


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
    """Whether so many of the resamples asked for could be fitted that their spread means something."""
    return fitted >= max(2, asked / 2)


def exponent_samples(law: Law, samples: np.ndarray, flops: float) -> dict[str, np.ndarray]:
    """The exponents "a" and "b" of each resample near C = `flops`, each (R,)."""
    if law.exponents is None:
        return {}
    rows: list[Mapping[str, float]] = [
        law.exponents(dict(zip(law.names, map(float, row), strict=True)), flops) for row in samples
    ]
    return {name: np.array([row[name] for row in rows]) for name in ("a", "b")}
