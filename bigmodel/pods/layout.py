"""Memory and time of every layout (mesh, recomputation, micro-batch) of a model on a topology, by formula.

Layouts are chosen by these estimates and verified by `aot.prove`. The state's bytes per chip are exact, from the
shardings that training uses; activations follow what XLA was observed to keep. The time of a step is the largest of the
time of its matrix products at the published peak and of each network's traffic at its published rate, as if all
overlapped.

Legend: B examples, L length, D width, F ffn, N depth, H heads, V vocab; t tensor, s sequence, f fsdp, d data x slices.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
from jax.sharding import AbstractMesh
from ml_collections import ConfigDict, FrozenConfigDict

from bigmodel import config, models
from bigmodel.errors import UsageError, choose
from bigmodel.ops import sharding
from bigmodel.run import counts, program


@dataclass(frozen=True)
class Chip:
    """Published peaks of one chip in FLOPs, bytes and seconds; bfloat16.

    Attributes:
      ici: bytes per second that a chip sends along one dimension of the torus, both directions together.
      dcn: bytes per second that a chip sends to other slices.
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
MOST_SEQUENCE = 8  # devices that a sequence is spread over, at most
USABLE = 0.92  # of HBM that an estimate may fill: the rest is for the compiler, and for the estimate's error


@dataclass(frozen=True)
class Topology:
    name: str
    slices: int = 1

    @property
    def chip(self) -> Chip:
        return CHIPS[choose("--topology", self.name.partition(":")[0], CHIPS)]

    @property
    def shape(self) -> tuple[int, ...]:
        """Chips along each dimension of a slice. UsageError: the name is malformed."""
        chip, _, text = self.name.partition(":")
        dimensions = self.chip.dimensions
        shape = tuple(int(n) if n.isdecimal() else 0 for n in text.split("x"))
        if len(shape) != dimensions or min(shape) < 1:
            example = f"{chip}:{'x'.join(['4'] * dimensions)}"
            raise UsageError(f"--topology={self.name!r}: chips along {dimensions} dimensions, as {example}")
        if self.slices * math.prod(shape) > 2**20:
            raise UsageError(f"--topology={self.name!r} --slices={self.slices}: more than {2**20:,} chips")
        return shape

    @property
    def chips(self) -> int:
        return self.slices * math.prod(self.shape)


@dataclass(frozen=True)
class Layout:
    """A way to execute a step, with its estimated bytes per chip and seconds."""

    mesh: Mapping[str, int]
    remat: str
    microbatch: int
    state_bytes: float
    activation_bytes: float
    seconds: Mapping[str, float]  # compute, dcn; the others are on ICI: fsdp, tensor, sequence, data

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


BACKWARD = {"none": 2.0, "dots": 2.1, "full": 3.0, "offload": 3.0}  # in forward passes


def _static(frozen: Any) -> str:
    """What the state's shapes follow from; the same for every way to execute the step."""
    how = {"train.microbatch": 0, "train.grad_dtype": "float32", "run.remat": "none", "run.loss_chunks": 0}
    return program.static_part(changed(frozen, how))


