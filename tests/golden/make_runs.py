"""Runs as a commit leaves them: what tests/test_upgrade.py unpacks, to see that later code finds and continues them.

    PYTHONPATH=TREE python tests/golden/make_runs.py tests/golden/runs-COMMIT.tar.gz

TREE is a checkout of that commit. Never made again for the same commit: the archive is what that code wrote. A later
commit whose runs must stay readable gets an archive of its own.

    done/ID, half/ID    a decoder of the text that conftest.py prepares: finished; and stopped by SIGTERM at its middle
    study.py, study/    a sweep of nine MLPs on scikit-learn's digits: seven finished, one stopped, one not begun
    expected.json       the losses of `half` and of the study's last two rows where nothing stops them
"""

import json
import os
import shutil
import signal
import sys
import tarfile
import tempfile
from pathlib import Path

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
TEXT = {
    "model.width": 8, "model.depth": 1, "model.num_heads": 1, "data.name": "speech", "data.seq_len": 32,
    "data.epochs": 1000, "train.batch_size": 8, "train.steps": 12, "train.eval_examples": 16, "optim.name": "adamw",
    "optim.lr": 0.01, "run.wandb": "off", "run.eval_every": 6,
}  # fmt: skip
STUDY = '''"""Nine small MLPs on scikit-learn's digits."""

CONFIG = "experiments/digits.py"
COMMON = {"model.depth": 1, "optim.lr": 0.003, "optim.weight_decay": 0.01, "train.batch_size": 32, "run.wandb": "off"}


def get_sweep():
    return [{**COMMON, "model.width": w, "train.steps": s} for w in (4, 8, 16) for s in (10, 20, 40)]
'''


def stop_at(step):
    """SIGTERM as that step begins."""
    from bigmodel.run import optim

    whole = optim.learning_rate

    def rate(cfg, t, *args):
        if t == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return whole(cfg, t, *args)

    optim.learning_rate = rate
    return lambda: setattr(optim, "learning_rate", whole)


def stopped(step, work):
    from bigmodel.errors import Retry

    undo = stop_at(step)
    try:
        work()
    except Retry as e:
        print(e)
    else:
        raise SystemExit(f"nothing stopped at step {step}")
    finally:
        undo()


def losses(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row] + [rows[-1]["eval_loss"]]


def make(home):
    from bigmodel import config
    from bigmodel.prepare.prepare import prepare
    from bigmodel.run import session
    from bigmodel.study import sweep

    data = home.parent / "data"
    prepare(str(TESTS / "data"), str(data / "speech"), validation_fraction=0.2, workers=1, progress=False)

    def text(**more):
        pairs = {**TEXT, "run.data_dir": str(data), **{k.replace("__", "."): v for k, v in more.items()}}
        return config.load(ROOT / "experiments/gpt.py", pairs.items())

    expected = {}
    session.train(text(), str(home / "done"), quiet=True)
    half = dict(train__seed=1)
    run_id = session.train(text(**half), str(home.parent / "whole"), quiet=True)["run_id"]
    expected[run_id] = losses(home.parent / "whole" / run_id)
    stopped(5, lambda: session.train(text(**half), str(home / "half"), quiet=True))

    (home / "study.py").write_text(STUDY)
    plan = sweep.make_plan(str(home / "study.py"))
    from etils import epath

    sweep.write_plan(epath.Path(home / "study"), plan)
    *finished, middle, last = plan
    sweep.run("study.py", finished, epath.Path(home / "study"), say=print)
    whole = epath.Path(home.parent / "whole")
    sweep.run("study.py", [middle, last], whole, say=print)
    expected |= {p.run_id: losses(Path(whole) / p.run_id) for p in (middle, last)}
    stopped(9, lambda: sweep.run("study.py", [middle], epath.Path(home / "study"), say=print))
    for item in finished:  # nothing here reads the parameters of these
        shutil.rmtree(home / "study" / item.run_id / "checkpoints")
    for lock in home.rglob("*lock*"):
        print("lock left out:", lock.relative_to(home))
        lock.unlink()
    (home / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


def main():
    (out,) = sys.argv[1:]
    sys.path.append(str(TESTS))
    import conftest  # noqa: F401  (the suite's XLA flags)

    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "runs"
        home.mkdir()
        make(home)
        with tarfile.open(out, "w:gz") as archive:
            for path in sorted(home.iterdir()):
                archive.add(path, path.name)


if __name__ == "__main__":
    main()
