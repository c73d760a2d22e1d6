"""Sources of rows: a folder of runs or a table, the rows of it that were asked for, and those that ended well."""

from __future__ import annotations

import json
import math
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bigmodel.errors import UsageError, nearest
from bigmodel.files import is_whole, read_plan
from bigmodel.laws import readers

# Columns that a frame always has where the source knows them -> other names that they may have there.
KEPT = {
    "run_id": ("ID", "id"),
    "seed": ("config.train.seed", "train.seed"),
    "width": ("config.model.width", "model.width"),
    "depth": ("config.model.depth", "model.depth"),
    "family": ("config.family",),
    "status": (),
}
SHOWN = 24  # column names that an error lists
# Words for runs that ended well, and for runs that didn't, in a column `status` or `state`; without case.
DONE = {
    "done", "finished", "finish", "complete", "completed", "success", "successful", "succeeded", "ok", "okay", "passed",
    "ended",
}  # fmt: skip
NOT_DONE = readers.WANDB_STATES - DONE | {
    "diverged", "error", "errored", "fail", "cancelled", "canceled", "aborted", "timeout", "oom", "out_of_memory",
    "node_fail", "interrupted", "stopped", "queued", "waiting", "unfinished", "incomplete", "nan", "started", "busy",
    "todo",
}  # fmt: skip
UNREADABLE = (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError)  # of a damaged JSON file


@dataclass
class Source:
    """Rows as they were found. kind: "sweep", "wandb" or "table"; state: the column of W&B's states, or ""."""

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

    def column(self, name: str, option: str = "", purpose: str = "") -> str:
        """`find`, with a UsageError that lists the columns where there is none."""
        if column := self.find(name):
            return column
        raise UsageError(f"{option}{self.name} has no column {name!r}{purpose}{listed(name, self.cells.columns)}")

    def texts(self, column: str) -> pd.Series:
        """The column's cells as text, "" where empty."""
        return self.cells[column].map(lambda cell: "" if is_empty(cell) else str(cell).strip()).astype(object)

    def keep(self, good: np.ndarray) -> int:
        """Leaves out the other rows; how many."""
        self.cells = self.cells[good]
        return int((~good).sum())

    @property
    def ours(self) -> bool:
        """Whether this package wrote the columns, so that their meaning is known."""
        return self.kind == "sweep" or {"params", "params_nonembedding"} <= set(self.cells.columns)


def is_empty(cell: Any) -> bool:
    return cell is None or cell is pd.NA or (isinstance(cell, float) and np.isnan(cell))


def listed(name: str, names: Iterable[str]) -> str:
    """The nearest name, and all of them."""
    names = [str(n) for n in names]
    return f"{nearest(name, names)}; it has {names_of(names)}"


def names_of(names: Sequence[str]) -> str:
    shown = [n if len(n) <= 40 else f"{n[:40]}..." for n in names[:SHOWN] if n]
    while len(", ".join(shown)) > 300:
        shown.pop()
    return ", ".join(shown) + (f" and {len(names) - len(shown)} more" if len(names) > len(shown) else "")


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


# ------------------------------------------------------------------------------------ reading


def read(path: Path, earlier: bool = False) -> Source:
    """A folder of runs, or a table. `earlier`: also the runs of earlier versions of the sweep."""
    if path.is_dir():
        return _read_runs(path, earlier)
    table = readers.read(path)
    return Source(repr(str(path)), table.cells, "wandb" if table.state else "table", table.duplicates, table.state)


