"""Rows: what is read from sweeps, tables and exports of W&B, what it is said to count, and what is left out."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, TINY

from bigmodel import config, files
from bigmodel.cli import main
from bigmodel.errors import UsageError
from bigmodel.laws import checks, readers, report, rows, sources
from bigmodel.laws import fit as fits

POINTS = ROOT.parent / "shared" / "points"
CONVENTIONS = {"N": "params (total)", "D": "tokens (seen)", "C": "flops (exact)", "L": "loss (validation)"}


def results(**changes):
    """result.json of runs as `bigmodel train` writes it; `run0={...}` changes the first."""
    out = []
    for width in (64, 128, 256):
        for depth in (2, 4):
            for steps in (100, 400, 1600):
                n, d = 12 * depth * width**2, 10000 * steps
                out.append({
                    "run_id": f"r{width}-{depth}-{steps}", "name": "gpt", "status": "done", "family": "decoder",
                    "data": "news", "width": width, "depth": depth, "params": n + 300 * width,
                    "params_nonembedding": n + 5 * width, "params_kaplan": n, "tokens": d, "unique_tokens": d // 2,
                    "epochs": 2.0, "unit": "tokens", "steps": steps, "flops": 7.0 * n * d, "flops_6nd": 6.0 * n * d,
                    "loss": 1.7 + 400 / (n + 300 * width) ** 0.34 + 410 / d**0.28, "bits_per_byte": 1.0,
                    "train_loss": 2.5, "last_good_step": steps, "seed": 3, "batch_size": 32, "lr": 0.001,
                    "device": "cpu", "num_devices": 1, "jax_version": "0.10", "date": "2026-01-05T10:00:00Z",
                    "wall_seconds": 3.25, "git_sha": "0123abcd", "git_dirty": False,
                })  # fmt: skip
                out[-1] |= changes.get(f"run{len(out) - 1}", {})
    return out


def write_runs(folder, runs):
    for run in runs:
        (folder / run["run_id"]).mkdir(parents=True)
        (folder / run["run_id"] / "result.json").write_text(json.dumps(run))
    return folder


def wandb_runs():
    """Our own runs as W&B's API gives them: config.json as config, the last metrics under result.json as summary."""
    out = []
    for run in results():
        config = {"family": "decoder", "model": {"width": run["width"], "depth": run["depth"]},
                  "train": {"seed": 3, "tokens": 0, "steps": run["steps"]}, "data": {"name": "news"}}  # fmt: skip
        summary = {"_step": run["steps"], "eval_loss": run["loss"], "mfu": 0.1, "grad_norm": 0.5, **run}
        out.append({"id": run["run_id"], "name": "gpt", "state": "finished", "config": config, "summary": summary})
    law = {"law": "chinchilla", "params": {"E": 1.7, "A": 400.0}, "n_points": 18}
    out.append({"id": "law-demo", "name": "demo law", "state": "finished", "config": {}, "summary": law})
    crashed = {"_step": 7, "loss": 9.1, "tokens": 70000, "lr": 0.001}
    return [*out, {"id": "c", "name": "gpt", "state": "crashed", "config": out[0]["config"], "summary": crashed}]


def wandb_csv():
    """The same as the CSV of W&B's runs table."""
    flat = [readers._flatten({k: v for k, v in run.items() if k not in ("config", "summary")}) for run in wandb_runs()]
    for row, run in zip(flat, wandb_runs(), strict=True):
        readers._dotted(run["config"], "", row)
        readers._dotted(run["summary"], "", row)
    names = {"id": "ID", "name": "Name", "state": "State"}
    return pd.DataFrame(flat).rename(columns=names).to_csv(index=False, quoting=1)


# ------------------------------------------------------------------------------------- sweeps


