"""What is pretraining worth? Sentences of movie reviews by a BERT from scratch, and by one that read prose before.

    bigmodel prepare prose --tokenizer=bpe --out=data/prose-bpe
    bigmodel prepare movie-reviews --tokenizer=data/prose-bpe/tokenizer.json --out=data/movie-reviews
    bigmodel sweep run sweeps/sentiment.py && bigmodel report sweeps/sentiment.py

Five sizes of the training set, three seeds; the pretraining is the first row.
"""

from bigmodel.scaling import pretraining

CONFIG = "experiments/sentiment.py"
START = "experiments/sentiment.py:pretrain"
LAW = None  # accuracies are compared, at several sizes of one model's data
SEEN = {125: 2_000, 500: 4_000, 1000: 6_000, 2000: 10_000, 8000: 24_000}  # unique examples: all that are seen


def get_sweep():
    return [
        {**start, "data.examples": examples, "train.tokens": seen, "train.seed": seed}
        for start in ({"start": START}, {})
        for examples, seen in SEEN.items()
        for seed in range(3)
    ]


def report(folder, out):
    return pretraining.report(folder, out)
