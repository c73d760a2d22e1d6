"""Softmax attention: the kernel of each platform, and blocks of queries where there is none.

B batch, L query length, S key length, H query heads, G key/value heads, R = H/G, K head dim, E of the values.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from bigmodel.errors import UsageError
from bigmodel.ops import kernels, sharding
from bigmodel.ops.products import moved


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        "start", "bias_HLS", "prefix_B", "positions_BL", "keys_BS", "memory_BSD", "memory_keys_BS", "rows_B", "seen_LS",
    ],
    meta_fields=["causal"],
)  # fmt: skip
@dataclasses.dataclass(frozen=True)
class View:
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
      seen_LS: True where the query at a position (of the whole window) sees a key, if `causal` does not forbid it.
    """

    start: Any = 0
    causal: bool = True
    bias_HLS: jax.Array | None = None
    prefix_B: jax.Array | None = None
    positions_BL: jax.Array | None = None
    keys_BS: jax.Array | None = None
    memory_BSD: jax.Array | None = None
    memory_keys_BS: jax.Array | None = None
    rows_B: jax.Array | None = None
    seen_LS: jax.Array | None = None

    def replace(self, **changes: Any) -> View:
        return dataclasses.replace(self, **changes)


CAUSAL = View()


def reference(
    q_BHLK: jax.Array,
    k_BGSK: jax.Array,
    v_BGSE: jax.Array,
    view: View = CAUSAL,
    scores_BHLS: jax.Array | None = None,
    scale: float = 0.0,
) -> jax.Array:
    """What `attend` computes, BHLE, by the definition: softmax(scale q k + scores) v over the keys that are seen."""
    R = q_BHLK.shape[1] // k_BGSK.shape[1]
    k_BHSK, v_BHSE = jnp.repeat(k_BGSK, R, axis=1), jnp.repeat(v_BGSE, R, axis=1)
    found_BHLS = jnp.einsum("BHLK,BHSK->BHLS", q_BHLK, k_BHSK) * (scale or q_BHLK.shape[-1] ** -0.5)
    if scores_BHLS is not None:
        found_BHLS = found_BHLS + scores_BHLS
    mask = _visible(q_BHLK.shape[2], k_BGSK.shape[2], view.start, view)
    if mask is not None:
        found_BHLS = jnp.where(mask, found_BHLS, -jnp.inf)
    return jnp.einsum("BHLS,BHSE->BHLE", jax.nn.softmax(found_BHLS, axis=-1), v_BHSE)


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
    plain = view.prefix_B is None and view.keys_BS is None and view.seen_LS is None
    fresh = isinstance(view.start, int) and view.start == 0 and plain
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
    if view.seen_LS is not None:
        seen = jax.lax.dynamic_slice_in_dim(view.seen_LS[:, :S], start, L)[None, None]
        mask = seen if mask is None else mask & seen
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
    # The R queries that share a key head are further rows of one product: X = R L.
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
