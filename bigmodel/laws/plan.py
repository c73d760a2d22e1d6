"""The next model of a fitted law: its size, data and compute, their intervals, and the cost of another size.

Every question is one allocation: the N of least loss for a budget, with D from what the budget leaves. It is solved by
search, for the fitted parameters and for every stored resample at once, so any law of N and D can be used.

Cost of N parameters and D tokens, in FLOPs: training 6 N D (Hoffmann et al. 2022, arXiv:2203.15556, section 3.3), plus
2 N T for T tokens of inference over the model's life (Sardana & Frankle 2023, arXiv:2401.00448).

Legend: N parameters, D tokens or examples, C training FLOPs, L loss, T inference tokens; S parameter sets (row 0 the
fitted ones, then the resamples), P parameters of the law, m sizes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bigmodel.errors import UsageError, check_ranges
from bigmodel.laws import intervals, reach, texts
from bigmodel.laws.fitted import Fitted
from bigmodel.laws.forms import FLOPS_PER_PARAM_TOKEN, Law

FLOPS_PER_INFERENCE_TOKEN = 2.0  # per parameter: a forward pass (Kaplan et al. 2020, arXiv:2001.08361, section 2.1)
GRID, GOLDEN_STEPS, HALVINGS = 65, 45, 55
GOLDEN = (math.sqrt(5) - 1) / 2
BUDGETS = (1.0, 1e45)  # FLOPs searched
BASINS = (0.001, 0.01)  # the IsoFLOP basin: sizes within these fractions of the best loss
COLUMNS = ("N", "D", "C", "loss", "tokens_per_param", "total")
NONSENSE = 1e8  # a factor outside the fitted runs that means wrong units, or a wrong law
RATIOS = (1e-4, 1e6)  # plausible tokens per parameter
LOOSE = 1e6  # an interval of N over such a factor determines nothing
QUESTIONS = ("flops", "params", "tokens", "loss")
LIMITS = {"inference_tokens": 0.0, "max_params": math.inf, "max_tokens": math.inf}  # with their neutral values


@dataclass(frozen=True)
class Ask:
    """Exactly one of QUESTIONS; LIMITS go with `flops` or `loss`."""

    flops: float | None = None
    params: float | None = None
    tokens: float | None = None
    loss: float | None = None
    inference_tokens: float = 0.0
    max_params: float = math.inf
    max_tokens: float = math.inf

    def __post_init__(self) -> None:
        given = [k for k in QUESTIONS if getattr(self, k) is not None]
        if len(given) != 1:
            found = f"{' and '.join('--' + k for k in given)} are" if given else "none is"
            raise UsageError(f"plan: give exactly one of --flops, --params, --tokens, --loss; {found} given")
        check_ranges("--", self, **{self.kind: "(0, 1e45]"})
        check_ranges("--", self, inference_tokens="[0, 1e45]", max_params="(0, inf]", max_tokens="(0, inf]")
        if self.limits and self.kind not in ("flops", "loss"):
            name = next(iter(self.limits)).replace("_", "-")
            raise UsageError(f"plan: --{name} goes with --flops or --loss, not with --{self.kind}")

    @property
    def kind(self) -> str:
        return next(k for k in QUESTIONS if getattr(self, k) is not None)

    @property
    def value(self) -> float:
        return getattr(self, self.kind)

    @property
    def limits(self) -> dict[str, float]:
        """Those of LIMITS that were set."""
        return {k: getattr(self, k) for k, neutral in LIMITS.items() if getattr(self, k) != neutral}


# --------------------------------------------------------------------------------------- allocation


def log_loss(law: Law, thetas: np.ndarray, n: np.ndarray, d: np.ndarray) -> np.ndarray:
    """ln L (S, m) of each parameter set at its own sizes n and data d, both (S, m); inf where it isn't a number."""
    shape = np.broadcast_shapes(n.shape, d.shape, (len(thetas), 1))
    n, d = np.broadcast_to(n, shape), np.broadcast_to(d, shape)
    usable = (n > 0) & (d > 0) & np.isfinite(n) & np.isfinite(d)
    row = {"N": np.where(usable, n, 1.0).ravel(), "D": np.where(usable, d, 1.0).ravel()}
    wide = np.repeat(thetas.T, shape[1], axis=1)[:, None, :]  # one parameter set a column: laws are elementwise
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        value = law.form(wide, row)[0].reshape(shape)
        value = np.log(value) if law.linear else value
    return np.where(usable & np.isfinite(value), value, np.inf)


