"""DALL-E's two stages: an autoencoder, codes derived of it, and decoders of four widths on three amounts of pairs.

bigmodel prepare captioned --tokenizer=bpe
bigmodel sweep run sweeps/dalle.py && bigmodel report sweeps/dalle.py
bigmodel fit runs/dalle --L=eval_image_loss --where=family=dalle       nats a code, without the captions'
"""

from bigmodel import sweep

CONFIG = "experiments/dalle.py"
LAW = "chinchilla"
WIDTHS = [32, 64, 96, 128]
PAIRS = [10_000, 30_000, 90_000]  # seen, of 26,507


def get_sweep():
    shapes = sweep.ladder("dalle", widths=WIDTHS, depths=[4])
    amounts = [{"train.tokens": pairs} for pairs in PAIRS]
    return sweep.product([{"derive": ("experiments/dvae.py", "analyses/codes.py")}], shapes, amounts)
