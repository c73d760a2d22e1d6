"""Laws of the literature: planted parameters come back from their own starts; published constants, printed identities.

benchmarks/literature.py fits the papers' own data, where they are public.
"""

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from test_laws import PLANTED as CLASSIC
from test_laws import table

from bigmodel.laws import duals, forms
from bigmodel.laws import fit as fits
from bigmodel.laws.forms import recipes

SCALEBENCH = Path(__file__).parents[2] / "shared" / "points" / "scalebench"
SIZES, TOKENS, DENSITY = np.geomspace(1e7, 1e10, 5), np.geomspace(1e9, 1e12, 5), np.array([1, 0.5, 0.25, 0.125])
BITS = np.array([3, 4, 6, 16.0])
SHARES = {
    "web": np.array([0.0, 0.3, 0.5, 0.7]),
    "code": np.array([0.05, 0.1, 0.2, 0.3]),
    "books": np.array([0.1, 0.2, 0.4]),
}

# Law, its planted parameters (the published, where they are confirmed), the columns it's planted on.
PLANTED = {
    "farseer": (
        {"f_0": 0.4513808, "f_1": -0.1201112, "q": 0.13, "g_0": 130.06934, "g_1": -1.1086827, "b": -0.1729}
        | {"h_0": 0.307693, "h_1": -0.1979208, "a": 0.0459},
        {"N": np.geomspace(1e8, 6e9, 7), "D": np.geomspace(1e9, 5e11, 7)},
    ),
    "clark": (
        {"a": -0.082, "b": -0.108, "c": 0.009, "d": 1.104, "E_start": 1.847, "E_max": 314.478},
        {"N": SIZES, "experts": 2.0 ** np.arange(0, 10)},
    ),
    "krajewski": (
        {"c": 0.47, "a": 18.1, "alpha": 0.115, "b": 30.8, "beta": 0.147, "g": 2.1, "gamma": 0.58},
        {"N": SIZES, "D": TOKENS, "G": 2.0 ** np.arange(5)},
    ),
    "abnar": (
        {"e": 0.9, "a": 1e4, "alpha": 0.6, "b": 5e3, "beta": 0.4, "c": 0.46, "lam": -0.17}
        | {"d": 17.0, "delta": 0.16, "gamma": 0.16},
        {"N": SIZES, "D": TOKENS, "active": 2.0 ** -np.arange(0, 7)},
    ),
    "frantar": (
        {"c": 0.651, "a_S": 16.7, "b_S": 0.722, "c_S": 44.9, "b_N": 0.245, "a_D": 6.5, "b_D": 0.203},
        {"N": SIZES, "D": np.geomspace(1e4, 1e6, 5), "density": DENSITY},
    ),
    "parallel": ({"E": 1.3, "A": 2e8, "alpha": 0.2, "k": 0.33}, {"N": SIZES, "P": np.array([1, 2, 4, 8.0])}),
    "precision": (
        {"E": 2.7648, "A": 4299.0, "alpha": 0.4965, "B": 18060.0, "beta": 0.4965}
        | {"gamma_w": 2.6745, "gamma_a": 2.2102, "gamma_kv": 0.9578},
        {"N": SIZES[::2], "D": TOKENS[::2], "P_w": BITS[::2], "P_a": BITS[::2], "P_kv": BITS[::2]},
    ),
    "quantization": (
        {"C_T": 0.0598, "gamma_D": 0.5068, "gamma_N": 0.3439, "gamma_post": 0.5907},
        {"N": SIZES, "D": TOKENS, "P_post": BITS},
    ),
    "distillation": (
        {"c0": 2.5, "c1": 5.0, "d1": 1.3, "f1": 0.1, "A": 2000.0, "alpha": 0.32, "B": 2e4, "beta": 0.6, "gamma": 0.76},
        {"N": SIZES[::2], "D": TOKENS[::2], "L_T": np.array([1.8, 2.1, 2.5, 3.0]), "L_S": np.array([1.9, 2.3, 2.8])},
    ),
    "tao": (
        {"E": 5.53278, "A1": 875.0, "A2": 2073.0, "B": 22190.0, "beta": 0.446606, "alpha2": 0.670737},
        {"N": SIZES, "V": np.geomspace(2e6, 2e8, 5), "D": TOKENS},
    ),
    "mixture:r=web+code+books": ({"c": 1.4, "t_web": 0.8, "t_code": -2.5, "t_books": 0.3}, SHARES),
    "annealing": (
        {"L_0": 2.6, "A": 0.5, "alpha": 0.5, "C": 0.4},
        {"S1": np.geomspace(0.1, 20, 8), "S2": np.array([0, 0.05, 0.1, 0.4])},
    ),
    "sovit:x=width,t=C": (
        {"eps": 0.1, "alpha": 5.0, "a": 0.8, "beta": 10.0, "b": 0.4, "xi": 50.0, "c": 0.4},
        {"width": np.geomspace(100, 3000, 8), "C": np.geomspace(1e3, 1e7, 6)},
    ),
    "horizon": ({"c": 1.2, "q": 0.32}, {"D": TOKENS}),
}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_parameters_come_back(name):
    law, (params, columns) = forms.get(name), PLANTED[name]
    frame = table(columns, law, params)
    result = fits.fit(frame, law=name, residuals="linear" if law.linear else "log", bootstrap=0, holdout=0)
    assert result["objective"] < 1e-12
    np.testing.assert_allclose(fits.predict_rows(result, frame), frame[law.target], rtol=1e-6)
    for key, value in params.items():
        assert result["params"][key] == pytest.approx(value, rel=5e-3), key


