"""Inception: v1, GoogLeNet (Szegedy et al. 2014, arXiv:1409.4842), and v3 (Szegedy et al. 2015, arXiv:1512.00567).

B batch, H height, W width, C channels, V classes.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from bigmodel.errors import UsageError, check_ranges, choose
from bigmodel.models import classifier, conv, layers
from bigmodel.models.conv import VALID, same

# v1, table 1, of each stage: channels of 1x1, 3x3 reduce, 3x3, 5x5 reduce, 5x5, pool projection
V1 = (
    ((64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64)),
    ((192, 96, 208, 16, 48, 64), (160, 112, 224, 24, 64, 64), (128, 128, 256, 24, 64, 64),
     (112, 144, 288, 32, 64, 64), (256, 160, 320, 32, 128, 128)),
    ((256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128)),
)  # fmt: skip
# v3, of each stage: channels of the pool's projection (figure 5 of the paper), of the 7-wide convolutions (figure 6),
# of the last convolution before the widest branches part (figure 7)
V3 = (((32,), (64,), (64,)), ((128,), (160,), (160,), (192,)), ((448,), (448,)))
BASE = {"v1": 64, "v3": 32}  # channels of the first convolution


def get_config() -> ConfigDict:
    return ConfigDict(
        classifier.get_config()
        | dict(
            version="v1",  # or v3
            width=64,  # channels of the first convolution (v3's own: 32), to which all others are in proportion
            depth=9,  # modules in all, over three stages; of fewer than three, over the first ones
            stem="imagenet",  # of stride 8; or small: one 3 x 3 convolution
            norm="none",  # v1 as printed: biases, response normalisation in the stem; or batchnorm (v3: always)
            port=False,  # v1 as torchvision has it: 3 x 3 in the branch of 5 x 5, and a last pool of 2 x 2
            auxiliary=0.0,  # weight of the loss of each auxiliary head (v1: 0.3, v3: 0.4); 0: there are none
            dropout=0.4,  # before the head (v3: 0.5)
        )
    )


def finalize(cfg: ConfigDict) -> None:
    classifier.finalize(cfg)
    check_ranges("config.model.", cfg, width="[1, inf)", depth="[1, inf)", dropout="[0, 1)", auxiliary="[0, inf)")
    choose("config.model.version", cfg.version, BASE)
    choose("config.model.stem", cfg.stem, ["imagenet", "small"])
    choose("config.model.norm", cfg.norm, ["none", "batchnorm"])
    if cfg.version == "v3":
        cfg.norm = "batchnorm"
    least = smallest(cfg)
    if min(cfg.image_height, cfg.image_width) < least:
        raise UsageError(
            f"config.model.image_height={cfg.image_height}, image_width={cfg.image_width}: {cfg.version} with the stem "
            f"{cfg.stem!r}{' and auxiliary heads' if cfg.auxiliary else ''} needs at least {least} pixels"
        )


def smallest(cfg: Any) -> int:
    """The least side of a picture: auxiliary heads pool 5 x 5 of the middle stage, v3's reductions lose a border."""
    stem = cfg.stem == "imagenet"
    if cfg.version == "v1":
        return (79 if stem else 10) if cfg.auxiliary else 1
    return (107 if stem else 11) if cfg.auxiliary else (75 if stem else 7)


def rung(width: int, depth: int) -> dict[str, Any]:
    """All channels in proportion to the first convolution's; modules over the three stages."""
    return {"model.width": width, "model.depth": depth}


def modules(cfg: Any) -> list[list[tuple[int, ...]]]:
    """The rows of the tables above of each stage; of another depth, rows repeated or left out evenly."""
    table: Any = (V1 if cfg.version == "v1" else V3)[: cfg.depth]
    counts = conv.spread(cfg.depth, [len(rows) for rows in table])
    return [
        [rows[round(i * (len(rows) - 1) / max(1, n - 1)) if n > 1 else -1] for i in range(n)]
        for rows, n in zip(table, counts, strict=True)
    ]


