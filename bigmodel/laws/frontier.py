"""The compute-optimal frontier without a law of the loss: Hoffmann et al. 2022's approaches 1 and 2.

Both find the best N and D of each budget C from the runs themselves, then fit N_opt = N0 C^a and D_opt = D0 C^b as
straight lines on log axes (arXiv:2203.15556, sections 3.1 and 3.2).

Legend: N parameters, D tokens, C training FLOPs, L loss; R resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from bigmodel.errors import UsageError, choose, nearest
from bigmodel.laws import doctor, intervals
from bigmodel.laws.budgets import MIN_SIZES, Curve, Optimum, groups_of, least, parabola
from bigmodel.laws.forms import FLOPS_PER_PARAM_TOKEN

METHODS = ("isoflop", "envelope")
SHAPES = ("parabola", "akima")
ENVELOPE_BUDGETS = 1500  # Hoffmann et al. 2022, section 3.1
WEIGHT_DRAWS = 200  # of each budget's noise, for how well its optimum is known
FINE = 25  # interpolated sizes between neighbours


def power_law(x: np.ndarray, y: np.ndarray, std: np.ndarray | None = None) -> tuple[Any, Any]:
    """(exponent, coefficient) of y = coefficient * x^exponent by least squares of ln y on ln x.

    Args:
      y: (n,), or (n, R) of R power laws.
      std: standard error of each ln y, (n,); weights are 1 / std^2. None: all alike.
    """
    slope, start = np.polyfit(np.log(x), np.log(y), 1, w=None if std is None else 1 / np.asarray(std))
    return slope, np.exp(start)


def fit(
    frame: pd.DataFrame, law: str, bootstrap: int = 1000, seed: int = 0, budgets_at: Sequence[float] | None = None
) -> dict[str, Any]:
    """The frontier as a fit's dict (see `fit.fit`), for `law` "isoflop", corrected by `doctor.after`, or "envelope"."""
    if budgets_at is not None and law != "isoflop":
        raise UsageError(f"law {law!r} has no budgets to name: they are isoflop's")
    if "C" not in frame and {"N", "D"} <= set(frame):
        frame = frame.assign(C=FLOPS_PER_PARAM_TOKEN * frame["N"] * frame["D"])
    if law == "envelope":
        return envelope(frame, bootstrap, seed)
    return doctor.after(frame, isoflop(frame, bootstrap, seed, budgets_at=budgets_at), bootstrap, seed, budgets_at)


# ---------------------------------------------------------------------------------- approach 2


