"""What differs between CPUs, GPUs and TPUs outside of single operations: memory, peak speed, compiler options."""

from __future__ import annotations

import functools
import os
import timeit
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import Mesh

from bigmodel.errors import note

# Published dense peak FLOP/s of a device, bfloat16: the vendors' product pages.
PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}
CACHED_TOKENS = 512  # on a CPU, widths 64 to 256: 256 and 2048 are slower, 1024 about as fast


def of(mesh: Mesh) -> str:
    """'cpu', 'gpu' or 'tpu'."""
    return str(mesh.devices.flat[0].platform)


def compilers(platform: str) -> list[str]:
    """Packages that compile for a platform, beside jaxlib."""
    return ["libtpu"] if platform == "tpu" else []


def peak_flops(mesh: Mesh) -> float:
    """Peak of all the mesh's devices: published; for a CPU, a float32 matrix product measured here."""
    kind = mesh.devices.flat[0].device_kind
    for name, peak in sorted(PEAK_FLOPS.items(), key=lambda item: -len(item[0])):
        if kind.startswith(name):
            return peak * mesh.size
    if of(mesh) != "cpu":
        note(f"no published peak of {kind!r} is known: MFU refers to a float32 product measured here")
    # Forced host devices share the same cores, so a CPU's peak doesn't grow with the mesh.
    return measured_peak() * jax.process_count()


@functools.cache
def measured_peak(n: int = 1024) -> float:
    """FLOP/s of an n x n float32 product, best of 3: about 0.1 s, once a process."""
    x = jnp.ones((n, n), jnp.float32)
    product = jax.jit(lambda a: a @ a)
    product(x).block_until_ready()
    return 2 * n**3 / min(timeit.repeat(lambda: product(x).block_until_ready(), repeat=3, number=1))


def memory(mesh: Mesh) -> tuple[float, str] | None:
    """(bytes of all devices together, what they are of); None: unknown."""
    if of(mesh) == "cpu":
        if not hasattr(os, "sysconf"):
            return None
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * jax.process_count(), "this memory"
    stats = mesh.devices.flat[0].memory_stats() or {}
    if "bytes_limit" not in stats:
        return None
    return stats["bytes_limit"] * mesh.size, f"the memory of {mesh.size} devices"


def cached_examples(mesh: Mesh, batch: int, tokens: int) -> int:
    """Into how many examples of `tokens` tokens a batch is best cut, where nothing else decides it.

    On one CPU device they make CACHED_TOKENS tokens: activations then stay in the caches between the forward and the
    backward pass, which takes a third off the time of a step. Elsewhere the batch stays whole.
    """
    if of(mesh) != "cpu" or mesh.size > 1 or tokens == 1:
        return batch
    most = max(CACHED_TOKENS // tokens, 1)
    return max(m for m in range(1, min(most, batch) + 1) if batch % m == 0)


def step_options(mesh: Mesh) -> dict[str, Any] | None:
    """XLA's options for a train step, where its defaults aren't ours.

    Without tensor parallelism nothing that is gathered depends on activations, so that a layer's weights can be
    fetched whole and early. Products that gather or scatter an operand in a ring, a part at a time (Wang et al. 2022,
    doi:10.1145/3567955.3567959), take memory and compilation then, and have little to hide. The price: gradients are
    summed whole before they are cut, at twice the bytes of a reduce-scatter (docs/pods.md has the numbers).
    """
    if of(mesh) != "tpu" or mesh.shape["tensor"] > 1:
        return None
    return {f"xla_tpu_enable_windowed_einsum_for_{kind}": False for kind in ("all_gather", "reduce_scatter")}


def init_options(mesh: Mesh) -> dict[str, Any] | None:
    """XLA's options for a program that runs once: at LLVM's first level, random numbers compile in half the time."""
    return {"xla_backend_optimization_level": 1} if of(mesh) == "cpu" else None


def as_stored(grads: Any, shardings: Any, mesh: Mesh) -> Any:
    """Gradients in the layout in memory that parameters have. A TPU's compiler else turns them within the optimizer's
    own loops, which take it ten times as long to compile."""
    if of(mesh) != "tpu":
        return grads

    def here(parts: Any) -> Any:
        parts = jax.tree.map(lambda x: with_layout_constraint(x, Layout(tuple(range(x.ndim)))), parts)
        return jax.tree.map(jax.lax.optimization_barrier, parts)

    specs = jax.tree.map(lambda placed: placed.spec, shardings)
    return jax.shard_map(here, mesh=mesh, in_specs=(specs,), out_specs=specs, check_vma=False)(grads)