def loss_at(fitted: Fitted, n: float, d: float) -> float:
    """Loss that the fitted law predicts for one size."""
    return float(np.exp(log_loss(fitted.law, fitted.thetas[:1], np.array([[n]]), np.array([[d]])))[0, 0])


def tokens_of(ask: Ask, n: np.ndarray, budget: np.ndarray) -> np.ndarray:
    """D that a budget of FLOPs leaves for n parameters after inference, at most `max_tokens`; below 0: none."""
    train = budget / (FLOPS_PER_PARAM_TOKEN * n)
    return np.minimum(train - ask.inference_tokens * FLOPS_PER_INFERENCE_TOKEN / FLOPS_PER_PARAM_TOKEN, ask.max_tokens)


def allocate(law: Law, thetas: np.ndarray, budget: np.ndarray, ask: Ask) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(N, D, ln L), each (S,): least loss of each parameter set for its budget of FLOPs (S,).

    Part of the budget is left over where the limits don't let it be spent. All nan where the best N is at an end of the
    search (the law has no optimum there), and for a budget of nan.
    """
    per_token = FLOPS_PER_PARAM_TOKEN + FLOPS_PER_INFERENCE_TOKEN * ask.inference_tokens  # of one parameter at D = 1
    high = np.log(np.minimum(np.maximum(budget / per_token, 1e-300), ask.max_params))
    low = np.minimum(0.0, high - 1)

    def at(x: np.ndarray) -> np.ndarray:
        n = np.exp(x)
        return log_loss(law, thetas, n, tokens_of(ask, n, budget[:, None]))

    # A fine search around the best of a coarse one: sums of powers have one valley in ln N, other laws may have two.
    x = low[:, None] + (high - low)[:, None] * np.linspace(0, 1, GRID)
    best = np.argmin(at(x), axis=1)
    rows = np.arange(len(thetas))
    a, b = x[rows, np.maximum(best - 1, 0)], x[rows, np.minimum(best + 1, GRID - 1)]
    for _ in range(GOLDEN_STEPS):  # golden section (Kiefer 1953, Sequential minimax search for a maximum)
        left, right = b - GOLDEN * (b - a), a + GOLDEN * (b - a)
        values = at(np.stack([left, right], axis=1))
        worse = values[:, 0] > values[:, 1]
        a, b = np.where(worse, left, a), np.where(worse, b, right)
    middle = (a + b) / 2
    # The upper end is an optimum only where it is the user's limit.
    top = (best == GRID - 1) & (ask.max_params < math.inf) & (high >= math.log(ask.max_params))
    x_best = np.where(top & (at(high[:, None])[:, 0] <= at(middle[:, None])[:, 0]), high, middle)
    n = np.exp(x_best)
    d = tokens_of(ask, n, budget)
    value = log_loss(law, thetas, n[:, None], d[:, None])[:, 0]
    good = np.isfinite(value) & (best > 0) & ((best < GRID - 1) | top)
    return np.where(good, n, np.nan), np.where(good, d, np.nan), np.where(good, value, np.nan)


def budget_for(law: Law, thetas: np.ndarray, ask: Ask) -> np.ndarray:
    """FLOPs (S,) at which the best allocation has what is asked; inf: no budget reaches that loss; nan: no optimum."""
    if ask.kind == "flops":
        return np.full(len(thetas), ask.value)
    index, sign = {"params": (0, 1.0), "tokens": (1, 1.0), "loss": (2, -1.0)}[ask.kind]
    goal = sign * (math.log(ask.value) if ask.kind == "loss" else ask.value)

    def at(log_c: np.ndarray) -> np.ndarray:
        return sign * allocate(law, thetas, np.exp(log_c), ask)[index]

    low, high = (np.full(len(thetas), math.log(b)) for b in BUDGETS)
    most = at(high)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        enough = at(middle) >= goal  # nan (no optimum): the budget is too small for one
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    never = np.inf if ask.kind == "loss" else np.nan
    return np.where(most >= goal, np.exp((low + high) / 2), np.where(np.isnan(most), np.nan, never))


# --------------------------------------------------------------------------------------- next model


def make(fitted: Fitted, ask: Ask) -> dict[str, Any]:
    """The allocation that answers `ask`, as JSON.

    Returns a dict with
      asked, law, formula, source, level, warnings (one line each);
      N, D, C, loss, tokens_per_param: {"value", "low", "high"}; the interval of the loss is of this very N and D, the
        others' of each resample's own optimum. null: not determined; `total` adds inference FLOPs where asked;
      beyond: N, D, C, tokens_per_param -> how far outside the fitted runs, as a factor of 1 or more;
      gap: C over the largest fitted; tested: see `Fitted.tested`; holdout: of the fit, the refit with the largest gap;
      inside: the best at a D/N that was fitted, where the optimum has another: N, D, loss, rel_loss; else null;
      off: "half" and "double" that N for the same FLOPs: N, D, loss, rel_loss (0.01: 1 % worse); null: not possible;
      basin: "0.1%", "1%" -> [least, most] N within that of the best loss for the same FLOPs (null: unbounded);
      no_optimum, never: shares of the resamples without an optimum, and of those that never reach the loss.

    Raises:
      UsageError: the law has no answer, the runs don't determine it, or it is nonsense.
    """
    law, thetas = fitted.law, fitted.thetas
    budget = budget_for(law, thetas, ask)
    never = np.isinf(budget)
    n, d, _ = allocate(law, thetas, np.where(never, np.nan, budget), ask)
    if not (math.isfinite(n[0]) and math.isfinite(d[0])):
        raise UsageError(_no_answer(fitted, ask))
    if ask.kind == "params":
        n = np.where(np.isfinite(n), ask.value, np.nan)
        d = tokens_of(ask, n, budget)
    elif ask.kind == "tokens":
        d = np.where(np.isfinite(d), ask.value, np.nan)
        n = budget / (FLOPS_PER_PARAM_TOKEN * d)
    loss = np.exp(log_loss(law, thetas, n[:1, None], d[:1, None])[:, 0])
    unbounded = [np.where(never, np.inf, column) for column in (n, d, FLOPS_PER_PARAM_TOKEN * n * d)]
    columns = dict(zip("NDC", unbounded, strict=True)) | {"loss": loss, "tokens_per_param": d / n}
    if ask.inference_tokens:
        columns["total"] = columns["C"] + FLOPS_PER_INFERENCE_TOKEN * columns["N"] * ask.inference_tokens
    out: dict[str, Any] = {
        "asked": {ask.kind: ask.value, **ask.limits},
        "law": law.name,
        "formula": fitted.formula,
        "source": law.source,
        "level": fitted.level,
        **{name: _with_interval(column, fitted, name == _given(ask)) for name, column in columns.items()},
    }
    out["beyond"] = reach.beyond(fitted.range, {name: out[name]["value"] for name in reach.NAMES})
    _check_plausible(fitted, ask, out)
    out["gap"] = out["C"]["value"] / fitted.range["C"][1] if "C" in fitted.range else None
    out["tested"], out["holdout"] = fitted.tested, fitted.holdout
    out["inside"] = _inside(fitted, ask, out)
    out |= _other_sizes(fitted, ask, float(n[0]), float(loss[0]), float(budget[0]))
    for name, without in (("no_optimum", np.isnan(n) & ~never), ("never", never)):
        out[name] = float(np.mean(without[1:])) if len(n) > 1 else 0.0
    out["warnings"] = _warnings(fitted, ask, out)
    return out


def _inside(fitted: Fitted, ask: Ask, out: Mapping[str, Any]) -> dict[str, float] | None:
    """`inside` of `make`: N and D of the same FLOPs at the nearest D/N that a fitted run has."""
    name = "tokens_per_param"
    if out["beyond"].get(name, 1.0) <= reach.MARGIN or ask.kind not in ("flops", "loss") or ask.limits:
        return None
    low, high = fitted.range[name]
    ratio = low if out[name]["value"] < low else high
    n = math.sqrt(out["C"]["value"] / FLOPS_PER_PARAM_TOKEN / ratio)
    loss = loss_at(fitted, n, ratio * n)
    return {"N": n, "D": ratio * n, "loss": loss, "rel_loss": loss / out["loss"]["value"] - 1}


def _other_sizes(fitted: Fitted, ask: Ask, n: float, loss: float, budget: float) -> dict[str, Any]:
    """`off` and `basin` of `make`: the loss at other sizes for the same FLOPs."""

    def along(x: float) -> float:
        """ln L of x = ln N."""
        size = np.array([[math.exp(x)]])
        return float(log_loss(fitted.law, fitted.thetas[:1], size, tokens_of(ask, size, np.array([[budget]])))[0, 0])

    def end(outside: float, goal: float) -> float | None:
        """The N between the optimum and exp(outside) at which ln L rises to `goal`."""
        if not along(outside) > goal:
            return ask.max_params if outside == top and ask.max_params < math.inf else None
        inside = math.log(n)
        for _ in range(HALVINGS):
            middle = (inside + outside) / 2
            inside, outside = (inside, middle) if along(middle) > goal else (middle, outside)
        return math.exp(inside)

    top = math.log(min(ask.max_params, budget))
    off: dict[str, Any] = {}
    for name, factor in (("half", 0.5), ("double", 2.0)):
        x = math.log(n * factor)
        value = math.exp(along(x))
        data = float(tokens_of(ask, np.exp(x), np.array(budget)))
        row = {"N": n * factor, "D": data, "loss": value, "rel_loss": value / loss - 1}
        off[name] = row if x <= top and math.isfinite(value) else None
    basin = {}
    for share in BASINS:
        goal = math.log(loss) + math.log1p(share)
        basin[f"{100 * share:g}%"] = [end(math.log(n) - math.log(1e6), goal), end(top, goal)]
    return {"off": off, "basin": basin}


def _given(ask: Ask) -> str:
    """The column that was asked for, the same in every resample."""
    return {"flops": "total" if ask.inference_tokens else "C", "params": "N", "tokens": "D"}.get(ask.kind, "")


def _with_interval(column: np.ndarray, fitted: Fitted, given: bool = False) -> dict[str, Any]:
    value, ends = float(column[0]), fitted.ends(column)
    if ends is None or (not given and intervals.doubt(np.array(ends), value) == intervals.AGREE):
        return {"value": value, "low": None, "high": None}
    low, high = (e if e < 1e200 else None for e in ends)
    return {"value": value, "low": low, "high": high}


# ------------------------------------------------------------------------------- errors and warnings


def _check_plausible(fitted: Fitted, ask: Ask, out: Mapping[str, Any]) -> None:
    n, d = out["N"], out["D"]
    if ask.kind != "params" and n["low"] is not None and n["high"] is not None and n["high"] > LOOSE * n["low"]:
        ends = f"{n['low']:.3g} to {n['high']:.3g}"
        raise UsageError(f"plan: the fit {fitted.path!r} doesn't determine N_opt: {ends}; {fitted.remedy()}")
    ratio = d["value"] / n["value"]
    free = ask.kind in ("flops", "loss") and ask.max_params == ask.max_tokens == math.inf
    if free and not RATIOS[0] < ratio < RATIOS[1]:
        raise UsageError(
            f"plan: the law's best is {si(n['value'])} parameters on {si(d['value'])} tokens, {ratio:.3g} a parameter: "
            "are the runs' N and D in plain numbers, not in millions?"
        )
    for name in ("N", "D"):
        if out["beyond"].get(name, 1.0) > NONSENSE:
            raise UsageError(
                f"plan: {name} = {out[name]['value']:.3g} is "
                f"{reach.outside(fitted.range, name, out['beyond'][name])}, where the law says "
                "nothing: are the runs' N and D in plain numbers, not in millions?"
            )


def _no_answer(fitted: Fitted, ask: Ask) -> str:
    law = fitted.law
    if ask.kind != "loss":
        return f"plan: law {law.name!r} has no compute-optimal size at --{ask.kind}={ask.value:g}"
    if law.floor:
        floor = _with_interval(law.values(fitted.thetas)[:, law.names.index(law.floor)], fitted)
        if ask.value <= floor["value"]:
            ends = "" if floor["low"] is None else f" [{floor['low']:.4g}, {floor['high']:.4g}]"
            named = f"{law.floor} = {floor['value']:.4g}{ends}"
            return f"plan: --loss={ask.value:g} is not above the law's floor {named}: no compute reaches it"
    limited = " within the limits" if min(ask.max_params, ask.max_tokens) < math.inf else ""
    return f"plan: --loss={ask.value:g} is reached by no compute up to {BUDGETS[1]:.0e} FLOPs{limited}"


def _warnings(fitted: Fitted, ask: Ask, out: Mapping[str, Any]) -> list[str]:
    lines = reach.warnings(fitted.range, out["beyond"])
    if best := out["inside"]:
        lines.append(
            f"within the D/N of the fitted runs the best is N {si(best['N'])}, D {si(best['D'])}: loss "
            f"{texts.loss(best['loss'])} ({100 * best['rel_loss']:+.2g} %)"
        )
    if len(fitted.thetas) < 3:
        lines.append("no intervals: the fit was made without resamples")
    elif missing := [k for k in COLUMNS if k in out and out[k]["low"] is None and out[k]["high"] is None]:
        few = out["no_optimum"] > 0.5
        why = "most resamples have no optimum" if few else "the resamples agree, or leave out the fitted law's answer"
        lines.append(f"no interval of {', '.join(missing)}: {why}")
    if out["no_optimum"] > 0.01:
        lines.append(f"{100 * out['no_optimum']:.0f} % of the resamples have no optimum: left out of the intervals")
    if out["never"] > 0:
        lines.append(f"for {100 * out['never']:.1f} % of the resamples no compute reaches this loss")
    for name, limit, flag in (("N", ask.max_params, "--max-params"), ("D", ask.max_tokens, "--max-tokens")):
        if out[name]["value"] > 0.999 * limit:
            lines.append(f"{name} is at its limit {flag}: a constrained optimum")
    spent = out.get("total", out["C"])["value"]
    if ask.kind == "flops" and spent < 0.999 * ask.value:
        lines.append(f"the limits leave {100 * (1 - spent / ask.value):.3g} % of the FLOPs unspent")
    return lines + [f"the fit warns: {warning}" for warning in fitted.warnings]


# --------------------------------------------------------------------------------------------- text


def si(value: float | None) -> str:
    """'73.2B': three digits and a letter; '7.32e+15' past 10^15; 'unbounded' for None."""
    if value is None:
        return "unbounded"
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if 0.9995 * size <= abs(value) < 0.9995e15:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def _percent(part: float) -> str:
    return f"{100 * part:.2f} %" if part <= 10 else ">1000 %"


def _line(label: str, part: Mapping[str, Any], show: Callable[[float], str]) -> str:
    """A value with its interval, which a value that was asked for doesn't have."""
    value, low, high = ("unbounded" if part[k] is None else show(part[k]) for k in ("value", "low", "high"))
    ends = f"[{low}, {high}]"
    if part["low"] is None and part["high"] is None:
        ends = "[no interval]"
    elif None not in part.values() and part["high"] - part["low"] <= 1e-6 * part["high"]:
        ends = ""
    elif low == high:
        ends = texts.interval([part["low"], part["high"]], show)
    return f"  {label:<26}{value:>10}  {ends}".rstrip()


