"""What the families that tell pictures apart share: the input, the head's loss, mixing of examples.

B batch, H height, W width, C channels, V classes.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from bigmodel.errors import UsageError, check_ranges, choose
from bigmodel.models import layers, losses


def get_config() -> dict[str, Any]:
    return dict(
        image_height=224,  # from the data where there is some, as the next three
        image_width=224,
        channels=3,
        num_classes=1000,
        pixel_mean=(0.5,),  # of pixels in [0, 1], one a channel or one for all; subtracted, then
        pixel_std=(0.5,),  # divided by
        smoothing=0.0,  # of labels (Szegedy et al. 2015, arXiv:1512.00567, section 7)
        mixup=0.0,  # each picture is mixed with its neighbour's by a share of Beta(mixup, mixup)
        cutmix=0.0,  # likewise a box of it is the neighbour's; where both are given, half of the steps do each
        dtype="float32",  # compute; parameters are float32
    )


def finalize(cfg: ConfigDict) -> None:
    sizes = dict.fromkeys(("image_height", "image_width", "channels", "num_classes"), "[1, inf)")
    mixing = dict.fromkeys(("mixup", "cutmix"), "[0, inf)")
    check_ranges("config.model.", cfg, smoothing="[0, 1)", **sizes, **mixing)
    choose("config.model.dtype", cfg.dtype, ["float32", "bfloat16"])
    for key in ("pixel_mean", "pixel_std"):
        if len(cfg[key]) not in (1, cfg.channels):
            raise UsageError(
                f"config.model.{key}={cfg[key]}: one number, or one a channel, and there are {cfg.channels}"
            )
    if min(cfg.pixel_std) <= 0:
        raise UsageError(f"config.model.pixel_std={cfg.pixel_std}: must be positive")


RULES = ((r"^head$", ("embed", "class")), (r"^head_bias$", (None,)))


def spec(cfg: Any) -> dict[str, tuple[tuple[int, ...], str]]:
    return {"image": ((cfg.image_height, cfg.image_width, cfg.channels), "uint8"), "label": ((), "int32")}


def inputs(cfg: Any, batch: Any) -> tuple[jax.Array]:
    """What Model.__call__ takes of a batch: pixels BHWC, scaled."""
    x_BHWC = batch["image"].astype(jnp.float32) / 255
    x_BHWC = (x_BHWC - jnp.asarray(cfg.pixel_mean)) / jnp.asarray(cfg.pixel_std)
    return (x_BHWC.astype(cfg.dtype),)


def mixes(cfg: Any) -> bool:
    return bool(cfg.mixup or cfg.cutmix)


def head(module: nn.Module, x_BC: jax.Array, start: Any = None) -> jax.Array:
    """Logits BV in float32; `start` of the matrix: N(0, 0.01) (Goyal et al. 2017, arXiv:1706.02677, section 5.1)."""
    cfg: Any = module.cfg
    kernel = module.param("head", start or nn.initializers.normal(0.01), (x_BC.shape[-1], cfg.num_classes))
    return layers.wide(x_BC) @ kernel + module.param("head_bias", nn.initializers.zeros, (cfg.num_classes,))


def mixed(cfg: Any, x_BHWC: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(pictures mixed with those one row before, the share of each that is its own).

    One share is drawn a batch: of the pixels' values (mixup; Zhang et al. 2017, arXiv:1710.09412), or of the area that
    a box at a random place leaves of it (CutMix; Yun et al. 2019, arXiv:1905.04899, section 3.1).
    """
    other_BHWC = jnp.roll(x_BHWC, 1, axis=0)
    k_which, k_share, *k_place = jax.random.split(key, 4)

    def up() -> tuple[jax.Array, jax.Array]:
        own = jax.random.beta(k_share, cfg.mixup, cfg.mixup)
        return (own * x_BHWC + (1 - own) * other_BHWC).astype(x_BHWC.dtype), own

    def cut() -> tuple[jax.Array, jax.Array]:
        side = jnp.sqrt(1 - jax.random.beta(k_share, cfg.cutmix, cfg.cutmix))

        def inside(key: jax.Array, size: int) -> jax.Array:
            return jnp.abs(jnp.arange(size) + 0.5 - size * jax.random.uniform(key)) < side * size / 2

        box_HW = inside(k_place[0], x_BHWC.shape[1])[:, None] & inside(k_place[1], x_BHWC.shape[2])
        return jnp.where(box_HW[..., None], other_BHWC, x_BHWC), 1 - jnp.mean(box_HW)

    if cfg.mixup and cfg.cutmix:
        return jax.lax.cond(jax.random.bernoulli(k_which), up, cut)
    return up() if cfg.mixup else cut()


def loss(model: nn.Module, variables: Any, batch: Any, rng: jax.Array, train: bool) -> tuple[jax.Array, Any]:
    """Cross entropy in nats a picture, with the shares that are told right and wrong.

    `Model.__call__(x_BHWC, train, rows_B)` returns logits BV, or in training (logits, ((weight, logits of an auxiliary
    head), ...)), whose losses are added times their weights.
    """
    cfg: Any = model.cfg
    (x_BHWC,) = inputs(cfg, batch)
    label_B, weight_B = batch["label"], batch["weight"]
    k_mix, k_model = jax.random.split(rng)
    targets: list[tuple[Any, jax.Array]] = [(1.0, label_B)]
    if train and mixes(cfg):
        x_BHWC, own = mixed(cfg, x_BHWC, k_mix)
        targets = [(own, label_B), (1 - own, jnp.roll(label_B, 1))]
    rngs, mutable = {"dropout": k_model}, ["batch_stats"] if train else []
    out, state = model.apply(variables, x_BHWC, train, layers.rows_of(batch), rngs=rngs, mutable=mutable)
    logits_BV, others = out if isinstance(out, tuple) else (out, ())

    def entropy(logits_BV: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """(loss, its metric): of the mixed labels, each by its share."""
        mean, total = jnp.zeros(()), jnp.zeros(())
        for share, label in targets:
            scalar, found = losses.cross_entropy(logits_BV, label, weight_B, smoothing=cfg.smoothing)
            mean, total = mean + share * scalar, total + share * found["loss"][0]
        return mean, (total, jnp.sum(weight_B))

    scalar, metric = entropy(logits_BV)
    for weight, extra_BV in others:
        scalar = scalar + weight * entropy(extra_BV)[0]
    hits, count = losses.accuracy(logits_BV, label_B, weight_B)
    return scalar, ({"loss": metric, "accuracy": (hits, count), "error": (count - hits, count)}, dict(state))
