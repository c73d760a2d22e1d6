"""Tables of a fit, as text cells that become HTML, Markdown, and LaTeX with booktabs.

Legend: N parameters, D examples or tokens, C training FLOPs, L loss; N_opt ~ C^a, D_opt ~ C^b.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigmodel.laws.texts import (
    ci,
    interval,
    law_name,
    level,
    number,
    percent,
    point,
    ratios,
    rung_name,
    runs_of,
    size,
    symbol,
)

LATEX = {"\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
         "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "×": r"$\times$", "|": r"$|$", "<": "$<$", ">": "$>$",
         "–": "--", "−": "$-$", "±": r"$\pm$", "†": r"$^\dagger$"}  # fmt: skip


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
      name: of its files.
      caption: one sentence or two.
      head: titles of the columns.
      rows: cells, as many in each row as in head.
      symbols: cells and titles with this text are names of parameters: LaTeX sets them as mathematics.
    """

    name: str
    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    symbols: frozenset[str] = frozenset()

    def html(self) -> str:
        top = "".join(f"<th>{html.escape(cell)}</th>" for cell in self.head)
        body = "".join("<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in row) + "</tr>" for row in self.rows)
        return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"

    def markdown(self) -> str:
        def line(cells: Sequence[str]) -> str:
            return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

        rule = "|" + "|".join("---" if k == 0 else "---:" for k in range(len(self.head))) + "|"
        return "\n".join([line(self.head), rule, *map(line, self.rows)]) + "\n"

    def latex(self) -> str:
        """A table environment for \\usepackage{booktabs}."""
        lines = [
            r"% needs \usepackage{booktabs}",
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_latex(self.caption)}}}",
        ]
        lines += [rf"\label{{tab:{self.name}}}", rf"\begin{{tabular}}{{l{'r' * (len(self.head) - 1)}}}", r"\toprule"]
        lines += [self._line(self.head), r"\midrule", *map(self._line, self.rows)]
        return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])

    def _line(self, cells: Sequence[str]) -> str:
        return " & ".join(self._cell(cell) for cell in cells) + r" \\"

    def _cell(self, text: str) -> str:
        math_form = symbol(text) if text in self.symbols else text
        return math_form if math_form != text else _latex(text)


def _latex(text: str) -> str:
    out = "".join(LATEX.get(c, c) for c in text)
    out = re.sub(r"(?<![\w.])([-+]?\d+(?:\.\d+)?)e([-+]?)0*(\d+)", _times, out)
    return re.sub(r"(?<![\w.$({^])-(?=[\d.])", "$-$", out)


def _times(match: re.Match[str]) -> str:
    sign = "-" if match[2] == "-" else ""
    return rf"${match[1]}\times10^{{{sign}{match[3]}}}$"


def write(tables: Sequence[Table], folder: Path) -> None:
    """Each table as folder/NAME.md and NAME.tex; files of these suffixes in it that aren't among them are removed."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in (*folder.glob("*.md"), *folder.glob("*.tex")):  # an earlier report's
        old.unlink()
    for table in tables:
        (folder / f"{table.name}.md").write_text(f"{table.caption}\n\n{table.markdown()}", encoding="utf-8")
        (folder / f"{table.name}.tex").write_text(table.latex(), encoding="utf-8")


def of(result: Mapping[str, Any], frontiers: Sequence[Mapping[str, Any]] = ()) -> list[Table]:
    """The tables that have a row, of: parameters, intervals, holdout, compared, leave_one_out, and one of budgets for
    each of `frontiers` that has few enough of them to list."""
    found = [_parameters(result), _intervals(result), _holdout(result), _compared(result), _leave_one_out(result)]
    found += [_budgets(method) for method in frontiers if method["law"] == "isoflop"]
    return [table for table in found if table.rows]


# ------------------------------------------------------------------------------------ contents


def _names(result: Mapping[str, Any]) -> list[str]:
    """The law's parameters, and its exponents where it has any."""
    return [*result["params"], *(name for name in ("a", "b") if result["optimal"][name] is not None)]


def _value(result: Mapping[str, Any], name: str) -> float | None:
    return result["params"][name] if name in result["params"] else result["optimal"][name]


def _symbols(result: Mapping[str, Any]) -> frozenset[str]:
    return frozenset(_names(result))


