"""Faults of benchmarks/campaign.py from seed 1000 on: a bucket that is lost amid a command, a process of a pair.

The bucket is an emulator on loopback (tests/emulators.py). From a moment on, connections are refused for a while or
until the command ends; some or all requests get 503; every answer is late; or replies of some writes are lost. Then the
store is as before, and the command is repeated. The pair is two `bigmodel worker` processes of one row, which join by
--coordinator; process 0, the coordinator, or process 1 is killed or frozen and then killed.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import time
from pathlib import Path

import emulators
from campaign_places import DIGITS, FIT, PLAIN, SWEEP, TRAIN, done, ended, in_child, make_results, spawn

from bigmodel.files import parse_sealed, sealed
from bigmodel.run import claims

FIRST = 1000  # seed
KINDS = {
    "bucket refuses connections": 4, "bucket answers 503": 4, "bucket is slow": 2, "bucket loses replies": 2,
    "coordinator lost": 2, "worker of a pair lost": 2,
}  # fmt: skip
PAIRS = ("coordinator lost", "worker of a pair lost")
LEASE = 3.0
claims.LEASE = LEASE  # of forks; other processes read it
LIMITS = {"BIGMODEL_LEASE": str(LEASE), "BIGMODEL_HEARTBEAT": "10", "BIGMODEL_INIT_TIMEOUT": "60"}
STUDY = ["study.py", "--runs={root}"]
PAIR = """
CONFIG = {!r}
def get_sweep():
    return [{}]
"""


def make_finished(root):
    done(*TRAIN, f"--runs={root}")


def make_study(root):
    done("sweep", "run", "study.py", f"--runs={root}")


def make_points(root):
    make_results()
    return "runs"


# command -> (what makes its folder, then whether its last steps are lost, argv, weight)
COMMANDS = {
    "train (gs, s3)": (None, False, [*TRAIN, "--runs={root}"], 2),
    "train (resumed; gs, s3)": (make_finished, True, [*TRAIN, "--runs={root}"], 4),
    "sweep run (gs, s3)": (make_study, True, ["sweep", "run", *STUDY], 3),
    "sweep status (gs, s3)": (make_study, True, ["sweep", "status", *STUDY], 3),
    "evaluate (gs, s3)": (make_finished, False, ["evaluate", "{root}/{run}", "--split=validation"], 2),
    "fit (gs, s3)": (make_points, False, ["fit", "{root}", *FIT[2:]], 2),
}
WORKER = "worker (pair)"


def draw(seed):
    """(kind, command, the generator that draws the rest)."""
    rng = random.Random(seed)
    kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
    if kind in PAIRS:
        return kind, WORKER, rng
    return kind, rng.choices(list(COMMANDS), [c[3] for c in COMMANDS.values()])[0], rng


def cut_back(runs):
    """A copy of a bucket's runs, as a kill in its last steps leaves one: of a sweep, another has not begun."""
    folders = sorted(p.parent for p in runs.rglob("claim.json"))
    (folders[0] / "result.json").unlink()
    claim = parse_sealed((folders[0] / "claim.json").read_bytes())
    del claim["result"]
    claim |= {"saved": claim["saved"][:-1], "released": True}
    (folders[0] / "claim.json").write_text(json.dumps(sealed(claim)))
    if len(folders) > 1:
        shutil.rmtree(folders[-1])


