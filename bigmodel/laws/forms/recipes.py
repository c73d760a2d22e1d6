"""Laws of how a model is trained: by a teacher, with which vocabulary, on which mixture, under which schedule.

Legend: S candidate parameter sets, n runs; N parameters, D tokens, L loss (nats per token).
"""

from __future__ import annotations

import numpy as np

from bigmodel.laws.duals import log_sum
from bigmodel.laws.forms import Law, Parameter, Row, coefficient, exponent, floor, positive


def distillation() -> Law:
    """L = L_T + L_T^-c0 (1 + (L_T / (L_S d1))^(1/f1))^(-c1 f1) (A / N^alpha + B / D^beta)^gamma.

    N and D are the student's, L_T is its teacher's loss and L_S what the student's size reaches on D tokens without a
    teacher: predictions of a law of supervised runs (the paper's: 1.220 + (3355 / N^0.408 + 18186 / D^0.431)^0.452).
    A teacher much better than L_S d1 lets the second term go as L_T^-c0, one much worse as L_T^-(c0 + c1). The
    published constants of the distillation aren't confirmed.
    """

    def form(theta: np.ndarray, row: Row) -> np.ndarray:
        c0, c1, d1, f1, a, alpha, b, beta, gamma = theta
        teacher, alone = np.log(row["L_T"]), np.log(row["L_S"])
        width = np.exp(f1)
        gap = c1 * width * np.logaddexp(0.0, (teacher - alone - d1) / width)
        reach = gamma * np.logaddexp(a - alpha * np.log(row["N"]), b - beta * np.log(row["D"]))
        return np.logaddexp(teacher, reach - c0 * teacher - gap)

    parameters = (
        exponent("c0", (0.5, 2.5), -5.0, 20.0),
        exponent("c1", (1.0, 10.0), -5.0, 2e3),
        positive("d1", (0.0, 0.3), -2.0, 2.0),
        positive("f1", (-2.5, -1.0), -7.0, 3.0),
        coefficient("A", (5.0, 8.0)),
        exponent("alpha", (0.3,)),
        coefficient("B", (7.0, 10.0)),
        exponent("beta", (0.3, 0.6)),
        exponent("gamma", (0.8,)),
    )
    formula = "L_T + L_T^-{c0} (1 + (L_T/(L_S {d1}))^(1/{f1}))^(-{c1} {f1}) ({A}/N^{alpha} + {B}/D^{beta})^{gamma}"
    source = "Busbridge et al. 2025, arXiv:2502.08606, equation 8"
    return Law(formula, source, ("N", "D", "L_T", "L_S"), parameters, form)


def tao() -> Law:
    """L_u = A1 / N^beta + A2 / V^alpha2 + B / D^beta - E: the loss below that of a unigram model, by vocabulary.

    N counts parameters outside the vocabulary's tables and V those inside. L_u is compared over vocabularies, which a
    loss per token can't be; it is negative. N and D share an exponent, as in the authors' code. Published, for N and V
    in millions and D in billions: A1 1.83139, A2 0.195842, B 2.12411, E 5.53278, beta 0.446606, alpha2 0.670737.
    """

    def form(theta: np.ndarray, row: Row) -> np.ndarray:
        e, a1, a2, b, beta, alpha2 = theta
        log_n, log_v, log_d = (np.log(row[name]) for name in ("N", "V", "D"))
        return np.exp(a1 - beta * log_n) + np.exp(a2 - alpha2 * log_v) + np.exp(b - beta * log_d) - np.exp(e)

    parameters = (
        positive("E", (0.5, 1.7), -14.0, 5.0),
        positive("A1", (1.0, 6.0), -20.0, 90.0),
        positive("A2", (0.0, 7.0), -20.0, 90.0),
        positive("B", (1.0, 9.0), -20.0, 90.0),
        exponent("beta", (0.3, 0.6)),
        exponent("alpha2", (0.4, 0.8)),
    )
    formula = "{A1}/N^{beta} + {A2}/V^{alpha2} + {B}/D^{beta} - {E}"
    source = "Tao et al. 2024, arXiv:2407.13623, section 3.3 (approach 3)"
    return Law(formula, source, ("N", "V", "D"), parameters, form, target="L_u", linear=True)


def mixture(r: str = "r1+r2+r3") -> Law:
    """L = c + exp(sum of t_j r_j), r_j the share of each domain in the training data; they sum to 1.

    The loss is that of one domain; each has a law of its own. The paper's factor k before the exponential is left out:
    shares that sum to 1 can't tell it from the same ln k added to every t_j. `r`: the columns, joined by "+".
    """
    names = tuple(r.split("+"))

    def form(theta: np.ndarray, row: Row) -> np.ndarray:
        c, *by_share = theta
        return log_sum(c, sum(t * row[name] for t, name in zip(by_share, names, strict=True)))

    # Two starts of every t_j together would be 2^K: instead two of the first, from which the descent moves the rest.
    shares = tuple(
        Parameter(f"t_{name}", (-1.0, 1.0) if i == 0 else (0.0,), -50.0, 50.0) for i, name in enumerate(names)
    )
    formula = f"{{c}} + exp({' + '.join(f'{{t_{name}}} {name}' for name in names)})"
    source = "Ye et al. 2024, arXiv:2403.16952"
    parameters = (floor("c", (-1.0, 0.0, 0.5, 1.0)), *shares)
    return Law(formula, source, names, parameters, form, constant=names, signed=names)


def annealing() -> Law:
    """L = L_0 + A / S1^alpha - C S2: the loss at a step, by the rates until then (`annealed` makes S1 and S2).

    S1 is the sum of the rates, S2 the annealing area. Points along a run inform it, and runs of other schedules share
    its parameters.
    """

    def form(theta: np.ndarray, row: Row) -> np.ndarray:
        l_0, a, alpha, c = theta
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.log(np.exp(l_0) + np.exp(a - alpha * np.log(row["S1"])) - np.exp(c) * row["S2"])

    parameters = (
        floor("L_0", (0.0, 0.5, 1.0)),
        coefficient("A", (-1.0, 0.0, 1.0, 3.0)),
        exponent("alpha", (0.2, 0.5, 1.0)),
        coefficient("C", (-6.0, -3.0, -1.0)),
    )
    formula = "{L_0} + {A}/S1^{alpha} - {C} S2"
    source = "Tissue et al. 2024, arXiv:2408.11029, equation 1"
    return Law(formula, source, ("S1", "S2"), parameters, form, constant=("S2",), signed=("S2",))


def annealed(rates: np.ndarray, decay: float = 0.999) -> tuple[np.ndarray, np.ndarray]:
    """(S1, S2) of `annealing` after each step, (n,) each, of the learning rate at each step, (n,).

    S1 is the running sum of the rates; S2 that of a momentum of their decreases, m_i = decay m_(i-1) + r_(i-1) - r_i
    (Tissue et al. 2024, arXiv:2408.11029, section 3; `decay` is their lambda). Leave the warm-up out: there the rate
    rises and the law isn't meant to hold.
    """
    from scipy.signal import lfilter  # a third of a second, which no fit needs

    rates = np.asarray(rates, dtype=np.float64)
    momentum = lfilter([1.0], [1.0, -decay], -np.diff(rates, prepend=rates[0]))
    return np.cumsum(rates), np.cumsum(momentum)
