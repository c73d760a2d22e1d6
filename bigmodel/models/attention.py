"""Attention and its positions, for every family that attends. Pure: caches are arguments and results.

B batch, L query length, S key length, D width, H query heads, G key/value heads, R = H/G, K head dim,
E of the values (K, if nothing else is said).
"""

from __future__ import annotations

import functools
import math
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from bigmodel.errors import UsageError
from bigmodel.models.layers import Norm, linear, linears, moved, normal, residual_start, score_scale, value_start
from bigmodel.ops import kernels, sharding

# ------------------------------------------------------------------------------------------- positions


class View(flax.struct.PyTreeNode):
    """What queries see, the same for every layer.

    Attributes:
      start: position of the first query.
      causal: whether a query sees no later position.
      bias_HLS: added to every layer's scores.
      prefix_B: how many first keys every query of an example sees, its own future among them; None: none.
      positions_BL: of the queries, where they aren't start, start + 1, ...
      keys_BS: True where a key counts; None: all do.
      memory_BSD: what cross-attention reads, where it isn't in the cache; of it, `memory_keys_BS` count.
      rows_B: which row of the step's batch each example is, for dropout; None: 0, 1, ...
    """

    start: Any = 0
    causal: bool = flax.struct.field(pytree_node=False, default=True)
    bias_HLS: jax.Array | None = None
    prefix_B: jax.Array | None = None
    positions_BL: jax.Array | None = None
    keys_BS: jax.Array | None = None
    memory_BSD: jax.Array | None = None
    memory_keys_BS: jax.Array | None = None
    rows_B: jax.Array | None = None


CAUSAL = View()
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


