"""Residuals of the target itself, and the derivatives of every law against differences."""

import json

import numpy as np
import pytest

from bigmodel.cli import main
from bigmodel.errors import UsageError
from bigmodel.laws import duals, forms, intervals, rows, search
from bigmodel.laws import fit as fits
from tests.test_laws import CHINCHILLA, SIZES, TOKENS, table
from tests.test_laws import PLANTED as PAPERS

# A target that is a difference of losses: below 0 for most runs. All of its numbers are far from a loss's size.
SIGNED_LAW = """
PARAMETERS = {"shift": (-9, 0, 9), "a": (-9, 9), "alpha": (0.3, 0.6), "b": (1, 1e2)}
SIGNED = {"shift", "a"}
COLUMNS = ("N", "D")
TARGET = "gain"
LINEAR = True

def form(params, row):
    return params["shift"] + params["a"] * (row["N"] / 1e7) ** -params["alpha"] + params["b"] * row["D"] ** -0.3
"""
PLANTED = {"shift": -2.5, "a": 4.0, "alpha": 0.4, "b": 30.0}


@pytest.fixture
def signed(tmp_path):
    path = tmp_path / "signed.py"
    path.write_text(SIGNED_LAW)
    law = forms.get(str(path))
    return str(path), table({"N": SIZES, "D": TOKENS}, law, PLANTED)


# ------------------------------------------------------------------------- residuals of the target


def test_a_law_of_targets_of_either_sign_is_fitted(signed):
    path, frame = signed
    assert frame["gain"].min() < 0 < frame["gain"].max()
    result = fits.fit(frame, law=path, residuals="linear", bootstrap=40, holdout=2)
    assert result["residuals_of"] == "linear"
    for name, value in PLANTED.items():
        assert result["params"][name] == pytest.approx(value, rel=1e-5)
    np.testing.assert_allclose(fits.predict_rows(result, frame), frame["gain"], atol=1e-6)
    assert all(entry["mean_abs_rel_error"] < 1e-5 for entry in result["holdout"])


def test_a_linear_law_has_no_residuals_of_logarithms(signed):
    path, frame = signed
    with pytest.raises(UsageError, match="gain may be zero or negative; residuals=linear fits it"):
        fits.fit(frame, law=path)
    with pytest.raises(UsageError, match="expected a finite number"):
        fits.fit(frame.assign(gain=np.where(frame.index == 3, np.inf, frame["gain"])), law=path, residuals="linear")


def test_linear_residuals_are_in_the_targets_unit():
    """Of any law: the optimum is that of scipy on the same objective, whatever the unit."""
    from scipy.optimize import minimize

    law = forms.get("chinchilla")
    frame = table({"N": SIZES, "D": TOKENS}, law, CHINCHILLA)
    frame["L"] += np.random.default_rng(0).normal(0, 0.02, len(frame))
    n, d, observed = (frame[c].to_numpy() for c in "NDL")

    def objective(theta, unit=1.0, delta=0.05):
        e, a, alpha, b, beta = theta
        r = np.abs(np.exp(e) + np.exp(a) * n**-alpha + np.exp(b) * d**-beta - unit * observed)
        return np.where(r <= delta, r**2 / 2, delta * (r - delta / 2)).sum()

    start = law.theta(CHINCHILLA)
    best = minimize(objective, start, method="Nelder-Mead", options={"maxiter": 20000, "fatol": 1e-14, "xatol": 1e-9})
    own = fits.fit(frame, residuals="linear", delta=0.05, bootstrap=0, holdout=0)
    assert own["objective"] == pytest.approx(objective(law.theta(own["params"])), rel=1e-9)
    assert own["objective"] <= best.fun * (1 + 1e-9)
    np.testing.assert_allclose(own["residuals"], observed - law.predict(own["params"], frame), atol=1e-12)
    # The same losses in another unit, with delta in that unit, are the same fit.
    far = fits.fit(frame.assign(L=1e5 * frame["L"]), residuals="linear", delta=0.05e5, bootstrap=0, holdout=0)
    assert far["params"]["alpha"] == pytest.approx(own["params"]["alpha"], rel=1e-5)
    assert far["objective"] == pytest.approx(1e10 * own["objective"], rel=1e-8)


def test_a_rough_run_of_a_linear_law_is_named(signed):
    path, frame = signed
    frame["gain"] += np.random.default_rng(0).normal(0, 1e-3, len(frame))
    frame.loc[20, "gain"] += 3.0
    result = fits.fit(frame, law=path, residuals="linear", bootstrap=0, holdout=0)
    (line,) = [w for w in result["warnings"] if "the law of the others" in w]
    says = float(forms.get(path).predict(PLANTED, frame.loc[[20]])[0])
    assert line.startswith("row 21: gain ") and f"says {says:.2g}" in line


