"""What `--help` says of each verb."""

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
75 not all is done and the same command continues, 1 a failed row or check, or a fault of ours.
"""

PREPARE = """\
Writes token shards and a manifest into the folder --out.

SOURCE is a named corpus (`bigmodel prepare list`), a file or folder of .txt, .md, .jsonl, .json or .parquet (the
first four also as .gz or .zst), or hf:OWNER/NAME, a Hugging Face dataset. Whole documents are assigned to train or
validation. If validation would get most of the text, long documents are cut into pieces first. One line on stderr
counts what was left out: files of other kinds, hidden files, records whose text is null or missing.

If prepare is killed, the same command continues. If it has finished, and neither the source nor the tokenizer has
changed, it returns at once. Damaged shards are made again. --verify reads every file, even those that look unchanged.

  bigmodel prepare news --out=data/news-bytes
  bigmodel prepare my_texts/ --tokenizer=bpe --vocab-size=8192 --out=data/mine-bpe

SOURCE can also name a task: pairs of texts to translate, or texts with a label. A task is split into train, validation
and test: a file of the help or an email is in one split as a whole.

  bigmodel prepare help-en-de --tokenizer=bpe --out=data/help-en-de-bpe
  bigmodel prepare movie-reviews --tokenizer=data/prose-bpe/tokenizer.json --out=data/movie-reviews
"""

TRAIN = """\
Trains one config in RUNS/<run id>/, where the id is the hash of the config. A run that was interrupted
continues; one that is finished prints its result.

  bigmodel train --config=experiments/digits.py --config.model.width=128 --config.optim.lr=0.001
  bigmodel train runs/0123456789ab/config.json          the same run: continued, or told, where it lies

Any key of the config can be set: --config.SECTION.KEY=VALUE. Writes config.json, metrics.jsonl,
checkpoints/ and result.json.
"""

SWEEP = """\
Plans, runs and tells of the rows of a sweep file, in RUNS/<file's name>/.

  bigmodel sweep plan sweeps/digits.py        N, D, C, steps, memory, expected time of every row
  bigmodel sweep run sweeps/digits.py         what is missing, in one process; --workers=2: in two
  bigmodel sweep status sweeps/digits.py      done, running, interrupted, failed, pending: from the files alone

--config.SECTION.KEY=VALUE goes on top of every row. RUNS/<file's name>/plan.jsonl holds the rows: `run` adds to it, as
`plan --write` does; `plan` alone writes it only where there is none. Rows that the file no longer makes with the same
flags are superseded: their runs stay, and fits leave them out.
"""

WORKER = """\
Trains one row of a planned sweep to its end: what engines call, in as many processes as the row has, as often as it
takes. A finished row returns at once; an interrupted one continues from its last checkpoint.

  bigmodel worker runs/demo --run=0123456789ab
  bigmodel worker runs/demo --run=0123456789ab --coordinator=10.0.0.1:8476 --processes=2 --process=0

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
  bigmodel upload data/news-bytes gs://mine/data && bigmodel upload runs/demo gs://mine/runs
  bigmodel launch runs/demo --engine=sky --topology=v5p:8x8x8 --bucket=gs://mine/runs/demo \\
      --config.run.data_dir=gs://mine/data --print

Only rows without a result in the folder here are launched (a finished one that is started ends at once);
--config.run.KEY=VALUE is passed on to every row. `bigmodel sweep status runs/demo` tells how they stand.
"""

UPLOAD = """\
Copies a prepared folder of data, or a sweep's plan, to a bucket, for slices that share no disk.

  bigmodel upload data/news-bytes gs://mine/data      to gs://mine/data/news-bytes; --config.run.data_dir=gs://mine/data
  bigmodel upload runs/demo gs://mine/runs            plan.jsonl alone, to gs://mine/runs/demo

Data are checked against the digests of their manifest.json first. The manifest comes last: where it is, all is. A
folder that is there already is left as it is.
"""

FIT = """\
Fits a scaling law to points: a sweep's folder, a .csv, .tsv, .json, .jsonl or .parquet, or an export of W&B.

  bigmodel fit runs/demo --out=fit.json
  bigmodel fit runs/demo --count=nonembedding --flops=6nd
  bigmodel fit points.csv --N=params --D=tokens --L=loss --law=chinchilla

Huber loss on log L over a full grid of starts; intervals by bootstrap over runs; the error on the held-out
runs of the 1, 2, 3 largest compute rungs. Rows that share a run (run_id, name ... or --run=COLUMN), as its checkpoints
do, are resampled together. Laws:

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
step's time from published peaks, which is a model and not a measurement. Needs the package libtpu, of jax[tpu].

  bigmodel compile --config=experiments/gpt3.py:1.3b --topology=v5e:4x4 --config.train.batch_size=64
  bigmodel compile --config=experiments/gpt3.py:175b --topology=v5p:8x8x8 --slices=2
  bigmodel compile --sweep=sweeps/demo.py --topology=v5e:2x2

Without --config.run.mesh.AXIS=K it takes the fastest layout whose estimate fits (`bigmodel plan --topology` lists
them). A program that doesn't fit ends in one line with the shortfall and the cheapest remedies, and exit code 2.
Writes OUT.json and OUT.png; programs are cached by their hash in runs/compile/cache. Takes minutes of CPU. With --save
it also writes OUT.executable, and prints the flags of a run that reads it instead of compiling its step.
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
