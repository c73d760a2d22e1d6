"""Compile the train step of a config for TPUs that are not there.

Reports XLA's bytes on one chip, the collectives, FLOPs from the model's formula, and a roofline of the step's time,
which is a model and not a measurement. Without --config.run.mesh.AXIS=K it takes the fastest layout whose estimate
fits. --topology=auto takes the smallest of the usual v5e, v6e and v5p topologies: the fewest bytes of HBM in all,
then the fewest chips, on which a layout of the whole batch fits by its estimate and then by the compiler. A published
name (`bigmodel count list`) stands for a config that needs no data: its shape, bfloat16 products, AdamW, the published
batch or one by rule; what is assumed is said. A program that does not fit ends with exit code 2, and one line names
the cheapest remedies. Programs are cached in runs/compile/cache. Needs the package libtpu (of jax[tpu]) and minutes of
CPU.

Examples:
  bigmodel compile gpt3-6.7b --topology=auto
  bigmodel compile --config=experiments/gpt3.py:1.3b --topology=v5e:4x4 --config.train.batch_size=64
  bigmodel compile --sweep=sweeps/demo.py --topology=v5e:2x2
"""

import shlex
from pathlib import Path
from typing import Any

from bigmodel import cli, config, errors, files
from bigmodel.errors import UsageError

CONFIGURED, CLOUD = True, ("path",)
GIB = 2**30
NETWORKS = {"compute": "compute", "hbm": "HBM", "ici": "ICI", "dcn": "DCN"}


def arguments(parser: cli.Parser) -> None:
    cli.config_arguments(parser)
    cli.topology_arguments(parser, required=True)
    parser.add_argument("--sweep", metavar="FILE", help="compile every row of a sweep file")
    parser.add_argument("--out", metavar="STEM", help="write STEM.json and STEM.png (default: runs/compile/NAME)")
    parser.add_argument("--no-cache", action="store_true", help="compile programs that are in the cache too")
    parser.add_argument("--save", action="store_true", help="write STEM.executable, which run.executable reads")


def run(args: cli.Args, overrides: cli.Overrides) -> int:
    source = args.path or args.config
    if bool(args.sweep) == bool(source):
        raise UsageError("compile: give --config=experiments/NAME.py, a config.json, or --sweep=sweeps/NAME.py")
    if args.sweep and args.save:
        raise UsageError("compile: --save keeps the step of one experiment, not of a --sweep")
    if "://" in (args.out or ""):
        raise UsageError(f"compile: --out={args.out} must be on a disk; copy it to a bucket from there")
    auto = args.topology == "auto"
    if auto and (args.sweep or args.slices != 1):
        raise UsageError("compile: --topology=auto is for one model, and chooses the slices itself")
    topology = None if auto else topology_of(args)
    use_host()
    from bigmodel.pods.layout import Topology
    from bigmodel.run import executables

    if args.sweep:
        return _sweep(args, overrides, topology, Path(args.out or f"runs/compile/{_name(args.sweep, topology)}"))

    def say(line: str) -> None:
        if not args.json:
            print(line, flush=True)

    cfg, assumed = frozen(source, overrides)
    say(f"{source} on {label(topology)}, {topology.chips} chips" if topology else f"{source} on the smallest topology")
    if assumed:
        say(f"  assumed: {assumed}")

    def stem_of(where: Any) -> Path:
        return Path(args.out or f"runs/compile/{_name(source, where)}")

    def saved(where: Any) -> str:
        return f"{stem_of(where)}{executables.SUFFIX}" if args.save else ""

    given = {key for key, _ in overrides}
    report = {"name": source, "assumed": assumed, **proved(cfg, given, topology, _cache(args), say, saved)}
    chosen = Topology(report["topology"], report["slices"])
    stem, save = stem_of(chosen), saved(chosen)
    if save:
        report["executable"] = {"path": save, "flags": _flags(report, overrides, save)}
    _write(report, stem)
    with files.writing(stem):
        from bigmodel.laws.figures import pods, transfer

        transfer.write(pods.program, stem, report)
    if args.json:
        cli.print_json(report)
        return 0
    _show(report)
    print(f"  written: {stem}.json, {stem}.png")
    if save:
        print(f"  written: {save}, {Path(save).stat().st_size / 2**20:.0f} MiB; a run that reads it has")
        print(f"    {report['executable']['flags']}")
    return 0


