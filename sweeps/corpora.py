"""Masked and causal language models of English prose and of Chinese news, byte by byte and by BPE.

    bigmodel prepare prose --out=data/prose-bytes && bigmodel prepare prose --tokenizer=bpe --out=data/prose-bpe
    bigmodel prepare chinese-news --out=data/chinese-bytes
    bigmodel prepare chinese-news --tokenizer=bpe --out=data/chinese-bpe
    bigmodel sweep run sweeps/corpora.py && bigmodel report sweeps/corpora.py

Each has three widths and is trained on four million bytes of text: a BPE token (4,096 of them) is 3.7 bytes of English
and 3.9 bytes of Chinese, which is 1.3 characters. The report compares losses per byte, because losses per token of
different tokenisers don't compare.
"""

from pathlib import Path

import pandas as pd

from bigmodel import sweep
from bigmodel.laws import sources
from bigmodel.laws.figures import style, transfer

CONFIG = "experiments/prose.py"
LAW = None  # one amount of text
TOKENS = {
    "prose-bytes": 4_000_000, "prose-bpe": 1_080_000, "chinese-bytes": 4_000_000, "chinese-bpe": 1_038_000
}  # fmt: skip
COLUMNS = ["family", "data", "width", "params", "tokens", "loss", "bits_per_byte", "accuracy", "seed", "run_id"]


def get_sweep():
    return [
        {
            "experiment": f"experiments/{experiment}.py", **row, "optim.lr": 0.008, "optim.b2": 0.99,
            "data.name": name, "train.tokens": tokens, "optim.warmup": 0.1,
        }
        for experiment, family in {"prose": "decoder", "bert": "bert"}.items()
        for name, tokens in TOKENS.items()
        for row in sweep.ladder(family, [32, 64, 128], [2])
    ]  # fmt: skip


def read(folder):
    """One row per finished run, with COLUMNS: loss in nats per predicted token, accuracy of predicted tokens.

    A masked run has no `bits_per_byte` of its own: each of its tokens counts as the mean number of bytes per token,
    taken from the causal runs of the same corpus; NaN without such runs.
    """
    rows = [
        {c: result.get("eval_accuracy" if c == "accuracy" else c) for c in COLUMNS}
        for result, config in sources.runs(folder)
        if result["status"] == "done" and config["data"]["source"] == "text"
    ]
    frame = pd.DataFrame(rows, columns=COLUMNS).sort_values(COLUMNS[:3]).reset_index(drop=True)
    own = frame.bits_per_byte.astype(float)
    bits_per_nat = (own / frame.loss).groupby(frame.data).transform("mean")
    return frame.assign(bits_per_byte=own.fillna(bits_per_nat * frame.loss))


def figure(frame):
    """Bits per byte against width: one panel per family, one curve per corpus."""
    families = sorted(frame.family.unique())
    names = sorted(frame.data.unique())
    fig, panels = style.PAGE.panels(len(families), height=3.2, squeeze=False)
    for axes, family in zip(panels, families, strict=True):
        for k, name in enumerate(names):
            here = frame[(frame.family == family) & (frame.data == name)].groupby("width").bits_per_byte.mean()
            axes.plot(
                here.index, here, color=style.CYCLE[k], marker=style.MARKERS[k], markersize=4, linewidth=1.2, label=name
            )
        style.log_axis(axes, "x", frame.width.min() / 1.2, frame.width.max() * 1.2)
        axes.set(title=family, xlabel="width", ylabel="held-out bits per byte")
    panels[0].legend()
    return fig


def report(folder, out):
    """Writes corpora.csv and corpora.png, .svg, .pdf; returns the table as lines of text."""
    frame = read(folder)
    if frame.empty:
        return "no finished runs on text yet"
    home = Path(out)
    home.mkdir(parents=True, exist_ok=True)
    frame.to_csv(home / "corpora.csv", index=False)
    drawn = transfer.write(figure, home / "corpora", frame)
    lines = [
        f"{r.family:<10} {r.data:<14} width {r.width:>4}, {r.tokens:>9,} tokens: loss {r.loss:.4f}, "
        f"{r.bits_per_byte:.4f} bits per byte"
        for r in frame.itertuples()
    ]
    return "\n".join([*lines, f"figure: {drawn}"])
