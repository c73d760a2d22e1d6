"""What each verb of the command does: one function a verb. Layer 6. Imports what it needs when it runs."""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
from pathlib import Path
from typing import Any

from bigmodel import config
from bigmodel.config import EXIT_RETRY, Retry, UsageError


def _json(value: Any) -> None:
    print(json.dumps(value, indent=1, default=str))


def prepare(args: argparse.Namespace, _: Any) -> int:
    from bigmodel.prepare import corpora
    from bigmodel.prepare import prepare as job

    if args.source == "list":
        rows = corpora.table()
        if args.json:
            _json(rows)
        else:
            _table(list(rows[0]), [list(r.values()) for r in rows])
        return 0
    stem = args.source.removeprefix("hf:").rstrip("/").split("/")[-1].split(".")[0]
    tokenizer = Path(args.tokenizer).stem
    out = args.out or f"data/{stem}-{tokenizer}"
    manifest = job.prepare(
        args.source,
        out,
        tokenizer=args.tokenizer,
        vocab_size=args.vocab_size,
        validation_fraction=args.validation_fraction,
        text_key=args.text_key,
        workers=args.workers,
        progress=sys.stderr.isatty(),
    )
    if args.json:
        _json(manifest)
        return 0
    for split, s in manifest["splits"].items():
        print(f"{split:>10}: {s['tokens']:>13,} tokens  {s['documents']:>8,} documents  {s['bytes']:>13,} bytes")
    print(f"{out}: vocabulary {manifest['tokenizer']['vocab_size']:,}, licence {manifest['licence']}")
    return 0


def start_jax(args: argparse.Namespace) -> None:
    """Before the first use of JAX: devices, processes, and the persistent compilation cache."""
    import warnings

    import jax

    # A cache that can't be written, as on a full disk, costs time and nothing else.
    warnings.filterwarnings("ignore", "Error (writing|reading) persistent compilation cache")
    if getattr(args, "host_devices", 0) < 0:
        raise UsageError(f"--host-devices={args.host_devices}: must not be negative (0: those there are)")
    if getattr(args, "host_devices", 0):
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", args.host_devices)
    cache = Path(os.environ.get("BIGMODEL_CACHE", Path.home() / ".cache" / "bigmodel")) / "xla"
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    if getattr(args, "coordinator", None):
        jax.distributed.initialize(args.coordinator, args.processes, args.process)


def _load(args: argparse.Namespace, overrides: Any) -> Any:
    path = getattr(args, "path", None)
    if bool(path) == bool(args.config):
        raise UsageError(f"{args.verb}: give --config=experiments/NAME.py, or the path of a config.json")
    return config.load(path or args.config, overrides)


def train(args: argparse.Namespace, overrides: Any) -> int:
    unfrozen = _load(args, overrides)
    start_jax(args)
    from bigmodel import train as trainer

    result = trainer.train(unfrozen, args.runs, name=args.name)
    home = f"{args.runs}/{result['run_id']}"
    if args.json:
        _json(result)
    elif result["status"] == "diverged":
        print(f"{home}: diverged; last good step {result['last_good_step']} of {result['steps']} is kept")
    else:
        bits = f", {result['bits_per_byte']:.4f} bits per byte" if result["bits_per_byte"] else ""
        print(
            f"{home}: loss {result['loss']:.4f}{bits}; N {result['params']:,}, D {result['tokens']:,} "
            f"{result['unit']}, C {result['flops']:.3g} FLOPs, {result['wall_seconds']:.1f} s"
        )
    return 0


