"""`bigmodel prepare`: a corpus, file, folder or Hugging Face dataset -> token shards and manifest.json.

Three passes: spool the documents and split them by hash; make the tokenizer; encode shards in worker processes.
Each step is deterministic, so the same input gives the same bytes with any number of workers, and a second run after
any interruption skips the shards that are already there and right. The manifest comes last: where it is, all is. Beside
it, sources.json tells by digests whether the local files of the source are still the same.

Memory: about 150 bytes per document, the largest .txt or .json file, and per worker one batch of a few MB and the
largest document's tokens. Disk: the texts once more while it runs (in OUT/.work, removed at the end), and the shards.
"""

from __future__ import annotations

import errno
import hashlib
import json
import multiprocessing
import os
import re
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from etils import epath

from bigmodel.errors import Retry, UsageError
from bigmodel.files import check_path, sealed
from bigmodel.prepare import documents, finished, shards
from bigmodel.prepare import tokenizer as tokenizers
from bigmodel.prepare.tokenizer import AnyTokenizer

OURS = r"(train|validation)-\d{5}\.(bin|idx\.npy|receipt\.json)"


def prepare(
    source: str,
    out: str,
    tokenizer: str = "bytes",
    vocab_size: int = 4096,
    validation_fraction: float = 0.02,
    text_key: str = "text",
    workers: int = 0,
    shard_tokens: int = 2**24,
    progress: bool = True,
    cache: str | None = None,
    limit_bytes: int = 0,
    verify: bool = False,
) -> dict[str, Any]:
    """Prepares `source` into the folder `out` and returns its manifest; at once where that is already done.

    Args:
      source: a corpus (corpora.names()), a file that documents.py reads, a folder of them, or hf:owner/name[:config].
      out: a folder, local or gs://.
      tokenizer: bytes, bpe, gpt2 or a path to a tokenizer.json.
      vocab_size: of bpe, the separator included; other kinds have their own.
      validation_fraction: of documents, in (0, 1); chosen by the hash of their ids. Where these would be most of the
        text, unasked, long documents are cut into pieces first.
      text_key: the key (.jsonl, .json) or column (.parquet, hf:) that holds the text.
      workers: processes; 0 is one per CPU core, but no more than there are shards.
      shard_tokens: bytes of text per shard, which bounds its tokens.
      cache: where packages are kept; default $BIGMODEL_CACHE, else ~/.cache/bigmodel/corpora.
      limit_bytes: stop reading after so much text (whole documents, in the source's order); 0 reads all.
      verify: of finished work, read every file again, even one that was found whole before and hasn't changed since.

    What is left out of the source, and a split far from `validation_fraction`, is said in a line on stderr. Shards that
    are missing or damaged are made again, and nothing else is written.

    Raises:
      UsageError: wrong arguments or data, an unwritable `out`, an `out` made with other arguments, or of a source or
        tokenizer whose contents have changed since.
      Retry: full disk, or a worker killed; the same command continues.
    """
    check_arguments(source, tokenizer, vocab_size, validation_fraction, workers, shard_tokens, limit_bytes)
    check_path("--out", out)
    arguments = {
        "source": source,
        "tokenizer": tokenizer,
        "vocab_size": vocab_size if tokenizer == "bpe" else None,
        "validation_fraction": validation_fraction,
        "text_key": text_key,
        "shard_tokens": shard_tokens,
        "limit_bytes": limit_bytes,
    }
    root = epath.Path(out)
    with writing(out):
        old = finished.existing(root, arguments, verify)
        if old and not (broken := finished.damaged(root, old, verify)):
            return old
        if old:
            finished.again(root, broken)
        with working_folder(root) as work:
            return make(arguments, old, root, work, workers, progress, cache)


