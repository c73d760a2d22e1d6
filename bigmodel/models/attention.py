"""Attention and its positions, for every family that attends. Pure: caches are arguments and results.

B batch, L query length, S key length, D width, H query heads, G key/value heads, R = H/G, K head dim,
E of the values (K, if nothing else is said).
"""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigmodel.models.layers import Norm, normal, residual_start, score_scale, value_start
from bigmodel.ops import sharding
from bigmodel.ops.attention import View, attend
from bigmodel.ops.products import linear, linears

BUCKETS, FARTHEST = 32, 128  # T5's (Raffel et al. 2020, arXiv:1910.10683, section 2.1)


def relative_bias(table_RH: jax.Array, length: int, size: int, start: Any, causal: bool = True) -> jax.Array:
    """T5's bias of attention, HLS: a learned number a head for each bucket of distances.

    Half of the buckets are one distance each, the others grow logarithmically to FARTHEST. Where attention isn't
    causal, half of all are for keys before the query, half for those after it.
    """
    back_LS = start + jnp.arange(length)[:, None] - jnp.arange(size)[None, :]
    buckets = BUCKETS if causal else BUCKETS // 2
    first_LS = 0 if causal else jnp.where(back_LS < 0, buckets, 0)
    back_LS = jnp.maximum(back_LS, 0) if causal else jnp.abs(back_LS)
    exact = buckets // 2
    ratio = jnp.log(jnp.maximum(back_LS, 1) / exact) / math.log(FARTHEST / exact) * (buckets - exact)
    far_LS = jnp.minimum(exact + ratio.astype(jnp.int32), buckets - 1)
    return table_RH[first_LS + jnp.where(back_LS < exact, back_LS, far_LS)].transpose(2, 0, 1)


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


class Attention(nn.Module):
    """Multi-head attention, grouped where num_kv_heads < num_heads; to the sequence itself, or to `view.memory_BSD`.

    cfg: of transformer.py. `cache` is None or {'key': BGSK, 'value': BGSK}: of the keys so far, or of the memory, which
    is read from the view where that has one.
    """

    cfg: Any
    cross: bool = False

    @nn.compact
    def __call__(self, x_BLD: jax.Array, cache: Any, view: View) -> tuple[jax.Array, Any]:
        cfg, dtype = self.cfg, x_BLD.dtype
        start = 0 if cache is None else view.start
        D, H, G, K, E = cfg.width, cfg.num_heads, cfg.num_kv_heads, cfg.head_dim, cfg.value_dim
        bias = cfg.bias and cfg.attention_bias

        def project(x: jax.Array, named: dict[str, tuple[int, int, float]]) -> list[jax.Array]:
            """BHLK of each name -> (heads, size, scale at the start)."""
            weights, biases = [], []
            for name, (*hk, start) in named.items():
                weights.append(self.param(name, normal(cfg.init_std, D, start), (D, *hk)))
                biases.append(self.param(f"{name}_bias", nn.initializers.zeros, hk) if bias else None)
            out = linears(x, weights)
            out = [y if b is None else y + b.astype(dtype) for y, b in zip(out, biases, strict=True)]
            return [y_BLHK.transpose(0, 2, 1, 3) for y_BLHK in out]

        of_q = {"query": (H, K, 1.0)}
        of_kv = {"key": (G, K, 1.0), "value": (G, E, value_start(cfg))}
        if not self.cross:
            q_BHLK, k_BGSK, v_BGSE = project(x_BLD, {**of_q, **of_kv})
        else:
            (q_BHLK,) = project(x_BLD, of_q)
            if view.memory_BSD is None:
                k_BGSK, v_BGSE = cache["key"], cache["value"]
            else:
                k_BGSK, v_BGSE = project(view.memory_BSD, of_kv)
        if cfg.qk_norm:
            q_BHLK = Norm("rmsnorm", name="query_norm")(q_BHLK)
            k_BGSK = Norm("rmsnorm", name="key_norm")(k_BGSK)
        if self.cross:
            cache = None if cache is None else {"key": k_BGSK, "value": v_BGSE}
            view = View(causal=False, keys_BS=view.memory_keys_BS)
        elif cfg.position == "rope":
            given = view.positions_BL
            positions_xL = start + jnp.arange(x_BLD.shape[1]) if given is None else given[:, None]
            q_BHLK = rope(q_BHLK, positions_xL, cfg.rope_base)
            k_BGSK = rope(k_BGSK, positions_xL, cfg.rope_base)
        if cache is not None and not self.cross:
            k_BGSK = jax.lax.dynamic_update_slice_in_dim(cache["key"], k_BGSK, start, axis=2)
            v_BGSE = jax.lax.dynamic_update_slice_in_dim(cache["value"], v_BGSE, start, axis=2)
            cache = {"key": k_BGSK, "value": v_BGSE}
        scores_BHLS = None
        if cfg.position == "relative" and not self.cross:
            w_DHK = self.param("relative", normal(cfg.init_std, D), (D, H, K))
            scores_BHLS = relative_scores(q_BHLK, w_DHK, k_BGSK.shape[2], start, score_scale(cfg))
        if view.bias_HLS is not None:
            scores_BHLS = jnp.broadcast_to(view.bias_HLS, (x_BLD.shape[0], *view.bias_HLS.shape))
        if self.is_initializing():  # parameters alone are wanted: a long sequence's scores take long to trace
            y_BHLE = jnp.zeros((*q_BHLK.shape[:3], E), dtype)
        else:
            y_BHLE = attend(q_BHLK, k_BGSK, v_BGSE, view.replace(start=start), scores_BHLS, score_scale(cfg))
        wo_HED = self.param("out", normal(cfg.init_std, H * E, residual_start(cfg)), (H, E, D))
        y_BLHE = sharding.constrain(y_BHLE, "batch", "heads", "length", None).transpose(0, 2, 1, 3)
        y_BLD = linear(y_BLHE.reshape(*x_BLD.shape[:2], H * E), wo_HED.reshape(H * E, D))
        if bias:
            y_BLD += self.param("out_bias", nn.initializers.zeros, (D,)).astype(dtype)
        return y_BLD, cache
