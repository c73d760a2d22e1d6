"""W&B as a view of the record.

W&B runs in a process of its own that reads a run's files (`python -m bigmodel.run.view`), so that a missing key,
terminal or network can't delay, slow or stop a run. It is offline unless asked otherwise.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import queue
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from bigmodel.errors import choose
from bigmodel.run import record

LINGER = 600.0  # seconds that the child may take after its parent's end, to upload what was logged


class View:
    """A child process that mirrors run folders to W&B. Every call returns at once."""

    def __init__(self) -> None:
        self.child: subprocess.Popen[bytes] | None = None

    def _say(self, **order: Any) -> None:
        try:
            if self.child is None:
                self.child = subprocess.Popen(
                    [sys.executable, "-m", "bigmodel.run.view"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    bufsize=0,
                    start_new_session=True,  # Ctrl-C in the terminal is for the run alone
                    env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
                )
                os.set_blocking(self.child.stdin.fileno(), False)  # type: ignore[union-attr] # a stuck child loses orders
            self.child.stdin.write((json.dumps(order) + "\n").encode())  # type: ignore[union-attr]
        except OSError:
            pass  # the child is gone; the record is on disk

    def open(self, folder: Any, mode: str, name: str, group: str, step: int) -> None:
        """Starts to mirror a folder on a disk: its rows after `step`, and earlier ones that W&B hasn't.

        mode: 'offline', 'online' or 'off'.
        """
        if mode != "off" and "://" not in str(folder):
            run = {"id": Path(str(folder)).absolute().name, "name": name, "group": group or None}
            self._say(do="open", folder=os.path.abspath(folder), mode=mode, run=run, step=step)

    def finish(self) -> None:
        """The run opened last has ended, and its result is on disk."""
        if self.child is not None:
            self._say(do="finish")

    def summary(self, folder: Any, mode: str, group: str) -> None:
        """Logs a report folder's figures and its fit.json as a run of its own."""
        if mode != "off":
            run = {"id": f"law-{group}", "name": f"{group} law", "group": group or None}
            self._say(do="summary", folder=os.path.abspath(folder), mode=mode, run=run)

    def close(self, seconds: float = 0.0) -> None:
        """Lets the child end by itself, and waits for it at most `seconds`."""
        if self.child is not None and self.child.stdin is not None:
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                self.child.stdin.close()
                self.child.wait(seconds)
            self.child = None


def wandb_mode(mode: str) -> str:
    """`mode`, but 'offline' for 'online' without an API key, as W&B would block or die."""
    choose("config.run.wandb", mode, ["offline", "online", "off"])
    if mode != "online" or os.environ.get("WANDB_API_KEY"):
        return mode
    try:
        netrc = Path(os.environ.get("NETRC") or Path.home() / ".netrc")
        return "online" if "wandb" in netrc.read_text(errors="ignore") else "offline"
    except (OSError, RuntimeError):  # no such file, not readable, or no home
        return "offline"


# ---------------------------------------------------------------------------------- the child

Order = dict[str, Any]  # as View sends it: 'do', 'folder', 'mode', and 'run', what W&B calls the run
UNREACHABLE = threading.Event()  # W&B was asked for and couldn't be reached: the next runs of a sweep don't wait for it


def _mirror() -> None:
    """Carries out the orders on stdin until its end, which comes also when the parent is killed."""
    os.nice(10)
    os.environ |= {"WANDB_SILENT": "true", "WANDB_CONSOLE": "off"}
    orders: queue.SimpleQueue[Order] = queue.SimpleQueue()

    def listen() -> None:  # a thread, as any call of W&B may wait for the network without end
        for line in sys.stdin:
            orders.put(json.loads(line))
        orders.put({"do": "end"})
        time.sleep(LINGER)
        os._exit(1)

    threading.Thread(target=listen, daemon=True).start()
    while (order := orders.get())["do"] != "end":
        try:
            if order["do"] == "open":
                _follow(order, orders)
            elif order["do"] == "summary":
                _summarize(order)
        except Exception as e:  # a failure must not stop the next run's mirror
            with contextlib.suppress(Exception):
                _note(order, f"{type(e).__name__}: {e}")
            with contextlib.suppress(Exception):
                import wandb

                wandb.teardown()


def _note(order: Order, text: str) -> None:
    """A view has no terminal: what went wrong is written beside W&B's own logs."""
    folder = Path(order["folder"], "wandb")
    folder.mkdir(exist_ok=True)
    with open(folder / "view.log", "a", encoding="utf-8") as f:
        f.write(f"{record.now()} {' '.join(text.split())}\n")


