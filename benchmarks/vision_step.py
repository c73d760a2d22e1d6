"""Time of a training step of a small ResNet and a small ViT on a CPU, beside PyTorch and a plain JAX program.

    python benchmarks/vision_step.py                                   # torch is an extra: .[reference]
    python benchmarks/vision_step.py --shape=resnet-16 --cores=1

As cpu_step.py: each is a process of its own, and they take turns. The same work: pictures of 28 x 28 in grey, batches
of 128, float32. ResNet: a 3 x 3 stem and a basic block in each of three stages, batch norm, SGD with momentum. ViT:
patches of 4, six pre-norm blocks, the mean of the tokens, AdamW. `torch` is eager, `channels-last` the same in that
layout; `plain` is the ResNet written with `lax.conv_general_dilated` and nothing of the package.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

import cpu_step

BATCH, SIDE, CLASSES = 128, 28, 10
SHAPES = {f"resnet-{w}": ("resnet", w) for w in (16, 32)} | {f"vit-{w}": ("vit", w) for w in (64, 128)}
DEPTH, PATCH, HEADS = 6, 4, 4  # of the ViT


def pictures() -> Any:
    import numpy as np

    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (BATCH, SIDE, SIDE, 1)).astype("uint8"), rng.integers(0, CLASSES, BATCH).astype("int32")


def ours(family: str, width: int) -> Any:
    import jax
    import jax.numpy as jnp
    import numpy as np

    from bigmodel import models
    from bigmodel.ops import sharding
    from bigmodel.run import budget, optim, program

    config = budget.base(family, "images")
    shape = dict(width=width, image_height=SIDE, image_width=SIDE, channels=1, num_classes=CLASSES)
    if family == "resnet":
        shape |= dict(depth=3, num_stages=3, stem="small")
        config.optim.update(dict(name="sgd", clip=0.0))
    else:
        shape |= dict(depth=DEPTH, num_heads=HEADS, patch=PATCH, pool="mean")
    config.model.update(shape)
    models.family(family).finalize(config.model)
    optim.finalize(config.optim)
    config.train.batch_size = BATCH
    mesh = sharding.make_mesh(config.run.mesh)
    built = program.build(program.static_part(config.copy_and_resolve_references()), mesh)
    state, key = built.init(jax.random.key(0)), jax.random.key(1)
    image, label = pictures()
    host = {"image": image, "label": label, "weight": np.ones(BATCH, "float32")}

    def step() -> float:
        nonlocal state
        state, metrics = built.step(state, sharding.place(host, mesh, BATCH), jnp.float32(1e-3), key)
        jax.block_until_ready(state)
        return float(metrics["loss"])

    return step


def plain(family: str, width: int) -> Any:
    """The ResNet in JAX alone: a dict of arrays, one convolution an operation, SGD with momentum."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    assert family == "resnet", "the plain program is a ResNet"
    rng = np.random.default_rng(0)
    params: dict[str, Any] = {"head": jnp.zeros((4 * width, CLASSES))}

    def made(name: str, window: int, inside: int, outside: int) -> None:
        std = (2 / (window * window * outside)) ** 0.5
        params[name] = jnp.asarray(rng.normal(0, std, (window, window, inside, outside)), jnp.float32)
        params[f"{name}_scale"], params[f"{name}_bias"] = jnp.ones(outside), jnp.zeros(outside)

    made("stem", 3, 1, width)
    for stage in range(3):
        C = width * 2**stage
        before = width if stage == 0 else C // 2
        made(f"{stage}a", 3, before, C)
        made(f"{stage}b", 3, C, C)
        if stage:
            made(f"{stage}s", 1, before, C)

    def conv(p: Any, name: str, x: Any, stride: int = 1) -> Any:
        pad = p[name].shape[0] // 2
        axes = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(x, p[name], (stride, stride), [(pad, pad)] * 2, dimension_numbers=axes)
        mean = y.mean((0, 1, 2))
        var = jnp.square(y - mean).mean((0, 1, 2))
        return (y - mean) * jax.lax.rsqrt(var + 1e-5) * p[f"{name}_scale"] + p[f"{name}_bias"]

    def loss(p: Any, image: Any, label: Any) -> Any:
        x = jax.nn.relu(conv(p, "stem", image.astype(jnp.float32) / 127.5 - 1))
        for stage in range(3):
            stride = 2 if stage else 1
            y = conv(p, f"{stage}b", jax.nn.relu(conv(p, f"{stage}a", x, stride)))
            x = jax.nn.relu((conv(p, f"{stage}s", x, stride) if stage else x) + y)
        logits = jax.nn.log_softmax(x.mean((1, 2)) @ p["head"])
        return -jnp.take_along_axis(logits, label[:, None], 1).mean()

    @jax.jit
    def update(p: Any, m: Any, image: Any, label: Any) -> Any:
        value, grads = jax.value_and_grad(loss)(p, image, label)
        m = jax.tree.map(lambda m, g, w: 0.9 * m + g + 5e-4 * w, m, grads, p)
        return jax.tree.map(lambda w, m: w - 1e-3 * m, p, m), m, value

    state = (params, jax.tree.map(jnp.zeros_like, params))
    image, label = pictures()

    def step() -> float:
        nonlocal state
        *state, value = update(*state, image, label)
        return float(jax.block_until_ready(value))

    return step


