"""One flipped bit in every kind of file that a run, a sweep, prepared data, a fit and a saved step leave behind.

Each command that reads the file either names it in one line (and ends with 2, or goes on without it), or does what it
does with the undamaged file. `pytest -m slow tests/test_flipped_bits.py` prints what happened
as a table.
"""

import collections
import contextlib
import hashlib
import io
import json
import random
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import ROOT, TINY
from test_executables import save_step
from test_images import small_images
from test_tasks import help_archives

from bigmodel import errors
from bigmodel.cli import main
from bigmodel.files import sealed
from bigmodel.prepare import tasks
from bigmodel.run import record

DIGITS = f"--config={ROOT / 'experiments/digits.py'}"
PLAIN = {"model.width": 8, "train.tokens": 0, "train.steps": 10, "run.wandb": "off", "run.checkpoint_every": 2,
         "run.keep": 3}  # fmt: skip
# Its result is computed from its rows: branches, checks, gradient noise.
NEEDING = {**PLAIN, "optim.schedule": "wsd", "optim.decay": 0.2, "optim.branches": (0.5,), "train.patience": 9,
           "train.patience_steps": 2, "train.noise_scale": True, "train.microbatch": 32}  # fmt: skip
STUDY = f"""
CONFIG = {str(ROOT / "experiments/digits.py")!r}
def get_sweep():
    base = {{"run.wandb": "off", "model.depth": 1}}
    return [{{**base, "model.width": w, "train.steps": n}} for w in (2, 4, 8) for n in (3, 6, 12)]
"""


def flags(pairs):
    return [f"--config.{key}={value}" for key, value in dict(pairs).items()]


def call(*argv):
    """(exit code, stdout, stderr) of the command, in this process."""
    errors.noted.clear()  # notes are told once a process
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main.main([str(a) for a in argv])
    return code, out.getvalue(), err.getvalue()


def done(*argv):
    code, out, err = call(*argv)
    assert code == 0, (argv, err)
    return out


# ------------------------------------------------------------------------------- what is damaged


def interrupt(folder):
    """As a kill in its last steps leaves a run."""
    (folder / "result.json").unlink()
    shutil.rmtree(folder / "checkpoints/10")


def make_run(pairs):
    done("train", DIGITS, *flags(pairs))
    (folder,) = Path("runs").iterdir()
    return folder


def make_interrupted():
    interrupt(make_run(PLAIN))


def make_needing():
    interrupt(make_run(NEEDING))


def make_finished():
    done("evaluate", make_run(PLAIN), "--split=validation")


def make_study():
    """Seven finished rows, one interrupted, one failed."""
    Path("study.py").write_text(STUDY)
    done("sweep", "run", "study.py")
    runs = Path("runs/study")
    first, second = (json.loads(line)["run_id"] for line in (runs / "plan.jsonl").read_text().splitlines()[:2])
    (runs / first / "result.json").unlink()
    shutil.rmtree(runs / second)
    record.fail(runs / second, "RuntimeError: planted")
    (runs / "workers").mkdir()
    (runs / "workers/0.log").write_text("[1/9] trained\n")


def make_fit(*more):
    rows = [
        f"{n},{d},{2 + 10 * n**-0.3 + 20 * d**-0.3:.6f}" for n in (10**4, 10**5, 10**6) for d in (10**6, 10**7, 10**8)
    ]
    Path("points.csv").write_text("\n".join(["params,tokens,loss", *rows]) + "\n")
    done("fit", "points.csv", "--count=total", "--bootstrap=20", *more)


def make_report():
    make_fit("--report=report")


PREPARE = ["prepare", "texts", "--out=data/speech", "--tokenizer=bpe", "--vocab-size=300", "--workers=1",
           "--validation-fraction=0.2"]  # fmt: skip


def make_text():
    """Some speeches as tokens of a BPE."""
    shutil.copytree(ROOT / "tests/data", "texts")
    done(*PREPARE)


