"""A GPT on English news, byte by byte: the demo's experiment.

    bigmodel prepare news --out=data/news-bytes
    bigmodel train --config=experiments/gpt.py --config.model.width=96

Muon, since models this small learn faster by it: width 64, depth 2, 400k tokens reach 2.25 nats per byte
with Muon at 0.01, and 2.55 with AdamW at the best of 0.002, 0.005 and 0.01.
"""

from bigmodel import budget


def get_config():
    config = budget.base("decoder", "text")
    config.model.width = 64
    config.model.depth = 2
    config.model.num_heads = 4
    config.model.init_std = 0.0
    config.data.name = "news-bytes"
    config.data.seq_len = 128
    config.optim.name = "muon"
    config.optim.momentum = 0.95
    config.optim.lr = 0.015
    config.train.batch_size = 8
    config.train.tokens = 1_000_000
    config.train.eval_examples = 512
    return config
