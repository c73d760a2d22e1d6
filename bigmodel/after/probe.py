"""Few-shot transfer: a linear probe on a trained network's features, which stay as they are.

As Zhai et al. 2021 (arXiv:2106.04560, section 3) and Kolesnikov et al. 2020 (arXiv:1912.11370, section 3.3) report it:
least squares with a penalty, of targets -1 and 1, solved in closed form.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import FrozenConfigDict

from bigmodel import data
from bigmodel.after import evaluate
from bigmodel.after.evaluate import Run
from bigmodel.errors import UsageError

PENALTY = 2.0**10  # of standardised features; chosen, not searched
BATCH = 256


def on(run: Run, name: str) -> Run:
    """A run that tells pictures apart, with other prepared pictures of the same size."""
    changed = run.config.as_configdict()
    changed.data.update(name=name, fingerprint="", examples=0)
    data.finalize(changed.data, changed.run.data_dir)
    sizes = data.describe(changed.data, changed.run.data_dir).sizes
    for key in ("image_height", "image_width", "channels"):
        if sizes[key] != run.config.model[key]:
            raise UsageError(f"--probe of {name!r}: its {key} is {sizes[key]}, the run's is {run.config.model[key]}")
    return dataclasses.replace(run, config=FrozenConfigDict(changed))


def features(run: Run, split: str, limit: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(what the head reads, NC in float64; classes N) of a split's examples: the outputs under a head of ones."""
    params = run.variables["params"]
    C = params["head"].shape[0]
    cfg = run.config.model.as_configdict()
    cfg.num_classes = C
    model = run.family.Model(FrozenConfigDict(cfg))
    variables = {**run.variables, "params": {**params, "head": jnp.eye(C), "head_bias": jnp.zeros(C)}}
    own = dataclasses.replace(run, variables=variables)

    def read(variables: Any, batch: Any) -> jax.Array:
        return model.apply(variables, *run.family.inputs(cfg, batch))

    found = [(x, batch["label"]) for batch, x in evaluate.outputs(own, read, run.examples(split), BATCH, limit)]
    x_NC, y_N = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return x_NC.astype(np.float64), y_N


def accuracy(run: Run, shots: int, limit: int = 0, seeds: int = 3) -> dict[str, Any]:
    """Test accuracy of probes trained on `shots` drawn examples of each class: mean, and that of each seed.

    UsageError: a class has fewer training examples.
    """
    train_NC, train_N = features(run, "train")
    test_NC, test_N = features(run, "test", limit)
    classes, counts = np.unique(train_N, return_counts=True)
    if counts.min() < shots:
        raise UsageError(f"--probe={shots}: class {classes[counts.argmin()]} has {counts.min()} training examples")
    found = []
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        chosen = np.concatenate([rng.permutation(np.flatnonzero(train_N == c))[:shots] for c in classes])
        x_NC, targets = train_NC[chosen], np.where(train_N[chosen][:, None] == classes, 1.0, -1.0)
        said = predictions(x_NC, targets, test_NC).argmax(axis=1)
        found.append(float((classes[said] == test_N).mean()))
    return {"shots": shots, "examples": len(test_N), "accuracy": float(np.mean(found)), "by_seed": found}


def predictions(x_NC: np.ndarray, targets_NV: np.ndarray, test_MC: np.ndarray) -> np.ndarray:
    """Of the test rows, MV: W = (X'X + penalty)^-1 X' Y of standardised features and a constant column."""
    mean, std = x_NC.mean(axis=0), x_NC.std(axis=0) + 1e-8

    def ready(x: np.ndarray) -> np.ndarray:
        return np.concatenate([(x - mean) / std, np.ones((len(x), 1))], axis=1)

    x = ready(x_NC)
    # By the smaller of both systems: X' (X X' + penalty)^-1 Y is the same.
    if len(x) < x.shape[1]:
        weights = x.T @ np.linalg.solve(x @ x.T + PENALTY * np.eye(len(x)), targets_NV)
    else:
        weights = np.linalg.solve(x.T @ x + PENALTY * np.eye(x.shape[1]), x.T @ targets_NV)
    return ready(test_MC) @ weights
