"""Time of a training step on a CPU: ours beside nanoGPT (PyTorch eager) and NanoDO (Flax), interleaved in one run.

    git clone https://github.com/karpathy/nanoGPT && git clone https://github.com/google-deepmind/nanodo
    python -m venv torchenv && torchenv/bin/pip install torch numpy
    python benchmarks/cpu_step.py --nanogpt=nanoGPT --nanodo=nanodo --torch-python=torchenv/bin/python
    python benchmarks/cpu_step.py ... --cores=1 --shape=d128

Each implementation is a process of its own, pinned to the same cores, that makes a step when it is told to; they take
turns, round by round, so that a slow spell of the machine meets all. The same work: a pre-norm GPT without biases, erf
GELU (NanoDO: tanh), learned positions, tied head, float32, AdamW, gradients clipped at norm 1, random tokens. Each
trains with its own code: nanoGPT's model and optimizer with the loop of its train.py, NanoDO's train step without its
internal metrics, ours as `bigmodel train` compiles it. The row `products` is no training: a step's matrix products
alone, by PyTorch, below whose time float32 can hardly go. A round's time is a step's wall time; the table has medians,
and medians of the ratios within a round.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any

SHAPES = {
    "d128": dict(width=128, depth=3, heads=4, seq_len=256, batch=32, vocab=256),
    "d384": dict(width=384, depth=6, heads=6, seq_len=256, batch=8, vocab=50304),
}

# -------------------------------------------------------------------- one step of each, as a function


def nanogpt(shape: dict[str, int], checkout: str) -> Any:
    sys.path.insert(0, checkout)
    import torch
    from model import GPT, GPTConfig  # nanoGPT's

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    config = GPTConfig(
        block_size=shape["seq_len"], vocab_size=shape["vocab"], n_layer=shape["depth"], n_head=shape["heads"],
        n_embd=shape["width"], dropout=0.0, bias=False,
    )  # fmt: skip
    with open(os.devnull, "w") as quiet:
        sys.stdout, out = quiet, sys.stdout
        model = GPT(config)
        optimizer = model.configure_optimizers(0.1, 6e-4, (0.9, 0.95), "cpu")
        sys.stdout = out
    tokens = torch.randint(0, shape["vocab"], (shape["batch"], shape["seq_len"] + 1))
    x, y = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def step() -> float:
        _, loss = model(x, y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


def nanodo(shape: dict[str, int], checkout: str) -> Any:
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import Mesh
    from ml_collections import ConfigDict

    sys.path.insert(0, checkout)
    for name in ("clu", "tensorflow_datasets", "sentencepiece", "nanodo.evaluate"):  # what reads data and reports
        sys.modules[name] = types.ModuleType(name)
    for name in ("metric_writers", "periodic_actions"):
        setattr(sys.modules["clu"], name, types.ModuleType(name))
    sys.modules["sentencepiece"].SentencePieceProcessor = object  # type: ignore[attr-defined]
    from nanodo import model_factory, train

    c = ConfigDict(
        dict(
            model=dict(
                D=shape["width"], H=shape["heads"], L=shape["seq_len"], N=shape["depth"], F=4 * shape["width"],
                dtype="float32", fsdp_enabled=True, remat=False,
            ),
            opt=dict(
                num_train_steps=1000, peak_learning_rate=6e-4, init_learning_rate=6e-4, final_learning_rate=6e-5,
                warmup_steps=10, decay_type="cosine", weight_decay=0.1, clip_by_global_norm=1.0, optimizer="adamw",
                b1=0.9, b2=0.95,
            ),
            log_internal_metrics=False,
        )
    )  # fmt: skip
    mesh = Mesh(np.asarray(jax.devices()), ("data",))
    model, get_loss_fn = model_factory.get_model_and_loss(c, shape["vocab"])
    shardings, state = train._init_train_state(c, model, jax.random.PRNGKey(0), mesh)
    trainer = train.Trainer(c=c, state=state, mesh=mesh, shardings=shardings, get_loss_fn=get_loss_fn)
    rng = np.random.default_rng(0)
    # It shifts within the window; no id is its padding, 0, so that all targets but the last count.
    tokens = rng.integers(1, shape["vocab"], (shape["batch"], shape["seq_len"])).astype("int32")

    def step() -> float:
        metrics = trainer.do_step(0, jnp.asarray(tokens))
        jax.block_until_ready(trainer.state.params)
        return float(metrics["train_loss"])

    return step


def ours(shape: dict[str, int], _: str) -> Any:
    import jax
    import jax.numpy as jnp
    import numpy as np
    from ml_collections import FrozenConfigDict

    from bigmodel import models
    from bigmodel.ops import sharding
    from bigmodel.run import budget, optim, program

    config = budget.base("decoder", "text")
    config.model.update(
        dict(
            width=shape["width"], depth=shape["depth"], num_heads=shape["heads"], seq_len=shape["seq_len"],
            vocab_size=shape["vocab"], bias=False, activation="gelu",
        )
    )  # fmt: skip
    models.family("decoder").finalize(config.model)
    optim.finalize(config.optim)
    config.train.batch_size = shape["batch"]
    mesh = sharding.make_mesh(config.run.mesh)
    built = program.build(program.static_part(FrozenConfigDict(config)), mesh)
    state, key = built.init(jax.random.key(0)), jax.random.key(1)
    rng = np.random.default_rng(0)
    host = {
        "tokens": rng.integers(0, shape["vocab"], (shape["batch"], shape["seq_len"] + 1)).astype("int32"),
        "weight": np.ones(shape["batch"], "float32"),
    }

    def step() -> float:
        nonlocal state
        state, metrics = built.step(state, sharding.place(host, mesh, shape["batch"]), jnp.float32(6e-4), key)
        jax.block_until_ready(state)
        return float(metrics["loss"])

    return step


def products(shape: dict[str, int], _: str) -> Any:
    """A step's products of tokens and weights alone, three a matrix, by PyTorch: about the least time of a step."""
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    T, D = shape["batch"] * shape["seq_len"], shape["width"]
    sizes = [(D, 3 * D), (D, D), (D, 4 * D), (4 * D, D)] * shape["depth"] + [(D, shape["vocab"])]
    arrays = {size: tuple(torch.randn(*s) for s in ((T, size[0]), size, (T, size[1]))) for size in set(sizes)}

    def step() -> float:
        for size in sizes:
            x, w, y = arrays[size]
            x @ w, y @ w.T, x.T @ y
        return 0.0

    return step


