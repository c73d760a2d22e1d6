"""A GPT on Chinese: news, shop reviews and software help, 3 million tokens, each seen three times.

    bigmodel prepare prose-zh --tokenizer=bpe --out=data/prose-zh-bpe
    bigmodel train --config=experiments/chinese.py

The block is Llama's. Muon, since there is little to learn from: after 400k tokens AdamW (rate 0.004) is at 6.69 nats a
token, Muon at 6.10, 6.08, 6.33 (rates 0.0075, 0.015, 0.03), and at 6.18 with 16 windows a step instead of 8.
"""

from bigmodel import budget


def get_config():
    config = budget.base("decoder", "text")
    config.model.width = 192
    config.model.depth = 4
    config.model.num_heads = 6
    config.model.position = "rope"
    config.model.norm = "rmsnorm"
    config.model.activation = "swiglu"
    config.model.ffn = 512
    config.model.bias = False
    config.model.attention_bias = False
    config.model.init_std = 0.0
    config.data.name = "prose-zh-bpe"
    config.data.seq_len = 256
    config.data.epochs = 10
    config.optim.name = "muon"
    config.optim.momentum = 0.95
    config.optim.lr = 0.012
    config.optim.final_lr = 0.0
    config.train.batch_size = 8
    config.train.tokens = 9_000_000
    return config
