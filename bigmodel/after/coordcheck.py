"""Coordinate check: do activations and their changes keep their size as width or depth grows?

A parametrisation should keep what training does to each layer independent of the shape. The first steps show whether
the code does so (Yang et al. 2022, arXiv:2203.03466, appendix D.1): the root mean square of each module's output, and
of its change since the start, against width or depth on logarithmic axes. Hyperparameter transfer needs slopes of 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from bigmodel import config, data, models, tree
from bigmodel.data import loader
from bigmodel.errors import UsageError, check_ranges, choose
from bigmodel.ops import sharding
from bigmodel.run import budget, counts, parametrize, program

LIMIT = 0.1  # the largest |slope| that passes
Row = dict[str, Any]


def measure(
    start: Any, axis: str, sizes: Sequence[int], names: Sequence[str], steps: int = 8, seeds: int = 2, say: Any = print
) -> list[Row]:
    """Rows of module, size, step, rms and change, for every parametrisation, size and seed.

    Args:
      start: an experiment's config; its rate, batch and other dimension are kept.
      axis: "width" or "depth".
      sizes: values of the axis. The smallest is the base of the parametrisation.
      names: parametrisations.
      steps: optimizer steps at the full rate; there is a row for step 0 too.

    Raises:
      UsageError: a family without parametrisations, fewer than two sizes, or a size that can't be built.
    """
    choose("coordcheck", axis, ["width", "depth"])
    if len(set(sizes)) < 2:
        raise UsageError(f"coordcheck: give at least two {axis}s")
    check_ranges("coordcheck: --", {"steps": steps, "seeds": seeds}, steps="[1, 10000]", seeds="[1, 1000]")
    if "parametrization" not in start.model:
        raise UsageError(f"coordcheck: family {start.family!r} has no parametrizations")
    for name in names:
        choose("parametrization", name, parametrize.NAMES)
    shaped = [(name, size, _shaped(start, name, axis, size, min(sizes))) for name in names for size in sizes]
    rows: list[Row] = []
    for name, size, cfg in shaped:
        for seed in range(seeds):
            row = {"parametrization": name, "axis": axis, "size": size, "seed": seed}
            with program.within_memory(f"{name} {axis} {size}"):
                rows += [{**row, **measured} for measured in _first_steps(cfg, steps, seed)]
        say(f"{name} {axis} {size}")
    return rows


def _shaped(start: Any, name: str, axis: str, size: int, base: int) -> Any:
    """The frozen config of one width or depth, with the parametrisation's base at the width or depth `base`."""
    rung = models.family(start.family).rung
    width, depth = start.model.width, start.model.depth
    own = rung(size, depth) if axis == "width" else rung(width, size)
    small = rung(base, depth) if axis == "width" else rung(width, base)
    bases = {f"model.base_{key}": small[f"model.{key}"] for key in ("width", "depth", "num_heads")}
    unfrozen = start.copy_and_resolve_references()
    config.override_all(unfrozen, [*own.items(), ("model.parametrization", name), *bases.items()])
    return budget.finalize(unfrozen)


def _first_steps(cfg: Any, steps: int, seed: int) -> Iterator[Row]:
    family = models.family(cfg.family)
    mesh = sharding.make_mesh(cfg.run.mesh)
    program.check_memory(cfg, mesh)
    built = program.build(program.static_part(cfg), mesh)
    scales = counts.scales(cfg.family, cfg.model, cfg.optim.name)
    model, B = family.Model(cfg.model), cfg.train.batch_size
    examples = data.source(cfg.data.source).open_split(cfg.data, cfg.run.data_dir, "train")
    stream = loader.train_batches(examples, B, seed, 0, steps, (0, B))
    batches = [sharding.place(next(stream), mesh, B) for _ in range(steps)]

    @jax.jit
    def outputs(params: Any, batch: Any) -> dict[str, jax.Array]:
        with sharding.use(mesh):
            variables, inputs = {"params": scales.effective(params)}, family.inputs(cfg.model, batch)
            _, seen = model.apply(variables, *inputs, capture_intermediates=True, mutable=["intermediates"])
        found = {}
        for path, x in zip(tree.paths(seen["intermediates"]), jax.tree.leaves(seen), strict=True):
            module, _, which = path.partition("__call__")
            if which in ("/0", "/0/0") and hasattr(x, "ndim") and x.ndim >= 2:  # a tuple's first: the rest are caches
                name = module.strip("/") or "output"
                # A residual stream grows from layer to layer: its end counts. Branches count in all layers.
                stream = "/" not in name and x.ndim > 3 and x.shape[0] == cfg.model.depth
                found[name] = (x[-1] if stream else x).astype(jnp.float32)
        return found

    @jax.jit
    def sizes(now: dict[str, jax.Array], before: dict[str, jax.Array]) -> dict[str, tuple[jax.Array, jax.Array]]:
        rms = lambda x: jnp.sqrt(jnp.mean(jnp.square(x)))  # noqa: E731
        return {k: (rms(x), rms(x - before[k])) for k, x in now.items()}

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
    """For each module, d ln / d ln size of its rms and change after the last step, of the mean over seeds.

    `ok`: the slope of the change is within LIMIT. The slope of the rms is not judged: an output may start smaller at
    larger widths, as a readout does under muP.
    """
    frame = pd.DataFrame(rows)
    last = frame[frame["step"] == frame["step"].max()]
    out: list[Row] = []
    for (name, module), here in last.groupby(["parametrization", "module"], sort=False):
        means = here.groupby("size")[["rms", "change"]].agg(lambda x: x.to_numpy().mean())
        rms, change = _slope(means["rms"]), _slope(means["change"])
        ok = bool(abs(change) <= LIMIT)
        out.append({"parametrization": name, "module": module, "rms": rms, "change": change, "ok": ok})
    return out


def _slope(means: pd.Series) -> float:
    """d ln / d ln of the index; NaN if a value has no logarithm."""
    if not (np.isfinite(means) & (means > 0)).all():
        return float("nan")
    return float(np.polyfit(np.log(means.index), np.log(means), 1)[0])
