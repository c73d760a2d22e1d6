"""Labels: which run each row is of. Rows of one run are resampled together."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd

from bigmodel.laws.sources import Source

# Columns that may say which run a row is of, the likeliest first; compared without case, spaces and signs.
RUN_IDS = ["runid", "runuuid", "uuid", "wandbid", "wandbrunid"]  # one value a row: each row is a run
RUN_NAMES = [*RUN_IDS, "run", "runname", "runnumber", "id", "trial", "trialid", "trunk", "jobid", "job", "name",
             "expid", "expname"]  # fmt: skip
# Names of a run, or of a kind of run: believed where a value has as many rows as a run has checkpoints.
KIND_NAMES = ["experiment", "experimentid", "experimentname", "exp", "modelname", "modelid", "model"]
CHECKPOINTS = 10


def label(source: Source, frame: pd.DataFrame, run: str) -> bool:
    """Sets the frame's run_id, with warnings of what follows. Returns whether rows of a run precede its end.

    Losses along one run share its start, its order of data and most of its steps: they are no independent runs.
    """
    column, labels = _labels(source, frame.get("N"), run)
    if column:
        frame["run_id"] = (source.cells[column] if labels is None else labels).to_numpy()
    elif run:
        frame["run_id"] = frame.index.astype(str)
    if labels is None:
        told = source.ours or source.kind == "wandb" or run
        if not told and (steps := _even_steps(frame)):
            source.warnings.append(f"{steps}: checkpoints of one run? --run=COLUMN names the column that tells runs")
        return False
    number = labels.nunique()
    if source.kind == "sweep" or number == len(labels):
        return False
    source.warnings.append(
        f"{len(labels)} rows of {number} runs by column {column!r}: intervals are over runs (--run=none: over rows)"
    )
    if "D" not in frame or not (frame.groupby(labels.to_numpy())["D"].nunique() > 1).any():
        return False
    source.warnings.append(
        "losses before a run's end are of a learning rate that has not decayed: finished runs may have another law"
    )
    return True


def _even_steps(frame: pd.DataFrame) -> str:
    """The start of a warning where, at most sizes, the data grow by equal steps, as checkpoints do; "" otherwise."""
    if not {"N", "D"} <= set(frame.columns):
        return ""
    groups = [np.sort(d.to_numpy()) for _, d in frame.groupby("N")["D"] if len(d) >= CHECKPOINTS]
    even = sum(bool(np.ptp(np.diff(d)) < 0.02 * np.diff(d).mean()) for d in groups if np.ptp(d) > 0)
    return f"at {even} sizes N the data D grow by equal steps" if even > frame["N"].nunique() / 2 else ""


def _labels(source: Source, sizes: pd.Series | None, asked: str) -> tuple[str, pd.Series | None]:
    """(column, which run each row is of): the column asked for, or one that by its name and values says so.

    A run has one size: a column of which a value has several `sizes` (n,) names something else, as a data set. Of runs
    that share a name, the seed tells them apart. (column, None): every row is a run, and the column names it.
    """
    cells = source.cells
    if asked == "none":
        return "", None
    if asked:
        column = source.column(asked, "run: ")
        return column, cells[column].astype(str)
    plain = {c: re.sub(r"[^a-z0-9]", "", str(c).lower()) for c in cells.columns}
    order = [*RUN_NAMES, *KIND_NAMES]
    unique = ""
    for column in sorted((c for c in plain if plain[c] in order), key=lambda c: order.index(plain[c])):
        labels = source.texts(column)
        if source.kind == "sweep" and column == "run_id":
            return column, labels
        if (labels == "").any() or labels.nunique() < 2:
            continue
        if labels.is_unique:
            unique = unique or column
            if plain[column] in RUN_IDS or source.kind == "wandb":
                return column, None
            continue
        if plain[column] not in RUN_IDS and "seed" in cells:
            labels = labels + " " + cells["seed"].astype(str)
        if sizes is not None and (sizes.groupby(labels.to_numpy()).nunique() > 1).any():
            continue
        if plain[column] in KIND_NAMES and labels.value_counts().median() < CHECKPOINTS:
            continue
        if not labels.is_unique:
            return column, labels
    return unique, None