def test_load_runs_counts_what_it_drops(tmp_path):
    write_runs(tmp_path, results(
        run0={"status": "diverged", "loss": None}, run1={"loss": None}, run2={"status": "running"}
    ))  # fmt: skip
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "result.json").write_text('{"params": 1')
    (tmp_path / "waiting").mkdir()
    (tmp_path / "waiting" / "config.json").write_text("{}")
    frame = rows.load(tmp_path)
    assert len(frame) == 15
    counts = frame.attrs["counts"]
    assert (counts["diverged"], counts["unusable"], counts["unfinished"], counts["unreadable"]) == (1, 1, 2, 1)
    assert len(frame.attrs["warnings"]) == 5
    assert frame.attrs["conventions"] == CONVENTIONS
    assert list(frame.columns[:4]) == ["N", "D", "C", "L"]
    assert {"width", "depth", "run_id", "seed", "family", "status"} <= set(frame.columns)
    assert fits.fit(frame, bootstrap=0, holdout=1)["warnings"] == frame.attrs["warnings"]


def test_every_number_is_kept_under_its_name(tmp_path):
    frame = rows.load(write_runs(tmp_path, results()))
    for name in ("unique_tokens", "steps", "batch_size", "lr", "params_kaplan", "flops_6nd", "wall_seconds"):
        assert frame[name].dtype.kind in "if", name
    assert frame["seed"].dtype == np.int64 and set(frame["seed"]) == {3}
    assert frame["width"].dtype == np.int64
    assert "device" not in frame and "date" not in frame
    assert frame["C"].is_monotonic_increasing
    assert frame.attrs["warnings"] == []


def test_runs_outside_the_plan_are_left_out(tmp_path):
    """An edited sweep leaves its old runs in the folder; today's law isn't theirs."""
    runs = results()
    write_runs(tmp_path, runs)
    planned = [run["run_id"] for run in runs[3:]]
    plan = tmp_path / "plan.jsonl"
    plan.write_text("".join(json.dumps({"run_id": r}) + "\n" for r in planned))
    for run in runs:
        (tmp_path / run["run_id"] / "config.json").write_text("{}")
    loaded = rows.load(tmp_path)
    assert sorted(loaded["run_id"]) == sorted(planned)
    assert loaded.attrs["warnings"] == ["3 runs aren't in the sweep's plan: left out"]  # they do have a result
    plan.write_text(plan.read_text()[:-5])
    with pytest.raises(UsageError, match=r"plan\.jsonl' line 15 is damaged"):
        rows.load(tmp_path)


def plan_of(folder, runs, **keys):
    folder.mkdir(exist_ok=True)
    rows = [json.dumps({"run_id": run["run_id"], **keys}) for run in runs]
    (folder / "plan.jsonl").write_text("\n".join(rows) + "\n")


def test_runs_of_an_earlier_plan_are_left_out_unless_asked_for(tmp_path):
    runs = results()
    write_runs(tmp_path, runs)
    rows_of = [json.dumps({"run_id": r["run_id"], "superseded": i < 4, "note": "a\u2028b"}, ensure_ascii=False)
               for i, r in enumerate(runs)]  # fmt: skip
    (tmp_path / "plan.jsonl").write_text("\n".join(rows_of) + "\n")
    frame = rows.load(tmp_path)
    assert len(frame) == 14
    assert "4 runs of an earlier version of the sweep: left out (--earlier takes them)" in frame.attrs["warnings"]
    assert len(rows.load(tmp_path, earlier=True)) == 18
    assert main.main(["fit", str(tmp_path), "--earlier", "--bootstrap=0", "--holdout=0"]) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: "".join(text.splitlines(True)[:9]), "holds 9 of 18 rows; `bigmodel sweep plan FILE.py`"),
        (lambda text: "", "is empty"),
        (lambda text: text.replace('"r128', '"R128', 1), "line 7 is damaged"),
        (lambda text: "3\n" + text, "line 1 is damaged"),
        (lambda text: "[" * 200_000, "line 1 is damaged"),
    ],
)
def test_a_cut_or_damaged_plan_is_one_line(tmp_path, change, message):
    runs = results()
    write_runs(tmp_path, runs)
    plan = tmp_path / "plan.jsonl"
    plan.write_text("".join(json.dumps(files.sealed({"run_id": r["run_id"], "rows": 18})) + "\n" for r in runs))
    assert len(rows.load(tmp_path)) == 18
    plan.write_text(change(plan.read_text()))
    with pytest.raises(UsageError, match=message):
        rows.load(tmp_path)


