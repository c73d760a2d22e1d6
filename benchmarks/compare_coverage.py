"""How often do the intervals of `bigmodel compare` hold the truth? Planted pairs of recipes, and planted ties.

    OMP_NUM_THREADS=1 python benchmarks/compare_coverage.py --trials=300 --workers=1

Two laws (chinchilla, gadre) x three noise levels of ln L (0.1 %, 0.5 %, 2 %) x designs of 12, 24 and 60 runs (4 x 3, 6
x 4, 10 x 6 of N 1e7 to 3e8 and D/N 5 to 160) x `trials` pairs. B's floor differs from A's by 0.5 %, its coefficients
by 10 %, its exponents by 1 % (standard deviations); C is a second sample of A's law, so that C over A is a true null.
Per cell: the share of 95 % intervals that hold the planted multiplier, at the ends of the runs' compute and 3 to 100
times beyond; of bands that hold it at all scales; and of nulls whose band excludes 1 nowhere, which is "no verdict".
Searches start from the planted law. Interrupted, it continues: finished pairs are in build/compare_coverage.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd
from scipy import stats

from bigmodel.laws import forms, multiplier

LAWS, NOISES, DESIGNS = ("chinchilla", "gadre"), (0.001, 0.005, 0.02), {12: (4, 3), 24: (6, 4), 60: (10, 6)}
SCALES = ("least", "most", "3x", "10x", "30x", "100x")
STORE = Path("build/compare_coverage.jsonl")


def truths(law: str, rng: np.random.Generator) -> tuple[dict, dict]:
    """A law as published ones are (each term 0.3 to 1 nat amid the runs), and one like it."""
    floor = rng.uniform(1.5, 2.2)
    if law == "chinchilla":
        alpha, beta = rng.uniform(0.28, 0.42, 2)
        a, b = rng.uniform(0.3, 1, 2) * (1e7**alpha, 1e9**beta)
        one = {"E": floor, "A": a, "alpha": alpha, "B": b, "beta": beta}
    else:
        eta = rng.uniform(0.14, 0.21)
        a, b = rng.uniform(0.3, 1, 2) * (6e14**eta, 6e18**eta)
        one = {"E": floor, "A": a, "B": b, "eta": eta}
    size = {"E": 0.005, "A": 0.1, "B": 0.1}
    return one, {name: v * np.exp(size.get(name, 0.01) * rng.standard_normal()) for name, v in one.items()}


def study(job: tuple[str, float, int, int]) -> dict:
    """One planted pair and one null: which intervals and bands hold the truth, and how wide the intervals are."""
    name, noise, runs, trial = job
    rng = np.random.default_rng([LAWS.index(name), int(noise * 1e5), runs, trial])
    law, (first, second) = forms.get(name), truths(name, rng)
    sizes, ratios = DESIGNS[runs]
    n, ratio = (x.ravel() for x in np.meshgrid(np.geomspace(1e7, 3e8, sizes), np.geomspace(5, 160, ratios)))
    c = 6 * n * n * ratio
    log_c = np.log([c.min(), c.max(), *(c.max() * x for x in (3, 10, 30, 100))])
    ends, table = (log_c[0], log_c[-1]), multiplier.table_of(log_c)
    curves = [multiplier.frontier(law, law.theta(p)[None], table, ends)[0] for p in (first, second)]
    true = [multiplier.invert(curves[0], table, curves[1][np.searchsorted(table, x)]) - x for x in log_c]
    profiles = []
    for which, planted in zip("ABC", (first, second, first), strict=True):
        loss = law.predict(planted, {"N": n, "D": n * ratio}) * np.exp(noise * rng.standard_normal(runs))
        problem = multiplier.problem_of(law, {"N": n, "D": n * ratio, "L": loss})
        problem, theta, scatter = multiplier.optimum(problem, law.theta(planted)[None], runs)
        side = multiplier.Side(which, pd.DataFrame(), {}, problem, theta, runs, scatter)
        profiles.append(multiplier.profile(side, log_c))
    a, b, null = profiles
    alone = multiplier.multipliers(a, b, stats.t.ppf(0.975, multiplier.freedom(a, b)))
    bands = [multiplier.multipliers(a, other, multiplier.largest_t([(a, other)])) for other in (b, null)]
    held = [[bool(np.all((e[1] <= t) & (t <= e[2]))) for t, e in zip(true, alone.T, strict=True)]]
    whole = [bool(((e[1] <= t) & (t <= e[2])).all()) for t, e in zip((true, 0.0), bands, strict=True)]
    width = [w if np.isfinite(w) else None for w in (alone[2] - alone[1]).tolist()]
    return {"job": list(job), "held": held[0], "band": whole[0], "null": whole[1], "width": width}


def table(done: list[dict]) -> str:
    head = ["law", "noise", "runs", "pairs", *SCALES, "band", "null"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for law, noise, runs in sorted({tuple(r["job"][:3]) for r in done}):
        own = [r for r in done if r["job"][:3] == [law, noise, runs]]
        shares = [*np.mean([r["held"] for r in own], axis=0), *(np.mean([r[k] for r in own]) for k in ("band", "null"))]
        cells = [law, f"{100 * noise:g} %", str(runs), str(len(own)), *(f"{100 * s:.1f}" for s in shares)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=300)
    parser.add_argument("--workers", type=int, default=1)
    args = parser.parse_args()
    STORE.parent.mkdir(exist_ok=True)
    done = [json.loads(line) for line in STORE.read_text().splitlines()] if STORE.exists() else []
    have = {tuple(r["job"]) for r in done}
    # Trials outermost: what is finished when it is interrupted covers every cell.
    jobs = [(w, x, n, t) for t in range(args.trials) for w in LAWS for x in NOISES for n in DESIGNS]
    jobs = [job for job in jobs if job not in have]
    with ProcessPoolExecutor(args.workers) as pool, STORE.open("a") as store:
        for row in pool.map(study, jobs, chunksize=4):
            store.write(json.dumps(row) + "\n")
            store.flush()
            done.append(row)
    print(table([r for r in done if r["job"][3] < args.trials]))


if __name__ == "__main__":
    main()
