"""What a session of a run works with."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from etils import epath
from jax.sharding import Mesh

from bigmodel.run import processes
from bigmodel.run.budget import Budget
from bigmodel.run.progress import Line
from bigmodel.run.view import View


@dataclass(frozen=True)
class Job:
    """A finalised config, where it runs, and who hears of it.

    Attributes:
      claim: that this process may write in `folder`; None in all processes but the first.
      name, group: how W&B and the progress line show the run.
    """

    frozen: Any
    plan: Budget
    folder: epath.Path
    mesh: Mesh
    claim: Any
    watch: processes.Watch
    name: str
    group: str
    view: View
    line: Line
    began: float = field(default_factory=time.time)

    @property
    def lead(self) -> bool:
        """Whether this process writes the record."""
        return self.claim is not None

    def alive(self) -> None:
        """Tells the watchdog, and whoever might take the claim, that work goes on."""
        self.watch.progress()
        if self.claim:
            self.claim.renew()