BROKEN = {
    "bytes": b"\xff\xfe{", "list": b"[1, 2]", "number": b"3", "null": b"null", "deep": b"[" * 200_000, "text": b'"x"',
    "branches": b'{"branches": 3}', "empty": b"{}", "cut": b'{"loss": 1', "size": b'{"params": null, "status": "done"}',
    "loss": b'{"params": 1e6, "tokens": 1e7, "status": "done"}',
    "words": b'{"params": "a", "tokens": 1e5, "loss": [2], "status": "done", "run_id": [1], "unit": 5}',
}  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_record_is_counted_in_one_line(tmp_path, capsys, kind):
    """In result.json and in config.json beside it, by `fit`, `report` and what studies read."""
    write_runs(tmp_path, results())
    for name in ("result.json", "config.json"):
        (tmp_path / "r64-2-100" / name).write_bytes(BROKEN[kind])
    for run in tmp_path.iterdir():
        if not (run / "config.json").is_file():
            (run / "config.json").write_text('{"family": "decoder"}')
    frame = rows.load(tmp_path)
    assert len(frame) == 17
    assert sum("left out" in line for line in frame.attrs["warnings"]) == 1, frame.attrs["warnings"]
    assert len(sources.runs(tmp_path)) == 17
    err = capsys.readouterr().err
    assert re.fullmatch(r"bigmodel: 1 runs of .* left out, as r64-2-100\n", err), err


def test_a_result_whose_checksum_differs_is_left_out(tmp_path, capsys):
    runs = [files.sealed(run) for run in results()]
    runs[3]["loss"] += 0.5
    frame = rows.load(write_runs(tmp_path, runs))
    assert len(frame) == 17 and "crc32" not in frame
    assert frame.attrs["warnings"] == [
        "1 result.json can't be read, as that of r64-4-100 (its checksum differs): left out"
    ]


def test_a_diverged_run_of_a_sweep_is_named_and_dropped_by_its_id(tmp_path, capsys):
    write_runs(tmp_path, results(run4={"loss": 10.8}))
    options = ["--bootstrap=0", "--holdout=0"]
    assert main.main(["fit", str(tmp_path), *options]) == 0
    out = capsys.readouterr().out
    assert "warning: run r64-4-400: loss 10.8 where the law of the others says" in out
    drop = re.search(r"--drop=\S+", out)[0]
    assert main.main(["fit", str(tmp_path), drop, *options]) == 0
    out = capsys.readouterr().out
    assert "17 runs" in out and "left out 1 rows, as asked: r64-4-400" in out and "where the law" not in out
    assert main.main(["fit", str(tmp_path), "--drop=r64-4-401"]) == 2
    assert "did you mean 'r64-4-400'" in capsys.readouterr().err


# ------------------------------------------------------------------------- which run a row is of


def checkpoints(name="name", runs=8, points=12, even=True):
    """Curves of runs of their own luck: a table of `points` rows a run."""
    rng = np.random.default_rng(0)
    out = []
    for i, n in enumerate(np.geomspace(1e7, 1e9, runs)):
        luck = math.exp(0.01 * rng.standard_normal())
        for k in range(1, points + 1):
            d = 4e8 * (k if even else 1.5**k)
            loss = (1.7 + 400 / n**0.34 + 410 / d**0.28) * luck * math.exp(0.001 * rng.standard_normal())
            out.append({name: f"run-{i}", "params": n, "tokens": d, "loss": loss})
    return pd.DataFrame(out)


def written(tmp_path, frame):
    frame.to_csv(tmp_path / "points.csv", index=False)
    return tmp_path / "points.csv"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["run_id", "run", "Run Name", "name", "Name", "id", "ID", "trial", "model_name",
                                  "experiment", "job_id"])  # fmt: skip
