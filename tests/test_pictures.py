"""Folders of the user's own pictures, and what augmentation does to one."""

import io
import json
import re
import struct

import numpy as np
import pytest
from PIL import Image

from bigmodel import data
from bigmodel.cli import main
from bigmodel.data import augmentation, loader
from bigmodel.errors import UsageError
from bigmodel.prepare import images, pictures

RNG = np.random.default_rng(0)


def encoded(image, kind="PNG", **how):
    out = io.BytesIO()
    image.save(out, kind, **how)
    return out.getvalue()


def coloured(red, seed=0, size=(20, 14)):
    """A picture of one red and drawn noise."""
    noise = np.random.default_rng(seed).integers(0, 40, (size[1], size[0], 3)).astype(np.uint8)
    noise[..., 0] += np.uint8(red)
    return Image.fromarray(noise)


def folder(root, more=(), each=6):
    """Two classes of `each` pictures, and files more: (path, content)."""
    for label, red in (("dark", 10), ("red", 200)):
        (root / label).mkdir(parents=True, exist_ok=True)
        for i in range(each):
            (root / label / f"{i}.png").write_bytes(encoded(coloured(red, seed=100 * red + i)))
    for name, content in more:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def prepared(source, out, capsys, *flags):
    """(exit code, what was said on stderr)"""
    code = main.main(["prepare", str(source), f"--out={out}", "--size=8", *flags])
    return code, capsys.readouterr().err


def opened(out, split="train", **options):
    source = data.source("images")
    cfg = source.get_config()
    cfg.update({"name": out.name, "flat": False, **options})
    source.finalize(cfg, str(out.parent))
    return source, cfg, source.open_split(cfg, str(out.parent), split)


RED = coloured(200, 7)
HUGE = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sIIBBBBBI", 13, b"IHDR", 20_000, 20_000, 8, 2, 0, 0, 0, 0)
FRAMES = [Image.new("RGB", (9, 9), (200, i, 0)) for i in (1, 90)]
SIXTEEN = Image.fromarray((np.arange(20 * 14).reshape(14, 20) * 200).astype(np.uint16))
EXIF = Image.Exif()
EXIF[0x0112] = 6  # turned by a quarter
GOOD = {  # name -> (content, what is said)
    "red/jpeg.jpg": (encoded(RED, "JPEG"), ""),
    "red/upper.JPEG": (encoded(RED, "JPEG", quality=60), ""),
    "red/webp.webp": (encoded(RED, "WEBP"), ""),
    "red/bmp.bmp": (encoded(RED, "BMP"), ""),
    "red/cmyk.jpg": (encoded(RED.convert("CMYK"), "JPEG"), ""),
    "red/grey.png": (encoded(RED.convert("L")), ""),
    "red/one bit.png": (encoded(RED.convert("1")), ""),
    "red/palette.png": (encoded(RED.convert("P")), ""),
    "red/alpha.png": (encoded(RED.convert("RGBA")), ""),
    "red/grey alpha.png": (encoded(RED.convert("LA")), ""),
    "red/sixteen.png": (encoded(SIXTEEN), ""),
    "red/sixteen.tif": (encoded(SIXTEEN, "TIFF"), ""),
    "red/turned.jpg": (encoded(RED, "JPEG", exif=EXIF), ""),
    "red/one pixel.png": (encoded(Image.new("RGB", (1, 1), "red")), ""),
    "red/long.png": (encoded(Image.new("RGB", (3000, 2), "red")), ""),
    "red/moves.gif": (
        encoded(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:]),
        "1 pictures of several frames",
    ),
    "red/moves.png": (encoded(FRAMES[0], save_all=True, append_images=FRAMES[1:]), "1 pictures of several frames"),
    "red/really a jpeg.png": (encoded(RED, "JPEG", quality=50), ""),
    "red/with space\n and newline.png": (encoded(coloured(190, 1)), ""),
    "red/-dash.png": (encoded(coloured(191, 2)), ""),
    "red/图片.png": (encoded(coloured(192, 3)), ""),
    "red/deeper/still.png": (encoded(coloured(193, 4)), ""),
    "red/.hidden.png": (b"not counted", ""),
    "red/notes.txt": (b"not a picture", ""),
    "red/again.png": (encoded(coloured(200, seed=20_000)), "1 pictures that a class has twice, counted once"),
}
BROKEN = {
    "red/truncated.jpg": encoded(coloured(200, 9, (200, 200)), "JPEG")[:2000],
    "red/cut.png": encoded(RED)[:60],
    "red/empty.png": b"",
    "red/text.png": b"I am a text",
    "red/html.jpg": b"<html>404</html>",
    "red/huge.png": HUGE,
    "red/header.webp": b"RIFF\x00\x00\x00\x00WEBPVP8 ",
    "red/floats.tif": encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"),
    "red/zeros.gif": b"GIF89a" + bytes(100),
    "red/zeros.bmp": b"BM" + bytes(60),
}


