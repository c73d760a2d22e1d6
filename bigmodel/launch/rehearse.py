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
from collections import Counter
from pathlib import Path
from typing import Any

from bigmodel import files

PROGRAMS = ("sky", "kubectl", "gcloud", "sbatch", "srun", "scontrol", "python3", "curl", "sleep")
HOSTS, RESTARTS = 2, 3  # at most
FOLDER = "BIGMODEL_REHEARSAL"  # the variable that names the folder of this rehearsal


def rehearse(command: str, script: Path, hosts: int) -> list[list[str]]:
    """Runs `command script` among stand-ins, to the end of all that it started; returns their calls.

    Args:
      hosts: of one slice; the stand-ins start two of them at most.
    """
    folder = script.parent / "rehearsal"
    (folder / "bin").mkdir(parents=True, exist_ok=True)
    (folder / "calls.jsonl").write_text("")
    python = shlex.quote(sys.executable)
    programs = {name: f"{python} -m {__name__} {name}" for name in PROGRAMS} | {"bigmodel": f"{python} -m bigmodel"}
    for name, text in programs.items():
        (folder / "bin" / name).write_text(f'#!/bin/sh\nexec {text} "$@"\n')
        (folder / "bin" / name).chmod(0o755)
    here = str(Path(__file__).parents[2])
    env = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "SKYPILOT_", "TPU_"))}
    env |= {
        "PATH": f"{folder / 'bin'}:{env['PATH']}",
        "PYTHONPATH": ":".join(filter(None, (here, env.get("PYTHONPATH")))),
        "HOME": str(folder),
        "BIGMODEL_CACHE": str(files.cache_folder()),
        "JAX_PLATFORMS": "cpu",
        FOLDER: str(folder),
        "BIGMODEL_REHEARSAL_HOSTS": str(min(hosts, HOSTS)),
    }
    subprocess.run([command, str(script)], env=env, check=False)
    return [json.loads(line) for line in (folder / "calls.jsonl").read_text().splitlines()]


def summary(calls: list[list[str]]) -> list[str]:
    """'6 x sky jobs launch', ...: the calls by their program and first plain words."""
    words = [re.match(r"\S+( -m \w+)?( [a-z][a-z-]*){0,4}", shlex.join(call)) for call in calls]
    return [f"{n} x {text}" for text, n in Counter(w.group() for w in words if w).items()]


def together(command: list[str], environments: list[dict[str, str]]) -> list[int]:
    """Exit codes of a command's processes, all at once, as Python gives them shells': 128 + the signal."""
    running = [subprocess.Popen(command, env={**os.environ, **env}) for env in environments]
    return [code if (code := process.wait()) >= 0 else 128 - code for process in running]


def again(codes: list[int], restart: list[int]) -> bool:
    return any(codes) and all(code in (0, *restart) for code in codes)


