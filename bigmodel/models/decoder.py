"""Decoder-only Transformer: the GPT-2/3 block by default, Llama's and others' by knobs.

B batch, L length, D width, H heads, G key/value heads, K head dim, F ffn, V vocab, N depth;
E dimension of the token table.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from bigmodel.errors import UsageError, choose
from bigmodel.models import decoder_published, infilling, layers, losses, positions, transformer
from bigmodel.ops import products, sharding
from bigmodel.ops.attention import View


def get_config() -> ConfigDict:
    """GPT-2's block and tables. Zeros mean: follow from the others, as `finalize` says."""
    return ConfigDict(
        dict(
            transformer.get_config(),
            vocab_size=50257,  # from the data where there is some
            seq_len=1024,  # from the data where there is some
            final_norm=True,  # before the head
            position="learned",  # or rope, relative (Transformer-XL's), relative_bias (T5's), none
            position_offset=0,  # rows of the learned table before the first position's (OPT: 2)
            tied_head=True,
            embed_dim=0,  # of the token table; 0: width; another: projected in and out (OPT-350M)
            # causal; prefix: a part of random length is seen whole, and what follows it predicted; or infill
            # (infilling.py), which adds the rows of its marks to the tables
            objective="causal",
            z_loss=0.0,
        )
    )


def finalize(cfg: ConfigDict) -> None:
    """Fills what follows from other keys, and refuses what can't be built."""
    choose("config.model.position", cfg.position, ["learned", "rope", "relative", "relative_bias", "none"])
    choose("config.model.objective", cfg.objective, ["causal", "prefix", "infill"])
    transformer.finalize(cfg, ("vocab_size", "seq_len"), ("embed_dim", "position_offset", "z_loss"))
    if cfg.position_offset and cfg.position != "learned":
        raise UsageError(f"config.model.position_offset={cfg.position_offset}: only learned positions have a table")
    if cfg.objective == "infill" and cfg.position.startswith("relative"):
        raise UsageError(
            f"config.model.position={cfg.position!r}: infilling places a blank's contents at its mark, "
            "which only learned, rope and none can"
        )
    if cfg.objective == "infill" and cfg.seq_len < 8:
        raise UsageError(f"config.model.seq_len={cfg.seq_len}: infilling needs at least 8 tokens")
    cfg.embed_dim = cfg.embed_dim or cfg.width


def rows(cfg: Any) -> int:
    """V: of the vocabulary, and of the objective's own marks after it."""
    return cfg.vocab_size + (infilling.MARKS if cfg.objective == "infill" else 0)


def base(cfg: Any) -> ConfigDict:
    """The shape that a parametrisation compares with: the base's width and heads, this model's depth and the rest."""
    other = transformer.base(cfg)
    other.embed_dim = cfg.base_width if cfg.embed_dim == cfg.width else cfg.embed_dim
    finalize(other)
    return other


rung, units = transformer.rung, transformer.units
PUBLISHED = decoder_published.ROWS
WEIGHTS = decoder_published.WEIGHTS

RULES = (
    (r"embed/tokens$", ("vocab", "embed")),
    (r"embed/positions$", ("position", "embed")),
    (r"embed/relative_bias$", ("bucket", "heads")),
    (r"embed/project_in$", ("table", "embed")),
    (r"embed/project_out$", ("embed", "table")),
    *transformer.RULES,
    (r"^norm/(scale|bias)$", (None,)),
    (r"^head$", ("embed", "vocab")),
)


def footprint(cfg: Any) -> dict[str, Any]:
    """What a pod's layout estimates activations from."""
    return transformer.footprint(cfg, cfg.seq_len * rows(cfg), masked=cfg.objective in ("prefix", "infill"))


def spec(cfg: Any) -> dict[str, tuple[tuple[int, ...], str]]:
    """One example: seq_len inputs and, one to the right, their targets."""
    return {"tokens": ((cfg.seq_len + 1,), "int32")}


def inputs(cfg: Any, batch: Any) -> tuple[jax.Array]:
    """What Model.__call__ takes of a batch."""
    return (batch["tokens"][:, :-1],)


def likelihood(cfg: Any) -> range:
    """The places of a window's tokens that are predicted, each given those before it: bits per byte follow from it."""
    return range(1, cfg.seq_len + 1) if cfg.objective == "causal" else range(0)


