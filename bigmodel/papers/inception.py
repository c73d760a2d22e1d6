"""Szegedy et al. 2014, arXiv:1409.4842, and 2015, arXiv:1512.00567: sizes and multiply-adds of Inception v1 and v3.

The exact counts are closed sums over the papers' tables, made independently of the modules, and torchvision's own.
"""

from bigmodel.papers import Frames, Row, cost, size, table

TITLE = "Inception v1 and v3 (Szegedy et al. 2014, 2015)"
SOURCE = "arXiv:1409.4842, table 1; arXiv:1512.00567, table 1; torchvision 0.28.0's metadata"


def rows(points: Frames) -> list[Row]:
    exact = [
        ("v1 as printed: true 5 x 5, biases, no batch norm", 6_998_552, size("inception-v1")),
        ("v1, torchvision's port", 6_624_904, size("inception-v1-bn")),
        ("v1 with batch norm and true 5 x 5", 7_005_832, size("inception-v1", norm="batchnorm")),
        ("v1's two auxiliary heads", 6_379_728, size("inception-v1", auxiliary=0.3) - size("inception-v1")),
        ("v3", 23_834_568, size("inception-v3")),
        ("v3 with its auxiliary head", 27_161_264, size("inception-v3", auxiliary=0.4)),
    ]
    macs = [
        ("v1, torchvision's port", 1.498, cost("inception-v1-bn") / 2e9),
        ("v3, of 299 x 299", 5.713, cost("inception-v3") / 2e9),
    ]
    return [
        *table("Parameters, by the sum over the table", exact, tolerance=0, format=",.0f"),
        *table("Multiply-adds of a picture, in 10^9", macs, tolerance=1e-3),
    ]
