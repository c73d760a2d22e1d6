"""The folder that `bigmodel prepare` writes: files are made in a working folder and moved, the manifest last."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from etils import epath

from bigmodel.errors import Busy, Retry, UsageError
from bigmodel.files import full_disk, sealed

Manifest = dict[str, Any]


@dataclass(frozen=True)
class Folder:
    """`root`, local or remote, while it is written. `work` is local, and on the same file system as a local `root`."""

    root: epath.Path
    work: Path

    def put(self, name: str, content: bytes) -> str:
        """Writes a file atomically. Returns its SHA-256."""
        temporary = self.work / f"{name}.tmp"
        temporary.write_bytes(content)
        move(temporary, self.root / name)
        return hashlib.sha256(content).hexdigest()

    def put_json(self, name: str, row: dict[str, Any]) -> None:
        self.put(name, (json.dumps(row, indent=1) + "\n").encode())

    def begin(self) -> None:
        """Removes the manifest before anything changes. It is written last: where it is, everything is."""
        (self.root / "manifest.json").unlink(missing_ok=True)

    def finish(self, manifest: Manifest) -> Manifest:
        """Writes the manifest with its checksum, and returns it."""
        manifest = sealed(manifest)
        self.put_json("manifest.json", manifest)
        return manifest


@contextmanager
def working(root: epath.Path) -> Iterator[Folder]:
    """Locks `root`, and makes OUT/.work, where renaming into OUT is atomic; a temporary folder for a remote `root`."""
    if not is_local(root):
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="bigmodel-prepare-") as temporary:
            yield Folder(root, Path(temporary))
        return
    import fcntl  # POSIX only

    work = Path(root) / ".work"
    new = [path for path in (Path(root), *Path(root).parents) if not path.exists()]
    work.mkdir(parents=True, exist_ok=True)
    with open(work / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy(f"another prepare is writing {str(root)!r}; the same command continues") from None
        try:
            yield Folder(root, work)
        finally:
            shutil.rmtree(work, ignore_errors=True)
            for path in new:  # a mistake leaves nothing behind
                if any(path.iterdir()):
                    break
                path.rmdir()


@contextmanager
def one_line_errors(out: str) -> Iterator[None]:
    """Turns what goes wrong on the way into `out` into an error of ours."""
    try:
        with full_disk(out):
            yield
    except OSError as e:
        raise UsageError(f"can't write {out!r}: {e.strerror or e}") from e
    except MemoryError as e:
        raise UsageError(f"prepare into {out!r}: not enough memory; split large files into several") from e
    except ImportError as e:  # gs:// without gcsfs
        raise UsageError(f"prepare into {out!r}: {' '.join(str(e).split())}") from e
    except BrokenProcessPool as e:
        raise Retry("a worker process was killed (out of memory?); the same command continues, try --workers=1") from e


# -------------------------------------------------------------------------------------- files


def is_local(path: epath.Path) -> bool:
    return "://" not in os.fspath(path)


def move(source: Path, target: epath.Path) -> None:
    """Atomic on a local disk; object stores write whole objects."""
    if is_local(target):
        os.replace(source, target)
    else:
        epath.Path(source).copy(target, overwrite=True)
        source.unlink()


def read_json(path: epath.Path) -> dict[str, Any] | None:
    """None where there is no such file, or one that isn't a JSON object."""
    try:
        row = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def sha256(path: Path | epath.Path) -> str:
    """Raises OSError where the file can't be read."""
    digest = hashlib.sha256()
    with path.open("rb") as f:
        while chunk := f.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def has_digest(path: epath.Path, digest: str | None) -> bool:
    """Whether the file can be read and has this SHA-256."""
    try:
        return sha256(path) == digest
    except OSError:
        return False
