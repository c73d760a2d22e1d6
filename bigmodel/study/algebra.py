"""The rows of a sweep, as lists of overrides: products, ladders of sizes, compute budgets.

Sweep files use these functions as `sweep.product` and so on (`from bigmodel import sweep`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bigmodel import models
from bigmodel.errors import UsageError

Row = dict[str, Any]
Axes = Mapping[str, Sequence[Any]]


def product(*parts: Axes | Sequence[Row]) -> list[Row]:
    """Every combination of the parts. A dict of lists is one part per key; a list of rows is one part."""
    lists: list[Sequence[Row]] = []
    for part in parts:
        if isinstance(part, Mapping):
            lists += [[{key: value} for value in values] for key, values in part.items()]
        else:
            lists.append(part)
    return [{k: v for row in combination for k, v in row.items()} for combination in itertools.product(*lists)]


def zip_(axes: Axes) -> list[Row]:
    """Row i has value i of every axis. UsageError: axes of different lengths."""
    lengths = {key: len(values) for key, values in axes.items()}
    if len(set(lengths.values())) > 1:
        raise UsageError(f"zip_: axes of different lengths: {lengths}")
    return [dict(zip(axes, values, strict=True)) for values in zip(*axes.values(), strict=True)]


def chain(*sweeps: Iterable[Row]) -> list[Row]:
    """The rows of all sweeps, one sweep after the other."""
    return [dict(row) for sweep in sweeps for row in sweep]


def ladder(family: str, widths: Sequence[int], depths: Sequence[int]) -> list[Row]:
    """The family's rung of every width and depth, which sets the number of heads too."""
    rung = models.family(family).rung
    return [rung(width, depth) for width in widths for depth in depths]


def isoflop(rungs: Sequence[Row], budgets: Sequence[float]) -> list[Row]:
    """Every rung at every compute budget (FLOPs). The tokens of a row follow from its budget."""
    return [{**row, "train.flops": float(c)} for c in budgets for row in rungs]
