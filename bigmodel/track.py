"""The record of a run: plain files. Layer 1.

A run's folder holds

    config.json      the frozen config
    metrics.jsonl    a row a logged step: everything that the seed determines, nothing that the clock does
    speed.jsonl      tokens per second, MFU: what the clock says
    result.json      the outcome, written last and whole
    attempts.jsonl   a row each time that it was begun or continued
    error.json       instead, if the run failed
    start.txt        what it took from another run or from published weights, where it didn't start afresh
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import socket
import subprocess
import time
from pathlib import Path
from typing import IO, Any

from etils import epath


def read_json(path: Any) -> Any:
    """The parsed file, or None if there is none or it is not whole."""
    try:
        return json.loads(epath.Path(path).read_text())
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return None


def write_text(path: Any, text: str) -> None:
    """Atomic: a reader sees the old file or the new one, and a full disk leaves the old."""
    path = epath.Path(path)
    temporary = path.parent / f".{path.name}.{os.getpid()}.tmp"
    try:
        temporary.write_text(text)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Any, value: Any) -> None:
    """Atomic, as `write_text`."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n")


def read_rows(path: Any) -> list[dict[str, Any]]:
    """Rows of a .jsonl; a torn last line is left out."""
    try:
        lines = epath.Path(path).read_text().splitlines()
    except (FileNotFoundError, NotADirectoryError):
        return []
    rows = []
    for line in lines:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def fail(folder: Any, text: str) -> None:
    """Leaves error.json: the run failed, and isn't tried again unasked."""
    epath.Path(folder).mkdir(parents=True, exist_ok=True)
    write_json(epath.Path(folder) / "error.json", {"error": text, "date": now()})


def add_attempt(folder: Any, step: int, processes: int, devices: int) -> None:
    """A row of attempts.jsonl: when and where a run was begun or continued, and from which step."""
    row = {"step": step, "date": now(), "host": socket.gethostname(), "pid": os.getpid()}
    row |= {"processes": processes, "devices": devices}
    path = epath.Path(folder) / "attempts.jsonl"
    rows = [*read_rows(path), row]
    write_text(path, "".join(json.dumps(r) + "\n" for r in rows))


def last_row(path: Any) -> dict[str, Any] | None:
    """The last whole row of a .jsonl, without reading what is before."""
    path = epath.Path(path)
    if "://" in str(path):
        rows = read_rows(path)
        return rows[-1] if rows else None
    try:
        with open(path, "rb") as f:
            f.seek(max(0, f.seek(0, os.SEEK_END) - 8192))
            lines = f.read().splitlines()
    except (FileNotFoundError, NotADirectoryError):
        return None
    for line in reversed(lines):
        with contextlib.suppress(ValueError):
            found: dict[str, Any] = json.loads(line)
            return found
    return None


class Rows:
    """An append-only .jsonl that a resume cuts back to its step: row for row what no kill would have left."""

    def __init__(self, path: Any, step: int):
        self.path = epath.Path(path)
        kept = [r for r in read_rows(self.path) if r["step"] <= step]
        self.local = "://" not in str(path)
        self.lines = [json.dumps(r) for r in kept]
        self.file: IO[bytes] | None = None
        if self.local:
            write_text(self.path, "".join(line + "\n" for line in self.lines))
            # Unbuffered: no row waits in memory for a disk that has become full.
            self.file = open(self.path, "ab", buffering=0)  # noqa: SIM115 (kept open for the run)

    def add(self, row: dict[str, Any]) -> None:
        if self.file is not None:
            data = (json.dumps(row, allow_nan=False) + "\n").encode()
            while data:  # the last blocks of a disk may take a part, and the rest raises
                data = data[self.file.write(data) :]
        else:
            self.lines.append(json.dumps(row))

    def last(self, key: str, default: float) -> float:
        """Of the rows that were there before: the latest value that isn't null."""
        found = (r[key] for r in map(json.loads, reversed(self.lines)) if r.get(key) is not None)
        return next(found, default)

    def flush(self) -> None:
        """On disk when this returns: called before a checkpoint that claims these rows."""
        if self.file is not None:
            os.fsync(self.file.fileno())
        else:  # object stores don't append
            self.path.write_text("".join(line + "\n" for line in self.lines))

    def close(self) -> None:
        self.flush()
        if self.file is not None:
            self.file.close()


@functools.cache
def git_state() -> dict[str, Any]:
    """{'git_sha', 'git_diff'} of the working folder's repository against HEAD, None outside one: as first asked, when
    the process has just loaded that code."""

    def git(*args: str) -> str | None:
        try:
            out = subprocess.run(["git", *args], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return out.stdout if out.returncode == 0 else None

    sha = git("rev-parse", "HEAD")
    diff = git("diff", "HEAD") if sha else None
    if diff is not None:  # a new experiment or family that isn't in git yet is part of what ran
        for name in (git("ls-files", "--others", "--exclude-standard", "*.py") or "").splitlines():
            diff += f"new file {name}\n{Path(name).read_text(errors='replace')}\n"
    return {"git_sha": sha and sha.strip(), "git_diff": diff}


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
