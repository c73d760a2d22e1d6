"""Token shards written by `bigmodel prepare`, read as windows: example k is tokens [k L, k L + L + 1)."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from typing import Any

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from bigmodel.data import SPLITS, Info, Split, check_amounts, check_file, damaged, expect, folder, manifest
from bigmodel.errors import UsageError, check_ranges

CHUNK = 2**20  # tokens counted at once
KEYS = {
    str: "dtype tokenizer.kind tokenizer.file",
    int: "tokenizer.vocab_size tokenizer.separator splits.{split}.tokens splits.{split}.bytes",
    list: "splits.{split}.shards",
}


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            source="text",
            name="news-bytes",  # a folder under run.data_dir (or a path) made by `bigmodel prepare`
            seq_len=256,  # tokens a window
            examples=0,  # unique training windows to use, the first ones; 0: all
            epochs=1,  # passes over the unique tokens that a run may make at most
            fingerprint="",  # the manifest's hash: filled from the data, checked where it is given
        )
    )


def _manifest(cfg: ConfigDict, root: str) -> dict[str, Any]:
    def inspect(found: Any) -> None:
        for split in SPLITS:
            rows = found["splits"][split]["shards"]
            for row in rows:
                expect(row, {str: "file", int: "tokens"})
            if not rows or sum(row["tokens"] for row in rows) != found["splits"][split]["tokens"]:
                raise ValueError(f"splits.{split}.tokens are not those of its shards")
        if found["dtype"] not in ("uint8", "uint16", "uint32"):
            raise ValueError(f"dtype is {found['dtype']!r}")

    return manifest(cfg, root, "data", KEYS, inspect)


def finalize(cfg: ConfigDict, root: str) -> None:
    check_ranges("config.data.", cfg, seq_len="[1, inf)")
    found = _manifest(cfg, root)
    check_amounts(cfg, max(0, (found["splits"]["train"]["tokens"] - 1) // cfg.seq_len))
    cfg.fingerprint = found["hash"]


def describe(cfg: Any, root: str) -> Info:
    found = _manifest(cfg, root)
    splits = found["splits"]
    examples = {split: max(0, (splits[split]["tokens"] - 1) // cfg.seq_len) for split in SPLITS}
    for split, n in examples.items():
        if n < 1:
            raise UsageError(
                f"config.data.seq_len={cfg.seq_len}: {str(folder(cfg, root))!r} has only "
                f"{splits[split]['tokens']} {split} tokens"
            )
    sizes = {"vocab_size": found["tokenizer"]["vocab_size"], "seq_len": cfg.seq_len}
    examples["train"] = cfg.examples or examples["train"]
    return Info("tokens", cfg.seq_len, examples["train"], examples["validation"], sizes)


@functools.lru_cache(maxsize=4)
def _token_bytes(
    path: str, kind: str, vocab_size: int, separator: int, of: str
) -> tuple[np.ndarray, np.ndarray] | None:
    """UTF-8 bytes of text that each token stands for: (inside a document, as its first token).

    None where the tokenizer doesn't say. `of` is the data's hash, for the cache.
    """
    inside = np.ones(vocab_size, np.int64)
    first = inside
    if kind != "bytes":
        try:
            import tokenizers

            content = epath.Path(path).read_text()
            tokenizer, parts = tokenizers.Tokenizer.from_str(content), json.loads(content)
        except Exception:  # no such library or file, or not a tokenizer.json: the library raises bare Exception
            return None
        vocabulary = tokenizer.get_vocab(with_added_tokens=True)
        if max(vocabulary.values(), default=0) >= vocab_size:
            return None
        if _byte_level(parts.get("pre_tokenizer")):  # its alphabet has one character a byte
            for token, i in vocabulary.items():
                inside[i] = len(token)
            for i, added in tokenizer.get_added_tokens_decoder().items():
                inside[i] = len(added.content.encode())
        else:  # a token's text may depend on whether another precedes it, as the space of a Metaspace
            before = tokenizer.encode("a", add_special_tokens=False).ids[-1:]
            first = np.zeros_like(inside)
            ids = list(vocabulary.values())
            inside[ids] = [len(t.encode()) for t in tokenizer.decode_batch([[*before, i] for i in ids])]
            inside -= len(tokenizer.decode(before).encode())
            first[ids] = [len(t.encode()) for t in tokenizer.decode_batch([[i] for i in ids])]
            for token, i in vocabulary.items():
                if re.fullmatch("<0x[0-9A-F]{2}>", token) and parts["model"].get("byte_fallback"):
                    inside[i] = first[i] = 1
    inside[separator] = first[separator] = 0
    return inside, first


def _byte_level(step: Any) -> bool:
    """Whether a tokenizer.json's pre-tokenizer, or a part of it, is ByteLevel."""
    if not isinstance(step, dict):
        return False
    return step.get("type") == "ByteLevel" or any(map(_byte_level, step.get("pretokenizers", ())))