@contextmanager
def writing(out: str) -> Iterator[None]:
    """What goes wrong on the way into `out`, as an error of ours."""
    try:
        yield
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT):
            raise Retry(f"disk full while writing {out!r}; free some space, and the same command continues") from e
        raise UsageError(f"can't write {out!r}: {e.strerror or e}") from e
    except MemoryError as e:
        raise UsageError(f"prepare into {out!r}: not enough memory; split large files into several") from e
    except ImportError as e:  # gs:// without gcsfs, progress without rich
        raise UsageError(f"prepare into {out!r}: {' '.join(str(e).split())}") from e
    except BrokenProcessPool as e:
        raise Retry("a worker process was killed (out of memory?); the same command continues, try --workers=1") from e


def check_arguments(
    source: str, tokenizer: str, vocab_size: int, fraction: float, workers: int, shard_tokens: int, limit_bytes: int
) -> None:
    check_path("SOURCE", source)
    tokenizers.check(tokenizer, vocab_size)
    if not source:
        raise UsageError("prepare needs a corpus, a file or a folder; `bigmodel prepare list` shows the corpora")
    if not 0 < fraction < 1:
        raise UsageError(f"validation_fraction: {fraction} isn't between 0 and 1")
    least_values = {"workers": (workers, 0), "shard_tokens": (shard_tokens, 1), "limit_bytes": (limit_bytes, 0)}
    for name, (value, least) in least_values.items():
        if value < least:
            raise UsageError(f"{name}: {value} is less than {least}")


@contextmanager
def working_folder(root: epath.Path) -> Iterator[Path]:
    """OUT/.work, where renaming into OUT is atomic; a temporary folder for gs://. One process at a time."""
    if not shards.is_local(root):
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="bigmodel-prepare-") as temporary:
            yield Path(temporary)
        return
    import fcntl  # POSIX only, as are the other tools here

    work = Path(root) / ".work"
    new = [path for path in (Path(root), *Path(root).parents) if not path.exists()]
    work.mkdir(parents=True, exist_ok=True)
    with open(work / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"another prepare is writing {str(root)!r}") from None
        try:
            yield work
        finally:
            shards.remove_folder(work)
            for path in new:  # a mistake leaves nothing behind
                if any(path.iterdir()):
                    break
                path.rmdir()


