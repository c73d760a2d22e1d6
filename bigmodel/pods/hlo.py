"""Collectives and memory traffic of a compiled program, from its HLO text.

XLA's own analysis counts the body of a loop once; here it counts once per iteration. Sizes are per device.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from bigmodel.errors import note

BYTES = {
    "pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4,
    "s64": 8, "u64": 8, "f64": 8, "c64": 8, "f8e4m3fn": 1, "f8e5m2": 1, "s4": 0.5, "u4": 0.5,
}  # fmt: skip
KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "ragged-all-to-all", "collective-permute")
ARRAY = re.compile(r"(\w+)\[([\d,]*)\](?:\{([^}]*)\})?")
# name = type op(operands), attributes
INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$")
# Instructions that move nothing themselves: names, views, and calls, whose insides are counted.
FREE = frozenset(
    ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "iota",
     "partition-id", "replica-id", "after-all", "opt-barrier", "optimization-barrier", "copy-done", "async-done",
     "async-update", "all-gather-done", "all-reduce-done", "collective-permute-done", "send-done", "recv-done")
)  # fmt: skip


@dataclass(frozen=True)
class Instruction:
    name: str
    type: str
    op: str
    operands: tuple[str, ...]
    attributes: str
    root: bool

    def attribute(self, pattern: str) -> str:
        """The first group of a regex in the attributes, or ""."""
        match = re.search(pattern, self.attributes)
        return match[1] if match else ""


@dataclass
class Computation:
    name: str
    entry: bool
    instructions: dict[str, Instruction] = field(default_factory=dict)

    @functools.cached_property
    def root(self) -> Instruction:
        return next(i for i in self.instructions.values() if i.root)

    @functools.cached_property
    def parameters(self) -> dict[int, Instruction]:
        return {int(i.attributes): i for i in self.instructions.values() if i.op == "parameter"}


Module = Mapping[str, Computation]


@dataclass(frozen=True)
class Collective:
    """Attributes:
    kind: of KINDS.
    count: executions per step.
    bytes: sent by a device per execution, by the ring algorithm. With a result of R bytes over n devices:
      R (n-1)/n for an all-gather or all-to-all, R (n-1) for a reduce-scatter (its result is one of n parts),
      2 R (n-1)/n for an all-reduce, R for a permutation.
    group: the partitions that one of them joins; () for slices, where each sends `bytes` to every other.
    """

    kind: str
    count: int
    bytes: float
    group: tuple[int, ...]


def parse(text: str) -> dict[str, Computation]:
    """The computations of a module's text, by name."""
    found: dict[str, Computation] = {}
    current: Computation | None = None
    for line in text.splitlines():
        if current is None:
            if line.endswith("{") and line.startswith(("%", "ENTRY")):
                name = line.removeprefix("ENTRY ").lstrip("%").split(" ", 1)[0]
                current = found[name] = Computation(name, line.startswith("ENTRY"))
        elif line == "}" or line.startswith("} //"):
            current = None
        elif match := INSTRUCTION.match(line):
            root, name, kind, op, rest = match.groups()
            inside, attributes = _take_parenthesis(rest)
            operands = tuple(re.findall(r"%([\w.\-]+)", inside))
            if op in ("parameter", "constant"):
                attributes = inside
            current.instructions[name] = Instruction(name, kind, op, operands, attributes, bool(root))
    return found


def _take_parenthesis(text: str) -> tuple[str, str]:
    """(inside, after) of what follows an opening parenthesis."""
    depth = 1
    for match in re.finditer(r"[()]", text):
        depth += 1 if match.group() == "(" else -1
        if depth == 0:
            return text[: match.start()], text[match.end() :]
    return text, ""


def size(kind: str, hbm: bool = False) -> float:
    """Bytes of a type, summed over a tuple; `hbm`: without the arrays whose layout places them in another memory."""
    total = 0.0
    for name, dims, layout in ARRAY.findall(kind):
        if name in BYTES and not (hbm and re.search(r"S\([1-9]", layout)):
            total += BYTES[name] * math.prod(int(d) for d in dims.split(",") if d)
    return total


