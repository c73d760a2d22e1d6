"""A fit.json as planning reads it: a file that somebody hands us, so everything used is checked first.

Legend: N parameters, D tokens or examples, C training FLOPs, L loss; S parameter sets (row 0 the fitted ones, then the
resamples), P parameters of the law, n fitted runs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bigmodel import files
from bigmodel.errors import UsageError
from bigmodel.laws import forms, intervals, reach
from bigmodel.laws.forms import Law


@dataclass(frozen=True)
class Fitted:
    """What a plan needs of a fit.json.

    Attributes:
      thetas: (S, P) the law's theta: row 0 fitted, then the usable resamples.
      level: of its intervals, as 0.95.
      range: least and most of N, D, C and tokens_per_param of the fitted runs, where known.
      points: columns N and D of the fitted runs (n,), and width and depth where known; {}: the file holds none.
      result: the file.
    """

    path: str
    law: Law
    thetas: np.ndarray
    level: float
    range: dict[str, tuple[float, float]]
    points: dict[str, np.ndarray]
    residuals: np.ndarray
    result: dict[str, Any]

    def ends(self, values: np.ndarray) -> tuple[float, float] | None:
        """The interval of what each parameter set gives, values (S,), by the fit's own method; None where under half of
        the resamples give a value, or they leave out the fitted one.

        What is infinite counts as 1e300, so that an end which falls among such is unbounded; nan is left out.
        """
        samples = np.minimum(values[1:][~np.isnan(values[1:])], 1e300)
        if not intervals.enough(len(samples), len(values) - 1) or np.isnan(values[0]):
            return None
        estimate = np.minimum(values[:1], 1e300)
        low, high = intervals.bias_corrected(samples[:, None], estimate, self.level)[:, 0]
        # One as narrow as rounding is of a number that was asked for: the same in every resample.
        slack = 1e-9 * abs(float(estimate[0]))
        return (float(low), float(high)) if low - slack <= estimate[0] <= high + slack else None

    @property
    def holdout(self) -> dict[str, Any] | None:
        """The refit with the largest gap between the runs fitted and held out; None without."""
        keys = ("n_held_out", "flops_gap", "mean_abs_rel_error", "max_abs_rel_error", "mean_rel_error")
        stored = self.result.get("holdout")
        entries = [e for e in stored if isinstance(e, dict)] if isinstance(stored, list) else []
        good = [{k: e[k] for k in keys} for e in entries if all(is_number(e.get(k)) for k in keys)]
        what = "runs" if self.result.get("n_runs") == self.result.get("n_points") else "points"
        return max(good, key=lambda e: e["flops_gap"]) | {"of": what} if good else None

    @property
    def tested(self) -> list[dict[str, float]]:
        """Held-out errors by gap: {"gap": largest C held out / largest C fitted, "error": mean |relative error|}."""
        stored = self.result.get("backtests") or self.result.get("holdout")
        entries = [e for e in stored if isinstance(e, dict)] if isinstance(stored, list) else []
        keys = ("flops_gap", "mean_abs_rel_error")
        good = [e for e in entries if all(is_number(e.get(key)) for key in keys)]
        return [{"gap": float(e[keys[0]]), "error": float(e[keys[1]])} for e in good]

    @property
    def formula(self) -> str:
        return self.law.formula.format(**{k: f"{self.result['params'][k]:.4g}" for k in self.law.names})

    @property
    def num_params(self) -> int:
        """Parameters that were fitted to the same runs."""
        return self.law.num_params

    @property
    def warnings(self) -> list[str]:
        stored = self.result.get("warnings")
        return [w for w in stored if isinstance(w, str)] if isinstance(stored, list) else []

    def remedy(self) -> str:
        """The runs that would determine the law, and those that there are."""
        needed = "it takes 4 or more sizes N over a factor of 30, each at 3 or more D over a factor of 30, "
        needed += "so that D/N lies on both sides of the best"
        if not self.points:
            return needed
        n, d = self.points["N"], self.points["D"]
        ratio = f"D/N {(d / n).min():.3g} to {(d / n).max():.3g}"
        return f"{needed} (these {len(n)} runs have {len(np.unique(n))} N, {len(np.unique(d))} D and {ratio})"

    @property
    def family(self) -> str:
        """Of the fitted runs, or "" where it isn't known or isn't one."""
        family = self.result.get("family")
        return family if isinstance(family, str) else ""

    @property
    def count(self) -> str:
        """Which parameters its N counts: "total" where it doesn't say."""
        said = self._convention("N").rpartition("(")[2]  # as in "params (total)", "column (kaplan, as said)"
        return next((name for name in ("kaplan", "nonembedding") if name in said), "total")

    @property
    def unit(self) -> str:
        return "examples" if "examples" in self._convention("D") else "tokens"

    @property
    def aspect(self) -> float | None:
        """Width / depth of the fitted runs, the median; None where it isn't known."""
        if not {"width", "depth"} <= self.points.keys():
            return None
        return float(np.median(self.points["width"] / self.points["depth"]))

    def _convention(self, letter: str) -> str:
        stored = self.result.get("conventions")
        return str(stored[letter]) if isinstance(stored, dict) and letter in stored else ""