def make(
    arguments: dict[str, Any],
    old: dict[str, Any] | None,
    root: epath.Path,
    work: Path,
    workers: int,
    progress: bool,
    cache: str | None,
) -> dict[str, Any]:
    """All the work; `prepare` adds the checks before it and the errors around it. `old`: damaged data's manifest."""
    kind, fraction, seen = arguments["tokenizer"], arguments["validation_fraction"], documents.Found()
    notes: list[str] = []
    with bars(progress) as bar:
        encoder = None if kind == "bpe" else tokenizers.ready(kind, cache)
        listing = old["sources"][0].get("listing") if old else None  # of an older version, whose rules its data keeps
        source = documents.open_source(arguments["source"], arguments["text_key"], cache, seen, bool(listing))
        name, sources, found = source

        # ---- read
        split_by = "document"
        spool = fill(found, work / "documents.txt", encoder, arguments["limit_bytes"], bar, seen)
        if len(spool) == 1:
            split_by = f"piece of about {documents.PIECE} bytes or 1/16 of the text"
            spool = fill(spool.pieces([name]), work / "pieces.txt", encoder, 0, bar, seen)
        if len(set(spool.texts)) < 2:
            what = "no text" if not len(spool) else "fewer than two different documents"
            why = f" (left out: {seen})" if seen.left_out else ""
            raise UsageError(f"{arguments['source']!r} holds {what}: nothing to split into train and validation{why}")
        splits = spool.split(fraction)
        share = spool.share(splits["validation"])
        if split_by == "document" and fraction <= 0.5 < share and not listing:
            split_by = f"document, a long one by pieces of about {documents.PIECE} bytes or 1/16 of the text"
            notes.append(f"validation would be {share:.1%} of the text: long documents are split into pieces")
            spool = fill(spool.pieces([i.hex() for i in spool.ids]), work / "pieces.txt", encoder, 0, bar, seen)
            splits = spool.split(fraction)
        share = spool.share(splits["validation"])
        if not fraction / 4 <= share <= 2 * fraction + 0.02:
            notes.append(f"validation is {share:.2%} of the text, not {fraction:.1%}: documents are few or unequal")

        # ---- tokenizer
        if listing:
            sources[0]["listing"] = listing
        elif seen.files:
            sources[0]["sha256"] = seen.digest()
            if old and old["sources"][0].get("sha256") not in (None, "", sources[0]["sha256"]):
                raise finished.changed(arguments["source"], root)
        (root / "manifest.json").unlink(missing_ok=True)  # written last, so that where it is, all is
        if encoder is None:
            encoder = trained(spool, splits["train"], arguments["vocab_size"], root, work, bar)
        file = ""
        if encoder.content:
            (work / "tokenizer.json").write_text(encoder.content, encoding="utf-8")
            (work / "tokenizer.copy").write_text(encoder.content, encoding="utf-8")
            shards.move(work / "tokenizer.copy", root / "tokenizer.json")
            file = "tokenizer.json"

        # ---- encode
        tasks: list[shards.Task] = []
        for split, chosen in splits.items():
            for number, part in enumerate(spool.shards(chosen, arguments["shard_tokens"])):
                tasks.append(
                    shards.Task(
                        name=f"{split}-{number:05d}",
                        key=spool.key(part, encoder),
                        out=os.fspath(root),
                        work=str(work),
                        spool=str(spool.path),
                        spans=[(spool.starts[i], spool.sizes[i]) for i in part],
                        kind=encoder.kind,
                        tokenizer=str(work / file) if file else "",
                    )
                )
        receipts = encode(tasks, workers, bar)

    # ---- manifest, last
    rows = {s: [receipts[t.name] for t in tasks if t.name.startswith(s + "-")] for s in splits}
    manifest = {
        "format": finished.FORMAT,
        "name": name,
        "source": arguments["source"],
        "arguments": arguments,
        "tokenizer": {
            "kind": encoder.kind,
            "vocab_size": encoder.vocab_size,
            "separator": encoder.separator,
            "file": file,
        },
        "dtype": shards.dtype_for(encoder.vocab_size),
        "splits": {
            split: {
                **{total: sum(r[total] for r in row) for total in ("tokens", "bytes", "documents")},
                "shards": [{k: r[k] for k in ("file", "tokens", "documents", "sha256")} for r in row],
            }
            for split, row in rows.items()
        },
        "sources": sources,
        "licence": "; ".join(dict.fromkeys(s["licence"] for s in sources)),
        "hash": data_hash(encoder, [r["sha256"] for row in rows.values() for r in row]),
        "split_by": split_by,
        "left_out": str(seen),
        "files": {file: hashlib.sha256(encoder.content.encode()).hexdigest()} if file else {},
    }
    remove_stale(root, {f"{t.name}{suffix}" for t in tasks for suffix in (".bin", ".idx.npy", ".receipt.json")})
    if seen.files and not listing:
        shards.write_json(sealed({"files": seen.files}), root / "sources.json", work)
    manifest = sealed(manifest)
    shards.write_json(manifest, root / "manifest.json", work)
    if old and old["hash"] != manifest["hash"]:
        notes.append(f"other data than before (another version of a library?): its hash was {old['hash'][:12]}")
    for note in notes:
        finished.say(f"{arguments['source']!r}: {note}")
    if seen.left_out:
        finished.say(f"left out of {arguments['source']!r}: {seen}")
    return manifest


def data_hash(encoder: AnyTokenizer, digests: list[str]) -> str:
    """Names the data: equal hashes mean the same tokens in the same order."""
    content = hashlib.sha256(encoder.content.encode()).hexdigest()
    row = [encoder.kind, content, shards.dtype_for(encoder.vocab_size), *digests]
    return hashlib.sha256(json.dumps(row).encode()).hexdigest()


def remove_stale(root: epath.Path, wanted: set[str]) -> None:
    """Shards of an unfinished earlier attempt with other arguments, which had more of them."""
    for path in root.iterdir():
        if re.fullmatch(OURS, path.name) and path.name not in wanted:
            path.unlink()


