"""The wing `scaling`: planted laws come back, published points give the published optimum, mistakes are one line."""

import json
import math
import re
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bigmodel.errors import UsageError
from bigmodel.laws import fit as fits
from bigmodel.laws import forms, rows

ROOT = Path(__file__).parents[1]
POINTS = Path(__file__).parents[2] / "shared" / "points"
BESIROGLU = POINTS / "besiroglu2024_chinchilla_points.csv"
PLANTED = {"E": 1.7, "A": 400.0, "alpha": 0.34, "B": 410.0, "beta": 0.28}


def grid(data=(1e6, 4e6, 1.6e7), noise=0.0, seed=0, widths=(64, 128, 256), depths=(2, 4)):
    """Width x depth x data, each run's loss from the planted law."""
    random, out = np.random.default_rng(seed), []
    for width in widths:
        for depth in depths:
            for d in data:
                n = 12.0 * depth * width**2
                loss = PLANTED["E"] + PLANTED["A"] / n ** PLANTED["alpha"] + PLANTED["B"] / d ** PLANTED["beta"]
                loss *= math.exp(noise * random.standard_normal())
                run = f"r{width}-{depth}-{d:.0e}"
                out.append({"run_id": run, "width": width, "depth": depth, "N": n, "D": d, "C": 6 * n * d, "L": loss})
    return pd.DataFrame(out)


def write_runs(folder, frame, **changes):
    for i, row in enumerate(frame.to_dict("records")):
        result = {"run_id": row["run_id"], "status": "done", "family": "decoder", "seed": 0, "width": row["width"]}
        result |= {"depth": row["depth"], "params": row["N"], "tokens": row["D"], "flops": row["C"], "loss": row["L"]}
        result |= changes.get(f"run{i}", {})
        (folder / row["run_id"]).mkdir()
        (folder / row["run_id"] / "result.json").write_text(json.dumps(result))
    return folder


# ---------------------------------------------------------------------------------------- fit


def test_noise_free_law_is_recovered():
    result = fits.fit(grid(), bootstrap=100)
    assert result["objective"] < 1e-20
    for name, value in PLANTED.items():
        assert result["params"][name] == pytest.approx(value, rel=1e-6)
    assert result["holdout"][0]["max_abs_rel_error"] < 1e-8
    assert result["optimal"]["a"] == pytest.approx(0.28 / 0.62)
    assert all("perplexity" in line for line in result["warnings"])  # small models: 13 nats at the median
    assert fits.predict(result, 1e9, 2e10) == pytest.approx(1.7 + 400 / 1e9**0.34 + 410 / 2e10**0.28)
    assert fits.predict(result, np.array([[1e6], [1e7]]), np.array([1e7, 1e8, 1e9])).shape == (2, 3)


def test_noisy_law_lies_in_its_interval_and_repeats():
    frame = grid(noise=0.003, data=(1e6, 4e6, 1.6e7, 6.4e7), widths=(32, 64, 128, 256))
    result = fits.fit(frame, bootstrap=300, seed=1)
    for name, (low, high) in result["ci"].items():
        truth = PLANTED | {"a": 0.28 / 0.62, "b": 0.34 / 0.62}
        assert low < truth[name] < high
        assert high - low > 1e-4
    again = fits.fit(frame, bootstrap=300, seed=1)
    assert np.array_equal(result["bootstrap_samples"], again["bootstrap_samples"])
    assert 0 < result["holdout"][0]["max_abs_rel_error"] < 0.03


def test_optimum_is_the_least_loss_of_its_budget():
    result, budget = fits.fit(grid(), bootstrap=0, holdout=0), 1e18
    n, d = fits.optimal(result, budget)
    assert 6 * n * d == pytest.approx(budget)
    best = fits.predict(result, n, d)
    for factor in (0.9, 1.1):
        assert fits.predict(result, n * factor, d / factor) > best
    assert result["ci"]["E"] is None


def test_besiroglu_optimum():
    if not BESIROGLU.is_file():
        pytest.skip(f"{BESIROGLU} is absent: the published points are not shipped with the project")
    frame = rows.load(BESIROGLU, {"N": "Model Size", "C": "Training FLOP", "L": "loss"}, drop_highest=5)
    assert len(frame) == 240
    start = time.process_time()
    result = fits.fit(frame, bootstrap=1000)
    assert time.process_time() - start < 10
    assert result["objective"] <= 1.0182741e-3
    published = {"A": 477.826, "B": 2143.42, "E": 1.817218, "alpha": 0.347311, "beta": 0.367172}
    for name, value in published.items():
        assert result["params"][name] == pytest.approx(value, rel=1e-3)
    # Besiroglu et al. 2024 (arXiv:2404.10102): standard errors and a's of 4000 resamples, another random stream.
    errors = dict(zip(result["params"], result["bootstrap_samples"].std(axis=0), strict=True))
    for name, value in {"A": 124.52, "E": 0.0257, "alpha": 0.0154, "beta": 0.0206}.items():
        assert errors[name] == pytest.approx(value, rel=0.15)
    assert not any("surviving" in text or "flat" in text for text in result["warnings"])


