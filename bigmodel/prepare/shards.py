"""Shards: documents spooled to disk once, split and ordered by hash, written as raw little-endian tokens.

A shard is three files: NAME.bin (tokens, each document followed by one separator), NAME.idx.npy (int64, where each
document starts, in tokens) and NAME.receipt.json (its counts and digests, written last). A shard whose receipt names
the same documents and tokenizer, and whose files have the receipt's digests, is finished: a second run skips it.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from bigmodel.errors import UsageError
from bigmodel.files import is_whole, sealed
from bigmodel.prepare.documents import piece_size, pieces
from bigmodel.prepare.formats import Documents, Found
from bigmodel.prepare.tokenizer import AnyTokenizer, Bytes, Subwords

BATCH = 2**20  # bytes of text encoded at once
CONTROL = bytes({*range(32), 127} - {*b"\b\t\n\v\f\r\x1b"})  # what texts don't hold but here and there


def dtype_for(vocab_size: int) -> str:
    return "uint8" if vocab_size <= 2**8 else "uint16" if vocab_size <= 2**16 else "uint32"


# ------------------------------------------------------------------------------------- spool


class Spool:
    """All documents' texts in one file, and in memory only where each starts and two 16-byte hashes (~150 bytes each).

    Made in the source's order; everything after it goes by hash, so the source is read once.
    """

    def __init__(self, path: Path):
        self.path = path
        self.starts, self.sizes = array("q"), array("q")
        self.ids: list[bytes] = []
        self.texts: list[bytes] = []
        self.file = open(path, "wb")  # noqa: SIM115 (closed by close())

    def add(self, document: str, text: str, dropped: int = 0) -> None:
        """`dropped`: NUL characters that were in the text."""
        data = text.encode()
        controls = dropped + len(data) - len(data.translate(None, CONTROL))
        if controls > max(8, (len(data) + dropped) // 4):  # binary data, or UTF-16, half of which is NUL
            raise UsageError(f"document {document!r} isn't text: {controls:,} of {len(data):,} bytes are control codes")
        self.starts.append(self.file.tell())
        self.sizes.append(len(data))
        self.ids.append(hashlib.sha256(document.encode("utf-8", "surrogateescape")).digest()[:16])
        self.texts.append(hashlib.sha256(data).digest()[:16])
        self.file.write(data)

    def close(self) -> None:
        self.file.close()

    def __len__(self) -> int:
        return len(self.sizes)

    def split(self, fraction: float) -> dict[str, list[int]]:
        """{'train': ..., 'validation': ...}: document numbers, in hash order, so that sources mix.

        A document is in validation where its id's hash is under `fraction` of the range; one with exactly the text
        of an earlier document goes where that went, so that no validation text is trained on. Each side gets at
        least one document.
        """
        first: dict[bytes, bytes] = {}
        limit = int(fraction * 2**64)
        order = sorted(range(len(self)), key=lambda i: (self.ids[i], i))
        deciding = [first.setdefault(self.texts[i], self.ids[i]) for i in range(len(self))]
        held_out = {key for key in deciding if int.from_bytes(key[:8], "big") < limit}
        if not held_out:
            held_out = {min(deciding)}
        elif len(held_out) == len(first):
            held_out.discard(max(deciding))
        return {
            "train": [i for i in order if deciding[i] not in held_out],
            "validation": [i for i in order if deciding[i] in held_out],
        }

    def share(self, documents: Sequence[int]) -> float:
        """How much of the text is in these documents."""
        return sum(self.sizes[i] for i in documents) / sum(self.sizes)

    def pieces(self, names: Sequence[str]) -> Documents:
        """The documents, by their `names`, and long ones cut into pieces."""
        target = piece_size(sum(self.sizes))
        spans = zip(self.starts, self.sizes, strict=True)
        for name, text in zip(names, itertools.chain.from_iterable(read_texts(self.path, spans)), strict=True):
            yield from pieces(name, text, target)

    def shards(self, documents: Sequence[int], shard_tokens: int) -> Iterator[list[int]]:
        """Cuts a split into shards of about `shard_tokens` bytes of text.

        Bytes, because they are known before encoding: a shard never depends on another, so shards run in parallel.
        Byte-level tokens are never more than bytes, so that a shard has at most about `shard_tokens` tokens.
        """
        shard: list[int] = []
        size = 0
        for i in documents:
            if shard and size + self.sizes[i] + 1 > shard_tokens:
                yield shard
                shard, size = [], 0
            shard.append(i)
            size += self.sizes[i] + 1
        if shard:
            yield shard

    def key(self, documents: Sequence[int], tokenizer: AnyTokenizer) -> str:
        """What a shard is made from, and nothing else: equal keys mean equal shards."""
        h = hashlib.sha256(f"1 {tokenizer.kind} {tokenizer.separator} {tokenizer.vocab_size} ".encode())
        h.update(hashlib.sha256(tokenizer.content.encode()).digest())
        for i in documents:
            h.update(self.ids[i] + self.texts[i])
        return h.hexdigest()


def read_texts(path: Path, spans: Iterable[tuple[int, int]]) -> Iterator[list[str]]:
    """The texts at (start, bytes), in batches of about BATCH bytes."""
    batch: list[str] = []
    size = 0
    with open(path, "rb") as f:
        for start, length in spans:
            f.seek(start)
            batch.append(f.read(length).decode())
            size += length
            if size >= BATCH:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch


def spool_documents(
    found: Documents, path: Path, tokenizer: AnyTokenizer | None, limit: int, seen: Found
) -> Iterator[Spool]:
    """Fills a spool, yielding it after each document (for progress), and once more when it is closed.

    Empty texts are left out, and counted in `seen`. `limit`: bytes of text after which reading stops, once there are
    two documents; 0 is none.
    """
    spool = Spool(path)
    total = 0
    try:
        for document, text in found:
            cleaned = tokenizer.clean(text) if tokenizer else text
            if not cleaned.strip():
                seen.leave_out("empty texts", repr(document))
                continue
            if cleaned != text:
                seen.leave_out("NUL characters in texts", repr(document))
            spool.add(document, cleaned, len(text) - len(cleaned))
            total += spool.sizes[-1]
            yield spool
            if 0 < limit <= total and len(spool) >= 2:
                break
    finally:
        spool.close()
    yield spool


# ------------------------------------------------------------------------------------ shards


@dataclass(frozen=True)
class Task:
    """Everything a worker process needs for one shard; small, since texts stay in the spool."""

    name: str  # train-00000
    key: str
    out: str
    work: str  # local folder; on the same file system as a local `out`
    spool: str
    spans: list[tuple[int, int]]
    kind: str
    tokenizer: str  # local tokenizer.json; '' for bytes


def write_shard(task: Task) -> dict[str, Any]:
    """Encodes one shard into `work`, then moves it into `out`: .bin, .idx.npy, and last the receipt it returns."""
    tokenizer: AnyTokenizer = Bytes()
    if task.tokenizer:
        tokenizer = Subwords(task.kind, Path(task.tokenizer).read_text(encoding="utf-8"), task.tokenizer)
    dtype = np.dtype(dtype_for(tokenizer.vocab_size)).newbyteorder("<")
    separator = np.array([tokenizer.separator], dtype).tobytes()
    starts, tokens, digest = array("q"), 0, hashlib.sha256()
    prefix = f"{task.name}.{os.getpid()}"  # a worker of a killed run may live on for a moment
    binary, index = Path(task.work) / f"{prefix}.bin", Path(task.work) / f"{prefix}.idx.npy"
    with open(binary, "wb") as f:
        for texts in read_texts(Path(task.spool), task.spans):
            encoded = []
            for ids in tokenizer.arrays(texts):
                starts.append(tokens)
                tokens += len(ids) + 1
                encoded += [ids.astype(dtype).tobytes(), separator]
            data = b"".join(encoded)
            digest.update(data)
            f.write(data)
        f.flush()
        os.fsync(f.fileno())
    np.save(index, np.array(starts, "<i8"))
    receipt = {
        "key": task.key,
        "file": f"{task.name}.bin",
        "tokens": tokens,
        "documents": len(starts),
        "bytes": sum(size for _, size in task.spans),
        "sha256": digest.hexdigest(),
        "index_sha256": hashlib.sha256(index.read_bytes()).hexdigest(),
    }
    out = epath.Path(task.out)
    move(binary, out / f"{task.name}.bin")
    move(index, out / f"{task.name}.idx.npy")
    write_json(sealed(receipt), out / f"{task.name}.receipt.json", Path(task.work))
    return receipt


def finished(task: Task) -> dict[str, Any] | None:
    """The receipt of a shard that is in `out`, whole and made from the same input; else None."""
    out = epath.Path(task.out)
    receipt = read_json(out / f"{task.name}.receipt.json")
    if receipt is None or receipt.get("key") != task.key or not is_whole(receipt):
        return None
    for suffix, field in ((".bin", "sha256"), (".idx.npy", "index_sha256")):
        if file_digest(out / f"{task.name}{suffix}") != receipt.get(field):
            return None
    return receipt


# -------------------------------------------------------------------------------------- files


def is_local(path: epath.Path) -> bool:
    return "://" not in os.fspath(path)


def move(source: Path, target: epath.Path) -> None:
    """Atomic on a local disk; object stores write whole objects."""
    if is_local(target):
        os.replace(source, target)
    else:
        epath.Path(source).copy(target, overwrite=True)
        source.unlink()


def write_json(row: dict[str, Any], target: epath.Path, work: Path) -> None:
    temporary = work / f"{target.name}.tmp"
    temporary.write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")
    move(temporary, target)


def read_json(path: epath.Path) -> dict[str, Any] | None:
    """None where there is no such file, or one that isn't a JSON object."""
    try:
        row = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def file_digest(path: epath.Path) -> str | None:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as f:
            while chunk := f.read(2**20):
                digest.update(chunk)
    except OSError:
        return None
    return digest.hexdigest()


def remove_folder(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
