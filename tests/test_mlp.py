"""What every family's training may use, shown on the smallest: regression, norms, penalties, early stopping, folds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import FrozenConfigDict

from bigmodel import config, data, errors
from bigmodel.errors import UsageError
from bigmodel.models import layers, mlp
from bigmodel.ops import sharding
from bigmodel.run import budget, checkpoint, loop, optim, program, record, session
from bigmodel.study import sweep

MESH = sharding.make_mesh(sharding.ALONE)


@pytest.fixture
def table():
    """An MLP on one of scikit-learn's tables."""

    def make(name, *overrides):
        cfg = budget.base("mlp", "tables")
        pairs = [
            ("data.name", name), ("optim.schedule", "constant"), ("optim.warmup", 0.0), ("optim.clip", 0.0),
            ("optim.weight_decay", 0.0), ("run.wandb", "off"), ("data.epochs", 100_000), *overrides,
        ]  # fmt: skip
        config.override_all(cfg, pairs)
        return cfg

    return make


def run(cfg, root):
    result = session.train(cfg, str(root), quiet=True)
    compiled = program.build(program.static_part(budget.finalize(cfg)), MESH)
    saves = checkpoint.Checkpoints(str(root / result["run_id"] / "checkpoints"))
    state = saves.restore(saves.latest(), compiled.shapes, compiled.shardings)
    return (
        result,
        jax.tree.map(np.asarray, state["params"]),
        record.read_rows(root / result["run_id"] / "metrics.jsonl"),
    )


def arrays(cfg, split):
    frozen = budget.finalize(cfg)
    source = data.source("tables").open_split(frozen.data, "", split)
    return source.features.astype(np.float64), source.labels.astype(np.float64)


# -------------------------------------------------------------------------------------- regression


def linear(table, *overrides):
    """Plain full-batch gradient descent on 353 patients."""
    return table(
        "diabetes", ("model.depth", 0), ("model.objective", "regress"), ("optim.name", "sgd"), ("optim.momentum", 0.0),
        ("train.batch_size", 353), ("optim.lr", 0.2), *overrides,
    )  # fmt: skip


@pytest.mark.slow
def test_gradient_descent_finds_the_least_squares_solution(table, tmp_path):
    """To 1e-5 of it, in every weight: the smallest rung of all."""
    cfg = linear(table, ("train.steps", 6000), ("run.log_every", 6000))
    result, params, _ = run(cfg, tmp_path)
    x, y = arrays(cfg, "train")
    want, *_ = np.linalg.lstsq(np.c_[x, np.ones(len(x))], y, rcond=None)
    got = np.r_[params["last"][:, 0], params["last_bias"]]
    print("largest difference", np.abs(got - want).max())
    assert np.abs(got - want).max() < 1e-5
    held_x, held_y = arrays(cfg, "validation")
    error = np.mean((np.c_[held_x, np.ones(len(held_x))] @ want - held_y) ** 2)
    assert result["loss"] == pytest.approx(error, rel=1e-4) and error < 0.6


def test_l2_is_ridge_regression(table, tmp_path):
    """The bias isn't penalised."""
    cfg = linear(table, ("train.steps", 400), ("optim.l2", 0.5), ("run.log_every", 400))
    x, y = arrays(cfg, "train")
    _, params, _ = run(cfg, tmp_path)
    centred = x - x.mean(axis=0)
    ridge = np.linalg.solve(
        centred.T @ centred * 2 / len(x) + 0.5 * np.eye(10), centred.T @ (y - y.mean()) * 2 / len(x)
    )
    np.testing.assert_allclose(params["last"][:, 0], ridge, atol=1e-5)


@pytest.mark.slow
def test_l1_sets_weights_to_zero(table, tmp_path):
    """scikit-learn's lasso has the same zeros; gradient descent leaves them within a step of zero."""
    from sklearn.linear_model import Lasso

    cfg = linear(table, ("train.steps", 3000), ("optim.l1", 0.2), ("optim.lr", 0.01), ("run.log_every", 3000))
    x, y = arrays(cfg, "train")
    _, params, _ = run(cfg, tmp_path)
    lasso = Lasso(alpha=0.1).fit(x, y)  # its squares are halved
    assert 2 <= (lasso.coef_ == 0).sum() <= 8
    np.testing.assert_allclose(params["last"][:, 0], lasso.coef_, atol=0.01 * 0.2 * 2)


# ------------------------------------------------------------------------------------------- norms


