"""Where a sweep stands, from its files alone, whichever engine runs it; without JAX: it answers at once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from etils import epath

from bigmodel import files
from bigmodel.errors import UsageError
from bigmodel.run import claims, record
from bigmodel.words import human


def folder_of(path: str, runs: str) -> epath.Path:
    """Of a sweep file its folder of runs; a folder is its own."""
    return epath.Path(runs) / Path(path).stem if path.endswith(".py") else epath.Path(path)


def status(folder: epath.Path) -> list[dict[str, Any]]:
    """One dict a planned row: its plan, 'state', and the result or the latest metrics.

    state: done, diverged, failed, running (a live process holds its claim), interrupted, pending.

    Raises:
      UsageError: there is no plan, or it is damaged.
    """
    plan = files.read_plan(folder)
    for row in plan:
        for key, kind in (("overrides", dict), ("params", int), ("tokens", int), ("steps", int)):
            if not isinstance(row.get(key), kind):
                raise UsageError(
                    f"{str(folder / 'plan.jsonl')!r}: {key!r} of {row['run_id']} is {row.get(key)!r}; "
                    "`bigmodel sweep plan FILE.py` writes it again"
                )
    return [{**row, **state_of(folder / row["run_id"])} for row in plan]


def state_of(folder: epath.Path) -> dict[str, Any]:
    result = record.read_result(folder)
    if result:
        return {"state": result["status"], "result": result}
    if not folder.exists():
        return {"state": "pending"}
    if claims.held(folder):
        state = "running"
    else:
        if error := record.read_error(folder):
            return {"state": "failed", "error": error}
        state = "interrupted" if (folder / "config.json").exists() else "pending"
    return {"state": state, "last": record.last_row(folder / "metrics.jsonl")}


def describe(overrides: Mapping[str, Any]) -> str:
    """'width=64 depth=2 tokens=1M': a row in a few words."""

    def value(v: Any) -> str:
        if isinstance(v, bool) or not isinstance(v, int | float):
            return str(v)
        return human(v) if abs(v) >= 10_000 else f"{v:.4g}"

    return " ".join(f"{k.rpartition('.')[2]}={value(v)}" for k, v in overrides.items() if k != "model.num_heads")
