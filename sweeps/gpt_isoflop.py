"""IsoFLOP curves of a GPT on English prose: every rung as well tuned as its neighbour, and the top budget held out.

    bigmodel prepare prose --out=data/prose-bytes
    bigmodel sweep run sweeps/gpt_isoflop.py && bigmodel report sweeps/gpt_isoflop.py

Four budgets over 30x, and a fifth of 3x the largest; muP and CompleteP carry the base's learning rate over shapes. The report fits the budgets but
the largest and says how far off it is there; docs/results.md has what came out.
"""

from bigmodel import recipes, sweep
from bigmodel.scaling import heldout

CONFIG = "experiments/prose.py"
SHAPES = {
    1e11: [(8, 1), (16, 1), (24, 1), (32, 1), (32, 2)],
    3e11: [(16, 1), (24, 1), (32, 1), (32, 2), (48, 2)],
    1e12: [(24, 1), (32, 1), (32, 2), (48, 2), (64, 2)],
    3e12: [(32, 1), (32, 2), (48, 2), (64, 2), (64, 4)],
    9e12: [(32, 2), (48, 2), (64, 2), (64, 4), (96, 4)],
}
# At width 32, depth 2 the best of four rates is 0.0133 for 400k tokens and 0.0092 for 3.2M (parabolas in ln lr); shapes
# follow by muP and CompleteP.
RECIPE = recipes.power_law("horizon", lr=0.0133, at=(24_576, 400_000), d=-0.18)


def get_sweep():
    rows = []
    for flops, shapes in SHAPES.items():
        for i, (width, depth) in enumerate(shapes):
            for seed in (
                (0, 1) if i == len(shapes) // 2 and flops < 9e12 else (0,)
            ):  # two seeds where the optimum is expected
                (row,) = sweep.ladder("decoder", [width], [depth])
                rows.append({**row, "train.flops": flops, "train.seed": seed, "optim.warmup": 0.1})
    return rows


def report(folder, out):
    return heldout.report(folder, out)
