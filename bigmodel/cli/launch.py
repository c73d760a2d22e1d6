"""Run a planned sweep on an engine: here, Slurm, SkyPilot, GKE or TPU VMs.

Writes the engine's scripts to RUNS/<sweep>/launch/, as plain text that can be read and edited, and passes them to the
engine's own client. Only runs without a result are launched. --config.run.KEY=VALUE is passed on to every run.

  local    a shell script: --max runs at once on this machine
  slurm    an sbatch array, requeued after a lost node, at the time limit, or when a worker asks for it
  sky      SkyPilot managed jobs on TPU slices
  gke      a JobSet for every row; Kueue's quota and not --max says how many run at once
  tpu-vm   --max queued resources, each of which goes through the rows that others don't hold

sky, gke and tpu-vm were rehearsed and checked against published schemas, but never executed in a cloud by us.
--rehearse runs an engine's text on this machine. It trains the rows, so give it a small sweep.

Examples:
  bigmodel launch runs/tiny --engine=gke --topology=v5p:2x2x2 --image=mine/bigmodel:1 --rehearse
  bigmodel launch runs/demo --engine=slurm --max=4 --processes=2 --time=24:00:00 --print
  bigmodel launch runs/demo --engine=sky --topology=v5p:8x8x8 --bucket=gs://mine/runs/demo \\
      --config.run.data_dir=gs://mine/data --print    # after `bigmodel upload` of the data and of runs/demo
"""

import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from bigmodel import cli, errors, launch
from bigmodel.errors import EXIT_RETRY, UsageError
from bigmodel.files import read_plan, writing

CONFIGURED, CLOUD = True, ("folder", "runs")
# Arguments that are passed on as they are.
FIELDS = ("processes", "cpus", "time", "notice", "gpus", "topology", "slices", "image", "queue", "zone")
ROW_FLOPS = 1e14  # of a row that a rehearsal trains: minutes on a CPU


def arguments(parser: cli.Parser) -> None:
    parser.add_argument("folder", help="the sweep's folder of runs, or its sweep file")
    parser.add_argument("--engine", required=True, help="local, slurm, sky, gke, tpu-vm, or a .py file like theirs")
    parser.add_argument("--print", action="store_true", help="print the scripts; write and start nothing")
    parser.add_argument("--rehearse", action="store_true", help="run the scripts here, with stand-ins for the engine")
    parser.add_argument("--runs", default="runs", help="folder of runs, local or in a bucket")
    parser.add_argument("--max", type=int, default=1, help="runs at once")
    parser.add_argument("--processes", type=int, default=1, help="processes of a run; slurm: nodes, one on each")
    parser.add_argument("--gpus", type=int, default=0, help="slurm: GPUs of a node, each with a process of its own")
    parser.add_argument("--cpus", type=int, default=1, help="slurm: CPUs of a process")
    parser.add_argument("--time", default="24:00:00", help="slurm: time limit of a run, HH:MM:SS")
    parser.add_argument("--notice", type=int, default=300, help="slurm: seconds before the limit at which runs save")
    option = "slurm: a further #SBATCH line; repeatable"
    parser.add_argument("--option", action="append", default=[], metavar="TEXT", help=option)
    parser.add_argument("--bucket", default="", metavar="gs://...", help="the sweep's folder in a bucket, for slices")
    parser.add_argument("--image", default="", help="gke: image of bigmodel, as the Dockerfile builds it")
    parser.add_argument("--queue", default="default", help="gke: Kueue's LocalQueue")
    parser.add_argument("--zone", default="", help="tpu-vm: Google Cloud's zone")
    cli.topology_arguments(parser)
    cli.device_arguments(parser)


