"""`bigmodel prepare`: a corpus, file, folder or Hugging Face dataset -> token shards and manifest.json.

Three passes: spool the documents and split them by hash; make the tokenizer; encode shards in worker processes.
Each step is deterministic: the same input gives the same bytes with any number of workers. A second run after an
interruption skips the shards that are finished. The manifest comes last: where it is, everything is. sources.json
beside it holds the digests by which a later run sees whether the local files of the source have changed.

Memory: about 150 bytes per document, the largest .txt or .json file, and per worker one batch of a few MB and the
largest document's tokens. Disk: the texts once more while it runs (in OUT/.work, removed at the end), and the shards.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import re
import threading
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any

from bigmodel.errors import UsageError, check_ranges, note
from bigmodel.files import check_path, sealed
from bigmodel.prepare import documents, finished, folder, shards
from bigmodel.prepare import tokenizer as tokenizers
from bigmodel.prepare.folder import Folder, Manifest
from bigmodel.prepare.formats import Found
from bigmodel.prepare.shards import Spool
from bigmodel.prepare.tokenizer import AnyTokenizer

PIECES = f"about {documents.PIECE} bytes or 1/16 of the text"


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
    verify: bool = False,
) -> Manifest:
    """Prepares `source` into the folder `out` and returns its manifest; at once where that is already done.

    Args:
      source: a corpus (corpora.CORPORA), a file that documents.py reads, a folder of them, or hf:owner/name[:config].
      out: a folder, local or gs://.
      tokenizer: bytes, bpe, gpt2 or a path to a tokenizer.json.
      vocab_size: of bpe, the separator included; other kinds have their own.
      validation_fraction: of documents, in (0, 1); chosen by the hash of their ids. If these would be most of the text
        though `validation_fraction` is at most 1/2, long documents are cut into pieces first.
      text_key: the key (.jsonl, .json) or column (.parquet, hf:) that holds the text.
      workers: processes; 0 is one per CPU core, but no more than there are shards.
      shard_tokens: bytes of text per shard, which bounds its tokens.
      verify: of finished work, read every file again, even one that was found whole before and hasn't changed since.

    One line on stderr says what is left out of the source, another that a split is far from `validation_fraction`.
    Shards that are missing or damaged are made again, and nothing else is written.

    Raises:
      UsageError: wrong arguments or data, an unwritable `out`, an `out` made with other arguments, or of a source or
        tokenizer whose contents have changed since.
      Retry: full disk, or a worker killed; the same command continues.
    """
    check_path("SOURCE", source)
    tokenizers.check(tokenizer, vocab_size)
    if not source:
        raise UsageError("prepare needs a corpus, a file or a folder; `bigmodel prepare list` shows the corpora")
    arguments = {
        "source": source,
        "tokenizer": tokenizer,
        "vocab_size": vocab_size if tokenizer == "bpe" else None,
        "validation_fraction": validation_fraction,
        "text_key": text_key,
        "shard_tokens": shard_tokens,
        "limit_bytes": 0,  # an option of earlier versions
    }
    check_ranges("prepare: ", arguments, validation_fraction="(0, 1)", shard_tokens="[1, inf)")
    check_ranges("prepare: ", {"workers": workers}, workers="[0, inf)")
    return finished.once(out, arguments, verify, lambda opened, old: make(opened, old, arguments, workers, progress))


def make(to: Folder, old: Manifest | None, arguments: dict[str, Any], workers: int, progress: bool) -> Manifest:
    """All the work; `prepare` adds the checks before it. `old`: the manifest of damaged data."""
    seen = Found()
    with bars(progress) as bar:
        # ---- read
        encoder = None if arguments["tokenizer"] == "bpe" else tokenizers.ready(arguments["tokenizer"])
        listing = old["sources"][0].get("listing") if old else None  # of an older version, whose rules its data keeps
        name, sources, found = documents.open_source(arguments["source"], arguments["text_key"], seen, bool(listing))
        spool = Spool(to.work / "documents.txt", encoder, seen, bar).fill(found)
        spool, splits, split_by = split(spool, name, arguments, may_cut=not listing)
        if listing:
            sources[0]["listing"] = listing
        elif seen.files:
            sources[0]["sha256"] = seen.digest()
            if old and old["sources"][0].get("sha256") not in (None, "", sources[0]["sha256"]):
                raise finished.changed(arguments["source"], to.root)

        # ---- tokenizer
        to.begin()
        if encoder is None:
            encoder = trained(spool, splits["train"], arguments["vocab_size"], to, bar)
        files = {}
        if encoder.content:
            files["tokenizer.json"] = to.put("tokenizer.json", encoder.content.encode())

        # ---- encode
        tasks = {
            (split, number): shards.Task(
                f"{split}-{number:05d}", spool.key(part, encoder), to, spool.path, spool.spans(part), encoder
            )
            for split, chosen in splits.items()
            for number, part in enumerate(spool.shards(chosen, arguments["shard_tokens"]))
        }
        receipts = encode(list(tasks.values()), workers, bar)

    # ---- manifest, last
    rows = {s: [receipts[task.name] for (split, _), task in tasks.items() if split == s] for s in splits}
    manifest = {
        "format": finished.FORMAT,
        "name": name,
        "source": arguments["source"],
        "arguments": arguments,
        "tokenizer": tokenizers.described(encoder),
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
        "files": files,
    }
    wanted = {task.name for task in tasks.values()}
    for path in to.root.iterdir():  # of an unfinished attempt with other arguments, which had more of them
        if re.fullmatch(shards.OURS, path.name) and path.name.split(".")[0] not in wanted:
            path.unlink()
    if seen.files and not listing:
        to.put_json("sources.json", sealed({"files": seen.files}))
    if old and old["hash"] != manifest["hash"]:
        seen.notes.append(f"other data than before (another version of a library?): its hash was {old['hash'][:12]}")
    for line in seen.notes:
        note(f"{arguments['source']!r}: {line}")
    if seen.left_out:
        note(f"left out of {arguments['source']!r}: {seen}")
    return to.finish(manifest)


def data_hash(encoder: AnyTokenizer, digests: list[str]) -> str:
    """Names the data: equal hashes mean the same tokens in the same order."""
    content = hashlib.sha256(encoder.content.encode()).hexdigest()
    row = [encoder.kind, content, shards.dtype_for(encoder.vocab_size), *digests]
    return hashlib.sha256(json.dumps(row).encode()).hexdigest()


# ------------------------------------------------------------------------------------- steps


def split(spool: Spool, name: str, arguments: dict[str, Any], may_cut: bool) -> tuple[Spool, dict[str, list[int]], str]:
    """The documents or their pieces, which of them are in each split, and what the text was split by.

    A single document is cut into pieces. So are long documents, if `may_cut`, where validation would be most of the
    text though less was asked for.
    """
    fraction, split_by, seen = arguments["validation_fraction"], "document", spool.seen
    if len(spool) == 1:
        split_by = f"piece of {PIECES}"
        spool = spool.cut([name])
    if len(set(spool.texts)) < 2:
        what = "no text" if not len(spool) else "fewer than two different documents"
        why = f" (left out: {seen})" if seen.left_out else ""
        raise UsageError(f"{arguments['source']!r} holds {what}: nothing to split into train and validation{why}")
    splits = spool.split(fraction)
    share = spool.share(splits["validation"])
    if may_cut and split_by == "document" and fraction <= 0.5 < share:
        split_by = f"document, a long one by pieces of {PIECES}"
        seen.notes.append(f"validation would be {share:.1%} of the text: long documents are split into pieces")
        spool = spool.cut([i.hex() for i in spool.ids])
        splits = spool.split(fraction)
        share = spool.share(splits["validation"])
    if not fraction / 4 <= share <= 2 * fraction + 0.02:
        seen.notes.append(f"validation is {share:.2%} of the text, not {fraction:.1%}: documents are few or unequal")
    return spool, splits, split_by


def trained(spool: Spool, train: list[int], vocab_size: int, to: Folder, bar: Any) -> AnyTokenizer:
    """The BPE of the train documents; an earlier run's if it had the same texts, since training takes a while."""
    digest = hashlib.sha256(f"{finished.FORMAT} {vocab_size} ".encode())
    for i in train:
        digest.update(spool.texts[i])
    key, receipt = digest.hexdigest(), folder.read_json(to.root / "tokenizer.receipt.json")
    if receipt and receipt.get("key") == key and folder.has_digest(to.root / "tokenizer.json", receipt.get("sha256")):
        return tokenizers.Subwords("bpe", (to.root / "tokenizer.json").read_text(), "tokenizer.json")
    task = bar.add_task(f"training bpe, {vocab_size} entries", total=None)
    batches = shards.read_texts(spool.path, spool.spans(train))
    made = tokenizers.train((text for batch in batches for text in batch), vocab_size)
    sha256 = to.put("tokenizer.json", made.content.encode())
    to.put_json("tokenizer.receipt.json", {"key": key, "sha256": sha256})
    bar.update(task, total=1, completed=1, description=f"trained bpe, {made.vocab_size} entries")
    return made


