"""-log softmax(logits)[label], of whole logits or of a vocabulary in parts.

B batch, L length, E width, V vocabulary or classes, C parts, U rows of a part.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from bigmodel.ops import sharding


def reference(logits_xV: jax.Array, labels_x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What `negative_log_likelihood` computes, with the derived gradient."""
    log_z_x = jax.nn.logsumexp(logits_xV.astype(jnp.float32), axis=-1)
    label_x = jnp.take_along_axis(logits_xV.astype(jnp.float32), labels_x[..., None], axis=-1)[..., 0]
    return log_z_x - label_x, log_z_x


@jax.custom_vjp
def negative_log_likelihood(logits_xV: jax.Array, labels_x: jax.Array) -> tuple[jax.Array, jax.Array]:
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


negative_log_likelihood.defvjp(_forward, _backward)


# ------------------------------------------------------------------ a vocabulary in parts


CHUNK_BYTES = 2**27  # of float32 logits that a device holds at once, where that is left to us


def chunks_for(batch: int, length: int, vocabulary: int) -> int:
    """Into how many parts the traced program takes the vocabulary: as the execution says, or by size.

    1: the logits are made whole. So are they on a single CPU, where programs take few examples at once.
    """
    asked = sharding.execution().loss_chunks
    if asked or (sharding.platform() == "cpu" and sharding.shards(*sharding.SPREAD) == 1):
        return asked or 1
    spread = sharding.shards("batch", "length", "vocab")
    return -(-4 * batch * length * vocabulary // (spread * CHUNK_BYTES))


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def chunked_likelihood(
    x_BLE: jax.Array, table_VE: jax.Array, bias_V: jax.Array | None, labels_BL: jax.Array, chunks: int, more: bool
) -> Any:
    """(-log softmax(x table^T + bias)[label], log Z), float32 BL each, by C = `chunks` parts of the vocabulary; with
    `more` the mean logit, and 1 where no logit is larger than the label's.

    The backward pass makes each part's logits again, 2BLEV FLOPs more. The vocabulary is cut, and not the batch, so
    that each row of the table is gathered, and its gradient reduced, once over the mesh. Where tensor parallelism has
    the vocabulary in T stripes, each part takes the same rows of every stripe.

    Legend: B batch, L length, E width, V vocab, C parts, U rows of a part.
    """
    return _chunked_forward(x_BLE, table_VE, bias_V, labels_BL, chunks, more)[0]


LANES = 128  # of a TPU: rows of a part that aren't a multiple of it cost as much as the next one, and masks


def _cut(vocabulary: int, chunks: int) -> tuple[int, int]:
    """(parts, at most `chunks` of them; rows that each takes of each stripe)."""
    T = sharding.shards("vocab")
    rows = -(-vocabulary // (T * chunks))
    if rows > LANES and (
        T == 1 or vocabulary % (T * chunks)
    ):  # else stripes are the parameter's own, and stay in place
        rows = -(-rows // LANES) * LANES
    return -(-vocabulary // (T * rows)), rows


def _parts(table_VE: jax.Array, chunks: int, rows: int) -> jax.Array:
    """CUE: the table's rows, with zeros after the last, part by part."""
    T = sharding.shards("vocab")
    table_VE = jnp.pad(table_VE, ((0, T * chunks * rows - table_VE.shape[0]), (0, 0)))
    table_VE = sharding.constrain(table_VE, "vocab", None if T > 1 else "embed")
    return table_VE.reshape(T, chunks, rows, -1).swapaxes(0, 1).reshape(chunks, T * rows, -1)


def _ids(part: Any, rows: int, chunks: int) -> jax.Array:
    """U: which row of the table each row of a part is."""
    T = sharding.shards("vocab")
    row = jnp.arange(rows)
    return row // (rows // T) * (chunks * (rows // T)) + part * (rows // T) + row % (rows // T)


def _bias_parts(bias_V: jax.Array | None, chunks: int, rows: int) -> jax.Array | None:
    """CU, as the table's."""
    return None if bias_V is None else _parts(bias_V[:, None], chunks, rows)[..., 0]


def _part_logits(
    x_BLE: jax.Array, part_UE: jax.Array, bias_U: jax.Array | None, ids_U: jax.Array, size: int
) -> jax.Array:
    part_UE = sharding.constrain(part_UE.astype(x_BLE.dtype), "vocab", None)
    logits_BLU = jnp.einsum("BLE,UE->BLU", x_BLE, part_UE, preferred_element_type=jnp.float32)
    if bias_U is not None:
        logits_BLU = logits_BLU + bias_U.astype(jnp.float32)
    return sharding.constrain(jnp.where(ids_U < size, logits_BLU, -jnp.inf), "batch", "length", "vocab")


def _chunked_forward(
    x_BLE: jax.Array, table_VE: jax.Array, bias_V: jax.Array | None, labels_BL: jax.Array, chunks: int, more: bool
) -> Any:
    x_BLE = sharding.constrain(x_BLE, "batch", "length", None)
    V = table_VE.shape[0]
    chunks, rows = _cut(V, chunks)
    parts = (jnp.arange(chunks), _parts(table_VE, chunks, rows), _bias_parts(bias_V, chunks, rows))

    def body(carry: Any, xs: Any) -> Any:
        max_BL, sum_BL, label_BL, *total = carry
        part, part_UE, bias_U = xs
        ids_U = _ids(part, part_UE.shape[0], chunks)
        logits_BLU = _part_logits(x_BLE, part_UE, bias_U, ids_U, V)
        new_BL = jnp.maximum(max_BL, jnp.max(logits_BLU, axis=-1))
        sum_BL = sum_BL * jnp.exp(max_BL - new_BL) + jnp.sum(jnp.exp(logits_BLU - new_BL[..., None]), axis=-1)
        label_BL += jnp.sum(jnp.where(labels_BL[..., None] == ids_U, logits_BLU, 0.0), axis=-1)
        total = [t + jnp.sum(jnp.where(ids_U < V, logits_BLU, 0.0), axis=-1) for t in total]
        return (new_BL, sum_BL, label_BL, *total), None

    lowest = jnp.full(labels_BL.shape, jnp.finfo(jnp.float32).min)
    zeros = jnp.zeros(labels_BL.shape)
    (max_BL, sum_BL, label_BL, *total), _ = jax.lax.scan(body, (lowest, zeros, zeros, *[zeros] * more), parts)
    log_z_BL = max_BL + jnp.log(sum_BL)
    out: tuple[jax.Array, ...] = (log_z_BL - label_BL, log_z_BL)
    if more:
        out = (*out, total[0] / V, (label_BL >= max_BL).astype(jnp.float32))
    return out, (x_BLE, table_VE, bias_V, labels_BL, log_z_BL)


def _chunked_backward(chunks: int, more: bool, saved: Any, gradients: Any) -> Any:
    x_BLE, table_VE, bias_V, labels_BL, log_z_BL = saved
    V = table_VE.shape[0]
    by_nll_BL, by_log_z_BL, *by_more = gradients
    scale_BL = by_nll_BL + by_log_z_BL
    chunks, rows = _cut(V, chunks)
    parts = (jnp.arange(chunks), _parts(table_VE, chunks, rows), _bias_parts(bias_V, chunks, rows))

    def body(by_x_BLE: jax.Array, xs: Any) -> Any:
        part, part_UE, bias_U = xs
        ids_U = _ids(part, part_UE.shape[0], chunks)
        logits_BLU = _part_logits(x_BLE, part_UE, bias_U, ids_U, V)
        by_BLU = scale_BL[..., None] * jnp.exp(logits_BLU - log_z_BL[..., None])
        by_BLU -= jnp.where(labels_BL[..., None] == ids_U, by_nll_BL[..., None], 0.0)
        if more:
            by_BLU += jnp.where(ids_U < V, by_more[0][..., None] / V, 0.0)
        by_U = None if bias_U is None else jnp.sum(by_BLU, axis=(0, 1)).astype(bias_U.dtype)
        by_BLU = by_BLU.astype(x_BLE.dtype)
        by_x_BLE += jnp.einsum("BLU,UE->BLE", by_BLU, part_UE.astype(x_BLE.dtype), preferred_element_type=jnp.float32)
        by_UE = jnp.einsum("BLU,BLE->UE", by_BLU, x_BLE, preferred_element_type=jnp.float32)
        return by_x_BLE, (sharding.constrain(by_UE.astype(table_VE.dtype), "vocab", "embed"), by_U)

    by_x_BLE, (by_CUE, by_CU) = jax.lax.scan(body, jnp.zeros(x_BLE.shape, jnp.float32), parts)
    T = sharding.shards("vocab")

    def whole(by_CUy: jax.Array) -> jax.Array:
        rest = by_CUy.shape[2:]
        return by_CUy.reshape(chunks, T, -1, *rest).swapaxes(0, 1).reshape(-1, *rest)[:V]

    return by_x_BLE.astype(x_BLE.dtype), whole(by_CUE), None if by_CU is None else whole(by_CU), None


chunked_likelihood.defvjp(_chunked_forward, _chunked_backward)
