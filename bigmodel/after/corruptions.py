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


class Changed:
    """Examples with `change(k, example)` in the place of each."""

    def __init__(self, examples: Any, change: Any):
        self.examples, self.change = examples, change

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, k: int) -> Any:
        return self.change(k, self.examples[k])


def changed(run: evaluate.Run, split: str, limit: int, what: str, tokenizer: Any, seed: int) -> Changed:
    """The split's examples, the first `limit` of them changed.

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
    if tokenizer:
        read = [row["text"] for row in evaluate.texts(run, split, limit)]
        drawn = [TEXTS[kind](text, amount, np.random.default_rng([seed, k])) for k, text in enumerate(read)]
        ids = tokenizer.arrays([tokenizer.clean(text) for text in drawn])
        return Changed(examples, lambda k, old: {**old, **examples.row("text", np.append(ids[k], examples.end))})
    std = amount * np.std([examples[k]["features"] for k in range(len(examples))])

    def noise(k: int, old: Any) -> Any:
        drawn = std * np.random.default_rng([seed, k]).normal(size=old["features"].shape)
        return {**old, "features": old["features"] + drawn.astype(old["features"].dtype)}

    return Changed(examples, noise)
