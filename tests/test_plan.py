"""Plans: closed forms, inverses, stationarity, coverage; the nearest buildable config; the runs to do next."""

import dataclasses
import json
import math
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

from bigmodel.cli import main
from bigmodel.errors import UsageError
from bigmodel.laws import design, fitted, forms, intervals, optimal, plan
from bigmodel.laws.plan import Ask
from bigmodel.laws.solve import Problem, descend

BESIROGLU = ROOT.parent / "shared" / "points" / "besiroglu2024_chinchilla_points.csv"
PLANTED = {"E": 1.7, "A": 400.0, "alpha": 0.34, "B": 410.0, "beta": 0.28}
LAW = forms.get("chinchilla")
SIZES = np.repeat([12.0 * depth * width**2 for width in (64, 128, 256, 512) for depth in (2, 4)], 4)
DATA = np.tile([1e7, 4e7, 1.6e8, 6.4e8], 8)
NOISE = 0.003


def simulate(seed, n=SIZES, d=DATA, noise=NOISE):
    random = np.random.default_rng(seed)
    return np.log(LAW.predict(PLANTED, {"N": n, "D": d})) + noise * random.standard_normal(len(n))


def bootstrap(n, d, y, seed, resamples=150):
    """(theta, resamples of it, residuals), by descent from the planted optimum: the grid of starts is fit.py's test."""
    problem = Problem(LAW, {"N": n, "D": d}, y, 1e-3)

    def solve(start, counts):
        theta, _, _ = descend(problem, start, counts, 60)
        return descend(problem, theta, counts, 60, "newton")[0]

    theta = solve(LAW.theta(PLANTED)[None].copy(), np.ones(len(n)))
    counts = np.random.default_rng(seed).multinomial(len(n), np.full(len(n), 1 / len(n)), size=resamples)
    samples = solve(np.repeat(theta, resamples, axis=0), counts.astype(float))
    return theta[0], samples, y - LAW.form(theta.T[:, :, None], {"N": n, "D": d})[0]


def content(theta, samples, residuals, n=SIZES, d=DATA):
    """What fit.json holds."""
    values = LAW.values(samples)
    return {
        "law": "chinchilla",
        "params": dict(zip(LAW.names, (float(v) for v in LAW.values(theta)), strict=True)),
        "delta": 1e-3,
        "samples": {name: values[:, i].tolist() for i, name in enumerate(LAW.names)},
        "interval": {"method": "percentile", "level": 0.95},
        "range": {"N": [n.min(), n.max()], "D": [d.min(), d.max()], "C": [(6 * n * d).min(), (6 * n * d).max()]},
        "points": {"N": n.tolist(), "D": d.tolist()},
        "residuals": residuals.tolist(),
        "holdout": [
            {"rungs": k, "n_held_out": 4 * k, "flops_gap": float(3**k), "mean_abs_rel_error": 0.01 * k}
            | {"max_abs_rel_error": 0.03, "mean_rel_error": -0.01}
            for k in (1, 2)
        ],
        "warnings": ["something"],
    }


@pytest.fixture(scope="module")
def noisy():
    return content(*bootstrap(SIZES, DATA, simulate(0), 0))


@pytest.fixture(scope="module")
def exact():
    """The planted parameters themselves, with resamples around them."""
    random = np.random.default_rng(0)
    theta = LAW.theta(PLANTED)
    samples = theta + 0.01 * random.standard_normal((200, 5))
    return content(theta, samples, np.full(len(SIZES), 1e-3) * random.choice([-1, 1], len(SIZES)))


@pytest.fixture
def law(tmp_path):
    """Writes a fit.json and reads it."""

    def make(body, form=""):
        path = tmp_path / "fit.json"
        path.write_text(body if isinstance(body, str) else json.dumps(body))
        return fitted.read(str(path), form)

    return make


def closed(flops, p=PLANTED):
    """Hoffmann et al. 2022, equation 4."""
    total = p["alpha"] + p["beta"]
    scale = (p["alpha"] * p["A"] / (p["beta"] * p["B"])) ** (1 / total)
    n = scale * (flops / 6) ** (p["beta"] / total)
    return n, flops / (6 * n)


def loss(n, d, p=PLANTED):
    return p["E"] + p["A"] / n ** p["alpha"] + p["B"] / d ** p["beta"]


# ---------------------------------------------------------------------------------- exact answers


