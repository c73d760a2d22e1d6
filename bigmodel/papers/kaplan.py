"""Kaplan et al. 2020, "Scaling Laws for Neural Language Models", arXiv:2001.08361.

No runs are public. What can be checked is that the printed laws agree with one another: each number is set beside what
our laws make of the other printed ones, and shapes beside our decoder. Numbers that the paper fitted separately, and
that don't follow from one another within their printed digits, are shown and not judged.
"""

import numpy as np

from bigmodel.laws import forms
from bigmodel.laws.forms import FLOPS_PER_PARAM_TOKEN
from bigmodel.laws.frontier import power_law
from bigmodel.papers import Frames, Row, count, evaluate, model, table

TITLE = "Scaling laws of Kaplan et al. 2020"
SOURCE = "arXiv:2001.08361, equations 1.1 to 1.8, 4.3, 4.4, 5.3 and 6.1 to 6.5, Tables 1 to 3, appendix A"

PF_DAY = 1e15 * 86_400  # FLOPs
L_N = {"x_c": 8.8e13, "alpha": 0.076}
L_D = {"x_c": 5.4e13, "alpha": 0.095}
L_C = {"x_c": 3.1e8, "alpha": 0.050}  # of the least compute, in PF-days
L_ND = {"alpha_N": 0.076, "alpha_D": 0.103, "N_c": 6.4e13, "D_c": 1.8e13}
L_NS = {"alpha_N": 0.077, "N_c": 6.5e13, "alpha_S": 0.76, "S_c": 2.1e3}
CRITICAL = {"B_star": 2.1e8, "alpha_B": 0.21}  # batch in tokens = B_star / L^(1 / alpha_B)
# Optimal size, batch (tokens), steps and tokens: coefficient x C^exponent, C in PF-days.
SIZE, BATCH, STEPS, TOKENS = (1.3e9, 0.73), (2.0e6, 0.24), (5.4e3, 0.03), (2e10, 0.27)
NO_OVERFIT = (5e3, 0.74)  # D >= 5e3 N^0.74 ...
EXCESS = 0.02  # ... for an excess over the loss of unlimited data that random seeds make too
SWEEP = (768, 1.5e9)  # the smallest and the largest N trained
# (layers, width): 12 layers width^2, summed by hand.
SHAPES = {(6, 4288): 1_323_859_968, (48, 1600): 1_474_560_000}

MANY = 1e30  # unlimited data or steps

AT_LOSS = "Our critical batch at the loss that the printed L(C) gives."
SIX = "C = 6 N B S, with that batch in place of the printed one; the printed size has two digits."
TWICE = "2 B S with that batch: at the critical batch a run takes twice the least steps; printed with one digit."
DERIVED = (
    "Not judged: equations 6.3 to 6.5 with the printed, rounded constants; the paper says 0.054 for L and 0.71 for N, "
    "and fits what is printed here."
)
TOGETHER = "Not judged: L(N, S) and L(C) were fitted separately, and at the optimum of 1 PF-day are 5 % apart."
RULE = "At the D of the printed rule; the threshold has one digit."
EXPONENT = "Of the D that keep one excess for N from 1e6 to 1e10."
SWEPT = "By L(N, S) with unlimited steps, at the ends of the sweep."
SEPARATE = "Not judged: the paper fits L(N, D) with constants of its own, which differ from L(N)'s and L(D)'s."


def rows(points: Frames) -> list[Row]:
    return _allocation() + _derived() + _data_size() + _sizes() + _shapes()


def _allocation() -> list[Row]:
    """Sections 5.1 and 6.1: the critical batch at L(C), and what C = 6 N B S leaves for the rest."""
    compute = np.logspace(-8, 1, 10)  # PF-days, as in Figures 13 and 14
    losses = [evaluate(forms.get("power:x=C"), L_C, C=c) for c in compute]
    batch = np.array([evaluate(forms.get("critical_batch"), CRITICAL, L=loss) for loss in losses])
    size, steps = (coefficient * compute**exponent for coefficient, exponent in (SIZE, STEPS))
    per_step = compute * PF_DAY / (FLOPS_PER_PARAM_TOKEN * batch)
    out = []
    for what, printed, ours, allowed, note in (
        ("batch", BATCH, batch, 0.01, AT_LOSS),
        ("N", SIZE, per_step / steps, 0.03, SIX),
        ("steps", STEPS, per_step / size, 0.03, SIX),
        ("tokens", TOKENS, 2 * batch * steps, 0.1, TWICE),
    ):
        exponent, coefficient = power_law(compute, ours)
        part = "Optimal allocation: coefficient x C^exponent, C in PF-days"
        out.append(Row(part, f"{what}, exponent", printed[1], exponent, 0.005, True, ".3f", note))
        out.append(Row(part, f"{what}, coefficient", printed[0], coefficient, allowed, format=".3g", note=note))
    return out


