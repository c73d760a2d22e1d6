"""The published fit against ours: 4500 starts, and 4000 bootstraps, CPU seconds on one core in one run.

    pip install autograd
    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/fit_speed.py POINTS.csv           (a quarter of an hour)
    python benchmarks/fit_speed.py POINTS.csv --full-grid                              (every resample, every start)

POINTS.csv: Besiroglu et al. 2024's, data/svg_extracted_data.csv of github.com/epoch-research/analyzing-chinchilla.
The published way (their notebook): scipy's L-BFGS-B with finite differences from each of the 4500 starts, and scipy's
BFGS with autograd's gradient from one start for each of 4000 resamples. Ours: `search.search` and `intervals.refit`
on the same resamples, from the import of their modules on. Beside it, the objectives that both reach; and the same law
as a user's file, with the same starts.
"""

import argparse
import itertools
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

DELTA, RESAMPLES = 1e-3, 4000
HOFFMANN = np.array([6.0073404, 6.0179186, 0.5267228, 0.33917084, 0.2849083])  # a, b, e, alpha, beta: where they start


USER_LAW = """
from math import exp

E, AB, EXPONENT = [exp(x / 2) for x in range(-2, 3)], [exp(x) for x in range(0, 30, 5)], (0.0, 0.5, 1.0, 1.5, 2.0)
PARAMETERS = {"E": E, "A": AB, "alpha": EXPONENT, "B": AB, "beta": EXPONENT}
SIGNED = {"alpha", "beta"}

def form(params, row):
    return params["E"] + params["A"] / row["N"] ** params["alpha"] + params["B"] / row["D"] ** params["beta"]
"""


def read(path):
    table = pd.read_csv(path)
    table = table[table["loss"] < np.sort(table["loss"])[-5]]
    n, c = table["Model Size"].to_numpy(), table["Training FLOP"].to_numpy()
    return {"N": n, "D": c / (6 * n), "C": c, "L": table["loss"].to_numpy()}


def published_objective(np, data, index=slice(None)):
    """The notebook's objective over `np`, numpy's or autograd's: an unshifted log-sum-exp and a sum of Huber losses."""
    log_n, log_d, log_l = (np.log(data[k][index]) for k in ("N", "D", "L"))

    def objective(theta):
        a, b, e, alpha, beta = theta
        r = log_l - np.log(np.exp(a - alpha * log_n) + np.exp(b - beta * log_d) + np.exp(e))
        return np.sum(np.where(np.abs(r) <= DELTA, 0.5 * r**2, DELTA * (np.abs(r) - 0.5 * DELTA)))

    return objective


def clock(f):
    began = time.process_time()
    out = f()
    return out, time.process_time() - began


def grid_published(data):
    from scipy.optimize import minimize

    objective = published_objective(np, data)
    step = np.arange(0, 2.5, 0.5)
    starts = itertools.product(step, step, np.arange(-1, 1.5, 0.5), np.arange(0, 30, 5), np.arange(0, 30, 5))
    return [minimize(objective, [a, b, e, x, y], method="L-BFGS-B").fun for x, y, e, a, b in starts]


def grid_ours(data, law="chinchilla"):
    from bigmodel.laws import forms, search

    problem = search.problem_of(forms.get(law), data, DELTA)
    return problem, search.search(problem)


def bootstraps_published(data, draws):
    import autograd.numpy as anp
    from autograd import grad
    from scipy.optimize import minimize

    found = []
    for draw in draws:
        objective = published_objective(anp, data, draw)
        found.append(minimize(objective, HOFFMANN, jac=grad(objective), method="BFGS"))
    return np.array([f.fun for f in found]), np.array([f.x for f in found])


def bootstraps_ours(problem, found, draws):
    from bigmodel.laws import intervals

    counts = np.array([np.bincount(draw, minlength=len(problem.observed)) for draw in draws], dtype=float)
    theta, _ = intervals.refit(problem, found.basins, counts, np.random.default_rng(0))
    return counts, theta


def objectives(problem, theta, counts):
    return np.array(
        [problem.huber(problem.residuals(t[None])[0], c[None])[0] for t, c in zip(theta, counts, strict=True)]
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("points")
    parser.add_argument("--full-grid", action="store_true", help="give every resample all 4500 starts: half an hour")
    parser.add_argument("--resamples", type=int, default=RESAMPLES)
    args = parser.parse_args()
    data = read(args.points)
    np.seterr(all="ignore")  # the published objective overflows in line searches
    rng = np.random.RandomState(42)  # their resamples
    draws = [rng.choice(len(data["N"]), len(data["N"])) for _ in range(args.resamples)]
    (problem, found), ours = clock(lambda: grid_ours(data))
    if args.full_grid:
        from bigmodel.laws import search

        counts, theta = bootstraps_ours(problem, found, draws)
        began = time.perf_counter()
        best = np.array([search.search(problem, own).objective for own in counts])
        minutes = (time.perf_counter() - began) / 60
        short = objectives(problem, theta, counts)
        least = np.minimum(best, short)
        print(f"{args.resamples} resamples x {len(problem.starts())} starts: {minutes:.1f} min")
        for name, value in (("from the optimum", short), ("from every start", best)):
            excess = value / least - 1
            print(f"{name}: {np.mean(excess <= 1e-6):.4%} within 1e-6 of the best of both, worst {excess.max():.2g}")
        return
    (counts, theta), ours_boot = clock(lambda: bootstraps_ours(problem, found, draws))
    (published_boot, points), theirs_boot = clock(lambda: bootstraps_published(data, draws))
    mine = objectives(problem, theta, counts)
    print(
        f"{args.resamples} bootstraps: published {theirs_boot:.1f} s, ours {ours_boot:.2f} s: "
        f"{theirs_boot / ours_boot:.0f}x"
    )
    better, worse = np.mean(mine < published_boot * (1 - 1e-6)), np.mean(mine > published_boot * (1 + 1e-6))
    print(f"  of the resamples, ours are lower by over 1e-6 in {better:.2%}, higher in {worse:.2%}")
    own = problem.law.values(theta).std(axis=0, ddof=1)[[1, 3, 0, 2, 4]]  # A, B, E, alpha, beta
    points[:, :3] = np.exp(points[:, :3])
    for who, se in (("published", points.std(axis=0, ddof=1)), ("ours", own)):
        print(f"  standard errors of A, B, E, alpha, beta, {who}: " + ", ".join(f"{v:.6g}" for v in se))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "own.py")
        path.write_text(USER_LAW)
        (own_problem, own_found), user = clock(lambda: grid_ours(data, str(path)))
        (_, own_theta), user_boot = clock(lambda: bootstraps_ours(own_problem, own_found, draws))
    print(
        f"a user's file: {user:.2f} s and {user_boot:.2f} s, {(user + user_boot) / (ours + ours_boot):.2f} times ours; "
        f"objective {own_found.objective:.10e}, resamples higher by over 1e-6: "
        f"{np.mean(objectives(own_problem, own_theta, counts) > mine * (1 + 1e-6)):.2%}"
    )
    theirs, theirs_grid = clock(lambda: grid_published(data))
    print(f"{len(theirs)} starts: published {theirs_grid:.1f} s, ours {ours:.2f} s: {theirs_grid / ours:.0f}x")
    print(f"  best objective: published {np.nanmin(theirs):.10e}, ours {found.objective:.10e}")


if __name__ == "__main__":
    main()
