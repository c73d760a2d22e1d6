"""`bigmodel report` a second time: it fits and draws again only if something that the report depends on has changed."""

import json
from pathlib import Path

import numpy as np
import pytest
from test_fit_command import imports

from bigmodel.cli import main
from bigmodel.laws import figures, fit, stored
from bigmodel.laws.figures import style

SWEEP = '"""A study of planted runs."""\nCONFIG = "none.py"\n'
OWN = SWEEP + 'def report(folder, out):\n    return "a line of its own"\n'


def add_run(folder, name, n, d, noise=0.0):
    loss = (1.7 + 400 / n**0.34 + 410 / d**0.28) * np.exp(noise)
    (folder / name).mkdir(parents=True)
    result = {"run_id": name, "status": "done", "params": n, "tokens": d, "flops": 6 * n * d, "loss": loss}
    (folder / name / "result.json").write_text(json.dumps({**result, "unit": "examples"}))
    (folder / name / "config.json").write_text(json.dumps({"run": {"wandb": "off"}}))


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A folder with a sweep file, its 12 runs, and the law of each fit that is made; figures are few and small."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(style, "FORMATS", ("png",))
    monkeypatch.setattr(figures, "SIZES", {"": style.PAGE})
    monkeypatch.setattr(figures, "FIGURES", {"compute": figures.FIGURES["compute"]})
    laws, real = [], fit.fit

    def few_resamples(frame, law, **options):
        laws.append(law)
        return real(frame, law, bootstrap=20, holdout=1, **options)

    monkeypatch.setattr(fit, "fit", few_resamples)
    random = np.random.default_rng(0)
    sizes = [(n, d) for n in (1e6, 4e6, 1.6e7, 6.4e7) for d in (1e8, 4e8, 1.6e9)]
    for k, (n, d) in enumerate(sizes):
        add_run(tmp_path / "runs/mine", f"r{k:02}", n, d, 0.003 * random.standard_normal())
    Path("mine.py").write_text(SWEEP)
    return tmp_path / "runs/mine", laws


def lines(capsys, *options):
    capsys.readouterr()
    assert main.main(["report", "mine.py", *options]) == 0
    return capsys.readouterr().out.splitlines()


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_an_unchanged_report_is_printed_and_not_made_again(study, capsys):
    folder, laws = study
    first = lines(capsys)
    made = contents(folder)
    again = lines(capsys)
    assert len(laws) == 1 and contents(folder) == made
    assert first[0].startswith("L(N, D) = ") and first[-1] == "report: runs/mine/report/index.html"
    assert again == [*first[:-1], f"{first[-1]} (nothing changed)"]


def test_its_json_is_that_of_the_fit(study, capsys):
    stored_, fresh = (json.loads("\n".join(lines(capsys, "--json", f"--out={out}"))) for out in ("a", "b"))
    assert json.loads("\n".join(lines(capsys, "--json", "--out=a"))) == stored_
    assert stored_.pop("report") == "a/index.html" and fresh.pop("report") == "b/index.html"
    assert stored_ == fresh and len(study[1]) == 2


def raise_a_loss(folder):
    result = json.loads((folder / "r03/result.json").read_text())
    (folder / "r03/result.json").write_text(json.dumps({**result, "loss": 1.001 * result["loss"]}))


def supersede(folder):
    rows = [json.dumps({"run_id": f"r{k:02}", "superseded": k == 0}) for k in range(12)]
    (folder / "plan.jsonl").write_text("\n".join(rows))


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


CHANGES = {
    "a row": raise_a_loss,
    "a further run": lambda folder: add_run(folder, "r99", 2e7, 2e8),
    "a run that began": lambda folder: (
        (folder / "begun").mkdir(),
        (folder / "begun/config.json").write_text("{}"),
    ),
    "the plan": supersede,
    "the sweep file": lambda folder: Path("mine.py").write_text(SWEEP.replace("planted", "other")),
    "the page": lambda folder: flip(folder / "report/index.html"),
    "a table that is missing": lambda folder: (folder / "report/tables/holdout.md").unlink(),
    "a figure that is missing": lambda folder: (folder / "report/figures/compute.png").unlink(),
    "fit.json that is missing": lambda folder: (folder / "report/fit.json").unlink(),
    "a byte of the key": lambda folder: flip(folder / "report/report.key"),
}


QUICK = ("the plan", "the page", "a byte of the key")
MARKED = [change if change in QUICK else pytest.param(change, marks=pytest.mark.slow) for change in CHANGES]


@pytest.mark.parametrize("change", MARKED)
def test_a_change_makes_the_report_again(study, capsys, change):
    folder, laws = study
    lines(capsys)
    CHANGES[change](folder)
    assert "nothing changed" not in lines(capsys)[-1] and len(laws) == 2
    assert "nothing changed" in lines(capsys)[-1] and len(laws) == 2


@pytest.mark.parametrize("option", ["--law=gadre", "--earlier"])
def test_another_option_makes_the_report_again(study, capsys, option):
    _, laws = study
    lines(capsys)
    assert "nothing changed" not in lines(capsys, option)[-1] and len(laws) == 2


@pytest.mark.parametrize(
    ("name", "value"), [("SOURCES", ("laws/fit.py",)), ("PACKAGES", ("numpy",))], ids=["code", "packages"]
)
def test_other_code_makes_the_report_again(study, capsys, monkeypatch, name, value):
    _, laws = study
    lines(capsys)
    monkeypatch.setattr(stored, name, value)
    assert "nothing changed" not in lines(capsys)[-1] and len(laws) == 2


def test_the_code_of_the_laws_is_in_the_key():
    package = Path(stored.__file__).parents[1]
    found = {path for pattern in stored.SOURCES for path in package.glob(pattern)}
    assert found >= {
        package / "laws/fit.py",
        package / "laws/figures/runs.py",
        package / "files.py",
        package / "laws/report.html",
    }


def test_a_sweep_with_its_own_report_is_always_made_again(study, capsys):
    folder, laws = study
    Path("mine.py").write_text(OWN)
    for _ in range(2):
        said = lines(capsys)
        assert said[-2:] == ["a line of its own", "report: runs/mine/report/index.html"]
    assert len(laws) == 2 and not (folder / "report/report.key").exists()


def test_an_unchanged_report_imports_nothing_heavy(study, capsys):
    folder, _ = study
    assert main.main(["report", str(folder)]) == 0
    found = imports("report", folder, modules=("jax", "numpy", "pandas", "scipy", "matplotlib"))
    assert found == (0, set())
