"""Bytes of text in the windows that a loss was averaged over: as many as the texts have there, to the byte."""

import json
import time

import numpy as np
import pytest
import tokenizers
from test_prepare import CHINESE, quiet, texts, write_jsonl
from tokenizers import decoders, models, pre_tokenizers, trainers

from bigmodel import data
from bigmodel.data import text as module
from bigmodel.prepare import tokenizer as prepared

RARE = ["".join(chr(0x4E00 + (37 * i * j) % 20000) for j in range(9)) for i in range(80)]  # not tokens of their own
CHINESE_TEXTS = [f"{i}{CHINESE}{RARE[i]}" * (1 + i % 3) for i in range(80)]
TEXTS = {"mixed": [*texts(200), *RARE], "Chinese": CHINESE_TEXTS}
PLACES = ((1, 8), (0, 7), (0, 8), (3, 5), (7, 8), (0, 1), (4, 4))  # of windows of 7 tokens and the last target


def windows(root, seq_len=7, split="train"):
    source = data.source("text")
    cfg = source.get_config()
    cfg.name, cfg.seq_len = "out", seq_len
    return source.open_split(cfg, str(root), split)


def pieces(root, rows):
    """The bytes of each token of train, cut out of the texts: a character of a byte-level token stands for one byte."""
    folder = root / "out"
    manifest = json.loads((folder / "manifest.json").read_text())
    dtype = np.dtype(manifest["dtype"]).newbyteorder("<")
    ids = np.concatenate([np.fromfile(folder / s["file"], dtype) for s in manifest["splits"]["train"]["shards"]])
    sizes = np.ones(256, int)
    if manifest["tokenizer"]["file"]:
        vocabulary = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab()
        sizes = {i: len(token) for token, i in vocabulary.items()}
    left, found, document = {row.encode() for row in rows}, [], []
    decode = prepared.load(folder).decode
    for i in ids.tolist():
        if i != manifest["tokenizer"]["separator"]:
            document.append(i)
            continue
        rest = decode(document).encode()
        assert rest in left
        for token in document:
            found.append(rest[: sizes[token]])
            rest = rest[sizes[token] :]
        assert not rest
        found.append(b"")
        document = []
    return found


def check(root, rows, places=PLACES, seq_len=7):
    found, parts = windows(root, seq_len), pieces(root, rows)
    assert len(found) == (len(parts) - 1) // seq_len
    cut = 0
    for first, stop in places:
        for count in (0, 1, 5, len(found)):
            joined = [b"".join(parts[k * seq_len + first : k * seq_len + stop]) for k in range(count)]
            assert found.text_bytes(count, first, stop) == sum(map(len, joined))
            cut += sum("\ufffd" in part.decode(errors="replace") for part in joined)
    return cut


@pytest.mark.parametrize("rows", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("size", [0, 512, 8192], ids=["bytes", "bpe of 512", "bpe of 8192"])
def test_bytes_of_windows_are_those_of_their_texts(tmp_path, monkeypatch, size, rows):
    kind = {"tokenizer": "bpe", "vocab_size": size} if size else {}
    quiet(write_jsonl(tmp_path / "a.jsonl", rows), tmp_path / "out", shard_tokens=2000, workers=1, **kind)
    assert len(list((tmp_path / "out").glob("train-*.bin"))) > 2
    cut = check(tmp_path, rows)
    assert cut or size == 8192  # characters cut in the middle are among them; 8,192 entries hold all of these whole
    monkeypatch.setattr(module, "CHUNK", 40)  # as of a split larger than what is counted at once
    check(tmp_path, rows)


@pytest.mark.network
@pytest.mark.parametrize("rows", TEXTS.values(), ids=TEXTS)
def test_bytes_of_windows_of_gpt2(tmp_path, rows):
    quiet(write_jsonl(tmp_path / "a.jsonl", rows), tmp_path / "out", tokenizer="gpt2", workers=1)
    assert check(tmp_path, rows)  # GPT-2 has few Chinese characters whole


def made(model, trainer, pre, decoder, rows, path):
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer, tokenizer.decoder = pre, decoder
    tokenizer.train_from_iterator(rows, trainer)
    tokenizer.save(str(path))
    return str(path)


def metaspace(path, rows):
    """As SentencePiece writes spaces: one more in front of a document, which its text doesn't have."""
    trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=["</s>", "<unk>"], unk_token="<unk>")
    return made(models.Unigram(), trainer, pre_tokenizers.Metaspace(), decoders.Metaspace(), rows, path)


def wordpiece(path, rows):
    """White space is lost."""
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=["[SEP]", "[UNK]"])
    pre, decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    return made(models.WordPiece(unk_token="[UNK]"), trainer, pre, decoder, rows, path)


def prefixed(path, rows):
    """A space more in front of each document."""
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    return made(
        models.BPE(), trainer, pre_tokenizers.ByteLevel(add_prefix_space=True), decoders.ByteLevel(), rows, path
    )


def test_a_token_may_be_a_byte_shorter_at_the_start_of_a_document(tmp_path):
    rows = [f"{i} words, and {'other ' * (i % 4)}words of no note" for i in range(90)]
    file = metaspace(tmp_path / "file.json", rows)
    manifest = quiet(write_jsonl(tmp_path / "a.jsonl", rows), tmp_path / "out", tokenizer=file, workers=1)
    found, train = windows(tmp_path, 1), manifest["splits"]["train"]
    count = len(found)
    assert found.text_bytes(count, 0, 1) == train["bytes"]  # the last token is a separator
    decode = prepared.load(tmp_path / "out").decode
    ids = found.tokens(0, count + 1)
    end = int(np.flatnonzero(ids == found.separator)[3])
    assert found.text_bytes(end, 0, 1) == sum(len(decode(part)) for part in np.split(ids[:end], [
        int(i) for i in np.flatnonzero(ids[:end] == found.separator)]))  # fmt: skip


@pytest.mark.parametrize("make", [wordpiece, prefixed])
def test_no_bytes_where_tokens_are_not_the_text(tmp_path, make):
    rows = texts(60)
    file = make(tmp_path / "file.json", rows)
    quiet(write_jsonl(tmp_path / "a.jsonl", rows), tmp_path / "out", tokenizer=file, workers=1)
    assert windows(tmp_path).text_bytes(2, 1, 8) is None


def test_no_bytes_where_the_manifest_counts_others(tmp_path):
    quiet(write_jsonl(tmp_path / "a.jsonl", texts(60)), tmp_path / "out", workers=1)
    path = tmp_path / "out/manifest.json"
    manifest = json.loads(path.read_text())
    manifest.pop("crc32", None)
    manifest["splits"]["train"]["bytes"] += 1
    path.write_text(json.dumps(manifest))
    assert windows(tmp_path).text_bytes(2, 1, 8) is None
    assert windows(tmp_path, split="validation").text_bytes(2, 1, 8)


def test_bytes_are_counted_as_fast_as_data_is_read(tmp_path):
    quiet(write_jsonl(tmp_path / "a.jsonl", texts(60)), tmp_path / "out", workers=1)
    found = windows(tmp_path, 256)
    found.shards = [np.resize(found.shards[0], 2**24)]
    found.ends, found.bytes = np.array([2**24]), int((found.shards[0] != 0).sum())
    found.count = (2**24 - 1) // 256
    begin = time.process_time()
    assert found.text_bytes(len(found), 1, 257) > 2**23
    assert time.process_time() - begin < 5  # 0.3 s
