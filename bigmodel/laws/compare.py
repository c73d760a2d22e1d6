"""Which of several recipes, families or data sets is better, at which scale, and what would settle it.

multiplier.py has the multiplier m of B over A, its intervals and their sources. Here: the verdicts (B is better at C
only where a band over all scales and inputs at once excludes m = 1), where two inputs cross, the check by cells that
both have runs at, and the runs that would settle what isn't.

Legend: N parameters of the model, D tokens or examples, C training FLOPs, L loss; K scales (values of C); A the first
input, B another.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from bigmodel.errors import UsageError
from bigmodel.laws import extrapolate, forms, multiplier, reach, sources
from bigmodel.laws.forms import FLOPS_PER_PARAM_TOKEN
from bigmodel.laws.multiplier import LEVEL, Profile, Side
from bigmodel.laws.texts import percent

BEYOND = (3.0, 10.0)  # scales beyond the largest that all inputs have runs at
BETWEEN = 0.8  # of ln C, between scales of the band
MOST_SEEDS = 32
CLOSE = 0.1  # about 1: asked is what excludes a multiplier beyond 10 %
CELLS = 4  # least that both need, for the paired check
# Columns of texts that say what a loss is measured on; lower case, without signs.
MEASURED = {"tokenizer", "tokeniser", "tokenizername", "vocab", "vocabsize", "val", "valset", "valdata", "valdataset"}
MEASURED |= {"validation", "validationset", "validationdata", "validationdataset", "evalset", "evaldata", "evaldataset"}
MEASURED |= {"evaluation", "testset", "metric", "unit"}


def choose_law(frames: Mapping[str, pd.DataFrame]) -> tuple[str, str]:
    """(the law for these inputs, why): chinchilla, or henighan in C where some input's runs are one curve in C."""
    for name, frame in frames.items():
        if not {"N", "D"} <= set(frame):
            return "henighan:x=C", f"{name} has no N and D"
        alike = min(frame["N"].nunique(), frame["D"].nunique()) < 2
        if alike or abs(np.corrcoef(np.log(frame["N"]), np.log(frame["D"]))[0, 1]) > 0.99:
            return "henighan:x=C", f"N and D of {name} don't vary apart: its runs are one curve in C"
    return "chinchilla", "all inputs vary N and D"


def differences(inputs: Mapping[str, tuple[sources.Source, pd.DataFrame]]) -> list[str]:
    """What inputs are known to differ in that makes their losses, or their C, another quantity: a line each."""
    said: dict[str, dict[str, str]] = {}
    for name, (source, frame) in inputs.items():
        for column in source.cells:
            plain = "".join(c for c in str(column).rpartition(".")[2].lower() if c.isalnum())
            # A run of ours is validated on its own data set.
            if plain in MEASURED or (source.kind == "sweep" and column == "data"):
                values = source.texts(column).unique()
                said.setdefault(plain, {})[name] = ", ".join(sorted(set(values) - {""}))
        for letter, text in frame.attrs["conventions"].items():
            counts = text.partition("(")[2].rstrip(")") if "*" not in text else ""
            said.setdefault(letter, {})[name] = counts.removesuffix(", as said")
    out = []
    for what, values in said.items():
        known = {name: value for name, value in values.items() if value}
        if len(set(known.values())) > 1:
            out.append(f"{what}: {'; '.join(f'{name} {value[:80]!r}' for name, value in known.items())}")
    return out


