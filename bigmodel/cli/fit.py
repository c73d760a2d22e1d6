"""Fit a scaling law to the runs of a sweep or to a table of points.

The fit minimizes a Huber loss on log L from a grid of starts. Intervals come from a bootstrap over runs: rows with the
same run (run_id, name ... or --run=COLUMN), such as its checkpoints, are resampled together. The error is measured on
the runs of the 1, 2 and 3 largest compute rungs, which a refit leaves out. Laws:

  loss from N and D     chinchilla, gadre, kaplan_nd, farseer, muennighoff (also U unique tokens), kaplan_ns (N, S
                        steps), width_depth (width, depth, D)
  loss from one column  power:x=C, henighan:x=C, zhai:x=C, bansal:x=D, m4:x=D,chance=1, bnsl:x=D,breaks=1,
                        sovit:x=width,t=C
  mixtures of experts   clark (N, experts), krajewski (N, D, G granularity), abnar (N, D, active)
  other ways to train   frantar (N, D, density), parallel (N, P), precision (N, D, P_w, P_a, P_kv), distillation (N, D,
                        L_T, L_S), mixture:r=web+code (shares), annealing (S1, S2)
  best N and D from C   isoflop (also corrected for the parabolas' bias), envelope (approaches 2 and 1 of Hoffmann et
                        al.)
  other targets         learning_rate, horizon (lr), batch_size, critical_batch (batch), downstream (accuracy),
                        task_error (error), quantization (degradation), tao (L_u of N, V, D; --residuals=linear)
  your own              --law=my_law.py, a file with PARAMETERS and form(params, row)
  the best of several   auto, chosen among gadre, chinchilla, farseer and kaplan_nd by held-out errors at growing gaps;
                        average, the average of those that tie with it

Examples:
  bigmodel fit runs/demo --out=fit.json
  bigmodel fit points.csv --N=params --D=tokens --L=loss --law=auto --report=out
"""

import json
import os
from pathlib import Path
from typing import Any

from bigmodel import cli
from bigmodel.errors import UsageError
from bigmodel.files import sealed, writing

# Options that `rows.load` and `fit.fit` take under the same names.
OF_ROWS = ("drop_highest", "count", "flops", "where", "run", "drop", "earlier")
OF_FIT = ("law", "delta", "bootstrap", "seed", "holdout", "estimator", "above", "residuals", "against")

QUICK = {"bootstrap": 100, "holdout": 1}  # at most, with --quick


def arguments(parser: cli.Parser) -> None:
    add = parser.add_argument
    add(
        "points",
        help="a sweep's folder (or gs://, s3://), or a table: .csv, .tsv, .json, .jsonl, .parquet, an export of W&B",
    )
    add("--law", default="chinchilla", help="a law named above, or a .py file")
    add(
        "--against",
        action="append",
        default=[],
        metavar="LAW",
        help="a rival, ranked with it by held-out errors; repeatable",
    )
    add("--out", metavar="FIT.JSON", help="write the fit here")
    add("--report", metavar="FOLDER", help="write a page with figures and tables here, as `bigmodel report` does")
    for name, meaning in (("N", "parameters"), ("D", "tokens"), ("L", "loss"), ("C", "FLOPs")):
        add(f"--{name}", metavar="COLUMN", help=f"column of {meaning}")
    add("--columns", default="", metavar="NAME=COLUMN,...", help="other columns of a law, e.g. U=unique_tokens")
    add("--where", default="", metavar="COLUMN=VALUE,...", help="only the runs with these values")
    add("--drop", default="", metavar="ROW,...", help="leave out rows, by row number in the table or by run id")
    add("--run", default="", metavar="COLUMN", help="column that identifies the run of a row; none: each row is a run")
    add("--earlier", action="store_true", help="include runs of earlier versions of the sweep")
    add("--count", default="", choices=["total", "nonembedding", "kaplan"], help="which parameters N counts")
    add("--flops", default="", choices=["exact", "6nd"], help="C: counted from the modules, or 6 N D")
    add("--delta", type=float, default=1e-3, help="threshold of the Huber loss, on log L")
    add("--residuals", default="log", choices=["log", "linear"], help="linear: of the target itself, in its own unit")
    add("--estimator", default="huber", choices=["huber", "likelihood"], help="likelihood: with a free scale")
    add("--above", type=float, default=1.0, help="weight of runs above the law; below 1 if some may be badly tuned")
    add("--bootstrap", type=int, default=1000, help="number of resamples")
    add("--budgets", default="", metavar="C,C,...", help="isoflop: its budgets, if the runs' C have no gaps")
    add("--holdout", type=int, default=3, help="number of largest compute rungs to hold out")
    add("--drop-highest", type=int, default=0, metavar="K", help="leave out the K points of highest loss")
    add("--quick", action="store_true", help=f"at most {QUICK['bootstrap']} resamples and one rung held out")
    add("--seed", type=int, default=0, help="seed of the bootstrap")


