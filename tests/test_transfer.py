"""Studies of transfer and of held-out budgets: their reports of planted numbers, and of mistakes."""

import itertools
import json
import math

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, bigmodel

from bigmodel import files
from bigmodel.config import load_module
from bigmodel.errors import UsageError
from bigmodel.laws import rows

corpora, depth_width, families, folds, isoflop, tuning, transfer_width, wsd = (
    load_module(ROOT / f"sweeps/{name}.py", "sweep")
    for name in ("corpora", "depth_width", "families", "folds", "gpt_isoflop", "tuning", "transfer_width", "wsd")
)
families, heldout, settings, transfer = families.families, isoflop.heldout, folds.settings, transfer_width.transfer


def test_the_lowest_point_is_the_parabola_s():
    lr = np.array([0.005, 0.01, 0.02, 0.04])
    loss = 2 + 0.1 * (np.log(lr) - math.log(0.013)) ** 2
    assert transfer.lowest(lr, loss) == (pytest.approx(0.013), pytest.approx(2.0))
    order = [2, 0, 3, 1]
    assert transfer.lowest(lr[order], loss[order])[0] == pytest.approx(0.013)
    assert transfer.lowest(lr[2:], loss[2:]) == (pytest.approx(0.02), loss[2])  # an edge stays a point
    assert transfer.lowest(lr, [2.0, 1.0, math.nan, math.nan])[0] == pytest.approx(0.01)  # diverged beside it


def write_run(folder, number, model, optim, batch_size=8, **result):
    home = folder / f"{number:012x}"
    home.mkdir(parents=True)
    base = {"run_id": home.name, "status": "done", "seed": 0, "batch_size": batch_size, **result}
    (home / "result.json").write_text(json.dumps(base))
    config = {"model": model, "optim": optim, "train": {"seed": base["seed"], "batch_size": batch_size}}
    (home / "config.json").write_text(json.dumps(config))


def test_a_transfer_report_says_how_far_the_best_rate_moves(tmp_path):
    number = 0
    for name, best in (("mup", lambda width: 0.02), ("standard", lambda width: 0.02 * 32 / width)):
        for width in (32, 64, 128):
            for lr in 0.02 * 2.0 ** np.arange(-4, 3):
                loss = 2 + 0.1 * math.log(lr / best(width)) ** 2
                write_run(tmp_path, number, {"parametrization": name, "width": width}, {"lr": float(lr)}, loss=loss)
                number += 1
    text = transfer.report(tmp_path, tmp_path / "out", "width")
    assert "mup: the best rate moves by 1.00x" in text and "standard: the best rate moves by 4.00x" in text
    found = json.loads((tmp_path / "out/transfer.json").read_text())
    assert found["moves"]["standard"] == pytest.approx(4)
    assert not any(s["edge"] for s in found["best"])
    assert (tmp_path / "out/transfer.png").stat().st_size > 10_000
    assert len(pd.read_csv(tmp_path / "out/transfer.csv")) == number


def test_a_tuning_report_names_each_batchs_best_rate(tmp_path):
    best = {4: 0.004, 16: 0.016}
    for number, (batch, k, lr) in enumerate(itertools.product(best, (1, 2), 0.004 * 2.0 ** np.arange(-1, 4))):
        loss = 2 + 0.1 * math.log(lr / best[batch]) ** 2 + batch * 0.01 + (k == 2) * 0.05
        write_run(tmp_path, number, {}, {"lr": float(lr)}, batch, loss=loss, tokens=k * 1000, lr=float(lr))
    text = tuning.report(tmp_path, tmp_path / "out")
    assert "1,000 tokens, batch 4: loss 2.0400 at rate 0.004\n" in text
    assert "2,000 tokens, batch 16: loss 2.2100 at rate 0.016\n" in text and "edge" not in text
    assert (tmp_path / "out/tuning.png").stat().st_size > 10_000
    assert len(pd.read_csv(tmp_path / "out/tuning.csv")) == 20
    with pytest.raises(UsageError, match="no finished runs"):
        tuning.report(tmp_path / "none", tmp_path / "out")


