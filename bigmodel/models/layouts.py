"""How a published architecture writes a family's model: the keys of its config.json and the names of its tensors.

A family's WEIGHTS are such layouts, by Hugging Face's `model_type` (or torch's class, where there is no config.json).
Each is a table that is read in both directions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bigmodel.errors import UsageError, choose

TABLES = r"(^|/)embed/(?!project_)"  # parameters that have no input side: both worlds keep them as (rows, width)
# Keys of a model section that don't change what trained weights compute.
NEUTRAL = (
    "dropout", "init_std", "scale_residual", "parametrization", "base_width", "base_depth", "base_num_heads", "dtype",
    "execution", "z_loss", "smoothing", "mask_rate", "class_weights", "carry",
)  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """One architecture's way to write a model.

    Attributes:
      names: tensor -> our path; '{}' is the layer. Several paths: they lie side by side in it. "": it is no parameter.
      sums: whether a parameter with several tensors is their sum; else it has one.
      by_head: whether parameters that lie side by side in a tensor do so within each head.
      out_in: whether dense matrices are (out, in), as torch's Linear has them; a language model's head always is.
      prefix: before the names of the body, in a checkpoint that is written.
      bare: beginnings of names that have no prefix.
      rows: tensors that have an axis of one before the parameter's.
      ties: tensor -> path of the parameter that it repeats.
      sizes: key of config.json -> key of the model section, of the same value.
      choices: key of config.json -> {its value: what it means for the model section}.
      only: key of config.json -> the one value of it that can be built here.
      defaults: values of keys that a config.json may leave out.
      always: of the model section.
      extra: written into config.json, and not read.
      own: as `extra`, unless the model came with another; a text is a key of the model section.
    """

    names: Mapping[str, str | tuple[str, ...]]
    sums: bool = False
    by_head: bool = False
    out_in: bool = True
    prefix: str = ""
    bare: tuple[str, ...] = ()
    rows: tuple[str, ...] = ()
    ties: Mapping[str, str] = field(default_factory=dict)
    sizes: Mapping[str, str] = field(default_factory=dict)
    choices: Mapping[str, Mapping[Any, Mapping[str, Any]]] = field(default_factory=dict)
    only: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    always: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    own: Mapping[str, Any] = field(default_factory=dict)

    @property
    def model_type(self) -> str:
        return str(self.extra["model_type"])

    def full(self, name: str, layer: int = 0) -> str:
        """A tensor's name in a checkpoint that is written."""
        return ("" if name.startswith(self.bare) else self.prefix) + name.replace("{}", str(layer))

    def paths(self, name: str) -> tuple[str, ...]:
        """Of a tensor's parameters; () where it is none."""
        found = self.names[name]
        return found if isinstance(found, tuple) else (found,) if found else ()

    def turned(self, path: str) -> bool:
        """Whether the matrix of a path is (out, in) in a checkpoint, and not (in, out) as here."""
        return (self.out_in or path == "head") and not re.search(TABLES, path)

    def sources(self, path: str) -> list[tuple[str, int, int]]:
        """(tensor, which part of it, how many parts) of a parameter."""
        return [(n, p.index(path), len(p)) for n in self.names if path in (p := self.paths(n))]

    def section(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """What a config.json says about the model section.

        Raises:
          UsageError: a key has a value that can't be built here, or is missing.
        """
        found: dict[str, Any] = dict(self.always)
        given = {**self.defaults, **{k: v for k, v in _flat(config).items() if v is not None}}
        for key, value in self.only.items():
            if given.get(key, value) != value:
                raise UsageError(f"{key}={given[key]!r} isn't supported, only {value!r}")
        set_by: dict[str, str] = {}
        for theirs, ours in self.sizes.items():
            if theirs not in given:
                raise UsageError(f"it has no {theirs!r}")
            value = given[theirs]
            if ours in set_by and found[ours] != value:
                raise UsageError(
                    f"{set_by[ours]}={found[ours]!r} and {theirs}={value!r}: only equal ones are supported"
                )
            if not isinstance(value, int | float) or (isinstance(value, int) and abs(value) >= 2**31):
                raise UsageError(f"{theirs}={value!r} is no number of a model")
            found[ours], set_by[ours] = value, theirs
        for key, means in self.choices.items():
            if key in given:
                choose(key, given[key], list(means))
                found |= means[given[key]]
        return found

    def config(self, cfg: Any) -> dict[str, Any]:
        """The config.json of a finalised model section, which this layout can write (see `differs`)."""
        out = {**self.only, **self.extra, **{theirs: cfg[ours] for theirs, ours in self.sizes.items()}}
        for key, means in self.choices.items():
            for value, updates in means.items():
                if all(cfg.get(k) == v for k, v in updates.items()):
                    out[key] = [value] if key == "architectures" else value
                    break
        return out

    def differs(self, family: Any, cfg: Any) -> str:
        """The first key of a finalised model section, with its value, that this layout can't write; "" if none."""
        again = family.get_config()
        try:
            again.update(self.section(self.config(cfg)))
            family.finalize(again)
        except UsageError as e:
            return str(e)
        keys = (k for k in cfg if k not in NEUTRAL and cfg[k] != again[k])
        return next((f"model.{k}={cfg[k]!r}, where it has {again[k]!r}" for k in keys), "")


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json's keys: of a list of architectures the first, the number of labels, rope's parameters beside the
    others."""
    out = dict(config)
    if isinstance(out.get("architectures"), Sequence):
        out["architectures"] = next(iter(out["architectures"]), None)
    if isinstance(labels := out.get("id2label"), Mapping):
        out.setdefault("num_labels", len(labels))
    if out.get("num_labels") == 1 and not out.get("problem_type"):  # as transformers takes it
        out["problem_type"] = "regression"
    for key in ("rope_parameters", "rope_scaling"):  # of both, transformers reads the second
        if isinstance(rope := out.get(key), Mapping):
            # GPT-NeoX has names of its own for these, where it has them outside.
            for name, older in (("rope_theta", "rotary_emb_base"), ("partial_rotary_factor", "rotary_pct")):
                if name in rope:
                    out |= {name: rope[name], older: rope[name]}
            out["rope_type"] = rope.get("rope_type", rope.get("type", "default"))
        elif rope:
            out["rope_type"] = rope
    return out


def activation(*pairs: tuple[str, str]) -> dict[str, dict[str, str]]:
    """`choices` of an activation: (theirs, ours) each."""
    return {theirs: {"activation": ours} for theirs, ours in pairs}


GELUS = (("gelu", "gelu"), ("gelu_new", "gelu_tanh"), ("gelu_pytorch_tanh", "gelu_tanh"), ("relu", "relu"))
