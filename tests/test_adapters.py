"""Low-rank adapters: what stays, what learns, what is merged; rates by layer."""

import json
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, TINY
from ml_collections import ConfigDict
from safetensors.numpy import save_file
from scipy.stats import norm
from test_weights import BERT, published

from bigmodel import config, models, tree
from bigmodel.after import convert, evaluate, opened
from bigmodel.errors import Retry, UsageError
from bigmodel.ops import sharding
from bigmodel.run import adapters, budget, checkpoint, counts, loop, optim, program, record, session

MESH = sharding.make_mesh(sharding.ALONE)
RANK = 3
TARGETS = "attention/(query|value|out)$|mlp/up$"  # heads as outputs, as inputs, and neither


def leaves(params):
    return dict(zip(tree.paths(params), map(np.asarray, jax.tree.leaves(params)), strict=True))


def final(root, cfg):
    """(config, program, last state) of a finished run."""
    frozen = budget.finalize(cfg)
    compiled = program.build(program.static_part(frozen), MESH)
    (home,) = (path.parent for path in root.glob("*/result.json"))
    saves = checkpoint.Checkpoints(str(home / "checkpoints"))
    return frozen, compiled, saves.restore(saves.latest(), compiled.shapes, compiled.shardings)


@pytest.fixture(scope="module")
def make(data_dir, tmp_path_factory):
    """A tiny GPT's config that starts from a run of the same; `make.base` is that run's folder."""
    root = tmp_path_factory.mktemp("base")

    def plain(*overrides):
        return config.load(
            ROOT / "experiments/gpt.py", [*TINY, ("model.depth", 2), ("run.data_dir", data_dir), *overrides]
        )

    base = root / session.train(plain(("train.seed", 7)), str(root), quiet=True)["run_id"]
    start = ("train.init_from", str(base))

    def found(*overrides):
        adapted = (start, ("train.lora_rank", RANK), ("train.lora_targets", TARGETS), ("optim.lr", 0.05))
        return plain(*adapted, *overrides)

    found.base, found.plain, found.root = base, lambda *more: plain(start, *more), root
    return found


@pytest.fixture(scope="module")
def adapted(make, tmp_path_factory):
    root = tmp_path_factory.mktemp("adapted")
    session.train(make(), str(root), quiet=True)
    return root, *final(root, make())


def test_what_a_run_starts_from_stays_to_the_bit_and_adapters_learn(make, adapted):
    _, frozen, _, state = adapted
    found, base = (
        leaves(state["params"]),
        leaves(final(make.root, make.plain(("train.init_from", ""), ("train.seed", 7)))[2]["params"]),
    )
    for path, x in base.items():
        assert x.tobytes() == found.pop(path).tobytes(), path
    assert len(found) == 8 and all(path.startswith("lora/blocks/") for path in found)
    assert found["lora/blocks/attention/out/a"].shape == (2, 2, 8, RANK)
    assert found["lora/blocks/attention/out/b"].shape == (2, RANK, 16)
    assert found["lora/blocks/attention/query/b"].shape == (2, RANK, 2, 8)
    assert all(np.abs(x).max() > 1e-4 for path, x in found.items() if path.endswith("/b"))
    moments = [path for path in tree.paths(state["opt"]) if path.endswith(tuple(base)) and "lora/" not in path]
    assert not moments and sum("lora/" in path for path in tree.paths(state["opt"])) == 2 * 8
    plan = budget.derive(frozen)
    assert plan.trainable == sum(x.size for x in found.values()) == plan.to_dict()["trainable"]
    assert plan.params == sum(x.size for x in base.values())
    assert "trainable" not in budget.derive(budget.finalize(make.plain())).to_dict()
    assert plan.state_bytes == 8 * plan.params + (8 + 8) * plan.trainable + 4  # ... and Adam's count of steps


