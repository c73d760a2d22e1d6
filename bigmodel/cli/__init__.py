"""The command line: one file per verb, found by its name. A verb may import every room, but only inside `run`.

A verb's file has a docstring, which is its --help (the first line is also its line in `bigmodel --help`), and

    arguments(parser)              adds its arguments
    run(args, overrides) -> int    does the work and returns the exit code
    CONFIGURED = True              optional: the verb takes --config.SECTION.KEY=VALUE
    CLOUD = ("runs",)              optional: arguments that may be paths in a bucket

`bigmodel --help` imports every verb's file, so none of them imports JAX or NumPy at its top.
"""

import argparse
import importlib
import json
import os
import pkgutil
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from bigmodel import errors, files

Args = argparse.Namespace
Parser = argparse.ArgumentParser
Overrides = Sequence[tuple[str, str]]  # (dotted config key, value as typed)


def verbs() -> list[str]:
    return [module.name for module in pkgutil.iter_modules(__path__) if module.name != "main"]


def verb(name: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{name}")


def config_arguments(parser: Parser) -> None:
    parser.add_argument("path", nargs="?", help="the config.json of an earlier run")
    parser.add_argument("--config", metavar="FILE[:VARIANT]", help="a file with get_config(), e.g. experiments/gpt.py")


def device_arguments(parser: Parser) -> None:
    parser.add_argument("--host-devices", type=int, default=0, metavar="K", help="simulate K devices on the CPU")


def process_arguments(parser: Parser) -> None:
    parser.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0, for several processes")
    parser.add_argument("--processes", type=int, default=1, metavar="K", help="number of processes of the run")
    parser.add_argument("--process", type=int, default=0, metavar="I", help="index of this process")


def topology_arguments(parser: Parser, required: bool = False) -> None:
    text = "chip and shape, e.g. v5e:4x4 or v5p:8x8x8; of compile and plan also auto, the smallest that fits"
    parser.add_argument("--topology", default="", metavar="TPU", required=required, help=text)
    parser.add_argument("--slices", type=int, default=1, metavar="K", help="number of slices of that topology")


def start_jax(args: Args) -> None:
    """Sets up devices, processes and the persistent compilation cache; called before JAX is used."""
    import jax

    from bigmodel.run import processes

    # A cache that can't be written, for instance on a full disk, costs only time.
    warnings.filterwarnings("ignore", "Error (writing|reading) persistent compilation cache")
    if hasattr(args, "host_devices"):
        errors.check_ranges("--", args, host_devices="[0, inf)")
        if args.host_devices:
            jax.config.update("jax_platforms", "cpu")
            jax.config.update("jax_num_cpu_devices", args.host_devices)
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(files.cache_folder() / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    processes.no_tpu_here()
    if hasattr(args, "coordinator"):
        processes.join(args.coordinator or "", args.processes, args.process)


def mesh(text: str) -> Any:
    """The mesh that `--mesh=data=2,tensor=4` names, of "" one device. UsageError: no such axis or too few devices."""
    import jax

    from bigmodel.ops import sharding

    if not text:
        return sharding.make_mesh(sharding.ALONE, jax.devices()[:1])
    sizes = {}
    for part in text.split(","):
        axis, _, size = part.partition("=")
        errors.choose("--mesh", axis, sharding.AXES)
        if not size.lstrip("-").isdigit():
            raise errors.UsageError(f"--mesh={text!r}: expected AXIS=K, as data=2")
        sizes[axis] = int(size)
    return sharding.make_mesh(sizes)


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, default=str))


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Aligned plain text, not wrapped: the same in a terminal and in a pipe. Numbers are aligned to the right."""
    cells = [[str(c) for c in row] for row in rows]
    widths = [max(len(row[i]) for row in [head, *cells]) for i in range(len(head))]
    right = [all(c[i].lstrip("-")[:1].isdigit() for c in cells) and i > 1 for i in range(len(head))]
    lines = []
    for row in [head, *cells]:
        aligned = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)]
        lines.append("  ".join(aligned).rstrip())
    return "\n".join(lines)


def progress(text: str) -> None:
    """Shows the current step on one line of stderr, if that is a terminal; "" clears it."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text and text + ' ...'}", end="", file=sys.stderr, flush=True)


def local(folder: str) -> str:
    """A folder of runs itself or, of one in a bucket, a copy of its records on this disk."""
    if "://" not in folder:
        return folder
    from bigmodel.run import objects

    progress(f"reading {folder}")
    home = str(objects.local(folder))
    if home != folder and not any(Path(home).glob("*/result.json")):
        raise errors.UsageError(f"no result.json in the run directories of {folder!r} (looked for */result.json)")
    return home


def check_exists(path: Path, what: str = "file or directory") -> None:
    """Raises UsageError with the nearest name, before seconds of imports."""
    if not path.exists():
        siblings = [str(p) for p in path.parent.glob("*")] if path.parent.is_dir() else []
        raise errors.UsageError(f"no {what} {str(path)!r}{errors.nearest(str(path), siblings)}")
