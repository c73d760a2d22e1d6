"""What an earlier `bigmodel prepare` left in a folder: is it what is asked for now, and is it whole?"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from bigmodel.errors import UsageError, note
from bigmodel.files import check_path, has_sha256, is_whole
from bigmodel.prepare import documents, folder
from bigmodel.prepare import tokenizer as tokenizers
from bigmodel.prepare.folder import Folder, Manifest

FORMAT = 1  # of the manifest


def once(
    out: str, arguments: dict[str, Any], verify: bool, make: Callable[[Folder, Manifest | None], Manifest]
) -> Manifest:
    """The manifest in the folder `out`. Calls `make` where there is none, or where files are missing or damaged.

    Args:
      arguments: what was asked for, as the manifest records it.
      verify: read every file again, even one that was found whole before and hasn't changed since.
      make: writes all files into a Folder. Its second argument is the manifest of damaged data, else None.

    Raises:
      UsageError: `out` can't be written, is damaged, or was made with other arguments or from other contents.
      Retry: full disk, or a worker killed; the same command continues.
    """
    check_path("--out", out)
    root = epath.Path(out)
    with folder.one_line_errors(out):
        old = existing(root, arguments, verify)
        broken = damaged(root, old, verify) if old else []
        if old and not broken:
            return old
        if broken:
            more = ", ..." if broken[3:] else ""
            note(f"{', '.join(broken[:3])}{more} in {str(root)!r}: missing or damaged, made again")
        with folder.working(root) as opened:
            return make(opened, old)


def existing(root: epath.Path, arguments: dict[str, Any], verify: bool) -> Manifest | None:
    """The manifest in `root`, if it was made with these arguments from the same source and tokenizer; None: no file."""
    path = root / "manifest.json"
    if not path.exists():
        return None
    manifest = folder.read_json(path)
    with reading(path):
        if manifest is None or manifest.get("format") != FORMAT or not is_whole(manifest):
            raise ValueError("no manifest, or another checksum")
        vocabulary = manifest.get("tokenizer", {}).get("vocab_size", 0)
        if not isinstance(manifest["licence"], str) or type(vocabulary) is not int:
            raise TypeError("licence or tokenizer")
        for key, value in arguments.items():
            if (was := manifest["arguments"].get(key)) != value:
                raise UsageError(f"{str(root)!r} was prepared with {key}={was!r}, not {value!r}; choose another --out")
        check_tokenizer(root, manifest, arguments.get("tokenizer", "bytes"))
        source = manifest["sources"][0]
        if source.get("registry") == "local" and Path(arguments["source"]).exists():  # moved away: nothing to compare
            check_source(root, arguments["source"], source.get("listing"), verify)
    return manifest


@contextmanager
def reading(path: epath.Path) -> Iterator[None]:
    """Around what takes a manifest apart: its faults are damage to the file."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):
        raise UsageError(
            f"{str(path)!r} isn't a manifest of format {FORMAT}, or it is damaged; choose another --out, or remove "
            "it, and the same command makes it again"
        ) from None


def check_tokenizer(root: epath.Path, manifest: Manifest, tokenizer: str) -> None:
    """Raises UsageError where the file `tokenizer` has other contents than when its copy in `root` was made."""
    if tokenizer in tokenizers.KINDS:
        return
    path = root / "tokenizer.json"
    copy = manifest.get("files", {}).get("tokenizer.json") or (path.exists() and folder.sha256(path))
    if copy and copy != hashlib.sha256(tokenizers.read(tokenizer).encode()).hexdigest():
        raise changed(tokenizer, root)


def check_source(root: epath.Path, source: str, listing: str | None, verify: bool) -> None:
    """Raises UsageError where local files have other contents than when `root` was prepared from them."""
    record = folder.read_json(root / "sources.json") or {}
    if listing:  # of an older version: names and sizes
        names = [] if documents.old_listing(source) == listing else [source]
    elif "files" in record and is_whole(record):
        names = documents.changed(source, record["files"], verify)
    else:  # lost: `make` compares the digest of all
        return
    if names:
        which = "" if names == [source] else f" ({names[0]!r}{f' and {len(names) - 1} more' if names[1:] else ''})"
        raise changed(source, root, which)


def changed(what: str, root: epath.Path, which: str = "") -> UsageError:
    return UsageError(f"{what!r} changed since {str(root)!r} was prepared{which}; choose another --out")


def damaged(root: epath.Path, manifest: Manifest, verify: bool) -> list[str]:
    """Files that are missing or don't have the manifest's sizes and digests. Remote ones are read only to `verify`."""

    def whole(file: str, sha256: str) -> bool:
        path = root / file
        if not path.exists():
            return False
        if folder.is_local(path):
            return has_sha256(path, sha256, verify)
        return not verify or folder.has_digest(path, sha256)

    with reading(root / "manifest.json"):
        splits = manifest.get("splits", {})
        shards = [shard for split in splits.values() for shard in split.get("shards", [])]
        digests = {shard["file"]: shard["sha256"] for shard in shards}
        digests |= {f"{name}.npz": split["sha256"] for name, split in splits.items() if "sha256" in split}
        digests |= manifest.get("files", {})
        found = []
        for shard in shards:
            path = root / shard["file"]
            size = shard["tokens"] * np.dtype(manifest["dtype"]).itemsize
            if not path.exists() or path.stat().length != size:
                found.append(shard["file"])
        found += [file for file, sha256 in digests.items() if file not in found and not whole(file, sha256)]
        for shard in shards:
            index = shard["file"].replace(".bin", ".idx.npy")
            receipt = folder.read_json(root / shard["file"].replace(".bin", ".receipt.json")) if verify else None
            intact = not receipt or folder.has_digest(root / index, receipt.get("index_sha256"))
            if not intact or not (root / index).exists():
                found.append(index)
        return found
