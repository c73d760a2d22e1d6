"""scikit-learn's own small data sets, in the package itself: no download. Images of digits, and measured tables."""

from __future__ import annotations

import functools
import hashlib
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from bigmodel.data import Info
from bigmodel.errors import UsageError, choose

# name: (classes, 0 where a number is to be predicted; what it is)
SETS = {
    "digits": (10, "1,797 handwritten digits of 8x8 pixels"),
    "diabetes": (0, "442 patients, ten measures: how far the disease got in a year, in standard deviations"),
    "breast_cancer": (2, "569 tumours, thirty measures: malignant or benign"),
    "wine": (3, "178 wines, thirteen measures: of which grower"),
}


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            source="tables",
            name="digits",  # or diabetes, breast_cancer, wine
            examples=0,  # unique training examples to use; 0: all
            epochs=200,  # passes over them that a run may make at most
            folds=5,  # every folds-th example is held out, from number `fold` on: folds runs make a cross-validation
            fold=0,
            fingerprint="",
        )
    )


@functools.cache
def _arrays(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Features and targets, the features of a table in the units of the set."""
    from sklearn import datasets

    found: Any = getattr(datasets, f"load_{name}")()
    if name == "digits":
        return (found.data / 16.0).astype(np.float32), found.target.astype(np.int32)
    if SETS[name][0]:
        return found.data, found.target.astype(np.int32)
    return found.data, (found.target - found.target.mean()) / found.target.std()


@functools.cache
def _fingerprint(name: str) -> str:
    features, targets = _arrays(name)
    return hashlib.sha256(features.tobytes() + targets.tobytes()).hexdigest()


@functools.cache
def _split(name: str, split: str, folds: int, fold: int) -> tuple[np.ndarray, np.ndarray]:
    """Of tables, features at the training part's mean 0 and deviation 1."""
    features, targets = _arrays(name)
    held = np.arange(len(targets)) % folds == fold
    if name != "digits":
        features = (features - features[~held].mean(axis=0)) / features[~held].std(axis=0)
    keep = held if split == "validation" else ~held
    return features[keep].astype(np.float32), targets[keep].astype(np.int32 if SETS[name][0] else np.float32)


def finalize(cfg: ConfigDict, root: str) -> None:
    choose("config.data.name", cfg.name, SETS)
    if cfg.epochs < 1:
        raise UsageError(f"config.data.epochs={cfg.epochs}: must be at least 1")
    if not 0 <= cfg.fold < cfg.folds or cfg.folds < 2:
        raise UsageError(f"config.data.fold={cfg.fold}: one of 0 to data.folds - 1, and folds={cfg.folds} at least 2")
    there = len(_split(cfg.name, "train", cfg.folds, cfg.fold)[1])
    if not 0 <= cfg.examples <= there:
        raise UsageError(f"config.data.examples={cfg.examples}: there are {there} training examples (0: all)")
    cfg.fingerprint = _fingerprint(cfg.name)


def describe(cfg: Any, root: str) -> Info:
    features, _ = _arrays(cfg.name)
    there = len(_split(cfg.name, "train", cfg.folds, cfg.fold)[1])
    classes = {"num_classes": SETS[cfg.name][0]} if SETS[cfg.name][0] else {}
    return Info(
        unit="examples",
        units_per_example=1,
        train_examples=cfg.examples or there,
        validation_examples=len(_split(cfg.name, "validation", cfg.folds, cfg.fold)[1]),
        sizes={"num_features": features.shape[1], **classes},
    )


class Table:
    def __init__(self, cfg: Any, split: str):
        self.features, self.labels = _split(cfg.name, split, cfg.folds, cfg.fold)
        if split == "train" and cfg.examples:
            self.features, self.labels = self.features[: cfg.examples], self.labels[: cfg.examples]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, k: int) -> dict[str, np.ndarray]:
        """{'features': float32, 'label': () int32 or float32}; digits are in [0, 1]."""
        return {"features": self.features[k], "label": self.labels[k]}

    def take(self, indices: list[int]) -> dict[str, np.ndarray]:
        """Many at once, stacked."""
        return {"features": self.features[indices], "label": self.labels[indices]}


def open_split(cfg: Any, root: str, split: str) -> Table:
    return Table(cfg, split)
