"""What a compiled program moves, read from its HLO text: collectives and memory traffic, loops counted.

XLA's own analysis takes a loop's body once; here a body counts as often as its loop runs it. Sizes are of one device.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

BYTES = {
    "pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4,
    "s64": 8, "u64": 8, "f64": 8, "c64": 8, "f8e4m3fn": 1, "f8e5m2": 1, "s4": 0.5, "u4": 0.5,
}  # fmt: skip
KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "ragged-all-to-all", "collective-permute")
ARRAY = re.compile(r"(\w+)\[([\d,]*)\](?:\{([^}]*)\})?")
INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
# What moves nothing by itself: names, views, and calls, whose insides are counted.
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


@dataclass
class Computation:
    name: str
    entry: bool
    instructions: dict[str, Instruction] = field(default_factory=dict)

    @functools.cached_property
    def root(self) -> Instruction:
        return next((i for i in self.instructions.values() if i.root), next(reversed(self.instructions.values())))

    @functools.cached_property
    def parameters(self) -> dict[int, Instruction]:
        return {int(i.attributes): i for i in self.instructions.values() if i.op == "parameter"}


@dataclass(frozen=True)
class Collective:
    """Attributes:
    kind: of KINDS.
    count: how often a step runs it.
    bytes: that a device sends in one of them, by the ring algorithm: of a result of R bytes over n devices,
      R (n-1)/n for an all-gather or all-to-all, R (n-1) for a reduce-scatter (its result is the n-th part), 2 R (n-1)/n
      for an all-reduce, R for a permutation.
    group: the partitions that one of them joins; (): slices, of which one sends all `bytes` to each of the others.
    name: of the operation in the source.
    """

    kind: str
    count: int
    bytes: float
    group: tuple[int, ...]
    name: str


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
            root, name, rest = match.groups()
            kind, rest = _take_type(rest)
            op, _, rest = rest.partition("(")
            inside, attributes = _take_parenthesis(rest)
            operands = tuple(re.findall(r"%([\w.\-]+)", inside))
            if op in ("parameter", "constant"):
                attributes = inside
            current.instructions[name] = Instruction(name, kind, op.strip(), operands, attributes, bool(root))
    return found


def _take_type(text: str) -> tuple[str, str]:
    if text.startswith("("):
        inside, rest = _take_parenthesis(text[1:])
        return f"({inside})", rest.lstrip()
    kind, _, rest = text.partition(" ")
    return kind, rest


def _take_parenthesis(text: str) -> tuple[str, str]:
    """(inside, after) of what follows an opening parenthesis."""
    depth = 1
    for match in re.finditer(r"[()]", text):
        depth += 1 if match.group() == "(" else -1
        if depth == 0:
            return text[: match.start()], text[match.end() :]
    return text, ""


def size(kind: str, hbm: bool = False) -> float:
    """Bytes of a type, all parts of a tuple together; `hbm`: only of what a layout doesn't place in another memory."""
    total = 0.0
    for name, dims, layout in ARRAY.findall(kind):
        if name in BYTES and not (hbm and re.search(r"S\([1-9]", layout)):
            total += BYTES[name] * math.prod(int(d) for d in dims.split(",") if d)
    return total


def _calls(instruction: Instruction) -> list[str]:
    found = re.findall(
        r"(?:calls|called_computations|branch_computations)=\{?([^}\s]+(?:, %[\w.\-]+)*)\}?", instruction.attributes
    )
    if instruction.op in ("call", "async-start"):
        found += re.findall(r"to_apply=(%[\w.\-]+)", instruction.attributes)
    return [name for text in found for name in re.findall(r"%([\w.\-]+)", text)]


# ---------------------------------------------------------------------------------------- loops


