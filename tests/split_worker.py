"""Losses of a few steps of one config, its batch whole, in micro-batches and over devices.

usage: split_worker.py OUT.json [CASE ...]    {case: {"whole", "micro 1", ..., "8 devices": losses}}
"""

import json
import math
import sys

# name: family, model options; all with at least 1,024 tokens a step, batches of 16 examples
CASES = {
    "decoder dropout": ("decoder", dict(dropout=0.1)),
    "decoder prefix": ("decoder", dict(objective="prefix")),
    "decoder infill": ("decoder", dict(objective="infill", position="rope", dropout=0.1)),
    "bert masked": ("bert", dict(objective="masked", dropout=0.1)),
    "bert masked_next": ("bert", dict(objective="masked_next", dropout=0.1)),
    "bert classify": ("bert", dict(objective="classify", dropout=0.1)),
    "bert tag": ("bert", dict(objective="tag", dropout=0.1)),
    "encdec translate": ("encdec", dict(objective="translate", dropout=0.1)),
    "encdec prefix": ("encdec", dict(objective="prefix", dropout=0.1, norm_placement="pre")),
    "encdec span": ("encdec", dict(objective="span", dropout=0.1)),
    "lstm dropout": ("recurrent", dict(dropout=0.2)),
    "rnn carry": ("recurrent", dict(cell="rnn", dropout=0.2, carry=True)),
    "mlp dropout": ("mlp", dict(dropout=0.3, depth=3)),
    "clip softmax": ("clip", dict()),
    "clip sigmoid": ("clip", dict(objective="sigmoid")),
    "mlp batchnorm": ("mlp", dict(norm="batchnorm", dropout=0.3, depth=3)),
}
B, STEPS = 16, 5
SPLITS = {"micro 1": 1, "micro 2": 2, "micro 4": 4}
MESHES = {"2 devices": {"data": 2}, "8 devices": {"fsdp": 2, "sequence": 2, "tensor": 2}, "8 in data": {"data": 8}}


def losses(family, options, splits, meshes):
    import jax
    import jax.numpy as jnp
    from families import batch_of, small
    from ml_collections import FrozenConfigDict

    from bigmodel import models
    from bigmodel.ops import sharding
    from bigmodel.run import optim, program
    from bigmodel.run.budget import get_config

    module = models.family(family)
    cfg = small(module, **{"seq_len": 64, **options})
    tuned = optim.get_config()
    tuned.name = "adamw"

    def run(microbatch, sizes):
        train, execution = get_config()
        train.batch_size, train.microbatch = B, microbatch
        sections = {"model": cfg.to_dict(), "optim": tuned, "train": train, "run": execution}
        frozen = FrozenConfigDict({"family": family, **sections})
        mesh = sharding.make_mesh(sizes, jax.devices()[: math.prod(sizes.values())])
        compiled = program.build(program.static_part(frozen), mesh)
        state, found = compiled.init(jax.random.key(0)), []
        for step in range(STEPS):
            batch = sharding.place(batch_of(module, cfg, B, step), mesh, B)
            state, metrics = compiled.step(state, batch, jnp.float32(0.003), jax.random.key(1))
            found.append(float(sharding.to_host(metrics["loss"])))
        return found

    # A batch as one micro-batch is whole; without one, a CPU takes as few examples as make 512 tokens.
    out = {"whole": run(B, {}), "by itself": run(0, {})}
    if module.decomposes(cfg):
        out |= {name: run(size, {}) for name, size in SPLITS.items() if name in splits}
    return out | {name: run(0, MESHES[name]) for name in meshes}


if __name__ == "__main__":
    import jax

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)
    out, which, *cases = sys.argv[1:]
    splits, meshes = (SPLITS, MESHES) if which == "all" else (["micro 2"], ["8 devices"])
    report = {name: losses(*CASES[name], splits, meshes) for name in cases or CASES}
    with open(out, "w") as f:
        json.dump(report, f)
