"""One file = one family: found by name here, by path, or as an entry point of another package. Imports ops alone.

docs/architecture.md says what a family exports; OPTIONAL are the exports that it may leave out, and what they are then.
"""

from __future__ import annotations

import functools
from pathlib import Path
from types import ModuleType
from typing import Any

from bigmodel.config import check_exports, plugin
from bigmodel.errors import choose

_PARTS = {
    "attention",
    "classifier",
    "conv",
    "infilling",
    "layers",
    "layouts",
    "losses",
    "positions",
    "transformer",
    "__init__",
}
REQUIRED = ("get_config", "finalize", "rung", "Model", "inputs", "loss", "spec", "flops", "RULES")
OPTIONAL: dict[str, Any] = {
    "PUBLISHED": {},  # name -> model overrides, source, parameters
    "WEIGHTS": {},  # model_type of published checkpoints -> how they are written (layouts.Layout)
    "base": None,  # cfg -> the base shape, where there is `model.parametrization`
    "units": lambda cfg: 1,  # tokens of one example
    "likelihood": lambda cfg: range(0),  # places of a window's tokens that the loss predicts in turn
    "decomposes": lambda cfg: True,  # whether the loss is a mean over independent examples
    "carries": lambda cfg: False,  # whether a batch goes on from the state after the one before it
    "footprint": lambda cfg: None,  # what a pod's layout estimates activations from (layout.estimate)
    "evaluate": None,  # (model, variables, batch) -> sums over examples; None: the loss's metrics
    "summarize": None,  # those sums -> metrics
    "init_cache": None,  # (cfg, rows, size) -> what Model.step goes on from, of a family that writes token after token
    "resized": None,  # (section of a run that is started from, cfg) -> {path: (its shape there, what makes ours of it)}
    "start": None,  # cfg -> the first token that it writes, where its prompt is a source that an encoder reads
}


@functools.cache
def names() -> list[str]:
    files = Path(__file__).parent.glob("*.py")
    return sorted(p.stem for p in files if p.stem not in _PARTS and not p.stem.endswith("_published"))


@functools.cache
def family(name: str) -> ModuleType:
    """A family by its name, the path of a file of the user's, or as an entry point `bigmodel.families`.

    Raises:
      UsageError: there is none, or it lacks an export.
    """
    module = plugin("families", name, __name__, names(), "config.family")
    check_exports(module, f"family {name!r}", REQUIRED)
    for export, default in OPTIONAL.items():
        if not hasattr(module, export):
            setattr(module, export, default)
    return module


def published(name: str) -> tuple[str, dict]:
    """(family, PUBLISHED row) of a published model's name, as 'gpt3-175b'."""
    rows = {row: (f, spec) for f in names() for row, spec in family(f).PUBLISHED.items()}
    return rows[choose("model", name, rows)]
