"""The verbs that prove a run on a machine that isn't there: `compile`, and `plan --topology`."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any

from bigmodel import config, files
from bigmodel.cli import print_json, print_table
from bigmodel.errors import UsageError

G = 2**30
NETWORKS = {"compute": "compute", "hbm": "HBM", "ici": "ICI", "dcn": "DCN"}


def _topology(args: argparse.Namespace) -> Any:
    from bigmodel.pods.layout import Topology

    if args.slices < 1:
        raise UsageError(f"--slices={args.slices}: must be at least 1")
    topology = Topology(args.topology, args.slices)
    topology.chips  # noqa: B018 (refuses a malformed one)
    return topology


def _proved(unfrozen: Any, overrides: Any, topology: Any, args: Any, say: Any, save: str = "") -> dict[str, Any]:
    """The report of a config. One that names no mesh gets the fastest layout whose estimate fits, and another where the
    compiler finds that it doesn't."""
    from bigmodel.pods import aot, layout

    cfg = aot.frozen(unfrozen)
    cache = None if args.no_cache else "runs/compile/cache"
    given = {key for key, _ in overrides}
    if any(key.startswith("run.mesh.") for key in given):
        return _report(cfg, topology, cache, "as given", say, save)
    remats = (cfg.run.remat,) if "run.remat" in given else ("none", "dots", "full")
    factor = 1.0
    for _ in range(4):
        found = layout.choices(cfg, topology, remats, factor)
        best = found[0] if found else layout.smallest(cfg, topology)  # for the compiler to say by how much
        why = ("" if found else "no layout fits by its estimate; the smallest: ") + layout.why(best, topology)
        laid_out = layout.changed(cfg, best.overrides())
        try:
            return _report(laid_out, topology, cache, why, say, save)
        except aot.DoesNotFit as e:
            if not found or not best.activation_bytes:  # an estimate of nothing can't be corrected
                raise UsageError(_refusal(laid_out, topology, e)) from e
            say(f"    {e}")
            factor = max(factor * 1.05, 1.02 * (e.needed - best.state_bytes) / best.activation_bytes)
    raise UsageError(f"{topology.name}: four layouts whose estimates fitted didn't; name one: --config.run.mesh.AXIS=K")


def _report(cfg: Any, topology: Any, cache: Any, why: str, say: Any, save: str) -> dict[str, Any]:
    from bigmodel.pods import aot

    say(f"  layout: {why}")
    return {"layout": why, **aot.prove(cfg, topology, cache, save)}


def _start() -> None:
    """JAX on the host alone: the chips are a description."""
    import jax

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)  # it would be asked for devices that aren't there


def compile(args: argparse.Namespace, overrides: Any) -> int:
    if bool(args.sweep) == bool(args.config or args.path):
        raise UsageError(
            "compile: give --config=experiments/NAME.py, the path of a config.json, or --sweep=sweeps/NAME.py"
        )
    if args.sweep and args.save:
        raise UsageError("compile: --save keeps one experiment's step, and not a --sweep's")
    if "://" in (args.out or ""):
        raise UsageError(f"compile: --out={args.out} is written here, on a disk; copy it to a bucket from there")
    topology = _topology(args)
    _start()
    from bigmodel.pods import aot
    from bigmodel.run import executables

    if args.sweep:
        return _compile_sweep(args, overrides, topology)
    unfrozen = config.load(args.path or args.config, overrides)
    source = args.path or args.config
    stem = Path(args.out or f"runs/compile/{_name(source, topology)}")
    say = (lambda line: None) if args.json else lambda line: print(line, flush=True)
    say(f"{source} on {topology.name}{_slices(topology)}, {topology.chips} chips")
    save = f"{stem}{executables.SUFFIX}" if args.save else ""
    try:
        report = {"name": source, **_proved(unfrozen, overrides, topology, args, say, save)}
    except aot.DoesNotFit as e:
        cfg = aot.frozen(unfrozen)
        raise UsageError(_refusal(cfg, topology, e)) from e
    if save:
        report["executable"] = {"path": save, "flags": _flags(report, overrides, save)}
    _write(report, stem)
    if args.json:
        print_json(report)
    else:
        _show(report)
        print(f"  written: {stem}.json, {stem}.png")
        if save:
            print(f"  written: {save}, {Path(save).stat().st_size / 2**20:.0f} MiB; a run that reads it has")
            print(f"    {report['executable']['flags']}")
    return 0


