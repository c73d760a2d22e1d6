"""Transfer of the learning rate over shapes: the best rate of each size, and how far it moves. Tuning at one shape."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bigmodel.laws import sources
from bigmodel.laws.figures import transfer as figures

Label = Callable[[dict[str, Any]], str]


def parametrization(config: dict[str, Any]) -> str:
    return str(config["model"]["parametrization"])


def read(folder: str | Path, axis: str, label: Label = parametrization) -> list[dict[str, Any]]:
    """Rows of parametrization, axis, size, lr, seed, loss (NaN: diverged) of the finished runs of a sweep.

    `label` of a config says whose curve it is a point of, where that isn't its parametrization.
    """
    rows = [
        {
            "parametrization": label(config), "axis": axis, "size": config["model"][axis],
            "lr": config["optim"]["lr"], "seed": config["train"]["seed"], "run_id": result["run_id"],
            "loss": result["loss"],
        }
        for result, config in sources.runs(folder)
    ]  # fmt: skip
    return sorted(rows, key=lambda r: (r["parametrization"], r["size"], r["lr"], r["seed"]))


def lowest(lr: Sequence[float], loss: Sequence[float]) -> tuple[float, float]:
    """(rate, loss) at the minimum of a parabola in ln lr through the lowest point and its neighbours.

    The lowest point itself where it is the first or last, or a neighbour has no loss (a run that diverged).
    """
    order = np.argsort(lr)
    x, y = np.log(np.asarray(lr, float)[order]), np.asarray(loss, float)[order]
    i = int(np.nanargmin(y))
    if 0 < i < len(x) - 1 and np.isfinite(y[i - 1 : i + 2]).all():
        a, b, c = np.polyfit(x[i - 1 : i + 2], y[i - 1 : i + 2], 2)
        if a > 0:
            at = -b / (2 * a)
            return float(np.exp(at)), float(c - b * b / (4 * a))
    return float(np.exp(x[i])), float(y[i])


def best(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lowest point of each size's curve; `edge`: it is the first or last rate tried, and says less."""
    frame = pd.DataFrame(rows)
    out = []
    for (name, size), here in frame.groupby(["parametrization", "size"]):
        mean = here.groupby("lr").loss.mean()
        lr, loss = lowest(list(mean.index), list(mean))
        edge = mean.idxmin() in (mean.index[0], mean.index[-1])
        out.append({"parametrization": name, "size": int(size), "lr": lr, "loss": loss, "edge": bool(edge)})
    return out


def moves(stars: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Parametrization -> the largest best rate over the least."""
    frame = pd.DataFrame(stars)
    return {str(name): float(here.lr.max() / here.lr.min()) for name, here in frame.groupby("parametrization")}


def report(folder: str | Path, out: str | Path, axis: str, label: Label = parametrization) -> str:
    """Writes transfer.csv, transfer.json and transfer.png, .svg, .pdf into `out`; returns what they say, in lines."""
    rows = read(folder, axis, label)
    stars = best(rows)
    moved = moves(stars)
    home = Path(out)
    home.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(home / "transfer.csv", index=False)
    (home / "transfer.json").write_text(json.dumps({"best": stars, "moves": moved}, indent=1) + "\n")
    drawn = figures.write(figures.rates, home / "transfer", rows, stars)
    lines = []
    for name, ratio in moved.items():
        mine = [s for s in stars if s["parametrization"] == name]
        each = ", ".join(f"{s['size']}: {s['lr']:.3g}{' (edge)' if s['edge'] else ''}" for s in mine)
        lines.append(f"{name}: the best rate moves by {ratio:.2f}x ({axis} {each})")
    return "\n".join([*lines, f"figure: {drawn}"])


def tuning(folder: str | Path, out: str | Path) -> str:
    """The best rate and least loss of each horizon and batch: writes tuning.csv, tuning.png, .svg, .pdf; lines."""
    frame = pd.DataFrame(
        [
            {
                "tokens": result["tokens"], "batch_size": result["batch_size"], "lr": result["lr"],
                "seed": result["seed"], "run_id": result["run_id"], "loss": result["loss"],
            }
            for result, _ in sources.runs(folder)
        ]
    ).sort_values(["tokens", "batch_size", "lr", "seed"])  # fmt: skip
    best = []
    for (tokens, batch), here in frame.groupby(["tokens", "batch_size"]):
        mean = here.groupby("lr").loss.mean()
        lr, loss = lowest(list(mean.index), list(mean))
        edge = mean.idxmin() in (mean.index[0], mean.index[-1])
        best.append({"tokens": int(tokens), "batch_size": int(batch), "lr": lr, "loss": loss, "edge": bool(edge)})
    home = Path(out)
    home.mkdir(parents=True, exist_ok=True)
    frame.to_csv(home / "tuning.csv", index=False)
    drawn = figures.write(figures.tuning, home / "tuning", best)
    lines = [
        f"{b['tokens']:,} tokens, batch {b['batch_size']}: loss {b['loss']:.4f} at rate {b['lr']:.3g}"
        f"{' (edge)' if b['edge'] else ''}"
        for b in best
    ]
    return "\n".join([*lines, f"figure: {drawn}"])
