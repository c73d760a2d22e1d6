"""W&B as a view of the record.

W&B runs in a process of its own that reads a run's files (`python -m bigmodel.run.view`), so that a missing key,
terminal or network can't delay, slow or stop a run. It is offline unless asked otherwise.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bigmodel.errors import choose
from bigmodel.files import is_whole
from bigmodel.run import record


class View:
    """A child process that mirrors run folders to W&B. Every call returns at once."""

    def __init__(self) -> None:
        self.child: subprocess.Popen[bytes] | None = None

    def _say(self, **message: Any) -> None:
        try:
            if self.child is None:
                self.child = subprocess.Popen(
                    [sys.executable, "-m", "bigmodel.run.view"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    bufsize=0,
                    start_new_session=True,  # a Ctrl-C of the run's terminal is not the view's
                    env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
                )
                assert self.child.stdin is not None
                os.set_blocking(self.child.stdin.fileno(), False)  # a stuck child loses orders, not our time
            assert self.child.stdin is not None
            self.child.stdin.write((json.dumps(message) + "\n").encode())
        except OSError:
            pass  # the view is gone; the record is on disk

    def open(self, folder: Any, mode: str, name: str, group: str, step: int) -> None:
        """Starts to mirror `folder`: its rows after `step` or, where W&B has none of its earlier ones, all of them.

        mode: 'offline', 'online' or 'off'."""
        if "://" in str(folder):
            if mode == "online":  # asked for
                print(f"bigmodel: {folder} is in a bucket: W&B shows runs of a disk alone", file=sys.stderr)
        elif mode != "off":
            home = Path(str(folder)).absolute()
            self._say(open=str(home), mode=mode, id=home.name, name=name, group=group, step=step)

    def finish(self) -> None:
        """The run opened last has ended: its result is on disk."""
        if self.child is not None:
            self._say(finish=True)

    def summary(self, folder: Any, mode: str, group: str) -> None:
        """Logs a report folder's figures and its fit.json as a run of its own."""
        if mode != "off":
            home = str(Path(str(folder)).absolute())
            self._say(summary=home, mode=mode, id=f"law-{group}", name=f"{group} law", group=group)

    def close(self, seconds: float = 0.0) -> None:
        """Lets the child end by itself; waits for it at most `seconds`."""
        if self.child is not None and self.child.stdin is not None:
            try:
                self.child.stdin.close()
                self.child.wait(seconds)
            except (OSError, subprocess.TimeoutExpired):
                pass
            self.child = None


def wandb_mode(mode: str) -> str:
    """'online' only where it was asked for and a key is there; W&B would block or die without one."""
    choose("config.run.wandb", mode, ["offline", "online", "off"])
    if mode != "online" or os.environ.get("WANDB_API_KEY"):
        return mode
    try:
        netrc = Path(os.environ.get("NETRC") or Path.home() / ".netrc")
        return "online" if "wandb" in netrc.read_text(errors="ignore") else "offline"
    except (OSError, RuntimeError):  # none, not ours to read, or no home
        return "offline"


LINGER = 600.0  # seconds that the child may go on after its parent's end: an upload of what was logged


