"""Faults injected into real commands; the end is compared with that of the undisturbed command.

    python benchmarks/campaign.py --seeds=0:1000        adds the seeds that campaign.csv lacks, and prints the table
    python benchmarks/campaign.py --seed=417            repeats one fault, and keeps its files

Seeds from 1000 on are of buckets and of pairs of processes (campaign_lost.py).

A fault is a function of its seed: a kind, a command, a moment (a share of the undisturbed command's time) and a place.
After it the same command is repeated, at most REPEATS times, without the fault (damage to a file stays). Classes:

  equal          results, metrics and arrays of the newest checkpoint are bit for bit the undisturbed ones
  told           so are they, and a line said what was damaged, left out or to be repeated
  refused        one line names what is wrong, exit code 2, and the file isn't touched
  LOST           work that was done is gone, or can't be got back by the same command
  RESTARTED      from step 0 although a whole checkpoint was there
  SILENTLY WRONG something differs and no line says so
  TRACEBACK      a stack trace, or a death by itself
  HUNG           no end within LIMIT seconds

Most commands run in a fork of this process, which imports the package and never initialises a JAX backend; each 20th
seed runs `python -m bigmodel`. Disks that are full or read-only are mounts in a mount namespace of this process's own,
and need root.
"""

import argparse
import collections
import contextlib
import csv
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import campaign_lost as lost  # noqa: E402
from campaign_places import (  # noqa: E402
    BASES,
    COMMANDS,
    DAMAGE,
    KINDS,
    READS,
    TRAINS,
    damage,
    draw,
    ended,
    in_child,
    jump,
    limit_memory,
    load,
    spawn,
)
from test_flipped_bits import CLOCK, TELLS, differing, outcome  # noqa: E402

REPEATS, LIMIT, REAL, IMPORTS = 3, 90.0, 25, 5.0
FIELDS = ("seed", "kind", "command", "real", "where", "class", "said")
GOOD = ("equal", "told", "refused")
BAD = ("LOST", "RESTARTED", "SILENTLY WRONG", "TRACEBACK", "HUNG")

# ---------------------------------------------------------------------------------------- the fault


