"""GPT-3 by its table: shape, learning rate, batch and schedule of each size (Brown et al. 2020, Table 2.1).

    bigmodel prepare prose --tokenizer=gpt2 --out=data/prose-gpt2
    bigmodel train --config=experiments/gpt3.py:125m
    bigmodel count --config=experiments/gpt3.py:175b

300B tokens each, so bring data: --config.data.name=..., or a shorter horizon with --config.train.tokens=...
"""

from bigmodel import budget, config, models, recipes

TOKENS = 300_000_000_000


def get_config(size="125m"):
    cfg = budget.base("decoder", "text")
    _, row = models.published(f"gpt3-{size}")
    cfg.model.update(row["model"])
    cfg.data.name = "prose-gpt2"
    cfg.data.seq_len = cfg.model.seq_len
    cfg.train.tokens = TOKENS
    printed = float(row["printed"][:-1]) * {"M": 1e6, "B": 1e9}[row["printed"][-1]]
    tuning = recipes.get("gpt3").of(printed, TOKENS)
    config.override_all(cfg, tuning.overrides(TOKENS, cfg.data.seq_len).items())
    # The table's 0.5M, 1M, 2M and 3.2M tokens by whole multiples of 256 sequences, which meshes divide.
    cfg.train.batch_size = 256 * round(cfg.train.batch_size / 256)
    cfg.model.dtype = "bfloat16"
    cfg.run.checkpoint_every = 1000
    return cfg
