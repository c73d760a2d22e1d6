"""Pieces that families share: activations, norms, products, the feed-forward layer, repetition over depth.

B batch, L length, D width, H heads, K head dim, F ffn, N depth.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigmodel.ops import sharding

Init = Callable[..., jax.Array]

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": lambda x: 0.5 * x * (1 + jax.lax.erf(x * 0.5**0.5)),  # jax.nn.gelu's erfc takes a CPU twice as long
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),  # GPT-2, GPT-3
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
}
GATED = {"swiglu": "silu", "geglu": "gelu"}  # Shazeer 2020, arXiv:2002.05202


def normal(std: float, fan_in: int, scale: float = 1.0) -> Init:
    """Normal of `std`, or of 1/sqrt(fan_in) where std is 0; times `scale`."""
    return nn.initializers.normal(scale * (std if std else 1.0 / math.sqrt(fan_in)))


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


class BatchNorm(nn.Module):
    """Batch normalisation over all axes but the last (Ioffe & Szegedy 2015, arXiv:1502.03167), in float32.

    In training by the batch's mean and variance, by which the running ones of the collection `batch_stats` move a part
    `moves` of the way; else by those. The running variance is the unbiased one, as torch's.
    """

    eps: float = 1e-5
    moves: float = 0.1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        C = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (C,))
        bias = self.param("bias", nn.initializers.zeros, (C,))
        mean_C = self.variable("batch_stats", "mean", lambda: jnp.zeros(C))
        var_C = self.variable("batch_stats", "var", lambda: jnp.ones(C))
        y = x.astype(jnp.float32)
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


def moved(x: jax.Array) -> jax.Array:
    """Moved in memory: XLA's CPU products of an operand that is only marked as transposed take twice as long."""
    return jax.lax.optimization_barrier(jnp.swapaxes(x, -1, -2))


def _one_cpu() -> bool:
    return sharding.platform() == "cpu" and sharding.shards(*sharding.SPREAD) == 1


def made(x: jax.Array) -> jax.Array:
    """What products read, before them: a TPU's compiler else computes it within them, again for each part of their
    result, and takes a quarter longer to compile a step."""
    return jax.lax.optimization_barrier(x) if sharding.platform() == "tpu" else x


def linears(x_BLD: jax.Array, weights_DHK: Sequence[jax.Array]) -> list[jax.Array]:
    """`linear` of each of the weights, BLHK, as one product where they have one shape: a third of the collectives, and
    of the compilation, of queries, keys and values by themselves. Not on one CPU, which would copy them side by side.
    """
    if _one_cpu() or len({w.shape for w in weights_DHK}) > 1:
        return [linear(x_BLD, w) for w in weights_DHK]
    y_BLNHK = linear(made(x_BLD), jnp.stack([w.astype(x_BLD.dtype) for w in weights_DHK], axis=1))
    y_BLNHK = sharding.constrain(y_BLNHK, "batch", "length", None, "heads", None)  # else their gradient is made whole
    # Their gradients are put side by side, not added up, and that before the products that read them.
    return [y[:, :, 0] for y in jnp.split(made(y_BLNHK), len(weights_DHK), axis=2)]


def linear(x_xD: jax.Array, w_Dy: jax.Array) -> jax.Array:
    """x w over x's last axis and w's first, in x's type. On one CPU it is one product of two matrices, which XLA's
    library does fastest, where more axes make it copy operands into other layouts; on a mesh the axes are kept apart,
    so that each stays sharded."""
    if not _one_cpu():
        return jax.lax.dot_general(x_xD, w_Dy.astype(x_xD.dtype), (((x_xD.ndim - 1,), (0,)), ((), ())))
    rows = x_xD.reshape(-1, x_xD.shape[-1])
    y = _matmul(rows, w_Dy.reshape(w_Dy.shape[0], -1).astype(x_xD.dtype))
    return y.reshape(*x_xD.shape[:-1], *w_Dy.shape[1:])


@jax.custom_vjp
def _matmul(x_TD: jax.Array, w_DF: jax.Array) -> jax.Array:
    return x_TD @ w_DF


def _matmul_backward(saved: Any, y_TF: jax.Array) -> Any:
    x_TD, w_DF = saved
    return y_TF @ w_DF.T, moved(x_TD) @ y_TF


