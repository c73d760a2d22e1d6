"""Tasks written by `bigmodel prepare`: pairs of texts to translate, or texts with a label; one example, one text."""

from __future__ import annotations

import functools
import zipfile
import zlib
from typing import Any

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from bigmodel.data import Info, check, damaged, expect, fingerprint, folder, manifest, reading
from bigmodel.errors import UsageError

FORMAT = 1  # of the manifest: prepare.tasks.FORMAT, which layers keep apart


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            source="tasks",
            name="help-en-de-bpe",  # a folder under run.data_dir (or a path) made by `bigmodel prepare`
            seq_len=64,  # tokens of a text, its end among them: a longer text is cut, of a pair left out
            source_len=0,  # of a pair's source; 0: seq_len
            examples=0,  # unique training examples to use; 0: all
            epochs=1,  # passes over them that a run may make at most
            fingerprint="",  # the manifest's hash: filled from the data, checked where it is given
        )
    )


def _manifest(cfg: Any, root: str) -> dict[str, Any]:
    found = manifest(cfg, root, "task")
    path = folder(cfg, root) / "manifest.json"
    if "task" not in found and "dtype" in found:
        raise UsageError(f"{str(path.parent)!r} is running text, not a task: read it with config.data.source=text")
    with reading(path):
        if found["format"] != FORMAT or found["task"] not in ("pairs", "labelled"):
            raise ValueError(f"format {found['format']!r}, task {found['task']!r}")
        expect(found, {"tokenizer.vocab_size": int, "tokenizer.separator": int, "labels": list, "splits": dict})
        for split in ("train", "validation"):
            expect(found, {f"splits.{split}.sha256": str})
    return found


def finalize(cfg: ConfigDict, root: str) -> None:
    found = _manifest(cfg, root)
    for key, least in (("seq_len", 2), ("epochs", 1), ("source_len", 0), ("examples", 0)):
        if cfg[key] < least:
            raise UsageError(f"config.data.{key}={cfg[key]}: must be at least {least}")
    if found["task"] == "pairs":
        cfg.source_len = cfg.source_len or cfg.seq_len
    elif cfg.source_len:
        raise UsageError(f"config.data.source_len={cfg.source_len}: {cfg.name!r} has no pairs, but labels")
    cfg.fingerprint = fingerprint(cfg, root, found["hash"])
    there = len(Examples(cfg, root, "train", found))
    if cfg.examples > there:
        raise UsageError(f"config.data.examples={cfg.examples}: there are {there} training examples (0: all)")


def describe(cfg: Any, root: str) -> Info:
    found = _manifest(cfg, root)
    counts = {split: len(Examples(cfg, root, split, found)) for split in ("train", "validation")}
    for split, n in counts.items():
        if not n:
            raise UsageError(f"config.data.seq_len={cfg.seq_len}: no pair of {split} is as short as that")
    pairs = found["task"] == "pairs"
    own = {"source_len": cfg.source_len} if pairs else {"num_classes": len(found["labels"])}
    return Info(
        unit="examples",
        units_per_example=1,
        train_examples=cfg.examples or counts["train"],
        validation_examples=counts["validation"],
        sizes={"vocab_size": found["tokenizer"]["vocab_size"], "seq_len": cfg.seq_len, **own},
    )


@functools.lru_cache(maxsize=16)
def _arrays(path: str, of: str, names: tuple[str, ...], labels: int) -> dict[str, np.ndarray]:
    """What is in a split's file; a plan asks for it at every row. `names`: of the texts; `labels`: how many classes."""
    try:
        with epath.Path(path).open("rb") as f:
            with zipfile.ZipFile(f) as archive:  # written uncompressed: more than the file has is a decompression bomb
                if sum(entry.file_size for entry in archive.infolist()) > epath.Path(path).stat().length:
                    raise ValueError("it is compressed")
            f.seek(0)
            with np.load(f) as file:
                arrays = {name: file[name] for name in file.files}
        for name in names:
            ends = arrays[f"{name}_ends"]
            if ends.ndim != 1 or len(ends) != len(arrays[f"{names[0]}_ends"]) or arrays[name].ndim != 1:
                raise ValueError(f"{name} has other shapes")
            if len(ends) and (np.diff(ends, prepend=0).min() < 1 or ends[-1] != len(arrays[name])):
                raise ValueError(f"{name}_ends are not where its texts end")
        if labels and (arrays["label"].shape != ends.shape or not np.all(np.isin(arrays["label"], range(labels)))):
            raise ValueError(f"label is not one of {labels}")
        return arrays
    except (OSError, ValueError, TypeError, EOFError, KeyError, MemoryError, zipfile.BadZipFile, zlib.error) as e:
        raise damaged(path, f"{type(e).__name__}: {e}") from e


class Examples:
    """Random access. Pairs too long are left out, but of `test` they are cut: what is translated there is all.

    Attributes:
      kept: which examples of the split, by number.
      end: the token that ends a text.
    """

    def __init__(self, cfg: Any, root: str, split: str, found: dict[str, Any]):
        home, pairs = folder(cfg, root), found["task"] == "pairs"
        names = ("source", "target") if pairs else ("text",)
        check(home / f"{split}.npz", found["splits"].get(split, {}).get("sha256"))
        for file, sha256 in found.get("files", {}).items():
            if file in ("tokenizer.json", f"{split}.jsonl"):
                check(home / file, sha256)
        self.arrays = _arrays(str(home / f"{split}.npz"), found["hash"], names, 0 if pairs else len(found["labels"]))
        self.lengths = {name: cfg.source_len if name == "source" else cfg.seq_len for name in names}
        self.end = found["tokenizer"]["separator"]
        sizes = {name: np.diff(self.arrays[f"{name}_ends"], prepend=0) for name in names}
        fits = np.ones(len(sizes[names[0]]), bool)
        if pairs and split != "test":
            fits = np.all([sizes[name] <= self.lengths[name] for name in names], axis=0)
        self.kept = np.flatnonzero(fits)
        if split == "train" and cfg.examples:
            self.kept = self.kept[: cfg.examples]

    def __len__(self) -> int:
        return len(self.kept)

    def __getitem__(self, k: int) -> dict[str, np.ndarray]:
        """Of a pair {'source', 'source_length', 'target', 'target_length'}, else {'tokens', 'length', 'label'}; int32,
        the rest of a text's row 0."""
        i = self.kept[k]
        out: dict[str, Any] = {}
        for name, length in self.lengths.items():
            ends = self.arrays[f"{name}_ends"]
            begin = ends[i - 1] if i else 0
            ids = self.arrays[name][begin : ends[i]][:length].astype(np.int32)
            ids[-1] = self.end  # of one that was cut, too
            row = np.zeros(length, np.int32)
            row[: len(ids)] = ids
            out |= {"tokens" if name == "text" else name: row}
            out |= {"length" if name == "text" else f"{name}_length": np.int32(len(ids))}
        return {**out, "label": self.arrays["label"][i]} if "label" in self.arrays else out


def open_split(cfg: Any, root: str, split: str) -> Examples:
    return Examples(cfg, root, split, _manifest(cfg, root))
