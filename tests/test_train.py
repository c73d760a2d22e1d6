"""The loop: what is resumed, recorded, accumulated, refused; optimizers and schedules by their effect."""

import math
import os
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, drawn
from ml_collections import FrozenConfigDict

from bigmodel import config, data, models, tree
from bigmodel.data import loader
from bigmodel.errors import Retry, UsageError
from bigmodel.models import losses
from bigmodel.ops import sharding
from bigmodel.run import budget, checkpoint, identity, loop, optim, program, record, session

MESH = sharding.make_mesh(sharding.ALONE)


def run(cfg, root):
    result = session.train(cfg, str(root), quiet=True)
    return result, record.read_rows(root / result["run_id"] / "metrics.jsonl")


def final_state(root, result, cfg):
    compiled = program.build(program.static_part(budget.finalize(cfg)), MESH)
    saves = checkpoint.Checkpoints(str(root / result["run_id"] / "checkpoints"))
    return saves.restore(saves.latest(), compiled.shapes, compiled.shardings)


# ------------------------------------------------------------------------ the record of a run


def test_a_run_leaves_its_whole_record(tiny, tmp_path):
    cfg = tiny(run__eval_every=5, model__position="learned")
    result, rows = run(cfg, tmp_path)
    assert [r["step"] for r in rows if "loss" in r] == list(range(1, 13))
    assert [r["step"] for r in rows if "eval_loss" in r] == [5, 10, 12]
    assert result["status"] == "done"
    assert result["tokens"] == next(r for r in rows if r["step"] == 12)["tokens"] == 12 * 8 * 32
    assert result["loss"] == rows[-1]["eval_loss"]
    train_tokens = record.read_json(f"{cfg.run.data_dir}/speech/manifest.json")["splits"]["train"]["tokens"]
    assert result["epochs"] == pytest.approx(result["tokens"] / train_tokens, rel=0.01)
    assert result["flops"] == 3 * models.family("decoder").flops(budget.finalize(cfg).model) * 8 * 12
    assert result["params"] == 256 * 16 + 32 * 16 + (12 * 16**2 + 13 * 16) + 2 * 16
    windows = data.source("text").open_split(budget.finalize(cfg).data, cfg.run.data_dir, "validation")
    targets = np.concatenate([windows[k]["tokens"][1:] for k in range(16)])  # bytes, and 0 between documents
    nats_per_byte = result["loss"] * len(targets) / np.count_nonzero(targets)
    assert result["bits_per_byte"] == pytest.approx(nats_per_byte / math.log(2))
    assert len(result["git_sha"]) == 40
    assert identity.run_id(config.load(tmp_path / result["run_id"] / "config.json")) == result["run_id"]


def test_its_config_json_repeats_a_run_exactly(tiny, tmp_path):
    first, rows = run(tiny(model__dropout=0.1), tmp_path / "a")
    again = config.load(tmp_path / "a" / first["run_id"] / "config.json")
    second, other = run(again, tmp_path / "b")
    assert second["run_id"] == first["run_id"] and rows == other
    third, different = run(tiny(model__dropout=0.1, train__seed=1), tmp_path / "b")
    assert third["run_id"] != first["run_id"] and different[0]["loss"] != rows[0]["loss"]


def test_a_finished_run_is_not_run_again(tiny, tmp_path):
    first, _ = run(tiny(), tmp_path)
    marked = {**first, "mark": 1}
    record.write_json(tmp_path / first["run_id"] / "result.json", marked)
    assert run(tiny(), tmp_path)[0] == marked


def test_where_a_run_executes_does_not_change_its_id(tiny, data_dir, tmp_path):
    shutil.copytree(data_dir, tmp_path / "moved")
    ids = {
        identity.run_id(budget.finalize(c))
        for c in (tiny(), tiny(run__log_every=5), tiny(("run.data_dir", str(tmp_path / "moved"))))
    }
    assert len(ids) == 1
    assert identity.run_id(budget.finalize(tiny(optim__lr=1e-4))) not in ids


