"""The isoFLOP doctor: biases of a parabola, corrected optima, and the lines that say so before and after the runs."""

import sys

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from scipy import optimize

from bigmodel.cli import main
from bigmodel.laws import doctor, frontier, texts
from bigmodel.laws import fit as fits

sys.path.insert(0, str(ROOT / "benchmarks"))
import isoflop_doctor as study

POINTS = ROOT.parent / "shared/points"


def even(middle, reach, n=7):
    return np.log(middle) + np.linspace(-np.log(reach), np.log(reach), n)


# ----------------------------------------------------------------------------------------- bias


@pytest.mark.parametrize(
    ("offset", "alpha", "beta", "low", "high"),
    [
        (even(1, 4), 0.31, 0.31, -1e-6, 1e-6),  # nothing is off-centre, and the exponents are alike
        (even(1, 2), 0.34, 0.28, 0.002, 0.005),
        (even(1, 4), 0.465, 0.155, 0.05, 0.1),
        (even(1, 8, 15), 0.465, 0.155, 0.12, 0.2),
        (even(3, 4), 0.465, 0.155, -0.08, -0.04),
    ],
)
def test_bias_of_a_parabola(offset, alpha, beta, low, high):
    n, d = doctor.bias(offset, alpha, beta)
    assert low <= n <= high
    assert (1 + n) * (1 + d) == pytest.approx(1)
    # Mirrored, with N and D exchanged, the error changes its side.
    assert doctor.bias(-offset[::-1], beta, alpha)[0] == pytest.approx(d, abs=1e-9)


def test_bias_is_that_of_runs_of_the_law():
    """No short cut of units: the same from losses of a law with these exponents, at the share E / L_opt that it has."""
    runs, optima = study.planted("unequal", "3x above")
    found = frontier.isoflop(runs, bootstrap=0)
    e, a, alpha, b, beta = study.LAWS["unequal"]
    for budget, best in zip(found["budgets"], optima, strict=True):
        least = e + a / best**alpha + b / (budget["C"] / 6 / best) ** beta
        n, d = doctor.bias(np.log(budget["N"]) - np.log(best), alpha, beta, e / least)
        assert budget["N_opt"] / best - 1 == pytest.approx(n, rel=1e-4)
        assert budget["D_opt"] / (budget["C"] / 6 / best) - 1 == pytest.approx(d, rel=1e-4)


def test_no_minimum_inside_is_nan():
    assert np.isnan(doctor.bias(even(8, 4), 0.34, 0.28)).all()


@pytest.mark.parametrize(
    ("log_n", "kind"),
    [
        (even(1, 2), ""), (even(1, 4), ""), (even(1.3, 4), ""), (even(1, 8), "wide"), (even(2.1, 4), "off-centre"),
        (even(1 / 2.1, 8), "off-centre"), (even(1.5, 2), "off-centre"), (np.log(np.linspace(0.25, 4, 7)), "uneven"),
        (even(50, 2), "off-centre"),
    ],
)  # fmt: skip
def test_faults_of_sizes(log_n, kind):
    assert doctor.fault(log_n + 20, 20.0) == kind


# ---------------------------------------------------------------------------------------- after


@pytest.mark.parametrize("law", study.LAWS)
@pytest.mark.parametrize(
    "grid", ["centred, x16", "centred, x64", "3x above", "3x below", "4x below, x64", "uneven, x16"]
)
def test_corrected_optima_of_planted_laws(law, grid):
    (parabola, corrected), faults = study.errors(*study.planted(law, grid))
    assert np.abs(corrected).max() < 1e-4
    if law == "unequal" and grid != "4x below, x64":
        assert (np.abs(parabola) > 0.03).all()
    assert faults == {{"centred, x16": "", "centred, x64": "wide", "uneven, x16": "uneven"}.get(grid, "off-centre")}


def test_corrected_frontier_its_intervals_and_its_text():
    runs, optima = study.planted("unequal", "3x below", noise=1e-3)
    found = fits.fit(runs, "isoflop", bootstrap=200)
    own, a = found["corrected"], 0.155 / (0.465 + 0.155)
    low, high = own["ci"]["a"]
    assert low < a < high and high - low < 0.1
    for budget, best in zip(own["budgets"], optima, strict=True):
        low, high = budget["N_ci"]
        assert low < budget["N_opt"] < high and low < best < high
        assert budget["N_opt"] * budget["D_opt"] * 6 == pytest.approx(budget["C"])
    assert own["debiased"]["params"]["a"] == pytest.approx(a, abs=0.05)
    assert any("sizes are off-centre about the optimum at C = 1e+17 (it is" in line for line in found["warnings"])
    text = texts.law_text(found)
    assert "corrected, by a law of all budgets: N_opt = " in text and "the parabolas less their bias: N_opt = " in text
    assert text.count(" %), corrected ") == sum(not b["edge"] for b in found["budgets"])
    assert fits.to_json(found)["corrected"]["budgets"][0]["C"] == pytest.approx(1e17)


