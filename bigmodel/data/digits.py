"""scikit-learn's handwritten digits: 1,797 images of 8x8 in the package itself. No download."""

from __future__ import annotations

import functools
import hashlib
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from bigmodel.config import UsageError
from bigmodel.data import Info

VALIDATION_EVERY = 5  # every fifth image is held out


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            source="digits",
            examples=0,  # unique training images to use; 0: all
            epochs=200,  # passes over them that a run may make at most
            fingerprint="",
        )
    )


@functools.cache
def _arrays() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    return (digits.data / 16.0).astype(np.float32), digits.target.astype(np.int32)


@functools.cache
def _fingerprint() -> str:
    features, labels = _arrays()
    return hashlib.sha256(features.tobytes() + labels.tobytes()).hexdigest()


def _split(split: str) -> tuple[np.ndarray, np.ndarray]:
    features, labels = _arrays()
    held = np.arange(len(labels)) % VALIDATION_EVERY == 0
    keep = held if split == "validation" else ~held
    return features[keep], labels[keep]


def finalize(cfg: ConfigDict, root: str) -> None:
    if cfg.epochs < 1:
        raise UsageError(f"config.data.epochs={cfg.epochs}: must be at least 1")
    there = len(_split("train")[1])
    if not 0 <= cfg.examples <= there:
        raise UsageError(f"config.data.examples={cfg.examples}: there are {there} training images (0: all)")
    cfg.fingerprint = _fingerprint()


def describe(cfg: Any, root: str) -> Info:
    train = cfg.examples or len(_split("train")[1])
    return Info(
        unit="examples",
        units_per_example=1,
        train_examples=train,
        validation_examples=len(_split("validation")[1]),
        sizes={"num_features": 64, "num_classes": 10},
    )


class Digits:
    def __init__(self, cfg: Any, split: str):
        self.features, self.labels = _split(split)
        if split == "train" and cfg.examples:
            self.features, self.labels = self.features[: cfg.examples], self.labels[: cfg.examples]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, k: int) -> dict[str, np.ndarray]:
        """{'features': (64,) float32 in [0, 1], 'label': () int32}"""
        return {"features": self.features[k], "label": self.labels[k]}


def open_split(cfg: Any, root: str, split: str) -> Digits:
    return Digits(cfg, split)
