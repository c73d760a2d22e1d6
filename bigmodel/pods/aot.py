"""The train step of a config, compiled ahead of time for TPUs that this machine doesn't have, and a report of it.

    found = aot.prove(frozen, layout.Topology("v5p:8x8x8"))

Needs the package `libtpu`, and no TPU. Bytes are XLA's own; collectives and memory traffic are counted in the program,
FLOPs by the model's formula. The time of a step is a roofline: a model of the hardware, not a measurement.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import os
import re
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from bigmodel import files, models
from bigmodel.errors import NoData, UsageError
from bigmodel.ops import platforms, sharding
from bigmodel.pods import hlo, layout
from bigmodel.pods.layout import Topology
from bigmodel.run import budget, counts, executables, processes, program, record

FORMAT = 3  # version of a report's content: part of the cache's key


class DoesNotFit(Exception):
    """The program needs more memory than a chip has. Attributes: needed, available (bytes)."""

    def __init__(self, needed: float, available: float):
        self.needed, self.available = needed, available
        g = 2**30
        super().__init__(
            f"needs {needed / g:.2f} GiB of a chip's {available / g:.2f}: {(needed - available) / g:.2f} GiB too many"
        )


def frozen(unfrozen: ConfigDict) -> Any:
    """A config finalised for compiling: with the sizes of its data or, if that is not there, with its own."""
    try:
        return budget.finalize(unfrozen)
    except NoData:
        return budget.finalize(unfrozen, reads=False)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences file descriptor 2, to which libtpu writes its warnings."""
    saved = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def devices(topology: Topology) -> list[Any]:
    """libtpu's description of a topology's chips. UsageError: no libtpu, or no such topology."""
    if importlib.util.find_spec("libtpu") is None:
        raise UsageError(f"compiling for TPUs needs the package libtpu: {files.install('jax[tpu]')}")
    processes.no_tpu_here()
    from jax.experimental import topologies

    topology.shape  # noqa: B018 (refuses a malformed one)
    more: dict[str, Any] = {"num_slices": topology.slices} if topology.slices > 1 else {}
    if topology.chips == topology.slices:  # libtpu's hosts have 4 chips, unless told
        more["chips_per_host_bounds"] = (1, 1, 1)
    try:
        with _quiet():
            return list(topologies.get_topology_desc(platform="tpu", topology_name=topology.name, **more).devices)
    except Exception as e:
        reason = (str(e).splitlines() or [type(e).__name__])[0]
        raise UsageError(f"--topology={topology.name!r}: libtpu knows no such one: {reason}") from e


def lower(cfg: Any, mesh: Any) -> Any:
    """The step that `train` runs, lowered for a mesh."""
    program.check_batch(cfg, mesh)
    built = program.build(program.static_part(cfg), mesh)

    def like(x: Any, placed: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed)

    state = jax.tree.map(like, built.shapes, built.shardings)
    shapes = counts.batch_shapes(models.family(cfg.family), cfg.model, cfg.train.batch_size)
    batch = {k: like(x, sharding.batch_sharding(mesh, len(x.shape))) for k, x in shapes.items()}
    whole = sharding.replicated(mesh)
    key = jax.eval_shape(lambda: jax.random.key(0))
    return built.step.lower(state, batch, like(jax.ShapeDtypeStruct((), "float32"), whole), like(key, whole))


def program_hash(lowered: Any, topology: Topology, options: Any) -> str:
    """The cache's key of a report: the program, the topology, the compiler and its options."""
    versions = [jax.__version__, importlib.metadata.version("libtpu")]
    flags = [os.environ.get(name, "") for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")]
    parts = [lowered.as_text(), topology.name, topology.slices, *versions, FORMAT, options, *flags]
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:16]


def compile_step(lowered: Any) -> Any:
    """The executable. DoesNotFit: XLA's buffers exceed the memory."""
    try:
        with _quiet():
            return lowered.compile()
    except Exception as e:
        text = str(e)
        found = re.search(r"Used ([\d.]+)([TGMK]) of ([\d.]+)([TGMK]) hbm", text) or re.search(
            r"\(([\d.]+)([TGMK])\) exceeds available HBM \(([\d.]+)([TGMK])\)", text
        )
        if "RESOURCE_EXHAUSTED" not in text or not found:
            raise
        units = {"T": 2**40, "G": 2**30, "M": 2**20, "K": 2**10}
        raise DoesNotFit(float(found[1]) * units[found[2]], float(found[3]) * units[found[4]]) from e


