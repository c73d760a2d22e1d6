"""The same losses on every mesh and process count, and a checkpoint of one on another."""

import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from conftest import ROOT
from jax.sharding import PartitionSpec as P

from bigmodel import config, models
from bigmodel.errors import UsageError
from bigmodel.ops import sharding
from bigmodel.run import record

MESHES = ["fsdp8", "sequence2-fsdp2-tensor2"]  # with restores; all 35 below, without
ENV = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests")))}


def spawn(*args):
    return subprocess.Popen([sys.executable, *map(str, args)], cwd=ROOT, env=ENV, stderr=subprocess.PIPE, text=True)


def finish(*children):
    for child in children:
        error = child.communicate(timeout=400)[1]
        assert child.returncode == 0, error


def agree(losses, reference, first=True):
    if first:
        np.testing.assert_allclose(losses[0], reference[0], rtol=1e-6)
    np.testing.assert_allclose(losses, reference, rtol=1e-4)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, data_dir):
    """Losses of one device, of two meshes of 8, and of 2 processes x 4; each restored on another, or on one."""
    from conftest import TINY

    root = tmp_path_factory.mktemp("mesh")
    cfg = config.load(
        ROOT / "experiments/gpt.py",
        [
            *TINY,
            ("run.data_dir", data_dir),
            ("model.width", 32),
            ("model.num_heads", 8),
            ("train.steps", 20),
            ("run.checkpoint_every", 10),
            ("run.keep", 2),
        ],
    )
    file = root / "config.json"
    file.write_text(config.to_json(cfg))
    worker = ROOT / "tests/mesh_worker.py"
    one = spawn(worker, 1, file, root / "one.json", root / "one", "one")
    port = free_port()
    cfg.run.mesh.data, cfg.run.mesh.fsdp, cfg.run.mesh.tensor = 2, 2, 2
    two_file = root / "two.json"
    two_file.write_text(config.to_json(cfg))
    finish(one)
    pair = [
        spawn("-m", "bigmodel", "train", two_file, f"--runs={root / 'two'}", "--host-devices=4",
              f"--coordinator=127.0.0.1:{port}", "--processes=2", f"--process={i}")
        for i in range(2)
    ]  # fmt: skip
    finish(*pair)
    eight = spawn(
        worker, 8, file, root / "eight.json", root / "eight", ",".join(MESHES),
        f"one={root / 'one/one'}", f"two={root / 'two'}",
    )  # fmt: skip
    finish(eight)
    back = spawn(
        worker, 1, file, root / "back.json", root / "back", "one",
        *(f"{m}={root / 'eight' / m}" for m in ("fsdp8", "sequence2-fsdp2-tensor2")), f"two={root / 'two'}",
    )  # fmt: skip
    finish(back)
    report = {name: json.loads((root / f"{name}.json").read_text()) for name in ("one", "eight", "back")}
    (folder,) = [p for p in (root / "two").iterdir() if p.is_dir()]
    rows = record.read_rows(folder / "metrics.jsonl")
    report["file"] = file
    report["two"] = [r["loss"] for r in rows if "loss" in r] + [record.read_json(folder / "result.json")["loss"]]
    return report


@pytest.mark.slow
def test_every_mesh_has_the_losses_of_one_device(runs):
    reference = runs["one"]["losses"]["one"]
    assert len(reference) == 21 and reference[19] < 0.8 * reference[0]
    for mesh in MESHES:
        agree(runs["eight"]["losses"][mesh], reference)


@pytest.mark.slow
def test_all_products_of_axes_have_the_losses_of_one_device(tmp_path, runs, data_dir):
    """The 35 ways to spread 8 devices over the five axes."""
    meshes = [
        "-".join(f"{axis}{n}" for axis, n in zip(sharding.AXES, sizes, strict=True))
        for sizes in itertools.product((1, 2, 4, 8), repeat=5)
        if np.prod(sizes) == 8
    ]
    assert len(meshes) == 35
    parts = [meshes[:18], meshes[18:]]
    children = [
        spawn(
            ROOT / "tests/mesh_worker.py",
            8,
            runs["file"],
            tmp_path / f"{k}.json",
            tmp_path / str(k),
            ",".join(part),
            "none",
        )
        for k, part in enumerate(parts)
    ]
    for child in children:
        error = child.communicate(timeout=1500)[1]
        assert child.returncode == 0, error
    reference = runs["one"]["losses"]["one"]
    for k in range(2):
        for mesh, losses in json.loads((tmp_path / f"{k}.json").read_text())["losses"].items():
            assert len(losses) == 21, mesh
            agree(losses, reference)


def test_two_processes_have_the_losses_of_one_device(runs):
    agree(runs["two"], runs["one"]["losses"]["one"])


