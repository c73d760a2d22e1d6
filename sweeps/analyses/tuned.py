"""A law through tuned frontiers: each rung's best of n random configurations, beside the law of an untuned recipe.

Legend: C training FLOPs, L loss; L = A C^-alpha, by least squares of ln L on ln C, since so few rungs show no floor.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from bigmodel.errors import UsageError
from bigmodel.laws import best_of, frontier, intervals, sources
from bigmodel.laws.figures import style, transfer

RESAMPLES = 2000
OPTIONS = ("lr", "warmup", "schedule", "decay", "final_lr")


def read(folder: str | Path) -> pd.DataFrame:
    """One row per run: kind, width, C, D, OPTIONS, batch_size, loss (NaN: diverged), seed, run_id.

    A kind is "default" (the experiment's schedule), "random", or "again": a random configuration with another seed.
    """
    rows = []
    for result, config in sources.runs(folder):
        tuning = {name: config["optim"][name] for name in OPTIONS}
        seed = config["train"]["seed"]
        kind = "default" if tuning["schedule"] != "wsd" else "again" if seed else "random"
        own = {"kind": kind, "width": result["width"], "C": result["flops"], "D": result["tokens"], **tuning}
        own |= {"batch_size": config["train"]["batch_size"], "loss": result["loss"], "seed": seed}
        rows.append({**own, "run_id": result["run_id"]})
    frame = pd.DataFrame(rows, columns=["kind", "width", "C", "D", *OPTIONS, "batch_size", "loss", "seed", "run_id"])
    if frame[frame.kind == "random"].width.nunique() < 3 or "default" not in set(frame.kind):
        raise UsageError(f"{str(folder)!r} has no three rungs of random configurations, or no default recipe")
    return frame.sort_values(["width", "kind", "loss"]).reset_index(drop=True)


def scatter(frame: pd.DataFrame) -> tuple[float, int]:
    """(standard deviation of ln L over seeds of one configuration, its degrees of freedom), all configurations pooled.

    The winners' first seeds aren't among them: they were chosen for their loss.
    """
    seeded = frame[frame.kind != "random"]
    groups = np.log(seeded.loss).groupby([seeded.width, seeded.kind])
    free = int((groups.size() - 1).sum())
    return float(np.sqrt((groups.var() * (groups.size() - 1)).sum() / max(free, 1))), free


def analyse(frame: pd.DataFrame, searched: int, resamples: int = RESAMPLES) -> dict[str, Any]:
    """The rungs' frontiers and the laws through them, as JSON.

    Returns:
      {"n", "searched", "seed_deviation" (of ln L), "seed_freedom", "rungs", "laws"}. A rung: width, C, D, best,
      least_ci ([low, best]: of the least loss of the whole range), expected (k -> the expected best of k), its
      intervals expected_ci (over the configurations drawn: none that is better than those tried), default, again
      (means over seeds) and gain, default / again - 1 (of best where nothing ran again).
      A law: points (its losses by rung), alpha, ci, and moved, alpha less the default's, with its interval moved_ci.
    """
    rng = np.random.default_rng(0)
    deviation, free = scatter(frame)
    kinds = {(width, kind): here.loss.to_numpy() for (width, kind), here in frame.groupby(["width", "kind"])}
    shape = frame.groupby("width").agg(C=("C", "median"), D=("D", "median"))
    widths = list(shape.index)
    n = min(len(kinds[w, "random"]) for w in widths)
    ks = [k for k in (1, 2, 4, 8, 16, 32) if k <= n]
    flops = shape.C.to_numpy(float)

    def seeds(kind: str) -> tuple[list[float], np.ndarray]:
        """(means over seeds by rung, the same with the seeds' scatter (rungs, R))"""
        means = [float(kinds[w, kind].mean()) for w in widths]
        sizes = [len(kinds[w, kind]) for w in widths]
        noise = rng.standard_t(max(free, 1), (resamples, len(widths))) * deviation / np.sqrt(sizes)
        return means, (means * np.exp(noise)).T

    points: dict[str, tuple[Sequence[float], np.ndarray]] = {"default": seeds("default")}
    for k in ks:
        drawn = [best_of.resampled(kinds[w, "random"], k, resamples, rng) for w in widths]
        points[f"best of {k}"] = [best_of.expected_best(kinds[w, "random"], k) for w in widths], np.array(drawn)
    if all((w, "again") in kinds for w in widths):
        points["the best again"] = seeds("again")
    ends = [best_of.drawn(kinds[w, "random"], searched, resamples, rng) for w in widths]
    points["least of the range"] = [float(np.median(e)) for e in ends], np.array(ends)

    def slopes(drawn: np.ndarray) -> np.ndarray:
        """alpha of each column (R,); nan where a loss isn't positive"""
        with np.errstate(invalid="ignore"):
            return np.array([-frontier.power_law(flops, column)[0] for column in drawn.T])

    fits = {name: (-frontier.power_law(flops, np.array(y))[0], slopes(drawn)) for name, (y, drawn) in points.items()}

    def ci(drawn: np.ndarray, value: float) -> list[float] | None:
        return intervals.pair(intervals.percentile(drawn[:, None])[:, 0], value)

    laws, base = {}, fits["default"]
    for name, (alpha, drawn) in fits.items():
        moved = alpha - base[0]
        law = {"points": list(points[name][0]), "alpha": float(alpha), "ci": ci(drawn, alpha), "moved": float(moved)}
        laws[name] = law | {"moved_ci": None if name == "default" else ci(drawn - base[1], moved)}
    rungs = []
    for i, w in enumerate(widths):
        low, best = best_of.least(kinds[w, "random"], searched)
        rung = {"width": int(w), "C": float(flops[i]), "D": float(shape.D.iloc[i]), "best": best}
        rung |= {"least_ci": [max(low, 0.0), best], "expected": {k: points[f"best of {k}"][0][i] for k in ks}}
        bests = {k: ci(points[f"best of {k}"][1][i], rung["expected"][k]) for k in ks}
        again = points["the best again"][0][i] if "the best again" in points else None
        rung |= {"expected_ci": bests, "default": points["default"][0][i], "again": again}
        rungs.append(rung | {"gain": rung["default"] / (again or best) - 1})
    found = {"n": n, "searched": searched, "seed_deviation": deviation, "seed_freedom": free}
    return found | {"rungs": rungs, "laws": laws}


def figure(frame: pd.DataFrame, found: dict[str, Any]) -> Figure:
    """Left: every run, the default and the frontier against compute. Right: the exponent against what is fitted."""
    fig, (left, right) = style.PAGE.panels(2, height=3.4)
    tried = frame[frame.kind == "random"]
    left.plot(tried.C, tried.loss, "_", color=style.GREY, markersize=9, label="random configurations")
    flops = np.array([r["C"] for r in found["rungs"]])
    drawn = (("default", "the default recipe", style.CYCLE[1]), (f"best of {found['n']}", "", style.BLUE))
    for name, label, colour in drawn:
        law = found["laws"][name]
        alpha, at = frontier.power_law(flops, np.array(law["points"]))
        label = f"{label or name}: $C^{{{alpha:.3f}}}$"
        left.plot(flops, law["points"], "o", color=colour, markersize=5, label=label)
        left.plot(flops, at * flops**alpha, color=colour, linewidth=1.2)
    if "the best again" in found["laws"]:
        again = found["laws"]["the best again"]["points"]
        left.plot(flops, again, "D", color=style.BLUE, markerfacecolor="none", label="the best, with other seeds")
    style.log_axis(left, "x", flops.min() / 1.5, flops.max() * 1.5)
    left.set(
        xlabel="C, FLOPs", ylabel="held-out loss", ylim=(0.97 * frame.loss.min(), 1.12 * frame.loss.median() * 1.15)
    )
    left.legend(fontsize="x-small")
    names = list(found["laws"])
    for i, name in enumerate(names):
        law = found["laws"][name]
        colour = drawn[0][2] if name == "default" else style.BLUE
        if law["ci"]:
            right.plot(law["ci"], [i, i], color=colour, linewidth=1.5)
        right.plot(law["alpha"], i, "o", color=colour)
    right.set_yticks(range(len(names)), names)
    right.invert_yaxis()
    right.set(xlabel=r"$\alpha$ of $L = A\,C^{-\alpha}$")
    return fig


def report(folder: str | Path, out: str | Path, searched: int) -> str:
    """Writes tuned_frontier.csv, .json and .png, .svg, .pdf into `out`; returns lines of text."""
    frame = read(folder)
    found = analyse(frame, searched)
    home = Path(out)
    home.mkdir(parents=True, exist_ok=True)
    frame.to_csv(home / "tuned_frontier.csv", index=False)
    (home / "tuned_frontier.json").write_text(json.dumps(found, indent=1) + "\n")
    image = transfer.write(figure, home / "tuned_frontier", frame, found)

    def ends(pair: Sequence[float] | None) -> str:
        return f"[{pair[0]:.4f}, {pair[1]:.4f}]" if pair else "[no interval]"

    half = max(k for k in found["rungs"][0]["expected"] if k <= found["n"] / 2)
    lines = [f"{found['n']} configurations a rung; seeds move ln L by {found['seed_deviation']:.2%} (deviation)"]
    for r in found["rungs"]:
        again = f", again {r['again']:.4f}" if r["again"] else ""
        lines.append(
            f"width {r['width']}, {r['C']:.3g} FLOPs: best {r['best']:.4f}{again}; the range's least "
            f"{ends(r['least_ci'])}; best of {half} {r['expected'][half]:.4f} {ends(r['expected_ci'][half])}; "
            f"default {r['default']:.4f} ({r['gain']:+.1%})"
        )
    for name, law in found["laws"].items():
        moved = "" if name == "default" else f", {law['moved']:+.4f} {ends(law['moved_ci'])} against the default"
        lines.append(f"L ~ C^-alpha through {name}: alpha {law['alpha']:.4f} {ends(law['ci'])}{moved}")
    return "\n".join([*lines, f"figure: {image}"])
