"""Vaswani et al. 2017's recipe (section 5): Adam, inverse square root of the step after 4,000 steps of warm-up, label
smoothing and dropout of 0.1; by name any row of their Table 3, as `:transformer-big`.

    bigmodel prepare help-en-de --tokenizer=bpe --out=data/help-en-de-bpe
    bigmodel train --config=experiments/vaswani.py:transformer-n2

Their batches held 25,000 tokens of each side, 100,000 times for the base, on eight GPUs. experiments/translate.py is
what two cores can train.
"""

from bigmodel import budget, models

WARMUP, STEPS = 4_000, 100_000


def get_config(name="transformer-base"):
    config = budget.base("encdec", "tasks")
    shape = models.published(name)[1]["model"]
    config.model.update({k: v for k, v in shape.items() if k not in ("vocab_size", "seq_len")})  # the data's
    config.data.name = "help-en-de-bpe"
    config.data.seq_len = 40
    config.data.epochs = 10_000
    config.optim.name = "adamw"
    config.optim.weight_decay = 0.0
    config.optim.clip = 0.0
    config.optim.b2 = 0.98
    config.optim.eps = 1e-9
    config.optim.schedule = "rsqrt"
    config.optim.lr = (config.model.width * WARMUP) ** -0.5  # their rate where the warm-up ends
    config.optim.warmup = WARMUP / STEPS
    config.train.batch_size = 768
    config.train.steps = STEPS
    config.run.eval_every = 1000
    return config
