"""What is read of a source, what is left out and said, and how a changed one is noticed."""

import gzip
import hashlib
import json
import os
import struct
import sys
import tracemalloc
import types

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from conftest import bigmodel
from test_prepare import CHINESE, ENGLISH, one_line, read_back, texts, write_jsonl
from test_prepare import quiet as prepare

from bigmodel.prepare import documents, formats, tokenizer


def quiet(source, out, **arguments):
    return prepare(source, out, workers=1, **arguments)


def pack(data, **options):
    """A .zst file as a stream writes it: without its size, so that the window is as large as it is asked for."""
    parameters = zstandard.ZstdCompressionParameters(**options)
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    return packer.compress(data) + packer.flush()


def said(capsys):
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("bigmodel: ")]


# ------------------------------------------------------------------------------ what changed since


def test_an_edit_that_keeps_sizes_is_noticed(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for i, text in enumerate(texts(20)):
        (folder / f"{i}.txt").write_text(text)
    first = quiet(folder, tmp_path / "out")
    (folder / "6.txt").write_text((folder / "6.txt").read_text().swapcase())
    one_line(r"texts' changed since .*/out' was prepared \('6.txt'\); choose", lambda: quiet(folder, tmp_path / "out"))
    assert quiet(folder, tmp_path / "other")["hash"] != first["hash"]
    (folder / "6.txt").unlink()
    (folder / "a.txt").write_text("another")
    one_line(r"\('6.txt' and 1 more\)", lambda: quiet(folder, tmp_path / "out"))


def test_files_are_not_read_again_unless_their_time_changed(tmp_path, monkeypatch):
    source = write_jsonl(tmp_path / "a.jsonl", texts())
    first = quiet(source, tmp_path / "out")
    os.utime(source, (1, 1))  # copied since: the same contents
    assert quiet(source, tmp_path / "out") == first
    quiet(write_jsonl(tmp_path / "b.jsonl", texts()), tmp_path / "out2")
    with monkeypatch.context() as patch:
        patch.setattr(documents, "digest", lambda path: pytest.fail("read again"))
        quiet(tmp_path / "b.jsonl", tmp_path / "out2")
    stat = os.stat(tmp_path / "b.jsonl")
    write_jsonl(tmp_path / "b.jsonl", [text.swapcase() for text in texts()])
    os.utime(tmp_path / "b.jsonl", ns=(stat.st_atime_ns, stat.st_mtime_ns))  # behind our back
    quiet(tmp_path / "b.jsonl", tmp_path / "out2")
    one_line("changed since", lambda: quiet(tmp_path / "b.jsonl", tmp_path / "out2", verify=True))


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer"])
def test_another_tokenizer_of_the_same_name_is_noticed(tmp_path, name):
    source = write_jsonl(tmp_path / "a.jsonl", texts())
    path = tmp_path / name
    path.write_text(tokenizer.train(texts(), 300).content)
    first = quiet(source, tmp_path / "out", tokenizer=str(path))
    assert quiet(source, tmp_path / "out", tokenizer=str(path)) == first
    path.write_text(tokenizer.train(texts(), 400).content)
    one_line("changed since .*was prepared", lambda: quiet(source, tmp_path / "out", tokenizer=str(path)))
    path.unlink()
    one_line("nor a tokenizer.json file", lambda: quiet(source, tmp_path / "out", tokenizer=str(path)))


def test_a_lost_list_of_files_does_not_let_another_source_in(tmp_path):
    source = write_jsonl(tmp_path / "a.jsonl", texts())
    quiet(source, tmp_path / "out")
    before = (tmp_path / "out/manifest.json").read_bytes()
    (tmp_path / "out/sources.json").unlink()
    (tmp_path / "out/train-00000.bin").unlink()
    write_jsonl(tmp_path / "a.jsonl", [text.swapcase() for text in texts()])
    one_line("changed since", lambda: quiet(source, tmp_path / "out"))
    assert (tmp_path / "out/manifest.json").read_bytes() == before  # a refusal loses nothing
    write_jsonl(tmp_path / "a.jsonl", texts())
    quiet(source, tmp_path / "out")
    assert sorted(read_back(tmp_path / "out")) == sorted(texts())


def test_folders_prepared_before_there_were_digests_stay_usable(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for i, text in enumerate(texts(20)):
        (folder / f"{i}.txt").write_text(text)
    new = quiet(folder, tmp_path / "out")
    (folder / "README.md").write_text("not read then")
    listing = "5fc1dbe3c3b9bd2f0ee20bbe0a8ba4d1e0bd1d0f6ff4fb6d6a2b8b61c2a9d9f0"
    old = {k: v for k, v in new.items() if k not in ("crc32", "files", "left_out")}
    old["sources"] = [{**new["sources"][0], "sha256": "", "listing": listing}]
    (tmp_path / "out/sources.json").unlink()
    path = tmp_path / "out/manifest.json"
    path.write_text(json.dumps(old))
    one_line("changed since", lambda: quiet(folder, tmp_path / "out"))
    # names and sizes, as the version that wrote this format hashed them
    rows = sorted((p.name, p.stat().st_size) for p in folder.glob("*.txt"))
    old["sources"][0]["listing"] = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    path.write_text(json.dumps(old))
    assert quiet(folder, tmp_path / "out") == old
    shard = tmp_path / "out/train-00000.bin"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1])
    assert quiet(folder, tmp_path / "out")["hash"] == old["hash"]  # made again, and by the rules of then
    assert shard.read_bytes() == whole and quiet(folder, tmp_path / "out")["hash"] == old["hash"]
    (folder / "20.txt").write_text("new")
    one_line("changed since", lambda: quiet(folder, tmp_path / "out"))


