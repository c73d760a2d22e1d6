"""Brown et al. 2020, "Language Models are Few-Shot Learners", arXiv:2005.14165, Table 2.1."""

from bigmodel import models
from bigmodel.models.decoder_published import B13, XL
from bigmodel.papers import Frames, Row, count, model, published

TITLE = "GPT-3 (Brown et al. 2020), Table 2.1"
SOURCE = "arXiv:2005.14165; our count: vocabulary 50,257, tied table, 2,048 learned positions, biases"

# row -> name of the table; the printed size and the note are PUBLISHED's of the decoder.
SIZES = {
    "gpt3-125m": "Small",
    "gpt3-350m": "Medium",
    "gpt3-760m": "Large",
    "gpt3-1.3b": "XL",
    "gpt3-2.7b": "2.7B",
    "gpt3-6.7b": "6.7B",
    "gpt3-13b": "13B",
    "gpt3-175b": "175B or GPT-3",
}
# The table rounds to two or three digits; its worst row, 2.7B, is 1.8 % over the sum of its own shape.
TOLERANCE = 0.02
UNIT = {"M": 1e6, "B": 1e9}


def rows(points: Frames) -> list[Row]:
    out = []
    for name, label in SIZES.items():
        row = models.published(name)[1]
        printed, note = row["printed"], row["note"]
        number, unit = float(printed[:-1]), printed[-1]
        ours = count(published(name)) / UNIT[unit]
        what = f"{label} (n_params, {'millions' if unit == 'M' else 'billions'})"
        out.append(Row("Table 2.1", what, number, ours, TOLERANCE, format=",.2f", note=note))

    def variant(name: str, **change: int) -> float:
        section = published(name).to_dict()
        return count(model("decoder", **{**section, **change})) / 1e9

    part = "The two rows whose heads don't fill the width, in billions"
    xl = variant("gpt3-1.3b", num_heads=24, num_kv_heads=24, base_num_heads=0)
    b13 = variant("gpt3-13b", width=5120, embed_dim=0, ffn=0, base_width=0)
    return [
        *out,
        Row(part, "XL with its 24 printed heads of 128", 1.3, xl, format=".3f", note=XL),
        Row(part, "13B at the width that its heads fill, 5120", 13.0, b13, format=".3f", note=B13),
    ]