def estimate(frozen: Any, mesh: Mapping[str, int], topology: Topology, static: str = "") -> Layout:
    """The layout of a finalised config on a mesh; of a family without a footprint, its state and compute alone.

    A family's footprint(cfg) has, in numbers of one example: `entering`, what its layers read and keep whatever is
    computed again; `kept`, what they keep beside it by `run.remat` ("none", "dots"); `block`, what the layer that is
    worked on holds; `ends`, what is float32 and divided by examples and length alone; `logits`. And `layers`, whose
    weights are gathered one after another; `itemsize`, bytes of a number; `heads` and `length`, what the axes tensor
    and sequence have to divide, 1 where they can't.

    Args:
      static: `_static(frozen)`, if the caller has it already.
    """
    chip, cfg, train = topology.chip, frozen.model, frozen.train
    n = topology.chips
    abstract = AbstractMesh(tuple(mesh[a] for a in sharding.AXES), sharding.AXES)
    params, state = _state(static or _static(frozen), abstract)
    d, f, s, t = mesh["slices"] * mesh["data"], mesh["fsdp"], mesh["sequence"], mesh["tensor"]
    B = (train.microbatch or train.batch_size) / (d * f)
    turns = train.batch_size / (train.microbatch or train.batch_size)
    forward = models.family(frozen.family).flops(cfg) * train.batch_size
    remat = frozen.run.remat
    seconds = {"compute": forward * (1 + BACKWARD[remat]) / n / chip.flops}
    grads = params * (2 if turns > 1 else 1)  # an accumulator beside the gradient
    if train.grad_dtype != train.param_dtype:
        grads *= 0.5 if train.grad_dtype == "bfloat16" else 2.0
    sizes = models.family(frozen.family).footprint(cfg)
    if sizes is None:
        return Layout(mesh, remat, train.microbatch, state + grads, 0.0, {**seconds, "ici": 0.0, "dcn": 0.0})
    size, here = sizes["itemsize"], B / s  # examples per chip, before the tensor axis
    entering = 0.0 if remat == "offload" else sizes["entering"]
    activations = here * (entering + sizes["kept"].get(remat, 0.0)) * size / t
    # The current block: what `none` keeps, its gradient, and two layers' gathered weights with one layer's gradient.
    total, nonembedding, *_ = counts.counts(frozen.family, cfg)
    activations += here * sizes["block"] * size / t + nonembedding / sizes["layers"] / t * (2 * size + 4)
    activations += 3 * min(4 * here * sizes["logits"] / t, 2**27) + 4 * here * sizes["ends"]
    # What a chip sends by ring algorithms, over one dimension of the torus at a time.
    gathered = nonembedding / t * size * (f - 1) / f if f > 1 else 0.0
    # Forward, backward, gradients; without tensor parallelism gradients take twice the bytes (platforms.step_options).
    seconds["fsdp"] = turns * (3 if t > 1 else 4) * gathered / chip.ici
    seconds["tensor"] = turns * (4 + 4) * here * sizes["entering"] * size * (t - 1) / t / chip.ici
    seconds["sequence"] = turns * 8 * here * sizes["entering"] / t * size * (s - 1) / s / chip.ici
    reduce = turns * 2 * 4 * total / (f * t)
    seconds["data"] = reduce * (mesh["data"] - 1) / mesh["data"] / chip.ici
    seconds["dcn"] = reduce * (mesh["slices"] - 1) / mesh["slices"] / chip.dcn
    return Layout(mesh, remat, train.microbatch, state + grads, activations, seconds)


def least_state(frozen: Any) -> float:
    """Bytes of the whole state and its gradients, on all chips together."""
    return sum(_state(_static(frozen), AbstractMesh((1,) * len(sharding.AXES), sharding.AXES)))


@functools.lru_cache(maxsize=4096)
def _state(static: str, mesh: AbstractMesh) -> tuple[float, float]:
    """Bytes per chip of the gradients and of the whole state, by the shardings of training."""
    shapes, cfg = program.state_shapes(static), FrozenConfigDict(config.from_json(static))
    layout = sharding.state_shardings(shapes, program.rules(cfg), mesh)

    def here(tree: Any, placed: Any) -> float:
        parts = jax.tree.map(lambda x, s: math.prod(s.shard_shape(x.shape)) * x.dtype.itemsize, tree, placed)
        return float(sum(jax.tree.leaves(parts)))

    return here(shapes["params"], layout["params"]), here(shapes, layout)


