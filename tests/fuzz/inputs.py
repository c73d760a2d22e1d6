# ruff: noqa: E501, B023 (tables read better in long lines; a lambda is called where it is made)
"""Inputs that nobody meant: each kind below is a function that changes files of the working folder and returns the
arguments of a command. Everything is drawn from the `random.Random` that it is given.

What is left out, and why:
  names of published corpora, `hf:` and `--config.run.wandb=online`   they would use the network
  --coordinator                                                       minutes of work, or of waiting, by their meaning
  horizons of more than some steps in what trains                     long by their meaning, and told before
  a FIFO where a file is meant                                        waits for its writer, as every program does
"""

import argparse
import json
import os
import random
from pathlib import Path

import numpy as np
import pandas as pd

from bigmodel import config
from bigmodel.cli import main

DEEP = 50_000  # brackets: deeper than any parser recurses

NUMBERS = [
    "0", "-1", "1", "3", "-0.0", "1.5", "0.1", "1e-320", "1e308", "1e999", "nan", "inf", "-inf", "NaN", "Infinity",
    str(10**6), str(2**31), str(2**63), str(2**70), str(-(2**70)), "9" * 5000, "1_000", "0x10", "1+2", "2**70", "+3",
    "1e3", "٣",
]  # fmt: skip
WORDS = [
    "", " ", "-", "--", "=", ",", ".", ":", "/", "a", "a.b", "a=b", "1,2", "a,,b", "true", "True", "None", "null", "[]",
    "{}", "()", "(1,)", "(1, 'a')", "'a", "[" * 3000, "(" * 300, "实验", "é", "e\u0301", "\u2028", "a\nb", "a\tb", "a;b",
    "$(x)", "`x`", "%s%d", "{0}", "x" * 300, "x" * 3000, "\x1b[31m", "\x00", "\udcff", "\ud800", "nosuch", "list", "a:b", "*", "(?",
    "\\", '"', "'", "#", "&", "|", "~",
]  # fmt: skip
# Of a path; those that some verb would write lie in the working folder.
PATHS = [
    "", ".", "nosuch", "nosuch/", "x" * 300, "x/" * 1500, "x\x00y", "é/ü", "with space", "dangling", "dangling.py",
    "dangling.json", "loop.csv", "loop", "folder.py", "folder.json", "folder.csv", "folder.parquet", "empty.py", "empty.json",
    "empty.csv", "empty.jsonl", "empty.parquet", "points.csv/inside", "digits.py/", "study.py/", "runs/", "runs//study//", "data", "texts", "made",
    "/dev/null", "/dev/null/x", "~", "~nobody/x", "gs://", "gs://x", "s3://x/y.json", "file:///x.csv", "http://x/y", "实验.py",
    "digits.py:", "digits.py:x", ":", "points.csv", "fit.json", "texts/a.txt", "\udcff.json", "a\nb.py", "-x.py",
]  # fmt: skip
ODD = [
    None, True, False, 0, -1, 1, 7, 0.5, 2**31, 2**63, 2**70, -(2**70), 1e308, -1e308, float("nan"), float("inf"), "",
    "a", "1", "nan", "实验", "\ud800", "\x00", "../..", "x" * 3000, [], {}, [1], [None], {"a": 1}, {"a.b": {}}, [[[]]], [1, "a"],
]  # fmt: skip


def odd_word(rng: random.Random) -> str:
    return rng.choice(rng.choice([NUMBERS, NUMBERS, WORDS, PATHS]))


def odd_paths() -> None:
    """Makes what `PATHS` names, in the working folder."""
    for name in ("dangling", "dangling.py", "dangling.json"):
        os.symlink("nowhere", name)
    for name in ("loop", "loop.csv"):
        os.symlink(name, name)
    for name in ("folder.py", "folder.json", "folder.csv", "folder.parquet"):
        Path(name).mkdir()
    for name in ("empty.py", "empty.json", "empty.csv", "empty.jsonl", "empty.parquet"):
        Path(name).touch()


# ------------------------------------------------------------------------------ files