@pytest.mark.parametrize("flops", [1e15, 1e20, 5.76e23])
def test_flops_give_the_closed_form(law, exact, flops):
    out = plan.make(law(exact), Ask(flops=flops))
    n, d = closed(flops)
    assert out["N"]["value"] == pytest.approx(n, rel=1e-6) and out["D"]["value"] == pytest.approx(d, rel=1e-6)
    assert out["C"] == {k: pytest.approx(flops, rel=1e-12) for k in ("value", "low", "high")}
    assert out["loss"]["value"] == pytest.approx(loss(n, d), rel=1e-12)
    assert out["tokens_per_param"]["value"] == pytest.approx(d / n, rel=1e-6)
    # Every resample's own optimum, by the closed form.
    samples = [dict(zip(LAW.names, row, strict=True)) for row in np.array([*exact["samples"].values()]).T]
    drawn = np.array([closed(flops, p)[:1] for p in samples])
    sizes = intervals.bias_corrected(drawn, np.array([n]))[:, 0]
    assert (out["N"]["low"], out["N"]["high"]) == pytest.approx(tuple(sizes), rel=1e-5)
    drawn = np.array([[loss(n, d, p)] for p in samples])
    losses = intervals.bias_corrected(drawn, np.array([loss(n, d)]))[:, 0]
    assert (out["loss"]["low"], out["loss"]["high"]) == pytest.approx(tuple(losses), rel=1e-5)


def test_params_tokens_and_loss_are_inverses_of_flops(law, exact):
    fit = law(exact)
    for flops in (1e16, 1e21, 1e25):
        n, d = closed(flops)
        for ask in (Ask(params=n), Ask(tokens=d), Ask(loss=loss(n, d))):
            out = plan.make(fit, ask)
            assert out["C"]["value"] == pytest.approx(flops, rel=1e-5), ask
            assert out["N"]["value"] == pytest.approx(n, rel=1e-5) and out["D"]["value"] == pytest.approx(d, rel=1e-5)
            assert out["C"]["low"] < flops < out["C"]["high"]
    assert plan.make(fit, Ask(params=7e9))["N"] == {"value": 7e9, "low": 7e9, "high": 7e9}


def test_a_law_without_a_closed_form_is_planned_by_search(law, exact, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        'PARAMETERS = {"E": (1.0,), "A": (1e2,), "alpha": (0.3,), "B": (1e2,), "beta": (0.3,)}\n'
        "def form(p, row):\n"
        '    return p["E"] + p["A"] / row["N"] ** p["alpha"] + p["B"] / row["D"] ** p["beta"]\n'
    )
    mine, known = law({**exact, "law": str(path)}, str(path)), law(exact)
    for ask in (Ask(flops=1e20), Ask(loss=2.5)):
        a, b = plan.make(mine, ask), plan.make(known, ask)
        for key in ("N", "D", "C", "loss"):
            assert a[key] == pytest.approx(b[key], rel=1e-6)
    assert design.advise(mine, a, ask)["rows"]


def test_inference_makes_smaller_models_the_best(law, exact):
    """Sardana & Frankle 2023: less N, more D; at the optimum, no other N of the same loss is cheaper."""
    fit, served = law(exact), 1e12
    plain, out = plan.make(fit, Ask(loss=2.3)), plan.make(fit, Ask(loss=2.3, inference_tokens=served))
    assert out["N"]["value"] < 0.7 * plain["N"]["value"] and out["D"]["value"] > 1.3 * plain["D"]["value"]
    assert out["loss"]["value"] == pytest.approx(2.3, rel=1e-9)
    n, d = out["N"]["value"], out["D"]["value"]
    total = 6 * n * d + 2 * n * served
    assert out["total"]["value"] == pytest.approx(total, rel=1e-9) and out["C"]["value"] == pytest.approx(6 * n * d)

    def cost(n):  # of reaching 2.3 with n parameters
        left = 2.3 - PLANTED["E"] - PLANTED["A"] / n ** PLANTED["alpha"]
        return 6 * n * (PLANTED["B"] / left) ** (1 / PLANTED["beta"]) + 2 * n * served

    assert (cost(n * 1.001) - cost(n / 1.001)) / (0.002 * total) == pytest.approx(0, abs=1e-4)
    assert cost(n * 1.1) > total * 1.0005 and cost(n / 1.1) > total * 1.0005
    # A budget pays for both, and the best loss of that budget is the one asked for above.
    same = plan.make(fit, Ask(flops=total, inference_tokens=served))
    assert same["N"]["value"] == pytest.approx(n, rel=1e-5) and same["total"]["value"] == pytest.approx(total)
    assert same["loss"]["value"] == pytest.approx(2.3, rel=1e-9)


