"""Devlin et al. 2019, "BERT", arXiv:1810.04805, section 3, and the 24 sizes of Turc et al. 2019, arXiv:1908.08962.

Shapes and vocabularies: github.com/google-research/bert. The exact counts are closed sums over those shapes, made
independently of the modules that they are compared with.
"""

from bigmodel import tree
from bigmodel.papers import Frames, Row, count, published
from bigmodel.run import budget

TITLE = "BERT (Devlin et al. 2019) and its small sizes (Turc et al. 2019)"
SOURCE = "arXiv:1810.04805; arXiv:1908.08962, Table 1; shapes: github.com/google-research/bert"

# name: (encoder and tables, and the pooler, and both heads); None where no sum was made
SUMS = {
    "bert-base-uncased": (108_891_648, 109_482_240, 110_106_428),
    "bert-large-uncased": (334_092_288, 335_141_888, 336_226_108),
    "bert-base-cased": (None, 108_310_272, None),
    "bert-large-cased": (None, 333_579_264, None),
    "bert-tiny": (None, 4_385_920, None),
    "bert-mini": (None, 11_170_560, None),
    "bert-small": (None, 28_763_648, None),
    "bert-medium": (None, 41_373_184, None),
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
ROUNDED = 0.012  # the paper's 340M is 335M or 336M by every sum


def parts(name: str) -> tuple[int, int, int]:
    """(encoder and tables, and the pooler, and both heads) of a published model."""
    cfg = published(name)
    shapes = budget.shapes("bert", cfg)
    return tree.count(shapes, f"{HEADS}|^pooler"), tree.count(shapes, HEADS), count(cfg, family="bert")


def rows(points: Frames) -> list[Row]:
    out = []
    for name, sums in SUMS.items():
        for what, wanted, ours in zip(("encoder", "with pooler", "with heads"), sums, parts(name), strict=True):
            if wanted is not None:
                out.append(
                    Row("Parameters, by the sum over the shape", f"{name}, {what}", wanted, ours, 0, format=",.0f")
                )
    for name, millions in PRINTED.items():
        out.append(
            Row(
                "Parameters, as printed, in millions",
                name,
                millions,
                count(published(name), family="bert") / 1e6,
                ROUNDED,
            )
        )
    for depth, grid in GRID.items():
        for width, millions in zip(WIDTHS, grid, strict=True):
            found = parts(f"bert-{NAMES.get((depth, width), f'l{depth}-h{width}')}")[1] / 1e6
            what = f"depth {depth}, width {width}"
            out.append(
                Row("Turc et al.'s grid with pooler, in millions", what, millions, found, 0.0501, True, format=".2f")
            )
    return out
