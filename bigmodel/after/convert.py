"""A model from our form into the one of Hugging Face's libraries, and back: config, tensors, tokenizer.

Every tensor is accounted for in both directions. What a parametrisation does outside of the weights is folded into
them, so that the written model is an ordinary one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from bigmodel import config as configs
from bigmodel import models, tree
from bigmodel.after.opened import Opened
from bigmodel.errors import UsageError, note
from bigmodel.files import writing
from bigmodel.models import layers
from bigmodel.models.layouts import TABLES, Layout
from bigmodel.run import budget, checkpoint, counts, record, weights

SHARD = 5 * 10**9  # bytes of a file
BESIDE = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "vocab.json",
    "merges.txt", "vocab.txt", "generation_config.json",
)  # fmt: skip
HEAD_NORM = {"decoder": "^norm/", "encdec": "^decoder_norm/", "bert": "^transform/norm/"}  # what a tied head reads
DTYPES = ("float32", "float16", "bfloat16")


# ------------------------------------------------------------------------------------- ours -> theirs


def folded(family: str, cfg: Any, params: Any) -> tuple[ConfigDict, Any]:
    """(model section, parameters) of the same function without a parametrisation's factors, and with all rows of its
    tables in the vocabulary.

    Raises:
      UsageError: a factor can't be written into the weights.
    """
    own = ConfigDict(cfg.to_dict())
    module = models.family(family)
    if family == "recurrent":
        own.forget_bias = 0.0
        bias = params["blocks"]["bias"]
        if cfg.cell == "lstm":
            bias = bias.at[:, 1].add(cfg.forget_bias)
        return own, {**params, "blocks": {**params["blocks"], "bias": bias}}
    if family not in HEAD_NORM:
        return own, params
    ordinary = cfg.score_scale or cfg.head_dim**-0.5
    query = r"attention/query_norm/" if cfg.qk_norm else r"attention/query(_bias)?$"
    factors = [(query, layers.score_scale(cfg) / ordinary)]
    factors.append((r"attention/out(_bias)?$|mlp/down(_bias)?$", layers.branch_scale(cfg)))
    if cfg.get("tied_head", True) and (family != "bert" or "transform" in params):
        factors.append((HEAD_NORM[family], layers.tied_scale(cfg)))
    paths = tree.paths(params)
    for pattern, factor in factors:
        if factor != 1 and not any(re.search(pattern, path) for path in paths):
            raise UsageError(f"model.parametrization={cfg.parametrization!r} scales what no weight of this model can")

    def one(path: str, x: Any) -> Any:
        factor = np.prod([f for pattern, f in factors if re.search(pattern, path)])
        return x if factor == 1 else x * factor

    marks = {f"{name}_token": module.mark(cfg, name) for name in module.MARKS} if family == "bert" else {}
    first = {"start_token": module.start(cfg)} if module.start else {}
    own.update(dict(vocab_size=module.rows(cfg), **marks, **first, parametrization="standard"))
    own.update(dict(base_width=cfg.width, base_depth=cfg.depth, base_num_heads=cfg.num_heads))
    return own, tree.map_paths(one, params)


def layout_of(family: str, cfg: Any) -> Layout:
    """The layout that can write a model section. UsageError: none can, and why."""
    module, why = models.family(family), []
    for name, layout in module.WEIGHTS.items():
        reason = layout.differs(module, cfg)
        if not reason:
            return layout
        why.append(f"{name}: {reason}")
    raise UsageError(f"no published layout holds this model ({'; '.join(why) or 'its family has none'})")


def tensors(layout: Layout, family: str, cfg: Any, params: Any) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors of a checkpoint, by their names, in float32."""
    rules, leaves = models.family(family).RULES, dict(zip(tree.paths(params), jax.tree.leaves(params), strict=True))
    given: set[str] = set()
    for name in layout.names:
        paths = layout.paths(name)
        if not paths or paths[0] not in leaves or (paths[0] in given and not layout.sums):
            continue
        stacked = "{}" in name
        for layer in range(len(leaves[paths[0]]) if stacked else 1):
            own = [np.asarray(leaves[path][layer] if stacked else leaves[path], np.float32) for path in paths]
            # Parameters side by side are of the same axes, the last two a head's.
            x = own[0] if len(own) == 1 else np.stack(own, axis=-2 if layout.by_head else -3)
            names = tree.match(rules, paths[0])[stacked:]
            names = names if len(own) == 1 else (*names[:-2], "heads", *names[-2:])
            whole = _as_theirs(layout, paths[0], x, names)
            # Of several tensors that add up, one has it all.
            whole = np.zeros_like(whole) if paths[0] in given else whole
            yield layout.full(name, layer), whole[None] if name in layout.rows else whole
        given |= set(paths)
    if lost := leaves.keys() - given:
        raise UsageError(f"no tensor of the layout {layout.model_type!r} holds {min(lost)!r}")


def _as_theirs(layout: Layout, path: str, x: np.ndarray, names: Any) -> np.ndarray:
    if re.search(TABLES, path):
        return x
    if re.search(tree.NOT_MATRICES, path):
        return x.reshape(-1)
    inside, _ = tree.sides(names)
    matrix = x.reshape(int(np.prod([x.shape[i] for i in inside])), -1)
    return np.ascontiguousarray(matrix.T) if layout.turned(path) else matrix


