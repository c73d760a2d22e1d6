"""Errors that end in one line, notes to the user, and names nearest to a wrong one."""

from __future__ import annotations

import difflib
import functools
import math
import sys
from collections.abc import Iterable
from typing import Any

EXIT_USAGE = 2
EXIT_RETRY = 75  # sysexits.h EX_TEMPFAIL: the same command may succeed later


class UsageError(Exception):
    """A mistake of the user's: printed as one line, exit code 2, nothing written."""


class NoData(UsageError):
    """The data that a config reads isn't there, or isn't enough: who needs shapes alone may go on.

    Attributes:
      epochs: passes over the data that would be enough; 0: no number is.
    """

    epochs = 0


class Unavailable(UsageError):
    """Something outside the config that was there when it was checked can't be read now: who goes through many runs
    stops there, and the same command may succeed later."""


class Retry(Exception):
    """Work was interrupted (preemption, full disk) and the same command continues it: exit code 75."""


class Busy(Retry):
    """Another process is at this very run: whoever goes through many runs passes on to the next."""


noted: set[str] = set()


def note(text: str) -> None:
    """Says one line on stderr, once a command: what was left out, replaced or not found, where work goes on."""
    if text not in noted:
        noted.add(text)
        print(f"bigmodel: note: {' '.join(text.split())}", file=sys.stderr, flush=True)


def nearest(name: str, names: Iterable[str]) -> str:
    """' (did you mean X?)' for the closest of `names`, else ''."""
    match = difflib.get_close_matches(str(name), [str(n) for n in names], n=1, cutoff=0.5)
    return f" (did you mean {match[0]!r}?)" if match else ""


MOST_LISTED = 20  # names that an error lists


def choose(what: str, value: Any, options: Iterable[str]) -> Any:
    """Returns `value` if it is one of `options`; else a UsageError naming the nearest."""
    options = list(options)
    if value not in options:
        hint = nearest(value, options)
        names, others = [str(o) for o in options], len(options) - MOST_LISTED
        if others > 0:  # the nearest first, and not more than can be read
            names = difflib.get_close_matches(str(value), options, MOST_LISTED, cutoff=0.0)
            names = [*names, f"{others} more"]
        raise UsageError(f"{what}: {value!r} is not one of {', '.join(names)}{hint}")
    return value


def check_ranges(prefix: str, values: Any, **intervals: str) -> None:
    """Raises UsageError for the first of `values` outside its interval.

    Args:
      prefix: named before the key, as 'config.train.' or '--'.
      values: a mapping, or an object with attributes.
      intervals: key -> interval in mathematical notation, as "[1, inf)" or "(0, 1]". NaN is in none.
    """
    for key, interval in intervals.items():
        value = values[key] if hasattr(values, "__getitem__") else getattr(values, key)
        low, high = _ends(interval)
        above = value > low if interval[0] == "(" else value >= low
        below = value < high if interval[-1] == ")" else value <= high
        if above and below:
            continue
        kind = {"(": "above", "[": "at least"}[interval[0]]
        one_sided = high == math.inf and value != high
        wanted = f"{kind} {interval[1:-1].split(',')[0]}" if one_sided else f"in {interval}"
        raise UsageError(f"{prefix}{key.replace('_', '-') if prefix == '--' else key}={value!r}: must be {wanted}")


@functools.cache
def _ends(interval: str) -> tuple[float, float]:
    low, high = interval[1:-1].split(",")
    return float(low), float(high)
