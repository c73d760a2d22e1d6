"""Wrong inputs of real users: one clear line, no traceback, exit 2 (75 for a full disk), nothing written or lost.

Most cases call the command in this process, so that JAX is imported once; some are processes of their own.
"""

import asyncio
import contextlib
import errno
import gzip
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from conftest import ROOT, TINY, bigmodel

from bigmodel.cli import main
from bigmodel.errors import UsageError
from bigmodel.run import program, record

GPT_FILE, DIGITS_FILE = ROOT / "experiments/gpt.py", ROOT / "experiments/digits.py"
PROGRESS = re.compile(r"  step \d+/\d+  loss ")


def flags(pairs):
    return [f"--config.{key}={value}" for key, value in pairs]


SMALL = [("model.width", 8), ("train.tokens", 0), ("train.steps", 10), ("run.wandb", "off")]
GPT = [f"--config={GPT_FILE}", *flags(TINY)]  # run.data_dir is `data`, as by default
DIGITS = [f"--config={DIGITS_FILE}", *flags(SMALL)]


def train_gpt(**overrides):
    return ["train", *GPT, *flags((k.replace("__", "."), v) for k, v in overrides.items())]


def train_digits(**overrides):
    return ["train", *DIGITS, *flags((k.replace("__", "."), v) for k, v in overrides.items())]


def tree_of(folder):
    """Every path under `folder` with its content: what a mistake must not change."""
    return {
        str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None
        for p in sorted(folder.rglob("*"))
        if "__pycache__" not in p.parts
    }


def one_line(error, *says):
    """The message, if `error` is one line of ours beside progress, and says all that it should."""
    assert "Traceback" not in error, error
    lines = [line for line in error.splitlines() if line.strip() and not PROGRESS.search(line)]
    lines = [line for line in lines if not line.startswith("bigmodel: note: ")]  # what is said where work goes on
    assert len(lines) == 1, error
    assert lines[0].startswith("bigmodel: "), error
    assert len(lines[0]) < 600, error
    for word in says:
        assert word in lines[0], f"{word!r} is missing in: {lines[0]}"
    return lines[0]


def write(path, content):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content) if isinstance(content, bytes) else path.write_text(content)
    return path


# ---------------------------------------------------------------------------------- what is there


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """A folder of runs with one that was interrupted at step 8 of 10, by `train_digits(run__checkpoint_every=4)`."""
    runs = tmp_path_factory.mktemp("interrupted") / "runs"
    assert main.main([*train_digits(run__checkpoint_every=4, run__keep=3), f"--runs={runs}"]) == 0
    (folder,) = runs.iterdir()
    (folder / "result.json").unlink()
    shutil.rmtree(folder / "checkpoints/10")
    return runs


