"""Positions: rotary, sinusoidal, and two that add to attention's scores.

B batch, L query length, S key length, D width, H heads, K head dim.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from bigmodel.ops import products

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
    scores = products.in_float32("BHLK,HSK->BHLS", q_BHLK * (scale or K**-0.5), r_HSK)
    flat = jnp.pad(scores, ((0, 0), (0, 0), (0, 0), (0, 1))).reshape(B, H, L * (size + 1))
    return flat[:, :, L - 1 : L - 1 + L * size].reshape(B, H, L, size)