def test_huge_terms_stay_finite():
    law = forms.get("chinchilla")
    row = {"N": np.array([1.0, 1e12]), "D": np.array([1.0, 1e13])}
    theta = np.array([[5.0, 800.0, 0.0, 90.0, 3.0], [-900.0, -900.0, 3.0, -900.0, 3.0]])
    assert np.isfinite(law.form(theta.T[:, :, None], row)).all()


def test_other_loss_units_give_the_same_law():
    frame = grid()
    small = fits.fit(frame.assign(L=frame["L"] * 1e-8), bootstrap=0, holdout=0)["params"]
    assert small["alpha"] == pytest.approx(PLANTED["alpha"], rel=1e-6)
    assert small["E"] == pytest.approx(PLANTED["E"] * 1e-8, rel=1e-6)


def test_undetermined_fits_say_so():
    sizes = 10.0 ** np.arange(5, 11)
    line = pd.DataFrame({"N": sizes, "D": 20 * sizes, "L": 1.7 + 400 / sizes**0.34})
    assert any("collinear" in text for text in fits.fit(line, bootstrap=0, holdout=0)["warnings"])
    two = fits.fit(grid(data=(1e6, 1e7), noise=0.01), bootstrap=200)
    assert any("2 distinct D" in text for text in two["warnings"])
    assert any("surviving starts disagree on E" in text for text in two["warnings"])
    low, high = two["ci"]["E"]
    assert low < 0.01 and high > 5  # the interval admits it too
    frame = grid()
    floorless = fits.fit(frame.assign(L=frame["L"] - PLANTED["E"]), bootstrap=0, holdout=0)
    assert any("E is about 0" in text for text in floorless["warnings"])
    rising = fits.fit(frame.assign(L=2 + 0.01 * np.log(frame["N"]) + 400 / frame["D"] ** 0.3), bootstrap=0, holdout=0)
    assert any("alpha is at its bound" in text for text in rising["warnings"])


def test_failed_resamples_are_counted():
    result = fits.fit(grid(noise=0.003).iloc[[0, 1, 2, 4, 7, 8, 11, 13, 15, 17]], bootstrap=200)
    match = [re.match(r"(\d+) of 200 resamples", text) for text in result["warnings"]]
    failed = sum(int(m[1]) for m in match if m)
    assert failed > 0
    assert failed + len(result["bootstrap_samples"]) == 200


def test_holdout_takes_the_largest_rungs():
    frame = grid()
    wrong = frame.assign(L=np.where(frame["C"] == frame["C"].max(), 1.1 * frame["L"], frame["L"]))
    entries = fits.fit(wrong, bootstrap=0, holdout=2)["holdout"]
    assert [entry["rungs"] for entry in entries] == [1, 2]
    assert entries[0]["n_held_out"] == 1
    assert entries[0]["mean_rel_error"] == pytest.approx(1 / 1.1 - 1, rel=1e-6)
    assert entries[0]["flops_gap"] == pytest.approx(2)
    assert entries[1]["n_held_out"] > 1
    few = fits.fit(frame.iloc[:6], bootstrap=0, holdout=5)
    assert any("no held-out error" in text for text in few["warnings"])


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (grid().iloc[:2], "2 usable runs"),
        (grid(widths=(64,), depths=(2,), data=(1e5, 2e5, 4e5, 8e5, 1e6, 2e6)), "every run has N"),
        (grid(data=(1e6,)), "every run has D"),
        (grid().drop(columns="L"), "needs column 'L'"),
        (grid().assign(L=math.nan), "row 1: 'L' is nan"),
        (grid().assign(N=-1.0), "row 1: 'N' is -1.0"),
    ],
)
def test_fit_refuses(frame, message):
    with pytest.raises(UsageError, match=message) as error:
        fits.fit(frame, bootstrap=0)
    assert "\n" not in str(error.value)


def test_unknown_law_names_the_nearest():
    with pytest.raises(UsageError, match="did you mean 'chinchilla'"):
        fits.fit(grid(), law="chinchila")
    with pytest.raises(UsageError, match="no law 'get'"):
        forms.get("get")


@pytest.mark.parametrize("row", range(9))
def test_a_row_far_off_is_named_wherever_it_is(row):
    """Also at the ends of the runs, where it pulls the law to itself; of sound runs none is named."""
    frame = grid(noise=0.005).iloc[[0, 1, 2, 6, 7, 8, 12, 13, 14]].reset_index(drop=True)
    frame["source"] = list("abcabacbc")  # means nothing
    lines = fits.fit(frame, bootstrap=0, holdout=0)["warnings"]
    assert not any("of the others" in line or "several laws" in line for line in lines), lines
    frame.loc[row, "L"] = 25.0
    lines = [line for line in fits.fit(frame, bootstrap=0, holdout=0)["warnings"] if "of the others" in line]
    named = f"run {frame['run_id'][row]}: loss 25 where the law of the others says"
    assert len(lines) == 1 and lines[0].startswith(named), lines
