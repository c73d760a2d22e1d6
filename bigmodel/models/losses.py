"""Losses. Each returns (loss, metrics); metrics are weighted means, with their total `weight`.

B batch, L length, V classes. A batch may carry `weight_B` (1 = counts, 0 = padding), so that an
evaluation set needs no whole number of batches.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

Metrics = dict[str, jax.Array]


def cross_entropy(
    logits_xV: jax.Array, labels_x: jax.Array, weight_x: jax.Array, z_loss: float = 0.0
) -> tuple[jax.Array, Metrics]:
    """Mean -log softmax(logits)[label] in nats, in float32.

    Args:
      logits_xV: any leading dimensions.
      weight_x: weight of each label; broadcasts against labels from the left (B against BL).
      z_loss: adds z_loss * log(Z)^2 (PaLM, arXiv:2204.02311, section 5); the metric `loss` leaves it out.
    """
    logits_xV = logits_xV.astype(jnp.float32)
    log_z_x = jax.nn.logsumexp(logits_xV, axis=-1)
    label_logit_x = jnp.take_along_axis(logits_xV, labels_x[..., None], axis=-1)[..., 0]
    weight_x = jnp.broadcast_to(
        weight_x.reshape(weight_x.shape + (1,) * (labels_x.ndim - weight_x.ndim)), labels_x.shape
    ).astype(jnp.float32)
    total = jnp.sum(weight_x)
    safe = jnp.maximum(total, 1e-9)
    loss = jnp.sum((log_z_x - label_logit_x) * weight_x) / safe
    metrics = {"loss": loss, "weight": total}
    if z_loss:
        loss = loss + z_loss * jnp.sum(jnp.square(log_z_x) * weight_x) / safe
    return loss, metrics


def accuracy(logits_xV: jax.Array, labels_x: jax.Array, weight_x: jax.Array) -> jax.Array:
    """Weighted fraction of labels that are the argmax."""
    hits_x = (jnp.argmax(logits_xV, axis=-1) == labels_x).astype(jnp.float32)
    return jnp.sum(hits_x * weight_x) / jnp.maximum(jnp.sum(weight_x), 1e-9)