IMPLEMENTATIONS = {"ours": ours, "nanogpt": nanogpt, "nanodo": nanodo, "products": products}


def child(step: Any) -> None:
    """Makes a step for each line of standard input, and prints its seconds."""
    for line in sys.stdin:
        count = int(line)
        wall, cpu = time.perf_counter(), time.process_time()
        losses = [step() for _ in range(count)]
        row = {"wall": (time.perf_counter() - wall) / count, "cpu": (time.process_time() - cpu) / count}
        print(json.dumps({**row, "loss": losses[-1]}), flush=True)


# --------------------------------------------------------------------------------------- the run


def measure(
    names: dict[str, tuple[str, str]],
    shape: str,
    cores: list[int],
    rounds: int,
    steps: int,
    script: str = __file__,
    examples: tuple[int, str] = (0, ""),
) -> None:
    """`script`: has the implementations; `examples`: of a step, and what they are (default: SHAPES' tokens)."""
    children = {}
    for name, (python, checkout) in names.items():
        command = [python, script, "--child", name, "--shape", shape, "--checkout", checkout]
        children[name] = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )  # fmt: skip

    def ask(name: str, count: int) -> dict[str, float]:
        process = children[name]
        assert process.stdin and process.stdout
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(f"{count}\n")
            process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            sys.exit(f"{name} ended with exit code {process.wait()}")
        return json.loads(line)

    for name in names:
        ask(name, 2)  # compiles, and warms up
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            found[name].append(ask(name, steps))
    for process in children.values():
        assert process.stdin
        process.stdin.close()
        process.wait()
    count, unit = examples if examples[0] else (SHAPES[shape]["batch"] * SHAPES[shape]["seq_len"], "tokens")
    print(
        f"{shape} {SHAPES.get(shape, '')}, {len(cores)} core{'s' * (len(cores) > 1)}, {rounds} rounds of {steps} steps"
    )
    for name in names:
        wall = [r["wall"] for r in found[name]]
        ratios = [o["wall"] / r["wall"] for o, r in zip(found["ours"], found[name], strict=True)]
        print(
            f"  {name:8} {statistics.median(wall):7.3f} s/step [{min(wall):.3f}, {max(wall):.3f}], "
            f"{count / statistics.median(wall):8,.0f} {unit}/s; ours / it: {statistics.median(ratios):.2f} "
            f"[{min(ratios):.2f}, {max(ratios):.2f}]",
            flush=True,
        )


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--nanogpt", help="checkout of nanoGPT")
    p.add_argument("--nanodo", help="checkout of NanoDO")
    p.add_argument("--torch-python", default=sys.executable, help="a Python with torch")
    p.add_argument("--shape", choices=[*SHAPES], action="append", help="default: both")
    p.add_argument("--cores", type=int, action="append", help="default: 1, then all")
    p.add_argument("--rounds", type=int, default=9)
    p.add_argument("--steps", type=int, default=2, help="a round")
    p.add_argument("--child", help=argparse.SUPPRESS)
    p.add_argument("--checkout", default="", help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.child:
        return child(IMPLEMENTATIONS[args.child](SHAPES[args.shape[0]], args.checkout))
    names = {"ours": (sys.executable, "")}
    if args.nanogpt:
        names["nanogpt"] = (args.torch_python, str(Path(args.nanogpt).resolve()))
        names["products"] = (args.torch_python, "")
    if args.nanodo:
        names["nanodo"] = (sys.executable, str(Path(args.nanodo).resolve()))
    there = sorted(os.sched_getaffinity(0))
    for shape in args.shape or SHAPES:
        for cores in args.cores or sorted({1, len(there)}):
            measure(names, shape, there[-cores:], args.rounds, args.steps)
    return None


if __name__ == "__main__":
    main()
