"""Each operation that a platform does its own way, held to its plain reference: values and gradients."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT

from bigmodel.errors import UsageError
from bigmodel.models import recurrent
from bigmodel.ops import attention, cross_entropy, products, recurrence, remat, sharding
from bigmodel.ops.attention import View

ALONE = sharding.make_mesh(sharding.ALONE)
PLATFORM = r"""["'](cpu|gpu|tpu)["']|optimization_barrier|custom_vjp|custom_jvp|pallas"""


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def held(fast, plain, *args, atol=2e-5, execution=sharding.DEFAULT):
    """Asserts that two functions have the same values and the same gradients by all floating arguments."""
    floating = [i for i, x in enumerate(args) if any(jnp.issubdtype(y.dtype, jnp.floating) for y in jax.tree.leaves(x))]

    def run(f):
        def total(*args):
            out = f(*args)
            return sum(jnp.sum(jnp.cos(3 * leaf)) for leaf in jax.tree.leaves(out)), out

        with sharding.use(ALONE, execution):
            (_, out), grads = jax.jit(jax.value_and_grad(total, floating, has_aux=True))(*args)
        return out, grads

    a, b = run(fast), run(plain)
    assert all(jnp.abs(leaf).max() > 1e-3 for leaf in jax.tree.leaves(b))
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, atol=atol, rtol=1e-5)


@pytest.mark.parametrize("room", ["models", "data", "run", "study", "after"])
def test_no_other_room_names_a_platform(room):
    said = {
        f"{path.name}:{number}: {line.strip()}"
        for path in sorted((ROOT / "bigmodel" / room).glob("*.py"))
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(PLATFORM, line)
    }
    assert not said


# --------------------------------------------------------------------------------- attention

VIEWS = {
    "causal": (View(), 150),  # blocks don't divide it
    "all": (View(causal=False), 70),
    "prefix": (View(prefix_B=jnp.array([3, 40])), 70),
    "padding": (View(causal=False, keys_BS=jnp.arange(70) < jnp.array([[70], [9]])), 70),
}


@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("name", VIEWS)
def test_attention_is_its_reference(name, added):
    """Grouped heads, in blocks of queries, with and without added scores."""
    view, L = VIEWS[name]
    q, k, v = normal(0, 2, 4, L, 8), normal(1, 2, 2, L, 8), normal(2, 2, 2, L, 6)
    scores = normal(3, 2, 4, L, L) if added else None
    held(
        lambda *args: attention.attend(*args[:3], view, args[3] if added else None),
        lambda *args: attention.reference(*args[:3], view, args[3] if added else None),
        *((q, k, v, scores) if added else (q, k, v)),
        atol=1e-4,
    )


def test_queries_that_go_on_from_a_cache_see_what_is_before_them():
    q, k, v = normal(0, 1, 2, 3, 8), normal(1, 1, 2, 20, 8), normal(2, 1, 2, 20, 8)
    for start in (jnp.int32(5), jnp.int32(0)):
        view = View(start=start)
        held(lambda *a, v=view: attention.attend(*a, v), lambda *a, v=view: attention.reference(*a, v), q, k, v)


def test_a_loop_over_blocks_is_its_reference(monkeypatch):
    """The plain path of accelerators."""
    monkeypatch.setattr(sharding, "platform", lambda: "gpu")
    q, k, v = normal(0, 1, 2, 256, 8), normal(1, 1, 2, 256, 8), normal(2, 1, 2, 256, 8)
    plain = sharding.Execution(attention="plain")
    held(attention.attend, attention.reference, q, k, v, atol=1e-4, execution=plain)


@pytest.mark.parametrize(("causal", "K"), [(True, 64), (False, 128)])
def test_the_kernel_of_a_tpu_is_its_reference(causal, K):
    """Interpreted; test_accelerator.py has the GPU's."""
    q, k, v = (normal(i, 1, 2, 256, K) for i in range(3))
    view = View(causal=causal)
    splash = sharding.Execution(attention="splash")
    held(
        lambda *args: attention.attend(*args, view),
        lambda *args: attention.reference(*args, view),
        q, k, v, atol=1e-4, execution=splash,
    )  # fmt: skip


def test_a_kernel_that_cannot_is_named():
    q = jnp.zeros((1, 2, 6, 8))
    with (
        sharding.use(ALONE, sharding.Execution(attention="splash")),
        pytest.raises(UsageError, match="can't take 6 queries"),
    ):
        attention.attend(q, q, q)


@pytest.mark.parametrize("view", [dict(prefix_B=jnp.array([2])), dict(keys_BS=jnp.ones((1, 128), bool))])
def test_a_kernel_asked_for_is_not_replaced_silently(view):
    """Where more than causality decides what is seen, auto takes the plain path, and a named kernel is refused."""
    q = jnp.ones((1, 2, 128, 128))
    for name in ("splash", "cudnn"):
        with (
            sharding.use(ALONE, sharding.Execution(attention=name)),
            pytest.raises(UsageError, match=f"'{name}' can't take attention with padding, a prefix .* auto uses it"),
        ):
            attention.attend(q, q, q, View(**view))
    with sharding.use(ALONE, sharding.Execution(attention="splash")):  # a step of decoding has no kernel to ask for
        assert attention.attend(q[:, :, :1], q, q, View(start=jnp.int32(5))).shape == (1, 2, 1, 128)


