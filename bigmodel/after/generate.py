"""Greedy and beam search for models with `step(tokens, cache) -> (logits, cache)`.

A cache is {'layers': leaves whose second axis is the batch, 'length': (), and leaves whose first axis is the batch}.
The caller has run the prompt; the search is one compiled loop.

B batch, J beams, L length, V vocab.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from bigmodel import tree

Step = Callable[[jax.Array, Any], tuple[jax.Array, Any]]


def _batch(fn: Callable[[jax.Array, int], jax.Array], cache: Any) -> Any:
    """fn(leaf, its batch axis) over a cache's leaves that have one."""
    return tree.map_paths(lambda path, x: x if x.ndim == 0 else fn(x, 1 if path.startswith("layers") else 0), cache)


def greedy(step: Step, logits_BV: jax.Array, cache: Any, length: int, end: int = -1) -> tuple[jax.Array, jax.Array]:
    """(tokens BL, log-probability B): the likeliest token at each step.

    Args:
      logits_BV, cache: after the prompt.
      end: the token that ends a row; the rest of the row repeats it at no cost. -1: none.
    """

    def body(carry: Any, _: None) -> Any:
        logits_BV, cache, done_B, total_B = carry
        log_p_BV = jax.nn.log_softmax(logits_BV.astype(jnp.float32))
        token_B = jnp.where(done_B, end, jnp.argmax(log_p_BV, axis=-1))
        total_B = total_B + jnp.where(done_B, 0.0, jnp.max(log_p_BV, axis=-1))
        logits_BLV, cache = step(token_B[:, None], cache)
        return (logits_BLV[:, -1], cache, done_B | (token_B == end), total_B), token_B

    B = len(logits_BV)
    carry = (logits_BV, cache, jnp.zeros(B, bool), jnp.zeros(B))
    (_, _, _, total_B), tokens_LB = jax.lax.scan(body, carry, None, length)
    return tokens_LB.T, total_B


def beam(
    step: Step, logits_BV: jax.Array, cache: Any, length: int, end: int, beams: int = 4, penalty: float = 0.6
) -> tuple[jax.Array, jax.Array]:
    """(tokens BL, score B) of the best hypothesis of `beams` and greedy search, whose path beams can lose.

    The score is log p / ((5 + n) / 6)^penalty for n tokens, `end` included (Wu et al. 2016, arXiv:1609.08144,
    equation 14; 4 beams and 0.6 are Vaswani et al.'s). Arguments as of `greedy`.
    """
    B, J = len(logits_BV), beams
    low = -1e30

    def lengthy(n: Any) -> Any:
        return ((5.0 + n) / 6.0) ** penalty

    def pick(x_BJx: jax.Array, index_BJ: jax.Array) -> jax.Array:
        return jnp.take_along_axis(x_BJx, index_BJ.reshape(*index_BJ.shape, *(1,) * (x_BJx.ndim - 2)), axis=1)

    def body(carry: Any, t: jax.Array) -> Any:
        logits_BJV, cache, live_BJL, log_p_BJ, done_BJL, score_BJ = carry
        V = logits_BJV.shape[-1]
        total_BJV = log_p_BJ[..., None] + jax.nn.log_softmax(logits_BJV.astype(jnp.float32))
        # Twice as many as beams, so that beams remain even where all the best end here.
        top_BC, at_BC = jax.lax.top_k(total_BJV.reshape(B, J * V), 2 * J)
        token_BC, from_BC = at_BC % V, at_BC // V
        grown_BCL = pick(live_BJL, from_BC).at[:, :, t].set(token_BC)
        ended_BC = token_BC == end
        score_BC = jnp.where(ended_BC, top_BC / lengthy(t + 1), low)
        score_BJ, best = jax.lax.top_k(jnp.concatenate([score_BJ, score_BC], axis=1), J)
        done_BJL = pick(jnp.concatenate([done_BJL, grown_BCL], axis=1), best)
        log_p_BJ, kept = jax.lax.top_k(jnp.where(ended_BC, low, top_BC), J)
        live_BJL, source_BJ = pick(grown_BCL, kept), pick(from_BC, kept)
        row = (jnp.arange(B)[:, None] * J + source_BJ).reshape(-1)
        cache = _batch(lambda x, axis: jnp.take(x, row, axis=axis), cache)
        logits, cache = step(pick(token_BC, kept).reshape(-1, 1), cache)
        return (logits[:, -1].reshape(B, J, V), cache, live_BJL, log_p_BJ, done_BJL, score_BJ), None

    # At first all beams are the prompt, and only one of them may grow.
    log_p = jnp.where(jnp.arange(J) == 0, 0.0, low) * jnp.ones((B, 1))
    held = jnp.full((B, J, length), end, jnp.int32)
    carry = (
        jnp.repeat(logits_BV[:, None], J, axis=1), _batch(lambda x, axis: jnp.repeat(x, J, axis=axis), cache),
        held, log_p, held, jnp.full((B, J), low),
    )  # fmt: skip
    (_, _, live_BJL, log_p_BJ, done_BJL, score_BJ), _ = jax.lax.scan(body, carry, jnp.arange(length))
    plain_BL, total_B = greedy(step, logits_BV, cache, length, end)
    ended_BL = plain_BL == end
    n_B = jnp.where(ended_BL.any(axis=1), jnp.argmax(ended_BL, axis=1) + 1, length)
    # Hypotheses that ended, those that did not, and greedy's.
    texts = jnp.concatenate([done_BJL, live_BJL, plain_BL[:, None]], axis=1)
    scores = jnp.concatenate([score_BJ, log_p_BJ / lengthy(length), (total_B / lengthy(n_B))[:, None]], axis=1)
    best = jnp.argmax(scores, axis=1)[:, None]
    return pick(texts, best)[:, 0], pick(scores, best)[:, 0]
