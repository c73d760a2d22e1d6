"""Fit the law of a finished sweep, and write figures, tables and a page.

Writes index.html (one self-contained page), figures as PNG, SVG and PDF, tables as Markdown and LaTeX, rows.csv, and
fit.json. If nothing has changed since the last report, it is not made again: report.key holds a hash of the runs,
options and code, and of the report's files. A sweep with a report() of its own is always made again.

Examples:
  bigmodel report sweeps/demo.py
  bigmodel report runs/demo --law=gadre --out=runs/demo/gadre
"""

import json
from pathlib import Path
from typing import Any

from bigmodel import cli, config
from bigmodel.errors import UsageError
from bigmodel.files import full_disk, writing

OF_PAGE = ("title", "command", "rows", "frontiers", "crc32")  # keys of a report's fit.json that are not of the fit


CLOUD = ("file", "runs")


def arguments(parser: cli.Parser) -> None:
    parser.add_argument("file", help="a sweep file, or a folder of runs")
    parser.add_argument("--runs", default="runs", help="folder of runs, local or in a bucket")
    text = "a law that `bigmodel fit --help` names, or a .py file (default: the sweep file's LAW, else chinchilla)"
    parser.add_argument("--law", default="", help=text)
    parser.add_argument("--earlier", action="store_true", help="include runs of earlier versions of the sweep")
    parser.add_argument("--out", help="folder to write (default: RUNS/<sweep>/report)")


def run(args: cli.Args, _: cli.Overrides) -> int:
    args.file = str(config.built_in(args.file, "sweeps"))
    is_sweep = args.file.endswith(".py")
    if is_sweep or "://" not in args.file:
        cli.check_exists(Path(args.file), "sweep file" if is_sweep else "file or directory")
    cli.progress("reading the runs")
    try:
        return _report(args, is_sweep)
    finally:
        cli.progress("")


def _report(args: cli.Args, is_sweep: bool) -> int:
    from bigmodel.laws import stored
    from bigmodel.run import view

    where = f"{args.runs.rstrip('/')}/{Path(args.file).stem}" if is_sweep else args.file
    args.bucket = where if "://" in where and not args.out else ""
    folder = Path(cli.local(where))
    results = sorted(folder.glob("*/result.json"))
    if not results:
        raise UsageError(f"no finished runs under {str(folder)!r}: `bigmodel sweep run {args.file}` first")
    out = Path(args.out or folder / "report")
    configs = [path for path in folder.glob("*/config.json") if path.is_file()]
    code = [Path(name) for name in (args.file, args.law) if name.endswith(".py")]
    mode = view.wandb_mode(_logged([path.with_name("config.json") for path in results]))
    options = {"file": args.file, "folder": str(folder), "law": args.law, "earlier": args.earlier, "wandb": mode}
    key = stored.key([*results, *configs, folder / "plan.jsonl", *code], options)
    if (text := stored.text(out, key)) is not None:
        content = json.loads((out / "fit.json").read_text(encoding="utf-8"))
        numbers = {k: v for k, v in content.items() if k not in OF_PAGE}
        return _print(args, numbers, text, out / "index.html", " (nothing changed)")

    from bigmodel.laws import frontier

    module = config.load_module(args.file, "sweep") if is_sweep else None
    law = args.law or getattr(module, "LAW", "chinchilla")
    if law in frontier.METHODS:
        raise UsageError(f"report: {law} has no loss to draw; the report of a law of N and D shows {law} too")
    if module and law is None:  # a study of something else than sizes and data
        with config.user_code(args.file, "sweep", "report()"), writing(out):
            said = module.report(folder, out)
        cli.progress("")
        report = _upload(args, out) if args.bucket else str(out)
        cli.print_json({"lines": said.split("\n"), "report": report}) if args.json else print(said)
        return 0
    title = (module.__doc__ or "").strip().split("\n")[0] if module else folder.name
    numbers, text = _write(args, law, folder, results, out, title)
    if module and hasattr(module, "report"):  # the sweep's own figures and tables, beside the common ones
        with config.user_code(args.file, "sweep", "report()"), full_disk(out):
            said = module.report(folder, out)
        text = f"{text}\n{said}" if said else text
    else:
        with writing(out):
            stored.write(out, key, text)
    wandb = view.View()
    wandb.summary(out, mode, folder.name)
    wandb.close(seconds=5.0)
    return _print(args, numbers, text, out / "index.html")


def _write(
    args: cli.Args, law: str, folder: Path, results: list[Path], out: Path, title: str
) -> tuple[dict[str, Any], str]:
    """(the fit as JSON, as text) of a report, after its files were written."""
    from bigmodel.cli.fit import columns_of
    from bigmodel.laws import fit, report, rows, sources

    target, needed, signed = columns_of(law, [])
    frame = rows.load(folder, target=target, needed=needed, earlier=args.earlier, signed=signed)
    result = fit.fit(frame, law=law, residuals="linear" if target in signed else "log", say=cli.progress)
    units = [r["unit"] for r in map(sources.read_object, results) if r and r.get("unit")]
    unit = str(units[0]) if units else "tokens"
    loss = f"Validation loss (nats/{unit.removesuffix('s')})"
    cli.progress("drawing")
    with writing(out):
        frontiers = report.frontiers(frame, result)
        report.write(frame, result, out, title, f"bigmodel report {args.file}", unit, loss, frontiers)
    return fit.to_json(result), report.law_text(result)


def _logged(configs: list[Path]) -> str:
    """How runs were logged to W&B: "online" or "offline" if any was, else "off"."""
    modes = set()
    for path in configs:
        try:
            modes.add(json.loads(path.read_text(encoding="utf-8"))["run"]["wandb"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):  # damaged, or of another program
            continue
    return "online" if "online" in modes else "offline" if "offline" in modes else "off"


def _print(args: cli.Args, numbers: dict[str, Any], text: str, page: Path, state: str = "") -> int:
    path = _upload(args, page.parent) if args.bucket else str(page)
    cli.progress("")
    if args.json:
        cli.print_json({**numbers, "report": path})
    else:
        print(f"{text}\nreport: {path}{state}")
    return 0


def _upload(args: cli.Args, out: Path) -> str:
    """Copies the report beside its runs in the bucket; returns its page there."""
    from bigmodel.run import objects

    cli.progress(f"copying the report to {args.bucket}")
    objects.opened(args.bucket).put(out, "report")
    return f"{args.bucket}/report/index.html"
