"""What a session of a run works with."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from etils import epath
from jax.sharding import Mesh

from bigmodel.run import claims, processes
from bigmodel.run.budget import Budget
from bigmodel.run.progress import Line
from bigmodel.run.view import View


@dataclass(frozen=True)
class Job:
    """A finalised config, where it runs, and who hears of it.

    Attributes:
      claim: that this process may write in `folder`; None in all processes but the first.
      token: of the claim, in every process; 0 on a disk.
      name, group: how W&B and the progress line show the run.
    """

    frozen: Any
    plan: Budget
    folder: epath.Path
    mesh: Mesh
    claim: Any
    token: int
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

    @property
    def stored(self) -> claims.ObjectClaim | None:
        """The claim through which the record is written, of a run in an object store."""
        return self.claim if isinstance(self.claim, claims.ObjectClaim) else None

    def alive(self) -> None:
        """Tells the watchdog that work goes on. Raises Busy: another worker has taken the run."""
        self.watch.progress()
        if self.claim:
            self.claim.check()
