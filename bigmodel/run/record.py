"""The record of a run: plain files.

A run's folder holds

    config.json      the frozen config
    metrics.jsonl    a row a logged step: everything that the seed determines, nothing that the clock does; each row of
                     this and the next two with its CRC-32
    speed.jsonl      tokens per second, MFU: what the clock says
    branches.jsonl   a row a decay off the trunk
    result.json      the outcome, written last and whole
    attempts.jsonl   a row each time that it was begun or continued
    error.json       instead, if the run failed
    start.txt        what it took from another run or from published weights, where it didn't start afresh
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import socket
import subprocess
import time
import zlib
from collections.abc import Sequence
from typing import IO, Any

from etils import epath

from bigmodel.errors import UsageError, note
from bigmodel.files import is_whole, sealed


def read_json(path: Any) -> Any:
    """The parsed file, without its checksum. None if there is none, or none that is whole: that is noted, and the
    caller does without.

    Raises:
      UsageError: it is there and can't be read.
    """
    try:
        found = json.loads(epath.Path(path).read_bytes())
        if not isinstance(found, dict):
            return found
        if is_whole(found):
            found.pop("crc32", None)
            return found
        why = "its checksum differs"
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, RecursionError) as e:
        why = str(e) or type(e).__name__
    except OSError as e:
        raise UsageError(f"can't read {str(path)!r}: {e.strerror or e}") from e
    note(f"{str(path)!r} is damaged ({why}): taken as not there")
    return None


def read_record(path: Any, keys: Sequence[str]) -> dict[str, Any] | None:
    """As `read_json`, of an object that has these keys."""
    found = read_json(path)
    if found is None:
        return None
    lacking = [key for key in keys if key not in found] if isinstance(found, dict) else keys
    if lacking:
        note(f"{str(path)!r} lacks {lacking[0]!r}: taken as not there")
        return None
    return found  # type: ignore[no-any-return]


def read_result(folder: Any) -> dict[str, Any] | None:
    """A finished run's result.json; None where there is none that is whole."""
    keys = ("run_id", "status", "steps", "params", "tokens", "flops", "loss", "wall_seconds")
    return read_record(epath.Path(folder) / "result.json", keys)


def read_error(folder: Any) -> str:
    """Why a run failed; "" where it didn't."""
    found = read_record(epath.Path(folder) / "error.json", ("error",))
    return str(found["error"]) if found else ""


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


def write_record(path: Any, value: dict[str, Any]) -> None:
    """`write_json` with a checksum, by which `read_json` tells a changed byte."""
    write_json(path, sealed(json.loads(json.dumps(value))))


