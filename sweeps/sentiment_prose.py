"""What is a pretraining of 6M tokens of prose worth? Movie reviews' sentences by a small BERT, with it and without.

    bigmodel prepare prose --tokenizer=bpe --out=data/prose-bpe
    bigmodel prepare movie-reviews --tokenizer=data/prose-bpe/tokenizer.json --out=data/movie-reviews
    bigmodel sweep run sweeps/sentiment_prose.py && bigmodel report sweeps/sentiment_prose.py

The pretraining is the first row, and the others wait for it.
"""

from analyses import pretraining

CONFIG = "experiments/sentiment.py:prose"
START = "experiments/sentiment.py:pretrain"
LAW = None  # accuracies are compared, at several sizes of one model's data
SEEN = {125: 2_000, 500: 4_000, 2000: 10_000}  # unique examples: all that are seen


def get_sweep():
    return [
        {**start, "data.examples": examples, "train.tokens": seen, "train.seed": seed}
        for start in ({"start": START}, {})
        for examples, seen in SEEN.items()
        for seed in range(3)
    ]


def report(folder, out):
    return pretraining.report(folder, out)
