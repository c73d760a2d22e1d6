"""One file = one source of examples. Found by name; docs/architecture.md says what a source exports.

Imports config and files alone.
"""

from __future__ import annotations

import contextlib
import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from etils import epath

from bigmodel.config import plugin
from bigmodel.errors import NoData, Unavailable, UsageError, nearest
from bigmodel.files import check_path, has_sha256, is_whole

_PARTS = {"loader", "__init__"}


@dataclass(frozen=True)
class Info:
    """What a source says of itself without reading its examples."""

    unit: str  # 'tokens' or 'examples': what D counts
    units_per_example: int
    train_examples: int
    validation_examples: int
    sizes: dict[str, int]  # model keys that the data decides, as vocab_size


def folder(cfg: Any, root: str) -> epath.Path:
    """Where `bigmodel prepare` put what a data section names."""
    return epath.Path(root) / cfg.name


# What `bigmodel prepare` has by name, for hints, since this layer can't ask it; and the names that the experiments give
# to what it makes of them, where they aren't NAME-TOKENIZER.
PREPARED = (
    "news", "chinese-news", "sotu", "moby-dick", "austen", "anarchism", "web", "gcide", "wordnet", "prose",
    "help-en-de", "help-en-zh", "movie-reviews", "reviews-zh", "spam", "fashion-mnist",
)  # fmt: skip
NAMED = {
    "chinese-bytes": "chinese-news",
    "chinese-bpe": "chinese-news --tokenizer=bpe",
    "movie-reviews-minilm": "movie-reviews --tokenizer=data/minilm/tokenizer.json",
    "movie-reviews": "movie-reviews --tokenizer=data/prose-bpe/tokenizer.json",
    "reviews-zh": "reviews-zh --tokenizer=data/chinese-bpe/tokenizer.json",
    "spam": "spam --tokenizer=data/prose-bpe/tokenizer.json",
}


def command(name: str, home: Any) -> str:
    """The command that prepares data of this name into the folder `home`, as far as the name says what it is."""
    base, _, tokenizer = name.rpartition("-")
    what = NAMED.get(name) or (name if name in PREPARED else "SOURCE")
    if base in PREPARED and tokenizer in ("bytes", "bpe", "gpt2"):
        what = base if tokenizer == "bytes" else f"{base} --tokenizer={tokenizer}"
    hint = " (SOURCE: a file or folder, or a name that `bigmodel prepare list` shows)" if what == "SOURCE" else ""
    return f"bigmodel prepare {what} --out={shlex.quote(str(home))}{hint}"


def manifest(cfg: Any, root: str, what: str) -> dict[str, Any]:
    """The manifest.json of a data section's folder, which holds `what`.

    Raises:
      NoData: it hasn't been prepared. Unavailable: it can't be read. UsageError: it is no manifest, or damaged.
    """
    check_path("data folder (config.run.data_dir/config.data.name)", f"{root}/{cfg.name}")
    home = folder(cfg, root)
    path = home / "manifest.json"
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        hint = ""
        with contextlib.suppress(OSError):  # of `root`, which may be missing or closed to us
            hint = nearest(cfg.name, [p.name for p in epath.Path(root).iterdir()])
        raise NoData(f"no prepared {what} at {str(home)!r}{hint}; make it with: {command(home.name, home)}") from None
    except OSError as e:
        raise Unavailable(f"can't read {str(path)!r}: {e.strerror or e}") from e
    with reading(path):
        found: dict[str, Any] = json.loads(content.decode())
        expect(found, {"format": int, "hash": str})
        if not is_whole(found):
            raise ValueError("it is damaged (its checksum is another)")
        return found


def expect(found: Any, want: dict[str, type]) -> None:
    """Raises KeyError, TypeError or ValueError unless a manifest has these dotted keys, with values of these types and
    no negative numbers. To be called within `reading`."""
    for key, kind in want.items():
        value = found
        for part in key.split("."):
            value = value[part]
        if type(value) is not kind:
            raise TypeError(f"{key} is {str(value)[:40]!r}, not {kind.__name__}")
        if isinstance(value, int) and value < 0:
            raise ValueError(f"{key} is {value}")


def check(path: epath.Path, sha256: str | None) -> None:
    """A prepared file, before it is read: is it there, and is its content what the manifest says?

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


@contextlib.contextmanager
def reading(path: Any) -> Iterator[None]:
    """Around what takes a manifest apart: one that isn't what it should be is a mistake of whoever named it."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise UsageError(f"{str(path)!r} is not a manifest of `bigmodel prepare`: {type(e).__name__}: {e}") from e


def fingerprint(cfg: Any, root: str, found: str) -> str:
    """The hash of the data, which a config that names one must agree with."""
    if cfg.fingerprint not in ("", found):
        raise UsageError(
            f"data {str(folder(cfg, root))!r} has changed: its hash is {found[:12]}, the config asks for "
            f"{cfg.fingerprint[:12]}"
        )
    return found


def names() -> list[str]:
    return sorted(p.stem for p in Path(__file__).parent.glob("*.py") if p.stem not in _PARTS)


def source(name: str) -> Any:
    """A source by its name, the path of a file of the user's, or as an entry point `bigmodel.sources`."""
    return plugin("sources", name, __name__, names(), "config.data.source")


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