def _read_runs(folder: Path, earlier: bool) -> Source:
    files, left_out = _results(folder, earlier)
    source = Source(repr(str(folder)), pd.DataFrame(), "sweep")
    if not files and not left_out:
        looked = f"no result.json in the run directories of {source.name} (looked for */result.json)"
        raise UsageError(f"{looked}{_nearby(folder)}")
    rows: list[dict[str, Any]] = []
    unread = []
    for file in files:
        try:
            for one in _objects(file):
                branches = one.pop("branches", [])  # decays of one trunk: each is a point of its own
                rows += [{"run_id": file.parent.name, **one, **branch} for branch in (*branches, {})]
        except UNREADABLE as e:  # half-written by a run that was killed, or changed since
            unread.append(f"{file.parent.name} ({(str(e) or type(e).__name__)[:80]})")
    if unread:
        source.counts["unreadable"] = len(unread)
        source.warnings.append(f"{len(unread)} result.json can't be read, as that of {unread[0]}: left out")
    for kind, (number, why) in left_out.items():
        source.counts[kind] = number
        source.warnings.append(f"{number} runs {why}")
    # The sweep may still be going: a law of half a sweep should say so.
    started = sum(not (f.parent / "result.json").is_file() for f in folder.glob("*/config.json"))
    if started:
        source.counts["unfinished"] = started
        source.warnings.append(f"{started} runs have no result.json yet: left out")
    if not rows:
        raise UsageError(f"no usable run in {source.name}: {'; '.join(source.warnings)}")
    source.cells = pd.DataFrame(rows)
    return source


def _nearby(folder: Path) -> str:
    """Where runs may be instead, for an error."""
    if any(any(folder.glob(f"{below}*.wandb")) for below in ("", "*/", "*/*/")):
        return "; W&B's offline files aren't read: `bigmodel fit runs/SWEEP` reads the results themselves"
    if (folder / "result.json").is_file():
        return f"; it is one run: give the folder of them, {str(folder.resolve().parent)!r}"
    inner = sorted({str(f.parents[1]) for f in folder.glob("*/*/result.json")})
    return f"; there are some in {', '.join(map(repr, inner[:5]))}" if inner else ""


def _results(folder: Path, earlier: bool = False) -> tuple[list[Path], dict[str, tuple[int, str]]]:
    """The result files of a sweep's plan, and kind -> (number, reason) of those that are left out.

    Runs of earlier versions of the sweep may lie beside today's: `earlier` takes those too.

    Raises:
      UsageError: the plan is cut or damaged; which line, and what writes it again.
    """
    files = sorted(folder.glob("*/result.json"))
    if not files or not (folder / "plan.jsonl").is_file():
        return files, {}
    superseded = {row["run_id"]: bool(row.get("superseded")) for row in read_plan(folder)}
    planned = [f for f in files if f.parent.name in superseded]
    kept = [f for f in planned if earlier or not superseded[f.parent.name]]
    left_out = {
        "unplanned": (len(files) - len(planned), "aren't in the sweep's plan: left out"),
        "superseded": (
            len(planned) - len(kept), "of an earlier version of the sweep: left out (--earlier takes them)"
        ),
    }  # fmt: skip
    return kept, {kind: (number, why) for kind, (number, why) in left_out.items() if number}


def _objects(path: Path) -> Iterator[dict[str, Any]]:
    """The object or list of objects of a run's file, without checksums; one of UNREADABLE where it is damaged."""
    content = json.loads(path.read_text(encoding="utf-8"))
    for one in content if isinstance(content, list) else [content]:
        if not is_whole(one):
            raise ValueError("its checksum differs")
        one.pop("crc32", None)
        yield one


def read_object(path: Path) -> dict[str, Any] | None:
    """The JSON object of a run's file; None where it can't be read, isn't one object, or its checksum differs."""
    try:
        (one,) = _objects(path)
        return one
    except UNREADABLE:
        return None


