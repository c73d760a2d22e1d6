"""Reports of studies: IsoFLOP curves whose largest budget is held out; decays from one trunk; shapes of one size.

Legend: N parameters, D tokens, C training FLOPs, L loss.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bigmodel.config import UsageError
from bigmodel.scaling import fit, frontier, rows, sources
from bigmodel.scaling.figures import transfer as figures


def top_budget(frame: pd.DataFrame, law: str = "chinchilla", bootstrap: int = 1000) -> dict[str, Any]:
    """What the budgets but the largest say of the largest.

    Args:
      frame: IsoFLOP runs, columns N, D, C, L; budgets are at least a factor of 1.5 apart.

    Returns:
      {"law", "budget", "gap" (over the next largest), "runs" (N, D, loss, predicted, error of each), "mean_error" and
      "max_error" (of |error|), "exponent" (a, ci), "best"}, of which best has N (by a parabola through the held-out
      runs), edge, loss (the least), predicted_N and predicted_N_ci (by the fitted budgets' IsoFLOP frontier), inside
      (whether N lies in that interval), predicted_loss (by the law at N)}.
    """
    top = frame[frame["C"] > frame["C"].max() / 1.5]
    below = frame[frame["C"] <= frame["C"].max() / 1.5]
    if len(top) < 3 or below.empty:
        raise UsageError(
            f"held out: {len(top)} runs of the largest budget and {len(below)} below it; it takes 3 and some"
        )
    below.attrs = dict(frame.attrs)
    fitted = fit.fit(below, law=law, bootstrap=bootstrap, holdout=0)
    iso = frontier.isoflop(below, bootstrap=bootstrap)
    budget = float(np.exp(np.log(top["C"]).mean()))
    predicted = np.asarray(fit.predict(fitted, top["N"].to_numpy(float), top["D"].to_numpy(float)))
    error = predicted / top["L"].to_numpy() - 1
    n, loss = (top.groupby("N")["L"].min().index.to_numpy(float), top.groupby("N")["L"].min().to_numpy())
    near = np.argsort(loss)[: max(4, len(loss))]
    c2, c1, _ = np.polyfit(np.log(n[near]), np.log(loss[near]), 2)
    at = float(np.exp(-c1 / (2 * c2))) if c2 > 0 else float(n[np.argmin(loss)])
    params, samples = iso["params"], np.asarray(iso["samples"])
    a, n0 = samples[:, 0], samples[:, 1]
    ends = np.percentile(n0 * budget**a, [2.5, 97.5])
    tokens = float(np.exp(np.interp(np.log(at), np.log(n), np.log(top.groupby("N")["D"].median().to_numpy()))))
    return {
        "law": law,
        "budget": budget,
        "gap": budget / float(below["C"].max()),
        "runs": [
            {"N": float(r.N), "D": float(r.D), "loss": float(r.L), "predicted": float(p), "error": float(e)}
            for r, p, e in zip(top.itertuples(), predicted, error, strict=True)
        ],
        "mean_error": float(np.abs(error).mean()),
        "max_error": float(np.abs(error).max()),
        "best": {
            "N": at,
            "edge": bool(not n.min() < at < n.max()),
            "loss": float(loss.min()),
            "predicted_N": float(params["N0"] * budget ** params["a"]),
            "predicted_N_ci": [float(e) for e in ends],
            "inside": bool(ends[0] <= at <= ends[1]),
            "predicted_loss": float(fit.predict(fitted, at, tokens)),
        },
        "exponent": {"a": params["a"], "ci": iso["ci"]["a"]},
    }


def report(folder: str | Path, out: str | Path) -> str:
    """Writes heldout.json into `out`; returns what it says, in lines."""
    found = top_budget(rows.load(folder))
    home = Path(out)
    home.mkdir(parents=True, exist_ok=True)
    (home / "heldout.json").write_text(json.dumps(found, indent=1) + "\n")
    best = found["best"]
    low, high = best["predicted_N_ci"]
    return "\n".join(
        [
            f"the largest budget, {found['budget']:.3g} FLOPs, {found['gap']:.2g}x the largest fitted:",
            f"  loss of its {len(found['runs'])} runs: mean |error| {found['mean_error']:.2%}, "
            f"max {found['max_error']:.2%}",
            f"  least loss {best['loss']:.4f}; {best['predicted_loss']:.4f} by the law "
            f"({best['predicted_loss'] / best['loss'] - 1:+.2%})",
            f"  best N {best['N']:,.0f}{' (edge)' if best['edge'] else ''}; predicted {best['predicted_N']:,.0f} "
            f"[{low:,.0f}, {high:,.0f}]: {'inside' if best['inside'] else 'OUTSIDE'}",
            f"  N_opt ~ C^{found['exponent']['a']:.3f} [{', '.join(f'{e:.3f}' for e in found['exponent']['ci'])}]",
        ]
    )


def branches(folder: str | Path, out: str | Path) -> str:
    """Decays from a trunk beside runs of the same shape, length and seed: writes branches.csv (each seed apart) and a
    figure, returns lines (means over seeds)."""
    cells = []
    for result, config in sources.runs(folder):
        for point in (*result.get("branches", []), {}):
            row = {**result, **point}
            cells.append(
                {
                    "width": row["width"], "depth": row["depth"], "tokens": row["tokens"], "loss": row["loss"],
                    "schedule": config["optim"]["schedule"], "seed": row["seed"], "run_id": row["run_id"],
                }
            )  # fmt: skip
    frame = pd.DataFrame(cells)
    keys = ["width", "depth", "tokens", "seed"]
    wide = frame.pivot_table(index=keys, columns="schedule", values="loss").dropna().reset_index()
    if wide.empty or not {"wsd", "cosine"} <= set(wide):
        raise UsageError(f"{str(folder)!r} has no wsd and cosine runs of the same shape and length")
    home = Path(out)
    home.mkdir(parents=True, exist_ok=True)
    wide.assign(difference=wide["wsd"] / wide["cosine"] - 1).to_csv(home / "branches.csv", index=False)
    seeds = wide.groupby(keys[:-1])
    mean = seeds[["wsd", "cosine"]].mean().assign(seeds=seeds.size()).reset_index()
    mean["difference"] = mean["wsd"] / mean["cosine"] - 1
    drawn = figures.write(figures.branches, home / "branches", mean)
    lines = [
        f"width {r.width} depth {r.depth}, {r.tokens:,} tokens, {r.seeds} seed{'s' * (r.seeds > 1)}: wsd {r.wsd:.4f}, "
        f"cosine {r.cosine:.4f} ({r.difference:+.2%})"
        for r in mean.itertuples()
    ]
    return "\n".join([*lines, f"largest difference {mean.difference.abs().max():.2%}", f"figure: {drawn}"])


def shapes(folder: str | Path, out: str | Path) -> str:
    """Loss against the ratio of width to depth: writes shapes.csv and a figure, returns lines."""
    frame = rows.load(folder)
    frame = frame.assign(aspect=frame["width"] / frame["depth"]).sort_values("aspect")
    home = Path(out)
    home.mkdir(parents=True, exist_ok=True)
    frame[["width", "depth", "aspect", "N", "D", "C", "L", "seed"]].to_csv(home / "shapes.csv", index=False)
    drawn = figures.write(figures.shapes, home / "shapes", frame)
    least = frame["L"].min()
    lines = [
        f"width {r.width} depth {r.depth}: width / depth {r.aspect:.3g}, N {r.N:,.0f}, loss {r.L:.4f} "
        f"({r.L / least - 1:+.2%})"
        for r in frame.itertuples()
    ]
    return "\n".join([*lines, f"figure: {drawn}"])