def read_rows(path: Any, keys: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Rows of a .jsonl up to the first line that is torn or damaged, or lacks one of `keys`."""
    try:
        lines = epath.Path(path).read_bytes().split(b"\n")
    except (FileNotFoundError, NotADirectoryError):
        return []
    rows = []
    for line in lines:
        try:
            row = json.loads(line.decode())
        except (ValueError, RecursionError):
            break
        if not isinstance(row, dict) or not isinstance(row.get("step"), int) or not is_whole(row):
            break
        if not row.keys() >= set(keys):
            break
        row.pop("crc32", None)
        rows.append(row)
    return rows


def fail(folder: Any, text: str) -> None:
    """Leaves error.json: the run failed, and isn't tried again unasked."""
    epath.Path(folder).mkdir(parents=True, exist_ok=True)
    write_record(epath.Path(folder) / "error.json", {"error": text, "date": now()})


def add_attempt(folder: Any, step: int, processes: int, devices: int) -> None:
    """A row of attempts.jsonl: when and where a run was begun or continued, and from which step."""
    row = {"step": step, "date": now(), "host": socket.gethostname(), "pid": os.getpid()}
    row |= {"processes": processes, "devices": devices}
    path = epath.Path(folder) / "attempts.jsonl"
    old = path.read_bytes().decode(errors="replace") if path.exists() else ""
    write_text(path, f"{old[: old.rfind(chr(10)) + 1]}{json.dumps(row)}\n")


def last_row(path: Any) -> dict[str, Any] | None:
    """The last whole row of a .jsonl, without reading what is before; a damaged one is noted, a torn last line not."""
    path = epath.Path(path)
    if "://" in str(path):
        rows = read_rows(path)
        return rows[-1] if rows else None
    try:
        with open(path, "rb") as f:
            f.seek(max(0, f.seek(0, os.SEEK_END) - 8192))
            lines = f.read().split(b"\n")
    except (FileNotFoundError, NotADirectoryError):
        return None
    for number, line in enumerate(reversed(lines)):
        with contextlib.suppress(ValueError, RecursionError):
            # A row without its line's end is whole where its checksum says so.
            found, _ = json.JSONDecoder().raw_decode(line.decode(errors="replace"))
            if isinstance(found, dict) and isinstance(found.get("step"), int) and is_whole(found):
                found.pop("crc32", None)
                return found
        if number:
            note(f"{str(path)!r} is damaged in its last rows: taken without them")
    return None


class Rows:
    """An append-only .jsonl that a resume cuts back to its step: row for row what no kill would have left."""

    def __init__(
        self,
        path: Any,
        step: int,
        claim: Sequence[int] | None = None,
        needed: bool = False,
        keys: Sequence[str] = (),
    ):
        """Args:
          step: of the checkpoint that goes on.
          claim: what `claim` told when it was saved; None: nothing.
          needed: whether something is computed from these rows; else damage is noted, and the run goes on.
          keys: that each row has.

        Raises:
          UsageError: rows that are needed are damaged.
        """
        self.path = epath.Path(path)
        kept = [r for r in read_rows(self.path, keys) if r["step"] <= step]
        self.lines = [json.dumps(sealed(r)) for r in kept]
        self.step = self.count = self.crc32 = 0
        for row, line in zip(kept, self.lines, strict=True):
            self._took(row["step"], line.encode())
            if claim and self.count == claim[0] and self.crc32 == claim[1]:
                claim = None  # rows after these, as of branches at that very step, are newer than the checkpoint
        if claim and claim[0]:
            text = f"{str(self.path)!r} is damaged: its rows to step {step} aren't those that the checkpoint has noted"
            if needed:
                raise UsageError(f"{text}, and the run's result depends on them; remove its folder to train it again")
            note(f"{text}; the run goes on, and this record has holes")
        self.local = "://" not in str(path)
        self.file: IO[bytes] | None = None
        if self.local:
            write_text(self.path, "".join(line + "\n" for line in self.lines))
            # Unbuffered: no row waits in memory for a disk that has become full.
            self.file = open(self.path, "ab", buffering=0)  # noqa: SIM115 (kept open for the run)

    def _took(self, step: int, data: bytes) -> None:
        self.step, self.count, self.crc32 = step, self.count + 1, zlib.crc32(data, self.crc32)

    def claim(self, step: int) -> list[int] | None:
        """(rows, their CRC-32) until `step`, for its checkpoint; None where there are later ones."""
        return [self.count, self.crc32] if self.step <= step else None

    def add(self, row: dict[str, Any]) -> None:
        data = json.dumps(sealed(row), allow_nan=False).encode()
        self._took(row["step"], data)
        if self.file is not None:
            data += b"\n"
            while data:  # the last blocks of a disk may take a part, and the rest raises
                data = data[self.file.write(data) :]
        else:
            self.lines.append(data.decode())

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


MOST_DIFF = 2**20  # bytes that are recorded of a diff, and of one new file; twice as much in all


@functools.cache
def git_state() -> dict[str, Any]:
    """{'git_sha', 'git_diff'} of the working folder's repository against HEAD, None outside one: as first asked, when
    the process has just loaded that code. Never raises: what can't be read or is too long is noted in the diff."""

    def git(*args: str) -> bytes | None:
        try:
            out = subprocess.run(["git", *args], capture_output=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return out.stdout if out.returncode == 0 else None

    def bounded(text: bytes, size: int) -> str:
        more = f"\n({size - MOST_DIFF:,} more bytes are left out)\n" if size > MOST_DIFF else ""
        return text[:MOST_DIFF].decode(errors="replace") + more

    sha = git("rev-parse", "HEAD")
    if sha is None:
        return {"git_sha": None, "git_diff": None}
    changes = git("diff", "HEAD")
    diff = "(git diff failed: changes are not recorded)\n" if changes is None else bounded(changes, len(changes))
    # A new experiment or family that isn't in git yet is part of what ran.
    new = (git("ls-files", "-z", "--others", "--exclude-standard", "*.py") or b"").split(b"\0")[:-1]
    for number, name in enumerate(new):
        if len(diff) > 2 * MOST_DIFF:
            diff += f"({len(new) - number:,} more new files are left out)\n"
            break
        shown = f"new file {os.fsdecode(name)!r}"
        try:
            if not os.path.isfile(name):
                raise FileNotFoundError(errno.ENOENT, "no regular file")
            with open(name, "rb") as f:
                diff += f"{shown}\n{bounded(f.read(MOST_DIFF), os.fstat(f.fileno()).st_size)}\n"
        except OSError as e:
            diff += f"{shown} is left out: {e.strerror}\n"
    return {"git_sha": sha.decode(errors="replace").strip(), "git_diff": diff}


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
