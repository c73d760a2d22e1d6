"""Batches by index: batch i is a function of (seed, i), whatever was read before and by how many workers or processes.

So the state of a reader is an integer, and a process reads only the rows that its devices hold.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import grain
import numpy as np
from absl import flags

from bigmodel.errors import UsageError

Batch = dict[str, np.ndarray]
Augment = Callable[[dict[str, Any], np.random.Generator], dict[str, Any]]


class TrainBatches:
    """Rows [first, last) of batches 0, 1, ..., as a random-access source for grain.

    An epoch is a permutation drawn from (seed, epoch). With `in_order`, row r of all batches together is the r-th part
    of the examples, in order and repeated. A batch of all examples has them in order, too.

    Attributes:
      order: the number of the example in row r of batch i, at place i * batch_size + r.
      examples: the examples in this order, augmented; None without `augment`.
    """

    def __init__(
        self,
        source: Any,
        batch_size: int,
        seed: int,
        steps: int,
        rows: tuple[int, int],
        in_order: bool = False,
        augment: Augment | None = None,
    ):
        self.source, self.batch_size, self.steps, self.rows = source, batch_size, steps, rows
        part = len(source) // batch_size if in_order or batch_size == len(source) else 0
        if part:
            places = grain.MapDataset.range(part * batch_size).seed(seed)
            self.order = places.map(lambda p: p % batch_size * part + p // batch_size).repeat()
        else:
            self.order = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat()
        self.examples = self.order.map(source.__getitem__).random_map(augment) if augment else None

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, i: int) -> Batch:
        first, last = (i * self.batch_size + row for row in self.rows)
        if self.examples is not None:
            batch = _stacked([self.examples[place] for place in range(first, last)])
        else:
            batch = _read(self.source, [int(self.order[place]) for place in range(first, last)])
        return {**batch, "weight": np.ones(last - first, np.float32)}


def train_batches(
    source: Any,
    batch_size: int,
    seed: int,
    start: int,
    stop: int,
    rows: tuple[int, int],
    in_order: bool = False,
    workers: int = 0,
    augment: Augment | None = None,
) -> Iterator[Batch]:
    """Batches start..stop-1, read ahead: the same ones for any number of workers.

    Args:
      workers: processes that read examples; 0: a thread of this one.
      augment: changes a training example by a generator that is a function of (seed, i, row).
    """
    batches = grain.MapDataset.source(TrainBatches(source, batch_size, seed, stop, rows, in_order, augment))
    ahead = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1 if workers else 4)
    dataset = batches[start:stop].to_iter_dataset(ahead)
    if workers:
        flags.FLAGS["grain_enable_multiprocess_worker_profiling"].present = True  # read though no flags were parsed
        options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
        dataset = dataset.mp_prefetch(options, worker_init_fn=_begin_worker)
    return iter(dataset)


def _begin_worker(index: int, count: int) -> None:
    """A worker leaves signals to the loop, which saves on them, and ends with it, even if that is killed."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)

    def follow() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(0)

    threading.Thread(target=follow, daemon=True).start()


def eval_batches(source: Any, batch_size: int, limit: int, rows: tuple[int, int]) -> Iterator[Batch]:
    """The first `limit` examples (0: all) in order; the last batch is padded with weight 0.

    So the evaluated set doesn't depend on the batch size. Nor does what is drawn for an example by its number, `row`.
    """
    n = min(len(source), limit or len(source))
    first, last = rows
    for begin in range(0, n, batch_size):
        index = np.arange(begin + first, begin + last)
        kept = np.minimum(index, n - 1)
        batch = _read(source, kept.tolist())
        yield {**batch, "weight": (index < n).astype(np.float32), "row": kept.astype(np.int32)}


def _read(source: Any, indices: list[int]) -> Batch:
    """A source that holds its examples in arrays takes them at once."""
    return source.take(indices) if hasattr(source, "take") else _stacked([source[k] for k in indices])


def _stacked(examples: list[dict[str, Any]]) -> Batch:
    return {key: np.stack([example[key] for example in examples]) for key in examples[0]}


def check_examples(example: dict[str, Any], spec: dict[str, Any]) -> None:
    """Raises UsageError unless the data delivers what the family reads."""
    for key, (shape, dtype) in spec.items():
        if key not in example:
            raise UsageError(f"the data has no {key!r}, only {', '.join(example)}")
        got = example[key]
        if tuple(got.shape) != tuple(shape) or str(got.dtype) != dtype:
            raise UsageError(f"data {key!r} is {got.dtype}{list(got.shape)}; the model reads {dtype}{list(shape)}")