# ------------------------------------------------------------------------------- what is left out


def test_a_folder_is_read_as_far_as_it_can_be_and_the_rest_is_said(tmp_path, capsys):
    folder, lines = tmp_path / "mixed", [json.dumps({"text": text}) for text in texts(9)]
    (folder / "deep").mkdir(parents=True)
    (folder / "README.txt").write_text("a readme of some words")
    (folder / "a.json.gz").write_bytes(gzip.compress("\n".join(lines[:3]).encode()))  # JSON lines
    (folder / "b.json.gz").write_bytes(gzip.compress(f"[\n{', '.join(lines[3:6])}\n]".encode()))
    (folder / "deep/C.JSON.GZ").write_bytes(gzip.compress(json.dumps(json.loads(lines[6]), indent=2).encode()))
    (folder / "D.TXT").write_text(texts(9)[7])
    (folder / "e.md").write_text(texts(9)[8])
    (folder / "f.pdf").write_bytes(b"%PDF")
    (folder / "g.docx").write_bytes(b"PK")
    (folder / ".hidden").write_text("hidden")
    (folder / "info.json").write_text('{"splits": ["train"], "licence": null}')
    os.symlink(folder / "gone.txt", folder / "h.txt")
    manifest = quiet(folder, tmp_path / "out")
    assert sorted(read_back(tmp_path / "out")) == sorted([*texts(9), "a readme of some words"])
    (line,) = [line for line in said(capsys) if "left out" in line]
    for part in (
        "files of other kinds: 2 (first: 'f.pdf')",
        "hidden: 1 (first: '.hidden')",
        "not a file: 1 (first: 'h.txt')",
        "records without 'text': 1 (first: info.json:1)",
    ):
        assert part in line and part in manifest["left_out"]


def test_folders_that_are_linked_are_read_once_and_without_end(tmp_path, capsys):
    folder, elsewhere = tmp_path / "a", tmp_path / "elsewhere"
    (folder / "z").mkdir(parents=True)
    elsewhere.mkdir()
    (folder / "z/one.txt").write_text(ENGLISH)
    (elsewhere / "two.txt").write_text(CHINESE)
    os.symlink(elsewhere, folder / "link")
    os.symlink(folder, elsewhere / "back")  # in a circle
    os.symlink(folder / "z", folder / "another")  # comes before z, whose ids must not change by it
    _, _, found = documents.open_source(str(folder), "text", seen := formats.Found())
    assert list(found) == [("link/two.txt", CHINESE), ("z/one.txt", ENGLISH)]
    assert seen.left_out == {"folders read under another name": (2, "'another'")}


