"""A small Inception v1 with batch norm on Fashion-MNIST, or another folder of labelled pictures (`bigmodel prepare`).

bigmodel prepare fashion-mnist
bigmodel train --config=experiments/inception.py
bigmodel count inception-v3
"""

from bigmodel import budget


def get_config():
    config = budget.base("inception", "images")
    config.data.flat = False
    config.data.crop = 2
    config.data.flip = True
    config.model.width = 8
    config.model.depth = 3
    config.model.stem = "small"
    config.model.norm = "batchnorm"
    config.model.dropout = 0.0
    config.optim.lr = 3e-3
    config.optim.weight_decay = 0.01
    config.train.batch_size = 128
    config.train.tokens = 385_000
    return config
