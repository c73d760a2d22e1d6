"""Faults of benchmarks/campaign.py: some seeds, those that failed once, and what was mended for them."""

import os
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

from bigmodel import errors, files

FAILED = [26]  # each was in a class that is none of the good ones


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


@pytest.mark.parametrize("number", files.FULL)
def test_a_full_disk_in_a_class_of_a_library(number):
    """What tensorstore raises has no errno, only the system's words; a limit or a quota has others than a full disk."""
    with pytest.raises(errors.Retry, match="disk full"), files.full_disk("runs"):
        raise ValueError(f"RESOURCE_EXHAUSTED: Error writing local file: {os.strerror(number)} [OS error {number}]")
