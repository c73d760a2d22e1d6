"""Laws of the literature on their authors' data: ours beside what they print.

    python benchmarks/literature.py --scalebench=DIR --routing=curves.csv.gz --sparsity=DIR --vocabulary=exp_data.csv

Each argument is optional. DIR of scalebench holds farseer-train.parquet and so on (github.com/PlanarG/active-sl);
curves.csv.gz is github.com/google-deepmind/scaling_laws_for_routing's, DIR of sparsity google-research/jaxpruner's
jaxpruner/projects/bigsparse, exp_data.csv sail-sg/scaling-with-vocab's. None is shipped.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from bigmodel.laws import fit as fits

LEAST_SQUARES = 1e3  # a Huber threshold that no residual reaches


def farseer(folder):
    """Trained on 404 runs, the error on the seven larger ones."""
    train, test = (
        pd.read_parquet(folder / f"farseer-{part}.parquet").rename(columns={"loss": "L"}) for part in ("train", "test")
    )
    for law, delta in (("farseer", 1e-3), ("farseer", LEAST_SQUARES), ("chinchilla", 1e-3)):
        found = fits.fit(train, law=law, delta=delta, bootstrap=0, holdout=0)
        error = np.abs(fits.predict_rows(found, test) / test["L"].to_numpy() - 1)
        kind = "Huber 1e-3" if delta < 1 else "least squares"
        print(f"farseer: {law}, {kind}: mean |error| {error.mean():.4%}, largest {error.max():.4%} on {len(test)} runs")
        if law == "farseer":
            print("  ", {k: round(v, 5) for k, v in found["params"].items()}, found["warnings"])


def parallel(folder):
    train, test = (pd.read_parquet(folder / f"parallel-{part}.parquet") for part in ("train", "test"))
    names = {"num_params": "N", "parallel_size": "P", "loss": "L"}
    for group, runs in train.groupby("group"):
        held = test[test["group"] == group].rename(columns=names)
        found = fits.fit(runs.rename(columns=names), law="parallel", bootstrap=0, holdout=0)
        error = np.abs(fits.predict_rows(found, held) / held["L"].to_numpy() - 1)
        print(f"parallel, {group}: mean |error| {error.mean():.4%} on {len(held)} held-out points;", found["params"])


CLARK = {  # Table 3
    "S-Base": (-0.082, -0.108, 0.009, 1.104, 1.847, 314.478),
    "RL-R": (-0.083, -0.126, 0.012, 1.111, 1.880, 469.982),
    "Hash": (-0.087, -0.136, 0.012, 1.157, 4.175, 477.741),
}


def routing(path):
    """The end of each run, dense models as one expert; least squares of the logarithm, as the authors' example."""
    ends = pd.read_csv(path).sort_values("step").groupby("hyper_id").last()
    ends = ends.query("routing_frequency == 0.5 and k == 1 and seed == 42")
    ends = ends.rename(columns={"dense_parameter_count": "N", "num_experts": "experts", "loss_validation": "L"})
    for router, printed in CLARK.items():
        runs = ends[ends["router_type"].isin(["Dense", router])][["N", "experts", "L"]]
        found = fits.fit(runs, law="clark", delta=LEAST_SQUARES, holdout=0)
        inside = 0
        for (name, value), said in zip(found["params"].items(), printed, strict=True):
            low, high = found["ci"][name]
            inside += low <= said <= high
            print(f"{router} ({len(runs)} runs) {name}: printed {said}, ours {value:.4f} [{low:.4f}, {high:.4f}]")
        print(f"{router}: {inside} of {len(printed)} inside;", *found["warnings"], sep="\n  ")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("scalebench", "routing", "sparsity", "vocabulary"):
        parser.add_argument(f"--{name}", type=Path)
    args = parser.parse_args()
    if args.scalebench:
        farseer(args.scalebench)
        parallel(args.scalebench)
    if args.routing:
        routing(args.routing)


if __name__ == "__main__":
    main()
