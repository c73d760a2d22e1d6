"""The record of a run: plain files.

A run's folder holds

    config.json      the frozen config
    metrics.jsonl    a row for each logged step, with a CRC-32: only what the seed determines
    speed.jsonl      tokens per second and MFU, with CRC-32s: what the clock says
    branches.jsonl   a row for each decay off the trunk, with CRC-32s
    result.json      the outcome, written last and atomically
    attempts.jsonl   a row for each start or resume
    error.json       instead of a result, if the run failed
    start.txt        what was taken from another run or from published weights
"""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import json
import os
import socket
import subprocess
import time
import zlib
from collections.abc import Sequence
from typing import IO, Any

from etils import epath

from bigmodel import files
from bigmodel.errors import UsageError, note
from bigmodel.files import parse_sealed, sealed


def read_json(path: Any, keys: Sequence[str] = ()) -> Any:
    """The parsed file, without its checksum. None where there is none, or a damaged one: the latter is noted.

    Args:
      keys: that the object must have.

    Raises:
      UsageError: it is there and can't be read.
    """
    try:
        found = parse_sealed(epath.Path(path).read_bytes())
        lacking = [key for key in keys if not isinstance(found, dict) or key not in found]
        if not lacking:
            return found
        why = f"it lacks {lacking[0]!r}"
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as e:
        why = str(e)
    except OSError as e:
        if files.of_store(e):
            raise
        raise UsageError(f"can't read {str(path)!r}: {e.strerror or e}") from e
    note(f"{str(path)!r} is damaged ({why}): taken as not there")
    return None


CONVERTED = "converted"  # the status of a run that is published weights, and was not trained here


def read_result(folder: Any) -> dict[str, Any] | None:
    """A finished run's result.json; None where there is none that is whole."""
    keys = ("run_id", "status", "steps", "params", "tokens", "flops", "loss", "wall_seconds")
    return read_json(epath.Path(folder) / "result.json", keys)  # type: ignore[no-any-return]


def read_error(folder: Any) -> str:
    """Why a run failed; "" where it didn't."""
    found = read_json(epath.Path(folder) / "error.json", ("error",))
    return str(found["error"]) if found else ""


def write_bytes(path: Any, content: bytes) -> None:
    """Atomic: a reader sees the old file or the new one, and a full disk leaves the old."""
    path = epath.Path(path)
    if "://" in str(path):  # a store replaces an object whole, and can't rename
        path.write_bytes(content)
        return
    temporary = path.parent / f".{path.name}.{os.getpid()}.tmp"
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: Any, text: str) -> None:
    """Atomic, as `write_bytes`."""
    write_bytes(path, text.encode())


def write_json(path: Any, value: Any) -> None:
    """Atomic, as `write_text`."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n")


def write_record(path: Any, value: dict[str, Any], claim: Any = None) -> None:
    """`write_json` with a checksum, by which `read_json` detects a changed byte. `claim`: of a run in a store."""
    value = sealed(json.loads(json.dumps(value)))
    if claim:
        claim.rewrite(epath.Path(path).name, lambda _: json.dumps(value, indent=1, sort_keys=True).encode())
    else:
        write_json(path, value)


def parse_row(line: bytes, keys: Sequence[str] = ()) -> dict[str, Any] | None:
    """A line of a .jsonl, without its checksum; None if it is torn, damaged, or lacks 'step' or one of `keys`."""
    with contextlib.suppress(ValueError):
        row = parse_sealed(line)
        if isinstance(row, dict) and isinstance(row.get("step"), int) and row.keys() >= set(keys):
            return row
    return None


def parse_rows(content: bytes, keys: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Rows of a .jsonl up to the first line that is torn or damaged, or lacks one of `keys`."""
    rows = itertools.takewhile(bool, (parse_row(line, keys) for line in content.split(b"\n")))
    return list(rows)  # type: ignore[arg-type]


def read_rows(path: Any, keys: Sequence[str] = ()) -> list[dict[str, Any]]:
    """`parse_rows` of a file; none where there is no file."""
    try:
        return parse_rows(epath.Path(path).read_bytes(), keys)
    except (FileNotFoundError, NotADirectoryError):
        return []


def fail(folder: Any, text: str) -> None:
    """Writes error.json: the run failed, and isn't retried by itself."""
    epath.Path(folder).mkdir(parents=True, exist_ok=True)
    write_record(epath.Path(folder) / "error.json", {"error": text, "date": now()})


def add_attempt(folder: Any, step: int, processes: int, devices: int, claim: Any = None) -> None:
    """Adds a row to attempts.jsonl: when and where a run was started or resumed, and from which step.

    Args:
      claim: of a run in an object store, whose token the row gets.
    """
    row = {"step": step, "date": now(), "host": socket.gethostname(), "pid": os.getpid()}
    row |= {"processes": processes, "devices": devices} | ({"token": claim.token} if claim else {})

    def added(old: bytes) -> bytes:
        whole = old[: old.rfind(b"\n") + 1].rstrip(b"\n")
        lines = [line for line in whole.split(b"\n") if line and line != json.dumps(row).encode()]
        return b"".join(line + b"\n" for line in [*lines, json.dumps(row).encode()])

    path = epath.Path(folder) / "attempts.jsonl"
    if claim:
        claim.rewrite(path.name, added)
    else:
        write_bytes(path, added(path.read_bytes() if path.exists() else b""))


