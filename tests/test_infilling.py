"""Blank infilling: every text comes back from its parts, and nothing sees what it must predict."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import drawn
from ml_collections import FrozenConfigDict

from bigmodel.errors import UsageError
from bigmodel.models import decoder, infilling, layers
from bigmodel.run import counts

V, L = 1000, 60
SHORT, LONG, START, END = (V + mark for mark in range(infilling.MARKS))


@pytest.fixture(scope="module")
def examples():
    text = np.random.default_rng(0).permutation(V)[:L].astype("int32")  # no token twice: each says where it was
    texts = np.tile(text, (400, 1))
    found = jax.jit(lambda x: infilling.infill(x, V, jax.random.split(jax.random.key(0), len(x))))(texts)
    return text, [infilling.Infilling(*row) for row in zip(*map(np.asarray, found), strict=True)]


def contents(example):
    """Part B's blanks: (position, tokens) of each, in B's order."""
    blanks = []
    for token, position in zip(
        example.inputs_BL[example.prefix_B :], example.positions_BL[example.prefix_B :], strict=True
    ):
        if token == START:
            blanks.append((int(position), []))
        else:
            blanks[-1][1].append(int(token))
    return blanks


def test_a_text_comes_back_from_its_parts(examples):
    text, rows = examples
    for row in rows:
        part_a = row.inputs_BL[: row.prefix_B].tolist()
        marks = [i for i, token in enumerate(part_a) if token in (SHORT, LONG)]
        blanks = contents(row)
        if LONG in part_a:
            assert len(blanks) == 1 and part_a[-1] == LONG
            held = {marks[0]: blanks[0][1]}
        else:
            held = dict(blanks)  # by the position of its mark
            assert sorted(held) == marks and len(blanks) == infilling.blanks(L)
        again = [t for i, token in enumerate(part_a) for t in held.get(i, [token])]
        np.testing.assert_array_equal(again, text[: len(again)])
        assert len(again) + 2 * len(blanks) == L, "every place of the row is used"


def test_part_b_predicts_its_next_tokens_and_ends(examples):
    for row in examples[1]:
        A = int(row.prefix_B)
        np.testing.assert_array_equal(row.weight_BL, np.arange(L) >= A)
        want = []
        for _, tokens in contents(row):
            want += [*tokens, END]
        np.testing.assert_array_equal(row.targets_BL[A:], want)


def test_positions_are_the_marks_or_go_on(examples):
    for row in examples[1]:
        A = int(row.prefix_B)
        np.testing.assert_array_equal(row.positions_BL[:A], np.arange(A))
        if row.inputs_BL[A - 1] == LONG:
            np.testing.assert_array_equal(row.positions_BL, np.arange(L))
        else:
            for place in set(row.positions_BL[A:].tolist()):
                assert row.inputs_BL[place] == SHORT


def test_shares_are_glm_130bs(examples):
    """30 % short blanks, which hide 15 %; long ones begin anywhere; blanks' order is random."""
    rows = examples[1]
    short = [row for row in rows if LONG not in row.inputs_BL]
    assert 0.23 < len(short) / len(rows) < 0.37
    hidden = np.mean([sum(len(t) for _, t in contents(r)) / (L - 2 * infilling.blanks(L)) for r in short])
    assert 0.13 < hidden < 0.18
    long = [int(row.prefix_B) for row in rows if LONG in row.inputs_BL]
    assert min(long) == 1 and max(long) == L - 2 and abs(np.mean(long) - L / 2) < 4
    ordered = [[p for p, _ in contents(row)] for row in short]
    assert 0.2 < np.mean([order == sorted(order) for order in ordered]) < 0.8  # two blanks


def section(**keys):
    cfg = decoder.get_config()
    small = dict(width=16, depth=2, num_heads=2, vocab_size=50, seq_len=24, objective="infill", position="rope")
    cfg.update({**small, **keys})
    decoder.finalize(cfg)
    return FrozenConfigDict(cfg)