def test_the_first_step_is_that_of_the_model_itself(make, adapted, tmp_path):
    first = []
    for root, cfg in ((adapted[0], None), (tmp_path, make.plain())):
        result = (
            session.train(cfg, str(root), quiet=True)
            if cfg
            else json.loads(next(root.glob("*/result.json")).read_text())
        )
        rows = record.read_rows(root / result["run_id"] / "metrics.jsonl")
        first.append([row["loss"] for row in rows if "loss" in row][:2])
    assert first[0][0] == first[1][0] and first[0][1] != first[1][1]


def test_merged_is_unmerged_through_the_compiled_step(make, adapted):
    root, frozen, compiled, state = adapted
    rules = models.family("decoder").RULES
    merged = adapters.merge(frozen.train, rules, state["params"])
    plain = program.build(program.static_part(budget.finalize(make.plain())), MESH)
    assert tree.paths(merged) == tree.paths(plain.shapes["params"])
    a, b, w = (
        leaves(state["params"])[path] for path in ("lora/blocks/mlp/up/a", "lora/blocks/mlp/up/b", "blocks/mlp/up")
    )
    np.testing.assert_allclose(merged["blocks"]["mlp"]["up"], w + a @ b, rtol=1e-5, atol=1e-6)
    half = ConfigDict({**frozen.train.to_dict(), "lora_alpha": RANK / 2})
    np.testing.assert_allclose(
        adapters.merge(half, rules, state["params"])["blocks"]["mlp"]["up"], w + a @ b / 2, rtol=1e-5, atol=1e-6
    )
    tokens = np.random.default_rng(0).integers(0, 256, (8, 33), np.int32)
    rows = {"tokens": tokens, "weight": np.ones(8, np.float32), "row": np.arange(8, dtype=np.int32)}
    rows = sharding.place(rows, MESH, 8)
    losses = [
        float(one.evaluate({"params": params}, rows)[0]["loss"][0]) / 256
        for one, params in (
            (compiled, state["params"]),
            (plain, merged),
            (plain, {k: v for k, v in state["params"].items() if k != "lora"}),
        )
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5) and abs(losses[0] - losses[2]) > 1e-3
    run = evaluate.restore(str(next(root.glob("*/result.json")).parent))
    assert tree.paths(run.variables["params"]) == tree.paths(merged)
    np.testing.assert_array_equal(run.variables["params"]["blocks"]["mlp"]["up"], merged["blocks"]["mlp"]["up"])


def test_a_run_goes_on_from_one_with_adapters_by_its_merged_weights(make, adapted, tmp_path):
    root, frozen, _, state = adapted
    home = str(next(root.glob("*/result.json")).parent)
    cfg = make.plain(("train.init_from", home), ("train.steps", 1), ("optim.lr", 1e-30))
    session.train(cfg, str(tmp_path), quiet=True)
    merged = adapters.merge(frozen.train, models.family("decoder").RULES, state["params"])
    found = leaves(final(tmp_path, cfg)[2]["params"])
    for path, x in leaves(merged).items():
        np.testing.assert_allclose(found[path], x, atol=1e-6, err_msg=path)


