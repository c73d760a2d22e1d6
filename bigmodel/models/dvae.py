"""A discrete variational autoencoder: pictures <-> grids of codes (Ramesh et al. 2021, arXiv:2102.12092, section 2.1
and appendix A). With `quantizer="vq"`, vector quantisation by a codebook of moving averages (van den Oord et al. 2017,
arXiv:1711.00937, appendix A.1) in place of the Gumbel-softmax relaxation.

B batch, H height, W width (h, w: of the grid of codes), C channels, V codes, E width of a code's vector.
"""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from bigmodel.errors import UsageError, check_ranges, choose
from bigmodel.models import classifier, conv, layers, losses
from bigmodel.ops import remat

EPS = 0.1  # pixels are mapped from [0, 1] to [EPS, 1 - EPS] (Ramesh et al., appendix A.3)
# The least log scale of a pixel's logit-Laplace distribution. A byte at black or white is 0.035 wide in logits, twice
# exp(-4): what is sharper only makes densities grow without bound on flat areas. Not in the paper.
SHARPEST = -4.0
RARE = 0.03  # of the mean use of codes: what is used less starts again (vq)
CONV_START = nn.initializers.variance_scaling(1.0, "fan_in", "normal")


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            image_height=256,  # from the data where there is some, as the next two
            image_width=256,
            channels=3,
            width=256,  # channels of the first group; each further group has twice as many
            depth=2,  # residual blocks of a group, in the encoder as in the decoder
            num_groups=4,  # pictures are halved between groups: a code stands for 2^(num_groups - 1) pixels a side
            num_codes=8192,
            code_width=128,  # of the vector that the decoder reads for a code
            quantizer="gumbel",  # or vq
            temperature=1.0,  # of the relaxation, at the start; it falls as half a cosine
            final_temperature=1 / 16,  # [R] as the other defaults of the schedules
            temperature_steps=150_000,  # in so many steps; 0: final_temperature from the start
            kl_weight=6.6,  # [R] of the codes' divergence from uniform ones (1: the bound's); it rises from 0
            kl_steps=5_000,  # [R] in so many steps; 0: kl_weight from the start
            commitment=0.25,  # vq: weight of the squared distance of the encoder's vectors to their codes'
            codebook_decay=0.99,  # vq: of the codebook's moving averages
            dtype="float32",  # compute; parameters, and what is next to codes and pixels, are float32
        )
    )


def finalize(cfg: ConfigDict) -> None:
    positive = ("image_height", "image_width", "channels", "depth", "num_groups", "code_width")
    weights = ("temperature_steps", "kl_weight", "kl_steps", "commitment")
    check_ranges(
        "config.model.", cfg, width="[4, inf)", num_codes="[2, inf)", temperature="(0, inf)",
        final_temperature="(0, inf)", codebook_decay="[0, 1)", **dict.fromkeys(positive, "[1, inf)"),
        **dict.fromkeys(weights, "[0, inf)"),
    )  # fmt: skip
    choose("config.model.quantizer", cfg.quantizer, ["gumbel", "vq"])
    choose("config.model.dtype", cfg.dtype, ["float32", "bfloat16"])
    for side in ("image_height", "image_width"):
        if cfg[side] % reduction(cfg):
            raise UsageError(
                f"config.model.num_groups={cfg.num_groups}: a code is {reduction(cfg)} pixels wide, which doesn't "
                f"divide {side}={cfg[side]}: choose fewer groups"
            )


def reduction(cfg: Any) -> int:
    """Pixels a side that a code stands for."""
    return int(2 ** (cfg.num_groups - 1))


def rung(width: int, depth: int) -> dict[str, Any]:
    """Channels of the first group and blocks of each; the codes stay."""
    return {"model.width": width, "model.depth": depth}


PUBLISHED = {
    "dalle-dvae": dict(source="openai/DALL-E, dall_e/encoder.py and decoder.py", params=97_616_006, model={}),
}
RULES = (
    (r"/stem/kernel$", ("window", "window", "feature", "embed")),
    (r"^encoder/head/kernel$", ("window", "window", "embed", "vocab")),
    (r"^codebook/kernel$", ("window", "window", "vocab", "embed")),
    (r"^decoder/head/kernel$", ("window", "window", "embed", "output")),
    *conv.RULES,
)


def spec(cfg: Any) -> dict[str, tuple[tuple[int, ...], str]]:
    return {"image": classifier.spec(cfg)["image"]}


def inputs(cfg: Any, batch: Any) -> tuple[jax.Array]:
    """What Model.__call__ takes of a batch: pixels BHWC in [EPS, 1 - EPS]."""
    return ((1 - 2 * EPS) * batch["image"].astype(jnp.float32) / 255 + EPS,)


