"""Laws: the outcome of a run as a function of its size, one public function per law.

A law is a function annotated `-> Law` in a file of this folder (copy `chinchilla` in loss.py). `get` finds it by its
name, with its arguments: "chinchilla", "power:x=N", "bnsl:x=D,breaks=2". A law can also be a user's file, see
`from_file`.

The fitter (solve.py) works on theta, the parameters after their transforms, for many candidates at once. `form` gets
theta of shape (P, S, 1), so that it unpacks by name into arrays of shape (S, 1), and columns of shape (n,); they
broadcast to (S, n).

Legend: S candidate parameter sets, P parameters, n runs; N parameters of the model, D examples or tokens seen,
C training FLOPs, L loss.
"""

from __future__ import annotations

import importlib
import inspect
import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bigmodel import config
from bigmodel.errors import UsageError, nearest
from bigmodel.laws.duals import Dual

Row = Mapping[str, np.ndarray]
Values = Mapping[str, float]
Form = Callable[[Any, Row], Any]  # of arrays, or of duals

# Wherever a law trades N for D, C = 6 N D (Hoffmann et al. 2022, arXiv:2203.15556, section 3.3).
FLOPS_PER_PARAM_TOKEN = 6.0
MODULES = ("loss", "curves", "tuning", "sparse", "recipes", "average")
MOST_BREAKS = 3  # of a broken law: its grid of starts grows sixfold with each
REFERENCE_FLOPS = 1e21  # where a law without a constant exponent is asked for one


@dataclass(frozen=True)
class Parameter:
    """One parameter of a law.

    Attributes:
      name: as reported, in the law's own units.
      starts: values of theta that the grid of starts uses.
      low, high: bounds of theta. The fit warns when a parameter ends on one.
      log: theta = ln(value) if true, so that the value stays positive; else theta = value.
      loss_units: theta moves by ln(s) when the target is multiplied by s (only with `log`).
      x_units: theta moves by ln(s) when the law's first column is multiplied by s (only with `log`).
      role: "exponent" (multiplies a logarithm), "floor" (the irreducible loss) or "". The fit reports where optima that
        fit equally well disagree on either.
    """

    name: str
    starts: tuple[float, ...]
    low: float
    high: float
    log: bool = False
    loss_units: bool = False
    x_units: bool = False
    role: str = ""


# The bounds are ours, and wide: an exponent of 3 or a coefficient of e^90 has never been reported.


def floor(name: str, starts: tuple[float, ...]) -> Parameter:
    return Parameter(name, starts, -14.0, 5.0, log=True, loss_units=True, role="floor")


def coefficient(name: str, starts: tuple[float, ...], low: float = -20.0, high: float = 90.0) -> Parameter:
    """A positive factor of the target."""
    return Parameter(name, starts, low, high, log=True, loss_units=True)


def exponent(name: str, starts: tuple[float, ...], low: float = 0.0, high: float = 3.0) -> Parameter:
    return Parameter(name, starts, low, high, role="exponent")


def positive(name: str, starts: tuple[float, ...], low: float, high: float, x_units: bool = False) -> Parameter:
    """A positive number in its own units, or in those of the law's first column."""
    return Parameter(name, starts, low, high, log=True, x_units=x_units)


