"""Residuals of the target itself, and the derivatives of every law against differences."""

import numpy as np
import pytest

from bigmodel.cli import main
from bigmodel.errors import UsageError
from bigmodel.laws import fit as fits
from bigmodel.laws import forms, rows
from tests.test_laws import CHINCHILLA, SIZES, TOKENS, table

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
