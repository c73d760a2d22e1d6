"""What is handed to engines: text that a user can read, the rows that are left, quickly and without JAX."""

import json
import os
import subprocess
import sys
import time

import pytest
from conftest import ROOT, bigmodel

from bigmodel import launch
from bigmodel.config import UsageError


@pytest.fixture
def thousand(tmp_path):
    """A planned sweep of 1,000 rows, 300 of them finished, 10 begun."""
    folder = tmp_path / "runs/big"
    folder.mkdir(parents=True)
    rows = []
    for i in range(1000):
        row = {"run_id": f"{i:012x}", "overrides": {"model.width": i}, "params": 10, "tokens": 100, "steps": 50}
        rows.append({**row, "config": {"model": {"width": i, **{f"key{k}": k for k in range(60)}}}})
        if i < 310:
            (folder / row["run_id"]).mkdir()
        if i < 300:
            result = {"status": "done", "loss": 2.5, "steps": 50}
            (folder / row["run_id"] / "result.json").write_text(json.dumps(result))
        elif i < 310:
            (folder / row["run_id"] / "config.json").write_text("{}")
            lines = "".join(json.dumps({"step": s, "loss": 3.0}) + "\n" for s in range(2000))
            (folder / row["run_id"] / "metrics.jsonl").write_text(lines + '{"step": 20')
    (folder / "plan.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


MEASURE = """
import sys
from bigmodel import cli
code = cli.main(sys.argv[1:])
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))  # since exec
print(peak, "jax" in sys.modules, file=sys.stderr)
sys.exit(code)
"""


def measured(*args):
    """(seconds, MB, whether JAX was imported, standard output)"""
    began = time.time()
    out = subprocess.run([sys.executable, "-c", MEASURE, *map(str, args)], cwd=ROOT, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    size, jax = out.stderr.split()[-2:]
    return time.time() - began, int(size) / 1000, jax == "True", out.stdout


def test_1000_rows_are_rendered_without_jax(thousand):
    """Seconds are told by docs/pods.md; here a bound that a slow machine keeps, and the memory."""
    seconds, size, jax, text = measured("launch", thousand, "--engine=slurm", "--max=8", "--print")
    assert "#SBATCH --array=300-999%8" in text
    assert size < 150 and not jax and seconds < 10
    assert not (thousand / "launch").exists()


def test_1000_rows_are_told_of_without_jax(thousand):
    seconds, _, jax, text = measured("sweep", "status", thousand)
    assert text.splitlines()[-1] == "1000 runs: 300 done, 10 interrupted, 690 pending"
    assert "1999/50" in text  # of a metrics file with a torn end, its last whole row
    assert not jax and seconds < 15


def test_ranges():
    assert launch.ranges((0, 1, 2, 3, 7, 9, 10, 11)) == "0-3,7,9-11"


def job(**more):
    base = dict(
        folder="/runs/x", name="bigmodel-x", indices=(0, 1, 5), most=2, processes=2, worker="bigmodel worker /runs/x"
    )
    return launch.Job(**{**base, **more})


GOLDEN = ROOT / "tests/data_launch"


@pytest.mark.parametrize(
    ("engine", "more"),
    [
        ("local", {}),
        ("slurm", {"options": ("--partition=main",), "cpus": 4}),
        ("sky", {"folder": "gs://mine/x", "topology": "v5p:4x4x4", "worker": "bigmodel worker gs://mine/x"}),
    ],
)
def test_the_text_for_an_engine(engine, more):
    """The whole text, as a user reads it: a change of it is to be seen in review."""
    for name, text in launch.engine(engine).render(job(**more)).items():
        assert text == (GOLDEN / name).read_text(), name


def test_sky_refuses_what_it_can_t_do():
    sky = launch.engine("sky")
    for more, text in (
        ({}, "which slice?"),
        ({"topology": "v5p:4x4x4"}, "slices share no disk"),
        ({"topology": "v5p:4x4x4", "folder": "gs://a/b", "slices": 2}, "one slice a row"),
    ):
        with pytest.raises(UsageError, match=text):
            sky.render(job(**more))


def test_mistakes_end_in_one_line(thousand, tmp_path):
    for args, text in (
        (["launch", thousand, "--engine=slrm"], "did you mean 'slurm'?"),
        (["launch", tmp_path, "--engine=local"], "no plan at"),
        (["launch", thousand, "--engine=slurm", "--max=0"], "--max=0: must be at least 1"),
    ):
        wrong = bigmodel(*args)
        assert wrong.returncode == 2 and text in wrong.stderr and wrong.stderr.count("\n") == 1, wrong.stderr


def test_the_local_script_runs_rows_to_their_end(tmp_path, tiny):
    from test_worker import planned

    folder = planned(tmp_path, tiny(), 2)
    done = bigmodel("launch", folder, "--engine=local", "--max=2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(done.stdout.split("\n"))[1:] == ["row 0: code 0", "row 1: code 0"]
    again = bigmodel("launch", folder, "--engine=local")
    assert again.returncode == 0 and "every row is finished" in again.stdout
    assert os.access(folder / "launch/run.sh", os.R_OK)


def test_skypilot_accepts_the_yaml():
    """Where it is installed: its own schema. It has never been executed."""
    sky = pytest.importorskip("sky")
    (resources,) = sky.Task.from_yaml(str(GOLDEN / "row.yaml")).resources
    assert resources.use_spot and resources.accelerators == {"tpu-v5p-128": 1}
