"""The record of a run, and W&B as a view of it that can't harm it. Read back with W&B's own reader."""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import ROOT, bigmodel

from bigmodel import config, errors
from bigmodel.cli import main
from bigmodel.errors import Busy, Retry
from bigmodel.run import claims, record
from bigmodel.run.session import train
from bigmodel.run.view import View, wandb_mode

# Without a network: an empty network namespace where we may make one, else proxies to a closed port.
CUT = ["unshare", "-n"]
if not shutil.which("unshare") or subprocess.run([*CUT, "true"], capture_output=True).returncode:
    CUT = ["env", *(f"{name}=http://127.0.0.1:9" for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"))]


def until(condition, what, seconds=40):
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.05)
    return value


def mirrors(folder):
    return sorted(folder.glob("wandb/*run-*-*"))


def inspect(path, *flags):
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", *flags, str(path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


def read(path):
    """(summary of the run, its 'run' record, {step: row}) by W&B's reader, once the run has ended there."""

    def records():
        if not list(path.glob("*.wandb")):
            return None
        found = [json.loads(line) for line in inspect(path).splitlines()]
        return found if found and found[-1]["type"] == "exit" else None

    found = until(records, f"the end of {path}")
    history = [r["history"]["item"] for r in found if r["type"] == "history"]
    steps = [row["_step"] for row in history]
    assert steps == sorted(set(steps)), "a step twice"
    run = next(r["run"] for r in found if r["type"] == "run")
    return json.loads(inspect(path, "--summary")), run, dict(zip(steps, history, strict=True))


def assert_mirrored(rows, history):
    """Every value of every row is in W&B's history."""
    assert rows
    for row in rows:
        got = history[row["step"]]
        assert {k: got[k] for k in row if k != "step"} == {k: v for k, v in row.items() if k != "step"}


def processes(of=None):
    """{pid: (parent, command)} of those alive; with `of`, of this process's descendants."""
    alive = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
            command = (stat.parent / "cmdline").read_text().replace("\0", " ")
        except OSError:
            continue
        if state != "Z":
            alive[int(stat.parent.name)] = (int(parent), command)
    if of is None:
        return alive
    family = {of}
    for _ in range(4):  # generations
        family |= {pid for pid, (parent, _) in alive.items() if parent in family}
    return {pid: alive[pid] for pid in family - {of} if pid in alive}


def new_views(before):
    now = processes(os.getpid())
    return [pid for pid, (_, command) in now.items() if pid not in before and "-m bigmodel.run.view" in command]


def at(monkeypatch, step, action):
    """Calls action(rows) once, before the row of `step` is added."""
    add = record.Rows.add
    done = []

    def patched(self, row):
        if row["step"] == step and not done and self.path.name == "metrics.jsonl":
            done.append(True)
            self.flush()
            action(self)
        add(self, row)

    monkeypatch.setattr(record.Rows, "add", patched)
    return done


@pytest.fixture
def reference(digits, tmp_path):
    """Loss of the run that nothing disturbs, and its rows."""

    def run(*overrides):
        result = train(digits(*overrides), str(tmp_path / "off"), quiet=True)
        return result["loss"], (tmp_path / "off" / result["run_id"] / "metrics.jsonl").read_bytes()

    return run


# ---------------------------------------------------------------------------- read back


def test_run_is_read_back_by_wandbs_own_reader(digits, tmp_path):
    """Config, every row, the result; nothing on the terminal, nothing left in the folder we are in."""
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    here.mkdir()
    (tmp_path / "config.json").write_text(config.to_json(digits(("run.wandb", "offline"), ("run.eval_every", 4))))
    run = bigmodel(
        "train",
        tmp_path / "config.json",
        f"--runs={tmp_path}/runs",
        cwd=here,
        env={"HOME": str(home), "WANDB_DIR": str(tmp_path / "elsewhere")},
    )
    assert run.returncode == 0, run.stderr
    assert "wandb" not in (run.stdout + run.stderr).replace(str(tmp_path), "").lower()
    assert not list(here.iterdir()) and not (tmp_path / "elsewhere").exists()
    (folder,) = (tmp_path / "runs").iterdir()
    (mirror,) = mirrors(folder)
    summary, header, history = read(mirror)
    result, rows = record.read_json(folder / "result.json"), record.read_rows(folder / "metrics.jsonl")
    assert {k: v for k, v in summary["config"].items() if k != "_wandb"} == record.read_json(folder / "config.json")
    assert {row["step"] for row in rows} == set(range(1, 11)) and any("eval_loss" in row for row in rows[:-1])
    assert_mirrored(rows + record.read_rows(folder / "speed.jsonl"), history)
    assert header["run_id"] == folder.name
    assert summary["state"] == "finished" and summary["exit_code"] == 0
    # W&B's reader leaves nulls out. `lr` is also a key of the rows: the result's, the highest, has to win.
    assert {k: v for k, v in result.items() if v is not None}.items() <= summary["summary"].items()
    assert summary["summary"]["loss"] == result["loss"] != result["train_loss"]


SWEEP = '''"""A tiny sweep."""
CONFIG = {experiment!r}
def get_sweep():
    base = {{"model.width": 8, "train.batch_size": 32, "data.epochs": 3, "run.wandb": "offline"}}
    rows = [(depth, examples) for depth in (1, 2, 3) for examples in (160, 480, 960)]
    return [{{**base, "model.depth": d, "data.examples": n, "train.tokens": 2 * n}} for d, n in rows]
'''


@pytest.mark.slow
def test_sweep_and_its_law_are_read_back(tmp_path):
    file = tmp_path / "study.py"
    file.write_text(SWEEP.format(experiment=str(ROOT / "experiments/digits.py")))
    runs = tmp_path / "wandb" / "runs"  # a parent folder of that name is none of W&B's
    assert main.main(["sweep", "run", str(file), f"--runs={runs}"]) == 0
    assert main.main(["report", str(file), f"--runs={runs}"]) == 0
    folders = [p.parent for p in (runs / "study").glob("*/result.json")]
    assert len(folders) == 9
    for folder in folders[:1]:
        _, header, history = read(mirrors(folder)[0])
        assert (header["run_id"], header["run_group"]) == (folder.name, "study")
        assert_mirrored(record.read_rows(folder / "metrics.jsonl"), history)

    report = runs / "study" / "report"
    (mirror,) = until(lambda: mirrors(report), "the law's run")
    summary, header, history = read(mirror)
    assert (header["run_id"], header["run_group"], header["job_type"]) == ("law-study", "study", "law")
    fit = record.read_json(report / "fit.json")
    assert summary["summary"]["params"] == fit["params"] and summary["summary"]["law"] == fit["law"]
    assert summary["summary"]["ci"] == fit["ci"]
    (row,) = history.values()
    figures = list((report / "figures").glob("*.png"))
    assert len(figures) >= 3
    for figure in figures:
        assert (mirror / "files" / row[f"figures/{figure.stem}.path"]).read_bytes() == figure.read_bytes()
    table = json.loads((mirror / "files" / row["law.path"]).read_text())
    assert {name: [low, high] for name, _, low, high in table["data"]} == fit["ci"]
    assert not list(tmp_path.glob("*/staging"))


@pytest.fixture
def interrupted(digits, tmp_path, monkeypatch):
    """(a config whose run was interrupted after step 6 of 12, the run's folder, its offline run)."""
    cfg = digits(("train.steps", 12), ("run.wandb", "offline"))

    def interrupt(rows):
        until(lambda: mirrors(rows.path.parent), "the first mirror")
        signal.raise_signal(signal.SIGTERM)

    stopped = at(monkeypatch, 5, interrupt)
    with pytest.raises(Retry, match="step 6 of 12"):
        train(cfg, str(tmp_path), quiet=True)
    (folder,) = [p.parent for p in tmp_path.glob("*/metrics.jsonl")]
    (first,) = mirrors(folder)
    summary, header, history = read(first)
    assert stopped and summary["exit_code"] == 1 and sorted(history) == list(range(1, 7))
    assert header["run_id"] == folder.name
    return cfg, folder, first


@pytest.mark.slow
def test_resumed_run_is_one_offline_run_of_all_rows(interrupted, tmp_path):
    cfg, folder, first = interrupted
    result = train(cfg, str(tmp_path), quiet=True)
    (second,) = until(lambda: (m := mirrors(folder)) != [first] and len(m) == 1 and m, "one mirror")
    finished, header, history = read(second)
    assert sorted(history) == list(range(1, 13))
    assert_mirrored(record.read_rows(folder / "metrics.jsonl"), history)
    assert header["run_id"] == folder.name
    assert finished["state"] == "finished" and finished["summary"]["loss"] == result["loss"]


@pytest.mark.slow
def test_rows_that_were_uploaded_before_a_resume_are_not_mirrored_again(interrupted, tmp_path):
    cfg, folder, first = interrupted
    (first / f"run-{folder.name}.wandb.synced").touch()  # as `wandb sync` leaves it
    train(cfg, str(tmp_path), quiet=True)
    kept, second = until(lambda: (m := mirrors(folder)) and len(m) == 2 and m, "the second mirror")
    assert kept == first and sorted(read(second)[2]) == list(range(7, 13))


def test_damaged_rows_are_left_out_of_the_mirror_and_noted(tmp_path):
    good = [json.dumps({"step": step, "loss": step / 3}).encode() for step in (1, 2, 3)]
    damaged = [b"\xff\xfe", b"[]", b'{"loss": 1}', b'{"step": "x"}', b"{", b"\x00" * 9]
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join([good[0], *damaged, *good[1:]]) + b"\n")
    view = View()
    view.open(tmp_path, "offline", "x", "", 0)
    (mirror,) = until(lambda: mirrors(tmp_path), "the mirror")
    view.finish()
    view.close(40)
    _, _, history = read(mirror)
    assert {step: row["loss"] for step, row in history.items()} == {1: 1 / 3, 2: 2 / 3, 3: 1.0}
    assert "6 damaged rows of metrics.jsonl are left out" in (tmp_path / "wandb/view.log").read_text()


