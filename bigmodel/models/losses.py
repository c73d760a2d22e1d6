"""Losses. Each returns (loss, metrics); metrics are weighted means, with their total `weight`.

B batch, L length, V classes. A batch may carry `weight_B` (1 = counts, 0 = padding), so that an
evaluation set needs no whole number of batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

Metrics = dict[str, jax.Array]


def cross_entropy(
    logits_xV: jax.Array,
    labels_x: jax.Array,
    weight_x: jax.Array,
    z_loss: float = 0.0,
    smoothing: float = 0.0,
    class_weights: Sequence[float] = (),
) -> tuple[jax.Array, Metrics]:
    """Mean -log softmax(logits)[label] in nats, in float32. The metric `loss` is without z-loss and smoothing.

    Args:
      logits_xV: any leading dimensions.
      weight_x: weight of each label; broadcasts against labels from the left (B against BL).
      z_loss: adds z_loss * log(Z)^2 (PaLM, arXiv:2204.02311, section 5).
      smoothing: of the label's probability, spread over all V (Szegedy et al. 2015, arXiv:1512.00567, section 7).
      class_weights: times the weight of a label, by its class; (): all 1.
    """
    nll_x, log_z_x = _negative_log_likelihood(logits_xV, labels_x)
    weight_x = _weights(weight_x, labels_x)
    if class_weights:
        weight_x = weight_x * jnp.asarray(class_weights, jnp.float32)[labels_x]
    total = jnp.sum(weight_x)
    safe = jnp.maximum(total, 1e-9)
    loss = jnp.sum(nll_x * weight_x) / safe
    metrics = {"loss": loss, "weight": total}
    if z_loss:
        loss = loss + z_loss * jnp.sum(jnp.square(log_z_x) * weight_x) / safe
    if smoothing:
        uniform_x = log_z_x - jnp.mean(logits_xV.astype(jnp.float32), axis=-1)
        loss = (1 - smoothing) * loss + smoothing * jnp.sum(uniform_x * weight_x) / safe
    return loss, metrics


def mean_squared_error(values_x: jax.Array, labels_x: jax.Array, weight_x: jax.Array) -> tuple[jax.Array, Metrics]:
    """Mean of (value - label)^2, in float32; weights as in `cross_entropy`."""
    weight_x = _weights(weight_x, labels_x)
    total = jnp.sum(weight_x)
    square_x = jnp.square(values_x.astype(jnp.float32) - labels_x)
    loss = jnp.sum(square_x * weight_x) / jnp.maximum(total, 1e-9)
    return loss, {"loss": loss, "weight": total}


def _weights(weight_x: jax.Array, labels_x: jax.Array) -> jax.Array:
    """One a label: B against BL repeats over L."""
    shape = weight_x.shape + (1,) * (labels_x.ndim - weight_x.ndim)
    return jnp.broadcast_to(weight_x.reshape(shape), labels_x.shape).astype(jnp.float32)


@jax.custom_vjp
def _negative_log_likelihood(logits_xV: jax.Array, labels_x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(-log softmax(logits)[label], log Z), float32."""
    return _forward(logits_xV, labels_x)[0]


# The gradient is written out because the derived one passes over the logits several times more, once to scatter a one
# per row: at a vocabulary of 50,000 they are the largest array of a step. The sum is a product with ones because
# XLA's CPU reductions of an exponential take three times as long as the exponential.
def _forward(logits_xV: jax.Array, labels_x: jax.Array) -> Any:
    wide_xV = logits_xV.astype(jnp.float32)
    max_x = jax.lax.stop_gradient(jnp.max(wide_xV, axis=-1))
    exp_xV = jnp.exp(wide_xV - max_x[..., None])
    sum_x = exp_xV @ jnp.ones(exp_xV.shape[-1])
    log_z_x = max_x + jnp.log(sum_x)
    nll_x = log_z_x - jnp.take_along_axis(wide_xV, labels_x[..., None], axis=-1)[..., 0]
    return (nll_x, log_z_x), (exp_xV, sum_x, labels_x, jnp.zeros((), logits_xV.dtype))


def _backward(saved: Any, gradients: Any) -> Any:
    exp_xV, sum_x, labels_x, like = saved
    by_nll_x, by_log_z_x = gradients
    scale_x = (by_nll_x + by_log_z_x) / sum_x
    label_xV = labels_x[..., None] == jnp.arange(exp_xV.shape[-1])
    gradient_xV = scale_x[..., None] * exp_xV - jnp.where(label_xV, by_nll_x[..., None], 0.0)
    return gradient_xV.astype(like.dtype), None


_negative_log_likelihood.defvjp(_forward, _backward)


def accuracy(logits_xV: jax.Array, labels_x: jax.Array, weight_x: jax.Array) -> jax.Array:
    """Weighted fraction of labels that are the argmax."""
    hits_x = (jnp.argmax(logits_xV, axis=-1) == labels_x).astype(jnp.float32)
    weight_x = _weights(weight_x, labels_x)
    return jnp.sum(hits_x * weight_x) / jnp.maximum(jnp.sum(weight_x), 1e-9)
