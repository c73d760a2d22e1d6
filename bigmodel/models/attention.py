"""Attention, for every family that attends. Pure: caches are arguments and results.

B batch, L query length, S key length, D width, H query heads, G key/value heads, R = H/G, K head dim,
E of the values (K, if nothing else is said).
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigmodel.models.layers import Norm, normal, residual_start, score_scale, value_start
from bigmodel.models.positions import relative_scores, rope
from bigmodel.ops import sharding
from bigmodel.ops.attention import View, attend
from bigmodel.ops.products import linear, linears


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
