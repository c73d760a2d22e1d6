"""Which runs to do next: those that make the next model surest for a given amount of compute.

Near the fitted parameters theta, a run informs about them by its slopes s = d ln L / d theta. The fitted runs hold the
information M = sum s s' / sigma^2, and one more run adds its own term. An answer g(theta), as ln N_opt, with gradient c
has variance c' M^-1 c. Runs that make this least are a c-optimal design, which `optimal.Design` finds.

Once they are done, the estimate of g will have moved by a normal amount with variance before - after, the part of the
variance that they remove (preposterior analysis: Raiffa & Schlaifer 1961, Applied Statistical Decision Theory): that
says whether to stop.

Legend: N parameters, D tokens or examples, C = 6 N D training FLOPs; P parameters of the law, S parameter sets, n
fitted runs, m candidate runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import NormalDist
from typing import Any

import numpy as np

from bigmodel.errors import UsageError, check_ranges
from bigmodel.laws.fitted import Fitted, is_number
from bigmodel.laws.forms import FLOPS_PER_PARAM_TOKEN
from bigmodel.laws.optimal import Design
from bigmodel.laws.plan import LOOSE, Ask, allocate, log_loss, si

GRID = 32  # sizes and data sizes of the candidates, each
SLOPE_STEP, TARGET_STEP = 1e-6, 1e-3  # of theta; a target is found by search, to 1e-7
# Greedy by variance removed per FLOP^power: 0 takes the largest reduction, 1 the largest per FLOP.
POWERS = (0.0, 0.25, 0.5, 0.75, 1.0)
UNKNOWN = 10.0  # standard deviation of theta before any run: a factor e^10, or an exponent of 10
UNEQUAL = 1.75  # between stored and expected width: of 30 planted laws, 9 in 10 give 0.77 to 1.56
# A target with a wider interval isn't determined, and linear theory says nothing about it.
WIDEST = {"N": math.log(LOOSE), "loss": math.log(10.0), "a": 1.0}
TARGETS = {"N": "ln N_opt", "loss": "ln L", "a": "the exponent a of N_opt ~ C^a"}


def advise(
    fitted: Fitted,
    allocation: Mapping[str, Any],
    ask: Ask,
    flops: float | None = None,
    runs: int = 8,
    target: str = "N",
    max_tokens: float = math.inf,
) -> dict[str, Any]:
    """The runs that narrow the interval of the allocation's answer most, as JSON.

    Args:
      allocation: as `plan.make` returns for `ask`.
      flops: to spend on all of them; None: as much again as the fitted runs together.
      runs: at most this many, each of another N or D.
      target: "N" (ln N_opt at the allocation's compute), "loss" (ln L at its N and D), or "a".
      max_tokens: the data available to one run.

    Returns:
      A dict with target, at (FLOPs), flops (to spend), spent, basis (the source of the fitted runs' information);
        before: width of the target's interval by the fit's resamples ("stored"), by linear theory ("expected"), and
        their ratio; after: the width times the expected narrowing; narrowing: the factor, for each target; rows: one
        per run, best per FLOP first, with the expected width once it and those before it are done; stop: by what part
        of itself N_opt will move, on average and at most with probability "level"; None: its interval isn't known.

    Raises:
      UsageError: nothing to spend on, or a fit that doesn't describe its runs.
    """
    check_ranges("plan: --next-", {"runs": runs}, runs="[1, inf)")
    if flops is not None:
        check_ranges("plan: --next-", {"flops": flops}, flops="(0, inf)")
    if not fitted.points or not len(fitted.residuals):
        raise UsageError(f"plan: no advice on the next runs: {fitted.path!r} holds no points or no residuals")
    at = float(allocation["C"]["value"])
    answers = {name: _answer(fitted, allocation, name) for name in TARGETS}
    gradients = {name: _gradient(fitted, answer) for name, answer in answers.items()}
    covariance, sigma, basis = _covariance(fitted)
    size, data, spend = _candidates(fitted, flops, replace(ask, max_tokens=min(ask.max_tokens, max_tokens)))
    slopes, cost = _slopes(fitted, size, data) / sigma, FLOPS_PER_PARAM_TOKEN * size * data
    designs = {name: Design(slopes[:, None], cost, gradient[None]) for name, gradient in gradients.items()}
    design = designs[target]
    found = [design.exchange(covariance, design.greedy(covariance, spend, runs, power), spend) for power in POWERS]
    chosen = min(found, key=lambda one: design.variance(design.add(covariance, one)))
    order = design.greedy(covariance, math.inf, runs, 1.0, among=chosen)

    def narrowed(name: str, runs: Sequence[int]) -> float:
        """The width of a target's interval with these runs, as a part of that without."""
        one = designs[name]
        return math.sqrt(one.variance(one.add(covariance, runs)) / max(one.variance(covariance), 1e-300))

    expected = 2 * NormalDist().inv_cdf(0.5 + fitted.level / 2) * math.sqrt(design.variance(covariance))
    stored = _stored_width(fitted, answers[target])
    width = stored if stored is not None else expected
    if not width < WIDEST[target]:
        wide = f"its interval of {TARGETS[target]} is {width:.3g} wide"
        raise UsageError(f"plan: no advice on the next runs: the fit doesn't determine it, {wide}; {fitted.remedy()}")
    rows = []
    for k, i in enumerate(order):
        row = {"N": float(size[i]), "D": float(data[i]), "C": float(cost[i])}
        rows.append({**row, "width": width * narrowed(target, order[: k + 1])})
    narrowing = {name: narrowed(name, order) for name in designs}
    return {
        "target": target,
        "at": at,
        "flops": spend,
        "spent": float(sum(row["C"] for row in rows)),
        "basis": basis,
        "before": {"stored": stored, "expected": expected, "ratio": stored / expected if stored else None},
        "after": width * narrowing[target],
        "narrowing": narrowing,
        "rows": rows,
        "stop": _stop(fitted, answers["N"], designs["N"].variance(covariance), narrowing["N"]),
    }


def _stop(fitted: Fitted, answer: Callable[[np.ndarray], np.ndarray], variance: float, narrowing: float) -> Any:
    """How far N_opt will move if its interval narrows so; `variance`: of ln N_opt by linear theory."""
    z = NormalDist().inv_cdf(0.5 + fitted.level / 2)
    stored = _stored_width(fitted, answer)
    scale = stored / (2 * z) if stored else math.sqrt(variance)
    if not 2 * z * scale < WIDEST["N"]:
        return None
    move = scale * math.sqrt(max(1 - narrowing**2, 0.0))
    return {
        "expected": math.expm1(math.sqrt(2 / math.pi) * move),
        "most": math.expm1(z * move),
        "level": fitted.level,
    }


def _derivative(f: Callable[[np.ndarray], np.ndarray], theta: np.ndarray, step: np.ndarray) -> np.ndarray:
    """df / dtheta (..., P) by central differences, for f: parameter sets (S, P) -> (S, ...)."""
    up, down = f(theta + np.diag(step)), f(theta - np.diag(step))
    return (up - down).T / (2 * step)


def _slopes(fitted: Fitted, n: np.ndarray, d: np.ndarray) -> np.ndarray:
    """d ln L / d theta at n and d, both (m,): (m, P)."""
    theta = fitted.thetas[0]
    step = SLOPE_STEP * (1 + np.abs(theta))
    return _derivative(lambda thetas: log_loss(fitted.law, thetas, n[None], d[None]), theta, step)


def _answer(fitted: Fitted, allocation: Mapping[str, Any], target: str) -> Callable[[np.ndarray], np.ndarray]:
    """g of parameter sets (S, P) -> (S,)."""
    n, d, flops = (allocation[k]["value"] for k in ("N", "D", "C"))

    def log_size(thetas: np.ndarray, flops: float) -> np.ndarray:
        return np.log(allocate(fitted.law, thetas, np.full(len(thetas), flops), Ask(flops=flops))[0])

    if target == "loss":
        return lambda thetas: log_loss(fitted.law, thetas, np.array([[n]]), np.array([[d]]))[:, 0]
    if target == "N":
        return lambda thetas: log_size(thetas, flops)
    return lambda thetas: (log_size(thetas, 10 * flops) - log_size(thetas, flops / 10)) / math.log(100.0)


def _gradient(fitted: Fitted, answer: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    theta = fitted.thetas[0]
    gradient = _derivative(answer, theta, np.full(len(theta), TARGET_STEP))
    if not np.isfinite(gradient).all():
        raise UsageError(
            f"plan: no advice on the next runs: law {fitted.law.name!r} has no optimum beside the fitted one"
        )
    return gradient


def _covariance(fitted: Fitted) -> tuple[np.ndarray, float, str]:
    """(covariance of theta (P, P), sigma, its source) by the slopes at the fitted runs."""
    sigma = _sigma(fitted)
    slopes = _slopes(fitted, fitted.points["N"], fitted.points["D"])
    slopes = slopes[np.isfinite(slopes).all(axis=1)]
    # Points of one run tell little more than one of them: they weigh as that many runs.
    points, runs = len(fitted.points["N"]), fitted.result.get("n_runs")
    share = min(float(runs) / points, 1.0) if runs is not None and is_number(runs) else 1.0
    matrix = share * slopes.T @ slopes / sigma**2
    # What no run determines, as a floor that the fit has pressed to zero, is not free to move through the whole line.
    covariance = np.linalg.inv(matrix + np.eye(slopes.shape[1]) / UNKNOWN**2)
    return covariance, sigma, f"the slopes of the law at the {len(slopes)} fitted runs"


def _sigma(fitted: Fitted) -> float:
    """Standard deviation that, in least squares, would give this Huber fit's spread.

    It is sqrt(mean psi^2) / mean psi' of the residuals (Huber 1964, Robust estimation of a location parameter). A delta
    far below the usual residual makes nearly a median regression, which runs through as many points as it has
    parameters: those are left out, and the share inside delta is taken from how many lie within half of the usual
    residual.
    """
    free = len(fitted.residuals) - len(fitted.law.names)
    r = np.sort(np.abs(fitted.residuals))[-free:] if free > 0 else np.empty(0)
    spread = float(np.median(r)) / 0.6745 if len(r) else 0.0
    if not spread > 0:
        return 1e-6  # without noise: only ratios mean anything
    delta: Any = fitted.result.get("delta")
    if fitted.result.get("estimator", "huber") == "likelihood" or not is_number(delta) or not delta > 0:
        delta = spread  # the scale was fitted too
    near = max(delta, spread / 2)
    inside = float(np.mean(r <= near)) * delta / near
    return math.sqrt(float(np.mean(np.minimum(r, delta) ** 2))) / max(inside, 1e-9)


def _candidates(fitted: Fitted, flops: float | None, ask: Ask) -> tuple[np.ndarray, np.ndarray, float]:
    """(N (m,), D (m,), FLOPs to spend): a grid of runs within the budget, shaped as the fitted ones are.

    None is smaller than the smallest fitted run, or has more or fewer tokens per parameter than those had. Outside, the
    law was never tried, and linear theory would always prefer a run there.
    """
    n, d = fitted.points["N"], fitted.points["D"]
    low, high = float((d / n).min()), float((d / n).max())
    least, smallest = float(d.min()), float(n.min())
    spend = flops if flops is not None else float((FLOPS_PER_PARAM_TOKEN * n * d).sum())
    most_n = min(spend / (FLOPS_PER_PARAM_TOKEN * least), ask.max_params)
    most_d = min(spend / (FLOPS_PER_PARAM_TOKEN * smallest), ask.max_tokens)
    if most_n < smallest or most_d < least:
        cheapest = FLOPS_PER_PARAM_TOKEN * smallest * least
        raise UsageError(
            f"plan: no run to advise: the smallest like the fitted ones is N {si(smallest)}, D {si(least)}, "
            f"{cheapest:.3g} FLOPs, which --next-flops={spend:.3g} or the limits don't allow"
        )
    n, d = np.meshgrid(np.geomspace(smallest, most_n, GRID), np.geomspace(least, most_d, GRID), indexing="ij")
    ratio = d / n
    keep = (FLOPS_PER_PARAM_TOKEN * n * d <= spend) & (ratio >= low * 0.999) & (ratio <= high * 1.001)
    if not keep.any():
        raise UsageError(f"plan: no run to advise within --next-flops={spend:.3g} and the limits")
    return n[keep], d[keep], spend


def _stored_width(fitted: Fitted, answer: Callable[[np.ndarray], np.ndarray]) -> float | None:
    """Width of an answer's interval by the fit's resamples; None without."""
    if len(fitted.thetas) < 3:
        return None
    values = answer(fitted.thetas)
    ends = fitted.ends(np.where(np.isfinite(values), values, np.nan))
    return (ends[1] - ends[0]) or None if ends else None


def text(advice: Mapping[str, Any], configs: list[str] | None = None) -> str:
    """The advice in lines for a terminal; `configs`: one text per row."""
    before, target, rows = advice["before"], advice["target"], advice["rows"]
    width, source = before["stored"], "by the fit's resamples"
    if width is None:
        width, source = before["expected"], "expected"
    ratio = f" ({before['ratio']:.2f}x what {advice['basis']} make expect)" if before["ratio"] else ""
    shown = ""
    if target == "N":
        factors = math.exp(width / 2), math.exp(advice["after"] / 2)
        shown = f" (N_opt within a factor {factors[0]:.3g}, then {factors[1]:.3g})"
    others = [f"{TARGETS[k]} x{v:.2f}" for k, v in advice["narrowing"].items() if k != target]
    runs = f"{len(rows)} runs" if len(rows) > 1 else "1 run"
    lines = [
        f"next: {runs} for {advice['spent']:.3g} of {advice['flops']:.3g} FLOPs, to narrow {TARGETS[target]} "
        f"at {advice['at']:.3g} FLOPs",
        f"  width of its interval: {width:.3g} {source}{ratio}; expected after: {advice['after']:.3g}{shown}",
        f"  the others narrow to: {', '.join(others)}",
        f"  {'N':>8} {'D':>8} {'C':>10} {'width then':>10}",
    ]
    for row, config in zip(rows, configs or [""] * len(rows), strict=True):
        cells = f"  {si(row['N']):>8} {si(row['D']):>8} {row['C']:>10.3g} {row['width']:>10.3g}"
        lines.append(f"{cells}  {config}".rstrip())
    if stop := advice["stop"]:
        most = f"more than {100 * stop['most']:.2g} % with a chance of {100 * (1 - stop['level']):.2g} %"
        lines.append(f"  stop? these runs will move N_opt by about {100 * stop['expected']:.2g} %, by {most}")
    if before["ratio"] and not 1 / UNEQUAL < before["ratio"] < UNEQUAL:
        lines.append("  warning: the fitted runs scatter unequally, or the law misses some: expect another narrowing")
    return "\n".join(lines)
