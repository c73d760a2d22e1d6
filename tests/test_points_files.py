"""Files of points as people have them: each ends in one clear line with exit code 2, or in the right law.

Each case is the file, the flags, and what is to come of it: a list of what the line must say, or `Law(...)` with what
its warnings must say.
"""

import bz2
import decimal
import gzip
import json
import re

import numpy as np
import pandas as pd
import pytest

from bigmodel.cli import main

PLANTED = {"E": 1.7, "A": 400.0, "alpha": 0.34, "B": 410.0, "beta": 0.28}
UNKNOWN = "doesn't say what its columns count"
NEVER = ("Traceback", "DataFrame", "numpy", "pandas", "object at")


class Law:
    """The fit is right: the planted exponents and floor, to `rel`; `says`: parts of warnings, each of one of them."""

    def __init__(self, *says, usual=(UNKNOWN, "C is taken as 6*N*D"), rel=1e-3, n=12):
        self.says, self.rel, self.n = (*usual, *says), rel, n


def runs(n=(1e6, 4e6, 1.6e7, 6.4e7), d=(1e8, 4e8, 1.6e9)):
    return [
        (f"{x:.0f}", f"{y:.0f}", repr(1.7 + 400 / x**0.34 + 410 / y**0.28))
        for x in n
        for y in d
    ]  # fmt: skip


RUNS = runs()
HEAD = ("params", "tokens", "loss")


def records(**extra):
    return [{"params": float(n), "tokens": float(d), "loss": float(loss), **extra} for n, d, loss in RUNS]


UNITS = {"1000000": "1M", "4000000": "4.0m", "16000000": "16 M", "64000000": "0.064B"}
THOUSANDS = {r[2]: '"1,000,000"' if i == 3 else '"' + r[2].replace(".", ",") + '"' for i, r in enumerate(RUNS)}
NESTED = [{"model": {"n": r["params"]}, "tokens": r["tokens"], "out": {"loss": r["loss"]}} for r in records()]


def table(rows=RUNS, head=HEAD, by=",", end="\n"):
    return end.join(by.join(row) for row in ([head] if head else []) + [*rows]) + end


def changed(row, column, text):
    rows = [list(r) for r in RUNS]
    rows[row - 1][column] = text
    return rows


def each(column, change):
    return [[change(c) if i == column else c for i, c in enumerate(r)] for r in RUNS]


def lines(rows):
    return "".join(json.dumps(r) + "\n" for r in rows)


def parquet(rows):
    import io

    out = io.BytesIO()
    pd.DataFrame(rows).to_parquet(out)
    return out.getvalue()


def wandb(**changes):
    """Rows of W&B's runs table, as its CSV has them: empty cells where a run logged nothing."""
    head = ["Name", "ID", "State", "Created", "Runtime", "model.width", "train.seed", "params", "tokens", "loss"]
    rows = [
        [f"gpt-{i}", f"id{i}", "finished", "2026-01-05T10:00:00.000Z", "77", "64", "0", *r] for i, r in enumerate(RUNS)
    ]
    rows += [
        ["late", "x1", "crashed", "", "3", "64", "0", "", "", "9.1"],
        ["now", "x2", "running", "", "", "", "", "", "", ""],
    ]
    rows += [
        ["dead", "x3", "killed", "", "", "", "", "1000000", "100000000", "7.7"],
        ["law", "x4", "finished", *[""] * 7],
    ]
    return table([[f'"{c}"' for c in r] for r in rows], head)


def api(value=False):
    """Runs as W&B's public API gives them."""
    out = []
    for i, (n, d, loss) in enumerate(RUNS):
        model = {"width": 64, "n_params": float(n)}
        config = {"model": {"value": model, "desc": None} if value else model, "_wandb": {"cli_version": "0.2"}}
        out.append({"name": f"run{i}", "id": f"id{i}", "state": "finished", "config": config,
                    "summary": {"val/loss": float(loss), "D": float(d), "_step": 9}})  # fmt: skip
    return [*out, {"name": "bad", "id": "x", "state": "failed", "config": {}, "summary": {}}]


CASES = {}


def case(name, content, expected, *flags, file="points.csv"):
    assert name not in CASES
    CASES[name] = (file, content, flags, expected)


