"""Pieces that families share. Pure: caches and states are arguments and results.

B batch, L query length, S key length, D width, H query heads, G key/value heads, R = H/G,
K head dim, F ffn, V vocab, N depth.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from bigmodel import sharding

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


# ------------------------------------------------------------------- what a parametrisation asks of a model


def base_head_dim(cfg: Any) -> int:
    """K of the base shape: the model's own where the widths are, since a published K may not be width / heads."""
    same = (cfg.base_width, cfg.base_num_heads) == (cfg.width, cfg.num_heads)
    return cfg.head_dim if same else cfg.base_width // cfg.base_num_heads


def score_scale(cfg: Any) -> float:
    """Of attention's scores: 1 / sqrt(K), and 1 / K from the base's K on, where queries and keys grow aligned (muP).

    Yang et al. 2022 (arXiv:2203.03466), definition 4.1.
    """
    K = cfg.head_dim
    if cfg.parametrization in ("mup", "completep", "mean_field"):
        return base_head_dim(cfg) ** 0.5 / K
    return K**-0.5


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


# ------------------------------------------------------------------------------------------- positions


class View(flax.struct.PyTreeNode):
    """What queries see, the same for every layer.

    Attributes:
      start: position of the first query.
      bias_HLS: added to every layer's scores.
      prefix_B: how many first keys every query of an example sees, its own future among them; None: none.
      positions_BL: of the queries, where they aren't start, start + 1, ...
    """

    start: Any
    bias_HLS: jax.Array | None = None
    prefix_B: jax.Array | None = None
    positions_BL: jax.Array | None = None


BUCKETS, FARTHEST = 32, 128  # T5's (Raffel et al. 2020, arXiv:1910.10683, section 2.1)


def relative_bias(table_RH: jax.Array, length: int, size: int, start: Any) -> jax.Array:
    """T5's bias of causal attention, HLS: a learned number a head for each bucket of distances.

    Half of the buckets are one distance each, the others grow logarithmically to FARTHEST.
    """
    back_LS = jnp.maximum(start + jnp.arange(length)[:, None] - jnp.arange(size)[None, :], 0)
    exact = BUCKETS // 2
    ratio = jnp.log(jnp.maximum(back_LS, 1) / exact) / math.log(FARTHEST / exact)
    bucket_LS = jnp.where(back_LS < exact, back_LS, jnp.minimum(exact + ratio * exact, BUCKETS - 1).astype(jnp.int32))
    return table_RH[bucket_LS].transpose(2, 0, 1)


def rope(x_BHLK: jax.Array, positions_xL: jax.Array, base: float) -> jax.Array:
    """Rotary positions L, or B1L (Su et al., arXiv:2104.09864), halves paired as in Llama."""
    half = x_BHLK.shape[-1] // 2
    freq = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle_xLK = positions_xL[..., None].astype(jnp.float32) * freq
    sin, cos = jnp.sin(angle_xLK), jnp.cos(angle_xLK)
    a, b = jnp.split(x_BHLK.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x_BHLK.dtype)


def sinusoids(positions_L: jax.Array, width: int) -> jax.Array:
    """Sines and cosines of geometric wavelengths up to 10,000, LD (Vaswani et al. 2017, arXiv:1706.03762, 3.5)."""
    half = width // 2
    freq = 10_000.0 ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle_LK = positions_L[:, None].astype(jnp.float32) * freq
    return jnp.concatenate([jnp.sin(angle_LK), jnp.cos(angle_LK)], axis=-1)


def relative_scores(q_BHLK: jax.Array, w_DHK: jax.Array, size: int, start: Any, scale: float = 0.0) -> jax.Array:
    """What distance adds to each score, BHLS: q_i . (W r(start + i - j)) / sqrt(K) for the keys j < size = S.

    r are sinusoids (Dai et al. 2019, arXiv:1901.02860, section 3.3, term (b); their biases u and v, which
    hold no matrix, are left out, as in Hoffmann et al. 2022's counts). Each query meets the S distances once and
    its row is then moved by its position, so that cost and memory are those of one more score. Entries for
    keys after the query are of no meaning: the causal mask hides them. Needs start + L <= S.
    """
    B, H, L, K = q_BHLK.shape
    distance_S = start + L - 1 - jnp.arange(size)
    r_SD = sinusoids(distance_S, w_DHK.shape[0]).astype(q_BHLK.dtype)
    r_HSK = jnp.einsum("SD,DHK->HSK", r_SD, w_DHK.astype(q_BHLK.dtype))
    # Column c of row i is distance start + L-1 - c; the score of key j needs start + i - j, column j + (L-1 - i).
    # One column more a row, read S a row from the L-1st on, moves row i by just that.
    scores = jnp.einsum("BHLK,HSK->BHLS", q_BHLK * (scale or K**-0.5), r_HSK, preferred_element_type=jnp.float32)
    flat = jnp.pad(scores, ((0, 0), (0, 0), (0, 0), (0, 1))).reshape(B, H, L * (size + 1))
    return flat[:, :, L - 1 : L - 1 + L * size].reshape(B, H, L, size)