def flops(cfg: Any) -> float:
    """Forward FLOPs of one example of seq_len tokens: 2 per multiply-add of every matrix product.

    Per layer 2L(2DHK + 2DGK) projections, 4L^2HK scores and values (all L^2 of them: what a dense
    causal mask executes), 2LDF per ffn matrix; 2LEV for the head, and 4LDE more where the table's E isn't
    D. Relative positions score once more, 2L^2HK; projecting their L encodings is left out, since a whole
    batch shares it. Lookups, norms and softmax are left out, as by nanoGPT and, but for the softmax and a
    lookup counted as a product, by Hoffmann et al. 2022 (arXiv:2203.15556, appendix F).
    """
    L, D, E, V = cfg.seq_len, cfg.width, cfg.embed_dim, rows(cfg)
    layer = transformer.flops(cfg, L, L) + transformer.ffn_flops(cfg, L)
    if cfg.position == "relative":
        layer += 2.0 * L * L * cfg.num_heads * cfg.head_dim
    return float(cfg.depth * layer + 2 * L * E * V + (4 * L * D * E if E != D else 0))


class Embed(nn.Module):
    cfg: Any

    def setup(self) -> None:
        cfg = self.cfg
        std = cfg.init_std or 0.02  # a table has no fan-in
        self.tokens = self.param("tokens", nn.initializers.normal(std), (rows(cfg), cfg.embed_dim))
        if cfg.position == "learned":
            places = cfg.seq_len + cfg.position_offset
            self.positions = self.param("positions", nn.initializers.normal(std / 2), (places, cfg.width))
        if cfg.position == "relative_bias":
            shape = (positions.BUCKETS, cfg.num_heads)
            self.relative_bias = self.param("relative_bias", nn.initializers.normal(std), shape)
        if cfg.embed_dim != cfg.width:
            E, D = cfg.embed_dim, cfg.width
            self.project_in = self.param("project_in", layers.normal(cfg.init_std, E), (E, D))
            self.project_out = self.param("project_out", layers.normal(cfg.init_std, D), (D, E))

    def __call__(self, tokens_BL: jax.Array, view: View) -> jax.Array:
        cfg = self.cfg
        x_BLD = products.lookup(self.tokens, tokens_BL, cfg.dtype)
        if cfg.embed_dim != cfg.width:
            x_BLD = x_BLD @ self.project_in
        if cfg.position == "learned" and view.positions_BL is not None:
            x_BLD = x_BLD + self.positions[cfg.position_offset + view.positions_BL]
        elif cfg.position == "learned":
            length = tokens_BL.shape[1]
            x_BLD = x_BLD + jax.lax.dynamic_slice_in_dim(self.positions, cfg.position_offset + view.start, length)
        return x_BLD

    def narrow(self, x_BLD: jax.Array) -> jax.Array:
        """What the head reads: BLE, E the table's dimension."""
        return x_BLD if self.cfg.embed_dim == self.cfg.width else x_BLD @ self.project_out.astype(x_BLD.dtype)

    def attend(self, x_BLE: jax.Array) -> jax.Array:
        scale = layers.tied_scale(self.cfg)
        return layers.linear(x_BLE if scale == 1 else x_BLE * scale, self.tokens.T)


