"""The tuned frontier: 16 random configurations a rung, and a law through the best of them beside one through defaults.

    bigmodel prepare prose --out=data/prose-bytes
    bigmodel sweep run sweeps/tuned_frontier.py && bigmodel report sweeps/tuned_frontier.py

Searched are the peak rate, the batch, the warm-up and the decay (its share of the run, and the last rate), as SEARCH
says; all else is the experiment's. Rung k draws from NumPy's generator of the seed (SEED, k): its first n
configurations are the same for any number of them. Beside them each rung has the experiment's own recipe, two seeds.

The best of 16 single runs owes some of its place to a lucky seed. So the winners, AGAIN, were trained with two further
seeds once the others were done: those losses owe nothing to luck. docs/results.md has what came out.
"""

import numpy as np
from analyses import tuned

from bigmodel import sweep

CONFIG = "experiments/prose.py"
LAW = None  # of the frontier: sweeps/analyses/tuned.py
RUNGS = {16: 102_400, 24: 204_800, 32: 409_600, 48: 819_200}  # width: tokens, about in proportion to N
CONFIGURATIONS, SEED = 16, 19
SEARCH = {  # (how, least, most); batches are windows of 128 tokens
    "optim.lr": ("log", 0.002, 0.05),
    "train.batch_size": ("of", (1, 2, 4, 8)),
    "optim.warmup": ("log", 0.01, 0.3),
    "optim.decay": ("even", 0.1, 0.7),
    "optim.final_lr": ("even", 0.0, 0.3),
}
AGAIN = {16: 8, 24: 12, 32: 7, 48: 8}  # width: which of its configurations, counted from 0, had the least loss


def draw(rng):
    """One configuration of SEARCH, to three digits."""
    found = {"optim.schedule": "wsd"}
    for key, (how, *ends) in SEARCH.items():
        if how == "of":
            found[key] = int(rng.choice(ends[0]))
        else:
            value = np.exp(rng.uniform(*np.log(ends))) if how == "log" else rng.uniform(*ends)
            found[key] = float(f"{value:.3g}")
    return found


def get_sweep():
    rows = []
    for k, (width, tokens) in enumerate(RUNGS.items()):
        (shape,) = sweep.ladder("decoder", [width], [2])
        heads = {"model.num_heads": width // 8, "model.base_num_heads": 4, "train.tokens": tokens}
        rng = np.random.default_rng([SEED, k])
        own = [draw(rng) for _ in range(CONFIGURATIONS)]
        again = [{**own[AGAIN[width]], "train.seed": seed} for seed in (1, 2)]
        rows += sweep.product([{**shape, **heads}], [*own, *({"train.seed": seed} for seed in (0, 1)), *again])
    return rows


def report(folder, out):
    return tuned.report(folder, out, searched=len(SEARCH))
