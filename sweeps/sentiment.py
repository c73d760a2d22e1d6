"""What is pretraining worth? Movie reviews' sentences by a BERT of published weights, and by the same from scratch.

    bigmodel prepare minilm --out=data/minilm
    bigmodel prepare movie-reviews --tokenizer=data/minilm/tokenizer.json --out=data/movie-reviews-minilm
    bigmodel sweep run sweeps/sentiment.py && bigmodel report sweeps/sentiment.py

Five sizes of the training set, three seeds; from scratch two larger ones too, to see what pretraining is worth in
sentences: those six runs are hours of a CPU and minutes of a GPU. sweeps/sentiment_prose.py asks the same of a
pretraining of our own.
"""

from analyses import pretraining

CONFIG = "experiments/sentiment.py"
LAW = None  # accuracies are compared, at several sizes of one model's data
STARTS = (
    {"train.init_from": "data/minilm/model.safetensors", "optim.lr": 1e-4},
    {"optim.lr": 4e-4},
)
SEEN = {32: 480, 64: 640, 125: 800, 250: 1000, 500: 1200}  # unique examples: all that are seen
LARGER = {1000: 4_000, 2000: 8_000}


def get_sweep():
    return [
        {**start, "data.examples": examples, "train.tokens": seen, "train.seed": seed}
        for start, sizes in zip(STARTS, (SEEN, {**SEEN, **LARGER}), strict=True)
        for examples, seen in sizes.items()
        for seed in range(3)
    ]


def report(folder, out):
    return pretraining.report(folder, out)
