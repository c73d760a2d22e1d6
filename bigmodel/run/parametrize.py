"""Parametrisations: what width and depth do to the start, the size and the learning rate of each parameter.

A model is compared with one of a base shape, whose hyper-parameters are known to be good; here is what has to change
with each parameter for the same ones to be good at the target shape. With n the ratio of a width to the base's, a
weight is used as n^-a w, starts at a standard deviation of n^-b times the base's, and learns at n^-c times the rate:

                       embedding       hidden             readout           c, for an update of fixed size an entry
                       a    b          a    b             a    b            (AdamW, Lion): 0; 1 - a; 1 - a
    standard           0    as the model says             0                 c = 0 everywhere: one rate for all
    standard_layerwise 0    0          0    1/2           0    1/2
    ntk                0    0          1/2  0             1/2  0
    mup                0    0          0    1/2           0    1
    mean_field         0    0          1/2  0             1    0
    completep          as mup, and each residual branch is multiplied by base depth / depth

Sources: Everett et al. 2024 (arXiv:2407.05872), table 1 and its full-alignment rates; of the equivalent forms of muP,
table 3 of Yang et al. 2022 (arXiv:2203.03466), which has no multipliers; CompleteP is Dey et al. 2025
(arXiv:2505.01618) with alpha = 1. Other optimizers' rates follow from the size of their updates (see `_rate`). What a
model has to do itself, the scale of attention's scores, of a tied head's logits and of its residual branches, is in
`models/layers.py`.

Batch and horizon transfer by laws that were measured, not by exponents of a theory: `recipes.py`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bigmodel import tree
from bigmodel.errors import UsageError

# role -> (a, b), exponents of the weight's multiplier and of its standard deviation
TABLE: dict[str, dict[str, tuple[float, float]]] = {
    "standard_layerwise": {"embedding": (0, 0), "hidden": (0, 0.5), "readout": (0, 0.5)},
    "ntk": {"embedding": (0, 0), "hidden": (0.5, 0), "readout": (0.5, 0)},
    "mup": {"embedding": (0, 0), "hidden": (0, 0.5), "readout": (0, 1)},
    "mean_field": {"embedding": (0, 0), "hidden": (0.5, 0), "readout": (1, 0)},
}
TABLE["completep"] = TABLE["mup"]
NAMES = ("standard", *TABLE)


@dataclass(frozen=True)
class Scales:
    """A float for every parameter: of the weight in use, of its start, of its learning rate, and of the size that its
    gradient has (AdamW's epsilon must shrink as the gradients do)."""

    weight: Any
    start: Any
    rate: Any
    gradient: Any

    def effective(self, params: Any) -> Any:
        """The weights as the model uses them."""
        return tree.map_paths(lambda _, w, m: w if m == 1 else w * m, params, self.weight)


def scales(
    name: str,
    optimizer: str,
    target: Any,
    base: Any,
    rules: Any,
    depth_ratio: float = 1.0,
    fan_in_start: bool = False,
) -> Scales:
    """What every parameter of a model is scaled by, from the shapes of two.

    Args:
      name: one of NAMES.
      optimizer: of optim.OPTIMIZERS; its updates' size decides the rates.
      target, base: trees of shapes, as of `jax.eval_shape`; the base has the target's depth and its own widths.
      rules: the family's RULES.
      depth_ratio: target depth / base depth; matters to completep alone.
      fan_in_start: the model itself starts matrices at 1 / sqrt(fan-in); else at one deviation for all widths.
    """
    if name == "standard":
        ones = tree.map_paths(lambda *_: 1.0, target)
        return Scales(ones, ones, ones, ones)
    if not rules:
        raise UsageError(f"config.model.parametrization={name!r}: needs the family's RULES to name the axes of weights")
    found: dict[str, tuple[float, float, float, float]] = {}

    def one(path: str, x: Any, y: Any) -> None:
        names = tree.match(rules, path)
        ratios = [t / b for t, b in zip(x.shape, y.shape, strict=True)]
        vector = bool(re.search(tree.NOT_MATRICES, path))
        inside, outside = ((), tuple(range(x.ndim))) if vector or x.ndim < 2 else tree.sides(names)
        n_in, n_out = (math.prod(ratios[i] for i in side) for side in (inside, outside))
        role = "embedding" if n_in == 1 else "readout" if n_out == 1 else "hidden"
        a, b = TABLE[name][role]
        start = n_in ** -(b - 0.5 if fan_in_start and not vector and role != "embedding" else b)
        stacked = "depth" in names
        muon = optimizer == "muon" and tree.is_hidden_matrix(path, names)
        largest = [_largest(shape, inside, outside) for shape in (x.shape, y.shape)]
        if muon:
            rate = _muon(n_in, n_out, a, largest[0] / largest[1])
        else:  # what Muon leaves to AdamW learns at AdamW's
            rate = _rate("adamw" if optimizer == "muon" else optimizer, name, role, n_in, n_out, a, b)
        if name == "completep" and optimizer == "sgd" and stacked:
            rate *= depth_ratio
        gradient = _gradient(name, role, n_in, n_out, a)
        if name == "completep" and stacked:
            gradient /= depth_ratio
        found[path] = (n_in**-a, start, rate, gradient)

    tree.map_paths(one, target, base)
    return Scales(*(tree.map_paths(lambda path, _, i=i: found[path][i], target) for i in range(4)))


def _largest(shape: Sequence[int], inside: tuple[int, ...], outside: tuple[int, ...]) -> float:
    return float(max(math.prod(shape[i] for i in side) for side in (inside, outside)))


def _gradient(name: str, role: str, n_in: float, n_out: float, a: float) -> float:
    """The size of a gradient's entries: the loss's gradient at a feature is 1 / n of what it is at the base under muP's
    and mean field's readout, else 1 / sqrt(n); a weight that is multiplied has its gradient multiplied."""
    power = 1.0 if name in ("mup", "completep", "mean_field") else 0.5
    return n_in**-a * (1.0 if role == "readout" else n_out**-power)


def _rate(optimizer: str, name: str, role: str, n_in: float, n_out: float, a: float, b: float) -> float:
    """The learning rate's factor: features must move as far at every width.

    An effective weight moves features of a hidden layer or readout by n_in times its entries' change, if the change is
    aligned with the features (full alignment, Everett et al. 2024, section 4); those of an embedding by that change.
    """
    entry = 1.0 if role == "embedding" else 1 / n_in
    if optimizer == "sgd":  # its updates are the gradients
        return entry * n_in**a / _gradient(name, role, n_in, n_out, a)
    # Adafactor's updates are multiples of the weights' size, which starts as n^-b.
    return entry * n_in**a * (n_in**b if optimizer == "adafactor" else 1.0)


def _muon(n_in: float, n_out: float, a: float, largest: float) -> float:
    """An orthogonal update scaled to a fixed size an entry has a spectral norm of sqrt(largest side); it must be
    sqrt(n_out / n_in) (Yang et al. 2023, arXiv:2310.17813, condition 1). `largest`: the ratio of the largest sides."""
    return (n_out / n_in) ** 0.5 * n_in**a * largest**-0.5