def test_a_checkpoint_restores_on_another_mesh(runs):
    reference = runs["one"]["losses"]["one"]
    restored = runs["eight"]["restored"] | runs["back"]["restored"]
    assert len(restored) == 2 * 2 + 3
    for name, losses in restored.items():
        assert len(losses) == 21, name
        agree(losses, reference)


def test_parameters_are_really_spread(runs):
    """Else the meshes agree because nothing is sharded."""
    fractions = runs["eight"]["fractions"]
    assert fractions["data8"] == 1
    assert fractions["fsdp8"] < 0.25
    assert fractions["tensor8"] < 0.25
    assert fractions["sequence2-fsdp2-tensor2"] < 0.35


@pytest.mark.slow
def test_sigterm_stops_two_processes_at_one_step(tmp_path, data_dir):
    from conftest import TINY

    pairs = [*TINY, ("run.data_dir", data_dir), ("train.steps", 100_000), ("data.epochs", 10**6)]
    file = tmp_path / "config.json"
    file.write_text(config.to_json(config.load(ROOT / "experiments/gpt.py", pairs)))
    port = free_port()
    pair = [
        spawn("-m", "bigmodel", "train", file, f"--runs={tmp_path / 'runs'}", "--host-devices=2",
              f"--coordinator=127.0.0.1:{port}", "--processes=2", f"--process={i}")
        for i in range(2)
    ]  # fmt: skip
    until = time.time() + 120
    while not list((tmp_path / "runs").glob("*/metrics.jsonl")) or not read_steps(tmp_path):
        assert time.time() < until and all(p.poll() is None for p in pair)
        time.sleep(0.1)
    for p in pair:
        p.send_signal(signal.SIGTERM)
    errors = [p.communicate(timeout=60)[1] for p in pair]
    assert [p.returncode for p in pair] == [75, 75], errors
    steps = {re.search(r"interrupted at step (\d+)", e).group(1) for e in errors}
    assert len(steps) == 1
    (folder,) = (tmp_path / "runs").iterdir()
    assert (folder / "checkpoints" / steps.pop()).is_dir()


def read_steps(tmp_path):
    return [r for f in (tmp_path / "runs").glob("*/metrics.jsonl") for r in record.read_rows(f)]


# ----------------------------------------------------------------- without more devices


def fake(data, fsdp, tensor):
    """A mesh of the only device there is, many times: specs need no more."""
    return jax.sharding.AbstractMesh((1, data, fsdp, 1, tensor), sharding.AXES)


def test_an_axis_that_does_not_divide_is_left_whole():
    mesh = fake(1, 2, 4)
    assert sharding.spec((6, 8), ("embed", "heads"), mesh) == P(("fsdp",), ("tensor",))
    assert sharding.spec((7, 6), ("embed", "heads"), mesh) == P(None, None)


def test_without_rules_the_largest_dimension_is_sharded():
    assert sharding._largest((6, 64, 16), fake(1, 8, 1)) == P(None, "fsdp", None)
    assert sharding._largest((7, 9), fake(1, 8, 1)) == P()


def test_moments_follow_their_parameters():
    x = jax.ShapeDtypeStruct((8, 16), "float32")
    state = {"params": {"a": {"w": x}}, "opt": [{"mu": {"a": {"w": x}}, "count": jax.ShapeDtypeStruct((), "int32")}]}
    rules = [(r"w$", ("embed", "ffn"))]
    mesh = sharding.make_mesh(sharding.ALONE)
    with pytest.raises(KeyError, match="no rule matches"):
        sharding.state_shardings(state, [(r"b$", ())], mesh)
    layout = sharding.state_shardings(state, rules, mesh)
    assert layout["opt"][0]["mu"]["a"]["w"] == layout["params"]["a"]["w"]


@pytest.mark.parametrize("sizes", [(1, 3, 1, 1, 1), (1, -1, -1, 1, 1), (1, 0, 1, 1, 1), (1, 1, 1, 2, 1)])
def test_a_mesh_that_does_not_fill_the_devices_is_refused(sizes):
    with pytest.raises(UsageError, match=re.escape("config.run.mesh=")):
        sharding.make_mesh(dict(zip(sharding.AXES, sizes, strict=True)))


def test_every_family_is_the_same_on_eight_devices(tmp_path):
    """Its rules shard it, and its checkpoint goes from one device to eight and back."""
    finish(spawn(ROOT / "tests/families.py", tmp_path / "found.json"))
    report = json.loads((tmp_path / "found.json").read_text())
    assert set(report) == set(models.names())
    for family, found in report.items():
        np.testing.assert_allclose(found["eight"], found["one"], rtol=1e-4, err_msg=family)
        assert found["one"][0] != found["one"][3], family
        for name in ("one from eight", "eight from one"):
            np.testing.assert_allclose(found[name], found["one"][2:], rtol=1e-4, err_msg=f"{family} {name}")
