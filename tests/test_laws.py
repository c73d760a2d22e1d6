"""Every law: planted parameters come back from its own starts, published constants give the paper's numbers."""

import math
import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from bigmodel.cli import main
from bigmodel.errors import UsageError
from bigmodel.laws import fit as fits
from bigmodel.laws import forms, search

CHINCHILLA = {"E": 1.82, "A": 478.0, "alpha": 0.347, "B": 2143.0, "beta": 0.367}


def table(columns, law, params):
    """The Cartesian product of the columns, with the law's own prediction as its target."""
    grids = np.meshgrid(*columns.values())
    frame = pd.DataFrame({name: g.ravel() for name, g in zip(columns, grids, strict=True)})
    return frame.assign(**{law.target: law.predict(params, frame)})


SIZES, TOKENS, FLOPS = np.geomspace(1e6, 1e9, 7), np.geomspace(1e8, 1e11, 6), np.geomspace(1e15, 1e22, 24)
# Law, its planted parameters, the columns it's planted on. Values are those that the papers print, where they do.
PLANTED = {
    "chinchilla": (CHINCHILLA, {"N": SIZES, "D": TOKENS}),
    "gadre": ({"E": 1.6, "A": 150.0, "B": 250.0, "eta": 0.13}, {"N": SIZES, "D": TOKENS}),
    "kaplan_nd": (
        {"alpha_N": 0.076, "N_c": 6.4e13, "alpha_D": 0.103, "D_c": 1.8e13},
        {"N": SIZES, "D": np.geomspace(1e7, 1e11, 6)},
    ),
    "kaplan_ns": (
        {"alpha_N": 0.077, "N_c": 6.5e13, "alpha_S": 0.76, "S_c": 2.1e3},
        {"N": SIZES, "S": np.geomspace(1e3, 1e6, 6)},
    ),
    "muennighoff": (
        {"E": 1.87, "A": 521.0, "alpha": 0.353, "B": 1488.0, "beta": 0.353, "R_N": 5.31, "R_D": 15.39},
        {"N": np.geomspace(1e7, 8e9, 7), "U": np.geomspace(1e8, 1e10, 3), "D": np.geomspace(1e10, 1e12, 5)},
    ),
    "width_depth": (
        {"E": 1.7, "A": 20.0, "alpha": 0.6, "F": 1.0, "gamma": 0.8, "B": 600.0, "beta": 0.3},
        {"width": np.array([64, 128, 256, 512, 1024.0]), "depth": np.array([2, 4, 8, 16.0]), "D": TOKENS[::2]},
    ),
    "power:x=N": ({"x_c": 8.8e13, "alpha": 0.076}, {"N": SIZES}),
    "power:x=C": ({"x_c": 3.1e8 * 8.64e19, "alpha": 0.05}, {"C": FLOPS}),
    "henighan:x=C": ({"E": 2.0, "x_0": 2e16, "alpha": 0.24}, {"C": FLOPS}),
    "zhai:x=C": ({"c": 0.09, "a": 0.26, "b": 0.35, "d": 0.01}, {"C": np.geomspace(1e-3, 1e4, 24)}),
    "bansal:x=D": ({"E": 0.2, "x_1": 3e9, "p": 0.4}, {"D": np.geomspace(1e7, 1e11, 24)}),
    "m4:x=D,chance=1": ({"E": 0.1, "x_0": 3e7, "c": 0.5, "alpha": 0.6}, {"D": np.geomspace(1e6, 1e10, 24)}),
    "bnsl:x=D,breaks=1": (
        {"a": 0.41388, "b": 2.27727, "c0": 0.055077, "c1": 5.6629, "d1": 612.584, "f1": 0.059193},
        {"D": np.geomspace(100, 2000, 30)},
    ),
    "learning_rate": ({"c": 1.79, "p": -0.713, "q": 0.307}, {"N": SIZES, "D": TOKENS}),
    "batch_size": ({"c": 0.58, "q": 0.571}, {"D": TOKENS}),
    "critical_batch": ({"B_star": 2e8, "alpha_B": 0.21}, {"L": np.linspace(2.0, 5.0, 12)}),
    "downstream": ({"b": 0.25, "a": 0.6, "k": 3.0, "L_0": 2.6}, {"L": np.linspace(1.5, 4.0, 24)}),
    "task_error": ({"eps": 0.86, "k": 2.6, "gamma": 0.7}, {"L": np.linspace(2.0, 4.5, 20)}),
}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_parameters_come_back(name):
    law, (params, columns) = forms.get(name), PLANTED[name]
    frame = table(columns, law, params)
    result = fits.fit(frame, law=name, bootstrap=0, holdout=0)
    for key, value in params.items():
        assert result["params"][key] == pytest.approx(value, rel=1e-3), key
    assert result["objective"] < 1e-12
    np.testing.assert_allclose(fits.predict_rows(result, frame), frame[law.target], rtol=1e-6)