# ---- columns
case("missing column", table([r[:2] for r in RUNS], HEAD[:2]), ["no column 'loss' for L", "params, tokens"])
case("two missing columns", table(head=("Model Size", "n_tokens", "val_loss")),
     ["'params' for N", "--N='Model Size'", "--D=n_tokens", "--L=val_loss"])  # fmt: skip
case("the flags that the line suggests", table(head=("Model Size", "n_tokens", "val_loss")), Law(),
     "--N=Model Size", "--D=n_tokens", "--L=val_loss")  # fmt: skip
case("another's names", table(head=("num_params", "Training FLOP", "nll")),
     ["--N=num_params", "--C='Training FLOP'", "--L=nll"])  # fmt: skip
case("names of nothing", table(head=("x", "y", "z")), ["no column 'params' for N", "has x, y, z"])
case("duplicated names", table(each(2, lambda c: f"{c},1"), (*HEAD, "loss")), ["several columns 'loss'"])
case("duplicated names that nobody asks for", table(each(2, lambda c: f"{c},a,1"), (*HEAD, "x", "x")), Law())
case("spaces in names", table(head=(" params ", "tokens\t", " loss")), Law())
case("no header", table(head=None), ["no header", "1000000,100000000"])
case("header only", table([]), ["has no rows"])
case("names in another case", table(head=("Params", "Tokens", "Loss")), ["no column 'params' for N", "--N=Params"])
case("column flag of nothing", table(), ["no column 'parms'", "did you mean 'params'"], "--N=parms")
case("columns flag", table(), ["--columns='U'", "NAME=VALUE"], "--columns=U")

# ---- values
case("NaN", table(changed(7, 2, "nan")), ["row 7", "'loss' is nan", "positive number"])
case("empty cell", table(changed(7, 2, "")), ["row 7", "'loss' is empty"])
case("negative", table(changed(3, 0, "-5")), ["row 3", "'params' is -5"])
case("zero", table(changed(12, 1, "0")), ["row 12", "'tokens' is 0"])
case("infinite", table(changed(1, 2, "inf")), ["row 1", "'loss' is inf"])
case("overflow", table(changed(2, 0, "1e999")), ["row 2", "'params' is 1e999"])
case("text in numbers", table(changed(5, 2, "diverged")), ["row 5", "'loss' is 'diverged'", "not a number"])
case("several bad rows", table(each(2, lambda c: f"{c} nats")), ["row 1 (and 11 more rows)", "not a number"])
case("a percentage", table(each(2, lambda c: f"{c}%")), ["row 1", "a percentage"])
case("logarithms of losses", table(each(2, lambda c: f"-{c}")), ["row 1", "logarithms"])
case("quoted numbers", table([[f'"{c}"' for c in r] for r in RUNS]), Law())
case("spaces around numbers", table([[f" {c} " for c in r] for r in RUNS]), Law())
case("exponents with D", table(each(0, lambda c: f"{float(c):.3e}".replace("e", "D"))), Law())
case("units", table([[UNITS[r[0]], *r[1:]] for r in RUNS]), Law())
case("mixed units", table(changed(1, 0, "1M")), Law())
case("a unit forgotten", table([["0.001B" if c == "1000000" else c.replace("4000000", "4") for c in r] for r in RUNS]),
     ["row 4", "'params' is '4'", "without a unit", "0.001B"])  # fmt: skip
case("thousands separators", table(each(1, lambda c: f'"{int(c):,}"')), Law())
case(
    "thousands separators unquoted",
    table(each(1, lambda c: f"{int(c):,}")),
    ["row 1 has 5 cells, the header 3", "quotes"],
)
case("thousands or decimals", table([(n, d, f'"{loss[0]},{loss[2:5]}"') for n, d, loss in RUNS]),
     ["row 1", "'loss' is '", "without the comma"])  # fmt: skip
case("spaces at thousands", table(each(0, lambda c: f"{int(c):,}".replace(",", " "))), Law())
case("millions", table(each(0, lambda c: str(float(c) / 1e6))), Law("N is 10 at the median"))
case("two points", table(RUNS[:2]), ["2 usable runs", "at least 6"])
case("repeated rows", table([*RUNS, *RUNS[:2]]), Law("2 of 14 rows repeat", n=14))
case("one size", table(runs(n=(1e6,), d=(1e8, 2e8, 4e8, 8e8, 2e9, 4e9))), ["N = 1e+06", "vary it"])
case("one data size", table(runs(n=(1e6, 2e6, 4e6, 8e6, 2e7, 4e7), d=(1e8,))), ["D = 1e+08", "vary it"])
case("equal losses", table(each(2, lambda c: "3.0")), ["every run", "L = 3", "nothing to fit"])
case("swapped columns", table(head=("loss", "tokens", "params")), Law("swapped", "are the columns swapped", rel=None))

