"""Whole commands of another commit beside this tree's, in turns: what integrity and upgrades cost.

    python benchmarks/beside.py 23bee87                       # step, fit, plan, prepare; seven turns each
    python benchmarks/beside.py 23bee87 step --turns=11

Each turn runs the command in one tree and then in the other, the first to go alternating. What is compared is the
median of the turns' ratios of CPU seconds (user and system, children included), and of the wall's. An idle machine's
ratios repeat to about 2 %. Both read the same prepared data, which the other commit has made.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
from io import BytesIO
from pathlib import Path

ROOT = Path(__file__).parents[1]
STEPS = 300


def texts(folder, size=12_000_000):
    """About so many bytes of real text: Python's own sources."""
    folder.mkdir()
    total = 0
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        if total < size and path.stat().st_size:
            content = path.read_bytes().decode("utf-8", errors="ignore")
            name = "-".join(path.relative_to(sysconfig.get_path("stdlib")).parts)
            (folder / f"{name}.txt").write_text(content)
            total += len(content)


def points(path):
    """Runs of Chinchilla's law with a little noise."""
    import numpy as np

    rng = np.random.default_rng(0)
    n, d = 10 ** rng.uniform(7, 10, 240), 10 ** rng.uniform(9, 11.5, 240)
    loss = (1.8 + 480 / n**0.35 + 2100 / d**0.37) * np.exp(0.003 * rng.standard_normal(240))
    rows = (f"{a:.6g},{b:.6g},{c:.6f}" for a, b, c in zip(n, d, loss, strict=True))
    path.write_text("\n".join(["params,tokens,loss", *rows]) + "\n")


SWEEP = """CONFIG = {experiment!r}
def get_sweep():
    from bigmodel import sweep
    shapes = sweep.ladder("decoder", [16, 24, 32, 48, 64, 96], [1, 2, 3, 4])
    rates = [{{"optim.lr": 0.001 * k, "run.wandb": "off"}} for k in range(1, 13)]
    return sweep.product({{"train.steps": [100]}}, shapes, rates)
"""


def commands(tree, home, data):
    """name -> the command of one turn; {turn} is a number."""
    gpt = [f"--config={tree / 'experiments/gpt.py'}", "--config.data.name=mine", f"--config.run.data_dir={data}"]
    train = [
        "train", *gpt, "--config.run.wandb=off", f"--config.train.steps={STEPS}", "--config.train.eval_examples=64",
        "--config.train.seed={turn}", f"--runs={home}/runs",
    ]  # fmt: skip
    (home / "plan.py").write_text(SWEEP.format(experiment=str(tree / "experiments/gpt.py")))
    plan = ["sweep", "plan", f"{home}/plan.py", f"--runs={home}/plans-{{turn}}", *gpt[1:]]
    return {
        "step": train,
        "fit": ["fit", f"{data.parent}/points.csv", f"--out={home}/fit.json"],
        "plan": plan,
        "prepare": [
            "prepare",
            f"{data.parent}/texts",
            "--tokenizer=bpe",
            "--vocab-size=1024",
            f"--out={home}/made-{{turn}}",
        ],
    }


def run(tree, command, turn):
    """(CPU seconds, wall seconds)"""
    words = [word.replace("{turn}", str(turn)) for word in command]
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    env = {**os.environ, "PYTHONPATH": str(tree), "JAX_PLATFORMS": "cpu"}
    # Not in a checkout: `python -m` would take the package from the folder that it runs in.
    command, where = [sys.executable, "-m", "bigmodel", *words], tempfile.gettempdir()
    done = subprocess.run(command, env=env, cwd=where, capture_output=True, text=True)
    wall = time.perf_counter() - began
    if done.returncode:
        sys.exit(f"{tree}: {' '.join(words)}: {done.stderr[-500:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall


def check(tree):
    """The package that a command of this tree imports is the tree's."""
    code, env = "import bigmodel; print(bigmodel.__file__)", {**os.environ, "PYTHONPATH": str(tree)}
    command, where = [sys.executable, "-c", code], tempfile.gettempdir()
    found = subprocess.run(command, env=env, cwd=where, capture_output=True, text=True, check=True).stdout
    if not found.startswith(str(tree)):
        sys.exit(f"{tree}: {found.strip()} is imported instead")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit")
    parser.add_argument("names", nargs="*", help="of step, fit, plan, prepare (default: all)")
    parser.add_argument("--turns", type=int, default=7)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        there = Path(scratch) / "tree"
        archive = subprocess.run(["git", "archive", args.commit], cwd=ROOT, capture_output=True, check=True).stdout
        with tarfile.open(fileobj=BytesIO(archive)) as files:
            files.extractall(there, filter="data")
        trees = {args.commit: there, "this tree": ROOT}
        texts(Path(scratch) / "texts")
        points(Path(scratch) / "points.csv")
        todo = {}
        for name, tree in trees.items():
            check(tree)
            home = Path(scratch) / name.replace(" ", "-")
            home.mkdir()
            os.environ["BIGMODEL_CACHE"] = str(home / "cache")  # compilations and checks of each tree are its own
            prepared = Path(scratch) / "data" / "mine"
            if not prepared.exists():
                run(tree, ["prepare", str(Path(scratch) / "texts"), f"--out={prepared}"], 0)
            todo[name] = commands(tree, home, prepared.parent), home
        found = {}
        for what in args.names or todo["this tree"][0]:
            seconds = {name: [] for name in trees}
            for turn in range(args.turns + 1):  # the first one compiles, and isn't counted
                for name in list(trees)[:: 1 if turn % 2 else -1]:
                    os.environ["BIGMODEL_CACHE"] = str(todo[name][1] / "cache")
                    spent = run(trees[name], todo[name][0][what], turn)
                    if turn:
                        seconds[name].append(spent)
            pairs = list(zip(seconds["this tree"], seconds[args.commit], strict=True))
            ratios = {k: statistics.median(a[i] / b[i] for a, b in pairs) for i, k in enumerate(("cpu", "wall"))}
            medians = {name: statistics.median(s[0] for s in rows) for name, rows in seconds.items()}
            found[what] = {**ratios, "cpu_seconds": medians}
            print(f"{what}: CPU {ratios['cpu']:.3f}, wall {ratios['wall']:.3f} of {args.commit}'s "
                  f"({medians['this tree']:.2f} and {medians[args.commit]:.2f} CPU s)", flush=True)  # fmt: skip
        print(json.dumps(found))


if __name__ == "__main__":
    main()
