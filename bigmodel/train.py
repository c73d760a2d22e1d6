"""train(config): the one loop, for every family. Read top to bottom. Layer 4."""

from __future__ import annotations

import functools
import json
import math
import signal
import threading
import time
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict, FrozenConfigDict

from bigmodel import budget, checkpoint, config, data, models, optim, sharding, track
from bigmodel.config import Retry, UsageError
from bigmodel.data import loader
from bigmodel.progress import Line, peak_flops

# ------------------------------------------------------------------------------ the program


@dataclass(frozen=True)
class Program:
    """The compiled side of a run. Runs whose static parts agree share one, and so its compilations."""

    init: Any  # key -> state
    step: Any  # state, batch, rate, key -> state, metrics
    evaluate: Any  # variables, batch -> metrics
    shapes: Any
    shardings: Any


def static_part(frozen: Any) -> str:
    """What is compiled: not the rate, its schedule, the horizon, the seed, nor where data comes from."""
    optim_ = {k: v for k, v in frozen.optim.to_dict().items() if k not in optim.RATE_KEYS}
    train_ = {k: frozen.train[k] for k in ("batch_size", "microbatch", "divergence")}
    tree = {"family": frozen.family, "model": frozen.model.to_dict(), "optim": optim_, "train": train_}
    return json.dumps(tree, sort_keys=True)


