"""Does AdamW's beta2 matter? Four of them over batches and rates at the base shape, 819,200 tokens.

    bigmodel prepare prose --out=data/prose-bytes
    bigmodel sweep run sweeps/tuning_beta2.py && bigmodel report sweeps/tuning_beta2.py

Small batches want one nearer 1 (Porian et al. 2024, arXiv:2406.19146).
"""

from analyses import settings

from bigmodel import sweep

CONFIG = "experiments/prose.py"
LAW = None  # one size


def get_sweep():
    (shape,) = sweep.ladder("decoder", widths=[32], depths=[2])
    axes = {"train.batch_size": [4, 8, 16, 32], "optim.b2": [0.9, 0.95, 0.99, 0.999], "optim.lr": [0.009, 0.018, 0.036]}
    return sweep.product([shape], axes, {"train.tokens": [819_200], "optim.warmup": [0.1]})


def report(folder, out):
    return settings.report(folder, out)
