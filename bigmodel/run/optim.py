"""Optimizers (optax), schedules, decay masks.

An optimizer here is built with learning rate 1: the rate of each step is an argument of the compiled
step, computed on the host by `learning_rate`. So one compilation serves every rate, schedule and length.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict, FrozenConfigDict

from bigmodel import tree
from bigmodel.config import coerce
from bigmodel.errors import UsageError, check_ranges, choose

OPTIMIZERS = ("adamw", "adafactor", "lion", "muon", "sgd")
SCHEDULES = ("constant", "cosine", "linear", "rsqrt", "wsd")
DTYPES = ("float32", "bfloat16")
SMALLEST, LARGEST = 1e-37, 1e9  # with these, updates are finite in float32 where gradients are
ELEMENTWISE = ("adamw", "lion", "sgd")  # each parameter's update follows from its own gradient alone
GROUP_KEYS = ("name", "lr_factor", "weight_decay", "b1", "b2", "eps", "momentum", "nesterov", "frozen")
RATE_KEYS = (
    "lr",
    "lr_batch",
    "schedule",
    "warmup",
    "final_lr",
    "decay",
    "branches",
)  # used on the host only: not compiled


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            name="adamw",  # or adafactor, lion, muon, sgd
            lr=1e-3,  # peak learning rate
            lr_batch=0,  # batch that lr is for; others have it in proportion (arXiv:1706.02677). 0: lr is for any
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
            nesterov=False,  # of sgd's momentum (Sutskever et al. 2013, PMLR 28)
            ema=0.0,  # decay of an average of the parameters, which is then what is evaluated and used; 0: none
            state_dtype="float32",  # or bfloat16, in which moments are kept between steps
            clip=1.0,  # global gradient norm; 0: no clipping
            layer_decay=1.0,  # the rate of each layer over that of the layer above it
            # parameters that learn otherwise: (regex of their paths, "key=value", ...); the first that matches counts.
            # Keys: those of GROUP_KEYS, as ("^text/", "frozen=true") or ("^head$", "lr_factor=10", "weight_decay=0")
            groups=(),
        )
    )


def finalize(cfg: ConfigDict) -> None:
    choose("config.optim.schedule", cfg.schedule, SCHEDULES)
    choose("config.optim.state_dtype", cfg.state_dtype, DTYPES)
    if cfg.state_dtype == "bfloat16" and cfg.b2 > 0.99:
        raise UsageError(
            f"config.optim.b2={cfg.b2}: a moment in bfloat16, of 8 bits, would never decay by 1 - b2; at most 0.99"
        )
    fractions = dict.fromkeys(("warmup", "final_lr", "decay"), "[0, 1]")
    strengths = dict.fromkeys(("l1", "l2"), f"[0, {LARGEST:g}]")
    others = {"clip": "[0, inf)", "layer_decay": "(0, 1]", "lr_batch": "[0, inf)", "ema": "[0, 0.99999997)"}
    check_ranges("config.optim.", cfg, lr="(0, inf)", **others, **fractions, **strengths)
    if cfg.branches and cfg.schedule != "wsd":
        raise UsageError(f"config.optim.branches={cfg.branches}: only the schedule wsd has a trunk to decay from")
    if not all(isinstance(f, float) and 0 < f < 1 for f in cfg.branches):
        raise UsageError(f"config.optim.branches={cfg.branches}: fractions of the horizon, each in (0, 1)")
    check_regex("config.optim.decay_exclude", cfg.decay_exclude)
    for where, part in [("config.optim.", cfg), *(("config.optim.groups: ", group) for _, group in groups(cfg))]:
        choose(f"{where}name", part.name, OPTIMIZERS)
        # Below 1 in float32, too.
        below_one = dict.fromkeys(("b1", "b2", "momentum"), "[0, 0.99999997)")
        check_ranges(where, part, **below_one, eps=f"[{SMALLEST}, inf)", weight_decay=f"[0, {LARGEST:g}]")
    for _, group in groups(cfg):
        check_ranges("config.optim.groups: ", group, lr_factor="[0, inf)")


def check_regex(key: str, pattern: Any) -> None:
    """UsageError, which names the config's key: not a regular expression."""
    try:
        re.compile(pattern)
    except (re.error, TypeError) as e:
        raise UsageError(f"{key}={pattern!r}: not a regular expression: {e}") from e


