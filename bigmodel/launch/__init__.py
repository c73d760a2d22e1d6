"""Engines that exist: one file renders plain text for one, and says which command takes it. Imports no JAX.

An engine's file exports

    render(job)            file name -> its text; the first is what the command takes
    command(job, path)     the engine's own client, given the written first file

and nothing that polls: whether rows are done is told by their files, and starting them again is the engine's work.
"""

from __future__ import annotations

import importlib
import json
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

from bigmodel.config import UsageError, choose

ENGINES = ("local", "slurm", "sky")


@dataclass(frozen=True)
class Job:
    """What is asked for, whatever the engine.

    Attributes:
      folder: of the sweep's runs, absolute or gs://.
      indices: rows of the plan that aren't finished.
      most: rows at once.
      processes: of one row.
      worker: the command of one process, without the row's index.
    """

    folder: str
    name: str
    indices: tuple[int, ...]
    most: int
    processes: int
    worker: str
    cpus: int = 1
    time: str = "24:00:00"
    notice: int = 300
    options: tuple[str, ...] = field(default=())
    topology: str = ""
    slices: int = 1


def engine(name: str) -> ModuleType:
    choose("--engine", name, ENGINES)
    return importlib.import_module(f"bigmodel.launch.{name}")


def unfinished(folder: Path) -> tuple[int, ...]:
    """Rows of the plan without a result, by number from 0."""
    plan = folder / "plan.jsonl"
    if not plan.is_file():
        raise UsageError(f"no plan at {str(folder)!r}: run `bigmodel sweep plan` first")
    with plan.open(encoding="utf-8") as f:
        ids = [json.loads(line)["run_id"] for line in f]
    return tuple(i for i, run_id in enumerate(ids) if not (folder / run_id / "result.json").is_file())


def ranges(indices: tuple[int, ...]) -> str:
    """0-3,7,9-11"""
    found: list[list[int]] = []
    for i in indices:
        if found and found[-1][1] == i - 1:
            found[-1][1] = i
        else:
            found.append([i, i])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in found)


def quoted(text: str) -> str:
    return shlex.quote(text)
