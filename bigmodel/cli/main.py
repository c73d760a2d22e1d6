"""Run scaling experiments: train a sweep over width, depth and data, fit a scaling law, plan the next model.

From text to a law:
  bigmodel prepare news --out=data/news-bytes              download a corpus and tokenize it
  bigmodel train --config=experiments/gpt.py               train one model
  bigmodel sweep plan sweeps/demo.py                       show size, data, FLOPs and memory of every run
  bigmodel sweep run sweeps/demo.py                        train the runs that are missing
  bigmodel report sweeps/demo.py                           fit a law, write figures, tables and an HTML page
  bigmodel fit runs/demo --against=gadre --out=fit.json    fit a law and compare it with another
  bigmodel plan --law=fit.json --flops=1e16                choose the next model and the next runs
  bigmodel predict --law=fit.json --params=1e6 --tokens=2e7          the loss there, and how far from the runs it is
  bigmodel compare runs/mine runs/yours                    the compute that one recipe saves over another
  bigmodel generate runs/0123456789ab --prompt="I love programming"    let a run, or a published model, write
  bigmodel convert data/smollm2 --out=runs/smollm2         published weights into a run, or a run into a published form
  bigmodel forecast seal forecasts --law=fit.json --config=experiments/gpt.py   the loss of a run, sealed before it

`bigmodel VERB --help` describes a verb. Exit codes: 0 done; 1 a run or a check failed, or an internal error;
2 wrong usage, explained in one line; 75 not complete, and the same command continues.
"""

import argparse
import importlib.util
import os
import re
import shlex
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from bigmodel import __version__, cli, config, errors, files
from bigmodel.errors import EXIT_RETRY, EXIT_USAGE, Retry, UsageError, choose, nearest


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of a description, and ends an option's help with its default."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text, default = action.help or "", action.default
        if default in (None, "", [], argparse.SUPPRESS) or default is False or "default" in text:
            return text
        return f"{text} (default: %(default)s)"


