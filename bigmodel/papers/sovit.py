"""Alabdulmohsin, Zhai, Kolesnikov & Beyer 2023, "Getting ViT in Shape", arXiv:2305.13035.

With compute t the best width, depth and width of the MLP grow as t^s, s = c / (a + b) of `bigmodel fit --law=sovit`
along each. A small shape that a grid has shown to be the best for t0 is scaled: all three dimensions grow, each with a
third of the decades of t / t0.
"""

import math
from typing import Any

import numpy as np

from bigmodel import models
from bigmodel.papers import Frames, Row, count, published, table

TITLE = "Shape-optimised Vision Transformers, SoViT (Alabdulmohsin et al. 2023)"
SOURCE = "arXiv:2305.13035v5, sections 3, 4.1 and 5, table 1 and appendix B"

# Table 1: (model, size of the picture): parameters in millions, FLOPs of a picture in 10^9.
TABLE_1 = {
    ("vit-so400m14", 224): (428, 221), ("vit-so400m14", 384): (428, 672), ("vit-so400m14", 518): (428, 1374),
    ("vit-l16", 384): (303, 383), ("vit-g14", 518): (1011, 3208), ("vit-G14", 518): (1882, 5668),
}  # fmt: skip
WITHOUT_POOL = ("vit-l16", "vit-g14")
# Section 5: pictures trained on, compute in 10^21 FLOPs.
TRAINED = {"vit-so400m14": (40e9, 9), "vit-g14": (16e9, 9)}
EXPONENTS = {"width": 0.22, "depth": 0.45, "ffn": 0.6}  # section 4.1
START = {"width": 608, "depth": 10, "ffn": 928}  # the best shape of the grid, each trained on
GRID = 600e6  # pictures
# Shapes that the rule gave, of the compute of (model, pictures). ViT-B has patches of 14 here.
SCALED = {
    "SoViT-400m": ({"width": 1152, "depth": 27, "ffn": 4304}, ("vit-g14", {}), 16e9),
    "SoViT-150m": ({"width": 880, "depth": 18, "ffn": 2320}, ("vit-b16", {"patch": 14}), 4e9),
}
GROWTH = 2.5  # factor of the parameters for ten times the compute

HEAD = "Without the head of 1,000 classes; the printed ViT-L and g have a class token for the pool."
FORWARD = "Compute is that of the forward passes alone, in pictures x FLOPs of table 1; printed with one digit."
BY_RULE = (
    "One number is fitted to the six: the compute t0 that the grid's best shape is optimal for, at most that of the "
    "grid's 600M pictures. The paper takes the least that it is optimal for, and prints neither it nor how it rounds."
)


def build(name: str, size: int = 224, **changes: Any) -> Any:
    """A model with an attention pool, on pictures of size x size less what isn't a whole patch (384: 27 of 14)."""
    changes = {"pool": "map", **changes}
    size -= size % published(name, **changes).patch
    return published(name, image_height=size, image_width=size, **changes)


def size_of(cfg: Any) -> int:
    """Parameters without the head."""
    return count(cfg, family="vit") - cfg.num_classes * (cfg.width + 1)


def flops(cfg: Any) -> float:
    return float(models.family("vit").flops(cfg))


def scaled(shape: dict[str, int], factor: float) -> dict[str, float]:
    """The rule's shape at `factor` times the compute that `shape` is the best for."""
    return {name: x * factor ** (EXPONENTS[name] / len(shape)) for name, x in shape.items()}


def rows(points: Frames) -> list[Row]:
    sizes, costs = [], []
    for (name, size), (millions, billions) in TABLE_1.items():
        pool = "cls" if name in WITHOUT_POOL else "map"
        sizes.append((f"{name} at {size}", millions, size_of(build(name, size, pool=pool)) / 1e6))
        costs.append((f"{name} at {size}", billions, flops(build(name, size)) / 1e9))
    trained = [(n, compute, pictures * flops(build(n)) / 1e21) for n, (pictures, compute) in TRAINED.items()]
    return [
        *table("Table 1: parameters, in millions", sizes, tolerance=0.005, format=",.1f", note=HEAD),
        *table("Table 1: FLOPs of a picture, in 10^9", costs, tolerance=0.01, format=",.0f"),
        *table("Section 5: compute of training, in 10^21 FLOPs", trained, tolerance=0.06, format=".2f", note=FORWARD),
        *_growth(),
        *_shapes(),
    ]


def _growth() -> list[Row]:
    decades, start = 3, SCALED["SoViT-400m"][0]
    far = {k: round(x) if k == "depth" else 16 * round(x / 16) for k, x in scaled(start, 10**decades).items()}
    large, small = (size_of(build("vit-so400m14", **shape)) for shape in (far, start))
    w, d, m = (x / len(START) for x in EXPONENTS.values())
    note = (
        f"By the exponents the matrices of attention grow {10 ** (2 * w + d):.2f}-fold, those of the MLP "
        f"{10 ** (w + d + m):.2f}-fold; ours is from SoViT-400m on."
    )
    part = "Section 4.1: growth of the parameters"
    return table(part, [("ten times the compute", GROWTH, (large / small) ** (1 / decades))], format=".2f", note=note)


def _shapes() -> list[Row]:
    """The rule's shapes, t0 by least squares of their logarithms."""
    grid = GRID * flops(build("vit-so400m14", **START))
    budgets = {
        name: pictures * flops(build(model, **changes)) / grid
        for name, (_, (model, changes), pictures) in SCALED.items()
    }
    share = np.array([EXPONENTS[k] / len(START) for k in START])  # d ln x / d ln t
    gaps = [
        np.log([shape[k] / x for k, x in scaled(START, budgets[name]).items()])
        for name, (shape, _, _) in SCALED.items()
    ]
    earlier = math.exp(float(np.mean(gaps @ share) / (share @ share)))  # GRID's compute / t0
    part, out = "Section 4.1: shapes by the rule from 608 x 10 x 928", []
    for name, (shape, _, _) in SCALED.items():
        ours = scaled(START, budgets[name] * earlier)
        out += table(part, [(f"{name}: {k}", x, ours[k]) for k, x in shape.items()], format=",.0f", note=BY_RULE)
    t0 = Row(part, "t0, in millions of pictures", math.nan, GRID / earlier / 1e6, format=".0f", note=BY_RULE)
    return [*out, t0]
