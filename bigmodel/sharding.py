"""The mesh, and the one place that knows it: regex rules -> NamedSharding, batches, constraints. Layer 0.

A family says for each parameter which *logical* axes its dimensions are; LOGICAL says which mesh axes
shard a logical axis. Families without rules get FSDP on the largest dimension that divides.
"""

from __future__ import annotations

import contextlib
import contextvars
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bigmodel import tree
from bigmodel.config import UsageError

AXES = ("data", "fsdp", "tensor")
LOGICAL: dict[str | None, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "embed": ("fsdp",),
    "heads": ("tensor",),
    "ffn": ("tensor",),
    "vocab": ("tensor",),
    None: (),
}
Rules = Sequence[tuple[str, tuple[str | None, ...]]]

_mesh: contextvars.ContextVar[Mesh | None] = contextvars.ContextVar("mesh", default=None)


def make_mesh(sizes: Mapping[str, int], devices: Sequence[Any] | None = None) -> Mesh:
    """Mesh over all devices (default: jax.devices()). One size may be -1: whatever is left."""
    devices = list(jax.devices() if devices is None else devices)
    shape = [int(sizes[axis]) for axis in AXES]
    free = [i for i, n in enumerate(shape) if n == -1]
    known = math.prod(n for n in shape if n != -1)
    if len(free) > 1 or any(n == 0 or n < -1 for n in shape):
        raise UsageError(f"config.run.mesh={dict(sizes)}: sizes are positive, and at most one is -1 (the rest)")
    if free and len(devices) % known == 0:
        shape[free[0]] = len(devices) // known
    if math.prod(shape) != len(devices):
        raise UsageError(f"config.run.mesh={dict(sizes)} doesn't fill the {len(devices)} devices there are")
    return Mesh(np.asarray(devices).reshape(shape), AXES)


def batch_shards(mesh: Mesh) -> int:
    return math.prod(mesh.shape[a] for a in LOGICAL["batch"])


@contextlib.contextmanager
def use(mesh: Mesh) -> Iterator[None]:
    """`constrain` and `platform` refer to this mesh while a function is traced."""
    token = _mesh.set(mesh)
    try:
        yield
    finally:
        _mesh.reset(token)


def platform() -> str:
    """'cpu', 'gpu' or 'tpu': what the traced program will run on (not where the host traces it)."""
    mesh = _mesh.get()
    return jax.default_backend() if mesh is None else mesh.devices.flat[0].platform


def _spec(shape: Sequence[int], logical: Sequence[str | None], mesh: Mesh) -> P:
    """An axis that doesn't divide its dimension is left whole."""
    spec: list[Any] = []
    for size, name in zip(shape, logical, strict=True):
        axes = tuple(a for a in LOGICAL[name] if mesh.shape[a] > 1)
        spec.append(axes if axes and size % math.prod(mesh.shape[a] for a in axes) == 0 else None)
    return P(*spec)


def constrain(x: jax.Array, *logical: str | None) -> jax.Array:
    """Pins an activation's layout, one logical axis a dimension; nothing happens on one device."""
    mesh = _mesh.get()
    if mesh is None or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, _spec(x.shape, logical, mesh)))


def _largest(shape: Sequence[int], mesh: Mesh) -> P:
    """FSDP on the largest dimension that divides."""
    n = mesh.shape["fsdp"]
    candidates = [i for i, size in enumerate(shape) if n > 1 and size % n == 0 and size >= n]
    if not candidates:
        return P()
    best = max(candidates, key=lambda i: shape[i])
    return P(*("fsdp" if i == best else None for i in range(len(shape))))


def state_shardings(shapes: Any, rules: Rules, mesh: Mesh) -> Any:
    """NamedSharding for every leaf of a training state.

    Args:
      shapes: tree of ShapeDtypeStruct with the parameters under 'params'; moments and accumulators
        are recognised by a path that ends in a parameter's path, with the same shape.
      rules: the family's RULES, or () for FSDP on the largest dimension.

    Raises:
      KeyError: a parameter that no rule matches.
    """
    param_shapes = shapes["params"]
    if rules:
        logical = tree.match_all(rules, param_shapes)
        specs = jax.tree.map(lambda x, names: _spec(x.shape, names, mesh), param_shapes, logical)
    else:
        specs = jax.tree.map(lambda x: _largest(x.shape, mesh), param_shapes)
    known: dict[str, tuple[tuple[int, ...], P]] = {}
    tree.map_paths(lambda path, x, spec: known.__setitem__(path, (x.shape, spec)), param_shapes, specs)

    def leaf(path: str, x: Any) -> NamedSharding:
        parts = path.split("/")
        for start in range(len(parts)):
            shape, spec = known.get("/".join(parts[start:]), (None, P()))
            if shape == x.shape:
                return NamedSharding(mesh, spec)
        return NamedSharding(mesh, _largest(x.shape, mesh))

    return tree.map_paths(leaf, shapes)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh, ndim: int = 1) -> NamedSharding:
    return NamedSharding(mesh, P(LOGICAL["batch"], *(None,) * (ndim - 1)))


def rows_here(mesh: Mesh, batch_size: int) -> tuple[int, int]:
    """[start, stop) of the batch's rows that this process's devices hold."""
    indices = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
    ranges = [index[0].indices(batch_size)[:2] for index in indices.values() if index is not None]
    return min(r[0] for r in ranges), max(r[1] for r in ranges)


def place(batch: Mapping[str, np.ndarray], mesh: Mesh, batch_size: int) -> dict[str, jax.Array]:
    """Host rows (as `rows_here` says) -> global arrays sharded over the batch axes."""
    first, _ = rows_here(mesh, batch_size)

    def put(x: np.ndarray) -> jax.Array:
        shape = (batch_size, *x.shape[1:])

        def rows(index: Any) -> np.ndarray:
            start, stop, _ = index[0].indices(batch_size)
            return x[start - first : stop - first]

        return jax.make_array_from_callback(shape, batch_sharding(mesh, x.ndim), rows)

    return {k: put(v) for k, v in batch.items()}


def to_host(x: Any) -> np.ndarray:
    """A replicated (or fully addressable) array as numpy."""
    return np.asarray(x.addressable_data(0) if getattr(x, "is_fully_replicated", False) else x)