def read(path: str, form: str = "") -> Fitted:
    """A fit.json, checked for what planning uses.

    Args:
      form: the user's own file that the fit is of. It is code: a fit.json that names it is not enough to run it.

    Raises:
      UsageError: it can't be read, isn't a fit of a law of N and D, or holds what isn't a number where one must be.
    """
    try:
        result = json.loads(files.read_text(path, "fit"))
    except (ValueError, RecursionError) as e:
        raise UsageError(f"fit {path!r} is not JSON: {e}") from e
    if not isinstance(result, dict) or not isinstance(result.get("law"), str):
        raise UsageError(
            f"{path!r} is not a fit.json: it names no law (`bigmodel fit POINTS --out=fit.json` writes one)"
        )
    files.check_whole(result, path)
    if not isinstance(result.get("params"), dict):
        raise UsageError(f"fit {path!r} has no params")
    name = result["law"]
    if name in ("isoflop", "envelope"):
        raise UsageError(f"fit {path!r} is of {name!r}: it gives N_opt and D_opt but no loss; fit a law of N and D")
    if name.endswith(".py") and name != form:
        raise UsageError(f"fit {path!r} is of {name!r}, a file of Python code: to run it, name it: --form={name}")
    law = forms.get(name)
    if law.target != "L" or set(law.columns) != {"N", "D"}:
        reads = f"{law.target} of {', '.join(law.columns)}"
        raise UsageError(f"can't plan with law {law.name!r}: it predicts {reads}, and a plan needs L of N and D")
    for parameter, value in result["params"].items():
        if not is_number(value):
            raise UsageError(f"fit {path!r}: parameter {parameter!r} is {value!r}, expected a number")
    thetas = law.theta(result["params"])[None]
    logs = [p.name for p in law.parameters if p.log]
    samples = _columns(path, result, "samples", law.names, required=law.names, positive=logs)
    if samples:
        columns = [np.log(samples[p.name]) if p.log else samples[p.name] for p in law.parameters]
        thetas = np.concatenate([thetas, np.array(columns).T])
    interval = result.get("interval") or {}
    level: Any = interval.get("level", intervals.LEVEL) if isinstance(interval, dict) else None
    if not is_number(level) or not 0 < level < 1:
        raise UsageError(f"fit {path!r}: interval is {interval!r}, expected its level between 0 and 1")
    ranges = _columns(path, result, "range", ("N", "D", "C"))
    best = result.get("optimal")
    if isinstance(best, dict) and best.get("tokens_per_param_runs") is not None:
        ranges |= _columns(path, {"range": {"tokens_per_param": best["tokens_per_param_runs"]}}, "range", reach.NAMES)
    for letter, ends in ranges.items():
        if len(ends) != 2 or ends[0] > ends[1]:
            raise UsageError(f"fit {path!r}: range of {letter!r} is {ends.tolist()}, expected [least, most]")
    points = _columns(path, result, "points", ("N", "D", "width", "depth"), required=("N", "D"))
    if points:  # plans count C = 6 N D, whatever the runs' own C counts
        flops = forms.FLOPS_PER_PARAM_TOKEN * points["N"] * points["D"]
        ranges["C"] = np.array([flops.min(), flops.max()])
    fitted = Fitted(
        path=path,
        law=law,
        thetas=thetas,
        level=float(level),
        range={letter: (float(least), float(most)) for letter, (least, most) in ranges.items()},
        points=points,
        residuals=_numbers(path, "residuals", result.get("residuals", []), positive=False),
        result=result,
    )
    _check_resamples(fitted)
    return fitted


def is_number(value: Any) -> bool:
    """A finite number that float64 holds; JSON has integers of any length, and Python reads NaN."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _numbers(path: str, what: str, values: Any, positive: bool) -> np.ndarray:
    if not isinstance(values, list) or not all(is_number(v) and (v > 0 or not positive) for v in values):
        raise UsageError(f"fit {path!r}: {what} is not a list of {'positive ' if positive else ''}numbers")
    return np.array(values, dtype=np.float64)


def _check_resamples(fitted: Fitted) -> None:
    """Refuses a fit of which most resamples failed: many other parameters would fit its runs as well."""
    stored = fitted.result.get("resamples")
    asked, done = (stored.get(k, 0) if isinstance(stored, dict) else 0 for k in ("asked", "fitted"))
    if is_number(asked) and is_number(done) and asked and not intervals.enough(int(done), int(asked)):
        failed = f"{int(asked - done)} of {int(asked)} resamples of the runs couldn't be fitted"
        raise UsageError(f"plan: the fit {fitted.path!r} doesn't determine a law: {failed}; {fitted.remedy()}")


def _columns(
    path: str,
    result: Mapping[str, Any],
    what: str,
    names: Sequence[str],
    required: Sequence[str] = (),
    positive: Sequence[str] | None = None,
) -> dict[str, np.ndarray]:
    """Those of `names` that the object result[what] has, in lists of one length; {}: there is no such object.

    `positive`: the names whose numbers must be; None: all.
    """
    stored = result.get(what) or {}
    if not isinstance(stored, dict):
        raise UsageError(f"fit {path!r}: {what} is not an object")
    if stored and not set(required) <= stored.keys():
        raise UsageError(f"fit {path!r}: {what} doesn't hold {', '.join(required)}")
    out = {
        name: _numbers(path, f"{what} of {name!r}", stored[name], positive is None or name in positive)
        for name in names
        if name in stored
    }
    if len({len(column) for column in out.values()}) > 1:
        raise UsageError(f"fit {path!r}: {what} differ in length")
    return out
