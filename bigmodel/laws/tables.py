"""Tables of a fit, as text cells that become HTML, Markdown, and LaTeX with booktabs.

Legend: N parameters, D examples or tokens, C training FLOPs, L loss; N_opt ~ C^a, D_opt ~ C^b.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from bigmodel.laws import texts

LATEX = {"\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
         "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "×": r"$\times$", "|": r"$|$", "<": "$<$", ">": "$>$",
         "–": "--", "−": "$-$", "±": r"$\pm$", "†": r"$^\dagger$"}  # fmt: skip


@dataclass(frozen=True)
class Table:
    """A table of text. Its files are named `name`; LaTeX sets cells and column names among `symbols` as mathematics."""

    name: str
    title: str
    caption: str
    cells: pd.DataFrame
    symbols: tuple[str, ...] = ()

    def markdown(self) -> str:
        head, *rows = ("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in self._lines())
        return "\n".join([head, "|---" + "|---:" * (len(self.cells.columns) - 1) + "|", *rows]) + "\n"

    def latex(self) -> str:
        """A table environment for \\usepackage{booktabs}."""
        symbols = {name: texts.symbol(name) for name in self.symbols if texts.symbol(name) != name}
        cells = ([symbols.get(cell, _latex(cell)) for cell in line] for line in self._lines())
        head, *rows = (" & ".join(line) + r" \\" for line in cells)
        columns = "l" + "r" * (len(self.cells.columns) - 1)
        lines = [r"% needs \usepackage{booktabs}", r"\begin{table}", r"\centering"]
        lines += [rf"\caption{{{_latex(self.caption)}}}", rf"\label{{tab:{self.name}}}"]
        lines += [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", head, r"\midrule", *rows, r"\bottomrule"]
        return "\n".join([*lines, r"\end{tabular}", r"\end{table}", ""])

    def _lines(self) -> list[list[str]]:
        return [list(self.cells.columns), *self.cells.to_numpy().tolist()]


def _latex(text: str) -> str:
    out = "".join(LATEX.get(c, c) for c in text)
    out = re.sub(r"(?<![\w.])([-+]?\d+(?:\.\d+)?)e(?:(-)|\+?)0*(\d+)", r"$\1\\times10^{\2\3}$", out)
    return re.sub(r"(?<![\w.$({^])-(?=[\d.])", "$-$", out)


def write(tables: Sequence[Table], folder: Path) -> None:
    """Each table as folder/NAME.md and NAME.tex; other files of these suffixes, an earlier report's, are removed."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in (*folder.glob("*.md"), *folder.glob("*.tex")):
        old.unlink()
    for table in tables:
        (folder / f"{table.name}.md").write_text(f"{table.caption}\n\n{table.markdown()}", encoding="utf-8")
        (folder / f"{table.name}.tex").write_text(table.latex(), encoding="utf-8")


def of(result: Mapping[str, Any], frontiers: Sequence[Mapping[str, Any]] = ()) -> list[Table]:
    """The tables that have a row."""
    found = [_parameters(result), _holdout(result), _compared(result), _intervals(result), _leave_one_out(result)]
    found += [_budgets(method) for method in frontiers if method["law"] == "isoflop"]  # the envelope has hundreds
    return [table for table in found if len(table.cells)]


# ------------------------------------------------------------------------------------ contents


def _values(result: Mapping[str, Any]) -> dict[str, float]:
    """The law's parameters, and its exponents a and b where it has them."""
    exponents = {name: result["optimal"][name] for name in ("a", "b") if result["optimal"][name] is not None}
    return {**result["params"], **exponents}


def _parameters(result: Mapping[str, Any]) -> Table:
    values = _values(result)
    heading = f"{texts.level(result)} interval ({result['interval']['method']})"
    rows = [
        {
            "": name,
            "value": texts.number(value),
            "standard error": texts.number(result["se"].get(name)),
            heading: texts.ci(result, name, absent="n/a"),
        }
        for name, value in values.items()
    ]
    caption = f"Law {texts.law_name(result['law'])}, fitted to {texts.runs_of(result)}."
    if "a" in values:
        caption += " N_opt grows as C to the a, D_opt as C to the b."
    if found := texts.ratios(result["optimal"]):
        caption += f" D/N at the optimum: {found}."
    if any("†" in row[heading] for row in rows):
        caption += " †: at a bound of the search, so that the runs don't limit it."
    return Table("parameters", "Parameters", caption, pd.DataFrame(rows), tuple(values))


