"""At most one worker trains a run.

On a file system a claim is an flock, which the kernel frees however its holder dies. Object stores have no locks. There
a claim is the object claim.json, and every change of it is conditional on the version that its writer last saw:

  token      1, 2, 3 ...: how often the run was taken. Checkpoints lie in checkpoints/TOKEN/, so that two holders never
             write the same objects; results, speeds and attempts carry it.
  saved      [token, step] of the whole checkpoints. One counts from the moment it is here, and not before.
  result     the outcome. Once it is here nobody takes the run, and result.json is its copy.

Files that grow (metrics.jsonl ...) are written on the same condition. Who takes a run writes each of them once before
anything else, after which a holder that was superseded can't: its version is of the past. No clock decides who may
write. Clocks decide only when a silent holder is superseded, and that is the store's clock alone.

The protocol is written as generators that yield requests and receive replies, so that a test can go through every order
of several workers' requests.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any

from bigmodel.errors import Busy, Retry, note
from bigmodel.files import parse_sealed, sealed
from bigmodel.run import objects

AS_JOB = "BIGMODEL_JOB"  # set where this process is all that its engine's job does
LEASE = float(os.environ.get("BIGMODEL_LEASE") or 900)  # seconds of silence; a holder renews every quarter of it
NAME = "claim.json"  # in an object store
RESULT = "result.json"


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
    return ObjectClaim(objects.opened(folder), owner()) if "://" in str(folder) else FileClaim(folder)


def held(folder: Any) -> bool:
    """Whether a live worker holds the folder."""
    if "://" in str(folder):
        store = objects.opened(folder)
        return is_held(parse(store.read(NAME)[0]), lambda: store.age(NAME))
    try:
        with open(Path(str(folder)) / "lock") as f:  # for reading, as the folder may be another user's
            fcntl.flock(f, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True


class FileClaim(contextlib.AbstractContextManager["FileClaim"]):
    token = 0  # nobody is ever superseded while it lives

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

    def check(self) -> None:
        """Does nothing: the kernel knows whether the holder lives."""

    def close(self) -> None:
        self.file.close()

    def __exit__(self, *_: Any) -> None:
        self.close()


# ------------------------------------------------------------------------------- the protocol

# ("read", name) -> (content, version); ("write", name, content, version) -> version or None; ("age", name) -> seconds
Steps = Generator[tuple[Any, ...], Any, Any]


def parse(content: bytes | None) -> dict[str, Any]:
    """A claim; {} of none and of a damaged one, whose holder notices when it is taken."""
    with contextlib.suppress(ValueError, TypeError, KeyError):
        found = parse_sealed(content or b"{}")
        if found == {} or (isinstance(found["token"], int) and isinstance(found["saved"], list) and "owner" in found):
            return found  # type: ignore[no-any-return]
    note(f"a run's {NAME} is damaged: taken as nobody's")
    return {}


def is_held(value: Mapping[str, Any], age: Callable[[], float]) -> bool:
    return bool(value) and not value.get("released") and not value.get("result") and age() < LEASE


def written(name: str, content: bytes, version: Any) -> Steps:
    """The version of a conditional write; None: somebody else has written since."""
    found = yield "write", name, content, version
    if found is None:
        there, now = yield "read", name
        if there == content:  # ours, and the reply was lost
            return now
    return found


class Holder:
    """A worker's side of the protocol: what it holds, and what it knows of the objects' versions."""

    def __init__(self, who: str):
        self.value: dict[str, Any] = {"owner": who, "nonce": uuid.uuid4().hex}
        self.versions: dict[str, Any] = {}

    @property
    def token(self) -> int:
        return int(self.value["token"])

    def _change(self, **more: Any) -> Steps:
        value = {**self.value, "changes": self.value.get("changes", 0) + 1, **more}
        content = json.dumps(sealed(value)).encode()
        version = yield from written(NAME, content, self.versions[NAME])
        if version is None:
            raise Busy("another worker has taken this run")
        self.value, self.versions[NAME] = value, version

    def take(self) -> Steps:
        """Raises Busy: a live worker holds it. Leaves the run's result in `value`, if it is finished."""
        content, self.versions[NAME] = yield "read", NAME
        found = parse(content)
        if found.get("result"):
            self.value = found
            yield from self._copy_result()
            return
        if is_held(found, lambda: 0.0) and found["owner"] != self.value["owner"]:
            age = yield "age", NAME
            if age < LEASE:
                raise Busy(f"{found['owner']} is training this run, and was last heard of {age:.0f} s ago")
        yield from self._change(token=found.get("token", 0) + 1, saved=found.get("saved", []), released=False)

    def rewrite(self, name: str, change: Callable[[bytes], bytes]) -> Steps:
        """Writes a file for the first time under this token: the content becomes `change` of what is there."""
        while True:
            there, version = yield "read", name
            yield from self._change()  # nobody had superseded us when it was read: it is no later holder's
            # An ETag is a hash of the content. The same rows under another token have to differ from those before.
            content = change(there or b"") + b"\n" * self.token
            self.versions[name] = yield from written(name, content, version)
            if self.versions[name] is not None:
                return

    def write(self, name: str, content: bytes) -> Steps:
        """Writes a file that `rewrite` has written."""
        content += b"\n" * self.token
        version = yield from written(name, content, self.versions[name])
        if version is None:
            raise Busy("another worker has taken this run")
        self.versions[name] = version

    def renew(self) -> Steps:
        yield from self._change()

    def publish(self, step: int, keep: int) -> Steps:
        """From now on the checkpoint of `step` counts, and of the earlier ones the latest."""
        yield from self._change(saved=[*self.value["saved"], [self.token, step]][-keep:])

    def finish(self, result: dict[str, Any]) -> Steps:
        yield from self._change(result=result)
        yield from self._copy_result()

    def _copy_result(self) -> Steps:
        content = json.dumps(sealed(self.value["result"]), indent=1, sort_keys=True).encode() + b"\n"
        yield "write", RESULT, content, objects.ABSENT

    def release(self) -> Steps:
        yield from self._change(released=True)


