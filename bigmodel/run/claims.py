"""At most one worker trains a run.

On a file system a claim is an flock, freed by the kernel however its holder dies. Object stores have none: there a
claim is an object, created only if it isn't there (the store decides), renewed while its holder makes progress, and
taken over by the same job of an engine that started it again, or by anybody once it is `LEASE` seconds old.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from bigmodel.errors import Busy, Retry, note
from bigmodel.files import is_whole, sealed

LEASE = 900.0  # seconds; a holder renews a quarter of it after the last time


AS_JOB = "BIGMODEL_JOB"  # set where this process is all that its engine's job does


def owner(environment: Mapping[str, str] = os.environ) -> str:
    """Who claims: of a worker the engine's name of its job, which survives restarts; else this process."""
    alone = f"process {socket.gethostname()} {os.getpid()} {time.time()}"
    if AS_JOB not in environment:
        return alone
    if "SLURM_ARRAY_JOB_ID" in environment:
        return f"slurm {environment['SLURM_ARRAY_JOB_ID']}_{environment.get('SLURM_ARRAY_TASK_ID', '')}"
    if "SLURM_JOB_ID" in environment:
        return f"slurm {environment['SLURM_JOB_ID']}"
    if "SKYPILOT_MANAGED_JOB_ID" in environment:
        return f"sky {environment['SKYPILOT_MANAGED_JOB_ID']}"
    return alone


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
        return _fresh(_store(str(folder)).read(NAME).result().value)
    import fcntl

    try:
        with open(Path(str(folder)) / "lock") as f:  # to read: the folder may be another user's
            fcntl.flock(f, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True


class FileClaim:
    def __init__(self, folder: Any):
        import fcntl

        self.file: IO[str] = open(Path(str(folder)) / "lock", "w")  # noqa: SIM115 (held until close)
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
        """Nothing: the kernel knows whether we live."""

    def close(self) -> None:
        self.file.close()

    def __enter__(self) -> FileClaim:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


# ------------------------------------------------------------------------------- object stores

NAME = "claim.json"


def _store(folder: str) -> Any:
    import tensorstore as ts

    return ts.KvStore.open(folder.rstrip("/") + "/").result()


def _parsed(value: bytes) -> dict[str, Any]:
    """{'owner', 'time', ...} of a claim; {} of none, and of a damaged one: a holder that lives notices who takes it."""
    try:
        found = json.loads(value or b"{}")
        if is_whole(found) and (not found or ("owner" in found and isinstance(found["time"], float))):
            return dict(found)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        pass
    note(f"a run's {NAME} is damaged: taken as nobody's")
    return {}


def _fresh(value: bytes) -> bool:
    found = _parsed(value)
    return bool(found) and not found.get("released") and time.time() - found["time"] < LEASE


class ObjectClaim:
    """`store`: a tensorstore KvStore whose writes can be conditional (gs, s3, file)."""

    def __init__(self, store: Any, who: str):
        self.store, self.who, self.lock = store, who, threading.Lock()
        found = store.read(NAME).result()
        if found.state != "missing":
            value = _parsed(found.value)
            if value and value["owner"] != who and _fresh(found.value):
                raise Busy(f"{value['owner']} is training this run, and was last heard of at {value['time']:.0f}")
        self.generation = found.stamp.generation  # of what isn't there, too: written only if it still isn't
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
        """Says that we live; called as the work makes progress.

        Raises:
          Busy: taken over meanwhile, after a silence longer than the lease.
        """
        with self.lock:
            if time.time() - self.written > LEASE / 4:
                self._write()

    def close(self) -> None:
        with self.lock, contextlib.suppress(Retry):  # what isn't released is old after LEASE
            self._write(released=True)