@pytest.mark.parametrize("name", PLANTED)
def test_derivatives_are_exact(name):
    """Each form is made of what `duals` knows; otherwise fits fall back to differences, several times as slow."""
    law, (params, columns) = forms.get(name), PLANTED[name]
    row = {c: x[:2] for c, x in columns.items()}
    assert isinstance(law.form(duals.variables(law.theta(params)[:, None, None], True), row), duals.Dual)


# The formulas again, in plain arithmetic.
PLAIN = {
    "krajewski": lambda p, r: p.c + (p.g / r.G**p.gamma + p.a) / r.N**p.alpha + p.b / r.D**p.beta,
    "abnar": lambda p, r: p.e + p.a / r.N**p.alpha + p.b / r.D**p.beta + p.c / r.active**p.lam
    + p.d / (r.active**p.delta * r.N**p.gamma),
    "frantar": lambda p, r: p.c + (p.a_S * r.density**p.b_S + p.c_S) / r.N**p.b_N + p.a_D / r.D**p.b_D,
    "parallel": lambda p, r: p.E + (p.A / (r.N * (p.k * np.log(r.P) + 1))) ** p.alpha,
    "precision": lambda p, r: p.E + p.B / r.D**p.beta + p.A / r.N**p.alpha / math.prod(
        1 - np.exp(-bits / gamma) for bits, gamma in ((r.P_w, p.gamma_w), (r.P_a, p.gamma_a), (r.P_kv, p.gamma_kv))
    ) ** p.alpha,
    "quantization": lambda p, r: p.C_T * r.D**p.gamma_D / r.N**p.gamma_N * np.exp(-r.P_post / p.gamma_post),
    "tao": lambda p, r: -p.E + p.A1 / r.N**p.beta + p.A2 / r.V**p.alpha2 + p.B / r.D**p.beta,
    "mixture:r=web+code+books": lambda p, r: p.c + np.exp(p.t_web * r.web + p.t_code * r.code + p.t_books * r.books),
    "annealing": lambda p, r: p.L_0 + p.A * r.S1**-p.alpha - p.C * r.S2,
    "sovit:x=width,t=C": lambda p, r: p.eps + p.alpha * r.width**-p.a + (p.beta * r.width**p.b + p.xi) * r.C**-p.c,
    "horizon": lambda p, r: p.c * r.D**-p.q,
}  # fmt: skip