class Bucket:
    """The runs at `root`, on an emulator of its own that lives as long as this process."""

    def __init__(self, scheme, work):
        self.work, self.scheme = work / f"bucket-{scheme}", scheme
        self.held = {"gs": emulators.gcs, "s3": emulators.s3}[scheme]()
        self.store = self.held.__enter__()
        self.root = self.store.url("runs")
        self.env = {**self.store.env, **LIMITS, "BIGMODEL_CACHE": str(self.work / "cache")}

    def base(self, make, cut, home):
        """A folder of this disk with what the bucket holds at first, made once, in `home`; None: nothing."""
        if make is None:
            return None
        folder = self.work / f"{make.__name__}{'-cut' * cut}"
        if not folder.exists():
            self.fill(None)
            (home / "study.py").write_text(SWEEP)

            def call():
                (local := make(self.root)) and self.opened().put(Path(local), "")

            in_child(home, call)
            self.copy(self.work / "copy")
            if cut:
                cut_back(self.work / "copy")
            (self.work / "copy").rename(folder)
        return folder

    def opened(self):
        from bigmodel.run import objects

        return objects.opened(self.root)

    def fill(self, base):
        """The bucket holds what `base` does, and the machine has no copies of it."""

        from bigmodel.run import objects

        def call():
            home = self.opened()
            if home.listing():
                home.fs.rm(home.root, recursive=True)
            for path in base.rglob("*") if base else ():  # the emulator of gs:// spoils bytes of a multipart upload
                if path.is_file():
                    home.write(str(path.relative_to(base)), path.read_bytes(), objects.ABSENT)

        self.work.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(self.work / "cache", ignore_errors=True)
        in_child(self.work, call)

    def copy(self, folder):
        """What the bucket holds, on this disk."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)

        def call():
            home = self.opened()
            for name, content in home.contents(home.listing()).items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(content)

        in_child(self.work, call)

    def as_on_a_disk(self, folder):
        """A copy laid out as runs of a disk are: without claims and tokens, and with the listed checkpoints."""
        self.copy(folder)
        for path in list(folder.rglob("claim.json")):
            claim, run = claims.parse(path.read_bytes()), path.parent
            (run / "checkpoints").mkdir(exist_ok=True)
            (run / "checkpoints").rename(run / "all")
            (run / "checkpoints").mkdir()
            for token, step in claim.get("saved", ()):
                (run / "all" / f"{token:06d}" / str(step)).rename(run / "checkpoints" / str(step))
            shutil.rmtree(run / "all")
            path.unlink()
        for path in [*folder.rglob("*.json*")]:
            lines = path.read_text(errors="replace").rstrip("\n")
            if path.name == "result.json":
                found = json.loads(lines)
                found.pop("token", None)
                lines = json.dumps(found, indent=1, sort_keys=True)
            path.write_text(f"{lines}\n")

    def mend(self):
        """Everything is answered again, and a claim that wasn't released expires."""
        while True:
            with contextlib.suppress(OSError):  # nothing listens yet
                self.store.slow(0)
                break
            time.sleep(0.1)
        self.store.refuse(0)
        self.store.lose_replies(0)
        time.sleep(LEASE + 0.5)

    def fault(self, kind, moment, rng):
        """(what is done, in words; a function that does it, given the command's pid)."""
        lasts, seconds = rng.random() < 0.2, 10 ** rng.uniform(-1, 1)
        late, every, replies = int(10 ** rng.uniform(1, 2.7)), rng.choice((1, 1, 2, 3, 5)), rng.choice((1, 2, 3, 5))
        what = {
            "bucket refuses connections": f"{'to the end' if lasts else f'{seconds:.1f} s'}",
            "bucket answers 503": f"every {every}, {'to the end' if lasts else f'{seconds:.1f} s'}",
            "bucket is slow": f"{late} ms",
            "bucket loses replies": f"every {replies}",
        }[kind]

        def act(pid):
            time.sleep(moment)
            if kind == "bucket refuses connections":
                self.store.down(int(1000 * (seconds if not lasts else 100)))
            elif kind == "bucket is slow":
                self.store.slow(late)
            elif kind == "bucket loses replies":
                self.store.lose_replies(replies)
            else:
                self.store.refuse(every)
                if not lasts:
                    time.sleep(seconds)
                    self.store.refuse(0)

        return f"{self.scheme}, {what}", act