def sweep(args: argparse.Namespace, overrides: Any) -> int:
    config.choose("sweep", args.action, ["plan", "run", "status"])
    if args.workers < 1:
        raise UsageError(f"--workers={args.workers}: must be at least 1")
    if args.action == "status":
        return _sweep_status(args)
    start_jax(args)
    from bigmodel import sweep as sweeps
    from bigmodel.progress import duration, human

    folder = sweeps.folder_of(args.file, args.runs)
    gc.disable()  # counting a model makes many short-lived objects; collecting amid them costs a tenth of a plan
    plan = sweeps.make_plan(args.file, overrides)
    gc.enable()
    seconds = sweeps.expected_seconds(plan, folder)
    worker = args.first > 0 or os.environ.get("BIGMODEL_WORKER")
    if not worker:
        sweeps.write_plan(folder, plan)
        if args.json:
            _json([{**p.to_dict(), "expected_seconds": s} for p, s in zip(plan, seconds, strict=True)])
        else:
            unit = plan[0].budget.unit
            head = ["run", "row", "N", f"D ({unit})", "C (FLOPs)", "steps", "epochs", "memory", "expected"]
            body = [
                [
                    p.run_id,
                    sweeps.describe(p.overrides),
                    human(p.budget.params),
                    human(p.budget.tokens),
                    f"{p.budget.flops:.2e}",
                    f"{p.budget.steps:,}",
                    f"{p.budget.epochs:.2f}",
                    f"{human(p.budget.state_bytes)}B",
                    "done" if (folder / p.run_id / "result.json").exists() else duration(s),
                ]
                for p, s in zip(plan, seconds, strict=True)
            ]
            _table(head, body)
            left = sum(
                s for p, s in zip(plan, seconds, strict=True) if not (folder / p.run_id / "result.json").exists()
            )
            total = sum(p.budget.flops for p in plan)
            print(f"{len(plan)} runs, {total:.2e} FLOPs; about {duration(left)} to go on this machine")
    if args.action == "plan":
        return 0
    if args.workers > 1:
        return _sweep_workers(args, overrides, folder, len(plan))
    tally = sweeps.run(args.file, plan, folder, retry_failed=args.retry_failed, first=args.first, say=_say)
    if not args.json:
        print(f"{folder}: " + ", ".join(f"{n} {what}" for what, n in tally.items() if n))
    return 1 if tally["failed"] else 0


def _say(line: str) -> None:
    print(line, flush=True)


def _sweep_workers(args: argparse.Namespace, overrides: Any, folder: Any, rows: int) -> int:
    from bigmodel import sweep as sweeps

    os.environ["BIGMODEL_WORKER"] = "1"
    command = ["sweep", "run", args.file, f"--runs={args.runs}", *(f"--config.{k}={v}" for k, v in overrides)]
    command += ["--retry-failed"] if args.retry_failed else []
    command += [f"--host-devices={args.host_devices}"] if args.host_devices else []
    from rich.live import Live

    with Live(refresh_per_second=2, transient=not sys.stdout.isatty()) as live:
        codes = sweeps.run_workers(
            command, args.workers, folder, rows, lambda: live.update(_rich_status(sweeps.status(folder)))
        )
    states = [row["state"] for row in sweeps.status(folder)]
    print(f"{folder}: " + ", ".join(f"{states.count(s)} {s}" for s in dict.fromkeys(states)))
    if any(code == EXIT_RETRY for code in codes):
        raise Retry(f"a worker was interrupted; see {folder}/workers/; the same command continues")
    return 1 if any(codes) else 0


def _status_cells(row: dict[str, Any]) -> list[str]:
    from bigmodel.progress import human
    from bigmodel.sweep import describe

    result, last = row.get("result"), row.get("last")
    step = result["steps"] if result else (last or {}).get("step", 0)
    loss = (result or {}).get("loss") or (last or {}).get("loss")
    return [
        row["run_id"],
        describe(row["overrides"]),
        human(row["params"]),
        human(row["tokens"]),
        row["state"],
        f"{step}/{row['steps']}",
        f"{loss:.4f}" if loss else row.get("error", ""),
    ]


STATUS_HEAD = ["run", "row", "N", "D", "state", "step", "loss"]