def decomposes(cfg: Any) -> bool:
    """A codebook of averages reads the whole batch."""
    return bool(cfg.quantizer == "gumbel")


def flops(cfg: Any) -> float:
    """Forward FLOPs of a picture: 2 per multiply-add of the convolutions and of the codebook's products."""
    return conv.costs(Model, cfg)[0]


def footprint(cfg: Any) -> dict[str, Any]:
    """As a convolutional network's, and in float32 the logits, noise, relaxed codes and their gradient."""
    found, places = conv.footprint(Model, cfg), cfg.image_height * cfg.image_width // reduction(cfg) ** 2
    more = 4 * places * cfg.num_codes
    return found | {"layers": 2 * cfg.num_groups * cfg.depth, "ends": found["ends"] + more, "logits": 0}


# ------------------------------------------------------------------------------------------------------- networks


class Block(nn.Module):
    """A residual branch of four convolutions, a quarter as wide inside; counts `gain` times (Ramesh et al., A.2)."""

    channels: int
    windows: tuple[int, ...]
    gain: float

    @nn.compact
    def __call__(self, x_BHWC: jax.Array, _: None, rows_B: None, train: bool) -> tuple[jax.Array, None]:
        C, y_BHWC = self.channels, x_BHWC
        for i, k in enumerate(self.windows, 1):
            out = C if i == len(self.windows) else C // 4
            y_BHWC = _conv(out, k, f"conv{i}")(nn.relu(y_BHWC))
        if x_BHWC.shape[-1] != C:
            x_BHWC = _conv(C, 1, "shortcut")(x_BHWC)
        return x_BHWC + self.gain * y_BHWC, None


def _conv(channels: int, window: int, name: str | None) -> conv.Conv:
    return conv.Conv(channels, (window, window), bias=True, start=CONV_START, name=name)


class Group(nn.Module):
    """`depth` blocks of one width: the first, which may change it, then the rest as one stack."""

    cfg: Any
    channels: int
    windows: tuple[int, ...]

    @nn.compact
    def __call__(self, x_BHWC: jax.Array, train: bool) -> jax.Array:
        cfg = self.cfg
        given = self.channels, self.windows, (cfg.num_groups * cfg.depth) ** -2.0
        x_BHWC, _ = Block(*given, name="first")(x_BHWC, None, None, train)
        if cfg.depth > 1:
            blocks = layers.stack(Block, cfg.depth - 1, scan=not remat.unrolls(cfg.depth))
            x_BHWC, _ = blocks(*given, name="rest")(x_BHWC, None, None, train)
        return x_BHWC


class Encoder(nn.Module):
    """Pixels BHWC -> logits of codes BhwV, or vectors BhwE to be quantised."""

    cfg: Any

    @nn.compact
    def __call__(self, x_BHWC: jax.Array, train: bool = False) -> jax.Array:
        cfg = self.cfg
        x_BHWC = _conv(cfg.width, 7, "stem")(x_BHWC.astype(cfg.dtype))
        for i in range(cfg.num_groups):
            if i:
                x_BHWC = conv.max_pool(x_BHWC, 2, 2, conv.VALID)
            x_BHWC = Group(cfg, cfg.width * 2**i, (3, 3, 3, 1), name=f"group{i + 1}")(x_BHWC, train)
        out = cfg.num_codes if cfg.quantizer == "gumbel" else cfg.code_width
        return _conv(out, 1, "head")(layers.wide(nn.relu(x_BHWC)))


class Decoder(nn.Module):
    """Vectors of codes BhwE -> means and log scales of pixels' logits, BHW(2C)."""

    cfg: Any

    @nn.compact
    def __call__(self, x_BHWC: jax.Array, train: bool = False) -> jax.Array:
        cfg = self.cfg
        x_BHWC = x_BHWC.astype(cfg.dtype)
        for i in range(cfg.num_groups):
            if i:
                x_BHWC = jnp.repeat(jnp.repeat(x_BHWC, 2, axis=1), 2, axis=2)
            channels = cfg.width * 2 ** (cfg.num_groups - 1 - i)
            x_BHWC = Group(cfg, channels, (1, 3, 3, 3), name=f"group{i + 1}")(x_BHWC, train)
        return _conv(2 * cfg.channels, 1, "head")(layers.wide(nn.relu(x_BHWC)))


