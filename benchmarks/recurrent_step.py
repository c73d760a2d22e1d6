"""A step's loss and gradients of an LSTM on the CPU: the recurrent weights' gradient as one product over all tokens,
against the derived one, which adds it up token after token. Medians of steps taken in turns.

    python benchmarks/recurrent_step.py
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import FrozenConfigDict

from bigmodel.models import recurrent
from bigmodel.ops import recurrence

B, L, STEPS = 8, 128, 15


def step(width: int, recur: Callable[..., Any]) -> Callable[[], Any]:
    """A compiled step, with its arguments."""
    cfg = recurrent.get_config()
    cfg.update(dict(width=width, depth=2, seq_len=L))
    recurrent.finalize(cfg)
    model = recurrent.Model(FrozenConfigDict(cfg))
    batch = {"tokens": jax.random.randint(jax.random.key(0), (B, L + 1), 0, 256), "weight": jnp.ones(B)}
    params = jax.jit(model.init)(jax.random.key(1), batch["tokens"][:, :-1])["params"]

    def loss(params):
        return recurrent.loss(model, {"params": params}, batch, jax.random.key(2), True)[0]

    written, recurrence.recur = recurrence.recur, recur
    try:
        compiled = jax.jit(jax.value_and_grad(loss)).lower(params).compile()
    finally:
        recurrence.recur = written
    return lambda: jax.block_until_ready(compiled(params))


def main() -> None:
    print(f"width  written out  derived   ms of a step of {B} x {L} tokens; ratio")
    for width in (64, 128, 256, 512):
        ways = {"out": recurrence.recur, "derived": recurrence.reference}
        sides = {name: step(width, recur) for name, recur in ways.items()}
        spent: dict[str, list[float]] = {name: [] for name in sides}
        for k in range(STEPS + 2):
            for name, run in sides.items():
                began = time.perf_counter()
                run()
                if k >= 2:
                    spent[name].append(time.perf_counter() - began)
        out, derived = (1e3 * statistics.median(spent[name]) for name in ("out", "derived"))
        print(f"{width:5}  {out:11.1f}  {derived:7.1f}   {out / derived:.2f}")


if __name__ == "__main__":
    main()
