"""Evaluate a finished run on held-out data.

The metrics follow from what the run was trained for:

  text            loss, and loss by position in the window
  labels          accuracy; precision, recall and F1 of each class; confusion matrix
  translations    BLEU and chrF beside a dictionary's and a copy's, and some translations to read

Writes evaluation-SPLIT.json, and for translations translations-SPLIT.jsonl, into the folder of the run.

Examples:
  bigmodel evaluate runs/0123456789ab
  bigmodel evaluate runs/0123456789ab --split=validation --limit=100 --beams=1
"""

import json
import sys
from typing import Any

from bigmodel import cli, errors, files
from bigmodel.errors import UsageError

CLOUD = ("run", "data_dir")


def arguments(parser: cli.Parser) -> None:
    parser.add_argument("run", help="folder of a finished run")
    parser.add_argument("--split", default="", help="train, validation or test (default: test if the data have one)")
    parser.add_argument("--limit", type=int, default=0, help="largest number of examples; 0: all")
    parser.add_argument("--beams", type=int, default=4, help="beams of the search; 1: greedy")
    parser.add_argument("--show", type=int, default=8, help="number of translations to print")
    parser.add_argument("--data-dir", default="", help="folder of the data, if it has moved")


def run(args: cli.Args, _: cli.Overrides) -> int:
    errors.check_ranges("--", args, limit="[0, inf)", beams="[1, inf)", show="[0, inf)")
    cli.start_jax(args)
    from etils import epath

    from bigmodel.after import evaluate
    from bigmodel.run import record

    finished = evaluate.restore(args.run, args.data_dir)
    result, spec = finished.result, finished.family.spec(finished.config.model)
    if result.get("status") == "diverged":
        print(f"{args.run} diverged: evaluated at step {result['last_good_step']}", file=sys.stderr)
    has_test = finished.config.data.source in ("tasks", "images")
    split = args.split or ("test" if has_test else "validation")
    errors.choose("--split", split, ["train", "validation", "test"] if has_test else ["train", "validation"])
    how = _pairs if "source" in spec else _labelled if "label" in spec else _text
    numbers, lines = how(finished, split, args)
    numbers = {"run_id": result["run_id"], "split": split, "limit": args.limit, **numbers}
    with files.writing(args.run):
        record.write_json(epath.Path(args.run) / f"evaluation-{split}.json", numbers)
    cli.print_json(numbers) if args.json else print("\n".join(lines))
    return 0


def _text(run: Any, split: str, args: cli.Args) -> tuple[dict[str, Any], list[str]]:
    from bigmodel.after import evaluate

    nats_L = evaluate.by_position(run, split, args.limit)
    loss, L = float(nats_L.mean()), len(nats_L)
    ends = sorted({min(2**k, L) for k in range(L.bit_length() + 1)})
    rows = [["", f"{a + 1}-{b}", f"{nats_L[a:b].mean():.4f}"] for a, b in zip([0, *ends], ends, strict=False)]
    head = f"{split}: loss {loss:.4f}; by position in the window:"
    return {"loss": loss, "by_position": nats_L.tolist()}, [head, cli.table(["", "positions", "loss"], rows)]


def _labelled(run: Any, split: str, args: cli.Args) -> tuple[dict[str, Any], list[str]]:
    from bigmodel.after import evaluate, scores

    if run.family.spec(run.config.model)["label"] != ((), "int32"):  # a number to predict, or a class per token
        result = run.result
        raise UsageError(f"run {result['run_id']} does not classify examples; its loss is {result['loss']}")
    predicted, labels = evaluate.classes(run, split, args.limit)
    found = scores.classification(predicted, labels, evaluate.labels(run))
    keys = ("precision", "recall", "f1")
    rows = [[n, r["examples"], *(f"{r[k]:.4f}" for k in keys)] for n, r in found["classes"].items()]
    overall = f"accuracy {found['accuracy']:.4f}, macro F1 {found['macro_f1']:.4f}"
    head = f"{split}: {found['examples']} examples, {overall}"
    return found, [head, cli.table(["class", "examples", *keys], rows)]


def _pairs(run: Any, split: str, args: cli.Args) -> tuple[dict[str, Any], list[str]]:
    from etils import epath
    from rich.console import Console
    from rich.progress import track

    from bigmodel.after import evaluate, scores
    from bigmodel.prepare import tokenizer

    rows = evaluate.texts(run, split, args.limit)
    decode = tokenizer.load(epath.Path(run.config.run.data_dir) / run.config.data.name).decode
    outputs = evaluate.translate(run, split, args.limit, args.beams)
    quiet = not sys.stderr.isatty()
    shown = track(outputs, "translating", len(rows), console=Console(stderr=True), disable=quiet)
    ours = [decode(ids) for ids in shown]
    sources, references = [row["source"] for row in rows], [row["target"] for row in rows]
    with files.writing(args.run), (epath.Path(args.run) / f"translations-{split}.jsonl").open("w") as f:
        for row, text in zip(rows, ours, strict=True):
            f.write(json.dumps({**row, "translation": text}, ensure_ascii=False) + "\n")
    lookup = scores.dictionary([(r["source"], r["target"]) for r in evaluate.texts(run, "train")])
    words = [lookup(source) for source in sources]
    found = {"examples": len(rows), "beams": args.beams, **scores.agreement(ours, references)}
    found["dictionary"] = scores.agreement(words, references)
    found["copy"] = scores.agreement(sources, references)
    scored = {f"this run, {args.beams} beams": found, "dictionary (IBM 1)": found["dictionary"], "copy": found["copy"]}
    body = [[name, f"{r['bleu']:.2f}", f"{r['chrf']:.2f}"] for name, r in scored.items()]
    lines = [f"{split}: {len(rows)} pairs", cli.table(["", "BLEU", "chrF"], body), "; ".join(found["signatures"])]
    for k in range(0, len(rows), max(1, len(rows) // max(1, args.show)))[: args.show]:
        lines += [f"\n  source     {sources[k]}", f"  reference  {references[k]}"]
        lines += [f"  this run   {ours[k]}", f"  dictionary {words[k]}"]
    return found, lines
