"""He et al. 2015, "Deep residual learning", arXiv:1512.03385: sizes of tables 1 and 6, and multiply-adds of table 1.

The exact counts and multiply-adds are those that torchvision states beside its weights; the CIFAR networks' are closed
sums over the shapes of section 4.2.
"""

from bigmodel.papers import Frames, Row, cost, size, table

TITLE = "Deep residual learning (He et al. 2015)"
SOURCE = "arXiv:1512.03385, tables 1 and 6; torchvision 0.28.0's metadata"

EXACT = {"18": 11_689_512, "34": 21_797_672, "50": 25_557_032, "101": 44_549_160, "152": 60_192_808}
CIFAR = {"20": 269_722, "32": 464_154, "44": 658_586, "56": 853_018, "110": 1_727_962}
PRINTED = {"20": 0.27, "32": 0.46, "44": 0.66, "56": 0.85, "110": 1.7}  # millions, table 6
GMAC = {"18": 1.814, "34": 3.664, "50": 4.089, "101": 7.801, "152": 11.514}
TABLE_1 = {"18": 1.8, "34": 3.6, "50": 3.8, "101": 7.6, "152": 11.3}
STRIDE = "With the stride in the 3 x 3 convolution; the paper has it in the first 1 x 1, which is cheaper."


def rows(points: Frames) -> list[Row]:
    names = {layers: f"resnet-{layers}" for layers in (*EXACT, *CIFAR)}
    exact = [(names[n], wanted, size(names[n])) for n, wanted in (EXACT | CIFAR).items()]
    printed = [(names[n], millions, size(names[n]) / 1e6) for n, millions in PRINTED.items()]
    macs = [(names[n], wanted, cost(names[n]) / 2e9) for n, wanted in GMAC.items()]
    paper = [(names[n], wanted, cost(names[n]) / 2e9) for n, wanted in TABLE_1.items()]
    return [
        *table("Parameters, by the sum over the shape", exact, tolerance=0, format=",.0f"),
        *table("Table 6, parameters in millions", printed, tolerance=0.03),
        *table("Multiply-adds of a picture of 224 x 224, in 10^9 (torchvision)", macs, tolerance=1e-3),
        *table("Table 1, multiply-adds in 10^9", paper, tolerance=0.08, note=STRIDE),
    ]