def attend(
    q_BHLK: jax.Array,
    k_BGSK: jax.Array,
    v_BGSK: jax.Array,
    start: Any = 0,
    scores_BHLS: jax.Array | None = None,
    scale: float = 0.0,
    prefix_B: jax.Array | None = None,
) -> jax.Array:
    """Causal attention: query i, at position start + i, sees keys 0..start + i, and the first prefix_B. Returns BHLK.

    `scores_BHLS`, if there are some, are added to the scores times `scale` (0: 1 / sqrt(K)).

    TPU and GPU get `jax.nn.dot_product_attention`. On a CPU that call is slower than contiguous (B, H) batched
    products; those take the queries of a sequence in blocks, so that most keys that a query can't see are left out.
    """
    L, K = q_BHLK.shape[2:]
    S = k_BGSK.shape[2]
    if sharding.platform() != "cpu":
        mask = _visible(L, S, start, prefix_B)
        out_BLHK = jax.nn.dot_product_attention(
            q_BHLK.transpose(0, 2, 1, 3),
            k_BGSK.transpose(0, 2, 1, 3),
            v_BGSK.transpose(0, 2, 1, 3),
            bias=None if scores_BHLS is None else scores_BHLS.astype(q_BHLK.dtype),
            mask=mask if mask.ndim == 4 else mask[None, None],
            scale=scale or None,
        )
        return out_BLHK.transpose(0, 2, 1, 3)
    q_BHLK = q_BHLK * (scale or K**-0.5)
    if prefix_B is not None or not (isinstance(start, int) and start == 0):
        return _weigh(q_BHLK, k_BGSK, v_BGSK, _visible(L, S, start, prefix_B), scores_BHLS)
    size = max(QUERIES, -(-L // MOST_BLOCKS))
    out = []
    for first in range(0, L, size):
        end = min(first + size, L)
        mask_LS = _visible(end - first, end, first, None)
        added = None if scores_BHLS is None else scores_BHLS[:, :, first:end, :end]
        out.append(_weigh(q_BHLK[:, :, first:end], k_BGSK[:, :, :end], v_BGSK[:, :, :end], mask_LS, added))
    return jnp.concatenate(out, axis=2) if len(out) > 1 else out[0]


QUERIES, MOST_BLOCKS = 64, 8  # 32 and 128 took 3 to 5 % longer when tried by hand at d128 of benchmarks/cpu_step.py


def _visible(L: int, S: int, start: Any, prefix_B: jax.Array | None) -> jax.Array:
    """Mask LS, or B1LS with prefixes: True where query i sees key j."""
    mask_LS = jnp.arange(S)[None, :] <= start + jnp.arange(L)[:, None]
    if prefix_B is None:
        return mask_LS
    return mask_LS[None, None] | (jnp.arange(S) < prefix_B[:, None])[:, None, None, :]


def _weigh(
    q_BHLK: jax.Array, k_BGSK: jax.Array, v_BGSK: jax.Array, mask: jax.Array, scores_BHLS: jax.Array | None
) -> jax.Array:
    """softmax(q k + scores) v over the keys that the mask admits, the softmax in float32; q is scaled. BHLK."""
    B, H, L, K = q_BHLK.shape
    G, R = k_BGSK.shape[1], H // k_BGSK.shape[1]
    # The R queries that share a key head are so many more rows of one product: X = R L.
    added = jnp.tile(jnp.where(mask, 0.0, -1e30), (R, 1))
    if scores_BHLS is not None:
        added = added + scores_BHLS.reshape(B, G, R * L, -1)
    return _softmax_product(q_BHLK.reshape(B, G, R * L, K), k_BGSK, v_BGSK, added).reshape(B, H, L, K)


@jax.custom_vjp
def _softmax_product(q_BGXK: jax.Array, k_BGSK: jax.Array, v_BGSK: jax.Array, added_xXS: jax.Array) -> jax.Array:
    return _softmax_product_forward(q_BGXK, k_BGSK, v_BGSK, added_xXS)[0]


def _softmax_product_forward(q: jax.Array, k: jax.Array, v: jax.Array, added: jax.Array) -> Any:
    scores_BGXS = jnp.einsum("BGXK,BGSK->BGXS", q, k, preferred_element_type=jnp.float32) + added
    exp_BGXS = jnp.exp(scores_BGXS - jnp.max(scores_BGXS, axis=-1, keepdims=True))
    weights_BGXS = (exp_BGXS * (1 / jnp.sum(exp_BGXS, axis=-1, keepdims=True))).astype(v.dtype)
    return jnp.einsum("BGXS,BGSK->BGXK", weights_BGXS, v), (q, k, v, weights_BGXS, added)


def _softmax_product_backward(saved: Any, y_BGXK: jax.Array) -> Any:
    q_BGXK, k_BGSK, v_BGSK, w_BGXS, added = saved
    by_w_BGXS = jnp.einsum("BGXK,BGSK->BGXS", y_BGXK, v_BGSK, preferred_element_type=jnp.float32)
    product = w_BGXS * by_w_BGXS
    by_scores_BGXS = product - w_BGXS * jnp.sum(product, axis=-1, keepdims=True)
    narrow_BGXS = by_scores_BGXS.astype(q_BGXK.dtype)
    by_q_BGXK = jnp.einsum("BGXS,BGSK->BGXK", narrow_BGXS, k_BGSK)
    by_k_BGKS = jnp.einsum("BGKX,BGXS->BGKS", _transposed(q_BGXK), narrow_BGXS)
    by_v_BGKS = jnp.einsum("BGKX,BGXS->BGKS", _transposed(y_BGXK), w_BGXS)
    shape = (1,) * (by_scores_BGXS.ndim - added.ndim) + added.shape
    shared = tuple(i for i, (n, whole) in enumerate(zip(shape, by_scores_BGXS.shape, strict=True)) if n < whole)
    by_added = jnp.sum(by_scores_BGXS, axis=shared, keepdims=True).reshape(added.shape)
    return by_q_BGXK, _transposed(by_k_BGKS), _transposed(by_v_BGKS), by_added


def _transposed(x: jax.Array) -> jax.Array:
    """Moved in memory: XLA's CPU products of an operand that is only marked as transposed take twice as long."""
    return jax.lax.optimization_barrier(jnp.swapaxes(x, -1, -2))


_softmax_product.defvjp(_softmax_product_forward, _softmax_product_backward)


def linear(x_xD: jax.Array, w_Dy: jax.Array) -> jax.Array:
    """x w over x's last axis and w's first, in x's type: one product of two matrices, which XLA's CPU library does
    fastest, where an einsum over more axes makes it copy operands into other layouts."""
    rows = x_xD.reshape(-1, x_xD.shape[-1])
    y = _matmul(rows, w_Dy.reshape(w_Dy.shape[0], -1).astype(x_xD.dtype))
    return y.reshape(*x_xD.shape[:-1], *w_Dy.shape[1:])


@jax.custom_vjp
def _matmul(x_TD: jax.Array, w_DF: jax.Array) -> jax.Array:
    return x_TD @ w_DF


def _matmul_backward(saved: Any, y_TF: jax.Array) -> Any:
    x_TD, w_DF = saved
    return y_TF @ w_DF.T, _transposed(x_TD) @ y_TF


_matmul.defvjp(lambda x, w: (x @ w, (x, w)), _matmul_backward)


class Attention(nn.Module):
    """Multi-head self-attention, grouped where num_kv_heads < num_heads.

    cfg keys: width, depth, num_heads, num_kv_heads, head_dim, bias, qk_norm, position, rope_base,
    init_std, dtype. `cache` is None or {'key': BGSK, 'value': BGSK}.
    """

    cfg: Any

    @nn.compact
    def __call__(self, x_BLD: jax.Array, cache: Any, view: View) -> tuple[jax.Array, Any]:
        cfg, dtype = self.cfg, x_BLD.dtype
        start = 0 if cache is None else view.start
        D, H, G, K = cfg.width, cfg.num_heads, cfg.num_kv_heads, cfg.head_dim

        def project(name: str, heads: int, start: float = 1.0) -> jax.Array:
            w_DHK = self.param(name, normal(cfg.init_std, D, start), (D, heads, K))
            y_BLHK = linear(x_BLD, w_DHK)
            if cfg.bias:
                y_BLHK += self.param(f"{name}_bias", nn.initializers.zeros, (heads, K)).astype(dtype)
            return y_BLHK.transpose(0, 2, 1, 3)

        q_BHLK, k_BGLK, v_BGLK = project("query", H), project("key", G), project("value", G, value_start(cfg))
        if cfg.qk_norm:
            q_BHLK = Norm("rmsnorm", name="query_norm")(q_BHLK)
            k_BGLK = Norm("rmsnorm", name="key_norm")(k_BGLK)
        if cfg.position == "rope":
            given = view.positions_BL
            positions_xL = start + jnp.arange(x_BLD.shape[1]) if given is None else given[:, None]
            q_BHLK = rope(q_BHLK, positions_xL, cfg.rope_base)
            k_BGLK = rope(k_BGLK, positions_xL, cfg.rope_base)
        if cache is not None:
            k_BGLK = jax.lax.dynamic_update_slice_in_dim(cache["key"], k_BGLK, start, axis=2)
            v_BGLK = jax.lax.dynamic_update_slice_in_dim(cache["value"], v_BGLK, start, axis=2)
            cache = {"key": k_BGLK, "value": v_BGLK}
        scores_BHLS = None
        if cfg.position == "relative":
            w_DHK = self.param("relative", normal(cfg.init_std, D), (D, H, K))
            scores_BHLS = relative_scores(q_BHLK, w_DHK, k_BGLK.shape[2], start, score_scale(cfg))
        if view.bias_HLS is not None:
            scores_BHLS = jnp.broadcast_to(view.bias_HLS, (x_BLD.shape[0], *view.bias_HLS.shape))
        y_BHLK = attend(q_BHLK, k_BGLK, v_BGLK, start, scores_BHLS, score_scale(cfg), view.prefix_B)
        wo_HKD = self.param("out", normal(cfg.init_std, H * K, residual_start(cfg)), (H, K, D))
        y_BLD = linear(y_BHLK.transpose(0, 2, 1, 3).reshape(*x_BLD.shape[:2], H * K), wo_HKD.reshape(H * K, D))
        if cfg.bias:
            y_BLD += self.param("out_bias", nn.initializers.zeros, (D,)).astype(dtype)
        return y_BLD, cache


class FeedForward(nn.Module):
    """Position-wise MLP, gated where cfg.activation is. cfg keys: width, ffn, activation, bias, init_std."""

    cfg: Any

    @nn.compact
    def __call__(self, x_BLD: jax.Array) -> jax.Array:
        cfg, dtype = self.cfg, x_BLD.dtype
        D, F = cfg.width, cfg.ffn

        def dense(name: str, x: jax.Array, out: int, scale: float = 1.0) -> jax.Array:
            n = x.shape[-1]
            y = linear(x, self.param(name, normal(cfg.init_std, n, scale), (n, out)))
            if cfg.bias:
                y += self.param(f"{name}_bias", nn.initializers.zeros, (out,)).astype(dtype)
            return y

        h_BLF = dense("up", x_BLD, F, value_start(cfg))
        if cfg.activation in GATED:
            h_BLF = h_BLF * ACTIVATIONS[GATED[cfg.activation]](dense("gate", x_BLD, F, value_start(cfg)))
        else:
            h_BLF = ACTIVATIONS[cfg.activation](h_BLF)
        return dense("down", h_BLF, D, residual_start(cfg))


def stack(block: Any, depth: int, scan: bool, remat: bool) -> Any:
    """`depth` blocks as one module whose parameters have a leading depth axis.

    The block is called as block(carry, per_layer, *broadcast) and returns (carry, per_layer_out).
    One parameter layout serves both executions: `scan` (compile time flat in depth) and unrolled (a
    loop unrolled at lowering: faster steps on a CPU). `remat` recomputes activations in the backward pass.
    """
    if remat:
        block = nn.remat(block, prevent_cse=not scan)
    return nn.scan(
        block,
        variable_axes={"params": 0, "intermediates": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=(0, nn.broadcast, nn.broadcast),
        out_axes=0,
        length=depth,
        unroll=1 if scan else depth,
        check_constancy_invariants=False,  # we broadcast no variables, and the check traces the block twice
    )
