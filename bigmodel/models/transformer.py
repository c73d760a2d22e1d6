"""What the families made of Transformer blocks share: options, their checks, the base shape, the block, its rules.

B batch, L length, D width, H heads, K head dim.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import ad_checkpoint
from ml_collections import ConfigDict

from bigmodel.errors import UsageError, check_ranges, choose
from bigmodel.models import layers
from bigmodel.models.attention import Attention
from bigmodel.ops import remat, sharding
from bigmodel.ops.attention import View


def get_config() -> dict[str, Any]:
    """A block's options, GPT-2's. Zeros mean: follow from the others, as `finalize` says."""
    return dict(
        width=768,
        depth=12,
        num_heads=12,
        num_kv_heads=0,  # 0: num_heads; fewer: grouped queries
        head_dim=0,  # 0: width / num_heads
        value_dim=0,  # of a head's values; 0: head_dim
        ffn=0,  # 0: 4 * width
        activation="gelu_tanh",  # or gelu, relu, silu, swiglu, geglu
        norm="layernorm",  # or rmsnorm
        norm_placement="pre",  # or post, deepnorm
        norm_eps=1e-5,
        rope_base=10_000.0,  # where position is rope
        qk_norm=False,
        score_scale=0.0,  # of attention's scores; 0: 1 / sqrt(head_dim)
        bias=True,
        attention_bias=True,  # of attention's projections, where the others have biases
        dropout=0.0,
        init_std=0.02,  # 0: 1 / sqrt(fan_in)
        scale_residual=True,  # residual projections start 1/sqrt(2 depth) smaller (GPT-2)
        parametrization="standard",  # or mup, completep, ntk, mean_field, standard_layerwise
        base_width=0,  # whose hyper-parameters these are (parametrize.py); 0: width
        base_depth=0,  # 0: depth
        base_num_heads=0,  # 0: num_heads
        dtype="float32",  # compute; parameters are float32
        execution="auto",  # scan over depth, unrolled, or auto (remat.unrolls)
    )


def finalize(cfg: ConfigDict, positive: tuple[str, ...] = (), zero_or_more: tuple[str, ...] = ()) -> None:
    """Fills what follows from other keys, and refuses what can't be built; also of the family's own keys."""
    positive = ("width", "depth", "num_heads", *positive)
    derived = ("base_width", "base_depth", "base_num_heads", "num_kv_heads", "head_dim", "value_dim", "ffn")
    zero_or_more = (*derived, "score_scale", "init_std", *zero_or_more)
    at_least = {**dict.fromkeys(positive, "[1, inf)"), **dict.fromkeys(zero_or_more, "[0, inf)")}
    check_ranges("config.model.", cfg, norm_eps="(0, inf)", rope_base="(0, inf)", dropout="[0, 1)", **at_least)
    choose("config.model.activation", cfg.activation, [*layers.ACTIVATIONS, *layers.GATED])
    choose("config.model.norm", cfg.norm, ["layernorm", "rmsnorm"])
    choose("config.model.norm_placement", cfg.norm_placement, ["pre", "post", "deepnorm"])
    choose("config.model.dtype", cfg.dtype, ["float32", "bfloat16"])
    choose("config.model.execution", cfg.execution, ["auto", "scan", "unrolled"])
    if not cfg.head_dim:
        if cfg.width % cfg.num_heads:
            raise UsageError(
                f"config.model.num_heads={cfg.num_heads} doesn't divide width={cfg.width}; "
                "choose another, or set head_dim"
            )
        cfg.head_dim = cfg.width // cfg.num_heads
    cfg.value_dim = cfg.value_dim or cfg.head_dim
    cfg.num_kv_heads = cfg.num_kv_heads or cfg.num_heads
    if cfg.num_heads % cfg.num_kv_heads:
        raise UsageError(f"config.model.num_kv_heads={cfg.num_kv_heads} doesn't divide num_heads={cfg.num_heads}")
    if cfg.position == "rope" and cfg.head_dim % 2:
        raise UsageError(f"config.model.head_dim={cfg.head_dim}: rope needs an even one")
    if cfg.position in ("relative", "sinusoidal") and cfg.width % 2:
        raise UsageError(f"config.model.width={cfg.width}: {cfg.position} positions need an even one")
    cfg.ffn = cfg.ffn or 4 * cfg.width
    cfg.base_width = cfg.base_width or cfg.width
    cfg.base_depth = cfg.base_depth or cfg.depth
    cfg.base_num_heads = cfg.base_num_heads or cfg.num_heads
    if cfg.base_width != cfg.width and cfg.base_width % cfg.base_num_heads:
        raise UsageError(f"config.model.base_num_heads={cfg.base_num_heads} doesn't divide base_width={cfg.base_width}")


def base(cfg: Any) -> ConfigDict:
    """The shape that a parametrisation compares with: the base's width and heads, this model's depth and the rest."""
    other = ConfigDict(cfg.to_dict())
    other.update(
        dict(
            width=cfg.base_width,
            num_heads=cfg.base_num_heads,
            num_kv_heads=max(1, cfg.num_kv_heads * cfg.base_num_heads // cfg.num_heads),
            head_dim=layers.base_head_dim(cfg),
            value_dim=max(1, cfg.value_dim * layers.base_head_dim(cfg) // cfg.head_dim),
            ffn=max(1, cfg.ffn * cfg.base_width // cfg.width),
        )
    )
    return other


def rung(width: int, depth: int) -> dict[str, Any]:
    """One ladder step: heads of 64, or 4 heads (2 below width 64) where the width is small; ffn = 4 width."""
    heads = width // 64 if width >= 256 else 4 if width >= 64 else 2
    while width % heads:
        heads -= 1
    return {"model.width": width, "model.depth": depth, "model.num_heads": heads}


RULES = (
    (r"attention/(query|key|value|relative)$", ("depth", "embed", "heads", "head_dim")),
    (r"attention/(query|key|value)_bias$", ("depth", "heads", "head_dim")),
    (r"attention/(query|key)_norm/scale$", ("depth", None)),
    (r"attention/out$", ("depth", "heads", "head_dim", "embed")),
    (r"mlp/(up|gate)$", ("depth", "embed", "ffn")),
    (r"mlp/(up|gate)_bias$", ("depth", "ffn")),
    (r"mlp/down$", ("depth", "ffn", "embed")),
    (r"(out|down)_bias$", ("depth", None)),
    (r"/norm_\w+/(scale|bias)$", ("depth", None)),
)


def units(cfg: Any) -> int:
    """Tokens of one example."""
    return int(cfg.seq_len)


# Numbers per token and unit of width that a block keeps for its backward pass beside its input: what XLA was observed
# to keep of GPT-3's block (docs/pods.md), where a hand-written program needs 17 (Korthikanti et al., table 2, 34
# bytes). Heads narrower than 128 are stored as if they had 128.
KEPT = {"none": 50.0, "dots": 13.0}
BLOCK = 17 * 1.5  # of the block that is computed again, and its gradients
# Copies of a block's scores where they are made whole: XLA holds 3.7 to 3.9 of Gopher-44M's (docs/pods.md), and fewer
# of T5's, whose bias is no product. A mask that is no triangle is applied to them whole as well: taken as T5's.
SCORES = {"relative": 3.8, "relative_bias": 1.9}
MASKED = 1.9


def footprint(
    cfg: Any, logits: float, parts: Sequence[tuple[int, int, float]] = (), masked: bool = False
) -> dict[str, Any]:
    """What a pod's layout (`pods.layout.estimate`) estimates activations from.

    Args:
      logits: numbers of an example's scores.
      parts: (layers, length, size in plain blocks) of each stack; (): one of plain blocks.
      masked: whether attention has a mask that is no triangle, as a prefix's.
    """
    parts = parts or ((cfg.depth, cfg.seq_len, 1.0),)
    D, longest = cfg.width, max(L for _, L, _ in parts)
    copies = SCORES[cfg.position] if cfg.position in SCORES else MASKED * masked
    scores = copies * cfg.num_heads * longest**2
    return {
        "itemsize": 2 if cfg.dtype == "bfloat16" else 4,
        "layers": sum(n for n, _, _ in parts),
        "entering": sum(n * L * D for n, L, _ in parts),
        "kept": {how: sum(size * n * L * D for n, L, size in parts) * each for how, each in KEPT.items()},
        "block": BLOCK * max(size * L for _, L, size in parts) * D + scores,
        "ends": 2 * sum(L for _, L, _ in parts) * D,
        "logits": logits,
        "heads": cfg.num_kv_heads,
        "length": math.gcd(*(L for _, L, _ in parts)),
    }


def flops(cfg: Any, queries: int, keys: int) -> float:
    """Forward FLOPs of one layer's attention: 2 per multiply-add of `queries` positions that read `keys` ones.

    E is the dimension of values: 2 (LDH + SDG)(K + E) projections, 2LSH(K + E) scores and values (all LS of them, as a
    dense mask executes).
    """
    L, S, D, H, G, K = queries, keys, cfg.width, cfg.num_heads, cfg.num_kv_heads, cfg.head_dim + cfg.value_dim
    return 2.0 * (L * D * H + S * D * G) * K + 2.0 * L * S * H * K


def ffn_flops(cfg: Any, length: int) -> float:
    """Of one layer's feed-forward part: 2LDF a matrix."""
    return 2.0 * length * cfg.width * cfg.ffn * (3 if cfg.activation in layers.GATED else 2)


