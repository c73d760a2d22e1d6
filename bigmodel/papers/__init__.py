"""One file = one paper: what it prints beside what our modules and fits compute. Imports laws, and study and below.

A paper's file has a docstring with the citation, `TITLE`, `SOURCE`, and `rows(points) -> list[Row]`. The published side
is typed there, with its source; ours is never typed. Where a part needs published points, the file names them in
`POINTS`, the user passes them, and `rows` finds them in `points` by that name: absent means not given. Found by
file name; there is no registry. `figure(points)`, where a file has it, draws what `--out` writes beside the table.
"""

from __future__ import annotations

import functools
import importlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
from ml_collections import ConfigDict, FrozenConfigDict

from bigmodel import models
from bigmodel.errors import UsageError, choose, nearest
from bigmodel.files import writing
from bigmodel.laws import readers
from bigmodel.laws.figures import transfer as figures
from bigmodel.laws.forms import Law
from bigmodel.run import budget

NOT_GIVEN = "not computed"


@dataclass(frozen=True)
class Row:
    """One published number beside ours.

    Attributes:
      part: the table, figure or section of the paper.
      what: which number of it.
      published: as printed, in the printed unit.
      ours: computed, in the same unit.
      tolerance: largest difference that is ok; 0: equal; None: shown, not judged.
      absolute: the difference and its tolerance are ours - published; else (ours - published) / |published|.
      format: of both numbers, as Python's format() takes it.
      note: what a reader must know, in one sentence.
    """

    part: str
    what: str
    published: float
    ours: float
    tolerance: float | None = None
    absolute: bool = False
    format: str = ",.4g"
    note: str = ""

    @property
    def difference(self) -> float:
        gap = self.ours - self.published
        return gap if self.absolute or gap == 0 else gap / abs(self.published) if self.published else math.inf

    @property
    def ok(self) -> bool | None:
        """None: not judged."""
        return None if self.tolerance is None else bool(abs(self.difference) <= self.tolerance)

    def cells(self) -> list[str]:
        gap = self.difference
        if gap == 0 or self.absolute or not math.isfinite(gap):
            shown = f"{gap:+.3g}" if gap else "equal"
        elif abs(gap) >= 5e-5:
            shown = f"{gap:+.2%}"
        else:
            shown = f"{100 * gap:+.0e}%" if self.tolerance and self.tolerance < 1e-4 else "<0.01%"
        allowed = "" if self.tolerance is None else f"{self.tolerance:.3g}"
        if self.tolerance and not self.absolute:
            allowed = f"{100 * self.tolerance:.3g}%"
        ok = {None: "-", True: "yes", False: "NO"}[self.ok]
        return [self.what, format(self.published, self.format), format(self.ours, self.format), shown, allowed, ok]

    def to_dict(self) -> dict[str, Any]:
        fields = {k: getattr(self, k) for k in ("part", "what", "published", "ours", "difference", "absolute")}
        numbers = {k: _plain(v) for k, v in fields.items()}
        return {**numbers, "tolerance": self.tolerance, "ok": self.ok, "note": self.note}


@dataclass(frozen=True)
class Points:
    """A table of published points that a paper's rows are computed from. The project ships none.

    Attributes:
      name: key in `points`, and a file name by which a folder given is searched.
      origin: public repository and path.
      licence: of that repository, as it states it.
      columns: of numbers; text: further columns, kept as text.
      also: further file names.
      gaps: rows with an empty cell are left out; else they are an error.
      ours: of runs of our own: where they are read from, if they are there and none are given.
    """

    name: str
    origin: str
    licence: str
    columns: tuple[str, ...]
    text: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    gaps: bool = False
    ours: str = ""

    def line(self) -> str:
        columns = ", ".join((*self.text, *self.columns))
        return f"--points={self.name} ({self.origin}; licence: {self.licence}; columns {columns})"


Frames = Mapping[str, pd.DataFrame]


@dataclass(frozen=True)
class Result:
    """A paper's rows, and the points whose rows couldn't be computed."""

    name: str
    title: str
    source: str
    rows: tuple[Row, ...]
    missing: tuple[Points, ...]
    figure: Callable[[], Any] | None = None

    @property
    def ok(self) -> bool:
        return all(row.ok is not False for row in self.rows)

    def summary(self) -> str:
        judged = [row for row in self.rows if row.ok is not None]
        good = sum(row.ok is True for row in judged)
        shown = len(self.rows) - len(judged)
        return f"{good} of {len(judged)} judged rows within tolerance" + (f", {shown} shown" if shown else "")

    def to_dict(self) -> dict[str, Any]:
        missing = [
            {"name": p.name, "origin": p.origin, "licence": p.licence, "columns": [*p.text, *p.columns]}
            for p in self.missing
        ]
        about = {"name": self.name, "title": self.title, "source": self.source, "ok": self.ok}
        return {**about, "rows": [row.to_dict() for row in self.rows], "not_computed": missing}


