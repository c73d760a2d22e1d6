"""One file = one family. Found by name; docs/architecture.md says what a family exports. Imports ops alone."""

from __future__ import annotations

import functools
import importlib
from pathlib import Path
from types import ModuleType

from bigmodel.errors import choose

_PARTS = {"attention", "infilling", "layers", "losses", "transformer", "__init__"}


@functools.cache
def names() -> list[str]:
    return sorted(
        p.stem for p in Path(__file__).parent.glob("*.py") if p.stem not in _PARTS and not p.stem.endswith("_published")
    )


def family(name: str) -> ModuleType:
    choose("config.family", name, names())
    return importlib.import_module(f"bigmodel.models.{name}")


def published(name: str) -> tuple[str, dict]:
    """(family, PUBLISHED row) of a published model's name, as 'gpt3-175b'."""
    rows = {row: (f, spec) for f in names() for row, spec in family(f).PUBLISHED.items()}
    return rows[choose("model", name, rows)]