def test_fit_command_takes_linear_residuals(signed, tmp_path, capsys):
    path, frame = signed
    points = tmp_path / "points.csv"
    frame.to_csv(points, index=False)
    options = [f"--law={path}", "--N=N", "--D=D", "--columns=gain=gain", "--bootstrap=0", "--holdout=0"]
    assert main.main(["fit", str(points), *options]) == 2
    assert "residuals=linear" in capsys.readouterr().err
    assert main.main(["fit", str(points), *options, "--residuals=linear", f"--report={tmp_path / 'out'}"]) == 0
    assert "shift" in capsys.readouterr().out
    with pytest.raises(UsageError, match="expected a positive number"):
        rows.load(points, {"N": "N", "D": "D", "gain": "gain"}, target="gain")


# ------------------------------------------------------------------------------------ derivatives


# All that a law may be made of, in one: what it predicts is no law of anything.
EVERYTHING = """
import numpy as np

PARAMETERS = {"E": (1, 2), "A": (10, 1e3), "alpha": (0.2, 0.5), "B": (10, 1e3), "x": (-0.3, 0.4), "y": (0.5,)}
SIGNED = {"x"}

def form(p, row):
    n, d = np.log(row["N"]), row["D"] / 1e9
    power = p["A"] / row["N"] ** p["alpha"] + (p["B"] / row["D"]) ** 0.5 + (1 + p["y"]) ** -p["alpha"]
    smooth = np.exp(-p["E"]) + np.expm1(p["y"] / 9) * np.log1p(p["A"]) + np.sqrt(p["E"] * n) + np.square(p["x"] - 1)
    smooth = smooth + np.tanh(p["x"] * d) + np.sin(p["x"] * n) + np.cos(p["y"]) + np.arctan(p["x"] / d) + p["x"] ** 2
    bases = np.log2(p["E"] + d) + np.log10(p["A"] * d) + np.exp2(p["x"]) + np.reciprocal(p["y"] + d) + 2 ** p["x"]
    kinks = np.maximum(p["x"], 0.01 * n - 0.2) + np.minimum(p["E"], d) + np.abs(p["x"]) + np.clip(p["y"] * d, 0.1, 0.9)
    kinks = kinks + np.where(d > p["y"], np.logaddexp(p["E"], n / 9), p["E"] / 3) + abs(-p["x"]) - (+p["y"])
    return 20 + power + smooth + bases + kinks + 0.0 ** p["y"] + d / 100 - p["E"] / 9 + sum([p["x"], 1 - p["x"]])
"""
PLAIN = EVERYTHING.replace("np.arctan(", "np.arcsinh(")  # no function of duals.py's


def problem_of(name, residuals="log", noise=0.05):
    """The problem on planted runs, and candidates theta (7, P) about what was planted."""
    law = forms.get(name)
    params, columns = PAPERS.get(name) or (law.named(law.starts()[0]), {"N": SIZES, "D": TOKENS})
    frame = table(columns, law, params)
    data = {k: frame[k].to_numpy() for k in frame}
    rng = np.random.default_rng(0)
    data[law.target] = data[law.target] * np.exp(rng.normal(0, noise, len(frame)))
    theta = law.theta(params) + rng.normal(0, 0.05, size=(7, len(law.names)))
    return search.problem_of(law, data, 0.5 * noise, residuals=residuals), theta


def plain_slopes(problem, theta, step=1e-5):
    """Differences of the form's values: no dual."""
    out = np.empty((*theta.shape, len(problem)))
    for p in range(theta.shape[1]):
        h = np.zeros_like(theta)
        h[:, p] = step
        up, down = (problem.law.form((theta + s * h).T[:, :, None], problem.row) for s in (1, -1))
        if problem.bent:
            up, down = np.exp(up), np.exp(down)
        out[:, p] = (up - down) / (2 * step)
    return out


def check_derivatives(name, residuals):
    """Values, slopes and Newton's matrix of the duals, against differences of values, and of the exact gradient."""
    problem, theta = problem_of(name, residuals)
    dual = problem.dual(theta, second=True)
    assert dual is not None
    value = problem.law.form(theta.T[:, :, None], problem.row)
    np.testing.assert_allclose(dual.value, np.exp(value) if problem.bent else value, rtol=1e-12, atol=1e-13)
    residual, slopes = problem.residuals(theta)
    problem.delta = float(np.median(np.abs(residual)))  # both branches of the Huber function are there
    rough = plain_slopes(problem, theta)
    np.testing.assert_allclose(slopes, rough, rtol=1e-5, atol=1e-7 * np.abs(rough).max())
    counts = np.random.default_rng(1).integers(0, 3, size=residual.shape).astype(float)
    counts *= np.abs(np.abs(residual) - problem.delta) > 5e-6 * np.abs(slopes).max()  # no difference over a kink
    own, out = problem.newton(theta, residual, slopes, counts), np.empty((*theta.shape, theta.shape[1]))
    for p in range(theta.shape[1]):
        h = np.zeros_like(theta)
        h[:, p] = 1e-6
        up, down = (problem.gradient(*problem.residuals(theta + s * h), counts) for s in (1, -1))
        out[:, p] = (up - down) / 2e-6
    np.testing.assert_allclose(own, out, rtol=1e-4, atol=1e-6 * np.abs(out).max())


