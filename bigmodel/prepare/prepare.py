"""`bigmodel prepare`: a corpus, file, folder or Hugging Face dataset -> token shards and manifest.json.

Three passes: spool the documents and split them by hash; make the tokenizer; encode shards in worker processes.
Each step is deterministic, so the same input gives the same bytes with any number of workers, and a second run after
any interruption skips the shards that are already there and right. The manifest comes last: where it is, all is.

Memory: about 150 bytes per document, the largest .txt file, and per worker one batch of a few MB and the largest
document's tokens. Disk: the texts once more while it runs (in OUT/.work, removed at the end), and the shards.
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

from bigmodel.config import Retry, UsageError
from bigmodel.prepare import documents, shards
from bigmodel.prepare import tokenizer as tokenizers
from bigmodel.prepare.tokenizer import AnyTokenizer

FORMAT = 1
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
) -> dict[str, Any]:
    """Prepares `source` into the folder `out` and returns its manifest; at once where that is already done.

    Args:
      source: a corpus (corpora.names()), a .txt/.jsonl/.parquet file or a folder of them, or hf:owner/name[:config].
      out: a folder, local or gs://.
      tokenizer: bytes, bpe, gpt2 or a path to a tokenizer.json.
      vocab_size: of bpe, the separator included; other kinds have their own.
      validation_fraction: of documents, in (0, 1); chosen by the hash of their ids.
      text_key: the key (.jsonl) or column (.parquet, hf:) that holds the text.
      workers: processes; 0 is one per CPU core, but no more than there are shards.
      shard_tokens: bytes of text per shard, which bounds its tokens.
      cache: where packages are kept; default $BIGMODEL_CACHE, else ~/.cache/bigmodel/corpora.
      limit_bytes: stop reading after so much text (whole documents, in the source's order); 0 reads all.

    Raises:
      UsageError: wrong arguments or data, an unwritable `out`, or an `out` made with other arguments.
      Retry: full disk, or a worker killed; the same command continues.
    """
    check_arguments(source, tokenizer, vocab_size, validation_fraction, workers, shard_tokens, limit_bytes)
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
        if done := existing(root, arguments):
            return done
        with working_folder(root) as work:
            (root / "manifest.json").unlink(missing_ok=True)  # one with missing shards, or there is none
            return make(arguments, root, work, workers, progress, cache)


@contextmanager
def writing(out: str) -> Iterator[None]:
    """What goes wrong on the way into `out`, as an error of ours."""
    try:
        yield
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT):
            raise Retry(f"disk full while writing {out!r}; free some space, and the same command continues") from e
        raise UsageError(f"can't write {out!r}: {e.strerror or e}") from e
    except ImportError as e:  # gs:// without gcsfs, progress without rich
        raise UsageError(f"prepare into {out!r}: {' '.join(str(e).split())}") from e
    except BrokenProcessPool as e:
        raise Retry("a worker process was killed (out of memory?); the same command continues, try --workers=1") from e


def check_arguments(
    source: str, tokenizer: str, vocab_size: int, fraction: float, workers: int, shard_tokens: int, limit_bytes: int
) -> None:
    tokenizers.check(tokenizer, vocab_size)
    if not source:
        raise UsageError("prepare needs a corpus, a file or a folder; `bigmodel prepare list` shows the corpora")
    if not 0 < fraction < 1:
        raise UsageError(f"validation_fraction: {fraction} isn't between 0 and 1")
    least_values = {"workers": (workers, 0), "shard_tokens": (shard_tokens, 1), "limit_bytes": (limit_bytes, 0)}
    for name, (value, least) in least_values.items():
        if value < least:
            raise UsageError(f"{name}: {value} is less than {least}")


def existing(root: epath.Path, arguments: dict[str, Any]) -> dict[str, Any] | None:
    """The manifest in `root` if it was made with these arguments and its shards are there in full size; else None."""
    path = root / "manifest.json"
    if not path.exists():
        return None
    manifest = shards.read_json(path)
    if manifest is None or manifest.get("format") != FORMAT:
        raise UsageError(f"{str(path)!r} isn't a manifest of format {FORMAT}; choose another --out or remove it")
    old = manifest["arguments"]
    for key, value in arguments.items():
        if old.get(key) != value:
            raise UsageError(
                f"{str(root)!r} was prepared with {key}={old.get(key)!r}, not {value!r}; choose another --out"
            )
    listed = manifest["sources"][0].get("listing")
    source = arguments["source"]
    there = Path(source).exists()  # one moved away since needs no second reading
    if listed and there and documents.listing(documents.list_files(source)) != listed:
        raise UsageError(f"{source!r} changed since {str(root)!r} was prepared; choose another --out")
    width = {"uint8": 1, "uint16": 2, "uint32": 4}[manifest["dtype"]]
    for split in manifest["splits"].values():
        for shard in split["shards"]:
            file = root / shard["file"]
            index = root / shard["file"].replace(".bin", ".idx.npy")
            if not file.exists() or file.stat().length != shard["tokens"] * width or not index.exists():
                return None
    return manifest


@contextmanager
def working_folder(root: epath.Path) -> Iterator[Path]:
    """OUT/.work, where renaming into OUT is atomic; a temporary folder for gs://. One process at a time."""
    if not shards.is_local(root):
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="bigmodel-prepare-") as temporary:
            yield Path(temporary)
        return
    import fcntl  # POSIX only, as are the other tools here

    work, new = Path(root) / ".work", not Path(root).exists()
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
            if new and not any(Path(root).iterdir()):
                Path(root).rmdir()  # a mistake leaves nothing behind


