"""Radford et al. 2019, "Language Models are Unsupervised Multitask Learners".

Shapes and counts: the model card and published weights of github.com/openai/gpt-2. The cost of a forward pass: the
notebook transformer_sizing.ipynb of github.com/karpathy/nanoGPT.
"""

from bigmodel import models
from bigmodel.models import decoder
from bigmodel.papers import Frames, Row, count, published, size, table

TITLE = "GPT-2 (Radford et al. 2019)"
SOURCE = "github.com/openai/gpt-2, model card; github.com/karpathy/nanoGPT, transformer_sizing.ipynb"

# name: (in the paper, without the two tables, Kaplan's N = 12 depth width^2); totals are PUBLISHED's of the decoder.
SIZES = {
    "gpt2": (117e6, 85_056_000, 84_934_656),
    "gpt2-medium": (345e6, 302_311_424, 301_989_888),
    "gpt2-large": (762e6, 708_390_400, 707_788_800),
    "gpt2-xl": (1542e6, 1_475_561_600, 1_474_560_000),
}
ERRATUM = "The repository's README says that the paper's counts were wrong, due to an error."
WITHOUT_BIASES = 124_337_664  # nanoGPT's count of gpt2, which it builds without biases
# nanoGPT's cost of one forward pass of 1024 tokens and of its training step, and PaLM's estimate of the latter.
FORWARD, TRAIN, PALM = 291_648_307_200, 874_944_921_600, 875_062_886_400


def rows(points: Frames) -> list[Row]:
    out = []
    for name, (paper, nonembedding, kaplan) in SIZES.items():
        cfg = published(name)
        exact = [
            (f"{name}, total", models.published(name)[1]["params"], count(cfg)),
            (f"{name}, no embeddings", nonembedding, count(cfg, "nonembedding")),
            (f"{name}, Kaplan's N", kaplan, count(cfg, "kaplan")),
        ]
        out += table("Parameters", exact, tolerance=0, format=",.0f")
        out.append(Row("Parameters", f"{name}, in the paper", paper, count(cfg), format=",.0f", note=ERRATUM))
    without_biases = size("gpt2", bias=False)
    out.append(Row("Parameters", "gpt2 without biases", WITHOUT_BIASES, without_biases, 0, format=",.0f"))
    small = published("gpt2")
    forward, length = decoder.flops(small), small.seq_len
    without_positions = without_biases - length * small.width
    costs = [
        ("forward", FORWARD, forward),
        ("forward and backward", TRAIN, 3 * forward),
        ("by PaLM's 6 N + 12 depth width length", PALM,
         length * (6 * without_positions + 12 * small.depth * small.width * length)),
    ]  # fmt: skip
    return out + table("Cost of gpt2 at 1024 tokens, FLOPs", costs, tolerance=0, format=",.0f")