def _sweep(args: cli.Args, overrides: cli.Overrides, topology: Any, stem: Path) -> int:
    """Every row of a sweep; rows whose programs are the same are compiled once."""
    from bigmodel.pods import aot
    from bigmodel.study import sweep
    from bigmodel.study.status import describe

    aot.devices(topology)  # no row can be compiled without
    rows, reports, failed = [], [], 0
    for item in sweep.make_plan(args.sweep, overrides):
        text = describe(item.overrides)
        given = {key for key, _ in overrides} | item.overrides.keys()
        try:
            cfg = aot.frozen(config.ConfigDict(item.config.to_dict()))
            r = proved(cfg, given, topology, _cache(args), lambda line: None)
        except UsageError as e:
            failed += 1
            cells = ["-", "-", "-", str(e).partition(". The cheapest")[0]]
            r = {"error": str(e)}
        else:
            mesh = " ".join(f"{k}={v}" for k, v in r["mesh"].items()) or "one chip"
            need = (r["bytes"]["arguments"] + r["bytes"]["temporaries"]) / GIB
            cells = [mesh, f"{need:.2f}", f"{r['roofline']['step']:.3g}", f"{r['chip_hours']:.3g}"]
        rows.append([item.run_id, text, *cells])
        reports.append({"run_id": item.run_id, **r})
        if not args.json:
            done = "refused" if "error" in r else "cached" if r.get("cached") else "compiled"
            print(f"{item.run_id}  {text}  {done}", flush=True)
    _write({"rows": reports}, stem)
    if args.json:
        cli.print_json(reports)
    else:
        print(cli.table(["run", "row", "mesh", "GiB a chip", "s a step (roofline)", "chip-hours"], rows))
        print(f"{len(rows)} rows on {label(topology)} of {topology.chip.hbm / GIB:.0f} GiB; written: {stem}.json")
    return 1 if failed else 0


def topology_of(args: cli.Args) -> Any:
    from bigmodel.pods.layout import Topology

    errors.check_ranges("--", args, slices="[1, inf)")
    topology = Topology(args.topology, args.slices)
    topology.chips  # noqa: B018 (refuses a malformed one)
    return topology


def label(topology: Any) -> str:
    return topology.name + (f" x {topology.slices} slices" if topology.slices > 1 else "")


def use_host() -> None:
    """Keeps JAX on the CPU: the chips are only described."""
    import jax

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)  # it would need the devices


def refusal(cfg: Any, topology: Any, e: Any) -> str:
    """One line with the shortfall and the cheapest remedies."""
    from bigmodel.pods import layout, published

    parts = []
    for number, r in enumerate(layout.remedies(cfg, topology, e.needed), 1):
        where = f" --slices={r.topology.slices}" if r.topology.slices != topology.slices else ""
        changes = {key: value for key, value in r.overrides.items() if config.flatten(cfg)[key] != value}
        flags = " ".join(f"--config.{key}={value}" for key, value in changes.items())
        parts.append(
            f"({number}) {r.text or 'another layout'}, estimated at {r.layout.bytes / GIB:.1f} GiB and "
            f"{r.cost:.2f} times the chip-seconds of the model's FLOPs at peak:{where} {flags}"
        )
    if not parts:  # the smallest with another layout of the same step
        found, best = published.smallest(cfg, ("none", "dots", "full"))
        slices = f" --slices={best.slices}" if best.slices > 1 else ""
        none = "no usual one either: fewer parameters, or a smaller batch"
        parts = [f"the smallest topology that fits by its estimate, --topology={best.name}{slices}" if found else none]
    return f"{label(topology)}: {e}. The cheapest remedies: {'; '.join(parts)}"


def frozen(source: str, overrides: cli.Overrides) -> tuple[Any, str]:
    """(a finalised config, what it assumes or ""): of a config's path, or of a published name."""
    from bigmodel import models
    from bigmodel.pods import aot, published
    from bigmodel.run import budget

    if Path(source).exists() or any(mark in source for mark in ("/", ":", ".json", ".py")):
        return aot.frozen(config.load(source, overrides)), ""
    try:
        models.published(source)
    except UsageError:
        if (found := config.built_in(source, "experiments")).exists():
            return aot.frozen(config.load(found, overrides)), ""
        raise
    unfrozen, assumed = published.config_of(source, overrides)
    return budget.finalize(unfrozen, reads=False), assumed


def _cache(args: cli.Args) -> str | None:
    return None if args.no_cache else "runs/compile/cache"