@pytest.fixture
def here(tmp_path, monkeypatch, data_dir):
    """The user's folder, with prepared data in it."""
    shutil.copytree(data_dir, tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def config_json(**changes):
    """A whole config of the tiny GPT; `None` leaves a key out."""
    from bigmodel import config

    tree = json.loads(config.to_json(config.load(GPT_FILE, TINY)))
    for key, value in changes.items():
        *parents, leaf = key.split("__")
        section = tree
        for part in parents:
            section = section[part]
        section[leaf] = value
        if value is None:
            del section[leaf]
    return json.dumps(tree)


def manifest(change):
    """Applies `change` to the manifest of the prepared speeches."""
    path = Path("data/speech/manifest.json")
    value = json.loads(path.read_text())
    value.pop("crc32", None)  # a change that whoever made it meant
    change(value)
    path.write_text(json.dumps(value))


def sweep_file(rows, config=DIGITS_FILE, name="study.py", head=""):
    write(name, f"{head}\nCONFIG = {str(config)!r}\n\ndef get_sweep():\n    return {rows}\n")


def points(rows, name="points.csv", head="params,tokens,loss"):
    write(name, "\n".join([head, *rows]) + "\n")


GOOD_POINTS = [f"{n},{d},{2 + 10 * n**-0.3 + 20 * d**-0.3:.6f}" for n in (10**3, 10**4, 10**5) for d in (10**5, 10**6)]


def finished_runs():
    for i, row in enumerate(GOOD_POINTS):
        n, d, loss = map(float, row.split(","))
        result = dict(params=n, tokens=d, loss=loss, flops=6 * n * d, unit="tokens", status="done", run_id=str(i))
        write(f"runs/{i}/result.json", json.dumps(result))


def damage(path, how):
    data = path.read_bytes()
    path.write_bytes(how(data))


def flip(data):
    at = len(data) // 3
    return data[:at] + bytes([data[at] ^ 16]) + data[at + 1 :]


def copy_of(runs, how=None):
    """The interrupted run in ./runs; its last checkpoint damaged by `how`, and no earlier one there to go on from.

    All the data files: which of them the final index refers to differs from save to save.
    """
    shutil.copytree(runs, "runs")
    for folder in Path("runs").glob("*/checkpoints/4") if how else ():
        shutil.rmtree(folder)
    for file in Path("runs").glob("*/checkpoints/8/state/**/d/*") if how else ():
        damage(file, how)


RESULT = {"run_id": "0123456789ab", "status": "done", "steps": 8, "params": 1, "tokens": 1, "flops": 1.0, "loss": 1.0}
RESULT |= {"wall_seconds": 1.0, "last_good_step": 8}


# -------------------------------------------------------------------------------------- the table

# name: (arguments, what the line says, what is made before)
CASES = {}


def case(name, arguments, *says, before=None):
    assert name not in CASES, name
    CASES[name] = (arguments, says, before)


# ---- command line
case("no verb", [], "VERB", "--help")
case("unknown verb", ["trian"], "'trian'", "did you mean 'train'")
case("unknown flag", train_digits() + ["--rnus=elsewhere"], "'--rnus", "did you mean '--runs'")
case("flag of no verb", ["--version-of=1", "count", "list"], "--version-of")
case("missing argument", ["sweep", "plan"], "required: file", "sweep --help")
case("neither config nor path", ["train"], "--config=experiments/NAME.py", "config.json")
case("value missing", train_digits() + ["--config.model.width"], "--config.model.width needs a value")
case("sweep action", ["sweep", "runn", "study.py"], "'runn'", "did you mean 'run'", before=lambda: sweep_file("[{}]"))
case("workers without end", ["sweep", "run", "study.py", "--workers=1000000000"], "1000000000", "in [1, 1024]",
     before=lambda: sweep_file("[{}]"))  # fmt: skip
case(
    "seeds without end",
    ["coordcheck", f"--config={GPT_FILE}", "--widths=8,16", "--seeds=1000000000"],
    "--seeds",
    "in [1, 1000]",
)
case(
    "chips without end", ["plan", "--topology=v5e:1000000x1000000", f"--config={GPT_FILE}"], "1000000x1000000", "chips"
)
case("zero workers", ["sweep", "run", "study.py", "--workers=0"], "--workers=0", "in [1, 1024]",
     before=lambda: sweep_file("[{}]"))  # fmt: skip
case("workers in words", ["sweep", "run", "study.py", "--workers=two"], "--workers", "'two'")
case("prepare workers", ["prepare", "data", "--out=out", "--workers=-1"], "workers", "-1")
case("negative devices", train_digits() + ["--host-devices=-2"], "--host-devices=-2")
case("override where there is none", ["fit", "points.csv", "--config.model.width=3"], "fit takes no", "model.width")
case("unknown model", ["count", "gpt3-175"], "'gpt3-175'", "did you mean 'gpt3-175b'")

# ---- config file
case("no config file", ["train", f"--config={ROOT}/experiments/gtp.py"], "no config file", "did you mean", "gpt.py")
case("a run's folder", ["train", "runs/0123456789ab"], "runs/0123456789ab", "config.json",
     before=lambda: write("runs/0123456789ab/config.json", "{}"))  # fmt: skip
case("syntax error", ["train", "--config=mine.py"], "mine.py", "line 2", "SyntaxError",
     before=lambda: write("mine.py", "x = 1\nx = = 2\n"))  # fmt: skip
case("exception at import", ["train", "--config=mine.py"], "mine.py", "line 3", "ModuleNotFoundError", "nosuchmodule",
     before=lambda: write("mine.py", "\n\nimport nosuchmodule\n"))  # fmt: skip
case("exception in get_config", ["train", "--config=mine.py"], "mine.py", "line 2", "ZeroDivisionError",
     before=lambda: write("mine.py", "def get_config():\n    return 1 / 0\n"))  # fmt: skip
case("wrong type in get_config", ["train", "--config=mine.py"], "mine.py", "line 4", "int",
     before=lambda: write("mine.py", "from bigmodel import budget\ndef get_config():\n"
     "    config = budget.base('mlp', 'tables')\n    config.model.width = 'wide'\n    return config\n"))  # fmt: skip
case("typo in get_config", ["train", "--config=mine.py"], "'model.widht'", "did you mean 'model.width'",
     before=lambda: write("mine.py", "from bigmodel import budget\ndef get_config():\n"
     "    config = budget.base('mlp', 'tables')\n    config.model.widht = 8\n    return config\n"))  # fmt: skip
case("no get_config", ["train", "--config=mine.py"], "mine.py", "no get_config",
     before=lambda: write("mine.py", "config = {}\n"))  # fmt: skip
case("get_config returns a dict", ["train", "--config=mine.py"], "mine.py", "returned dict", "ConfigDict",
     before=lambda: write("mine.py", "def get_config():\n    return {'model': {}}\n"))  # fmt: skip
case("get_config takes no variant", ["train", f"--config={DIGITS_FILE}:large"], "digits.py", "large", "argument")
case("unknown variant", ["train", "--config=mine.py:large"], "mine.py", "KeyError", "large",
     before=lambda: write("mine.py", "def get_config(variant):\n    return {'small': 1}[variant]\n"))  # fmt: skip
case("config file is no Python", ["train", "--config=mine.yaml"], "mine.yaml", "Python",
     before=lambda: write("mine.yaml", "model: {}\n"))  # fmt: skip
case("unknown family", ["train", "--config=mine.py"], "'decodr'", "did you mean 'decoder'",
     before=lambda: write("mine.py", "from bigmodel import budget\ndef get_config():\n"
     "    return budget.base('decodr', 'text')\n"))  # fmt: skip

# ---- overrides
case("unknown key", train_gpt(model__widht=64), "'model.widht'", "did you mean 'model.width'")
case("section for a key", train_gpt(optim=0.1), "config.optim is a section", "config.optim.")
case("text for an int", train_gpt(model__width="wide"), "config.model.width='wide'", "expected int")
case("float for an int", train_gpt(model__width=16.5), "config.model.width", "16.5", "expected int")
case("text for a float", train_gpt(optim__lr="1e-3x"), "config.optim.lr='1e-3x'", "expected float")
case("infinite float", train_gpt(optim__lr="1e999"), "config.optim.lr", "expected float")
case("number for a bool", train_gpt(model__bias=1), "config.model.bias='1'", "expected bool")
case("unknown name", train_gpt(model__norm="layer_norm"), "config.model.norm", "did you mean 'layernorm'")
case("another family", train_gpt(family="mlp"), "config.family is fixed", "'decoder'")
case("negative width", train_gpt(model__width=-16), "config.model.width=-16", "at least 1")
case("heads", train_gpt(model__num_heads=3), "config.model.num_heads=3", "width=16")
case("microbatch", train_gpt(train__microbatch=3), "config.train.microbatch=3", "train.batch_size=8")
case("optimizer", train_gpt(optim__name="adam"), "config.optim.name", "'adam'", "did you mean 'adamw'")
case("schedule", train_gpt(optim__schedule="cosin"), "config.optim.schedule", "did you mean 'cosine'")
case("activation", train_gpt(model__activation="geluu"), "config.model.activation", "did you mean 'gelu'")
case("no horizon", train_gpt(train__steps=0), "exactly one of", "none is given")
case("two horizons", train_gpt(train__tokens=10**4), "exactly one of", "steps, tokens are given")
case("less than a step", train_gpt(train__steps=0, train__tokens=10), "less than one step", "256 tokens")
case("lr 0", train_gpt(optim__lr=0), "config.optim.lr=0", "above 0")
case("beta 1 in float32", train_gpt(optim__b2=0.99999999), "config.optim.b2=0.99999999", "must be in [0, 0.99999997)")
case("eps 0 in float32", train_gpt(optim__eps=1e-46), "config.optim.eps=1e-46", "at least 1e-37")
case(
    "decay beyond float32",
    train_gpt(optim__weight_decay=1e38),
    "config.optim.weight_decay=1e+38",
    "must be in [0, 1e+09]",
)
case("regex", train_gpt(optim__decay_exclude="(bias"), "config.optim.decay_exclude='(bias'", "regular expression")
case("mesh", train_gpt(run__mesh__data=3), "config.run.mesh", "1 devices")
case("mesh of -1 twice", train_gpt(run__mesh__fsdp=-1), "config.run.mesh", "at most one is -1")
case("W&B mode", train_gpt(run__wandb="onlin"), "config.run.wandb", "'onlin'", "did you mean 'online'")
case("seed", train_gpt(train__seed=2**40), "config.train.seed=1099511627776")
case("checkpoint_every", train_gpt(run__checkpoint_every=-1), "config.run.checkpoint_every=-1", "at least 0")

case(
    "a width that no array has", train_gpt(model__width=2**31), "config.model.width=2147483648", "at most 2,147,483,647"
)
case(
    "a width of seventy bits", train_digits(model__width=2**70), "config.model.width=1180591620717411303424", "at most"
)
case("a model larger than memory", train_digits(model__width=10**9), "GiB", "smaller config.model")
case("a batch larger than memory", train_digits(train__batch_size=10**9, data__epochs=10**12), "GiB",
     "smaller config.train.batch_size")  # fmt: skip
case("beyond float32", train_digits(model__init_std=1e308), "config.model.init_std=1e+308", "at most 3e+38")
case(
    "init_from with a star", train_digits(train__init_from="2**70"), "config.train.init_from='2**70'", "no finished run"
)
case("runs under a foreign scheme", train_digits() + ["--runs=http://x/y"], "'http://x/y'", "gs://")
case("data under a foreign scheme", train_gpt(run__data_dir="file:///x"), "file:///x", "gs://")
case("a fit under a foreign scheme", ["plan", "--law=file:///x", "--flops=1e20"], "'file:///x'", "gs://")
case("folders without end", ["prepare", "a.txt", "--out=" + "x/" * 1500], "at most 500 folders")
case("NUL in an argument", ["fit", "x\0y"], "NUL")
case("a flag whose value is taken away", ["prepare", "a.txt", "--workers=--"], "--workers needs a value")

# ---- config.json
case("no config.json", ["train", "runs/x/config.json"], "can't read config", "runs/x/config.json", "No such file")
case("truncated config.json", ["train", "config.json"], "'config.json'", "not JSON", "line",
     before=lambda: write("config.json", config_json()[:-30]))  # fmt: skip
case("list for a config", ["train", "config.json"], "'config.json'", "not a JSON object",
     before=lambda: write("config.json", "[1, 2]"))  # fmt: skip
case("binary config.json", ["train", "config.json"], "'config.json'", "utf-8",
     before=lambda: write("config.json", b"\xff\xfe\x00"))  # fmt: skip
case("number for a section", ["train", "config.json"], "data", "section",
     before=lambda: write("config.json", config_json(data=3)))  # fmt: skip
case("unknown key in config.json", ["train", "config.json"], "unknown key 'train.stepz'", "did you mean 'train.steps'",
     before=lambda: write("config.json", config_json(train__stepz=3)))  # fmt: skip
case("a dot in a key of config.json", ["train", "config.json"], "'model.width'", "has a dot",
     before=lambda: write("config.json", '{"model.width": 8}'))  # fmt: skip
case("brackets without end in config.json", ["train", "config.json"], "is not JSON",
     before=lambda: write("config.json", "[" * 100_000))  # fmt: skip
case("a path of 3,000 characters", ["train", "long/" * 600 + "config.json"], "at most 500 folders")
case("a name of 300 characters", ["train", "n" * 300 + ".json"], "File name too long")
case("section left out of config.json", ["train", "config.json"], "no section 'data'",
     before=lambda: write("config.json", config_json(data=None)))  # fmt: skip
case("type in config.json", ["train", "config.json"], "config.model.width='16'", "expected int",
     before=lambda: write("config.json", config_json(model__width="16")))  # fmt: skip
case("NaN in config.json", ["train", "config.json"], "config.optim.lr", "nan",
     before=lambda: write("config.json", config_json(optim__lr=float("nan"))))  # fmt: skip
case("changed data", ["train", "config.json"], "has changed", "data/speech", "0123456789ab",
     before=lambda: write("config.json", config_json(data__fingerprint="0123456789abcdef")))  # fmt: skip

case("a section for a value", ["train", "config.json"], "config.optim.lr is a section", "expected float",
     before=lambda: write("config.json", config_json(optim__lr={})))  # fmt: skip
case("SystemExit in a sweep file", ["sweep", "plan", "mine.py"], "mine.py", "line 1", "SystemExit",
     before=lambda: write("mine.py", "raise SystemExit(3)\n"))  # fmt: skip
case("a config within itself", ["train", "--config=mine.py"], "mine.py", "contains itself",
     before=lambda: write("mine.py", "from bigmodel import budget\ndef get_config():\n"
     "    config = budget.base('mlp', 'tables')\n    config.unlock()\n    config.model = config\n"
     "    return config\n"))  # fmt: skip
case("bytes of a manifest", train_gpt(), "data/speech/manifest.json", "not a manifest",
     before=lambda: damage(Path("data/speech/manifest.json"), lambda b: b"\xff" + b))  # fmt: skip

# ---- data
case("data not prepared", train_gpt(data__name="speach"), "no prepared data", "data/speach", "did you mean 'speech'",
     "bigmodel prepare")  # fmt: skip
case("data folder missing", train_gpt(run__data_dir="dat"), "no prepared data", "dat/speech")
case("manifest truncated", train_gpt(), "data/speech/manifest.json", "not a manifest",
     before=lambda: damage(Path("data/speech/manifest.json"), lambda b: b[: len(b) // 2]))  # fmt: skip
case("manifest of another format", train_gpt(), "data/speech/manifest.json", "format",
     before=lambda: manifest(lambda m: m.update(format=99)))  # fmt: skip
case("manifest without a split", train_gpt(), "data/speech/manifest.json", "not a manifest", "validation",
     before=lambda: manifest(lambda m: m["splits"].pop("validation")))  # fmt: skip
case("manifest of another type", train_gpt(), "data/speech/manifest.json", "not a manifest",
     before=lambda: manifest(lambda m: m["splits"]["train"].update(tokens="many")))  # fmt: skip
case("shard missing", train_gpt(), "train-00000.bin", "is missing", "prepare",
     before=lambda: Path("data/speech/train-00000.bin").unlink())  # fmt: skip
case("shard truncated", train_gpt(), "train-00000.bin", "bytes, not", "prepare",
     before=lambda: damage(Path("data/speech/train-00000.bin"), lambda b: b[:1000]))  # fmt: skip
case("validation shard truncated", train_gpt(), "validation-00000.bin", "bytes, not", "prepare",
     before=lambda: damage(Path("data/speech/validation-00000.bin"), lambda b: b[:1000]))  # fmt: skip
case("window longer than the data", train_gpt(data__seq_len=10**6), "config.data.seq_len=1000000", "has only", "tokens")
case("more tokens than there are", train_gpt(train__steps=10**6, data__epochs=2), "unique", "epochs",
     "--config.data.epochs=")  # fmt: skip
case("more digits than there are", train_digits(data__examples=5000), "config.data.examples=5000", "1437")
case("unknown corpus", ["prepare", "sotuu", "--out=out"], "'sotuu'", "did you mean 'sotu'")
case("empty folder", ["prepare", "texts", "--out=out"], "'texts'", "no .txt", before=lambda: Path("texts").mkdir())
case("empty file", ["prepare", "a.txt", "--out=out"], "'a.txt'", "no text", before=lambda: write("a.txt", ""))
case("other kind of file", ["prepare", "a.docx", "--out=out"], "'a.docx'", ".jsonl",
     before=lambda: write("a.docx", "x"))  # fmt: skip
case("bad UTF-8", ["prepare", "texts", "--out=out"], "b.txt", "isn't UTF-8", "byte 3", "0xff",
     before=lambda: (write("texts/a.txt", "good"), write("texts/b.txt", b"bad\xff")))  # fmt: skip
case("jsonl without the key", ["prepare", "a.jsonl", "--out=out"], "'a.jsonl'", "no record has a key 'text'",
     "did you mean 'texts'", "--text-key",
     before=lambda: write("a.jsonl", '{"texts": "a"}\n{"texts": "b"}\n'))  # fmt: skip
case("jsonl cut", ["prepare", "a.jsonl", "--out=out"], "'a.jsonl' line 2", "isn't JSON",
     before=lambda: write("a.jsonl", '{"text": "a"}\n{"text": "b'))  # fmt: skip
case("corrupt gz", ["prepare", "a.txt.gz", "--out=out"], "'a.txt.gz'", "damaged",
     before=lambda: write("a.txt.gz", gzip.compress(os.urandom(9999))[:-500]))  # fmt: skip
case("out is a file", ["prepare", "a.jsonl", "--out=out"], "'out'", "Not a directory",
     before=lambda: (write("out", "mine"), write("a.jsonl", '{"text": "a"}\n{"text": "b"}\n')))  # fmt: skip
case("unknown tokenizer", ["prepare", "data", "--out=out", "--tokenizer=gpt-2"], "'gpt-2'", "did you mean 'gpt2'")
case("prepared otherwise", ["prepare", str(ROOT / "tests/data"), "--out=data/speech"], "data/speech",
     "validation_fraction", "--out")  # fmt: skip

# ---- checkpoints
case("checkpoint cut", train_digits(run__checkpoint_every=4, run__keep=3), "/checkpoints/8", "can't be restored",
     before=lambda runs: copy_of(runs, lambda b: b[: len(b) // 2]))  # fmt: skip
case("checkpoint overwritten", train_digits(run__checkpoint_every=4, run__keep=3), "/checkpoints/8",
     "can't be restored", before=lambda runs: copy_of(runs, lambda b: b"\0" * len(b)))  # fmt: skip
case("a bit of a checkpoint", train_digits(run__checkpoint_every=4, run__keep=3), "/checkpoints/8", "can't be restored",
     before=lambda runs: copy_of(runs, flip))  # fmt: skip
case("init_from nothing", train_digits(train__init_from="elsewhere"), "elsewhere", "no finished run there")
case("init_from a run without its checkpoints", train_digits(train__init_from="earlier"), "earlier/checkpoints",
     "no checkpoints", before=lambda: write("earlier/result.json", json.dumps(RESULT)))  # fmt: skip
case("init_from without checkpoints", train_digits(train__init_from="earlier"), "earlier", "no finished run there",
     before=lambda: Path("earlier/checkpoints").mkdir(parents=True))  # fmt: skip
case("init_from another shape", train_digits(train__init_from="earlier/first", model__width=16), "earlier/first",
     "can't be restored", "(64, 8) there", "(64, 16) here",
     before=lambda runs: (
         shutil.copytree(next(runs.iterdir()), "earlier/first"),
         write("earlier/first/result.json", json.dumps(RESULT)),
     ))  # fmt: skip

# ---- sweeps
case("no sweep file", ["sweep", "plan", f"{ROOT}/sweeps/dmeo.py"], "no sweep file", "did you mean", "demo.py")
case("no CONFIG", ["sweep", "plan", "study.py"], "study.py", "no CONFIG",
     before=lambda: write("study.py", "def get_sweep():\n    return [{}]\n"))  # fmt: skip
case("no get_sweep", ["sweep", "plan", "study.py"], "study.py", "no get_sweep",
     before=lambda: write("study.py", f"CONFIG = {str(DIGITS_FILE)!r}\n"))  # fmt: skip
case("get_sweep raises", ["sweep", "plan", "study.py"], "study.py", "line 5", "KeyError", "'a'",
     before=lambda: sweep_file("{}['a']"))  # fmt: skip
case("empty sweep", ["sweep", "plan", "study.py"], "study.py", "non-empty list", before=lambda: sweep_file("[]"))
case("row with an unknown key", ["sweep", "plan", "study.py"], "study.py", "row 2", "'model.widht'",
     "did you mean 'model.width'",
     before=lambda: sweep_file("[{'model.width': 8}, {'model.widht': 8}]"))  # fmt: skip
case("row of numbers", ["sweep", "plan", "study.py"], "row 1", "names", before=lambda: sweep_file("[{1: 2}]"))
case("CONFIG missing", ["sweep", "plan", "study.py"], "no config file", "nowhere.py",
     before=lambda: sweep_file("[{}]", "nowhere.py"))  # fmt: skip
case("CONFIG of another type", ["sweep", "plan", "study.py"], "study.py", "CONFIG",
     before=lambda: write("study.py", "CONFIG = 3\ndef get_sweep():\n    return [{}]\n"))  # fmt: skip
case("isoflop too small", ["sweep", "plan", "study.py"], "study.py", "row 1", "less than one step",
     before=lambda: sweep_file("sweep.isoflop([{}], [1.0])", head="from bigmodel import sweep"))  # fmt: skip
case("isoflop too large", ["sweep", "run", "study.py"], "study.py", "row 2", "epochs",
     before=lambda: sweep_file("sweep.isoflop([{}], [1e9, 1e24])", head="from bigmodel import sweep"))  # fmt: skip
case("rows of another type", ["sweep", "plan", "study.py"], "list of dicts", before=lambda: sweep_file("[3]"))
case("zip of two lengths", ["sweep", "plan", "study.py"], "zip_", "lengths",
     before=lambda: sweep_file("sweep.zip_({'model.width': [1, 2], 'model.depth': [1]})",
                               head="from bigmodel import sweep"))  # fmt: skip
case("a wrong sweep leaves the plan", ["sweep", "run", "study.py"], "row 1", "optim.lr",
     before=lambda: (sweep_file("[{'optim.lr': -1}]"), write("runs/study/plan.jsonl", "{}\n")))  # fmt: skip
case("override of a sweep", ["sweep", "plan", "study.py", "--config.optim.rl=1"], "row 1", "did you mean 'optim.lr'",
     before=lambda: sweep_file("[{}]"))  # fmt: skip
case("status before a plan", ["sweep", "status", "study.py"], "no plan", "runs/study", "sweep plan",
     before=lambda: sweep_file("[{}]"))  # fmt: skip

# ---- fits and reports
case("no points", ["fit", "point.csv"], "'point.csv'", "did you mean 'points.csv'", before=lambda: points(GOOD_POINTS))
case("no such column", ["fit", "points.csv", "--N=parms"], "'points.csv'", "'parms'", "did you mean 'params'",
     before=lambda: points(GOOD_POINTS))  # fmt: skip
case("no loss", ["fit", "points.csv"], "no column 'loss'", "losses",
     before=lambda: points(GOOD_POINTS, head="params,tokens,losses"))  # fmt: skip
case("NaN", ["fit", "points.csv"], "'points.csv'", "row 7", "'loss' is nan",
     before=lambda: points([*GOOD_POINTS, "100,1000,nan"]))  # fmt: skip
case("two points", ["fit", "points.csv"], "2", "at least 6", before=lambda: points(GOOD_POINTS[:2]))
case("empty table", ["fit", "points.csv"], "can't read 'points.csv'", before=lambda: write("points.csv", ""))
case("table of another kind", ["fit", "points.xlsx"], "'points.xlsx'", ".csv", before=lambda: write("points.xlsx", ""))
case("unknown law", ["fit", "points.csv", "--law=chinchila"], "'chinchila'", "did you mean 'chinchilla'",
     before=lambda: points(GOOD_POINTS))  # fmt: skip
case("negative seed", ["fit", "points.csv", "--seed=-1"], "seed=-1", before=lambda: points(GOOD_POINTS))
case("resamples without end", ["fit", "points.csv", "--bootstrap=1000000000"], "bootstrap=1", "in [0, 100000]",
     before=lambda: points(GOOD_POINTS))  # fmt: skip
case("half a character in points", ["fit", "points.json"], "points.json", "row 1", "\\ud800",
     before=lambda: write("points.json", '[{"params": 1, "tokens": 2, "loss": 3, "name": "\\ud800"}]'))  # fmt: skip
case("fit of an empty folder", ["fit", "runs"], "no result.json", "'runs'", before=lambda: Path("runs").mkdir())
case("fit into a file", ["fit", "points.csv", "--bootstrap=0", "--out=points.csv/fit.json"], "points.csv/fit.json",
     "is not a folder", before=lambda: points(GOOD_POINTS))  # fmt: skip
case("report before a run", ["report", "study.py"], "no finished runs", "runs/study", "bigmodel sweep run study.py",
     before=lambda: sweep_file("[{}]"))  # fmt: skip
case("report of no file", ["report", "nosuch.py"], "no sweep file", "nosuch.py")

# ---- folders that can't be written: below a file, which stops root too
case("train below a file", train_digits() + ["--runs=file/runs"], "can't write", "file/runs", "Not a directory",
     before=lambda: write("file", "mine"))  # fmt: skip
case("sweep below a file", ["sweep", "plan", "study.py", "--runs=file/runs"], "can't write", "file/runs",
     "Not a directory", before=lambda: (write("file", "mine"), sweep_file("[{}]")))  # fmt: skip
case("report below a file", ["report", "runs", "--out=file/report"], "can't write", "file/report",
     before=lambda: (write("file", "mine"), finished_runs()))  # fmt: skip
case("prepare below a file", ["prepare", str(ROOT / "tests/data"), "--out=file/out"], "can't write", "file/out",
     before=lambda: write("file", "mine"))  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_one_line_and_nothing_written(name, here, interrupted, capfd):
    arguments, says, before = CASES[name]
    if before:
        before(interrupted) if before.__code__.co_argcount else before()
    was = tree_of(here)
    capfd.readouterr()
    code = main.main(list(map(str, arguments)))
    out, err = capfd.readouterr()
    one_line(err, *says)
    assert code == 2
    assert not out
    assert tree_of(here) == was


def test_an_array_that_memory_does_not_hold_is_told():
    with pytest.raises(UsageError, match="this run: out of memory"), program.within_memory("this run"):
        jax.block_until_ready(jax.jit(lambda: jax.numpy.ones((2**30, 2**15)))())


def test_a_plan_of_a_config_that_lacks_an_option(here, capfd):
    sizes = [(10**n, 10**d) for n in (3, 4, 5, 6) for d in (5, 6, 7)]
    points([f"{n},{d},{2 + 10 * n**-0.3 + 20 * d**-0.3:.6f}" for n, d in sizes])
    assert main.main(["fit", "points.csv", "--bootstrap=20", "--out=fit.json"]) == 0
    head = f"from bigmodel import config as c\ndef get_config():\n    config = c.load({str(GPT_FILE)!r})\n"
    write("mine.py", f"{head}    config.data.name = 'speech'\n    del config.data.fingerprint\n    return config\n")
    capfd.readouterr()
    assert main.main(["plan", "--law=fit.json", "--flops=1e10", "--next-runs=0", "--config=mine.py"]) == 0
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("name", ["SLURM_NTASKS", "SKYPILOT_NUM_NODES"])
def test_a_variable_of_an_engine_that_is_no_number(name, here, monkeypatch, capfd):
    monkeypatch.setenv(name, "2(x2)")
    assert main.main(train_digits()) == 2
    one_line(capfd.readouterr().err, name, "'2(x2)'", "whole number")


def test_there_are_enough_cases():
    assert len(CASES) >= 40


# ------------------------------------------------------------------------------ as a user runs them


@pytest.mark.parametrize(
    "name", ["unknown verb", "exception in get_config", "shard truncated", "a bit of a checkpoint", "get_sweep raises"]
)
def test_processes_of_their_own(name, here, interrupted):
    arguments, says, before = CASES[name]
    before(interrupted) if before and before.__code__.co_argcount else before and before()
    was = tree_of(here)
    done = bigmodel(*arguments, cwd=here)
    one_line(done.stderr, *says)
    assert done.returncode == 2
    assert not done.stdout
    assert tree_of(here) == was


def test_batch_that_the_mesh_does_not_divide(here):
    was = tree_of(here)
    done = bigmodel(*train_digits(train__batch_size=10), "--host-devices=4", cwd=here)
    one_line(done.stderr, "config.train.batch_size=10", "multiple", "data x fsdp = 4")
    assert done.returncode == 2
    assert tree_of(here) == was


# ----------------------------------------------------------------------------------- full disks


@contextlib.contextmanager
def disk(folder, options):
    """A disk of its own at `folder`; `resize(options)` changes it."""
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"mounting a tmpfs isn't permitted here: {made.stderr.strip()}")
    try:
        yield lambda new: subprocess.run(["mount", "-o", f"remount,{new}", folder], check=True)
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


LONG = train_digits(train__steps=40, run__checkpoint_every=4)


def metrics(runs):
    (path,) = Path(runs).glob("*/metrics.jsonl")
    return path.read_bytes()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    runs = tmp_path_factory.mktemp("undisturbed") / "runs"
    assert main.main([*LONG, f"--runs={runs}"]) == 0
    return runs


def test_read_only_disk(here, capfd):
    with disk(here / "disk", "size=1m,ro"):
        for command in (train_digits(), ["sweep", "plan", str(ROOT / "sweeps/digits.py")]):
            capfd.readouterr()
            assert main.main([*command, "--runs=disk/runs"]) == 2
            one_line(capfd.readouterr().err, "can't write", "disk/runs", "Read-only")


@pytest.mark.parametrize("kilobytes", [4, 8, 24, 64, 148])  # from the first rows to the second checkpoint
def test_full_disk_then_the_same_command(kilobytes, here, undisturbed, capfd):
    command = [*LONG, "--runs=disk/runs"]
    with disk(here / "disk", f"size={kilobytes}k") as resize:
        capfd.readouterr()
        assert main.main(command) == 75
        one_line(capfd.readouterr().err, "disk full", "disk/runs")
        saved = {p.name for p in here.glob("disk/runs/*/checkpoints/*") if p.name.isdigit()}
        assert saved == {"4"} if kilobytes == 148 else not saved
        assert main.main(command) == 75  # it stays so until there is space
        assert {p.name for p in here.glob("disk/runs/*/checkpoints/*") if p.name.isdigit()} == saved
        resize("size=64m")
        assert main.main(command) == 0
        assert metrics("disk/runs") == metrics(undisturbed)


def test_full_disk_amid_a_save_ends_in_one_line(here):
    """A save of several arrays: the writes that end after the one that failed say nothing."""
    command = train_digits(model__width=512, train__steps=40, run__checkpoint_every=10)
    with disk(here / "disk", "size=6m"):
        done = bigmodel(*command, "--runs=disk/runs", cwd=here)
        assert done.returncode == 75
        one_line(done.stderr, "disk full: can't write", "disk/runs")


def test_writes_that_end_after_the_one_that_failed_say_nothing(tmp_path, capfd, monkeypatch):
    """By chance few or many do, as above: here one is made to. Other errors that nobody catches are shown."""
    from bigmodel.run.checkpoint import Checkpoints

    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)  # what tensorstore calls, from a thread of its own
    Checkpoints(str(tmp_path / "checkpoints")).close()
    loop = asyncio.new_event_loop()
    loop.close()
    for report, said in ((lambda: loop.call_soon_threadsafe(print), ""), (lambda: 1 / 0, "ZeroDivisionError")):
        capfd.readouterr()
        try:
            report()
        except Exception:
            sys.excepthook(*sys.exc_info())
        err = capfd.readouterr().err
        assert said in err and bool(said) == bool(err), err


@pytest.mark.slow
@pytest.mark.parametrize("wandb", ["off", "offline"])
def test_full_disk_in_a_process_with_a_compilation_cache(wandb, here, undisturbed):
    """JAX's cache, and W&B's child, fill the same disk; neither may add a word or end the run."""
    command = [*LONG, "--runs=disk/runs", f"--config.run.wandb={wandb}"]
    with disk(here / "disk", "size=64k") as resize:
        env = {"JAX_COMPILATION_CACHE_DIR": str(here / "disk/xla")}
        done = bigmodel(*command, cwd=here, env=env)
        assert done.returncode == 75
        one_line(done.stderr, "disk full", "disk/runs")
        resize("size=256m")
        done = bigmodel(*command, cwd=here, env=env)
        assert done.returncode == 0, done.stderr
        assert metrics("disk/runs") == metrics(undisturbed)


def test_full_disk_at_the_very_end(here, undisturbed, capfd, monkeypatch):
    """All is trained and saved, only result.json has no space: nothing is trained or written twice."""

    def full(path, value, claim=None, write=record.write_record):
        if Path(path).name == "result.json":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(path, value, claim)

    with monkeypatch.context() as patch:
        patch.setattr(record, "write_record", full)
        assert main.main([*LONG, "--runs=runs"]) == 75
        one_line(capfd.readouterr().err, "disk full", "runs")
    assert main.main([*LONG, "--runs=runs"]) == 0
    assert metrics("runs") == metrics(undisturbed)
    ours, theirs = (json.loads(next(Path(r).glob("*/result.json")).read_text()) for r in ("runs", undisturbed))
    assert {k for k in ours if ours[k] != theirs[k]} <= {"wall_seconds", "date", "crc32"}


def test_full_disk_of_a_sweep_fails_no_row(here, capfd):
    sweep_file("[{'train.steps': n, 'optim.lr': 1e-3} for n in (5, 6)]")
    command = ["sweep", "run", "study.py", "--runs=disk/runs", "--config.run.wandb=off"]
    with disk(here / "disk", "size=32k") as resize:
        assert main.main(command) == 75
        one_line(capfd.readouterr().err, "disk full", "disk/runs")
        assert not list(here.glob("disk/runs/study/*/error.json"))
        resize("size=64m")
        assert main.main(command) == 0
        assert len(list(here.glob("disk/runs/study/*/result.json"))) == 2


@pytest.mark.slow
def test_full_disk_of_other_verbs(here, capfd):
    points(GOOD_POINTS)
    finished_runs()
    with disk(here / "disk", "size=4k") as resize:
        write("disk/fill", b"x" * 4096)
        prepare = ["prepare", str(ROOT / "tests/data"), "--out=disk/out", "--workers=1"]
        commands = [
            prepare,
            ["fit", "points.csv", "--bootstrap=0", "--out=disk/fit.json"],
            ["sweep", "plan", str(ROOT / "sweeps/digits.py"), "--runs=disk/runs"],
            ["report", "runs", "--out=disk/report"],
        ]
        for command in commands:
            capfd.readouterr()
            assert main.main(command) == 75, command
            one_line(capfd.readouterr().err, "disk full", "disk/")
        assert Path("disk/fill").read_bytes() == b"x" * 4096
        resize("size=64m")
        for command in commands:
            assert main.main(command) == 0, command