class Windows(Split):
    """Windows of a split's concatenated shards; a window may span shards."""

    def __init__(self, cfg: Any, root: str, split: str):
        super().__init__(cfg, root, split)
        found, home = _manifest(cfg, root), folder(cfg, root)
        self.seq_len, self.bytes = cfg.seq_len, found["splits"][split]["bytes"]
        made = found["tokenizer"]
        self.separator = made["separator"]
        self.tokenizer = (str(home / made["file"]), made["kind"], made["vocab_size"], self.separator, found["hash"])
        dtype = np.dtype(found["dtype"]).newbyteorder("<")
        self.shards: list[np.ndarray] = []
        for file, sha256 in found.get("files", {}).items():
            check_file(home / file, sha256)
        for shard in found["splits"][split]["shards"]:
            path, remote = home / shard["file"], "://" in str(home)
            check_file(path, None)
            want, have = shard["tokens"] * dtype.itemsize, path.stat().length
            if have != want:
                raise damaged(path, f"it has {have} bytes, not {want}")
            check_file(path, shard.get("sha256"))
            content = path.read_bytes() if remote else b""
            if remote and shard.get("sha256") not in (None, hashlib.sha256(content).hexdigest()):
                raise damaged(path)
            self.shards.append(np.frombuffer(content, dtype) if remote else np.memmap(path, dtype, "r"))
        self.ends = np.cumsum([len(s) for s in self.shards])
        self.count = max(0, (int(self.ends[-1]) - 1) // self.seq_len)
        if split == "train" and cfg.examples:
            self.count = min(self.count, cfg.examples)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, k: int) -> dict[str, np.ndarray]:
        """{'tokens': (seq_len + 1,) int32}"""
        first = k * self.seq_len
        return {"tokens": self.tokens(first, first + self.seq_len + 1).astype(np.int32)}

    def tokens(self, first: int, last: int) -> np.ndarray:
        """Tokens [first, last) of the split."""
        parts = []
        i = int(np.searchsorted(self.ends, first, side="right"))
        while first < last:
            begin = self.ends[i] - len(self.shards[i])
            stop = min(last, self.ends[i])
            parts.append(self.shards[i][first - begin : stop - begin])
            first, i = stop, i + 1
        return np.concatenate(parts)

    def text_bytes(self, count: int, first: int, stop: int) -> int | None:
        """UTF-8 bytes of text in the tokens at places [first, stop) of each of the first `count` windows.

        Place 0 is a window's first token, place seq_len its last target. A separator has no bytes. None where the
        tokenizer doesn't say a token's bytes, or where the split's tokens don't add up to the manifest's bytes.
        """
        table = self._table
        if table is None:
            return None
        total, rows = 0, max(1, CHUNK // self.seq_len)
        for begin in range(0, count, rows):
            end = min(count, begin + rows)
            sizes = self._sizes(table, begin * self.seq_len, end * self.seq_len + 1)
            total += int(sizes[:-1].reshape(end - begin, self.seq_len)[:, first:stop].sum())
            if first <= self.seq_len < stop:  # the last place of each window is the first of the next
                total += int(sizes[self.seq_len :: self.seq_len].sum())
        return total

    def _sizes(self, table: tuple[np.ndarray, np.ndarray], first: int, last: int) -> np.ndarray:
        """Bytes of text of each of the tokens [first, last)."""
        inside, starting = table
        ids = self.tokens(max(0, first - 1), last)  # with the one before, which may end a document
        if starting is inside:
            return inside[ids[min(first, 1) :]]
        starts = np.append(True, ids[:-1] == self.separator)
        return np.where(starts, starting[ids], inside[ids])[min(first, 1) :]

    @functools.cached_property
    def _table(self) -> tuple[np.ndarray, np.ndarray] | None:
        """`_token_bytes`, if the split's bytes by it are those that the manifest counts."""
        table, length = _token_bytes(*self.tokenizer), int(self.ends[-1])
        if table is None:
            return None
        chunks = (self._sizes(table, i, min(length, i + CHUNK)) for i in range(0, length, CHUNK))
        return table if sum(int(sizes.sum()) for sizes in chunks) == self.bytes else None


open_split = Windows