# ------------------------------------------------------------------------------------- steps


def fill(
    found: documents.Documents,
    path: Path,
    encoder: AnyTokenizer | None,
    limit: int,
    bar: Any,
    seen: documents.Found,
) -> shards.Spool:
    task = bar.add_task("reading", total=None)
    spool = None
    for number, spool in enumerate(shards.spool_documents(found, path, encoder, limit, seen)):
        if number % 256 == 0:
            bar.update(task, description=f"reading, {len(spool)} documents")
    assert spool is not None  # it is always yielded once more when closed
    bar.update(task, total=1, completed=1, description=f"read {len(spool)} documents, {sum(spool.sizes)} bytes")
    return spool


def trained(
    spool: shards.Spool, train: list[int], vocab_size: int, root: epath.Path, work: Path, bar: Any
) -> AnyTokenizer:
    """The BPE of the train documents; an earlier run's where it had the same texts, since training takes a while."""
    digest = hashlib.sha256(f"{finished.FORMAT} {vocab_size} ".encode())
    for i in train:
        digest.update(spool.texts[i])
    key, receipt = digest.hexdigest(), shards.read_json(root / "tokenizer.receipt.json")
    if receipt and receipt.get("key") == key and shards.file_digest(root / "tokenizer.json") == receipt.get("sha256"):
        return tokenizers.Subwords("bpe", (root / "tokenizer.json").read_text(), "tokenizer.json")
    task = bar.add_task(f"training bpe, {vocab_size} entries", total=None)
    batches = shards.read_texts(spool.path, [(spool.starts[i], spool.sizes[i]) for i in train])
    made = tokenizers.train((text for batch in batches for text in batch), vocab_size)
    (work / "tokenizer.new").write_text(made.content, encoding="utf-8")
    shards.move(work / "tokenizer.new", root / "tokenizer.json")
    row = {"key": key, "sha256": hashlib.sha256(made.content.encode()).hexdigest()}
    shards.write_json(row, root / "tokenizer.receipt.json", work)
    bar.update(task, total=1, completed=1, description=f"trained bpe, {made.vocab_size} entries")
    return made


def encode(tasks: list[shards.Task], workers: int, bar: Any) -> dict[str, dict[str, Any]]:
    """Receipts by shard name; finished shards are verified and skipped, the others written in parallel."""
    total = bar.add_task("encoding", total=sum(size for t in tasks for _, size in t.spans))
    receipts: dict[str, dict[str, Any]] = {}

    def took(task: shards.Task, receipt: dict[str, Any]) -> None:
        receipts[task.name] = receipt
        bar.update(total, advance=receipt["bytes"], description=f"encoding, {len(receipts)} of {len(tasks)} shards")

    left = []
    for task in tasks:
        receipt = shards.finished(task)
        if receipt is None:
            left.append(task)
        else:
            took(task, receipt)
    count = min(workers or os.cpu_count() or 1, len(left))
    if count <= 1:
        for task in left:
            took(task, shards.write_shard(task))
        return receipts
    # spawn: a fork would copy the trained tokenizer's threads half alive
    pool = ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), initializer=start_worker)
    try:
        running = {pool.submit(shards.write_shard, task): task for task in left}
        while running:
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                took(running.pop(future), future.result())
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return receipts


def start_worker() -> None:
    """Processes are the parallelism, so `tokenizers` gets one thread each; and a worker ends with its parent.

    The pool's workers hold both ends of their queue: after a kill -9 of the parent they would wait for ever.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


# ---------------------------------------------------------------------------------- progress


class Silent:
    def add_task(self, description: str, total: float | None = None) -> int:
        return 0

    def update(self, task: int, **fields: Any) -> None:
        pass


@contextmanager
def bars(progress: bool) -> Iterator[Any]:
    """A rich progress bar on stderr, so that stdout stays for results."""
    if not progress:
        yield Silent()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as shown:
        yield shown
