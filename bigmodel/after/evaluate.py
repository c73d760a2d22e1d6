"""Evaluation of a finished run on held-out data: text, classes, translations, and whatever else its family scores.

B batch, L length, C classes, V vocab, N examples.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from etils import epath
from ml_collections import FrozenConfigDict

from bigmodel import config, data, models
from bigmodel.after import generate
from bigmodel.data import loader
from bigmodel.errors import UsageError
from bigmodel.ops import sharding
from bigmodel.ops.cross_entropy import negative_log_likelihood
from bigmodel.run import adapters, budget, checkpoint, counts, program, record

BATCH = 64  # examples at once


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
      variables: its weights, adapters merged, with the scales of its parametrisation applied.
      compiled: its program, which takes the weights as they are `stored`.
    """

    config: Any
    family: ModuleType
    model: Any
    variables: Any
    result: dict[str, Any]
    compiled: Any = None
    stored: Any = None

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
    frozen = budget.finalize(unfrozen, reads=result["status"] != record.CONVERTED or bool(unfrozen.data.get("name")))
    mesh = sharding.make_mesh(sharding.ALONE, jax.devices()[:1])
    compiled = program.build(program.static_part(frozen), mesh)
    wanted = [{k: t[k] for k in ("params", "model_state")} for t in (compiled.shapes, compiled.shardings)]
    state = checkpoint.restore_part(str(home / "checkpoints"), *wanted)
    family = models.family(frozen.family)
    scales = counts.scales(frozen.family, frozen.model, frozen.optim.name)
    stored = {"params": state["params"], **state["model_state"]}
    variables = {**stored, "params": scales.effective(adapters.merge(frozen.train, family.RULES, state["params"]))}
    return Run(frozen, family, family.Model(frozen.model), variables, result, compiled, stored)


def on(run: Run, name: str) -> Run:
    """The run with other prepared data. UsageError: they aren't there, or were made with another tokenizer."""
    root = run.config.run.data_dir
    changed = run.config.as_configdict()
    changed.data.update(name=name, fingerprint="")
    data.finalize(changed.data, root)

    def tokenizer(section: Any) -> tuple[str, str]:
        found = data.manifest(section, root, "data")
        made = found["tokenizer"]
        return f"{made['vocab_size']:,} entries", found.get("files", {}).get("tokenizer.json", made["kind"])[:12]

    own, other = tokenizer(run.config.data), tokenizer(changed.data)
    if own != other:
        known = "bytes" if own[1] == "bytes" else data.folder(run.config.data, root) / "tokenizer.json"
        what = f"has another tokenizer ({', '.join(other)}) than the run ({', '.join(own)})"
        raise UsageError(f"{name!r} {what}; prepare it with --tokenizer={known}")
    return dataclasses.replace(run, config=FrozenConfigDict(changed))


def own_scores(run: Run, split: str, limit: int = 0) -> dict[str, float]:
    """The metrics of the family's loss, and its own scores where it has some, in batches of the run's size."""
    size = run.config.train.batch_size
    batches = loader.eval_batches(run.examples(split), size, limit, (0, size))
    return program.scores(run.compiled, program.totals(run.compiled, run.stored, batches))


def outputs(
    run: Run, fn: Any, examples: Any, size: int, limit: int
) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
    """Batches of the first `limit` examples (0: of all), and `fn(variables, batch)` of each, without padding rows."""
    fn = jax.jit(fn)
    for batch in loader.eval_batches(examples, size, limit, (0, size)):
        n = int(batch.pop("weight").sum())
        yield {k: x[:n] for k, x in batch.items()}, np.asarray(fn(run.variables, batch))[:n]


