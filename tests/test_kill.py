"""kill -9 at random moments: the run that comes out is bitwise the undisturbed one."""

import os
import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from conftest import ROOT

from bigmodel import config, tree

TRIALS = 20
STEPS, EVERY = 300, 5


def command(config_file, runs):
    return [sys.executable, "-m", "bigmodel", "train", str(config_file), f"--runs={runs}"]


def start(config_file, runs):
    return subprocess.Popen(
        command(config_file, runs),
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def outcome(folder):
    """Final state, leaf by leaf, and the text of metrics.jsonl."""
    import orbax.checkpoint as ocp

    manager = ocp.CheckpointManager(folder / "checkpoints", options=ocp.CheckpointManagerOptions(read_only=True))
    step = manager.latest_step()
    state = manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore()))["state"]
    leaves = dict(zip(tree.paths(state), map(np.asarray, jax.tree.leaves(state)), strict=True))
    return leaves, (folder / "metrics.jsonl").read_bytes()


@pytest.mark.slow
def test_killed_at_random_moments_is_bitwise_the_undisturbed_run(tiny, tmp_path):
    cfg = tiny(train__steps=STEPS, run__checkpoint_every=EVERY, run__eval_every=60, optim__warmup=0.1)
    config_file = tmp_path / "config.json"
    config_file.write_text(config.to_json(cfg))
    assert start(config_file, tmp_path / "whole").wait() == 0
    (folder,) = (tmp_path / "whole").iterdir()
    state, metrics = outcome(folder)
    assert metrics.count(b"\n") == STEPS + STEPS // 60

    rng = random.Random(0)
    moments = {"before training": 0, "in training": 0, "while a checkpoint was being written": 0}
    for trial in range(TRIALS):
        runs = tmp_path / f"trial{trial}"
        child = start(config_file, runs)
        # A random step of the run, then a random moment; in every second trial, amid the next save.
        when = wait_for(child, runs / folder.name / "checkpoints", rng.randrange(STEPS), amid_save=trial % 2 == 0)
        time.sleep(rng.uniform(0, 0.02))
        assert child.poll() is None, "the run ended before its kill"
        child.send_signal(signal.SIGKILL)
        child.wait()
        moments[when] += 1
        child = start(config_file, runs)
        assert child.wait() == 0, child.stderr.read()
        again, rows = outcome(runs / folder.name)
        assert rows == metrics, f"trial {trial}: metrics differ"
        assert again.keys() == state.keys()
        for path in state:
            assert np.array_equal(again[path], state[path]), f"trial {trial}: {path} differs"
        assert not list((runs / folder.name / "checkpoints").glob("*tmp*")), "a torn checkpoint was left behind"
    print(moments)
    assert moments["while a checkpoint was being written"] >= 5
    assert moments["in training"] >= 5


def wait_for(child, folder, step, amid_save):
    """Until a checkpoint of `step` or later is there (and, then, one is being written). Says where that is."""
    while child.poll() is None:
        names = os.listdir(folder) if folder.is_dir() else []
        done = [int(n) for n in names if n.isdigit()]
        if step < EVERY or (done and max(done) >= step - EVERY):
            if not amid_save:
                return "in training" if done else "before training"
            if any("tmp" in n for n in names):
                return "while a checkpoint was being written"
        time.sleep(0.001)
    raise AssertionError(f"the run ended before step {step}: {child.stderr.read()}")