@pytest.mark.parametrize("alpha", [1e-3, 0.3, 1.0, 4.0])
@pytest.mark.parametrize("chance", [1.0, 10.8])
def test_m4_solves_its_equation(alpha, chance):
    """(L - E) / (chance - L)^alpha = (x_0 / x)^c from far left, where L is `chance`, to far right, where it is E."""
    x, values = np.geomspace(1e3, 1e23, 41), {"E": 0.1 * chance, "x_0": 3e7, "c": 0.5, "alpha": alpha}
    loss = forms.get(f"m4:chance={chance}").predict(values, {"D": x})
    assert (np.diff(loss) <= 0).all() and (loss <= chance).all()
    x, loss = (v[loss < chance * (1 - 1e-9)] for v in (x, loss))  # beyond, chance - L is lost to rounding
    assert len(x) > 20 and loss[-1] == pytest.approx(values["E"], rel=1e-3)
    left = np.log(loss - values["E"]) - alpha * np.log(chance - loss)
    np.testing.assert_allclose(left, 0.5 * np.log(3e7 / x), atol=1e-5)


def test_two_breaks_fit_better_than_one():
    """A curve with two breaks needs two: the grid of starts finds them."""
    law = forms.get("bnsl:x=D,breaks=2")
    planted = {"a": 0.1, "b": 5.0, "c0": 0.05, "c1": 0.6, "d1": 1e4, "f1": 0.3, "c2": -0.4, "d2": 1e6, "f2": 0.3}
    frame = table({"D": np.geomspace(1e2, 1e8, 36)}, law, planted)
    one, two = (fits.fit(frame, law=f"bnsl:breaks={k}", bootstrap=0, holdout=0) for k in (1, 2))
    assert two["objective"] < 0.01 * one["objective"]
    assert np.abs(two["residuals"]).max() < 0.005


# ------------------------------------------------------------------------------- the published


def test_kaplan_nd_has_the_published_limits():
    """With infinite data L(N, D) is L(N); the data that N needs grows as N^0.74 (their equation 4.4)."""
    law, params = forms.get("kaplan_nd"), PLANTED["kaplan_nd"][0]
    n = np.array([1e8, 1e9])
    alone = forms.get("power:x=N").predict({"x_c": 6.4e13, "alpha": 0.076}, {"N": n})
    np.testing.assert_allclose(law.predict(params, {"N": n, "D": np.full(2, 1e30)}), alone, rtol=1e-9)

    def tokens(size, excess=1.02):
        """The D at which the loss is 2 % above that of infinite data."""
        low, high = 0.0, 40.0
        for _ in range(100):
            middle = (low + high) / 2
            above = law.predict(params, {"N": [size], "D": [10**middle]})[0] > excess * (6.4e13 / size) ** 0.076
            low, high = (middle, high) if above else (low, middle)
        return 10**low

    assert math.log10(tokens(1e10) / tokens(1e8)) / 2 == pytest.approx(0.076 / 0.103, rel=1e-6)


def test_muennighoff_is_chinchilla_on_fresh_data():
    law, params = forms.get("muennighoff"), PLANTED["muennighoff"][0]
    plain = {k: params[k] for k in ("E", "A", "alpha", "B", "beta")}
    n, d = 1e9, 2e10
    fresh = law.predict(params, {"N": [n], "D": [d], "U": [d]})[0]
    assert fresh == pytest.approx(forms.get("chinchilla").predict(plain, {"N": [n], "D": [d]})[0], rel=1e-9)
    n = 1e7  # below the size that 1e9 unique tokens are best for: no excess parameters
    # Repeats: four epochs are worth nearly as much as new data, sixteen epochs' tokens about half (their section 6).
    at = [law.predict(params, {"N": [n], "D": [e * 1e9], "U": [1e9]})[0] for e in (1, 4, 16, 400)]
    new = [forms.get("chinchilla").predict(plain, {"N": [n], "D": [e * 1e9]})[0] for e in (1, 4, 16, 400)]
    assert (at[0] - at[1]) / (new[0] - new[1]) > 0.9
    assert at[2] > at[3] and at[3] > new[3]
    # Their equation: D' of 16 epochs.
    effective = 1e9 * (1 + 15.39 * (1 - math.exp(-15 / 15.39)))
    assert at[2] == pytest.approx(forms.get("chinchilla").predict(plain, {"N": [n], "D": [effective]})[0], rel=1e-9)


