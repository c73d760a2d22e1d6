"""The installed wheel, in a clean environment and an empty folder: nothing of the checkout is there."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.network]


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """Runs `bigmodel` of an environment that has the lock's packages and the wheel."""
    home = tmp_path_factory.mktemp("wheel")
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    tree = home / "tree"  # a build leaves files in the tree that it builds
    for name in ("bigmodel", "experiments", "sweeps"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    pip = ["-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = [sys.executable, *pip, "wheel", "--no-deps", "--no-build-isolation", f"--wheel-dir={home}", str(tree)]
    subprocess.run(build, env=env, check=True)
    (wheel,) = home.glob("bigmodel-*.whl")
    subprocess.run([sys.executable, "-m", "venv", str(home / "venv")], env=env, check=True)
    python = home / "venv/bin/python"
    install = [python, *pip, "install", "--no-deps"]
    subprocess.run([*install, "-r", str(ROOT / "requirements.lock")], env=env, check=True)
    subprocess.run([*install, str(wheel)], env=env, check=True)

    def run(*args, cwd):
        words = [str(home / "venv/bin/bigmodel"), *map(str, args)]
        done = subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        return done

    return run


TINY = [
    "--config.data.name=speech", "--config.data.epochs=1000", "--config.data.seq_len=32", "--config.train.steps=12",
    "--config.train.batch_size=8", "--config.train.eval_examples=16", "--config.run.wandb=off",
]  # fmt: skip


def test_built_in_experiments_and_sweeps_by_name(command, data_dir, tmp_path):
    shutil.copytree(f"{data_dir}/speech", tmp_path / "data/speech")
    said = command(
        "train", "--config=gpt", "--config.model.width=16", "--config.model.num_heads=2", *TINY, cwd=tmp_path
    )
    assert "experiments/gpt.py of the package is used" in said.stderr
    command("sweep", "run", "digits", "--config.run.wandb=off", cwd=tmp_path)
    said = command("report", "sweeps/digits.py", cwd=tmp_path).stdout
    assert (tmp_path / "runs/digits/report/index.html").is_file(), said
    assert "decoder" in command("count", "gpt2", cwd=tmp_path).stdout


def test_a_family_a_source_a_law_and_a_sweep_of_the_user_s(command, tmp_path):
    for path in (ROOT / "tests/contract").glob("*.py"):
        shutil.copy(path, tmp_path)
    (tmp_path / "sizes.py").write_text(
        'CONFIG = "conv_config.py"\nLAW = "law.py"\n\n\n'
        'def get_sweep():\n    return [{"model.width": w, "train.steps": 40} for w in (2, 3, 4, 6, 8, 12)]\n'
    )
    assert "6 trained" in command("sweep", "run", "sizes.py", cwd=tmp_path).stdout
    assert "E + A/N^alpha" in command("fit", "runs/sizes", "--law=law.py", "--out=fit.json", cwd=tmp_path).stdout
    command("report", "sizes.py", cwd=tmp_path)
    assert json.loads((tmp_path / "runs/sizes/report/fit.json").read_text())["law"] == "law.py"
    command("train", "--config=players_config.py", cwd=tmp_path)
    assert "393,216" in command("paper", "paper.py", cwd=tmp_path).stdout
