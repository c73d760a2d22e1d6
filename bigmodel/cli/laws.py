"""The verbs of laws: fit, report, plan, paper."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from bigmodel import config, errors
from bigmodel.cli import print_json, print_table
from bigmodel.errors import UsageError
from bigmodel.files import full_disk, sealed, writing


def _needs(law: str, against: list[str]) -> tuple[str, tuple[str, ...]]:
    """(the column that a law predicts, those that it and its rivals read)"""
    from bigmodel.laws import forms, frontier

    if law in frontier.METHODS:
        return "L", ("N", "D")
    models = [forms.get(name) for name in (law, *against)]
    return models[0].target, tuple(dict.fromkeys(c for model in models for c in model.columns))


def _there(path: Path, what: str = "file or directory") -> None:
    """Told before seconds of imports."""
    if not path.exists():
        siblings = [str(p) for p in path.parent.glob("*")] if path.parent.is_dir() else []
        raise UsageError(f"no {what} {str(path)!r}{errors.nearest(str(path), siblings)}")


def _say(text: str) -> None:
    """What the verb is at, on one line of a terminal; "" wipes it. Nothing where stderr is a file or a pipe."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text and text + ' ...'}", end="", file=sys.stderr, flush=True)


def _writable(path: Path, folder: bool) -> None:
    """A fit may take minutes: what can't be written is told before. Writes nothing."""
    there = next(p for p in (path, *path.absolute().parents) if p.exists())
    if there == path and path.is_dir() != folder:
        raise UsageError(f"can't write {str(path)!r}: it is a {'folder' if path.is_dir() else 'file'}")
    if (there != path and not there.is_dir()) or not os.access(there, os.W_OK):
        raise UsageError(f"can't write {str(path)!r}: {str(there)!r} is not a folder that can be written to")


def _budgets(text: str) -> list[float] | None:
    try:
        found = [float(part) for part in text.split(",") if part]
    except ValueError:
        found = [0.0]
    if not all(0 < c < 1e300 for c in found):
        raise UsageError(f"--budgets={text!r}: expected FLOPs, as 1e19,3e19,1e20")
    return found or None


def fit(args: argparse.Namespace, _: Any) -> int:
    _there(Path(args.points))
    _say(f"reading {args.points}")
    try:
        out, text = _fit(args)
    finally:
        _say("")
    print_json(out) if args.json else print(text)
    return 0