def make_half_text():
    """As a kill before the manifest leaves them."""
    make_text()
    Path("data/speech/manifest.json").unlink()


def make_task():
    """Pairs, and a finished run on them."""
    with pytest.MonkeyPatch.context() as patch:
        archives = iter(help_archives(Path(".")))
        patch.setattr(tasks, "fetch", lambda *_: next(archives))
        tasks.prepare_task("help-en-de", "data/pairs", "bpe", 300, 0.2)
    done("train", *ON_TASK)


def make_images():
    small_images(Path("data"))
    done("train", *ON_IMAGES)


def make_step():
    save_step(ROOT / "experiments/digits.py", PLAIN.items(), Path("step.executable"))


ON_TEXT = [f"--config={ROOT / 'experiments/gpt.py'}", *flags(TINY), "--config.train.steps=3"]
ON_TASK = [f"--config={ROOT / 'experiments/translate.py'}", *flags({"model.width": 16, "model.depth": 1,
           "model.num_heads": 2, "run.wandb": "off", "optim.name": "adamw", "data.name": "pairs", "data.seq_len": 18,
           "data.examples": 12, "data.epochs": 1000, "train.batch_size": 12, "train.steps": 3})]  # fmt: skip
ON_IMAGES = [f"--config={ROOT / 'experiments/fashion.py'}", *flags({"model.width": 8, "model.depth": 1,
             "train.tokens": 0, "train.steps": 3, "run.wandb": "off", "data.epochs": 1000})]  # fmt: skip
TRAIN = ["train", DIGITS, *flags(PLAIN), "--runs=runs"]
TRAIN_NEEDING = ["train", DIGITS, *flags(NEEDING), "--runs=runs"]


@dataclass
class Kind:
    """What makes a folder, which of its files are flipped, and the commands that read them there."""

    make: object
    files: list  # globs
    commands: list  # argv; {run} is the folder of the only run, {row0} the id of a plan's first row
    most: int = 99  # files a glob


PLAN = ["--flops=1e15", "--next-runs=0"]
RECORDS = ["runs/*/*.json", "runs/*/*.jsonl"]
EVALUATE = ["evaluate", "{run}", "--split=validation"]
STEP = "runs/*/checkpoints/8"
KINDS = {
    "interrupted run": Kind(make_interrupted, RECORDS, [TRAIN, ["train", "{run}/config.json"]]),
    "interrupted run with branches, checks, noise": Kind(make_needing, RECORDS, [TRAIN_NEEDING]),
    "newest checkpoint": Kind(make_interrupted, [f"{STEP}/**/*"], [TRAIN]),
    "older checkpoint": Kind(make_interrupted, ["runs/*/checkpoints/6/**/*"], [TRAIN]),
    "finished run": Kind(
        make_finished,
        RECORDS,
        [TRAIN, EVALUATE,
         ["train", DIGITS, *flags({**PLAIN, "train.steps": 2}), "--config.train.init_from={run}", "--runs=other"]],
    ),
    "finished run's checkpoint": Kind(make_finished, ["runs/*/checkpoints/10/**/*"], [EVALUATE]),
    "sweep's plan": Kind(
        make_study,
        ["runs/study/plan.jsonl"],
        [["sweep", "status", "study.py"], ["sweep", "plan", "study.py"], ["fit", "runs/study", "--bootstrap=0"],
         ["worker", "runs/study", "--run={row0}"], ["launch", "runs/study", "--engine=local", "--print"],
         ["sweep", "run", "study.py"]],
    ),
    "sweep's runs": Kind(
        make_study,
        [f"runs/study/*/{name}" for name in ("result.json", "error.json", "config.json", "metrics.jsonl")],
        [["sweep", "status", "study.py"], ["sweep", "plan", "study.py"], ["fit", "runs/study", "--bootstrap=0"],
         ["launch", "runs/study", "--engine=local", "--print"], ["sweep", "run", "study.py"]],
        most=2,
    ),
    "sweep's logs": Kind(make_study, ["runs/study/workers/*"], [["sweep", "status", "study.py"]]),
    "fit": Kind(lambda: make_fit("--out=fit.json"), ["fit.json"], [["plan", "--law=fit.json", *PLAN]]),
    "report": Kind(make_report, ["report/fit.json"], [["plan", "--law=report/fit.json", *PLAN]]),
    "text": Kind(
        make_text,
        ["data/speech/*"],
        [["train", *ON_TEXT], PREPARE, [*PREPARE, "--verify"]],
    ),
    "text without its manifest": Kind(make_half_text, ["data/speech/*"], [PREPARE]),
    "pairs": Kind(
        make_task,
        ["data/pairs/*"],
        [["train", *ON_TASK, "--runs=other"], ["evaluate", "{run}", "--limit=3", "--beams=1", "--show=1"]],
    ),
    "images": Kind(
        make_images, ["data/fashion-mnist/*"], [["train", *ON_IMAGES, "--runs=other"], ["evaluate", "{run}"]]
    ),
    "saved step": Kind(make_step, ["step.executable"], [[*TRAIN, "--config.run.executable=step.executable"]]),
}  # fmt: skip


