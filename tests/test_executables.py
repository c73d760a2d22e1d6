"""A compiled step in a file: the same losses without compiling, and only where it is the run's own program."""

import dataclasses
import hashlib
import json
import pickle
import subprocess
import sys

import pytest
from conftest import ROOT, TINY, bigmodel
from test_worker import planned

from bigmodel import config
from bigmodel.errors import UsageError
from bigmodel.ops import sharding
from bigmodel.pods import aot
from bigmodel.run import budget, executables, program, session

OVERRIDES = [("train.steps", 4), ("optim.lr", 3e-3)]


def save_step(experiment, pairs, path):
    """The compiled step of a config, in a file."""
    frozen = budget.finalize(config.load(experiment, pairs))
    mesh = sharding.make_mesh(frozen.run.mesh)
    aot.lower(frozen, mesh).compile()  # into JAX's cache, from which a CPU's step can't be saved
    program.build.cache_clear()  # nor is it the executable that this process now has
    with executables.uncached():
        compiled = aot.lower(frozen, mesh).compile()
    executables.save(str(path), compiled, executables.made_for(program.static_part(frozen), mesh))
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory, data_dir):
    pairs = [*TINY, ("run.data_dir", data_dir), *OVERRIDES]
    return save_step(ROOT / "experiments/gpt.py", pairs, tmp_path_factory.mktemp("saved") / "step.executable")


@pytest.fixture
def saved(made, tmp_path):
    """(overrides of a run that reads it, a copy of the file)."""
    path = tmp_path / made.name
    path.write_bytes(made.read_bytes())
    return [*OVERRIDES, ("run.executable", str(path))], path


def losses(root):
    (path,) = root.glob("*/metrics.jsonl")
    return [row["loss"] for row in map(json.loads, path.read_text().splitlines()) if "loss" in row]


@pytest.mark.slow
def test_a_saved_step_has_the_losses_of_a_compiled_one(saved, tiny, tmp_path, monkeypatch):
    overrides, _ = saved
    session.train(tiny(*overrides[:-1]), str(tmp_path / "compiled"), quiet=True)

    (tmp_path / "config.json").write_text(json.dumps(tiny(*overrides).to_dict()))
    command = [
        sys.executable,
        "-m",
        "bigmodel",
        "train",
        str(tmp_path / "config.json"),
        "--runs",
        str(tmp_path / "other"),
        f"--config.run.executable={overrides[-1][1]}",
    ]
    subprocess.run(command, check=True, capture_output=True)
    (stored,) = (tmp_path / "other").glob("*/config.json")
    assert json.loads(stored.read_text())["run"]["executable"] == ""
    assert losses(tmp_path / "other") == losses(tmp_path / "compiled") and len(losses(tmp_path / "other")) == 4

    build = program.build

    def without_step(static, mesh):
        def step(*args):
            raise AssertionError("the step was compiled")

        return dataclasses.replace(build(static, mesh), step=step)

    monkeypatch.setattr(program, "build", without_step)
    session.train(
        tiny(*overrides, ("optim.lr", 1e-3)), str(tmp_path / "rate"), quiet=True
    )  # not compiled: one serves all
    assert losses(tmp_path / "rate")[0] == losses(tmp_path / "compiled")[0]
    assert losses(tmp_path / "rate")[2:] != losses(tmp_path / "compiled")[2:]


def test_a_step_of_another_program_is_refused(saved, tiny, tmp_path, monkeypatch):
    overrides, path = saved
    root = str(tmp_path / "runs")

    def refused(*more):
        with pytest.raises(UsageError) as e:
            session.train(tiny(*overrides, *more), root, quiet=True)
        assert not (tmp_path / "runs").exists()
        return str(e.value)

    assert "another model, optimizer or batch: compile it again" in refused(("model.width", 64))
    assert "no such file" in refused(("run.executable", f"{path}s"))
    whole = path.read_bytes()
    path.write_bytes(whole[:-1000])
    assert "is damaged: its checksum differs; compile it again" in refused()
    head, _, payload = whole.partition(b"\n")
    digest = {"sha256": hashlib.sha256(payload[:-1000]).hexdigest()}
    path.write_bytes(json.dumps(json.loads(head) | digest).encode() + b"\n" + payload[:-1000])
    assert "can't be loaded here" in refused()
    path.write_bytes(whole[whole.index(b"\n") :])
    assert "not what `bigmodel compile --save` writes" in refused()
    for head in (b"[]", b'{"step": 1}'):
        path.write_bytes(head + whole[whole.index(b"\n") :])
        assert "not what `bigmodel compile --save` writes" in refused()
    path.write_bytes(whole.replace(b'"fsdp": 1', b'"fsdp": 8', 1))
    assert "another mesh" in refused() and "'fsdp': 8" in refused()
    path.write_bytes(whole)
    monkeypatch.setattr(executables, "sources", lambda: "changed")
    assert "another version of bigmodel" in refused()


class Evil:
    """Unpickling it makes a file."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (open, (str(self.mark), "w"))


@pytest.fixture
def evil(tiny, tmp_path):
    """(a config that names a saved step whose first line is right and whose pickle makes a file, that file)."""
    mark, path = tmp_path / "ran", tmp_path / "evil.executable"
    cfg = tiny(*OVERRIDES, ("run.executable", str(path)))
    frozen = budget.finalize(config.from_json(config.to_json(cfg)))
    head = executables.made_for(program.static_part(frozen), sharding.make_mesh(frozen.run.mesh))
    path.write_bytes(json.dumps(head).encode() + b"\n" + pickle.dumps(Evil(mark)))
    return cfg, mark


def test_config_json_that_names_a_saved_step_runs_no_code(evil, tmp_path):
    cfg, mark = evil
    (tmp_path / "config.json").write_text(config.to_json(cfg))
    done = bigmodel("train", tmp_path / "config.json", f"--runs={tmp_path}/runs")
    assert not mark.exists()
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "run.executable" in line]
    assert "config.json' names run.executable=" in line and "ignored" in line
    (stored,) = (tmp_path / "runs").glob("*/config.json")
    assert json.loads(stored.read_text())["run"]["executable"] == ""


def test_planned_row_that_names_a_saved_step_runs_no_code(evil, tmp_path):
    cfg, mark = evil
    folder = planned(tmp_path, cfg, 1)
    row = json.loads((folder / "plan.jsonl").read_text().splitlines()[0])
    done = bigmodel("worker", folder, "--index=0")
    assert row["config"]["run"]["executable"] and not mark.exists()
    assert done.returncode == 0 and "plan.jsonl' names run.executable=" in done.stderr, done.stderr


def test_saved_step_of_the_command_line_replaces_the_one_of_the_file_without_a_notice(evil, tmp_path, capfd):
    cfg, _ = evil
    (tmp_path / "config.json").write_text(config.to_json(cfg))
    loaded = config.load(tmp_path / "config.json", [("run.executable", "mine.executable")])
    assert loaded.run.executable == "mine.executable" and not capfd.readouterr().err
