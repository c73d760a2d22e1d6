"""Pieces that families share: activations, norms, products, the feed-forward layer, repetition over depth.

B batch, L length, D width, H heads, K head dim, F ffn, N depth.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigmodel.ops import remat, sharding
from bigmodel.ops.products import linear, made

Init = Callable[..., jax.Array]

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": lambda x: 0.5 * x * (1 + jax.lax.erf(x * 0.5**0.5)),  # jax.nn.gelu's erfc takes a CPU twice as long
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),  # GPT-2, GPT-3
    "gelu_quick": lambda x: x * jax.nn.sigmoid(1.702 * x),  # CLIP
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
}
GATED = {"swiglu": "silu", "geglu": "gelu", "geglu_tanh": "gelu_tanh"}  # Shazeer 2020, arXiv:2002.05202


def normal(std: float, fan_in: int, scale: float = 1.0) -> Init:
    """Normal of `std`, or of 1/sqrt(fan_in) where std is 0; times `scale`."""
    return nn.initializers.normal(scale * (std if std else 1.0 / math.sqrt(fan_in)))


def wide(x: jax.Array) -> jax.Array:
    """In float32, or wider where it is."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


class Norm(nn.Module):
    """LayerNorm or RMSNorm over the last axis, computed in float32."""

    kind: str = "layernorm"
    bias: bool = True
    eps: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        y = x.astype(jnp.float32)
        if self.kind == "layernorm":
            y = y - jnp.mean(y, axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.eps) * scale
        if self.kind == "layernorm" and self.bias:
            y = y + self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        return y.astype(x.dtype)


def example_keys(key: jax.Array, rows_B: jax.Array) -> jax.Array:
    """A key for each example, B, from a step's key and the example's row in the step's batch.

    What is drawn from it doesn't depend on which micro-batch or device has the example.
    """
    return jax.vmap(jax.random.fold_in, (None, 0))(key, rows_B)


def rows_of(batch: Any) -> jax.Array:
    """Which row of a step's batch (or of an evaluated split) each example is, B: as the program says, or 0, 1, ..."""
    return batch["row"] if "row" in batch else jnp.arange(len(next(iter(batch.values()))))


class Dropout(nn.Module):
    """Zeros a part `rate` of an example's values and divides the others by 1 - rate, in training (Srivastava et al.
    2014, JMLR 15). Flax's own draws for a batch whole, so that an example's zeros would depend on its micro-batch."""

    rate: float

    @nn.compact
    def __call__(self, x_Bx: jax.Array, rows_B: jax.Array | None, train: bool) -> jax.Array:
        if not train or not self.rate:
            return x_Bx
        keys_B = example_keys(self.make_rng("dropout"), jnp.arange(len(x_Bx)) if rows_B is None else rows_B)
        keep_Bx = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - self.rate, x_Bx.shape[1:]))(keys_B)
        return jnp.where(keep_Bx, x_Bx / (1 - self.rate), jnp.zeros_like(x_Bx))


class DropPath(nn.Module):
    """Stochastic depth: leaves out an example's residual branch with probability `rate`, and divides the others by 1 -
    rate, in training (Huang et al. 2016, arXiv:1603.09382; scaled in training as dropout is)."""

    @nn.compact
    def __call__(self, y_Bx: jax.Array, rate: jax.Array, rows_B: jax.Array | None, train: bool) -> jax.Array:
        if not train:
            return y_Bx
        keys_B = example_keys(self.make_rng("dropout"), jnp.arange(len(y_Bx)) if rows_B is None else rows_B)
        keep_B = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate))(keys_B)
        keep_Bx = keep_B.reshape(-1, *(1,) * (y_Bx.ndim - 1))
        return jnp.where(keep_Bx, y_Bx / (1 - rate).astype(y_Bx.dtype), jnp.zeros_like(y_Bx))


def drop_paths(last: float, depth: int) -> jax.Array | None:
    """The rates of stochastic depth of each layer, N: in proportion to its place, `last` for the last one (Huang et al.
    2016, equation 4); None where that is 0."""
    return last * jnp.arange(1, depth + 1, dtype=jnp.float32) / depth if last else None


class BatchNorm(nn.Module):
    """Batch normalisation over all axes but the last (Ioffe & Szegedy 2015, arXiv:1502.03167), in float32.

    In training by the batch's mean and variance, by which the running ones of the collection `batch_stats` move a part
    `moves` of the way; else by those. The running variance is the unbiased one, as torch's.
    """

    eps: float = 1e-5
    moves: float = 0.1
    start: float = 1.0  # of the scale

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        C = x.shape[-1]
        scale = self.param("scale", nn.initializers.constant(self.start), (C,))
        bias = self.param("bias", nn.initializers.zeros, (C,))
        mean_C = self.variable("batch_stats", "mean", lambda: jnp.zeros(C))
        var_C = self.variable("batch_stats", "var", lambda: jnp.ones(C))
        y = wide(x)
        mean, var = mean_C.value, var_C.value
        if train:
            axes, n = tuple(range(x.ndim - 1)), x.size // C
            mean = jnp.mean(y, axis=axes)
            var = jnp.mean(jnp.square(y - mean), axis=axes)
            if self.is_mutable_collection("batch_stats"):
                mean_C.value += self.moves * (mean - mean_C.value)
                var_C.value += self.moves * (var * (n / max(1, n - 1)) - var_C.value)
        return ((y - mean) * jax.lax.rsqrt(var + self.eps) * scale + bias).astype(x.dtype)


