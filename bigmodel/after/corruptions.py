"""Changed examples, to see what a run's scores lose by it: each a function of (seed, number of the example)."""

from __future__ import annotations

from typing import Any

import numpy as np

from bigmodel.after import evaluate
from bigmodel.errors import UsageError, choose


def typos(text: str, rate: float, rng: np.random.Generator) -> str:
    """At `rate` of its characters, one is swapped with the next, left out or doubled, each as likely.

    A character is a code point, and so a whole Chinese one.
    """
    out, k = [], 0
    hit, kind = rng.random(len(text)) < rate, rng.integers(0, 3, len(text))
    while k < len(text):
        if hit[k] and kind[k] == 0:
            out.append(text[k + 1 : k + 2] + text[k])
            k += 1  # the neighbour stays as it is
        elif not hit[k] or kind[k] == 2:
            out.append(text[k] * (1 + int(hit[k])))
        k += 1
    return "".join(out)


def truncate(text: str, share: float, _: np.random.Generator) -> str:
    """The first `share` of its characters, at least one."""
    return text[: max(1, round(share * len(text)))]


TEXTS = {"typos": typos, "truncate": truncate}


def changed(run: evaluate.Run, split: str, limit: int, what: str, tokenizer: Any, seed: int) -> list[Any]:
    """The first `limit` examples of the split (0: all), changed.

    Args:
      what: 'typos:RATE' or 'truncate:SHARE' of texts, which are encoded again; 'noise:DEVIATIONS' of features: normal,
        so many times the standard deviation of all the split's features.
      tokenizer: None where the examples are no texts.

    Raises:
      UsageError: no such change of such examples.
    """
    kind, _, given = what.partition(":")
    choose("--corrupt", kind, TEXTS if tokenizer else ["noise"])
    try:
        amount = float(given)
        if not 0 < amount <= (1 if tokenizer else 1e6):
            raise ValueError
    except ValueError:
        raise UsageError(f"--corrupt={what}: expected {kind}:AMOUNT, above 0 and, of texts, at most 1") from None
    examples = run.examples(split)
    old = [examples[k] for k in range(min(len(examples), limit or len(examples)))]
    rngs = [np.random.default_rng([seed, k]) for k in range(len(old))]
    if tokenizer:
        read = [row["text"] for row in evaluate.texts(run, split, limit)]
        drawn = [TEXTS[kind](text, amount, rng) for text, rng in zip(read, rngs, strict=True)]
        ids = tokenizer.arrays([tokenizer.clean(text) for text in drawn])
        new = [examples.row("text", np.append(tokens, examples.end)) for tokens in ids]
    else:
        std = amount * np.std([one["features"] for one in old])
        features = [one["features"] for one in old]
        new = [
            {"features": x + (std * r.normal(size=x.shape)).astype(x.dtype)}
            for x, r in zip(features, rngs, strict=True)
        ]
    return [{**one, **other} for one, other in zip(old, new, strict=True)]