def odd_bytes(rng: random.Random, data: bytes) -> bytes:
    """A file as disks, editors and other programs leave it."""
    at = rng.randrange(len(data) + 1)
    end = min(len(data), at + rng.choice([1, 3, 50, 10**6]))
    lines = data.split(b"\n")
    k = rng.randrange(len(lines))
    return rng.choice([
        lambda: data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :] if at < len(data) else b"",
        lambda: data[:at],
        lambda: data[:at] + data[end:],
        lambda: data[:at] + data[at:end] * 2 + data[end:],
        lambda: data[:at] + b"\xff\xfe" + data[at:],
        lambda: data[:at] + b"\0" * 8 + data[end:],
        lambda: data[:at] + "\u2028\x85".encode() + data[at:],
        lambda: data[:at] + b"[" * DEEP + data[at:],
        lambda: data[:at] + rng.choice(NUMBERS).encode() + data[end:],
        lambda: b"\n".join([*lines[:k], *lines[k + 1 :]]),
        lambda: b"\n".join([*lines[: k + 1], *lines[k:]]),
        lambda: b"\n".join([*lines[:k], b"", *lines[k:]]),
        lambda: b"\n".join(rng.sample(lines, len(lines))),
        lambda: data.replace(b"\n", b"\r\n"),
        lambda: data.decode(errors="replace").encode("utf-16"),
        lambda: b"\xef\xbb\xbf" + data,
        lambda: b"",
        lambda: b"null",
        lambda: b"[]",
        lambda: b"{}",
    ])()  # fmt: skip


def odd_json(rng: random.Random, value, keep_seal=0.2):
    """A parsed JSON value with a part changed. A record's seal goes, as of one that was changed on purpose."""
    places = []

    def walk(node):
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], dict | list):
                walk(node[key])

    value = json.loads(json.dumps(value))
    if not isinstance(value, dict | list) or not value or rng.random() < 0.03:
        return rng.choice(ODD)
    walk(value)
    for _ in range(rng.choice([1, 1, 1, 3])):
        node, key = rng.choice(places)
        how = rng.random()
        if key not in node if isinstance(node, dict) else key >= len(node):
            continue  # went with an earlier change
        if how < 0.7:
            node[key] = rng.choice(ODD)
        elif how < 0.85:
            del node[key]
        elif isinstance(node, dict):
            node[rng.choice(WORDS)] = node.pop(key)
        else:
            node.insert(key, rng.choice(ODD))
    if isinstance(value, dict) and rng.random() > keep_seal:
        value.pop("crc32", None)
    return value


def damage(rng: random.Random, path: Path) -> None:
    """Changes a file's bytes or, of JSON, a value in it; or makes something else of it."""
    how = rng.random()
    if how < 0.05:
        path.unlink()
        rng.choice([lambda: None, path.mkdir, lambda: path.symlink_to("nowhere"), lambda: path.symlink_to(path.name)])()
        return
    data = path.read_bytes()
    try:
        if how > 0.4 and path.suffix == ".json":
            data = json.dumps(odd_json(rng, json.loads(data))).encode()
        elif how > 0.4 and path.suffix == ".jsonl" and data.strip():
            lines = data.splitlines()
            k = rng.randrange(len(lines))
            lines[k] = json.dumps(odd_json(rng, json.loads(lines[k]))).encode()
            data = b"\n".join(lines) + b"\n"
        else:
            data = odd_bytes(rng, data)
    except ValueError:
        data = odd_bytes(rng, data)
    path.write_bytes(data)


def files(rng: random.Random, *patterns: str) -> Path:
    found = sorted(p for pattern in patterns for p in Path().glob(pattern) if p.is_file())
    return rng.choice(found)


# ------------------------------------------------------------------------------ commands

GPT, DIGITS = "--config=gpt.py", "--config=digits.py"


def ids() -> list[str]:
    """Of the sweep's rows."""
    return [json.loads(line)["run_id"] for line in Path("runs/study/plan.jsonl").read_bytes().splitlines()]


