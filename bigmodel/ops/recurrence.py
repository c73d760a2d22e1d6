"""A recurrence over a window, with one product for the gradient of its matrix.

B batch, L length, D width, U gates.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from bigmodel.ops import products


def reference(cell: Any, state: Any, x_LBUD: jax.Array, w_DUD: jax.Array) -> tuple[Any, jax.Array]:
    """What `recur` computes, with the derived gradient."""

    def one(state: Any, x_BUD: jax.Array) -> tuple[Any, jax.Array]:
        state = cell(state, x_BUD + products.linear(state["hidden"], w_DUD))
        return state, state["hidden"]

    return jax.lax.scan(one, state, x_LBUD)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def recur(cell: Any, state: Any, x_LBUD: jax.Array, w_DUD: jax.Array) -> tuple[Any, jax.Array]:
    """(the state after, the hidden states LBD) of x + the state before times w, token after token.

    The gradient of w is one product over all tokens: the derived one adds one up token after token, which devices that
    share the batch would each time exchange.
    """
    return reference(cell, state, x_LBUD, w_DUD)


def _forward(cell: Any, state: Any, x_LBUD: jax.Array, w_DUD: jax.Array) -> Any:
    out, back = jax.vjp(lambda state, x_LBUD: reference(cell, state, x_LBUD, w_DUD), state, x_LBUD)
    before_LBD = jnp.concatenate([state["hidden"][None], out[1][:-1]])
    return out, (back, before_LBD)


def _backward(cell: Any, saved: Any, gradients: Any) -> Any:
    back, before_LBD = saved
    by_state, by_x_LBUD = back(gradients)
    return by_state, by_x_LBUD, jnp.einsum("LBD,LBUE->DUE", before_LBD, by_x_LBUD)


recur.defvjp(_forward, _backward)
