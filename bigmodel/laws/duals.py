"""Derivatives of a law by the parameters, of any form that is made of NumPy's elementwise functions.

A `Dual` is an array that carries its slopes by the parameters (forward mode; Wengert 1964, Communications of the ACM
7:8), sparsely: a term that has two of seven parameters has two slopes. Second derivatives aren't carried. A result
keeps its operands, and with w_k the derivative of the last result by the k-th, x_k = f_k(x_p, x_q ...), the Hessian is
the sum over k of w_k f_k''[p, q] (slopes of x_p) (slopes of x_q)': one sweep backwards (Griewank & Walther 2008,
"Evaluating Derivatives", chapter 7).

Fast are + - * / **, comparisons, and of numpy: add, subtract, multiply, divide, power, negative, positive, exp, exp2,
expm1, log, log2, log10, log1p, sqrt, square, reciprocal, abs, sin, cos, tanh, arctan, maximum, minimum, logaddexp,
where, clip; sign, floor, ceil, isfinite and isnan as constants. Whatever else a form uses is a TypeError here, and the
fit takes differences instead.

Legend: S candidates, P parameters, n runs.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

Number = Any  # an array that broadcasts to (S, n), or a float
Slopes = dict[int, Number]  # index of a parameter -> derivative
LN2, LN10 = math.log(2), math.log(10)

# f -> (f' of x and f(x), f'' of x, f(x) and f').
UNARY: dict[Any, tuple[Callable[..., Number], Callable[..., Number]]] = {
    np.exp: (lambda x, f: f, lambda x, f, d: f),
    np.exp2: (lambda x, f: LN2 * f, lambda x, f, d: LN2 * d),
    np.expm1: (lambda x, f: f + 1, lambda x, f, d: d),
    np.log: (lambda x, f: 1 / x, lambda x, f, d: -d * d),
    np.log2: (lambda x, f: 1 / (LN2 * x), lambda x, f, d: -LN2 * d * d),
    np.log10: (lambda x, f: 1 / (LN10 * x), lambda x, f, d: -LN10 * d * d),
    np.log1p: (lambda x, f: 1 / (1 + x), lambda x, f, d: -d * d),
    np.sqrt: (lambda x, f: 0.5 / f, lambda x, f, d: -d * d / f),
    np.square: (lambda x, f: 2 * x, lambda x, f, d: 2.0),
    np.reciprocal: (lambda x, f: -f * f, lambda x, f, d: -2 * f * d),
    np.negative: (lambda x, f: -1.0, lambda x, f, d: 0.0),
    np.positive: (lambda x, f: 1.0, lambda x, f, d: 0.0),
    np.absolute: (lambda x, f: np.sign(x), lambda x, f, d: 0.0),
    np.sin: (lambda x, f: np.cos(x), lambda x, f, d: -f),
    np.cos: (lambda x, f: -np.sin(x), lambda x, f, d: -f),
    np.tanh: (lambda x, f: 1 - f * f, lambda x, f, d: -2 * f * d),
    np.arctan: (lambda x, f: 1 / (1 + x * x), lambda x, f, d: -2 * x * d * d),
}
CONSTANT: set[Any] = {np.greater, np.greater_equal, np.less, np.less_equal, np.equal, np.not_equal}
CONSTANT |= {np.sign, np.floor, np.ceil, np.isfinite, np.isnan}


class Dual(NDArrayOperatorsMixin):
    """An array (S, 1) or (S, n) with its slopes.

    Attributes:
      edges: (operand, derivative by it) of each operand that isn't linear in the parameters; None: `hessian` isn't
        wanted.
      bends: (second derivative, slopes of one operand, slopes of the other): its product with both outer products of
        the two, or with the one where they are the same.
    """

    __slots__ = ("bends", "edges", "slopes", "value")

    def __init__(self, value: Number, slopes: Slopes, edges: Any = None, bends: Any = ()) -> None:
        self.value, self.slopes, self.edges, self.bends = value, slopes, edges, bends

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        raise TypeError("an array would lose the derivatives")

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        if method != "__call__" or kwargs:
            return NotImplemented
        if ufunc in UNARY:
            return _unary(ufunc, self)
        if ufunc in CONSTANT:
            return ufunc(*(value_of(x) for x in inputs))
        return BINARY[ufunc](*inputs) if ufunc in BINARY else NotImplemented

    def __array_function__(self, function: Any, _: Any, args: Any, kwargs: Any) -> Any:
        if function is np.clip:
            return _clip(*args, **kwargs)
        return _where(*args, **kwargs) if function is np.where else NotImplemented


def value_of(x: Any) -> Number:
    return x.value if isinstance(x, Dual) else x


def variables(theta: np.ndarray, second: bool) -> list[Dual]:
    """The parameters (P, S, 1) as P duals; `second`: `hessian` will be asked for."""
    return [Dual(x, {i: 1.0}, () if second else None) for i, x in enumerate(theta)]


def _made(
    value: Number, parents: Sequence[tuple[Any, Number]], bends: Callable[[Slopes], list[Any]] = lambda _: []
) -> Dual:
    """The result of an operation on `parents`: (operand, derivative by it) of each, constants among them."""
    slopes: Slopes = {}
    duals = [(x, d) for x, d in parents if isinstance(x, Dual)]
    for x, d in duals:
        for i, slope in x.slopes.items():
            part = _times(d, slope)
            slopes[i] = slopes[i] + part if i in slopes else part
    if any(x.edges is None for x, _ in duals):
        return Dual(value, slopes)
    return Dual(value, slopes, [(x, d) for x, d in duals if x.edges or x.bends], bends(slopes))


def _times(x: Number, y: Number) -> Number:
    """x y, without a product by 1 (most slopes are); a bool x chooses y, even an infinite one."""
    if isinstance(x, np.ndarray) and x.dtype.kind == "b":
        return np.where(x, y, 0.0)
    return y if isinstance(x, float) and x == 1 else x if isinstance(y, float) and y == 1 else x * y


def _unary(f: Any, x: Dual) -> Dual:
    first, second = UNARY[f]
    value = f(x.value)
    d = first(x.value, value)

    def bends(slopes: Slopes) -> list[Any]:
        if f is np.log:  # the common last step: its slopes are needed anyway
            return [(-1.0, slopes, slopes)]
        bend = second(x.value, value, d)
        return [] if isinstance(bend, float) and bend == 0 else [(bend, x.slopes, x.slopes)]

    return _made(value, [(x, d)], bends)


def _multiply(x: Any, y: Any) -> Dual:
    def bends(_: Slopes) -> list[Any]:
        if not (isinstance(x, Dual) and isinstance(y, Dual)):
            return []
        return [(2.0 if x is y else 1.0, x.slopes, y.slopes)]

    a, b = value_of(x), value_of(y)
    return _made(a * b, [(x, b), (y, a)], bends)


def _divide(x: Any, y: Any) -> Dual:
    if isinstance(y, Dual):
        return _multiply(x, _unary(np.reciprocal, y))
    return _made(x.value / y, [(x, 1 / np.asarray(y, dtype=np.float64))])


def _power(x: Any, y: Any) -> Dual:
    if isinstance(x, Dual) and isinstance(y, Dual):
        return _unary(np.exp, _multiply(y, _unary(np.log, x)))
    if isinstance(x, Dual):
        d = y * np.power(x.value, y - 1.0)
        value = np.power(x.value, y)
        return _made(value, [(x, d)], lambda _: [(y * (y - 1.0) * np.power(x.value, y - 2.0), x.slopes, x.slopes)])
    # As an exponential: the logarithm is of the base alone, (n,), and all of (S, n) that is left is one exp.
    positive = np.asarray(x) > 0
    log = np.log(np.where(positive, x, 1.0))
    value = np.exp(y.value * log)
    if not positive.all():
        value = np.where(positive, value, np.power(x, y.value))
    d = value * log
    return _made(value, [(y, d)], lambda _: [(d * log, y.slopes, y.slopes)])


def _where(first: Any, x: Any, y: Any) -> Dual:
    first = np.asarray(first, dtype=bool)
    return _made(np.where(first, value_of(x), value_of(y)), [(x, first), (y, ~first)])


def _clip(x: Any, low: Any, high: Any) -> Any:
    return np.minimum(np.maximum(x, low), high)


def log_sum(*terms: Any) -> Any:
    """ln of the sum of e^term, shifted by the largest: Besiroglu et al. 2024's unshifted code overflows.

    Of duals as of arrays. Its Hessian is the sum over terms k of the share of k in the sum times that of k and
    x_k x_k', x_k the term's slopes, less g g', g its own.
    """
    values = [value_of(term) for term in terms]
    top = functools.reduce(np.maximum, values)
    parts = [np.exp(value - top) for value in values]
    total = functools.reduce(np.add, parts)
    value, inverse = top + np.log(total), 1 / total
    shares = [(term, part * inverse) for term, part in zip(terms, parts, strict=True) if isinstance(term, Dual)]
    if not shares:
        return value
    own = [(share, term.slopes, term.slopes) for term, share in shares]
    return _made(value, shares, lambda slopes: [*own, (-1.0, slopes, slopes)])


BINARY: dict[Any, Callable[[Any, Any], Dual]] = {
    np.add: lambda x, y: _made(value_of(x) + value_of(y), [(x, 1.0), (y, 1.0)]),
    np.subtract: lambda x, y: _made(value_of(x) - value_of(y), [(x, 1.0), (y, -1.0)]),
    np.multiply: _multiply,
    np.divide: _divide,
    np.power: _power,
    np.maximum: lambda x, y: _where(value_of(x) >= value_of(y), x, y),
    np.minimum: lambda x, y: _where(value_of(x) <= value_of(y), x, y),
    np.logaddexp: log_sum,
}


def stacked(dual: Dual, shape: tuple[int, int, int]) -> np.ndarray:
    """The slopes as one array (S, P, n)."""
    out = np.zeros(shape)
    for i, slope in dual.slopes.items():
        out[:, i] = slope
    return out


def hessian(result: Dual, pull: np.ndarray, own: np.ndarray, slopes: np.ndarray) -> np.ndarray:
    """Sum over runs of pull times the second derivatives, plus own times the outer product of the slopes; (S, P, P).

    `pull` and `own` are (S, n), `slopes` those of `result` as `stacked` gives them.
    """
    order: list[Dual] = []
    seen: set[int] = set()

    def visit(node: Dual) -> None:
        if id(node) not in seen:
            seen.add(id(node))
            for parent, _ in node.edges:
                visit(parent)
            order.append(node)

    visit(result)
    weights: dict[int, Number] = {id(result): pull}
    out = np.zeros((len(slopes), slopes.shape[1], slopes.shape[1]))
    for node in reversed(order):  # each after all that are made from it
        weight = weights[id(node)]
        for parent, d in node.edges:
            part = _times(d, weight)
            if parent.value.shape[-1] == 1 != part.shape[-1]:  # the same for all runs: summed over them
                part = part.sum(axis=-1, keepdims=True)
            weights[id(parent)] = weights[id(parent)] + part if id(parent) in weights else part
        for bend, left, right in node.bends:
            if left is result.slopes and right is left:
                own = own + bend * weight
            else:
                _add_outer(out, weight, bend, left, right)
    return out + np.matmul(slopes * own[:, None, :], slopes.transpose(0, 2, 1))


def _add_outer(out: np.ndarray, weight: Number, bend: Number, left: Slopes, right: Slopes) -> None:
    """Adds a node's bend, summed over the runs, to out (S, P, P)."""
    both = _times(bend, weight)
    for i, x in left.items():
        row = _times(x, both)
        for j, y in right.items():
            if left is right and j < i:  # written with its mirror image
                continue
            # Of a constant's (n,) it is a product of matrices, which is faster.
            flat = np.shape(y) == row.shape[-1:]
            total = row @ y if flat else np.einsum("sn,sn->s", *np.broadcast_arrays(row, y))
            if not np.isfinite(total).all():  # a branch that isn't taken may be infinite
                total = np.where(weight == 0, 0.0, row * y).sum(axis=-1)
            out[:, i, j] += total
            if left is not right or i != j:
                out[:, j, i] += total