_matmul.defvjp(lambda x, w: (x @ w, (x, w)), _matmul_backward)


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

        def hidden(w: Any, b: Any) -> jax.Array:
            y = {name: linear(x_BLD, w[name]) for name in w}
            y = {name: y[name] + b[name].astype(dtype) for name in y} if b else y
            h_BLF = made(y["up"] * act(y["gate"]) if gated else act(y["up"]))
            return sharding.constrain(h_BLF, "batch", "length", "ffn")

        parts = _ffn_parts(x_BLD.shape, F, dtype)
        if parts == 1:
            y_BLD = linear(hidden(w, b), down)
        else:  # as many units at a time, so that their activations aren't all in memory while they are computed again
            cut = {name: v.reshape(D, parts, -1).swapaxes(0, 1) for name, v in w.items()}
            cut_b = {name: v.reshape(parts, -1) for name, v in b.items()}

            @functools.partial(jax.checkpoint, prevent_cse=False)
            def body(y_BLD: jax.Array, xs: Any) -> Any:
                return y_BLD + linear(hidden(xs[0], xs[1]), xs[2]), None

            start = jnp.zeros_like(x_BLD)
            y_BLD, _ = jax.lax.scan(body, start, (cut, cut_b, down.reshape(parts, -1, D)))
        return y_BLD + self.param("down_bias", zeros, (D,)).astype(dtype) if cfg.bias else y_BLD


PART_BYTES = 2**25  # of a feed-forward layer's activations that a device has at once, where they are computed again


def _ffn_parts(shape: Any, ffn: int, dtype: Any) -> int:
    """Into how many parts a feed-forward layer is cut: one where nothing is computed again, or other devices have
    parts of it, whose sums would be exchanged a part at a time."""
    if sharding.execution().remat not in ("full", "offload") or sharding.shards("ffn") > 1:
        return 1
    bytes_ = math.prod(shape[:-1]) * ffn * dtype.itemsize / sharding.shards("batch", "length")
    return max((k for k in (1, 2, 4, 8) if bytes_ / k >= PART_BYTES and ffn % k == 0 and ffn // k >= 512), default=1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def lookup(table_VE: jax.Array, tokens_x: jax.Array, dtype: str) -> jax.Array:
    """Rows of a table, in `dtype`: gathered over a mesh in that, their gradients summed in the table's own type (in
    bfloat16 a sum of ones ends at 256)."""
    return table_VE.astype(dtype)[tokens_x]


def _lookup_backward(dtype: str, saved: Any, y_xE: jax.Array) -> Any:
    tokens_x, like_VE = saved
    return jnp.zeros_like(like_VE).at[tokens_x].add(y_xE.astype(like_VE.dtype)), None


lookup.defvjp(
    lambda table_VE, tokens_x, dtype: (lookup(table_VE, tokens_x, dtype), (tokens_x, table_VE)), _lookup_backward
)

RESIDUAL = "residual"  # the name of what enters a block
POLICIES = {
    "none": None,  # nothing is computed again
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # all but products with weights
    "full": jax.checkpoint_policies.nothing_saveable,  # all of a block, from what enters it
    "offload": jax.checkpoint_policies.save_and_offload_only_these_names(  # as full; what enters lies in host memory
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[RESIDUAL],
        offload_src="device",
        offload_dst="pinned_host",
    ),
}


def stack(block: Any, depth: int, scan: bool) -> Any:
    """`depth` blocks as one module whose parameters have a leading depth axis.

    The block is called as block(carry, per_layer, *broadcast) and returns (carry, per_layer_out).
    One parameter layout serves both executions: `scan` (compile time flat in depth) and unrolled (a
    loop unrolled at lowering: faster steps on a CPU). What the backward pass computes again is the execution's
    `remat`, one of POLICIES.
    """
    policy = POLICIES[sharding.execution().remat]
    if policy:
        block = nn.remat(block, prevent_cse=not scan, policy=policy)
    return nn.scan(
        block,
        variable_axes={"params": 0, "intermediates": 0, "batch_stats": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=(0, nn.broadcast, nn.broadcast),
        out_axes=0,
        length=depth,
        unroll=1 if scan else depth,
        check_constancy_invariants=False,  # we broadcast no variables, and the check traces the block twice
    )
