"""What the figures draw: runs, the fitted law, its resamples and the frontiers.

Legend: N parameters, D examples or tokens, C training FLOPs, L loss; R resamples, P parameters of the law, n runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from bigmodel.laws import forms
from bigmodel.laws.figures import style
from bigmodel.laws.forms import FLOPS_PER_PARAM_TOKEN

MOST_MARKS = 2000  # runs drawn and listed: more make large files and unreadable figures
WORDS = {"lr": "Learning rate", "batch": "Batch size", "error": "Error"}  # other columns than N, D, C, L


class Study:
    """Runs and their fit.

    Attributes:
      frame: the runs as given to `fit.fit`, index 0 ... n - 1, with C = 6 N D where C was absent.
      result: as `fit.fit` returns.
      unit: what D counts: "tokens" or "examples".
      loss: axis label of the target, with its unit.
      frontiers: results of `frontier.isoflop` and `frontier.envelope` over the same runs.
      observed, predicted: the target of each run, (n,).
      held: whether some refit held the run out, (n,).
      plane: whether the law is one of N and D (and C), so that it has curves over either.
    """

    def __init__(
        self,
        frame: pd.DataFrame,
        result: Mapping[str, Any],
        unit: str = "tokens",
        loss: str = "Loss",
        frontiers: Sequence[Mapping[str, Any]] = (),
    ):
        frame = frame.reset_index(drop=True)
        if "C" not in frame and {"N", "D"} <= set(frame.columns):
            frame = frame.assign(C=FLOPS_PER_PARAM_TOKEN * frame["N"] * frame["D"])
        self.frame, self.result, self.frontiers, self.unit = frame, result, tuple(frontiers), unit
        self.law = forms.get(result["law"])
        self.target, self.params = self.law.target, result["params"]
        self.loss = loss if self.target == "L" else WORDS.get(self.target, self.target)
        self.observed = self.column(self.target)
        self.predicted = self.law.predict(self.params, {name: frame[name].to_numpy() for name in self.law.columns})
        self.held = np.zeros(len(frame), dtype=bool)
        for entry in result["holdout"]:
            self.held[entry["held_out"]] = True
        some, read = len(self.law.columns) > 1, set(self.law.columns)
        self.plane = some and read <= {"N", "D", "C"} and {"N", "D"} <= set(frame.columns)

    def label(self, column: str) -> str:
        """A column in words, for an axis."""
        nonembedding = "nonembedding" in str(self.frame.attrs.get("conventions", {}).get("N"))
        known = {
            "N": "Non-embedding parameters, N" if nonembedding else "Parameters, N",
            "D": f"Training {self.unit}, D",
            "C": "Training compute, C (FLOPs)",
            self.target: self.loss,
        }
        return known.get(column, WORDS.get(column, column))

    def column(self, name: str) -> np.ndarray:
        """A column of the frame as floats, (n,)."""
        return self.frame[name].to_numpy(dtype=float)

    def at(self, params: Mapping[str, float], **columns: Any) -> np.ndarray:
        """The law's value at these columns, which broadcast to (k,). C is 6 N D where the law reads it and it is
        absent. nan where the law overflows."""
        if "C" in self.law.columns and "C" not in columns:
            columns["C"] = FLOPS_PER_PARAM_TOKEN * np.asarray(columns["N"]) * np.asarray(columns["D"])
        names = list(self.law.columns)
        arrays = np.broadcast_arrays(*(np.atleast_1d(np.asarray(columns[name], dtype=float)) for name in names))
        with np.errstate(all="ignore"):
            return self.law.predict(params, dict(zip(names, arrays, strict=True)))

    @cached_property
    def samples(self) -> np.ndarray:
        """Parameters of the resamples that are finite, (R, P)."""
        found = np.asarray(self.result["bootstrap_samples"], dtype=float).reshape(-1, len(self.law.names))
        return found[np.isfinite(found).all(axis=1)]

    @cached_property
    def sample_params(self) -> list[dict[str, float]]:
        """At most 300 resamples by name: enough for a 95 % band."""
        return [dict(zip(self.law.names, map(float, row), strict=True)) for row in self.samples[:300]]

    @cached_property
    def ratio(self) -> float:
        """The runs' median C / (6 N D): laws count 6 N D, runs may count exactly."""
        return float(np.median(self.column("C") / (FLOPS_PER_PARAM_TOKEN * self.column("N") * self.column("D"))))

    @cached_property
    def budgets(self) -> np.ndarray:
        """Compute from below the runs' to four times the largest, as the runs count it, (k,)."""
        return np.geomspace(self.column("C").min() / 1.5, self.column("C").max() * 4, 28)

    @cached_property
    def sample_optima(self) -> np.ndarray:
        """(N, D) of least loss for each resample and budget, (r, k, 2)."""
        found = [self.optima(params, self.budgets / self.ratio) for params in self.sample_params]
        return np.array(found).reshape(-1, len(self.budgets), 2)

    def optima(self, params: Mapping[str, float], compute: np.ndarray) -> np.ndarray:
        """(N, D) of least loss for each budget, (k, 2); nan where the law has no optimum."""
        if self.law.optimum is None:
            return np.full((len(compute), 2), np.nan)
        pairs = np.array([self.law.optimum(params, float(c)) for c in compute], dtype=float)
        usable = (np.isfinite(pairs) & (pairs > 0)).all(axis=1, keepdims=True)
        return np.where(usable, pairs, np.nan)

    def frontier(self, params: Mapping[str, float], compute: np.ndarray) -> np.ndarray:
        """Least loss that the law allows for each budget, as the runs count it, (k,); nan where it has no optimum."""
        pairs = self.optima(params, compute / self.ratio)
        return self.at(params, N=pairs[:, 0], D=pairs[:, 1])

    def spread(self, column: str) -> np.ndarray:
        """At most 5 of the distinct values of a column, evenly spaced."""
        distinct = np.unique(self.column(column))
        return distinct[thinned(len(distinct), 5)]


def thinned(count: int, most: int = MOST_MARKS) -> np.ndarray:
    """Indices of at most `most` of `count` rows, evenly spaced."""
    return np.linspace(0, count - 1, min(count, most)).round().astype(int)


def dots(axes: Axes, x: Any, y: Any, **kwargs: Any) -> None:
    """Marks of runs at (x, y), (n,), at most MOST_MARKS of them; `kwargs` go to `Axes.scatter`."""
    keep = thinned(len(x))
    if "c" in kwargs:
        kwargs = {"cmap": style.COLOURS} | kwargs | {"c": np.asarray(kwargs["c"])[keep]}
    elif "color" not in kwargs:
        kwargs["color"] = style.BLUE
    outline: dict[str, Any] = {"edgecolors": "white", "linewidths": 0.4, "zorder": 4}
    axes.scatter(np.asarray(x)[keep], np.asarray(y)[keep], **(outline | kwargs))


def band(axes: Axes, x: np.ndarray, curves: Any) -> None:
    """Shades the central 95 % of r curves over x, (r, k) and (k,), where two at least are usable."""
    usable = [curve for curve in curves if (np.isfinite(curve) & (curve > 0)).all()]
    if len(usable) > 1:
        ends = np.percentile(usable, [2.5, 97.5], axis=0)
        axes.fill_between(x, *ends, color=style.ORANGE, alpha=0.3, lw=0, zorder=1, label="95 % of resamples")
