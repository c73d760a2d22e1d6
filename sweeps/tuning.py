"""Batch and learning rate at three horizons, at the base shape: what a recipe of one's own starts from.

    bigmodel prepare prose --out=data/prose-bytes
    bigmodel sweep run sweeps/tuning.py && bigmodel report sweeps/tuning.py

beta2 is 0.99, which suits small batches (Porian et al. 2024, arXiv:2406.19146). docs/results.md has what came out.
"""

from bigmodel import sweep
from bigmodel.laws import transfer

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


def report(folder, out):
    return transfer.tuning(folder, out)
