"""The verb that tells what a finished run is worth. Layer 6."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bigmodel import config
from bigmodel.config import UsageError
from bigmodel.verbs import print_json, print_table
from bigmodel.verbs.runs import start_jax


def evaluate(args: argparse.Namespace, _: Any) -> int:
    for name, least in (("limit", 0), ("beams", 1), ("show", 0)):
        if getattr(args, name) < least:
            raise UsageError(f"--{name}={getattr(args, name)}: must be at least {least}")
    start_jax(args)
    from bigmodel import evaluate as evaluation
    from bigmodel import track

    run = evaluation.restore(args.run, args.data_dir)
    task = run.config.data.source in ("tasks", "images")
    split = args.split or ("test" if task else "validation")
    config.choose("--split", split, ["train", "validation", "test"] if task else ["train", "validation"])
    how = {True: _pairs, False: _labelled}["source" in run.family.spec(run.config.model)]
    if "label" not in run.family.spec(run.config.model) and how is _labelled:
        how = _text
    found = {"run_id": run.result["run_id"], "split": split, **how(run, split, args)}
    with config.writing(Path(args.run)):
        track.write_json(Path(args.run) / f"evaluation-{split}.json", found)
    if args.json:
        print_json(found)
    return 0


def _text(run: Any, split: str, args: argparse.Namespace) -> dict[str, Any]:
    from bigmodel import evaluate as evaluation

    nats_L = evaluation.by_position(run, split, args.limit)
    found = {"loss": float(nats_L.mean()), "by_position": nats_L.tolist()}
    if not args.json:
        places = [2**k for k in range(len(nats_L).bit_length())]
        places = [p for p in places if p <= len(nats_L)]
        print(f"{split}: loss {found['loss']:.4f}; by position in the window (mean since the one before):")
        means = [nats_L[p // 2 : p].mean() for p in places]
        print_table(["", "position", "loss"], [["", p, f"{m:.4f}"] for p, m in zip(places, means, strict=True)])
    return found


def _labelled(run: Any, split: str, args: argparse.Namespace) -> dict[str, Any]:
    from bigmodel import evaluate as evaluation
    from bigmodel import scores

    if "num_classes" not in run.config.model or str(run.config.model.get("objective", "")) in ("regress", "tag"):
        raise UsageError(
            f"run {run.result['run_id']} predicts no class of its examples; its loss is {run.result['loss']}"
        )
    predicted, labels = evaluation.classes(run, split, args.limit)
    names = evaluation.labels(run)
    found = scores.classification(predicted, labels, names)
    if not args.json:
        print(f"{split}: {found['examples']} examples, accuracy {found['accuracy']:.4f}, F1 {found['f1']:.4f}")
        keys = ("precision", "recall", "f1")
        rows = [[n, int(r["examples"]), *(f"{r[k]:.4f}" for k in keys)] for n, r in found["classes"].items()]
        print_table(["class", "examples", *keys], rows)
    return found


def _pairs(run: Any, split: str, args: argparse.Namespace) -> dict[str, Any]:
    from bigmodel import evaluate as evaluation
    from bigmodel import scores
    from bigmodel.prepare import tokenizer

    folder = str(Path(run.config.run.data_dir) / run.config.data.name)
    decode = tokenizer.load(folder).decode
    rows = evaluation.texts(folder, split, args.limit)
    made = [decode(ids) for ids in _shown(evaluation.translate(run, split, args.limit, args.beams), len(rows))]
    theirs = [row["target"] for row in rows]
    plain = scores.dictionary([(r["source"], r["target"]) for r in evaluation.texts(folder, "train")])
    worded = [plain(row["source"]) for row in rows]
    found = {
        "examples": len(rows), "beams": args.beams, **scores.agreement(made, theirs),
        "dictionary": scores.agreement(worded, theirs),
        "copy": scores.agreement([row["source"] for row in rows], theirs),
    }  # fmt: skip
    with config.writing(Path(args.run)), open(Path(args.run) / f"translations-{split}.jsonl", "w") as f:
        for row, text in zip(rows, made, strict=True):
            f.write(json.dumps({**row, "translation": text}, ensure_ascii=False) + "\n")
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
