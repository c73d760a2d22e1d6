"""Forecasts: sealed before a run starts, chained, scored after it, and counted."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, TINY
from scipy import stats

from bigmodel.cli import main
from bigmodel.files import sealed
from bigmodel.laws import fit, forecast
from bigmodel.run import record

GPT = [f"--config={ROOT / 'experiments/gpt.py'}", "--config.optim.schedule=wsd", "--config.optim.branches=(0.5,)"]


@pytest.fixture(scope="module")
def law(tmp_path_factory):
    """A fit of 12 planted runs with two points each, near what tiny runs of 12 steps reach."""
    import pandas as pd

    rng, rows = np.random.default_rng(0), []
    for k, n in enumerate(np.repeat([2e3, 6e3, 2e4, 6e4], 3)):
        for d in (300.0 * 3 ** (k % 3), 600.0 * 3 ** (k % 3)):
            loss = (2 + 30 / n**0.5 + 60 / d**0.5) * np.exp(0.02 * rng.standard_normal())
            rows.append({"N": n, "D": d, "C": 6 * n * d, "L": loss, "run_id": f"r{k}"})
    out = fit.fit(pd.DataFrame(rows), bootstrap=60, holdout=0)
    path = tmp_path_factory.mktemp("fit") / "fit.json"
    path.write_text(json.dumps(sealed(fit.to_json(out))))
    return path


@pytest.fixture
def cli(law, data_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tiny = [f"--config.{key}={value}" for key, value in (*TINY, ("run.data_dir", data_dir))]

    def call(*arguments, code=0):
        capsys.readouterr()
        assert main.main(list(map(str, arguments))) == code
        said = capsys.readouterr()
        return said.out if code != 2 else said.err

    def seal(seed=0, *more, code=0, folder="forecasts"):
        run = [*GPT, *tiny, f"--config.train.seed={seed}"]
        return call("forecast", "seal", folder, f"--law={law}", *run, *more, code=code)

    call.seal, call.run = seal, [*GPT, *tiny]
    return call


def read(path):
    return json.loads(Path(path).read_text())


def rewrite(path, **changes):
    """As someone would who knows how a file is sealed."""
    Path(path).write_text(json.dumps(sealed({**read(path), **changes}), indent=1) + "\n")


def finish(path, loss, started="9999-01-01T00:00:00Z", **more):
    """A finished run, as training would have left it."""
    sealed_run = read(path)
    home = Path("runs/some_sweep") / sealed_run["run_id"]
    home.mkdir(parents=True)
    sizes = {key: sealed_run[key] for key in ("params", "tokens", "steps")}
    result = {"run_id": home.name, "status": "done", "flops": 1.0, "loss": loss, "wall_seconds": 1.0, **sizes, **more}
    record.write_record(home / "result.json", result)
    (home / "attempts.jsonl").write_text(json.dumps({"step": 0, "date": started}) + "\n")
    return home


def test_a_run_that_is_trained_after_its_forecast_is_scored(cli):
    assert "1 points of its curve" in cli.seal()
    before = Path("forecasts/0001.json").read_bytes()
    assert "no folder of runs 'runs'" in cli("forecast", "score", "forecasts", code=2)
    assert "not finished" in cli("forecast", "score", "forecasts", "--runs=.")
    cli("train", *cli.run)
    assert "1 sealed, 1 scored, 1 counted" in cli("forecast", "score", "forecasts")
    home = Path("runs") / read("forecasts/0001.json")["run_id"]
    result, score, run = read(home / "result.json"), *map(read, ("forecasts/0001.score.json", "forecasts/0001.json"))
    assert score["loss"] == result["loss"] and score["uncounted"] == ""
    predicted = run["prediction"]["run"]
    assert score["error"] == pytest.approx(result["loss"] / predicted["value"] - 1, abs=1e-12)
    assert score["inside"] == (predicted["low"] <= result["loss"] <= predicted["high"])
    (branch,) = result["branches"]
    assert [at["D"] for at in score["curve"]] == [branch["tokens"]] and score["curve"][0]["observed"] == branch["loss"]
    assert run["curve"][0]["run"]["value"] > predicted["value"], "half of the tokens: a higher loss"
    assert Path("forecasts/0001.json").read_bytes() == before
    assert "exists already" in cli.seal(code=2) and not Path("forecasts/0002.json").exists()


def test_a_forecast_freezes_law_run_and_gap(cli, law):
    cli.seal()
    one, fitted = read("forecasts/0001.json"), read(law)
    assert one["law"]["sha256"] == forecast.digest(law)
    assert one["law"]["params"] == fitted["params"] and one["law"]["samples"] == fitted["samples"]
    assert one["N"] == one["params"] and one["D"] == one["tokens"] == 12 * 8 * 32 and one["previous"] == ""
    assert one["gap"] == pytest.approx(6 * one["N"] * one["D"] / max(fitted["range"]["C"]))
    run, loss = one["prediction"]["run"], one["prediction"]["loss"]
    assert run["low"] < loss["low"] < loss["value"] == run["value"] < loss["high"] < run["high"]


def test_the_same_run_by_the_same_fit_is_refused_and_by_another_a_revision(cli, law, tmp_path):
    cli.seal()
    assert "it stands" in cli.seal(code=2)
    other = shutil.copy(law, tmp_path / "other.json")
    rewrite(other, source="the same runs, fitted again")
    cli.seal(0, f"--law={other}")
    assert read("forecasts/0002.json")["revises"] == ["0001.json"]
    assert cli("forecast", "verify", "forecasts").startswith("2 forecasts, the chain is whole")


def edit(folder):
    rewrite(folder / "0002.json", prediction={})
    return "0003.json was sealed after another file"


def edit_plainly(folder):
    path = folder / "0002.json"
    path.write_text(path.read_text().replace('"steps": 12', '"steps": 13'))
    return "damaged, or was edited"


def remove(folder):
    (folder / "0002.json").unlink()
    return "0002.json is missing"


def remove_and_renumber(folder):
    (folder / "0002.json").unlink()
    (folder / "0003.json").rename(folder / "0002.json")
    rewrite(folder / "0002.json", number=2)
    return "0002.json was sealed after another file"


def reorder(folder):
    (folder / "0002.json").rename(folder / "x")
    (folder / "0003.json").rename(folder / "0002.json")
    (folder / "x").rename(folder / "0003.json")
    return "0002.json was moved"


def date_back(folder):
    rewrite(folder / "0003.json", date="2020-01-01T00:00:00Z")
    return "0003.json is dated 2020-01-01"


def date_ahead(folder):
    rewrite(folder / "0003.json", date="9020-01-01T00:00:00Z")
    return "0003.json is dated 9020-01-01"


@pytest.fixture
def three(cli):
    for seed in range(3):
        cli.seal(seed)
    return Path("forecasts")


@pytest.mark.parametrize(
    "harm", [edit, edit_plainly, remove, remove_and_renumber, reorder, date_back, date_ahead], ids=lambda f: f.__name__
)
def test_a_broken_chain_is_found_and_nothing_goes_on_from_it(cli, three, harm):
    said = harm(three)
    assert said in cli("forecast", "verify", three, code=1)
    assert said in cli("forecast", "score", three, "--runs=.", code=2)
    assert said in cli.seal(3, code=2) and len(list(three.glob("*.json"))) <= 3


def test_what_follows_the_published_digest_cannot_be_changed(cli, three):
    last = forecast.digest(three / "0003.json")
    assert f"the newest: {last}" in cli("forecast", "verify", three, f"--last={last}")
    rewrite(three / "0003.json", run_id="abc")  # the newest: no later file holds it
    assert "chain is whole" in cli("forecast", "verify", three)
    assert "changed, or some removed" in cli("forecast", "verify", three, f"--last={last}", code=1)


def test_calibration_counts_forecasts_made_before_the_run_alone(cli):
    for seed in range(4):
        cli.seal(seed)
    paths = forecast.paths(Path("forecasts"))
    run = read(paths[0])["prediction"]["run"]
    finish(paths[0], run["value"])
    finish(paths[1], 1.5 * run["high"])
    finish(paths[2], run["value"], started="2020-01-01T00:00:00Z")
    finish(paths[3], None, status="diverged")
    assert "exists already" in cli.seal(1, code=2)
    said = cli("forecast", "score", "forecasts").splitlines()[1:]
    assert [re.search("inside|OUTSIDE", line)[0] for line in said[:4]] == ["inside", "OUTSIDE", "inside", "OUTSIDE"]
    assert "started before it was sealed" in said[2] and "diverged" in said[3]
    found = forecast.calibration(forecast.load(Path("forecasts"), record.now()))
    assert (found["forecasts"], found["scored"], found["counted"], found["inside"]) == (4, 4, 3, 1)
    ends = [stats.beta.ppf(0.025, 1, 3), stats.beta.ppf(0.975, 2, 2)]
    np.testing.assert_allclose(found["coverage_ci"], ends, rtol=1e-6)
    assert "1 inside (33.3 % [" in cli("forecast", "page", "forecasts", "--out=out")
    page = Path("out/index.html").read_text()
    assert "1.5" in page and "data:image/png" in page and "not finished" not in page
    assert Path("out/calibration.png").stat().st_size > 5000


def test_z_is_the_normal_quantile_of_the_interval():
    run = {"value": 2.0, "low": 1.8, "high": 2.6}
    z = {loss: forecast.z_score(run, loss, 0.95) for loss in (1.8, 2.0, 2.6)}
    assert z == pytest.approx({1.8: -1.959964, 2.0: 0.0, 2.6: 1.959964}, abs=1e-5)
    assert forecast.z_score(run, 2.0 * 1.3**0.5, 0.95) == pytest.approx(1.959964 / 2, abs=1e-5)


def test_a_run_of_other_size_is_not_taken_for_the_forecast_one(cli):
    cli.seal()
    finish("forecasts/0001.json", 3.0, params=7)
    assert "has params 7" in cli("forecast", "score", "forecasts", code=2)
    assert not Path("forecasts/0001.score.json").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["seel", "f"], "did you mean 'seal'"),
        (["seal", "f"], "give --law=FIT.JSON"),
        (["score", "f", "--config.train.seed=1"], "takes no --config.train.seed"),
        (["verify", "nowhere"], "no folder 'nowhere'"),
    ],
)
def test_mistakes_are_one_line(cli, arguments, said):
    error = cli("forecast", *arguments, code=2)
    assert said in error and error.count("\n") == 1 and not Path("f").exists()
