"""Choose the next model from a fitted law, or its layout on a pod.

Give one of --flops, --params, --tokens and --loss. Prints size, data and compute with intervals, how far they
extrapolate, the cost of another size, the nearest model that can be built, and the next runs that would narrow the
answer most. With --inference-tokens the best model is smaller and trained on more data. With --topology instead of
--law: lists the meshes whose estimated memory fits, fastest first.

Examples:
  bigmodel plan --law=fit.json --flops=1e23 --family=decoder
  bigmodel plan --law=fit.json --flops=1e19 --config=experiments/gpt.py --next-flops=1e17 --out=sweeps/next.py
  bigmodel plan --topology=v5p:8x8x8 --config=experiments/gpt3.py:175b
"""

from pathlib import Path
from typing import Any

from bigmodel import cli, errors
from bigmodel.errors import UsageError

CONFIGURED = True
ASKED = ("flops", "params", "tokens", "loss", "inference_tokens", "max_params", "max_tokens")


def arguments(parser: cli.Parser) -> None:
    add = parser.add_argument
    add("--law", default="", metavar="FIT.JSON", help="a file that `bigmodel fit --out=` wrote")
    add("--form", default="", metavar="FILE.py", help="for a law of your own: its file")
    cli.topology_arguments(parser)
    add("--flops", type=float, help="budget for training (with --inference-tokens: and for inference)")
    add("--params", type=float, help="N: gives the compute and data for which this size is best")
    add("--tokens", type=float, help="D: gives the compute and size for which this amount is best")
    add("--loss", type=float, help="loss to reach with the fewest FLOPs")
    add("--inference-tokens", type=float, default=0.0, help="tokens over the model's life, 2 N FLOPs each")
    add("--max-params", type=float, default=float("inf"), help="largest N")
    add("--max-tokens", type=float, default=float("inf"), help="largest D, e.g. all available data")
    add("--config", metavar="FILE[:VARIANT]", help="an experiment whose width and depth are chosen")
    add("--family", default="", help="a family with its default options, instead of --config")
    add("--count", default="", metavar="WHICH", help="total, nonembedding or kaplan: N of the law (default: the fit's)")
    add("--target", default="N", help="what the next runs shall narrow: N, loss or a")
    add("--next-flops", type=float, help="budget of the next runs (default: that of the fitted runs)")
    add("--next-runs", type=int, default=8, help="largest number of next runs; 0: no advice")
    add("--out", metavar="SWEEP.py", help="write the next runs as a sweep of --config")


def run(args: cli.Args, overrides: cli.Overrides) -> int:
    if args.topology:
        if args.law:
            raise UsageError("plan: --law plans a size and --topology a layout: give one of the two")
        return _layout(args, overrides)
    if not args.law:
        raise UsageError("plan: give --law=FIT.JSON, to plan a size, or --topology=v5p:8x8x8, to plan a layout")
    cli.check_exists(Path(args.law))
    from bigmodel.laws import design, fitted, plan

    errors.choose("--target", args.target, design.TARGETS)
    for name, value in (("out", args.out), ("config.KEY=VALUE", overrides)):
        if value and not args.config:
            raise UsageError(f"plan: --{name} needs --config=experiments/NAME.py, the experiment of the next runs")
    if args.out and args.next_runs < 1:
        raise UsageError("plan: --out writes the next runs, and --next-runs=0 asks for none")
    if args.out and Path(args.out).exists():
        raise UsageError(f"plan: {args.out!r} is there already: choose another --out, or remove it")
    law = fitted.read(args.law, args.form)
    ask = plan.Ask(**{name: getattr(args, name) for name in ASKED})
    out = plan.make(law, ask)
    base, counted = _base(args, overrides, law)
    unit = (base.unit if base else "") or law.unit
    lines = [plan.text(out, unit)]
    out["config"] = out["next"] = None
    if args.next_runs != 0:
        try:
            most = base.max_tokens if base else float("inf")
            out["next"] = design.advise(law, out, ask, args.next_flops, args.next_runs, args.target, most)
        except UsageError as e:
            if args.out or args.next_flops is not None or args.next_runs < 1:
                raise
            lines.append(str(e).removeprefix("plan: "))
    flags: list[str] = []
    if base is None:
        lines.append("config: --family=NAME or --config=experiments/NAME.py gives the nearest model that can be built")
    else:
        from bigmodel.study import rungs

        configs = _build(args, base, law, counted, out, lines, unit)
        flags = [rungs.flags(c) for c in configs]
    if out["next"]:
        lines.append(design.text(out["next"], flags))
    if args.out:
        title = f"The next runs for the law of {args.law}, to narrow {design.TARGETS[args.target]}."
        written = rungs.write_sweep(args.out, base, configs, title)
        lines.append(f"{args.out}: {written} rows; `bigmodel sweep plan {args.out}`")
    cli.print_json(out) if args.json else print("\n".join(lines))
    return 0


