"""Runs that an earlier commit wrote are found, continued and reported by today's code; a new option moves no run.

tests/golden/runs-23bee87.tar.gz holds what commit 23bee87 wrote (tests/golden/make_runs.py says what).
"""

import json
import tarfile

import pytest
from conftest import ROOT
from golden import make

from bigmodel import data, models
from bigmodel.cli import main
from bigmodel.run import budget, identity, optim, record

ARCHIVE = make.HERE / "runs-23bee87.tar.gz"


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """The folder of runs, unpacked. Commands are given in the repository, as a user gives them."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path / "runs", filter="data")
    monkeypatch.chdir(ROOT)
    return tmp_path / "runs"


def only(folder):
    (found,) = [p for p in folder.iterdir() if p.is_dir()]
    return found


def attempts(folder):
    """{run: rows of its attempts}: who trains adds one."""
    return {p.parent.name: record.read_rows(p) for p in sorted(folder.glob("*/attempts.jsonl"))}


def states(runs, capsys):
    assert main.main(["sweep", "status", str(runs / "study.py"), f"--runs={runs}", "--json"]) == 0
    return {row["run_id"]: row["state"] for row in json.loads(capsys.readouterr().out)}


def check_losses(runs, folder):
    """Those that 23bee87 had where nothing stopped the run."""
    rows = record.read_rows(folder / "metrics.jsonl")
    (want,) = [v for k, v in json.loads((runs / "expected.json").read_text()).items() if k == folder.name]
    assert [r["loss"] for r in rows if "loss" in r] + [rows[-1]["eval_loss"]] == pytest.approx(want, rel=1e-6)


def again(folder, data_dir):
    """`bigmodel train` by the config.json in a run's folder."""
    pairs = {"--config.run.data_dir": data_dir, "--runs": folder.parent}
    return main.main(["train", str(folder / "config.json"), *(f"{k}={v}" for k, v in pairs.items())])


def test_a_finished_run_of_an_earlier_commit_is_not_trained_again(runs, data_dir, capsys):
    folder = only(runs / "done")
    before, result = attempts(runs / "done"), (folder / "result.json").read_bytes()
    assert again(folder, data_dir) == 0
    assert attempts(runs / "done") == before and (folder / "result.json").read_bytes() == result
    assert only(runs / "done") == folder
    loss = json.loads(result)["loss"]
    assert f"{loss:.4f}" in capsys.readouterr().out

    assert main.main(["evaluate", str(folder), f"--data-dir={data_dir}", "--limit=16", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["loss"] == pytest.approx(loss, rel=1e-5)


def test_an_interrupted_run_of_an_earlier_commit_continues_to_the_same_losses(runs, data_dir):
    folder = only(runs / "half")
    assert again(folder, data_dir) == 0
    assert only(runs / "half") == folder and [a["step"] for a in attempts(runs / "half")[folder.name]] == [0, 6]
    assert record.read_json(folder / "result.json")["status"] == "done"
    check_losses(runs, folder)


def test_a_study_of_an_earlier_commit_is_planned_finished_fitted_and_reported(runs, capsys):
    file, study = str(runs / "study.py"), runs / "study"
    before = attempts(study)
    assert sorted(states(runs, capsys).values()) == ["done"] * 7 + ["interrupted", "pending"]
    (half,) = [name for name, state in states(runs, capsys).items() if state == "interrupted"]

    assert main.main(["fit", str(study), "--bootstrap=10", "--holdout=0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["n_points"] == 7
    assert main.main(["sweep", "plan", file, f"--runs={runs}"]) == 0
    assert [line.split()[-1] for line in capsys.readouterr().out.splitlines()].count("done") == 7
    assert sorted(states(runs, capsys).values()) == ["done"] * 7 + ["interrupted", "pending"]

    assert main.main(["sweep", "run", file, f"--runs={runs}"]) == 0
    said = capsys.readouterr().out.splitlines()[-1]
    assert "2 trained" in said and "7 skipped" in said
    after = attempts(study)
    assert {name: after[name] for name in before if name != half} == {n: a for n, a in before.items() if n != half}
    assert [a["step"] for a in after[half]] == [0, 10]
    assert len(after) == 9 and set(states(runs, capsys).values()) == {"done"}
    check_losses(runs, study / half)

    assert main.main(["fit", str(study), "--bootstrap=10", "--holdout=0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["n_points"] == 9
    assert main.main(["report", file, f"--runs={runs}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["n_points"] == 9


def with_novelty(monkeypatch):
    """A new option with a neutral default in every section, as an upgrade brings it."""

    def added(module):
        whole = module.get_config

        def get_config():
            found = whole()
            for section in found if isinstance(found, tuple) else (found,):
                section.novelty = 0
            return found

        monkeypatch.setattr(module, "get_config", get_config)

    for module in (budget, optim, *map(models.family, models.names()), *map(data.source, data.names())):
        added(module)


def test_a_new_option_with_a_neutral_default_moves_no_run(runs, data_dir, tmp_path, monkeypatch, capsys):
    make.prepare(tmp_path)

    def ids():
        return {n: identity.run_id(budget.finalize(make.config_of(c, tmp_path))) for n, c in make.cases().items()}

    file, before, trained = str(runs / "study.py"), ids(), attempts(runs / "study")
    with_novelty(monkeypatch)
    assert budget.base("mlp", "tables").run.novelty == 0
    assert ids() == before

    for kind in ("done", "half"):
        folder, rows = only(runs / kind), len(attempts(runs / kind)[only(runs / kind).name])
        assert again(folder, data_dir) == 0
        lines = [line for line in capsys.readouterr().err.splitlines() if "novelty" in line]
        assert len(lines) == 1 and all(f"{s}.novelty" in lines[0] for s in ("model", "data", "optim", "train", "run"))
        assert only(runs / kind) == folder and len(attempts(runs / kind)[folder.name]) == rows + (kind == "half")
        assert record.read_json(folder / "result.json")["status"] == "done"
    check_losses(runs, only(runs / "half"))

    assert main.main(["sweep", "plan", file, f"--runs={runs}"]) == 0
    assert [line.split()[-1] for line in capsys.readouterr().out.splitlines()].count("done") == 7
    assert main.main(["sweep", "run", file, f"--runs={runs}"]) == 0
    after = attempts(runs / "study")
    assert len(after) == 9 and sum(after[name] == rows for name, rows in trained.items()) == 7


def test_an_option_that_is_used_makes_another_run(tmp_path, monkeypatch):
    """The other side: the new option set to something else is another run."""
    with_novelty(monkeypatch)
    make.prepare(tmp_path)
    case = make.cases()["mlp-regress"]
    ids = {
        identity.run_id(budget.finalize(make.config_of(case, tmp_path, [*more])))
        for more in ([], [("model.novelty", 1)], [("train.novelty", 1)], [("run.novelty", 1)])
    }
    assert len(ids) == 3  # where a run executes doesn't make it another
