"""A decoder of captions, then codes of a picture, in one stream (DALL-E; Ramesh et al. 2021, arXiv:2102.12092).

The codes are those of a discrete autoencoder (`dvae.py`). A picture's codes see the whole caption; of the codes before
them each layer sees a row's length, a column, or a neighbourhood (appendix B.1, figure 11).

B batch, T tokens of a caption, P codes of a picture (rows x columns), L = T + P, D width, V codes or tokens.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from bigmodel.errors import UsageError, check_ranges, choose
from bigmodel.models import layers, losses, transformer
from bigmodel.ops import products, sharding
from bigmodel.ops.attention import View


def get_config() -> ConfigDict:
    cfg = ConfigDict(
        transformer.get_config()
        | dict(
            vocab_size=16384,  # of captions; from the data where there is some, as the next four
            seq_len=256,  # T
            num_codes=8192,
            grid_height=32,
            grid_width=32,
            pattern="sparse",  # what layers see of the codes before: row, column, row, row, ..., or full: all
            neighbourhood=11,  # [R] codes a side that the last layer sees, where sparse
            text_weight=0.125,  # of the caption's mean loss; the picture's has the rest
            init_std=0.02,
        )
    )
    cfg.position = "learned"
    return cfg


def finalize(cfg: ConfigDict) -> None:
    choose("config.model.pattern", cfg.pattern, ["sparse", "full"])
    check_ranges("config.model.", cfg, text_weight="[0, 1)", neighbourhood="[1, inf)", num_codes="[2, inf)")
    transformer.finalize(cfg, ("vocab_size", "seq_len", "grid_height", "grid_width"))
    if cfg.position != "learned" or cfg.neighbourhood % 2 == 0:
        raise UsageError("config.model: position must be learned, and neighbourhood odd")


rung = transformer.rung


def base(cfg: Any) -> ConfigDict:
    other = transformer.base(cfg)
    finalize(other)
    return other


PUBLISHED: dict[str, dict[str, Any]] = {
    "dalle-12b": dict(
        params=12_292_812_416,
        model=dict(width=3968, depth=64, num_heads=62),
        source="Ramesh et al. 2021, arXiv:2102.12092, section 2.2 and appendix B",
    ),
}
RULES = (
    (r"^embed/(tokens|codes)$", ("vocab", "embed")),
    (r"^embed/(padding|places|rows|columns)$", ("position", "embed")),
    (r"^embed/start$", (None,)),
    *transformer.RULES,
    (r"^norm/(scale|bias)$", (None,)),
    (r"^head_(tokens|codes)$", ("embed", "vocab")),
)


def pictures(cfg: Any) -> int:
    """P: codes of a picture."""
    return int(cfg.grid_height * cfg.grid_width)


def spec(cfg: Any) -> dict[str, tuple[tuple[int, ...], str]]:
    return {
        "tokens": ((cfg.seq_len,), "int32"),
        "length": ((), "int32"),
        "codes": ((cfg.grid_height, cfg.grid_width), "int32"),
    }


def inputs(cfg: Any, batch: Any) -> tuple[jax.Array, ...]:
    """What Model.__call__ takes of a batch: tokens BT, lengths B, codes BP."""
    codes = batch["codes"]
    return batch["tokens"], batch["length"], codes.reshape(len(codes), -1)


def flops(cfg: Any) -> float:
    """Forward FLOPs of a pair: blocks on all L places, with all pairs of places, and each place's own head."""
    T, P, D = cfg.seq_len, pictures(cfg), cfg.width
    layer = transformer.flops(cfg, T + P, T + P) + transformer.ffn_flops(cfg, T + P)
    return cfg.depth * layer + 2.0 * D * (T * cfg.vocab_size + P * cfg.num_codes)


def footprint(cfg: Any) -> dict[str, Any]:
    T, P = cfg.seq_len, pictures(cfg)
    parts = [(cfg.depth, T + P, 1.0)]
    return transformer.footprint(cfg, T * cfg.vocab_size + P * cfg.num_codes, parts, masked=True)


