"""What benchmarks/campaign.py damages and runs: folders, commands, kinds of faults, and the processes of commands."""

import contextlib
import importlib
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path

from test_flipped_bits import (  # sets the flags of XLA before JAX is imported
    DIGITS,
    NEEDING,
    ON_TEXT,
    PREPARE,
    STUDY,
    done,
    flags,
    make_half_text,
    make_text,
)

from bigmodel import cli
from bigmodel.cli import main
from bigmodel.run import record

ROOT = Path(__file__).resolve().parents[1]
RUN = {"model.width": 8, "train.tokens": 0, "run.wandb": "off", "run.checkpoint_every": 5, "run.keep": 3}
PLAIN = {**RUN, "train.steps": 30}
TRAIN = ["train", DIGITS, *flags(PLAIN)]
NEEDS = ["train", DIGITS, *flags({**NEEDING, "run.checkpoint_every": 2})]
ROWS = f"[{{**{RUN}, 'model.width': w, 'train.steps': n}} for w in (4, 8) for n in (10, 20)]"
SWEEP = re.sub(r"return.*", f"return {ROWS}", STUDY)


# ------------------------------------------------------------------------------ places and commands


def cut_back(folder, step):
    """As a kill in its last steps leaves a run."""
    (folder / "result.json").unlink()
    shutil.rmtree(folder / f"checkpoints/{step}")


def make_finished(pairs=PLAIN):
    done("train", DIGITS, *flags(pairs))
    return next(Path("runs").iterdir())


def make_study():
    """Of four rows two are done, one is interrupted and one has not begun."""
    Path("study.py").write_text(SWEEP)
    done("sweep", "run", "study.py")
    ids = [json.loads(line)["run_id"] for line in Path("runs/study/plan.jsonl").read_text().splitlines()]
    cut_back(Path("runs/study", ids[1]), 20)
    shutil.rmtree(Path("runs/study", ids[3]))


def make_results():
    """Nine finished runs of a known law, and a fit of them."""
    for n in (10**4, 10**5, 10**6):
        for d in (10**6, 10**7, 10**8):
            loss = 2 + 10 * n**-0.3 + 20 * d**-0.3 + 0.02 * (hash((n, d)) % 3)
            row = {"params": n, "params_nonembedding": n, "tokens": d, "loss": loss, "flops": 6 * n * d, "steps": 9}
            row |= {"unit": "tokens", "status": "done", "run_id": f"{n}-{d}", "wall_seconds": 1.0}
            Path(f"runs/{n}-{d}").mkdir(parents=True)
            record.write_record(f"runs/{n}-{d}/result.json", row)
    done(*FIT)


def make_report():
    make_results()
    done(*REPORT)


FIT = ["fit", "runs", "--bootstrap=20", "--out=fit.json"]
REPORT = ["report", "runs", "--out=report"]
BASES = {
    "nothing": lambda: None,
    "sources": lambda: (Path("study.py").write_text(SWEEP), shutil.copytree(ROOT / "tests/data", "texts")),
    "interrupted": lambda: cut_back(make_finished(), 30),
    "needing": lambda: cut_back(make_finished({**NEEDING, "run.checkpoint_every": 2}), 10),
    "finished": make_finished,
    "study": make_study,
    "results": make_results,
    "report": make_report,
    "text": make_text,
    "half text": make_half_text,
}
ANY = ["**/*"]
# name -> (base, argv, files to damage, weight); {run}: the only run, {row}: the plan's interrupted row
COMMANDS = {
    "train": ("nothing", TRAIN, [], 2),
    "train (resumed)": ("interrupted", TRAIN, ANY, 5),
    "train (branches, patience)": ("needing", NEEDS, ANY, 3),
    "train (finished)": ("finished", TRAIN, ANY, 2),
    "train (text)": ("text", ["train", *ON_TEXT], ["data/speech/*"], 1),
    "sweep run (new)": ("sources", ["sweep", "run", "study.py"], [], 0.5),
    "sweep run": ("study", ["sweep", "run", "study.py"], ["runs/**/*"], 2),
    "sweep status": ("study", ["sweep", "status", "study.py"], ["runs/**/*.json*"], 6),
    "worker": ("study", ["worker", "runs/study", "--run={row}"], ["runs/study/plan.jsonl", "runs/study/{row}/**/*"], 3),
    "evaluate": ("finished", ["evaluate", "{run}", "--split=validation"], ANY, 2),
    "fit": ("results", FIT, ["runs/**/*"], 2),
    "plan": ("results", ["plan", "--law=fit.json", "--flops=1e15", "--next-runs=0"], ["fit.json"], 5),
    "report": ("results", REPORT, ["runs/**/*"], 0.2),
    "report (again)": ("report", REPORT, ["report/*.*", "report/figures/*"], 0.2),
    "prepare": ("sources", PREPARE, [], 4),
    "prepare (half)": ("half text", PREPARE, ["data/speech/*"], 5),
    "prepare (again)": ("text", PREPARE, ["data/speech/*"], 4),
}
# What commands import later; each child would load it again, and a limit of its memory would hit that alone.
LATER = ("scipy.optimize", "orbax.checkpoint", "grain", "bigmodel.run.session", "bigmodel.study.workers",
         "bigmodel.prepare.prepare", "bigmodel.laws.report", "bigmodel.models.mlp", "bigmodel.models.decoder",
         "bigmodel.after.evaluate", "jinja2", "tokenizers", "sklearn.datasets", "psutil", "rich.console")  # fmt: skip