def nothing(rows):
    class Rows(list):
        info = types.SimpleNamespace(version="1", license="cc0")

    return types.SimpleNamespace(load_dataset=lambda *_, **__: Rows({"text": row} for row in rows))


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet", "hf"])
def test_a_text_that_is_null_is_left_out_in_every_format(tmp_path, kind, capsys, monkeypatch):
    rows = [*texts(8), None, " ", None]
    path = tmp_path / f"a.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps({"text": row} if row != " " else {"text": " "}) + "\n" for row in rows))
    elif kind == "json":
        path.write_text(json.dumps([{"text": row} for row in rows]))
    elif kind == "parquet":
        pq.write_table(pa.table({"text": rows}), path)
    else:
        monkeypatch.setitem(sys.modules, "datasets", nothing(rows))
        path = "hf:some/thing"
    manifest = quiet(path, tmp_path / "out")
    assert sorted(read_back(tmp_path / "out")) == sorted(texts(8))
    assert "records without 'text': 2 (first: " in manifest["left_out"]
    assert "empty texts: 1 (first: " in manifest["left_out"]
    assert [manifest["left_out"] in line for line in said(capsys)].count(True) == 1


def test_a_record_without_the_key_is_left_out_and_its_like_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"texts": "b"}\n{"text": "c"}\n')
    manifest = quiet(tmp_path / "a.jsonl", tmp_path / "out")
    assert "records without 'text': 1 (first: a.jsonl:2 (did you mean 'texts'?))" in manifest["left_out"]


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet", "hf"])
def test_a_text_that_is_no_string_is_an_error_in_every_format(tmp_path, kind, monkeypatch):
    rows = [7, 8]
    path = tmp_path / f"a.{kind}"
    if kind == "parquet":
        pq.write_table(pa.table({"text": rows}), path)
    elif kind == "hf":
        monkeypatch.setitem(sys.modules, "datasets", nothing(rows))
        path = "hf:some/thing"
    else:
        path.write_text("\n".join(json.dumps({"text": row}) for row in rows))
    one_line("not a? ?string|no string column", lambda: quiet(path, tmp_path / "out"))


def test_categories_of_pandas_are_text(tmp_path):
    column = pa.array(texts(6)).dictionary_encode()
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    quiet(tmp_path / "a.parquet", tmp_path / "out")
    assert sorted(read_back(tmp_path / "out")) == sorted(texts(6))


@pytest.mark.parametrize(
    "data, says",
    [
        (b'[{"text": "a"}, 3]', "item 2 isn't a JSON object but a int"),
        (b'{"text": "a"\n', "isn't JSON"),
        (b"[" * 100_000, "isn't usable JSON"),
        (b'[{"text": 1' + b"0" * 5000 + b"}]", "isn't usable JSON"),
        (b'[{"txt": "a"}, {"txt": "b"}]', r"no record has a key 'text' \(did you mean 'txt'"),
    ],
)
def test_a_wrong_json_file_is_one_line(tmp_path, data, says):
    (tmp_path / "a.json").write_bytes(data)
    one_line(says, lambda: quiet(tmp_path / "a.json", tmp_path / "out"))


# --------------------------------------------------------------------------------------- the split


def test_validation_is_never_most_of_the_text_unasked(tmp_path, capsys):
    """A book and two notes: by documents alone the book would be validation."""
    folder = tmp_path / "texts"
    folder.mkdir()
    book = "\n\n".join(f"Chapter {i}. " + "It was a long and dull day in the harbour. " * 20 for i in range(100))
    ends = {"note-a.txt": "a short note", "note-b.txt": "another"}
    for k in range(99):  # a name whose hash is in validation, where those of the notes are not
        for name, text in {f"book{k}.txt": book, **ends}.items():
            (folder / name).write_text(text)
        by_document = {s: sum(row) for s, row in sizes(folder).items()}
        if by_document["validation"] > by_document["train"]:
            break
        (folder / f"book{k}.txt").unlink()
    manifest = quiet(folder, tmp_path / "out")
    splits = manifest["splits"]
    assert 0 < splits["validation"]["bytes"] < 0.15 * splits["train"]["bytes"]
    assert sum(row["bytes"] for row in splits.values()) == sum(p.stat().st_size for p in folder.iterdir())
    assert manifest["split_by"].startswith("document, a long one by pieces")
    assert any("long documents are split into pieces" in line for line in said(capsys))
    joined = "".join(sorted(read_back(tmp_path / "out")))
    assert len(joined) == len(book) + 19 and "a short note" in read_back(tmp_path / "out")
    assert quiet(folder, tmp_path / "other", tokenizer="bpe", vocab_size=300)["split_by"] == manifest["split_by"]


