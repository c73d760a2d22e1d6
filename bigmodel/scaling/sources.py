"""Sources of rows: a sweep's results or a table, the runs of it that were asked for, and those that ended well."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bigmodel.config import UsageError, nearest
from bigmodel.scaling import readers

# Names of runs' facts, and where they are when they aren't under that name.
KEPT = {
    "run_id": ("ID", "id"),
    "seed": ("config.train.seed", "train.seed"),
    "width": ("config.model.width", "model.width"),
    "depth": ("config.model.depth", "model.depth"),
    "family": ("config.family",),
    "status": (),
}
SHOWN = 24  # column names that an error lists


@dataclass
class Source:
    """Runs as they were found. kind: "sweep", "wandb" or "table"."""

    name: str
    cells: pd.DataFrame
    kind: str
    duplicates: frozenset[str] = frozenset()
    state: str = ""
    warnings: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def find(self, name: str) -> str:
        """The column that `name` means, or ""; a config's key needs no `config.` before it."""
        for candidate in (name, f"config.{name}", f"summary.{name}"):
            if candidate in self.duplicates:
                raise UsageError(f"{self.name} has several columns {candidate!r}: rename or remove all but one")
            if candidate in self.cells:
                return candidate
        return ""

    @property
    def ours(self) -> bool:
        """Columns that this package wrote, so that their meaning is known."""
        return self.kind == "sweep" or {"params", "params_nonembedding"} <= set(self.cells.columns)


def read(path: Path) -> Source:
    """A folder of runs, or a table."""
    return read_runs(path) if path.is_dir() else read_table(path)


def read_runs(folder: Path) -> Source:
    name = repr(str(folder))
    files = sorted(folder.glob("*/result.json"))
    if not files:
        hint = ""
        if any(folder.glob("*.wandb")) or any(folder.glob("*/*.wandb")) or any(folder.glob("*/*/*.wandb")):
            hint = "; W&B's offline files aren't read: `bigmodel fit runs/SWEEP` reads the results themselves"
        elif (folder / "result.json").is_file():
            hint = f"; it is one run: give the folder of them, {str(folder.resolve().parent)!r}"
        elif inner := sorted({str(f.parents[1]) for f in folder.glob("*/*/result.json")}):
            hint = f"; there are some in {', '.join(map(repr, inner[:5]))}"
        raise UsageError(f"no result.json in the run directories of {name} (looked for */result.json){hint}")
    rows: list[dict[str, Any]] = []
    counts: Counter[str] = Counter()
    kept = planned(folder, files)
    counts["unplanned"] = len(files) - len(kept)
    files = kept
    for file in files:
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            for one in content if isinstance(content, list) else [content]:
                branches = one.pop("branches", [])  # decays of one trunk: each is a point of its own
                rows += [{"run_id": file.parent.name, **one, **branch} for branch in (*branches, {})]
        except (OSError, ValueError, TypeError):  # half-written by a run that was killed
            counts["unreadable"] += 1
    warnings = [f"{counts['unreadable']} result.json can't be read: left out"] if counts["unreadable"] else []
    if counts["unplanned"]:
        warnings.append(f"{counts['unplanned']} runs aren't in the sweep's plan: left out")
    # Runs without a result yet: the sweep may still be going, and a law of half a sweep should say so.
    started = {f.parent for f in folder.glob("*/config.json")} - {f.parent for f in files}
    if started:
        counts["unfinished"] += len(started)
        warnings.append(f"{len(started)} runs have no result.json yet: left out")
    if not rows:
        raise UsageError(f"no usable run in {name}: {'; '.join(warnings)}")
    return Source(name, pd.DataFrame(rows), "sweep", warnings=warnings, counts=counts)


def planned(folder: Path, files: Sequence[Path]) -> list[Path]:
    """Those of a sweep's result files that are in its plan: runs of an earlier version may lie beside today's."""
    plan = folder / "plan.jsonl"
    if not plan.is_file():
        return list(files)
    try:
        ids = {json.loads(line)["run_id"] for line in plan.read_text(encoding="utf-8").splitlines()}
    except (OSError, ValueError, TypeError, KeyError) as e:
        raise UsageError(f"can't read {str(plan)!r}: {e}; `bigmodel sweep plan` writes it anew") from e
    return [f for f in files if f.parent.name in ids]


