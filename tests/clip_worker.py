"""Run by test_clip.py with 8 devices: the contrastive loss and its gradients on each mesh, against one device.

usage: clip_worker.py OUT.json MESH[,MESH...]     {objective or "cached": {mesh: [loss off, largest gradient off]}}
MESH is sizes of the axes, as 1-2-1-4-1.
"""

import json
import math
import sys
from pathlib import Path

import jax

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)

import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from conftest import drawn  # noqa: E402
from families import batch_of, small  # noqa: E402
from jax.sharding import NamedSharding  # noqa: E402

from bigmodel.models import clip  # noqa: E402
from bigmodel.ops import sharding  # noqa: E402


def measured(cfg, params, mesh):
    rows = {k: jax.device_put(v, sharding.batch_sharding(mesh, v.ndim)) for k, v in batch_of(clip, cfg, 16).items()}
    layout = sharding.state_shardings({"params": params}, clip.RULES, mesh)["params"]
    placed = jax.tree.map(jax.device_put, params, layout)
    model = clip.Model(cfg)

    def objective(params, rows):
        return clip.loss(model, {"params": params}, rows, jax.random.key(0), True)[0]

    with sharding.use(mesh):
        loss, gradient = jax.jit(jax.value_and_grad(objective))(placed, rows)
    assert all(isinstance(x.sharding, NamedSharding) for x in jax.tree.leaves(placed))
    return float(loss), jax.tree.map(np.asarray, gradient)


def off(found, expected):
    """Of the loss and of the gradient: the norm of the difference over the norm."""

    def norm(tree):
        return math.sqrt(sum(float(np.sum(np.square(x, dtype=np.float64))) for x in jax.tree.leaves(tree)))

    return [abs(found[0] / expected[0] - 1), norm(jax.tree.map(np.subtract, found[1], expected[1])) / norm(expected[1])]


out, meshes = sys.argv[1:]
report = {}
for name, options in {"softmax": {}, "sigmoid": {"objective": "sigmoid"}, "cached": {"grad_cache": 8}}.items():
    cfg, plain = small(clip, **options), small(clip, **{k: v for k, v in options.items() if k != "grad_cache"})
    params = drawn(clip, cfg, std=0.5)["params"]
    params["scale"] = jnp.float32(np.log(1 / cfg.temperature))
    alone = sharding.make_mesh(sharding.ALONE, jax.devices()[:1])
    expected = measured(plain, params, alone)
    report[name] = {}
    for text in meshes.split(","):
        sizes = dict(zip(sharding.AXES, map(int, text.split("-")), strict=True))
        mesh = sharding.make_mesh(sizes, jax.devices()[: math.prod(sizes.values())])
        report[name][text] = off(measured(cfg, params, mesh), expected)
Path(out).write_text(json.dumps(report))
