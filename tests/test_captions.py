"""Pictures with captions: folders of the user's own, what is refused and left out, splits, and a run on them."""

import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from bigmodel import data
from bigmodel.cli import main
from bigmodel.data import loader
from bigmodel.errors import UsageError
from bigmodel.prepare import captions

COLOURS = {"red": (200, 30, 30), "green": (30, 180, 30), "blue": (30, 30, 220), "grey": (120, 120, 120)}


def picture(colour, seed=0, size=(12, 10), kind="PNG", mode="RGB"):
    rng = np.random.default_rng(seed)
    pixels = np.clip(np.array(colour) + rng.integers(-20, 20, (size[1], size[0], 3)), 0, 255).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(out, kind)
    return out.getvalue()


def folder(root, lines=(), files=(), each=12):
    """Pictures of four colours, each a concept of two captions in English and one in Chinese, and more."""
    root.mkdir(parents=True, exist_ok=True)
    rows = []
    for n, (name, colour) in enumerate(COLOURS.items()):
        for i in range(each):
            file = f"{name}{i}.png"
            (root / file).write_bytes(picture(colour, seed=100 * n + i))
            about = {"image": file, "concept": f"{name}{i}", "label": name}
            rows.append({**about, "captions": [f"a {name} thing {i}", f"{i}, {name}"], "language": "en"})
            rows.append({**about, "caption": f"{name}色{i}", "language": "zh"})
    for name, content in files:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    text = "\n".join([*(json.dumps(row, ensure_ascii=False) for row in rows), *lines]) + "\n"
    (root / "captions.jsonl").write_bytes(text.encode() if isinstance(text, str) else text)
    return root


def prepared(source, out, capsys, *flags):
    """(exit code, what was said on stderr)"""
    code = main.main(["prepare", str(source), f"--out={out}", "--size=8", *flags])
    return code, capsys.readouterr().err


def opened(out, split="train", **options):
    source = data.source("captions")
    cfg = source.get_config()
    cfg.update({"name": out.name, **options})
    source.finalize(cfg, str(out.parent))
    return source, cfg, source.open_split(cfg, str(out.parent), split)


def line(**row):
    return json.dumps(row, ensure_ascii=False)


