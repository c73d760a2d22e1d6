"""LSTM and RNN: torch's numbers, a carried state, the order in which windows are read."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import drawn
from ml_collections import FrozenConfigDict

from bigmodel import config, data, errors
from bigmodel.data import loader
from bigmodel.errors import UsageError
from bigmodel.models import recurrent
from bigmodel.run import budget, counts, loop, record, session, starts

SMALL = dict(width=16, depth=2, vocab_size=50, seq_len=12)


def section(**overrides):
    cfg = recurrent.get_config()
    cfg.update({**SMALL, **overrides})
    recurrent.finalize(cfg)
    return FrozenConfigDict(cfg)


@pytest.mark.parametrize("cell", recurrent.GATES)
def test_states_passed_on_are_one_long_window(cell):
    """Steps with a cache, of unequal lengths, equal the whole; and no later token is seen."""
    cfg = section(cell=cell)
    model, variables = recurrent.Model(cfg), drawn(recurrent, cfg, 0.3)
    tokens = jax.random.randint(jax.random.key(0), (4, 12), 0, 50)
    full = jax.jit(lambda t: model.apply(variables, t))
    cache, parts = recurrent.init_cache(cfg, 4), []
    step = jax.jit(lambda t, c: model.apply(variables, t, c, method=model.step))
    for piece in (tokens[:, :5], tokens[:, 5:6], tokens[:, 6:]):
        logits, cache = step(piece, cache)
        parts.append(logits)
    np.testing.assert_allclose(jnp.concatenate(parts, axis=1), full(tokens), atol=1e-5)
    changed = full(tokens.at[:, 6].set(3))
    np.testing.assert_array_equal(changed[:, :6], full(tokens)[:, :6])
    assert (jnp.abs(changed[:, 6:] - full(tokens)[:, 6:]).max(axis=(1, 2)) > 1e-4).all()


@pytest.fixture
def carried(data_dir):
    """A tiny LSTM that carries its state, on real text."""

    def make(*overrides):
        cfg = budget.base("recurrent", "text")
        pairs = [
            ("model.width", 16), ("model.depth", 1), ("model.carry", True), ("data.name", "speech"),
            ("data.seq_len", 32), ("data.epochs", 99), ("train.batch_size", 4), ("train.steps", 6),
            ("train.eval_examples", 8), ("optim.clip", 0.0), ("run.wandb", "off"),
            ("run.data_dir", data_dir), *overrides,
        ]  # fmt: skip
        config.override_all(cfg, pairs)
        return cfg

    return make


def test_a_carried_state_is_that_of_the_text_before(carried, tmp_path):
    """At a rate of nothing, step i's loss is that of window i after all before it, of each row's part of the text."""
    cfg = carried(("optim.lr", 1e-30))
    result = session.train(cfg, str(tmp_path), quiet=True)
    rows = record.read_rows(tmp_path / result["run_id"] / "metrics.jsonl")
    frozen = budget.finalize(cfg)
    examples = data.source("text").open_split(frozen.data, frozen.run.data_dir, "train")
    part = len(examples) // 4
    variables = counts.init(recurrent, frozen.model, jax.random.fold_in(jax.random.key(0), 0), 4)
    model = recurrent.Model(frozen.model)
    text = np.stack([np.concatenate([examples[r * part + i]["tokens"][:-1] for i in range(6)]) for r in range(4)])
    last = np.stack([examples[r * part + 5]["tokens"][-1] for r in range(4)])
    whole = jax.jit(lambda text, cache: model.apply({"params": variables["params"]}, text, cache, method=model.step))
    long, _ = whole(text, recurrent.init_cache(frozen.model, 4))
    targets = np.concatenate([text[:, 1:], last[:, None]], axis=1)
    nll = -jnp.take_along_axis(jax.nn.log_softmax(long), targets[..., None], axis=2)[..., 0]
    want = nll.reshape(4, 6, 32).mean(axis=(0, 2))
    np.testing.assert_allclose([r["loss"] for r in rows if "loss" in r], want, rtol=1e-5)
    alone = jax.jit(model.apply)({"params": variables["params"]}, text.reshape(24, 32))
    assert (
        np.abs(np.asarray(alone.reshape(4, 6, 32, -1)[:, 1:]) - np.asarray(long.reshape(4, 6, 32, -1)[:, 1:])).max()
        > 1e-3
    )


def test_a_carried_state_resumes_bitwise(carried, tmp_path, monkeypatch):
    cfg = carried(("optim.lr", 0.01))
    whole = session.train(cfg, str(tmp_path / "whole"), quiet=True)
    with monkeypatch.context() as patch:
        patch.setattr(loop.Stop, "at", lambda self, step: step == 3)
        with pytest.raises(errors.Retry):
            session.train(cfg, str(tmp_path / "cut"), quiet=True)
    assert session.train(cfg, str(tmp_path / "cut"), quiet=True)["loss"] == whole["loss"]
    read = [record.read_rows(tmp_path / part / whole["run_id"] / "metrics.jsonl") for part in ("whole", "cut")]
    assert read[0] == read[1]


def test_rows_in_order_are_parts_of_the_data():
    batches = loader.TrainBatches([{"k": np.array(k)} for k in range(14)], 3, 0, 9, (1, 3), in_order=True)
    found = np.stack([batches[i]["k"] for i in range(6)])
    np.testing.assert_array_equal(found, [[4, 8], [5, 9], [6, 10], [7, 11], [4, 8], [5, 9]])


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([("model.cell", "lsmt")], "did you mean 'lstm'"),
        ([("train.microbatch", 2)], "depends on the whole batch, which is never cut"),
        ([("train.batch_size", 100_000)], "with model.carry each row reads a part of the data"),
    ],
)
def test_impossible_ones_are_refused(carried, overrides, said):
    with pytest.raises(UsageError, match=said):
        budget.finalize(carried(*overrides))


@pytest.mark.reference
@pytest.mark.parametrize("cell", recurrent.GATES)
def test_torch_s_numbers(cell):
    """Random weights of torch's stack in ours."""
    import torch

    torch.manual_seed(0)
    kind = {"lstm": torch.nn.LSTM, "rnn": torch.nn.RNN}[cell]
    embedding, stack, head = torch.nn.Embedding(50, 16), kind(16, 16, 2, batch_first=True), torch.nn.Linear(16, 50)
    cfg = section(cell=cell, forget_bias=0.0)
    state = {f"embedding.{k}": v for k, v in embedding.state_dict().items()}
    state |= {f"lstm.{k}": v for k, v in stack.state_dict().items()}
    state |= {f"head.{k}": v for k, v in head.state_dict().items()}
    params, _ = starts.convert("recurrent", cfg, {k: v.detach().numpy() for k, v in state.items()})
    tokens = np.random.default_rng(0).integers(0, 50, (3, 40))
    with torch.no_grad():
        want = head(stack(embedding(torch.tensor(tokens)))[0]).numpy()
    got = recurrent.Model(cfg).apply({"params": params}, tokens)
    print(cell, "largest difference", np.abs(got - want).max(), "of", np.abs(want).max())
    np.testing.assert_allclose(got, want, atol=1e-4)