# ------------------------------------------------------------------------------------ the damage


def places(data, rng):
    """(byte, bit) at the start, in the middle, at the end, at random, and within a number of a text."""
    found = [(0, 0), (len(data) // 2, 4), (len(data) - 1, 1), (rng.randrange(len(data)), rng.randrange(8))]
    digits = [m.start() for m in re.finditer(rb"(?<=[\d.])\d(?=\d*[,\s}\]])", data)]
    if digits:
        found += [(rng.choice(digits), 0), (rng.choice(digits), 2)]
    return list(dict.fromkeys(found))


def flip(path, byte, bit):
    data = bytearray(path.read_bytes())
    data[byte] ^= 1 << bit
    path.write_bytes(data)


CLOCK = re.compile(r'"(wall_seconds|date|seconds|crc32|[a-z]*_per_second|mfu|pid|host)": [^,\n}]*|\d+\.\d+ s\b')


def content(path):
    """What a file says but for what the clock does; None: it says nothing else."""
    if path.name in ("speed.jsonl", "attempts.jsonl", "lock", "git.diff") or path.suffix in (".log", ".html"):
        return None
    data = path.read_bytes()
    return CLOCK.sub("", data.decode(errors="replace")) if path.suffix in (".json", ".jsonl") else data


def outcome(home):
    """What is there: of checkpoints their arrays, of other files their content."""
    found = {}
    for path in sorted(home.rglob("*")):
        name = str(path.relative_to(home))
        if path.is_file() and "checkpoints" not in name and "damaged-" not in name and content(path) is not None:
            found[name] = content(path)
    for folder in sorted(home.rglob("checkpoints")):
        newest = max((int(p.name) for p in folder.iterdir() if p.name.isdigit()), default=0)
        meta = folder / str(newest) / "meta/metadata"
        with contextlib.suppress(ValueError):
            noted = json.loads(meta.read_bytes())
            found[str(folder.relative_to(home))] = (newest, noted.get("arrays", noted["crc32"]))
    return found


class Place:
    """A folder of one kind, made anew under the same path for each flip, and what commands do with it undamaged."""

    def __init__(self, kind, root):
        self.kind, self.home, self.pristine = kind, root / "home", root / "pristine"
        self.home.mkdir(parents=True)
        with contextlib.chdir(self.home):
            kind.make()
        shutil.copytree(self.home, self.pristine)
        self.expected = {}

    def files(self):
        found = []
        for pattern in self.kind.files:
            there = sorted(p for p in self.pristine.glob(pattern) if p.is_file() and p.stat().st_size)
            found += there[: self.kind.most]
        return [p.relative_to(self.pristine) for p in found]

    def argv(self, command):
        run = next((str(p.parent.relative_to(self.home)) for p in self.home.glob("runs/*/config.json")), "")
        plan = self.pristine / "runs/study/plan.jsonl"
        row0 = json.loads(plan.read_text().split("\n")[0])["run_id"] if plan.exists() else ""
        return [str(a).replace("{run}", run).replace("{row0}", row0) for a in command]

    def run(self, command, damage=None):
        """(code, stdout, stderr, outcome) of the command in a fresh copy, after `damage`."""
        shutil.rmtree(self.home)
        shutil.copytree(self.pristine, self.home)
        argv = self.argv(command)
        if damage:
            flip(self.home / damage[0], *damage[1:])
        with contextlib.chdir(self.home):
            code, out, err = call(*argv)
        return code, CLOCK.sub("", out), CLOCK.sub("", err), outcome(self.home)

    def judged(self, command, file, byte, bit):
        """("refused" | "noted" | "harmless" | what is wrong, the line that told of it)"""
        key = tuple(map(str, command))
        if key not in self.expected:
            self.expected[key] = self.run(command)
        code0, out0, err0, there0 = self.expected[key]
        assert code0 in (0, 1), (command, err0)
        damaged = bytearray((self.pristine / file).read_bytes())
        damaged[byte] ^= 1 << bit
        try:
            code, out, err, there = self.run(command, (file, byte, bit))
        except BaseException as e:
            return f"TRACEBACK {type(e).__name__}: {e}", ""
        step = [
            f"checkpoints/{part}"
            for before, part in zip(file.parts, file.parts[1:], strict=False)
            if before == "checkpoints"
        ]
        names = [file.name, *step, *([file.parent.name] if file.parts[0] == "runs" and not step else [])]
        known = set((out0 + err0).splitlines())
        new = [line for line in (err + out).splitlines() if line not in known]
        said = [line for line in new if TELLS.search(line) and any(name in line for name in names)]
        line = said[0] if said else ""
        if "Traceback" in err:
            return f"TRACEBACK {err[-300:]}", ""
        # The file itself may stay as it is where nobody read it.
        where = self.home / file
        untouched = where.is_file() and where.read_bytes() == bytes(damaged)
        same = {k: v for k, v in there.items() if not (untouched and k == str(file))} == {
            k: v for k, v in there0.items() if not (untouched and k == str(file))
        }
        if code == code0 and out == out0 and same:
            return ("noted" if said else "harmless"), line
        if not said:
            return f"SILENT code {code}; {new[:3]}; {differing(there, there0)}", ""
        if code == 2:
            return "refused", line
        if code not in (0, code0):
            return f"CODE {code}: {line}", line
        if command[0] in ("train", "prepare"):
            # What is made is right; only a record that nothing is computed from may have holes, which is said.
            bad = [k for k in differing(there, there0) if not (k == str(file) and file.name == "metrics.jsonl")]
            if bad:
                return f"WRONG {bad}: {line}", line
        return "noted", line


TELLS = re.compile(r"damaged|checksum|isn't|is not|lacks|can't|changed|left out|another|not what", re.IGNORECASE)


def differing(a, b):
    return sorted(k for k in a.keys() | b.keys() if a.get(k) != b.get(k))


GOOD = ("refused", "noted", "harmless")


def flips(place, last=0):
    """(file, command, (byte, bit), verdict, line) of every file, its last places (0: all) and every command."""
    rng = random.Random(0)
    for file in place.files():
        for byte, bit in places((place.pristine / file).read_bytes(), rng)[-last:]:
            for command in place.kind.commands:
                yield file, command, (byte, bit), *place.judged(command, file, byte, bit)


@pytest.mark.parametrize("name", ["interrupted run", "interrupted run with branches, checks, noise", "fit", "text"])
def test_a_flipped_bit_is_told_or_harmless(name, tmp_path, monkeypatch):
    """One place a file: of a text within a number, which leaves it valid."""
    monkeypatch.setenv("BIGMODEL_CACHE", str(tmp_path / "cache"))
    found = list(flips(Place(KINDS[name], tmp_path), last=1))
    assert len(found) > 1 or name == "fit"
    assert not [row for row in found if row[3] not in GOOD]


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_every_flipped_bit_is_told_or_harmless(name, tmp_path, monkeypatch, capsys):
    """Prints a row of the table of docs/results.md a command: `pytest -m slow tests/test_flipped_bits.py`."""
    monkeypatch.setenv("BIGMODEL_CACHE", str(tmp_path / "cache"))
    tally, wrong, lines = collections.Counter(), [], {}
    for file, command, at, verdict, line in flips(Place(KINDS[name], tmp_path)):
        verb = " ".join(a for a in command[:2] if not a.startswith("-")) if command[0] == "sweep" else command[0]
        tally[verb, verdict if verdict in GOOD else "wrong"] += 1
        lines.setdefault(verb, line) if line else None
        if verdict not in GOOD:
            wrong.append((str(file), at, command[:2], verdict))
    with capsys.disabled():
        for verb in dict.fromkeys(verb for verb, _ in tally):
            counts = " | ".join(str(tally[verb, verdict]) for verdict in GOOD)
            print(f"| {name} | {verb} | {counts} | {lines.get(verb, '')[:110]} |")
    assert not wrong


# ---------------------------------------------------------- what is done about damage, each by its name


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """A folder with a run in runs/, killed after its checkpoint of step 8."""
    home = tmp_path_factory.mktemp("interrupted")
    with contextlib.chdir(home):
        make_interrupted()
    return home


@pytest.fixture(scope="module")
def needing(tmp_path_factory):
    home = tmp_path_factory.mktemp("needing")
    with contextlib.chdir(home):
        make_needing()
    return home


def copied(home, tmp_path, monkeypatch):
    """The run's folder in a copy, which is the working folder."""
    shutil.copytree(home, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    (folder,) = Path("runs").iterdir()
    return folder


@pytest.mark.parametrize("part", ["arrays", "a name"])
def test_damaged_newest_checkpoint_is_put_aside_and_an_older_one_goes_on(part, interrupted, tmp_path, monkeypatch):
    folder = copied(interrupted, tmp_path, monkeypatch)
    done(*TRAIN)
    whole = outcome(Path("runs"))
    shutil.rmtree("runs")
    shutil.copytree(interrupted / "runs", "runs")
    for file in folder.glob("checkpoints/8/state/**/d/*") if part == "arrays" else ():
        flip(file, file.stat().st_size // 3, 4)
    names = folder / "checkpoints/8/state/_METADATA"
    old, new = ("", "") if part == "arrays" else ("first", "girst")
    names.write_text(names.read_text().replace(old, new))
    code, _, err = call(*TRAIN)
    (line,) = [line for line in err.splitlines() if line.startswith("bigmodel: ")]
    assert code == 0 and "checkpoints/8 can't be restored" in line and "going on from the one of step 6" in line
    assert (folder / "checkpoints/damaged-8").is_dir()
    assert outcome(Path("runs")) == whole


def test_all_checkpoints_damaged_is_one_line_and_nothing_is_lost(interrupted, tmp_path, monkeypatch):
    folder = copied(interrupted, tmp_path, monkeypatch)
    for file in folder.glob("checkpoints/*/meta/metadata"):
        file.write_bytes(file.read_bytes()[:50])
    metrics = (folder / "metrics.jsonl").read_bytes()
    code, _, err = call(*TRAIN)
    assert code == 2 and "can't be restored" in err.splitlines()[-1] and "Traceback" not in err
    assert {p.name for p in folder.glob("checkpoints/*")} == {"6", "8"}
    assert (folder / "metrics.jsonl").read_bytes() == metrics


@pytest.mark.parametrize("damage", ["a line less", "a digit", "cut"])
def test_hole_in_the_rows_is_refused_where_the_result_needs_them_else_noted(
    damage, interrupted, needing, tmp_path, monkeypatch
):
    def spoil(path):
        lines = path.read_text().splitlines()
        if damage == "a line less":
            del lines[3]
        elif damage == "a digit":
            lines[3] = re.sub(r'("(?:eval_)?loss": \d\.)\d', r"\g<1>7", lines[3])
        path.write_text("\n".join(lines[: 4 if damage == "cut" else None]) + "\n")

    folder = copied(needing, tmp_path / "a", monkeypatch)
    spoil(folder / "metrics.jsonl")
    spoilt = (folder / "metrics.jsonl").read_bytes()
    code, _, err = call(*TRAIN_NEEDING)
    assert (folder / "metrics.jsonl").read_bytes() == spoilt and not list(folder.glob("checkpoints/damaged*"))
    (line,) = err.splitlines()
    assert code == 2 and "metrics.jsonl' is damaged" in line and "the run's result depends on them" in line
    assert not (folder / "result.json").exists()
    folder = copied(interrupted, tmp_path / "b", monkeypatch)
    spoil(folder / "metrics.jsonl")
    code, _, err = call(*TRAIN)
    assert code == 0 and "metrics.jsonl' is damaged" in err and "this record has holes" in err


def test_run_that_needs_its_rows_goes_on_from_the_newest_checkpoint_whose_rows_are_whole(
    needing, tmp_path, monkeypatch
):
    """Seed 778 of benchmarks/campaign.py."""
    folder = copied(needing, tmp_path, monkeypatch)
    done(*TRAIN_NEEDING)
    whole = outcome(Path("runs"))
    shutil.rmtree("runs")
    shutil.copytree(needing / "runs", "runs")
    content = (folder / "metrics.jsonl").read_bytes()
    flip(folder / "metrics.jsonl", content.index(b'{"step": 7') + 30, 1)
    code, _, err = call(*TRAIN_NEEDING)
    (line,) = [line for line in err.splitlines() if line.startswith("bigmodel: ")]
    assert code == 0 and "metrics.jsonl' is damaged" in line and "going on from the one of step 6" in line
    assert outcome(Path("runs")) == whole


def test_damaged_config_json_of_a_row_says_what_to_do(planned, tmp_path, monkeypatch):
    copied(planned, tmp_path, monkeypatch)
    row = json.loads(Path("runs/study/plan.jsonl").read_text().splitlines()[0])
    folder = Path("runs/study") / row["run_id"]
    (folder / "result.json").unlink()
    config = (folder / "config.json").read_bytes()
    flip(folder / "config.json", config.index(b'"width": ') + 9, 0)
    worker = ["worker", "runs/study", f"--run={row['run_id']}"]
    code, out, err = call(*worker)
    assert code == 1 and "config.json' is damaged" in out + err and "without that file the run goes on" in out + err
    (folder / "config.json").unlink()
    assert call(*worker)[0] == 0 and (folder / "config.json").read_bytes() == config


def test_damaged_branch_of_a_run_is_never_its_result(needing, tmp_path, monkeypatch):
    """Also one newer than the checkpoint that goes on."""
    folder = copied(needing, tmp_path, monkeypatch)
    (row,) = (folder / "branches.jsonl").read_text().splitlines()
    assert json.loads(row)["step"] == 4
    done(*TRAIN_NEEDING)
    whole = json.loads((folder / "result.json").read_bytes())["branches"]
    shutil.rmtree(folder)
    shutil.copytree(needing / folder, folder)
    changed = re.sub(r'("eval_loss": \d\.)\d', r"\g<1>7", row)
    assert changed != row
    (folder / "branches.jsonl").write_text(changed + "\n")
    assert call(*TRAIN_NEEDING)[0] == 2
    for later in (6, 8):  # as killed between the branch and the next checkpoint
        shutil.rmtree(folder / f"checkpoints/{later}")
    done(*TRAIN_NEEDING)
    again = json.loads((folder / "result.json").read_bytes())["branches"]
    assert [CLOCK.sub("", json.dumps(b)) for b in again] == [CLOCK.sub("", json.dumps(b)) for b in whole]


def test_config_json_of_a_run_goes_on_in_that_run_s_folder(interrupted, tmp_path, monkeypatch):
    folder = copied(interrupted, tmp_path, monkeypatch)
    Path("runs").rename("study")
    said = done("train", f"study/{folder.name}/config.json")
    assert said.startswith(f"study/{folder.name}: loss") and not Path("runs").exists()
    rows = [json.loads(line) for line in Path(f"study/{folder.name}/attempts.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 8
    done("train", f"study/{folder.name}/config.json", "--runs=other")
    assert Path(f"other/{folder.name}/result.json").exists()


def test_speed_after_a_resume_is_of_steps_that_took_time(interrupted, tmp_path, monkeypatch):
    """The first row after it counts no step that was only dispatched."""
    from bigmodel.run import session

    folder = copied(interrupted, tmp_path, monkeypatch)
    monkeypatch.setattr(session.Line, "due", lambda _: True)  # a row as often as there can be one
    done(*TRAIN)
    rows = [json.loads(line) for line in (folder / "speed.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["step"] > 8] == [10]  # step 9 is known to have ended with step 10
    assert all(0 < row["mfu"] < 1 for row in rows)


RECORDS_OF_A_RUN = ["result.json", "error.json", "metrics.jsonl", "speed.jsonl", "branches.jsonl", "attempts.jsonl"]
NO_RECORDS = [b"\xff\xfe\x00", b"[]", b"{}", b'{"step": "x"}', b"[" * 100_000, b"", b'{"step": 3}\n', b"null", b"7"]


@pytest.mark.parametrize("content_", NO_RECORDS, ids=range(len(NO_RECORDS)))
def test_records_that_are_none_are_no_traceback(content_, planned, tmp_path, monkeypatch):
    """Of status, launch, worker, fit and train; a run goes on, or one line says why it doesn't."""
    copied(planned, tmp_path, monkeypatch)
    rows = [json.loads(line) for line in Path("runs/study/plan.jsonl").read_text().splitlines()]
    folder = Path("runs/study") / rows[0]["run_id"]
    for name in RECORDS_OF_A_RUN:
        (folder / name).write_bytes(content_)
    for command in (
        ["sweep", "status", "study.py"],
        ["launch", "runs/study", "--engine=local", "--print"],
        ["fit", "runs/study", "--bootstrap=0"],
        ["worker", "runs/study", f"--run={rows[0]['run_id']}"],
        ["sweep", "run", "study.py"],
    ):
        code, _, err = call(*command)
        assert "Traceback" not in err and code in (0, 2), (command, err)
    assert all((Path("runs/study") / row["run_id"] / "result.json").stat().st_size > 99 for row in rows)


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """A sweep of two rows, done."""
    home = tmp_path_factory.mktemp("planned")
    with contextlib.chdir(home):
        Path("study.py").write_text(STUDY.replace("(2, 4, 8)", "(8,)").replace("(3, 6, 12)", "(3, 6)"))
        done("sweep", "run", "study.py")
    return home


def test_changed_digit_of_a_fit_is_refused_and_one_of_before_is_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_fit("--out=fit.json")
    plan = ["plan", "--law=fit.json", "--flops=1e15", "--next-runs=0"]
    said, whole = done(*plan), Path("fit.json").read_text()
    changed = re.sub(r'("alpha": 0\.\d\d)(\d)', lambda m: f"{m[1]}{int(m[2]) ^ 1}", whole, count=1)
    assert changed != whole
    Path("fit.json").write_text(changed)
    code, out, err = call(*plan)
    assert code == 2 and "'fit.json' is damaged, or was edited: its checksum differs" in err and not out
    for text in (changed, whole):
        Path("fit.json").write_text(json.dumps({k: v for k, v in json.loads(text).items() if k != "crc32"}))
        assert (done(*plan) == said) == (text == whole)


def test_damaged_published_weights_are_refused(tmp_path):
    """By the manifest that `bigmodel prepare` wrote beside them."""
    import numpy as np
    from safetensors.numpy import save_file

    from bigmodel.run import weights

    path = tmp_path / "model.safetensors"
    save_file({"x": np.arange(9.0)}, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    record.write_record(tmp_path / "manifest.json", {"files": {path.name: digest}})
    assert weights.read(str(path)).tensors["x"][3] == 3
    flip(path, -9, 3)
    with pytest.raises(errors.UsageError, match=r"model.safetensors' is damaged .* prepare it again"):
        weights.read(str(path))
    (tmp_path / "manifest.json").unlink()
    assert len(weights.read(str(path)).tensors) == 1


def test_damaged_receipt_of_a_shard_is_not_believed(tmp_path, monkeypatch):
    """What a killed prepare left: counts of it would go into the manifest."""
    monkeypatch.chdir(tmp_path)
    make_text()
    whole = Path("data/speech/manifest.json").read_bytes()
    Path("data/speech/manifest.json").unlink()
    receipt = Path("data/speech/train-00000.receipt.json")
    receipt.write_text(re.sub(r'("bytes": )\d', r"\g<1>9", receipt.read_text()))
    done(*PREPARE)
    assert Path("data/speech/manifest.json").read_bytes() == whole


def test_last_row_of_an_unfinished_run_is_whole_or_left_out(planned, tmp_path, monkeypatch):
    copied(planned, tmp_path, monkeypatch)
    row = json.loads(Path("runs/study/plan.jsonl").read_text().splitlines()[0])
    folder = Path("runs/study") / row["run_id"]
    (folder / "result.json").unlink()
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:-1], re.sub(r'(loss": \d\.)\d', r"\g<1>9", lines[-1])]) + "\n")
    _, out, err = call("sweep", "status", "study.py", "--json")
    assert "metrics.jsonl' is damaged in its last rows" in err
    assert json.loads(out)[0]["last"]["loss"] == json.loads(lines[-2])["loss"]
    for end in (b"\x0b", b"\x8a", b""):  # the row is whole, its line's end isn't
        path.write_bytes("\n".join(lines).encode() + end)
        _, out, err = call("sweep", "status", "study.py", "--json")
        assert not err and sealed(json.loads(out)[0]["last"]) == json.loads(lines[-1])
    path.write_text("\n".join([*lines[:-1], lines[-1][:20]]))  # torn, as a kill leaves it
    _, out, err = call("sweep", "status", "study.py", "--json")
    assert not err and json.loads(out)[0]["last"]["loss"] == json.loads(lines[-2])["loss"]


@pytest.mark.parametrize("damage", ["half", "emptied", "a row less", "a digit", "no UTF-8"])
def test_damaged_plan_is_refused_until_it_is_planned_again(damage, planned, tmp_path, monkeypatch):
    copied(planned, tmp_path, monkeypatch)
    plan = Path("runs/study/plan.jsonl")
    whole = plan.read_bytes()
    plan.write_bytes(
        {
            "half": whole[: len(whole) // 2],
            "emptied": b"",
            "a row less": whole[: whole.index(b"\n") + 1],
            "a digit": re.sub(rb'("steps": )\d', rb"\g<1>9", whole, count=1),
            "no UTF-8": b"\xff" + whole,
        }[damage]
    )
    for command in (
        ["sweep", "status", "study.py"],
        ["launch", "runs/study", "--engine=local", "--print"],
        ["worker", "runs/study", "--run=0123"],
        ["fit", "runs/study"],
    ):
        code, out, err = call(*command)
        (line,) = err.splitlines()
        assert code == 2 and "runs/study/plan.jsonl" in line and "bigmodel sweep plan" in line, (command, err)
        assert not out
    code, _, err = call("sweep", "plan", "study.py")
    assert code == 0 and "plan.jsonl" in err
    rows, old = ([json.loads(x) for x in text.splitlines()] for text in (plan.read_bytes(), whole))
    assert [(r["run_id"], r["config"]) for r in rows] == [(r["run_id"], r["config"]) for r in old]
