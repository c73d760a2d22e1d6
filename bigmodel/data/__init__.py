"""One file = one source of examples. Found by name; docs/architecture.md says what a source exports."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from bigmodel.config import choose

_PARTS = {"loader", "__init__"}


@dataclass(frozen=True)
class Info:
    """What a source says of itself without reading its examples."""

    unit: str  # 'tokens' or 'examples': what D counts
    units_per_example: int
    train_examples: int
    validation_examples: int
    sizes: dict[str, int]  # model keys that the data decides, as vocab_size
    bytes_per_unit: float = 0.0  # UTF-8 bytes of text per validation token; 0 where it has no meaning


def names() -> list[str]:
    return sorted(p.stem for p in Path(__file__).parent.glob("*.py") if p.stem not in _PARTS)


def source(name: str) -> Any:
    choose("config.data.source", name, names())
    module: ModuleType = importlib.import_module(f"bigmodel.data.{name}")
    return module
