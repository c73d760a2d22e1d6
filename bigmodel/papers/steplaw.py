"""Li et al. 2025, "Predictable Scale: Part I, Step Law", arXiv:2503.04715.

The best learning rate and batch of dense language models. The points are the authors' 1000 stored bootstrap fits and
their grid of runs, both in github.com/step-law/steplaw, data/.
"""

import math
from typing import Any

import numpy as np
import pandas as pd

from bigmodel.laws import fit, forms
from bigmodel.papers import Frames, Points, Row, count, evaluate, model, table

TITLE = "Step Law: best learning rate and batch (Li et al. 2025)"
SOURCE = "arXiv:2503.04715, equation 1; github.com/step-law/steplaw, data"
SHAPE = ("h", "ffnh", "numh", "numl")  # width, ffn, heads, layers
STORED = ("lr_intercept", "lr_coefN", "lr_coefD", "bs_intercept", "bs_coefD")
GRID = (*SHAPE, "lr", "bs", "smooth loss", "D", "N")
ORIGIN = "github.com/step-law/steplaw, data/"
POINTS = (
    Points("1004_fitted_lr_bs_scaling_model_parameters.csv", ORIGIN, "none stated", STORED),
    Points("dense_lr_bs_loss.csv", ORIGIN, "none stated", GRID),
)

# lr = 1.79 N^-0.713 D^0.307; batch in tokens = 0.58 D^0.571; and half a unit of the last printed digit.
LAW = {
    "lr, coefficient": (1.79, 0.01), "lr, exponent of N": (-0.713, 6e-4), "lr, exponent of D": (0.307, 6e-4),
    "batch, coefficient": (0.58, 0.006), "batch, exponent of D": (0.571, 6e-4),
}  # fmt: skip
FIRST = (960, 9368, 15, 7)  # the first run's shape, and its N as the table has it
FIRST_N = 214_663_680
TOKENS = 2048  # of a sequence; the table counts batches in sequences

MEAN = "Mean of the stored rows, and exp of the mean of an intercept."
BEST = (
    "Least squares through the one best run of each (N, D): coefficient and exponents trade off, so look at the last "
    "two rows. The authors' constants are means of 1000 bootstrap fits."
)


def rows(points: Frames) -> list[Row]:
    part = "N = layers (4 width^2 + 3 width ffn), of our decoder with swiglu"
    out = [Row(part, "width 960, ffn 9368, 7 layers", FIRST_N, _size(*FIRST), 0, format=",.0f")]
    stored, grid = (points.get(p.name) for p in POINTS)
    if grid is not None:
        shapes = grid.drop_duplicates([*SHAPE])
        equal = sum(_size(*map(int, shape)) == n for *shape, n in shapes[[*SHAPE, "N"]].itertuples(index=False))
        out.append(Row(part, "shapes of the grid whose N is ours", len(shapes), equal, 0, format=".0f"))
    if stored is not None:
        means = dict(stored.mean())
        for name in ("lr_intercept", "bs_intercept"):
            means[name] = math.exp(means[name])
        part = "The law, from the stored bootstrap rows"
        for column, (name, (value, half)) in zip(STORED, LAW.items(), strict=True):
            out.append(Row(part, name, value, float(means[column]), half, True, ".4f", MEAN))
    if grid is not None:
        printed, found = [value for value, _ in LAW.values()], _refit(grid)
        (lr, batch), (our_lr, our_batch) = _predict(printed), _predict(found)
        part = "The law, fitted by us to the grid of runs"
        out += table(part, zip(LAW, printed, found, strict=True), absolute=True, format=".4f", note=BEST)
        out.append(Row(part, "best lr at N = 1e9, D = 1e11", lr, our_lr, format=".2e", note=BEST))
        out.append(Row(part, "best batch at D = 1e11, tokens", batch, our_batch, format=",.0f", note=BEST))
    return out


def _predict(constants: list[float]) -> tuple[float, float]:
    c, p, q, batch_c, batch_q = constants
    lr = evaluate(forms.get("learning_rate"), {"c": c, "p": p, "q": q}, N=1e9, D=1e11)
    return lr, evaluate(forms.get("batch_size"), {"c": batch_c, "q": batch_q}, D=1e11)


def _size(width: int, ffn: int, heads: int, layers: int) -> int:
    cfg = model(
        "decoder", width=width, ffn=ffn, num_heads=heads, depth=layers, vocab_size=65536, seq_len=TOKENS,
        activation="swiglu", norm="rmsnorm", position="rope", bias=False,
    )  # fmt: skip
    return count(cfg, "kaplan")


def _refit(grid: pd.DataFrame) -> list[float]:
    """The five constants, by our fits; a Huber threshold beyond every residual makes least squares."""
    best = grid.loc[grid.groupby(["N", "D"])["smooth loss"].idxmin()]
    frame = best[["N", "D", "lr"]].assign(batch=TOKENS * best["bs"]).astype(np.float64).reset_index(drop=True)
    how: dict[str, Any] = {"delta": 100.0, "bootstrap": 0, "holdout": 0}
    lr, batch = (fit.fit(frame, law=law, **how)["params"] for law in ("learning_rate", "batch_size"))
    return [lr["c"], lr["p"], lr["q"], batch["c"], batch["q"]]
