"""How much of its context does a family use? Decoders and LSTMs on windows of 512 bytes, three seeds (Kaplan's Fig. 7).

bigmodel prepare prose --out=data/prose-bytes
bigmodel sweep run sweeps/context.py && bigmodel report sweeps/context.py
bigmodel paper kaplan2020-fig7
"""

from pathlib import Path

import pandas as pd

from bigmodel import evaluate, sweep
from bigmodel.laws import context, sources
from bigmodel.laws.figures import transfer

CONFIG = "experiments/prose.py"
LAW = None  # curves by position are compared, not sizes against data
WIDTHS = {"prose": (64,), "lstm": (76,)}  # about as many parameters


def get_sweep():
    rows = []
    for name, widths in WIDTHS.items():
        family = "decoder" if name == "prose" else "recurrent"
        for row in sweep.ladder(family, widths=list(widths), depths=[2]):
            # The decoder's rate is muP's; an LSTM's falls with its width (sweeps/transfer_recurrent.py).
            rate = {} if name == "prose" else {"optim.lr": round(0.03 * (32 / row["model.width"]) ** 0.5, 4)}
            rows.append({"experiment": f"experiments/{name}.py", **row, **rate})
    long = {"data.seq_len": [512], "train.tokens": [2_000_000], "train.batch_size": [8], "train.eval_examples": [1024]}
    return sweep.product(rows, {**long, "optim.warmup": [0.1], "train.seed": [0, 1, 2]})


def report(folder, out):
    frames = []
    for result, config in sources.runs(folder):
        if result["status"] != "done":
            continue
        run = evaluate.restore(f"{folder}/{result['run_id']}")
        loss = evaluate.by_position(run, "validation", config["train"]["eval_examples"])
        name = "lstm" if config["family"] == "recurrent" else "decoder"
        own = {"run_id": result["run_id"], "family": name, "params": result["params_nonembedding"]}
        own |= {"seed": result["seed"], "position": range(1, len(loss) + 1), "loss": loss}
        frames.append(pd.DataFrame(own))
    return write(pd.concat(frames), out)


def write(frame, out):
    """Writes by_position.csv and by_position.png, .svg, .pdf; returns lines of text."""
    home = Path(out)
    home.mkdir(parents=True, exist_ok=True)
    frame.to_csv(home / "by_position.csv", index=False, float_format="%.5g")
    drawn = transfer.write(context.figure, home / "by_position", frame)
    lines = [
        f"{r['family']:>10} {r['params']:>10,} parameters, {r['seeds']} seeds: flat from {r['flat']:.0f} "
        f"({r['flat_range'][0]}-{r['flat_range'][1]}); positions after 100 gain {r['gain']:.2%} of the loss "
        f"(deviation {r['gain_deviation']:.2%}); loss {r['loss']:.4f}"
        for r in context.table(frame)
    ]
    return "\n".join([*lines, f"figure: {drawn}"])
