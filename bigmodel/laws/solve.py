"""Minimise a robust objective from thousands of starts at once.

Objective of a candidate theta (Hoffmann et al. 2022, arXiv:2203.15556, section 3.3, equation 3):

    sum over runs of  count * Huber_delta( ln L(theta) - ln L_observed ),
    Huber_delta(r) = r^2 / 2 if |r| <= delta, else delta (|r| - delta / 2).

The SUM, not the mean: Besiroglu et al. 2024 (arXiv:2404.10102) trace the error in the published fit to a mean, whose
small values stop the optimiser early.

Two curvatures share one damped loop (Levenberg 1944, Marquardt 1963). "irls" weighs each residual by
min(1, delta / |r|), which makes a quadratic that lies above the Huber function and touches it (Holland & Welsch 1977):
it moves safely from anywhere but converges linearly. "newton" differentiates the gradient: it converges
quadratically once close.

`above` < 1 weighs a run above the law less than one below it: bad luck and bad tuning only ever raise a loss.

Legend: S candidates, P parameters, n runs.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from bigmodel.laws.forms import Law, LogSum, Row

# Candidates moved together: 64 * 240 runs * 5 slopes * 8 bytes = 0.6 MB stays in a core's cache.
CHUNK_ELEMENTS = 64 * 240
SHRINK, GROW, LAMBDA_START, LAMBDA_MAX = 0.2, 5.0, 1e-2, 1e12
TOLERANCE = 1e-13  # of the objective: a smaller gain is rounding
DIFFERENCE = 1e-6  # step of finite differences: small against delta = 1e-3, large against float64's 1e-16


@dataclass
class Problem:
    """A law, the runs and the objective.

    Attributes:
      row: columns of the runs, each (n,).
      log_loss: ln of the observed target, (n,).
      delta: Huber's threshold, in units of ln L; or one per candidate, (S, 1).
      above: weight of a run that lies above the law, relative to one below it.
      estimator: "huber", the sum of Huber losses; or "likelihood", see `search.free_scale`.
      shift, x_shift: move the starts and the bounds to the size of the target and of the law's first column, see
        Law.starts.
      fixed: (P,) which parameters stay where they start; None: none.
    """

    law: Law
    row: Row
    log_loss: np.ndarray
    delta: float | np.ndarray
    above: float = 1.0
    estimator: str = "huber"
    shift: float = 0.0
    x_shift: float = 0.0
    fixed: np.ndarray | None = None
    low: np.ndarray = field(init=False)
    high: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.low, self.high = self.law.bounds(self.shift, self.x_shift)

    def __len__(self) -> int:
        """How many runs."""
        return len(self.log_loss)

    def of_runs(self, part: np.ndarray) -> Problem:
        """The same problem for a part of the runs."""
        return replace(self, row={name: x[part] for name, x in self.row.items()}, log_loss=self.log_loss[part])

    def of_candidates(self, part: slice | np.ndarray) -> Problem:
        """The same problem for a part of the candidates."""
        return replace(self, delta=self.delta[part]) if isinstance(self.delta, np.ndarray) else self

    def starts(self) -> np.ndarray:
        """The law's starts, (S, P), moved to the size of these data."""
        return self.law.starts(self.shift, self.x_shift)

    def residuals(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """theta (S, P) -> ln predicted - ln observed (S, n), and its slopes (S, P, n)."""
        columns, form = theta.T[:, :, None], self.law.form
        if isinstance(form, LogSum):
            value, slopes = form.slopes(columns, self.row)
            return value - self.log_loss, slopes
        value = form(columns, self.row)
        slopes = np.empty((theta.shape[0], theta.shape[1], value.shape[1]))
        for p in range(theta.shape[1]):
            h = np.zeros_like(columns)
            h[p] = DIFFERENCE * (1 + np.abs(columns[p]))
            slopes[:, p] = (form(columns + h, self.row) - form(columns - h, self.row)) / (2 * h[p])
        return value - self.log_loss, slopes

    def huber(self, residual: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Objective (S,) of residuals (S, n); a candidate that isn't finite costs infinity."""
        size = np.abs(residual)
        inner = np.minimum(size, self.delta)
        weights = np.broadcast_to(self.weights(residual, counts), size.shape)
        total = np.einsum("sn,sn->s", inner * (size - 0.5 * inner), weights)
        return np.where(np.isfinite(total), total, np.inf)

    def weights(self, residual: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """What each run weighs, (S, n) or (1, n): a run above the law has ln predicted - ln observed < 0."""
        return counts if self.above == 1 else np.where(residual < 0, self.above * counts, counts)

    def gradient(self, residual: np.ndarray, slopes: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """(S, P)"""
        pull = np.clip(residual, -self.delta, self.delta) * self.weights(residual, counts)
        return np.matmul(slopes, pull[:, :, None])[:, :, 0]

    def irls(self, residual: np.ndarray, slopes: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Gauss-Newton curvature of the weighted squares, (S, P, P)."""
        weight = self.delta / np.maximum(np.abs(residual), self.delta) * self.weights(residual, counts)
        return np.matmul(slopes * weight[:, None, :], slopes.transpose(0, 2, 1))

    def newton(self, theta: np.ndarray, residual: np.ndarray, slopes: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Second derivatives of the objective, (S, P, P): exact for a `LogSum`, else by differences."""
        if isinstance(self.law.form, LogSum):
            weight = self.weights(residual, counts)
            inner = (np.abs(residual) <= self.delta) * weight
            pull = np.clip(residual, -self.delta, self.delta) * weight
            bent = self.law.form.curvature(theta.T[:, :, None], self.row, slopes, pull)
            return bent + np.matmul(slopes * inner[:, None, :], slopes.transpose(0, 2, 1))
        size, names = theta.shape
        step = np.full(size, DIFFERENCE)
        if isinstance(self.delta, np.ndarray):  # a kink narrower than the step would be stepped over
            step = np.minimum(step, 1e-3 * self.delta[:, 0])
        out = np.empty((size, names, names))
        for p in range(names):
            h = np.zeros((size, names))
            h[:, p] = step
            up, down = (self.gradient(*self.residuals(theta + s * h), counts) for s in (1, -1))
            out[:, p] = (up - down) / (2 * step[:, None])
        return 0.5 * (out + out.transpose(0, 2, 1))


Curvature = Literal["irls", "newton"]


def descend(
    problem: Problem,
    theta: np.ndarray,
    counts: np.ndarray,
    steps: int,
    curvature: Curvature = "irls",
    tolerance: float = TOLERANCE,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Moves each candidate downhill.

    Args:
      theta: starts (S, P).
      counts: how often each run counts, (n,) or one row per candidate (S, n).
      steps: most steps; a candidate stops earlier when it gains less than `tolerance` of its objective, or can't gain.

    Returns:
      theta (S, P), objective (S,), settled (S,): false where the steps ran out.
    """
    theta = np.clip(theta, problem.low, problem.high)
    objective, settled = np.empty(len(theta)), np.empty(len(theta), dtype=bool)
    chunk = max(1, CHUNK_ELEMENTS // max(1, len(problem)))
    for i in range(0, len(theta), chunk):
        part = slice(i, i + chunk)
        own = counts[part] if counts.ndim == 2 else counts[None]
        theta[part], objective[part], settled[part] = _descend(
            problem.of_candidates(part), theta[part], own, steps, curvature, tolerance
        )
    return theta, objective, settled


def _descend(
    problem: Problem, theta: np.ndarray, counts: np.ndarray, steps: int, curvature: Curvature, tolerance: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    with np.errstate(over="ignore", invalid="ignore"):
        theta = theta.copy()
        residual, slopes = problem.residuals(theta)
        objective = problem.huber(residual, counts)
        settled = np.zeros(len(theta), dtype=bool)
        damping = np.full(len(theta), LAMBDA_START)
        final_objective, final_theta = objective.copy(), theta.copy()
        index = np.arange(len(theta))  # the candidates that still move; the others are left out of the arrays
        for _ in range(steps):
            step = _step(problem, theta, residual, slopes, counts, damping, curvature)
            trial = np.clip(theta + step, problem.low, problem.high)
            new_residual, new_slopes = problem.residuals(trial)
            new_objective = problem.huber(new_residual, counts)
            better = new_objective < objective
            gain = np.where(better, objective - new_objective, 0.0)
            # A small gain under strong damping says nothing; under weak damping the step was nearly the full one.
            stop = (better & (gain <= tolerance * objective) & (damping < 1)) | (~better & (damping > LAMBDA_MAX))
            stop |= ~better & (np.abs(trial - theta).max(axis=1) < 1e-13)
            damping = np.where(better, np.maximum(damping * SHRINK, 1e-12), damping * GROW)
            theta[better], objective[better] = trial[better], new_objective[better]
            residual[better], slopes[better] = new_residual[better], new_slopes[better]
            if stop.any():
                final_theta[index], final_objective[index] = theta, objective
                settled[index[stop]] = True
                keep = ~stop
                index, theta, objective, damping = index[keep], theta[keep], objective[keep], damping[keep]
                residual, slopes = residual[keep], slopes[keep]
                counts = counts[keep] if len(counts) > 1 else counts
                problem = problem.of_candidates(keep)
                if not len(index):
                    break
        final_theta[index], final_objective[index] = theta, objective
    return final_theta, final_objective, settled


def _step(
    problem: Problem,
    theta: np.ndarray,
    residual: np.ndarray,
    slopes: np.ndarray,
    counts: np.ndarray,
    damping: np.ndarray,
    curvature: Curvature,
) -> np.ndarray:
    """The damped step of each candidate, (S, P); a parameter that presses against its bound stays there."""
    slope = problem.gradient(residual, slopes, counts)
    square = problem.irls(residual, slopes, counts)
    held = ((theta <= problem.low) & (slope > 0)) | ((theta >= problem.high) & (slope < 0))
    held = held if problem.fixed is None else held | problem.fixed
    slope = np.where(held, 0.0, slope)
    # Units of equal curvature, so that one damping suits ln A near 6 and alpha near 0.3.
    unit = 1 / np.sqrt(np.maximum(np.einsum("spp->sp", square), 1e-30))
    free = np.where(held, 0.0, 1.0)
    eye = np.eye(theta.shape[1])
    matrix = square if curvature == "irls" else problem.newton(theta, residual, slopes, counts)
    matrix = matrix * (unit * free)[:, :, None] * (unit * free)[:, None, :] + eye * (1 - free)[:, :, None]
    usable = np.isfinite(matrix).all(axis=(1, 2)) & np.isfinite(slope).all(axis=1)
    matrix, right = np.where(usable[:, None, None], matrix, eye), np.where(usable[:, None], slope * unit, 0.0)
    if curvature == "irls":
        matrix = matrix + eye * (damping + 1e-14)[:, None, None]
        return -np.linalg.solve(matrix, right[:, :, None])[:, :, 0] * unit
    values, vectors = np.linalg.eigh(matrix)
    # Absolute values walk negative curvature downhill: saddle-free Newton (Dauphin et al. 2014, arXiv:1406.2572).
    inner = np.einsum("spk,sp->sk", vectors, right) / (np.abs(values) + damping[:, None] + 1e-14)
    return -np.einsum("spk,sk->sp", vectors, inner) * unit
