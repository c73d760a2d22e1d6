"""The best of several random configurations, and laws through it: against enumeration, planted bowls, and our study."""

import itertools
import json

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

from bigmodel.config import load_module
from bigmodel.errors import UsageError
from bigmodel.laws import best_of

study = load_module(ROOT / "sweeps/tuned_frontier.py", "sweep")
tuned = study.tuned


def bowl(rng, n, searched, least=2.0):
    """Losses of n configurations of a loss that is quadratic about an optimum inside the range, in unequal units."""
    centre, curve = rng.uniform(0.3, 0.7, searched), np.exp(rng.normal(0, 0.5, searched))
    return least + (curve * (rng.uniform(0, 1, (n, searched)) - centre) ** 2).sum(axis=1)


def test_the_expected_best_is_the_mean_over_all_choices():
    losses = np.array([3.0, 2.5, 2.9, 2.1, 4.0, 2.5])
    for k in range(1, 7):
        every = np.mean([min(chosen) for chosen in itertools.combinations(losses, k)])
        assert best_of.expected_best(losses, k) == pytest.approx(every)
    assert best_of.expected_best([np.nan, 2.0, 3.0], 2) == pytest.approx((2 + 2 + 3) / 3)  # one diverged
    assert best_of.expected_best([np.nan, 2.0, 3.0], 1) == np.inf
    with pytest.raises(UsageError, match="best of 7: 6 configurations"):
        best_of.expected_best(losses, 7)


@pytest.mark.parametrize("searched", [2, 4])
def test_the_interval_of_the_range_s_least_covers_it(searched):
    rng = np.random.default_rng(searched)
    ends = np.array([best_of.least(bowl(rng, 36, searched), searched) for _ in range(600)])
    covered = ((ends[:, 0] <= 2.0) & (ends[:, 1] >= 2.0)).mean()
    assert 0.93 <= covered <= 0.99
    # What is promised isn't empty: the interval is a few times as wide as the best is far from the least.
    assert np.median((ends[:, 1] - ends[:, 0]) / (ends[:, 1] - 2.0)) < 12


def test_drawn_least_losses_have_the_interval_s_quantile():
    losses = bowl(np.random.default_rng(0), 25, 3)
    low, best = best_of.least(losses, 3)
    drawn = best_of.drawn(losses, 3, 100_000, np.random.default_rng(1))
    assert np.quantile(drawn, 0.05) == pytest.approx(low, abs=0.02 * (best - low)) and drawn.max() <= best
    with pytest.raises(UsageError, match="least loss of a range: 2 finite losses"):
        best_of.least([1.0, 2.0, np.nan, np.nan, np.inf, np.nan, np.nan, np.nan, np.nan], 2)


def planted(rng, n=64):
    """Rungs whose tuned loss is 40 C^-0.07, and whose default recipe is worse the smaller they are: 56 C^-0.08."""
    rows = []
    for width, flops in ((16, 1e10), (32, 1e11), (64, 1e12)):
        floor = 40 * flops**-0.07
        rows += [("random", width, flops, loss, 0) for loss in floor * bowl(rng, n, 2, least=1.0)]
        rows += [("default", width, flops, 56 * flops**-0.08 * np.exp(0.002 * s), s) for s in (-1, 1)]
        rows += [("again", width, flops, floor * 1.001 * np.exp(0.002 * s), s) for s in (-1, 1)]
    return pd.DataFrame(rows, columns=["kind", "width", "C", "loss", "seed"]).assign(D=1e6)


def test_planted_exponents_come_back():
    found = tuned.analyse(planted(np.random.default_rng(0)), searched=2, resamples=400)
    laws = found["laws"]
    assert found["n"] == 64 and laws["default"]["alpha"] == pytest.approx(0.08)
    assert laws["the best again"]["alpha"] == pytest.approx(0.07)
    assert laws["the best again"]["moved"] == pytest.approx(-0.01)
    low, high = laws["the best again"]["moved_ci"]
    assert low < -0.01 < high < 0
    assert found["seed_deviation"] == pytest.approx(0.002 * 2**0.5, rel=1e-6)
    assert laws["least of the range"]["ci"][0] < 0.07 < laws["least of the range"]["ci"][1]
    for rung in found["rungs"]:
        assert rung["least_ci"][0] < 40 * rung["C"] ** -0.07 <= rung["best"] == rung["least_ci"][1]
        expected = list(rung["expected"].values())
        assert expected == sorted(expected, reverse=True)


def test_our_study_says_what_docs_results_says(tmp_path):
    """And its table is of the rows that the sweep plans: the configurations, and which of them ran again."""
    frame = pd.read_csv(ROOT / "docs/studies/tuned_frontier.csv")
    found = tuned.analyse(frame, len(study.SEARCH))
    json.dumps(found)
    text = (ROOT / "docs/results.md").read_text()
    for name, law in found["laws"].items():
        assert f"| {name} | {law['alpha']:.4f} " in text, name
    rows = study.get_sweep()
    assert len(rows) == len(frame)
    planned = {(r["model.width"], r["optim.lr"], r["train.batch_size"]) for r in rows if "optim.schedule" in r}
    tried = frame[frame.kind == "random"]
    assert planned == set(zip(tried.width, tried.lr, tried.batch_size, strict=True))
    best = frame.loc[tried.groupby("width").loss.idxmin()]
    again = frame[frame.kind == "again"].drop_duplicates("width")
    assert list(best.lr) == list(again.lr) and list(best.width) == list(again.width) == list(study.RUNGS)
    drawn = tuned.figure(frame, found)
    drawn.savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_more_configurations_keep_the_first_ones(monkeypatch):
    few = [row for row in study.get_sweep() if row["model.width"] == 24][: study.CONFIGURATIONS]
    monkeypatch.setattr(study, "CONFIGURATIONS", 40)
    assert [row for row in study.get_sweep() if row["model.width"] == 24][: len(few)] == few
    for row in study.get_sweep():
        if "optim.schedule" in row:
            for key, (how, *ends) in study.SEARCH.items():
                assert row[key] in ends[0] if how == "of" else ends[0] * 0.99 <= row[key] <= ends[1] * 1.01