def test_limits_bind_where_they_must(law, exact):
    fit, flops = law(exact), 1e22
    n, d = closed(flops)
    free = plan.make(fit, Ask(flops=flops, max_params=2 * n, max_tokens=2 * d))
    assert free["N"]["value"] == pytest.approx(n, rel=1e-6) and not any("limit" in w for w in free["warnings"])
    small = plan.make(fit, Ask(flops=flops, max_params=n / 5))
    assert small["N"]["value"] == pytest.approx(n / 5) and small["D"]["value"] == pytest.approx(5 * d, rel=1e-5)
    assert any("--max-params" in w for w in small["warnings"]) and small["off"]["double"] is None
    scarce = plan.make(fit, Ask(flops=flops, max_tokens=d / 5))
    assert scarce["N"]["value"] == pytest.approx(5 * n, rel=1e-5) and scarce["D"]["value"] == pytest.approx(d / 5)
    both = plan.make(fit, Ask(flops=flops, max_params=n / 2, max_tokens=d / 2))
    assert both["C"]["value"] == pytest.approx(flops / 4) and any("unspent" in w for w in both["warnings"])
    dear = plan.make(fit, Ask(loss=loss(n, d), max_tokens=d / 2))
    assert dear["C"]["value"] > flops and loss(dear["N"]["value"], d / 2) == pytest.approx(loss(n, d))


def test_the_price_of_a_wrong_size_and_the_basin(law, exact):
    out = plan.make(law(exact), Ask(flops=1e21))
    n, d = closed(1e21)
    best = loss(n, d)
    for name, factor in (("half", 0.5), ("double", 2)):
        row = out["off"][name]
        assert row["N"] == pytest.approx(factor * n, rel=1e-6) and row["D"] == pytest.approx(d / factor, rel=1e-6)
        assert row["rel_loss"] == pytest.approx(loss(factor * n, d / factor) / best - 1, rel=1e-4)
    for name, share in (("0.1%", 0.001), ("1%", 0.01)):
        low, high = out["basin"][name]
        assert low < n < high
        for end in (low, high):
            assert loss(end, 1e21 / 6 / end) == pytest.approx(best * (1 + share), rel=1e-6)


# ------------------------------------------------------------------------------------- honesty


def test_intervals_cover_the_planted_optimum(law):
    """Of 95 % intervals for N_opt of 12 studies, at least 9 hold the truth, and none is absurdly wide."""
    flops, inside = 10 * float((6 * SIZES * DATA).max()), 0
    for seed in range(12):
        out = plan.make(law(content(*bootstrap(SIZES, DATA, simulate(seed), seed))), Ask(flops=flops))["N"]
        inside += out["low"] < closed(flops)[0] < out["high"]
        assert out["high"] < 3 * out["low"]
    assert inside >= 9


def test_the_stored_level_is_used(law, exact):
    a = plan.make(law(exact), Ask(flops=1e20))["N"]
    inner = {**exact, "interval": {"method": "percentile", "level": 0.5}}
    assert plan.make(law(inner), Ask(flops=1e20))["N"]["low"] > a["low"]


def test_extrapolation_is_told_and_the_farthest_holdout_shown(law, exact):
    fit = law(exact)
    top = fit.range["C"][1]
    near, far, very = (plan.make(fit, Ask(flops=f * top)) for f in (0.5, 30, 1e5))
    assert near["beyond"]["C"] == 1 and not any("outside" in w for w in near["warnings"])
    assert far["beyond"]["C"] == pytest.approx(30) and any(w.startswith("C is 30x outside") for w in far["warnings"])
    assert any(w.startswith("VERY FAR: C is 1e+05x") for w in very["warnings"])
    assert near["holdout"]["flops_gap"] == 9 and near["holdout"]["mean_abs_rel_error"] == 0.02
    assert "the fit warns: something" in near["warnings"]
    assert plan.make(fit, Ask(params=fit.range["N"][0] / 40))["beyond"]["N"] == pytest.approx(40)


def test_a_loss_below_the_floor_is_no_plan(law, exact):
    fit = law(exact)
    with pytest.raises(UsageError, match=r"--loss=1.6 is not above the law's floor E = 1.7 \[1.6\d+, 1.7\d+\]"):
        plan.make(fit, Ask(loss=1.6))
    out = plan.make(fit, Ask(loss=1.72))  # above the floor of the fit, below that of some resamples
    assert out["C"]["high"] is None and out["C"]["low"] > 0 and out["never"] > 0.05
    assert any("no compute reaches" in w for w in out["warnings"])
    with pytest.raises(UsageError, match="within the limits"):
        plan.make(fit, Ask(loss=2.0, max_params=1e6))


def fit_json(tmp_path, rows, *flags):
    """fit.json of rows of (N, D, L), by the command."""
    pd.DataFrame(rows, columns=["params", "tokens", "loss"]).to_csv(tmp_path / "points.csv", index=False)
    assert main.main(["fit", str(tmp_path / "points.csv"), f"--out={tmp_path / 'fit.json'}", *flags]) == 0
    return str(tmp_path / "fit.json")