_V3 = dict(version="v3", width=32, image_height=299, image_width=299, dropout=0.5)
PUBLISHED = {
    "inception-v1": dict(source="Szegedy et al. 2014, arXiv:1409.4842, table 1", params=6_998_552, model=dict()),
    "inception-v1-bn": dict(
        source="torchvision's googlenet: batch norm, and 3 x 3 where the paper has 5 x 5",
        params=6_624_904,
        model=dict(norm="batchnorm", port=True, dropout=0.2),
    ),
    "inception-v3": dict(source="Szegedy et al. 2015, arXiv:1512.00567, table 1", params=23_834_568, model=_V3),
}
RULES = (
    *classifier.RULES,
    (r"^auxiliary\d/(hidden|head)$", ("embed", "ffn")),
    *conv.RULES,
)
spec, inputs, loss = classifier.spec, classifier.inputs, classifier.loss


def decomposes(cfg: Any) -> bool:
    """Batch normalisation and mixing read the whole batch."""
    return cfg.norm == "none" and not classifier.mixes(cfg)


def flops(cfg: Any) -> float:
    """Forward FLOPs of a picture: 2 per multiply-add of the convolutions and of the head, counted in the program that
    evaluates, which leaves auxiliary heads out."""
    return conv.costs(Model, cfg)[0]


def footprint(cfg: Any) -> dict[str, Any]:
    return conv.footprint(Model, cfg)


class Part(nn.Module):
    """Base of what a network is made of: convolutions whose channels follow from the width."""

    cfg: Any

    def unit(self, channels: int, window: Any, name: str, stride: int = 1, padding: Any = None) -> Any:
        """x, train -> a convolution's output; channels are those of the published width."""
        cfg = self.cfg
        size = (window, window) if isinstance(window, int) else window
        out = conv.scaled(channels, cfg.width, BASE[cfg.version])
        return conv.Unit(out, size, stride, padding, cfg.norm == "batchnorm", 1e-3, name=name)

    def chain(self, x_BHWC: jax.Array, train: bool, name: str, *shapes: tuple[int, Any]) -> jax.Array:
        """Convolutions of (channels, window) one after another."""
        for i, (channels, window) in enumerate(shapes, 1):
            x_BHWC = self.unit(channels, window, f"{name}{i}" if len(shapes) > 1 else name)(x_BHWC, train)
        return x_BHWC


class V1Module(Part):
    channels: tuple[int, ...] = ()

    @nn.compact
    def __call__(self, x_BHWC: jax.Array, train: bool) -> jax.Array:
        one, reduce3, three, reduce5, five, pool = self.channels
        pooled_BHWC = conv.max_pool(x_BHWC, 3, 1, same((3, 3)))
        return jnp.concatenate(
            [
                self.chain(x_BHWC, train, "one", (one, 1)),
                self.chain(x_BHWC, train, "three", (reduce3, 1), (three, 3)),
                self.chain(x_BHWC, train, "five", (reduce5, 1), (five, 3 if self.cfg.port else 5)),
                self.chain(pooled_BHWC, train, "pool", (pool, 1)),
            ],
            axis=-1,
        )


