"""Resamples without the shortcut: each gets the law's whole grid of starts, over all cores.

What the shortcut, starting every resample from the optima of the runs themselves, could miss; benchmarks/fit_speed.py
counts how often it does.

Legend: P parameters, R resamples, n runs.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor

import numpy as np
from rich.progress import track

from bigmodel.laws import forms, search

Job = tuple[str, dict[str, np.ndarray], float, float, str, np.ndarray]
BATCH = 4  # resamples a task: seconds of work, so that the bar moves and the cores end together


def refit(
    law: str,
    data: Mapping[str, np.ndarray],
    counts: np.ndarray,
    delta: float,
    above: float = 1.0,
    estimator: str = "huber",
    workers: int = 0,
    progress: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Fits every resample from every start.

    Args:
      law: as `laws.get` takes it.
      data: columns of the runs, each (n,).
      counts: how often each run counts in each resample, (R, n).
      workers: processes; 0: one a core.
      progress: show a bar.

    Returns:
      theta (R, P) and the objectives (R,).
    """
    jobs: list[Job] = [
        (law, dict(data), delta, above, estimator, counts[i : i + BATCH]) for i in range(0, len(counts), BATCH)
    ]
    workers = min(workers or len(os.sched_getaffinity(0)), max(len(jobs), 1))
    # Not forked: the caller may have threads.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        parts = list(track(pool.map(_batch, jobs), "resamples", len(jobs), disable=not progress))
    if not parts:
        return np.empty((0, len(forms.get(law).names))), np.empty(0)
    return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])


def _batch(job: Job) -> tuple[np.ndarray, np.ndarray]:
    law, data, delta, above, estimator, counts = job
    problem = search.problem_of(forms.get(law), data, delta, above)
    found = [search.search(problem, own, estimator) for own in counts]
    return np.array([f.theta for f in found]), np.array([f.objective for f in found])
