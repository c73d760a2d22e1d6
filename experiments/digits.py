"""An MLP on scikit-learn's digits: the smallest experiment, no download.

bigmodel train --config=experiments/digits.py
"""

from bigmodel import budget


def get_config():
    config = budget.base("mlp", "tables")
    config.model.width = 64
    config.model.depth = 2
    config.optim.lr = 3e-3
    config.optim.weight_decay = 0.01
    config.train.batch_size = 64
    config.train.tokens = 60_000
    config.run.checkpoint_every = 0
    return config
