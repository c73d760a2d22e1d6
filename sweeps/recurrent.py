"""A law of LSTMs: 3 widths x 2 depths x 3 amounts of English prose, byte by byte.

    bigmodel prepare prose --out=data/prose-bytes
    bigmodel sweep run sweeps/recurrent.py && bigmodel report sweeps/recurrent.py

sweeps/families.py holds the families beside each other at the same FLOPs.
"""

from bigmodel import sweep

CONFIG = "experiments/lstm.py"


def get_sweep():
    # Their best rate falls with the width: sweeps/transfer_recurrent.py.
    shapes = sweep.ladder("recurrent", widths=[16, 32, 64], depths=[1, 2])
    shapes = [{**shape, "optim.lr": round(0.03 * (32 / shape["model.width"]) ** 0.5, 4)} for shape in shapes]
    return sweep.product(shapes, {"train.tokens": [250_000, 500_000, 1_000_000], "optim.warmup": [0.1]})