def _mirror() -> None:
    """The child: reads orders from stdin, rows from files. Ends at end of input, which a killed parent is too."""
    import queue
    import shutil
    import threading

    os.nice(10)
    orders: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()

    def listen() -> None:  # a thread, as W&B may hang in anything that meets the network
        for line in sys.stdin:
            orders.put(json.loads(line))
        orders.put(None)
        time.sleep(LINGER)
        os._exit(1)

    threading.Thread(target=listen, daemon=True).start()
    os.environ |= {"WANDB_SILENT": "true", "WANDB_CONSOLE": "off"}

    def note(folder: Path, text: str) -> None:
        """A view has no terminal: what went wrong is told beside W&B's own logs."""
        (folder / "wandb").mkdir(exist_ok=True)
        with open(folder / "wandb" / "view.log", "a", encoding="utf-8") as f:
            f.write(f"{record.now()} {' '.join(text.split())}\n")

    try:
        import wandb
    except Exception as e:
        first = orders.get() or {}
        note(Path(first.get("open") or first["summary"]), f"{type(e).__name__}: {e}")
        raise

    online = True
    run: Any = None
    tails: list[_Tail] = []
    held: dict[int, dict[str, Any]] = {}  # rows that W&B hasn't, by step
    after = newest = 0
    folder = Path()

    def start(order: dict[str, Any], folder: Path, **kwargs: Any) -> Any:
        nonlocal online

        def init(mode: Any) -> Any:
            return wandb.init(
                project="bigmodel",
                dir=str(folder),
                id=order["id"],
                name=order["name"],
                group=order["group"] or None,
                mode=mode,
                resume="allow",
                settings=wandb.Settings(x_disable_stats=True, init_timeout=20, finish_timeout=60),
                **kwargs,
            )

        if order["mode"] == "online" and online:
            try:
                return init("online")
            except Exception as e:
                note(folder, f"{type(e).__name__}: {e}; offline from here, `wandb sync` uploads it later")
                wandb.teardown()  # else the id counts as in use
                for attempt in (folder / "wandb").glob(f"run-*-{order['id']}"):
                    if not any((attempt / "files").iterdir()):
                        shutil.rmtree(attempt, ignore_errors=True)
                online = False  # nor do a sweep's next runs wait for it
        return init("offline")

    def pump(last: bool = False) -> None:
        nonlocal newest
        for tail in tails:
            for row in tail.rows():
                held.setdefault(row["step"], {}).update(row)
                newest = row["step"] if tail is tails[0] else newest
        # W&B takes no step back: a row of speed.jsonl waits for the metrics of earlier steps.
        for step in sorted(s for s in held if last or s <= newest):
            row = held.pop(step)
            if step > after:
                run.log({k: v for k, v in row.items() if k != "step"}, step=step)

    def end() -> None:
        nonlocal run
        if run is not None:
            pump(last=True)
            for tail in tails:
                if tail.damaged:
                    note(folder, f"{tail.damaged} damaged rows of {tail.path.name} are left out")
            run.log({}, commit=True)  # the last row, before its train loss could overwrite the result's
            result = record.read_json(folder / "result.json")
            if result:
                run.summary.update(result)
            run.finish(exit_code=0 if result else 1)
        run = None

    def law(order: dict[str, Any]) -> None:
        report = Path(order["summary"])
        shutil.rmtree(report / "wandb", ignore_errors=True)  # a report is rewritten, not appended to
        # A table is staged here until its upload: not in the home folder, where offline ones would pile up.
        os.environ["WANDB_DATA_DIR"] = str(report / "wandb" / "data")
        law = start(order, report, job_type="law")
        fit = record.read_json(report / "fit.json") or {}
        table = wandb.Table(columns=["parameter", "value", "low", "high"])
        values = {**fit.get("params", {}), **fit.get("optimal", {})}
        for name, ends in fit.get("ci", {}).items():
            table.add_data(name, values.get(name), *(ends or (None, None)))
        pictures = [p for p in sorted(report.rglob("*.png")) if p.parent.name != "column"]  # the same, for print
        figures = {p.relative_to(report): wandb.Image(str(p)) for p in pictures}
        law.log({"law": table, **{str(p.with_suffix("")): image for p, image in figures.items()}})
        law.summary.update(fit)
        law.finish()

    def obey(order: dict[str, Any] | None) -> None:
        nonlocal run, tails, held, newest, after, folder
        if order is None or "finish" in order:
            end()
        elif "open" in order:
            end()
            folder = Path(order["open"])
            earlier = list((folder / "wandb").glob(f"*run-*-{order['id']}"))
            # Offline, W&B doesn't resume: this session's run has all rows, and takes the place of those that nobody
            # has uploaded. What has been uploaded stays, and only later rows follow.
            alone = all(p.name.startswith("offline-") and not any(p.glob("*.wandb.synced")) for p in earlier)
            after = 0 if alone else order["step"]
            run = start(order, folder, config=record.read_json(folder / "config.json"))
            for path in earlier if alone else []:
                shutil.rmtree(path, ignore_errors=True)
            tails, held, newest = [_Tail(folder / "metrics.jsonl"), _Tail(folder / "speed.jsonl")], {}, 0
        else:
            law(order)

    while True:
        try:
            try:
                order = orders.get(timeout=1.0)
            except queue.Empty:
                if run is not None:
                    pump()
                continue
            obey(order)
        except Exception as e:  # one run's trouble is not the next one's
            with contextlib.suppress(Exception):
                note(folder, f"{type(e).__name__}: {e}")
            run = None
            with contextlib.suppress(Exception):
                wandb.teardown()
        if order is None:
            return


class _Tail:
    """The unread whole lines of a growing file. `damaged`: how many of them are no rows."""

    def __init__(self, path: Path):
        self.path, self.at, self.damaged = path, 0, 0

    def rows(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        with self.path.open("rb") as f:
            f.seek(self.at)
            text = f.read()
        whole = text[: text.rfind(b"\n") + 1]
        self.at += len(whole)
        found = []
        for line in whole.splitlines():
            try:
                row = json.loads(line)
                if not isinstance(row["step"], int) or not is_whole(row):
                    raise TypeError("no row, or a damaged one")
                row.pop("crc32", None)
                found.append(row)
            except (ValueError, TypeError, KeyError, RecursionError):
                self.damaged += 1
        return found


if __name__ == "__main__":
    try:
        _mirror()
    except Exception as e:  # a view: whatever goes wrong here ends here
        sys.exit(f"{type(e).__name__}: {e}")
