"""Which mesh, and what to compute again: memory and time of every layout of a model on a topology, by formula.

Estimates choose; `pod.prove` proves. Of a chip's bytes the state is exact (from the shardings that training uses),
activations are as XLA was seen to keep them. A step's time is the largest of its matrix
products at the published peak and of what each network carries at its published rate: as if all overlapped.

Legend: B examples, L length, D width, F ffn, N depth, H heads, V vocab; t tensor, s sequence, f fsdp, d data x slices.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
from jax.sharding import AbstractMesh
from ml_collections import ConfigDict, FrozenConfigDict

from bigmodel import models
from bigmodel.errors import UsageError, choose
from bigmodel.ops import sharding
from bigmodel.run import budget, program


@dataclass(frozen=True)
class Chip:
    """Published peaks of one chip, in FLOPs, bytes and seconds; bfloat16.

    Attributes:
      ici: bytes a second that a chip sends along one dimension of the torus, both ways together.
      dcn: bytes a second that a chip sends to another slice.
    """

    flops: float
    hbm: float
    hbm_bandwidth: float
    ici: float
    dcn: float
    dimensions: int


# docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}. ICI: bandwidth per chip over its ports, two of which make a
# dimension; DCN: of a pod over its chips (v4's is not printed: 4 chips share 200 Gbps).
CHIPS = {
    "v4": Chip(275e12, 32 * 2**30, 1228e9, 100e9, 6.25e9, 3),
    "v5e": Chip(197e12, 16 * 2**30, 819e9, 100e9, 3.125e9, 2),
    "v5p": Chip(459e12, 95 * 2**30, 2765e9, 200e9, 6.25e9, 3),
    "v6e": Chip(918e12, 32 * 2**30, 1640e9, 200e9, 12.5e9, 2),
}
MOST_SEQUENCE = 8  # devices that a sequence is spread over, in the layouts looked at
USABLE = 0.92  # of HBM, that an estimate may fill: the rest is the compiler's, and the estimate's error


@dataclass(frozen=True)
class Topology:
    name: str
    slices: int = 1

    @property
    def chip(self) -> Chip:
        return CHIPS[choose("--topology", self.name.partition(":")[0], CHIPS)]

    @property
    def shape(self) -> tuple[int, ...]:
        """Chips along each dimension of a slice."""
        try:
            shape = tuple(int(n) for n in self.name.partition(":")[2].split("x"))
        except ValueError:
            shape = ()
        if len(shape) != self.chip.dimensions or min(shape) < 1:
            example = f"{self.name.partition(':')[0]}:{'x'.join(['4'] * self.chip.dimensions)}"
            raise UsageError(f"--topology={self.name!r}: chips along {self.chip.dimensions} dimensions, as {example}")
        if self.slices * math.prod(shape) > 2**20:
            raise UsageError(f"--topology={self.name!r} --slices={self.slices}: more than {2**20:,} chips")
        return shape

    @property
    def chips(self) -> int:
        return self.slices * math.prod(self.shape)


@dataclass(frozen=True)
class Layout:
    """A way to carry a step out, with its estimated bytes a chip and seconds."""

    mesh: Mapping[str, int]
    remat: str
    microbatch: int
    state_bytes: float
    activation_bytes: float
    seconds: Mapping[str, float]  # compute, fsdp, tensor, sequence, data

    @property
    def bytes(self) -> float:
        return self.state_bytes + self.activation_bytes

    @property
    def step_seconds(self) -> float:
        return max(self.seconds["compute"], self.ici_seconds, self.seconds["dcn"])

    @property
    def ici_seconds(self) -> float:
        return sum(v for k, v in self.seconds.items() if k not in ("compute", "dcn"))

    def overrides(self) -> dict[str, Any]:
        mesh = {f"run.mesh.{axis}": n for axis, n in self.mesh.items()}
        return {**mesh, "run.remat": self.remat, "train.microbatch": self.microbatch}

    def describe(self) -> str:
        mesh = " x ".join(f"{axis} {n}" for axis, n in self.mesh.items() if n > 1) or "one chip"
        micro = f", microbatch {self.microbatch}" if self.microbatch else ""
        return f"{mesh}, remat {self.remat}{micro}"


BACKWARD = {"none": 2.0, "dots": 2.1, "full": 3.0, "offload": 3.0}  # in forward passes
# Bytes a token and unit of width that a block keeps for its backward pass, beside what enters it, 2 bytes a number:
# what XLA was found to keep of GPT-3's block (docs/pods.md), not what a program written by hand has to (34: Korthikanti
# et al., table 2). Heads narrower than 128 are stored as if they weren't.
KEPT = {"none": 100.0, "dots": 26.0, "full": 0.0, "offload": 0.0}


def _static(frozen: Any) -> str:
    """What the state's shapes follow from, the same for every way to carry the step out."""
    how = {"train.microbatch": 0, "train.grad_dtype": "float32", "run.remat": "none", "run.loss_chunks": 0}
    return program.static_part(changed(frozen, how))


