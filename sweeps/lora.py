"""Adapters against fine-tuning whole: movie reviews' sentences by MiniLM's weights.

    bigmodel prepare minilm --out=data/minilm
    bigmodel prepare movie-reviews --tokenizer=data/minilm/tokenizer.json --out=data/movie-reviews-minilm
    bigmodel sweep run sweeps/lora.py && bigmodel report sweeps/lora.py

500 sentences, seen twice: the whole model learns; or adapters of rank 8 of attention's queries and values, and the
head; or these with the frozen matrices in 4 bits; or the head alone. Seed 3 tries RATES, compared by accuracy on 500
sentences of validation. Seeds 0, 1, 2 have the best, in 4 bits that of rank 8, and are compared on the 1,044
sentences of test. A gain is the accuracy beyond the share of the larger class.
"""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from bigmodel.after import evaluate
from bigmodel.laws import sources

CONFIG = "experiments/sentiment.py"
LAW = None
START = {
    "train.init_from": "data/minilm/model.safetensors", "data.examples": 500, "train.tokens": 1000, "data.seq_len": 32,
}  # fmt: skip
WAYS = {
    "whole": {},
    "rank 8": {"train.lora_rank": 8},
    "rank 8, 4 bits": {"train.lora_rank": 8, "train.lora_bits": 4},
    "head": {"optim.groups": (("^(embed|blocks)/", "frozen=true"),)},
}
RATES = {"whole": (5e-5, 1e-4, 2e-4), "rank 8": (1e-3, 2e-3, 4e-3, 8e-3), "head": (3e-3, 1e-2, 3e-2)}
BEST = {"whole": 1e-4, "rank 8": 4e-3, "rank 8, 4 bits": 4e-3, "head": 3e-2}


def get_sweep():
    tried = [(way, lr, 3) for way, rates in RATES.items() for lr in rates]
    chosen = [(way, lr, seed) for seed in range(3) for way, lr in BEST.items()]
    return [{**START, **WAYS[way], "optim.lr": lr, "train.seed": seed} for way, lr, seed in tried + chosen]


def report(folder, out):
    """Writes lora.csv: one row per run, with its accuracy on validation and, of the seeds compared, on test."""
    rows = []
    for result, config in sources.runs(folder):
        way = "rank 8" if config["train"]["lora_rank"] else "head" if config["optim"]["groups"] else "whole"
        way += ", 4 bits" if config["train"].get("lora_bits") else ""
        row = {"way": way, "lr": result["lr"], "seed": result["seed"], "validation": result["eval_accuracy"]}
        row |= {"trainable": result.get("trainable", result["params"]), "params": result["params"]}
        if row["seed"] < 3:
            run = evaluate.restore(str(Path(folder) / result["run_id"]))
            log_p, true = evaluate.log_probabilities(run, "test")
            row |= {
                "test": np.mean(np.argmax(log_p, axis=1) == true),
                "majority": max(np.mean(true), 1 - np.mean(true)),
            }
        rows.append({**row, "run_id": result["run_id"]})
    frame = pd.DataFrame(rows).sort_values(["way", "seed", "lr"])
    home = Path(out)
    home.mkdir(parents=True, exist_ok=True)
    frame.to_csv(home / "lora.csv", index=False)
    tried, chosen = frame[frame.seed == 3], frame[frame.seed < 3]
    lines = [f"tried: {r.way}, rate {r.lr:g}: {r.validation:.1%} on validation" for r in tried.itertuples()]
    mean = chosen.groupby("way").test.agg(["mean", "std", "count"])
    base = chosen.majority.mean()
    for way, row in mean.iterrows():
        share = chosen[chosen.way == way].trainable.mean() / chosen.params.mean()
        gain = (row["mean"] - base) / (mean["mean"].get("whole", np.nan) - base)
        said = f"{way}: {row['mean']:.1%} on test (deviation {row['std']:.1%}, {row['count']:.0f} seeds)"
        lines.append(
            f"{said}, {gain:.1%} of whole's gain over {base:.1%}, {100 * share:.2g} % of the parameters trainable"
        )
    (home / "lora.json").write_text(json.dumps(lines, indent=1) + "\n")
    return "\n".join(lines)
