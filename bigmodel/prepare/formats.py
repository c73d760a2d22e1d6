"""The formats of documents.py's files: bytes of a file, unpacked within bounds, and the texts in them."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bigmodel.errors import UsageError, nearest

Documents = Iterator[tuple[str, str]]  # (id, text)
Records = Iterator[tuple[int, str, Any]]  # number, where it is, for messages, and what json.loads made of it
TEXT, JSON = (".txt", ".md"), (".jsonl", ".json")
PACKED = (".gz", ".zst")
SUFFIXES = tuple(k + p for k in TEXT + JSON for p in ("", *PACKED)) + (".parquet",)
CHUNK = 2**20  # bytes

# A few kB can unpack to many GB. What a packed file may unpack to: FREE bytes, or RATIO times its size if that is more
# (text takes a third to a tenth when packed); and no document of it may have more than DOCUMENT bytes.
FREE, RATIO, DOCUMENT = 2**28, 200, 2**32
WINDOW = 2**31  # bytes of a .zst file's window, zstd's own maximum; its memory is only used as far as the file unpacks
SLICE = 1024  # bytes of a .zst file unpacked at once: at most 33 MB come out of them


@dataclass
class Found:
    """What reading a source tells besides its documents.

    Attributes:
      left_out: reason: how many, and the first.
      files: of each local file: its size, the time of its last change (ns) and its SHA-256.
      notes: lines to print at the end.
    """

    left_out: dict[str, tuple[int, str]] = field(default_factory=dict)
    files: dict[str, tuple[int, int, str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def leave_out(self, reason: str, example: str) -> None:
        count, first = self.left_out.get(reason, (0, example))
        self.left_out[reason] = (count + 1, first)

    def digest(self) -> str:
        """Of all files' names and contents."""
        return hashlib.sha256(json.dumps([(name, row[2]) for name, row in self.files.items()]).encode()).hexdigest()

    def __str__(self) -> str:
        return "; ".join(f"{reason}: {n:,} (first: {first})" for reason, (n, first) in self.left_out.items())


# -------------------------------------------------------------------------------------- bytes


def chunks(path: Path) -> Iterator[bytes]:
    """The file's bytes, unpacked by its last suffix.

    Raises:
      UsageError: a cut or damaged file (never a short read), or one that unpacks to more than it may.
    """
    kind = path.suffix.lower()
    try:
        most = max(FREE, RATIO * path.stat().st_size)
        opener = gzip.open if kind == ".gz" else open
        for chunk in zstd_chunks(path) if kind == ".zst" else file_chunks(path, opener):
            most -= len(chunk)
            if most < 0 and kind in PACKED:
                raise too_much(path)
            yield chunk
    except (EOFError, zlib.error, gzip.BadGzipFile) as e:
        raise UsageError(f"{str(path)!r} is damaged: {' '.join(str(e).split())}") from e
    except OSError as e:
        raise UsageError(f"can't read {str(path)!r}: {e.strerror or e}") from e


def too_much(path: Path) -> UsageError:
    return UsageError(
        f"{str(path)!r} unpacks to more than {RATIO} times its size, as no text does; unpack it yourself if it is no "
        "decompression bomb"
    )


def file_chunks(path: Path, opener: Any = open) -> Iterator[bytes]:
    with opener(path, "rb") as f:
        while chunk := f.read(CHUNK):
            yield chunk


def zstd_chunks(path: Path) -> Iterator[bytes]:
    import zstandard

    # decompressobj, frame by frame: zstandard's stream_reader takes a cut file for a short one
    new = zstandard.ZstdDecompressor(max_window_size=WINDOW).decompressobj
    frame, inside = new(), False
    try:
        for chunk in file_chunks(path):
            for begin in range(0, len(chunk), SLICE):
                data = chunk[begin : begin + SLICE]
                while data:
                    yield frame.decompress(data)
                    inside = not frame.eof
                    data = frame.unused_data if frame.eof else b""
                    frame = new() if frame.eof else frame
    except zstandard.ZstdError as e:
        if "too much memory" in str(e):
            raise UsageError(
                f"{str(path)!r} needs a window of more than {WINDOW:,} bytes, which is the most that is read here: "
                "pack it again with `zstd --long=31` or less"
            ) from e
        raise UsageError(f"{str(path)!r} is damaged: {e}") from e
    if inside:
        raise UsageError(f"{str(path)!r} is damaged: it ends inside a zstd frame")


def whole(path: Path) -> bytes:
    """All of a file, as one document."""
    parts, size = [], 0
    for chunk in chunks(path):
        parts.append(chunk)
        size += len(chunk)
        if size > DOCUMENT and path.suffix.lower() in PACKED:
            raise too_long(repr(str(path)))
    return b"".join(parts)


def byte_lines(path: Path) -> Iterator[bytes]:
    """The file's lines with their ends."""
    rest: list[bytes] = []
    for chunk in chunks(path):
        *ends, last = chunk.split(b"\n")
        for end in ends:
            yield b"".join([*rest, end, b"\n"])
            rest = []
        rest.append(last)
        if sum(map(len, rest)) > DOCUMENT:
            raise too_long(f"a line of {str(path)!r}")
    yield b"".join(rest)


