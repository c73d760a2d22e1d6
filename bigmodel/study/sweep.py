"""Sweeps: rows of overrides over one experiment, and the plan that is made of them.

A sweep file has

    CONFIG = "experiments/gpt.py"          the experiment that the rows override
    def get_sweep(): return [...]          rows: {"model.width": 64, "optim.lr": 1e-3, ...} (algebra.py makes them).
                                           {"experiment": "experiments/bert.py", ...}: a row of another experiment;
                                           {"start": "experiments/bert.py", ...}: a row that starts from the weights
                                           of that experiment's run, which becomes a row too and is trained first;
                                           or from several: [("experiments/a.py", "their/", "our/"), ...], each with
                                           the prefix of its parameters' paths and of ours;
                                           {"derive": ("experiments/vae.py", "codes.py"), ...}: a row whose data is
                                           made of that experiment's run by a file (derived.py)
    def report(folder, out): ...           optional: writes its own figures and tables, returns lines to print
    RECIPE = "step_law"                    optional: a recipe (recipes.py) sets rate, batch ... of each row
    LAW = "kaplan_nd"                      optional: the law that the report fits (default: chinchilla); None: no law

and its runs are in runs/<file's stem>/<run id>/, next to `plan.jsonl`. All state is in files: any number of
`sweep run` processes can work on one sweep, be killed, and be started again.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from etils import epath

from bigmodel import config, files
from bigmodel.errors import NoData, UsageError, note
from bigmodel.run import budget, identity, record
from bigmodel.study import derived, recipes
from bigmodel.study.algebra import Row, chain, isoflop, ladder, product, zip_  # noqa: F401 (for sweep files)
from bigmodel.study.status import folder_of


@dataclass
class Planned:
    """A row of a plan: `overrides` of the experiment give the finalised `config`, whose hash is `run_id`.

    Attributes:
      needs: run ids of the rows that are trained before it.
    """

    run_id: str
    overrides: Row
    config: Any
    budget: budget.Budget
    needs: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        own = {"run_id": self.run_id, "overrides": self.overrides}
        return {**own, **self.budget.to_dict(), "config": self.config.to_dict()}


def _planned(overrides: Row, unfrozen: Any, needs: Sequence[str] = ()) -> Planned:
    frozen = budget.finalize(unfrozen)
    return Planned(identity.run_id(frozen), overrides, frozen, budget.derive(frozen), tuple(needs))


def load(path: str) -> Any:
    """The module of a sweep file. UsageError: it lacks CONFIG or get_sweep."""
    module = config.load_module(path, "sweep")
    return config.check_exports(module, f"sweep file {path!r}", ("CONFIG", "get_sweep"))


def make_plan(path: str, overrides: Iterable[tuple[str, Any]] = (), runs: str = "runs") -> list[Planned]:
    """Finalises every row of a sweep file; equal rows are one run.

    Args:
      overrides: applied to every row, after the row's own.
      runs: the folder that the sweep's folder of runs is in.

    Raises:
      UsageError: names the first row that is not valid, or the row that needs the most data.
    """
    module = load(path)
    with config.user_code(path, "sweep", "get_sweep()"):
        rows = module.get_sweep()
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise UsageError(f"sweep file {path!r}: get_sweep() must return a non-empty list of dicts of overrides")
    recipe = recipes.get(module.RECIPE) if hasattr(module, "RECIPE") else None
    overrides = list(overrides)
    loaded: dict[str, Any] = {}  # experiment -> its config

    def experiment(spec: Any, key: str) -> Any:
        if not isinstance(spec, str | Path):
            raise UsageError(f"sweep file {path!r}: {key}={spec!r} is not the path of an experiment file")
        if str(spec) not in loaded:
            loaded[str(spec)] = _load_experiment(spec, path)
        return loaded[str(spec)].copy_and_resolve_references()

    def plan_row(row: Row) -> Iterator[Planned]:
        if not all(isinstance(key, str) for key in row):
            raise UsageError("its keys must be names, as 'model.width'")
        own = {key: value for key, value in row.items() if key not in ("experiment", "start", "derive")}
        named: Row = {}
        needs = []
        unfrozen = experiment(row.get("experiment", module.CONFIG), "experiment")
        if "experiment" in row:
            named["experiment"] = Path(row["experiment"]).stem

        def earlier(spec: Any, key: str) -> Planned:
            first = experiment(spec, key)
            config.override_all(first, overrides)
            # A row's own "derive" names what is made for it, which is nothing here.
            needs.append(_planned({"experiment" if key == "derive" else key: Path(spec).stem}, first))
            return needs[-1]

        home = folder_of(path, runs)
        if isinstance(row.get("start"), list):
            parts = [(earlier(spec, "start").run_id, theirs, ours) for spec, theirs, ours in row["start"]]
            named["start"] = "+".join(run_id for run_id, _, _ in parts)
            unfrozen.train.init_parts = tuple((str(home / run_id), theirs, ours) for run_id, theirs, ours in parts)
            unfrozen.train.init_fingerprint = named["start"]
        elif "start" in row:
            named["start"] = earlier(row["start"], "start").run_id
            unfrozen.train.init_from = str(home / named["start"])
            unfrozen.train.init_fingerprint = named["start"]
        if "derive" in row:
            spec, maker = row["derive"]
            first = earlier(spec, "derive")
            maker = derived.maker_of(maker, path)
            named["derive"] = [first.run_id, maker]
            unfrozen.data.name = derived.promise(maker, first.run_id, first.config)
        yield from needs
        config.override_all(unfrozen, own.items())
        config.override_all(unfrozen, overrides)
        if recipe:
            tuned = _tuned(unfrozen, recipe, {*own, *(key for key, _ in overrides)})
            config.override_all(unfrozen, tuned.items())
            own |= tuned
        yield _planned({**named, **own}, unfrozen, [item.run_id for item in needs])

    experiment(module.CONFIG, "CONFIG")
    planned: dict[str, Planned] = {}
    short: list[NoData] = []  # rows that need more data than there is, reported together
    for number, row in enumerate(rows, 1):
        try:
            for item in plan_row(row):
                planned.setdefault(item.run_id, item)
        except UsageError as e:
            error = type(e)(f"{path} row {number} {json.dumps(row, default=str)}: {e}")
            if not (isinstance(e, NoData) and isinstance(error, NoData) and e.epochs):
                raise error from e
            error.epochs = e.epochs
            short.append(error)
    if short:
        most = max(short, key=lambda e: e.epochs)
        raise UsageError(f"{most}" + (f" (the most of {len(short)} such rows)" if len(short) > 1 else "")) from most
    return list(planned.values())


def _load_experiment(spec: str | Path, path: str) -> Any:
    """The config of an experiment: a path from here, from the sweep file's folder, or from that folder's parent."""
    home = Path(path).resolve().parent  # sweeps/ and experiments/ are neighbours
    for place in (Path(), home, home.parent):
        if ".py" in str(spec) and Path(str(place / spec).partition(":")[0]).is_file():
            return config.load(place / spec)
    return config.load(spec)


def _tuned(unfrozen: Any, recipe: recipes.Recipe, given: set[str]) -> Row:
    """The overrides of a recipe for a config's N (without embeddings) and D, except the keys that are given."""
    frozen = budget.finalize(unfrozen)
    numbers = budget.derive(frozen)
    per_example = numbers.tokens // (numbers.steps * frozen.train.batch_size)
    found = recipe.of(numbers.params_nonembedding, numbers.tokens).overrides(numbers.tokens, per_example)
    return {key: value for key, value in found.items() if key not in given}


