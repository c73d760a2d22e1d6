"""The isoFLOP doctor (laws/doctor.py) on public budgets, and on planted ones.

    python benchmarks/isoflop_doctor.py FILE.csv             each study: a by parabolas, corrected, debiased; warnings
    python benchmarks/isoflop_doctor.py --planted            noiseless budgets of known laws: errors of N_opt
    python benchmarks/isoflop_doctor.py --planted --draws=60 their means over draws of 0.1 % noise, and deviations

FILE: Czech 2026's data/isoflops/transform/isoflops.csv of github.com/Open-Athena/scaling-law-analysis (a study is an
"experiment"; its "off_center" points are counted beside), or Porian et al. 2024's points (a study is a setting).
"""

import argparse

import numpy as np
import pandas as pd

from bigmodel.errors import UsageError
from bigmodel.laws import budgets, frontier

# E, A, alpha, B, beta: Besiroglu et al. 2024's, Hoffmann et al. 2022's, and one of Czech 2026's unequal exponents
LAWS = {
    "besiroglu": (1.8172, 482.01, 0.3478, 2085.43, 0.3658),
    "hoffmann": (1.6934, 406.4, 0.3392, 410.7, 0.2849),
    "unequal": (1.69, 400.0, 0.465, 15.0, 0.155),
}
# middle of the sizes over N_opt, reach to each side, number of sizes, power of their spacing (1: even in ln N)
GRIDS = {
    "centred, x4": (1, 2, 7, 1), "centred, x16": (1, 4, 7, 1), "centred, x64": (1, 8, 9, 1), "2x above": (2, 4, 7, 1),
    "2x below": (1 / 2, 4, 7, 1), "3x above": (3, 4, 7, 1), "3x below": (1 / 3, 4, 7, 1), "3x above, x64": (3, 8, 9, 1),
    "4x below, x64": (1 / 4, 8, 9, 1), "uneven, x16": (1, 4, 7, 0.4),
}  # fmt: skip


def planted(law, grid, noise=0.0, seed=0):
    """(runs of five budgets, N_opt of each)"""
    (e, a, alpha, b, beta), (middle, reach, n, power) = LAWS[law], GRIDS[grid]
    rng, frames, optima = np.random.default_rng(seed), [], []
    for c in np.geomspace(1e17, 1e21, 5):
        best = (alpha * a / (beta * b) * (c / 6) ** beta) ** (1 / (alpha + beta))
        sizes = best * middle * np.exp(np.log(reach) * (2 * np.linspace(0, 1, n) ** power - 1))
        d = c / 6 / sizes
        loss = (e + a / sizes**alpha + b / d**beta) * np.exp(noise * rng.standard_normal(n))
        frames.append(pd.DataFrame({"N": sizes, "D": d, "C": c, "L": loss}))
        optima.append(best)
    return pd.concat(frames, ignore_index=True), np.array(optima)


def errors(runs, optima):
    """(relative errors of N_opt by parabolas, corrected (2, 5); kinds of fault said)"""
    found = frontier.fit(runs, "isoflop", bootstrap=0)
    parabolas = [np.nan if b["edge"] else b["N_opt"] for b in found["budgets"]]
    own = found["corrected"]["budgets"]
    return np.array([parabolas, [b["N_opt"] for b in own]]) / optima - 1, {b["fault"] for b in own}


def studies(path):
    table = pd.read_csv(path).rename(columns={"tokens": "D", "params": "N", "budget": "C", "flops": "C", "loss": "L"})
    if "experiment" in table:
        yield from table.groupby("experiment")
    else:
        setting = ["file", "dataset", "hparams", "warmup", "decay", "param_count", "val"]
        yield from ((" ".join(key), own) for key, own in table.groupby(setting))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("file", nargs="?")
    parser.add_argument("--planted", action="store_true")
    parser.add_argument("--draws", type=int, default=0)
    parser.add_argument("--laws", default=",".join(LAWS))
    args = parser.parse_args()
    if args.planted:
        print("law, sizes: least and most error of N_opt in % over budgets, by parabolas; corrected; faults said")
        print("with draws: their means, and (standard error of the mean at that budget, deviation of a draw)")
    for law, grid in [(law, grid) for law in args.laws.split(",") for grid in GRIDS] if args.planted else ():
        noise = 1e-3 * bool(args.draws)
        found = [errors(*planted(law, grid, noise, seed)) for seed in range(max(1, args.draws))]
        each = 100 * np.array([error for error, _ in found])
        parabola, corrected = np.nanmean(each, axis=0)
        said = ", ".join(sorted(set.union(*(kinds for _, kinds in found)) - {""})) or "none"
        texts = []
        for mean, spread in zip((parabola, corrected), np.nanstd(each, axis=0), strict=True):
            ends = [f"{mean[k]:+.2f}" for k in (np.argmin(mean), np.argmax(mean))]
            worst = spread[np.argmax(np.abs(mean))]
            noise = f" ({worst / args.draws**0.5:.2f}, {worst:.1f})" if args.draws else ""
            texts.append(" to ".join(ends) + noise)
        print(f"{law}, {grid}: {texts[0]}; {texts[1]}; {said}", flush=True)
    for name, runs in studies(args.file) if args.file else ():
        # A study whose budgets have no gaps is told its own.
        counts = runs["C"].value_counts()
        named = sorted(counts[counts >= 6].index)
        try:
            close = len(named) > 1 and np.diff(np.log(named)).min() < np.log(budgets.BUDGET_GAP)
            found = frontier.fit(runs, "isoflop", bootstrap=300, budgets_at=named if close else None)
        except UsageError as e:
            print(f"{name}: {e}")
            continue
        own = found["corrected"] or {"params": {"a": np.nan}, "ci": {"a": None}, "debiased": None, "budgets": []}
        debiased = (own["debiased"] or {"params": {"a": np.nan}})["params"]["a"]
        off = {f"{b['C']:.3g}" for b in own["budgets"] if b["fault"] == "off-centre"}
        line = f"{name}: a {found['params']['a']:.3f} by parabolas, {own['params']['a']:.3f} {own['ci']['a']} corrected"
        print(f"{line}, {debiased:.3f} debiased; off-centre at {len(off)} of {len(found['budgets'])} budgets")
        if "reason" in runs:
            theirs = {f"{c:.3g}" for c in runs[runs["reason"] == "off_center"]["C"]}
            print(f"  their off_center points are at {len(theirs)} budgets, {len(theirs & off)} of them among these")
        print("".join(f"  {warning}\n" for warning in found["warnings"]), end="")


if __name__ == "__main__":
    main()
