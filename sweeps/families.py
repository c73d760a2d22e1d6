"""Five families on one corpus and the same budgets: a law, a frontier and a held-out error each.

    bigmodel prepare prose --out=data/prose-bytes
    bigmodel sweep run sweeps/families.py && bigmodel report sweeps/families.py

Decoder, LSTM and RNN predict each byte; the encoder-decoder the second half of a window from its first; BERT what was
masked. The batch grows as the root of the tokens (sweeps/gpt_isoflop.py); one rate serves all: muP carries the
Transformers' over widths; the recurrent ones' isn't tuned yet.
"""

from bigmodel import recipes, sweep
from bigmodel.scaling import families

CONFIG = "experiments/prose.py"
LAW = None  # one for each family
DEPTH = 2
BUDGETS = (3e10, 1e11, 3e11, 9e11)
WIDTHS = {  # of the least budget; sizes grow as the root of the compute
    "prose": (8, 12, 16, 24),
    "bert": (8, 12, 16, 24),
    "encdec": (8, 12, 16, 24),
    "lstm": (8, 12, 16, 24),
    "rnn": (12, 16, 24, 32),
}


def tuned(n, d):
    batch = 2 * (d / 819_200) ** 0.5
    return recipes.Tuning(lr=0.008, batch=128 * batch, b2=0.99, warmup=0.1 * d)


RECIPE = recipes.Recipe("prose", "sweeps/tuning.py", tuned)


def get_sweep():
    rows = []
    for name, widths in WIDTHS.items():
        family = {"prose": "decoder", "bert": "bert", "encdec": "encdec"}.get(name, "recurrent")
        own = {"experiment": f"experiments/{'lstm' if family == 'recurrent' else name}.py"}
        own |= {"model.cell": name} if family == "recurrent" else {}
        for i, flops in enumerate(BUDGETS):
            grown = [4 * round(w * 1.32**i / 4) for w in widths]
            rows += [{**own, **row, "train.flops": flops} for row in sweep.ladder(family, grown, [DEPTH])]
    return rows


def label(config):
    return config["model"]["cell"] if config["family"] == "recurrent" else config["family"]


def report(folder, out):
    return families.report(folder, out, label)
