"""One file = one paper: its printed numbers beside those of our models and fits. Imports laws, and run and below.

A paper's file has a docstring with the citation, `TITLE`, `SOURCE`, and `rows(points) -> list[Row]`. The published side
is typed there, with its source; ours is always computed. A paper that needs published points names them in `POINTS`.
The user passes them, and `points` holds those that were given, by name. `rows` may also take `say`, and call it with a
line for each stage. `figure(points)`, where a file has it, draws what `--out` writes beside the table. Papers are found
by file name; there is no registry.
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
from ml_collections import ConfigDict, FrozenConfigDict

from bigmodel import models
from bigmodel.config import check_exports, plugin
from bigmodel.errors import UsageError, nearest
from bigmodel.files import writing
from bigmodel.laws import readers, tables
from bigmodel.laws.figures import transfer as figures
from bigmodel.laws.forms import Law
from bigmodel.run import counts


@dataclass(frozen=True)
class Row:
    """One published number beside ours.

    Attributes:
      part: the table, figure or section of the paper.
      what: which number of it.
      published: as printed, in the printed unit; nan: none is.
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
        """Text under HEAD."""
        gap, tolerance = self.difference, self.tolerance
        if gap == 0 or self.absolute or not math.isfinite(gap):
            shown = f"{gap:+.3g}" if gap else "equal"
        elif abs(gap) >= 5e-5:
            shown = f"{gap:+.2%}"
        else:
            shown = f"{100 * gap:+.0e}%" if tolerance and tolerance < 1e-4 else "<0.01%"
        allowed = "" if tolerance is None else f"{tolerance:.3g}"
        if tolerance and not self.absolute:
            allowed = f"{100 * tolerance:.3g}%"
        ok = {None: "-", True: "yes", False: "NO"}[self.ok]
        if math.isnan(self.published):
            return [self.what, "-", format(self.ours, self.format), "-", allowed, ok]
        return [self.what, format(self.published, self.format), format(self.ours, self.format), shown, allowed, ok]

    def to_dict(self) -> dict[str, Any]:
        keys = ("part", "what", "published", "ours", "difference", "absolute", "tolerance", "ok", "note")
        values = {k: getattr(self, k) for k in keys}
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}


def table(part: str, numbers: Iterable[tuple[str, float, float]], **how: Any) -> list[Row]:
    """Rows of one part from (what, published, ours); `how`: the other fields of Row, the same for all."""
    return [Row(part, what, published, ours, **how) for what, published, ours in numbers]


@dataclass(frozen=True)
class Points:
    """A table of published points that a paper's rows are computed from. The project ships none.

    Attributes:
      name: key in `points`, and the file's name in a folder.
      origin: public repository and path.
      licence: of that repository, as it states it.
      columns: of numbers.
      text: further columns, kept as text.
      also: further file names.
      gaps: rows with an empty cell are left out; else they are an error.
      ours: for runs of our own: the file that is read if it exists and no points are given.
    """

    name: str
    origin: str
    licence: str
    columns: tuple[str, ...]
    text: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    gaps: bool = False
    ours: str = ""

    @property
    def every(self) -> list[str]:
        return [*self.text, *self.columns]

    def line(self) -> str:
        return f"--points={self.name} ({self.origin}; licence: {self.licence}; columns {', '.join(self.every)})"


Frames = Mapping[str, pd.DataFrame]


@dataclass(frozen=True)
class Result:
    """A paper's rows, the points that were given, and those whose rows couldn't be computed without."""

    name: str
    title: str
    source: str
    rows: list[Row]
    points: Frames
    missing: tuple[Points, ...]

    @property
    def ok(self) -> bool:
        return all(row.ok is not False for row in self.rows)

    @property
    def notes(self) -> list[str]:
        return list(dict.fromkeys(row.note for row in self.rows if row.note))

    def summary(self) -> str:
        judged = [row.ok for row in self.rows if row.ok is not None]
        shown = len(self.rows) - len(judged)
        return f"{sum(judged)} of {len(judged)} judged rows within tolerance" + (f", {shown} shown" if shown else "")

    def to_dict(self) -> dict[str, Any]:
        missing = [{"name": p.name, "origin": p.origin, "licence": p.licence, "columns": p.every} for p in self.missing]
        about = {"name": self.name, "title": self.title, "source": self.source, "ok": self.ok}
        return {**about, "rows": [row.to_dict() for row in self.rows], "not_computed": missing}


