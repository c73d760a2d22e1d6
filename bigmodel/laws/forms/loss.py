"""Laws of the loss in a model's size and its data: N and D, and what refines them.

Legend: S candidate parameter sets, P parameters, n runs; N parameters, D tokens or examples seen, U unique ones,
C training FLOPs, L loss (nats per token); E irreducible loss.
"""

from __future__ import annotations

import math

import numpy as np

from bigmodel.laws.duals import log_sum
from bigmodel.laws.forms import (
    FLOPS_PER_PARAM_TOKEN,
    Law,
    Row,
    Values,
    coefficient,
    exponent,
    floor,
    positive,
)

FLOOR = (-1.0, -0.5, 0.0, 0.5, 1.0)  # starts of ln E, of Hoffmann et al. 2022, appendix D; those of ln A and ln B:
COEFFICIENT = (0.0, 5.0, 10.0, 15.0, 20.0, 25.0)
EXPONENT = (0.0, 0.5, 1.0, 1.5, 2.0)  # and those of alpha and beta
KAPLAN = (0.05, 0.1, 0.3, 0.6)  # starts of the exponents of Kaplan et al. 2020


def chinchilla() -> Law:
    """L = E + A / N^alpha + B / D^beta.

    The parametrisation is that of Hoffmann et al. 2022, appendix D: ln L is the log-sum-exp of a - alpha ln N,
    b - beta ln D and e, where A = e^a, B = e^b, E = e^e. The starts are their published grid, 5 * 6 * 5 * 6 * 5 = 4500.
    The optimum (equation 4) is

        N_opt = G (C/6)^a', D_opt = (C/6)^b' / G, G = (alpha A / (beta B))^(1/(alpha + beta)),
        a' = beta / (alpha + beta), b' = alpha / (alpha + beta).

    Units: L and E in the loss's own unit (nats per token), N in parameters, D in tokens or examples, C in FLOPs.
    """

    def form(theta: np.ndarray, row: Row) -> np.ndarray:
        e, a, alpha, b, beta = theta
        return log_sum(e, a - alpha * np.log(row["N"]), b - beta * np.log(row["D"]))

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

    parameters = (
        floor("E", FLOOR),
        coefficient("A", COEFFICIENT),
        exponent("alpha", EXPONENT),
        coefficient("B", COEFFICIENT),
        exponent("beta", EXPONENT),
    )
    source = "Hoffmann et al. 2022, arXiv:2203.15556, equation 2"
    formula = "{E} + {A}/N^{alpha} + {B}/D^{beta}"
    return Law(formula, source, ("N", "D"), parameters, form, optimum=optimum, exponents=exponents)


def kaplan_nd() -> Law:
    """L = [ (N_c / N)^(alpha_N / alpha_D) + D_c / D ]^alpha_D, without a floor; N without embeddings.

    Published: alpha_N 0.076, alpha_D 0.103, N_c 6.4e13, D_c 1.8e13.
    """

    def form(theta: np.ndarray, row: Row) -> np.ndarray:
        alpha_n, n_c, alpha_d, d_c = theta
        return alpha_d * log_sum(alpha_n / alpha_d * (n_c - np.log(row["N"])), d_c - np.log(row["D"]))

    parameters = (
        exponent("alpha_N", KAPLAN, 1e-4),
        positive("N_c", (15.0, 20.0, 25.0, 30.0, 35.0), -20.0, 300.0),
        exponent("alpha_D", KAPLAN, 1e-4),
        positive("D_c", (15.0, 20.0, 25.0, 30.0, 35.0), -20.0, 300.0),
    )
    formula = "[({N_c}/N)^({alpha_N}/{alpha_D}) + {D_c}/D]^{alpha_D}"
    return Law(formula, "Kaplan et al. 2020, arXiv:2001.08361, equation 1.5", ("N", "D"), parameters, form)