class Averages(nn.Module):
    """A codebook that is no parameter: each code's vector is the moving average of the vectors that are nearest to it.

    A code that hardly any is nearest to, as at the first step, starts again at one of the batch's (as in Dhariwal et
    al. 2020, arXiv:2005.00341, section 3).
    """

    cfg: Any

    def setup(self) -> None:
        V, E = self.cfg.num_codes, self.cfg.code_width
        self.table_VE = self.variable("codebook", "table", lambda: jnp.zeros((V, E)))
        self.sums_VE = self.variable("codebook", "sums", lambda: jnp.zeros((V, E)))
        self.counts_V = self.variable("codebook", "counts", lambda: jnp.zeros(V))

    def nearest(self, z_BhwE: jax.Array) -> jax.Array:
        table_VE = self.table_VE.value
        return jnp.argmin(jnp.sum(jnp.square(table_VE), axis=1) - 2 * z_BhwE @ table_VE.T, axis=-1)

    def __call__(self, codes_Bhw: jax.Array) -> jax.Array:
        return self.table_VE.value[codes_Bhw]

    def move(self, z_BhwE: jax.Array, codes_Bhw: jax.Array, key: jax.Array) -> None:
        cfg, z_NE = self.cfg, z_BhwE.reshape(-1, self.cfg.code_width)
        V, N, kept = cfg.num_codes, len(z_NE), cfg.codebook_decay
        hot_NV = jax.nn.one_hot(codes_Bhw.reshape(-1), V)
        counts_V = kept * self.counts_V.value + (1 - kept) * jnp.sum(hot_NV, axis=0)
        sums_VE = kept * self.sums_VE.value + (1 - kept) * hot_NV.T @ z_NE
        dead_V = counts_V < RARE * N / V
        drawn_VE = z_NE[jax.random.randint(key, (V,), 0, N)]
        self.counts_V.value = jnp.where(dead_V, N / V, counts_V)
        self.sums_VE.value = jnp.where(dead_V[:, None], drawn_VE * N / V, sums_VE)
        self.table_VE.value = self.sums_VE.value / self.counts_V.value[:, None]


class Model(nn.Module):
    cfg: Any

    def setup(self) -> None:
        cfg = self.cfg
        self.encoder, self.decoder = Encoder(cfg), Decoder(cfg)
        self.codebook = Averages(cfg) if cfg.quantizer == "vq" else _conv(cfg.code_width, 1, None)

    def __call__(
        self, x_BHWC: jax.Array, train: bool = False, temperature: Any = 1.0, key: Any = None, rows_B: Any = None
    ) -> tuple[jax.Array, jax.Array]:
        """(means and log scales of pixels' logits, BHW(2C); what the codes cost, B). In training codes are relaxed.

        The cost: nats of divergence from uniform codes, or the mean squared distance to the codes' vectors (vq).
        """
        cfg, z_BhwV = self.cfg, self.encoder(x_BHWC, train)
        if cfg.quantizer == "vq":
            codes_Bhw = self.codebook.nearest(z_BhwV)
            off_BhwE = jax.lax.stop_gradient(self.codebook(codes_Bhw)) - z_BhwV
            if train and self.is_mutable_collection("codebook"):
                self.codebook.move(jax.lax.stop_gradient(z_BhwV), codes_Bhw, key)
            straight_BhwE = z_BhwV + jax.lax.stop_gradient(off_BhwE)
            return self.decoder(straight_BhwE, train), jnp.mean(jnp.square(off_BhwE), axis=(1, 2, 3))
        log_q_BhwV = jax.nn.log_softmax(z_BhwV)
        kl_B = jnp.sum(jnp.exp(log_q_BhwV) * (log_q_BhwV + math.log(cfg.num_codes)), axis=(1, 2, 3))
        if not train:
            return self.decode(jnp.argmax(z_BhwV, axis=-1)), kl_B
        keys_B = layers.example_keys(key, rows_B)
        noise_BhwV = jax.vmap(lambda key: jax.random.gumbel(key, z_BhwV.shape[1:]))(keys_B)
        soft_BhwV = jax.nn.softmax((z_BhwV + noise_BhwV) / temperature)
        return self.decoder(self.codebook(soft_BhwV), train), kl_B

    def encode(self, x_BHWC: jax.Array) -> jax.Array:
        """Codes Bhw: the likeliest, or nearest, ones."""
        z_BhwV = self.encoder(x_BHWC)
        return self.codebook.nearest(z_BhwV) if self.cfg.quantizer == "vq" else jnp.argmax(z_BhwV, axis=-1)

    def decode(self, codes_Bhw: jax.Array) -> jax.Array:
        hot = self.cfg.quantizer == "gumbel"
        return self.decoder(self.codebook(jax.nn.one_hot(codes_Bhw, self.cfg.num_codes) if hot else codes_Bhw))


# ----------------------------------------------------------------------------------------------------- objective


def progress(batch: Any, steps: int) -> Any:
    """The share of `steps` that were done before a batch of training, at most 1; 1 of any other batch."""
    return jnp.minimum(batch["step"][0] / steps, 1.0) if steps and "step" in batch else 1.0


def temperature(cfg: Any, batch: Any) -> Any:
    falls = (1 + jnp.cos(jnp.pi * progress(batch, cfg.temperature_steps))) / 2
    return cfg.final_temperature + (cfg.temperature - cfg.final_temperature) * falls