@pytest.mark.slow
def test_rows_of_two_files_that_arrive_in_any_order(tmp_path):
    """W&B drops a row of a step before its latest: none is given to it so."""
    for name in ("metrics", "speed"):
        (tmp_path / f"{name}.jsonl").touch()

    def add(name, *steps):
        with open(tmp_path / f"{name}.jsonl", "a") as f:
            f.writelines(json.dumps({"step": step, name: step / 3}) + "\n" for step in steps)

    view = View()
    view.open(tmp_path, "offline", "x", "", 0)
    add("metrics", 1, 2, 3)
    add("speed", 2, 5)
    (mirror,) = until(lambda: mirrors(tmp_path), "the mirror")
    time.sleep(2.5)  # it looks once a second
    add("metrics", 4, 5, 6)
    add("speed", 9)
    view.finish()
    view.close(40)
    _, _, history = read(mirror)
    assert {s: {k: row[k] for k in ("metrics", "speed") if k in row} for s, row in history.items()} == {
        **{s: {"metrics": s / 3} for s in (1, 3, 4, 6)},
        **{s: {"metrics": s / 3, "speed": s / 3} for s in (2, 5)},
        9: {"speed": 3.0},
    }


# ------------------------------------------------------------------ it can't harm the run


@pytest.mark.slow
def test_online_without_key_terminal_and_network_is_offline(digits, tmp_path, reference):
    loss, rows = reference()
    cfg = digits(("run.wandb", "online"))
    (tmp_path / "config.json").write_text(config.to_json(cfg))
    run = without_network(tmp_path, WANDB_API_KEY="")
    assert run.wait(60) == 0, run.stderr.read()
    (result_file,) = (tmp_path / "runs").glob("*/result.json")
    assert record.read_json(result_file)["loss"] == loss
    assert (result_file.parent / "metrics.jsonl").read_bytes() == rows
    summary, _, history = read(mirrors(result_file.parent)[0])
    assert sorted(history) == list(range(1, 11)) and summary["state"] == "finished"