def _fit(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """(the fit as JSON, as text), with all files written."""
    from bigmodel.laws import fit as fits
    from bigmodel.laws import frontier, rows, sources, texts

    columns = {k: getattr(args, k) for k in ("N", "D", "L", "C") if getattr(args, k)}
    columns |= sources.pairs("--columns", args.columns)
    if args.report and args.law in frontier.METHODS:
        raise UsageError(f"fit: {args.law} has no loss to draw; --report of a law of N and D shows {args.law} too")
    target, needed = _needs(args.law, args.against)
    budgets = _budgets(args.budgets)
    for path, folder in ((args.out, False), (args.report, True)):
        if path:
            _writable(Path(path), folder)
    frame = rows.load(
        args.points,
        columns,
        drop_highest=args.drop_highest,
        count=args.count,
        flops=args.flops,
        where=args.where,
        target=target,
        needed=needed,
        run=args.run,
        drop=args.drop,
        earlier=args.earlier,
    )
    result = fits.fit(
        frame,
        law=args.law,
        delta=args.delta,
        bootstrap=args.bootstrap,
        seed=args.seed,
        holdout=args.holdout,
        estimator=args.estimator,
        above=args.above,
        against=args.against,
        full_grid=args.full_grid,
        budgets=budgets,
        say=_say,
    )
    out = fits.to_json(result)
    if args.out:
        with writing(args.out):
            Path(args.out).parent.mkdir(parents=True, exist_ok=True)
            Path(args.out).write_text(json.dumps(sealed(out), indent=1) + "\n")
    if args.report:
        from bigmodel.laws import report as reports  # matplotlib takes a second to import

        _say("drawing the report")
        with writing(args.report):
            beside = reports.frontiers(frame, result)
            reports.write(frame, result, args.report, Path(args.points).stem, args.command, frontiers=beside)
    return out, texts.law_text(result)


def report(args: argparse.Namespace, _: Any) -> int:
    _there(Path(args.file), "sweep file" if args.file.endswith(".py") else "file or directory")
    _say("reading the runs")
    try:
        return _report(args)
    finally:
        _say("")


def _report(args: argparse.Namespace) -> int:
    from bigmodel.laws import fit as fits
    from bigmodel.laws import frontier, rows, sources
    from bigmodel.laws import report as reports
    from bigmodel.run import view

    if args.law in frontier.METHODS:
        raise UsageError(f"report: {args.law} has no loss to draw; the report of a law of N and D shows {args.law} too")
    is_sweep = args.file.endswith(".py")
    folder = Path(args.runs) / Path(args.file).stem if is_sweep else Path(args.file)
    module = config.load_module(args.file, "sweep") if is_sweep else None
    files = sorted(folder.glob("*/result.json"))
    if not files:
        raise UsageError(f"no finished runs under {str(folder)!r}: `bigmodel sweep run {args.file}` first")
    out = Path(args.out or folder / "report")
    if module and getattr(module, "LAW", args.law) is None:  # a study of something else than sizes and data
        with config.user_code(args.file, "sweep", "report()"), writing(out):
            said = module.report(folder, out)
        print_json({"lines": said.split("\n"), "report": str(out)}) if args.json else print(said)
        return 0
    target, needed = _needs(args.law, [])
    frame = rows.load(folder, target=target, needed=needed, earlier=args.earlier)
    result = fits.fit(frame, law=args.law, say=_say)
    results = [r for r in map(sources.read_object, files) if r]
    unit = next((str(r["unit"]) for r in results if r.get("unit")), "tokens")
    _say("drawing")
    with writing(out):
        path = reports.write(
            frame,
            result,
            out,
            title=(module.__doc__ or "").strip().split("\n")[0] if module else folder.name,
            command=f"bigmodel report {args.file}",
            unit=unit,
            loss=f"Validation loss (nats/{unit.removesuffix('s')})",
            frontiers=reports.frontiers(frame, result),
        )
    own = None
    if module and hasattr(module, "report"):
        with config.user_code(args.file, "sweep", "report()"), full_disk(out):
            own = module.report(folder, out)  # the sweep's own figures and tables, beside the common ones
    configs = [c for c in (sources.read_object(file.parent / "config.json") for file in files) if c]
    mode = {c["run"].get("wandb") for c in configs if isinstance(c.get("run"), dict)}
    wandb = view.View()
    wandb.summary(
        out, view.wandb_mode("online" if "online" in mode else "offline" if "offline" in mode else "off"), folder.name
    )
    wandb.close(seconds=5.0)
    _say("")
    if args.json:
        print_json({**fits.to_json(result), "report": str(path)})
    else:
        print(reports.law_text(result))
        if own:
            print(own)
        print(f"report: {path}")
    return 0


def plan(args: argparse.Namespace, overrides: Any) -> int:
    if args.law and not args.topology:
        _there(Path(args.law))
    from bigmodel.laws import design, fitted
    from bigmodel.laws import plan as plans

    if args.topology:
        from bigmodel.cli import pods

        if args.law:
            raise UsageError("plan: --law plans a size and --topology lays one out: one of the two")
        return pods.plan_layout(args, overrides)
    if not args.law:
        raise UsageError("plan: give --law=FIT.JSON, to plan a size, or --topology=v5p:8x8x8, to lay one out")
    errors.choose("--target", args.target, design.TARGETS)
    for name in ("out", "config.KEY=VALUE"):
        if (args.out if name == "out" else overrides) and not args.config:
            raise UsageError(f"plan: --{name} needs --config=experiments/NAME.py, the experiment that the rows are of")
    if args.out and args.next_runs < 1:
        raise UsageError("plan: --out writes the next runs, and --next-runs=0 asks for none")
    if args.out and Path(args.out).exists():
        raise UsageError(f"plan: {args.out!r} is there already: choose another --out, or remove it")
    law = fitted.read(args.law, args.form)
    ask = plans.Ask(
        flops=args.flops,
        params=args.params,
        tokens=args.tokens,
        loss=args.loss,
        inference_tokens=args.inference_tokens,
        max_params=args.max_params,
        max_tokens=args.max_tokens,
    )
    out = plans.make(law, ask)
    family = args.family or ("" if args.config else law.family)
    if args.config or family or args.count:
        from bigmodel.study import rungs

        counted = errors.choose("--count", args.count or law.count, rungs.COUNTS)
    base = rungs.of_config(args.config, overrides) if args.config else rungs.of_family(family) if family else None
    if base is not None and args.family not in ("", base.family):
        raise UsageError(f"plan: --family={args.family}, but {args.config!r} is of family {base.family!r}")
    unit = (base.unit if base else "") or law.unit
    lines = [plans.text(out, unit)]
    out["config"] = out["next"] = None
    if args.next_runs != 0:
        try:
            most = base.max_tokens if base else float("inf")
            out["next"] = design.advise(law, out, ask, args.next_flops, args.next_runs, args.target, most)
        except UsageError as e:
            if args.out or args.next_flops is not None or args.next_runs < 1:
                raise
            lines.append(str(e).removeprefix("plan: "))
    rows = out["next"]["rows"] if out["next"] else []
    configs = []
    if base is None:
        lines.append("config: --family=NAME or --config=experiments/NAME.py gives the nearest model that can be built")
    else:

        def built(n: float, d: float) -> dict[str, Any]:
            found = rungs.nearest(base, n, counted, law.aspect)
            data = round(n * d / found["N"])  # for the same FLOPs
            return {**found, "count": counted, "D": data, "loss": plans.loss_at(law, found["N"], data)}

        try:
            out["config"] = {**built(out["N"]["value"], out["D"]["value"]), "note": base.note}
            lines.insert(1, rungs.text(out["config"], unit))
            configs = [built(row["N"], row["D"]) for row in rows]
        except UsageError as e:
            if args.out:
                raise
            lines.append(f"config: {e}" + (f"; {base.note}" if base.note else ""))
    for row, built_row in zip(rows, configs, strict=False):
        row["config"] = built_row
    if base and base.max_tokens < out["D"]["value"]:
        there = f"{base.max_tokens:.3g} {unit}, repeats included"
        lines.append(f"config: its data give {there}: --max-tokens={base.max_tokens:.3g} plans within them")
    if out["next"]:
        lines.append(design.text(out["next"], [rungs.flags(c) for c in configs]))
    if args.out and base:
        title = f"The next runs for the law of {args.law}, to narrow {design.TARGETS[args.target]}."
        written = rungs.write_sweep(args.out, base, configs, title)
        lines.append(f"{args.out}: {written} rows; `bigmodel sweep plan {args.out}`")
    print_json(out) if args.json else print("\n".join(lines))
    return 0


def paper(args: argparse.Namespace, _: Any) -> int:
    from bigmodel import papers

    if args.name == "list":
        if args.points or args.out:
            raise UsageError("paper list takes neither --points nor --out")
        modules = {name: papers.paper(name) for name in papers.names()}
        needs = {name: [p.name for p in papers.wanted(m)] for name, m in modules.items()}
        if args.json:
            print_json(
                [{"name": n, "title": m.TITLE, "source": m.SOURCE, "points": needs[n]} for n, m in modules.items()]
            )
        else:
            body = [[n, m.TITLE, ", ".join(needs[n])] for n, m in modules.items()]
            print_table(["paper", "what", "points"], body)
        return 0
    result = papers.check(args.name, args.points)
    written = papers.write(result, args.out) if args.out else []
    if args.json:
        print_json(result.to_dict())
    else:
        print("\n".join(papers.text(result)))
        if written:
            print(f"written: {', '.join(map(str, written))}")
    return 0 if result.ok else 1