def nats(decoded_BHWC: jax.Array, x_BHWC: jax.Array) -> jax.Array:
    """-log of a byte's probability, BHWC: the density of its mapped value x under the logit-Laplace distribution
    (Ramesh et al., appendix A.3, equation 2), times the width of a byte there."""
    mean_BHWC, log_scale_BHWC = jnp.split(decoded_BHWC, 2, axis=-1)
    log_scale_BHWC = jnp.logaddexp(log_scale_BHWC, SHARPEST)
    logit_BHWC, width = jnp.log(x_BHWC) - jnp.log1p(-x_BHWC), (1 - 2 * EPS) / 255
    off_BHWC = jnp.abs(logit_BHWC - mean_BHWC) * jnp.exp(-log_scale_BHWC)
    return off_BHWC + log_scale_BHWC + jnp.log(2 * x_BHWC * (1 - x_BHWC) / width)


def loss(model: nn.Module, variables: Any, batch: Any, rng: jax.Array, train: bool) -> tuple[jax.Array, Any]:
    """Nats a value of a picture: of its bytes (`nll`), and its codes' divergence from uniform ones times the weight of
    that; in evaluation of the likeliest codes, with the weight that it rises to."""
    cfg: Any = model.cfg
    (x_BHWC,), weight_B = inputs(cfg, batch), batch["weight"]
    given = x_BHWC, train, temperature(cfg, batch), rng, layers.rows_of(batch)
    (decoded_BHWC, cost_B), state = model.apply(variables, *given, mutable=["codebook"] if train else [])
    nll_B = jnp.mean(nats(decoded_BHWC, x_BHWC), axis=(1, 2, 3))
    name, share = "commitment", cfg.commitment
    if cfg.quantizer == "gumbel":
        name, share = "kl", cfg.kl_weight * progress(batch, cfg.kl_steps)
        cost_B = cost_B / math.prod(x_BHWC.shape[1:])
    parts = {"loss": nll_B + share * cost_B, "nll": nll_B, name: cost_B}
    metrics = {key: (jnp.sum(value_B * weight_B), jnp.sum(weight_B)) for key, value_B in parts.items()}
    return losses.mean(metrics["loss"]), (metrics, dict(state))


def _pixels(model: nn.Module, variables: Any, codes_Bhw: jax.Array) -> jax.Array:
    """Codes' pictures BHWC in [0, 1]: the medians of their pixels."""
    decoded_BHWC: Any = model.apply(variables, codes_Bhw, method="decode")
    mean_BHWC, _ = jnp.split(decoded_BHWC, 2, axis=-1)
    return jnp.clip((nn.sigmoid(mean_BHWC) - EPS) / (1 - 2 * EPS), 0, 1)


def codes(model: nn.Module, variables: Any, image_BHWC: jax.Array) -> Any:
    """Codes Bhw, int32, of pictures of bytes."""
    return model.apply(variables, *inputs(model.cfg, {"image": image_BHWC}), method="encode")


def decode(model: nn.Module, variables: Any, codes_Bhw: jax.Array) -> jax.Array:
    """Pictures of bytes BHWC of codes."""
    return jnp.round(255 * _pixels(model, variables, codes_Bhw)).astype(jnp.uint8)


def evaluate(model: nn.Module, variables: Any, batch: Any) -> dict[str, jax.Array]:
    """Sums of the pictures: of squared errors and values, and how often each code is used."""
    cfg, image_BHWC, weight_B = model.cfg, batch["image"], batch["weight"]
    codes_Bhw = codes(model, variables, image_BHWC)
    pixels_BHWC = _pixels(model, variables, codes_Bhw)
    square_B = jnp.sum(jnp.square(pixels_BHWC - image_BHWC / 255.0), axis=(1, 2, 3))
    often_Bhw = jnp.broadcast_to(weight_B[:, None, None], codes_Bhw.shape)
    return {
        "square": jnp.sum(square_B * weight_B),
        "values": jnp.sum(weight_B) * math.prod(image_BHWC.shape[1:]),
        "codes": jnp.zeros(cfg.num_codes).at[codes_Bhw].add(often_Bhw),
    }


def summarize(sums: Any) -> dict[str, float]:
    """Peak signal-to-noise ratio in decibels, of all pictures' errors together; the perplexity of the codes, and the
    share of them that is used."""
    share_V = sums["codes"] / np.sum(sums["codes"])
    used_U = share_V[share_V > 0]
    psnr = -10 * math.log10(max(sums["square"] / sums["values"], 1e-12))
    perplexity = np.exp(-np.sum(used_U * np.log(used_U)))
    return {"psnr": psnr, "codes_perplexity": float(perplexity), "codes_used": len(used_U) / len(share_V)}
