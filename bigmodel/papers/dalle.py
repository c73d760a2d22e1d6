"""Ramesh et al. 2021, arXiv:2102.12092: sizes of DALL-E's autoencoder and decoder.

The autoencoder's counts are sums over the published networks (github.com/openai/DALL-E), made independently of the
module; the decoder's is 12 depth width^2, its blocks' matrices, of the shape that the paper gives in words.
"""

from bigmodel import tree
from bigmodel.papers import Frames, Row, published, size, table
from bigmodel.run import counts

TITLE = "DALL-E: a discrete autoencoder, and a decoder of captions and codes (Ramesh et al. 2021)"
SOURCE = "arXiv:2102.12092, section 2.2 and appendices A and B; github.com/openai/DALL-E"


def rows(points: Frames) -> list[Row]:
    shapes = counts.shapes("dvae", published("dalle-dvae"))
    decoder = published("dalle-12b")
    parts = [
        ("autoencoder, the encoder", 53_786_240, tree.count(shapes["encoder"])),
        ("autoencoder, the decoder", 43_829_766, tree.count({k: v for k, v in shapes.items() if k != "encoder"})),
        ("autoencoder", 97_616_006, size("dalle-dvae")),
        ("decoder's blocks: 12 x 64 x 3968^2", 12 * 64 * 3968**2, counts.counts("dalle", decoder)[2]),
    ]
    return [
        *table("Parameters, by the sum over the shape", parts, tolerance=0, format=",.0f"),
        *table("Parameters, as printed, in 10^9", [("decoder", 12.0, size("dalle-12b") / 1e9)], tolerance=0.03),
    ]