def compare(
    frames: Mapping[str, pd.DataFrame],
    law: str = "",
    beyond: Sequence[float] = BEYOND,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Compares each input with the first.

    Args:
      frames: name -> rows, as `rows.load` returns.
      law: of L in N and D or in C, as `forms.get` takes it; "": see `choose_law`.
      beyond: scales, as factors of the largest C that all inputs have runs at.

    Returns:
      A dict, JSON: law, why (it was chosen), level;
        inputs: name, n_runs, n_points, params, C (least and most), scatter (of ln L), tested: {"gap", "error"} or null;
        pairs: a, b, missed (inputs whose law doesn't fit), scales, crossings, paired, settle, verdict (one line);
        scales: of each C: C, beyond (factor of the largest common C, 1 inside), reported, multiplier, low, high (95 %
          of this scale alone), band ([low, high] over all scales and pairs), verdict of B: "better", "worse" or "no
          verdict". null: unbounded, A never reaches B's loss;
        crossings: C, low, high; only where the band excludes 1 on both sides of it;
        paired: cells, difference (mean of ln L, B - A: {"value", "low", "high"}), law_difference, agree; null
          where under 4 cells of the law's columns are in both;
        settle: C, about_one, multiplier (to exclude), seeds (of each largest rung; null: not by MOST_SEEDS);
        warnings.

    Raises:
      UsageError: too few runs, no common compute, a law without an optimum.
    """
    name, why = (law, "as asked") if law else choose_law(frames)
    chosen = forms.get(name)
    if chosen.target != "L" or not (set(chosen.columns) == {"N", "D"} or chosen.columns == ("C",)):
        raise UsageError(
            f"compare: law {name!r} isn't one of L in N and D or in C (as chinchilla, gadre, henighan:x=C)"
        )
    say(f"fitting {name} to {len(frames)} inputs")
    sides = [multiplier.side(which, frame, chosen) for which, frame in frames.items()]
    log_c, named, top = scales(sides, beyond)
    say("following the laws' profiles")
    profiles = [multiplier.profile(side, log_c) for side in sides]
    pairs = [(profiles[0], other) for other in profiles[1:]]
    wide = multiplier.largest_t(pairs)
    out = []
    for a, b in pairs:
        say(f"comparing {b.side.name} with {a.side.name}")
        alone = multiplier.multipliers(a, b, _t(multiplier.freedom(a, b)))
        band = multiplier.multipliers(a, b, wide)
        rows = []
        for k, c in enumerate(np.exp(log_c)):
            at = {"C": float(c), "beyond": max(1.0, float(c / top)), "reported": bool(named[k])}
            at["beyond"] = 1.0 if at["beyond"] < 1.001 else at["beyond"]
            values = {"multiplier": _number(alone[0, k]), "low": _number(alone[1, k]), "high": _number(alone[2, k])}
            verdict = "better" if band[1, k] > 0 else "worse" if band[2, k] < 0 else "no verdict"
            rows.append({**at, **values, "band": [_number(v) for v in band[1:, k]], "verdict": verdict})
        pair: dict[str, Any] = {"a": a.side.name, "b": b.side.name, "scales": rows, "paired": _paired(a.side, b.side)}
        pair["missed"] = [p.side.name for p in (a, b) if p.side.missed]
        if pair["missed"] or (pair["paired"] and not pair["paired"]["agree"]):
            for row in rows:
                row["verdict"] = "no verdict"
        pair["crossings"] = _crossings(rows, log_c, alone[0])
        pair["settle"] = _settle(a, b, rows, wide)
        pair["verdict"] = _verdict(pair)
        out.append(pair)
    first = sides[0].problem.observed
    twins = [s.name for s in sides[1:] if np.array_equal(np.sort(s.problem.observed), np.sort(first))]
    same = [f"{name} has the losses of {sides[0].name}, every one: the same runs?" for name in twins]
    return {
        "law": name,
        "why": why,
        "level": LEVEL,
        "inputs": [
            {
                "name": side.name,
                "n_runs": side.n_runs,
                "n_points": len(side.problem),
                "params": side.law.named(side.theta),
                "C": [float(f(_compute(side))) for f in (np.min, np.max)],
                "scatter": side.scatter,
                "tested": None if side.tested is None else dict(zip(("gap", "error"), side.tested, strict=True)),
            }
            for side in sides
        ],
        "pairs": out,
        "warnings": [*same, *(f"{s.name}: {line}" for s in sides for line in (*s.warnings, *_untried(s, top)))],
    }


def _number(log: float) -> float | None:
    """A multiplier; None: unbounded, or the law gives none."""
    return float(np.exp(log)) if log < math.log(multiplier.MOST) else None


def _compute(side: Side) -> np.ndarray:
    """C of each run as its law counts it."""
    if side.law.columns == ("C",):
        return side.data["C"]
    return FLOPS_PER_PARAM_TOKEN * side.data["N"] * side.data["D"]


def scales(sides: Sequence[Side], beyond: Sequence[float]) -> tuple[np.ndarray, np.ndarray, float]:
    """(ln C of the band (K,), which of them are reported, the largest C that all inputs have runs at)."""
    ranges = [(c.min(), c.max()) for c in map(_compute, sides)]
    low, high = max(r[0] for r in ranges), min(r[1] for r in ranges)
    if not high > 1.01 * low:
        each = "; ".join(f"{s.name} {r[0]:.3g} to {r[1]:.3g}" for s, r in zip(sides, ranges, strict=True))
        raise UsageError(f"compare: the inputs have no range of compute in common: {each} FLOPs")
    named = np.log([low, math.sqrt(low * high), high, *(high * b for b in beyond)])
    ends = itertools.pairwise(np.sort(named))
    grid = np.unique(np.concatenate([np.linspace(x, y, max(2, round((y - x) / BETWEEN) + 1)) for x, y in ends]))
    return grid, np.abs(grid[:, None] - named).min(axis=1) < 1e-9, float(high)


def _untried(side: Side, top: float) -> list[str]:
    """A warning where no run has the law's best D/N at the largest common C."""
    if side.law.columns == ("C",):
        return []
    ratios = side.data["D"] / side.data["N"]
    return reach.untried_ratio(side.law, side.law.named(side.theta), top, (ratios.min(), ratios.max()))


# ----------------------------------------------------------------------- crossing, check, and advice


def _crossings(rows: Sequence[Mapping[str, Any]], log_c: np.ndarray, estimate: np.ndarray) -> list[dict[str, float]]:
    settled = [k for k, row in enumerate(rows) if row["verdict"] != "no verdict"]
    out = []
    for i, j in itertools.pairwise(settled):
        if rows[i]["verdict"] == rows[j]["verdict"]:
            continue
        inside = estimate[i : j + 1] * np.sign(estimate[j])
        inside = np.maximum.accumulate(np.clip(inside, -50, 50))
        at = float(np.exp(np.interp(0.0, inside, log_c[i : j + 1])))
        out.append({"C": at, "low": rows[i]["C"], "high": rows[j]["C"]})
    return out


def _cells(side: Side) -> pd.Series:
    """Mean ln L of each configuration: of the law's columns, to four digits."""
    keys = [[float(f"{v:.4g}") for v in side.data[name]] for name in side.law.columns]
    return pd.Series(side.problem.observed).groupby(keys).mean()


def _paired(a: Side, b: Side) -> dict[str, Any] | None:
    """The mean difference of ln L over cells of both, in which what the laws miss cancels, and the laws'."""
    cells = pd.concat([_cells(a), _cells(b)], axis=1, join="inner").dropna()
    if len(cells) < CELLS:
        return None
    row = {name: cells.index.get_level_values(i).to_numpy(float) for i, name in enumerate(a.law.columns)}
    measured = (cells[1] - cells[0]).to_numpy()
    found, half = float(measured.mean()), _t(len(cells) - 1) * float(stats.sem(measured))
    value, variance = 0.0, 0.0
    for side, sign in ((a, -1.0), (b, 1.0)):
        part = replace(side.problem, row=row, observed=np.zeros(len(cells)))
        predicted, slopes = part.residuals(side.theta[None])
        value += sign * float(predicted[0].mean())
        gradient = slopes[0].mean(axis=1)
        variance += float(gradient @ side.spread @ gradient)
    own = _t(min(a.free, b.free)) * math.sqrt(variance)
    ends = (found - half, found + half) if half > 1e-9 else (None, None)  # no scatter to make an interval of
    return {
        "cells": len(cells),
        "difference": {"value": found, "low": ends[0], "high": ends[1]},
        "law_difference": value,
        "agree": bool(abs(found - value) <= half + own + 1e-9),
    }


def _t(free: float) -> float:
    """Student's quantile of a two-sided interval."""
    return float(stats.t.ppf(0.5 + LEVEL / 2, free))


def _settle(a: Profile, b: Profile, rows: Sequence[Mapping[str, Any]], wide: float) -> dict[str, Any] | None:
    """How many more seeds of both largest rungs would, in linear theory and with the estimate as it is, let the band
    exclude 1 at the largest reported C without a verdict (that has runs, if there is one)."""
    open_ = [k for k, r in enumerate(rows) if r["reported"] and r["verdict"] == "no verdict"]
    if not open_ or a.side.missed or b.side.missed:  # no number of seeds helps a law that doesn't fit
        return None
    k = max([i for i in open_ if rows[i]["beyond"] == 1] or open_[:1])
    ends = (float(a.log_c[0]), float(a.log_c[-1]))
    own, other = (multiplier.frontier(p.side.law, p.side.theta[None], p.log_c, ends)[0] for p in (a, b))
    difference = abs(float(own[k] - other[k]))
    now = _deviation(a, b, k, 0)
    about = difference < 0.25 * wide * now
    slope = abs(float(np.gradient(own, a.log_c)[k]))
    # As wide as the band is by its profiles, which linear theory may miss.
    goal = (slope * math.log1p(CLOSE) if about else min(difference, 0.98 * wide * now)) / wide
    seeds = next((n for n in range(1, MOST_SEEDS + 1) if _deviation(a, b, k, n) <= goal), None)
    exclude = 1 + CLOSE if about else rows[k]["multiplier"]
    return {"C": rows[k]["C"], "about_one": bool(about), "multiplier": exclude, "seeds": seeds}


def _deviation(a: Profile, b: Profile, k: int, seeds: int) -> float:
    """Standard deviation of the difference of ln L* at scale k, with so many more seeds of each largest rung."""
    variance = 0.0
    for p in (a, b):
        side, c = p.side, _compute(p.side)
        factor = min(extrapolate.RUNG_FACTOR, float(c.max() / c.min()) ** (1 / 6))
        top = side.problem.residuals(side.theta[None])[1][0][:, extrapolate.rungs(c, factor)[-1]]
        more = seeds * top @ top.T / max(side.scatter, multiplier.SAME_RESIDUAL) ** 2
        variance += float(p.slopes[k] @ np.linalg.inv(np.linalg.inv(side.spread) + more) @ p.slopes[k])
    return math.sqrt(variance)


# ---------------------------------------------------------------------------------------------- text


def times(value: float | None) -> str:
    return "unbounded" if value is None else f"{value:.3g}" if value >= 1e-3 else "<0.001"


def _ends(pair: Sequence[float | None]) -> str:
    return f"[{times(pair[0])}, {times(pair[1])}]"


def _verdict(pair: Mapping[str, Any]) -> str:
    a, b = pair["a"], pair["b"]
    inside = [row for row in pair["scales"] if row["beyond"] == 1]
    said = {row["verdict"] for row in inside}
    if pair["missed"]:
        return f"no verdict on {b} and {a}: the law misses the shape of the runs of {', '.join(pair['missed'])}"
    if pair["crossings"]:
        where = "; ".join(f"{x['C']:.3g} [{x['low']:.3g}, {x['high']:.3g}] FLOPs" for x in pair["crossings"])
        return f"{b} and {a} cross at {where}"
    if said == {"no verdict"}:
        return f"no verdict: the runs don't settle whether {b} or {a} is better at any scale that both have runs at"
    kind = "better" if "better" in said else "worse"
    settled = [row["C"] for row in inside if row["verdict"] == kind]
    return f"{b} is {kind} than {a} from {min(settled):.3g} to {max(settled):.3g} FLOPs"


def text(result: Mapping[str, Any]) -> str:
    """The comparison in lines for a terminal."""
    lines = [f"law of each: {result['law']} ({result['why']})"]
    for one in result["inputs"]:
        points = "" if one["n_points"] == one["n_runs"] else f", {one['n_points']} points"
        tested = one["tested"]
        tested = f"tested to {tested['gap']:.3g}x, error {percent(tested['error'])}" if tested else "not tested"
        c = "C {:.3g} to {:.3g}".format(*one["C"])
        lines.append(f"  {one['name']}: {one['n_runs']} runs{points}, {c}, scatter {percent(one['scatter'])}; {tested}")
    gaps = [one["tested"]["gap"] if one["tested"] else 1.0 for one in result["inputs"]]
    for pair in result["pairs"]:
        a, b = pair["a"], pair["b"]
        lines += [pair["verdict"], f"  multiplier: the compute that {a} needs for the loss of {b}, in parts of {b}'s"]
        lines.append(f"  {'C':>9}  {'multiplier':>10}  {'95 %':<20} {'band over all':<20} {b}")
        for row in filter(lambda row: row["reported"], pair["scales"]):
            far = row["beyond"]
            note = f"   extrapolated: tested to {min(gaps):.3g}x, asked for {far:.3g}x" if far > 1 else ""
            ends = f"{_ends((row['low'], row['high'])):<20} {_ends(row['band']):<20}"
            lines.append(f"  {row['C']:>9.3g}  {times(row['multiplier']):>10}  {ends} {row['verdict']}{note}")
        if cells := pair["paired"]:
            d = cells["difference"]
            ends = "no interval" if d["low"] is None else f"{percent(d['low'], True)}, {percent(d['high'], True)}"
            agree = "they agree" if cells["agree"] else "they DISAGREE: a law misses something, so no verdict"
            lines.append(
                f"  loss of {b} minus {a}, {cells['cells']} matched cells, on average: "
                f"{percent(d['value'], True)} [{ends}]; by the laws {percent(cells['law_difference'], True)}: {agree}"
            )
        if settle := pair["settle"]:
            goal = f"a multiplier of {times(settle['multiplier'])}, the estimate,"
            if settle["about_one"]:
                goal = f"the estimate is about 1: a multiplier beyond {percent(CLOSE)}"
            seeds = settle["seeds"]
            what = (
                f"{seeds} more seeds of each largest rung"
                if seeds
                else f"no number of seeds at these rungs (up to {MOST_SEEDS})"
            )
            lines.append(f"  to settle {settle['C']:.3g} FLOPs ({goal} told from 1): {what}")
    return "\n".join([*lines, *(f"  warning: {line}" for line in result["warnings"])])
