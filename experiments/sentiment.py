"""Sentences of movie reviews, negative or positive: a BERT from scratch, or fine-tuned from one that read prose.

    bigmodel prepare prose --tokenizer=bpe --out=data/prose-bpe
    bigmodel prepare movie-reviews --tokenizer=data/prose-bpe/tokenizer.json --out=data/movie-reviews
    bigmodel train --config=experiments/sentiment.py:pretrain
    bigmodel train --config=experiments/sentiment.py --config.train.init_from=runs/<its id>
    bigmodel evaluate runs/<run id>

The encoder and its table are taken from the run that is named; the head starts afresh. Without a name all does.
"""

from bigmodel import budget

ENCODER = "^(embed|blocks|norm)/"


def get_config(stage="finetune"):
    config = budget.base("bert", "text" if stage == "pretrain" else "tasks")
    config.model.width = 128
    config.model.depth = 2
    config.model.num_heads = 4
    config.model.segments = 0
    config.model.position = "rope"
    config.model.norm_placement = "pre"
    config.model.init_std = 0.0
    config.model.parametrization = "completep"
    config.model.base_width = 32
    config.model.base_depth = 2
    config.model.base_num_heads = 2
    config.data.seq_len = 64
    config.optim.b2 = 0.99
    config.train.batch_size = 16
    if stage == "pretrain":
        config.data.name = "prose-bpe"
        config.optim.lr = 0.008
        config.train.tokens = 6_000_000
        config.train.eval_examples = 1024
        return config
    config.model.objective = "classify"
    config.model.pool = "mean"
    config.model.pooler = False
    config.model.dropout = 0.1
    config.data.name = "movie-reviews"
    config.data.epochs = 100
    config.optim.lr = 0.004
    config.optim.warmup = 0.1
    config.train.tokens = 24_000
    config.train.init_only = ENCODER
    return config
