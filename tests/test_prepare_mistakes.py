"""prepare: a mistake is one line, and leaves nothing behind."""

import errno
import gzip
import io
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from etils import epath
from test_prepare import ENGLISH, one_line, quiet, texts, write_jsonl

from bigmodel.errors import Busy, Retry
from bigmodel.prepare import folder
from bigmodel.prepare import tokenizer as tokenizers

GOOD = b'{"text": "fine"}\n'
PARQUET = io.BytesIO()
pq.write_table(pa.table({"body": ["a", "b"], "n": [1, 2]}), PARQUET)
MALFORMED = [
    ("a.jsonl", b'{"txt": "x"}\n{"a": 1}\n', r"a.jsonl': no record has a key 'text' \(did you mean 'txt'"),
    ("a.jsonl", GOOD + b"{oops\n", "a.jsonl' line 2 isn't JSON"),
    ("a.jsonl", GOOD + b"[1]\n", "line 2 isn't a JSON object but a list"),
    ("a.jsonl", GOOD + b'{"text": 7}\n', "line 2: 'text' is a int, not a string"),
    ("a.jsonl", GOOD + b'{"text": "\\ud800"}\n', "line 2: 'text' holds half a surrogate"),
    ("a.jsonl", GOOD + b'{"text": "\xff"}\n', "a.jsonl' isn't UTF-8: byte 27 is 0xff"),
    ("a.jsonl", GOOD + b"[" * 100_000, "line 2 isn't"),
    ("a.jsonl", b"\n\n", "holds no text"),
    ("a.jsonl", b'{"text": " "}\n' * 9, "holds no text"),
    ("a.jsonl", GOOD * 9, "fewer than two different documents"),
    ("a.txt", b"", "holds no text"),
    ("a.txt", b"good \xe4\xbd\xa0 bad \xe4\xbd", "a.txt' isn't UTF-8: byte 13 is 0xe4"),
    ("a.txt.gz", b"not gzip", "a.txt.gz' is damaged"),
    ("a.txt.gz", gzip.compress(ENGLISH.encode())[:-9], "a.txt.gz' is damaged"),
    ("a.jsonl.gz", gzip.compress(GOOD * 999)[:40], "a.jsonl.gz' is damaged"),
    ("a.txt.zst", b"not zstd at all", "a.txt.zst' is damaged"),
    ("a.txt.zst", zstandard.ZstdCompressor().compress(os.urandom(5000))[:-3], "ends inside a zstd frame"),
    ("a.parquet", b"PAR1 nothing", "a.parquet' isn't a readable parquet file"),
    ("a.parquet", PARQUET.getvalue(), r"has no column 'text'; choose with --text-key"),
    ("a.pdf", b"x", "its name should end in .txt"),
    ("folder/a.pdf", b"x", "holds no .txt"),
]


# Names of their own: a gzip header holds the second it was made in, and test workers must agree on every name.
@pytest.mark.parametrize("name,data,match", MALFORMED, ids=[f"{name}: {match}" for name, _, match in MALFORMED])
def test_malformed_input_is_one_line(tmp_path, name, data, match):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    one_line(match, lambda: quiet(path.parent if "/" in name else path, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments,match",
    [
        ({"source": "mobydick"}, r"no corpus, file or folder 'mobydick' \(did you mean 'moby-dick'"),
        ({"source": ""}, "prepare needs a corpus"),
        ({"source": "hf:a b"}, "expected hf:owner/name"),
        ({"tokenizer": "byte"}, r"neither bytes, bpe, gpt2, clip .*did you mean 'bytes'"),
        ({"tokenizer": "bpe", "vocab_size": 256}, "bpe needs 257"),
        ({"tokenizer": __file__}, "isn't a tokenizer.json"),
        ({"validation_fraction": 0}, r"validation_fraction=.*: must be in \(0, 1\)"),
        ({"validation_fraction": float("nan")}, r"validation_fraction=.*: must be in \(0, 1\)"),
        ({"shard_tokens": 0}, "shard_tokens=0: must be at least 1"),
        ({"workers": -1}, "workers=-1: must be at least 0"),
    ],
)
def test_wrong_arguments_are_one_line(tmp_path, arguments, match):
    source = write_jsonl(tmp_path / "a.jsonl", texts())
    one_line(match, lambda: quiet(**{"source": source, "out": tmp_path / "out", **arguments}))
    assert not (tmp_path / "out").exists()


def test_another_preparation_is_not_overwritten(tmp_path):
    source = write_jsonl(tmp_path / "a.jsonl", texts())
    quiet(source, tmp_path / "out")
    changed = {"tokenizer": "bpe", "validation_fraction": 0.1, "shard_tokens": 9, "text_key": "b"}
    for key, value in changed.items():
        one_line(f"was prepared with {key}=", lambda k=key, v=value: quiet(source, tmp_path / "out", **{k: v}))
    write_jsonl(tmp_path / "a.jsonl", texts(61))
    one_line("changed since", lambda: quiet(source, tmp_path / "out"))
    (tmp_path / "out/manifest.json").write_text("[]")
    one_line("isn't a manifest", lambda: quiet(source, tmp_path / "out"))
    (tmp_path / "file").write_text("")
    one_line("can't write", lambda: quiet(source, tmp_path / "file"))
    one_line("no prepared data", lambda: tokenizers.load(tmp_path / "nowhere"))


def test_one_preparation_at_a_time(tmp_path):
    source = write_jsonl(tmp_path / "a.jsonl", texts())
    with (
        folder.working(epath.Path(tmp_path / "out")),
        pytest.raises(Busy, match=r"another prepare is writing .*; the same command continues"),
    ):
        quiet(source, tmp_path / "out")
    assert quiet(source, tmp_path / "out")["format"] == 1


def test_full_disk_can_be_retried(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    source = write_jsonl(tmp_path / "a.jsonl", texts())
    with monkeypatch.context() as m:
        m.setattr(folder, "move", full)
        with pytest.raises(Retry, match="disk full") as caught:
            quiet(source, tmp_path / "out")
        assert "\n" not in str(caught.value)
    assert quiet(source, tmp_path / "out")["splits"]["train"]["tokens"]
