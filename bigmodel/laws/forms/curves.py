"""Laws in one quantity x: N, D, C or any other column.

Legend: S candidate parameter sets, n runs; x the column, L loss, E irreducible loss.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from bigmodel.errors import UsageError
from bigmodel.laws.duals import log_sum, value_of
from bigmodel.laws.forms import Law, Row, coefficient, exponent, floor, positive


def power(x: str = "C") -> Law:
    """L = (x_c / x)^alpha: Kaplan's L(N), L(D), L(C).

    Published: N 8.8e13, 0.076; D 5.4e13, 0.095; C_min 3.1e8 PF-days, 0.050.
    """

    def form(theta: np.ndarray, row: Row) -> np.ndarray:
        x_c, alpha = theta
        return alpha * (x_c - np.log(row[x]))

    parameters = (
        positive("x_c", (-5.0, 5.0, 15.0), -2e3, 2e3, x_units=True),
        exponent("alpha", (0.05, 0.1, 0.3, 1.0), high=5.0),
    )
    source = "Kaplan et al. 2020, arXiv:2001.08361, equations 1.1 to 1.3"
    return Law(f"({{x_c}}/{x})^{{alpha}}", source, (x,), parameters, form)


def henighan(x: str = "C") -> Law:
    """L = E + (x_0 / x)^alpha: a power law above an irreducible loss, for every modality."""

    def form(theta: np.ndarray, row: Row) -> np.ndarray:
        e, x_0, alpha = theta
        return log_sum(alpha * (x_0 - np.log(row[x])), e)

    parameters = (
        floor("E", (-2.0, -1.0, -0.5, 0.0, 0.5, 1.0)),
        positive("x_0", (-10.0, -3.0, 0.0, 5.0, 10.0), -2e3, 2e3, x_units=True),
        exponent("alpha", (0.05, 0.1, 0.2, 0.5, 1.0), high=5.0),
    )
    source = "Henighan et al. 2020, arXiv:2010.14701, equation 1.1"
    return Law(f"{{E}} + ({{x_0}}/{x})^{{alpha}}", source, (x,), parameters, form)


def zhai(x: str = "C") -> Law:
    """L = c + a (x + d)^-b: saturates at both ends.

    c is what no compute removes, d moves the point where small models do no better than chance.
    """

    def form(theta: np.ndarray, row: Row) -> np.ndarray:
        c, a, b, d = theta
        return log_sum(a - b * np.logaddexp(np.log(row[x]), d), c)

    parameters = (
        floor("c", (-2.0, -1.0, 0.0, 0.5, 1.0)),
        coefficient("a", (0.0, 3.0, 6.0, 12.0, 24.0, 48.0), -40.0, 300.0),
        exponent("b", (0.05, 0.2, 0.5, 1.0), high=5.0),
        positive("d", (-10.0, -3.0, 0.0), -30.0, 10.0, x_units=True),
    )
    source = "Zhai et al. 2022, arXiv:2106.04560, section 2.1"
    return Law(f"{{c}} + {{a}} ({x} + {{d}})^-{{b}}", source, (x,), parameters, form)


def bansal(x: str = "D") -> Law:
    """L = E (1 + x_1 / x)^p: a (1/x + g)^p with g = 1 / x_1, E = a g^p. Alabdulmohsin et al.'s M3."""

    def form(theta: np.ndarray, row: Row) -> np.ndarray:
        e, x_1, p = theta
        return e + p * np.logaddexp(0.0, x_1 - np.log(row[x]))

    parameters = (
        floor("E", (-4.0, -1.0, 0.0)),
        positive("x_1", (-6.0, -3.0, 0.0, 3.0), -40.0, 200.0, x_units=True),
        exponent("p", (0.1, 0.4, 1.0), high=10.0),
    )
    source = "Bansal et al. 2022, arXiv:2202.01994, equation 1"
    return Law(f"{{E}} (1 + {{x_1}}/{x})^{{p}}", source, (x,), parameters, form)