def _rich_status(rows: list[dict[str, Any]]) -> Any:
    from rich.table import Table

    table = Table(*STATUS_HEAD, box=None)
    for row in rows:
        table.add_row(*_status_cells(row))
    return table


def _sweep_status(args: argparse.Namespace) -> int:
    from bigmodel import sweep as sweeps

    rows = sweeps.status(sweeps.folder_of(args.file, args.runs))
    if args.json:
        _json([{k: v for k, v in row.items() if k != "config"} for row in rows])
        return 0
    _table(STATUS_HEAD, [_status_cells(row) for row in rows])
    states = [row["state"] for row in rows]
    print(f"{len(rows)} runs: " + ", ".join(f"{states.count(s)} {s}" for s in dict.fromkeys(states)))
    return 0


def _needs(law: str, against: list[str]) -> tuple[str, tuple[str, ...]]:
    """(the column that a law predicts, those that it and its rivals read)"""
    from bigmodel.scaling import frontier, laws

    if law in frontier.METHODS:
        return "L", ("N", "D")
    models = [laws.get(name) for name in (law, *against)]
    return models[0].target, tuple(dict.fromkeys(c for model in models for c in model.columns))


def fit(args: argparse.Namespace, _: Any) -> int:
    from bigmodel.scaling import fit as fits
    from bigmodel.scaling import frontier, rows, sources
    from bigmodel.scaling import report as reports

    columns = {k: getattr(args, k) for k in ("N", "D", "L", "C") if getattr(args, k)}
    columns |= sources.pairs("--columns", args.columns)
    if args.report and args.law in frontier.METHODS:
        raise UsageError(f"fit: {args.law} has no loss to draw; --report of a law of N and D shows {args.law} too")
    target, needed = _needs(args.law, args.against)
    frame = rows.load(
        args.points,
        columns,
        drop_highest=args.drop_highest,
        count=args.count,
        flops=args.flops,
        where=args.where,
        target=target,
        needed=needed,
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
    )
    out = fits.to_json(result)
    if args.out:
        with config.writing(args.out):
            Path(args.out).write_text(json.dumps(out, indent=1) + "\n")
    if args.report:
        with config.writing(args.report):
            beside = reports.frontiers(frame, result)
            reports.write(frame, result, args.report, Path(args.points).stem, args.command, frontiers=beside)
    if args.json:
        _json(out)
    else:
        print(reports.law_text(result))
    return 0


def report(args: argparse.Namespace, _: Any) -> int:
    from bigmodel import track, view
    from bigmodel.scaling import fit as fits
    from bigmodel.scaling import report as reports
    from bigmodel.scaling import rows

    is_sweep = args.file.endswith(".py")
    folder = Path(args.runs) / Path(args.file).stem if is_sweep else Path(args.file)
    module = config.load_module(args.file, "sweep") if is_sweep else None
    results = [r for r in map(track.read_json, sorted(folder.glob("*/result.json"))) if r]
    if not results:
        raise UsageError(f"no finished runs under {str(folder)!r}: `bigmodel sweep run {args.file}` first")
    out = Path(args.out or folder / "report")
    frame = rows.load(folder)
    result = fits.fit(frame, law=args.law)
    with config.writing(out):
        path = reports.write(
            frame,
            result,
            out,
            title=(module.__doc__ or "").strip().split("\n")[0] if module else folder.name,
            command=f"bigmodel report {args.file}",
            unit=results[0]["unit"],
            loss=f"loss (nats per {results[0]['unit'].removesuffix('s')})",
            frontiers=reports.frontiers(frame, result),
        )
    if module and hasattr(module, "report"):
        with config.user_code(args.file, "sweep", "report()"), config.full_disk(out):
            module.report(folder, out)  # the sweep's own figures and tables, beside the common ones
    configs = [c for c in (track.read_json(folder / r["run_id"] / "config.json") for r in results) if c]
    mode = {c["run"]["wandb"] for c in configs}
    wandb = view.View()
    wandb.summary(
        out, view.wandb_mode("online" if "online" in mode else "offline" if "offline" in mode else "off"), folder.name
    )
    wandb.close(seconds=5.0)
    if args.json:
        _json({**fits.to_json(result), "report": str(path)})
    else:
        print(reports.law_text(result))
        print(f"report: {path}")
    return 0


