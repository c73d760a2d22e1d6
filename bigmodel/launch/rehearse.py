"""A rehearsal: an engine's text is run on this machine, by stand-ins for the programs that would take it elsewhere.

A folder of stand-ins comes first on PATH, and the engine's own command is run. Each stand-in records its call. Those
that submit work then read the file that they were given, and run its lines as the cloud would: all hosts of a slice
together, started again for the exit codes that the text names. What is installed, copied or deleted is recorded and not
done, a `sleep` is cut to a second, slices come one after another, and of many hosts two take part.

    python -m bigmodel.launch.rehearse PROGRAM ARGUMENT ...        # what a stand-in executes
"""

import itertools
import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from bigmodel import files

PROGRAMS = ("sky", "kubectl", "gcloud", "sbatch", "srun", "scontrol", "python3", "curl", "sleep")
HOSTS, STARTS = 2, 3  # of a run, at most
FOLDER, COUNT = "BIGMODEL_REHEARSAL", "BIGMODEL_REHEARSAL_HOSTS"  # variables: the rehearsal's folder, hosts of a slice


def rehearse(command: str, script: Path, hosts: int) -> list[list[str]]:
    """Runs `command script` among stand-ins, to the end of all that it starts; returns their calls."""
    folder = script.parent / "rehearsal"
    (folder / "bin").mkdir(parents=True, exist_ok=True)
    (folder / "calls.jsonl").write_text("")
    python = shlex.quote(sys.executable)
    programs = {name: f"{python} -m {__name__} {name}" for name in PROGRAMS} | {"bigmodel": f"{python} -m bigmodel"}
    for name, text in programs.items():
        _executable(folder / "bin" / name, f'#!/bin/sh\nexec {text} "$@"\n')
    env = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "SKYPILOT_", "TPU_"))}
    package = str(Path(__file__).parents[2])
    env |= {
        "PATH": f"{folder / 'bin'}:{env['PATH']}",
        "PYTHONPATH": f"{package}:{env['PYTHONPATH']}" if "PYTHONPATH" in env else package,
        "HOME": str(folder),
        "BIGMODEL_CACHE": str(files.cache_folder()),
        "JAX_PLATFORMS": "cpu",
        FOLDER: str(folder),
        COUNT: str(min(hosts, HOSTS)),
    }
    subprocess.run([command, str(script)], env=env)
    return [json.loads(line) for line in (folder / "calls.jsonl").read_text().splitlines()]


def summary(calls: list[list[str]]) -> list[str]:
    """'6 x sky jobs launch', ...: the calls by their program and first plain words."""
    words = [re.match(r"\S+( -m \w+)?( [a-z][a-z-]*){0,4}", shlex.join(call)) for call in calls]
    return [f"{n} x {text}" for text, n in Counter(w.group() for w in words if w).items()]