def test_sound_budgets_give_no_warning():
    for law in study.LAWS:
        for grid in ("centred, x4", "centred, x16"):
            assert frontier.fit(study.planted(law, grid)[0], "isoflop", bootstrap=0)["warnings"] == []


def test_the_law_is_that_of_variable_projection():
    """An independent fit: E, A, B by non-negative least squares inside a search over alpha and beta."""
    runs, _ = study.planted("hoffmann", "3x above", noise=3e-4)
    n, d, loss = (runs[name].to_numpy() for name in "NDL")

    def misfit(exponents):
        columns = np.stack([np.ones_like(n), n ** -exponents[0], d ** -exponents[1]], axis=1) / loss[:, None]
        unit = np.linalg.norm(columns, axis=0)
        return optimize.nnls(columns / unit, np.ones_like(loss))[1]

    found = optimize.minimize(misfit, (0.3, 0.3), method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-14})
    own = frontier.fit(runs, "isoflop", bootstrap=0)["corrected"]["law"]
    assert [own["alpha"], own["beta"]] == pytest.approx(found.x, abs=2e-3)


def test_budgets_without_a_minimum_count_in_the_correction():
    runs, optima = study.planted("besiroglu", "centred, x64")
    runs = runs[(runs["C"] < 1e21) | (runs["N"] < 0.9 * optima[-1])]
    found = frontier.fit(runs, "isoflop", bootstrap=0)
    assert [b["edge"] for b in found["budgets"]] == [False] * 4 + [True]
    last = found["corrected"]["budgets"][-1]
    assert last["N_opt"] == pytest.approx(optima[-1], rel=1e-3)
    assert (last["fault"], last["difference"], last["bias"]) == ("off-centre", None, None)
    assert any("count the budgets without a minimum inside too: C = 1e+21" in line for line in found["warnings"])


def test_counted_flops_that_grow_with_the_size():
    """C = k N^kappa N D: the optimum is where the derivative along the budget is zero."""
    e, a, alpha, b, beta = study.LAWS["hoffmann"]
    rows, optima = [], []
    for c in (1e18, 1e19, 1e20):

        def loss(log_n, c=c):
            return e + a * np.exp(-alpha * log_n) + b * (c / (2 * np.exp(1.1 * log_n))) ** -beta

        best = optimize.minimize_scalar(loss, (10, 30), method="golden", options={"xtol": 1e-12}).x
        sizes = best + even(1.5, 4)
        optima.append(np.exp(best))
        rows += [(np.exp(s), c / (2 * np.exp(1.1 * s)), c, loss(s)) for s in sizes]
    found = frontier.fit(pd.DataFrame(rows, columns=list("NDCL")), "isoflop", bootstrap=0)["corrected"]
    assert [budget["N_opt"] for budget in found["budgets"]] == pytest.approx(optima, rel=1e-4)


def test_runs_that_no_law_of_chinchilla_s_form_explains_are_said():
    """Each budget a parabola about an optimum of its own, whose exponent the losses' fall contradicts."""
    rng, rows = np.random.default_rng(0), []
    for c in (1e17, 1e18, 1e19, 1e20, 1e21):
        for offset in even(1, 4):
            loss = 3 * (c / 1e17) ** -0.05 * np.exp(0.03 * offset**2 + 1e-4 * rng.standard_normal())
            n = 1e-5 * c**0.75 * np.exp(offset)
            rows.append((n, c / 6 / n, c, loss))
    found = frontier.fit(pd.DataFrame(rows, columns=list("NDCL")), "isoflop", bootstrap=100)
    assert any("the debiased line is the one to trust" in line for line in found["warnings"])
    assert found["corrected"]["debiased"]["params"]["a"] == pytest.approx(0.75, abs=0.02)


