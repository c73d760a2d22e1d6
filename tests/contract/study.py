"""A sweep outside the package: families, a source and a maker of the user's own."""

CONFIG = "conv_config.py"
TWO = [("conv_config.py", "trunk/", "left/trunk/"), ("conv_config.py:1", "trunk/", "right/trunk/")]


def get_sweep():
    return [
        {"model.width": 8},
        {"experiment": "players_config.py"},
        {"experiment": "pairs_config.py", "start": TWO},
        {"derive": ("conv_config.py", "codes.py"), "train.seed": 2},
    ]
