"""The mesh, and the one place that knows it: regex rules -> NamedSharding, batches, constraints.

A family's RULES name each axis of each parameter; LOGICAL has the names, and the mesh axes that shard each. `depth` is
an axis of layers, `expert` one of experts, `window` one of a convolution's kernel; `embed` is the width of the residual
stream, `rank` the short side of an adapter. Families without rules get FSDP on the largest dimension that divides.

The mesh's axes, the slowest network first:

    slices     groups of chips that only a data-centre network joins: each has a part of the batch and the whole state
    data       each has a part of the batch and the whole state
    fsdp       each has a part of the batch and of the state: parameters are gathered a layer at a time (ZeRO stage 3;
               Rajbhandari et al. 2020, arXiv:1910.02054)
    sequence   each has a part of every sequence; attention exchanges it for a part of the heads (Jacobs et al. 2023,
               arXiv:2309.14509)
    tensor     each has a part of the heads, of the feed-forward layer and of the vocabulary (Shoeybi et al. 2019,
               arXiv:1909.08053); between those, of every sequence (Korthikanti et al. 2022, arXiv:2205.05198)
"""

from __future__ import annotations

import contextlib
import contextvars
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bigmodel import tree
from bigmodel.errors import UsageError

AXES = ("slices", "data", "fsdp", "sequence", "tensor")
ALONE = {axis: 1 for axis in AXES}
LOGICAL: dict[str | None, tuple[str, ...]] = {
    "batch": ("slices", "data", "fsdp"),
    "embed": ("fsdp",),
    "heads": ("tensor",),
    "ffn": ("tensor",),
    "vocab": ("tensor",),
    # whole on every device
    **dict.fromkeys(("depth", "expert", "window", "head_dim", "gate", "position", "bucket", "feature", "class"), ()),
    **dict.fromkeys(("output", "table", "rank"), ()),
    # of activations alone
    "length": ("sequence",),
    "residual": ("sequence", "tensor"),  # length, between the products that tensor parallelism splits
    "all_heads": ("tensor", "sequence"),  # while attention sees whole sequences
    None: (),
}
SPREAD = ("batch", "length", "heads")  # together: all axes
Rules = Sequence[tuple[str, tuple[str | None, ...]]]


@dataclass(frozen=True)
class Execution:
    """How a program is carried out: changes what a step costs, and its numbers in the last digits only.

    Attributes:
      remat: what of a block's activations the backward pass computes again (layers.stack).
      attention: auto, plain, splash (TPU) or cudnn (GPU).
      loss_chunks: parts of the vocabulary that the loss takes one after another; 0: by size.
    """

    remat: str = "none"
    attention: str = "auto"
    loss_chunks: int = 0


DEFAULT = Execution()
_mesh: contextvars.ContextVar[Mesh | None] = contextvars.ContextVar("mesh", default=None)
_execution: contextvars.ContextVar[Execution] = contextvars.ContextVar("execution", default=DEFAULT)


def full(sizes: Mapping[str, int], devices: int) -> dict[str, int]:
    """Every axis with its size, for a given number of devices. One size may be -1: the devices that are left."""
    shape = {axis: int(sizes.get(axis, 1)) for axis in AXES}
    free = [axis for axis, n in shape.items() if n == -1]
    known = math.prod(n for n in shape.values() if n != -1)
    if len(free) > 1 or any(n == 0 or n < -1 for n in shape.values()):
        raise UsageError(f"config.run.mesh={dict(sizes)}: sizes are positive, and at most one is -1 (the rest)")
    if free and devices % known == 0:
        shape[free[0]] = devices // known
    if math.prod(shape.values()) != devices:
        raise UsageError(f"config.run.mesh={dict(sizes)} doesn't fill the {devices} devices there are")
    return shape


