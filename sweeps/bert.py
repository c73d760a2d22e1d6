"""A law of BERT's masked loss: 3 widths x 2 depths x 3 amounts of English prose, byte by byte.

    bigmodel prepare prose --out=data/prose-bytes
    bigmodel sweep run sweeps/bert.py && bigmodel report sweeps/bert.py

sweeps/families.py holds the families beside each other at the same FLOPs.
"""

from bigmodel import sweep

CONFIG = "experiments/bert.py"


def get_sweep():
    shapes = sweep.ladder("bert", widths=[16, 32, 64], depths=[1, 2])
    return sweep.product(shapes, {"train.tokens": [250_000, 500_000, 1_000_000], "optim.warmup": [0.1]})
