"""A folder with a sub-folder of pictures for each class -> the arrays that `data/images` reads.

Pictures become uint8 of one size: the short side resized, the centre cut out, transparency laid on white. Which split
one belongs to follows from its content.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections import Counter
from pathlib import Path

import numpy as np

from bigmodel.errors import UsageError, check_ranges, note
from bigmodel.prepare import finished, images
from bigmodel.prepare.folder import Folder, Manifest

KINDS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")


def is_folder(source: str) -> bool:
    """Whether a sub-folder of `source` has pictures in it."""
    home = Path(source)
    return home.is_dir() and any(_pictures(part) for part in home.iterdir() if part.is_dir())


def prepare_pictures(source: str, out: str, size: int, fraction: float, verify: bool = False) -> Manifest:
    """Prepares the classes of `source` into the folder `out` and returns the manifest; see `finished.once`.

    Args:
      size: side of the pictures in pixels.
      fraction: of each class in validation, and as many in test.
    """
    check_ranges("prepare: ", {"size": size, "validation_fraction": fraction}, size="[1, 4096]",
                 validation_fraction="(0, 0.5)")  # fmt: skip
    found = {part.name: _pictures(part) for part in sorted(Path(source).iterdir()) if part.is_dir()}
    paths = [path for part in found.values() for path in part]
    arguments = {
        "source": source,
        "size": size,
        "validation_fraction": fraction,
        "files": images.listing(source, paths),
    }

    def make(folder: Folder, old: Manifest | None) -> Manifest:
        if others := sum(path.is_file() for path in Path(source).rglob("*")) - len(paths):
            note(f"left out of {source!r}: {others:,} files that aren't named as pictures in the folder of a class are")
        labels, classes = _classes(source, found, size)
        folder.begin()
        splits = _splits(classes, fraction)
        grey = all(
            np.array_equal(x[..., 0], x[..., c]) for images_, _ in splits.values() for x in images_ for c in (1, 2)
        )
        arrays = {split: (x[..., 0] if grey else x, y) for split, (x, y) in splits.items()}
        own = [{"registry": "folder", "name": source, "files": arguments["files"]}]
        return images.write(folder, arrays, Path(source).resolve().name, arguments, labels, own, "the pictures' own")

    return finished.once(out, arguments, verify, make)


def _pictures(folder: Path) -> list[Path]:
    """Files under a folder whose names end as pictures' do, in order; links to folders aren't followed."""
    found = [Path(at, name) for at, _, names in os.walk(folder) for name in names]
    return sorted(p for p in found if p.suffix.lower() in KINDS and not p.name.startswith("."))


def _classes(source: str, found: dict[str, list[Path]], size: int) -> tuple[list[str], list[dict[str, np.ndarray]]]:
    """(labels, of each its pictures by the SHA-256 of their files). Notes what is left out."""
    broken: list[str] = []
    seen: dict[str, set[str]] = {}
    told: Counter[str] = Counter()
    classes: dict[str, dict[str, np.ndarray]] = {}
    total, done = sum(map(len, found.values())), 0
    for label, paths in found.items():
        kept = classes.setdefault(label, {})
        for path in paths:
            done += 1
            if done % 100 == 0 and sys.stderr.isatty():
                print(f"\r\x1b[Kpictures {done:,}/{total:,}", end="", file=sys.stderr, flush=True)
            try:
                content = path.read_bytes()
                key = hashlib.sha256(content).hexdigest()
                if key in kept:
                    told["that a class has twice, counted once"] += 1
                    continue
                kept[key] = images.read(content, size, told)
            except Exception as e:  # Pillow's formats raise what they like
                broken.append(images.why(str(path.relative_to(source)), e))
                continue
            seen.setdefault(key, set()).add(label)
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr)
    several = {key for key, labels in seen.items() if len(labels) > 1}
    images.note_broken(source, broken)
    if several:
        note(f"left out of {source!r}: {len(several):,} pictures that are in two classes or more")
    for what, count in told.items():
        note(f"{source!r}: {count:,} pictures {what}")
    kept_in = {label: {k: x for k, x in part.items() if k not in several} for label, part in classes.items()}
    for label, part in kept_in.items():
        if found[label] and not part:
            raise UsageError(
                f"prepare {source!r}: none of the {len(found[label]):,} pictures of class {label!r} is left"
            )
    if empty := [label for label, part in kept_in.items() if not part]:
        note(f"left out of {source!r}: folders without pictures: {', '.join(map(repr, empty[: images.SHOWN]))}")
    labels = [label for label, part in kept_in.items() if part]
    if len(labels) < 2:
        raise UsageError(f"prepare {source!r}: one class, {labels}: nothing to tell apart; a sub-folder is a class")
    return labels, [kept_in[label] for label in labels]


def _splits(classes: list[dict[str, np.ndarray]], fraction: float) -> images.Arrays:
    """Of each class `fraction` in validation and as many in test, in the order of the contents' digests."""
    chosen: dict[str, list[tuple[str, int]]] = {"validation": [], "test": [], "train": []}
    for label, part in enumerate(classes):
        keys, n = sorted(part), max(1, round(fraction * len(part)))
        if len(keys) < 3:
            raise UsageError("prepare: a class needs 3 pictures at least, one each for train, validation and test")
        for split, some in zip(chosen, (keys[:n], keys[n : 2 * n], keys[2 * n :]), strict=True):
            chosen[split] += [(key, label) for key in some]
    return {
        split: (np.stack([classes[label][key] for key, label in rows]), np.array([y for _, y in rows], np.int32))
        for split, rows in ((split, sorted(chosen[split])) for split in ("train", "validation", "test"))
    }
