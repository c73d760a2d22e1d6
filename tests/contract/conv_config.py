"""The family of conv.py on digits."""

from pathlib import Path

from bigmodel import budget

HERE = Path(__file__).parent


def get_config(seed="0"):
    config = budget.base(str(HERE / "conv.py"), str(HERE / "halves.py"))
    config.model.depth = 1
    config.model.width = 4
    config.optim.lr = 0.02
    config.train.seed = int(seed)
    config.train.batch_size = 64
    config.train.steps = 12
    config.run.wandb = "off"
    return config
