"""Cross-validation: five folds of scikit-learn's digits, each held out once, for MLPs of three widths with and without
batch norm.

bigmodel sweep run sweeps/folds.py && bigmodel report sweeps/folds.py
"""

from analyses import settings

from bigmodel import sweep

CONFIG = "experiments/digits.py"
LAW = None  # settings are compared


def get_sweep():
    rows = sweep.product(sweep.ladder("mlp", widths=[16, 32, 64], depths=[2]), {"model.norm": ["none", "batchnorm"]})
    return sweep.product(rows, {"data.folds": [5], "data.fold": range(5)})


def report(folder, out):
    return settings.report(folder, out)
