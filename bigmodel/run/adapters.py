"""Low-rank adapters: LoRA (Hu et al. 2021, arXiv:2106.09685), in the training state and so for every family.

A weight w of the model stays as it is; the state's parameters hold beside it, under `lora/PATH`, a factor a of
`train.lora_rank` columns and a factor b of as many rows. The model is applied with w + alpha / rank a b (equation 3
there). b starts at zero, so that step 0 is the model that the run starts from, to the bit. `merge` makes a model's own
parameters of such: the train step, evaluations and all that reads a finished run call it.

Adapters have no factors of a parametrisation: a rate that is good at one width needn't be at another.
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
from bigmodel.run import optim

NAME = "lora"  # the top-level tree of the adapters
KEYS = ("lora_rank", "lora_alpha", "lora_targets", "init_only")  # of `train`: what is compiled where there are some


def finalize(train: Any, rules: Any, shapes: Callable[[], Any]) -> None:
    """Checks the options of `train`.

    Args:
      rules: of the model's parameters; `shapes()` are theirs.

    Raises:
      UsageError: no rank of a matrix, or no parameters that have one.
    """
    check_ranges("config.train.", train, lora_rank="[0, inf)", lora_alpha="[0, inf)")
    if not train.lora_rank:
        return
    optim.check_regex("config.train.lora_targets", train.lora_targets)
    optim.check_regex("config.train.init_only", train.init_only)
    paths = tree.paths(shapes())
    matrices = [path for path in paths if rules and tree.is_hidden_matrix(path, tree.match(rules, path))]
    if not matrices:
        raise UsageError(f"config.train.lora_rank={train.lora_rank}: this family has no stack of layers to adapt")
    found = [path for path in paths if re.search(train.lora_targets, path)]
    if not found or set(found) - set(matrices):
        wrong = f"{found[0]!r} is no matrix of a layer" if found else "no parameter's path matches"
        raise UsageError(
            f"config.train.lora_targets={train.lora_targets!r}: {wrong}; matrices of layers: {', '.join(matrices)}"
        )


def frozen_groups(train: Any, groups: Any) -> tuple[tuple[str, ...], ...]:
    """`optim.groups` and one more: with adapters, what a run starts from is frozen (the paths that match
    `train.init_only`), except where a group of the config says otherwise."""
    own = tuple(map(tuple, groups))
    if not train.get("lora_rank"):
        return own
    # Lookaheads: a path that isn't an adapter's, and matches init_only anywhere.
    return (*own, (f"^(?!{NAME}/)(?=.*({train.init_only}))", "frozen=true"))


def rules_with(train: Any, rules: Any) -> Any:
    """RULES of a model's parameters and of its adapters, whose axes are their targets' and the rank."""
    if not train.get("lora_rank"):
        return rules

    def of(names: Sequence[str | None], side: int) -> tuple[str | None, ...]:
        stacked, *sides = _split(names)
        axes = [names[i] for i in sides[side]]
        return (*(names[i] for i in stacked), *([*axes, "rank"] if side == 0 else ["rank", *axes]))

    # A target's rule may find its path anywhere, so that an adapter's come first.
    found = [(f"^{NAME}/.*({p.removesuffix('$')})/{'ab'[i]}$", of(n, i)) for p, n in _matrices(rules) for i in (0, 1)]
    return (*found, *rules)


def _matrices(rules: Any) -> list[tuple[str, Any]]:
    return [(p, names) for p, names in rules if {"depth", "expert", "window"} & set(names) and len(names) > 2]


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
        stacked, inside, outside = ("".join(chr(97 + i) for i in axes) for axes in _split(tree.match(rules, path)))
        whole = "".join(chr(97 + i) for i in range(w.ndim))
        spec = f"{stacked}{inside}z,{stacked}z{outside}->{whole}"
        product = jnp.einsum(spec, factors[f"{path}/a"], factors[f"{path}/b"])
        return (w + scale * product).astype(w.dtype)

    return tree.map_paths(merged, {k: v for k, v in params.items() if k != NAME})


def read(stored: Any, rules: Any, shapes: Any, shardings: Any, restore: Callable[[Any, Any], Any]) -> Any:
    """Parameters of a finished run, its adapters merged.

    Args:
      stored: the `train` section of its config.
      shapes, shardings: of the parameters wanted; `restore` reads such from its checkpoint.
    """
    if not stored.get("lora_rank"):
        return restore(shapes, shardings)
    train = FrozenConfigDict(stored)
    whole = jax.eval_shape(lambda p: add(train, rules, p, jax.random.key(0)), shapes)
    anywhere = NamedSharding(jax.tree.leaves(shardings)[0].mesh, PartitionSpec())
    return merge(train, rules, restore(whole, {**shardings, NAME: jax.tree.map(lambda _: anywhere, whole[NAME])}))


def start(frozen: Any, compiled: Any, fresh: Any, take: Callable[[Any, Any, Any], tuple[Any, str]]) -> tuple[Any, str]:
    """What `take(frozen, compiled, fresh)`, as `starts.start`, makes of the model's own parameters, and the adapters.

    Raises:
      UsageError: with adapters, a parameter that nothing was taken for would stay frozen.
    """
    if NAME not in fresh:
        return take(frozen, compiled, fresh)
    own = {k: v for k, v in fresh.items() if k != NAME}
    shapes, shardings = (
        {**part, "params": {k: v for k, v in part["params"].items() if k != NAME}}
        for part in (compiled.shapes, compiled.shardings)
    )
    taken, said = take(frozen, replace(compiled, shapes=shapes, shardings=shardings), own)
    settings = FrozenConfigDict({**frozen.optim.to_dict(), "groups": frozen_groups(frozen.train, frozen.optim.groups)})
    pairs = zip(tree.paths(own), jax.tree.leaves(own), jax.tree.leaves(taken), strict=True)
    lost = [path for path, before, after in pairs if before is after and optim.is_frozen(settings, path)]
    if lost:
        raise UsageError(
            f"config.train.lora_rank={frozen.train.lora_rank}: {lost[0]!r} ({len(lost)} such) starts afresh and would "
            "stay frozen: start from a run or weights that have it, leave it out of train.init_only, or let it learn: "
            f'--config.optim.groups=\'(("^{lost[0]}$", "frozen=false"),)\''
        )
    return {**taken, NAME: fresh[NAME]}, said
