"""Radford et al. 2019, "Language Models are Unsupervised Multitask Learners".

Shapes and counts: the model card and published weights of github.com/openai/gpt-2. The cost of a forward pass: the
notebook transformer_sizing.ipynb of github.com/karpathy/nanoGPT.
"""

from bigmodel import models
from bigmodel.models import decoder
from bigmodel.papers import Frames, Row, count, model, published

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
        total = models.published(name)[1]["params"]
        out += [
            Row("Parameters", f"{name}, total", total, count(cfg), 0, format=",.0f"),
            Row("Parameters", f"{name}, no embeddings", nonembedding, count(cfg, "nonembedding"), 0, format=",.0f"),
            Row("Parameters", f"{name}, Kaplan's N", kaplan, count(cfg, "kaplan"), 0, format=",.0f"),
            Row("Parameters", f"{name}, in the paper", paper, count(cfg), format=",.0f", note=ERRATUM),
        ]
    small, part = published("gpt2"), "Cost of gpt2 at 1024 tokens, FLOPs"
    forward = decoder.flops(small)
    free = model("decoder", **{**small.to_dict(), "bias": False})
    length = small.seq_len
    without_positions = count(free) - length * small.width
    palm = length * (6 * without_positions + 12 * small.depth * small.width * length)
    return [
        *out,
        Row("Parameters", "gpt2 without biases", WITHOUT_BIASES, count(free), 0, format=",.0f"),
        Row(part, "forward", FORWARD, forward, 0, format=",.0f"),
        Row(part, "forward and backward", TRAIN, 3 * forward, 0, format=",.0f"),
        Row(part, "by PaLM's 6 N + 12 depth width length", PALM, palm, 0, format=",.0f"),
    ]
