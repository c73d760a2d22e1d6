"""Training of a plan's rows, in this process or in several on this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from etils import epath

from bigmodel import config, files
from bigmodel.errors import Busy, NoData, Retry, Unavailable
from bigmodel.run import claims, record
from bigmodel.run.view import View
from bigmodel.study import derived
from bigmodel.study.status import describe, state_of
from bigmodel.study.sweep import Planned


def run(
    path: str, plan: Sequence[Planned], folder: epath.Path, retry_failed: bool = False, first: int = 0, say: Any = print
) -> dict[str, int]:
    """Trains the rows of a plan in this process, with one compilation per shape.

    Skips finished runs, failed runs (unless `retry_failed`) and runs that another process holds. Parallel workers begin
    at different rows, `first`. Returns the number of rows trained, skipped, failed and busy.

    Raises:
      Retry: interrupted, the disk is full, or data or device are lost.
    """
    from bigmodel.run import session  # JAX's devices are not needed to plan

    tally = {"trained": 0, "skipped": 0, "failed": 0, "busy": 0}
    view = View()

    def train_row(i: int) -> str:
        item = plan[i]
        home, name = folder / item.run_id, describe(item.overrides)
        label = f"[{i + 1}/{len(plan)}] {item.run_id}  {name}"
        if record.read_result(home):
            return "skipped"
        error = record.read_error(home)
        if error and not retry_failed:
            say(f"{label}  failed before: {error}  (--retry-failed tries again)")
            return "failed"
        began = time.time()
        cfg = config.from_json(config.to_json(item.config))
        try:
            derived.make(item.overrides, folder, item.config.run.data_dir)
            result, trained = session.attempt(cfg, str(folder), name=name, group=Path(path).stem, view=view)
        except Busy:
            return "busy"
        except Retry:
            raise
        except (Unavailable, NoData) as e:  # the plan has read the data: every row would fail now
            raise Retry(f"{label}  {e}; the same command continues, once that is there again") from e
        except Exception as e:
            if why := files.of_store(e):
                raise Retry(f"{label}  {folder} can't be reached ({why}); the same command continues") from e
            text = f"{type(e).__name__}: {e}".splitlines()[0]
            if _device_is_lost():  # perhaps not this row's fault, and every later row would fail
                raise Retry(f"{label}  {_blame(home, text)}") from e
            say(f"{label}  FAILED: {text}")
            record.fail(home, text)
            return "failed"
        if not trained:  # another process has finished it
            return "skipped"
        loss = "diverged" if result["status"] == "diverged" else f"loss {result['loss']:.4f}"
        say(f"{label}  {loss}  {time.time() - began:.1f} s")
        return "trained"

    try:
        for i in _in_order(plan, folder, (*range(first, len(plan)), *range(first)), retry_failed):
            tally[train_row(i)] += 1
    finally:
        view.close(seconds=10.0)
    return tally


def _device_is_lost() -> bool:
    """Whether not even a sum runs: a GPU's error stays for the rest of the process."""
    import jax

    try:
        jax.block_until_ready(jax.numpy.zeros(1) + 1.0)
    except Exception:
        return True
    return False


def _blame(home: epath.Path, text: str) -> str:
    """What to say of a lost device. The second time that a run loses it, the run has failed."""
    mark = home / "lost"
    if mark.exists():
        record.fail(home, f"twice the device was lost: {text}")
        return "lost the device twice, and is passed over now; the same command goes on"
    home.mkdir(parents=True, exist_ok=True)
    mark.touch()
    return f"the device is lost ({text}); the same command continues"


def _in_order(plan: Sequence[Planned], folder: epath.Path, order: Sequence[int], retry_failed: bool) -> Iterator[int]:
    """The rows of `order`, except that a row which needs other rows' runs waits until those have ended.

    A failed run has ended, unless it is to be retried and this process has not come to it yet. A run that another
    process left unfinished is yielded again.
    """
    index = {item.run_id: i for i, item in enumerate(plan)}
    needed = [{index[run_id] for run_id in item.needs} for item in plan]
    visited: set[int] = set()

    def ended(earlier: int) -> bool:
        state = state_of(folder / plan[earlier].run_id)["state"]
        return state in ("done", "diverged") or (state == "failed" and (not retry_failed or earlier in visited))

    while order:
        later = []
        for i in order:
            if all(map(ended, needed[i])):
                visited.add(i)
                yield i
            else:
                later.append(i)
        if len(later) == len(order):
            waited_for = sorted({earlier for i in later for earlier in needed[i] if not ended(earlier)})
            free = [i for i in waited_for if not claims.held(folder / plan[i].run_id)]
            if not free:
                time.sleep(1.0)
            later = free + later
        order = later


def worker_logs(folder: epath.Path) -> Path:
    """The folder of workers' logs: with the runs, or on this disk if the runs are in a bucket."""
    return Path("runs", folder.name, "workers") if "://" in str(folder) else Path(folder) / "workers"


def run_workers(args: Sequence[str], workers: int, folder: epath.Path, rows: int, watch: Any) -> list[int]:
    """Runs `bigmodel *args` in several processes, each with its share of the cores. Returns their exit codes.

    The processes share nothing but the locks of the runs. `watch()` is called while they work.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    # JAX's first process on a GPU would take three quarters of its memory, and leave the others none.
    env = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", **os.environ}
    logs = worker_logs(folder)
    logs.mkdir(parents=True, exist_ok=True)
    children = []
    for k in range(workers):
        share = cores[k * len(cores) // workers : (k + 1) * len(cores) // workers] or cores
        log = open(logs / f"{k}.log", "w", encoding="utf-8")  # noqa: SIM115 (the child's)
        command = [sys.executable, "-m", "bigmodel", *args, f"--first={k * rows // workers}"]
        # The child pins itself (__main__.py): a function run between fork and exec isn't safe beside JAX's threads.
        pinned = {**env, "BIGMODEL_CORES": ",".join(map(str, share))}
        children.append(subprocess.Popen(command, env=pinned, stdout=log, stderr=log))

    def interrupted(*_: Any) -> None:
        print("bigmodel: the workers save after their steps; again to quit now", file=sys.stderr, flush=True)
        raise Retry("interrupted; the same command continues")

    old = signal.signal(signal.SIGTERM, interrupted)
    try:
        while any(child.poll() is None for child in children):
            watch()
            time.sleep(0.5)
    except KeyboardInterrupt:
        interrupted()
    finally:  # the workers end with this process, and save
        signal.signal(signal.SIGTERM, old)
        for child in children:
            if child.poll() is None:
                child.terminate()
        for child in children:
            child.wait()
    watch()
    return [child.returncode for child in children]
