"""The report: every figure that the columns allow, in every format, tables that parse, a page that needs no network."""

import functools
import html
import itertools
import json
import math
import re
import struct
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from bigmodel.cli import main
from bigmodel.laws import figures, report, rows, tables, texts
from bigmodel.laws import fit as fits
from bigmodel.laws.figures import study, style, trust
from bigmodel.laws.figures.study import Study

ROOT = Path(__file__).parents[1]
POINTS = ROOT.parent / "shared" / "points" / "besiroglu2024_chinchilla_points.csv"
ALL = {"compute", "curves", "residuals", "contours", "isoflop", "frontier", "comparison", "clouds", "forest", "heatmap"}
# Matplotlib warns where a figure's parts don't fit.
pytestmark = pytest.mark.filterwarnings("error::UserWarning")


def runs(noise=0.002, seed=0):
    """IsoFLOP budgets of several shapes, each run's loss from a planted law."""
    random, out = np.random.default_rng(seed), []
    for flops in np.geomspace(1e16, 1e18, 4):
        for factor in (0.25, 0.5, 1, 2, 4):
            width = 64 * round((flops / 1e16) ** 0.22 * factor**0.5 * 8)
            n = 12.0 * 4 * width**2
            d = flops / 6 / n
            loss = (1.7 + 400 / n**0.34 + 410 / d**0.28) * math.exp(noise * random.standard_normal())
            run = f"r{len(out):02d}"
            out.append({"run_id": run, "width": width, "depth": 4, "N": n, "D": d, "C": flops, "L": loss})
    return pd.DataFrame(out)


@functools.cache
def build(folder):
    out, frame = folder / "report", runs()
    result = fits.fit(frame, bootstrap=150, against=["power:x=C"])
    beside = report.frontiers(frame, result, bootstrap=50)
    report.write(frame, result, out, "A <title> & more", "bigmodel fit", "examples", "loss (nats)", beside)
    return out, frame, result, beside


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    """(folder, frame, result, frontiers) of a report with every figure; read by test_browser.py too."""
    return build(tmp_path_factory.getbasetemp())


@pytest.fixture
def quick(monkeypatch):
    """PNG at the size of the page alone: the other formats are tested once."""
    monkeypatch.setattr(style, "FORMATS", ("png",))
    monkeypatch.setattr(figures, "SIZES", {"": style.PAGE})


# ------------------------------------------------------------------------------------- figures


def test_every_figure_in_every_format(written):
    out = written[0] / "figures"
    for folder, inches, dpi in ((out, None, 200), (out / "column", 3.25, 300)):
        assert {p.stem for p in folder.glob("*.svg")} == ALL
        for name in ALL:
            png, pdf = (folder / f"{name}.png").read_bytes(), (folder / f"{name}.pdf").read_bytes()
            wide, high = struct.unpack(">II", png[16:24])
            box = re.search(rb"/MediaBox \[ ?0 0 ([\d.]+) ([\d.]+) ?\]", pdf)
            assert float(box[1]) == pytest.approx(72 * wide / dpi, abs=1) and high > 150
            if inches:
                assert wide == pytest.approx(dpi * inches, abs=1), name
            assert b"CreationDate" not in pdf and b"/Subtype /Type3" not in pdf
            assert "<dc:date>" not in (folder / f"{name}.svg").read_text()


@pytest.mark.slow
def test_the_same_fit_is_the_same_file(written, tmp_path, monkeypatch):
    out, frame, result, beside = written
    some = ("compute", "clouds", "heatmap")
    monkeypatch.setattr(figures, "FIGURES", {name: figures.FIGURES[name] for name in some})
    figures.write(Study(frame, result, "examples", "loss (nats)", beside), tmp_path)
    again = [path for path in tmp_path.rglob("*.*") if path.is_file()]
    assert len(again) == 2 * 3 * len(some)
    for path in again:
        assert path.read_bytes() == (out / "figures" / path.relative_to(tmp_path)).read_bytes(), path


def drawn(name, study):
    """The panels of a figure."""
    with matplotlib.rc_context(style.PAGE.style()):
        return figures.FIGURES[name](study, style.PAGE).axes


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("compute", [("C", "L")]),
        ("curves", [("N", "L"), ("D", "L")]),
        ("residuals", [("C", None), ("N", None), ("D", None)]),
        ("contours", [("D", "N")]),
        ("isoflop", [("N", "L")]),
        ("frontier", [("C", "N"), ("C", "D")]),
    ],
)
def test_marks_lie_at_their_runs(written, name, columns):
    _, frame, result, beside = written
    study = Study(frame, result, "examples", "loss", beside)
    for axes, (x, y) in zip(drawn(name, study), columns, strict=False):
        marks = max((np.asarray(found.get_offsets()) for found in axes.collections), key=len)
        up = frame[y] if y else 100 * (study.observed / study.predicted - 1)
        assert np.sort(marks, axis=0) == pytest.approx(np.sort(np.column_stack([frame[x], up]), axis=0))


