"""Minimise a robust objective from thousands of starts at once.

Objective of a candidate theta (Hoffmann et al. 2022, arXiv:2203.15556, section 3.3, equation 3):

    sum over runs of  count * Huber_delta( ln L(theta) - ln L_observed ),
    Huber_delta(r) = r^2 / 2 if |r| <= delta, else delta (|r| - delta / 2),

or of L(theta) - L_observed, "linear", for targets that may be zero or negative.

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

from bigmodel.laws import duals
from bigmodel.laws.duals import Dual
from bigmodel.laws.forms import Law, Row

# Candidates moved together: 64 * 240 runs * 5 slopes * 8 bytes = 0.6 MB stays in a core's cache.
CHUNK_ELEMENTS = 64 * 240
SHRINK, GROW, LAMBDA_START, LAMBDA_MAX = 0.2, 5.0, 1e-2, 1e12
# Allocated, untouched, and freed: from then on glibc's malloc keeps freed blocks of up to this size. Else the temporary
# arrays of each step go back to the kernel and fault in anew, half of a search's time.
np.empty(16 * 2**20, dtype=np.uint8)
TOLERANCE = 1e-13  # of the objective: a smaller gain is rounding
DIFFERENCE = 1e-6  # step of finite differences: small against delta = 1e-3, large against float64's 1e-16


@dataclass
class Problem:
    """A law, the runs and the objective.

    Attributes:
      row: columns of the runs, each (n,).
      observed: ln of the observed target, or with linear residuals the target itself, (n,).
      delta: Huber's threshold, in units of the residuals; or one per candidate, (S, 1).
      above: weight of a run that lies above the law, relative to one below it.
      estimator: "huber", the sum of Huber losses; or "likelihood", see `search.free_scale`.
      shift, x_shift: move the starts and the bounds to the size of the target and of the law's first column, see
        Law.starts.
      fixed: (P,) which parameters stay where they start; None: none.
      residuals_of: "log", ln predicted - ln observed; or "linear", predicted - observed.
      size: the unit in which residuals are small or large: 1 of logarithms, else the observed target's deviation.
    """

    law: Law
    row: Row
    observed: np.ndarray
    delta: float | np.ndarray
    above: float = 1.0
    estimator: str = "huber"
    shift: float = 0.0
    x_shift: float = 0.0
    fixed: np.ndarray | None = None
    residuals_of: str = "log"
    size: float = 1.0
    low: np.ndarray = field(init=False)
    high: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.low, self.high = self.law.bounds(self.shift, self.x_shift)

    def __len__(self) -> int:
        """How many runs."""
        return len(self.observed)

    def of_runs(self, part: np.ndarray) -> Problem:
        """The same problem for a part of the runs."""
        return replace(self, row={name: x[part] for name, x in self.row.items()}, observed=self.observed[part])

    def members(self) -> list[Problem]:
        """The problem of each member of an average."""
        return [replace(self, law=law) for law in self.law.members]

    def of_candidates(self, part: slice | np.ndarray) -> Problem:
        """The same problem for a part of the candidates."""
        return replace(self, delta=self.delta[part]) if isinstance(self.delta, np.ndarray) else self

    def starts(self) -> np.ndarray:
        """The law's starts, (S, P), moved to the size of these data."""
        return self.law.starts(self.shift, self.x_shift)

    @property
    def bent(self) -> bool:
        """Whether residuals are of e^form: linear ones of a law that predicts a logarithm."""
        return self.residuals_of == "linear" and not self.law.linear

    def target(self, value: np.ndarray) -> np.ndarray:
        """The target, of a value on the residuals' scale."""
        return np.exp(value) if self.residuals_of == "log" else value

    def dual(self, theta: np.ndarray, second: bool = False) -> Dual | None:
        """What is predicted for theta (S, P), a logarithm or not, with its slopes; None: the form takes no duals."""
        try:
            value = self.law.form(duals.variables(theta.T[:, :, None], second), self.row)
            return None if not isinstance(value, Dual) else np.exp(value) if self.bent else value  # type: ignore
        except Exception:  # of any kind, in a user's code; where there is another mistake, the plain form shows it
            return None

    def residuals(self, theta: np.ndarray, dual: Dual | None = None) -> tuple[np.ndarray, np.ndarray]:
        """theta (S, P) -> predicted - observed (S, n), of logarithms or not, and its slopes (S, P, n)."""
        dual = dual or self.dual(theta)
        shape = (*theta.shape, len(self))
        if isinstance(dual, Dual):
            return dual.value - self.observed, duals.stacked(dual, shape)

        def plain(columns: np.ndarray) -> np.ndarray:
            value = self.law.form(columns, self.row)
            return np.exp(value) if self.bent else value

        columns, slopes = theta.T[:, :, None], np.empty(shape)
        for p in range(theta.shape[1]):
            h = np.zeros_like(columns)
            h[p] = DIFFERENCE * (1 + np.abs(columns[p]))
            slopes[:, p] = (plain(columns + h) - plain(columns - h)) / (2 * h[p])
        return plain(columns) - self.observed, slopes

    def huber(self, residual: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Objective (S,) of residuals (S, n); a candidate that isn't finite costs infinity."""
        size = np.abs(residual)
        inner = np.minimum(size, self.delta)
        weights = np.broadcast_to(self.weights(residual, counts), size.shape)
        total = np.einsum("sn,sn->s", inner * (size - 0.5 * inner), weights)
        return np.where(np.isfinite(total), total, np.inf)

    def weights(self, residual: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """What each run weighs, (S, n) or (1, n): a run above the law has a residual below 0."""
        return counts if self.above == 1 else np.where(residual < 0, self.above * counts, counts)

    def gradient(self, residual: np.ndarray, slopes: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """(S, P)"""
        pull = np.clip(residual, -self.delta, self.delta) * self.weights(residual, counts)
        return np.matmul(slopes, pull[:, :, None])[:, :, 0]

    def irls(self, residual: np.ndarray, slopes: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Gauss-Newton curvature of the weighted squares, (S, P, P)."""
        weight = self.irls_weights(residual, counts)
        return np.matmul(slopes * weight[:, None, :], slopes.transpose(0, 2, 1))

    def irls_weights(self, residual: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Weights (S, n) of the squares that touch the Huber functions at these residuals."""
        return self.delta / np.maximum(np.abs(residual), self.delta) * self.weights(residual, counts)

    def newton(
        self, theta: np.ndarray, residual: np.ndarray, slopes: np.ndarray, counts: np.ndarray, dual: Dual | None = None
    ) -> np.ndarray:
        """Second derivatives of the objective, (S, P, P), by differences where the form takes no duals."""
        dual = dual or self.dual(theta, second=True)
        if isinstance(dual, Dual):
            weight = self.weights(residual, counts)
            pull = np.clip(residual, -self.delta, self.delta) * weight
            return duals.hessian(dual, pull, (np.abs(residual) <= self.delta) * weight, slopes)
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
    objective, settled = np.full(len(theta), np.inf), np.zeros(len(theta), dtype=bool)
    chunk = max(1, CHUNK_ELEMENTS // max(1, len(problem)))
    index, waiting = np.arange(0), 0  # the candidates that move, and the first that hasn't started
    moving: list[np.ndarray] = []  # what is known of them
    with np.errstate(over="ignore", invalid="ignore"):
        while len(index) or waiting < len(theta):
            if waiting < len(theta) and 2 * len(index) <= chunk:  # those that settled make room for others
                new = np.arange(waiting, min(waiting + chunk - len(index), len(theta)))
                waiting += len(new)
                own = counts[new] if counts.ndim == 2 else counts[None]
                local = _local(problem.of_candidates(new), theta[new], own, curvature)
                start = [new, np.zeros(len(new)), np.full(len(new), LAMBDA_START), theta[new], *local]
                moving = [np.concatenate(pair) for pair in zip(moving, start, strict=True)] if moving else start
            index, taken, damping, at, value, slope, unit, matrix = moving
            part = problem.of_candidates(index)
            own = counts[index] if counts.ndim == 2 else counts[None]
            step = _step(part, at, slope, unit, matrix, damping, curvature)
            trial = np.clip(at + step, problem.low, problem.high)
            found = [trial, *_local(part, trial, own, curvature)]
            better = found[1] < value
            gain = np.where(better, value - found[1], 0.0)
            # A small gain under strong damping says nothing; under weak damping the step was nearly the full one.
            stop = (better & (gain <= tolerance * value) & (damping < 1)) | (~better & (damping > LAMBDA_MAX))
            stop |= ~better & (np.abs(trial - at).max(axis=1) < 1e-13)
            taken += 1
            damping[:] = np.where(better, np.maximum(damping * SHRINK, 1e-12), damping * GROW)
            for old, new in zip((at, value, slope, unit, matrix), found, strict=True):
                old[better] = new[better]
            done = stop | (taken >= steps)
            if done.any():
                theta[index[done]], objective[index[done]], settled[index[stop]] = at[done], value[done], True
                moving = [column[~done] for column in moving]
                index = moving[0]
    return theta, objective, settled


def _local(
    problem: Problem, theta: np.ndarray, counts: np.ndarray, curvature: Curvature
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The objective (S,), its gradient (S, P), units of equal curvature (S, P) and its curvature (S, P, P)."""
    dual = problem.dual(theta, second=curvature == "newton")
    residual, slopes = problem.residuals(theta, dual)
    if curvature == "irls":
        matrix = problem.irls(residual, slopes, counts)
        square = np.einsum("spp->sp", matrix)
    else:
        matrix = problem.newton(theta, residual, slopes, counts, dual)
        square = np.einsum("spn,spn->sp", slopes, slopes * problem.irls_weights(residual, counts)[:, None])
    # Units of equal curvature, so that one damping suits ln A near 6 and alpha near 0.3.
    unit = 1 / np.sqrt(np.maximum(square, 1e-30))
    return problem.huber(residual, counts), problem.gradient(residual, slopes, counts), unit, matrix


def _step(
    problem: Problem,
    theta: np.ndarray,
    slope: np.ndarray,
    unit: np.ndarray,
    matrix: np.ndarray,
    damping: np.ndarray,
    curvature: Curvature,
) -> np.ndarray:
    """The damped step of each candidate, (S, P); a parameter that presses against its bound stays there."""
    held = ((theta <= problem.low) & (slope > 0)) | ((theta >= problem.high) & (slope < 0))
    held = held if problem.fixed is None else held | problem.fixed
    slope, free, eye = np.where(held, 0.0, slope), np.where(held, 0.0, 1.0), np.eye(theta.shape[1])
    matrix = matrix * (unit * free)[:, :, None] * (unit * free)[:, None, :] + eye * (1 - free)[:, :, None]
    usable = np.isfinite(matrix).all(axis=(1, 2)) & np.isfinite(slope).all(axis=1)
    matrix, right = np.where(usable[:, None, None], matrix, eye), np.where(usable[:, None], slope * unit, 0.0)
    damped = matrix + eye * (damping + 1e-14)[:, None, None]
    bent = np.zeros(len(theta), dtype=bool) if curvature == "irls" else ~_positive(matrix)
    damped[bent] = eye
    step = np.linalg.solve(damped, right[:, :, None])[:, :, 0]
    if bent.any():
        values, vectors = np.linalg.eigh(matrix[bent])
        # Absolute values walk negative curvature downhill: saddle-free Newton (Dauphin et al. 2014, arXiv:1406.2572).
        inner = np.einsum("spk,sp->sk", vectors, right[bent]) / (np.abs(values) + damping[bent, None] + 1e-14)
        step[bent] = np.einsum("spk,sk->sp", vectors, inner)
    return -step * unit


def _positive(matrix: np.ndarray) -> np.ndarray:
    """Which symmetric matrices (S, P, P) are positive definite, (S,): all pivots of the elimination are positive.

    Faster than their eigenvalues, of which most need none.
    """
    rest, positive = matrix.copy(), np.ones(len(matrix), dtype=bool)
    for k in range(matrix.shape[1]):
        pivot = rest[:, k, k]
        positive &= pivot > 1e-14
        column = rest[:, k + 1 :, k] / np.where(positive, pivot, 1.0)[:, None]
        rest[:, k + 1 :, k + 1 :] -= column[:, :, None] * rest[:, k, None, k + 1 :]
    return positive