def encode(tasks: list[shards.Task], workers: int, bar: Any) -> dict[str, dict[str, Any]]:
    """Receipts by shard name. Finished shards are verified and skipped, the others written in parallel."""
    total = bar.add_task("encoding", total=sum(size for t in tasks for _, size in t.spans))
    receipts: dict[str, dict[str, Any]] = {}

    def took(task: shards.Task, receipt: dict[str, Any]) -> None:
        receipts[task.name] = receipt
        bar.update(total, advance=receipt["bytes"], description=f"encoding, {len(receipts)} of {len(tasks)} shards")

    left = []
    for task in tasks:
        if receipt := shards.finished(task):
            took(task, receipt)
        else:
            left.append(task)
    count = min(workers or os.cpu_count() or 1, len(left))
    if count <= 1:
        for task in left:
            took(task, shards.write_shard(task))
        return receipts
    # spawn: a fork would copy the trained tokenizer's threads half alive
    pool = ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), initializer=start_worker)
    try:
        running = {pool.submit(shards.write_shard, task): task for task in left}
        for future in as_completed(running):
            took(running[future], future.result())
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return receipts


def start_worker() -> None:
    """Gives `tokenizers` one thread, since processes are the parallelism, and ends the worker with its parent.

    The pool's workers hold both ends of their queue: after a kill -9 of the parent they would wait for ever.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def bars(progress: bool) -> Any:
    """Progress bars on stderr, so that stdout stays for results."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    return Progress(*columns, console=Console(stderr=True), disable=not progress)
