"""Configs of published models, to compile for a pod, and the smallest usual topology that one fits on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from bigmodel import config, models
from bigmodel.pods import layout
from bigmodel.pods.layout import Topology
from bigmodel.run import budget, counts

FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
CUBES = (
    *("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16", "16x16x16"),
    "16x16x24",  # the largest that one job can have
)
# (parameters below which, tokens a step): Brown et al. 2020, Table 2.1, in powers of two.
TOKENS = ((1e9, 2**19), (5e9, 2**20), (5e10, 2**21), (float("inf"), 2**22))
EXAMPLES = 4096  # a step, where an example has no tokens


def config_of(name: str, overrides: Sequence[tuple[str, Any]] = ()) -> tuple[ConfigDict, str]:
    """(the config of a published model, what it assumes).

    It has its family's defaults, the row's shape, bfloat16 products where the family has them, AdamW in float32, and
    the published batch or that of `TOKENS`. Its data needn't be there.

    Raises:
      UsageError: no such model, or a wrong override.
    """
    family, row = models.published(name)
    cfg = budget.base(family, "text")
    cfg.model.update(row["model"])
    given = {key for key, _ in overrides}
    if "dtype" in cfg.model:
        cfg.model.dtype = "bfloat16"
    cfg.train.tokens_per_param = 20.0
    config.override_all(cfg, overrides)
    for key in cfg.data:
        if key in cfg.model:
            cfg.data[key] = cfg.model[key]
    if "train.batch_size" in given:
        why = "as given"
    else:
        cfg.train.batch_size, why = _batch(cfg, row.get("batch", 0))
    products = cfg.model.get("dtype", "float32")
    return cfg, (
        f"batch {cfg.train.batch_size} ({why}), {products} products, {cfg.optim.name} with parameters in "
        f"{cfg.train.param_dtype} and moments in {cfg.optim.state_dtype}; no data are read"
    )


def _batch(cfg: ConfigDict, tokens: int) -> tuple[int, str]:
    """Examples of a step in multiples of 256 or, fewer than 256, a power of two, which meshes divide."""
    family, model = models.family(cfg.family), ConfigDict(cfg.model)
    family.finalize(model)
    length, why = family.units(model), "published"
    if length == 1:
        return EXAMPLES, "by rule"
    if not tokens:
        total = counts.counts(cfg.family, model)[0]
        tokens, why = next(t for most, t in TOKENS if total < most), "by rule, as GPT-3 of its size"
    found = tokens / length
    examples = 256 * round(found / 256) if found >= 256 else 2 ** max(0, round(math.log2(found)))
    return examples, f"{why}: {tokens:,} tokens"


def usual() -> list[Topology]:
    """Topologies of v5e, v6e and v5p: hosts, slices to a full pod's, several slices. The fewest bytes of HBM first, and
    among equals the fewest chips."""
    found = [Topology(f"{chip}:{shape}") for chip in ("v5e", "v6e") for shape in FLAT]
    found += [Topology(f"v5p:{shape}") for shape in CUBES]
    found += [Topology(f"{chip}:16x16", k) for chip in ("v5e", "v6e") for k in (2, 4, 8, 16)]
    found += [Topology("v5p:16x16x24", k) for k in (2, 4)]
    return sorted(found, key=lambda t: (t.chips * t.chip.hbm, t.chips))


def smallest(frozen: Any, remats: Sequence[str], factor: float = 1.0) -> tuple[list[layout.Layout], Topology]:
    """(layouts whose estimate fits, the fastest first, and the smallest usual topology that has one).

    Where none has: ([], the largest that some mesh fills).
    `factor`: as in `layout.choices`.
    """
    for topology in usual():
        if found := layout.choices(frozen, topology, remats, factor):
            return found, topology
    return [], next((t for t in reversed(usual()) if next(layout.meshes(frozen, t), None)), topology)
