"""Coordinate check: do activations and their changes keep their size as width or depth grows?

A parametrisation keeps what training does to each layer independent of the shape; whether code really does so shows in
the first steps (Yang et al. 2022, arXiv:2203.03466, appendix D.1): the root mean square of each module's output, and of
its change since the start, against width or depth on logarithmic axes. Hyper-parameter transfer needs slopes of 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from bigmodel import config, data, models, tree
from bigmodel.data import loader
from bigmodel.errors import UsageError, choose
from bigmodel.ops import sharding
from bigmodel.run import budget, parametrize, program

LIMIT = 0.1  # the largest |slope| that passes
Row = dict[str, Any]


def measure(
    start: ConfigDict,
    axis: str,
    sizes: Sequence[int],
    parametrizations: Sequence[str],
    steps: int = 8,
    seeds: int = 2,
    say: Callable[[str], None] = print,
) -> list[Row]:
    """Rows of module, size, step, rms and change, for every parametrisation, size and seed.

    Args:
      start: an experiment's config; its rate, batch and the other dimension stay as they are.
      axis: "width" or "depth"; sizes: its values. The first is the base of the parametrisation.
      steps: optimizer steps at the full rate; a row for 0 too.

    Raises:
      UsageError: a family without parametrisations, fewer than two sizes, or one that can't be built.
    """
    choose("coordcheck", axis, ["width", "depth"])
    if len(set(sizes)) < 2:
        raise UsageError(f"coordcheck: give at least two {axis}s")
    if not (1 <= steps <= 10_000 and 1 <= seeds <= 1000):
        raise UsageError("coordcheck: --steps must be 1 to 10,000, and --seeds 1 to 1,000")
    if "parametrization" not in start.model:
        raise UsageError(f"coordcheck: family {start.family!r} has no parametrizations")
    frozen = []
    for name in parametrizations:
        choose("parametrization", name, parametrize.NAMES)
        frozen += [(name, size, shaped(start, name, axis, size, min(sizes))) for size in sizes]
    rows: list[Row] = []
    for name, size, cfg in frozen:
        for seed in range(seeds):
            with program.within_memory(f"{name} {axis} {size}"):
                rows += [
                    {"parametrization": name, "axis": axis, "size": size, "seed": seed, **row}
                    for row in _first_steps(cfg, steps, seed)
                ]
        say(f"{name} {axis} {size}")
    return rows


def shaped(start: ConfigDict, name: str, axis: str, size: int, base: int) -> Any:
    """The frozen config of one width or depth, under a parametrisation whose base is the least of them."""
    rung = models.family(start.family).rung
    width, depth = start.model.width, start.model.depth
    own = rung(size, depth) if axis == "width" else rung(width, size)
    small = rung(base, depth) if axis == "width" else rung(width, base)
    unfrozen = start.copy_and_resolve_references()
    config.override_all(
        unfrozen,
        [
            *own.items(),
            ("model.parametrization", name),
            ("model.base_width", small["model.width"]),
            ("model.base_depth", small["model.depth"]),
            ("model.base_num_heads", small["model.num_heads"]),
        ],
    )
    return budget.finalize(unfrozen)


def _first_steps(cfg: Any, steps: int, seed: int) -> Iterator[Row]:
    family = models.family(cfg.family)
    mesh = sharding.make_mesh(cfg.run.mesh)
    program.check_memory(cfg, mesh)
    built = program.build(program.static_part(cfg), mesh)
    scales = budget.scales(cfg.family, cfg.model, cfg.optim.name)
    model, B = family.Model(cfg.model), cfg.train.batch_size
    examples = data.source(cfg.data.source).open_split(cfg.data, cfg.run.data_dir, "train")
    stream = loader.train_batches(examples, B, seed, 0, steps, (0, B))
    batches = [sharding.place(next(stream), mesh, B) for _ in range(steps)]

    def outputs(params: Any, batch: Any) -> dict[str, jax.Array]:
        with sharding.use(mesh):
            variables = {"params": scales.effective(params)}
            seen = model.apply(
                variables, *family.inputs(cfg.model, batch), capture_intermediates=True, mutable=["intermediates"]
            )[1]["intermediates"]
        found = {}
        for path, x in zip(tree.paths(seen), jax.tree.leaves(seen), strict=True):
            module, _, which = path.partition("__call__")
            if which in ("/0", "/0/0") and hasattr(x, "ndim") and x.ndim >= 2:  # a tuple's first: the others are caches
                name = module.strip("/") or "output"
                # A residual stream grows on its way through the layers: its end counts. Of branches, all layers do.
                stream = "/" not in name and x.ndim > 3 and x.shape[0] == cfg.model.depth
                found[name] = (x[-1] if stream else x).astype(jnp.float32)
        return found

    def sizes(now: dict[str, jax.Array], before: dict[str, jax.Array]) -> dict[str, tuple[jax.Array, jax.Array]]:
        rms = lambda x: jnp.sqrt(jnp.mean(jnp.square(x)))  # noqa: E731
        return {k: (rms(x), rms(x - before[k])) for k, x in now.items()}

    outputs, sizes = jax.jit(outputs), jax.jit(sizes)  # type: ignore[assignment]
    root = jax.random.key(seed)
    state = built.init(jax.random.fold_in(root, 0))
    first = outputs(state["params"], batches[0])
    for step in range(steps + 1):
        found = sizes(outputs(state["params"], batches[0]), first)
        for module, (rms, change) in found.items():
            yield {"module": module, "step": step, "rms": float(rms), "change": float(change)}
        if step < steps:
            state, _ = built.step(state, batches[step], jnp.float32(cfg.optim.lr), jax.random.fold_in(root, 1))


def slopes(rows: Sequence[Row]) -> list[Row]:
    """Of each module's rms and change after the last step: d ln / d ln size, over the mean of the seeds.

    `ok`: its change's slope is within LIMIT. An output may start smaller at larger widths, as a readout does under muP,
    so that rms is shown and not judged.
    """
    last = max(r["step"] for r in rows)
    out: list[Row] = []
    for name in dict.fromkeys(r["parametrization"] for r in rows):
        for module in dict.fromkeys(r["module"] for r in rows):
            here = [r for r in rows if (r["parametrization"], r["module"], r["step"]) == (name, module, last)]
            sizes = sorted({r["size"] for r in here})

            def slope(what: str, here: list[Row] = here, sizes: list[int] = sizes) -> float:
                means = [np.mean([r[what] for r in here if r["size"] == s]) for s in sizes]
                if not all(m > 0 and math.isfinite(m) for m in means):
                    return math.nan
                return float(np.polyfit(np.log(sizes), np.log(means), 1)[0])

            change = slope("change")
            out.append(
                {
                    "parametrization": name, "module": module, "rms": slope("rms"), "change": change,
                    "ok": bool(abs(change) <= LIMIT),
                }
            )  # fmt: skip
    return out
