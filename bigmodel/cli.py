"""`bigmodel VERB ...`: what is said on the command line, and how a mistake ends. Layer 6; verbs/ does the work."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from bigmodel import __version__, config
from bigmodel.config import EXIT_RETRY, EXIT_USAGE, Retry, UsageError, choose, nearest

TOP = """\
Scaling experiments: every architecture is width x depth x data -> rows -> law -> plan.

A study from text to law:
  bigmodel prepare news --out=data/news-bytes     tokens from a named corpus, file, folder or hf:NAME
  bigmodel train --config=experiments/gpt.py --config.model.width=128
  bigmodel sweep plan sweeps/demo.py              N, D, C, memory and time of every row, before any is run
  bigmodel sweep run sweeps/demo.py               runs what is missing; kill it and repeat it at will
  bigmodel report sweeps/demo.py                  law, intervals, held-out error, figures, one HTML page
  bigmodel fit runs/demo --against=gadre --out=fit.json
  bigmodel plan --law=fit.json --flops=1e16       the next model, and the sweep that would make it surer
  bigmodel coordcheck --config=experiments/prose.py --widths=32,64,128    do hyper-parameters transfer?
  bigmodel compile --config=experiments/gpt3.py:175b --topology=v5p:8x8x8   does it fit a pod?
  bigmodel paper gpt3                             what papers print, beside what our modules and fits compute

`bigmodel VERB --help` explains a verb with an example. Exit codes: 0 done, 2 a mistake in what was asked,
75 interrupted (the same command continues), 1 a fault of ours.
"""

PREPARE = """\
Turns text into token shards and a manifest, under --out.

SOURCE is a named corpus (`bigmodel prepare list`), a file or folder of .txt, .jsonl or .parquet (plain, .gz
or .zst), or hf:OWNER/NAME, a Hugging Face dataset. Documents, not windows, are split into train and
validation. A killed prepare continues where it was; a finished one returns at once.

  bigmodel prepare news --out=data/news-bytes
  bigmodel prepare my_texts/ --tokenizer=bpe --vocab-size=8192 --out=data/mine-bpe

Or a task: pairs of texts to translate, or texts with a label, split by file into train, validation and test.

  bigmodel prepare help-en-de --tokenizer=bpe --out=data/help-en-de-bpe
  bigmodel prepare movie-reviews --tokenizer=data/prose-bpe/tokenizer.json --out=data/movie-reviews
"""

TRAIN = """\
Trains one config in RUNS/<run id>/, where the id is the hash of the config. A run that was interrupted
continues; one that is finished prints its result.

  bigmodel train --config=experiments/digits.py --config.model.width=128 --config.optim.lr=0.001
  bigmodel train runs/0123456789ab/config.json          the same run again, exactly

Any key of the config can be set: --config.SECTION.KEY=VALUE. Writes config.json, metrics.jsonl,
checkpoints/ and result.json.
"""

SWEEP = """\
Plans, runs and tells of the rows of a sweep file, in RUNS/<file's name>/.

  bigmodel sweep plan sweeps/digits.py        N, D, C, steps, memory, expected time of every row
  bigmodel sweep run sweeps/digits.py         what is missing, in one process; --workers=2: in two
  bigmodel sweep status sweeps/digits.py      done, running, interrupted, failed, pending: from the files alone

--config.SECTION.KEY=VALUE goes on top of every row.
"""

WORKER = """\
Trains one row of a planned sweep to its end: what engines call, in as many processes as the row has, as often as it
takes. A finished row returns at once; an interrupted one continues from its last checkpoint.

  bigmodel worker runs/demo --index=3
  bigmodel worker runs/demo --index=3 --coordinator=10.0.0.1:8476 --processes=2 --process=0

The processes of one row find each other by Slurm's, Cloud TPU's or SkyPilot's variables, or by --coordinator.
Exit codes: 0 finished; 75, 134 or a signal: start it again; 1: it can't be trained, and error.json says why.
"""

LAUNCH = """\
Writes what an engine needs to run a planned sweep, as plain text to read and edit in RUNS/<sweep>/launch/, and hands it
to the engine's own client. --print only prints it. Engines:

  local    a shell script: --max rows at once on this machine
  slurm    an sbatch array: requeued when a node is lost, the time limit near, or a worker asks for it
  sky      SkyPilot managed jobs on TPU slices: rendered and checked against its schema, never executed by us

  bigmodel sweep plan sweeps/demo.py
  bigmodel launch runs/demo --engine=slurm --max=4 --processes=2 --time=24:00:00 --print
  bigmodel launch runs/demo --engine=sky --topology=v5p:8x8x8 --bucket=gs://mine/runs --print