@pytest.mark.parametrize("name", GOOD)
def test_a_picture_of_any_kind_is_read(name, tmp_path, capsys):
    content, says = GOOD[name]
    before = set(pictures._pictures(folder(tmp_path / "mine") / "red"))
    folder(tmp_path / "mine", [(name, content)])
    code, said = prepared(tmp_path / "mine", tmp_path / "out", capsys)
    assert code == 0 and says in said and "Traceback" not in said
    counts = [len(opened(tmp_path / "out", split)[2]) for split in ("train", "validation", "test")]
    new = set(pictures._pictures(tmp_path / "mine/red")) - before
    assert sum(counts) == 12 + (len(new) == 1 and "twice" not in says)
    if not says and new:
        assert said.count("note") == 0


def test_pixels_are_those_of_the_picture():
    told = {}
    grey = images.read(encoded(SIXTEEN), 14, told)
    np.testing.assert_array_equal(grey[..., 0], (np.asarray(SIXTEEN) // 257)[:, 3:17])  # the centre
    assert (grey[..., 0] == grey[..., 2]).all()
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    assert (images.read(encoded(clear), 8, told) == 255).all()  # laid on white
    half = Image.new("RGBA", (8, 8), (255, 0, 0, 128))
    np.testing.assert_allclose(images.read(encoded(half), 8, told)[0, 0], [255, 127, 127], atol=1)
    left = Image.new("RGB", (8, 8), "black")
    left.paste((255, 255, 255), (0, 0, 4, 8))
    turned = images.read(encoded(left, "PNG", exif=EXIF), 8, told)
    assert (turned[:4] == 255).all() and (turned[4:] == 0).all()  # the left side is up
    big = images.read(encoded(coloured(100, 1, (300, 200)), "JPEG"), 8, told)
    assert big.shape == (8, 8, 3) and abs(big[..., 0].mean() - 119.5) < 4


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_named_and_left_out(name, tmp_path, capsys):
    code, said = prepared(folder(tmp_path / "mine", [(name, BROKEN[name])]), tmp_path / "out", capsys)
    assert code == 0 and "1 files that can't be read" in said and name in said and "Traceback" not in said
    assert sum(len(opened(tmp_path / "out", split)[2]) for split in ("train", "validation", "test")) == 12


def test_files_that_are_no_files(tmp_path, capsys):
    home = folder(tmp_path / "mine")
    (home / "red/loop").symlink_to(home / "red")
    (home / "red/nowhere.png").symlink_to(home / "missing.png")
    (home / "red/folder.png").mkdir()
    code, said = prepared(home, tmp_path / "out", capsys)
    assert code == 0 and "1 files that can't be read: 'red/nowhere.png' (No such file" in said


SAME = encoded(coloured(100, 5))
REFUSED = {
    "one class": ([], ["red"], "one class, ['dark']"),
    "all of a class broken": (
        [(f"blue/{i}.png", b"x") for i in range(4)],
        [],
        "none of the 4 pictures of class 'blue'",
    ),
    "two of a class": (
        [("blue/1.png", encoded(coloured(1, 1))), ("blue/2.png", encoded(coloured(1, 2)))],
        [],
        "3 pictures",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_set_of_classes_is_one_line(name, tmp_path, capsys):
    more, without, says = REFUSED[name]
    home = folder(tmp_path / "mine", more)
    for label in without:
        for path in (home / label).iterdir():
            path.unlink()
    code, said = prepared(home, tmp_path / "out", capsys)
    assert code == 2 and says in said and "Traceback" not in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flag", "says"),
    [
        ("--size=0", "size=0"),
        ("--validation-fraction=0.7", "validation_fraction=0.7"),
        ("--tokenizer=bpe", "no --tokenizer"),
    ],
)
def test_wrong_settings_are_one_line(flag, says, tmp_path, capsys):
    code, said = prepared(folder(tmp_path / "mine"), tmp_path / "out", capsys, flag)
    assert code == 2 and says in said


def test_one_content_in_two_classes_and_an_empty_class_are_told(tmp_path, capsys):
    home = folder(tmp_path / "mine", [("red/same.png", SAME), ("dark/same.png", SAME)])
    (home / "nothing").mkdir()
    code, said = prepared(home, tmp_path / "out", capsys)
    assert code == 0
    assert "1 pictures that are in two classes or more" in said and "folders without pictures: 'nothing'" in said
    source, cfg, train = opened(tmp_path / "out")
    info = source.describe(cfg, str(tmp_path))
    assert info.sizes == {"image_height": 8, "image_width": 8, "channels": 3, "num_classes": 2}
    assert (info.train_examples, info.validation_examples) == (8, 2)
    reds = {int(x["label"]): x["image"][..., 0].mean() for x in (train[k] for k in range(8))}
    assert reds[1] > 150 > 100 > reds[0]  # labels are the folders in order
    assert train[0]["image"].dtype == np.uint8


def test_files_of_other_kinds_are_counted_and_size_is_of_pictures_alone(tmp_path, capsys):
    home = folder(tmp_path / "mine", [("red/notes.txt", b"x"), ("loose.png", SAME)])
    code, said = prepared(home, tmp_path / "out", capsys)
    assert code == 0 and "left out of" in said and "2 files that aren't named as pictures" in said
    code, said = prepared("fashion-mnist", tmp_path / "other", capsys)
    assert code == 2 and "--size is of pictures with captions, or of a folder" in said


def test_it_is_prepared_once_and_a_changed_folder_is_refused(tmp_path, capsys):
    home = folder(tmp_path / "mine")
    prepared(home, tmp_path / "out", capsys)
    first = (tmp_path / "out/manifest.json").read_bytes()
    assert prepared(home, tmp_path / "out", capsys)[0] == 0
    assert (tmp_path / "out/manifest.json").read_bytes() == first
    folder(tmp_path / "mine", [("red/new.png", encoded(coloured(180, 3)))])
    code, said = prepared(home, tmp_path / "out", capsys)
    assert code == 2 and "was prepared with files=" in said and "choose another --out" in said


def test_grey_pictures_have_one_channel(tmp_path, capsys):
    for label in "ab":
        for i in range(4):
            folder_ = tmp_path / "mine" / label
            folder_.mkdir(parents=True, exist_ok=True)
            (folder_ / f"{i}.png").write_bytes(encoded(coloured(90, 10 * ord(label) + i).convert("L")))
    prepared(tmp_path / "mine", tmp_path / "out", capsys)
    source, cfg, train = opened(tmp_path / "out")
    assert train[0]["image"].shape == (8, 8, 1) and source.describe(cfg, str(tmp_path)).sizes["channels"] == 1


def test_a_folder_with_broken_files_trains(tmp_path, capsys):
    from bigmodel.run import budget, session

    home = folder(tmp_path / "mine", [("red/bad.png", b"x")], each=50)  # 1 %
    code, said = prepared(home, tmp_path / "out", capsys)
    assert code == 0 and "1 files that can't be read" in said
    cfg = budget.base("resnet", "images")
    cfg.data.update(dict(name="out", flat=False, crop=1, flip=True))
    cfg.model.update(dict(width=4, depth=1, num_stages=1, stem="small"))
    cfg.optim.lr = 0.05
    cfg.train.update(dict(batch_size=16, steps=12))
    cfg.run.update(dict(data_dir=str(tmp_path), wandb="off", checkpoint_every=0))
    result = session.train(cfg, str(tmp_path / "runs"), quiet=True)
    assert result["eval_error"] < 0.2
    run = tmp_path / "runs" / result["run_id"]
    assert main.main(["evaluate", str(run), "--split=train"]) == 0
    told = capsys.readouterr().out
    found = json.loads((run / "evaluation-train.json").read_text())
    drawn = (run / "evaluation-train-mistakes.png").exists()
    assert drawn == ("mistakes" in told) == (found["accuracy"] < 1)


# ------------------------------------------------------------------------------------------------ augmentation


def picture(channels=3, size=(12, 10)):
    return np.random.default_rng(1).integers(0, 256, (*size, channels)).astype(np.uint8)


def options(**chosen):
    cfg = data.source("images").get_config()
    cfg.update(chosen)
    return cfg


def draws(count=200, **chosen):
    cfg, x = options(**chosen), picture()
    return x, [augmentation.changed(cfg, x, np.random.default_rng(seed)) for seed in range(count)]


def test_a_crop_is_a_window_of_the_padded_picture():
    x, found = draws(crop=2)
    padded = np.pad(x, ((2, 2), (2, 2), (0, 0)))
    windows = {padded[i : i + 12, j : j + 10].tobytes() for i in range(5) for j in range(5)}
    assert {y.tobytes() for y in found} == windows  # all of them, and no others


def test_a_flip_mirrors_half_of_the_time():
    x, found = draws(flip=True)
    mirrored = sum(np.array_equal(y, x[:, ::-1]) for y in found)
    assert mirrored + sum(np.array_equal(y, x) for y in found) == 200 and 70 < mirrored < 130


def test_erasing_changes_one_rectangle():
    x, found = draws(erase=1.0)
    for y in found:
        rows, columns = (np.flatnonzero((x != y).any(axis=axes)) for axes in ((1, 2), (0, 2)))
        area = (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)
        assert area <= 0.45 * 120
    assert sum(np.array_equal(y, x) for y in draws(erase=0.3)[1]) in range(110, 170)


def test_a_resized_crop_shows_a_part_in_its_order():
    gradient = np.broadcast_to(np.arange(0, 240, 20, dtype=np.uint8)[:, None, None], (12, 10, 3))
    least = []
    for seed in range(100):
        y = augmentation.resized_crop(gradient, 0.2, np.random.default_rng(seed)).astype(int)
        assert y.shape == (12, 10, 3) and (np.diff(y[:, 0, 0]) >= 0).all()
        least.append(y.max() - y.min())
    assert min(least) < 120 < 200 <= max(least)  # small parts and nearly whole ones


def test_jitter_keeps_within_its_share():
    flat = np.full((6, 6, 3), 100, np.uint8)
    cfg = options(jitter=0.2)
    means = [augmentation.changed(cfg, flat, np.random.default_rng(s)).mean() for s in range(100)]
    assert 79 <= min(means) < 90 and 110 < max(means) <= 121  # of one grey, brightness alone


def applied(name, magnitude, sign=1, x=None):
    x = picture(size=(8, 8)) if x is None else x
    operation = augmentation.operations(magnitude, sign, (x.shape[1], x.shape[0]))[name]
    return x, np.asarray(operation(Image.fromarray(x)))


def test_operations_do_what_their_definitions_say():
    x, y = applied("invert", 10)
    np.testing.assert_array_equal(y, 255 - x)
    x, y = applied("solarize", 5)  # from 128 on
    np.testing.assert_array_equal(y, np.where(x < 128, x, 255 - x))
    x, y = applied("posterize", 10)  # 4 bits
    np.testing.assert_array_equal(y, x & 0xF0)
    x, y = applied("solarize_add", 10)
    np.testing.assert_array_equal(y, np.where(x < 128, np.minimum(x.astype(int) + 110, 255), x))
    x, y = applied("translate_x", 224 / 80, x=picture(size=(8, 8)))  # 100 pixels of 224 at 10: one of 8 here
    np.testing.assert_array_equal(y[:, :-1], x[:, 1:])
    assert (y[:, -1] == augmentation.GREY).all()
    x, y = applied("translate_y", 224 / 80, sign=-1)
    np.testing.assert_array_equal(y[1:], x[:-1])
    x, y = applied("rotate", 30)  # by 90 degrees
    np.testing.assert_array_equal(y, np.rot90(x))
    for name in ("color", "contrast", "brightness", "sharpness"):
        x, y = applied(name, 5)  # a factor of 1
        np.testing.assert_allclose(y, x, atol=1)
    x, y = applied("brightness", 0)
    np.testing.assert_allclose(y, 0.1 * x, atol=1)
    x, y = applied("autocontrast", 9, x=(picture(size=(8, 8)) // 2 + 40))
    assert y.min() == 0 and y.max() == 255
    x, y = applied("shear_x", 0)
    np.testing.assert_array_equal(y, x)
    rows = applied("shear_x", 10, x=np.broadcast_to(np.arange(8, dtype=np.uint8)[None, :, None], (8, 8, 3)).copy())[1]
    assert rows[0, 3, 0] == 3 and rows[7, 3, 0] == 5  # 0.3 pixels a row


@pytest.mark.parametrize("channels", [1, 3])
def test_randaugment_runs_every_operation(channels):
    x = picture(channels)
    for level, (layers, magnitude, _) in augmentation.LEVELS.items():
        cfg = options(randaugment_layers=layers, randaugment_magnitude=magnitude)
        assert augmentation.wanted(cfg) == (level != "none")
        found = {augmentation.changed(cfg, x, np.random.default_rng(seed)).tobytes() for seed in range(60)}
        assert len(found) > (20 if magnitude else 3) if layers else len(found) == 1
    names = augmentation.operations(10, 1, (10, 12))
    assert len(names) == 15
    for operation in names.values():
        image = Image.fromarray(x[..., 0] if channels == 1 else x)
        assert np.asarray(operation(image)).shape == np.asarray(image).shape


def read(split, cfg, start, workers):
    source = data.source("images")
    augment = lambda example, rng: source.augment(cfg, example, rng)  # noqa: E731
    if workers:
        import functools

        augment = functools.partial(source.augment, cfg)
    batches = loader.train_batches(split, 4, 3, start, 8, (0, 4), workers=workers, augment=augment)
    return [batch["image"] for batch in batches]


def test_augmentation_is_a_function_of_seed_and_place(tmp_path, capsys):
    """Of 8 pictures in batches of 4, step 3 is in the middle of an epoch."""
    folder(tmp_path / "mine", each=5)
    prepared(tmp_path / "mine", tmp_path / "out", capsys)
    chosen = dict(crop=2, flip=True, randaugment_layers=1, erase=0.5)
    _, cfg, train = opened(tmp_path / "out", **chosen)
    assert len(train) == 6
    whole = read(train, cfg, 0, 0)
    for workers, start in ((0, 3), (1, 0), (4, 3)):
        for a, b in zip(whole[start:], read(train, cfg, start, workers), strict=True):
            np.testing.assert_array_equal(a, b)
    seen = {x.tobytes() for batch in whole for x in batch}
    assert len(seen) > 24  # of 32 draws of 6 pictures: another each time


def test_without_augmentation_several_examples_are_read_at_once(tmp_path, capsys):
    folder(tmp_path / "mine")
    prepared(tmp_path / "mine", tmp_path / "out", capsys)
    source, cfg, train = opened(tmp_path / "out")
    assert not source.augments(cfg)
    batch = train.take([0, 2])
    np.testing.assert_array_equal(batch["image"][1], train[2]["image"])


IMPOSSIBLE = {
    "erase": dict(erase=1.5),
    "jitter": dict(jitter=1.0),
    "randaugment_magnitude": dict(randaugment_magnitude=31),
    "crop": dict(crop=-1),
    "resized_crop": dict(resized_crop=2.0),
    "flat=False": dict(flat=True, flip=True),
}


@pytest.mark.parametrize("says", IMPOSSIBLE)
def test_impossible_augmentation_is_one_line(says, tmp_path, capsys):
    folder(tmp_path / "mine")
    prepared(tmp_path / "mine", tmp_path / "out", capsys)
    with pytest.raises(UsageError, match=re.escape(says)):
        opened(tmp_path / "out", **IMPOSSIBLE[says])


@pytest.mark.network
def test_emoji_are_those_of_two_artists(tmp_path):
    assert main.main(["prepare", "emoji", f"--out={tmp_path / 'emoji'}"]) == 0
    sizes = {split: len(opened(tmp_path / "emoji", split)[2]) for split in ("train", "validation", "test")}
    assert sum(sizes.values()) == images.SETS["emoji"].examples
    assert sizes["train"] == sizes["validation"] + sizes["test"] and abs(sizes["validation"] - sizes["test"]) < 400
    assert set(opened(tmp_path / "emoji", "test")[2].labels.tolist()) == set(range(9))


@pytest.mark.network
def test_mnist_is_the_genuine_set(tmp_path, capsys):
    assert main.main(["prepare", "mnist", f"--out={tmp_path / 'mnist'}"]) == 0
    _, _, train = opened(tmp_path / "mnist")
    _, _, held = opened(tmp_path / "mnist", "validation")
    counts = np.bincount(train.labels, minlength=10) + np.bincount(held.labels, minlength=10)
    assert counts.tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.asarray(train.images).mean() / 255 == pytest.approx(0.1307, abs=2e-3)