def test_adapters_resume_bitwise(make, adapted, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(loop.Stop, "at", lambda self, step: step == 5)
        with pytest.raises(Retry, match="interrupted at step 5"):
            session.train(make(), str(tmp_path), quiet=True)
    session.train(make(), str(tmp_path), quiet=True)
    again, whole = (leaves(state["params"]) for state in (final(tmp_path, make())[2], adapted[3]))
    assert all(x.tobytes() == whole[path].tobytes() for path, x in again.items())


@pytest.mark.slow
@pytest.mark.parametrize("bits", [0, 4])
def test_adapters_learn_the_same_on_eight_devices(make, adapted, quantised, tmp_path, bits):
    (tmp_path / "config.json").write_text(config.to_json(make(("train.lora_bits", bits))))
    worker = [sys.executable, str(ROOT / "tests/mesh_worker.py"), "8", str(tmp_path / "config.json")]
    meshes = "data2-fsdp2-tensor2"
    subprocess.run(
        [*worker, str(tmp_path / "out.json"), str(tmp_path / "runs"), meshes, "none"],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True,
    )  # fmt: skip
    found = json.loads((tmp_path / "out.json").read_text())["losses"][meshes]
    np.testing.assert_allclose(found[:-1], losses_of((quantised if bits else adapted)[0]), rtol=1e-5)


def test_adapters_of_published_weights(data_dir, tmp_path):
    """Where a head is fresh, it has to be named as learning."""
    cfg = [*BERT, ("run.data_dir", data_dir), ("train.lora_rank", 2), ("optim.lr", 0.01), ("train.steps", 2)]
    cfg.append(("train.init_from", str(tmp_path / "model.safetensors")))
    frozen = config.load(ROOT / "experiments/bert.py", [*BERT, ("run.data_dir", data_dir)])
    shapes = counts.shapes("bert", budget.finalize(frozen).model)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32) / 8, shapes)
    tensors = published("bert", params, lambda name: not name.startswith("cls."))
    save_file({name: np.ascontiguousarray(x) for name, x in tensors.items()}, tmp_path / "model.safetensors")
    with pytest.raises(UsageError, match=r"'output_bias' \(\d such\) starts afresh and would stay frozen"):
        session.train(config.load(ROOT / "experiments/bert.py", cfg), str(tmp_path / "refused"), quiet=True)
    learning = (*cfg, ("optim.groups", (("^(transform|output_bias)", "frozen=false"),)))
    loaded = config.load(ROOT / "experiments/bert.py", learning)
    session.train(loaded, str(tmp_path / "runs"), quiet=True)
    found = leaves(final(tmp_path / "runs", loaded)[2]["params"])
    for path, x in leaves(params).items():
        fresh = path.startswith(("transform", "output_bias"))
        assert (x.tobytes() == found[path].tobytes()) != fresh, path


@pytest.mark.parametrize(
    "override, said",
    [
        (("train.init_from", ""), "adapters of what\? Say it with config.train.init_from"),
        (("train.lora_targets", "attention/(query|keys)_bias"), "no matrix of a layer|no parameter's path matches"),
        (
            ("train.lora_targets", "embed/tokens"),
            "'embed/tokens' is no matrix of a layer; matrices of layers: .*mlp/up",
        ),
        (("train.lora_targets", "attention/queries"), "no parameter's path matches"),
        (("train.lora_targets", "("), "not a regular expression"),
        (("train.lora_rank", -1), "lora_rank=-1"),
        (("optim.ema", 0.9), "have no moving average"),
        (("train.lora_bits", 3), "lora_bits=3: 4, or 0 for frozen weights as they are"),
    ],
)
def test_impossible_adapters_are_refused_in_one_line(make, override, said):
    with pytest.raises(UsageError, match=said):
        budget.finalize(make(override))


# ------------------------------------------------------------------------------- frozen weights in 4 bits

BITS = ("train.lora_bits", 4)


@pytest.fixture(scope="module")
def quantised(make, tmp_path_factory):
    root = tmp_path_factory.mktemp("quantised")
    session.train(make(BITS), str(root), quiet=True)
    return root, *final(root, make(BITS))


def losses_of(root):
    rows = record.read_rows(next(root.glob("*/metrics.jsonl")))
    return [row["loss"] for row in rows if "loss" in row]