def test_bnsl_slopes_are_the_sums_of_its_exponents():
    law = forms.get("bnsl:x=C,breaks=2")
    params = {"a": 1e-9, "b": 10.0, "c0": 0.1, "c1": 0.5, "d1": 1e4, "f1": 0.1, "c2": -0.2, "d2": 1e9, "f2": 0.1}
    for x, slope in ((1e1, -0.1), (1e6, -0.6), (1e13, -0.4)):
        y = law.predict(params, {"C": [x, 1.01 * x]})
        assert math.log(y[1] / y[0]) / math.log(1.01) == pytest.approx(slope, abs=1e-3)


def test_gadre_is_chinchilla_with_one_exponent():
    p = PLANTED["gadre"][0]
    same = {"E": 1.6, "A": 150 / 6**0.13, "alpha": 0.26, "B": 250 / 6**0.13, "beta": 0.26}
    row = {"N": [1e8, 1e9], "D": [1e9, 1e11]}
    np.testing.assert_allclose(
        forms.get("gadre").predict(p, row), forms.get("chinchilla").predict(same, row), rtol=1e-12
    )
    assert forms.get("gadre").optimum(p, 1e21) == pytest.approx(forms.get("chinchilla").optimum(same, 1e21))


@pytest.mark.parametrize("name", ["chinchilla", "gadre"])
def test_search_finds_the_closed_optimum(name):
    law, params = forms.get(name), PLANTED[name][0]
    searched = forms.with_optimum(replace(law, optimum=None, exponents=None))
    for flops in (1e18, 1e23):
        assert searched.optimum(params, flops) == pytest.approx(law.optimum(params, flops), rel=1e-4)
    assert searched.exponents(params)["a"] == pytest.approx(law.exponents(params)["a"], abs=1e-4)


# ---------------------------------------------------------------------------------- the user's

USER = """
PARAMETERS = {"E": (1.0, 2.0), "A": (10.0, 1000.0), "alpha": (0.2, 0.5), "shift": (0.0,)}
SIGNED = {"shift"}
FORMULA = "{E} + {A}/N^{alpha} + {shift}"
COLUMNS = ("N",)
def form(params, row):
    return params["E"] + params["A"] / row["N"] ** params["alpha"] + 0 * params["shift"]
"""


NOISY = """
import numpy as np
PARAMETERS = {"E": (1, 2), "A": (10, 1e3), "alpha": (0.2, 0.5), "B": (10, 1e3)}
def form(params, row):
    rest = params["A"] / np.log(row["N"]) ** params["alpha"]  # of one parameter: a division by zero
    return params["E"] + rest + params["B"] / row["D"] ** 0.28 + 0 * np.log(params["E"] - 1.2)
"""