# ------------------------------------------------------------------- what a parametrisation asks of a model


def base_head_dim(cfg: Any) -> int:
    """K of the base shape: the model's own where the widths are, since a published K may not be width / heads."""
    same = (cfg.base_width, cfg.base_num_heads) == (cfg.width, cfg.num_heads)
    return cfg.head_dim if same else cfg.base_width // cfg.base_num_heads


def score_scale(cfg: Any) -> float:
    """Of attention's scores: cfg.score_scale, or 1 / sqrt(K), and from the base's K on as 1 / K, where queries and keys
    grow aligned (muP).

    Yang et al. 2022 (arXiv:2203.03466), definition 4.1.
    """
    K, base = cfg.head_dim, base_head_dim(cfg)
    if cfg.parametrization in ("mup", "completep", "mean_field"):
        return cfg.score_scale * base / K if cfg.score_scale else base**0.5 / K
    return cfg.score_scale or K**-0.5


def tied_scale(cfg: Any) -> float:
    """Of a tied head's logits: the table starts and learns as an embedding, so the readout's part is done here."""
    power = {"standard": 0, "standard_layerwise": 0, "ntk": 0.5, "mup": 1, "mean_field": 1, "completep": 1}
    return float((cfg.width / cfg.base_width) ** -power[cfg.parametrization])


def branch_scale(cfg: Any) -> float:
    """Of each residual branch: base depth / depth in CompleteP (Dey et al. 2025, arXiv:2505.01618, alpha = 1)."""
    return cfg.base_depth / cfg.depth if cfg.parametrization == "completep" else 1.0


def residual_start(cfg: Any) -> float:
    """Of the projections back to the residual stream at the start: 1 / sqrt(2 depth) (GPT-2), where asked."""
    depth = cfg.base_depth if cfg.parametrization == "completep" else cfg.depth
    return (2 * depth) ** -0.5 if cfg.scale_residual or cfg.norm_placement == "deepnorm" else 1.0


def value_start(cfg: Any) -> float:
    """Of values and of the ffn's first matrices: as small as the projections back, in GLM-130B's DeepNorm.

    Zeng et al. 2022 (arXiv:2210.02414, section 2.1), after Wang et al. 2022 (arXiv:2203.00555).
    """
    return residual_start(cfg) if cfg.norm_placement == "deepnorm" else 1.0


class FeedForward(nn.Module):
    """Position-wise MLP, gated where cfg.activation is. cfg keys: width, ffn, activation, bias, init_std."""

    cfg: Any

    @nn.compact
    def __call__(self, x_BLD: jax.Array) -> jax.Array:
        cfg, dtype = self.cfg, x_BLD.dtype
        D, F = cfg.width, cfg.ffn

        gated = cfg.activation in GATED
        act = ACTIVATIONS[GATED[cfg.activation] if gated else cfg.activation]
        std, zeros = cfg.init_std, nn.initializers.zeros
        into = {"up": normal(std, D, value_start(cfg)), **({"gate": normal(std, D, value_start(cfg))} if gated else {})}
        w = {name: self.param(name, start, (D, F)) for name, start in into.items()}
        b = {name: self.param(f"{name}_bias", zeros, (F,)) for name in into if cfg.bias}
        down = self.param("down", normal(std, F, residual_start(cfg)), (F, D))

        def layer(w: Any, b: Any, down: jax.Array) -> jax.Array:
            y = {name: linear(x_BLD, w[name]) for name in w}
            y = {name: y[name] + b[name].astype(dtype) for name in y} if b else y
            h_BLF = made(y["up"] * act(y["gate"]) if gated else act(y["up"]))
            return linear(sharding.constrain(h_BLF, "batch", "length", "ffn"), down)

        parts = remat.ffn_parts(x_BLD.shape, F, dtype)
        if parts == 1:
            y_BLD = layer(w, b, down)
        else:
            cut = {name: v.reshape(D, parts, -1).swapaxes(0, 1) for name, v in w.items()}
            cut_b = {name: v.reshape(parts, -1) for name, v in b.items()}
            y_BLD = remat.sum_of_parts(layer, x_BLD, cut, cut_b, down.reshape(parts, -1, D))
        return y_BLD + self.param("down_bias", zeros, (D,)).astype(dtype) if cfg.bias else y_BLD


def stack(block: Any, depth: int, scan: bool, collections: Sequence[str] = ("batch_stats",)) -> Any:
    """`depth` blocks as one module whose parameters have a leading depth axis.

    The block is called as block(carry, per_layer, *broadcast), with two arguments after `per_layer`, the last a bool,
    and returns (carry, per_layer_out). One parameter layout serves both executions: `scan` (compile time flat in depth)
    and unrolled (at lowering: faster steps). What the backward pass computes again is the execution's `remat`. Stages
    that differ, as a ResNet's, are one stack each.

    Args:
      collections: of the model's variables beside the parameters, which each layer has its own of.
    """
    policy = remat.POLICIES[sharding.execution().remat]
    if policy:
        # 4: the last argument, whether it is training, stays Python's: dropout branches on it.
        block = nn.remat(block, prevent_cse=not scan, policy=policy, static_argnums=(4,))
    return nn.scan(
        block,
        variable_axes=dict.fromkeys(("params", "intermediates", *collections), 0),
        split_rngs={"params": True, "dropout": True},
        in_axes=(0, nn.broadcast, nn.broadcast),
        out_axes=0,
        length=depth,
        unroll=1 if scan else depth,
        check_constancy_invariants=False,  # we broadcast no variables, and the check traces the block twice
    )
