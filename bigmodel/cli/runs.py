"""The verbs that prepare, train, sweep and count."""

from __future__ import annotations

import argparse
import gc
import os
import sys
from pathlib import Path
from typing import Any

from etils import epath

from bigmodel import config, errors, files
from bigmodel.cli import print_json, print_table
from bigmodel.errors import EXIT_RETRY, Retry, UsageError


def prepare(args: argparse.Namespace, _: Any) -> int:
    from bigmodel.prepare import corpora, images, published, registries, tasks
    from bigmodel.prepare import prepare as job

    if args.source == "list":
        kinds = [corpora.CORPORA, {**tasks.TASKS, **images.SETS}, published.WEIGHTS]
        tables = [registries.table(kind) for kind in kinds]
        if args.json:
            print_json([row for rows in tables for row in rows])
            return 0
        for rows in tables:
            sizes = [key for key in rows[0] if key in ("megabytes", "documents", "examples")]
            columns = ["name", "client", *sizes, "about", "package", "licence"]
            print_table(columns, [[r[key] for key in columns] for r in rows])
            print()
        return 0
    fraction = args.validation_fraction
    if args.source in (*images.SETS, *published.WEIGHTS):
        if args.tokenizer != "bytes" or fraction is not None:
            raise UsageError(f"prepare {args.source}: takes no --tokenizer and no --validation-fraction")
        out = args.out or f"data/{args.source}"
        made = images.prepare_images if args.source in images.SETS else published.prepare_weights
        manifest = made(args.source, out, verify=args.verify)
    else:
        stem = args.source.removeprefix("hf:").rstrip("/").split("/")[-1].split(".")[0]
        out = args.out or f"data/{stem}-{Path(args.tokenizer).stem}"
        if args.source in tasks.TASKS:
            manifest = tasks.prepare_task(
                args.source, out, args.tokenizer, args.vocab_size, fraction, verify=args.verify
            )
        else:
            manifest = job.prepare(
                args.source,
                out,
                tokenizer=args.tokenizer,
                vocab_size=args.vocab_size,
                validation_fraction=0.02 if fraction is None else fraction,
                text_key=args.text_key,
                workers=args.workers,
                progress=sys.stderr.isatty(),
                verify=args.verify,
            )
    if args.json:
        print_json(manifest)
        return 0
    for name, row in manifest.get("splits", {}).items():
        counts = [f"{v:>13,} {k.replace('_', ' ')}" for k, v in row.items() if isinstance(v, int)]
        print(f"{name:>10}: {'  '.join(counts)}")
    vocabulary = f"vocabulary {manifest['tokenizer']['vocab_size']:,}, " if "tokenizer" in manifest else ""
    print(f"{out}: {vocabulary}licence {manifest['licence']}{', all files verified' if args.verify else ''}")
    return 0


def start_jax(args: argparse.Namespace) -> None:
    """Before the first use of JAX: devices, processes, and the persistent compilation cache."""
    import warnings

    import jax

    from bigmodel.run import processes

    # A cache that can't be written, as on a full disk, costs time and nothing else.
    warnings.filterwarnings("ignore", "Error (writing|reading) persistent compilation cache")
    if getattr(args, "host_devices", 0) < 0:
        raise UsageError(f"--host-devices={args.host_devices}: must not be negative (0: those there are)")
    if getattr(args, "host_devices", 0):
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", args.host_devices)
    cache = Path(os.environ.get("BIGMODEL_CACHE") or os.path.expanduser("~/.cache/bigmodel")) / "xla"
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    processes.no_tpu_here()
    if hasattr(args, "coordinator"):
        processes.join(args.coordinator or "", args.processes, args.process)


def _load(args: argparse.Namespace, overrides: Any) -> Any:
    path = getattr(args, "path", None)
    if bool(path) == bool(args.config):
        raise UsageError(f"{args.verb}: give --config=experiments/NAME.py, or the path of a config.json")
    return config.load(path or args.config, overrides)


FEW_STEPS = 100  # of a row of a sweep


