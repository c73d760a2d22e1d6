"""What the figures draw: runs, the fitted law, its resamples and the frontiers, with what follows from them.

Legend: N parameters, D examples or tokens, C training FLOPs, L loss; R resamples, P parameters of the law, n runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize

from bigmodel.laws import forms, intervals
from bigmodel.laws.figures import style
from bigmodel.laws.forms import FLOPS_PER_PARAM_TOKEN

MOST_MARKS = 2000  # runs drawn and listed; a browser is slow with more
CURVES = 5
# Columns that laws may predict or read, other than N, D, C and L, in words.
WORDS = {"lr": "learning rate", "batch": "batch size", "error": "error"}


class Study:
    """Runs and their fit.

    Attributes:
      frame: the runs, index 0 ... n - 1, with C = 6 N D if there was no C but N and D.
      result, law, target: of the fit.
      observed, predicted: the target of each run, (n,).
      shown: indices of the runs that are drawn and listed, at most MOST_MARKS, evenly over the frame.
      held: which runs some refit held out, (n,).
      plane: whether the law is one of N and D (and C), so that it has curves over either.
      frontiers: results of frontier.isoflop and frontier.envelope.
      unit, loss: what D counts; the axis label of L.
    """

    def __init__(
        self,
        frame: pd.DataFrame,
        result: Mapping[str, Any],
        unit: str = "tokens",
        loss: str = "loss",
        frontiers: Sequence[Mapping[str, Any]] = (),
    ):
        frame = frame.reset_index(drop=True)
        if "C" not in frame and {"N", "D"} <= set(frame.columns):
            frame = frame.assign(C=FLOPS_PER_PARAM_TOKEN * frame["N"] * frame["D"])
        self.frame, self.result, self.frontiers, self.unit = frame, result, tuple(frontiers), unit
        self.law = forms.get(result["law"])
        self.target, self.params = self.law.target, result["params"]
        self.loss = loss if self.target == "L" else WORDS.get(self.target, self.target)
        self.observed = frame[self.target].to_numpy(dtype=float)
        self.predicted = self.law.predict(self.params, {name: frame[name].to_numpy() for name in self.law.columns})
        self.shown = np.unique(np.linspace(0, len(frame) - 1, min(len(frame), MOST_MARKS)).round().astype(int))
        self.held = np.zeros(len(frame), dtype=bool)
        for entry in result["holdout"]:
            self.held[entry["held_out"]] = True
        self.plane = {"N", "D"} <= set(frame.columns) and len(self.law.columns) > 1
        self.plane = self.plane and set(self.law.columns) <= {"N", "D", "C"}

    def label(self, column: str) -> str:
        """A column in words, for an axis."""
        known = {"N": "parameters N", "D": f"{self.unit} D", "C": "training compute C (FLOPs)", self.target: self.loss}
        return known.get(column, WORDS.get(column, column))

    def column(self, name: str) -> np.ndarray:
        """A column of the frame as floats, (n,)."""
        return self.frame[name].to_numpy(dtype=float)

    def at(self, params: Mapping[str, float], **columns: Any) -> np.ndarray:
        """What the law says at these columns, which broadcast to (k,); C is 6 N D if the law reads it and it isn't
        given. nan where it overflows."""
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
        """Up to 300 resamples by name: enough for 95 % of them."""
        return [dict(zip(self.law.names, map(float, row), strict=True)) for row in self.samples[:300]]

    @cached_property
    def exponent_samples(self) -> np.ndarray:
        """The exponent a of each resample at the largest compute fitted, (R,); empty if the law has none."""
        largest = float(self.column("C").max()) if "C" in self.frame else forms.REFERENCE_FLOPS
        found = intervals.exponent_samples(self.law, self.samples, largest)
        return found["a"] if found else np.empty(0)

    @cached_property
    def ratio(self) -> float:
        """Runs' median C / (6 N D): laws count 6 N D, runs may count exactly."""
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

    @cached_property
    def sample_losses(self) -> np.ndarray:
        """Least loss for each resample and budget, (r, k)."""
        pairs = zip(self.sample_params, self.sample_optima, strict=True)
        found = [self.at(params, N=pair[:, 0], D=pair[:, 1]) for params, pair in pairs]
        return np.array(found).reshape(-1, len(self.budgets))

    def optima(self, params: Mapping[str, float], compute: np.ndarray) -> np.ndarray:
        """(N, D) of least loss for each budget, (k, 2); nan where the law has no optimum."""
        if self.law.optimum is None:
            return np.full((len(compute), 2), np.nan)
        pairs = np.array([self.law.optimum(params, float(c)) for c in compute], dtype=float)
        bad = ~(np.isfinite(pairs) & (pairs > 0)).all(axis=1)
        pairs[bad] = np.nan
        return pairs

    def frontier(self, params: Mapping[str, float], compute: np.ndarray) -> np.ndarray:
        """Least loss that the law allows for each budget, as the runs count it, (k,); nan where it has no optimum."""
        pairs = self.optima(params, compute / self.ratio)
        out, usable = np.full(len(compute), np.nan), np.isfinite(pairs).all(axis=1)
        if usable.any():
            out[usable] = self.at(params, N=pairs[usable, 0], D=pairs[usable, 1])
        return out

    def spread(self, column: str, most: int = CURVES) -> list[float]:
        """At most `most` of the distinct values of a column, evenly over their range of logarithms."""
        distinct = np.unique(self.column(column))
        if len(distinct) <= most:
            return [float(v) for v in distinct]
        wanted = np.linspace(np.log(distinct[0]), np.log(distinct[-1]), most)
        return sorted({float(distinct[np.abs(np.log(distinct) - w).argmin()]) for w in wanted})


class Marks:
    """Draws runs and remembers which row each mark is, for the links of the page."""

    def __init__(self, study: Study, size: style.Size):
        self.study, self.size = study, size
        self.rows: dict[str, list[int]] = {}

    def draw(
        self,
        axes: Axes,
        x: np.ndarray,
        y: np.ndarray,
        norm: Normalize | None = None,
        values: np.ndarray | None = None,
        rows: np.ndarray | None = None,
        reverse: bool = False,
        **kwargs: Any,
    ) -> None:
        """Marks at (x, y), (n,), or (k,) for the k runs `rows`; coloured by `values` over `norm`, else plain."""
        rows = np.arange(len(x)) if rows is None else np.asarray(rows)
        keep = np.isin(rows, self.study.shown) & np.isfinite(x) & np.isfinite(y)
        if not keep.any():
            return
        style_: dict[str, Any] = {"s": self.size.dot, "edgecolors": "white", "linewidths": 0.4, "zorder": 4}
        if values is not None:
            cmap = style.COLOURS.reversed() if reverse else style.COLOURS
            style_ |= {"c": np.asarray(values)[keep], "cmap": cmap, "norm": norm}
        elif "color" not in kwargs:
            style_["color"] = style.BLUE
        dots = axes.scatter(np.asarray(x)[keep], np.asarray(y)[keep], **(style_ | kwargs))
        gid = f"{style.RUNS_GID}-{len(self.rows)}"
        dots.set_gid(gid)
        self.rows[gid] = [int(i) for i in rows[keep]]


def band(curves: np.ndarray, at: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Ends of the central 95 % of curves (r, k) drawn at `at` (k,), interpolated to x; None with under two curves."""
    curves = curves[(np.isfinite(curves) & (curves > 0)).all(axis=1)]
    if len(curves) < 2:
        return None
    ends = np.log(np.percentile(curves, [2.5, 97.5], axis=0))
    low, high = (np.exp(np.interp(np.log(x), np.log(at), end)) for end in ends)
    return low, high
