"""Plan, run or inspect all runs of a sweep file.

  bigmodel sweep plan FILE      shows N, D, FLOPs, steps, memory and expected time of every run, and what isoFLOP sizes
                                that are off-centre, uneven or wide would cost (about D/N = 20, or --law's optimum)
  bigmodel sweep run FILE       trains the runs that are missing; it can be killed and repeated at any time
  bigmodel sweep status FILE    counts runs: done, running, interrupted, failed, pending; reads files only

Runs are stored in RUNS/<name of the file>/. Its plan.jsonl lists them; `run` and `plan --write` add rows to it. Rows
that the file no longer defines are superseded: their runs stay, and fits leave them out. --config.SECTION.KEY=VALUE
overrides an option in every row.

Examples:
  bigmodel sweep plan sweeps/digits.py
  bigmodel sweep run sweeps/digits.py --workers=2
"""

import argparse
import gc
import os
import sys
from typing import Any

from bigmodel import cli, config, errors
from bigmodel.errors import EXIT_RETRY, Retry

CONFIGURED, CLOUD = True, ("file", "runs")
FEW_STEPS = 100  # of a row of a sweep
STATUS_HEAD = ["run", "row", "N", "D", "state", "step", "loss"]


def arguments(parser: cli.Parser) -> None:
    parser.add_argument("action", help="plan, run or status")
    parser.add_argument("file", help="a file with CONFIG and get_sweep(); for status also its folder of runs")
    parser.add_argument("--runs", default="runs", help="folder of runs, local or gs://")
    parser.add_argument("--workers", type=int, default=1, help="processes that share the rows")
    parser.add_argument("--retry-failed", action="store_true", help="run: also train rows that failed before")
    parser.add_argument("--write", action="store_true", help="plan: add the rows to plan.jsonl")
    parser.add_argument("--law", default="", metavar="FIT.JSON", help="plan: an earlier fit, for isoFLOP sizes")
    parser.add_argument("--first", type=int, default=0, help=argparse.SUPPRESS)  # the row that a worker begins with
    cli.device_arguments(parser)


def run(args: cli.Args, overrides: cli.Overrides) -> int:
    errors.choose("sweep", args.action, ["plan", "run", "status"])
    errors.check_ranges("--", args, workers="[1, 1024]")
    if args.action != "status":
        args.file = str(config.built_in(args.file, "sweeps"))
    if args.action == "status":
        return _status(args)
    if args.law and args.action == "run":
        raise errors.UsageError("sweep run: --law is for `sweep plan`")
    cli.start_jax(args)
    from bigmodel.study import sweep as sweeps
    from bigmodel.study import workers
    from bigmodel.study.status import folder_of

    folder = folder_of(args.file, args.runs)
    gc.disable()  # counting a model makes many short-lived objects, and collecting them takes a tenth of a plan's time
    plan = sweeps.make_plan(args.file, overrides, args.runs)
    gc.enable()
    faults = _isoflop_faults(args, plan) if args.action == "plan" else []
    is_worker = args.first > 0 or os.environ.get("BIGMODEL_WORKER")
    if not is_worker:
        _store_plan(args, overrides, folder, plan)
        _show_plan(args, folder, plan)
    if args.action == "plan":
        for line in faults:
            errors.note(line)
        return 0
    if args.workers > 1:
        return _run_workers(args, overrides, folder, [p.run_id for p in plan])

    def say(line: str) -> None:
        print(line, flush=True)

    tally = workers.run(args.file, plan, folder, retry_failed=args.retry_failed, first=args.first, say=say)
    if not args.json:
        print(f"{folder}: " + ", ".join(f"{n} {what}" for what, n in tally.items() if n))
    if tally["busy"] and not is_worker:  # a worker's sibling goes through the others
        raise Retry(f"{tally['busy']} of {len(plan)} rows run elsewhere; the same command continues")
    return 1 if tally["failed"] else 0


def _store_plan(args: cli.Args, overrides: cli.Overrides, folder: Any, plan: Any) -> None:
    from bigmodel.study import sweep as sweeps

    adds = args.action == "run" or args.write
    known = set() if adds else {row["run_id"] for row in sweeps.stored_plan(folder, args.file)}
    if adds or not known:
        sweeps.write_plan(folder, plan, args.file, overrides)
    elif new := sum(p.run_id not in known for p in plan):
        errors.note(
            f"{folder}/plan.jsonl is not changed: it lacks {new} of these {len(plan)} rows; "
            "`bigmodel sweep run` or `sweep plan --write` adds them"
        )


