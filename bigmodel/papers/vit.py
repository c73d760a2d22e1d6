"""Dosovitskiy et al. 2020, arXiv:2010.11929, Steiner et al. 2021, arXiv:2106.10270, and Zhai et al. 2021,
arXiv:2106.04560: sizes of Vision Transformers, and what a picture costs.

Shapes: github.com/google-research/vision_transformer and big_vision. The exact counts are closed sums over them, made
independently of the module, with a class token and a head of 1,000 classes; multiply-adds are torchvision's.
"""

from bigmodel.models import vit
from bigmodel.papers import Frames, Row, cost, size, table

TITLE = "Vision Transformers (Dosovitskiy et al. 2020, Steiner et al. 2021, Zhai et al. 2021)"
SOURCE = (
    "arXiv:2010.11929, table 1; arXiv:2106.10270, table 2; arXiv:2106.04560, table 2; torchvision 0.28.0's metadata"
)

# Without the head.
BACKBONE = {
    "vit-ti16": 5_524_416, "vit-s32": 22_493_952, "vit-s16": 21_665_664, "vit-b32": 87_455_232, "vit-b16": 85_798_656,
    "vit-l32": 305_510_400, "vit-l16": 303_301_632, "vit-h14": 630_764_800, "vit-g14": 1_011_202_432,
    "vit-G14": 1_842_775_680, "vit-e14": 3_805_421_312, "vit-so400m14": 412_444_656,
}  # fmt: skip
PRINTED = {"vit-b16": 86, "vit-l16": 307, "vit-h14": 632}  # millions, table 1
GMAC = {"vit-b16": 17.564, "vit-b32": 4.409, "vit-l16": 61.555, "vit-l32": 15.378}


def rows(points: Frames) -> list[Row]:
    def head(name: str) -> int:
        return 1000 * (vit.PUBLISHED[name]["model"]["width"] + 1)

    exact = [(name, wanted, size(name) - head(name)) for name, wanted in BACKBONE.items()]
    printed = [(name, millions, size(name) / 1e6) for name, millions in PRINTED.items()]
    macs = [(name, wanted, cost(name) / 2e9) for name, wanted in GMAC.items()]
    return [
        *table("Parameters without the head, by the sum over the shape", exact, tolerance=0, format=",.0f"),
        *table("Parameters, as printed, in millions", printed, tolerance=0.01),
        *table("Multiply-adds of a picture of 224 x 224, in 10^9 (torchvision)", macs, tolerance=2e-3),
    ]
