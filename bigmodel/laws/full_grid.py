"""Resamples without the shortcut: each gets the law's whole grid of starts, over all cores.

The shortcut is to start every resample from the optima of the runs themselves; benchmarks/fit_speed.py counts how often
it misses an optimum.

Legend: P parameters, R resamples, n runs.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
from rich.progress import track

from bigmodel.laws import forms, search
from bigmodel.laws.solve import Problem

BATCH = 4  # resamples a task: seconds of work, so that the bar moves and the cores end together


def refit(
    problem: Problem, counts: np.ndarray, workers: int = 0, progress: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Fits every resample from every start.

    Args:
      counts: how often each run counts in each resample, (R, n).
      workers: processes; 0: one a core.
      progress: show a bar.

    Returns:
      theta (R, P) and the objectives (R,).
    """
    if not len(counts):
        return np.empty((0, len(problem.law.names))), np.empty(0)
    # A law holds functions that can't be pickled: it goes by its name.
    options = (float(np.max(problem.delta)), problem.above, problem.estimator, problem.residuals_of)
    data = {**problem.row, problem.law.target: problem.target(problem.observed)}
    jobs = [(problem.law.name, data, options, counts[i : i + BATCH]) for i in range(0, len(counts), BATCH)]
    workers = min(workers or len(os.sched_getaffinity(0)), len(jobs))
    # Not forked: the caller may have threads.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        parts = list(track(pool.map(_batch, jobs), "resamples", len(jobs), disable=not progress))
    return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])


def _batch(job: tuple[str, Mapping[str, np.ndarray], tuple[Any, ...], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    law, data, options, counts = job
    problem = search.problem_of(forms.get(law), data, *options)
    found = [search.search(problem, own) for own in counts]
    return np.array([f.theta for f in found]), np.array([f.objective for f in found])
