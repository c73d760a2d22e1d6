"""Forecast the loss of a run before it starts, and score it afterwards.

  bigmodel forecast seal FOLDER     writes the next forecast: law, interval, commit, date; of a run that is new
  bigmodel forecast score FOLDER    finds the runs that have finished, and writes what came out beside each forecast
  bigmodel forecast page FOLDER     writes a page: all forecasts, how many came true, errors against the gap
  bigmodel forecast verify FOLDER   checks that no forecast was edited, removed, moved or dated back

Each forecast holds the SHA-256 of the one before it. The newest's is printed: commit the folder before the run starts,
or publish the number, and check it with --last. Forecasts are of a run's last evaluation; where the fitted runs have
several points each, of the ends of WSD branches too, or of the evaluations (run.eval_every) of a constant rate.

Examples:
  bigmodel forecast seal forecasts --law=fit.json --config=experiments/gpt.py --config.model.width=128
  bigmodel forecast score forecasts --runs=runs
  bigmodel forecast page forecasts
"""

import hashlib
import json
from pathlib import Path

from bigmodel import __version__, cli, errors
from bigmodel.errors import UsageError

CONFIGURED = True
OF_LAW = ("law", "params", "samples", "range", "n_runs", "n_points", "holdout")  # of a fit.json, kept in a forecast
OF_RUN = ("status", "date", "device", "wall_seconds", "git_sha", "git_dirty")  # of a result.json, kept in a score


def arguments(parser: cli.Parser) -> None:
    add = parser.add_argument
    add("action", help="seal, score, page or verify")
    add("folder", help="folder of forecasts")
    add("--law", default="", metavar="FIT.JSON", help="seal: a file that `bigmodel fit --out=` wrote")
    add("--form", default="", metavar="FILE.py", help="seal: for a law of your own: its file")
    add("--config", default="", metavar="FILE[:VARIANT]", help="seal: the experiment of the run")
    add("--runs", default="runs", help="seal, score: folder of runs, or of sweeps")
    add("--out", default="", metavar="FOLDER", help="page: folder to write (default: FOLDER/page)")
    add("--last", default="", metavar="SHA256", help="verify: of the newest forecast, as it was published")


def run(args: cli.Args, overrides: cli.Overrides) -> int:
    errors.choose("forecast", args.action, ["seal", "score", "page", "verify"])
    if args.action == "seal":
        return _seal(args, overrides)
    if overrides:
        key = overrides[0][0]
        raise UsageError(f"forecast {args.action} takes no --config.{key}: the forecasts say which run it is")
    folder = Path(args.folder)
    cli.check_exists(folder, "folder")
    from bigmodel.laws import forecast
    from bigmodel.run import record

    now = record.now()
    if args.action == "verify":
        broken, paths = forecast.verify(folder, now, args.last), forecast.paths(folder)
        last = forecast.digest(paths[-1]) if paths else ""
        text = f"broken: {broken}" if broken else f"{len(paths)} forecasts, the chain is whole; the newest: {last}"
        cli.print_json({"broken": broken, "forecasts": len(paths), "last": last}) if args.json else print(text)
        return 1 if broken else 0
    if args.action == "score":
        _score(args.runs, folder, now)
        found, where = forecast.calibration(forecast.load(folder, now)), ""
    else:
        out = Path(args.out or folder / "page")
        found, where = forecast.page(folder, out, now, args.command), str(out / "index.html")
    rows = forecast.table(found)
    text = "\n".join([cli.table(list(rows), rows.to_numpy().tolist()), forecast.summary(found), where])
    cli.print_json(found) if args.json else print(text.strip())
    return 0


def _find(runs: str, run_id: str) -> Path | None:
    """A run's folder, where something of it was recorded: in `runs`, or in a sweep's folder there."""
    homes = [home for pattern in (run_id, f"*/{run_id}") for home in sorted(Path(runs).glob(pattern))]
    marks = ("result.json", "metrics.jsonl", "attempts.jsonl")
    return next((home for home in homes if any((home / name).exists() for name in marks)), None)


