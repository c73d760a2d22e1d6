"""Low-rank adapters: LoRA (Hu et al. 2021, arXiv:2106.09685), in the training state and so for every family.

A weight w of the model stays as it is. Beside it, under `lora/PATH`, the state's parameters hold a factor a of
`train.lora_rank` columns and a factor b of as many rows, and the model is applied with w + alpha / rank a b (equation 3
there). b starts at zero: step 0 is the model that the run starts from, to the bit. Adapters have no factors of a
parametrisation: a rate that is good at one width needn't be at another.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import FrozenConfigDict

from bigmodel import tree
from bigmodel.errors import UsageError, check_ranges
from bigmodel.run import checkpoint, optim

NAME = "lora"  # the top-level tree of the adapters
OWN = f"^(?!{NAME}/)"  # paths of the model's own
KEYS = ("lora_rank", "lora_alpha", "lora_targets", "init_only")  # of `train`: what is compiled where there are some


def finalize(train: Any, rules: Any, shapes: Callable[[], Any]) -> None:
    """Checks the options of `train`; `rules` and `shapes()` are those of the model's parameters."""
    check_ranges("config.train.", train, lora_rank="[0, inf)", lora_alpha="[0, inf)")
    if not train.lora_rank:
        return
    optim.check_regex("config.train.lora_targets", train.lora_targets)
    paths = tree.paths(shapes())
    matrices = [path for path in paths if rules and tree.is_hidden_matrix(path, tree.match(rules, path))]
    found = [path for path in paths if re.search(train.lora_targets, path)]
    if not found or set(found) - set(matrices):
        wrong = f"{found[0]!r} is no matrix of a layer" if found else "no parameter's path matches"
        there = ", ".join(matrices) or "none in this family"
        raise UsageError(f"config.train.lora_targets={train.lora_targets!r}: {wrong}; matrices of layers: {there}")


def frozen_groups(train: Any, groups: Any) -> tuple[tuple[str, ...], ...]:
    """`optim.groups` and, with adapters, one more: what a run starts from (`train.init_only`) is frozen."""
    # Lookaheads: a path that isn't an adapter's, and matches init_only anywhere.
    frozen = (f"{OWN}(?=.*({train.init_only}))", "frozen=true") if train.get("lora_rank") else None
    return (*map(tuple, groups), *([frozen] if frozen else []))


def rules_with(train: Any, rules: Any) -> Any:
    """RULES of a model's parameters and of its adapters, whose axes are their targets' and the rank."""
    if not train.get("lora_rank"):
        return rules
    found = []
    for pattern, names in rules:
        if {"depth", "expert", "window"} & set(names) and len(names) > 2:
            stacked, inside, outside = ([names[i] for i in axes] for axes in _split(names))
            for factor, axes in {"a": [*inside, "rank"], "b": ["rank", *outside]}.items():
                found.append((f"^{NAME}/.*({pattern.removesuffix('$')})/{factor}$", (*stacked, *axes)))
    return (*found, *rules)


def _split(names: Sequence[str | None]) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """(axes along which there are several matrices, input axes, output axes)."""
    return (tuple(i for i, name in enumerate(names) if name in tree.STACKED), *tree.sides(names))


def add(train: Any, rules: Any, params: Any, key: jax.Array) -> Any:
    """Parameters with adapters: a normal of deviation 1 / sqrt(its input side), b zero (section 4.1 there)."""
    if not train.get("lora_rank"):
        return params

    def pair(path: str, w: jax.Array) -> dict[str, jax.Array]:
        stacked, inside, outside = ([w.shape[i] for i in axes] for axes in _split(tree.match(rules, path)))
        own = jax.random.fold_in(key, zlib.crc32(path.encode()))  # whatever other targets there are
        start = jax.random.normal(own, (*stacked, *inside, train.lora_rank)) / math.sqrt(math.prod(inside))
        return {"a": start.astype(w.dtype), "b": jnp.zeros((*stacked, train.lora_rank, *outside), w.dtype)}

    return {**params, NAME: tree.map_paths(pair, tree.pick(params, train.lora_targets))}


def merge(train: Any, rules: Any, params: Any) -> Any:
    """The model's own parameters: w + alpha / rank a b where there is an adapter. Without adapters, as they are."""
    if not train.get("lora_rank"):
        return params
    factors = dict(zip(tree.paths(params[NAME]), jax.tree.leaves(params[NAME]), strict=True))
    scale = (train.lora_alpha or train.lora_rank) / train.lora_rank

    def merged(path: str, w: jax.Array) -> jax.Array:
        if f"{path}/a" not in factors:
            return w
        axes = (*_split(tree.match(rules, path)), range(w.ndim))
        stacked, inside, outside, whole = ("".join(chr(97 + i) for i in group) for group in axes)
        spec = f"{stacked}{inside}z,{stacked}z{outside}->{whole}"
        return (w + scale * jnp.einsum(spec, factors[f"{path}/a"], factors[f"{path}/b"])).astype(w.dtype)

    return tree.map_paths(merged, tree.pick(params, OWN))


def read(saved: str, stored: Any, rules: Any, wanted: Sequence[Any]) -> Any:
    """Parameters of a finished run, adapters merged: `wanted` are their shapes and shardings, `saved` its checkpoints,
    `stored` the `train` section of its config."""
    shapes, shardings = wanted
    train = FrozenConfigDict(stored)
    whole = jax.eval_shape(lambda p: add(train, rules, p, jax.random.key(0)), shapes)
    anywhere = NamedSharding(jax.tree.leaves(shardings)[0].mesh, PartitionSpec())
    more = {k: jax.tree.map(lambda _: anywhere, v) for k, v in whole.items() if k not in shardings}
    return merge(
        train, rules, checkpoint.restore_part(saved, {"params": whole}, {"params": {**shardings, **more}})["params"]
    )


def start(frozen: Any, compiled: Any, fresh: Any, take: Callable[[Any, Any, Any], tuple[Any, str]]) -> tuple[Any, str]:
    """What `take`, starts.start, makes of the model's own parameters, beside the adapters.

    UsageError: with adapters, a parameter that nothing was taken for would stay frozen.
    """
    if NAME not in fresh:
        return take(frozen, compiled, fresh)
    own = tree.pick(fresh, OWN)
    parts = {k: {"params": tree.pick(getattr(compiled, k)["params"], OWN)} for k in ("shapes", "shardings")}
    taken, said = take(frozen, replace(compiled, **parts), own)
    settings = FrozenConfigDict({**frozen.optim.to_dict(), "groups": frozen_groups(frozen.train, frozen.optim.groups)})
    pairs = zip(tree.paths(taken), jax.tree.leaves(taken), jax.tree.leaves(own), strict=True)
    lost = [path for path, after, before in pairs if before is after and optim.is_frozen(settings, path)]
    if lost:
        raise UsageError(
            f"config.train.lora_rank={frozen.train.lora_rank}: {lost[0]!r} ({len(lost)} such) starts afresh and would "
            "stay frozen: start from a run or weights that have it, leave it out of train.init_only, or let it learn: "
            f'--config.optim.groups=\'(("^{lost[0]}$", "frozen=false"),)\''
        )
    return {**taken, NAME: fresh[NAME]}, said
