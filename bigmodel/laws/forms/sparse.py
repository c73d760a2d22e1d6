"""Laws of models that use part of their weights or bits: experts, granularity, pruning, parallel streams, precision.

Legend: S candidate parameter sets, n runs; N parameters, D tokens or examples, L loss, E irreducible loss. Fractions
are given as what remains (`density`, `active`), so that every column is positive.
"""

from __future__ import annotations

import math

import numpy as np

from bigmodel.laws.duals import log_sum
from bigmodel.laws.forms import Law, Parameter, Row, coefficient, exponent, floor, positive

FLOOR = (-0.5, 0.5)  # starts of the logarithm of the irreducible loss; those of coefficients and exponents:
COEFFICIENT = (3.0, 8.0)
EXPONENT = (0.15, 0.45)
EITHER_SIGN = (-0.2, 0.2)


def clark() -> Law:
    """log L = a log N + b log e + c log N log e + d, e the saturated number of experts; logarithms of base 10.

        1/e = 1/(experts - 1 + 1/(1/E_start - 1/E_max)) + 1/E_max,

    so that e = E_start for one expert and e -> E_max for many. N counts what one token uses, in parameters. One law per
    routing technique; dense models are `experts` = 1. Published (Table 3: a, b, c, d, E_start, E_max):

        S-BASE -0.082 -0.108 0.009 1.104 1.847 314.478
        RL-R   -0.083 -0.126 0.012 1.111 1.880 469.982
        Hash   -0.087 -0.136 0.012 1.157 4.175 477.741
    """

    def form(theta: np.ndarray, row: Row) -> np.ndarray:
        a, b, c, d, e_start, e_max = theta
        first = np.exp(-e_start) - np.exp(-e_max)
        log_e = -np.log10(1 / (row["experts"] - 1 + 1 / first) + np.exp(-e_max))
        log_n = np.log10(row["N"])
        return math.log(10) * (a * log_n + b * log_e + c * log_n * log_e + d)

    parameters = (
        exponent("a", (-0.1, -0.05), -3.0, 3.0),
        exponent("b", (-0.3, -0.1), -3.0, 3.0),
        Parameter("c", (0.0, 0.02), -1.0, 1.0),
        Parameter("d", (0.5, 1.0), -20.0, 20.0),
        positive("E_start", (0.0, 1.0), -2.0, 2.9),  # below E_max
        positive("E_max", (4.0, 5.5, 7.0), 3.0, 16.0),
    )
    formula = "10^({a} log N + {b} log e + {c} log N log e + {d}), e saturates from {E_start} to {E_max}"
    return Law(formula, "Clark et al. 2022, arXiv:2202.01169, equation 1", ("N", "experts"), parameters, form)


def krajewski() -> Law:
    """L = c + (g / G^gamma + a) / N^alpha + b / D^beta, G the granularity: how many times finer the experts are.

    N counts the parameters that one token uses. Published, for 64 experts: a 18.1, alpha 0.115, b 30.8, beta 0.147,
    g 2.1, gamma 0.58, c 0.47.
    """

    def form(theta: np.ndarray, row: Row) -> np.ndarray:
        c, a, alpha, b, beta, g, gamma = theta
        log_n, log_d, log_g = (np.log(row[name]) for name in ("N", "D", "G"))
        return log_sum(c, a - alpha * log_n, b - beta * log_d, g - gamma * log_g - alpha * log_n)

    parameters = (
        floor("c", (-1.0, 0.5)),
        coefficient("a", COEFFICIENT),
        exponent("alpha", EXPONENT),
        coefficient("b", COEFFICIENT),
        exponent("beta", EXPONENT),
        coefficient("g", (1.0, 5.0)),
        exponent("gamma", (0.3, 1.0)),
    )
    formula = "{c} + ({g}/G^{gamma} + {a})/N^{alpha} + {b}/D^{beta}"
    source = "Krajewski et al. 2024, arXiv:2402.07871"
    return Law(formula, source, ("N", "D", "G"), parameters, form)


def abnar() -> Law:
    """L = e + a / N^alpha + b / D^beta + c / active^lam + d / (active^delta N^gamma), active = 1 - sparsity.

    The sparsity of a mixture of experts is the fraction of its experts that a token leaves out; N counts all of them.
    `lam` and `delta` may be negative: with few active weights the third term then falls. The form is confirmed by a
    transcription only, the published constants aren't.
    """

    def form(theta: np.ndarray, row: Row) -> np.ndarray:
        e, a, alpha, b, beta, c, lam, d, delta, gamma = theta
        log_n, log_d, log_k = (np.log(row[name]) for name in ("N", "D", "active"))
        both = d - delta * log_k - gamma * log_n
        return log_sum(e, a - alpha * log_n, b - beta * log_d, c - lam * log_k, both)

    parameters = (
        floor("e", FLOOR),
        coefficient("a", (4.0, 9.0)),
        exponent("alpha", (0.3, 0.6)),
        coefficient("b", (4.0, 9.0)),
        exponent("beta", (0.4,)),
        coefficient("c", (-1.0,)),
        exponent("lam", EITHER_SIGN, -3.0, 3.0),
        coefficient("d", (2.0,)),
        exponent("delta", EITHER_SIGN, -3.0, 3.0),
        exponent("gamma", (0.15,)),
    )
    formula = "{e} + {a}/N^{alpha} + {b}/D^{beta} + {c}/active^{lam} + {d}/(active^{delta} N^{gamma})"
    source = "Abnar et al. 2025, arXiv:2501.12370"
    return Law(formula, source, ("N", "D", "active"), parameters, form)


