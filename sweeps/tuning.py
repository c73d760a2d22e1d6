"""Batch and learning rate at three horizons, at the base shape: what a recipe of one's own starts from.

    bigmodel prepare prose --out=data/prose-bytes
    bigmodel sweep run sweeps/tuning.py && bigmodel report sweeps/tuning.py

beta2 is 0.99, which suits small batches (Porian et al. 2024, arXiv:2406.19146). docs/results.md has what came out.
"""

from pathlib import Path

import pandas as pd
from analyses import transfer

from bigmodel import sweep
from bigmodel.laws import sources
from bigmodel.laws.figures import style
from bigmodel.laws.figures.transfer import write

CONFIG = "experiments/prose.py"
LAW = None  # one size
BATCHES = {204_800: [1, 2, 4, 8], 819_200: [1, 2, 4, 8], 3_276_800: [2, 4, 8, 16]}


def get_sweep():
    (shape,) = sweep.ladder("decoder", widths=[32], depths=[2])
    common = {"optim.b2": [0.99], "optim.warmup": [0.1], "optim.lr": [0.0045, 0.009, 0.018]}
    parts = [
        sweep.product([shape], {"train.tokens": [tokens], "train.batch_size": batches}, common)
        for tokens, batches in BATCHES.items()
    ]
    return sweep.chain(*parts)


def figure(best):
    """Least loss over rates against the batch, as a ratio to the horizon's least: one curve per horizon, with the best
    rate at each mark."""
    frame = pd.DataFrame(best)
    horizons = sorted(frame.tokens.unique())
    norm = style.log_norm(horizons)
    fig, (axes,) = style.PAGE.panels(1)
    for i, tokens in enumerate(horizons):
        here = frame[frame.tokens == tokens].sort_values("batch_size")
        ratio = here.loss / here.loss.min()
        axes.plot(
            here.batch_size, ratio, color=style.colour(norm, tokens), marker=style.MARKERS[i % 8], markersize=5,
            linewidth=1.2, label=f"{tokens:,} tokens: {here.loss.min():.3f}",
        )  # fmt: skip
        for row, y in zip(here.itertuples(), ratio, strict=True):
            axes.annotate(
                f"{row.lr:.2g}", (row.batch_size, y), textcoords="offset points", xytext=(4, 4), fontsize="x-small"
            )
    style.log_axis(axes, "x", frame.batch_size.min() / 1.2, frame.batch_size.max() * 1.4)
    axes.set(xlabel="batch, examples (marks: the best rate)", ylabel="held-out loss over the horizon's least")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), title="least loss")
    return fig


def report(folder, out):
    """Writes tuning.csv and tuning.png, .svg, .pdf; returns the best rate and least loss of each horizon and batch."""
    columns = ["tokens", "batch_size", "lr", "seed", "run_id", "loss"]
    runs = [{name: result[name] for name in columns} for result, _ in sources.runs(folder)]
    frame = pd.DataFrame(runs).sort_values(columns[:4])
    best = []
    for (tokens, batch), here in frame.groupby(["tokens", "batch_size"]):
        best.append({"tokens": int(tokens), "batch_size": int(batch), **transfer.star(here)})
    home = Path(out)
    home.mkdir(parents=True, exist_ok=True)
    frame.to_csv(home / "tuning.csv", index=False)
    drawn = write(figure, home / "tuning", best)
    lines = [
        f"{b['tokens']:,} tokens, batch {b['batch_size']}: loss {b['loss']:.4f} at rate {b['lr']:.3g}"
        f"{' (edge)' if b['edge'] else ''}"
        for b in best
    ]
    return "\n".join([*lines, f"figure: {drawn}"])
