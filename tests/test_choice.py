"""The choice of a law, averages of laws, and predictions: on planted laws, through the command line."""

import json

import numpy as np
import pandas as pd
import pytest

from bigmodel.cli.main import main
from bigmodel.errors import UsageError
from bigmodel.laws import checks, choice, fitted, forms, predict, reach, search
from bigmodel.laws import fit as fits

CHINCHILLA = {"E": 1.7, "A": 400.0, "alpha": 0.34, "B": 410.0, "beta": 0.28}
GADRE = {"E": 1.7, "A": 90.0, "B": 160.0, "eta": 0.14}
KAPLAN = {"alpha_N": 0.076, "N_c": 6.4e13, "alpha_D": 0.103, "D_c": 1.8e13}
LAWS = ("gadre", "chinchilla", "kaplan_nd")  # farseer, of nine parameters, would take most of the time
HOW = {"delta": 1e-3, "above": 1.0, "estimator": "huber"}


def planted(law, values, noise=0.002, seed=0, sizes=7, data=6):
    n, d = (x.ravel() for x in np.meshgrid(np.geomspace(1e6, 3e8, sizes), np.geomspace(2e7, 2e10, data)))
    loss = forms.get(law).predict(values, {"N": n, "D": d})
    return pd.DataFrame(
        {"N": n, "D": d, "L": loss * np.exp(noise * np.random.default_rng(seed).standard_normal(len(n)))}
    )


@pytest.fixture(scope="module")
def fit_file(tmp_path_factory):
    """fit.json of a planted law, by the command line."""
    folder = tmp_path_factory.mktemp("fit")
    planted("chinchilla", CHINCHILLA).to_csv(folder / "points.csv", index=False)
    assert main(["fit", str(folder / "points.csv"), "--bootstrap=200", f"--out={folder / 'fit.json'}"]) == 0
    return folder / "fit.json"


# ------------------------------------------------------------------------------------- splits


def test_splits_hold_out_the_same_runs_at_growing_gaps():
    frame = planted("chinchilla", CHINCHILLA)
    law = forms.get("chinchilla")
    data = checks.columns_of(frame, law)
    cuts = choice.splits(data, law)
    assert 3 <= len(cuts) <= choice.MOST_GAPS
    gaps = [cut.gap for cut in cuts]
    assert gaps == sorted(gaps, reverse=True) and gaps[-1] < 20 < gaps[0]
    for cut in cuts:
        np.testing.assert_array_equal(cut.held_out, cuts[0].held_out)
        assert data["C"][cut.fitted].max() * cut.gap == pytest.approx(data["C"][cut.held_out].max())
        assert data["C"][cut.fitted].max() < data["C"][cut.held_out].min()
        assert cut.fitted.sum() >= choice.LEAST_SHARE * len(frame)


def test_backtests_are_fits_of_the_runs_below_the_cutoff():
    frame = planted("chinchilla", CHINCHILLA)
    law = forms.get("chinchilla")
    data = checks.columns_of(frame, law)
    cut = choice.splits(data, law)[0]
    [entry], _ = choice.backtests(search.problem_of(law, data, 1e-3), data, [cut])
    alone = fits.fit(frame[cut.fitted], bootstrap=0, holdout=0)
    error = fits.predict(alone, frame["N"][cut.held_out], frame["D"][cut.held_out]) / frame["L"][cut.held_out] - 1
    assert entry["mean_abs_rel_error"] == pytest.approx(np.abs(error).mean(), rel=1e-6)
    assert entry["n_fitted"] == cut.fitted.sum() and entry["flops_gap"] == cut.gap


# ------------------------------------------------------------------------------------- choice