def _flags(report: dict[str, Any], overrides: Any, save: str) -> str:
    """What a run needs on its command line beside --config to have the very program of a report, and to read it."""
    from bigmodel.ops.sharding import AXES

    run = {f"run.mesh.{axis}": report["mesh"].get(axis, 1) for axis in AXES}
    run |= {f"run.{k}": v for k, v in report["execution"].items()} | {"run.executable": save}
    return shlex.join(f"--config.{k}={v}" for k, v in {**dict(overrides), **run}.items())


def _slices(topology: Any) -> str:
    return f" x {topology.slices} slices" if topology.slices > 1 else ""


def _name(source: str, topology: Any) -> str:
    stem = Path(source.partition(":")[0]).stem + ("-" + source.partition(":")[2] if ":" in source else "")
    slices = f"-{topology.slices}slices" if topology.slices > 1 else ""
    return f"{stem}-{topology.name.replace(':', '-')}{slices}"


def _write(report: dict[str, Any], stem: Path) -> None:
    from bigmodel.laws.figures import pods, transfer
    from bigmodel.run import record

    with files.writing(stem):
        stem.parent.mkdir(parents=True, exist_ok=True)
        record.write_json(stem.with_name(stem.name + ".json"), report)
        transfer.write(pods.program, stem, report)


def _refusal(cfg: Any, topology: Any, e: Any) -> str:
    """One line: the shortfall, and what would mend it."""
    from bigmodel.pods import layout

    found = layout.remedies(cfg, topology, e.needed)
    parts: list[str] = []
    for r in found:
        where = f" --slices={r.topology.slices}" if r.topology.slices != topology.slices else ""
        now = {key: value for key, value in r.overrides.items() if config.flatten(cfg)[key] != value}
        flags = " ".join(f"--config.{key}={value}" for key, value in now.items())
        parts.append(f"({len(parts) + 1}) {r.text or 'another layout'}, estimated at {r.layout.bytes / G:.1f} GiB and "
                     f"{r.cost:.2f} times the chip-seconds of the model's FLOPs at peak:{where} {flags}")  # fmt: skip
    advice = "; ".join(parts) or "no remedy is known: fewer parameters, or a larger topology"
    return f"{topology.name}{_slices(topology)}: {e}. The cheapest remedies: {advice}"


def _show(r: dict[str, Any]) -> None:
    from bigmodel.words import human

    b, roof = r["bytes"], r["roofline"]
    print(
        f"  bytes a chip      arguments {b['arguments'] / G:.2f} GiB, temporaries {b['temporaries'] / G:.2f}, "
        f"peak {b['peak'] / G:.2f} of {r['hbm_bytes'] / G:.0f} GiB: fits"
        + (f" ({b['host'] / G:.2f} GiB in the host)" if b["host"] else "")
    )
    if b["peak"] < b["arguments"] + b["temporaries"]:
        print("                    (the peak is XLA's: room that temporaries share, and donated arguments, count once)")
    print(
        f"  FLOPs a step      {r['flops']['model']:.4g} of the model, {r['flops']['with_recomputation']:.4g} with "
        f"what is computed again; N {human(r['params'])}, {r['batch_size']} x {r['units_per_example']} tokens"
    )
    rows = [
        [x["kind"], x["axis"], x["network"], f"{x['count']:,}", f"{x['bytes'] / 1e9:.3f}"] for x in r["collectives"]
    ]
    if rows:
        print("  what a chip sends in a step:")
        print_table(["    collective", "axis", "network", "count", "GB"], [["    " + a, *rest] for a, *rest in rows])
    times = ", ".join(f"{name} {roof[key]:.3g} s" for key, name in NETWORKS.items())
    print(f"  roofline          {times} (a model of the hardware, not a measurement)")
    print(
        f"                    a step takes at least {roof['step']:.3g} s, bound by {NETWORKS[roof['bound_by']]}; "
        f"{roof['if_nothing_overlaps']:.3g} s if nothing overlaps; MFU at most {roof['mfu_at_most']:.0%}"
    )
    print(
        f"  at that time      {human(r['units_per_day'])} tokens a day; {human(r['horizon'])} tokens take "
        f"{human(r['chip_hours'])} chip-hours"
    )
    took = "from the cache" if r["cached"] else f"{r['compile_seconds']:.0f} s, {r['compile_cpu_seconds']:.0f} CPU s"
    print(
        f"  compiled          {took}; jax {r['jax_version']}, libtpu {r['libtpu_version']}, program {r['program_hash']}"
    )