def _trips(loop: Instruction, caller: Computation, module: Mapping[str, Computation]) -> int:
    """How often a while loop runs: from its bound, start and step, which are constants in the programs of XLA."""
    condition, body = (module[re.search(rf"{key}=%([\w.\-]+)", loop.attributes)[1]] for key in ("condition", "body"))  # type: ignore[index]
    test, where = _inside_fusion(condition.root, condition, module)
    bound, counter = None, None
    for operand in test.operands:
        of, _ = _resolve(operand, where, condition)
        if of.op == "constant":
            bound = int(of.attributes)
        elif of.op == "get-tuple-element":
            counter = int(re.search(r"index=(\d+)", of.attributes)[1])  # type: ignore[index]
    if counter is None:
        return 1
    initial = caller.instructions[loop.operands[0]]
    start = _constant(initial.operands[counter], caller) if initial.op == "tuple" else 0
    if bound is None:  # carried through the loop
        indices = [
            int(re.search(r"index=(\d+)", i.attributes)[1])  # type: ignore[index]
            for i in condition.instructions.values()
            if i.op == "get-tuple-element"
        ]
        bounds = [_constant(initial.operands[i], caller) for i in indices if i != counter]
        bound = next((b for b in bounds if b is not None), 1)
    step = 1
    if body.root.op == "tuple":
        change, where = _inside_fusion(body.instructions[body.root.operands[counter]], body, module)
        values = [_resolve(o, where, body)[0] for o in change.operands]
        step = next((int(v.attributes) for v in values if v.op == "constant"), 1) if change.op == "add" else 1
    return max(0, -(-(bound - (start or 0)) // max(1, step)))


def _inside_fusion(
    i: Instruction, where: Computation, module: Mapping[str, Computation]
) -> tuple[Instruction, tuple[Computation, Instruction] | None]:
    """An instruction, or the root of what it fuses, with that computation and the call."""
    if i.op == "fusion":
        inner = module[_calls(i)[0]]
        return inner.root, (inner, i)
    return i, None


def _resolve(name: str, fused: tuple[Computation, Instruction] | None, outer: Computation) -> tuple[Instruction, Any]:
    """What an operand is: through a fusion's parameter, a copy or a bitcast."""
    here = fused[0] if fused else outer
    i = here.instructions[name]
    while i.op in ("copy", "bitcast", "convert") and i.operands:
        i = here.instructions[i.operands[0]]
    if fused and i.op == "parameter":
        return _resolve(fused[1].operands[int(i.attributes)], None, outer)
    return i, here


def _constant(name: str, where: Computation) -> int | None:
    i = _resolve(name, None, where)[0]
    return int(i.attributes) if i.op == "constant" and re.fullmatch(r"-?\d+", i.attributes) else None


def executed(module: Mapping[str, Computation]) -> Iterator[tuple[Computation, int]]:
    """Computations that run, with how often: the entry, bodies of loops, calls and branches; not what is fused."""

    def visit(c: Computation, times: int) -> Iterator[tuple[Computation, int]]:
        yield c, times
        for i in c.instructions.values():
            if i.op == "while":
                body = module[re.search(r"body=%([\w.\-]+)", i.attributes)[1]]  # type: ignore[index]
                yield from visit(body, times * _trips(i, c, module))
            elif i.op in ("call", "conditional", "async-start"):
                for name in _calls(i):
                    yield from visit(module[name], times)

    yield from visit(next(c for c in module.values() if c.entry), 1)


# ---------------------------------------------------------------------------------- collectives


STARTS = 'custom_call_target="AsyncCollectiveStart"'  # of a TPU's collective that other fusions carry on with


def collectives(module: Mapping[str, Computation], devices: int) -> list[Collective]:
    """Of a program of so many partitions. One that is carried out by several fusions is counted once."""
    found: list[Collective] = []

    def look(c: Computation, times: int, seen: set[str], fused: bool = False) -> None:
        for i in c.instructions.values():
            if i.op in ("fusion", "custom-call"):
                for name in _calls(i):
                    look(module[name], times, seen, True)
            kind = i.op.removesuffix("-start")
            if kind == "send" and "megascale" in i.attributes:  # the data-centre network's runtime does the rest
                what = re.search(r'transfer_type="(\w+)"', i.attributes)
                name = "send" if what is None else what[1].lower().replace("_", "-")
                found.append(Collective(name, times, size(c.instructions[i.operands[0]].type), (), _source(i)))
                continue
            if kind not in KINDS:
                continue
            if "chain_id=" in i.attributes and not any(STARTS in j.attributes for j in c.instructions.values()):
                continue  # what is done meanwhile, maybe in a loop that starts and ends after it, has a part of it
            channel = re.search(r"channel_id=(\d+)", i.attributes)
            if channel and channel[1] in seen:
                continue
            if channel:
                seen.add(channel[1])
            if fused and kind == "all-reduce" and c.name.startswith("all-reduce-scatter"):
                kind = "reduce-scatter"
                group = _group(i.attributes, devices)
                sent = size(i.type) * (len(group) - 1) / len(group)
            else:
                sent, group = _sent(kind, i, c, devices)
            found.append(Collective(kind, times, sent, group, _source(i)))

    for c, times in executed(module):
        look(c, times, set())  # a loop's copies have its channels: they run, too
    return found


def _source(i: Instruction) -> str:
    match = re.search(r'op_name="([^"]*)"', i.attributes)
    return match[1] if match else ""


def _sent(kind: str, i: Instruction, c: Computation, devices: int) -> tuple[float, tuple[int, ...]]:
    given = sum(size(c.instructions[o].type) for o in i.operands)
    if kind == "collective-permute":
        pairs = re.search(r"source_target_pairs=\{\{(.*?)\}\}", i.attributes)
        moves = [tuple(map(int, p.split(","))) for p in pairs[1].split("},{")] if pairs else []
        return given * len([m for m in moves if m[0] != m[1]]) / max(1, devices), _ring(moves)
    group = _group(i.attributes, devices)
    n = len(group)
    factor = {"all-gather": n - 1, "all-reduce": 2 * (n - 1) / n}.get(kind, (n - 1) / n)
    return given * factor, group


def _ring(moves: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The partitions that permuting again and again joins to the first."""
    to: dict[int, int] = {move[0]: move[1] for move in moves}
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
        return tuple(int(x) for x in ids[tuple(slice(None) if a in named else 0 for a in axes)].ravel())
    if m := re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes):
        ids = np.arange(devices).reshape([int(x) for x in m[3].split(",")])
        ids = ids.transpose([int(x) for x in m[4].split(",")]) if m[4] else ids
        return tuple(int(x) for x in ids.reshape(int(m[1]), int(m[2]))[0])
    if m := re.search(r"replica_groups=\{\{([\d,]*)\}", attributes):
        return tuple(int(x) for x in m[1].split(",") if x)
    return tuple(range(devices))


def axes_of(group: Sequence[int], shape: Mapping[str, int]) -> str:
    """The mesh axes that a group of partitions spans, joined by +: 'fsdp', 'data+fsdp'. '': a device alone."""
    places = np.stack(np.unravel_index(np.asarray(group, int), tuple(shape.values())))
    varies = [len(set(row.tolist())) > 1 for row in places]
    return "+".join(itertools.compress(shape, varies))


# --------------------------------------------------------------------------------------- memory


def traffic(module: Mapping[str, Computation]) -> float:
    """Bytes that a step reads from and writes to a device's main memory: what each instruction takes and makes, of a
    slice only the slice. What stays in on-chip memory is left out."""
    total = 0.0
    for c, times in executed(module):
        total += times * sum(_moved(i, c, module) for i in c.instructions.values() if i.op not in FREE)
    return total


def _moved(i: Instruction, c: Computation, module: Mapping[str, Computation]) -> float:
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
