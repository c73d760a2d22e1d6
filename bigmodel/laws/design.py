"""Which runs to do next: the ones that make a plan's answer surest for a given amount of compute.

Near the fitted parameters a run tells about them what its slopes s = d ln L / d theta say: the fitted runs hold the
information M = sum s s' / sigma^2, one more run adds its own term, and an answer g(theta) = ln N_opt, say, whose
gradient is c, has variance c' M^-1 c. Runs that make this least are a c-optimal design (Elfving 1952, Optimum
allocation in linear regression theory; Kiefer 1959, Optimum experimental designs). They are chosen one by one, then
exchanged while that helps (Wynn 1970, The sequential generation of D-optimum experimental designs; Fedorov 1972, Theory
of Optimal Experiments).

Legend: N parameters, D tokens or examples, C = 6 N D training FLOPs; P parameters of the law, n fitted runs, m
candidate runs, k chosen ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any

import numpy as np

from bigmodel.errors import UsageError
from bigmodel.laws.fitted import Fitted, is_number
from bigmodel.laws.forms import FLOPS_PER_PARAM_TOKEN
from bigmodel.laws.plan import LOOSE, Ask, allocate, log_loss, remedy, si

GRID = 32  # sizes and data sizes of the candidates, each
SLOPE_STEP, TARGET_STEP = 1e-6, 1e-3  # of theta; a target is found by search, to 1e-7
# Greedy by variance won per FLOP^power: 0 buys what helps most, 1 what is cheapest for what it gives.
POWERS = (0.0, 0.25, 0.5, 0.75, 1.0)
EXCHANGES = 10
UNKNOWN = 10.0  # standard deviation of theta before any run: a factor e^10, or an exponent of 10
UNEQUAL = 1.75  # between stored and expected width: of 30 planted laws, 9 in 10 give 0.77 to 1.56
# Wider, a target isn't determined, and linear theory has nothing to say of it.
WIDEST = {"N": math.log(LOOSE), "loss": math.log(10.0), "a": 1.0}
TARGETS = {"N": "ln N_opt", "loss": "ln L", "a": "the exponent a of N_opt ~ C^a"}


@dataclass
class Design:
    """Candidates: slopes (m, P) in units of the noise, costs in FLOPs (m,), and the gradient of the target (P,)."""

    slopes: np.ndarray
    cost: np.ndarray
    target: np.ndarray

    def gain(self, covariance: np.ndarray) -> np.ndarray:
        """How much each candidate takes off the target's variance (m,): Sherman & Morrison's formula."""
        moved = self.slopes @ covariance
        return (moved @ self.target) ** 2 / (1 + np.einsum("mp,mp->m", moved, self.slopes))

    def add(self, covariance: np.ndarray, i: int, sign: float = 1.0) -> np.ndarray:
        """Covariance with run i, or, with sign -1, without it."""
        moved = covariance @ self.slopes[i]
        return covariance - sign * np.outer(moved, moved) / (1 + sign * float(moved @ self.slopes[i]))

    def variance(self, covariance: np.ndarray) -> float:
        return float(self.target @ covariance @ self.target)

    def greedy(self, covariance: np.ndarray, budget: float, runs: int, power: float) -> list[int]:
        chosen: list[int] = []
        for _ in range(runs):
            score = self.gain(covariance) / self.cost**power
            score[chosen] = -np.inf
            score[self.cost > budget] = -np.inf
            best = int(np.argmax(score))
            if not score[best] > 0:
                break
            chosen.append(best)
            covariance, budget = self.add(covariance, best), budget - self.cost[best]
        return chosen

    def exchange(self, covariance: np.ndarray, chosen: list[int], budget: float) -> list[int]:
        """Swaps one run at a time for the candidate that takes most off the variance, while one does."""
        chosen = list(chosen)
        for i in chosen:
            covariance = self.add(covariance, i)
        left = budget - float(self.cost[chosen].sum())
        for _ in range(EXCHANGES):
            changed = False
            for j, old in enumerate(chosen):
                without = self.add(covariance, old, -1.0)
                gain = self.gain(without)
                gain[[i for i in chosen if i != old]] = -np.inf
                gain[self.cost > left + self.cost[old]] = -np.inf
                new = int(np.argmax(gain))
                if gain[new] > gain[old] * (1 + 1e-9):
                    left += self.cost[old] - self.cost[new]
                    chosen[j], covariance, changed = new, self.add(without, new), True
            if not changed:
                break
        return chosen


def advise(
    fitted: Fitted,
    plan: Mapping[str, Any],
    ask: Ask,
    flops: float | None = None,
    runs: int = 8,
    target: str = "N",
    max_tokens: float = math.inf,
) -> dict[str, Any]:
    """The runs that narrow the interval of the plan's answer most, as JSON.

    Args:
      plan: as `plan.make` returns for `ask`.
      flops: to spend on all of them; None: as much again as the fitted runs together (as the largest of them, where
        the fit doesn't hold its runs).
      runs: at most this many, each of another N or D.
      target: "N" (ln N_opt at the plan's compute), "loss" (ln L at the plan's N and D), or "a".
      max_tokens: of data that there is for a run.

    Returns:
      A dict with target, at (FLOPs), flops (to spend), basis (where the information of the fitted runs is from);
        before: {"stored", "expected", "ratio"}: width of the target's interval by the fit's resamples, by the linear
        theory, and stored / expected; "after": stored (else expected) times the expected narrowing; "narrowing": the
        factor, for each target; rows: one per run, best per FLOP first: N, D, C, and the expected width once it and
        those before it are done.

    Raises:
      UsageError: nothing to spend on, or a fit that says nothing about its runs.
    """
    if not runs >= 1:
        raise UsageError(f"plan: --next-runs={runs}: must be at least 1")
    if flops is not None and not (math.isfinite(flops) and flops > 0):
        raise UsageError(f"plan: --next-flops={flops:g}: expected a positive number")
    theta = fitted.thetas[0]
    budget = float(plan["C"]["value"])
    gradients = {name: _gradient(fitted, plan, name, budget) for name in TARGETS}
    covariance, sigma, basis = _covariance(fitted)
    size, data, spend = _candidates(fitted, flops, replace(ask, max_tokens=min(ask.max_tokens, max_tokens)))
    slopes = _slopes(fitted, theta, size, data) / sigma
    designs = {name: Design(slopes, FLOPS_PER_PARAM_TOKEN * size * data, c) for name, c in gradients.items()}
    design = designs[target]
    found = [design.exchange(covariance, design.greedy(covariance, spend, runs, power), spend) for power in POWERS]

    def after(name: str, chosen: list[int]) -> float:
        matrix = covariance
        for i in chosen:
            matrix = design.add(matrix, i)
        return designs[name].variance(matrix)

    chosen = min(found, key=lambda one: after(target, one))
    order = _by_efficiency(design, covariance, chosen)
    z = 2 * NormalDist().inv_cdf(0.5 + fitted.level / 2)
    expected = z * math.sqrt(design.variance(covariance))
    stored = _stored_width(fitted, plan, ask, target, budget)
    start = stored if stored is not None else expected
    if not start < WIDEST[target]:
        wide = f"its interval of {TARGETS[target]} is {start:.3g} wide"
        raise UsageError(f"plan: no advice on the next runs: the fit doesn't determine it, {wide}; {remedy(fitted)}")
    narrowing = {}
    for name, other in designs.items():
        narrowing[name] = math.sqrt(after(name, order) / max(other.variance(covariance), 1e-300))
    rows = []
    for k in range(len(order)):
        width = start * math.sqrt(after(target, order[: k + 1]) / design.variance(covariance))
        n, d = float(size[order[k]]), float(data[order[k]])
        rows.append({"N": n, "D": d, "C": FLOPS_PER_PARAM_TOKEN * n * d, "width": width})
    return {
        "target": target,
        "at": budget,
        "flops": spend,
        "spent": float(sum(row["C"] for row in rows)),
        "basis": basis,
        "before": {"stored": stored, "expected": expected, "ratio": stored / expected if stored else None},
        "after": start * narrowing[target],
        "narrowing": narrowing,
        "rows": rows,
    }


def _by_efficiency(design: Design, covariance: np.ndarray, chosen: list[int]) -> list[int]:
    """The chosen runs, each time the one that takes most off the variance per FLOP."""
    left, order = list(chosen), []
    while left:
        score = design.gain(covariance)[left] / design.cost[left]
        order.append(left.pop(int(np.argmax(score))))
        covariance = design.add(covariance, order[-1])
    return order


def _slopes(fitted: Fitted, theta: np.ndarray, n: np.ndarray, d: np.ndarray) -> np.ndarray:
    """d ln L / d theta at n and d, both (m,): (m, P), by central differences."""
    columns = []
    for p in range(len(theta)):
        h = np.zeros(len(theta))
        h[p] = SLOPE_STEP * (1 + abs(theta[p]))
        up, down = (log_loss(fitted.law, (theta + s * h)[None], n[None], d[None])[0] for s in (1, -1))
        columns.append((up - down) / (2 * h[p]))
    return np.array(columns).T


def _target(fitted: Fitted, plan: Mapping[str, Any], name: str, budget: float) -> Callable[[np.ndarray], np.ndarray]:
    """g of parameter sets (S, P) -> (S,)."""
    law = fitted.law
    if name == "loss":
        n, d = (np.array([[plan[k]["value"]]]) for k in ("N", "D"))
        return lambda thetas: log_loss(law, thetas, n, d)[:, 0]

    def size(thetas: np.ndarray, flops: float) -> np.ndarray:
        return np.log(allocate(law, thetas, np.full(len(thetas), flops), Ask(flops=flops))[0])

    if name == "N":
        return lambda thetas: size(thetas, budget)
    return lambda thetas: (size(thetas, 10 * budget) - size(thetas, budget / 10)) / math.log(100.0)


def _gradient(fitted: Fitted, plan: Mapping[str, Any], name: str, budget: float) -> np.ndarray:
    theta = fitted.thetas[0]
    h = TARGET_STEP * np.eye(len(theta))
    g = _target(fitted, plan, name, budget)(np.concatenate([theta + h, theta - h]))
    gradient = (g[: len(theta)] - g[len(theta) :]) / (2 * TARGET_STEP)
    if not np.isfinite(gradient).all():
        raise UsageError(
            f"plan: no advice on the next runs: law {fitted.law.name!r} has no optimum beside the fitted one"
        )
    return gradient


def _covariance(fitted: Fitted) -> tuple[np.ndarray, float, str]:
    """(covariance of theta (P, P), sigma, where it is from) by the fitted runs; without them, by the resamples."""
    if not len(fitted.residuals):
        raise UsageError(f"plan: no advice on the next runs: {fitted.path!r} holds no residuals of its runs")
    sigma = _sigma(fitted)
    names = fitted.law.names
    if fitted.points:
        slopes = _slopes(fitted, fitted.thetas[0], fitted.points["N"], fitted.points["D"])
        slopes = slopes[np.isfinite(slopes).all(axis=1)]
        # Points of one run tell little more than one of them: they weigh as that many runs.
        points, runs = len(fitted.points["N"]), fitted.result.get("n_runs")
        share = min(float(runs) / points, 1.0) if runs is not None and is_number(runs) else 1.0
        matrix = share * slopes.T @ slopes / sigma**2
        basis = f"the slopes of the law at the {len(slopes)} fitted runs"
    elif len(fitted.thetas) > 2 * len(names) + 1:
        samples = fitted.thetas[1:]
        # A few resamples end far away: without the outermost of each parameter the rest is nearly normal.
        low, high = np.percentile(samples, [1, 99], axis=0)
        spread = np.cov(samples[((samples >= low) & (samples <= high)).all(axis=1)].T)
        matrix = np.linalg.pinv(np.atleast_2d(spread), hermitian=True, rcond=1e-12)
        basis = "the spread of its resamples (it holds no points)"
    else:
        raise UsageError(f"plan: no advice on the next runs: {fitted.path!r} holds neither its points nor resamples")
    # What no run determines, as a floor that the fit has pressed to zero, is not free to move through the whole line.
    return np.linalg.inv(matrix + np.eye(len(names)) / UNKNOWN**2), sigma, basis


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
    """(N (m,), D (m,), FLOPs to spend): a grid of runs that can be paid for, shaped as the fitted ones are.

    No smaller than the smallest fitted run, and with no more or fewer tokens per parameter than those had: further out
    the linear theory would always find a run that seems to tell more, where the law has never been tried.
    """
    if fitted.points:
        n, d = fitted.points["N"], fitted.points["D"]
        low, high = float((d / n).min()), float((d / n).max())
        least, smallest = float(d.min()), float(n.min())
        spend = flops if flops is not None else float((FLOPS_PER_PARAM_TOKEN * n * d).sum())
    elif {"N", "D", "C"} <= fitted.range.keys():
        (smallest, n_most), (least, d_most) = fitted.range["N"], fitted.range["D"]
        low, high = least / n_most, d_most / smallest
        spend = flops if flops is not None else fitted.range["C"][1]
    else:
        raise UsageError(f"plan: no advice on the next runs: {fitted.path!r} says neither its points nor their range")
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


def _stored_width(fitted: Fitted, plan: Mapping[str, Any], ask: Ask, target: str, budget: float) -> float | None:
    """Width of the target's interval by the fit's resamples, in ln N, ln L, or a."""
    if len(fitted.thetas) < 3:
        return None
    values = _target(fitted, plan, target, budget)(fitted.thetas)
    ends = fitted.ends(np.where(np.isfinite(values), values, np.nan))
    return (ends[1] - ends[0]) or None if ends else None


def text(advice: Mapping[str, Any], configs: list[str] | None = None) -> str:
    """The advice in lines for a terminal; `configs`: one text per row."""
    before, what = advice["before"], TARGETS[advice["target"]]
    start = before["stored"] if before["stored"] is not None else before["expected"]
    factor = math.exp(start / 2), math.exp(advice["after"] / 2)
    shown = f" (N_opt within a factor {factor[0]:.3g}, then {factor[1]:.3g})" if advice["target"] == "N" else ""
    source = f"{start:.3g} by the fit's resamples" if before["stored"] is not None else f"{start:.3g} expected"
    ratio = f" ({before['ratio']:.2f}x what {advice['basis']} make expect)" if before["ratio"] else ""
    head = f"{len(advice['rows'])} runs" if len(advice["rows"]) > 1 else "1 run"
    lines = [
        f"next: {head} for {advice['spent']:.3g} of {advice['flops']:.3g} FLOPs, to narrow {what} "
        f"at {advice['at']:.3g} FLOPs",
        f"  width of its interval: {source}{ratio}; expected after: {advice['after']:.3g}{shown}",
        "  the others narrow to: "
        + ", ".join(f"{TARGETS[k]} x{v:.2f}" for k, v in advice["narrowing"].items() if k != advice["target"]),
        f"  {'N':>8} {'D':>8} {'C':>10} {'width then':>10}",
    ]
    for i, row in enumerate(advice["rows"]):
        line = f"  {si(row['N']):>8} {si(row['D']):>8} {row['C']:>10.3g} {row['width']:>10.3g}"
        lines.append(line + (f"  {configs[i]}" if configs else ""))
    if before["ratio"] and not 1 / UNEQUAL < before["ratio"] < UNEQUAL:
        lines.append("  warning: the fitted runs scatter unequally, or the law misses some: expect another narrowing")
    return "\n".join(lines)