def train(args: argparse.Namespace, overrides: Any) -> int:
    unfrozen = _load(args, overrides)
    start_jax(args)
    from bigmodel.run import budget, identity
    from bigmodel.run import session as trainer

    runs = args.runs or "runs"
    if args.path and not args.runs:  # the config.json of a run goes on in that run's folder
        own = epath.Path(args.path).parent
        if own.name == identity.run_id(budget.finalize(unfrozen)):
            runs = str(own.parent)
    result = trainer.train(unfrozen, runs, name=args.name)
    home = f"{runs}/{result['run_id']}"
    if args.json:
        print_json(result)
    elif result["status"] == "diverged":
        print(f"{home}: diverged; last good step {result['last_good_step']} of {result['steps']} is kept")
    else:
        bits = f", {result['bits_per_byte']:.4f} bits per byte" if result["bits_per_byte"] else ""
        print(
            f"{home}: loss {result['loss']:.4f}{bits}; N {result['params']:,}, D {result['tokens']:,} "
            f"{result['unit']}, C {result['flops']:.3g} FLOPs, {result['wall_seconds']:.1f} s"
        )
    return 0


def worker(args: argparse.Namespace, overrides: Any) -> int:
    """One row of a plan, to its end: what every engine calls, as often as it takes."""
    import json

    from bigmodel import launch
    from bigmodel.config import from_json, to_json
    from bigmodel.run import claims, record
    from bigmodel.study import status

    for key, _ in overrides:
        if not key.startswith("run."):
            raise UsageError(f"worker: --config.{key} would make another row; only --config.run.KEY=VALUE")

    folder = status.folder_of(args.folder, "runs")
    index = args.index
    if not args.run and index < 0:
        task = os.environ.get("SLURM_ARRAY_TASK_ID", "")
        if not task.isdecimal():
            raise UsageError(f"worker: give --run=ID, a run id that `bigmodel sweep status {args.folder}` shows")
        index = int(task)
    row = launch.row_of(folder, args.run, index)
    home, label = folder / row["run_id"], f"{row['run_id']}  {status.describe(row['overrides'])}"
    if record.read_result(home):
        print(f"{label}: finished before")
        return 0
    start_jax(args)
    import jax

    from bigmodel.run import processes
    from bigmodel.run import session as trainer

    os.environ[claims.AS_JOB] = "1"
    plan = folder / "plan.jsonl"
    cfg = config.without_code(from_json(json.dumps(row["config"]), str(plan)), plan, overrides)
    config.override_all(cfg, overrides)
    alone = jax.process_count() == 1
    try:
        result, trained = trainer.attempt(from_json(to_json(cfg)), str(folder), name=label, group=folder.name)
    except (Retry, errors.Unavailable) as e:
        print(f"bigmodel: {e}", file=sys.stderr)
        code = EXIT_RETRY
    except Exception as e:
        mistake = isinstance(e, UsageError)
        code = EXIT_RETRY if processes.is_peers_death(e) else 1
        if mistake and code == 1 and overrides:  # perhaps of this command, and not of the row
            raise
        text = (str(e) if mistake else f"{type(e).__name__}: {e}").splitlines()[0]
        print(f"bigmodel: {label}: {text}", file=sys.stderr)
        if code == 1 and jax.process_index() == 0:
            record.fail(home, text)
    else:
        code = 0
        if jax.process_index() == 0:
            loss = "diverged" if result["status"] == "diverged" else f"loss {result['loss']:.4f}"
            print(f"{label}: {loss}{'' if trained else ', finished by another'}")
    if code and not alone:
        processes.leave(code)
    return code