def estimate(frozen: Any, mesh: Mapping[str, int], topology: Topology, static: str = "") -> Layout:
    """Of a finalised config on a mesh; of families without blocks of attention, the state and compute alone."""
    chip, cfg, train = topology.chip, frozen.model, frozen.train
    n = topology.chips
    abstract = AbstractMesh(tuple(mesh[a] for a in sharding.AXES), sharding.AXES)
    params, state = _state(static or _static(frozen), frozen.family, abstract)
    d, f, s, t = mesh["slices"] * mesh["data"], mesh["fsdp"], mesh["sequence"], mesh["tensor"]
    B = (train.microbatch or train.batch_size) / (d * f)
    turns = train.batch_size / (train.microbatch or train.batch_size)
    forward = models.family(frozen.family).flops(cfg) * train.batch_size
    remat = frozen.run.remat
    seconds = {"compute": forward * (1 + BACKWARD[remat]) / n / chip.flops}
    size = 2 if "dtype" in cfg and cfg.dtype == "bfloat16" else 4
    grads = params * (2 if turns > 1 else 1)  # an accumulator beside the gradient
    if train.grad_dtype != train.param_dtype:
        grads *= 0.5 if train.grad_dtype == "bfloat16" else 2.0
    if "num_heads" not in cfg:
        return Layout(mesh, remat, train.microbatch, state + grads, 0.0, {**seconds, "ici": 0.0, "dcn": 0.0})
    N, D, L = cfg.depth, cfg.width, cfg.seq_len
    tokens = B * L / s  # of a chip, but for the tensor axis
    entering = 0.0 if remat == "offload" else 2.0
    activations = N * tokens * D * (entering + KEPT[remat]) * size / 2 / t
    # Of the block at work: as `none` keeps, its gradient, and two layers' gathered weights with one's gradient.
    block = _block_params(frozen)
    activations += tokens * D * 34 * size / 2 / t * 1.5 + block / t * (2 * size + 4)
    activations += 3 * min(4 * tokens * cfg.vocab_size / t, 2**27) + 2 * 4 * tokens * D
    # What a chip sends, by ring algorithms, over a dimension of the torus at a time.
    gathered = block * N / t * size * (f - 1) / f if f > 1 else 0.0
    # Forward, backward, gradients: without tensor parallelism these whole, at twice the bytes (program.options).
    seconds["fsdp"] = turns * (3 if t > 1 else 4) * gathered / chip.ici
    seconds["tensor"] = turns * (4 + 4) * N * tokens * D * size * (t - 1) / t / chip.ici
    seconds["sequence"] = turns * 8 * N * tokens * D / t * size * (s - 1) / s / chip.ici if s > 1 else 0.0
    reduce = turns * 2 * 4 * budget.counts(frozen.family, cfg)[0] / (f * t)
    seconds["data"] = reduce * (mesh["data"] - 1) / mesh["data"] / chip.ici
    seconds["dcn"] = reduce * (mesh["slices"] - 1) / mesh["slices"] / chip.dcn
    return Layout(mesh, remat, train.microbatch, state + grads, activations, seconds)


def _block_params(frozen: Any) -> float:
    """Parameters of a layer: all without embeddings, over the depth."""
    return budget.counts(frozen.family, frozen.model)[1] / frozen.model.depth


@functools.lru_cache(maxsize=4096)
def _state(static: str, family: str, mesh: AbstractMesh) -> tuple[float, float]:
    """Bytes of a chip's part of the gradients, and of the whole state, from the shardings of training."""
    shapes = program.state_shapes(static)
    layout = sharding.state_shardings(shapes, models.family(family).RULES, mesh)

    def here(tree: Any, placed: Any) -> float:
        parts = jax.tree.map(lambda x, s: math.prod(s.shard_shape(x.shape)) * x.dtype.itemsize, tree, placed)
        return float(sum(jax.tree.leaves(parts)))

    return here(shapes["params"], layout["params"]), here(shapes, layout)


