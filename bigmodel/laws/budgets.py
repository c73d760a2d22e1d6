"""The compute budgets of a set of runs, and the parabola of approach 2 through the runs of one.

Legend: N parameters, D tokens, C training FLOPs, L loss.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

BUDGET_GAP = 1.3  # runs whose C differ by more than this factor are of different budgets
MIN_SIZES = 4  # distinct N of a budget: three make a parabola, the fourth says how well it fits
NEAR = 8.0  # a parabola is only local: it sees sizes within this factor of the best one

# (ln N_opt, ln L_opt, coefficients, edge, which runs it saw) of ln N and ln L.
Optimum = tuple[float, float, list[float] | None, bool, np.ndarray]
Curve = Callable[[np.ndarray, np.ndarray], Optimum]


def groups_of(frame: pd.DataFrame, budgets_at: Sequence[float] | None) -> list[pd.DataFrame]:
    """Runs by budget: neighbours in C further apart than BUDGET_GAP are of different ones."""
    if budgets_at is not None:
        return [frame[np.abs(np.log(frame["C"] / c)) <= np.log(1.1)] for c in sorted(budgets_at)]
    ordered = frame.sort_values("C", kind="stable")
    jump = np.diff(np.log(ordered["C"].to_numpy(dtype=float)), prepend=-np.inf) > np.log(BUDGET_GAP)
    return [group for _, group in ordered.groupby(np.cumsum(jump))]


def least(group: pd.DataFrame, column: str) -> pd.DataFrame:
    """The run of least loss at each value of a column, in its order."""
    return group.sort_values("L").groupby(column, as_index=False).first().sort_values(column)


def parabola(log_n: np.ndarray, log_l: np.ndarray) -> Optimum:
    """The parabola of ln L in ln N through the sizes near the best (Hoffmann et al. 2022, arXiv:2203.15556, 3.2)."""
    near = np.abs(log_n - log_n[np.argmin(log_l)]) <= np.log(NEAR)
    if near.sum() < MIN_SIZES:
        near = np.argsort(np.abs(log_n - log_n[np.argmin(log_l)]), kind="stable")[:MIN_SIZES]
    x, y = log_n[near], log_l[near]
    c2, c1, c0 = (float(c) for c in np.polyfit(x - x.mean(), y, 2))
    c1, c0 = c1 - 2 * c2 * x.mean(), c0 - c1 * x.mean() + c2 * x.mean() ** 2
    at = -c1 / (2 * c2) if c2 > 0 else np.nan
    inside = bool(c2 > 0 and x.min() < at < x.max())
    return float(at if inside else np.nan), float(c0 + c1 * at / 2), [c2, c1, c0], not inside, near
