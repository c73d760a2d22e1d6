"""Several points of one run: decays from a constant-rate trunk (WSD) against cosine runs of the same lengths.

    bigmodel prepare prose --out=data/prose-bytes
    bigmodel sweep run sweeps/wsd.py && bigmodel report sweeps/wsd.py

A decay takes 40 % of its point's tokens, so that a trunk with branches at 1/4 and 1/2 costs 1.3 trunks; the three
cosine runs cost 1.75. All decay to zero, and each schedule has its best rate: half of a cosine run is below half of its
peak rate.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from bigmodel import sweep
from bigmodel.errors import UsageError
from bigmodel.laws import sources
from bigmodel.laws.figures import style, transfer

CONFIG = "experiments/prose.py"
LAW = None
TOKENS = 8_192_000
WARMUP = 0.0125  # of the trunk: 102,400 tokens, whatever a run's length


def get_sweep():
    small, large = sweep.ladder("decoder", [32, 64], [2])
    shapes = [{**small, "train.seed": 0}, {**small, "train.seed": 1}, {**large, "train.seed": 0}]
    tuned = {"optim.lr": [0.0045, 0.009, 0.018], "optim.final_lr": [0.0]}
    wsd = {"optim.schedule": ["wsd"], "optim.branches": [(0.25, 0.5)], "optim.decay": [0.4], "optim.final_lr": [0.0]}
    trunks = sweep.product(
        shapes, {"train.tokens": [TOKENS], "optim.warmup": [WARMUP], "optim.lr": [0.0045, 0.009], **wsd}
    )
    lengths = {
        "train.tokens": [TOKENS // 4, TOKENS // 2, TOKENS],
        "optim.warmup": [4 * WARMUP, 2 * WARMUP, WARMUP],
    }
    return sweep.chain(trunks, sweep.product(shapes, sweep.zip_(lengths), tuned))


def figure(best):
    """Loss against tokens: decays from one trunk (filled) and separate cosine runs (open), one colour per shape."""
    fig, (axes,) = style.PAGE.panels(1)
    for i, (shape, here) in enumerate(best.groupby(["width", "depth"])):
        name = f"width {shape[0]}, depth {shape[1]}"
        axes.plot(here.tokens, here.wsd, color=style.CYCLE[i], marker="o", markersize=5, label=f"{name}, WSD branches")
        axes.plot(
            here.tokens, here.cosine, color=style.CYCLE[i], marker="o", markersize=8, markerfacecolor="none",
            linestyle=":", label=f"{name}, cosine runs",
        )  # fmt: skip
    style.log_axis(axes, "x", best.tokens.min() / 1.2, best.tokens.max() * 1.2)
    axes.set(xlabel="tokens", ylabel="held-out loss")
    axes.legend()
    return fig


def read(folder):
    """One row per branch and run: width, depth, tokens, schedule, lr, seed, loss, run_id."""
    shared = ["width", "depth", "tokens", "seed", "loss", "run_id"]
    cells = []
    for result, config in sources.runs(folder):
        own = {name: config["optim"][name] for name in ("schedule", "lr")}
        for branch in (*result.get("branches", []), {}):
            point = {**result, **branch}
            cells.append({**{name: point[name] for name in shared}, **own})
    columns = ["width", "depth", "tokens", "schedule", "lr", "seed", "loss", "run_id"]
    frame = pd.DataFrame(cells, columns=columns)
    if not {"wsd", "cosine"} <= set(frame.schedule):
        raise UsageError(f"{str(folder)!r} has no wsd and cosine runs of the same shape and length")
    return frame


def report(folder, out):
    """Writes branches.csv (all rates and seeds) and branches.png, .svg, .pdf; returns lines of text (means over seeds).

    A cosine run has a best rate at each length. A trunk is one run: its rate is that of the least mean log loss over
    its points. A rate that lacks a seed's loss (the run diverged or isn't finished) is not a candidate.
    """
    frame = read(folder)
    shape, point = ["width", "depth"], ["width", "depth", "tokens"]
    known = frame.dropna(subset="loss")
    mean = known.groupby([*point, "schedule", "lr"]).agg(loss=("loss", "mean"), seeds=("seed", "nunique")).reset_index()
    wanted = mean.merge(frame.groupby(point).seed.nunique().reset_index(), on=point)["seed"].to_numpy()
    mean = mean[mean.seeds == wanted]
    shared = mean.groupby(point).schedule.transform("nunique") == 2
    ways = {name: here.drop(columns="schedule") for name, here in mean[shared].groupby("schedule")}
    if not ways:
        raise UsageError(f"{str(folder)!r} has no wsd and cosine runs of the same shape and length")
    cosine = ways["cosine"].loc[ways["cosine"].groupby(point).loss.idxmin()].drop(columns="seeds")
    trunks = ways["wsd"].assign(loss=np.log(ways["wsd"].loss)).groupby([*shape, "lr"]).loss.mean().reset_index()
    wsd = ways["wsd"].merge(trunks.loc[trunks.groupby(shape).loss.idxmin(), [*shape, "lr"]])
    best = wsd.merge(cosine, on=point, suffixes=("_wsd", "_cosine"))
    best = best.rename(columns={"loss_wsd": "wsd", "loss_cosine": "cosine"})
    best["difference"] = best["wsd"] / best["cosine"] - 1
    home = Path(out)
    home.mkdir(parents=True, exist_ok=True)
    frame.sort_values([*point, "schedule", "lr", "seed"]).to_csv(home / "branches.csv", index=False)
    drawn = transfer.write(figure, home / "branches", best)
    lines = [
        f"width {r.width} depth {r.depth}, {r.tokens:,} tokens, {r.seeds} seed{'s' * (r.seeds > 1)}: wsd {r.wsd:.4f} "
        f"at {r.lr_wsd:g}, cosine {r.cosine:.4f} at {r.lr_cosine:g} ({r.difference:+.2%})"
        for r in best.itertuples()
    ]
    return "\n".join([*lines, f"largest difference {best.difference.abs().max():.2%}", f"figure: {drawn}"])