def commands(rng: random.Random) -> list[list[str]]:
    """What works in the folder as it is made: some tenths of a second each."""
    points = rng.choice(["points.csv", "points.tsv", "points.json", "points.jsonl", "points.parquet", "made"])
    fit = ["fit", points, "--bootstrap=10"]
    law = ["plan", "--law=fit.json", "--next-runs=0"]
    run_id = rng.choice(ids())
    interrupted = str(
        next(p for p in sorted(Path("runs").glob("*/config.json")) if not (p.parent / "result.json").exists())
    )
    finished = str(next(p for p in sorted(Path("runs").glob("*/result.json"))).parent)
    return [
        ["prepare", "texts", "--out=out", "--workers=1"],
        ["prepare", files(rng, "texts/*").as_posix(), "--out=out", "--workers=1"],
        ["prepare", "texts", "--out=data/speech", "--workers=1"],
        ["train", DIGITS],
        ["train", GPT],
        ["train", interrupted],
        ["sweep", "plan", "study.py"],
        ["sweep", "run", "study.py"],
        ["sweep", "status", rng.choice(["study.py", "runs/study"])],
        ["worker", "runs/study", f"--run={run_id}"],
        ["launch", "runs/study", "--engine=local", "--print"],
        ["launch", "study.py", "--engine=slurm", "--print"],
        ["launch", "runs/study", "--engine=sky", "--topology=v5e:4x4", "--bucket=gs://b/study", "--print"],
        fit,
        [*fit, "--out=out.json"],
        [*fit, f"--law={rng.choice(['gadre', 'power:x=C', 'isoflop', 'envelope', 'bnsl:x=D,breaks=1', 'kaplan_nd'])}"],
        [*law, "--flops=1e20"],
        [*law, "--params=1e9", DIGITS],
        [*law, "--tokens=1e9", "--family=decoder"],
        ["plan", "--law=fit.json", "--flops=1e12", DIGITS, "--out=next.py"],
        ["plan", "--topology=v5e:2x2", GPT],
        ["count", "gpt2-124m"],
        ["count", rng.choice([GPT, DIGITS])],
        ["evaluate", finished],
        ["coordcheck", GPT, "--widths=8,16", "--steps=1", "--seeds=1"],
        ["compile", GPT, "--topology=v5e:2x2"],
        ["report", "made", "--out=out"],
        ["paper", rng.choice(["chinchilla", "besiroglu", "porian", "steplaw", "bnsl", "list"]), f"--points={points}"],
        ["upload", "data/speech", "out"],
        ["upload", "runs/study", "out"],
    ]  # fmt: skip


def command(rng: random.Random, *verbs: str) -> list[str]:
    return list(rng.choice([c for c in commands(rng) if not verbs or c[0] in verbs or " ".join(c[:2]) in verbs]))


LEFT_OUT = ("--coordinator", "--help", "-h")


def kind_arguments(rng: random.Random) -> list[str]:
    """Flags that are odd, missing, twice or another verb's."""
    args = command(rng)
    parser = main.verb_parsers(main.parser())[args[0]]
    actions = [a for a in parser._actions if a.option_strings and not {*a.option_strings} & {*LEFT_OUT}]
    for _ in range(rng.choice([1, 1, 2])):
        how = rng.random()
        if how < 0.7:
            action = rng.choice(actions)
            flag = action.option_strings[0]
            values = list(action.choices) if action.choices else []
            value = rng.choice([odd_word(rng), odd_word(rng), *values])
            args += [flag] if isinstance(action, argparse._StoreTrueAction) else [f"{flag}={value}"]
        elif how < 0.85 and len(args) > 1:
            k = rng.randrange(1, len(args))
            name, eq, _ = args[k].partition("=")
            args[k] = f"{name}{eq}{odd_word(rng)}" if eq else odd_word(rng)
        elif how < 0.9:
            del args[rng.randrange(len(args))]
            if not args:
                args = ["fit"]
        else:
            args.insert(rng.randrange(len(args) + 1), rng.choice([odd_word(rng), f"--{odd_word(rng)}", *args]))
    return args


