"""An encoder-decoder on 44 MB of English prose, byte by byte: the second half of each window from its first.

    bigmodel prepare prose --out=data/prose-bytes
    bigmodel train --config=experiments/encdec.py --config.model.width=128 --config.model.num_heads=4

`--config.model.objective=span` is T5's: spans that were cut out are predicted.
"""

from bigmodel import budget


def get_config():
    config = budget.base("encdec", "text")
    config.model.width = 64
    config.model.depth = 2
    config.model.num_heads = 4
    config.model.objective = "prefix"
    config.model.smoothing = 0.0
    config.model.dropout = 0.0
    config.model.position = "rope"
    config.model.norm_placement = "pre"
    config.model.activation = "gelu_tanh"
    config.model.tied_head = False
    config.model.scale_embed = False
    config.model.init_std = 0.0
    config.model.parametrization = "completep"
    config.model.base_width = 32
    config.model.base_depth = 2
    config.model.base_num_heads = 2
    config.data.name = "prose-bytes"
    config.data.seq_len = 128
    config.optim.lr = 0.008
    config.optim.b2 = 0.99
    config.train.batch_size = 8
    config.train.tokens = 1_000_000
    config.train.eval_examples = 512
    return config
