"""The small data sets that scikit-learn ships: images of digits, and measured tables. Nothing is downloaded."""

from __future__ import annotations

import functools
import hashlib
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from bigmodel.data import Info, check_amounts
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
    """Features and targets. The features of a table are in the data set's units."""
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
    """Features and targets of a split. A table's features are standardised by the training split."""
    features, targets = _arrays(name)
    held = np.arange(len(targets)) % folds == fold
    if name != "digits":
        features = (features - features[~held].mean(axis=0)) / features[~held].std(axis=0)
    keep = held if split == "validation" else ~held
    return features[keep].astype(np.float32), targets[keep].astype(np.int32 if SETS[name][0] else np.float32)


def finalize(cfg: ConfigDict, root: str) -> None:
    choose("config.data.name", cfg.name, SETS)
    if not 0 <= cfg.fold < cfg.folds or cfg.folds < 2:
        raise UsageError(f"config.data.fold={cfg.fold}: one of 0 to data.folds - 1, and folds={cfg.folds} at least 2")
    check_amounts(cfg, len(_split(cfg.name, "train", cfg.folds, cfg.fold)[1]))
    cfg.fingerprint = _fingerprint(cfg.name)


def describe(cfg: Any, root: str) -> Info:
    features, _ = _arrays(cfg.name)
    sizes = {"num_features": features.shape[1], "num_classes": SETS[cfg.name][0]}
    if not sizes["num_classes"]:
        del sizes["num_classes"]
    train, validation = (len(_split(cfg.name, split, cfg.folds, cfg.fold)[1]) for split in ("train", "validation"))
    return Info("examples", 1, cfg.examples or train, validation, sizes)


class Table:
    def __init__(self, cfg: Any, root: str, split: str):
        count = cfg.examples if split == "train" and cfg.examples else None
        self.features, self.labels = (array[:count] for array in _split(cfg.name, split, cfg.folds, cfg.fold))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, k: Any) -> dict[str, np.ndarray]:
        """{'features': float32, 'label': () int32 or float32}; digits are in [0, 1]."""
        return {"features": self.features[k], "label": self.labels[k]}

    take = __getitem__  # several examples, stacked


open_split = Table