Only rows that aren't finished are launched; `bigmodel sweep status runs/demo` tells how they stand.
"""

FIT = """\
Fits a scaling law to points: a sweep's folder, a .csv, .tsv, .json, .jsonl or .parquet, or an export of W&B.

  bigmodel fit runs/demo --out=fit.json
  bigmodel fit runs/demo --count=nonembedding --flops=6nd
  bigmodel fit points.csv --N=params --D=tokens --L=loss --law=chinchilla

Huber loss on log L over a full grid of starts; intervals by bootstrap over runs; the error on the held-out
runs of the 1, 2, 3 largest compute rungs. Laws:

  loss of N and D      chinchilla, gadre, kaplan_nd, muennighoff (+ U unique tokens), kaplan_ns (N, S steps),
                       width_depth (width, depth, D)
  of one column x      power:x=C, henighan:x=C, zhai:x=C, bnsl:x=D,breaks=1
  best N and D of C    isoflop, envelope (Hoffmann's approaches 2 and 1)
  of other targets     learning_rate (lr), batch_size, critical_batch (batch), downstream (accuracy), task_error (error)
  your own             --law=my_law.py, a file with PARAMETERS and form(params, row)

  bigmodel fit points.csv --against=gadre --against=kaplan_nd     which extrapolates best?
  bigmodel fit points.csv --report=out                            figures, tables and a page, as of a sweep
"""

REPORT = """\
Fits the law of a finished sweep and writes its figures (PNG, SVG, PDF), tables and one self-contained page to
RUNS/<sweep>/report/.

  bigmodel report sweeps/demo.py
"""

PLAN = """\
Plans a training run from a fitted law: its size, data and compute with their intervals, how far that extrapolates,
the price of missing the size, the nearest model that can be built, and the runs that would make the answer surest.

  bigmodel plan --law=fit.json --flops=1e23 --family=decoder
  bigmodel plan --law=fit.json --loss=2.1 --inference-tokens=1e13 --max-params=2e10
  bigmodel plan --law=fit.json --flops=1e19 --config=experiments/gpt.py --next-flops=1e17 --out=sweeps/next.py

One of --flops, --params (for which compute is this size the best?), --tokens or --loss (the cheapest way there).
Inference tokens make smaller models trained for longer the best: a budget then pays for training and inference.

Or lays a model out on a pod: the meshes that fit by their estimates, the fastest first, and why.

  bigmodel plan --topology=v5p:8x8x8 --config=experiments/gpt3.py:175b
"""

COUNT = """\
Counts a model without building it: N in three conventions, FLOPs, memory of its training state.

  bigmodel count gpt3-175b
  bigmodel count --config=experiments/gpt.py --config.model.width=128
  bigmodel count list
"""

EVALUATE = """\
What a finished run is worth on texts it hasn't seen, by what it was trained for:

  running text     loss, and loss by position in the window
  labelled texts   accuracy, precision, recall and F1 of each class, confusion matrix
  pairs            BLEU and chrF of its translations, beside a dictionary's, and some of them to read

  bigmodel evaluate runs/0123456789ab
  bigmodel evaluate runs/0123456789ab --split=validation --limit=100 --beams=1

Writes evaluation-SPLIT.json into the run's folder (translations, all of them, in translations-SPLIT.jsonl).
"""

COORDCHECK = """\
Coordinate check: trains each width (or depth) for a few steps and tells how the size of activations, and of their
change, grows with it. Where hyper-parameters transfer the slopes are 0, within 0.1.

  bigmodel coordcheck --config=experiments/prose.py --widths=32,64,128,256 --parametrization=standard,mup
  bigmodel coordcheck --config=experiments/prose.py --depths=2,4,8,16 --parametrization=mup,completep --out=runs/depth

The least width or depth is the base. Writes coords.csv, slopes.json and coords.png, .svg, .pdf into --out. Exit code 1:
the last parametrization named doesn't pass.
"""

COMPILE = """\
Compiles the train step of a config for TPUs that aren't there, and tells what a chip would hold, send and need:
exact bytes of XLA's buffers, collectives counted with their loops, FLOPs by the model's formula, and a roofline of the
step's time from published peaks, which is a model and not a measurement. Needs the package libtpu (bigmodel[tpu]).

  bigmodel compile --config=experiments/gpt3.py:1.3b --topology=v5e:4x4 --config.train.batch_size=64
  bigmodel compile --config=experiments/gpt3.py:175b --topology=v5p:8x8x8 --slices=2
  bigmodel compile --sweep=sweeps/demo.py --topology=v5e:2x2

Without --config.run.mesh.AXIS=K it takes the fastest layout whose estimate fits (`bigmodel plan --topology` lists
them). A program that doesn't fit ends in one line with the shortfall and the cheapest remedies, and exit code 2.
Writes OUT.json and OUT.png; programs are cached by their hash in runs/compile/cache. Takes minutes of CPU.
"""

PAPER = """\
Recomputes what a paper prints: its models built by our modules, its laws fitted by our fits, row by row.

  bigmodel paper list
  bigmodel paper gpt3                                        the 8 sizes of Table 2.1
  bigmodel paper chinchilla --points=points/ --out=tables/   also what needs its published runs

Some rows are computed from runs that others published. The project ships none: a line says which file of which
public repository is missing, and --points takes it, by any name, or a folder that holds it. A row is ok if the
difference is allowed; "-" marks one that is shown and not judged. --out writes NAME.md, NAME.tex and NAME.json.
Exit code 1: a row isn't ok.
"""


class Parser(argparse.ArgumentParser):
    """One line for a mistake, exit code 2, and the nearest option."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see `{self.prog} --help`")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None:
            choose(str(action.metavar or action.dest), value, action.choices)


