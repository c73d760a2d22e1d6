"""Batch, beta2 and learning rate together, at the base shape: what a recipe of one's own starts from.

    bigmodel prepare prose --out=data/prose-bytes
    bigmodel sweep run sweeps/tuning.py && bigmodel report sweeps/tuning.py

Small batches want a beta2 nearer to 1 (Porian et al. 2024, arXiv:2406.19146). docs/results.md has what came out.
"""

from bigmodel import sweep
from bigmodel.scaling import transfer

CONFIG = "experiments/prose.py"
LAW = None  # one size, one horizon


def get_sweep():
    (shape,) = sweep.ladder("decoder", widths=[32], depths=[2])
    batches = {"train.batch_size": [4, 8, 16, 32], "optim.b2": [0.9, 0.95, 0.99, 0.999]}
    rates = {"optim.lr": [0.009, 0.018, 0.036]}
    return sweep.product([shape], batches, rates, {"train.tokens": [819_200], "optim.warmup": [0.1]})


def report(folder, out):
    return transfer.tuning(folder, out)