def test_a_report_of_shapes_names_the_best(tmp_path):
    for number, (width, depth, loss) in enumerate([(48, 2, 2.0), (8, 72, 2.2), (34, 4, 1.9)]):
        own = dict(width=width, depth=depth, params=70_000, params_nonembedding=55_000, tokens=10**6, flops=1e12)
        write_run(tmp_path, number, {}, {"schedule": "cosine"}, unit="tokens", loss=loss, **own)
    text = depth_width.report(tmp_path, tmp_path / "out")
    assert "width 34 depth 4: width / depth 8.5" in text and "loss 1.9000 (+0.00%)" in text
    assert text.index("depth 72") < text.index("depth 4:") < text.index("depth 2:"), "from deep to wide"
    assert (tmp_path / "out/shapes.png").stat().st_size > 10_000


def planted(budgets, noise=0.0):
    """IsoFLOP runs of L = 1.7 + 400 / N^0.34 + 410 / D^0.28 around each budget's optimum."""
    rng = np.random.default_rng(0)
    cells = []
    for c in budgets:
        best = (0.34 * 400 / (0.28 * 410)) ** (1 / 0.62) * (c / 6) ** (0.28 / 0.62)
        for n in best * 2.0 ** np.arange(-3, 4):
            d = c / (6 * n)
            loss = (1.7 + 400 / n**0.34 + 410 / d**0.28) * math.exp(noise * rng.normal())
            cells.append({"N": n, "D": d, "C": c, "L": loss})
    return pd.DataFrame(cells)


def test_the_largest_budget_is_predicted_from_the_others():
    frame = planted([1e17, 3e17, 1e18, 3e18, 1e19], noise=0.001)
    found = heldout.top_budget(frame, bootstrap=200)
    assert found["gap"] == pytest.approx(10 / 3, rel=1e-3) and len(found["runs"]) == 7
    assert found["max_error"] < 0.01
    best = found["best"]
    assert best["N"] == pytest.approx((0.34 * 400 / (0.28 * 410)) ** (1 / 0.62) * (1e19 / 6) ** (0.28 / 0.62), rel=0.2)
    assert best["inside"] and best["frontier_inside"] and not best["edge"]
    # The law that the data was made of is among the candidates, and the fitted budgets choose it, or its special case.
    assert found["law"] in ("chinchilla", "gadre") and list(found["chosen_by"]) == sorted(
        found["chosen_by"], key=found["chosen_by"].get
    )
    # A law that breaks beyond the fitted budgets is told.
    broken = frame.assign(L=np.where(frame.C > 5e18, frame.L * 1.05, frame.L))
    assert heldout.top_budget(broken, bootstrap=50)["mean_error"] > 0.03


def test_branches_are_rows_of_one_run(tmp_path):
    """A trunk at each of two rates, one of them better over both points; cosines have a best rate at each length."""
    common = dict(width=32, depth=2, params=1000, params_nonembedding=900, unit="tokens")
    short, long = dict(tokens=2_000_000, flops=2e10, **common), dict(tokens=4_000_000, flops=4e10, **common)
    for number, (lr, losses) in enumerate({0.01: (2.5, 2.2), 0.02: (2.49, 2.4)}.items()):
        branch = dict(tokens=2_000_000, flops=2e10, steps=10, loss=losses[0])
        trunk = {"schedule": "wsd", "lr": lr}
        write_run(tmp_path, number, {}, trunk, loss=losses[1], branches=[branch], **long)
    for lr, losses in {0.01: (2.51, 2.21), 0.02: (2.48, 2.22)}.items():
        for length, loss in zip((short, long), losses, strict=True):
            write_run(tmp_path, round(1000 * loss), {}, {"schedule": "cosine", "lr": lr}, loss=loss, **length)
    frame = rows.load(tmp_path)
    assert sorted(frame["L"]) == [2.2, 2.21, 2.22, 2.4, 2.48, 2.49, 2.5, 2.51] and set(frame["D"]) == {2e6, 4e6}
    text = wsd.report(tmp_path, tmp_path / "out")
    assert "2,000,000 tokens, 1 seed: wsd 2.5000 at 0.01, cosine 2.4800 at 0.02 (+0.81%)" in text
    assert "4,000,000 tokens, 1 seed: wsd 2.2000 at 0.01, cosine 2.2100 at 0.01 (-0.45%)" in text
    assert "largest difference 0.81%" in text