def kind_paths(rng: random.Random) -> list[str]:
    """A path that isn't one, wherever one is meant."""
    odd_paths()
    args = command(rng)
    places = [k for k, arg in enumerate(args) if k and ("/" in arg or "." in arg or arg in ("out", "texts", "made"))]
    k = rng.choice(places or [len(args) - 1])
    name, eq, old = args[k].rpartition("=")
    path = rng.choice([*PATHS, old + "/", "./" + old, old + "/..", old.upper()])
    args[k] = name + eq + path
    if args[0] in ("train", "sweep", "report") and rng.random() < 0.2:
        args.append(f"--runs={rng.choice(PATHS)}")
    return args


def odd_override(rng: random.Random, experiment: str, where: list[str]) -> list[str]:
    flat = config.flatten(config.load(experiment))
    key = (
        rng.choice(list(flat)) if rng.random() < 0.9 else rng.choice(["", "a", "model", "model.", ".", "a.b.c", *WORDS])
    )
    return [*where, f"--config.{key}={odd_word(rng)}"]


HORIZON = "--config.train.steps=2"


def kind_overrides(rng: random.Random) -> list[str]:
    """--config.KEY=VALUE of any key, odd values; what trains keeps to two steps."""
    args = command(rng, "train", "sweep plan", "sweep run", "count", "worker", "launch", "plan", "compile")
    experiment = "gpt.py" if GPT in args else "digits.py"
    for _ in range(rng.choice([1, 1, 2, 3])):
        args = odd_override(rng, experiment, args)
    if args[0] == "train" or args[:2] == ["sweep", "run"]:
        args = [
            a
            for a in args
            if not a.startswith("--config.train.") or a.partition("=")[0].split(".")[2] not in config.HORIZONS
        ]
        args.append(HORIZON)
    return args


def kind_config_json(rng: random.Random) -> list[str]:
    """The config.json of a run, changed."""
    path = files(rng, "runs/*/config.json", "runs/study/*/config.json")
    target = Path("config.json")
    target.write_bytes(path.read_bytes())
    damage(rng, target)
    return rng.choice(
        [
            ["train", "config.json", HORIZON],
            ["train", "config.json", HORIZON],
            ["compile", "config.json", "--topology=v5e:2x2"],
        ]
    )


def kind_config_py(rng: random.Random) -> list[str]:
    """An experiment file whose config is odd: keys, types, sections."""
    name = rng.choice(["digits", "gpt"])
    flat = list(config.flatten(config.load(f"{name}.py")))
    lines = ["import importlib.util"]
    lines += [
        f"spec = importlib.util.spec_from_file_location('base', {name + '.py'!r})",
        "base = importlib.util.module_from_spec(spec); spec.loader.exec_module(base)",
        "", "def get_config():", "    config = base.get_config()",
    ]  # fmt: skip
    for _ in range(rng.choice([1, 1, 2])):
        key, value = rng.choice(flat), rng.choice(ODD)
        section = key.partition(".")[0]
        lines.append("    " + rng.choice([
            f"with config.unlocked(): config.{key} = {value!r}".replace("nan", "float('nan')").replace("inf", "float('inf')"),
            f"config.{key} = {value!r}".replace("nan", "float('nan')").replace("inf", "float('inf')"),
            f"del config.{key}",
            f"del config[{section!r}]",
            f"with config.unlocked(): config[{rng.choice(WORDS)!r}] = 1",
            f"with config.unlocked(): config.{section} = {rng.choice(['None', '3', '{}', '[]', 'dict(a=1)', 'config'])}",
            f"return {rng.choice(['None', '{}', 'config.model', 'config.to_dict()', 'config.copy_and_resolve_references()', 'type(config)()'])}",
            f"raise {rng.choice(['ValueError(chr(10))', 'SystemExit', 'KeyError', 'RecursionError', 'KeyboardInterrupt', 'MemoryError', 'StopIteration'])}",
            "return get_config()",
            "config.lock()",
        ]))  # fmt: skip
    lines.append("    return config")
    Path("mine.py").write_text("\n".join(lines), encoding="utf-8", errors="surrogatepass")
    return rng.choice(
        [
            ["train", "--config=mine.py", HORIZON],
            ["count", "--config=mine.py"],
            ["plan", "--law=fit.json", "--flops=1e12", "--next-runs=0", "--config=mine.py"],
        ]
    )