def _show_plan(args: cli.Args, folder: Any, plan: Any) -> None:
    from etils import epath

    from bigmodel.run import objects
    from bigmodel.study import sweep as sweeps
    from bigmodel.study.status import describe
    from bigmodel.words import duration, human

    folder = epath.Path(objects.local(folder))
    seconds = sweeps.expected_seconds(plan, folder)
    if args.json:
        cli.print_json([{**p.to_dict(), "expected_seconds": s} for p, s in zip(plan, seconds, strict=True)])
        return
    rows, left = [], 0.0
    for p, expected in zip(plan, seconds, strict=True):
        b = p.budget
        done = (folder / p.run_id / "result.json").exists()
        left += 0.0 if done else expected
        size = [human(b.params), human(b.tokens), f"{b.flops:.2e}", f"{b.steps:,}", f"{b.epochs:.2f}"]
        need = [f"{human(b.state_bytes)}B", "done" if done else duration(expected)]
        rows.append([p.run_id, describe(p.overrides), *size, *need])
    unit = plan[0].budget.unit
    head = ["run", "row", "N", f"D ({unit})", "C (FLOPs)", "steps", "epochs", "memory", "expected"]
    print(cli.table(head, rows))
    if few := sum(p.budget.steps < FEW_STEPS for p in plan):
        errors.note(
            f"{few} of {len(plan)} rows have fewer than {FEW_STEPS} steps: their losses depend more on the "
            "initialization than on the size; use a smaller train.batch_size or a longer horizon"
        )
    total = sum(p.budget.flops for p in plan)
    print(f"{len(plan)} runs, {total:.2e} FLOPs; about {duration(left)} to go on this machine")


def _isoflop_faults(args: cli.Args, plan: Any) -> list[str]:
    """What is wrong with the sizes of each family's isoFLOP budgets, by --law's optimum where it is given."""
    import pandas as pd

    from bigmodel.laws import doctor, fitted

    fit: Any = fitted.read(args.law) if args.law else None
    optimum = (lambda c: fit.law.optimum(fit.result["params"], c)) if fit else None
    count = "params" if not fit or fit.count == "total" else f"params_{fit.count}"
    rows = [(p.config.family, getattr(p.budget, count), p.budget.tokens, p.budget.flops) for p in plan]
    runs = pd.DataFrame(rows, columns=["family", *"NDC"]).astype(dict.fromkeys("NDC", float))
    return [line for _, own in runs.groupby("family", sort=False) for line in doctor.before(own, optimum)]


def _run_workers(args: cli.Args, overrides: cli.Overrides, folder: Any, ids: list[str]) -> int:
    from rich.live import Live
    from rich.text import Text

    from bigmodel.study import workers
    from bigmodel.study.status import state_of, status

    most = min(args.workers, len(ids))
    if most < args.workers:
        errors.note(f"--workers={args.workers}: {most} are enough for {len(ids)} rows")
    os.environ["BIGMODEL_WORKER"] = "1"
    command = ["sweep", "run", args.file, f"--runs={args.runs}", *(f"--config.{k}={v}" for k, v in overrides)]
    command += ["--retry-failed"] if args.retry_failed else []
    command += [f"--host-devices={args.host_devices}"] if args.host_devices else []
    with Live(refresh_per_second=2, transient=not sys.stdout.isatty()) as live:

        def watch() -> None:
            live.update(Text(cli.table(STATUS_HEAD, [_status_cells(row) for row in status(folder)]), no_wrap=True))

        codes = workers.run_workers(command, most, folder, len(ids), watch)
    states = [state_of(folder / run_id)["state"] for run_id in ids]  # the plan may have rows of other flags too
    print(f"{folder}: {_counted(states)}")
    left = sum(s not in ("done", "diverged", "failed") for s in states)
    logs = workers.worker_logs(folder)
    if left and ("running" in states or any(code < 0 or code == EXIT_RETRY for code in codes)):
        raise Retry(f"{left} of {len(states)} rows remain; see {logs}/; the same command continues")
    if left:
        print(f"bigmodel: {left} of {len(states)} rows remain: a worker failed; see {logs}/", file=sys.stderr)
    return 1 if left or "failed" in states else 0


def _counted(states: list[str]) -> str:
    return ", ".join(f"{states.count(s)} {s}" for s in dict.fromkeys(states))


def _status_cells(row: dict[str, Any]) -> list[str]:
    from bigmodel.study.status import describe
    from bigmodel.words import human

    result, last = row.get("result") or {}, row.get("last") or {}
    step = result["steps"] if result else last.get("step", 0)
    loss = result.get("loss") or last.get("loss")
    size = [human(row["params"]), human(row["tokens"])]
    shown = f"{loss:.4f}" if loss else row.get("error", "")
    return [row["run_id"], describe(row["overrides"]), *size, row["state"], f"{step}/{row['steps']}", shown]


def _status(args: cli.Args) -> int:
    from bigmodel.study.status import folder_of, status

    rows = status(folder_of(args.file, args.runs))
    if args.json:
        cli.print_json([{k: v for k, v in row.items() if k != "config"} for row in rows])
        return 0
    now = [row for row in rows if not row.get("superseded")]
    old = [row["state"] for row in rows if row.get("superseded")]
    print(cli.table(STATUS_HEAD, [_status_cells(row) for row in now]))
    print(f"{len(now)} runs: {_counted([row['state'] for row in now])}")
    if old:
        print(
            "earlier versions of the sweep, which fits leave out (--earlier includes them): "
            f"{len(old)} runs: {_counted(old)}"
        )
    return 0