# ------------------------------------------------------------------------------------ papers


def names() -> list[str]:
    return sorted(p.stem.replace("_", "-") for p in Path(__file__).parent.glob("*.py") if p.stem != "__init__")


def paper(name: str) -> Any:
    """A paper by its name, the path of a file of the user's, or as an entry point `bigmodel.papers`."""
    module = plugin("papers", name, __name__, names(), "paper")
    return check_exports(module, f"paper {name!r}", ("TITLE", "SOURCE", "rows"))


def wanted(module: ModuleType) -> tuple[Points, ...]:
    """The points that a paper's rows can be computed from."""
    return getattr(module, "POINTS", ())


def check(name: str, given: Sequence[str | Path] = (), say: Callable[[str], None] = lambda text: None) -> Result:
    """Computes a paper's rows.

    Args:
      given: files or folders of points. A folder is searched for the names of POINTS; a file by another name is
        recognised by its columns.
      say: is called with a line for each stage, if the paper's `rows` takes it too.

    Raises:
      UsageError: no such paper; points that can't be read or that this paper doesn't use; or nothing can be computed
        without points.
    """
    module = paper(name)
    points = _load(name, wanted(module), [Path(g) for g in given])
    rows = module.rows(points, **({"say": say} if "say" in inspect.signature(module.rows).parameters else {}))
    missing = tuple(p for p in wanted(module) if p.name not in points)
    if not rows:
        raise UsageError(f"paper {name} needs published points: pass {' and '.join(p.line() for p in missing)}")
    return Result(name, module.TITLE, module.SOURCE, rows, points, missing)


def _load(name: str, known: tuple[Points, ...], given: list[Path]) -> dict[str, pd.DataFrame]:
    frames: dict[str, pd.DataFrame] = {}
    if given and not known:
        raise UsageError(f"paper {name} reads no points; it takes no --points")
    for path in given or [Path(p.ours) for p in known if p.ours and Path(p.ours).is_file()]:
        if path.is_dir():
            files = [(p, path / file) for p in known for file in (p.name, *p.also) if (path / file).is_file()]
            if not files:
                raise UsageError(f"--points={path}: none of {', '.join(p.name for p in known)} is in that folder")
        else:
            columns = set(readers.read(path).cells.columns)
            # Of tables with the same columns the one of this name.
            files = [(min(known, key=lambda p: (len({*p.every} - columns), path.name not in (p.name, *p.also))), path)]
        for p, file in files:
            if p.name in frames:
                raise UsageError(f"--points={path}: {p.name} is given twice")
            frames[p.name] = _frame(p, file)
    return frames


def _frame(points: Points, path: Path) -> pd.DataFrame:
    cells = readers.read(path).cells
    for column in points.every:
        if column not in cells:
            hint = nearest(column, cells.columns)
            raise UsageError(f"--points={path}: {points.name} expected: no column {column!r}{hint}")
    frame = cells[list(points.text)].astype(str)
    for column in points.columns:
        found = readers.numbers(cells[column])
        wrong = np.arange(len(cells)) == found.bad if points.gaps else ~np.isfinite(found.values)
        if wrong.any():
            row, cell = cells.index[wrong][0], cells[column][wrong].iloc[0]
            raise UsageError(f"{str(path)!r}, row {row}: {column!r} is {cell!r}, expected a number")
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


def published(name: str, **change: Any) -> Any:
    """The finalised `model` section of a published model, as 'gpt3-175b'; `change`: of its finalised options."""
    family, row = models.published(name)
    section = model(family, **row["model"])
    return model(family, **{**section.to_dict(), **change}) if change else section


def count(section: Any, convention: str = "total", family: str = "decoder") -> int:
    """Parameters of a model section by `eval_shape`: total, nonembedding, or kaplan (the blocks' matrices alone)."""
    return counts.counts(family, section)[("total", "nonembedding", "kaplan").index(convention)]


def size(name: str, **change: Any) -> int:
    """Parameters of a published model, counted."""
    return count(published(name, **change), family=models.published(name)[0])


def cost(name: str) -> float:
    """Forward FLOPs of one example of a published model."""
    return float(models.family(models.published(name)[0]).flops(published(name)))


def sums(part: str, names: Iterable[str]) -> list[Row]:
    """Parameters of published models: the exact sums over the shapes that PUBLISHED holds, and our counts."""
    numbers = [(name, models.published(name)[1]["params"], size(name)) for name in names]
    return table(part, numbers, tolerance=0, format=",.0f")


