"""Prepared data that was damaged since, or isn't there: noticed when it is first read, and by `bigmodel prepare`."""

import json
import os
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, bigmodel
from test_images import image_dir  # noqa: F401 (a fixture)
from test_prepare import one_line, read_back, texts, write_jsonl
from test_prepare import quiet as prepare
from test_tasks import packed, ratings, task_dir  # noqa: F401 (a fixture)

from bigmodel import config, data, files
from bigmodel.cli import main
from bigmodel.errors import NoData, Unavailable, UsageError
from bigmodel.prepare import captions, corpora, images, tasks
from bigmodel.prepare import tokenizer as tokenizers
from bigmodel.prepare.folder import sha256


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BIGMODEL_CACHE", str(tmp_path / "cache"))


def quiet(source, out, **arguments):
    return prepare(source, out, workers=1, **arguments)


@pytest.fixture
def prepared(tmp_path):
    source = write_jsonl(tmp_path / "a.jsonl", texts(200))
    quiet(source, tmp_path / "data/out", shard_tokens=9000, tokenizer="bpe", vocab_size=300)
    return tmp_path / "data/out"


def flip(path, at=-100):
    content = bytearray(path.read_bytes())
    content[at] ^= 4
    path.write_bytes(content)


def opened(root, split="train", source="text", **overrides):
    source = data.source(source)
    cfg = source.get_config()
    cfg.update({"name": "out", **overrides})
    source.finalize(cfg, str(root))
    return source.open_split(cfg, str(root), split)


def edit(path, change):
    """Changes a manifest as a version without checksums would have written it."""
    row = json.loads(path.read_text())
    row.pop("crc32", None)
    change(row)
    path.write_text(json.dumps(row))


# ---------------------------------------------------------------------------------------- damage


def test_a_flipped_bit_of_a_shard_is_noticed_when_it_is_first_read(prepared):
    flip(prepared / "train-00001.bin")
    one_line(r"train-00001.bin' is damaged .* run `bigmodel prepare` again", lambda: opened(prepared.parent))
    assert len(opened(prepared.parent, "validation", seq_len=9))


def test_one_found_whole_is_read_once(prepared, tmp_path, monkeypatch):
    first = opened(prepared.parent)[0]["tokens"]
    with monkeypatch.context() as patch:
        patch.setattr(files.hashlib, "file_digest", lambda *_: pytest.fail("read again"))
        assert np.array_equal(opened(prepared.parent)[0]["tokens"], first)
    assert not [p for p in prepared.iterdir() if p.stat().st_mtime_ns > (prepared / "manifest.json").stat().st_mtime_ns]
    flip(prepared / "train-00001.bin")
    one_line("train-00001.bin' is damaged", lambda: opened(prepared.parent))


def test_a_cache_that_can_not_be_written_costs_time_alone(prepared, tmp_path):
    (tmp_path / "cache").write_text("no folder")
    assert len(opened(prepared.parent))
    flip(prepared / "train-00001.bin")
    one_line("train-00001.bin' is damaged", lambda: opened(prepared.parent))


@pytest.mark.parametrize("victim", ["train-00001.bin", "tokenizer.json", "validation-00000.bin"])
def test_prepare_makes_a_damaged_file_again(prepared, tmp_path, victim, capsys):
    whole = {p.name: p.read_bytes() for p in prepared.iterdir()}
    kept = (prepared / "train-00000.bin").stat().st_mtime_ns
    flip(prepared / victim)
    arguments = dict(shard_tokens=9000, tokenizer="bpe", vocab_size=300)
    quiet(tmp_path / "a.jsonl", prepared, **arguments)
    assert {p.name: p.read_bytes() for p in prepared.iterdir()} == whole
    assert (prepared / "train-00000.bin").stat().st_mtime_ns == kept  # that one alone
    (line,) = [x for x in capsys.readouterr().err.splitlines() if "made again" in x]
    assert victim in line and "missing or damaged" in line


def test_verify_reads_even_what_looks_unchanged(prepared, tmp_path, capsys):
    out = prepared
    arguments = ["--tokenizer=bpe", "--vocab-size=300", f"--out={tmp_path / 'fresh'}", "--workers=1"]
    assert main.main(["prepare", str(tmp_path / "a.jsonl"), *arguments]) == 0
    out, victim = tmp_path / "fresh", tmp_path / "fresh/train-00000.bin"
    assert main.main(["prepare", str(tmp_path / "a.jsonl"), *arguments]) == 0
    whole, when = victim.read_bytes(), victim.stat()
    flip(victim)
    os.utime(victim, ns=(when.st_atime_ns, when.st_mtime_ns))  # as a disk's bits rot
    assert main.main(["prepare", str(tmp_path / "a.jsonl"), *arguments]) == 0 and victim.read_bytes() != whole
    assert main.main(["prepare", str(tmp_path / "a.jsonl"), *arguments, "--verify"]) == 0
    assert victim.read_bytes() == whole
    assert "all files verified" in capsys.readouterr().out
    index = out / "train-00000.idx.npy"
    flip(index, -3)
    assert main.main(["prepare", str(tmp_path / "a.jsonl"), *arguments, "--verify"]) == 0
    assert len(read_back(out)) == 200