# ---- separators and encodings
case("semicolons", table(by=";"), Law())
case("tabs in .csv", table(by="\t"), Law())
case("commas in .tsv", table(), Law(), file="points.tsv")
case("tabs", table(by="\t"), Law(), file="points.tsv")
case("spaces between columns", table(by=" "), ["no column 'params' for N", "params tokens loss"])
case("decimal commas", table([[c.replace(".", ",") for c in r] for r in RUNS], by=";"),
     Law("read as decimal points"))  # fmt: skip
case("decimal commas between commas", table([[c.replace(".", ",") for c in r] for r in RUNS]), ["row 1 has 4 cells"])
case("decimal commas and thousands", table(each(2, THOUSANDS.get)), ["row 1", "thousands and at decimals"])
case("trailing commas in rows", table(each(2, lambda c: f"{c},,")), Law())
case("trailing commas everywhere", table(each(2, lambda c: f"{c},"), (*HEAD, "")), Law())
case("rows of commas at the end", table() + ",,\n,,\n", Law())
case("blank lines", "\n\n" + table().replace("\n", "\n\n"), Law())
case("an index without a name", table([[str(i), *r] for i, r in enumerate(RUNS)], ("", *HEAD)), Law())
case("ragged, short", table([*RUNS[:4], RUNS[4][:2], *RUNS[5:]]), ["row 5 has 2 cells, the header 3"])
case("ragged, long", table(changed(6, 2, "3,1,4")), ["row 6 has 5 cells, the header 3"])
case("cut in the middle", table()[:-30], ["row 12 has 2 cells"])
case("an open quote", table(changed(2, 2, '"3.1')), ["line", "unexpected end of data"])
case("empty file", "", ["is empty"])
case("blank file", "\n \n", ["is empty"])
case("BOM", "\ufeff" + table(), Law())
case("only a BOM", "\ufeff", ["is empty"])
case("UTF-16", table().encode("utf-16"), Law())
case("UTF-16 without BOM", table().encode("utf-16-le"), ["isn't text", "byte 1 is 0"])
case("UTF-16 cut", table().encode("utf-16")[:-1], ["UTF-16", "byte"])
case("Latin-1", table(head=("params", "tokens", "lossé")).encode("latin-1"), ["isn't UTF-8 text", "0xe9"])
case("CRLF", table(end="\r\n"), Law())
case("CR", table(end="\r"), Law())
case("gz as .csv", gzip.compress(table().encode()), Law())
case("csv.gz", gzip.compress(table().encode()), Law(), file="points.csv.gz")
case("csv.bz2", bz2.compress(table().encode()), Law(), file="points.csv.bz2")
case("gz cut", gzip.compress(table().encode())[:-20], ["compression is damaged"], file="points.csv.gz")
case("gz of nothing known", gzip.compress(b"x"), ["can't read .txt", ".csv"], file="points.txt.gz")
case("binary", np.random.default_rng(0).bytes(5000), ["can't read 'points.csv'", "isn't"])
case("Excel named .csv", b"PK\x03\x04" + bytes(99), ["Excel", "save"])
case("Excel", b"PK\x03\x04" + bytes(99), ["can't read .xlsx", ".csv"], file="points.xlsx")

# ---- Parquet, JSON
case("Parquet", parquet(records()), Law(), file="points.parquet")
case("Parquet cut", parquet(records())[:-30], ["can't read 'points.parquet'"], file="points.parquet")
case("Parquet, empty", b"", ["can't read 'points.parquet'"], file="points.parquet")
case("Parquet named .csv", parquet(records()), Law())
case("Parquet nested", parquet([{"summary": r, "config": {"a": 1}} for r in records()]), Law(), file="points.parquet")
case("JSONL", lines(records()), Law(), file="points.jsonl")
case("JSONL with a broken line", lines(records()) + '{"params": 1\n', ["line 13 isn't JSON"], file="points.jsonl")
case("JSONL of numbers", "1\n2\n3\n", ["isn't"], file="points.jsonl")
case("JSONL with null", lines([*records(), {"params": 1e6, "tokens": 1e7, "loss": None}]),
     ["row 13", "'loss' is empty"], file="points.jsonl")  # fmt: skip