def test_rows_of_one_run_are_known_by_its_usual_names(tmp_path, name):
    frame = rows.load(written(tmp_path, checkpoints(name)))
    assert frame["run_id"].nunique() == 8 and frame.attrs["checkpoints"]
    lines = "\n".join(frame.attrs["warnings"])
    assert f"96 rows of 8 runs by column {name!r}" in lines and "has not decayed" in lines
    result = fits.fit(frame, bootstrap=150, holdout=1)
    assert (result["n_points"], result["n_runs"]) == (96, 8)
    assert report.law_text(result).splitlines()[1].startswith("  96 points of 8 runs, objective")
    alone = fits.fit(rows.load(tmp_path / "points.csv", run="none"), bootstrap=150, holdout=1)
    assert alone["n_runs"] == 96
    wide, narrow = (math.log(r["ci"]["A"][1] / r["ci"]["A"][0]) for r in (result, alone))
    assert wide > 2 * narrow
    assert len(result["holdout"][0]["held_out"]) == 12  # the largest run is held out with all of its points
    assert not {"delta", "profile", "seeds"} & result["intervals"].keys()  # these take points as independent


def test_the_column_of_runs_can_be_asked_for(tmp_path, capsys):
    path = written(tmp_path, checkpoints("curve"))
    frame = rows.load(path)
    assert "run_id" not in frame
    assert any("checkpoints of one run? --run=COLUMN" in line for line in frame.attrs["warnings"])
    assert rows.load(path, run="curve")["run_id"].nunique() == 8
    assert main.main(["fit", str(path), "--run=curv"]) == 2
    assert "no column 'curv' (did you mean 'curve'?)" in capsys.readouterr().err
    assert main.main(["fit", str(path), "--run=curve", "--bootstrap=0", "--holdout=0"]) == 0
    assert "96 points of 8 runs" in capsys.readouterr().out


def test_a_name_that_is_no_run_groups_nothing(tmp_path):
    """Of one value, of several sizes, or one a row; and W&B's names beside its own ids."""
    grid = checkpoints("name", even=False)
    for column in (["gpt"] * 96, [f"d{i % 12}" for i in range(96)], [f"r{i}" for i in range(96)]):
        frame = rows.load(written(tmp_path, grid.assign(name=column)))
        assert not frame.attrs["checkpoints"] and checks.runs_of(frame, ("N", "D", "L"))[1] == 96
    table = grid.assign(run_id=[f"w{i}" for i in range(96)])
    assert not rows.load(written(tmp_path, table)).attrs["checkpoints"]
    table = grid.assign(seed=np.arange(96) % 12)  # runs that differ in their seeds alone
    assert checks.runs_of(rows.load(written(tmp_path, table)), ("N", "D", "L"))[1] == 96


def test_validation_sets_of_a_run_are_one_run(tmp_path):
    finished = checkpoints("id", runs=12, points=1).assign(tokens=np.tile([1e9, 4e9, 1.6e10], 4))
    two = pd.concat([finished.assign(val="a"), finished.assign(val="b", loss=finished["loss"] * 1.001)])
    frame = rows.load(written(tmp_path, two))
    assert fits.fit(frame, bootstrap=0, holdout=0)["n_runs"] == 12
    assert not frame.attrs["checkpoints"] and not any("decayed" in line for line in frame.attrs["warnings"])


def test_a_run_that_is_there_twice_counts_as_one(tmp_path):
    once = checkpoints("curve", runs=6, points=4, even=False).drop(columns="curve")
    frame = rows.load(written(tmp_path, pd.concat([once, once, once])))
    result = fits.fit(frame, bootstrap=150, holdout=0)
    assert (result["n_points"], result["n_runs"]) == (72, 24)
    single = fits.fit(rows.load(written(tmp_path, once)), bootstrap=150, holdout=0)
    widths = [r["ci"]["E"][1] - r["ci"]["E"][0] for r in (result, single)]
    assert widths[0] > 0.7 * widths[1]  # as if they were 72 runs, it would be 0.58 of it