@pytest.mark.parametrize("residuals", ["log", "linear"])
@pytest.mark.parametrize("name", PAPERS)
def test_every_laws_derivatives_are_those_of_differences(name, residuals):
    check_derivatives(name, residuals)


def test_a_users_derivatives_are_those_of_differences(tmp_path):
    (tmp_path / "all.py").write_text(EVERYTHING)
    check_derivatives(str(tmp_path / "all.py"), "log")
    (tmp_path / "signed.py").write_text(SIGNED_LAW)
    assert forms.get(str(tmp_path / "signed.py")).linear


def test_a_branch_that_is_not_taken_may_be_infinite():
    """The derivatives of a safe logarithm are finite, its own and the first."""
    x = duals.variables(np.array([[[-1.0], [0.0], [2.0]]]), second=True)[0]
    with np.errstate(all="ignore"):
        safe = np.where(x > 0, np.log(x), 0.0) + 3 * x
        slopes = duals.stacked(safe, (3, 1, 1))
        bent = duals.hessian(safe, np.ones((3, 1)), np.zeros((3, 1)), slopes)
    np.testing.assert_allclose(slopes[:, 0, 0], [3, 3, 3.5])
    np.testing.assert_allclose(bent[:, 0, 0], [0, 0, -0.25])


@pytest.mark.parametrize(
    "text", [PLAIN, "import math\n" + EVERYTHING.replace("n, d =", "n, d = 0 * float(p['E'].sum()) +", 1)]
)
def test_what_is_not_known_is_fitted_by_differences(tmp_path, text):
    """The same numbers, silently: of a function that duals.py lacks, of an array's method."""
    (tmp_path / "plain.py").write_text(text)
    problem, theta = problem_of(str(tmp_path / "plain.py"))
    assert problem.dual(theta) is None
    residual, slopes = problem.residuals(theta)
    np.testing.assert_allclose(slopes, plain_slopes(problem, theta), rtol=1e-4, atol=1e-6)
    matrix = problem.newton(theta, residual, slopes, np.ones((1, len(problem))))
    assert np.isfinite(matrix).all() and not np.allclose(matrix, 0)


def test_resamples_of_a_users_law_are_those_of_the_built_in(tmp_path):
    """The same optima, from other starts, without one difference."""
    (tmp_path / "own.py").write_text(
        "PARAMETERS = {'E': (1, 2), 'A': (10, 1e3, 1e5), 'alpha': (.2, .5), 'B': (10, 1e3, 1e5), 'beta': (.2, .5)}\n"
        "def form(p, row): return p['E'] + p['A'] / row['N'] ** p['alpha'] + p['B'] / row['D'] ** p['beta']\n"
    )
    frame = table({"N": SIZES, "D": TOKENS}, forms.get("chinchilla"), CHINCHILLA)
    frame["L"] *= np.exp(np.random.default_rng(0).normal(0, 0.01, len(frame)))
    found = []
    for name in ("chinchilla", str(tmp_path / "own.py")):
        law = forms.get(name)
        problem = search.problem_of(law, {k: frame[k].to_numpy() for k in frame}, 1e-3)
        best = search.search(problem)
        assert problem.dual(best.theta[None]) is not None
        samples, failed = intervals.resample(problem, best, 50, 0)
        assert failed == 0
        found.append((best.objective, law.values(best.theta), law.values(samples)))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-9)
    np.testing.assert_allclose(found[0][1], found[1][1], rtol=1e-4)
    np.testing.assert_allclose(found[0][2], found[1][2], rtol=1e-3)


def test_quick_says_that_it_is_rough(tmp_path, capsys):
    frame = table({"N": SIZES, "D": TOKENS}, forms.get("chinchilla"), CHINCHILLA)
    frame["L"] *= np.exp(np.random.default_rng(0).normal(0, 0.01, len(frame)))
    frame.to_csv(tmp_path / "points.csv", index=False)
    said = {}
    for more in ((), ("--quick",), ("--quick", "--bootstrap=20", "--holdout=0")):
        assert main.main(["fit", str(tmp_path / "points.csv"), "--bootstrap=150", "--holdout=2", "--json", *more]) == 0
        fit = json.loads(capsys.readouterr().out)
        rough = sum("--quick" in line for line in fit["warnings"])
        said[more] = fit["resamples"]["asked"], len(fit["holdout"]), rough
    assert list(said.values()) == [(150, 2, 0), (100, 1, 1), (20, 0, 1)]


def test_a_users_law_of_n_and_d_has_no_parameter_named_as_its_exponents(tmp_path):
    (tmp_path / "mine.py").write_text("PARAMETERS = {'a': (1, 2)}\ndef form(p, row): return p['a'] / row['N']\n")
    with pytest.raises(UsageError, match="a and b are the optimum's exponents"):
        forms.get(str(tmp_path / "mine.py"))