class ObjectClaim:
    """A claim in an object store, renewed by a thread while the process lives.

    A process that lives and does nothing is ended by config.run.watchdog.
    """

    def __init__(self, store: objects.Folder, who: str):
        self.store, self.holder, self.lock = store, Holder(who), threading.Lock()
        self.lost: Retry | None = None
        self.ended = threading.Event()
        self._run(self.holder.take())
        self.written = time.monotonic()
        self.result = self.holder.value.get("result")
        if self.result is None:
            threading.Thread(target=self._renew, daemon=True).start()

    @property
    def token(self) -> int:
        return self.holder.token

    @property
    def saved(self) -> list[tuple[int, int]]:
        return [(token, step) for token, step in self.holder.value["saved"]]

    def _run(self, steps: Steps) -> None:
        with self.lock:
            if self.lost:
                raise self.lost
            with contextlib.suppress(StopIteration):
                request = next(steps)
                while True:
                    request = steps.send(getattr(self.store, request[0])(*request[1:]))
            self.written = time.monotonic()

    def _renew(self) -> None:
        while not self.ended.wait(LEASE / 4):
            try:
                self._run(self.holder.renew())
            except Busy as e:
                self.lost = e
                return
            except Retry as e:  # the store can't be reached: others may take the run once the lease is over
                if time.monotonic() - self.written > LEASE:
                    self.lost = e
                    return

    def check(self) -> None:
        """Raises Busy: another worker took over; Retry: the store couldn't be reached for a whole lease."""
        if self.lost:
            raise self.lost

    def rewrite(self, name: str, change: Callable[[bytes], bytes]) -> None:
        self._run(self.holder.rewrite(name, change))

    def write(self, name: str, content: bytes) -> None:
        self._run(self.holder.write(name, content))

    def publish(self, step: int, keep: int) -> None:
        self._run(self.holder.publish(step, keep))

    def finish(self, result: dict[str, Any]) -> None:
        self._run(self.holder.finish(result))
        self.result = result

    def close(self) -> None:
        self.ended.set()
        with contextlib.suppress(Retry):  # a claim that isn't released expires after LEASE
            if self.result is None:
                self._run(self.holder.release())

    def __enter__(self) -> ObjectClaim:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def saved(folder: str) -> list[tuple[int, int]]:
    """(token, step) of the checkpoints of a run in an object store, the newest last."""
    return [(token, step) for token, step in parse(objects.opened(folder).read(NAME)[0]).get("saved", [])]