def write_folder(opened: Opened, out: str, dtype: str = "") -> str:
    """Writes a model as a Hugging Face folder (config.json, safetensors); returns a line that says what it is.

    Args:
      dtype: of the tensors; "": as a converted model came, else float32.
    """
    import ml_dtypes  # noqa: F401 (so that numpy knows bfloat16)
    from safetensors.numpy import save_file

    cfg, params = folded(opened.family, opened.cfg, opened.params)
    layout = layout_of(opened.family, cfg)
    came = opened.published or {}
    asked = dtype or came.get("dtype") or came.get("torch_dtype") or "float32"
    if asked not in DTYPES:
        note(f"the published dtype {asked!r} isn't written; float32 is")
    kind = np.dtype(asked if asked in DTYPES else "float32")
    named = {name: x.astype(kind) for name, x in tensors(layout, opened.family, cfg, params)}
    home = Path(out)
    with writing(out):
        home.mkdir(parents=True)
        shards = _shards(named)
        names = [f"model-{k + 1:05}-of-{len(shards):05}.safetensors" for k in range(len(shards))]
        names = ["model.safetensors"] if len(shards) == 1 else names
        for name, shard in zip(names, shards, strict=True):
            save_file({key: named[key] for key in shard}, home / name, metadata={"format": "pt"})
        if len(shards) > 1:
            where = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
            total = sum(x.nbytes for x in named.values())
            record.write_text(home / weights.INDEX, _json({"metadata": {"total_size": total}, "weight_map": where}))
        ours = {key: cfg[value] if isinstance(value, str) else value for key, value in layout.own.items()}
        own = {**ours, **came, **layout.config(cfg), "dtype": kind.name}
        if opened.ends:
            own["eos_token_id"] = opened.ends[0] if len(opened.ends) == 1 else list(opened.ends)
        record.write_text(home / "config.json", _json(own))
    return f"{len(named)} tensors of {layout.model_type}, {kind.name}"


def _shards(named: dict[str, np.ndarray]) -> list[list[str]]:
    """Names in files of at most SHARD bytes."""
    out: list[list[str]] = [[]]
    size = 0
    for name, x in named.items():
        if out[-1] and size + x.nbytes > SHARD:
            out.append([])
            size = 0
        out[-1].append(name)
        size += x.nbytes
    return out


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


# ------------------------------------------------------------------------------------- theirs -> ours


def write_run(opened: Opened, source: str, out: str, data: str = "", data_dir: str = "data") -> str:
    """Writes published weights as the folder of a run that ended before its first step; returns its id.

    Args:
      source: where the weights are.
      data: name of prepared data, which the run can then be evaluated on; "": none.
    """
    kind = "tasks" if opened.cfg.get("objective") in ("classify", "regress", "tag", "translate") else "text"
    whole = budget.base(opened.family, kind)
    configs.override_all(whole, [("data.name", data), ("run.data_dir", data_dir), ("train.steps", 1)])
    whole.model = ConfigDict(opened.cfg.to_dict())
    for key in ("seq_len", "source_len"):
        if key in whole.data and key in whole.model:
            whole.data[key] = whole.model[key]
    frozen = budget.finalize(whole, reads=bool(data))
    shapes = counts.shapes(opened.family, frozen.model)
    params = jax.tree.map(lambda x, s: jnp.asarray(x, s.dtype), opened.params, shapes)
    home = epath.Path(out)
    run_id = weights.identity(source)[:12]
    total, rest, kaplan, _ = counts.counts(opened.family, frozen.model)
    result = {
        "run_id": run_id, "status": record.CONVERTED, "source": source, "family": opened.family, "loss": None,
        "steps": 0,
        "width": frozen.model.get("width"), "depth": frozen.model.get("depth"), "seed": 0, "params": total,
        "params_nonembedding": rest, "params_kaplan": kaplan, "tokens": 0, "flops": 0.0,
        "wall_seconds": 0.0,
        "published": {**(opened.published or {}), "eos_token_id": list(opened.ends)}, "date": record.now(),
    }  # fmt: skip
    with writing(out):
        home.mkdir(parents=True)
        record.write_text(home / "config.json", configs.to_json(ConfigDict(frozen.to_dict())))
        saves = checkpoint.Checkpoints(str(home / "checkpoints"))
        saves.save(0, {"params": params, "model_state": {}}, {"step": 0, "run_id": run_id})
        saves.wait()
        saves.close()
        record.write_text(home / "start.txt", f"{source}: {opened.said}\n")
        record.write_record(home / "result.json", result)
    return run_id


def copy_tokenizer(source: str, out: str) -> list[str]:
    """Copies the files of a tokenizer, and of generation's defaults, between folders; their names."""
    home = Path(source) if Path(source).is_dir() else Path(source).parent
    found = [name for name in BESIDE if (home / name).is_file()]
    with writing(out):
        for name in found:
            (Path(out) / name).write_bytes((home / name).read_bytes())
    return found
