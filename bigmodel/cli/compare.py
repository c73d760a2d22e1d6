"""Compare recipes: which is better, at which scale and by how much.

A recipe is a sweep's folder or a file of points, anything that `bigmodel fit` reads; FILE:COLUMN=VALUE takes some rows
of it. The compute multiplier of B over A at C is how much more compute A needs to reach the loss that B reaches with C,
each spent on the best N and D by its fitted law. Above 1, B is better; 1.3 at 1e20 means that A needs 1.3e20 FLOPs for
what B does with 1e20. Each further recipe is compared with the first.

B is called better or worse only where a 95 % band over all scales and recipes excludes 1; otherwise there is no
verdict, and the runs that would settle it are named. Losses on different validation sets or tokenizers don't compare:
they are refused where the files show it. Seeds help, and so do runs of the same N and D in both.

Examples:
  bigmodel compare runs/adamw runs/muon
  bigmodel compare points.csv:recipe=old points.csv:recipe=new --beyond=3,10,100 --out=muon
  bigmodel compare base.csv a.csv b.csv c.csv --law=gadre --json
"""

import json
from pathlib import Path
from typing import Any

from bigmodel import cli
from bigmodel.errors import UsageError
from bigmodel.files import writing


def arguments(parser: cli.Parser) -> None:
    add = parser.add_argument
    add("points", nargs="+", metavar="POINTS", help="sweeps' folders or tables, the baseline first; FILE:COLUMN=VALUE")
    add("--law", default="", help="of L in N and D, or in C (default: chinchilla, or henighan:x=C for one curve in C)")
    add("--beyond", default="3,10", metavar="X,X,...", help="scales beyond the largest common C, as factors of it")
    add("--anyway", action="store_true", help="compare losses that are measured differently")
    add("--out", metavar="FOLDER", help="write compare.json and compare.png, .svg, .pdf here")
    for name, meaning in (("N", "parameters"), ("D", "tokens"), ("L", "loss"), ("C", "FLOPs")):
        add(f"--{name}", metavar="COLUMN", help=f"column of {meaning}")
    add("--where", default="", metavar="COLUMN=VALUE,...", help="only the runs with these values, of every input")
    add("--run", default="", metavar="COLUMN", help="column that identifies the run of a row; none: each row is a run")
    add("--count", default="", choices=["total", "nonembedding", "kaplan"], help="which parameters N counts")


def run(args: cli.Args, _: cli.Overrides) -> int:
    if len(args.points) < 2:
        raise UsageError("compare: give two or more inputs, the baseline first: bigmodel compare A B")
    inputs = [_split(text) for text in args.points]
    for path, _where in inputs:
        cli.check_exists(Path(path))
    if args.out and Path(args.out).exists() and not Path(args.out).is_dir():
        raise UsageError(f"can't write {args.out!r}: it is a file, and --out is a folder")
    from bigmodel.laws import compare

    try:
        found = _load(args, inputs)
        result = compare.compare(found, args.law, _beyond(args.beyond), cli.progress)
    finally:
        cli.progress("")
    if args.out:
        from bigmodel.laws.figures import compare as figure  # Matplotlib takes a second to import

        with writing(args.out):
            Path(args.out).mkdir(parents=True, exist_ok=True)
            (Path(args.out) / "compare.json").write_text(json.dumps(result, indent=1) + "\n")
            figure.write(result, Path(args.out))
    cli.print_json(result) if args.json else print(compare.text(result))
    return 0


def _split(text: str) -> tuple[str, str]:
    """(path, filter) of PATH[:COLUMN=VALUE,...]."""
    path, colon, where = text.rpartition(":")
    return (path, where) if colon and "=" in where and not Path(text).exists() else (text, "")


def _beyond(text: str) -> list[float]:
    try:
        found = [float(part) for part in text.split(",") if part]
    except ValueError:
        found = [0.0]
    if not all(1 < x <= 1e6 for x in found):
        raise UsageError(f"--beyond={text!r}: expected factors above 1, e.g. 3,10,100")
    return sorted(set(found))


def _load(args: cli.Args, inputs: list[tuple[str, str]]) -> dict[str, Any]:
    """Name -> rows of each input; UsageError where their losses are measured differently."""
    from bigmodel.laws import compare, forms, rows, sources

    columns = {k: getattr(args, k) for k in ("N", "D", "L", "C") if getattr(args, k)}
    stems = [f"{Path(path).stem}{':' if where else ''}{where}" for path, where in inputs]
    names = stems if len(set(stems)) == len(stems) else list(args.points)
    frames, read = {}, {}
    for i, (name, (path, where)) in enumerate(zip(names, inputs, strict=True)):
        cli.progress(f"reading {path}")
        both = ",".join(filter(None, (args.where, where)))
        options = {"count": args.count, "run": args.run, "where": both}
        name = f"{name} ({i + 1})" if name in frames else name
        try:
            wanted = forms.get(args.law).columns if args.law else ("N", "D")
            frames[name] = rows.load(path, columns, needed=wanted, **options)
        except UsageError:
            if args.law:
                raise
            try:
                frames[name] = rows.load(path, columns, needed=("C",), **options)
            except UsageError:
                rows.load(path, columns, **options)  # says what is missing of N and D
        source = sources.read(Path(path))
        sources.choose_rows(source, both)
        read[name] = (source, frames[name])
    if (different := compare.differences(read)) and not args.anyway:
        raise UsageError(
            f"compare: the losses don't compare: {' | '.join(different)}; --anyway compares them all the same"
        )
    return frames
