"""The wing `scaling`: planted laws come back, published points give the published optimum, mistakes are one line."""

import json
import math
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bigmodel.config import UsageError
from bigmodel.scaling import fit as fits
from bigmodel.scaling import laws, report, rows
from bigmodel.scaling.solve import Problem

ROOT = Path(__file__).parents[1]
POINTS = Path(__file__).parents[2] / "shared" / "points"
BESIROGLU = POINTS / "besiroglu2024_chinchilla_points.csv"
PLANTED = {"E": 1.7, "A": 400.0, "alpha": 0.34, "B": 410.0, "beta": 0.28}


def grid(data=(1e6, 4e6, 1.6e7), noise=0.0, seed=0, widths=(64, 128, 256), depths=(2, 4)):
    """Width x depth x data, each run's loss from the planted law."""
    random, out = np.random.default_rng(seed), []
    for width in widths:
        for depth in depths:
            for d in data:
                n = 12.0 * depth * width**2
                loss = PLANTED["E"] + PLANTED["A"] / n ** PLANTED["alpha"] + PLANTED["B"] / d ** PLANTED["beta"]
                loss *= math.exp(noise * random.standard_normal())
                run = f"r{width}-{depth}-{d:.0e}"
                out.append({"run_id": run, "width": width, "depth": depth, "N": n, "D": d, "C": 6 * n * d, "L": loss})
    return pd.DataFrame(out)


def write_runs(folder, frame, **changes):
    for i, row in enumerate(frame.to_dict("records")):
        result = {"run_id": row["run_id"], "status": "done", "family": "decoder", "seed": 0, "width": row["width"]}
        result |= {"depth": row["depth"], "params": row["N"], "tokens": row["D"], "flops": row["C"], "loss": row["L"]}
        result |= changes.get(f"run{i}", {})
        (folder / row["run_id"]).mkdir()
        (folder / row["run_id"] / "result.json").write_text(json.dumps(result))
    return folder


# ---------------------------------------------------------------------------------------- fit


def test_noise_free_law_is_recovered():
    result = fits.fit(grid(), bootstrap=20)
    assert result["objective"] < 1e-20
    for name, value in PLANTED.items():
        assert result["params"][name] == pytest.approx(value, rel=1e-6)
    assert result["holdout"][0]["max_abs_rel_error"] < 1e-8
    assert result["optimal"]["a"] == pytest.approx(0.28 / 0.62)
    assert result["warnings"] == []
    assert fits.predict(result, 1e9, 2e10) == pytest.approx(1.7 + 400 / 1e9**0.34 + 410 / 2e10**0.28)
    assert fits.predict(result, np.array([[1e6], [1e7]]), np.array([1e7, 1e8, 1e9])).shape == (2, 3)


def test_noisy_law_lies_in_its_interval_and_repeats():
    frame = grid(noise=0.003, data=(1e6, 4e6, 1.6e7, 6.4e7), widths=(32, 64, 128, 256))
    result = fits.fit(frame, bootstrap=300, seed=1)
    for name, (low, high) in result["ci"].items():
        truth = PLANTED | {"a": 0.28 / 0.62, "b": 0.34 / 0.62}
        assert low < truth[name] < high
        assert high - low > 1e-4
    again = fits.fit(frame, bootstrap=300, seed=1)
    assert np.array_equal(result["bootstrap_samples"], again["bootstrap_samples"])
    assert 0 < result["holdout"][0]["max_abs_rel_error"] < 0.03


def test_optimum_is_the_least_loss_of_its_budget():
    result, budget = fits.fit(grid(), bootstrap=0, holdout=0), 1e18
    n, d = fits.optimal(result, budget)
    assert 6 * n * d == pytest.approx(budget)
    best = fits.predict(result, n, d)
    for factor in (0.9, 1.1):
        assert fits.predict(result, n * factor, d / factor) > best
    assert result["ci"]["E"] is None