@pytest.mark.slow
def test_online_with_a_key_that_meets_no_network(digits, tmp_path, reference):
    """The run ends as if there were no W&B; W&B gives up after 20 s and keeps an offline run."""
    loss, rows = reference()
    (tmp_path / "config.json").write_text(config.to_json(digits(("run.wandb", "online"))))
    run = without_network(tmp_path, WANDB_API_KEY="0" * 40)
    children = until(lambda: processes(run.pid), "the view")
    assert run.wait(60) == 0, run.stderr.read()
    (result_file,) = (tmp_path / "runs").glob("*/result.json")
    assert time.time() - result_file.stat().st_mtime < 10, "the wait at the end is 5 s"
    assert record.read_json(result_file)["loss"] == loss
    assert (result_file.parent / "metrics.jsonl").read_bytes() == rows
    (mirror,) = until(
        lambda: [p for p in mirrors(result_file.parent) if p.name.startswith("offline")], "the offline run"
    )
    summary, _, history = read(mirror)
    assert sorted(history) == list(range(1, 11)) and summary["summary"]["loss"] == loss
    assert len(mirrors(result_file.parent)) == 1, "the failed attempt is cleared away"
    assert "offline from here" in (result_file.parent / "wandb/view.log").read_text()
    until(lambda: not children.keys() & processes().keys(), "the view's end")


