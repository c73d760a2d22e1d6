"""What a command's exit code says: 0 only when all is done, 75 where the same command continues."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, TINY
from test_launch import calls, stubs, two_rows  # noqa: F401 (stubs: a fixture)

from bigmodel.cli import main
from bigmodel.run import claims
from bigmodel.study import status, sweep

SWEEP = '''"""Digits, small."""
CONFIG = "experiments/digits.py"
def get_sweep():
    return [{{"model.width": 4, "train.steps": {steps}, "train.seed": seed}} for seed in range(3)]
'''


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "small.py"
    path.write_text(SWEEP.format(steps=5))
    return path


def start(*args, **kwargs):
    return subprocess.Popen(
        [sys.executable, "-m", "bigmodel", *map(str, args)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
        **kwargs,
    )


def children(pid):
    """Pids of a process's children that are bigmodel commands."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = stat.read_text().rpartition(")")[2].split()[1]
            command = (stat.parent / "cmdline").read_text()
        except OSError:
            continue
        if parent == str(pid) and "bigmodel\0sweep" in command:
            found.append(int(stat.parent.name))
    return found


def until(condition, process, seconds=90):
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline and process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    return value


# ------------------------------------------------------------------------------------- sweep run


def test_sweep_run_asks_to_be_repeated_while_a_row_runs_elsewhere(file, tmp_path, capfd):
    folder = status.folder_of(str(file), str(tmp_path / "runs"))
    plan = sweep.make_plan(str(file), [("run.wandb", "off")])
    command = ["sweep", "run", str(file), f"--runs={tmp_path}/runs", "--config.run.wandb=off"]
    (folder / plan[1].run_id).mkdir(parents=True)
    with claims.claim(folder / plan[1].run_id):
        assert main.main(command) == 75
        assert "1 of 3 rows run elsewhere; the same command continues" in capfd.readouterr().err
    assert main.main(command) == 0