def runs(folder: str | Path) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """(result, config) of a sweep's finished runs. A loss of None is NaN: that run diverged.

    Runs outside the plan, and what can't be read or holds no loss or status, are left out and counted on stderr.

    Raises:
      UsageError: there are none.
    """
    found, bad = [], []
    files, left_out = _results(Path(folder))
    for number, why in left_out.values():
        print(f"bigmodel: {number} runs of {str(folder)!r} {why.partition(' (')[0]}", file=sys.stderr)
    for path in files:
        result, config = read_object(path), read_object(path.parent / "config.json")
        loss = result.get("loss", "") if result else ""
        if result is None or config is None or "status" not in result or not isinstance(loss, int | float | None):
            bad.append(path.parent.name)
            continue
        found.append(({**result, "loss": math.nan if loss is None else loss}, config))
    if bad:
        line = f"{len(bad)} runs of {str(folder)!r} without a whole result.json and config.json: left out, as {bad[0]}"
        print(f"bigmodel: {line}", file=sys.stderr)
    if not found:
        raise UsageError(f"no finished runs in {str(folder)!r}")
    return found


# ---------------------------------------------------------------------------------- filtering


def choose_rows(source: Source, where: str | Mapping[str, str]) -> None:
    """Keeps the rows with the values asked for."""
    wanted = pairs("where", where) if isinstance(where, str) else dict(where)
    good = np.ones(len(source.cells), dtype=bool)
    for name, value in wanted.items():
        column = source.column(name, "where: ")
        texts = source.texts(column)
        equal = (texts == str(value)).to_numpy()
        number = readers.numbers(pd.Series([str(value)], dtype=object)).values[0]
        if np.isfinite(number):
            equal = equal | (readers.numbers(source.cells[column]).values == number)
        if not equal.any():
            raise UsageError(
                f"where: no row of {source.name} has {name}={str(value)!r}{listed(str(value), texts.unique())}"
            )
        good &= equal
    if not good.any():
        together = " and ".join(f"{k}={v!r}" for k, v in wanted.items())
        raise UsageError(f"where: no row of {source.name} has {together} together")
    if wanted:
        source.counts["filtered"] += source.keep(good)


def drop_rows(source: Source, drop: str) -> None:
    """Leaves out the rows that `drop` names: row numbers of a table or run ids, several separated by commas."""
    ids = source.cells["run_id"].astype(str) if "run_id" in source.cells else pd.Series(dtype=str)
    numbers = source.cells.index.astype(str)
    gone = np.zeros(len(source.cells), dtype=bool)
    for name in filter(None, (part.strip() for part in drop.split(","))):
        own = np.asarray(numbers == name) & (source.kind != "sweep")
        if not own.any() and len(ids):
            own = (ids == name).to_numpy()
        if not own.any():
            raise UsageError(f"drop: {source.name} has no row {name!r}{nearest(name, ids)}")
        gone |= own
    number = source.keep(~gone)
    source.counts["dropped"] += number
    source.warnings.append(f"left out {number} rows, as asked: {drop}")


def only_done(source: Source) -> None:
    """Leaves out runs that didn't end well, and counts them; says which words were taken for the end."""
    columns = [c for c in source.cells if str(c).lower() in ("status", "state") and c != source.state]
    for column in [*([source.state] if source.state else []), *columns]:
        words = source.texts(column)
        known = words.str.lower().isin(DONE)
        if column in columns and source.state:  # W&B's own word is enough for runs of others
            known |= words == ""
        elif not known.any() and not words.str.lower().isin(NOT_DONE).any():
            if some := names_of(list(words[words != ""].unique())):
                source.warnings.append(f"no {column} ({some}) is a word for a finished run: every row is taken")
            continue
        usual = ("done", "") if column in columns else ("finished",)
        taken = [f"{n} with {w!r}" for w, n in words[known & ~words.isin(usual)].value_counts().items()]
        if taken:
            source.warnings.append(f"{column}: {', '.join(taken)} taken as done")
        for word, number in words[~known].value_counts().items():
            source.counts["diverged" if word == "diverged" else "unfinished"] += int(number)
            source.warnings.append(f"{number} runs with {column} {word or 'unknown'!r}: left out")
        source.keep(known.to_numpy())
