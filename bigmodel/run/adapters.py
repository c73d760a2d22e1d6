"""Low-rank adapters: LoRA (Hu et al. 2021, arXiv:2106.09685), in the training state and so for every family.

A weight w of the model stays as it is. Beside it, under `lora/PATH`, the state's parameters hold a factor a of
`train.lora_rank` columns and a factor b of as many rows, and the model is applied with w + alpha / rank a b (equation 3
there). b starts at zero: step 0 is the model that the run starts from, to the bit. Adapters have no factors of a
parametrisation: a rate that is good at one width needn't be at another.

With `train.lora_bits=4` the frozen matrices of layers are held in 4 bits: QLoRA (Dettmers et al. 2023,
arXiv:2305.14314), equation 5 without the double quantisation of section 3: a scale of 32 bits for each 64 weights, 4.5
bits a weight. In the state, w is PATH/codes, uint8 of shape (..., last axis / 2), and PATH/scales, float32 of shape
(stacked axes, weights of one matrix / 64). What is smaller is the state between steps and its checkpoints: a start and
a step hold all dequantised matrices at once, in `train.param_dtype`.
"""

from __future__ import annotations

import functools
import math
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import FrozenConfigDict

from bigmodel import models, tree
from bigmodel.errors import UsageError, check_ranges
from bigmodel.ops import sharding
from bigmodel.run import checkpoint, optim

NAME = "lora"  # the top-level tree of the adapters
OWN = f"^(?!{NAME}/)"  # paths of the model's own
KEYS = ("lora_rank", "lora_alpha", "lora_targets", "lora_bits", "init_only")  # of `train`: compiled with adapters
BLOCK = 64  # weights that share a scale
# NormalFloat4: quantiles of a normal, over the largest (appendix E of Dettmers et al. 2023).
NF4 = np.array([
    -1, -0.69619280, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.091050036, 0,
    0.079580300, 0.16093020, 0.24611230, 0.33791524, 0.44070983, 0.56261700, 0.72295684, 1,
], np.float32)  # fmt: skip


def finalize(train: Any, rules: Any, shapes: Callable[[], Any]) -> None:
    """Checks the options of `train`; `rules` and `shapes()` are those of the model's parameters."""
    check_ranges("config.train.", train, lora_rank="[0, inf)", lora_alpha="[0, inf)")
    if train.lora_bits not in (0, 4):
        raise UsageError(f"config.train.lora_bits={train.lora_bits}: 4, or 0 for frozen weights as they are")
    if train.lora_bits and not train.lora_rank:
        raise UsageError(f"config.train.lora_bits={train.lora_bits}: needs adapters, as of config.train.lora_rank=8")
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
    """RULES of a model's parameters, in 4 bits too, and of its adapters: their axes are their targets' and the rank."""
    if not train.get("lora_rank"):
        return rules
    found = []
    for pattern, names in rules:
        if {"depth", "expert", "window"} & set(names) and len(names) > 2:
            stacked, inside, outside = ([names[i] for i in axes] for axes in _split(names))
            path = f"({pattern.removesuffix('$')})"
            for factor, axes in {"a": [*inside, "rank"], "b": ["rank", *outside]}.items():
                found.append((f"^{NAME}/.*{path}/{factor}$", (*stacked, *axes)))
            found += [(f"{path}/codes$", names), (f"{path}/scales$", (*stacked, None))]
    return (*found, *rules)


def _split(names: Sequence[str | None]) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """(axes along which there are several matrices, input axes, output axes)."""
    return (tuple(i for i, name in enumerate(names) if name in tree.STACKED), *tree.sides(names))


def quantise(w: jax.Array, stacked: int) -> dict[str, jax.Array]:
    """A weight in NormalFloat4: of each BLOCK weights the largest size, and the code nearest to each over that.

    Args:
      w: its first `stacked` axes count matrices, whose weights are a multiple of BLOCK; its last axis is even.

    Returns:
      {"codes": uint8 of shape (*w.shape[:-1], w.shape[-1] // 2), the first of two in the high bits;
       "scales": float32 of shape (*w.shape[:stacked], weights of a matrix // BLOCK)}.
    """
    blocks = w.astype("float32").reshape(*w.shape[:stacked], -1, BLOCK)
    scales = jnp.abs(blocks).max(-1)
    unit = blocks / jnp.where(scales > 0, scales, 1)[..., None]
    codes = jnp.searchsorted((NF4[1:] + NF4[:-1]) / 2, unit).astype("uint8").reshape(w.shape)
    return {"codes": codes[..., ::2] << 4 | codes[..., 1::2], "scales": scales}


def dequantise(held: Any, dtype: Any) -> jax.Array:
    """The weight of what `quantise` returns, as `dtype`."""
    codes, scales = held["codes"], held["scales"]
    values = jnp.asarray(NF4)[jnp.stack([codes >> 4, codes & 15], -1)]
    w = values.reshape(*scales.shape, BLOCK) * scales[..., None]
    return w.reshape(*codes.shape[:-1], -1).astype(dtype)


def _hold(rules: Any, params: Any, held: Callable[[str], bool]) -> Any:
    """The model's own parameters, in 4 bits those matrices of layers that fit and for whose paths `held` is true."""

    def one(path: str, w: jax.Array) -> Any:
        if not (rules and held(path) and tree.is_hidden_matrix(path, names := tree.match(rules, path))):
            return w
        stacked = len(_split(names)[0])
        return w if math.prod(w.shape[stacked:]) % BLOCK or w.shape[-1] % 2 else quantise(w, stacked)

    return tree.map_paths(one, params)


