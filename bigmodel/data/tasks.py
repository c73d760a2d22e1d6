"""Tasks of `bigmodel prepare`: pairs of texts, labelled texts, conversations. An example is one of these."""

from __future__ import annotations

import functools
import zipfile
import zlib
from typing import Any

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from bigmodel.data import SPLITS, Info, Split, check_amounts, check_file, damaged, folder, manifest
from bigmodel.errors import UsageError, check_ranges

KEYS = {int: "tokenizer.vocab_size tokenizer.separator", list: "labels", str: "splits.{split}.sha256"}


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            source="tasks",
            name="help-en-de-bpe",  # a folder under run.data_dir (or a path) made by `bigmodel prepare`
            seq_len=64,  # tokens of a text with its end; a longer text is cut, a longer pair is left out
            source_len=0,  # of a pair's source; 0: seq_len
            examples=0,  # unique training examples to use; 0: all
            epochs=1,  # passes over them that a run may make at most
            fingerprint="",  # the manifest's hash: filled from the data, checked where it is given
        )
    )


def _manifest(cfg: Any, root: str) -> dict[str, Any]:
    def inspect(found: Any) -> None:
        home = str(folder(cfg, root))
        if "task" not in found and "dtype" in found:
            raise UsageError(f"{home!r} is running text, not a task: read it with config.data.source=text")
        if found["task"] not in ("pairs", "labelled", "chat"):
            raise ValueError(f"task {found['task']!r}")

    return manifest(cfg, root, "task", KEYS, inspect)


def finalize(cfg: ConfigDict, root: str) -> None:
    found = _manifest(cfg, root)
    check_ranges("config.data.", cfg, seq_len="[2, inf)", source_len="[0, inf)", examples="[0, inf)")
    if found["task"] == "pairs":
        cfg.source_len = cfg.source_len or cfg.seq_len
    elif cfg.source_len:
        raise UsageError(f"config.data.source_len={cfg.source_len}: {cfg.name!r} has no pairs of texts")
    cfg.fingerprint = found["hash"]
    check_amounts(cfg, len(Examples(cfg, root, "train")))


def describe(cfg: Any, root: str) -> Info:
    found = _manifest(cfg, root)
    counts = {split: len(Examples(cfg, root, split)) for split in SPLITS}
    for split, n in counts.items():
        if not n:
            raise UsageError(
                f"config.data.seq_len={cfg.seq_len}: no example of {split} is as short as that, or answers within it"
            )
    sizes = {"vocab_size": found["tokenizer"]["vocab_size"], "seq_len": cfg.seq_len}
    if found["task"] == "pairs":
        sizes["source_len"] = cfg.source_len
    elif found["task"] == "labelled":
        sizes["num_classes"] = len(found["labels"])
    return Info("examples", 1, counts["train"], counts["validation"], sizes)


@functools.lru_cache(maxsize=16)
def read_arrays(path: str, of: str, names: tuple[str, ...], labels: int) -> dict[str, np.ndarray]:
    """The arrays of a split's file, cached, as a plan asks for them at every row.

    Args:
      of: the data's hash, for the cache.
      names: the texts of an example.
      labels: the number of classes; 0: no labels.
    """
    try:
        with epath.Path(path).open("rb") as f:
            if any(entry.compress_type for entry in zipfile.ZipFile(f).infolist()):  # it could be a decompression bomb
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
        counts = arrays.get("counts", np.zeros_like(arrays[names[0]]))
        if counts.shape != arrays[names[0]].shape or counts.max(initial=0) > 1:
            raise ValueError("counts are not a 0 or 1 a token")
        if labels and (arrays["label"].shape != ends.shape or not np.all(np.isin(arrays["label"], range(labels)))):
            raise ValueError(f"label is not one of {labels}")
        return arrays
    except (OSError, ValueError, TypeError, EOFError, KeyError, MemoryError, zipfile.BadZipFile, zlib.error) as e:
        raise damaged(path, f"{type(e).__name__}: {e}") from e


class Examples(Split):
    """Pairs that are too long are left out; in the test split they are cut, as all of it is translated. Conversations
    without an answer in their first seq_len tokens are left out of all splits.

    Attributes:
      kept: numbers of the split's examples that are read.
      end: the token that ends a text.
    """

    def __init__(self, cfg: Any, root: str, split: str):
        super().__init__(cfg, root, split)
        found, home = _manifest(cfg, root), folder(cfg, root)
        pairs, self.chat = found["task"] == "pairs", found["task"] == "chat"
        names = ("source", "target") if pairs else ("text",)
        check_file(home / f"{split}.npz", found["splits"].get(split, {}).get("sha256"))
        for file, sha256 in found.get("files", {}).items():
            if file in ("tokenizer.json", f"{split}.jsonl"):
                check_file(home / file, sha256)
        self.arrays = read_arrays(str(home / f"{split}.npz"), found["hash"], names, len(found["labels"]))
        self.lengths = {name: cfg.source_len if name == "source" else cfg.seq_len for name in names}
        self.end = found["tokenizer"]["separator"]
        sizes = {name: np.diff(self.arrays[f"{name}_ends"], prepend=0) for name in names}
        fits = np.ones(len(sizes[names[0]]), bool)
        if pairs and split != "test":
            fits = np.all([sizes[name] <= self.lengths[name] for name in names], axis=0)
        if self.chat:  # the first token is predicted by none
            answers, ends = np.append(0, np.cumsum(self.arrays["counts"], dtype=np.int64)), self.arrays["text_ends"]
            begin = ends - sizes["text"]
            fits = answers[np.minimum(ends, begin + cfg.seq_len + 1)] > answers[begin + 1]
        self.kept = np.flatnonzero(fits)
        if split == "train" and cfg.examples:
            self.kept = self.kept[: cfg.examples]

    def __len__(self) -> int:
        return len(self.kept)

    def __getitem__(self, k: int) -> dict[str, np.ndarray]:
        """{'source', 'source_length', 'target', 'target_length'} of a pair, {'tokens', 'length', 'label'} of a labelled
        text; of a conversation {'tokens': (seq_len + 1,), 'counts': (seq_len,)}, 1 where a token's successor counts.

        Texts are padded with 0; all is int32, but counts float32.
        """
        i = self.kept[k]
        if self.chat:
            place = slice(self.arrays["text_ends"][i - 1] if i else 0, self.arrays["text_ends"][i])
            ids, counts = (self.arrays[name][place][: self.lengths["text"] + 1] for name in ("text", "counts"))
            row = {"tokens": ids.astype(np.int32), "counts": counts[1:].astype(np.float32)}
            return {name: np.pad(x, (0, self.lengths["text"] + 1 - len(ids))) for name, x in row.items()}
        out: dict[str, Any] = {}
        for name in self.lengths:
            ends = self.arrays[f"{name}_ends"]
            begin = ends[i - 1] if i else 0
            out |= self.row(name, self.arrays[name][begin : ends[i]])
        return {**out, "label": self.arrays["label"][i]} if "label" in self.arrays else out

    def row(self, name: str, ids: np.ndarray) -> dict[str, Any]:
        """What an example has of its text `name`, from the text's tokens with their end."""
        row = np.zeros(self.lengths[name], np.int32)
        n = min(len(ids), len(row))
        row[:n] = ids[:n]
        row[n - 1] = self.end  # also where the text was cut
        prefix = "" if name == "text" else f"{name}_"
        return {"tokens" if name == "text" else name: row, f"{prefix}length": np.int32(n)}


open_split = Examples
