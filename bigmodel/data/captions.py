"""Pictures with captions, written by `bigmodel prepare`, or codes of them, made from a run of `dvae`.

An example is a pair; pictures can be augmented.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from ml_collections import ConfigDict

from bigmodel.data import Info, Split, augmentation, check_amounts, check_file, damaged, folder, manifest, tasks
from bigmodel.errors import UsageError, check_ranges

KEYS = {
    list: "labels size languages",
    dict: "files asked",
    int: "tokenizer.vocab_size tokenizer.separator splits.{split}.examples splits.{split}.pictures",
    str: "splits.{split}.sha256",
}


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            source="captions",
            name="captioned-bpe",  # a folder under run.data_dir (or a path) made by `bigmodel prepare`
            seq_len=32,  # tokens of a caption with its end; a longer one is cut
            text=True,  # captions, too; else pictures alone, each once
            examples=0,  # unique training examples to use; 0: all
            epochs=100,  # passes over them that a run may make at most
            fingerprint="",  # the manifest's hash: filled from the data, checked where it is given
            **augmentation.OPTIONS,
        )
    )


def _manifest(cfg: Any, root: str) -> dict[str, Any]:
    def inspect(found: Any) -> None:
        sizes = {"captions": 3, "codes": 2}  # height, width, channels; or those of the grid
        if len(found["size"]) != sizes[found["task"]] or not all(type(n) is int for n in found["size"]):
            raise ValueError(f"task {found['task']!r} of size {found['size']}")

    return manifest(cfg, root, "captions", KEYS, inspect)


def finalize(cfg: ConfigDict, root: str) -> None:
    found = _manifest(cfg, root)
    check_ranges("config.data.", cfg, seq_len="[2, inf)")
    check_amounts(cfg, found["splits"]["train"]["examples" if cfg.text else "pictures"])
    augmentation.finalize(cfg)
    if found["task"] == "codes" and augments(cfg):
        raise UsageError(f"config.data: {cfg.name!r} has codes in place of pictures, which can't be augmented")
    cfg.fingerprint = found["hash"]


def describe(cfg: Any, root: str) -> Info:
    found = _manifest(cfg, root)
    counted = "examples" if cfg.text else "pictures"
    train, validation = (found["splits"][split][counted] for split in ("train", "validation"))
    return Info("examples", 1, cfg.examples or train, validation, sizes(found, cfg.seq_len if cfg.text else 0))


def sizes(manifest: Any, seq_len: int) -> dict[str, int]:
    """What a manifest decides of a model that reads `seq_len` tokens of a caption, or none."""
    names = ("image_height", "image_width", "channels")
    found = dict(zip(names, manifest["size"], strict=False))
    if manifest["task"] == "codes":
        found = dict(zip(("grid_height", "grid_width"), manifest["size"], strict=True))
        found["num_codes"] = manifest["num_codes"]
    text = {"vocab_size": manifest["tokenizer"]["vocab_size"], "seq_len": seq_len}
    return found | (text if seq_len else {})


class Pairs(Split):
    """Pairs of a split, those of one picture after one another.

    Attributes:
      picture, label, language: of each pair, N: the number of its picture, and those of its class and language.
      kept: numbers of the pairs that are read.
    """

    def __init__(self, cfg: Any, root: str, split: str):
        super().__init__(cfg, root, split)
        found, home = _manifest(cfg, root), folder(cfg, root)
        check_file(home / f"{split}.npz", found["splits"].get(split, {}).get("sha256"))
        self.holds = "image" if found["task"] == "captions" else "codes"
        stored = f"{split}-{'images' if self.holds == 'image' else 'codes'}.npy"
        for name in (stored, f"{split}.jsonl", "tokenizer.json"):
            if name in found["files"]:
                check_file(home / name, found["files"][name])
        path = home / stored
        self.arrays = tasks.read_arrays(str(home / f"{split}.npz"), found["hash"], ("text",), len(found["labels"]))
        try:
            self.images = np.load(str(path), mmap_mode="r")
            self.picture, self.label, self.language = (self.arrays[key] for key in ("picture", "label", "language"))
        except (OSError, ValueError, EOFError, KeyError) as e:
            raise damaged(path, str(e)) from e
        if self.images.shape[1:] != tuple(found["size"]) or self.picture.max(initial=0) >= len(self.images):
            raise damaged(path, f"shape {self.images.shape}")
        self.end, self.length = found["tokenizer"]["separator"], cfg.seq_len
        self.text = cfg.text
        self.kept = np.arange(len(self.picture)) if cfg.text else np.unique(self.picture, return_index=True)[1]
        self.kept = self.kept[: cfg.examples] if split == "train" and cfg.examples else self.kept

    def __len__(self) -> int:
        return len(self.kept)

    def __getitem__(self, k: int) -> dict[str, Any]:
        """{'image': uint8 (height, width, channels), or 'codes': int32 (height, width)}, and of a pair 'tokens': int32
        (seq_len,), padded with 0, and 'length': int32 ()."""
        k = self.kept[k]
        found = {self.holds: np.asarray(self.images[self.picture[k]], np.uint8 if self.holds == "image" else np.int32)}
        if not self.text:
            return found
        ends = self.arrays["text_ends"]
        tokens, length = row(self.arrays["text"][ends[k - 1] if k else 0 : ends[k]], self.length, self.end)
        return {**found, "tokens": tokens, "length": length}


def row(ids: Any, size: int, end: int) -> tuple[np.ndarray, np.int32]:
    """(`size` tokens, how many of them count) of a caption's tokens with their end, which stays where they are cut."""
    tokens, n = np.zeros(size, np.int32), min(len(ids), size)
    tokens[:n] = ids[:n]
    tokens[n - 1] = end
    return tokens, np.int32(n)


def augment(cfg: Any, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    return {**example, "image": augmentation.changed(cfg, example["image"], rng)}


def augments(cfg: Any) -> bool:
    return augmentation.wanted(cfg)


open_split = Pairs