# ------------------------------------------------------------------------------------ resume


def test_interrupted_twice_is_bitwise_the_whole_run(tiny, tmp_path):
    """2 + 2 = 4, parameters and rows, with dropout, accumulation and data going on where they were."""
    cfg = tiny(("model.dropout", 0.1), ("train.microbatch", 4), ("run.checkpoint_every", 4), ("run.keep", 9))
    whole, rows = run(cfg, tmp_path / "whole")
    home = tmp_path / "part" / whole["run_id"]
    for step in (4, 8):
        shutil.rmtree(home, ignore_errors=True)
        shutil.copytree(tmp_path / "whole" / whole["run_id"], home)
        (home / "result.json").unlink()
        for later in (s for s in (4, 8, 12) if s > step):
            shutil.rmtree(home / "checkpoints" / str(later))
        with (home / "metrics.jsonl").open("a") as f:
            f.write('{"step": 13, "loss": 1.0}\n{"step"')  # rows past the checkpoint, the last one torn
        resumed, again = run(cfg, tmp_path / "part")
        assert again == rows
        assert resumed["loss"] == whole["loss"]
        a, b = (final_state(tmp_path / part, whole, cfg) for part in ("whole", "part"))
        for path, x, y in zip(tree.paths(a), jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
            assert np.array_equal(x, y), path


def test_sigterm_saves_and_exits_75(tiny, tmp_path):
    cfg = tiny(train__steps=100_000, data__epochs=100_000, run__checkpoint_every=0)
    file = tmp_path / "config.json"
    file.write_text(config.to_json(cfg))
    child = subprocess.Popen(
        [sys.executable, "-m", "bigmodel", "train", str(file), f"--runs={tmp_path / 'runs'}"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    speed = tmp_path / "runs" / identity.run_id(budget.finalize(cfg)) / "speed.jsonl"
    until = time.time() + 60
    while time.time() < until and not (speed.exists() and speed.stat().st_size):
        time.sleep(0.05)
    child.send_signal(signal.SIGTERM)
    error = child.communicate(timeout=60)[1]
    assert child.returncode == 75, error
    said = error.splitlines()[-1]
    assert said.startswith("bigmodel: interrupted at step ") and "the same command continues" in said
    step = int(said.split("step ")[1].split()[0])
    assert (speed.parent / "checkpoints" / str(step)).is_dir()
    rows = record.read_rows(speed.parent / "metrics.jsonl")
    assert [r["step"] for r in rows] == list(range(1, step + 1))


def test_a_run_whose_checkpoints_are_gone_says_that_it_starts_again(tiny, tmp_path, capsys):
    first, rows = run(tiny(), tmp_path)
    home = tmp_path / first["run_id"]
    (home / "result.json").unlink()
    shutil.rmtree(home / "checkpoints")
    session.train(tiny(), str(tmp_path))
    said = f"{home}: no checkpoint there; starts again at step 0, without {len(rows)} rows of metrics.jsonl"
    assert said in capsys.readouterr().err.splitlines()
    shutil.rmtree(home)
    session.train(tiny(), str(tmp_path))
    assert "starts again" not in capsys.readouterr().err


def test_wandb_without_a_key_is_said_to_be_offline(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setattr(session.View, "_say", lambda *_, **__: None)  # no process of W&B's
    session.train(tiny(run__wandb="online"), str(tmp_path))
    assert "W&B is offline, without WANDB_API_KEY or a key in ~/.netrc: `wandb sync " in capsys.readouterr().err
    session.train(tiny(run__wandb="offline", train__seed=1), str(tmp_path))
    assert "W&B" not in capsys.readouterr().err


def test_init_from_starts_at_those_parameters(tiny, tmp_path):
    first, _ = run(tiny(), tmp_path)
    cfg = tiny(train__init_from=str(tmp_path / first["run_id"]), train__seed=5, optim__lr=1e-9, optim__weight_decay=0.0)
    second, _ = run(cfg, tmp_path)
    assert second["loss"] == pytest.approx(first["loss"], abs=1e-4)
    with pytest.raises(UsageError, match="can't be restored"):
        run(tiny(train__init_from=str(tmp_path / first["run_id"]), model__ffn=32), tmp_path)


def test_every_step_draws_its_own_randomness(tiny):
    compiled = program.build(program.static_part(budget.finalize(tiny(model__dropout=0.5))), MESH)
    state = compiled.init(jax.random.key(0))
    batch = {"tokens": jnp.ones((8, 33), jnp.int32), "weight": jnp.ones(8)}
    losses = []
    for _ in range(3):
        state, metrics = compiled.step(state, batch, jnp.float32(0), jax.random.key(1))
        losses.append(float(metrics["loss"]))
    assert len(set(losses)) == 3


@pytest.mark.parametrize("moment", ["due", "show"])
def test_a_signal_between_any_two_lines_loses_no_row(tiny, tmp_path, monkeypatch, moment):
    """SIGTERM while the progress line is drawn: the checkpoint claims only rows that are there."""
    cfg = tiny(train__steps=12)
    _, rows = run(cfg, tmp_path / "whole")
    calls = iter(range(10**6))
    real = getattr(session.Line, moment)

    def signalled(*args):
        if next(calls) == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*args)

    monkeypatch.setattr(session.Line, "due", lambda self: True)
    monkeypatch.setattr(session.Line, moment, signalled if moment == "show" else lambda self: signalled(self) or True)
    with pytest.raises(Retry, match="interrupted at step"):
        run(cfg, tmp_path / "part")
    monkeypatch.undo()
    assert run(cfg, tmp_path / "part")[1] == rows


# --------------------------------------------------------------------------------- divergence


def test_a_nan_keeps_the_last_good_step_and_is_an_outcome(tiny, tmp_path):
    cfg = tiny(optim__name="sgd", optim__lr=1e30, optim__clip=0.0, optim__warmup=0.0)
    result, rows = run(cfg, tmp_path)
    assert result["status"] == "diverged" and result["loss"] is None
    good = result["last_good_step"]
    assert 0 < good < 12
    assert rows[-1]["step"] == good + 1 and rows[-1]["loss"] is None
    state = final_state(tmp_path, result, cfg)
    assert int(state["step"]) == good
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state["params"]))
    assert run(cfg, tmp_path)[0] == result


def test_a_loss_that_stays_high_is_divergence(tiny, tmp_path):
    cfg = tiny(("train.divergence", 1.01), ("train.divergence_steps", 3), ("optim.lr", 3.0), ("optim.warmup", 0.0))
    result, rows = run(cfg, tmp_path)
    assert result["status"] == "diverged"
    assert all(r["loss"] > 1.01 * rows[0]["loss"] for r in rows[-3:])
    assert len(rows) < 12


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize(("name", "lr"), [("adamw", 3e38), ("sgd", 1e38)])
def test_an_update_that_is_not_finite_is_not_kept(name, lr, digits, tmp_path):
    """A finite gradient times a rate that is nearly infinite in float32; a larger one is refused."""
    cfg = digits(("optim.name", name), ("optim.lr", lr), ("optim.warmup", 0.0), ("optim.clip", 0.0))
    result, _ = run(cfg, tmp_path)
    assert result["status"] == "diverged" and result["last_good_step"] == 0
    state = final_state(tmp_path, result, cfg)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state["params"]))


