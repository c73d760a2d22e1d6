"""Hoffmann et al. 2022, "Training Compute-Optimal Large Language Models", arXiv:2203.15556.

Table A9 as transcribed by the notebook scaling_laws.ipynb of github.com/karpathy/nanoGPT; Tables 3, A3 and A4 from the
paper. The unrounded constants of approach 3 stand in the TeX source of the paper's arXiv version. Table A9's counts
are of a decoder with Transformer-XL's relative positions: a matrix of width x (heads x kv) a layer more than GPT's.
"""

import math
from typing import Any

import numpy as np
import pandas as pd

from bigmodel.errors import UsageError
from bigmodel.laws import fit, forms, frontier
from bigmodel.laws.forms import FLOPS_PER_PARAM_TOKEN
from bigmodel.models import decoder, decoder_published
from bigmodel.papers import Frames, Points, Row, count, model, size, table

TITLE = "Chinchilla (Hoffmann et al. 2022)"
SOURCE = "arXiv:2203.15556, Tables 3, A3, A4, A9 and section 3; github.com/karpathy/nanoGPT, scaling_laws.ipynb"
POINTS = (
    Points(
        "besiroglu2024_chinchilla_points.csv",
        "github.com/epoch-research/analyzing-chinchilla, data/svg_extracted_data.csv",
        "none stated",
        ("Model Size", "Training FLOP", "loss"),
        also=("svg_extracted_data.csv",),
    ),
)

NAMED = {"gopher-280b": 280, "chinchilla-70b": 70}  # billions
# Table 3 (approach 1): parameters, FLOPs, tokens. Table A3 (approach 2): tokens of the same models.
TABLE_3 = (
    ("400M", 400e6, 1.92e19, 8.0e9), ("1B", 1e9, 1.21e20, 20.2e9), ("10B", 10e9, 1.23e22, 205.1e9),
    ("67B", 67e9, 5.76e23, 1.5e12), ("175B", 175e9, 3.85e24, 3.7e12), ("280B", 280e9, 9.90e24, 5.9e12),
    ("520B", 520e9, 3.43e25, 11.0e12), ("1T", 1e12, 1.27e26, 21.2e12), ("10T", 10e12, 1.30e28, 216.2e12),
)  # fmt: skip
TABLE_A3 = (7.7e9, 20.0e9, 219.5e9, 1.7e12, 4.3e12, 7.1e12, 13.4e12, 26.5e12, 292.0e12)
# Table A4: exact FLOPs / 6 N D, and the row of Table A9 by its printed millions.
TABLE_A4 = (("73M", 74, 1.03), ("305M", 306, 1.10), ("552M", 552, 1.08), ("1.1B", 1143, 1.04), ("1.6B", 1593, 1.03),
            ("6.8B", 6796, 0.99))  # fmt: skip
# Section 3: exponents of N_opt and D_opt by each approach. Approach 3 as printed, and unrounded.
APPROACHES = {1: (0.50, 0.50), 2: (0.49, 0.51), 3: (0.46, 0.54)}
BUDGETS = (6e18, 1e19, 3e19, 6e19, 1e20, 3e20, 6e20, 1e21, 3e21)  # FLOPs, of approach 2's IsoFLOP curves
PRINTED = {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28}
UNROUNDED = {
    "E": math.exp(0.5267228), "A": math.exp(6.0073404), "B": math.exp(6.0179186), "alpha": 0.33917084,
    "beta": 0.2849083,
}  # fmt: skip

NO_BIASES = "Without Transformer-XL's two bias vectors u and v a layer, which would add less than 0.05 %."
TOKENS_ROUNDED = "The printed tokens, 1.5T, are rounded: this is the one row that 6 N D misses by more than 1 %."
WITHOUT = (
    "Our FLOPs of the blocks alone, without embedding and head, which is what makes the printed ratios come out, and "
    "without softmax and the relative positions' products; N counts all parameters."
)
ROUNDING = "The printed, rounded constants don't give the printed exponents; the unrounded ones do."
OURS = "Our fit of the points that Besiroglu et al. 2024 read off the paper's Figure 4, less the 5 highest losses."


def table_a9() -> dict[int, dict[str, int]]:
    """Printed millions -> shape."""
    columns = ("width", "ffn", "head_dim", "num_heads", "depth")
    return {printed: {c: row["model"][c] for c in columns} for printed, row in decoder_published.table_a9().items()}


def build(shape: dict[str, int]) -> Any:
    """A model of Table A9, by our decoder: relative positions, RMSNorm, no biases, one table of 32,000."""
    common = dict(vocab_size=32_000, seq_len=2048, position="relative", norm="rmsnorm", bias=False)
    return model("decoder", **common, **shape)


def rows(points: Frames) -> list[Row]:
    out = _sizes() + _flops() + _tables() + _approaches()
    if POINTS[0].name in points:
        out += _refit(points[POINTS[0].name])
    return out