case("JSONL without a key", lines([*records(), {"params": 1e6, "tokens": 1e7}]), ["row 13", "'loss' is empty"],
     file="points.jsonl")  # fmt: skip
case("JSONL with true", lines([*records(), {"params": True, "tokens": 1e7, "loss": 2.0}]),
     ["row 13", "'params' is true"], file="points.jsonl")  # fmt: skip
case("JSONL with a list", lines([*records(), {"params": [1], "tokens": 1e7, "loss": 2.0}]),
     ["row 13", "'params' is [1]"], file="points.jsonl")  # fmt: skip
case("JSONL nested", lines(NESTED), Law(), "--N=model.n", "--L=out.loss", file="points.jsonl")
case(
    "JSONL nested without a map", lines(NESTED), ["'params' for N", "--N=model.n", "--L=out.loss"], file="points.jsonl"
)
case("JSON list", json.dumps(records()), Law(), file="points.json")
case("JSON list as .jsonl", json.dumps(records(), indent=1), Law(), file="points.jsonl")
case("JSON lines as .json", lines(records()), Law(), file="points.json")
case("JSON columns", json.dumps({k: [r[k] for r in records()] for k in HEAD}), Law(), file="points.json")
case("JSON columns by row", pd.DataFrame(records()).to_json(double_precision=15), Law(), file="points.json")
case("JSON by run", json.dumps({f"run{i}": r for i, r in enumerate(records())}), Law(), file="points.json")
case("JSON object around the list", json.dumps({"runs": records()}), Law(), file="points.json")
case("JSON columns of two lengths", json.dumps({"params": [1, 2], "loss": [1]}), ["different lengths", "'loss' 1"],
     file="points.json")  # fmt: skip
case("JSON of one run", json.dumps(records()[0]), ["1 usable runs"], file="points.json")
case("JSON cut", json.dumps(records())[:-9], ["isn't JSON"], file="points.json")
case("JSON number", "3", ["expected a list of runs"], file="points.json")
case("JSON empty list", "[]", ["has no rows"], file="points.json")
case("JSON with NaN", json.dumps([*records(), {**records()[0], "loss": float("nan")}]), ["row 13", "'loss' is nan"],
     file="points.json")  # fmt: skip

# ---- text that str.splitlines would cut, tables as pandas writes them
CUT = [{**r, "note": "a\u2028b\u0085c\x0b\x1cd"} for r in records()]
case("JSONL with line separators in text", "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in CUT), Law(),
     file="points.jsonl")  # fmt: skip
case("JSONL with CR at line ends", lines(records()).replace("\n", "\r"), Law(), file="points.jsonl")
case("line separators in cells", table(each(2, lambda c: f"{c},x\u2028y\u0085z"), (*HEAD, "note")), Law())
case("Parquet with a size as index", parquet(pd.DataFrame(records()).set_index("params")), Law(), file="p.parquet")
case("Parquet with two indices", parquet(pd.DataFrame(records()).set_index(["tokens", "params"])), Law(),
     file="p.parquet")  # fmt: skip
case("Parquet, filtered and turned round", parquet(pd.DataFrame(records())[::-1]), Law(), file="p.parquet")
case("Parquet of decimals", parquet([{k: decimal.Decimal(repr(v)) for k, v in r.items()} for r in records()]), Law(),
     file="p.parquet")  # fmt: skip
KINDS = pd.DataFrame(records()).assign(
    params=lambda f: f["params"].astype("category"), tokens=lambda f: f["tokens"].astype("Int64"),
    when=pd.Timestamp("2026-01-01"), took=pd.Timedelta("1s"), status=pd.Categorical(["done"] * 12), never=pd.NaT,
)  # fmt: skip
case("Parquet of pandas' kinds", parquet(KINDS), Law(), file="p.parquet")
case("Parquet of W&B's config as text", parquet(pd.DataFrame(records()).rename(columns={"params": "n"}).assign(
     config=[json.dumps({"size": r["params"]}) for r in records()]).drop(columns="n")), Law(), "--N=size",
     file="p.parquet")  # fmt: skip
for orient in ("split", "table"):
    case(f"JSON as pandas' {orient}", pd.DataFrame(records()).to_json(orient=orient, double_precision=15), Law(),
         file="points.json")  # fmt: skip