class Model(nn.Module):
    cfg: Any  # frozen `model` section, finalised

    def setup(self) -> None:
        cfg = self.cfg
        self.embed = Embed(cfg)
        self.blocks = transformer.blocks(cfg, cfg.depth)
        if cfg.final_norm:
            self.norm = layers.Norm(cfg.norm, cfg.bias, cfg.norm_eps)
        if not cfg.tied_head:
            self.head = self.param("head", layers.normal(cfg.init_std, cfg.embed_dim), (cfg.embed_dim, rows(cfg)))

    def __call__(
        self,
        tokens_BL: jax.Array,
        train: bool = False,
        prefix_B: jax.Array | None = None,
        positions_BL: jax.Array | None = None,
        rows_B: jax.Array | None = None,
        whole: bool = True,
    ) -> Any:
        """Logits BLV for the token after each; with `whole` False, what they are made of: (BLE, matrix VE, bias None).

        Of the first prefix_B tokens, each sees all. Positions: 0, 1, ... or as given. Rows: see `View`.
        """
        view = View(0, prefix_B=prefix_B, positions_BL=positions_BL, rows_B=rows_B)
        x_BLE = self._forward(tokens_BL, None, view, train)[0]
        if whole:
            return self.logits(x_BLE)
        if self.cfg.tied_head:
            return x_BLE * layers.tied_scale(self.cfg), self.embed.tokens, None
        return x_BLE, self.head.T, None

    def step(self, tokens_BL: jax.Array, cache: Any, last: bool = False) -> tuple[jax.Array, Any]:
        """Appends tokens to `cache` (see `init_cache`): (logits BLV, the longer cache); `last`: of the last place, B1V.

        Under the objective `prefix`, what is appended to an empty cache (whose length is the integer 0) is the prefix.
        """
        B, L = tokens_BL.shape
        start, pad_B, size = cache["length"], cache["pad"], cache["layers"]["key"].shape[-2]
        is_prefix = self.cfg.objective == "prefix" and isinstance(start, int)
        view = View(
            start,
            prefix_B=jnp.full(B, L) if is_prefix else None,
            positions_BL=jnp.maximum(start + jnp.arange(L) - pad_B[:, None], 0),
            keys_BS=jnp.arange(size) >= pad_B[:, None],
        )
        x_BLE, layers_cache = self._forward(tokens_BL, cache["layers"], view, False)
        logits = self.logits(x_BLE[:, -1:] if last else x_BLE)
        return logits, {"layers": layers_cache, "pad": pad_B, "length": start + L}

    def _forward(self, tokens_BL: jax.Array, cache: Any, view: View, train: bool) -> tuple[jax.Array, Any]:
        x_BLD = self.embed(tokens_BL, view).astype(self.cfg.dtype)
        if self.cfg.position == "relative_bias":
            size = tokens_BL.shape[1] if cache is None else cache["key"].shape[-2]
            bias_HLS = positions.relative_bias(self.embed.relative_bias, tokens_BL.shape[1], size, view.start)
            view = view.replace(bias_HLS=bias_HLS)
        x_BLD, cache = self.blocks(x_BLD, cache, view, train)
        if self.cfg.final_norm:
            x_BLD = self.norm(x_BLD)
        return self.embed.narrow(x_BLD), cache

    def logits(self, x_BLE: jax.Array) -> jax.Array:
        logits_BLV = self.embed.attend(x_BLE) if self.cfg.tied_head else layers.linear(x_BLE, self.head)
        return sharding.constrain(logits_BLV, "batch", "length", "vocab")


def init_cache(cfg: Any, batch_size: int, size: int = 0) -> dict[str, Any]:
    """Empty key/value cache of `size` positions (0: seq_len): {'layers': {'key', 'value'} NBGSK, 'length' (), 'pad' B}.

    pad: how many places before a row's first token hold nothing, so that rows of several lengths end together.
    """
    layers_cache = transformer.empty(cfg, cfg.depth, batch_size, size or cfg.seq_len)
    return {"layers": layers_cache, "length": jnp.zeros((), jnp.int32), "pad": jnp.zeros(batch_size, jnp.int32)}


def loss(model: Model, variables: Any, batch: Any, rng: jax.Array, train: bool) -> tuple[jax.Array, Any]:
    """Next-token cross entropy in nats per token; with the objective `prefix`, of the tokens after the prefix; with
    `infill`, of what blanks held and of where it ends.

    A prefix's length is uniform in 1 .. L - 1; it and blanks are drawn from `rng` and the example's row. Of a causal
    model only the targets count that a batch's `counts` BL, of conversations, has a 1 for.
    """
    cfg, rows_B = model.cfg, layers.rows_of(batch)
    tokens, targets = batch["tokens"][:, :-1], batch["tokens"][:, 1:]
    L = tokens.shape[1]
    weight, prefix_B, places_BL = batch["weight"], None, None
    rng_dropout, rng = jax.random.split(rng) if cfg.objective != "causal" else (rng, rng)
    if cfg.objective == "prefix":
        prefix_B = jax.vmap(lambda key: jax.random.randint(key, (), 1, L))(layers.example_keys(rng, rows_B))
        # Token i's target is token i + 1: the prefix's last token already predicts the first one after it.
        weight = weight[:, None] * (jnp.arange(L)[None, :] >= prefix_B[:, None] - 1)
    elif cfg.objective == "infill":
        tokens, targets, counts, prefix_B, places_BL = infilling.infill(
            tokens, cfg.vocab_size, layers.example_keys(rng, rows_B)
        )
        weight = weight[:, None] * counts
    if "counts" in batch:
        if cfg.objective != "causal":
            raise UsageError(f"config.model.objective={cfg.objective!r}: conversations are learnt with causal alone")
        weight = weight[:, None] * batch["counts"]
    given = (tokens, train, prefix_B, places_BL, rows_B)

    def read(whole: bool) -> tuple[Any, None]:
        return model.apply(variables, *given, whole, rngs={"dropout": rng_dropout}), None

    scalar, metrics, _ = losses.of_vocabulary(read, targets, weight, rows(cfg), z_loss=cfg.z_loss)
    return scalar, (metrics, {})