# ------------------------------------------------------------------------------------ papers


def names() -> list[str]:
    return sorted(p.stem.replace("_", "-") for p in Path(__file__).parent.glob("*.py") if p.stem != "__init__")


def paper(name: str) -> ModuleType:
    """The file of a paper; UsageError, with the nearest name, if there is none."""
    choose("paper", name, names())
    return importlib.import_module(f"bigmodel.papers.{name.replace('-', '_')}")


def wanted(module: ModuleType) -> tuple[Points, ...]:
    """The points that a paper's rows can be computed from."""
    return getattr(module, "POINTS", ())


def check(name: str, given: Sequence[str | Path] = ()) -> Result:
    """Computes a paper's rows.

    Args:
      given: files or folders of points. A folder is searched for the names of POINTS; a file by another name is
        recognised by its columns.

    Raises:
      UsageError: no such paper; points that can't be read or that this paper doesn't use; or nothing can be computed
        without points.
    """
    module = paper(name)
    frames = _load(name, wanted(module), [Path(g) for g in given])
    rows = tuple(module.rows(frames))
    missing = tuple(p for p in wanted(module) if p.name not in frames)
    if not rows:
        raise UsageError(f"paper {name} needs published points: pass {' and '.join(p.line() for p in missing)}")
    draw = getattr(module, "figure", None)
    return Result(
        name, module.TITLE, module.SOURCE, rows, missing, functools.partial(draw, frames) if draw and frames else None
    )


def _load(name: str, known: tuple[Points, ...], given: list[Path]) -> dict[str, pd.DataFrame]:
    frames: dict[str, pd.DataFrame] = {}
    for path in given or [Path(p.ours) for p in known if p.ours and Path(p.ours).is_file()]:
        if not known:
            raise UsageError(f"paper {name} reads no points; it takes no --points")
        if path.is_dir():
            files = [(p, path / file) for p in known for file in (p.name, *p.also) if (path / file).is_file()]
            if not files:
                raise UsageError(f"--points={path}: none of {', '.join(p.name for p in known)} is in that folder")
        else:
            cells = readers.read(path).cells
            files = [(p, path) for p in known if {*p.columns, *p.text} <= {*cells.columns}]
            if not files:
                lacks = min(([c for c in (*p.text, *p.columns) if c not in cells] for p in known), key=len)[0]
                raise UsageError(
                    f"--points={path}: not a file of paper {name}: no column {lacks!r}{nearest(lacks, cells.columns)}; "
                    f"it reads {', '.join(p.name for p in known)}"
                )
        for p, file in files:
            if p.name in frames:
                raise UsageError(f"--points={path}: {p.name} is given twice")
            frames[p.name] = _frame(p, file)
    return frames


def _frame(points: Points, path: Path) -> pd.DataFrame:
    cells = readers.read(path).cells
    frame = pd.DataFrame(index=cells.index)  # row numbers, from 1
    for column in (*points.text, *points.columns):
        if column not in cells:
            raise UsageError(f"{str(path)!r} has no column {column!r}{nearest(column, cells.columns)}")
        if column in points.text:
            frame[column] = cells[column].astype(str)
            continue
        found = readers.numbers(cells[column])
        empty = ~np.isfinite(found.values)
        if found.bad >= 0 or (empty.any() and not points.gaps):
            at = found.bad if found.bad >= 0 else int(np.flatnonzero(empty)[0])
            cell = cells[column].iloc[at]
            raise UsageError(f"{str(path)!r}, row {cells.index[at]}: {column!r} is {cell!r}, expected a number")
        frame[column] = found.values
    return frame.dropna().reset_index(drop=True)


# -------------------------------------------------------------------------- what papers compute


def model(family: str, **shape: Any) -> Any:
    """A family's `model` section of a published shape, finalised."""
    module = models.family(family)
    section = ConfigDict(module.get_config())
    section.update(shape)
    module.finalize(section)
    return FrozenConfigDict(section)


def published(name: str) -> Any:
    """The finalised `model` section of a published model, as 'gpt3-175b'."""
    family, row = models.published(name)
    return model(family, **row["model"])


def count(section: Any, convention: str = "total", family: str = "decoder") -> int:
    """Parameters of a model section by `eval_shape`: total, nonembedding, or kaplan (the blocks' matrices alone)."""
    return budget.counts(family, section)[("total", "nonembedding", "kaplan").index(convention)]


def evaluate(law: Law, params: Mapping[str, float], **columns: float) -> float:
    """What a law predicts at one point, as evaluate(law, params, N=1e9, D=2e10)."""
    return float(law.predict(params, {name: np.array([value]) for name, value in columns.items()})[0])


