"""An MLP on Fashion-MNIST's 55,000 images of clothes.

bigmodel prepare fashion-mnist
bigmodel train --config=experiments/fashion.py
bigmodel evaluate runs/<run id>
"""

from bigmodel import budget


def get_config():
    config = budget.base("mlp", "images")
    config.model.width = 256
    config.model.depth = 2
    config.optim.lr = 1e-3
    config.optim.weight_decay = 0.01
    config.train.batch_size = 128
    config.train.tokens = 550_000
    return config