def test_divergence_ends_at_the_same_step_however_often_it_saves(tiny, tmp_path):
    high = [("train.divergence", 1.01), ("train.divergence_steps", 3), ("optim.lr", 3.0), ("optim.warmup", 0.0)]
    a, rows = run(tiny(*high, ("run.checkpoint_every", 0)), tmp_path / "a")
    b, same = run(tiny(*high, ("run.checkpoint_every", 1)), tmp_path / "b")
    assert a["run_id"] == b["run_id"] and rows == same
    assert a["last_good_step"] == b["last_good_step"] == rows[-1]["step"] - 1


# ------------------------------------------------------------------- accumulation, evaluation


def test_accumulated_gradients_are_the_whole_batchs(tiny, tmp_path):
    _, rows = run(tiny(), tmp_path)
    for micro in (2, 4):
        _, accumulated = run(tiny(train__microbatch=micro), tmp_path)
        for a, b in zip(rows, accumulated, strict=True):
            if "loss" in a:
                assert b["loss"] == pytest.approx(a["loss"], rel=2e-6)
                assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-4)


def test_evaluation_does_not_depend_on_the_batch_size(tiny, tmp_path):
    losses = [
        run(tiny(("train.batch_size", b), ("train.eval_examples", 11), ("optim.lr", 1e-12)), tmp_path)[0]["loss"]
        for b in (3, 8, 16)
    ]
    np.testing.assert_allclose(losses, losses[0], rtol=1e-6)