def m4(x: str = "D", chance: str = "1") -> Law:
    """(L - E) / (chance - L)^alpha = (x_0 / x)^c: a power law far right, a guess's loss `chance` far left, a sigmoid.

    With L = E + (chance - E) s(z) and s the logistic function it is z + (alpha - 1) softplus(z) = t, where
    t = c ln(x_0 / x) + (alpha - 1) ln(chance - E). The left side bends one way only, and Newton's method from
    its asymptotes, z = t and alpha z = t, never passes the root.
    """
    try:
        top = math.log(float(chance))
    except ValueError:
        top = math.nan
    if not math.isfinite(top):
        raise UsageError(f"law m4: chance={chance!r}, expected the loss of a guess: 1 of an error rate, ln V of tokens")

    def form(theta: np.ndarray, row: Row) -> np.ndarray:
        e, x_0, c, alpha = theta
        log_range = top + np.log(-np.expm1(e - top))  # nan: a floor above chance predicts nothing
        t = c * (x_0 - np.log(row[x])) + (alpha - 1) * log_range

        def newton(z: Any, t: Any, alpha: Any) -> Any:
            slope = 1 + (alpha - 1) * np.exp(-np.logaddexp(0.0, -z))
            return z - (z + (alpha - 1) * np.logaddexp(0.0, z) - t) / slope

        at, power = value_of(t), value_of(alpha)
        z = np.where(power < 1, np.maximum(at, at / power), np.minimum(at, at / power))
        for _ in range(7):
            z = newton(z, at, power)
        for _ in range(2):  # at the root a step has the first derivative of the root by theta; two have the second
            z = newton(z, t, alpha)
        return log_sum(e, log_range - np.logaddexp(0.0, -z))

    parameters = (
        floor("E", (-4.0, -1.0, -0.3)),
        positive("x_0", (-6.0, -3.0, 0.0, 3.0), -200.0, 200.0, x_units=True),
        exponent("c", (0.2, 0.5, 1.0), high=5.0),
        exponent("alpha", (0.1, 1.0), 1e-3, 10.0),
    )
    formula = f"(L - {{E}}) / ({chance} - L)^{{alpha}} = ({{x_0}}/{x})^{{c}}"
    source = "Alabdulmohsin et al. 2022, arXiv:2209.06640, M4"
    return Law(formula, source, (x,), parameters, form)


def bnsl(x: str = "D", breaks: int = 1) -> Law:
    """L = a + b x^-c0 * product over i of (1 + (x / d_i)^(1/f_i))^(-c_i f_i): a smoothly broken power law.

    The slope on log axes above a is -c0 before the first break and -(c0 + c1 + ... + c_i) after the i-th; d_i is where,
    f_i how sharply (small: sharp). The c_i may be negative: a curve that turns up again.
    """

    def form(theta: np.ndarray, row: Row) -> np.ndarray:
        a, b, c0, *rest = theta
        log_x = np.log(row[x])
        reducible = b - c0 * log_x
        for c, d, f in zip(rest[0::3], rest[1::3], rest[2::3], strict=True):
            width = np.exp(f)
            reducible = reducible - c * width * np.logaddexp(0.0, (log_x - d) / width)
        return log_sum(reducible, a)

    formula = f"{{a}} + {{b}} {x}^-{{c0}}"
    parameters = [
        floor("a", (-3.0, -1.0, 0.5)),
        coefficient("b", (0.0, 2.0, 6.0, 12.0), -60.0, 300.0),
        exponent("c0", (0.0, 0.1, 0.4), -5.0, 5.0),
    ]
    one = breaks == 1  # of several breaks the grid must be coarser, and each has a part of the range to itself
    spots = np.linspace(-4.0, 4.0, 9 if one else 2 * breaks + 1)
    for i in range(1, breaks + 1):
        own = spots if one else spots[2 * i - 2 : 2 * i + 1]
        parameters += [
            exponent(f"c{i}", (0.3, 1.0, 3.0) if one else (-0.3, 0.5), -20.0, 20.0),
            positive(f"d{i}", tuple(float(s) for s in own), -40.0, 40.0, x_units=True),
            positive(f"f{i}", (-3.0, -1.0) if one else (-1.0,), -7.0, 3.0),
        ]
        formula += f" (1 + ({x}/{{d{i}}})^(1/{{f{i}}}))^(-{{c{i}}} {{f{i}}})"
    source = "Caballero et al. 2023, arXiv:2210.14891, equation 1"
    return Law(formula, source, (x,), tuple(parameters), form)


def sovit(x: str = "width", t: str = "C") -> Law:
    """L = eps + alpha x^-a + (beta x^b + xi) t^-c: one dimension x of a model's shape, against the compute t.

    At more compute the best x is larger: x = (alpha a / (beta b))^(1/(a + b)) t^(c/(a + b)), as the derivative shows.
    """

    def form(theta: np.ndarray, row: Row) -> np.ndarray:
        eps, alpha, a, beta, b, xi, c = theta
        log_x, log_t = np.log(row[x]), np.log(row[t])
        return log_sum(eps, alpha - a * log_x, beta + b * log_x - c * log_t, xi - c * log_t)

    parameters = (
        floor("eps", (-3.0, -1.0, 0.5)),
        coefficient("alpha", (0.0, 3.0)),
        exponent("a", (0.4, 1.0)),
        coefficient("beta", (-3.0, 2.0, 10.0)),
        exponent("b", (0.3, 0.8)),
        coefficient("xi", (0.0, 5.0, 15.0)),
        exponent("c", (0.2, 0.5)),
    )
    formula = f"{{eps}} + {{alpha}} {x}^-{{a}} + ({{beta}} {x}^{{b}} + {{xi}}) {t}^-{{c}}"
    source = "Alabdulmohsin et al. 2023, arXiv:2305.13035, equation 2"
    return Law(formula, source, (x, t), parameters, form)