RED = {"image": "red0.png"}
REFUSED = {
    "no JSON": (["{image: red0.png}"], "line 97"),
    "a list": (["[1, 2]"], "line 97"),
    "no image": ([line(caption="x")], "KeyError: 'image'"),
    "no caption": ([line(**RED)], "TypeError"),
    "caption a number": ([line(**RED, caption=3)], "TypeError"),
    "captions of numbers": ([line(**RED, captions=[3])], "its values are texts"),
    "language a list": ([line(**RED, caption="x", language=["en"])], "its values are texts"),
    "outside": ([line(image="../secret.png", caption="x")], "is outside of"),
    "absolute": ([line(image="/etc/passwd", caption="x")], "is outside of"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_caption_is_one_line(name, tmp_path, capsys):
    lines, says = REFUSED[name]
    code, err = prepared(folder(tmp_path / "mine", lines), tmp_path / "out", capsys)
    assert code == 2 and says in err and err.count("\n") == 1 and "captions.jsonl" in err + "captions.jsonl"
    assert not (tmp_path / "out/manifest.json").exists()


LEFT_OUT = {
    "no picture": ([line(image="gone.png", caption="x")], [], "1 captions without their picture, as 'gone.png'"),
    "empty caption": ([line(**RED, caption="  ")], [], "1 captions that are empty"),
    "picture without caption": ([], [("more.png", picture((1, 2, 3)))], "1 files that no caption is about"),
    "broken": (
        [line(image="bad.png", caption="x")], [("bad.png", picture((1, 2, 3))[:60])],
        "1 files that can't be read: 'bad.png'",
    ),
    "zero bytes": ([line(image="bad.png", caption="x")], [("bad.png", b"")], "'bad.png' (it is empty)"),
    "a text": ([line(image="a.png", caption="x")], [("a.png", b"hello")], "'a.png'"),
    "animated": ([line(image="a.gif", caption="x y")], [("a.gif", None)], "1 pictures of several frames"),
}  # fmt: skip


@pytest.mark.parametrize("name", LEFT_OUT)
def test_what_is_left_out_is_told(name, tmp_path, capsys):
    lines, files, says = LEFT_OUT[name]
    frames = io.BytesIO()
    pair = [Image.fromarray(np.full((9, 9, 3), v, np.uint8)) for v in (0, 200)]
    pair[0].save(frames, "GIF", save_all=True, append_images=pair[1:])
    source = folder(tmp_path / "mine", lines, [(n, c if c is not None else frames.getvalue()) for n, c in files])
    code, err = prepared(source, tmp_path / "out", capsys)
    assert code == 0 and says in err and len(err.splitlines()) == 1, err


READ = {
    "jpeg": ("a.jpg", picture((200, 30, 30), kind="JPEG")),
    "grey": ("a.png", picture((200, 30, 30), mode="L")),
    "cmyk": ("a.jpg", picture((200, 30, 30), kind="JPEG", mode="CMYK")),
    "webp": ("a.webp", picture((200, 30, 30), kind="WEBP")),
    "large": ("a.png", picture((200, 30, 30), size=(700, 40))),
    "in a folder, with an odd name": ("um läut/图 1.png", picture((200, 30, 30))),
}


@pytest.mark.parametrize("name", READ)
def test_a_picture_of_any_kind_is_read(name, tmp_path, capsys):
    file, content = READ[name]
    source = folder(tmp_path / "mine", [line(image=file, caption="唯一 one", concept="red0")], [(file, content)])
    code, err = prepared(source, tmp_path / "out", capsys)
    assert (code, err) == (0, "")
    rows = [json.loads(row) for s in ("train", "validation", "test") for row in (tmp_path / f"out/{s}.jsonl").open()]
    assert "唯一 one" in {row["caption"] for row in rows}


def test_settings_and_folders_that_are_wrong_are_one_line(tmp_path, capsys):
    source = folder(tmp_path / "mine")
    for flag, says in {
        "--size=0": "size=0",
        "--validation-fraction=0.7": "validation_fraction",
        "--tokenizer=x": "x",
    }.items():
        code, err = prepared(source, tmp_path / "out", capsys, flag)
        assert code == 2 and says in err and err.count("\n") == 1
    (source / "more").mkdir()
    (source / "more/captions.jsonl").write_text(line(**RED, caption="x") + "\n")
    code, err = prepared(source, tmp_path / "out", capsys)
    assert code == 2 and "expected one captions.jsonl" in err and "more/captions.jsonl" in err
    few = folder(
        tmp_path / "few", each=0, lines=[line(image="a.png", caption="x")], files=[("a.png", picture((1, 2, 3)))]
    )
    code, err = prepared(few, tmp_path / "out2", capsys)
    assert code == 2 and "nothing is left for" in err and err.count("\n") == 1


def test_concepts_are_split_and_no_held_out_caption_is_learned(tmp_path, capsys):
    code, err = prepared(folder(tmp_path / "mine"), tmp_path / "out", capsys, "--validation-fraction=0.2")
    assert (code, err) == (0, "")
    rows = {
        s: [json.loads(row) for row in (tmp_path / f"out/{s}.jsonl").open()] for s in ("train", "validation", "test")
    }
    concepts = {s: {row["concept"] for row in part} for s, part in rows.items()}
    texts = {s: {row["caption"] for row in part} for s, part in rows.items()}
    assert concepts["test"].isdisjoint(concepts["train"] | concepts["validation"]) and concepts["test"]
    assert texts["train"].isdisjoint(texts["validation"] | texts["test"])
    # Chinese has one caption a concept here, so validation's concepts aren't in training.
    assert concepts["validation"].isdisjoint(concepts["train"])
    assert sum(map(len, rows.values())) == 4 * 12 * 3


def test_a_concept_with_more_captions_keeps_some_in_training(tmp_path, capsys):
    rows = [line(image="red0.png", concept="red0", language="zh", caption=f"另一个{i}") for i in range(2)]
    source = folder(tmp_path / "mine")
    text = (source / "captions.jsonl").read_text().splitlines()
    kept = [row for row in map(json.loads, text) if row["language"] == "en"]
    (source / "captions.jsonl").write_text("\n".join(map(json.dumps, kept)) + "\n")
    code, _ = prepared(source, tmp_path / "out", capsys, "--validation-fraction=0.2")
    assert code == 0 and rows
    parts = {s: [json.loads(row) for row in (tmp_path / f"out/{s}.jsonl").open()] for s in ("train", "validation")}
    seen = {row["concept"] for row in parts["train"]}
    assert parts["validation"] and all(row["concept"] in seen for row in parts["validation"])
    assert all(row["caption"].startswith("a ") for row in parts["validation"])  # the first of its captions


def test_a_pair_is_its_picture_and_its_tokens(tmp_path, capsys):
    folder(tmp_path / "mine", [line(**RED, caption="x" * 10**6, language="en")])
    prepared(tmp_path / "mine", tmp_path / "out", capsys)
    _, _, split = opened(tmp_path / "out", seq_len=16)
    rows = [json.loads(row) for row in (tmp_path / "out/train.jsonl").open()]
    images = np.load(tmp_path / "out/train-images.npy")
    assert len(split) == len(rows) and images.shape[1:] == (8, 8, 3)
    for k in (0, 1, len(rows) - 1, *(i for i, row in enumerate(rows) if len(row["caption"]) > 1000)):
        example, text = split[k], rows[k]["caption"].encode()[:15]
        n = int(example["length"])
        assert bytes(example["tokens"][: n - 1].tolist()) == text and n == len(text) + 1
        assert example["tokens"][n - 1] == 0 and not example["tokens"][n:].any()
        np.testing.assert_array_equal(example["image"], images[rows[k]["picture"]])
        means = example["image"].reshape(-1, 3).mean(0)
        assert np.abs(means - COLOURS[rows[k]["label"]]).max() < 15


def test_it_is_prepared_once_and_a_changed_folder_is_refused(tmp_path, capsys):
    source = folder(tmp_path / "mine")
    assert prepared(source, tmp_path / "out", capsys, "--tokenizer=bpe", "--vocab-size=300")[0] == 0
    before = (tmp_path / "out/manifest.json").stat().st_mtime_ns
    assert prepared(source, tmp_path / "out", capsys, "--tokenizer=bpe", "--vocab-size=300")[0] == 0
    assert (tmp_path / "out/manifest.json").stat().st_mtime_ns == before
    (source / "red0.png").write_bytes(picture((1, 1, 1), size=(30, 30)))
    code, err = prepared(source, tmp_path / "out", capsys, "--tokenizer=bpe", "--vocab-size=300")
    assert code == 2 and "files=" in err and err.count("\n") == 1
    (tmp_path / "out/train.npz").write_bytes(b"x")
    with pytest.raises(UsageError, match=r"train.npz.*damaged"):
        opened(tmp_path / "out")[2]


def test_augmentation_is_a_function_of_seed_and_place(tmp_path, capsys):
    prepared(folder(tmp_path / "mine"), tmp_path / "out", capsys)
    source, cfg, split = opened(tmp_path / "out", crop=2, flip=True)

    def changed(example, rng):
        return source.augment(cfg, example, rng)

    runs = [list(loader.train_batches(split, 8, 0, 0, 4, (0, 8), workers=w, augment=changed)) for w in (0, 2)]
    for a, b in zip(*runs, strict=True):
        assert all(np.array_equal(a[key], b[key]) for key in a)


def test_a_run_learns_colours_and_is_evaluated(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main.main(["prepare", str(folder(tmp_path / "mine")), "--out=data/mine", "--size=8"]) == 0
    (tmp_path / "config.py").write_text(
        "from bigmodel import budget\n\n\ndef get_config():\n"
        "    config = budget.base('clip', 'captions')\n"
        "    config.data.name, config.data.seq_len = 'mine', 16\n"
        "    config.model.update(dict(width=16, depth=1, num_heads=2, embed=8))\n"
        "    config.model.vision.update(dict(width=16, depth=1, num_heads=2, patch=4))\n"
        "    config.optim.lr, config.run.wandb = 0.01, 'off'\n"
        "    config.train.batch_size, config.train.steps = 16, 60\n"
        "    return config\n"
    )
    assert main.main(["train", "--config=config.py", "--runs=runs"]) == 0
    (home,) = (p for p in (tmp_path / "runs").iterdir() if p.is_dir())
    capsys.readouterr()
    assert main.main(["evaluate", str(home), "--split=train", "--prompt=a {} thing"]) == 0
    said = capsys.readouterr().out
    found = json.loads((home / "evaluation-train.json").read_text())
    assert "recall of" in said and re.search(r"captions of a picture, zh +\d\d", said)
    assert set(found["retrieval"]) == {"en", "zh", "all"}
    for ways in found["retrieval"].values():
        for row in ways.values():
            assert row["r1"] <= row["r5"] <= row["r10"] and 0 < row["chance_r5"] < 0.2
            assert row["r5"] > 1.5 * row["chance_r5"]
    (told,) = found["zero_shot"].values()
    assert told["classes"] == sorted(COLOURS) and told["balanced_chance"] == 0.25
    assert told["balanced"] > 0.6 and np.sum(told["confusion"]) == told["pictures"]
    assert (home / "evaluation-train-found.png").stat().st_size > 5000
    assert main.main(["evaluate", str(home), "--prompt=a thing"]) == 2
    assert "needs {}" in capsys.readouterr().err
    code = main.main(["train", "--config=config.py", "--runs=runs", "--config.train.microbatch=8"])
    err = capsys.readouterr().err
    assert code == 2 and "depends on the whole batch" in err and "grad_cache" in err


@pytest.mark.network
def test_emoji_and_stamps_have_captions_in_both_languages(tmp_path, capsys):
    out = tmp_path / "out"
    assert main.main(["prepare", "captioned", f"--out={out}", "--size=16"]) == 0
    manifest = json.loads((out / "manifest.json").read_text())
    rows = {s: [json.loads(row) for row in (out / f"{s}.jsonl").open()] for s in manifest["splits"]}
    files = {row["file"] for part in rows.values() for row in part}
    assert len(files) == captions.SETS["captioned"].examples
    assert manifest["languages"] == ["en", "zh"] and len(manifest["asked"]["zh"]) == 9
    concepts = {s: {row["concept"] for row in part} for s, part in rows.items()}
    assert concepts["test"].isdisjoint(concepts["train"] | concepts["validation"])
    of = {row["file"]: row for row in rows["train"] if row["language"] == "zh"}
    assert sum("-1f3f" in file for file in of) > 1000


@pytest.mark.network
def test_clips_tokenizer_has_the_published_ids():
    """Of open_clip's own code (3.3.0), on texts that it changes in nothing but case and spaces."""
    from bigmodel.prepare import tokenizer

    encoder = tokenizer.ready("clip")
    published = {
        "a photo of a cat": [320, 1125, 539, 320, 2368],
        "A  diagram!": [320, 22697, 256],
        "it's 2 dogs, isn't it?": [585, 568, 273, 3255, 267, 2923, 713, 585, 286],
        "书呆子脸": [41854, 99, 161, 239, 228, 35751, 238, 164, 226, 372],
        "naïve café": [1097, 35689, 563, 15304],
    }
    assert {text: encoder.encode(text) for text in published} == published
    assert encoder.decode(published["a photo of a cat"]) == "a photo of a cat"
