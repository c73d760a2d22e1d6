"""Brown et al. 2020, "Language Models are Few-Shot Learners", arXiv:2005.14165, Table 2.1."""

from bigmodel import models
from bigmodel.models.decoder_published import B13, XL
from bigmodel.papers import Frames, Row, size

TITLE = "GPT-3 (Brown et al. 2020), Table 2.1"
SOURCE = "arXiv:2005.14165; our count: vocabulary 50,257, tied table, 2,048 learned positions, biases"

# row -> name of the table; the printed size and the note are PUBLISHED's of the decoder.
SIZES = {
    "gpt3-125m": "Small", "gpt3-350m": "Medium", "gpt3-760m": "Large", "gpt3-1.3b": "XL",
    "gpt3-2.7b": "2.7B", "gpt3-6.7b": "6.7B", "gpt3-13b": "13B", "gpt3-175b": "175B or GPT-3",
}  # fmt: skip
# The table rounds to two or three digits; its worst row, 2.7B, is 1.8 % over the sum of its own shape.
TOLERANCE = 0.02
UNIT = {"M": 1e6, "B": 1e9}


def rows(points: Frames) -> list[Row]:
    out = []
    for name, label in SIZES.items():
        row = models.published(name)[1]
        number, letter = float(row["printed"][:-1]), row["printed"][-1]
        what = f"{label} (n_params, {'millions' if letter == 'M' else 'billions'})"
        ours = size(name) / UNIT[letter]
        out.append(Row("Table 2.1", what, number, ours, TOLERANCE, format=",.2f", note=row["note"]))
    xl = size("gpt3-1.3b", num_heads=24, num_kv_heads=24, base_num_heads=0) / 1e9
    b13 = size("gpt3-13b", width=5120, embed_dim=0, ffn=0, base_width=0) / 1e9
    part = "The two rows whose heads don't fill the width, in billions"
    return [
        *out,
        Row(part, "XL with its 24 printed heads of 128", 1.3, xl, format=".3f", note=XL),
        Row(part, "13B at the width that its heads fill, 5120", 13.0, b13, format=".3f", note=B13),
    ]