def test_z_loss_shrinks_the_normaliser(tiny):
    module = models.family("decoder")
    frozen = budget.finalize(tiny())
    model = module.Model(frozen.model)
    variables = drawn(module, frozen.model)
    batch = {"tokens": jnp.ones((2, 33), jnp.int32), "weight": jnp.ones(2)}
    logits = jax.jit(model.apply)(variables, *module.inputs(frozen.model, batch))

    def loss(model):
        return jax.jit(lambda v: module.loss(model, v, batch, jax.random.key(0), False))(variables)

    plain, (metrics, _) = loss(model)
    heavy, (same, _) = loss(module.Model(FrozenConfigDict({**frozen.model.to_dict(), "z_loss": 0.5})))
    z = jax.nn.logsumexp(logits, axis=-1)
    assert float(heavy - plain) == pytest.approx(0.5 * float(jnp.mean(z**2)), rel=1e-5)
    assert same["loss"] == metrics["loss"] and float(losses.mean(metrics["loss"])) == float(plain)


# ------------------------------------------------------------------------------------- data


def test_batch_i_is_a_function_of_seed_and_i(tiny):
    cfg = budget.finalize(tiny())
    examples = data.source("text").open_split(cfg.data, cfg.run.data_dir, "train")
    whole = [b["tokens"] for b in loader.train_batches(examples, 8, 3, 0, 6, (0, 8))]
    later = [b["tokens"] for b in loader.train_batches(examples, 8, 3, 4, 6, (0, 8))]
    assert len(whole) == 6 and len(later) == 2
    np.testing.assert_array_equal(whole[4:], later)
    half = [b["tokens"] for b in loader.train_batches(examples, 8, 3, 0, 6, (4, 8))]
    np.testing.assert_array_equal([w[4:] for w in whole], half)
    other = next(iter(loader.train_batches(examples, 8, 4, 0, 6, (0, 8))))["tokens"]
    assert not np.array_equal(other, whole[0])


def test_an_epoch_is_every_example_once(digits):
    cfg = budget.finalize(digits(("data.examples", 96)))
    examples = data.source("tables").open_split(cfg.data, "", "train")
    batches = loader.TrainBatches(examples, 32, 0, 6, (0, 32))
    epochs = [[batches.order[e * 96 + i] for i in range(96)] for e in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(96))
    assert epochs[0] != epochs[1]


def test_windows_are_the_shards_tokens(tiny):
    cfg = budget.finalize(tiny())
    folder = f"{cfg.run.data_dir}/speech"
    shards = record.read_json(f"{folder}/manifest.json")["splits"]["train"]["shards"]
    tokens = np.concatenate([np.fromfile(f"{folder}/{s['file']}", np.uint8) for s in shards])
    windows = data.source("text").open_split(cfg.data, cfg.run.data_dir, "train")
    last = len(windows) - 1
    assert (last + 1) * 32 + 1 <= len(tokens)
    for k in (0, 1, last):
        np.testing.assert_array_equal(windows[k]["tokens"], tokens[k * 32 : k * 32 + 33])


