"""Report of a fit: one offline HTML page, its numbers as fit.json and rows.csv, figures, tables, and the law as text.

Legend: N parameters, D examples or tokens, C training FLOPs, L loss.
"""

from __future__ import annotations

import contextlib
import html
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from bigmodel import files
from bigmodel.errors import UsageError
from bigmodel.laws import figures, forms, tables
from bigmodel.laws import fit as fits
from bigmodel.laws import frontier as methods
from bigmodel.laws.figures import Study
from bigmodel.laws.page import TEMPLATE
from bigmodel.laws.tables import Table
from bigmodel.laws.texts import above, ci, extrapolated, interval, known, law_formula, law_text, level, number, percent

CAPTIONS = {
    "compute": "Loss against training compute. Dots are runs, thin curves the law at one size, the dashed line the "
    "least loss that the law allows for each budget, shaded where 95 % of resamples put it.",
    "size_data": "Loss against size at fixed data, and against data at fixed size. Curves are the law.",
    "curves": "Each column that the law reads: runs and law, other columns at the value of the colour or their median; "
    "and runs against the law's value for them.",
    "residuals": "Observed above (+) or below (−) the law. A trend here means that the law is wrong.",
    "contours": "Lines of equal loss by the law. Dots are runs, coloured by their observed loss on the same scale.",
    "isoflop": "Loss against size at each compute budget, with a parabola in ln N through each budget's runs.",
    "frontier": "The best size and data for each budget. Grey dots are the runs. Shaded: 95 % of resamples for the "
    "law; for the other methods, the exponent's interval turned about the middle budget. "
    "Beyond the dotted lines, the ends of the runs, it is extrapolated.",
    "fan": "The law refitted without its largest runs: its curves, from the marked largest run fitted onwards an "
    "extrapolation, and the error of each run left out.",
    "clouds": "Refits of resampled runs. Red: the estimate and its interval; shaded in the histograms: the interval. "
    "The outermost 1 % of resamples lie outside. †: ends at a bound of the search.",
    "forest": "How the best size grows with compute, here and as published. The kinds of interval differ.",
    "comparison": "Laws fitted to the same runs: error on the runs left out. Lower and flatter is better.",
    "heatmap": "Best loss of each shape, at the most data that the shape was trained on.",
}
TITLES = {
    "parameters": "Parameters",
    "intervals": "Intervals by each method",
    "holdout": "Error on runs it has not seen",
    "compared": "Laws compared",
    "leave_one_out": "Without one rung at a time",
    "budgets_isoflop": "IsoFLOP budgets",
}
OPEN = ("parameters", "holdout", "compared")  # the other tables are folded
ESTIMATORS = {
    "huber": "sum of Huber losses of ln {target}, delta {delta:g}",
    "likelihood": "likelihood of Huber's density of ln {target} with a free scale, delta {delta:g} of it",
}


def write(
    frame: pd.DataFrame,
    result: Mapping[str, Any],
    out_dir: str | Path,
    title: str,
    command: str,
    unit: str = "tokens",
    loss: str = "loss",
    frontiers: Sequence[Mapping[str, Any]] = (),
) -> Path:
    """Writes index.html, fit.json, rows.csv, law.md, tables/*.md and *.tex, figures/*.png, *.svg and *.pdf.

    Args:
      frame: as given to `fit.fit`.
      result: as `fit.fit` returns.
      out_dir: made if absent; files of these names in it are replaced.
      title: heading of the page.
      command: the command that makes this page again, printed on it.
      unit: what D counts: "tokens" or "examples".
      loss: axis label of L, with its unit.
      frontiers: results of `frontier.isoflop` and `frontier.envelope` over the same runs.

    Returns:
      The path of index.html, which needs no other file. It lists at most figures.MOST_MARKS runs; rows.csv has all.
    """
    out = Path(out_dir)
    study = Study(frame, result, unit, loss, frontiers)
    drawn = figures.write(frame, result, out / "figures", unit=unit, loss=loss, frontiers=frontiers)
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
    parts = {
        "TITLE": html.escape(title),
        "LAW": _law_html(result),
        "FACTS": _facts(study),
        "WARNINGS": _warnings(result, frontiers),
        "TABLES": "".join(_section(t) for t in sorted(found, key=lambda t: t.name not in OPEN)),
        "FIGURES": "".join(_figure(name, path) for name, path in drawn.items()),
        "THINNED": _thinned(study),
        "RUNS": _runs(study, table),
        "COMMAND": html.escape(command),
        "SOURCE": _source(study),
    }
    page = re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], TEMPLATE)
    path = out / "index.html"
    path.write_text(page, encoding="utf-8")
    return path