def test_a_rate_that_lacks_a_seed_is_not_the_best(tmp_path):
    """Cosine at 0.02 has one loss, the lowest, and one that diverged: 0.01 has both."""
    common = dict(width=32, depth=2, params=1000, params_nonembedding=900, unit="tokens", tokens=1_000_000, flops=1e10)
    losses = {"wsd": {0.01: (2.1, 2.3)}, "cosine": {0.01: (2.0, 2.2), 0.02: (1.9, None)}}
    cells = [
        (s, lr, seed, loss) for s, by in losses.items() for lr, found in by.items() for seed, loss in enumerate(found)
    ]
    for number, (schedule, lr, seed, loss) in enumerate(cells):
        write_run(tmp_path, number, {}, {"schedule": schedule, "lr": lr}, seed=seed, loss=loss, **common)
    text = wsd.report(tmp_path, tmp_path / "out")
    assert "2 seeds: wsd 2.2000 at 0.01, cosine 2.1000 at 0.01 (+4.76%)" in text


@pytest.mark.slow
def test_a_held_out_budget_may_lie_beyond_another_study(tmp_path):
    """`below` joins a table of earlier runs; `least` leaves out its small budgets."""
    frame = planted([1e17, 3e17, 1e18, 3e18, 1e19], noise=0.001)
    top = frame[frame.C > 5e18]
    columns = {"N": "params", "D": "tokens", "C": "flops", "L": "loss"}
    frame[frame.C < 5e18].rename(columns=columns).assign(run_id="x").to_csv(tmp_path / "below.csv", index=False)
    for number, row in enumerate(top.to_dict("records")):
        more = dict(params=row["N"], params_nonembedding=row["N"], tokens=row["D"], flops=row["C"], loss=row["L"])
        write_run(tmp_path / "runs", number, {}, {}, unit="tokens", width=1, depth=1, **more)
    whole = heldout.report(tmp_path / "runs", tmp_path / "out", tmp_path / "below.csv")
    assert "the largest budget, 1e+19 FLOPs" in whole
    part = heldout.report(tmp_path / "runs", tmp_path / "out", tmp_path / "below.csv", least=2e17)
    found = json.loads((tmp_path / "out/heldout.json").read_text())
    assert len(found["runs"]) == 7 and found["mean_error"] < 0.01 and part != whole


def test_settings_are_compared_over_their_folds(tmp_path):
    for number, (width, fold, loss) in enumerate([(8, 0, 0.4), (8, 1, 0.6), (16, 0, 0.3), (16, 1, 0.5)]):
        home = tmp_path / f"{number:012x}"
        home.mkdir()
        config = {"model": {"width": width, "depth": 2}, "data": {"fold": fold}}
        (home / "config.json").write_text(json.dumps(files.sealed(config)))
        result = {"run_id": home.name, "status": "done", "loss": loss, "eval_accuracy": 1 - loss}
        (home / "result.json").write_text(json.dumps(files.sealed(result)))
    text = settings.report(tmp_path, tmp_path / "out")
    first, second, _ = text.splitlines()
    assert first.startswith("width=16, 2 runs: loss 0.4000 (deviation 0.1414), accuracy 0.6000")
    assert second.startswith("width=8, 2 runs: loss 0.5000") and "fold" not in first
    odd = tmp_path / f"{9:012x}"  # a family of another kind has no such key
    odd.mkdir()
    (odd / "config.json").write_text(json.dumps({"model": {"depth": 2}, "data": {"fold": 0}}))
    (odd / "result.json").write_text(json.dumps({"run_id": odd.name, "status": "done", "loss": 0.1}))
    assert settings.report(tmp_path, tmp_path / "out").startswith("width=None, 1 run: loss 0.1000")
    with pytest.raises(UsageError, match="no finished runs"):
        settings.report(tmp_path / "none", tmp_path / "out")


