"""Settings compared over folds and seeds: cross-validation, and sweeps that compare rather than extrapolate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from bigmodel.errors import UsageError
from bigmodel.laws import sources

SCORES = {"loss": "loss", "accuracy": "eval_accuracy"}
REPEATS = ("data.fold", "train.seed")


def _leaves(tree: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """{'model.width': '64', ...}: each leaf as JSON, without the section `run`, which says where a run executes."""
    found: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            found |= _leaves(value, f"{prefix}{key}.") if prefix or key != "run" else {}
        else:
            found[prefix + key] = json.dumps(value)
    return found


def table(folder: str | Path) -> pd.DataFrame:
    """One row per setting, least loss first.

    Columns: the keys of the config in which the runs differ, without REPEATS; `runs`, folds times seeds; the mean of
    each score over them, and its standard deviation (NaN for one run).

    Raises:
      UsageError: no finished runs.
    """
    done = [(result, config) for result, config in sources.runs(folder) if result["status"] == "done"]
    if not done:
        raise UsageError(f"{str(folder)!r} has no finished runs")
    configs = pd.DataFrame([_leaves(config) for _, config in done]).fillna("null")  # families have keys of their own
    varied = [c for c in configs if c not in REPEATS and configs[c].nunique(dropna=False) > 1]
    scores = pd.DataFrame([{name: result.get(key) for name, key in SCORES.items()} for result, _ in done])
    scores = scores.dropna(axis=1, how="all").astype(float)
    groups = pd.concat([configs[varied].assign(runs=1), scores], axis=1).groupby(varied or [0] * len(done))
    told = {f"{s}_{how}": (s, how) for s in scores for how in ("mean", "std")}
    out = groups.agg(runs=("runs", "sum"), **told).reset_index()
    out = out.drop(columns=[c for c in out if c not in (*varied, "runs", *told)])
    for key in varied:
        out[key] = pd.Series([json.loads(value) for value in out[key]], dtype=object)  # an absent one stays None
    return out.sort_values("loss_mean").reset_index(drop=True)


def report(folder: str | Path, out: str | Path) -> str:
    """Writes settings.csv into `out`; returns its rows in lines."""
    frame = table(folder)
    home = Path(out)
    home.mkdir(parents=True, exist_ok=True)
    frame.to_csv(home / "settings.csv", index=False)
    scores = [s for s in SCORES if f"{s}_mean" in frame]
    own = [c for c in frame if c != "runs" and c not in {f"{s}_{how}" for s in scores for how in ("mean", "std")}]
    lines = []
    for row in frame.to_dict("records"):
        named = " ".join(f"{key.rpartition('.')[2]}={row[key]}" for key in own)
        said = ", ".join(
            f"{s} {row[f'{s}_mean']:.4f}" + (f" (deviation {row[f'{s}_std']:.4f})" if row["runs"] > 1 else "")
            for s in scores
        )
        lines.append(f"{named or 'one setting'}, {row['runs']} run{'s' * (row['runs'] > 1)}: {said}")
    return "\n".join([*lines, f"table: {home / 'settings.csv'}"])
