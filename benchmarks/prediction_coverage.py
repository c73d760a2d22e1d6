"""How often 95 % intervals of predictions hold the truth: planted laws, 3 to 100 times beyond the runs.

    python benchmarks/prediction_coverage.py [--repeats=200] [--out=FILE.csv]

Runs are planted on a law with noise on ln L, fitted as `bigmodel fit` does, and predicted as `bigmodel predict` does at
the law's own best N and D for 3, 10, 30 and 100 times the largest C. `law` is the share (%) of the law's intervals that
hold the planted loss, `run` that of one run's intervals that hold a loss with noise. `average` fits the average of
gadre and chinchilla.
Rows that --out has already are kept, so that the command goes on where it was stopped.
"""

import argparse
import itertools
import json
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from bigmodel.laws import fit, fitted, forms, predict

PLANTED = {
    "chinchilla": {"E": 1.8172, "A": 482.01, "alpha": 0.3478, "B": 2085.43, "beta": 0.3658},  # Besiroglu et al. 2024
    "gadre": {"E": 1.8172, "A": 665.4, "B": 2878.8, "eta": 0.18},
}
FITTED = {"chinchilla": ("chinchilla", "average"), "gadre": ("gadre", "average")}
AVERAGE = "average:members=gadre+chinchilla"
GAPS = (3, 10, 30, 100)


def design(n):
    """About sqrt(n) sizes, each at as many D/N from 5 to 80."""
    sizes = np.geomspace(3e6, 3e8, int(np.sqrt(n)))
    size, ratio = np.meshgrid(sizes, np.geomspace(5, 80, -(-n // len(sizes))), indexing="ij")
    return size.ravel()[:n], (size * ratio).ravel()[:n]


def trial(truth, law, n, noise, seed, folder):
    """gap -> (the law's interval holds the planted loss, one run's interval holds a run's)"""
    random = np.random.default_rng([seed, n, int(1e5 * noise)])
    size, data = design(n)
    planted = forms.get(truth)
    loss = planted.predict(PLANTED[truth], {"N": size, "D": data}) * np.exp(noise * random.standard_normal(n))
    result = fit.fit(pd.DataFrame({"N": size, "D": data, "L": loss}), law, bootstrap=300, seed=seed, holdout=0)
    path = Path(folder) / "fit.json"
    path.write_text(json.dumps(fit.to_json(result)))
    read, held = fitted.read(str(path)), {}
    for gap in GAPS:
        best_n, best_d = planted.optimum(PLANTED[truth], gap * 6 * float((size * data).max()))
        told = predict.make(read, best_n, best_d)
        true = planted.predict(PLANTED[truth], {"N": [best_n], "D": [best_d]})[0]
        run = true * np.exp(noise * random.standard_normal())
        inside = [
            (part["low"] or 0) < at < (part["high"] or 0) for part, at in ((told["loss"], true), (told["run"], run))
        ]
        held[gap] = inside
    return held


def cell(truth, name, n, noise, repeats, folder):
    law = AVERAGE if name == "average" else name
    trials = [trial(truth, law, n, noise, seed, folder) for seed in range(repeats)]
    row = {"planted": truth, "fitted": name, "runs": n, "noise %": 100 * noise, "repeats": repeats}
    for gap in GAPS:
        law_held, run_held = np.mean([t[gap] for t in trials], axis=0)
        row |= {f"law {gap}x": round(100 * law_held, 1), f"run {gap}x": round(100 * run_held, 1)}
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--out", default="prediction_coverage.csv")
    args = parser.parse_args()
    rows = pd.read_csv(args.out).to_dict("records") if Path(args.out).exists() else []
    done = {(r["planted"], r["fitted"], r["runs"], round(r["noise %"], 3)) for r in rows}
    with tempfile.TemporaryDirectory() as folder:
        for truth, n, noise in itertools.product(PLANTED, (24, 60), (0.001, 0.005, 0.02)):
            for name in FITTED[truth]:
                if (truth, name, n, round(100 * noise, 3)) not in done:
                    rows.append(cell(truth, name, n, noise, args.repeats, folder))
                    pd.DataFrame(rows).to_csv(args.out, index=False)
                    print(rows[-1], flush=True)


if __name__ == "__main__":
    main()