def parser() -> Parser:
    top = Parser(prog="bigmodel", description=TOP, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("--version", action="version", version=f"bigmodel {__version__}")
    verbs = top.add_subparsers(dest="verb", metavar="VERB", required=True)

    def verb(name: str, text: str) -> Parser:
        p = verbs.add_parser(
            name,
            help=text.splitlines()[0],
            description=text,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        p.add_argument("--json", action="store_true", help="print numbers as JSON")
        return p  # type: ignore[return-value]

    def devices(p: Parser) -> None:
        p.add_argument("--host-devices", type=int, default=0, metavar="K", help="make the CPU look like K devices")

    def with_config(p: Parser) -> None:
        p.add_argument("path", nargs="?", help="a config.json of an earlier run")
        p.add_argument("--config", metavar="FILE[:VARIANT]", help="a file with get_config(), as experiments/gpt.py")

    def several(p: Parser) -> None:
        p.add_argument("--coordinator", help="HOST:PORT of process 0, for several processes")
        p.add_argument("--processes", type=int, default=1)
        p.add_argument("--process", type=int, default=0)

    def topology(p: Parser, **more: Any) -> None:
        p.add_argument("--topology", default="", metavar="TPU", help="chip and shape, as v5e:4x4 or v5p:8x8x8", **more)
        p.add_argument("--slices", type=int, default=1, help="slices of that topology")

    p = verb("prepare", PREPARE)
    p.add_argument("source", help="corpus name, file, folder, hf:NAME, or `list`")
    p.add_argument("--out", help="folder to write (default: data/SOURCE-TOKENIZER)")
    p.add_argument("--tokenizer", default="bytes", help="bytes, bpe (trained here), gpt2, or a tokenizer.json")
    p.add_argument("--vocab-size", type=int, default=4096, help="of a bpe trained here")
    p.add_argument(
        "--validation-fraction", type=float, help="of the documents (default: 0.02; of a task 0.05 or 0.1, twice)"
    )
    p.add_argument("--text-key", default="text", help="field of .jsonl and .parquet")
    p.add_argument("--workers", type=int, default=0, help="processes; 0: one a core")

    p = verb("train", TRAIN)
    with_config(p)
    p.add_argument("--runs", default="runs", help="folder of runs, local or gs://")
    p.add_argument("--name", default="", help="shown by W&B and the progress line")
    devices(p)
    several(p)

    p = verb("sweep", SWEEP)
    p.add_argument("action", help="plan, run or status")
    p.add_argument("file", help="a file with CONFIG and get_sweep()")
    p.add_argument("--runs", default="runs")
    p.add_argument("--workers", type=int, default=1, help="processes that share the rows")
    p.add_argument("--retry-failed", action="store_true")
    p.add_argument("--first", type=int, default=0, help=argparse.SUPPRESS)
    devices(p)

    p = verb("worker", WORKER)
    p.add_argument("folder", help="the sweep's folder of runs, with its plan.jsonl")
    p.add_argument("--index", type=int, default=-1, help="row of the plan, from 0 (default: Slurm's array index)")
    devices(p)
    several(p)

    p = verb("launch", LAUNCH)
    p.add_argument("folder", help="the sweep's folder of runs, or its sweep file")
    p.add_argument("--engine", required=True, help="local, slurm or sky")
    p.add_argument("--print", action="store_true", help="print the text; start nothing, write nothing")
    p.add_argument("--runs", default="runs")
    p.add_argument("--max", type=int, default=1, help="rows at once")
    p.add_argument("--processes", type=int, default=1, help="of a row; slurm: one a node")
    p.add_argument("--cpus", type=int, default=1, help="slurm: of a process")
    p.add_argument("--time", default="24:00:00", help="slurm: limit of a row, HH:MM:SS")
    p.add_argument("--notice", type=int, default=300, help="slurm: seconds before the limit at which rows save")
    p.add_argument("--option", action="append", default=[], metavar="TEXT", help="slurm: a line of #SBATCH; repeatable")
    p.add_argument("--bucket", default="", metavar="gs://...", help="sky: where the sweep's folder is")
    topology(p)
    devices(p)

    p = verb("fit", FIT)
    p.add_argument("points", help="a sweep's folder, or a table: .csv, .tsv, .json, .jsonl, .parquet")
    p.add_argument("--law", default="chinchilla", help="a name above, or a .py file")
    p.add_argument(
        "--against", action="append", default=[], metavar="LAW", help="compare by held-out error; repeatable"
    )
    p.add_argument("--out", help="write fit.json here")
    p.add_argument("--report", metavar="DIR", help="write a page with figures and tables here, as `report` does")
    for name, meaning in (("N", "parameters"), ("D", "tokens"), ("L", "loss"), ("C", "FLOPs")):
        p.add_argument(f"--{name}", metavar="COLUMN", help=f"column of {meaning}")
    p.add_argument("--columns", default="", metavar="NAME=COLUMN,...", help="columns of other letters, U=unique_tokens")
    p.add_argument("--where", default="", metavar="COLUMN=VALUE,...", help="only the runs with these values")
    p.add_argument("--count", default="", choices=["total", "nonembedding", "kaplan"], help="which parameters N counts")
    p.add_argument("--flops", default="", choices=["exact", "6nd"], help="what C is: of the modules, or 6 N D")
    p.add_argument("--delta", type=float, default=1e-3, help="Huber's, on log L")
    p.add_argument(
        "--estimator", default="huber", choices=["huber", "likelihood"], help="likelihood: with a free scale"
    )
    p.add_argument("--above", type=float, default=1.0, help="weight of runs above the law; below 1: maybe badly tuned")
    p.add_argument("--bootstrap", type=int, default=1000, help="resamples")
    p.add_argument("--budgets", default="", metavar="C,C,...", help="isoflop's, where the runs' C have no gaps")
    p.add_argument("--full-grid", action="store_true", help="every resample from every start: minutes, on all cores")
    p.add_argument("--holdout", type=int, default=3, help="largest compute rungs to hold out")
    p.add_argument("--drop-highest", type=int, default=0, help="leave out the points of the K highest losses")
    p.add_argument("--seed", type=int, default=0)

    p = verb("report", REPORT)
    p.add_argument("file", help="the sweep file, or a folder of runs")
    p.add_argument("--runs", default="runs")
    p.add_argument("--law", default="chinchilla")
    p.add_argument("--out", help="folder to write (default: RUNS/<sweep>/report)")

    p = verb("plan", PLAN)
    p.add_argument("--law", default="", metavar="FIT.JSON", help="what `bigmodel fit --out=` wrote")
    topology(p)
    p.add_argument("--flops", type=float, help="for training (with --inference-tokens: and inference)")
    p.add_argument("--params", type=float, help="N: the compute and data for which it is the best size")
    p.add_argument("--tokens", type=float, help="D: the compute and size for which it is the best amount")
    p.add_argument("--loss", type=float, help="to reach with the fewest FLOPs")
    p.add_argument("--inference-tokens", type=float, default=0.0, help="over the model's life, 2 N FLOPs each")
    p.add_argument("--max-params", type=float, default=float("inf"))
    p.add_argument("--max-tokens", type=float, default=float("inf"), help="as much data as there is")
    p.add_argument("--config", metavar="FILE[:VARIANT]", help="an experiment whose width and depth are chosen")
    p.add_argument("--family", default="", help="or a family, with its defaults")
    p.add_argument("--count", default="", metavar="WHICH", help="total, nonembedding, kaplan: N of the law")
    p.add_argument("--target", default="N", help="of the next runs: N, loss or a")
    p.add_argument("--next-flops", type=float, help="for the next runs (default: as much as the fitted ones took)")
    p.add_argument("--next-runs", type=int, default=8, help="at most; 0: no advice")
    p.add_argument("--out", metavar="SWEEP.py", help="write the next runs as a sweep of --config")

    p = verb("count", COUNT)
    p.add_argument("model", nargs="?", help="a published name, or `list`")
    p.add_argument("--config", metavar="FILE[:VARIANT]")

    p = verb("evaluate", EVALUATE)
    p.add_argument("run", help="the folder of a finished run")
    p.add_argument("--split", default="", help="train, validation or test (default: test where there is one)")
    p.add_argument("--limit", type=int, default=0, help="examples at most; 0: all")
    p.add_argument("--beams", type=int, default=4, help="of beam search; 1: greedy")
    p.add_argument("--show", type=int, default=8, help="translations to print")
    p.add_argument("--data-dir", default="", help="where the data is, if it has moved")

    p = verb("coordcheck", COORDCHECK)
    p.add_argument("--config", metavar="FILE[:VARIANT]", required=True)
    p.add_argument("--widths", default="", metavar="W,W,...")
    p.add_argument("--depths", default="", metavar="N,N,...")
    p.add_argument("--parametrization", default="standard,mup", metavar="NAME,...")
    p.add_argument("--steps", type=int, default=8)
    p.add_argument("--seeds", type=int, default=2)
    p.add_argument("--out", default="runs/coordcheck", metavar="FOLDER")
    devices(p)

    p = verb("compile", COMPILE)
    with_config(p)
    topology(p, required=True)
    p.add_argument("--sweep", metavar="FILE", help="every row of a sweep file")
    p.add_argument("--out", metavar="STEM", help="write STEM.json and STEM.png (default: runs/compile/NAME)")
    p.add_argument("--save", default="", metavar="FILE", help="write the executable, to start from without compiling")
    p.add_argument("--no-cache", action="store_true", help="compile even what is in the cache")

    p = verb("paper", PAPER)
    p.add_argument("name", help="a paper, or `list`")
    p.add_argument(
        "--points", action="append", default=[], metavar="PATH", help="a file of points, or a folder; repeatable"
    )
    p.add_argument("--out", metavar="FOLDER", help="write the table here: Markdown, LaTeX, JSON")
    return top


def verb_parsers(top: Parser) -> dict[str, Parser]:
    return next(a.choices for a in top._actions if isinstance(a, argparse._SubParsersAction))


def main(argv: Sequence[str] | None = None) -> int:
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        overrides, rest = config.parse_flags(args)
        top = parser()
        known, unknown = top.parse_known_args(rest)
        known.command = shlex.join(["bigmodel", *args])
        if unknown:
            options = [s for a in verb_parsers(top)[known.verb]._actions for s in a.option_strings]
            hint = nearest(unknown[0].partition("=")[0], options)
            raise UsageError(f"{known.verb}: unknown argument {unknown[0]!r}{hint}")
        if overrides and known.verb not in ("train", "sweep", "count", "plan", "coordcheck", "compile", "worker"):
            raise UsageError(f"{known.verb} takes no --config.{overrides[0][0]}")
        from bigmodel.verbs import verb

        code = verb(known.verb)(known, overrides)
        sys.stdout.flush()
        return code
    except UsageError as e:
        return _fail(str(e), EXIT_USAGE)
    except Retry as e:
        return _fail(str(e), EXIT_RETRY)
    except KeyboardInterrupt:
        return _fail("interrupted; the same command continues", EXIT_RETRY)
    except BrokenPipeError:  # the reader, as `head`, has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as e:
        if e.errno in config.FULL:
            return _fail(f"disk full: {e.filename or e}; free space and repeat", EXIT_RETRY)
        raise


def _fail(message: str, code: int) -> int:
    print(f"bigmodel: {' '.join(message.split())}", file=sys.stderr)
    return code