def slurm(count: int) -> list[dict[str, str]]:
    """Variables by which JAX's processes find each other: Slurm's, for a step of `count` tasks on this machine."""
    job = os.environ.get("SLURM_JOB_ID", str(os.getpid()))
    step = {"SLURM_JOB_ID": job, "SLURM_STEP_ID": "0", "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": str(count)}
    return [{**step, "SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)} for i in range(count)]


def sky(args: list[str], hosts: int) -> int:
    import yaml

    task: dict[str, Any] = yaml.safe_load(Path(args[-1]).read_text())
    for flag, word in itertools.pairwise(args):
        if flag == "--env":
            name, _, value = word.partition("=")
            os.environ[name] = value
    if subprocess.run(["bash", "-c", task["setup"]]).returncode:
        return 1
    nodes = {"SKYPILOT_NUM_NODES": str(hosts), "SKYPILOT_NODE_IPS": "127.0.0.1\n" * hosts}
    environments = [{**nodes, "SKYPILOT_NODE_RANK": str(i)} for i in range(hosts)]
    restart = task["resources"]["job_recovery"]["recover_on_exit_codes"]
    for _ in range(RESTARTS):
        if not again(together(["bash", "-c", task["run"]], environments), restart):
            break
    return 0


def kubectl(args: list[str]) -> int:
    import yaml

    if args[0] != "apply":
        return 0
    for jobset in yaml.safe_load_all(Path(args[1].partition("=")[2]).read_text()):
        (group,) = jobset["spec"]["replicatedJobs"]
        job = group["template"]["spec"]
        (container,) = job["template"]["spec"]["containers"]
        command = [word.replace("$$", "$") for word in container["command"]]
        (codes,) = (rule["onExitCodes"] for rule in job["podFailurePolicy"]["rules"] if "onExitCodes" in rule)
        hosts = min(group["replicas"] * job["completions"], HOSTS)
        for _ in range(RESTARTS):
            if not again(together(command, slurm(hosts) if hosts > 1 else [{}]), codes["values"]):
                break
    return 0


def gcloud(args: list[str], hosts: int) -> int:
    if "describe" in args:
        return 1  # there is none yet
    if "create" in args:
        given = dict(word.split("=", 1) for word in args if word.startswith("--") and "=" in word)
        attributes = dict(pair.split("=", 1) for pair in given["--metadata"].split(","))
        attributes["worker-network-endpoints"] = ",".join(f"host:8470:127.0.0.{i + 1}" for i in range(hosts))
        script = given["--metadata-from-file"].partition("=")[2]
        told = [{"ATTRIBUTES": json.dumps({**attributes, "agent-worker-number": str(i)})} for i in range(hosts)]
        together(["bash", script], told)
    return 0


def sbatch(args: list[str], calls: Path) -> int:
    text = Path(args[0]).read_text()
    (last,), (tasks,) = re.findall(r"^#SBATCH --array=0-(\d+)", text, re.M), re.findall(r" --ntasks=(\d+)", text)
    os.environ.update(SLURM_NTASKS=str(min(int(tasks), HOSTS)), SLURM_ARRAY_JOB_ID="1")
    for index in range(int(last) + 1):
        for restart in range(RESTARTS):
            os.environ.update(SLURM_ARRAY_TASK_ID=str(index), SLURM_RESTART_COUNT=str(restart))
            subprocess.run(["bash", args[0]])
            if '["scontrol"' not in calls.read_text().splitlines()[-1]:
                break
    return 0


def python3(args: list[str], calls: Path) -> int:
    if args[0] == "-c":
        return subprocess.run([sys.executable, *args]).returncode
    if "venv" in args:
        (Path(args[-1]) / "bin").mkdir(parents=True, exist_ok=True)
        (Path(args[-1]) / "bin/python").write_text((calls.parent / "bin/python3").read_text())
        (Path(args[-1]) / "bin/python").chmod(0o755)
    return 0


def main(program: str, args: list[str]) -> int:
    calls, hosts = Path(os.environ[FOLDER]) / "calls.jsonl", int(os.environ["BIGMODEL_REHEARSAL_HOSTS"])
    with calls.open("a") as f:
        f.write(json.dumps([program, *args]) + "\n")
    match program:
        case "sky":
            return sky(args, hosts)
        case "kubectl":
            return kubectl(args)
        case "gcloud":
            return gcloud(args, hosts)
        case "sbatch":
            return sbatch(args, calls)
        case "srun":
            command = args[next(i for i, word in enumerate(args) if not word.startswith("--")) :]
            return max(together(command, slurm(int(os.environ["SLURM_NTASKS"]))))
        case "python3":
            return python3(args, calls)
        case "curl":
            print(json.loads(os.environ["ATTRIBUTES"]).get(args[-1].rpartition("/")[2], ""))
        case "sleep":
            return subprocess.run(["sleep", "1"], env={**os.environ, "PATH": "/usr/bin:/bin"}).returncode
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