@pytest.mark.parametrize("count", ["total", "nonembedding", "kaplan"])
@pytest.mark.parametrize("flops", ["exact", "6nd"])
def test_conventions_are_chosen_and_named(tmp_path, count, flops):
    runs = results()
    frame = rows.load(write_runs(tmp_path, runs), count=count, flops=flops).sort_values("run_id")
    runs = sorted(runs, key=lambda run: run["run_id"])
    column = {"total": "params", "nonembedding": "params_nonembedding", "kaplan": "params_kaplan"}[count]
    n, d = (np.array([run[name] for run in runs], dtype=float) for name in (column, "tokens"))
    assert (frame["N"] == n).all()
    exact = np.array([run["flops"] for run in runs])
    np.testing.assert_allclose(frame["C"], exact if flops == "exact" else 6 * n * d)
    says = frame.attrs["conventions"]
    assert says == CONVENTIONS | {"N": f"{column} ({count})", "C": "flops (exact)" if flops == "exact" else "6*N*D"}
    assert frame.attrs["warnings"] == []


def test_results_of_an_earlier_version_have_no_kaplan(tmp_path):
    old = [{k: v for k, v in run.items() if k != "params_kaplan"} for run in results()]
    assert len(rows.load(write_runs(tmp_path / "old", old))) == 18
    with pytest.raises(
        UsageError, match="no 'params_kaplan': an earlier version wrote them; choose another --count"
    ) as error:
        rows.load(tmp_path / "old", count="kaplan")
    assert "\n" not in str(error.value)
    write_runs(tmp_path / "other", [run | {"N": 7.0} for run in old])
    with pytest.raises(UsageError, match="no 'params_kaplan'"):  # never another column in its place
        rows.load(tmp_path / "other", count="kaplan")
    write_runs(tmp_path / "mixed", [*old[:5], *results()[5:]])
    with pytest.raises(UsageError, match=r"5 runs of .* have no 'params_kaplan'"):
        rows.load(tmp_path / "mixed", count="kaplan")


def test_result_json_holds_three_counts(data_dir):
    from bigmodel.run import budget

    frozen = config.load(ROOT / "experiments/gpt.py", [*TINY, ("run.data_dir", data_dir)])
    plan = budget.derive(budget.finalize(frozen))
    assert plan.params_kaplan == 12 * 16**2  # one layer of width 16
    assert plan.params_kaplan < plan.params_nonembedding < plan.params


# ------------------------------------------------------------------------------------- W&B


@pytest.mark.parametrize("kind", ["csv", "json", "jsonl"])
def test_our_own_exports_need_no_column_map(tmp_path, kind):
    path = tmp_path / f"export.{kind}"
    text = {
        "csv": wandb_csv,
        "json": lambda: json.dumps(wandb_runs()),
        "jsonl": lambda: "".join(json.dumps(run) + "\n" for run in wandb_runs()),
    }[kind]()
    path.write_text(text)
    write_runs(tmp_path / "sweep", results())
    for options in ({}, {"count": "kaplan", "flops": "6nd"}):
        frame, ours = rows.load(path, **options), rows.load(tmp_path / "sweep", **options)
        frame, ours = (f.sort_values("run_id").reset_index(drop=True) for f in (frame, ours))
        same = ["N", "D", "C", "L", "width", "depth", "seed", "run_id", "lr", "unique_tokens"]
        pd.testing.assert_frame_equal(frame[same], ours[same])
        assert frame.attrs["conventions"] == ours.attrs["conventions"]
        warnings = frame.attrs["warnings"]
        assert len(warnings) == 2
        assert re.search("1 runs with [Ss]tate 'crashed': left out", warnings[0])
        assert "1 finished runs" in warnings[1]


def test_configs_are_reached_by_both_names(tmp_path):
    path = tmp_path / "export.json"
    path.write_text(json.dumps(wandb_runs()))
    for name in ("config.model.width", "model.width"):
        assert set(rows.load(path, {"X": name}, needed=("X",))["X"]) == {64.0, 128.0, 256.0}
    assert set(rows.load(path, needed=("width", "D"))["width"]) == {64.0, 128.0, 256.0}
    assert set(rows.load(path, {"D": "train.steps"})["D"]) == {100.0, 400.0, 1600.0}


