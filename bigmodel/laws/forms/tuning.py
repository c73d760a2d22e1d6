"""Laws of what isn't a pretraining loss: the best learning rate and batch, the critical batch, downstream scores.

Their `target` says which column they predict. Legend: S candidate parameter sets, n runs; N, D, L as elsewhere.
"""

from __future__ import annotations

import numpy as np

from bigmodel.laws.forms import Law, Parameter, Row


def _slope(name: str) -> Parameter:
    return Parameter(name, (-1.0, -0.3, 0.3, 1.0), -5.0, 5.0)


def learning_rate() -> Law:
    """lr = c N^p D^q, the best peak learning rate.

    Li et al. 2025 ("Step Law", arXiv:2503.04715), equation 1: 1.79 N^-0.713 D^0.307; N without embeddings.
    """

    def form(theta: np.ndarray, row: Row) -> np.ndarray:
        c, p, q = theta
        return c + p * np.log(row["N"]) + q * np.log(row["D"])

    return Law(
        name="learning_rate",
        formula="{c} N^{p} D^{q}",
        source="Li et al. 2025, arXiv:2503.04715, equation 1",
        parameters=(
            Parameter("c", (0.0, 7.0), -150.0, 150.0, log=True, loss_units=True),
            _slope("p"),
            _slope("q"),
        ),
        columns=("N", "D"),
        form=form,
        target="lr",
        exponent_names=("p", "q"),
    )


def batch_size() -> Law:
    """batch = c D^q, the best batch in tokens.

    Li et al. 2025 ("Step Law", arXiv:2503.04715), equation 1: 0.58 D^0.571.
    """

    def form(theta: np.ndarray, row: Row) -> np.ndarray:
        c, q = theta
        return c + q * np.log(row["D"])

    return Law(
        name="batch_size",
        formula="{c} D^{q}",
        source="Li et al. 2025, arXiv:2503.04715, equation 1",
        parameters=(Parameter("c", (-10.0, 0.0), -150.0, 150.0, log=True, loss_units=True), _slope("q")),
        columns=("D",),
        form=form,
        target="batch",
        exponent_names=("q",),
    )


def critical_batch() -> Law:
    """batch = B_star / L^(1 / alpha_B), the batch in tokens where time and compute are traded evenly.

    Kaplan et al. 2020 (arXiv:2001.08361), equation 1.4, after McCandlish et al. 2018 (arXiv:1812.06162). Published:
    B_star 2e8 tokens, alpha_B 0.21.
    """

    def form(theta: np.ndarray, row: Row) -> np.ndarray:
        b_star, alpha_b = theta
        return b_star - np.log(row["L"]) / alpha_b

    return Law(
        name="critical_batch",
        formula="{B_star} / L^(1/{alpha_B})",
        source="Kaplan et al. 2020, arXiv:2001.08361, equation 1.4",
        parameters=(
            Parameter("B_star", (0.0, 5.0), -100.0, 100.0, log=True, loss_units=True),
            Parameter("alpha_B", (0.1, 0.2, 0.5, 1.0), 1e-3, 10.0),
        ),
        columns=("L",),
        form=form,
        target="batch",
        exponent_names=("alpha_B",),
    )


def downstream() -> Law:
    """accuracy = b + a / (1 + exp(k (L - L_0))): a task's score as a sigmoid in the loss.

    The second step of Bhagia et al. 2024 ("model ladders", arXiv:2412.04403); L may be a task's bits per byte.
    """

    def form(theta: np.ndarray, row: Row) -> np.ndarray:
        b, a, k, l_0 = theta
        return np.logaddexp(b, a - np.logaddexp(0.0, np.exp(k) * (row["L"] - np.exp(l_0))))

    return Law(
        name="downstream",
        formula="{b} + {a} / (1 + exp({k} (L - {L_0})))",
        source="Bhagia et al. 2024, arXiv:2412.04403, equation 3",
        parameters=(
            Parameter("b", (-6.0, -1.5, -0.7), -14.0, 1.0, log=True),
            Parameter("a", (-1.0, -0.3), -14.0, 3.0, log=True),
            Parameter("k", (0.0, 1.0, 2.5), -5.0, 7.0, log=True),
            Parameter("L_0", (-0.7, -0.2, 0.0, 0.2, 0.7), -4.0, 4.0, log=True, x_units=True),
        ),
        columns=("L",),
        form=form,
        target="accuracy",
    )


def task_error() -> Law:
    """error = eps - k exp(-gamma L): a task's mean error against the loss.

    Gadre et al. 2024 (arXiv:2403.08540), equation 5; eps is the error of guessing.
    """

    def form(theta: np.ndarray, row: Row) -> np.ndarray:
        eps, k, gamma = theta
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.log(np.exp(eps) - np.exp(k - gamma * row["L"]))

    return Law(
        name="task_error",
        formula="{eps} - {k} exp(-{gamma} L)",
        source="Gadre et al. 2024, arXiv:2403.08540, equation 5",
        parameters=(
            Parameter("eps", (-0.3, 0.0), -10.0, 3.0, log=True),
            Parameter("k", (-1.0, 0.0, 1.0, 2.0), -14.0, 30.0, log=True),
            Parameter("gamma", (0.3, 0.7, 1.5), 1e-3, 20.0),
        ),
        columns=("L",),
        form=form,
        target="error",
    )
