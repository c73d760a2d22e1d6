"""kill -9 at random moments: the run that comes out is bitwise the undisturbed one."""

import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from bigmodel import config, tree
from conftest import ROOT

TRIALS = 20


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
    return dict(zip(tree.paths(state), map(np.asarray, __import__("jax").tree.leaves(state)), strict=True)), (
        folder / "metrics.jsonl"
    ).read_bytes()


@pytest.mark.slow
def test_killed_at_random_moments_is_bitwise_the_undisturbed_run(tiny, tmp_path):
    cfg = tiny(train__steps=400, run__checkpoint_every=7, run__eval_every=60, optim__warmup=0.1)
    config_file = tmp_path / "config.json"
    config_file.write_text(config.to_json(cfg))
    began = time.time()
    assert start(config_file, tmp_path / "whole").wait() == 0
    whole = time.time() - began
    (folder,) = (tmp_path / "whole").iterdir()
    state, metrics = outcome(folder)
    assert metrics.count(b"\n") == 400 + 400 // 60 + 1

    rng = random.Random(0)
    interrupted = 0
    for trial in range(TRIALS):
        runs = tmp_path / f"trial{trial}"
        kills = 0
        while True:  # one kill a trial, two in every fourth
            child = start(config_file, runs)
            if kills <= trial % 4 // 3:
                # Imports take a third of the time; kills belong into training, saving and evaluating.
                time.sleep(rng.uniform(0.3 * whole, 0.95 * whole))
                if child.poll() is None:
                    child.send_signal(signal.SIGKILL)
                    child.wait()
                    kills += 1
                    continue
            assert child.wait() == 0, child.stderr.read()
            break
        interrupted += kills > 0
        again, rows = outcome(runs / folder.name)
        assert rows == metrics, f"trial {trial}: metrics differ"
        assert again.keys() == state.keys()
        for path in state:
            assert np.array_equal(again[path], state[path]), f"trial {trial}: {path} differs"
    assert interrupted >= TRIALS * 0.75, "most trials ended before their kill"
