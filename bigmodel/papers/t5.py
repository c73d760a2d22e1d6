"""Raffel et al. 2020, "Exploring the limits of transfer learning ...", arXiv:1910.10683 (T5 v1.0), section 3.7.

The exact counts are closed sums over the paper's shapes, made independently of the modules that they are compared with;
the printed ones are rounded names.
"""

from bigmodel.papers import Frames, Row, size, sums, table

TITLE = "T5 (Raffel et al. 2020)"
SOURCE = "arXiv:1910.10683, section 3.7"

# The printed millions.
SIZES = {"t5-small": 60, "t5-base": 220, "t5-large": 770, "t5-3b": 2_800, "t5-11b": 11_000}
TOLERANCE = 0.05


def rows(points: Frames) -> list[Row]:
    printed = [(name, millions, size(name) / 1e6) for name, millions in SIZES.items()]
    return [
        *sums("Parameters, by the sum over the shape", SIZES),
        *table("Parameters, as printed, in millions", printed, tolerance=TOLERANCE),
    ]
