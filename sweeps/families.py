"""Five families on one corpus and the same budgets: a law, a frontier and a held-out error each.

    bigmodel prepare prose --out=data/prose-bytes
    bigmodel sweep run sweeps/families.py && bigmodel report sweeps/families.py

Decoder, LSTM and RNN predict each byte; the encoder-decoder the second half of a window from its first; BERT what was
masked. The batch grows as the root of the tokens and heads are of 8 (sweeps/gpt_isoflop.py); muP carries one rate over
the Transformers' widths, and the recurrent ones' are those of sweeps/transfer_recurrent.py.
"""

from analyses import families

from bigmodel import recipes, sweep

CONFIG = "experiments/prose.py"
LAW = None  # one for each family
DEPTH = 2
# Sizes grow as the root of the compute; of the large budgets the smallest, which take the most steps, are left out.
WIDTHS = {3e10: (8, 16, 24, 32), 1e11: (8, 24, 32, 40), 3e11: (24, 40, 56), 9e11: (40, 56, 72)}
RATES = {"lstm": (0.03, 0.5), "rnn": (0.02, 1.0)}  # at width 32, and how they fall with it
EXPERIMENTS = {"prose": "decoder", "bert": "bert", "encdec": "encdec", "lstm": "recurrent", "rnn": "recurrent"}


def tuned(n, d):
    batch = 2 * (d / 819_200) ** 0.5
    return recipes.Tuning(lr=0.008, batch=128 * batch, b2=0.99, warmup=0.1 * d)


RECIPE = recipes.Recipe("prose", "sweeps/tuning.py", tuned)


def get_sweep():
    rows = []
    for name, family in EXPERIMENTS.items():
        own = {"experiment": f"experiments/{name}.py", "model.base_num_heads": 4}
        if family == "recurrent":
            own = {"experiment": "experiments/lstm.py", "model.cell": name}
        for flops, widths in WIDTHS.items():
            for row in sweep.ladder(family, list(widths), [DEPTH]):
                if family == "recurrent":
                    rate, power = RATES[name]
                    row["optim.lr"] = float(f"{rate * (32 / row['model.width']) ** power:.3g}")
                else:
                    row["model.num_heads"] = row["model.width"] // 8
                rows.append({**own, **row, "train.flops": flops})
    return rows


def label(config):
    return config["model"]["cell"] if config["family"] == "recurrent" else config["family"]


def report(folder, out):
    return families.report(folder, out, label)
