"""A GPT on English news, byte by byte: the demo's experiment.

    bigmodel prepare news --out=data/news-bytes
    bigmodel train --config=experiments/gpt.py --config.model.width=96

Rotary positions and Muon, since models this small learn from few tokens by them: width 64, depth 2 reach
1.98 nats per byte after 300k tokens, and 2.49 with learned positions; with AdamW instead of Muon, learned
positions stay at 2.55 after 400k, Muon's at 2.25 (each at the best of three learning rates).
"""

from bigmodel import budget


def get_config(variant=""):
    """`branches`: a constant rate, with decays that branch off at 1/8, 1/4 and 1/2 of the tokens: four runs in one."""
    config = budget.base("decoder", "text")
    config.model.width = 64
    config.model.depth = 2
    config.model.num_heads = 4
    config.model.position = "rope"
    config.model.init_std = 0.0
    config.data.name = "news-bytes"
    config.data.seq_len = 128
    config.optim.name = "muon"
    config.optim.momentum = 0.95
    config.optim.lr = 0.015
    config.train.batch_size = 8
    config.train.tokens = 1_000_000
    config.train.eval_examples = 512
    if variant == "branches":
        config.optim.schedule = "wsd"
        config.optim.branches = (0.125, 0.25, 0.5)
        config.optim.decay = 0.3
        config.optim.final_lr = 0.0
        config.optim.warmup = 0.01
        config.train.tokens = 1_200_000
    elif variant:
        raise ValueError(f"no variant {variant!r}: branches, or none")
    return config