case("JSON nested too deeply", "[" * 200_000, ["nested too deeply"], file="points.json")
case("a header of one huge cell", "[" * 200_000, ["its first line isn't names of columns"])

# ---- words for a finished run
for word in ("finished", "Completed", "DONE", "success", "ok"):
    case(f"status {word}", table(each(2, lambda c, word=word: f"{c},{word}"), (*HEAD, "status")),
         Law(f"12 with {word!r} taken as done"))  # fmt: skip
case("Slurm's states", table([*([*r, "COMPLETED"] for r in RUNS), ["1000000", "100000000", "9.9", "FAILED"]],
     (*HEAD, "State")), Law("12 with 'COMPLETED' taken as done", "1 runs with State 'FAILED': left out"))  # fmt: skip
case("a status of no known word", table(each(2, lambda c: f"{c},public"), (*HEAD, "status")),
     Law("no status (public) is a word for a finished run: every row is taken"))  # fmt: skip
case("no run that ended", table(each(2, lambda c: f"{c},Failed"), (*HEAD, "status")), ["no usable run", "unfinished"])

# ---- units
case("sizes in millions beside plain tokens", table(each(0, lambda c: str(float(c) / 2e3))),
     Law("N is 5000 at the median beside D of 4e+08", "is N in thousands, millions or billions?"))  # fmt: skip
case("tokens in billions", table(each(1, lambda c: str(float(c) / 1e5))),
     Law("D is 4000 at the median beside N of 1e+07", "is D in thousands, millions or billions?"))  # fmt: skip
case("compute beside sizes in millions", table([[str(float(n) / 1e6), d, x, str(6 * float(n) * float(d))]
     for n, d, x in RUNS], (*HEAD, "flops")), Law("is it in FLOPs, or N or D in millions?", "N is 10 at the median",
     "C is 'flops'", usual=(UNKNOWN,)))  # fmt: skip

# ---- rows to leave out
SPOILED = table([*RUNS[:6], (*RUNS[6][:2], "10.8"), *RUNS[7:]])
case("a diverged run", SPOILED, Law("row 7: loss 10.8 where the law of the others says 5.481; --drop=7 leaves it out",
     rel=0.2))  # fmt: skip
case("a diverged run dropped", SPOILED, Law("left out 1 rows, as asked: 7", n=11), "--drop=7")
case("drop of no row", SPOILED, ["drop: 'points.csv' has no row '77'"], "--drop=7,77")
SETS = [(f"set{k}", n, d, str(float(x) * (1 + k / 20))) for k in range(8) for n, d, x in RUNS]
case("eight data sets in one file", table(SETS, ("corpus", *HEAD)),
     Law("column 'corpus' has 8 values, which explain", "--where=corpus=set0", rel=None, n=96))  # fmt: skip
case("one of eight data sets", table(SETS, ("corpus", *HEAD)), Law(), "--where=corpus=set0")

# ---- W&B
FAILED = "1 runs with state 'failed'"
LEFT = ("1 runs with State 'crashed'", "1 runs with State 'running'", "1 runs with State 'killed'", "1 finished runs")
case("W&B's runs table", wandb(), Law(*LEFT))
case("W&B's API", json.dumps(api()), Law(FAILED), "--N=model.n_params", "--L=val/loss", file="w.json")
case(
    "W&B's API, raw config",
    lines(api(value=True)),
    Law(FAILED),
    "--N=config.model.n_params",
    "--L=val/loss",
    file="w.jsonl",
)
case("W&B's recipe to_csv", pd.DataFrame(api()).to_csv(index=False), Law(FAILED), "--N=model.n_params", "--L=val/loss")
case("W&B without a map", json.dumps(api()), ["--N=config.model.n_params", "--L=val/loss"], file="w.json")
case("W&B, negative loss", wandb().replace(RUNS[4][2], "-1"), ["row 5", "'loss' is -1"])
case("W&B, text as a loss", wandb().replace(RUNS[4][2], "oops"), ["row 5", "'loss' is 'oops'"])
case("W&B, all crashed", wandb().replace("finished", "crashed"), ["no usable run", "unfinished"])

