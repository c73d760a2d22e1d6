"""The record of a run, and W&B as a view of it. Layer 1; alone in importing wandb.

A run's folder holds

    config.json      the frozen config
    metrics.jsonl    a row a logged step: everything that the seed determines, nothing that the clock does
    speed.jsonl      tokens per second, MFU: what the clock says
    result.json      the outcome, written last and whole
    error.json       instead, if the run failed

W&B runs in a process of its own that reads these files (`python -m bigmodel.track`), so that a missing
key, terminal or network can't delay, slow or stop a run. It is offline unless asked otherwise.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any

from etils import epath

from bigmodel.config import Busy, UsageError


def read_json(path: Any) -> Any:
    """The parsed file, or None if there is none or it is not whole."""
    try:
        return json.loads(epath.Path(path).read_text())
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return None


def write_json(path: Any, value: Any) -> None:
    """Atomic: a reader sees the old file or the new one."""
    path = epath.Path(path)
    text = json.dumps(value, indent=1, sort_keys=True) + "\n"
    temporary = path.parent / f".{path.name}.{os.getpid()}.tmp"
    temporary.write_text(text)
    temporary.replace(path)


def read_rows(path: Any) -> list[dict[str, Any]]:
    """Rows of a .jsonl; a torn last line is left out."""
    try:
        lines = epath.Path(path).read_text().splitlines()
    except FileNotFoundError:
        return []
    rows = []
    for line in lines:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


class Rows:
    """An append-only .jsonl that a resume cuts back to its step: row for row what no kill would have left."""

    def __init__(self, path: Any, step: int):
        self.path = epath.Path(path)
        kept = [r for r in read_rows(self.path) if r["step"] <= step]
        self.local = "://" not in str(path)
        self.lines = [json.dumps(r) for r in kept]
        self.file: IO[str] | None = None
        if self.local:
            temporary = self.path.parent / f".{self.path.name}.tmp"
            temporary.write_text("".join(line + "\n" for line in self.lines))
            temporary.replace(self.path)
            self.file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 (kept open for the run)

    def add(self, row: dict[str, Any]) -> None:
        if self.file is not None:
            self.file.write(json.dumps(row) + "\n")
        else:
            self.lines.append(json.dumps(row))

    def flush(self) -> None:
        """On disk when this returns: called before a checkpoint that claims these rows."""
        if self.file is not None:
            self.file.flush()
            os.fsync(self.file.fileno())
        else:  # object stores don't append
            self.path.write_text("".join(line + "\n" for line in self.lines))

    def close(self) -> None:
        self.flush()
        if self.file is not None:
            self.file.close()


class Lock:
    """At most one process trains a folder: an flock, freed by the kernel however the holder dies.

    Object stores have none; there the launching engine's one-job-per-id has to do.
    """

    def __init__(self, folder: Any):
        self.file: IO[str] | None = None
        if "://" in str(folder):
            return
        import fcntl

        self.file = open(Path(str(folder)) / "lock", "w")  # noqa: SIM115 (held until close)
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.file.close()
            raise Busy(f"{folder}: another process is training this run") from None

    def close(self) -> None:
        if self.file is not None:
            self.file.close()

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def is_locked(folder: Any) -> bool:
    """Whether a live process trains this folder."""
    if not (Path(str(folder)) / "lock").exists():
        return False
    try:
        Lock(folder).close()
        return False
    except Busy:
        return True


# ------------------------------------------------------------------------------------- W&B


class View:
    """A child process that mirrors run folders to W&B. Every call returns at once."""

    def __init__(self) -> None:
        self.child: subprocess.Popen[str] | None = None

    def _say(self, **message: Any) -> None:
        try:
            if self.child is None:
                self.child = subprocess.Popen(
                    [sys.executable, "-m", "bigmodel.track"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    text=True,
                    start_new_session=True,  # a Ctrl-C of the run's terminal is not the view's
                    env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
                )
            assert self.child.stdin is not None
            self.child.stdin.write(json.dumps(message) + "\n")
            self.child.stdin.flush()
        except OSError:
            pass  # the view is gone; the record is on disk

    def open(self, folder: Any, mode: str, name: str, group: str, step: int) -> None:
        """Starts to mirror `folder` from the row after `step`. mode: 'offline', 'online' or 'off'."""
        if mode != "off" and "://" not in str(folder):
            self._say(open=str(folder), mode=mode, id=Path(str(folder)).name, name=name, group=group, step=step)

    def finish(self) -> None:
        """The run opened last has ended: its result is on disk."""
        if self.child is not None:
            self._say(finish=True)

    def summary(self, folder: Any, mode: str, group: str) -> None:
        """Logs a report folder's figures and its fit.json as a run of its own."""
        if mode != "off":
            self._say(summary=str(folder), mode=mode, id=f"law-{group}", name=f"{group} law", group=group)

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
    if mode not in ("offline", "online", "off"):
        raise UsageError(f"config.run.wandb={mode!r} is not one of offline, online, off")
    netrc = Path(os.environ.get("NETRC", Path.home() / ".netrc"))
    key = os.environ.get("WANDB_API_KEY") or (netrc.is_file() and "wandb" in netrc.read_text(errors="ignore"))
    return "offline" if mode == "online" and not key else mode


