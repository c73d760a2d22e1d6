"""Losses. Each returns (loss, metrics): the loss is a mean, a metric is a sum and the weight it is a sum over.

B batch, L length, V classes. A batch may carry `weight_B` (1 = counts, 0 = padding), so that an
evaluation set needs no whole number of batches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from bigmodel.ops.cross_entropy import chunked_likelihood, chunks_for, negative_log_likelihood

# name -> (sum, its weight). Sums of several batches add up to those of all their examples; means would not, where the
# weights of batches differ. The weight of "loss" is that of the loss that is trained on, too.
Metrics = dict[str, tuple[jax.Array, jax.Array]]


def mean(metric: tuple[Any, Any]) -> Any:
    """A metric's sum over its weight; 0 where nothing counts."""
    return metric[0] / jnp.maximum(metric[1], 1e-9)


def of_vocabulary(
    read: Callable[[bool], tuple[Any, Any]],
    labels_BL: jax.Array,
    weight_x: jax.Array,
    vocabulary: int,
    *,
    z_loss: float = 0.0,
    smoothing: float = 0.0,
    with_accuracy: bool = False,
) -> tuple[jax.Array, Metrics, Any]:
    """(loss, metrics, rest) of a head over a vocabulary: `cross_entropy` of its logits, or `head_cross_entropy` where
    `chunks_for` takes them in parts.

    Args:
      read: of True, (logits BLV, rest); of False, ((what the head reads BLE, its matrix VE, its bias V or None), rest).
      with_accuracy: the metric, too.
    """
    B, L = labels_BL.shape
    chunks = chunks_for(B, L, vocabulary)
    found, rest = read(chunks == 1)
    if chunks > 1:
        x_BLE, table_VE, bias_V = found
        loss, metrics = head_cross_entropy(
            x_BLE, table_VE, labels_BL, weight_x, chunks, z_loss,
            bias_V=bias_V, smoothing=smoothing, accuracy=with_accuracy,
        )  # fmt: skip
    else:
        loss, metrics = cross_entropy(found, labels_BL, weight_x, z_loss, smoothing)
        if with_accuracy:
            metrics["accuracy"] = accuracy(found, labels_BL, weight_x)
    return loss, metrics, rest


def cross_entropy(
    logits_xV: jax.Array,
    labels_x: jax.Array,
    weight_x: jax.Array,
    z_loss: float = 0.0,
    smoothing: float = 0.0,
    class_weights: Sequence[float] = (),
) -> tuple[jax.Array, Metrics]:
    """Mean -log softmax(logits)[label] in nats, in float32. The metric `loss` leaves out z-loss and smoothing.

    Args:
      logits_xV: any leading dimensions.
      weight_x: weight of each label; broadcasts against labels from the left (B against BL).
      z_loss: adds z_loss * log(Z)^2 (PaLM, arXiv:2204.02311, section 5).
      smoothing: of the label's probability, spread over all V (Szegedy et al. 2015, arXiv:1512.00567, section 7).
      class_weights: times the weight of a label, by its class; (): all 1.
    """
    nll_x, log_z_x = negative_log_likelihood(logits_xV, labels_x)
    weight_x = _weights(weight_x, labels_x)
    if class_weights:
        weight_x = weight_x * jnp.asarray(class_weights, jnp.float32)[labels_x]
    loss, metrics = _mean(nll_x, log_z_x, weight_x, z_loss)
    if smoothing:
        uniform_x = log_z_x - jnp.mean(logits_xV.astype(jnp.float32), axis=-1)
        loss = _smoothed(loss, uniform_x, weight_x, smoothing)
    return loss, metrics


def head_cross_entropy(
    x_BLE: jax.Array,
    table_VE: jax.Array,
    labels_BL: jax.Array,
    weight_x: jax.Array,
    chunks: int,
    z_loss: float = 0.0,
    *,
    bias_V: jax.Array | None = None,
    smoothing: float = 0.0,
    accuracy: bool = False,
) -> tuple[jax.Array, Metrics]:
    """`cross_entropy` of the logits x table^T + bias, which are never whole in memory: see `chunked_likelihood`. With
    `accuracy`, the metric is there, too."""
    found = chunked_likelihood(x_BLE, table_VE, bias_V, labels_BL, chunks, bool(smoothing or accuracy))
    nll_BL, log_z_BL, *more = found
    weight_BL = _weights(weight_x, labels_BL)
    loss, metrics = _mean(nll_BL, log_z_BL, weight_BL, z_loss)
    if smoothing:
        loss = _smoothed(loss, log_z_BL - more[0], weight_BL, smoothing)
    if accuracy:
        metrics["accuracy"] = jnp.sum(more[1] * weight_BL), jnp.sum(weight_BL)
    return loss, metrics


def _smoothed(loss: jax.Array, uniform_x: jax.Array, weight_x: jax.Array, smoothing: float) -> jax.Array:
    return (1 - smoothing) * loss + smoothing * mean((jnp.sum(uniform_x * weight_x), jnp.sum(weight_x)))


def _mean(nll_x: jax.Array, log_z_x: jax.Array, weight_x: jax.Array, z_loss: float) -> tuple[jax.Array, Metrics]:
    weight = jnp.sum(weight_x)
    metrics = {"loss": (jnp.sum(nll_x * weight_x), weight)}
    loss = mean(metrics["loss"])
    if z_loss:
        loss = loss + z_loss * mean((jnp.sum(jnp.square(log_z_x) * weight_x), weight))
    return loss, metrics


def mean_squared_error(values_x: jax.Array, labels_x: jax.Array, weight_x: jax.Array) -> tuple[jax.Array, Metrics]:
    """Mean of (value - label)^2, in float32; weights as in `cross_entropy`."""
    weight_x = _weights(weight_x, labels_x)
    square_x = jnp.square(values_x.astype(jnp.float32) - labels_x)
    found = jnp.sum(square_x * weight_x), jnp.sum(weight_x)
    return mean(found), {"loss": found}


def _weights(weight_x: jax.Array, labels_x: jax.Array) -> jax.Array:
    """One a label: B against BL repeats over L."""
    shape = weight_x.shape + (1,) * (labels_x.ndim - weight_x.ndim)
    return jnp.broadcast_to(weight_x.reshape(shape), labels_x.shape).astype(jnp.float32)


def accuracy(logits_xV: jax.Array, labels_x: jax.Array, weight_x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A metric: the weight of the labels that are the argmax, and of all."""
    hits_x = (jnp.argmax(logits_xV, axis=-1) == labels_x).astype(jnp.float32)
    weight_x = _weights(weight_x, labels_x)
    return jnp.sum(hits_x * weight_x), jnp.sum(weight_x)
