"""The best learning rate of LSTMs and RNNs by width, on real text: what the recurrent rungs of sweeps/families.py use.

bigmodel prepare prose --out=data/prose-bytes
bigmodel sweep run sweeps/transfer_recurrent.py && bigmodel report sweeps/transfer_recurrent.py
"""

from analyses import transfer

from bigmodel import sweep

CONFIG = "experiments/lstm.py"
AXIS = "width"
LAW = None  # rates are swept here, not sizes against data
RATES = {"lstm": [0.008, 0.016, 0.032, 0.064, 0.128], "rnn": [0.004, 0.008, 0.016, 0.032, 0.064]}


def get_sweep():
    rows = [
        {**shape, "model.cell": cell, "optim.lr": lr}
        for shape in sweep.ladder("recurrent", widths=[16, 32, 64], depths=[2])
        for cell, rates in RATES.items()
        for lr in rates
    ]
    return sweep.product(rows, {"train.tokens": [400_000], "optim.warmup": [0.1]})


def report(folder, out):
    return transfer.report(folder, out, AXIS, lambda config: config["model"]["cell"])