def stored_plan(folder: epath.Path, path: str) -> list[Row]:
    """The rows of the folder's plan.jsonl; [] if there is none. A damaged one counts as none, with a note.

    UsageError: the folder belongs to another sweep file.
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
    """Writes the plan to the folder's plan.jsonl, and keeps the rows there that have runs.

    Rows of other overrides stay. A row of the same overrides that the sweep file no longer has is marked superseded
    if its run was started, and dropped if not. `status` lists superseded rows apart; fits leave them out.

    UsageError: the folder belongs to another sweep file, or can't be written.
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


# Seconds that a CPU host needs beside FLOPs, and the part of a large matrix product's rate that a small model's step
# reaches. Rough, from docs/results.md; finished runs of the sweep itself replace them.
STEP_OVERHEAD, RUN_OVERHEAD, COMPILE = 2e-3, 1.5, 6.0
EFFICIENCY = 0.15


def expected_seconds(plan: Sequence[Planned], folder: epath.Path) -> list[float]:
    """Estimated seconds of each row, at the rate of the sweep's finished runs if there are three, else of this machine.

    The first row of each shape includes its compilation.
    """
    from bigmodel.ops import platforms, sharding
    from bigmodel.run import program

    done = [r for r in (record.read_result(folder / p.run_id) for p in plan) if r]
    if len(done) >= 3:
        rate = statistics.median_high(r["flops"] / max(1e-3, r["wall_seconds"] - RUN_OVERHEAD) for r in done)
        step_overhead = 0.0
    else:
        rate = EFFICIENCY * platforms.peak_flops(sharding.make_mesh({"data": -1}))
        step_overhead = STEP_OVERHEAD
    shapes: set[str] = set()
    seconds = []
    for p in plan:
        static = program.static_part(p.config)
        compiling = 0.0 if static in shapes else COMPILE
        shapes.add(static)
        seconds.append(compiling + RUN_OVERHEAD + p.budget.steps * step_overhead + p.budget.flops / rate)
    return seconds
