"""Width x depth x data of an MLP on scikit-learn's digits: the law on a classifier, in a minute.

bigmodel sweep run sweeps/digits.py && bigmodel report sweeps/digits.py
"""

from bigmodel import sweep

CONFIG = "experiments/digits.py"


def get_sweep():
    shapes = sweep.ladder("mlp", widths=[8, 16, 32, 64], depths=[1, 2])
    # New images, not more passes: D is the number of unique ones, each seen 20 times.
    return [
        {**shape, "data.examples": n, "train.tokens": 20 * n, "data.epochs": 21, "train.batch_size": 32}
        for n in (160, 480, 1437)
        for shape in shapes
    ]
