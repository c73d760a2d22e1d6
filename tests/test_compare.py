"""bigmodel compare: verdicts on planted pairs, refusals, crossing, the forest; through the command line."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bigmodel.cli import main
from bigmodel.laws import compare, forms, multiplier, rows, sources

TRUTH = {"E": 1.8, "A": 250.0, "alpha": 0.34, "B": 900.0, "beta": 0.33}
LAW = forms.get("chinchilla")


def points(path, noise=0.002, seed=0, shape=(6, 4), **changes):
    """A table of a planted law; `changes`: factors of its parameters, or columns."""
    n, ratio = (x.ravel() for x in np.meshgrid(np.geomspace(1e7, 3e8, shape[0]), np.geomspace(5, 160, shape[1])))
    planted = {name: value * changes.pop(name, 1.0) for name, value in TRUTH.items()}
    loss = LAW.predict(planted, {"N": n, "D": n * ratio})
    loss = loss * np.exp(noise * np.random.default_rng(seed).standard_normal(len(n)))
    pd.DataFrame({"params": n, "tokens": n * ratio, "loss": loss} | changes).to_csv(path, index=False)
    return str(path)


def run(capsys, *args):
    """(exit code, stdout, stderr)"""
    code = main.main(["compare", *map(str, args)])
    said = capsys.readouterr()
    return code, said.out, said.err


def compared(capsys, *args):
    code, out, err = run(capsys, *args, "--json")
    assert code == 0, err
    return json.loads(out)


def true_multiplier(c, **changes):
    """Of the planted pair, by bisection on the closed-form frontier."""

    def least(params, flops):
        n, d = LAW.optimum(params, flops)
        return LAW.predict(params, {"N": n, "D": d})[0]

    other = {name: value * changes.get(name, 1.0) for name, value in TRUTH.items()}
    low, high = 1e-3, 1e3
    for _ in range(80):
        middle = np.sqrt(low * high)
        low, high = (middle, high) if least(TRUTH, middle * c) > least(other, c) else (low, middle)
    return middle


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("points")
    made = {
        "base": points(folder / "base.csv"),
        "better": points(folder / "better.csv", seed=1, A=0.8, B=0.8),
        "tie": points(folder / "tie.csv", seed=2),
        "cross": points(folder / "cross.csv", seed=3, A=0.8, B=0.8, E=1.12),
    }
    return {name: str(path) for name, path in made.items()}


def test_a_clear_winner_has_the_planted_multiplier_at_every_scale(files, capsys, tmp_path):
    out = compared(capsys, files["base"], files["better"], f"--out={tmp_path / 'out'}")
    (pair,) = out["pairs"]
    assert pair["verdict"].startswith("better is better than base") and pair["settle"] is None
    assert [round(row["beyond"], 3) for row in pair["scales"] if row["reported"]] == [1, 1, 1, 3, 10]
    for row in pair["scales"]:
        truth = true_multiplier(row["C"], A=0.8, B=0.8)
        assert row["band"][0] < row["low"] <= row["multiplier"] <= row["high"] < row["band"][1]
        assert row["band"][0] < truth < row["band"][1] and row["verdict"] == "better"
    assert pair["paired"]["cells"] == 24 and pair["paired"]["agree"]
    assert json.loads((tmp_path / "out/compare.json").read_text()) == out
    assert all((tmp_path / f"out/compare.{form}").stat().st_size > 5000 for form in ("png", "svg"))


def test_the_other_way_round_the_multiplier_is_the_inverse(files, capsys):
    (pair,) = compared(capsys, files["better"], files["base"])["pairs"]
    assert {row["verdict"] for row in pair["scales"]} == {"worse"}
    assert pair["scales"][8]["multiplier"] == pytest.approx(
        1 / true_multiplier(pair["scales"][8]["C"], A=0.8, B=0.8), rel=0.1
    )


def test_a_tie_is_no_verdict_and_the_runs_that_would_settle_it_are_named(files, capsys):
    code, text, _ = run(capsys, files["base"], files["tie"])
    assert code == 0 and "no verdict: the runs don't settle" in text
    assert "extrapolated: tested to" in text and "asked for 10x" in text
    assert "about 1: a multiplier beyond 10 %" in text and "more seeds of each largest rung" in text


def test_a_crossing_is_named_with_its_interval(files, capsys):
    (pair,) = compared(capsys, files["base"], files["cross"])["pairs"]
    (cross,) = pair["crossings"]
    assert pair["scales"][0]["verdict"] == "better" and pair["scales"][-1]["verdict"] == "worse"
    assert cross["low"] < cross["C"] < cross["high"]
    low, high = (true_multiplier(cross[end], A=0.8, B=0.8, E=1.12) for end in ("low", "high"))
    assert low > 1 > high and "cross at" in pair["verdict"]


def test_three_inputs_share_one_band_and_a_forest(files, capsys, tmp_path):
    two = compared(capsys, files["base"], files["tie"])["pairs"][0]
    both = compared(capsys, files["base"], files["better"], files["tie"], f"--out={tmp_path / 'out'}")["pairs"]
    assert [pair["b"] for pair in both] == ["better", "tie"]
    for alone, joint in zip(two["scales"], both[1]["scales"], strict=True):
        assert joint["multiplier"] == alone["multiplier"] and joint["low"] == alone["low"]
        assert joint["band"][0] < alone["band"][0] and joint["band"][1] > alone["band"][1]
    # Matplotlib puts a text before its outlines, as a comment.
    assert "<!-- tie -->" in (tmp_path / "out/compare.svg").read_text()


def test_a_file_with_itself_is_no_verdict(files, capsys):
    out = compared(capsys, files["base"], files["base"])
    (pair,) = out["pairs"]
    assert {row["verdict"] for row in pair["scales"]} == {"no verdict"}
    assert all(
        row["multiplier"] == pytest.approx(1, abs=1e-6) and row["low"] < 1 < row["high"] for row in pair["scales"]
    )
    assert pair["paired"]["difference"] == {"value": 0.0, "low": None, "high": None}
    assert "the same runs?" in out["warnings"][0]


def test_two_recipes_of_one_table_are_two_inputs(files, capsys, tmp_path):
    tables = [pd.read_csv(files[name]).assign(recipe=name) for name in ("base", "better")]
    path = tmp_path / "all.csv"
    pd.concat(tables).to_csv(path, index=False)
    out = compared(capsys, f"{path}:recipe=base", f"{path}:recipe=better")
    assert [one["n_runs"] for one in out["inputs"]] == [24, 24]
    assert out["pairs"][0]["scales"][0]["verdict"] == "better"


@pytest.mark.parametrize("column", ["tokenizer", "val_set", "vocab_size"])
def test_losses_that_are_measured_differently_are_refused(files, capsys, tmp_path, column):
    values = (50257, 32000) if column == "vocab_size" else ("one", "two")
    paths = [points(tmp_path / f"{i}.csv", seed=i, **{column: value}) for i, value in enumerate(values)]
    code, out, err = run(capsys, *paths, f"--out={tmp_path / 'out'}")
    assert code == 2 and not out and not (tmp_path / "out").exists()
    assert len(err.splitlines()) == 1 and str(values[0]) in err and "--anyway" in err
    alike = [points(tmp_path / f"alike{i}.csv", seed=i, **{column: values[0]}) for i in range(2)]
    assert compare.differences({p: (sources.read(Path(p)), rows.load(p)) for p in alike}) == []


def test_anyway_compares_them(capsys, tmp_path):
    paths = [points(tmp_path / f"{i}.csv", seed=i, tokenizer=f"t{i}") for i in range(2)]
    assert compared(capsys, *paths, "--anyway")["pairs"][0]["scales"]


def test_sweeps_of_two_data_sets_are_refused(capsys, tmp_path):
    for name in ("one", "two"):
        frame = pd.read_csv(points(tmp_path / "t.csv"))
        for i, row in enumerate(frame.to_dict("records")):
            folder = tmp_path / name / f"r{i}"
            folder.mkdir(parents=True)
            (folder / "result.json").write_text(json.dumps({**row, "status": "done", "data": name, "unit": "tokens"}))
    code, _, err = run(capsys, tmp_path / "one", tmp_path / "two")
    assert code == 2 and "data: one 'one'; two 'two'" in err


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda p: points(p, shape=(2, 2)), "needs 7, better 12: 4 sizes"),
        (lambda p: pd.DataFrame({"a": [1, 2]}).to_csv(p) or str(p), "has no column"),
        (
            lambda p: (
                pd.DataFrame({"flops": 1e3 * np.arange(1, 9), "loss": 3 - 0.1 * np.arange(8)}).to_csv(p) or str(p)
            ),
            "no range of compute in common",
        ),
    ],
)
def test_what_cannot_be_compared_is_one_line(files, capsys, tmp_path, make, said):
    code, out, err = run(capsys, files["base"], make(tmp_path / "odd.csv"))
    assert code == 2 and not out and said in err and len(err.splitlines()) == 1


@pytest.mark.parametrize(
    "args",
    [["base"], ["base", "tie", "--beyond=0"], ["base", "tie", "--law=bnsl:x=N"], ["base", "tie", "--law=chinchila"]],
)
def test_wrong_arguments_are_one_line(files, capsys, args):
    code, out, err = run(capsys, *(files.get(arg, arg) for arg in args))
    assert code == 2 and not out and len(err.splitlines()) == 1


def test_curves_in_compute_alone_get_a_law_of_compute(capsys, tmp_path):
    c = np.geomspace(1e17, 1e20, 10)
    for name, scale in (("a", 1.0), ("b", 1.5)):
        noise = np.exp(0.001 * np.random.default_rng(int(2 * scale)).standard_normal(10))
        pd.DataFrame({"flops": c, "loss": (1.8 + (1e18 / (c * scale)) ** 0.2) * noise}).to_csv(tmp_path / f"{name}.csv")
    out = compared(capsys, tmp_path / "a.csv", tmp_path / "b.csv")
    assert out["law"] == "henighan:x=C"
    for row in out["pairs"][0]["scales"]:
        assert row["band"][0] < 1.5 and (row["band"][1] or np.inf) > 1.5


def test_a_law_that_misses_the_cells_gives_no_verdict():
    """Matched cells say one thing, laws of the same runs another: here the second law is another's."""
    frames = {}
    n, ratio = (x.ravel() for x in np.meshgrid(np.geomspace(1e7, 3e8, 6), np.geomspace(5, 160, 4)))
    for name, seed in (("a", 0), ("b", 1)):
        noise = np.exp(0.002 * np.random.default_rng(seed).standard_normal(24))
        frame = pd.DataFrame({"N": n, "D": n * ratio, "L": LAW.predict(TRUTH, {"N": n, "D": n * ratio}) * noise})
        frames[name] = frame
    a, b = (multiplier.side(name, frame, LAW) for name, frame in frames.items())
    assert compare._paired(a, b)["agree"]
    b.theta = b.theta + np.array([0.05, 0, 0, 0, 0])
    assert not compare._paired(a, b)["agree"]