def kaplan_ns() -> Law:
    """L = (N_c / N)^alpha_N + (S_c / S)^alpha_S, S the steps at a batch far above the critical one.

    Published: alpha_N 0.077, N_c 6.5e13, alpha_S 0.76, S_c 2.1e3.
    """

    def form(theta: np.ndarray, row: Row) -> np.ndarray:
        alpha_n, n_c, alpha_s, s_c = theta
        return log_sum(alpha_n * (n_c - np.log(row["N"])), alpha_s * (s_c - np.log(row["S"])))

    parameters = (
        exponent("alpha_N", KAPLAN, 1e-4),
        positive("N_c", (15.0, 25.0, 35.0), -20.0, 300.0),
        exponent("alpha_S", (0.1, 0.3, 0.6, 1.0), 1e-4),
        positive("S_c", (2.0, 5.0, 8.0, 11.0), -20.0, 100.0),
    )
    formula = "({N_c}/N)^{alpha_N} + ({S_c}/S)^{alpha_S}"
    return Law(formula, "Kaplan et al. 2020, arXiv:2001.08361, equation 1.6", ("N", "S"), parameters, form)


def gadre() -> Law:
    """L = E + (A M^eta + B M^-eta) C^-eta, M = D / N tokens per parameter, C = 6 N D: one exponent for N and D.

    Over-training moves a power law up and keeps its slope. It is `chinchilla` with alpha = beta = 2 eta; the optimum is
    M = (B/A)^(1/(2 eta)) at every C, so that N_opt ~ C^0.5.
    """

    def form(theta: np.ndarray, row: Row) -> np.ndarray:
        e, a, b, eta = theta
        # What eta multiplies: M^eta C^-eta = (6 N^2)^-eta, and M^-eta C^-eta = (6 D^2)^-eta.
        by_n, by_d = (math.log(FLOPS_PER_PARAM_TOKEN) + 2 * np.log(row[name]) for name in ("N", "D"))
        return log_sum(e, a - eta * by_n, b - eta * by_d)

    def optimum(p: Values, flops: float) -> tuple[float, float]:
        if not (p["eta"] > 0 and p["A"] > 0 and p["B"] > 0):
            return math.nan, math.nan
        log_m = (math.log(p["B"]) - math.log(p["A"])) / (2 * p["eta"])
        if abs(log_m) > 300:
            return math.nan, math.nan
        n = math.sqrt(flops / FLOPS_PER_PARAM_TOKEN / math.exp(log_m))
        return n, flops / (FLOPS_PER_PARAM_TOKEN * n)

    parameters = (
        floor("E", FLOOR),
        coefficient("A", COEFFICIENT),
        coefficient("B", COEFFICIENT),
        exponent("eta", (0.0, 0.1, 0.2, 0.3, 0.5), high=1.5),
    )
    return Law(
        "{E} + ({A} M^{eta} + {B} M^-{eta}) C^-{eta}, M = D/N, C = 6 N D",
        "Gadre et al. 2024, arXiv:2403.08540, equation 4",
        ("N", "D"),
        parameters,
        form,
        optimum=optimum,
        exponents=lambda p, flops=0.0: {"a": 0.5, "b": 0.5},
    )


