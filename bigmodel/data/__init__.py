"""One file = one source of examples. Found by name; docs/architecture.md says what a source exports.

Imports config and files alone.
"""

from __future__ import annotations

import contextlib
import functools
import operator
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from etils import epath

from bigmodel.config import check_exports, plugin
from bigmodel.errors import NoData, Unavailable, UsageError, check_ranges, nearest
from bigmodel.files import check_path, has_sha256, parse_sealed

_PARTS = {"augmentation", "loader", "__init__"}
FORMAT = 1  # of the manifests that `bigmodel prepare` writes; this layer can't import it
SPLITS = ("train", "validation")
REQUIRED = ("get_config", "finalize", "describe", "open_split")


@dataclass(frozen=True)
class Info:
    """A data set's sizes, known without reading its examples."""

    unit: str  # 'tokens' or 'examples': what D counts
    units_per_example: int
    train_examples: int
    validation_examples: int
    sizes: dict[str, int]  # model keys that the data decides, as vocab_size


class Split:
    """Base of a split's examples: with `len` and `[k]`, a random-access source for grain.

    A worker process opens the files by itself: only the arguments are pickled.
    """

    def __init__(self, cfg: Any, root: str, split: str):
        self.opened = cfg, root, split

    def __reduce__(self) -> Any:
        return type(self), self.opened


def folder(cfg: Any, root: str) -> epath.Path:
    """Where `bigmodel prepare` put what a data section names."""
    return epath.Path(root) / cfg.name


# For hints: the names that `bigmodel prepare` knows, and how the folders are made that the experiments read, where they
# aren't named NAME-TOKENIZER. This layer can't import either.
PREPARED = (
    "news", "chinese-news", "sotu", "moby-dick", "austen", "anarchism", "web", "gcide", "wordnet", "prose",
    "prose-zh", "chinese-reviews", "chinese-help", "help-en-de", "help-en-zh", "movie-reviews", "reviews-zh", "spam",
    "fashion-mnist", "mnist", "emoji", "captioned",
)  # fmt: skip
NAMED = {
    "chinese-bytes": "chinese-news",
    "chinese-bpe": "chinese-news --tokenizer=bpe",
    "movie-reviews-minilm": "movie-reviews --tokenizer=data/minilm/tokenizer.json",
    "movie-reviews": "movie-reviews --tokenizer=data/prose-bpe/tokenizer.json",
    "reviews-zh": "reviews-zh --tokenizer=data/chinese-bpe/tokenizer.json",
    "spam": "spam --tokenizer=data/prose-bpe/tokenizer.json",
}


DERIVED = {"captioned-codes": "bigmodel sweep run sweeps/dalle.py, whose rows have names of their own"}


def command(name: str, home: Any) -> str:
    """The command that prepares data of this name into the folder `home`, as far as the name tells."""
    if name in DERIVED:
        return DERIVED[name]
    base, _, tokenizer = name.rpartition("-")
    what = NAMED.get(name) or (name if name in PREPARED else "SOURCE")
    if base in PREPARED and tokenizer in ("bytes", "bpe", "gpt2", "clip"):
        what = base if tokenizer == "bytes" else f"{base} --tokenizer={tokenizer}"
    hint = " (SOURCE: a file or folder, or a name that `bigmodel prepare list` shows)" if what == "SOURCE" else ""
    return f"bigmodel prepare {what} --out={shlex.quote(str(home))}{hint}"


