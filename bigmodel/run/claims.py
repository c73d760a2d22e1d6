"""At most one worker trains a run.

On a file system a claim is an flock, which the kernel frees however its holder dies. Object stores have no locks. There
a claim is an object, which the store creates only if there is none. Its holder renews it while it makes progress. The
same job of an engine may take it over after a restart, and anybody may once it is `LEASE` seconds old.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bigmodel.errors import Busy, Retry, note
from bigmodel.files import parse_sealed, sealed

AS_JOB = "BIGMODEL_JOB"  # set where this process is all that its engine's job does
LEASE = 900.0  # seconds; a holder renews its claim a quarter of it after the last time
NAME = "claim.json"  # in an object store


def owner(environment: Mapping[str, str] = os.environ) -> str:
    """Who claims: the engine's name of this worker's job, which survives restarts, or else this process."""
    if AS_JOB in environment:
        if "SLURM_ARRAY_JOB_ID" in environment:
            return f"slurm {environment['SLURM_ARRAY_JOB_ID']}_{environment.get('SLURM_ARRAY_TASK_ID', '')}"
        for engine, name in (("slurm", "SLURM_JOB_ID"), ("sky", "SKYPILOT_MANAGED_JOB_ID")):
            if name in environment:
                return f"{engine} {environment[name]}"
    return f"process {socket.gethostname()} {os.getpid()} {time.time()}"


def claim(folder: Any) -> FileClaim | ObjectClaim:
    """Holds the folder until closed.

    Raises:
      Busy: another worker holds it.
    """
    if "://" in str(folder):
        return ObjectClaim(_store(str(folder)), owner())
    return FileClaim(folder)


def held(folder: Any) -> bool:
    """Whether a live worker holds the folder."""
    if "://" in str(folder):
        return _fresh(_parsed(_store(str(folder)).read(NAME).result().value))
    try:
        with open(Path(str(folder)) / "lock") as f:  # for reading, as the folder may be another user's
            fcntl.flock(f, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True


class FileClaim(contextlib.AbstractContextManager["FileClaim"]):
    def __init__(self, folder: Any):
        self.file = open(Path(str(folder)) / "lock", "w")  # noqa: SIM115 (held until close)
        for left in reversed(range(5)):  # `held` of another process may hold it for an instant
            try:
                fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if left:
                    time.sleep(0.02)
        self.file.close()
        raise Busy(f"{folder}: another process is training this run")

    def renew(self) -> None:
        """Does nothing: the kernel knows whether the holder lives."""

    def close(self) -> None:
        self.file.close()

    def __exit__(self, *_: Any) -> None:
        self.close()


# ------------------------------------------------------------------------------- object stores


def _store(folder: str) -> Any:
    import tensorstore as ts

    return ts.KvStore.open(folder.rstrip("/") + "/").result()


def _parsed(value: bytes) -> dict[str, Any]:
    """{'owner', 'time', ...} of a claim; {} of none and of a damaged one, whose holder notices when it is taken."""
    with contextlib.suppress(ValueError, TypeError, KeyError):
        found = parse_sealed(value or b"{}")
        if found == {} or ("owner" in found and isinstance(found["time"], float)):
            return found  # type: ignore[no-any-return]
    note(f"a run's {NAME} is damaged: taken as nobody's")
    return {}


def _fresh(found: dict[str, Any]) -> bool:
    return bool(found) and not found.get("released") and time.time() - found["time"] < LEASE


class ObjectClaim:
    """A claim in a tensorstore KvStore whose writes can be conditional (gs, s3, file)."""

    def __init__(self, store: Any, who: str):
        self.store, self.who, self.lock = store, who, threading.Lock()
        found = store.read(NAME).result()
        value = _parsed(found.value)
        if _fresh(value) and value["owner"] != who:
            raise Busy(f"{value['owner']} is training this run, and was last heard of at {value['time']:.0f}")
        self.generation = found.stamp.generation  # also where it is missing: written only if it still is
        self._write()

    def _write(self, **more: Any) -> None:
        value = json.dumps(sealed({"owner": self.who, "time": time.time(), **more})).encode()
        try:
            stamp = self.store.write(NAME, value, if_equal=self.generation).result()
        except Exception as e:
            raise Retry(f"the claim can't be written ({str(e).splitlines()[0]}); the same command continues") from e
        if not stamp.generation:  # somebody wrote since we read
            raise Busy("another worker has taken this run")
        self.generation, self.written = stamp.generation, time.time()

    def renew(self) -> None:
        """Says that the holder lives; called as the work makes progress.

        Raises:
          Busy: another worker took over after a silence longer than the lease.
        """
        with self.lock:
            if time.time() - self.written > LEASE / 4:
                self._write()

    def close(self) -> None:
        with self.lock, contextlib.suppress(Retry):  # a claim that isn't released expires after LEASE
            self._write(released=True)
