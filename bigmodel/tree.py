"""Trees of arrays by path: names, regex rules, counts.

A path is the keys joined by '/', as in 'blocks/attention/query'. Sharding, decay masks, published
weights and quantisation are all maps from such paths.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax

EMBEDDINGS = r"(^|/)embed/"  # every family keeps its tables under `embed/`
NOT_MATRICES = r"(bias|scale)$"  # every family ends its vectors so


@functools.lru_cache(maxsize=2**14)
def path_of(key_path: Any) -> str:
    return jax.tree_util.keystr(key_path, simple=True, separator="/")


def paths(tree: Any) -> list[str]:
    return [path_of(p) for p, _ in jax.tree_util.tree_leaves_with_path(tree)]


def map_paths(fn: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """`fn(path, leaf, *leaves)` over the leaves."""
    return jax.tree_util.tree_map_with_path(lambda p, *leaves: fn(path_of(p), *leaves), tree, *rest)


def match(rules: Iterable[tuple[str, Any]], path: str) -> Any:
    """The value of the first rule whose regex is found in `path`; KeyError if none is."""
    for pattern, value in rules:
        if re.search(pattern, path):
            return value
    raise KeyError(path)


STACKED = ("depth", "expert")  # axes along which a parameter is several matrices, one beside the other


def sides(names: Sequence[str | None]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """A matrix's input and output axes, from the names of its axes.

    A projection to or from heads has the width, `embed`, on one side and heads x head dim on the other. A convolution
    reads its window. An adapter has its rank on one side. Where no axis is `embed`, the last one is the output.
    """
    window = [i for i, name in enumerate(names) if name == "window"]
    axes = [i for i, name in enumerate(names) if name not in (*STACKED, "window")]
    width = next((i for side in ("rank", "embed") for i in axes if names[i] == side), axes[-1])
    rest = [i for i in axes if i != width]
    if rest and width < rest[0]:
        return (*window, width), tuple(rest)
    return (*window, *rest), (width,)


def is_hidden_matrix(path: str, names: Sequence[str | None]) -> bool:
    """Whether a parameter is a matrix of a stack of layers, of an expert or of a convolution, not a table or a head."""
    inner = {"depth", "expert", "window"} & set(names)
    return bool(inner) and not re.search(f"{NOT_MATRICES}|{EMBEDDINGS}", path)


def match_all(rules: Sequence[tuple[str, Any]], tree: Any) -> Any:
    """A tree of rule values. An unmatched leaf is an error: a forgotten parameter is a bug."""
    missing = [p for p in paths(tree) if not any(re.search(r, p) for r, _ in rules)]
    if missing:
        raise KeyError(f"no rule matches {missing[0]!r} ({len(missing)} unmatched of {len(paths(tree))})")
    return map_paths(lambda path, _: match(rules, path), tree)


def count(tree: Any, exclude: str = r"(?!)") -> int:
    """Scalars in the leaves whose path doesn't match `exclude` (default: none excluded)."""
    return sum(
        math.prod(leaf.shape)
        for key_path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if not re.search(exclude, path_of(key_path))
    )


def pick(tree: Any, pattern: str) -> Any:
    """The nested dicts of `tree` with only the leaves in whose path the regex `pattern` is found."""

    def inside(node: Any, path: str) -> Any:
        if not isinstance(node, dict):
            return node if re.search(pattern, path) else None
        kept = {k: inside(v, f"{path}/{k}" if path else k) for k, v in node.items()}
        return {k: v for k, v in kept.items() if not (v is None or (isinstance(v, dict) and not v))}

    return inside(tree, "")


def renamed(tree: Any, old: str, new: str) -> Any:
    """Nested dicts whose paths begin with `new` in place of `old`, with which they all begin."""
    if old == new:
        return tree
    out: dict[str, Any] = {}
    for key_path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        *parents, last = (new + path_of(key_path)[len(old) :]).split("/")
        node = out
        for part in parents:
            node = node.setdefault(part, {})
        node[last] = leaf
    return out


def merge(tree: Any, other: Any) -> Any:
    """Nested dicts with the leaves of `other`, and of `tree` where it has none."""
    if not isinstance(tree, dict):
        return other
    return {k: merge(v, other[k]) if k in other else v for k, v in tree.items()}


def size_bytes(tree: Any) -> int:
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))