def without_network(tmp_path, **env):
    return subprocess.Popen(
        [*CUT, sys.executable, "-m", "bigmodel", "train", f"{tmp_path}/config.json", f"--runs={tmp_path}/runs"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "NETRC": "/nonexistent", **env},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # no terminal
    )


def test_view_killed_in_the_middle(digits, tmp_path, monkeypatch, reference, capfd):
    loss, rows = reference()

    def kill(written):
        until(lambda: mirrors(written.path.parent), "the mirror")
        (view,) = new_views(before)
        (core,) = [pid for pid, (_, command) in processes(view).items() if "wandb-core" in command]
        os.kill(view, signal.SIGKILL)
        cores.append(core)

    cores, before = [], processes(os.getpid())
    assert at(monkeypatch, 5, kill) == []
    result = train(digits(("run.wandb", "offline")), str(tmp_path), quiet=True)
    assert cores and result["loss"] == loss
    assert (tmp_path / result["run_id"] / "metrics.jsonl").read_bytes() == rows
    assert "Broken" not in capfd.readouterr().err
    until(lambda: cores[0] not in processes(), "the end of W&B's own child")


def test_wandb_that_fails_to_import(digits, tmp_path, monkeypatch, reference, capfd):
    loss, rows = reference()
    (tmp_path / "broken" / "wandb").mkdir(parents=True)
    (tmp_path / "broken" / "wandb" / "__init__.py").write_text("raise ImportError('torn installation')\n")
    monkeypatch.syspath_prepend(str(tmp_path / "broken"))
    result = train(digits(("run.wandb", "offline")), str(tmp_path), quiet=True)
    assert result["loss"] == loss
    assert (tmp_path / result["run_id"] / "metrics.jsonl").read_bytes() == rows
    assert capfd.readouterr().err == ""
    assert "ImportError: torn installation" in (tmp_path / result["run_id"] / "wandb/view.log").read_text()


@pytest.mark.slow
def test_wandb_that_hangs(digits, tmp_path, monkeypatch, reference):
    """The run's end waits 5 s for it, and it ends itself some time after the run."""
    loss, _ = reference()
    before = processes(os.getpid())
    (tmp_path / "stuck" / "wandb").mkdir(parents=True)
    (tmp_path / "stuck" / "wandb" / "__init__.py").write_text("import time; time.sleep(30)\n")
    monkeypatch.syspath_prepend(str(tmp_path / "stuck"))
    order = tmp_path / "order"
    order.write_text(
        json.dumps({"do": "summary", "folder": str(tmp_path), "mode": "offline", "run": {"id": "x"}}) + "\n"
    )
    with (
        open(order) as stdin,
        subprocess.Popen(
            [sys.executable, "-c", "from bigmodel.run import view; view.LINGER = 1; view._mirror()"],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdin=stdin,
        ) as lingering,
    ):
        began = time.monotonic()
        result = train(digits(("run.wandb", "offline")), str(tmp_path), quiet=True)
        assert result["loss"] == loss
        assert 4 < time.monotonic() - began < 20
        assert lingering.wait(20) == 1
    (view,) = new_views(before)
    os.kill(view, signal.SIGKILL)


