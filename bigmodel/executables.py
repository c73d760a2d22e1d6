"""A compiled step in a file, for a start that doesn't compile it. Layer 1.

The first line says in JSON what it was compiled for; the rest is JAX's own pickle of the executable. As any pickle it
can run code where it is read: read only what you made.
"""

from __future__ import annotations

import functools
import hashlib
import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from etils import epath
from jax.experimental import serialize_executable

from bigmodel import config
from bigmodel.config import UsageError

SUFFIX = ".executable"


@functools.cache
def sources() -> str:
    """Of this package's source files, which make the program of a config: 16 hex digits."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def made_for(static: str, mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """What decides whether an executable is the one that a run would compile, as JSON.

    Args:
      static: program.static_part of its config.
    """
    return {
        "program": hashlib.sha256(static.encode()).hexdigest()[:16],
        "mesh": dict(mesh.shape),
        "device": mesh.devices.flat[0].device_kind,
        "jax": jax.__version__,
        "sources": sources(),
    }


def save(path: str, compiled: jax.stages.Compiled, wanted: dict[str, Any]) -> int:
    """Writes it; returns the bytes written. Needs no device of the kind it was compiled for."""
    payload = pickle.dumps(serialize_executable.serialize(compiled))
    target = epath.Path(path)
    with config.writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(target.name + ".partial")
        partial.write_bytes(json.dumps(wanted).encode() + b"\n" + payload)
        partial.replace(target)
    return len(payload)


def load(path: str, wanted: dict[str, Any], devices: Sequence[Any]) -> jax.stages.Compiled:
    """The executable, on these devices.

    Raises:
      UsageError: no such file, or one that was compiled for something else.
    """
    where = f"config.run.executable={path!r}"
    try:
        head, _, payload = epath.Path(path).read_bytes().partition(b"\n")
        found = json.loads(head)
    except FileNotFoundError as e:
        raise UsageError(f"{where}: no such file; `bigmodel compile --save` writes one") from e
    except (OSError, ValueError) as e:
        raise UsageError(f"{where}: not what `bigmodel compile --save` writes") from e
    names = {"program": "model, optimizer or batch", "sources": "version of bigmodel"}
    for key, value in wanted.items():
        if found.get(key) != value:
            hashes = "" if key in names else f" ({found.get(key)}; here {value})"
            raise UsageError(f"{where} was compiled for another {names.get(key, key)}{hashes}: compile it again")
    try:
        compiled, arguments, results = pickle.loads(payload)
        return serialize_executable.deserialize_and_load(
            compiled, arguments, results, backend=devices[0].client, execution_devices=devices
        )
    except Exception as e:
        raise UsageError(
            f"{where} can't be loaded here: {str(e).splitlines()[0] if str(e) else type(e).__name__}"
        ) from e