KINDS = ("full", "row", "column", "neighbourhood")


def kinds(cfg: Any) -> np.ndarray:
    """Of each layer, which of KINDS it is: the second of every four a column, the last one a neighbourhood, the others
    rows."""
    if cfg.pattern == "full":
        return np.zeros(cfg.depth, np.int32)
    found = [2 if layer % 4 == 1 else 1 for layer in range(cfg.depth - 1)]
    return np.array([*found, 3], np.int32)


def seen(cfg: Any) -> np.ndarray:
    """Which places each place sees, of each of KINDS, KLL, if they come before it or are its own.

    Row: as many codes before it as reach the one above it. Column: those above it. Neighbourhood: those at most half a
    window away. The input at place i of the stream is what place i - 1 holds, so a code's own place holds the one
    before it; what is meant by `before` is unchanged by that.
    """
    T, P, W = cfg.seq_len, pictures(cfg), cfg.grid_width
    L = T + P
    place = np.arange(P)
    row, column = np.divmod(place, W)
    back = place[:, None] - place
    near = np.maximum(abs(row[:, None] - row), abs(column[:, None] - column)) <= cfg.neighbourhood // 2
    found = np.ones((len(KINDS), L, L), bool)
    found[1, T:, T:] = back <= W
    found[2, T:, T:] = column[:, None] == column
    found[3, T:, T:] = near
    return found