def isoflop(
    frame: pd.DataFrame,
    bootstrap: int = 1000,
    seed: int = 0,
    shape: str = "parabola",
    budgets_at: Sequence[float] | None = None,
) -> dict[str, Any]:
    """Approach 2: the best N of each budget from a curve through its runs.

    Args:
      frame: columns N, D, C, L; a budget is a group of runs of about the same C.
      bootstrap: resamples of each budget's residuals.
      shape: "parabola", ln L quadratic in ln N within a factor of 8 of the best run (Hoffmann et al. 2022); or
        "akima", an interpolation of ln L in ln N through every run (Porian et al. 2024, arXiv:2406.19146, section 3).
      budgets_at: the budgets in FLOPs, where runs lie between them too: each takes the runs within a tenth of it.

    Returns:
      A fit's dict (see `fit.fit`) with params a, N0, b, D0, and with "budgets". A budget: C, n_runs, N and L of its
      runs, N_opt, D_opt, L_opt, N_ci, parabola (coefficients of ln L in ln N, highest power first, or None), edge: true
      where the best size is the smallest or largest, so that the budget is left out.

    Raises:
      UsageError: a missing column, or fewer than two budgets with four sizes around an optimum.
    """
    choose("shape", shape, SHAPES)
    _need(frame)
    rng = np.random.default_rng(seed)
    curve = parabola if shape == "parabola" else _akima
    groups = groups_of(frame, budgets_at)
    few = [f"{group['C'].median():.3g}" for group in groups if group["N"].nunique() < MIN_SIZES]
    found = [_optimum(group, curve, rng, bootstrap) for group in groups if group["N"].nunique() >= MIN_SIZES]
    budgets = [budget for budget, _, _ in found]
    inside = [each for each in found if not each[0]["edge"]]
    if len(inside) < 2:
        spans = [(group["C"].min(), group["C"].max()) for group in groups]
        if span := next((f"{low:.3g} to {high:.3g}" for low, high in spans if high > 1.5 * low), ""):
            raise UsageError(
                f"isoflop: C runs on from {span} without gaps between budgets: name the budgets, as "
                "--budgets=1e19,3e19,1e20"
            )
        raise UsageError(
            f"isoflop: {len(inside)} of {len(budgets)} budgets have their best size inside a range of "
            f"{MIN_SIZES} or more; two are needed: run more sizes at each C (`bigmodel sweep` with isoflop()), or fit "
            "--law=chinchilla, which needs none inside"
        )
    warnings = list(frame.attrs.get("warnings", []))
    if few:
        some = ", ".join(few[:4]) + (", ..." if len(few) > 4 else "")
        warnings.append(f"{len(few)} budgets have under {MIN_SIZES} sizes, C = {some}: left out")
    if len(inside) < len(budgets):
        edges = ", ".join(f"{b['C']:.3g}" for b in budgets if b["edge"])
        warnings.append(f"the best size is at the edge of the runs at C = {edges}: left out of the power law")
    if len(inside) == 2:
        warnings.append("two budgets: the exponent is a line through two points")
    flops, n_opt, d_opt = (np.array([b[key] for b, _, _ in inside]) for key in ("C", "N_opt", "D_opt"))
    std = np.array([spread for _, _, spread in inside])
    moved = np.exp([[rng.choice(drawn) for _, drawn, _ in inside] for _ in range(bootstrap)]).reshape(-1, len(flops)).T
    samples = _frontier(flops, moved, (d_opt * n_opt)[:, None] / moved, std).T
    return _result("isoflop", _frontier(flops, n_opt, d_opt, std), samples, bootstrap, frame, budgets, warnings)


def _optimum(
    group: pd.DataFrame, curve: Curve, rng: np.random.Generator, bootstrap: int
) -> tuple[dict[str, Any], np.ndarray, float]:
    """(a budget, ln N_opt of its resamples, the standard error of ln N_opt) from the best run of each size."""
    flops, best = float(np.exp(np.log(group["C"]).mean())), least(group, "N")
    log_n, log_l = np.log(best[["N", "L"]].to_numpy(dtype=float)).T
    x, y, coefficients, edge, local = curve(log_n, log_l)
    around = log_n[local] - log_n[local].mean()
    residual = log_l[local] - np.polyval(np.polyfit(around, log_l[local], 2), around)
    noise = np.sqrt((residual**2).sum() / (len(residual) - 3))

    def draws(rng: np.random.Generator, number: int) -> np.ndarray:
        """ln N_opt of curves through the runs with fresh noise, of those that have one, (at most number,)."""
        optima = [curve(log_n, log_l + noise * rng.standard_normal(len(log_l)))[0] for _ in range(number)]
        return np.array(optima)[np.isfinite(optima)]

    # Weights have draws of their own: the same whatever is resampled.
    weighed, drawn = draws(np.random.default_rng(0), WEIGHT_DRAWS), draws(rng, bootstrap)
    n_opt, n_ci = float(np.exp(x)), None
    if intervals.enough(len(drawn), bootstrap):
        n_ci = intervals.pair(np.exp(intervals.percentile(drawn[:, None])[:, 0]), n_opt)
    best_of = {"N_opt": n_opt, "D_opt": flops / _flops_per(best) / n_opt, "L_opt": float(np.exp(y)), "N_ci": n_ci}
    edge = bool(edge or len(weighed) < WEIGHT_DRAWS / 2)
    budget = _budget(flops, best["N"], best["L"], **best_of, parabola=coefficients, edge=edge)
    # No optimum is known better than a fraction of the spacing of the sizes that it lies between.
    spread = float(np.std(weighed)) if len(weighed) > 1 else np.nan
    return budget, drawn if len(drawn) else np.array([x]), np.maximum(spread, np.median(np.diff(log_n)) / 10)


