"""The rows that spoil a fit, by name: runs far off the law of the others, and several data sets in one file.

Legend: n runs, P parameters of the law.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from scipy import special

from bigmodel.laws import intervals
from bigmodel.laws.search import Found
from bigmodel.laws.solve import Problem

FAR = 0.1  # of ln of the target (linear: of its deviation): a run nearer than 10 % to the law of the others isn't named
SCATTERS = 8.0  # usual residuals of the others that a named run is off by
PULL = 0.5  # of the others' residuals: what is left of them without a run that pulled the law to itself
SUSPECTS = 64  # rows refitted without
MOST_NAMED = 3
SHARE, SPLIT = 0.3, 0.02  # of the residuals' variance between a column's values, and spread of their medians, as FAR
CHANCE = 1e-3  # of such a share, were the values shuffled (F test)
FEWEST = 3  # runs of each value, on average


def warnings(problem: Problem, found: Found, frame: pd.DataFrame) -> list[str]:
    """A line for rows that the law of the others doesn't predict, and for a text column that splits the runs."""
    return _rows(problem, found, frame) + _sets(problem, found, frame)


def _rows(problem: Problem, found: Found, frame: pd.DataFrame) -> list[str]:
    n, free = len(frame), len(frame) - len(problem.law.names)
    if free < 3:
        return []
    far_off, told = FAR * problem.size, problem.target(problem.observed)
    off = -problem.residuals(found.theta[None])[0][0]  # observed - predicted, of logarithms or not
    # A run may pull the law to itself: each of the furthest is compared with the law of all but it.
    suspects = np.argsort(-np.abs(off), kind="stable")[:SUSPECTS]
    far = np.abs(off[suspects]) > max(far_off, SCATTERS * _usual(off, free))
    gone = suspects[far][: n // 5]  # what is plainly off stays out of the others' law too
    named: dict[int, float] = {}
    if n > intervals.SUBSET_RUNS:  # a single run among many doesn't move the law
        named = {int(i): float(problem.target(problem.observed[i] - off[i])) for i in suspects[far]}
        suspects = suspects[:0]
    left_out = [np.unique(np.append(gone, i)) for i in suspects]
    for i, group, theta in zip(suspects, left_out, intervals.without(problem, found, left_out), strict=True):
        if theta is None:
            continue
        own = -problem.residuals(theta[None])[0][0]
        # One at the end of the runs may be far off the others' extrapolation, and yet lie on the law of all.
        others = np.delete(own, group)
        pulled = np.abs(others).sum() < PULL * np.abs(np.delete(off, group)).sum()
        if abs(own[i]) > max(far_off, SCATTERS * _usual(others, free - len(group))) and (i in gone or pulled):
            named[int(i)] = float(problem.target(problem.observed[i] - own[i]))
    if not named or len(named) > max(1, n // 5):  # a law that misses many runs is wrong itself
        return []
    target = problem.law.target
    what = "loss" if target == "L" else target
    rows = [
        f"{_name(frame, i)}: {what} {told[i]:.4g} where the law of the others says {says:.4g}"
        for i, says in [*named.items()][:MOST_NAMED]
    ]
    more = f"; and {len(named) - MOST_NAMED} more" if len(named) > MOST_NAMED else ""
    which = ",".join(str(_key(frame, i)) for i in named)
    drop = f"; --drop={which} leaves {'it' if len(named) == 1 else 'them'} out" if "row_numbers" in frame.attrs else ""
    return ["; ".join(rows) + more + drop]


def _usual(off: np.ndarray, free: int) -> float:
    """The usual residual: a Huber fit runs through about P points, which say nothing."""
    largest = np.sort(np.abs(off))[-max(free, 1) :]
    return float(np.median(largest)) / 0.6745


def _key(frame: pd.DataFrame, i: int) -> Any:
    numbers = frame.attrs.get("row_numbers")
    return numbers[i] if numbers else frame["run_id"].iloc[i] if "run_id" in frame else i + 1


def _name(frame: pd.DataFrame, i: int) -> str:
    key = _key(frame, i)
    run = frame["run_id"].iloc[i] if "run_id" in frame else None
    return f"run {run}" if key == run else f"row {key}" + (f" (run {run})" if run is not None else "")


def _sets(problem: Problem, found: Found, frame: pd.DataFrame) -> list[str]:
    off = -problem.residuals(found.theta[None])[0][0]
    limit = 10 * _usual(off, len(off))
    off = np.clip(off, -limit, limit)
    out = []
    for column in frame.columns:
        if pd.api.types.is_numeric_dtype(frame[column]) or column in ("run_id", "status", "family"):
            continue
        groups = pd.Series(off).groupby(frame[column].to_numpy())
        sizes, medians = groups.size(), groups.median()
        if not 2 <= len(sizes) <= len(off) / FEWEST:
            continue
        kinds, free = len(sizes), len(off) - len(sizes)
        total = max(float(((off - off.mean()) ** 2).sum()), 1e-300)
        within = float(((off - groups.transform("mean")) ** 2).sum()) / total
        between = 1 - within * (len(off) - 1) / free  # about 0 where the values mean nothing
        chance = special.fdtrc(kinds - 1, free, (1 - within) / (kinds - 1) / max(within / free, 1e-300))
        if between > SHARE and chance < CHANCE and np.ptp(medians) > SPLIT * problem.size:
            low, high = medians.idxmin(), medians.idxmax()
            linear = problem.residuals_of == "linear"
            ends = ", ".join(
                f"{v} {medians[v]:+.2g}" if linear else f"{v} {100 * np.expm1(medians[v]):+.2g} %" for v in (low, high)
            )
            out.append(
                f"column {column!r} has {len(sizes)} values, which explain {100 * between:.0f} % of the scatter about "
                f"the law ({ends}): "
                f"several laws in one file? --where={column}={low} fits one"
            )
    return out
