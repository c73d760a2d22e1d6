"""Token shards written by `bigmodel prepare`, read as windows: example k is tokens [k L, k L + L + 1)."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from bigmodel.config import UsageError, nearest
from bigmodel.data import Info

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


def _folder(cfg: ConfigDict, root: str) -> epath.Path:
    return epath.Path(root) / cfg.name


def _manifest(cfg: ConfigDict, root: str) -> dict[str, Any]:
    folder = _folder(cfg, root)
    path = folder / "manifest.json"
    if not path.exists():
        there = [p.name for p in epath.Path(root).iterdir()] if epath.Path(root).is_dir() else []
        raise UsageError(
            f"no prepared data at {str(folder)!r}{nearest(cfg.name, there)}; make it with: "
            f"bigmodel prepare SOURCE --out={folder}"
        )
    try:
        manifest = json.loads(path.read_text())
        form = manifest["format"]
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise UsageError(f"{str(path)!r} is not a manifest of `bigmodel prepare`: {type(e).__name__}: {e}") from e
    if form != FORMAT:
        raise UsageError(f"{str(path)!r} is of format {form!r}, not {FORMAT}: prepare the data again")
    try:  # what is read from it, each in its type
        want = {"hash": str, "dtype": str, "tokenizer.vocab_size": int}
        want |= {f"splits.{s}.{k}": int for s in ("train", "validation") for k in ("tokens", "bytes")}
        want |= {f"splits.{s}.shards": list for s in ("train", "validation")}
        for key, kind in want.items():
            value = manifest
            for part in key.split("."):
                value = value[part]
            if not isinstance(value, kind):
                raise TypeError(f"{key} is {value!r}, not {kind.__name__}")
    except (KeyError, TypeError) as e:
        raise UsageError(f"{str(path)!r} is not a manifest of `bigmodel prepare`: {type(e).__name__}: {e}") from e
    return manifest


def finalize(cfg: ConfigDict, root: str) -> None:
    if cfg.seq_len < 1:
        raise UsageError(f"config.data.seq_len={cfg.seq_len}: must be at least 1")
    if cfg.epochs < 1:
        raise UsageError(f"config.data.epochs={cfg.epochs}: must be at least 1")
    found = _manifest(cfg, root)["hash"]
    if cfg.fingerprint and cfg.fingerprint != found:
        raise UsageError(
            f"data {str(_folder(cfg, root))!r} has changed: its hash is {found[:12]}, the config asks for "
            f"{cfg.fingerprint[:12]}"
        )
    cfg.fingerprint = found


def describe(cfg: Any, root: str) -> Info:
    manifest = _manifest(cfg, root)
    splits = manifest["splits"]
    examples = {s: max(0, (splits[s]["tokens"] - 1) // cfg.seq_len) for s in ("train", "validation")}
    for split, n in examples.items():
        if n < 1:
            raise UsageError(
                f"config.data.seq_len={cfg.seq_len}: {str(_folder(cfg, root))!r} has only "
                f"{splits[split]['tokens']} {split} tokens"
            )
    validation = splits["validation"]
    return Info(
        unit="tokens",
        units_per_example=cfg.seq_len,
        train_examples=examples["train"],
        validation_examples=examples["validation"],
        sizes={"vocab_size": manifest["tokenizer"]["vocab_size"], "seq_len": cfg.seq_len},
        bytes_per_unit=validation["bytes"] / validation["tokens"],
    )


class Windows:
    """Random access over the split's concatenated shards; a window may span shards."""

    def __init__(self, cfg: Any, root: str, split: str):
        manifest, folder = _manifest(cfg, root), _folder(cfg, root)
        self.seq_len = cfg.seq_len
        dtype = np.dtype(manifest["dtype"]).newbyteorder("<")
        self.shards = []
        for shard in manifest["splits"][split]["shards"]:
            path = folder / shard["file"]
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
