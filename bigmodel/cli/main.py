"""`bigmodel VERB ...`: what is said on the command line, and how a mistake ends."""

from __future__ import annotations

import argparse
import importlib.util
import os
import shlex
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from bigmodel import __version__, config, errors, files
from bigmodel.cli import texts
from bigmodel.errors import EXIT_RETRY, EXIT_USAGE, Retry, UsageError, choose, nearest

CONFIGURED = ("train", "sweep", "worker", "launch", "count", "plan", "coordcheck", "compile")  # take --config.KEY=VALUE


class Parser(argparse.ArgumentParser):
    """One line for a mistake, exit code 2, and the nearest option."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see `{self.prog} --help`")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None:
            choose(str(action.metavar or action.dest), value, action.choices)


def parser() -> Parser:
    top = Parser(prog="bigmodel", description=texts.TOP, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("--version", action="version", version=f"bigmodel {__version__}")
    verbs = top.add_subparsers(dest="verb", metavar="VERB", required=True)

    def verb(name: str, text: str) -> Parser:
        p = verbs.add_parser(
            name,
            help=text.splitlines()[0],
            description=text,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        p.add_argument("--json", action="store_true", help="print numbers as JSON")
        return p  # type: ignore[return-value]

    def devices(p: Parser) -> None:
        p.add_argument("--host-devices", type=int, default=0, metavar="K", help="make the CPU look like K devices")

    def with_config(p: Parser) -> None:
        p.add_argument("path", nargs="?", help="a config.json of an earlier run")
        p.add_argument("--config", metavar="FILE[:VARIANT]", help="a file with get_config(), as experiments/gpt.py")

    def several(p: Parser) -> None:
        p.add_argument("--coordinator", help="HOST:PORT of process 0, for several processes")
        p.add_argument("--processes", type=int, default=1)
        p.add_argument("--process", type=int, default=0)

    def topology(p: Parser, **more: Any) -> None:
        p.add_argument("--topology", default="", metavar="TPU", help="chip and shape, as v5e:4x4 or v5p:8x8x8", **more)
        p.add_argument("--slices", type=int, default=1, help="slices of that topology")

    p = verb("prepare", texts.PREPARE)
    p.add_argument("source", help="corpus name, file, folder, hf:NAME, or `list`")
    p.add_argument("--out", help="folder to write (default: data/SOURCE-TOKENIZER)")
    p.add_argument("--tokenizer", default="bytes", help="bytes, bpe (trained here), gpt2, or a tokenizer.json")
    p.add_argument("--vocab-size", type=int, default=4096, help="entries of a bpe trained here")
    p.add_argument(
        "--validation-fraction",
        type=float,
        help="of the documents (default: 0.02; tasks: 0.05 or 0.1, and as many in test)",
    )
    p.add_argument(
        "--text-key", default="text", help="key (.jsonl, .json) or column (.parquet, hf:) that holds the text"
    )
    p.add_argument("--workers", type=int, default=0, help="number of processes; 0: one per core")
    p.add_argument(
        "--verify", action="store_true", help="read every file of finished data again, and repair damaged ones"
    )

    p = verb("train", texts.TRAIN)
    with_config(p)
    p.add_argument(
        "--runs", help="folder of runs, local or gs:// (default: runs; of a run's own config.json, where that run is)"
    )
    p.add_argument("--name", default="", help="shown by W&B and the progress line")
    devices(p)
    several(p)

    p = verb("sweep", texts.SWEEP)
    p.add_argument("action", help="plan, run or status")
    p.add_argument("file", help="a file with CONFIG and get_sweep()")
    p.add_argument("--runs", default="runs")
    p.add_argument("--workers", type=int, default=1, help="processes that share the rows")
    p.add_argument("--retry-failed", action="store_true")
    p.add_argument("--write", action="store_true", help="plan: add the rows to the folder's plan.jsonl")
    p.add_argument("--first", type=int, default=0, help=argparse.SUPPRESS)
    devices(p)

    p = verb("worker", texts.WORKER)
    p.add_argument("folder", help="the sweep's folder of runs, with its plan.jsonl")
    p.add_argument("--run", default="", metavar="ID", help="run id of a row of the plan")
    p.add_argument("--index", type=int, default=-1, help=argparse.SUPPRESS)  # of scripts that earlier versions wrote
    devices(p)
    several(p)

    p = verb("launch", texts.LAUNCH)
    p.add_argument("folder", help="the sweep's folder of runs, or its sweep file")
    p.add_argument("--engine", required=True, help="local, slurm or sky")
    p.add_argument("--print", action="store_true", help="print the text; start nothing, write nothing")
    p.add_argument("--runs", default="runs")
    p.add_argument("--max", type=int, default=1, help="rows at once")
    p.add_argument("--processes", type=int, default=1, help="of a row; slurm: one a node")
    p.add_argument("--cpus", type=int, default=1, help="slurm: of a process")
    p.add_argument("--time", default="24:00:00", help="slurm: limit of a row, HH:MM:SS")
    p.add_argument("--notice", type=int, default=300, help="slurm: seconds before the limit at which rows save")
    p.add_argument("--option", action="append", default=[], metavar="TEXT", help="slurm: a line of #SBATCH; repeatable")
    p.add_argument("--bucket", default="", metavar="gs://...", help="sky: where the sweep's folder is")
    topology(p)
    devices(p)

    p = verb("upload", texts.UPLOAD)
    p.add_argument("folder", help="of `bigmodel prepare`, or of a planned sweep")
    p.add_argument("target", metavar="gs://...", help="the folder to put it into, under its own name")

    p = verb("fit", texts.FIT)
    p.add_argument("points", help="a sweep's folder, or a table: .csv, .tsv, .json, .jsonl, .parquet")
    p.add_argument("--law", default="chinchilla", help="a name above, or a .py file")
    p.add_argument(
        "--against", action="append", default=[], metavar="LAW", help="compare by held-out error; repeatable"
    )
    p.add_argument("--out", help="write fit.json here")
    p.add_argument("--report", metavar="DIR", help="write a page with figures and tables here, as `report` does")
    for name, meaning in (("N", "parameters"), ("D", "tokens"), ("L", "loss"), ("C", "FLOPs")):
        p.add_argument(f"--{name}", metavar="COLUMN", help=f"column of {meaning}")
    p.add_argument("--columns", default="", metavar="NAME=COLUMN,...", help="columns of other letters, U=unique_tokens")
    p.add_argument("--where", default="", metavar="COLUMN=VALUE,...", help="only the runs with these values")
    p.add_argument("--drop", default="", metavar="ROW,...", help="leave out rows, by number in the table or run id")
    p.add_argument("--run", default="", metavar="COLUMN", help="says which run a row is of; none: each row is a run")
    p.add_argument("--earlier", action="store_true", help="also a sweep's runs of its earlier versions")
    p.add_argument("--count", default="", choices=["total", "nonembedding", "kaplan"], help="which parameters N counts")
    p.add_argument("--flops", default="", choices=["exact", "6nd"], help="what C is: of the modules, or 6 N D")
    p.add_argument("--delta", type=float, default=1e-3, help="Huber's, on log L")
    p.add_argument(
        "--estimator", default="huber", choices=["huber", "likelihood"], help="likelihood: with a free scale"
    )
    p.add_argument("--above", type=float, default=1.0, help="weight of runs above the law; below 1: maybe badly tuned")
    p.add_argument("--bootstrap", type=int, default=1000, help="resamples")
    p.add_argument("--budgets", default="", metavar="C,C,...", help="isoflop's, where the runs' C have no gaps")
    p.add_argument("--full-grid", action="store_true", help="every resample from every start: minutes, on all cores")
    p.add_argument("--holdout", type=int, default=3, help="largest compute rungs to hold out")
    p.add_argument("--drop-highest", type=int, default=0, help="leave out the points of the K highest losses")
    p.add_argument("--seed", type=int, default=0)

    p = verb("report", texts.REPORT)
    p.add_argument("file", help="the sweep file, or a folder of runs")
    p.add_argument("--runs", default="runs")
    p.add_argument("--law", default="chinchilla")
    p.add_argument("--earlier", action="store_true", help="also the runs of earlier versions of the sweep")
    p.add_argument("--out", help="folder to write (default: RUNS/<sweep>/report)")

    p = verb("plan", texts.PLAN)
    p.add_argument("--law", default="", metavar="FIT.JSON", help="what `bigmodel fit --out=` wrote")
    p.add_argument("--form", default="", metavar="FILE.py", help="of a fit of a law of your own: that file")
    topology(p)
    p.add_argument("--flops", type=float, help="for training (with --inference-tokens: and inference)")
    p.add_argument("--params", type=float, help="N: the compute and data for which it is the best size")
    p.add_argument("--tokens", type=float, help="D: the compute and size for which it is the best amount")
    p.add_argument("--loss", type=float, help="to reach with the fewest FLOPs")
    p.add_argument("--inference-tokens", type=float, default=0.0, help="over the model's life, 2 N FLOPs each")
    p.add_argument("--max-params", type=float, default=float("inf"))
    p.add_argument("--max-tokens", type=float, default=float("inf"), help="as much data as there is")
    p.add_argument("--config", metavar="FILE[:VARIANT]", help="an experiment whose width and depth are chosen")
    p.add_argument("--family", default="", help="or a family, with its defaults")
    p.add_argument("--count", default="", metavar="WHICH", help="total, nonembedding, kaplan: N of the law")
    p.add_argument("--target", default="N", help="of the next runs: N, loss or a")
    p.add_argument("--next-flops", type=float, help="for the next runs (default: as much as the fitted ones took)")
    p.add_argument("--next-runs", type=int, default=8, help="at most; 0: no advice")
    p.add_argument("--out", metavar="SWEEP.py", help="write the next runs as a sweep of --config")

    p = verb("count", texts.COUNT)
    p.add_argument("model", nargs="?", help="a published name, or `list`")
    p.add_argument("--config", metavar="FILE[:VARIANT]")

    p = verb("evaluate", texts.EVALUATE)
    p.add_argument("run", help="the folder of a finished run")
    p.add_argument("--split", default="", help="train, validation or test (default: test where there is one)")
    p.add_argument("--limit", type=int, default=0, help="examples at most; 0: all")
    p.add_argument("--beams", type=int, default=4, help="of beam search; 1: greedy")
    p.add_argument("--show", type=int, default=8, help="translations to print")
    p.add_argument("--data-dir", default="", help="where the data is, if it has moved")

    p = verb("coordcheck", texts.COORDCHECK)
    p.add_argument("--config", metavar="FILE[:VARIANT]", required=True)
    p.add_argument("--widths", default="", metavar="W,W,...")
    p.add_argument("--depths", default="", metavar="N,N,...")
    p.add_argument("--parametrization", default="standard,mup", metavar="NAME,...")
    p.add_argument("--steps", type=int, default=8)
    p.add_argument("--seeds", type=int, default=2)
    p.add_argument("--out", default="runs/coordcheck", metavar="FOLDER")
    devices(p)

    p = verb("compile", texts.COMPILE)
    with_config(p)
    topology(p, required=True)
    p.add_argument("--sweep", metavar="FILE", help="every row of a sweep file")
    p.add_argument("--out", metavar="STEM", help="write STEM.json and STEM.png (default: runs/compile/NAME)")
    p.add_argument("--no-cache", action="store_true", help="compile even what is in the cache")
    p.add_argument("--save", action="store_true", help="keep the compiled step: STEM.executable, for run.executable")

    p = verb("paper", texts.PAPER)
    p.add_argument("name", help="a paper, or `list`")
    p.add_argument(
        "--points", action="append", default=[], metavar="PATH", help="a file of points, or a folder; repeatable"
    )
    p.add_argument("--out", metavar="FOLDER", help="write the table here: Markdown, LaTeX, JSON")
    return top


# Arguments that may be in a bucket. Others are of a disk, and a path of a disk has no "//" to keep.
CLOUD = {
    "prepare": ("out",),
    "train": ("path", "runs"),
    "sweep": ("file", "runs"),
    "worker": ("folder",),
    "launch": ("folder", "runs", "bucket"),
    "upload": ("target",),
    "compile": ("path",),
    "evaluate": ("run", "data_dir"),
}
REPEATABLE = ("against", "option", "points")  # arguments that are lists
PACKAGES = {"gs": "gcsfs", "s3": "s3fs", "az": "adlfs"}  # what reads a bucket's files for us


def check_buckets(args: argparse.Namespace, overrides: Sequence[tuple[str, str]]) -> None:
    """Refuses a path in a bucket where only one of a disk can be, or where the package that reads it is missing."""
    verb, used = args.verb, []
    for name, value in vars(args).items():
        if isinstance(value, list) and name not in REPEATABLE:  # argparse's answer to --flag=--
            raise UsageError(f"{verb}: --{name} needs a value")
        for path in value if isinstance(value, list) else [value]:
            if isinstance(path, str) and name not in ("command", "name", "option", "bucket", "coordinator", "where"):
                if path.count("/") > 500:
                    raise UsageError(f"{verb}: {name} {path[:60]!r}...: more than 500 folders in each other")
                if "://" in path and path.partition("://")[0] not in PACKAGES:
                    raise UsageError(f"{verb}: {path[:60]!r}: paths are of a disk, or begin with gs://, s3:// or az://")
            if name == "command" or not isinstance(path, str) or path.partition("://")[0] not in PACKAGES:
                continue
            sweep_file = verb == "sweep" and name == "file" and (args.action != "status" or path.endswith(".py"))
            if name not in CLOUD.get(verb, ()) or sweep_file:
                raise UsageError(
                    f"{verb}: {name} {path!r} is in a bucket, and has to be on a disk; `gcloud storage cp -r FROM TO` "
                    "copies from one to the other"
                )
            used += [path] if name != "bucket" else []
    used += [value for _, value in overrides if verb != "launch"]  # which only passes them on
    for path in used:
        scheme, found, _ = str(path).partition("://")
        if found and scheme in PACKAGES and importlib.util.find_spec(PACKAGES[scheme]) is None:
            raise UsageError(f"{path} needs the package {PACKAGES[scheme]}: {files.install(PACKAGES[scheme])}")


def verb_parsers(top: Parser) -> dict[str, Parser]:
    return next(a.choices for a in top._actions if isinstance(a, argparse._SubParsersAction))


def main(argv: Sequence[str] | None = None) -> int:
    args = list(sys.argv[1:] if argv is None else argv)
    known = argparse.Namespace(verb="")  # until it is parsed
    errors.noted.clear()
    if hasattr(sys.stdout, "reconfigure"):  # a folder's name may not be UTF-8
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        if any("\0" in arg for arg in args):
            raise UsageError("an argument has a NUL in it, which no path, name or number has")
        overrides, rest = config.parse_flags(args)
        top = parser()
        known, unknown = top.parse_known_args(rest)
        known.command = shlex.join(["bigmodel", *args])
        if unknown:
            options = [s for a in verb_parsers(top)[known.verb]._actions for s in a.option_strings]
            name, _, value = unknown[0].partition("=")
            hint = nearest(name, options)
            if known.verb in CONFIGURED and (key := _option_of_a_config(name.lstrip("-"))):
                hint = f" (did you mean --config.{key}={value}?)"
            raise UsageError(f"{known.verb}: unknown argument {unknown[0]!r}{hint}")
        if overrides and known.verb not in CONFIGURED:
            raise UsageError(f"{known.verb} takes no --config.{overrides[0][0]}")
        check_buckets(known, overrides)
        from bigmodel.cli import verb

        code = verb(known.verb)(known, overrides)
        sys.stdout.flush()
        return code
    except UsageError as e:
        return _fail(str(e), EXIT_USAGE)
    except Retry as e:
        return _fail(str(e), EXIT_RETRY)
    except KeyboardInterrupt:
        return _fail("interrupted; the same command continues", EXIT_RETRY)
    except BrokenPipeError:  # the reader, as `head`, has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if known.verb in ("compile", "coordcheck") or (known.verb == "sweep" and known.action == "run"):
            return _fail("standard output was closed amid the work; the same command continues", EXIT_RETRY)
        return 0  # the others print when all is done
    except ImportError as e:
        missing = next((name for name in PACKAGES.values() if name in str(e)), "")
        if missing:  # of a path that a file names
            return _fail(f"a path in a bucket needs the package {missing}: {files.install(missing)}", EXIT_USAGE)
        raise
    except OSError as e:
        if e.errno in files.FULL:
            return _fail(f"disk full: {e.filename or e}; free space and repeat", EXIT_RETRY)
        if e.filename is None:
            raise
        name = os.fsdecode(e.filename) if isinstance(e.filename, str | bytes) else str(e.filename)
        return _fail(f"can't use {name[:200]!r}: {e.strerror or type(e).__name__}", EXIT_USAGE)


def _option_of_a_config(name: str) -> str:
    """'train.steps' of 'steps'; "" where no config has such an option."""
    from bigmodel.run import identity

    sections = {section: options.split() for section, options in identity.FIRST.items()}
    return next((f"{s.partition('.')[0]}.{name}" for s, options in sections.items() if name in options), "")


def _fail(message: str, code: int) -> int:
    print(f"bigmodel: {' '.join(message.split())}", file=sys.stderr)
    return code