def test_a_summary_does_not_hide_a_runs_own_fields():
    flat = readers._flatten(
        {"state": "finished", "summary": {"state": "x", "a": {"b": 1}}, "config": {"c": {"value": 2}}}
    )
    assert flat == {"state": "finished", "summary.state": "x", "a.b": 1, "config.c": 2}


# ------------------------------------------------------------------------------------- tables


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet", ".json", ".jsonl"])
def test_load_tables(tmp_path, suffix):
    path, frame = tmp_path / f"points{suffix}", pd.DataFrame(results())[["params", "tokens", "loss", "seed"]]
    write = {
        ".csv": lambda f: f.to_csv(path, index=False),
        ".tsv": lambda f: f.to_csv(path, index=False, sep="\t"),
        ".parquet": lambda f: f.to_parquet(path),
        ".json": lambda f: f.to_json(path, orient="records", double_precision=15),
        ".jsonl": lambda f: f.to_json(path, orient="records", lines=True, double_precision=15),
    }[suffix]
    write(frame.rename(columns={"params": "Model Size"}))
    loaded = rows.load(path, {"N": "Model Size"})
    assert loaded["C"].to_numpy() == pytest.approx(np.sort(6.0 * frame["params"] * frame["tokens"]))
    assert sorted(loaded["L"]) == pytest.approx(sorted(frame["loss"]), rel=1e-14)
    assert loaded["seed"].dtype == np.int64
    assert loaded.attrs["conventions"] == {"N": "Model Size", "D": "tokens", "L": "loss", "C": "6*N*D"}
    assert "N is 'Model Size' (--count=total" in loaded.attrs["warnings"][-1]
    said = rows.load(path, {"N": "Model Size"}, count="nonembedding")
    assert said.attrs["conventions"]["N"] == "Model Size (nonembedding, as said)"
    assert len(said.attrs["warnings"]) == 1


@pytest.mark.parametrize(
    ("change", "columns", "message"),
    [
        ({}, {"L": "Loss"}, "no column 'Loss' for L .did you mean 'loss'"),
        ({"loss": [1.0, math.nan, 2.0]}, {}, "row 2: 'loss' is empty"),
        ({"loss": [1.0, 2.0, -1.0]}, {}, "row 3: 'loss' is -1.0"),
        ({"loss": ["1.0", "2.0", "high"]}, {}, "row 3: 'loss' is 'high'"),
        ({"params": [0, 1, 2]}, {}, "row 1: 'params' is 0"),
        ({"loss": [2.0, 2.0, 2.0]}, {}, "L = 2: there is nothing to fit"),
        (
            {"status": ["done", "failed", "failed"], "loss": [2.0, 0.0, 0.0]},
            {"L": "status"},
            "row 1: 'status' is 'done'",
        ),
    ],
)
def test_load_refuses(tmp_path, change, columns, message):
    frame = pd.DataFrame({"params": [1e6, 2e6, 3e6], "tokens": [1e7] * 3, "loss": [3.0, 2.9, 2.8]} | change)
    frame.to_csv(tmp_path / "points.csv", index=False)
    with pytest.raises(UsageError, match=message) as error:
        rows.load(tmp_path / "points.csv", columns)
    assert "\n" not in str(error.value)


def test_load_refuses_sources(tmp_path):
    (tmp_path / "points.txt").write_text("1 2 3")
    (tmp_path / "empty.csv").write_text("")
    for name, message in (
        ("", "no result.json"),
        ("point.txt", "did you mean .*points.txt"),
        ("points.txt", "use .csv"),
        ("empty.csv", "can't read"),
    ):
        with pytest.raises(UsageError, match=message):
            rows.load(tmp_path / name)


