"""How far an answer is from the runs that a law was fitted to, and what held-out errors say about such a distance.

Legend: N parameters, D tokens or examples, C = 6 N D training FLOPs, L loss. A gap is the C asked for over the largest
C fitted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from bigmodel.laws.forms import FLOPS_PER_PARAM_TOKEN, Law, Values

FAR, VERY_FAR = 10.0, 1000.0  # factors outside the fitted runs that are warned of
MARGIN = 1.001  # a ratio outside by less is rounding
NAMES = ("N", "D", "C", "tokens_per_param")
LABELS = {"tokens_per_param": "D/N"}

Ranges = Mapping[str, tuple[float, float]]


def beyond(ranges: Ranges, values: Mapping[str, float]) -> dict[str, float]:
    """How far each value is outside its range [least, most], as a factor of 1 or more; those without a range are left
    out."""
    known = {name: value for name, value in values.items() if name in ranges and value > 0}
    return {name: max(1.0, value / ranges[name][1], ranges[name][0] / value) for name, value in known.items()}


def outside(ranges: Ranges, name: str, factor: float) -> str:
    low, high = ranges[name]
    return f"{factor:.3g}x outside the fitted runs ({low:.3g} to {high:.3g})"


def warnings(ranges: Ranges, factors: Mapping[str, float]) -> list[str]:
    """A line for each of N, D and C that is far outside, and for D/N outside at all: no run says what it does there."""
    if not ranges:
        return ["the fit holds no range of its runs: how far this extrapolates is unknown"]
    lines = []
    for name, factor in factors.items():
        where = outside(ranges, name, factor)
        if factor > VERY_FAR:
            lines.append(
                f"VERY FAR: {LABELS.get(name, name)} is {where}: the answer rests on the form of the law alone"
            )
        elif name == "tokens_per_param" and factor > MARGIN:
            lines.append(f"D/N is {where}: no run tried such a ratio")
        elif factor > FAR:
            lines.append(f"{name} is {where}: an extrapolation")
    return lines


def untried_ratio(law: Law, params: Values, flops: float, ratios: tuple[float, float]) -> list[str]:
    """A line where the best D/N for `flops` is outside the runs' [least, most]: with the best inside, and its loss."""
    n, d = law.optimum(params, flops) if law.optimum else (math.nan, math.nan)
    if not (n > 0 and d > 0) or ratios[0] / MARGIN <= d / n <= ratios[1] * MARGIN:
        return []
    ratio = min(max(d / n, ratios[0]), ratios[1])
    inside = math.sqrt(flops / FLOPS_PER_PARAM_TOKEN / ratio)
    best, there = law.predict(params, {"N": np.array([n, inside]), "D": np.array([d, ratio * inside])})
    tried = f"the best D/N at C = {flops:.3g} is {d / n:.3g}: no run tried it, "
    tried += f"they have {ratios[0]:.3g} to {ratios[1]:.3g}"
    worse = f"{100 * (there / best - 1):.2g} % more loss"
    return [f"{tried}; the best inside is N {inside:.3g}, D {ratio * inside:.3g}, with {worse}"]


def curve(tested: Sequence[Mapping[str, float]]) -> tuple[float, float] | None:
    """(ln error at a gap of 1, growth): error = e^first gap^growth, by least squares through the held-out errors.

    The growth is at least 0: by chance alone would a law be surer further away. None with under three gaps.
    """
    points = [(math.log(t["gap"]), math.log(t["error"])) for t in tested if t["gap"] > 1 and t["error"] > 0]
    if len(points) < 3 or np.ptp([x for x, _ in points]) < math.log(2):
        return None
    x, y = np.array(points).T
    growth = max(float(np.polyfit(x, y, 1)[0]), 0.0)
    return float(np.mean(y - growth * x)), growth


def expected(tested: Sequence[Mapping[str, float]], gap: float) -> float | None:
    """Mean |relative error| at a gap, by `curve`; None where too few gaps were tested to extend it."""
    found = curve(tested)
    return math.exp(found[0] + found[1] * math.log(max(gap, 1.0))) if found else None


def text(factors: Mapping[str, float], gap: float | None, tested: Sequence[Mapping[str, float]]) -> list[str]:
    """The distance in lines: how far beyond the runs, and how far the law was tested."""
    far = ", ".join(f"{LABELS.get(k, k)} {v:.3g}x" for k, v in factors.items() if v > MARGIN)
    lines = [f"beyond the fitted runs: {far or 'no, within their N, D and C'}"] if factors else []
    if gap is None or gap <= 1:
        return lines
    if not tested:
        return [*lines, f"asked for {gap:.3g}x the largest C fitted; the fit holds no held-out error"]
    furthest = max(t["gap"] for t in tested)
    near = min(tested, key=lambda t: abs(math.log(t["gap"] / gap)))
    said = f"tested to {furthest:.3g}x, asked for {gap:.3g}x the largest C fitted: held-out mean |error| "
    said += f"{_percent(near['error'])} at {near['gap']:.3g}x"
    if gap > furthest and (error := expected(tested, gap)) is not None:
        said += f", by its growth with the gap about {_percent(error)} at {gap:.3g}x"
    return [*lines, said]


def _percent(part: float) -> str:
    return f"{100 * part:.2g} %" if part <= 10 else ">1000 %"