def _akima(log_n: np.ndarray, log_l: np.ndarray) -> Optimum:
    from scipy.interpolate import Akima1DInterpolator  # a quarter of a second to import, and seldom asked for

    fine = np.linspace(log_n[0], log_n[-1], FINE * (len(log_n) - 1) + 1)
    loss = Akima1DInterpolator(log_n, log_l)(fine)
    best = int(np.argmin(loss))
    edge = best in (0, len(fine) - 1)
    near = np.argsort(np.abs(log_n - fine[best]), kind="stable")[: MIN_SIZES + 1]
    return float(np.nan if edge else fine[best]), float(loss[best]), None, edge, near


# ---------------------------------------------------------------------------------- approach 1


def envelope(frame: pd.DataFrame, bootstrap: int = 1000, seed: int = 0) -> dict[str, Any]:
    """Approach 1: the least loss of any size at each of 1500 budgets, interpolating every size's runs in C.

    Args:
      frame: columns N, D, C, L; several D for each N, whether of one training curve or of separate runs.
      bootstrap: resamples of the sizes, with replacement.

    Returns:
      As `isoflop`; its budgets are the places where the best size changes, and carry no parabola.

    Raises:
      UsageError: a missing column, or fewer than three sizes with two D each, or no budget at which sizes compete.
    """
    _need(frame)
    curves = [best for _, group in frame.groupby("N") if len(best := least(group, "C")) > 1]
    if len(curves) < 3:
        raise UsageError(f"envelope: {len(curves)} sizes N have runs at two or more D; three are needed")
    n_of = np.array([float(best["N"].iloc[0]) for best in curves])
    ratio_of = np.array([_flops_per(best) for best in curves])
    lines = [np.log(best[["C", "L"]].to_numpy(float)).T for best in curves]
    grid = np.linspace(min(c[0] for c, _ in lines), max(c[-1] for c, _ in lines), ENVELOPE_BUDGETS)
    table = np.array([np.interp(grid, c, loss, left=np.inf, right=np.inf) for c, loss in lines])  # (sizes, budgets)

    def best_of(chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(budgets at which the least of the chosen sizes' losses counts, index of that size)"""
        losses = table[chosen]
        winner = chosen[np.argmin(losses, axis=0)]
        # Where the smallest or the largest that ran at this budget wins, a still smaller or larger one might have.
        ran = np.isfinite(losses)
        smallest, largest = np.argmax(ran, axis=0), len(chosen) - 1 - np.argmax(ran[::-1], axis=0)
        inside = (winner > chosen[smallest]) & (winner < chosen[largest])
        return np.flatnonzero(inside), winner[inside]

    def frontier(at: np.ndarray, winner: np.ndarray) -> np.ndarray:
        flops = np.exp(grid[at])
        return _frontier(flops, n_of[winner], flops / ratio_of[winner] / n_of[winner])

    at, winner = best_of(np.arange(len(curves)))
    if len(np.unique(winner)) < 2:
        raise UsageError("envelope: under two sizes are best at a budget where larger and smaller ones ran; run more D")
    rng, samples = np.random.default_rng(seed), []
    for _ in range(bootstrap):
        drawn = np.unique(rng.integers(len(curves), size=len(curves)))
        own = best_of(drawn) if len(drawn) > 2 else (np.empty(0), np.empty(0))
        if len(np.unique(own[1])) > 1:
            samples.append(frontier(*own))
    warnings = list(frame.attrs.get("warnings", []))
    if len(samples) < bootstrap:
        warnings.append(f"{bootstrap - len(samples)} of {bootstrap} resamples have no envelope")
    budgets = []
    for k in np.unique(winner):
        own_at = at[winner == k]
        i = int(own_at[np.argmin(np.abs(grid[own_at] - grid[own_at].mean()))])
        ran = np.isfinite(table[:, i])
        flops, loss = float(np.exp(grid[i])), np.exp(table[:, i])
        best = {"N_opt": float(n_of[k]), "D_opt": flops / float(ratio_of[k] * n_of[k]), "L_opt": float(loss[k])}
        budgets.append(_budget(flops, n_of[ran], loss[ran], **best, N_ci=None, parabola=None, edge=False))
    return _result("envelope", frontier(at, winner), samples, bootstrap, frame, budgets, warnings)


# --------------------------------------------------------------------------------------- parts


def _need(frame: pd.DataFrame) -> None:
    for name in "NDCL":
        if name not in frame:
            raise UsageError(f"a frontier needs column {name!r}{nearest(name, frame.columns)}")


def _flops_per(best: pd.DataFrame) -> float:
    """FLOPs per parameter and token: 6 where C = 6 N D; exact FLOPs differ."""
    return float((best["C"] / (best["N"] * best["D"])).median())


def _frontier(flops: np.ndarray, n: np.ndarray, d: np.ndarray, std: np.ndarray | None = None) -> np.ndarray:
    """a, N0, b, D0: (4,), or of R resamples n, d (budgets, R), (4, R)."""
    return np.array([*power_law(flops, n, std), *power_law(flops, d, std)])


def _budget(flops: float, n: Any, loss: Any, **best: Any) -> dict[str, Any]:
    return {"C": flops, "n_runs": len(n), **best, "N": [float(v) for v in n], "L": [float(v) for v in loss]}


def _result(
    law: str,
    params: np.ndarray,
    drawn: Any,
    asked: int,
    frame: pd.DataFrame,
    budgets: list[dict[str, Any]],
    warnings: list[str],
) -> dict[str, Any]:
    """`drawn`: the parameters of each of the `asked` resamples that has a frontier, (R, 4)."""
    names, samples, estimate = ("a", "N0", "b", "D0"), np.array(drawn).reshape(-1, 4), [float(v) for v in params]
    runs = frame["D"] / frame["N"]
    if not intervals.enough(len(samples), asked):
        if asked:
            warnings.append(f"no intervals: {len(samples)} of {asked} resamples have a frontier")
        samples = samples[:0]

    def ratio(flops: float) -> np.ndarray:
        a, n0, b, d0 = np.vstack([estimate, samples]).T
        return d0 / n0 * flops ** (b - a)

    ci = intervals.columns(intervals.percentile(samples), names, np.array(estimate))
    return {
        "law": law,
        "params": dict(zip(names, estimate, strict=True)),
        "ci": ci,
        "intervals": {"percentile": ci},
        "interval": {"method": "percentile", "level": intervals.LEVEL},
        "se": {k: float(np.std(v)) if len(v) > 1 else None for k, v in zip(names, samples.T, strict=True)},
        "resamples": {"asked": asked, "fitted": len(samples)},
        "bootstrap_samples": samples,
        "n_points": len(frame),
        "optimal": {
            "a": estimate[0],
            "b": estimate[2],
            **intervals.tokens_per_param(max(b["C"] for b in budgets), ratio, corrected=False),
            "tokens_per_param_runs": [float(runs.min()), float(runs.max())],
        },
        "budgets": budgets,
        "warnings": warnings,
        "target": "N_opt",
        "columns": ["C"],
        "estimator": "least squares",
        "rungs_of": "C",
        "range": {k: [float(frame[k].min()), float(frame[k].max())] for k in "NDCL"},
        "conventions": dict(frame.attrs.get("conventions", {})),
        "source": str(frame.attrs.get("source", "")),
        "points": {},
        # What a fit of a law has besides.
        **dict.fromkeys(("delta", "objective", "family")),
        **{k: [] for k in ("holdout", "leave_one_out", "backtests", "compared", "choice", "residuals")},
    }
