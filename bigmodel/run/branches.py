"""Decays from the trunk of a WSD run: each copies the state, decays to its end, is evaluated and forgotten."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from bigmodel.ops import sharding
from bigmodel.run import optim, record
from bigmodel.run.job import Job
from bigmodel.run.log import BRANCH, Log
from bigmodel.run.reader import Reader
from bigmodel.run.stop import Stop


class Branches:
    """The branches that are still to be trained.

    Args:
      evaluate: parameters and the rest of a state -> held-out metrics.
    """

    def __init__(self, job: Job, start: int, step: Callable[..., Any], evaluate: Callable[[Any], dict]) -> None:
        self.job, self.step, self.evaluate = job, step, evaluate
        self.forks = optim.branch_steps(job.frozen.optim, job.plan.steps)
        rows = record.read_rows(job.folder / "branches.jsonl", BRANCH)
        self.done = {row["end"] for row in rows if row["step"] <= start}

    def at(self, step: int) -> list[int]:
        """Ends of the branches that leave the trunk at `step` and aren't noted yet."""
        return [end for end, fork in self.forks.items() if fork == step and end not in self.done]

    def train(self, trunk: Any, step: int, end: int, key: Any, reader: Reader, log: Log, stop: Stop) -> bool:
        """Decays from the state `trunk` at `step` until `end` and notes the loss there.

        False: interrupted, with nothing noted.
        """
        frozen = self.job.frozen
        state = jax.tree.map(jnp.copy, trunk)  # the steps write over the state they are given
        ahead = reader.train(step, end)
        for t in range(step, end):
            rate = optim.learning_rate(frozen.optim, t, self.job.plan.steps, frozen.train.batch_size, end)
            state, metrics = self.step(state, next(ahead), jnp.float32(rate), key)
            if t % 16 == 0:
                jax.block_until_ready(metrics)
                self.job.alive()
            if stop.alone and stop.asked:
                return False
        found = self.evaluate(state)
        good = bool(sharding.to_host(metrics["ok"])) and all(map(math.isfinite, found.values()))
        log.add("branches", {"step": step, "end": end, "alive": good, **(found if good else {})})
        return True
