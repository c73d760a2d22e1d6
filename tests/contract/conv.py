"""A residual convolutional network with batch normalisation, in two stages of stacked blocks; scored by macro F1.

B batch, S side, C channels, N depth of a stage.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigmodel.errors import check_ranges
from bigmodel.models import layers, losses


def get_config():
    return dict(width=8, depth=2, side=8, num_classes=10)


def finalize(cfg):
    check_ranges("config.model.", cfg, width="[1, inf)", depth="[1, inf)", side="[4, inf)", num_classes="[2, inf)")


def rung(width, depth):
    return {"model.width": width, "model.depth": depth}


RULES = (
    (r"trunk/stem$", ("window", "window", "feature", "embed")),
    (r"trunk/stage\d/kernel$", ("depth", "window", "window", "embed", "ffn")),
    (r"trunk/stage\d/norm/(scale|bias)$", ("depth", None)),
    (r"trunk/widen$", ("window", "window", "embed", "ffn")),
    (r"^head$", ("embed", "class")),
)


def spec(cfg):
    return {"picture": ((cfg.side, cfg.side, 1), "float32"), "label": ((), "int32")}


def inputs(cfg, batch):
    return (batch["picture"],)


def decomposes(cfg):
    """Batch normalisation reads the whole batch."""
    return False


def flops(cfg):
    """2 per multiply-add of the convolutions, 3 x 3 but for the 1 x 1 that widens, and of the head."""
    S, C, N = cfg.side**2, cfg.width, cfg.depth
    stem, first = 9 * S * C, 9 * S * C * C * N
    second = S // 4 * (2 * C * C + 9 * N * (2 * C) ** 2)
    return 2.0 * (stem + first + second + 2 * C * cfg.num_classes)


def convolve(x_BSSC, kernel, stride=1):
    axes = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x_BSSC, kernel, (stride, stride), "SAME", dimension_numbers=axes)


def start(size, inside):
    return nn.initializers.normal((2 / (size * size * inside)) ** 0.5)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x_BSSC, _, train, unused):
        C = x_BSSC.shape[-1]
        y_BSSC = convolve(x_BSSC, self.param("kernel", start(3, C), (3, 3, C, C)))
        return x_BSSC + nn.relu(layers.BatchNorm(name="norm")(y_BSSC, train)), None


class Trunk(nn.Module):
    """A picture's features, B2C."""

    cfg: object

    @nn.compact
    def __call__(self, x_BSSC, train):
        C, depth = self.cfg.width, self.cfg.depth
        x_BSSC = convolve(x_BSSC, self.param("stem", start(3, 1), (3, 3, 1, C)))
        x_BSSC, _ = layers.stack(Block, depth, scan=False)(name="stage1")(x_BSSC, None, train, None)
        x_BSSC = convolve(x_BSSC, self.param("widen", start(1, C), (1, 1, C, 2 * C)), 2)
        x_BSSC, _ = layers.stack(Block, depth, scan=True)(name="stage2")(x_BSSC, None, train, None)
        return jnp.mean(x_BSSC, axis=(1, 2))


class Model(nn.Module):
    cfg: object

    @nn.compact
    def __call__(self, x_BSSC, train=False):
        features = Trunk(self.cfg, name="trunk")(x_BSSC, train)
        shape = (2 * self.cfg.width, self.cfg.num_classes)
        return features @ self.param("head", layers.normal(0.0, shape[0]), shape)


def loss(model, variables, batch, rng, train):
    """Cross entropy in nats per picture."""
    mutable = ["batch_stats"] if train else []
    logits, state = model.apply(variables, batch["picture"], train, mutable=mutable)
    scalar, metrics = losses.cross_entropy(logits, batch["label"], batch["weight"])
    return scalar, (metrics, dict(state))


def evaluate(model, variables, batch):
    """Counts of (class, predicted class), of the examples that count."""
    predicted = jnp.argmax(model.apply(variables, batch["picture"]), axis=-1)
    C = model.cfg.num_classes
    return jnp.zeros((C, C)).at[batch["label"], predicted].add(batch["weight"])


def summarize(counts):
    """The mean over classes of F1: no mean over examples."""
    hits = counts.diagonal()
    return {"macro_f1": (2 * hits / (counts.sum(0) + counts.sum(1)).clip(1)).mean()}
