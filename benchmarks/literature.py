"""Laws of the literature on their authors' data: ours beside what they print.

    python benchmarks/literature.py --scalebench=DIR --routing=curves.csv.gz --sparsity=DIR \\
        --vocabulary=exp_data.csv --regmix=DIR                                               (2 minutes of one core)

Each argument is optional. DIR of scalebench holds farseer-train.parquet and so on (github.com/PlanarG/active-sl);
curves.csv.gz is github.com/google-deepmind/scaling_laws_for_routing's, DIR of sparsity google-research/jaxpruner's
jaxpruner/projects/bigsparse, exp_data.csv sail-sg/scaling-with-vocab's, DIR of regmix the data of sail-sg/regmix. None
is shipped.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from bigmodel.laws import fit as fits
from bigmodel.laws import forms

LEAST_SQUARES = 1e3  # a Huber threshold that no residual reaches


FARSEER = {"f_0": 0.451381, "f_1": -0.120111, "q": 0.13, "g_0": 130.0693, "g_1": -1.108683, "b": -0.1729}
FARSEER |= {"h_0": 0.307693, "h_1": -0.197921, "a": 0.0459}  # the printed constants


def farseer(folder):
    """Trained on the 404 runs, the error on the seven that cost more."""
    train, test = (
        pd.read_parquet(folder / f"farseer-{part}.parquet").rename(columns={"loss": "L"}) for part in ("train", "test")
    )
    for law, delta in (("farseer", 1e-3), ("farseer", LEAST_SQUARES), ("chinchilla", 1e-3)):
        kind = "Huber 1e-3" if delta < 1 else "least squares"
        error = held_out(train, test, law, delta)
        print(f"farseer: {law}, {kind}, {len(train)} runs: mean |error| {error:.4%} on {len(test)} runs")
    guess = forms.get("farseer").predict(FARSEER, test)
    print(f"farseer: the printed constants: mean |error| {np.abs(guess / test['L'] - 1).mean():.4%}")
    # The same with the cheapest runs left out, from as many FLOPs on as best predicts the dearest training runs, those
    # within a factor 3 of the largest, from the others.
    flops = 6 * train["N"] * train["D"]
    dear = flops > flops.max() / 3
    cuts = [c for c in (1e18, 3e18, 1e19, 3e19, 1e20, 3e20) if (~dear & (flops >= c)).sum() >= 45]
    inner = {c: held_out(train[~dear & (flops >= c)], train[dear], "farseer", 1e-3) for c in cuts}
    print(
        "farseer: error on the dearest training runs by least FLOPs fitted:", {c: f"{e:.3%}" for c, e in inner.items()}
    )
    least = min(inner, key=inner.get)
    error = held_out(train[flops >= least], test, "farseer", 1e-3)
    print(
        f"farseer: Huber 1e-3, the {(flops >= least).sum()} runs of {least:g} FLOPs and more: mean |error| {error:.4%}"
    )


def held_out(train, test, law, delta):
    found = fits.fit(train, law=law, delta=delta, bootstrap=0, holdout=0)
    return float(np.abs(fits.predict_rows(found, test) / test["L"].to_numpy() - 1).mean())


def parallel(folder):
    train, test = (pd.read_parquet(folder / f"parallel-{part}.parquet") for part in ("train", "test"))
    names = {"num_params": "N", "parallel_size": "P", "loss": "L"}
    for group, runs in train.groupby("group"):
        held = test[test["group"] == group].rename(columns=names)
        found = fits.fit(runs.rename(columns=names), law="parallel", bootstrap=0, holdout=0)
        error = np.abs(fits.predict_rows(found, held) / held["L"].to_numpy() - 1)
        print(f"parallel, {group}: mean |error| {error.mean():.4%} on {len(held)} held-out points;", found["params"])


def mixtures(folder):
    """Of each domain's loss, the error on the mixtures that the fit hasn't seen."""
    train, test = (pd.read_parquet(folder / f"domain_mixture-{part}.parquet") for part in ("train", "test"))
    shares = [f"proportion_domain_{i}" for i in range(1, 6)]
    for group, runs in train.groupby("group"):
        held, errors = test[test["group"] == group], []
        for i in range(1, 6):
            frame = runs[shares].assign(L=runs[f"loss_domain_{i}"])
            found = fits.fit(frame, law=f"mixture:r={'+'.join(shares)}", bootstrap=0, holdout=0)
            errors.append(np.abs(fits.predict_rows(found, held) / held[f"loss_domain_{i}"] - 1).mean())
        print(
            f"mixture, {group}: {len(runs)} mixtures, mean |error| by domain on {len(held)} others:",
            *map("{:.2%}".format, errors),
        )


# LightGBM on the same mixtures, as stopped by the test mixtures themselves (regression.ipynb), in the columns' order.
REGMIX = (99.6, 99.71, 99.08, 99.45, 97.2, 99.77, 99.73, 99.18, 98.92, 96.87, 98.51, 99.19, 99.12)


def regmix(folder):
    """Rank correlations of predicted and observed losses of 256 mixtures, from 512 others: a law, and regressions."""
    shares, losses = (
        [pd.read_csv(folder / f"{part}_{what}_1m.csv", index_col="index") for part in ("train", "test")]
        for what in ("mixture", "pile_loss")
    )
    names = list(shares[0].columns)
    all_of = {"mixture": [], "linear regression": [], "LightGBM, printed": list(REGMIX)}
    for target in losses[0].columns:
        found = fits.fit(
            shares[0].assign(L=losses[0][target]), law=f"mixture:r={'+'.join(names)}", bootstrap=0, holdout=0
        )
        weights, *_ = np.linalg.lstsq(shares[0], losses[0][target], rcond=None)
        guesses = {"mixture": fits.predict_rows(found, shares[1]), "linear regression": shares[1] @ weights}
        for name, guess in guesses.items():
            all_of[name].append(100 * spearmanr(guess, losses[1][target]).statistic)
    for name, of in all_of.items():
        print(f"regmix, {name}: mean {np.mean(of):.2f}, least {min(of):.2f};", *map("{:.1f}".format, of))


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
        cutoff = 10 ** (-found["params"]["b"] / found["params"]["c"])
        print(f"{router}: {inside} of {len(printed)} inside; routing stops helping at N = {cutoff:.3g}")
        print(*found["warnings"], sep="\n")


SPARSITY = {  # each set's file, residuals, Huber threshold, units of N and D, and the authors' objective and parameters
    "ViT": ("vit-data.json", "linear", 0.01, 12 * 12 * 768**2 / 1e6, "total_examples", 1e9, 0.0004929087939147767),
    "T5": ("t5-data.csv", "log", 0.001, 24 * 12 * 768**2 / 1e6, "steps", 1e5, 7.603605281507622e-06),
}


def sparsity(folder):
    """The authors' objective (sparsity-scaling.ipynb), a mean of Huber losses: ours beside their best of 25 starts."""
    for name, (file, residuals, delta, size, data, unit, printed) in SPARSITY.items():
        table = pd.read_json(folder / file) if file.endswith("json") else pd.read_csv(folder / file)
        density = 1 - table["sparsity"]
        columns = {
            "N": size * table["scale"] * density,
            "D": table[data] / unit,
            "density": density,
            "L": table["val-loss"],
        }
        found = fits.fit(pd.DataFrame(columns), law="frantar", delta=delta, residuals=residuals, bootstrap=0, holdout=0)
        print(f"{name} ({len(table)} runs): objective {found['objective'] / len(table):.10g}, printed {printed:.10g}")
        print("  ", {k: round(v, 4) for k, v in found["params"].items()}, *found["warnings"], sep="\n  ")


