"""Time of a training step on a GPU: published models of ours beside PyTorch's, compiled, in bfloat16, interleaved.

    git clone https://github.com/karpathy/nanoGPT
    python benchmarks/gpu_step.py --nanogpt=nanoGPT --torch-python=torchenv/bin/python
    python benchmarks/gpu_step.py --shape=resnet-50 --batch=4 --side=64          without a GPU: whether it runs

Each is a process of its own, and they take turns on one device. The same work: float32 parameters, bfloat16 compute, no
dropout. resnet-50 (torchvision's, channels-last): pictures of 224, SGD with Nesterov momentum.
vit-b16 (torchvision's): AdamW. gpt2 (nanoGPT's 124M with flash attention, its loop and fused AdamW): windows of 1,024
tokens, gradients clipped at norm 1. All of torch's are under torch.compile; ours is the step of `bigmodel train`, with
cuDNN's attention on a GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from pathlib import Path
from typing import Any

import cpu_step

SHAPES = {"resnet-50": 256, "vit-b16": 128, "gpt2": 16}  # examples a batch, which fit 80 GB
SEQ_LEN, CLASSES = 1024, 1000


def pictures(batch: int, side: int) -> Any:
    import numpy as np

    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (batch, side, side, 3)).astype("uint8"), rng.integers(0, CLASSES, batch).astype("int32")


def ours(name: str, batch: int, side: int, _: str) -> Any:
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # torch's process lives on the same device
    import jax
    import jax.numpy as jnp
    import numpy as np

    from bigmodel import models
    from bigmodel.ops import sharding
    from bigmodel.run import budget, optim, program

    family, row = models.published(name)
    config = budget.base(family, "text" if name == "gpt2" else "images")
    config.model.update({**row["model"], "dtype": "bfloat16"})
    if name == "gpt2":
        config.model.update(dict(dropout=0.0, seq_len=SEQ_LEN))
    else:
        config.model.update(dict(image_height=side, image_width=side))
    if name == "resnet-50":
        config.optim.update(dict(name="sgd", nesterov=True, clip=0.0))
    models.family(family).finalize(config.model)
    optim.finalize(config.optim)
    config.train.batch_size = config.train.microbatch = batch
    if jax.default_backend() == "gpu":
        config.run.attention = "cudnn"
    mesh = sharding.make_mesh(config.run.mesh)
    built = program.build(program.static_part(config.copy_and_resolve_references()), mesh)
    state, key = built.init(jax.random.key(0)), jax.random.key(1)
    if name == "gpt2":
        tokens = np.random.default_rng(0).integers(0, config.model.vocab_size, (batch, SEQ_LEN + 1)).astype("int32")
        host = {"tokens": tokens}
    else:
        host = dict(zip(("image", "label"), pictures(batch, side), strict=True))
    placed = sharding.place({**host, "weight": np.ones(batch, "float32")}, mesh, batch)

    def step() -> float:
        nonlocal state
        state, metrics = built.step(state, placed, jnp.float32(1e-3), key)
        return float(metrics["loss"])

    return step


def torch_step(name: str, batch: int, side: int, checkout: str) -> Any:
    import torch
    from torch.nn import functional as F

    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    model: Any
    if name == "gpt2":
        sys.path.insert(0, checkout)
        from model import GPT, GPTConfig  # nanoGPT's

        with open(os.devnull, "w") as quiet, contextlib.redirect_stdout(quiet):
            model = GPT(GPTConfig(block_size=SEQ_LEN, vocab_size=50257, dropout=0.0, bias=True)).to(device)
            optimizer: Any = model.configure_optimizers(0.1, 6e-4, (0.9, 0.95), device)
        tokens = torch.randint(0, 50257, (batch, SEQ_LEN + 1), device=device)
        x, y = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    else:
        import torchvision

        made = {"resnet-50": torchvision.models.resnet50, "vit-b16": torchvision.models.vit_b_16}[name]
        model = made(weights=None, **({"image_size": side} if name == "vit-b16" else {})).to(device)
        image, label = (torch.tensor(a, device=device) for a in pictures(batch, side))
        x, y = image.permute(0, 3, 1, 2).contiguous(), label.long()
        fused = {"fused": True} if device == "cuda" else {}
        if name == "resnet-50":
            model, x = (a.to(memory_format=torch.channels_last) for a in (model, x))
            optimizer = torch.optim.SGD(model.parameters(), 1e-3, 0.9, nesterov=True, weight_decay=0.1, **fused)
        else:
            optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.1, **fused)
    model.train()

    @torch.compile
    def loss_of(x: Any, y: Any) -> Any:
        if name == "gpt2":
            return model(x, y)[1]
        return F.cross_entropy(model(x.float() / 127.5 - 1), y)

    def step() -> float:
        with torch.autocast(device, torch.bfloat16):
            loss = loss_of(x, y)
        loss.backward()
        if name != "resnet-50":
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


IMPLEMENTATIONS = {"ours": ours, "torch": torch_step}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--nanogpt", help="checkout of nanoGPT; without it gpt2 is left out")
    p.add_argument("--torch-python", default=sys.executable, help="a Python with torch and torchvision for the GPU")
    p.add_argument("--shape", choices=[*SHAPES], action="append", help="default: all")
    p.add_argument("--batch", type=int, default=0, help="examples (default: by shape)")
    p.add_argument("--side", type=int, default=224, help="of pictures, in pixels")
    p.add_argument("--rounds", type=int, default=9)
    p.add_argument("--steps", type=int, default=10, help="a round")
    p.add_argument("--child", help=argparse.SUPPRESS)
    p.add_argument("--checkout", default="", help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.child:
        name, (batch, side, checkout) = args.shape[0], args.checkout.split(",", 2)
        return cpu_step.child(IMPLEMENTATIONS[args.child](name, int(batch), int(side), checkout))
    for name in args.shape or SHAPES:
        if name == "gpt2" and not args.nanogpt:
            print("gpt2: left out: needs --nanogpt", file=sys.stderr)
            continue
        batch = args.batch or SHAPES[name]
        checkout = f"{batch},{args.side},{Path(args.nanogpt).resolve() if args.nanogpt else ''}"
        names = {"ours": (sys.executable, checkout), "torch": (args.torch_python, checkout)}
        examples = (batch * SEQ_LEN, "tokens") if name == "gpt2" else (batch, "pictures")
        cores = sorted(os.sched_getaffinity(0))
        cpu_step.measure(names, name, cores, args.rounds, args.steps, __file__, examples)
    return None


if __name__ == "__main__":
    main()