@pytest.mark.parametrize("name", PLAIN)
def test_forms_are_their_formulas(name):
    params, columns = PLANTED[name]
    frame = table(columns, forms.get(name), params)
    np.testing.assert_allclose(frame[forms.get(name).target], PLAIN[name](SimpleNamespace(**params), frame), rtol=1e-9)


def test_every_law_is_planted():
    own = {name.partition(":")[0] for name in (*CLASSIC, *PLANTED)}
    assert own == set(forms.makers()) - {"average"}  # tests/test_choice.py


# ------------------------------------------------------------- the published, and printed identities


def test_farseer_is_the_published_formula():
    """exp(s N^q + S) + exp(B N^b + Q) D^-exp(A N^a + E) with the constants that the authors print."""
    e, s, q, big_s = 3.133347198805445, -0.062465473, 0.13, 0.1284880679442551
    big_b, b, big_q, big_a, a = 230.73437075885855, -0.1729, -1.544209554, -1.665630816, 0.0459
    n, d = (x.ravel() for x in np.meshgrid(np.geomspace(1e8, 3e10, 6), np.geomspace(1e9, 1e12, 6)))
    printed = np.exp(s * n**q + big_s) + np.exp(big_b * n**b + big_q) * d ** -np.exp(big_a * n**a + e)
    at = {"f": (s, q, big_s), "g": (big_b, b, big_q), "h": (big_a, a, e)}  # value and slope in ln N at N = 1e9
    ours = {f"{k}_0": math.exp(c * 1e9**power + shift) for k, (c, power, shift) in at.items()}
    ours |= {f"{k}_1": c * 1e9**power * power for k, (c, power, _) in at.items()} | {"q": q, "b": b, "a": a}
    np.testing.assert_allclose(forms.get("farseer").predict(ours, {"N": n, "D": d}), printed, rtol=1e-12)
    assert {k: pytest.approx(v, rel=2e-6) for k, v in PLANTED["farseer"][0].items()} == ours  # the docstring's numbers
    straight = ours | {"q": 0.0, "b": 0.0, "a": 0.0}  # without bends: power laws
    f, g, h = (ours[f"{k}_0"] * (n / 1e9) ** ours[f"{k}_1"] for k in "fgh")
    np.testing.assert_allclose(forms.get("farseer").predict(straight, {"N": n, "D": d}), f + g / d**h, rtol=1e-12)


def test_clark_saturates_between_its_ends():
    law, params = forms.get("clark"), PLANTED["clark"][0]
    n = np.full(2, 1e8)
    loss = law.predict(params, {"N": n, "experts": np.array([1.0, 1e12])})
    for value, e in zip(loss, (params["E_start"], params["E_max"]), strict=True):
        printed = params["a"] * 8 + params["b"] * math.log10(e) + params["c"] * 8 * math.log10(e) + params["d"]
        assert math.log10(value) == pytest.approx(printed, rel=1e-9)


def test_more_bits_than_matter_are_chinchilla():
    law, params = forms.get("precision"), PLANTED["precision"][0]
    plain = {k: params[k] for k in ("E", "A", "alpha", "B", "beta")}
    row = {"N": [1e8], "D": [1e10]} | {name: [200.0] for name in ("P_w", "P_a", "P_kv")}
    assert law.predict(params, row)[0] == pytest.approx(forms.get("chinchilla").predict(plain, row)[0], rel=1e-14)


