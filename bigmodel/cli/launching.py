"""The verbs that hand a sweep to an engine, and its data to a bucket."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from etils import epath

from bigmodel import launch
from bigmodel.errors import EXIT_RETRY, Retry, UsageError
from bigmodel.files import read_plan, read_text, writing
from bigmodel.run import record
from bigmodel.study import status

CLIENTS = {"slurm": "sbatch", "sky": "sky"}


def launch_sweep(args: argparse.Namespace, overrides: Any) -> int:
    engine = launch.engine(args.engine)
    for name in ("max", "processes", "cpus", "notice"):
        if getattr(args, name) < 1:
            raise UsageError(f"--{name}={getattr(args, name)}: must be at least 1")
    folder: Any = status.folder_of(args.folder, args.runs)
    ids = unfinished(folder)
    if not ids:
        print(f"{folder}: every row is finished")
        return 0
    stored = "://" in str(folder)
    folder = folder if stored else Path(folder).resolve()
    # Scripts and logs lie on a disk, whatever holds the runs.
    home = Path("runs", folder.name, "launch").resolve() if stored else folder / "launch"
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
    with writing(home):
        home.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (home / name).write_text(text, encoding="utf-8")
    code = subprocess.run(engine.command(job, str(home / next(iter(files))))).returncode
    return code if code >= 0 else EXIT_RETRY  # ended by a signal: finished rows stay, and launching again goes on


def unfinished(folder: Any) -> tuple[str, ...]:
    """Ids of the plan's rows without a whole result, but for those that a later plan superseded."""
    ids = [row["run_id"] for row in read_plan(folder) if not row.get("superseded")]
    return tuple(run_id for run_id in ids if record.read_result(folder / run_id) is None)


def upload(args: argparse.Namespace, _: Any) -> int:
    source = Path(args.folder)
    target = epath.Path(args.target) / source.resolve().name
    if (source / "plan.jsonl").is_file():
        read_plan(epath.Path(source))  # whole?
        last, files = source / "plan.jsonl", []
    elif (source / "manifest.json").is_file():
        last = source / "manifest.json"
        files = sorted(p for p in source.iterdir() if p.is_file() and p != last and not p.name.startswith("."))
        for name, digest in _digests(last):
            path = source / name
            with path.open("rb") if path.is_file() else contextlib.nullcontext() as f:
                if f is None or hashlib.file_digest(f, "sha256").hexdigest() != digest:
                    how = "damaged" if f else "missing"
                    raise UsageError(f"upload: {str(path)!r} is {how}: remove {str(last)!r} and prepare it again")
    else:
        raise UsageError(f"upload: {args.folder!r} has no manifest.json of `bigmodel prepare` and no plan.jsonl")
    try:
        if (target / last.name).exists() and (target / last.name).read_bytes() == last.read_bytes():
            print(f"{target}: there already")
            return 0
        target.mkdir(parents=True, exist_ok=True)
        for path in (*files, last):
            epath.Path(path).copy(target / path.name, overwrite=True)
            there, size = (target / path.name).stat().length, path.stat().st_size
            if there != size:
                raise Retry(f"{target / path.name} has {there:,} of {size:,} bytes; the same command continues")
    except (FileNotFoundError, PermissionError) as e:
        raise UsageError(f"can't write {str(target)!r}: {e}") from e
    except OSError as e:
        raise Retry(f"can't write {str(target)!r} ({e}); the same command begins again") from e
    print(f"{target}: {len(files) + 1} files, {sum(p.stat().st_size for p in (*files, last)):,} bytes")
    return 0


def _digests(path: Path) -> list[tuple[str, str]]:
    """(file, its SHA-256) of those that a manifest lists, whatever was prepared."""
    try:
        manifest = json.loads(read_text(path, "manifest"))
        found = list(manifest.get("files", {}).items())
        for name, split in manifest.get("splits", {}).items():
            found += [(shard["file"], shard["sha256"]) for shard in split.get("shards", [])]
            found += [(f"{name}.npz", split["sha256"])] if "sha256" in split else []
        if not found:
            raise ValueError("it lists no files")
        return found
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise UsageError(f"{str(path)!r} is not a manifest of `bigmodel prepare`: {type(e).__name__}: {e}") from e
