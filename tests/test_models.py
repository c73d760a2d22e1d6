"""Every family by the same tests, then the decoder's own."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import drawn
from families import batch_of, small
from ml_collections import FrozenConfigDict

from bigmodel import models, tree
from bigmodel.errors import UsageError
from bigmodel.models import decoder, losses, positions
from bigmodel.ops import attention as attend_ops
from bigmodel.ops import sharding
from bigmodel.run import counts

ALONE = sharding.make_mesh(sharding.ALONE)

FAMILIES = models.names()
MORE = ("bert", "encdec", "recurrent")  # where a test of two families says most


def make(family, **overrides):
    """(module, frozen cfg, model, variables, batch of 4 drawn from the family's spec)"""
    module = models.family(family)
    cfg = small(module, **overrides)
    batch = batch_of(module, cfg, 4)
    return module, cfg, module.Model(cfg), drawn(module, cfg), batch


def loss_of(family_module, model, batch):
    return lambda v: family_module.loss(model, v, batch, jax.random.key(1), False)[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_falls_on_a_fixed_batch(family):
    module, _, model, variables, batch = make(family)
    # From drawn weights pairs are all alike, and take a while to part.
    rate, steps = (2e-3, 60) if family == "clip" else (2e-2, 30)
    tx = optax.adam(rate)
    opt = tx.init(variables)

    @jax.jit
    def step(variables, opt):
        loss, grads = jax.value_and_grad(loss_of(module, model, batch))(variables)
        updates, opt = tx.update(grads, opt)
        return optax.apply_updates(variables, updates), opt, loss, optax.global_norm(grads)

    losses = []
    for _ in range(steps):
        variables, opt, loss, norm = step(variables, opt)
        assert jnp.isfinite(norm)
        losses.append(float(loss))
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_has_a_rule(family):
    module, _, _, variables, _ = make(family)
    logical = tree.match_all(module.RULES, variables["params"])
    for path, names, x in zip(
        tree.paths(variables["params"]),
        jax.tree.leaves(logical, is_leaf=lambda x: isinstance(x, tuple)),
        jax.tree.leaves(variables["params"]),
        strict=True,
    ):
        assert len(names) == x.ndim, path
        assert set(names) <= sharding.LOGICAL.keys(), path


BIG = dict(width=256, num_heads=4, seq_len=128, vocab_size=1024, execution="unrolled")
BIG |= dict(image_height=128, image_width=128)  # XLA leaves out products with the border's zeros
BIG |= dict(vision=dict(width=256, num_heads=4, patch=16))


@pytest.mark.parametrize(
    ("family", "overrides"),
    [
        *((family, BIG) for family in FAMILIES),
        ("decoder", {**BIG, "num_kv_heads": 2, "activation": "swiglu", "norm": "rmsnorm", "position": "rope"}),
        ("decoder", {**BIG, "position": "relative", "bias": False}),
        ("decoder", {**BIG, "embed_dim": 128, "norm_placement": "post", "activation": "relu"}),
        ("bert", {**BIG, "objective": "masked_next"}),
        ("bert", {**BIG, "objective": "classify"}),
        ("bert", {**BIG, "objective": "tag"}),
        ("encdec", {**BIG, "source_len": 64}),
        ("encdec", {**BIG, "objective": "prefix", "decoder_depth": 1}),
        ("encdec", {**BIG, "objective": "span", "value_dim": 32}),
    ],
)
def test_flops_are_within_2_percent_of_xlas_count(family, overrides, monkeypatch):
    """Where attention takes all L^2 products, in one block; XLA also counts what is no matrix product."""
    monkeypatch.setattr(attend_ops, "QUERIES", 10**6)
    scan = jax.lax.scan  # of a loop XLA counts one turn
    monkeypatch.setattr(jax.lax, "scan", lambda *args, **kwargs: scan(*args, **{**kwargs, "unroll": True}))
    module, cfg, model, variables, batch = make(family, **overrides)

    def counted(size):
        part = {k: v[:size] for k, v in batch.items()}
        forward = jax.jit(lambda v: model.apply(v, *module.inputs(cfg, part)))
        return forward.lower(variables).cost_analysis()["flops"]

    # What a batch shares, as the projection of relative positions, is no example's.
    assert module.flops(cfg) == pytest.approx((counted(4) - counted(2)) / 2, rel=0.02)


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_rows_of_weight_0_change_nothing(family):
    module, _, model, variables, batch = make(family)
    half = {k: v[:2] for k, v in batch.items()}
    padded = {**batch, "weight": np.array([1, 1, 0, 0], np.float32)}
    a, b = (jax.jit(loss_of(module, model, some))(variables) for some in (half, padded))
    np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.parametrize("name", [n for f in FAMILIES for n in models.family(f).PUBLISHED])
def test_published_sizes(name):
    family, row = models.published(name)
    cfg = models.family(family).get_config()
    cfg.update(row["model"])
    models.family(family).finalize(cfg)
    total = counts.counts(family, FrozenConfigDict(cfg))[0]
    if "params" in row:
        assert total == row["params"]
    if "printed" in row:  # rounded in the paper
        printed = float(row["printed"][:-1]) * {"M": 1e6, "B": 1e9}[row["printed"][-1]]
        assert total == pytest.approx(printed, rel=row.get("tolerance", 0.02))


def test_kaplan_count_is_12_depth_width_squared():
    cfg = decoder.get_config()
    decoder.finalize(cfg)
    assert counts.counts("decoder", FrozenConfigDict(cfg))[2] == 12 * 12 * 768**2


# ------------------------------------------------------------------------------ the decoder

VARIANTS = {
    "gpt": {},
    "llama": dict(position="rope", norm="rmsnorm", activation="swiglu", num_kv_heads=1, bias=False, tied_head=False),
    "qk_norm_post": dict(qk_norm=True, norm_placement="post", activation="geglu", position="none"),
    "chinchilla": dict(position="relative", norm="rmsnorm", bias=False, head_dim=6),
    "relative_grouped": dict(position="relative", num_heads=4, num_kv_heads=2),
    "opt_350m": dict(embed_dim=6, norm_placement="post", activation="relu", position_offset=2),
    "factorised_untied": dict(embed_dim=20, tied_head=False),
    "lamda": dict(position="relative_bias", norm="rmsnorm", bias=False, activation="geglu", head_dim=6),
    "glm": dict(position="rope", norm_placement="deepnorm", activation="geglu"),
    "completep": dict(parametrization="completep", base_width=8, base_depth=1, base_num_heads=2, position="rope"),
}


QUICK = ("gpt", "llama", "chinchilla", "lamda")
MARKED = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in VARIANTS]


@pytest.mark.parametrize("variant", MARKED)
def test_causal_by_gradient(variant):
    """Logits at position i depend on the embeddings of tokens 0..i and of no later one."""
    _, cfg, model, variables, _ = make("decoder", **VARIANTS[variant])
    tokens = jnp.arange(cfg.seq_len)[None] + 1  # distinct, so that a table row is a position

    @jax.jit
    @jax.grad
    def gradient(table, i):
        params = {**variables["params"], "embed": {**variables["params"]["embed"], "tokens": table}}
        x = model.clone(cfg=FrozenConfigDict({**cfg.to_dict(), "tied_head": False}))
        # Not of equal rows: what a LayerNorm returns sums to zero.
        params.setdefault("head", jax.random.normal(jax.random.key(2), (cfg.embed_dim, cfg.vocab_size)))
        return jnp.sum(x.apply({"params": params}, tokens)[0, i] * jnp.arange(cfg.vocab_size))

    for i in (0, 5, cfg.seq_len - 1):
        grad = gradient(variables["params"]["embed"]["tokens"], i)
        seen = np.abs(np.asarray(grad)).sum(axis=1)[1 : cfg.seq_len + 1] > 0
        assert seen[: i + 1].all() and not seen[i + 1 :].any()


@pytest.mark.parametrize("variant", MARKED)
def test_cached_steps_equal_the_full_forward(variant):
    _, cfg, model, variables, batch = make("decoder", **VARIANTS[variant])
    tokens = batch["tokens"][:, :-1]
    full = jax.jit(model.apply)(variables, tokens)
    cache = decoder.init_cache(cfg, 4)
    step = jax.jit(lambda t, c: model.apply(variables, t, c, method=model.step))
    parts = []
    for piece in (tokens[:, :5], *(tokens[:, i : i + 1] for i in range(5, cfg.seq_len))):
        logits, cache = step(piece, cache)
        parts.append(logits)
    np.testing.assert_allclose(jnp.concatenate(parts, axis=1), full, atol=2e-5)


@pytest.mark.parametrize("change", [("scan", "none"), ("unrolled", "full"), ("scan", "full"), ("scan", "dots")])
def test_execution_doesn_t_change_the_numbers(change):
    execution, remat = change
    module, _, model, variables, batch = make("decoder", execution="unrolled")
    _, _, other, _, _ = make("decoder", execution=execution)
    a, ga = jax.jit(jax.value_and_grad(loss_of(module, model, batch)))(variables)
    with sharding.use(ALONE, sharding.Execution(remat=remat)):
        b, gb = jax.jit(jax.value_and_grad(loss_of(module, other, batch)))(variables)
    np.testing.assert_allclose(a, b, rtol=1e-6)
    for path, x, y in zip(tree.paths(ga), jax.tree.leaves(ga), jax.tree.leaves(gb), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-6, err_msg=path)


def test_remat_saves_memory():
    """Else `remat` does nothing and the test above passes for nothing."""
    sizes = {}
    for remat in ("none", "dots", "full"):
        module, _, model, variables, batch = make("decoder", depth=6, width=64, seq_len=64, execution="scan")
        with sharding.use(ALONE, sharding.Execution(remat=remat)):
            compiled = jax.jit(jax.grad(loss_of(module, model, batch))).lower(variables).compile()
        sizes[remat] = compiled.memory_analysis().temp_size_in_bytes
    assert sizes["full"] < 0.8 * sizes["dots"] < 0.8 * sizes["none"]


def test_cross_entropy_s_gradient_is_the_derived_one():
    """Also of z-loss, with weights, and with logits whose exponential overflows."""
    logits = jax.random.normal(jax.random.key(0), (2, 5, 7)) * 100
    labels = jnp.arange(10).reshape(2, 5) % 7
    weight = jnp.array([[1.0, 0.0, 2.0, 1.0, 1.0], [0.5, 1.0, 1.0, 0.0, 1.0]])

    def plain(x):
        log_z = jax.nn.logsumexp(x, axis=-1)
        nll = log_z - jnp.take_along_axis(x, labels[..., None], axis=-1)[..., 0]
        return jnp.sum((nll + 0.01 * log_z**2) * weight) / weight.sum()

    value, grad = jax.value_and_grad(lambda x: losses.cross_entropy(x, labels, weight, 0.01)[0])(logits)
    np.testing.assert_allclose(value, plain(logits), rtol=1e-6)
    np.testing.assert_allclose(grad, jax.grad(plain)(logits), atol=1e-6)


def test_a_prefix_is_seen_whole_and_not_predicted():
    """Logits inside the prefix see all of it and nothing after; the loss counts what follows it alone."""
    _, _, model, variables, batch = make("decoder", objective="prefix", position="rope", tied_head=False, seq_len=12)
    tokens, prefix = batch["tokens"][:1, :-1], jnp.array([5])

    @jax.jit
    @jax.grad
    def gradient(table, i):
        params = {**variables["params"], "embed": {"tokens": table}}
        return jnp.sum(model.apply({"params": params}, jnp.arange(12)[None] + 1, False, prefix)[0, i] ** 2)

    for i, last in ((0, 5), (3, 5), (5, 6), (9, 10)):
        seen = np.abs(gradient(variables["params"]["embed"]["tokens"], i)).sum(axis=1)[1:13] > 0
        assert seen[:last].all() and not seen[last:].any(), i
    losses_at = {}
    loss = jax.jit(lambda key: decoder.loss(model, variables, batch, key, True))
    for seed in range(40):
        value, (metrics, _) = loss(jax.random.key(seed))
        losses_at[float(metrics["loss"][1])] = float(value)
    assert min(losses_at) >= 4 and max(losses_at) <= 4 * 11 and len(losses_at) > 5
    assert not np.allclose(model.apply(variables, tokens), model.apply(variables, tokens, False, prefix), atol=1e-4)


def test_relative_bias_has_t5s_buckets():
    """One distance each up to 15, then logarithmically to 128 (Raffel et al. 2020): distances that share the last."""
    table = jnp.arange(32.0)[:, None]
    bias = positions.relative_bias(table, 200, 200, 0)[0]
    column = np.asarray(bias[:, 0])  # the query's distance from key 0
    np.testing.assert_array_equal(column[:16], np.arange(16))
    assert column[16] == 16 and column[127] == 31 and (column[128:] == 31).all() and (np.diff(column) >= 0).all()
    np.testing.assert_array_equal(positions.relative_bias(table, 1, 200, 150)[0, 0, :151], bias[150, :151])


def test_rope_depends_on_distance_alone():
    x = jax.random.normal(jax.random.key(0), (1, 1, 6, 8))
    y = jax.random.normal(jax.random.key(1), (1, 1, 6, 8))

    def scores(start):
        at = start + jnp.arange(6)
        return jnp.einsum("BHLK,BHSK->BHLS", positions.rope(x, at, 100.0), positions.rope(y, at, 100.0))

    np.testing.assert_allclose(scores(0), scores(7), atol=1e-5)
    assert not np.allclose(scores(0), jnp.einsum("BHLK,BHSK->BHLS", x, y), atol=1e-2)


def test_relative_scores_are_the_products_with_each_distance():
    """Against Dai et al. 2019's definition, one (query, key) pair at a time; whatever the position of the query."""
    L, S, K, D = 3, 7, 4, 10
    q = jax.random.normal(jax.random.key(0), (2, 5, L, K))
    w = jax.random.normal(jax.random.key(1), (D, 5, K))
    for start in (0, 2, S - L):
        found = positions.relative_scores(q, w, S, start)
        for i in range(L):
            for j in range(start + i + 1):
                r = positions.sinusoids(jnp.array([start + i - j]), D)[0]
                want = jnp.einsum("BHK,DHK,D->BH", q[:, :, i], w, r) / K**0.5
                np.testing.assert_allclose(found[:, :, i, j], want, atol=1e-5)


def test_position_offset_skips_rows_of_the_table():
    _, cfg, model, variables, batch = make("decoder", position_offset=2)
    table = variables["params"]["embed"]["positions"]
    assert table.shape[0] == cfg.seq_len + 2
    grad = jax.jit(jax.grad(lambda v: model.apply(v, batch["tokens"][:, :-1]).sum() ** 2))(variables)
    used = np.abs(np.asarray(grad["params"]["embed"]["positions"])).sum(axis=1) > 0
    assert not used[:2].any() and used[2:].all()


def test_bfloat16_computes_in_bfloat16_with_float32_parameters():
    module, cfg, model, variables, batch = make("decoder", dtype="bfloat16")
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    logits = model.apply(variables, *module.inputs(cfg, batch))
    assert logits.dtype == jnp.bfloat16
    _, _, exact, _, _ = make("decoder")
    np.testing.assert_allclose(
        loss_of(module, model, batch)(variables), loss_of(module, exact, batch)(variables), rtol=0.02
    )


@pytest.mark.parametrize("family", ["decoder", "mlp", *(pytest.param(f, marks=pytest.mark.slow) for f in MORE)])
def test_dropout_is_random_in_training_and_absent_in_evaluation(family):
    found = {}
    for dropout in (0.5, 0.0):
        module, _, model, variables, batch = make(family, dropout=dropout)
        for seed, train in ((0, True), (1, True), (0, False)):
            scalar = module.loss(model, variables, batch, jax.random.key(seed), train)[0]
            found[dropout, seed, train] = float(scalar)
    assert found[0.5, 0, True] != found[0.0, 0, True] and found[0.5, 1, True] != found[0.5, 0, True]
    assert found[0.5, 0, False] == found[0.0, 0, False]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (dict(num_heads=3), "num_heads=3 doesn't divide width=16"),
        (dict(num_heads=4, num_kv_heads=3), "num_kv_heads=3"),
        (dict(activation="gleu"), "did you mean 'gelu'"),
        (dict(position="rope", head_dim=5), "rope needs an even"),
        (dict(depth=0), "depth=0"),
        (dict(dropout=1.0), "dropout=1.0"),
        (dict(position="relative", width=15, num_heads=3), "width=15: relative positions need an even"),
        (dict(position="rope", position_offset=2), "only learned positions have a table"),
        (dict(embed_dim=-1), "embed_dim=-1"),
    ],
)
def test_impossible_shapes_are_refused(overrides, said):
    with pytest.raises(UsageError, match=said):
        make("decoder", **overrides)