def muennighoff() -> Law:
    """L = E + A / N'^alpha + B / D'^beta, where repeated data and excess parameters are worth less each time.

        D' = U + U R_D (1 - exp(-(D/U - 1) / R_D)),   U unique tokens, D/U - 1 repetitions,
        N' = V + V R_N (1 - exp(-(N/V - 1) / R_N)),   V = min(N, N_opt of U) by the law's own A, B, alpha, beta.

    N_opt of D follows from eliminating C in `chinchilla`'s optimum: G (G D)^(beta/alpha) (appendix A). Published:
    R_D 15.39, R_N 5.31, alpha = beta = 0.353.
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
        return log_sum(a - alpha * size, b - beta * data, e)

    parameters = (
        floor("E", (-0.5, 0.5)),
        coefficient("A", (3.0, 6.0, 10.0)),
        exponent("alpha", (0.25, 0.5), 1e-3),
        coefficient("B", (3.0, 6.0, 10.0)),
        exponent("beta", (0.25, 0.5), 1e-3),
        positive("R_N", (0.0, 2.0, 4.0), -7.0, 9.0),
        positive("R_D", (1.0, 3.0), -7.0, 9.0),
    )
    formula = "{E} + {A}/N'^{alpha} + {B}/D'^{beta}, R_N = {R_N}, R_D = {R_D}"
    source = "Muennighoff et al. 2023, arXiv:2305.16264, equations 5 and 6"
    # One set of documents, seen for many epochs, is the usual experiment.
    return Law(formula, source, ("N", "D", "U"), parameters, form, constant=("U",))


def width_depth() -> Law:
    """L = E + A / width^alpha + F / depth^gamma + B / D^beta: the two ways to make a model larger, apart.

    The form of McLeish et al. 2025 ("Gemstones"), who fit laws in width and depth, without a term in N beside them:
    width and depth determine N.
    """

    def form(theta: np.ndarray, row: Row) -> np.ndarray:
        e, a, alpha, f, gamma, b, beta = theta
        width, depth, data = (np.log(row[name]) for name in ("width", "depth", "D"))
        return log_sum(a - alpha * width, f - gamma * depth, b - beta * data, e)

    parameters = (
        floor("E", (-1.0, 0.0, 1.0)),
        coefficient("A", (0.0, 3.0, 6.0)),
        exponent("alpha", (0.3, 0.7, 1.5)),
        coefficient("F", (-2.0, 1.0)),
        exponent("gamma", (0.3, 1.0)),
        coefficient("B", (2.0, 6.0, 10.0)),
        exponent("beta", (0.2, 0.5)),
    )
    formula = "{E} + {A}/width^{alpha} + {F}/depth^{gamma} + {B}/D^{beta}"
    source = "McLeish et al. 2025, arXiv:2502.06857, without their term in N"
    return Law(formula, source, ("width", "depth", "D"), parameters, form)


def farseer() -> Law:
    """L = f(N) + g(N) / D^h(N), each of f, g and h a power law in N that bends on log axes.

    The paper's exp(s N^q + S) + exp(B N^b + Q) D^-exp(A N^a + E), with each exponent s N^q + S written by its value and
    slope at N = 1e9, which runs determine, in place of s and S, which they hardly do:

        s N^q + S = ln f_0 + f_1 ((N/1e9)^q - 1) / q,   f_1 = q s 1e9^q,   ln f_0 = s 1e9^q + S,

    f_0 the floor at 1e9 parameters, f_1 its slope in ln N there, q the bend (0: none); likewise g and h. Published, for
    bits per character: E 3.133347, s -0.062465473, q 0.13, S 0.1284881, B 230.734371, b -0.1729, Q -1.544209554,
    A -1.665630816, a 0.0459, which is f_0 0.45138, f_1 -0.12011, g_0 130.07, g_1 -1.10868, h_0 0.30769, h_1 -0.19792.
    """

    def bent(log_n: np.ndarray, bend: np.ndarray) -> np.ndarray:
        small = np.abs(bend) < 1e-7
        return np.where(small, log_n, np.expm1(bend * log_n) / np.where(small, 1.0, bend))

    def form(theta: np.ndarray, row: Row) -> np.ndarray:
        f0, f1, q, g0, g1, b, h0, h1, a = theta
        log_n = np.log(row["N"]) - math.log(1e9)
        data = np.exp(h0 + h1 * bent(log_n, a)) * np.log(row["D"])
        return log_sum(f0 + f1 * bent(log_n, q), g0 + g1 * bent(log_n, b) - data)

    parameters = (
        coefficient("f_0", (-1.0, 0.5)),
        exponent("f_1", (-0.2, -0.05), -3.0, 3.0),
        exponent("q", (0.1,), -2.0, 2.0),
        coefficient("g_0", (3.0, 5.0, 8.0)),
        exponent("g_1", (-1.0, 0.0), -20.0, 20.0),
        exponent("b", (-0.1,), -2.0, 2.0),
        positive("h_0", (-1.6, -1.2, -0.8), -7.0, 2.0),
        exponent("h_1", (-0.2, 0.0), -3.0, 3.0),
        exponent("a", (0.05,), -2.0, 2.0),
    )
    formula = "f + g/D^h at N = 1e9: f {f_0}, g {g_0}, h {h_0}; slopes {f_1}, {g_1}, {h_1}; bends {q}, {b}, {a}"
    return Law(formula, "Li et al. 2025, arXiv:2506.10972 (Farseer)", ("N", "D"), parameters, form)