def test_rows_are_numbered_as_in_the_file(tmp_path):
    """Also after a filter, and after blank lines."""
    lines = ["params,tokens,loss,set", "1e6,1e8,3.1,a", "2e6,1e8,3.0,b", "", "3e6,1e8,oops,b"]
    (tmp_path / "points.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises(UsageError, match="row 4: 'loss' is 'oops'"):
        rows.load(tmp_path / "points.csv", where="set=b")


def test_a_long_header_stays_one_line(tmp_path):
    names = [f"metric_number_{i}" for i in range(400)]
    (tmp_path / "points.csv").write_text(",".join(names) + "\n" + ",".join("1" for _ in names) + "\n")
    with pytest.raises(UsageError, match=r"and \d+ more") as error:
        rows.load(tmp_path / "points.csv")
    assert len(str(error.value)) < 600 + len(str(tmp_path))


# ------------------------------------------------------------------------- what a law asks for


def table(tmp_path, **columns):
    pd.DataFrame({"params": [1e6, 2e6, 4e6], **columns}).to_csv(tmp_path / "points.csv", index=False)
    return tmp_path / "points.csv"


def test_a_law_says_what_it_needs(tmp_path):
    path = table(tmp_path, tokens=[1e8, 2e8, 4e8], lr=[3e-3, 2e-3, 1e-3], uniq=[1e7, 2e7, 2e7])
    frame = rows.load(path, {"U": "uniq"}, target="lr", needed=("N", "D", "U"))
    assert list(frame.columns[:5]) == ["N", "D", "C", "U", "lr"]
    assert frame["U"].tolist() == [1e7, 2e7, 2e7] and "L" not in frame
    assert frame.attrs["conventions"]["U"] == "uniq" and frame.attrs["conventions"]["lr"] == "lr"
    with pytest.raises(UsageError, match="no column 'unique_tokens' for U"):
        rows.load(path, target="lr", needed=("N", "D", "U"))
    with pytest.raises(UsageError, match="no column 'loss' for L"):
        rows.load(path)
    path = table(tmp_path, learning_rate=[3e-3, 2e-3, 1e-3])
    with pytest.raises(UsageError, match="no column 'lr'; perhaps --columns=lr=learning_rate"):
        rows.load(path, target="lr", needed=("N",))
    assert list(rows.load(path, {"lr": "learning_rate"}, target="lr", needed=("N",)).columns)[:2] == ["N", "lr"]


def test_only_what_is_needed_must_be_good(tmp_path):
    path = table(
        tmp_path, tokens=[1e8, 2e8, 4e8], loss=[3.0, math.nan, 2.0], error=[0.5, 0.4, 0.3], note=["a", "", "b"]
    )
    frame = rows.load(path, target="error")
    assert frame["error"].tolist() == [0.5, 0.4, 0.3] and np.isnan(frame["L"][1])
    with pytest.raises(UsageError, match="row 2: 'loss' is empty"):
        rows.load(path)
    with pytest.raises(UsageError, match="row 2: 'loss' is empty"):  # named, so wanted
        rows.load(path, {"L": "loss"}, target="error")


def test_one_of_three_follows_from_the_others(tmp_path):
    d, loss = np.array([1e8, 2e8, 4e8]), [3.0, 2.5, 2.0]
    flops = 6 * np.array([1e6, 2e6, 4e6]) * d
    frame = rows.load(table(tmp_path, flops=flops, loss=loss))
    np.testing.assert_allclose(frame["D"], d)
    assert frame.attrs["conventions"]["D"] == "C/(6*N)"
    path = table(tmp_path, flops=flops, loss=loss, n_tokens=d)
    assert any("D is taken as C/(6*N); or is it --D=n_tokens?" in w for w in rows.load(path).attrs["warnings"])
    path = table(tmp_path, tokens=d, flops=flops, loss=loss)
    path.write_text(path.read_text().replace("params", "label"))
    frame = rows.load(path)
    np.testing.assert_allclose(frame["N"], [1e6, 2e6, 4e6])
    assert frame.attrs["conventions"]["N"] == "C/(6*D)"
    frame = rows.load(table(tmp_path, tokens=d, flops=flops * 1.2, loss=loss), flops="6nd")
    np.testing.assert_allclose(frame["C"], flops)
    with pytest.raises(UsageError, match="no column 'tokens' for D nor 'flops' for C"):
        rows.load(table(tmp_path, loss=loss))


# ------------------------------------------------------------------------------------ numbers


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["1.3B", "350M", "2e9", "10K", "1.5T"], None),  # 2e9 and 10K beside units
        (["1.3B", "350m", " 70 M "], [1.3e9, 3.5e8, 7e7]),
        (["1,000,000", "350,000"], [1e6, 3.5e5]),
        (["1,234.5", "999"], [1234.5, 999]),
        (["1 000 000", "2'500'000"], [1e6, 2.5e6]),
        (["1.5D+09", "2d9", "1e9"], [1.5e9, 2e9, 1e9]),
        (["3,1415", "2,5", "2,718"], [3.1415, 2.5, 2.718]),
        (["", "nan", "N/A", None, "-", "7"], [math.nan] * 5 + [7]),
        ([1, 2.5, None, "4"], [1, 2.5, math.nan, 4]),
        (["inf", "-1"], [math.inf, -1]),
    ],
)
def test_cells_are_read(cells, expected):
    read = readers.numbers(pd.Series(cells, dtype=object))
    expected = [1.3e9, 3.5e8, 2e9, 1e4, 1.5e12] if expected is None else expected
    assert read.bad < 0, read
    np.testing.assert_allclose(read.values, expected)