def batch_size(cfg: Any, length: int) -> int:
    """Examples at once, at most 16, whose logits of `length` places take 128 MB."""
    return max(1, min(16, 2**25 // (length * cfg.get("vocab_size", 1))))


def places(run: Run) -> range:
    """Places of a window's tokens that the run predicts, each given all those before it; an empty range: it doesn't.

    A decoder of the objective `prefix` reads here a prefix of one token, which is the causal mask.
    """
    cfg = run.config.model
    if run.config.family == "decoder" and cfg.objective == "prefix":
        return range(1, cfg.seq_len + 1)
    return run.family.likelihood(cfg) if "tokens" in run.family.spec(cfg) else range(0)


def by_position(run: Run, split: str = "validation", limit: int = 0) -> np.ndarray:
    """Mean loss (nats) of the token at each of the predicted `places` of a window, given those before it there: L.

    UsageError: the run's family doesn't predict running text token by token.
    """
    cfg, predicted = run.config.model, places(run)
    if not predicted:
        raise UsageError(f"a run of family {run.config.family!r} has no loss by position: it predicts no text in order")

    def nats(variables: Any, batch: Any) -> jax.Array:
        logits_BLV = run.model.apply(variables, *run.family.inputs(cfg, batch))
        return negative_log_likelihood(logits_BLV, batch["tokens"][:, predicted.start : predicted.stop])[0]

    total_L, count = np.zeros(len(predicted)), 0
    for _, nats_BL in outputs(run, nats, run.examples(split), batch_size(cfg, len(predicted)), limit):
        total_L += nats_BL.astype(np.float64).sum(axis=0)
        count += len(nats_BL)
    return total_L / count


def text(run: Run, split: str = "validation", limit: int = 0) -> dict[str, Any]:
    """Loss in nats per token, perplexity (its exponential), bits per byte of UTF-8 text, and `by_position`.

    `bits_per_byte` is None where the bytes of what was predicted aren't known: the tokenizer doesn't say those of a
    token, or the data source has no `text_bytes`.
    """
    nats_L, examples, predicted = by_position(run, split, limit), run.examples(split), places(run)
    count = min(len(examples), limit or len(examples))
    loss, tokens = float(nats_L.mean()), count * len(predicted)
    if not loss < math.log(np.finfo(np.float64).max):
        raise UsageError(f"run {run.result['run_id']} has a loss of {loss} nats: its weights are of no use")
    size = examples.text_bytes(count, predicted.start, predicted.stop) if hasattr(examples, "text_bytes") else None
    bits = loss * tokens / math.log(2) / size if size else None
    found = {"loss": loss, "perplexity": math.exp(loss), "bits_per_byte": bits, "tokens": tokens, "bytes": size}
    return {**found, "first_position": predicted.start, "by_position": nats_L.tolist()}


def log_probabilities(run: Run, split: str, limit: int = 0, examples: Any = None) -> tuple[np.ndarray, np.ndarray]:
    """(log-probabilities NC in float64, true classes N) of the split's examples, or of these in their stead."""
    from scipy.special import log_softmax

    cfg = run.config.model

    def logits(variables: Any, batch: Any) -> jax.Array:
        out = run.model.apply(variables, *run.family.inputs(cfg, batch))
        return getattr(out, "logits", out).astype(jnp.float32)

    examples = run.examples(split) if examples is None else examples
    found = [(logits_BC, batch["label"]) for batch, logits_BC in outputs(run, logits, examples, BATCH, limit)]
    logits_NC, labels_N = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return log_softmax(logits_NC.astype(np.float64), axis=1), labels_N


def labels(run: Run, count: int) -> list[str]:
    """The names of so many classes: from the data's manifest, or their numbers if the source has no names."""
    if run.config.data.source not in ("tasks", "images"):
        return [str(k) for k in range(count)]
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

    for _, tokens_BL in outputs(run, best, run.examples(split), BATCH, limit):
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


def columns(run: Run, split: str, limit: int = 0) -> dict[str, Any]:
    """What the split's examples can be sliced by: column -> a value of each.

    Of a task the columns of its .jsonl, and the `length` of each text in tokens (of pairs: `source_length`,
    `target_length`) before it was cut; else the `label`, and of a table its features.
    """
    examples = run.examples(split)
    if run.config.data.source == "tasks":
        frame = pd.DataFrame(texts(run, split, limit))
        for name in examples.lengths:
            sizes = np.diff(examples.arrays[f"{name}_ends"], prepend=0)[examples.kept][: len(frame)]
            frame["length" if name == "text" else f"{name}_length"] = sizes
        return {str(name): frame[name] for name in frame}
    read = [examples[k] for k in range(min(len(examples), limit or len(examples)))]
    classes = [int(example["label"]) for example in read]
    names = labels(run, max(classes) + 1)
    found: dict[str, Any] = {"label": [names[k] for k in classes]}
    if run.config.data.source == "tables":
        features = np.stack([example["features"] for example in read])
        found |= {f"feature{k}": features[:, k] for k in range(features.shape[1])}
    return found
