"""One row to its end: claims, exit codes, several processes, and what happens when they are killed or freeze."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
from conftest import ROOT, bigmodel

from bigmodel import config, errors, files, launch
from bigmodel.cli import main
from bigmodel.errors import Busy, UsageError
from bigmodel.run import claims, objects, record
from bigmodel.study import status, sweep

SWEEP = """
CONFIG = {experiment!r}
def get_sweep():
    return [{{"train.seed": seed, **{row!r}}} for seed in range({rows})]
"""


def planned(tmp_path, cfg, rows, row=()):
    """A folder with a plan of so many seeds of a config."""
    file = tmp_path / "seeds.py"
    experiment = tmp_path / "experiment.py"
    experiment.write_text(
        f"from bigmodel import config\ndef get_config():\n    return config.from_json({config.to_json(cfg)!r})\n"
    )
    file.write_text(SWEEP.format(experiment=str(experiment), row=dict(row), rows=rows))
    folder = status.folder_of(str(file), str(tmp_path / "runs"))
    sweep.write_plan(folder, sweep.make_plan(str(file), (), str(tmp_path / "runs")), str(file), ())
    return folder


def port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def start(folder, index, processes=1, env=(), *more):
    """The processes of one row, as an engine starts them."""
    several = [f"--coordinator=127.0.0.1:{port()}", f"--processes={processes}"] if processes > 1 else []
    return [
        subprocess.Popen(
            [sys.executable, "-m", "bigmodel", "worker", str(folder), f"--run={home(folder, index).name}",
             "--host-devices=1", *several, *([f"--process={k}"] if several else []), *more],
            cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT), **dict(env)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for k in range(processes)
    ]  # fmt: skip


def home(folder, index=0):
    return folder / launch.row_of(folder, index=index)["run_id"]


# ------------------------------------------------------------------------------------ claims


def test_a_worker_trains_its_row_once(tmp_path, tiny):
    folder = planned(tmp_path, tiny(), 2)
    first = bigmodel("worker", folder, f"--run={home(folder, 1).name}")
    assert first.returncode == 0 and "loss" in first.stdout
    again = bigmodel("worker", folder, env={"SLURM_ARRAY_TASK_ID": "1"})
    assert again.returncode == 0 and "finished before" in again.stdout
    assert [r["step"] for r in record.read_rows(home(folder, 1) / "attempts.jsonl")] == [0]
    assert [row["state"] for row in status.status(folder)] == ["pending", "done"]
    assert not home(folder, 0).exists()
    for args, text in (
        (["worker", folder, "--index=2"], "has rows 0 to 1"),
        (["worker", folder], "give --run=ID"),
        (["worker", folder, "--index=0", "--config.train.seed=7"], "would make another row"),
        (["worker", folder, "--index=0", "--config.run.mesh.fsdp=3"], "doesn't fill the 1 devices"),
        (["worker", tmp_path, "--index=0"], "no plan at"),
    ):
        wrong = bigmodel(*args)
        assert wrong.returncode == 2 and text in wrong.stderr and wrong.stderr.count("\n") == 1


def test_a_row_that_can_t_be_trained_ends_with_1_and_says_why(tmp_path, tiny):
    folder = planned(tmp_path, tiny(), 1)
    row = json.loads((folder / "plan.jsonl").read_text().replace('"speech"', '"speeches"'))
    (folder / "plan.jsonl").write_text(json.dumps(files.sealed(row)) + "\n")
    wrong = bigmodel("worker", folder, "--index=0")
    assert wrong.returncode == 1 and "no prepared data" in wrong.stderr and wrong.stderr.count("\n") == 1
    assert "no prepared data" in record.read_json(home(folder) / "error.json")["error"]
    assert status.status(folder)[0]["state"] == "failed"


def test_a_held_row_asks_to_be_tried_again(tmp_path, tiny):
    folder = planned(tmp_path, tiny(), 1)
    home(folder).mkdir(parents=True)
    with claims.claim(home(folder)):
        busy = bigmodel("worker", folder, "--index=0")
    assert busy.returncode == 75 and "another process is training this run" in busy.stderr


def race(folder, index, barrier, out):
    from bigmodel.run import session

    os.environ["JAX_PLATFORMS"] = "cpu"
    row = launch.row_of(folder, index=0)
    for seed in range(index):
        cfg = config.ConfigDict(row["config"])
        cfg.train.seed = seed
        barrier.wait()
        try:
            _, trained = session.attempt(config.from_json(config.to_json(cfg)), str(folder), quiet=True)
        except Busy:
            trained = False
        out.put((seed, trained))
        barrier.wait()


@pytest.mark.slow
def test_of_two_workers_started_together_100_times_exactly_one_trains(tmp_path, digits):
    folder = planned(tmp_path, digits(), 1)
    context = multiprocessing.get_context("spawn")
    barrier, out, rounds = context.Barrier(2), context.Queue(), 100
    pair = [context.Process(target=race, args=(folder, rounds, barrier, out)) for _ in range(2)]
    for p in pair:
        p.start()
    found = [out.get(timeout=300) for _ in range(2 * rounds)]
    for p in pair:
        p.join()
    for seed in range(rounds):
        assert sorted(trained for s, trained in found if s == seed) == [False, True], seed
    runs = [p for p in folder.iterdir() if p.is_dir()]
    assert len(runs) == rounds
    assert all(len(record.read_rows(p / "attempts.jsonl")) == 1 for p in runs)


class DiskStore(objects._Gcs):
    """A folder of this disk with the conditional writes of tensorstore's file driver, which are real."""

    def __init__(self, tmp_path):
        import tensorstore as ts

        self.url = f"{tmp_path}/store"
        self.store = ts.KvStore.open({"driver": "file", "path": f"{self.url}/"}).result()

    def age(self, name):
        return time.time() - os.stat(f"{self.url}/{name}").st_mtime


