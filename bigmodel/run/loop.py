"""train(config): the one loop, for every family. Read top to bottom."""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
import time
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from bigmodel import data, errors, models
from bigmodel.data import loader
from bigmodel.errors import Busy, Retry, UsageError, note
from bigmodel.files import full_disk, writing
from bigmodel.ops import sharding
from bigmodel.run import (  # fmt: skip
    budget,
    checkpoint,
    claims,
    executables,
    identity,
    optim,
    outcome,
    processes,
    program,
    record,
    starts,
)
from bigmodel.run.progress import Line, peak_flops
from bigmodel.run.view import View, wandb_mode

BRANCH = ("end", "alive")  # what each row of branches.jsonl has

# --------------------------------------------------------------------------------- the loop


class Stop:
    """SIGTERM and SIGINT ask the loop to save and leave; the same one again ends the process at once, with code 75.

    Not outside the main thread. Where several processes train together they have to stop at the same step:
    there JAX's preemption service hears of SIGTERM, and agrees on one.
    """

    def __init__(self) -> None:
        self.asked = False
        self.alone = jax.process_count() == 1
        self.main = threading.current_thread() is threading.main_thread() and self.alone

    def __enter__(self) -> Stop:
        if self.main:
            self.old = {s: signal.signal(s, self._ask) for s in (signal.SIGTERM, signal.SIGINT)}
            # Python's handlers run once the main thread is back from a step, maybe minutes later: a thread answers.
            heard, self.told = os.pipe()
            os.set_blocking(self.told, False)
            self.old_told = signal.set_wakeup_fd(self.told, warn_on_full_buffer=False)
            threading.Thread(target=self._answer, args=(heard,), daemon=True).start()
        return self

    def _ask(self, *_: Any) -> None:
        self.asked = True

    def _answer(self, heard: int) -> None:
        first: dict[int, float] = {}  # signal -> when it came first
        start = "\r\x1b[K" if sys.stderr.isatty() else ""  # over the progress line
        while number := os.read(heard, 1):
            signum, now = number[0], time.monotonic()
            if signum in self.old and signum not in first:
                if not first:
                    print(f"{start}bigmodel: saving after this step; again to quit now", file=sys.stderr, flush=True)
                first[signum] = now
            elif signum in self.old and now - first[signum] > 0.5:  # sooner: one Ctrl-C, passed on by a parent as well
                print(f"{start}bigmodel: not saved; the same command continues from the last save", file=sys.stderr)
                processes.leave(errors.EXIT_RETRY)
        os.close(heard)

    def at(self, step: int) -> bool:
        """Whether to stop after `step`. Asked once a step, by every process."""
        return self.asked if self.alone else multihost_utils.reached_preemption_sync_point(step)

    def __exit__(self, *_: Any) -> None:
        if self.main:
            for s, handler in self.old.items():
                signal.signal(s, handler)
            signal.set_wakeup_fd(self.old_told)
            os.close(self.told)


def train(unfrozen: ConfigDict, root: str = "runs", **kwargs: Any) -> dict[str, Any]:
    """Trains a config in the folder root/<run id>, from wherever it stands there; returns its result.

    Keywords and errors: see `attempt`.
    """
    return attempt(unfrozen, root, **kwargs)[0]