@functools.lru_cache(maxsize=256)
def _groups(cfg: FrozenConfigDict) -> tuple[tuple[str, FrozenConfigDict], ...]:
    defaults = ConfigDict({key: cfg[key] for key in GROUP_KEYS if key in cfg} | {"lr_factor": 1.0, "frozen": False})
    found = []
    for group in cfg.groups:
        if not isinstance(group, tuple) or not all(isinstance(text, str) for text in group) or len(group) < 2:
            raise UsageError(f"config.optim.groups: {group!r}: expected (regex, 'key=value', ...)")
        pattern, *pairs = group
        check_regex("config.optim.groups", pattern)
        own = ConfigDict(defaults)
        for pair in pairs:
            key, _, value = pair.partition("=")
            choose("config.optim.groups: key", key, GROUP_KEYS)
            own[key] = coerce(f"optim.groups.{key}", own[key], value)
        found.append((pattern, FrozenConfigDict(own)))
    return tuple(found)


def groups(cfg: Any) -> tuple[tuple[str, FrozenConfigDict], ...]:
    """(regex, settings) of each of config.optim.groups; settings not named are the section's own."""
    keys = (*(key for key in GROUP_KEYS if key in cfg), "groups")
    return _groups(FrozenConfigDict({key: cfg[key] for key in keys})) if cfg.groups else ()


def group_of(cfg: Any, path: str) -> int:
    """Which group a parameter belongs to; -1: none."""
    return next((i for i, (pattern, _) in enumerate(groups(cfg)) if re.search(pattern, path)), -1)


def is_frozen(cfg: Any, path: str) -> bool:
    group = group_of(cfg, path)
    return group >= 0 and groups(cfg)[group][1].frozen


def freeze(cfg: Any, params: Any) -> Any:
    """Parameters without a gradient where they are frozen."""
    return tree.map_paths(lambda path, w: jax.lax.stop_gradient(w) if is_frozen(cfg, path) else w, params)


def update_norm(cfg: Any, updates: Any, grad_norm: jax.Array) -> jax.Array:
    """A bound of the updates' size, finite where they are. Of elementwise optimizers it follows from the gradients',
    so that the updates aren't kept in memory for a norm of their own."""
    parts = [cfg, *(group for _, group in groups(cfg))]
    if all(part.name in ELEMENTWISE for part in parts):
        return (1 + grad_norm) / (1 - max(part.momentum for part in parts))
    return optax.global_norm(updates)


def branch_steps(cfg: Any, steps: int) -> dict[int, int]:
    """The step at which each WSD branch ends -> the step of the trunk from which it decays."""
    ends = sorted({max(1, round(fraction * steps)) for fraction in cfg.branches})
    return {end: end - max(1, round(cfg.decay * end)) for end in ends}


def learning_rate(cfg: Any, step: int, steps: int, batch_size: int, end: int = 0) -> float:
    """Rate of step 0, 1, ..., steps - 1; of a wsd branch, `end` is its last step, and the warm-up is the run's.

    Linear warm-up over warmup * steps; then constant; cosine or linear to final_lr * lr at the last step;
    rsqrt: lr * sqrt(warm-up steps / step) (Vaswani et al., arXiv:1706.03762); wsd: constant, then linear to
    final_lr * lr over the last `decay` of the steps (Hägele et al., arXiv:2405.18392).
    """
    peak = cfg.lr * (batch_size / cfg.lr_batch if cfg.lr_batch else 1)
    warm = round(cfg.warmup * steps)
    if step < warm:
        return peak * (step + 1) / warm
    done = (step - warm + 1) / max(1, steps - warm)
    if cfg.schedule == "cosine":
        return peak * (cfg.final_lr + (1 - cfg.final_lr) * 0.5 * (1 + math.cos(math.pi * done)))
    if cfg.schedule == "linear":
        return peak * (1 - (1 - cfg.final_lr) * done)
    if cfg.schedule == "rsqrt":
        return peak * math.sqrt(max(1, warm) / (step + 1))
    if cfg.schedule == "wsd":
        end = end or steps
        length = max(1, round(cfg.decay * end))
        past = max(0, step + 1 - (end - length)) / length
        return peak * (1 - (1 - cfg.final_lr) * past)
    return peak


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

    def decays(params: Any) -> Any:
        return tree.map_paths(
            lambda path, _: not re.search(cfg.decay_exclude, path) and not is_frozen(cfg, path), params
        )

    def group(part: Any) -> list[optax.GradientTransformation]:
        decay = optax.add_decayed_weights(part.weight_decay, decays)
        factor = part.get("lr_factor", 1.0)
        return [_direction(part, rules, gradients), *_multiplied(rates), decay, optax.scale(-factor)]

    steps = []
    if cfg.l1:
        sign = optax.stateless(lambda g, w: jax.tree.map(lambda g, w: g + cfg.l1 * jnp.sign(w), g, w))
        steps.append(optax.masked(sign, decays))
    if cfg.l2:
        steps.append(optax.add_decayed_weights(cfg.l2, decays))
    if cfg.clip:
        steps.append(optax.clip_by_global_norm(cfg.clip))
    layers = _layerwise(cfg.layer_decay, rules)
    if not cfg.groups:
        return _kept_in(cfg.state_dtype, optax.chain(*steps, *group(cfg), *layers))
    parts = {"-1": optax.chain(*group(cfg))}
    for i, (_, part) in enumerate(groups(cfg)):
        parts[str(i)] = optax.set_to_zero() if part.frozen else optax.chain(*group(part))

    def labels(params: Any) -> Any:
        return tree.map_paths(lambda path, _: str(group_of(cfg, path)), params)

    return _kept_in(cfg.state_dtype, optax.chain(*steps, optax.partition(parts, labels), *layers))


