"""Download or read a corpus and write it as token shards.

SOURCE is a named corpus (`bigmodel prepare list`), a file or folder of .txt, .md, .jsonl, .json (also .gz or .zst) or
.parquet, or hf:OWNER/NAME, a Hugging Face dataset; or a folder with a sub-folder of pictures for each class, or of
pictures with captions.jsonl, a line each: {"image": "a.png", "caption": "..."} (also "captions": [...], "label",
"language", and "concept", of which all pictures are in one split). The list also names tasks with labels or
translations, images, and published weights. A .jsonl of {"messages": [{"role",
"content"}, ...]} or {"prompt", "answer"} becomes conversations in ChatML; only what the assistant says counts in the
loss. Documents, not windows, are split into training and validation.
A note counts what was left out. The command continues where it was killed; it leaves finished data as they are, and
writes damaged shards again.

Examples:
  bigmodel prepare news --out=data/news-bytes
  bigmodel prepare my_texts/ --tokenizer=bpe --vocab-size=8192 --out=data/mine-bpe
  bigmodel prepare my_pictures/ --size=64 --out=data/pictures
"""

import sys
from pathlib import Path
from typing import Any

from bigmodel import cli
from bigmodel.errors import UsageError

CLOUD = ("out",)


def arguments(parser: cli.Parser) -> None:
    parser.add_argument("source", help="corpus name, file, folder, hf:NAME, or `list`")
    parser.add_argument("--out", help="folder to write (default: data/SOURCE-TOKENIZER)")
    text = "bytes, bpe (trained here), gpt2, clip, or a tokenizer.json"
    parser.add_argument("--tokenizer", default="bytes", help=text)
    parser.add_argument("--vocab-size", type=int, default=4096, help="entries of a bpe trained here")
    fraction = "of the documents (default: 0.02; tasks: 0.05 or 0.1, and as many in test)"
    parser.add_argument("--validation-fraction", type=float, help=fraction)
    key = "key (.jsonl, .json) or column (.parquet, hf:) that holds the text"
    parser.add_argument("--text-key", default="text", help=key)
    parser.add_argument(
        "--size", type=int, help="side of the pictures of a folder of yours, or with captions, in pixels (default: 64)"
    )
    parser.add_argument("--workers", type=int, default=0, help="number of processes; 0: one per core")
    parser.add_argument("--verify", action="store_true", help="read finished data again, and repair damaged files")


def run(args: cli.Args, _: cli.Overrides) -> int:
    if args.source == "list":
        return _list(args)
    out, manifest = _prepare(args)
    if args.json:
        cli.print_json(manifest)
        return 0
    for name, row in manifest.get("splits", {}).items():
        counts = [f"{v:>13,} {k.replace('_', ' ')}" for k, v in row.items() if isinstance(v, int)]
        print(f"{name:>10}: {'  '.join(counts)}")
    vocabulary = f"vocabulary {manifest['tokenizer']['vocab_size']:,}, " if "tokenizer" in manifest else ""
    print(f"{out}: {vocabulary}licence {manifest['licence']}{', all files verified' if args.verify else ''}")
    return 0


def _list(args: cli.Args) -> int:
    from bigmodel.prepare import captions, corpora, images, published, registries, tasks

    kinds = [corpora.CORPORA, {**tasks.TASKS, **images.SETS, **captions.SETS}, published.WEIGHTS]
    tables = [registries.table(kind) for kind in kinds]
    if args.json:
        cli.print_json([row for rows in tables for row in rows])
        return 0
    for rows in tables:
        sizes = [key for key in rows[0] if key in ("megabytes", "documents", "examples")]
        columns = ["name", "client", *sizes, "about", "package", "licence"]
        print(cli.table(columns, [[row[key] for key in columns] for row in rows]), end="\n\n")
    return 0


def _prepare(args: cli.Args) -> tuple[str, dict[str, Any]]:
    """(folder, its manifest)"""
    from bigmodel.prepare import captions, chats, images, pictures, prepare, published, tasks

    fraction = args.validation_fraction
    of_captions = args.source in captions.SETS or captions.is_folder(args.source)
    of_pictures = args.source not in images.SETS and not of_captions and pictures.is_folder(args.source)
    if args.size is not None and not (of_pictures or of_captions):
        raise UsageError(
            f"prepare {args.source!r}: --size is of pictures with captions, or of a folder with a sub-folder of "
            "pictures for each class"
        )
    size = 64 if args.size is None else args.size
    if args.source in (*images.SETS, *published.WEIGHTS):
        if args.tokenizer != "bytes" or fraction is not None:
            raise UsageError(f"prepare {args.source}: takes no --tokenizer and no --validation-fraction")
        out = args.out or f"data/{args.source}"
        made = images.prepare_images if args.source in images.SETS else published.prepare_weights
        return out, made(args.source, out, verify=args.verify)
    stem = args.source.removeprefix("hf:").rstrip("/").split("/")[-1].split(".")[0]
    out = args.out or f"data/{stem}-{Path(args.tokenizer).stem}"
    how = {"tokenizer": args.tokenizer, "vocab_size": args.vocab_size, "verify": args.verify}
    if of_pictures:
        if args.tokenizer != "bytes":
            raise UsageError(f"prepare {args.source!r}: a folder with classes of pictures takes no --tokenizer")
        out = args.out or f"data/{Path(args.source).resolve().name}"
        fraction = 0.1 if fraction is None else fraction
        return out, pictures.prepare_pictures(args.source, out, size, fraction, args.verify)
    if of_captions:
        return out, captions.prepare_captions(args.source, out, size, fraction=fraction, **how)
    if args.source in tasks.TASKS:
        return out, tasks.prepare_task(args.source, out, fraction=fraction, **how)
    if chats.is_file(args.source, args.text_key):
        return out, chats.prepare_chats(args.source, out, fraction=fraction, **how)
    how |= {"text_key": args.text_key, "workers": args.workers, "progress": sys.stderr.isatty()}
    return out, prepare.prepare(args.source, out, validation_fraction=0.02 if fraction is None else fraction, **how)