class Parser(argparse.ArgumentParser):
    """Turns a mistake into one line with the nearest option, and exit code 2."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see `{self.prog} --help`")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None:
            choose(str(action.metavar or action.dest), value, action.choices)


def parser() -> Parser:
    top = Parser(prog="bigmodel", description=__doc__, formatter_class=Formatter)
    top.add_argument("--version", action="version", version=f"bigmodel {__version__}")
    verbs = top.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name in cli.verbs():
        verb = cli.verb(name)
        text = verb.__doc__ or name
        first = text.splitlines()[0]
        p = verbs.add_parser(name, help=first, description=text, formatter_class=Formatter, allow_abbrev=False)
        p.add_argument("--json", action="store_true", help="print the result as JSON")
        verb.arguments(p)
    return top


def verb_parsers(top: Parser) -> dict[str, Parser]:
    return next(a.choices for a in top._actions if isinstance(a, argparse._SubParsersAction))


NO_PATHS = ("command", "name", "option", "bucket", "coordinator", "where")
PACKAGES = {"gs": "gcsfs", "s3": "s3fs", "az": "adlfs"}  # what reads the files of a bucket


def check_paths(args: cli.Args, overrides: cli.Overrides) -> None:
    """Refuses a bucket where a path must be on a disk, and one whose package is missing."""
    verb, used = args.verb, []
    cloud = getattr(cli.verb(verb), "CLOUD", ())
    for name, value in vars(args).items():
        for path in value if isinstance(value, list) else [value]:
            if not isinstance(path, str) or name in NO_PATHS:
                continue
            if path.count("/") > 500:
                raise UsageError(f"{verb}: {name} {path[:60]!r}...: a path has at most 500 folders")
            if "://" not in path:
                continue
            if path.partition("://")[0] not in PACKAGES:
                raise UsageError(f"{verb}: {path[:60]!r}: a path is on a disk, or begins with gs://, s3:// or az://")
            sweep_file = verb == "sweep" and name == "file" and (args.action != "status" or path.endswith(".py"))
            if name not in cloud or sweep_file:
                raise UsageError(
                    f"{verb}: {name} {path!r} is in a bucket, but has to be on a disk; "
                    "`gcloud storage cp -r FROM TO` copies it"
                )
            used.append(path)
    used += [value for _, value in overrides if verb != "launch"]  # launch only passes them on
    for path in used:
        scheme, found, _ = str(path).partition("://")
        if found and scheme in PACKAGES and importlib.util.find_spec(PACKAGES[scheme]) is None:
            raise UsageError(f"{path} needs the package {PACKAGES[scheme]}: {files.install(PACKAGES[scheme])}")
        if found and scheme in PACKAGES:
            files.uncached_listings()


def _parse(args: list[str]) -> tuple[cli.Args, cli.Overrides]:
    for arg in args:
        if "\0" in arg:
            raise UsageError("an argument contains a NUL character")
        if re.fullmatch("--[A-Za-z-]+=--", arg):  # argparse would take it for an empty list
            raise UsageError(f"{arg.partition('=')[0]} needs a value")
    overrides, rest = config.parse_flags(args)
    top = parser()
    known, unknown = top.parse_known_args(rest)
    known.command = shlex.join(["bigmodel", *args])
    configured = getattr(cli.verb(known.verb), "CONFIGURED", False)
    if unknown:
        options = [s for a in verb_parsers(top)[known.verb]._actions for s in a.option_strings]
        name, _, value = unknown[0].partition("=")
        hint = nearest(name, options)
        if configured and (key := _config_key(name.lstrip("-"))):
            hint = f" (did you mean --config.{key}={value}?)"
        raise UsageError(f"{known.verb}: unknown argument {unknown[0]!r}{hint}")
    if overrides and not configured:
        raise UsageError(f"{known.verb} takes no --config.{overrides[0][0]}")
    check_paths(known, overrides)
    return known, overrides


def _config_key(name: str) -> str:
    """'train.steps' for 'steps'; "" if no config has such an option."""
    from bigmodel.run import identity

    sections = {section: options.split() for section, options in identity.FIRST.items()}
    return next((f"{s.partition('.')[0]}.{name}" for s, options in sections.items() if name in options), "")


def main(argv: Sequence[str] | None = None) -> int:
    args = cli.Args(verb="")  # until they are parsed
    errors.noted.clear()
    if hasattr(sys.stdout, "reconfigure"):  # the name of a folder may not be UTF-8
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        args, overrides = _parse(list(sys.argv[1:] if argv is None else argv))
        code = cli.verb(args.verb).run(args, overrides)
        sys.stdout.flush()
        return code
    except UsageError as e:
        return _fail(str(e), EXIT_USAGE)
    except Retry as e:
        return _fail(str(e), EXIT_RETRY)
    except KeyboardInterrupt:
        return _fail("interrupted; the same command continues", EXIT_RETRY)
    except BrokenPipeError:  # the reader, for instance `head`, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if args.verb in ("compile", "coordcheck") or (args.verb == "sweep" and args.action == "run"):
            return _fail("standard output was closed before the work was done; the same command continues", EXIT_RETRY)
        return 0  # the other verbs print when their work is done
    except ImportError as e:
        missing = next((name for name in PACKAGES.values() if name in str(e)), "")
        if not missing:
            raise
        return _fail(f"a path in a bucket needs the package {missing}: {files.install(missing)}", EXIT_USAGE)
    except Exception as e:
        if why := files.of_store(e):
            return _fail(f"the bucket can't be used ({why}); the same command continues once it can", EXIT_RETRY)
        if isinstance(e, MemoryError) or "can't start new thread" in str(e):
            text = (
                "this process may have no more memory or threads; the same command continues, once its limits are wider"
            )
            return _fail(text, EXIT_RETRY)
        if not isinstance(e, OSError):
            raise
        if e.errno in files.FULL:
            return _fail(f"disk full: {e.filename or e}; free space and repeat", EXIT_RETRY)
        if e.filename is None:
            raise
        name = os.fsdecode(e.filename) if isinstance(e.filename, str | bytes) else str(e.filename)
        return _fail(f"can't use {name[:200]!r}: {e.strerror or type(e).__name__}", EXIT_USAGE)


def _fail(message: str, code: int) -> int:
    print(f"bigmodel: {' '.join(message.split())}", file=sys.stderr)
    return code
