"""Sweeps: rows of overrides over one config, planned, run and told of by their files.

A sweep file has

    CONFIG = "experiments/gpt.py"          the experiment that the rows override
    def get_sweep(): return [...]          rows: {"model.width": 64, "optim.lr": 1e-3, ...}
                                           (a row's own experiment: {"experiment": "experiments/bert.py", ...};
                                           {"start": "experiments/bert.py", ...}: from the weights of that run, which
                                           is a row too, and is trained first)
    def report(folder, out): ...           optional: writes figures and tables of its own, returns lines to print
    RECIPE = "step_law"                    optional: a recipe (recipes.py) gives each row its rate, batch ...
    LAW = None                             optional: no law of size and data is fitted, only that report made

and its runs live in runs/<file's stem>/<run id>/, beside `plan.jsonl`. State is in files alone: any
number of `sweep run` may work on one sweep, be killed, and be started again.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from etils import epath

from bigmodel import config, files, models
from bigmodel.errors import Busy, NoData, Retry, Unavailable, UsageError, note
from bigmodel.run import budget, claims, identity, record
from bigmodel.run.view import View
from bigmodel.study import recipes
from bigmodel.study.status import describe, folder_of, state_of

Row = dict[str, Any]
Axes = Mapping[str, Sequence[Any]]

# ------------------------------------------------------------------------------ combinators


def product(*parts: Axes | Sequence[Row]) -> list[Row]:
    """Every combination: of the axes of a dict of lists, and of rows made before."""
    lists: list[Sequence[Row]] = []
    for part in parts:
        if isinstance(part, Mapping):
            lists += [[{key: value} for value in values] for key, values in part.items()]
        else:
            lists.append(part)
    return [{k: v for row in combination for k, v in row.items()} for combination in itertools.product(*lists)]


def zip_(axes: Axes) -> list[Row]:
    """Axes of equal length, in step."""
    lengths = {len(v) for v in axes.values()}
    if len(lengths) > 1:
        raise UsageError(f"zip_: axes of different lengths: { {k: len(v) for k, v in axes.items()} }")
    return [dict(zip(axes, values, strict=True)) for values in zip(*axes.values(), strict=True)]


def chain(*sweeps: Iterable[Row]) -> list[Row]:
    return [dict(row) for sweep in sweeps for row in sweep]


def ladder(family: str, widths: Sequence[int], depths: Sequence[int]) -> list[Row]:
    """The family's own rung for every width x depth: heads, ffn and stages follow."""
    rung = models.family(family).rung
    return [rung(width, depth) for width in widths for depth in depths]


def isoflop(rungs: Sequence[Row], budgets: Sequence[float]) -> list[Row]:
    """Every rung at every compute budget C in FLOPs; its tokens follow from C."""
    return [{**row, "train.flops": float(c)} for c in budgets for row in rungs]


def _tuned(unfrozen: Any, recipe: recipes.Recipe, given: Iterable[str]) -> dict[str, Any]:
    """What a recipe says for the N (without embeddings) and D of a config, but for the keys that are given."""
    frozen = budget.finalize(unfrozen)
    numbers = budget.derive(frozen)
    per_example = numbers.tokens // (numbers.steps * frozen.train.batch_size)
    said = recipe.of(numbers.params_nonembedding, numbers.tokens).overrides(numbers.tokens, per_example)
    return {key: value for key, value in said.items() if key not in given}


def _experiment(experiment: str | Path, path: str) -> Any:
    """The config of a sweep's CONFIG: a path from here, or from the folder above the sweep's."""
    if ".py" in str(experiment) and not Path(str(experiment).partition(":")[0]).is_file():
        beside = Path(path).resolve().parent.parent / experiment  # sweeps/ and experiments/ are neighbours
        experiment = str(beside) if Path(str(beside).partition(":")[0]).is_file() else experiment
    return config.load(experiment)


# ------------------------------------------------------------------------------------ plans


@dataclass
class Planned:
    run_id: str
    overrides: Row
    config: Any  # frozen
    budget: budget.Budget

    def to_dict(self) -> dict[str, Any]:
        return {
            "run_id": self.run_id,
            "overrides": self.overrides,
            **self.budget.to_dict(),
            "config": self.config.to_dict(),
        }


def _planned(overrides: Row, unfrozen: Any) -> Planned:
    frozen = budget.finalize(unfrozen)
    return Planned(identity.run_id(frozen), overrides, frozen, budget.derive(frozen))


