"""What follows from a run's rows: gradient noise, early stopping, branches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from etils import epath

from bigmodel.run import budget, record


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


def no_better(losses: Sequence[float], patience: int) -> bool:
    """Whether none of the last `patience` losses is lower than all before them."""
    return len(losses) > patience and min(losses[-patience:]) >= min(losses[:-patience])


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
