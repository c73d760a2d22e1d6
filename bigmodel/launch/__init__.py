"""Engines that exist: one file renders plain text for one, and says which command takes it.

Imports config and files alone, no JAX.

An engine's file exports

    render(job)            file name -> its text; the first is what the command takes
    command(job, path)     the engine's own client, given the written first file

and nothing that polls: whether rows are done is told by their files, and starting them again is the engine's work.
"""

from __future__ import annotations

import importlib
import re
import shlex
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from etils import epath

from bigmodel import errors, files
from bigmodel.errors import UsageError, choose

ENGINES = ("local", "slurm", "sky")


@dataclass(frozen=True)
class Job:
    """What is asked for, whatever the engine.

    Attributes:
      folder: of the sweep's runs, absolute or gs://.
      home: the folder of this disk that takes the scripts and the logs, absolute.
      name: letters, digits and dashes, as `job_name` makes it.
      ids: run ids of the rows that aren't finished. By id and not by number: a plan that is written again meanwhile
        may number its rows otherwise.
      most: rows at once.
      processes: of one row.
      worker: the command of one process as shell text, without the row's --run.
    """

    folder: str
    home: str
    name: str
    ids: tuple[str, ...]
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


def row_of(folder: epath.Path, run_id: str = "", index: int = -1) -> dict[str, Any]:
    """The planned row of that id, or else of that number from 0, as scripts of earlier versions name it.

    Raises:
      UsageError: the plan has no such row, or can't be read.
    """
    rows = files.read_plan(folder)
    where = repr(str(folder / "plan.jsonl"))
    if run_id:
        found = {row["run_id"]: row for row in rows}
        if run_id not in found:
            raise UsageError(
                f"--run={run_id}: not one of the {len(rows)} rows of {where}{errors.nearest(run_id, found)}"
            )
        row = found[run_id]
    elif 0 <= index < len(rows):
        row = rows[index]
    else:
        raise UsageError(f"--index={index}: {where} has rows 0 to {len(rows) - 1}")
    if not isinstance(row.get("config"), dict) or not isinstance(row.get("overrides"), dict):
        raise UsageError(f"{where} has no config of {row['run_id']}; `bigmodel sweep plan FILE.py` writes it again")
    return row


def job_name(folder: str) -> str:
    """'bigmodel-FOLDER' in the letters that every engine takes."""
    return re.sub(r"[^A-Za-z0-9]+", "-", f"bigmodel-{folder}").strip("-")


def refuse_unprintable(engine: str, *texts: str, more: str = "") -> None:
    """For an engine whose files give some characters a meaning that no quoting takes away.

    Args:
      more: characters that are refused beside those that can't be printed, as line ends.
    """
    for text in texts:
        for c in text:
            if not c.isprintable() or c in more:
                raise UsageError(
                    f"launch --engine={engine}: {text!r} has {c!r}, which its files can't have: choose another"
                )


def quoted(text: str) -> str:
    return shlex.quote(text)
