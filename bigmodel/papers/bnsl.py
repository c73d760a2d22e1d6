"""Caballero et al. 2023, "Broken Neural Scaling Laws", arXiv:2210.14891.

The printed fit is of Figure 4, left (error of four-digit addition against the size of the training set), made by
the script "fit_bnsl_and_extrapolate__4_digit_addition__dataset_size_x-axis.py" of github.com/ethancaballero/
broken_neural_scaling_laws, which also lists the 17 points: the first 14 are fitted and the last 3 predicted.
"""

import itertools
import math

import pandas as pd

from bigmodel.errors import UsageError
from bigmodel.laws import fit, forms
from bigmodel.papers import Frames, Points, Row, evaluate

TITLE = "Broken neural scaling laws (Caballero et al. 2023)"
SOURCE = "arXiv:2210.14891, Figures 1 and 4; github.com/ethancaballero/broken_neural_scaling_laws"
ORIGIN = (
    "the arrays x and y of github.com/ethancaballero/broken_neural_scaling_laws, "
    "fit_bnsl_and_extrapolate__4_digit_addition__dataset_size_x-axis.py"
)
ALSO = ("caballero2023_four_digit_addition.csv",)
POINTS = (Points("four_digit_addition.csv", ORIGIN, "none stated", ("x", "y"), also=ALSO),)

# Figure 1's example: three breaks.
EXAMPLE = {
    "a": 1e-3, "b": 4660.0, "c0": 0.05, "c1": 0.49, "d1": 3e6, "f1": 1.1, "c2": -0.811, "d2": 1e14, "f2": 1.425,
    "c3": 2.1, "d3": 2e20, "f3": 0.05,
}  # fmt: skip
# x where only one segment matters: far to the left, between breaks, far to the right.
SEGMENTS = (1e-20, 1.7e10, 8e18, 1e30)
PRINTED = {"a": 0.41388, "b": 2.27727, "c0": 0.055077, "c1": 5.66290, "d1": 612.584, "f1": 0.059193}
FITTED = 14  # of the 17 points

FOUR = "Between wide breaks the curve only nears its segment: c1 + c2 and c0 + c1 are met to a few thousandths."
OTHER = (
    "The authors minimise squares of ln(y + 1), we Huber's loss of ln y; the 14 points, all before the bend's end, "
    "leave the floor a to that choice."
)
ERROR = "Root mean square of ln predicted - ln observed; published: of the printed parameters, evaluated here."


def rows(points: Frames) -> list[Row]:
    out = _example()
    if POINTS[0].name in points:
        out += _addition(points[POINTS[0].name])
    return out


def _example() -> list[Row]:
    law = forms.get("bnsl:x=D,breaks=3")
    reducible = {**EXAMPLE, "a": 1e-200}  # above the floor, where slopes are the exponents

    def log_y(x: float) -> float:
        return math.log(evaluate(law, reducible, D=x))

    part, out, exponent, lines, step = "Figure 1's example: slope of each segment", [], 0.0, [], 1e-3
    for i, x in enumerate(SEGMENTS):
        exponent -= EXAMPLE[f"c{i}"]
        ours = (log_y(x * math.exp(step)) - log_y(x * math.exp(-step))) / (2 * step)
        lines.append((ours, log_y(x) - ours * math.log(x)))
        out.append(Row(part, f"segment {i + 1}, at x = {x:.1e}", exponent, ours, 0.01, True, ".4f", FOUR))
    part = "Figure 1's example: where segments meet"
    for i, ((slope, high), (next_slope, next_high)) in enumerate(itertools.pairwise(lines), start=1):
        at = math.exp((next_high - high) / (slope - next_slope))
        out.append(Row(part, f"break {i}", EXAMPLE[f"d{i}"], at, 0.05, format=".3g", note=FOUR))
    return [*out, Row(part, "floor", EXAMPLE["a"], evaluate(law, EXAMPLE, D=1e60), 1e-9, format=".4g")]


def _addition(points: pd.DataFrame) -> list[Row]:
    law = forms.get("bnsl:x=D,breaks=1")
    frame = pd.DataFrame({"D": points["x"], "L": points["y"]}).sort_values("D", ignore_index=True)
    if len(frame) <= FITTED:
        raise UsageError(f"{POINTS[0].name} has {len(frame)} points; {FITTED} are fitted and the rest predicted")
    seen, held = frame[:FITTED], frame[FITTED:]
    found = fit.fit(seen, law=law.name, bootstrap=0, holdout=0)["params"]

    def error(params: dict, part: pd.DataFrame) -> float:
        gaps = [math.log(evaluate(law, params, D=x) / y) for x, y in zip(part["D"], part["L"], strict=True)]
        return math.sqrt(sum(gap**2 for gap in gaps) / len(gaps))

    part = "Four-digit addition, 14 of 17 points: our fit"
    out = [Row(part, name, value, found[name], 0.02, format=".5g", note=OTHER) for name, value in PRINTED.items()]
    part = "Its errors"
    out.append(Row(part, "14 fitted points", error(PRINTED, seen), error(found, seen), format=".4f", note=ERROR))
    out.append(Row(part, "3 held-out points", error(PRINTED, held), error(found, held), format=".4f", note=ERROR))
    return out