class Block(nn.Module):
    """Attention and a feed-forward layer, each on a residual branch; between them, `cross`, attention to a memory."""

    cfg: Any
    cross: bool = False
    drops: bool = False
    patterns: bool = False

    @nn.compact
    def __call__(self, x_BLD: jax.Array, cache: Any, view: View, train: bool) -> tuple[jax.Array, Any]:
        """`cache`: of this layer; with `drops`, the layer's rate of stochastic depth in its place; with `patterns`,
        (which of `view.seen_LS`, then KLS, the layer's is, cache)."""
        cfg = self.cfg
        drop, cache = (cache, None) if self.drops else (None, cache)
        if self.patterns:
            (pattern, cache), seen_KLS = cache, view.seen_LS
            assert seen_KLS is not None
            view = view.replace(seen_LS=seen_KLS[pattern])
        alpha = (2 * cfg.depth) ** 0.5 if cfg.norm_placement == "deepnorm" else 1.0  # GLM-130B, section 2.1
        scale = layers.branch_scale(cfg)

        def branch(name: str, x_BLD: jax.Array, layer: Any) -> tuple[jax.Array, Any]:
            norm = layers.Norm(cfg.norm, cfg.bias, cfg.norm_eps, name=f"norm_{name}")
            y_BLD, out = layer(norm(x_BLD) if cfg.norm_placement == "pre" else x_BLD)
            y_BLD = sharding.constrain(y_BLD, "batch", "residual", None)
            y_BLD = y_BLD * scale if scale != 1 else y_BLD
            if cfg.dropout:
                y_BLD = layers.Dropout(cfg.dropout)(y_BLD, view.rows_B, train)
            if drop is not None:
                y_BLD = layers.DropPath()(y_BLD, drop, view.rows_B, train)
            return (x_BLD + y_BLD if cfg.norm_placement == "pre" else norm(alpha * x_BLD + y_BLD)), out

        x_BLD = ad_checkpoint.checkpoint_name(sharding.constrain(x_BLD, "batch", "residual", None), remat.RESIDUAL)
        own, memory = (cache["own"], cache["memory"]) if self.cross and cache is not None else (cache, None)
        attention = Attention(cfg, name="attention")
        x_BLD, own = branch("attention", x_BLD, lambda x: attention(x, own, view))
        if self.cross:
            reads = Attention(cfg, cross=True, name="cross_attention")
            x_BLD, memory = branch("cross", x_BLD, lambda x: reads(x, memory, view))
        x_BLD, _ = branch("mlp", x_BLD, lambda x: (layers.FeedForward(cfg, name="mlp")(x), None))
        return x_BLD, {"own": own, "memory": memory} if self.cross and cache is not None else own


def empty(cfg: Any, depth: int, batch_size: int, size: int) -> dict[str, jax.Array]:
    """Keys and values of `size` positions for every layer, zeros: {'key': NBGSK, 'value': NBGSE}."""
    shape = (depth, batch_size, cfg.num_kv_heads, size)
    dims = {"key": cfg.head_dim, "value": cfg.value_dim}
    return {name: jnp.zeros((*shape, dim), cfg.dtype) for name, dim in dims.items()}


def blocks(
    cfg: Any, depth: int, cross: bool = False, drops: bool = False, patterns: bool = False, name: str | None = None
) -> Any:
    """`depth` blocks, called as blocks(x_BLD, cache, view, train): unrolled where that is worth compiling."""
    scan = cfg.execution == "scan" or (cfg.execution == "auto" and not remat.unrolls(depth))
    return layers.stack(Block, depth, scan)(cfg, cross, drops, patterns, name=name)