def attempt(
    unfrozen: ConfigDict,
    root: str,
    *,
    name: str = "",
    group: str = "",
    view: View | None = None,
    quiet: bool = False,
) -> tuple[dict[str, Any], bool]:
    """(result, whether anything had to be trained for it).

    Args:
      unfrozen: a config, finalised here.
      root: folder of runs, local or gs://.
      name, group: how W&B shows the run.
      view: the W&B process to share with other runs; None: one of its own.

    Raises:
      UsageError: the config, its data or its checkpoint can't be used.
      Busy: another process trains it.
      Retry: interrupted (SIGTERM, full disk): the same call continues.
    """
    frozen = budget.finalize(unfrozen)
    plan = budget.derive(frozen)
    run_id = identity.run_id(frozen)
    folder = epath.Path(root) / run_id
    identity.check(folder, frozen)
    result = record.read_result(folder)
    if result is not None and jax.process_count() == 1:
        return result, False
    mesh = sharding.make_mesh(frozen.run.mesh)
    program.check_batch(frozen, mesh)
    program.check_memory(frozen, mesh)
    lead = jax.process_index() == 0
    made = [p for p in (folder, *folder.parents) if "://" not in root and not p.exists()]
    claim, result = _claim(folder, lead)
    if result is not None:
        return result, False
    own_view = view or View()
    line = Line(f"{name or run_id}", plan.steps, quiet=quiet or not lead)
    try:
        with (
            full_disk(folder),
            program.within_memory(name or run_id),
            processes.Watch(frozen.run.watchdog, name or run_id) as watch,
        ):
            return _train(frozen, plan, folder, mesh, claim, watch, name or run_id, group, own_view, line), True
    except UsageError:
        if lead and folder in made:  # a mistake leaves nothing behind
            folder.rmtree()
            for parent in made[1:]:
                if not any(parent.iterdir()):
                    parent.rmdir()
        raise
    finally:
        line.close()
        if view is None:
            own_view.close(seconds=5.0)
        if claim is not None:
            claim.close()


def _claim(folder: epath.Path, lead: bool) -> tuple[Any, dict[str, Any] | None]:
    """(the claim of process 0, None elsewhere; the result, if the run is finished): all processes alike.

    Raises:
      Busy: somebody else trains it; whatever process 0 met, and Retry in the others.
    """
    claim, error, verdict = None, None, 0
    if lead:
        try:
            with writing(folder):
                folder.mkdir(parents=True, exist_ok=True)
                claim = claims.claim(folder)
            if record.read_result(folder) is not None:  # whoever held it before may have finished
                claim.close()
                verdict = 1
        except Exception as e:
            error, verdict = e, 2 if isinstance(e, Busy) else 3
    verdict = processes.agree(verdict)
    if error:
        raise error
    if verdict == 1:
        return None, record.read_result(folder)
    if verdict:
        raise (Busy if verdict == 2 else Retry)(f"{folder}: process 0 can't claim this run")
    return claim, None


def _text_bytes(frozen: Any, examples: Any) -> int | None:
    """UTF-8 bytes of the text that `evaluate` predicts; 0 where its loss isn't a text's likelihood, None: unknown."""
    places = models.family(frozen.family).likelihood(frozen.model)
    if not places or not hasattr(examples, "text_bytes"):
        return 0
    count = min(len(examples), frozen.train.eval_examples or len(examples))
    return examples.text_bytes(count, places.start, places.stop)


def _saved_step(frozen: Any, compiled: program.Program, mesh: Mesh) -> Any:
    """The step that config.run.executable holds: in all processes, or a UsageError in all."""
    path, step, error = frozen.run.executable, None, None
    try:
        wanted = executables.made_for(program.static_part(frozen), mesh)
        step = executables.load(path, wanted, list(mesh.devices.flat), compiled.shardings)
    except UsageError as e:
        error = e
    if processes.any_of(error is not None):
        raise error or UsageError(f"config.run.executable={path!r}: another process can't read it")
    return step


