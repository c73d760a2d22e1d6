"""prepare: what comes out of the shards is what went in, whatever interrupts it."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from bigmodel.errors import UsageError
from bigmodel.prepare import documents, folder, formats
from bigmodel.prepare import prepare as module
from bigmodel.prepare import tokenizer as tokenizers
from bigmodel.prepare.prepare import prepare

ROOT = Path(__file__).parent.parent
ENGLISH = (
    "Fellow citizens, the state of the union is a matter of record, and the record is long.\r\n\r\n"
    "The harbour was quiet; “ropes” creaked, café lights went out <|endoftext|> one by one.\n"
)
CHINESE = "今天天气很好，我们去公园散步。湖边的柳树刚刚发芽，孩子们在草地上放风筝。\n老人说：“春天来了！”😀\n"


def texts(count=60):
    return [f"{i}: {(ENGLISH, CHINESE)[i % 2]}" * (1 + i % 5) for i in range(count)]


def write_jsonl(path, rows, key="text"):
    path.write_text("".join(json.dumps({key: t}, ensure_ascii=i % 3 == 0) + "\n" for i, t in enumerate(rows)))
    return str(path)


def quiet(source, out, **arguments):
    return prepare(str(source), str(out), progress=False, **arguments)


def read_back(out, split=None):
    """Every document decoded from the shards, cut by the index and, independently, by the separators."""
    manifest = json.loads((Path(out) / "manifest.json").read_text())
    tokenizer = tokenizers.load(out)
    found = []
    for name in [split] if split else manifest["splits"]:
        for shard in manifest["splits"][name]["shards"]:
            ids = np.fromfile(Path(out) / shard["file"], np.dtype(manifest["dtype"]).newbyteorder("<"))
            starts = np.load(Path(out) / shard["file"].replace(".bin", ".idx.npy"))
            ends = np.flatnonzero(ids == tokenizer.separator)
            assert starts.dtype == np.int64 and len(starts) == len(ends) == shard["documents"]
            assert np.array_equal(starts, np.concatenate([[0], ends[:-1] + 1])) and len(ids) == shard["tokens"]
            found += [tokenizer.decode(ids[a:b]) for a, b in zip(starts, ends, strict=True)]
    return found


def content(out):
    """{name: bytes} of everything prepare left but the manifest, which holds the arguments."""
    return {p.name: p.read_bytes() for p in Path(out).iterdir() if p.name != "manifest.json"}


def one_line(match, call):
    with pytest.raises(UsageError, match=match) as caught:
        call()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


# ---------------------------------------------------------------------------------- round trip


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_shards_hold_the_documents(tmp_path, kind):
    rows = texts()
    manifest = quiet(write_jsonl(tmp_path / "a.jsonl", rows), tmp_path / "out", tokenizer=kind, vocab_size=400)
    assert sorted(read_back(tmp_path / "out")) == sorted(rows)
    splits = manifest["splits"]
    assert sum(s["bytes"] for s in splits.values()) == sum(len(t.encode()) for t in rows)
    assert sum(s["documents"] for s in splits.values()) == len(rows)
    assert manifest["dtype"] == {"bytes": "uint8", "bpe": "uint16"}[kind]
    if kind == "bytes":
        assert all(s["tokens"] == s["bytes"] + s["documents"] for s in splits.values())
    else:
        assert manifest["tokenizer"] == {"kind": "bpe", "vocab_size": 400, "separator": 0, "file": "tokenizer.json"}
        assert splits["train"]["tokens"] < splits["train"]["bytes"] / 2
    assert json.loads((tmp_path / "out/manifest.json").read_text()) == manifest
    assert not (tmp_path / "out/.work").exists()


def test_nul_can_not_forge_a_boundary(tmp_path):
    quiet(write_jsonl(tmp_path / "a.jsonl", ["one\0two", "three", "\0", " "]), tmp_path / "out")
    assert sorted(read_back(tmp_path / "out")) == ["onetwo", "three"]


def test_tokenizer_encodes_and_decodes(tmp_path):
    quiet(write_jsonl(tmp_path / "a.jsonl", texts()), tmp_path / "out", tokenizer="bpe", vocab_size=300)
    for tokenizer in (tokenizers.Bytes(), tokenizers.load(tmp_path / "out")):
        for text in (ENGLISH, CHINESE, "", "日本 🎉", "tab\tnew\r\n  spaces  "):
            ids = tokenizer.encode(text)
            assert tokenizer.decode(ids) == text and tokenizer.separator not in ids
            assert max(ids, default=0) < tokenizer.vocab_size
    assert tokenizers.Bytes().encode("é") == [0xC3, 0xA9]
    assert tokenizers.Bytes().decode([0xC3, 65]) == "\ufffdA"


def test_long_texts_are_encoded_in_parts_with_the_same_ids(tmp_path, monkeypatch):
    tokenizer = tokenizers.train(texts(), 500)
    text = ("".join(texts()) + "\n\n  two\n \nthree\n") * 3
    whole = tokenizer.encode(text)
    monkeypatch.setattr(tokenizers, "LONG", 100)
    assert len(list(tokenizers.split(text))) > 20 and "".join(tokenizers.split(text)) == text
    assert tokenizer.encode(text) == whole


# ------------------------------------------------------------------- determinism, split, resume


def test_same_bytes_with_any_number_of_workers(tmp_path):
    source = write_jsonl(tmp_path / "a.jsonl", texts())
    for kind in ("bytes", "bpe"):
        one = quiet(source, tmp_path / f"{kind}1", tokenizer=kind, vocab_size=350, workers=1, shard_tokens=3000)
        two = quiet(source, tmp_path / f"{kind}2", tokenizer=kind, vocab_size=350, workers=2, shard_tokens=3000)
        assert len(one["splits"]["train"]["shards"]) > 2
        assert content(tmp_path / f"{kind}1") == content(tmp_path / f"{kind}2") and one == two


def test_split_is_by_document_stable_and_disjoint(tmp_path):
    rows = texts(200)
    few = quiet(write_jsonl(tmp_path / "a.jsonl", rows), tmp_path / "out", validation_fraction=0.1)
    train, validation = (read_back(tmp_path / "out", s) for s in ("train", "validation"))
    assert set(train) | set(validation) == set(rows) and not set(train) & set(validation)
    assert 8 <= len(validation) <= 35
    assert train != [t for t in rows if t in set(train)]  # hash order, so that sources mix
    # more documents move none that were there
    (tmp_path / "more").mkdir()
    quiet(write_jsonl(tmp_path / "more/a.jsonl", texts(300)), tmp_path / "out2", validation_fraction=0.1)
    assert set(validation) <= set(read_back(tmp_path / "out2", "validation")) and few["split_by"] == "document"


def test_a_repeated_text_is_never_on_both_sides(tmp_path):
    rows = texts(40) * 5
    quiet(write_jsonl(tmp_path / "a.jsonl", rows), tmp_path / "out", validation_fraction=0.3)
    train, validation = (read_back(tmp_path / "out", s) for s in ("train", "validation"))
    assert len(train) + len(validation) == 200 and validation and not set(train) & set(validation)


@pytest.mark.parametrize("fraction", [1e-9, 1 - 1e-9])
def test_each_side_has_a_document(tmp_path, fraction):
    source = write_jsonl(tmp_path / "a.jsonl", ["one", "two"])
    manifest = quiet(source, tmp_path / "out", validation_fraction=fraction)
    assert [s["documents"] for s in manifest["splits"].values()] == [1, 1]


def test_bpe_sees_train_documents_only(tmp_path):
    source = write_jsonl(tmp_path / "a.jsonl", [f"{i} " + "common words " * 9 for i in range(40)])
    quiet(source, tmp_path / "plain", validation_fraction=0.1)
    held_out = read_back(tmp_path / "plain", "validation")[0]
    rows = [f"{i} " + "common words " * 9 for i in range(40)]
    rows[rows.index(held_out)] = "zqzqzq " * 500  # the same line, so the same side
    quiet(write_jsonl(tmp_path / "a.jsonl", rows), tmp_path / "out", tokenizer="bpe", validation_fraction=0.1)
    assert "zqzqzq " * 500 in read_back(tmp_path / "out", "validation")
    assert "zq" not in (tmp_path / "out/tokenizer.json").read_text().replace('"z"', "")


def test_one_missing_or_damaged_shard_is_rewritten_alone(tmp_path):
    source = write_jsonl(tmp_path / "a.jsonl", texts())
    out = tmp_path / "out"
    first = quiet(source, out, tokenizer="bpe", vocab_size=300, shard_tokens=3000)
    before = content(out)
    for damage in ("delete", "flip", "receipt", "index"):
        for path in out.iterdir():
            os.utime(path, (1, 1))
        (out / "manifest.json").unlink()
        victim = out / "train-00001.bin"
        if damage == "delete":
            victim.unlink()
        elif damage == "flip":
            data = bytearray(victim.read_bytes())
            data[7] ^= 1
            victim.write_bytes(data)
        else:
            (out / f"train-00001.{damage.replace('index', 'idx')}.{'npy' if damage == 'index' else 'json'}").unlink()
        assert quiet(source, out, tokenizer="bpe", vocab_size=300, shard_tokens=3000) == first
        assert content(out) == before
        rewritten = {p.name for p in out.iterdir() if p.stat().st_mtime > 1}
        assert {n.split(".")[0] for n in rewritten if not n.startswith("tokenizer")} == {
            "train-00001",
            "manifest",
            "sources",
        }


def test_finished_work_returns_at_once_and_a_lost_shard_is_noticed(tmp_path, monkeypatch):
    source = write_jsonl(tmp_path / "a.jsonl", texts())
    first = quiet(source, tmp_path / "out")
    with monkeypatch.context() as m:
        m.setattr(module, "make", lambda *_: pytest.fail("worked again"))
        assert quiet(source, tmp_path / "out", workers=2) == first
    (tmp_path / "out/validation-00000.bin").unlink()
    assert quiet(source, tmp_path / "out") == first and (tmp_path / "out/validation-00000.bin").exists()


def test_kill_9_then_the_same_command(tmp_path):
    source = write_jsonl(tmp_path / "a.jsonl", texts(2000))
    out = tmp_path / "out"
    # every shard takes a moment, so that the kill lands between two
    script = (
        "import time\nfrom bigmodel.prepare import folder\nfrom bigmodel.prepare.prepare import prepare\n"
        "move = folder.move\ndef slow(a, b):\n    time.sleep(0.05)\n    move(a, b)\nfolder.move = slow\n"
        f"prepare({source!r}, {str(out)!r}, workers=1, shard_tokens=20000, progress=False)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT)
    deadline = time.time() + 60
    while len(list(out.glob("*.receipt.json"))) < 3 and time.time() < deadline and child.poll() is None:
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    kept = {p.name: p.stat().st_mtime_ns for p in out.glob("*.receipt.json")}
    assert len(kept) >= 3 and not (out / "manifest.json").exists()
    resumed = quiet(source, out, workers=2, shard_tokens=20000)
    assert all((out / name).stat().st_mtime_ns == when for name, when in kept.items())
    assert resumed == quiet(source, tmp_path / "clean", workers=1, shard_tokens=20000)
    assert content(out) == content(tmp_path / "clean")


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_an_interrupted_attempt_on_other_texts_is_not_reused(tmp_path, kind):
    rows = texts()
    out = tmp_path / "out"
    quiet(write_jsonl(tmp_path / "a.jsonl", rows), out, tokenizer=kind, vocab_size=300)
    (out / "manifest.json").unlink()
    source = write_jsonl(tmp_path / "a.jsonl", [t.swapcase() for t in rows])  # same ids, same sizes
    again = quiet(source, out, tokenizer=kind, vocab_size=300)
    assert again == quiet(source, tmp_path / "clean", tokenizer=kind, vocab_size=300)
    assert content(out) == content(tmp_path / "clean")


def test_stale_shards_of_another_attempt_are_removed(tmp_path):
    source = write_jsonl(tmp_path / "a.jsonl", texts())
    quiet(source, tmp_path / "out", shard_tokens=1000)
    (tmp_path / "out/manifest.json").unlink()
    (tmp_path / "out/notes.txt").write_text("mine")
    quiet(source, tmp_path / "out")
    names = {p.name for p in (tmp_path / "out").glob("*.bin")}
    assert names == {"train-00000.bin", "validation-00000.bin"} and (tmp_path / "out/notes.txt").exists()


def test_remote_folders_are_written_by_copy(tmp_path, monkeypatch):
    source = write_jsonl(tmp_path / "a.jsonl", texts())
    monkeypatch.setattr(folder, "is_local", lambda path: False)
    there = quiet(source, tmp_path / "remote", workers=1, tokenizer="bpe", vocab_size=300)
    monkeypatch.undo()
    assert there == quiet(source, tmp_path / "local", workers=1, tokenizer="bpe", vocab_size=300)
    assert content(tmp_path / "remote") == content(tmp_path / "local")


# ------------------------------------------------------------------------------------- readers


def test_all_formats_give_the_same_documents(tmp_path):
    rows = texts(30)
    lines = "".join(json.dumps({"body": t}) + "\n" for t in rows).encode()
    half = len(lines) // 2
    compress = zstandard.ZstdCompressor().compress
    files = {
        "a.jsonl": lines,
        "a.jsonl.gz": gzip.compress(lines[:half]) + gzip.compress(lines[half:]),  # two members
        "a.jsonl.zst": compress(lines[:half]) + compress(lines[half:]),  # two frames
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    pq.write_table(pa.table({"body": rows, "n": list(range(30))}), tmp_path / "a.parquet", row_group_size=7)
    for name in [*files, "a.parquet"]:
        _, _, found = documents.open_source(str(tmp_path / name), "body", formats.Found())
        assert [t for _, t in found] == rows
        quiet(tmp_path / name, tmp_path / "out" / name, text_key="body")
        assert sorted(read_back(tmp_path / "out" / name)) == sorted(rows)


def test_folder_of_text_files(tmp_path):
    books = tmp_path / "books"
    (books / "deep/.hidden").mkdir(parents=True)
    (books / "a.txt").write_bytes(b"\xef\xbb\xbf" + ENGLISH.encode())  # a byte order mark isn't text
    (books / "deep/b.txt.gz").write_bytes(gzip.compress(CHINESE.encode()))
    (books / "deep/c.txt.zst").write_bytes(zstandard.ZstdCompressor().compress(b"third"))
    (books / "deep/.hidden/d.txt").write_text("hidden")
    (books / "e.pdf").write_text("not read")
    _, _, found = documents.open_source(str(books), "text", formats.Found())
    assert list(found) == [("a.txt", ENGLISH), ("deep/b.txt.gz", CHINESE), ("deep/c.txt.zst", "third")]
    manifest = quiet(books, tmp_path / "out")
    books.rename(tmp_path / "moved")  # ids are relative: the folder's place changes no byte
    assert quiet(tmp_path / "moved", tmp_path / "out2")["hash"] == manifest["hash"]


@pytest.mark.parametrize("text", ["".join(texts(900)), CHINESE * 30, "x" * 5000, "word " * 900, "一" * 900, "ab"])
def test_a_single_document_is_split_into_pieces(tmp_path, text):
    (tmp_path / "a.txt").write_bytes(text.encode())
    if text == "ab":
        with pytest.raises(UsageError, match="fewer than two"):
            quiet(tmp_path / "a.txt", tmp_path / "out")
        return
    pieces = list(documents.pieces("a", text, documents.piece_size(len(text.encode()))))
    assert "".join(t for _, t in pieces) == text and len({i for i, _ in pieces}) == len(pieces) >= 2
    assert max(len(t.encode()) for _, t in pieces) <= documents.PIECE
    if len(set(t for _, t in pieces)) >= 2:
        manifest = quiet(tmp_path / "a.txt", tmp_path / "out")
        assert manifest["split_by"].startswith("piece")
        assert sorted(read_back(tmp_path / "out")) == sorted(t for _, t in pieces)


def test_hugging_face_datasets(tmp_path, monkeypatch):
    class Rows(list):
        info = types.SimpleNamespace(version="1.2.3", license="cc0")

    def load_dataset(name, config, split, streaming):
        if name != "me/some":
            raise ConnectionError("no\nroute")
        assert (config, split, streaming) == ("en", "train", True)
        return Rows({"text": t} for t in texts())

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    manifest = quiet("hf:me/some:en", tmp_path / "out")
    assert manifest["name"] == "some" and manifest["sources"][0]["version"] == "1.2.3"
    assert sorted(read_back(tmp_path / "out")) == sorted(texts())
    one_line("can't open 'hf:me/other'.*no route", lambda: quiet("hf:me/other", tmp_path / "o2"))
    one_line("has no string column 'txt'.*'text'", lambda: quiet("hf:me/some:en", tmp_path / "o3", text_key="txt"))
    monkeypatch.setitem(sys.modules, "datasets", None)
    one_line("pip install datasets", lambda: quiet("hf:me/some", tmp_path / "o4"))


def test_imports_are_light():
    script = (
        "import sys, bigmodel.prepare\nassert not [m for m in sys.modules if m.startswith('bigmodel.prepare.')]\n"
        "import bigmodel.prepare.prepare\n"
        "heavy = {'jax', 'flax', 'tokenizers', 'pyarrow', 'datasets', 'rich', 'zstandard'} & set(sys.modules)\n"
        "light = {f'bigmodel.{name}' for name in ('config', 'errors', 'files')}\n"
        "others = {m for m in sys.modules if m.startswith('bigmodel.') and '.prepare' not in m} - light\n"
        "assert not heavy | others, heavy | others"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)


@pytest.mark.network
def test_gpt2_has_the_published_ids(tmp_path):
    source = write_jsonl(tmp_path / "a.jsonl", texts())
    manifest = quiet(source, tmp_path / "out", tokenizer="gpt2")
    expected = {"kind": "gpt2", "vocab_size": 50257, "separator": 50256, "file": "tokenizer.json"}
    assert manifest["tokenizer"] == expected and manifest["dtype"] == "uint16"
    assert tokenizers.load(tmp_path / "out").encode("Hello world") == [15496, 995]
    assert sorted(read_back(tmp_path / "out")) == sorted(texts())