@pytest.mark.parametrize(
    ("cells", "bad", "why"),
    [
        (["1", "350,000"], 1, "350000 or 350.000"),
        (["1,000,000", "3,14"], 0, "thousands and at decimals"),
        (["1.3B", "125"], 1, "without a unit, beside '1.3B'"),
        (["1", "0.3%"], 1, "percentage"),
        (["1", "12 GB"], 1, "not a number"),
        (["1.000.000"], 0, "not a number"),
        (["1", True], 1, "not a number"),
        (["1", [2]], 1, "not a number"),
        ([1, 10**400], 1, "too large"),
    ],
)
def test_cells_are_refused(cells, bad, why):
    read = readers.numbers(pd.Series(cells, dtype=object))
    assert read.bad == bad and why in read.why and math.isnan(read.values[bad])


def test_pairs():
    assert sources.pairs("x", "a=1, b c=2,5,d=") == {"a": "1", "b c": "2,5", "d": ""}
    assert sources.pairs("x", "") == {}
    for text in ("a", "=1", "a=1,a=2"):
        with pytest.raises(UsageError, match="x="):
            sources.pairs("x", text)


# ----------------------------------------------------------------------------- published points


def published(name):
    path = POINTS / name
    if not path.is_file():
        pytest.skip(f"{path} is absent: the published points are not shipped with the project")
    return path


def test_published_points_of_besiroglu():
    frame = rows.load(
        published("besiroglu2024_chinchilla_points.csv"),
        {"N": "Model Size", "C": "Training FLOP"}, drop_highest=5, count="total", flops="6nd",
    )  # fmt: skip
    assert len(frame) == 240
    assert frame.attrs["conventions"] == {
        "N": "Model Size (total, as said)", "C": "Training FLOP (6nd, as said)", "D": "C/(6*N)", "L": "loss",
    }  # fmt: skip


def test_published_points_of_one_setting():
    path = published("porian2024_isoflop_points.csv")
    where = {"dataset": "rw", "hparams": "tuned", "val": "train"}
    whole = pd.read_csv(path)
    want = whole[(whole["dataset"] == "rw") & (whole["hparams"] == "tuned") & (whole["val"] == "train")]
    frame = rows.load(path, where=where)
    assert sorted(frame["L"]) == pytest.approx(sorted(want["L"]), rel=1e-15)
    assert frame.attrs["counts"]["filtered"] == len(whole) - len(want)
    budget = rows.load(path, where="dataset=rw,flops=1.25e16")
    assert set(budget["C"]) == {1.25e16}
    with pytest.raises(UsageError, match=r"no row of .* has val='trian' \(did you mean 'train'\?\)"):
        rows.load(path, where="val=trian")


def test_points_stay_outside_the_repository():
    assert not [p for p in Path(ROOT / "tests").rglob("*2024*.csv")]
