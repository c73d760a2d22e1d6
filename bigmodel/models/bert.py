"""BERT: an encoder that fills in masked tokens, and the heads that are fine-tuned on it.

Devlin et al. 2019, arXiv:1810.04805; the small sizes are of Turc et al. 2019, arXiv:1908.08962.

B batch, L length, M masked places, D width, V vocab, C classes, N depth.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from bigmodel.errors import UsageError, check_ranges, choose
from bigmodel.models import bert_published, layers, losses, transformer
from bigmodel.ops import sharding
from bigmodel.ops.attention import View

OBJECTIVES = ("masked", "masked_next", "classify", "regress", "tag")
MARKS = ("cls", "sep", "mask")  # rows after the vocabulary's, where the vocabulary has no such token


def get_config() -> ConfigDict:
    """BERT-base's. Zeros mean: follow from the others, as `finalize` says."""
    return ConfigDict(
        dict(
            transformer.get_config()
            | dict(activation="gelu", norm_placement="post", norm_eps=1e-12, scale_residual=False),
            vocab_size=30522,  # from the data where there is some
            seq_len=512,  # from the data where there is some
            position="learned",  # or rope, none
            segments=2,  # rows of the segment table; 0: none
            # masked: predict what was masked; masked_next: and whether the second half follows the first; of the whole
            # example: classify, regress; of each token: tag
            objective="masked",
            mask_rate=0.15,  # of the tokens are predicted, as many of every example
            pool="cls",  # what a whole example is judged by: the mark put before it, or the mean of all its tokens
            pooler=True,  # tanh(dense) of that, before the head of a whole example
            num_classes=2,  # from the data where there is some
            class_weights=(),  # of the loss, one a class; (): all 1
            cls_token=-1,  # ids of the marks; -1: a row after the vocabulary's
            sep_token=-1,
            mask_token=-1,
        )
    )


def finalize(cfg: ConfigDict) -> None:
    """Fills what follows from other keys, and refuses what can't be built."""
    choose("config.model.position", cfg.position, ["learned", "rope", "none"])
    choose("config.model.objective", cfg.objective, OBJECTIVES)
    choose("config.model.pool", cfg.pool, ["cls", "mean"])
    transformer.finalize(cfg, ("vocab_size", "seq_len", "num_classes"), ("segments",))
    check_ranges("config.model.", cfg, mask_rate="(0, 1)")
    if cfg.class_weights and len(cfg.class_weights) != cfg.num_classes:
        raise UsageError(
            f"config.model.class_weights={cfg.class_weights}: one a class, and there are {cfg.num_classes}"
        )
    for name in MARKS:
        if not -1 <= cfg[f"{name}_token"] < cfg.vocab_size:
            raise UsageError(f"config.model.{name}_token={cfg[f'{name}_token']}: not in vocab_size={cfg.vocab_size}")
    if cfg.objective == "masked_next" and (cfg.segments < 2 or not cfg.pooler or cfg.seq_len < 8):
        raise UsageError("config.model.objective='masked_next': needs segments=2, a pooler and seq_len of at least 8")


def base(cfg: Any) -> ConfigDict:
    """The shape that a parametrisation compares with: the base's width and heads, this model's depth and the rest."""
    other = transformer.base(cfg)
    finalize(other)
    return other


def mark(cfg: Any, name: str) -> int:
    """The id of a mark: the vocabulary's own, or of the row added for it."""
    added = [n for n in MARKS if cfg[f"{n}_token"] < 0]
    return cfg.vocab_size + added.index(name) if name in added else cfg[f"{name}_token"]


def rows(cfg: Any) -> int:
    """V: of the vocabulary, and of the marks that it lacks."""
    return cfg.vocab_size + sum(cfg[f"{n}_token"] < 0 for n in MARKS)


def masked(cfg: Any) -> int:
    """M: how many tokens of an example are predicted."""
    return max(1, round(cfg.mask_rate * cfg.seq_len))


rung, units = transformer.rung, transformer.units
PUBLISHED = bert_published.ROWS
WEIGHTS = bert_published.WEIGHTS

RULES = (
    (r"embed/tokens$", ("vocab", "embed")),
    (r"embed/(positions|segments)$", ("position", "embed")),
    (r"embed/norm/(scale|bias)$", (None,)),
    *transformer.RULES,
    (r"^norm/(scale|bias)$", (None,)),
    (r"(pooler|transform)/kernel$", ("embed", "output")),
    (r"transform/norm/(scale|bias)$", (None,)),
    (r"(pooler|transform)/bias$", (None,)),
    (r"^(next|head)$", ("embed", "class")),
    (r"^(output|next|head)_bias$", (None,)),
)


