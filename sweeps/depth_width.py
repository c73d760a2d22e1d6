"""Depth against width at fixed size and compute: seven shapes of 55 to 58 thousand parameters, from one layer to 72.

    bigmodel prepare prose --out=data/prose-bytes
    bigmodel sweep run sweeps/depth_width.py && bigmodel report sweeps/depth_width.py

Two heads in each; docs/results.md has what came out.
"""

from bigmodel import sweep
from bigmodel.laws import heldout

CONFIG = "experiments/prose.py"
LAW = None  # one size, one budget
SHAPES = [(68, 1), (48, 2), (40, 3), (24, 8), (16, 18), (12, 32), (8, 72)]  # 12 width^2 depth = 55 to 58 thousand


def get_sweep():
    shapes = [row for width, depth in SHAPES for row in sweep.ladder("decoder", [width], [depth])]
    heads = [{**row, "model.num_heads": 2} for row in shapes]  # of an even size each, as RoPE needs
    return sweep.product(heads, {"train.flops": [1e12], "optim.warmup": [0.1]})


def report(folder, out):
    return heldout.shapes(folder, out)