@pytest.mark.parametrize(
    ("law", "values", "noise", "chosen"),
    [
        ("chinchilla", CHINCHILLA, 0.0005, "chinchilla"),  # alpha and beta differ by more than the noise
        ("gadre", GADRE, 0.002, "gadre"),  # chinchilla holds it as well, with one parameter more
        ("kaplan_nd", KAPLAN, 0.002, "kaplan_nd"),  # no floor, at any gap
    ],
)
def test_the_planted_law_is_chosen(law, values, noise, chosen):
    ranked, lines = choice.compare(planted(law, values, noise), LAWS, HOW)
    assert ranked[0]["law"] == chosen == choice.named("auto", ranked)
    assert any(chosen in line for line in lines)
    assert {entry["law"] for entry in ranked} == set(LAWS)
    for entry in ranked:
        low, high = entry["excess"] or (1, 1)
        assert low <= high and entry["ties"] == (low <= 1 <= high or entry["excess"] is None)


def test_a_tie_is_called_one_and_goes_to_fewer_parameters():
    ranked, lines = choice.compare(planted("gadre", GADRE, 0.02, seed=3), LAWS, HOW)
    assert ranked[0]["law"] == "gadre" and sum(entry["ties"] for entry in ranked) > 1
    assert any("laws tie" in line and "gadre" in line for line in lines)
    assert choice.named("average", ranked).startswith("average:members=gadre+")


def test_a_law_without_a_floor_is_flagged():
    frame = planted("chinchilla", CHINCHILLA)
    assert any("has no floor" in w for w in fits.fit(frame, "kaplan_nd", bootstrap=0, holdout=0)["warnings"])
    assert not any("has no floor" in w for w in fits.fit(frame, bootstrap=0, holdout=0)["warnings"])


def test_a_law_with_too_few_runs_is_not_ranked_and_said():
    frame = planted("chinchilla", CHINCHILLA, sizes=4, data=3).assign(U=lambda t: t["D"])
    ranked, lines = choice.compare(frame, ["gadre", "muennighoff"], HOW)
    assert ranked[-1]["law"] == "muennighoff" and ranked[-1]["score"] is None and not ranked[-1]["ties"]
    assert any(line.startswith("muennighoff is not ranked") for line in lines)


def test_a_rival_that_needs_more_runs_than_there_are_is_left_out_and_said():
    frame = planted("chinchilla", CHINCHILLA, sizes=4, data=2)
    ranked, lines = choice.compare(frame, ["gadre", "farseer"], HOW)
    assert [entry["law"] for entry in ranked] == ["gadre"]
    assert any(line.startswith("farseer is left out: can't fit law 'farseer' to 8 usable runs") for line in lines)


def test_points_of_one_run_are_held_out_together():
    """The early points of the largest run would tell of it."""
    frame = planted("chinchilla", CHINCHILLA).assign(run_id=lambda t: t["N"].rank(method="dense").astype(str))
    alone, _ = choice.compare(frame.drop(columns="run_id"), ["gadre", "chinchilla"], HOW, resamples=20)
    frame.attrs["checkpoints"] = True
    together, _ = choice.compare(frame, ["gadre", "chinchilla"], HOW, resamples=20)
    # One run, of the largest N, has the largest C of all: all of its six points are held out.
    assert {t["n_held_out"] for e in together for t in e["backtests"]} == {6}
    assert {t["n_held_out"] for e in alone for t in e["backtests"]} != {6}


# ------------------------------------------------------------------------------------ averages


def test_an_average_predicts_the_mean_of_its_members():
    frame = planted("gadre", GADRE, 0.01)
    name = "average:members=gadre+chinchilla"
    result = fits.fit(frame, name, bootstrap=200, holdout=1)
    far = {"N": np.array([1e10]), "D": np.array([2e11])}
    members = [fits.fit(frame, law, bootstrap=0, holdout=0) for law in ("gadre", "chinchilla")]
    logs = [np.log(fits.predict_rows(member, far)) for member in members]
    np.testing.assert_allclose(np.log(fits.predict_rows(result, far)), np.mean(logs, axis=0), rtol=1e-6)
    weights = result["bootstrap_samples"][:, :2]
    assert set(np.unique(weights)) == {0.0, 1.0} and (weights.sum(axis=1) == 1).all()
    assert 0.35 < weights[:, 0].mean() < 0.65
    assert result["optimal"]["a"] == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("members", ["gadre", "gadre+batch_size", "average+gadre", ""])