def _train(
    frozen: Any,
    plan: budget.Budget,
    folder: epath.Path,
    mesh: Mesh,
    claim: Any,
    watch: processes.Watch,
    name: str,
    group: str,
    view: View,
    line: Line,
) -> dict[str, Any]:
    began, source_state = time.time(), record.git_state()
    lead = claim is not None
    B, steps, seed = frozen.train.batch_size, plan.steps, frozen.train.seed

    # ---- data: checked against the family's spec before anything is compiled
    source, family = data.source(frozen.data.source), models.family(frozen.family)
    examples = {s: source.open_split(frozen.data, frozen.run.data_dir, s) for s in ("train", "validation")}
    loader.check_examples(examples["train"][0], family.spec(frozen.model))
    rows = sharding.rows_here(mesh, B)
    text_bytes = _text_bytes(frozen, examples["validation"])
    if lead and text_bytes is None:
        note(f"{name}: its tokenizer doesn't say how many bytes a token is: there are no bits per byte")

    # ---- state: own checkpoint, else init_from, else fresh
    compiled = program.build(program.static_part(frozen), mesh)
    train_step = _saved_step(frozen, compiled, mesh) if frozen.run.executable else compiled.step
    if lead:
        stored = frozen.to_dict()
        record.write_record(folder / "config.json", {**stored, "run": {**stored["run"], "executable": ""}})
    saves = checkpoint.Checkpoints(str(folder / "checkpoints"), frozen.run.keep)
    root_key = jax.random.key(seed)  # the seed tree: 0 parameters, 1 steps (dropout, masks), and data by number
    start, meta = 0, dict[str, Any]()
    if (saved_before := saves.restore_latest(compiled.shapes, compiled.shardings)) is not None:
        start, state, meta = saved_before
        if meta.get("run_id", folder.name) != folder.name:
            raise UsageError(f"{folder}/checkpoints are of run {meta['run_id']}: remove them, or choose another --runs")
    else:
        state = compiled.init(jax.random.fold_in(root_key, 0))
        lost = len(record.read_rows(folder / "metrics.jsonl")) if lead else 0
        if lost:
            line.say(f"{folder}: no checkpoint there; starts again at step 0, without the {lost} rows of metrics.jsonl")
        if frozen.train.init_from:
            state["params"], said = starts.start(frozen, compiled, state["params"])
            line.say(said)
            if lead:
                record.write_text(folder / "start.txt", said + "\n")
    step_key = jax.random.fold_in(root_key, 1)

    # ---- record
    if lead:
        record.add_attempt(folder, start, jax.process_count(), mesh.size)
    # What a result is computed from has to be whole: checks (patience), noise, branches.
    needed = {"metrics": bool(frozen.train.patience or frozen.train.noise_scale), "branches": True}
    kept = ("metrics", "speed", *(["branches"] if frozen.optim.branches else []))
    files = {
        k: record.Rows(
            folder / f"{k}.jsonl",
            start,
            meta.get("rows", {}).get(k),
            needed.get(k, False),
            BRANCH if k == "branches" else (),
        )
        for k in (kept if lead else ())
    }
    metrics_file, speed_file, branch_file = (files.get(k) for k in ("metrics", "speed", "branches"))
    if speed_file:
        began -= speed_file.last("seconds", 0.0)  # what earlier sessions of this run took
    if lead:
        mode = wandb_mode(frozen.run.wandb)
        if frozen.run.wandb == "online" and "://" in str(folder):
            line.say(f"config.run.wandb=online: W&B shows no run of an object store, as {folder} is")
        elif mode != frozen.run.wandb and view.child is None:  # once, where many runs share a view
            line.say(
                f"W&B is offline, without WANDB_API_KEY or a key in ~/.netrc: `wandb sync {folder}/wandb/offline-*`"
            )
        view.open(folder, mode, name, group, start)
    in_order = budget.carries(frozen.model)
    batches = loader.train_batches(examples["train"], B, seed, start, steps, rows, in_order)
    peak = peak_flops(mesh)
    last_loss = metrics_file.last("loss", math.nan) if metrics_file else math.nan
    status = ""

    def alive() -> None:
        watch.progress()
        if claim:
            claim.renew()

    def evaluate() -> dict[str, float]:
        variables = {"params": state["params"], **state["model_state"]}
        parts = loader.eval_batches(examples["validation"], B, frozen.train.eval_examples, rows)
        total = program.totals(compiled, variables, (sharding.place(host, mesh, B) for host in parts), alive)
        out = {f"eval_{k}": v / weight for k, (v, weight) in total.items()}
        if text_bytes:
            out["eval_bits_per_byte"] = total["loss"][0] / math.log(2) / text_bytes
        return out

    patience, every = frozen.train.patience, frozen.train.patience_steps
    checks = [
        (r["step"], r["eval_loss"])
        for r in record.read_rows(folder / "metrics.jsonl")
        if patience and "eval_loss" in r and r["step"] <= start and r["step"] % every == 0
    ]

    def branch(step: int, end: int, stop: Stop) -> bool:
        """Decays from the trunk at `step` until `end`, notes the loss there, and goes back to the trunk.

        False: interrupted, with nothing noted.
        """
        nonlocal state
        trunk = jax.tree.map(jnp.copy, state)  # the steps write over the state they are given
        ahead = loader.train_batches(examples["train"], B, seed, step, end, rows, in_order)
        for t in range(step, end):
            rate = jnp.float32(optim.learning_rate(frozen.optim, t, steps, end))
            state, metrics = train_step(state, sharding.place(next(ahead), mesh, B), rate, step_key)
            if t % 16 == 0:
                jax.block_until_ready(metrics)
                alive()
            if stop.alone and stop.asked:
                state = trunk
                return False
        found = evaluate()
        good = bool(sharding.to_host(metrics["ok"])) and all(map(math.isfinite, found.values()))
        state = trunk
        if branch_file:
            branch_file.add({"step": step, "end": end, "alive": good, **(found if good else {})})
        return True

    def read(done: int, device_metrics: Any) -> str:
        """Reads a step's metrics (waiting for it), logs them; 'diverged' if it is over."""
        nonlocal last_loss
        row = {k: sharding.to_host(v).item() for k, v in device_metrics.items()}
        alive()
        over = not row.pop("ok")
        if math.isfinite(row["loss"]):
            last_loss = row["loss"]
        if metrics_file and (done % frozen.run.log_every == 0 or done == steps or over):
            rate = optim.learning_rate(frozen.optim, done - 1, steps)
            clean = {k: v if math.isfinite(v) else None for k, v in row.items()}  # NaN is not JSON
            metrics_file.add({"step": done, plan.unit: done * plan.tokens // steps, "lr": rate, **clean})
        return "diverged" if over else ""

    def save(step: int) -> None:
        for file in files.values():
            file.flush()  # the checkpoint claims these rows
        noted = {k: file.claim(step) for k, file in files.items()}
        saves.save(step, state, {"step": step, "run_id": folder.name, "next_batch": step, "rows": noted})

    # ---- loop: dispatch step t, then read step t-1, so that the device never waits for the host
    pending: tuple[int, Any] | None = None
    forks = optim.branch_steps(frozen.optim, steps)
    branched = {r["end"] for r in record.read_rows(folder / "branches.jsonl", BRANCH) if r["step"] <= start}
    step = saved = start
    early = bool(patience) and outcome.no_better(
        [loss for _, loss in checks], patience
    )  # and was killed before its result
    with Stop() as stop:
        window, window_began = start, time.time()
        while step < steps and not status and not early:
            for end in (e for e, fork in forks.items() if fork == step and e not in branched):
                if pending:
                    status, pending = read(*pending), None
                if status:
                    break
                if not branch(step, end, stop):
                    if step != saved:
                        save(step)
                    saves.wait()
                    raise Retry(f"interrupted at step {step} of {steps}, saved; the same command continues")
            if status:
                break
            batch = sharding.place(next(batches), mesh, B)
            rate = jnp.float32(optim.learning_rate(frozen.optim, step, steps))
            state, metrics = train_step(state, batch, rate, step_key)
            if pending:
                status = read(*pending)
            step += 1
            pending = (step, metrics)
            stopping = stop.at(step) and step < steps
            due_check = patience and step % every == 0 and step < steps
            due_eval = due_check or (frozen.run.eval_every and step % frozen.run.eval_every == 0 and step < steps)
            due_save = frozen.run.checkpoint_every and step % frozen.run.checkpoint_every == 0 and step < steps
            if (due_eval or due_save or stopping or step == steps) and not status:
                status = read(*pending)
                pending = None
            if due_eval and not status:
                evaluated = evaluate()  # by all processes together
                if metrics_file:
                    metrics_file.add({"step": step, **evaluated})
                if due_check:
                    checks.append((step, evaluated["eval_loss"]))
            early = bool(due_check) and outcome.no_better([loss for _, loss in checks], patience)
            done = step - (pending is not None)  # a step that was only dispatched has taken no time yet
            if done > window and (line.due() or due_save or step == steps):
                seconds = max(1e-9, time.time() - window_began)
                per_second = (done - window) / seconds
                speed = {
                    f"{plan.unit}_per_second": per_second * plan.tokens / steps,
                    "mfu": per_second * plan.flops_per_step / peak,
                }
                line.show(done, last_loss, speed, per_second)
                if speed_file:
                    speed_file.add({"step": done, "seconds": time.time() - began, **speed})
                window, window_began = done, time.time()
            if status or early:
                break
            if due_save or stopping:
                save(step)
                saved = step
            if stopping:
                saves.wait()
                raise Retry(f"interrupted at step {step} of {steps}, saved; the same command continues")

    # ---- result
    status = status or "done"
    good = int(sharding.to_host(state["step"]))  # of a diverged run: its last good step
    final = evaluate() if status == "done" else {}
    if not all(map(math.isfinite, final.values())):
        status, final = "diverged", {}
    # A check that ended the run has written it, and so had whoever saved the last step.
    if metrics_file and final and start < steps and not early:
        metrics_file.add({"step": step, **final})
    if good != saved or saved == 0:
        save(good)
    saves.close()  # errors of the asynchronous writer surface before the run is called done
    devices = mesh.devices.flat
    result = {
        "run_id": folder.name,
        "name": name,
        "status": status,
        "family": frozen.family,
        "data": frozen.data.to_dict().get("name", frozen.data.source),
        "width": frozen.model.width,
        "depth": frozen.model.depth,
        **{k: v for k, v in plan.to_dict().items() if k not in ("state_bytes", "flops_per_step")},
        **(plan.after(step) if status == "done" else {}),
        **({"best_step": min(checks, key=lambda c: c[1])[0], "best_loss": min(c[1] for c in checks)} if checks else {}),
        "loss": final.get("eval_loss"),
        "bits_per_byte": final.get("eval_bits_per_byte"),
        **{k: v for k, v in final.items() if k not in ("eval_loss", "eval_bits_per_byte")},
        **outcome.noise_scale(folder, steps, plan.tokens / steps / B),
        "train_loss": last_loss if math.isfinite(last_loss) else None,
        "last_good_step": good,
        "seed": seed,
        "batch_size": B,
        "lr": frozen.optim.lr,
        "device": devices[0].device_kind,
        "num_devices": mesh.size,
        "jax_version": jax.__version__,
        "date": record.now(),
        "wall_seconds": round(time.time() - began, 3),
        "git_sha": source_state["git_sha"],
        "git_dirty": bool(source_state["git_diff"]),
    }
    if branch_file:
        branch_file.close()
        result["branches"] = [
            outcome.branch_row(result, row, plan)
            for row in record.read_rows(folder / "branches.jsonl", BRANCH)
            if row["alive"]
        ]
    if metrics_file and speed_file:
        metrics_file.close()
        speed_file.close()
        if source_state["git_diff"]:
            (folder / "git.diff").write_text(source_state["git_diff"])
        record.write_record(folder / "result.json", result)
        (folder / "error.json").unlink(missing_ok=True)
        view.finish()
    return result
