"""Multi-layer perceptron classifier.

B batch, I inputs, D width, V classes, N depth (hidden layers).
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
from ml_collections import ConfigDict

from bigmodel.config import UsageError, choose
from bigmodel.models import layers, losses


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            width=64,
            depth=2,  # hidden layers
            num_features=64,  # from the data where there is some
            num_classes=10,  # from the data where there is some
            activation="relu",  # or gelu, gelu_tanh, tanh, sigmoid, silu
            bias=True,
            init_std=0.0,  # 0: 1 / sqrt(fan_in)
        )
    )


def finalize(cfg: ConfigDict) -> None:
    for key in ("width", "depth", "num_features", "num_classes"):
        if cfg[key] < 1:
            raise UsageError(f"config.model.{key}={cfg[key]}: must be at least 1")
    choose("config.model.activation", cfg.activation, layers.ACTIVATIONS)


def rung(width: int, depth: int) -> dict[str, Any]:
    return {"model.width": width, "model.depth": depth}


PUBLISHED: dict[str, dict[str, Any]] = {}
WEIGHTS: dict[str, str] = {}
RULES = (
    (r"first$", (None, "ffn")),
    (r"hidden/kernel$", (None, "embed", "ffn")),
    (r"hidden/bias$", (None, "ffn")),
    (r"last$", ("ffn", None)),
    (r"first_bias$", ("ffn",)),
    (r"last_bias$", (None,)),
)


def spec(cfg: Any) -> dict[str, tuple[tuple[int, ...], str]]:
    return {"features": ((cfg.num_features,), "float32"), "label": ((), "int32")}


def inputs(cfg: Any, batch: Any) -> tuple[jax.Array]:
    """What Model.__call__ takes of a batch."""
    return (batch["features"],)


def likelihood(cfg: Any) -> bool:
    return False


def flops(cfg: Any) -> float:
    """Forward FLOPs of one example: 2 per multiply-add of the matrix products."""
    return 2.0 * (cfg.num_features * cfg.width + (cfg.depth - 1) * cfg.width**2 + cfg.width * cfg.num_classes)


class Hidden(nn.Module):
    cfg: Any

    @nn.compact
    def __call__(self, x_BD: jax.Array, _: None, __: None, ___: None) -> tuple[jax.Array, None]:
        D = self.cfg.width
        x_BD = x_BD @ self.param("kernel", layers.normal(self.cfg.init_std, D), (D, D))
        if self.cfg.bias:
            x_BD = x_BD + self.param("bias", nn.initializers.zeros, (D,))
        return layers.ACTIVATIONS[self.cfg.activation](x_BD), None


class Model(nn.Module):
    cfg: Any

    @nn.compact
    def __call__(self, x_BI: jax.Array, train: bool = False) -> jax.Array:
        """Logits BV."""
        cfg = self.cfg

        def dense(name: str, x: jax.Array, out: int) -> jax.Array:
            n = x.shape[-1]
            y = x @ self.param(name, layers.normal(cfg.init_std, n), (n, out))
            return y + self.param(f"{name}_bias", nn.initializers.zeros, (out,)) if cfg.bias else y

        x_BD = layers.ACTIVATIONS[cfg.activation](dense("first", x_BI, cfg.width))
        if cfg.depth > 1:
            hidden = layers.stack(Hidden, cfg.depth - 1, scan=cfg.depth > 8, remat=False)
            x_BD, _ = hidden(cfg, name="hidden")(x_BD, None, None, None)
        return dense("last", x_BD, cfg.num_classes)


def loss(model: Model, variables: Any, batch: Any, rng: jax.Array, train: bool) -> tuple[jax.Array, Any]:
    """Cross entropy in nats per example, with accuracy."""
    logits_BV: Any = model.apply(variables, *inputs(model.cfg, batch), train)
    scalar, metrics = losses.cross_entropy(logits_BV, batch["label"], batch["weight"])
    metrics["accuracy"] = losses.accuracy(logits_BV, batch["label"], batch["weight"])
    return scalar, (metrics, {})
