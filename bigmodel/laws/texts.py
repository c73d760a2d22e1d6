"""A fit's numbers and lines as text: for a terminal, tables and figures. Draws nothing, so that it is quick to import.

Legend: N parameters, D examples or tokens, C training FLOPs, L loss; N_opt ~ C^a, D_opt ~ C^b.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bigmodel.laws import forms
from bigmodel.laws import frontier as methods


def known(value: Any) -> bool:
    """Whether it is a finite number."""
    return value is not None and math.isfinite(value)


def number(value: float | None) -> str:
    """About four digits, or n/a."""
    if value is None or not math.isfinite(value):
        return "n/a"
    return f"{value:.3f}" if 0.01 <= abs(value) < 10 else f"{value:.0f}" if 1e3 <= abs(value) < 1e6 else f"{value:.4g}"


def has_ends(ends: Any) -> bool:
    """Whether both ends of an interval are known."""
    return bool(ends) and all(map(known, ends))


def interval(ends: Any, text: Callable[[float], str] = number, absent: str = "n/a") -> str:
    """[low, high], or `absent`."""
    return "[{}, {}]".format(*both(ends, text)) if has_ends(ends) else absent


def both(ends: Sequence[float], text: Callable[[float], str]) -> tuple[str, str]:
    """Both ends of an interval, with more digits where they would look the same."""
    low, high = map(text, ends)
    return (low, high) if low != high else (f"{ends[0]:.8g}", f"{ends[1]:.8g}")


def loss(value: float) -> str:
    """Four decimals, of a small one four digits."""
    return f"{value:.4f}" if abs(value) >= 0.01 else f"{value:.4g}"


def runs_of(result: Mapping[str, Any]) -> str:
    """'12 runs', or '552 points of 12 runs'."""
    runs = result.get("n_runs", result["n_points"])
    return count(runs, "run") if runs == result["n_points"] else f"{result['n_points']} points of {count(runs, 'run')}"


def point(result: Mapping[str, Any]) -> str:
    """What a row is: a run, or one of its points."""
    return "run" if result.get("n_runs", result["n_points"]) == result["n_points"] else "point"


def ci(result: Mapping[str, Any], name: str, absent: str = "[no interval]") -> str:
    """The interval of a parameter or exponent; † marks an end at a bound of the search."""
    ends, held = result["ci"].get(name), result.get("at_bound", {}).get(name, ())
    if not has_ends(ends):
        return absent
    low, high = (e + ("†" if side in held else "") for e, side in zip(both(ends, number), ("low", "high"), strict=True))
    return f"[{low}, {high}]"


def level(result: Mapping[str, Any]) -> str:
    return f"{100 * result['interval']['level']:g} %"


def count(value: int, noun: str) -> str:
    return f"{value} {noun}" + ("" if value == 1 else "s")


def percent(value: float | None, sign: bool = False) -> str:
    if value is None or not math.isfinite(value):
        return "n/a"
    if abs(value) > 10:
        return f"{'-' if value < 0 else ''}>1000 %"
    return f"{100 * value:+.3g} %" if sign else f"{100 * value:.3g} %"


def short(value: float | None, digits: int = 4) -> str:
    """1.5M, 20B, 2.75: short enough for a tick; or n/a."""
    if value is None or not math.isfinite(value):
        return "n/a"
    for unit, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= unit * (1 - 1e-9):
            return f"{value / unit:.{digits}g}{letter}"
    return f"{value:.{digits}g}"


def law_name(name: str) -> str:
    """A law's name, short: of a user's file its own name."""
    return Path(name).stem if name.endswith(".py") else name


GREEK = {"alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "kappa", "mu", "nu", "sigma", "phi"}


def symbol(name: str) -> str:
    """A parameter's name as mathematics: alpha, N0, R_d, c1; other words as they are."""
    match = re.fullmatch(r"([A-Za-z]+?)_?(\d+|(?<=_)[A-Za-z]+)?", name)
    stem, index = (match[1], match[2]) if match else (name, None)
    if stem not in GREEK and len(stem) > 1:
        return name
    return f"${chr(92) if stem in GREEK else ''}{stem}" + (f"_{{{index}}}$" if index else "$")


def rung_name(result: Mapping[str, Any]) -> str:
    """What the rungs held out are ordered by: compute, or a column; of losses the lowest are the furthest."""
    return {"C": "compute", "L": "1/L"}.get(result["rungs_of"], result["rungs_of"])


def law_text(result: Mapping[str, Any]) -> str:
    """The fit in a few lines for a terminal: law, intervals, exponents, held-out error, compared laws, warnings."""
    lines = _frontier_lines(result) if result["law"] in methods.METHODS else _law_lines(result)
    return "\n".join([*lines, *(f"  warning: {text}" for text in result["warnings"])])