def test_besiroglu_optimum():
    if not BESIROGLU.is_file():
        pytest.skip(f"{BESIROGLU} is absent: the published points are not shipped with the project")
    frame = rows.load(BESIROGLU, {"N": "Model Size", "C": "Training FLOP", "L": "loss"}, drop_highest=5)
    assert len(frame) == 240
    start = time.process_time()
    result = fits.fit(frame, bootstrap=1000)
    assert time.process_time() - start < 10
    assert result["objective"] <= 1.0182741e-3
    published = {"A": 477.826, "B": 2143.42, "E": 1.817218, "alpha": 0.347311, "beta": 0.367172}
    for name, value in published.items():
        assert result["params"][name] == pytest.approx(value, rel=1e-3)
    # Besiroglu et al. 2024 (arXiv:2404.10102): standard errors and a's of 4000 resamples, another random stream.
    errors = dict(zip(result["params"], result["bootstrap_samples"].std(axis=0), strict=True))
    for name, value in {"A": 124.52, "E": 0.0257, "alpha": 0.0154, "beta": 0.0206}.items():
        assert errors[name] == pytest.approx(value, rel=0.15)
    assert not any("surviving" in text or "flat" in text for text in result["warnings"])


def test_slopes_match_differences():
    law, frame = laws.get("chinchilla"), grid()
    row = {name: frame[name].to_numpy() for name in "ND"}
    theta = np.random.default_rng(0).uniform([-1, 0, 0, 0, 0], [1, 9, 1, 9, 1], size=(7, 5))
    fields = {k: getattr(law, k) for k in law.__dataclass_fields__}
    plain = laws.Law(**{**fields, "slopes": None})
    log_loss = np.log(frame["L"].to_numpy())
    exact = Problem(law, row, log_loss, 1e-3).residuals(theta)
    rough = Problem(plain, row, log_loss, 1e-3).residuals(theta)
    np.testing.assert_allclose(exact[0], rough[0], rtol=1e-12)
    np.testing.assert_allclose(exact[1], rough[1], rtol=1e-5, atol=1e-7)


def test_huge_terms_stay_finite():
    law = laws.get("chinchilla")
    row = {"N": np.array([1.0, 1e12]), "D": np.array([1.0, 1e13])}
    theta = np.array([[5.0, 800.0, 0.0, 90.0, 3.0], [-900.0, -900.0, 3.0, -900.0, 3.0]])
    assert np.isfinite(law.form(theta.T[:, :, None], row)).all()


def test_other_loss_units_give_the_same_law():
    frame = grid()
    small = fits.fit(frame.assign(L=frame["L"] * 1e-8), bootstrap=0, holdout=0)["params"]
    assert small["alpha"] == pytest.approx(PLANTED["alpha"], rel=1e-6)
    assert small["E"] == pytest.approx(PLANTED["E"] * 1e-8, rel=1e-6)


def test_undetermined_fits_say_so():
    sizes = 10.0 ** np.arange(5, 11)
    line = pd.DataFrame({"N": sizes, "D": 20 * sizes, "L": 1.7 + 400 / sizes**0.34})
    assert any("collinear" in text for text in fits.fit(line, bootstrap=0, holdout=0)["warnings"])
    two = fits.fit(grid(data=(1e6, 1e7), noise=0.01), bootstrap=200)
    assert any("2 distinct D" in text for text in two["warnings"])
    assert any("surviving starts disagree on E" in text for text in two["warnings"])
    low, high = two["ci"]["E"]
    assert low < 0.01 and high > 5  # the interval admits it too
    frame = grid()
    floorless = fits.fit(frame.assign(L=frame["L"] - PLANTED["E"]), bootstrap=0, holdout=0)
    assert any("E is about 0" in text for text in floorless["warnings"])
    rising = fits.fit(frame.assign(L=2 + 0.01 * np.log(frame["N"]) + 400 / frame["D"] ** 0.3), bootstrap=0, holdout=0)
    assert any("alpha is at its bound" in text for text in rising["warnings"])


def test_failed_resamples_are_counted():
    result = fits.fit(grid().iloc[[0, 1, 2, 4, 8, 17]], bootstrap=200)
    match = [re.match(r"(\d+) of 200 resamples", text) for text in result["warnings"]]
    failed = sum(int(m[1]) for m in match if m)
    assert failed > 0
    assert failed + len(result["bootstrap_samples"]) == 200