def kind_sweep_file(rng: random.Random) -> list[str]:
    """A sweep file whose rows are odd."""
    flat = list(config.flatten(config.load("digits.py")))
    rows = []
    for _ in range(rng.choice([1, 2, 3])):
        row = {rng.choice([*flat, "experiment", "start", "model", rng.choice(WORDS)]): rng.choice([*ODD, *WORDS[:20]])}
        if rng.random() < 0.3:
            row[rng.choice(flat)] = rng.choice(ODD)
        rows.append({k: v for k, v in row.items() if k.partition(".")[2] not in config.HORIZONS})
    text = rng.choice(
        [repr(rows)] * 9 + [repr(rng.choice(ODD)), "iter([{}])", "[{}] * 3", "({},)", "[{}, None]", "get_sweep()"]
    )
    text = text.replace("nan", "float('nan')").replace("inf", "float('inf')")
    more = rng.choice(
        [""] * 8
        + [
            "RECIPE = 'nosuch'",
            "RECIPE = 3",
            "RECIPE = 'step_law'",
            "LAW = 7",
            "import nosuch",
            "raise SystemExit(3)",
            "report = 3",
        ]
    )
    start = rng.choice(
        ["'digits.py'"] * 12 + ["'nosuch.py'", "None", "3", "['digits.py']", "'gpt.py'", "__file__", "'digits.py:x'"]
    )
    Path("mine.py").write_text(
        f"CONFIG = {start}\n{more}\ndef get_sweep():\n    return {text}\n", encoding="utf-8", errors="surrogatepass"
    )
    return ["sweep", rng.choice(["plan", "plan", "run", "status"]), "mine.py"]


def _held(value):
    """Whether pandas can hold it: half of a surrogate pair is no text there."""
    return not isinstance(value, str) or value.encode(errors="ignore").decode() == value


def kind_points(rng: random.Random) -> list[str]:
    """A table of points: its bytes or cells; also tables without sense."""
    suffix = rng.choice(["csv", "tsv", "json", "jsonl", "parquet"])
    path = Path(f"points.{suffix}")
    if rng.random() < 0.4:
        damage(rng, path)
    else:
        frame = pd.read_csv("points.csv").astype(object)
        for _ in range(rng.choice([1, 1, 3])):
            frame = frame.astype(object)
            how, column = rng.random(), rng.choice(list(frame.columns))
            if how < 0.5:
                frame.loc[rng.randrange(len(frame)), column] = rng.choice(
                    [v for v in [*ODD[:24], *NUMBERS] if _held(v)]
                )
            elif how < 0.6:
                frame[column] = rng.choice([v for v in [*ODD[:24], *NUMBERS] if _held(v)])
            elif how < 0.7 and len(frame.columns) > 1:
                frame = frame.drop(columns=column)
            elif how < 0.8:
                words = [w for w in WORDS if _held(w)]
                frame = frame.rename(columns={column: rng.choice([*words, *frame.columns])})
            elif how < 0.9:
                frame = frame.head(rng.choice([0, 1, 2, 5, 6]))
            else:
                frame = pd.concat([frame] * rng.choice([2, 40]), ignore_index=True)
            if not frame.columns.is_unique or not len(frame):
                break
        try:
            {"csv": lambda: frame.to_csv(path, index=False), "tsv": lambda: frame.to_csv(path, sep="\t", index=False),
             "json": lambda: frame.to_json(path, orient="records"),
             "jsonl": lambda: frame.to_json(path, orient="records", lines=True),
             "parquet": lambda: frame.to_parquet(path)}[suffix]()  # fmt: skip
        except Exception:  # a table that its format can't hold
            path = Path("points.csv")
            damage(rng, path)
    args = ["fit", str(path), "--bootstrap=10"]
    if rng.random() < 0.4:
        args += rng.choice([["--law=isoflop"], ["--law=power:x=C"], ["--law=envelope"], ["--flops=6nd"], ["--run=name"],
                            ["--where=name=a"], ["--drop=1"], ["--holdout=0"], ["--N=params", "--D=tokens", "--L=loss"],
                            ["--law=kaplan_nd", "--against=gadre"], ["--estimator=likelihood"], ["--drop-highest=1"]])  # fmt: skip
    return args


