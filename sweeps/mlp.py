"""A law of MLPs on Fashion-MNIST: 4 widths x 2 depths x 3 amounts of images.

    bigmodel prepare fashion-mnist
    bigmodel sweep run sweeps/mlp.py && bigmodel report sweeps/mlp.py

D is the number of different images, each seen five times: a law of data says what new ones are worth.
"""

from bigmodel import sweep

CONFIG = "experiments/fashion.py"


def get_sweep():
    shapes = sweep.ladder("mlp", widths=[16, 32, 64, 128], depths=[1, 2])
    return sweep.product(
        shapes,
        sweep.zip_(
            {"data.examples": [3_000, 10_000, 30_000], "train.tokens": [15_000, 50_000, 150_000]},
        ),
    )