def make_mesh(sizes: Mapping[str, int], devices: Sequence[Any] | None = None) -> Mesh:
    """Mesh over all devices (default: jax.devices()). One size may be -1: whatever is left.

    Of TPUs, neighbours on the mesh are neighbours on the torus, and `slices` is the axis between slices.
    """
    devices = list(jax.devices() if devices is None else devices)
    shape = list(full(sizes, len(devices)).values())
    if devices[0].platform != "tpu":
        return Mesh(np.asarray(devices).reshape(shape), AXES)
    slices = len({getattr(d, "slice_index", 0) for d in devices})
    if slices > 1 and shape[0] % slices:
        raise UsageError(f"config.run.mesh={dict(sizes)}: there are {slices} slices, so slices must be {slices}")
    try:
        if slices > 1:
            within = (shape[0] // slices, *shape[1:])
            array = mesh_utils.create_hybrid_device_mesh(within, (slices, *(1,) * (len(AXES) - 1)), devices)
        else:
            array = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    except (NotImplementedError, ValueError):  # no layout along the torus's axes is known for these sizes
        array = np.asarray(devices).reshape(shape)
    return Mesh(array, AXES)


def batch_shards(mesh: Mesh) -> int:
    return math.prod(mesh.shape[a] for a in LOGICAL["batch"])


@contextlib.contextmanager
def use(mesh: Mesh, execution: Execution = DEFAULT) -> Iterator[None]:
    """`constrain`, `platform` and `execution` refer to these while a function is traced."""
    tokens = _mesh.set(mesh), _execution.set(execution)
    try:
        yield
    finally:
        _mesh.reset(tokens[0])
        _execution.reset(tokens[1])


def execution() -> Execution:
    return _execution.get()


def current() -> Mesh | None:
    """The mesh that the traced program is for; None outside `use`."""
    return _mesh.get()


def product(mesh: Mesh, axes: Sequence[str]) -> int:
    return math.prod(mesh.shape[a] for a in axes)


def shards(*logical: str) -> int:
    """Over how many devices the traced program's mesh spreads a dimension of these logical axes."""
    mesh = _mesh.get()
    return 1 if mesh is None else math.prod(mesh.shape[a] for name in logical for a in LOGICAL[name])


def platform() -> str:
    """'cpu', 'gpu' or 'tpu': what the traced program will run on (not where the host traces it)."""
    mesh = _mesh.get()
    return jax.default_backend() if mesh is None else mesh.devices.flat[0].platform


def spec(shape: Sequence[int], logical: Sequence[str | None], mesh: Mesh) -> P:
    """An axis that doesn't divide its dimension is left whole."""
    return P(*(axes or None for axes in _axes(shape, logical, mesh)))


def _axes(shape: Sequence[int], logical: Sequence[str | None], mesh: Mesh) -> list[tuple[str, ...]]:
    found = []
    for size, name in zip(shape, logical, strict=True):
        axes = tuple(a for a in LOGICAL[name] if mesh.shape[a] > 1)
        found.append(axes if axes and size % math.prod(mesh.shape[a] for a in axes) == 0 else ())
    return found


def parameter_spec(shape: Sequence[int], logical: Sequence[str | None], mesh: Mesh) -> P:
    """As `spec`, but an axis that doesn't divide its own dimension shards the largest other one that it divides.

    Some published shapes divide by little: GPT-3's vocabulary is 29 x 1733, its 13B is 5140 wide.
    """
    found = _axes(shape, logical, mesh)
    if any(name is not None for name in logical):  # vectors stay whole
        for dim, name in enumerate(logical):
            for axis in (a for a in LOGICAL[name] if mesh.shape[a] > 1 and not found[dim]):
                free = [
                    i
                    for i, size in enumerate(shape)
                    if i != dim
                    and size % (mesh.shape[axis] * math.prod(mesh.shape[a] for a in found[i])) == 0
                    and logical[i] != "depth"  # else a layer would be one device's
                ]
                if free:
                    best = max(free, key=lambda i: shape[i] / math.prod(mesh.shape[a] for a in found[i]))
                    found[best] = (*found[best], axis)
    return P(*(axes or None for axes in found))


def constrain(x: jax.Array, *logical: str | None) -> jax.Array:
    """Pins an activation's layout, one logical axis a dimension; nothing happens on one device."""
    mesh = _mesh.get()
    if mesh is None or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec(x.shape, logical, mesh)))


def _largest(shape: Sequence[int], mesh: Mesh) -> P:
    """FSDP on the largest dimension that divides."""
    n = mesh.shape["fsdp"]
    candidates = [i for i, size in enumerate(shape) if n > 1 and size % n == 0 and size >= n]
    if not candidates:
        return P()
    best = max(candidates, key=lambda i: shape[i])
    return P(*("fsdp" if i == best else None for i in range(len(shape))))


def state_shardings(shapes: Any, rules: Rules, mesh: Any) -> Any:
    """NamedSharding for every leaf of a training state.

    Args:
      shapes: tree of ShapeDtypeStruct with the parameters under 'params'; moments and accumulators
        are recognised by a path that ends in a parameter's path, with the same shape.
      mesh: or an AbstractMesh, of devices that needn't be there.
      rules: the family's RULES, or () for FSDP on the largest dimension.

    Raises:
      KeyError: a parameter that no rule matches.
    """
    param_shapes = shapes["params"]
    if rules:
        logical = tree.match_all(rules, param_shapes)
        specs = jax.tree.map(lambda x, names: parameter_spec(x.shape, names, mesh), param_shapes, logical)
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
