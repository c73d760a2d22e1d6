"""Sweeps: rows, plans, runs that are skipped, retried, shared; state from files alone."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, TINY, bigmodel
from etils import epath
from test_captions import folder as captioned
from test_images import image_dir  # noqa: F401 (a fixture)
from test_tasks import reviews
from test_wrong_inputs import tree_of

from bigmodel.cli import main
from bigmodel.errors import Retry, UsageError
from bigmodel.run import budget, claims, optim, record, session
from bigmodel.study import status, sweep, workers

FILE = '''"""Digits, small."""
from bigmodel import sweep
CONFIG = "experiments/digits.py"
def get_sweep():
    return sweep.product({{"model.width": [4, 8], "train.steps": {steps}}})
'''


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "small.py"
    path.write_text(FILE.format(steps=[3, 5]))
    return str(path)


OFF = [("run.wandb", "off")]


def go(file, tmp_path, **kwargs):
    folder = status.folder_of(file, str(tmp_path / "runs"))
    plan = sweep.make_plan(file, OFF)
    sweep.write_plan(folder, plan, file, OFF)
    said = []
    return workers.run(file, plan, folder, say=said.append, **kwargs), folder, plan, said


def states(folder):
    return [row["state"] for row in status.status(folder)]


# --------------------------------------------------------------------------------- rows


def test_combinators():
    a, b = {"x": [1, 2]}, {"y": [3, 4]}
    assert sweep.product(a, b) == [{"x": 1, "y": 3}, {"x": 1, "y": 4}, {"x": 2, "y": 3}, {"x": 2, "y": 4}]
    assert sweep.product([{"x": 1, "z": 0}], b) == [{"x": 1, "z": 0, "y": 3}, {"x": 1, "z": 0, "y": 4}]
    assert sweep.zip_({"x": [1, 2], "y": [3, 4]}) == [{"x": 1, "y": 3}, {"x": 2, "y": 4}]
    assert sweep.chain([{"x": 1}], [{"y": 2}]) == [{"x": 1}, {"y": 2}]
    assert sweep.isoflop([{"x": 1}], [1e6, 2e6]) == [{"x": 1, "train.flops": 1e6}, {"x": 1, "train.flops": 2e6}]
    with pytest.raises(UsageError, match="different lengths"):
        sweep.zip_({"x": [1], "y": [3, 4]})


def test_a_ladder_is_the_familys_own():
    (small, large) = sweep.ladder("decoder", widths=[64, 512], depths=[3])
    assert small == {"model.width": 64, "model.depth": 3, "model.num_heads": 4}
    assert large["model.num_heads"] == 8


def test_a_row_may_have_its_own_experiment(data_dir, tmp_path):
    path = tmp_path / "two.py"
    path.write_text(
        'CONFIG = "experiments/prose.py"\ndef get_sweep():\n'
        '    return [{"model.width": 32}, {"experiment": "experiments/bert.py", "model.width": 32}, \n'
        '            {"experiment": "experiments/lstm.py", "model.cell": "rnn"}]\n'
    )
    more = [("run.data_dir", data_dir), ("data.name", "speech"), ("data.epochs", 9999)]
    plan = sweep.make_plan(str(path), more)
    assert [item.config.family for item in plan] == ["decoder", "bert", "recurrent"]
    assert [item.overrides.get("experiment") for item in plan] == [None, "bert", "lstm"]
    for wrong, said in (
        ("'experiments/brt.py'", "experiments/brt.py"),
        ("3", "experiment=3 is not the path of an experiment"),
    ):
        path.write_text(
            path.read_text().replace("'experiments/bert.py'", wrong).replace('"experiments/bert.py"', wrong)
        )
        with pytest.raises(UsageError, match=said):
            sweep.make_plan(str(path), more)
        path.write_text(path.read_text().replace(wrong, '"experiments/bert.py"'))


def test_isoflop_rows_cost_their_budget(tiny, data_dir, tmp_path):
    path = tmp_path / "iso.py"
    path.write_text(
        "from bigmodel import sweep\n"
        f"CONFIG = {str(ROOT / 'experiments/gpt.py')!r}\n"
        "def get_sweep():\n"
        "    return sweep.isoflop(sweep.ladder('decoder', [16, 32], [2]), [2e9, 8e9])\n"
    )
    overrides = [("run.data_dir", data_dir), ("data.name", "speech"), ("data.epochs", 9999), ("train.batch_size", 2)]
    plan = sweep.make_plan(str(path), overrides)
    for p, flops in zip(plan, [2e9, 2e9, 8e9, 8e9], strict=True):
        assert p.budget.flops == pytest.approx(flops, rel=0.05)
    assert plan[0].budget.tokens > 2 * plan[1].budget.tokens


def test_every_sweep_in_the_repository_plans(data_dir, image_dir, tmp_path, monkeypatch):  # noqa: F811
    (tmp_path / "prose-bpe").symlink_to(f"{data_dir}/speech")
    reviews(monkeypatch, tmp_path, 9000, str(tmp_path / "movie-reviews"), 0.02)
    (tmp_path / "movie-reviews-minilm").symlink_to(tmp_path / "movie-reviews")
    for name in ("prose-bytes", "chinese-bytes", "chinese-bpe"):
        (tmp_path / name).symlink_to(f"{data_dir}/speech")
    own = {
        name: [("run.data_dir", str(tmp_path)), ("data.epochs", 10**6)]
        for name in ("sentiment", "sentiment_prose", "corpora", "lora")
    }
    speech = [("run.data_dir", data_dir), ("data.name", "speech"), ("data.epochs", 10**6)]
    own["adapt"] = [*speech, ("data.examples", 100)]  # it has fewer windows than are asked for
    own["mlp"] = own["vision"] = [("run.data_dir", str(image_dir)), ("data.examples", 100), ("data.epochs", 10**6)]
    captioned(tmp_path / "mine")
    assert main.main(["prepare", str(tmp_path / "mine"), f"--out={tmp_path / 'captioned-bpe'}"]) == 0
    own["clip"] = [("run.data_dir", str(tmp_path)), ("data.examples", 0), ("data.epochs", 10**6)]
    own["dalle"] = [("run.data_dir", str(tmp_path)), ("data.epochs", 10**6)]
    monkeypatch.setattr(budget, "digest", lambda _: "0" * 64)
    plans = {}
    for path in sorted((ROOT / "sweeps").glob("*.py")):
        module = sweep.load(str(path))
        rows = module.get_sweep()
        assert rows and len({json.dumps(r, sort_keys=True) for r in rows}) == len(rows), path
        assert (ROOT / module.CONFIG.partition(":")[0]).is_file()
        plans[path.stem] = sweep.make_plan(str(path), own.get(path.stem, [] if "digits" in module.CONFIG else speech))
        starts = {row["start"] for row in rows if "start" in row} | {
            row["derive"][0] for row in rows if "derive" in row
        }
        assert len(plans[path.stem]) == len(rows) + len(starts), path
    plan = plans["demo"]
    assert len({p.config.model.width for p in plan}) >= 3
    assert len({p.config.model.depth for p in plan}) >= 2
    assert len({e for p in plan for e in optim.branch_steps(p.config.optim, p.budget.steps)}) >= 3  # amounts of data


# ---------------------------------------------------------------------------------- runs


def test_rows_that_start_from_a_run_wait_for_it(tmp_path, data_dir):
    """Whichever row a worker begins with; and it is the weights of that run that they start from."""
    file = tmp_path / "study.py"
    tiny = ["model.width=16", "model.depth=1", "data.seq_len=32", "data.epochs=1000", "train.batch_size=8"]
    tiny += ["data.name=speech", f"run.data_dir={data_dir}", "run.wandb=off", "train.tokens=0", "train.steps=3"]
    (tmp_path / "first.py").write_text(
        f"from bigmodel import config\ndef get_config():\n    c = config.load({str(ROOT / 'experiments/gpt.py')!r})\n"
        f"    config.override_all(c, [p.split('=') for p in {tiny!r}])\n    return c\n"
    )
    first = str(tmp_path / "first.py")
    file.write_text(
        f"CONFIG = {first!r}\ndef get_sweep():\n"
        f"    still = {{'optim.lr': 1e-12, 'optim.weight_decay': 0.0, 'train.steps': 1}}\n"
        f"    return [{{'start': {first!r}, **still, 'train.seed': s}} for s in (1, 2)] + [{{'train.seed': 3}}]\n"
    )
    runs = str(tmp_path / "runs")
    plan = sweep.make_plan(str(file), runs=runs)
    assert len(plan) == 4 and plan[0].config.train.init_from == ""
    assert all(p.config.train.init_from.endswith(plan[0].run_id) for p in plan[1:3])
    said = []
    tally = workers.run(str(file), plan, status.folder_of(str(file), runs), first=1, say=said.append)
    assert tally["trained"] == 4 and [line[1] for line in said] == ["4", "1", "2", "3"]
    results = [record.read_json(Path(runs) / "study" / p.run_id / "result.json") for p in plan]
    assert results[1]["loss"] == pytest.approx(results[0]["loss"], abs=1e-4)
    assert results[3]["loss"] != pytest.approx(results[0]["loss"], abs=1e-4)
    # Where the runs are is no part of what they are; nor is that the start has ended, however it did.
    assert [p.run_id for p in sweep.make_plan(str(file), runs=str(tmp_path / "x"))] == [p.run_id for p in plan]
    folder = Path(runs) / "study"
    home, broken = folder / plan[0].run_id, {**results[0], "status": "diverged", "last_good_step": 1}
    record.write_json(home / "result.json", broken)
    assert [p.run_id for p in sweep.make_plan(str(file), runs=runs)] == [p.run_id for p in plan]
    # Of a start that failed, nothing starts: one line says why.
    for p in plan[:3]:
        shutil.rmtree(folder / p.run_id)
    home.mkdir()
    record.write_json(home / "error.json", {"error": "no", "date": ""})
    said = []
    tally = workers.run(str(file), plan, status.folder_of(str(file), runs), first=1, say=said.append)
    assert tally == {"trained": 0, "skipped": 1, "failed": 3, "busy": 0}
    assert sum("no finished run there" in line for line in said) == 2
    tally = workers.run(str(file), plan, status.folder_of(str(file), runs), first=1, retry_failed=True, say=said.append)
    assert tally["trained"] == 3 and said[-3][1] == "1"


def test_plan_run_skip_and_extend(file, tmp_path):
    tally, folder, plan, said = go(file, tmp_path)
    assert tally == {"trained": 4, "skipped": 0, "failed": 0, "busy": 0}
    assert states(folder) == ["done"] * 4 and len(said) == 4
    before = {p: p.stat().st_mtime for p in (tmp_path / "runs").rglob("metrics.jsonl")}
    assert go(file, tmp_path)[0]["skipped"] == 4
    assert {p: p.stat().st_mtime for p in (tmp_path / "runs").rglob("metrics.jsonl")} == before
    with open(file, "w") as f:
        f.write(FILE.format(steps=[3, 5, 6]))
    tally, folder, plan, _ = go(file, tmp_path)
    assert (tally["trained"], tally["skipped"]) == (2, 4)
    assert len({p.run_id for p in plan}) == 6


def test_equal_rows_are_one_run(file, tmp_path):
    with open(file, "w") as f:
        f.write(FILE.format(steps=[3, 3]))
    assert len(sweep.make_plan(file, OFF)) == 2


def test_compilations_are_shared_between_rows_of_one_shape(file, tmp_path):
    from bigmodel.run import program

    program.build.cache_clear()
    go(file, tmp_path)
    assert program.build.cache_info().misses == 2  # widths; not steps


def test_a_failed_row_is_told_passed_over_and_retried_on_request(file, tmp_path, monkeypatch):

    real = session.attempt

    def broken(cfg, *args, **kwargs):
        if cfg.model.width == 4 and cfg.train.steps == 5:
            raise RuntimeError("planted")
        return real(cfg, *args, **kwargs)

    monkeypatch.setattr(session, "attempt", broken)
    tally, folder, _, said = go(file, tmp_path)
    assert (tally["trained"], tally["failed"]) == (3, 1)
    assert states(folder) == ["done", "failed", "done", "done"]
    assert "FAILED: RuntimeError: planted" in said[1]
    monkeypatch.setattr(session, "attempt", real)
    tally, folder, _, said = go(file, tmp_path)
    assert (tally["trained"], tally["failed"]) == (0, 1) and "--retry-failed" in said[0]
    tally, folder, _, _ = go(file, tmp_path, retry_failed=True)
    assert tally["trained"] == 1 and states(folder) == ["done"] * 4


def test_a_lost_device_fails_no_row(file, tmp_path, monkeypatch):
    """A GPU's sticky error: the row isn't to blame, and those after it would fail alike."""
    import jax

    def lost(*_, **__):
        raise RuntimeError("CUDA_ERROR_ILLEGAL_ADDRESS")

    with monkeypatch.context() as broken:
        broken.setattr(session, "attempt", lost)
        broken.setattr(jax, "block_until_ready", lost)
        with pytest.raises(Retry, match=r"the device is lost .*ILLEGAL_ADDRESS"):
            go(file, tmp_path)
    assert states(status.folder_of(file, str(tmp_path / "runs"))) == ["pending"] * 4
    tally, *_ = go(file, tmp_path)
    assert tally["trained"] == 4
    # The second time it is the row's fault, as far as anybody can tell.
    with monkeypatch.context() as broken:
        broken.setattr(session, "attempt", lost)
        broken.setattr(jax, "block_until_ready", lost)
        for said in ("the same command continues", "is passed over now"):
            with pytest.raises(Retry, match=said):
                go(file, tmp_path / "again")
    assert states(status.folder_of(file, str(tmp_path / "again/runs"))) == ["failed", *["pending"] * 3]


def test_a_row_that_another_process_holds_is_passed_over(file, tmp_path):
    folder = status.folder_of(file, str(tmp_path / "runs"))
    plan = sweep.make_plan(file, OFF)
    (folder / plan[2].run_id).mkdir(parents=True)
    with claims.claim(folder / plan[2].run_id):
        tally, *_ = go(file, tmp_path)
        assert (tally["trained"], tally["busy"]) == (3, 1)
        assert states(folder) == ["done", "done", "running", "done"]
    assert states(folder)[2] == "pending"


def test_two_workers_share_the_rows_and_train_none_twice(file, tmp_path):
    done = bigmodel("sweep", "run", file, f"--runs={tmp_path / 'runs'}", "--workers=2", "--config.run.wandb=off")
    assert done.returncode == 0, done.stderr
    folder = status.folder_of(file, str(tmp_path / "runs"))
    assert states(folder) == ["done"] * 4
    logs = "".join((p).read_text() for p in (tmp_path / "runs/small/workers").iterdir())
    assert sum(line.startswith("[") for line in logs.splitlines()) == 4, logs


def test_a_killed_sweep_continues(file, tmp_path):
    with open(file, "w") as f:
        f.write(FILE.format(steps=[20, 40, 60]))
    command = [sys.executable, "-m", "bigmodel", "sweep", "run", file, f"--runs={tmp_path / 'runs'}"]
    child = subprocess.Popen(
        [*command, "--config.run.wandb=off"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    folder = tmp_path / "runs/small"
    while not list(folder.glob("*/result.json")):
        assert child.poll() is None
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    finished = {p: p.read_bytes() for p in folder.glob("*/result.json")}
    assert 0 < len(finished) < 6
    tally, *_ = go(file, tmp_path)
    assert tally["trained"] == 6 - len(finished) and tally["skipped"] == len(finished)
    assert all(p.read_bytes() == text for p, text in finished.items())


# ----------------------------------------------------------------- what is outside the rows, and other plans


def test_missing_shard_ends_with_75_and_fails_no_row(data_dir, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(data_dir, "data")
    Path("study.py").write_text(
        f"CONFIG = {str(ROOT / 'experiments/gpt.py')!r}\n"
        f"def get_sweep():\n    return [{{**{dict(TINY)!r}, 'train.steps': n}} for n in (2, 3)]\n"
    )
    shard = Path("data/speech/train-00000.bin")
    for away in (lambda: shard.rename("away"), lambda: (shard.rename("away"), shard.symlink_to("nowhere"))):
        away()
        capfd.readouterr()
        assert main.main(["sweep", "run", "study.py"]) == 75
        line = capfd.readouterr().err.splitlines()[-1]
        assert "train-00000.bin' is missing" in line and "the same command continues" in line
        assert states(Path("runs/study")) == ["pending"] * 2
        assert not list(Path("runs").glob("study/*/error.json"))
        shard.unlink(missing_ok=True)
        Path("away").rename(shard)
    assert main.main(["sweep", "run", "study.py"]) == 0
    assert states(Path("runs/study")) == ["done"] * 2


def test_data_folder_that_is_gone_after_the_plan_fails_no_row(file, tmp_path, monkeypatch):
    from bigmodel.errors import NoData

    folder, plan = status.folder_of(file, str(tmp_path / "runs")), sweep.make_plan(file, OFF)

    monkeypatch.setattr(session, "attempt", lambda *_, **__: (_ for _ in ()).throw(NoData("no data")))
    sweep.write_plan(folder, plan, file, OFF)
    with pytest.raises(Retry, match="no data; the same command continues"):
        workers.run(file, plan, folder, say=print)
    assert states(folder) == ["pending"] * 4


def test_two_sweep_files_of_one_name_do_not_share_a_folder(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    for name, steps in (("a", [3]), ("b", [4])):
        Path(name).mkdir()
        Path(name, "lr.py").write_text(FILE.format(steps=steps).replace("experiments", str(ROOT / "experiments")))
    assert main.main(["sweep", "plan", "a/lr.py"]) == 0
    plan = Path("runs/lr/plan.jsonl").read_bytes()
    for action in ("plan", "run"):
        capfd.readouterr()
        assert main.main(["sweep", action, "b/lr.py"]) == 2
        out, err = capfd.readouterr()
        assert "a/lr.py" in err and "choose another --runs" in err and err.count("\n") == 1 and not out
        assert Path("runs/lr/plan.jsonl").read_bytes() == plan
    assert main.main(["sweep", "plan", "b/lr.py", "--runs=other"]) == 0


def test_plan_with_other_flags_changes_nothing_and_run_with_them_adds_rows(file, tmp_path, monkeypatch, capfd):
    runs, more = f"--runs={tmp_path}/runs", ["--config.run.wandb=off", "--config.model.depth=1"]
    assert main.main(["sweep", "run", file, runs, *more]) == 0
    folder = tmp_path / "runs/small"
    before, plan = tree_of(folder), (folder / "plan.jsonl").read_bytes()
    capfd.readouterr()
    assert main.main(["sweep", "plan", file, runs, *more, "--config.train.seed=1"]) == 0
    assert "lacks 4 of these 4 rows" in capfd.readouterr().err
    assert tree_of(folder) == before
    assert main.main(["sweep", "run", file, runs, *more, "--config.train.seed=1"]) == 0
    assert states(folder) == ["done"] * 8
    assert {json.loads(line)["run_id"] for line in plan.splitlines()} <= {r["run_id"] for r in status.status(folder)}
    # The file loses rows that are done: they are superseded, in status told of, and left out of fits.
    Path(file).write_text(FILE.format(steps=[3, 7]))
    assert main.main(["sweep", "run", file, runs, *more]) == 0
    rows = status.status(folder)
    assert [row["state"] for row in rows] == ["done"] * 10
    assert sum(bool(row["superseded"]) for row in rows if "superseded" in row) == 2
    capfd.readouterr()
    assert main.main(["fit", str(folder), "--bootstrap=0", "--holdout=0"]) == 0
    assert "2 runs of an earlier version of the sweep: left out (--earlier takes them)" in capfd.readouterr().out


# -------------------------------------------------------------------------------- as a user


@pytest.mark.slow
def test_plan_status_and_report_as_json_and_as_text(file, tmp_path):
    runs = f"--runs={tmp_path / 'runs'}"
    planned = bigmodel("sweep", "plan", file, runs, "--json")
    rows = json.loads(planned.stdout)
    assert len(rows) == 4 and all(r["expected_seconds"] > 0 and r["flops"] > 0 for r in rows)
    assert "pending" in bigmodel("sweep", "status", file, runs).stdout
    text = bigmodel("sweep", "plan", file, runs).stdout
    assert all(r["run_id"] in text for r in rows) and "4 runs" in text
    assert not list(epath.Path(tmp_path / "runs/small").glob("*/config.json"))
