"""gs:// and s3:// end to end, on emulators that the tests start: races, kills, lost connections, many rows."""

import json
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import emulators
import pytest
from conftest import ROOT

from bigmodel.errors import Busy
from bigmodel.run import claims, objects

pytestmark = pytest.mark.bucket

SWEEP = """
CONFIG = "experiments/digits.py"
LAW = "power:x=C"
def get_sweep():
    return [{"train.steps": steps, "model.width": width} for steps in (60, 120) for width in (8, 16, 32)]
"""


@pytest.fixture(scope="module", params=["gcs", "s3"])
def store(request):
    with getattr(emulators, request.param)() as found, pytest.MonkeyPatch.context() as patch:
        for name, value in found.env.items():
            patch.setenv(name, value)
        yield found


@pytest.fixture
def here(tmp_path):
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    (tmp_path / "small.py").write_text(SWEEP)
    return tmp_path


def start(store, here, *args, **more):
    env = {**os.environ, **store.env, "PYTHONPATH": str(ROOT), "BIGMODEL_CACHE": str(here / "cache"), **more}
    command = [sys.executable, "-m", "bigmodel", *map(str, args)]
    return subprocess.Popen(command, cwd=here, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(store, here, *args, code=0, **more):
    process = start(store, here, *args, **more)
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, err
    return out


# ------------------------------------------------------------------------------- claims


def test_of_200_races_each_has_one_winner(store):
    for race in range(200):
        folder, outcomes, gate = store.url(f"race/{race}"), [], threading.Barrier(3)

        def take(folder=folder, outcomes=outcomes, gate=gate):
            home = objects.opened(folder)
            gate.wait()
            try:
                outcomes.append(claims.ObjectClaim(home, f"worker {threading.get_ident()}"))
            except Busy:
                outcomes.append(None)

        threads = [threading.Thread(target=take) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        (won,) = [found for found in outcomes if found]
        assert won.token == 1 and claims.parse(objects.opened(folder).read(claims.NAME)[0])["token"] == 1
        won.close()


def test_of_50_superseded_holders_that_wake_up_none_writes(store, monkeypatch):
    for seed in range(50):
        folder = store.url(f"superseded/{seed}")
        old = claims.ObjectClaim(objects.opened(folder), "old")
        old.rewrite("metrics.jsonl", lambda there: b'{"step": 1}')
        if seed % 2:
            old.publish(1, 2)
        monkeypatch.setattr(claims, "LEASE", 0.0)  # the silence was long enough
        new = claims.ObjectClaim(objects.opened(folder), "new")
        monkeypatch.setattr(claims, "LEASE", 900.0)
        new.rewrite("metrics.jsonl", lambda there: there.strip())  # the same rows: an ETag must differ all the same
        before = {name: objects.opened(folder).read(name) for name in (claims.NAME, "metrics.jsonl")}
        for method, *args in (
            (old.write, "metrics.jsonl", b"late"),
            (old.rewrite, "metrics.jsonl", lambda there: b"late"),
            (old.rewrite, "config.json", lambda there: b"late"),
            (old.publish, 2, 2),
            (old.finish, {"run_id": "x"}),
        ):
            with pytest.raises(Busy):
                method(*args)
        old.close()
        assert before == {name: objects.opened(folder).read(name) for name in before}
        assert objects.opened(folder).read("config.json")[0] is objects.opened(folder).read("result.json")[0] is None
        assert new.saved == ([(1, 1)] if seed % 2 else [])
        new.close()


@pytest.mark.parametrize("skew", [-3600.0, 3600.0])
def test_clocks_of_workers_decide_nothing(store, monkeypatch, skew):
    folder = store.url(f"skew/{skew}")
    claim = claims.ObjectClaim(objects.opened(folder), "a")
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + skew)
    assert claims.held(folder)
    with pytest.raises(Busy):
        claims.ObjectClaim(objects.opened(folder), "b")
    claim.close()
    assert not claims.held(folder)


def test_lost_reply_of_a_write_is_not_taken_for_a_takeover(store):
    claim = claims.ObjectClaim(objects.opened(store.url("lost")), "a")
    store.lose_replies(2)
    try:
        for step in range(4):
            claim.publish(step, 2)
        claim.rewrite("metrics.jsonl", lambda there: b"row")
        claim.write("metrics.jsonl", b"row\nrow")
    finally:
        store.lose_replies(0)
    assert claim.saved == [(1, 2), (1, 3)]
    claim.close()


@pytest.mark.parametrize(
    "content", [b"{", b"[]", b'{"owner": 1}', b"\xff\xfe", b'{"token": "x", "saved": [], "owner": "a"}']
)
def test_malformed_claim_is_taken_as_nobodys(store, content):
    home = objects.opened(store.url(f"malformed/{len(content)}{content[:1].hex()}"))
    home.write(claims.NAME, content, objects.ABSENT)
    claim = claims.ObjectClaim(home, "a")
    claim.publish(1, 2)
    claim.close()


# ------------------------------------------------------------------------------- runs


def test_kills_and_lost_connections_over_three_workers_lose_nothing(store, here):
    """30 kills and 20 lost connections; the end is that of an undisturbed sweep on a disk, bit for bit."""
    rng = random.Random(5)
    (here / "small.py").write_text(SWEEP.replace("(60, 120)", "(200, 400)"))
    command = ["sweep", "run", "small.py", "--config.run.checkpoint_every=5"]  # most of the time it saves
    run(store, here, *command, "--runs=calm")
    runs, killed, cut, workers = store.url("runs"), 0, 0, {}
    refusing = 0
    began = time.time()
    while killed < 30:
        assert time.time() - began < 900
        workers = {w: age for w, age in workers.items() if w.poll() is None}
        while len(workers) < 3:
            worker = start(store, here, *command, f"--runs={runs}", f"--first={rng.randrange(6)}", BIGMODEL_LEASE="3")
            workers[worker] = time.time()
        time.sleep(rng.uniform(0.3, 1.5))
        old = [w for w, age in workers.items() if time.time() - age > 6]  # it trains by now
        if killed < 30 and old:
            rng.choice(old).kill()
            killed += 1
            if cut < 20:  # lost at one kill, there again at the next
                refusing = not refusing
                store.lose_replies(rng.choice([2, 3, 5]) if refusing else 0)
                store.refuse(rng.choice([0, 4, 7]) if refusing else 0)
                cut += 1
    store.lose_replies(0)
    store.refuse(0)
    for worker in workers:
        worker.kill()
        worker.wait()
    time.sleep(3)
    for _ in range(5):
        last = start(store, here, *command, f"--runs={runs}", BIGMODEL_LEASE="3")
        last.communicate(timeout=300)
        if last.returncode == 0:
            break
    assert last.returncode == 0
    copy = Path(str(objects.local(f"{runs}/small")))
    home = objects.opened(f"{runs}/small")
    taken = 0
    for calm in sorted((here / "calm/small").glob("*/result.json")):
        name = calm.parent.name
        mine, theirs = (json.loads((f / name / "result.json").read_text()) for f in (here / "calm/small", copy))
        timed = ("date", "wall_seconds", "git_sha", "git_dirty", "crc32", "token")
        assert {k: v for k, v in mine.items() if k not in timed} == {k: v for k, v in theirs.items() if k not in timed}
        rows = (f"{name}/metrics.jsonl", here / "calm/small" / name / "metrics.jsonl")
        assert home.read(rows[0])[0].rstrip(b"\n") == rows[1].read_bytes().rstrip(b"\n")
        attempts = [json.loads(line) for line in home.read(f"{name}/attempts.jsonl")[0].split(b"\n") if line]
        tokens = [row["token"] for row in attempts]
        assert tokens == sorted(set(tokens)) and theirs["token"] == tokens[-1]
        steps = [row["step"] for row in attempts]
        assert steps == sorted(steps), "a run went back behind a checkpoint that counted"
        speeds = [json.loads(line)["token"] for line in home.read(f"{name}/speed.jsonl")[0].split(b"\n") if line]
        assert speeds == sorted(speeds)
        claim = claims.parse(home.read(f"{name}/{claims.NAME}")[0])
        assert claim["result"]["token"] == claim["token"] == theirs["token"]
        taken += claim["token"]
    assert taken > 15  # or the kills came before or after the training
    print(f"{store.scheme}: {killed} kills, {cut} changes of the connection, runs taken {taken} times")


def test_prepared_data_upload_train_evaluate_fit_and_report(store, here, data_dir):
    data, runs = store.url("data"), store.url("end")
    assert "files" in run(store, here, "upload", f"{data_dir}/speech", data)
    assert "already there" in run(store, here, "upload", f"{data_dir}/speech", data)
    home = objects.opened(f"{data}/speech")
    shard = next(name for name in home.listing() if name.endswith(".bin"))
    home.fs.pipe_file(f"{home.root}/{shard}", b"damaged")
    assert "files" in run(store, here, "upload", f"{data_dir}/speech", data)  # only that, and the manifest again
    run(store, here, "sweep", "run", "small.py", f"--runs={runs}", "--workers=2")
    assert "6 done" in run(store, here, "sweep", "status", f"{runs}/small")
    assert "alpha" in run(store, here, "fit", f"{runs}/small", "--law=power:x=C", "--bootstrap=20")
    assert f"{runs}/small/report/index.html" in run(store, here, "report", "small.py", f"--runs={runs}")
    names = objects.opened(f"{runs}/small").listing()
    assert "report/index.html" in names and "report/fit.json" in names
    one = next(name.partition("/")[0] for name in names if name.endswith("/result.json"))
    assert "accuracy" in run(store, here, "evaluate", f"{runs}/small/{one}")
    assert "every row is finished" in run(store, here, "launch", f"{runs}/small", "--engine=local")


def test_status_of_1000_rows_is_a_request_a_row(store, here):
    rows = "\n".join('    rows += [{"train.seed": seed} for seed in range(1000)]'.splitlines())
    (here / "many.py").write_text(
        f'CONFIG = "experiments/digits.py"\ndef get_sweep():\n    rows = []\n{rows}\n    return rows\n'
    )
    run(store, here, "sweep", "plan", "many.py", f"--runs={store.url('many')}", "--config.train.steps=5", "--write")
    home = objects.opened(store.url("many/many"))
    ids = [json.loads(line)["run_id"] for line in home.read("plan.jsonl")[0].splitlines()]
    one = ids[0]
    run(store, here, "worker", store.url("many/many"), f"--run={one}")
    records = {name: content for name, content in home.contents(n for n in home.listing() if n.startswith(one)).items()}
    records = {name.partition("/")[2]: content for name, content in records.items()}
    for i, other in enumerate(ids[1:]):
        for name, content in records.items():
            if name == "result.json":
                if i % 10 == 0:  # a tenth is interrupted or running
                    continue
                content = json.dumps(
                    {**{k: v for k, v in json.loads(content).items() if k != "crc32"}, "run_id": other}
                ).encode()
            if name == claims.NAME and i % 10 == 0:
                content = json.dumps({"owner": "x", "token": 1, "saved": [], "released": i % 20 == 0}).encode()
            if "checkpoints" not in name:
                home.fs.pipe_file(f"{home.root}/{other}/{name}", content)
    store.requests()
    began = time.time()
    text = run(store, here, "sweep", "status", store.url("many/many"))
    took, asked = time.time() - began, store.requests()
    print(f"{store.scheme}: status of 1,000 rows in {took:.1f} s, {asked} requests")
    assert "900 done" in text and "50 running" in text and "50 interrupted" in text
    assert asked <= 3000


def test_config_json_and_scripts_of_a_bucket_keep_their_slashes(store, here):
    run(store, here, "sweep", "plan", "small.py", f"--runs={store.url('slashes')}", "--write")
    folder = store.url("slashes/small")
    for engine, name in (("local", "run.sh"), ("slurm", "array.sbatch")):
        text = run(store, here, "launch", "small.py", f"--runs={store.url('slashes')}", f"--engine={engine}", "--print")
        assert f"worker {folder} --run=" in text and f"{here}/runs/small/launch/" in text and f"---- {name}" in text
    wrong = start(store, here, "evaluate", store.url("nothing/x"))
    assert f"no finished run at '{store.url('nothing/x')}'" in wrong.communicate()[1] and wrong.returncode == 2
    assert not list(here.glob("gs:*")) and not list(here.glob("s3:*"))


@pytest.mark.parametrize("kind", ["gcs", "s3"])
@pytest.mark.parametrize("command", [["sweep", "status", "{}/small"], ["sweep", "run", "small.py", "--runs={}"]])
def test_store_that_cannot_be_reached_is_one_line_and_75(kind, command, here):
    with getattr(emulators, kind)() as gone:
        pass
    process = start(gone, here, *(part.format(gone.url("runs")) for part in command))
    _, err = process.communicate(timeout=200)
    assert process.returncode == 75 and "the bucket can't be used" in err.splitlines()[-1], err
    assert "Traceback" not in err and len(err.splitlines()) <= 2  # a note of short runs


def test_listed_checkpoints_are_kept_and_others_removed(store, here):
    """Also with keep=1, and on s3://, where no manager of orbax removes anything; then a plan that is gone is gone."""
    runs = store.url("kept")
    run(
        store,
        here,
        "sweep",
        "run",
        "small.py",
        f"--runs={runs}",
        "--config.run.keep=1",
        "--config.run.checkpoint_every=20",
    )
    home = objects.opened(f"{runs}/small")
    names = home.listing()
    for folder in {name.partition("/")[0] for name in names if name.endswith(claims.NAME)}:
        (listed,) = claims.saved(f"{runs}/small/{folder}")
        there = {tuple(map(int, name.split("/")[2:4])) for name in names if name.startswith(f"{folder}/checkpoints/")}
        assert listed in there and len(there) <= (1 if store.scheme == "s3" else 2)
    assert "6 done" in run(store, here, "sweep", "status", f"{runs}/small")
    home.remove("plan.jsonl")
    wrong = start(store, here, "sweep", "status", f"{runs}/small")
    assert "no plan at" in wrong.communicate()[1] and wrong.returncode == 2
