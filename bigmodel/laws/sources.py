"""Sources of rows: a sweep's results or a table, the runs of it that were asked for, and those that ended well."""

from __future__ import annotations

import json
import math
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bigmodel.errors import UsageError, nearest
from bigmodel.files import is_whole, read_plan
from bigmodel.laws import readers

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
# What runs that ended well, and runs that didn't, are called in a column `status` or `state`; without case.
DONE = set(
    [
        "done",
        "finished",
        "finish",
        "complete",
        "completed",
        "success",
        "successful",
        "succeeded",
        "ok",
        "okay",
        "passed",
        "ended",
    ]
)
NOT_DONE = {"done", "finished", "finish", "complete", "completed", "success", "successful", "succeeded", "ok", "okay",
        "passed", "ended"}  # fmt: skip
NOT_DONE = {w.lower() for w in readers.WANDB_STATES} - DONE | {
    "diverged", "error", "errored", "fail", "cancelled", "canceled", "aborted", "timeout", "oom", "out_of_memory",
    "node_fail", "interrupted", "stopped", "queued", "waiting", "unfinished", "incomplete", "nan", "started", "busy",
    "todo",
}  # fmt: skip
# Columns that may say which run a row is of, the likeliest first; compared without case, spaces and signs.
RUN_IDS = ["runid", "runuuid", "uuid", "wandbid", "wandbrunid"]  # one value a row: each row is a run
RUN_NAMES = [*RUN_IDS, "run", "runname", "runnumber", "id", "trial", "trialid", "trunk", "jobid", "job", "name",
             "expid", "expname"]  # fmt: skip
# Names of a run, or of a kind of run: believed where a value has as many rows as a run has checkpoints.
KIND_NAMES = ["experiment", "experimentid", "experimentname", "exp", "modelname", "modelid", "model"]
CHECKPOINTS = 10


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


def read(path: Path, earlier: bool = False) -> Source:
    """A folder of runs, or a table. `earlier`: also the runs of earlier versions of the sweep."""
    return read_runs(path, earlier) if path.is_dir() else read_table(path)


def read_runs(folder: Path, earlier: bool = False) -> Source:
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
    warnings: list[str] = []
    unread = ""
    files, left_out = planned(folder, files, earlier)
    for file in files:
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            for one in content if isinstance(content, list) else [content]:
                if not is_whole(one):
                    raise ValueError("its checksum differs")
                one.pop("crc32", None)
                branches = one.pop("branches", [])  # decays of one trunk: each is a point of its own
                rows += [{"run_id": file.parent.name, **one, **branch} for branch in (*branches, {})]
        except UNREADABLE as e:  # half-written by a run that was killed, or changed since
            counts["unreadable"] += 1
            unread = unread or f"{file.parent.name} ({(str(e) or type(e).__name__)[:80]})"
    if counts["unreadable"]:
        warnings.append(f"{counts['unreadable']} result.json can't be read, as that of {unread}: left out")
    for kind, (number, why) in left_out.items():
        counts[kind] = number
        warnings.append(f"{number} runs {why}")
    # Runs without a result yet: the sweep may still be going, and a law of half a sweep should say so.
    started = {f.parent for f in folder.glob("*/config.json")} - {f.parent for f in files}
    if started:
        counts["unfinished"] += len(started)
        warnings.append(f"{len(started)} runs have no result.json yet: left out")
    if not rows:
        raise UsageError(f"no usable run in {name}: {'; '.join(warnings)}")
    return Source(name, pd.DataFrame(rows), "sweep", warnings=warnings, counts=counts)


UNREADABLE = (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError)  # of a damaged JSON file


def planned(
    folder: Path, files: Sequence[Path], earlier: bool = False
) -> tuple[list[Path], dict[str, tuple[int, str]]]:
    """Those of a sweep's result files that are in its plan, and kind -> (how many aren't, why).

    Runs of earlier versions of the sweep may lie beside today's: `earlier` takes those too.

    Raises:
      UsageError: the plan is cut or damaged; which line, and what writes it again.
    """
    plan = folder / "plan.jsonl"
    if not plan.is_file():
        return list(files), {}
    ids = {row["run_id"]: bool(row.get("superseded")) for row in read_plan(folder)}  # -> of an earlier version
    kept = [f for f in files if f.parent.name in ids and (earlier or not ids[f.parent.name])]
    unplanned = sum(f.parent.name not in ids for f in files)
    old = len(files) - len(kept) - unplanned
    out = {"unplanned": (unplanned, "aren't in the sweep's plan: left out")} if unplanned else {}
    return kept, out | (
        {"superseded": (old, "of an earlier version of the sweep: left out (--earlier takes them)")} if old else {}
    )


