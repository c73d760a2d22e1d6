"""Report of a fit: one offline HTML page, its numbers as fit.json and rows.csv, figures, tables, and the law as text.

Legend: N parameters, D examples or tokens, C training FLOPs, L loss.
"""

from __future__ import annotations

import base64
import contextlib
import html
import inspect
import json
import re
import textwrap
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

import pandas as pd

from bigmodel import files
from bigmodel.errors import UsageError
from bigmodel.laws import figures, forms, tables
from bigmodel.laws import fit as fits
from bigmodel.laws import frontier as methods
from bigmodel.laws.figures.study import MOST_MARKS, Study, thinned
from bigmodel.laws.tables import Table
from bigmodel.laws.texts import law_text, runs_of, short


def write(
    frame: pd.DataFrame,
    result: Mapping[str, Any],
    out_dir: str | Path,
    title: str,
    command: str,
    unit: str = "tokens",
    loss: str = "Loss",
    frontiers: Sequence[Mapping[str, Any]] = (),
) -> Path:
    """Writes index.html, fit.json, rows.csv, law.md, tables/*.md and *.tex, figures/*.png, *.svg and *.pdf.

    Args:
      frame, result, unit, loss, frontiers: see `figures.Study`.
      out_dir: made if absent; files of these names in it are replaced.
      title: heading of the page.
      command: the command that makes this page again, printed on it.

    Returns:
      The path of index.html, which needs no other file. It lists at most MOST_MARKS runs; rows.csv has all.
    """
    out = Path(out_dir)
    study = Study(frame, result, unit, loss, frontiers)
    drawn = figures.write(study, out / "figures")
    table = study.frame.assign(predicted=study.predicted, held_out=study.held)
    table["residual_percent"] = 100 * (study.observed / study.predicted - 1)
    table.to_csv(out / "rows.csv", index=False)
    found = tables.of(result, frontiers)
    tables.write(found, out / "tables")
    attrs = {k: v for k, v in frame.attrs.items() if k != "row_numbers"}
    content = {**fits.to_json(result), "title": title, "command": command, "rows": attrs}
    content["frontiers"] = [fits.to_json(method) for method in frontiers]
    content = files.sealed(json.loads(json.dumps(content, allow_nan=False, default=str)))
    (out / "fit.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    (out / "law.md").write_text(_markdown(result, found, title, command), encoding="utf-8")
    law, summary = law_text(result).split("\n  warning: ")[0].split("\n", 1)
    template = Template(resources.files("bigmodel.laws").joinpath("report.html").read_text(encoding="utf-8"))
    with pd.option_context("display.max_colwidth", None):
        page = template.substitute(
            title=html.escape(title),
            law=re.sub(r"\^(\([^)]*\)|-?[\w.]+)", r"<sup>\1</sup>", html.escape(law)),
            ranges=_ranges(study),
            summary=html.escape(textwrap.dedent(summary)),
            warnings=_warnings(result, frontiers),
            tables="".join(map(_section, found)),
            figures="".join(_figure(name, path) for name, path in drawn.items()),
            runs=_runs(study, table),
            command=html.escape(command),
            source=_source(study),
        )
    (out / "index.html").write_text(page, encoding="utf-8")
    return out / "index.html"


def frontiers(
    frame: pd.DataFrame, result: Mapping[str, Any], bootstrap: int = 1000, seed: int = 0
) -> list[dict[str, Any]]:
    """The frontiers that the runs of a fitted law of L allow, for `write`: IsoFLOP needs budgets of several sizes, the
    envelope several D for each of several sizes."""
    if result["target"] != "L" or not {"N", "D", "C"} <= set(frame.columns) or not (frame[[*"NDC"]] > 0).all(axis=None):
        return []
    found = []
    for name in methods.METHODS:
        with contextlib.suppress(UsageError):  # the runs do not have that design
            found.append(methods.fit(frame, name, bootstrap=bootstrap, seed=seed))
    return found


# -------------------------------------------------------------------------------------- parts


def _ranges(study: Study) -> str:
    parts = [runs_of(study.result)]
    for name in ["N", "D", "C"] if study.plane else study.law.columns:
        low, high = study.column(name).min(), study.column(name).max()
        parts.append(f"{study.label(name)}: {low:.3g} to {high:.3g}")
    return html.escape("; ".join(parts))


def _warnings(result: Mapping[str, Any], frontiers: Sequence[Mapping[str, Any]]) -> str:
    texts = list(result["warnings"])
    texts += [f"{m['law']}: {text}" for m in frontiers for text in m["warnings"] if text not in texts]
    items = "".join(f"<li>{html.escape(text)}</li>" for text in texts)
    return f'<div class="warnings"><h2>Warnings</h2><ul>{items}</ul></div>' if texts else ""


def _section(table: Table) -> str:
    opened = " open" if table.name in ("parameters", "holdout", "compared") else ""
    caption, cells = html.escape(table.caption), table.cells.to_html(index=False, border=0)
    body = f'<summary>{table.title}</summary><p class="note">{caption}</p><div class="scroll">{cells}</div>'
    return f'<details id="{table.name}"{opened}>{body}</details>'


def _figure(name: str, path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    caption = html.escape((inspect.getdoc(figures.FIGURES[name]) or "").split("\n\n")[0])
    image = f'<img src="data:image/png;base64,{data}" alt="{name}">'
    return f'<figure id="{name}">{image}<figcaption>{caption}</figcaption></figure>'


def _runs(study: Study, table: pd.DataFrame) -> str:
    note, count = "", len(table)
    if count > MOST_MARKS:
        note = f"Figures and table show {MOST_MARKS:,} of {count:,} runs, evenly spaced; rows.csv has all."
    table = table.iloc[thinned(count)].rename(columns={"predicted": "law", "residual_percent": "residual"})
    table.index += 1
    wanted = ["run_id", "family", "width", "depth", "seed", "N", "D", "C", *study.law.columns, study.target]
    formats: dict[Any, Any] = dict.fromkeys([study.target, "law"], "{:.5g}".format) | {"C": "{:.3g}".format}
    formats |= {"residual": "{:+.2f} %".format, "held_out": {True: "held out", False: ""}.get}
    columns = [c for c in dict.fromkeys([*wanted, "law", "residual", "held_out"]) if c in table]
    cells = table.to_html(columns=columns, formatters=formats, float_format=short, na_rep="", border=0)
    return f'<p class="note">{note}</p><div class="scroll" id="runs">{cells}</div>'


def _source(study: Study) -> str:
    texts, attrs = [f"Law: {study.law.source}."], study.frame.attrs
    if "source" in attrs:
        texts.append(f"Runs: {attrs['source']}.")
    if "conventions" in attrs:
        texts.append("Columns: " + ", ".join(f"{k} = {v}" for k, v in attrs["conventions"].items()) + ".")
    texts.append("Figures as PNG, SVG and PDF: figures/; at the width of a paper's column: figures/column/.")
    texts.append("Tables as Markdown and LaTeX: tables/. All runs: rows.csv. The fit: fit.json.")
    return "<br>".join(html.escape(text) for text in texts)


def _markdown(result: Mapping[str, Any], found: Sequence[Table], title: str, command: str) -> str:
    lines = [f"# {title}", "", "```text", law_text(result), "```", ""]
    for table in found:
        lines += [f"## {table.title}", "", table.caption, "", table.markdown()]
    lines += [f"Source of the form: {forms.get(result['law']).source}. Made by `{command}`.", ""]
    return "\n".join(lines)