def last_row(path: Any) -> dict[str, Any] | None:
    """The last whole row of a .jsonl. A damaged row after it is noted, a torn last line isn't."""
    path = epath.Path(path)
    if "://" in str(path):
        rows = read_rows(path)
        return rows[-1] if rows else None
    try:
        with open(path, "rb") as f:
            f.seek(max(0, f.seek(0, os.SEEK_END) - 8192))
            tail = f.read()
            if tail.endswith(b"\n"):  # a copy from a bucket ends with several (run/claims.py)
                tail = tail.rstrip(b"\n") + b"\n"
            lines = tail.split(b"\n")
    except (FileNotFoundError, NotADirectoryError):
        return None
    for number, line in enumerate(reversed(lines)):
        row = parse_row(line[: line.rfind(b"}") + 1])  # a row is whole even if its line's end isn't
        if row is not None:
            return row
        if number:
            note(f"{str(path)!r} is damaged in its last rows: taken without them")
    return None


def _cut(rows: Sequence[dict[str, Any]], step: int) -> list[str]:
    return [json.dumps(sealed(row)) for row in rows if row["step"] <= step]


def _damage(path: Any, lines: Sequence[str], step: int, claim: Sequence[int]) -> str:
    """ "" if `lines` begin with those of the claim; later ones, of branches at that very step, are newer than it."""
    count, crc32 = claim
    if len(lines) >= count and zlib.crc32("".join(lines[:count]).encode()) == crc32:
        return ""
    return f"{str(path)!r} is damaged: its rows to step {step} aren't those that the checkpoint has noted"


def damage(path: Any, step: int, claim: Sequence[int], keys: Sequence[str] = ()) -> str:
    """What to say of a .jsonl that has lost rows which the checkpoint of `step` claims; "" of a whole one."""
    return _damage(path, _cut(read_rows(path, keys), step), step, claim)


class Rows:
    """An append-only .jsonl. A resume cuts it back to its step, so that it ends as that of an undisturbed run."""

    def __init__(
        self,
        path: Any,
        step: int,
        claim: Sequence[int] | None = None,
        keys: Sequence[str] = (),
        holder: Any = None,
    ):
        """Args:
        step: of the checkpoint that is resumed.
        claim: what `claim` returned when it was saved.
        holder: the `claims.ObjectClaim` through which a file in an object store is written.
        keys: that each row has.
        """
        self.path = epath.Path(path)
        self.lines: list[str] = []
        self.holder = holder

        def cut(content: bytes) -> bytes:
            self.lines = _cut(parse_rows(content, keys), step)
            return self._content()

        if holder:
            holder.rewrite(self.path.name, cut)
        else:
            write_bytes(self.path, cut(self.path.read_bytes() if self.path.exists() else b""))
        kept = [json.loads(line) for line in self.lines]
        self.step = self.count = self.crc32 = 0
        for row, line in zip(kept, self.lines, strict=True):
            self._took(row["step"], line.encode())
        if claim and (damage := _damage(self.path, self.lines, step, claim)):
            note(f"{damage}; the run goes on, and this record has holes")
        self.file: IO[bytes] | None = None
        if not holder:
            # Unbuffered: no row waits in memory for a disk that has become full.
            self.file = open(self.path, "ab", buffering=0)  # noqa: SIM115 (kept open for the run)

    def _content(self) -> bytes:
        return "".join(line + "\n" for line in self.lines).encode()

    def _took(self, step: int, data: bytes) -> None:
        self.step, self.count, self.crc32 = step, self.count + 1, zlib.crc32(data, self.crc32)

    def claim(self, step: int) -> list[int] | None:
        """[number of rows, their CRC-32] for the checkpoint of `step`; None where there are later rows."""
        return [self.count, self.crc32] if self.step <= step else None

    def add(self, row: dict[str, Any]) -> None:
        data = json.dumps(sealed(row), allow_nan=False).encode()
        self._took(row["step"], data)
        if self.file is not None:
            data += b"\n"
            while data:  # a disk that becomes full takes a part, then raises
                data = data[self.file.write(data) :]
        else:
            self.lines.append(data.decode())

    def last(self, key: str, default: float) -> float:
        """The latest value of `key` that isn't null in the rows that were there before."""
        found = (r[key] for r in map(json.loads, reversed(self.lines)) if r.get(key) is not None)
        return next(found, default)

    def flush(self) -> None:
        """On disk when this returns: called before a checkpoint that claims these rows."""
        if self.file is not None:
            os.fsync(self.file.fileno())
        else:  # object stores don't append
            self.holder.write(self.path.name, self._content())

    def close(self) -> None:
        self.flush()
        if self.file is not None:
            self.file.close()


MOST_DIFF = 2**20  # bytes that are recorded of a diff, and of one new file; twice as much in all


@functools.cache
def git_state() -> dict[str, Any]:
    """{'git_sha', 'git_diff'} of the working folder against HEAD; None outside a repository.

    Cached, so that it is of the code that the process has loaded. Never raises: what can't be read or is too long is
    noted in the diff.
    """

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
    # New experiments and families may not be in git yet.
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