def test_one_run_that_wandb_refuses_is_not_the_next_ones_trouble(tmp_path):
    for name in ("a" * 12, "b" * 12):
        (tmp_path / name).mkdir()
        record.write_json(tmp_path / name / "config.json", {"width": 8})
        record.write_json(tmp_path / name / "result.json", {"loss": 1.5})
        (tmp_path / name / "metrics.jsonl").write_text('{"step": 1, "loss": 2.5}\n{"step": 2, "lo')
    (tmp_path / ("a" * 12) / "wandb").write_text("a file where W&B needs a folder")
    view = View()
    for name in ("a" * 12, "b" * 12):
        view.open(tmp_path / name, "offline", name, "", 0)
        view.finish()
    view.close(40)
    summary, _, history = read(mirrors(tmp_path / ("b" * 12))[0])
    assert history[1]["loss"] == 2.5 and sorted(history) == [1] and summary["summary"]["loss"] == 1.5


HANG = """
import sys, time
from bigmodel.cli import main
from bigmodel.run import record
add = record.Rows.add
def hang(self, row):
    if row["step"] == 6:
        self.flush()
        time.sleep(600)
    add(self, row)
record.Rows.add = hang
sys.exit(main.main(sys.argv[1:]))
"""


def test_killed_run_leaves_no_process_and_is_not_a_success(digits, tmp_path):
    cfg = digits(("run.wandb", "offline"))
    (tmp_path / "config.json").write_text(config.to_json(cfg))
    run = subprocess.Popen(
        [sys.executable, "-c", HANG, "train", f"{tmp_path}/config.json", f"--runs={tmp_path}/runs"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        (mirror,) = until(lambda: list(tmp_path.glob("runs/*/wandb/offline-run-*")), "the mirror")
        folder = mirror.parents[1]
        until(lambda: any("wandb-core" in command for _, command in processes(run.pid).values()), "W&B's own child")
        children = processes(run.pid)
        assert len(children) >= 2
        # The same run again, while the first holds it: exit code 75 and one line.
        second = bigmodel("train", tmp_path / "config.json", f"--runs={tmp_path}/runs")
        assert second.returncode == 75 and second.stdout == ""
        assert second.stderr.count("\n") == 1 and "another process is training this run" in second.stderr
        assert claims.held(folder)
    finally:
        run.kill()
        run.wait()
    assert not claims.held(folder)
    until(lambda: not children.keys() & processes().keys(), "the view's end", seconds=20)
    summary, _, history = read(mirror)
    assert summary["state"] != "finished" and summary["exit_code"] == 1
    assert sorted(history) == list(range(1, 6))


def test_stuck_view_costs_no_time(tmp_path):
    """A child that reads nothing: orders beyond what the pipe holds are dropped."""
    view = View()
    view.open(tmp_path, "offline", "x", "", 0)
    os.kill(view.child.pid, signal.SIGSTOP)
    rescue = threading.Timer(10, view.child.kill)  # so that a view that blocks us is a failure and no hang
    rescue.start()
    try:
        began = time.monotonic()
        for _ in range(3000):
            view.open(tmp_path, "offline", "x" * 100, "", 0)
        assert time.monotonic() - began < 5
    finally:
        rescue.cancel()
        view.child.kill()
        view.close(5)


def test_mode_is_decided_before_wandb_is_asked(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert [wandb_mode(m) for m in ("off", "offline", "online")] == ["off", "offline", "offline"]
    (tmp_path / "netrc").write_text("machine api.wandb.example login user password secret\n")
    assert wandb_mode("online") == "online"
    monkeypatch.setenv("NETRC", str(tmp_path))  # a folder: not ours to read
    assert wandb_mode("online") == "offline"
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert [wandb_mode(m) for m in ("off", "offline", "online")] == ["off", "offline", "online"]
    with pytest.raises(errors.UsageError, match="maybe"):
        wandb_mode("maybe")


# -------------------------------------------------------------------------------- files


def test_rows_are_cut_back_to_the_step_of_the_resume(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = record.Rows(path, 0)
    for step in (1, 2, 2, 3, 4):
        rows.add({"step": step, "loss": step / 3})
    rows.close()
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    assert [r["step"] for r in record.read_rows(path)] == [1, 2, 2, 3]  # the last line is torn
    rows = record.Rows(path, 2)
    rows.add({"step": 3, "loss": 3 / 3})
    rows.add({"step": 4, "loss": 4 / 3})
    rows.close()
    assert path.read_bytes() == whole
    assert record.read_rows(tmp_path / "none.jsonl") == []
    assert [p.name for p in tmp_path.iterdir()] == ["rows.jsonl"]


def test_json_is_whole_or_absent(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    assert record.read_json(path) is None and record.read_json(path / "below") is None
    record.write_json(path, {"loss": 1.5})
    whole = path.read_text()
    assert record.read_json(path) == {"loss": 1.5}
    for end in range(len(whole) - 2):
        (tmp_path / "torn.json").write_text(whole[:end])
        assert record.read_json(tmp_path / "torn.json") is None
    # Killed between writing and renaming: the old file stands.
    with monkeypatch.context() as m:
        m.setattr(type(record.epath.Path(path)), "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            record.write_json(path, {"loss": 2.5})
    assert path.read_text() == whole
    with pytest.raises(TypeError):
        record.write_json(path, {"loss": object()})
    assert path.read_text() == whole


def test_lock_is_freed_by_kill_and_not_taken_by_a_look(tmp_path):
    assert not claims.held(tmp_path)
    hold = "import sys; from bigmodel.run import claims; a = claims.claim(sys.argv[1]); print(1, flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
    ) as holder:
        holder.stdout.readline()
        assert claims.held(tmp_path)
        with pytest.raises(Busy, match="another process"):
            claims.claim(tmp_path)
        holder.kill()
    assert not claims.held(tmp_path)
    with claims.claim(tmp_path):
        assert claims.held(tmp_path)
    assert not claims.held(tmp_path)


# ------------------------------------------------------------------------ the code that a run was of


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A git repository with one commit, which is the working folder."""
    home = tmp_path / "repository"
    home.mkdir()
    monkeypatch.chdir(home)
    for key in [k for k in os.environ if k.startswith("GIT_")]:
        monkeypatch.delenv(key)
    who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    (home / "notes.txt").write_text("old\n")
    for command in (["init", "-q"], ["add", "."], [*who, "commit", "-qm", "first"]):
        subprocess.run(["git", *command], check=True)
    return home


def test_new_file_with_a_name_that_git_quotes_is_recorded(repository):
    (repository / "实验.py").write_text("x = 1\n")
    (repository / os.fsdecode(b"a\xff b.py")).write_text("y = 2\n")
    state = record.git_state.__wrapped__()
    assert "new file '实验.py'\nx = 1\n" in state["git_diff"] and "\ny = 2\n" in state["git_diff"]
    state["git_diff"].encode()


def test_what_cannot_be_read_of_a_repository_is_noted_in_the_diff(repository):
    (repository / "gone.py").symlink_to("nowhere")
    (repository / "notes.txt").write_bytes("旧的\n".encode("gbk"))
    os.mkfifo(repository / "pipe.py")
    state = record.git_state.__wrapped__()
    assert len(state["git_sha"]) == 40
    assert "-old\n" in state["git_diff"]
    assert "new file 'gone.py' is left out: no regular file\n" in state["git_diff"]


def test_the_diff_is_bounded_and_says_how_much_is_left_out(repository):
    (repository / "notes.txt").write_text("x" * 3_000_000)
    for k in range(4):
        (repository / f"big{k}.py").write_text("y" * 1_000_000)
    diff = record.git_state.__wrapped__()["git_diff"]
    assert len(diff) < 4 * record.MOST_DIFF
    assert re.search(r"\n\(1,95\d,\d{3} more bytes are left out\)\n", diff)
    assert diff.endswith("(2 more new files are left out)\n")


def test_a_run_is_trained_in_a_repository_whose_files_cannot_be_read(repository, digits, tmp_path):
    (repository / "实验.py").write_text("x = 1\n")
    (repository / "gone.py").symlink_to("nowhere")
    (repository / "notes.txt").write_bytes("旧的\n".encode("gbk"))
    (tmp_path / "config.json").write_text(config.to_json(digits()))
    done = bigmodel("train", tmp_path / "config.json", f"--runs={tmp_path}/runs", cwd=repository)
    assert done.returncode == 0, done.stderr
    (diff,) = (tmp_path / "runs").glob("*/git.diff")
    assert "x = 1" in diff.read_text(encoding="utf-8")


def test_a_run_is_trained_where_nobody_has_a_home(digits, tmp_path, monkeypatch):
    from bigmodel import cli

    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", os.environ.get("JAX_COMPILATION_CACHE_DIR", str(tmp_path)))
    cli.start_jax(argparse.Namespace())
