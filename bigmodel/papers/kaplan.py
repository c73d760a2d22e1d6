"""Kaplan et al. 2020, "Scaling Laws for Neural Language Models", arXiv:2001.08361.

No runs are public. What can be checked is that the printed laws agree with one another, evaluated by our laws, and with
shapes built by our decoder. The tolerances of derived exponents are loose, since the printed ones are rounded to two
digits and were fitted separately.
"""

import numpy as np

from bigmodel.papers import Frames, Row, count, evaluate, model
from bigmodel.scaling import laws
from bigmodel.scaling.frontier import power_law
from bigmodel.scaling.laws import FLOPS_PER_PARAM_TOKEN

TITLE = "Scaling laws of Kaplan et al. 2020"
SOURCE = "arXiv:2001.08361, equations 1.1 to 1.8 and 4.4"

PF_DAY = 1e15 * 86_400  # FLOPs
L_N = {"x_c": 8.8e13, "alpha": 0.076}
L_D = {"x_c": 5.4e13, "alpha": 0.095}
L_ND = {"alpha_N": 0.076, "alpha_D": 0.103, "N_c": 6.4e13, "D_c": 1.8e13}
L_NS = {"alpha_N": 0.077, "N_c": 6.5e13, "alpha_S": 0.76, "S_c": 2.1e3}
ALPHA_B, ALPHA_C = 0.21, 0.050  # critical batch ~ L^(-1 / alpha_B); L ~ C_min^-alpha_C
# Optimal size, batch (tokens), steps and tokens: coefficient x C^exponent, C in PF-days.
SIZE, BATCH, STEPS, TOKENS = (1.3e9, 0.73), (2.0e6, 0.24), (5.4e3, 0.03), (2e10, 0.27)
NO_OVERFIT = (5e3, 0.74)  # D >= 5e3 N^0.74
SHAPES = ((6, 4288), (48, 1600))  # layers, width: losses within 3 %

DERIVED = "From the rounded exponents of L(N, S) and of the critical batch; the paper fits its own."
AT_CRITICAL = "At the critical batch a run takes twice the least steps, hence 2 B S (section 5)."
EXCESS = "N from 1e6 to 1e10 at one excess over the loss of unlimited data: that of the printed rule at 1e9."
BY_LAW = "By L(N), with N counted in the two models; the losses themselves need training."


def rows(points: Frames) -> list[Row]:
    return _efficient_compute() + _data_size() + _shapes()


def _efficient_compute() -> list[Row]:
    """Equations 1.7, 1.8: alpha_C = 1 / (1/alpha_S + 1/alpha_B + 1/alpha_N); each optimum ~ C^(alpha_C / its own)."""
    alpha_n, alpha_s = L_NS["alpha_N"], L_NS["alpha_S"]
    alpha_c = 1 / (1 / alpha_n + 1 / alpha_s + 1 / ALPHA_B)
    part = "Optimal allocation, exponents in C"
    out = [
        Row(part, "L, alpha_C", ALPHA_C, alpha_c, 0.005, True, ".4f", DERIVED),
        Row(part, "N", SIZE[1], alpha_c / alpha_n, 0.06, True, ".3f", DERIVED),
        Row(part, "batch", BATCH[1], alpha_c / ALPHA_B, 0.06, True, ".3f", DERIVED),
        Row(part, "steps", STEPS[1], alpha_c / alpha_s, 0.06, True, ".3f", DERIVED),
        Row(part, "tokens", TOKENS[1], alpha_c / ALPHA_B + alpha_c / alpha_s, 0.06, True, ".3f", DERIVED),
        Row(part, "tokens = batch x steps", TOKENS[1], BATCH[1] + STEPS[1], 0, True, ".3f"),
        Row(part, "compute = N x batch x steps", 1.0, SIZE[1] + BATCH[1] + STEPS[1], 0, True, ".3f"),
    ]
    part, product = "Optimal allocation at 1 PF-day", BATCH[0] * STEPS[0]
    return [
        *out,
        Row(part, "C = 6 N B S, FLOPs", PF_DAY, FLOPS_PER_PARAM_TOKEN * SIZE[0] * product, 0.03, format=".3g"),
        Row(part, "tokens = 2 B S", TOKENS[0], 2 * product, 0.1, format=".3g", note=AT_CRITICAL),
    ]


def _data_size() -> list[Row]:
    law, many = laws.get("kaplan_nd"), 1e30

    def excess(n: float, d: float) -> float:
        return evaluate(law, L_ND, N=n, D=d) / evaluate(law, L_ND, N=n, D=many) - 1

    allowed = excess(1e9, NO_OVERFIT[0] * 1e9 ** NO_OVERFIT[1])
    sizes = np.logspace(6, 10, 9)
    needed = []
    for n in sizes:  # the excess falls with D: bisection in log D
        low, high = 0.0, 30.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if excess(n, 10**middle) > allowed else (low, middle)
        needed.append(10**low)
    exponent, coefficient = power_law(sizes, np.array(needed))
    part = "Data that avoids overfitting, D >= 5e3 N^0.74, from L(N, D)"
    same = "L(N, D) where the other is unlimited, against the one-variable laws, nats per token"
    one_n, one_d = laws.get("power:x=N"), laws.get("power:x=D")
    return [
        Row(part, "exponent", NO_OVERFIT[1], exponent, 0.005, True, ".4f", EXCESS),
        Row(part, "coefficient", NO_OVERFIT[0], coefficient, 0.1, format=".3g", note=EXCESS),
        *(
            Row(same, f"N = {n:.1e}", evaluate(one_n, L_N, N=n), evaluate(law, L_ND, N=n, D=many), 0.03, format=".3f")
            for n in (1e6, 1e9)
        ),
        *(
            Row(same, f"D = {d:.1e}", evaluate(one_d, L_D, D=d), evaluate(law, L_ND, N=many, D=d), 0.06, format=".3f")
            for d in (22e6, 23e9)
        ),
    ]


def _shapes() -> list[Row]:
    """N = 12 layers width^2 (Table 1) against the modules, and what L(N) says of two very different shapes."""
    counted = []
    part, out = "N = 12 layers width^2, against the modules", []
    for depth, width in SHAPES:
        heads = width // 64
        cfg = model("decoder", depth=depth, width=width, num_heads=heads, vocab_size=50257, seq_len=1024)
        counted.append(count(cfg, "kaplan"))
        what = f"{depth} layers of {width}"
        out.append(Row(part, what, 12 * depth * width**2, counted[-1], 0, format=",.0f"))
    law = laws.get("power:x=N")
    wide, deep = (evaluate(law, L_N, N=n) for n in counted)
    part, what = "Shape matters little", "loss of (6, 4288) / (48, 1600)"
    return [*out, Row(part, what, 1.0, wide / deep, 0.03, format=".3f", note=BY_LAW)]
