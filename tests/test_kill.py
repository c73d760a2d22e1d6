"""kill -9 at random moments of train, sweep run, prepare and report: the same command ends as the undisturbed one did.

`pytest -m slow tests/test_kill.py` kills each of them TRIALS times.
"""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from conftest import ROOT

from bigmodel import config, tree

TRIALS = 15
STEPS, EVERY = 300, 5


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "bigmodel", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def kill(child):
    assert child.poll() is None, "it ended before its kill"
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stderr.close()


def ended(child):
    error = child.communicate(timeout=300)[1]
    assert child.returncode == 0, error


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
    ended(start("train", config_file, f"--runs={tmp_path}/whole"))
    (folder,) = (tmp_path / "whole").iterdir()
    state, metrics = outcome(folder)
    assert metrics.count(b"\n") == STEPS + STEPS // 60

    rng = random.Random(0)
    moments = {"before training": 0, "in training": 0, "while a checkpoint was being written": 0}
    for trial in range(TRIALS):
        runs = tmp_path / f"trial{trial}"
        child = start("train", config_file, f"--runs={runs}")
        # A random step of the run, then a random moment; in every second trial, amid the next save.
        when = wait_for(child, runs / folder.name / "checkpoints", rng.randrange(STEPS), amid_save=trial % 2 == 0)
        time.sleep(rng.uniform(0, 0.02))
        kill(child)
        moments[when] += 1
        ended(start("train", config_file, f"--runs={runs}"))
        again, rows = outcome(runs / folder.name)
        assert rows == metrics, f"trial {trial}: metrics differ"
        assert again.keys() == state.keys()
        for path in state:
            assert np.array_equal(again[path], state[path]), f"trial {trial}: {path} differs"
        assert not list((runs / folder.name / "checkpoints").glob("*tmp*")), "a torn checkpoint was left behind"
    print("train:", moments)
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


# ------------------------------------------------------------------------- sweep run, prepare, report


CLOCK = re.compile(r'"(wall_seconds|date|crc32|git_sha|git_dirty)": [^,\n}]*')


def content(folder):
    """Every file below `folder` but for what the clock says; of each run's newest checkpoint the CRC-32s of the arrays.

    A kill between the last save and the removal of the one before it leaves both.
    """
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = str(path.relative_to(folder))
        if "checkpoints" in path.parts:
            step = path.parts[path.parts.index("checkpoints") + 1]
            newest = max((int(p.name) for p in path.parents[2].iterdir() if p.name.isdigit()), default=-1)
            if name.endswith("meta/metadata") and step == str(newest):
                found[name] = json.loads(path.read_bytes())["arrays"]
        elif path.name not in ("speed.jsonl", "attempts.jsonl", "git.diff"):
            data = path.read_bytes()
            found[name] = CLOCK.sub("", data.decode()) if path.suffix in (".json", ".jsonl") else data
    return found


def kills(command, out, marks):
    """Kills `command`, which writes into the folder `out`, soon after a random one of the files `marks` was there."""
    began = time.monotonic()
    ended(start(*command))
    whole, rng, moments = content(out), random.Random(1), []
    seconds = time.monotonic() - began
    assert whole
    while len(moments) < TRIALS:
        shutil.rmtree(out)
        number = rng.randrange(len(marks) + 1)
        child = start(*command)
        until = time.monotonic() + 10 * seconds
        while number and child.poll() is None and time.monotonic() < until:
            if sum(bool(list(out.glob(mark))) for mark in marks) >= number:
                break
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.1) if number else rng.uniform(0, seconds / 2))
        if child.poll() is not None:  # ended before its kill
            ended(child)
            continue
        kill(child)
        moments.append(sum(p.is_file() for p in out.rglob("*")) if out.exists() else 0)
        ended(start(*command))
        again = content(out)
        assert again.keys() == whole.keys(), f"kill {len(moments)}: {sorted(again.keys() ^ whole.keys())}"
        assert [k for k in whole if again[k] != whole[k]] == [], f"kill {len(moments)}"
    print(f"{command[0]}: {TRIALS} kills, with this many files there: {moments}, of {len(whole)} at the end")
    assert len(set(moments)) >= 3


STUDY = f"""
CONFIG = {str(ROOT / "experiments/digits.py")!r}
def get_sweep():
    base = {{"run.wandb": "off", "run.checkpoint_every": 20}}
    return [{{**base, "model.width": w, "train.steps": n}} for w in (4, 8) for n in (60, 120, 180)]
"""


@pytest.mark.slow
def test_sweep_killed_at_random_moments_is_the_undisturbed_one(tmp_path):
    (tmp_path / "study.py").write_text(STUDY)
    folder = tmp_path / "runs/study"
    rows = [f"*/{mark}" for mark in ("config.json", "metrics.jsonl", "checkpoints/20", "checkpoints/40", "result.json")]
    kills(["sweep", "run", tmp_path / "study.py", f"--runs={tmp_path}/runs"], folder, ["plan.jsonl", *rows])
    assert len(list(folder.glob("*/result.json"))) == 6 and not list(folder.glob("*/error.json"))


@pytest.mark.slow
def test_prepare_killed_at_random_moments_is_the_undisturbed_one(tmp_path):
    text = "".join(p.read_text() for p in sorted((ROOT / "tests/data").glob("*.txt")))
    (tmp_path / "texts").mkdir()
    for k in range(40):
        (tmp_path / f"texts/{k}.txt").write_text(f"{k} {text}")
    command = ["prepare", tmp_path / "texts", f"--out={tmp_path}/out", "--tokenizer=bpe", "--workers=2"]
    marks = [".work/documents.txt", "tokenizer.json", ".work/train-*.bin", "train-00000.receipt.json", "manifest.json"]
    kills(command, tmp_path / "out", marks)
    assert not (tmp_path / "out/.work").exists()


@pytest.mark.slow
def test_report_killed_at_random_moments_is_the_undisturbed_one(tmp_path):
    for i, (n, d) in enumerate((n, d) for n in (10**4, 10**5, 10**6) for d in (10**6, 10**7, 10**8)):
        row = dict(params=n, tokens=d, loss=2 + 10 * n**-0.3 + 20 * d**-0.3 + 0.01 * (i % 3), flops=6 * n * d)
        (tmp_path / f"runs/{i}").mkdir(parents=True)
        row |= dict(unit="tokens", status="done", run_id=str(i), params_nonembedding=n)
        (tmp_path / f"runs/{i}/result.json").write_text(json.dumps(row))
    out = tmp_path / "out"
    kills(
        ["report", tmp_path / "runs", f"--out={out}"], out, ["figures/*.png", "figures/*.pdf", "rows.csv", "fit.json"]
    )
