"""What changes only how a program is carried out: kernels, a loss in parts, layouts. Same numbers, less memory."""

import re

import families
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel import models
from bigmodel.errors import UsageError
from bigmodel.models import losses
from bigmodel.ops import sharding

ALONE = sharding.make_mesh(sharding.ALONE)


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


def test_a_shape_that_does_not_divide_is_sharded_on_another_side():
    """GPT-3's vocabulary is 29 x 1733, and its 13B is 5140 wide."""
    mesh = jax.sharding.AbstractMesh((1, 1, 16, 1, 8), sharding.AXES)
    place = sharding.parameter_spec
    assert place((50257, 12288), ("vocab", "embed"), mesh) == jax.P(None, ("fsdp", "tensor"))
    assert place((40, 5140, 20560), (None, "embed", "ffn"), mesh) == jax.P(None, None, ("tensor",))
    assert place((40, 5140, 40, 128), (None, "embed", "heads", None), mesh) == jax.P(None, None, ("tensor",), ("fsdp",))
    assert place((40, 5140), (None, None), mesh) == jax.P(None, None)  # vectors stay whole


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_types_of_parameters_gradients_and_moments_stay(tiny, name):
    """As they begin, after a step with micro-batches: else it would be compiled twice, and a restore would differ."""
    from bigmodel import models
    from bigmodel.run import budget, counts, program

    cfg = tiny(
        ("train.param_dtype", "bfloat16"), ("train.grad_dtype", "bfloat16"), ("optim.state_dtype", "bfloat16"),
        ("train.microbatch", 4), ("optim.name", name), ("model.dtype", "bfloat16"), ("optim.b2", 0.95),
    )  # fmt: skip
    frozen = budget.finalize(cfg)
    built = program.build(program.static_part(frozen), ALONE)
    after, _ = jax.eval_shape(
        built.step,
        built.shapes,
        counts.batch_shapes(models.family("decoder"), frozen.model, 8),
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
    ("family", "keys"),
    [
        ("decoder", {}),
        ("recurrent", {"carry": True}),
        *(pytest.param(family, {}, marks=pytest.mark.slow) for family in ("encdec", "bert")),
    ],
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