def load(path: str) -> Any:
    """The sweep module, checked for what a sweep file must have."""
    module = config.load_module(path, "sweep")
    for name in ("CONFIG", "get_sweep"):
        if not hasattr(module, name):
            raise UsageError(f"sweep file {path!r} has no {name}")
    return module


def make_plan(path: str, overrides: Iterable[tuple[str, Any]] = (), runs: str = "runs") -> list[Planned]:
    """Finalises every row before anything runs; `overrides` go on top of each.

    Args:
      runs: the folder of runs that the sweep's are in.

    Raises:
      UsageError: naming the row that can't be.
    """
    module = load(path)
    with config.user_code(path, "sweep", "get_sweep()"):
        rows = module.get_sweep()
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise UsageError(f"sweep file {path!r}: get_sweep() must return a non-empty list of dicts of overrides")
    starts: dict[str, Any] = {}  # experiment file -> its config

    def start(experiment: Any, named: str) -> Any:
        if not isinstance(experiment, str | Path):
            raise UsageError(f"sweep file {path!r}: {named}={experiment!r} is not the path of an experiment file")
        if str(experiment) not in starts:
            starts[str(experiment)] = _experiment(experiment, path)
        return starts[str(experiment)].copy_and_resolve_references()

    start(module.CONFIG, "CONFIG")
    recipe = recipes.get(module.RECIPE) if hasattr(module, "RECIPE") else None
    overrides = list(overrides)
    planned: dict[str, Planned] = {}
    short: list[NoData] = []  # rows that ask for more data than there is: told together, with what all of them need
    for number, row in enumerate(rows, 1):
        try:
            if not all(isinstance(key, str) for key in row):
                raise UsageError("its keys must be names, as 'model.width'")
            own = "experiment" in row
            unfrozen = start(row["experiment"], "experiment") if own else start(module.CONFIG, "CONFIG")
            named = {"experiment": Path(str(row["experiment"])).stem} if own else {}
            if "start" in row:
                first = start(row["start"], "start")
                config.override_all(first, overrides)
                earlier = _planned({"start": Path(str(row["start"])).stem}, first)
                planned.setdefault(earlier.run_id, earlier)
                named["start"] = earlier.run_id
                unfrozen.train.init_from = str(folder_of(path, runs) / earlier.run_id)
                unfrozen.train.init_fingerprint = earlier.run_id
            row = {key: value for key, value in row.items() if key not in ("experiment", "start")}
            config.override_all(unfrozen, row.items())
            config.override_all(unfrozen, overrides)
            if recipe:
                said = _tuned(unfrozen, recipe, {*row, *(key for key, _ in overrides)})
                config.override_all(unfrozen, said.items())
                row = {**row, **said}
            item = _planned({**named, **row}, unfrozen)
        except UsageError as e:
            error = type(e)(f"{path} row {number} {json.dumps(row, default=str)}: {e}")
            if not (isinstance(e, NoData) and isinstance(error, NoData) and e.epochs):
                raise error from e
            error.epochs = e.epochs
            short.append(error)
            continue
        planned.setdefault(item.run_id, item)  # equal rows are one run
    if short:
        most = max(short, key=lambda e: e.epochs)
        raise UsageError(f"{most}" + (f" (the most of {len(short)} such rows)" if len(short) > 1 else "")) from most
    return list(planned.values())


def stored_plan(folder: epath.Path, path: str) -> list[Row]:
    """The rows of the folder's plan.jsonl; [] where there is none, or none that can be read: that is noted.

    Raises:
      UsageError: the folder is another sweep file's.
    """
    if not (folder / "plan.jsonl").exists():
        return []
    try:
        rows = files.read_plan(folder)
    except UsageError as e:
        note(f"{e.args[0].partition(';')[0]}: written again; runs of other flags stay in their folders")
        return []
    for other in {row["sweep"] for row in rows if isinstance(row.get("sweep"), str)} - {str(Path(path).resolve())}:
        if Path(other).is_file():
            raise UsageError(f"{str(folder)!r} has the runs of {other!r}: choose another --runs, or rename {path!r}")
    return rows