def sizes(folder, fraction=0.02):
    """Bytes of the documents of each side, by the documented rule: a hash of the id."""
    found = {"train": [], "validation": []}
    for path in sorted(folder.iterdir()):
        place = int.from_bytes(hashlib.sha256(path.name.encode()).digest()[:8], "big") / 2**64
        found["validation" if place < fraction else "train"].append(path.stat().st_size)
    return found


def test_a_split_far_from_what_was_asked_is_said(tmp_path, capsys):
    quiet(write_jsonl(tmp_path / "a.jsonl", texts(8)), tmp_path / "out", validation_fraction=1e-9)
    assert any("of the text, not" in line for line in said(capsys))
    quiet(write_jsonl(tmp_path / "b.jsonl", texts(400)), tmp_path / "out2", validation_fraction=0.1)
    assert not said(capsys)


def test_asked_for_validation_may_be_most_of_the_text(tmp_path):
    manifest = quiet(write_jsonl(tmp_path / "a.jsonl", texts(40)), tmp_path / "out", validation_fraction=0.9)
    assert manifest["split_by"] == "document"
    assert manifest["splits"]["validation"]["bytes"] > manifest["splits"]["train"]["bytes"]


# -------------------------------------------------------------------------- what isn't text, bombs


UTF16 = ENGLISH.replace("“", '"').replace("”", '"').replace("é", "e").encode("utf-16-le")  # valid UTF-8, half NUL


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.txt.gz", "a.txt.zst", "a.jsonl", "a.json"])
def test_utf16_without_a_mark_is_no_text(tmp_path, name):
    data = {"jsonl": '{"text": "a"}\n', "json": '[{"text": "a"}]'}.get(name[2:], "").encode("utf-16-le") or UTF16
    data = {"gz": gzip.compress, "zst": zstandard.compress}.get(name.rsplit(".")[-1], bytes)(data)
    (tmp_path / name).write_bytes(data)
    one_line(rf"{name}' isn't text in UTF-8 \(byte 1 is 0\)", lambda: quiet(tmp_path / name, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
@pytest.mark.parametrize("text", [UTF16.decode(), "".join(map(chr, range(1, 9))) * 9], ids=["UTF-16", "control codes"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_binary_records_are_no_text(tmp_path, name, text, kind):
    if name == "a.jsonl":
        write_jsonl(tmp_path / name, [text, *texts(3)])
    else:
        pq.write_table(pa.table({"text": [text, *texts(3)]}), tmp_path / name)
    one_line(
        rf"'{name}:1' isn't text: .* control codes", lambda: quiet(tmp_path / name, tmp_path / "out", tokenizer=kind)
    )


def test_colours_of_a_terminal_and_dropped_nul_are_text(tmp_path, capsys):
    rows = ["\x1b[31mred\x1b[0m and \x1b[1mbold\x1b[0m", "one\0two", "three\f four"]
    quiet(write_jsonl(tmp_path / "a.jsonl", rows), tmp_path / "out")
    assert sorted(read_back(tmp_path / "out")) == sorted([rows[0], "onetwo", rows[2]])
    assert any("NUL characters in texts: 1 (first: 'a.jsonl:2')" in line for line in said(capsys))


def zeros(size, kind):
    """Spaces, packed as tightly as the format can."""
    if kind == "gz":
        return gzip.compress(b" " * size)
    return pack(b" " * size, compression_level=19, window_log=23)


@pytest.mark.parametrize("name", ["a.txt.gz", "a.txt.zst", "a.jsonl.gz", "a.jsonl.zst", "a.json.gz", "a.MD.ZST"])
def test_a_decompression_bomb_is_refused_within_the_bound(tmp_path, monkeypatch, name):
    monkeypatch.setattr(formats, "FREE", 2**22)
    (tmp_path / name).write_bytes(zeros(2**27, name.rsplit(".")[-1].lower()))
    assert (tmp_path / name).stat().st_size < 2**18
    tracemalloc.start()
    try:
        one_line("unpacks to more than 200 times its size", lambda: quiet(tmp_path / name, tmp_path / "out"))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2**27  # of zstd 33 MB come out at once, and are joined
    assert not (tmp_path / "out").exists()


def test_many_small_lines_of_a_bomb_are_refused_too(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "FREE", 2**20)
    lines = b'{"text": "a"}\n' * 2**18
    (tmp_path / "a.jsonl.zst").write_bytes(pack(lines, compression_level=19, window_log=23))
    one_line("decompression bomb", lambda: quiet(tmp_path / "a.jsonl.zst", tmp_path / "out"))


@pytest.mark.parametrize("dictionary", [True, False])
def test_a_bomb_of_parquet_is_refused_within_the_bound(tmp_path, monkeypatch, dictionary):
    monkeypatch.setattr(formats, "FREE", 2**20)
    monkeypatch.setattr(formats, "DOCUMENT", 2**22)
    table, path = pa.table({"text": ["x" * 2**18] * 400, "n": range(400)}), tmp_path / "a.parquet"
    pq.write_table(table, path, compression="zstd", use_dictionary=dictionary)
    assert path.stat().st_size < 2**16
    del table
    before = pa.total_allocated_bytes()
    found = documents.open_source(str(path), "text", formats.Found())[2]
    held = [pa.total_allocated_bytes() - before]
    one_line("decompression bomb", lambda: held.extend(pa.total_allocated_bytes() - before for _ in found))
    assert max(held) < 2**25  # of 100 MB
    one_line("decompression bomb", lambda: quiet(path, tmp_path / "out"))


@pytest.mark.parametrize("name", ["a.txt.gz", "a.jsonl.gz", "a.json.gz"])
def test_a_document_has_a_longest_length(tmp_path, monkeypatch, name):
    monkeypatch.setattr(formats, "DOCUMENT", 5000)
    (tmp_path / name).write_bytes(gzip.compress(os.urandom(4000).hex().encode()))
    one_line("more than 5,000 bytes, the most that a document may have", lambda: quiet(tmp_path / name, tmp_path / "o"))


def test_text_that_packs_well_is_read(tmp_path):
    text = ENGLISH * 20_000  # 3.5 MB, 1,000 times its packed size
    (tmp_path / "a.txt.zst").write_bytes(zstandard.compress(text.encode()))
    assert (tmp_path / "a.txt.zst").stat().st_size * 200 < len(text)
    _, _, found = documents.open_source(str(tmp_path / "a.txt.zst"), "text", formats.Found())
    assert [t for _, t in found] == [text]


@pytest.mark.parametrize("log", [27, 28, 31])
def test_long_windows_are_read(tmp_path, log):
    (tmp_path / "a.txt.zst").write_bytes(pack(ENGLISH.encode(), window_log=log))
    _, _, found = documents.open_source(str(tmp_path / "a.txt.zst"), "text", formats.Found())
    assert [t for _, t in found] == [ENGLISH]


def test_a_window_beyond_the_limit_is_called_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "WINDOW", 2**20)
    (tmp_path / "a.txt.zst").write_bytes(pack(ENGLISH.encode(), window_log=24))
    one_line(
        "window of more than 1,048,576 bytes, which is the most", lambda: quiet(tmp_path / "a.txt.zst", tmp_path / "o")
    )
    (tmp_path / "b.txt.zst").write_bytes(b"(\xb5/\xfd" + struct.pack("<BB", 0, 0xFF) + bytes(9))
    monkeypatch.undo()
    one_line("b.txt.zst'", lambda: quiet(tmp_path / "b.txt.zst", tmp_path / "o"))


# ---------------------------------------------------------------------------------- odd paths


@pytest.mark.parametrize(
    "arguments",
    [
        ["a" * 300],
        ["a" * 3000],
        ["a/" * 1500],
        ["a/" * 2500],
        ["a.jsonl", "--out=" + "a" * 300],
        ["a.jsonl", "--out=" + "a/" * 2500],
        ["a.jsonl", "--tokenizer=" + "a" * 300],
        ["fashion-mnist", "--out=" + "a/" * 2500],
        ["spam", "--out=" + "a" * 300],
        ["minilm", "--out=" + "a" * 300],
    ],
    ids=lambda arguments: " ".join(a[:12] for a in arguments),
)
def test_a_path_that_no_file_can_have_is_one_line(tmp_path, arguments):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    done = bigmodel("prepare", *arguments, cwd=tmp_path, env={"BIGMODEL_CACHE": str(tmp_path / "cache")})
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and line.startswith("bigmodel: ") and len(line) < 400, line
    assert {p.name for p in tmp_path.iterdir()} <= {"a.jsonl"}
