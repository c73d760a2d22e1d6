"""The compiled side of a run: init, step and evaluate of one config on one mesh.

`train` runs it; whoever compiles ahead of time, for a machine that isn't there, compiles this very step.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import FrozenConfigDict

from bigmodel import config, models, tree
from bigmodel.errors import UsageError
from bigmodel.models import losses
from bigmodel.ops import platforms, sharding
from bigmodel.run import adapters, budget, counts, optim


@dataclass(frozen=True)
class Program:
    """The compiled side of a run. Runs whose static parts agree share one, and so its compilations."""

    family: Any
    init: Any  # key -> state
    step: Any  # state, batch, rate, key -> state, metrics as means
    evaluate: Any  # variables, batch -> (metrics, each as (sum, weight); the family's own sums)
    shapes: Any
    shardings: Any


def static_part(frozen: Any) -> str:
    """What is compiled: not the rate, its schedule, the horizon, the seed, nor where data comes from."""
    optim_ = {k: v for k, v in frozen.optim.to_dict().items() if k not in optim.RATE_KEYS}
    keys = ("batch_size", "microbatch", "divergence", "divergence_steps", "noise_scale", "param_dtype", "grad_dtype")
    train_ = {k: frozen.train[k] for k in (*keys, *(adapters.KEYS if frozen.train.lora_rank else ()))}
    optim_["groups"] = adapters.frozen_groups(frozen.train, frozen.optim.groups)
    run = {k: frozen.run[k] for k in ("remat", "attention", "loss_chunks")}
    tree = {"family": frozen.family, "model": frozen.model.to_dict(), "optim": optim_, "train": train_, "run": run}
    return json.dumps(tree, sort_keys=True)


def _microbatch(cfg: Any, mesh: Mesh) -> int:
    """Examples whose gradients are taken at once: as the config says, else as few as a platform likes; of a loss that
    isn't a mean over independent examples, always the batch."""
    family, B = models.family(cfg.family), cfg.train.batch_size
    if not family.decomposes(cfg.model):
        return B
    # A picture is one unit, and as many tokens as its family's footprint says.
    tokens = max(family.units(cfg.model), (family.footprint(cfg.model) or {"length": 1})["length"])
    M = cfg.train.microbatch or platforms.cached_examples(mesh, B, tokens)
    if cfg.train.noise_scale and M == B:  # checked where the config says so; here the platform has chosen
        M = next(m for m in range(B // 2, 0, -1) if B % m == 0)
    return M


def _noise(micro: jax.Array, whole: jax.Array, M: int, B: int) -> dict[str, jax.Array]:
    """Unbiased estimates from squared gradient norms of M examples (mean over micro-batches) and of B.

    `grad_noise`: the trace of an example's gradient covariance; `grad_signal`: the squared norm of the true gradient.
    The gradient noise scale, in examples, is the ratio of their means over steps (McCandlish et al. 2018,
    arXiv:1812.06162, appendix A.1).
    """
    return {
        "grad_noise": (micro - whole) / (1 / M - 1 / B),
        "grad_signal": (B * whole - M * micro) / (B - M),
    }


def check_memory(frozen: Any, mesh: Mesh) -> None:
    """Refuses a state and a batch that all devices together can't hold: asked for so much, XLA may end the process."""
    found = platforms.memory(mesh)
    if found is None:
        return
    there, where = found
    batch = counts.batch_shapes(models.family(frozen.family), frozen.model, frozen.train.batch_size)
    sizes = {"config.model": budget.derive(frozen).state_bytes, "config.train.batch_size": tree.size_bytes(batch)}
    if sum(sizes.values()) > there:
        state, examples = (size / 2**30 for size in sizes.values())
        raise UsageError(
            f"parameters, gradients and the optimizer's state take {state:,.3g} GiB and a batch {examples:,.3g} GiB; "
            f"{where} has {there / 2**30:,.3g} GiB: choose a smaller {max(sizes, key=lambda k: sizes[k])}"
        )


@contextlib.contextmanager
def within_memory(what: str) -> Iterator[None]:
    """Around what runs programs: too large an array is the config's mistake."""
    try:
        yield
    except jax.errors.JaxRuntimeError as e:
        if "RESOURCE_EXHAUSTED" not in str(e) and "Out of memory" not in str(e):
            raise
        raise UsageError(
            f"{what}: out of memory ({str(e).strip().splitlines()[0][:120]}): choose a smaller config.model or "
            "config.train.batch_size, or --config.train.microbatch=K"
        ) from e


def check_batch(cfg: Any, mesh: Mesh) -> None:
    """Refuses a batch that the mesh doesn't divide."""
    key = "microbatch" if cfg.train.microbatch else "batch_size"
    shards = sharding.batch_shards(mesh)
    if cfg.train[key] % shards:
        raise UsageError(
            f"config.train.{key}={cfg.train[key]} isn't a multiple of the mesh's slices x data x fsdp = {shards}"
        )


def _start(cfg: Any, family: Any, scales: Any, tx: Any) -> Any:
    """key -> the state before the first step. `params` is what is evaluated and used; where that is a moving average,
    `iterate` is what learns."""

    def init(key: jax.Array) -> Any:
        B = cfg.train.batch_size if family.carries(cfg.model) else 1
        variables = dict(counts.init(family, cfg.model, key, B))
        params = jax.tree.map(lambda w, m: w if m == 1 else w * m, variables.pop("params"), scales.start)
        params = jax.tree.map(lambda w: w.astype(cfg.train.param_dtype), params)
        params = adapters.add(cfg.train, cfg.optim, family.RULES, params, key)
        return {
            "step": jnp.zeros((), jnp.int32),
            "params": params,
            **({"iterate": params} if cfg.optim.ema else {}),
            "opt": tx.init(adapters.learnable(cfg.train, params)),
            "model_state": variables,
            "guard": {
                "first_loss": jnp.zeros(()),
                "high_steps": jnp.zeros((), jnp.int32),  # steps in a row above divergence x first_loss
                "ok": jnp.ones((), bool),
            },
        }

    return init


def _parts(cfg: Any) -> Any:
    family = models.family(cfg.family)
    scales = counts.scales(cfg.family, cfg.model, cfg.optim.name)
    return family, scales, optim.build(cfg.optim, rules(cfg), scales.rate, scales.gradient)


def rules(cfg: Any) -> Any:
    """The RULES of all parameters that are trained: the model's and its adapters'."""
    return adapters.rules_with(cfg.train, models.family(cfg.family).RULES)


@functools.lru_cache(maxsize=64)
def state_shapes(static: str) -> Any:
    """Shapes of a training state, whatever the mesh."""
    cfg = FrozenConfigDict(config.from_json(static))
    return jax.eval_shape(_start(cfg, *_parts(cfg)), jax.random.key(0))


def totals(compiled: Program, variables: Any, batches: Iterable[Any], each: Callable[[], None] = lambda: None) -> Any:
    """What `compiled.evaluate` returns, summed over placed batches: metrics as (sum, weight), and the family's sums.

    They don't depend on the batches' size.

    Args:
      each: called after each batch.
    """
    found = None
    for batch in batches:
        part = compiled.evaluate(variables, batch)
        part = jax.tree.map(lambda x: sharding.to_host(x).astype(np.float64), part)
        found = part if found is None else jax.tree.map(np.add, found, part)
        each()
    return found


def scores(compiled: Program, found: Any) -> dict[str, float]:
    """Metrics from what `totals` returns: means of the loss's metrics, and what the family makes of its own sums."""
    metrics, sums = found
    means = {name: float(total) / float(weight) for name, (total, weight) in metrics.items()}
    summarize = compiled.family.summarize
    return means | ({name: float(value) for name, value in summarize(sums).items()} if summarize else {})


@functools.lru_cache(maxsize=64)
def build(static: str, mesh: Mesh) -> Program:
    cfg = FrozenConfigDict(config.from_json(static))
    family, scales, tx = _parts(cfg)
    model = family.Model(cfg.model)
    B, M = cfg.train.batch_size, _microbatch(cfg, mesh)

    init = _start(cfg, family, scales, tx)

    def effective(params: Any) -> Any:
        return scales.effective(adapters.merge(cfg.train, family.RULES, params))

    def gradient(params: Any, model_state: Any, batch: Any, key: jax.Array) -> Any:
        def objective(p: Any) -> Any:
            if cfg.optim.groups:
                p = optim.freeze(cfg.optim, p)
            variables = {"params": effective(tree.merge(params, p)), **model_state}
            return family.loss(model, variables, batch, key, True)

        grads, aux = jax.grad(objective, has_aux=True)(adapters.learnable(cfg.train, params))
        return jax.tree.map(lambda g: g.astype(cfg.train.grad_dtype), grads), aux

    def accumulated(params: Any, model_state: Any, batch: Any, key: jax.Array) -> Any:
        """Gradient and metrics of the whole batch, M examples at a time: gradients of means by their loss's weight."""
        # Strided rows, so that every micro-batch lies over all devices as the batch does.
        micro = jax.tree.map(lambda x: x.reshape(M, B // M, *x.shape[1:]).swapaxes(0, 1), batch)

        def body(carry: Any, part: Any) -> Any:
            total, model_state = carry
            part = {k: sharding.constrain(x, "batch", *(None,) * (x.ndim - 1)) for k, x in part.items()}
            grads, (metrics, new_state) = gradient(params, model_state, part, key)
            w = metrics["loss"][1]
            if cfg.train.noise_scale:
                metrics = {**metrics, "micro_grad_square": (w * jnp.square(optax.global_norm(grads)), w)}
            weighted = jax.tree.map(lambda x: (x * w).astype(x.dtype), grads)
            return (jax.tree.map(jnp.add, total, (weighted, metrics)), new_state or model_state), None

        grad_shapes, (metric_shapes, _) = jax.eval_shape(
            gradient, params, model_state, jax.tree.map(lambda x: x[0], micro), key
        )
        if cfg.train.noise_scale:
            metric_shapes["micro_grad_square"] = metric_shapes["loss"]
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (grad_shapes, metric_shapes))
        ((grads, metrics), model_state), _ = jax.lax.scan(body, (zeros, model_state), micro)
        grads = jax.tree.map(lambda x: (x / metrics["loss"][1]).astype(x.dtype), grads)
        return grads, (metrics, model_state)

    def step(state: Any, batch: Any, rate: jax.Array, key: jax.Array) -> Any:
        # What is random is a function of the step and of the example's row: no micro-batch or mesh changes it.
        key = jax.random.fold_in(key, state["step"])
        # Schedules of the objective read the step.
        batch = {**batch, "row": jnp.arange(B), "step": jnp.full(B, state["step"])}
        take = gradient if M == B else accumulated
        params = state.get("iterate", state["params"])
        grads, (metrics, model_state) = take(params, state["model_state"], batch, key)
        report = {name: losses.mean(metric) for name, metric in metrics.items()}
        own, layout = (adapters.learnable(cfg.train, t) for t in (params, shardings["params"]))
        grads = platforms.as_stored(grads, layout, mesh)
        grad_norm = optax.global_norm(grads)
        updates, opt = tx.update(grads, state["opt"], own)
        norm = optim.update_norm(cfg.optim, updates, grad_norm)
        loss, guard = report["loss"], state["guard"]
        first = jnp.where(state["step"] == 0, loss, guard["first_loss"])
        high = jnp.where(loss > cfg.train.divergence * first, guard["high_steps"] + 1, 0)
        # A step that isn't finite, or is one high loss too many, changes nothing, nor does any after it: the last
        # good state is kept, whatever the host has dispatched meanwhile.
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm) & jnp.isfinite(rate * norm)
        ok = guard["ok"] & finite & (high < cfg.train.divergence_steps)
        params = tree.merge(params, optim.apply(cfg.optim, own, updates, rate))
        average = {}
        if cfg.optim.ema:
            average = {"iterate": params}
            params = optim.averaged(cfg.optim, state["params"], params, state["step"])
        new = {
            "step": state["step"] + 1,
            "params": params,
            **average,
            "opt": opt,
            "model_state": model_state or state["model_state"],
            "guard": {"first_loss": first, "high_steps": high, "ok": ok},
        }
        new = jax.tree.map(lambda a, b: jnp.where(ok, a, b), new, state)
        new["guard"]["ok"] = ok
        if cfg.train.noise_scale:
            report.update(_noise(report.pop("micro_grad_square"), jnp.square(grad_norm), M, B))
        return new, {**report, "grad_norm": grad_norm, "ok": ok}

    def evaluate(variables: Any, batch: Any) -> Any:
        variables = {**variables, "params": effective(variables["params"])}
        metrics = family.loss(model, variables, batch, jax.random.key(0), False)[1][0]
        return metrics, family.evaluate(model, variables, batch) if family.evaluate else {}

    def traced(fn: Any) -> Any:
        @functools.wraps(fn)
        def inner(*args: Any) -> Any:
            with sharding.use(mesh, sharding.Execution(**cfg.run)):
                return fn(*args)

        return inner

    shapes = jax.eval_shape(traced(init), jax.random.key(0))
    shardings = sharding.state_shardings(shapes, rules(cfg), mesh)
    whole = sharding.replicated(mesh)
    return Program(
        family=family,
        init=jax.jit(traced(init), out_shardings=shardings, compiler_options=platforms.init_options(mesh)),
        step=jax.jit(
            traced(step),
            donate_argnums=0,
            out_shardings=(shardings, whole),
            compiler_options=platforms.step_options(mesh),
        ),
        evaluate=jax.jit(traced(evaluate), out_shardings=whole),
        shapes=shapes,
        shardings=shardings,
    )
