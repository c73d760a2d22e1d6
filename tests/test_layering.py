"""The rooms of the house: each imports only from those below it. docs/architecture.md draws them."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLAT = {"config", "errors", "files", "tree", "words"}  # modules that every room may import
PURE = FLAT - {"tree"}  # without JAX: for rooms that meet the rest through files
RUN = {"ops", "models", "data", "run"}
MAY = {
    "ops": set(),
    "models": {"ops"},
    "data": set(),
    "run": RUN,
    "after": RUN,
    "study": RUN,
    "pods": RUN,
    "launch": set(),
    "laws": set(),
    "prepare": set(),
    "papers": RUN | {"study", "laws"},
    "cli": RUN | {"after", "study", "pods", "launch", "laws", "prepare", "papers"},
}
ALONE = {"launch", "laws", "prepare"}  # import PURE alone
ONLY = {"flax": {"models"}, "wandb": {"run/view"}, "orbax": {"run/checkpoint"}}
FILES = sorted((ROOT / "bigmodel").rglob("*.py"))


def imports(text):
    """Dotted names, those inside functions included."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def faults(where, text):
    """What of a file's imports breaks the rule. `where`: its path under bigmodel/, without the suffix."""
    room = where.split("/")[0]
    for name in imports(text):
        top, *rest = name.split(".")
        if top in ONLY and not {room, where} & ONLY[top]:
            yield f"{top} belongs to {ONLY[top]}"
        if top != "bigmodel" or not rest or rest[0] in (room, "__version__"):
            continue
        other = rest[0]
        if other in FLAT:
            if room in ALONE and other not in PURE:
                yield f"{room} imports {name}"
        elif other not in MAY.get(room, set()):
            yield f"{room} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_room_imports_only_what_is_below_it(path):
    where = path.relative_to(ROOT / "bigmodel").with_suffix("").as_posix()
    if where == "__main__":  # starts the command line
        where = "cli/__main__"
    assert list(faults(where, path.read_text())) == []


def test_every_module_is_in_a_room_and_few_lie_flat():
    tops = {p.relative_to(ROOT / "bigmodel").parts[0].removesuffix(".py") for p in FILES}
    assert tops == MAY.keys() | FLAT | {"__init__", "__main__"}
    assert len(list((ROOT / "bigmodel").glob("*.py"))) <= 8


def test_rooms_have_no_circle():
    below = {room: set(others) - {room} for room, others in MAY.items()}
    while below:
        free = {room for room, others in below.items() if not others & below.keys()}
        assert free, below
        below = {room: others for room, others in below.items() if room not in free}


@pytest.mark.parametrize("room", sorted(MAY))
def test_every_room_says_its_job(room):
    said = ast.get_docstring(ast.parse((ROOT / "bigmodel" / room / "__init__.py").read_text()))
    assert said and "import" in said.lower()


@pytest.mark.parametrize(
    ("where", "line"),
    [
        ("models/decoder", "from bigmodel.data import text"),
        ("models/decoder", "from bigmodel.run import budget"),
        ("ops/attention", "from bigmodel import models"),
        ("ops/attention", "import flax.linen as nn"),
        ("run/budget", "import bigmodel.study.sweep"),
        ("run/loop", "def f():\n    from bigmodel import cli"),
        ("run/loop", "import flax.linen as nn"),
        ("run/budget", "from orbax import checkpoint"),
        ("study/sweep", "from bigmodel.laws import fit"),
        ("study/sweep", "from bigmodel.after import evaluate"),
        ("laws/rows", "from bigmodel.run import budget"),
        ("laws/rows", "from bigmodel import tree"),
        ("laws/rows", "from bigmodel import papers"),
        ("papers/gpt2", "from bigmodel.prepare import shards"),
        ("config", "from bigmodel.run import budget"),
    ],
)
def test_a_forbidden_import_is_seen(where, line):
    assert list(faults(where, line))


def test_no_jax_behind_help():
    """What a user waits for at the prompt must not import JAX."""
    code = (
        "import sys; from bigmodel.cli import main; main.parser(); "
        "sys.exit('jax' in sys.modules or 'numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_the_picture_of_rooms_is_drawn_from_the_package():
    """Its imports; lines may have moved a little since."""
    sys.path.insert(0, str(ROOT / "docs"))
    import rooms

    page = (ROOT / "docs/architecture.md").read_text()
    drawn = page.partition(rooms.BEGIN)[2].partition(rooms.END)[0]
    arrows = {line.strip() for line in drawn.splitlines() if "-->" in line}
    assert arrows == {line.strip() for line in rooms.picture().splitlines() if "-->" in line}, "run docs/rooms.py"
    for room, (lines, _) in rooms.rooms().items():
        (said,) = (line for line in drawn.splitlines() if line.startswith("| ") and line.split(" | ")[1:2] == [room])
        assert int(said.split(" | ")[2].replace(",", "")) == pytest.approx(lines, rel=0.05, abs=20), "run docs/rooms.py"