def _sizes() -> list[Row]:
    part = "Table A9: parameters, millions"
    numbers = [(str(printed), printed, count(build(shape)) / 1e6) for printed, shape in table_a9().items()]
    out = table(part, numbers, tolerance=0.008, format=",.1f")
    close = sum(abs(row.difference) <= 0.005 for row in out)
    out.append(Row(part, "rows within 0.5 %", len(out), close, format=".0f", note=NO_BIASES))
    named = [(name, billions, size(name) / 1e9) for name, billions in NAMED.items()]
    return out + table("Models named, billions", named, tolerance=0.005, format=".1f", note=NO_BIASES)


def _flops() -> list[Row]:
    numbers, shapes = [], table_a9()
    for name, printed, ratio in TABLE_A4:
        cfg = build(shapes[printed])
        plain = model("decoder", **{**cfg.to_dict(), "position": "none"})
        forward = decoder.flops(plain) - 2 * plain.seq_len * plain.width * plain.vocab_size  # of one sequence
        numbers.append((name, ratio, 3 * forward / (FLOPS_PER_PARAM_TOKEN * count(cfg) * cfg.seq_len)))
    how = {"tolerance": 0.01, "absolute": True, "format": ".3f", "note": WITHOUT}
    return table("Table A4: exact FLOPs / 6 N D", numbers, **how)


def _tables() -> list[Row]:
    out = []
    for name, n, flops, d in TABLE_3:
        how = {"tolerance": 0.05, "note": TOKENS_ROUNDED} if name == "67B" else {"tolerance": 0.01}
        ours = FLOPS_PER_PARAM_TOKEN * n * d
        out.append(Row("Table 3: FLOPs as 6 N D of the printed N and D", name, flops, ours, format=".3g", **how))
    n, flops, d = np.array([numbers for _, *numbers in TABLE_3]).T
    d2 = np.array(TABLE_A3)
    flops2 = FLOPS_PER_PARAM_TOKEN * n * d2  # along the frontier C = 6 N D
    exponents = [
        ("a of N ~ C^a, Table 3", APPROACHES[1][0], frontier.power_law(flops, n)[0]),
        ("b of D ~ C^b, Table 3", APPROACHES[1][1], frontier.power_law(flops, d)[0]),
        ("a of N ~ C^a, Table A3", APPROACHES[2][0], frontier.power_law(flops2, n)[0]),
        ("b of D ~ C^b, Table A3", APPROACHES[2][1], frontier.power_law(flops2, d2)[0]),
    ]
    part = "Exponents through the tables' rows (log-log least squares)"
    return out + table(part, exponents, tolerance=0.005, absolute=True, format=".3f")


def _approaches() -> list[Row]:
    law, part = forms.get("chinchilla"), "Approach 3: exponents that follow from its law"
    assert law.exponents is not None
    out = []
    for name, constants in (("unrounded", UNROUNDED), ("printed", PRINTED)):
        found = law.exponents(constants)
        numbers = [(f"{k}, {name} constants", v, found[k]) for k, v in zip("ab", APPROACHES[3], strict=True)]
        how = {"tolerance": 0.005} if name == "unrounded" else {"note": ROUNDING}
        out += table(part, numbers, absolute=True, format=".4f", **how)
    return out


def frame_of(points: pd.DataFrame, drop_highest: int) -> pd.DataFrame:
    """Runs N, D, C, L in the file's order, less those whose loss is at least the k-th highest (Besiroglu et al.)."""
    n, c, loss = (points[column].to_numpy() for column in ("Model Size", "Training FLOP", "loss"))
    if len(points) <= drop_highest:
        raise UsageError(f"{POINTS[0].name} has {len(points)} points, and the {drop_highest} highest are left out")
    frame = pd.DataFrame({"N": n, "D": c / (FLOPS_PER_PARAM_TOKEN * n), "C": c, "L": loss})
    keep = loss < np.sort(loss)[-drop_highest] if drop_highest else np.full(len(loss), True)
    return frame[keep].reset_index(drop=True)


def _refit(points: pd.DataFrame) -> list[Row]:
    frame = frame_of(points, drop_highest=5)
    law = fit.fit(frame, bootstrap=0, holdout=0)
    iso = frontier.isoflop(frame, bootstrap=0, budgets_at=BUDGETS)["params"]
    exponents = [
        ("a, law (approach 3)", APPROACHES[3][0], law["optimal"]["a"]),
        ("a, IsoFLOP (approach 2)", APPROACHES[2][0], iso["a"]),
    ]
    tokens = []
    for (name, n, _, _), printed in zip(TABLE_3, TABLE_A3, strict=True):
        tokens.append((f"{name}, IsoFLOP", printed / 1e9, iso["D0"] * (n / iso["N0"]) ** (iso["b"] / iso["a"]) / 1e9))
        tokens.append((f"{name}, law", printed / 1e9, _tokens_at(law, n) / 1e9))
    return [
        *table("Our fits of the points", exponents, absolute=True, format=".3f", note=OURS),
        *table("Table A3: optimal tokens, billions", tokens, format=",.1f", note=OURS),
    ]


def _tokens_at(law: dict, n: float) -> float:
    """D of the compute whose optimal size is n: N_opt is a power of C, so two points give it."""
    (n0, _), (n1, _) = fit.optimal(law, 1e20), fit.optimal(law, 1e24)
    a = math.log(n1 / n0) / math.log(1e4)
    return fit.optimal(law, 1e20 * (n / n0) ** (1 / a))[1]
