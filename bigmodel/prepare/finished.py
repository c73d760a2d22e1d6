"""What an earlier `bigmodel prepare` left in a folder: is it what is asked for now, and is it whole?"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from etils import epath

from bigmodel.errors import UsageError
from bigmodel.files import has_sha256, is_whole
from bigmodel.prepare import documents, shards
from bigmodel.prepare import tokenizer as tokenizers

FORMAT = 1  # of the manifest


def existing(root: epath.Path, arguments: dict[str, Any], verify: bool) -> dict[str, Any] | None:
    """The manifest in `root`, made with these arguments of what is still the same source and tokenizer; None: none.

    Raises:
      UsageError: it was made with other arguments, or of other contents, or it is damaged.
    """
    path = root / "manifest.json"
    if not path.exists():
        return None
    manifest = shards.read_json(path)
    with manifest_of(path):
        if manifest is None or manifest.get("format") != FORMAT:
            raise ValueError("no format")
        same_arguments(root, manifest, arguments)
        source = manifest["sources"][0]
        same_tokenizer(root, manifest, arguments["tokenizer"])
        if source.get("registry") == "local" and Path(arguments["source"]).exists():  # moved away: nothing to compare
            unchanged(root, arguments["source"], source.get("listing"), verify)
    return manifest


@contextmanager
def manifest_of(path: epath.Path) -> Iterator[None]:
    """Around what takes a manifest apart: its faults are damage to the file."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):
        raise UsageError(
            f"{str(path)!r} isn't a manifest of format {FORMAT}, or it is damaged; choose another --out, or remove "
            "it, and the same command makes it again"
        ) from None


def same_arguments(root: epath.Path, manifest: dict[str, Any], arguments: dict[str, Any]) -> None:
    if not is_whole(manifest):
        raise ValueError("another checksum")
    if not isinstance(manifest["licence"], str) or type(manifest.get("tokenizer", {}).get("vocab_size", 0)) is not int:
        raise TypeError("licence or tokenizer")
    old = manifest["arguments"]
    for key, value in arguments.items():
        if old.get(key) != value:
            raise UsageError(
                f"{str(root)!r} was prepared with {key}={old.get(key)!r}, not {value!r}; choose another --out"
            )


def same_tokenizer(root: epath.Path, manifest: dict[str, Any], tokenizer: str) -> None:
    """Raises UsageError where the file `tokenizer` has other contents than when its copy in `root` was made."""
    if tokenizer in ("bytes", "bpe", "gpt2"):
        return
    copy = manifest.get("files", {}).get("tokenizer.json") or shards.file_digest(root / "tokenizer.json")
    if copy and hashlib.sha256(tokenizers.read(tokenizer).encode()).hexdigest() != copy:
        raise changed(tokenizer, root)


def unchanged(root: epath.Path, source: str, listing: str | None, verify: bool) -> None:
    """Raises UsageError where local files have other contents than when `root` was prepared of them."""
    record = shards.read_json(root / "sources.json") or {}
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


def width(manifest: dict[str, Any]) -> int:
    return {"uint8": 1, "uint16": 2, "uint32": 4}[manifest["dtype"]]


def damaged(root: epath.Path, manifest: dict[str, Any], verify: bool) -> list[str]:
    """Files that are missing or don't have the manifest's digests."""
    with manifest_of(root / "manifest.json"):
        rows = [row for split in manifest["splits"].values() for row in split["shards"]]
        sizes = {row["file"]: row["tokens"] * width(manifest) for row in rows}
        digests = {row["file"]: row["sha256"] for row in rows} | manifest.get("files", {})
        found = [file for file, size in sizes.items() if length(root / file) != size]
        found += without(root, {file: digest for file, digest in digests.items() if file not in found}, verify)
        for file in sizes:
            index = file.replace(".bin", ".idx.npy")
            receipt = shards.read_json(root / file.replace(".bin", ".receipt.json")) if verify else None
            if length(root / index) < 0 or (
                receipt and shards.file_digest(root / index) != receipt.get("index_sha256")
            ):
                found.append(index)
        return found


def files_of(root: epath.Path, name: str, verify: bool) -> dict[str, Any] | None:
    """The manifest in `root` of the package's files that `name` is, if they are whole; else None."""
    path = root / "manifest.json"
    if not path.exists():
        return None
    manifest = shards.read_json(path)
    with manifest_of(path):
        if manifest is None:
            raise ValueError("no JSON object")
        same_arguments(root, manifest, {"source": name})
        broken = without(root, manifest["files"], verify)
    if broken:
        again(root, broken)
    return None if broken else manifest


def without(root: epath.Path, digests: dict[str, str], verify: bool) -> list[str]:
    """Files of `digests` that are missing or have other contents. Remote ones are read for `verify` alone."""

    def whole(path: epath.Path, sha256: str) -> bool:
        if shards.is_local(path):
            return path.exists() and has_sha256(path, sha256, verify)
        return shards.file_digest(path) == sha256 if verify else path.exists()

    return [file for file, sha256 in digests.items() if not whole(root / file, sha256)]


def length(path: epath.Path) -> int:
    """In bytes; -1: there is no such file."""
    return path.stat().length if path.exists() else -1


def again(root: epath.Path, files: list[str]) -> None:
    """Says that these files are made again."""
    say(f"{', '.join(files[:3])}{', ...' if files[3:] else ''} in {str(root)!r}: missing or damaged, made again")


def say(line: str) -> None:
    print(f"bigmodel: {line}", file=sys.stderr)
