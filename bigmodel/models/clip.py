"""Pictures and captions in one space (CLIP; Radford et al. 2021, arXiv:2103.00020), with the pairwise loss of SigLIP
(Zhai et al. 2023, arXiv:2303.15343) as an option.

The options of the text tower are the section's own; those of the tower of pictures are under `vision`.

B batch, H height, W width (of a picture or of what is left of it), C channels, L tokens, D width, E joint width.
"""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict, FrozenConfigDict

from bigmodel.errors import UsageError, check_ranges, choose
from bigmodel.models import classifier, conv, layers, losses, resnet, transformer, vit
from bigmodel.ops import sharding
from bigmodel.ops.attention import View
from bigmodel.ops.bounded import at_most

LARGEST = math.log(100)  # of the logarithm of the scale (Radford et al., section 2.5)


def get_config() -> ConfigDict:
    cfg = ConfigDict({k: v for k, v in classifier.get_config().items() if k not in ("num_classes", *_CLASSES)})
    cfg.update(
        transformer.get_config()
        | dict(
            vocab_size=49408,  # from the data where there is some, as the next
            seq_len=77,  # tokens of a caption, its end included
            width=512,
            num_heads=8,
            embed=512,  # width of the joint space
            activation="gelu_quick",  # of both towers
            init_std=0.0,
            objective="softmax",  # over the batch's pairs, both ways; or sigmoid: each pair is told by itself
            temperature=0.07,  # at the start; it is learned, and its inverse is at most 100
            grad_cache=0,  # pairs that the towers take at once, where a batch exceeds memory; 0: all
        )
    )
    cfg.position = "learned"
    cfg.vision = dict(
        tower="vit",  # or resnet: CLIP's, with a deep stem, pooled strides and attention in place of the last mean
        width=768,  # of a resnet: channels of its first stage
        depth=12,  # of a resnet: blocks in all
        num_heads=12,  # of a resnet: of the attention at its end
        patch=32,
        stages=(),  # blocks of each of a resnet's stages; (): as even as can be
    )
    return cfg


_CLASSES = ("smoothing", "mixup", "cutmix")


def finalize(cfg: ConfigDict) -> None:
    check_ranges("config.model.", cfg, temperature="[0.01, inf)", grad_cache="[0, inf)", embed="[1, inf)")
    choose("config.model.objective", cfg.objective, ["softmax", "sigmoid"])
    choose("config.model.vision.tower", cfg.vision.tower, ["vit", "resnet"])
    transformer.finalize(cfg, ("vocab_size", "seq_len"))
    if cfg.position != "learned" or cfg.norm_placement != "pre":
        raise UsageError("config.model: the towers have learned positions (position) and norms before (norm_placement)")
    if cfg.dropout:
        raise UsageError(f"config.model.dropout={cfg.dropout}: the towers have none")
    sizes = dict.fromkeys(("width", "depth", "num_heads"), "[1, inf)")
    check_ranges("config.model.vision.", cfg.vision, patch="[1, inf)", **sizes)
    try:
        tower(cfg)
    except UsageError as e:
        raise UsageError(str(e).replace("config.model.", "config.model.vision.")) from e
    if cfg.vision.tower == "resnet":
        cfg.vision.stages = tower(cfg).stages
        if cfg.grad_cache:
            raise UsageError(f"config.model.grad_cache={cfg.grad_cache}: batch normalisation reads the whole batch")
        if 32 * cfg.vision.width % cfg.vision.num_heads:
            raise UsageError(
                f"config.model.vision.num_heads={cfg.vision.num_heads} doesn't divide 32 x width={cfg.vision.width}"
            )