def _intervals(result: Mapping[str, Any]) -> Table:
    names = list(_values(result))
    methods = result["intervals"]
    columns = {method: [texts.interval(found.get(name)) for name in names] for method, found in methods.items()}
    cells = pd.DataFrame({"": names, **columns} if methods else {})
    caption = f"{texts.level(result)} intervals of law {texts.law_name(result['law'])}, by each method."
    return Table("intervals", "Intervals by method", caption, cells, tuple(names))


def _holdout(result: Mapping[str, Any]) -> Table:
    of, points = texts.rung_name(result), f"{texts.point(result)}s"
    interval = f"{texts.level(result)} interval"
    rows = [
        {
            "rungs held out": str(entry["rungs"]),
            points: str(entry["n_held_out"]),
            "gap": f"{entry['flops_gap']:.3g}×",
            "mean |error|": texts.percent(entry["mean_abs_rel_error"]),
            interval: texts.interval(entry["mean_abs_rel_error_ci"], lambda v: f"{100 * v:.3g}"),
            "max |error|": texts.percent(entry["max_abs_rel_error"]),
            "mean error": texts.percent(entry["mean_rel_error"], sign=True),
        }
        for entry in result["holdout"]
    ]
    caption = f"Law {texts.law_name(result['law'])} refitted without the largest rungs of {of}: error on the {points} "
    caption += f"held out. Gap: the largest {of} held out over the largest fitted."
    return Table("holdout", "Held-out error", caption, pd.DataFrame(rows))


def _compared(result: Mapping[str, Any]) -> Table:
    rows = []
    for entry in result["compared"]:
        row = {"law": texts.law_name(entry["law"]), "parameters": str(entry["num_params"])}
        row["objective"] = f"{entry['objective']:.4g}"
        row["floor"] = "yes" if entry["floor"] else "no"
        for held in entry["backtests"]:
            row[f"at {held['flops_gap']:.3g}×"] = texts.percent(held["mean_abs_rel_error"])
        row["ties with the best"] = "yes" if entry["ties"] else "no"
        rows.append(row)
    caption = "Laws refitted to the runs below a cutoff: mean |error| on the largest runs, by the gap in compute."
    return Table("compared", "Laws compared", caption, pd.DataFrame(rows).fillna(""))


def _leave_one_out(result: Mapping[str, Any]) -> Table:
    names = tuple(name for name in _values(result) if name != "b")  # b is 1 - a
    rows = []
    for entry in result["leave_one_out"]:
        values = {**entry["params"], "a": entry["a"]}
        row = {"left out": str(entry["left_out"]), "runs": str(entry["n"])}
        rows.append(row | {name: texts.number(values[name]) for name in names})
    caption = f"Law {texts.law_name(result['law'])} refitted without one rung at a time."
    return Table("leave_one_out", "Leave one rung out", caption, pd.DataFrame(rows), names)


def _budgets(method: Mapping[str, Any]) -> Table:
    short = functools.partial(texts.short, digits=3)
    rows = [
        {
            "C": f"{budget['C']:.3g}",
            "runs": str(budget["n_runs"]),
            "N_opt": short(budget["N_opt"]),
            "95 % interval": "none: at the edge"
            if budget["edge"]
            else texts.interval(budget["N_ci"], lambda v: texts.short(v, 3)),
            "D_opt": short(budget["D_opt"]),
            "L_opt": texts.number(budget["L_opt"]),
        }
        for budget in method["budgets"]
    ]
    fitted, a, b = method["params"], texts.number(method["params"]["a"]), texts.number(method["params"]["b"])
    caption = "Lowest loss of each budget, by a parabola in ln N. "
    caption += f"N_opt = {fitted['N0']:.3g} × C^{a}, D_opt = {fitted['D0']:.3g} × C^{b}."
    return Table(f"budgets_{method['law']}", "IsoFLOP budgets", caption, pd.DataFrame(rows))
