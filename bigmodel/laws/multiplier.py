"""The compute multiplier of one recipe, family or data set over another, with intervals and a band over scales.

Each set of runs gets a law, and the law a frontier: L*(C), the least loss that it gives for C FLOPs under C = 6 N D
(or, for a law of C alone, the law itself). The multiplier m of B over A at C is how much more compute A needs for the
loss that B reaches with C:

    L_A*(m C) = L_B*(C);   m > 1: B is better.

An interval holds every multiplier that some pair of laws gives which fit the runs about as well as the best (profile
likelihood; Bates & Watts 1988, "Nonlinear Regression Analysis", section 6.1):

    T_A^2 + T_B^2 <= t^2,   T^2 = (n - P) (Q(theta) / min Q - 1),   Q the Huber sum of the residuals of ln L,

t the quantile of Student's distribution. So few runs are not taken for many, and an end is unbounded where the runs
allow that A never reaches B's loss. Percentiles of a bootstrap know of no degrees of freedom. The band over all scales
and all inputs has the quantile of the largest |t| over them in place of t. docs/results.md has how often both hold
planted multipliers.

Legend: N parameters of the model, D tokens or examples, C training FLOPs, L loss; P parameters of the law, n runs, K
scales (values of C), S parameter sets, J points of a profile, R simulated deviations; A one input, B another.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
from scipy import stats

from bigmodel.errors import UsageError
from bigmodel.laws import checks, extrapolate, search
from bigmodel.laws.forms import FLOPS_PER_PARAM_TOKEN, Law
from bigmodel.laws.search import SAME_RESIDUAL
from bigmodel.laws.solve import Problem, descend

LEVEL = 0.95
WIDE = 2.0  # Huber's threshold in deviations: 99 % as efficient as least squares on normal noise (Huber 1964)
STRIDE, STRIDES = 0.5, 10  # of T along a profile, and how many each way
REPEATS = 3  # of a stride: the best N moves with the law
LEAST_FLOOR = 0.03  # of the least loss
STIFF = 100.0  # runs that the pseudo-run which moves a law along its profile weighs as, per run
ANGLES = 7  # how the distance from the best is shared between the two laws
SIMULATED = 4000
STEP = 0.12  # of ln C in the table that is inverted: m is off by under 0.1 %
LEAST, MOST = 1e-6, 1e12  # multipliers outside count as 0 and as unbounded
UNKNOWN = 10.0  # standard deviation of theta before any run, as in design.py


@dataclass
class Side:
    """One input, fitted.

    Attributes:
      data: columns of its runs; n_runs: how many runs these points are of.
      scatter: standard deviation of ln L about the law.
      tested: (gap, mean |error|) of the largest gap in compute that the law was tested over by leaving runs out.
      missed: what the law misses of the runs, a line; "": nothing that shows.
      spread: (P, P) covariance of theta in linear theory.
    """

    name: str
    frame: pd.DataFrame
    data: dict[str, np.ndarray]
    problem: Problem
    theta: np.ndarray
    n_runs: int
    scatter: float
    tested: tuple[float, float] | None = None
    missed: str = ""
    warnings: list[str] = field(default_factory=list)

    @property
    def law(self) -> Law:
        return self.problem.law

    @property
    def free(self) -> int:
        """Degrees of freedom."""
        return max(self.n_runs - len(self.theta), 1)

    @property
    def spread(self) -> np.ndarray:
        return np.linalg.inv(self.information() + np.eye(len(self.theta)) / UNKNOWN**2)

    def information(self) -> np.ndarray:
        """(P, P): what the runs tell of theta; points of one run tell as much as that many runs."""
        slopes = self.problem.residuals(self.theta[None])[1][0]
        return self.n_runs / len(self.problem) * slopes @ slopes.T / max(self.scatter, SAME_RESIDUAL) ** 2


# ------------------------------------------------------------------------------------------- fits


def side(name: str, frame: pd.DataFrame, law: Law) -> Side:
    """Fits one input: the law's grid of starts, then Huber's sum with a threshold of WIDE deviations.

    Raises:
      UsageError: too few runs, with what it takes.
    """
    data = checks.columns_of(frame, law)
    groups, n_runs, warnings = checks.runs_of(frame, (*law.columns, law.target))
    least = max(checks.MIN_POINTS, len(law.names) + 2)
    if n_runs < least:
        other = "" if law.columns == ("C",) else "; --law=henighan:x=C, a law of C alone, needs 5"
        raise UsageError(
            f"compare: {name} has {n_runs} usable runs: law {law.name!r} needs {least}, better 12: 4 sizes, each at 3 "
            f"amounts of data{other}"
        )
    try:
        checks.enough(data, law, "compare by")
    except UsageError as e:
        raise UsageError(f"compare: {name}: {e}") from e
    problem = problem_of(law, data)
    problem, theta, scatter = optimum(problem, search.search(problem).basins, n_runs)
    warnings = [*frame.attrs.get("warnings", []), *checks.design_warnings(data, law), *warnings]
    if groups is not None and n_runs < len(problem):
        warnings.append(f"{len(problem)} points count as {n_runs} runs")
    held = extrapolate.holdout(problem, data, 3)[0]
    tested = max(((h["flops_gap"], h["mean_abs_rel_error"]) for h in held), default=None)
    if repeats := _seeds(frame, law):
        deviation, pairs = repeats
        if stats.f.sf((scatter / max(deviation, 1e-12)) ** 2, n_runs - len(law.names), pairs) < 0.01:
            warnings.append(
                f"runs differ from the law by {100 * scatter:.2g} %, repeats of one configuration by "
                f"{100 * deviation:.2g} %: the law misses part of these runs, which no interval counts"
            )
    if scatter < SAME_RESIDUAL:
        warnings.append("these runs lie on the law itself: they have no scatter to make an interval of")
    missed = "" if n_runs < len(problem) else _pattern(problem, theta)
    return Side(name, frame, data, problem, theta, n_runs, scatter, tested, missed, [missed, *warnings][not missed :])


def _pattern(problem: Problem, theta: np.ndarray) -> str:
    """Whether residuals of neighbours, in C and then in size, are alike: the law then misses the runs' shape.

    The ratio of von Neumann 1941 (Annals of Mathematical Statistics 12:4): the mean square of successive differences
    over twice the variance is 1 with a deviation of about n^-1/2 where residuals are independent.
    """
    residual, row = problem.residuals(theta[None])[0][0], problem.row
    c = row["C"] if "C" in row else FLOPS_PER_PARAM_TOKEN * row["N"] * row["D"]
    budget = np.round(np.log(c) / 0.2)  # runs of one compute to 20 %
    ordered = residual[np.lexsort((row[problem.law.columns[0]], budget))]
    n = len(ordered)
    ratio = float((np.diff(ordered) ** 2).mean() / (2 * ordered.var())) if ordered.var() > SAME_RESIDUAL**2 else 1.0
    if n < 10 or ratio > 1 - 3 / math.sqrt(n):
        return ""
    return (
        f"the law misses the shape of these runs: neighbours in C and N miss it alike (von Neumann's ratio {ratio:.2f} "
        "of 1), so no verdict; leave out runs far from the best of their compute, or try another --law"
    )


def problem_of(law: Law, data: Mapping[str, np.ndarray]) -> Problem:
    """As search.problem_of, with a floor of at least LEAST_FLOOR times the least loss.

    The fit is over the floor's logarithm, in which nothing slopes near 0: a profile would be caught there.
    """
    shift = search.problem_of(law, data, 1e-3).shift
    low = math.log(LEAST_FLOOR * float(np.min(data[law.target]))) - shift
    kept = tuple(replace(p, low=max(p.low, low)) if p.role == "floor" and p.log else p for p in law.parameters)
    return search.problem_of(replace(law, parameters=kept), data, 1e-3)


def optimum(problem: Problem, starts: np.ndarray, runs: int) -> tuple[Problem, np.ndarray, float]:
    """(the problem with Huber's threshold at WIDE deviations, the best theta from `starts` (S, P), the deviation).

    The published threshold of 1e-3 makes a median regression of noisy runs, which wastes a third of them.
    """
    size = problem.starts().shape[1]
    ones, free = np.ones(len(problem)), max(runs - size, 1)
    for _ in range(2):
        thetas, objective, _ = descend(problem, starts, ones, 200)
        thetas, objective, _ = descend(problem, thetas, ones, 100, "newton")
        theta = thetas[np.argmin(objective)]
        # As many residuals as there are parameters can be made small: the others tell the deviation.
        sizes = np.sort(np.abs(problem.residuals(theta[None])[0][0]))[-max(len(problem) - size, 1) :]
        problem = replace(problem, delta=max(WIDE * float(np.median(sizes)) / 0.6745, SAME_RESIDUAL))
        starts = thetas
    scatter = math.sqrt(2 * float(objective.min()) / len(problem) * runs / free)
    return problem, theta, scatter


def _seeds(frame: pd.DataFrame, law: Law) -> tuple[float, int] | None:
    """(standard deviation of ln L over runs of one configuration, degrees of freedom); None without repeats."""
    groups = np.log(frame[law.target]).groupby([frame[c] for c in law.columns])
    freedom = int((groups.size() - 1).sum())
    return (math.sqrt(float((groups.var() * (groups.size() - 1)).sum()) / freedom), freedom) if freedom else None


# ------------------------------------------------------------------------------------ multipliers


@np.errstate(all="ignore")
def frontier(law: Law, thetas: np.ndarray, log_c: np.ndarray, ends: tuple[float, float]) -> np.ndarray:
    """ln L* (R, K) of each parameter set at ln C (K,); nan where a law of N and D has no optimum.

    ln N_opt is a line in ln C through its values at `ends`: exact for the laws of forms/loss.py, whose optima are
    power laws. Off the optimum the loss errs by the square of that of ln N.
    """
    if law.columns == ("C",):
        return law.form(thetas.T[:, :, None], {"C": np.exp(log_c)})
    low, high = ends
    optima = [[law.optimum(law.named(t), math.exp(c))[0] for c in ends] for t in thetas] if law.optimum else []
    best = np.array(optima, dtype=np.float64).reshape(-1, 2)
    first, last = np.log(np.where(best > 0, best, np.nan)).T[:, :, None]
    log_n = first + (last - first) * (log_c - low) / (high - low)
    row = {"N": np.exp(log_n), "D": np.exp(log_c - math.log(FLOPS_PER_PARAM_TOKEN) - log_n)}
    return law.form(thetas.T[:, :, None], row)


def invert(reached: np.ndarray, table: np.ndarray, wanted: float) -> float:
    """ln C at which ln L* (G,), known at ln C `table` (G,), comes down to `wanted`; -inf, inf: outside the table.

    What a law lets rise again (a broken one) is left as low as it was."""
    if np.isnan(wanted) or np.isnan(reached).any():
        return math.nan
    return float(np.interp(-wanted, np.maximum.accumulate(-reached), table, left=-np.inf, right=np.inf))


def table_of(log_c: np.ndarray) -> np.ndarray:
    """ln C from LEAST below to MOST above `log_c` (K,), which it holds."""
    return np.union1d(np.arange(log_c[0] + math.log(LEAST), log_c[-1] + math.log(MOST), STEP), log_c)


@dataclass
class Profile:
    """How far an input's runs let its frontier move: at each scale the laws that fit best with a given loss there.

    Attributes:
      log_c: (K,) the scales; thetas: (K, J, P), from the lowest loss to the highest, the best in the middle; t: (K, J)
        T of each, negative below the best.
      slopes: (K, P) of ln L* in theta.
    """

    side: Side
    log_c: np.ndarray
    thetas: np.ndarray
    t: np.ndarray
    slopes: np.ndarray

    def at(self, t: np.ndarray) -> np.ndarray:
        """theta (K, F, P) at T = t (F,); where the runs don't limit the loss so far out, the furthest."""
        paths = zip(self.t, self.thetas, strict=True)
        return np.array([np.array([np.interp(t, own, path) for path in thetas.T]).T for own, thetas in paths])


@np.errstate(all="ignore")
def profile(side: Side, log_c: np.ndarray) -> Profile:
    """Follows the profiles of ln L* at every scale, both ways at once.

    A run is added at the best N and D of the scale, with a loss a little lower or higher than the law's: the fit to
    both is the best fit to the runs among the laws with that loss. From there it goes on, by steps of about STRIDE.
    """
    law, theta, problem = side.law, side.theta, side.problem
    ends, size, ones = (float(log_c[0]), float(log_c[-1])), len(problem), np.ones(len(problem))
    step = 1e-4 * (1 + np.abs(theta))
    up, down = (frontier(law, theta + s * np.diag(step), log_c, ends) for s in (1, -1))
    slopes = ((up - down) / (2 * step[:, None])).T
    if not np.isfinite(slopes).all():
        raise UsageError(f"compare: the law of {side.name} has no optimum: vary N and D apart, or --law=henighan:x=C")
    deviation = np.sqrt(np.einsum("kp,pq,kq->k", slopes, side.spread, slopes))
    sign, own_c = np.repeat([-1.0, 1.0], len(log_c)), np.tile(log_c, 2)
    move, now = STRIDE * np.tile(deviation, 2), np.repeat(theta[None], len(sign), axis=0)
    t, kept, reached = np.zeros(len(sign)), [now], [np.zeros(len(sign))]
    least = problem.huber(problem.residuals(theta[None])[0], ones)[0] + size * SAME_RESIDUAL**2 / 2
    counts = np.concatenate([np.ones((len(sign), size)), STIFF * size * np.eye(len(sign))], axis=1)
    for _ in range(STRIDES):
        found, goal = now, None
        for _ in range(REPEATS):  # the best N of the scale moves with the law
            added = optima(law, found, own_c)
            lost = ~np.all([np.isfinite(column) for column in added.values()], axis=0)  # without an optimum: it ends
            added = {name: np.where(lost, 1.0, column) for name, column in added.items()}
            if goal is None:
                goal = np.diag(law.form(now.T[:, :, None], added)) + sign * move
            row = {name: np.concatenate([problem.row[name], added[name]]) for name in law.columns}
            both = replace(problem, row=row, observed=np.concatenate([problem.observed, goal]))
            found, _, _ = descend(both, found, counts, 5)
            found, _, _ = descend(both, found, counts, 10, "newton")
        cost = problem.huber(problem.residuals(found)[0], ones)
        new = np.sqrt(side.free * np.maximum(cost / least - 1, 0))
        now = np.where(lost[:, None] | ~np.isfinite(new)[:, None], now, found)
        gain = np.where(lost | ~np.isfinite(new), 0.0, np.maximum(new - t, 0))
        move = move * np.clip(STRIDE / np.maximum(gain, 1e-9), 0.3, 3.0)
        t = t + gain
        kept.append(now)
        reached.append(t)
    # From the lowest loss to the highest: backwards down the first half, then up the second.
    low, high = slice(0, len(log_c)), slice(len(log_c), None)
    thetas = np.array([*(k[low] for k in kept[:0:-1]), *(k[high] for k in kept)])
    signed = np.array([*(-r[low] for r in reached[:0:-1]), *(r[high] for r in reached)])
    return Profile(side, log_c, thetas.transpose(1, 0, 2), signed.T, slopes)


def optima(law: Law, thetas: np.ndarray, log_c: np.ndarray) -> dict[str, np.ndarray]:
    """The law's columns at the optimum of each parameter set (S, P) at its own ln C (S,)."""
    c = np.exp(log_c)
    if law.columns == ("C",) or not law.optimum:
        return {"C": c}
    n = np.array([law.optimum(law.named(t), float(flops))[0] for t, flops in zip(thetas, c, strict=True)])
    n = np.where(n > 0, n, np.nan)
    return {"N": n, "D": c / (FLOPS_PER_PARAM_TOKEN * n)}


def multipliers(a: Profile, b: Profile, reach: float) -> np.ndarray:
    """ln m of B over A: (3, K), the estimate, and the ends of all within T_A^2 + T_B^2 <= reach^2."""
    log_c, table = a.log_c, table_of(a.log_c)
    ends = (float(log_c[0]), float(log_c[-1]))
    best = frontier(a.side.law, a.side.theta[None], table, ends)[0]
    wanted = frontier(b.side.law, b.side.theta[None], log_c, ends)[0]
    estimate = np.array([invert(best, table, w) for w in wanted]) - log_c
    angle = np.linspace(0, math.pi / 2, ANGLES)
    out = [estimate]
    for sign in (-1, 1):  # the lowest and the highest m: A's loss low and B's high, and the other way round
        thetas_a, thetas_b = a.at(sign * reach * np.cos(angle)), b.at(-sign * reach * np.sin(angle))
        curves = frontier(a.side.law, thetas_a.reshape(-1, thetas_a.shape[-1]), table, ends).reshape(
            *thetas_a.shape[:2], -1
        )
        losses = frontier(b.side.law, thetas_b.reshape(-1, thetas_b.shape[-1]), log_c, ends).reshape(
            *thetas_b.shape[:2], -1
        )
        end = sign * estimate
        for k in range(len(log_c)):
            near = np.clip(estimate[k] + log_c[k], log_c[0], log_c[-1])
            beside = np.argsort(np.abs(log_c - near), kind="stable")[:3]  # A's law is moved where it meets B's loss
            for i in {k, *beside.tolist()}:
                found = [invert(curves[i, f], table, losses[k, f, k]) - log_c[k] for f in range(ANGLES)]
                end[k] = np.nanmax([end[k], *(sign * np.array(found))])
        out.append(sign * end)
    return np.array(out)


def largest_t(pairs: Sequence[tuple[Profile, Profile]], seed: int = 0) -> float:
    """The 95 % quantile of the largest |t| over all scales and pairs, in linear theory, by simulation."""
    rng = np.random.default_rng(seed)
    drawn: dict[str, np.ndarray] = {}
    for one in {id(p): p for pair in pairs for p in pair}.values():
        root = np.linalg.cholesky(one.side.spread)
        drawn[one.side.name] = rng.standard_normal((SIMULATED, len(root))) @ root.T @ one.slopes.T
    most = np.zeros(SIMULATED)
    for a, b in pairs:
        moved = drawn[b.side.name] - drawn[a.side.name]
        free = freedom(a, b)
        t = moved / np.maximum(moved.std(axis=0), 1e-300) / np.sqrt(rng.chisquare(free, (SIMULATED, 1)) / free)
        most = np.maximum(most, np.abs(t).max(axis=1))
    return float(np.quantile(most, LEVEL))


def freedom(a: Profile, b: Profile) -> float:
    """Degrees of freedom for a difference: the smaller, which never makes an interval too narrow (Scheffe 1970, Journal
    of the American Statistical Association 65:332); one input's runs may be all that leaves it open."""
    return float(min(a.side.free, b.side.free))
