"""Published weights on a disk: a .safetensors file, a GGUF file, or a folder as Hugging Face's libraries write it.

A tensor is read when it is asked for, so that a model larger than half of the memory can be opened. Pickles are never
opened, because they can run code.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bigmodel.errors import UsageError, nearest
from bigmodel.files import has_sha256
from bigmodel.run import gguf, record

SUFFIXES = (".safetensors", ".gguf")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Tensor:
    """One tensor of a file, and how to read it."""

    shape: tuple[int, ...]
    dtype: str  # as numpy names it
    load: Callable[[], np.ndarray]


class Tensors(Mapping[str, np.ndarray]):
    """Tensors by their names, read when they are asked for."""

    def __init__(self, held: Mapping[str, Tensor]):
        self.held = dict(held)

    def __getitem__(self, name: str) -> np.ndarray:
        return self.held[name].load()

    def __iter__(self) -> Iterator[str]:
        return iter(self.held)

    def __len__(self) -> int:
        return len(self.held)

    def below(self, prefix: str) -> Tensors:
        """Those whose names begin with `prefix`, without it."""
        return Tensors({name[len(prefix) :]: x for name, x in self.held.items() if name.startswith(prefix)})


@dataclass(frozen=True)
class Checkpoint:
    """What a file or a folder holds; `config` is a folder's config.json, or what a GGUF file says in its place."""

    tensors: Tensors
    config: dict[str, Any] | None
    tokenizer: str  # path of a tokenizer.json; "" if there is none


def is_published(path: str) -> bool:
    """Whether a path is meant as published weights, not as a run."""
    home, patterns = Path(path), (*(f"*{suffix}" for suffix in SUFFIXES), INDEX, *PICKLES)
    if path.endswith(SUFFIXES):
        return True
    return home.is_dir() and not (home / "result.json").exists() and any(any(home.glob(p)) for p in patterns)


def files(path: str) -> list[Path]:
    """The files of published weights at a path, config.json first.

    Raises:
      UsageError: there are none, a shard is missing, or there is only a pickle.
    """
    home = Path(path)
    if not home.is_dir():
        if not home.is_file():
            raise UsageError(f"no weights at {path!r}")
        return [home]
    config = [home / "config.json"] if (home / "config.json").is_file() else []
    if (home / INDEX).is_file():
        weight_map = _index(home / INDEX)
        shards = [home / name for name in sorted(set(weight_map.values()))]
        for shard in shards:
            if not shard.is_file():
                lost = sum(name == shard.name for name in weight_map.values())
                raise UsageError(f"{path!r} lacks the shard {shard.name!r}, which {INDEX} says holds {lost} tensors")
        return [*config, *shards]
    found = [p for suffix in SUFFIXES for p in sorted(home.glob(f"*{suffix}"))]
    if len(found) > 1:
        named = ", ".join(p.name for p in found[:4])
        raise UsageError(f"{path!r} has {len(found)} files of weights ({named}) and no {INDEX}: name one of them")
    if not found:
        pickles = [p for pattern in PICKLES for p in sorted(home.glob(pattern))]
        if pickles:
            raise UsageError(
                f"{path!r} holds its weights as a pickle ({pickles[0].name}), which can run code and is never opened: "
                "save them as model.safetensors (save_pretrained of Hugging Face's transformers does)"
            )
        raise UsageError(f"no .safetensors or .gguf file in {path!r}")
    return [*config, *found]


def _index(path: Path) -> dict[str, str]:
    try:
        found = json.loads(path.read_text())["weight_map"]
        if not isinstance(found, dict) or not all(isinstance(x, str) and Path(x).name == x for x in found.values()):
            raise TypeError("weight_map is no map from tensors to files")
        return found
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise UsageError(f"{str(path)!r} can't be read: {type(e).__name__}: {e}") from e


def identity(path: str) -> str:
    """A digest of what is at a path: of published weights that of their files, of a run its id."""
    if not is_published(path):
        return str((record.read_result(path) or {}).get("run_id", path))
    found = [digest(str(p), p.stat().st_size, p.stat().st_mtime) for p in files(path)]
    return found[0] if len(found) == 1 else hashlib.sha256("".join(found).encode()).hexdigest()


@functools.lru_cache(maxsize=64)
def digest(path: str, length: int, changed: float) -> str:
    """SHA-256 of a file; its length and time of change are for the cache."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def read(path: str) -> Checkpoint:
    """Opens published weights.

    Raises:
      UsageError: as `files`; a damaged file, or one of another format.
    """
    home, parts = Path(path), files(path)
    config = None
    if parts[0].name == "config.json":
        config, parts = _config(parts[0]), parts[1:]
    if parts[0].suffix == ".gguf":
        config, made = gguf.read(parts[0])
        own = parts[0].parent / "tokenizer.json"
        tensors = {name: Tensor(shape, "float32", load) for name, (shape, load) in made.items()}
        return Checkpoint(Tensors(tensors), config, str(own) if own.is_file() else "")
    indexed = _index(home / INDEX) if (home / INDEX).is_file() else {}
    held: dict[str, Tensor] = {}
    for part in parts:
        for name, tensor in _safetensors(part):
            if name in held:
                raise UsageError(f"{path!r} has {name!r} in two of its files")
            held[name] = tensor
    if lost := [name for name in indexed if name not in held]:
        raise UsageError(f"{str(home / indexed[lost[0]])!r} lacks {lost[0]!r}, which {INDEX} says it holds")
    tokenizer = (home if home.is_dir() else home.parent) / "tokenizer.json"
    return Checkpoint(Tensors(held), config, str(tokenizer) if tokenizer.is_file() else "")


def _config(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
        if not isinstance(found, dict):
            raise TypeError("it is no JSON object")
        return found
    except (OSError, ValueError, TypeError) as e:
        raise UsageError(f"{str(path)!r} can't be read: {e}") from e


def _safetensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """The tensors of one file. UsageError: a damaged one, also by the digest of `bigmodel prepare`."""
    import ml_dtypes  # noqa: F401 (so that numpy knows bfloat16)
    from safetensors import safe_open

    manifest = record.read_json(path.parent / "manifest.json")  # of `bigmodel prepare`, or of somebody else
    made = manifest.get("files") if isinstance(manifest, dict) else None
    digest = made.get(path.name) if isinstance(made, dict) else None
    if digest and not has_sha256(path, digest):
        raise UsageError(f"{str(path)!r} is damaged (its content has changed since it was prepared); prepare it again")
    names = dict(BF16="bfloat16", F16="float16", F32="float32", F64="float64")
    try:
        opened = safe_open(path, "np")
        for name in opened.keys():  # noqa: SIM118 (it is no dict)
            part = opened.get_slice(name)
            kind = str(part.get_dtype())
            load = functools.partial(opened.get_tensor, name)
            yield name, Tensor(tuple(part.get_shape()), names.get(kind, kind.lower()), load)
    except Exception as e:  # the library raises classes of its own
        raise UsageError(f"{str(path)!r} can't be read as safetensors: {' '.join(str(e).split())[:200]}") from e


def named(config: Mapping[str, Any] | None, path: str, families: Mapping[str, Any]) -> str:
    """The model_type of a folder's config.json, which is among `families`.

    Raises:
      UsageError: it has none, or one that isn't known.
    """
    if config is None:
        raise UsageError(f"{path!r} has no config.json, which says what its tensors are")
    kind = config.get("model_type")
    if kind not in families:
        raise UsageError(
            f"{path!r} is of model_type {kind!r}{nearest(str(kind), families)}; known are {', '.join(sorted(families))}"
        )
    return str(kind)