# ------------------------------------------------------------------------------------- output

HEAD = ["", "published", "ours", "difference", "allowed", "ok"]


def _plain(value: Any) -> Any:
    if isinstance(value, np.floating | np.integer):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _parts(result: Result) -> dict[str, list[tuple[Row, str]]]:
    """Rows by part, each with the mark of its note: '' or '1', '2' ... in order of appearance."""
    marks = {note: str(i + 1) for i, note in enumerate(notes(result))}
    parts: dict[str, list[tuple[Row, str]]] = {}
    for row in result.rows:
        parts.setdefault(row.part, []).append((row, marks[row.note] if row.note else ""))
    return parts


def notes(result: Result) -> list[str]:
    return list(dict.fromkeys(row.note for row in result.rows if row.note))


def text(result: Result) -> list[str]:
    """The table as lines for a terminal."""
    parts = _parts(result)
    body = {
        part: [[f"{r.what} [{m}]" if m else r.what, *r.cells()[1:]] for r, m in rows] for part, rows in parts.items()
    }
    every = [HEAD, *(cells for rows in body.values() for cells in rows)]
    widths = [max(len(cells[i]) for cells in every) for i in range(len(HEAD))]

    def line(cells: list[str]) -> str:
        padded = [c.ljust(w) if i in (0, 5) else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
        return "  " + "  ".join(padded).rstrip()

    out = [result.title, result.source, "", line(HEAD)]
    for part, rows in body.items():
        out += ["", part, *map(line, rows)]
    out += [""] + [f"[{i + 1}] {note}" for i, note in enumerate(notes(result))]
    out += [f"{NOT_GIVEN}: needs {p.line()}" for p in result.missing]
    return [*out, f"{result.name}: {result.summary()}"]


def markdown(result: Result) -> str:
    lines = [f"# {result.title}", "", result.source, "", f"`bigmodel paper {result.name}`: {result.summary()}."]
    for part, rows in _parts(result).items():
        lines += ["", f"## {part}", "", "| " + " | ".join(HEAD) + " |", "|---|---:|---:|---:|---:|---|"]
        for row, mark in rows:
            what, *rest = row.cells()
            lines.append("| " + " | ".join([f"{what} [{mark}]" if mark else what, *rest]) + " |")
    lines += [""] + [f"{i + 1}. {note}" for i, note in enumerate(notes(result))]
    lines += [f"\n{NOT_GIVEN.capitalize()}: needs `{p.line()}`" for p in result.missing]
    return "\n".join(lines).rstrip() + "\n"


def _tex(value: str) -> str:
    for character, safe in (("\\", r"\textbackslash "), *((c, "\\" + c) for c in "&%$#_{}")):
        value = value.replace(character, safe)
    return (
        value.replace("^", r"\textasciicircum{}")
        .replace("~", r"\textasciitilde{}")
        .replace(">", "$>$")
        .replace("<", "$<$")
    )


def latex(result: Result) -> str:
    """A longtable for the package booktabs; notes below it."""
    head = " & ".join(_tex(cell) for cell in HEAD) + r" \\"
    lines = [
        f"% bigmodel paper {result.name}; needs \\usepackage{{booktabs,longtable}}",
        r"\begin{longtable}{lrrrrl}",
        rf"\caption{{{_tex(result.title)}: published and recomputed.}} \\",
        *(r"\toprule", head, r"\midrule", r"\endhead"),
    ]
    for i, (part, rows) in enumerate(_parts(result).items()):
        lines += [r"\addlinespace"] * (i > 0) + [rf"\multicolumn{{6}}{{l}}{{\textit{{{_tex(part)}}}}} \\"]
        for row, mark in rows:
            what, *rest = map(_tex, row.cells())
            lines.append(" & ".join([what + (rf"\textsuperscript{{{mark}}}" if mark else ""), *rest]) + r" \\")
    lines += [r"\bottomrule", r"\end{longtable}"]
    lines += [rf"\noindent\textsuperscript{{{i + 1}}} {_tex(note)}\par" for i, note in enumerate(notes(result))]
    return "\n".join(lines) + "\n"


def write(result: Result, out: str | Path) -> list[Path]:
    """Writes NAME.md, NAME.tex, NAME.json into the folder `out`, and a paper's figure: NAME.png, .svg, .pdf."""
    folder = Path(out)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        files = {"md": markdown(result), "tex": latex(result), "json": json.dumps(result.to_dict(), indent=1) + "\n"}
        for suffix, content in files.items():
            (folder / f"{result.name}.{suffix}").write_text(content, encoding="utf-8")
        if result.figure is not None:
            figures.write(result.figure, folder / result.name)
            files |= dict.fromkeys(("png", "svg", "pdf"), "")
    return [folder / f"{result.name}.{suffix}" for suffix in files]
