"""What a family may be, by throw-away families, a source, a maker, a law and a paper in a folder outside the package.

contract/ is that folder: a stacked convolutional network with batch norm, whose score is no mean (conv.py); a
contrastive pair model with frozen and differently optimised groups, which starts from two runs (pairs.py); two players
(players.py); an augmented source (halves.py); data made of another row's run (codes.py).
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT, bigmodel

FAMILIES = ("conv", "pairs", "players")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """The user's folder: not the package's, and not where commands run."""
    home = tmp_path_factory.mktemp("user") / "mine"
    shutil.copytree(ROOT / "tests/contract", home, ignore=shutil.ignore_patterns("__pycache__"))
    return home


def run(*args, cwd, code=0, **kwargs):
    done = bigmodel(*args, cwd=cwd, **kwargs)
    assert done.returncode == code, done.stdout[-2000:] + done.stderr[-2000:]
    return done


@pytest.fixture(scope="module")
def swept(home, tmp_path_factory):
    """Where the sweep has run."""
    cwd = tmp_path_factory.mktemp("one")
    assert "6 trained" in run("sweep", "run", home / "study.py", cwd=cwd).stdout
    return cwd


def results(cwd):
    return {p.parent.name: json.loads(p.read_text()) for p in (cwd / "runs/study").glob("*/result.json")}


def test_a_sweep_of_them_is_trained_once(swept, home):
    assert "6 skipped" in run("sweep", "run", home / "study.py", cwd=swept).stdout
    found = results(swept)
    assert len(found) == 6 and all(r["status"] == "done" for r in found.values())


@pytest.mark.slow
def test_eight_devices_have_the_losses_of_one(home, swept, tmp_path):
    assert "6 trained" in run("sweep", "run", home / "study.py", "--host-devices=8", cwd=tmp_path).stdout
    one, eight = results(swept), results(tmp_path)
    assert one.keys() == eight.keys()
    for run_id in one:
        assert eight[run_id]["num_devices"] == 8
        assert eight[run_id]["loss"] == pytest.approx(one[run_id]["loss"], rel=1e-3), one[run_id]["name"]


def test_a_score_that_is_no_mean_doesnt_depend_on_the_batch(home, swept):
    """Macro F1 of an evaluation in batches of 64 and of 100, against scikit-learn's."""
    from sklearn.metrics import f1_score

    (found,) = (r for r in results(swept).values() if r["name"] == "width=8")
    script = (
        "import json, sys; import numpy as np; from bigmodel import evaluate\n"
        "run = evaluate.restore(sys.argv[1]); split = run.examples('validation')\n"
        "batch = [split[i] for i in range(len(split))]\n"
        "logits = run.model.apply(run.variables, np.stack([e['picture'] for e in batch]))\n"
        "print(json.dumps([np.argmax(logits, -1).tolist(), [int(e['label']) for e in batch]]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(swept / "runs/study" / found["run_id"])],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    predicted, labels = json.loads(done.stdout)
    assert found["eval_macro_f1"] == pytest.approx(f1_score(labels, predicted, average="macro"), rel=1e-5)
    run("evaluate", swept / "runs/study" / found["run_id"], cwd=swept)
    written = json.loads((swept / "runs/study" / found["run_id"] / "evaluation-validation.json").read_text())
    assert written["macro_f1"] == pytest.approx(found["eval_macro_f1"], rel=1e-5)
    (pair,) = (r for r in results(swept).values() if r["family"].endswith("pairs.py"))
    said = run("evaluate", swept / "runs/study" / pair["run_id"], "--json", cwd=swept).stdout
    assert json.loads(said)["loss"] == pytest.approx(pair["loss"], rel=1e-5)


def test_a_row_starts_from_two_runs_and_keeps_what_is_frozen(swept):
    found = results(swept)
    (pair,) = (r for r in found.values() if r["family"].endswith("pairs.py"))
    folder = swept / "runs/study" / pair["run_id"]
    assert (folder / "start.txt").read_text().count("8 of 17 parameters taken") == 2
    parts = json.loads((folder / "config.json").read_text())["train"]["init_parts"]
    script = (
        "import sys; import numpy as np; from bigmodel import evaluate\n"
        "own, left, right = (evaluate.restore(p).variables['params'] for p in sys.argv[1:])\n"
        "assert (own['left']['trunk']['stem'] == left['trunk']['stem']).all()  # frozen\n"
        "moved = np.abs(own['right']['trunk']['stem'] - right['trunk']['stem']).max()\n"
        "assert 0 < moved < 0.5, moved"
    )
    where = [str(swept / path) for path, _, _ in parts]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", script, str(folder), *where], env=env, check=True)


def test_data_is_made_of_a_run_once_and_named_by_it(home, swept):
    (made,) = (swept / "data").glob("derived-*")
    manifest = json.loads((made / "manifest.json").read_text())
    found = results(swept)
    assert manifest["hash"] == made.name and manifest["derived"]["run"] in found
    units = np.load(made / "units.npy")
    assert len(units) == 1797 and len(set(units)) == 10
    (row,) = (r for r in found.values() if r["data"] == made.name)
    config = json.loads((swept / "runs/study" / row["run_id"] / "config.json").read_text())
    assert config["data"]["fingerprint"] == made.name
    before = (made / "units.npy").stat().st_mtime_ns
    (swept / "runs/study" / row["run_id"] / "result.json").unlink()  # the row is trained again, and reads what is there
    assert "1 trained" in run("sweep", "run", home / "study.py", cwd=swept).stdout
    assert (made / "units.npy").stat().st_mtime_ns == before
    assert not list((swept / "data").glob(".*.part"))


@pytest.mark.parametrize("family", ["pairs", *(pytest.param(f, marks=pytest.mark.slow) for f in ("conv", "players"))])
def test_it_is_counted(home, tmp_path, family):
    said = run("count", f"--config={home / f'{family}_config.py'}", "--json", cwd=tmp_path).stdout
    params = {"conv": 892, "pairs": 1625, "players": 2128}
    assert json.loads(said)["params"] == params[family]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["conv", *(pytest.param(f, marks=pytest.mark.slow) for f in ("pairs", "players"))])
