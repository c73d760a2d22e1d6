"""Token shards written by `bigmodel prepare`, read as windows: example k is tokens [k L, k L + L + 1)."""

from __future__ import annotations

from typing import Any

import numpy as np
from ml_collections import ConfigDict

from bigmodel.config import UsageError
from bigmodel.data import Info, fingerprint, folder, manifest, reading

FORMAT = 1  # of the manifest: prepare.FORMAT, which layers keep apart


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            source="text",
            name="news-bytes",  # a folder under run.data_dir (or a path) made by `bigmodel prepare`
            seq_len=256,  # tokens a window
            epochs=1,  # passes over the unique tokens that a run may make at most
            fingerprint="",  # the manifest's hash: filled from the data, checked where it is given
        )
    )


def _manifest(cfg: ConfigDict, root: str) -> dict[str, Any]:
    found = manifest(cfg, root, "data", "SOURCE")
    path = folder(cfg, root) / "manifest.json"
    if found["format"] != FORMAT:
        raise UsageError(f"{str(path)!r} is of format {found['format']!r}, not {FORMAT}: prepare the data again")
    with reading(path):  # what is read from it, each in its type
        want = {"hash": str, "dtype": str, "tokenizer.vocab_size": int}
        want |= {f"splits.{s}.{k}": int for s in ("train", "validation") for k in ("tokens", "bytes")}
        want |= {f"splits.{s}.shards": list for s in ("train", "validation")}
        for key, kind in want.items():
            value = found
            for part in key.split("."):
                value = value[part]
            if not isinstance(value, kind):
                raise TypeError(f"{key} is {value!r}, not {kind.__name__}")
    return found


def finalize(cfg: ConfigDict, root: str) -> None:
    if cfg.seq_len < 1:
        raise UsageError(f"config.data.seq_len={cfg.seq_len}: must be at least 1")
    if cfg.epochs < 1:
        raise UsageError(f"config.data.epochs={cfg.epochs}: must be at least 1")
    cfg.fingerprint = fingerprint(cfg, root, _manifest(cfg, root)["hash"])


def describe(cfg: Any, root: str) -> Info:
    found = _manifest(cfg, root)
    splits = found["splits"]
    examples = {s: max(0, (splits[s]["tokens"] - 1) // cfg.seq_len) for s in ("train", "validation")}
    for split, n in examples.items():
        if n < 1:
            raise UsageError(
                f"config.data.seq_len={cfg.seq_len}: {str(folder(cfg, root))!r} has only "
                f"{splits[split]['tokens']} {split} tokens"
            )
    return Info(
        unit="tokens",
        units_per_example=cfg.seq_len,
        train_examples=examples["train"],
        validation_examples=examples["validation"],
        sizes={"vocab_size": found["tokenizer"]["vocab_size"], "seq_len": cfg.seq_len},
    )


class Windows:
    """Random access over the split's concatenated shards; a window may span shards."""

    def __init__(self, cfg: Any, root: str, split: str):
        found, home = _manifest(cfg, root), folder(cfg, root)
        self.seq_len = cfg.seq_len
        dtype = np.dtype(found["dtype"]).newbyteorder("<")
        self.shards = []
        for shard in found["splits"][split]["shards"]:
            path = home / shard["file"]
            want = shard["tokens"] * dtype.itemsize
            have = path.stat().length if path.exists() else -1
            if have != want:
                state = "is missing" if have < 0 else f"has {have} bytes, not {want}"
                raise UsageError(f"shard {str(path)!r} {state}; delete it and run `bigmodel prepare` again")
            local = "://" not in str(path)
            data = np.memmap(path, dtype, "r") if local else np.frombuffer(path.read_bytes(), dtype)
            self.shards.append(data)
        self.ends = np.cumsum([len(s) for s in self.shards])

    def __len__(self) -> int:
        return max(0, (int(self.ends[-1]) - 1) // self.seq_len)

    def __getitem__(self, k: int) -> dict[str, np.ndarray]:
        """{'tokens': (seq_len + 1,) int32}"""
        first, last = k * self.seq_len, k * self.seq_len + self.seq_len + 1
        parts = []
        i = int(np.searchsorted(self.ends, first, side="right"))
        while first < last:
            begin = self.ends[i] - len(self.shards[i])
            stop = min(last, self.ends[i])
            parts.append(self.shards[i][first - begin : stop - begin])
            first, i = stop, i + 1
        return {"tokens": np.concatenate(parts).astype(np.int32)}


def open_split(cfg: Any, root: str, split: str) -> Windows:
    return Windows(cfg, root, split)