class Embed(nn.Module):
    """Vectors of the stream's inputs, BLD: a start, the caption, the picture's codes but the last one.

    Where a caption has ended, its places hold a vector of their own each.
    """

    cfg: Any

    def setup(self) -> None:
        cfg, D = self.cfg, self.cfg.width
        std = cfg.init_std or 0.02
        start = nn.initializers.normal(std)
        self.start = self.param("start", start, (D,))
        self.tokens, self.codes = (
            self.param(name, start, (n, D)) for name, n in (("tokens", cfg.vocab_size), ("codes", cfg.num_codes))
        )
        self.padding, self.places = (self.param(name, start, (cfg.seq_len, D)) for name in ("padding", "places"))
        self.rows = self.param("rows", start, (cfg.grid_height, D))
        self.columns = self.param("columns", start, (cfg.grid_width, D))

    def captions(self, tokens_BT: jax.Array, length_B: jax.Array) -> jax.Array:
        """The start and all of a caption: B(T + 1)D, without the place of what follows it."""
        T, dtype = tokens_BT.shape[1], self.cfg.dtype
        x_BTD = products.lookup(self.tokens, tokens_BT, dtype)
        inside_BT = jnp.arange(T) < length_B[:, None]
        x_BTD = jnp.where(inside_BT[..., None], x_BTD, self.padding[:T].astype(dtype))
        start_B1D = jnp.broadcast_to(self.start.astype(dtype), (len(x_BTD), 1, self.cfg.width))
        return jnp.concatenate([start_B1D, x_BTD], axis=1)

    def at(self, place_L: jax.Array) -> jax.Array:
        """Vectors of places of the stream, LD."""
        T, W = self.cfg.seq_len, self.cfg.grid_width
        code_L = jnp.maximum(place_L - T, 0)
        of_code_LD = self.rows[code_L // W] + self.columns[code_L % W]
        return jnp.where((place_L < T)[:, None], self.places[jnp.minimum(place_L, T - 1)], of_code_LD)

    def picture(self, codes_BL: jax.Array) -> jax.Array:
        return products.lookup(self.codes, codes_BL, self.cfg.dtype)


class Model(nn.Module):
    cfg: Any

    def setup(self) -> None:
        cfg, D = self.cfg, self.cfg.width
        self.embed = Embed(cfg)
        self.blocks = transformer.blocks(cfg, cfg.depth, patterns=True)
        self.norm = layers.Norm(cfg.norm, cfg.bias, cfg.norm_eps)
        start = layers.normal(cfg.init_std, D)
        self.head_tokens = self.param("head_tokens", start, (D, cfg.vocab_size))
        self.head_codes = self.param("head_codes", start, (D, cfg.num_codes))

    def __call__(
        self,
        tokens_BT: jax.Array,
        length_B: jax.Array,
        codes_BP: jax.Array,
        train: bool = False,
        rows_B: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """(logits of the caption's tokens BTV, of the codes BPV), each given all before it."""
        T = self.cfg.seq_len
        x_BLD = jnp.concatenate(
            [self.embed.captions(tokens_BT, length_B), self.embed.picture(codes_BP[:, :-1])], axis=1
        )
        x_BLD, _ = self._forward(x_BLD, 0, None, train, rows_B)
        return layers.linear(x_BLD[:, :T], self.head_tokens), layers.linear(x_BLD[:, T:], self.head_codes)

    def caption(self, tokens_BT: jax.Array, length_B: jax.Array, cache: Any) -> tuple[jax.Array, Any]:
        """(logits of the first code BV, the cache) of captions, into an empty cache of L places."""
        x_BLD, cache = self._forward(self.embed.captions(tokens_BT, length_B), 0, cache, False)
        return layers.linear(x_BLD[:, -1], self.head_codes), cache

    def step(self, codes_B: jax.Array, place: jax.Array, cache: Any) -> tuple[jax.Array, Any]:
        """(logits of code `place` of the picture BV, the cache), given the code before it."""
        x_BLD, cache = self._forward(self.embed.picture(codes_B[:, None]), self.cfg.seq_len + place, cache, False)
        return layers.linear(x_BLD[:, 0], self.head_codes), cache

    def _forward(
        self, x_BLD: jax.Array, start: Any, cache: Any, train: bool, rows_B: jax.Array | None = None
    ) -> tuple[jax.Array, Any]:
        cfg = self.cfg
        x_BLD = x_BLD + self.embed.at(start + jnp.arange(x_BLD.shape[1])).astype(x_BLD.dtype)
        x_BLD = sharding.constrain(x_BLD, "batch", "residual", None)
        view = View(start, seen_LS=jnp.asarray(seen(cfg)), rows_B=rows_B)
        x_BLD, cache = self.blocks(x_BLD, (jnp.asarray(kinds(cfg)), cache), view, train)
        return self.norm(x_BLD), cache


def empty(cfg: Any, batch_size: int) -> Any:
    """The cache of a stream of which nothing is written."""
    return transformer.empty(cfg, cfg.depth, batch_size, cfg.seq_len + pictures(cfg))


def loss(model: nn.Module, variables: Any, batch: Any, rng: jax.Array, train: bool) -> tuple[jax.Array, Any]:
    """Nats: `text_weight` of a caption's mean over its tokens and its end, the rest of the picture's mean over codes.

    The paper divides by the tokens of a whole batch; here by each caption's, so that parts of a batch add up.
    """
    cfg: Any = model.cfg
    tokens_BT, length_B, codes_BP = inputs(cfg, batch)
    given = tokens_BT, length_B, codes_BP, train, layers.rows_of(batch)
    out: Any = model.apply(variables, *given, rngs={"dropout": rng})
    tokens_BTV, codes_BPV = out
    inside_BT = (jnp.arange(cfg.seq_len) < length_B[:, None]) / length_B[:, None]
    weight_B = batch["weight"]
    _, text = losses.cross_entropy(tokens_BTV, tokens_BT, weight_B[:, None] * inside_BT)
    _, picture = losses.cross_entropy(codes_BPV, codes_BP, weight_B)
    of_text, of_picture = losses.mean(text["loss"]), losses.mean(picture["loss"])
    both = cfg.text_weight * of_text + (1 - cfg.text_weight) * of_picture
    count = jnp.sum(weight_B)
    metrics = {"loss": (both * count, count), "image_loss": picture["loss"], "text_loss": text["loss"]}
    return both, (metrics, {})