class V3Module(Part):
    """Of stage 1, 2 or 3 (figures 5, 6 and 7 of the paper; the third's pool is a mean, as in the published weights)."""

    stage: int = 1
    channels: tuple[int, ...] = ()

    @nn.compact
    def __call__(self, x_BHWC: jax.Array, train: bool) -> jax.Array:
        (c,) = self.channels
        pooled_BHWC = conv.mean_pool(x_BHWC, 3, 1, same((3, 3)))

        def chain(name: str, *shapes: tuple[int, Any]) -> jax.Array:
            return self.chain(x_BHWC, train, name, *shapes)

        def parted(name: str, y_BHWC: jax.Array) -> list[jax.Array]:
            windows = {"wide": (1, 3), "high": (3, 1)}
            return [self.unit(384, window, f"{name}_{side}")(y_BHWC, train) for side, window in windows.items()]

        if self.stage == 1:
            branches = [
                chain("one", (64, 1)),
                chain("five", (48, 1), (64, 5)),
                chain("three", (64, 1), (96, 3), (96, 3)),
                self.chain(pooled_BHWC, train, "pool", (c, 1)),
            ]
        elif self.stage == 2:
            branches = [
                chain("one", (192, 1)),
                chain("seven", (c, 1), (c, (1, 7)), (192, (7, 1))),
                chain("twice", (c, 1), (c, (7, 1)), (c, (1, 7)), (c, (7, 1)), (192, (1, 7))),
                self.chain(pooled_BHWC, train, "pool", (192, 1)),
            ]
        else:
            branches = [
                chain("one", (320, 1)),
                *parted("three", chain("three", (384, 1))),
                *parted("twice", chain("twice", (c, 1), (384, 3))),
                self.chain(pooled_BHWC, train, "pool", (192, 1)),
            ]
        return jnp.concatenate(branches, axis=-1)


class V3Reduction(Part):
    """Halves the sides between stages 1 and 2, or 2 and 3: strided convolutions beside a pool."""

    after: int = 1

    @nn.compact
    def __call__(self, x_BHWC: jax.Array, train: bool) -> jax.Array:
        def strided(name: str, y_BHWC: jax.Array, channels: int) -> jax.Array:
            return self.unit(channels, 3, name, 2, VALID)(y_BHWC, train)

        if self.after == 1:
            branches = [
                strided("three", x_BHWC, 384),
                strided("twice", self.chain(x_BHWC, train, "twice_", (64, 1), (96, 3)), 96),
            ]
        else:
            seven_BHWC = self.chain(x_BHWC, train, "seven_", (192, 1), (192, (1, 7)), (192, (7, 1)))
            branches = [
                strided("three", self.chain(x_BHWC, train, "three_", (192, 1)), 320),
                strided("seven", seven_BHWC, 192),
            ]
        return jnp.concatenate([*branches, conv.max_pool(x_BHWC, 3, 2, VALID)], axis=-1)


class Auxiliary(Part):
    """Logits BV of an auxiliary head: 128 channels, then a hidden layer (v1) or a convolution of all that is there."""

    @nn.compact
    def __call__(self, x_BHWC: jax.Array, rows_B: Any, train: bool) -> jax.Array:
        cfg, V = self.cfg, self.cfg.num_classes

        def dense(name: str, x_BD: jax.Array, out: int) -> jax.Array:
            kernel = self.param(name, layers.normal(0.0, x_BD.shape[-1]), (x_BD.shape[-1], out))
            return layers.linear(x_BD, kernel) + self.param(f"{name}_bias", nn.initializers.zeros, (out,))

        x_BHWC = conv.mean_pool(x_BHWC, 5, 3, VALID)
        x_BHWC = self.unit(128, 1, "reduce")(x_BHWC, train)
        if cfg.version == "v3":
            x_BHWC = self.unit(768, min(5, *x_BHWC.shape[1:3]), "all", padding=VALID)(x_BHWC, train)
            return dense("head", conv.global_mean(x_BHWC), V)
        hidden_BF = nn.relu(dense("hidden", x_BHWC.reshape(len(x_BHWC), -1), conv.scaled(1024, cfg.width, 64)))
        return dense("head", layers.Dropout(0.7)(hidden_BF, rows_B, train), V)


def ceil_pool(x_BHWC: jax.Array, window: int = 3) -> jax.Array:
    """Max over windows with stride 2, the last of which may reach over the border (as Caffe's)."""
    beyond = [max(window - n, (n - window) % 2) for n in x_BHWC.shape[1:3]]
    return conv.max_pool(x_BHWC, window, 2, [(0, n) for n in beyond])


