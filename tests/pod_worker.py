"""Run by test_pod.py with 8 host devices: compiles programs whose collectives follow a formula, and counts them.

usage: pod_worker.py OUT.json
"""

import json
import sys

import jax

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)

import jax.numpy as jnp  # noqa: E402
from jax.sharding import NamedSharding  # noqa: E402
from jax.sharding import PartitionSpec as P  # noqa: E402
from ml_collections import FrozenConfigDict  # noqa: E402

from bigmodel import models  # noqa: E402
from bigmodel.ops import sharding  # noqa: E402
from bigmodel.pods import hlo  # noqa: E402
from bigmodel.run import budget, counts, optim, program  # noqa: E402

N, D, B = 5, 64, 32  # layers, width, examples
mesh = sharding.make_mesh({"fsdp": 8})


def counted(fn, mesh, *args):
    """{kind: [count, bytes a device sends, axes]} of a compiled function."""
    compiled = jax.jit(fn).lower(*args).compile() if not hasattr(fn, "lower") else fn.lower(*args).compile()
    found = {}
    for c in hlo.collectives(hlo.parse(compiled.as_text()), 8):
        axis = hlo.axes_of(c.group, mesh.shape)
        if axis:
            row = found.setdefault(c.kind, [0, 0.0, []])
            row[0] += c.count
            row[1] += c.count * c.bytes
            row[2] = sorted({*row[2], axis})
    return found


def array(shape, spec, where=mesh):
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(where, spec))


def gathers(x, w):
    """Weights gathered a layer at a time: N D^2 (n-1)/n floats."""

    def layer(x, w):
        w = jax.lax.with_sharding_constraint(w, NamedSharding(mesh, P()))
        return jnp.tanh(x @ w), None

    return jax.lax.scan(layer, x, w)[0]


def scatters(x):
    """A sum reduced and scattered in every turn: N B' D (n-1)/n floats, B' the rows of one device's part."""

    def local(x):
        def turn(x, _):
            part = jax.lax.psum_scatter(x, "fsdp", scatter_dimension=0, tiled=True)
            return jnp.tanh(jnp.tile(part, (8, 1))), None

        return jax.lax.scan(turn, x, None, length=N)[0]

    return jax.shard_map(local, mesh=mesh, in_specs=P("fsdp"), out_specs=P("fsdp"), check_vma=False)(x)


tensor = sharding.make_mesh({"tensor": 8})


def reduces(x, up, down):
    """A row- and a column-parallel product a layer, one sum of BD floats over the axis: 2 N B D (n-1)/n floats."""

    def layer(x, w):
        y = jnp.tanh(x @ w[0]) @ w[1]
        return jax.lax.with_sharding_constraint(y, NamedSharding(tensor, P())), None

    return jax.lax.scan(layer, x, (up, down))[0]


def step(name, **sizes):
    """The train step of a small model on fsdp 8."""
    family = models.family(name)
    cfg = family.get_config()
    cfg.update(dict(width=D, vocab_size=512, seq_len=32, **sizes))
    family.finalize(cfg)
    tuned = optim.get_config()
    train, run = budget.get_config()
    train.batch_size = 8
    sections = {"family": name, "model": cfg, "optim": tuned, "train": train, "run": run}
    frozen = FrozenConfigDict({k: v if isinstance(v, str) else v.to_dict() for k, v in sections.items()})
    built = program.build(program.static_part(frozen), mesh)
    state = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), built.shapes, built.shardings)
    shapes = counts.batch_shapes(family, frozen.model, 8)
    batch = {
        k: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding.batch_sharding(mesh, len(x.shape)))
        for k, x in shapes.items()
    }
    key = jax.eval_shape(lambda: jax.random.key(0))
    args = (state, batch, jax.ShapeDtypeStruct((), "float32"), key)
    compiled = built.step.lower(*args).compile()
    blocks = counts.counts(name, frozen.model)[2]
    return {
        "counted": counted(built.step, mesh, *args),
        "arguments": compiled.memory_analysis().argument_size_in_bytes,
        "block_params": blocks,
        "config": frozen.to_dict(),
    }


report = {
    "all-gather": counted(gathers, mesh, array((B, D), P("fsdp")), array((N, D, D), P(None, "fsdp"))),
    "reduce-scatter": counted(scatters, mesh, array((8 * B, D), P("fsdp"))),
    "all-reduce": counted(
        reduces,
        tensor,
        array((B, D), P(), tensor),
        array((N, D, 4 * D), P(None, None, "tensor"), tensor),
        array((N, 4 * D, D), P(None, "tensor"), tensor),
    ),
    "step": step("decoder", depth=12, num_heads=8),
    "lstm": step("recurrent", depth=2),
}
with open(sys.argv[1], "w") as f:
    json.dump(report, f)
