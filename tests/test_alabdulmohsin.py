"""The papers of Alabdulmohsin et al.: laws judged by extrapolation, on planted curves; shapes of ViTs."""

import json
import math

import numpy as np
import pytest
from test_papers import numbers, red, run, wrongly
from test_wrong_inputs import one_line

from bigmodel import papers
from bigmodel.laws import forms
from bigmodel.papers import alabdulmohsin, sovit

SEEN, HELD = 12, 4
X = np.geomspace(1e6, 2e10, SEEN + HELD)


def of_law(name, **params):
    return forms.get(name).predict(params, {"D": X})


def write(file, curves):
    """Curves as the published file has them, {(domain, task, model): losses at X}; the first SEEN are fitted."""
    lines = [",".join((*alabdulmohsin.TEXT, *alabdulmohsin.COLUMNS))]
    for (domain, task, model), losses in curves.items():
        points = enumerate(zip(X.tolist(), losses.tolist(), strict=True))
        lines += [f'{domain},"{task}","{model}",{x!r},{loss!r},{int(i < SEEN)}' for i, (x, loss) in points]
    file.write_text("\n".join(lines) + "\n")
    return file


OWN = {
    ("IC", "birds", "m4"): of_law("m4:x=D", E=0.1, x_0=3e7, c=0.5, alpha=0.6),
    ("IC", "birds", "m3"): of_law("bansal:x=D", E=0.2, x_1=3e9, p=0.4),
}


def test_a_law_extrapolates_its_own_curve(tmp_path):
    """To rounding, where others are 1 % off; and the means over models, and the shares, follow."""
    said = []
    result = papers.check("alabdulmohsin", [write(tmp_path / "mine.csv", OWN)], said.append)
    assert said == ["curve 1 of 2: IC, birds, m4", "curve 2 of 2: IC, birds, m3"]
    found = {row.what: row.ours for row in result.rows}
    for own, other in (("M4", "M3"), ("M3", "M4")):
        curve = {key: losses for key, losses in OWN.items() if key[2] == own.lower()}
        alone = {r.what: r.ours for r in papers.check("alabdulmohsin", [write(tmp_path / "one.csv", curve)]).rows}
        assert alone[f"birds: {own}"] < 1e-8
        assert alone[f"birds: {other}"] > 0.01 and alone["birds: M1"] > 0.01
        assert (
            found[f"birds: {other}"] == found[f"all 2 curves: {other}"] == pytest.approx(alone[f"birds: {other}"] / 2)
        )
    assert found["M4 of M1 to M4"] == 0.5 and found["M1 of all five"] == 0
    assert "nan" not in "\n".join(papers.text(result)) and json.dumps(result.to_dict(), allow_nan=False)


def test_wrong_numbers_of_tables_2_and_3_are_red(tmp_path, monkeypatch):
    """Straight lines whose held-out points are off by what is printed for M1: each number turns its row red."""
    monkeypatch.setattr(alabdulmohsin, "LAWS", dict.fromkeys(alabdulmohsin.LAWS, "power:x=D"))
    line, held = of_law("power:x=D", x_c=1e4, alpha=0.1), np.arange(len(X)) >= SEEN
    curves = {
        (domain, name if domain == "BB" else "loss", "262M" if domain == "BB" else name): line
        * np.exp(errors[0] * held)
        for (domain, name), errors in alabdulmohsin.PRINTED.items()
    }
    write(tmp_path / "benchmark.lang.csv", curves)
    result = papers.check("alabdulmohsin", [tmp_path])
    assert red(result) == [] and [p.name for p in result.missing] == ["benchmark.vision.csv"]
    judged = list(numbers("alabdulmohsin"))
    assert len(judged) == sum(row.ok is True for row in result.rows) == 17
    errors = {
        key: dict.fromkeys(alabdulmohsin.LAWS, float(np.max(np.log(losses / line)))) for key, losses in curves.items()
    }
    for path, number in judged:
        for wrong in (number * 1.06, number / 1.06):
            with monkeypatch.context() as patch:
                wrongly(patch, "alabdulmohsin", path, wrong)
                assert [row.what for row in alabdulmohsin._printed(errors) if row.ok is False] == [f"{path[1][1]}: M1"]


def test_tables_of_the_same_columns_are_told_apart_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(alabdulmohsin, "LAWS", dict.fromkeys(alabdulmohsin.LAWS, "power:x=D"))
    files = [write(tmp_path / f"benchmark.{kind}.csv", OWN) for kind in ("lang", "vision")]
    assert papers.check("alabdulmohsin", files).missing == papers.check("alabdulmohsin", [tmp_path]).missing == ()


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (",1\n", ",2\n", ("IC, birds, m4", "Training is 1 in 0 rows and 0 in 4 of 16", "1 or 0 in every row")),
        (",1\n", ",0\n", ("1 in 0 rows and 0 in 16 of 16", "1 in at least 7")),
        (",0\n", ",1\n", ("1 in 16 rows and 0 in 0 of 16", "0 in at least one")),
        (",0.9", ",-0.9", ("IC, birds, m4", "'Loss' is -0.9", "expected positive numbers")),
        (",0.9", ",x0.9", ("'Loss' is 'x0.9", "expected a number")),
        ("Training", "Split", ("no column 'Training'",)),
    ],
)
def test_a_bad_file_is_one_line(tmp_path, capsys, old, new, says):
    file = write(tmp_path / "benchmark.vision.csv", OWN)
    file.write_text(file.read_text().replace(old, new))
    code, out, err = run(capsys, "alabdulmohsin", f"--points={file}")
    assert code == 2 and out == ""
    one_line(err, *says)


def test_without_its_files_the_paper_names_them(capsys):
    code, _, err = run(capsys, "alabdulmohsin")
    assert code == 2
    one_line(err, "--points=benchmark.vision.csv", "--points=benchmark.lang.csv", "CC BY 4.0")


def test_shapes_by_the_rule_come_back_from_planted_ones(monkeypatch):
    """Shapes that the rule makes, of budgets 5 times what the grid's compute says, are found again, and so is t0."""
    grid = sovit.GRID * sovit.flops(sovit.build("vit-so400m14", **sovit.START))
    planted = {}
    for name, (_, (model, changes), pictures) in sovit.SCALED.items():
        compute = pictures * sovit.flops(sovit.build(model, **changes))
        planted[name] = (sovit.scaled(sovit.START, 5 * compute / grid), (model, changes), pictures)
    monkeypatch.setattr(sovit, "SCALED", planted)
    *shapes, t0 = sovit._shapes()
    assert len(shapes) == 6 and all(row.ours == pytest.approx(row.published, rel=1e-9) for row in shapes)
    assert t0.ours == pytest.approx(sovit.GRID / 1e6 / 5)


def test_a_model_without_its_pool_is_red(monkeypatch):
    true = sovit.published
    monkeypatch.setattr(sovit, "published", lambda name, **changes: true(name, **{**changes, "pool": "mean"}))
    wrong = red(papers.check("sovit"))
    assert wrong == ["vit-so400m14 at 224", "vit-so400m14 at 384", "vit-so400m14 at 518", "vit-G14 at 518"]
    assert math.isclose(sovit.scaled({"width": 100}, 10.0)["width"], 100 * 10**0.22)
