"""What changes only how a program is carried out: kernels, a loss in parts, layouts. Same numbers, less memory."""

import re

import families
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel import models
from bigmodel.errors import UsageError
from bigmodel.models import attention, losses
from bigmodel.ops import sharding

ALONE = sharding.make_mesh(sharding.ALONE)


def attending(name, causal, K):
    """Values and gradients of attention by a kernel."""
    q, k, v = jax.random.normal(jax.random.key(0), (3, 1, 2, 256, K))
    view = attention.View(causal=causal)

    def total(q, k, v):
        out = attention.attend(q, k, v, view)
        return jnp.sum(out * jnp.cos(jnp.arange(out.size).reshape(out.shape))), out

    with sharding.use(ALONE, sharding.Execution(attention=name)):
        grads, out = jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))(q, k, v)
    return [out, *grads]


@pytest.mark.parametrize(("causal", "K"), [(True, 64), (False, 128)])
def test_the_kernel_of_a_tpu_attends_as_the_plain_path(causal, K):
    """Interpreted; test_accelerator.py has the GPU's."""
    for a, b in zip(attending("splash", causal, K), attending("plain", causal, K), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_a_kernel_that_cannot_is_named():
    q = jnp.zeros((1, 2, 6, 8))
    with (
        sharding.use(ALONE, sharding.Execution(attention="splash")),
        pytest.raises(UsageError, match="can't take 6 queries"),
    ):
        attention.attend(q, q, q)


@pytest.mark.parametrize("view", [dict(prefix_B=jnp.array([2])), dict(keys_BS=jnp.ones((1, 128), bool))])
def test_a_kernel_asked_for_is_not_replaced_unsaid(view):
    """What is seen isn't causality's alone: auto goes the plain way there, and a named kernel is refused."""
    q = jnp.ones((1, 2, 128, 128))
    for name in ("splash", "cudnn"):
        with (
            sharding.use(ALONE, sharding.Execution(attention=name)),
            pytest.raises(UsageError, match=f"'{name}' can't take attention with padding, a prefix .* auto uses it"),
        ):
            attention.attend(q, q, q, attention.View(**view))
    with sharding.use(ALONE, sharding.Execution(attention="splash")):  # a step of decoding has no kernel to ask for
        assert attention.attend(q[:, :, :1], q, q, attention.View(start=jnp.int32(5))).shape == (1, 2, 1, 128)


def plain_and_chunked(V, chunks, z_loss=1e-3):
    B, L, E = 4, 16, 24
    rng = np.random.default_rng(0)
    x, table = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((B, L, E), (V, E)))
    labels = jnp.asarray(rng.integers(0, V, (B, L)))
    weight = jnp.asarray(rng.integers(0, 2, (B, L)), jnp.float32)

    def plain(x, table):
        return losses.cross_entropy(jnp.einsum("BLE,VE->BLV", x, table), labels, weight, z_loss)[0]

    def chunked(x, table):
        return losses.head_cross_entropy(x, table, labels, weight, chunks, z_loss)[0]

    programs = [jax.jit(jax.value_and_grad(f, argnums=(0, 1))).lower(x, table).compile() for f in (plain, chunked)]
    return [p(x, table) for p in programs], [p.memory_analysis().temp_size_in_bytes for p in programs]


@pytest.mark.parametrize(
    ("V", "chunks", "stripes", "cut"),
    [
        (97, 1, 1, (1, 97)),
        (97, 4, 1, (4, 25)),
        (96, 8, 1, (8, 12)),
        (1000, 5, 1, (4, 256)),  # a fifth part would be empty
        (1000, 3, 2, (2, 256)),
        (1000, 2, 2, (2, 250)),  # stripes of the parameter itself
    ],
)
def test_a_loss_in_parts_is_the_plain_one(V, chunks, stripes, cut, monkeypatch):
    monkeypatch.setattr(sharding, "shards", lambda *axes: stripes if axes == ("vocab",) else 1)
    assert losses._cut(V, chunks) == cut
    (a, b), _ = plain_and_chunked(V, chunks)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("stripes", [1, 2])
