"""ScaleBench (Li et al. 2026, arXiv:2604.22753) by its own protocol, with `laws.choose` as design and fit.

    python benchmarks/scalebench.py FOLDER [--tasks moe,vocab] [--seeds 10] [--out rows.jsonl] [--develop]
    python benchmarks/scalebench.py --table rows.jsonl [--csv benchmarks/scalebench.csv]

FOLDER is a checkout of github.com/PlanarG/active-sl, whose tasks, laws, costs and boxes are imported; nothing of it is
kept here. A method sees the pool's columns and costs, the target's columns, and the values of the runs it paid for.
Each group of a law (a model size, a corpus) is a pool of its own; R2 is over the targets of all groups together,
clipped to [-1, 1], and averaged over laws and seeds. Budgets are 1, 5 and 10 % of what the pool costs (20, 35 and 50 %
of `domain` and `sparsity`), never exceeded; where no run is affordable R2 is -1, as theirs.

One line per task, law, seed and budget is appended to --out, so that a killed run goes on where it was. With
--develop, the most expensive quarter of each pool (a random quarter where all cost the same) stands for the target:
settings of `laws/choose.py` were chosen by that.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from bigmodel.laws.choose import Ensemble, Family

TASKS = {
    "lr&bsz": "lr_bsz",
    "domain": "domain_mixture",
    "vocab": "vocab",
    "parallel": "parallel",
    "moe": "moe",
    "data_con": "data_constrained",
    "sparsity": "sparsity",
    "farseer": "farseer",
}
BUDGETS = (0.01, 0.05, 0.1)
# The largest of each column of the paper's Table 2, over its six methods: R2 at the three budgets.
PUBLISHED = {
    "lr&bsz": (-0.65, 0.00, 0.22),
    "domain": (0.64, 0.91, 0.95),
    "vocab": (0.96, 0.98, 0.98),
    "parallel": (-1.00, 0.77, 0.99),
    "moe": (0.67, 0.80, 0.83),
    "data_con": (0.73, 0.85, 0.86),
    "sparsity": (0.31, 0.44, 0.53),
    "farseer": (0.67, 0.88, 0.93),
}


def adapted(task: Any) -> Family:
    """Their law in a box of units: parameters whose bounds span a decade above zero go by their logarithm."""
    low, high = np.array(task.param_bounds, float).T
    by_log = (low > 0) & (high > 10 * low)
    low, high = (np.where(by_log, np.log(np.where(by_log, x, 1)), x) for x in (low, high))

    def values(theta: np.ndarray, rows: Any) -> tuple[np.ndarray, np.ndarray]:
        raw = np.where(by_log, np.exp(np.where(by_log, theta, 0)), theta)
        # Of one set of parameters their laws drop the first axis.
        value, slopes = task.model_fn(np.vstack([raw, raw]) if len(raw) == 1 else raw, rows["x"])
        value, slopes = value[: len(raw)], slopes[: len(raw)]
        value, slopes = value.reshape(*value.shape[:2], -1), slopes.reshape(*value.shape[:2], -1, len(low))
        return value, slopes * np.where(by_log, raw, 1)[:, None, None]

    return Family(values, low, high)


def split(group: Any) -> Any:
    """The most expensive tenth becomes the target, the cheaper 70 % the pool: true targets lie beyond a gap, too."""
    order = np.argsort(group.cost_train * (1 + 1e-9 * np.random.default_rng(0).random(len(group.cost_train))))
    pool, _, target = np.split(order, [int(0.7 * len(order)), len(order) - max(4, len(order) // 10)])
    return SimpleNamespace(
        X_train=group.X_train[pool],
        y_train=group.y_train[pool],
        cost_train=group.cost_train[pool],
        X_test=group.X_train[target],
        y_test=group.y_train[target],
    )


def predictions(law: Family, group: Any, budgets: tuple[float, ...], seed: int) -> list[tuple[int, Any]]:
    """(runs done, target's predictions or None) at each budget: one sequence of runs."""
    cost = group.cost_train
    ensemble = Ensemble(law, {"x": group.X_train}, cost, {"x": group.X_test}, seed)
    done: list[int] = []
    out = []
    for budget in budgets:
        while new := ensemble.next(done, budget * cost.sum() - cost[done].sum()):
            done += new
            ensemble.fit(done, group.y_train[done])
        out.append((len(done), ensemble.predict() if done else None))
    return out


def score(groups: list[Any], found: list[Any]) -> float:
    pairs = [(g.y_test.ravel(), p.ravel()) for g, p in zip(groups, found, strict=True) if p is not None]
    if not pairs:
        return -1.0
    y, p = (np.concatenate(x) for x in zip(*pairs, strict=True))
    return float(np.clip(1 - np.sum((y - p) ** 2) / np.sum((y - y.mean()) ** 2), -1, 1))


def measure(folder: Path, names: list[str], seeds: int, out: Path, develop: bool) -> None:
    sys.path.insert(0, str(folder))
    from benchmark.task import load_tasks_for_dataset

    kept = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    have = {(row["task"], row["law"], row["seed"]) for row in kept}
    tasks = {name: load_tasks_for_dataset(f"{TASKS[name]}_scaling_law") for name in names}
    for seed in range(seeds):
        for name in names:
            for task in tasks[name]:
                if (name, task.sl_id, seed) in have:
                    continue
                start = time.process_time()
                budgets = tuple(task.budget_checkpoints or BUDGETS)
                groups = [split(g) for g in task.groups] if develop else task.groups
                with np.errstate(all="ignore"):
                    found = [predictions(adapted(task), g, budgets, 100 * seed + i) for i, g in enumerate(groups)]
                seconds = time.process_time() - start
                with out.open("a") as file:
                    for k, budget in enumerate(budgets):
                        row = {"task": name, "law": task.sl_id, "seed": seed, "budget": budget}
                        row |= {"runs": sum(f[k][0] for f in found), "seconds": round(seconds, 2)}
                        row["r2"] = round(score(groups, [f[k][1] for f in found]), 4)
                        file.write(json.dumps(row) + "\n")


def table(path: Path, csv_path: Path | None) -> None:
    """Task by budget: mean and deviation over laws and seeds, beside the best published mean."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    # A seed counts once all laws of its task are done.
    laws = {name: {row["law"] for row in rows if row["task"] == name} for name in PUBLISHED}
    done = {(row["task"], row["seed"], row["law"]) for row in rows}
    rows = [row for row in rows if all((row["task"], row["seed"], law) in done for law in laws[row["task"]])]
    out = []
    for name, published in PUBLISHED.items():
        budgets = sorted({row["budget"] for row in rows if row["task"] == name})
        for k, budget in enumerate(budgets):
            part = [row for row in rows if row["task"] == name and row["budget"] == budget]
            r2 = np.array([row["r2"] for row in part])
            means = [np.mean([row["r2"] for row in part if row["seed"] == s]) for s in {row["seed"] for row in part}]
            line = {"task": name, "level": k, "budget": budget, "laws": len({row["law"] for row in part})}
            line |= {"seeds": len(means), "runs": round(float(np.mean([row["runs"] for row in part])), 1)}
            line |= {"r2": f"{r2.mean():.2f}", "sd": f"{r2.std():.2f}", "sd_of_seeds": f"{np.std(means):.3f}"}
            reached = round(float(r2.mean()), 2) >= published[k]
            out.append(line | {"published": f"{published[k]:.2f}", "reached": int(reached)})
    for line in out:
        print("  ".join(f"{key} {value}" for key, value in line.items()))
    for k, level in enumerate(("1 %", "5 %", "10 %")):
        part = [line["reached"] for line in out if line["level"] == k]
        print(f"{level}: the best published reached on {sum(part)} of {len(part)} tasks")
    if csv_path:
        with csv_path.open("w", newline="") as file:
            writer = csv.DictWriter(file, out[0].keys(), lineterminator="\n")
            writer.writeheader()
            writer.writerows(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path("scalebench.jsonl"))
    parser.add_argument("--develop", action="store_true")
    parser.add_argument("--table", type=Path)
    parser.add_argument("--csv", type=Path)
    args = parser.parse_args()
    if args.table:
        table(args.table, args.csv)
    elif args.folder:
        measure(args.folder, args.tasks.split(","), args.seeds, args.out, args.develop)
        table(args.out, args.csv)
    else:
        parser.error("a FOLDER, or --table")


if __name__ == "__main__":
    main()
