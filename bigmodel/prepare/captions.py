"""Pictures with captions: `bigmodel prepare captioned`, or a folder with captions.jsonl. In OUT, for each split:

    SPLIT-images.npy  uint8, pictures x size x size x 3
    SPLIT.npz         of each pair of a picture and a caption: tokens (`text`, `text_ends`), `picture`, `label`,
                      `language`
    SPLIT.jsonl       the same as text
    tokenizer.json    where the tokenizer isn't bytes; a bpe is trained on the train split
    manifest.json     written last

Concepts, not pictures, are split. Test has concepts that training never sees. Validation has captions that it never
sees: of a concept with two captions a language the first one, while the others are in training; else all of it.
"""

from __future__ import annotations

import io
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from bigmodel.errors import UsageError, check_ranges, note
from bigmodel.prepare import finished, images, prepare, tasks
from bigmodel.prepare import tokenizer as tokenizers
from bigmodel.prepare.folder import Folder, Manifest
from bigmodel.prepare.registries import Archive, Named, Package, described, fetch, member, members

FILE = "captions.jsonl"


class Captioned(NamedTuple):
    name: str  # of the file
    content: bytes
    concept: str
    label: str  # "": none
    captions: dict[str, list[str]]  # by language; "": not said


# ------------------------------------------------------------------------------------- sources

# What images.CATEGORIES are asked for by, as keywords; and which of them a folder of stamps is.
ASKED = {
    "en": (
        "face, emotion", "person, people, body", "animal, nature, plant", "food, drink",
        "travel, place, building, vehicle", "activity, sport, game", "object, tool", "symbol, sign, button", "flag",
    ),
    "zh": (
        "脸, 表情", "人, 人物", "动物, 自然, 植物", "食物, 饮料", "旅行, 地点, 建筑, 车", "活动, 运动, 游戏",
        "物品, 工具", "符号, 标志, 按钮", "旗, 旗帜",
    ),
}  # fmt: skip
STAMPS = {
    "animals": 2, "plants": 2, "food": 3, "town": 4, "vehicles": 4, "space": 4, "naturalforces": 4, "people": 1,
    "sports": 5, "hobbies": 5, "seasonal": 5, "household": 6, "clothes": 6, "medical": 6, "military": 6, "symbols": 7,
}  # fmt: skip
LANGUAGES = {"en": "en", "zh": "zh_CN.utf8"}
GENDER = r"(-200D-264[02])|1F46[89]"  # of an emoji's code: a sign at its end, or a man or a woman for a person


def captioned(google: Archive, twitter: Archive, words: Archive, stamps: Archive) -> Iterator[Captioned]:
    """Emoji of two artists, whose captions are their names and their keywords, and Tux Paint's stamps. A concept of
    emoji is all tones of skin and genders of it."""
    known: dict[str, tuple[str, dict[str, list[str]]]] = {}
    for language in LANGUAGES:
        for base in json.loads(member(words.path, f"package/{language}/data.json")):
            concept = re.sub(GENDER, lambda m: "" if m[1] else "1F9D1", base["hexcode"].replace("-FE0F", ""))
            for emoji in (base, *base.get("skins", ())):
                code = emoji["hexcode"].replace("-FE0F", "")
                names = emoji["label"], ", ".join(base.get("tags", ()))
                known.setdefault(code, (concept, {}))[1][language] = [name for name in names if name]
    for archive, artist in ((google, "google"), (twitter, "twitter")):
        category = images.categories(archive)
        for path, content in members(archive.path, f"package/img/{artist}/64/*.png"):
            name = Path(path).name
            code = name.removesuffix(".png").upper().replace("-FE0F", "")
            if name in category and code in known:
                concept, captions = known[code]
                yield Captioned(f"{artist}/{name}", content, concept, images.CATEGORIES[category[name]], captions)
    told = dict(members(stamps.path, "usr/share/tuxpaint/stamps/*.txt"))
    concepts: dict[str, str] = {}
    for path, content in members(stamps.path, "usr/share/tuxpaint/stamps/*.png"):
        stem = path.removesuffix(".png")
        if stem.endswith("_mirror") or f"{stem}.txt" not in told:
            continue
        english, *others = told[f"{stem}.txt"].decode(errors="replace").splitlines() or [""]
        spoken = dict(line.split("=", 1) for line in others if "=" in line)
        texts = {"en": english.strip(), "zh": spoken.get(LANGUAGES["zh"], "").strip()}
        if texts["en"]:
            parts = PurePosixPath(stem).parts[4:]
            # Letters in two styles have one caption, and colours of one thing one stem.
            concept = concepts.setdefault(texts["en"], re.sub(r"\d", "", stem))
            label = images.CATEGORIES[STAMPS[parts[0]]] if parts[0] in STAMPS else ""
            yield Captioned("/".join(parts), content, concept, label, {k: [v] for k, v in texts.items() if v})