def test_holdout_takes_the_largest_rungs():
    frame = grid()
    wrong = frame.assign(L=np.where(frame["C"] == frame["C"].max(), 1.1 * frame["L"], frame["L"]))
    entries = fits.fit(wrong, bootstrap=0, holdout=2)["holdout"]
    assert [entry["rungs"] for entry in entries] == [1, 2]
    assert entries[0]["n_held_out"] == 1
    assert entries[0]["mean_rel_error"] == pytest.approx(1 / 1.1 - 1, rel=1e-6)
    assert entries[0]["flops_gap"] == pytest.approx(2)
    assert entries[1]["n_held_out"] > 1
    few = fits.fit(frame.iloc[:6], bootstrap=0, holdout=5)
    assert any("no held-out error" in text for text in few["warnings"])


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (grid().iloc[:2], "2 usable runs"),
        (grid(widths=(64,), depths=(2,), data=(1e5, 2e5, 4e5, 8e5, 1e6, 2e6)), "every run has N"),
        (grid(data=(1e6,)), "every run has D"),
        (grid().drop(columns="L"), "needs column 'L'"),
        (grid().assign(L=math.nan), "row 1: 'L' is nan"),
        (grid().assign(N=-1.0), "row 1: 'N' is -1.0"),
    ],
)
def test_fit_refuses(frame, message):
    with pytest.raises(UsageError, match=message) as error:
        fits.fit(frame, bootstrap=0)
    assert "\n" not in str(error.value)


def test_unknown_law_names_the_nearest():
    with pytest.raises(UsageError, match="did you mean 'chinchilla'"):
        fits.fit(grid(), law="chinchila")
    with pytest.raises(UsageError, match="no law 'get'"):
        laws.get("get")


# --------------------------------------------------------------------------------------- rows


def test_load_runs_counts_what_it_drops(tmp_path):
    changes = {
        "run0": {"status": "diverged", "loss": math.nan},
        "run1": {"loss": math.nan},
        "run2": {"status": "running"},
    }
    write_runs(tmp_path, grid(), **changes)
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "result.json").write_text('{"params": 1')
    (tmp_path / "waiting").mkdir()
    (tmp_path / "waiting" / "config.json").write_text("{}")
    frame = rows.load(tmp_path)
    assert len(frame) == 15
    counts = frame.attrs["counts"]
    assert (counts["diverged"], counts["unusable"], counts["unfinished"], counts["unreadable"]) == (1, 1, 2, 1)
    assert len(frame.attrs["warnings"]) == 5
    assert frame.attrs["conventions"] == {"N": "params", "D": "tokens", "L": "loss", "C": "flops"}
    assert list(frame.columns[:4]) == ["N", "D", "C", "L"]
    assert {"width", "depth", "run_id", "seed", "family", "status"} <= set(frame.columns)
    assert fits.fit(frame, bootstrap=0)["warnings"] == frame.attrs["warnings"]


def test_runs_outside_the_plan_are_left_out(tmp_path):
    """An edited sweep leaves its old runs in the folder; today's law isn't theirs."""
    frame = grid()
    write_runs(tmp_path, frame)
    planned = frame["run_id"].tolist()[3:]
    (tmp_path / "plan.jsonl").write_text("".join(json.dumps({"run_id": r}) + "\n" for r in planned))
    loaded = rows.load(tmp_path)
    assert sorted(loaded["run_id"]) == sorted(planned)
    assert any("3 runs aren't in the sweep's plan" in w for w in loaded.attrs["warnings"])


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl"])
def test_load_tables(tmp_path, suffix):
    path, frame = tmp_path / f"points{suffix}", grid()
    write = {
        ".csv": lambda f: f.to_csv(path, index=False),
        ".parquet": lambda f: f.to_parquet(path),
        ".jsonl": lambda f: f.to_json(path, orient="records", lines=True, double_precision=15),
    }[suffix]
    write(frame.rename(columns={"N": "Model Size"}).drop(columns="C"))
    loaded = rows.load(path, {"N": "Model Size"})
    assert loaded["C"].to_numpy() == pytest.approx(np.sort(6 * frame["N"] * frame["D"]))
    assert loaded.attrs["conventions"]["C"] == "6*N*D"


