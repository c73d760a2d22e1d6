"""Configs: load a file, apply strict overrides, round-trip through JSON; the error types, files, notes to the user.

A config is an `ml_collections.ConfigDict` of six sections:

    family   which file of bigmodel/models
    model    the family's shape                       (defaults: that file's get_config())
    data     what is read                             (defaults: the source's get_config())
    optim    optimizer and schedule                   (defaults: optim.get_config())
    train    how much: batch, tokens, seed            (defaults: budget.get_config())
    run      where and how it executes: mesh, checkpoints, logging, data folder

The run id is the hash of everything but `run` (identity.py): where a run executes doesn't change what it is,
so the same id resumes on another mesh, machine or folder.

Layer 0: imports nothing of bigmodel, and no JAX, so that every wing can use it.
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import errno
import hashlib
import importlib.util
import json
import math
import os
import re
import shlex
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

EXIT_USAGE = 2
EXIT_RETRY = 75  # sysexits.h EX_TEMPFAIL: the same command may succeed later


class UsageError(Exception):
    """A mistake of the user's: printed as one line, exit code 2, nothing written."""


class NoData(UsageError):
    """The data that a config reads isn't there, or isn't enough: who needs shapes alone may go on.

    Attributes:
      epochs: passes over the data that would be enough; 0: no number is.
    """

    epochs = 0


class Unavailable(UsageError):
    """Something outside the config that was there when it was checked can't be read now: who goes through many runs
    stops there, and the same command may succeed later."""


class Retry(Exception):
    """Work was interrupted (preemption, full disk) and the same command continues it: exit code 75."""


class Busy(Retry):
    """Another process is at this very run: whoever goes through many runs passes on to the next."""


noted: set[str] = set()


def note(text: str) -> None:
    """Says one line on stderr, once a command: what was left out, replaced or not found, where work goes on."""
    if text not in noted:
        noted.add(text)
        print(f"bigmodel: note: {' '.join(text.split())}", file=sys.stderr, flush=True)


def nearest(name: str, names: Iterable[str]) -> str:
    """' (did you mean X?)' for the closest of `names`, else ''."""
    match = difflib.get_close_matches(str(name), [str(n) for n in names], n=1, cutoff=0.5)
    return f" (did you mean {match[0]!r}?)" if match else ""


MOST_LISTED = 20  # names that an error lists


def choose(what: str, value: Any, options: Iterable[str]) -> Any:
    """Returns `value` if it is one of `options`; else a UsageError naming the nearest."""
    options = list(options)
    if value not in options:
        hint = nearest(value, options)
        names, others = options, len(options) - MOST_LISTED
        if others > 0:  # the nearest first, and not more than can be read
            names = difflib.get_close_matches(str(value), options, MOST_LISTED, cutoff=0.0)
            names = [*names, f"{others} more"]
        raise UsageError(f"{what}: {value!r} is not one of {', '.join(names)}{hint}")
    return value


# ------------------------------------------------------------------------------------- files

FULL = (errno.ENOSPC, errno.EDQUOT)
UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST)


@contextlib.contextmanager
def full_disk(what: Any) -> Iterator[None]:
    """Around what writes `what`: a full disk is a reason to try again, not a fault."""
    try:
        yield
    except OSError as e:
        if e.errno in FULL:
            raise Retry(f"disk full: can't write {str(what)!r}; nothing is lost: free space and repeat") from e
        raise


@contextlib.contextmanager
def writing(what: Any) -> Iterator[None]:
    """Around what begins to write `what`, a path that the user chose: one that can't be written is a mistake."""
    try:
        with full_disk(what):
            yield
    except OSError as e:
        if e.errno in UNWRITABLE:
            raise UsageError(f"can't write {str(what)!r}: {e.strerror}") from e
        raise


@contextlib.contextmanager
def user_code(path: Any, kind: str, call: str = "") -> Iterator[None]:
    """Around what runs code of the user's file `path`: its error is the user's to mend, in one line."""
    try:
        yield
    except (UsageError, Retry):
        raise
    except (Exception, SystemExit) as e:
        lines = []
        trace = e.__traceback__
        while trace is not None:
            if trace.tb_frame.f_code.co_filename == os.path.abspath(path):
                lines.append(trace.tb_lineno)
            trace = trace.tb_next
        if isinstance(e, SyntaxError) and e.filename == os.path.abspath(path):
            lines.append(e.lineno or 0)
        where = [f"{kind} file {str(path)!r}", *(f"line {n}" for n in lines[-1:]), *([f"in {call}"] if call else [])]
        raise UsageError(f"{', '.join(where)}: {type(e).__name__}: {e}") from e