def test_damage_whose_source_is_gone_loses_nothing(prepared, tmp_path):
    flip(prepared / "train-00001.bin")
    (tmp_path / "a.jsonl").unlink()
    arguments = dict(shard_tokens=9000, tokenizer="bpe", vocab_size=300)
    one_line("no corpus, file or folder", lambda: quiet(tmp_path / "a.jsonl", prepared, **arguments))
    assert (prepared / "manifest.json").exists()


@pytest.mark.parametrize("old, new", [('"tokens": ', '"tokens": 1'), ('"bytes": ', '"bytes": 1'), ("300", "301")])
def test_a_changed_digit_of_a_manifest_is_noticed(prepared, tmp_path, old, new):
    path = prepared / "manifest.json"
    path.write_text(path.read_text().replace(old, new, 1))
    one_line("manifest.json' is not a manifest .*its checksum differs", lambda: opened(prepared.parent))
    arguments = dict(shard_tokens=9000, tokenizer="bpe", vocab_size=300)
    one_line("or it is damaged", lambda: quiet(tmp_path / "a.jsonl", prepared, **arguments))
    path.unlink()  # as that line says
    quiet(tmp_path / "a.jsonl", prepared, **arguments)
    assert len(opened(prepared.parent))


def test_older_manifests_without_checksums_are_read(prepared, tmp_path):
    edit(prepared / "manifest.json", lambda m: (m.pop("files"), m.pop("left_out")))
    assert len(opened(prepared.parent))
    arguments = dict(shard_tokens=9000, tokenizer="bpe", vocab_size=300)
    assert "crc32" not in quiet(tmp_path / "a.jsonl", prepared, **arguments)


def test_damaged_tasks_and_images_are_noticed(task_dir, image_dir, tmp_path):  # noqa: F811
    for source, folder, kept, names in (
        ("tasks", Path(task_dir) / "pairs", {"seq_len": 64}, ["train.npz", "train.jsonl"]),
        ("images", Path(image_dir) / "fashion-mnist", {}, ["train-images.npy", "train-labels.npy"]),
    ):
        for k, file in enumerate(names):
            copy = shutil.copytree(folder, tmp_path / f"{source}{k}/out")
            assert len(opened(copy.parent, source=source, **kept))
            flip(copy / file, -30)
            with pytest.raises(UsageError, match=rf"{file}' is damaged .* run `bigmodel prepare` again"):
                opened(copy.parent, source=source, **kept)


def test_prepare_makes_damaged_images_and_tasks_again(image_dir, task_dir, tmp_path, monkeypatch, capsys):  # noqa: F811
    folder = shutil.copytree(Path(image_dir) / "fashion-mnist", tmp_path / "images")
    flip(folder / "test-images.npy")
    monkeypatch.setattr(images, "fetch", lambda *_: (_ for _ in ()).throw(UsageError("fetched")))
    one_line("fetched", lambda: images.prepare_images("fashion-mnist", str(folder)))
    folder = shutil.copytree(Path(task_dir) / "pairs", tmp_path / "pairs")
    flip(folder / "test.jsonl", 30)
    monkeypatch.setattr(tasks, "fetch", lambda *_: (_ for _ in ()).throw(UsageError("fetched")))
    one_line("fetched", lambda: tasks.prepare_task("help-en-de", str(folder), "bytes", fraction=0.2))
    assert (folder / "manifest.json").exists()
    said = capsys.readouterr().err
    assert "test-images.npy in" in said and "test.jsonl in" in said


def test_a_task_notices_another_tokenizer_of_the_same_name(tmp_path, monkeypatch):
    rows = [f"{n}\t{1 if n % 2 else -1}\tIt is {'good' if n % 2 else 'bad'}, {n * n} times." for n in range(80)]
    archive = packed(tmp_path / "reviews.zip", {"v/hutto_ICWSM_2014.tar.gz": ratings(rows)})
    monkeypatch.setattr(tasks, "fetch", lambda *_: archive)
    path, out = tmp_path / "tokenizer", str(tmp_path / "out")  # a name without .json
    path.write_text(tokenizers.train(texts(), 300).content)
    first = tasks.prepare_task("movie-reviews", out, str(path), fraction=0.2)
    assert tasks.prepare_task("movie-reviews", out, str(path), fraction=0.2) == first
    path.write_text(tokenizers.train(texts(), 400).content)
    one_line("tokenizer' changed since", lambda: tasks.prepare_task("movie-reviews", out, str(path), fraction=0.2))


