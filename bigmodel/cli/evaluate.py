"""Evaluate a finished run on held-out data.

The scores follow from what the run was trained for:

  text            loss, perplexity, bits per byte of text, and loss by position in the window
  labels          accuracy; precision, recall and F1 of each class; confusion matrix; calibration, with a figure
  translations    BLEU and chrF beside a dictionary's and a copy's, and some translations to read
  captions        recall of captions and pictures by language, beside chance; classes told by prompts; a figure
  anything else   what its family scores; the loss of masked tokens is no likelihood of the text, and has no perplexity

Writes evaluation-SPLIT.json into the folder of the run; of labels also evaluation-SPLIT-reliability.png, .svg and .pdf,
and of pictures evaluation-SPLIT-mistakes, the most confident ones; of captions evaluation-SPLIT-found; of translations
translations-SPLIT.jsonl. --choices and --harness ask a run that continues text instead, and write
evaluation-choices.json and evaluation-harness.json; they also take published weights (a Hugging Face folder, a .gguf
file), and write nothing there.

Examples:
  bigmodel evaluate runs/0123456789ab
  bigmodel evaluate runs/0123456789ab --split=validation --limit=100 --beams=1
  bigmodel evaluate runs/0123456789ab --data=moby-dick,austen
  bigmodel evaluate runs/0123456789ab --probe=10 --data=mnist
  bigmodel evaluate runs/0123456789ab --slice=length,label --corrupt=typos:0.1,truncate:0.5
  bigmodel evaluate data/smollm2 --choices=questions.jsonl --shots=5
  bigmodel evaluate runs/0123456789ab --harness=my_task.yaml
"""

import json
import sys
from collections.abc import Callable
from typing import Any

from bigmodel import cli, errors, files
from bigmodel.errors import UsageError

CLOUD = ("run", "data_dir")
ALONE = ("split", "data", "slice", "corrupt", "prompt")  # options of an evaluation on a split


def arguments(parser: cli.Parser) -> None:
    add = parser.add_argument
    add("run", help="folder of a finished run; with --choices or --harness also published weights")
    add("--split", default="", help="train, validation or test (default: test if the data have one)")
    add("--limit", type=int, default=0, help="largest number of examples; 0: all")
    add("--beams", type=int, default=4, help="beams of the search; 1: greedy")
    add("--show", type=int, default=8, help="number of translations to print")
    text = "of a run that predicts text: other prepared data with its tokenizer; that it hasn't read them isn't checked"
    add("--data", default="", metavar="NAME,...", help=text)
    text = (
        "of a run on pictures: test accuracy of a linear probe of its features, by so many examples a class of --data"
    )
    add("--probe", type=int, default=0, metavar="SHOTS", help=text)
    text = "mean scores by columns of the examples, with intervals; length: of a text, in tokens"
    add("--slice", default="", metavar="COLUMN,...", help=text)
    text = "what labels' accuracy loses by typos:RATE or truncate:SHARE of texts, noise:DEVIATIONS of features"
    add("--corrupt", default="", metavar="CHANGE:AMOUNT,...", help=text)
    add("--seed", type=int, default=0, help="of --corrupt and of the bootstrap")
    text = 'JSON lines {"prompt": ..., "choices": [...], "answer": 0}: is the right choice the likeliest?'
    text = "of a run on captions: asks for classes by this, as 'a picture of {}'; again for more (default: {})"
    add("--prompt", action="append", default=[], metavar="TEXT", help=text)
    add("--choices", default="", metavar="FILE", help=text)
    add("--shots", type=int, default=0, help="of --choices: lines put before each prompt, and not asked; of --harness")
    add("--delimiter", default=" ", help="of --choices: what stands between a prompt and a choice (default: a space)")
    add("--harness", default="", metavar="TASK,...", help="tasks of lm-evaluation-harness: names or YAML files")
    add("--data-dir", default="", help="folder of the data, if it has moved")


