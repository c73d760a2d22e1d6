"""Laws: the loss as a function of a run's size, one function per law.

To add a law, write one public function here that returns a `Law` (copy `chinchilla`). `get` finds it by
its name; nothing else changes. The fitter (solve.py) works on theta, the parameters after their transforms,
for many candidates at once: inside `form` and `slopes`, `theta` has shape (P, S, 1), so it unpacks by
name into (S, 1) arrays, and each column of `row` has shape (n,); they broadcast to (S, n).

Legend: S candidate parameter sets, P parameters, n runs; N parameters of the model, D examples or tokens seen,
C training FLOPs, L loss.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bigmodel.config import UsageError, nearest

Row = Mapping[str, np.ndarray]

# Wherever a law trades N for D, C = 6 N D (Hoffmann et al. 2022, arXiv:2203.15556, section 3.3).
FLOPS_PER_PARAM_TOKEN = 6.0


@dataclass(frozen=True)
class Parameter:
    """One parameter of a law.

    Attributes:
      name: as reported, in the law's own units.
      starts: values of theta that the grid of starts uses.
      low, high: bounds of theta. The fit warns when a parameter ends on one.
      log: theta = ln(value) if true, so that the value stays positive; else theta = value.
      loss_units: theta moves by ln(s) when the loss is multiplied by s (only with `log`).
    """

    name: str
    starts: tuple[float, ...]
    low: float
    high: float
    log: bool = False
    loss_units: bool = False


@dataclass(frozen=True)
class Law:
    """A law as data; see the module's docstring for shapes.

    Attributes:
      name: name of the function that makes it.
      formula: text with a `{name}` for each parameter; `source` says where it is from.
      parameters: in the order of theta.
      columns: columns of `row` that `form` reads.
      form: (theta (P, S, 1), row) -> ln of the predicted loss, (S, n).
      slopes: the same plus its derivative in each of the P parameters, each (S, n); None: by differences.
      optimum: (values by name, C in FLOPs) -> (N, D) of least loss under C = 6 N D; None: has none.
      exponents: values by name -> {"a": of N_opt ~ C^a, "b": of D_opt ~ C^b}; None: has none.
      exponent_names: parameters that multiply a logarithm; the fit reports when they differ between optima.
      floor: the parameter that is the irreducible loss, or "".
    """

    name: str
    formula: str
    source: str
    parameters: tuple[Parameter, ...]
    columns: tuple[str, ...]
    form: Callable[[np.ndarray, Row], np.ndarray]
    slopes: Callable[[np.ndarray, Row], tuple[np.ndarray, Sequence[np.ndarray]]] | None = None
    optimum: Callable[[Mapping[str, float], float], tuple[float, float]] | None = None
    exponents: Callable[[Mapping[str, float]], dict[str, float]] | None = None
    exponent_names: tuple[str, ...] = ()
    floor: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(p.name for p in self.parameters)

    def starts(self, shift: float = 0.0) -> np.ndarray:
        """Every combination of the parameters' starts, (S, P), for losses e^`shift` times the usual size."""
        axes = [[s + shift * p.loss_units for s in p.starts] for p in self.parameters]
        return np.array(list(itertools.product(*axes)), dtype=np.float64)

    def bounds(self, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
        """(low, high) of theta, each (P,)."""
        low = np.array([p.low + shift * p.loss_units for p in self.parameters])
        return low, np.array([p.high + shift * p.loss_units for p in self.parameters])

    def values(self, theta: np.ndarray) -> np.ndarray:
        """theta (..., P) -> parameters in the law's own units (..., P)."""
        log = np.array([p.log for p in self.parameters])
        return np.where(log, np.exp(np.where(log, theta, 0.0)), theta)

    def theta(self, values: Mapping[str, float]) -> np.ndarray:
        """Parameters by name -> theta (P,)."""
        missing = [name for name in self.names if name not in values]
        if missing:
            raise UsageError(f"law {self.name!r} needs parameter {missing[0]!r}{nearest(missing[0], values)}")
        return np.array([math.log(values[p.name]) if p.log else values[p.name] for p in self.parameters])

    def predict(self, values: Mapping[str, float], row: Row) -> np.ndarray:
        """Loss (n,) at each of the n rows of `row`."""
        columns = {name: np.atleast_1d(np.asarray(row[name], dtype=np.float64)) for name in self.columns}
        return np.exp(self.form(self.theta(values)[:, None, None], columns)[0])


def get(name: str) -> Law:
    """The law that the function `name` of this module returns. UsageError, with the nearest, if there is none."""
    makers = {k: f for k, f in globals().items() if getattr(f, "__annotations__", {}).get("return") == "Law"}
    makers.pop("get")
    if name not in makers:
        raise UsageError(f"no law {name!r}{nearest(name, makers)}; laws are {', '.join(sorted(makers))}")
    return makers[name]()


def chinchilla() -> Law:
    """L = E + A / N^alpha + B / D^beta.

    Hoffmann et al. 2022 (arXiv:2203.15556), section 3.3, equation 2, with the parametrisation of their appendix D: ln L
    is the log-sum-exp of a - alpha ln N, b - beta ln D and e, where A = e^a, B = e^b, E = e^e. The starts are their
    published grid, 5 * 6 * 5 * 6 * 5 = 4500. The optimum (equation 4) is

        N_opt = G (C/6)^a', D_opt = (C/6)^b' / G, G = (alpha A / (beta B))^(1/(alpha + beta)),
        a' = beta / (alpha + beta), b' = alpha / (alpha + beta).

    Units: L and E in the loss's own unit (nats per token), N in parameters, D in tokens or examples, C in FLOPs.
    """

    def terms(theta: np.ndarray, row: Row) -> tuple[np.ndarray, ...]:
        e, a, alpha, b, beta = theta
        log_n, log_d = np.log(row["N"]), np.log(row["D"])
        size, data = a - alpha * log_n, b - beta * log_d
        # Shifted by the largest term: Besiroglu et al. 2024's unshifted code overflows in line searches.
        top = np.maximum(np.maximum(size, data), e)
        size, data, floor = np.exp(size - top), np.exp(data - top), np.exp(e - top)
        return top, floor, size, data, log_n, log_d

    def form(theta: np.ndarray, row: Row) -> np.ndarray:
        top, floor, size, data, _, _ = terms(theta, row)
        return top + np.log(floor + size + data)

    def slopes(theta: np.ndarray, row: Row) -> tuple[np.ndarray, Sequence[np.ndarray]]:
        top, floor, size, data, log_n, log_d = terms(theta, row)
        total = floor + size + data
        size /= total
        data /= total
        return top + np.log(total), (floor / total, size, -size * log_n, data, -data * log_d)

    def exponents(p: Mapping[str, float]) -> dict[str, float]:
        total = p["alpha"] + p["beta"]
        if not total > 0:  # a law flat in both has no optimum
            return {"a": math.nan, "b": math.nan}
        return {"a": p["beta"] / total, "b": p["alpha"] / total}

    def optimum(p: Mapping[str, float], flops: float) -> tuple[float, float]:
        x = exponents(p)
        ratio = p["alpha"] * p["A"] / (p["beta"] * p["B"]) if p["beta"] * p["B"] > 0 else math.nan
        if not ratio > 0:
            return math.nan, math.nan
        try:
            scale = ratio ** (1 / (p["alpha"] + p["beta"]))
            budget = flops / FLOPS_PER_PARAM_TOKEN
            return scale * budget ** x["a"], budget ** x["b"] / scale
        except (OverflowError, ZeroDivisionError):
            return math.nan, math.nan

    exponent, scale = (0.0, 0.5, 1.0, 1.5, 2.0), (0.0, 5.0, 10.0, 15.0, 20.0, 25.0)
    # Bounds are ours, and wide: an exponent of 3 or a coefficient of e^90 has never been reported. E >= e^-14.
    return Law(
        name="chinchilla",
        formula="{E} + {A}/N^{alpha} + {B}/D^{beta}",
        source="Hoffmann et al. 2022, arXiv:2203.15556, equation 2",
        parameters=(
            Parameter("E", (-1.0, -0.5, 0.0, 0.5, 1.0), -14.0, 5.0, log=True, loss_units=True),
            Parameter("A", scale, -20.0, 90.0, log=True, loss_units=True),
            Parameter("alpha", exponent, 0.0, 3.0),
            Parameter("B", scale, -20.0, 90.0, log=True, loss_units=True),
            Parameter("beta", exponent, 0.0, 3.0),
        ),
        columns=("N", "D"),
        form=form,
        slopes=slopes,
        optimum=optimum,
        exponents=exponents,
        exponent_names=("alpha", "beta"),
        floor="E",
    )
