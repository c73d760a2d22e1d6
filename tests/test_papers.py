"""Every paper's judged rows are ok, and a wrong number or a wrong model turns one red."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from test_wrong_inputs import one_line

from bigmodel import budget, cli, papers
from bigmodel.config import UsageError
from bigmodel.models import decoder
from bigmodel.papers import Row, besiroglu, bnsl, chinchilla, gpt2, gpt3, porian, steplaw

POINTS = Path(__file__).parents[2] / "shared" / "points"
needs_points = pytest.mark.skipif(
    not POINTS.is_dir(), reason="no ../shared/points: the project ships no published runs"
)
WITHOUT_POINTS = [name for name in papers.names() if name not in ("besiroglu", "porian")]


def red(result):
    return [row.what for row in result.rows if row.ok is False]


def run(capsys, *args):
    """(exit code, stdout, stderr)"""
    code = cli.main(["paper", *map(str, args)])
    out = capsys.readouterr()
    return code, out.out, out.err


# --------------------------------------------------------------------------- what is reproduced


@pytest.mark.parametrize("name", WITHOUT_POINTS)
def test_a_paper_s_rows_are_ok_without_points(name):
    result = papers.check(name)
    assert red(result) == []
    assert result.rows and any(row.ok for row in result.rows)
    assert result.missing == papers.wanted(papers.paper(name))


@needs_points
@pytest.mark.parametrize("name", ["besiroglu", "chinchilla", "porian"])
def test_a_paper_s_rows_are_ok_with_its_points(name):
    result = papers.check(name, [POINTS])
    assert red(result) == []
    assert result.missing == ()
    assert len(result.rows) > 40


def test_chinchilla_s_table_needs_the_relative_positions(monkeypatch):
    """49 of 50 within 0.5 %; without the positions' matrix every row is too small by 4 % or more."""
    sizes = [row for row in papers.check("chinchilla").rows if row.part.startswith("Table A9")]
    *table, close = sizes
    assert len(table) == 50 and close.ours == 49
    monkeypatch.setattr(chinchilla, "build", lambda shape, build=chinchilla.build: without(build(shape)))
    assert all(row.difference < -0.04 for row in chinchilla._sizes()[:50])


def without(cfg):
    return papers.model("decoder", **{**cfg.to_dict(), "position": "none"})


def test_step_law_from_planted_points(tmp_path):
    """Constants that were planted come back, from the stored rows and from our own fit of a grid."""
    c, p, q, batch_c, batch_q = (value for value, _ in steplaw.LAW.values())
    stored, grid = (tmp_path / points.name for points in steplaw.POINTS)
    spread = np.linspace(-1, 1, 5)
    columns = [math.log(c) + 0 * spread, p + 0.01 * spread, q + 0 * spread, math.log(batch_c) + 0 * spread, batch_q]
    write(stored, steplaw.POINTS[0].columns, np.array([np.broadcast_to(x, 5) for x in columns]).T)
    lines = []
    for shape in (steplaw.FIRST, (1280, 9472, 10, 10)):
        n = shape[3] * (4 * shape[0] ** 2 + 3 * shape[0] * shape[1])
        for d in (1e10, 4e10, 1e11):
            for factor in (0.5, 1.0, 2.0):  # the middle one is the best
                lr, batch = factor * c * n**p * d**q, batch_c * d**batch_q / steplaw.TOKENS
                lines.append([*shape, lr, batch, 2.0 + abs(math.log(factor)), d, n])
    write(grid, steplaw.POINTS[1].columns, lines)
    result = papers.check("steplaw", [stored, grid])
    assert red(result) == [] and result.missing == ()
    fitted = [row for row in result.rows if row.part.endswith("grid of runs")]
    assert len(fitted) == 7
    for row in fitted:
        assert row.ours == pytest.approx(row.published, rel=1e-4), row.what


