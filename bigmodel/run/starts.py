"""Parameters to start from: another run's, or published ones by the family's WEIGHTS.

Published checkpoints have a tensor for each layer, and most have dense layers as (out, in). Here layers are stacked,
and a dense layer is (in, out), its sides perhaps split into heads. Every tensor and every parameter is accounted for: a
body that doesn't fit is an error, and one line names the heads that start fresh and the tensors that are left out.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from bigmodel import models, tree
from bigmodel.errors import UsageError, nearest
from bigmodel.models.layouts import Layout
from bigmodel.run import adapters, budget, counts, record, weights

# What wrappers put before the names of WEIGHTS.
PREFIX = re.compile(r"^(module|model|bert|transformer|gpt_neox|encoder)\.")
HEADS = re.compile(r"^(head|next|pooler|transform|output_bias)")  # paths of what an objective adds to the body
SCALING = ("parametrization", "base_width", "base_depth", "base_num_heads")  # decide the factors of weights in use


def start(frozen: Any, compiled: Any, fresh: Any) -> tuple[Any, str]:
    """(the parameters of a run before its first step, a line that says which were taken from where).

    Args:
      frozen: the finalised config. The paths that match `train.init_only` are taken from what `budget.starts` names.
      compiled: its program, for the parameters' shapes and shardings.
      fresh: parameters to start with otherwise.

    Raises:
      UsageError: no finished run or weights there, or none of this model.
    """
    said = []
    for source, theirs, ours in budget.starts(frozen.train):
        # Lookaheads: a path has to begin with our prefix, and to match init_only anywhere.
        only = f"^(?={re.escape(ours)})(?=.*({frozen.train.init_only}))" if ours else frozen.train.init_only
        take = _from_file if weights.is_published(source) else _from_run
        fresh, line = take(source, theirs, ours, only, frozen, compiled, fresh)
        said.append(f"{source}: {line}")
    return fresh, "; ".join(said)


def _from_file(
    source: str, theirs: str, ours: str, only: str, frozen: Any, compiled: Any, fresh: Any
) -> tuple[Any, str]:
    """The parameters whose paths match `only` from published tensors, of which `theirs` is a prefix of the names."""
    found, said = load(source, frozen.family, frozen.model, fresh, only, theirs)
    params = jax.tree.map(
        lambda x, own, placed: own if x is own else jax.device_put(x.astype(own.dtype), placed),
        found, fresh, compiled.shardings["params"],
    )  # fmt: skip
    return params, said


def _from_run(
    source: str, theirs: str, ours: str, only: str, frozen: Any, compiled: Any, fresh: Any
) -> tuple[Any, str]:
    """The parameters whose paths match `only`, from a run whose paths begin with `theirs` where ours do with `ours`."""
    where, home = f"config.train.init_from={source!r}", epath.Path(source)
    result = record.read_result(home)
    if result is None:  # a plan may name a run that will be trained later
        raise UsageError(f"{where}: no finished run there (no result.json)")
    stored = record.read_json(home / "config.json") or {}
    model, own_model = stored.get("model", {}), frozen.model
    differ = [key for key in SCALING if model.get(key) != own_model.get(key)]
    if differ and {m.get("parametrization", "standard") for m in (model, own_model)} != {"standard"}:
        key = differ[0]
        both = f"its model.{key} is {model.get(key)!r}, here it is {own_model.get(key)!r}"
        raise UsageError(f"{where}: {both}: weights would be scaled differently")
    saved = f"{source}/checkpoints"
    wanted = [tree.renamed(tree.pick(t["params"], only), ours, theirs) for t in (compiled.shapes, compiled.shardings)]
    rules = models.family(stored.get("family", frozen.family)).RULES
    resized = models.family(frozen.family).resized if stored.get("family") == frozen.family and not theirs else None
    changes = resized(model, own_model) if resized else {}

    def shape(path: str, x: Any) -> Any:
        return jax.ShapeDtypeStruct(changes[path][0], x.dtype) if path in changes else x

    found = adapters.read(saved, stored.get("train", {}), rules, [tree.map_paths(shape, wanted[0]), wanted[1]])
    found = tree.map_paths(
        lambda path, x, at: jax.device_put(changes[path][1](x), at) if path in changes else x, found, wanted[1]
    )
    params = tree.merge(fresh, tree.renamed(found, theirs, ours))
    own, taken = tree.paths(fresh), [ours + p[len(theirs) :] for p in tree.paths(wanted[0])]
    there = [ours + p[len(theirs) :] for p in adapters.read_paths(saved) if p.startswith(theirs)]
    unused = [p for p in there if p not in own and re.search(only, p)]
    body = [p for p in unused if not HEADS.search(p)]
    if body:
        raise UsageError(f"{where}: its {body[0]!r} is no parameter of this model")
    line = _line(len(taken), [p for p in own if p not in taken], unused, "parameters of that run")
    line += "".join(f"; {p} resized from {changes[p][0]}" for p in changes if p in taken)
    diverged = f"; that run diverged: of its step {result.get('last_good_step')}" * (result.get("status") == "diverged")
    return params, line + diverged


def load(path: str, family: str, cfg: Any, start: Any, only: str = "", prefix: str = "") -> tuple[Any, str]:
    """`convert` of published weights, which errors name."""
    try:
        return convert(family, cfg, weights.read(path).tensors.below(prefix), start, only)
    except UsageError as e:
        raise UsageError(f"config.train.init_from={path!r}: {e}") from e


def on_device(_: str, x: np.ndarray) -> jax.Array:
    return jnp.asarray(x)


def convert(
    family: str,
    cfg: Any,
    tensors: Mapping[str, np.ndarray],
    start: Any = None,
    only: str = "",
    put: Callable[[str, np.ndarray], Any] = on_device,
) -> tuple[Any, str]:
    """(a model's parameters from a checkpoint's tensors, in float32; what was taken and what wasn't, in words).

    Names are those of one of the family's layouts, perhaps after some of PREFIX, or with TensorFlow's gamma and beta
    for weight and bias.

    Args:
      start: parameters to keep for heads that the checkpoint lacks, and outside `only`; None: no head may be missing,
        and no tensor left over.
      only: regex of the parameters' paths to take; "": all.
      put: called with the path and the value of each parameter that is taken; what it returns is the leaf.

    Raises:
      UsageError: nothing is taken, or a tensor and a parameter of the body don't match one to one.
    """
    if not models.family(family).WEIGHTS:
        raise UsageError(f"family {family!r} has no map of published names; start from a run's folder")
    layout, found, unused = _matched(family, tensors)
    shapes = counts.shapes(family, cfg)
    paths = tree.paths(shapes)
    _check_ties(layout, found, unused, tensors, paths)
    _check_unused(layout, found, unused, paths, only)
    unused += [
        theirs for name, layers in found.items() if not set(layout.paths(name)) & set(paths)
        for theirs in layers.values() if start is not None or layout.paths(name)
    ]  # fmt: skip
    if unused and start is None:
        raise UsageError(f"{unused[0]!r} is no parameter of this model{nearest(unused[0], layout.names)}")
    taken, fresh, cut = list[str](), list[str](), list[str]()

    def one(path: str, x: Any, kept: Any) -> Any:
        sources = layout.sources(path)
        wanted_here = re.search(only, path)
        there = [source for source in sources if source[0] in found and wanted_here]
        if there:
            taken.append(path)
            parts = (_stacked(layout, *source, found[source[0]], tensors, path, x, cut) for source in there)
            return put(path, functools.reduce(np.add, parts))
        if kept is None or (wanted_here and not HEADS.search(path)):
            wanted = f"no {sources[0][0]!r}" if sources else "no published name is known"
            raise UsageError(f"{wanted} for {path!r}{nearest(sources[0][0], tensors) if sources else ''}")
        fresh.append(path)
        return kept

    params = tree.map_paths(one, shapes, jax.tree.map(lambda _: None, shapes) if start is None else start)
    if not taken:
        raise UsageError(f"nothing of it is in config.train.init_only={only!r}")
    return params, "; ".join([_line(len(taken), fresh, unused, "tensors"), *cut])


def _line(taken: int, fresh: Sequence[str], unused: Sequence[str], what: str) -> str:
    """What is taken, which parameters are fresh, and which of the source's `what` are unused, in words."""
    line = f"{taken} of {taken + len(fresh)} parameters taken"
    for names, said in ((fresh, "fresh"), (unused, f"unused {what}")):
        if names:
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            line += f"; {said}: {', '.join(names[:5])}{more}"
    return line


def _shortened(name: str) -> Iterator[str]:
    """The names that WEIGHTS may have for a checkpoint's name: as it is, then without one prefix after another."""
    name = re.sub(r"\.beta$", ".bias", re.sub(r"\.gamma$", ".weight", name))
    last = ""
    while name != last:
        yield name
        last, name = name, PREFIX.sub("", name)


Found = dict[str, dict[int, str]]  # tensor's name in a layout -> layer -> the checkpoint's name


def _matched(family: str, tensors: Mapping[str, Any]) -> tuple[Layout, Found, list[str]]:
    """(the family's layout that knows most of the names, what it knows, the names that it doesn't know)."""
    layouts = models.family(family).WEIGHTS.values()
    found = [(layout, *_named(layout.names, tensors)) for layout in layouts]
    best = max(found, key=lambda one: sum(map(len, one[1].values())))
    if not best[1]:
        first, known = next(iter(tensors), "nothing"), next(iter(best[0].names))
        raise UsageError(f"family {family!r} knows none of its {len(tensors)} tensors ({first}; a known one: {known})")
    return best


def _named(names: Mapping[str, Any], tensors: Mapping[str, Any]) -> tuple[Found, list[str]]:
    """(which of `names` are there, the checkpoint's other names)."""
    patterns = {name: re.compile(re.escape(name).replace(r"\{\}", r"(\d+)")) for name in names}
    found: Found = {}
    unknown = []
    for theirs in tensors:
        hits = ((n, m) for short in _shortened(theirs) for n, p in patterns.items() if (m := p.fullmatch(short)))
        name, match = next(hits, ("", None))
        if match is None:
            unknown.append(theirs)
            continue
        before = found.setdefault(name, {}).setdefault(int(match[1]) if match.groups() else 0, theirs)
        if before != theirs:
            raise UsageError(f"{before!r} and {theirs!r} are both {name!r}")
    return found, unknown


def _check_ties(
    layout: Layout, found: Found, unused: list[str], tensors: Mapping[str, np.ndarray], paths: Sequence[str]
) -> None:
    """Takes tensors away that repeat a parameter, as a tied head that is stored does. UsageError: one that doesn't."""
    for name, path in layout.ties.items():
        known = set(layout.paths(name)) & set(paths) if name in layout.names else set()
        theirs = next((t for t in tensors if name in _shortened(t)), None)
        own = next((found[n][0] for n, _, _ in layout.sources(path) if n in found), None)
        if known or theirs is None or own is None or theirs == own:
            continue
        if not np.array_equal(tensors[theirs], tensors[own]):
            raise UsageError(f"{theirs!r} differs from {own!r}, which this model uses in its place (tied)")
        found.pop(name, None)
        if theirs in unused:
            unused.remove(theirs)


def _check_unused(layout: Layout, found: Found, unknown: Sequence[str], paths: Sequence[str], only: str) -> None:
    """Raises UsageError for a tensor of the body that no parameter takes."""
    for name, layers in found.items():
        for path in layout.paths(name):
            if path not in paths and re.search(only, path) and not HEADS.search(path):
                raise UsageError(f"{layers[min(layers)]!r} is {path!r}, which this model lacks{nearest(path, paths)}")
    stacks = {
        name.partition("{}")[0] for name in layout.names if "{}" in name
        if any(re.search(only, path) for path in layout.paths(name))
    }  # fmt: skip
    in_layer = re.compile("|".join(rf"{re.escape(stack)}\d" for stack in stacks) or r"(?!)")
    for theirs in unknown:
        if any(in_layer.match(short) for short in _shortened(theirs)):
            raise UsageError(f"{theirs!r} is of a layer, and no parameter of this model{nearest(theirs, layout.names)}")


def _stacked(
    layout: Layout, name: str, index: int, parts: int, layers: Mapping[int, str], tensors: Mapping[str, np.ndarray],
    path: str, x: Any, cut: list[str],
) -> np.ndarray:  # fmt: skip
    """The tensors of one name, of which the parameter is the part `index` of `parts`, as the parameter `path`, shaped
    like `x`. What is cut off is noted in `cut`."""
    count, shape = (x.shape[0], x.shape[1:]) if "{}" in name else (1, x.shape)
    lacking = next((layer for layer in range(count) if layer not in layers), None)
    if lacking is not None:
        wanted = name.replace("{}", str(lacking))
        raise UsageError(f"no {wanted!r} for {path!r}: the file has {len(layers)} of the model's {count} layers")
    if len(layers) > count:
        raise UsageError(f"{layers[max(layers)]!r}: the file has {max(layers) + 1} layers, the model {count}")
    out = np.empty(x.shape, np.float32)
    for layer in range(count):
        tensor = tensors[layers[layer]]
        if not jnp.issubdtype(tensor.dtype, jnp.floating):
            raise UsageError(f"{layers[layer]!r} is {tensor.dtype}, where {path!r} is of floating point")
        part = tensor
        if part.ndim == 2 and layout.turned(path):
            part = part.T  # of a matrix, but not of a table, the input side comes first here
        if parts > 1 and part.ndim and part.shape[-1] == parts * shape[-1] * shape[-2]:
            lies = (shape[-2], parts, shape[-1]) if layout.by_head else (parts, shape[-2] * shape[-1])
            part = part.reshape(*part.shape[:-1], *lies).take(index, axis=-2).reshape(*part.shape[:-1], -1)
        if path == "embed/positions" and part.ndim and len(part) > shape[0]:
            cut.append(f"{path}: the first {shape[0]} of {len(part)}, of a shorter window")
            part = part[: shape[0]]
        # Sides may be split or joined, but not exchanged: where one of theirs ends, one of ours does.
        ends = {1, *np.cumprod(shape).tolist()}
        if part.size != np.prod(shape) or not set(np.cumprod(part.shape).tolist()) <= ends:
            each = " a layer" if "{}" in name else ""
            raise UsageError(f"{layers[layer]!r} is {list(tensor.shape)}, where {path!r} is {list(shape)}{each}")
        if not np.isfinite(part).all():
            raise UsageError(f"{layers[layer]!r} has values that aren't finite")
        out[layer if "{}" in name else ...] = part.reshape(shape)
    return out
