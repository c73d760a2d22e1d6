"""Scores of parts of a split, with intervals: slices by a column, and what a change of the examples costs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

FEW = 10  # a slice of fewer examples has no number
DRAWS = 2000
LEVEL = 0.95  # of every interval


def wilson(right: int, examples: int) -> list[float]:
    """The interval of a share (Wilson 1927, JASA 22)."""
    from scipy.stats import binomtest

    found = binomtest(int(right), int(examples)).proportion_ci(LEVEL, method="wilson")
    return [float(found.low), float(found.high)]


def bootstrap(scores_N: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """DRAWS means of examples drawn with replacement."""
    return np.array([scores_N[rng.integers(0, len(scores_N), len(scores_N))].mean() for _ in range(DRAWS)])


def percentiles(draws: np.ndarray) -> list[float]:
    return np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()  # type: ignore[no-any-return]


def binned(column_N: Any) -> pd.Series:
    """The slice of each example: numbers of more than ten values by their quartiles, all else by value."""
    column = pd.Series(column_N)
    if not pd.api.types.is_numeric_dtype(column) or column.nunique() <= 10:
        return column.astype(str)
    part = pd.qcut(column, 4, labels=False, duplicates="drop")
    ranges = column.groupby(part).agg(["min", "max"])
    names = [f"{low:g} to {high:g}" if low < high else f"{low:g}" for low, high in ranges.itertuples(index=False)]
    return pd.Series(pd.Categorical.from_codes(part.fillna(-1).astype(int), names, ordered=True))


def table(scores_N: np.ndarray, slices_N: Any, seed: int = 0) -> dict[str, Any]:
    """The mean score of each slice, and the largest gap between two slices.

    Args:
      scores_N: of each example; where all are 0 or 1, their means are shares with Wilson's interval, else with a
        bootstrap percentile interval.
      slices_N: the slice of each example.

    Returns:
      `slices`: name -> examples, mean, and the low and high of its interval; `too_small`: name -> examples, of fewer
      than FEW; and of two slices or more `gap`: the two farthest apart, the difference of their means, its bootstrap
      interval for these two, and `p`, the share of random assignments of the examples to slices of these sizes whose
      largest gap is as large.
    """
    rng = np.random.default_rng(seed)
    by_slice = pd.Series(scores_N.astype(float)).groupby(pd.Series(slices_N), observed=True, dropna=False)
    parts = {str(name): part.to_numpy() for name, part in by_slice}
    kept = {name: part for name, part in parts.items() if len(part) >= FEW}
    shares = bool(np.isin(scores_N, (0, 1)).all())
    rows: dict[str, Any] = {}
    for name, part in kept.items():
        interval = wilson(part.sum(), len(part)) if shares else percentiles(bootstrap(part, rng))
        rows[name] = {"examples": len(part), "mean": float(part.mean()), "low": interval[0], "high": interval[1]}
    small = {name: len(part) for name, part in parts.items() if name not in kept}
    found: dict[str, Any] = {"slices": rows, "too_small": small}
    if len(kept) < 2:
        return found
    (low, least), *_, (high, most) = sorted(((name, row["mean"]) for name, row in rows.items()), key=lambda x: x[1])
    gap = most - least
    sizes = np.array([len(part) for part in kept.values()])
    pooled, starts = np.concatenate(list(kept.values())), np.cumsum(sizes) - sizes
    shuffled = [np.ptp(np.add.reduceat(rng.permutation(pooled), starts) / sizes) for _ in range(DRAWS)]
    as_large = np.sum(np.array(shuffled) >= gap - 1e-12)
    interval = percentiles(bootstrap(kept[high], rng) - bootstrap(kept[low], rng))
    p = float(1 + as_large) / (1 + DRAWS)
    return {**found, "gap": {"highest": high, "lowest": low, "gap": gap, "interval": interval, "p": p}}