def _derived() -> list[Row]:
    """Equations 6.3 to 6.5: alpha_C = 1 / (1/alpha_S + 1/alpha_B + 1/alpha_N); each optimum ~ C^(alpha_C / its own)."""
    alpha_n, alpha_s, alpha_b = L_NS["alpha_N"], L_NS["alpha_S"], CRITICAL["alpha_B"]
    alpha_c = 1 / (1 / alpha_n + 1 / alpha_s + 1 / alpha_b)
    part = "The same from L(N, S) and the critical batch alone"
    at_optimum = evaluate(forms.get("kaplan_ns"), L_NS, N=SIZE[0], S=STEPS[0])
    return [
        Row(part, "L, alpha_C", L_C["alpha"], alpha_c, None, True, ".4f", DERIVED),
        Row(part, "N, exponent", SIZE[1], alpha_c / alpha_n, None, True, ".3f", DERIVED),
        Row(part, "batch, exponent", BATCH[1], alpha_c / alpha_b, None, True, ".3f", DERIVED),
        Row(part, "steps, exponent", STEPS[1], alpha_c / alpha_s, None, True, ".3f", DERIVED),
        Row(part, "L at 1 PF-day", evaluate(forms.get("power:x=C"), L_C, C=1), at_optimum, format=".3f", note=TOGETHER),
    ]


def _data_size() -> list[Row]:
    law = forms.get("kaplan_nd")

    def excess(n: float, d: float) -> float:
        return evaluate(law, L_ND, N=n, D=d) / evaluate(law, L_ND, N=n, D=MANY) - 1

    sizes = np.logspace(6, 10, 9)
    needed = []
    for n in sizes:  # the excess falls with D: bisection in log D
        low, high = 0.0, 30.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if excess(n, 10**middle) > EXCESS else (low, middle)
        needed.append(10**low)
    part = "Data that avoids overfitting, D >= 5e3 N^0.74, by L(N, D)"
    exponent = power_law(sizes, np.array(needed))[0]
    out = [Row(part, "exponent", NO_OVERFIT[1], exponent, 0.005, True, ".4f", EXPONENT)]
    for size in (1e6, 1e9):
        least = excess(size, NO_OVERFIT[0] * size ** NO_OVERFIT[1])
        out.append(Row(part, f"excess at N = {size:.0e}", EXCESS, least, 0.0015, True, ".4f", RULE))
    return out


def _sizes() -> list[Row]:
    """L(N) and L(D) beside the laws of two variables where the other is unlimited."""
    both, steps = forms.get("kaplan_nd"), forms.get("kaplan_ns")
    part, out = "L(N) and L(D) beside L(N, S) and L(N, D), nats per token", []
    for n in SWEEP:
        printed = evaluate(forms.get("power:x=N"), L_N, N=n)
        ours = evaluate(steps, L_NS, N=n, S=MANY)
        out.append(Row(part, f"N = {n:,.0f}, unlimited steps", printed, ours, 0.015, format=".3f", note=SWEPT))
    sizes = np.array(SWEEP)
    slope = -power_law(sizes, np.array([evaluate(both, L_ND, N=n, D=MANY) for n in SWEEP]))[0]
    out.append(Row(part, "exponent in N, unlimited data", L_N["alpha"], slope, 5e-4, True, ".4f"))
    for n in SWEEP:
        printed, ours = evaluate(forms.get("power:x=N"), L_N, N=n), evaluate(both, L_ND, N=n, D=MANY)
        out.append(Row(part, f"N = {n:,.0f}, unlimited data", printed, ours, format=".3f", note=SEPARATE))
    for d in (22e6, 23e9):
        printed, ours = evaluate(forms.get("power:x=D"), L_D, D=d), evaluate(both, L_ND, N=MANY, D=d)
        out.append(Row(part, f"D = {d:.1e}, unlimited size", printed, ours, format=".3f", note=SEPARATE))
    return out


def _shapes() -> list[Row]:
    """Table 1's N = 12 layers width^2 of the two shapes of section 3.1, against the modules."""
    out = []
    for (depth, width), printed in SHAPES.items():
        cfg = model("decoder", depth=depth, width=width, num_heads=width // 64, vocab_size=50257, seq_len=1024)
        out.append((f"{depth} layers of {width}", printed, count(cfg, "kaplan")))
    return table("N = 12 layers width^2, against the modules", out, tolerance=0, format=",.0f")
