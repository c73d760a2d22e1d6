"""Sentences of movie reviews, negative or positive: a BERT from scratch, or fine-tuned from one that has read before.

    bigmodel prepare minilm --out=data/minilm
    bigmodel prepare movie-reviews --tokenizer=data/minilm/tokenizer.json --out=data/movie-reviews-minilm
    bigmodel train --config=experiments/sentiment.py --config.train.init_from=data/minilm/model.safetensors
    bigmodel evaluate runs/<run id>

With `--config.train.lora_rank=8 --config.optim.lr=0.004` only adapters of rank 8 and the head learn (sweeps/lora.py).

Without `init_from` the same model starts afresh. Or pretrain one yourself, on 44 MB of prose:

    bigmodel prepare prose --tokenizer=bpe --out=data/prose-bpe
    bigmodel prepare movie-reviews --tokenizer=data/prose-bpe/tokenizer.json --out=data/movie-reviews
    bigmodel train --config=experiments/sentiment.py:pretrain
    bigmodel train --config=experiments/sentiment.py:prose --config.train.init_from=runs/<its id>

The head always starts afresh. `:zh` and `:zh_pretrain` are the same in Chinese, shop reviews and the People's Daily:

    bigmodel prepare chinese-news --tokenizer=bpe --out=data/chinese-bpe
    bigmodel prepare reviews-zh --tokenizer=data/chinese-bpe/tokenizer.json --out=data/reviews-zh
    bigmodel train --config=experiments/sentiment.py:zh
"""

from bigmodel import budget

ENCODER = "^(embed|blocks|norm)/"
TEXTS = {"pretrain": ("prose-bpe", 1), "zh_pretrain": ("chinese-bpe", 5)}  # and how often each token may be seen
TASKS = {"minilm": "movie-reviews-minilm", "prose": "movie-reviews", "zh": "reviews-zh"}


def get_config(stage="minilm"):
    config = budget.base("bert", "text" if stage in TEXTS else "tasks")
    config.data.seq_len = 64
    config.train.batch_size = 16
    if stage == "minilm":
        config.data.seq_len = 40  # nine in ten sentences are as short
        # Wang et al. 2020, arXiv:2002.10957: 6 layers of width 384, BERT's vocabulary and positions.
        config.model.update(dict(width=384, depth=6, num_heads=12, cls_token=101, sep_token=102, mask_token=103))
    else:
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
        config.optim.b2 = 0.99
    if stage in TEXTS:
        config.data.name, config.data.epochs = TEXTS[stage]
        config.optim.lr = 0.008
        config.train.tokens = 6_000_000
        config.train.eval_examples = 1024
        return config
    config.model.objective = "classify"
    config.model.pool = "mean"
    config.model.pooler = False
    config.model.dropout = 0.1
    config.data.name = TASKS[stage]
    config.data.epochs = 100
    config.optim.lr = 1e-4 if stage == "minilm" else 0.003
    config.optim.warmup = 0.1
    config.train.tokens = 70_000 if stage == "zh" else 2_000  # of the movie reviews a small part is the point
    config.train.eval_examples = 500 if stage == "minilm" else 0
    config.train.init_only = ENCODER
    return config