def footprint(cfg: Any) -> dict[str, Any]:
    """What a pod's layout estimates activations from: of the vocabulary only masked places are scored."""
    return transformer.footprint(cfg, masked(cfg) * rows(cfg) if cfg.objective.startswith("masked") else 0)


def spec(cfg: Any) -> dict[str, tuple[tuple[int, ...], str]]:
    """Of one example: of running text seq_len + 1 tokens, the last of which is left out; else seq_len, of which the
    first `length` count, and their label."""
    if cfg.objective.startswith("masked"):
        return {"tokens": ((cfg.seq_len + 1,), "int32")}
    label = {"classify": ((), "int32"), "regress": ((), "float32"), "tag": ((cfg.seq_len,), "int32")}[cfg.objective]
    return {"tokens": ((cfg.seq_len,), "int32"), "length": ((), "int32"), "label": label}


def inputs(cfg: Any, batch: Any) -> tuple[Any, ...]:
    """What Model.__call__ takes of a batch: (tokens, train, keys, segments, places)."""
    if "length" in batch:
        tokens, length = batch["tokens"], batch["length"]
        if cfg.objective in ("classify", "regress") and (cfg.pool == "cls" or cfg.cls_token >= 0):
            # The data has no marks; a vocabulary that has was pretrained with this one before every text.
            first = jnp.full((len(tokens), 1), mark(cfg, "cls"), tokens.dtype)
            tokens, length = jnp.concatenate([first, tokens[:, :-1]], axis=1), jnp.minimum(length + 1, cfg.seq_len)
        return tokens, False, jnp.arange(cfg.seq_len) < length[:, None]
    tokens = batch["tokens"][:, :-1]
    places = jnp.broadcast_to(jnp.arange(masked(cfg)), (len(tokens), masked(cfg)))
    return tokens, False, None, None, places


def decomposes(cfg: Any) -> bool:
    """Where the second halves of examples are each other's, they depend on the whole batch."""
    return bool(cfg.objective != "masked_next")


def flops(cfg: Any) -> float:
    """Forward FLOPs of one example: 2 per multiply-add of every matrix product.

    Attention and feed-forward as transformer.py counts them; 2M(D^2 + DV) for the head of M masked tokens, 2D^2 for the
    pooler, 2DC a label.
    """
    L, M, D, C = cfg.seq_len, masked(cfg), cfg.width, cfg.num_classes
    total = cfg.depth * (transformer.flops(cfg, L, L) + transformer.ffn_flops(cfg, L))
    if cfg.objective.startswith("masked"):
        total += 2 * M * (D * D + D * rows(cfg)) + (2 * D * D + 4 * D if cfg.objective == "masked_next" else 0)
    elif cfg.objective == "tag":
        total += 2 * L * D * C
    else:
        total += 2 * D * D * cfg.pooler + 2 * D * (C if cfg.objective == "classify" else 1)
    return float(total)


class Outputs(NamedTuple):
    """Attributes:
    hidden_BLD: of the last layer.
    pooled_BD: of the whole example: of its first token or the mean of all, after the pooler where there is one.
    logits: of masked places BMV; or by the objective BC, B, BLC.
    next_B2: of whether the second segment follows the first, where that is asked.
    """

    hidden_BLD: jax.Array
    pooled_BD: jax.Array
    logits: Any
    next_B2: jax.Array | None = None


class Embed(nn.Module):
    cfg: Any

    def setup(self) -> None:
        cfg = self.cfg
        start = nn.initializers.normal(cfg.init_std or 0.02)
        self.tokens = self.param("tokens", start, (rows(cfg), cfg.width))
        if cfg.position == "learned":
            self.positions = self.param("positions", start, (cfg.seq_len, cfg.width))
        if cfg.segments:
            self.segments = self.param("segments", start, (cfg.segments, cfg.width))
        self.norm = layers.Norm(cfg.norm, cfg.bias, cfg.norm_eps)
        self.drop = layers.Dropout(cfg.dropout)

    def __call__(
        self, tokens_BL: jax.Array, segments_BL: jax.Array | None, rows_B: jax.Array | None, train: bool
    ) -> jax.Array:
        x_BLD = self.tokens[tokens_BL]
        if self.cfg.segments:
            x_BLD = x_BLD + (self.segments[0] if segments_BL is None else self.segments[segments_BL])
        if self.cfg.position == "learned":
            x_BLD = x_BLD + self.positions[: tokens_BL.shape[1]]
        return self.drop(self.norm(x_BLD), rows_B, train)

    def attend(self, x_BMD: jax.Array) -> jax.Array:
        scale = layers.tied_scale(self.cfg)
        return layers.linear(x_BMD if scale == 1 else x_BMD * scale, self.tokens.T)