def write_plan(folder: epath.Path, plan: Sequence[Planned], path: str, overrides: Sequence[tuple[str, Any]]) -> None:
    """Adds rows to the folder's plan.jsonl, so that no run gets out of reach.

    Rows of other overrides stay. Those of the same overrides that the sweep file no longer has are superseded: `status`
    tells of them, and fits leave them out; one that was never begun is forgotten.

    Raises:
      UsageError: the folder is another sweep file's, or can't be written.
    """
    stored = stored_plan(folder, path)
    own = [{**item.to_dict(), "sweep": str(Path(path).resolve()), "overridden": list(overrides)} for item in plan]
    ids = {row["run_id"] for row in own}
    rest = []
    for row in (row for row in stored if row["run_id"] not in ids):
        row["superseded"] = row.get("superseded") or row.get("overridden", []) == [list(pair) for pair in overrides]
        if not row["superseded"] or (folder / row["run_id"]).exists():
            rest.append(row)
    if rest and ids - {row["run_id"] for row in stored}:
        old = sum(row["superseded"] for row in rest)
        kept = f"{len(rest) - old} of other flags, {old} superseded"
        note(f"{folder}/plan.jsonl keeps {len(rest)} rows beside these: {kept}")
    rows = [files.sealed(json.loads(json.dumps({**row, "rows": len(own) + len(rest)}))) for row in own + rest]
    with files.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        record.write_text(folder / "plan.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


# A CPU host's costs beside FLOPs, in seconds, and the fraction of a large matrix product's rate that a small
# model's step reaches. Rough, from docs/results.md: what is finished of the sweep itself soon replaces them.
STEP_OVERHEAD, RUN_OVERHEAD, COMPILE = 2e-3, 1.5, 6.0
EFFICIENCY = 0.15


def expected_seconds(plan: Sequence[Planned], folder: epath.Path) -> list[float]:
    """A guess a row: from this sweep's finished runs where there are some, else from this machine's rate.

    The first row of a shape pays for its compilation.
    """
    from bigmodel.ops import platforms, sharding
    from bigmodel.run import program

    shapes: set[str] = set()
    compiling = []
    for p in plan:
        static = program.static_part(p.config)
        compiling.append(0.0 if static in shapes else COMPILE)
        shapes.add(static)
    done = [r for r in (record.read_result(folder / p.run_id) for p in plan) if r]
    if len(done) >= 3:
        rates = sorted(r["flops"] / max(1e-3, r["wall_seconds"] - RUN_OVERHEAD) for r in done)
        rate = rates[len(rates) // 2]
        return [c + RUN_OVERHEAD + p.budget.flops / rate for c, p in zip(compiling, plan, strict=True)]
    peak = EFFICIENCY * platforms.peak_flops(sharding.make_mesh({"data": -1}))
    return [
        c + RUN_OVERHEAD + p.budget.steps * STEP_OVERHEAD + p.budget.flops / peak
        for c, p in zip(compiling, plan, strict=True)
    ]


# -------------------------------------------------------------------------------------- run


def run(
    path: str,
    plan: Sequence[Planned],
    folder: epath.Path,
    *,
    retry_failed: bool = False,
    first: int = 0,
    say: Any = print,
) -> dict[str, int]:
    """Goes through the rows in this process: one import, and one compilation a shape.

    A finished run is skipped, a failed one told and skipped unless `retry_failed`, one that another
    process holds passed over. Returns the number of rows by what happened to them.

    Args:
      first: the row to begin with, so that parallel workers begin apart.

    Raises:
      Retry: interrupted, or the disk is full.
    """
    from bigmodel.run import session  # JAX's devices are not needed to plan

    tally = {"trained": 0, "skipped": 0, "failed": 0, "busy": 0}
    view = View()
    try:
        for i in _in_order(plan, folder, (*range(first, len(plan)), *range(first)), retry_failed):
            item = plan[i]
            home = folder / item.run_id
            label = f"[{i + 1}/{len(plan)}] {item.run_id}  {describe(item.overrides)}"
            if record.read_result(home):
                tally["skipped"] += 1
                continue
            error = record.read_error(home)
            if error and not retry_failed:
                tally["failed"] += 1
                say(f"{label}  failed before: {error}  (--retry-failed tries again)")
                continue
            began = time.time()
            try:
                result, trained = session.attempt(
                    config.from_json(config.to_json(item.config)),
                    str(folder),
                    name=describe(item.overrides),
                    group=Path(path).stem,
                    view=view,
                )
            except Busy:
                tally["busy"] += 1
                continue
            except Retry:
                raise
            except (Unavailable, NoData) as e:
                # The plan has read it: it is no row's fault, and the next one would fail as this did.
                raise Retry(f"{label}  {e}; the same command continues, once that is there again") from e
            except Exception as e:
                text = f"{type(e).__name__}: {e}".splitlines()[0]
                if _device_is_lost():  # perhaps no row's fault, and every one after it would fail as this did
                    if _once(home / "lost"):
                        raise Retry(f"{label}  the device is lost ({text}); the same command continues") from e
                    record.fail(home, f"twice the device was lost: {text}")
                    raise Retry(
                        f"{label}  lost the device twice, and is passed over now; the same command goes on"
                    ) from e
                tally["failed"] += 1
                say(f"{label}  FAILED: {text}")
                record.fail(home, text)
                continue
            if not trained:  # another process finished it since we looked
                tally["skipped"] += 1
                continue
            tally["trained"] += 1
            loss = "diverged" if result["status"] == "diverged" else f"loss {result['loss']:.4f}"
            say(f"{label}  {loss}  {time.time() - began:.1f} s")
    finally:
        view.close(seconds=10.0)
    return tally


def _once(mark: epath.Path) -> bool:
    """Whether this is the first time; leaves the mark."""
    first = not mark.exists()
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.touch()
    return first


def _device_is_lost() -> bool:
    """Whether not even a sum runs: a GPU's error stays with the process that met it."""
    import jax

    try:
        jax.block_until_ready(jax.numpy.zeros(1) + 1.0)
    except Exception:
        return True
    return False


def _in_order(plan: Sequence[Planned], folder: epath.Path, order: Sequence[int], retry_failed: bool) -> Iterator[int]:
    """The rows of `order`; one that starts from a run of this plan is put off until that has ended.

    A failed start has ended, unless it is to be tried again and this process hasn't come to it yet. One that somebody
    else left unfinished is yielded again.
    """
    index = {item.run_id: i for i, item in enumerate(plan)}
    start_of = [index.get(Path(item.config.train.init_from).name) for item in plan]
    visited: set[int] = set()

    def ended(start: int) -> bool:
        state = state_of(folder / plan[start].run_id)["state"]
        return state in ("done", "diverged") or (state == "failed" and (not retry_failed or start in visited))

    while order:
        later = []
        for i in order:
            start = start_of[i]
            if start is not None and not ended(start):
                later.append(i)
            else:
                visited.add(i)
                yield i
        if len(later) == len(order):
            free = sorted({s for i in later if (s := start_of[i]) is not None})
            free = [s for s in free if not claims.held(folder / plan[s].run_id)]
            if not free:
                time.sleep(1.0)
            later = free + later
        order = later


def worker_logs(folder: epath.Path) -> Path:
    """Where workers' logs go: beside the runs or, of runs in a bucket, on this disk."""
    return Path("runs", folder.name, "workers") if "://" in str(folder) else Path(folder) / "workers"


def run_workers(args: Sequence[str], workers: int, folder: epath.Path, rows: int, watch: Any) -> list[int]:
    """K processes of the same command, each on its share of the cores; `watch()` is called while they work.

    They need no coordination: a run's lock is the only thing they share.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    # A GPU is shared: JAX's first process would take three quarters of its memory, and leave the others none.
    env = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", **os.environ}
    logs = worker_logs(folder)
    logs.mkdir(parents=True, exist_ok=True)
    children = []
    for k in range(workers):
        share = cores[k * len(cores) // workers : (k + 1) * len(cores) // workers] or cores
        log = open(logs / f"{k}.log", "w", encoding="utf-8")  # noqa: SIM115 (the child's)
        command = [sys.executable, "-m", "bigmodel", *args, f"--first={k * rows // workers}"]
        # The child pins itself (__main__.py): a function run between fork and exec isn't safe beside JAX's threads.
        pinned = {**env, "BIGMODEL_CORES": ",".join(map(str, share))}
        children.append(subprocess.Popen(command, env=pinned, stdout=log, stderr=log))

    def interrupted(*_: Any) -> None:
        print("bigmodel: the workers save after their steps; again to quit now", file=sys.stderr, flush=True)
        raise Retry("interrupted; the same command continues")

    old = signal.signal(signal.SIGTERM, interrupted)
    try:
        while any(child.poll() is None for child in children):
            watch()
            time.sleep(0.5)
    except KeyboardInterrupt:
        interrupted()
    finally:  # whatever ends us ends them, and they save
        signal.signal(signal.SIGTERM, old)
        for child in children:
            if child.poll() is None:
                child.terminate()
        for child in children:
            child.wait()
    watch()
    return [child.returncode for child in children]
