"""Readers: a source becomes (document id, text) pairs, in a fixed order.

    corpus name            corpora.py's table
    .txt                   one file, one document; its id is the file's name
    .jsonl                 one line, one document: an object with the text under `text_key`; id NAME:LINE
    .parquet               one row, one document: a string column `text_key`; id NAME:ROW
    folder                 all of those under it, sorted, hidden files skipped; ids are relative paths
    hf:owner/name[:config] the train split of a Hugging Face dataset, streamed; id = row number

.txt and .jsonl may end in .gz or .zst. Ids don't hold the folder's own path, so that moving data changes no split.
A .txt file is held in memory whole, everything else by line, row group or row.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bigmodel.config import UsageError, nearest
from bigmodel.prepare import corpora

Documents = Iterator[tuple[str, str]]
KINDS = (".txt", ".jsonl", ".parquet")
PACKED = ("", ".gz", ".zst")
SUFFIXES = tuple(k + p for k in KINDS[:2] for p in PACKED) + (".parquet",)
PIECE = 65536  # bytes: what a source of a single document is split into
CHUNK = 2**20  # bytes


def open_source(source: str, text_key: str, cache: str | None) -> tuple[str, list[dict[str, Any]], Documents]:
    """(name, the manifest's `sources`, documents).

    Raises:
      UsageError: no such corpus, file or folder, or nothing readable in it. The documents raise it too, for a
        damaged file, invalid UTF-8 (file and byte), a line that isn't an object or lacks `text_key` (file and line).
    """
    if source in corpora.CORPORA:
        sources, found = corpora.open_corpus(source, cache)
        return source, sources, found
    if source.startswith("hf:"):
        return hugging_face(source, text_key)
    files = list_files(source)
    name = Path(source).resolve().name
    if Path(source).is_file():
        name = re.sub(r"(\.(txt|jsonl|parquet|gz|zst))+$", "", name) or name
    described = [
        {
            "name": name,
            "registry": "local",
            "package": source,
            "version": "",
            "sha256": "",
            "licence": "not stated",
            "listing": listing(files),
        }
    ]
    return name, described, read_files(files, text_key)


def list_files(source: str) -> list[tuple[str, Path]]:
    """(id, path) of a file, or of all readable files under a folder, in id order."""
    path = Path(source)
    if path.is_file():
        if not path.name.endswith(SUFFIXES):
            raise UsageError(f"can't read {source!r}: its name should end in {', '.join(SUFFIXES)}")
        return [(path.name, path)]
    if not path.is_dir():
        hint = nearest(source, corpora.names())
        raise UsageError(f"no corpus, file or folder {source!r}{hint}; corpora: {', '.join(corpora.names())}")
    relative = ((p.relative_to(path).as_posix(), p) for p in path.rglob("*"))
    files = sorted(
        (name, p)
        for name, p in relative
        if name.endswith(SUFFIXES) and not any(part.startswith(".") for part in name.split("/")) and p.is_file()
    )
    if not files:
        raise UsageError(f"folder {source!r} holds no {', '.join(SUFFIXES)} file")
    return files


def listing(files: list[tuple[str, Path]]) -> str:
    """A cheap fingerprint: names and sizes, not contents. Tells whether a source changed since a manifest was made."""
    return hashlib.sha256(json.dumps([(name, path.stat().st_size) for name, path in files]).encode()).hexdigest()


def read_files(files: list[tuple[str, Path]], text_key: str) -> Documents:
    for name, path in files:
        if name.endswith(".parquet"):
            yield from read_parquet(name, path, text_key)
        elif re.search(r"\.jsonl(\.\w+)?$", name):
            yield from read_jsonl(name, path, text_key)
        else:
            yield name, utf8(b"".join(chunks(path)), path, 0)


# ----------------------------------------------------------------------------------- formats


def chunks(path: Path) -> Iterator[bytes]:
    """The file's bytes, decompressed by its last suffix. A cut or damaged file is a UsageError, never a short read."""
    try:
        if path.suffix == ".zst":
            yield from zstd_chunks(path)
            return
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as f:
            while chunk := f.read(CHUNK):
                yield chunk
    except (EOFError, zlib.error, gzip.BadGzipFile) as e:
        raise UsageError(f"{str(path)!r} is damaged: {' '.join(str(e).split())}") from e
    except OSError as e:
        raise UsageError(f"can't read {str(path)!r}: {e.strerror or e}") from e


def zstd_chunks(path: Path) -> Iterator[bytes]:
    try:
        import zstandard
    except ImportError:
        raise UsageError(f"reading {path.name} needs zstandard: pip install zstandard") from None
    # decompressobj, frame by frame: zstandard's stream_reader takes a cut file for a short one
    frame, inside = zstandard.ZstdDecompressor().decompressobj(), False
    with open(path, "rb") as f:
        while data := f.read(CHUNK):
            while data:
                try:
                    yield frame.decompress(data)
                except zstandard.ZstdError as e:
                    raise UsageError(f"{str(path)!r} is damaged: {e}") from e
                inside = not frame.eof
                data = frame.unused_data if frame.eof else b""
                if frame.eof:
                    frame = zstandard.ZstdDecompressor().decompressobj()
    if inside:
        raise UsageError(f"{str(path)!r} is damaged: it ends inside a zstd frame")


def utf8(data: bytes, path: Path, offset: int) -> str:
    """Decodes; `offset` is where `data` starts in the (decompressed) file, for the message."""
    try:
        return data.decode().removeprefix("\ufeff") if offset == 0 else data.decode()
    except UnicodeDecodeError as e:
        bad = data[e.start]
        raise UsageError(f"{str(path)!r} isn't UTF-8: byte {offset + e.start} is 0x{bad:02x} ({e.reason})") from None


def read_jsonl(name: str, path: Path, text_key: str) -> Documents:
    offset = 0
    for number, raw in enumerate(io.BufferedReader(Stream(chunks(path)), CHUNK), 1):
        line, offset = utf8(raw, path, offset), offset + len(raw)
        if not line.strip():
            continue
        where = f"{str(path)!r} line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as e:
            raise UsageError(f"{where} isn't JSON: {e}") from None
        except RecursionError:
            raise UsageError(f"{where} isn't usable JSON: nested too deeply") from None
        if not isinstance(row, dict):
            raise UsageError(f"{where} isn't a JSON object but a {type(row).__name__}")
        if text_key not in row:
            raise UsageError(f"{where} has no key {text_key!r}{nearest(text_key, row)}; choose with --text-key")
        text = row[text_key]
        if not isinstance(text, str):
            raise UsageError(f"{where}: {text_key!r} is a {type(text).__name__}, not a string")
        if re.search("[\ud800-\udfff]", text):
            raise UsageError(f"{where}: {text_key!r} holds half a surrogate pair, which isn't text")
        yield f"{name}:{number}", text


class Stream(io.RawIOBase):
    """A file of the chunks, so that BufferedReader finds the lines."""

    def __init__(self, source: Iterator[bytes]):
        self.source, self.rest = source, b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.rest:
            chunk = next(self.source, None)
            if chunk is None:
                return 0
            self.rest = chunk
        size = min(len(buffer), len(self.rest))
        buffer[:size], self.rest = self.rest[:size], self.rest[size:]
        return size


def read_parquet(name: str, path: Path, text_key: str) -> Documents:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise UsageError(f"reading {path.name} needs pyarrow: pip install pyarrow") from None
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            if text_key not in schema.names:
                raise UsageError(
                    f"{str(path)!r} has no column {text_key!r}{nearest(text_key, schema.names)}; choose with --text-key"
                )
            kind = schema.field(text_key).type
            if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
                raise UsageError(f"{str(path)!r}: column {text_key!r} is {kind}, not string")
            for batch in file.iter_batches(batch_size=1024, columns=[text_key]):
                for value in batch.column(0):
                    number += 1
                    if value.is_valid:
                        yield f"{name}:{number}", value.as_py()
    except UnicodeDecodeError:
        raise UsageError(f"{str(path)!r} row {number}: column {text_key!r} isn't UTF-8") from None
    except (pa.ArrowException, OSError) as e:
        raise UsageError(f"{str(path)!r} isn't a readable parquet file: {' '.join(str(e).split())[:200]}") from e


def hugging_face(source: str, text_key: str) -> tuple[str, list[dict[str, Any]], Documents]:
    owner_name, _, config = source.removeprefix("hf:").partition(":")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", owner_name):
        raise UsageError(f"{source!r}: expected hf:owner/name or hf:owner/name:config")
    try:
        import datasets
    except ImportError:
        raise UsageError(f"{source!r} needs the datasets library: pip install datasets") from None
    try:
        rows = datasets.load_dataset(owner_name, config or None, split="train", streaming=True)
        info = rows.info
    except Exception as e:  # its own, its hub's and its HTTP client's errors share no base class
        raise UsageError(f"can't open {source!r}: {type(e).__name__}: {' '.join(str(e).split())[:200]}") from e

    def found() -> Documents:
        try:
            for number, row in enumerate(rows):
                if not isinstance(row.get(text_key), str):
                    raise UsageError(f"{source!r} has no string column {text_key!r}{nearest(text_key, row)}")
                yield str(number), row[text_key]
        except UsageError:
            raise
        except Exception as e:
            raise UsageError(f"can't read {source!r}: {type(e).__name__}: {' '.join(str(e).split())[:200]}") from e

    described = {
        "name": owner_name,
        "registry": "huggingface",
        "package": owner_name,
        "version": str(info.version or ""),
        "sha256": "",
        "licence": info.license or "see the dataset's card",
    }
    return owner_name.rsplit("/", 1)[-1], [described], found()


# -------------------------------------------------------------------------------- one document


def pieces(name: str, text: str) -> Documents:
    """A single document cut at paragraph ends, else line ends, else spaces, into pieces of about 64 kB.

    A source of one document couldn't be split into train and validation otherwise. Short texts give smaller
    pieces, about 16; joined, the pieces are the text again.
    """
    target = min(PIECE, max(64, len(text.encode()) // 16))
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