def kind_fit_json(rng: random.Random) -> list[str]:
    """A fit, changed, that a plan reads."""
    damage(rng, Path("fit.json"))
    return command(rng, "plan --law=fit.json")


RECORDS = ["runs/*/*.json", "runs/*/*.jsonl", "runs/study/*/*.json", "runs/study/*/*.jsonl", "made/*/*.json"]


def kind_records(rng: random.Random) -> list[str]:
    """Damaged records of runs, before every verb that reads them."""
    for _ in range(rng.choice([1, 1, 2])):
        path = files(rng, *RECORDS)
        if rng.random() < 0.15:
            path = path.with_name(rng.choice(["error.json", "result.json", "speed.jsonl", "attempts.jsonl", "claim"]))
            path.write_bytes(
                rng.choice([b"", b"{}", b"[]", b"\xff", b"[" * DEEP, b'{"error": 3}', b'{"error": "a\\nb"}', b"null"])
            )
        else:
            damage(rng, path)
    if path.parts[0] == "made":
        return rng.choice([["fit", "made", "--bootstrap=10"]] * 6 + [["report", "made", "--out=out"]])
    args = command(rng, "train", "sweep", "worker", "launch", "evaluate", "upload")
    if rng.random() < 0.15:
        args = ["train", DIGITS, f"--config.train.init_from={path.parent}"]
    if args[0] == "sweep" and rng.random() < 0.3:
        args.append(rng.choice(["--write", "--retry-failed", "--json"]))
    return args


def kind_data(rng: random.Random) -> list[str]:
    """Damaged prepared data, before what reads it."""
    for _ in range(rng.choice([1, 1, 2])):
        damage(rng, files(rng, "data/speech/*", "data/speech/manifest.json"))
    finished = str(next(p for p in sorted(Path("runs").glob("*/result.json"))).parent)
    return rng.choice([["train", GPT, "--config.train.seed=1"], ["count", GPT], ["upload", "data/speech", "out"], ["evaluate", finished],
                       ["prepare", "texts", "--out=data/speech", "--workers=1"], ["prepare", "texts", "--out=data/speech", "--workers=1", "--verify"],
                       ["plan", "--law=fit.json", "--flops=1e12", "--next-runs=0", GPT]])  # fmt: skip


def kind_checkpoints(rng: random.Random) -> list[str]:
    """Damaged checkpoints, before what restores them."""
    finished = next(p for p in sorted(Path("runs").glob("*/result.json"))).parent
    interrupted = next(
        p for p in sorted(Path("runs").glob("*/config.json")) if not (p.parent / "result.json").exists()
    ).parent
    home = rng.choice([interrupted, interrupted, finished])
    for _ in range(rng.choice([1, 1, 3])):
        damage(rng, files(rng, f"{home}/checkpoints/**/*"))
    if home == interrupted:
        return ["train", f"{home}/config.json"]
    return rng.choice(
        [["evaluate", str(home)], ["train", GPT, f"--config.train.init_from={home}", "--config.train.seed=3"]]
    )


def kind_sources(rng: random.Random) -> list[str]:
    """Texts and tokenizers that can't be what they say."""
    path = files(rng, "texts/*")
    if rng.random() < 0.1:
        path = path.with_suffix(
            rng.choice([".txt", ".md", ".json", ".jsonl", ".parquet", ".gz", ".zst", ".txt.gz", ".jsonl.zst", ".TXT"])
        )
        path.write_bytes(
            rng.choice([b"", b"\0" * 100, b"[" * DEEP, os.urandom(0) + bytes(range(256)), b"{}", b"\xff\xfea\0"])
        )
    else:
        damage(rng, path)
    args = ["prepare", rng.choice(["texts", path.as_posix()]), "--out=out", "--workers=1"]
    if rng.random() < 0.2:
        Path("tokenizer.json").write_bytes(
            odd_bytes(rng, rng.choice([b"{}", b'{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}']))
        )
        args.append("--tokenizer=tokenizer.json")
    if rng.random() < 0.1:
        args += rng.choice([["--tokenizer=bpe", "--vocab-size=300"], ["--validation-fraction=0.5"], ["--text-key=a.b"]])
    return args


