"""A GPT on English news, width x depth x data: a scaling law in minutes on two cores.

bigmodel prepare news
bigmodel sweep run sweeps/demo.py && bigmodel report sweeps/demo.py
"""

from bigmodel import sweep

CONFIG = "experiments/gpt.py"


def get_sweep():
    shapes = sweep.ladder("decoder", widths=[32, 64, 96], depths=[2, 4])
    return sweep.product({"train.tokens": [200_000, 800_000]}, shapes)