def test_broken_law_from_planted_points(tmp_path):
    """Points of the printed parameters give these back; as a file by any name, known by its columns."""
    x = np.array([160, 192, 256, 320, 384, 448, 480, 512, 544, 576, 608, 640, 672, 736, 800, 864, 928.0])
    p = bnsl.PRINTED
    y = p["a"] + p["b"] * x ** -p["c0"] * (1 + (x / p["d1"]) ** (1 / p["f1"])) ** (-p["c1"] * p["f1"])
    file = tmp_path / "mine.csv"
    write(file, ("x", "y"), np.array([x, y]).T)
    result = papers.check("bnsl", [file])
    assert red(result) == [] and result.missing == ()
    assert {row.what for row in result.rows if row.ok} >= p.keys()
    assert next(row for row in result.rows if row.what == "3 held-out points").ours < 1e-3


def write(file, columns, rows):
    file.write_text("\n".join([",".join(columns), *(",".join(repr(float(v)) for v in row) for row in rows)]) + "\n")


# ------------------------------------------------------------------------------- what turns red


@pytest.mark.parametrize("name", WITHOUT_POINTS)
def test_every_judged_row_can_turn_red(name):
    """A published number moved by more than its tolerance is seen, whichever row it stands in."""
    for row in papers.check(name).rows:
        if row.tolerance is None:
            continue
        unit = 1.0 if row.absolute else abs(row.published)
        off = row.published + 2.1 * row.tolerance * unit + (1.0 if row.tolerance == 0 else 0.0)
        fields = {k: getattr(row, k) for k in Row.__dataclass_fields__}
        assert Row(**{**fields, "published": off}).ok is False, row.what


def test_a_wrong_published_number_is_red(monkeypatch, capsys):
    monkeypatch.setattr(gpt2, "FORWARD", gpt2.FORWARD + 1)
    assert red(papers.check("gpt2")) == ["forward"]
    code, out, _ = run(capsys, "gpt2")
    assert code == 1
    assert "NO" in next(line for line in out.splitlines() if line.startswith("  forward "))
    code, out, _ = run(capsys, "gpt2", "--json")
    assert code == 1 and json.loads(out)["ok"] is False


def test_a_wrong_model_is_red(monkeypatch, capsys):
    row = decoder.PUBLISHED["gpt3-175b"]
    monkeypatch.setitem(decoder.PUBLISHED, "gpt3-175b", {**row, "model": {**row["model"], "width": 12544}})
    assert red(papers.check("gpt3")) == ["175B or GPT-3 (n_params, billions)"]
    assert run(capsys, "gpt3")[0] == 1


def test_a_wrong_module_is_red(monkeypatch):
    """A decoder that forgot a matrix a layer: every exact row of GPT-2 is off."""
    counts = budget.counts
    monkeypatch.setattr(budget, "counts", lambda f, m: tuple(n - m.depth * m.width**2 for n in counts(f, m)))
    assert len(red(papers.check("gpt2"))) >= 13
    assert len(red(papers.check("opt"))) >= 9


@needs_points
def test_a_wrong_fit_is_red(monkeypatch):
    """The five outliers kept, and too few resamples."""
    monkeypatch.setattr(besiroglu, "RESAMPLES", 100)
    monkeypatch.setattr(besiroglu, "SCIPY", {})
    monkeypatch.setattr(besiroglu, "OUTLIERS", 0)
    parts = {row.part for row in papers.check("besiroglu", [POINTS]).rows if row.ok is False}
    assert len(parts) == 4


@needs_points
def test_a_wrong_setting_is_red(monkeypatch):
    swapped = {**porian.PATH, "correct warm-up": ("base,long,kaplan,standard,val", 0.6020, 0.604, 0.600)}
    monkeypatch.setattr(porian, "PATH", swapped)
    steps = red(papers.check("porian", [POINTS / porian.POINTS[0].name]))
    assert steps == ["correct warm-up, stored", "correct warm-up, printed", "correct warm-up"]


@pytest.mark.parametrize(
    ("row", "difference", "ok"),
    [
        (Row("", "", 200, 201, 0.01), 0.005, True),
        (Row("", "", 200, 203, 0.01), 0.015, False),
        (Row("", "", -200, -203, 0.02), -0.015, True),
        (Row("", "", 0.5, 0.52, 0.03, absolute=True), 0.02, True),
        (Row("", "", 0.5, 0.44, 0.03, absolute=True), -0.06, False),
        (Row("", "", 7, 7, 0), 0, True),
        (Row("", "", 7, 8, 0), 1 / 7, False),
        (Row("", "", 7, 8), 1 / 7, None),
        (Row("", "", 0, 1e-9, 0.5), math.inf, False),
        (Row("", "", 0, 0, 0.5), 0, True),
        (Row("", "", 1, math.nan, 0.5), math.nan, False),
    ],
)
def test_difference_and_ok(row, difference, ok):
    assert row.difference == pytest.approx(difference, nan_ok=True)
    assert row.ok is ok


