"""A GPT on English news: width x depth x data, a scaling law in minutes on two cores.

    bigmodel prepare news --out=data/news-bytes
    bigmodel sweep run sweeps/demo.py && bigmodel report sweeps/demo.py

Nine sizes, each trained once at a constant rate, with decays that branch off at 1/8, 1/4 and 1/2 of the tokens: 36
points of N and D for the price of 12 runs. Models this small show no floor of the loss yet, so the law is that of
Kaplan et al. 2020, which has none. docs/results.md has what came out.
"""

from bigmodel import sweep

CONFIG = "experiments/gpt.py:branches"
LAW = "kaplan_nd"


def get_sweep():
    wide = sweep.ladder("decoder", widths=[16, 24, 32, 48, 64, 96], depths=[2])
    deep = sweep.ladder("decoder", widths=[32, 48, 64], depths=[4])
    for shape in (*wide, *deep):
        # The best rate of Muon falls as 1 / width: 0.04, 0.02, 0.01 at 32, 64, 96 among factors of two.
        shape["optim.lr"] = round(1.0 / shape["model.width"], 4)
    return sweep.chain(wide, deep)