def _compile_sweep(args: argparse.Namespace, overrides: Any, topology: Any) -> int:
    """Every row of a sweep; rows whose programs are the same are compiled once."""
    from bigmodel.pods import aot
    from bigmodel.study import sweep as sweeps
    from bigmodel.study.status import describe

    rows, reports, failed = [], [], 0
    for item in sweeps.make_plan(args.sweep, overrides):
        given = {key for key, _ in overrides} | item.overrides.keys()
        label = describe(item.overrides)
        unfrozen = config.ConfigDict(item.config.to_dict())
        try:
            r = _proved(unfrozen, [(k, None) for k in given], topology, args, lambda line: None)
        except (aot.DoesNotFit, UsageError) as e:
            failed += 1
            rows.append([item.run_id, label, "-", "-", "-", str(e).partition(". The cheapest")[0]])
            reports.append({"run_id": item.run_id, "error": str(e)})
        else:
            mesh = " ".join(f"{k}={v}" for k, v in r["mesh"].items()) or "one chip"
            need = (r["bytes"]["arguments"] + r["bytes"]["temporaries"]) / G
            rows.append(
                [item.run_id, label, mesh, f"{need:.2f}", f"{r['roofline']['step']:.3g}", f"{r['chip_hours']:.3g}"]
            )
            reports.append({"run_id": item.run_id, **r})
        if not args.json:
            print(f"{item.run_id}  {label}  {'cached' if reports[-1].get('cached') else 'compiled'}", flush=True)
    stem = Path(args.out or f"runs/compile/{_name(args.sweep, topology)}")
    from bigmodel.run import record

    with files.writing(stem):
        stem.parent.mkdir(parents=True, exist_ok=True)
        record.write_json(stem.with_name(stem.name + ".json"), {"rows": reports})
    if args.json:
        print_json(reports)
    else:
        print_table(["run", "row", "mesh", "GiB a chip", "s a step (roofline)", "chip-hours"], rows)
        print(
            f"{len(rows)} rows on {topology.name}{_slices(topology)} of {topology.chip.hbm / G:.0f} GiB; "
            f"written: {stem}.json"
        )
    return 1 if failed else 0


def plan_layout(args: argparse.Namespace, overrides: Any) -> int:
    """`plan --topology`: which mesh, and why."""
    if not args.config:
        raise UsageError("plan: --topology needs --config=experiments/NAME.py, the experiment to lay out")
    topology = _topology(args)
    _start()
    from bigmodel.pods import aot, layout

    cfg = aot.frozen(config.load(args.config, overrides))
    found = layout.choices(cfg, topology)
    if not found:
        best = layout.smallest(cfg, topology)
        raise UsageError(_refusal(layout.changed(cfg, best.overrides()), topology,
                                  aot.DoesNotFit(best.bytes, layout.USABLE * topology.chip.hbm)))  # fmt: skip
    if args.json:
        print_json(
            [{**x.overrides(), "bytes": x.bytes, "seconds": dict(x.seconds), "step": x.step_seconds} for x in found]
        )
        return 0
    print(
        f"{args.config} on {topology.name}{_slices(topology)}: {len(found)} layouts fit by their estimates; "
        "the best of them:"
    )
    for layout_ in found[: args.next_runs]:
        print(f"  {layout.why(layout_, topology)}")
    flags = " ".join(f"--config.{k}={v}" for k, v in found[0].overrides().items() if v not in (1, 0))
    print(
        f"prove the first: bigmodel compile --config={args.config} --topology={topology.name} "
        f"--slices={topology.slices} {flags}"
    )
    return 0