def prove(cfg: Any, topology: Topology, cache: Any = None, save: str = "") -> dict[str, Any]:
    """The report of a config on a topology, with the keys of `_measured` and `_of_config`. Bytes, FLOPs and seconds
    are per chip unless a key says otherwise.

    Args:
      cfg: as of `frozen`.
      cache: a folder of reports by program hash, or None.
      save: where to write the executable, which is then compiled even if its report is cached; "": nowhere.

    Raises:
      DoesNotFit, UsageError.
    """
    began = time.time()
    mesh = sharding.make_mesh(cfg.run.mesh, devices(topology))
    lowered = lower(cfg, mesh)
    key = program_hash(lowered, topology, platforms.step_options(mesh))
    stored = None if cache is None else record.read_json(epath.Path(cache) / f"{key}.json")
    if stored is not None and stored.get("shortfall"):
        raise DoesNotFit(*stored["shortfall"])
    if stored is not None and not save:
        return {**stored, **_of_config(cfg, topology, stored), "cached": True}
    cpu = time.process_time()
    try:
        with executables.uncached() if save else contextlib.nullcontext():
            executable = compile_step(lowered)
    except DoesNotFit as e:
        _store(cache, key, {"shortfall": [e.needed, e.available]})
        raise
    report = _measured(executable, mesh, topology) | {
        "program_hash": key,
        "compile_seconds": round(time.time() - began, 1),
        "compile_cpu_seconds": round(time.process_time() - cpu, 1),
        "jax_version": jax.__version__,
        "libtpu_version": importlib.metadata.version("libtpu"),
        "date": record.now(),
    }
    _store(cache, key, report)
    if save:
        executables.save(save, executable, executables.made_for(program.static_part(cfg), mesh))
    return {**report, **_of_config(cfg, topology, report), "cached": False}


def _store(cache: Any, key: str, value: dict[str, Any]) -> None:
    if cache is not None:
        with files.writing(cache):
            epath.Path(cache).mkdir(parents=True, exist_ok=True)
            record.write_json(epath.Path(cache) / f"{key}.json", value)


def _measured(executable: Any, mesh: Any, topology: Topology) -> dict[str, Any]:
    """The part of a report that follows from the executable alone."""
    memory = executable.memory_analysis()
    module = hlo.parse(executable.as_text())
    slices = topology.slices
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for c in hlo.collectives(module, mesh.size):
        axis = hlo.axes_of(c.group, mesh.shape) if c.group else "slices"
        if not axis or not c.bytes:
            continue
        row = found.setdefault((c.kind, axis), {"kind": c.kind, "axis": axis, "count": 0, "bytes": 0.0})
        row["count"] += c.count
        # Between slices by rings as well: an all-reduce of S bytes over n sends 2 S (n-1)/n.
        row["bytes"] += c.count * c.bytes * (1.0 if c.group else 2 * (slices - 1) / slices)
        places = [mesh.devices.flat[i].coords for i in c.group]  # on the torus
        row["dimensions"] = max(1, sum(len(set(x)) > 1 for x in zip(*places, strict=True)))
        row["network"] = "DCN" if "slices" in axis.split("+") and slices > 1 else "ICI"
    if slices > 1 and not any(row["network"] == "DCN" for row in found.values()):
        raise RuntimeError("nothing is sent between slices: this libtpu's programs are not understood")
    return {
        "bytes": {
            "arguments": memory.argument_size_in_bytes,
            "temporaries": memory.temp_size_in_bytes,
            "outputs_not_donated": memory.output_size_in_bytes - memory.alias_size_in_bytes,
            "program": memory.generated_code_size_in_bytes,
            "peak": memory.peak_memory_in_bytes,
            "host": memory.host_temp_size_in_bytes,
        },
        "collectives": sorted(found.values(), key=lambda row: -row["bytes"]),
        "traffic_bytes": hlo.traffic(module),
    }


def _of_config(cfg: Any, topology: Topology, report: dict[str, Any]) -> dict[str, Any]:
    """The part of a report that follows from the config, the chip's peaks and the measured part."""
    chip, n = topology.chip, topology.chips
    total, nonembedding, *_ = counts.counts(cfg.family, cfg.model)
    model_flops = 3 * models.family(cfg.family).flops(cfg.model) * cfg.train.batch_size
    units = models.family(cfg.family).units(cfg.model)
    hardware = model_flops * (1 + layout.BACKWARD[cfg.run.remat]) / 3
    seconds = {
        "compute": hardware / n / chip.flops,
        "hbm": report["traffic_bytes"] / chip.hbm_bandwidth,
        "ici": sum(r["bytes"] / (chip.ici * r["dimensions"]) for r in report["collectives"] if r["network"] == "ICI"),
        "dcn": sum(r["bytes"] / chip.dcn for r in report["collectives"] if r["network"] == "DCN"),
    }
    step = max(seconds.values())
    per_day = cfg.train.batch_size * units * 86400 / step
    horizon = budget.horizon(cfg, nonembedding, units, model_flops)
    return {
        "family": cfg.family,
        "topology": topology.name,
        "slices": topology.slices,
        "chips": n,
        "mesh": {k: v for k, v in sharding.full(cfg.run.mesh, n).items() if v > 1},
        "execution": {k: cfg.run[k] for k in ("remat", "attention", "loss_chunks")},
        "dtypes": {
            "compute": cfg.model.get("dtype", "float32"),
            "parameters": cfg.train.param_dtype,
            "gradients": cfg.train.grad_dtype,
            "optimizer": cfg.optim.state_dtype,
        },
        "params": total,
        "batch_size": cfg.train.batch_size,
        "microbatch": cfg.train.microbatch,
        "units_per_example": units,
        "hbm_bytes": chip.hbm,
        "flops": {"model": model_flops, "with_recomputation": hardware},
        "roofline": {
            **seconds,
            "step": step,
            "if_nothing_overlaps": sum(seconds.values()),
            "bound_by": max(seconds, key=lambda k: seconds[k]),
            "mfu_at_most": model_flops / n / chip.flops / step,
            "peaks": asdict(chip),
        },
        "units_per_day": per_day,
        "chip_hours": horizon / (cfg.train.batch_size * units) * step * n / 3600,
        "horizon": horizon,
    }