def run(args: cli.Args, _: cli.Overrides) -> int:
    ranges = dict.fromkeys(("limit", "show", "seed", "shots", "probe"), "[0, inf)")
    errors.check_ranges("--", args, beams="[1, inf)", **ranges)
    asked = [name for name in ("choices", "harness") if getattr(args, name)]
    if asked and (other := [f"--{name}" for name in (*ALONE, *asked[1:]) if getattr(args, name)]):
        raise UsageError(f"--{asked[0]} can't be combined with {', '.join(other)}")
    cli.start_jax(args)
    from etils import epath

    from bigmodel.after import evaluate
    from bigmodel.run import record, weights

    if asked:
        numbers, lines = _questions(*_opened(args), args)
        if not weights.is_published(args.run):
            with files.writing(args.run):
                record.write_json(epath.Path(args.run) / f"evaluation-{asked[0]}.json", numbers)
        cli.print_json(numbers) if args.json else print("\n".join(lines))
        return 0
    if weights.is_published(args.run):
        command = f"bigmodel convert {args.run} --out=RUN --data=NAME"
        raise UsageError(f"{args.run!r} holds published weights, and says no data to evaluate them on: {command}")
    finished = evaluate.restore(args.run, args.data_dir)
    result, spec = finished.result, finished.family.spec(finished.config.model)
    if result.get("status") == "diverged":
        print(f"{args.run} diverged: evaluated at step {result['last_good_step']}", file=sys.stderr)
    if result["status"] == record.CONVERTED and not finished.config.data.get("name"):
        raise UsageError(f"{args.run!r} was converted without --data, so there is nothing to evaluate it on")
    has_test = finished.config.data.source in ("tasks", "images", "captions")
    split = args.split or ("test" if has_test else "validation")
    errors.choose("--split", split, ["train", "validation", "test"] if has_test else ["train", "validation"])
    how = _own
    if args.probe:
        how = _probed
    elif "source" in spec:
        how = _pairs
    elif {"image", "tokens", "length"} <= set(spec):
        how = _captioned
    elif spec.get("label") == ((), "int32"):
        how = _labelled
    elif evaluate.places(finished):
        how = _text
    fitting = {"data": [_text, _probed], "slice": [_labelled, _pairs], "corrupt": [_labelled], "prompt": [_captioned]}
    for option, kinds in fitting.items():
        if getattr(args, option) and how not in kinds:
            raise UsageError(f"--{option} doesn't suit what this run predicts; see `bigmodel evaluate --help`")
    numbers, lines = how(finished, split, args)
    numbers = {"run_id": result["run_id"], "split": split, "limit": args.limit, **numbers}
    with files.writing(args.run):
        stem = "probe" if args.probe else split
        record.write_json(epath.Path(args.run) / f"evaluation-{stem}.json", numbers)
    cli.print_json(numbers) if args.json else print("\n".join(lines))
    return 0


Found = tuple[dict[str, Any], list[str]]  # what is written, and the lines that are printed


def _rows(title: str, rows: dict[str, dict[str, Any]]) -> str:
    """A table of rows with the same keys, of numbers or None."""

    def cell(x: Any) -> str:
        return "unknown" if x is None else f"{x:.4f}" if isinstance(x, float) else f"{x:,}"

    head = list(next(iter(rows.values()), {}))
    return cli.table([title, "", *head], [[name, "", *(cell(row[k]) for k in head)] for name, row in rows.items()])


def _range(interval: list[float]) -> str:
    return f"{interval[0]:.4f} to {interval[1]:.4f}"


def _tokenizer(run: Any) -> Any:
    from bigmodel import data
    from bigmodel.prepare import tokenizer

    return tokenizer.load(data.folder(run.config.data, run.config.run.data_dir))


def _own(run: Any, split: str, args: cli.Args) -> Found:
    from bigmodel.after import evaluate

    found = evaluate.own_scores(run, split, args.limit)
    lines = [f"{split}: " + ", ".join(f"{name} {value:.4f}" for name, value in found.items())]
    spec = run.family.spec(run.config.model)
    if "tokens" in spec and "label" not in spec:
        lines.append("the loss is no likelihood of the text (of masked tokens: a pseudo-likelihood), so no perplexity")
    return found, lines


