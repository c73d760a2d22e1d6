"""Multi-layer perceptron; without a hidden layer, linear or logistic regression.

B batch, I inputs, D width, V classes, N depth (hidden layers).
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
from ml_collections import ConfigDict

from bigmodel.errors import UsageError, check_ranges, choose
from bigmodel.models import layers, losses


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            width=64,
            depth=2,  # hidden layers; 0: none
            num_features=64,  # from the data where there is some
            num_classes=10,  # from the data where there is some
            objective="classify",  # or regress: one number, squared error
            activation="relu",  # or gelu, gelu_tanh, tanh, sigmoid, silu
            norm="none",  # or batchnorm, layernorm, rmsnorm: of hidden layers, before the activation
            dropout=0.0,  # of hidden layers
            smoothing=0.0,  # of labels
            class_weights=(),  # of the loss, one a class; (): all 1
            bias=True,
            init_std=0.0,  # 0: 1 / sqrt(fan_in)
        )
    )


def finalize(cfg: ConfigDict) -> None:
    sizes = dict.fromkeys(("width", "num_features", "num_classes"), "[1, inf)")
    parts = dict.fromkeys(("dropout", "smoothing"), "[0, 1)")
    check_ranges("config.model.", cfg, depth="[0, inf)", init_std="[0, inf)", **sizes, **parts)
    choose("config.model.objective", cfg.objective, ["classify", "regress"])
    choose("config.model.activation", cfg.activation, layers.ACTIVATIONS)
    choose("config.model.norm", cfg.norm, ["none", "batchnorm", "layernorm", "rmsnorm"])
    if cfg.class_weights and len(cfg.class_weights) != cfg.num_classes:
        raise UsageError(
            f"config.model.class_weights={cfg.class_weights}: one a class, and there are {cfg.num_classes}"
        )


def rung(width: int, depth: int) -> dict[str, Any]:
    return {"model.width": width, "model.depth": depth}


RULES = (
    (r"first$", ("feature", "ffn")),
    (r"hidden/kernel$", ("depth", "embed", "ffn")),
    (r"hidden/(bias|norm/(scale|bias))$", ("depth", "ffn")),
    (r"first_norm/(scale|bias)$", ("ffn",)),
    (r"last$", ("ffn", "class")),
    (r"first_bias$", ("ffn",)),
    (r"last_bias$", (None,)),
)


def spec(cfg: Any) -> dict[str, tuple[tuple[int, ...], str]]:
    return {
        "features": ((cfg.num_features,), "float32"),
        "label": ((), "int32" if cfg.objective == "classify" else "float32"),
    }


def inputs(cfg: Any, batch: Any) -> tuple[jax.Array]:
    """What Model.__call__ takes of a batch."""
    return (batch["features"],)


def decomposes(cfg: Any) -> bool:
    """Batch normalisation reads the whole batch."""
    return bool(cfg.norm != "batchnorm")


def footprint(cfg: Any) -> dict[str, Any]:
    """What a pod's layout estimates activations from: of each layer what its activation reads and, with a norm, what
    that reads; float32. Only examples are divided."""
    hidden = cfg.depth * cfg.width * (1 + (cfg.norm != "none"))
    return {
        "itemsize": 4,
        "layers": max(1, cfg.depth),
        "entering": cfg.depth * cfg.width,
        "kept": {"none": hidden, "dots": hidden},
        "block": 3 * cfg.width,
        "ends": cfg.num_features,
        "logits": cfg.num_classes,
        "heads": 1,
        "length": 1,
    }


def flops(cfg: Any) -> float:
    """Forward FLOPs of one example: 2 per multiply-add of the matrix products."""
    outputs = cfg.num_classes if cfg.objective == "classify" else 1
    if not cfg.depth:
        return 2.0 * cfg.num_features * outputs
    return 2.0 * (cfg.num_features * cfg.width + (cfg.depth - 1) * cfg.width**2 + cfg.width * outputs)


def _finish(module: nn.Module, x_BD: jax.Array, rows_B: Any, train: bool, name: str) -> jax.Array:
    """Norm, activation and dropout of a hidden layer."""
    cfg: Any = module.cfg
    if cfg.norm == "batchnorm":
        x_BD = layers.BatchNorm(name=name)(x_BD, train)
    elif cfg.norm != "none":
        x_BD = layers.Norm(cfg.norm, cfg.bias, name=name)(x_BD)
    x_BD = layers.ACTIVATIONS[cfg.activation](x_BD)
    return layers.Dropout(cfg.dropout)(x_BD, rows_B, train) if cfg.dropout else x_BD


class Hidden(nn.Module):
    cfg: Any

    @nn.compact
    def __call__(self, x_BD: jax.Array, _: None, rows_B: Any, train: bool) -> tuple[jax.Array, None]:
        D = self.cfg.width
        x_BD = x_BD @ self.param("kernel", layers.normal(self.cfg.init_std, D), (D, D))
        if self.cfg.bias:
            x_BD = x_BD + self.param("bias", nn.initializers.zeros, (D,))
        return _finish(self, x_BD, rows_B, train, "norm"), None


class Model(nn.Module):
    cfg: Any

    @nn.compact
    def __call__(self, x_BI: jax.Array, train: bool = False, rows_B: jax.Array | None = None) -> jax.Array:
        """Logits BV, or values B. rows: which row of the step's batch each example is, for dropout."""
        cfg = self.cfg

        def dense(name: str, x: jax.Array, out: int) -> jax.Array:
            n = x.shape[-1]
            y = x @ self.param(name, layers.normal(cfg.init_std, n), (n, out))
            return y + self.param(f"{name}_bias", nn.initializers.zeros, (out,)) if cfg.bias else y

        x_BD = x_BI
        if cfg.depth:
            x_BD = _finish(self, dense("first", x_BI, cfg.width), rows_B, train, "first_norm")
        if cfg.depth > 1:
            hidden = layers.stack(Hidden, cfg.depth - 1, scan=cfg.depth > 8)
            x_BD, _ = hidden(cfg, name="hidden")(x_BD, None, rows_B, train)
        return dense("last", x_BD, cfg.num_classes) if cfg.objective == "classify" else dense("last", x_BD, 1)[:, 0]


def loss(model: Model, variables: Any, batch: Any, rng: jax.Array, train: bool) -> tuple[jax.Array, Any]:
    """Cross entropy in nats per example, with accuracy; or the squared error."""
    cfg = model.cfg
    given = (*inputs(cfg, batch), train, layers.rows_of(batch))
    out, state = model.apply(variables, *given, rngs={"dropout": rng}, mutable=["batch_stats"] if train else [])
    if cfg.objective == "regress":
        scalar, metrics = losses.mean_squared_error(out, batch["label"], batch["weight"])
        return scalar, (metrics, dict(state))
    scalar, metrics = losses.cross_entropy(
        out, batch["label"], batch["weight"], smoothing=cfg.smoothing, class_weights=cfg.class_weights
    )
    metrics["accuracy"] = losses.accuracy(out, batch["label"], batch["weight"])
    return scalar, (metrics, dict(state))