def torch_step(family: str, width: int, last: bool) -> Any:
    import torch
    from torch import nn
    from torch.nn import functional as F

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)

    class Residual(nn.Module):
        def __init__(self, inside: int, C: int, stride: int):
            super().__init__()
            self.a, self.b = nn.Conv2d(inside, C, 3, stride, 1, bias=False), nn.Conv2d(C, C, 3, 1, 1, bias=False)
            self.na, self.nb = nn.BatchNorm2d(C), nn.BatchNorm2d(C)
            short = nn.Sequential(nn.Conv2d(inside, C, 1, stride, bias=False), nn.BatchNorm2d(C))
            self.short = short if stride > 1 else nn.Identity()

        def forward(self, x: Any) -> Any:
            return F.relu(self.short(x) + self.nb(self.b(F.relu(self.na(self.a(x))))))

    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.n1, self.n2 = nn.LayerNorm(width, 1e-6), nn.LayerNorm(width, 1e-6)
            self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

        def forward(self, x: Any) -> Any:
            B, L, D = x.shape
            q, k, v = self.qkv(self.n1(x)).reshape(B, L, 3, HEADS, D // HEADS).permute(2, 0, 3, 1, 4)
            x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, L, D))
            return x + self.down(F.gelu(self.up(self.n2(x))))

    class Transformer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patch, self.norm = nn.Conv2d(1, width, PATCH, PATCH), nn.LayerNorm(width, 1e-6)
            self.positions = nn.Parameter(torch.randn((SIDE // PATCH) ** 2, width) * width**-0.5)
            self.blocks, self.head = nn.Sequential(*(Attends() for _ in range(DEPTH))), nn.Linear(width, CLASSES)

        def forward(self, x: Any) -> Any:
            x = self.patch(x).flatten(2).transpose(1, 2) + self.positions
            return self.head(self.norm(self.blocks(x)).mean(1))

    model: Any
    if family == "resnet":
        stem = [nn.Conv2d(1, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        sizes = [(width, width, 1), (width, 2 * width, 2), (2 * width, 4 * width, 2)]
        head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, CLASSES)]
        model = nn.Sequential(*stem, *(Residual(*size) for size in sizes), *head)
        optimizer: Any = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9, weight_decay=5e-4)
    else:
        model = Transformer()
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.1)
    image, label = pictures()
    x, y = torch.tensor(image.transpose(0, 3, 1, 2)), torch.tensor(label).long()
    if last:
        model, x = model.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)

    def step() -> float:
        loss = F.cross_entropy(model(x.float() / 127.5 - 1), y)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if family == "vit":
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    return step


IMPLEMENTATIONS = {
    "ours": ours,
    "plain": plain,
    "torch": lambda *shape: torch_step(*shape, last=False),
    "channels-last": lambda *shape: torch_step(*shape, last=True),
}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--shape", choices=[*SHAPES], action="append", help="default: all")
    p.add_argument("--cores", type=int, action="append", help="default: 1, then all")
    p.add_argument("--rounds", type=int, default=9)
    p.add_argument("--steps", type=int, default=2, help="a round")
    p.add_argument("--child", help=argparse.SUPPRESS)
    p.add_argument("--checkout", help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.child:
        return cpu_step.child(IMPLEMENTATIONS[args.child](*SHAPES[args.shape[0]]))
    there = sorted(os.sched_getaffinity(0))
    for shape in args.shape or SHAPES:
        names = [n for n in IMPLEMENTATIONS if n != "plain" or shape.startswith("resnet")]
        for cores in args.cores or sorted({1, len(there)}):
            found = {name: (sys.executable, "") for name in names}
            cpu_step.measure(
                found, shape, there[-cores:], args.rounds, args.steps, __file__, examples=(BATCH, "pictures")
            )
    return None


if __name__ == "__main__":
    main()
