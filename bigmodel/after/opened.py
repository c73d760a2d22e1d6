"""A trained model, whether a run's or published, on a mesh: what `generate` and `convert` start from."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections import FrozenConfigDict

from bigmodel import models, tree
from bigmodel.after import evaluate
from bigmodel.errors import UsageError, note
from bigmodel.models.layouts import Layout
from bigmodel.run import starts, weights


@dataclass(frozen=True)
class Opened:
    """A model and what its text is made of.

    Attributes:
      family, cfg: the family's name and the finalised `model` section.
      params: its parameters, the scales of a parametrisation applied; each as `put` has made it.
      tokenizer: the folder of a run's prepared data, or the path of a tokenizer.json; "" if there is none.
      ends: tokens that end a text, as published; a run's tokenizer knows its own.
      published: the checkpoint's config.json; None of a run.
      said: what was taken of the checkpoint, in words.
    """

    family: str
    cfg: Any
    params: Any
    tokenizer: str
    ends: tuple[int, ...] = ()
    published: dict[str, Any] | None = None
    said: str = ""

    @property
    def module(self) -> ModuleType:
        return models.family(self.family)


Put = Callable[[str, Any], Any]


def layouts() -> dict[str, list[tuple[str, Layout]]]:
    """model_type -> (family, layout) of the architectures that are known by it."""
    found: dict[str, list[tuple[str, Layout]]] = {}
    for name in models.names():
        for layout in models.family(name).WEIGHTS.values():
            found.setdefault(layout.model_type, []).append((name, layout))
    return found


def section(known: list[tuple[str, Layout]], config: dict[str, Any], window: int = 0) -> tuple[str, Layout, Any]:
    """(family, layout, frozen model section) of a config.json, by the first of the layouts that can read it."""
    for k, (family, layout) in enumerate(known):
        try:
            cfg = models.family(family).get_config()
            cfg.update(layout.section(config))
            cfg.seq_len = window or cfg.seq_len
            models.family(family).finalize(cfg)
            return family, layout, FrozenConfigDict(cfg)
        except TypeError as e:  # ml_collections', of a float where an integer belongs
            raise UsageError(f"its config.json can't be built: {e}") from e
        except UsageError:
            if k + 1 == len(known):
                raise
    raise AssertionError("no layout")


def open_run(path: str, data_dir: str = "", putting: Callable[[str, Any], Put] | None = None) -> Opened:
    """The model of a finished run. putting: (family, model section) -> what is called with each path and parameter."""
    if Path(path).is_dir() and not (Path(path) / "config.json").is_file():
        kinds = "a run (config.json, result.json), nor published weights (.safetensors, .gguf)"
        raise UsageError(f"{path!r} holds neither {kinds}")
    run = evaluate.restore(path, data_dir)
    if run.result.get("status") == "diverged":
        note(f"{path!r} diverged: its weights are those of step {run.result['last_good_step']}")
    cfg, params = run.config.model, run.variables["params"]
    put = putting(run.config.family, cfg) if putting else None
    if put:
        params = tree.map_paths(put, params)
    if came := run.result.get("published"):  # converted: its tokenizer came along
        own = Path(path) / "tokenizer.json"
        tokenizer = str(own) if own.is_file() else ""
        return Opened(run.config.family, cfg, params, tokenizer, tuple(came["eos_token_id"]), came)
    text = Path(run.config.run.data_dir) / run.config.data.name if run.config.data.get("name") else ""
    return Opened(run.config.family, cfg, params, str(text))


def open_published(path: str, putting: Callable[[str, Any], Put] | None = None, window: int = 0) -> Opened:
    """Published weights: a folder with a config.json, or a GGUF file. See `open_run`.

    Args:
      window: of the model that is made of them; 0: as published.

    Raises:
      UsageError: they can't be read, or are of no known architecture; a tensor is left over or missing.
    """
    try:
        found = weights.read(path)
        known, config = layouts(), {**_marks(found.tokenizer), **(found.config or {})}
        family, _, frozen = section(known[weights.named(found.config, path, known)], config, window)
        put = putting(family, frozen) if putting else starts.on_device
        params, said = starts.convert(family, frozen, found.tensors, put=put)
    except UsageError as e:
        raise UsageError(str(e) if path in str(e) else f"{path!r}: {e}") from e
    return Opened(family, frozen, params, found.tokenizer, _ends(path, config), config, said)


def _marks(tokenizer: str) -> dict[str, int]:
    """Ids of BERT's marks, which only the tokenizer.json knows. {}: it has none."""
    try:
        added = json.loads(Path(tokenizer).read_text(encoding="utf-8"))["added_tokens"] if tokenizer else []
        ids = {token["content"]: token["id"] for token in added}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as e:
        raise UsageError(f"{tokenizer!r} isn't a tokenizer.json: {type(e).__name__}") from e
    marks = {"[CLS]": "cls_token_id", "[SEP]": "sep_token_id", "[MASK]": "mask_token_id"}
    return {key: ids[mark] for mark, key in marks.items() if mark in ids}


def _ends(path: str, config: dict[str, Any]) -> tuple[int, ...]:
    """The end-of-text tokens of generation_config.json, or else of the config."""
    found = config.get("eos_token_id")
    beside = Path(path) / "generation_config.json"
    if beside.is_file():
        try:
            found = json.loads(beside.read_text()).get("eos_token_id", found)
        except (ValueError, AttributeError, RecursionError) as e:
            raise UsageError(f"{str(beside)!r} can't be read: {e}") from e
    ids = found if isinstance(found, list) else [found]
    return tuple(i for i in ids if isinstance(i, int))
