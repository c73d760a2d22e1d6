"""Several points of one run: decays from a constant-rate trunk (WSD) against cosine runs of the same lengths.

    bigmodel prepare prose --out=data/prose-bytes
    bigmodel sweep run sweeps/wsd.py && bigmodel report sweeps/wsd.py

A trunk with branches at 1/4 and 1/2 of its tokens costs 1.15 trunks; the three cosine runs 1.75.
"""

from bigmodel import sweep
from bigmodel.scaling import heldout

CONFIG = "experiments/prose.py"
LAW = None
TOKENS = 1_600_000


def get_sweep():
    shapes = sweep.ladder("decoder", [32, 64], [2])
    wsd = {"optim.lr": [0.01], "optim.schedule": ["wsd"], "optim.branches": [(0.25, 0.5)]}
    trunks = sweep.product(shapes, {"train.tokens": [TOKENS], "optim.warmup": [0.025], **wsd})
    lengths = sweep.zip_(
        {"train.tokens": [TOKENS // 4, TOKENS // 2, TOKENS], "optim.warmup": [0.1, 0.05, 0.025], "optim.lr": [0.01] * 3}
    )
    return sweep.chain(trunks, sweep.product(shapes, lengths))


def report(folder, out):
    return heldout.branches(folder, out)