def test_curves_go_where_the_law_and_the_parabolas_say(written):
    _, frame, result, beside = written
    study = Study(frame, result, "examples", "loss", beside)
    lines = {}
    for name in ("isoflop", "compute", "contours"):
        found = [line.get_xydata() for line in drawn(name, study)[0].lines if line.get_linestyle() in ("-", "--")]
        lines[name] = [line for line in found if len(line) > 2]
    lines["isoflop"] = [line for line in lines["isoflop"] if len(line) == 80]
    assert len(lines["isoflop"]) == 4
    for curve, budget in zip(lines["isoflop"], beside[0]["budgets"], strict=True):
        assert np.interp(budget["N"], *curve.T) == pytest.approx(budget["L"], rel=0.02)
        assert curve[np.argmin(curve[:, 1]), 0] == pytest.approx(budget["N_opt"], rel=0.05)
    for name, value in (("compute", lambda n, d: fits.predict(result, n, d)), ("contours", lambda n, d: n)):
        x, y = lines[name][-1][50]  # the compute-optimal line
        budgets = np.geomspace(1e12, 1e22, 4000)
        best = np.array([fits.optimal(result, c) for c in budgets])
        at = budgets if name == "compute" else best[:, 1]
        assert y == pytest.approx(np.interp(x, at, value(best[:, 0], best[:, 1])), rel=0.01)


@pytest.mark.slow
def test_tick_labels_never_overlap():
    random = np.random.default_rng(0)
    for size in (style.PAGE, style.COLUMN):
        with matplotlib.rc_context(size.style()):
            for k in range(40):
                figure, (axes,) = size.panels(1, size.single[1])
                low = 10.0 ** random.uniform(-3, 20)
                high = low * 10.0 ** random.choice([random.uniform(0.002, 0.1), random.uniform(0.1, 9)])
                text = style.power if k % 3 == 0 else None
                style.log_axis(axes, "x", low, high, text)
                style.log_axis(axes, "y", low, high, text)
                style.colour_bar(figure, axes, style.LogNorm(low, high), "x")
                FigureCanvasAgg(figure).draw()
                for axis, side in ((axes.xaxis, "x"), (axes.yaxis, "y"), (figure.axes[1].yaxis, "y")):
                    found = [t for t in axis.get_ticklabels() if t.get_text()]
                    assert len(found) >= 2 and len({t.get_text() for t in found}) == len(found), (low, high)
                    ends = [getattr(t.get_window_extent(), f"interval{side}") for t in found]
                    assert all(a[1] < b[0] for a, b in itertools.pairwise(sorted(map(sorted, ends)))), (low, high)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("law", "columns", "expected"),
    [
        ("power:x=C", ["C", "L"], {"curves", "residuals", "comparison", "clouds"}),
        ("power:x=N", ["N", "L"], {"curves", "residuals", "comparison", "clouds"}),
        ("learning_rate", ["N", "D", "lr"], {"curves", "residuals", "contours", "comparison", "clouds"}),
        ("USER", ["N", "D", "L"], ALL - {"isoflop", "heatmap"}),
        ("USER3", ["N", "D", "U", "L"], {"curves", "residuals", "comparison", "clouds"}),
    ],
)
def test_figures_follow_from_the_columns(quick, tmp_path, law, columns, expected):
    frame = runs(0.01)
    frame["lr"] = 0.3 * frame["N"] ** -0.25 * frame["D"] ** 0.05 * np.exp(0.02 * np.sin(np.arange(len(frame))))
    frame = pd.concat([frame.assign(U=frame["D"] / k) for k in (1, 5)], ignore_index=True)
    if law == "USER":
        law = str(tmp_path / "my_law.py")
        Path(law).write_text(
            'PARAMETERS = {"E": (1, 2), "A": (10, 1e3), "alpha": (0.3,), "B": (10, 1e3), "beta": (0.3,)}\n'
            'def form(p, row): return p["E"] + p["A"] / row["N"]**p["alpha"] + p["B"] / row["D"]**p["beta"]\n'
        )
    if law == "USER3":
        law = str(tmp_path / "three.py")
        Path(law).write_text(
            'COLUMNS = ("N", "D", "U")\nPARAMETERS = {"E": (2,), "A": (100,), "alpha": (0.3,), "B": (100,)}\n'
            'def form(p, row): return p["E"] + p["A"] / row["N"]**p["alpha"] + p["B"] / (row["D"] * row["U"])**0.14\n'
        )
    result = fits.fit(frame[columns], law, bootstrap=30, holdout=1)
    path = report.write(frame[columns], result, tmp_path / "out", law, "x")
    assert {p.stem for p in (tmp_path / "out" / "figures").glob("*.png")} == expected
    listed = path.read_text().split("<tbody>")[-1].split("</table>")[0]
    assert listed.count("<tr>") == len(frame) and "nan" not in listed.lower()
    assert report.law_text(result).startswith(f"{result['target']}({', '.join(result['columns'])}) = ")