@pytest.mark.parametrize("position", ["rope", "learned", "none"])
def test_nothing_sees_what_it_predicts(position):
    """A logit's gradient reaches all of part A and of part B what stands before it, the target's own token never."""
    cfg = section(position=position, tied_head=False)
    model, variables = decoder.Model(cfg), drawn(decoder, cfg)
    assert variables["params"]["embed"]["tokens"].shape == (54, 16)
    text = jnp.arange(24)[None] + 1

    @jax.jit
    @jax.grad
    def gradient(table, row, i):
        params = {**variables["params"], "embed": {**variables["params"]["embed"], "tokens": table}}
        out = model.apply({"params": params}, row.inputs_BL, False, row.prefix_B, row.positions_BL)
        return jnp.sum(out[0, i] ** 2)

    draw = jax.jit(lambda seed: infilling.infill(text, 50, jax.random.key(seed)[None]))
    for seed in range(6):
        row = draw(seed)
        inputs, A = np.asarray(row.inputs_BL[0]), int(row.prefix_B[0])
        for i in (0, A - 1, A, 23):
            seen = np.abs(gradient(variables["params"]["embed"]["tokens"], row, i)).sum(axis=1) > 0
            want = set(inputs[: max(A, i + 1)].tolist())
            assert set(np.flatnonzero(seen).tolist()) == want, (seed, i)


@pytest.mark.parametrize("position", ["rope", "learned"])
def test_positions_are_used_as_given(position):
    cfg = section(position=position)
    model, variables = decoder.Model(cfg), drawn(decoder, cfg)
    tokens, places = jnp.arange(24)[None] + 1, jnp.arange(24)[None]
    apply = jax.jit(lambda at: model.apply(variables, tokens, False, jnp.array([9]), at))
    plain = jax.jit(lambda: model.apply(variables, tokens, False, jnp.array([9])))()
    np.testing.assert_allclose(apply(places), plain, atol=1e-5)
    assert not np.allclose(apply(places // 2), plain, atol=1e-3)


def test_the_loss_is_of_part_b_alone():
    cfg = section()
    model, variables = decoder.Model(cfg), drawn(decoder, cfg)
    batch = {"tokens": np.arange(100, dtype="int32").reshape(4, 25) % 50, "weight": np.ones(4, "float32")}
    _, (metrics, _) = jax.jit(lambda: decoder.loss(model, variables, batch, jax.random.key(3), False))()
    row = jax.jit(infilling.infill, static_argnums=1)(
        batch["tokens"][:, :-1], 50, layers.example_keys(jax.random.split(jax.random.key(3))[1], jnp.arange(4))
    )
    logits = jax.jit(model.apply)(variables, row.inputs_BL, False, row.prefix_B, row.positions_BL)
    nll = -jnp.take_along_axis(jax.nn.log_softmax(logits), row.targets_BL[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(metrics["loss"][0], jnp.sum(nll * row.weight_BL), rtol=1e-5)
    assert metrics["loss"][1] == row.weight_BL.sum()


@pytest.mark.parametrize("keys", [dict(position="relative"), dict(position="relative_bias"), dict(seq_len=7)])
def test_what_infilling_cant_do_is_said(keys):
    with pytest.raises(UsageError, match="infilling"):
        section(**keys)


@pytest.mark.slow
def test_deepnorm_starts_small():
    """GLM-130B starts values, ffn and the projections back at 1 / sqrt(2 depth) of the rest."""
    cfg = section(norm_placement="deepnorm", width=64, depth=8, activation="geglu", init_std=0.02, scale_residual=False)
    blocks = jax.jit(lambda: counts.init(decoder, cfg, jax.random.key(0)))()["params"]["blocks"]
    std = {k: float(jnp.std(x)) for part in ("attention", "mlp") for k, x in blocks[part].items() if x.ndim > 2}
    small = {k for k, s in std.items() if abs(s / 0.005 - 1) < 0.05}
    assert small == {"value", "out", "up", "gate", "down"}
    assert all(abs(std[k] / 0.02 - 1) < 0.05 for k in ("query", "key"))
