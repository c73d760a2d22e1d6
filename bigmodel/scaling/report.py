"""Report of a fit: one offline HTML page, its numbers as fit.json and rows.csv, and the law as Markdown and text.

Legend: N parameters, D examples or tokens, C training FLOPs, L loss.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from bigmodel.scaling import figures, laws
from bigmodel.scaling import fit as fits
from bigmodel.scaling.page import TEMPLATE

CAPTIONS = {
    "compute": "Loss against training compute. Dots are runs, thin curves the law at one size, the dashed line the "
    "least loss that the law allows for each budget, shaded where 95 % of resamples put it.",
    "size_data": "Loss against size at fixed data, and against data at fixed size. Curves are the law.",
    "heatmap": "Best loss of each shape, at the most data that the shape was trained on.",
    "residuals": "Observed loss above (+) or below (−) the law. A trend here means that the law is wrong.",
}


def write(
    frame: pd.DataFrame,
    result: Mapping[str, Any],
    out_dir: str | Path,
    title: str,
    command: str,
    unit: str = "tokens",
    loss: str = "loss",
) -> Path:
    """Writes index.html, fit.json, rows.csv, law.md and figures/*.png, *.svg.

    Args:
      frame: as given to `fit.fit`.
      result: as `fit.fit` returns.
      out_dir: made if absent; files of these names in it are replaced.
      title: heading of the page.
      command: the command that makes this page again, printed on it.
      unit: what D counts: "tokens" or "examples".
      loss: axis label of L, with its unit.

    Returns:
      The path of index.html, which needs no other file.
    """
    out = Path(out_dir)
    drawn = figures.write(frame, result, out / "figures", unit=unit, loss=loss)
    held = {i for entry in result["holdout"] for i in entry["held_out"]}
    table = frame.reset_index(drop=True).assign(
        predicted=fits.predict(result, frame["N"].to_numpy(), frame["D"].to_numpy()),
        held_out=[i in held for i in range(len(frame))],
    )
    table["residual_percent"] = 100 * (table["L"] / table["predicted"] - 1)
    table.to_csv(out / "rows.csv", index=False)
    content = {**fits.to_json(result), "title": title, "command": command, "rows": dict(frame.attrs)}
    (out / "fit.json").write_text(json.dumps(content, indent=1, allow_nan=False, default=str) + "\n", encoding="utf-8")
    (out / "law.md").write_text(_markdown(result, title, command), encoding="utf-8")
    parts = {
        "TITLE": html.escape(title),
        "LAW": _law_html(result),
        "FACTS": _facts(frame, result, unit),
        "PARAMETERS": _table(["", "value", "95 % interval"], _parameter_rows(result)),
        "HOLDOUT": _table(["rungs", "runs", "compute gap", "mean |error|", "max", "mean"], _holdout_rows(result)),
        "WARNINGS": _warnings(result),
        "FIGURES": "".join(_figure(name, path) for name, path in drawn.items()),
        "RUNS": _runs(table),
        "COMMAND": html.escape(command),
        "SOURCE": _source(frame, result),
    }
    page = re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], TEMPLATE)
    path = out / "index.html"
    path.write_text(page, encoding="utf-8")
    return path


def law_text(result: Mapping[str, Any]) -> str:
    """The fit in a few lines for a terminal: law, intervals, exponents, held-out error, warnings."""
    model, params = laws.get(result["law"]), result["params"]
    arguments = ", ".join(model.columns)
    lines = [f"L({arguments}) = {model.formula.format(**{k: _number(v) for k, v in params.items()})}"]
    objective = f"objective {result['objective']:.6g} (Huber delta {result['delta']:g}, summed)"
    lines.append(f"  {result['n_points']} runs, {objective}")
    intervals = [f"{name} {_number(params[name])} {_interval(result, name)}" for name in model.names]
    lines += ["  " + ", ".join(intervals[i : i + 3]) for i in range(0, len(intervals), 3)]
    best = result["optimal"]
    if best["a"] is not None:
        size = f"N_opt ~ C^{_number(best['a'])} {_interval(result, 'a')}"
        lines.append(f"  {size}, D_opt ~ C^{_number(best['b'])} {_interval(result, 'b')}")
        known = {c: r for c, r in best["tokens_per_param_at"].items() if r is not None and r == r}
        ratios = [f"{_number(r)} at {c} FLOPs" for c, r in known.items()]
        if ratios:
            lines.append("  D/N at the optimum: " + ", ".join(ratios))
    for entry in result["holdout"]:
        lines.append(
            f"  held out the largest {_count(entry['n_held_out'], 'run')} ({_count(entry['rungs'], 'rung')}, "
            f"{entry['flops_gap']:.3g}x the compute): "
            f"mean |error| {_percent(entry['mean_abs_rel_error'])}, max {_percent(entry['max_abs_rel_error'])}, "
            f"mean {_percent(entry['mean_rel_error'], sign=True)}"
        )
    lines += [f"  warning: {text}" for text in result["warnings"]]
    return "\n".join(lines)


# -------------------------------------------------------------------------------------- parts


def _number(value: float | None) -> str:
    if value is None or value != value:
        return "n/a"
    return f"{value:.3f}" if 0.01 <= abs(value) < 10 else f"{value:.0f}" if 1e3 <= abs(value) < 1e6 else f"{value:.4g}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _percent(value: float, sign: bool = False) -> str:
    return f"{100 * value:+.3g} %" if sign else f"{100 * value:.3g} %"


def _interval(result: Mapping[str, Any], name: str) -> str:
    ends = result["ci"].get(name)
    return f"[{_number(ends[0])}, {_number(ends[1])}]" if ends else "[no interval]"


def _parameter_rows(result: Mapping[str, Any]) -> list[list[str]]:
    rows = [[name, _number(value), _interval(result, name)] for name, value in result["params"].items()]
    for name, text in (("a", "a, in N_opt ~ C^a"), ("b", "b, in D_opt ~ C^b")):
        if result["optimal"][name] is not None:
            rows.append([text, _number(result["optimal"][name]), _interval(result, name)])
    return rows


def _holdout_rows(result: Mapping[str, Any]) -> list[list[str]]:
    return [
        [
            str(entry["rungs"]),
            str(entry["n_held_out"]),
            f"{entry['flops_gap']:.3g}×",
            _percent(entry["mean_abs_rel_error"]),
            _percent(entry["max_abs_rel_error"]),
            _percent(entry["mean_rel_error"], sign=True),
        ]
        for entry in result["holdout"]
    ]


def _table(head: list[str], rows: list[list[str]]) -> str:
    if not rows:
        return "<p>None.</p>"
    top = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def _law_html(result: Mapping[str, Any]) -> str:
    model = laws.get(result["law"])
    text = html.escape(model.formula.format(**{k: _number(v) for k, v in result["params"].items()}))
    text = re.sub(r"\^(-?[\w.]+)", r"<sup>\1</sup>", text)
    return f"<i>L</i>({', '.join(f'<i>{c}</i>' for c in model.columns)}) = {text}"


def _facts(frame: pd.DataFrame, result: Mapping[str, Any], unit: str) -> str:
    best, facts = result["optimal"], []
    facts.append(("runs", str(result["n_points"])))
    facts.append(("sizes N", f"{figures.short(frame['N'].min(), 3)} – {figures.short(frame['N'].max(), 3)}"))
    facts.append((f"{unit} D", f"{figures.short(frame['D'].min(), 3)} – {figures.short(frame['D'].max(), 3)}"))
    if best["a"] is not None and best["a"] == best["a"]:
        facts.append(("best size grows as", f"C^{best['a']:.3f}"))
    for compute, ratio in list(best["tokens_per_param_at"].items())[:1]:
        if ratio is not None and ratio == ratio:
            facts.append((f"best D/N at {compute} FLOPs", _number(ratio)))
    for entry in result["holdout"][:1]:
        facts.append((f"error at {entry['flops_gap']:.3g}× the compute", _percent(entry["mean_abs_rel_error"])))
    cells = (f"<div><b>{html.escape(value)}</b><span>{html.escape(name)}</span></div>" for name, value in facts)
    return "".join(re.sub(r"\^([\d.]+)", r"<sup>\1</sup>", cell) for cell in cells)


def _warnings(result: Mapping[str, Any]) -> str:
    if not result["warnings"]:
        return ""
    items = "".join(f"<li>{html.escape(text)}</li>" for text in result["warnings"])
    return f"<aside><b>Read with care</b><ul>{items}</ul></aside>"


def _figure(name: str, path: Path) -> str:
    svg = path.read_text(encoding="utf-8")
    svg = svg[svg.index("<svg") :]
    # Matplotlib's metadata names its home page and its ids repeat from figure to figure: neither belongs in one page.
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    return f'<figure data-name="{name}">{svg}<figcaption>{html.escape(CAPTIONS[name])}</figcaption></figure>'


def _runs(table: pd.DataFrame) -> str:
    names = [n for n in ("run_id", "family", "width", "depth", "seed") if n in table]
    head = ["run", *names[1:]] if "run_id" in names else ["row", *names]
    if "run_id" not in names:
        names = ["", *names]
    head += ["N", "D", "C", "L", "law", "above law"]
    rows = []
    for i, row in enumerate(table.to_dict("records")):
        cells = [html.escape(_plain(row[n])) if n else str(i + 1) for n in names]
        cells += [figures.short(row["N"]), figures.short(row["D"]), f"{row['C']:.3g}"]
        cells += [f"{row['L']:.5g}", f"{row['predicted']:.5g}", f"{row['residual_percent']:+.2f} %"]
        mark = ' class="held" title="held out in the refit"' if row["held_out"] else ""
        rows.append(f'<tr id="run-{i}"{mark}>' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    top = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    return f'<table id="runs"><thead><tr>{top}</tr></thead><tbody>{"".join(rows)}</tbody></table>'


def _plain(value: Any) -> str:
    if value is None or value != value:
        return ""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _source(frame: pd.DataFrame, result: Mapping[str, Any]) -> str:
    model, attrs = laws.get(result["law"]), frame.attrs
    texts = [f"Law: {model.source}."]
    if "source" in attrs:
        texts.append(f"Runs: {attrs['source']}.")
    if "conventions" in attrs:
        texts.append("Columns: " + ", ".join(f"{k} = {v}" for k, v in attrs["conventions"].items()) + ".")
    texts.append(f"Fit: sum of Huber losses of ln L, delta {result['delta']:g}; intervals: bootstrap over runs.")
    return "<br>".join(html.escape(text) for text in texts)


def _markdown(result: Mapping[str, Any], title: str, command: str) -> str:
    lines = [f"# {title}", "", "```text", law_text(result), "```", "", "| | value | 95 % interval |", "|---|---|---|"]
    lines += [f"| {' | '.join(row)} |" for row in _parameter_rows(result)]
    lines += ["", f"Source of the form: {laws.get(result['law']).source}. Made by `{command}`.", ""]
    return "\n".join(lines)