class Campaign:
    limit, bucket, pair = LIMIT, None, None

    def __init__(self, work):
        self.buckets = {}
        self.work, self.home, self.real_cache = work, work / "home", work / "cache"
        self.expected, self.logs, self.mounted = {}, work / "log", ""
        self.real_cache.mkdir(parents=True, exist_ok=True)

        load()

    def cache(self, folder):
        """The compilation cache of the commands to come. JAX reads the variable when it is imported."""
        import jax

        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        os.environ |= {"JAX_COMPILATION_CACHE_DIR": str(folder), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
                       "BIGMODEL_CACHE": str(folder.parent / "bigmodel-cache")}  # fmt: skip

    def base(self, name, make=None):
        """The folder of a base, made once, in a child."""
        folder = self.work / "bases" / name.replace(" ", "-")
        if not folder.exists():
            self.fresh(None)
            in_child(self.home, make or BASES[name])
            shutil.copytree(self.home, folder)
        return folder

    def fresh(self, base):
        """`home` as the base is; the same path every time, which records and keys contain."""
        if self.mounted:
            subprocess.run(["umount", "-l", self.home], check=True)
            self.mounted = ""
        for _ in range(50):  # a process that was killed may still be dying
            shutil.rmtree(self.home, ignore_errors=True)
            if not self.home.exists():
                break
            time.sleep(0.1)
        else:
            shutil.rmtree(self.home)
        shutil.copytree(base, self.home) if base else self.home.mkdir(parents=True)

    def argv(self, command):
        base, argv, _, _ = COMMANDS[command]
        there = self.base(base)
        run = next((str(p.parent.relative_to(there)) for p in there.glob("runs/*/config.json")), "")
        plan = there / "runs/study/plan.jsonl"
        row = json.loads(plan.read_text().splitlines()[1])["run_id"] if plan.exists() else ""
        return [str(a).replace("{run}", run).replace("{row}", row) for a in argv], row

    def run(self, argv, real=False, prelude=(), act=None):
        """(exit code, stdout, stderr) of a command, during which `act(pid)` is called once it has begun."""
        for end in ("out", "err"):
            Path(f"{self.logs}.{end}").write_text("")
        if self.pair:
            code = self.pair.run(argv, act)
        else:
            pid = spawn(argv, self.home, self.logs, real, prelude)
            if act:
                act(pid)
            code = ended(pid, self.limit)
        out, err = (Path(f"{self.logs}.{end}").read_text(errors="replace") for end in ("out", "err"))
        return code, out, err

    def whole(self, command):
        base, (argv, _) = self.base(COMMANDS[command][0]), self.argv(command)
        return self.undisturbed(command, argv, lambda: self.fresh(base), 2 if command.startswith(TRAINS) else 1)

    def undisturbed(self, command, argv, fresh, times=2):
        """(what is there, stdout, stderr, seconds) after it; the second of two, for its time."""
        if command not in self.expected:
            for _ in range(times):
                fresh()
                began = time.monotonic()
                code, out, err = self.run(argv)
                assert code == 0, (command, code, err)
                seconds = time.monotonic() - began
            self.look()
            self.expected[command] = outcome(self.home), out, err, seconds
        return self.expected[command]

    def look(self, mend=False):
        """Copies what a bucket holds to where a disk's runs are."""
        if self.bucket:
            if mend:
                self.bucket.mend()
            self.bucket.as_on_a_disk(self.home / "runs")

    def inject(self, seed, keep=False):
        """A row of campaign.csv."""
        if seed >= lost.FIRST:
            return lost.inject(self, seed, dict.fromkeys(FIELDS, "") | {"seed": seed})
        kind, command, rng = draw(seed)
        real = seed % REAL == 0 or kind == "worker lost"
        if kind in ("memory limit", "clock jump"):
            real = False
        row = dict.fromkeys(FIELDS, "") | {"seed": seed, "kind": kind, "command": command, "real": int(real)}
        if kind in ("disk full", "read-only folder") and os.geteuid():
            return {**row, "class": "not run: needs root"}
        self.cache(self.real_cache / "xla")
        there0, out0, err0, seconds = self.whole(command)
        seconds += IMPORTS * real
        argv, id_ = self.argv(command)
        base = self.base(COMMANDS[command][0])
        self.fresh(base)
        prelude, act, file, when = [], None, None, rng.uniform(0.05, 1.0)
        moment = when * seconds
        row["where"] = f"{when:.2f} of its time" if kind.startswith("SIG") else ""
        if kind in DAMAGE:
            globs = [g.replace("{row}", id_) for g in COMMANDS[command][2]]
            files = sorted({p for g in globs for p in self.home.glob(g) if p.is_file() and p.stat().st_size})
            groups = collections.defaultdict(list)  # as many arrays as records
            for p in files:
                groups["array" if re.fullmatch("[0-9a-f]{32}", p.name) else p.name].append(p)
            file = rng.choice(groups[rng.choice(sorted(groups))])
            row["where"] = damage(file, kind, rng, self.home)
        elif kind == "compiled program damaged":
            shutil.rmtree(self.work / "spoilt", ignore_errors=True)
            shutil.copytree(self.real_cache / "xla", self.work / "spoilt")
            self.cache(self.work / "spoilt")
            how = rng.choice(DAMAGE[:3])
            for path in sorted(self.work.glob("spoilt/*-cache")):
                damage(path, how, rng, self.home)
            row["where"] = f"all, {how}"
        elif kind.startswith("SIG"):
            act = self.signals(kind, moment, rng, argv)
        elif kind == "file size limit":
            size = int(10 ** rng.uniform(1.5, 5))
            row["where"] = f"{size} bytes"
            prelude.append(lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, -1)))
            prelude.append(lambda: signal.signal(signal.SIGXFSZ, signal.SIG_IGN))
        elif kind == "disk full":
            self.mounted = kind
            self.mount("size=1g", base)
            used = 4096 * sum((p.stat().st_size + 4095) // 4096 + 1 for p in self.home.rglob("*"))
            free = 4096 * int(10 ** rng.uniform(0, 2.2))
            row["where"] = f"{free} bytes are free"
            subprocess.run(["mount", "-o", f"remount,size={used + free}", self.home], check=True)
        elif kind == "read-only folder":
            self.mounted = kind
            subprocess.run(["mount", "--bind", self.home, self.home], check=True)
            subprocess.run(["mount", "-o", "remount,ro,bind", self.home], check=True)
            row["where"] = "all"
        elif kind == "memory limit":
            more = int(10 ** rng.uniform(7, 9.3))
            row["where"] = f"{more / 2**20:.0f} MiB more"
            prelude.append(lambda: limit_memory(more))
        elif kind == "file descriptors":
            most = rng.randrange(4, 40)
            row["where"] = f"{most} more"
            prelude.append(lambda: self.limit_files(most))
        elif kind == "clock jump":
            prelude.append(jump(rng))
        elif kind == "two at once":
            act = self.twice(argv, real, rng.uniform(0, 1) ** 2 * seconds)
        elif kind == "worker lost":
            argv = [*argv, "--workers=2"]
            act = self.lose(rng, moment)
        before = file.read_bytes() if file and file.exists() else None
        said, verdict, codes = self.judged(argv, real, prelude, act, kind, file, before, command, (there0, out0, err0))
        row |= {"class": verdict, "said": f"{codes} {said}"[:300]}
        self.cache(self.real_cache / "xla")
        if not keep:
            self.fresh(None)
        return row

    def mount(self, options, base):
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", self.home], check=True)
        shutil.copytree(base, self.home, dirs_exist_ok=True)

    def limit_files(self, more):
        open_ = max(map(int, os.listdir("/proc/self/fd")))
        resource.setrlimit(resource.RLIMIT_NOFILE, (open_ + more,) * 2)

    def signals(self, kind, moment, rng, argv):
        pause, again = rng.uniform(0, 0.6), rng.uniform(0.5, 0.8)

        def act(pid):
            time.sleep(moment)
            first = {"SIGK": signal.SIGKILL, "SIGT": signal.SIGTERM, "SIGS": signal.SIGSTOP}[kind[:4]]
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, first)
                if kind == "SIGTERM twice":
                    time.sleep(again)
                    os.kill(pid, signal.SIGTERM)
                elif first == signal.SIGSTOP:
                    time.sleep(pause)
                    os.kill(pid, signal.SIGCONT if "continued" in kind else signal.SIGKILL)

        return act

    def twice(self, argv, real, pause):
        def act(pid):
            time.sleep(pause)
            self.second = spawn(argv, self.home, self.logs, real)
            self.second_code = ended(self.second, LIMIT)

        return act

    def lose(self, rng, moment):
        def act(pid):
            time.sleep(moment)
            children = Path(f"/proc/{pid}/task/{pid}/children")
            workers = [int(c) for c in children.read_text().split()] if children.exists() else []
            if workers:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(rng.choice(workers), rng.choice((signal.SIGKILL, signal.SIGTERM)))

        return act

    def steps(self):
        """Run -> (its newest whole checkpoint, how many attempts it notes, the step of the last one)."""
        found = {}
        for folder in self.home.glob("runs/**/checkpoints"):
            saved = max((int(p.name) for p in folder.iterdir() if p.name.isdigit()), default=0)
            path, attempts = folder.parent / "attempts.jsonl", []
            for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    attempts.append(json.loads(line)["step"])
            found[folder.parent] = saved, len(attempts), attempts[-1] if attempts else 0
        return found

    def judged(self, argv, real, prelude, act, kind, file, before, command, expected):
        there0, out0, err0 = expected
        codes, lines = [], []
        checkpoints = self.steps()
        for number in range(REPEATS + 1):
            self.second_code = 0
            code, out, err = self.run(argv, real, prelude if not number else (), act if not number else None)
            self.look(not number)
            codes.append(code if not self.second_code else (code, self.second_code))
            known = set(CLOCK.sub("", out0 + err0).splitlines())
            new = [x for x in (err + out).splitlines() if CLOCK.sub("", x) not in known]
            lines += [x for x in new if x.startswith("bigmodel: ") or TELLS.search(x)]
            told = next(iter(lines), "")
            if code is None or self.second_code is None:
                return "", "HUNG", codes
            died = code < 0 and not (kind.startswith("SIG") or kind == "memory limit")
            if died or "Traceback" in err or ("Error" in err and code == 1 and "bigmodel: " not in err):
                last = [x for x in err.splitlines() if x and not x.startswith(" ")]
                return f"{last[-1] if last else ''}", "TRACEBACK", codes
            for run, (saved, count, start) in self.steps().items():
                had, attempts = checkpoints.get(run, (0, 0, 0))[:2]
                if had and count > attempts and not start and not (file and file.name == "attempts.jsonl"):
                    return f"{run.name}: from 0, had {had}", "RESTARTED", codes
                checkpoints[run] = saved, count, start
            if file and (code == 2 or (code == 1 and file.name in told)):  # 1: of a sweep's row
                if not told or (before is not None and (not file.exists() or file.read_bytes() != before)):
                    return told, "LOST", codes
                return told, "refused", codes
            if number and code == 0:
                break
            if code == 0 and not self.second_code and not act and not prelude:
                break
            if not number:
                self.mend()
            if code == 1 and command.startswith("sweep run") and "--retry-failed" not in argv:
                argv = [*argv, "--retry-failed"]
        if code:
            return told or (err.splitlines() or [""])[-1], "LOST", codes
        there = outcome(self.home)
        name = str(file.relative_to(self.home)) if file else "-"
        untouched = file and ((file.read_bytes() if file.exists() else None) == before)
        # A file that nobody read stays as it is; that of a checkpoint is in `outcome` under its folder.
        wrong = [k for k in differing(there, there0) if not (untouched and (k == name or name.startswith(f"{k}/")))]
        if command in READS and CLOCK.sub("", out) != CLOCK.sub("", out0):
            wrong.append("what it prints")
        if wrong and told and ((name.endswith(".jsonl") and wrong == [name]) or command in (*READS, "fit", "report")):
            wrong = []  # a record with holes, or a row left out: as said
        if wrong:
            return f"{wrong[:3]} {told}", "LOST" if told else "SILENTLY WRONG", codes
        return told, "told" if told else "equal", codes

    def mend(self):
        """Takes away what `inject` has mounted."""
        if self.mounted:
            option = "remount,size=1g" if self.mounted == "disk full" else "remount,rw,bind"
            subprocess.run(["mount", "-o", option, self.home], check=True)


