"""What names a run: the hash of its config, such that a run outlives an upgrade.

An option that comes later, with a default that changes nothing, moves no id: it is hashed only where a config says
something else. The options that the first runs had (FIRST) are always hashed, as they were then, so that these runs
are still found. An option's default is thus fixed once runs exist: another value of it is another run.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from etils import epath
from ml_collections import ConfigDict, FrozenConfigDict

from bigmodel import files, models
from bigmodel.config import flatten, from_json, plugin_name
from bigmodel.errors import UsageError
from bigmodel.run import budget

_TRANSFORMER = """
    activation attention_bias base_depth base_num_heads base_width bias depth dropout dtype execution ffn
    head_dim init_std norm norm_eps norm_placement num_heads num_kv_heads parametrization position qk_norm rope_base
    scale_residual score_scale seq_len value_dim vocab_size width
"""
FIRST = {  # section, and of model and data whose: the options that are hashed whatever they say
    "model.bert": _TRANSFORMER
    + "class_weights cls_token mask_rate mask_token num_classes objective pool pooler segments sep_token",
    "model.decoder": _TRANSFORMER + "embed_dim final_norm objective position_offset tied_head z_loss",
    "model.encdec": _TRANSFORMER
    + "decoder_depth objective output_bias scale_embed scale_logits smoothing source_len start_token tied_head",
    "model.mlp": "activation bias class_weights depth dropout init_std norm num_classes num_features objective "
    "smoothing width",
    "model.recurrent": "carry cell depth dropout dtype forget_bias init_std seq_len tied_head vocab_size width",
    "data.images": "epochs examples fingerprint name source",
    "data.tables": "epochs examples fingerprint fold folds name source",
    "data.tasks": "epochs examples fingerprint name seq_len source source_len",
    "data.text": "epochs fingerprint name seq_len source",
    "optim": "b1 b2 branches clip decay decay_exclude eps final_lr l1 l2 lr momentum name schedule state_dtype warmup "
    "weight_decay",
    "train": "batch_size divergence divergence_steps eval_examples flops grad_dtype init_fingerprint init_from "
    "init_only microbatch noise_scale param_dtype patience patience_steps seed steps tokens tokens_per_param",
}


def run_id(frozen: Any) -> str:
    """The id of a run: 12 hex digits of the SHA-256 of its finalised config.

    Not hashed: the `run` section, which says where and how a run executes; the path of the run or file that it starts
    from, whose fingerprint is hashed; and options added after FIRST that have their default.
    """
    tree = hashed(frozen)
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:12]


def hashed(frozen: Any) -> dict[str, Any]:
    """What an id is the hash of."""
    own = frozen.to_dict()
    names = {"model": f"model.{frozen.family}", "data": f"data.{frozen.data.source}"}
    tree: dict[str, Any] = {"family": plugin_name(frozen.family)}
    later = []
    for section in ("model", "data", "optim", "train"):
        first = FIRST.get(names.get(section, section), "").split()
        tree[section] = {key: value for key, value in own[section].items() if key in first}
        later += [(section, key) for key in own[section] if key not in first]
    if "source" not in tree["data"]:  # a user's own
        tree["data"]["source"] = plugin_name(own["data"]["source"])
    if later:
        defaults = budget.base(frozen.family, frozen.data.source)
        for section, key in later:
            value, default = own[section][key], defaults[section][key]
            if key != "source" and value != default and not (section == "model" and _follows(frozen, key, default)):
                tree[section][key] = value
    if own["train"].get("init_fingerprint"):
        tree["train"].pop("init_from", None)
        if "init_parts" in tree["train"]:
            tree["train"]["init_parts"] = [part[1:] for part in own["train"]["init_parts"]]
    return tree


def _follows(frozen: Any, key: str, default: Any) -> bool:
    """Whether an option's value is what `finalize` makes of its default, given the other options."""
    trial = ConfigDict(frozen.model.to_dict())
    trial[key] = default
    try:
        models.family(frozen.family).finalize(trial)
    except UsageError:
        return False
    return bool(trial.to_dict() == frozen.model.to_dict())


def check(folder: epath.Path, frozen: Any) -> None:
    """Makes sure that the run in a folder is of this config.

    Raises:
      UsageError: its config.json is damaged, or says something else: an option's default has changed since, say.
    """
    path = folder / "config.json"
    if not path.exists():
        return
    try:
        there = from_json(files.read_text(path, "config"), str(path))
    except UsageError as e:
        raise UsageError(f"{e}; without that file the run goes on") from e
    budget.fill(there, quiet=True)
    theirs, ours = hashed(FrozenConfigDict(there)), hashed(frozen)
    for name in dict.fromkeys((*flatten(ConfigDict(ours)), *flatten(ConfigDict(theirs)))):
        other, own = (flatten(ConfigDict(tree)).get(name, "its default") for tree in (theirs, ours))
        if own != other:
            raise UsageError(
                f"{str(path)!r} is of another run: {name} is {other!r} there and {own!r} here; choose another --runs"
            )
