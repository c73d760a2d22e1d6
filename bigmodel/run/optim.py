"""Optimizers (optax), schedules, decay masks.

An optimizer here is built with learning rate 1: the rate of each step is an argument of the compiled
step, computed on the host by `learning_rate`. So one compilation serves every rate, schedule and length.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from bigmodel import tree
from bigmodel.errors import UsageError, choose

OPTIMIZERS = ("adamw", "adafactor", "lion", "muon", "sgd")
SCHEDULES = ("constant", "cosine", "linear", "rsqrt", "wsd")
DTYPES = ("float32", "bfloat16")
SMALLEST, LARGEST = 1e-37, 1e9  # with these, updates are finite in float32 where gradients are
RATE_KEYS = ("lr", "schedule", "warmup", "final_lr", "decay", "branches")  # used on the host only: not compiled


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            name="adamw",  # or adafactor, lion, muon, sgd
            lr=1e-3,  # peak learning rate
            schedule="cosine",  # or constant, linear, rsqrt, wsd
            warmup=0.02,  # linear warm-up, as a fraction of the steps
            final_lr=0.1,  # last rate over peak rate (cosine, linear, wsd)
            decay=0.2,  # wsd: fraction of the steps that decay
            branches=(),  # wsd: fractions of the horizon at which further decays from the same trunk end
            weight_decay=0.1,  # decoupled, times the learning rate (Loshchilov & Hutter, arXiv:1711.05101)
            l1=0.0,  # added to the loss: l1 sum |w| + l2 / 2 sum w^2, over what weight_decay is of
            l2=0.0,
            decay_exclude=tree.NOT_MATRICES,  # regex of parameter paths that don't decay
            b1=0.9,
            b2=0.95,
            eps=1e-8,
            momentum=0.9,  # sgd and muon; 0: plain gradient descent
            state_dtype="float32",  # or bfloat16, in which moments are kept between steps
            clip=1.0,  # global gradient norm; 0: no clipping
        )
    )


def finalize(cfg: ConfigDict) -> None:
    choose("config.optim.name", cfg.name, OPTIMIZERS)
    choose("config.optim.schedule", cfg.schedule, SCHEDULES)
    choose("config.optim.state_dtype", cfg.state_dtype, DTYPES)
    if cfg.state_dtype == "bfloat16" and cfg.b2 > 0.99:
        raise UsageError(
            f"config.optim.b2={cfg.b2}: a moment in bfloat16, of 8 bits, would never decay by 1 - b2; at most 0.99"
        )
    for key in ("warmup", "final_lr", "decay"):
        if not 0 <= cfg[key] <= 1:
            raise UsageError(f"config.optim.{key}={cfg[key]}: a fraction, must be in [0, 1]")
    if cfg.branches and cfg.schedule != "wsd":
        raise UsageError(f"config.optim.branches={cfg.branches}: only the schedule wsd has a trunk to decay from")
    if not all(isinstance(f, float) and 0 < f < 1 for f in cfg.branches):
        raise UsageError(f"config.optim.branches={cfg.branches}: fractions of the horizon, each in (0, 1)")
    for key in ("b1", "b2", "momentum"):
        if not 0 <= cfg[key] < 1:
            raise UsageError(f"config.optim.{key}={cfg[key]}: must be in [0, 1)")
    for key in ("b1", "b2"):
        if np.float32(cfg[key]) == 1:
            raise UsageError(f"config.optim.{key}={cfg[key]}: is 1 in float32")
    if cfg.lr <= 0:
        raise UsageError(f"config.optim.lr={cfg.lr}: must be positive")
    if cfg.eps < SMALLEST:
        raise UsageError(f"config.optim.eps={cfg.eps}: must be positive in float32: at least {SMALLEST}")
    for key in ("weight_decay", "l1", "l2", "clip"):
        if cfg[key] < 0:
            raise UsageError(f"config.optim.{key}={cfg[key]}: must not be negative")
    for key in ("weight_decay", "l1", "l2"):
        if cfg[key] > LARGEST:
            raise UsageError(f"config.optim.{key}={cfg[key]}: at most {LARGEST:g}, for steps to stay within float32")
    try:
        re.compile(cfg.decay_exclude)
    except re.error as e:
        raise UsageError(f"config.optim.decay_exclude={cfg.decay_exclude!r}: not a regex: {e}") from e


def branch_steps(cfg: Any, steps: int) -> dict[int, int]:
    """Where each wsd branch of a run of so many steps ends -> the step of the trunk from which it decays."""
    ends = sorted({max(1, round(fraction * steps)) for fraction in cfg.branches})
    return {end: end - max(1, round(cfg.decay * end)) for end in ends}


def learning_rate(cfg: Any, step: int, steps: int, end: int = 0) -> float:
    """Rate of step 0, 1, ..., steps - 1; of a wsd branch, `end` is its last step, and the warm-up is the run's.

    Linear warm-up over warmup * steps; then constant; cosine or linear to final_lr * lr at the last step;
    rsqrt: lr * sqrt(warm-up steps / step) (Vaswani et al., arXiv:1706.03762); wsd: constant, then linear to
    final_lr * lr over the last `decay` of the steps (Hägele et al., arXiv:2405.18392).
    """
    warm = round(cfg.warmup * steps)
    if step < warm:
        return cfg.lr * (step + 1) / warm
    done = (step - warm + 1) / max(1, steps - warm)
    if cfg.schedule == "cosine":
        return cfg.lr * (cfg.final_lr + (1 - cfg.final_lr) * 0.5 * (1 + math.cos(math.pi * done)))
    if cfg.schedule == "linear":
        return cfg.lr * (1 - (1 - cfg.final_lr) * done)
    if cfg.schedule == "rsqrt":
        return cfg.lr * math.sqrt(max(1, warm) / (step + 1))
    if cfg.schedule == "wsd":
        end = end or steps
        length = max(1, round(cfg.decay * end))
        past = max(0, step + 1 - (end - length)) / length
        return cfg.lr * (1 - (1 - cfg.final_lr) * past)
    return cfg.lr


def build(cfg: Any, rules: Any, rates: Any = None, gradients: Any = None) -> optax.GradientTransformation:
    """The optimizer at learning rate 1: add `rate * updates` to the parameters.

    Args:
      rules: the family's RULES; Muon reads from them which dimensions of a matrix are its input side.
      rates: tree of each parameter's own factor of the learning rate; None: all 1. Weight decay isn't multiplied: its
        strength in an epoch stays the same at every width (Wortsman et al. 2023, arXiv:2309.14322, section 3.4).
      gradients: tree of the sizes that gradients have, over the base's; AdamW divides by them what it is given, so that
        `eps` is as small beside the second moment as it is at the base (Everett et al. 2024, arXiv:2407.05872,
        section 4.4; Dey et al. 2025, arXiv:2505.01618, table 1).
    """

    def multiplied(factors: Any) -> list[optax.GradientTransformation]:
        if factors is None or all(f == 1 for f in jax.tree.leaves(factors)):
            return []
        return [optax.stateless(lambda updates, _: jax.tree.map(lambda u, f: u * f, updates, factors))]

    def decays(params: Any) -> Any:
        return tree.map_paths(lambda path, _: not re.search(cfg.decay_exclude, path), params)

    if cfg.name == "adamw":
        inverse = None if gradients is None else jax.tree.map(lambda g: 1 / g, gradients)
        direction = optax.chain(*multiplied(inverse), optax.scale_by_adam(b1=cfg.b1, b2=cfg.b2, eps=cfg.eps))
    elif cfg.name == "lion":
        direction = optax.scale_by_lion(b1=cfg.b1, b2=cfg.b2)
    elif cfg.name == "adafactor":
        direction = optax.chain(optax.adafactor(1.0), optax.scale(-1.0))
    elif cfg.name == "sgd":
        direction = optax.trace(cfg.momentum) if cfg.momentum else optax.identity()
    else:
        # consistent_rms: updates as large as AdamW's, so that one rate serves both (Liu et al., arXiv:2502.16982)
        muon = optax.contrib.muon(
            1.0,
            beta=cfg.momentum,
            eps=cfg.eps,
            adam_b1=cfg.b1,
            adam_b2=cfg.b2,
            consistent_rms=0.2,
            muon_weight_dimension_numbers=_matrix_sides(rules),
        )
        direction = optax.chain(muon, optax.scale(-1.0))
    steps = []
    if cfg.l1:
        sign = optax.stateless(lambda g, w: jax.tree.map(lambda g, w: g + cfg.l1 * jnp.sign(w), g, w))
        steps.append(optax.masked(sign, decays))
    if cfg.l2:
        steps.append(optax.add_decayed_weights(cfg.l2, decays))
    if cfg.clip:
        steps.append(optax.clip_by_global_norm(cfg.clip))
    whole = optax.chain(
        *steps, direction, *multiplied(rates), optax.add_decayed_weights(cfg.weight_decay, decays), optax.scale(-1.0)
    )
    return _kept_in(cfg.state_dtype, whole)


def _kept_in(dtype: str, tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """`tx` whose state's floats are `dtype` between steps; it computes in float32."""

    def cast(tree: Any, to: str) -> Any:
        floating = (jnp.float32, jnp.bfloat16)
        return jax.tree.map(lambda x: x.astype(to) if x.dtype in floating else x, tree)

    def update(grads: Any, state: Any, params: Any = None) -> Any:
        updates, state = tx.update(cast(grads, "float32"), cast(state, "float32"), params)
        return updates, cast(state, dtype)

    return optax.GradientTransformation(lambda params: cast(tx.init(params), dtype), update)


def _matrix_sides(rules: Any) -> Callable[[Any], Any]:
    """Muon's input and output axes: matrices inside a stack of layers; tables, heads, vectors go to Adam."""

    def of(path: str, x: Any) -> Any:
        if x.ndim < 3 or re.search(tree.NOT_MATRICES, path) or re.search(tree.EMBEDDINGS, path):
            return None
        inside, outside = tree.sides(rules, path, x.ndim)
        return optax.contrib.MuonDimensionNumbers(reduction_axis=inside, output_axis=outside)

    return lambda params: tree.map_paths(of, params)


def apply(params: Any, updates: Any, rate: jax.Array) -> Any:
    return jax.tree.map(lambda p, u: (p + rate * u).astype(p.dtype), params, updates)