def test_a_fit_that_most_resamples_fail_is_no_plan(tmp_path, capsys):
    """Six runs for five parameters: nearly every resample has too few distinct runs."""
    rng = np.random.default_rng(0)
    some = [(1e6, 1e8), (1e6, 4e8), (4e6, 1e8), (4e6, 1.6e9), (1.6e7, 1e8), (1.6e7, 1.6e9)]
    rows = [(n, d, (1.7 + 400 / n**0.34 + 410 / d**0.28) * np.exp(0.03 * rng.standard_normal())) for n, d in some]
    fit = fit_json(tmp_path, rows, "--bootstrap=200")
    capsys.readouterr()
    out = tmp_path / "next.py"
    config = ["--config=experiments/gpt.py", f"--out={out}"]
    assert main.main(["plan", f"--law={fit}", "--flops=1e18", *config]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and not out.exists()
    assert re.fullmatch(r"bigmodel: plan: the fit .* doesn't determine a law: \d+ of 200 resamples .*\n", printed.err)
    assert "it takes 4 or more sizes N" in printed.err and "these 6 runs have 3 N, 3 D" in printed.err


def test_an_optimum_of_any_size_is_no_plan(law, exact):
    """Resamples whose optimum spans more than a factor of a million."""
    fit = law(exact)
    wide = fit.thetas.copy()
    wide[1:, fit.law.names.index("A")] += np.linspace(-12, 12, len(wide) - 1)
    with pytest.raises(UsageError, match=r"doesn't determine N_opt: .* it takes 4 or more sizes"):
        plan.make(dataclasses.replace(fit, thetas=wide), Ask(flops=1e19))


def test_advice_on_what_the_runs_do_not_determine_is_refused(law, noisy):
    fit = law(noisy)
    made = plan.make(fit, Ask(flops=1e19))
    wide = fit.thetas.copy()
    wide[1:, fit.law.names.index("A")] += np.linspace(-12, 12, len(wide) - 1)
    with pytest.raises(UsageError, match="no advice on the next runs: the fit doesn't determine it"):
        design.advise(dataclasses.replace(fit, thetas=wide), made, Ask(flops=1e19))


def test_points_of_one_run_promise_no_more_than_a_run(law, noisy):
    fit = law(noisy)
    made = plan.make(fit, Ask(flops=1e19))
    alone = design.advise(fit, made, Ask(flops=1e19))["before"]["expected"]
    of_runs = dataclasses.replace(fit, result=fit.result | {"n_runs": len(fit.points["N"]) / 4})
    # A quarter of the information: twice the width, but for what is known before any run.
    assert design.advise(of_runs, made, Ask(flops=1e19))["before"]["expected"] == pytest.approx(2 * alone, rel=0.1)


@pytest.mark.parametrize("unit", ["N", "D"])
def test_a_plan_in_other_units_is_refused(tmp_path, capsys, unit):
    """Sizes in millions beside plain tokens, or tokens in billions: no one means millions of tokens per parameter."""
    by = (1e-6, 1.0) if unit == "N" else (1.0, 1e-9)
    rows = [(n * by[0], d * by[1], 1.7 + 400 / n**0.34 + 410 / d**0.28)
            for n in (1e8, 4e8, 1.6e9, 6.4e9) for d in (1e10, 4e10, 1.6e11)]  # fmt: skip
    fit = fit_json(tmp_path, rows, "--bootstrap=0")
    capsys.readouterr()
    assert main.main(["plan", f"--law={fit}", "--flops=1e22"]) == 2
    err = capsys.readouterr().err
    assert "a parameter: are the runs' N and D in plain numbers, not in millions?" in err


def test_a_plan_beyond_everything_is_refused(law, exact):
    with pytest.raises(UsageError, match=r"outside the fitted runs .*, where the law says nothing"):
        plan.make(law(exact), Ask(params=1e18))


def test_no_resamples_give_no_intervals(law, exact):
    out = plan.make(law({k: v for k, v in exact.items() if k != "samples"}), Ask(flops=1e20))
    assert out["N"]["low"] is None and out["N"]["value"] > 0 and any("no intervals" in w for w in out["warnings"])


# ------------------------------------------------------------------------------- wrong questions


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("not json", "is not JSON"),
        ("[1, 2]", "is not a fit.json"),
        ("[" * 100_000, "is not JSON"),
        ({"law": None}, "names no law"),
        ({"law": "chinchila"}, "did you mean 'chinchilla'"),
        ({"law": "isoflop"}, "no loss"),
        ({"law": "power:x=C"}, "a plan needs L of N and D"),
        ({"params": None}, "has no params"),
        ({"params": {k: v for k, v in PLANTED.items() if k != "beta"}}, "beta"),
        ({"params": PLANTED | {"A": float("nan")}}, "'A' is nan"),
        ({"params": PLANTED | {"A": -3.0}}, "A"),
        ({"params": PLANTED | {"A": "x"}}, "'A' is 'x'"),
        ({"params": PLANTED | {"A": 10**400}}, "'A' is 1000"),
        ({"params": PLANTED | {"alpha": -0.3}}, "no compute-optimal size"),
        ({"samples": [1, 2]}, "samples"),
        ({"samples": {"E": [1.0]}}, "samples doesn't hold"),
        ({"samples": {k: [1.0] * (1 + (k == "A")) for k in PLANTED}}, "differ in length"),
        ({"samples": {k: [1.0, None] for k in PLANTED}}, "samples of 'E' is not a list"),
        ({"samples": {k: [1.0, -1.0] for k in PLANTED}}, "samples of 'E' is not a list of positive numbers"),
        ({"interval": {"level": 2}}, "between 0 and 1"),
        ({"range": {"N": [5]}}, "range of 'N'"),
        ({"range": 3}, "range"),
        ({"points": {"N": [1.0]}}, "points"),
        ({"points": {"N": [1.0], "D": [0]}}, "points of 'D'"),
        ({"residuals": "x"}, "residuals"),
    ],
)
def test_a_damaged_fit_is_one_line(exact, tmp_path, capsys, change, words):
    path = tmp_path / "fit.json"
    path.write_text(change if isinstance(change, str) else json.dumps({**exact, **change}))
    assert main.main(["plan", f"--law={path}", "--flops=1e20"]) == 2
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1, err


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "exactly one of --flops, --params, --tokens, --loss; none is"),
        (["--flops=1e20", "--loss=2"], "--flops and --loss are"),
        (["--flops=-1"], "--flops=-1.0: must be in (0, 1e45]"),
        (["--flops=nan"], "--flops=nan: must be in"),
        (["--loss=inf"], "--loss=inf: must be in"),
        (["--params=1e9", "--inference-tokens=1e12"], "--inference-tokens goes with --flops or --loss"),
        (["--tokens=1e9", "--max-params=1e12"], "--max-params goes with"),
        (["--flops=1e20", "--inference-tokens=-1"], "--inference-tokens=-1"),
        (["--flops=10", "--inference-tokens=1e12"], "no compute-optimal size"),
        (["--flops=1e20", "--family=decodr"], "did you mean 'decoder'"),
        (["--flops=1e20", "--family=decoder", "--count=all"], "--count: 'all' is not one of"),
        (["--flops=1e20", "--target=M"], "--target: 'M' is not one of N, loss, a"),
        (["--flops=1e20", "--next-runs=-2"], "--next-runs=-2"),
        (["--flops=1e20", "--next-flops=1"], "no run to advise"),
        (["--flops=1e20", "--next-flops=-1"], "--next-flops=-1"),
        (["--flops=1e20", "--out=x.py"], "--out needs --config"),
        (["--flops=1e20", "--config.model.depth=3"], "needs --config="),
        (["--flops=1e20", "--config=experiments/nope.py"], "no config file"),
        (["--flops=1e20", "--config=runs/x/config.json"], "give the experiment"),
        (["--flops=1e20", "--config=experiments/digits.py", "--family=decoder"], "is of family 'mlp'"),
    ],
)
def test_a_wrong_question_is_one_line(exact, tmp_path, capsys, monkeypatch, args, words):
    monkeypatch.chdir(ROOT)
    path = tmp_path / "fit.json"
    path.write_text(json.dumps(exact))
    assert main.main(["plan", f"--law={path}", *args]) == 2
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1, err


