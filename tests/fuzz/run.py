# ruff: noqa: E402, SIM115 (paths are set before imports; streams outlive the lines that open them)
"""Runs the command on inputs that nobody meant, and tells of every one that doesn't end well.

    python tests/fuzz/run.py --seed=0 --count=200       prints each failure, with the command that repeats it
    python tests/fuzz/run.py --seed=17 --count=1 --keep  leaves the folder there, and shows what was printed

It ends well: exit code 0, 1, 2 or 75; no traceback; at 2 one line of ours and nothing changed in the working folder;
less than 60 s of CPU.
"""

import argparse
import collections
import contextlib
import gc
import gzip
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1]), str(Path(__file__).parent)]

import pandas as pd
import zstandard
from conftest import CACHE, ROOT, TINY  # sets what JAX reads when it starts
from inputs import KINDS

from bigmodel import errors, files
from bigmodel.cli import main

os.environ.setdefault("MPLCONFIGDIR", str(CACHE / "matplotlib"))  # HOME is another one below
CPU_LIMIT, WALL_LIMIT = 60, 400  # seconds
MEMORY = 12 * 2**30  # of addresses; JAX reserves some GiB that it never uses
IN_A_PROCESS = 0.1  # of the inputs run as a user runs them

TEXTS = {
    "a.txt": "The quick brown fox jumps over the lazy dog. " * 60,
    "b.jsonl": "".join(
        json.dumps({"text": f"Document {k} of several: 数据 and more text. " * 8}) + "\n" for k in range(12)
    ),
    "c.md": "# Title\n\nSome paragraphs.\n" * 40,
}


# ------------------------------------------------------------------------- the folder


def make_folder() -> None:
    """In the working folder: experiments, texts, prepared data, runs, points, a fit."""
    Path("texts").mkdir()
    for name, text in TEXTS.items():
        Path("texts", name).write_text(text)
    Path("texts/d.txt.gz").write_bytes(gzip.compress(TEXTS["a.txt"].encode(), mtime=0))
    Path("texts/e.jsonl.zst").write_bytes(zstandard.compress(TEXTS["b.jsonl"].encode()))
    pd.DataFrame({"text": ["One text.", None, "Another text."] * 9}).to_parquet("texts/f.parquet")
    Path("texts/g.json").write_text(json.dumps([{"text": "A text in a list. " * 9}] * 9))
    sets = lambda pairs: "".join(f"    config.{k} = {v!r}\n" for k, v in pairs)  # noqa: E731
    digits = dict(train__tokens=0, train__steps=2, train__batch_size=32, model__width=4, model__depth=1)
    digits |= dict(run__wandb="off", train__eval_examples=32)
    head = "from bigmodel import budget\n\n\ndef get_config():\n"
    pairs = [(k.replace("__", "."), v) for k, v in digits.items()]
    Path("digits.py").write_text(f"{head}    config = budget.base('mlp', 'tables')\n{sets(pairs)}    return config\n")
    pairs = [*TINY, ("train.steps", 2), ("model.position", "rope"), ("data.seq_len", 16), ("train.eval_examples", 8)]
    Path("gpt.py").write_text(f"{head}    config = budget.base('decoder', 'text')\n{sets(pairs)}    return config\n")
    Path("study.py").write_text(
        "CONFIG = 'digits.py'\n\ndef get_sweep():\n    return [{'optim.lr': lr} for lr in (1e-3, 2e-3, 3e-3)]\n"
    )
    points = [(n, d, 2 + 10 * n**-0.3 + 20 * d**-0.3) for n in (10**3, 10**4, 10**5) for d in (10**5, 10**6, 10**7)]
    names = [f"{n},{d},{loss:.6f},{6 * n * d},{'ab'[k % 2]}{k}" for k, (n, d, loss) in enumerate(points)]
    Path("points.csv").write_text("\n".join(["params,tokens,loss,flops,name", *names]) + "\n")
    for k, (n, d, loss) in enumerate(points):
        Path(f"made/{k}").mkdir(parents=True)
        row = dict(params=n, tokens=d, loss=loss, flops=6 * n * d, unit="tokens", status="done", run_id=f"r{k}")
        row |= dict(
            params_nonembedding=n, params_kaplan=n, flops_6nd=6 * n * d, unique_tokens=d, steps=10, wall_seconds=1.0
        )
        Path(f"made/{k}/result.json").write_text(json.dumps(files.sealed(row)))
        Path(f"made/{k}/config.json").write_text(json.dumps({"family": "decoder", "model": {"width": 8}, "run": {}}))
    frame = pd.read_csv("points.csv")
    frame.to_csv("points.tsv", sep="\t", index=False)
    frame.to_json("points.json", orient="records")
    frame.to_json("points.jsonl", orient="records", lines=True)
    frame.to_parquet("points.parquet")
    long = ["--config.train.steps=4", "--config.run.checkpoint_every=2", "--config.run.keep=3"]
    for args in (
        ["prepare", "texts", "--out=data/speech", "--workers=1", "--validation-fraction=0.2"],
        ["fit", "points.csv", "--bootstrap=50", "--out=fit.json"],
        ["train", "--config=digits.py", *long],
        ["train", "--config=gpt.py"],
        ["sweep", "run", "study.py"],
    ):
        code, printed = call(args)
        assert code == 0, (args, printed)
        if args[1] == "--config=digits.py":  # as if it had been interrupted
            (home,) = Path("runs").iterdir()
            (home / "result.json").unlink()
            shutil.rmtree(home / "checkpoints/4")