def test_a_law_that_misses_the_shape_of_the_runs_gives_no_verdict(files, capsys, tmp_path):
    c, ratio = (x.ravel() for x in np.meshgrid(np.geomspace(1e17, 1e20, 5), np.geomspace(2, 500, 8), indexing="ij"))
    n = np.sqrt(c / 6 / ratio)
    loss = LAW.predict(TRUTH, {"N": n, "D": n * ratio}) * np.exp(0.01 * np.abs(np.log(ratio / 30)) ** 3)
    loss *= np.exp(0.002 * np.random.default_rng(0).standard_normal(len(n)))
    pd.DataFrame({"params": n, "tokens": n * ratio, "loss": loss}).to_csv(tmp_path / "bent.csv")
    out = compared(capsys, files["base"], tmp_path / "bent.csv")
    (pair,) = out["pairs"]
    assert pair["missed"] == ["bent"] and {row["verdict"] for row in pair["scales"]} == {"no verdict"}
    assert "misses the shape" in pair["verdict"] and pair["settle"] is None and not pair["crossings"]


def test_where_noise_is_small_the_interval_is_that_of_linear_theory():
    n, ratio = (x.ravel() for x in np.meshgrid(np.geomspace(1e7, 3e8, 6), np.geomspace(5, 160, 4)))
    loss = LAW.predict(TRUTH, {"N": n, "D": n * ratio})
    log_c, sides = np.log([1e17, 2e18, 3e19]), []
    for seed in (0, 1):
        noisy = loss * np.exp(3e-4 * np.random.default_rng(seed).standard_normal(24))
        sides.append(multiplier.side(str(seed), pd.DataFrame({"N": n, "D": n * ratio, "L": noisy}), LAW))
    a, b = (multiplier.profile(side, log_c) for side in sides)
    variance = sum(np.einsum("kp,pq,kq->k", p.slopes, p.side.spread, p.slopes) for p in (a, b))
    ends = (log_c[0], log_c[-1])
    shift = np.array([-1e-3, 1e-3])
    slope = [np.diff(multiplier.frontier(LAW, a.side.theta[None], x + shift, ends)[0])[0] / 2e-3 for x in log_c]
    _, low, high = multiplier.multipliers(a, b, 2.0)
    assert (high - low) / 2 == pytest.approx(2.0 * np.sqrt(variance) / np.abs(slope), rel=0.1)