def load_module(path: str | Path, kind: str) -> Any:
    """Imports a Python file by path. `kind` names it in errors ('config', 'sweep')."""
    path = Path(path)
    if not path.is_file():
        siblings = [str(p) for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise UsageError(f"no {kind} file {str(path)!r}{nearest(str(path), siblings)}")
    spec = importlib.util.spec_from_file_location(f"bigmodel_{kind}_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{kind} file {str(path)!r} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    with user_code(path, kind):
        spec.loader.exec_module(module)
    return module


def load(spec: str | Path, overrides: Iterable[tuple[str, Any]] = ()) -> ConfigDict:
    """Loads `FILE.py[:VARIANT]` (its get_config([VARIANT])) or a frozen `config.json`, then overrides.

    Args:
      spec: path, with an optional `:variant` after a Python file.
      overrides: (dotted key, value) pairs; values may be strings, as typed on a command line.

    Raises:
      UsageError: no such file, no get_config, unknown key, wrong type.
    """
    text = str(spec)
    path, _, variant = text.partition(":") if ".py:" in text else (text, "", "")
    overrides = list(overrides)
    if path.endswith(".json"):
        config = without_code(from_json(read_text(path, "config"), path), path, overrides)
    elif Path(path).is_dir():
        raise UsageError(f"{path!r} is a folder; give the config.json in it, as {str(Path(path) / 'config.json')!r}")
    else:
        module = load_module(path, "config")
        if not hasattr(module, "get_config"):
            raise UsageError(f"config file {path!r} has no get_config()")
        with user_code(path, "config", f"get_config({variant!r})" if variant else "get_config()"):
            config = module.get_config(variant) if variant else module.get_config()
        if not isinstance(config, ConfigDict):
            raise UsageError(f"config file {path!r}: get_config() returned {type(config).__name__}, not a ConfigDict")
        try:
            flatten(config)
        except RecursionError as e:
            raise UsageError(f"config file {path!r}: get_config() returned a config that contains itself") from e
    override_all(config, overrides)
    return config


def without_code(config: ConfigDict, where: Any, overrides: Iterable[tuple[str, Any]] = ()) -> ConfigDict:
    """A config that was read from the file `where`, with its run.executable cleared, which is said on stderr.

    A saved step is a pickle, which can run code: it is taken only from the command line, whose `overrides` come later.
    """
    run = config.get("run")
    if isinstance(run, ConfigDict) and run.get("executable"):
        if "run.executable" not in dict(overrides):
            note(
                f"{str(where)!r} names run.executable={run.executable!r}: ignored, because it can run code; "
                "name it on the command line to use it"
            )
        run.executable = ""
    return config


def check_path(what: str, path: str) -> None:
    """Raises UsageError for a path that no file can have; `what` names it."""
    try:
        longest = max(len(os.fsencode(part)) for part in path.split("/"))
    except UnicodeEncodeError:
        raise UsageError(f"{what} {path[:60]!r}: a path has no half of a surrogate pair in it") from None
    if longest > 255 or len(os.fsencode(path)) >= 4096:
        raise UsageError(f"{what} {path[:60]!r}...: a path has less than 4,096 bytes, a name in it at most 255")
    if "\0" in path:
        raise UsageError(f"{what} {path[:60]!r}: a path has no NUL in it")
    if "://" in path and path.partition("://")[0] not in ("gs", "s3", "az"):
        raise UsageError(f"{what} {path[:60]!r}: a path is of a disk, or begins with gs://, s3:// or az://")


def cache_folder() -> Path:
    """$BIGMODEL_CACHE, else ~/.cache/bigmodel."""
    return Path(os.environ.get("BIGMODEL_CACHE") or "~/.cache/bigmodel").expanduser()


def has_sha256(path: str | Path, sha256: str, again: bool = False) -> bool:
    """Whether a local file has this content.

    That it has is remembered in the cache folder, so that it is read only once until its size or the time of its last
    change is another one, or `again`.

    Raises:
      OSError: it can't be read.
    """
    stat = os.stat(path)
    name = f"{os.path.abspath(path)} {stat.st_size} {stat.st_mtime_ns} {sha256}"
    seen = cache_folder() / "verified" / hashlib.sha256(os.fsencode(name)).hexdigest()
    with contextlib.suppress(OSError):
        if seen.exists() and not again:
            return True
    with open(path, "rb") as f:
        same = hashlib.file_digest(f, "sha256").hexdigest() == sha256
    with contextlib.suppress(OSError):  # a cache that can't be written costs time and nothing else
        if same:
            seen.parent.mkdir(parents=True, exist_ok=True)
            seen.touch()
        else:
            seen.unlink(missing_ok=True)
    return same


def sealed(record: dict[str, Any]) -> dict[str, Any]:
    """`record` with a "crc32" of the rest, by which `is_whole` tells a changed byte in the file it is written to."""
    rest = {key: value for key, value in record.items() if key != "crc32"}
    canonical = json.dumps(rest, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return {**rest, "crc32": zlib.crc32(canonical.encode())}


def is_whole(record: dict[str, Any]) -> bool:
    """Whether a record has the "crc32" that `sealed` gave it. True where there is none: older files have no seal."""
    return "crc32" not in record or record["crc32"] == sealed(record)["crc32"]


def check_whole(record: dict[str, Any], path: Any) -> None:
    """Raises UsageError for a record of the file `path` that isn't as it was written."""
    if not is_whole(record):
        raise UsageError(
            f"{str(path)!r} is damaged, or was edited: its checksum differs; to use it as it is, remove its line "
            "'crc32'"
        )


def read_plan(folder: Any) -> list[dict[str, Any]]:
    """The rows of a sweep's plan.jsonl, with those that a later plan superseded.

    Raises:
      UsageError: there is no plan, or it is damaged or cut.
    """
    path = folder / "plan.jsonl"
    again = "`bigmodel sweep plan FILE.py` writes it again"
    try:
        lines = path.read_bytes().splitlines()
    except (FileNotFoundError, NotADirectoryError) as e:
        raise UsageError(f"no plan at {str(folder)!r}: run `bigmodel sweep plan FILE.py` first") from e
    except OSError as e:
        raise UsageError(f"can't read {str(path)!r}: {e.strerror or e}") from e
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            # Ids become names of folders, arguments of commands and parts of scripts.
            whole = is_whole(row) and re.fullmatch(r"[A-Za-z0-9][\w-]*", row["run_id"], re.ASCII)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            whole = None
        if not whole:
            raise UsageError(f"{str(path)!r} line {number} is damaged; {again}")
        rows.append(row)
    total = max((n for row in rows if isinstance(n := row.get("rows"), int)), default=1)
    if len(rows) < total:
        raise UsageError(
            f"{str(path)!r} holds {len(rows)} of {total} rows; {again}" if rows else f"{str(path)!r} is empty; {again}"
        )
    return rows


def install(package: str) -> str:
    """The command that installs a missing package where this program runs, from a checkout or installed."""
    return f"{shlex.quote(sys.executable)} -m pip install {shlex.quote(package)}"


def read_text(path: str | Path, kind: str) -> str:
    from etils import epath

    try:
        return epath.Path(path).read_bytes().decode()
    except (OSError, UnicodeDecodeError) as e:
        raise UsageError(f"can't read {kind} {str(path)!r}: {getattr(e, 'strerror', None) or e}") from e


# --------------------------------------------------------------------------------- overrides


def flatten(config: ConfigDict, prefix: str = "") -> dict[str, Any]:
    """{'model.width': 64, ...}"""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        flat.update(flatten(value, name + ".") if isinstance(value, ConfigDict) else {name: value})
    return flat


HORIZONS = ("steps", "tokens", "flops", "tokens_per_param")  # of `train`: exactly one says how long


def override_all(config: ConfigDict, pairs: Iterable[tuple[str, Any]]) -> None:
    """Sets dotted keys in place. A horizon among them replaces the one that was there."""
    pairs = list(pairs)
    given = {key for key, _ in pairs}
    if given & {f"train.{h}" for h in HORIZONS}:
        pairs = [(f"train.{h}", 0) for h in HORIZONS if f"train.{h}" not in given] + pairs
    for key, value in pairs:
        override(config, key, value)


def override(config: ConfigDict, key: str, value: Any) -> None:
    """Sets one dotted key in place, strictly: the key must exist, the value must have its type."""
    flat = flatten(config)
    if key not in flat:
        section = [k for k in flat if k.startswith(key + ".")]
        if section:
            raise UsageError(f"config.{key} is a section; set one of its keys, as config.{section[0]}=...")
        raise UsageError(f"config has no key {key!r}{nearest(key, flat)}")
    if key in ("family", "data.source"):
        if value != flat[key]:
            raise UsageError(f"config.{key} is fixed by the experiment file ({flat[key]!r}); choose another file")
        return
    *parents, leaf = key.split(".")
    section = config
    for part in parents:
        section = section[part]
    with section.unlocked():
        section[leaf] = coerce(key, flat[key], value)


def coerce(key: str, old: Any, value: Any) -> Any:
    """`value` in the type of `old`; strings are parsed as typed on a command line."""
    kind = type(old)

    def wrong() -> UsageError:
        return UsageError(f"config.{key}={value!r}: expected {kind.__name__}, as in {old!r}")

    if kind is str:
        if not isinstance(value, str):
            raise wrong()
        return value
    if isinstance(value, str):
        text = value.strip()
        if kind is bool:
            if text.lower() not in ("true", "false"):
                raise wrong()
            return text.lower() == "true"
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            raise wrong() from None
    if kind is bool:
        if not isinstance(value, bool):
            raise wrong()
        return value
    if kind in (int, float):
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise wrong()
        if kind is int and value != int(value):
            raise wrong()
        return bounded(key, int(value) if kind is int else float(value))
    if kind in (tuple, list):
        if not isinstance(value, tuple | list):
            raise wrong()
        return tuple(coerce(f"{key}[{i}]", old[0], v) if old else v for i, v in enumerate(value))
    raise UsageError(f"config.{key} can't be overridden")


def bounded(key: str, value: int | float) -> int | float:
    """`value`, if it can be so large: sizes of arrays have 31 bits, numbers in a program are of float32."""
    most: float = 3e38 if key not in ("train.flops", "train.tokens", "train.tokens_per_param") else 1e300
    if isinstance(value, int):
        most = 2**31 - 1 if key.startswith("model.") or key in ("train.batch_size", "data.seq_len") else 2**53
    if abs(value) > most:
        raise UsageError(f"config.{key}={str(value)[:30]}: must be at most {most:,}")
    return value


def parse_flags(args: Sequence[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """Splits `--config.a.b=v` (or `--config.a.b v`) from the other arguments."""
    pairs: list[tuple[str, str]] = []
    rest: list[str] = []
    it = iter(args)
    for arg in it:
        if not arg.startswith("--config."):
            rest.append(arg)
            continue
        key, eq, value = arg.removeprefix("--config.").partition("=")
        if not eq:
            following = next(it, None)
            if following is None:
                raise UsageError(f"--config.{key} needs a value: --config.{key}=VALUE")
            value = following
        pairs.append((key, value))
    return pairs, rest


# --------------------------------------------------------------------------------------- JSON


def to_json(config: ConfigDict) -> str:
    """Canonical JSON: sorted keys, so that equal configs are equal text."""
    return json.dumps(config.to_dict(), sort_keys=True, indent=1)


def from_json(text: str, path: str = "config") -> ConfigDict:
    """The config of `to_json`'s text. `path` is named in errors."""
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise UsageError(f"{path!r} is not JSON: {e or type(e).__name__}") from e
    if not isinstance(tree, dict):
        raise UsageError(f"{path!r} is not a JSON object")
    check_whole(tree, path)
    tree.pop("crc32", None)
    if dotted := _dotted(tree):
        raise UsageError(f"{path!r}: the key {dotted!r} has a dot: write sections within sections")
    return ConfigDict(_tuples(tree))


def _dotted(tree: Any) -> str:
    """A key with a dot in it, which would be taken for a path; "" if there is none."""
    if not isinstance(tree, dict):
        return ""
    return next((found for key, value in tree.items() if (found := key if "." in key else _dotted(value))), "")


def _tuples(value: Any) -> Any:
    """JSON has no tuples; configs have no lists."""
    if isinstance(value, dict):
        return {k: _tuples(v) for k, v in value.items()}
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value