# ------------------------------------------------------------------------------ manifests of any kind

TEXT = [
    lambda m: m["splits"]["train"].update(shards=5),
    lambda m: m["splits"]["train"].update(shards=[]),
    lambda m: m["splits"]["train"].update(shards=[7]),
    lambda m: m["splits"]["train"]["shards"][0].update(file=3),
    lambda m: m["splits"]["train"]["shards"][0].update(tokens="9"),
    lambda m: m["splits"]["train"]["shards"][0].update(tokens=-9),
    lambda m: m["splits"]["train"].update(tokens=True),
    lambda m: m["splits"]["train"].update(tokens=m["splits"]["train"]["tokens"] + 1),
    lambda m: m.update(splits=[]),
    lambda m: m.update(dtype="float64"),
    lambda m: m.update(dtype="object"),
    lambda m: m.update(hash=3),
    lambda m: m.update(tokenizer="bytes"),
    lambda m: m["tokenizer"].pop("separator"),
    lambda m: m["tokenizer"].update(vocab_size=2.5),
]
IMAGES = [
    lambda m: m.update(labels=10),
    lambda m: m.update(labels=[]),
    lambda m: m.update(size=["a"]),
    lambda m: m.update(size=[9, 9]),
    lambda m: m.update(files=[]),
    lambda m: m["splits"]["train"].update(examples="9"),
    lambda m: m.update(splits=3),
]
TASKS = [
    lambda m: m.update(labels="x"),
    lambda m: m.update(splits=3),
    lambda m: m["splits"]["train"].update(sha256=3),
    lambda m: m.update(task="labels"),
    lambda m: m["tokenizer"].update(separator="</s>"),
]


@pytest.mark.parametrize(
    "source, change",
    [("text", c) for c in TEXT] + [("images", c) for c in IMAGES] + [("tasks", c) for c in TASKS],
)
def test_a_manifest_of_other_keys_or_types_is_one_line(source, change, request, tmp_path):
    if source == "text":
        root = request.getfixturevalue("prepared").parent
    else:
        made = {"images": ("image_dir", "fashion-mnist"), "tasks": ("task_dir", "pairs")}[source]
        root = shutil.copytree(Path(request.getfixturevalue(made[0])) / made[1], tmp_path / "copy/out").parent
    edit(root / "out/manifest.json", change)
    one_line(r"manifest.json'|damaged|running text", lambda: opened(root, source=source))


@pytest.mark.parametrize("content", [b"\xff\xfe{}", b"[" * 100_000, b"[]", b"5", b"", b'{"format": 1}', b"\0" * 99])
def test_a_manifest_that_is_none_is_one_line(prepared, content, tmp_path):
    (prepared / "manifest.json").write_bytes(content)
    one_line("manifest.json' is not a manifest", lambda: opened(prepared.parent))
    one_line("manifest", lambda: quiet(tmp_path / "a.jsonl", prepared))
    one_line("reading its manifest.json", lambda: tokenizers.load(prepared))


def zip_of(path, arrays, compressed=False):
    (np.savez_compressed if compressed else np.savez)(path, **arrays)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path, arrays: zip_of(path, {}),
        lambda path, arrays: np.save(path.open("wb"), np.int64(7)),
        lambda path, arrays: path.write_bytes(b"PK nothing"),
        lambda path, arrays: zip_of(path, {**arrays, "source_ends": np.int64(3)}),
        lambda path, arrays: zip_of(path, {**arrays, "source_ends": arrays["source_ends"][:-1]}),
        lambda path, arrays: zip_of(path, {**arrays, "source": arrays["source"][:-1]}),
        lambda path, arrays: zip_of(path, {**arrays, "source": np.zeros(2**24, np.uint8)}, compressed=True),
        lambda path, arrays: zip_of(path, {**arrays, "target": np.array([object()])}),
    ],
)
def test_arrays_of_other_shapes_are_one_line(task_dir, tmp_path, spoil):  # noqa: F811
    """Of whoever wrote the digests too."""
    folder = shutil.copytree(Path(task_dir) / "pairs", tmp_path / "tasks/out")
    with np.load(folder / "train.npz") as file:
        arrays = dict(file)
    spoil(folder / "train.npz", arrays)
    digest = sha256(folder / "train.npz")
    edit(folder / "manifest.json", lambda m: (m["splits"]["train"].update(sha256=digest), m.update(hash=digest)))
    one_line("train.npz' is damaged", lambda: opened(folder.parent, source="tasks"))


