"""Laws of what isn't a pretraining loss: the best learning rate and batch, the critical batch, downstream scores.

Their `target` says which column they predict. Legend: S candidate parameter sets, n runs; N, D, L as elsewhere.
"""

from __future__ import annotations

import numpy as np

from bigmodel.laws.forms import Law, Parameter, Row, coefficient, exponent, positive

EITHER_SIGN = (-1.0, -0.3, 0.3, 1.0)  # starts of an exponent that may be negative


def learning_rate() -> Law:
    """lr = c N^p D^q, the best peak learning rate; N without embeddings. Published: 1.79 N^-0.713 D^0.307."""

    def form(theta: np.ndarray, row: Row) -> np.ndarray:
        c, p, q = theta
        return c + p * np.log(row["N"]) + q * np.log(row["D"])

    parameters = (
        coefficient("c", (0.0, 7.0), -150.0, 150.0),
        exponent("p", EITHER_SIGN, -5.0, 5.0),
        exponent("q", EITHER_SIGN, -5.0, 5.0),
    )
    source = "Li et al. 2025, arXiv:2503.04715, equation 1"
    return Law("{c} N^{p} D^{q}", source, ("N", "D"), parameters, form, target="lr")


def horizon() -> Law:
    """lr = c D^-q, the best peak learning rate of one size and batch: a run of k times the tokens wants k^-q of it.

    Published: q 0.32 (760M to 2.7B parameters together); 0.3 serves as a rule of thumb.
    """

    def form(theta: np.ndarray, row: Row) -> np.ndarray:
        c, q = theta
        return c - q * np.log(row["D"])

    parameters = (coefficient("c", (-7.0, 0.0), -150.0, 150.0), exponent("q", EITHER_SIGN, -5.0, 5.0))
    return Law("{c} D^-{q}", "Bjorck et al. 2024, arXiv:2409.19913", ("D",), parameters, form, target="lr")


def batch_size() -> Law:
    """batch = c D^q, the best batch in tokens. Published: 0.58 D^0.571."""

    def form(theta: np.ndarray, row: Row) -> np.ndarray:
        c, q = theta
        return c + q * np.log(row["D"])

    parameters = (coefficient("c", (-10.0, 0.0), -150.0, 150.0), exponent("q", EITHER_SIGN, -5.0, 5.0))
    source = "Li et al. 2025, arXiv:2503.04715, equation 1"
    return Law("{c} D^{q}", source, ("D",), parameters, form, target="batch")


def critical_batch() -> Law:
    """batch = B_star / L^(1 / alpha_B), the batch in tokens where time and compute are traded evenly.

    After McCandlish et al. 2018 (arXiv:1812.06162). Published: B_star 2e8 tokens, alpha_B 0.21.
    """

    def form(theta: np.ndarray, row: Row) -> np.ndarray:
        b_star, alpha_b = theta
        return b_star - np.log(row["L"]) / alpha_b

    parameters = (
        coefficient("B_star", (0.0, 5.0), -100.0, 100.0),
        exponent("alpha_B", (0.1, 0.2, 0.5, 1.0), 1e-3, 10.0),
    )
    source = "Kaplan et al. 2020, arXiv:2001.08361, equation 1.4"
    return Law("{B_star} / L^(1/{alpha_B})", source, ("L",), parameters, form, target="batch")


def downstream() -> Law:
    """accuracy = b + a / (1 + exp(k (L - L_0))): a task's score as a sigmoid in the loss.

    The second step of "model ladders"; L may be a task's bits per byte.
    """

    def form(theta: np.ndarray, row: Row) -> np.ndarray:
        b, a, k, l_0 = theta
        return np.logaddexp(b, a - np.logaddexp(0.0, np.exp(k) * (row["L"] - np.exp(l_0))))

    parameters = (
        positive("b", (-6.0, -1.5, -0.7), -14.0, 1.0),
        positive("a", (-1.0, -0.3), -14.0, 3.0),
        positive("k", (0.0, 1.0, 2.5), -5.0, 7.0),
        positive("L_0", (-0.7, -0.2, 0.0, 0.2, 0.7), -4.0, 4.0, x_units=True),
    )
    source = "Bhagia et al. 2024, arXiv:2412.04403, equation 3"
    return Law("{b} + {a} / (1 + exp({k} (L - {L_0})))", source, ("L",), parameters, form, target="accuracy")


def task_error() -> Law:
    """error = eps - k exp(-gamma L): a task's mean error against the loss; eps is the error of guessing."""

    def form(theta: np.ndarray, row: Row) -> np.ndarray:
        eps, k, gamma = theta
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.log(np.exp(eps) - np.exp(k - gamma * row["L"]))

    parameters = (
        positive("eps", (-0.3, 0.0), -10.0, 3.0),
        positive("k", (-1.0, 0.0, 1.0, 2.0), -14.0, 30.0),
        Parameter("gamma", (0.3, 0.7, 1.5), 1e-3, 20.0),
    )
    source = "Gadre et al. 2024, arXiv:2403.08540, equation 5"
    return Law("{eps} - {k} exp(-{gamma} L)", source, ("L",), parameters, form, target="error")
