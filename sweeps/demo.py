"""A GPT on English news: width x depth x data, a scaling law in minutes on two cores.

    bigmodel prepare news --out=data/news-bytes
    bigmodel sweep run sweeps/demo.py && bigmodel report sweeps/demo.py

18 runs over 3 widths, 2 depths and 3 data sizes; docs/results.md has what came out.
"""

from bigmodel import sweep

CONFIG = "experiments/gpt.py"


def get_sweep():
    shapes = sweep.ladder("decoder", widths=[32, 64, 96], depths=[2, 4])
    for shape in shapes:
        # The best rate of Muon falls as 1 / width: 0.04, 0.02, 0.01 at 32, 64, 96 among factors of two.
        shape["optim.lr"] = round(1.0 / shape["model.width"], 4)
    return sweep.product({"train.tokens": [100_000, 300_000, 900_000]}, shapes)
