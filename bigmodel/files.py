"""Files: errors of disks, checksums, a sweep's plan, the cache folder."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
import shlex
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bigmodel.errors import Retry, UsageError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST)


STORES = ("aiohttp", "aiobotocore", "botocore", "gcsfs", "google", "s3fs")  # whose errors a bucket causes


def of_store(e: BaseException) -> str:
    """In a few words what a bucket did, if an exception or a cause of it is of a library that reads one; else ""."""
    found: BaseException | None = e
    while found is not None:
        if type(found).__module__.partition(".")[0] in STORES:
            return f"{type(found).__name__}: {(str(found).splitlines() or [''])[0][:200]}"
        found = found.__cause__
    return ""


@contextlib.contextmanager
def full_disk(what: Any) -> Iterator[None]:
    """Around what writes `what`: a full disk is a reason to try again, not a fault, and so is a bucket that can't be
    reached. Libraries raise them in their own classes."""
    try:
        yield
    except (Retry, UsageError):
        raise
    except Exception as e:
        if "://" in str(what) and (why := of_store(e)):
            raise Retry(f"{what} can't be reached ({why}); the same command continues") from e
        if getattr(e, "errno", None) in FULL or any(os.strerror(number) in str(e) for number in FULL):
            raise Retry(f"disk full: can't write {str(what)!r}; nothing is lost: free space and repeat") from e
        raise


@contextlib.contextmanager
def writing(what: Any) -> Iterator[None]:
    """Around what begins to write `what`, a path that the user chose: one that can't be written is a mistake."""
    try:
        with full_disk(what):
            yield
    except OSError as e:
        if e.errno in UNWRITABLE:
            raise UsageError(f"can't write {str(what)!r}: {e.strerror}") from e
        raise


def check_path(what: str, path: str) -> None:
    """Raises UsageError for a path that no file can have; `what` names it."""
    try:
        longest = max(len(os.fsencode(part)) for part in path.split("/"))
    except UnicodeEncodeError:
        raise UsageError(f"{what} {path[:60]!r}: a path has no half of a surrogate pair in it") from None
    if longest > 255 or len(os.fsencode(path)) >= 4096:
        raise UsageError(f"{what} {path[:60]!r}...: a path has less than 4,096 bytes, a name in it at most 255")
    if "\0" in path:
        raise UsageError(f"{what} {path[:60]!r}: a path has no NUL in it")
    if "://" in path and path.partition("://")[0] not in ("gs", "s3", "az"):
        raise UsageError(f"{what} {path[:60]!r}: a path is of a disk, or begins with gs://, s3:// or az://")


def uncached_listings() -> None:
    """Tells fsspec, before its first use, that the folders of stores change: other workers write there."""
    import fsspec.config

    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it logs the traceback of what it raises anyway
    for name in ("gcs", "gs", "s3"):
        fsspec.config.conf.setdefault(name, {}).setdefault("use_listings_cache", False)


def cache_folder() -> Path:
    """$BIGMODEL_CACHE, else ~/.cache/bigmodel."""
    return Path(os.environ.get("BIGMODEL_CACHE") or "~/.cache/bigmodel").expanduser()


def has_sha256(path: str | Path, sha256: str, again: bool = False) -> bool:
    """Whether a local file has this content.

    That it has is remembered in the cache folder, so that it is read only once until its size or the time of its last
    change is another one, or `again`.

    Raises:
      OSError: it can't be read.
    """
    stat = os.stat(path)
    name = f"{os.path.abspath(path)} {stat.st_size} {stat.st_mtime_ns} {sha256}"
    seen = cache_folder() / "verified" / hashlib.sha256(os.fsencode(name)).hexdigest()
    with contextlib.suppress(OSError):
        if seen.exists() and not again:
            return True
    with open(path, "rb") as f:
        same = hashlib.file_digest(f, "sha256").hexdigest() == sha256
    with contextlib.suppress(OSError):  # a cache that can't be written costs time and nothing else
        if same:
            seen.parent.mkdir(parents=True, exist_ok=True)
            seen.touch()
        else:
            seen.unlink(missing_ok=True)
    return same


def sealed(record: dict[str, Any]) -> dict[str, Any]:
    """`record` with a "crc32" of the rest, by which `is_whole` tells a changed byte in the file it is written to."""
    rest = {key: value for key, value in record.items() if key != "crc32"}
    canonical = json.dumps(rest, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return {**rest, "crc32": zlib.crc32(canonical.encode())}


def is_whole(record: dict[str, Any]) -> bool:
    """Whether a record has the "crc32" that `sealed` gave it. True where there is none: older files have no seal."""
    return "crc32" not in record or record["crc32"] == sealed(record)["crc32"]


def parse_sealed(content: bytes) -> Any:
    """JSON in UTF-8, without the checksum that `sealed` added.

    Raises:
      ValueError: it isn't JSON, or its checksum differs.
    """
    try:
        found = json.loads(content.decode())
    except RecursionError as e:
        raise ValueError("it is nested too deeply") from e
    if isinstance(found, dict):
        if not is_whole(found):
            raise ValueError("its checksum differs")
        found.pop("crc32", None)
    return found


def check_whole(record: dict[str, Any], path: Any) -> None:
    """Raises UsageError for a record of the file `path` that isn't as it was written."""
    if not is_whole(record):
        raise UsageError(
            f"{str(path)!r} is damaged, or was edited: its checksum differs; to use it as it is, remove its line "
            "'crc32'"
        )


def read_plan(folder: Any) -> list[dict[str, Any]]:
    """The rows of a sweep's plan.jsonl, with those that a later plan superseded.

    Raises:
      UsageError: there is no plan, or it is damaged or cut.
    """
    path = folder / "plan.jsonl"
    again = "`bigmodel sweep plan FILE.py` writes it again"
    try:
        lines = path.read_bytes().splitlines()
    except (FileNotFoundError, NotADirectoryError) as e:
        raise UsageError(f"no plan at {str(folder)!r}: run `bigmodel sweep plan FILE.py` first") from e
    except OSError as e:
        if of_store(e):
            raise
        raise UsageError(f"can't read {str(path)!r}: {e.strerror or e}") from e
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            # Ids become names of folders, arguments of commands and parts of scripts.
            whole = is_whole(row) and re.fullmatch(r"[A-Za-z0-9][\w-]*", row["run_id"], re.ASCII)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            whole = None
        if not whole:
            raise UsageError(f"{str(path)!r} line {number} is damaged; {again}")
        rows.append(row)
    total = max((n for row in rows if isinstance(n := row.get("rows"), int)), default=1)
    if len(rows) < total:
        raise UsageError(
            f"{str(path)!r} holds {len(rows)} of {total} rows; {again}" if rows else f"{str(path)!r} is empty; {again}"
        )
    return rows


def install(package: str) -> str:
    """The command that installs a missing package where this program runs, from a checkout or installed."""
    return f"{shlex.quote(sys.executable)} -m pip install {shlex.quote(package)}"


def read_text(path: str | Path, kind: str) -> str:
    from etils import epath

    try:
        return epath.Path(path).read_bytes().decode()
    except (OSError, UnicodeDecodeError) as e:
        raise UsageError(f"can't read {kind} {str(path)!r}: {getattr(e, 'strerror', None) or e}") from e