def test_a_weight_above_is_said(quick, tmp_path):
    result = fits.fit(runs(), bootstrap=0, holdout=0, above=0.3)
    assert "summed, runs above the law weighing 0.3)" in report.law_text(result)
    assert "runs above the law weighing 0.3)" in report.write(runs(), result, tmp_path, "x", "x").read_text()


@pytest.mark.slow
def test_an_earlier_reports_figures_go(quick, tmp_path):
    frame = runs()
    for columns, there in ((list(frame), True), (["N", "D", "C", "L"], False)):
        report.write(frame[columns], fits.fit(frame[columns], bootstrap=0, holdout=0), tmp_path, "x", "x")
        assert (tmp_path / "figures" / "heatmap.png").exists() == there
    assert not (tmp_path / "tables" / "holdout.md").exists()


@pytest.mark.slow
def test_hard_results(quick, tmp_path):
    """No resamples, intervals that aren't numbers, one rung."""
    frame = runs()
    result = fits.fit(frame, bootstrap=0, holdout=0)
    names = list(result["ci"])
    result["ci"] = dict.fromkeys(names)
    result["intervals"] = {"percentile": dict.fromkeys(names), "delta": {n: [math.nan, math.nan] for n in names}}
    text = report.write(frame, result, tmp_path / "a", "x", "x").read_text()
    assert "n/a" in text and '<figure id="clouds"' not in text and '<figure id="compute"' in text
    one = frame[frame["C"] == frame["C"].max()]
    between = one.iloc[[2]].assign(N=lambda t: 1.2 * t["N"], D=lambda t: t["D"] / 1.2, L=lambda t: 1.001 * t["L"])
    one = pd.concat([one, between], ignore_index=True)
    found = fits.fit(one, bootstrap=20)
    assert found["holdout"] == []
    assert '<figure id="comparison"' not in report.write(one, found, tmp_path / "b", "x", "x").read_text()


@pytest.mark.slow
def test_a_saved_fit_draws_the_same(quick, written, tmp_path):
    out, frame, _, beside = written
    saved = fits.read(out / "fit.json")
    figures.write(Study(frame, saved, "examples", "loss (nats)", beside), tmp_path)
    assert {p.stem for p in tmp_path.glob("*.png")} == ALL
    for name in ALL - {"compute", "frontier", "clouds"}:  # the resamples that these draw have 8 digits there
        assert (tmp_path / f"{name}.png").read_bytes() == (out / "figures" / f"{name}.png").read_bytes(), name


def test_the_forest_marks_what_is_published(written):
    for who, a, ends, kind in trust.PUBLISHED:
        assert bool(ends) == bool(kind), who
        # Hoffmann's third is outside of its own interval, as printed.
        assert ends is None or who.endswith("approach 3") or ends[0] <= a <= ends[1]
    assert "forest" in ALL and (written[0] / "figures" / "forest.svg").stat().st_size > 10000


# ---------------------------------------------------------------------------------------- page


def test_page_is_complete_and_offline(written):
    out, frame, _, _ = written
    page = (out / "index.html").read_text()
    assert not re.search(r"""(src|href)\s*=\s*["']?\s*(https?:|//)|url\(\s*["']?(https?:|//)|@import|<link""", page)
    assert not re.search(r"https?://", page) and "<script" not in page
    assert "A &lt;title&gt; &amp; more" in page and "examples" in page
    assert set(re.findall(r'<figure id="(\w+)"><img src="data:image/png;base64,', page)) == ALL
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert all(run in page for run in frame["run_id"])
    assert len(page) < 3e6
    assert len(pd.read_csv(out / "rows.csv")) == len(frame)