def test_an_average_of_what_cannot_be_averaged_is_refused(members):
    with pytest.raises(UsageError, match=r"expected two or more laws of one target|is not an argument"):
        forms.get(f"average:members={members}")


def test_auto_and_average_by_the_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(choice, "CANDIDATES", LAWS)
    planted("gadre", GADRE, 0.01).to_csv(tmp_path / "points.csv", index=False)
    out = tmp_path / "fit.json"
    command = ["fit", str(tmp_path / "points.csv"), "--bootstrap=100", f"--out={out}"]
    assert main([*command, "--law=auto"]) == 0
    assert "choice:" in capsys.readouterr().out and json.loads(out.read_text())["law"] == "gadre"
    assert main([*command, "--law=average"]) == 0
    assert json.loads(out.read_text())["law"].startswith("average:members=gadre+chinchilla")
    capsys.readouterr()
    assert main(["predict", f"--law={out}", "--params=1e10", "--tokens=2e11", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["loss"]["low"] < told["loss"]["value"] < told["loss"]["high"]
    assert main(["plan", f"--law={out}", "--flops=1e20", "--next-runs=0"]) == 0


# --------------------------------------------------------------------------------- predictions


def test_a_prediction_has_both_intervals_and_its_distance(fit_file):
    law = fitted.read(str(fit_file))
    near, far = predict.make(law, 1e8, 2e9), predict.make(law, 1e10, 2e11)
    for told in (near, far):
        low, high = told["loss"]["low"], told["loss"]["high"]
        assert told["run"]["low"] < low < told["loss"]["value"] < high < told["run"]["high"]
        truth = forms.get("chinchilla").predict(CHINCHILLA, told["asked"])[0]
        assert low < truth < high
        assert told["loss"]["value"] == pytest.approx(fits.predict({**law.result}, **told["asked"]))
    assert np.ptp([far["loss"]["low"], far["loss"]["high"]]) > np.ptp([near["loss"]["low"], near["loss"]["high"]])
    assert near["gap"] < 1 and all(factor == 1 for factor in near["beyond"].values())
    assert far["gap"] == far["beyond"]["C"] == pytest.approx(1e10 * 2e11 / (3e8 * 2e10))
    assert near["noise"] == pytest.approx(0.002, rel=0.4)
    assert "tested to" in predict.text(far) and "tested to" not in predict.text(near)


def test_a_ratio_that_no_run_tried_is_said(fit_file):
    law = fitted.read(str(fit_file))
    assert not any("D/N" in w for w in predict.make(law, 1e8, 2e9)["warnings"])
    told = predict.make(law, 1e6, 1e11)  # D/N = 1e5, where the runs have 2e4 at most
    assert told["beyond"]["tokens_per_param"] == pytest.approx(5)
    assert any("no run tried such a ratio" in w for w in told["warnings"])


def test_mistakes_of_predict(fit_file, capsys):
    for wrong in ("--params=0", "--params=nan", "--params=-1e9"):
        assert main(["predict", f"--law={fit_file}", wrong, "--tokens=1e9"]) == 2
        assert "predict: --params" in capsys.readouterr().err
    assert main(["predict", f"--law={fit_file}x", "--params=1", "--tokens=1e9"]) == 2
    assert "did you mean" in capsys.readouterr().err


def test_a_curve_of_errors_extends_to_the_gap_asked_for():
    tested = [{"gap": g, "error": 1e-3 * g**0.5} for g in (4.0, 16.0, 64.0)]
    assert reach.expected(tested, 1024.0) == pytest.approx(0.032)
    assert reach.expected(tested[:2], 1024.0) is None
    falling = [{"gap": g, "error": 1e-2 / g} for g in (4.0, 16.0, 64.0)]
    assert reach.expected(falling, 1024.0) == pytest.approx(1e-2 / 16)  # never surer further away
