"""Readers: a source becomes (document id, text) pairs, in a fixed order.

    corpus name            corpora.py's table
    .txt, .md              one file, one document; its id is the file's name
    .jsonl                 one line, one document: an object with the text under `text_key`; id NAME:LINE
    .json                  the same, or an object, or a list of objects; id NAME:NUMBER
    .parquet               one row, one document: a string column `text_key`; id NAME:ROW
    folder                 all of those under it and the folders it links to, sorted; ids are relative paths
    hf:owner/name[:config] the train split of a Hugging Face dataset, streamed; id = row number

All but .parquet may end in .gz or .zst. Upper case is accepted. Ids don't hold the folder's own path, so that moving
data changes no split. A .txt or .json file is held in memory whole, everything else by line, row group or row.

A record whose text is null or missing is left out, in every format, and so are hidden files and those of other kinds:
`Found` counts them. A text that isn't a string is an error.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bigmodel.errors import UsageError, nearest
from bigmodel.prepare import corpora, formats
from bigmodel.prepare.folder import sha256
from bigmodel.prepare.formats import SUFFIXES, TEXT, Documents, Found

PIECE = 65536  # bytes: what a source of a single document is split into


def open_source(
    source: str, text_key: str, seen: Found, old: bool = False
) -> tuple[str, list[dict[str, Any]], Documents]:
    """(name, the manifest's `sources`, documents). What is left out, and which files are read, is added to `seen`.

    `old`: read only `old_files`, to make what was prepared of them again.

    Raises:
      UsageError: no such corpus, file or folder, or nothing readable in it. The documents raise it too, for a
        damaged file, invalid UTF-8 (file and byte), a line that isn't an object, a file without any `text_key`.
    """
    if source in corpora.CORPORA:
        return source, *corpora.open_corpus(source)
    if source.startswith("hf:"):
        return hugging_face(source, text_key, seen)
    files, alone = old_files(source) if old else list_files(source, seen), Path(source).is_file()
    name = Path(source).resolve().name
    if alone:
        name = re.sub(r"(?i)(\.(txt|md|jsonl?|parquet|gz|zst))+$", "", name) or name
    described = {"name": name, "registry": "local", "package": source, "version": "", "sha256": ""}
    return name, [{**described, "licence": "not stated"}], read_files(files, text_key, seen, alone)


def list_files(source: str, seen: Found) -> list[tuple[str, Path]]:
    """(id, path) of a file, or of all readable files under a folder, in id order."""
    path = Path(source)
    if path.is_file():
        if not path.name.lower().endswith(SUFFIXES):
            raise UsageError(f"can't read {source!r}: its name should end in {', '.join(SUFFIXES)}")
        return [(path.name, path)]
    if not path.is_dir():
        shown = source if len(source) < 200 else f"{source[:200]}..."
        hint = nearest(source, corpora.CORPORA)
        raise UsageError(f"no corpus, file or folder {shown!r}{hint}; corpora: {', '.join(corpora.CORPORA)}")
    files = []
    for name, file in sorted(walk(path, seen)):
        if not file.is_file():
            seen.leave_out("not a file", repr(name))
        elif name.lower().endswith(SUFFIXES):
            files.append((name, file))
        else:
            seen.leave_out("files of other kinds", repr(name))
    if not files:
        raise UsageError(f"folder {source!r} holds no {', '.join(SUFFIXES)} file")
    return files


def walk(top: Path, seen: Found) -> Iterator[tuple[str, Path]]:
    """(relative path, path) of what is in a folder, but hidden. Folders that links lead to come last, each once."""

    def relative(path: str | Path) -> str:
        return Path(path).relative_to(top).as_posix()

    def unreadable(error: OSError) -> None:
        seen.leave_out("folders that can't be opened", repr(relative(error.filename)))

    read, waiting = set[str](), [top]
    while waiting:
        links: list[Path] = []
        for start in waiting:
            for folder, folders, files in os.walk(start, onerror=unreadable):
                here, real = Path(folder), os.path.realpath(folder)
                if real in read:
                    seen.leave_out("folders read under another name", repr(relative(here)))
                    folders.clear()
                    continue
                read.add(real)
                for name in [n for n in (*folders, *files) if n.startswith(".")]:
                    seen.leave_out("hidden", repr(relative(here / name)))
                folders[:] = [n for n in folders if not n.startswith(".")]
                links += [here / n for n in folders if (here / n).is_symlink()]
                yield from ((relative(here / n), here / n) for n in files if not n.startswith("."))
        waiting = sorted(links)


def old_files(source: str) -> list[tuple[str, Path]]:
    """What was read of a source before there was a list of its files: no linked folders, and of fewer kinds."""
    kinds, top = (".txt", ".txt.gz", ".txt.zst", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet"), Path(source)
    return [
        (name, path)
        for name, path in list_files(source, Found())
        if name.endswith(kinds) and not any(p.is_symlink() for p in path.parents if top in p.parents)
    ]


def old_listing(source: str) -> str:
    """The fingerprint in manifests of that time: names and sizes."""
    rows = [(name, path.stat().st_size) for name, path in old_files(source)]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def changed(source: str, files: dict[str, Any], again: bool) -> list[str]:
    """Names under a local `source` that aren't as `files`, a manifest's `Found.files`, has them: new, gone or changed.

    A file of the same size and time of last change is taken as the same, unless `again`: then its contents are read.
    """
    there = dict(list_files(source, Found()))
    names = [*(files.keys() ^ there.keys())]
    for name in files.keys() & there.keys():
        size, when, known = files[name]
        now = there[name].stat()
        same_time = now.st_mtime_ns == when and not again
        if now.st_size != size or not (same_time or digest(there[name]) == known):
            names.append(name)
    return sorted(names)


def digest(path: Path) -> str:
    try:
        return sha256(path)
    except OSError as e:
        raise UsageError(f"can't read {str(path)!r}: {e.strerror or e}") from e


def read_files(files: list[tuple[str, Path]], text_key: str, seen: Found, alone: bool) -> Documents:
    """`alone`: the source is one file that the user named, and no folder."""
    for name, path in files:
        seen.files[name] = (path.stat().st_size, path.stat().st_mtime_ns, digest(path))
        kind = re.sub(r"\.(gz|zst)$", "", name.lower())
        strict = alone
        if kind.endswith(TEXT):
            yield name, formats.utf8(formats.whole(path), path, 0)
            continue
        if kind.endswith(".parquet"):
            rows, strict = formats.parquet_rows(path, text_key), False
        elif kind.endswith(".jsonl"):
            rows, strict = formats.json_lines(path), True
        else:
            rows = formats.json_lines(path) if formats.has_lines(path) else formats.json_items(path)
        yield from formats.texts(rows, name, path, text_key, seen, strict)


def hugging_face(source: str, text_key: str, seen: Found) -> tuple[str, list[dict[str, Any]], Documents]:
    owner_name, _, config = source.removeprefix("hf:").partition(":")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", owner_name):
        raise UsageError(f"{source!r}: expected hf:owner/name or hf:owner/name:config")

    @contextmanager
    def doing(what: str) -> Iterator[None]:
        try:
            yield
        except UsageError:
            raise
        except Exception as e:  # its own, its hub's and its HTTP client's errors share no base class
            why = " ".join(str(e).split())[:200]
            raise UsageError(f"can't {what} {source!r}: {type(e).__name__}: {why}") from e

    def found() -> Documents:
        with doing("read"):
            for number, row in enumerate(rows):
                if not isinstance(row.get(text_key, 0), str | None):
                    raise UsageError(f"{source!r} has no string column {text_key!r}{nearest(text_key, row)}")
                if row[text_key] is None:
                    seen.leave_out(f"records without {text_key!r}", f"row {number}")
                else:
                    yield str(number), row[text_key]

    with doing("open"):
        try:
            import datasets
        except ImportError:
            raise UsageError(f"{source!r} needs the datasets library: pip install datasets") from None
        rows = datasets.load_dataset(owner_name, config or None, split="train", streaming=True)
        version, licence = str(rows.info.version or ""), rows.info.license or "see the dataset's card"
    described = {"registry": "huggingface", "package": owner_name, "version": version, "sha256": ""}
    return Path(owner_name).name, [{"name": owner_name, **described, "licence": licence}], found()


# -------------------------------------------------------------------------------- one document


def piece_size(total: int) -> int:
    """Bytes of the pieces of texts of `total` bytes: 64 kB, but of short texts less, so that there are about 16."""
    return min(PIECE, max(64, total // 16))


def pieces(name: str, text: str, target: int) -> Documents:
    """A document cut at paragraph ends, else line ends, else spaces, into pieces of about `target` bytes.

    Joined, the pieces are the text again.
    """
    piece: list[str] = []
    size = number = 0
    for part in cut(text, target):
        if piece and size + len(part.encode()) > target:
            yield f"{name}#{number:05d}", "".join(piece)
            piece, size, number = [], 0, number + 1
        piece.append(part)
        size += len(part.encode())
    if piece:
        yield f"{name}#{number:05d}", "".join(piece)


def cut(text: str, target: int) -> Iterator[str]:
    """Parts of at most `target` bytes where the text allows it (hard cuts at `target // 4` characters otherwise)."""
    for separator in (r"(?<=\n)(?=\S)(?<=\n\n)", r"(?<=\n)", r"(?<=[ 。])"):
        parts = [p for p in re.split(separator, text) if p]
        if len(parts) > 1:
            break
    else:
        width = max(1, target // 4)  # UTF-8 has up to 4 bytes a character
        parts = [text[i : i + width] for i in range(0, len(text), width)]
    for part in parts:
        yield from cut(part, target) if len(parts) > 1 and len(part.encode()) > target else [part]