def meshes(frozen: Any, topology: Topology) -> Iterator[dict[str, int]]:
    """Every mesh that fills the topology and divides the model and its batch; tensor and sequence within a slice."""
    cfg, n = frozen.model, topology.chips // topology.slices
    examples = frozen.train.microbatch or frozen.train.batch_size
    family = models.family(frozen.family)
    sizes = family.footprint(cfg) or {"heads": 1, "length": 1}
    heads, length = sizes["heads"], sizes["length"]
    for t, s in itertools.product(_divisors(n), repeat=2):
        if heads % t or n % (t * s) or length % (t * s) or t > 64 or s > MOST_SEQUENCE:
            continue
        for f in _divisors(n // (t * s)):
            d = n // (t * s * f)
            if examples % (topology.slices * d * f) == 0:
                yield {"slices": topology.slices, "data": d, "fsdp": f, "sequence": s, "tensor": t}


def _divisors(n: int) -> list[int]:
    return [k for k in range(1, n + 1) if n % k == 0]


def _estimates(frozen: Any, topology: Topology, remats: Sequence[str]) -> Iterator[Layout]:
    """Every layout with one of `remats`."""
    for remat in remats:
        cfg = changed(frozen, {"run.remat": remat})
        static = _static(cfg)
        for mesh in meshes(cfg, topology):
            yield estimate(cfg, mesh, topology, static)


def choices(
    frozen: Any, topology: Topology, remats: Sequence[str] = ("none", "dots", "full"), factor: float = 1.0
) -> list[Layout]:
    """Layouts whose estimate fits, the fastest first; the smallest first among those within about 2 % of each other.

    `factor`: observed over estimated bytes of activations.
    """
    usable = USABLE * topology.chip.hbm
    if 0.8 * least_state(frozen) > usable * topology.chips:  # 0.8: gradients may be in bfloat16
        return []
    estimates = _estimates(frozen, topology, remats)
    found = [x for x in estimates if x.state_bytes + factor * x.activation_bytes <= usable]
    return sorted(found, key=lambda x: (round(math.log(x.step_seconds, 1.02)), x.bytes))


def smallest(frozen: Any, topology: Topology) -> Layout:
    """The layout with the fewest bytes per chip, with full recomputation."""
    found = min(_estimates(frozen, topology, ["full"]), key=lambda x: x.bytes, default=None)
    if found is None:
        raise UsageError(
            f"config.train.batch_size={frozen.train.batch_size}: no mesh of {topology.chips} chips divides it and the "
            "model's heads and length"
        )
    return found


def changed(frozen: Any, overrides: Mapping[str, Any]) -> Any:
    """A finalised config with other values for some dotted keys; nothing is filled again."""
    cfg = ConfigDict(frozen.to_dict())
    cfg.update_from_flattened_dict(overrides)
    return FrozenConfigDict(cfg)


def why(layout: Layout, topology: Topology) -> str:
    """One line: the memory that a layout fills, its seconds, and what bounds them."""
    g, s = 2**30, layout.seconds
    mesh = " x ".join(f"{axis} {n}" for axis, n in layout.mesh.items() if n > 1) or "one chip"
    micro = f", microbatch {layout.microbatch}" if layout.microbatch else ""
    times = {"ICI": layout.ici_seconds, "DCN": s["dcn"], "compute": s["compute"]}
    bound = max(times, key=lambda name: times[name])
    return (
        f"{mesh}, remat {layout.remat}{micro}: about {layout.state_bytes / g:.2f} GiB of state and gradients and "
        f"{layout.activation_bytes / g:.2f} of activations of {topology.chip.hbm / g:.0f} GiB; "
        f"compute {s['compute']:.3g} s, ICI {layout.ici_seconds:.3g} s, DCN {s['dcn']:.3g} s: bound by {bound}"
    )


@dataclass(frozen=True)
class Remedy:
    """Overrides, and a topology, that make a config fit; `cost` is chip-seconds over those of its FLOPs at peak."""

    overrides: Mapping[str, Any]
    text: str
    cost: float
    layout: Layout
    topology: Topology


def remedies(frozen: Any, topology: Topology, needed: float = 0.0) -> list[Remedy]:
    """The three cheapest changes after which the estimate fits, at most one of each kind.

    Kinds are another layout of the same step, micro-batches, moments in bfloat16, and a larger topology.

    Args:
      needed: bytes that the config's own program was found to need, which correct the estimates; 0: not known.
    """
    factor = 1.0
    if needed:
        own = estimate(frozen, sharding.full(frozen.run.mesh, topology.chips), topology)
        factor = max(1.0, (needed - own.state_bytes) / max(1.0, own.activation_bytes))
    base = models.family(frozen.family).flops(frozen.model) * 3 * frozen.train.batch_size / topology.chip.flops
    B = frozen.train.batch_size
    cut = models.family(frozen.family).decomposes(frozen.model)  # batch norm's batch is never cut
    parts = [k for k in (2, 4, 8, 16, 32, 64) if cut and B % k == 0]
    micro = [(f"gradients of {B // k} examples at a time", {"train.microbatch": B // k}) for k in parts]
    moments = {"optim.state_dtype": "bfloat16"}
    kinds: list[tuple[str, dict[str, Any], Topology]] = [
        ("", {}, topology),
        *((text, overrides, topology) for text, overrides in micro),
        ("moments in bfloat16", moments, topology),
        *((f"{text}, moments in bfloat16", {**overrides, **moments}, topology) for text, overrides in micro),
        *((f"{k} slices", {}, replace(topology, slices=topology.slices * k)) for k in (2, 4, 8, 16)),
    ]
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
    return sorted(best.values(), key=lambda r: r.cost)[:3]
