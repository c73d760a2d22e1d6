"""The README's own study, executed as it is printed."""

import json
import re
import sysconfig
from pathlib import Path

import pytest
from conftest import ROOT, bigmodel

README = (ROOT / "README.md").read_text()


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A folder with its two files and 2.5 MB of text: Python's own sources."""
    home = tmp_path_factory.mktemp("study")
    text = README.partition("A study is two small files")[2]
    files = re.findall(r"`((?:experiments|sweeps)/\w+\.py)`", text)[:2]
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)[:2]
    for name, block in zip(files, blocks, strict=True):
        (home / name).parent.mkdir()
        (home / name).write_text(block)
    texts, size = home / "my_texts", 0
    texts.mkdir()
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        if size < 2_500_000:
            content = path.read_bytes().decode("utf-8", errors="ignore")
            (texts / f"{path.stem}.txt").write_text(content)
            size += len(content)
    commands = re.search(r"```\n(bigmodel prepare my_texts/ --out.*?)```", text, re.S)
    return home, commands[1].splitlines()


def run(home, command):
    done = bigmodel(*command.split()[1:], cwd=home, timeout=900)
    assert done.returncode == 0, done.stderr
    return done


def test_its_sweep_is_one_that_a_laptop_finishes(study):
    home, commands = study
    run(home, commands[0])
    plan = run(home, "bigmodel sweep plan sweeps/mine.py --json").stdout
    rows = json.loads(plan)
    assert len(rows) == 9 and min(row["steps"] for row in rows) >= 100
    assert sum(row["flops"] for row in rows) < 2e12 and max(row["epochs"] for row in rows) <= 1


@pytest.mark.slow
def test_it_runs_as_printed(study):
    home, commands = study
    done = [run(home, command) for command in commands]
    assert "9 trained" in done[1].stdout and "L(N, D) = " in done[2].stdout
    assert (home / "runs/mine/report/index.html").is_file()
