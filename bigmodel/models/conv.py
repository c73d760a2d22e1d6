"""Pieces of convolutional networks: convolution, a convolution with its norm, pooling, and what their FLOPs are.

B batch, H height, W width, C channels.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import FrozenConfigDict

from bigmodel.models import layers

Pads = Sequence[tuple[int, int]]
LAYOUT = ("NHWC", "HWIO", "NHWC")

# Of every kernel and norm of a convolutional network. Blocks under a module `rest` are stacked over depth.
RULES = (
    (r"^stem/kernel$", ("window", "window", "feature", "embed")),
    (r"(^|/)rest/.*kernel$", ("depth", "window", "window", "embed", "ffn")),
    (r"kernel$", ("window", "window", "embed", "ffn")),
    (r"(^|/)rest/.*(scale|bias)$", ("depth", None)),
    (r"(scale|bias)$", (None,)),
)


def same(window: Sequence[int]) -> Pads:
    """Zeros on both sides alike, as torch and Caffe pad; XLA's "SAME" puts an odd one after the image, which moves what
    a strided convolution sees by a pixel."""
    return [((k - 1) // 2, (k - 1) // 2) for k in window]


class Conv(nn.Module):
    """A convolution, BHWC -> BHWC. Kernels start, unless told otherwise, as He et al. 2015 (arXiv:1502.01852, equation
    14) for the backward pass: normal with variance 2 / (window x channels out)."""

    channels: int
    window: tuple[int, int] = (3, 3)
    stride: int = 1
    padding: Pads | None = None  # None: `same`
    bias: bool = False
    start: Any = None

    @nn.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        C = self.channels
        start = self.start or nn.initializers.normal((2 / (math.prod(self.window) * C)) ** 0.5)
        kernel = self.param("kernel", start, (*self.window, x_BHWC.shape[-1], C)).astype(x_BHWC.dtype)
        pads = same(self.window) if self.padding is None else self.padding
        strides = (self.stride, self.stride)
        y_BHWC = jax.lax.conv_general_dilated(x_BHWC, kernel, strides, pads, dimension_numbers=LAYOUT)
        if self.bias:
            y_BHWC = y_BHWC + self.param("bias", nn.initializers.zeros, (C,)).astype(x_BHWC.dtype)
        return y_BHWC


class Unit(nn.Module):
    """A convolution, batch normalisation (or a bias in its place) and a rectifier."""

    channels: int
    window: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: Pads | None = None
    normed: bool = True
    eps: float = 1e-5

    @nn.compact
    def __call__(self, x_BHWC: jax.Array, train: bool) -> jax.Array:
        shape = self.channels, self.window, self.stride, self.padding
        y_BHWC = Conv(*shape, bias=not self.normed, name="conv")(x_BHWC)
        return nn.relu(layers.BatchNorm(self.eps, name="norm")(y_BHWC, train) if self.normed else y_BHWC)


VALID = ((0, 0), (0, 0))


def max_pool(x_BHWC: jax.Array, window: int, stride: int, padding: Pads) -> jax.Array:
    return nn.max_pool(x_BHWC, (window, window), (stride, stride), tuple(padding))


def mean_pool(x_BHWC: jax.Array, window: int, stride: int, padding: Pads) -> jax.Array:
    """Means over windows in which padding counts as zeros, as torch's."""
    return nn.avg_pool(x_BHWC, (window, window), (stride, stride), tuple(padding))


# ------------------------------------------------------------------------------------- what a network costs


@functools.lru_cache(maxsize=512)
def _traced(model: Any, section: str, height: int, width: int, channels: int) -> tuple[float, float]:
    module = model(FrozenConfigDict(json.loads(section)))
    x = jax.ShapeDtypeStruct((1, height, width, channels), "float32")
    variables = jax.eval_shape(module.init, jax.random.key(0), x)
    return _costs(jax.make_jaxpr(lambda v, x: module.apply(v, x))(variables, x).jaxpr)


def costs(model: type[nn.Module], cfg: Any) -> tuple[float, float]:
    """(forward FLOPs, numbers that convolutions put out) of one picture, counted in the traced program of evaluation:
    2 per multiply-add of its convolutions and matrix products."""
    section = json.dumps(cfg.to_dict(), sort_keys=True)
    made: Any = model
    return _traced(made, section, cfg.image_height, cfg.image_width, cfg.channels)


def _costs(jaxpr: Any) -> tuple[float, float]:
    flops = out = 0.0
    for eqn in jaxpr.eqns:
        inner = [p for v in eqn.params.values() for p in (v if isinstance(v, (tuple, list)) else [v])]
        times = eqn.params.get("length", 1) if eqn.primitive.name == "scan" else 1
        for part in (getattr(p, "jaxpr", p) for p in inner):
            if hasattr(part, "eqns"):
                found = _costs(part)
                flops, out = flops + times * found[0], out + times * found[1]
        size = math.prod(eqn.outvars[0].aval.shape)
        if eqn.primitive.name == "conv_general_dilated":
            kernel = eqn.invars[1].aval.shape
            flops, out = flops + 2.0 * size * math.prod(kernel[:-1]), out + size
        elif eqn.primitive.name == "dot_general":
            ((contracted, _), _) = eqn.params["dimension_numbers"]
            flops += 2.0 * size * math.prod(eqn.invars[0].aval.shape[d] for d in contracted)
    return flops, out


def footprint(model: type[nn.Module], cfg: Any) -> dict[str, Any]:
    """What a pod's layout estimates activations from: of each convolution what it reads and what its norm reads.
    Blocks that are stacked are computed again one at a time; a network of stages keeps most of its first stage."""
    _, out = costs(model, cfg)
    return {
        "itemsize": 2 if cfg.dtype == "bfloat16" else 4,
        "layers": cfg.depth,
        "entering": out,
        "kept": {"none": 2 * out, "dots": 2 * out},
        "block": out,
        "ends": cfg.image_height * cfg.image_width * cfg.channels,
        "logits": cfg.get("num_classes", 0),
        "heads": 1,
        "length": 1,
    }


def spread(total: int, shares: Sequence[int]) -> list[int]:
    """`total` blocks over stages, at least one each, as near as can be to `shares`; what is left over goes to the
    stages that lack most, the later ones first."""
    want = [total * share / sum(shares) for share in shares]
    found = [max(1, int(w)) for w in want]
    while sum(found) != total:
        step = 1 if sum(found) < total else -1
        able = [i for i in range(len(found)) if step > 0 or found[i] > 1]
        i = max(able, key=lambda i: (step * (want[i] - found[i]), i))
        found[i] += step
    return found


def scaled(channels: int, width: int, base: int) -> int:
    """A channel count of a network `width` wide, of one that is `base` wide."""
    return max(1, round(channels * width / base))


def global_mean(x_BHWC: jax.Array) -> jax.Array:
    return jnp.mean(x_BHWC, axis=(1, 2))