def _where(result: Mapping[str, Any]) -> str:
    known = result["optimal"]["a"] is not None
    return " N_opt grows as C to the a, D_opt as C to the b." if known else ""


def _parameters(result: Mapping[str, Any]) -> Table:
    kind = result["interval"]
    rows = tuple(
        (
            name,
            number(_value(result, name)),
            number(result["se"].get(name)),
            ci(result, name).replace("[no interval]", "n/a"),
        )
        for name in _names(result)
    )
    caption = f"Law {law_name(result['law'])}, fitted to {runs_of(result)}.{_where(result)}"
    if found := ratios(result["optimal"]):
        caption += f" D/N at the optimum: {found}."
    if any("†" in row[-1] for row in rows):
        caption += " †: at a bound of the search, so that the runs don't limit it."
    head = ("", "value", "standard error", f"{level(result)} interval ({kind['method']})")
    return Table("parameters", caption, head, rows, _symbols(result))


def _intervals(result: Mapping[str, Any]) -> Table:
    methods = result["intervals"]
    rows = tuple((name, *(interval(m.get(name)) for m in methods.values())) for name in _names(result) if methods)
    caption = f"{level(result)} intervals of law {law_name(result['law'])}, by each method."
    return Table("intervals", caption, ("", *methods), rows, _symbols(result))


def _holdout(result: Mapping[str, Any]) -> Table:
    rows = tuple(
        (
            str(entry["rungs"]),
            str(entry["n_held_out"]),
            f"{entry['flops_gap']:.3g}×",
            percent(entry["mean_abs_rel_error"]),
            interval(entry["mean_abs_rel_error_ci"], lambda v: f"{100 * v:.3g}"),
            percent(entry["max_abs_rel_error"]),
            percent(entry["mean_rel_error"], sign=True),
        )
        for entry in result["holdout"]
    )
    of = rung_name(result)
    caption = (
        f"Law {law_name(result['law'])} refitted without the largest rungs of {of}: error for the runs left "
        f"out. Gap: the largest {of} left out over the largest fitted."
    )
    head = ("rungs left out", point(result) + "s", "gap", "mean |error|", f"{level(result)} interval", "max", "mean")
    return Table("holdout", caption, head, rows)


def _compared(result: Mapping[str, Any]) -> Table:
    most = max((len(entry["holdout"]) for entry in result["compared"]), default=0)
    rows = []
    for entry in result["compared"]:
        errors = [f"{percent(h['mean_abs_rel_error'])} at {h['flops_gap']:.3g}×" for h in entry["holdout"]]
        cells = (law_name(entry["law"]), str(entry["num_params"]), f"{entry['objective']:.4g}")
        rows.append((*cells, *errors, *[""] * (most - len(errors))))
    head = ("law", "parameters", "objective", *(f"{k + 1} out" for k in range(most)))
    caption = "Laws fitted to the same runs: mean |error| on the largest compute rungs, left out, and the gap."
    return Table("compared", caption, head, tuple(rows))


def _leave_one_out(result: Mapping[str, Any]) -> Table:
    names = list(result["params"])
    has_a = result["optimal"]["a"] is not None
    rows = tuple(
        (
            str(entry["left_out"]),
            str(entry["n"]),
            *(number(entry["params"][name]) for name in names),
            *([number(entry["a"])] if has_a else []),
        )
        for entry in result["leave_one_out"]
    )
    caption = f"Law {law_name(result['law'])} refitted without one compute rung at a time."
    return Table(
        "leave_one_out", caption, ("left out", "runs", *names, *(["a"] if has_a else [])), rows, _symbols(result)
    )


def _budgets(method: Mapping[str, Any]) -> Table:
    rows = tuple(
        (
            f"{budget['C']:.3g}",
            str(budget["n_runs"]),
            size(budget["N_opt"]),
            "at the edge: left out" if budget["edge"] else interval(budget["N_ci"], size),
            size(budget["D_opt"]),
            number(budget["L_opt"]),
        )
        for budget in method["budgets"]
    )
    a, b = method["params"]["a"], method["params"]["b"]
    text = f"N_opt = {method['params']['N0']:.3g} × C^{number(a)}, D_opt = {method['params']['D0']:.3g} × C^{number(b)}"
    caption = f"Least loss of each compute budget by a parabola in ln N. {text}."
    return Table(f"budgets_{method['law']}", caption, ("C", "runs", "N_opt", "95 % interval", "D_opt", "L_opt"), rows)