class Dense(nn.Module):
    """D -> D with a bias, an activation, and perhaps a norm."""

    cfg: Any
    activation: str
    normed: bool = False

    @nn.compact
    def __call__(self, x_xD: jax.Array) -> jax.Array:
        cfg, D = self.cfg, self.cfg.width
        y_xD = layers.linear(x_xD, self.param("kernel", layers.normal(cfg.init_std, D), (D, D)))
        y_xD = layers.ACTIVATIONS[self.activation](
            y_xD + self.param("bias", nn.initializers.zeros, (D,)).astype(y_xD.dtype)
        )
        return layers.Norm(cfg.norm, cfg.bias, cfg.norm_eps, name="norm")(y_xD) if self.normed else y_xD


class Model(nn.Module):
    cfg: Any  # frozen `model` section, finalised

    def setup(self) -> None:
        cfg = self.cfg
        D, objective = cfg.width, cfg.objective
        self.embed = Embed(cfg)
        self.blocks = transformer.blocks(cfg, cfg.depth)
        if cfg.norm_placement == "pre":
            self.norm = layers.Norm(cfg.norm, cfg.bias, cfg.norm_eps)
        start, zeros = layers.normal(cfg.init_std, D), nn.initializers.zeros
        if cfg.pooler and objective not in ("masked", "tag"):
            self.pooler = Dense(cfg, "tanh")
        if objective.startswith("masked"):
            self.transform = Dense(cfg, cfg.activation, normed=True)
            self.output_bias = self.param("output_bias", zeros, (rows(cfg),))
        else:
            outputs = 1 if objective == "regress" else cfg.num_classes
            self.head = self.param("head", start, (D, outputs))
            self.head_bias = self.param("head_bias", zeros, (outputs,))
        if objective == "masked_next":
            self.next = self.param("next", start, (D, 2))
            self.next_bias = self.param("next_bias", zeros, (2,))

    def __call__(
        self,
        tokens_BL: jax.Array,
        train: bool = False,
        keys_BL: jax.Array | None = None,
        segments_BL: jax.Array | None = None,
        places_BM: jax.Array | None = None,
        whole: bool = True,
        rows_B: jax.Array | None = None,
    ) -> Outputs:
        """See `Outputs`. keys: True where a token counts (None: all do); segments: 0 or 1 (None: all 0); places: whose
        tokens to predict (None: all); whole: False for what masked places' logits are made of in their stead: (BMD, the
        head's matrix VD, its bias V); rows: see `View`."""
        cfg = self.cfg
        x_BLD = self.embed(tokens_BL, segments_BL, rows_B, train).astype(cfg.dtype)
        x_BLD, _ = self.blocks(x_BLD, None, View(causal=False, keys_BS=keys_BL, rows_B=rows_B), train)
        if cfg.norm_placement == "pre":
            x_BLD = self.norm(x_BLD)
        one_BD = x_BLD[:, 0] if cfg.pool == "cls" else mean(x_BLD, keys_BL)
        pooled_BD = self.pooler(one_BD) if cfg.pooler and cfg.objective not in ("masked", "tag") else one_BD
        if not cfg.objective.startswith("masked"):
            read = x_BLD if cfg.objective == "tag" else pooled_BD
            logits = layers.linear(read, self.head) + self.head_bias
            return Outputs(x_BLD, pooled_BD, logits[..., 0] if cfg.objective == "regress" else logits)
        picked_BMD = x_BLD if places_BM is None else jnp.take_along_axis(x_BLD, places_BM[..., None], axis=1)
        read_BMD = self.transform(picked_BMD)
        masked: Any = (read_BMD * layers.tied_scale(cfg), self.embed.tokens, self.output_bias)
        if whole:
            masked = self.embed.attend(read_BMD) + self.output_bias.astype(cfg.dtype)
            masked = sharding.constrain(masked, "batch", None, "vocab")
        if cfg.objective == "masked":
            return Outputs(x_BLD, pooled_BD, masked)
        return Outputs(x_BLD, pooled_BD, masked, layers.linear(pooled_BD, self.next) + self.next_bias)


def mean(x_BLD: jax.Array, keys_BL: jax.Array | None) -> jax.Array:
    """Of the tokens that count, BD."""
    if keys_BL is None:
        return jnp.mean(x_BLD, axis=1)
    keys_BL1 = keys_BL[..., None].astype(x_BLD.dtype)
    return jnp.sum(x_BLD * keys_BL1, axis=1) / jnp.maximum(jnp.sum(keys_BL1, axis=1), 1)


