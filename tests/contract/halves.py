"""A data source outside the package: scikit-learn's handwritten digits as pictures, shifted at random in training.

With a name other than `digits` the labels are those of a data set that codes.py has made of a run.
"""

import numpy as np
from sklearn.datasets import load_digits

from bigmodel import data

SIDE, HELD_OUT = 8, 297


def get_config():
    return dict(name="digits", epochs=1000, fingerprint="", shift=1)


def finalize(cfg, root):
    made = cfg.name != "digits"
    cfg.fingerprint = data.manifest(cfg, root, "units")["hash"] if made else "scikit-learn digits"


def describe(cfg, root):
    return data.Info("examples", 1, 1797 - HELD_OUT, HELD_OUT, {"num_classes": 10, "side": SIDE})


class Pictures:
    def __init__(self, split, labels=None):
        found = load_digits()
        part = slice(HELD_OUT, None) if split == "train" else slice(0, HELD_OUT)
        self.pictures = (found.images[part, ..., None] / 16).astype(np.float32)
        self.labels = (found.target if labels is None else labels)[part].astype(np.int32)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, k):
        return {"picture": self.pictures[k], "label": self.labels[k]}


def open_split(cfg, root, split):
    made = None if cfg.name == "digits" else np.load(data.folder(cfg, root) / "units.npy")
    return Pictures(split, made)


def augment(cfg, example, rng):
    """Moves the picture by up to `shift` pixels along each side."""
    moves = rng.integers(-cfg.shift, cfg.shift + 1, 2)
    return {**example, "picture": np.roll(example["picture"], moves, (0, 1))}