def test_more_tokens_than_there_are_says_how_many_epochs(tiny):
    with pytest.raises(UsageError, match=r"epochs; allow them with --config.data.epochs=\d+"):
        budget.finalize(tiny(("data.epochs", 1), ("train.steps", 10_000)))


def test_a_horizon_in_tokens_flops_or_ratio(tiny):
    def derived(key, value):
        return budget.derive(budget.finalize(tiny(("train.steps", 0), (f"train.{key}", value))))

    steps = derived("steps", 7)
    assert steps.steps == 7
    assert derived("tokens", 7 * 8 * 32).steps == 7
    assert derived("flops", steps.flops).steps == 7
    ratio = derived("tokens_per_param", 2.0)
    assert ratio.tokens == pytest.approx(2.0 * ratio.params_nonembedding, rel=0.05)


# ------------------------------------------------------------------------------- optimizers


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_every_optimizer_learns(name, digits, tmp_path):
    rate = {"sgd": 0.3, "lion": 3e-3, "adafactor": 3e-2, "muon": 1e-2, "adamw": 1e-2}[name]
    cfg = digits(
        ("optim.name", name), ("optim.lr", rate), ("train.steps", 120), ("model.depth", 3), ("model.width", 32)
    )
    result, rows = run(cfg, tmp_path)
    assert result["loss"] < 1.0 < 2.0 < rows[0]["loss"]
    assert result["eval_accuracy"] > 0.7


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_decay_shrinks_matrices_and_nothing_else(name):
    """At zero gradient a step of rate r leaves (1 - r decay) of a matrix or a table, and all of a bias."""
    cfg = optim.get_config()
    cfg.name, cfg.weight_decay = name, 0.5
    params = {"embed": {"w": jnp.ones((8, 4))}, "layer": {"w": jnp.ones((2, 4, 4)), "bias": jnp.ones((2, 4))}}
    rules = [(r"embed/w$", (None, "embed")), (r"w$", (None, "embed", "ffn")), (r"bias$", (None, None))]
    tx = optim.build(cfg, rules)
    state = tx.init(params)
    for _ in range(5):
        updates, state = tx.update(jax.tree.map(jnp.zeros_like, params), state, params)
        params = optim.apply(cfg, params, updates, jnp.float32(0.1))
    np.testing.assert_allclose(params["layer"]["w"], 0.95**5, rtol=1e-5)
    np.testing.assert_allclose(params["embed"]["w"], 0.95**5, rtol=1e-5)
    np.testing.assert_allclose(params["layer"]["bias"], 1.0)


def test_muon_orthogonalises_a_projection_to_heads(tiny):
    frozen = budget.finalize(tiny(optim__name="muon", optim__weight_decay=0.0))
    module = models.family("decoder")
    params = drawn(module, frozen.model)["params"]
    tx = optim.build(frozen.optim, module.RULES)
    rng = np.random.default_rng(1)
    grads = jax.tree.map(lambda p: rng.normal(size=p.shape).astype("float32"), params)
    updates, _ = jax.jit(lambda g, p: tx.update(g, tx.init(p), p))(grads, params)
    for name, rows in (("query", 16), ("out", 16)):
        u = np.asarray(updates["blocks"]["attention"][name])[0]
        matrix = u.reshape(rows, -1) if name == "query" else u.reshape(-1, rows)
        s = np.linalg.svd(matrix, compute_uv=False)
        assert s.max() / s.min() < 2, name
        raw = np.linalg.svd(np.asarray(grads["blocks"]["attention"][name])[0].reshape(16, 16), compute_uv=False)
        assert raw.max() / raw.min() > 10


