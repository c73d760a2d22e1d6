"""What is drawn from a model's logits, token by token: sampling, greedy and beam search, for `step(tokens, cache)`.

A cache here is `cut`: its layers are arrays of their own, and every leaf but scalars has the batch first. The caller
has run the prompt; a search is one compiled loop.

B batch, J beams, L length, V vocab, N depth.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

Step = Callable[[jax.Array, Any], tuple[jax.Array, Any]]


def cut(stacked: Any) -> Any:
    """A tree of arrays N... as one of tuples of N arrays. A decoding step reads every weight once, and a part of a
    stacked array would be copied for it."""
    return jax.tree.map(lambda x: tuple(x[i] for i in range(len(x))), stacked)


def joined(parts: Any) -> Any:
    """What was `cut`, stacked again. In a program that only reads the layers one by one, XLA makes no such array."""

    def is_cut(x: Any) -> bool:
        return isinstance(x, tuple)

    return jax.tree.map(lambda x: jnp.stack(x) if is_cut(x) else x, parts, is_leaf=is_cut)


def cut_cache(cache: Any) -> Any:
    """A family's cache, whose 'layers' have the depth first, with these `cut`."""
    return {**cache, "layers": cut(cache["layers"])}


def over_batch(fn: Callable[[jax.Array], jax.Array], cache: Any) -> Any:
    """fn over a cache's leaves that have a batch axis, which is their first."""
    return jax.tree.map(lambda x: x if jnp.ndim(x) == 0 else fn(x), cache)


# ----------------------------------------------------------------------------------------- sampling