class Pair:
    """Two processes of a row."""

    def __init__(self, campaign, rng, kind):
        self.campaign, self.victim = campaign, 0 if kind == PAIRS[0] else 1
        self.signals = rng.choice(((signal.SIGKILL,), (signal.SIGTERM,), (signal.SIGSTOP, signal.SIGKILL)))
        self.pause = rng.uniform(0, 3)

    def run(self, argv, moment):
        """(exit code of the pair, its outputs). `moment`: when the fault comes; None: never."""
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            several = [f"--coordinator=127.0.0.1:{s.getsockname()[1]}", "--processes=2"]
        pids = [
            spawn([*argv, *several, f"--process={k}"], self.campaign.home, self.campaign.logs, True) for k in (0, 1)
        ]
        if moment is not None:
            time.sleep(moment)
            for number in self.signals:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pids[self.victim], number)
                time.sleep(self.pause if number == signal.SIGSTOP else 0)
        codes = [ended(pid, self.campaign.limit) for pid in pids]
        if None in codes:
            return None
        if moment is not None and codes[self.victim] != 0:
            codes[self.victim] = 75  # of the one that was hit, nothing is asked
        # The survivor may be ended by JAX's own C++: the worker's page says so.
        return next((75 if code == -signal.SIGABRT else code for code in codes if code), 0)


def make_pair():
    from bigmodel.study import status, sweep

    row = {**PLAIN, "run.mesh.fsdp": 2, "train.steps": 60}
    Path("study.py").write_text(PAIR.format(DIGITS.partition("=")[2], row))
    folder = status.folder_of("study.py", "runs")
    sweep.write_plan(folder, sweep.make_plan("study.py", (), "runs"), "study.py", ())


def inject(campaign, seed, row):
    """The row of campaign.csv of a seed from FIRST on."""
    kind, command, rng = draw(seed)
    row |= {"kind": kind, "command": command}
    when = rng.uniform(0.05, 1.0)
    scheme = rng.choice(("gs", "gs", "s3"))
    environment = dict(os.environ)
    campaign.limit = 240.0
    try:
        found = (pair if kind in PAIRS else bucket)(campaign, kind, command, rng, when, scheme)
    finally:
        campaign.bucket = campaign.pair = None
        campaign.limit = type(campaign).limit
        os.environ.clear()
        os.environ.update(environment)
    return row | {"real": int(kind in PAIRS), **found}


def bucket(campaign, kind, command, rng, when, scheme):
    make, cut, argv, _ = COMMANDS[command]
    there = campaign.buckets.get(scheme) or campaign.buckets.setdefault(scheme, Bucket(scheme, campaign.work))
    os.environ |= there.env
    campaign.fresh(None)
    base = there.base(make, cut, campaign.home)
    run = next((p.parent.name for p in base.glob("*/result.json")), "") if base else ""
    argv = [a.replace("{root}", there.root).replace("{run}", run) for a in argv]

    def fresh():
        campaign.fresh(None)
        (campaign.home / "study.py").write_text(SWEEP)
        there.fill(base)

    campaign.bucket = there
    expected = campaign.undisturbed((command, scheme), argv, fresh)
    fresh()
    there.as_on_a_disk(campaign.home / "runs")
    where, act = there.fault(kind, when * expected[-1], rng)
    said, verdict, codes = campaign.judged(argv, False, (), act, kind, None, None, command, expected[:3])
    return {"where": f"{when:.2f} of its time, {where}", "class": verdict, "said": f"{codes} {said}"[:300]}


def pair(campaign, kind, command, rng, when, scheme):
    base = campaign.base("pair", make_pair)
    os.environ |= LIMITS
    run = json.loads((base / "runs/study/plan.jsonl").read_text())["run_id"]
    argv = ["worker", "runs/study", f"--run={run}", "--host-devices=1"]
    campaign.pair = Pair(campaign, rng, kind)
    expected = campaign.undisturbed(command, argv, lambda: campaign.fresh(base))
    campaign.fresh(base)
    act = when * expected[-1]
    said, verdict, codes = campaign.judged(argv, True, (), act, kind, None, None, command, expected[:3])
    names = "+".join(signal.Signals(s).name for s in campaign.pair.signals)
    return {"where": f"{when:.2f} of its time, {names}", "class": verdict, "said": f"{codes} {said}"[:300]}
