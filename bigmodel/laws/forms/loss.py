"""Laws of the loss in a model's size and its data: N and D, and what refines them.

Legend: S candidate parameter sets, P parameters, n runs; N parameters, D tokens or examples seen, U unique ones,
C training FLOPs, L loss (nats per token); E irreducible loss.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bigmodel.laws.forms import FLOPS_PER_PARAM_TOKEN, Law, Parameter, Row, Values, with_optimum

FLOOR = (-1.0, -0.5, 0.0, 0.5, 1.0)  # starts of ln E, of Hoffmann et al. 2022, appendix D; those of ln A and ln B:
COEFFICIENT = (0.0, 5.0, 10.0, 15.0, 20.0, 25.0)


def _log_sum(*terms: np.ndarray) -> np.ndarray:
    """ln of the sum of e^term, shifted by the largest: Besiroglu et al. 2024's unshifted code overflows."""
    top = functools.reduce(np.maximum, terms)
    return top + np.log(sum(np.exp(term - top) for term in terms))


def _shares(*terms: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """ln of the sum of e^term, and each term's share in it."""
    top = functools.reduce(np.maximum, terms)
    parts = [np.exp(term - top) for term in terms]
    total = functools.reduce(np.add, parts)
    return top + np.log(total), [part / total for part in parts]


def _bend(pull: np.ndarray, shares: Sequence[np.ndarray], inside: Sequence[Mapping[int, Any]], size: int) -> np.ndarray:
    """Sum over runs of pull (S, n) times the second derivatives of the log of a sum of terms e^(linear in theta).

    With shares w_k (S, n) of the terms in the sum and x_k their derivatives by parameter (`inside`: index -> number or
    (n,)), they are sum over k of w_k x_k x_k' minus the outer product of sum over k of w_k x_k with itself.
    """
    out = np.zeros((len(pull), size, size))
    first = np.zeros((len(pull), size, pull.shape[1]))
    for share, x in zip(shares, inside, strict=True):
        weight = pull * share
        for i, x_i in x.items():
            first[:, i] += share * x_i
            for j, x_j in x.items():
                out[:, i, j] += (weight * (x_i * x_j)).sum(axis=1)
    return out - np.matmul(first * pull[:, None], first.transpose(0, 2, 1))


def _floor() -> Parameter:
    # Bounds are ours, and wide: an exponent of 3 or a coefficient of e^90 has never been reported. E >= e^-14.
    return Parameter("E", FLOOR, -14.0, 5.0, log=True, loss_units=True)


def _coefficient(name: str, starts: tuple[float, ...] = COEFFICIENT) -> Parameter:
    return Parameter(name, starts, -20.0, 90.0, log=True, loss_units=True)


def _exponent(name: str, starts: tuple[float, ...] = (0.0, 0.5, 1.0, 1.5, 2.0)) -> Parameter:
    return Parameter(name, starts, 0.0, 3.0)


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
        return e, a - alpha * np.log(row["N"]), b - beta * np.log(row["D"])

    def form(theta: np.ndarray, row: Row) -> np.ndarray:
        return _log_sum(*terms(theta, row))

    def slopes(theta: np.ndarray, row: Row) -> tuple[np.ndarray, Sequence[np.ndarray]]:
        value, (floor, size, data) = _shares(*terms(theta, row))
        return value, (floor, size, -size * np.log(row["N"]), data, -data * np.log(row["D"]))

    def bend(theta: np.ndarray, row: Row, pull: np.ndarray) -> np.ndarray:
        inside = ({0: 1.0}, {1: 1.0, 2: -np.log(row["N"])}, {3: 1.0, 4: -np.log(row["D"])})
        return _bend(pull, _shares(*terms(theta, row))[1], inside, 5)

    def exponents(p: Values, flops: float = 0.0) -> dict[str, float]:
        total = p["alpha"] + p["beta"]
        if not total > 0:  # a law flat in both has no optimum
            return {"a": math.nan, "b": math.nan}
        return {"a": p["beta"] / total, "b": p["alpha"] / total}

    def optimum(p: Values, flops: float) -> tuple[float, float]:
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

    return Law(
        name="chinchilla",
        formula="{E} + {A}/N^{alpha} + {B}/D^{beta}",
        source="Hoffmann et al. 2022, arXiv:2203.15556, equation 2",
        parameters=(_floor(), _coefficient("A"), _exponent("alpha"), _coefficient("B"), _exponent("beta")),
        columns=("N", "D"),
        form=form,
        slopes=slopes,
        bend=bend,
        optimum=optimum,
        exponents=exponents,
        exponent_names=("alpha", "beta"),
        floor="E",
    )


def kaplan_nd() -> Law:
    """L = [ (N_c / N)^(alpha_N / alpha_D) + D_c / D ]^alpha_D, without a floor.

    Kaplan et al. 2020 (arXiv:2001.08361), equation 1.5; N without embeddings. Published: alpha_N 0.076, alpha_D 0.103,
    N_c 6.4e13, D_c 1.8e13.
    """

    def form(theta: np.ndarray, row: Row) -> np.ndarray:
        alpha_n, n_c, alpha_d, d_c = theta
        return alpha_d * _log_sum(alpha_n / alpha_d * (n_c - np.log(row["N"])), d_c - np.log(row["D"]))

    law = Law(
        name="kaplan_nd",
        formula="[({N_c}/N)^({alpha_N}/{alpha_D}) + {D_c}/D]^{alpha_D}",
        source="Kaplan et al. 2020, arXiv:2001.08361, equation 1.5",
        parameters=(
            Parameter("alpha_N", (0.05, 0.1, 0.3, 0.6), 1e-4, 3.0),
            Parameter("N_c", (15.0, 20.0, 25.0, 30.0, 35.0), -20.0, 300.0, log=True),
            Parameter("alpha_D", (0.05, 0.1, 0.3, 0.6), 1e-4, 3.0),
            Parameter("D_c", (15.0, 20.0, 25.0, 30.0, 35.0), -20.0, 300.0, log=True),
        ),
        columns=("N", "D"),
        form=form,
        exponent_names=("alpha_N", "alpha_D"),
    )
    return with_optimum(law)


def kaplan_ns() -> Law:
    """L = (N_c / N)^alpha_N + (S_c / S)^alpha_S, S the steps at a batch far above the critical one.

    Kaplan et al. 2020 (arXiv:2001.08361), equation 1.6. Published: alpha_N 0.077, N_c 6.5e13, alpha_S 0.76, S_c 2.1e3.
    """

    def form(theta: np.ndarray, row: Row) -> np.ndarray:
        alpha_n, n_c, alpha_s, s_c = theta
        return _log_sum(alpha_n * (n_c - np.log(row["N"])), alpha_s * (s_c - np.log(row["S"])))

    return Law(
        name="kaplan_ns",
        formula="({N_c}/N)^{alpha_N} + ({S_c}/S)^{alpha_S}",
        source="Kaplan et al. 2020, arXiv:2001.08361, equation 1.6",
        parameters=(
            Parameter("alpha_N", (0.05, 0.1, 0.3, 0.6), 1e-4, 3.0),
            Parameter("N_c", (15.0, 25.0, 35.0), -20.0, 300.0, log=True),
            Parameter("alpha_S", (0.1, 0.3, 0.6, 1.0), 1e-4, 3.0),
            Parameter("S_c", (2.0, 5.0, 8.0, 11.0), -20.0, 100.0, log=True),
        ),
        columns=("N", "S"),
        form=form,
        exponent_names=("alpha_N", "alpha_S"),
    )


def gadre() -> Law:
    """L = E + (A M^eta + B M^-eta) C^-eta, M = D / N tokens per parameter, C = 6 N D: one exponent for N and D.

    Gadre et al. 2024 (arXiv:2403.08540), equation 4: over-training moves a power law up and keeps its slope. It is
    `chinchilla` with alpha = beta = 2 eta; the optimum is M = (B/A)^(1/(2 eta)) at every C, so that N_opt ~ C^0.5.
    """

    def terms(theta: np.ndarray, row: Row) -> tuple[np.ndarray, ...]:
        e, a, b, eta = theta
        by_n, by_d = exponents_of(row)
        return e, a - eta * by_n, b - eta * by_d

    def exponents_of(row: Row) -> tuple[np.ndarray, np.ndarray]:
        """What eta multiplies: M^eta C^-eta = (6 N^2)^-eta, and M^-eta C^-eta = (6 D^2)^-eta."""
        six = math.log(FLOPS_PER_PARAM_TOKEN)
        return six + 2 * np.log(row["N"]), six + 2 * np.log(row["D"])

    def form(theta: np.ndarray, row: Row) -> np.ndarray:
        return _log_sum(*terms(theta, row))

    def slopes(theta: np.ndarray, row: Row) -> tuple[np.ndarray, Sequence[np.ndarray]]:
        value, (floor, over, under) = _shares(*terms(theta, row))
        by_n, by_d = exponents_of(row)
        return value, (floor, over, under, -over * by_n - under * by_d)

    def bend(theta: np.ndarray, row: Row, pull: np.ndarray) -> np.ndarray:
        by_n, by_d = exponents_of(row)
        inside = ({0: 1.0}, {1: 1.0, 3: -by_n}, {2: 1.0, 3: -by_d})
        return _bend(pull, _shares(*terms(theta, row))[1], inside, 4)

    def optimum(p: Values, flops: float) -> tuple[float, float]:
        if not (p["eta"] > 0 and p["A"] > 0 and p["B"] > 0):
            return math.nan, math.nan
        log_m = (math.log(p["B"]) - math.log(p["A"])) / (2 * p["eta"])
        if abs(log_m) > 300:
            return math.nan, math.nan
        n = math.sqrt(flops / FLOPS_PER_PARAM_TOKEN / math.exp(log_m))
        return n, flops / (FLOPS_PER_PARAM_TOKEN * n)

    return Law(
        name="gadre",
        formula="{E} + ({A} M^{eta} + {B} M^-{eta}) C^-{eta}, M = D/N, C = 6 N D",
        source="Gadre et al. 2024, arXiv:2403.08540, equation 4",
        parameters=(
            _floor(),
            _coefficient("A"),
            _coefficient("B"),
            Parameter("eta", (0.0, 0.1, 0.2, 0.3, 0.5), 0.0, 1.5),
        ),
        columns=("N", "D"),
        form=form,
        slopes=slopes,
        bend=bend,
        optimum=optimum,
        exponents=lambda p, flops=0.0: {"a": 0.5, "b": 0.5},
        exponent_names=("eta",),
        floor="E",
    )


def muennighoff() -> Law:
    """L = E + A / N'^alpha + B / D'^beta, where repeated data and excess parameters are worth less each time.

        D' = U + U R_D (1 - exp(-(D/U - 1) / R_D)),   U unique tokens, D/U - 1 repetitions,
        N' = V + V R_N (1 - exp(-(N/V - 1) / R_N)),   V = min(N, N_opt of U) by the law's own A, B, alpha, beta.

    Muennighoff et al. 2023 (arXiv:2305.16264), equations 5 and 6 and appendix A. N_opt of D follows from eliminating C
    in `chinchilla`'s optimum: G (G D)^(beta/alpha). Published: R_D 15.39, R_N 5.31, alpha = beta = 0.353.
    """

    def form(theta: np.ndarray, row: Row) -> np.ndarray:
        e, a, alpha, b, beta, r_n, r_d = theta
        log_n, log_d = np.log(row["N"]), np.log(row["D"])
        log_u = np.minimum(np.log(row["U"]), log_d)
        alpha_, beta_ = np.maximum(alpha, 1e-6), np.maximum(beta, 1e-6)
        log_g = (np.log(alpha_ / beta_) + a - b) / (alpha_ + beta_)
        log_v = np.minimum(log_n, log_g + beta_ / alpha_ * (log_g + log_u))
        with np.errstate(over="ignore"):
            data = log_u + np.log1p(np.exp(r_d) * -np.expm1(-np.expm1(log_d - log_u) * np.exp(-r_d)))
            size = log_v + np.log1p(np.exp(r_n) * -np.expm1(-np.expm1(log_n - log_v) * np.exp(-r_n)))
        return _log_sum(a - alpha * size, b - beta * data, e + 0 * size)

    return Law(
        name="muennighoff",
        formula="{E} + {A}/N'^{alpha} + {B}/D'^{beta}, R_N = {R_N}, R_D = {R_D}",
        source="Muennighoff et al. 2023, arXiv:2305.16264, equations 5 and 6",
        parameters=(
            Parameter("E", (-0.5, 0.5), -14.0, 5.0, log=True, loss_units=True),
            _coefficient("A", (3.0, 6.0, 10.0)),
            Parameter("alpha", (0.25, 0.5), 1e-3, 3.0),
            _coefficient("B", (3.0, 6.0, 10.0)),
            Parameter("beta", (0.25, 0.5), 1e-3, 3.0),
            Parameter("R_N", (0.0, 2.0, 4.0), -7.0, 9.0, log=True),
            Parameter("R_D", (1.0, 3.0), -7.0, 9.0, log=True),
        ),
        columns=("N", "D", "U"),
        constant=("U",),  # one set of documents, seen for many epochs, is the usual experiment
        form=form,
        exponent_names=("alpha", "beta"),
        floor="E",
    )


def width_depth() -> Law:
    """L = E + A / width^alpha + F / depth^gamma + B / D^beta: a shape's two ways to be large, apart.

    The form of McLeish et al. 2025 ("Gemstones", arXiv:2502.06857), who fit laws in width and depth, without a term in
    N beside them: width and depth determine N.
    """

    def form(theta: np.ndarray, row: Row) -> np.ndarray:
        e, a, alpha, f, gamma, b, beta = theta
        width = a - alpha * np.log(row["width"])
        return _log_sum(width, f - gamma * np.log(row["depth"]), b - beta * np.log(row["D"]), e + 0 * width)

    return Law(
        name="width_depth",
        formula="{E} + {A}/width^{alpha} + {F}/depth^{gamma} + {B}/D^{beta}",
        source="McLeish et al. 2025, arXiv:2502.06857, without their term in N",
        parameters=(
            Parameter("E", (-1.0, 0.0, 1.0), -14.0, 5.0, log=True, loss_units=True),
            _coefficient("A", (0.0, 3.0, 6.0)),
            _exponent("alpha", (0.3, 0.7, 1.5)),
            _coefficient("F", (-2.0, 1.0)),
            _exponent("gamma", (0.3, 1.0)),
            _coefficient("B", (2.0, 6.0, 10.0)),
            _exponent("beta", (0.2, 0.5)),
        ),
        columns=("width", "depth", "D"),
        form=form,
        exponent_names=("alpha", "beta", "gamma"),
        floor="E",
    )