def plan(args: argparse.Namespace, overrides: Any) -> int:
    from bigmodel.scaling import design, fitted
    from bigmodel.scaling import plan as plans

    config.choose("--target", args.target, design.TARGETS)
    for name in ("out", "config.KEY=VALUE"):
        if (args.out if name == "out" else overrides) and not args.config:
            raise UsageError(f"plan: --{name} needs --config=experiments/NAME.py, the experiment that the rows are of")
    if args.out and args.next_runs < 1:
        raise UsageError("plan: --out writes the next runs, and --next-runs=0 asks for none")
    if args.out and Path(args.out).exists():
        raise UsageError(f"plan: {args.out!r} is there already: choose another --out, or remove it")
    law = fitted.read(args.law)
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
        from bigmodel import rungs

        counted = config.choose("--count", args.count or law.count, rungs.COUNTS)
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
    _json(out) if args.json else print("\n".join(lines))
    return 0


def count(args: argparse.Namespace, overrides: Any) -> int:
    from bigmodel import budget, models

    if args.model == "list":
        names = [name for f in models.names() for name in models.family(f).PUBLISHED]
        _json(names) if args.json else print("\n".join(names))
        return 0
    if bool(args.model) == bool(args.config):
        raise UsageError("count: give a published name (`bigmodel count list`) or --config=experiments/NAME.py")
    if args.config:
        frozen = budget.finalize(config.load(args.config, overrides))
        name, family_name, model = args.config, frozen.family, frozen.model
        source = ""
    else:
        name = args.model
        family_name, row = models.published(name)
        source = row["source"]
        section = config.ConfigDict({"model": models.family(family_name).get_config()})
        section.model.update(row["model"])
        config.override_all(section, overrides)
        models.family(family_name).finalize(section.model)
        model = section.model
    numbers = {"name": name, "family": family_name, "source": source, **budget.describe(family_name, model)}
    if args.json:
        _json(numbers)
    else:
        for line in budget.describe_text(numbers):
            print(line)
    return 0


def paper(args: argparse.Namespace, _: Any) -> int:
    from bigmodel import papers

    if args.name == "list":
        if args.points or args.out:
            raise UsageError("paper list takes neither --points nor --out")
        modules = {name: papers.paper(name) for name in papers.names()}
        needs = {name: [p.name for p in papers.wanted(m)] for name, m in modules.items()}
        if args.json:
            _json([{"name": n, "title": m.TITLE, "source": m.SOURCE, "points": needs[n]} for n, m in modules.items()])
        else:
            _table(["paper", "what", "points"], [[n, m.TITLE, ", ".join(needs[n])] for n, m in modules.items()])
        return 0
    result = papers.check(args.name, args.points)
    written = papers.write(result, args.out) if args.out else []
    if args.json:
        _json(result.to_dict())
    else:
        print("\n".join(papers.text(result)))
        if written:
            print(f"written: {', '.join(map(str, written))}")
    return 0 if result.ok else 1


def _table(head: list[str], rows: list[list[Any]]) -> None:
    """Aligned plain text: whole on a narrow terminal and in a pipe. Numbers to the right."""
    cells = [[str(c) for c in row] for row in rows]
    widths = [max(len(row[i]) for row in [head, *cells]) for i in range(len(head))]
    right = [all(c[i][:1].isdigit() for c in cells) and i > 1 for i in range(len(head))]
    for row in [head, *cells]:
        aligned = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)]
        print("  ".join(aligned).rstrip())
