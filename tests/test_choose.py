"""Next runs of a pool for any law: against random and cheapest runs, several minima, several outputs, budgets."""

import numpy as np
import pytest

from bigmodel.errors import UsageError
from bigmodel.laws import choose, forms, optimal

LAW = forms.get("muennighoff")  # of N, D and unique tokens U: seven parameters
PLANTED = {"E": 1.8, "A": 520.0, "B": 1480.0, "alpha": 0.35, "beta": 0.36, "R_D": 15.0, "R_N": 5.3}


def grid():
    n, d, u = np.meshgrid(np.geomspace(1e7, 1e9, 7), np.geomspace(1e8, 3e10, 7), [1e8, 1e9, 1e10], indexing="ij")
    keep = (u <= d).ravel()
    return {"N": n.ravel()[keep], "D": d.ravel()[keep], "U": u.ravel()[keep]}


def error(law, target, ensemble):
    return float(np.sqrt(np.mean((ensemble.predict()[:, 0] - np.log(law.predict(PLANTED, target))) ** 2)))


def test_chosen_runs_predict_better_than_random_and_cheapest_ones():
    pool = grid()
    cost = pool["N"] * pool["D"]
    target = {"N": np.full(6, 5e9), "D": np.repeat([3e10, 2e11], 3), "U": np.tile([1e9, 1e10, 2e10], 2)}
    budget = 0.02 * cost.sum()
    errors = []
    for seed in range(4):
        random = np.random.default_rng(seed)
        y = np.log(LAW.predict(PLANTED, pool)) + 0.003 * random.standard_normal(len(cost))
        ensemble = choose.Ensemble(choose.family(LAW), pool, cost, target, seed, noise=0.003)
        done = []
        while new := ensemble.next(done, budget - cost[done].sum()):
            done += new
            ensemble.fit(done, y[done])
        assert cost[done].sum() <= budget and len(set(done)) == len(done)
        row = [error(LAW, target, ensemble)]
        for order in (random.permutation(len(cost)), np.argsort(cost)):
            other, left = [], budget
            for i in order:
                if cost[i] <= left:
                    other, left = [*other, i], left - cost[i]
            rival = choose.Ensemble(choose.family(LAW), pool, cost, target, seed, noise=0.003)
            for _ in range(4):
                rival.fit(other, y[other])
            row.append(error(LAW, target, rival))
        errors.append(row)
    ours, by_chance, cheapest = np.mean(errors, axis=0)
    assert ours < 0.6 * by_chance and ours < 0.8 * cheapest, errors


def test_an_ensemble_of_a_line_is_its_posterior():
    """Least squares with the same prior: mean and variance in closed form."""
    x = np.linspace(0, 1, 9)

    def values(theta, rows):
        slopes = np.stack([np.ones_like(rows["x"]), rows["x"]], axis=1)
        return (theta @ slopes.T)[:, :, None], np.broadcast_to(slopes[None, :, None], (len(theta), len(slopes), 1, 2))

    line = choose.Family(values, np.array([-40.0, -40.0]), np.array([44.0, 42.0]))
    y = 2 + x + 0.05 * np.random.default_rng(1).standard_normal(9)
    ensemble = choose.Ensemble(line, {"x": x}, np.ones(9), {"x": np.array([1.8])}, seed=3)
    for _ in range(3):
        ensemble.fit(range(9), y)
    a = np.stack([np.ones(9), x], axis=1) / ensemble.sigma
    prior = 1 / (choose.SPREAD * np.array([84.0, 82.0])) ** 2
    covariance = np.linalg.inv(a.T @ a + np.diag(prior))
    mean = covariance @ (a.T @ y / ensemble.sigma + prior * np.array([2.0, 1.0]))
    assert ensemble.theta[0] == pytest.approx(mean, rel=1e-3)  # the member without noise is the fit
    spread = float(np.sqrt(np.array([1, 1.8]) @ covariance @ np.array([1, 1.8])))
    assert ensemble.predict()[0, 0] == pytest.approx(mean @ [1, 1.8], abs=0.6 * spread)
    # Far from its data, a line is best known by runs at its ends.
    assert 0.7 < np.std(ensemble.law.values(ensemble.theta, ensemble.target)[0]) / spread < 1.4
    for seed in range(4):
        wide = choose.Ensemble(line, {"x": x}, np.ones(9), {"x": np.array([1.8])}, seed=seed)
        wide.fit([1, 4, 7], y[[1, 4, 7]])
        (run,) = wide.next([1, 4, 7], 2.0, runs=1)
        assert run in (0, 8)


def test_a_run_that_measures_several_numbers_takes_off_what_they_do():
    random = np.random.default_rng(0)
    slopes, target = random.standard_normal((5, 3, 4)), random.standard_normal((2, 4))
    design = optimal.Design(slopes, np.ones(5), target)
    before = np.eye(4)
    for i, gain in enumerate(design.gain(before)):
        after = np.linalg.inv(np.linalg.inv(before) + slopes[i].T @ slopes[i])
        assert gain == pytest.approx(np.trace(target @ (before - after) @ target.T), rel=1e-9)
        assert design.add(before, [i]) == pytest.approx(after, abs=1e-9)
        assert design.add(after, [i], -1.0) == pytest.approx(before, abs=1e-6)


def test_choose_keeps_to_the_budget_and_says_what_is_wrong():
    pool = grid()
    cost = pool["N"] * pool["D"]
    target = {"N": [5e9], "D": [1e11], "U": [1e10]}
    target = {name: np.array(x) for name, x in target.items()}
    budget = 0.01 * cost.sum()
    first = choose.choose(LAW, pool, cost, target, budget)
    assert len(first) == len(LAW.names) + 1 and cost[first].sum() <= budget
    y = np.log(LAW.predict(PLANTED, {name: x[first] for name, x in pool.items()}))
    more = choose.choose(LAW, pool, cost, target, budget, first, y, runs=3)
    assert 0 < len(more) <= 3 and cost[more].sum() <= budget and not set(more) & set(first)
    assert choose.choose(LAW, pool, cost, target, cost.min() / 2, first, y) == []
    with pytest.raises(UsageError, match="8 runs are done, and 0 values given"):
        choose.choose(LAW, pool, cost, target, budget, first)
    with pytest.raises(UsageError, match="cost > 0"):
        choose.choose(LAW, pool, 0 * cost, target, budget)
