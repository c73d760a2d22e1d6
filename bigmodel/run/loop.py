"""The one loop, for every family: data -> program -> state -> steps -> result. Read top to bottom."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from bigmodel.errors import Retry, UsageError, note
from bigmodel.ops import sharding
from bigmodel.run import adapters, budget, checkpoint, executables, optim, outcome, processes, program, record, starts
from bigmodel.run.branches import Branches
from bigmodel.run.job import Job
from bigmodel.run.log import Log, lost
from bigmodel.run.reader import Reader
from bigmodel.run.stop import Stop


def run(job: Job) -> dict[str, Any]:
    """Trains a job from wherever its folder stands; returns its result.

    Raises:
      Retry: interrupted and saved.
      UsageError: its data, its checkpoint or what it starts from can't be used.
    """
    frozen, steps = job.frozen, job.plan.steps
    source_state = record.git_state()

    # ---- data, checked before anything is compiled
    reader = Reader(frozen, job.mesh)
    if job.lead and reader.text_bytes is None:
        note(f"{job.name}: its tokenizer doesn't say how many bytes a token is: there are no bits per byte")

    # ---- program
    compiled = program.build(program.static_part(frozen), job.mesh)
    train_step = saved_step(job, compiled) if frozen.run.executable else compiled.step
    if job.lead:
        stored = frozen.to_dict()
        stored["run"]["executable"] = ""
        record.write_record(job.folder / "config.json", stored, job.stored)

    # ---- state: the run's own checkpoint, else what it starts from, else fresh
    saves = checkpoint.Checkpoints(str(job.folder / "checkpoints"), frozen.run.keep, job.token, job.stored)
    root_key = jax.random.key(frozen.train.seed)  # the seed tree: 0 parameters, 1 steps; data is drawn from the seed
    start, state, claimed = begin(job, compiled, saves, jax.random.fold_in(root_key, 0))
    step_key = jax.random.fold_in(root_key, 1)

    # ---- record
    if job.lead:
        record.add_attempt(job.folder, start, jax.process_count(), job.mesh.size, job.stored)
    log = Log(job, start, claimed)
    patience = outcome.Patience(job.folder, frozen.train, start)
    evaluate = Evaluation(job, compiled, reader)
    branches = Branches(job, start, train_step, evaluate)

    def save(step: int, state: Any) -> None:
        rows = log.claims(step)
        meta = {"step": step, "run_id": job.folder.name, "next_batch": step, "rows": rows}
        saves.save(step, state, {**meta, "token": job.token} if job.token else meta)

    def leave(step: int, state: Any, saved: int) -> Retry:
        if step != saved:
            save(step, state)
        saves.wait()
        return Retry(f"interrupted at step {step} of {steps}, saved; the same command continues")

    # ---- steps: dispatch step t, then read step t - 1, so that the device never waits for the host
    batches = reader.train(start, steps)
    pending: tuple[int, Any] | None = None  # a step whose metrics aren't read yet
    step = saved = start
    status = ""
    with Stop() as stop:
        while step < steps and not status and not patience.over:
            for end in branches.at(step):
                if pending:
                    status, pending = log.step(*pending), None
                if status:
                    break
                if not branches.train(state, step, end, step_key, reader, log, stop):
                    raise leave(step, state, saved)
            if status:
                break
            batch = next(batches)
            rate = jnp.float32(optim.learning_rate(frozen.optim, step, steps, frozen.train.batch_size))
            state, metrics = train_step(state, batch, rate, step_key)
            if pending:
                status = log.step(*pending)
            step += 1
            pending = (step, metrics)
            saves.poll()

            last = step == steps
            stopping = stop.at(step) and not last
            due_check = patience.due(step) and not last
            due_eval = due_check or (every(frozen.run.eval_every, step) and not last)
            due_save = every(frozen.run.checkpoint_every, step) and not last
            if (due_eval or due_save or stopping or last) and not status:
                status, pending = log.step(*pending), None
            if due_eval and not status:
                found = evaluate(state)  # by all processes together
                log.add("metrics", {"step": step, **found})
                if due_check:
                    patience.check(step, found["eval_loss"])
            # A step that was only dispatched has taken no time yet.
            log.speed(step - (pending is not None), due=due_save or last)
            if status or patience.over:
                break
            if due_save:
                save(step, state)
                saved = step
            if stopping:
                raise leave(step, state, saved)

    # ---- result
    status = status or "done"
    good = int(sharding.to_host(state["step"]))  # of a diverged run: its last good step
    final = evaluate(state) if status == "done" else {}
    if not all(map(math.isfinite, final.values())):
        status, final = "diverged", {}
    # A check that ended the run has logged it, and so had whoever saved the last step.
    if final and start < steps and not patience.over:
        log.add("metrics", {"step": step, **final})
    if good != saved or saved == 0:
        save(good, state)
    saves.close()  # errors of the asynchronous writer surface before the run is called done
    log.close()
    result = outcome.result(job, status, step, good, final, log, patience, source_state)
    if job.lead:
        outcome.write(job, result, source_state)
    return result


def every(steps: int, step: int) -> bool:
    """Whether something that is done every `steps` steps is due after `step`; 0: never."""
    return bool(steps) and step % steps == 0


def begin(job: Job, compiled: program.Program, saves: checkpoint.Checkpoints, key: jax.Array) -> tuple[int, Any, Any]:
    """(step, state, the rows that its checkpoint claims) from where the folder stands."""
    found = saves.restore_latest(compiled.shapes, compiled.shardings, lambda meta: lost(job, meta))
    if found is not None:
        start, state, meta = found
        if meta.get("run_id", job.folder.name) != job.folder.name:
            raise UsageError(
                f"{job.folder}/checkpoints are of run {meta['run_id']}: remove them, or choose another --runs"
            )
        return start, state, meta.get("rows", {})
    state = compiled.init(key)
    gone = len(record.read_rows(job.folder / "metrics.jsonl")) if job.lead else 0
    if gone:
        job.line.say(f"{job.folder}: no checkpoint there; starts again at step 0, without {gone} rows of metrics.jsonl")
    if budget.starts(job.frozen.train):
        state["params"], said = adapters.start(job.frozen, compiled, state["params"], starts.start)
        if "iterate" in state:
            state["iterate"] = jax.tree.map(jnp.copy, state["params"])
        job.line.say(said)
        if job.lead:
            record.write_text(job.folder / "start.txt", said + "\n")
    return 0, state, {}


def saved_step(job: Job, compiled: program.Program) -> Any:
    """The step that config.run.executable holds: in all processes, or a UsageError in all."""
    path, step, error = job.frozen.run.executable, None, None
    try:
        wanted = executables.made_for(program.static_part(job.frozen), job.mesh)
        step = executables.load(path, wanted, list(job.mesh.devices.flat), compiled.shardings)
    except UsageError as e:
        error = e
    if processes.any_of(error is not None):
        raise error or UsageError(f"config.run.executable={path!r}: another process can't read it")
    return step


class Evaluation:
    """state -> held-out metrics, named eval_*."""

    def __init__(self, job: Job, compiled: program.Program, reader: Reader) -> None:
        self.job, self.compiled, self.reader = job, compiled, reader

    def __call__(self, state: Any) -> dict[str, float]:
        variables = {"params": state["params"], **state["model_state"]}
        found = program.totals(self.compiled, variables, self.reader.validation(), self.job.alive)
        out = {f"eval_{name}": value for name, value in program.scores(self.compiled, found).items()}
        if self.reader.text_bytes:
            out["eval_bits_per_byte"] = float(found[0]["loss"][0]) / math.log(2) / self.reader.text_bytes
        return out
