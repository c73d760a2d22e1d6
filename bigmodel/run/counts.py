"""What follows from a model's shapes, by `eval_shape`: N, bytes, the factors of its parametrisation."""

from __future__ import annotations

import functools
import json
import math
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict, FrozenConfigDict

from bigmodel import models, tree
from bigmodel.config import from_json
from bigmodel.run import adapters, optim, parametrize


def batch_shapes(family: ModuleType, cfg: Any, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of one batch, `weight` included."""
    batch = {k: jax.ShapeDtypeStruct((batch_size, *shape), dtype) for k, (shape, dtype) in family.spec(cfg).items()}
    return {**batch, "weight": jax.ShapeDtypeStruct((batch_size,), "float32")}


def init(family: ModuleType, cfg: Any, key: jax.Array, batch_size: int = 1) -> Any:
    """The model's variables: {'params': ..., other collections}. Under `eval_shape`, their shapes.

    A state that is carried from batch to batch is of `batch_size` rows.
    """
    zeros = {k: jnp.zeros(x.shape, x.dtype) for k, x in batch_shapes(family, cfg, batch_size).items()}
    return family.Model(cfg).init(key, *family.inputs(cfg, zeros))


@functools.lru_cache(maxsize=4096)
def _shapes(family_name: str, model_json: str) -> Any:
    family, cfg = models.family(family_name), FrozenConfigDict(json.loads(model_json))
    return jax.eval_shape(lambda: init(family, cfg, jax.random.key(0)))["params"]


def _text(section: Any) -> str:
    return json.dumps(section.to_dict(), sort_keys=True)


def shapes(family_name: str, model: Any) -> Any:
    """Shapes of the parameters of a finalised model section, by `eval_shape`."""
    return _shapes(family_name, _text(model))


def scales(family_name: str, model: Any, optimizer: str) -> parametrize.Scales:
    """What a model's parametrisation scales each parameter by, from the shapes of it and of its base."""
    family = models.family(family_name)
    own = shapes(family_name, model)
    if not family.base:
        return parametrize.scales("standard", optimizer, own, own, family.RULES)
    base = shapes(family_name, family.base(model))
    return parametrize.scales(
        model.parametrization,
        optimizer,
        own,
        base,
        family.RULES,
        depth_ratio=model.depth / model.base_depth,
        fan_in_start=model.init_std == 0,
    )


def counts(family_name: str, model: Any) -> tuple[int, int, int, int]:
    """(N, N without embeddings, Kaplan's N: matrices of the blocks alone, bytes) by `eval_shape`."""
    return _counts(family_name, _text(model))


@functools.lru_cache(maxsize=4096)  # a layout is estimated for thousands of meshes
def _counts(family_name: str, model_json: str) -> tuple[int, int, int, int]:
    found = _shapes(family_name, model_json)
    matrices = f"{tree.EMBEDDINGS}|{tree.NOT_MATRICES}|(^|/)head(_\\w+)?$"
    return (
        tree.count(found),
        tree.count(found, tree.EMBEDDINGS),
        tree.count(found, matrices),
        tree.size_bytes(found),
    )


def training(family_name: str, model: Any, optim_cfg: Any, train: Any = None) -> tuple[int, int]:
    """(scalars that learn, bytes of parameters, gradients and what the optimizer keeps) by `eval_shape`.

    Args:
      train: the config's section, which says whether there are adapters; None: there are none.
    """
    kept = {k: v for k, v in optim_cfg.to_dict().items() if k not in optim.RATE_KEYS}
    added = FrozenConfigDict({k: train[k] for k in adapters.KEYS} if train and train.lora_rank else {})
    kept["groups"] = adapters.frozen_groups(added, kept["groups"])
    return _training(family_name, _text(model), json.dumps(kept, sort_keys=True), _text(added))


@functools.lru_cache(maxsize=4096)  # a sweep's rows differ in rates and data more often than in shapes
def _training(family_name: str, model_json: str, optim_json: str, train_json: str) -> tuple[int, int]:
    train, cfg = (FrozenConfigDict(from_json(text)) for text in (train_json, optim_json))
    rules = models.family(family_name).RULES
    params = _shapes(family_name, model_json)
    params = jax.eval_shape(lambda p: adapters.add(train, cfg, rules, p, jax.random.key(0)), params)
    own = adapters.learnable(train, params)  # what gradients are of
    moments = jax.eval_shape(optim.build(cfg, adapters.rules_with(train, rules)).init, own)
    learning = sum(
        math.prod(x.shape)
        for path, x in zip(tree.paths(own), jax.tree.leaves(own), strict=True)
        if not optim.is_frozen(cfg, path)
    )
    average = tree.size_bytes(params) if cfg.ema else 0
    return learning, tree.size_bytes(params) + tree.size_bytes(own) + tree.size_bytes(moments) + average


def describe(family_name: str, model: Any) -> dict[str, Any]:
    """What `bigmodel count` tells of a finalised model section.

    `params_kaplan` counts the blocks' matrices alone, 12 depth width^2 for GPT-2's block (Kaplan et al. 2020).
    """
    total, nonembedding, kaplan, size = counts(family_name, model)

    def defaults(name: str) -> ConfigDict:
        cfg = optim.get_config()
        cfg.name = name
        return cfg

    family = models.family(family_name)
    forward, length = family.flops(model), family.units(model)
    return {
        "params": total,
        "params_nonembedding": nonembedding,
        "params_kaplan": kaplan,
        "units_per_example": length,
        "forward_flops_per_example": forward,
        "train_flops_per_unit": 3 * forward / length,
        "train_flops_per_unit_6n": 6.0 * nonembedding,
        "params_bytes": size,
        "state_bytes": {name: training(family_name, model, defaults(name))[1] for name in optim.OPTIMIZERS},
    }