def test_normal_float_4_is_the_papers():
    """Its codes from their definition, by quantiles; each weight's by trying all; packing by hand."""
    offset = (1 - 1 / 32 + 1 - 1 / 30) / 2
    below, above = (norm.ppf(np.linspace(offset, 0.5, n)[:-1]) for n in (8, 9))
    table = np.sort([*-below, 0, *above]) / above.max()
    np.testing.assert_allclose(adapters.NF4, table, atol=2e-6)
    w = np.random.default_rng(0).normal(size=(3, 10, 32)).astype(np.float32)
    w[1, :2] = 0  # a block of zeros
    held = jax.tree.map(np.asarray, adapters.quantise(jnp.asarray(w), 1))
    assert held["codes"].shape == (3, 10, 16) and held["codes"].dtype == np.uint8
    assert held["scales"].shape == (3, 5) and held["scales"].dtype == np.float32
    found = np.asarray(adapters.dequantise(held, "float32"))
    for matrix in range(3):
        flat = w[matrix].reshape(-1)
        for i in range(0, 320, 64):
            top = max(abs(x) for x in flat[i : i + 64])
            assert held["scales"][matrix, i // 64] == top
            for k in range(i, i + 64):
                code = min(range(16), key=lambda c, k=k, top=top: abs(table[c] - flat[k] / (top or 1)))
                byte = held["codes"][matrix].reshape(-1)[k // 2]
                assert (byte & 15 if k % 2 else byte >> 4) == code
                assert found[matrix].reshape(-1)[k] == pytest.approx(table[code] * top, abs=1e-5)
    # Nowhere off by more than half the widest gap, of -1 and -0.696; of a normal, 9.5 % rms.
    w = np.random.default_rng(1).normal(size=(256, 256)).astype(np.float32)
    off = np.abs(np.asarray(adapters.dequantise(adapters.quantise(jnp.asarray(w), 0), "float32")) - w)
    assert (off.reshape(-1, 64) <= 0.1520 * np.abs(w).reshape(-1, 64).max(-1, keepdims=True)).all()
    assert 0.090 < np.sqrt(np.mean(off**2)) < 0.100


def test_weights_in_4_bits_stay_and_the_state_is_smaller(make, adapted, quantised):
    root, frozen, compiled, state = quantised
    found, plain = leaves(state["params"]), leaves(adapted[3]["params"])
    held = [path for path in plain if f"{path}/codes" in found]
    assert sorted(held) == [p for p in sorted(plain) if re.search("^blocks/.*(query|key|value|out|up|gate|down)$", p)]
    saved = 0
    for path, w in plain.items():
        if path not in held:
            assert found[path].dtype == w.dtype and (found[path].tobytes() == w.tobytes() or "lora/" in path)
            continue
        expected = adapters.quantise(jnp.asarray(w), 1)
        for name in ("codes", "scales"):
            assert found[f"{path}/{name}"].tobytes() == np.asarray(expected[name]).tobytes(), path
        saved += 2 * w.nbytes - w.size // 2 - 4 * (w.size // 64)
    assert saved and budget.derive(adapted[1]).state_bytes - budget.derive(frozen).state_bytes == saved
    sizes = [tree.size_bytes(part.shapes["params"]) for part in (adapted[2], compiled)]
    assert sizes[0] - sizes[1] == saved - sum(plain[path].nbytes for path in held)  # gradients aside
    assert tree.paths(state["opt"]) == tree.paths(adapted[3]["opt"])  # moments of adapters alone
    assert budget.derive(frozen).trainable == budget.derive(adapted[1]).trainable
    assert "held in 4 bits" in next(root.glob("*/start.txt")).read_text()


def test_steps_are_those_of_adapters_on_the_dequantised_weights(make, quantised, tmp_path):
    """A run that has learnt nothing hands them over; its checkpoint, its merged weights are read on the way."""
    still = make(BITS, ("train.steps", 1), ("optim.lr", 1e-30))
    home = tmp_path / "still" / session.train(still, str(tmp_path / "still"), quiet=True)["run_id"]
    run = evaluate.restore(str(home))
    assert tree.paths(run.variables["params"]) == tree.paths(counts.shapes("decoder", run.config.model))
    w, held = run.variables["params"]["blocks"]["mlp"]["up"], quantised[3]["params"]["blocks"]["mlp"]["up"]
    np.testing.assert_allclose(w, adapters.dequantise(held, "float32"), atol=1e-20)
    session.train(make(("train.init_from", str(home))), str(tmp_path / "runs"), quiet=True)
    ours, theirs = losses_of(quantised[0]), losses_of(tmp_path / "runs")
    assert ours[0] == pytest.approx(theirs[0], abs=1e-6)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    before, after = (record.read_result(path)["loss"] for path in (home, *quantised[0].glob("*")))  # on held-out text
    assert after < before - 0.01


def test_adapters_of_weights_in_4_bits_resume_bitwise(make, quantised, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(loop.Stop, "at", lambda self, step: step == 5)
        with pytest.raises(Retry, match="interrupted at step 5"):
            session.train(make(BITS), str(tmp_path), quiet=True)
    session.train(make(BITS), str(tmp_path), quiet=True)
    again, whole = (leaves(state["params"]) for state in (final(tmp_path, make(BITS))[2], quantised[3]))
    assert all(x.tobytes() == whole[path].tobytes() for path, x in again.items())


def test_accumulated_and_clipped_the_same_in_4_bits(make, quantised, tmp_path):
    session.train(make(BITS, ("train.microbatch", 2)), str(tmp_path), quiet=True)
    np.testing.assert_allclose(losses_of(tmp_path), losses_of(quantised[0]), rtol=1e-5)


def test_4_bits_without_adapters_are_refused_in_one_line(make):
    with pytest.raises(UsageError, match="lora_bits=4: needs adapters, as of"):
        budget.finalize(make.plain(BITS))


# ------------------------------------------------------------------------------- rates by layer


def test_layers_learn_at_rates_that_decay_downwards():
    """Of three layers at a decay of 1/2: 1/4, 1/2, 1; embeddings at 1/8, the norm after them at 1. Decay likewise."""
    cfg = optim.get_config()
    cfg.name, cfg.momentum, cfg.weight_decay, cfg.clip, cfg.layer_decay = "sgd", 0.0, 0.5, 0.0, 0.5
    rules = ((r"embed/w$", ("vocab", "embed")), (r"blocks/w$", ("depth", "embed", "ffn")), (r"scale$", (None,)))
    params = {"embed": {"w": jnp.ones((2, 3))}, "blocks": {"w": jnp.ones((3, 2, 4))}, "norm": {"scale": jnp.ones(3)}}
    cfg.groups = (("^norm/", "lr_factor=4"),)
    tx = optim.build(cfg, rules)
    updates, _ = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)
    np.testing.assert_allclose(updates["blocks"]["w"][:, 0, 0], [-0.375, -0.75, -1.5])
    np.testing.assert_allclose(updates["embed"]["w"], -1.5 / 8)
    np.testing.assert_allclose(updates["norm"]["scale"], -4)
    cfg.layer_decay = 1.0
    tx = optim.build(cfg, rules)
    assert float(tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)[0]["embed"]["w"][0, 0]) == -1.5


@pytest.mark.parametrize("depth", [1, 2])
def test_layerwise_rates_are_a_config_away(digits, tmp_path, depth):
    with pytest.raises(UsageError, match=r"optim.layer_decay=0.0: .*\(0, 1\]"):
        budget.finalize(digits(("optim.layer_decay", 0.0)))
    cfg = digits(("optim.layer_decay", 0.5), ("model.depth", depth), ("train.steps", 2))
    assert session.train(cfg, str(tmp_path), quiet=True)["status"] == "done"


def test_a_converted_run_has_its_adapters_merged(make, adapted, tmp_path):
    """Into a published form and back: the logits of the run."""
    (home,) = (path.parent for path in adapted[0].glob("*/result.json"))
    run = evaluate.restore(str(home))
    convert.write_folder(opened.open_run(str(home)), str(tmp_path / "published"))
    found = opened.open_published(str(tmp_path / "published"))
    tokens = np.arange(20)[None] % 250
    logits = [
        model.apply({"params": params}, tokens)
        for model, params in (
            (run.model, run.variables["params"]),
            (found.module.Model(found.cfg), found.params),
        )
    ]
    np.testing.assert_allclose(*logits, atol=1e-5)
    assert not any("lora" in path for path in tree.paths(found.params))
