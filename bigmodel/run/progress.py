"""A run's progress line, and the peak FLOP/s that its MFU refers to."""

from __future__ import annotations

import functools
import math
import sys
import time
import timeit
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from bigmodel.errors import note
from bigmodel.words import duration, human

# Dense bfloat16 peak FLOP/s of a device, from the vendors' product pages.
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


def peak_flops(mesh: Mesh) -> float:
    """Published peak of the mesh's devices together. For a CPU, a float32 matrix product measured here."""
    kind = mesh.devices.flat[0].device_kind
    for name, peak in sorted(PEAK_FLOPS.items(), key=lambda item: -len(item[0])):
        if kind.startswith(name):
            return peak * mesh.size
    if mesh.devices.flat[0].platform != "cpu":
        note(f"no published peak of {kind!r} is known: MFU refers to a float32 product measured here")
    # Forced host devices share the same cores, so a CPU's peak doesn't grow with the mesh.
    return cpu_peak() * jax.process_count()


@functools.cache
def cpu_peak(n: int = 1024) -> float:
    """FLOP/s of an n x n float32 product, the best of 3. Takes about 0.1 s, once in a process."""
    x = jnp.ones((n, n), jnp.float32)
    product = jax.jit(lambda a: a @ a)
    product(x).block_until_ready()
    return 2 * n**3 / min(timeit.repeat(lambda: product(x).block_until_ready(), repeat=3, number=1))


class Line:
    """One line, rewritten on a terminal. Elsewhere, a line every `every` seconds."""

    def __init__(self, name: str, steps: int, quiet: bool = False, every: float = 10.0):
        self.name, self.steps, self.quiet = name, steps, quiet
        self.terminal = sys.stderr.isatty()
        self.every = 0.5 if self.terminal else every
        self.shown = time.time()
        self.drawn = False

    def due(self) -> bool:
        return time.time() - self.shown >= self.every

    def show(self, step: int, loss: float, speed: dict[str, Any], rate: float) -> None:
        """`rate`: steps per second since the line was last shown."""
        due, self.shown = self.due() or (self.terminal and step == self.steps), time.time()
        if self.quiet or not due:
            return
        eta = duration((self.steps - step) / rate) if rate else "?"
        units = next((f"{human(v)} {k.split('_')[0]}/s" for k, v in speed.items() if k.endswith("_per_second")), "")
        value = f"{loss:.4f}" if math.isfinite(loss) else "-"
        text = f"{self.name}  step {step}/{self.steps}  loss {value}  {units}  MFU {speed['mfu']:.0%}  ETA {eta}"
        if self.terminal:
            sys.stderr.write(f"\r\x1b[K{text}")
            self.drawn = True
        else:
            sys.stderr.write(text + "\n")
        sys.stderr.flush()

    def say(self, text: str) -> None:
        """Prints a line that stays, above the progress line."""
        if not self.quiet:
            self.close()
            sys.stderr.write(text + "\n")
            sys.stderr.flush()

    def close(self) -> None:
        if self.drawn:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
