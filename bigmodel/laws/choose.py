"""Which runs of a pool to do next, so that any law predicts a target region best: `choose`.

The law's parameters aren't known, and few runs leave several sets of them that fit. So an ensemble of sets is kept:
each fits the measured values with noise added, and is drawn to a point of its own, drawn from a normal prior over the
parameters' box. For a linear law these are draws from the posterior (Bardsley et al. 2014, Randomize-then-optimize);
for others each minimum has its members, which are weighted by how much worse than the best they fit. The ensemble's
predictions of the pool and of the target are then the slopes of a Bayesian linear design (`optimal.Design`), whose
parameters are the members' weights: no derivative of the law by the target is needed, and disagreement between minima
counts as variance. The prediction is the weighted mean of the members'.

Legend: S members, P parameters, m runs in the pool, n done, t rows of the target, o numbers that one run measures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bigmodel.errors import UsageError
from bigmodel.laws.forms import Law, Row
from bigmodel.laws.optimal import Design
from bigmodel.laws.solve import Problem, descend

MEMBERS = 48
SPREAD = 0.25  # standard deviation of the prior, as a part of the box
# Standard deviation before any run, relative to that of the values; it counts as so many runs.
NOISE, NOISE_RUNS = 0.2, 2.0
NEAR = 0.4  # a run weighs cost^NEAR: no law holds everywhere, and costly runs are closer to what is asked
POWER = 0.4  # candidates are taken by gain / cost^POWER
GROWTH = 0.4  # so much of the runs done is added before the ensemble is fitted again
COARSE = 2.0  # a design expects this times the noise: the law is wrong by more than its residuals show
FIRST = 0.3  # of the budget, for the runs before the first fit
STEPS, TOLERANCE = 25, 1e-4


@dataclass
class Family:
    """A law over rows of any columns.

    Attributes:
      values: theta (S, P), rows -> predictions (S, n, o) and their slopes (S, n, o, P).
      low, high: the box of the parameters (P,), which also sets the prior's width.
    """

    values: Callable[[np.ndarray, Row], tuple[np.ndarray, np.ndarray]]
    low: np.ndarray
    high: np.ndarray

    def bounds(self, *_: float) -> tuple[np.ndarray, np.ndarray]:
        """As `Law.bounds`."""
        return self.low, self.high


def family(law: Law) -> Family:
    """Of a `Law`, which predicts ln of its target; the box is three times as wide as its starts."""

    def values(theta: np.ndarray, rows: Row) -> tuple[np.ndarray, np.ndarray]:
        problem = Problem(law, rows, np.zeros(len(next(iter(rows.values())))), 1.0)
        value, slopes = problem.residuals(theta)
        return value[:, :, None], slopes.transpose(0, 2, 1)[:, :, None]

    starts, (low, high) = law.starts(), law.bounds()
    width = np.maximum(np.ptp(starts, axis=0), 0.5)
    return Family(values, np.maximum(low, starts.min(axis=0) - width), np.minimum(high, starts.max(axis=0) + width))


@dataclass
class Perturbed(Problem):
    """Least squares of the ensemble: residuals of the runs in units of the noise, then those of the prior.

    Attributes:
      noise, centre: what each member adds to the values (S, n o), and where its prior lies (S, P).
      scale: of the residuals (n o,).
    """

    noise: np.ndarray = None  # type: ignore[assignment]
    centre: np.ndarray = None  # type: ignore[assignment]
    scale: np.ndarray = None  # type: ignore[assignment]

    def of_candidates(self, part: slice | np.ndarray) -> Perturbed:
        return replace(self, noise=self.noise[part], centre=self.centre[part])

    def dual(self, theta: np.ndarray, second: bool = False) -> None:
        """None: a family gives its slopes itself."""

    def residuals(self, theta: np.ndarray, dual: Any = None) -> tuple[np.ndarray, np.ndarray]:
        law: Any = self.law  # a Family
        value, slopes = law.values(theta, self.row)
        runs = (value.reshape(len(theta), -1) - self.observed - self.noise) / self.scale
        slopes = slopes.reshape(len(theta), -1, theta.shape[1]).transpose(0, 2, 1) / self.scale
        width = SPREAD * (self.high - self.low)
        prior = np.broadcast_to(np.diag(1 / width), (len(theta), len(width), len(width)))
        # A power of zero may overflow; squares of what is left don't.
        runs, slopes = (np.clip(np.nan_to_num(x, nan=1e9), -1e9, 1e9) for x in (runs, slopes))
        return np.hstack([runs, (theta - self.centre) / width]), np.concatenate([slopes, prior], axis=2)


class Ensemble:
    """Parameter sets that could all be the law's, and what they predict of a pool and of a target."""

    def __init__(
        self, law: Family, pool: Row, cost: np.ndarray, target: Row, seed: int = 0, noise: float | None = None
    ):
        self.known = noise  # standard deviation of a run about the law; None: estimated
        self.law, self.pool, self.cost, self.target = law, pool, np.asarray(cost, float), target
        if not len(self.cost) or not (np.isfinite(self.cost) & (self.cost > 0)).all():
            raise UsageError("choose: each run of the pool needs a cost > 0")
        self.random = np.random.default_rng(seed)
        members, width = MEMBERS, law.high - law.low
        size = (members, len(law.low))
        # The first member is the fit itself, without noise.
        draws = SPREAD * self.random.standard_normal(size) * (np.arange(members) > 0)[:, None]
        self.centre = law.low + width * (0.5 + draws)
        self.theta = law.low + width * self.random.random(size)
        self.weights = np.full(members, 1 / members)
        self.noise, self.sigma = np.empty((members, 0, 0)), 0.0
        self.band = (-np.inf, np.inf)
        self.restarts = np.empty(0, int), self.theta[:0]  # members that fit badly, and where they start again

    def fit(self, done: Sequence[int], y: np.ndarray) -> None:
        """To the values y (n,) or (n, o) of the pool's runs `done`."""
        done, members = list(done), len(self.theta)
        y = np.asarray(y, float).reshape(len(done), -1)
        if not self.sigma:  # each run's noise is drawn once, so that members move no more than they must
            self.noise = self.random.standard_normal((members, len(self.cost), y.shape[1]))
            self.noise[0] = 0
        first, least = not self.sigma, max(NOISE * float(np.std(y)), 1e-6)
        self.sigma = self.known or self.sigma or least
        reach = max(float(np.ptp(y)), 0.1 * float(np.abs(y).mean()))
        self.band = y.min() - reach, y.max() + reach
        near = np.repeat((self.cost[done] / self.cost[done].max()) ** (NEAR / 2), y.shape[1])
        rows = {name: x[done] for name, x in self.pool.items()}
        prior = 1 / (SPREAD * (self.law.high - self.law.low)) ** 2
        self.theta[self.restarts[0]] = self.restarts[1]
        for _ in range(2 if first else 1):
            scale = self.sigma / near
            noise = self.noise[:, done].reshape(members, -1) * scale
            law: Any = self.law
            problem = Perturbed(law, rows, y.ravel(), 1e12, noise=noise, centre=self.centre, scale=scale)
            counts, steps = np.ones(len(scale) + len(prior)), STEPS * (2 if first else 1)
            self.theta, _, _ = descend(problem, self.theta, counts, steps, tolerance=TOLERANCE)
            residual, slopes = replace(problem, noise=0 * noise).residuals(self.theta)
            squares = np.sum((residual[:, : len(scale)] * self.sigma) ** 2, axis=1)
            best = int(np.argmin(squares))
            slope = slopes[best, :, : len(scale)] / np.sqrt(prior)[:, None]
            known = np.linalg.eigvalsh(slope @ slope.T).clip(0)
            determined = float(np.sum(known / (known + 1)))  # parameters
            free = max(len(scale) - determined, 0.0)
            self.sigma = self.known or float(np.sqrt((NOISE_RUNS * least**2 + squares[best]) / (NOISE_RUNS + free)))
        worse = (squares - squares[best]) / (2 * self.sigma**2)
        weights = np.exp(-np.maximum(worse - determined / 2, 0))  # the noise that it was given explains as much
        self.weights = weights / weights.sum()
        lost = np.flatnonzero(weights < 1e-3)
        fits = self.theta[self.random.choice(members, len(lost), p=self.weights)]
        anywhere = self.law.low + (self.law.high - self.law.low) * self.random.random(fits.shape)
        self.restarts = lost, np.where(self.random.random(len(lost))[:, None] < 0.5, fits, anywhere)

    def values(self, rows: Row) -> np.ndarray:
        """Predictions of the members (S, n, o), within a band about the measured values."""
        value = self.law.values(self.theta, rows)[0]
        return np.clip(np.where(np.isfinite(value), value, self.band[1]), *self.band)

    def predict(self, rows: Row | None = None) -> np.ndarray:
        """The weighted mean (n, o) of the members, of the target or of other rows."""
        return np.einsum("s,sno->no", self.weights, self.values(self.target if rows is None else rows))

    def design(self, among: np.ndarray) -> Design:
        """Of the pool's runs `among` for the target."""
        pool, target = self.values({name: x[among] for name, x in self.pool.items()}), self.values(self.target)
        parts = [(x - np.einsum("s,sno->no", self.weights, x)).T * np.sqrt(self.weights) for x in (pool, target)]
        scale = self.known or self.sigma * COARSE
        slopes, answers = parts[0].transpose(1, 0, 2) / scale, parts[1].reshape(-1, len(self.theta)) / scale
        return Design(slopes, self.cost[among], answers)

    def next(self, done: Sequence[int], budget: float, runs: int = 0) -> list[int]:
        """Runs of the pool to do after `done`, within the budget; runs: at most so many (0: a share of those done)."""
        free = np.setdiff1d(np.flatnonzero(self.cost <= budget * (1 + 1e-12)), done)
        if not len(done):
            outputs = self.values({name: x[:1] for name, x in self.pool.items()}).shape[2]
            return self._first(free, budget, runs or -(-len(self.law.low) // outputs) + 1)
        if not len(free):
            return []
        runs = runs or max(1, int(GROWTH * len(done)))
        chosen = self.design(free).greedy(np.eye(len(self.theta)), budget * (1 + 1e-12), runs, POWER)
        return [int(free[i]) for i in chosen]

    def _first(self, free: np.ndarray, budget: float, runs: int) -> list[int]:
        """Runs far from each other among those that leave most of the budget; else the cheapest."""
        cheap = free[self.cost[free] <= FIRST * budget / runs]
        if len(cheap) < runs:
            order = free[np.argsort(self.cost[free], kind="stable")]
            spent = np.cumsum(self.cost[order])
            few = (spent <= FIRST * budget) | ((spent <= budget) & (np.arange(len(order)) < 2))
            return [int(i) for i in order[few][:runs]]
        columns = np.column_stack([np.reshape(x, (len(x), -1)) for x in self.pool.values()]).astype(float)
        positive = (columns > 0).all(axis=0)
        columns[:, positive] = np.log(columns[:, positive])
        columns = columns[cheap]
        columns = (columns - columns.min(axis=0)) / np.maximum(np.ptp(columns, axis=0), 1e-12)
        chosen = [int(self.random.integers(len(cheap)))]
        while len(chosen) < runs:
            distance = ((columns[:, None] - columns[chosen]) ** 2).sum(axis=2).min(axis=1)
            chosen.append(int(np.argmax(distance)))
        return [int(cheap[i]) for i in chosen]


def choose(
    law: Law | Family,
    pool: Row,
    cost: np.ndarray,
    target: Row,
    budget: float,
    done: Sequence[int] = (),
    y: np.ndarray | None = None,
    runs: int = 0,
    seed: int = 0,
    noise: float | None = None,
) -> list[int]:
    """The pool's runs to do next, best first, so that the law fitted to all of them predicts the target best.

    Args:
      law: a `Law`, or a `Family` of any columns and any number of parameters.
      pool: the columns of the candidates, each (m,); cost: what each costs (m,), in any unit.
      target: the same columns of the rows to predict.
      budget: what the next runs may cost together.
      done: which of the pool are done; y: what they measured, (n,) or (n, o); of a `Law`, ln of its target.
      noise: standard deviation of a run about the law, where the law is trusted; None: estimated, and taken larger.
      runs: at most so many; 0: as many as are worth choosing before the law is fitted again.

    Raises:
      UsageError: a cost that isn't above 0, or values for other runs than those done.
    """
    given = 0 if y is None else len(y)
    if len(done) != given:
        raise UsageError(f"choose: {len(done)} runs are done, and {given} values given")
    ensemble = Ensemble(law if isinstance(law, Family) else family(law), pool, cost, target, seed, noise)
    if len(done):
        ensemble.fit(done, np.asarray(y))
    return ensemble.next(done, budget, runs)
