"""The verb that tells what a finished run is worth."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from typing import Any

from etils import epath

from bigmodel import errors, files
from bigmodel.cli import print_json, print_table
from bigmodel.cli.runs import start_jax
from bigmodel.errors import UsageError


def evaluate(args: argparse.Namespace, _: Any) -> int:
    for name, least in (("limit", 0), ("beams", 1), ("show", 0)):
        if getattr(args, name) < least:
            raise UsageError(f"--{name}={getattr(args, name)}: must be at least {least}")
    start_jax(args)
    from bigmodel.after import evaluate as evaluation
    from bigmodel.run import record

    run = evaluation.restore(args.run, args.data_dir)
    if run.result.get("status") == "diverged":
        print(f"{args.run} diverged: evaluated at step {run.result['last_good_step']}", file=sys.stderr)
    task = run.config.data.source in ("tasks", "images")
    split = args.split or ("test" if task else "validation")
    errors.choose("--split", split, ["train", "validation", "test"] if task else ["train", "validation"])
    how = {True: _pairs, False: _labelled}["source" in run.family.spec(run.config.model)]
    if "label" not in run.family.spec(run.config.model) and how is _labelled:
        how = _text
    found = {"run_id": run.result["run_id"], "split": split, "limit": args.limit, **how(run, split, args)}
    with files.writing(args.run):
        record.write_json(epath.Path(args.run) / f"evaluation-{split}.json", found)
    if args.json:
        print_json(found)
    return 0


def _text(run: Any, split: str, args: argparse.Namespace) -> dict[str, Any]:
    from bigmodel.after import evaluate as evaluation

    nats_L = evaluation.by_position(run, split, args.limit)
    found = {"loss": float(nats_L.mean()), "by_position": nats_L.tolist()}
    if not args.json:
        L = len(nats_L)
        ends = sorted({min(2**k, L) for k in range(L.bit_length() + 1)})
        spans = list(zip([0, *ends], ends, strict=False))
        print(f"{split}: loss {found['loss']:.4f}; by position in the window:")
        print_table(["", "positions", "loss"], [["", f"{a + 1}-{b}", f"{nats_L[a:b].mean():.4f}"] for a, b in spans])
    return found


def _labelled(run: Any, split: str, args: argparse.Namespace) -> dict[str, Any]:
    from bigmodel.after import evaluate as evaluation
    from bigmodel.after import scores

    if run.family.spec(run.config.model)["label"] != ((), "int32"):  # a number to be near, or a class a token
        raise UsageError(
            f"run {run.result['run_id']} predicts no class of its examples; its loss is {run.result['loss']}"
        )
    predicted, labels = evaluation.classes(run, split, args.limit)
    names = evaluation.labels(run)
    found = scores.classification(predicted, labels, names)
    if not args.json:
        overall = f"accuracy {found['accuracy']:.4f}, macro F1 {found['macro_f1']:.4f}"
        print(f"{split}: {found['examples']} examples, {overall}")
        keys = ("precision", "recall", "f1")
        rows = [[n, r["examples"], *(f"{r[k]:.4f}" for k in keys)] for n, r in found["classes"].items()]
        print_table(["class", "examples", *keys], rows)
    return found


def _pairs(run: Any, split: str, args: argparse.Namespace) -> dict[str, Any]:
    from bigmodel.after import evaluate as evaluation
    from bigmodel.after import scores
    from bigmodel.prepare import tokenizer

    rows = evaluation.texts(run, split, args.limit)
    decode = tokenizer.load(epath.Path(run.config.run.data_dir) / run.config.data.name).decode
    made = [decode(ids) for ids in _shown(evaluation.translate(run, split, args.limit, args.beams), len(rows))]
    theirs = [row["target"] for row in rows]
    with files.writing(args.run), (epath.Path(args.run) / f"translations-{split}.jsonl").open("w") as f:
        for row, text in zip(rows, made, strict=True):
            f.write(json.dumps({**row, "translation": text}, ensure_ascii=False) + "\n")
    plain = scores.dictionary([(r["source"], r["target"]) for r in evaluation.texts(run, "train")])
    worded = [plain(row["source"]) for row in rows]
    found = {
        "examples": len(rows), "beams": args.beams, **scores.agreement(made, theirs),
        "dictionary": scores.agreement(worded, theirs),
        "copy": scores.agreement([row["source"] for row in rows], theirs),
    }  # fmt: skip
    if not args.json:
        print(f"{split}: {len(rows)} pairs")
        named = {
            f"this run, {args.beams} beams": found,
            "dictionary (IBM 1)": found["dictionary"],
            "copy": found["copy"],
        }
        print_table(["", "BLEU", "chrF"], [[n, f"{r['bleu']:.2f}", f"{r['chrf']:.2f}"] for n, r in named.items()])
        print("; ".join(found["signatures"]))
        for k in range(0, len(rows), max(1, len(rows) // max(1, args.show)))[: args.show]:
            print(f"\n  source     {rows[k]['source']}\n  reference  {theirs[k]}\n  this run   {made[k]}")
            print(f"  dictionary {worded[k]}")
    return found


def _shown(found: Iterable[Any], total: int) -> Iterable[Any]:
    """With a progress bar, where someone looks on."""
    from rich.console import Console
    from rich.progress import track

    return track(found, "translating", total, console=Console(stderr=True), disable=not sys.stderr.isatty())