@functools.lru_cache(maxsize=64)
def build(static: str, mesh: Mesh) -> Program:
    cfg = FrozenConfigDict(config.from_json(static))
    family = models.family(cfg.family)
    model = family.Model(cfg.model)
    tx = optim.build(cfg.optim, family.RULES)
    B, M = cfg.train.batch_size, cfg.train.microbatch or cfg.train.batch_size

    def init(key: jax.Array) -> Any:
        variables = dict(budget.init(family, cfg.model, key))
        params = variables.pop("params")
        return {
            "step": jnp.zeros((), jnp.int32),
            "params": params,
            "opt": tx.init(params),
            "model_state": variables,
            "guard": {
                "first_loss": jnp.zeros(()),
                "high_steps": jnp.zeros((), jnp.int32),  # steps in a row above divergence x first_loss
                "finite": jnp.ones((), bool),
            },
        }

    def gradient(params: Any, model_state: Any, batch: Any, key: jax.Array) -> Any:
        def objective(p: Any) -> Any:
            return family.loss(model, {"params": p, **model_state}, batch, key, True)

        return jax.grad(objective, has_aux=True)(params)

    def accumulated(params: Any, model_state: Any, batch: Any, key: jax.Array) -> Any:
        """Gradient and metrics of the whole batch, M examples at a time: means weighted by `weight`."""
        # Strided rows, so that every micro-batch lies over all devices as the batch does.
        micro = jax.tree.map(lambda x: x.reshape(M, B // M, *x.shape[1:]).swapaxes(0, 1), batch)

        def body(carry: Any, xs: Any) -> Any:
            total, model_state = carry
            i, part = xs
            part = {k: sharding.constrain(x, "batch", *(None,) * (x.ndim - 1)) for k, x in part.items()}
            grads, (metrics, new_state) = gradient(params, model_state, part, jax.random.fold_in(key, i))
            metrics = dict(metrics)
            w = metrics.pop("weight")
            weighted = jax.tree.map(lambda x: x * w, (grads, metrics))
            return (jax.tree.map(jnp.add, total, (*weighted, w)), new_state or model_state), None

        grad_shapes, (metric_shapes, _) = jax.eval_shape(
            gradient, params, model_state, jax.tree.map(lambda x: x[0], micro), key
        )
        metric_shapes = {k: v for k, v in metric_shapes.items() if k != "weight"}
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (grad_shapes, metric_shapes))
        carry = ((*zeros, jnp.zeros(())), model_state)
        ((grads, metrics, weight), model_state), _ = jax.lax.scan(body, carry, (jnp.arange(B // M), micro))
        grads, metrics = jax.tree.map(lambda x: x / weight, (grads, metrics))
        return grads, ({**metrics, "weight": weight}, model_state)

    def step(state: Any, batch: Any, rate: jax.Array, key: jax.Array) -> Any:
        key = jax.random.fold_in(key, state["step"])
        take = gradient if M == B else accumulated
        grads, (metrics, model_state) = take(state["params"], state["model_state"], batch, key)
        grad_norm = optax.global_norm(grads)
        updates, opt = tx.update(grads, state["opt"], state["params"])
        loss, guard = metrics["loss"], state["guard"]
        first = jnp.where(state["step"] == 0, loss, guard["first_loss"])
        high = jnp.where(loss > cfg.train.divergence * first, guard["high_steps"] + 1, 0)
        # The first non-finite step changes nothing, nor does any after it: the last good state is kept.
        ok = guard["finite"] & jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        new = {
            "step": state["step"] + 1,
            "params": optim.apply(state["params"], updates, rate),
            "opt": opt,
            "model_state": model_state or state["model_state"],
            "guard": {"first_loss": first, "high_steps": high, "finite": ok},
        }
        new = jax.tree.map(lambda a, b: jnp.where(ok, a, b), new, state)
        new["guard"]["finite"] = ok
        report = {k: v for k, v in metrics.items() if k != "weight"}
        return new, {**report, "grad_norm": grad_norm, "finite": ok, "high_steps": high}

    def evaluate(variables: Any, batch: Any) -> Any:
        return family.loss(model, variables, batch, jax.random.key(0), False)[1][0]

    def traced(fn: Any) -> Any:
        @functools.wraps(fn)
        def inner(*args: Any) -> Any:
            with sharding.use(mesh):
                return fn(*args)

        return inner

    shapes = jax.eval_shape(traced(init), jax.random.key(0))
    shardings = sharding.state_shardings(shapes, family.RULES, mesh)
    whole = sharding.replicated(mesh)
    return Program(
        init=jax.jit(traced(init), out_shardings=shardings),
        step=jax.jit(traced(step), donate_argnums=0, out_shardings=(shardings, whole)),
        evaluate=jax.jit(traced(evaluate), out_shardings=whole),
        shapes=shapes,
        shardings=shardings,
    )


# --------------------------------------------------------------------------------- the loop


class Stop:
    """SIGTERM and SIGINT ask the loop to save and leave. Only in the main thread; else never set."""

    def __init__(self) -> None:
        self.asked = False
        self.main = threading.current_thread() is threading.main_thread()

    def __enter__(self) -> Stop:
        if self.main:
            self.old = {s: signal.signal(s, self._ask) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def _ask(self, *_: Any) -> None:
        self.asked = True

    def __exit__(self, *_: Any) -> None:
        if self.main:
            for s, handler in self.old.items():
                signal.signal(s, handler)


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
    view: track.View | None = None,
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
    run_id = config.run_id(frozen)
    folder = epath.Path(root) / run_id
    result = track.read_json(folder / "result.json")
    if result is not None:
        return result, False
    mesh = sharding.make_mesh(frozen.run.mesh)
    B = frozen.train.batch_size
    shards = sharding.batch_shards(mesh)
    if (frozen.train.microbatch or B) % shards:
        raise UsageError(
            f"config.train.{'microbatch' if frozen.train.microbatch else 'batch_size'}="
            f"{frozen.train.microbatch or B} isn't a multiple of the mesh's data x fsdp = {shards}"
        )
    lead = jax.process_index() == 0
    made = [p for p in (folder, *folder.parents) if "://" not in root and not p.exists()]
    with config.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = track.Lock(folder) if lead else None
    result = track.read_json(folder / "result.json")  # whoever held the lock before may have finished it
    if result is not None:
        if lock is not None:
            lock.close()
        return result, False
    own_view = view or track.View()
    line = Line(f"{name or run_id}", plan.steps, quiet=quiet or not lead)
    try:
        with config.full_disk(folder):
            return _train(frozen, plan, folder, mesh, lead, name or run_id, group, own_view, line), True
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
        if lock is not None:
            lock.close()


def _train(
    frozen: Any,
    plan: budget.Budget,
    folder: epath.Path,
    mesh: Mesh,
    lead: bool,
    name: str,
    group: str,
    view: track.View,
    line: Line,
) -> dict[str, Any]:
    began = time.time()
    B, steps, seed = frozen.train.batch_size, plan.steps, frozen.train.seed

    # ---- data: checked against the family's spec before anything is compiled
    source, family = data.source(frozen.data.source), models.family(frozen.family)
    examples = {s: source.open_split(frozen.data, frozen.run.data_dir, s) for s in ("train", "validation")}
    check_examples(examples["train"][0], family.spec(frozen.model))
    rows = sharding.rows_here(mesh, B)

    # ---- state: own checkpoint, else init_from, else fresh
    program = build(static_part(frozen), mesh)
    if lead:
        track.write_json(folder / "config.json", frozen.to_dict())
    saves = checkpoint.Checkpoints(str(folder / "checkpoints"), frozen.run.keep)
    root_key = jax.random.key(seed)  # the seed tree: 0 parameters, 1 steps (dropout, masks), and data by number
    start = saves.latest()
    if start is not None:
        state = saves.restore(start, program.shapes, program.shardings)
    else:
        state = program.init(jax.random.fold_in(root_key, 0))
        start = 0
        if frozen.train.init_from:
            state["params"] = checkpoint.restore_params(
                f"{frozen.train.init_from}/checkpoints", program.shapes["params"], program.shardings["params"]
            )
    step_key = jax.random.fold_in(root_key, 1)

    # ---- record
    metrics_file = track.Rows(folder / "metrics.jsonl", start) if lead else None
    speed_file = track.Rows(folder / "speed.jsonl", start) if lead else None
    if lead:
        view.open(folder, track.wandb_mode(frozen.run.wandb), name, group, start)
    batches = loader.train_batches(examples["train"], B, seed, start, steps, rows)
    peak = peak_flops(mesh)
    last_loss = metrics_file.last("loss", math.nan) if metrics_file else math.nan
    status = ""

    def evaluate() -> dict[str, float]:
        variables = {"params": state["params"], **state["model_state"]}
        total: dict[str, float] = {}
        weight = 0.0
        for host in loader.eval_batches(examples["validation"], B, frozen.train.eval_examples, rows):
            got = {k: float(v) for k, v in program.evaluate(variables, sharding.place(host, mesh, B)).items()}
            w = got.pop("weight")
            weight += w
            for k, v in got.items():
                total[k] = total.get(k, 0.0) + v * w
        out = {f"eval_{k}": v / weight for k, v in total.items()}
        if plan.bytes_per_unit:
            out["eval_bits_per_byte"] = out["eval_loss"] / math.log(2) / plan.bytes_per_unit
        return out

    def read(done: int, device_metrics: Any) -> str:
        """Reads a step's metrics (waiting for it), logs them; 'diverged' if it is over."""
        nonlocal last_loss
        row = {k: sharding.to_host(v).item() for k, v in device_metrics.items()}
        finite, high = row.pop("finite"), row.pop("high_steps")
        over = not finite or high >= frozen.train.divergence_steps
        if math.isfinite(row["loss"]):
            last_loss = row["loss"]
        if metrics_file and (done % frozen.run.log_every == 0 or done == steps or over):
            rate = optim.learning_rate(frozen.optim, done - 1, steps)
            clean = {k: v if math.isfinite(v) else None for k, v in row.items()}  # NaN is not JSON
            metrics_file.add({"step": done, plan.unit: done * plan.tokens // steps, "lr": rate, **clean})
        return "diverged" if over else ""

    def save(step: int) -> None:
        if metrics_file and speed_file:
            metrics_file.flush()  # the checkpoint claims these rows
            speed_file.flush()
        saves.save(step, state, {"step": step, "run_id": folder.name, "next_batch": step})

    # ---- loop: dispatch step t, then read step t-1, so that the device never waits for the host
    pending: tuple[int, Any] | None = None
    step = saved = start
    with Stop() as stop:
        window, window_began = start, time.time()
        while step < steps and not status:
            batch = sharding.place(next(batches), mesh, B)
            rate = jnp.float32(optim.learning_rate(frozen.optim, step, steps))
            state, metrics = program.step(state, batch, rate, step_key)
            if pending:
                status = read(*pending)
            step += 1
            pending = (step, metrics)
            due_eval = frozen.run.eval_every and step % frozen.run.eval_every == 0 and step < steps
            due_save = frozen.run.checkpoint_every and step % frozen.run.checkpoint_every == 0 and step < steps
            if (due_eval or due_save or stop.asked or step == steps) and not status:
                status = read(*pending)
                pending = None
            if due_eval and not status and metrics_file:
                metrics_file.add({"step": step, **evaluate()})
            if line.due() or due_save or step == steps:
                seconds = max(1e-9, time.time() - window_began)
                per_second = (step - window) / seconds
                speed = {
                    f"{plan.unit}_per_second": per_second * plan.tokens / steps,
                    "mfu": per_second * plan.flops_per_step / peak,
                }
                line.show(step, last_loss, speed)
                if speed_file:
                    speed_file.add({"step": step, "seconds": time.time() - began, **speed})
                window, window_began = step, time.time()
            if status:
                break
            if due_save or (stop.asked and step < steps):
                save(step)
                saved = step
            if stop.asked and step < steps:
                saves.wait()
                raise Retry(f"interrupted at step {step} of {steps}, saved; the same command continues")

    # ---- result
    status = status or "done"
    good = int(sharding.to_host(state["step"]))  # of a diverged run: its last good step
    final = evaluate() if status == "done" else {}
    if metrics_file and final and start < steps:  # else it was written before the checkpoint of the last step
        metrics_file.add({"step": steps, **final})
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
        **{k: v for k, v in plan.to_dict().items() if k not in ("state_bytes", "bytes_per_unit", "flops_per_step")},
        "loss": final.get("eval_loss"),
        "bits_per_byte": final.get("eval_bits_per_byte"),
        **{k: v for k, v in final.items() if k not in ("eval_loss", "eval_bits_per_byte")},
        "train_loss": last_loss if math.isfinite(last_loss) else None,
        "last_good_step": good,
        "seed": seed,
        "batch_size": B,
        "lr": frozen.optim.lr,
        "device": devices[0].device_kind,
        "num_devices": mesh.size,
        "jax_version": jax.__version__,
        "date": track.now(),
        "wall_seconds": round(time.time() - began, 3),
        "git_sha": git()["git_sha"],
        "git_dirty": bool(git()["git_diff"]),
    }
    if metrics_file and speed_file:
        metrics_file.close()
        speed_file.close()
        if git()["git_diff"]:
            (folder / "git.diff").write_text(git()["git_diff"])
        track.write_json(folder / "result.json", result)
        (folder / "error.json").unlink(missing_ok=True)
        view.finish()
    return result


@functools.cache
def git() -> dict[str, Any]:
    """git sha and dirty diff, once a process."""
    return track.git_state()


def check_examples(example: dict[str, Any], spec: dict[str, Any]) -> None:
    """The data delivers what the family reads."""
    for key, (shape, dtype) in spec.items():
        if key not in example:
            raise UsageError(f"the data has no {key!r}, only {', '.join(example)}")
        got = example[key]
        if tuple(got.shape) != tuple(shape) or str(got.dtype) != dtype:
            raise UsageError(f"data {key!r} is {got.dtype}{list(got.shape)}; the model reads {dtype}{list(shape)}")
