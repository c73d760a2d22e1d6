"""Does the best learning rate stay as depth grows? Real text, depths 2 to 16, CompleteP.

    bigmodel prepare prose --out=data/prose-bytes
    bigmodel sweep run sweeps/transfer_depth.py && bigmodel report sweeps/transfer_depth.py

docs/results.md has the figure and what came out.
"""

from analyses import transfer

from bigmodel import sweep

CONFIG = "experiments/prose.py"
AXIS = "depth"
LAW = None  # rates are swept here, not sizes against data
RATES = [0.005, 0.01, 0.02, 0.04]


def get_sweep():
    shapes = sweep.ladder("decoder", widths=[32], depths=[2, 4, 8, 16])
    rows = sweep.product(shapes, {"model.parametrization": ["completep"], "optim.lr": RATES})
    return sweep.product(rows, {"train.tokens": [200_000], "optim.warmup": [0.1]})


def report(folder, out):
    return transfer.report(folder, out, AXIS)
