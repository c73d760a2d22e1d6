"""Devlin et al. 2019, "BERT", arXiv:1810.04805, section 3, and the 24 sizes of Turc et al. 2019, arXiv:1908.08962.

Shapes and vocabularies: github.com/google-research/bert. The exact counts are closed sums over those shapes, made
independently of the modules that they are compared with.
"""

from bigmodel import tree
from bigmodel.papers import Frames, Row, published, size, table
from bigmodel.run import counts

TITLE = "BERT (Devlin et al. 2019) and its small sizes (Turc et al. 2019)"
SOURCE = "arXiv:1810.04805; arXiv:1908.08962, Table 1; shapes: github.com/google-research/bert"

# Closed sums: the encoder and its tables, the same with the pooler, and the same with both heads.
SUMS = {
    "bert-base-uncased, encoder": 108_891_648,
    "bert-base-uncased, with pooler": 109_482_240,
    "bert-base-uncased, with heads": 110_106_428,
    "bert-large-uncased, encoder": 334_092_288,
    "bert-large-uncased, with pooler": 335_141_888,
    "bert-large-uncased, with heads": 336_226_108,
    "bert-base-cased, with pooler": 108_310_272,
    "bert-large-cased, with pooler": 333_579_264,
    "bert-tiny, with pooler": 4_385_920,
    "bert-mini, with pooler": 11_170_560,
    "bert-small, with pooler": 28_763_648,
    "bert-medium, with pooler": 41_373_184,
}
PRINTED = {
    "bert-base-uncased": 110, "bert-large-uncased": 340, "bert-tiny": 4.4, "bert-mini": 11.3, "bert-small": 29.1,
    "bert-medium": 41.7,
}  # fmt: skip
# Millions with the pooler, by the sum over the shape: depth -> widths 128, 256, 512, 768.
WIDTHS = (128, 256, 512, 768)
GRID = {
    2: (4.4, 9.6, 22.5, 38.6), 4: (4.8, 11.2, 28.8, 52.8), 6: (5.2, 12.8, 35.1, 67.0),
    8: (5.6, 14.3, 41.4, 81.1), 10: (6.0, 15.9, 47.7, 95.3), 12: (6.4, 17.5, 54.0, 109.5),
}  # fmt: skip
NAMES = {(2, 128): "tiny", (4, 256): "mini", (4, 512): "small", (8, 512): "medium"}
HEADS = r"^(transform|output_bias|next)"
LEFT_OUT = {"encoder": f"{HEADS}|^pooler", "with pooler": HEADS, "with heads": "(?!)"}
ROUNDED = 0.012  # the paper's 340M is 335M or 336M by every sum


def part_size(name: str, part: str) -> int:
    """Parameters of a part of a published model."""
    return tree.count(counts.shapes("bert", published(name)), LEFT_OUT[part])


def rows(points: Frames) -> list[Row]:
    exact = [(what, wanted, part_size(*what.split(", "))) for what, wanted in SUMS.items()]
    printed = [(name, millions, size(name) / 1e6) for name, millions in PRINTED.items()]
    grid = []
    for depth, line in GRID.items():
        for width, millions in zip(WIDTHS, line, strict=True):
            name = NAMES.get((depth, width), f"l{depth}-h{width}")
            ours = part_size(f"bert-{name}", "with pooler") / 1e6
            grid.append((f"depth {depth}, width {width}", millions, ours))
    return [
        *table("Parameters, by the sum over the shape", exact, tolerance=0, format=",.0f"),
        *table("Parameters, as printed, in millions", printed, tolerance=ROUNDED),
        *table("Turc et al.'s grid with pooler, in millions", grid, tolerance=0.0501, absolute=True, format=".2f"),
    ]
