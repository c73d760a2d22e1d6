"""Train one planned run of a sweep to its end, as an engine calls it.

An engine starts this command in every process of a run, and repeats it until it succeeds. A finished run returns at
once; an interrupted one continues from its last checkpoint. The processes of a run find each other through the
variables of Slurm, Cloud TPU or SkyPilot, or through --coordinator.

Exit codes: 0 finished; 75, 134 or a signal: start it again; 1 the run can't be trained, and error.json says why.

Examples:
  bigmodel worker runs/demo --run=0123456789ab
  bigmodel worker runs/demo --run=0123456789ab --coordinator=10.0.0.1:8476 --processes=2 --process=0
"""

import argparse
import json
import os
import sys
from typing import Any

from bigmodel import cli, config, errors, files
from bigmodel.errors import EXIT_RETRY, Retry, UsageError

CONFIGURED, CLOUD = True, ("folder",)


def arguments(parser: cli.Parser) -> None:
    parser.add_argument("folder", help="the sweep's folder of runs, which has a plan.jsonl")
    parser.add_argument("--run", default="", metavar="ID", help="run id of a row of the plan")
    parser.add_argument("--index", type=int, default=-1, help=argparse.SUPPRESS)  # used by scripts of earlier versions
    cli.device_arguments(parser)
    cli.process_arguments(parser)


def run(args: cli.Args, overrides: cli.Overrides) -> int:
    for key, _ in overrides:
        if not key.startswith("run."):
            raise UsageError(f"worker: --config.{key} would make another row; only --config.run.KEY=VALUE is allowed")
    from bigmodel.run import record
    from bigmodel.study import status

    folder = status.folder_of(args.folder, "runs")
    row = _row(args, folder)
    label = f"{row['run_id']}  {status.describe(row['overrides'])}"
    if record.read_result(folder / row["run_id"]):
        print(f"{label}: finished before")
        return 0
    cli.start_jax(args)
    plan = folder / "plan.jsonl"
    cfg = config.without_code(config.from_json(json.dumps(row["config"]), str(plan)), plan, overrides)
    config.override_all(cfg, overrides)
    return _train(config.from_json(config.to_json(cfg)), folder, row, label, bool(overrides))


def _row(args: cli.Args, folder: Any) -> dict[str, Any]:
    from bigmodel import launch

    task = os.environ.get("SLURM_ARRAY_TASK_ID", "")
    if args.run or args.index >= 0:
        return launch.row_of(folder, args.run, args.index)
    if task.isdecimal():
        return launch.row_of(folder, index=int(task))
    raise UsageError(f"worker: give --run=ID, a run id that `bigmodel sweep status {args.folder}` shows")


def _train(cfg: Any, folder: Any, row: dict[str, Any], label: str, overridden: bool) -> int:
    """The exit code of a row's training, whose errors are printed and, if they are final, recorded."""
    import jax

    from bigmodel.run import claims, processes, record, session
    from bigmodel.study import derived

    os.environ[claims.AS_JOB] = "1"
    alone = jax.process_count() == 1
    try:
        if jax.process_index() == 0:
            derived.make(row["overrides"], folder, cfg.run.data_dir)
        processes.agree(0)  # the others wait for the data
        result, trained = session.attempt(cfg, str(folder), name=label, group=folder.name)
    except (Retry, errors.Unavailable) as e:
        print(f"bigmodel: {e}", file=sys.stderr)
        code = EXIT_RETRY
    except Exception as e:
        mistake = isinstance(e, UsageError)
        code = EXIT_RETRY if processes.is_peers_death(e) or files.of_store(e) else 1
        if mistake and code == 1 and overridden:  # the mistake may be in this command and not in the row
            raise
        text = (str(e) if mistake else f"{type(e).__name__}: {e}").splitlines()[0]
        print(f"bigmodel: {label}: {text}", file=sys.stderr)
        if code == 1 and jax.process_index() == 0:
            record.fail(folder / row["run_id"], text)
    else:
        code = 0
        if jax.process_index() == 0:
            loss = "diverged" if result["status"] == "diverged" else f"loss {result['loss']:.4f}"
            print(f"{label}: {loss}{'' if trained else ', finished by another process'}")
    if code and not alone:
        processes.leave(code)
    return code