def text(allocation: Mapping[str, Any], unit: str = "tokens") -> str:
    """The allocation in lines for a terminal."""
    shown = {k: f"{v:g}" if k in ("loss", "flops") else si(v) for k, v in allocation["asked"].items()}
    asked = ", ".join(f"{name.replace('_', '-')} {value}" for name, value in shown.items())
    lines = [
        f"L(N, D) = {allocation['formula']}   ({allocation['source']})",
        f"best for {asked}; [brackets: {100 * allocation['level']:g} % of the resamples]",
    ]
    for label, key, show in (
        ("N  parameters", "N", si),
        (f"D  {unit}", "D", si),
        ("C  training FLOPs, 6 N D", "C", "{:.3g}".format),
        ("   with inference, + 2 N T", "total", "{:.3g}".format),
        ("L  loss at this N and D", "loss", texts.loss),
        (f"{unit} per parameter", "tokens_per_param", si),
    ):
        if key in allocation:
            lines.append(_line(label, allocation[key], show))
    off = {"half": allocation["off"]["half"], "twice": allocation["off"]["double"]}
    other = [f"{k} N: loss {texts.loss(v['loss'])} ({100 * v['rel_loss']:+.2f} %)" for k, v in off.items() if v]
    if other:
        lines.append(f"  for the same FLOPs, {'; '.join(other)}")
    basins = [f"{si(low)} to {si(high)} within {name}" for name, (low, high) in allocation["basin"].items()]
    lines.append(f"  N of nearly the same loss: {'; '.join(basins)}")
    lines += [f"  {line}" for line in reach.text(allocation["beyond"], allocation["gap"], allocation["tested"])]
    if held := allocation["holdout"]:
        runs = f"{held['n_held_out']} {held['of']} of up to {held['flops_gap']:.3g}x the compute of those fitted"
        error = f"mean |error| {_percent(held['mean_abs_rel_error'])}, max {_percent(held['max_abs_rel_error'])}"
        lines.append(f"  held-out error of the law, on {runs}: {error}")
    return "\n".join([*lines, *(f"  warning: {line}" for line in allocation["warnings"])])
