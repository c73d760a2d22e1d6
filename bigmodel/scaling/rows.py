"""Rows: one line per run with its size, data, compute and loss, from a sweep's results or from a user's table.

Legend: N parameters, D examples or tokens seen, C training FLOPs, L loss.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bigmodel.config import UsageError, nearest
from bigmodel.scaling.laws import FLOPS_PER_PARAM_TOKEN

DEFAULTS = {"N": "params", "D": "tokens", "L": "loss", "C": "flops"}
KEPT = ("width", "depth", "run_id", "seed", "family", "status")
READERS = {".csv": pd.read_csv, ".parquet": pd.read_parquet, ".jsonl": lambda path: pd.read_json(path, lines=True)}


def load(source: str | Path, columns: Mapping[str, str] | None = None, drop_highest: int = 0) -> pd.DataFrame:
    """Reads runs.

    Args:
      source: a sweep's directory (its */result.json; a file may hold one object or a list of them), or a table:
        .csv, .parquet or .jsonl.
      columns: letter -> name in the source, for the letters N, D, L, C. A letter not named here is looked for as
        `params`, `tokens`, `loss`, `flops`, then as itself. N and L must exist; a missing C is 6 N D, a missing D is
        C / (6 N) (Hoffmann et al. 2022, arXiv:2203.15556, section 3.3).
      drop_highest: leave out the runs whose loss is at least the k-th highest (Besiroglu et al. 2024,
        arXiv:2404.10102, leave out 5 of 245).

    Returns:
      A frame, sorted by C, with float columns N (parameters), D (tokens or examples), C (FLOPs), L (the loss's unit),
      and width, depth, run_id, seed, family, status where known. Its attrs: "source"; "conventions", letter -> the
      column or formula it came from; "counts"; "warnings", one line each.

    Raises:
      UsageError: no such source or column; no run left; in a table, a value that isn't a positive finite number.
    """
    path = Path(source)
    for letter in columns or {}:
        if letter not in DEFAULTS:
            raise UsageError(f"columns: {letter!r} is not one of {', '.join(DEFAULTS)}{nearest(letter, DEFAULTS)}")
    if path.is_dir():
        table, warnings, counts = _read_runs(path)
    else:
        table, warnings, counts = _read_table(path), [], Counter[str]()
    counts["rows"] += len(table)
    strict = not path.is_dir()
    table = _only_done(table, warnings, counts)
    frame, conventions = _rename(table, columns or {}, path)
    frame = _check(frame, table, path, conventions, warnings, counts, strict)
    if "C" not in frame:
        frame["C"], conventions["C"] = FLOPS_PER_PARAM_TOKEN * frame["N"] * frame["D"], "6*N*D"
        warnings.append("no column of training FLOPs: C is taken as 6 N D")
    if "D" not in frame:
        frame["D"], conventions["D"] = frame["C"] / (FLOPS_PER_PARAM_TOKEN * frame["N"]), "C/(6*N)"
        warnings.append("no column of tokens: D is taken as C / (6 N)")
    if drop_highest:
        if not 0 < drop_highest < len(frame):
            raise UsageError(f"drop_highest={drop_highest}: expected 0 to {len(frame) - 1}, of {len(frame)} runs")
        below = frame["L"] < np.sort(frame["L"])[-drop_highest]
        warnings.append(f"left out the {int((~below).sum())} runs of highest loss, as asked")
        frame = frame[below]
    repeats = int(frame.duplicated(["N", "D", "L"]).sum())
    if repeats:
        warnings.append(f"{repeats} of {len(frame)} rows repeat another's N, D and L: they count twice")
    counts["used"] = len(frame)
    names = ["N", "D", "C", "L", *[name for name in KEPT if name in frame]]
    frame = frame[names].sort_values("C", kind="stable").reset_index(drop=True)
    frame.attrs = {
        "source": str(source),
        "conventions": conventions,
        "counts": {k: int(v) for k, v in counts.items()},
        "warnings": warnings,
    }
    return frame


def _read_runs(folder: Path) -> tuple[pd.DataFrame, list[str], Counter[str]]:
    files = sorted(folder.glob("*/result.json"))
    if not files:
        raise UsageError(f"no result.json in the run directories of {str(folder)!r} (looked for */result.json)")
    rows: list[dict[str, Any]] = []
    counts: Counter[str] = Counter()
    plan = folder / "plan.jsonl"
    if plan.is_file():  # runs of an earlier version of the sweep may lie beside today's
        planned = {json.loads(line)["run_id"] for line in plan.read_text(encoding="utf-8").splitlines()}
        counts["unplanned"] = sum(f.parent.name not in planned for f in files)
        files = [f for f in files if f.parent.name in planned]
    for file in files:
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            for one in content if isinstance(content, list) else [content]:
                rows.append({"run_id": file.parent.name, **one})
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
    return pd.DataFrame(rows), warnings, counts


def _read_table(path: Path) -> pd.DataFrame:
    if not path.is_file():
        siblings = [str(p) for p in path.parent.glob("*")] if path.parent.is_dir() else []
        raise UsageError(f"no file or directory {str(path)!r}{nearest(str(path), siblings)}")
    if path.suffix not in READERS:
        raise UsageError(f"{str(path)!r}: can't read {path.suffix or 'this'}; use {', '.join(READERS)}")
    try:
        return READERS[path.suffix](path)  # type: ignore[operator]
    except (OSError, ValueError, ImportError) as e:  # pandas' parser errors are ValueErrors
        line = (str(e).splitlines() or [""])[0]
        raise UsageError(f"can't read {str(path)!r}: {type(e).__name__}: {line}") from e


def _only_done(table: pd.DataFrame, warnings: list[str], counts: Counter[str]) -> pd.DataFrame:
    if "status" not in table:
        return table
    status = table["status"].fillna("unknown").astype(str)
    for name, number in status[status != "done"].value_counts().items():
        key = "diverged" if name == "diverged" else "unfinished"
        counts[key] += int(number)
        warnings.append(f"{number} runs with status {name!r}: left out")
    return table[(status == "done").to_numpy()]


def _rename(table: pd.DataFrame, columns: Mapping[str, str], path: Path) -> tuple[pd.DataFrame, dict[str, str]]:
    """Columns by letter, and where each letter came from."""
    have = [str(c) for c in table.columns]
    conventions: dict[str, str] = {}
    for letter, default in DEFAULTS.items():
        if letter in columns:
            name = columns[letter]
            if name not in have:
                hint = nearest(name, have)
                raise UsageError(f"{str(path)!r} has no column {name!r} for {letter}{hint}; it has {', '.join(have)}")
            conventions[letter] = name
        else:
            found = [name for name in (default, letter) if name in have]
            if found:
                conventions[letter] = found[0]
    for letter in ("N", "L"):
        if letter not in conventions:
            name = DEFAULTS[letter]
            hint = nearest(name, have)
            raise UsageError(f"{str(path)!r} has no column {name!r} for {letter}{hint}; name one of {', '.join(have)}")
    if "D" not in conventions and "C" not in conventions:
        raise UsageError(f"{str(path)!r} has no column 'tokens' for D nor 'flops' for C; name one of {', '.join(have)}")
    frame = pd.DataFrame({letter: table[name] for letter, name in conventions.items()})
    for name in KEPT:
        if name in have:
            frame[name] = table[name]
    return frame, conventions


def _check(
    frame: pd.DataFrame,
    table: pd.DataFrame,
    path: Path,
    conventions: Mapping[str, str],
    warnings: list[str],
    counts: Counter[str],
    strict: bool,
) -> pd.DataFrame:
    """Positive finite numbers only: a table's author is told the row, a sweep's bad runs are counted."""
    good = np.ones(len(frame), dtype=bool)
    frame = frame.copy()
    for letter, name in conventions.items():
        values = pd.to_numeric(frame[letter], errors="coerce").to_numpy(dtype=np.float64)
        bad = ~(np.isfinite(values) & (values > 0))
        if strict and bad.any():
            at = int(np.flatnonzero(bad)[0])
            row = int(table.index[at]) + 1
            more = f" (and {int(bad.sum()) - 1} more rows)" if bad.sum() > 1 else ""
            got = table[name].iloc[at]
            text = repr(got) if isinstance(got, str) else str(got)
            raise UsageError(f"{str(path)!r}, row {row}{more}: {name!r} is {text}, expected a positive number")
        good &= ~bad
        frame[letter] = values
    if not good.all():
        counts["unusable"] += int((~good).sum())
        warnings.append(f"{int((~good).sum())} done runs have a size or loss that isn't a positive number: left out")
    if not good.any():
        dropped = ", ".join(f"{v} {k}" for k, v in counts.items() if k != "rows") or "it is empty"
        raise UsageError(f"no usable run in {str(path)!r}: {dropped}")
    return frame[good].copy()
