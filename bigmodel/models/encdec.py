"""Encoder-decoder Transformer: Vaswani's by default, T5's and Marian's by knobs.

Vaswani et al. 2017, arXiv:1706.03762; Raffel et al. 2020 (T5), arXiv:1910.10683.

B batch, S source length, L target length, D width, V vocab, N depth; of span corruption, T tokens of text, M spans.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from bigmodel.errors import UsageError, choose
from bigmodel.models import encdec_published, layers, losses, positions, transformer
from bigmodel.ops import sharding
from bigmodel.ops.attention import View

MASKED, MEAN_SPAN = 0.15, 3  # T5's, section 3.1.4


def get_config() -> ConfigDict:
    """The base model of Vaswani et al. 2017. Zeros mean: follow from the others, as `finalize` says."""
    return ConfigDict(
        dict(
            transformer.get_config()
            | dict(width=512, depth=6, num_heads=8, activation="relu", norm_placement="post", dropout=0.1)
            | dict(attention_bias=False, scale_residual=False),
            decoder_depth=0,  # 0: depth
            vocab_size=37000,  # from the data where there is some
            seq_len=256,  # of the target, or of source and target together; from the data where there is some
            source_len=0,  # of the source; 0: seq_len, or half of it under the objective prefix
            position="sinusoidal",  # or learned, relative_bias (T5's), rope
            scale_embed=True,  # what is read from the token table times sqrt(width) (Vaswani, section 3.4)
            tied_head=True,  # the head is the token table
            scale_logits=False,  # a tied head's times 1 / sqrt(width) (T5)
            output_bias=False,  # Marian
            # translate: pairs; of running text, prefix: its second half from its first; span: spans that were cut out
            objective="translate",
            smoothing=0.1,  # of labels
            start_token=-1,  # the decoder's first; -1: a row after the vocabulary's
        )
    )


def finalize(cfg: ConfigDict) -> None:
    """Fills what follows from other keys, and refuses what can't be built."""
    choose("config.model.position", cfg.position, ["sinusoidal", "learned", "relative_bias", "rope"])
    choose("config.model.objective", cfg.objective, ["translate", "prefix", "span"])
    transformer.finalize(cfg, ("vocab_size", "seq_len"), ("decoder_depth", "source_len"))
    if not 0 <= cfg.smoothing < 1:
        raise UsageError(f"config.model.smoothing={cfg.smoothing}: must be in [0, 1)")
    if not -1 <= cfg.start_token < cfg.vocab_size:
        raise UsageError(f"config.model.start_token={cfg.start_token}: not in vocab_size={cfg.vocab_size}")
    if cfg.norm_placement == "deepnorm":
        raise UsageError("config.model.norm_placement='deepnorm': its factors are of decoders; pre or post here")
    if cfg.objective != "translate" and cfg.seq_len < 16:
        raise UsageError(f"config.model.seq_len={cfg.seq_len}: the objective {cfg.objective} needs at least 16")
    cfg.decoder_depth = cfg.decoder_depth or cfg.depth
    cfg.source_len = cfg.source_len or (cfg.seq_len // 2 if cfg.objective == "prefix" else cfg.seq_len)
    if cfg.objective == "prefix" and cfg.source_len >= cfg.seq_len:
        raise UsageError(
            f"config.model.source_len={cfg.source_len}: leaves nothing of seq_len={cfg.seq_len} to predict"
        )


def base(cfg: Any) -> ConfigDict:
    """The shape that a parametrisation compares with: the base's width and heads, this model's depth and the rest."""
    other = transformer.base(cfg)
    finalize(other)
    return other


rung, units = transformer.rung, transformer.units
PUBLISHED = encdec_published.ROWS
WEIGHTS = encdec_published.WEIGHTS

RULES = (
    (r"embed/tokens$", ("vocab", "embed")),
    (r"embed/(encoder|decoder)_bias$", ("bucket", "heads")),
    (r"embed/(source|target)_positions$", ("position", "embed")),
    *transformer.RULES,
    (r"^(encoder|decoder)_norm/(scale|bias)$", (None,)),
    (r"^head$", ("embed", "vocab")),
    (r"^output_bias$", (None,)),
)


def spans(cfg: Any) -> tuple[int, int]:
    """(tokens cut out of seq_len, spans M they are in)."""
    noise = max(1, round(MASKED * cfg.seq_len))
    return noise, max(1, round(noise / MEAN_SPAN))


def lengths(cfg: Any) -> tuple[int, int]:
    """(S, L) of the encoder and the decoder."""
    if cfg.objective == "span":
        noise, M = spans(cfg)
        return cfg.seq_len - noise + M, noise + M + 1
    return cfg.source_len, cfg.seq_len - cfg.source_len if cfg.objective == "prefix" else cfg.seq_len


def footprint(cfg: Any) -> dict[str, Any]:
    """What a pod's layout estimates activations from: both stacks, of which the decoder attends twice."""
    S, L = lengths(cfg)
    return transformer.footprint(cfg, L * rows(cfg), ((cfg.depth, S, 1.0), (cfg.decoder_depth, L, 1.5)))


def rows(cfg: Any) -> int:
    """V: of the vocabulary, the decoder's first token, and the marks of cut spans."""
    return cfg.vocab_size + (cfg.start_token < 0) + (spans(cfg)[1] + 1 if cfg.objective == "span" else 0)


def start(cfg: Any) -> int:
    """The decoder's first token."""
    return cfg.start_token if cfg.start_token >= 0 else cfg.vocab_size


def spec(cfg: Any) -> dict[str, tuple[tuple[int, ...], str]]:
    """Of one example: a pair, of which the first `_length` tokens count; or running text, seq_len + 1 tokens of which
    the last is left out."""
    if cfg.objective != "translate":
        return {"tokens": ((cfg.seq_len + 1,), "int32")}
    return {
        "source": ((cfg.source_len,), "int32"), "source_length": ((), "int32"),
        "target": ((cfg.seq_len,), "int32"), "target_length": ((), "int32"),
    }  # fmt: skip


class Pair(NamedTuple):
    """Attributes:
    source_BS, target_BL: tokens; keys_BS, counts_BL: which of them count, None: all."""

    source_BS: jax.Array
    target_BL: jax.Array
    keys_BS: jax.Array | None = None
    counts_BL: jax.Array | None = None


def pair(cfg: Any, batch: Any, rng: jax.Array) -> Pair:
    """What is read and what is predicted of a batch; spans are drawn from `rng` and each example's row."""
    if cfg.objective == "translate":
        source, target = batch["source"], batch["target"]
        keys = jnp.arange(source.shape[1]) < batch["source_length"][:, None]
        return Pair(source, target, keys, jnp.arange(target.shape[1]) < batch["target_length"][:, None])
    tokens = batch["tokens"][:, :-1]
    if cfg.objective == "prefix":
        return Pair(tokens[:, : cfg.source_len], tokens[:, cfg.source_len :])
    keys_B = layers.example_keys(rng, layers.rows_of(batch))
    return Pair(*jax.vmap(lambda row, key: corrupt(cfg, row, key))(tokens, keys_B))


def corrupt(cfg: Any, tokens_T: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(source S, target L) of one text: spans cut out, a mark of its own in place of each; the target is each mark and
    what was there, and a last mark (Raffel et al. 2020, figure 2). Kept and cut runs alternate, a kept one first."""
    T = tokens_T.shape[0]
    noise, M = spans(cfg)
    first_mark = cfg.vocab_size + (cfg.start_token < 0)
    k_cut, k_kept = jax.random.split(key)

    def lengths_M(total: int, key: jax.Array) -> jax.Array:
        """M positive numbers of this sum, each way to part it as likely."""
        inner = jnp.argsort(jax.random.uniform(key, (total - 1,)))[: M - 1] + 1
        ends = jnp.concatenate([jnp.zeros(1, inner.dtype), jnp.sort(inner), jnp.full(1, total, inner.dtype)])
        return jnp.diff(ends)

    cut_M, kept_M = lengths_M(noise, k_cut), lengths_M(T - noise, k_kept)
    end_M = jnp.cumsum(cut_M + kept_M)
    t_T = jnp.arange(T)
    span_T = jnp.sum(t_T[:, None] >= end_M, axis=1)  # 0 .. M - 1
    begin_T = (end_M - cut_M - kept_M)[span_T]
    is_cut_T = t_T - begin_T >= kept_M[span_T]
    before_T, cut_before_T = jnp.cumsum(kept_M)[span_T] - kept_M[span_T], jnp.cumsum(cut_M)[span_T] - cut_M[span_T]
    # Kept tokens of earlier runs and a mark for each stand before a kept token; likewise in the target.
    source_at = jnp.where(is_cut_T, T, before_T + span_T + t_T - begin_T)
    target_at = jnp.where(is_cut_T, cut_before_T + span_T + 1 + t_T - begin_T - kept_M[span_T], T)
    S, L = lengths(cfg)
    m_M = jnp.arange(M)
    source = jnp.zeros(S, tokens_T.dtype).at[source_at].set(tokens_T, mode="drop")
    source = source.at[jnp.cumsum(kept_M) + m_M].set(first_mark + m_M)
    target = jnp.full(L, first_mark + M, tokens_T.dtype).at[target_at].set(tokens_T, mode="drop")
    return source, target.at[jnp.cumsum(cut_M) - cut_M + m_M].set(first_mark + m_M)


def inputs(cfg: Any, batch: Any) -> tuple[Any, ...]:
    """What Model.__call__ takes of a batch: (source, the decoder's tokens, train, keys)."""
    source, target, keys, _ = pair(cfg, batch, jax.random.key(0))
    return source, shifted(cfg, target), False, keys


def shifted(cfg: Any, target_BL: jax.Array) -> jax.Array:
    """The decoder's tokens: one to the right of what they predict."""
    first = jnp.full((len(target_BL), 1), start(cfg), target_BL.dtype)
    return jnp.concatenate([first, target_BL[:, :-1]], axis=1)


def likelihood(cfg: Any) -> range:
    """The places of a window's tokens that are predicted, each given those before it: bits per byte follow from it."""
    return range(cfg.source_len, cfg.seq_len) if cfg.objective == "prefix" else range(0)


def flops(cfg: Any) -> float:
    """Forward FLOPs of one example: 2 per multiply-add of every matrix product.

    Attention and feed-forward as transformer.py counts them, of S positions in the encoder; of L in the decoder, which
    attends twice; 2LDV for the head.
    """
    (S, L), D = lengths(cfg), cfg.width
    encoder = transformer.flops(cfg, S, S) + transformer.ffn_flops(cfg, S)
    decoder = transformer.flops(cfg, L, L) + transformer.flops(cfg, L, S) + transformer.ffn_flops(cfg, L)
    return float(cfg.depth * encoder + cfg.decoder_depth * decoder + 2 * L * D * rows(cfg))


class Embed(nn.Module):
    cfg: Any

    def setup(self) -> None:
        cfg = self.cfg
        # Scaled up when read, a table starts as much smaller, so that as a head it is not too large.
        std = cfg.width**-0.5 if cfg.scale_embed else cfg.init_std or 0.02
        self.tokens = self.param("tokens", nn.initializers.normal(std), (rows(cfg), cfg.width))
        if cfg.position == "relative_bias":
            shape = (positions.BUCKETS, cfg.num_heads)
            self.encoder_bias = self.param("encoder_bias", nn.initializers.normal(cfg.init_std or 0.02), shape)
            self.decoder_bias = self.param("decoder_bias", nn.initializers.normal(cfg.init_std or 0.02), shape)
        if cfg.position == "learned":
            start, (S, L) = nn.initializers.normal(cfg.init_std or 0.02), lengths(cfg)
            self.source_positions = self.param("source_positions", start, (S, cfg.width))
            self.target_positions = self.param("target_positions", start, (L, cfg.width))

    def __call__(self, tokens_BL: jax.Array, first: Any = 0, source: bool = False) -> jax.Array:
        cfg, at_L = self.cfg, first + jnp.arange(tokens_BL.shape[1])
        x_BLD = self.tokens[tokens_BL] * (cfg.width**0.5 if cfg.scale_embed else 1.0)
        if cfg.position == "sinusoidal":
            x_BLD = x_BLD + positions.sinusoids(at_L, cfg.width)
        elif cfg.position == "learned":
            x_BLD = x_BLD + (self.source_positions if source else self.target_positions)[at_L]
        return x_BLD.astype(cfg.dtype)

    @property
    def scale(self) -> float:
        """Of what a tied head reads."""
        return layers.tied_scale(self.cfg) * (self.cfg.width**-0.5 if self.cfg.scale_logits else 1.0)

    def attend(self, x_BLD: jax.Array) -> jax.Array:
        return layers.linear(x_BLD if self.scale == 1 else x_BLD * self.scale, self.tokens.T)


class Model(nn.Module):
    cfg: Any  # frozen `model` section, finalised

    def setup(self) -> None:
        cfg = self.cfg
        self.embed = Embed(cfg)
        self.encoder = transformer.blocks(cfg, cfg.depth)
        self.decoder = transformer.blocks(cfg, cfg.decoder_depth, cross=True)
        if cfg.norm_placement == "pre":
            self.encoder_norm = layers.Norm(cfg.norm, cfg.bias, cfg.norm_eps)
            self.decoder_norm = layers.Norm(cfg.norm, cfg.bias, cfg.norm_eps)
        if not cfg.tied_head:
            self.head = self.param("head", layers.normal(cfg.init_std, cfg.width), (cfg.width, rows(cfg)))
        if cfg.output_bias:
            self.output_bias = self.param("output_bias", nn.initializers.zeros, (rows(cfg),))
        self.drop = layers.Dropout(cfg.dropout)

    def __call__(
        self,
        source_BS: jax.Array,
        tokens_BL: jax.Array,
        train: bool = False,
        keys_BS: jax.Array | None = None,
        rows_B: jax.Array | None = None,
    ) -> jax.Array:
        """Logits BLV for the token after each. keys: True where a source token counts; None: all do. Rows: see
        `View`."""
        return self._logits(self._given(source_BS, tokens_BL, train, keys_BS, rows_B))

    def features(self, *args: Any) -> tuple[jax.Array, jax.Array, jax.Array | None]:
        """As __call__, but what the head reads, BLD, and its matrix, VD, scales included; and its bias, V, if any."""
        x_BLD = self._given(*args)
        bias_V = self.output_bias if self.cfg.output_bias else None
        return (
            (x_BLD * self.embed.scale, self.embed.tokens, bias_V)
            if self.cfg.tied_head
            else (x_BLD, self.head.T, bias_V)
        )

    def _given(
        self, source_BS: jax.Array, tokens_BL: jax.Array, train: bool, keys_BS: jax.Array | None, rows_B: Any
    ) -> jax.Array:
        memory = self.encode(source_BS, keys_BS, train, rows_B)
        return self._decode(tokens_BL, None, View(memory_BSD=memory, memory_keys_BS=keys_BS, rows_B=rows_B), train)[0]

    def encode(
        self, source_BS: jax.Array, keys_BS: jax.Array | None = None, train: bool = False, rows_B: Any = None
    ) -> jax.Array:
        """What the decoder reads, BSD."""
        bias, S = None, source_BS.shape[1]
        if self.cfg.position == "relative_bias":
            bias = positions.relative_bias(self.embed.encoder_bias, S, S, 0, causal=False)
        x_BSD = self.drop(self.embed(source_BS, source=True), rows_B, train)
        view = View(causal=False, keys_BS=keys_BS, bias_HLS=bias, rows_B=rows_B)
        x_BSD, _ = self.encoder(x_BSD, None, view, train)
        return self.drop(self.encoder_norm(x_BSD), rows_B, train) if self.cfg.norm_placement == "pre" else x_BSD

    def step(
        self,
        tokens_BL: jax.Array,
        cache: Any,
        source_BS: jax.Array | None = None,
        keys_BS: jax.Array | None = None,
        last: bool = False,
    ) -> tuple[jax.Array, Any]:
        """Appends tokens to `cache` (see `init_cache`): (logits BLV, the longer cache); `last`: of the last place, B1V.

        The first step has the source, with `keys` (None: all of it counts), whose keys and values the cache then holds.
        """
        memory = None
        if source_BS is not None:
            keys = jnp.ones(source_BS.shape, bool) if keys_BS is None else keys_BS
            memory, cache = self.encode(source_BS, keys), {**cache, "keys": keys}
        view = View(cache["length"], memory_BSD=memory, memory_keys_BS=cache["keys"])
        x_BLD, held = self._decode(tokens_BL, cache["layers"], view, False)
        logits = self._logits(x_BLD[:, -1:] if last else x_BLD)
        return logits, {**cache, "layers": held, "length": cache["length"] + tokens_BL.shape[1]}

    def _decode(self, tokens_BL: jax.Array, cache: Any, view: View, train: bool) -> tuple[jax.Array, Any]:
        cfg, L = self.cfg, tokens_BL.shape[1]
        if cfg.position == "relative_bias":
            size = L if cache is None else cache["own"]["key"].shape[-2]
            view = view.replace(bias_HLS=positions.relative_bias(self.embed.decoder_bias, L, size, view.start))
        x_BLD = self.drop(self.embed(tokens_BL, view.start), view.rows_B, train)
        x_BLD, cache = self.decoder(x_BLD, cache, view, train)
        if cfg.norm_placement == "pre":
            x_BLD = self.drop(self.decoder_norm(x_BLD), view.rows_B, train)
        return x_BLD, cache

    def _logits(self, x_BLD: jax.Array) -> jax.Array:
        cfg = self.cfg
        logits_BLV = self.embed.attend(x_BLD) if cfg.tied_head else layers.linear(x_BLD, self.head)
        if cfg.output_bias:
            logits_BLV = logits_BLV + self.output_bias.astype(cfg.dtype)
        return sharding.constrain(logits_BLV, "batch", None, "vocab")


def init_cache(cfg: Any, batch_size: int, size: int = 0, source: int = 0) -> dict[str, Any]:
    """Empty keys and values of `size` target positions (0: L) and of `source` ones (0: S): {'layers': {'own',
    'memory'}, each {'key', 'value'} NBGSK; 'keys' BS, 'length' ()}."""
    S, L = lengths(cfg)
    S = source or S
    sizes = {"own": size or L, "memory": S}
    held = {name: transformer.empty(cfg, cfg.decoder_depth, batch_size, n) for name, n in sizes.items()}
    return {"layers": held, "keys": jnp.zeros((batch_size, S), bool), "length": jnp.zeros((), jnp.int32)}


def loss(model: Model, variables: Any, batch: Any, rng: jax.Array, train: bool) -> tuple[jax.Array, Any]:
    """Cross entropy in nats per target token, given the source and the target tokens before it."""
    cfg = model.cfg
    rng_dropout, rng = jax.random.split(rng)
    source, target, keys, counts = pair(cfg, batch, rng)
    weight = batch["weight"] if counts is None else batch["weight"][:, None] * counts
    given = (source, shifted(cfg, target), train, keys, layers.rows_of(batch))

    def read(whole: bool) -> tuple[Any, None]:
        method = Model.__call__ if whole else Model.features
        return model.apply(variables, *given, rngs={"dropout": rng_dropout}, method=method), None

    scalar, metrics, _ = losses.of_vocabulary(
        read, target, weight, rows(cfg), smoothing=cfg.smoothing, with_accuracy=True
    )
    return scalar, (metrics, {})
