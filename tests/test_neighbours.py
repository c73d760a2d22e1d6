"""A file that is loaded by its path imports its neighbours, as a script does, and no other folder's."""

import json
import sys

import pytest
from conftest import ROOT, bigmodel

from bigmodel.config import load_module
from bigmodel.errors import UsageError

SWEEP = f'''"""Two widths of an MLP."""
import rates
from tools import shapes

CONFIG = "{ROOT}/experiments/digits.py"
LAW = None

def get_sweep():
    return [{{"model.width": width, "optim.lr": rates.LR}} for width in shapes.WIDTHS]

def report(folder, out):
    return f"{{shapes.count()}} shapes"
'''


def study(folder, lr=0.001, widths=(4, 8)):
    """A user's folder: a sweep with a neighbour file and a package beside it."""
    (folder / "tools").mkdir(parents=True)
    (folder / "mine.py").write_text(SWEEP)
    (folder / "rates.py").write_text(f"LR = {lr}\n")
    (folder / "tools/sizes.py").write_text(f"WIDTHS = {list(widths)}\n")
    (folder / "tools/shapes.py").write_text(
        "from tools.sizes import WIDTHS\n\ndef count():\n    return len(WIDTHS)\n"
    )  # fmt: skip
    return folder / "mine.py"


def test_a_users_sweep_imports_its_neighbours(tmp_path):
    file = study(tmp_path / "elsewhere/sweeps")
    done = bigmodel("sweep", "plan", str(file), "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [row["overrides"]["model.width"] for row in json.loads(done.stdout)] == [4, 8]
    run = tmp_path / "runs/mine/a"
    run.mkdir(parents=True)
    (run / "result.json").write_text("{}")
    done = bigmodel("report", str(file), cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "2 shapes\n"), done.stderr


def test_folders_do_not_share_neighbours_of_one_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study(tmp_path / "one", lr=0.1, widths=(4,))
    study(tmp_path / "two", lr=0.2, widths=(8, 16))
    before, path = set(sys.modules), list(sys.path)
    one, two = (load_module(f"{name}/mine.py", "sweep") for name in ("one", "two"))
    assert one.get_sweep() == [{"model.width": 4, "optim.lr": 0.1}]
    assert [row["model.width"] for row in two.get_sweep()] == [8, 16] and two.get_sweep()[0]["optim.lr"] == 0.2
    assert (one.report("", ""), two.report("", "")) == ("1 shapes", "2 shapes")
    assert sys.path == path and set(sys.modules) == before


def test_packages_that_a_file_imports_stay_imported(tmp_path):
    """Also those that lie below the folder, as in a virtual environment there; a second import of them would fail."""
    package = tmp_path / "venv/installed"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (tmp_path / "mine.py").write_text(f"import sys\nsys.path.append({str(package.parent)!r})\nimport installed\n")
    try:
        module = load_module(tmp_path / "mine.py", "config")
        assert sys.modules["installed"] is module.installed
    finally:
        sys.modules.pop("installed", None)
        sys.path.remove(str(package.parent))


def test_a_broken_neighbour_is_an_error_of_the_file_that_imports_it(tmp_path):
    file = study(tmp_path)
    (tmp_path / "rates.py").write_text("1 / 0\n")
    path = list(sys.path)
    with pytest.raises(UsageError, match=r"sweep file '.*mine\.py', line 2: ZeroDivisionError"):
        load_module(file, "sweep")
    assert sys.path == path and "rates" not in sys.modules