def test_a_profile_is_the_best_fit_with_its_loss():
    """No law found from other starts has the same loss at the scale and fits the runs better."""
    n, ratio = (x.ravel() for x in np.meshgrid(np.geomspace(1e7, 3e8, 4), np.geomspace(5, 160, 3)))
    noise = np.exp(0.01 * np.random.default_rng(0).standard_normal(12))
    side = multiplier.side(
        "a", pd.DataFrame({"N": n, "D": n * ratio, "L": LAW.predict(TRUTH, {"N": n, "D": n * ratio}) * noise}), LAW
    )
    log_c = np.log([1e17, 1e19, 1e21])
    found = multiplier.profile(side, log_c)
    rng = np.random.default_rng(1)
    spread = np.linalg.cholesky(side.spread)
    tried = side.theta + 0.3 * rng.standard_normal((3000, 5)) @ spread.T
    tried = np.clip(tried, side.problem.low, side.problem.high)
    cost = side.problem.huber(side.problem.residuals(tried)[0], np.ones(12))
    least = side.problem.huber(side.problem.residuals(side.theta[None])[0], np.ones(12))[0]
    t = np.sqrt(side.free * np.maximum(cost / least - 1, 0))
    ends = (log_c[0], log_c[-1])
    for k in range(3):
        path = multiplier.frontier(LAW, found.thetas[k], log_c, ends)[:, k]
        loss = multiplier.frontier(LAW, tried, log_c, ends)[:, k]
        inside = (loss > path.min()) & (loss < path.max())
        best = np.abs(np.interp(loss[inside], path, found.t[k]))
        assert inside.sum() > 1000 and (t[inside] > best - 0.15).all()