SMALLEST = 1e-30  # of a temperature and of a probability: float32 has no much smaller numbers


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn, in this order (that of Hugging Face's transformers, so that equal settings mean the same).

    Attributes:
      repetition_penalty: divides the positive logits of tokens that have been seen, and multiplies the negative ones
        (Keskar et al. 2019, arXiv:1909.05858, section 4.1). 1: none.
      temperature: divides logits. 0: the likeliest token, whatever follows here.
      top_k: of the k likeliest tokens; ties with the last stay. 0: of all.
      top_p: of the likeliest tokens that together have this probability (Holtzman et al. 2020, arXiv:1904.09751).
      min_p: of tokens at least this part as likely as the likeliest (Nguyen et al. 2024, arXiv:2407.01082).
      min_new_tokens: none of the first so many tokens ends the text.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    min_new_tokens: int = 0


def penalised(logits_BV: jax.Array, seen_BV: jax.Array, penalty: float) -> jax.Array:
    return jnp.where(seen_BV, jnp.where(logits_BV < 0, logits_BV * penalty, logits_BV / penalty), logits_BV)


def filtered(logits_BV: jax.Array, how: Sampling) -> jax.Array:
    """Logits over the temperature, -inf for the tokens that aren't drawn."""
    # From the largest on, so that a small temperature makes no infinity of it.
    x_BV = (logits_BV - jnp.max(logits_BV, axis=-1, keepdims=True)) / max(how.temperature, SMALLEST)
    if 0 < how.top_k < x_BV.shape[-1]:
        x_BV = jnp.where(x_BV < jax.lax.top_k(x_BV, how.top_k)[0][:, -1:], -jnp.inf, x_BV)
    if how.top_p < 1:
        p_BV = jax.nn.softmax(x_BV, axis=-1)
        x_BV = jnp.where(p_BV < _nucleus(p_BV, max(how.top_p, SMALLEST)), -jnp.inf, x_BV)
    if how.min_p > 0:
        x_BV = jnp.where(x_BV < jnp.max(x_BV, axis=-1, keepdims=True) + jnp.log(how.min_p), -jnp.inf, x_BV)
    return x_BV


def _nucleus(p_BV: jax.Array, mass: float) -> jax.Array:
    """B1: the largest t for which the probabilities >= t sum to at least `mass`.

    Found by bisection of the bits of a float, which order positive numbers: 31 passes, where a sort of a vocabulary
    takes a CPU as long as a small model's step.
    """

    def holds(bits_B1: jax.Array) -> jax.Array:
        t_B1 = jax.lax.bitcast_convert_type(bits_B1, jnp.float32)
        return jnp.sum(jnp.where(p_BV >= t_B1, p_BV, 0), axis=-1, keepdims=True) >= mass

    def body(i: jax.Array, low_B1: jax.Array) -> jax.Array:
        raised = low_B1 | (1 << (30 - i))
        return jnp.where(holds(raised), raised, low_B1)

    low = jnp.zeros((len(p_BV), 1), jnp.int32)
    return jax.lax.bitcast_convert_type(jax.lax.fori_loop(0, 31, body, low), jnp.float32)


def draw(logits_BV: jax.Array, how: Sampling, keys_B: jax.Array) -> jax.Array:
    """A token of each row, B."""
    if how.temperature == 0:
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    return jax.vmap(jax.random.categorical)(keys_B, filtered(logits_BV, how)).astype(jnp.int32)


# ------------------------------------------------------------------------------------------- search


def greedy(
    step: Step, logits_BV: jax.Array, cache: Any, length: int, end: int | tuple[int, ...] = -1
) -> tuple[jax.Array, jax.Array]:
    """(tokens BL, log-probability B): the likeliest token at each step.

    Args:
      logits_BV, cache: after the prompt.
      end: the token that ends a row, or several; the rest of the row repeats the first at no cost. -1: none.
    """
    ends_E = jnp.atleast_1d(jnp.asarray(end))

    def body(carry: Any, _: None) -> Any:
        logits_BV, cache, done_B, total_B = carry
        log_p_BV = jax.nn.log_softmax(logits_BV.astype(jnp.float32))
        token_B = jnp.where(done_B, ends_E[0], jnp.argmax(log_p_BV, axis=-1))
        total_B = total_B + jnp.where(done_B, 0.0, jnp.max(log_p_BV, axis=-1))
        logits_BLV, cache = step(token_B[:, None], cache)
        return (logits_BLV[:, -1], cache, done_B | jnp.isin(token_B, ends_E), total_B), token_B

    B = len(logits_BV)
    carry = (logits_BV, cache, jnp.zeros(B, bool), jnp.zeros(B))
    (_, _, _, total_B), tokens_LB = jax.lax.scan(body, carry, None, length)
    return tokens_LB.T, total_B


def beam(
    step: Step,
    logits_BV: jax.Array,
    cache: Any,
    length: int,
    end: int | tuple[int, ...],
    beams: int = 4,
    penalty: float = 0.6,
    best: int = 1,
) -> tuple[jax.Array, jax.Array]:
    """(tokens BRL, score BR) of the R = `best` best hypotheses of `beams` and greedy search, whose path beams can lose.

    The score is log p / ((5 + n) / 6)^penalty for n tokens, `end` included (Wu et al. 2016, arXiv:1609.08144,
    equation 14; 4 beams and 0.6 are Vaswani et al.'s). Arguments as of `greedy`.
    """
    B, J = len(logits_BV), beams
    low, ends_E = -1e30, jnp.atleast_1d(jnp.asarray(end))

    def lengthy(n: Any) -> Any:
        return ((5.0 + n) / 6.0) ** penalty

    def pick(x_BJx: jax.Array, index_BJ: jax.Array) -> jax.Array:
        return jnp.take_along_axis(x_BJx, index_BJ.reshape(*index_BJ.shape, *(1,) * (x_BJx.ndim - 2)), axis=1)

    def body(carry: Any, t: jax.Array) -> Any:
        logits_BJV, cache, live_BJL, log_p_BJ, done_BJL, score_BJ = carry
        V = logits_BJV.shape[-1]
        total_BJV = log_p_BJ[..., None] + jax.nn.log_softmax(logits_BJV.astype(jnp.float32))
        # Of one end twice as many as beams, so that beams remain even where all the best end here.
        top_BC, at_BC = jax.lax.top_k(total_BJV.reshape(B, J * V), min(1 + len(ends_E), V) * J)
        token_BC, from_BC = at_BC % V, at_BC // V
        grown_BCL = pick(live_BJL, from_BC).at[:, :, t].set(token_BC)
        ended_BC = jnp.isin(token_BC, ends_E)
        score_BC = jnp.where(ended_BC, top_BC / lengthy(t + 1), low)
        score_BJ, kept = jax.lax.top_k(jnp.concatenate([score_BJ, score_BC], axis=1), J)
        done_BJL = pick(jnp.concatenate([done_BJL, grown_BCL], axis=1), kept)
        log_p_BJ, kept = jax.lax.top_k(jnp.where(ended_BC, low, top_BC), J)
        live_BJL, source_BJ = pick(grown_BCL, kept), pick(from_BC, kept)
        row = (jnp.arange(B)[:, None] * J + source_BJ).reshape(-1)
        cache = over_batch(lambda x: jnp.take(x, row, axis=0), cache)
        logits, cache = step(pick(token_BC, kept).reshape(-1, 1), cache)
        return (logits[:, -1].reshape(B, J, V), cache, live_BJL, log_p_BJ, done_BJL, score_BJ), None

    # At first all beams are the prompt, and only one of them may grow.
    log_p = jnp.where(jnp.arange(J) == 0, 0.0, low) * jnp.ones((B, 1))
    held = jnp.full((B, J, length), ends_E[0], jnp.int32)
    carry = (
        jnp.repeat(logits_BV[:, None], J, axis=1), over_batch(lambda x: jnp.repeat(x, J, axis=0), cache), held,
         log_p, held, jnp.full((B, J), low),
    )  # fmt: skip
    (_, _, live_BJL, log_p_BJ, done_BJL, score_BJ), _ = jax.lax.scan(body, carry, jnp.arange(length))
    plain_BL, total_B = greedy(step, logits_BV, cache, length, end)
    ended_BL = jnp.isin(plain_BL, ends_E)
    n_B = jnp.where(ended_BL.any(axis=1), jnp.argmax(ended_BL, axis=1) + 1, length)
    same_BJ = jnp.all(jnp.concatenate([done_BJL, live_BJL], axis=1) == plain_BL[:, None], axis=2)
    plain_B1 = jnp.where(same_BJ.any(axis=1), low, total_B / lengthy(n_B))[:, None]  # beams have found it too
    # Hypotheses that ended, those that did not, and greedy's.
    texts = jnp.concatenate([done_BJL, live_BJL, plain_BL[:, None]], axis=1)
    scores = jnp.concatenate([score_BJ, log_p_BJ / lengthy(length), plain_B1], axis=1)
    score_BR, chosen_BR = jax.lax.top_k(scores, best)
    return pick(texts, chosen_BR), score_BR
