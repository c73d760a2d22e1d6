"""Raffel et al. 2020, "Exploring the limits of transfer learning ...", arXiv:1910.10683 (T5 v1.0), section 3.7.

The exact counts are closed sums over the paper's shapes, made independently of the modules that they are compared with;
the printed ones are rounded names.
"""

from bigmodel import models
from bigmodel.papers import Frames, Row, count, published

TITLE = "T5 (Raffel et al. 2020)"
SOURCE = "arXiv:1910.10683, section 3.7"

# The printed millions.
SIZES = {"t5-small": 60, "t5-base": 220, "t5-large": 770, "t5-3b": 2_800, "t5-11b": 11_000}
TOLERANCE = 0.05


def rows(points: Frames) -> list[Row]:
    exact, named = [], []
    for name, millions in SIZES.items():
        ours = count(published(name), family="encdec")
        sums = models.published(name)[1]["params"]
        exact.append(Row("Parameters, by the sum over the shape", name, sums, ours, 0, format=",.0f"))
        named.append(Row("Parameters, as printed, in millions", name, millions, ours / 1e6, TOLERANCE))
    return exact + named
