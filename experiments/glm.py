"""A small GLM on English prose, byte by byte: blank infilling, RoPE, GeGLU, DeepNorm, as GLM-130B (Zeng et al. 2022).

    bigmodel prepare prose --out=data/prose-bytes
    bigmodel train --config=experiments/glm.py

The loss is of what blanks held, in nats per predicted byte: not comparable with a causal model's.
"""

from bigmodel import budget


def get_config():
    config = budget.base("decoder", "text")
    config.model.width = 64
    config.model.depth = 4
    config.model.num_heads = 4
    config.model.objective = "infill"
    config.model.position = "rope"
    config.model.activation = "geglu"
    config.model.norm_placement = "deepnorm"
    config.model.init_std = 0.0
    config.model.tied_head = False
    config.data.name = "prose-bytes"
    config.data.seq_len = 128
    config.optim.lr = 5e-3
    config.train.batch_size = 8
    config.train.tokens = 1_000_000
    config.train.eval_examples = 512
    return config
