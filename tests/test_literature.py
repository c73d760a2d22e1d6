"""Laws of the literature: planted parameters come back from their own starts, published constants and printed identities.

benchmarks/literature.py fits the papers' own data, where they are public.
"""

from pathlib import Path

import numpy as np
import pytest
from test_laws import PLANTED as CLASSIC
from test_laws import table

from bigmodel.laws import fit as fits
from bigmodel.laws import forms

SCALEBENCH = Path(__file__).parents[2] / "shared" / "points" / "scalebench"
SIZES, TOKENS, DENSITY = np.geomspace(1e7, 1e10, 5), np.geomspace(1e9, 1e12, 5), np.array([1, 0.5, 0.25, 0.125])
BITS = np.array([3, 4, 6, 16.0])
SHARES = {
    "web": np.array([0.1, 0.3, 0.5, 0.7]),
    "code": np.array([0.05, 0.1, 0.2, 0.3]),
    "books": np.array([0.1, 0.2, 0.4]),
}

# Law, its planted parameters (the published, where they are confirmed), the columns it's planted on.
PLANTED = {
    "farseer": (
        {"f_0": 0.4513808, "f_1": -0.1201112, "q": 0.13, "g_0": 130.069, "g_1": -1.1086827, "b": -0.1729}
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
    "mixture:r=web+code+books": ({"c": 1.4, "t_web": 0.8, "t_code": -2.5, "t_books": 0.3}, SHARES),
    "annealing": (
        {"L_0": 2.6, "A": 0.5, "alpha": 0.5, "C": 0.4},
        {"S1": np.geomspace(0.1, 20, 8), "S2": np.array([0.01, 0.05, 0.1, 0.4])},
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
    result = fits.fit(frame, law=name, bootstrap=0, holdout=0)
    assert result["objective"] < 1e-12
    np.testing.assert_allclose(fits.predict_rows(result, frame), frame[law.target], rtol=1e-6)
    for key, value in params.items():
        assert result["params"][key] == pytest.approx(value, rel=5e-3), key


def test_every_law_is_planted():
    assert {name.partition(":")[0] for name in (*CLASSIC, *PLANTED)} == set(forms.makers())