def _text(run: Any, split: str, args: cli.Args) -> Found:
    from bigmodel.after import evaluate

    names = [run.config.data.name, *filter(None, args.data.split(","))]
    runs = [run, *(evaluate.on(run, name) for name in names[1:])]
    found = {name: evaluate.text(each, split, args.limit) for name, each in zip(names, runs, strict=True)}
    keys = ("tokens", "loss", "perplexity", "bits_per_byte")
    lines = [f"{split}:", _rows("data", {name: {k: row[k] for k in keys} for name, row in found.items()})]
    if not all(r["bits_per_byte"] for r in found.values()):
        lines.append("unknown: the tokenizer doesn't say how many bytes each of its tokens stands for")
    if run.config.model.get("objective") == "prefix" and run.config.family == "decoder":
        lines.append("with a prefix of one token, where training draws its length: the run's own loss is another")
    nats, start = found[names[0]]["by_position"], found[names[0]]["first_position"]
    ends = sorted({min(2**k, len(nats)) for k in range(len(nats).bit_length() + 1)})
    parts = [(a, b) for a, b in zip([0, *ends], ends, strict=False)]
    rows = [["", f"{start + a}-{start + b - 1}", f"{sum(nats[a:b]) / (b - a):.4f}"] for a, b in parts]
    lines += [f"{names[0]}, loss by position in the window:", cli.table(["", "positions", "loss"], rows)]
    return found[names[0]] | ({"data": found} if len(names) > 1 else {}), lines


def _opened(args: cli.Args) -> tuple[Any, Any]:
    """A run, or published weights as one that has no data, and the tokenizer."""
    from ml_collections import FrozenConfigDict

    from bigmodel.after import choices, evaluate, opened
    from bigmodel.prepare import tokenizer
    from bigmodel.run import weights

    published = weights.is_published(args.run)
    found = opened.open_published(args.run) if published else opened.open_run(args.run, args.data_dir)
    config = FrozenConfigDict({"family": found.family, "model": found.cfg.to_dict()})
    run = evaluate.Run(config, found.module, found.module.Model(found.cfg), {"params": found.params}, {})
    choices.check(run)
    if not found.tokenizer:
        raise UsageError(f"{args.run!r} has no tokenizer.json, which turns text into its tokens")
    chosen: Any = tokenizer.Published(found.tokenizer) if found.published else tokenizer.load(found.tokenizer)
    if found.published:
        chosen.separator = next(iter(found.ends), None)
    return run, chosen


def _questions(run: Any, tokenizer: Any, args: cli.Args) -> Found:
    from bigmodel.after import choices

    if args.choices:
        rows = choices.read(args.choices)[: args.limit + args.shots if args.limit else None]
        found = choices.multiple_choice(run, tokenizer, rows, args.shots, args.delimiter)
        said = [f"{k} {found[k]:.4f} ({_range(found[f'{k}_interval'])})" for k in choices.LENGTHS]
        return found, [f"{found['questions']} questions after {args.shots} examples: {', '.join(said)}"]
    try:
        from bigmodel.after import harness
    except ImportError as e:
        raise UsageError(f"--harness needs lm-evaluation-harness ({e}): pip install 'bigmodel[harness]'") from e
    found = harness.evaluated(run, tokenizer, args.harness.split(","), args.shots, args.limit)
    numbers = [(task, k, v) for task, row in found.items() for k, v in row.items() if isinstance(v, float)]
    return {"tasks": found}, [cli.table(["task", "metric", ""], [[t, k, f"{v:.4f}"] for t, k, v in numbers])]


def _probed(run: Any, split: str, args: cli.Args) -> Found:
    from bigmodel.after import probe

    if "image" not in run.family.spec(run.config.model) or "head" not in run.variables["params"]:
        raise UsageError("--probe reads what a head of classes reads of pictures, and this run has none")
    if args.split:
        raise UsageError(f"--probe={args.probe} learns from train and is tried on test: leave out --split={args.split}")
    found = {}
    for name in [run.config.data.name, *filter(None, args.data.split(","))]:
        found[name] = probe.accuracy(probe.on(run, name), args.probe, args.limit)
    rows = {name: {k: row[k] for k in ("shots", "examples", "accuracy")} for name, row in found.items()}
    return {"probe": found}, ["a linear probe of frozen features, 3 draws of examples, on test:", _rows("data", rows)]


