"""The family of pairs.py on digits."""

from pathlib import Path

from bigmodel import budget

HERE = Path(__file__).parent


def get_config(seed="0"):
    config = budget.base(str(HERE / "pairs.py"), str(HERE / "halves.py"))
    config.model.width = 4
    config.optim.groups = (("^left/trunk/stem", "frozen=true"), ("^log_scale", "lr_factor=0.1", "weight_decay=0"))
    config.optim.lr = 0.02
    config.train.seed = int(seed)
    config.train.batch_size = 64
    config.train.steps = 12
    config.run.wandb = "off"
    return config
