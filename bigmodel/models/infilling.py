"""Autoregressive blank infilling (Du et al. 2021, arXiv:2103.10360), as GLM-130B is trained.

Part A of an example is its text with a mark in place of each blank; part B follows: for each blank, in random order,
the mark START and what it held, where each token is predicted from A and from what stands before it, and after the last
the mark END. A is seen whole, B causally. 30 % of the examples have several short blanks, of 15 % of their tokens in
all and of lengths from a Poisson law of mean 3; the others have one, from a random place to their end, under a mark of
its own (Zeng et al. 2022, arXiv:2210.02414, section 2.2).

B batch, L length of the parts together, T tokens of text, M blanks.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

MARKS = 4  # ids after the vocabulary's: short blank, long blank, start of what a blank held, its end
SHORT, LONG, START, END = range(MARKS)
SHORT_EXAMPLES, MASKED, MEAN_LENGTH = 0.3, 0.15, 3


class Infilling(NamedTuple):
    """Attributes:
    inputs_BL, targets_BL, weight_BL: tokens, what each predicts, and 1.0 where that counts (part B).
    prefix_B: the length of part A.
    positions_BL: in the text, marks counted; those of a short blank's contents are its mark's.
    """

    inputs_BL: jax.Array
    targets_BL: jax.Array
    weight_BL: jax.Array
    prefix_B: jax.Array
    positions_BL: jax.Array


def blanks(length: int) -> int:
    """The number of short blanks in `length` tokens. Each blank costs two of them: a mark and a start."""
    return max(1, round(MASKED * length / (MEAN_LENGTH + 2 * MASKED)))


def infill(tokens_BL: jax.Array, vocab_size: int, keys_B: jax.Array) -> Infilling:
    """Blanks drawn from each example's key. Of each row the last tokens are left out that marks take the room of."""
    return Infilling(*jax.vmap(lambda row, key: _one(row, vocab_size, key))(tokens_BL, keys_B))


def _one(tokens_L: jax.Array, vocab_size: int, key: jax.Array) -> Infilling:
    L, M = tokens_L.shape[0], blanks(tokens_L.shape[0])
    which, key = jax.random.split(key)
    short = _arrange(tokens_L, L - 2 * M, *_short(L - 2 * M, M, key), vocab_size, SHORT)
    long = _arrange(tokens_L, L - 2, *_long(L - 2, key), vocab_size, LONG)
    pick = jax.random.uniform(which) < SHORT_EXAMPLES
    return Infilling(*(jnp.where(pick, a, b) for a, b in zip(short, long, strict=True)))


def _short(T: int, M: int, key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """M blanks of T tokens, no two of them side by side: first tokens and lengths in order of place, and the order in
    which part B has them."""
    k_length, k_place, k_order = jax.random.split(key, 3)
    length_M = jnp.clip(jax.random.poisson(k_length, MEAN_LENGTH, (M,)), 1, max(1, (T - M) // M))
    kept = T - jnp.sum(length_M)
    # M different numbers of kept tokens to stand before a blank, of the kept + 1 that there are.
    place_T = jnp.where(jnp.arange(T + 1) <= kept, jax.random.uniform(k_place, (T + 1,)), 2.0)
    before_M = jnp.sort(jnp.argsort(place_T)[:M])
    first_M = before_M + jnp.cumsum(length_M) - length_M
    return first_M, length_M, jax.random.permutation(k_order, M)


def _long(T: int, key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    first = jax.random.randint(key, (1,), 0, T)
    return first, T - first, jnp.zeros(1, jnp.int32)


def _arrange(
    tokens_L: jax.Array, T: int, first_M: jax.Array, length_M: jax.Array, order_M: jax.Array, vocab_size: int, mark: int
) -> Infilling:
    """The two parts of the first T tokens: T + 2 M = L places, whatever the blanks' lengths."""
    L, M = tokens_L.shape[0], first_M.shape[0]
    s_T = jnp.arange(T)
    started_T = jnp.sum(s_T[:, None] >= first_M, axis=1)  # blanks that begin at or before this token
    blank_T = jnp.maximum(started_T - 1, 0)
    inside_T = (started_T > 0) & (s_T < (first_M + length_M)[blank_T])
    masked = jnp.sum(length_M)
    prefix = T - masked + M
    # Part A: a kept token moves left by what blanks before it held, and right by their marks.
    held_M = jnp.cumsum(length_M)
    mark_M = first_M - (held_M - length_M) + jnp.arange(M)
    kept_T = s_T - jnp.where(started_T > 0, held_M[blank_T], 0) + started_T
    # Part B: a blank of length n takes n + 1 places, START and its tokens.
    sizes = (length_M + 1)[order_M]
    start_M = jnp.zeros(M, jnp.int32).at[order_M].set(prefix + jnp.cumsum(sizes) - sizes)
    input_T = start_M[blank_T] + 1 + s_T - first_M[blank_T]
    place_T = jnp.where(inside_T, input_T, kept_T)
    text_T = tokens_L[:T]
    inputs = jnp.zeros(L, tokens_L.dtype).at[place_T].set(text_T)
    inputs = inputs.at[mark_M].set(vocab_size + mark).at[start_M].set(vocab_size + START)
    targets = jnp.zeros(L, tokens_L.dtype).at[jnp.where(inside_T, input_T - 1, L)].set(text_T, mode="drop")
    targets = targets.at[start_M + length_M].set(vocab_size + END)
    weight = (jnp.arange(L) >= prefix).astype(jnp.float32)
    positions = jnp.arange(L)
    if mark == SHORT:
        positions = positions.at[jnp.where(inside_T, input_T, L)].set(mark_M[blank_T], mode="drop")
        positions = positions.at[start_M].set(mark_M)
    return Infilling(inputs, targets, weight, prefix, positions)