def _calls(i: Instruction) -> list[str]:
    keys = "calls|called_computations|branch_computations"
    if i.op in ("call", "async-start"):
        keys += "|to_apply"
    found = re.findall(rf"(?:{keys})=\{{?([^}}\s]+(?:, %[\w.\-]+)*)\}}?", i.attributes)
    return [name for text in found for name in re.findall(r"%([\w.\-]+)", text)]


def _trips(loop: Instruction, caller: Computation, module: Module) -> int:
    """Iterations of a while loop: the number that XLA notes (CPU), or else from its counter's constants (TPU)."""
    if known := loop.attribute(r'"known_trip_count":\{"n":"(\d+)"'):
        return int(known)
    condition = module[loop.attribute(r"condition=%([\w.\-]+)")]
    body = module[loop.attribute(r"body=%([\w.\-]+)")]
    test = [_origin(name, condition) for name in condition.root.operands]
    counters = [int(i.attribute(r"index=(\d+)")) for i in test if i.op == "get-tuple-element"]
    bound = _constant(condition.root.operands, condition)
    if bound is None or not counters:
        note("a loop's number of iterations isn't in its program: it is counted as one")
        return 1
    initial = caller.instructions[loop.operands[0]]
    start = _constant([initial.operands[counters[0]]], caller) if initial.op == "tuple" else 0
    step = 1
    if body.root.op == "tuple":
        change = body.instructions[body.root.operands[counters[0]]]
        step = _constant(change.operands, body) or 1
    return max(0, math.ceil((bound - (start or 0)) / max(1, step)))


def _origin(name: str, where: Computation) -> Instruction:
    """The instruction that an operand is a copy of."""
    i = where.instructions[name]
    while i.op in ("copy", "bitcast", "convert"):
        i = where.instructions[i.operands[0]]
    return i


def _constant(operands: Sequence[str], where: Computation) -> int | None:
    """The first of the operands that is an integer constant."""
    origins = [_origin(name, where) for name in operands]
    return next((int(i.attributes) for i in origins if i.op == "constant" and i.attributes.lstrip("-").isdigit()), None)


def executed(module: Module) -> Iterator[tuple[Computation, int]]:
    """The computations that run and how often: the entry, bodies of loops, calls and branches; not what is fused."""

    def visit(c: Computation, times: int) -> Iterator[tuple[Computation, int]]:
        yield c, times
        for i in c.instructions.values():
            if i.op == "while":
                yield from visit(module[i.attribute(r"body=%([\w.\-]+)")], times * _trips(i, c, module))
            elif i.op in ("call", "conditional", "async-start"):
                for name in _calls(i):
                    yield from visit(module[name], times)

    yield from visit(next(c for c in module.values() if c.entry), 1)


STARTS = 'custom_call_target="AsyncCollectiveStart"'  # of a TPU's collective that other fusions continue


def collectives(module: Module, devices: int) -> list[Collective]:
    """The collectives of a program of `devices` partitions. One that several fusions carry out is counted once."""
    found: list[Collective] = []

    def look(c: Computation, times: int, seen: set[str], fused: bool = False) -> None:
        for i in c.instructions.values():
            if i.op in ("fusion", "custom-call"):
                for name in _calls(i):
                    look(module[name], times, seen, True)
            kind = i.op.removesuffix("-start")
            if kind == "send" and "megascale" in i.attributes:  # the data-centre network's runtime does the rest
                name = i.attribute(r'transfer_type="(\w+)"').lower().replace("_", "-") or "send"
                found.append(Collective(name, times, size(c.instructions[i.operands[0]].type), ()))
            if kind not in KINDS:
                continue
            if "chain_id=" in i.attributes and not any(STARTS in j.attributes for j in c.instructions.values()):
                continue  # a part of a collective that started elsewhere, perhaps before this loop
            channel = i.attribute(r"channel_id=(\d+)")
            if channel in seen:
                continue
            if channel:
                seen.add(channel)
            if fused and kind == "all-reduce" and c.name.startswith("all-reduce-scatter"):
                kind = "reduce-scatter"
                group = _group(i.attributes, devices)
                sent = size(i.type) * (len(group) - 1) / len(group)
            else:
                sent, group = _sent(kind, i, c, devices)
            found.append(Collective(kind, times, sent, group))

    for c, times in executed(module):
        look(c, times, set())  # per computation: copies of a loop have the same channels, and run too
    return found