def meshes(frozen: Any, topology: Topology) -> Iterator[dict[str, int]]:
    """Every mesh of the topology that divides the model and its batch; tensor and sequence within a slice."""
    cfg, n = frozen.model, topology.chips // topology.slices
    examples = frozen.train.microbatch or frozen.train.batch_size
    heads = cfg.num_kv_heads if "num_kv_heads" in cfg else 1
    length = cfg.seq_len if "seq_len" in cfg else 1
    most = MOST_SEQUENCE if "num_heads" in cfg else 1
    for t, s in itertools.product(_divisors(n), repeat=2):
        if heads % t or n % (t * s) or length % (t * s) or t > 64 or s > most:
            continue
        for f in _divisors(n // (t * s)):
            d = n // (t * s * f)
            if examples % (topology.slices * d * f) == 0:
                yield {"slices": topology.slices, "data": d, "fsdp": f, "sequence": s, "tensor": t}


def _divisors(n: int) -> list[int]:
    return [k for k in range(1, n + 1) if n % k == 0]


def choices(
    frozen: Any, topology: Topology, remats: tuple[str, ...] = ("none", "dots", "full"), factor: float = 1.0
) -> list[Layout]:
    """Layouts whose estimate fits: the fastest first, of those within about 2 % of each other the smallest.

    `factor`: by how much activations were found to be larger than estimated.
    """
    found = []
    for remat in remats:
        cfg = changed(frozen, {"run.remat": remat})
        static = _static(cfg)
        for mesh in meshes(cfg, topology):
            layout = estimate(cfg, mesh, topology, static)
            if layout.state_bytes + factor * layout.activation_bytes <= USABLE * topology.chip.hbm:
                found.append(layout)
    return sorted(found, key=lambda x: (round(math.log(x.step_seconds, 1.02)), x.bytes))


def smallest(frozen: Any, topology: Topology) -> Layout:
    """The layout of the fewest bytes a chip, all of a block computed again."""
    cfg = changed(frozen, {"run.remat": "full"})
    static = _static(cfg)
    found = [estimate(cfg, mesh, topology, static) for mesh in meshes(cfg, topology)]
    if not found:
        raise UsageError(
            f"config.train.batch_size={frozen.train.batch_size}: no mesh of {topology.chips} chips divides it and the "
            "model's heads and length"
        )
    return min(found, key=lambda x: x.bytes)


def changed(frozen: Any, overrides: Mapping[str, Any]) -> Any:
    cfg = ConfigDict(frozen.to_dict())
    for key, value in overrides.items():
        *parents, leaf = key.split(".")
        section = cfg
        for part in parents:
            section = section[part]
        section[leaf] = value
    return FrozenConfigDict(cfg)


def why(layout: Layout, topology: Topology) -> str:
    """One line: what the choice fills and what bounds it."""
    g, s = 2**30, layout.seconds
    slowest = max((("ICI", layout.ici_seconds), ("DCN", s["dcn"]), ("compute", s["compute"])), key=lambda x: x[1])
    return (
        f"{layout.describe()}: about {layout.state_bytes / g:.2f} GiB of state and gradients and "
        f"{layout.activation_bytes / g:.2f} of activations of {topology.chip.hbm / g:.0f} GiB; "
        f"compute {s['compute']:.3g} s, ICI {layout.ici_seconds:.3g} s, DCN {s['dcn']:.3g} s: bound by {slowest[0]}"
    )


@dataclass(frozen=True)
class Remedy:
    overrides: Mapping[str, Any]
    text: str
    cost: float  # seconds x chips a token, over what the config would take
    layout: Layout
    topology: Topology


def remedies(frozen: Any, topology: Topology, needed: float = 0.0, count: int = 3) -> list[Remedy]:
    """The cheapest changes after which the estimate fits, one of a kind: another layout of the same step, a batch in
    parts, moments in bfloat16, a larger topology.

    Args:
      needed: bytes that the config's own program was found to need, which correct the estimates.
    """
    factor = 1.0
    if needed:
        own = estimate(frozen, sharding.full(frozen.run.mesh, topology.chips), topology)
        factor = max(1.0, (needed - own.state_bytes) / max(1.0, own.activation_bytes))
    base = models.family(frozen.family).flops(frozen.model) * 3 * frozen.train.batch_size / topology.chip.flops
    B = frozen.train.batch_size
    kinds: list[tuple[str, dict[str, Any], Topology]] = [("", {}, topology)]
    kinds += [
        (f"gradients of {B // k} examples at a time", {"train.microbatch": B // k}, topology)
        for k in (2, 4, 8, 16, 32, 64)
        if B % k == 0
    ]
    kinds += [
        (f"{text}, moments in bfloat16".lstrip(", "), {**o, "optim.state_dtype": "bfloat16"}, topology)
        for text, o, _ in list(kinds)
    ]
    kinds += [(f"{k} slices", {}, replace(topology, slices=topology.slices * k)) for k in (2, 4, 8, 16)]
    best: dict[str, Remedy] = {}
    for text, overrides, where in kinds:
        found = choices(changed(frozen, overrides), where, ("none", "dots", "full", "offload"), factor)
        if not found:
            continue
        layout = found[0]
        cost = layout.step_seconds * where.chips / base
        kind = "slices" if where is not topology else "+".join(sorted(overrides)) or "layout"
        if kind not in best or cost < best[kind].cost * 0.999:
            best[kind] = Remedy({**overrides, **layout.overrides(), **overrides}, text, cost, layout, where)
    return sorted(best.values(), key=lambda r: r.cost)[:count]
