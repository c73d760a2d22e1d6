"""A discrete autoencoder of pictures: 64 x 64 pixels <-> 16 x 16 codes, by a codebook of moving averages.

bigmodel prepare captioned --tokenizer=bpe
bigmodel train --config=experiments/dvae.py
bigmodel evaluate runs/<run id> --split=test
bigmodel train --config=experiments/dvae.py:gumbel       the relaxation of DALL-E's paper in its place
"""

from bigmodel import budget


def get_config(quantizer="vq"):
    config = budget.base("dvae", "captions")
    config.data.text = False
    config.data.flip = True
    config.model.width = 32
    config.model.depth = 1
    config.model.num_groups = 3
    config.model.num_codes = 1024
    config.model.code_width = 64
    config.model.quantizer = quantizer
    config.model.codebook_decay = 0.95
    config.model.temperature_steps = 10_000
    config.model.kl_steps = 500
    config.optim.name = "muon"
    config.optim.lr = 0.01
    config.optim.momentum = 0.95
    config.optim.weight_decay = 1e-4
    config.train.batch_size = 8
    config.train.tokens = 100_000  # 14 passes over 7,364 pictures
    return config