def _start(order: Order, **more: Any) -> Any:
    """A W&B run; offline where W&B can't be reached."""
    import wandb

    settings = wandb.Settings(x_disable_stats=True, init_timeout=20, finish_timeout=60)
    more |= {"project": "bigmodel", "dir": order["folder"], "resume": "allow", "settings": settings, **order["run"]}
    if order["mode"] == "online" and not UNREACHABLE.is_set():
        try:
            return wandb.init(mode="online", **more)
        except Exception as e:
            UNREACHABLE.set()
            _note(order, f"{type(e).__name__}: {e}; offline from here, `wandb sync` uploads it later")
            wandb.teardown()  # otherwise the id counts as in use
            for attempt in Path(order["folder"], "wandb").glob(f"run-*-{order['run']['id']}"):
                if not any((attempt / "files").iterdir()):
                    shutil.rmtree(attempt, ignore_errors=True)
    return wandb.init(mode="offline", **more)


def _follow(order: Order, orders: queue.SimpleQueue[Order]) -> None:
    """Mirrors a run's rows as they are written, until there is another order."""
    folder = Path(order["folder"])
    earlier = list((folder / "wandb").glob(f"*run-*-{order['run']['id']}"))
    # W&B doesn't resume offline runs. Unless the earlier ones have been uploaded, this one gets all rows and replaces
    # them; else it gets the later rows.
    alone = all(p.name.startswith("offline-") and not any(p.glob("*.wandb.synced")) for p in earlier)
    after = 0 if alone else order["step"]
    run = _start(order, config=record.read_json(folder / "config.json"))
    for path in earlier if alone else []:
        shutil.rmtree(path, ignore_errors=True)
    paths = [path for name in ("metrics", "speed") if (path := folder / f"{name}.jsonl").exists()]
    files = [(path.name, path.open("rb")) for path in paths]
    damaged: collections.Counter[str] = collections.Counter()
    held: dict[int, dict[str, Any]] = {}  # the rows that W&B hasn't, by step
    newest, ended = 0.0, False
    while not ended:
        time.sleep(0.2)
        ended = not orders.empty()
        for name, file in files:
            for row in _new_rows(file):
                if row is None:
                    damaged[name] += 1
                    continue
                held.setdefault(row["step"], {}).update(row)
                newest = row["step"] if name == "metrics.jsonl" else newest
        # W&B takes no step back: a row of speed.jsonl waits for the metrics of earlier steps.
        for step in sorted(s for s in held if ended or s <= newest):
            row = held.pop(step)
            if step > after:
                run.log({k: v for k, v in row.items() if k != "step"}, step=step)
    for name, count in damaged.items():
        _note(order, f"{count} damaged rows of {name} are left out")
    run.log({}, commit=True)  # the last row, or its train loss would overwrite the result's
    result = record.read_json(folder / "result.json")
    run.summary.update(result or {})
    run.finish(exit_code=0 if result else 1)


def _new_rows(file: IO[bytes]) -> Iterator[dict[str, Any] | None]:
    """The whole lines written since the last call, as rows; None for one that is damaged."""
    for line in iter(file.readline, b""):
        if not line.endswith(b"\n"):
            file.seek(-len(line), os.SEEK_CUR)
            return
        yield record.parse_row(line)


def _summarize(order: Order) -> None:
    """Logs a report."""
    import wandb

    report = Path(order["folder"])
    shutil.rmtree(report / "wandb", ignore_errors=True)  # a report is rewritten, not appended to
    # Tables are staged here until they are uploaded: in the home folder, offline ones would pile up.
    os.environ["WANDB_DATA_DIR"] = str(report / "wandb" / "data")
    law = _start(order, job_type="law")
    fit = record.read_json(report / "fit.json") or {}
    table = wandb.Table(columns=["parameter", "value", "low", "high"])
    values = {**fit.get("params", {}), **fit.get("optimal", {})}
    for name, ends in fit.get("ci", {}).items():
        table.add_data(name, values.get(name), *(ends or (None, None)))
    pictures = [p for p in sorted(report.rglob("*.png")) if p.parent.name != "column"]  # the same, for print
    figures = {str(p.relative_to(report).with_suffix("")): wandb.Image(str(p)) for p in pictures}
    law.log({"law": table, **figures})
    law.summary.update(fit)
    law.finish()


if __name__ == "__main__":
    with contextlib.suppress(Exception):  # whatever goes wrong in a view ends here
        _mirror()
