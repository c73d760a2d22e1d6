"""A byte-level GPT that has read prose, adapted to the definitions of WordNet; and the same from scratch.

    bigmodel prepare prose --out=data/prose-bytes && bigmodel prepare wordnet --out=data/wordnet-bytes
    bigmodel train --config=experiments/adapt.py:pretrain-48
    bigmodel train --config=experiments/adapt.py:48 --config.train.init_from=runs/<its id>

`:pretrain-WIDTH` or `:pretrain-WIDTH-SEED` reads 3 million bytes of prose, `:WIDTH` some of the definitions, PASSES
times. Without `init_from` it starts afresh. With `--config.train.lora_rank=8` only adapters of attention's query
and value projections learn. sweeps/adapt.py has the sizes.
"""

from bigmodel import budget

PASSES = 4


def get_config(stage="48"):
    pretrain = stage.startswith("pretrain-")
    width, _, seed = stage.removeprefix("pretrain-").partition("-")
    config = budget.base("decoder", "text")
    # As in experiments/prose.py: CompleteP from a base of width 32, whose rate serves all widths.
    shape = dict(width=int(width), depth=2, num_heads=max(1, int(width) // 12), position="rope", tied_head=False)
    scaling = dict(init_std=0.0, parametrization="completep", base_width=32, base_depth=2, base_num_heads=2)
    config.model.update({**shape, **scaling})
    config.data.name = "prose-bytes" if pretrain else "wordnet-bytes"
    config.data.seq_len = 128
    config.optim.lr = 0.018 if pretrain else 0.01
    config.train.batch_size = 8
    config.train.eval_examples = 512
    config.train.seed = int(seed or 0)
    config.run.wandb = "off"
    if pretrain:
        config.train.tokens = 3_000_000
        return config
    config.data.examples = 256
    config.data.epochs = PASSES
    config.train.tokens = PASSES * config.data.examples * config.data.seq_len
    return config
