"""One file = one source of examples. Found by name; docs/architecture.md says what a source exports."""

from __future__ import annotations

import contextlib
import importlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from etils import epath

from bigmodel.config import NoData, UsageError, choose, nearest

_PARTS = {"loader", "__init__"}


@dataclass(frozen=True)
class Info:
    """What a source says of itself without reading its examples."""

    unit: str  # 'tokens' or 'examples': what D counts
    units_per_example: int
    train_examples: int
    validation_examples: int
    sizes: dict[str, int]  # model keys that the data decides, as vocab_size


def folder(cfg: Any, root: str) -> epath.Path:
    """Where `bigmodel prepare` put what a data section names."""
    return epath.Path(root) / cfg.name


def manifest(cfg: Any, root: str, what: str, command: str) -> dict[str, Any]:
    """The manifest.json of a data section's folder; `what` and `command` are for whoever hasn't made it yet."""
    home = folder(cfg, root)
    path = home / "manifest.json"
    if not path.exists():
        there = [p.name for p in epath.Path(root).iterdir()] if epath.Path(root).is_dir() else []
        raise NoData(
            f"no prepared {what} at {str(home)!r}{nearest(cfg.name, there)}; make it with: "
            f"bigmodel prepare {command} --out={home}"
        )
    with reading(path):
        found: dict[str, Any] = json.loads(path.read_text())
        found["format"], found["hash"]
        return found


@contextlib.contextmanager
def reading(path: Any) -> Iterator[None]:
    """Around what takes a manifest apart: one that isn't what it should be is a mistake of whoever named it."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise UsageError(f"{str(path)!r} is not a manifest of `bigmodel prepare`: {type(e).__name__}: {e}") from e


def fingerprint(cfg: Any, root: str, found: str) -> str:
    """The hash of the data, which a config that names one must agree with."""
    if cfg.fingerprint not in ("", found):
        raise UsageError(
            f"data {str(folder(cfg, root))!r} has changed: its hash is {found[:12]}, the config asks for "
            f"{cfg.fingerprint[:12]}"
        )
    return found


def names() -> list[str]:
    return sorted(p.stem for p in Path(__file__).parent.glob("*.py") if p.stem not in _PARTS)


def source(name: str) -> Any:
    choose("config.data.source", name, names())
    module: ModuleType = importlib.import_module(f"bigmodel.data.{name}")
    return module
