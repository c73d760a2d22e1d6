"""Rows: one line per run with its size, data, compute and loss, from a sweep's results or from a user's table.

Legend: N parameters, D examples or tokens seen, C training FLOPs, L loss. A law may ask for other columns too: they
have their own names, or those of `DEFAULTS`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bigmodel.errors import UsageError, choose
from bigmodel.laws import labels, readers, sources
from bigmodel.laws.forms import FLOPS_PER_PARAM_TOKEN
from bigmodel.laws.sources import KEPT, Source, is_empty, listed, names_of

LETTERS = ("N", "D", "C", "L")
DEFAULTS = {
    "N": "params", "D": "tokens", "C": "flops", "L": "loss", "U": "unique_tokens", "S": "steps", "B": "batch_size"
}  # fmt: skip
COUNTS = {"total": "params", "nonembedding": "params_nonembedding", "kaplan": "params_kaplan"}
FLOPS = ("exact", "6nd")
SIX = {"N", "D", "C"}  # C = 6 N D gives one of them from the others
# Tokens or examples per parameter of runs as people do them; a unit of a thousand or more leads outside.
LEAST_RATIO, MOST_RATIO = 1e-3, 1e5
LEAST_FLOPS = 1e10  # of a run, the median: a second of one core
MOST_NUMBERED = 20_000  # rows whose numbers in their table are kept
LARGEST = 1e60  # of a size, an amount of data or a loss; products of larger ones overflow
OLD = "an earlier version wrote them; choose another --count, or run them again in another folder"
# Others' names for these columns: an error suggests them, nothing takes them unasked. Without case, spaces and signs.
SYNONYMS = {
    "N": "modelsize nparams numparams numparameters parameters params modelparams paramcount parametercount n size "
    "nonembeddingparams paramsnonembedding numnonembeddingparams",
    "D": "ntokens numtokens tokens trainingtokens traintokens tokensseen tokenstrained totaltokens numexamples "
    "examples samples samplesseen trainingsamples dataset d datasize t",
    "C": "trainingflop trainingflops flop flops totalflops trainflops compute c totalcompute",
    "L": "loss losses valloss validationloss evalloss testloss finalloss finalvalloss crossentropy nll trainloss l",
    "U": "uniquetokens ntokensunique uniquedata u",
    "S": "steps nsteps numsteps trainsteps globalstep step iterations",
    "B": "batchsize batch globalbatchsize tokensperbatch",
    "batch": "batchsize batch globalbatchsize tokensperbatch",
    "lr": "lr learningrate peaklr maxlr",
    "accuracy": "accuracy acc top1 top1accuracy valacc valaccuracy testaccuracy",
    "error": "error err top1error testerror errorrate",
}


def load(
    source: str | Path,
    columns: Mapping[str, str] | None = None,
    drop_highest: int = 0,
    *,
    count: str = "",
    flops: str = "",
    where: str | Mapping[str, str] = "",
    target: str = "L",
    needed: Sequence[str] = (),
    run: str = "",
    drop: str = "",
    earlier: bool = False,
    signed: Sequence[str] = (),
) -> pd.DataFrame:
    """Reads runs.

    Args:
      source: a sweep's directory (its */result.json; a file may hold one object or a list of them), or a table:
        .csv, .tsv, .json, .jsonl or .parquet, plain or .gz, .bz2 or .xz; exports of a W&B project are such tables.
      columns: letter or name -> column of the source. One that isn't named here is looked for as `DEFAULTS` says, then
        as itself; `model.width` finds `config.model.width`.
      drop_highest: leave out the runs whose target is at least the k-th highest (Besiroglu et al. 2024,
        arXiv:2404.10102, leave out 5 of 245).
      count: which parameters N counts: "total", "nonembedding" or "kaplan" (`bigmodel count` prints all three). It
        selects the column of our own results ("": total), and says what a column of the user's counts.
      flops: likewise: "exact", what the modules cost; "6nd", 6 N D with the N chosen.
      where: only rows with these values, "dataset=rw,val=train" or a dict: text exactly, numbers by value.
      target: the column that is to be predicted.
      needed: the columns that the law reads ((): N and D). Their values and the target's must be positive and finite.
        Of N, D and C, one that is missing follows from C = 6 N D (Hoffmann et al. 2022, arXiv:2203.15556, section 3.3).
      run: the column that names a row's run; "" looks for one by its usual names; "none": every row is a run. Rows of
        one run are resampled together.
      drop: rows to leave out, by row number (in a sweep by run id), separated by commas.
      earlier: of a sweep, also the runs of its earlier versions.
      signed: those of `needed` and `target` that may be zero or negative.

    Returns:
      A frame, sorted by C, with float columns N (parameters), D (tokens or examples), C (FLOPs), L (the loss's unit)
      as far as they are known, the other columns asked for, run_id, seed, width, depth, family, status where known,
      every other column of numbers under its own name, and columns of a few texts. Its attrs: "source";
      "conventions", letter -> the column or formula it came from and what that counts; "counts"; "warnings", one line
      each; "checkpoints", whether runs have several rows that precede their end; "row_numbers", of a table's rows.

    Raises:
      UsageError: no such source or column; no run left; in a table, a value that isn't a positive finite number.
    """
    asked = dict(columns or {})
    needed = tuple(dict.fromkeys((*(needed or ("N", "D")), target)))
    if count:
        choose("count", count, COUNTS)
    if flops:
        choose("flops", flops, FLOPS)
    found = sources.read(Path(source), earlier)
    found.counts["rows"] += len(found.cells)
    sources.choose_rows(found, where)
    if drop:
        sources.drop_rows(found, drop)
    sources.only_done(found)
    taken = _choose(found, asked, needed, count, flops)
    frame, origins = _take(found, taken, asked, needed, flops, signed)
    conventions = _conventions(found, origins, count, flops)
    checkpoints = labels.label(found, frame, run)
    if drop_highest:
        if not 0 < drop_highest < len(frame):
            raise UsageError(f"drop_highest={drop_highest}: expected 0 to {len(frame) - 1}, of {len(frame)} runs")
        below = frame[target] < np.sort(frame[target])[-drop_highest]
        found.warnings.append(f"left out the {int((~below).sum())} runs of highest {target}, as asked")
        frame = frame[below]
    _suspect(found, frame, target, needed)
    found.counts["used"] = len(frame)
    frame = frame.sort_values("C" if "C" in frame else needed[0], kind="stable")
    numbers = frame.index.tolist() if found.kind != "sweep" and len(frame) <= MOST_NUMBERED else []
    frame = frame.reset_index(drop=True)
    frame.attrs = {
        "source": str(source),
        "conventions": conventions,
        "counts": {k: int(v) for k, v in found.counts.items()},
        "warnings": found.warnings,
        "checkpoints": checkpoints,
        "row_numbers": numbers,
    }
    return frame


# ------------------------------------------------------------------------------------- columns


def _choose(source: Source, asked: Mapping[str, str], needed: Sequence[str], count: str, flops: str) -> dict[str, str]:
    """Letter or name -> column of the source, for all that is asked, needed, or one of N, D, C, L."""
    taken: dict[str, str] = {}
    for letter in dict.fromkeys((*LETTERS, *needed, *asked)):
        if letter in asked:
            column = source.column(asked[letter], purpose=f" for {letter}")
        else:
            column = next(filter(None, map(source.find, _usual(source, letter, count))), "")
        if column:
            taken[letter] = column
    if flops == "6nd" and taken.keys() >= SIX:
        if "C" in asked:
            raise UsageError("flops=6nd takes C as 6 N D, and a column for C was named too: leave one out")
        del taken["C"]
    if source.ours and count and "N" in taken:
        column = taken["N"]
        if "N" in asked and column in COUNTS.values() and column != COUNTS[count]:
            raise UsageError(f"count={count} is the column {COUNTS[count]!r}, and {column!r} was named for N")
        if "N" not in asked:
            total, own = (readers.numbers(source.cells[name]).values for name in (COUNTS["total"], column))
            if old := int((np.isfinite(total) & np.isnan(own)).sum()):
                raise UsageError(f"{old} runs of {source.name} have no {column!r}: {OLD}")
    has = set(taken)
    if len(has & SIX) == 2 and not (count and "N" not in has):
        has |= SIX
    missing = [letter for letter in needed if letter not in has]
    if missing:
        raise UsageError(_missing(source, missing, taken, count))
    return taken


def _usual(source: Source, letter: str, count: str) -> list[str]:
    """Where a letter is looked for when nobody says. Our own results have every count, so there `count` selects."""
    first = COUNTS[count or "total"] if letter == "N" else DEFAULTS.get(letter, letter)
    if letter == "N" and count and source.ours:
        return [first]
    return [first, letter, *KEPT.get(letter, ())]


def _missing(source: Source, missing: Sequence[str], taken: Mapping[str, str], count: str) -> str:
    """One line: what isn't there, the flags that would name it, and what is there."""
    have = [str(c) for c in source.cells.columns]
    if source.ours and count and "N" in missing:
        return f"{source.name} has no {COUNTS[count]!r}: {OLD}"
    usual = {letter: _usual(source, letter, count)[0] for letter in missing}
    names = [f"{name!r} for {letter}" if name != letter else repr(name) for letter, name in usual.items()]
    line = f"{source.name} has no column {', '.join(names)}"
    letters = list(missing)
    if "D" in missing and "C" not in taken:
        line += " nor 'flops' for C"
        letters.append("C")
    flags = [flag for letter in dict.fromkeys(letters) for flag in _flags(source, letter, taken)]
    if flags:
        return f"{line}; perhaps {' or '.join(flags)}? It has {names_of(have)}"
    return f"{line}{listed(usual[missing[0]], have)}"


def _flags(source: Source, letter: str, taken: Mapping[str, str]) -> list[str]:
    """Flags that would name a column for `letter`, by what others call it: likely first, two at most."""
    known = SYNONYMS.get(letter, letter.lower()).split()
    plain = {c: re.sub(r"[^a-z0-9]", "", str(c).rpartition(".")[2].lower()) for c in source.cells.columns}
    free = [c for c in plain if c not in taken.values() and plain[c] in known]
    values = [repr(c) if re.search(r"[^\w./-]", c) else c for c in sorted(free, key=lambda c: known.index(plain[c]))]
    return [f"--{letter}={v}" if letter in LETTERS else f"--columns={letter}={v}" for v in values[:2]]


def _take(
    source: Source,
    taken: Mapping[str, str],
    asked: Mapping[str, str],
    needed: Sequence[str],
    flops: str,
    signed: Sequence[str],
) -> tuple[pd.DataFrame, dict[str, str]]:
    """The frame of numbers, and letter -> column or formula. Only what is needed has to be good."""
    checked = {*needed, *asked} | ({"C"} if {"N", "D"} <= set(needed) else set())
    if len(taken.keys() & SIX) == 2 and checked & SIX - taken.keys():
        checked |= SIX
    data = _check(source, {k: v for k, v in taken.items() if k in checked}, signed)
    for letter in taken.keys() - data.keys():  # known, but not needed: as it is
        read = readers.numbers(source.cells[taken[letter]])
        if read.bad < 0:
            data[letter] = read.values
    origins = {letter: column for letter, column in taken.items() if letter in data}
    if len(data.keys() & SIX) == 2:
        (letter,) = SIX - data.keys()
        if letter == "C":
            data["C"], origins["C"] = FLOPS_PER_PARAM_TOKEN * data["N"] * data["D"], "6*N*D"
        else:
            other = "D" if letter == "N" else "N"
            data[letter], origins[letter] = data["C"] / (FLOPS_PER_PARAM_TOKEN * data[other]), f"C/(6*{other})"
        if not (letter == "C" and flops == "6nd"):
            what = {"N": "parameters", "D": "tokens", "C": "FLOPs"}[letter]
            flags = _flags(source, letter, taken)
            there = f"; or is it {' or '.join(flags)}?" if flags else ""
            source.warnings.append(f"no column of {what} is named: {letter} is taken as {origins[letter]}{there}")
    order = dict.fromkeys((*LETTERS, *needed, *asked))
    columns: dict[str, Any] = {letter: data[letter] for letter in order if letter in data}
    for name, others in KEPT.items():
        column = next((c for c in (name, *others) if c in source.cells), "")
        if column and name not in columns:
            known = _whole(readers.numbers(source.cells[column]))
            columns[name] = source.cells[column].to_numpy() if known is None else known
    letters = {column: letter for letter, column in taken.items() if letter in data}
    for name in source.cells.columns:
        if name in columns or name in LETTERS:
            continue
        cells = source.cells[name]
        found = readers.Numbers(data[letters[name]]) if name in letters else readers.numbers(cells)
        if (known := _whole(found)) is not None:
            columns[name] = known
        elif source.kind == "table" and found.bad >= 0 and _names_groups(cells):
            columns[name] = cells.to_numpy(dtype=object)
    return pd.DataFrame(columns, source.cells.index), origins


def _names_groups(cells: pd.Series) -> bool:
    """Whether a column is of a few texts, each of several rows."""
    return all(isinstance(cell, str) for cell in cells) and 2 <= cells.nunique() <= len(cells) / 3


def _whole(read: readers.Numbers) -> np.ndarray | None:
    """int64 where every value is a whole number, else float64; None for text and for nothing."""
    values = read.values
    if read.bad >= 0 or np.isnan(values).all():
        return None
    whole = np.isfinite(values).all() and (values == np.round(values)).all() and np.abs(values).max() < 2**53
    return values.astype(np.int64) if whole else values


def _check(source: Source, taken: Mapping[str, str], signed: Sequence[str]) -> dict[str, np.ndarray]:
    """Letter -> positive finite numbers, of `signed` of any sign.

    A table's author is told the row that has another, bad runs are left out. W&B's runs may lack a value that was never
    logged (another kind of run, a NaN): those are left out too.
    """
    good = np.ones(len(source.cells), dtype=bool)
    data: dict[str, np.ndarray] = {}
    lacking = []
    for letter, column in taken.items():
        read = readers.numbers(source.cells[column])
        data[letter] = values = read.values
        wrong = ~(np.abs(values) < LARGEST) if letter in signed else ~((values > 0) & (values < LARGEST))
        if source.kind != "sweep":
            fatal = wrong & np.isfinite(values) if source.kind == "wandb" else wrong.copy()
            if read.bad >= 0:
                fatal[read.bad] = True
            if fatal.any():
                raise UsageError(_cell(source, column, fatal, read))
        if read.note:
            source.warnings.append(f"column {column!r}: {read.note}")
        if wrong.any():
            lacking.append(repr(column))
        good &= ~wrong
    if bad := source.keep(good):
        source.counts["unusable"] += bad
        runs = "done runs" if source.kind == "sweep" else "finished runs"
        source.warnings.append(f"{bad} {runs} without a positive number as {', '.join(lacking)}: left out")
    if not good.any():
        dropped = ", ".join(f"{v} {k}" for k, v in source.counts.items() if k != "rows" and v) or "it is empty"
        raise UsageError(f"no usable run in {source.name}: {dropped}")
    return {letter: values[good] for letter, values in data.items()}


def _cell(source: Source, column: str, fatal: np.ndarray, read: readers.Numbers) -> str:
    """The first cell that can't be used: where, what, and why."""
    at = read.bad if read.bad >= 0 else int(np.flatnonzero(fatal)[0])
    cell, value = source.cells[column].iloc[at], read.values[at]
    text = (
        "nan" if isinstance(cell, float) and is_empty(cell) else "empty" if is_empty(cell) or cell == "" else str(cell)
    )
    hint = ""
    if at == read.bad:
        shown = repr(cell[:60]) if isinstance(cell, str) else json.dumps(cell, default=str)[:60]
        text = f"{shown}, {read.why}"
    elif value < 0 and (read.values[np.isfinite(read.values)] < 0).all():
        hint = "; are these logarithms?"
    elif value >= LARGEST:
        hint = f" below {LARGEST:g}"
    rows = f"row {source.cells.index[at]}" + (f" (and {fatal.sum() - 1} more rows)" if fatal.sum() > 1 else "")
    return f"{source.name}, {rows}: {column!r} is {text}; expected a positive number{hint}"


# --------------------------------------------------------------------------- what they mean


def _conventions(source: Source, origins: Mapping[str, str], count: str, flops: str) -> dict[str, str]:
    """Letter -> the column and what it counts; a warning where nobody has said."""
    units = {str(unit) for unit in source.cells["unit"].dropna()} if "unit" in source.cells else set()
    ours = {
        "N": {column: name for name, column in COUNTS.items()},
        "D": {"tokens": f"{', '.join(sorted(units - {'', 'tokens'}))} seen".strip()},
        "C": {"flops": "exact", "flops_6nd": "6 N D, N nonembedding"},
        "L": {"loss": "validation"},
    }
    said = {"N": count, "C": flops}
    flags = {"N": f"--count={', '.join(COUNTS)}", "C": "--flops=exact; without --C it is 6 N D"}
    out = dict(origins)
    unknown = []
    for letter, column in origins.items():
        if source.ours and column in ours.get(letter, {}):
            out[letter] = f"{column} ({ours[letter][column]})"
        elif letter not in said or column in ("C/(6*D)", "6*N*D"):
            continue
        elif said[letter]:
            out[letter] = f"{column} ({said[letter]}, as said)"
        else:
            unknown.append(f"{letter} is {column!r} ({flags[letter]})")
    if unknown:
        source.warnings.append(f"{source.name} doesn't say what its columns count, nor did you: {'; '.join(unknown)}")
    return out


def _suspect(source: Source, frame: pd.DataFrame, target: str, needed: Sequence[str]) -> None:
    """Warns of numbers that are valid, and probably not what was meant."""
    values = frame[target].to_numpy()
    if len(values) > 1 and (values == values[0]).all():
        raise UsageError(f"every run of {source.name} has {target} = {values[0]:.6g}: there is nothing to fit")
    middle = frame.select_dtypes("number").median()
    small = [letter for letter in ("N", "D") if letter in needed and middle[letter] < 1000]
    for letter in small:
        what = {"N": "parameters", "D": "tokens or examples"}[letter]
        source.warnings.append(
            f"{letter} is {middle[letter]:.4g} at the median, little for {what}: in millions or billions, or swapped?"
        )
    if not small and not source.ours and {"N", "D"} <= set(needed):
        ratio = (frame["D"] / frame["N"]).median()
        many_tokens = ratio > MOST_RATIO or (middle["N"] < 1e4 and middle["D"] > 1e8)
        few, many = ("N", "D") if many_tokens else ("D", "N")
        if many_tokens or ratio < LEAST_RATIO:
            source.warnings.append(
                f"{few} is {middle[few]:.4g} at the median beside {many} of {middle[many]:.4g}, {ratio:.3g} tokens per "
                f"parameter: is {few} in thousands, millions or billions? A law and its plans need plain numbers"
            )
        elif (flops := (FLOPS_PER_PARAM_TOKEN * frame["D"] * frame["N"]).median()) < LEAST_FLOPS:
            source.warnings.append(
                f"6 N D is {flops:.3g} FLOPs at the median, a moment's training: are N and D in thousands, millions or "
                "billions?"
            )
    if target == "L" and "N" in needed and middle["L"] > 1e4:
        source.warnings.append(f"L is {middle['L']:.4g} at the median, much for a loss: are the columns swapped?")
    same = [name for name in needed if name in frame]
    repeats = int(frame.duplicated(same).sum())
    if repeats:
        which = ", ".join(same[:-1]) + f" and {same[-1]}"
        source.warnings.append(f"{repeats} of {len(frame)} rows repeat another's {which}: they count twice")