def _executable(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def _together(command: list[str], environments: list[dict[str, str]], restart: Sequence[int] = ()) -> int:
    """Runs one process for each environment, all at once, again while they end with 0 and codes of `restart`.

    Returns the largest of the last codes; a signal's is 128 and its number, as in a shell.
    """
    for _ in range(STARTS):
        running = [subprocess.Popen(command, env={**os.environ, **env}) for env in environments]
        codes = [code if (code := process.wait()) >= 0 else 128 - code for process in running]
        if not any(codes) or not all(code in (0, *restart) for code in codes):
            break
    return max(codes)


def _step(count: int) -> list[dict[str, str]]:
    """Variables by which JAX's processes find each other: Slurm's, for a step of `count` tasks on this machine."""
    job = os.environ.get("SLURM_JOB_ID", str(os.getpid()))
    step = {"SLURM_JOB_ID": job, "SLURM_STEP_ID": "0", "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": str(count)}
    return [{**step, "SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)} for i in range(count)]


def _sky(args: list[str], hosts: int) -> None:
    import yaml

    task = yaml.safe_load(Path(args[-1]).read_text())
    os.environ.update(dict([word.split("=", 1) for flag, word in itertools.pairwise(args) if flag == "--env"]))
    nodes = {"SKYPILOT_NUM_NODES": str(hosts), "SKYPILOT_NODE_IPS": "127.0.0.1\n" * hosts}
    if _together(["bash", "-c", task["setup"]], [{}]) == 0:
        ranks = [{**nodes, "SKYPILOT_NODE_RANK": str(i)} for i in range(hosts)]
        _together(["bash", "-c", task["run"]], ranks, task["resources"]["job_recovery"]["recover_on_exit_codes"])


def _kubectl(manifest: Path) -> None:
    import yaml

    for jobset in yaml.safe_load_all(manifest.read_text()):
        (group,) = jobset["spec"]["replicatedJobs"]
        job = group["template"]["spec"]
        (container,) = job["template"]["spec"]["containers"]
        (codes,) = (rule["onExitCodes"]["values"] for rule in job["podFailurePolicy"]["rules"] if "onExitCodes" in rule)
        hosts = min(group["replicas"] * job["completions"], HOSTS)
        command = [word.replace("$$", "$") for word in container["command"]]
        _together(command, _step(hosts) if hosts > 1 else [{}], codes)


def _gcloud_create(args: list[str], hosts: int) -> None:
    given = dict([word.split("=", 1) for word in args if word.startswith("--") and "=" in word])
    attributes = dict([pair.split("=", 1) for pair in given["--metadata"].split(",")])
    attributes["worker-network-endpoints"] = ",".join(["host:8470:127.0.0.1"] * hosts)
    told = [{"ATTRIBUTES": json.dumps({**attributes, "agent-worker-number": str(i)})} for i in range(hosts)]
    _together(["bash", given["--metadata-from-file"].partition("=")[2]], told)


def _sbatch(script: str, calls: Path) -> None:
    text = Path(script).read_text()
    (last,), (tasks,) = re.findall(r"^#SBATCH --array=0-(\d+)", text, re.M), re.findall(r" --ntasks=(\d+)", text)
    os.environ.update(SLURM_NTASKS=str(min(int(tasks), HOSTS)), SLURM_ARRAY_JOB_ID="1")
    for index, restart in itertools.product(range(int(last) + 1), range(STARTS)):
        if restart == 0 or '["scontrol"' in calls.read_text().splitlines()[-1]:  # requeued
            _together(["bash", script], [{"SLURM_ARRAY_TASK_ID": str(index), "SLURM_RESTART_COUNT": str(restart)}])


def main(program: str, args: list[str]) -> int:
    calls, hosts = Path(os.environ[FOLDER]) / "calls.jsonl", int(os.environ[COUNT])
    with calls.open("a") as f:
        f.write(json.dumps([program, *args]) + "\n")
    match program, args:
        case "sky", _:
            _sky(args, hosts)
        case "kubectl", ["apply", manifest]:
            _kubectl(Path(manifest.partition("=")[2]))
        case "gcloud", [_, _, _, "create", *_]:
            _gcloud_create(args, hosts)
        case "gcloud", [_, _, _, "describe", *_]:
            return 1  # there is none yet
        case "sbatch", [script]:
            _sbatch(script, calls)
        case "srun", _:
            command = list(itertools.dropwhile(lambda word: word.startswith("--"), args))
            return _together(command, _step(int(os.environ["SLURM_NTASKS"])))
        case "python3", ["-c", _]:
            return subprocess.run([sys.executable, *args]).returncode
        case "python3", ["-m", "venv" | "uv", *_] if "install" not in args:
            (Path(args[-1]) / "bin").mkdir(parents=True, exist_ok=True)
            _executable(Path(args[-1]) / "bin/python", (calls.parent / "bin/python3").read_text())
        case "curl", _:
            print(json.loads(os.environ["ATTRIBUTES"])[args[-1].rpartition("/")[2]])
        case "sleep", _:
            time.sleep(1)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
