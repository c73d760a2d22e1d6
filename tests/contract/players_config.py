"""The family of players.py on digits."""

from pathlib import Path

from bigmodel import budget

HERE = Path(__file__).parent


def get_config(seed="0"):
    config = budget.base(str(HERE / "players.py"), str(HERE / "halves.py"))
    config.optim.groups = (("^critic/", "name=sgd", "lr_factor=5", "momentum=0.5"),)
    config.optim.lr = 0.02
    config.train.seed = int(seed)
    config.train.batch_size = 64
    config.train.steps = 12
    config.run.wandb = "off"
    return config
