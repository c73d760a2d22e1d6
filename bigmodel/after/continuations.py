"""Prompts as text in, continuations as text out: stop strings, streaming, and files of prompts that survive a kill."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from bigmodel.after.decode import Decoder
from bigmodel.after.generate import Sampling
from bigmodel.errors import UsageError
from bigmodel.files import writing


class Tokenizer(Protocol):
    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


GREEDY = Sampling()


@dataclass(frozen=True)
class Settings:
    """How prompts are continued. beams: 0 samples by `how`; else a search with this many beams."""

    max_new_tokens: int = 64
    sequences: int = 1
    how: Sampling = GREEDY
    beams: int = 0
    length_penalty: float = 0.6
    stop: tuple[str, ...] = ()
    seed: int = 0


Row = dict[str, Any]  # of one continuation: prompt, sequence, text, tokens, log_probs or score, finish


def whole(text: str) -> str:
    """Without the U+FFFD at the end: a character whose bytes aren't all there yet."""
    return text.rstrip("�")


class _Text:
    """One row's continuation as it grows."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str], ends: Sequence[int]):
        self.tokenizer, self.stop, self.ends = tokenizer, stop, set(ends)
        self.tokens: list[int] = []
        self.log_probs: list[float] = []
        self.text, self.finish = "", ""

    def add(self, tokens: np.ndarray, log_probs: np.ndarray) -> bool:
        """Takes further tokens; whether the text has ended."""
        for token, log_p in zip(tokens.tolist(), log_probs.tolist(), strict=True):
            if token < 0 or self.finish:
                break
            self.tokens.append(token)
            self.log_probs.append(log_p)
            if token in self.ends:
                self.finish = "end"
            elif self.stop:
                self._look()
        if self.finish != "stop":
            self.text = self.tokenizer.decode([t for t in self.tokens if t not in self.ends])
        return bool(self.finish)

    def _look(self) -> None:
        text = self.tokenizer.decode(self.tokens)
        places = [at for s in self.stop if (at := text.find(s)) >= 0]
        if places:
            self.text, self.finish = text[: min(places)], "stop"

    def safe(self) -> str:
        """What of the text can't change any more: no part of a character, and no beginning of a stop string."""
        if self.finish:
            return self.text
        text = whole(self.text)
        held = max((k for s in self.stop for k in range(1, len(s)) if text.endswith(s[:k])), default=0)
        return text[: len(text) - held]


Prompt = tuple[int, str, Sequence[int]]  # number, text, tokens


def run(
    decoder: Decoder,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    settings: Settings,
    rows: int = 0,
    chunk: int = 8,
    on_text: Callable[[str], None] = lambda _: None,
) -> list[Row]:
    """The continuations of one batch of prompts.

    Args:
      rows: of the batch, where further empty ones save a compilation.
      chunk: tokens between two looks at what has been written.
      on_text: called with the first row's text as it grows, in whole characters.
    """
    batch, R = decoder.batch([(n, tokens) for n, _, tokens in prompts], rows), settings.sequences
    texts = [_Text(tokenizer, settings.stop, decoder.ends.tolist()) for _ in range(len(prompts) * R)]
    scores: list[float] = []
    if settings.beams:
        length, beams, penalty = settings.max_new_tokens, settings.beams, settings.length_penalty
        tokens_BRL, score_BR = decoder.beam(batch, length, beams, penalty, best=R)
        for text, tokens in zip(texts, tokens_BRL.reshape(-1, length), strict=False):
            text.add(tokens, np.zeros(length))
        scores = score_BR.reshape(-1).tolist()
    else:
        drawn = decoder.sample(batch, settings.max_new_tokens, settings.how, R, settings.seed, chunk)
        _grow(texts, drawn, on_text)
    found = []
    for b, text in enumerate(texts):
        number, prompt, _ = prompts[b // R]
        own = {"score": scores[b]} if scores else {"log_probs": text.log_probs}
        said = text.text if text.finish else whole(text.text)
        row = {"number": number, "sequence": b % R, "prompt": prompt, "text": said, "tokens": text.tokens}
        found.append({**row, **own, "finish": text.finish or "length"})
    return found


def _grow(texts: Sequence[_Text], drawn: Any, on_text: Callable[[str], None]) -> None:
    """Reads chunks of tokens into texts until all have ended, and ends the rows whose text has."""
    shown, done_B = "", None
    with contextlib.suppress(StopIteration):
        while True:
            tokens_Bn, log_p_Bn = drawn.send(done_B)
            done_B = np.zeros(len(tokens_Bn), bool)
            for b, text in enumerate(texts):
                done_B[b] = text.add(tokens_Bn[b], log_p_Bn[b])
            on_text(texts[0].safe()[len(shown) :])
            shown = texts[0].safe()
    on_text(whole(texts[0].text)[len(shown) :])


def batches(prompts: Sequence[Prompt], size: int) -> Iterator[list[Prompt]]:
    """Prompts in batches of like lengths, so that little of a batch is empty."""
    ordered = sorted(prompts, key=lambda p: (len(p[2]), p[0]))
    for first in range(0, len(ordered), size):
        yield ordered[first : first + size]


# ---------------------------------------------------------------------------------------- a file of rows


class Rows:
    """Continuations in a .jsonl that grows by whole batches. What a kill cut is removed, and the same command goes on.

    Args:
      made: what the rows are made with; rows of other settings are refused.

    Raises:
      UsageError: the file is of other settings, no such file, or being written by another process.
    """

    def __init__(self, path: str, made: dict[str, Any]):
        self.path = Path(path)
        self.made = hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()[:12]
        with writing(self.path.parent):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.file = open(self.path, "a+b")  # noqa: SIM115 (held, and with it the lock)
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UsageError(f"{path!r} is being written by another process") from None
        self.file.seek(0)
        content = self.file.read()
        complete = content[: content.rfind(b"\n") + 1]
        self.rows = [self._parsed(line, k) for k, line in enumerate(complete.splitlines())]
        self.file.truncate(len(complete))

    def _parsed(self, line: bytes, k: int) -> Row:
        try:
            row = json.loads(line)
            made = row["made"]
            int(row["number"])
        except (ValueError, KeyError, TypeError) as e:
            raise UsageError(f"{str(self.path)!r}, line {k + 1}: no row of `bigmodel generate` ({e})") from e
        if made != self.made:
            raise UsageError(f"{str(self.path)!r} has rows of other settings, prompts or weights: use another --out")
        return row

    def done(self, sequences: int) -> set[int]:
        """Numbers of the prompts that are there with all of their sequences."""
        numbers = [row["number"] for row in self.rows]
        return {n for n in set(numbers) if numbers.count(n) == sequences}

    def add(self, rows: Sequence[Row]) -> None:
        """One write of whole lines, on the disk when this returns."""
        with writing(self.path):
            self.file.write(self._lines(rows))
            self.file.flush()
            os.fsync(self.file.fileno())
        self.rows += rows

    def finish(self) -> None:
        """Puts the rows in the order of the prompts, atomically."""
        ordered = sorted(self.rows, key=lambda r: (r["number"], r["sequence"]))
        part = self.path.with_name(f"{self.path.name}.part")
        with writing(self.path):
            part.write_bytes(self._lines(ordered))
            os.replace(part, self.path)

    def _lines(self, rows: Sequence[Row]) -> bytes:
        return "".join(json.dumps({**r, "made": self.made}, ensure_ascii=False) + "\n" for r in rows).encode()