def mask(cfg: Any, tokens_BL: jax.Array, rng: jax.Array, free_BL: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(tokens with M of each example masked, their places BM in order): 80 % of them become the mark, 10 % a random
    token, 10 % stay (Devlin et al. 2019, section 3.1). Only where `free_BL`.

    Drawn a row from the key and the row itself, so that an example's masks don't depend on its batch.
    """

    def one(row_L: jax.Array, free_L: jax.Array) -> tuple[jax.Array, jax.Array]:
        L, M = row_L.shape[0], masked(cfg)
        digest = jnp.sum(row_L.astype(jnp.uint32) * (2 * jnp.arange(L, dtype=jnp.uint32) + 1) * jnp.uint32(2654435761))
        k_place, k_kind, k_token = jax.random.split(jax.random.fold_in(rng, digest), 3)
        order_L = jnp.where(free_L, jax.random.uniform(k_place, (L,)), 2.0)
        places_M = jnp.sort(jnp.argsort(order_L)[:M])
        kind_M = jax.random.uniform(k_kind, (M,))
        other_M = jax.random.randint(k_token, (M,), 0, cfg.vocab_size, row_L.dtype)
        put_M = jnp.where(kind_M < 0.8, mark(cfg, "mask"), jnp.where(kind_M < 0.9, other_M, row_L[places_M]))
        return row_L.at[places_M].set(put_M.astype(row_L.dtype)), places_M

    return jax.vmap(one)(tokens_BL, jnp.broadcast_to(free_BL, tokens_BL.shape))


def pairs(cfg: Any, tokens_BL: jax.Array, keys_B: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(tokens, segments BL, whether the second part follows B): CLS, the first half, SEP, the second half, SEP; half of
    the second halves are of the batch's next example. The last tokens are left out that marks take the room of."""
    B, L = tokens_BL.shape
    half = (L - 3) // 2
    follows_B = jax.vmap(jax.random.bernoulli)(keys_B) | (B == 1)
    second = tokens_BL[:, half : L - 3]
    second = jnp.where(follows_B[:, None], second, jnp.roll(second, 1, axis=0))

    def column(name: str) -> jax.Array:
        return jnp.full((B, 1), mark(cfg, name), tokens_BL.dtype)

    whole = [column("cls"), tokens_BL[:, :half], column("sep"), second, column("sep")]
    segments = jnp.broadcast_to((jnp.arange(L) > half + 1).astype(jnp.int32), (B, L))
    return jnp.concatenate(whole, axis=1), segments, follows_B


def loss(model: Model, variables: Any, batch: Any, rng: jax.Array, train: bool) -> tuple[jax.Array, Any]:
    """By the objective: cross entropy in nats of masked tokens (and of the next sentence), of an example's class, of
    each token's; or the squared error."""
    cfg = model.cfg
    rng, rng_pairs, rng_dropout = jax.random.split(rng, 3)
    rngs, weight, rows_B = {"dropout": rng_dropout}, batch["weight"], layers.rows_of(batch)
    if cfg.objective.startswith("masked"):
        tokens, segments, follows, free = batch["tokens"][:, :-1], None, None, jnp.ones((), bool)
        if cfg.objective == "masked_next":
            tokens, segments, follows = pairs(cfg, tokens, layers.example_keys(rng_pairs, rows_B))
            free = (tokens != mark(cfg, "cls")) & (tokens != mark(cfg, "sep"))
        hidden, places = mask(cfg, tokens, rng, free)
        labels = jnp.take_along_axis(tokens, places, axis=1)

        def read(whole: bool) -> tuple[Any, Any]:
            out: Any = model.apply(variables, hidden, train, None, segments, places, whole, rows_B, rngs=rngs)
            return out.logits, out.next_B2

        scalar, metrics, next_B2 = losses.of_vocabulary(read, labels, weight, rows(cfg), with_accuracy=True)
        if follows is not None:
            extra, found = losses.cross_entropy(next_B2, follows.astype(jnp.int32), weight)
            metrics["next_accuracy"] = losses.accuracy(next_B2, follows.astype(jnp.int32), weight)
            metrics["next_loss"] = found["loss"]
            scalar = scalar + extra
        return scalar, (metrics, {})
    tokens, _, keys = inputs(cfg, batch)
    out: Any = model.apply(variables, tokens, train, keys, rows_B=rows_B, rngs=rngs)
    if cfg.objective == "regress":
        scalar, metrics = losses.mean_squared_error(out.logits, batch["label"], weight)
        return scalar, (metrics, {})
    counts = weight[:, None] * keys if cfg.objective == "tag" else weight
    scalar, metrics = losses.cross_entropy(out.logits, batch["label"], counts, class_weights=cfg.class_weights)
    metrics["accuracy"] = losses.accuracy(out.logits, batch["label"], counts)
    return scalar, (metrics, {})
