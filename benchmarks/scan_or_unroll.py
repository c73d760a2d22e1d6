"""Scan over depth against unrolled layers: compile and step time of one training step, by depth.

    python benchmarks/scan_or_unroll.py [--width 64] [--depths 2 4 8 16 32]

Same parameters, same batch, interleaved steps in one process, medians; compilations are not taken from a
cache. Decides `execution="auto"` of models/decoder.py: unrolled while the steps saved outweigh the
compilation of a short run.
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from bigmodel import models
from bigmodel.ops import sharding
from bigmodel.run import program
from bigmodel.run.budget import base


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--depths", type=int, nargs="+", default=[2, 4, 8, 16, 32])
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    mesh = sharding.make_mesh({"data": -1})
    print(
        f"{'depth':>5} {'compile s: unrolled':>20} {'scan':>6} {'step ms: unrolled':>18} {'scan':>7} {'step ratio':>11}"
    )
    for depth in args.depths:
        runs = {}
        for execution in ("unrolled", "scan"):
            config = base("decoder", "text")
            shape = dict(width=args.width, depth=depth, num_heads=4, vocab_size=256, seq_len=128, execution=execution)
            config.model.update(shape)
            config.train.batch_size = 8
            models.family("decoder").finalize(config.model)
            compiled = program.build(program.static_part(config), mesh)
            tokens = np.random.default_rng(0).integers(0, 256, (8, 129))
            batch = {"tokens": jnp.asarray(tokens, jnp.int32), "weight": jnp.ones(8)}
            state = compiled.init(jax.random.key(0))
            arguments = (jnp.float32(1e-3), jax.random.key(1))
            began = time.perf_counter()
            step = compiled.step.lower(state, batch, *arguments).compile()
            runs[execution] = dict(compile=time.perf_counter() - began, step=step, state=state, times=[])
        for _ in range(args.rounds):
            for r in runs.values():
                began = time.perf_counter()
                for _ in range(3):
                    r["state"], metrics = r["step"](r["state"], batch, *arguments)
                jax.block_until_ready(metrics)
                r["times"].append((time.perf_counter() - began) / 3)
        u, s = runs["unrolled"], runs["scan"]
        mu, ms = (1e3 * statistics.median(r["times"]) for r in (u, s))
        print(
            f"{depth:>5} {u['compile']:>20.1f} {s['compile']:>6.1f} {mu:>18.1f} {ms:>7.1f} {ms / mu:>11.2f}", flush=True
        )


if __name__ == "__main__":
    main()