def test_an_object_store_admits_one_claim(tmp_path, monkeypatch):
    store = DiskStore(tmp_path)
    one = claims.ObjectClaim(store, "slurm 7_1")
    with pytest.raises(Busy, match="slurm 7_1 is training this run"):
        claims.ObjectClaim(store, "slurm 8_1")
    again = claims.ObjectClaim(store, "slurm 7_1")  # the engine started the same job again
    with pytest.raises(Busy, match="another worker has taken this run"):
        one.publish(1, 2)
    again.close()
    third = claims.ObjectClaim(store, "slurm 8_1")
    third.publish(1, 2)
    monkeypatch.setattr(claims, "LEASE", 0.0)  # a silence longer than the lease
    claims.ObjectClaim(store, "slurm 9_1").close()


@pytest.mark.parametrize("byte", [0, 12, 30, -3])
def test_a_damaged_claim_of_an_object_is_nobodys_and_said(byte, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(errors, "noted", set())
    store = DiskStore(tmp_path)
    one = claims.ObjectClaim(store, "slurm 7_1")
    data, version = store.read(claims.NAME)
    data = bytearray(data)
    data[byte] ^= 1
    store.write(claims.NAME, bytes(data), version)
    two = claims.ObjectClaim(store, "slurm 8_1")
    assert "claim.json is damaged" in capfd.readouterr().err
    with pytest.raises(Busy, match="another worker has taken this run"):
        one.publish(1, 2)
    two.publish(1, 2)


def test_of_simultaneous_claims_of_an_object_one_is_made(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    def one(k):
        try:
            claims.ObjectClaim(DiskStore(tmp_path / str(k // 8)), f"process {k}")
            return k // 8
        except Busy:
            return None

    with ThreadPoolExecutor(8) as pool:
        made = [k for k in pool.map(one, range(80)) if k is not None]
    assert sorted(made) == list(range(10))


def test_the_owner_of_a_claim_survives_the_engine_s_restarts():
    mine = {"BIGMODEL_JOB": "1"}
    assert claims.owner({**mine, "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "3"}) == "slurm 12_3"
    assert claims.owner({**mine, "SLURM_JOB_ID": "5"}) == "slurm 5"
    assert claims.owner({**mine, "SKYPILOT_MANAGED_JOB_ID": "9"}) == "sky 9"
    assert claims.owner(mine).startswith("process ")
    assert claims.owner({"SLURM_JOB_ID": "5"}).startswith("process ")  # of a job's several workers, one each


# ------------------------------------------------------------------------- several processes


def test_processes_find_each_other_by_the_engine_s_variables():
    from bigmodel.run import processes

    assert processes.group({}) is None
    assert processes.group({"SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_STEP_ID": "0"}) == {}
    assert processes.group({"SLURM_NTASKS": "2", "SLURM_PROCID": "0"}) is None  # the batch shell itself
    assert processes.group(
        {"SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1", "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2"}
    ) == {"coordinator_address": "10.0.0.1:8476", "num_processes": 2, "process_id": 1}
    with pytest.raises(UsageError, match="--process=2: must be in 0 to 1"):
        processes.join("127.0.0.1:1", 2, 2)


QUICK = {"BIGMODEL_HEARTBEAT": "10", "BIGMODEL_INIT_TIMEOUT": "60"}


@pytest.mark.slow
def test_a_stuck_collective_ends_with_75(tmp_path, tiny):
    """A peer that is stopped but for its heartbeat can't be made here; a peer that is stopped whole, with the heartbeat
    far away, leaves its partner in a collective as that would."""
    folder = planned(tmp_path, tiny(("train.steps", 10**6), ("data.epochs", 10**9), ("run.watchdog", 20)), 1)
    pair = start(folder, 0, 2, {"BIGMODEL_HEARTBEAT": "1000"})
    try:
        until = time.time() + 120
        while (record.last_row(home(folder) / "metrics.jsonl") or {"step": 0})["step"] < 20:
            assert time.time() < until and all(p.poll() is None for p in pair), [p.communicate() for p in pair]
            time.sleep(0.1)
        pair[1].send_signal(signal.SIGSTOP)
        began = time.time()
        assert pair[0].wait(timeout=60) == 75
        assert 15 < time.time() - began < 45
        assert "no progress in 20 s" in pair[0].stderr.read()
    finally:
        for p in pair:
            p.kill()
            p.communicate()


STEPS, EVERY = 150, 5


@pytest.mark.slow
def test_50_kills_of_pairs_lose_nothing(tmp_path, tiny):
    """Worker or coordinator, in training, amid a save, amid a restore: in the end the losses of an undisturbed run."""
    overrides = [("train.steps", STEPS), ("run.checkpoint_every", EVERY), ("run.mesh.fsdp", 2)]
    folder = planned(tmp_path, tiny(*overrides), 3)
    pair = start(folder, 0, 2, QUICK)
    assert [p.wait(timeout=200) for p in pair] == [0, 0], [p.stderr.read() for p in pair]
    reference = [r for r in record.read_rows(home(folder, 0) / "metrics.jsonl") if "loss" in r]
    rng = random.Random(0)
    kills = {"worker": 0, "coordinator": 0, "amid a save": 0, "amid a restore": 0, "in training": 0}
    trial = 0
    for index in (1, 2):  # seeds of their own, and their own undisturbed runs
        here = home(folder, index)
        last = 0
        while sum(kills[k] for k in ("worker", "coordinator")) < 25 * index:
            pair = start(folder, index, 2, QUICK)
            moment = ("amid a save", "amid a restore", "in training")[trial % 3]
            if not wait_for(moment, here, pair, last, rng):
                codes = [p.wait(timeout=200) for p in pair]
                assert codes == [0, 0], [p.communicate() for p in pair]
                shutil.rmtree(here)  # finished before its kill: again from the start
                last = 0
                continue
            who = trial % 2
            pair[who].kill()
            codes = [p.wait(timeout=100) for p in pair]
            assert codes[who] == -signal.SIGKILL and codes[1 - who] in (75, -signal.SIGABRT), codes
            kills[("coordinator", "worker")[who]] += 1
            kills[moment] += 1
            trial += 1
            last = check_progress(here, last)
        pair = start(folder, index, 2, QUICK)
        assert [p.wait(timeout=200) for p in pair] == [0, 0], [p.communicate() for p in pair]
        undisturbed = tmp_path / f"whole{index}"
        undisturbed.mkdir()
        (undisturbed / "plan.jsonl").write_text((folder / "plan.jsonl").read_text())
        pair = start(undisturbed, index, 2, QUICK)
        assert [p.wait(timeout=200) for p in pair] == [0, 0]
        a = record.read_rows(here / "metrics.jsonl")
        b = record.read_rows(undisturbed / here.name / "metrics.jsonl")
        assert [r["step"] for r in a] == [r["step"] for r in b]
        for x, y in zip(a, b, strict=True):
            for key in ("loss", "eval_loss"):
                assert key not in x or abs(x[key] / y[key] - 1) < 1e-6, (x, y)
    print(kills)
    assert min(kills.values()) >= 8 and len(reference) == STEPS


def check_progress(here, last):
    """The newest checkpoint is never older than it was; no attempt after one began at step 0."""
    steps = [int(n) for n in os.listdir(here / "checkpoints") if n.isdigit()] if (here / "checkpoints").exists() else []
    now = max(steps, default=0)
    assert now >= last, "a checkpoint was lost"
    return now


def wait_for(moment, here, pair, last, rng):
    """Until then; False: the run ended first."""
    names = lambda: os.listdir(here / "checkpoints") if (here / "checkpoints").exists() else []  # noqa: E731
    target = last + EVERY * rng.randint(1, 3)
    attempts = len(record.read_rows(here / "attempts.jsonl"))
    while all(p.poll() is None for p in pair):
        if moment == "amid a restore" and here.exists() and (here / "lock").exists():
            if claims.held(here):  # from the claim to the first step lies the restore
                time.sleep(rng.uniform(0.0, 1.5))
                return all(p.poll() is None for p in pair)
        elif len(record.read_rows(here / "attempts.jsonl")) > attempts:
            done = max((int(n) for n in names() if n.isdigit()), default=0)
            if done >= min(target, STEPS - 2 * EVERY):
                if moment == "in training":
                    time.sleep(rng.uniform(0, 0.05))
                    return True
                if any("tmp" in n for n in names()):
                    return True
        time.sleep(0.001)
    return False


def rewritten(folder, change):
    """Writes the plan again with change(rows)."""
    rows = [json.loads(line) for line in (folder / "plan.jsonl").read_text().splitlines()]
    (folder / "plan.jsonl").write_text("".join(json.dumps(row) + "\n" for row in change(rows)))


def test_worker_takes_its_row_by_run_id_whatever_its_place_in_the_plan(tmp_path, tiny):
    folder = planned(tmp_path, tiny(), 3)
    wanted = home(folder, 0)
    rewritten(folder, lambda rows: rows[::-1])
    done = bigmodel("worker", folder, f"--run={wanted.name}")
    assert done.returncode == 0, done.stderr
    assert [p.parent.name for p in folder.glob("*/result.json")] == [wanted.name]
    near = f"{wanted.name[:-1]}x"
    wrong = bigmodel("worker", folder, f"--run={near}")
    assert wrong.returncode == 2 and f"did you mean {wanted.name!r}?" in wrong.stderr, wrong.stderr
    assert wrong.stderr.count("\n") == 1


def damaged_plans(whole):
    """(what is told, text of a plan) made of a whole plan's rows."""
    first = json.loads(whole[0])
    sealed = files.sealed({k: v for k, v in first.items() if k != "crc32"})
    counted = [json.dumps(files.sealed({**json.loads(line), "rows": 3})).encode() for line in whole]
    yield "is empty", b""
    yield "holds 2 of 3 rows", b"\n".join(counted[:2]) + b"\n"
    yield "line 2 is damaged", whole[0] + b"\n" + whole[1][:-9]
    yield "line 1 is damaged", b"\xff\xfe{}\n"
    yield "line 1 is damaged", b"[]\n"
    yield "line 1 is damaged", b"{}\n"
    yield "line 1 is damaged", b"[" * 100_000 + b"\n"
    yield "line 1 is damaged", json.dumps({**sealed, "crc32": sealed["crc32"] ^ 1}).encode() + b"\n"
    yield "line 1 is damaged", json.dumps({**first, "crc32": 0, "run_id": "../../elsewhere"}).encode() + b"\n"
    yield "line 1 is damaged", json.dumps({"run_id": "x; touch y", "config": {}, "overrides": {}}).encode() + b"\n"


def test_damaged_plan_is_refused_in_one_line_by_worker_and_launch(tmp_path, tiny, capfd):
    folder = planned(tmp_path, tiny(), 3)
    plan = folder / "plan.jsonl"
    whole = plan.read_bytes().splitlines()
    run_id = json.loads(whole[0])["run_id"]
    for told, text in damaged_plans(whole):
        plan.write_bytes(text)
        for args in (["launch", folder, "--engine=local"], ["worker", folder, f"--run={run_id}"]):
            assert main.main(list(map(str, args))) == 2, (args[0], told)
            err = capfd.readouterr().err
            assert told in err and err.count("\n") == 1, (args[0], told, err)
        assert not (folder / "launch").exists()


def test_planned_row_without_a_config_is_refused_in_one_line(tmp_path, capfd):
    (tmp_path / "plan.jsonl").write_text('{"run_id": "abc"}\n')
    assert main.main(["worker", str(tmp_path), "--run=abc"]) == 2
    err = capfd.readouterr().err
    assert "has no config of abc" in err and err.count("\n") == 1


def test_plan_s_rows_can_be_found_by_number_as_older_scripts_do(tmp_path):
    rows = [{"run_id": str(i), "config": {}, "overrides": {}} for i in range(3)]
    (tmp_path / "plan.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert launch.row_of(tmp_path, index=2) == rows[2]
