"""On a GPU or TPU, where there is one: the same losses as on a CPU, and a killed run goes on where it was.

pytest tests/test_accelerator.py -m accelerator
"""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT, TINY

from bigmodel import config

pytestmark = pytest.mark.accelerator
# float32 products as on a CPU; a GPU's default multiplies them in TensorFloat-32. Scatters that add in one order.
EXACT = {"JAX_DEFAULT_MATMUL_PRECISION": "highest", "XLA_FLAGS": "--xla_gpu_deterministic_ops=true"}


def environment(platform):
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    env = {k: v for k, v in os.environ.items() if k not in ("JAX_PLATFORMS", "XLA_FLAGS")}
    env |= {"PYTHONPATH": path, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    return {**env, **(EXACT if platform == "accelerator" else {"JAX_PLATFORMS": "cpu"})}


@pytest.fixture(scope="module", autouse=True)
def device():
    """The accelerator's name; without one, nothing here can be tested."""
    code = "import jax; print(jax.default_backend(), jax.devices()[0].device_kind)"
    found = subprocess.run([sys.executable, "-c", code], env=environment("accelerator"), capture_output=True, text=True)
    assert found.returncode == 0, found.stderr  # a device that can't be used isn't none
    if found.stdout.startswith("cpu"):
        pytest.skip("no accelerator")
    return found.stdout.split(maxsplit=1)[1].strip()


def start(config_file, runs, platform):
    command = [sys.executable, "-m", "bigmodel", "train", str(config_file), f"--runs={runs}"]
    log = open(config_file.with_suffix(".log"), "a")  # noqa: SIM115 (the child's; a pipe might fill)
    return subprocess.Popen(command, cwd=ROOT, env=environment(platform), stdout=log, stderr=log)


def losses(folder):
    (run,) = folder.iterdir()
    return [row["loss"] for line in (run / "metrics.jsonl").open() if "loss" in (row := json.loads(line))]


@pytest.mark.parametrize("experiment", ["gpt", "bert", "encdec", "lstm", "digits"])
def test_a_family_learns_as_on_a_cpu(experiment, data_dir, tmp_path, device):
    pairs = [(k, v) for k, v in TINY if experiment != "lstm" or k != "model.num_heads"]
    pairs = [*pairs, ("run.data_dir", data_dir)]
    if experiment == "digits":
        pairs = [("train.tokens", 0), ("train.steps", 12), ("run.wandb", "off")]
    config_file = tmp_path / "config.json"
    config_file.write_text(config.to_json(config.load(ROOT / f"experiments/{experiment}.py", pairs)))
    for platform in ("cpu", "accelerator"):
        assert start(config_file, tmp_path / platform, platform).wait() == 0, config_file.with_suffix(
            ".log"
        ).read_text()
    (run,) = (tmp_path / "accelerator").iterdir()
    assert json.loads((run / "result.json").read_text())["device"] == device
    ours, theirs = losses(tmp_path / "accelerator"), losses(tmp_path / "cpu")
    assert len(ours) == 12 and abs(np.array(ours) / np.array(theirs) - 1).max() < 1e-3


def test_a_killed_run_goes_on_where_it_was(tiny, tmp_path):
    """To rounding: XLA may choose other kernels for each process, whose sums differ in their last digits."""
    config_file = tmp_path / "config.json"
    config_file.write_text(config.to_json(tiny(train__steps=300, run__checkpoint_every=20, optim__warmup=0.1)))
    assert start(config_file, tmp_path / "whole", "accelerator").wait() == 0
    process = start(config_file, tmp_path / "killed", "accelerator")
    while process.poll() is None:
        if any(len(f.read_bytes().splitlines()) > 50 for f in (tmp_path / "killed").glob("*/metrics.jsonl")):
            process.send_signal(signal.SIGKILL)
            process.wait()
        time.sleep(0.002)
    assert process.returncode == -signal.SIGKILL  # it was killed before its end
    assert start(config_file, tmp_path / "killed", "accelerator").wait() == 0
    whole, killed = losses(tmp_path / "whole"), losses(tmp_path / "killed")
    assert len(whole) == len(killed) == 300 and abs(np.array(killed) / np.array(whole) - 1).max() < 1e-3