def test_a_users_law_says_nothing_of_where_it_has_no_value(tmp_path, capfd):
    """Neither numpy's warnings nor others come between the fit's lines, by `fit`, its report and `plan`."""
    path = tmp_path / "noisy.py"
    path.write_text(NOISY)
    n, d = (x.ravel() for x in np.meshgrid(np.geomspace(1e6, 1e9, 5), np.geomspace(1e8, 1e11, 4)))
    loss = 1.7 + 20 / np.log(n) ** 1.5 + 400 / d**0.28
    pd.DataFrame({"params": n, "tokens": d, "loss": loss}).to_csv(tmp_path / "points.csv", index=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        options = ["--bootstrap=20", "--holdout=1", f"--out={tmp_path / 'fit.json'}"]
        assert main.main(["fit", str(tmp_path / "points.csv"), f"--law={path}", *options]) == 0
        plan = ["plan", f"--law={tmp_path / 'fit.json'}", "--flops=1e20"]
        assert main.main(plan) == 2  # a file of data has no code run by naming it
        assert f"--form={path}" in capfd.readouterr().err
        assert main.main([*plan, f"--form={path}"]) in (0, 2)
    assert "Warning" not in capfd.readouterr().err


def test_a_users_law(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(USER.replace(', "shift": (0.0,)', "").replace(' + 0 * params["shift"]', "").replace(
        'SIGNED = {"shift"}\n', "").replace(" + {shift}", ""))  # fmt: skip
    frame = pd.DataFrame({"N": SIZES, "L": 1.5 + 300 / SIZES**0.3})
    result = fits.fit(frame, law=str(path), bootstrap=50, holdout=1)
    assert result["params"] == pytest.approx({"E": 1.5, "A": 300, "alpha": 0.3}, rel=1e-4)
    assert result["columns"] == ["N"]
    both = tmp_path / "nd.py"
    both.write_text(
        'PARAMETERS = {"A": (10, 1e3), "alpha": (0.2, 0.5), "B": (10, 1e3), "beta": (0.2, 0.5)}\n'
        'def form(p, row): return p["A"] / row["N"] ** p["alpha"] + p["B"] / row["D"] ** p["beta"]\n'
    )
    law = forms.get(str(both))
    n, d = law.optimum({"A": 400, "alpha": 0.34, "B": 410, "beta": 0.28}, 1e20)
    closed = forms.get("chinchilla").optimum({"E": 1.0, "A": 400, "alpha": 0.34, "B": 410, "beta": 0.28}, 1e20)
    assert (n, d) == pytest.approx(closed, rel=1e-4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def form(p, r): return 1", "has no PARAMETERS"),
        ('PARAMETERS = {"E": (1,)}', "has no form"),
        (
            'PARAMETERS = {"E": 1}\ndef form(p, r): return 1',
            "starts of 'E' are 1, expected a tuple of positive numbers",
        ),
        ('PARAMETERS = {"E": (0.0,)}\ndef form(p, r): return 1', "starts of 'E' are .0.0,., expected a tuple of pos"),
        ("PARAMETERS = []\ndef form(p, r): return 1", "expected a dict"),
        ('PARAMETERS = {"E": (1.0,)}\nSIGNED = {"F"}\ndef form(p, r): return 1', "SIGNED names 'F'"),
        ('PARAMETERS = {"E": (1.0,)}\ndef form(p, r): return p["F"]', r"line 2, in form\(\): KeyError: 'F'"),
        ('PARAMETERS = {"E": (1.0,)}\ndef form(p, r): return "x"', r"in form\(\): ValueError"),
        ("PARAMETERS = {", "SyntaxError"),
        (
            'COLUMNS = ()\nPARAMETERS = {"E": (1.0,)}\ndef form(p, r): return 1',
            r"COLUMNS=\(\): expected a tuple of names",
        ),
        ('COLUMNS = "N"\nPARAMETERS = {"E": (1.0,)}\ndef form(p, r): return 1', "COLUMNS='N': expected a tuple"),
        ('PARAMETERS = {"E": (1.0, 2.0)}\ndef form(p, r): return -p["E"] + 0 * r["N"]', "no start predicts a positive"),
    ],
)
def test_a_users_mistake_is_one_line(tmp_path, text, message):
    path = tmp_path / "law.py"
    path.write_text(text)
    frame = pd.DataFrame({"N": SIZES, "D": TOKENS[0], "L": 3 / SIZES**0.01}).assign(
        D=np.geomspace(1e8, 1e9, len(SIZES))
    )
    with pytest.raises(UsageError, match=message) as error:
        fits.fit(frame, law=str(path), bootstrap=0)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("chinchila", "did you mean 'chinchilla'"),
        ("get", "no law 'get'"),
        ("power:y=N", "'y=N' is not an argument; power takes x=C"),
        ("bnsl:breaks=two", "breaks='two', expected 1 to 3"),
        ("bnsl:breaks=0", "breaks='0', expected 1 to 3"),
        ("chinchilla:x=N", "chinchilla takes no arguments"),
        ("bnsl:breaks=4", "breaks='4', expected 1 to 3"),
        ("m4:chance=zero", "chance='zero', expected the loss of a guess"),
        ("m4:chance=-1", "chance='-1', expected the loss of a guess"),
        ("power:x=L", "would predict L from L itself"),
        ("nowhere.py", "no law file 'nowhere.py'"),
    ],
)
def test_a_wrong_name_is_one_line(name, message):
    with pytest.raises(UsageError, match=message):
        forms.get(name)


def test_starts_move_with_the_units():
    """Losses in other units, and x in other units, find the same law."""
    frame = table({"C": FLOPS}, forms.get("henighan"), PLANTED["henighan:x=C"][0])
    small = frame.assign(C=frame["C"] / 8.64e19, L=frame["L"] * 1e-6)
    found = fits.fit(small, law="henighan", bootstrap=0, holdout=0)["params"]
    assert found["alpha"] == pytest.approx(0.24, rel=1e-4)
    assert found["E"] == pytest.approx(2e-6, rel=1e-4)
    assert found["x_0"] == pytest.approx(2e16 * 1e-6 ** (1 / 0.24) / 8.64e19, rel=1e-2)


def test_the_published_grid_has_4500_starts():
    starts = forms.get("chinchilla").starts()
    assert starts.shape == (4500, 5)
    assert len(np.unique(starts, axis=0)) == 4500
    data = {"N": SIZES, "D": SIZES * 20, "L": np.full(7, 3.0)}
    assert np.array_equal(search.problem_of(forms.get("chinchilla"), data, 1e-3).starts(), starts)
