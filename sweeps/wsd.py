"""Several points of one run: decays from a constant-rate trunk (WSD) against cosine runs of the same lengths.

    bigmodel prepare prose --out=data/prose-bytes
    bigmodel sweep run sweeps/wsd.py && bigmodel report sweeps/wsd.py

Decays take 40 % of each point's tokens, so that a trunk with branches at 1/4 and 1/2 costs 1.3 trunks; the three cosine
runs 1.75. All down to zero, each way at its best rate: half of a cosine's run is below half of its rate.
"""

from bigmodel import sweep
from bigmodel.laws import heldout

CONFIG = "experiments/prose.py"
LAW = None
TOKENS = 8_192_000
WARMUP = 0.0125  # of the trunk: 102,400 tokens, whatever a run's length


def get_sweep():
    small, large = sweep.ladder("decoder", [32, 64], [2])
    shapes = [{**small, "train.seed": 0}, {**small, "train.seed": 1}, {**large, "train.seed": 0}]
    tuned = {"optim.lr": [0.0045, 0.009, 0.018], "optim.final_lr": [0.0]}
    wsd = {"optim.schedule": ["wsd"], "optim.branches": [(0.25, 0.5)], "optim.decay": [0.4], "optim.final_lr": [0.0]}
    trunks = sweep.product(
        shapes, {"train.tokens": [TOKENS], "optim.warmup": [WARMUP], "optim.lr": [0.0045, 0.009], **wsd}
    )
    lengths = {
        "train.tokens": [TOKENS // 4, TOKENS // 2, TOKENS],
        "optim.warmup": [4 * WARMUP, 2 * WARMUP, WARMUP],
    }
    return sweep.chain(trunks, sweep.product(shapes, sweep.zip_(lengths), tuned))


def report(folder, out):
    return heldout.branches(folder, out)