def manifest(
    cfg: Any,
    root: str,
    what: str,
    keys: Mapping[type, str] = MappingProxyType({}),
    inspect: Callable[[Any], None] = lambda found: None,
) -> dict[str, Any]:
    """The manifest.json of a data section's folder.

    Args:
      what: what the folder holds, in words.
      keys: of each type the dotted keys whose values have it; '{split}' stands for each of SPLITS.
      inspect: called with the manifest for other checks: raises ValueError where one fails.

    Raises:
      NoData: nothing has been prepared there. Unavailable: it can't be read now. UsageError: it is damaged, of another
        format, not a manifest, or of other data than the config's fingerprint.
    """
    check_path("data folder (config.run.data_dir/config.data.name)", f"{root}/{cfg.name}")
    home = folder(cfg, root)
    path = home / "manifest.json"
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        hint = ""
        with contextlib.suppress(OSError):  # `root` itself may be missing or closed to us
            hint = nearest(cfg.name, [p.name for p in epath.Path(root).iterdir()])
        raise NoData(f"no prepared {what} at {str(home)!r}{hint}; make it with: {command(home.name, home)}") from None
    except OSError as e:
        raise Unavailable(f"can't read {str(path)!r}: {e.strerror or e}") from e
    try:
        found: dict[str, Any] = parse_sealed(content)
        expect(found, {int: "format", str: "hash"})
        if found["format"] != FORMAT:
            raise UsageError(f"{str(path)!r} is of format {found['format']}, not {FORMAT}: prepare the data again")
        inspect(found)
        for split in SPLITS:
            expect(found, keys, split)
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise UsageError(f"{str(path)!r} is not a manifest of `bigmodel prepare`: {type(e).__name__}: {e}") from e
    if cfg.fingerprint not in ("", found["hash"]):
        both = f"its hash is {found['hash'][:12]}, the config asks for {cfg.fingerprint[:12]}"
        raise UsageError(f"data {str(home)!r} has changed: {both}")
    return found


def expect(found: Any, keys: Mapping[type, str], split: str = "") -> None:
    """Raises KeyError, TypeError or ValueError unless `found` has the dotted keys of each type, and no negative numbers
    there."""
    pairs = ((kind, key) for kind, names in keys.items() for key in names.format(split=split).split())
    for kind, key in pairs:
        value = functools.reduce(operator.getitem, key.split("."), found)
        if type(value) is not kind:
            raise TypeError(f"{key} is {str(value)[:40]!r}, not {kind.__name__}")
        if isinstance(value, int) and value < 0:
            raise ValueError(f"{key} is {value}")


def check_file(path: epath.Path, sha256: str | None) -> None:
    """Checks a prepared file against the SHA-256 of its manifest, before it is read.

    Raises:
      Unavailable: it isn't there, or can't be read. UsageError: it is damaged.
    """
    try:
        if not path.exists():
            raise Unavailable(f"{str(path)!r} is missing; run `bigmodel prepare` again")
        if sha256 and "://" not in str(path) and not has_sha256(path, sha256):
            raise damaged(path)
    except OSError as e:
        raise Unavailable(f"can't read {str(path)!r}: {e.strerror or e}") from e


def damaged(path: Any, why: str = "its content has changed since it was prepared") -> UsageError:
    return UsageError(f"{str(path)!r} is damaged ({why}); delete it and run `bigmodel prepare` again")


def check_amounts(cfg: Any, there: int) -> None:
    """Checks `epochs` and `examples` of a data section with `there` training examples."""
    check_ranges("config.data.", cfg, epochs="[1, inf)")
    if not 0 <= cfg.examples <= there:
        raise UsageError(f"config.data.examples={cfg.examples}: there are {there} training examples (0: all)")


def names() -> list[str]:
    return sorted(p.stem for p in Path(__file__).parent.glob("*.py") if p.stem not in _PARTS)


def source(name: str) -> Any:
    """A source by its name, the path of a file of the user's, or as an entry point `bigmodel.sources`."""
    module = plugin("sources", name, __name__, names(), "config.data.source")
    check_exports(module, f"data source {name!r}", REQUIRED)
    if not hasattr(module, "augment"):
        module.augment = None  # (data section, example, rng) -> example, of training examples
    if not hasattr(module, "augments"):
        module.augments = lambda cfg: True  # whether it changes any; else several examples are read at once
    return module


PROMISED: dict[str, Info] = {}  # of data sets that a sweep is yet to make of its runs: by name, what they will be


def _promised(cfg: Any, root: str) -> Info | None:
    name = cfg.get("name")
    return PROMISED.get(name) if name in PROMISED and not (folder(cfg, root) / "manifest.json").exists() else None


def finalize(cfg: Any, root: str) -> None:
    """Checks a data section and fills in the fingerprint of its data."""
    if _promised(cfg, root):
        cfg.fingerprint = cfg.name
    else:
        source(cfg.source).finalize(cfg, root)


def describe(cfg: Any, root: str) -> Info:
    """What the data of a section is: as its source says or, of data that is yet to be made, its maker."""
    return _promised(cfg, root) or source(cfg.source).describe(cfg, root)