def evaluate(law: Law, params: Mapping[str, float], **columns: float) -> float:
    """What a law predicts at one point, as evaluate(law, params, N=1e9, D=2e10)."""
    return float(law.predict(params, {name: np.array([value]) for name, value in columns.items()})[0])


# ------------------------------------------------------------------------------------- output

HEAD = ["", "published", "ours", "difference", "allowed", "ok"]
TEX = str.maketrans(tables.LATEX)


def _parts(result: Result, mark: str, escape: Callable[[str], str] = str) -> dict[str, list[list[str]]]:
    """The rows' cells by part. `mark` formats the number of a row's note, as ' [{}]'."""
    marks = {note: mark.format(i) for i, note in enumerate(result.notes, 1)} | {"": ""}
    parts: dict[str, list[list[str]]] = {}
    for row in result.rows:
        what, *rest = map(escape, row.cells())
        parts.setdefault(row.part, []).append([what + marks[row.note], *rest])
    return parts


def text(result: Result) -> list[str]:
    """The table as lines for a terminal."""
    parts = _parts(result, " [{}]")
    widths = [
        max(map(len, column)) for column in zip(HEAD, *(row for rows in parts.values() for row in rows), strict=True)
    ]

    def line(cells: list[str]) -> str:
        padded = [c.ljust(w) if i in (0, 5) else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
        return "  " + "  ".join(padded).rstrip()

    out = [result.title, result.source, "", line(HEAD)]
    for part, rows in parts.items():
        out += ["", part, *map(line, rows)]
    out += ["", *(f"[{i}] {note}" for i, note in enumerate(result.notes, 1))]
    out += [f"not computed: needs {p.line()}" for p in result.missing]
    return [*out, f"{result.name}: {result.summary()}"]


def markdown(result: Result) -> str:
    def line(cells: list[str]) -> str:
        return "| " + " | ".join(cells) + " |"

    lines = [f"# {result.title}", "", result.source, "", f"`bigmodel paper {result.name}`: {result.summary()}."]
    for part, rows in _parts(result, " [{}]").items():
        lines += ["", f"## {part}", "", line(HEAD), "|---|---:|---:|---:|---:|---|", *map(line, rows)]
    lines += ["", *(f"{i}. {note}" for i, note in enumerate(result.notes, 1))]
    lines += [f"\nNot computed: needs `{p.line()}`" for p in result.missing]
    return "\n".join(lines).rstrip() + "\n"


def latex(result: Result) -> str:
    """A longtable for the package booktabs; notes below it."""
    lines = [
        f"% bigmodel paper {result.name}; needs \\usepackage{{booktabs,longtable}}",
        r"\begin{longtable}{lrrrrl}",
        rf"\caption{{{result.title.translate(TEX)}: published and recomputed.}} \\",
        *(r"\toprule", " & ".join(HEAD) + r" \\", r"\midrule", r"\endhead"),
    ]
    space: list[str] = []  # before every part but the first
    for part, rows in _parts(result, r"\textsuperscript{{{}}}", lambda cell: cell.translate(TEX)).items():
        lines += [*space, rf"\multicolumn{{6}}{{l}}{{\textit{{{part.translate(TEX)}}}}} \\"]
        lines += [" & ".join(row) + r" \\" for row in rows]
        space = [r"\addlinespace"]
    lines += [r"\bottomrule", r"\end{longtable}"]
    for i, note in enumerate(result.notes, 1):
        lines.append(rf"\noindent\textsuperscript{{{i}}} {note.translate(TEX)}\par")
    return "\n".join(lines) + "\n"


def write(result: Result, out: str | Path) -> list[Path]:
    """Writes NAME.md, NAME.tex, NAME.json into the folder `out`, and a paper's figure: NAME.png, .svg, .pdf."""
    stem = Path(out) / result.name
    files = {"md": markdown(result), "tex": latex(result), "json": json.dumps(result.to_dict(), indent=1) + "\n"}
    draw = getattr(paper(result.name), "figure", None)
    with writing(stem.parent):
        stem.parent.mkdir(parents=True, exist_ok=True)
        for suffix, content in files.items():
            stem.with_name(f"{stem.name}.{suffix}").write_text(content, encoding="utf-8")
        if draw and result.points:
            figures.write(draw, stem, result.points)
            files |= dict.fromkeys(("png", "svg", "pdf"), "")
    return [stem.with_name(f"{stem.name}.{suffix}") for suffix in files]
