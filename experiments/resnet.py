"""A residual network on Fashion-MNIST, or another folder of labelled pictures (`bigmodel prepare`).

bigmodel prepare fashion-mnist
bigmodel train --config=experiments/resnet.py
bigmodel evaluate runs/<run id> --split=test
bigmodel train --config=experiments/resnet.py --config.data.name=my-pictures --config.train.tokens=100_000
"""

from bigmodel import budget


def get_config():
    config = budget.base("resnet", "images")
    config.data.flat = False
    config.data.crop = 2
    config.data.flip = True
    config.model.width = 16
    config.model.depth = 3
    config.model.num_stages = 3
    config.model.stem = "small"
    config.model.zero_scale = True
    config.optim.name = "sgd"
    config.optim.nesterov = True
    config.optim.lr = 0.1
    config.optim.lr_batch = 128
    config.optim.final_lr = 0.0
    config.optim.warmup = 0.05
    config.optim.weight_decay = 5e-4
    config.train.batch_size = 128
    config.train.tokens = 550_000  # 10 passes over 55,000 pictures
    return config
