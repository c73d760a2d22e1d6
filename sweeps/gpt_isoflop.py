"""IsoFLOP curves of a GPT on English prose: every rung as well tuned as its neighbour, and the top budget held out.

    bigmodel prepare prose --out=data/prose-bytes
    bigmodel sweep run sweeps/gpt_isoflop.py && bigmodel report sweeps/gpt_isoflop.py

Four budgets over 30x, two seeds each, and a fifth of 3x the largest; muP and CompleteP carry the base's learning rate
over shapes, which is, like beta2, of sweeps/tuning.py: at batch 8 rates between 0.009 and 0.018 are alike.
The report fits the budgets but the largest and says how far off it is there; docs/results.md has what came out.
"""

from bigmodel import sweep
from bigmodel.scaling import heldout

CONFIG = "experiments/prose.py"
DEPTH = 2  # one layer follows a law of its own: N alone doesn't say that it can't compose attention
WIDTHS = {
    1e11: [8, 12, 16, 24, 32],
    3e11: [12, 16, 24, 32, 48],
    1e12: [16, 24, 32, 48, 64],
    3e12: [24, 32, 48, 64, 96],
    9e12: [32, 48, 64, 96, 128],
}
TUNED = {"optim.lr": 0.0127, "optim.b2": 0.99, "optim.warmup": 0.1}


def get_sweep():
    rows = []
    for flops, widths in WIDTHS.items():
        for row in sweep.ladder("decoder", widths, [DEPTH]):
            seeds = range(2 if flops < max(WIDTHS) else 1)
            rows += [{**row, **TUNED, "train.flops": flops, "train.seed": seed} for seed in seeds]
    return rows


def report(folder, out):
    return heldout.report(folder, out)