@dataclass(frozen=True)
class Law:
    """A law as data; see the module's docstring for shapes.

    Attributes:
      formula: text with a `{name}` for each parameter.
      source: where the formula is from.
      columns: columns of `row` that `form` reads.
      parameters: in the order of theta.
      form: (theta (P, S, 1), row) -> ln of the predicted target, (S, n), or with `linear` the target itself. The fit
        takes exact derivatives, of what `duals` knows, else by differences.
      target: the column that the law predicts.
      linear: the target may be zero or negative: `form` predicts it, not its logarithm, and so are residuals.
      signed: columns that may be zero or negative.
      optimum: (values by name, C in FLOPs) -> (N, D) of least loss under C = 6 N D; None: has none. `get` adds one by
        search to a law of L in N and D without a closed one.
      exponents: (values by name, C) -> {"a": of N_opt ~ C^a, "b": of D_opt ~ C^b} near C; None: has none.
      constant: columns that may be the same in every run.
      members: the laws that it is an average of; the fit then fits each by itself.
      name: what `get` makes it from.
    """

    formula: str
    source: str
    columns: tuple[str, ...]
    parameters: tuple[Parameter, ...]
    form: Form
    target: str = "L"
    optimum: Callable[[Values, float], tuple[float, float]] | None = None
    exponents: Callable[..., dict[str, float]] | None = None
    constant: tuple[str, ...] = ()
    members: tuple[Law, ...] = ()
    name: str = ""
    linear: bool = False
    signed: tuple[str, ...] = ()

    @property
    def varying(self) -> tuple[str, ...]:
        """The columns that a fit needs two values of."""
        return tuple(name for name in self.columns if name not in self.constant)

    @property
    def any_sign(self) -> tuple[str, ...]:
        """What may be zero or negative: `signed`, and the target of a linear law."""
        return (*self.signed, self.target) if self.linear else self.signed

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(p.name for p in self.parameters)

    @property
    def num_params(self) -> int:
        """How many parameters are fitted to the same runs; of an average, the most of any member."""
        return max(law.num_params for law in self.members) if self.members else len(self.parameters)

    @property
    def has_floor(self) -> bool:
        """Whether it predicts a loss above zero at any compute; of an average: whether each member does."""
        return all(law.has_floor for law in self.members) if self.members else bool(self.floor)

    @property
    def exponent_names(self) -> tuple[str, ...]:
        return tuple(p.name for p in self.parameters if p.role == "exponent")

    @property
    def floor(self) -> str:
        """The parameter that is the irreducible loss, or ""."""
        return next((p.name for p in self.parameters if p.role == "floor"), "")

    def starts(self, shift: float = 0.0, x_shift: float = 0.0) -> np.ndarray:
        """Every combination of the parameters' starts, (S, P), for targets e^`shift` and a first column e^`x_shift`
        times the usual size."""
        moves = self._moves(shift, x_shift)
        axes = [[s + move for s in p.starts] for p, move in zip(self.parameters, moves, strict=True)]
        return np.array(list(itertools.product(*axes)), dtype=np.float64)

    def bounds(self, shift: float = 0.0, x_shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
        """(low, high) of theta, each (P,)."""
        moves = self._moves(shift, x_shift)
        return np.array([p.low for p in self.parameters]) + moves, np.array([p.high for p in self.parameters]) + moves

    def _moves(self, shift: float, x_shift: float) -> np.ndarray:
        return np.array([shift * p.loss_units + x_shift * p.x_units for p in self.parameters])

    def values(self, theta: np.ndarray) -> np.ndarray:
        """theta (..., P) -> parameters in the law's own units (..., P)."""
        log = np.array([p.log for p in self.parameters])
        with np.errstate(over="ignore"):  # a resample's coefficient may be beyond float64
            return np.where(log, np.exp(np.where(log, theta, 0.0)), theta)

    def named(self, theta: np.ndarray) -> dict[str, float]:
        """theta (P,) -> parameters by name."""
        return dict(zip(self.names, (float(v) for v in self.values(theta)), strict=True))

    def theta(self, values: Values) -> np.ndarray:
        """Parameters by name -> theta (P,). UsageError: one is missing, isn't a number, or must be positive."""
        out = []
        for p in self.parameters:
            if p.name not in values:
                raise UsageError(f"law {self.name!r} needs parameter {p.name!r}{nearest(p.name, values)}")
            value = values[p.name]
            if not isinstance(value, int | float) or not math.isfinite(value) or (p.log and value <= 0):
                wanted = "a positive number" if p.log else "a number"
                raise UsageError(f"law {self.name!r}: parameter {p.name!r} is {value!r}, expected {wanted}")
            out.append(math.log(value) if p.log else value)
        return np.array(out, dtype=np.float64)

    def predict(self, values: Values, row: Row) -> np.ndarray:
        """Target (n,) at each of the n rows of `row`."""
        return self.predict_all(self.theta(values)[None], row)[0]

    def predict_all(self, theta: np.ndarray, row: Row) -> np.ndarray:
        """Target (S, n) of S candidates theta (S, P) at each of the n rows of `row`."""
        columns = {name: np.atleast_1d(np.asarray(row[name], dtype=np.float64)) for name in self.columns}
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            value = self.form(theta.T[:, :, None], columns)
            return value if self.linear else np.exp(value)


# ---------------------------------------------------------------------------------- laws by name


def makers() -> dict[str, Callable[..., Law]]:
    """Every law's function by its name."""
    found = {}
    for name in MODULES:
        module = importlib.import_module(f"{__name__}.{name}")
        for key, f in vars(module).items():
            own = inspect.isfunction(f) and f.__module__ == module.__name__ and not key.startswith("_")
            if own and inspect.get_annotations(f).get("return") == "Law":
                found[key] = f
    return dict(sorted(found.items()))


def get(name: str) -> Law:
    """The law of a name, as "chinchilla" or "bnsl:x=D,breaks=2", or of a user's .py file.

    Raises:
      UsageError: no such law, argument or file; the nearest is named.
    """
    return with_optimum(from_file(name) if name.endswith(".py") else _built_in(name))


def _built_in(name: str) -> Law:
    known = makers()
    head, _, rest = name.partition(":")
    if head not in known:
        if head in (entries := config.entry_points("laws")):
            return from_module(config.load_entry(entries[head]), head)
        raise UsageError(f"no law {head!r}{nearest(head, known)}; laws are {', '.join(known)}, or a .py file")
    defaults = {key: p.default for key, p in inspect.signature(known[head]).parameters.items()}
    arguments = dict(defaults)
    for pair in filter(None, rest.split(",")):
        key, _, value = pair.partition("=")
        if key not in defaults or not value:
            takes = ", ".join(f"{k}={v}" for k, v in defaults.items()) or "no arguments"
            raise UsageError(f"law {name!r}: {pair!r} is not an argument; {head} takes {takes}")
        arguments[key] = value
        if isinstance(defaults[key], int):
            if not value.isdigit() or not 0 < int(value) <= MOST_BREAKS:
                raise UsageError(f"law {name!r}: {key}={value!r}, expected 1 to {MOST_BREAKS}")
            arguments[key] = int(value)
    law = known[head](**arguments)
    if law.target in law.columns:
        raise UsageError(f"law {name!r} would predict {law.target} from {law.target} itself")
    said = ",".join(f"{key}={value}" for key, value in arguments.items())
    return replace(law, name=f"{head}:{said}" if said else head)


def from_file(path: str) -> Law:
    """A user's law: a Python file with

        PARAMETERS = {"E": (1, 2), "A": (10, 1e3, 1e5), "alpha": (0.2, 0.5)}   name -> positive starts; all are combined
        def form(params, row): return params["E"] + params["A"] / row["N"] ** params["alpha"]

    `form` returns the predicted target, positive, by array operations: params are (S, 1) arrays, columns (n,).
    Optional: COLUMNS = ("N", "D") that form reads (default: N, D), TARGET = "L", SIGNED = {"x", ...} parameters that
    may be zero or negative (every other is positive), LINEAR = True where the target itself may be, and FORMULA, text.

    Raises:
      UsageError: what of this is missing or wrong, or what `form` raised.
    """
    return from_module(config.load_module(path, "law"), path)


def from_module(module: Any, path: str) -> Law:
    """`from_file`, of an imported module; `path` is named in errors."""
    config.check_exports(module, f"law file {path!r}", ("PARAMETERS", "form"))
    given, user_form = module.PARAMETERS, module.form
    for name in ("SIGNED", "COLUMNS"):
        value = getattr(module, name, ("N",))
        texts = isinstance(value, tuple | list | set) and all(isinstance(v, str) for v in value)
        if not texts or (name == "COLUMNS" and not value):
            raise UsageError(f"law file {path!r}: {name}={value!r}: expected a tuple of names")
    signed, linear = set(getattr(module, "SIGNED", ())), bool(getattr(module, "LINEAR", False))
    if not isinstance(given, dict) or not given:
        raise UsageError(f"law file {path!r}: PARAMETERS={given!r}: expected a dict of name -> starts")
    parameters = []
    for name, starts in given.items():
        log = name not in signed
        good = isinstance(starts, tuple | list) and starts and all(isinstance(s, int | float) for s in starts)
        if not good or (log and min(starts) <= 0):
            wanted = "positive numbers" if log else "numbers"
            raise UsageError(f"law file {path!r}: starts of {name!r} are {starts!r}, expected a tuple of {wanted}")
        theta = tuple(math.log(s) if log else float(s) for s in starts)
        reach = 40.0 if log else 100 * (1 + max(abs(t) for t in theta))  # e^40: far, but no overflow
        parameters.append(Parameter(name, theta, min(theta) - reach, max(theta) + reach, log))
    unknown = sorted(signed - set(given))
    if unknown:
        raise UsageError(f"law file {path!r}: SIGNED names {unknown[0]!r}{nearest(unknown[0], given)}")

    def form(theta: Any, row: Row) -> Any:
        params = {n: (np.exp(t) if n not in signed else t) for n, t in zip(given, theta, strict=True)}
        # Starts may be where the user's form overflows or has no value: those lose, and numpy needn't warn.
        with config.user_code(path, "law", "form()"), np.errstate(all="ignore"):
            value = user_form(params, row)
            if isinstance(value, Dual):
                return value if linear else np.log(value)
            value = np.asarray(value, dtype=np.float64)
            value = np.broadcast_to(value, (theta.shape[1], len(next(iter(row.values())))))
        if linear:
            return value
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(value > 0, np.log(np.where(value > 0, value, 1.0)), np.nan)

    columns, target = tuple(getattr(module, "COLUMNS", ("N", "D"))), getattr(module, "TARGET", "L")
    if (set(columns), target) == ({"N", "D"}, "L") and {"a", "b"} & given.keys():
        raise UsageError(f"law file {path!r}: a and b are the optimum's exponents: give its parameters other names")
    return Law(
        getattr(module, "FORMULA", f"form({', '.join(f'{n}={{{n}}}' for n in given)})"),
        f"the user's file {path}",
        columns,
        tuple(parameters),
        form,
        target=target,
        name=path,
        linear=linear,
    )


# ----------------------------------------------------------------------------- optima by search


def with_optimum(law: Law) -> Law:
    """A law of L in N and D with `optimum` and `exponents` by search along C = 6 N D, if it has no closed ones."""
    if law.optimum is not None or law.target != "L" or set(law.columns) != {"N", "D"}:
        return law

    def optimum(values: Values, flops: float) -> tuple[float, float]:
        theta = law.theta(values)[:, None, None]
        budget = math.log(flops / FLOPS_PER_PARAM_TOKEN)
        low, high = 0.0, budget
        for _ in range(12):  # each round keeps 2 of 64 intervals around the best
            log_n = np.linspace(low, high, 65)
            loss = law.form(theta, {"N": np.exp(log_n), "D": np.exp(budget - log_n)})[0]
            best = int(np.argmin(np.where(np.isfinite(loss), loss, np.inf)))
            if high - low > 1 and best in (0, 64):  # the best N is no or every parameter: no optimum
                return math.nan, math.nan
            low, high = float(log_n[max(best - 1, 0)]), float(log_n[min(best + 1, 64)])
            if high - low < 1e-7:  # below, the loss is flat to rounding
                break
        n = math.exp((low + high) / 2)
        return n, flops / (FLOPS_PER_PARAM_TOKEN * n)

    def exponents(values: Values, flops: float = REFERENCE_FLOPS) -> dict[str, float]:
        (n0, _), (n1, _) = optimum(values, flops / 10), optimum(values, flops * 10)
        a = math.log(n1 / n0) / math.log(100.0) if n0 > 0 and n1 > 0 else math.nan
        return {"a": a, "b": 1 - a}

    return replace(law, optimum=optimum, exponents=exponents)