CLOUD = ("points",)


def run(args: cli.Args, _: cli.Overrides) -> int:
    args.points = cli.local(args.points)
    cli.check_exists(Path(args.points))
    cli.progress(f"reading {args.points}")
    try:
        out, text = _fit(args)
    finally:
        cli.progress("")
    cli.print_json(out) if args.json else print(text)
    return 0


def _fit(args: cli.Args) -> tuple[dict[str, Any], str]:
    """(the fit as JSON, as text), after all files were written."""
    from bigmodel.laws import fit, frontier, rows, sources, texts

    options = vars(args)
    columns = {k: options[k] for k in ("N", "D", "L", "C") if options[k]} | sources.pairs("--columns", args.columns)
    if args.report and args.law in frontier.METHODS:
        raise UsageError(f"fit: {args.law} has no loss to draw; --report of a law of N and D shows {args.law} too")
    target, needed, signed = columns_of(args.law, args.against)
    budgets = _budgets(args.budgets)
    for path, is_folder in ((args.out, False), (args.report, True)):
        if path:
            _check_writable(Path(path), is_folder)
    reading = {k: options[k] for k in OF_ROWS}
    frame = rows.load(args.points, columns, target=target, needed=needed, signed=signed, **reading)
    of_fit = {k: options[k] for k in OF_FIT}
    if args.quick:
        of_fit |= {k: min(most, options[k]) for k, most in QUICK.items()}
    result = fit.fit(frame, budgets=budgets, say=cli.progress, **of_fit)
    if args.quick:
        result["warnings"].insert(0, "--quick: few resamples and held-out rungs; intervals and errors are rough")
    out = fit.to_json(result)
    if args.out:
        with writing(args.out):
            Path(args.out).parent.mkdir(parents=True, exist_ok=True)
            Path(args.out).write_text(json.dumps(sealed(out), indent=1) + "\n")
    if args.report:
        from bigmodel.laws import report  # Matplotlib takes a second to import

        cli.progress("drawing the report")
        with writing(args.report):
            frontiers = report.frontiers(frame, result)
            report.write(frame, result, args.report, Path(args.points).stem, args.command, frontiers=frontiers)
    return out, texts.law_text(result)


def columns_of(law: str, against: list[str]) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """(the column that a law predicts, those that the law and its rivals read, those that may have either sign)"""
    from bigmodel.laws import choice, forms, frontier

    if law in frontier.METHODS:
        return "L", ("N", "D"), ()
    models = [forms.get(name) for name in (*(choice.CANDIDATES if law in choice.RULES else [law]), *against)]
    needed = tuple(dict.fromkeys(c for model in models for c in model.columns))
    return models[0].target, needed, tuple(c for model in models for c in model.any_sign)


def _budgets(text: str) -> list[float] | None:
    try:
        found = [float(part) for part in text.split(",") if part]
    except ValueError:
        found = [0.0]
    if not all(0 < c < 1e300 for c in found):
        raise UsageError(f"--budgets={text!r}: expected FLOPs, e.g. 1e19,3e19,1e20")
    return found or None


def _check_writable(path: Path, is_folder: bool) -> None:
    """Raises UsageError before a fit that may take minutes; writes nothing."""
    there = next(p for p in (path, *path.absolute().parents) if p.exists())
    if there == path and path.is_dir() != is_folder:
        raise UsageError(f"can't write {str(path)!r}: it is a {'folder' if path.is_dir() else 'file'}")
    if (there != path and not there.is_dir()) or not os.access(there, os.W_OK):
        raise UsageError(f"can't write {str(path)!r}: {str(there)!r} is not a folder that can be written to")