def _labelled(run: Any, split: str, args: cli.Args) -> Found:
    import numpy as np

    from bigmodel.after import corruptions, evaluate, scores, slices

    log_p, labels = evaluate.log_probabilities(run, split, args.limit)
    names, right = evaluate.labels(run, log_p.shape[1]), np.argmax(log_p, axis=1) == labels
    found = scores.classification(log_p, labels, names)
    own = evaluate.own_scores(run, split, args.limit) if run.family.evaluate else {}
    classes = dict(found["classes"])
    for mean in ("micro", "macro", "weighted"):
        row = {k: found[f"{mean}_{k}"] for k in ("precision", "recall", "f1")}
        classes[f"({mean} mean)"] = {**row, "examples": len(labels)}
    lines = [f"{split}: {len(labels):,} examples, accuracy {found['accuracy']:.4f}", _rows("class", classes)]
    lines += ["", "confusion (row: true class)"]
    lines.append(cli.table(["", "", *names], [[n, "", *row] for n, row in zip(names, found["confusion"], strict=True)]))
    overall = {"negative log-likelihood": found["negative_log_likelihood"], "Brier score": found["brier"]}
    overall |= {"calibration error": found["expected_calibration_error"], "AUROC": found.get("auroc"), **own}
    lines += ["", ", ".join(f"{name} {value:.4f}" for name, value in overall.items() if value is not None)]
    sliced, told = _slices(run, split, args, "accuracy", right)
    found, lines, corrupted = {**own, **found, **sliced}, lines + told, {}
    encoder = _tokenizer(run) if args.corrupt and run.config.data.source == "tasks" else None
    for what in filter(None, args.corrupt.split(",")):
        examples = corruptions.changed(run, split, args.limit, what, encoder, args.seed)
        right_too = np.argmax(evaluate.log_probabilities(run, split, args.limit, examples)[0], axis=1) == labels
        fall = right.astype(float) - right_too
        low, high = slices.percentiles(slices.bootstrap(fall, np.random.default_rng(args.seed)))
        corrupted[what] = {"accuracy": float(right_too.mean()), "fall": float(fall.mean()), "low": low, "high": high}
    if corrupted:
        found["corrupted"] = corrupted
        lines += ["", _rows("changed by", corrupted), "low and high: 95 % interval of the fall, of the same examples"]
    bins = found["reliability"]
    intervals = [slices.wilson(round(b["accuracy"] * b["examples"]), b["examples"]) for b in bins]
    stem = f"evaluation-{split}-reliability"
    drawn = [_saved(lambda figures: figures.reliability(bins, intervals), args.run, stem)]
    if "image" in run.family.spec(run.config.model) and not right.all():
        drawn.append(_mistakes(run, args, split, log_p, labels, names))
    return found, [*lines, "", f"figure: {', '.join(drawn)}"]


def _slices(run: Any, split: str, args: cli.Args, what: str, scores: Any) -> Found:
    """The scores of a split's examples by the columns of --slice."""
    from bigmodel.after import evaluate, slices

    found, lines = {}, []
    columns = evaluate.columns(run, split, args.limit) if args.slice else {}
    for name in filter(None, args.slice.split(",")):
        errors.choose("--slice", name, columns)
        made = found[name] = slices.table(scores, slices.binned(columns[name]), args.seed)
        lines += ["", f"{what} by {name}, with its 95 % interval", _rows(name, made["slices"])]
        if few := [f"{' '.join(s.split())[:40]} ({n})" for s, n in made["too_small"].items()]:
            more = ", ..." if len(few) > 8 else ""
            lines.append(f"{len(few)} too small, under {slices.FEW} examples: {', '.join(few[:8])}{more}")
        if gap := made.get("gap"):
            between = f"largest gap, {gap['highest']} over {gap['lowest']}: {gap['gap']:.4f}"
            lines.append(f"{between} ({_range(gap['interval'])}); as large in {gap['p']:.2%} of random slices")
    return {"slices": found} if found else {}, lines