def tower(cfg: Any) -> Any:
    """The finalised section of the tower of pictures, as its family's."""
    vision, pixels = cfg.vision, ("image_height", "image_width", "channels", "pixel_mean", "pixel_std", "dtype")
    if vision.tower == "resnet":
        own = resnet.get_config()
        own.update(width=vision.width, depth=vision.depth, stages=tuple(vision.stages), block="bottleneck")
        own.update(stem="deep", pooled=True, zero_scale=True)
    else:
        own = vit.get_config()
        shared = ("activation", "norm", "norm_eps", "bias", "init_std", "parametrization", "base_depth", "execution")
        own.update({key: cfg[key] for key in shared}, width=vision.width, depth=vision.depth, patch=vision.patch)
        own.update(num_heads=vision.num_heads, base_width=max(1, vision.width * cfg.base_width // cfg.width))
        own.base_num_heads = max(1, vision.num_heads * cfg.base_num_heads // cfg.num_heads)
    own.update({key: cfg[key] for key in pixels})
    (resnet if vision.tower == "resnet" else vit).finalize(own)
    return FrozenConfigDict(own)


def base(cfg: Any) -> ConfigDict:
    """Both towers at their bases' widths; the joint space is as wide as it is."""
    other = transformer.base(cfg)
    if cfg.vision.tower == "resnet" and cfg.base_width != cfg.width:
        raise UsageError(
            f"config.model.parametrization={cfg.parametrization}: only of a tower of pictures that is a vit"
        )
    own = tower(cfg)
    if cfg.vision.tower == "vit":
        other.vision.update(width=own.base_width, num_heads=own.base_num_heads)
    return other


def rung(width: int, depth: int) -> dict[str, Any]:
    """Both towers of one width and depth."""
    found = transformer.rung(width, depth)
    return found | {key.replace("model.", "model.vision."): value for key, value in found.items()}


def _row(
    pictures: tuple[int, int, int], text: tuple[int, int], embed: int, params: int, vision: Any = None, **more: Any
) -> dict[str, Any]:
    (depth, width, patch), (text_depth, text_width) = pictures, text
    own = dict(width=width, depth=depth, num_heads=width // 64, patch=patch) | (vision or {})
    shape = dict(width=text_width, depth=text_depth, num_heads=text_width // 64, embed=embed, vision=own)
    return dict(params=params, model=shape | more, source="Radford et al. 2021, arXiv:2103.00020, tables 19 and 20")


_RN50 = dict(vision=dict(tower="resnet", num_heads=32, stages=(3, 4, 6, 3)))
_OPEN = "Cherti et al. 2022, arXiv:2212.07143; open_clip"
PUBLISHED: dict[str, dict[str, Any]] = {
    "clip-vit-b32": _row((12, 768, 32), (12, 512), 512, 151_277_313),
    "clip-vit-b16": _row((12, 768, 16), (12, 512), 512, 149_620_737),
    "clip-vit-l14": _row((24, 1024, 14), (12, 768), 768, 427_616_513),
    "clip-vit-l14-336": _row((24, 1024, 14), (12, 768), 768, 427_944_193, image_height=336, image_width=336),
    "clip-vit-h14": _row((32, 1280, 14), (24, 1024), 1024, 986_109_441, activation="gelu") | dict(source=_OPEN),
    "clip-rn50": _row((16, 64, 32), (12, 512), 1024, 102_007_137, **_RN50),
}


def _under(prefix: str, rules: Any) -> tuple[Any, ...]:
    """Rules for paths under `prefix`."""
    return tuple((f"^{prefix}/" + (p[1:] if p.startswith("^") else f".*{p}"), names) for p, names in rules)


RULES = (
    (r"^(scale|offset)$", ()),
    (r"^(vision|text)/projection$", ("embed", "output")),
    (r"^text/embed/table$", ("vocab", "embed")),
    (r"^text/embed/positions$", ("position", "embed")),
    (r"^text/norm/(scale|bias)$", (None,)),
    *_under("text", transformer.RULES),
    (r"^vision/pool/positions$", ("position", "embed")),
    (r"^vision/pool/read/(query|key|value)/kernel$", ("embed", "heads", "head_dim")),
    (r"^vision/pool/read/(query|key|value)/bias$", ("heads", "head_dim")),
    (r"^vision/pool/read/out/kernel$", ("heads", "head_dim", "output")),
    (r"^vision/pool/read/out/bias$", (None,)),
    (r"^vision/norm_first/(scale|bias)$", (None,)),
    *_under("vision/trunk", conv.RULES),
    *_under("vision", vit.RULES),
)


def spec(cfg: Any) -> dict[str, tuple[tuple[int, ...], str]]:
    image = classifier.spec(cfg)["image"]
    return {"image": image, "tokens": ((cfg.seq_len,), "int32"), "length": ((), "int32")}


def inputs(cfg: Any, batch: Any) -> tuple[jax.Array, ...]:
    return (*classifier.inputs(cfg, batch), batch["tokens"], batch["length"])


def decomposes(cfg: Any) -> bool:
    """Each pair is told from the others of its batch."""
    return False


def flops(cfg: Any) -> float:
    """Forward FLOPs of a pair: both towers and their projections, without the products of the batch's pairs."""
    L, D, own = cfg.seq_len, cfg.width, tower(cfg)
    text = cfg.depth * (transformer.flops(cfg, L, L) + transformer.ffn_flops(cfg, L)) + 2.0 * D * cfg.embed
    if cfg.vision.tower == "resnet":
        return text + conv.costs(Pictures, cfg)[0]
    return text + vit.flops(own) + 2.0 * own.width * (cfg.embed - own.num_classes)


def footprint(cfg: Any) -> dict[str, Any]:
    own = tower(cfg)
    text = transformer.footprint(cfg, 0, [(cfg.depth, cfg.seq_len, 1.0)])
    vision = conv.footprint(Pictures, cfg) if cfg.vision.tower == "resnet" else vit.footprint(own)
    both = {key: text[key] + vision[key] for key in ("layers", "entering", "ends")}
    kept = {key: text["kept"][key] + vision["kept"][key] for key in text["kept"]}
    heads, length = (math.gcd(text[key], vision[key]) for key in ("heads", "length"))
    block = max(text["block"], vision["block"])
    return text | both | {"kept": kept, "heads": heads, "length": length, "block": block, "logits": 2 * cfg.embed}


class AttentionPool(nn.Module):
    """The mean of all places, as a query, reads them and itself (Radford et al., section 2.4): BHWC -> BE."""

    cfg: Any

    @nn.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        B, H, W, C = x_BHWC.shape
        x_BLC = x_BHWC.reshape(B, H * W, C)
        x_BLC = jnp.concatenate([jnp.mean(x_BLC, axis=1, keepdims=True), x_BLC], axis=1)
        x_BLC = x_BLC + self.param("positions", layers.normal(0.0, C), (H * W + 1, C)).astype(x_BLC.dtype)
        start = layers.normal(0.0, C)
        read = nn.MultiHeadDotProductAttention(
            self.cfg.vision.num_heads, x_BHWC.dtype, qkv_features=C, out_features=self.cfg.embed, kernel_init=start,
            name="read",
        )  # fmt: skip
        return read(x_BLC[:, :1], x_BLC)[:, 0]


class Pictures(nn.Module):
    """The tower of pictures: BHWC -> BE."""

    cfg: Any

    @nn.compact
    def __call__(self, x_BHWC: jax.Array, train: bool = False) -> jax.Array:
        cfg, own = self.cfg, tower(self.cfg)
        if cfg.vision.tower == "resnet":
            x_BHWC = resnet.Model(own, classifies=False, name="trunk")(x_BHWC, train)
            return AttentionPool(cfg, name="pool")(x_BHWC)
        D = own.width
        start = layers.normal(0.0, own.base_width)
        x_BLD = vit.Embed(own, start, name="embed")(vit.Patches(own, bias=False, name="patch")(x_BHWC))
        x_BLD = layers.Norm(cfg.norm, cfg.bias, cfg.norm_eps, name="norm_first")(x_BLD)
        x_BLD = sharding.constrain(x_BLD, "batch", "residual", None)
        x_BLD, _ = transformer.blocks(own, own.depth, name="blocks")(x_BLD, None, View(causal=False), train)
        x_BD = layers.Norm(cfg.norm, cfg.bias, cfg.norm_eps, name="norm")(x_BLD[:, 0])
        return layers.linear(x_BD, self.param("projection", layers.normal(0.0, D), (D, cfg.embed)))


class Captions(nn.Module):
    """The text tower: tokens BL, of which `length_B` are a caption's with its end -> BE, read at the end."""

    cfg: Any

    @nn.compact
    def __call__(self, tokens_BL: jax.Array, length_B: jax.Array, train: bool = False) -> jax.Array:
        cfg, D = self.cfg, self.cfg.width
        x_BLD = Table(cfg, name="embed")(tokens_BL)
        x_BLD = sharding.constrain(x_BLD, "batch", "residual", None)
        x_BLD, _ = transformer.blocks(cfg, cfg.depth, name="blocks")(x_BLD, None, View(0), train)
        x_BLD = layers.Norm(cfg.norm, cfg.bias, cfg.norm_eps, name="norm")(x_BLD)
        x_BD = jnp.take_along_axis(x_BLD, (length_B - 1)[:, None, None], axis=1)[:, 0]
        return layers.linear(x_BD, self.param("projection", layers.normal(0.0, D), (D, cfg.embed)))


class Table(nn.Module):
    """Vectors of tokens and of their places, BL -> BLD; deviations 0.02 and 0.01 at the start, as CLIP's."""

    cfg: Any

    @nn.compact
    def __call__(self, tokens_BL: jax.Array) -> jax.Array:
        cfg = self.cfg
        table_VD = self.param("table", nn.initializers.normal(0.02), (cfg.vocab_size, cfg.width))
        positions_LD = self.param("positions", nn.initializers.normal(0.01), (cfg.seq_len, cfg.width))
        return (table_VD[tokens_BL] + positions_LD[: tokens_BL.shape[1]]).astype(cfg.dtype)


class Model(nn.Module):
    cfg: Any

    def setup(self) -> None:
        cfg = self.cfg
        self.vision, self.text = Pictures(cfg), Captions(cfg)
        start = math.log(1 / cfg.temperature) if cfg.objective == "softmax" else math.log(10.0)  # Zhai et al., 3.1
        self.scale = self.param("scale", nn.initializers.constant(start), ())
        if cfg.objective == "sigmoid":
            self.offset = self.param("offset", nn.initializers.constant(-10.0), ())

    def __call__(
        self, x_BHWC: jax.Array, tokens_BL: jax.Array, length_B: jax.Array, train: bool = False
    ) -> tuple[jax.Array, jax.Array]:
        """(pictures BE, captions BE), in float32 and of length 1."""
        return self.pictures(x_BHWC, train), self.captions(tokens_BL, length_B, train)

    def pictures(self, x_BHWC: jax.Array, train: bool = False) -> jax.Array:
        return _unit(self.vision(x_BHWC, train))

    def captions(self, tokens_BL: jax.Array, length_B: jax.Array, train: bool = False) -> jax.Array:
        return _unit(self.text(tokens_BL, length_B, train))


def _unit(x_BE: jax.Array) -> jax.Array:
    x_BE = layers.wide(x_BE)
    return x_BE * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x_BE), axis=-1, keepdims=True), 1e-24))


def embedded(model: nn.Module, variables: Any, batch: Any, train: bool) -> tuple[Any, Any]:
    """((pictures BE, captions BE), new state). With `grad_cache`, so many pairs at a time: what the towers keep for the
    backward pass is computed again there (Gao et al. 2021, arXiv:2101.06983)."""
    cfg: Any = model.cfg
    x, mutable = inputs(cfg, batch), ["batch_stats"] if train else []
    B, at_once = len(x[0]), cfg.grad_cache if train else 0
    if not at_once or at_once >= B:
        out, state = model.apply(variables, *x, train, mutable=mutable)
        return out, dict(state)
    if B % at_once:
        raise UsageError(f"config.model.grad_cache={at_once} doesn't divide the batch of {B}")

    @jax.checkpoint
    def towers(part: Any) -> Any:
        part = [sharding.constrain(p, "batch", *(None,) * (p.ndim - 1)) for p in part]
        return model.apply(variables, *part, train)

    # Strided rows, so that every part lies over all devices as the batch does.
    parts = [a.reshape(at_once, B // at_once, *a.shape[1:]).swapaxes(0, 1) for a in x]
    out = jax.lax.map(towers, parts)
    return [y.swapaxes(0, 1).reshape(B, -1) for y in out], {}


def loss(model: nn.Module, variables: Any, batch: Any, rng: jax.Array, train: bool) -> tuple[jax.Array, Any]:
    """Nats a pair, over the whole batch on any mesh: the mean of the two cross entropies of telling a picture's caption
    and a caption's picture from the batch's (softmax), or the sum of the pairs' own, over B (sigmoid).

    The metrics are of these very batches. `error` is the share of pictures and captions whose own is not the likeliest.
    """
    cfg: Any = model.cfg
    (image_BE, text_BE), state = embedded(model, variables, batch, train)
    params, weight_B = variables["params"], batch["weight"]
    image_BE, text_BE = (sharding.constrain(x, "batch", None) for x in (image_BE, text_BE))
    cosine_BB = jnp.matmul(image_BE, text_BE.T, precision=jax.lax.Precision.HIGHEST)
    logits_BB = sharding.constrain(jnp.exp(at_most(params["scale"], LARGEST)) * cosine_BB, "batch", None)
    there_BB = weight_B[:, None] * weight_B > 0
    own_B = jnp.arange(len(weight_B))
    hits = [losses.accuracy(jnp.where(there_BB, x, -jnp.inf), own_B, weight_B) for x in (logits_BB, logits_BB.T)]
    if cfg.objective == "sigmoid":
        signed_BB = (logits_BB + params["offset"]) * (2 * jnp.eye(len(own_B)) - 1)
        nats_B = -jnp.sum(jnp.where(there_BB, jax.nn.log_sigmoid(signed_BB), 0.0), axis=1)
    else:
        masked_BB = jnp.where(there_BB | (own_B[:, None] == own_B), logits_BB, -1e30)
        away_B = [jax.nn.logsumexp(masked_BB, axis=axis) for axis in (0, 1)]
        nats_B = sum(away_B) / 2 - jnp.diagonal(logits_BB)
    total = jnp.sum(nats_B * weight_B), jnp.sum(weight_B)
    right, count = hits[0][0] + hits[1][0], 2 * total[1]
    metrics = {"loss": total, "error": (count - right, count), "accuracy": (right, count)}
    return losses.mean(total), (metrics, state)
