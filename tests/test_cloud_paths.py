"""Paths in a bucket: they keep their slashes, and where one can't be or a package is missing, one line says so."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT, bigmodel
from test_launch import two_rows

from bigmodel import config
from bigmodel.cli import main

SWEEP = 'CONFIG = "experiments/digits.py"\ndef get_sweep():\n    return [{"train.steps": 3}]\n'
DIGITS = "--config=experiments/digits.py"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working folder with a sweep file, a plan and prepared data."""
    home = tmp_path / "here"
    home.mkdir()
    monkeypatch.chdir(home)
    (home / "experiments").symlink_to(ROOT / "experiments")
    (home / "small.py").write_text(SWEEP)
    two_rows(home / "planned")
    return home


@pytest.mark.parametrize(
    "args",
    [
        ["train", DIGITS, "--runs=gs://b/runs"],
        ["train", DIGITS, "--config.run.data_dir=gs://b/data"],
        ["train", "gs://b/runs/x/config.json"],
        ["sweep", "plan", "small.py", "--runs=gs://b/runs"],
        ["sweep", "run", "small.py", "--runs=gs://b/runs"],
        ["sweep", "status", "gs://b/runs/small"],
        ["worker", "gs://b/runs/small", "--run=0a"],
        ["launch", "gs://b/runs/small", "--engine=slurm"],
        ["launch", "small.py", "--runs=gs://b/runs", "--engine=local"],
        ["fit", "gs://b/runs/small"],
        ["report", "small.py", "--runs=gs://b/runs"],
        ["evaluate", "gs://b/runs/small/0a"],
        ["prepare", "notes.txt", "--out=gs://b/data/notes"],
        ["upload", "planned", "gs://b/runs"],
        ["compile", DIGITS, "--topology=v5e:2x2", "--config.run.data_dir=gs://b/data"],
    ],
)
def test_missing_package_of_a_bucket_is_named_with_the_command_that_installs_it(args, here, capfd, monkeypatch):
    if config.importlib.util.find_spec("gcsfs"):
        pytest.skip("gcsfs is here")
    assert main.main(args) == 2
    err = capfd.readouterr().err
    assert "gs://b/" in err and f"needs the package gcsfs: {sys.executable} -m pip install gcsfs" in err
    assert err.count("\n") == 1 and not list(here.glob("gs:*")) and not (here / "runs").exists()


@pytest.mark.parametrize(
    "args",
    [
        ["fit", "points.csv", "--out=gs://b/fit.json"],
        ["fit", "points.csv", "--report=gs://b/report"],
        ["fit", "points.csv", "--law=gs://b/law.py"],
        ["report", "small.py", "--out=gs://b/report"],
        ["plan", "--law=gs://b/fit.json", "--flops=1e16"],
        ["plan", "--law=fit.json", "--flops=1e16", "--out=gs://b/next.py"],
        ["paper", "gpt3", "--out=gs://b/paper"],
        ["paper", "besiroglu", "--points=gs://b/points.csv"],
        ["compile", DIGITS, "--topology=v5e:2x2", "--out=gs://b/x"],
        ["compile", "--sweep=gs://b/small.py", "--topology=v5e:2x2"],
        ["coordcheck", DIGITS, "--widths=4,8", "--out=gs://b/x"],
        ["prepare", "gs://b/notes.txt", "--out=data/notes"],
        ["sweep", "run", "gs://b/small.py"],
        ["train", "--config=gs://b/digits.py"],
        ["count", "--config=gs://b/digits.py"],
        ["upload", "gs://b/data/notes", "gs://b/data"],
    ],
)
def test_path_that_has_to_be_on_a_disk_is_refused_with_its_slashes(args, here, capfd):
    assert main.main(args) == 2
    err = capfd.readouterr().err
    assert "'gs://b/" in err and "has to be on a disk" in err and "gcloud storage cp -r" in err
    assert err.count("\n") == 1 and not list(here.glob("gs:*"))


def test_missing_package_of_a_path_in_a_config_is_one_line(here, tmp_path, tiny):
    if config.importlib.util.find_spec("gcsfs"):
        pytest.skip("gcsfs is here")
    (here / "config.json").write_text(config.to_json(tiny(("run.data_dir", "gs://b/data"))))
    done = bigmodel("train", here / "config.json", cwd=here)
    assert done.returncode == 2 and "needs the package gcsfs" in done.stderr and done.stderr.count("\n") == 1


def test_sky_setup_takes_a_python_that_is_new_enough_and_the_pinned_versions(tmp_path):
    """The rendered setup, run with a Python that says it is 3.10 and with one that says it is 3.12."""
    import yaml

    setup = yaml.safe_load((ROOT / "tests/data_launch/sky/row.yaml").read_text())["setup"]
    (tmp_path / "bin").mkdir()
    stub = tmp_path / "bin/python3"
    for old in (True, False):
        log = tmp_path / f"log{old}"
        made = f'mkdir -p ~/bigmodel/bin; printf "#!/bin/sh\\necho pip \\"\\$@\\" >> {log}" > ~/bigmodel/bin/python; '
        stub.write_text(
            f'#!/bin/bash\necho "$@" >> {log}\n[ "$1" != -c ] || exit {int(old)}\n'
            f'[ "$2" = pip ] || {{ {made} chmod +x ~/bigmodel/bin/python; }}\n'
        )
        stub.chmod(0o755)
        env = {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "HOME": str(tmp_path / f"home{old}")}
        (tmp_path / f"home{old}").mkdir()
        assert subprocess.run(["bash", "-c", setup], env=env).returncode == 0
        said = log.read_text().splitlines()
        assert said[-1] == "pip -m pip install -c requirements.lock -e .[tpu]"
        assert any("uv venv" in line for line in said) == old
        assert any(line.startswith("-m venv") for line in said) != old