SETS = {
    "captioned": Named(
        "emoji of two artists and stamps, with English and Chinese captions, in 9 categories",
        "MIT (packages); the pictures' own: Apache-2.0 (Google), CC BY 4.0 (Twitter), GPL-2 (stamps)",
        (
            *images.SETS["emoji"].packages,
            Package("npm", "emojibase-data", "17.0.0",
                    "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a"),
            Package("debian", "tuxpaint-stamps-default"),
        ),
        captioned,
        examples=8347,
        labels=images.CATEGORIES,
    )
}  # fmt: skip


def is_folder(source: str) -> bool:
    """Whether `source` is a folder with a file of captions."""
    return bool(_files(source))


def _files(source: str) -> list[Path]:
    home = Path(source)
    return sorted(home.rglob(FILE)) if home.is_dir() else []


def own(source: str) -> Iterator[Captioned]:
    """The pictures of a folder of the user's, as its captions.jsonl says.

    UsageError: there are two such files, or a line is no caption.
    """
    files = _files(source)
    if len(files) != 1 or files[0].parent != Path(source):
        raise UsageError(f"prepare {source!r}: expected one {FILE}, in it: found {', '.join(map(str, files))}")
    left: Counter[str] = Counter()
    by_image: dict[str, Captioned] = {}
    for number, line in enumerate(files[0].read_text(encoding="utf-8-sig", errors="replace").split("\n"), 1):
        if not line.strip():
            continue
        where = f"{str(files[0])!r}, line {number}"
        try:
            row = json.loads(line)
            name, texts = row["image"], row.get("captions", row.get("caption"))
            texts = [texts] if isinstance(texts, str) else texts
            about = [row.get(key, "") for key in ("concept", "label", "language")]
            if not all(isinstance(text, str) for text in (name, *texts, *about)):
                raise TypeError("its values are texts")
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            raise UsageError(
                f'{where}: expected {{"image": "a.png", "caption": "..."}} ({type(e).__name__}: {e})'
            ) from None
        kept = [text.strip() for text in texts if text.strip()]
        left["captions that are empty"] += len(texts) - len(kept)
        path = Path(source, name)
        if not path.resolve().is_relative_to(Path(source).resolve()):
            raise UsageError(f"{where}: {name!r} is outside of {source!r}")
        if not kept:
            continue
        if not path.is_file():
            left[f"captions without their picture, as {name!r}"] += len(kept)
            continue
        concept, label, language = about
        before = by_image.get(name)
        captions = defaultdict(list, before.captions if before else {})
        captions[language] = [*captions[language], *(text for text in kept if text not in captions[language])]
        if before:
            concept, label = before.concept, before.label
        by_image[name] = Captioned(name, path.read_bytes(), concept or kept[0], label, dict(captions))
    merged: Counter[str] = Counter()
    for what, count in left.items():
        merged[what.partition(", as ")[0]] += count
    for what, count in merged.items():
        example = next((w.partition(what)[2] for w in left if w.startswith(what)), "")
        if count:
            note(f"left out of {source!r}: {count:,} {what}{example}")
    others = sum(p.is_file() for p in Path(source).rglob("*")) - 1 - len(by_image)
    if others > 0:
        note(f"left out of {source!r}: {others:,} files that no caption is about, or whose captions are empty")
    yield from by_image.values()


# ------------------------------------------------------------------------------------- prepare


def prepare_captions(
    source: str,
    out: str,
    size: int = 64,
    tokenizer: str = "bytes",
    vocab_size: int = 4096,
    fraction: float | None = None,
    verify: bool = False,
) -> Manifest:
    """Prepares pictures with captions into the folder `out` and returns its manifest; see `finished.once`.

    Args:
      source: of SETS, or a folder with captions.jsonl.
      size: side of the pictures in pixels.
      tokenizer, vocab_size, verify: as of `prepare.prepare`.
      fraction: of the concepts that are in validation, and of those in test; None: a tenth.
    """
    tokenizers.check(tokenizer, vocab_size)
    check_ranges("prepare: ", {"size": size}, size="[1, 4096]")
    arguments = tasks.arguments(source, tokenizer, vocab_size, 0.1 if fraction is None else fraction) | {"size": size}
    chosen = SETS.get(source)
    if not chosen:
        arguments["files"] = images.listing(source, sorted(p for p in Path(source).rglob("*") if p.is_file()))

    def make(folder: Folder, old: Manifest | None) -> Manifest:
        archives = [fetch(package) for package in chosen.packages] if chosen else []
        found = chosen.load(*archives) if chosen else own(source)
        sources = [{"registry": "folder", "name": source}]
        if chosen:
            sources = [described(package, archive) for package, archive in zip(chosen.packages, archives, strict=True)]
        licence = chosen.licence if chosen else "the pictures' own"
        labels = list(chosen.labels) if chosen else None
        return write(folder, found, arguments, labels, sources, licence)

    return finished.once(out, arguments, verify, make)