def _captioned(run: Any, split: str, args: cli.Args) -> Found:
    """Of pictures with captions; see `retrieval.scores`."""
    from bigmodel.after import evaluate, retrieval

    found = retrieval.scores(run, split, _tokenizer(run), args.limit, args.prompt)
    own = evaluate.own_scores(run, split, args.limit)
    lines = [f"{split}, in batches of {run.config.train.batch_size}: loss {own['loss']:.4f}, error {own['error']:.4f}"]
    rows = {f"{way}, {language}": row for language, ways in found["retrieval"].items() for way, row in ways.items()}
    shown = ("queries", "candidates", "r1", "r5", "r10", "chance_r5")
    lines += ["", _rows("recall of", {name: {k: row[k] for k in shown} for name, row in rows.items()})]
    keys = ("pictures", "accuracy", "balanced", "balanced_chance", "largest_class")
    if told := found["zero_shot"]:
        lines += ["", _rows("classes by prompts", {name: {k: row[k] for k in keys} for name, row in told.items()})]
        lines.append("balanced: mean recall of the classes; largest_class: accuracy of always saying that one")
    for language, row in told.items():
        if row["left_out"]:
            lines.append(f"left out: {row['left_out']:,} pictures without a label")
        names = [name[:12] for name in row["classes"]]
        table = [[n, "", *r] for n, r in zip(row["classes"], row["confusion"], strict=True)]
        lines += ["", f"confusion, {language} (row: true class)", cli.table(["", "", *names], table)]
    examples, rows = run.examples(split), found["found"]
    pictures = [[examples[k]["image"] for k in row["first_pair"]] for row in rows]
    told, right = ([row[key] for row in rows] for key in ("caption", "right"))
    drawn = _saved(lambda figures: figures.listed(pictures, told, right), args.run, f"evaluation-{split}-found")
    return {**own, **found}, [*lines, "", f"figure: {drawn}, right ones framed"]


def _mistakes(run: Any, args: cli.Args, split: str, log_p: Any, labels: Any, names: list[str]) -> str:
    """Draws the pictures that were taken for another class with the highest probability."""
    import numpy as np

    said, examples = np.argmax(log_p, axis=1), run.examples(split)
    wrong = np.flatnonzero(said != labels)
    wrong = wrong[np.argsort(-log_p[wrong, said[wrong]])][:32]
    pictures = [examples[int(k)]["image"] for k in wrong]
    titles = [f"{names[labels[k]]}\nas {names[said[k]]}, {np.exp(log_p[k, said[k]]):.2f}" for k in wrong]
    return _saved(lambda figures: figures.single(pictures, titles), args.run, f"evaluation-{split}-mistakes")


def _saved(draw: Callable[[Any], Any], folder: str, stem: str) -> str:
    """Writes what `draw` makes with the module of figures into a folder, which may be in a bucket, as PNG, SVG and PDF;
    returns the first's path."""
    import tempfile
    from pathlib import Path

    from etils import epath

    from bigmodel.laws.figures import evaluation, style

    with style.matplotlib.rc_context(style.PAGE.style()):
        figure = draw(evaluation)
        with files.writing(folder), tempfile.TemporaryDirectory() as made:
            style.save(figure, Path(made) / stem)
            for path in Path(made).iterdir():
                (epath.Path(folder) / path.name).write_bytes(path.read_bytes())
    return str(epath.Path(folder) / f"{stem}.png")


def _pairs(run: Any, split: str, args: cli.Args) -> Found:
    import numpy as np
    import sacrebleu
    from etils import epath
    from rich.console import Console
    from rich.progress import track

    from bigmodel.after import evaluate, scores

    rows = evaluate.texts(run, split, args.limit)
    decode = _tokenizer(run).decode
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
    chrf = [sacrebleu.sentence_chrf(text, [reference]).score for text, reference in zip(ours, references, strict=True)]
    more, told = _slices(run, split, args, "chrF of each", np.array(chrf))
    scored = {f"this run, {args.beams} beams": found, "dictionary (IBM 1)": found["dictionary"], "copy": found["copy"]}
    body = [[name, f"{r['bleu']:.2f}", f"{r['chrf']:.2f}"] for name, r in scored.items()]
    lines = [f"{split}: {len(rows)} pairs", cli.table(["", "BLEU", "chrF"], body), "; ".join(found["signatures"])]
    for k in range(0, len(rows), max(1, len(rows) // max(1, args.show)))[: args.show]:
        lines += [f"\n  source     {sources[k]}", f"  reference  {references[k]}"]
        lines += [f"  this run   {ours[k]}", f"  dictionary {words[k]}"]
    return found | more, lines + told
