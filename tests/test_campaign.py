"""Faults of benchmarks/campaign.py: some seeds, those that failed once, and what was mended for them."""

import os
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT
from etils import epath

from bigmodel import errors, files
from bigmodel.cli import main, plan
from bigmodel.study import status

FAILED = [26, 240, 672, 778, 795, 850]  # each was in a class that is none of the good ones


def campaign(tmp_path, seeds):
    """Prints a line for each fault that ends badly; 0: none."""
    command = [sys.executable, ROOT / "benchmarks/campaign.py", f"--seeds={seeds}", f"--work={tmp_path}"]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("unshare"), reason="needs mount namespaces")
def test_twenty_faults(tmp_path):
    done = campaign(tmp_path, "0:20")
    assert done.returncode == 0 and "| all | 20 |" in done.stdout, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("unshare"), reason="needs mount namespaces")
def test_faults_that_failed_once(tmp_path):
    done = campaign(tmp_path, ",".join(map(str, FAILED)))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.bucket
@pytest.mark.parametrize("seed", [1000, 1003, 1008, 1015], ids=["coordinator", "503", "slow", "refused"])
def test_lost_buckets_and_processes(seed, tmp_path):
    done = campaign(tmp_path, f"{seed}")
    assert done.returncode == 0 and "| all | 1 |" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("can't start new thread")])
def test_a_limit_of_memory_or_threads_ends_in_a_line(error, monkeypatch, capfd):
    """Seed 240."""

    def limited(*_):
        raise error

    monkeypatch.setattr(plan, "run", limited)
    assert main.main(["plan", "--law=fit.json", "--flops=1e15"]) == errors.EXIT_RETRY
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("bigmodel: this process may have no more memory or threads; the same command continues")


@pytest.mark.parametrize("number", files.FULL)
def test_a_full_disk_in_a_class_of_a_library(number):
    """What tensorstore raises has no errno, only the system's words; a limit or a quota has others than a full disk."""
    with pytest.raises(errors.Retry, match="disk full"), files.full_disk("runs"):
        raise ValueError(f"RESOURCE_EXHAUSTED: Error writing local file: {os.strerror(number)} [OS error {number}]")


@pytest.mark.parametrize("content", [None, b""])
def test_lost_rows_of_an_interrupted_run_are_told(content, tmp_path, capfd):
    """A run saves its rows before a checkpoint: one with checkpoints has rows."""
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.json").write_text("{}")
    if content is not None:
        (tmp_path / "metrics.jsonl").write_bytes(content)
    errors.noted.clear()
    assert status.state_of(epath.Path(tmp_path)) == {"state": "interrupted", "last": None}
    assert not capfd.readouterr().err
    (tmp_path / "checkpoints/5").mkdir()
    status.state_of(epath.Path(tmp_path))
    assert "metrics.jsonl' is missing or empty, though checkpoints are there" in capfd.readouterr().err