def too_long(where: str) -> UsageError:
    return UsageError(f"{where} unpacks to more than {DOCUMENT:,} bytes, the most that a document may have: split it")


def utf8(data: bytes, path: Path, offset: int) -> str:
    """Decodes. `offset` is where `data` starts in the (unpacked) file, for the message."""
    if (zero := data.find(b"\0")) >= 0:  # valid UTF-8, but what UTF-16 and binary files have and text doesn't
        raise UsageError(
            f"{str(path)!r} isn't text in UTF-8 (byte {offset + zero} is 0); if it is UTF-16, convert it with "
            "`iconv -f UTF-16 -t UTF-8`"
        )
    try:
        return data.decode().removeprefix("\ufeff") if offset == 0 else data.decode()
    except UnicodeDecodeError as e:
        bad = data[e.start]
        raise UsageError(f"{str(path)!r} isn't UTF-8: byte {offset + e.start} is 0x{bad:02x} ({e.reason})") from None


# ------------------------------------------------------------------------------------ records


def texts(rows: Records, name: str, path: Path, text_key: str, seen: Found, strict: bool = False) -> Documents:
    """The texts of a file's records. `strict`: each must be an object, and one at least have `text_key`."""
    known, hint = not strict, None
    for number, where, row in rows:
        if not isinstance(row, dict) and strict:
            raise UsageError(f"{where} isn't a JSON object but a {type(row).__name__}")
        text = row.get(text_key) if isinstance(row, dict) else None
        if text is None:
            likely = "" if not isinstance(row, dict) or text_key in row else nearest(text_key, row)
            hint, known = likely if hint is None else hint, known or text_key in row
            seen.leave_out(f"records without {text_key!r}", f"{name}:{number}{likely}")
            continue
        known = True
        if not isinstance(text, str):
            raise UsageError(f"{where}: {text_key!r} is a {type(text).__name__}, not a string")
        if not text.isascii() and re.search("[\ud800-\udfff]", text):
            raise UsageError(f"{where}: {text_key!r} holds half a surrogate pair, which isn't text")
        yield f"{name}:{number}", text
    if not known and hint is not None:
        raise UsageError(f"{str(path)!r}: no record has a key {text_key!r}{hint}; choose with --text-key")


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number, line) of what isn't empty."""
    offset = 0
    for number, raw in enumerate(byte_lines(path), 1):
        line, offset = utf8(raw, path, offset), offset + len(raw)
        if line.strip():
            yield number, line


def json_lines(path: Path) -> Records:
    for number, line in read_lines(path):
        where = f"{str(path)!r} line {number}"
        yield number, where, parsed(line, where)


def json_items(path: Path) -> Records:
    found = parsed(utf8(whole(path), path, 0), repr(str(path)))
    for number, row in enumerate(found if isinstance(found, list) else [found], 1):
        yield number, f"{str(path)!r} item {number}", row


def has_lines(path: Path) -> bool:
    """Whether a .json file is one of JSON lines: its first line is a whole object."""
    _, line = next(read_lines(path), (0, ""))
    try:
        return line.lstrip().startswith("{") and isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (RecursionError, ValueError) as e:  # a number of more than 4,300 digits is a plain ValueError
        usable = "" if isinstance(e, json.JSONDecodeError) else "usable "
        raise UsageError(f"{where} isn't {usable}JSON: {e}") from None


def parquet_rows(path: Path, text_key: str) -> Records:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            if text_key not in schema.names:
                raise UsageError(
                    f"{str(path)!r} has no column {text_key!r}{nearest(text_key, schema.names)}; choose with --text-key"
                )
            kind = schema.field(text_key).type
            kind = kind.value_type if pa.types.is_dictionary(kind) else kind  # a category of pandas
            if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
                raise UsageError(f"{str(path)!r}: column {text_key!r} is {kind}, not string")
            groups = [file.metadata.row_group(k) for k in range(file.metadata.num_row_groups)]
            columns = [group.column(i) for group in groups for i in range(group.num_columns)]
            sizes = [c.total_uncompressed_size for c in columns if c.path_in_schema == text_key]
            most = max(FREE, RATIO * path.stat().st_size)
            if sum(sizes) > most:
                raise too_much(path)
            # a text may be as long as all that is packed, and a dictionary may have it in every row
            rows = max(1, min(1024, DOCUMENT // max([1, *sizes])))
            for batch in file.iter_batches(batch_size=rows, columns=[text_key]):
                for value in batch.column(0):
                    number += 1
                    text = value.as_py()
                    most -= len(text or "")
                    if most < 0:
                        raise too_much(path)
                    yield number, f"{str(path)!r} row {number}", {text_key: text}
    except UnicodeDecodeError:
        raise UsageError(f"{str(path)!r} row {number}: column {text_key!r} isn't UTF-8") from None
    except (pa.ArrowException, OSError) as e:
        raise UsageError(f"{str(path)!r} isn't a readable parquet file: {' '.join(str(e).split())[:200]}") from e
