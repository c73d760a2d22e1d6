"""A fit.json as planning reads it: a file that somebody hands us, so everything used is checked first.

Legend: N parameters, D tokens or examples, C training FLOPs, L loss; S parameter sets (row 0 the fitted ones, then the
resamples), P parameters of the law, n fitted runs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bigmodel import files
from bigmodel.errors import UsageError
from bigmodel.laws import forms, intervals
from bigmodel.laws.forms import Law


@dataclass(frozen=True)
class Fitted:
    """What a plan needs of a fit.json.

    Attributes:
      thetas: (S, P) the law's theta: row 0 fitted, then the usable resamples.
      level: of its intervals, as 0.95.
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
        return self.result["family"] if "family" in self.result and isinstance(self.result["family"], str) else ""

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
      form: the user's own file that the fit is of: it is code, which no file of data has run by naming it.

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
    if result["law"] in ("isoflop", "envelope"):
        raise UsageError(
            f"fit {path!r} is of {result['law']!r}: it gives N_opt and D_opt but no loss; fit a law of N and D"
        )
    if result["law"].endswith(".py") and result["law"] != form:
        raise UsageError(
            f"fit {path!r} is of {result['law']!r}, a file of Python code: to run it, name it: --form={result['law']}"
        )
    law = forms.get(result["law"])
    if law.target != "L" or set(law.columns) != {"N", "D"}:
        reads = f"{law.target} of {', '.join(law.columns)}"
        raise UsageError(f"can't plan with law {law.name!r}: it predicts {reads}, and a plan needs L of N and D")
    for name, value in result["params"].items():
        if not is_number(value):
            raise UsageError(f"fit {path!r}: parameter {name!r} is {value!r}, expected a number")
    theta = law.theta(result["params"])
    samples = _samples(path, law, result)
    fitted = Fitted(
        path=path,
        law=law,
        thetas=np.concatenate([theta[None], samples]),
        level=_level(path, result),
        range=_range(path, result),
        points=_points(path, result),
        residuals=_numbers(path, "residuals", result["residuals"]) if "residuals" in result else np.empty(0),
        result=result,
    )
    _check_resamples(fitted)
    return fitted


def is_number(value: Any) -> bool:
    """A finite number that float64 holds; JSON has integers of any length, and Python reads NaN."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _numbers(path: str, what: str, values: Any, positive: bool = False) -> np.ndarray:
    if not isinstance(values, list) or not all(is_number(v) and (v > 0 or not positive) for v in values):
        raise UsageError(f"fit {path!r}: {what} is not a list of {'positive ' if positive else ''}numbers")
    return np.array(values, dtype=np.float64)


def _samples(path: str, law: Law, result: Mapping[str, Any]) -> np.ndarray:
    """Theta of the stored resamples, (S - 1, P); none where the fit was made without."""
    stored = result.get("samples")
    if not stored:
        return np.empty((0, len(law.names)))
    if not isinstance(stored, dict) or not set(law.names) <= stored.keys():
        raise UsageError(f"fit {path!r}: samples doesn't hold {', '.join(law.names)}")
    columns = [_numbers(path, f"samples of {name!r}", stored[name]) for name in law.names]
    if len({len(c) for c in columns}) != 1:
        raise UsageError(f"fit {path!r}: samples differ in length")
    for p, column in zip(law.parameters, columns, strict=True):
        if p.log and (column <= 0).any():
            raise UsageError(f"fit {path!r}: samples of {p.name!r} must be positive")
    return np.array([np.log(c) if p.log else c for p, c in zip(law.parameters, columns, strict=True)]).T


def _check_resamples(fitted: Fitted) -> None:
    """Refuses a fit of which most resamples failed: many other parameters would fit its runs as well."""
    stored = fitted.result.get("resamples")
    asked, done = (stored.get(k, 0) if isinstance(stored, dict) else 0 for k in ("asked", "fitted"))
    if is_number(asked) and is_number(done) and asked and not intervals.enough(int(done), int(asked)):
        failed = f"{int(asked - done)} of {int(asked)} resamples of the runs couldn't be fitted"
        raise UsageError(f"plan: the fit {fitted.path!r} doesn't determine a law: {failed}; {fitted.remedy()}")


def _level(path: str, result: Mapping[str, Any]) -> float:
    stored = result.get("interval") or {}
    level = stored["level"] if isinstance(stored, dict) and "level" in stored else intervals.LEVEL
    if not isinstance(stored, dict) or not is_number(level) or not 0 < level < 1:
        raise UsageError(f"fit {path!r}: interval is {stored!r}, expected its level between 0 and 1")
    return float(level)


def _range(path: str, result: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    stored = result.get("range") or {}
    if not isinstance(stored, dict):
        raise UsageError(f"fit {path!r}: range is not an object")
    out = {}
    for name in set(stored) & {"N", "D", "C"}:
        pair = _numbers(path, f"range of {name}", stored[name], positive=True)
        if len(pair) != 2 or pair[0] > pair[1]:
            raise UsageError(f"fit {path!r}: range of {name} is {stored[name]!r}, expected [least, most]")
        out[name] = (float(pair[0]), float(pair[1]))
    return out


def _points(path: str, result: Mapping[str, Any]) -> dict[str, np.ndarray]:
    stored = result.get("points")
    if not stored:
        return {}
    if not isinstance(stored, dict) or not {"N", "D"} <= stored.keys():
        raise UsageError(f"fit {path!r}: points doesn't hold N and D")
    names = [name for name in ("N", "D", "width", "depth") if name in stored]
    out = {name: _numbers(path, f"points of {name}", stored[name], positive=True) for name in names}
    if len({len(column) for column in out.values()}) != 1:
        raise UsageError(f"fit {path!r}: points differ in length")
    return out
