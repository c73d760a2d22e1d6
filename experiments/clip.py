"""CLIP on emoji and stamps with English and Chinese captions, or on pictures with captions of one's own.

bigmodel prepare captioned --tokenizer=bpe
bigmodel train --config=experiments/clip.py
bigmodel evaluate runs/<run id> --split=validation      new captions of concepts that it has seen; test: new concepts
"""

from bigmodel import budget


def get_config():
    config = budget.base("clip", "captions")
    config.data.seq_len = 24
    config.data.crop = 4
    config.model.width = 128
    config.model.depth = 3
    config.model.num_heads = 4
    config.model.embed = 128
    config.model.vision.width = 128
    config.model.vision.depth = 4
    config.model.vision.num_heads = 4
    config.model.vision.patch = 16
    config.optim.lr = 1e-3
    config.optim.b2 = 0.98
    config.optim.weight_decay = 0.2
    config.optim.warmup = 0.05
    config.train.batch_size = 256
    config.train.tokens = 400_000  # about 15 passes over 26,507 pairs
    return config