def _law_lines(result: Mapping[str, Any]) -> list[str]:
    model, params, best = forms.get(result["law"]), result["params"], result["optimal"]
    delta = f"delta {result['delta']:g}"
    how = f"Huber {delta}, summed" if result["estimator"] == "huber" else f"{result['estimator']}, {delta}"
    if result["above"] != 1:
        how += f", runs above the law weighing {result['above']:g}"
    formula = model.formula.format(**{name: number(value) for name, value in params.items()})
    intervals = [f"{name} {number(params[name])} {ci(result, name)}" for name in model.names]
    lines = [
        f"{model.target}({', '.join(model.columns)}) = {formula}",
        f"  {runs_of(result)}, objective {result['objective']:.6g} ({how})",
        *("  " + ", ".join(intervals[i : i + 3]) for i in range(0, len(intervals), 3)),
    ]
    if best["a"] is not None:
        exponents = [f"{n}_opt ~ C^{number(best[e])} {ci(result, e)}" for n, e in (("N", "a"), ("D", "b"))]
        lines.append("  " + ", ".join(exponents))
        if found := ratios(best):
            lines.append(f"  D/N at the optimum: {found}")
    of = rung_name(result)
    for entry in result["holdout"]:
        ends = interval([100 * v for v in entry["mean_abs_rel_error_ci"] or ()], absent="[no interval]")
        lines.append(
            f"  held out the largest {count(entry['n_held_out'], point(result))} ({count(entry['rungs'], 'rung')}, "
            f"{entry['flops_gap']:.3g}x the {of}): mean |error| {percent(entry['mean_abs_rel_error'])} {ends}, "
            f"max {percent(entry['max_abs_rel_error'])}, mean {percent(entry['mean_rel_error'], sign=True)}"
        )
    for entry in result["compared"]:
        errors = [f"{percent(h['mean_abs_rel_error'])} at {h['flops_gap']:.3g}x" for h in entry["backtests"]]
        kind = f"{entry['num_params']} parameters{'' if entry['floor'] else ', no floor'}"
        lines.append(f"  {law_name(entry['law'])} ({kind}): held-out {', '.join(errors) or 'n/a'}")
    return [*lines, *(f"  choice: {line}" for line in result["choice"])]


def _frontier_lines(result: Mapping[str, Any]) -> list[str]:
    params = result["params"]
    a, b = number(params["a"]), number(params["b"])
    lines = [
        f"N_opt = {params['N0']:.4g} C^{a}, D_opt = {params['D0']:.4g} C^{b}",
        f"  {count(sum(not b['edge'] for b in result['budgets']), 'budget')} of {runs_of(result)}, by {result['law']}",
        f"  a {a} {ci(result, 'a')}, b {b} {ci(result, 'b')}",
        f"  D/N at the optimum: {ratios(result['optimal'])}",
    ]
    own = result.get("corrected") or {}
    for what, line in (
        ("corrected, by a law of all budgets", own),
        ("the parabolas less their bias", own.get("debiased")),
    ):
        if line:
            a, b = (f"{name} {number(line['params'][name])} {ci(line, name)}" for name in "ab")
            lines.append(f"  {what}: N_opt = {line['params']['N0']:.4g} C^a, {a}, {b}")
    for by, best in zip(result["budgets"], own.get("budgets", ()), strict=False):
        own_n = f"N_opt {short(by['N_opt'])} ({percent(best['difference'], sign=True)})"
        first = "no minimum inside" if by["edge"] else own_n
        lines.append(f"  C {best['C']:.3g}: {first}, corrected {short(best['N_opt'])} {interval(best['N_ci'], short)}")
    return lines


def ratios(best: Mapping[str, Any]) -> str:
    """D/N of the optimum at each budget, with its interval; * marks what is beyond the runs' compute or D/N."""
    at, runs, out = best["tokens_per_param_at"], best.get("tokens_per_param_runs"), []
    for k, (flops, ratio) in enumerate(at.items()):
        if known(ratio):
            beyond = k > 0 or (runs and not runs[0] <= ratio <= runs[1])  # the first is the largest fitted
            ends = interval(best["tokens_per_param_ci"][flops], absent="[no interval]")
            out.append(f"{number(ratio)}{'*' if beyond else ''} {ends} at {flops} FLOPs")
    note = f" (*: extrapolated; the runs' D/N: {number(runs[0])} to {number(runs[1])})" if runs else ""
    return ", ".join(out) + note if out else ""