def response_norm(x_BHWC: jax.Array) -> jax.Array:
    """Divides by (1 + 1e-4 / 5 x the sum of squares over 5 neighbouring channels)^0.75 (Krizhevsky et al. 2012, section
    3.3, with AlexNet's and GoogLeNet's Caffe constants)."""
    squares = jax.lax.reduce_window(jnp.square(x_BHWC), 0.0, jax.lax.add, (1, 1, 1, 5), (1, 1, 1, 1), "SAME")
    return x_BHWC * (1 + 1e-4 / 5 * squares) ** -0.75


class Stem(Part):
    """What comes before the modules: v1's 192 channels at an eighth of the side, v3's 192 at about an eighth."""

    @nn.compact
    def __call__(self, x_BHWC: jax.Array, train: bool) -> jax.Array:
        cfg = self.cfg
        if cfg.stem == "small":
            return self.unit(192, 3, "conv")(x_BHWC, train)
        if cfg.version == "v1":
            normed = response_norm if cfg.norm == "none" else lambda x: x
            x_BHWC = normed(ceil_pool(self.unit(64, 7, "conv1", 2)(x_BHWC, train)))
            x_BHWC = self.unit(64, 1, "conv2")(x_BHWC, train)
            return ceil_pool(normed(self.unit(192, 3, "conv3")(x_BHWC, train)))
        x_BHWC = self.unit(32, 3, "conv1", 2, VALID)(x_BHWC, train)
        x_BHWC = self.unit(32, 3, "conv2", 1, VALID)(x_BHWC, train)
        x_BHWC = conv.max_pool(self.unit(64, 3, "conv3")(x_BHWC, train), 3, 2, VALID)
        x_BHWC = self.unit(80, 1, "conv4")(x_BHWC, train)
        return conv.max_pool(self.unit(192, 3, "conv5", 1, VALID)(x_BHWC, train), 3, 2, VALID)


class Model(nn.Module):
    cfg: Any

    @nn.compact
    def __call__(self, x_BHWC: jax.Array, train: bool = False, rows_B: jax.Array | None = None) -> Any:
        """Logits BV of pixels; in training, with auxiliary heads, also (weight, logits) of each.

        rows: which row of the step's batch each example is, for dropout.
        """
        cfg, others = self.cfg, []
        heads = bool(cfg.auxiliary) and (train or self.is_initializing())
        x_BHWC = Stem(cfg, name="stem")(x_BHWC, train)
        stages = modules(cfg)

        # v1's heads follow the first module of the middle stage and the last but one (4a and 4d), v3's the last.
        n = len(stages[1]) if len(stages) > 1 else 0
        after = sorted({1, max(1, n - 1)}) if cfg.version == "v1" else [n]
        for s, rows in enumerate(stages, 1):
            if s > 1:
                reduce = V3Reduction(cfg, s - 1, name=f"reduction{s - 1}") if cfg.version == "v3" else None
                x_BHWC = reduce(x_BHWC, train) if reduce else ceil_pool(x_BHWC, 2 if cfg.port and s == 3 else 3)
            for i, channels in enumerate(rows, 1):
                name = f"stage{s}_{i}"
                if cfg.version == "v1":
                    x_BHWC = V1Module(cfg, channels, name=name)(x_BHWC, train)
                else:
                    x_BHWC = V3Module(cfg, s, channels, name=name)(x_BHWC, train)
                if heads and s == 2 and i in after:
                    head = Auxiliary(cfg, name=f"auxiliary{after.index(i) + 1}")
                    others.append((cfg.auxiliary, head(x_BHWC, rows_B, train)))
        x_BC = layers.Dropout(cfg.dropout)(conv.global_mean(x_BHWC), rows_B, train)
        logits_BV = classifier.head(self, x_BC)
        return (logits_BV, tuple(others)) if train and others else logits_BV
