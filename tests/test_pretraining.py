"""What pretraining is worth: planted curves, read back."""

import json

import numpy as np
import pytest
from conftest import ROOT

from bigmodel.config import load_module

pretraining = load_module(ROOT / "sweeps/sentiment.py", "sweep").pretraining

SIZES = (100, 400, 1600, 6400)


def study(folder, accuracy):
    """Finished runs of three seeds; accuracy(start, examples, seed)."""
    for start in ("scratch", "pretrained"):
        for n in SIZES:
            for seed in range(3):
                home = folder / f"{start}-{n}-{seed}"
                home.mkdir(parents=True)
                config = {
                    "train": {"init_from": start * (start != "scratch")},
                    "data": {"source": "tasks", "examples": n},
                }
                (home / "config.json").write_text(json.dumps(config))
                own = {"run_id": home.name, "status": "done", "seed": seed, "loss": 0.5, "unique_tokens": n}
                (home / "result.json").write_text(json.dumps({**own, "eval_accuracy": accuracy(start, n, seed)}))
    return folder


def planted(start, n, seed):
    """Pretraining makes every example worth nine: the curve from scratch, moved."""
    return 0.5 + 0.04 * np.log2(n * (9 if start == "pretrained" else 1) / 100) + 0.002 * (seed - 1)


def test_effective_data_is_read_off_the_curve():
    n, accuracy = np.array([100.0, 400, 1600]), np.array([0.5, 0.7, 0.6])
    assert pretraining.effective(n, accuracy, 0.6) == pytest.approx(200)
    assert pretraining.effective(n, accuracy, 0.4) == 100 and pretraining.effective(n, accuracy, 0.71) == np.inf


def test_a_planted_worth_is_found(tmp_path):
    frame = pretraining.read(study(tmp_path / "study", planted))
    rows = pretraining.table(frame)
    assert [r["effective"] for r in rows[:2]] == [pytest.approx(900), pytest.approx(3600)]
    assert [r["effective"] for r in rows[2:]] == [None, None]
    assert all(r["gain"] == pytest.approx(4 * np.log2(9)) for r in rows)
    assert rows[0]["scratch_deviation"] == pytest.approx(0.002)
    assert pretraining.law(rows) is None
    found = pretraining.law([{"examples": n, "transferred": 5 * n**0.5} for n in SIZES])
    assert found["k"] == pytest.approx(5) and found["alpha"] == pytest.approx(0.5)


def test_the_report_says_what_it_is_worth(tmp_path):
    said = pretraining.report(study(tmp_path / "study", planted), tmp_path / "out")
    assert "worth 900 examples" in said and "more than 6,400" in said
    assert {p.suffix for p in (tmp_path / "out").iterdir()} == {".csv", ".json", ".png", ".svg", ".pdf"}
    half = study(tmp_path / "half", planted)
    for home in half.glob("scratch*"):
        (home / "result.json").unlink()
    assert "yet" in pretraining.report(half, tmp_path / "none")
    # A size from scratch alone lengthens that curve; one fine-tuned alone can't be judged.
    longer = study(tmp_path / "longer", planted)
    for home in longer.glob("pretrained-6400*"):
        (home / "result.json").unlink()
    said = pretraining.report(longer, tmp_path / "longer_out")
    assert "400 examples" in said and "worth 3,600 examples" in said and "6,400 examples:" not in said
    (longer / "scratch-1600-1/result.json").unlink()
    assert "scratch, 1,600 examples: 2 of 3 seeds" in pretraining.report(longer, tmp_path / "longer_out")
    for home in longer.glob("scratch-400-*"):
        (home / "result.json").unlink()
    assert "sizes 400 have none from scratch" in pretraining.report(longer, tmp_path / "none")