READS = ("sweep status", "evaluate", "plan")  # what they print is their outcome
TRAINS = ("train", "sweep run", "worker")


def load():
    for name in (*LATER, *(f"bigmodel.cli.{verb}" for verb in cli.verbs())):
        importlib.import_module(name)


# kind -> weight
KINDS = {
    "bit flipped": 20, "truncated": 12, "emptied": 8, "removed": 4, "compiled program damaged": 4, "SIGKILL": 12,
    "SIGTERM": 8, "SIGTERM twice": 4, "SIGSTOP, continued": 2, "SIGSTOP, killed": 3, "file size limit": 6,
    "disk full": 6, "read-only folder": 3, "memory limit": 3, "file descriptors": 4, "clock jump": 4,
    "two at once": 5, "worker lost": 0.5,
}  # fmt: skip
DAMAGE = ("bit flipped", "truncated", "emptied", "removed")


def draw(seed):
    """(kind, command, the generator that draws moment and place)."""
    rng = random.Random(seed)
    kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
    allowed = [name for name, (_, _, files, _) in COMMANDS.items() if files or kind not in DAMAGE]
    if kind in ("compiled program damaged", "clock jump"):
        allowed = [name for name in allowed if name.startswith(TRAINS) or name == "evaluate"]
    if kind == "removed":  # who removes a run removes a point
        allowed = [name for name in allowed if not name.startswith(("fit", "report"))]
    if kind == "worker lost":
        allowed = ["sweep run (new)", "sweep run"]
    return kind, rng.choices(allowed, [COMMANDS[name][3] for name in allowed])[0], rng


# ---------------------------------------------------------------------------------------- processes


def spawn(argv, home, log, real, prelude=()):
    """Pid of the command in `home`, its output in log.out and log.err. `prelude`: calls in the child before it."""
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setpgid(0, 0)
        os.chdir(home)
        for fd, end in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"{log}.{end}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), fd)
        sys.stdout, sys.stderr = (open(fd, "w", buffering=1, closefd=False) for fd in (1, 2))  # noqa: SIM115
        if real:
            os.environ["PYTHONPATH"] = str(ROOT)
        for call in prelude:
            call()
        if real:
            os.execv(sys.executable, [sys.executable, "-m", "bigmodel", *argv])
        code = main.main(argv)
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    with contextlib.suppress(BaseException):
        sys.stdout.flush()
    os._exit(code)


def ended(pid, limit):
    """Exit code, negative of a signal; None: it had to be killed after `limit` seconds."""
    until = time.monotonic() + limit
    while time.monotonic() < until:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def in_child(folder, call):
    """Calls it in a fork, as what starts threads can't be forked afterwards."""
    pid = os.fork()
    if not pid:
        try:
            os.chdir(folder)
            call()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    assert ended(pid, 600) == 0, f"{call.__name__} of {folder} failed"


def jump(rng):
    """time.time() leaps by up to a year at one of its first calls."""
    clock, after, by, calls = time.time, rng.randrange(60), rng.choice((-1, 1)) * 10 ** rng.uniform(0, 7.5), [0]

    def leaping():
        calls[0] += 1
        return clock() + (by if calls[0] > after else 0)

    def install():
        time.time = leaping

    return install


def limit_memory(more):
    """The address space as it is, and `more` bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more,) * 2)


def damage(path, kind, rng, home):
    """Damages a file; says where."""
    data = bytearray(path.read_bytes())
    at = rng.randrange(len(data)) if data else 0
    if kind == "removed":
        path.unlink()
    elif kind == "emptied":
        path.write_bytes(b"")
    elif kind == "truncated":
        path.write_bytes(data[:at])
    elif data:
        data[at] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
    return f"{os.path.relpath(path, home)} at {at} of {len(data)}"
