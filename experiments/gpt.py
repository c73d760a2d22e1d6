"""A GPT on English news, byte by byte: the demo's experiment.

bigmodel prepare news --out=data/news-bytes
bigmodel train --config=experiments/gpt.py --config.model.width=64 --config.train.tokens=500_000
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
    config.optim.lr = 3e-3
    config.train.batch_size = 16
    config.train.tokens = 1_000_000
    config.train.eval_examples = 512
    return config
