"""A compiled step in a file, for runs that start without compiling.

The first line says in JSON what it was compiled for; the rest is JAX's own pickle of the executable. A pickle can run
code when it is read, and the first line proves nothing: read only files that you made. For this reason the path is
taken from the command line alone (--config.run.executable=PATH), never from a config.json or a planned row.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from etils import epath
from jax.experimental import serialize_executable
from jax.experimental.compilation_cache import compilation_cache

from bigmodel.errors import UsageError
from bigmodel.files import writing
from bigmodel.ops import platforms
from bigmodel.run import record

SUFFIX = ".executable"
MEANS = {"program": "model, optimizer or batch", "places": "arrangement of chips", "sources": "version of bigmodel"}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@functools.cache
def sources() -> str:
    """16 hex digits of the hash of this package's source files, from which a config's program follows."""
    return _digest("\n".join(path.read_text() for path in sorted(Path(__file__).parents[1].rglob("*.py"))))


def made_for(static: str, mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """What decides, besides XLA's flags, whether an executable is the one that a run would compile; as JSON.

    Args:
      static: program.static_part of its config.
    """
    devices = mesh.devices.flat
    packages = ["jax", "jaxlib", "flax", "optax", *platforms.compilers(devices[0].platform)]
    places = [(getattr(d, "coords", d.id), getattr(d, "slice_index", 0)) for d in devices]
    return {
        "program": _digest(static),
        "mesh": dict(mesh.shape),
        "device": devices[0].device_kind,
        "places": _digest(str(places)),
        **{name: importlib.metadata.version(name) for name in packages},
        "sources": sources(),
    }


@contextlib.contextmanager
def uncached() -> Iterator[None]:
    """Compiles without JAX's compilation cache: a CPU's executable from there is saved incompletely, and fails when it
    runs ("Function ... not found")."""
    before = jax.config.values["jax_enable_compilation_cache"]

    def use(enabled: bool) -> None:
        jax.config.update("jax_enable_compilation_cache", enabled)
        compilation_cache.reset_cache()  # or JAX keeps to what it decided at its first compilation

    use(False)
    try:
        yield
    finally:
        use(before)


def save(path: str, compiled: jax.stages.Compiled, wanted: dict[str, Any]) -> int:
    """Writes a step that was compiled `uncached`; returns its bytes. Needs no device of the kind it is for."""
    payload = pickle.dumps(serialize_executable.serialize(compiled))
    head = {**wanted, "sha256": hashlib.sha256(payload).hexdigest()}
    with writing(path):
        epath.Path(path).parent.mkdir(parents=True, exist_ok=True)
        record.write_bytes(path, json.dumps(head).encode() + b"\n" + payload)
    return len(payload)


def load(path: str, wanted: dict[str, Any], devices: Sequence[Any], state: Any) -> jax.stages.Compiled:
    """The executable, on these devices.

    Args:
      wanted: of `made_for`.
      state: shardings of its first argument.

    Raises:
      UsageError: no such file, a damaged one, or one that was compiled for something else.
    """
    where = f"config.run.executable={path!r}"
    try:
        head, _, payload = epath.Path(path).read_bytes().partition(b"\n")
        found = json.loads(head)
    except FileNotFoundError as e:
        raise UsageError(f"{where}: no such file; `bigmodel compile --save` writes one") from e
    except OSError as e:
        raise UsageError(f"{where} can't be read: {e.strerror or e}") from e
    except ValueError:
        found = None
    if not isinstance(found, dict) or not found.keys() >= {"program", "sources"}:
        raise UsageError(f"{where}: not what `bigmodel compile --save` writes")
    for key, value in wanted.items():
        if found.get(key) != value:
            both = "" if key in MEANS else f" ({found.get(key)}; here {value})"
            raise UsageError(f"{where} was compiled for another {MEANS.get(key, key)}{both}: compile it again")
    if found.get("sha256") != hashlib.sha256(payload).hexdigest():
        raise UsageError(f"{where} is damaged: its checksum differs; compile it again")
    try:
        compiled, arguments, results = pickle.loads(payload)
        loaded = serialize_executable.deserialize_and_load(
            compiled, arguments, results, backend=devices[0].client, execution_devices=devices
        )
        placed = jax.tree.leaves(loaded.input_shardings[0][0])
    except Exception as e:
        why = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise UsageError(f"{where} can't be loaded here: {why}") from e
    if [x.spec for x in placed] != [x.spec for x in jax.tree.leaves(state)]:
        raise UsageError(f"{where} has other shardings of the state: compile it again")
    return loaded
