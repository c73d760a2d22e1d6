"""Transfer of the learning rate over shapes: the best rate of each size, and how far it moves."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from bigmodel.laws import sources
from bigmodel.laws.figures import style
from bigmodel.laws.figures.transfer import write

Label = Callable[[dict[str, Any]], str]


def parametrization(config: dict[str, Any]) -> str:
    return str(config["model"]["parametrization"])


def read(folder: str | Path, axis: str, label: Label = parametrization) -> list[dict[str, Any]]:
    """Rows of parametrization, axis, size, lr, seed, loss (NaN: diverged) of a sweep's finished runs.

    `label` of a run's config names the curve that the run is a point of, where that isn't its parametrization.
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


def star(curve: pd.DataFrame) -> dict[str, Any]:
    """lr and loss of the lowest point of one curve, columns lr and loss, over the mean of seeds.

    `edge`: the lowest is the first or last rate tried, so that the best may lie beyond it.
    """
    mean = curve.groupby("lr").loss.mean()
    lr, loss = lowest(list(mean.index), list(mean))
    return {"lr": lr, "loss": loss, "edge": bool(mean.idxmin() in (mean.index[0], mean.index[-1]))}


def best(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lowest point of each size's curve: parametrization, size, lr, loss, edge."""
    curves = pd.DataFrame(rows).groupby(["parametrization", "size"])
    return [{"parametrization": name, "size": int(size), **star(curve)} for (name, size), curve in curves]


def moves(stars: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Parametrization -> the largest best rate over the least."""
    frame = pd.DataFrame(stars)
    return {str(name): float(here.lr.max() / here.lr.min()) for name, here in frame.groupby("parametrization")}


def figure(rows: Sequence[dict[str, Any]], best: Sequence[dict[str, Any]]) -> Figure:
    """Loss against the learning rate: one panel per parametrization, one curve per size, a star at its minimum.

    Args:
      rows: parametrization, axis, size, lr, loss (the mean over seeds is drawn).
      best: parametrization, size, lr, loss of each curve's minimum.
    """
    frame, stars = pd.DataFrame(rows), pd.DataFrame(best)
    names = list(frame.parametrization.unique())
    axis = frame.axis.iloc[0]
    sizes = sorted(frame["size"].unique())
    norm = style.log_norm(sizes)
    fig, panels = style.PAGE.panels(len(names), height=3.2, sharey=True, squeeze=False)
    top = frame.groupby(["parametrization", "size"]).loss.min().max()
    for axes, name in zip(panels, names, strict=True):
        for i, size in enumerate(sizes):
            here = frame[(frame.parametrization == name) & (frame["size"] == size)]
            mean = here.groupby("lr").loss.mean()
            colour = style.colour(norm, size)
            axes.plot(
                mean.index, mean.to_numpy(), color=colour, marker=style.MARKERS[i % 8], markersize=3, linewidth=1.2,
                label=f"{axis} {size}",
            )  # fmt: skip
            star = stars[(stars.parametrization == name) & (stars["size"] == size)]
            axes.plot(star.lr, star.loss, marker="*", markersize=11, color=colour, markeredgecolor=style.INK, zorder=5)
        style.log_axis(axes, "x", frame.lr.min() / 1.3, frame.lr.max() * 1.3)
        axes.set(xlabel="learning rate at the base", title=name, ylim=(frame.loss.min() * 0.97, top * 1.25))
    panels[0].set_ylabel("held-out loss")
    panels[-1].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return fig


def report(folder: str | Path, out: str | Path, axis: str, label: Label = parametrization) -> str:
    """Writes transfer.csv, transfer.json and transfer.png, .svg, .pdf into `out`; returns lines of text."""
    rows = read(folder, axis, label)
    stars = best(rows)
    moved = moves(stars)
    home = Path(out)
    home.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(home / "transfer.csv", index=False)
    (home / "transfer.json").write_text(json.dumps({"best": stars, "moves": moved}, indent=1) + "\n")
    drawn = write(figure, home / "transfer", rows, stars)
    lines = []
    for name, ratio in moved.items():
        mine = [s for s in stars if s["parametrization"] == name]
        each = ", ".join(f"{s['size']}: {s['lr']:.3g}{' (edge)' if s['edge'] else ''}" for s in mine)
        lines.append(f"{name}: the best rate moves by {ratio:.2f}x ({axis} {each})")
    return "\n".join([*lines, f"figure: {drawn}"])
