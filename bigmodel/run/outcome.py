"""What a run comes to: patience, gradient noise, branches, and the result that holds them."""

from __future__ import annotations

import math
import time
from typing import Any

import jax
from etils import epath

from bigmodel.run import budget, record
from bigmodel.run.job import Job
from bigmodel.run.log import BRANCH, Log


class Patience:
    """Early stopping: ends a run after `patience` checks in a row without a lower held-out loss.

    Attributes:
      checks: (step, held-out loss) of each check so far, those of earlier sessions included.
    """

    def __init__(self, folder: epath.Path, train: Any, start: int) -> None:
        """`train`: the config's section; `start`: the step that the run goes on from."""
        self.patience, self.every = train.patience, train.patience_steps
        rows = record.read_rows(folder / "metrics.jsonl") if self.patience else []
        rows = [row for row in rows if "eval_loss" in row and row["step"] <= start]
        self.checks = [(row["step"], row["eval_loss"]) for row in rows if row["step"] % self.every == 0]

    def due(self, step: int) -> bool:
        return bool(self.patience) and step % self.every == 0

    def check(self, step: int, loss: float) -> None:
        self.checks.append((step, loss))

    @property
    def over(self) -> bool:
        """Whether none of the last `patience` losses is lower than all before them."""
        losses, n = [loss for _, loss in self.checks], self.patience
        return bool(n) and len(losses) > n and min(losses[-n:]) >= min(losses[:-n])

    def best(self) -> dict[str, Any]:
        if not self.checks:
            return {}
        step, loss = min(self.checks, key=lambda check: check[1])
        return {"best_step": step, "best_loss": loss}


def noise_scale(folder: epath.Path, steps: int, units: float) -> dict[str, float | None]:
    """The gradient noise scale of the run's second half in units of D, where it was logged.

    Batches much smaller than it waste no data, much larger ones do (McCandlish et al. 2018, arXiv:1812.06162, equation
    2.8).
    """
    rows = [r for r in record.read_rows(folder / "metrics.jsonl") if r.get("grad_signal") is not None]
    rows = [r for r in rows if 2 * r["step"] > steps]
    if not rows:
        return {}
    noise, signal = (sum(r[k] for r in rows) / len(rows) for k in ("grad_noise", "grad_signal"))
    return {"noise_scale": noise / signal * units if signal > 0 else None}


def branch_row(result: dict[str, Any], row: dict[str, Any], plan: budget.Budget) -> dict[str, Any]:
    """What differs between a branch's result and its run's, as if the branch had been trained alone."""
    found = {k: v for k, v in row.items() if k.startswith("eval_")}
    return {
        **plan.after(row["end"]),
        "loss": found.pop("eval_loss"),
        "bits_per_byte": found.pop("eval_bits_per_byte", None),
        **found,
        "train_loss": None,
        "branch": row["end"],
    }


def result(
    job: Job,
    status: str,
    step: int,
    good: int,
    final: dict[str, float],
    log: Log,
    patience: Patience,
    source_state: dict[str, Any],
) -> dict[str, Any]:
    """The content of result.json.

    Args:
      status: "done" or "diverged".
      step, good: the last step, and the last one that changed the state.
      final: the last evaluation; empty of a run that diverged.
      source_state: git's, as `record.git_state` returns.
    """
    frozen, plan, mesh = job.frozen, job.plan, job.mesh
    found = {
        "run_id": job.folder.name,
        "name": job.name,
        "status": status,
        "family": frozen.family,
        "data": frozen.data.to_dict().get("name", frozen.data.source),
        "width": frozen.model.width,
        "depth": frozen.model.depth,
        **{k: v for k, v in plan.to_dict().items() if k not in ("state_bytes", "flops_per_step")},
        **(plan.after(step) if status == "done" else {}),
        **patience.best(),
        "loss": final.get("eval_loss"),
        "bits_per_byte": final.get("eval_bits_per_byte"),
        **{k: v for k, v in final.items() if k not in ("eval_loss", "eval_bits_per_byte")},
        **noise_scale(job.folder, plan.steps, plan.tokens / plan.steps / frozen.train.batch_size),
        "train_loss": log.last_loss if math.isfinite(log.last_loss) else None,
        "last_good_step": good,
        "seed": frozen.train.seed,
        "batch_size": frozen.train.batch_size,
        "lr": frozen.optim.lr,
        "device": mesh.devices.flat[0].device_kind,
        "num_devices": mesh.size,
        "jax_version": jax.__version__,
        "date": record.now(),
        "wall_seconds": round(time.time() - log.began, 3),
        "git_sha": source_state["git_sha"],
        "git_dirty": bool(source_state["git_diff"]),
    }
    if job.lead and frozen.optim.branches:
        rows = record.read_rows(job.folder / "branches.jsonl", BRANCH)
        found["branches"] = [branch_row(found, row, plan) for row in rows if row["alive"]]
    return found


def write(job: Job, found: dict[str, Any], source_state: dict[str, Any]) -> None:
    """Writes the result, which ends the run."""
    if source_state["git_diff"]:
        (job.folder / "git.diff").write_text(source_state["git_diff"])
    if job.stored:
        job.stored.finish({**found, "token": job.token})
    else:
        record.write_record(job.folder / "result.json", found)
    (job.folder / "error.json").unlink(missing_ok=True)
    job.view.finish()