def _plain(train: Any, params: Any) -> Any:
    """The model's own parameters, none in 4 bits."""
    is_held = lambda x: isinstance(x, dict) and "codes" in x  # noqa: E731
    plain = lambda x: dequantise(x, train.param_dtype) if is_held(x) else x  # noqa: E731
    return jax.tree.map(plain, tree.pick(params, OWN), is_leaf=is_held)


def learnable(train: Any, params: Any) -> Any:
    """All but what is in 4 bits: gradients and an optimizer's moments are of these."""
    return tree.pick(params, "(?<!/codes)(?<!/scales)$") if train.get("lora_bits") else params


def add(train: Any, cfg: Any, rules: Any, params: Any, key: jax.Array) -> Any:
    """Parameters with adapters: a normal of deviation 1 / sqrt(its input side), b zero (section 4.1 there).

    What is frozen by cfg, config.optim with `frozen_groups`, is held in `train.lora_bits`.
    """
    if not train.get("lora_rank"):
        return params

    def pair(path: str, w: jax.Array) -> dict[str, jax.Array]:
        stacked, inside, outside = ([w.shape[i] for i in axes] for axes in _split(tree.match(rules, path)))
        own = jax.random.fold_in(key, zlib.crc32(path.encode()))  # whatever other targets there are
        start = jax.random.normal(own, (*stacked, *inside, train.lora_rank)) / math.sqrt(math.prod(inside))
        return {"a": start.astype(w.dtype), "b": jnp.zeros((*stacked, train.lora_rank, *outside), w.dtype)}

    factors = tree.map_paths(pair, tree.pick(params, train.lora_targets))
    own = _hold(rules, params, lambda path: optim.is_frozen(cfg, path)) if train.get("lora_bits") else params
    return {**own, NAME: factors}


def merge(train: Any, rules: Any, params: Any) -> Any:
    """The model's own parameters, none in 4 bits: w + alpha / rank a b where there is an adapter, else as they are."""
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

    return tree.map_paths(merged, _plain(train, params))


def read_paths(saved: str) -> list[str]:
    """Paths of the parameters that `read` can read from a run's checkpoints."""
    there = dict.fromkeys(re.sub("/(codes|scales)$", "", path) for path in checkpoint.parameters(saved))
    return [path for path in there if re.search(OWN, path)]


def read(saved: str, stored: Any, rules: Any, wanted: Sequence[Any]) -> Any:
    """Parameters of a finished run, adapters merged: `wanted` are their shapes and shardings, `saved` its checkpoints,
    `stored` the `train` section of its config."""
    shapes, shardings = wanted
    train = FrozenConfigDict({**stored, "lora_bits": 0})  # what is in 4 bits, its checkpoint says
    there = checkpoint.parameters(saved)
    added = jax.eval_shape(lambda p: add(train, None, rules, p, jax.random.key(0)), shapes)
    held = jax.eval_shape(lambda p: _hold(rules, p, lambda path: f"{path}/codes" in there), shapes)
    whole = {**added, **held}
    anywhere = NamedSharding(jax.tree.leaves(shardings)[0].mesh, PartitionSpec())
    placed = dict(zip(tree.paths(shardings), jax.tree.leaves(shardings), strict=True))
    layout = tree.map_paths(lambda path, _: placed.get(path, anywhere), whole)
    return merge(train, rules, checkpoint.restore_part(saved, {"params": whole}, {"params": layout})["params"])


def start(frozen: Any, compiled: Any, fresh: Any, take: Callable[[Any, Any, Any], tuple[Any, str]]) -> tuple[Any, str]:
    """What `take`, starts.start, makes of the model's own parameters, beside the adapters.

    UsageError: with adapters, a parameter that nothing was taken for would stay frozen.
    """
    if NAME not in fresh:
        return take(frozen, compiled, fresh)
    rules, mesh = models.family(frozen.family).RULES, jax.tree.leaves(compiled.shardings)[0].mesh
    plain = functools.partial(_plain, frozen.train)
    shapes = {"params": jax.eval_shape(plain, fresh)}
    placed = sharding.state_shardings(shapes, rules, mesh)
    own = jax.jit(plain, out_shardings=placed["params"])(fresh)
    taken, said = take(frozen, replace(compiled, shapes=shapes, shardings=placed), own)
    settings = FrozenConfigDict({**frozen.optim.to_dict(), "groups": frozen_groups(frozen.train, frozen.optim.groups)})
    pairs = list(zip(tree.paths(taken), jax.tree.leaves(taken), jax.tree.leaves(own), strict=True))
    lost = [path for path, after, before in pairs if before is after and optim.is_frozen(settings, path)]
    if lost:
        raise UsageError(
            f"config.train.lora_rank={frozen.train.lora_rank}: {lost[0]!r} ({len(lost)} such) starts afresh and would "
            "stay frozen: start from a run or weights that have it, leave it out of train.init_only, or let it learn: "
            f'--config.optim.groups=\'(("^{lost[0]}$", "frozen=false"),)\''
        )
    if frozen.train.lora_bits:
        layout = tree.pick(compiled.shardings["params"], OWN)
        hold = functools.partial(_hold, rules, held=lambda path: optim.is_frozen(settings, path))
        taken = jax.jit(hold, out_shardings=layout)(taken)
        held = sum(path.endswith("/codes") for path in tree.paths(taken))
        said += f"; {held} of {len(pairs)} parameters are held in 4 bits"
    return {**taken, NAME: fresh[NAME]}, said
