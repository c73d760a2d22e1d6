"""One attempt at a run: its config is checked, its folder claimed, and what goes wrong becomes one error.

`train` is what everybody calls; `loop.run` does the work.
"""

from __future__ import annotations

from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from bigmodel.errors import Busy, Retry, UsageError
from bigmodel.files import full_disk, writing
from bigmodel.ops import sharding
from bigmodel.run import budget, claims, identity, loop, processes, program, record
from bigmodel.run.job import Job
from bigmodel.run.progress import Line
from bigmodel.run.view import View


def train(unfrozen: ConfigDict, root: str = "runs", **kwargs: Any) -> dict[str, Any]:
    """Trains a config in the folder root/<run id>, from wherever it stands there; returns its result.

    Keywords and errors: see `attempt`.
    """
    return attempt(unfrozen, root, **kwargs)[0]


def attempt(
    unfrozen: ConfigDict,
    root: str,
    *,
    name: str = "",
    group: str = "",
    view: View | None = None,
    quiet: bool = False,
) -> tuple[dict[str, Any], bool]:
    """(result, whether anything had to be trained for it).

    Args:
      unfrozen: a config, finalised here.
      root: folder of runs, local or gs://.
      name, group: how W&B shows the run.
      view: the W&B process to share with other runs; None: one of its own.

    Raises:
      UsageError: the config, its data or its checkpoint can't be used.
      Busy: another process trains it.
      Retry: interrupted (SIGTERM, full disk): the same call continues.
    """
    frozen = budget.finalize(unfrozen)
    plan = budget.derive(frozen)
    run_id = identity.run_id(frozen)
    folder = epath.Path(root) / run_id
    identity.check(folder, frozen)
    result = record.read_result(folder)
    if result is not None and jax.process_count() == 1:
        return result, False
    mesh = sharding.make_mesh(frozen.run.mesh)
    program.check_batch(frozen, mesh)
    program.check_memory(frozen, mesh)
    lead = jax.process_index() == 0
    made = [p for p in (folder, *folder.parents) if "://" not in root and not p.exists()]
    claim, token, result = _claim(folder, lead)
    if result is not None:
        return result, False
    own_view = view or View()
    line = Line(f"{name or run_id}", plan.steps, quiet=quiet or not lead)
    try:
        with (
            full_disk(folder),
            program.within_memory(name or run_id),
            processes.Watch(frozen.run.watchdog, name or run_id) as watch,
        ):
            job = Job(frozen, plan, folder, mesh, claim, token, watch, name or run_id, group, own_view, line)
            return loop.run(job), True
    except UsageError:
        if lead and folder in made:  # a mistake leaves nothing behind
            folder.rmtree()
            for parent in made[1:]:
                if not any(parent.iterdir()):
                    parent.rmdir()
        raise
    finally:
        line.close()
        if view is None:
            own_view.close(seconds=5.0)
        if claim is not None:
            claim.close()


def _claim(folder: epath.Path, lead: bool) -> tuple[Any, int, dict[str, Any] | None]:
    """(the claim of process 0, None elsewhere; its token; the result, if the run is finished): all processes alike.

    Raises:
      Busy: somebody else trains it; whatever process 0 met, and Retry in the others.
    """
    claim, error, verdict = None, None, 0
    if lead:
        try:
            with writing(folder):
                folder.mkdir(parents=True, exist_ok=True)
                claim = claims.claim(folder)
            if record.read_result(folder) is not None:  # whoever held it before may have finished
                claim.close()
                verdict = 1
        except Exception as e:
            error, verdict = e, 2 if isinstance(e, Busy) else 3
    verdict = processes.agree(verdict)
    if error:
        raise error
    if verdict == 1:
        return None, 0, record.read_result(folder)
    if verdict:
        raise (Busy if verdict == 2 else Retry)(f"{folder}: process 0 can't claim this run")
    return claim, processes.agree(claim.token if claim else 0), None
