"""A decoder of captions, then codes of pictures. The codes are made of a run of experiments/dvae.py, in one sweep:

bigmodel prepare captioned --tokenizer=bpe
bigmodel sweep run sweeps/dalle.py
bigmodel generate runs/dalle/<run id> --prompt="red heart" --num-return-sequences=4 --out=hearts
"""

from bigmodel import budget


def get_config():
    config = budget.base("dalle", "captions")
    config.data.name = "captioned-codes"  # a sweep's rows name what is derived for them
    config.model.width = 128
    config.model.depth = 4
    config.model.num_heads = 4
    config.model.neighbourhood = 5
    config.optim.lr = 2e-3
    config.optim.b2 = 0.96
    config.optim.warmup = 0.05
    config.train.batch_size = 16
    config.train.tokens = 90_000
    return config
