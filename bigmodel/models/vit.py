"""Vision Transformer (Dosovitskiy et al. 2020, arXiv:2010.11929), and the shapes of Zhai et al. 2021
(arXiv:2106.04560) and Alabdulmohsin et al. 2023 (arXiv:2305.13035).

B batch, H height, W width (of the grid of patches), C channels, L tokens, D width, V classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from bigmodel.errors import UsageError, check_ranges, choose
from bigmodel.models import classifier, layers, transformer
from bigmodel.models.attention import Attention
from bigmodel.ops import sharding
from bigmodel.ops.attention import View


def get_config() -> ConfigDict:
    cfg = ConfigDict(classifier.get_config())
    cfg.update(
        transformer.get_config()
        | dict(
            patch=16,  # side of a patch, in pixels
            pool="cls",  # what the head reads: a class token, the mean of all tokens, or map: attention by a probe
            position="learned",  # or sincos2d: fixed (Chen et al. 2021, arXiv:2104.02057, section 5)
            drop_path=0.0,  # stochastic depth: of the last layer; of the others in proportion to their place
            activation="gelu",
            norm_eps=1e-6,
            init_std=0.0,
            scale_residual=False,
        )
    )
    return cfg


def finalize(cfg: ConfigDict) -> None:
    classifier.finalize(cfg)
    transformer.finalize(cfg, positive=("patch",))
    check_ranges("config.model.", cfg, drop_path="[0, 1)")
    choose("config.model.pool", cfg.pool, ["cls", "mean", "map"])
    choose("config.model.position", cfg.position, ["learned", "sincos2d"])
    for key in ("image_height", "image_width"):
        if cfg[key] % cfg.patch:
            raise UsageError(f"config.model.patch={cfg.patch} doesn't divide {key}={cfg[key]}")
    if cfg.position == "sincos2d" and cfg.width % 4:
        raise UsageError(f"config.model.width={cfg.width}: position=sincos2d needs a multiple of 4")


rung, base = transformer.rung, transformer.base
spec, inputs, loss = classifier.spec, classifier.inputs, classifier.loss


def _row(width: int, depth: int, ffn: int, heads: int, patch: int, params: int) -> dict[str, Any]:
    shape = dict(width=width, depth=depth, ffn=ffn, num_heads=heads, patch=patch)
    return dict(params=params, model=shape, source=_VIT)


_VIT = "Dosovitskiy et al. 2020, arXiv:2010.11929, table 1, and Steiner et al. 2021, arXiv:2106.10270, table 2"
_ZHAI = "Zhai et al. 2021, arXiv:2106.04560, table 2; counted with a class token, as the others"
_PALI = "Chen et al. 2022, arXiv:2209.06794, table 1; counted with a class token, as the others"
_SO = "Alabdulmohsin et al. 2023, arXiv:2305.13035; without a class token"
PUBLISHED: dict[str, dict[str, Any]] = {
    "vit-ti16": _row(192, 12, 768, 3, 16, 5_717_416),
    "vit-s32": _row(384, 12, 1536, 6, 32, 22_878_952),
    "vit-s16": _row(384, 12, 1536, 6, 16, 22_050_664),
    "vit-b32": _row(768, 12, 3072, 12, 32, 88_224_232),
    "vit-b16": _row(768, 12, 3072, 12, 16, 86_567_656),
    "vit-l32": _row(1024, 24, 4096, 16, 32, 306_535_400),
    "vit-l16": _row(1024, 24, 4096, 16, 16, 304_326_632),
    "vit-h14": _row(1280, 32, 5120, 16, 14, 632_045_800),
    "vit-g14": _row(1408, 40, 6144, 16, 14, 1_012_611_432) | dict(source=_ZHAI),
    "vit-G14": _row(1664, 48, 8192, 16, 14, 1_844_440_680) | dict(source=_ZHAI),
    "vit-e14": _row(1792, 56, 15360, 16, 14, 3_807_214_312) | dict(source=_PALI),
    "vit-so400m14": _row(1152, 27, 4304, 16, 14, 413_597_656) | dict(source=_SO),
}
RULES = (
    (r"^patch/kernel$", ("window", "window", "feature", "embed")),
    (r"^patch/bias$", (None,)),
    (r"^embed/positions$", ("position", "embed")),
    (r"^embed/class$", (None,)),
    (r"^norm/(scale|bias)$", (None,)),
    (r"^pool/probe$", (None,)),
    # The pool's one layer isn't stacked.
    *((r"^pool.*" + pattern, names[1:]) for pattern, names in transformer.RULES),
    *classifier.RULES,
    *transformer.RULES,
)


def tokens(cfg: Any) -> int:
    """L: patches, and the class token."""
    return int((cfg.image_height // cfg.patch) * (cfg.image_width // cfg.patch) + (cfg.pool == "cls"))


def decomposes(cfg: Any) -> bool:
    """Mixing reads the whole batch."""
    return not classifier.mixes(cfg)


def flops(cfg: Any) -> float:
    """Forward FLOPs of a picture: patches, blocks (`transformer.flops`), the pool's attention and MLP, the head."""
    L, D = tokens(cfg), cfg.width
    blocks = cfg.depth * (transformer.flops(cfg, L, L) + transformer.ffn_flops(cfg, L))
    patches = 2.0 * (L - (cfg.pool == "cls")) * cfg.patch**2 * cfg.channels * D
    pool = transformer.flops(cfg, 1, L) + transformer.ffn_flops(cfg, 1) if cfg.pool == "map" else 0.0
    return patches + blocks + pool + 2.0 * D * cfg.num_classes


def footprint(cfg: Any) -> dict[str, Any]:
    return transformer.footprint(cfg, cfg.num_classes, [(cfg.depth, tokens(cfg), 1.0)])