def _sent(kind: str, i: Instruction, c: Computation, devices: int) -> tuple[float, tuple[int, ...]]:
    """Bytes that a device sends, and the group, of an instruction of one of KINDS."""
    given = sum(size(c.instructions[o].type) for o in i.operands)
    if kind == "collective-permute":
        pairs = re.findall(r"\{(\d+),(\d+)\}", i.attribute(r"source_target_pairs=\{(.*?\})\}"))
        to = {int(a): int(b) for a, b in pairs}
        return given * sum(a != b for a, b in to.items()) / max(1, devices), _ring(to)
    group = _group(i.attributes, devices)
    n = len(group)
    factor = {"all-gather": n - 1, "all-reduce": 2 * (n - 1) / n}.get(kind, (n - 1) / n)
    return given * factor, group


def _ring(to: Mapping[int, int]) -> tuple[int, ...]:
    """The partitions that repeated permutation joins to the first."""
    ring: list[int] = []
    at = next(iter(to), 0)
    while at not in ring:
        ring.append(at)
        at = to.get(at, ring[0])
    return tuple(sorted(ring))


def _group(attributes: str, devices: int) -> tuple[int, ...]:
    """The first replica group, in any of its three forms."""
    if m := re.search(r"replica_groups=mesh\[([^\]]*)\](?:\s*\([^)]*\))?\s*\{([^}]*)\}", attributes):
        axes = dict(re.findall(r"'(\w+)'=(\d+)", m[1]))
        named = set(re.findall(r"'(\w+)'", m[2]))
        ids = np.arange(devices).reshape([int(n) for n in axes.values()])
        return tuple(ids[tuple(slice(None) if a in named else 0 for a in axes)].ravel().tolist())
    if m := re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes):
        ids = np.arange(devices).reshape([int(x) for x in m[3].split(",")])
        ids = ids.transpose([int(x) for x in m[4].split(",")]) if m[4] else ids
        return tuple(ids.reshape(int(m[1]), int(m[2]))[0].tolist())
    if m := re.search(r"replica_groups=\{\{([\d,]*)\}", attributes):
        return tuple(int(x) for x in m[1].split(",") if x)
    return tuple(range(devices))


def axes_of(group: Sequence[int], shape: Mapping[str, int]) -> str:
    """The mesh axes that a group of partitions spans, joined by +, as 'data+fsdp'; '' for a single device."""
    places = np.unravel_index(np.asarray(group, int), tuple(shape.values()))
    return "+".join(axis for axis, place in zip(shape, places, strict=True) if np.ptp(place) > 0)


def traffic(module: Module) -> float:
    """Bytes per step that a device reads from and writes to its main memory: operands and results of instructions.

    Of a slice only the slice counts. What stays in on-chip memory doesn't count.
    """
    total = 0.0
    for c, times in executed(module):
        total += times * sum(_moved(i, c, module) for i in c.instructions.values() if i.op not in FREE)
    return total


def _moved(i: Instruction, c: Computation, module: Module) -> float:
    if i.op in ("dynamic-slice", "gather", "slice"):
        return 2 * size(i.type, hbm=True)
    if i.op == "dynamic-update-slice":
        return 2 * size(c.instructions[i.operands[1]].type, hbm=True)
    inner = module[_calls(i)[0]] if i.op == "fusion" else None
    made = size(i.type, hbm=True)
    if inner is not None and inner.root.op == "dynamic-update-slice" and made:
        made = size(inner.instructions[inner.root.operands[1]].type)
    return made + sum(_read(k, c.instructions[o], inner) for k, o in enumerate(i.operands))


def _read(k: int, operand: Instruction, inner: Computation | None) -> float:
    whole = size(operand.type, hbm=True) if not operand.type.startswith("(") else 0.0
    if inner is None or not whole:
        return whole
    parameter = inner.parameters[k].name
    users = [i for i in inner.instructions.values() if parameter in i.operands]
    if users and all(u.op in ("dynamic-slice", "slice", "gather") and u.operands[0] == parameter for u in users):
        return min(whole, sum(size(u.type) for u in users))
    if users and all(u.op == "dynamic-update-slice" and u.operands[0] == parameter for u in users):
        return 0.0  # written in place
    return whole