# ------------------------------------------------------------------------------ cross entropy


@pytest.mark.parametrize("size", [1.0, 100.0])
def test_likelihood_is_its_reference(size):
    """Also where a logit's exponential overflows."""
    logits, labels = size * normal(0, 2, 5, 7), jnp.arange(10).reshape(2, 5) % 7
    held(cross_entropy.negative_log_likelihood, cross_entropy.reference, logits, labels, atol=1e-4 * size)


def parts(x, table, bias, labels, chunks, more):
    return cross_entropy.chunked_likelihood(x, table, bias, labels, chunks, more)


def whole(x, table, bias, labels, _, more):
    logits = jnp.einsum("BLE,VE->BLV", x, table)
    logits = logits if bias is None else logits + bias
    nll, log_z = cross_entropy.reference(logits, labels)
    best = jnp.max(logits, -1) == jnp.take_along_axis(logits, labels[..., None], -1)[..., 0]
    return (nll, log_z, jnp.mean(logits, -1), best.astype(jnp.float32)) if more else (nll, log_z)


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
def test_a_vocabulary_in_parts_is_the_whole_one(V, chunks, stripes, cut, monkeypatch):
    monkeypatch.setattr(sharding, "shards", lambda *axes: stripes if axes == ("vocab",) else 1)
    assert cross_entropy._cut(V, chunks) == cut
    x, table, bias = normal(0, 2, 8, 12), normal(1, V, 12), normal(2, V)
    labels = jnp.argmax(jnp.einsum("BLE,VE->BLV", x, table), -1).at[:, ::2].set(V // 2)
    for b, more in ((None, False), (bias, True)):
        held(
            lambda *a, b=b, m=more: parts(*a[:2], b if b is None else a[2], labels, chunks, m),
            lambda *a, b=b, m=more: whole(*a[:2], b if b is None else a[2], labels, chunks, m),
            *((x, table) if b is None else (x, table, bias)),
            atol=1e-4,
        )


def test_a_vocabulary_in_parts_takes_an_eighth_of_the_memory():
    x, table, labels = normal(0, 4, 16, 24), normal(1, 16384, 24), jnp.zeros((4, 16), jnp.int32)

    def memory(f):
        def loss(x, table):
            return jnp.sum(f(x, table, None, labels, 32, False)[0])

        compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(x, table).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert memory(parts) <= memory(whole) / 8


# ------------------------------------------------------------------- products, lookup, parts


@pytest.mark.parametrize("mesh_size", [1, 2])
def test_products_are_einsums(mesh_size, monkeypatch):
    """On one CPU as matrices, elsewhere with their axes kept."""
    monkeypatch.setattr(products, "one_cpu", lambda: mesh_size == 1)
    x, w, v = normal(0, 2, 5, 8), normal(1, 8, 3, 4), normal(2, 8, 3, 4)
    held(products.linear, lambda x, w: jnp.einsum("BLD,DHK->BLHK", x, w), x, w)
    held(
        lambda x, w, v: products.linears(x, [w, v]),
        lambda x, w, v: [jnp.einsum("BLD,DHK->BLHK", x, w), jnp.einsum("BLD,DHK->BLHK", x, v)],
        x, w, v,
    )  # fmt: skip


def test_lookup_is_indexing():
    tokens = jnp.array([[0, 2, 2], [1, 0, 4]])
    held(lambda t, i: products.lookup(t, i, "float32"), lambda t, i: t[i], normal(0, 5, 3), tokens)


def test_a_bfloat16_table_s_gradient_is_summed_in_float32():
    """Summed in bfloat16, ones end at 256."""
    table, tokens = jnp.ones((4, 2)), jnp.zeros(4096, jnp.int32)
    grad = jax.grad(lambda t: jnp.sum(products.lookup(t, tokens, "bfloat16").astype(jnp.float32)))(table)
    np.testing.assert_array_equal(grad, [[4096, 4096], [0, 0], [0, 0], [0, 0]])


def test_a_sum_of_parts_is_the_sum():
    x, w = normal(0, 3, 8), normal(1, 4, 8, 8)
    held(
        lambda x, w: remat.sum_of_parts(lambda part: jnp.tanh(x @ part), x, w),
        lambda x, w: sum(jnp.tanh(x @ w[i]) for i in range(4)),
        x, w,
    )  # fmt: skip


# ---------------------------------------------------------------------------------- recurrence


@pytest.mark.parametrize("cell", recurrent.GATES)
def test_a_recurrence_has_the_derived_gradient(cell):
    """Of weights, inputs and the state that a window starts from; that of the weights is written out."""
    U, D, B, L = recurrent.GATES[cell], 8, 3, 7
    state = {"hidden": normal(2, B, D), "cell": normal(3, B, D)} if cell == "lstm" else {"hidden": normal(2, B, D)}
    step = recurrent.CELLS[cell]
    held(
        lambda state, x, w: recurrence.recur(step, state, x, w),
        lambda state, x, w: recurrence.reference(step, state, x, w),
        state, normal(0, L, B, U, D), normal(1, D, U, D),
    )  # fmt: skip