# ---- folders
case("folder without results", None, ["no result.json"], file="runs/a/config.json")
case(
    "folder of broken results",
    '{"params": ',
    ["no usable run", "1 result.json can't be read"],
    file="runs/a/result.json",
)
case("one run's folder", None, ["it is one run"], file="runs/result.json")
case("folder of sweeps", "{}", ["there are some in 'runs/demo'"], file="runs/demo/a/result.json")
case("folder of W&B's offline runs", "x", ["W&B's offline files", "bigmodel fit runs/SWEEP"],
     file="runs/offline-run-1/run-a.wandb")  # fmt: skip
case("results without sizes", '{"loss": 3.1, "status": "done"}', ["'params' for N"], file="runs/a/result.json")

# ---- filters and conventions
MIXED = table([*(("rw", *r) for r in RUNS), *(("owt2", n, d, "9.5") for n, d, _ in RUNS)], ("dataset", *HEAD))
case("where", MIXED, Law(), "--where=dataset=rw")
case("where a number", MIXED, ["1 usable runs"], "--where=dataset=rw,params=4e6,tokens=400M")
case("where no column", MIXED, ["no column 'datset'", "did you mean 'dataset'"], "--where=datset=rw")
case("where no value", MIXED, ["dataset='owt'", "did you mean 'owt2'"], "--where=dataset=owt")
case("where nothing is left", table([("a", "1", *r) for r in RUNS] + [("b", "2", *r) for r in RUNS], ("x", "y", *HEAD)),
     ["no row", "x='a' and y='2' together"], "--where=x=a,y=2")  # fmt: skip
case("where of no form", MIXED, ["where='dataset'", "NAME=VALUE"], "--where=dataset")
case("count said", table(), Law(usual=("C is taken as 6*N*D",)), "--count=nonembedding", "--N=params")
case("count of no column", table(), ["no column 'params_nonembedding'", "--N=params"], "--count=nonembedding")
case("count unknown", table(), ["'totl'", "did you mean 'total'"], "--count=totl")
case("6nd beside a column of C", table(each(2, lambda c: f"{c},1"), (*HEAD, "c")), ["flops=6nd", "leave one out"],
     "--flops=6nd", "--C=c")  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_file_of_points(name, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    file, content, flags, expected = CASES[name]
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    content = "{}" if content is None else content
    (tmp_path / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    source = file.split("/")[0]
    code = main.main(["fit", source, "--bootstrap=0", "--holdout=0", "--json", *flags])
    out, err = capfd.readouterr()
    assert not any(word in out + err for word in NEVER), err
    if isinstance(expected, Law):
        assert code == 0, err
        assert err == ""
        check_law(json.loads(out), expected)
    else:
        assert code == 2 and out == ""
        assert re.fullmatch(r"bigmodel: .{10,600}\n", err), err
        for word in expected:
            assert word in err, f"{word!r} is missing in: {err}"


def check_law(result, expected):
    assert result["n_points"] == expected.n
    for text in expected.says:
        assert any(text in warning for warning in result["warnings"]), (text, result["warnings"])
    ours = [w for w in result["warnings"] if any(text in w for text in expected.says)]
    if expected.rel is not None:
        for name in ("E", "alpha", "beta"):
            assert result["params"][name] == pytest.approx(PLANTED[name], rel=expected.rel)
        assert len(ours) == len(result["warnings"]), result["warnings"]  # nothing else is wrong with these files


def test_there_are_enough_cases():
    assert len(CASES) >= 80
    assert sum(isinstance(expected, list) for *_, expected in CASES.values()) >= 50


def million(path):
    rng = np.random.default_rng(0)
    n, d = 10 ** rng.uniform(6, 9, 10**6), 10 ** rng.uniform(8, 11, 10**6)
    loss = 1.7 + 400 / n**0.34 + 410 / d**0.28
    frame = pd.DataFrame({"run_id": np.arange(10**6), "params": n, "tokens": d, "flops": 6 * n * d, "loss": loss})
    frame.to_csv(path, index=False)


@pytest.mark.slow
def test_a_million_rows(tmp_path, capfd):
    import time

    from bigmodel.laws import rows

    million(tmp_path / "points.csv")
    start = time.process_time()
    assert len(rows.load(tmp_path / "points.csv")) == 10**6
    assert time.process_time() - start < 10
    assert main.main(["fit", str(tmp_path / "points.csv"), "--bootstrap=0", "--holdout=0", "--json"]) == 0
    result = json.loads(capfd.readouterr().out)
    assert result["params"]["alpha"] == pytest.approx(0.34, rel=1e-3)