def frontiers(
    frame: pd.DataFrame, result: Mapping[str, Any], bootstrap: int = 1000, seed: int = 0
) -> list[dict[str, Any]]:
    """The frontiers that the runs of a fitted law of L allow, for `write`: IsoFLOP needs budgets of several sizes, the
    envelope several D for each of several sizes."""
    if result["target"] != "L" or not {"N", "D", "C"} <= set(frame.columns) or not (frame[[*"NDC"]] > 0).all(axis=None):
        return []
    found = []
    for name in methods.METHODS:
        with contextlib.suppress(UsageError):  # these runs are none of that design
            found.append(methods.fit(frame, name, bootstrap=bootstrap, seed=seed))
    return found


# -------------------------------------------------------------------------------------- parts


def _section(table: Table) -> str:
    sources = "".join(
        f"<div class='source'><button type='button'>Copy {kind}</button><pre>{html.escape(text)}</pre></div>"
        for kind, text in (("Markdown", table.markdown()), ("LaTeX", table.latex()))
    )
    folded = f"<details class='copy'><summary>Markdown, LaTeX</summary>{sources}</details>"
    body = f"<div class='wide'>{table.html()}</div><p class='soft'>{html.escape(table.caption)}</p>{folded}"
    heading = html.escape(TITLES[table.name])
    if table.name in OPEN:
        return f"<section data-table='{table.name}'><h2>{heading}</h2>{body}</section>"
    return f"<details class='fold' data-table='{table.name}'><summary>{heading}</summary>{body}</details>"


def _law_html(result: Mapping[str, Any]) -> str:
    model = forms.get(result["law"])
    text = re.sub(r"\^(-?[\w.]+)", r"<sup>\1</sup>", html.escape(law_formula(result)))
    arguments = ", ".join(f"<i>{html.escape(c)}</i>" for c in model.columns)
    return f"<i>{html.escape(model.target)}</i>({arguments}) = {text}"


def _facts(study: Study) -> str:
    result, best = study.result, study.result["optimal"]
    runs = result.get("n_runs", result["n_points"])
    facts = [("runs" if runs == result["n_points"] else f"runs, {result['n_points']} points", str(runs))]
    short = {"N": "sizes N", "D": f"{study.unit} D", "C": "FLOPs C"}
    ranged = ["N", "D"] if study.plane else list(study.law.columns)
    for column in ranged[:3]:
        low, high = study.column(column).min(), study.column(column).max()
        text = [f"{v:.3g}" if column == "C" else figures.short(v, 3) for v in (low, high)]
        facts.append((short.get(column, column), " – ".join(text)))
    if known(best["a"]):
        facts.append(("best size grows as", f"C^{best['a']:.3f} {ci(result, 'a')}"))
    for compute, ratio in list(best["tokens_per_param_at"].items())[:1]:
        if known(ratio):
            ends = interval(best["tokens_per_param_ci"][compute]).replace("n/a", "[no interval]")
            low, high = best.get("tokens_per_param_runs") or (None, None)
            far = (
                f"; extrapolated*: the runs have {number(low)} to {number(high)}" if extrapolated(best, compute) else ""
            )
            facts.append((f"best D/N at {compute} FLOPs{far}", f"{number(ratio)}{'*' if far else ''} {ends}"))
    for entry in result["holdout"][:1]:
        ends = interval([100 * v for v in entry["mean_abs_rel_error_ci"] or ()]).replace("n/a", "[no interval]")
        facts.append(
            (f"error at {entry['flops_gap']:.3g}× the compute", f"{percent(entry['mean_abs_rel_error'])} {ends}")
        )
    cells = (f"<div><b>{html.escape(value)}</b><span>{html.escape(name)}</span></div>" for name, value in facts)
    return "".join(re.sub(r"\^(-?[\d.]+)", r"<sup>\1</sup>", cell) for cell in cells)