def pixels(found: Iterator[Captioned], source: str, size: int) -> Iterator[tuple[Captioned, np.ndarray]]:
    """Each with its pixels; notes those that can't be read."""
    broken: list[str] = []
    told: Counter[str] = Counter()
    for item in found:
        try:
            yield item._replace(content=b""), images.read(item.content, size, told)
        except Exception as e:  # Pillow's formats raise what they like
            broken.append(images.why(item.name, e))
    images.note_broken(source, broken)
    for what, count in told.items():
        note(f"{source!r}: {count:,} pictures {what}")


Pair = tuple[int, str, str]  # number of the picture, language, caption


def split(found: list[Captioned], fraction: float) -> dict[str, list[Pair]]:
    """Pairs of each split, in the order of the pictures' names. No caption of validation or test is in training."""
    parts: dict[str, list[Pair]] = {s: [] for s in tasks.SPLITS}
    order = sorted(range(len(found)), key=lambda k: tasks.digest("", found[k].name))
    for k in order:
        item = found[k]
        place = int.from_bytes(tasks.digest("group", item.concept)[:8], "big") / 2**64
        whole = "test" if place < fraction else "validation" if place < 2 * fraction else "train"
        spare = whole == "validation" and all(len(texts) > 1 for texts in item.captions.values())
        for language, texts in item.captions.items():
            for i, text in enumerate(texts):
                parts["train" if spare and i else whole].append((k, language, text))
    held = {text for s in ("validation", "test") for _, _, text in parts[s]}
    parts["train"] = [pair for pair in parts["train"] if pair[2] not in held]
    tested = {text for _, _, text in parts["test"]}
    parts["validation"] = [pair for pair in parts["validation"] if pair[2] not in tested]
    for name, pairs in parts.items():
        if not pairs:
            raise UsageError(f"nothing is left for {name}: choose another --validation-fraction, or give more pictures")
    return parts


def write(
    folder: Folder,
    found: Iterator[Captioned],
    arguments: dict[str, Any],
    labels: list[str] | None,
    sources: list[dict[str, Any]],
    licence: str,
) -> Manifest:
    """Writes all files; returns the manifest. `labels`: the names of the classes; None: those that are found."""
    items, arrays = [], []
    for item, array in pixels(found, arguments["source"], arguments["size"]):
        items.append(item)
        arrays.append(array)
    parts = split(items, arguments["validation_fraction"])
    names = sorted({item.label for item in items}) if labels is None else [*labels, ""]
    names = [name for name in names if name] + [""] * any(not item.label for item in items)
    languages = sorted({language for item in items for language in item.captions})
    encoder: Any = None if arguments["tokenizer"] == "bpe" else tokenizers.ready(arguments["tokenizer"])
    if encoder is None:
        encoder = tokenizers.train((text for _, _, text in parts["train"]), arguments["vocab_size"])
    folder.begin()
    files, rows = {}, {}
    if encoder.content:
        files["tokenizer.json"] = folder.put("tokenizer.json", encoder.content.encode())
    for name, pairs in parts.items():
        kept = sorted({k for k, _, _ in pairs})
        place = {k: i for i, k in enumerate(kept)}
        told: list[dict[str, Any]] = [
            {"picture": place[k], "file": items[k].name, "concept": items[k].concept, "label": items[k].label,
             "language": language, "caption": text}
            for k, language, text in pairs
        ]  # fmt: skip
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in told)
        files[f"{name}.jsonl"] = folder.put(f"{name}.jsonl", text.encode())
        stacked = io.BytesIO()
        np.save(stacked, np.stack([arrays[k] for k in kept]))
        files[f"{name}-images.npy"] = folder.put(f"{name}-images.npy", stacked.getvalue())
        examples = [tasks.Example("", {"text": row["caption"]}, names.index(row["label"])) for row in told]
        columns = tasks.tokens(examples, encoder, names)
        columns["picture"] = np.array([row["picture"] for row in told], np.int32)
        columns["language"] = np.array([languages.index(row["language"]) for row in told], np.int32)
        packed = io.BytesIO()
        np.savez(packed, **columns)  # type: ignore[arg-type]
        sha256 = folder.put(f"{name}.npz", packed.getvalue())
        rows[name] = {
            "examples": len(pairs),
            "pictures": len(kept),
            "text_tokens": len(columns["text"]),
            "sha256": sha256,
        }
    return folder.finish(
        {
            "format": finished.FORMAT,
            "name": Path(arguments["source"]).name,
            "task": "captions",
            "labels": names,
            "asked": {k: list(v) for k, v in ASKED.items()} if labels else {languages[0]: names},
            "languages": languages,
            "size": list(arrays[0].shape),
            "arguments": arguments,
            "tokenizer": tokenizers.described(encoder),
            "splits": rows,
            "files": files,
            "sources": sources,
            "licence": licence,
            "hash": prepare.data_hash(encoder, [str(r["sha256"]) for r in rows.values()] + sorted(files.values())),
        }
    )
