"""Products of activations with weights, and rows of a table.

B batch, L length, D width, T rows of all examples, F outputs, N weights side by side, H heads, K head dim, V vocab, E.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from bigmodel.ops import sharding


def moved(x: jax.Array) -> jax.Array:
    """Moved in memory: XLA's CPU products of an operand that is only marked as transposed take twice as long."""
    return jax.lax.optimization_barrier(jnp.swapaxes(x, -1, -2))


def one_cpu() -> bool:
    return sharding.platform() == "cpu" and sharding.shards(*sharding.SPREAD) == 1


def made(x: jax.Array) -> jax.Array:
    """What products read, before them: a TPU's compiler else computes it within them, again for each part of their
    result, and takes a quarter longer to compile a step."""
    return jax.lax.optimization_barrier(x) if sharding.platform() == "tpu" else x


def in_float32(spec: str, x: jax.Array, y: jax.Array) -> jax.Array:
    """einsum with a result of float32, which a CPU's XLA doesn't have of every product of bfloat16."""
    if sharding.platform() == "cpu":
        x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    return jnp.einsum(spec, x, y, preferred_element_type=jnp.float32)


def linears(x_BLD: jax.Array, weights_DHK: Sequence[jax.Array]) -> list[jax.Array]:
    """`linear` of each of the weights, BLHK, as one product where they have one shape: a third of the collectives, and
    of the compilation, of queries, keys and values by themselves. Not on one CPU, which would copy them side by side.
    """
    if one_cpu() or len({w.shape for w in weights_DHK}) > 1:
        return [linear(x_BLD, w) for w in weights_DHK]
    y_BLNHK = linear(made(x_BLD), jnp.stack([w.astype(x_BLD.dtype) for w in weights_DHK], axis=1))
    y_BLNHK = sharding.constrain(y_BLNHK, "batch", "length", None, "heads", None)  # else their gradient is made whole
    # Their gradients are put side by side, not added up, and that before the products that read them.
    return [y[:, :, 0] for y in jnp.split(made(y_BLNHK), len(weights_DHK), axis=2)]


def linear(x_xD: jax.Array, w_Dy: jax.Array) -> jax.Array:
    """x w over x's last axis and w's first, in x's type. On one CPU it is one product of two matrices, which XLA's
    library does fastest, where more axes make it copy operands into other layouts; on a mesh the axes are kept apart,
    so that each stays sharded."""
    if not one_cpu():
        return jax.lax.dot_general(x_xD, w_Dy.astype(x_xD.dtype), (((x_xD.ndim - 1,), (0,)), ((), ())))
    rows = x_xD.reshape(-1, x_xD.shape[-1])
    y = _matmul(rows, w_Dy.reshape(w_Dy.shape[0], -1).astype(x_xD.dtype))
    return y.reshape(*x_xD.shape[:-1], *w_Dy.shape[1:])


@jax.custom_vjp
def _matmul(x_TD: jax.Array, w_DF: jax.Array) -> jax.Array:
    return x_TD @ w_DF


def _matmul_backward(saved: Any, y_TF: jax.Array) -> Any:
    x_TD, w_DF = saved
    return y_TF @ w_DF.T, moved(x_TD) @ y_TF


_matmul.defvjp(lambda x, w: (x @ w, (x, w)), _matmul_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def lookup(table_VE: jax.Array, tokens_x: jax.Array, dtype: str) -> jax.Array:
    """Rows of a table, in `dtype`: gathered over a mesh in that, their gradients summed in the table's own type (in
    bfloat16 a sum of ones ends at 256)."""
    return table_VE.astype(dtype)[tokens_x]


def _lookup_backward(dtype: str, saved: Any, y_xE: jax.Array) -> Any:
    tokens_x, like_VE = saved
    return jnp.zeros_like(like_VE).at[tokens_x].add(y_xE.astype(like_VE.dtype)), None


lookup.defvjp(
    lambda table_VE, tokens_x, dtype: (lookup(table_VE, tokens_x, dtype), (tokens_x, table_VE)), _lookup_backward
)
