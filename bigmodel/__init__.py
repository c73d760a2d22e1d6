"""bigmodel: every architecture is the same scaling experiment.

Config and sweep files import `budget`, `sweep`, `recipes` and `evaluate` from here, wherever they lie.
"""

import importlib
from typing import Any

__version__ = "0.1.0"
_PUBLIC = {"budget": "run", "sweep": "study", "recipes": "study", "evaluate": "after"}


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return importlib.import_module(f"bigmodel.{_PUBLIC[name]}.{name}")
    raise AttributeError(f"module 'bigmodel' has no attribute {name!r}")
