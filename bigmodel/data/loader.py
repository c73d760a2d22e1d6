"""Batches by index: batch i is a function of (seed, i), whatever was read before and by how many processes.

So a resume is an integer, and a process reads only the rows that its devices hold.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grain
import numpy as np

from bigmodel.errors import UsageError

Batch = dict[str, np.ndarray]


class TrainBatches:
    """Rows [first, last) of batches 0, 1, ...: an epoch is a permutation drawn from (seed, epoch).

    In order, row r of all batches together is the r-th part of the examples, one after another and again. So is a batch
    of all examples, whose order is of no matter.
    """

    def __init__(
        self, examples: Any, batch_size: int, seed: int, steps: int, rows: tuple[int, int], in_order: bool = False
    ):
        self.examples, self.batch_size, self.steps, self.rows = examples, batch_size, steps, rows
        self.order = grain.MapDataset.range(len(examples)).seed(seed).shuffle().repeat()
        self.part = len(examples) // batch_size if in_order or batch_size == len(examples) else 0

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, i: int) -> Batch:
        first, last = self.rows
        batch = _stacked(self.examples, [self.index(i, r) for r in range(first, last)])
        return {**batch, "weight": np.ones(last - first, np.float32)}

    def index(self, i: int, r: int) -> int:
        """Which example is row r of batch i."""
        return r * self.part + i % self.part if self.part else int(self.order[i * self.batch_size + r])


def train_batches(
    examples: Any, batch_size: int, seed: int, start: int, stop: int, rows: tuple[int, int], in_order: bool = False
) -> Iterator[Batch]:
    """Batches start..stop-1, read ahead by a thread."""
    batches = TrainBatches(examples, batch_size, seed, stop, rows, in_order)
    ahead = grain.MapDataset.source(batches)[start:stop].to_iter_dataset(
        grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
    )
    return iter(ahead)


def eval_batches(examples: Any, batch_size: int, limit: int, rows: tuple[int, int]) -> Iterator[Batch]:
    """The first `limit` examples (0: all) in order, whole: the last batch is padded with weight 0.

    So the evaluated set doesn't depend on the batch size; nor does what is drawn for an example, by `row`, its number.
    """
    n = min(len(examples), limit or len(examples))
    first, last = rows
    for begin in range(0, n, batch_size):
        index = np.arange(begin + first, begin + last)
        kept = np.minimum(index, n - 1)
        batch = _stacked(examples, kept.tolist())
        yield {**batch, "weight": (index < n).astype(np.float32), "row": kept.astype(np.int32)}


def _stacked(examples: Any, indices: list[int]) -> Batch:
    """A source that holds its examples in arrays takes them at once."""
    if hasattr(examples, "take"):
        return examples.take(indices)
    picked = [examples[k] for k in indices]
    return {k: np.stack([e[k] for e in picked]) for k in picked[0]}


def check_examples(example: dict[str, Any], spec: dict[str, Any]) -> None:
    """The data delivers what the family reads."""
    for key, (shape, dtype) in spec.items():
        if key not in example:
            raise UsageError(f"the data has no {key!r}, only {', '.join(example)}")
        got = example[key]
        if tuple(got.shape) != tuple(shape) or str(got.dtype) != dtype:
            raise UsageError(f"data {key!r} is {got.dtype}{list(got.shape)}; the model reads {dtype}{list(shape)}")
