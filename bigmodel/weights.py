"""Published weights as a family's parameters: names and layouts, by the family's WEIGHTS. Layer 3.

Checkpoints name a tensor per layer and keep a dense layer as (out, in); here layers are stacked, and a dense layer is
(in, out), its sides perhaps split into heads.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bigmodel import budget, models, tree
from bigmodel.config import UsageError, nearest

SUFFIX = ".safetensors"


def read(path: str) -> dict[str, np.ndarray]:
    """The tensors of a checkpoint file, by its own names.

    Raises:
      UsageError: no such file, or not one of safetensors.
    """
    from safetensors.numpy import load_file

    if not Path(path).is_file():
        raise UsageError(f"no weights at {path!r}")
    try:
        return load_file(path)
    except Exception as e:  # the library raises classes of its own
        raise UsageError(f"{path!r} can't be read as safetensors: {e}") from e


def convert(family: str, cfg: Any, tensors: Mapping[str, np.ndarray], prefix: str = "", start: Any = None) -> Any:
    """Parameters of a model section from a checkpoint's tensors, in float32.

    Args:
      family, cfg: as of `models.family(family).Model(cfg)`.
      tensors: by the checkpoint's names, each after `prefix`; those that WEIGHTS doesn't name are left alone.
      start: parameters to keep where the checkpoint has none, as a head that is yet to be trained; None: none may lack.

    Raises:
      UsageError: a parameter without a tensor, or one of another size.
    """
    names = models.family(family).WEIGHTS
    sources: dict[str, list[str]] = {}
    for name, path in names.items():
        sources.setdefault(path, []).append(name)
    shapes = budget.shapes(family, cfg)
    named = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

    def one(path: str, x: Any, kept: Any) -> Any:
        for name in sources.get(path, ()):
            parts = [name.replace("{}", str(i)) for i in range(x.shape[0])] if "{}" in name else [name]
            found = [named[part] for part in parts if part in named]
            if len(found) < len(parts):
                continue
            arrays = [_layout(path, np.asarray(part, np.float32)) for part in found]
            whole = np.stack(arrays) if "{}" in name else arrays[0]
            if path == "embed/positions":
                whole = whole[: x.shape[0]]  # of a shorter window
            if whole.size != np.prod(x.shape):
                raise UsageError(f"weights {name!r}: {list(whole.shape)}, where {path!r} is {list(x.shape)}")
            return jnp.asarray(whole.reshape(x.shape))
        if kept is not None:
            return kept
        wanted = sources.get(path, [path])[0]
        raise UsageError(f"the weights have no {prefix + wanted!r} for {path!r}{nearest(prefix + wanted, tensors)}")

    return tree.map_paths(one, shapes, jax.tree.map(lambda _: None, shapes) if start is None else start)


def _layout(path: str, tensor: np.ndarray) -> np.ndarray:
    """A table stays as it is; of any other matrix the input side comes first here."""
    return tensor if tensor.ndim != 2 or re.search(tree.EMBEDDINGS, path) else tensor.T