def kind_weights(rng: random.Random) -> list[str]:
    """Published weights that aren't, and starts that can't be."""
    from safetensors.numpy import save_file

    name = rng.choice(
        [
            "wte.weight",
            "transformer.h.0.ln_1.weight",
            "bert.embeddings.word_embeddings.weight",
            rng.choice(WORDS[:-4]),
            "x",
        ]
    )
    try:
        save_file(
            {
                name.replace("\ud800", ""): np.zeros(
                    rng.choice([(), (0,), (2, 3), (256, 16)]), rng.choice(["float32", "int64", "bool"])
                )
            },
            "w.safetensors",
        )
    except Exception:  # a name that the format can't hold
        Path("w.safetensors").write_bytes(b"")
    if rng.random() < 0.6:
        Path("w.safetensors").write_bytes(odd_bytes(rng, Path("w.safetensors").read_bytes()))
    return [
        "train",
        rng.choice([GPT, GPT, DIGITS]),
        "--config.train.init_from=w.safetensors",
        *rng.choice([[], ["--config.train.init_only=embed"]]),
    ]


LAW = """from bigmodel.laws.forms import Param

PARAMETERS = [Param("E", 0.5), Param("A", 3.0), Param("alpha", 0.3)]


def form(params, row):
    return params["E"] + params["A"] * row["N"] ** -params["alpha"]
"""


def kind_law(rng: random.Random) -> list[str]:
    """A law file of the user's, changed; so is what is asked of it."""
    text = LAW
    for _ in range(rng.choice([1, 1, 2])):
        text = rng.choice([
            lambda: text.replace(rng.choice(["row", "params", '"N"', '"A"', "0.5", "0.3", "return", "-"]), rng.choice(["row", '"D"', "1e308", "None", "()", "'a'", "0", "float('nan')"])),
            lambda: "\n".join(line for line in text.split("\n") if rng.random() < 0.8),
            lambda: odd_bytes(rng, text.encode()).decode(errors="replace"),
        ])()  # fmt: skip
    Path("law.py").write_text(text)
    name = rng.choice(
        [
            "law.py",
            "law.py",
            "law.py:x=C",
            "bnsl:x=D,breaks=0",
            "bnsl:x=D,breaks=99",
            "bnsl:breaks=x",
            "power",
            "power:x=loss",
            "power:x=",
            "power:y=1",
            ":",
            "chinchilla:x=C",
            "henighan:x=name",
        ]
    )
    return [
        "fit",
        "points.csv",
        "--bootstrap=10",
        f"--law={name}",
        *rng.choice([[], [], ["--against=gadre"], ["--out=out.json"]]),
    ]


def kind_environment(rng: random.Random) -> list[str]:
    """Variables of engines, shells and caches."""
    for _ in range(rng.choice([1, 2])):
        name = rng.choice(
            [
                "SLURM_NTASKS",
                "SLURM_ARRAY_TASK_ID",
                "SKYPILOT_NUM_NODES",
                "BIGMODEL_CACHE",
                "BIGMODEL_INIT_TIMEOUT",
                "HOME",
                "WANDB_MODE",
                "COLUMNS",
                "LANG",
                "MPLBACKEND",
            ]
        )
        value = rng.choice([w for w in [*WORDS, *PATHS, *NUMBERS] if "\0" not in w and "\ud800" not in w])
        os.environ[name] = value
    return command(rng, "worker", "worker", "train", "sweep", "fit", "prepare", "launch")


KINDS = {
    kind_arguments: 6, kind_paths: 3, kind_overrides: 6, kind_config_json: 3, kind_config_py: 2, kind_sweep_file: 3,
    kind_points: 5, kind_fit_json: 3, kind_records: 6, kind_data: 3, kind_checkpoints: 2, kind_sources: 4,
    kind_weights: 1, kind_law: 2, kind_environment: 1,
}  # fmt: skip
