"""Images: idx files in a package become arrays, and the arrays examples."""

import gzip
import struct

import numpy as np
import pytest
from conftest import ROOT
from test_tasks import packed

from bigmodel import config, data
from bigmodel.cli import main
from bigmodel.errors import UsageError
from bigmodel.prepare import images
from bigmodel.run import record
from bigmodel.run.session import train


def idx(array):
    return b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def small_images(root):
    """120 + 20 images of 4x4 in root/fashion-mnist: the brighter, the higher the class."""
    rng = np.random.default_rng(0)
    files = {}
    for name, count in (("train", 120), ("t10k", 20)):
        labels = rng.integers(0, 10, count).astype(np.uint8)
        pixels = (25 * labels[:, None, None] + rng.integers(0, 10, (count, 4, 4))).astype(np.uint8)
        for kind, array in (("images-idx3", pixels), ("labels-idx1", labels)):
            files[f"usr/share/{name}-{kind}-ubyte.gz"] = gzip.compress(idx(array))
    root.mkdir(exist_ok=True)
    archive = packed(root / "package.zip", files)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images, "fetch", lambda *_: archive)
        assert main.main(["prepare", "fashion-mnist", f"--out={root / 'fashion-mnist'}"]) == 0
    (root / "package.zip").unlink()
    return root


@pytest.fixture(scope="module")
def image_dir(tmp_path_factory):
    return small_images(tmp_path_factory.mktemp("images"))


def test_images_are_examples(image_dir):
    source, cfg = data.source("images"), data.source("images").get_config()
    source.finalize(cfg, str(image_dir))
    info = source.describe(cfg, str(image_dir))
    assert (info.train_examples, info.validation_examples) == (110, 10)
    assert info.sizes == {"num_features": 16, "num_classes": 10}
    test = source.open_split(cfg, str(image_dir), "test")
    assert len(test) == 20 and test[3]["features"].shape == (16,) and test[3]["features"].dtype == np.float32
    many = test.take([3, 5])
    assert np.array_equal(many["features"][0], test[3]["features"])
    np.testing.assert_allclose(many["features"].mean(axis=1), (25 * many["label"] + 4.5) / 255, atol=0.02)
    cfg.examples = 7
    assert len(source.open_split(cfg, str(image_dir), "train")) == 7


def test_a_second_prepare_is_at_once(image_dir, monkeypatch):
    monkeypatch.setattr(images, "fetch", lambda *_: pytest.fail("downloads again"))
    out = str(image_dir / "fashion-mnist")
    assert images.prepare_images("fashion-mnist", out)["splits"]["test"]["examples"] == 20
    assert main.main(["prepare", "fashion-mnist", f"--out={out}", "--tokenizer=bpe"]) == 2


@pytest.mark.parametrize("broken", [b"\0\0\x09\1\0\0\0\1x", idx(np.zeros(5, np.uint8))[:-1]])
def test_damaged_files_are_refused(broken):
    with pytest.raises(UsageError, match="idx file"):
        images.idx(broken)


@pytest.mark.slow
def test_an_mlp_tells_them_apart(image_dir, tmp_path):
    small = [
        ("model.width", 16),
        ("train.tokens", 0),
        ("train.steps", 300),
        ("train.batch_size", 32),
        ("data.epochs", 1000),
    ]
    more = [("run.data_dir", str(image_dir)), ("run.wandb", "off"), ("optim.lr", 0.01)]
    result = train(config.load(ROOT / "experiments/fashion.py", [*small, *more]), str(tmp_path), quiet=True)
    assert main.main(["evaluate", str(tmp_path / result["run_id"]), "--split=test"]) == 0
    found = record.read_json(tmp_path / result["run_id"] / "evaluation-test.json")
    assert found["examples"] == 20 and found["accuracy"] > 0.6 and "sneaker" in found["classes"]


def test_evaluating_a_run_that_diverged_says_so(digits, tmp_path, capsys):
    home = tmp_path / train(digits(), str(tmp_path), quiet=True)["run_id"]
    assert main.main(["evaluate", str(home), "--split=validation"]) == 0
    assert "diverged" not in capsys.readouterr().err
    record.write_json(home / "result.json", record.read_json(home / "result.json") | {"status": "diverged"})
    assert main.main(["evaluate", str(home), "--split=validation"]) == 0
    assert capsys.readouterr().err == f"{home} diverged: evaluated at step 10\n"


def test_a_tables_classes_are_not_named_by_another_sets_manifest(digits, tmp_path):
    (tmp_path / "data/digits").mkdir(parents=True)
    record.write_json(tmp_path / "data/digits/manifest.json", {"labels": ["cat", "dog"]})
    cfg = digits(("run.data_dir", str(tmp_path / "data")))
    home = tmp_path / train(cfg, str(tmp_path), quiet=True)["run_id"]
    assert main.main(["evaluate", str(home), "--split=validation"]) == 0
    assert list(record.read_json(home / "evaluation-validation.json")["classes"]) == [str(k) for k in range(10)]