def tree(folder: Path) -> dict[str, bytes | str | None]:
    """Path -> content; of a link where it leads to, of a folder None."""
    found: dict[str, bytes | str | None] = {}
    for at, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name != "__pycache__"]
        for name in (*folders, *names):
            path = os.path.join(at, name)
            key = os.path.relpath(path, folder)
            if os.path.islink(path):
                found[key] = os.readlink(path)
            elif os.path.isdir(path):
                found[key] = None
            else:
                with open(path, "rb") as f:
                    found[key] = f.read()
    return found


def restore(folder: Path, made: dict[str, bytes | str | None]) -> None:
    """`folder` as it was made; only what differs is written."""
    now = tree(folder)
    for key in sorted(now, reverse=True):  # what is in a folder before it
        if key not in made or type(made[key]) is not type(now[key]):
            path = folder / key
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    for key, content in sorted(made.items()):
        if now.get(key, 0) != content or not os.path.lexists(folder / key):
            path = folder / key
            if content is None:
                path.mkdir()
            elif isinstance(content, str):
                os.symlink(content, path)
            else:
                path.write_bytes(content)


# ---------------------------------------------------------------------------- one input


class Hang(BaseException):
    pass


def _hang(*_):
    raise Hang


def call(args: list[str]) -> tuple[object, str]:
    """(exit code, or what was raised, as text; what was printed), in this process."""
    environment = dict(os.environ)
    errors.noted.clear()
    old = [signal.signal(s, _hang) for s in (signal.SIGPROF, signal.SIGALRM)]
    with tempfile.TemporaryFile() as printed:
        sys.stdout.flush(), sys.stderr.flush()
        saved = os.dup(1), os.dup(2)
        out, err = sys.stdout, sys.stderr
        os.dup2(printed.fileno(), 1), os.dup2(printed.fileno(), 2)
        sys.stdout = open(os.dup(1), "w", encoding="utf-8")  # strict, as in a process
        sys.stderr = open(os.dup(2), "w", encoding="utf-8", errors="backslashreplace")
        signal.setitimer(signal.ITIMER_PROF, CPU_LIMIT)
        signal.alarm(WALL_LIMIT)
        try:
            code: object = main.main(args)
        except SystemExit as e:
            code = e.code or 0
        except Hang:
            code = f"Hang: {traceback.format_exc(limit=-3)}"
        except BaseException:
            code = traceback.format_exc(limit=-4)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.alarm(0)
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(Exception):
                    stream.close()
            sys.stdout, sys.stderr = out, err
            for fd, was in zip((1, 2), saved, strict=True):
                os.dup2(was, fd)
                os.close(was)
            for s, handler in zip((signal.SIGPROF, signal.SIGALRM), old, strict=True):
                signal.signal(s, handler)
            os.environ.clear()
            os.environ.update(environment)
            gc.enable()
        printed.seek(0)
        return code, printed.read().decode(errors="replace")


def process(args: list[str]) -> tuple[object, str]:
    """As `call`, as a user runs it."""
    command = [sys.executable, "-m", "bigmodel", *args]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    try:
        done = subprocess.run(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=WALL_LIMIT)
    except subprocess.TimeoutExpired as e:
        return f"Hang: {WALL_LIMIT} s", str(e.output)
    return done.returncode, done.stdout.decode(errors="replace")