def runs(folder: str | Path) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """(result, config) of a sweep's finished runs. A loss of None is NaN: that run diverged.

    Raises:
      UsageError: there are none.
    """
    found = []
    for path in planned(Path(folder), sorted(Path(folder).glob("*/result.json"))):
        result, config = (json.loads((path.parent / name).read_text()) for name in ("result.json", "config.json"))
        found.append(({**result, "loss": math.nan if result["loss"] is None else result["loss"]}, config))
    if not found:
        raise UsageError(f"no finished runs in {str(folder)!r}")
    return found


def read_table(path: Path) -> Source:
    table = readers.read(path)
    kind = "wandb" if table.state else "table"
    return Source(repr(str(path)), table.cells, kind, table.duplicates, table.state)


def choose_rows(source: Source, where: str | Mapping[str, str]) -> None:
    """Keeps the rows with the values asked for."""
    if not where:
        return
    wanted = pairs("where", where) if isinstance(where, str) else dict(where)
    keep = np.ones(len(source.cells), dtype=bool)
    for name, value in wanted.items():
        column = source.find(name)
        if not column:
            raise UsageError(f"where: {source.name} has no column {name!r}{listed(name, source.cells.columns)}")
        cells = source.cells[column]
        texts = np.array(["" if is_empty(cell) else str(cell).strip() for cell in cells], dtype=object)
        equal = texts == str(value)
        number = readers.numbers(pd.Series([str(value)], dtype=object)).values[0]
        if np.isfinite(number):
            equal |= readers.numbers(cells).values == number
        if not equal.any():
            hint = listed(str(value), dict.fromkeys(texts))
            raise UsageError(f"where: no row of {source.name} has {name}={str(value)!r}{hint}")
        keep &= equal
    if not keep.any():
        together = " and ".join(f"{k}={v!r}" for k, v in wanted.items())
        raise UsageError(f"where: no row of {source.name} has {together} together")
    source.counts["filtered"] += int((~keep).sum())
    source.cells = source.cells[keep]


def is_empty(cell: Any) -> bool:
    return cell is None or cell is pd.NA or (isinstance(cell, float) and np.isnan(cell))


def only_done(source: Source) -> None:
    """Leaves out runs that didn't end well, and counts them."""
    for column, done in ((source.state, "finished"), ("status" if "status" in source.cells else "", "done")):
        if not column:
            continue
        words = source.cells[column].map(lambda cell: "" if is_empty(cell) else str(cell).strip())
        if column == "status" and source.state:  # W&B's own word is enough for runs of others
            words = words.mask(words == "", done)
        for word, number in words[words != done].value_counts().items():
            source.counts["diverged" if word == "diverged" else "unfinished"] += int(number)
            source.warnings.append(f"{number} runs with {column} {word or 'unknown'!r}: left out")
        source.cells = source.cells[(words == done).to_numpy()]


def pairs(what: str, text: str) -> dict[str, str]:
    """ "a=1,b=2" as a dict; a comma that no name and = follow belongs to the value. `what` names it in errors."""
    out: dict[str, str] = {}
    for part in re.split(r",(?=[^,=]+=)", text) if text else []:
        name, equals, value = part.partition("=")
        if not (equals and name.strip()):
            raise UsageError(f"{what}={text!r}: expected NAME=VALUE, several separated by commas; got {part!r}")
        if name.strip() in out:
            raise UsageError(f"{what}={text!r}: {name.strip()!r} is there twice")
        out[name.strip()] = value.strip()
    return out


def listed(name: str, names: Iterable[str]) -> str:
    """The nearest name, and all of them."""
    names = [str(n) for n in names]
    return f"{nearest(name, names)}; it has {names_of(names)}"


def names_of(names: Sequence[str]) -> str:
    shown = [n if len(n) <= 40 else f"{n[:40]}..." for n in names[:SHOWN] if n]
    while len(", ".join(shown)) > 300:
        shown.pop()
    return ", ".join(shown) + (f" and {len(names) - len(shown)} more" if len(names) > len(shown) else "")
