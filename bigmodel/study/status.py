"""The state of a sweep's runs, from their files alone; without JAX, so that it answers at once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from etils import epath

from bigmodel import files
from bigmodel.errors import UsageError, note
from bigmodel.run import claims, objects, record
from bigmodel.words import human


def folder_of(path: str, runs: str) -> epath.Path:
    """The folder of runs of a sweep file, or a folder itself."""
    return epath.Path(runs) / Path(path).stem if path.endswith(".py") else epath.Path(path)


def status(folder: epath.Path) -> list[dict[str, Any]]:
    """The rows of the plan, each with its `state_of`. UsageError: there is no plan, or it is damaged."""
    mirror = objects.Mirror(str(folder)) if "://" in str(folder) else None
    if mirror:  # a listing, and a request for each row or, of an unfinished one, up to three
        names = mirror.infos
        mirror.fetch(n for n in names if n.count("/") <= 1 and n.rpartition("/")[2] in ("plan.jsonl", "result.json"))
        left = {n.partition("/")[0] for n in names if n.count("/") == 1} - {
            n.partition("/")[0] for n in names if n.endswith("/result.json")
        }
        rest = ("config.json", "error.json", claims.NAME, "metrics.jsonl")
        mirror.fetch(name for run in left for name in (f"{run}/{file}" for file in rest) if name in names)
        folder = epath.Path(mirror.home)
    plan = files.read_plan(folder)
    for row in plan:
        for key, kind in (("overrides", dict), ("params", int), ("tokens", int), ("steps", int)):
            if not isinstance(row.get(key), kind):
                raise UsageError(
                    f"{str(folder / 'plan.jsonl')!r}: {key!r} of {row['run_id']} is {row.get(key)!r}; "
                    "`bigmodel sweep plan FILE.py` writes it again"
                )
    held = functools.partial(_held, mirror) if mirror else claims.held
    return [{**row, **state_of(folder / row["run_id"], held)} for row in plan]


def _held(mirror: objects.Mirror, folder: epath.Path) -> bool:
    """`claims.held` of a run's folder in a mirror."""
    name = f"{folder.name}/{claims.NAME}"
    claim = claims.parse((folder / claims.NAME).read_bytes() if name in mirror.infos else None)
    return claims.is_held(claim, lambda: mirror.age(name))


def state_of(folder: epath.Path, held: Callable[[epath.Path], bool] = claims.held) -> dict[str, Any]:
    """A run's 'state', and its 'result', its 'error' or the 'last' row of its metrics.

    state: done, diverged, failed, running (a live process holds its claim), interrupted, pending.
    """
    if result := record.read_result(folder):
        return {"state": result["status"], "result": result}
    if not folder.exists():
        return {"state": "pending"}
    running = held(folder)
    if not running and (error := record.read_error(folder)):
        return {"state": "failed", "error": error}
    started = "interrupted" if (folder / "config.json").exists() else "pending"
    last = record.last_row(folder / "metrics.jsonl")
    stored = "://" in str(folder)  # where a listing costs a request
    if last is None and not (running or stored) and any(p.name.isdigit() for p in folder.glob("checkpoints/*")):
        note(f"{str(folder / 'metrics.jsonl')!r} is missing or empty, though checkpoints are there")
    return {"state": "running" if running else started, "last": last}


def describe(overrides: Mapping[str, Any]) -> str:
    """A row in a few words, as 'width=64 depth=2 tokens=1M'."""

    def value(v: Any) -> str:
        if isinstance(v, list):  # data made of a run, by a file
            return f"{Path(v[1]).name}({v[0]})"
        if isinstance(v, bool) or not isinstance(v, int | float):
            return str(v)
        return human(v) if abs(v) >= 10_000 else f"{v:.4g}"

    return " ".join(f"{k.rpartition('.')[2]}={value(v)}" for k, v in overrides.items() if k != "model.num_heads")
