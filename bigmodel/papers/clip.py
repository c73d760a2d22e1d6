"""Radford et al. 2021, arXiv:2103.00020, and the sizes of Cherti et al. 2022, arXiv:2212.07143: CLIP's towers, and what
a pair costs.

Shapes: github.com/openai/CLIP and open_clip. Towers are counted with their projections, and multiply-adds are those of
the public table of github.com/LAION-AI/scaling-laws-openclip, without the products of a batch's pairs.
"""

from bigmodel import tree
from bigmodel.papers import Frames, Row, cost, published, size, table
from bigmodel.run import counts

TITLE = "CLIP: towers of pictures and text (Radford et al. 2021; open_clip's ViT-H/14)"
SOURCE = "arXiv:2103.00020, tables 19 and 20; arch_info.csv of scaling-laws-openclip"

VISION = {
    "clip-vit-b32": 87_849_216, "clip-vit-b16": 86_192_640, "clip-vit-l14": 303_966_208,
    "clip-vit-l14-336": 304_293_888, "clip-vit-h14": 632_076_800,
}  # fmt: skip
TEXT = {"clip-vit-b32": 63_428_096, "clip-vit-l14": 123_650_304, "clip-vit-h14": 354_032_640}
TABLE = {
    "clip-vit-b32": (151.28, 7.40), "clip-vit-b16": (149.62, 20.57), "clip-vit-l14": (427.62, 87.73),
    "clip-vit-h14": (986.11, 190.97),
}  # fmt: skip


def tower(name: str, part: str) -> int:
    """Parameters of one tower of a published name."""
    return tree.count(counts.shapes("clip", published(name))[part])


def rows(points: Frames) -> list[Row]:
    towers = [(f"{name}, pictures", wanted, tower(name, "vision")) for name, wanted in VISION.items()]
    towers += [(f"{name}, text", wanted, tower(name, "text")) for name, wanted in TEXT.items()]
    printed = [(name, millions, size(name) / 1e6) for name, (millions, _) in TABLE.items()]
    macs = [(name, giga, cost(name) / 2e9) for name, (_, giga) in TABLE.items()]
    return [
        *table("Parameters of a tower with its projection, by the sum", towers, tolerance=0, format=",.0f"),
        *table("Parameters of both and the temperature, in millions, as printed", printed, tolerance=5e-5),
        *table("Multiply-adds of a pair, in 10^9, as printed", macs, tolerance=2e-3),
    ]
