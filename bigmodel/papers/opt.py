"""Zhang et al. 2022, "OPT: Open Pre-trained Transformer Language Models", arXiv:2205.01068, Table 1.

Shapes: the launcher of github.com/facebookresearch/metaseq. The exact counts are closed sums over those shapes with the
vocabulary of 50,272 and 2,048 + 2 learned positions, made independently of the modules that they are compared with.
"""

from dataclasses import replace

from bigmodel.papers import Frames, Row, size, sums

TITLE = "OPT (Zhang et al. 2022), Table 1"
SOURCE = "arXiv:2205.01068; shapes: github.com/facebookresearch/metaseq"

# The printed name, in millions.
SIZES = {
    "opt-125m": 125, "opt-350m": 350, "opt-1.3b": 1_300, "opt-2.7b": 2_700, "opt-6.7b": 6_700,
    "opt-13b": 13_000, "opt-30b": 30_000, "opt-66b": 66_000, "opt-175b": 175_000,
}  # fmt: skip
SMALLER = (
    "Post-norm without a last norm, and a token table of 512 projected in and out. The name is "
    "that of a table as wide as the model."
)
TOLERANCE = 0.02  # the names are rounded: 2.7B is 1.8 % over its shape


def rows(points: Frames) -> list[Row]:
    named = []
    for name, millions in SIZES.items():
        how = {"note": SMALLER} if name == "opt-350m" else {"tolerance": TOLERANCE}
        named.append(Row("Parameters, as named, in millions", name, millions, size(name) / 1e6, format=",.0f", **how))
    exact = sums("Parameters, by the sum over the shape", SIZES)
    return [replace(row, note=SMALLER) if row.what == "opt-350m" else row for row in exact] + named
