"""A data source outside the package: scikit-learn's handwritten digits as pictures, shifted at random in training."""

import numpy as np
from sklearn.datasets import load_digits

from bigmodel.data import Info

SIDE, HELD_OUT = 8, 297


def get_config():
    return dict(name="digits", epochs=1000, fingerprint="", shift=1)


def finalize(cfg, root):
    cfg.fingerprint = "scikit-learn digits"


def describe(cfg, root):
    return Info("examples", 1, 1797 - HELD_OUT, HELD_OUT, {"num_classes": 10, "side": SIDE})


class Pictures:
    def __init__(self, split):
        found = load_digits()
        part = slice(HELD_OUT, None) if split == "train" else slice(0, HELD_OUT)
        self.pictures = (found.images[part, ..., None] / 16).astype(np.float32)
        self.labels = found.target[part].astype(np.int32)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, k):
        return {"picture": self.pictures[k], "label": self.labels[k]}


def open_split(cfg, root, split):
    return Pictures(split)


def augment(cfg, example, rng):
    """Moves the picture by up to `shift` pixels along each side."""
    moves = rng.integers(-cfg.shift, cfg.shift + 1, 2)
    return {**example, "picture": np.roll(example["picture"], moves, (0, 1))}
