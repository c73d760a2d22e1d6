"""Copy prepared data, or the plan of a sweep, to a bucket.

For machines that share no disk, such as TPU slices. Data are first checked against the SHA-256 of their manifest.json.
Afterwards the store's own MD5 of each object is compared. The manifest is copied last, so where it is, everything is.
What is already there is not copied again.

Examples:
  bigmodel upload data/news-bytes gs://mine/data    # then train with --config.run.data_dir=gs://mine/data
  bigmodel upload runs/demo gs://mine/runs          # copies runs/demo/plan.jsonl only
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from bigmodel import cli
from bigmodel.errors import Retry, UsageError
from bigmodel.files import read_plan, read_text

CLOUD = ("target",)


def arguments(parser: cli.Parser) -> None:
    parser.add_argument("folder", help="a folder made by `bigmodel prepare`, or a planned sweep's folder of runs")
    parser.add_argument("target", metavar="gs://...", help="parent folder in the bucket; the folder keeps its name")


def run(args: cli.Args, _: cli.Overrides) -> int:
    from etils import epath

    from bigmodel.run import objects

    source = Path(args.folder)
    target = epath.Path(args.target) / source.resolve().name
    if (source / "plan.jsonl").is_file():
        read_plan(source)  # refuses a damaged one
        last, files = source / "plan.jsonl", []
    elif (source / "manifest.json").is_file():
        last = source / "manifest.json"
        files = sorted(p for p in source.iterdir() if p.is_file() and p != last and not p.name.startswith("."))
        _check_digests(last)
    else:
        raise UsageError(f"upload: {args.folder!r} has no manifest.json of `bigmodel prepare` and no plan.jsonl")
    try:
        store = objects.opened(target)
        there = store.listing()
        copied = [path for path in (*files, last) if path.name not in there or not _same(store, path)]
        if copied and last not in copied:
            copied.append(last)  # last again: until then the folder isn't whole
            store.remove(last.name)
        for path in copied:
            cli.progress(f"{path.name}, {path.stat().st_size:,} bytes")
            store.fs.put_file(str(path), f"{store.root}/{path.name}")
            if not _same(store, path):
                raise Retry(f"{target / path.name} is not what was copied there; the same command continues")
    except (FileNotFoundError, PermissionError) as e:
        raise UsageError(f"can't write {str(target)!r}: {e}") from e
    except OSError as e:
        raise Retry(f"can't write {str(target)!r} ({e}); the same command starts again") from e
    cli.progress("")
    size = sum(p.stat().st_size for p in copied)
    print(f"{target}: {len(copied)} files, {size:,} bytes" if copied else f"{target}: already there")
    return 0


def _same(store: Any, path: Path) -> bool:
    """Whether the object has this file's content or, where the store has no MD5 of it, its size."""
    if md5 := store.md5(path.name):
        with path.open("rb") as f:
            return bool(md5 == hashlib.file_digest(f, "md5").hexdigest())
    return bool(store.fs.info(f"{store.root}/{path.name}")["size"] == path.stat().st_size)


def _check_digests(manifest: Path) -> None:
    for name, digest in _digests(manifest):
        path, found = manifest.with_name(name), ""
        if path.is_file():
            with path.open("rb") as f:
                found = hashlib.file_digest(f, "sha256").hexdigest()
        if found != digest:
            how = "damaged" if found else "missing"
            raise UsageError(f"upload: {str(path)!r} is {how}: remove {str(manifest)!r} and prepare it again")


def _digests(path: Path) -> list[tuple[str, str]]:
    """(file, SHA-256) of the files that a manifest lists, for every kind of prepared data."""
    try:
        manifest = json.loads(read_text(path, "manifest"))
        found = list(manifest.get("files", {}).items())
        for name, split in manifest.get("splits", {}).items():
            found += [(shard["file"], shard["sha256"]) for shard in split.get("shards", [])]
            found += [(f"{name}.npz", split["sha256"])] if "sha256" in split else []
        if not found:
            raise ValueError("it lists no files")
        return found
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise UsageError(f"{str(path)!r} is not a manifest of `bigmodel prepare`: {type(e).__name__}: {e}") from e