@pytest.mark.slow
def test_killed_workers_leave_75_and_rows_that_the_same_command_continues(file, tmp_path):
    file.write_text(SWEEP.format(steps=10**6))
    folder = tmp_path / "runs/small"
    parent = start(
        "sweep", "run", file, f"--runs={tmp_path}/runs", "--workers=2", "--config.run.wandb=off",
        "--config.data.epochs=1000000", stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        until(lambda: len(list(folder.glob("*/metrics.jsonl"))) == 2, parent)
        pair = children(parent.pid)
        assert len(pair) == 2
        if hasattr(os, "sched_getaffinity") and len(os.sched_getaffinity(0)) == 2:
            assert sorted(len(os.sched_getaffinity(pid)) for pid in pair) == [1, 1]
        for pid in pair:
            os.kill(pid, signal.SIGKILL)
        _, err = parent.communicate(timeout=60)
    finally:
        parent.kill()
    assert parent.returncode == 75, err
    assert "3 of 3 rows remain" in err and "the same command continues" in err
    assert "fork" not in err and "Warning" not in err


def test_failed_rows_of_workers_leave_1(file, tmp_path):
    file.write_text(
        SWEEP.format(steps=5).replace("for seed in range(3)", 'for seed in range(3)] + [{"train.steps": 7}')
    )
    folder = status.folder_of(str(file), str(tmp_path / "runs"))
    for item in sweep.make_plan(str(file), [("run.wandb", "off")])[:1]:
        (folder / item.run_id).mkdir(parents=True)
        (folder / item.run_id / "error.json").write_text('{"error": "planted"}')
    done = start("sweep", "run", file, f"--runs={tmp_path}/runs", "--workers=2", "--config.run.wandb=off",
                 stdout=subprocess.PIPE)  # fmt: skip
    out, err = done.communicate(timeout=120)
    assert done.returncode == 1 and "3 done" in out and "1 failed" in out, err
    assert "Warning" not in err


def test_sweep_run_whose_reader_leaves_is_not_done(file, tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    child = start("sweep", "run", file, f"--runs={tmp_path}/runs", "--config.run.wandb=off", stdout=writer)
    os.close(writer)
    _, err = child.communicate(timeout=120)
    assert len(list((tmp_path / "runs/small").glob("*/result.json"))) < 3
    assert child.returncode == 75 and "the same command continues" in err, err


def test_help_whose_reader_leaves_ends_quietly():
    reader, writer = os.pipe()
    os.close(reader)
    child = start("train", "--help", stdout=writer)
    os.close(writer)
    assert child.communicate(timeout=60)[1] == "" and child.returncode == 0


# ---------------------------------------------------------------------------------------- launch

WORKER = """#!/bin/bash
echo "$@" >> "$RECORD"
case "$*" in {cases} esac
"""


@pytest.mark.parametrize(
    ("first", "second", "code"),
    [
        ("exit 0", "exit 0", 0),
        ("exit 75", "exit 0", 75),
        ("kill -9 $$", "exit 0", 75),
        ("exit 75", "exit 1", 1),
        ("exit 127", "exit 0", 1),
    ],
)
def test_local_script_ends_with_what_its_rows_came_to(first, second, code, tmp_path, stubs):  # noqa: F811
    stubs("bigmodel", WORKER.format(cases=f"*0a) {first} ;; *) {second} ;;"))
    assert main.main(["launch", str(two_rows(tmp_path / "x")), "--engine=local"]) == code
    rows = (tmp_path / "record").read_text().split()
    assert rows.count("--run=1b") == 1 and rows.count("--run=0a") == (20 if first in ("exit 75", "kill -9 $$") else 1)


# ---------------------------------------------------------------------------------------- Ctrl-C


def caught(pid, signum):
    """Whether a process has a handler of a signal, which a Python process hasn't of SIGTERM until it asks for one."""
    (mask,) = [line.split()[1] for line in Path(f"/proc/{pid}/status").read_text().splitlines() if "SigCgt" in line]
    return int(mask, 16) >> (signum - 1) & 1


@pytest.fixture
def in_a_long_step(data_dir, tmp_path):
    """A run in the loop, whose steps take several seconds each."""
    flags = [f"--config.{k}={v}" for k, v in [*TINY, ("run.data_dir", data_dir), ("train.batch_size", 2**14)]]
    flags += ["--config.train.steps=100", "--config.data.epochs=100000000"]
    child = start("train", f"--config={ROOT}/experiments/gpt.py", *flags, f"--runs={tmp_path}/runs",
                  stdout=subprocess.DEVNULL)  # fmt: skip
    try:
        until(lambda: caught(child.pid, signal.SIGTERM), child)
        yield child, tmp_path / "runs"
    finally:
        child.kill()
        child.communicate()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_first_signal_is_answered_at_once_and_the_second_quits(signum, in_a_long_step):
    child, runs = in_a_long_step
    child.send_signal(signum)
    assert child.stderr.readline() == "bigmodel: saving after this step; again to quit now\n"
    answered = time.monotonic()
    time.sleep(0.6)
    child.send_signal(signum)
    assert child.wait(timeout=60) == 75
    assert time.monotonic() - answered < 2
    assert child.stderr.read() == "bigmodel: not saved; the same command continues from the last save\n"
    assert not list(runs.glob("*/checkpoints/[0-9]*"))


def test_signals_of_one_ctrl_c_count_once(in_a_long_step):
    """The terminal sends SIGINT to a sweep's worker, whose parent then sends SIGTERM: it saves."""
    child, runs = in_a_long_step
    child.send_signal(signal.SIGINT)
    child.send_signal(signal.SIGTERM)
    out = child.communicate(timeout=120)[1]
    assert child.returncode == 75 and "interrupted at step 1 of 100, saved" in out, out
    assert out.count("again to quit now") == 1
    assert list(runs.glob("*/checkpoints/1"))
