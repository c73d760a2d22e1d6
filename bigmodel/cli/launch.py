"""Run a planned sweep on an engine: a shell script, Slurm or SkyPilot.

Writes the engine's scripts to RUNS/<sweep>/launch/, as plain text that can be read and edited, and passes them to the
engine's own client. Only runs without a result are launched. --config.run.KEY=VALUE is passed on to every run.

  local    a shell script: --max runs at once on this machine
  slurm    an sbatch array, requeued after a lost node, at the time limit, or when a worker asks for it
  sky      SkyPilot managed jobs on TPU slices: checked against its schema, but never executed by us

Examples:
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


def arguments(parser: cli.Parser) -> None:
    parser.add_argument("folder", help="the sweep's folder of runs, or its sweep file")
    parser.add_argument("--engine", required=True, help="local, slurm, sky, or a .py file like theirs")
    parser.add_argument("--print", action="store_true", help="print the scripts; write and start nothing")
    parser.add_argument("--runs", default="runs", help="folder of runs, local or gs://")
    parser.add_argument("--max", type=int, default=1, help="runs at once")
    parser.add_argument("--processes", type=int, default=1, help="processes of a run; slurm: one per node")
    parser.add_argument("--cpus", type=int, default=1, help="slurm: CPUs of a process")
    parser.add_argument("--time", default="24:00:00", help="slurm: time limit of a run, HH:MM:SS")
    parser.add_argument("--notice", type=int, default=300, help="slurm: seconds before the limit at which runs save")
    option = "slurm: a further #SBATCH line; repeatable"
    parser.add_argument("--option", action="append", default=[], metavar="TEXT", help=option)
    parser.add_argument("--bucket", default="", metavar="gs://...", help="sky: the sweep's folder in a bucket")
    cli.topology_arguments(parser)
    cli.device_arguments(parser)


def run(args: cli.Args, overrides: cli.Overrides) -> int:
    from bigmodel.study import status

    engine = launch.engine(args.engine)
    errors.check_ranges("--", args, **dict.fromkeys(("max", "processes", "cpus", "notice"), "[1, inf)"))
    folder: Any = status.folder_of(args.folder, args.runs)
    ids = unfinished(folder)
    if not ids:
        print(f"{folder}: every row is finished")
        return 0
    job = _job(args, overrides, folder, ids)
    files = engine.render(job)
    if args.print:
        for name, text in files.items():
            print(f"# ---- {name}\n{text}", end="")
        return 0
    if shutil.which(engine.CLIENT) is None:
        raise UsageError(f"launch: {engine.CLIENT!r}, which --engine={args.engine} calls, is not installed")
    home = Path(job.home)
    with writing(home):
        home.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (home / name).write_text(text, encoding="utf-8")
    code = subprocess.run([engine.COMMAND, str(home / next(iter(files)))]).returncode
    return code if code >= 0 else EXIT_RETRY  # ended by a signal: finished rows stay, and launching again continues


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
    program = "bigmodel" if args.engine == "sky" else shlex.quote(str(Path(sys.argv[0]).resolve()))
    if args.engine != "sky" and Path(sys.argv[0]).name == "__main__.py":
        program = f"{shlex.quote(sys.executable)} -m bigmodel"
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
        **{key: getattr(args, key) for key in ("processes", "cpus", "time", "notice", "topology", "slices")},
    )
