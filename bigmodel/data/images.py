"""Labelled pictures written by `bigmodel prepare`: as they are, or each as one row of grey values in [0, 1].

Training pictures can be augmented (`augmentation.py`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from ml_collections import ConfigDict

from bigmodel.data import Info, Split, augmentation, check_amounts, check_file, damaged, folder, manifest
from bigmodel.errors import UsageError

KEYS = {list: "labels size", dict: "files", int: "splits.{split}.examples"}


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            source="images",
            name="fashion-mnist",  # a folder under run.data_dir (or a path) made by `bigmodel prepare`
            examples=0,  # unique training examples to use; 0: all
            epochs=100,  # passes over them that a run may make at most
            flat=True,  # rows of values in [0, 1], for an MLP; else pictures of bytes, height x width x channels
            fingerprint="",  # the manifest's hash: filled from the data, checked where it is given
            **augmentation.OPTIONS,
        )
    )


def _manifest(cfg: Any, root: str) -> dict[str, Any]:
    def inspect(found: Any) -> None:
        if not all(type(n) is int and n > 0 for n in found["size"]) or not found["labels"]:
            raise ValueError(f"size is {found['size']}, of {len(found['labels'])} labels")

    return manifest(cfg, root, "images", KEYS, inspect)


def finalize(cfg: ConfigDict, root: str) -> None:
    found = _manifest(cfg, root)
    check_amounts(cfg, found["splits"]["train"]["examples"])
    augmentation.finalize(cfg)
    if cfg.flat and augments(cfg):
        raise UsageError("config.data.flat=True: rows of values can't be augmented: use --config.data.flat=False")
    cfg.fingerprint = found["hash"]


def describe(cfg: Any, root: str) -> Info:
    found = _manifest(cfg, root)
    train, validation = (found["splits"][split]["examples"] for split in ("train", "validation"))
    height, width, channels = (*found["size"], 1)[:3]
    sizes = {"image_height": height, "image_width": width, "channels": channels}
    if cfg.flat:
        sizes = {"num_features": height * width * channels}
    return Info("examples", 1, cfg.examples or train, validation, {**sizes, "num_classes": len(found["labels"])})


class Pictures(Split):
    def __init__(self, cfg: Any, root: str, split: str):
        super().__init__(cfg, root, split)
        found, home = _manifest(cfg, root), folder(cfg, root)
        files = [home / f"{split}-{kind}.npy" for kind in ("images", "labels")]
        for path in files:
            check_file(path, found["files"].get(path.name))
        try:
            self.images, self.labels = (np.load(str(path), mmap_mode="r") for path in files)
        except (OSError, ValueError, EOFError) as e:
            raise damaged(home / f"{split}-*.npy", str(e)) from e
        if self.labels.ndim != 1 or self.images.shape != (len(self.labels), *found["size"]):
            raise damaged(home / f"{split}-*.npy", f"shapes {self.images.shape} and {self.labels.shape}")
        self.count = cfg.examples if split == "train" and cfg.examples else len(self.labels)
        self.flat, self.shape = cfg.flat, (*found["size"], 1)[:3]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, k: int) -> dict[str, np.ndarray]:
        """{'features': float32 (values,)} or {'image': uint8 (height, width, channels)}, with 'label': int32 ()."""
        return {key: value[0] for key, value in self.take([k]).items()}

    def take(self, indices: list[int]) -> dict[str, np.ndarray]:
        """Several examples, stacked."""
        pixels, label = self.images[indices], np.asarray(self.labels[indices])
        if self.flat:
            rows = pixels.reshape(len(indices), -1)
            return {"features": rows.astype(np.float32) / 255, "label": label}
        return {"image": np.asarray(pixels).reshape(-1, *self.shape), "label": label}


def augment(cfg: Any, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """A training picture, changed as the options say."""
    return {**example, "image": augmentation.changed(cfg, example["image"], rng)}


def augments(cfg: Any) -> bool:
    return augmentation.wanted(cfg)


open_split = Pictures