def test_a_law_that_the_runs_do_not_determine_is_said():
    """Losses that don't fall with C: no law of this form, so an exponent ends at its bound."""
    rows = [
        (n, c / 6 / n, c, 3 + 0.001 * np.log(n / (c / 120) ** 0.5) ** 2)
        for c in (1e17, 1e19)
        for n in (c / 120) ** 0.5 * np.exp(even(1, 2, 5))
    ]
    found = frontier.fit(pd.DataFrame(rows, columns=list("NDCL")), "isoflop", bootstrap=0)
    assert found["corrected"] is None
    assert any("no corrected optima" in line for line in found["warnings"])


def test_off_centre_public_budgets_are_found():
    path = POINTS / "porian2024_isoflop_points.csv"
    if not path.is_file():
        pytest.skip(f"no {path}: the project ships no published runs")
    runs = {name: own for name, own in study.studies(path)}["summary_df rw base long kaplan standard val"]
    found = frontier.fit(runs, "isoflop", bootstrap=0)
    assert sum(b["fault"] == "off-centre" for b in found["corrected"]["budgets"]) >= 6
    assert any("sizes are off-centre" in line for line in found["warnings"])


# --------------------------------------------------------------------------------------- before


def planned(middle, reach, n=7, ratio=20.0, budgets=(1e18, 1e19, 1e20)):
    rows = [
        (size, c / 6 / size, c) for c in budgets for size in (c / 6 / ratio) ** 0.5 * np.exp(even(middle, reach, n))
    ]
    return pd.DataFrame(rows, columns=list("NDC"))


def test_planned_budgets_that_are_sound_are_passed_over():
    assert doctor.before(planned(1, 4)) == doctor.before(planned(1.2, 3)) == []


def test_planned_budgets_off_centre_wide_or_uneven_are_said_in_a_line():
    (line,) = doctor.before(planned(3, 4))
    assert "off-centre about the optimum if that is at D/N = 20" in line and "C = 1e+18 (it is 3x below their m" in line
    assert "a parabola misses N_opt by -5." in line
    (line,) = doctor.before(planned(1, 16))
    assert "are wide" in line and "sizes over 2.6e+02x" in line
    (line,) = doctor.before(planned(20, 3))
    assert "a parabola has no minimum inside" in line
    # An earlier fit puts the optimum elsewhere: the same sizes are sound.
    assert doctor.before(planned(3, 4), lambda c: (3 * (c / 6 / 20) ** 0.5, 0)) == []
    assert "of the earlier fit" in doctor.before(planned(1, 4), lambda c: ((c / 6 / 20) ** 0.5 / 3, 0))[0]


def test_sweeps_of_other_designs_are_passed_over():
    def of(n, d):
        return doctor.before(pd.DataFrame({"N": n, "D": d, "C": 6 * n * d}))

    n, d = (x.ravel() for x in np.meshgrid(np.geomspace(1e6, 3.2e7, 6), np.geomspace(1e8, 3.2e9, 6)))
    assert of(n, d) == []  # a grid of N and D, whose diagonals have one C
    n = np.geomspace(1e6, 1.5e6, 6)
    assert of(n, np.full(6, 1e9)) == []  # sizes at one D
    assert of(n, 1e12 / n) == []  # shapes of about one size
    assert of(np.geomspace(1e6, 1e8, 3), 1e12 / np.geomspace(1e6, 1e8, 3)) == []  # three sizes


@pytest.fixture
def sweep_file(data_dir, tmp_path):
    def write(widths):
        path = tmp_path / "iso.py"
        path.write_text(
            f"from bigmodel import sweep\nCONFIG = {str(ROOT / 'experiments/gpt.py')!r}\n"
            f"def get_sweep():\n    return sweep.isoflop(sweep.ladder('decoder', {widths}, [2]), [3e9, 9e9])\n"
        )
        options = {"run.data_dir": data_dir, "data.name": "speech", "data.epochs": 99999, "train.batch_size": 1}
        return ["sweep", "plan", str(path), f"--runs={tmp_path}", *(f"--config.{k}={v}" for k, v in options.items())]

    return write


def test_sweep_plan_says_it(sweep_file, capfd, tmp_path):
    command = sweep_file([8, 16, 32, 64])
    assert main.main([*command, "--config.data.seq_len=32"]) == 0
    assert "isoFLOP sizes are" in capfd.readouterr().err
    assert main.main([*command, f"--law={tmp_path}/none.json"]) == 2
    assert "none.json" in capfd.readouterr().err
    assert main.main(["sweep", "run", *command[2:], "--law=fit.json"]) == 2
    assert "--law is for `sweep plan`" in capfd.readouterr().err
