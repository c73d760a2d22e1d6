"""A law of contrastive pairs: towers of four widths on three amounts of captioned pictures, each pair seen ten times.

    bigmodel prepare captioned --tokenizer=bpe
    bigmodel sweep run sweeps/clip.py && bigmodel report sweeps/clip.py
    bigmodel fit runs/clip --L=eval_error          the share of a batch's pairs that are mistaken, by the same law

The loss is that of telling pairs within a batch, so all runs have the same batch.
"""

from bigmodel import sweep

CONFIG = "experiments/clip.py"
LAW = "chinchilla"
WIDTHS = [16, 32, 64, 96]
PAIRS = [2_500, 8_000, 25_000]
PASSES = 8


def get_sweep():
    shapes = sweep.ladder("clip", widths=WIDTHS, depths=[2])
    amounts = sweep.zip_({"data.examples": PAIRS, "train.tokens": [PASSES * n for n in PAIRS]})
    return sweep.product([{"model.embed": 64, "train.batch_size": 128}], shapes, amounts)
