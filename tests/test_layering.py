"""The house's one rule: import only from a lower layer, or from your own folder."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = {
    "config": 0, "tree": 0, "sharding": 0, "words": 0,
    "models": 1, "data": 1, "optim": 1, "parametrize": 1, "checkpoint": 1, "track": 1, "progress": 1,
    "hlo": 1, "claims": 1, "processes": 1, "executables": 1,
    "budget": 2, "generate": 2, "scores": 1, "recipes": 2, "view": 2, "status": 2, "weights": 3,
    "program": 3, "rungs": 3, "outcome": 3, "identity": 3,
    "train": 4, "evaluate": 4, "coordcheck": 4,
    "sweep": 5, "papers": 5, "pod": 5, "layout": 4,
    "cli": 6, "verbs": 6, "__main__": 6, "__init__": 0,
}  # fmt: skip
WINGS = {"prepare", "scaling", "launch"}  # import config alone: they meet the rest through files
USERS = {"cli", "verbs"}  # of wings; and papers, where models and fits meet
ONLY = {"flax": {"models"}, "wandb": {"view"}, "orbax": {"checkpoint"}}
FILES = sorted((ROOT / "bigmodel").rglob("*.py"))


def part_of(path):
    return path.relative_to(ROOT / "bigmodel").parts[0].removesuffix(".py")


def imports(text):
    """Dotted names, those inside functions included."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def faults(part, text):
    """What of a file's imports breaks the rule. `part` is its folder or file under bigmodel/."""
    for name in imports(text):
        top, *rest = name.split(".")
        if top in ONLY and part not in ONLY[top]:
            yield f"{top} belongs to {ONLY[top]}"
        if top != "bigmodel" or not rest or rest[0] == part or rest[0] == "__version__":
            continue
        other = rest[0]
        if part in WINGS:
            if other != "config":
                yield f"a wing imports {name}"
            continue
        if other in WINGS:
            if part not in USERS and (part, other) != ("papers", "scaling"):
                yield f"{part} imports the wing {other}"
        elif LAYERS[other] >= LAYERS[part] and not (LAYERS[other] == LAYERS[part] == 0 or LAYERS[part] == 6):
            yield f"layer {LAYERS[part]} imports {name} of layer {LAYERS[other]}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_layers(path):
    assert list(faults(part_of(path), path.read_text())) == []


def test_every_part_has_a_layer():
    assert {part_of(p) for p in FILES} <= LAYERS.keys() | WINGS


@pytest.mark.parametrize(
    ("part", "line"),
    [
        ("optim", "from bigmodel import checkpoint"),
        ("models", "from bigmodel.data import text"),
        ("budget", "import bigmodel.train"),
        ("scaling", "from bigmodel import budget"),
        ("train", "def f():\n    from bigmodel import cli"),
        ("train", "import flax.linen as nn"),
        ("budget", "from orbax import checkpoint"),
        ("sweep", "from bigmodel.scaling import fit"),
        ("papers", "from bigmodel.prepare import shards"),
        ("papers", "from bigmodel import sweep"),
        ("scaling", "from bigmodel import papers"),
    ],
)
def test_a_forbidden_import_is_seen(part, line):
    assert list(faults(part, line))


def test_no_jax_behind_help():
    """What a user waits for at the prompt must not import JAX."""
    code = (
        "import sys; from bigmodel import cli; cli.parser(); sys.exit('jax' in sys.modules or 'numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
