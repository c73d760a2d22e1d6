"""Data made from a finished run: features, units, codes, a teacher's logits.

A row of a sweep names the experiment and the maker, a Python file with

    def info(config): ...      data.Info of what it will make, from the run's finalised config
    def make(run, out): ...    writes the data set of the finished run's folder `run` into the folder `out`

The data set is named by the hash of the run and of the maker's text. It is made once, by whichever process comes first,
and is then read like any prepared data, by the row's own source. Its sizes are known from `info` before it is made, so
that the whole sweep is planned at once.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from bigmodel import config, data, files
from bigmodel.errors import Unavailable, UsageError
from bigmodel.run import claims, record
from bigmodel.study.algebra import Row


def maker_of(spec: Any, sweep: str) -> str:
    """The absolute path of a maker: as given, or beside the sweep file that names it."""
    if not isinstance(spec, str | Path):
        raise UsageError(f"derive: {spec!r} is not the path of a file with info() and make()")
    beside = Path(sweep).resolve().parent / spec
    return str((beside if beside.is_file() else Path(spec)).absolute())


def _load(maker: str) -> Any:
    module = config.load_module(maker, "maker")
    return config.check_exports(module, f"maker file {maker!r}", ("info", "make"))


def name_of(maker: str, run_id: str) -> str:
    """'derived-' and 12 hex digits."""
    text = run_id.encode() + Path(maker).read_bytes()
    return f"derived-{hashlib.sha256(text).hexdigest()[:12]}"


def promise(maker: str, run_id: str, run_config: Any) -> str:
    """The name of the data set that a maker will make of a run; until it is there, its sizes are what `info` says."""
    with config.user_code(maker, "maker", "info()"):
        info = _load(maker).info(run_config)
    if not isinstance(info, data.Info):
        raise UsageError(f"maker file {maker!r}: info() returned {type(info).__name__}, not a bigmodel.data.Info")
    name = name_of(maker, run_id)
    data.PROMISED[name] = info
    return name


def make(overrides: Row, folder: Any, data_dir: str) -> None:
    """Makes the data set that a planned row reads, if it is derived and isn't there yet.

    Args:
      overrides: the row's, as planned.
      folder: the sweep's folder of runs.
      data_dir: where data sets are, on a disk.

    Raises:
      Busy: another process makes it. Unavailable, UsageError: the run isn't finished; the maker fails.
    """
    if "derive" not in overrides:
        return
    run_id, maker = overrides["derive"]
    name = name_of(maker, run_id)
    home, part = Path(data_dir) / name, Path(data_dir) / f".{name}.part"
    if (home / "manifest.json").exists():
        return
    if record.read_result(folder / run_id) is None:
        raise Unavailable(f"derive: run {run_id}, of which the data is made, has no result yet")
    with files.writing(part):
        part.parent.mkdir(parents=True, exist_ok=True)
        lock = Path(data_dir) / f".{name}.lock"
        lock.mkdir(exist_ok=True)
    claim = claims.claim(lock)
    try:
        if (home / "manifest.json").exists():
            return
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        with config.user_code(maker, "maker", "make()"):
            _load(maker).make(str(folder / run_id), str(part))
        _write_manifest(part, name, run_id, maker)
        part.rename(home)
    finally:
        claim.close()


def _write_manifest(part: Path, name: str, run_id: str, maker: str) -> None:
    """Adds to the maker's own manifest, if it wrote one, the name as its hash, and the digest of each file."""
    path = part / "manifest.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"format": 1}
    digests = {}
    for file in sorted(part.rglob("*")):
        if file.is_file() and file != path:
            with open(file, "rb") as f:
                digests[file.relative_to(part).as_posix()] = hashlib.file_digest(f, "sha256").hexdigest()
    found |= {"hash": name, "files": {**digests, **found.get("files", {})}, "derived": {"run": run_id, "maker": maker}}
    path.write_text(json.dumps(files.sealed(found), indent=1) + "\n")