def _layerwise(decay: float, rules: Any) -> list[optax.GradientTransformation]:
    """Multiplies updates, weight decay included, by decay^(depth - 1 - i) in layer i of `depth`, by decay^depth in
    embeddings, by 1 elsewhere (Clark et al. 2020, arXiv:2003.10555, appendix A.2); nothing where decay is 1."""

    def factors(names: Any, u: jax.Array) -> np.ndarray:  # broadcasts over u
        axis = names.index("depth")
        powers = u.shape[axis] - 1 - np.arange(u.shape[axis])
        return (decay**powers).astype(np.float32).reshape([-1 if i == axis else 1 for i in range(u.ndim)])

    def scaled(updates: Any, _: Any) -> Any:
        stacked = tree.map_paths(
            lambda p, u: factors(n, u) if "depth" in (n := tree.match(rules, p)) else None, updates
        )
        lowest = decay ** max((x.size for x in jax.tree.leaves(stacked)), default=0)
        other = lambda path: lowest if re.search(tree.EMBEDDINGS, path) else 1.0  # noqa: E731
        return tree.map_paths(lambda path, u, f: u * (other(path) if f is None else f), updates, stacked)

    return [optax.stateless(scaled)] if decay != 1 else []


def _multiplied(factors: Any) -> list[optax.GradientTransformation]:
    """Multiplies each update by its parameter's factor, adapters' by 1; nothing where all are 1."""
    if factors is None or all(f == 1 for f in jax.tree.leaves(factors)):
        return []
    by_path = dict(zip(tree.paths(factors), jax.tree.leaves(factors), strict=True))
    return [optax.stateless(lambda updates, _: tree.map_paths(lambda path, u: u * by_path.get(path, 1.0), updates))]


def _direction(cfg: Any, rules: Any, gradients: Any) -> optax.GradientTransformation:
    """The optimizer's own update, to be subtracted."""
    if cfg.name == "adamw":
        inverse = None if gradients is None else jax.tree.map(lambda g: 1 / g, gradients)
        return optax.chain(*_multiplied(inverse), optax.scale_by_adam(b1=cfg.b1, b2=cfg.b2, eps=cfg.eps))
    if cfg.name == "lion":
        return optax.scale_by_lion(b1=cfg.b1, b2=cfg.b2)
    if cfg.name == "adafactor":
        return optax.chain(optax.adafactor(1.0), optax.scale(-1.0))
    if cfg.name == "sgd":
        return optax.trace(cfg.momentum, cfg.nesterov) if cfg.momentum else optax.identity()
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
    return optax.chain(muon, optax.scale(-1.0))


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
    """Muon's input and output axes: of matrices inside a stack of layers; tables, heads, vectors go to Adam."""
    if not rules:
        raise UsageError("config.optim.name='muon': needs the family's RULES to name the axes of weights")

    def of(path: str, _: Any) -> Any:
        names = tree.match(rules, path)
        if not tree.is_hidden_matrix(path, names):
            return None
        inside, outside = tree.sides(names)
        return optax.contrib.MuonDimensionNumbers(reduction_axis=inside, output_axis=outside)

    return lambda params: tree.map_paths(of, params)


def averaged(cfg: Any, average: Any, params: Any, step: jax.Array) -> Any:
    """The exponential moving average after step 0, 1, ...: the decay grows with the steps, so that the start is soon
    forgotten (as TensorFlow's ExponentialMovingAverage(num_updates), which Szegedy et al. 2015 used)."""
    part = 1 - jnp.minimum(cfg.ema, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda a, p: (a + part * (p - a)).astype(a.dtype), average, params)


def apply(cfg: Any, params: Any, updates: Any, rate: jax.Array) -> Any:
    """Parameters after a step; the bits of frozen ones stay (-0 + 0 is 0)."""

    def one(path: str, p: jax.Array, u: jax.Array) -> jax.Array:
        return p if is_frozen(cfg, path) else (p + rate * u).astype(p.dtype)

    return tree.map_paths(one, params, updates)