@pytest.mark.slow
def test_page_of_published_points_is_small(quick, tmp_path):
    if not POINTS.is_file():
        pytest.skip(f"{POINTS} is absent: the published points are not shipped with the project")
    frame = rows.load(POINTS, {"N": "Model Size", "C": "Training FLOP", "L": "loss"}, drop_highest=5)
    result = fits.fit(frame, bootstrap=1000)
    path = report.write(frame, result, tmp_path, "x", "x", frontiers=report.frontiers(frame, result, 50))
    assert len(frame) == 240 and path.stat().st_size < 3e6


@pytest.mark.slow
def test_many_runs_are_thinned(quick, tmp_path):
    random = np.random.default_rng(0)
    n, d = 10 ** random.uniform(6, 9, 5000), 10 ** random.uniform(8, 10, 5000)
    loss = (1.7 + 400 / n**0.34 + 410 / d**0.28) * np.exp(0.01 * random.standard_normal(5000))
    frame = pd.DataFrame({"N": n, "D": d, "C": 6 * n * d, "L": loss}).sort_values("C", ignore_index=True)
    result = fits.fit(frame, bootstrap=0, holdout=1)
    page = report.write(frame, result, tmp_path, "many", "x").read_text()
    assert "2,000 of 5,000 runs" in page and study.MOST_MARKS == 2000
    listed = [int(row) for row in re.findall(r"<tr>\s*<th>(\d+)</th>", page)]
    assert len(listed) == 2000 and listed[0] == 1 and listed[-1] == 5000
    assert len(pd.read_csv(tmp_path / "rows.csv")) == 5000
    marks = [len(found.get_offsets()) for found in drawn("compute", Study(frame, result))[0].collections]
    assert max(marks) == 2000


# -------------------------------------------------------------------------------------- tables


def test_tables_hold_the_numbers(written):
    out, _, result, _ = written
    names = {"parameters", "intervals", "holdout", "compared", "leave_one_out", "budgets_isoflop"}
    assert {p.stem for p in (out / "tables").glob("*.md")} == {p.stem for p in (out / "tables").glob("*.tex")} == names
    lines = (out / "tables" / "parameters.md").read_text().splitlines()
    found = {cells[1].strip(): cells[2:5] for cells in (line.split("|") for line in lines[4:])}
    assert set(found) == {*result["params"], "a", "b"}
    for name, value in result["params"].items():
        assert float(found[name][0]) == pytest.approx(value, rel=1e-2)
        low, high = json.loads(found[name][2])
        assert [low, high] == pytest.approx(result["ci"][name], rel=1e-2)
    for path in (out / "tables").glob("*.tex"):
        text = path.read_text()
        spec = re.search(r"\\begin\{tabular\}\{(l r*)\}".replace(" ", ""), text)[1]
        body = text[text.index(r"\toprule") : text.index(r"\bottomrule")]
        for row in (line for line in body.splitlines() if line.endswith(r"\\")):
            assert len(re.findall(r"(?<!\\)&", row)) == len(spec) - 1, row
            assert not re.search(r"(?<!\\)[%#]", row) and row.count("$") % 2 == 0
            assert "_" not in re.sub(r"\\_|\$[^$]*\$", "", row)
        assert text.count("{") == text.count("}") and text.isascii()
    assert r"$\alpha$ & " in (out / "tables" / "parameters.tex").read_text()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1.2e+21 FLOPs", r"$1.2\times10^{21}$ FLOPs"),
        ("[-0.03, 8.3e-07]", r"[$-$0.03, $8.3\times10^{-7}$]"),
        ("50 % of a_b & c^d", r"50 \% of a\_b \& c\textasciicircum{}d"),
        ("2.58×", r"2.58$\times$"),
        ("power:x=C", "power:x=C"),
        (r"C:\x{}", r"C:\textbackslash{}x\{\}"),
    ],
)
def test_latex(text, expected):
    assert tables._latex(text) == expected


def test_symbols():
    wanted = {"alpha": r"$\alpha$", "E": "$E$", "N0": "$N_{0}$", "R_d": "$R_{d}$", "lr": "lr", "floor": "floor"}
    assert {name: texts.symbol(name) for name in wanted} == wanted


# ------------------------------------------------------------------------------- text, command