def problems(code: object, printed: str, before: dict, after: dict, cpu: float) -> list[str]:
    found = []
    if code not in (0, 1, 2, 75):
        found.append(f"exit: {code}")
    if "Traceback (most recent" in printed:
        found.append("traceback: " + printed[printed.index("Traceback (most recent") :][-1500:])
    if code == 2:
        ours = [x for x in printed.splitlines() if x.startswith("bigmodel: ") and not x.startswith("bigmodel: note: ")]
        if len(ours) != 1:
            found.append(f"{len(ours)} lines of ours")
        if changed := sorted(k for k in {*before, *after} if before.get(k, 0) != after.get(k, 0)):
            found.append(f"refused, and yet changed: {', '.join(changed[:5])}")
    for line in printed.splitlines():
        if "Warning: " in line:
            found.append(f"noise: {line}")
    if cpu > CPU_LIMIT:
        found.append(f"{cpu:.0f} s of CPU")
    return found


def cpu_seconds() -> float:
    return sum(
        u.ru_utime + u.ru_stime for u in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def one(
    seed: int, folder: Path, made: dict, in_a_process: float, keep: bool = False, only: str = ""
) -> tuple[str, list, list, float, object]:
    """(kind, arguments, what is wrong, CPU seconds, exit code) of an input."""
    rng = random.Random(seed)
    kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
    kind = next((k for k in KINDS if k.__name__ == f"kind_{only}"), kind)
    environment = dict(os.environ)
    args = kind(rng)
    own = rng.random() < in_a_process and not any("\0" in a or "\ud800" in a for a in args)
    if not own:  # JAX has counted its devices
        args = [a for a in args if not a.startswith("--host-devices")]
    before, began = tree(folder), cpu_seconds()
    code, printed = (process if own else call)(args)
    cpu = cpu_seconds() - began
    os.environ.clear()
    os.environ.update(environment)
    found = problems(code, printed, before, tree(folder), cpu)
    if keep:
        print(f"{folder}\n{printed}\nexit code {code}, {cpu:.1f} s of CPU")
    else:
        restore(folder, made)
    return kind.__name__.removeprefix("kind_"), args, found, cpu, code


def fuzz(
    seed: int, count: int, in_a_process: float = IN_A_PROCESS, keep: bool = False, say=print, only: str = ""
) -> tuple[list[int], dict]:
    """(seeds that don't end well, inputs by kind and exit code) of `count` inputs from `seed`."""
    base = Path(tempfile.mkdtemp(prefix="bigmodel-fuzz-"))
    folder = base / "a/b/c"  # so that ../.. is still ours
    folder.mkdir(parents=True)
    was, bad, tally = os.getcwd(), [], collections.Counter()
    os.environ["BIGMODEL_CACHE"] = str(base / "cache")
    os.environ["HOME"] = str(base)
    os.chdir(folder)
    try:
        make_folder()
        made = tree(folder)
        for k in range(seed, seed + count):
            began = time.time()
            kind, args, found, cpu, code = one(k, folder, made, in_a_process, keep, only)
            tally[kind, code if isinstance(code, int) else "raised"] += 1
            if cpu > 5:
                say(f"# {k} {kind}: {cpu:.1f} s CPU, {time.time() - began:.0f} s: {short(args)}")
            if found:
                bad.append(k)
                say(f"---- seed {k}, {kind}: {short(args)}")
                for text in found:
                    say("    " + text.strip().replace("\n", "\n    "))
                say(f"    again: python tests/fuzz/run.py --seed={k} --count=1 --keep{only and ' --kind=' + only}")
    finally:
        os.chdir(was)
        if not keep:
            shutil.rmtree(base, ignore_errors=True)
    return bad, tally


def short(args: list[str]) -> str:
    return " ".join(a if len(a) < 90 else f"{a[:60]}...({len(a)})" for a in map(ascii, args))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--processes", type=float, default=IN_A_PROCESS, help="share of inputs run as processes")
    parser.add_argument("--kind", default="", help="only inputs of this kind")
    parser.add_argument("--keep", action="store_true")
    asked = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    failed, tally = fuzz(
        asked.seed,
        asked.count,
        asked.processes,
        asked.keep,
        lambda t: print(t.encode("ascii", "backslashreplace").decode(), flush=True),
        asked.kind,
    )
    for (kind, code), n in sorted(tally.items(), key=str):
        print(f"{kind:14} exit {code}: {n}")
    print(f"{asked.count} inputs, {len(failed)} failed: {failed}; {cpu_seconds():.0f} s of CPU")
    sys.exit(bool(failed))
