"""Several processes as one: how they find each other, decide together, and notice that nothing moves."""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from bigmodel.errors import EXIT_RETRY, UsageError

PORT = 8476  # of process 0, where an engine names hosts alone
TIMEOUT = "BIGMODEL_INIT_TIMEOUT"  # seconds to wait for the others
HEARTBEAT = "BIGMODEL_HEARTBEAT"  # seconds of silence after which a peer is dead; under 100 a long compilation is


def no_tpu_here() -> None:
    """Keeps libtpu, where it is installed without a TPU, from asking the network which TPU host this is."""
    if any(Path(p).exists() for p in ("/dev/accel0", "/dev/vfio/0")):
        return
    for key, value in {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "v5litepod-1",
        "TPU_STDERR_LOG_LEVEL": "3",
        "TPU_MIN_LOG_LEVEL": "3",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }.items():
        os.environ.setdefault(key, value)


def _number(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name, str(default))
    try:
        return int(text)
    except ValueError as e:
        raise UsageError(f"the environment variable {name}={text[:60]!r} is not a whole number") from e


def group(environment: Mapping[str, str] = os.environ) -> dict[str, Any] | None:
    """Arguments of `jax.distributed.initialize`; None where this process is alone.

    JAX recognises Slurm's steps and Cloud TPU's hosts by itself. SkyPilot describes its nodes in variables.
    """
    if _number(environment, "SLURM_NTASKS", 1) > 1 and "SLURM_PROCID" in environment and "SLURM_STEP_ID" in environment:
        return {}
    if (nodes := _number(environment, "SKYPILOT_NUM_NODES", 1)) > 1:
        first = environment.get("SKYPILOT_NODE_IPS", "").split()[:1]
        if not first:
            raise UsageError(f"SKYPILOT_NUM_NODES={nodes}, and SKYPILOT_NODE_IPS names no node")
        return {
            "coordinator_address": f"{first[0]}:{PORT}",
            "num_processes": nodes,
            "process_id": _number(environment, "SKYPILOT_NODE_RANK", -1),
        }
    hosts = [h for h in environment.get("TPU_WORKER_HOSTNAMES", "").split(",") if h]
    slices = _number(environment, "MEGASCALE_NUM_SLICES", 1)
    return {} if len(hosts) * slices > 1 else None


def join(coordinator: str = "", processes: int = 1, process: int = 0) -> None:
    """Connects to the other processes, by these arguments or else by the environment. Called before JAX is used.

    A peer that dies or freezes is noticed after 100 s of silence, and ends this process with code 134 (SIGABRT from
    JAX's own C++). Tests shorten that by environment variables.
    """
    told = group()
    if coordinator:
        if not 0 <= process < processes:
            raise UsageError(f"--process={process}: must be in 0 to {processes - 1}, as --processes={processes} says")
        told = {"coordinator_address": coordinator, "num_processes": processes, "process_id": process}
    if told is None:
        return
    jax.distributed.initialize(
        **told,
        initialization_timeout=_number(os.environ, TIMEOUT, 300),
        heartbeat_timeout_seconds=_number(os.environ, HEARTBEAT, 100),
    )


def agree(mine: int) -> int:
    """Process 0's number. Called by every process."""
    return int(multihost_utils.broadcast_one_to_all(np.int32(mine)))


def any_of(mine: bool) -> bool:
    """Whether `mine` is true in any process. Called by every process."""
    return bool(np.any(multihost_utils.process_allgather(np.int32(mine))))


# JAX raises a collective's error as JaxRuntimeError or, where it surfaces later, as ValueError; orbax as its own.
PEERS = re.compile(
    r"Gloo|[Cc]oordination|[Hh]eartbeat|[Bb]arrier|[Pp]eer|"
    r"\b(UNKNOWN|UNAVAILABLE|ABORTED|INTERNAL|DEADLINE_EXCEEDED|CANCELLED|DATA_LOSS):"
)


def is_peers_death(error: BaseException) -> bool:
    """Whether an error may come from a peer's death, after which this process's collectives fail."""
    return jax.process_count() > 1 and "RESOURCE_EXHAUSTED" not in str(error) and bool(PEERS.search(str(error)))


def leave(code: int) -> None:
    """Ends this process at once, as an orderly exit would wait for peers that are gone."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class Watch:
    """Ends the process with code 75 once `limit` seconds pass without `progress()`; 0: never.

    So a collective that waits for ever ends, and the run is continued.
    """

    def __init__(self, limit: float, what: str):
        self.limit, self.what = limit, what
        self.last = time.monotonic()
        self.done = threading.Event()

    def __enter__(self) -> Watch:
        if self.limit:
            threading.Thread(target=self._look, daemon=True).start()
        return self

    def progress(self) -> None:
        self.last = time.monotonic()

    def _look(self) -> None:
        while not self.done.wait(min(10.0, self.limit / 4)):
            if time.monotonic() - self.last > self.limit:
                print(
                    f"bigmodel: {self.what}: no progress in {self.limit:.0f} s (config.run.watchdog); "
                    "the same command continues",
                    file=sys.stderr,
                )
                leave(EXIT_RETRY)

    def __exit__(self, *_: Any) -> None:
        self.done.set()