def sweep(args: argparse.Namespace, overrides: Any) -> int:
    errors.choose("sweep", args.action, ["plan", "run", "status"])
    if not 1 <= args.workers <= 1024:
        raise UsageError(f"--workers={args.workers}: must be at least 1, and at most 1,024")
    if args.action == "status":
        return _sweep_status(args)
    start_jax(args)
    from bigmodel.study import sweep as sweeps
    from bigmodel.study import workers
    from bigmodel.study.status import describe, folder_of
    from bigmodel.words import duration, human

    folder = folder_of(args.file, args.runs)
    gc.disable()  # counting a model makes many short-lived objects; collecting amid them costs a tenth of a plan
    plan = sweeps.make_plan(args.file, overrides, args.runs)
    gc.enable()
    seconds = sweeps.expected_seconds(plan, folder)
    worker = args.first > 0 or os.environ.get("BIGMODEL_WORKER")
    if not worker:
        adds = args.action == "run" or args.write
        known = set() if adds else {row["run_id"] for row in sweeps.stored_plan(folder, args.file)}
        if adds or not known:
            sweeps.write_plan(folder, plan, args.file, overrides)
        elif new := sum(p.run_id not in known for p in plan):
            errors.note(
                f"{folder}/plan.jsonl stays as it is: {new} of these {len(plan)} rows aren't in it; "
                "`bigmodel sweep run`, or `sweep plan --write`, adds them"
            )
        if args.json:
            print_json([{**p.to_dict(), "expected_seconds": s} for p, s in zip(plan, seconds, strict=True)])
        else:
            unit = plan[0].budget.unit
            head = ["run", "row", "N", f"D ({unit})", "C (FLOPs)", "steps", "epochs", "memory", "expected"]
            body = [
                [
                    p.run_id,
                    describe(p.overrides),
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
            print_table(head, body)
            left = sum(
                s for p, s in zip(plan, seconds, strict=True) if not (folder / p.run_id / "result.json").exists()
            )
            few = sum(p.budget.steps < FEW_STEPS for p in plan)
            if few:
                errors.note(
                    f"{few} of {len(plan)} rows have fewer than {FEW_STEPS} steps, so that their losses tell of the "
                    "start more than of the size: take a smaller train.batch_size, or a longer horizon"
                )
            total = sum(p.budget.flops for p in plan)
            print(f"{len(plan)} runs, {total:.2e} FLOPs; about {duration(left)} to go on this machine")
    if args.action == "plan":
        return 0
    if args.workers > 1:
        if args.workers > len(plan):
            errors.note(f"--workers={args.workers}: {len(plan)} are enough for {len(plan)} rows")
            args.workers = len(plan)
        return _sweep_workers(args, overrides, folder, [p.run_id for p in plan])
    tally = workers.run(args.file, plan, folder, retry_failed=args.retry_failed, first=args.first, say=_say)
    if not args.json:
        print(f"{folder}: " + ", ".join(f"{n} {what}" for what, n in tally.items() if n))
    if tally["busy"] and not worker:  # a worker's sibling goes through the others
        raise Retry(f"{tally['busy']} of {len(plan)} rows run elsewhere; the same command continues")
    return 1 if tally["failed"] else 0


def _say(line: str) -> None:
    print(line, flush=True)


def _sweep_workers(args: argparse.Namespace, overrides: Any, folder: Any, ids: list[str]) -> int:
    from bigmodel.study import workers
    from bigmodel.study.status import state_of, status

    os.environ["BIGMODEL_WORKER"] = "1"
    command = ["sweep", "run", args.file, f"--runs={args.runs}", *(f"--config.{k}={v}" for k, v in overrides)]
    command += ["--retry-failed"] if args.retry_failed else []
    command += [f"--host-devices={args.host_devices}"] if args.host_devices else []
    from rich.live import Live

    with Live(refresh_per_second=2, transient=not sys.stdout.isatty()) as live:
        codes = workers.run_workers(
            command, args.workers, folder, len(ids), lambda: live.update(_rich_status(status(folder)))
        )
    states = [state_of(folder / run_id)["state"] for run_id in ids]  # the plan may have rows of other flags beside them
    print(f"{folder}: " + ", ".join(f"{states.count(s)} {s}" for s in dict.fromkeys(states)))
    left = sum(s not in ("done", "diverged", "failed") for s in states)
    logs = workers.worker_logs(folder)
    if left and ("running" in states or any(code < 0 or code == EXIT_RETRY for code in codes)):
        raise Retry(f"{left} of {len(states)} rows remain; see {logs}/; the same command continues")
    if left:
        print(f"bigmodel: {left} of {len(states)} rows remain: a worker failed; see {logs}/", file=sys.stderr)
    return 1 if left or "failed" in states else 0


def _status_cells(row: dict[str, Any]) -> list[str]:
    from bigmodel.study.status import describe
    from bigmodel.words import human

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
    from bigmodel.study.status import folder_of, status

    rows = status(folder_of(args.file, args.runs))
    if args.json:
        print_json([{k: v for k, v in row.items() if k != "config"} for row in rows])
        return 0

    def counted(some: list[dict[str, Any]]) -> str:
        states = [row["state"] for row in some]
        return f"{len(some)} runs: " + ", ".join(f"{states.count(s)} {s}" for s in dict.fromkeys(states))

    now, old = ([row for row in rows if bool(row.get("superseded")) == earlier] for earlier in (False, True))
    print_table(STATUS_HEAD, [_status_cells(row) for row in now])
    print(counted(now))
    if old:
        print(f"of earlier versions of the sweep, which fits leave out (--earlier takes them): {counted(old)}")
    return 0


def count(args: argparse.Namespace, overrides: Any) -> int:
    from bigmodel import models
    from bigmodel.run import budget

    if args.model == "list":
        names = [name for f in models.names() for name in models.family(f).PUBLISHED]
        print_json(names) if args.json else print("\n".join(names))
        return 0
    if bool(args.model) == bool(args.config):
        raise UsageError("count: give a published name (`bigmodel count list`) or --config=experiments/NAME.py")
    if args.config:
        frozen = budget.finalize(config.load(args.config, overrides))
        name, family_name, model = args.config, frozen.family, frozen.model
        source = note = ""
    else:
        name = args.model
        family_name, row = models.published(name)
        source, note = row["source"], row.get("note", "")
        section = config.ConfigDict({"model": models.family(family_name).get_config()})
        section.model.update(row["model"])
        config.override_all(section, overrides)
        models.family(family_name).finalize(section.model)
        model = section.model
    numbers = {
        "name": name,
        "family": family_name,
        "source": source,
        "note": note,
        **budget.describe(family_name, model),
    }
    if args.json:
        print_json(numbers)
    else:
        for line in budget.describe_text(numbers):
            print(line)
    return 0


def coordcheck(args: argparse.Namespace, overrides: Any) -> int:
    import json

    import pandas as pd

    from bigmodel.laws.figures import transfer

    if bool(args.widths) == bool(args.depths):
        raise UsageError("coordcheck: give --widths=W,W,... or --depths=N,N,...")
    axis, text = ("width", args.widths) if args.widths else ("depth", args.depths)
    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError as e:
        raise UsageError(f"--{axis}s={text}: expected whole numbers separated by commas") from e
    unfrozen = config.load(args.config, overrides)
    start_jax(args)
    from bigmodel.after import coordcheck as check

    say = (lambda line: None) if args.json else _say
    names = args.parametrization.split(",")
    rows = check.measure(unfrozen, axis, sizes, names, args.steps, args.seeds, say)
    slopes = check.slopes(rows)
    out = Path(args.out)
    with files.writing(out):
        out.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(rows).to_csv(out / "coords.csv", index=False)
        (out / "slopes.json").write_text(json.dumps(slopes, indent=1) + "\n")
        figure = transfer.write(transfer.coordinates, out / "coords", rows)
    if args.json:
        print_json(slopes)
    else:
        head = ["parametrization", "module", f"slope of rms in {axis}", "slope of change", "ok"]
        body = [
            [s["parametrization"], s["module"], f"{s['rms']:+.3f}", f"{s['change']:+.3f}", "yes" if s["ok"] else "NO"]
            for s in slopes
        ]
        print_table(head, body)
        print(f"figure: {figure}")
    return 0 if all(s["ok"] for s in slopes if s["parametrization"] == names[-1]) else 1
