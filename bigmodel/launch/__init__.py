"""Engines: one file renders plain text for one engine, and names its client. Imports config, errors and files alone.

An engine's file, here or of the user's, has

    render(job)    file name -> text; the first file is the argument of COMMAND
    COMMAND        the command that takes the written first file
    CLIENT         the program that must be installed
    PROGRAM        optional: bigmodel's name where the workers run, if that is another machine

and nothing that polls: the state of runs is in their files, and restarting them is the engine's job.
"""

import re
from dataclasses import dataclass
from typing import Any

from bigmodel import config, errors, files
from bigmodel.errors import UsageError

ENGINES = ("local", "slurm", "sky", "gke", "tpu-vm")


@dataclass(frozen=True)
class Job:
    """What is launched, for any engine.

    Attributes:
      folder: the sweep's folder of runs, absolute or in a bucket.
      home: the folder for scripts and logs, absolute and on this disk.
      name: letters, digits and dashes, as `job_name` makes it.
      ids: run ids of the rows to run. Ids and not indices: a plan that is written again may have another order.
      most: runs at once.
      processes: processes of one run; with `gpus`, its nodes.
      worker: shell text of the command of one process, without --run.
      cpus: CPUs of one process.
      time: limit of a run, HH:MM:SS; notice: seconds before it at which runs save.
      options: further lines of #SBATCH.
      gpus: of a node, each with a process of its own; 0: none.
      topology, slices: of TPUs.
      image, queue: gke's image of bigmodel and Kueue's LocalQueue. zone: tpu-vm's.
      rehearsed: whether all of it runs on this machine, so that the folder may be on its disk.
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
    options: tuple[str, ...] = ()
    gpus: int = 0
    topology: str = ""
    slices: int = 1
    image: str = ""
    queue: str = "default"
    zone: str = ""
    rehearsed: bool = False


def engine(name: str) -> Any:
    return config.plugin("engines", name, "bigmodel.launch", ENGINES, "--engine")


def row_of(folder: Any, run_id: str = "", index: int = -1) -> dict[str, Any]:
    """The planned row with that run id or, in scripts of earlier versions, with that index.

    Raises:
      UsageError: the plan has no such row, or can't be read.
    """
    rows = files.read_plan(folder)
    where = repr(str(folder / "plan.jsonl"))
    if run_id:
        found = {row["run_id"]: row for row in rows}
        if run_id not in found:
            hint = errors.nearest(run_id, found)
            raise UsageError(f"--run={run_id}: not one of the {len(rows)} rows of {where}{hint}")
        row = found[run_id]
    elif 0 <= index < len(rows):
        row = rows[index]
    else:
        raise UsageError(f"--index={index}: {where} has rows 0 to {len(rows) - 1}")
    if not isinstance(row.get("config"), dict) or not isinstance(row.get("overrides"), dict):
        raise UsageError(f"{where} has no config of {row['run_id']}; `bigmodel sweep plan FILE.py` writes it again")
    return row


def job_name(folder: str) -> str:
    """'bigmodel-FOLDER' in characters that every engine accepts."""
    return re.sub(r"[^A-Za-z0-9]+", "-", f"bigmodel-{folder}").strip("-")


def refuse_unprintable(engine: str, *texts: str, more: str = "") -> None:
    """Raises UsageError for characters that can't be quoted in an engine's files: unprintable ones, and `more`."""
    for text in texts:
        for c in text:
            if not c.isprintable() or c in more:
                raise UsageError(f"launch --engine={engine}: {text!r} contains {c!r}, which its files can't have")