def test_batch_norm_trains_by_the_batch_and_evaluates_by_what_ran(table, tmp_path):
    cfg = table(
        "breast_cancer", ("model.norm", "batchnorm"), ("model.width", 16), ("train.steps", 60),
        ("train.batch_size", 64), ("optim.lr", 0.01),
    )  # fmt: skip
    result, _, rows = run(cfg, tmp_path)
    assert result["loss"] < 0.2 < rows[0]["loss"] and result["eval_accuracy"] > 0.93
    compiled = program.build(program.static_part(budget.finalize(cfg)), MESH)
    saves = checkpoint.Checkpoints(str(tmp_path / result["run_id"] / "checkpoints"))
    stats = saves.restore(saves.latest(), compiled.shapes, compiled.shardings)["model_state"]["batch_stats"]
    for path in ("first_norm",):
        assert np.abs(stats[path]["mean"]).max() > 0.05 and np.abs(np.asarray(stats[path]["var"]) - 1).max() > 0.05
    assert stats["hidden"]["norm"]["mean"].shape == (1, 16)
    # A run that is cut and goes on has the same running statistics.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Stop, "at", lambda self, step: step == 25)
        with pytest.raises(errors.Retry):
            session.train(cfg, str(tmp_path / "cut"), quiet=True)
    assert session.train(cfg, str(tmp_path / "cut"), quiet=True)["loss"] == result["loss"]


def twenty_steps():
    """Batches of unequal scale, and what the module gives: outputs in training, then in evaluation."""
    rng = np.random.default_rng(0)
    batches = [(rng.normal(size=(13, 5)) * (1 + i % 3) + i / 10).astype(np.float32) for i in range(20)]
    module = layers.BatchNorm()
    variables = module.init(jax.random.key(0), batches[0], False)
    variables = {**variables, "params": {"scale": jnp.linspace(0.5, 2, 5), "bias": jnp.linspace(-1, 1, 5)}}
    trained = []
    for x in batches:
        y, state = module.apply(variables, x, True, mutable=["batch_stats"])
        variables = {**variables, **state}
        trained.append(y)
    return batches, trained, module.apply(variables, batches[0], False), variables


def test_batch_norm_s_own_definition():
    batches, trained, evaluated, variables = twenty_steps()
    mean, var = np.zeros(5), np.ones(5)
    for x, y in zip(batches, trained, strict=True):
        want = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5) * np.linspace(0.5, 2, 5) + np.linspace(-1, 1, 5)
        np.testing.assert_allclose(y, want, atol=1e-5)
        mean, var = 0.9 * mean + 0.1 * x.mean(0), 0.9 * var + 0.1 * x.var(0, ddof=1)
    np.testing.assert_allclose(variables["batch_stats"]["var"], var, rtol=1e-5)
    want = (batches[0] - mean) / np.sqrt(var + 1e-5) * np.linspace(0.5, 2, 5) + np.linspace(-1, 1, 5)
    np.testing.assert_allclose(evaluated, want, atol=1e-5)


@pytest.mark.reference
def test_batch_norm_is_torch_s():
    """In training and in evaluation, to 1e-5 over 20 steps."""
    import torch

    batches, trained, evaluated, _ = twenty_steps()
    theirs = torch.nn.BatchNorm1d(5)
    with torch.no_grad():
        theirs.weight.copy_(torch.linspace(0.5, 2, 5))
        theirs.bias.copy_(torch.linspace(-1, 1, 5))
        worst = max(
            float(np.abs(theirs(torch.tensor(x)).numpy() - np.asarray(y)).max())
            for x, y in zip(batches, trained, strict=True)
        )
        theirs.eval()
        worst = max(worst, float(np.abs(theirs(torch.tensor(batches[0])).numpy() - np.asarray(evaluated)).max()))
    print("largest difference", worst)
    assert worst < 1e-5


@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm"])
def test_other_norms_have_no_state(norm):
    cfg = mlp.get_config()
    cfg.update(dict(norm=norm, width=8))
    variables = mlp.Model(FrozenConfigDict(cfg)).init(jax.random.key(0), jnp.ones((2, 64)))
    assert set(variables) == {"params"} and "first_norm" in variables["params"]


# ------------------------------------------------------------------------ class weights, smoothing


def test_a_class_that_weighs_more_is_found_more_often(table, tmp_path):
    """Of benign tumours (357 of 569) fewer are called malignant as malignant ones weigh less, and the reverse."""
    called = []
    for weights in ((10.0, 1.0), (1.0, 10.0)):
        cfg = table(
            "breast_cancer", ("model.depth", 0), ("model.class_weights", weights), ("train.steps", 30),
            ("train.batch_size", 64), ("optim.lr", 0.01),
        )  # fmt: skip
        _, params, _ = run(cfg, tmp_path)
        x, _ = arrays(cfg, "validation")
        called.append(float(np.argmax(x @ params["last"] + params["last_bias"], axis=1).mean()))
    assert called[0] + 0.04 < called[1]


@pytest.mark.slow
def test_smoothing_keeps_predictions_from_certainty(table, tmp_path):
    def confidence(smoothing):
        cfg = table(
            "wine", ("model.smoothing", smoothing), ("train.steps", 80), ("train.batch_size", 64), ("optim.lr", 0.02)
        )
        _, params, _ = run(cfg, tmp_path)
        model = mlp.Model(budget.finalize(cfg).model)
        logits = model.apply({"params": params}, jnp.asarray(arrays(cfg, "train")[0], jnp.float32))
        return float(jax.nn.softmax(logits).max(axis=1).mean())

    assert confidence(0.3) < 0.9 < 0.98 < confidence(0.0)


