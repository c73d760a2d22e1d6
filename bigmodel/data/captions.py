"""Pictures with captions, written by `bigmodel prepare`. An example is a pair; pictures can be augmented."""

from __future__ import annotations

from typing import Any

import numpy as np
from ml_collections import ConfigDict

from bigmodel.data import Info, Split, augmentation, check_amounts, check_file, damaged, folder, manifest, tasks
from bigmodel.errors import check_ranges

KEYS = {
    list: "labels size languages",
    dict: "files label_names",
    int: "tokenizer.vocab_size tokenizer.separator splits.{split}.examples",
    str: "splits.{split}.sha256",
}


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            source="captions",
            name="captioned-bpe",  # a folder under run.data_dir (or a path) made by `bigmodel prepare`
            seq_len=32,  # tokens of a caption with its end; a longer one is cut
            examples=0,  # unique training pairs to use; 0: all
            epochs=100,  # passes over them that a run may make at most
            fingerprint="",  # the manifest's hash: filled from the data, checked where it is given
            **augmentation.OPTIONS,
        )
    )


def _manifest(cfg: Any, root: str) -> dict[str, Any]:
    def inspect(found: Any) -> None:
        if found["task"] != "captions" or len(found["size"]) != 3 or not all(type(n) is int for n in found["size"]):
            raise ValueError(f"task {found['task']!r} of size {found['size']}")

    return manifest(cfg, root, "captions", KEYS, inspect)


def finalize(cfg: ConfigDict, root: str) -> None:
    found = _manifest(cfg, root)
    check_ranges("config.data.", cfg, seq_len="[2, inf)")
    check_amounts(cfg, found["splits"]["train"]["examples"])
    augmentation.finalize(cfg)
    cfg.fingerprint = found["hash"]


def describe(cfg: Any, root: str) -> Info:
    found = _manifest(cfg, root)
    train, validation = (found["splits"][split]["examples"] for split in ("train", "validation"))
    height, width, channels = found["size"]
    sizes = {"image_height": height, "image_width": width, "channels": channels}
    sizes |= {"vocab_size": found["tokenizer"]["vocab_size"], "seq_len": cfg.seq_len}
    return Info("examples", 1, cfg.examples or train, validation, sizes)


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
        for name in (f"{split}-images.npy", f"{split}.jsonl", "tokenizer.json"):
            if name in found["files"]:
                check_file(home / name, found["files"][name])
        path = home / f"{split}-images.npy"
        self.arrays = tasks.read_arrays(str(home / f"{split}.npz"), found["hash"], ("text",), len(found["labels"]))
        try:
            self.images = np.load(str(path), mmap_mode="r")
            self.picture, self.label, self.language = (self.arrays[key] for key in ("picture", "label", "language"))
        except (OSError, ValueError, EOFError, KeyError) as e:
            raise damaged(path, str(e)) from e
        if self.images.shape[1:] != tuple(found["size"]) or self.picture.max(initial=0) >= len(self.images):
            raise damaged(path, f"shape {self.images.shape}")
        self.end, self.length = found["tokenizer"]["separator"], cfg.seq_len
        self.kept = range(cfg.examples if split == "train" and cfg.examples else len(self.picture))

    def __len__(self) -> int:
        return len(self.kept)

    def __getitem__(self, k: int) -> dict[str, Any]:
        """{'image': uint8 (height, width, channels), 'tokens': int32 (seq_len,), padded with 0, 'length': int32 ()}."""
        ends = self.arrays["text_ends"]
        tokens, length = row(self.arrays["text"][ends[k - 1] if k else 0 : ends[k]], self.length, self.end)
        return {"image": np.asarray(self.images[self.picture[k]]), "tokens": tokens, "length": length}


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