def proved(cfg: Any, given: set[str], topology: Any, cache: Any, say: Any, saved: Any = lambda topology: "") -> Any:
    """The report of a finalised config. `given`: its keys that were set; `saved`: topology -> where to save it, or "".

    A config without a mesh gets the fastest layout whose estimate fits, and another if the compiler finds that it
    doesn't fit. Without a topology it gets the smallest usual one (`published.usual`) with such a layout.

    Raises:
      UsageError: the program does not fit.
    """
    from bigmodel.pods import aot, layout, published

    def prove(laid_out: Any, where: Any, why: str) -> dict[str, Any]:
        say(f"  layout: {why}")
        return {"layout": why, **aot.prove(laid_out, where, cache, saved(where))}

    if any(key.startswith("run.mesh.") for key in given):
        if topology is None:
            raise UsageError("compile: --topology=auto chooses the mesh, and --config.run.mesh is given")
        try:
            return prove(cfg, topology, "as given")
        except aot.DoesNotFit as e:
            raise UsageError(refusal(cfg, topology, e)) from e
    remats = (cfg.run.remat,) if "run.remat" in given else ("none", "dots", "full")
    factor = 1.0
    for _ in range(4):
        choices, where = published.smallest(cfg, remats, factor) if topology is None else (None, topology)
        found = layout.choices(cfg, where, remats, factor) if choices is None else choices
        best = found[0] if found else layout.smallest(cfg, where)  # the compiler says by how much it doesn't fit
        why = ("" if found else "no layout fits by its estimate; the smallest: ") + layout.why(best, where)
        laid_out = layout.changed(cfg, best.overrides())
        if topology is None:
            if not found:
                short = aot.DoesNotFit(best.bytes, layout.USABLE * where.chip.hbm)
                raise UsageError(refusal(laid_out, where, short))
            say(f"  {label(where)}, {where.chips} chips")
        try:
            return prove(laid_out, where, why) | {
                "estimated": {"state": best.state_bytes, "activations": best.activation_bytes}
            }
        except aot.DoesNotFit as e:
            if not found or not best.activation_bytes:  # an estimate of 0 can't be corrected
                raise UsageError(refusal(laid_out, where, e)) from e
            say(f"    {e}")
            factor = max(factor * 1.05, 1.02 * (e.needed - best.state_bytes) / best.activation_bytes)
    raise UsageError(f"{label(where)}: four layouts whose estimates fitted didn't; set --config.run.mesh.AXIS=K")


def _flags(report: dict[str, Any], overrides: cli.Overrides, save: str) -> str:
    """The flags, beside --config, of a run that has the program of a report and reads it."""
    from bigmodel.ops.sharding import AXES

    run = {f"run.mesh.{axis}": report["mesh"].get(axis, 1) for axis in AXES}
    run |= {f"run.{k}": v for k, v in report["execution"].items()} | {"run.executable": save}
    return shlex.join(f"--config.{k}={v}" for k, v in {**dict(overrides), **run}.items())


def _name(source: str, topology: Any) -> str:
    file, _, variant = source.partition(":")
    slices = f"{topology.slices}slices" if topology.slices > 1 else ""
    return "-".join(filter(None, (Path(file).stem, variant, topology.name.replace(":", "-"), slices)))


def _write(content: dict[str, Any], stem: Path) -> None:
    from bigmodel.run import record

    with files.writing(stem):
        stem.parent.mkdir(parents=True, exist_ok=True)
        record.write_json(stem.with_name(stem.name + ".json"), content)


def _show(r: dict[str, Any]) -> None:
    from bigmodel.words import human

    b, roof = r["bytes"], r["roofline"]
    host = f" ({b['host'] / GIB:.2f} GiB in the host)" if b["host"] else ""
    print(
        f"  bytes a chip      arguments {b['arguments'] / GIB:.2f} GiB, temporaries {b['temporaries'] / GIB:.2f}, "
        f"peak {b['peak'] / GIB:.2f} of {r['hbm_bytes'] / GIB:.0f} GiB: fits{host}"
    )
    if b["peak"] < b["arguments"] + b["temporaries"]:
        print("                    (the peak is XLA's: shared temporaries and donated arguments count once)")
    print(
        f"  FLOPs a step      {r['flops']['model']:.4g} of the model, {r['flops']['with_recomputation']:.4g} with "
        f"recomputation; N {human(r['params'])}, {r['batch_size']} x {r['units_per_example']} tokens"
    )
    if r["collectives"]:
        rows = []
        for x in r["collectives"]:
            rows.append(["    " + x["kind"], x["axis"], x["network"], f"{x['count']:,}", f"{x['bytes'] / 1e9:.3f}"])
        print("  what a chip sends in a step:")
        print(cli.table(["    collective", "axis", "network", "count", "GB"], rows))
    times = ", ".join(f"{name} {roof[key]:.3g} s" for key, name in NETWORKS.items())
    took = "from the cache" if r["cached"] else f"{r['compile_seconds']:.0f} s, {r['compile_cpu_seconds']:.0f} CPU s"
    print(
        f"  roofline          {times} (a model of the hardware, not a measurement)\n"
        f"                    a step takes at least {roof['step']:.3g} s, bound by {NETWORKS[roof['bound_by']]}; "
        f"{roof['if_nothing_overlaps']:.3g} s if nothing overlaps; MFU at most {roof['mfu_at_most']:.0%}\n"
        f"  at that time      {human(r['units_per_day'])} tokens a day; {human(r['horizon'])} tokens take "
        f"{human(r['chip_hours'])} chip-hours\n"
        f"  compiled          {took}; jax {r['jax_version']}, libtpu {r['libtpu_version']}, "
        f"program {r['program_hash']}"
    )
