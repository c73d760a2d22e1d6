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

from bigmodel import sharding
from bigmodel.config import UsageError, choose
from bigmodel.models import layers, losses


def get_config() -> ConfigDict:
    """GPT-2's block. Zeros mean: follow from the others, as `finalize` says."""
    return ConfigDict(
        dict(
            width=768,
            depth=12,
            num_heads=12,
            num_kv_heads=0,  # 0: num_heads; fewer: grouped queries
            head_dim=0,  # 0: width / num_heads
            ffn=0,  # 0: 4 * width
            vocab_size=50257,  # from the data where there is some
            seq_len=1024,  # from the data where there is some
            activation="gelu_tanh",  # or gelu, relu, silu, swiglu, geglu
            norm="layernorm",  # or rmsnorm
            norm_placement="pre",  # or post
            position="learned",  # or rope, relative (Transformer-XL's), none
            position_offset=0,  # rows of the learned table before the first position's (OPT: 2)
            rope_base=10_000.0,
            qk_norm=False,
            bias=True,
            tied_head=True,
            embed_dim=0,  # of the token table; 0: width; another: projected in and out (OPT-350M)
            dropout=0.0,
            init_std=0.02,  # 0: 1 / sqrt(fan_in)
            scale_residual=True,  # residual projections start 1/sqrt(2 depth) smaller (GPT-2)
            z_loss=0.0,
            parametrization="standard",  # or mup, completep, ntk, mean_field, standard_layerwise
            base_width=0,  # whose hyper-parameters these are (parametrize.py); 0: width
            base_depth=0,  # 0: depth
            base_num_heads=0,  # 0: num_heads
            dtype="float32",  # compute; parameters are float32
            execution="auto",  # scan over depth, unrolled, or auto: unrolled up to AUTO_UNROLL layers
            remat=False,
        )
    )


AUTO_UNROLL = 8  # benchmarks/scan_or_unroll.py: unrolled steps are faster; scan compiles faster past this


def finalize(cfg: ConfigDict) -> None:
    """Fills what follows from other keys, and refuses what can't be built."""
    for key in ("width", "depth", "num_heads", "vocab_size", "seq_len"):
        if cfg[key] < 1:
            raise UsageError(f"config.model.{key}={cfg[key]}: must be at least 1")
    for key in (
        "base_width",
        "base_depth",
        "base_num_heads",
        "num_kv_heads",
        "head_dim",
        "ffn",
        "embed_dim",
        "position_offset",
        "init_std",
        "z_loss",
    ):
        if cfg[key] < 0:
            raise UsageError(f"config.model.{key}={cfg[key]}: must not be negative (0: derived)")
    choose("config.model.activation", cfg.activation, [*layers.ACTIVATIONS, *layers.GATED])
    choose("config.model.norm", cfg.norm, ["layernorm", "rmsnorm"])
    choose("config.model.norm_placement", cfg.norm_placement, ["pre", "post"])
    choose("config.model.position", cfg.position, ["learned", "rope", "relative", "none"])
    choose("config.model.parametrization", cfg.parametrization, layers.PARAMETRIZATIONS)
    choose("config.model.dtype", cfg.dtype, ["float32", "bfloat16"])
    choose("config.model.execution", cfg.execution, ["auto", "scan", "unrolled"])
    if not cfg.head_dim:
        if cfg.width % cfg.num_heads:
            raise UsageError(
                f"config.model.num_heads={cfg.num_heads} doesn't divide width={cfg.width}; "
                "choose another, or set head_dim"
            )
        cfg.head_dim = cfg.width // cfg.num_heads
    cfg.num_kv_heads = cfg.num_kv_heads or cfg.num_heads
    if cfg.num_heads % cfg.num_kv_heads:
        raise UsageError(f"config.model.num_kv_heads={cfg.num_kv_heads} doesn't divide num_heads={cfg.num_heads}")
    if cfg.position == "rope" and cfg.head_dim % 2:
        raise UsageError(f"config.model.head_dim={cfg.head_dim}: rope needs an even one")
    if cfg.position == "relative" and cfg.width % 2:
        raise UsageError(f"config.model.width={cfg.width}: relative positions need an even one")
    if cfg.position_offset and cfg.position != "learned":
        raise UsageError(f"config.model.position_offset={cfg.position_offset}: only learned positions have a table")
    if not 0 <= cfg.dropout < 1:
        raise UsageError(f"config.model.dropout={cfg.dropout}: must be in [0, 1)")
    cfg.ffn = cfg.ffn or 4 * cfg.width
    cfg.embed_dim = cfg.embed_dim or cfg.width
    cfg.base_width = cfg.base_width or cfg.width
    cfg.base_depth = cfg.base_depth or cfg.depth
    cfg.base_num_heads = cfg.base_num_heads or cfg.num_heads
    if cfg.base_width % cfg.base_num_heads:
        raise UsageError(f"config.model.base_num_heads={cfg.base_num_heads} doesn't divide base_width={cfg.base_width}")


