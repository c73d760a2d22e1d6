"""IsoFLOP studies whose largest budget is held out: how well the other budgets predict it.

Legend: N parameters, D tokens, C training FLOPs, L loss.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bigmodel.errors import UsageError
from bigmodel.laws import fit, forms, frontier, intervals, rows

LAWS = ("chinchilla", "gadre", "kaplan_nd")


def _errors(law: str, below: pd.DataFrame, above: pd.DataFrame, bootstrap: int) -> tuple[dict[str, Any], np.ndarray]:
    """(the law's fit to the runs `below`, predicted over observed loss of those `above`, less 1)"""
    fitted = fit.fit(below, law=law, bootstrap=bootstrap, holdout=0)
    predicted = np.asarray(fit.predict(fitted, above["N"].to_numpy(float), above["D"].to_numpy(float)))
    return fitted, predicted / above["L"].to_numpy() - 1


def _halves(frame: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The runs below the largest budget, and its own."""
    top = frame["C"] > frame["C"].max() / 1.5
    below = frame[~top].reset_index(drop=True)
    below.attrs = dict(frame.attrs)
    return below, frame[top].reset_index(drop=True)


def choose(below: pd.DataFrame, candidates: Sequence[str] = LAWS) -> dict[str, float]:
    """Law -> mean |error| of the largest budget of these runs, predicted from the rest: the least first.

    Only the first candidate, with error nan, where no two budgets are left to fit.
    """
    rest, largest = _halves(below)
    if rest.empty or rest["C"].max() / rest["C"].min() < 1.5:
        return {candidates[0]: float("nan")}
    found = {law: float(np.abs(_errors(law, rest, largest, 0)[1]).mean()) for law in candidates}
    return dict(sorted(found.items(), key=lambda item: item[1]))


def parabolas(frame: pd.DataFrame, bootstrap: int) -> dict[str, Any] | None:
    """The budgets' IsoFLOP frontier; None where fewer than two of them enclose their best size."""
    try:
        return frontier.isoflop(frame, bootstrap=bootstrap)
    except UsageError:
        return None


def _ends(drawn: np.ndarray, estimate: float) -> list[float] | None:
    """The central 95 % of what resamples give, where that is an interval of the estimate."""
    return intervals.pair(intervals.percentile(drawn[:, None])[:, 0], estimate) if len(drawn) else None


def top_budget(frame: pd.DataFrame, candidates: Sequence[str] = LAWS, bootstrap: int = 1000) -> dict[str, Any]:
    """What the budgets but the largest say of the largest.

    The law is the one of `candidates` that the fitted budgets choose: of them too the largest is held out, and who
    predicts it best from the rest predicts the budget that nobody has seen.

    Args:
      frame: IsoFLOP runs, columns N, D, C, L; budgets are at least a factor of 1.5 apart.

    Returns:
      {"law", "chosen_by" (law -> mean |error| of the largest fitted budget), "budget", "gap" (over the next largest),
      "runs" (N, D, loss, predicted, error of each), "mean_error" and "max_error" (of |error|), "exponent" (a, ci),
      "best"}, of which best has N (by a parabola through the held-out runs), edge, loss (the least); predicted_N and
      predicted_N_ci, by the law at the budget, and frontier_N and frontier_N_ci, by the fitted budgets' IsoFLOP
      frontier (None where there is none); inside and frontier_inside (whether N lies in them; None without an
      interval); predicted_loss (by the law at N).
    """
    below, top = _halves(frame)
    if len(top) < 3 or below.empty:
        raise UsageError(
            f"held out: {len(top)} runs of the largest budget and {len(below)} below it; it takes 3 and some"
        )
    chosen = choose(below, candidates)
    law = next(iter(chosen))
    fitted, error = _errors(law, below, top, bootstrap)
    iso = parabolas(below, bootstrap)
    budget = float(np.exp(np.log(top["C"]).mean()))
    least = top.groupby("N")["L"].min()
    n, loss = least.index.to_numpy(float), least.to_numpy()
    near = np.argsort(loss)[:5]  # farther off a parabola no longer is the curve's shape
    c2, c1, _ = np.polyfit(np.log(n[near]), np.log(loss[near]), 2)
    at = float(np.exp(-c1 / (2 * c2))) if c2 > 0 else float(n[np.argmin(loss)])
    # What a token costs at each size is counted, not measured: so the tokens of any size at this budget are known.
    tokens = np.polyfit(np.log(n), np.log(top.groupby("N")["D"].median().to_numpy()), min(2, len(n) - 1))
    sizes = np.exp(np.linspace(np.log(n.min() / 4), np.log(n.max() * 4), 400))
    row = {"N": sizes, "D": np.exp(np.polyval(tokens, np.log(sizes)))}
    form = forms.get(law)

    def best_of(params: Any) -> float:
        loss = np.asarray(form.predict(params, row))
        i = int(np.clip(np.argmin(loss), 1, len(loss) - 2))
        c2, c1, _ = np.polyfit(np.log(sizes[i - 1 : i + 2]), loss[i - 1 : i + 2], 2)  # between the points of the grid
        return float(np.clip(np.exp(-c1 / (2 * c2)), sizes[i - 1], sizes[i + 1])) if c2 > 0 else float(sizes[i])

    drawn = [best_of(dict(zip(form.names, map(float, v), strict=True))) for v in fitted["bootstrap_samples"]]
    predicted = best_of(fitted["params"])
    ends = _ends(np.array(drawn), predicted)
    by_frontier: dict[str, Any] = dict.fromkeys(("frontier_N", "frontier_N_ci", "frontier_inside"))
    if iso is not None:
        params, samples = iso["params"], np.asarray(iso["bootstrap_samples"])
        size = float(params["N0"] * budget ** params["a"])
        own = _ends(samples[:, 1] * budget ** samples[:, 0], size)
        by_frontier = {"frontier_N": size, "frontier_N_ci": own, "frontier_inside": own and own[0] <= at <= own[1]}
    return {
        "law": law,
        "chosen_by": chosen,
        "budget": budget,
        "gap": budget / float(below["C"].max()),
        "runs": [
            {"N": float(r.N), "D": float(r.D), "loss": float(r.L), "predicted": float(r.L * (1 + e)), "error": float(e)}
            for r, e in zip(top.itertuples(), error, strict=True)
        ],
        "mean_error": float(np.abs(error).mean()),
        "max_error": float(np.abs(error).max()),
        "best": {
            "N": at,
            "edge": bool(not n.min() < at < n.max()),
            "loss": float(loss.min()),
            "predicted_N": predicted,
            "predicted_N_ci": ends,
            "inside": ends and ends[0] <= at <= ends[1],
            **by_frontier,
            "predicted_loss": float(fit.predict(fitted, at, float(np.exp(np.polyval(tokens, np.log(at)))))),
        },
        "exponent": {"a": iso["params"]["a"], "ci": iso["ci"]["a"]} if iso else None,
    }


def report(folder: str | Path, out: str | Path, below: str | Path | None = None, least: float = 0.0) -> str:
    """Writes heldout.json into `out`; returns what it says, in lines.

    `below`: more runs, as `rows.load` reads them; `least`: only runs of at least so many FLOPs.
    """
    frame = rows.load(folder)
    if below is not None:
        frame = pd.concat([frame, rows.load(below)], ignore_index=True)
    found = top_budget(frame[frame["C"] >= least])
    home = Path(out)
    home.mkdir(parents=True, exist_ok=True)
    (home / "heldout.json").write_text(json.dumps(found, indent=1) + "\n")
    best = found["best"]

    def inside(which: str) -> str:
        if best[f"{which}_N"] is None:
            return "none: fewer than two budgets enclose their best size"
        if best[f"{which}_N_ci"] is None:
            return f"{best[f'{which}_N']:,.0f} [no interval]"
        low, high = best[f"{which}_N_ci"]
        here = best["inside" if which == "predicted" else "frontier_inside"]
        return f"{best[f'{which}_N']:,.0f} [{low:,.0f}, {high:,.0f}]: {'inside' if here else 'OUTSIDE'}"

    return "\n".join(
        [
            f"the largest budget, {found['budget']:.3g} FLOPs, {found['gap']:.2g}x the largest fitted:",
            f"  law {found['law']}, chosen by the largest fitted budget: "
            + ", ".join(f"{law} {error:.2%}" for law, error in found["chosen_by"].items()),
            f"  loss of its {len(found['runs'])} runs: mean |error| {found['mean_error']:.2%}, "
            f"max {found['max_error']:.2%}",
            f"  least loss {best['loss']:.4f}; {best['predicted_loss']:.4f} by the law "
            f"({best['predicted_loss'] / best['loss'] - 1:+.2%})",
            f"  best N {best['N']:,.0f}{' (edge)' if best['edge'] else ''}; by the law {inside('predicted')}",
            f"    by the budgets' frontier {inside('frontier')}",
            *(
                [f"  N_opt ~ C^{slope['a']:.3f} [{', '.join(f'{e:.3f}' for e in slope['ci'] or ()) or 'no interval'}]"]
                if (slope := found["exponent"])
                else []
            ),
        ]
    )