def _warnings(result: Mapping[str, Any], frontiers: Sequence[Mapping[str, Any]]) -> str:
    texts = list(result["warnings"])
    texts += [f"{m['law']}: {text}" for m in frontiers for text in m["warnings"] if text not in texts]
    if not texts:
        return ""
    items = "".join(f"<li>{html.escape(text)}</li>" for text in texts)
    return f"<aside><b>Read with care</b><ul>{items}</ul></aside>"


def _figure(name: str, path: Path) -> str:
    svg = path.read_text(encoding="utf-8")
    svg = svg[svg.index("<svg") :]
    # Matplotlib's metadata names its home page and its ids repeat from figure to figure: neither belongs in one page.
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r"\n\s*", "\n", re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL))
    # Hundredths of a point are fine enough for a screen, and half the size.
    svg = re.sub(r'(?<=[xy]=")-?\d+\.\d+(?=")|(?m:^[MLC] [-\d. ]+)', _hundredths, svg)
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{name}" ', 1)
    caption = html.escape(CAPTIONS[name])
    return f'<figure data-name="{name}"><div class="wide">{svg}</div><figcaption>{caption}</figcaption></figure>'


def _hundredths(match: re.Match[str]) -> str:
    return re.sub(r"(\.\d\d)\d+", r"\1", match[0])


def _thinned(study: Study) -> str:
    shown, all_ = len(study.shown), len(study.frame)
    if shown == all_:
        return ""
    return (
        f"<p class='soft'>Figures and table show {shown:,} of {all_:,} runs, evenly over compute; rows.csv has all.</p>"
    )


def _runs(study: Study, table: pd.DataFrame) -> str:
    names = [n for n in ("run_id", "family", "width", "depth", "seed") if n in table]
    head = ["run", *names[1:]] if "run_id" in names else ["row", *names]
    if "run_id" not in names:
        names = ["", *names]
    columns = [c for c in dict.fromkeys(("N", "D", "C", *study.law.columns)) if c in table and c != study.target]
    head += [*columns, study.target, "law", "above law"]
    rows = []
    for i, row in zip(study.shown, table.iloc[study.shown].to_dict("records"), strict=True):
        cells = [html.escape(_plain(row[n])) if n else str(i + 1) for n in names]
        cells += [f"{row[c]:.3g}" if c == "C" else figures.short(row[c]) if known(row[c]) else "" for c in columns]
        cells += [f"{row[study.target]:.5g}", f"{row['predicted']:.5g}", f"{row['residual_percent']:+.2f} %"]
        mark = ' class="held" title="held out in a refit"' if row["held_out"] else ""
        rows.append(f'<tr id="run-{i}"{mark}>' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    top = "".join(f'<th tabindex="0" title="sort">{html.escape(name)}</th>' for name in head)
    return f'<table id="runs"><thead><tr>{top}</tr></thead><tbody>{"".join(rows)}</tbody></table>'


def _plain(value: Any) -> str:
    if value is None or value != value:
        return ""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _source(study: Study) -> str:
    result, attrs = study.result, study.frame.attrs
    texts = [f"Law: {study.law.source}."]
    if "source" in attrs:
        texts.append(f"Runs: {attrs['source']}.")
    if "conventions" in attrs:
        texts.append("Columns: " + ", ".join(f"{k} = {v}" for k, v in attrs["conventions"].items()) + ".")
    how = ESTIMATORS[result["estimator"]].format(target=study.target, delta=result["delta"])
    texts.append(f"Fit: {how}{above(result)}; {level(result)} intervals: {result['interval']['method']}.")
    texts.append("Figures as PNG, SVG and PDF under figures/, for a paper's column under figures/column/.")
    return "<br>".join(html.escape(text) for text in texts)


def _markdown(result: Mapping[str, Any], found: Sequence[Table], title: str, command: str) -> str:
    lines = [f"# {title}", "", "```text", law_text(result), "```", ""]
    for table in found:
        lines += [f"## {TITLES[table.name]}", "", table.caption, "", table.markdown()]
    lines += [f"Source of the form: {forms.get(result['law']).source}. Made by `{command}`.", ""]
    return "\n".join(lines)