def base(cfg: Any) -> ConfigDict:
    """The shape that a parametrisation compares with: the base's width and heads, this model's depth and the rest."""
    other = ConfigDict(cfg.to_dict())
    other.update(
        dict(
            width=cfg.base_width,
            num_heads=cfg.base_num_heads,
            num_kv_heads=max(1, cfg.num_kv_heads * cfg.base_num_heads // cfg.num_heads),
            head_dim=0,
            ffn=max(1, cfg.ffn * cfg.base_width // cfg.width),
            embed_dim=cfg.base_width if cfg.embed_dim == cfg.width else cfg.embed_dim,
        )
    )
    finalize(other)
    return other


def rung(width: int, depth: int) -> dict[str, Any]:
    """One ladder step: heads of 64, or 4 heads (2 below width 64) where the width is small; ffn = 4 width."""
    heads = width // 64 if width >= 256 else 4 if width >= 64 else 2
    while width % heads:
        heads -= 1
    return {"model.width": width, "model.depth": depth, "model.num_heads": heads}


def _gpt2(depth: int, width: int, num_heads: int, total: int) -> dict[str, Any]:
    return dict(
        source="Radford et al. 2019; counts: github.com/openai/gpt-2 model card and published weights",
        params=total,
        model=dict(depth=depth, width=width, num_heads=num_heads, vocab_size=50257, seq_len=1024),
    )


def _gpt3(printed: str, depth: int, width: int, num_heads: int, head_dim: int) -> dict[str, Any]:
    return dict(
        source="Brown et al. 2020, arXiv:2005.14165, Table 2.1",
        printed=printed,
        model=dict(depth=depth, width=width, num_heads=num_heads, head_dim=head_dim, vocab_size=50257, seq_len=2048),
    )


def _opt(depth: int, width: int, num_heads: int, total: int, **shape: Any) -> dict[str, Any]:
    """OPT's context is 2048; its table of positions has two rows more, which a padding symbol once needed."""
    return dict(
        source="Zhang et al. 2022, arXiv:2205.01068, Table 1; shapes: github.com/facebookresearch/metaseq",
        params=total,
        model=dict(
            depth=depth, width=width, num_heads=num_heads, vocab_size=50272, seq_len=2048,
            position_offset=2, activation="relu", **shape,
        ),
    )  # fmt: skip


def _gopher(printed: str, source: str, depth: int, width: int, num_heads: int, head_dim: int) -> dict[str, Any]:
    """Relative positions and RMSNorm, no biases; one table of 32,000 (Rae et al. 2021; Hoffmann et al. 2022)."""
    return dict(
        source=source,
        printed=printed,
        model=dict(
            depth=depth, width=width, num_heads=num_heads, head_dim=head_dim, vocab_size=32000, seq_len=2048,
            position="relative", norm="rmsnorm", bias=False,
        ),
    )  # fmt: skip


# GPT-3 XL prints 24 heads of 128 at width 2048 and 13B prints 40 of 128 at width 5140: neither product is
# the width. XL is built with heads of 128 that fill the width (24 would make it 1.5B); 13B as printed.
PUBLISHED: dict[str, dict[str, Any]] = {
    "gpt2": _gpt2(12, 768, 12, 124_439_808),
    "gpt2-medium": _gpt2(24, 1024, 16, 354_823_168),
    "gpt2-large": _gpt2(36, 1280, 20, 774_030_080),
    "gpt2-xl": _gpt2(48, 1600, 25, 1_557_611_200),
    "gpt3-125m": _gpt3("125M", 12, 768, 12, 64),
    "gpt3-350m": _gpt3("350M", 24, 1024, 16, 64),
    "gpt3-760m": _gpt3("760M", 24, 1536, 16, 96),
    "gpt3-1.3b": _gpt3("1.3B", 24, 2048, 16, 128),
    "gpt3-2.7b": _gpt3("2.7B", 32, 2560, 32, 80),
    "gpt3-6.7b": _gpt3("6.7B", 32, 4096, 32, 128),
    "gpt3-13b": _gpt3("13.0B", 40, 5140, 40, 128),
    "gpt3-175b": _gpt3("175.0B", 96, 12288, 96, 128),
    "opt-125m": _opt(12, 768, 12, 125_239_296),
    "opt-350m": _opt(24, 1024, 16, 331_196_416, embed_dim=512, norm_placement="post"),
    "opt-1.3b": _opt(24, 2048, 32, 1_315_758_080),
    "opt-2.7b": _opt(32, 2560, 32, 2_651_596_800),
    "opt-6.7b": _opt(32, 4096, 32, 6_658_473_984),
    "opt-13b": _opt(40, 5120, 40, 12_853_473_280),
    "opt-30b": _opt(48, 7168, 56, 29_974_540_288),
    "opt-66b": _opt(64, 9216, 72, 65_719_701_504),
    "opt-175b": _opt(96, 12288, 96, 174_604_468_224),
    "gopher-280b": _gopher("280B", "Rae et al. 2021, arXiv:2112.11446, Table 1", 80, 16384, 128, 128),
    "chinchilla-70b": _gopher("70B", "Hoffmann et al. 2022, arXiv:2203.15556, Table 4", 80, 8192, 64, 128),
}

WEIGHTS: dict[str, str] = {}

RULES = (
    (r"embed/tokens$", ("vocab", "embed")),
    (r"embed/positions$", (None, "embed")),
    (r"embed/project_in$", (None, "embed")),
    (r"embed/project_out$", ("embed", None)),
    (r"attention/(query|key|value|relative)$", (None, "embed", "heads", None)),
    (r"attention/(query|key|value)_bias$", (None, "heads", None)),
    (r"attention/(query|key)_norm/scale$", (None, None)),
    (r"attention/out$", (None, "heads", None, "embed")),
    (r"mlp/(up|gate)$", (None, "embed", "ffn")),
    (r"mlp/(up|gate)_bias$", (None, "ffn")),
    (r"mlp/down$", (None, "ffn", "embed")),
    (r"(out|down)_bias$", (None, None)),
    (r"blocks/norm\w+/(scale|bias)$", (None, None)),
    (r"^norm/(scale|bias)$", (None,)),
    (r"^head$", ("embed", "vocab")),
)


def spec(cfg: Any) -> dict[str, tuple[tuple[int, ...], str]]:
    """One example: seq_len inputs and, one to the right, their targets."""
    return {"tokens": ((cfg.seq_len + 1,), "int32")}


def inputs(batch: Any) -> tuple[jax.Array]:
    """What Model.__call__ takes of a batch."""
    return (batch["tokens"][:, :-1],)


def flops(cfg: Any) -> float:
    """Forward FLOPs of one example of seq_len tokens: 2 per multiply-add of every matrix product.

    Per layer 2L(2DHK + 2DGK) projections, 4L^2HK scores and values (all L^2 of them: what a dense
    causal mask executes), 2LDF per ffn matrix; 2LEV for the head, and 4LDE more where the table's E isn't
    D. Relative positions score once more, 2L^2HK; projecting their L encodings is left out, since a whole
    batch shares it. Lookups, norms and softmax are left out, as by nanoGPT and, but for the softmax and a
    lookup counted as a product, by Hoffmann et al. 2022 (arXiv:2203.15556, appendix F).
    """
    L, D, H, G, K, F = cfg.seq_len, cfg.width, cfg.num_heads, cfg.num_kv_heads, cfg.head_dim, cfg.ffn
    E, V = cfg.embed_dim, cfg.vocab_size
    matrices = 3 if cfg.activation in layers.GATED else 2
    scores = 3 if cfg.position == "relative" else 2
    layer = 2 * L * (2 * D * H * K + 2 * D * G * K) + scores * 2 * L * L * H * K + 2 * L * D * F * matrices
    return float(cfg.depth * layer + 2 * L * E * V + (4 * L * D * E if E != D else 0))


class Block(nn.Module):
    cfg: Any

    @nn.compact
    def __call__(self, x_BLD: jax.Array, cache: Any, start: Any, train: bool) -> tuple[jax.Array, Any]:
        cfg = self.cfg

        def norm(name: str) -> layers.Norm:
            return layers.Norm(cfg.norm, cfg.bias, name=name)

        def drop(y: jax.Array) -> jax.Array:
            y = y * layers.branch_scale(cfg) if cfg.parametrization == "completep" else y
            return nn.Dropout(cfg.dropout, deterministic=not train)(y) if cfg.dropout else y

        x_BLD = sharding.constrain(x_BLD, "batch", None, None)
        if cfg.norm_placement == "pre":
            y_BLD, cache = layers.Attention(cfg, name="attention")(norm("norm_attention")(x_BLD), cache, start)
            x_BLD = x_BLD + drop(y_BLD)
            x_BLD = x_BLD + drop(layers.FeedForward(cfg, name="mlp")(norm("norm_mlp")(x_BLD)))
        else:
            y_BLD, cache = layers.Attention(cfg, name="attention")(x_BLD, cache, start)
            x_BLD = norm("norm_attention")(x_BLD + drop(y_BLD))
            x_BLD = norm("norm_mlp")(x_BLD + drop(layers.FeedForward(cfg, name="mlp")(x_BLD)))
        return x_BLD, cache


class Embed(nn.Module):
    cfg: Any

    def setup(self) -> None:
        cfg = self.cfg
        std = cfg.init_std or 0.02  # a table has no fan-in
        self.tokens = self.param("tokens", nn.initializers.normal(std), (cfg.vocab_size, cfg.embed_dim))
        if cfg.position == "learned":
            rows = cfg.seq_len + cfg.position_offset
            self.positions = self.param("positions", nn.initializers.normal(std / 2), (rows, cfg.width))
        if cfg.embed_dim != cfg.width:
            E, D = cfg.embed_dim, cfg.width
            self.project_in = self.param("project_in", layers.normal(cfg.init_std, E), (E, D))
            self.project_out = self.param("project_out", layers.normal(cfg.init_std, D), (D, E))

    def __call__(self, tokens_BL: jax.Array, start: Any) -> jax.Array:
        cfg = self.cfg
        x_BLD = self.tokens[tokens_BL]
        if cfg.embed_dim != cfg.width:
            x_BLD = x_BLD @ self.project_in
        if cfg.position == "learned":
            length = tokens_BL.shape[1]
            x_BLD = x_BLD + jax.lax.dynamic_slice_in_dim(self.positions, cfg.position_offset + start, length)
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
        scan = cfg.execution == "scan" or (cfg.execution == "auto" and cfg.depth > AUTO_UNROLL)
        self.blocks = layers.stack(Block, cfg.depth, scan, cfg.remat)(cfg)
        if cfg.norm_placement == "pre":
            self.norm = layers.Norm(cfg.norm, cfg.bias)
        if not cfg.tied_head:
            self.head = self.param("head", layers.normal(cfg.init_std, cfg.embed_dim), (cfg.embed_dim, cfg.vocab_size))

    def __call__(self, tokens_BL: jax.Array, train: bool = False) -> jax.Array:
        """Logits BLV for the token after each."""
        return self._forward(tokens_BL, None, 0, train)[0]

    def step(self, tokens_BL: jax.Array, cache: Any) -> tuple[jax.Array, Any]:
        """Appends tokens to `cache` (see `init_cache`): (logits BLV, the longer cache)."""
        logits_BLV, layers_cache = self._forward(tokens_BL, cache["layers"], cache["length"], False)
        return logits_BLV, {"layers": layers_cache, "length": cache["length"] + tokens_BL.shape[1]}

    def _forward(self, tokens_BL: jax.Array, cache: Any, start: Any, train: bool) -> tuple[jax.Array, Any]:
        x_BLD = self.embed(tokens_BL, start).astype(self.cfg.dtype)
        x_BLD, cache = self.blocks(x_BLD, cache, start, train)
        if self.cfg.norm_placement == "pre":
            x_BLD = self.norm(x_BLD)
        x_BLE = self.embed.narrow(x_BLD)
        logits_BLV = self.embed.attend(x_BLE) if self.cfg.tied_head else layers.linear(x_BLE, self.head)
        return sharding.constrain(logits_BLV, "batch", None, "vocab"), cache


def init_cache(cfg: Any, batch_size: int) -> dict[str, Any]:
    """Empty key/value cache of seq_len positions: {'layers': {'key', 'value'} NBGSK, 'length': ()}."""
    shape = (cfg.depth, batch_size, cfg.num_kv_heads, cfg.seq_len, cfg.head_dim)
    empty = jnp.zeros(shape, cfg.dtype)
    return {"layers": {"key": empty, "value": empty}, "length": jnp.zeros((), jnp.int32)}


def loss(model: Model, variables: Any, batch: Any, rng: jax.Array, train: bool) -> tuple[jax.Array, Any]:
    """Next-token cross entropy in nats per token."""
    logits_BLV: Any = model.apply(variables, *inputs(batch), train, rngs={"dropout": rng})
    scalar, metrics = losses.cross_entropy(logits_BLV, batch["tokens"][:, 1:], batch["weight"], model.cfg.z_loss)
    return scalar, (metrics, {})