def test_the_best_precision_does_not_depend_on_compute():
    """Kumar et al., equation 28: at C = 6/16 N D P and one gamma, 3 P / gamma = exp(P / gamma) - 1 at every C."""
    law, gamma = forms.get("precision"), 2.5
    params = PLANTED["precision"][0] | {"gamma_w": gamma, "gamma_a": gamma, "gamma_kv": gamma, "beta": 0.3}
    n, p = np.meshgrid(np.geomspace(1e6, 1e11, 2001), np.linspace(3.5, 6.5, 1201))
    for flops in (1e19, 1e22):
        d = flops / (6 / 16 * n * p)
        row = {"N": n.ravel(), "D": d.ravel(), "P_w": p.ravel(), "P_a": p.ravel(), "P_kv": p.ravel()}
        best = p.ravel()[np.argmin(law.predict(params, row))]
        assert 3 * best / gamma == pytest.approx(math.expm1(best / gamma), rel=0.01)


def test_quantized_models_have_a_critical_data_size():
    """Kumar et al., equation 13: beyond it the loss that data removes is less than the loss that rounding adds."""
    post = PLANTED["quantization"][0]
    plain = {"E": 2.7648, "A": 4299.0, "alpha": 0.4965, "B": 18060.0, "beta": 0.4965}
    n, bits = 1e8, 4.0
    top = plain["beta"] * plain["B"] * n ** post["gamma_N"] * math.exp(bits / post["gamma_post"])
    critical = (top / (post["gamma_D"] * post["C_T"])) ** (1 / (post["gamma_D"] + plain["beta"]))
    row = {"N": np.full(3, n), "D": critical * np.array([0.98, 1.0, 1.02]), "P_post": np.full(3, bits)}
    loss = forms.get("chinchilla").predict(plain, row) + forms.get("quantization").predict(post, row)
    assert loss[1] < loss[0] and loss[1] < loss[2]
    assert loss[0] - loss[1] == pytest.approx(loss[2] - loss[1], rel=0.05)  # a minimum there, not near there


def test_a_student_with_all_there_is_has_its_teachers_loss():
    law, params = forms.get("distillation"), PLANTED["distillation"][0]
    teachers = np.array([1.5, 2.0, 3.0])
    endless = {"N": np.full(3, 1e60), "D": np.full(3, 1e60), "L_T": teachers, "L_S": np.full(3, 1.22)}
    np.testing.assert_allclose(law.predict(params, endless), teachers, rtol=1e-6)


def test_the_gap_between_student_and_teacher_bends_at_the_capacity_gap():
    """L - L_T goes as L_T^-c0 for teachers far better than L_S d1, and as L_T^-(c0 + c1) for far worse ones."""
    law, params = forms.get("distillation"), PLANTED["distillation"][0] | {"c1": 1.5}
    row = {"N": np.full(2, 1e8), "D": np.full(2, 1e10), "L_T": np.array([1.0, 2.0])}
    for alone, slope in ((1e3, params["c0"]), (1e-3, params["c0"] + params["c1"])):
        near, far = law.predict(params, row | {"L_S": np.full(2, alone)}) - row["L_T"]
        assert math.log2(near / far) == pytest.approx(slope, rel=1e-3)
    alone = 2.0
    bend = alone * params["d1"]
    row = {"N": [1e8], "D": [1e10], "L_T": [bend], "L_S": [alone]}
    reach = (params["A"] / 1e8 ** params["alpha"] + params["B"] / 1e10 ** params["beta"]) ** params["gamma"]
    printed = bend + bend ** -params["c0"] * 2 ** (-params["c1"] * params["f1"]) * reach
    assert law.predict(params, row)[0] == pytest.approx(printed, rel=1e-12)


def test_shapes_have_the_optimum_of_their_derivative():
    """SoViT: the best x grows as t^(c / (a + b))."""
    law, p = forms.get("sovit:x=width,t=C"), PLANTED["sovit:x=width,t=C"][0]
    width = np.geomspace(1, 1e5, 20001)
    scale = (p["alpha"] * p["a"] / (p["beta"] * p["b"])) ** (1 / (p["a"] + p["b"]))
    for t in (1e3, 1e6):
        best = width[np.argmin(law.predict(p, {"width": width, "C": np.full(width.shape, t)}))]
        assert best == pytest.approx(scale * t ** (p["c"] / (p["a"] + p["b"])), rel=2e-3)