def read_object(path: Path) -> dict[str, Any] | None:
    """A JSON object of a run's folder; None where it can't be read, isn't one, or its checksum differs."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return content if isinstance(content, dict) and is_whole(content) else None
    except UNREADABLE:
        return None


def runs(folder: str | Path) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """(result, config) of a sweep's finished runs. A loss of None is NaN: that run diverged.

    Runs outside the plan, and what can't be read or holds no loss or status, are left out and counted on stderr.

    Raises:
      UsageError: there are none.
    """
    found, bad = [], []
    files, left_out = planned(Path(folder), sorted(Path(folder).glob("*/result.json")))
    for number, why in left_out.values():
        print(f"bigmodel: {number} runs of {str(folder)!r} {why.partition(' (')[0]}", file=sys.stderr)
    for path in files:
        result, own = read_object(path), read_object(path.parent / "config.json")
        loss = result.get("loss", "") if result else ""
        if result is None or own is None or "status" not in result or not isinstance(loss, int | float | None):
            bad.append(path.parent.name)
            continue
        found.append(({**result, "loss": math.nan if loss is None else loss}, own))
    if bad:
        line = f"{len(bad)} runs of {str(folder)!r} without a whole result.json and config.json: left out, as {bad[0]}"
        print(f"bigmodel: {line}", file=sys.stderr)
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
    """Leaves out runs that didn't end well, and counts them; says which words were taken for the end."""
    columns = [c for c in source.cells if str(c).lower() in ("status", "state") and c != source.state]
    for column in [*([source.state] if source.state else []), *columns]:
        words = source.cells[column].map(lambda cell: "" if is_empty(cell) else str(cell).strip()).astype(object)
        known = words.str.lower().isin(DONE)
        if column in columns and source.state:  # W&B's own word is enough for runs of others
            known |= words == ""
        elif not known.any() and not words.str.lower().isin(NOT_DONE).any():
            some = names_of(list(words[words != ""].unique()))
            source.warnings += [f"no {column} ({some}) is a word for a finished run: every row is taken"] * bool(some)
            continue
        usual = ("done", "") if column in columns else ("finished",)
        taken = [f"{n} with {w!r}" for w, n in words[known & ~words.isin(usual)].value_counts().items()]
        if taken:
            source.warnings.append(f"{column}: {', '.join(taken)} taken as done")
        for word, number in words[~known].value_counts().items():
            source.counts["diverged" if word == "diverged" else "unfinished"] += int(number)
            source.warnings.append(f"{number} runs with {column} {word or 'unknown'!r}: left out")
        source.cells = source.cells[known.to_numpy()]


def drop_rows(source: Source, drop: str) -> None:
    """Leaves out the rows that `drop` names: row numbers of a table or run ids, several separated by commas."""
    ids = source.cells["run_id"].astype(str) if "run_id" in source.cells else pd.Series(dtype=str)
    gone = np.zeros(len(source.cells), dtype=bool)
    for name in filter(None, (part.strip() for part in drop.split(","))):
        own = np.asarray(source.cells.index.astype(str) == name) if source.kind != "sweep" else gone & False
        if not own.any() and len(ids):
            own = (ids == name).to_numpy()
        if not own.any():
            raise UsageError(f"drop: {source.name} has no row {name!r}{nearest(name, ids)}")
        gone |= own
    source.counts["dropped"] += int(gone.sum())
    source.warnings.append(f"left out {gone.sum()} rows, as asked: {drop}")
    source.cells = source.cells[~gone]


def run_labels(source: Source, sizes: pd.Series | None, asked: str) -> tuple[str, pd.Series | None]:
    """(column, which run each row is of): the column asked for, or one that by its name and values says so.

    A run has one size: a column of which a value has several `sizes` (n,) names something else, as a data set. Of runs
    that share a name, the seed tells them apart. (column, None): every row is a run, and the column names it.
    """
    cells = source.cells
    if asked == "none":
        return "", None
    if asked:
        column = source.find(asked)
        if not column:
            raise UsageError(f"run: {source.name} has no column {asked!r}{listed(asked, cells.columns)}")
        return column, cells[column].astype(str)
    plain = {c: re.sub(r"[^a-z0-9]", "", str(c).lower()) for c in cells.columns}
    order = [*RUN_NAMES, *KIND_NAMES]
    found = sorted((c for c in plain if plain[c] in order), key=lambda c: order.index(plain[c]))
    unique = ""
    for column in found:
        labels = cells[column].map(lambda cell: "" if is_empty(cell) else str(cell).strip()).astype(object)
        if source.kind == "sweep" and column == "run_id":
            return column, labels
        distinct = labels.nunique()
        if (labels == "").any() or distinct < 2:
            continue
        if distinct == len(labels):
            unique = unique or column
            if plain[column] in RUN_IDS or source.kind == "wandb":
                return column, None
            continue
        if plain[column] not in RUN_IDS and "seed" in cells:
            labels = labels + " " + cells["seed"].astype(str)
        own = pd.DataFrame({"run": labels.to_numpy()}) if sizes is None else sizes.groupby(labels.to_numpy())
        if sizes is not None and (own.nunique() > 1).any():
            continue
        if plain[column] in KIND_NAMES and labels.value_counts().median() < CHECKPOINTS:
            continue
        if labels.nunique() < len(labels):
            return column, labels
    return unique, None


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