def table(rows):
    """A markdown table: kind x class."""
    count = collections.Counter((row["kind"], row["class"]) for row in rows)
    classes = [*GOOD, *BAD, *sorted({c for _, c in count} - {*GOOD, *BAD})]
    lines = ["| kind | faults | " + " | ".join(classes) + " |", "|---" * (len(classes) + 2) + "|"]
    for kind in (*KINDS, *lost.KINDS, "all"):
        numbers = [sum(n for (k, c), n in count.items() if kind in (k, "all") and c == name) for name in classes]
        lines.append(f"| {kind} | {sum(numbers)} | " + " | ".join(map(str, numbers)) + " |")
    return "\n".join(lines)


def totals(rows):
    """Rows of docs/faults.csv: how many faults of each kind, into each command, ended in each class."""
    count = collections.Counter((row["kind"], row["command"], row["class"]) for row in rows)
    return [("kind", "command", "class", "faults"), *((*key, n) for key, n in sorted(count.items()))]


def run_seeds(seeds, work, path, keep=False, say=print):
    """Adds the rows of the seeds that the csv lacks; returns all of its rows for them."""
    rows = {int(r["seed"]): r for r in csv.DictReader(path.open())} if path.exists() else {}
    campaign = Campaign(work)
    for seed in seeds:
        if seed in rows and not keep:
            continue
        began = time.monotonic()
        row = rows[seed] = campaign.inject(seed, keep)
        if row["class"] not in GOOD or keep:
            say(f"{seed} {row['kind']}, {row['command']}, {row['where']}: {row['class']} {row['said']}", flush=True)
        row["seconds"] = f"{time.monotonic() - began:.1f}"
        new = not path.exists()
        with path.open("a", newline="") as f:
            writer = csv.DictWriter(f, list(row))
            writer.writeheader() if new else None
            writer.writerow(row)
    return [rows[seed] for seed in seeds]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0:1000", help="FROM:TO, or single ones: 3,17,26")
    parser.add_argument("--seed", type=int, help="repeat one fault, and keep its files")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / f"bigmodel-campaign-{os.getuid()}")
    parser.add_argument("--csv", type=Path, help="default: WORK/campaign.csv")
    return parser.parse_args()


if __name__ == "__main__":
    args = arguments()
    if not os.geteuid() and "BIGMODEL_CAMPAIGN" not in os.environ and shutil.which("unshare"):
        os.environ["BIGMODEL_CAMPAIGN"] = "1"  # a mount namespace of its own
        os.execvp("unshare", ["unshare", "-m", "--propagation", "private", sys.executable, *sys.argv])
    warnings.filterwarnings("ignore", message=r"os\.fork\(\) was called")
    work = args.work.resolve()
    if args.seed is not None:
        run_seeds([args.seed], work, work / "one.csv", keep=True)
        print(f"files: {work / 'home'}, {work}/log.err (mounted ones are gone with this process)")
    else:
        first, _, last = args.seeds.partition(":")
        seeds = range(int(first), int(last)) if last else [int(seed) for seed in first.split(",")]
        found = run_seeds(seeds, work, args.csv or work / "campaign.csv")
        print(table(found))
        with (work / "faults.csv").open("w", newline="") as f:
            csv.writer(f, lineterminator="\n").writerows(totals(found))
        sys.exit(any(row["class"] in BAD for row in found))
