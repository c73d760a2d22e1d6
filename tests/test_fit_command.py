"""`bigmodel fit` as a command: what it imports before it answers, and what it says while it works."""

import os
import pty
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT


def points(tmp_path):
    rng = np.random.default_rng(0)
    lines = ["params,tokens,loss"]
    for n in (1e6, 4e6, 1.6e7, 6.4e7):
        for d in (1e8, 4e8, 1.6e9):
            lines.append(f"{n},{d},{(1.7 + 400 / n**0.34 + 410 / d**0.28) * np.exp(0.003 * rng.standard_normal())}")
    (tmp_path / "points.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "points.csv"


def imports(*args, modules):
    """(exit code, which of `modules` the command has imported)."""
    code = (
        "import sys; from bigmodel.cli import main as cli; code = cli.main(sys.argv[1:]); "
        f"print('IMPORTED', code, *[m for m in {modules!r} if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, args)], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    last = done.stdout.splitlines()[-1].split()
    return int(last[1]), set(last[2:])


@pytest.mark.parametrize("verb", ["fit", "report"])
def test_a_mistyped_path_is_told_before_anything_heavy_is_imported(tmp_path, verb):
    found = imports(verb, tmp_path / "poins.csv", modules=("pandas", "scipy", "matplotlib", "jax"))
    assert found == (2, set())


def test_a_fit_without_a_report_needs_no_matplotlib(tmp_path):
    args = ("fit", points(tmp_path), "--bootstrap=20", "--holdout=0")
    assert imports(*args, modules=("pandas", "matplotlib", "scipy.stats", "jax")) == (0, {"pandas"})


def test_a_fit_says_on_a_terminal_what_it_is_at(tmp_path):
    """On stderr, on one line that is wiped; nothing where stderr is a pipe."""
    command = [sys.executable, "-m", "bigmodel", "fit", str(points(tmp_path)), "--bootstrap=20"]
    piped = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert piped.returncode == 0 and piped.stderr == ""
    main, terminal = pty.openpty()
    shown = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=terminal, text=True, timeout=120)
    os.close(terminal)
    told = os.read(main, 100_000).decode()
    os.close(main)
    assert shown.stdout == piped.stdout
    said = [line.removesuffix(" ...") for line in told.split("\r\x1b[K")]
    assert said[1] == f"reading {tmp_path / 'points.csv'}"
    assert "searching for the best chinchilla of 12 points" in said and "refitting 20 resamples" in said
    assert said[-1] == "" and "\n" not in told
