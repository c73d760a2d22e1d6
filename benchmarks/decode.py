"""Decoding beside Hugging Face's transformers: prefill, a token's time and peak memory, same weights and dtype.

    bigmodel prepare smollm2 --out=data/smollm2
    python benchmarks/decode.py data/smollm2            times, interleaved in one process
    python benchmarks/decode.py data/smollm2 --memory   peak memory, a process each

Both sides take turns round after round; medians and the ratios of medians are printed. transformers runs eagerly and
with torch.compile on a static cache. `bandwidth`: the bytes of the weights that a step reads, over its time, beside
what a sum over an array of their size reaches.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np


def ours(folder: str):
    import jax

    from bigmodel import models
    from bigmodel.after import decode, generate, opened
    from bigmodel.ops import sharding

    mesh = sharding.make_mesh(sharding.ALONE, jax.devices()[:1])
    found = opened.open_published(folder, lambda f, _: decode.placing(models.family(f), mesh, "float32"))
    decoder = decode.Decoder(found.module, found.cfg, found.params, mesh)

    def run(prompts, n):
        """(seconds of the prompts' pass, seconds of n further tokens)."""
        batch = decoder.batch(list(enumerate(prompts)))
        begin = time.perf_counter()
        drawn = decoder.sample(batch, n + 1, generate.Sampling(), chunk=n)
        next(drawn)
        middle = time.perf_counter()
        tokens, _ = next(drawn)
        assert tokens.shape == (len(prompts), n)
        return middle - begin, time.perf_counter() - middle

    return run, sum(x.nbytes for x in jax.tree.leaves(found.params))


def theirs(folder: str, compiled: bool):
    import torch
    from transformers import AutoModelForCausalLM

    (file,) = Path(folder).glob("*.gguf")
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file.name, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    cache = {"cache_implementation": "static", "disable_compile": True} if compiled else {}
    if compiled:
        torch._dynamo.config.recompile_limit = 64  # a program for every batch and length
        model.forward = torch.compile(model.forward, dynamic=False)

    forward, ends = model.forward, []

    def timed(*args, **named):
        out = forward(*args, **named)
        ends.append(time.perf_counter())
        return out

    model.forward = timed

    def run(prompts, n):
        ids = torch.tensor(np.array(prompts)).long()
        ends.clear()
        begin = time.perf_counter()
        with torch.inference_mode():
            out = model.generate(
                ids, max_new_tokens=n + 1, min_new_tokens=n + 1, do_sample=False, pad_token_id=0, **cache
            )
        end = time.perf_counter()
        assert out.shape[1] == ids.shape[1] + n + 1 and len(ends) == n + 1
        return ends[0] - begin, end - ends[0]

    return run


def bandwidth(size: int) -> float:
    """Bytes a second at which this machine reads an array of `size` bytes, by a sum over it in XLA, best of 5."""
    import jax
    import jax.numpy as jnp

    x = jnp.ones(size // 4)
    read = jax.jit(jnp.sum)
    read(x).block_until_ready()
    best = float("inf")
    for _ in range(5):
        begin = time.perf_counter()
        read(x).block_until_ready()
        best = min(best, time.perf_counter() - begin)
    return size / best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--one", default="", help="of --memory: ours or theirs, in this process")
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    if args.one:
        run = ours(args.folder)[0] if args.one == "ours" else theirs(args.folder, compiled=False)
        run(rng.integers(10, 40_000, (8, 512)).tolist(), args.tokens)
        print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))
        return
    if args.memory:
        for one in ("ours", "theirs"):
            command = [sys.executable, __file__, args.folder, f"--one={one}", f"--tokens={args.tokens}"]
            out = subprocess.run(command, capture_output=True, text=True, env={**os.environ}, check=True)
            print(f"peak memory, batch 8, prompts of 512, {one}: {int(out.stdout.split()[-1]) / 2**20:,.0f} MiB")
        return
    run, size = ours(args.folder)
    sides = {"ours": run, "eager": theirs(args.folder, False), "compiled": theirs(args.folder, True)}
    peak = bandwidth(size)
    print(f"weights {size / 1e9:.3f} GB; reading them takes at best {1e3 * size / peak:.1f} ms ({peak / 1e9:.1f} GB/s)")
    for B, L in ((1, 32), (8, 32), (1, 512), (8, 512)):
        prompts = rng.integers(10, 40_000, (B, L)).tolist()
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
        for k in range(args.rounds + 1):
            for name, side in sides.items():
                found = side(prompts, args.tokens)
                if k:  # the first compiles
                    times[name].append(found)
        middle = {name: [statistics.median(t[i] for t in ts) for i in (0, 1)] for name, ts in times.items()}
        for i, what in enumerate(("prefill", "a token")):
            per = 1e3 / (args.tokens if i else 1)
            cells = ", ".join(f"{name} {per * m[i]:.1f} ms" for name, m in middle.items())
            ratios = ", ".join(f"{middle[n][i] / middle['ours'][i]:.2f}x {n}" for n in ("eager", "compiled"))
            share = f"; {size * args.tokens / middle['ours'][1] / peak:.0%} of the bandwidth" if i else ""
            print(f"batch {B}, prompt {L}, {what}: {cells}; {ratios}{share}", flush=True)


if __name__ == "__main__":
    main()
