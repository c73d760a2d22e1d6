"""A tiny model and a batch of any family, from what it exports alone; run as a script, every family on eight devices.

usage: families.py OUT.json [FAMILY ...]   losses of a few steps on 1 and on 8 devices, before and after a restore
"""

import json
import math
import sys
import tempfile

import numpy as np
from ml_collections import FrozenConfigDict

TINY = dict(width=16, depth=2, num_heads=2, vocab_size=50, seq_len=16, dropout=0.0, num_features=12, num_classes=5)
TINY |= dict(image_height=8, image_width=8, channels=2, patch=4, stem="small", num_stages=1, num_groups=2, num_codes=32)
TINY |= dict(embed=8, vision=dict(width=16, depth=1, num_heads=2, patch=4))
TINY |= dict(grid_height=4, grid_width=4, neighbourhood=3)


def small(module, **overrides):
    """A frozen section of TINY's keys that the family has, and others."""
    cfg = module.get_config()
    cfg.update({k: v for k, v in {**TINY, **overrides}.items() if k in cfg})
    module.finalize(cfg)
    return FrozenConfigDict(cfg)


def batch_of(module, cfg, size, seed=0):
    """As `spec` says. Integers are below vocab_size or num_classes, lengths (scalars named so) at least 1."""
    rng, shape_of = np.random.default_rng(seed), cfg.to_dict()

    def one(key, shape, dtype):
        if dtype == "uint8":
            return rng.integers(0, 32, (size, *shape)).astype(dtype)  # dark, which an autoencoder can learn
        if dtype != "int32":
            return rng.normal(size=(size, *shape)).astype(dtype)
        if key.endswith("length"):
            return rng.integers(1, shape_of["seq_len"] + 1, (size, *shape)).astype(dtype)
        limit = shape_of[{"label": "num_classes", "codes": "num_codes"}.get(key, "vocab_size")]
        return rng.integers(0, limit, (size, *shape)).astype(dtype)

    batch = {key: one(key, *form) for key, form in module.spec(cfg).items()}
    return {**batch, "weight": np.ones(size, np.float32)}


def losses(family, meshes, folder):
    """{mesh: losses of four steps}, and of the last two again after a restore from the mesh before."""
    import jax
    import jax.numpy as jnp

    from bigmodel import models, tree
    from bigmodel.ops import sharding
    from bigmodel.run import checkpoint, optim, program
    from bigmodel.run.budget import get_config

    module = models.family(family)
    cfg = small(module, depth=1, vocab_size=64)
    tuned = optim.get_config()
    tuned.name, tuned.clip = "sgd", 0.0  # compiles fastest
    train, run = get_config()
    train.batch_size = 8
    sections = {
        "family": family,
        "model": cfg.to_dict(),
        "optim": tuned.to_dict(),
        "train": train.to_dict(),
        "run": run.to_dict(),
    }
    found, saved, built = {}, {}, {}
    for name, sizes in meshes.items():
        mesh = sharding.make_mesh(sizes, jax.devices()[: math.prod(sizes.values())])
        # On several devices the vocabulary is in stripes, and the loss takes it in parts, where a family can.
        parts = {**sections, "run": {**sections["run"], "loss_chunks": 2 if len(sizes) > 1 else 0}}
        built[name] = (mesh, program.build(program.static_part(FrozenConfigDict(parts)), mesh))

    def go(name, state, steps):
        mesh, compiled = built[name]
        out = []
        for step in steps:
            batch = sharding.place(batch_of(module, cfg, 8, step), mesh, 8)
            state, metrics = compiled.step(state, batch, jnp.float32(0.1), jax.random.key(1))
            out.append(float(sharding.to_host(metrics["loss"])))
        return state, out

    def start(name):
        """Drawn on the host: a family's own start takes as long to compile as its step."""
        rng, compiled = np.random.default_rng(0), built[name][1]

        def leaf(path, x, placed):
            value = np.zeros(x.shape, x.dtype) if path != "guard/ok" else np.array(True)
            if path.startswith("params/"):
                value = (path.endswith("scale") + 0.1 * rng.normal(size=x.shape)).astype(x.dtype)
            return jax.device_put(value, placed)

        return tree.map_paths(leaf, compiled.shapes, compiled.shardings)

    for name in meshes:
        state, first = go(name, start(name), (0, 1))
        saved[name] = checkpoint.Checkpoints(f"{folder}/{family}-{name}")
        saved[name].save(2, state, {"step": 2})
        saved[name].wait()
        found[name] = first + go(name, state, (2, 3))[1]
    names = list(meshes)
    for name, other in zip(names, names[1:] + names[:1], strict=True):
        compiled = built[name][1]
        restored = saved[other].restore(2, compiled.shapes, compiled.shardings)
        found[f"{name} from {other}"] = go(name, restored, (2, 3))[1]
    return found


if __name__ == "__main__":
    import jax

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)
    out, *families = sys.argv[1:]
    from bigmodel import models

    meshes = {"one": {}, "eight": {"fsdp": 2, "sequence": 2, "tensor": 2}}
    with tempfile.TemporaryDirectory() as folder:
        report = {family: losses(family, meshes, folder) for family in families or models.names()}
    with open(out, "w") as f:
        json.dump(report, f)
