"""Kaplan et al. 2020, Figure 7: the loss by position in the context, of LSTMs and Transformers, on runs of our own.

The paper prints no table of it, but what it shows: LSTMs stop gaining after fewer than 100 tokens, Transformers go on
through the whole context.
"""

from typing import Any

from bigmodel.errors import UsageError
from bigmodel.laws import context
from bigmodel.papers import Frames, Points, Row

TITLE = "Loss by position in the context (Kaplan et al. 2020, Figure 7)"
SOURCE = "arXiv:2001.08361, Figure 7 and section 3.2.1"
POINTS = (
    Points(
        "by_position.csv", "what `bigmodel report sweeps/context.py` writes", "our own runs", context.COLUMNS,
        text=("family",), ours="docs/studies/context.csv",
    ),
)  # fmt: skip

PLATEAU = 100  # tokens
SMALL = "Not judged: a Transformer of our size, too, gains little after its first hundred bytes."
BYTES = "Not judged: our tokens are bytes, the paper's are parts of words, and its models are larger."


def rows(points: Frames) -> list[Row]:
    if POINTS[0].name not in points:
        return []
    frame = points[POINTS[0].name]
    for family in ("lstm", "decoder"):
        if family not in set(frame.family):
            raise UsageError(f"paper kaplan2020-fig7: the points have no runs of family {family!r}")
    found = {(r["family"], r["params"]): r for r in context.table(frame)}
    out = []
    for (family, params), r in found.items():
        if family == "lstm":
            what = f"{params:,} parameters, mean of {r['seeds']} seeds"
            out.append(
                Row("Position from which an LSTM's loss is flat", what, PLATEAU, r["flat"], None, True, ",.0f", BYTES)
            )
    largest = {f: max((r for (g, _), r in found.items() if g == f), key=lambda r: r["params"]) for f, _ in found}
    part = "Flat later than the LSTM of about as many parameters (1: in every pair of seeds)"
    lstm, decoder = largest["lstm"], largest["decoder"]
    later = float(decoder["flat_range"][0] > lstm["flat_range"][1])
    out.append(Row(part, f"a Transformer of {decoder['params']:,}", 1, later, 0, True, ",.0f"))
    part = "Gain after position 100 is larger than the LSTM's (1: by more than both deviations)"
    more = float(decoder["gain"] - decoder["gain_deviation"] > lstm["gain"] + lstm["gain_deviation"])
    out.append(Row(part, f"a Transformer of {decoder['params']:,}", 1, more, None, True, ",.0f", SMALL))
    return out


def figure(points: Frames) -> Any:
    return context.figure(points[POINTS[0].name])
