"""Conversations: `bigmodel prepare FILE.jsonl` -> tokens by a chat template, and which of them count in the loss.

Rows are {"messages": [{"role", "content"}, ...]} or {"prompt", "answer"}. The template is ChatML's, as SmolLM2's: each
message is `<|im_start|>ROLE`, a new line, `CONTENT<|im_end|>` and a new line; its marks are the tokenizer's own tokens
where it has them, else text. What the assistant says counts, its <|im_end|> included, by which it learns to stop. Files
are those of tasks.py; in SPLIT.npz `counts` has a 1 for each token of `text` that counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from bigmodel.errors import UsageError, note
from bigmodel.prepare import finished, formats, shards, tasks
from bigmodel.prepare import tokenizer as tokenizers
from bigmodel.prepare.folder import Manifest, read_json, sha256
from bigmodel.prepare.registries import Named

START, END = "<|im_start|>", "<|im_end|>"
MESSAGE = re.compile(rf"{re.escape(START)}(.*?)\n(.*?){re.escape(END)}\n", re.S)


def is_file(source: str, text_key: str) -> bool:
    """Whether a source is a file of conversations, by its first row."""
    path = Path(source)
    if not source.endswith((".jsonl", *(f".jsonl{packed}" for packed in formats.PACKED))) or not path.is_file():
        return False
    row = next(formats.json_lines(path), (0, "", None))[2]
    return isinstance(row, dict) and text_key not in row and ("messages" in row or {"prompt", "answer"} <= row.keys())


def examples(path: Path) -> Iterator[tasks.Example]:
    """One a row, as text. Rows in which nobody answers, or that have a mark in a message, are left out."""
    left = []
    for number, where, row in formats.json_lines(path):
        try:
            pair = ("user", "prompt"), ("assistant", "answer")
            messages = row.get("messages") or [{"role": role, "content": row[key]} for role, key in pair]
            text = "".join(START + message["role"] + "\n" + message["content"] + END + "\n" for message in messages)
        except (AttributeError, KeyError, TypeError):
            raise UsageError(f"{where}: expected messages, each with role and content, or prompt and answer") from None
        whole = {text.count(mark) for mark in (START, END)} == {len(messages)}
        if whole and f"{START}assistant\n" in text:
            yield tasks.Example(str(number), {"text": text})
        else:
            left.append(number)
    if left:
        why = f"no answer, or {START} or {END} in a message"
        note(f"left out of {str(path)!r}: {len(left)} rows with {why} (first: {left[0]})")


def prepare_chats(
    source: str, out: str, tokenizer: str, vocab_size: int, fraction: float | None = None, verify: bool = False
) -> Manifest:
    """As `tasks.prepare_task`, of a file; `fraction`: None is 0.05."""
    tokenizers.check(tokenizer, vocab_size)
    task = Named("conversations", "the file's own", (), lambda: examples(Path(source)), fraction=0.05)
    arguments = tasks.arguments(source, tokenizer, vocab_size, task.fraction if fraction is None else fraction)
    arguments["source_sha256"] = sha256(Path(source))
    return finished.once(out, arguments, verify, lambda folder, _: tasks.make(folder, arguments, task, "chat", tokens))


def tokens(examples: list[tasks.Example], encoder: Any, _: Sequence[str]) -> dict[str, np.ndarray]:
    """{'text': all examples' tokens, each with the separator at its end; 'text_ends': where each ends; 'counts'}."""
    start, end = (_mark(encoder, mark) for mark in (START, END))
    parts: list[tuple[np.ndarray, int]] = []
    ends = []
    for example in examples:
        for role, content in MESSAGE.findall(example.fields["text"]):
            head, body, line = encoder.arrays([f"{role}\n", encoder.clean(content), "\n"])
            learnt = int(role == "assistant")
            parts += [(start, 0), (head, 0), (body, learnt), (end, learnt), (line, 0)]
        parts.append((np.array([encoder.separator]), 0))
        ends.append(len(parts))
    sizes = np.cumsum([len(ids) for ids, _ in parts])
    return {
        "text": np.concatenate([ids for ids, _ in parts]).astype(shards.dtype_for(encoder.vocab_size)),
        "text_ends": sizes[np.array(ends) - 1],
        "counts": np.concatenate([np.full(len(ids), learnt, np.uint8) for ids, learnt in parts]),
    }


def check(encoder: Any, folder: str) -> None:
    """UsageError: a model isn't asked in ChatML: its run has learnt from the data in `folder`, or, of a published one
    (""), its vocabulary has no marks."""
    if folder and (read_json(epath.Path(folder) / "manifest.json") or {}).get("task") != "chat":
        raise UsageError(f"--chat: the run has learnt from {folder!r}, which are no conversations; it continues text")
    if not folder and not ends(encoder):
        raise UsageError(f"--chat: the vocabulary has no {END}, so the model knows no ChatML")


def turn(encoder: Any, text: str) -> list[int]:
    """The tokens of a user's turn and of the beginning of the answer."""
    start, end = (_mark(encoder, mark) for mark in (START, END))
    head, body, line, answer = encoder.arrays(["user\n", encoder.clean(text), "\n", "assistant\n"])
    return np.concatenate([start, head, body, end, line, start, answer]).tolist()  # type: ignore[no-any-return]


def ends(encoder: Any) -> tuple[int, ...]:
    """The token that ends an answer; () where the vocabulary has none, and END as text does."""
    found = _mark(encoder, END)
    return tuple(found.tolist()) if len(found) == 1 else ()


def _mark(encoder: Any, mark: str) -> np.ndarray:
    """A mark's tokens: one where the vocabulary has it."""
    own = encoder.tokenizer.token_to_id(mark) if encoder.content else None
    return encoder.arrays([mark])[0] if own is None else np.array([own])
