"""An LSTM on 44 MB of English prose, byte by byte.

    bigmodel prepare prose --out=data/prose-bytes
    bigmodel train --config=experiments/lstm.py --config.model.width=128

`--config.model.cell=rnn` is Elman's; `--config.model.carry=True` hands the state from window to window.
"""

from bigmodel import budget


def get_config():
    config = budget.base("recurrent", "text")
    config.model.width = 128
    config.model.depth = 2
    config.data.name = "prose-bytes"
    config.data.seq_len = 128
    config.optim.lr = 0.016  # by sweeps/transfer_recurrent.py, for width 128
    config.optim.b2 = 0.99
    config.optim.weight_decay = 0.0
    config.train.batch_size = 8
    config.train.tokens = 1_000_000
    config.train.eval_examples = 512
    return config