@pytest.mark.parametrize(
    ("change", "columns", "message"),
    [
        ({}, {"L": "Loss"}, "no column 'Loss' for L .did you mean 'loss'"),
        ({}, {"M": "loss"}, "columns: 'M' is not one of"),
        ({"loss": [1.0, math.nan, 2.0]}, {}, "row 2: 'loss' is nan"),
        ({"loss": [1.0, 2.0, -1.0]}, {}, "row 3: 'loss' is -1.0"),
        ({"loss": ["1.0", "2.0", "high"]}, {}, "row 3: 'loss' is 'high'"),
        ({"params": [0, 1, 2]}, {}, "row 1: 'params' is 0"),
    ],
)
def test_load_refuses(tmp_path, change, columns, message):
    frame = pd.DataFrame({"params": [1e6, 2e6, 3e6], "tokens": [1e7] * 3, "loss": [3.0, 2.9, 2.8]} | change)
    frame.to_csv(tmp_path / "points.csv", index=False)
    with pytest.raises(UsageError, match=message) as error:
        rows.load(tmp_path / "points.csv", columns)
    assert "\n" not in str(error.value)


def test_load_refuses_sources(tmp_path):
    (tmp_path / "points.txt").write_text("1 2 3")
    (tmp_path / "empty.csv").write_text("")
    for name, message in (
        ("", "no result.json"),
        ("point.txt", "did you mean .*points.txt"),
        ("points.txt", "use .csv"),
        ("empty.csv", "can't read"),
    ):
        with pytest.raises(UsageError, match=message):
            rows.load(tmp_path / name)


def test_repeated_rows_are_a_warning(tmp_path):
    frame = grid()
    pd.concat([frame, frame.iloc[:2]]).to_csv(tmp_path / "points.csv", index=False)
    assert any("2 of 20 rows repeat" in text for text in rows.load(tmp_path / "points.csv").attrs["warnings"])


# ----------------------------------------------------------------------------- figures, report


def test_report_is_complete_and_offline(tmp_path):
    sweep = tmp_path / "sweep"
    sweep.mkdir()
    frame = rows.load(write_runs(sweep, grid(noise=0.003)))
    result = fits.fit(frame, bootstrap=50)
    path = report.write(frame, result, tmp_path / "out", "A <title> & more", "bigmodel fit sweep", unit="examples")
    page = path.read_text()
    for name in ("compute", "residuals", "size_data", "heatmap"):
        for suffix in ("png", "svg"):
            assert (tmp_path / "out" / "figures" / f"{name}.{suffix}").stat().st_size > 5000
        assert f'data-name="{name}"' in page
    assert not re.search(r"""(src|href)\s*=\s*["']?\s*(https?:|//)|url\(\s*["']?(https?:|//)|@import|<link""", page)
    # The only addresses left are the names of XML's own vocabularies, which no browser fetches.
    assert set(re.findall(r"https?://[^\"'\s<)]+", page)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert "{{" not in page and "A &lt;title&gt; &amp; more" in page and "examples" in page
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert not [i for i in set(ids) if ids.count(i) > 1 and "image" not in i]  # two equal colour bars share theirs
    assert set(re.findall(r'(?:href="|url\()#([^")]+)', page)) <= set(ids)
    assert all(run in page for run in frame["run_id"])
    for group in ("compute-runs", "residuals-runs", "size_data-runs-N", "size_data-runs-D"):
        marks = page[page.index(f'id="{group}"') :]
        assert marks[: marks.index("<g id=")].count("<use") == len(frame)  # the script counts on one mark per run
    saved = json.loads((tmp_path / "out" / "fit.json").read_text())
    assert saved["params"] == result["params"] and "bootstrap_samples" not in saved
    assert len(pd.read_csv(tmp_path / "out" / "rows.csv")) == len(frame)
    assert "| alpha |" in (tmp_path / "out" / "law.md").read_text()
    report.write(frame, saved, tmp_path / "again", "from JSON", "x")  # a saved fit draws too, without bands


def test_report_of_points_without_shapes(tmp_path):
    frame = grid()[["N", "D", "L", "C"]]
    path = report.write(frame, fits.fit(frame, bootstrap=0, holdout=0), tmp_path, "points", "x")
    assert not (tmp_path / "figures" / "heatmap.svg").exists()
    assert path.stat().st_size > 20000


def test_law_text():
    text = report.law_text(fits.fit(grid(), bootstrap=20))
    assert text.startswith("L(N, D) = 1.700 + 400/N^0.340 + 410/D^0.280\n")
    assert "N_opt ~ C^0.452 [0.452, 0.452]" in text
    assert "held out the largest 1 run" in text


def test_the_wing_needs_no_jax():
    modules = "bigmodel.scaling.report, bigmodel.scaling.rows"
    code = f"import sys, {modules}\nsys.exit('jax' in sys.modules or 'flax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0