def _mirror() -> None:
    """The child: reads orders from stdin, rows from files. Ends at end of input."""
    import select
    import shutil

    os.nice(10)
    os.environ |= {"WANDB_SILENT": "true", "WANDB_CONSOLE": "off"}
    import wandb

    def start(order: dict[str, Any], folder: Path, **kwargs: Any) -> Any:
        return wandb.init(
            project="bigmodel",
            dir=str(folder),
            id=order["id"],
            name=order["name"],
            group=order["group"] or None,
            mode="online" if order["mode"] == "online" else "offline",
            resume="allow",
            settings=wandb.Settings(x_disable_stats=True, init_timeout=20),
            **kwargs,
        )

    class Tail:
        """The unread whole lines of a growing file."""

        def __init__(self, path: Path):
            self.path, self.at = path, 0

        def rows(self) -> list[dict[str, Any]]:
            if not self.path.exists():
                return []
            with self.path.open() as f:
                f.seek(self.at)
                text = f.read()
            whole = text[: text.rfind("\n") + 1]
            self.at += len(whole)
            return [json.loads(line) for line in whole.splitlines()]

    run: Any = None
    tails: list[Tail] = []
    after = 0
    folder = Path()

    def pump() -> None:
        merged: dict[int, dict[str, Any]] = {}
        for tail in tails:
            for row in tail.rows():
                merged.setdefault(row["step"], {}).update(row)
        for step in sorted(s for s in merged if s > after):
            run.log({k: v for k, v in merged[step].items() if k != "step"}, step=step)

    def end() -> None:
        nonlocal run
        if run is not None:
            pump()
            result = read_json(folder / "result.json")
            if result:
                run.summary.update(result)
            run.finish(exit_code=0 if result else 1)
        run = None

    buffer = ""
    while True:
        ready = select.select([sys.stdin], [], [], 1.0)[0]
        chunk = os.read(sys.stdin.fileno(), 1 << 16).decode() if ready else None
        if chunk:
            buffer += chunk
        *lines, buffer = buffer.split("\n")
        for line in lines:
            order = json.loads(line)
            if "open" in order:
                end()
                folder, after = Path(order["open"]), order["step"]
                run = start(order, folder, config=read_json(folder / "config.json"))
                tails = [Tail(folder / "metrics.jsonl"), Tail(folder / "speed.jsonl")]
            elif "finish" in order:
                end()
            else:
                report = Path(order["summary"])
                shutil.rmtree(report / "wandb", ignore_errors=True)  # a report is rewritten, not appended to
                law = start(order, report, job_type="law")
                fit = read_json(report / "fit.json") or {}
                table = wandb.Table(columns=["parameter", "value", "low", "high"])
                values = {**fit.get("params", {}), **fit.get("optimal", {})}
                for name, (low, high) in fit.get("ci", {}).items():
                    table.add_data(name, values.get(name), low, high)
                figures = {p.stem: wandb.Image(str(p)) for p in sorted(report.rglob("*.png")) if "wandb" not in p.parts}
                law.log({"law": table, **figures})
                law.summary.update(fit)
                law.finish()
        if run is not None:
            pump()
        if chunk == "":
            end()
            return


def git_state() -> dict[str, Any]:
    """{'git_sha', 'git_diff'} of the working folder's repository against HEAD; None outside one."""

    def git(*args: str) -> str | None:
        try:
            out = subprocess.run(["git", *args], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return out.stdout if out.returncode == 0 else None

    sha = git("rev-parse", "HEAD")
    diff = git("diff", "HEAD") if sha else None
    return {"git_sha": sha and sha.strip(), "git_diff": diff}


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


if __name__ == "__main__":
    try:
        _mirror()
    except Exception as e:  # a view: whatever goes wrong here ends here
        sys.exit(f"{type(e).__name__}: {e}")
