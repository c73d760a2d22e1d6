"""How often does a 95 % interval hold the truth? Planted laws, fitted by `fit.fit` with its defaults.

    python benchmarks/coverage.py --trials=500 --workers=2

Five laws (seeds) x three noise levels of ln L x `trials` studies of 48 runs (8 sizes x 6 data sizes), each fitted with
1000 resamples. Per law, noise and method: the share of studies whose interval holds the true parameter, for the five
parameters and the exponent a. Written to docs/coverage.csv, a row per law, noise, method and parameter; the table in
docs/results.md is what this prints. Interrupted, it continues: finished studies are in build/coverage.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the workers share the cores

import numpy as np
import pandas as pd
from rich.progress import track

from bigmodel.laws import fit as fits
from bigmodel.laws import forms

SEEDS, NOISES = range(5), (0.001, 0.003, 0.01)
NAMES = ("E", "A", "alpha", "B", "beta", "a")
STORE = Path("build/coverage.jsonl")


def truth(seed: int) -> dict[str, float]:
    """A law as published ones are: exponents of 0.28 to 0.42, E of 1.5 to 2.2 nats."""
    rng = np.random.default_rng(seed)
    alpha, beta = rng.uniform(0.28, 0.42, 2)
    floor = rng.uniform(1.5, 2.2)
    a, b = rng.uniform(0.3, 1.0, 2) * (1e7**alpha, 1e9**beta)  # each term 0.3 to 1 nat at 10M parameters, 1B tokens
    return {"E": float(floor), "A": float(a), "alpha": float(alpha), "B": float(b), "beta": float(beta)}


def study(job: tuple[int, float, int]) -> dict:
    """One planted study: which intervals hold the truth, and how wide they are in units of the truth."""
    seed, noise, trial = job
    law, planted = forms.get("chinchilla"), truth(seed)
    n, d = (x.ravel() for x in np.meshgrid(np.geomspace(1e6, 3e8, 8), np.geomspace(2e7, 2e10, 6)))
    rng = np.random.default_rng([seed, int(noise * 1e6), trial])
    loss = law.predict(planted, {"N": n, "D": d}) * np.exp(noise * rng.standard_normal(len(n)))
    result = fits.fit(pd.DataFrame({"N": n, "D": d, "L": loss}), seed=trial, holdout=0)
    values = planted | {"a": law.exponents(planted)["a"]}
    held = {}
    for method, ends in result["intervals"].items():
        known = {name: ends[name] for name in NAMES if ends.get(name)}
        held[method] = {name: [lo <= values[name] <= hi, (hi - lo) / values[name]] for name, (lo, hi) in known.items()}
    return {"seed": seed, "noise": noise, "trial": trial, "held": held}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=500)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    STORE.parent.mkdir(exist_ok=True)
    done = [json.loads(line) for line in STORE.read_text().splitlines()] if STORE.exists() else []
    have = {(r["seed"], r["noise"], r["trial"]) for r in done}
    # Trials outermost: what is finished when it is interrupted covers every law.
    jobs = [(s, x, t) for t in range(args.trials) for s in SEEDS for x in NOISES if (s, x, t) not in have]
    with ProcessPoolExecutor(args.workers) as pool, STORE.open("a") as store:
        for row in track(pool.map(study, jobs, chunksize=4), total=len(jobs), description="studies"):
            store.write(json.dumps(row) + "\n")
            store.flush()
            done.append(row)
    rows = [
        {"seed": r["seed"], "noise": r["noise"], "method": m, "parameter": p, "held": ok, "width": width}
        for r in done
        if r["trial"] < args.trials
        for m, known in r["held"].items()
        for p, (ok, width) in known.items()
    ]
    table = pd.DataFrame(rows)
    keys = ["noise", "seed", "method", "parameter"]
    cells = table.groupby(keys, sort=False).agg(
        studies=("held", "size"), coverage=("held", "mean"), width=("width", "median")
    )
    cells.round(4).to_csv("docs/coverage.csv")
    whole = table.groupby(["noise", "method", "parameter"], sort=False)["held"].mean().unstack()[list(NAMES)]
    worst = cells.groupby(["noise", "method"], sort=False)["coverage"].agg(["min", "max"])
    print("| noise | method | " + " | ".join([*NAMES, "one law, least", "most"]) + " |")
    print("|" + "---|" * (len(NAMES) + 4))
    for (noise, method), row in whole.join(worst).iterrows():
        print(f"| {noise} | {method} | " + " | ".join("" if np.isnan(v) else f"{100 * v:.1f}" for v in row) + " |")


if __name__ == "__main__":
    main()