def test_killed_it_goes_on_to_the_same_losses(home, tmp_path, family):
    """With a worker that augments the pictures."""
    args = [
        "train", f"--config={home / f'{family}_config.py'}", "--config.train.steps=300", "--config.run.workers=1",
        "--config.run.checkpoint_every=5",
    ]  # fmt: skip
    run(*args, "--config.run.workers=0", "--runs=whole", cwd=tmp_path, timeout=500)
    command = [sys.executable, "-m", "bigmodel", *map(str, args), "--runs=cut"]
    with subprocess.Popen(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}) as child:
        deadline = time.time() + 300
        while not any(p.name.isdigit() for p in (tmp_path / "cut").glob("*/checkpoints/*")) and time.time() < deadline:
            time.sleep(0.05)
        child.send_signal(signal.SIGKILL)
    run(*args, "--runs=cut", cwd=tmp_path, timeout=500)
    rows = [
        [json.loads(line) for line in next((tmp_path / name).glob("*/metrics.jsonl")).open()]
        for name in ("whole", "cut")
    ]
    assert len(rows[0]) == len(rows[1]) > 300
    assert [r.get("loss") for r in rows[0]] == [r.get("loss") for r in rows[1]]
    attempts = next((tmp_path / "cut").glob("*/attempts.jsonl")).read_text().splitlines()
    assert len(attempts) == 2 and json.loads(attempts[1])["step"] > 0


@pytest.fixture(scope="module")
def second(home, tmp_path_factory):
    """A second installed package: a folder of modules on the path with the metadata that pip would have written."""
    site = tmp_path_factory.mktemp("site")
    for name in ("conv", "halves", "law", "paper"):
        shutil.copy(home / f"{name}.py", site / f"second_{name}.py")
    info = site / "second-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: second\nVersion: 1.0\n")
    groups = {"families": "conv", "sources": "halves", "papers": "paper"}
    lines = [f"[bigmodel.{group}]\nsecond-{name} = second_{name}\n" for group, name in groups.items()]
    (info / "entry_points.txt").write_text("\n".join([*lines, "[bigmodel.laws]\nsecond-law = second_law\n"]))
    return site


@pytest.mark.slow
def test_entry_points_of_another_package(second, tmp_path):
    env = {"PYTHONPATH": f"{ROOT}{os.pathsep}{second}"}
    (tmp_path / "mine.py").write_text(
        "from bigmodel import budget\ndef get_config():\n    config = budget.base('second-conv', 'second-halves')\n"
        "    config.train.steps, config.run.wandb = 3, 'off'\n    return config\n"
    )
    assert "6,216" in run("count", "--config=mine.py", cwd=tmp_path, env=env).stdout
    run("train", "--config=mine.py", cwd=tmp_path, env=env)
    assert "393,216" in run("paper", "second-paper", cwd=tmp_path, env=env).stdout
    points = [(n, 0.7 + 12 / n**0.3) for n in (1e4, 3e4, 1e5, 3e5, 1e6, 3e6)]
    text = "".join(f"{n:.6g},{loss:.6f}\n" for n, loss in points)
    (tmp_path / "points.csv").write_text("params,loss\n" + text)
    said = run("fit", "points.csv", "--law=second-law", "--N=params", "--L=loss", cwd=tmp_path, env=env).stdout
    assert "alpha 0.3" in said
    wrong = run("count", "--config=mine.py", cwd=tmp_path, code=2)  # without the package
    assert "config.family: 'second-conv' is not one of" in wrong.stderr


def test_a_paper_and_a_law_of_the_user_s_folder(home, tmp_path):
    assert "393,216" in run("paper", home / "paper.py", cwd=tmp_path).stdout


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.tpu
def test_it_is_compiled_for_a_tpu(home, tmp_path, family):
    said = run("compile", f"--config={home / f'{family}_config.py'}", "--topology=v5e:2x2", cwd=tmp_path).stdout
    assert "GiB" in said


def test_a_family_that_lacks_an_export_is_named(tmp_path):
    (tmp_path / "mine.py").write_text("def get_config():\n    return {}\n")
    (tmp_path / "config.py").write_text(
        "from bigmodel import budget\ndef get_config():\n    return budget.base('./mine.py', 'text')\n"
    )
    said = run("count", "--config=config.py", cwd=tmp_path, code=2).stderr
    assert "mine.py' has no finalize" in said and said.count("\n") == 1