def frantar() -> Law:
    """L = c + (a_S density^b_S + c_S) / N^b_N + a_D / D^b_D, density = 1 - the sparsity of a pruned model.

    N counts weights that aren't zero. a_D stands for the paper's a_D^b_D, as in the authors' code. Their optima, with N
    in millions: ViT (D in 1e9 images; delta 0.01 of unlogged residuals) a_S 1.305, b_S 0.821, c_S 2.075, b_N 0.392,
    a_D 0.278, b_D 0.890, c 4.517; T5 (D in 1e5 steps; logged) 0.568, 0.722, 1.523, 0.245, 0.634, 0.203, 0.651,
    where their search stopped early: 0.436, 1.345, 1.695, 0.232, 0.418, 0.385, 0.830 has 0.64 of that objective.
    """

    def form(theta: np.ndarray, row: Row) -> np.ndarray:
        c, a_s, b_s, c_s, b_n, a_d, b_d = theta
        log_s, log_n, log_d = (np.log(row[name]) for name in ("density", "N", "D"))
        return log_sum(c, a_s + b_s * log_s - b_n * log_n, c_s - b_n * log_n, a_d - b_d * log_d)

    parameters = (
        floor("c", (-1.0, 0.0, 1.0)),
        coefficient("a_S", (0.0, 3.0, 8.0)),
        exponent("b_S", (0.3, 1.0)),
        coefficient("c_S", (0.0, 3.0, 8.0)),
        exponent("b_N", (0.2, 0.5)),
        coefficient("a_D", (0.0, 4.0, 10.0)),
        exponent("b_D", (0.2, 0.8)),
    )
    formula = "{c} + ({a_S} density^{b_S} + {c_S})/N^{b_N} + {a_D}/D^{b_D}"
    source = "Frantar et al. 2023, arXiv:2309.08520, equation 1"
    return Law(formula, source, ("N", "D", "density"), parameters, form)


def parallel() -> Law:
    """L = E + (A / (N (k ln P + 1)))^alpha: P parallel streams of one model are worth k ln P more parameters."""

    def form(theta: np.ndarray, row: Row) -> np.ndarray:
        e, a, alpha, k = theta
        return log_sum(alpha * (a - np.log(row["N"]) - np.log1p(np.exp(k) * np.log(row["P"]))), e)

    parameters = (
        floor("E", (-1.0, -0.3, 0.3)),
        positive("A", (10.0, 15.0, 20.0), -20.0, 90.0),
        exponent("alpha", (0.1, 0.2, 0.4)),
        positive("k", (-2.0, -1.0, 0.0), -9.0, 5.0),
    )
    formula = "{E} + ({A} / (N ({k} ln P + 1)))^{alpha}"
    return Law(formula, "Chen et al. 2025, arXiv:2505.10475", ("N", "P"), parameters, form)


def precision() -> Law:
    """L = E + A / N_eff^alpha + B / D^beta, N_eff = N times 1 - exp(-P/gamma) of weights, activations and KV cache.

    P_w, P_a and P_kv are bits in training; 16 and above change nothing. Published (Table 2): A 4.299e3, B 1.806e4,
    E 2.7648, alpha = beta = 0.4965, gamma_w 2.6745, gamma_a 2.2102, gamma_kv 0.9578, each gamma with an offset n of its
    own in the exponent (0.3037, 1.4072, 2.4185), which the paper's text and this law leave out.
    """
    bits = ("P_w", "P_a", "P_kv")

    def form(theta: np.ndarray, row: Row) -> np.ndarray:
        e, a, alpha, b, beta, *gammas = theta
        used = np.log(row["N"])
        for name, gamma in zip(bits, gammas, strict=True):
            used = used + np.log(-np.expm1(-row[name] * np.exp(-gamma)))
        return log_sum(a - alpha * used, b - beta * np.log(row["D"]), e)

    parameters = (
        floor("E", FLOOR),
        coefficient("A", COEFFICIENT),
        exponent("alpha", (0.3, 0.5)),
        coefficient("B", (5.0, 10.0)),
        exponent("beta", (0.3, 0.5)),
        *(positive(f"gamma_{name[2:]}", (0.0, 1.0), -3.0, 4.0) for name in bits),
    )
    formula = "{E} + {A}/N_eff^{alpha} + {B}/D^{beta}, gamma {gamma_w}, {gamma_a}, {gamma_kv}"
    source = "Kumar et al. 2024, arXiv:2411.04330, equations 3 and 4"
    return Law(formula, source, ("N", "D", *bits), parameters, form, constant=bits)


def quantization() -> Law:
    """degradation = C_T D^gamma_D / N^gamma_N exp(-P_post / gamma_post): the loss that rounding a trained model adds.

    P_post bits per weight after training. With `chinchilla` it gives the D beyond which more data hurts (equation 13).
    Published (Table 2): C_T 0.0598, gamma_D 0.5068, gamma_N 0.3439, gamma_post 0.5907, with an offset 1.1277 in the
    exponent that the text and this law leave out.
    """

    def form(theta: np.ndarray, row: Row) -> np.ndarray:
        c, by_d, by_n, post = theta
        return c + by_d * np.log(row["D"]) - by_n * np.log(row["N"]) - row["P_post"] * np.exp(-post)

    parameters = (
        coefficient("C_T", (-3.0, 0.0), -150.0, 150.0),
        exponent("gamma_D", (0.2, 0.6), -5.0, 5.0),
        exponent("gamma_N", (0.2, 0.6), -5.0, 5.0),
        positive("gamma_post", (-1.0, 0.0, 1.0), -4.0, 5.0),
    )
    formula = "{C_T} D^{gamma_D}/N^{gamma_N} exp(-P_post/{gamma_post})"
    source = "Kumar et al. 2024, arXiv:2411.04330, equation 2"
    columns = ("N", "D", "P_post")
    return Law(formula, source, columns, parameters, form, target="degradation", constant=("P_post",))
