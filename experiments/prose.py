"""A GPT on 44 MB of English prose, byte by byte: muP in width, CompleteP in depth, so that one rate serves all shapes.

    bigmodel prepare prose --out=data/prose-bytes
    bigmodel train --config=experiments/prose.py --config.model.width=128 --config.model.num_heads=4

The base shape is width 32, depth 2; the learning rate is the best there, and stays so: sweeps/transfer_width.py.
"""

from bigmodel import budget


def get_config():
    config = budget.base("decoder", "text")
    config.model.width = 64
    config.model.depth = 2
    config.model.num_heads = 4
    config.model.position = "rope"
    config.model.tied_head = False  # tied, width 128 reaches 2.27 under muP at the base's best rate, and 2.07 so
    config.model.init_std = 0.0
    config.model.parametrization = "completep"
    config.model.base_width = 32
    config.model.base_depth = 2
    config.model.base_num_heads = 2
    config.data.name = "prose-bytes"
    config.data.seq_len = 128
    config.optim.lr = (
        0.018  # 400k tokens: 2.3286, 2.3206, 2.3323 at 0.01, 0.02, 0.04; 3.2M: 1.7935, 1.7853 at 0.01, 0.02
    )
    config.optim.weight_decay = 0.1
    config.train.batch_size = 8
    config.train.tokens = 1_000_000
    config.train.eval_examples = 512
    return config
