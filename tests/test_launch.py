"""What is handed to engines: text that a user can read, the rows that are left, quickly and without JAX."""

import json
import os
import re
import shlex
import subprocess
import sys
import time

import pytest
import yaml
from conftest import ROOT, bigmodel

from bigmodel import files, launch
from bigmodel.cli import launch as launch_verb
from bigmodel.cli import main
from bigmodel.errors import UsageError
from bigmodel.launch import tpus


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
            result = {"run_id": row["run_id"], "status": "done", "loss": 2.5, "steps": 50, "flops": 1.0}
            result |= {"params": 10, "tokens": 100, "wall_seconds": 1.0}
            (folder / row["run_id"] / "result.json").write_text(json.dumps(result))
        elif i < 310:
            (folder / row["run_id"] / "config.json").write_text("{}")
            lines = "".join(json.dumps({"step": s, "loss": 3.0}) + "\n" for s in range(2000))
            (folder / row["run_id"] / "metrics.jsonl").write_text(lines + '{"step": 20')
    (folder / "plan.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


MEASURE = """
import sys
from bigmodel.cli import main as cli
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
    assert "#SBATCH --array=0-699%8" in text and f"ids=({300:012x} {301:012x} " in text
    assert size < 150 and not jax and seconds < 10
    assert not (thousand / "launch").exists()


def test_1000_rows_are_told_of_without_jax(thousand):
    seconds, _, jax, text = measured("sweep", "status", thousand)
    assert text.splitlines()[-1] == "1000 runs: 300 done, 10 interrupted, 690 pending"
    assert "1999/50" in text  # of a metrics file with a torn end, its last whole row
    assert not jax and seconds < 15


def job(**more):
    base = dict(
        folder="/runs/x",
        home="/runs/x/launch",
        name="bigmodel-x",
        ids=("0a", "1b", "5c"),
        most=2,
        processes=2,
        worker="bigmodel worker /runs/x",
    )
    return launch.Job(**{**base, **more})


GOLDEN = ROOT / "tests/data_launch"
STORED = {"folder": "gs://mine/x", "worker": "bigmodel worker gs://mine/x"}


@pytest.mark.parametrize(
    ("engine", "more"),
    [
        ("local", {}),
        ("slurm", {"options": ("--partition=main",), "cpus": 4}),
        ("sky", {**STORED, "topology": "v5p:4x4x4"}),
        ("gke", {**STORED, "topology": "v5p:2x2x2", "slices": 2, "image": "r/bigmodel:1"}),
        ("tpu-vm", {**STORED, "topology": "v5p:2x2x2", "zone": "us-east5-a"}),
    ],
)
def test_the_text_for_an_engine(engine, more):
    """The whole text, as a user reads it: a change of it is to be seen in review."""
    for name, text in launch.engine(engine).render(job(**more)).items():
        assert text == (GOLDEN / engine / name).read_text(), name


def test_an_engine_of_the_users_own(tmp_path, capsys):
    folder = two_rows(tmp_path / "x")
    (tmp_path / "mine.py").write_text(
        'CLIENT = COMMAND = "cat"\ndef render(job): return {"mine.txt": f"{job.ids} {job.processes}\\n"}\n'
    )
    assert main.main(["launch", str(folder), f"--engine={tmp_path}/mine.py", "--print", "--processes=3"]) == 0
    assert capsys.readouterr().out == "# ---- mine.txt\n('0a', '1b') 3\n"
    assert main.main(["launch", str(folder), f"--engine={tmp_path}/mine.py", "--rehearse"]) == 2
    assert "no stand-in for 'cat'" in capsys.readouterr().err and not (folder / "launch").exists()


def test_rows_that_are_launched_have_no_whole_result_and_are_not_superseded(tmp_path):
    rows = [{"run_id": f"{i}", "config": {}, "overrides": {}, "superseded": i == 3} for i in range(5)]
    (tmp_path / "plan.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    keys = ("run_id", "status", "steps", "params", "tokens", "flops", "loss", "wall_seconds")
    whole = json.dumps(dict.fromkeys(keys, 1)).encode()
    for i, text in ((0, whole), (1, whole[:-9]), (2, b"\xff\xfe")):
        (tmp_path / str(i)).mkdir()
        (tmp_path / str(i) / "result.json").write_bytes(text)
    assert launch_verb.unfinished(tmp_path) == ("1", "2", "4")


def test_engines_of_slices_refuse_what_they_can_t_do():
    slice = {"topology": "v5p:4x4x4", "folder": "gs://a/b"}
    for engine, more, text in (
        ("sky", {}, "which slice?"),
        ("gke", {"topology": "v5p:4x4x4"}, "slices share no disk"),
        ("sky", {**slice, "topology": "v5q:2x2"}, "did you mean 'v5"),
        ("sky", {**slice, "topology": "v5p:4x0"}, "chip and shape"),
        ("sky", {**slice, "slices": 2}, "one slice a row"),
        ("tpu-vm", {**slice, "slices": 2}, "one slice a row"),
        ("tpu-vm", slice, "--zone="),
        ("tpu-vm", {**slice, "folder": "s3://a/b"}, "the keys of gs:// alone"),
        ("gke", slice, "--image="),
        ("gke", {**slice, "image": "a", "queue": "A b"}, "no name of a LocalQueue"),
        ("gke", {**slice, "image": "a", "ids": ("0_1",)}, "can't be named after"),
    ):
        with pytest.raises(UsageError, match=re.escape(text)):
            launch.engine(engine).render(job(**more))


def test_hosts_and_chips_of_slices():
    """Google Cloud's tables: hosts of four chips, of one, and v5e's and v6e's of eight."""
    for topology, expected in (
        ("v4:2x2x1", (1, 4, "v4-8")),
        ("v5p:8x8x8", (128, 4, "v5p-1024")),
        ("v5e:1x1", (1, 1, "v5litepod-1")),
        ("v5e:2x4", (1, 8, "v5litepod-8")),
        ("v5e:16x16", (64, 4, "v5litepod-256")),
        ("v6e:4x4", (4, 4, "v6e-16")),
    ):
        found = tpus.slice_of("gke", job(topology=topology, folder="gs://a/b"))
        assert (found.hosts, found.chips, found.accelerator) == expected


def test_sky_installs_what_reads_s3():
    text = launch.engine("sky").render(job(**{**STORED, "folder": "s3://mine/x"}, topology="v5p:4x4x4"))["row.yaml"]
    install = yaml.safe_load(text)["setup"].splitlines()[-1]
    assert install == "~/bigmodel/bin/python -m pip install -c requirements.lock -e '.[tpu,s3]'"


def test_gpus_of_slurm_s_nodes_have_a_process_each():
    text = launch.engine("slurm").render(job(gpus=4, cpus=8))["array.sbatch"]
    assert "#SBATCH --nodes=2 --ntasks=8 --ntasks-per-node=4 --cpus-per-task=8 --gpus-per-node=4\n" in text


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
    ids = sorted(row["run_id"] for row in files.read_plan(folder))
    assert sorted(done.stdout.split("\n"))[1:] == [f"row {run_id}: code 0" for run_id in ids]
    assert all((folder / "launch" / f"{run_id}.log").read_text() for run_id in ids)
    again = bigmodel("launch", folder, "--engine=local")
    assert again.returncode == 0 and "every row is finished" in again.stdout
    assert os.access(folder / "launch/run.sh", os.R_OK)


def test_skypilot_accepts_the_yaml():
    """Where it is installed: its own schema. It has never been executed."""
    sky = pytest.importorskip("sky")
    (resources,) = sky.Task.from_yaml(str(GOLDEN / "sky/row.yaml")).resources
    assert resources.use_spot and resources.accelerators == {"tpu-v5p-128": 1}


# ------------------------------------------------------------------------------ names that reach a shell

HOSTILE = [
    "a b", "it's", 'say "x"', "a;touch X;x", "a$(touch X)", "a`touch X`", "a\ntouch X\n", "\ntouch X #", "实验", "-n",
    "a&touch X&", "a|touch X", "a>X", "a{b}", "%d", "a\\", "#x", "*", "~", "$HOME", "a\u2028touch X", "a\x85b",
    "é: - [x]", "$(HOME)$$",
]  # fmt: skip
RECORD = """#!/bin/bash
{ printf '%s\\0' "$@"; printf 'END\\0'; } >> "$RECORD"
"""


@pytest.fixture
def stubs(tmp_path, monkeypatch):
    """A function that puts an executable script on PATH; `bigmodel` is there and records what it was called with."""
    folder = tmp_path / "bin of mine"
    folder.mkdir()

    def put(name, text):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)

    put("bigmodel", RECORD)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("RECORD", str(tmp_path / "record"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(sys, "argv", [str(folder / "bigmodel")])
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return put


def calls(tmp_path):
    """What the recording stub was called with, once each."""
    record = tmp_path / "record"
    words = record.read_bytes().decode().split("\0")[:-1] if record.exists() else []
    record.unlink(missing_ok=True)
    found = [[]]
    for word in words:
        found.append([]) if word == "END" else found[-1].append(word)
    return found[:-1]


def two_rows(folder):
    folder.mkdir(parents=True)
    rows = [{"run_id": run_id, "overrides": {}, "config": {}} for run_id in ("0a", "1b")]
    (folder / "plan.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize("name", HOSTILE)
def test_names_reach_the_local_worker_unchanged_and_no_shell(name, tmp_path, stubs):
    folder = two_rows(tmp_path / name)
    code = main.main(["launch", str(folder), "--engine=local", f"--config.run.data_dir={name}"])
    assert not list(tmp_path.rglob("X"))
    assert code == 0
    assert calls(tmp_path) == [
        ["worker", str(folder), f"--config.run.data_dir={name}", f"--run={run_id}"] for run_id in ("0a", "1b")
    ]
    assert {p.name for p in (folder / "launch").iterdir()} == {"run.sh", "0a.log", "1b.log"}


SBATCH = """#!/bin/bash
# Runs the array's task 1 here, as a node would.
bash -n "$1" && SLURM_ARRAY_TASK_ID=1 bash "$1"
"""
SRUN = """#!/bin/bash
while [[ "$1" == --* ]]; do shift; done
exec "$@"
"""


@pytest.mark.parametrize("name", HOSTILE)
def test_names_reach_the_slurm_worker_unchanged_or_are_refused(name, tmp_path, stubs, capfd):
    stubs("sbatch", SBATCH)
    stubs("srun", SRUN)
    folder = two_rows(tmp_path / name)
    code = main.main(["launch", str(folder), "--engine=slurm", f"--config.run.data_dir={name}"])
    assert not list(tmp_path.rglob("X"))
    if code:
        err = capfd.readouterr().err
        assert code == 2 and "which its files can't have" in err and err.count("\n") == 1, err
        assert not (folder / "launch").exists() and not calls(tmp_path)
        assert any(c in " '\"\\#%" or not c.isprintable() for c in name)
    else:
        assert calls(tmp_path) == [["worker", str(folder), f"--config.run.data_dir={name}", "--run=1b"]]
        text = (folder / "launch/array.sbatch").read_text()
        (line,) = [line for line in text.splitlines() if line.startswith("#SBATCH --job-name=")]
        assert re.fullmatch("#SBATCH --job-name=bigmodel[A-Za-z0-9-]*", line)


def test_options_of_slurm_with_a_line_end_are_refused(tmp_path, stubs, capfd):
    folder = two_rows(tmp_path / "x")
    for option in ("--option=--partition=a\ntouch X", "--time=1:00\ntouch X"):
        assert main.main(["launch", str(folder), "--engine=slurm", "--print", option]) == 2
        assert capfd.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("name", HOSTILE)
def test_names_reach_the_sky_worker_unchanged_or_are_refused(name, tmp_path, stubs, capfd):
    stubs("sky", RECORD)
    folder = two_rows(tmp_path / name)
    bucket = f"gs://b/{name}"
    code = main.main(
        ["launch", str(folder), "--engine=sky", "--topology=v5p:4x4x4", f"--bucket={bucket}",
         f"--config.run.data_dir=gs://b/{name}"]
    )  # fmt: skip
    assert not list(tmp_path.rglob("X"))
    if code:
        err = capfd.readouterr().err
        assert code == 2 and "which its files can't have" in err and err.count("\n") == 1, err
        assert not all(c.isprintable() for c in name)
        return
    task = yaml.safe_load((folder / "launch/row.yaml").read_text())
    for call, run_id in zip(calls(tmp_path), ("0a", "1b"), strict=True):
        assert call[:4] == ["jobs", "launch", "--yes", "--detach-run"]
        assert call[4] == f"--name={task['name']}-{run_id}" and call[5:7] == ["--env", f"RUN_ID={run_id}"]
        assert call[7:] == [str(folder / "launch/row.yaml")]
    assert re.fullmatch("bigmodel(-[A-Za-z0-9]+)*", task["name"]) and task["envs"] == {"RUN_ID": ""}
    assert subprocess.run(["bash", "-c", task["run"]], env={**os.environ, "RUN_ID": "1b"}).returncode == 0
    assert calls(tmp_path) == [["worker", bucket, f"--config.run.data_dir=gs://b/{name}", "--run=1b"]]
    assert not list(tmp_path.rglob("X"))


@pytest.mark.parametrize("name", HOSTILE)
def test_names_reach_gke_s_worker_unchanged_or_are_refused(name, tmp_path, stubs, capfd):
    """No shell reads them; Kubernetes itself expands $(NAME), and reads $$ as $."""
    stubs("kubectl", RECORD)
    folder = two_rows(tmp_path / name)
    args = ["launch", str(folder), "--engine=gke", "--topology=v5p:4x4x4", f"--bucket=gs://b/{name}"]
    code = main.main([*args, "--image=r/x", f"--config.run.data_dir=gs://b/{name}"])
    assert not list(tmp_path.rglob("X"))
    if code:
        assert code == 2 and "which its files can't have" in capfd.readouterr().err
        assert not all(c.isprintable() for c in name) and not calls(tmp_path)
        return
    (listing, apply) = (call for call in calls(tmp_path) if call[0] != "delete")
    assert listing[:2] == ["get", "jobsets"] and apply == ["apply", f"--filename={folder}/launch/jobsets.yaml"]
    found = list(yaml.safe_load_all((folder / "launch/jobsets.yaml").read_text()))
    for jobset, run_id in zip(found, ("0a", "1b"), strict=True):
        assert re.fullmatch(f"bigmodel(-[a-z0-9]+)*-{run_id}", jobset["metadata"]["name"])
        (container,) = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"]
        words = [
            re.sub(r"\$\$|\$\(\w+\)", lambda m: "$" if m[0] == "$$" else "EXPANDED", w) for w in container["command"]
        ]
        data = f"--config.run.data_dir=gs://b/{name}"
        assert words == ["bigmodel", "worker", f"gs://b/{name}", data, f"--run={run_id}"]


@pytest.mark.parametrize("name", HOSTILE)
def test_names_reach_a_tpu_vm_s_worker_unchanged_or_are_refused(name, tmp_path, stubs, capfd):
    for program in ("gcloud", "python3", "curl"):
        stubs(program, "#!/bin/bash\n" if program != "gcloud" else RECORD)
    folder = two_rows(tmp_path / name)
    args = ["launch", str(folder), "--engine=tpu-vm", "--topology=v5p:2x2x1", f"--bucket=gs://b/{name}"]
    code = main.main([*args, f"--zone={name}", f"--config.run.data_dir=gs://b/{name}"])
    assert not list(tmp_path.rglob("X"))
    if code:
        assert code == 2 and "which its files can't have" in capfd.readouterr().err
        assert not all(c.isprintable() for c in name) and not calls(tmp_path)
        return
    copy, _, create = calls(tmp_path)
    assert copy[:2] == ["storage", "cp"] and copy[-1] == f"gs://b/{name}/launch/"
    assert create[:4] == ["compute", "tpus", "queued-resources", "create"] and f"--zone={name}" in create
    assert re.fullmatch("bigmodel(-[a-z0-9]+)*-0", create[4])
    assert f"--metadata-from-file=startup-script={folder}/launch/start.sh" in create
    stubs("sleep", "#!/bin/bash\n")
    bin_of_venv = tmp_path / "bigmodel/bin"
    bin_of_venv.mkdir(parents=True)
    (bin_of_venv / "python").write_text("#!/bin/bash\n")
    (bin_of_venv / "python").chmod(0o755)
    assert subprocess.run(["bash", str(folder / "launch/start.sh")], stdin=subprocess.DEVNULL).returncode == 0
    words = [call for call in calls(tmp_path) if call[0] == "worker"]
    data = f"--config.run.data_dir=gs://b/{name}"
    assert words == [["worker", f"gs://b/{name}", data, f"--run={run_id}"] for run_id in ("0a", "1b")]
    assert not list(tmp_path.rglob("X"))


def test_commands_of_the_page_print_their_texts(tmp_path, stubs, capsys):
    for name in ("demo", "digits", "mine"):
        two_rows(tmp_path / "here/runs" / name)
    commands = re.findall(r"bigmodel (launch [^`\n]*?)(?=`| {2,}#|\n)", (ROOT / "docs/pods.md").read_text())
    found = [shlex.split(command) for command in commands if "--engine=" in command and "runs/" in command]
    assert {word for words in found for word in words if word.startswith("--engine=")} == {
        f"--engine={name}" for name in ("slurm", "sky", "gke", "tpu-vm")
    }
    for words in found:
        assert main.main([*words, "--print"]) == 0, (words, capsys.readouterr().err)
        assert "# ---- " in capsys.readouterr().out


def test_folder_whose_name_is_not_utf8_is_refused_in_one_line(tmp_path, stubs, capfd):
    folder = two_rows(tmp_path / os.fsdecode(b"a\xff"))
    assert main.main(["launch", str(folder), "--engine=local", "--print"]) == 2
    err = capfd.readouterr().err
    assert "isn't UTF-8" in err and err.count("\n") == 1


@pytest.mark.parametrize("name", HOSTILE)
def test_printed_flags_can_be_pasted_into_a_shell(name, tmp_path, monkeypatch):
    from bigmodel.cli import compile

    monkeypatch.chdir(tmp_path)
    report = {"mesh": {"data": 4}, "execution": {"remat": "full"}}
    flags = compile._flags(report, [("run.data_dir", name)], f"{name}.executable")
    words = subprocess.run(["bash", "-c", f"printf '%s\\0' {flags}"], capture_output=True, check=True).stdout
    found = dict(word.split("=", 1) for word in words.decode().split("\0")[:-1])
    assert found["--config.run.data_dir"] == name and found["--config.run.executable"] == f"{name}.executable"
    assert not list(tmp_path.iterdir())
