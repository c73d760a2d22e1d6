"""Does the best learning rate stay as width grows? Real text, widths 32 to 256, muP against the standard way.

    bigmodel prepare prose --out=data/prose-bytes
    bigmodel sweep run sweeps/transfer_width.py && bigmodel report sweeps/transfer_width.py

Several seeds under muP, whose curves are flat at their best: a seed alone moves that of width 32 by a factor of two.
docs/results.md has the figure and what came out.
"""

from analyses import transfer

from bigmodel import sweep

CONFIG = "experiments/prose.py"
AXIS = "width"
LAW = None  # rates are swept here, not sizes against data
RATES = {"standard": [0.00125, 0.0025, 0.005, 0.01, 0.02, 0.04], "mup": [0.005, 0.01, 0.02, 0.04]}
SEEDS = {32: 10, 64: 5, 128: 3, 256: 3}  # under muP


def get_sweep():
    shapes = sweep.ladder("decoder", widths=[32, 64, 128, 256], depths=[2])
    rows = [
        {**shape, "model.parametrization": name, "optim.lr": lr, "train.seed": seed}
        for shape in shapes
        for name, rates in RATES.items()
        for lr in (*rates, *[0.08] * (name == "mup" and shape["model.width"] == 32))
        for seed in range(SEEDS[shape["model.width"]] if name == "mup" else 1)
    ]
    return sweep.product(rows, {"train.tokens": [400_000], "optim.warmup": [0.1]})


def report(folder, out):
    return transfer.report(folder, out, AXIS)