def run(args: cli.Args, overrides: cli.Overrides) -> int:
    from bigmodel.launch import rehearse
    from bigmodel.study import status

    engine = launch.engine(args.engine)
    positive = dict.fromkeys(("max", "processes", "cpus", "notice", "slices"), "[1, inf)")
    errors.check_ranges("--", args, **positive, gpus="[0, inf)")
    folder: Any = status.folder_of(args.folder, args.runs)
    ids = unfinished(folder)
    if not ids:
        print(f"{folder}: every row is finished")
        return 0
    most = max(row.get("flops", 0) for row in read_plan(folder) if row["run_id"] in ids)
    if args.rehearse and most > ROW_FLOPS:
        text = "plan a small sweep for it, for instance with --config.train.steps=20"
        raise UsageError(f"launch --rehearse trains the rows on this machine, and one takes {most:.0e} FLOPs; {text}")
    if args.rehearse and engine.CLIENT not in (*rehearse.PROGRAMS, "bash"):
        raise UsageError(f"launch --rehearse: there is no stand-in for {engine.CLIENT!r}, so it would really be called")
    job = _job(args, overrides, folder, ids)
    files = engine.render(job)
    if args.bucket and "://" not in str(dict(overrides).get("run.data_dir", "")):
        where = f"{args.bucket.partition('://')[0]}://..."
        errors.note(
            "workers look for prepared data on their own disks; of data in a bucket "
            f"(`bigmodel upload DATA {where}`) say --config.run.data_dir={where}"
        )
    if args.print:
        for name, text in files.items():
            print(f"# ---- {name}\n{text}", end="")
        return 0
    if not args.rehearse and shutil.which(engine.CLIENT) is None:
        raise UsageError(f"launch: {engine.CLIENT!r}, which --engine={args.engine} calls, is not installed")
    home = Path(job.home)
    with writing(home):
        home.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (home / name).write_text(text, encoding="utf-8")
    if args.rehearse:
        return _rehearse(args.engine, engine.COMMAND, job, home / next(iter(files)))
    code = subprocess.run([engine.COMMAND, str(home / next(iter(files)))]).returncode
    return code if code >= 0 else EXIT_RETRY  # ended by a signal: finished rows stay, and launching again continues


def _rehearse(engine: str, command: str, job: launch.Job, script: Path) -> int:
    from bigmodel.launch import rehearse, tpus
    from bigmodel.study import status

    hosts = tpus.slice_of(engine, job).hosts * job.slices if job.topology else job.processes
    if hosts > rehearse.HOSTS:
        print(f"rehearsal: {rehearse.HOSTS} of the {hosts} hosts of a run take part")
    calls = rehearse.rehearse(command, script, hosts)
    for line in rehearse.summary(calls):
        print(f"rehearsal: {line}")
    left = set(unfinished(status.folder_of(job.folder, ""))) & set(job.ids)
    print(f"rehearsal: {len(job.ids) - len(left)} of {len(job.ids)} rows finished; what would have been called is in "
          f"{script.parent / 'rehearsal/calls.jsonl'}")  # fmt: skip
    return 1 if left else 0


def unfinished(folder: Any) -> tuple[str, ...]:
    """Ids of the plan's rows that have no whole result and are not superseded by a later plan."""
    from bigmodel.run import objects, record

    folder = objects.local(folder)
    ids = [row["run_id"] for row in read_plan(folder) if not row.get("superseded")]
    return tuple(run_id for run_id in ids if record.read_result(folder / run_id) is None)


def _job(args: cli.Args, overrides: cli.Overrides, folder: Any, ids: tuple[str, ...]) -> launch.Job:
    stored = "://" in str(folder)
    # Scripts and logs are on a disk, even if the runs are in a bucket.
    home = (Path("runs", folder.name) if stored else Path(folder)).resolve() / "launch"
    where = args.bucket.rstrip("/") or str(folder if stored else home.parent)
    try:
        f"{where}{home}".encode()
    except UnicodeEncodeError as e:
        raise UsageError(f"launch: the name of the folder {str(folder)!r} isn't UTF-8: rename it") from e
    program = getattr(launch.engine(args.engine), "PROGRAM", "")
    if not program and Path(sys.argv[0]).name == "__main__.py":
        program = f"{shlex.quote(sys.executable)} -m bigmodel"
    program = program or shlex.quote(str(Path(sys.argv[0]).resolve()))
    more = [f"--host-devices={args.host_devices}"] if args.host_devices else []
    for key, value in overrides:
        if not key.startswith("run."):
            raise UsageError(f"launch: --config.{key} would make other rows; only --config.run.KEY=VALUE is allowed")
        more.append(f"--config.{key}={value}")
    return launch.Job(
        folder=where,
        home=str(home),
        name=launch.job_name(home.parent.name),
        ids=ids,
        most=args.max,
        worker=f"{program} {shlex.join(['worker', where, *more])}",
        options=tuple(args.option),
        rehearsed=args.rehearse,
        **{key: getattr(args, key) for key in FIELDS},
    )