def test_annealing_columns_of_a_schedule():
    rates = np.array([1.0, 1.0, 0.5, 0.5, 0.25])
    s1, s2 = recipes.annealed(rates, decay=0.5)
    np.testing.assert_allclose(s1, [1, 2, 2.5, 3, 3.25])
    np.testing.assert_allclose(s2, [0, 0, 0.5, 0.75, 1.125])  # momenta 0, 0, 0.5, 0.25, 0.375
    assert not recipes.annealed(np.full(9, 0.1))[1].any()


def test_a_curve_of_one_schedule_predicts_another():
    """Fitted on the points of a cosine run, the law gives those of a constant rate with a linear decay."""
    law, params = forms.get("annealing"), PLANTED["annealing"][0]
    steps = np.arange(2000)
    schedules = {
        "cosine": 0.5e-2 * (1 + np.cos(np.pi * steps / 2000)),
        "wsd": 1e-2 * np.minimum(1, (2000 - steps) / 400),
    }
    curves = {}
    for name, rates in schedules.items():
        s1, s2 = recipes.annealed(rates)
        frame = pd.DataFrame({"S1": s1, "S2": s2}).iloc[100::50]
        curves[name] = frame.assign(L=law.predict(params, frame))
    found = fits.fit(curves["cosine"], law="annealing", bootstrap=0, holdout=0)
    np.testing.assert_allclose(fits.predict_rows(found, curves["wsd"]), curves["wsd"]["L"], rtol=1e-6)


def test_shares_of_a_mixture_may_be_zero():
    law, params = forms.get("mixture:r=web+code+books"), PLANTED["mixture:r=web+code+books"][0]
    shares = np.random.default_rng(0).dirichlet([1, 1, 1], 12)
    shares[:3] = np.eye(3)
    frame = pd.DataFrame(shares, columns=["web", "code", "books"])
    found = fits.fit(frame.assign(L=law.predict(params, frame)), law=law.name, bootstrap=0, holdout=0)
    for key, value in params.items():
        assert found["params"][key] == pytest.approx(value, rel=1e-3), key


# -------------------------------------------------------------------------------------- public points


@pytest.fixture
def scalebench():
    if not SCALEBENCH.is_dir():
        pytest.skip(f"{SCALEBENCH} is absent: the published points are not shipped with the project")
    return lambda name: pd.read_parquet(SCALEBENCH / f"{name}.parquet").rename(columns={"loss": "L"})


def test_farseer_predicts_the_runs_it_has_not_seen(scalebench):
    """404 runs up to 6.4e9 parameters; seven runs that cost more, up to 25e9. Chinchilla's law is 3 % off there."""
    train, test = (scalebench(f"farseer-{part}") for part in ("train", "test"))
    found = fits.fit(train, law="farseer", delta=1e3, bootstrap=0, holdout=0)  # least squares
    error = np.abs(fits.predict_rows(found, test) / test["L"] - 1).mean()
    assert error == pytest.approx(0.00339, abs=1e-4)
    assert found["params"] == pytest.approx(
        {"f_0": 0.44688, "f_1": -0.11018, "q": 0.04801, "g_0": 105.637, "g_1": -0.81415, "b": -0.14366}
        | {"h_0": 0.29683, "h_1": -0.15288, "a": 0.02572},
        rel=1e-3,
    )


def test_parallel_predicts_held_out_streams(scalebench):
    names = {"num_params": "N", "parallel_size": "P"}
    train, test = (scalebench(f"parallel-{part}").rename(columns=names) for part in ("train", "test"))
    for group in ("pile", "stack"):
        found = fits.fit(train[train["group"] == group], law="parallel", bootstrap=0, holdout=0)
        held = test[test["group"] == group]
        assert np.abs(fits.predict_rows(found, held) / held["L"] - 1).mean() < 0.003
