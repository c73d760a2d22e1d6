"""Columns in another unit: `fit` says so in one line where the numbers tell, and says nothing where they can't."""

import json

import numpy as np
import pandas as pd
import pytest

from bigmodel.cli import main

PF_DAY = 8.64e19


def runs():
    n, d = (x.ravel() for x in np.meshgrid([4e7, 1.6e8, 6.4e8, 2.5e9], [1e9, 4e9, 1.6e10]))
    return pd.DataFrame({"params": n, "tokens": d, "flops": 6 * n * d, "loss": 1.7 + 400 / n**0.34 + 410 / d**0.28})


def scaled(**units):
    return lambda f: f.assign(**{name: f[name] / unit for name, unit in units.items()})


TOLD = {
    "N in millions": (scaled(params=1e6), "C is 1e+06 times 6 N D: is it in FLOPs, or N or D in millions?"),
    "N in millions, no C": (lambda f: scaled(params=1e6)(f).drop(columns="flops"), "in millions or billions"),
    "N in billions, no C": (lambda f: scaled(params=1e9)(f).drop(columns="flops"), "in millions or billions"),
    "D in billions": (scaled(tokens=1e9), "C is 1e+09 times 6 N D: is it in FLOPs, or N or D in billions?"),
    "D in billions, no C": (lambda f: scaled(tokens=1e9)(f).drop(columns="flops"), "D is 4 at the median, little for"),
    "both in millions": (scaled(params=1e6, tokens=1e6), "is it in FLOPs, or N and D in millions?"),
    "both in another unit, no C": (
        lambda f: scaled(params=1e5, tokens=1e5)(f).drop(columns="flops"), "a moment's training: are N and D in thous"
    ),
    "N in millions, D in billions": (scaled(params=1e6, tokens=1e9), "or N and D in millions and billions?"),
    "C in PF-days": (scaled(flops=PF_DAY), "or in PF-days (a PF-day is 8.64e19 FLOPs)?"),
    "C in ZFLOPs": (scaled(flops=1e21), "or in ZFLOPs?"),
    "D in examples": (scaled(tokens=2048), "or D in examples of 2048 tokens?"),
    "a perplexity": (lambda f: f.assign(loss=np.exp(f.loss)), "more than ln of a vocabulary: is it a perplexity"),
    "an accuracy": (lambda f: f.assign(loss=1 - f.loss / 5), "L rises with C (rank correlation 0.9"),
    "an accuracy in percent": (lambda f: f.assign(loss=100 - 15 * f.loss), "is it an accuracy?"),
}  # fmt: skip
SILENT = {
    "as they are": lambda f: f,
    "loss in bits": lambda f: f.assign(loss=f.loss / np.log(2)),
    "D in examples, no C": lambda f: scaled(tokens=2048)(f).drop(columns="flops"),
    "a low perplexity": lambda f: f.assign(loss=np.exp(f.loss - 1.5)),
    "C of forward passes alone": scaled(flops=3),
}


def warned(frame, tmp_path, capfd):
    frame.to_csv(tmp_path / "points.csv", index=False)
    assert main.main(["fit", str(tmp_path / "points.csv"), "--bootstrap=0", "--holdout=0", "--json"]) == 0
    return json.loads(capfd.readouterr().out)["warnings"]


@pytest.mark.parametrize("name", TOLD)
def test_another_unit_is_told_in_one_line(name, tmp_path, capfd):
    change, said = TOLD[name]
    assert sum(said in line for line in warned(change(runs()), tmp_path, capfd)) == 1


@pytest.mark.parametrize("name", SILENT)
def test_what_numbers_cannot_tell_is_not_guessed(name, tmp_path, capfd):
    lines = warned(SILENT[name](runs()), tmp_path, capfd)
    assert not [line for line in lines if "?" in line and "taken as" not in line], lines
