"""A Vision Transformer on Fashion-MNIST, or another folder of labelled pictures (`bigmodel prepare`).

bigmodel prepare fashion-mnist
bigmodel train --config=experiments/vit.py
bigmodel train --config=experiments/vit.py:light1       with AugReg's augmentation of that name
"""

from bigmodel import budget
from bigmodel.data import augmentation


def get_config(level="none"):
    config = budget.base("vit", "images")
    config.data.flat = False
    config.data.crop = 2
    config.data.flip = True
    layers, config.data.randaugment_magnitude, config.model.mixup = augmentation.LEVELS[level]
    config.data.randaugment_layers = layers
    config.model.width = 64
    config.model.depth = 6
    config.model.num_heads = 4
    config.model.patch = 4
    config.model.pool = "mean"
    config.model.position = "sincos2d"
    config.optim.lr = 2e-3
    config.optim.weight_decay = 0.05
    config.optim.b2 = 0.99
    config.optim.warmup = 0.1
    config.train.batch_size = 128
    config.train.tokens = 385_000
    return config
