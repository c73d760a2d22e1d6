"""The verb that hands a sweep to an engine. Layer 6; without JAX."""

from __future__ import annotations

import argparse
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from bigmodel import config, launch, status
from bigmodel.config import EXIT_RETRY, UsageError

CLIENTS = {"slurm": "sbatch", "sky": "sky"}


def launch_sweep(args: argparse.Namespace, overrides: Any) -> int:
    engine = launch.engine(args.engine)
    for name in ("max", "processes", "cpus", "notice"):
        if getattr(args, name) < 1:
            raise UsageError(f"--{name}={getattr(args, name)}: must be at least 1")
    folder = status.folder_of(args.folder, args.runs)
    ids = launch.unfinished(folder)
    if not ids:
        print(f"{folder}: every row is finished")
        return 0
    stored = "://" in str(folder)
    folder = folder if stored else folder.resolve()
    # Scripts and logs lie on a disk, whatever holds the runs.
    home = Path("runs", folder.name, "launch").resolve() if stored else Path(folder) / "launch"
    where = args.bucket.rstrip("/") or str(folder)
    try:
        f"{where}{home}".encode()
    except UnicodeEncodeError as e:
        raise UsageError(f"launch: the folder {str(folder)!r} has a name that isn't UTF-8: rename it") from e
    program = "bigmodel" if args.engine == "sky" else shlex.quote(str(Path(sys.argv[0]).resolve()))
    if args.engine != "sky" and Path(sys.argv[0]).name == "__main__.py":
        program = f"{shlex.quote(sys.executable)} -m bigmodel"
    more = [f"--host-devices={args.host_devices}"] if args.host_devices else []
    for key, value in overrides:
        if not key.startswith("run."):
            raise UsageError(f"launch: --config.{key} would make other rows; only --config.run.KEY=VALUE")
        more.append(f"--config.{key}={value}")
    job = launch.Job(
        folder=where,
        home=str(home),
        name=launch.job_name(folder.name),
        ids=ids,
        most=args.max,
        processes=args.processes,
        worker=f"{program} {shlex.join(['worker', where, *more])}",
        cpus=args.cpus,
        time=args.time,
        notice=args.notice,
        options=tuple(args.option),
        topology=args.topology,
        slices=args.slices,
    )
    files = engine.render(job)
    if args.print:
        for name, text in files.items():
            print(f"# ---- {name}\n{text}", end="")
        return 0
    client = CLIENTS.get(args.engine, "")
    if client and shutil.which(client) is None:
        raise UsageError(f"launch: {args.engine}'s client {client!r} isn't on this machine; --print shows the text")
    with config.writing(home):
        home.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (home / name).write_text(text, encoding="utf-8")
    code = subprocess.run(engine.command(job, str(home / next(iter(files))))).returncode
    return code if code >= 0 else EXIT_RETRY  # ended by a signal: finished rows stay, and launching again goes on
