"""What a session writes while it trains: rows of metrics, of speed and of branches; the progress line; W&B."""

from __future__ import annotations

import math
import time
from typing import Any

from bigmodel.ops import platforms, sharding
from bigmodel.run import optim, record
from bigmodel.run.job import Job
from bigmodel.run.view import wandb_mode

BRANCH = ("end", "alive")  # what each row of branches.jsonl has


def lost(job: Job, meta: dict[str, Any]) -> str:
    """Which rows that a result is computed from (checks, gradient noise, branches) are lost of those that a
    checkpoint's metadata claims; "": none, and the run can go on from there."""
    train = job.frozen.train
    needed = {"metrics": bool(train.patience or train.noise_scale), "branches": bool(job.frozen.optim.branches)}
    for name, claim in meta.get("rows", {}).items():
        if claim and needed.get(name):
            keys = BRANCH if name == "branches" else ()
            if found := record.damage(job.folder / f"{name}.jsonl", meta["step"], claim, keys):
                return f"{found}, and the run's result depends on them"
    return ""


class Log:
    """The files metrics.jsonl, speed.jsonl and, of a run with branches, branches.jsonl; in process 0 alone.

    Attributes:
      last_loss: the last finite training loss; NaN: none yet.
      began: when the run's first session would have begun, had there been no pause since.
    """

    def __init__(self, job: Job, start: int, claimed: dict[str, Any]) -> None:
        """Opens the files at step `start`; `claimed` says which rows the checkpoint there counts on."""
        self.job, self.frozen, self.plan = job, job.frozen, job.plan
        kept = ("metrics", "speed", *(["branches"] if self.frozen.optim.branches else []))
        self.files = {
            name: record.Rows(
                job.folder / f"{name}.jsonl",
                start,
                claimed.get(name),
                BRANCH if name == "branches" else (),
                job.stored,
            )
            for name in (kept if job.lead else ())
        }
        self.last_loss = self.files["metrics"].last("loss", math.nan) if self.files else math.nan
        # Less the seconds that earlier sessions of this run took.
        self.began = job.began - (self.files["speed"].last("seconds", 0.0) if self.files else 0.0)
        self.window, self.window_began = start, time.time()
        self.peak = platforms.peak_flops(job.mesh)
        if job.lead:
            self._open_view(start)

    def _open_view(self, start: int) -> None:
        job, asked = self.job, self.frozen.run.wandb
        mode = wandb_mode(asked)
        if asked == "online" and "://" in str(job.folder):
            job.line.say(f"config.run.wandb=online: W&B shows no run of an object store, as {job.folder} is")
        elif mode != asked and job.view.child is None:  # once, where many runs share a view
            job.line.say(
                f"W&B is offline, without WANDB_API_KEY or a key in ~/.netrc: `wandb sync {job.folder}/wandb/offline-*`"
            )
        job.view.open(job.folder, mode, job.name, job.group, start)

    def add(self, name: str, row: dict[str, Any]) -> None:
        if self.files:
            self.files[name].add(row)

    def step(self, done: int, device_metrics: Any) -> str:
        """Reads the metrics of step `done`, waiting for it, and logs them. 'diverged' if the run is over, else ''."""
        row = {k: sharding.to_host(v).item() for k, v in device_metrics.items()}
        self.job.alive()
        over = not row.pop("ok")
        if math.isfinite(row["loss"]):
            self.last_loss = row["loss"]
        steps = self.plan.steps
        if done % self.frozen.run.log_every == 0 or done == steps or over:
            rate = optim.learning_rate(self.frozen.optim, done - 1, steps, self.frozen.train.batch_size)
            clean = {k: v if math.isfinite(v) else None for k, v in row.items()}  # NaN is not JSON
            self.add("metrics", {"step": done, self.plan.unit: done * self.plan.tokens // steps, "lr": rate, **clean})
        return "diverged" if over else ""

    def speed(self, done: int, due: bool) -> None:
        """Shows and notes the speed since the last time, if that is `due` or the progress line's turn."""
        if done <= self.window or not (self.job.line.due() or due):
            return
        per_second = (done - self.window) / max(1e-9, time.time() - self.window_began)
        speed = {
            f"{self.plan.unit}_per_second": per_second * self.plan.tokens / self.plan.steps,
            "mfu": per_second * self.plan.flops_per_step / self.peak,
        }
        self.job.line.show(done, self.last_loss, speed, per_second)
        token = {"token": self.job.stored.token} if self.job.stored else {}
        self.add("speed", {"step": done, "seconds": time.time() - self.began, **speed, **token})
        self.window, self.window_began = done, time.time()

    def claims(self, step: int) -> dict[str, Any]:
        """What a checkpoint of `step` says of the rows before it, which are on disk then."""
        for file in self.files.values():
            file.flush()
        return {name: file.claim(step) for name, file in self.files.items()}

    def close(self) -> None:
        for file in self.files.values():
            file.close()