def _base(args: cli.Args, overrides: cli.Overrides, law: Any) -> tuple[Any, str]:
    """(what the planned model is built from, which parameters N counts); (None, "") if nothing is to be built."""
    family = args.family or ("" if args.config else law.family)
    if not (args.config or family or args.count):
        return None, ""
    from bigmodel.study import rungs

    counted = errors.choose("--count", args.count or law.count, rungs.COUNTS)
    base = rungs.of_config(args.config, overrides) if args.config else rungs.of_family(family) if family else None
    if base is not None and args.family not in ("", base.family):
        raise UsageError(f"plan: --family={args.family}, but {args.config!r} is of family {base.family!r}")
    return base, counted


def _build(args: cli.Args, base: Any, law: Any, counted: str, out: Any, lines: list[str], unit: str) -> list[Any]:
    """Adds the nearest buildable models to `out` and `lines`; returns those of the next runs."""
    from bigmodel.laws import plan
    from bigmodel.study import rungs

    def nearest(n: float, d: float) -> dict[str, Any]:
        found = rungs.nearest(base, n, counted, law.aspect)
        data = round(n * d / found["N"])  # for the same FLOPs
        return {**found, "count": counted, "D": data, "loss": plan.loss_at(law, found["N"], data)}

    configs = []
    rows = out["next"]["rows"] if out["next"] else []
    try:
        out["config"] = {**nearest(out["N"]["value"], out["D"]["value"]), "note": base.note}
        lines.insert(1, rungs.text(out["config"], unit))
        configs = [nearest(row["N"], row["D"]) for row in rows]
        for row, built in zip(rows, configs, strict=True):
            row["config"] = built
    except UsageError as e:
        if args.out:
            raise
        lines.append(f"config: {e}" + (f"; {base.note}" if base.note else ""))
    if base.max_tokens < out["D"]["value"]:
        there = f"{base.max_tokens:.3g} {unit}, repeats included"
        lines.append(f"config: its data give {there}: --max-tokens={base.max_tokens:.3g} plans within them")
    return configs


def _layout(args: cli.Args, overrides: cli.Overrides) -> int:
    if not args.config:
        raise UsageError("plan: --topology needs --config=experiments/NAME.py, the experiment to lay out")
    from bigmodel.cli.compile import frozen, label, refusal, topology_of, use_host
    from bigmodel.pods import aot, layout, published

    topology = None if args.topology == "auto" else topology_of(args)
    use_host()
    cfg, _ = frozen(args.config, overrides)
    if topology is None:
        found, topology = published.smallest(cfg, ("none", "dots", "full"))
    else:
        found = layout.choices(cfg, topology)
    if not found:
        best = layout.smallest(cfg, topology)
        error = aot.DoesNotFit(best.bytes, layout.USABLE * topology.chip.hbm)
        raise UsageError(refusal(layout.changed(cfg, best.overrides()), topology, error))
    if args.json:
        times = [{"bytes": x.bytes, "seconds": dict(x.seconds), "step": x.step_seconds} for x in found]
        cli.print_json([{**x.overrides(), **time} for x, time in zip(found, times, strict=True)])
        return 0
    print(f"{args.config} on {label(topology)}: {len(found)} layouts fit by their estimates; the best of them:")
    for choice in found[: args.next_runs]:
        print(f"  {layout.why(choice, topology)}")
    flags = " ".join(f"--config.{k}={v}" for k, v in found[0].overrides().items() if v not in (1, 0))
    where = f"--topology={topology.name} --slices={topology.slices}"
    print(f"prove the first: bigmodel compile --config={args.config} {where} {flags}")
    return 0
