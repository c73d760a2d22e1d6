"""Multiple choice by log-likelihood, with examples in the prompt, scored as lm-evaluation-harness does.

B batch, L length, V vocab.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bigmodel.after import evaluate, slices
from bigmodel.errors import UsageError, note
from bigmodel.ops.cross_entropy import negative_log_likelihood

Tokens = Sequence[int]
# lm-evaluation-harness's names of accuracies, and what each divides a choice's log-likelihood by.
LENGTHS: dict[str, Any] = {"acc": lambda choice: 1, "acc_norm": len, "acc_bytes": lambda choice: len(choice.encode())}


def read(path: str) -> list[dict[str, Any]]:
    """Lines {"prompt": text, "choices": [text, ...], "answer": the number of the right one, from 0}."""
    rows: list[dict[str, Any]] = []
    try:
        with open(path, encoding="utf-8") as f:
            for line in f:
                row = json.loads(line)
                prompt, offered, answer = row["prompt"], row["choices"], row["answer"]
                if not all(isinstance(t, str) and t for t in (prompt, *offered)) or answer not in range(len(offered)):
                    raise ValueError("prompt and choices are texts, the answer is the number of a choice from 0")
                rows.append(row)
    except OSError as e:
        raise UsageError(f"can't read {path!r}: {e.strerror or e}") from e
    except (ValueError, KeyError, TypeError) as e:
        raise UsageError(f"{path!r}, line {len(rows) + 1}: {type(e).__name__}: {e}") from e
    return rows


def check(run: evaluate.Run) -> None:
    """UsageError: the run doesn't predict text from its second token on."""
    predicted = evaluate.places(run)
    if not predicted or predicted != range(1, run.config.model.seq_len + 1):
        raise UsageError(f"a run of family {run.config.family!r} doesn't continue text: its choices have no likelihood")


def encoded(tokenizer: Any, context: str, continuation: str) -> tuple[Tokens, Tokens]:
    """Tokens of both. The continuation's are those of the whole text after as many as the context has; white space at
    the context's end is the continuation's, and an empty context is the separator of documents."""
    kept = context.rstrip()
    whole = tokenizer.encode(context + continuation)
    given = tokenizer.encode(kept) if kept else []
    if not given and tokenizer.separator is None:
        raise UsageError("a context is empty, and the model has no end-of-text token to begin with")
    return given or [tokenizer.separator], whole[len(given) :]


def log_likelihoods(run: evaluate.Run, pairs: Sequence[tuple[Tokens, Tokens]]) -> tuple[np.ndarray, np.ndarray]:
    """Of each (context, continuation): the continuation's log-probability in nats, and whether it is the greedy one.

    A context is cut at its start to the window. UsageError: a continuation is empty or longer than the window.
    """
    cfg = run.config.model
    rows = [np.array([*context, *continuation][-cfg.seq_len - 1 :], np.int32) for context, continuation in pairs]
    for _, continuation in pairs:
        if not 0 < len(continuation) <= cfg.seq_len:
            raise UsageError(f"a continuation has {len(continuation)} tokens: 1 to {cfg.seq_len} fit the run's window")
    if cut := sum(len(context) + len(rest) > cfg.seq_len + 1 for context, rest in pairs):
        note(f"{cut:,} of {len(pairs):,} contexts are cut at their start to the window of {cfg.seq_len} tokens")
    size = min(cfg.seq_len, 1 << (max(map(len, rows)) - 1).bit_length()) + 1  # few sizes are compiled

    def scores(variables: Any, batch: Any) -> jax.Array:
        logits_BLV = run.model.apply(variables, *run.family.inputs(cfg, batch))
        targets_BL = batch["tokens"][:, 1:]
        nats_BL, _ = negative_log_likelihood(logits_BLV, targets_BL)
        return jnp.stack([-nats_BL, jnp.argmax(logits_BLV, axis=-1) == targets_BL], axis=1)

    batch = evaluate.batch_size(cfg, size)
    examples = [{"tokens": np.pad(row, (0, size - len(row)))} for row in rows]
    found = np.concatenate([out for _, out in evaluate.outputs(run, scores, examples, batch, 0)]).astype(np.float64)
    spans = [slice(len(row) - 1 - len(rest), len(row) - 1) for row, (_, rest) in zip(rows, pairs, strict=True)]
    sums = [(log_p[span].sum(), hits[span].all()) for (log_p, hits), span in zip(found, spans, strict=True)]
    log_p_N, greedy_N = (np.array(column) for column in zip(*sums, strict=True))
    return log_p_N, greedy_N


def multiple_choice(
    run: evaluate.Run, tokenizer: Any, rows: list[dict[str, Any]], shots: int, delimiter: str = " "
) -> dict[str, Any]:
    """How often the right choice is the likeliest, by each of LENGTHS, with Wilson's intervals.

    Args:
      shots: the first so many rows are put before every prompt with their answers, and aren't asked.
    """
    first, asked = rows[:shots], rows[shots:]
    if not asked:
        raise UsageError(f"--shots={shots}: no question is left of {len(rows)}")
    before = "".join(f"{r['prompt']}{delimiter}{r['choices'][r['answer']]}\n\n" for r in first)
    texts = [(before + r["prompt"], delimiter + choice) for r in asked for choice in r["choices"]]
    log_p_N, _ = log_likelihoods(run, [encoded(tokenizer, *pair) for pair in texts])
    parts = np.split(log_p_N, np.cumsum([len(r["choices"]) for r in asked])[:-1])
    found: dict[str, Any] = {"questions": len(asked), "shots": shots}
    for name, size in LENGTHS.items():
        best = [np.argmax(p / [size(c) for c in r["choices"]]) for r, p in zip(asked, parts, strict=True)]
        right = sum(int(b == r["answer"]) for b, r in zip(best, asked, strict=True))
        found |= {name: right / len(asked), f"{name}_interval": slices.wilson(right, len(asked))}
    return found | {"log_likelihoods": [p.tolist() for p in parts]}
