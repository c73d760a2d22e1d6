"""A bound of a value that is learned: at most so much, and free to come back."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp


def reference(x: jax.Array, largest: float) -> jax.Array:
    """The value of `at_most`; its gradient is lost above the bound, where x would stay for ever."""
    return jnp.minimum(x, largest)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def at_most(x: jax.Array, largest: float) -> jax.Array:
    """min(x, largest). From the bound on only a gradient that lowers x passes, as if x were cut back to the bound after
    each step."""
    return reference(x, largest)


def _forward(x: jax.Array, largest: float) -> tuple[jax.Array, jax.Array]:
    return reference(x, largest), x < largest


def _backward(largest: float, below: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    return (jnp.where(below | (gradient > 0), gradient, 0.0),)


at_most.defvjp(_forward, _backward)