def test_a_plan_imports_no_jax(exact, tmp_path):
    (tmp_path / "fit.json").write_text(json.dumps(exact))
    code = (
        "import sys; from bigmodel.cli import main as cli; "
        "code = cli.main(['plan', '--law=fit.json', '--flops=1e20']); sys.exit(code or 'jax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "parameters" in done.stdout and "next: 8 runs" in done.stdout and "--family=NAME" in done.stdout


# ------------------------------------------------------------------------------------- next runs


def width(samples, flops):
    """Of the 95 % interval of ln N_opt."""
    n = plan.allocate(LAW, samples, np.full(len(samples), flops), Ask(flops=flops))[0]
    return float(np.subtract(*np.nanpercentile(np.log(n), [97.5, 2.5])))


def test_advised_runs_narrow_more_than_random_ones(law):
    """On planted laws: the width after, against as many FLOPs of random candidates, and against what was promised."""
    flops = 100 * float((6 * SIZES * DATA).max())
    spend = float((6 * SIZES * DATA).sum())
    before, promised, advised, guessed, ratios, moves, stops = [], [], [], [], [], [], []
    for seed in range(7):
        y = simulate(seed)
        fit = law(content(*bootstrap(SIZES, DATA, y, seed)))
        ask = Ask(flops=flops)
        advice = design.advise(fit, plan.make(fit, ask), ask)
        assert advice["flops"] == pytest.approx(spend) and sum(r["C"] for r in advice["rows"]) <= spend
        n, d, _ = design._candidates(fit, None, ask)
        random, left, chosen = np.random.default_rng(seed), spend, []
        while len(chosen) < 8 and (6 * n * d <= left).any():
            chosen.append(int(random.choice(np.flatnonzero(6 * n * d <= left))))
            left -= 6 * n[chosen[-1]] * d[chosen[-1]]
        after, sizes = [], []
        for more_n, more_d in (
            (np.array([r["N"] for r in advice["rows"]]), np.array([r["D"] for r in advice["rows"]])),
            (n[chosen], d[chosen]),
        ):
            more = simulate(1000 + seed, more_n, more_d)
            theta, samples, _ = bootstrap(np.r_[SIZES, more_n], np.r_[DATA, more_d], np.r_[y, more], seed)
            after.append(width(samples, flops))
            sizes.append(plan.allocate(LAW, theta[None], np.array([flops]), ask)[0][0])
        before.append(advice["before"]["stored"])
        ratios.append(advice["before"]["ratio"])
        promised.append(advice["after"])
        advised.append(after[0])
        guessed.append(after[1])
        moves.append(abs(math.log(sizes[0] / plan.make(fit, ask)["N"]["value"])))
        stops.append(advice["stop"])
    assert np.median(np.array(advised) / guessed) < 0.9
    assert 0.6 < np.median(np.array(promised) / advised) < 1.6
    assert 0.6 < np.median(ratios) < 1.6  # linear theory against the stored interval
    assert np.median(np.array(advised) / before) < 0.75
    # The stopping rule: how far N_opt moved, against what was said.
    assert 0.5 < np.mean(moves) / np.mean([math.log1p(s["expected"]) for s in stops]) < 2
    assert sum(move > math.log1p(s["most"]) for move, s in zip(moves, stops, strict=True)) <= 1


def test_advice_is_the_best_of_small_designs(law, noisy):
    """Exchanged greedy choices against every pair of a coarse grid."""
    fit, ask = law(noisy), Ask(flops=1e18)
    covariance, sigma, _ = design._covariance(fit)
    n, d, spend = design._candidates(fit, None, ask)
    n, d = n[::17], d[::17]
    c = design._gradient(fit, design._answer(fit, plan.make(fit, ask), "N"))
    one = optimal.Design((design._slopes(fit, n, d) / sigma)[:, None], 6 * n * d, c[None])

    def after(chosen):
        precision = np.linalg.inv(covariance) + sum(one.slopes[i].T @ one.slopes[i] for i in chosen)
        return float(c @ np.linalg.inv(precision) @ c)

    pairs = [(i, j) for i in range(len(n)) for j in range(i) if one.cost[i] + one.cost[j] <= spend]
    best = min(after(pair) for pair in pairs)
    found = [one.exchange(covariance, one.greedy(covariance, spend, 2, p), spend) for p in design.POWERS]
    assert all(one.cost[chosen].sum() <= spend for chosen in found)
    assert min(after(chosen) for chosen in found) <= 1.05 * best
    assert one.variance(one.add(covariance, found[0])) == pytest.approx(after(found[0]), rel=1e-6)
    assert one.gain(covariance)[3] == pytest.approx(one.variance(covariance) - after([3]), rel=1e-6)


def test_advice_takes_the_best_of_its_starts(law, noisy):
    fit, ask = law(noisy), Ask(flops=1e18)
    out = plan.make(fit, ask)
    covariance, sigma, _ = design._covariance(fit)
    n, d, spend = design._candidates(fit, 3e15, ask)
    c = design._gradient(fit, design._answer(fit, out, "N"))
    one = optimal.Design((design._slopes(fit, n, d) / sigma)[:, None], 6 * n * d, c[None])
    found = []
    for power in design.POWERS:
        matrix = one.add(covariance, one.exchange(covariance, one.greedy(covariance, spend, 4, power), spend))
        found.append(math.sqrt(one.variance(matrix) / one.variance(covariance)))
    assert max(found) > min(found) * 1.0001  # the starts differ, so that this test means something
    assert design.advise(fit, out, ask, flops=3e15, runs=4)["narrowing"]["N"] == pytest.approx(min(found), rel=1e-6)


@pytest.mark.parametrize("target", ["N", "loss", "a"])
def test_each_target_is_what_its_advice_narrows_most(law, noisy, target):
    fit, ask = law(noisy), Ask(flops=1e18)
    out = plan.make(fit, ask)
    advice = {t: design.advise(fit, out, ask, target=t) for t in design.TARGETS}
    own = advice[target]["narrowing"][target]
    assert own < 1 and all(own <= a["narrowing"][target] * 1.02 for a in advice.values())
    widths = [row["width"] for row in advice[target]["rows"]]
    assert widths == sorted(widths, reverse=True) and widths[-1] == pytest.approx(advice[target]["after"])


def test_a_small_budget_moves_little(law, noisy):
    fit, ask = law(noisy), Ask(flops=1e18)
    out = plan.make(fit, ask)
    stops = [design.advise(fit, out, ask, flops=flops)["stop"] for flops in (2e14, 1e16, 1e18)]
    moves = [stop["expected"] for stop in stops]
    assert moves == sorted(moves) and moves[0] < 0.6 * moves[2] and all(s["expected"] < s["most"] for s in stops)
    advice = design.advise(fit, out, ask, flops=1e16)
    assert f"will move N_opt by about {100 * moves[1]:.2g} %" in design.text(advice)
    width = advice["before"]["stored"] / 2 / 1.959964 * math.sqrt(1 - advice["narrowing"]["N"] ** 2)
    assert advice["stop"]["most"] == pytest.approx(math.expm1(1.959964 * width), rel=1e-5)


def test_advice_keeps_to_its_means(law, noisy):
    fit, ask = law(noisy), Ask(flops=1e18)
    out = plan.make(fit, ask)
    advice = design.advise(fit, out, ask, flops=1e16, runs=3, max_tokens=5e7)
    assert 0 < len(advice["rows"]) <= 3 and advice["spent"] <= 1e16
    assert all(r["D"] <= 5.001e7 and r["N"] >= 0.999 * SIZES.min() for r in advice["rows"])
    for missing in ("points", "residuals"):
        without = law({k: v for k, v in noisy.items() if k != missing})
        with pytest.raises(UsageError, match="holds no points or no residuals"):
            design.advise(without, out, ask)


# ---------------------------------------------------------------------------------------- rungs


@pytest.mark.parametrize("counted", ["total", "nonembedding", "kaplan"])
@pytest.mark.parametrize("wanted", [2e8, 7e9, 73.2e9, 1e12])
def test_nearest_decoder(wanted, counted):
    from bigmodel.run import counts
    from bigmodel.study import rungs

    base = rungs.of_family("decoder")
    found = rungs.nearest(base, wanted, counted)
    assert abs(found["deviation"]) < 0.02 and found["N"] == pytest.approx(wanted * (1 + found["deviation"]))
    section = rungs.build(base, found["width"], found["depth"])
    assert counts.counts("decoder", section)[rungs.COUNTS.index(counted)] == found["N"]
    assert found["width"] % 64 == 0 and 30 <= found["width"] / found["depth"] <= 200
    length = section.seq_len
    assert found["train_flops_per_unit"] == pytest.approx(
        6 * found["params"], rel=0.15 + 2 * length / found["width"] / 6
    )


def test_nearest_keeps_an_aspect_ratio_and_finds_published_sizes():
    from bigmodel.study import rungs

    base = rungs.of_family("decoder")
    gpt2 = rungs.nearest(base, 124_439_808)
    assert (gpt2["width"], gpt2["depth"], gpt2["deviation"]) == (768, 12, 0.0)
    for aspect in (16, 128):
        found = rungs.nearest(base, 1e9, "total", aspect)
        assert aspect / 2 <= found["width"] / found["depth"] <= 2 * aspect and abs(found["deviation"]) < 0.03
    with pytest.raises(UsageError, match="no shape near"):
        rungs.nearest(base, 1000.0)  # a vocabulary alone is more


@pytest.mark.parametrize("wanted", [1000, 30_000, 1_000_000])
def test_nearest_mlp(wanted):
    from bigmodel.study import rungs

    found = rungs.nearest(rungs.of_config(str(ROOT / "experiments/digits.py")), wanted)
    assert abs(found["deviation"]) < 0.15


# ----------------------------------------------------------------------------------------- as a user


def small(exact):
    """The planted law on runs of the size of digits' MLPs."""
    n = np.repeat([610.0, 1210.0, 2410.0, 9000.0], 3)
    d = np.tile([3000.0, 9000.0, 27000.0], 4)
    y = np.log(LAW.predict(PLANTED, {"N": n, "D": d}))
    y += 0.002 * np.random.default_rng(0).standard_normal(len(n))
    return {**content(*bootstrap(n, d, y, 0), n, d), "family": "mlp", "conventions": {"D": "tokens (examples seen)"}}


def test_the_next_sweep_is_written_and_planned(exact, tmp_path, capsys, monkeypatch):
    from bigmodel.study import rungs, sweep

    monkeypatch.chdir(ROOT)
    fit, out = tmp_path / "fit.json", tmp_path / "sweeps/next.py"
    fit.write_text(json.dumps(small(exact)))
    args = ["plan", f"--law={fit}", "--flops=1e10", "--config=experiments/digits.py", f"--out={out}"]
    assert main.main([*args, "--config.train.batch_size=32", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["config"]["overrides"].keys() == {"model.width", "model.depth"}
    rows = sweep.load(str(out)).get_sweep()
    assert rows and all(r["train.batch_size"] == 32 for r in rows)
    planned = sweep.make_plan(str(out))
    assert len(planned) == len(rows) <= len(told["next"]["rows"])
    by_row = {(p.budget.params, p.config.train.tokens) for p in planned}
    assert by_row == {(r["config"]["N"], r["config"]["D"]) for r in told["next"]["rows"]}
    for p in planned:
        assert p.config.train.tokens == pytest.approx(p.budget.tokens, abs=32)
    before = out.read_text()
    assert main.main([*args]) == 2 and "is there already" in capsys.readouterr().err and out.read_text() == before
    with pytest.raises(UsageError, match="is there already"):  # also one that came while the plan was made
        rungs.write_sweep(str(out), rungs.of_family("mlp"), [], "")
    assert out.read_text() == before


def test_the_data_bound_the_next_runs(exact, tmp_path, capsys, data_dir):
    """A decoder on two speeches: no run asks for more tokens than they hold, and the vocabulary is theirs."""
    from bigmodel.study import sweep

    n = np.repeat([2e4, 5e4, 1e5, 4e5], 3)
    d = np.tile([3e4, 9e4, 2.7e5], 4)
    y = np.log(LAW.predict(PLANTED, {"N": n, "D": d})) + 0.002 * np.random.default_rng(0).standard_normal(len(n))
    fit, out = tmp_path / "fit.json", tmp_path / "next.py"
    fit.write_text(json.dumps({**content(*bootstrap(n, d, y, 0), n, d), "family": "decoder"}))
    overrides = [("run.data_dir", data_dir), ("data.name", "speech"), ("data.seq_len", "32"), ("data.epochs", "3")]
    args = [f"--config.{k}={v}" for k, v in overrides]
    config = f"--config={ROOT / 'experiments/gpt.py'}"
    assert main.main(["plan", f"--law={fit}", "--flops=1e13", config, *args, f"--out={out}", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    planned = sweep.make_plan(str(out))
    assert planned and all(p.budget.epochs <= 3 and p.config.model.vocab_size < 1000 for p in planned)
    assert max(p.budget.epochs for p in planned) > 1  # they are enough to matter
    assert told["config"]["count"] == "total" and told["config"]["note"] == ""


def test_text_says_what_json_says(exact, tmp_path, capsys):
    fit = tmp_path / "fit.json"
    fit.write_text(json.dumps(small(exact)))
    assert main.main(["plan", f"--law={fit}", "--flops=1e10"]) == 0
    text = capsys.readouterr().out
    assert main.main(["plan", f"--law={fit}", "--flops=1e10", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert f"--config.model.width={told['config']['width']} " in text and "D  examples" in text
    assert plan.si(told["N"]["value"]) in text and text.count("--config.train.tokens=") == 1 + len(told["next"]["rows"])
    assert "held-out error of the law, on 8 runs of up to 9x" in text and "half N: loss" in text
    assert math.isfinite(told["next"]["before"]["ratio"])


def test_chinchillas_own_runs_from_fit_to_plan(tmp_path, capsys):
    """Besiroglu et al. 2024's points: at Chinchilla's 5.76e23 FLOPs their law gives 73.2B parameters, 1.31T tokens."""
    if not BESIROGLU.is_file():
        pytest.skip("the published points aren't beside the repository")
    fit = tmp_path / "fit.json"
    columns = ["--N=Model Size", "--C=Training FLOP", "--drop-highest=5"]
    assert main.main(["fit", str(BESIROGLU), *columns, "--bootstrap=100", "--holdout=1", f"--out={fit}"]) == 0
    capsys.readouterr()
    assert main.main(["plan", f"--law={fit}", "--flops=5.76e23", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["N"]["value"] == pytest.approx(73.2e9, rel=2e-3) and told["D"]["value"] == pytest.approx(
        1.31e12, rel=3e-3
    )
    assert told["N"]["low"] < 67e9 < told["N"]["high"] and told["N"]["high"] < 3 * told["N"]["low"]
    assert told["beyond"]["C"] > 10 and told["next"]["basis"].endswith("240 fitted runs")


def test_si():
    values = [7.32e10, 999.6, 999.4, 1.31e12, 5e15, None, 0.38]
    assert [plan.si(v) for v in values] == ["73.2B", "1k", "999", "1.31T", "5e+15", "unbounded", "0.38"]
