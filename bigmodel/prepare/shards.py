"""Shards: documents spooled to disk once, split and ordered by hash, written as raw little-endian tokens.

A shard is three files: NAME.bin (tokens, each document followed by one separator), NAME.idx.npy (int64, where each
document starts, in tokens) and NAME.receipt.json (its counts and digests, written last). A shard is finished if its
receipt names the same documents and tokenizer, and its files have the receipt's digests. A second run skips it.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bigmodel.errors import UsageError
from bigmodel.files import is_whole, sealed
from bigmodel.prepare import folder
from bigmodel.prepare.documents import piece_size, pieces
from bigmodel.prepare.folder import Folder
from bigmodel.prepare.formats import Documents, Found
from bigmodel.prepare.tokenizer import AnyTokenizer

BATCH = 2**20  # bytes of text encoded at once
CONTROL = bytes({*range(32), 127} - {*b"\b\t\n\v\f\r\x1b"})  # rare in texts
OURS = r"(train|validation)-\d{5}(\.bin|\.idx\.npy|\.receipt\.json)"


def dtype_for(vocab_size: int) -> str:
    return "uint8" if vocab_size <= 2**8 else "uint16" if vocab_size <= 2**16 else "uint32"


# ------------------------------------------------------------------------------------- spool


class Spool:
    """All documents' texts in one file. In memory are only where each starts and two 16-byte hashes (~150 bytes each).

    The source is read once, in its own order. Everything after that goes by hash.

    Args:
      tokenizer: cleans the texts; None where it is trained later.
      seen: counts what is left out.
      bar: shows the progress.
    """

    def __init__(self, path: Path, tokenizer: AnyTokenizer | None, seen: Found, bar: Any):
        self.path, self.tokenizer, self.seen, self.bar = path, tokenizer, seen, bar
        self.starts, self.sizes = array("q"), array("q")
        self.ids: list[bytes] = []
        self.texts: list[bytes] = []

    def fill(self, found: Documents) -> Spool:
        """Writes the documents. Empty texts are left out."""
        task = self.bar.add_task("reading", total=None)
        with open(self.path, "wb") as f:
            for document, text in found:
                cleaned = self.tokenizer.clean(text) if self.tokenizer else text
                if not cleaned.strip():
                    self.seen.leave_out("empty texts", repr(document))
                    continue
                if cleaned != text:
                    self.seen.leave_out("NUL characters in texts", repr(document))
                data = cleaned.encode()
                check_text(document, data, dropped=len(text) - len(cleaned))
                self.starts.append(f.tell())
                self.sizes.append(len(data))
                self.ids.append(hashlib.sha256(document.encode("utf-8", "surrogateescape")).digest()[:16])
                self.texts.append(hashlib.sha256(data).digest()[:16])
                f.write(data)
                if len(self) % 256 == 0:
                    self.bar.update(task, description=f"reading, {len(self)} documents")
        self.bar.update(task, total=1, completed=1, description=f"read {len(self)} documents, {sum(self.sizes)} bytes")
        return self

    def __len__(self) -> int:
        return len(self.sizes)

    def split(self, fraction: float) -> dict[str, list[int]]:
        """{'train': ..., 'validation': ...}: document numbers, in hash order, so that sources mix.

        A document is in validation if its id's hash is under `fraction` of the range. One with exactly the text of an
        earlier document goes where that went, so that no validation text is trained on. Each side gets at least one.
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
        """The fraction of the text that is in these documents."""
        return sum(self.sizes[i] for i in documents) / sum(self.sizes)

    def spans(self, documents: Iterable[int]) -> list[tuple[int, int]]:
        """(start, bytes) of documents."""
        return [(self.starts[i], self.sizes[i]) for i in documents]

    def cut(self, names: Sequence[str]) -> Spool:
        """A spool of the documents by their `names`, with long ones cut into pieces."""
        target = piece_size(sum(self.sizes))
        texts = itertools.chain.from_iterable(read_texts(self.path, self.spans(range(len(self)))))
        found = (piece for name, text in zip(names, texts, strict=True) for piece in pieces(name, text, target))
        return Spool(self.path.with_name("pieces.txt"), self.tokenizer, self.seen, self.bar).fill(found)

    def shards(self, documents: Sequence[int], shard_tokens: int) -> Iterator[list[int]]:
        """Cuts a split into shards of about `shard_tokens` bytes of text.

        Bytes are known before encoding, so that no shard depends on another and shards run in parallel. Byte-level
        tokens are never more than bytes, so that a shard has at most about `shard_tokens` tokens.
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


def check_text(document: str, data: bytes, dropped: int) -> None:
    """Raises UsageError for binary data, or UTF-16, half of which is NUL. `dropped`: NULs that were in the text."""
    controls = dropped + len(data) - len(data.translate(None, CONTROL))
    if controls > max(8, (len(data) + dropped) // 4):
        raise UsageError(f"document {document!r} isn't text: {controls:,} of {len(data):,} bytes are control codes")


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


# ------------------------------------------------------------------------------------ shards


@dataclass(frozen=True)
class Task:
    """Everything a worker process needs for one shard; small, since texts stay in the spool."""

    name: str  # train-00000
    key: str
    folder: Folder
    spool: Path
    spans: list[tuple[int, int]]
    tokenizer: AnyTokenizer


def write_shard(task: Task) -> dict[str, Any]:
    """Encodes one shard, then moves it into the folder: .bin, .idx.npy, and last the receipt, which it returns."""
    tokenizer = task.tokenizer
    dtype = np.dtype(dtype_for(tokenizer.vocab_size)).newbyteorder("<")
    separator = np.array([tokenizer.separator], dtype).tobytes()
    starts, tokens, digest = array("q"), 0, hashlib.sha256()
    prefix = f"{task.name}.{os.getpid()}"  # a worker of a killed run may live on for a moment
    binary, index = task.folder.work / f"{prefix}.bin", task.folder.work / f"{prefix}.idx.npy"
    with open(binary, "wb") as f:
        for texts in read_texts(task.spool, task.spans):
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
        "index_sha256": folder.sha256(index),
    }
    folder.move(binary, task.folder.root / f"{task.name}.bin")
    folder.move(index, task.folder.root / f"{task.name}.idx.npy")
    task.folder.put_json(f"{task.name}.receipt.json", sealed(receipt))
    return receipt


def finished(task: Task) -> dict[str, Any] | None:
    """The receipt of a shard that is in the folder, whole and made from the same input; else None."""
    path = task.folder.root / task.name
    receipt = folder.read_json(path.with_name(f"{task.name}.receipt.json"))
    if receipt is None or receipt.get("key") != task.key or not is_whole(receipt):
        return None
    for suffix, field in ((".bin", "sha256"), (".idx.npy", "index_sha256")):
        if not folder.has_digest(path.with_name(f"{task.name}{suffix}"), receipt.get(field)):
            return None
    return receipt
