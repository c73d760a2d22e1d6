"""The worked example of docs/architecture.md, as a user would add it: one file, and nothing else."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """A copy of the project with the family's file in it."""
    home = tmp_path_factory.mktemp("house")
    for part in ("bigmodel", "experiments", "sweeps", "tests"):
        shutil.copytree(ROOT / part, home / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", home)
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", text, re.S) if "neural n-gram" in block)
    (home / "bigmodel/models/ngram.py").write_text(code)
    return home


def run(house, *args):
    done = subprocess.run(
        [sys.executable, *map(str, args)], cwd=house, env={**os.environ, "PYTHONPATH": str(house)}, capture_output=True,
        text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_it_is_counted(house):
    assert f"{16383 * 100 * 2 + 4 * 100**2:,}" in run(house, "-m", "bigmodel", "count", "ngram-bengio")


def test_it_is_swept_trained_and_resumed(house, data_dir):
    (house / "sweeps/ngram.py").write_text(
        '"""n-grams."""\nfrom bigmodel import sweep\nCONFIG = "experiments/ngram.py"\n'
        'def get_sweep():\n    return sweep.ladder("ngram", [8, 16], [1])\n'
    )
    (house / "experiments/ngram.py").write_text(
        '"""n-grams."""\nfrom bigmodel import budget\ndef get_config():\n    config = budget.base("ngram", "text")\n'
        '    config.data.name, config.data.seq_len, config.data.epochs = "speech", 32, 99\n'
        "    config.train.steps, config.train.batch_size, config.train.eval_examples = 6, 4, 8\n    return config\n"
    )
    args = [
        "sweeps/ngram.py",
        f"--config.run.data_dir={data_dir}",
        "--config.run.wandb=off",
        f"--runs={house / 'runs'}",
    ]
    assert "2 trained" in run(house, "-m", "bigmodel", "sweep", "run", *args)
    found = [json.loads(p.read_text()) for p in (house / "runs/ngram").glob("*/result.json")]
    assert {r["width"] for r in found} == {8, 16} and all(0 < r["bits_per_byte"] < 12 for r in found)
    assert "2 skipped" in run(house, "-m", "bigmodel", "sweep", "run", *args)


def test_every_test_over_families_takes_it_in(house):
    said = run(house, "-m", "pytest", "-p", "no:xdist", "-vv", "tests/test_models.py", "-k", "ngram")
    for name in ("loss_falls", "every_parameter", "flops", "padding", "published"):
        assert re.search(rf"test_\w*{name}\w*\[ngram[^\]]*\] PASSED", said), said


def test_it_is_the_same_on_eight_devices(house):
    run(house, "tests/families.py", house / "found.json", "ngram")
    found = json.loads((house / "found.json").read_text())["ngram"]
    assert max(abs(a - b) for a, b in zip(found["one"], found["eight"], strict=True)) < 1e-4
    assert found["one from eight"] == pytest.approx(found["one"][2:], rel=1e-4)
