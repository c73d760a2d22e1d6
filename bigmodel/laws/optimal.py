"""Optimal designs: which candidates reduce the variance of some answers most, within a budget.

Near the parameters theta, a run informs about them by its slopes s = d prediction / d theta, and an answer g has a
gradient c; with the covariance V of theta, its variance is c' V c. One answer makes a c-optimal design (Elfving 1952,
Optimum allocation in linear regression theory; Kiefer 1959, Optimum experimental designs), the predictions of a whole
region a V-optimal one. Runs are chosen one by one, then exchanged while that helps (Wynn 1970, The sequential
generation of D-optimum experimental designs; Fedorov 1972, Theory of Optimal Experiments).

Legend: P parameters, m candidate runs, o numbers that one run measures, t answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

EXCHANGES = 10


@dataclass
class Design:
    """Candidates: slopes (m, o, P) in units of the noise, costs (m,), and the gradients of the answers (t, P)."""

    slopes: np.ndarray
    cost: np.ndarray
    target: np.ndarray

    def gain(self, covariance: np.ndarray) -> np.ndarray:
        """How much each candidate takes off the answers' summed variance (m,): Sherman, Morrison & Woodbury."""
        moved = self.slopes @ covariance
        inner = np.eye(moved.shape[1]) + np.einsum("mop,mqp->moq", moved, self.slopes)
        removed = np.einsum("mop,mqp->moq", moved @ (self.target.T @ self.target), moved)
        if moved.shape[1] == 1:
            return removed[:, 0, 0] / inner[:, 0, 0]
        return np.trace(np.linalg.solve(inner, removed), axis1=1, axis2=2)

    def add(self, covariance: np.ndarray, runs: Sequence[int], sign: float = 1.0) -> np.ndarray:
        """Covariance with these runs, or, with sign -1, without them."""
        for i in runs:
            moved = self.slopes[i] @ covariance
            inner = np.eye(len(moved)) + sign * moved @ self.slopes[i].T
            covariance = covariance - sign * moved.T @ np.linalg.solve(inner, moved)
        return covariance

    def variance(self, covariance: np.ndarray) -> float:
        return float(np.einsum("tp,pq,tq->", self.target, covariance, self.target))

    def greedy(
        self, covariance: np.ndarray, budget: float, runs: int, power: float, among: Any = slice(None)
    ) -> list[int]:
        """Adds the candidate with the largest gain / cost^power, until `runs` or the budget are spent."""
        chosen: list[int] = []
        allowed = np.zeros(len(self.cost), bool)
        allowed[among] = True
        while len(chosen) < runs:
            score = self.gain(covariance) / self.cost**power
            score[~allowed | (self.cost > budget)] = -np.inf
            score[chosen] = -np.inf
            best = int(np.argmax(score))
            if not score[best] > 0:
                break
            chosen.append(best)
            covariance, budget = self.add(covariance, [best]), budget - self.cost[best]
        return chosen

    def exchange(self, covariance: np.ndarray, chosen: list[int], budget: float) -> list[int]:
        """Swaps one run at a time for the candidate that takes most off the variance, while one does."""
        chosen = list(chosen)
        covariance = self.add(covariance, chosen)
        left = budget - float(self.cost[chosen].sum())
        for _ in range(EXCHANGES):
            changed = False
            for j, old in enumerate(chosen):
                without = self.add(covariance, [old], -1.0)
                gain = self.gain(without)
                gain[[i for i in chosen if i != old]] = -np.inf
                gain[self.cost > left + self.cost[old]] = -np.inf
                new = int(np.argmax(gain))
                if gain[new] > gain[old] * (1 + 1e-9):
                    left += self.cost[old] - self.cost[new]
                    chosen[j], covariance, changed = new, self.add(without, [new]), True
            if not changed:
                break
        return chosen
