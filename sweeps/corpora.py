"""Masked and causal language models of English prose and of Chinese news, byte by byte and by BPE.

    bigmodel prepare prose --out=data/prose-bytes && bigmodel prepare prose --tokenizer=bpe --out=data/prose-bpe
    bigmodel prepare chinese-news --out=data/chinese-bytes
    bigmodel prepare chinese-news --tokenizer=bpe --out=data/chinese-bpe
    bigmodel sweep run sweeps/corpora.py && bigmodel report sweeps/corpora.py

Three widths of each, all on four million bytes of text: a token of the BPE (4,096 of them) is 3.7 bytes of English and
3.9 of Chinese, which is 1.3 characters.
"""

from bigmodel import sweep
from bigmodel.laws import corpora

CONFIG = "experiments/prose.py"
LAW = None  # one amount of text
TOKENS = {
    "prose-bytes": 4_000_000, "prose-bpe": 1_080_000, "chinese-bytes": 4_000_000, "chinese-bpe": 1_038_000
}  # fmt: skip


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


def report(folder, out):
    return corpora.report(folder, out)
