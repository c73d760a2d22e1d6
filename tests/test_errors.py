"""Errors of one line."""

import math
from types import SimpleNamespace

import pytest

from bigmodel.errors import UsageError, check_ranges


@pytest.mark.parametrize(
    ("value", "interval", "said"),
    [
        (0, "[1, inf)", "must be at least 1"),
        (1.0, "(1, inf)", "must be above 1"),
        (1.0, "[0, 1)", r"must be in \[0, 1\)"),
        (math.nan, "(0, inf)", "must be above 0"),
        (math.inf, "[0, inf)", r"must be in \[0, inf\)"),
    ],
)
def test_a_value_outside_its_interval_is_named(value, interval, said):
    with pytest.raises(UsageError, match=rf"config.train.lr={value}: {said}"):
        check_ranges("config.train.", {"lr": value}, lr=interval)
    with pytest.raises(UsageError, match=rf"--the-lr={value}: {said}"):
        check_ranges("--", SimpleNamespace(the_lr=value), the_lr=interval)


def test_ends_belong_to_closed_intervals_alone():
    check_ranges("", {"a": 0, "b": 1, "c": 0.5}, a="[0, 1)", b="(0, 1]", c="(0, 1)")
