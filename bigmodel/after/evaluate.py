"""Evaluation of a finished run on held-out data: loss by position, classes, translations.

B batch, L length, C classes, V vocab.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from bigmodel import config, data, models
from bigmodel.after import generate
from bigmodel.data import loader
from bigmodel.errors import UsageError
from bigmodel.ops import sharding
from bigmodel.run import adapters, budget, checkpoint, counts, program, record

BATCH = 64  # examples at once


@dataclass(frozen=True)
class Run:
    """A finished run; `variables` are its weights, adapters merged, with the scales of its parametrisation applied."""

    config: Any
    family: ModuleType
    model: Any
    variables: Any
    result: dict[str, Any]

    def examples(self, split: str) -> Any:
        return data.source(self.config.data.source).open_split(self.config.data, self.config.run.data_dir, split)


def restore(folder: str, data_dir: str = "") -> Run:
    """The run in `folder`, on one device. UsageError: it is not finished, or its data or checkpoint can't be read."""
    home = epath.Path(folder)
    result = record.read_result(home)
    if result is None:
        raise UsageError(f"no finished run at {folder!r} (no result.json)")
    unfrozen = config.load(home / "config.json", [("run.data_dir", data_dir)] if data_dir else [])
    # A converted model may have no data of its own.
    frozen = budget.finalize(unfrozen, reads=result["status"] != "converted" or bool(unfrozen.data.get("name")))
    mesh = sharding.make_mesh(sharding.ALONE, jax.devices()[:1])
    compiled = program.build(program.static_part(frozen), mesh)
    wanted = [{k: t[k] for k in ("params", "model_state")} for t in (compiled.shapes, compiled.shardings)]
    state = checkpoint.restore_part(str(home / "checkpoints"), *wanted)
    family = models.family(frozen.family)
    scales = counts.scales(frozen.family, frozen.model, frozen.optim.name)
    params = adapters.merge(frozen.train, family.RULES, state["params"])
    variables = {"params": scales.effective(params), **state["model_state"]}
    return Run(frozen, family, family.Model(frozen.model), variables, result)


def _outputs(
    run: Run, fn: Any, split: str, size: int, limit: int
) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
    """Batches of the first `limit` examples (0: of all), and `fn(variables, batch)` of each, without padding rows."""
    fn = jax.jit(fn)
    for batch in loader.eval_batches(run.examples(split), size, limit, (0, size)):
        n = int(batch.pop("weight").sum())
        yield {k: x[:n] for k, x in batch.items()}, np.asarray(fn(run.variables, batch))[:n]


def by_position(run: Run, split: str = "validation", limit: int = 0) -> np.ndarray:
    """Mean loss (nats) of the token at each position of a window, given the tokens before it in the window: L.

    UsageError: the run's family doesn't predict running text token by token.
    """
    cfg = run.config.model
    if not run.family.likelihood(cfg) or "tokens" not in run.family.spec(cfg) or run.config.family == "encdec":
        raise UsageError(f"a run of family {run.config.family!r} has no loss by position: it predicts no text in order")
    if run.family.carries(cfg):
        raise UsageError("a run with model.carry has read text before its window: there is no loss by position")

    def nats(variables: Any, batch: Any) -> jax.Array:
        logits_BLV = run.model.apply(variables, *run.family.inputs(cfg, batch))
        log_p_BLV = jax.nn.log_softmax(logits_BLV.astype(jnp.float32))
        return -jnp.take_along_axis(log_p_BLV, batch["tokens"][:, 1:, None], axis=-1)[..., 0]

    total_L, count = np.zeros(cfg.seq_len), 0
    for _, nats_BL in _outputs(run, nats, split, 16, limit):
        total_L += nats_BL.astype(np.float64).sum(axis=0)
        count += len(nats_BL)
    return total_L / count


def classes(run: Run, split: str = "test", limit: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(predicted, true) classes of the split's examples."""
    cfg = run.config.model

    def predict(variables: Any, batch: Any) -> jax.Array:
        out = run.model.apply(variables, *run.family.inputs(cfg, batch))
        return jnp.argmax(getattr(out, "logits", out), axis=-1)

    found = [(predicted_B, batch["label"]) for batch, predicted_B in _outputs(run, predict, split, BATCH, limit)]
    predicted, true = zip(*found, strict=True)
    return np.concatenate(predicted), np.concatenate(true)


def labels(run: Run) -> list[str]:
    """The names of the classes: from the data's manifest, or their numbers if the source has no names."""
    if run.config.data.source == "tables":
        return [str(k) for k in range(run.config.model.num_classes)]
    return data.manifest(run.config.data, run.config.run.data_dir, "data")["labels"]


def translate(
    run: Run, split: str = "test", limit: int = 0, beams: int = 4, penalty: float = 0.6
) -> Iterator[np.ndarray]:
    """The translation of each example, as tokens without the end: by beam search, or greedily with one beam."""
    cfg, end = run.config.model, run.examples(split).end

    def best(variables: Any, batch: Any) -> jax.Array:
        def step(tokens: jax.Array, cache: Any, *source: Any) -> Any:
            stacked = {**cache, "layers": generate.joined(cache["layers"])}
            logits, cache = run.model.apply(variables, tokens, stacked, *source, method="step")
            return logits, generate.cut_cache(cache)

        source_BS = batch["source"]
        keys_BS = jnp.arange(source_BS.shape[1]) < batch["source_length"][:, None]
        first = jnp.full((len(source_BS), 1), run.family.start(cfg), jnp.int32)
        cache = generate.cut_cache(run.family.init_cache(cfg, len(source_BS), cfg.seq_len + 1))
        logits_BLV, cache = step(first, cache, source_BS, keys_BS)
        if beams == 1:
            return generate.greedy(step, logits_BLV[:, -1], cache, cfg.seq_len, end)[0]
        return generate.beam(step, logits_BLV[:, -1], cache, cfg.seq_len, end, beams, penalty)[0][:, 0]

    for _, tokens_BL in _outputs(run, best, split, BATCH, limit):
        for row in tokens_BL:
            stop = np.flatnonzero(row == end)
            yield row[: stop[0]] if len(stop) else row


def texts(run: Run, split: str, limit: int = 0) -> list[dict[str, Any]]:
    """The examples that `translate` translates, in the same order, as text."""
    path = epath.Path(run.config.run.data_dir) / run.config.data.name / f"{split}.jsonl"
    if not path.exists():
        raise UsageError(f"no examples as text at {str(path)!r}; run `bigmodel prepare` again")
    numbers = run.examples(split).kept  # also checks the file's digest
    rows = [json.loads(line) for line in path.read_text().removesuffix("\n").split("\n")]
    kept = [rows[k] for k in numbers]
    return kept[:limit] if limit else kept
