"""A discrete VAE of emoji: 64 x 64 pixels <-> 16 x 16 codes.

bigmodel prepare emoji-64
bigmodel train --config=experiments/dvae.py
bigmodel evaluate runs/<run id> --split=test
"""

from bigmodel import budget


def get_config():
    config = budget.base("dvae", "images")
    config.data.name = "emoji-64"
    config.data.flat = False
    config.data.flip = True
    config.data.epochs = 1000
    config.model.width = 32
    config.model.depth = 1
    config.model.num_groups = 3
    config.model.num_codes = 512
    config.model.code_width = 64
    config.model.temperature_steps = 2000
    config.model.kl_weight = 0.0
    config.model.kl_steps = 0
    config.optim.lr = 2e-3
    config.optim.weight_decay = 1e-4
    config.train.batch_size = 16
    config.train.steps = 3000
    return config