def make(
    arguments: dict[str, Any], root: epath.Path, work: Path, workers: int, progress: bool, cache: str | None
) -> dict[str, Any]:
    """All the work; `prepare` adds the checks before it and the errors around it."""
    kind = arguments["tokenizer"]
    with bars(progress) as bar:
        encoder = None if kind == "bpe" else tokenizers.ready(kind, cache)
        name, sources, found = documents.open_source(arguments["source"], arguments["text_key"], cache)

        # ---- read
        split_by = "document"
        spool = fill(found, work, encoder, arguments["limit_bytes"], bar)
        if len(spool) == 1:
            split_by = f"piece of about {documents.PIECE} bytes or 1/16 of the text"
            text = spool.path.read_bytes().decode()  # not read_text, which would rewrite line ends
            spool = fill(documents.pieces(name, text), work, encoder, 0, bar)
        if len(set(spool.texts)) < 2:
            what = "no text" if not len(spool) else "fewer than two different documents"
            raise UsageError(f"{arguments['source']!r} holds {what}: nothing to split into train and validation")
        splits = spool.split(arguments["validation_fraction"])

        # ---- tokenizer
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
        "format": FORMAT,
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
    }
    remove_stale(root, {f"{t.name}{suffix}" for t in tasks for suffix in (".bin", ".idx.npy", ".receipt.json")})
    shards.write_json(manifest, root / "manifest.json", work)
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


def fill(found: documents.Documents, work: Path, encoder: AnyTokenizer | None, limit: int, bar: Any) -> shards.Spool:
    task = bar.add_task("reading", total=None)
    spool = None
    for number, spool in enumerate(shards.spool_documents(found, work / "documents.txt", encoder, limit)):
        if number % 256 == 0:
            bar.update(task, description=f"reading, {len(spool)} documents")
    assert spool is not None  # it is always yielded once more when closed
    bar.update(task, total=1, completed=1, description=f"read {len(spool)} documents, {sum(spool.sizes)} bytes")
    return spool


def trained(
    spool: shards.Spool, train: list[int], vocab_size: int, root: epath.Path, work: Path, bar: Any
) -> AnyTokenizer:
    """The BPE of the train documents; an earlier run's where it had the same texts, since training takes a while."""
    digest = hashlib.sha256(f"{FORMAT} {vocab_size} ".encode())
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