def _score(runs: str, folder: Path, now: str) -> None:
    """Scores the forecasts of runs that have finished. UsageError: one is of another size; none is scored then."""
    from bigmodel.laws import forecast
    from bigmodel.run import record

    cli.check_exists(Path(runs), "folder of runs")
    finished = []
    for row in forecast.load(folder, now):
        home = _find(runs, row["run_id"])
        result = record.read_result(home) if home else None
        if home is None or result is None:
            continue
        done = result["status"] == "done"
        for key in ("params", "tokens"):
            if done and result[key] != row[key]:
                raise UsageError(f"forecast: {str(home)!r} has {key} {result[key]}, the forecast of it {row[key]}")
        attempts, metrics = (record.read_rows(home / name) for name in ("attempts.jsonl", "metrics.jsonl"))
        ended = {
            "run": result["run_id"],
            "loss": result["loss"] if done else None,
            "started": str(attempts[0].get("date", "")) if attempts else "",
            **{key: result.get(key) for key in OF_RUN},
        }
        curve = {point["step"]: point["eval_loss"] for point in metrics if "eval_loss" in point}
        curve |= {branch["branch"]: branch["loss"] for branch in result.get("branches", [])}
        finished.append((folder / row["file"], row, ended, curve))
    for each in finished:
        forecast.score(*each)


def _seal(args: cli.Args, overrides: cli.Overrides) -> int:
    if not (args.law and args.config):
        raise UsageError("forecast seal: give --law=FIT.JSON and --config=experiments/NAME.py")
    cli.check_exists(Path(args.law))
    cli.start_jax(args)
    from bigmodel import config
    from bigmodel.laws import fitted, forecast, predict
    from bigmodel.run import budget, identity, optim, record

    law = fitted.read(args.law, args.form)
    frozen = budget.finalize(config.load(args.config, overrides))
    plan, run_id = budget.derive(frozen), identity.run_id(frozen)
    if home := _find(args.runs, run_id):
        raise UsageError(f"forecast: run {run_id} exists already, at {str(home)!r}: it can't be forecast any more")
    if (law.family or frozen.family, law.unit) != (frozen.family, plan.unit):
        errors.note(f"the law is of {law.family} and {law.unit}, the run of {frozen.family} and {plan.unit}")
    n = getattr(plan, "params" if law.count == "total" else f"params_{law.count}")
    exact = "exact" in str(law.result.get("conventions"))  # else the fit took C as 6 N D
    flops = plan.flops if exact else 6.0 * n * plan.tokens
    prediction = predict.make(law, n, plan.tokens)
    if prediction["run"]["low"] is None or prediction["gap"] is None:
        raise UsageError(f"forecast: no interval to be held to: {'; '.join(prediction['warnings'])}")
    steps: list[int] = []
    if law.result.get("n_points") != law.result.get("n_runs"):
        if frozen.optim.schedule == "wsd":
            steps = list(optim.branch_steps(frozen.optim, plan.steps))
        elif frozen.optim.schedule == "constant" and frozen.run.eval_every:
            steps = list(range(frozen.run.eval_every, plan.steps, frozen.run.eval_every))
    points = [(step, step * plan.tokens // plan.steps) for step in steps]
    state = record.git_state()
    sealed = {
        "format": 1,
        "date": record.now(),
        "commit": state["git_sha"],
        "dirty": bool(state["git_diff"]),
        "version": __version__,
        "run_id": run_id,
        "config_sha256": hashlib.sha256(json.dumps(identity.hashed(frozen), sort_keys=True).encode()).hexdigest(),
        "experiment": args.config,
        "overrides": {key: str(value) for key, value in overrides},
        **{key: getattr(plan, key) for key in ("params", "tokens", "steps", "unit")},
        "count": law.count,
        **{"N": n, "D": plan.tokens, "C": flops, "gap": flops / law.range["C"][1]},
        "prediction": prediction,
        "curve": [{"step": step, "D": d, "run": predict.make(law, n, d)["run"]} for step, d in points],
        "law": {
            "path": args.law,
            "sha256": forecast.digest(Path(args.law)),
            "form_sha256": forecast.digest(Path(args.form)) if args.form else "",
            **{key: law.result.get(key) for key in OF_LAW},
        },
    }
    path = forecast.seal(Path(args.folder), sealed)
    if args.json:
        cli.print_json(sealed)
        return 0
    print(predict.text(prediction, law.unit))
    curve = f"{len(points)} points of its curve before its end"
    print(f"{path}: run {run_id}, {sealed['gap']:.3g}x the largest C fitted, {curve}")
    print(f"sealed {sealed['date']}, SHA-256 {forecast.digest(path)}: commit it before the run starts")
    return 0
