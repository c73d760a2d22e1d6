"""The batches of a run, placed on its mesh."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

from jax.sharding import Mesh

from bigmodel import data, models
from bigmodel.data import loader
from bigmodel.ops import sharding


class Reader:
    """The training and validation examples of a config, checked against what its family reads.

    Attributes:
      text_bytes: UTF-8 bytes of the text that an evaluation predicts; 0 where its loss isn't a text's likelihood; None
        where the tokenizer doesn't say how many bytes a token is.
    """

    def __init__(self, frozen: Any, mesh: Mesh) -> None:
        source, family = data.source(frozen.data.source), models.family(frozen.family)
        self.train_set, self.validation_set = (
            source.open_split(frozen.data, frozen.run.data_dir, split) for split in ("train", "validation")
        )
        loader.check_examples(self.train_set[0], family.spec(frozen.model))
        self.mesh, self.batch_size, self.seed = mesh, frozen.train.batch_size, frozen.train.seed
        self.limit, self.workers = frozen.train.eval_examples, frozen.run.workers
        augments = source.augment and source.augments(frozen.data)
        self.augment = functools.partial(source.augment, frozen.data) if augments else None
        self.rows = sharding.rows_here(mesh, self.batch_size)
        self.in_order = family.carries(frozen.model)
        self.text_bytes: int | None = 0
        places = family.likelihood(frozen.model)
        if places and hasattr(self.validation_set, "text_bytes"):
            count = min(len(self.validation_set), self.limit or len(self.validation_set))
            self.text_bytes = self.validation_set.text_bytes(count, places.start, places.stop)

    def _place(self, host: Any) -> Any:
        return sharding.place(host, self.mesh, self.batch_size)

    def train(self, start: int, stop: int) -> Iterator[Any]:
        """Batches of the steps start, ..., stop - 1."""
        hosts = loader.train_batches(
            self.train_set,
            self.batch_size,
            self.seed,
            start,
            stop,
            self.rows,
            self.in_order,
            self.workers,
            self.augment,
        )
        return (self._place(host) for host in hosts)

    def validation(self) -> Iterator[Any]:
        """The batches of an evaluation."""
        hosts = loader.eval_batches(self.validation_set, self.batch_size, self.limit, self.rows)
        return (self._place(host) for host in hosts)