def test_schedules():
    cfg = optim.get_config()
    cfg.lr, cfg.warmup, cfg.final_lr, cfg.decay = 1.0, 0.1, 0.1, 0.2

    def rates(schedule):
        cfg.schedule = schedule
        return [optim.learning_rate(cfg, t, 100, 32) for t in range(100)]

    for schedule in optim.SCHEDULES:
        r = rates(schedule)
        np.testing.assert_allclose(r[:10], np.arange(1, 11) / 10)
        assert np.all(np.diff(r[9:]) <= 1e-12), schedule
    assert rates("constant")[-1] == 1
    cfg.lr_batch = 64
    assert rates("constant")[-1] == 0.5  # of batches half as large
    cfg.lr_batch = 0
    for schedule in ("cosine", "linear", "wsd"):
        assert rates(schedule)[-1] == pytest.approx(0.1)
    assert rates("linear")[54] == pytest.approx(0.55)
    assert rates("cosine")[54] == pytest.approx(0.55)
    assert rates("wsd")[79] == 1 and rates("wsd")[89] == pytest.approx(0.55)
    assert rates("rsqrt")[39] == pytest.approx(0.5)


def test_the_average_of_parameters_is_what_is_kept_and_evaluated(digits, tmp_path):
    """The decay of step t is min(ema, (1 + t) / (10 + t)); what learns does so as without an average."""
    found = {}
    for ema in (0.0, 0.15):
        cfg = digits(("train.steps", 4), ("run.checkpoint_every", 1), ("run.keep", 9), ("optim.ema", ema))
        result, _ = run(cfg, tmp_path)
        compiled = program.build(program.static_part(budget.finalize(cfg)), MESH)
        saves = checkpoint.Checkpoints(str(tmp_path / result["run_id"] / "checkpoints"))
        states = [saves.restore(n, compiled.shapes, compiled.shardings) for n in range(1, 5)]
        found[ema] = [
            {k: np.asarray(jax.tree.leaves(s[k])[0]) for k in ("params", "iterate") if k in s} for s in states
        ]
    start = np.asarray(
        jax.tree.leaves(compiled.init(jax.random.fold_in(jax.random.key(cfg.train.seed), 0))["params"])[0]
    )
    average = start
    for t, (plain, kept) in enumerate(zip(found[0.0], found[0.15], strict=True)):
        np.testing.assert_array_equal(kept["iterate"], plain["params"])
        decay = min(0.15, (1 + t) / (10 + t))
        average = decay * average + (1 - decay) * plain["params"]
        np.testing.assert_allclose(kept["params"], average, rtol=1e-5, atol=1e-7)


def test_nesterovs_momentum_looks_ahead():
    """Sutskever et al. 2013 as torch has it: m <- momentum m + g, and the update is g + momentum m."""
    cfg = optim.get_config()
    cfg.update(dict(name="sgd", momentum=0.5, nesterov=True, clip=0.0, weight_decay=0.0))
    tx = optim.build(FrozenConfigDict(cfg), ())
    params = {"w": jnp.zeros((1, 1))}
    state, m = tx.init(params), 0.0
    for g in (1.0, 3.0, -2.0):
        updates, state = tx.update({"w": jnp.full((1, 1), g)}, state, params)
        m = 0.5 * m + g
        assert float(updates["w"][0, 0]) == pytest.approx(-(g + 0.5 * m))


def test_clipping_bounds_the_gradient():
    cfg = optim.get_config()
    cfg.name, cfg.momentum, cfg.weight_decay, cfg.clip = "sgd", 0.0, 0.0, 2.0
    params = {"w": jnp.zeros(4)}
    tx = optim.build(cfg, ())
    updates, _ = tx.update({"w": jnp.full(4, 10.0)}, tx.init(params), params)
    np.testing.assert_allclose(updates["w"], -1.0, rtol=1e-6)


# ------------------------------------------------------------------------------------- golden


def test_golden_losses(tiny, digits, tmp_path):
    """A refactor leaves these alone; a change of behaviour changes them, and shows curves in docs/results.md.

    The tolerance is for other versions of JAX; on one version runs are equal to the bit.
    """
    for name, cfg in {"gpt": tiny(optim__name="muon", optim__lr=0.015, model__depth=2), "digits": digits()}.items():
        result, rows = run(cfg, tmp_path)
        found = [rows[0]["loss"], rows[-2]["loss"], result["loss"]]
        np.testing.assert_allclose(found, GOLDEN[name], rtol=1e-5, err_msg=name)


