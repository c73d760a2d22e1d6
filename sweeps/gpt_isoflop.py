"""IsoFLOP curves of a GPT on English prose: every rung as well tuned as its neighbour, and the top budget held out.

    bigmodel prepare prose --out=data/prose-bytes
    bigmodel sweep run sweeps/gpt_isoflop.py && bigmodel report sweeps/gpt_isoflop.py

Four budgets over 30x, two seeds each, and a fifth of 3x the largest. muP and CompleteP carry the base's learning rate
over shapes, whose heads are all of 8; over horizons, the best batch of sweeps/tuning.py grows as the root of the
tokens, at one rate. The report fits the budgets but the largest and says how far off it is there; docs/results.md has
what came out.
"""

import math

from analyses import heldout

from bigmodel import recipes, sweep

CONFIG = "experiments/prose.py"
DEPTH = 2  # one layer follows a law of its own: N alone doesn't say that it can't compose attention
HEAD_DIM = 8  # of every width: where the number of heads jumps, so does the loss
WIDTHS = {
    1e11: [8, 16, 24, 32, 40],
    3e11: [16, 24, 32, 40, 48],
    1e12: [16, 24, 32, 48, 64],
    3e12: [24, 32, 48, 64, 96],
    9e12: [32, 48, 64, 96, 128],
}
BATCHES = 1, 2, 3, 4, 6, 8, 12, 16  # those with factors that fill a cache, as program.py's micro-batches do


def tuned(n, d):
    """The best of sweeps/tuning.py: 1, 2 and 4 windows a step at 205, 819 and 3277 thousand tokens in all."""
    batch = min(BATCHES, key=lambda b: abs(math.log(b / (2 * (d / 819_200) ** 0.5))))
    return recipes.Tuning(lr=0.008, batch=128 * batch, b2=0.99, warmup=0.1 * d)


RECIPE = recipes.Recipe("prose", "sweeps/tuning.py", tuned)


def rows(flops, widths, seeds):
    found = []
    for row in sweep.ladder("decoder", widths, [DEPTH]):
        heads = {"model.num_heads": row["model.width"] // HEAD_DIM, "model.base_num_heads": 32 // HEAD_DIM}
        found += [{**row, **heads, "train.flops": flops, "train.seed": seed} for seed in range(seeds)]
    return found


def get_sweep():
    return [
        row for flops, widths in WIDTHS.items() for row in rows(flops, widths, seeds=2 if flops < max(WIDTHS) else 1)
    ]


def report(folder, out):
    return heldout.report(folder, out)
