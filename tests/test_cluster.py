"""A real Slurm, two nodes on this host: `make test-cluster`. Needs root, and Debian's slurm-wlm and munge."""

import time

import pytest
from conftest import ROOT, bigmodel
from slurm import Slurm, available
from test_worker import home, planned

from bigmodel.run import record
from bigmodel.study import status

pytestmark = pytest.mark.cluster
ROWS = 12
FINAL = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL"}


def losses(folder, index):
    rows = record.read_rows(home(folder, index) / "metrics.jsonl")
    return [(r["step"], r["loss"]) for r in rows if "loss" in r]


def newest(folder, index):
    saves = home(folder, index) / "checkpoints"
    return max((int(p.name) for p in saves.iterdir() if p.name.isdigit()), default=0) if saves.exists() else 0


def consistent(folder, seen):
    """Whether each row is told as its files say; a row never goes back from done, and its checkpoints only grow."""
    rows = status.status(folder)
    for i, row in enumerate(rows):
        finished = (home(folder, i) / "result.json").exists()
        if row["state"] == "done":
            assert finished
        assert seen.get(i) != "done" or row["state"] == "done", (i, row["state"])
        assert row["state"] in ("pending", "running", "interrupted", "done"), row
        seen[i] = row["state"]
    return [row["state"] for row in rows]


def test_a_sweep_survives_the_loss_of_a_node(tmp_path, tiny):
    """12 rows of 2 processes on 2 nodes; one is killed whole amid the sweep, and comes back. Nobody lends a hand."""
    if reason := available():
        pytest.fail(f"no Slurm here: {reason}")
    cfg = tiny(("train.steps", 400), ("run.checkpoint_every", 40), ("data.epochs", 10**6))
    folder = planned(tmp_path, cfg, ROWS)
    with Slurm(tmp_path / "slurm") as cluster:
        env = {**cluster.env, "PYTHONPATH": str(ROOT), "BIGMODEL_HEARTBEAT": "10", "BIGMODEL_INIT_TIMEOUT": "60"}
        asked = bigmodel(
            "launch", folder, "--engine=slurm", "--processes=2", "--max=2", "--host-devices=1", "--time=01:00:00",
            env=env,
        )  # fmt: skip
        assert asked.returncode == 0 and "Submitted batch job" in asked.stdout, asked.stderr
        seen, killed, began = {}, False, time.time()
        while time.time() - began < 1500:
            states = consistent(folder, seen)
            if states.count("done") == ROWS:
                break
            running = [i for i, s in enumerate(states) if s == "running"]
            saved = {i: newest(folder, i) for i in running if newest(folder, i)}
            if not killed and states.count("done") >= 2 and saved:
                before = saved
                cluster.kill_node("n1")
                killed = True
                cluster.start_node("n1")
            time.sleep(0.5)
        assert killed and states.count("done") == ROWS, (states, cluster.jobs())
        restarted = 0
        for i in range(ROWS):
            attempts = record.read_rows(home(folder, i) / "attempts.jsonl")
            steps = [a["step"] for a in attempts]
            restarted += len(steps) - 1
            assert steps == sorted(steps) and steps[0] == 0 and all(a["processes"] == 2 for a in attempts), attempts
            if i in before:
                assert len(steps) > 1 and steps[1] >= before[i] > 0, (i, steps, before[i])
        assert restarted >= 1
        print(f"{restarted} restarts, {time.time() - began:.0f} s")
    whole = tmp_path / "undisturbed"
    whole.mkdir()
    (whole / "plan.jsonl").write_text((folder / "plan.jsonl").read_text())
    from test_worker import start

    for i in before:  # the rows that were hit, without any disturbance
        pair = start(whole, i, 2)
        assert [p.wait(timeout=300) for p in pair] == [0, 0]
        a, b = losses(folder, i), losses(whole, i)
        assert [s for s, _ in a] == [s for s, _ in b]
        assert max(abs(x / y - 1) for (_, x), (_, y) in zip(a, b, strict=True)) < 1e-6


def test_nodes_with_gpus_run_a_process_for_each(tmp_path, tiny):
    """Slurm counts device files as GPUs: two processes a node, of which JAX joins all four."""
    if reason := available():
        pytest.fail(f"no Slurm here: {reason}")
    folder = planned(tmp_path, tiny(), 1)
    with Slurm(tmp_path / "slurm", gpus=2) as cluster:
        env = {**cluster.env, "PYTHONPATH": str(ROOT)}
        options = ("--processes=2", "--gpus=2", "--time=01:00:00", "--option=--exclusive")
        asked = bigmodel("launch", folder, "--engine=slurm", *options, env=env)
        assert asked.returncode == 0, asked.stderr
        cluster.wait(lambda: status.status(folder)[0]["state"] == "done", 300, "the row's end")
        cluster.wait(lambda: cluster.jobs()[0]["state"] == "COMPLETED", 60, "the job's end")
        (attempt,) = record.read_rows(home(folder) / "attempts.jsonl")
        assert attempt["processes"] == 4
        (log,) = (folder / "launch").glob("*_0.log")
        assert "loss" in log.read_text()