def test_corpora_compare_by_bits_per_byte(tmp_path):
    """A masked model's loss has none of its own: the causal run's bytes a token are taken."""
    made = [("decoder", 64, 2.0, 2.0 / math.log(2) / 4), ("bert", 64, 1.0, None), ("bert", 32, 3.0, None)]
    for number, (family, width, loss, bits) in enumerate(made):
        home = tmp_path / f"{number:012x}"
        home.mkdir()
        (home / "config.json").write_text(json.dumps({"data": {"source": "text"}}))
        result = dict(
            run_id=home.name, status="done", family=family, data="prose-bpe", width=width, params=10, tokens=20,
            loss=loss, bits_per_byte=bits, seed=0,
        )  # fmt: skip
        (home / "result.json").write_text(json.dumps(result))
    frame = corpora.read(tmp_path).set_index(["family", "width"])
    assert frame.bits_per_byte["bert", 64] == pytest.approx(1.0 / math.log(2) / 4)
    assert frame.bits_per_byte["bert", 32] == pytest.approx(3 * frame.bits_per_byte["bert", 64])
    assert "prose-bpe" in corpora.report(tmp_path, tmp_path / "out") and (tmp_path / "out/corpora.png").exists()


@pytest.mark.slow
def test_families_have_a_law_each(tmp_path):
    """Two families with planted laws of different exponents, over the same budgets."""
    laws = {"one": (400.0, 0.34, 2000.0, 0.37), "two": (400.0, 0.34, 300.0, 0.25)}
    rng, number = np.random.default_rng(0), 0
    for family, (A, alpha, B, beta) in laws.items():
        for flops in (1e17, 1e18, 1e19, 3e19):
            best = (alpha * A / (beta * B) * (flops / 6) ** beta) ** (1 / (alpha + beta))
            for n in best * 2.0 ** np.array([-2, -1, 0, 1, 2]):
                loss = (1.7 + A / n**alpha + B / (flops / 6 / n) ** beta) * (1 + 0.001 * rng.normal())
                more = dict(
                    params=n, params_nonembedding=n, tokens=flops / 6 / n, flops=flops, unit="tokens", width=1, depth=1
                )
                write_run(tmp_path, number, {"family": family}, {}, loss=loss, **more)
                number += 1
    text = families.report(tmp_path, tmp_path / "out", lambda config: config["model"]["family"])
    found = {row["label"]: row for row in json.loads((tmp_path / "out/families.json").read_text())}
    for family, (_, alpha, _, beta) in laws.items():
        row, a = found[family], beta / (alpha + beta)
        for value, low, high in (row["a"], row["isoflop"]):
            assert low < value < high and abs(value - a) < 0.05, (family, value, a)
        assert abs(row["alpha"][0] - alpha) < 0.03 and row["n"] == 20 and row["error"] < 0.01
        assert f"| {family} | 20 |" in text
    assert found["one"]["a"][1] > found["two"]["a"][2]  # told apart
    assert (tmp_path / "out/families.png").stat().st_size > 10_000
    assert len(pd.read_csv(tmp_path / "out/families.csv")) == 2


def test_the_law_is_chosen_without_the_largest_budget():
    """Runs of another law choose it; and what lies at the largest budget chooses nothing."""
    frame = planted([1e17, 3e17, 1e18, 3e18, 1e19])
    n, d = frame.N, frame.D
    frame["L"] = ((3e12 / n) ** (0.15 / 0.14) + 8e12 / d) ** 0.14
    found = heldout.top_budget(frame, bootstrap=50)
    assert found["law"] == "kaplan_nd" and found["mean_error"] < 0.005
    other = frame.assign(L=np.where(frame.C > 5e18, frame.L * 2, frame.L))
    assert heldout.top_budget(other, bootstrap=50)["chosen_by"] == found["chosen_by"]
    assert list(heldout.choose(planted([1e18]))) == ["chinchilla"]


def test_reports_of_too_little_are_refused(tmp_path):
    with pytest.raises(UsageError, match="no finished runs"):
        transfer.read(tmp_path, "width")
    with pytest.raises(UsageError, match="runs of the largest budget"):
        heldout.top_budget(planted([1e18]).head(2))


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([], "give --widths=W,W,... or --depths=N,N"),
        (["--widths=32,64", "--depths=2,4"], "give --widths=W,W,... or --depths=N,N"),
        (["--widths=32,a"], "--widths=32,a: expected whole numbers"),
        (["--widths=32,64", "--parametrization=mpu"], "did you mean 'mup'"),
    ],
)
def test_a_wrong_check_is_one_line(args, said, data_dir, tmp_path):
    text = ["--config.data.name=speech", f"--config.run.data_dir={data_dir}", "--config.data.epochs=1000"]
    done = bigmodel("coordcheck", "--config=experiments/prose.py", f"--out={tmp_path / 'out'}", *text, *args, cwd=ROOT)
    assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
