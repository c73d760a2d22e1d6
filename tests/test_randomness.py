"""What is random is a function of (step, example): a batch whole, in micro-batches or over devices gives one loss."""

import json
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from split_worker import CASES

from bigmodel.errors import UsageError
from bigmodel.run import budget

FEW = ("decoder dropout", "encdec span")  # one of drawn zeros and one of drawn examples, in the default tests


def measured(tmp_path, which, *cases):
    out = tmp_path / "losses.json"
    command = [sys.executable, str(ROOT / "tests/split_worker.py"), str(out), which, *cases]
    done = subprocess.run(command, cwd=ROOT / "tests", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text())


def same(found):
    for case, by_split in found.items():
        whole = np.array(by_split["whole"])
        assert len(set(by_split["whole"])) == len(whole), case  # it learns, and draws anew at each step
        for split, losses in by_split.items():
            off = np.abs(np.array(losses) / whole - 1)
            assert off[0] <= 1e-6, (case, split, off[0])
            assert off.max() <= 1e-5, (case, split, off)


def test_losses_do_not_depend_on_how_a_step_is_carried_out(tmp_path):
    same(measured(tmp_path, "few", *FEW))


@pytest.mark.slow
def test_every_objective_has_one_loss_in_any_micro_batch_and_on_any_mesh(tmp_path):
    found = measured(tmp_path, "all")
    assert found.keys() == CASES.keys()
    same(found)


@pytest.mark.parametrize("key, value", [("microbatch", 4), ("noise_scale", True), ("batch_size", 1)])
def test_a_loss_that_reads_the_whole_batch_is_never_cut(digits, key, value):
    cfg = digits(("model.norm", "batchnorm"), (f"train.{key}", value))
    with pytest.raises(UsageError, match=f"train.{key}={value}: .*depends on the whole batch"):
        budget.finalize(cfg)