def test_law_text():
    frame = runs(0)
    text = report.law_text(fits.fit(frame, bootstrap=20))
    assert text.startswith("L(N, D) = 1.700 + 400/N^0.340 + 410/D^0.280\n")
    assert "N_opt ~ C^0.452 [no interval]" in text  # without noise all resamples agree
    assert "held out the largest 5 runs (1 rung, 4.64x the compute)" in text
    isoflop = report.law_text(fits.fit(frame, "isoflop", bootstrap=20))
    assert isoflop.startswith("N_opt = ") and "4 budgets of 20 runs, by isoflop" in isoflop


def test_tiles_tables_and_text_say_how_sure_they_are(quick, tmp_path):
    """Runs of few tokens per parameter: what they say of the optimum's is far beyond them, and marked so."""
    n, ratio = (x.ravel() for x in np.meshgrid([1e7, 4e7, 1.6e8, 6.4e8], [0.3, 1.0, 3.0]))
    loss = 1.7 + 400 / n**0.34 + 410 / (ratio * n) ** 0.28
    loss *= np.exp(0.002 * np.random.default_rng(0).standard_normal(12))
    frame = pd.DataFrame({"N": n, "D": ratio * n, "L": loss})
    result = fits.fit(frame, bootstrap=150, holdout=1)
    best = result["optimal"]
    low, high = best["tokens_per_param_runs"]
    assert high < 4
    (flops, ratio), *_ = best["tokens_per_param_at"].items()
    assert ratio > high
    page = report.write(frame, result, tmp_path, "x", "x").read_text()
    ends = best["tokens_per_param_ci"][flops]
    shown = texts.interval(ends).replace("n/a", "[no interval]")
    assert shown != "[no interval]"
    line = f"{texts.number(ratio)}* {shown} at {flops} FLOPs"
    said = f"(*: extrapolated; the runs' D/N: {texts.number(low)} to {texts.number(high)})"
    for text in (report.law_text(result), html.unescape(page)):
        assert line in text and said in text
        assert re.search(rf"N_opt ~ C\^{best['a']:.3f} \[[^]]+\]", text)
        assert re.search(r"mean \|error\| [\d.]+ % \[[^]]+\]", text)
    assert line in (tmp_path / "tables" / "parameters.md").read_text()
    assert "Beyond the\ndotted lines, the limits of the runs, the curves are extrapolated" in page
    labels = drawn("frontier", Study(frame, result))[0].get_legend_handles_labels()[1]
    assert "Limit of the runs" in labels


@pytest.mark.slow
def test_points_of_runs_are_never_called_runs(quick, tmp_path):
    frame = pd.concat([runs(0.01).assign(run_id=[f"r{i}" for i in range(20)])] * 2, ignore_index=True)
    frame["L"] *= np.where(np.arange(40) < 20, 1, 1.001)  # two validation sets of each run
    result = fits.fit(frame, bootstrap=30, holdout=1)
    page = report.write(frame, result, tmp_path, "x", "x").read_text()
    assert "<p>40 points of 20 runs; Parameters, N: " in page and "fitted to 40 points of 20 runs" in page
    text = report.law_text(result)
    assert "  40 points of 20 runs, objective" in text and "40 runs" not in text + page
    assert "held out the largest 10 points (1 rung" in text


def test_fit_writes_a_report_of_any_points(quick, tmp_path, capsys):
    runs().to_csv(tmp_path / "points.csv", index=False)
    options = ["--bootstrap=20", f"--report={tmp_path / 'out'}"]
    assert main.main(["fit", str(tmp_path / "points.csv"), *options]) == 0
    page = (tmp_path / "out" / "index.html").read_text()
    assert "<h1>points</h1>" in page and '<figure id="isoflop"' in page
    assert f"bigmodel fit {tmp_path}/points.csv --bootstrap=20 --report=" in page
    assert main.main(["fit", str(tmp_path / "points.csv"), "--law=isoflop", *options]) == 2
    assert "isoflop has no loss to draw" in capsys.readouterr().err


def test_the_wing_needs_no_jax():
    modules = "bigmodel.laws.report, bigmodel.laws.rows"
    code = f"import sys, {modules}\nsys.exit('jax' in sys.modules or 'flax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0


def test_report_of_points_without_noise(tmp_path):
    """All samples of the bootstrap are one number, up to rounding."""
    out = tmp_path / "report"
    frame = runs(noise=0.0)[["run_id", "N", "D", "C", "L"]]
    frame["L"] = 2 + 10 * frame["N"] ** -0.3 + 20 * frame["D"] ** -0.3
    report.write(frame, fits.fit(frame, bootstrap=20), out, "exact", "bigmodel fit", "examples", "loss (nats)", {})
    assert (out / "figures/clouds.png").stat().st_size