@pytest.mark.parametrize("kind", ["images", "labels"])
@pytest.mark.parametrize("array", [np.int64(7), np.zeros((3, 3)), np.array([object()])], ids=["0d", "3x3", "object"])
def test_images_of_other_shapes_are_one_line(image_dir, tmp_path, kind, array):  # noqa: F811
    folder = shutil.copytree(Path(image_dir) / "fashion-mnist", tmp_path / "images/out")
    np.save(folder / f"train-{kind}.npy", array)
    digest = sha256(folder / f"train-{kind}.npy")
    edit(folder / "manifest.json", lambda m: m["files"].update({f"train-{kind}.npy": digest}))
    one_line("is damaged", lambda: opened(folder.parent, source="images"))


# ------------------------------------------------------------------------------------ not there


@pytest.mark.parametrize("what", ["missing", "folder"])
def test_a_shard_that_can_not_be_read_now_is_told_from_a_damaged_one(prepared, what):
    found = prepared / "train-00001.bin"
    found.rename(prepared / "aside")
    if what == "folder":
        found.mkdir()
    with pytest.raises(Unavailable if what == "missing" else UsageError, match=r"train-00001\.bin'"):
        opened(prepared.parent)
    if what == "folder":
        found.rmdir()
    (prepared / "aside").rename(found)
    assert len(opened(prepared.parent))
    found.write_bytes(b"short")
    with pytest.raises(UsageError) as caught:
        opened(prepared.parent)
    assert not isinstance(caught.value, Unavailable)


def test_data_that_was_never_prepared_is_no_data(tmp_path):
    for name in ("a" * 300, "a" * 3000, "a/" * 2500, "a\0" * 100, "\ud800" * 100, "news-bytes", "x y"):
        with pytest.raises(UsageError) as caught:
            opened(tmp_path, name=name)
        assert len(str(caught.value)) < 400
        assert isinstance(caught.value, NoData) == (len(name) < 100)
    with pytest.raises(UsageError):
        opened(tmp_path / ("b" * 300))


def experiments():
    """The names of data that experiments read, in all their variants with data of their own."""
    for path in sorted((ROOT / "experiments").glob("*.py")):
        variants = {"sentiment": ["", "pretrain", "prose", "zh", "zh_pretrain"], "translate": ["", "zh"]}
        for variant in variants.get(path.stem, [""]):
            section = config.load(f"{path}:{variant}" if variant else str(path)).data
            if section.source != "tables":
                yield section.source, section.name


def test_hints_of_missing_data_are_commands_that_work(tmp_path):
    kinds = {*corpora.CORPORA, *tasks.TASKS, *images.SETS, *captions.SETS}
    assert set(data.PREPARED) == kinds
    names = {*experiments(), *(("text", f"{name}-{kind}") for name in corpora.CORPORA for kind in ("bytes", "bpe"))}
    names -= {("tasks", "chats")}  # conversations of one's own
    names -= {("captions", name) for name in data.DERIVED}
    assert len(names) > 25
    for source, name in sorted(names):
        with pytest.raises(NoData) as caught:
            opened(tmp_path / "my data", source=source, name=name)
        found = re.fullmatch(r"no prepared \w+ at .*; make it with: bigmodel (prepare .*)", str(caught.value))
        args = main.parser().parse_args(shlex.split(found[1]))
        assert args.source in kinds and args.out == str(tmp_path / "my data" / name), name
        assert name.endswith("bpe") <= (args.tokenizer == "bpe")


def test_a_hint_for_a_name_of_ones_own_says_what_is_missing_in_it(tmp_path):
    with pytest.raises(NoData, match=r"bigmodel prepare SOURCE --out=\S+/mine \(SOURCE: a file or folder, or a name"):
        opened(tmp_path, name="mine")


def test_training_on_a_damaged_shard_is_one_line(prepared, tmp_path):
    flip(prepared / "validation-00000.bin", -9)
    overrides = [f"--config.{x}" for x in ("data.name=out", "data.seq_len=32", "train.steps=2", "model.width=16")]
    more = [f"--config.run.data_dir={prepared.parent}", "--config.run.wandb=off", f"--runs={tmp_path / 'runs'}"]
    done = bigmodel("train", f"--config={ROOT}/experiments/gpt.py", *overrides, *more)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and "validation-00000.bin' is damaged" in line