# -------------------------------------------------------------------------- early stopping, folds


def test_early_stopping_ends_an_overfitting_run(table, tmp_path):
    """A wide network on 60 patients: the held-out error falls, then rises; the run ends soon after its least."""
    more = [
        ("model.objective", "regress"), ("model.width", 256), ("data.examples", 60), ("optim.lr", 0.003),
        ("train.batch_size", 60), ("train.steps", 400), ("train.patience_steps", 10),
    ]  # fmt: skip
    whole, _, _ = run(table("diabetes", *more), tmp_path)
    cfg = table("diabetes", *more, ("train.patience", 3))
    stopped, _, rows = run(cfg, tmp_path)
    checks = [(r["step"], r["eval_loss"]) for r in rows if "eval_loss" in r]
    assert stopped["status"] == "done" and stopped["steps"] == checks[-1][0] < 200
    assert stopped["best_step"] == stopped["steps"] - 30 == min(checks, key=lambda c: c[1])[0]
    assert stopped["loss"] < 0.9 * whole["loss"] and stopped["best_loss"] <= stopped["loss"]
    assert stopped["tokens"] == 60 * stopped["steps"]
    assert stopped["flops"] == pytest.approx(whole["flops"] * stopped["steps"] / 400)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Stop, "at", lambda self, step: step == stopped["best_step"] + 15)
        with pytest.raises(errors.Retry):
            session.train(cfg, str(tmp_path / "cut"), quiet=True)
    again, _, same = run(cfg, tmp_path / "cut")
    assert again["loss"] == stopped["loss"] and same == rows
    (tmp_path / stopped["run_id"] / "result.json").unlink()  # killed between its last checkpoint and its result
    after, _, same = run(cfg, tmp_path)
    assert (after["steps"], after["loss"]) == (stopped["steps"], stopped["loss"]) and same == rows


def test_folds_of_a_sweep_hold_each_example_out_once(table, tmp_path):
    path = tmp_path / "folds.py"
    path.write_text(
        '"""Cross-validation."""\nfrom bigmodel import sweep\nCONFIG = "experiments/digits.py"\n'
        'def get_sweep():\n    return sweep.product({"data.folds": [4], "data.fold": range(4)})\n'
    )
    plan = sweep.make_plan(str(path), [("run.wandb", "off")])
    assert len({item.run_id for item in plan}) == 4
    held, trained = [], []
    for item in plan:
        for split, out in (("validation", held), ("train", trained)):
            source = data.source("tables").open_split(item.config.data, "", split)
            out.append({source[k]["features"].tobytes() for k in range(len(source))})
    assert sum(map(len, held)) == len(set().union(*held)) > 1700
    assert all(not a & b and len(a) + len(b) == len(set().union(*held)) for a, b in zip(held, trained, strict=True))


@pytest.mark.parametrize(
    ("name", "overrides", "said"),
    [
        ("wines", [], "did you mean 'wine'"),
        ("wine", [("data.fold", 5)], "config.data.fold=5"),
        ("wine", [("model.class_weights", (1.0,))], "one a class, and there are 3"),
        ("diabetes", [], "data 'label' is float32"),
        ("wine", [("model.depth", -1)], "config.model.depth=-1"),
        ("wine", [("train.patience_steps", 0)], "config.train.patience_steps=0"),
        ("wine", [("optim.l1", -1.0)], "config.optim.l1=-1.0"),
    ],
)
def test_impossible_ones_are_refused(table, tmp_path, name, overrides, said):
    with pytest.raises(UsageError, match=said):
        session.train(table(name, ("train.steps", 5), *overrides), str(tmp_path / "runs"), quiet=True)
    assert not (tmp_path / "runs").exists()


def test_penalties_leave_vectors_alone():
    cfg = optim.get_config()
    cfg.update(dict(name="sgd", momentum=0.0, clip=0.0, weight_decay=0.0, l1=0.5, l2=0.1))
    params = {"layer": {"w": jnp.array([[2.0, -3.0]]), "bias": jnp.array([4.0])}}
    tx = optim.build(cfg, ())
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    np.testing.assert_allclose(updates["layer"]["w"], [[-0.7, 0.8]], rtol=1e-6)
    np.testing.assert_allclose(updates["layer"]["bias"], 0.0)


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_momentum_remembers_the_last_gradient(momentum):
    cfg = optim.get_config()
    cfg.update(dict(name="sgd", momentum=momentum, clip=0.0, weight_decay=0.0))
    params = {"w": jnp.zeros((1, 2))}
    gradient = {"w": jnp.array([[1.0, -2.0]])}
    tx = optim.build(cfg, ())
    state = tx.init(params)
    for past in (1.0, 1.0 + momentum, 1.0 + momentum + momentum**2):
        updates, state = tx.update(gradient, state, params)
        np.testing.assert_allclose(updates["w"], -past * gradient["w"], rtol=1e-6)