TAO = {"E": 5.53278, "A1": 1.83139, "A2": 0.195842, "B": 2.12411, "beta": 0.446606, "alpha2": 0.670737}


def vocabulary(path):
    """The authors' rows (FLOPs of 2.18e17 and above), units and objective (approach3_isoloss.py)."""
    runs = pd.read_csv(path)
    runs = runs[runs["FLOPs"] >= 2.18e17]
    log_v = np.log(np.minimum(runs["vocab_size"] / 1e3, 2e5))  # as their code has it, of thousands
    tokens = runs["num_characters"] / 1e9 * (0.00639222 * log_v**2 - 0.15811069 * log_v + 1.20470122)
    columns = {
        "N": runs["Non_vocab_parameters"] / 1e6,
        "V": runs["vocab_size"] * runs["embed_dim"] / 1e6,
        "D": tokens,
        "L_u": runs["Lossu"],
    }
    found = fits.fit(pd.DataFrame(columns), law="tao", residuals="linear", bootstrap=300, holdout=0)
    print(f"tao: {len(runs)} rows, objective {found['objective']:.8g}", *found["warnings"], sep="\n  ")
    for name, printed in TAO.items():
        ours, (low, high) = found["params"][name], found["ci"][name]
        print(f"  {name}: printed {printed}, ours {ours:.6g} ({ours / printed - 1:+.2%}) [{low:.6g}, {high:.6g}]")
    law, row = forms.get("tao"), {k: np.asarray(columns[k]) for k in ("N", "V", "D")}
    gap = np.abs(law.predict(TAO, row) - columns["L_u"].to_numpy())
    print(f"  at the printed: {np.where(gap <= 1e-3, gap**2 / 2, 1e-3 * (gap - 5e-4)).sum():.8g}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("scalebench", "routing", "sparsity", "vocabulary", "regmix"):
        parser.add_argument(f"--{name}", type=Path)
    args = parser.parse_args()
    if args.scalebench:
        farseer(args.scalebench)
        parallel(args.scalebench)
        mixtures(args.scalebench)
    if args.routing:
        routing(args.routing)
    if args.sparsity:
        sparsity(args.sparsity)
    if args.vocabulary:
        vocabulary(args.vocabulary)
    if args.regmix:
        regmix(args.regmix)


if __name__ == "__main__":
    main()
