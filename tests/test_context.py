"""Loss by position: where curves are flat, and the figure and table of them."""

import numpy as np
import pandas as pd
import pytest

from bigmodel import papers
from bigmodel.cli import main
from bigmodel.laws import context

L = 512


def curve(scale, power, seed=0):
    """Falls as a power of the position until `scale`, and is flat from there."""
    position = np.minimum(np.arange(1, L + 1), scale)
    return 1.5 + 2.0 * position**-power + np.random.default_rng(seed).normal(0, 1e-4, L)


def frame(scales):
    parts = [
        pd.DataFrame(dict(family=family, params=params, seed=seed, position=range(1, L + 1), loss=curve(s, 0.5, seed)))
        for (family, params), s in scales.items()
        for seed in range(3)
    ]
    return pd.concat(parts)


def test_flat_from_where_the_rest_gains_nothing():
    found = [context.flat_from(curve(scale, 0.5)) for scale in (20, 60, 200)]
    assert found == sorted(found) and found[0] < 22 and 30 < found[1] < 64 and 90 < found[2] < 200
    assert context.flat_from(np.linspace(3, 1, L)) == L
    assert context.flat_from(np.full(L, 2.0)) == 1


def test_the_table_tells_who_gains():
    rows = context.table(frame({("lstm", 100): 50, ("decoder", 110): 512}))
    decoder, lstm = (next(r for r in rows if r["family"] == f) for f in ("decoder", "lstm"))
    assert decoder["flat_range"][0] > lstm["flat_range"][1] and decoder["gain"] > 0.02 > lstm["gain"]
    assert lstm["seeds"] == 3 and lstm["loss"] == pytest.approx(1.5 + 2 * 50**-0.5, abs=1e-3)


@pytest.mark.parametrize(("lstm", "decoder", "code"), [(50, 512, 0), (512, 50, 1)])
def test_figure_7_is_drawn_and_judged(lstm, decoder, code, tmp_path, capsys):
    frame({("lstm", 100): lstm, ("decoder", 110): decoder}).to_csv(tmp_path / "points.csv", index=False)
    out = tmp_path / "out"
    assert main.main(["paper", "kaplan2020-fig7", f"--points={tmp_path / 'points.csv'}", f"--out={out}"]) == code
    assert "flat" in capsys.readouterr().out
    assert {p.name for p in out.iterdir()} == {
        f"kaplan2020-fig7.{s}" for s in ("md", "tex", "json", "png", "svg", "pdf")
    }


def test_figure_7_needs_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main.main(["paper", "kaplan2020-fig7"]) == 2
    assert "sweeps/context.py" in capsys.readouterr().err
    assert "kaplan2020-fig7" in papers.names()
