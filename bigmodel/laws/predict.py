"""The loss that a fitted law predicts for one size and amount of data, with intervals and the distance from the runs.

Legend: N parameters, D tokens or examples, C = 6 N D training FLOPs, L loss; S parameter sets, n fitted runs, P
parameters of the law.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy import special

from bigmodel.errors import check_ranges
from bigmodel.laws import intervals, plan, reach, texts
from bigmodel.laws.fitted import Fitted, is_number
from bigmodel.laws.forms import FLOPS_PER_PARAM_TOKEN


def make(fitted: Fitted, n: float, d: float) -> dict[str, Any]:
    """The predicted loss, as JSON.

    Args:
      n, d: parameters and tokens, or examples, counted as the fitted runs count theirs.

    Returns:
      A dict with asked {"N", "D"}, C, law, formula, source, level;
        loss: {"value", "low", "high"} of the law there; low and high are None without an interval;
        run: the same value, with the interval of one run's loss: the law's, and the scatter of runs about it;
        noise: that scatter, a standard deviation of ln L, or None;
        beyond: "N", "D", "C", "tokens_per_param" -> how far outside the fitted runs, as a factor of 1 or more;
        gap: C over the largest C fitted, or None; tested: see `Fitted.tested`; warnings: one line each.

    Raises:
      UsageError: a size or an amount that isn't positive.
    """
    check_ranges("predict: --", {"params": n, "tokens": d}, params="(0, 1e30]", tokens="(0, 1e30]")
    log_l = plan.log_loss(fitted.law, fitted.thetas, np.array([[n]]), np.array([[d]]))[:, 0]
    flops = FLOPS_PER_PARAM_TOKEN * n * d
    value, ends, noise = float(log_l[0]), fitted.ends(log_l), scatter(fitted)
    loss = {"value": math.exp(value), "low": None, "high": None}
    run = dict(loss)
    if ends is not None and intervals.doubt(np.exp(ends), loss["value"]) != intervals.AGREE:
        below, above = (widening(fitted) * abs(end - value) for end in ends)
        loss |= {"low": math.exp(value - below), "high": math.exp(value + above)}
        if noise is not None:
            own = student(fitted) * noise
            run |= {"low": math.exp(value - math.hypot(below, own)), "high": math.exp(value + math.hypot(above, own))}
    out: dict[str, Any] = {
        "asked": {"N": float(n), "D": float(d)},
        "C": flops,
        "law": fitted.law.name,
        "formula": fitted.formula,
        "source": fitted.law.source,
        "level": fitted.level,
        "loss": loss,
        "run": run,
        "noise": noise,
        "beyond": reach.beyond(fitted.range, dict(zip(reach.NAMES, (n, d, flops, d / n), strict=True))),
        "gap": flops / fitted.range["C"][1] if "C" in fitted.range else None,
        "tested": fitted.tested,
    }
    out["warnings"] = _warnings(fitted, out)
    return out


# --------------------------------------------------------------------------------------- intervals


def _degrees(fitted: Fitted) -> tuple[int, int]:
    """(runs fitted, those beyond the law's parameters)"""
    stored = fitted.result.get("n_runs")
    n = int(stored) if stored is not None and is_number(stored) else len(fitted.residuals)
    return n, n - fitted.num_params


def student(fitted: Fitted) -> float:
    """Half the width of the level's interval of one standard normal number, of an estimated deviation."""
    free = max(_degrees(fitted)[1], 1)
    return float(special.stdtrit(free, 0.5 + fitted.level / 2))


def widening(fitted: Fitted) -> float:
    """How much further an interval reaches than the resamples', which lack the degrees of freedom that the fit used.

    It is sqrt(n / (n - P)) (Hesterberg 2015, The American Statistician 69:4, section 3.4). docs/results.md has how
    often the intervals then cover planted losses, up to 100 times beyond the runs.
    """
    n, free = _degrees(fitted)
    return math.sqrt(n / max(free, 1))


def scatter(fitted: Fitted) -> float | None:
    """Standard deviation of ln L of one run about the law; None where the fit has no residuals of ln L, or none to
    spare."""
    r, free = fitted.residuals, len(fitted.residuals) - fitted.num_params
    logs = fitted.result.get("residuals_of", "log") == "log"
    return math.sqrt(float((r**2).sum()) / free) if free > 0 and logs else None


# ------------------------------------------------------------------------------- warnings and text


def _warnings(fitted: Fitted, out: Mapping[str, Any]) -> list[str]:
    lines = reach.warnings(fitted.range, out["beyond"])
    if out["loss"]["low"] is None:
        few = len(fitted.thetas) < 3
        why = "the fit was made without resamples" if few else "its resamples all agree, or leave out the prediction"
        lines.append(f"no interval: {why}")
    if out["noise"] is None:
        lines.append("no interval of one run: the fit holds no residuals of ln L beyond its parameters")
    return lines + [f"the fit warns: {warning}" for warning in fitted.warnings]


def text(prediction: Mapping[str, Any], unit: str = "tokens") -> str:
    """The prediction in lines for a terminal."""
    asked, level = prediction["asked"], f"{100 * prediction['level']:g} %"

    def ends(part: Mapping[str, float | None]) -> str:
        return "[no interval]" if part["low"] is None else texts.interval([part["low"], part["high"]], texts.loss)

    size = f"N {plan.si(asked['N'])} parameters, D {plan.si(asked['D'])} {unit}, C = 6 N D {prediction['C']:.3g} FLOPs"
    lines = [
        f"L(N, D) = {prediction['formula']}   ({prediction['source']})",
        f"{size}; [brackets: {level}]",
        f"  L  the law's loss          {texts.loss(prediction['loss']['value'])}  {ends(prediction['loss'])}",
        f"     loss of one run         {texts.loss(prediction['run']['value'])}  {ends(prediction['run'])}",
        *(f"  {line}" for line in reach.text(prediction["beyond"], prediction["gap"], prediction["tested"])),
    ]
    return "\n".join([*lines, *(f"  warning: {line}" for line in prediction["warnings"])])
