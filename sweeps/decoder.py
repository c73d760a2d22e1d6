"""A law of GPTs: 3 widths x 2 depths x 3 amounts of English prose, byte by byte.

    bigmodel prepare prose --out=data/prose-bytes
    bigmodel sweep run sweeps/decoder.py && bigmodel report sweeps/decoder.py

sweeps/gpt_isoflop.py is the study at fixed budgets; sweeps/families.py holds the families beside each other.
"""

from bigmodel import sweep

CONFIG = "experiments/prose.py"


def get_sweep():
    shapes = sweep.ladder("decoder", widths=[16, 32, 64], depths=[1, 2])
    return sweep.product(shapes, {"train.tokens": [250_000, 500_000, 1_000_000], "optim.warmup": [0.1]})