def resized(before: Mapping[str, Any], cfg: Any) -> dict[str, tuple[tuple[int, int], Any]]:
    """Learned positions of a model of pictures of another size: its grid, linearly interpolated (Dosovitskiy et al.
    2020, section 3.2); the class token keeps its own."""
    grids = [tuple(c[f"image_{side}"] // c["patch"] for side in ("height", "width")) for c in (before, cfg)]
    if cfg.position != "learned" or before["position"] != "learned" or grids[0] == grids[1]:
        return {}
    own = int(cfg.pool == "cls")

    def ours(x_LD: jax.Array) -> jax.Array:
        grid_HWD = jax.image.resize(x_LD[own:].reshape(*grids[0], -1), (*grids[1], x_LD.shape[1]), "linear")
        return jnp.concatenate([x_LD[:own], grid_HWD.reshape(-1, x_LD.shape[1])])

    return {"embed/positions": ((math.prod(grids[0]) + own, cfg.width), ours)}


def sincos2d(height: int, width: int, dim: int) -> jax.Array:
    """Fixed positions of a grid, (height x width) D: sines and cosines of the column, then those of the row, of
    wavelengths up to 10,000 (Chen et al. 2021; as in the released code of ViT's authors)."""
    freq = 10_000.0 ** (-jnp.arange(dim // 4) / max(1, dim // 4 - 1))
    rows, columns = jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij")
    parts = [wave(at.reshape(-1, 1) * freq) for at in (columns, rows) for wave in (jnp.sin, jnp.cos)]
    return jnp.concatenate(parts, axis=1)


class Patches(nn.Module):
    """Pixels BHWC -> tokens BLD, one a patch."""

    cfg: Any
    bias: bool = True

    @nn.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        P, D = self.cfg.patch, self.cfg.width
        B, H, W, C = x_BHWC.shape
        kernel = self.param("kernel", layers.normal(self.cfg.init_std, P * P * C), (P, P, C, D))
        cut = x_BHWC.reshape(B, H // P, P, W // P, P, C).swapaxes(2, 3).reshape(B, -1, P * P * C)
        y_BLD = layers.linear(cut, kernel.reshape(P * P * C, D))
        return y_BLD + self.param("bias", nn.initializers.zeros, (D,)).astype(x_BHWC.dtype) if self.bias else y_BLD


class Embed(nn.Module):
    """Puts the class token, which starts as `start` says, before patches, and adds positions."""

    cfg: Any
    start: layers.Init = nn.initializers.zeros

    @nn.compact
    def __call__(self, x_BLD: jax.Array) -> jax.Array:
        cfg, D = self.cfg, self.cfg.width
        if cfg.pool == "cls":
            token = self.param("class", self.start, (D,)).astype(x_BLD.dtype)
            x_BLD = jnp.concatenate([jnp.broadcast_to(token, (len(x_BLD), 1, D)), x_BLD], axis=1)
        if cfg.position == "learned":
            # As ViT's code starts them, at the base's width where there is one.
            start = nn.initializers.normal(cfg.base_width**-0.5)
            positions_LD = self.param("positions", start, (x_BLD.shape[1], D))
        else:
            grid = sincos2d(cfg.image_height // cfg.patch, cfg.image_width // cfg.patch, D)
            positions_LD = jnp.pad(grid, ((x_BLD.shape[1] - len(grid), 0), (0, 0)))
        return x_BLD + positions_LD.astype(x_BLD.dtype)


class AttentionPool(nn.Module):
    """One learned query reads all tokens, then an MLP on a residual branch (Lee et al. 2018, arXiv:1810.00825, as in
    Zhai et al. 2021, section 3.2)."""

    cfg: Any

    @nn.compact
    def __call__(self, x_BLD: jax.Array) -> jax.Array:
        cfg = self.cfg
        probe_D = self.param("probe", layers.normal(0.0, cfg.base_width), (cfg.width,)).astype(x_BLD.dtype)
        query_B1D = jnp.broadcast_to(probe_D, (len(x_BLD), 1, cfg.width))
        y_B1D, _ = Attention(cfg, cross=True, name="attention")(query_B1D, None, View(memory_BSD=x_BLD))
        normed_B1D = layers.Norm(cfg.norm, cfg.bias, cfg.norm_eps, name="norm_mlp")(y_B1D)
        return (y_B1D + layers.FeedForward(cfg, name="mlp")(normed_B1D))[:, 0]


class Model(nn.Module):
    cfg: Any

    @nn.compact
    def __call__(self, x_BHWC: jax.Array, train: bool = False, rows_B: jax.Array | None = None) -> jax.Array:
        """Logits BV of pixels. rows: which row of the step's batch each example is, for dropout."""
        cfg = self.cfg
        x_BLD = Embed(cfg, name="embed")(Patches(cfg, name="patch")(x_BHWC))
        if cfg.dropout:
            x_BLD = layers.Dropout(cfg.dropout)(x_BLD, rows_B, train)
        x_BLD = sharding.constrain(x_BLD, "batch", "residual", None)
        drops_N = layers.drop_paths(cfg.drop_path, cfg.depth)
        blocks = transformer.blocks(cfg, cfg.depth, drops=drops_N is not None, name="blocks")
        x_BLD, _ = blocks(x_BLD, drops_N, View(causal=False, rows_B=rows_B), train)
        x_BLD = layers.Norm(cfg.norm, cfg.bias, cfg.norm_eps, name="norm")(x_BLD)
        if cfg.pool == "map":
            x_BD = AttentionPool(cfg, name="pool")(x_BLD)
        else:
            x_BD = x_BLD[:, 0] if cfg.pool == "cls" else jnp.mean(x_BLD, axis=1)
        return classifier.head(self, x_BD, nn.initializers.zeros)
