"""Small GPTs on English news whose law foretells a run of ten times the compute of the largest.

    bigmodel prepare news --out=data/news-bytes
    bigmodel sweep run sweeps/forecast.py && bigmodel report sweeps/forecast.py

Five widths of depth 2, heads of 16, two seeds or three; each at a constant rate with decays that branch off at 1/4 and
1/2 of its tokens. No run takes more than 9e11 FLOPs, so that small models see much data and large ones little.
docs/results.md has which run they foretell, and what came out.
"""

CONFIG = "experiments/gpt.py"
LAW = "kaplan_nd"  # of these and chinchilla and gadre, the least held-out error at the largest gap
SHAPES = {32: 1_600_000, 48: 1_600_000, 64: 1_000_000, 96: 500_000, 128: 300_000}  # width: tokens
SEEDS = {32: 3, 48: 3, 64: 3, 96: 2, 128: 2}  # runs of one shape differ by up to 2 %


def row(width, tokens, seed=0, branches=(0.25, 0.5)):
    heads = {"model.width": width, "model.num_heads": width // 16}
    rates = {"optim.lr": round(1 / width, 4), "optim.schedule": "wsd", "optim.decay": 0.3, "optim.final_lr": 0.0}
    run = {"optim.warmup": 0.01, "optim.branches": branches, "train.tokens": tokens, "train.seed": seed}
    return {**heads, **rates, **run}


def get_sweep():
    return [row(width, tokens, seed) for seed in range(3) for width, tokens in SHAPES.items() if seed < SEEDS[width]]
