"""Run by test_sharding.py in a process with its own number of devices: trains on each mesh, restores each on the next.

usage: mesh_worker.py DEVICES CONFIG.json OUT.json FOLDER MESH[,MESH...] [RESTORE_FROM=FOLDER ...]
MESH is axes and sizes, as data2-tensor4; one: a single device. RESTORE_FROM none: only the losses.
"""

import json
import math
import re
import shutil
import sys
from pathlib import Path

import jax

devices, config_file, out, folder, meshes, *sources = sys.argv[1:]
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", int(devices))

from bigmodel import config  # noqa: E402
from bigmodel.ops import sharding  # noqa: E402
from bigmodel.run import budget, program, record, session  # noqa: E402

folder = Path(folder)


def sizes(mesh):
    return {**sharding.ALONE, **{axis: int(n) for axis, n in re.findall(r"([a-z]+)(\d+)", mesh)}}


def run(mesh, root):
    cfg = config.load(config_file)
    cfg.run.mesh.update(sizes(mesh))
    result = session.train(cfg, str(root), quiet=True)
    rows = record.read_rows(root / result["run_id"] / "metrics.jsonl")
    return [r["loss"] for r in rows if "loss" in r] + [result["loss"]]


def halfway(source, target):
    """A copy of a run as it was after its checkpoint in the middle."""
    (done,) = [p for p in Path(source).iterdir() if p.is_dir()]
    home = target / done.name
    steps = sorted(int(p.name) for p in (done / "checkpoints").iterdir() if p.name.isdigit())
    shutil.copytree(done / "checkpoints" / str(steps[0]), home / "checkpoints" / str(steps[0]))
    shutil.copy(done / "metrics.jsonl", home / "metrics.jsonl")


def fraction(mesh):
    """Of the parameters, that a device holds."""
    frozen = budget.finalize(config.load(config_file))
    compiled = program.build(program.static_part(frozen), sharding.make_mesh(sizes(mesh)))
    params, layout = compiled.shapes["params"], compiled.shardings["params"]
    here = jax.tree.map(lambda x, s: math.prod(s.shard_shape(x.shape)), params, layout)
    return sum(jax.tree.leaves(here)) / sum(x.size for x in jax.tree.leaves(params))


report = {"losses": {}, "restored": {}, "fractions": {}}
for mesh in meshes.split(","):
    report["losses"][mesh] = run(mesh, folder / mesh)
for mesh in {*meshes.split(","), *(("data8", "tensor8") if devices == "8" else ())}:
    report["fractions"][mesh] = fraction(mesh)
meshes = meshes.split(",")
if sources == ["none"]:  # losses alone
    Path(out).write_text(json.dumps(report))
    sys.exit(0)
after = meshes[1:] + meshes[:1]
pairs = [(name, folder / name, mesh) for name, mesh in zip(meshes, after, strict=True) if name != mesh]
for i, source in enumerate(sources):
    name, path = source.split("=")
    pairs.append((name, path, meshes[i % len(meshes)]))
for name, source, mesh in pairs:
    root = folder / f"{name}-on-{mesh}"
    halfway(source, root)
    report["restored"][f"{name} on {mesh}"] = run(mesh, root)
Path(out).write_text(json.dumps(report))