def attend(
    q_BHLK: jax.Array,
    k_BGSK: jax.Array,
    v_BGSK: jax.Array,
    view: View = CAUSAL,
    scores_BHLS: jax.Array | None = None,
    scale: float = 0.0,
) -> jax.Array:
    """Softmax attention, BHLK. Query i is at position view.start + i; `view` says which keys it sees.

    `scores_BHLS`, if there are some, are added to the scores times `scale` (0: 1 / sqrt(K)).

    A TPU gets the splash kernel and a GPU cuDNN's, where they can do what is asked; else, and on a CPU, contiguous
    (B, H) batched products, which take the queries of a sequence in blocks, so that most keys that a query can't see
    are left out, and only a block's scores are in memory (jax.nn.dot_product_attention is slower on a CPU).

    Where sequences are spread over devices, these exchange their part of the length for a part of the heads (Jacobs et
    al. 2023, arXiv:2309.14509); where heads don't divide, every device gathers the keys, and keeps its queries.
    """
    L, K = q_BHLK.shape[2:]
    S = k_BGSK.shape[2]
    q_BHLK = q_BHLK * (scale or K**-0.5)
    exchange = k_BGSK.shape[1] % sharding.shards("all_heads") == 0
    heads: str | None = "all_heads" if exchange else "heads"
    length = None if exchange else "length"
    if heads and k_BGSK.shape[1] % sharding.shards(heads):  # fewer key heads than devices: each has all heads
        heads = None
    q_BHLK = sharding.constrain(q_BHLK, "batch", heads, length, None)
    k_BGSK, v_BGSK = (sharding.constrain(x, "batch", heads, None, None) for x in (k_BGSK, v_BGSK))
    fresh = isinstance(view.start, int) and view.start == 0 and view.prefix_B is None and view.keys_BS is None
    parts = sharding.shards(length) * kernels.LANES if length else 1  # of the queries, for splash
    kernel = _kernel(q_BHLK, v_BGSK, parts, fresh and scores_BHLS is None, isinstance(view.start, int))
    if kernel == "splash":
        return kernels.splash(q_BHLK, k_BGSK, v_BGSK, view.causal, heads, length)
    if kernel == "cudnn":
        return kernels.cudnn(q_BHLK, k_BGSK, v_BGSK, view.causal)
    if view.prefix_B is not None or not (isinstance(view.start, int) and view.start == 0):
        return _weigh(q_BHLK, k_BGSK, v_BGSK, _visible(L, S, view.start, view), scores_BHLS)
    if sharding.platform() != "cpu" and scores_BHLS is None and L % ROWS == 0:
        return _scan_blocks(q_BHLK, k_BGSK, v_BGSK, view)
    size = max(QUERIES, -(-L // MOST_BLOCKS))
    out = []
    for first in range(0, L, size):
        end = min(first + size, L)
        seen = end if view.causal else S
        mask = _visible(end - first, seen, first, view)
        added = None if scores_BHLS is None else scores_BHLS[:, :, first:end, :seen]
        out.append(_weigh(q_BHLK[:, :, first:end], k_BGSK[:, :, :seen], v_BGSK[:, :, :seen], mask, added))
    return jnp.concatenate(out, axis=2) if len(out) > 1 else out[0]


ROWS = 128


def _scan_blocks(q_BHLK: jax.Array, k_BGSK: jax.Array, v_BGSE: jax.Array, view: View) -> jax.Array:
    """ROWS queries at a time in a loop, their scores made again in the backward pass: little memory, one block's
    compilation, and the products that a causal mask throws away."""
    B, H, L, K = q_BHLK.shape
    blocks = q_BHLK.reshape(B, H, L // ROWS, ROWS, K).transpose(2, 0, 1, 3, 4)

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def body(_: None, xs: Any) -> Any:
        i, q = xs
        return None, _weigh(q, k_BGSK, v_BGSE, _visible(ROWS, k_BGSK.shape[2], i * ROWS, view), None)

    _, out = jax.lax.scan(body, None, (jnp.arange(L // ROWS), blocks))
    return out.transpose(1, 2, 0, 3, 4).reshape(B, H, L, -1)


KERNELS = {"tpu": "splash", "gpu": "cudnn", "cpu": "plain"}


def _kernel(q_BHLK: jax.Array, v_BGSE: jax.Array, parts: int, simple: bool, whole: bool) -> str:
    """What the execution asks for, or else the platform's own where it takes these shapes; plain takes all.

    Args:
      parts: what the number of queries has to be a multiple of for splash.
      simple: whether nothing but causality decides which keys are seen, and nothing is added to scores.
      whole: whether a whole window attends; a step of decoding, which goes on from a cache, is always plain.

    Raises:
      UsageError: the execution names a kernel that can't do this.
    """
    asked = sharding.execution().attention
    name = KERNELS[sharding.platform()] if asked == "auto" else asked
    L, S = q_BHLK.shape[2], v_BGSE.shape[2]
    takes = {
        "splash": simple and kernels.splash_takes(L, S) and L % parts == 0,
        "cudnn": simple and kernels.cudnn_takes(q_BHLK, v_BGSE),
        "plain": True,
    }
    if takes[name]:
        return name
    if asked == "auto" or not whole:
        return "plain"
    what = f"{L} queries of {q_BHLK.dtype} in heads of {q_BHLK.shape[3]}"
    why = what if simple else "attention with padding, a prefix or added scores"
    raise UsageError(f"config.run.attention={asked!r} can't take {why}; auto uses it where it can")


QUERIES, MOST_BLOCKS = 64, 8  # 32 and 128 took 3 to 5 % longer when tried by hand at d128 of benchmarks/cpu_step.py


def _visible(L: int, S: int, start: Any, view: View) -> jax.Array | None:
    """Mask B1LS, with ones for what is the same for all: True where query i sees key j. None: all see all."""
    mask = None
    if view.causal:
        mask = (jnp.arange(S)[None, :] <= start + jnp.arange(L)[:, None])[None, None]
        if view.prefix_B is not None:
            mask = mask | (jnp.arange(S) < view.prefix_B[:, None])[:, None, None, :]
    if view.keys_BS is not None:
        keys = view.keys_BS[:, None, None, :S]
        mask = keys if mask is None else mask & keys
    return mask


def _weigh(
    q_BHLK: jax.Array, k_BGSK: jax.Array, v_BGSK: jax.Array, mask: jax.Array | None, scores_BHLS: jax.Array | None
) -> jax.Array:
    """softmax(q k + scores) v over the keys that the mask admits, the softmax in float32; q is scaled. BHLK."""
    B, H, L, K = q_BHLK.shape
    G, R = k_BGSK.shape[1], H // k_BGSK.shape[1]
    # The R queries that share a key head are so many more rows of one product: X = R L.
    added = jnp.zeros((1, 1, 1, 1)) if mask is None else jnp.where(mask, 0.0, -1e30)
    if added.shape[2] > 1:
        added = jnp.tile(added, (R, 1))
    if scores_BHLS is not None:
        added = added + scores_BHLS.reshape(B, G, R * L, -1)
    return _softmax_product(q_BHLK.reshape(B, G, R * L, K), k_BGSK, v_BGSK, added).reshape(B, H, L, -1)


@jax.custom_vjp
def _softmax_product(q_BGXK: jax.Array, k_BGSK: jax.Array, v_BGSK: jax.Array, added_BGXS: jax.Array) -> jax.Array:
    return _softmax_product_forward(q_BGXK, k_BGSK, v_BGSK, added_BGXS)[0]


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
    by_k_BGKS = jnp.einsum("BGKX,BGXS->BGKS", moved(q_BGXK), narrow_BGXS)
    by_v_BGKS = jnp.einsum("BGKX,BGXS->BGKS", moved(y_BGXK), w_BGXS)
    shared = tuple(i for i, (n, whole) in enumerate(zip(added.shape, by_scores_BGXS.shape, strict=True)) if n < whole)
    by_added = jnp.sum(by_scores_BGXS, axis=shared, keepdims=True)
    return by_q_BGXK, moved(by_k_BGKS), moved(by_v_BGKS), by_added


_softmax_product.defvjp(_softmax_product_forward, _softmax_product_backward)


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
