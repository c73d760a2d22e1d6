"""Continuations of prompts by a trained model: a prompt's pass, then one compiled loop of static shapes.

A family generates that has `init_cache(cfg, B, size)` and a Model with `step(tokens, cache, last)`. Rows of one batch
end together: shorter prompts have empty places first ('pad'). Row r of prompt p draws its t-th token by a key of (seed,
p, r, t), so that no batch, chunk or mesh changes what is written.

B rows, L prompt length, n tokens of a chunk, V vocab, S source length.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from ml_collections import FrozenConfigDict

from bigmodel import tree
from bigmodel.after import generate
from bigmodel.after.generate import Sampling
from bigmodel.errors import UsageError, note
from bigmodel.ops import sharding


def placing(family: ModuleType, mesh: Mesh, dtype: str) -> Callable[[str, Any], Any]:
    """(path, parameter) -> it on the mesh by the family's RULES, in `dtype`; of stacked layers, `cut`. Taken one after
    another, parameters are never in memory twice."""

    def put(path: str, x: Any) -> Any:
        names = tree.match(family.RULES, path)
        stacked = names[:1] == ("depth",)
        shape, names = (x.shape[1:], names[1:]) if stacked else (x.shape, names)
        placed = NamedSharding(mesh, sharding.parameter_spec(shape, names, mesh))
        parts = tuple(jax.device_put(part.astype(dtype), placed) for part in (x if stacked else [x]))
        return parts if stacked else parts[0]

    return put


def check(family_name: str, family: ModuleType, cfg: Any) -> None:
    """Refuses a family or an objective that writes no text in order."""
    why = ""
    if family.init_cache is None:
        why = "it predicts no token after another"
    elif cfg.get("objective") in ("infill", "span"):
        why = f"its objective {cfg.objective!r} fills in blanks"
    if why:
        raise UsageError(f"a model of family {family_name!r} can't generate: {why}")


def room(cfg: Any, lengths: Sequence[int], asked: int, reads_source: bool) -> int:
    """How many new tokens the longest of the prompts leaves room for; what is cut or untrained is noted.

    Raises:
      UsageError: a prompt fills the window.
    """
    longest = max(lengths)
    if reads_source:
        window, used, what = cfg.seq_len, 0, "target"
        window -= cfg.source_len * (cfg.objective == "prefix")  # whose windows hold source and target
        if longest > cfg.source_len:
            long = f"a prompt has {longest} tokens, the model's source {cfg.source_len}"
            if cfg.position == "learned":
                raise UsageError(f"{long}: shorten it")
            note(f"{long}, which is what it was trained on")
    else:
        window, used, what = cfg.get("seq_len", asked + longest), longest, "window"
    if cfg.get("position") != "learned":
        if used + asked > window:
            note(f"prompt and new tokens are up to {used + asked}; the model was trained on a {what} of {window}")
        return asked
    if used >= window:
        raise UsageError(f"a prompt has {used} tokens, and the model's {what} {window}: shorten it")
    if used + asked > window:
        note(f"--max-new-tokens={asked}: the model's {what} of {window} positions leaves {window - used}")
    return min(asked, window - used)


def bucket(n: int) -> int:
    """The length that prompts of n tokens are filled up to: few lengths, for few compilations."""
    if n <= 16:
        return 16
    step = 2 ** ((n - 1).bit_length() - 3)
    return -(-n // step) * step


@dataclass(frozen=True)
class Batch:
    """Prompts that are continued together.

    Attributes:
      tokens_BL, pad_B: the prompts, of one bucket's length, and how many places before each are empty. Of a family that
        reads a source, it begins its row, and `pad_B` places after it are empty.
      number_B: the prompt's number.
      real_B: False in rows that only fill the batch.
    """

    tokens_BL: np.ndarray
    pad_B: np.ndarray
    number_B: np.ndarray
    real_B: np.ndarray


class Decoder:
    """The compiled side of one model on one mesh.

    Args:
      params: as `placing` puts them.
      ends: tokens that end a text.
    """

    def __init__(self, family: ModuleType, cfg: Any, params: Any, mesh: Mesh, ends: Sequence[int] = ()):
        if "execution" in cfg:  # layers one by one: what `cut` and `joined` are made for
            cfg = FrozenConfigDict({**cfg.to_dict(), "execution": "unrolled"})
        self.family, self.cfg, self.params, self.mesh = family, cfg, params, mesh
        self.model = family.Model(cfg)
        self.ends = np.asarray(ends or (-1,), np.int32)
        self.reads_source = family.start is not None
        self._begin = jax.jit(self._traced(self._begun), static_argnames=("how", "sequences", "length"))
        self._go_on = jax.jit(self._traced(self._gone_on), static_argnames=("how", "n"), donate_argnames=("state",))
        self._search = jax.jit(self._traced(self._found), static_argnames=("length", "beams", "penalty", "best"))

    def _traced(self, fn: Any) -> Any:
        @functools.wraps(fn)
        def inner(*args: Any, **named: Any) -> Any:
            with sharding.use(self.mesh):
                return fn(*args, **named)

        return inner

    def _step(self, params: Any, tokens_BL: jax.Array, cache: Any, *source: Any, last: bool = False) -> Any:
        stacked = {**cache, "layers": generate.joined(cache["layers"])}
        variables = {"params": generate.joined(params)}
        logits, cache = self.model.apply(variables, tokens_BL, stacked, *source, method="step", last=last)
        return logits, generate.cut_cache(cache)

    def _read(self, params: Any, tokens_BL: jax.Array, pad_B: jax.Array, length: int) -> tuple[jax.Array, Any]:
        """(logits BV after the prompts, the cache, which has room for `length` tokens more)."""
        B, L = tokens_BL.shape
        if self.reads_source:
            cache = generate.cut_cache(self.family.init_cache(self.cfg, B, length, L))
            first = jnp.full((B, 1), self.family.start(self.cfg), jnp.int32)
            keys_BS = jnp.arange(L) < L - pad_B[:, None]
            logits, cache = self._step(params, first, {**cache, "length": 0}, tokens_BL, keys_BS)
            return logits[:, -1], {**cache, "length": jnp.int32(1)}
        cache = generate.cut_cache(self.family.init_cache(self.cfg, B, L + length))
        if "pad" not in cache:  # a state, on which empty places leave no trace

            def body(carry: Any, t: jax.Array) -> Any:
                cache, _ = carry
                logits, new = self._step(params, tokens_BL[:, t][:, None], cache)
                layers = jax.tree.map(functools.partial(_where, t >= pad_B), new["layers"], cache["layers"])
                return ({**new, "layers": layers}, logits[:, -1]), None

            shape = jax.eval_shape(lambda: self._step(params, tokens_BL[:, :1], cache)[0][:, -1])
            return jax.lax.scan(body, (cache, jnp.zeros(shape.shape, shape.dtype)), jnp.arange(L))[0][::-1]
        # A whole prompt attends by blocks, so its start is an integer of the program.
        logits, cache = self._step(params, tokens_BL, {**cache, "length": 0, "pad": pad_B}, last=True)
        return logits[:, -1], {**cache, "length": jnp.int32(L)}

    def _begun(self, params: Any, batch: Any, seed: jax.Array, how: Sampling, sequences: int, length: int) -> Any:
        """The state after the prompts, which were read once each, and the first token of all their sequences."""
        logits_BV, cache = self._read(params, batch["tokens_BL"], batch["pad_B"], length)
        logits_BV = jnp.repeat(logits_BV, sequences, axis=0)
        cache = generate.over_batch(lambda x: jnp.repeat(x, sequences, axis=0), cache)
        B, V = logits_BV.shape
        keys_B = jax.vmap(lambda p, r: jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), p), r))(
            jnp.repeat(batch["number_B"], sequences), jnp.tile(jnp.arange(sequences), B // sequences)
        )
        seen_BV = jnp.zeros((B, V if how.repetition_penalty != 1 else 0), bool)
        if how.repetition_penalty != 1:
            tokens_BL = jnp.repeat(batch["tokens_BL"], sequences, axis=0)
            L, pad_B1 = tokens_BL.shape[1], jnp.repeat(batch["pad_B"], sequences)[:, None]
            at_L = jnp.arange(L)
            counts_BL = at_L < L - pad_B1 if self.reads_source else at_L >= pad_B1
            seen_BV = seen_BV.at[jnp.arange(B)[:, None], jnp.where(counts_BL, tokens_BL, V)].set(True, mode="drop")
        done_B = ~jnp.repeat(batch["real_B"], sequences)
        state = {"cache": cache, "keys_B": keys_B, "seen_BV": seen_BV, "done_B": done_B, "t": jnp.int32(0)}
        return self._take(state, logits_BV, how)

    def _take(self, state: Any, logits_BV: jax.Array, how: Sampling) -> Any:
        """The state with the next token of each row, and its log-probability under the model's own distribution."""
        logits_BV = logits_BV.astype(jnp.float32)
        log_p_BV = jax.nn.log_softmax(logits_BV)
        if how.repetition_penalty != 1:
            logits_BV = generate.penalised(logits_BV, state["seen_BV"], how.repetition_penalty)
        if how.min_new_tokens:
            early = state["t"] < how.min_new_tokens
            logits_BV = logits_BV.at[:, self.ends[self.ends >= 0]].add(jnp.where(early, -jnp.inf, 0.0))
        keys_B = jax.vmap(jax.random.fold_in, (0, None))(state["keys_B"], state["t"])
        token_B = generate.draw(logits_BV, how, keys_B)
        log_p_B = jnp.take_along_axis(log_p_BV, token_B[:, None], axis=1)[:, 0]
        seen_BV = state["seen_BV"]
        if how.repetition_penalty != 1:
            seen_BV = seen_BV.at[jnp.arange(len(token_B)), token_B].set(True)
        ended_B = jnp.isin(token_B, jnp.asarray(self.ends))
        # A row's end is told by the token; only what follows it doesn't count.
        token_B = jnp.where(state["done_B"], -1, token_B)
        done_B = state["done_B"] | ended_B
        more = {"token_B": token_B, "log_p_B": log_p_B, "done_B": done_B, "seen_BV": seen_BV, "t": state["t"] + 1}
        return {**state, **more}

    def _gone_on(self, params: Any, state: Any, done_B: jax.Array, limit: Any, how: Sampling, n: int) -> Any:
        """(state, tokens Bn, log-probabilities Bn) after at most `limit` <= n more tokens; -1 where a row has ended."""
        B = len(done_B)
        state = {**state, "done_B": state["done_B"] | done_B}

        def more(carry: Any) -> jax.Array:
            i, state, _, _ = carry
            return (i < limit) & ~jnp.all(state["done_B"])

        def body(carry: Any) -> Any:
            i, state, tokens_Bn, log_p_Bn = carry
            logits, cache = self._step(params, jnp.maximum(state["token_B"], 0)[:, None], state["cache"])
            state = self._take({**state, "cache": cache}, logits[:, -1], how)
            tokens_Bn = jax.lax.dynamic_update_slice_in_dim(tokens_Bn, state["token_B"][:, None], i, axis=1)
            log_p_Bn = jax.lax.dynamic_update_slice_in_dim(log_p_Bn, state["log_p_B"][:, None], i, axis=1)
            return i + 1, state, tokens_Bn, log_p_Bn

        start = (0, state, jnp.full((B, n), -1, jnp.int32), jnp.zeros((B, n)))
        _, state, tokens_Bn, log_p_Bn = jax.lax.while_loop(more, body, start)
        return state, tokens_Bn, log_p_Bn

    def _found(self, params: Any, batch: Any, length: int, beams: int, penalty: float, best: int) -> Any:
        logits_BV, cache = self._read(params, batch["tokens_BL"], batch["pad_B"], length)
        step = functools.partial(self._step, params)
        return generate.beam(step, logits_BV, cache, length, tuple(self.ends.tolist()), beams, penalty, best)

    def batch(self, prompts: Sequence[tuple[int, Sequence[int]]], rows: int = 0) -> Batch:
        """Numbered prompts as a batch of `rows` (0: as many as there are), or of more where the mesh needs them."""
        rows = max(rows, len(prompts))
        rows += -rows % sharding.batch_shards(self.mesh)
        L = bucket(max(len(p) for _, p in prompts))
        tokens_BL, pad_B = np.zeros((rows, L), np.int32), np.full(rows, L - 1, np.int32)
        for r, (_, prompt) in enumerate(prompts):
            at = slice(0, len(prompt)) if self.reads_source else slice(L - len(prompt), L)
            tokens_BL[r, at], pad_B[r] = prompt, L - len(prompt)
        number_B = np.array([n for n, _ in prompts] + [0] * (rows - len(prompts)), np.int32)
        return Batch(tokens_BL, pad_B, number_B, np.arange(rows) < len(prompts))

    def sample(
        self, batch: Batch, length: int, how: Sampling, sequences: int = 1, seed: int = 0, chunk: int = 8
    ) -> Generator[tuple[np.ndarray, np.ndarray], np.ndarray | None, None]:
        """Yields (tokens Bn, log-probabilities Bn), the next up to n = `chunk` of each row, until all have ended or
        have `length`; B: each prompt's sequences side by side. -1 follows a row's end. Send a mask B of rows that are
        to end.
        """
        state = self._begin(self.params, vars(batch), np.uint32(seed), how=how, sequences=sequences, length=length)
        done_B = yield np.asarray(state["token_B"])[:, None], np.asarray(state["log_p_B"])[:, None]
        for written in range(1, length, chunk):
            if done_B is None:
                done_B = np.zeros(len(batch.pad_B) * sequences, bool)
            limit = min(chunk, length - written)
            state, tokens_Bn, log_p_Bn = self._go_on(self.params, state, done_B, limit, how=how, n=chunk)
            tokens_Bn = np.asarray(tokens_Bn)[:, :limit]
            if (tokens_Bn < 0).all():
                return
            done_B = yield tokens_Bn, np.asarray(log_p_Bn)[:, :limit]

    def beam(
        self, batch: Batch, length: int, beams: int = 4, penalty: float = 0.6, best: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        """(tokens BRL, score BR) of the R = `best` best of each prompt; see `generate.beam`."""
        found = self._search(self.params, vars(batch), length=length, beams=beams, penalty=penalty, best=best)
        tokens_BRL, score_BR = map(np.asarray, found)
        return tokens_BRL, score_BR


def _where(keep_B: jax.Array, new: jax.Array, old: jax.Array) -> jax.Array:
    return jnp.where(keep_B.reshape(-1, *(1,) * (new.ndim - 1)), new, old)