# first step, last step, held out
GOLDEN = {"gpt": [5.5473142, 3.5717649, 3.5880555], "digits": [2.2841415, 2.2245226, 2.2521956]}


def test_wsd_branches_are_the_runs_that_end_there(tiny, tmp_path):
    """A branch's loss is, to the bit, that of a run of its length with the trunk's warm-up; and the trunk goes on as if
    there had been none."""
    wsd = dict(optim__schedule="wsd", optim__decay=0.25, optim__final_lr=0.0, train__steps=12)
    plain, _ = run(tiny(**wsd, optim__warmup=0.25), tmp_path)
    result, _ = run(tiny(**wsd, optim__warmup=0.25, optim__branches=(0.34, 0.67)), tmp_path)
    assert result["loss"] == plain["loss"]
    assert [b["steps"] for b in result["branches"]] == [4, 8]
    for branch in result["branches"]:
        alone, _ = run(tiny(**{**wsd, "train__steps": branch["steps"]}, optim__warmup=3 / branch["steps"]), tmp_path)
        assert branch["loss"] == alone["loss"], branch["steps"]
        assert {k: branch[k] for k in ("tokens", "flops", "steps")} == {
            k: alone[k] for k in ("tokens", "flops", "steps")
        }


@pytest.mark.parametrize("at", [3, 7])
def test_branches_survive_an_interruption(tiny, tmp_path, monkeypatch, at):
    """Interrupted before and after the fork, at step 5."""
    cfg = tiny(optim__schedule="wsd", optim__branches=(0.5,), train__steps=12)
    whole, _ = run(cfg, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(loop.Stop, "at", lambda self, step: step == at)
        with pytest.raises(Retry, match=f"step {at} of 12"):
            run(cfg, tmp_path / "cut")
    again, _ = run(cfg, tmp_path / "cut")
    assert len(whole["branches"]) == 1
    assert again["branches"] == whole["branches"] and again["loss"] == whole["loss"]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (dict(optim__branches=(0.5,)), "only the schedule wsd has a trunk"),
        (dict(optim__branches=(1.5,), optim__schedule="wsd"), "each in"),
    ],
)
def test_impossible_branches_are_refused(tiny, tmp_path, overrides, said):
    with pytest.raises(UsageError, match=said):
        run(tiny(**overrides), tmp_path)


@pytest.mark.slow
def test_the_gradient_noise_scale_is_the_brute_force_one(tiny, tmp_path):
    """At fixed parameters: tr(cov of an example's gradient) / |mean gradient|^2 over all examples of the data."""
    cfg = tiny(
        train__noise_scale=True, train__batch_size=16, train__microbatch=2, train__steps=300, optim__lr=1e-12,
        optim__clip=0.0, train__eval_examples=2,
    )  # fmt: skip
    result, rows = run(cfg, tmp_path)
    frozen = budget.finalize(cfg)
    family, root = models.family("decoder"), jax.random.key(0)
    state = program.build(program.static_part(frozen), sharding.make_mesh(frozen.run.mesh)).init(
        jax.random.fold_in(root, 0)
    )
    source = data.source("text").open_split(frozen.data, frozen.run.data_dir, "train")
    tokens = np.stack([source[i]["tokens"] for i in range(len(source))])
    model = family.Model(frozen.model)

    @jax.jit
    def gradient(row):
        batch = {"tokens": row[None], "weight": jnp.ones(1)}
        grads = jax.grad(lambda p: family.loss(model, {"params": p}, batch, root, True)[0])(state["params"])
        return jnp.concatenate([g.ravel() for g in jax.tree.leaves(grads)])

    every = np.stack([gradient(row) for row in tokens])
    mean = every.mean(axis=0)
    brute = every.var(axis=0, ddof=1).sum() / np.square(mean).sum()
    assert result["noise_scale"] / 32 == pytest.approx(brute, rel=0.15)
    assert all(r["grad_noise"] > 0 for r in rows if "grad_noise" in r)
