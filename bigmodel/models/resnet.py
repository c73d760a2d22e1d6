"""Residual networks (He et al. 2015, arXiv:1512.03385): basic and bottleneck blocks, before or after activation.

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
from bigmodel.models.layers import BatchNorm
from bigmodel.ops import remat

EXPANSION = 4  # channels that a bottleneck block puts out, over those of its 3 x 3 convolution


def get_config() -> ConfigDict:
    return ConfigDict(
        classifier.get_config()
        | dict(
            width=64,  # channels of the first stage; each further stage has twice as many
            depth=8,  # residual blocks in all
            stages=(),  # blocks of each stage; (): depth over num_stages, as even as can be
            num_stages=4,  # 3: the networks for 32 x 32 pictures
            block="basic",  # or bottleneck
            stem="imagenet",  # 7 x 7 of stride 2 and a pool; small: 3 x 3; deep: three of 3 x 3 and a pool, as CLIP's
            pooled=False,  # strides are means over windows, before a 1 x 1 convolution (CLIP)
            shortcut="projection",  # where the shape changes: a 1 x 1 convolution, or pad: zeros for new channels
            preactivation=False,  # norm and rectifier before each convolution (He et al. 2016, arXiv:1603.05027)
            zero_scale=False,  # each block's last norm starts at 0 (Goyal et al. 2017, arXiv:1706.02677, section 5.1)
            drop_path=0.0,  # stochastic depth: of the last block; of the others in proportion to their place
        )
    )


def finalize(cfg: ConfigDict) -> None:
    classifier.finalize(cfg)
    sizes = dict.fromkeys(("width", "depth", "num_stages"), "[1, inf)")
    check_ranges("config.model.", cfg, drop_path="[0, 1)", **sizes)
    choose("config.model.block", cfg.block, ["basic", "bottleneck"])
    choose("config.model.stem", cfg.stem, ["imagenet", "small", "deep"])
    choose("config.model.shortcut", cfg.shortcut, ["projection", "pad"])
    if not cfg.stages and cfg.depth < cfg.num_stages:
        raise UsageError(f"config.model.depth={cfg.depth}: at least a block for each of {cfg.num_stages} stages")
    cfg.stages = tuple(cfg.stages) or tuple(conv.spread(cfg.depth, [1] * cfg.num_stages))
    cfg.num_stages = len(cfg.stages)
    if sum(cfg.stages) != cfg.depth or min(cfg.stages) < 1:
        raise UsageError(f"config.model.stages={cfg.stages}: depth={cfg.depth} blocks in all, at least one a stage")
    if cfg.pooled and (cfg.block != "bottleneck" or cfg.shortcut != "projection"):
        raise UsageError("config.model.pooled: needs block=bottleneck and shortcut=projection")
    if cfg.preactivation and cfg.zero_scale:
        raise UsageError("config.model.zero_scale: a block of preactivation=True doesn't end in a norm")


def rung(width: int, depth: int) -> dict[str, Any]:
    """Channels of the first stage, and blocks over the same number of stages."""
    return {"model.width": width, "model.depth": depth, "model.stages": ()}


def _imagenet(block: str, *stages: int) -> dict[str, Any]:
    return dict(block=block, depth=sum(stages), stages=stages, num_stages=4)


def _cifar(n: int) -> dict[str, Any]:
    shape = dict(image_height=32, image_width=32, num_classes=10, stem="small", shortcut="pad")
    return shape | dict(width=16, depth=3 * n, stages=(n, n, n), num_stages=3)


_TABLE = "He et al. 2015, arXiv:1512.03385, table 1; stride in the 3 x 3 convolution, as torchvision"
_CIFAR = "He et al. 2015, arXiv:1512.03385, section 4.2 and table 6"
PUBLISHED = {
    "resnet-18": dict(source=_TABLE, params=11_689_512, model=_imagenet("basic", 2, 2, 2, 2)),
    "resnet-34": dict(source=_TABLE, params=21_797_672, model=_imagenet("basic", 3, 4, 6, 3)),
    "resnet-50": dict(source=_TABLE, params=25_557_032, model=_imagenet("bottleneck", 3, 4, 6, 3)),
    "resnet-101": dict(source=_TABLE, params=44_549_160, model=_imagenet("bottleneck", 3, 4, 23, 3)),
    "resnet-152": dict(source=_TABLE, params=60_192_808, model=_imagenet("bottleneck", 3, 8, 36, 3)),
    "resnet-20": dict(source=_CIFAR, params=269_722, model=_cifar(3)),
    "resnet-32": dict(source=_CIFAR, params=464_154, model=_cifar(5)),
    "resnet-44": dict(source=_CIFAR, params=658_586, model=_cifar(7)),
    "resnet-56": dict(source=_CIFAR, params=853_018, model=_cifar(9)),
    "resnet-110": dict(source=_CIFAR, params=1_727_962, model=_cifar(18)),
}
RULES = (*classifier.RULES, *conv.RULES)
spec, inputs, loss = classifier.spec, classifier.inputs, classifier.loss


def decomposes(cfg: Any) -> bool:
    """Batch normalisation reads the whole batch."""
    return False


def flops(cfg: Any) -> float:
    """Forward FLOPs of a picture: 2 per multiply-add of the convolutions and of the head, counted in the program."""
    return conv.costs(Model, cfg)[0]


def footprint(cfg: Any) -> dict[str, Any]:
    return conv.footprint(Model, cfg)


class Block(nn.Module):
    """A residual branch of 3 x 3 convolutions, or of 1 x 1, 3 x 3 and 1 x 1 (a bottleneck)."""

    cfg: Any
    channels: int
    stride: int = 1

    @nn.compact
    def __call__(self, x_BHWC: jax.Array, drop: Any, rows_B: Any, train: bool) -> tuple[jax.Array, None]:
        """`drop`: the share of examples for which the branch is left out in training; None: none."""
        cfg, C, stride = self.cfg, self.channels, self.stride
        shapes = [(C, 3, stride), (C, 3, 1)]
        if cfg.block == "bottleneck":
            shapes = [(C, 1, 1), (C, 3, 1 if cfg.pooled else stride), (EXPANSION * C, 1, 1)]
        out = shapes[-1][0]

        def pool(y_BHWC: jax.Array) -> jax.Array:
            return conv.mean_pool(y_BHWC, stride, stride, conv.VALID) if cfg.pooled and stride > 1 else y_BHWC

        def norm(name: str, y_BHWC: jax.Array, zero: bool = False) -> jax.Array:
            return BatchNorm(start=0.0 if zero else 1.0, name=name)(y_BHWC, train)

        first_BHWC = nn.relu(norm("norm1", x_BHWC)) if cfg.preactivation else x_BHWC
        y_BHWC = first_BHWC
        for i, (channels, window, step) in enumerate(shapes, 1):
            if cfg.preactivation and i > 1:
                y_BHWC = nn.relu(norm(f"norm{i}", y_BHWC))
            y_BHWC = pool(y_BHWC) if i == len(shapes) else y_BHWC
            y_BHWC = conv.Conv(channels, (window, window), step, name=f"conv{i}")(y_BHWC)
            if not cfg.preactivation:
                last = i == len(shapes)
                y_BHWC = norm(f"norm{i}", y_BHWC, zero=last and cfg.zero_scale)
                y_BHWC = y_BHWC if last else nn.relu(y_BHWC)
        if stride > 1 or x_BHWC.shape[-1] != out:
            if cfg.shortcut == "pad":
                x_BHWC = x_BHWC[:, ::stride, ::stride]
                x_BHWC = jnp.pad(x_BHWC, ((0, 0), (0, 0), (0, 0), (0, out - x_BHWC.shape[-1])))
            else:
                x_BHWC = conv.Conv(out, (1, 1), 1 if cfg.pooled else stride, name="shortcut")(pool(first_BHWC))
                x_BHWC = x_BHWC if cfg.preactivation else norm("shortcut_norm", x_BHWC)
        if drop is not None:
            y_BHWC = layers.DropPath()(y_BHWC, drop, rows_B, train)
        return (x_BHWC + y_BHWC if cfg.preactivation else nn.relu(x_BHWC + y_BHWC)), None


class Stage(nn.Module):
    """`depth` blocks of one width: the first, which may change the shape, then the rest as one stack."""

    cfg: Any
    depth: int
    channels: int
    stride: int

    @nn.compact
    def __call__(self, x_BHWC: jax.Array, drops: Any, rows_B: Any, train: bool) -> jax.Array:
        cfg, C = self.cfg, self.channels
        first, rest = (None, None) if drops is None else (drops[0], drops[1:])
        x_BHWC, _ = Block(cfg, C, self.stride, name="first")(x_BHWC, first, rows_B, train)
        if self.depth > 1:
            blocks = layers.stack(Block, self.depth - 1, scan=not remat.unrolls(self.depth))
            x_BHWC, _ = blocks(cfg, C, name="rest")(x_BHWC, rest, rows_B, train)
        return x_BHWC


class Model(nn.Module):
    cfg: Any
    classifies: bool = True  # else returns what the last stage puts out, BHWC

    @nn.compact
    def __call__(self, x_BHWC: jax.Array, train: bool = False, rows_B: jax.Array | None = None) -> jax.Array:
        """Logits BV of pixels. rows: which row of the step's batch each example is, for stochastic depth."""
        cfg, C = self.cfg, self.cfg.width
        if cfg.stem == "deep":
            for i, (channels, stride) in enumerate([(C // 2, 2), (C // 2, 1)], 1):
                x_BHWC = conv.Conv(channels, (3, 3), stride, name="stem" if i == 1 else f"stem{i}")(x_BHWC)
                x_BHWC = nn.relu(BatchNorm(name=f"stem_norm{i}")(x_BHWC, train))
            x_BHWC = conv.Conv(C, (3, 3), name="stem3")(x_BHWC)
        elif cfg.stem == "imagenet":
            x_BHWC = conv.Conv(C, (7, 7), 2, name="stem")(x_BHWC)
        else:
            x_BHWC = conv.Conv(C, (3, 3), 1, name="stem")(x_BHWC)
        if not cfg.preactivation:
            x_BHWC = nn.relu(BatchNorm(name="stem_norm")(x_BHWC, train))
        if cfg.stem == "imagenet":
            x_BHWC = conv.max_pool(x_BHWC, 3, 2, conv.same((3, 3)))
        elif cfg.stem == "deep":
            x_BHWC = conv.mean_pool(x_BHWC, 2, 2, conv.VALID)
        drops_N = layers.drop_paths(cfg.drop_path, cfg.depth)
        done = 0
        for i, n in enumerate(cfg.stages):
            drops = None if drops_N is None else drops_N[done : done + n]
            stage = Stage(cfg, n, C * 2**i, 1 if i == 0 else 2, name=f"stage{i + 1}")
            x_BHWC, done = stage(x_BHWC, drops, rows_B, train), done + n
        if cfg.preactivation:
            x_BHWC = nn.relu(BatchNorm(name="last_norm")(x_BHWC, train))
        return classifier.head(self, conv.global_mean(x_BHWC)) if self.classifies else x_BHWC