def test_a_loss_in_parts_smooths_adds_a_bias_and_counts_hits(stripes, monkeypatch):
    monkeypatch.setattr(sharding, "shards", lambda *axes: stripes if axes == ("vocab",) else 1)
    B, L, E, V = 2, 8, 12, 1000
    rng = np.random.default_rng(0)
    x, table, bias = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((B, L, E), (V, E), (V,)))
    weight = jnp.asarray(rng.integers(0, 2, (B, L)), jnp.float32)
    logits = jnp.einsum("BLE,VE->BLV", x, table) + bias
    labels = jnp.argmax(logits, -1).at[:, ::2].set(jnp.asarray(rng.integers(0, V, (B, L // 2))))

    def plain(x, table, bias):
        logits = jnp.einsum("BLE,VE->BLV", x, table) + bias
        loss, metrics = losses.cross_entropy(logits, labels, weight, smoothing=0.1)
        return loss, {**metrics, "accuracy": losses.accuracy(logits, labels, weight)}

    def chunked(x, table, bias):
        return losses.head_cross_entropy(x, table, labels, weight, 3, bias_V=bias, smoothing=0.1, accuracy=True)

    a, b = (jax.value_and_grad(f, argnums=(0, 1, 2), has_aux=True)(x, table, bias) for f in (plain, chunked))
    assert 0.2 < losses.mean(a[0][1]["accuracy"]) < 0.9
    for y, z in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(y, z, rtol=1e-5, atol=1e-6)


def test_a_loss_in_parts_takes_an_eighth_of_the_memory():
    (a, b), (whole, parts) = plain_and_chunked(16384, 32)
    np.testing.assert_allclose(a[0], b[0], rtol=1e-6)
    assert parts <= whole / 8, (parts, whole)


def test_a_shape_that_does_not_divide_is_sharded_on_another_side():
    """GPT-3's vocabulary is 29 x 1733, and its 13B is 5140 wide."""
    mesh = jax.sharding.AbstractMesh((1, 1, 16, 1, 8), sharding.AXES)
    place = sharding._parameter_spec
    assert place((50257, 12288), ("vocab", "embed"), mesh) == jax.P(None, ("fsdp", "tensor"))
    assert place((40, 5140, 20560), (None, "embed", "ffn"), mesh) == jax.P(None, None, ("tensor",))
    assert place((40, 5140, 40, 128), (None, "embed", "heads", None), mesh) == jax.P(None, None, ("tensor",), ("fsdp",))
    assert place((40, 5140), (None, None), mesh) == jax.P(None, None)  # vectors stay whole


def test_a_bfloat16_table_s_gradient_is_summed_in_float32():
    """Summed in bfloat16, ones end at 256."""
    from bigmodel.models import layers

    table = jnp.ones((4, 2))
    tokens = jnp.zeros(4096, jnp.int32)
    grad = jax.grad(lambda t: jnp.sum(layers.lookup(t, tokens, "bfloat16").astype(jnp.float32)))(table)
    np.testing.assert_array_equal(grad, [[4096, 4096], [0, 0], [0, 0], [0, 0]])


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_types_of_parameters_gradients_and_moments_stay(tiny, name):
    """As they begin, after a step with micro-batches: else it would be compiled twice, and a restore would differ."""
    from bigmodel import models
    from bigmodel.run import budget, program

    cfg = tiny(
        ("train.param_dtype", "bfloat16"), ("train.grad_dtype", "bfloat16"), ("optim.state_dtype", "bfloat16"),
        ("train.microbatch", 4), ("optim.name", name), ("model.dtype", "bfloat16"), ("optim.b2", 0.95),
    )  # fmt: skip
    frozen = budget.finalize(cfg)
    built = program.build(program.static_part(frozen), ALONE)
    after, _ = jax.eval_shape(
        built.step,
        built.shapes,
        budget.batch_shapes(models.family("decoder"), frozen.model, 8),
        jax.ShapeDtypeStruct((), "float32"),
        jax.eval_shape(lambda: jax.random.key(0)),
    )
    assert jax.tree.map(lambda x: x.dtype, after) == jax.tree.map(lambda x: x.dtype, built.shapes)
    assert {x.dtype for x in jax.tree.leaves(after["params"])} == {jnp.dtype("bfloat16")}


def test_bfloat16_moments_need_a_beta_that_they_can_hold(tiny):
    from bigmodel.run import budget

    with pytest.raises(UsageError, match="would never decay"):
        budget.finalize(tiny(("optim.state_dtype", "bfloat16"), ("optim.b2", 0.999)))


@pytest.mark.parametrize(
    ("family", "keys"), [("decoder", {}), ("encdec", {}), ("bert", {}), ("recurrent", {"carry": True})]
)
def test_a_family_with_a_vocabulary_never_has_whole_logits(family, keys):
    """Where its loss is taken in parts, which leave what else a step gives as it is."""
    module = models.family(family)
    cfg = families.small(module, vocab_size=601, **keys)  # no part and no other size is of as many
    model, batch = module.Model(cfg), families.batch_of(module, cfg, 4)
    found, traced = {}, {}
    for chunks in (1, 4):
        with sharding.use(ALONE, sharding.Execution(loss_chunks=chunks)):
            variables = model.init(jax.random.key(0), *module.inputs(cfg, batch))
            rows = module.rows(cfg) if hasattr(module, "rows") else cfg.vocab_size

            def loss(variables, batch):
                scalar, (metrics, state) = module.loss(model, variables, batch, jax.random.key(1), True)
                return scalar, {k: metrics[k] for k in sorted(metrics)}, state

            lowered = jax.jit(loss).lower(variables, batch)
            traced[chunks] = re.findall(rf"tensor<\d+x\d+x{rows}xf32>", lowered.as_text())
            found[chunks] = lowered.compile()(variables, batch)
    assert traced[1] and not traced[4]
    for a, b in zip(jax.tree.leaves(found[1]), jax.tree.leaves(found[4]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)