# ---------------------------------------------------------------------------------- the command


def test_list_names_every_paper_and_its_points(capsys):
    code, out, _ = run(capsys, "list")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()[1:]] == papers.names()
    assert "porian2024_optima.csv" in out
    code, out, _ = run(capsys, "list", "--json")
    assert {p["name"]: p["points"] for p in json.loads(out)}["gpt3"] == []


def test_what_isn_t_computed_is_said(capsys):
    _, out, _ = run(capsys, "chinchilla")
    line = next(line for line in out.splitlines() if line.startswith("not computed"))
    assert "--points=besiroglu2024_chinchilla_points.csv" in line and "analyzing-chinchilla" in line
    _, out, _ = run(capsys, "chinchilla", "--json")
    assert json.loads(out)["not_computed"][0]["name"] == "besiroglu2024_chinchilla_points.csv"
    assert "not computed" not in run(capsys, "gpt3")[1]


def test_out_writes_the_table_three_times(capsys, tmp_path):
    code, out, _ = run(capsys, "gpt3", f"--out={tmp_path}/a/b")
    assert code == 0 and "gpt3.tex" in out
    result = papers.check("gpt3")
    assert json.loads((tmp_path / "a/b/gpt3.json").read_text()) == json.loads(json.dumps(result.to_dict()))
    markdown, tex = ((tmp_path / f"a/b/gpt3.{suffix}").read_text() for suffix in ("md", "tex"))
    for row in result.rows:
        assert row.what in markdown
    body = [line for line in tex.splitlines() if line.endswith(r"\\") and "multicolumn" not in line and "&" in line]
    assert len(body) == 1 + len(gpt3.SIZES) + 2 and all(line.count("&") == 5 for line in body)
    assert tex.count("{") == tex.count("}") and "_params" not in tex.replace(r"\_", "")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["gtp3"], "did you mean 'gpt3'"),
        (["besiroglu"], "data/svg_extracted_data.csv"),
        (["porian"], "porian2024_isoflop_points.csv"),
        (["gpt3", "--points=x.csv"], "reads no points"),
        (["bnsl", "--points=nowhere.csv"], "nowhere.csv"),
        (["bnsl", "--points=other.csv"], "no column 'y' (did you mean 'yy'?)"),
        (["bnsl", "--points=words.csv"], "row 2: 'y' is 'many'"),
        (["bnsl", "--points=holes.csv"], "row 1: 'y'"),
        (["bnsl", "--points=short.csv"], "has 2 points"),
        (["bnsl", "--points=short.csv", "--points=short.csv"], "given twice"),
        (["bnsl", "--points=empty"], "none of four_digit_addition.csv is in that folder"),
        (["chinchilla", "--points=few.csv"], "has 1 points"),
        (["gpt3", "--pionts=x"], "did you mean '--points'"),
        (["gpt3", "--config.model.width=3"], "paper takes no --config.model.width"),
        (["list", "--out=x"], "takes neither"),
        (["opt", "--out=other.csv"], "can't write"),
    ],
)
def test_mistakes_are_one_line(args, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    files = {
        "other.csv": "x,yy\n1,2\n",
        "words.csv": "x,y\n1,2\n2,many\n",
        "holes.csv": "x,y\n1,\n2,3\n",
        "short.csv": "x,y\n1,2\n2,3\n",
        "few.csv": "Model Size,Training FLOP,loss\n1e9,1e20,3\n",
    }
    for name, content in files.items():
        Path(name).write_text(content)
    Path("empty").mkdir()
    code, out, err = run(capsys, *args)
    assert code == 2 and out == ""
    one_line(err, said)


def test_a_paper_is_found_by_its_file():
    with pytest.raises(UsageError, match="did you mean 'kaplan'"):
        papers.paper("caplan")
    for name in papers.names():
        module = papers.paper(name)
        assert module.__doc__ and module.TITLE and module.SOURCE
