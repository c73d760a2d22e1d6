"""A budget three times beyond the largest of sweeps/gpt_isoflop.py: what its rule foretells of runs made after it.

    bigmodel sweep run sweeps/gpt_isoflop_beyond.py && bigmodel report sweeps/gpt_isoflop_beyond.py

Five runs of 2.7e13 FLOPs: hours of a CPU, minutes of a GPU. The rows below are that sweep's, from docs/studies: all
five budgets, and, as that study had it, four of them over 30x.
"""

from pathlib import Path

import gpt_isoflop as study
from analyses import heldout

CONFIG, RECIPE = study.CONFIG, study.RECIPE
LAW = None  # five runs have none of their own
BELOW = Path(__file__).parents[1] / "docs/studies/gpt_isoflop_heads.csv"


def get_sweep():
    return study.rows(2.7e13, [56, 80, 112, 160, 224], seeds=1)


def report(folder, out):
    parts = {"from 1e11 FLOPs": ("all", 0.0), "from 3e11 FLOPs": ("four", 2e11)}
    return "\n".join(
        f"{name}: {heldout.report(folder, Path(out) / part, BELOW, least)}" for name, (part, least) in parts.items()
    )
