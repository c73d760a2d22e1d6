"""Configs: load a file, apply strict overrides, round-trip through JSON.

A config is an `ml_collections.ConfigDict` of six sections:

    family   which file of bigmodel/models
    model    the family's shape                       (defaults: that file's get_config())
    data     what is read                             (defaults: the source's get_config())
    optim    optimizer and schedule                   (defaults: optim.get_config())
    train    how much: batch, tokens, seed            (defaults: budget.get_config())
    run      where and how it executes: mesh, checkpoints, logging, data folder

The run id is the hash of everything but `run` (identity.py): where a run executes doesn't change what it is,
so the same id resumes on another mesh, machine or folder.

Imports no JAX, so that rooms which meet the rest through files can use it.
"""

from __future__ import annotations

import ast
import contextlib
import importlib.metadata
import importlib.util
import json
import math
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from bigmodel.errors import Retry, UsageError, choose, nearest, note
from bigmodel.files import check_whole, read_text


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


def built_in(path: str | Path, folder: str) -> Path:
    """A file by its path, or one of ours by its name: 'gpt' or 'experiments/gpt.py' where there is no such file here.

    Args:
      folder: "experiments" or "sweeps". They lie beside the package, or within it where it was installed.
    """
    path = Path(path)
    if path.exists() or path.is_absolute():
        return path
    home = Path(__file__).parent
    for parent in (home, home.parent):
        if path.parent in (Path(), Path(folder)) and (found := parent / folder / f"{path.stem}.py").is_file():
            note(f"no {str(path)!r} here: {folder}/{found.name} of the package is used")
            return found
    return path


@contextlib.contextmanager
def _importing_from(folder: str) -> Iterator[None]:
    """Puts `folder` first on sys.path, as Python does for a script, and removes it afterwards.

    Modules imported from `folder` leave sys.modules too, so that a file of another folder finds its own of that name.
    """

    def is_here(name: str) -> bool:
        module = sys.modules[name]
        places = getattr(module, "__path__", None) or [getattr(module, "__file__", None) or ""]
        return any(os.path.dirname(os.path.abspath(place)) == folder for place in places)

    before = set(sys.modules)
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(folder)
        packages = {name for name in sys.modules.keys() - before if "." not in name and is_here(name)}
        for name in list(sys.modules):
            if name.partition(".")[0] in packages:
                del sys.modules[name]


def load_module(path: str | Path, kind: str) -> Any:
    """Imports a Python file by path. `kind` names it in errors ('config', 'sweep').

    The file can import its neighbours, but only while it is executed: at its top, not inside its functions.
    """
    path = Path(path)
    if not path.is_file():
        siblings = [str(p) for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise UsageError(f"no {kind} file {str(path)!r}{nearest(str(path), siblings)}")
    spec = importlib.util.spec_from_file_location(f"bigmodel_{kind}_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{kind} file {str(path)!r} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    with user_code(path, kind), _importing_from(os.path.dirname(os.path.abspath(path))):
        spec.loader.exec_module(module)
    return module


def check_exports(module: Any, what: str, names: Iterable[str]) -> Any:
    """The module, if it has all of the names. UsageError: the first that it lacks; `what` names it, as "family 'x'"."""
    for name in names:
        if not hasattr(module, name):
            raise UsageError(f"{what} has no {name}")
    return module


def plugin(kind: str, name: str, package: str, own: Iterable[str], what: str = "") -> Any:
    """The module of a family, source, paper or engine: a `.py` file of the user's, one of ours, or an entry point.

    Args:
      kind: "families", ...: entry points of the group `bigmodel.<kind>`, whose values are modules, are found.
      name: one of `own`, modules of `package`; the path of a file; or an entry point's name.
      what: named in errors, as "config.family".

    Raises:
      UsageError: there is none of this name, or it can't be imported.
    """
    if name.endswith(".py"):
        return load_module(name, what.rpartition(".")[2])
    if name in own:
        return importlib.import_module(f"{package}.{name.replace('-', '_')}")
    entries = entry_points(kind)
    choose(what, name, [*own, *entries])
    return load_entry(entries[name])


def entry_points(kind: str) -> dict[str, importlib.metadata.EntryPoint]:
    """Of installed packages, those of the group `bigmodel.<kind>`, by name."""
    return {entry.name: entry for entry in importlib.metadata.entry_points(group=f"bigmodel.{kind}")}


def load_entry(entry: importlib.metadata.EntryPoint) -> Any:
    with user_code(entry.value, f"{entry.group} entry point"):
        return entry.load()


def plugin_name(name: str) -> str:
    """What names a family or source in a run's id: of a user's file its name without the folder."""
    return Path(name).name if name.endswith(".py") else name


def load(spec: str | Path, overrides: Iterable[tuple[str, Any]] = ()) -> ConfigDict:
    """Loads `FILE.py[:VARIANT]` (its get_config([VARIANT])) or a frozen `config.json`, then overrides.

    Args:
      spec: path, with an optional `:variant` after a Python file.
      overrides: (dotted key, value) pairs; values may be strings, as typed on a command line.

    Raises:
      UsageError: no such file, no get_config, unknown key, wrong type.
    """
    text = str(spec)
    path, _, variant = (text, "", "") if "://" in text or Path(text).exists() else text.partition(":")
    path = path if "://" in path else str(built_in(path, "experiments"))
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
