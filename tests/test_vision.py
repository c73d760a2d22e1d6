"""ResNet, Inception and ViT: published counts, and the same numbers as torchvision and transformers."""

import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, drawn
from ml_collections import FrozenConfigDict

from bigmodel import config, models, tree
from bigmodel.after import evaluate
from bigmodel.errors import UsageError
from bigmodel.models import classifier, conv, inception
from bigmodel.run import budget, counts, session


def section(name, **overrides):
    family, row = models.published(name)
    module = models.family(family)
    cfg = module.get_config()
    cfg.update(row["model"] | overrides)
    module.finalize(cfg)
    return module, FrozenConfigDict(cfg)


def count(name, **overrides):
    module, cfg = section(name, **overrides)
    return counts.counts(module.__name__.rsplit(".", 1)[-1], cfg)[0]


# Of ../shared-style tables: multiply-adds of a picture, in 10^9 (torchvision's metadata)
GMAC = {
    "resnet-18": 1.814, "resnet-34": 3.664, "resnet-50": 4.089, "resnet-101": 7.801, "resnet-152": 11.514,
    "inception-v1-bn": 1.498, "inception-v3": 5.713,
    "vit-b16": 17.564, "vit-b32": 4.409, "vit-l16": 61.555, "vit-l32": 15.378,
}  # fmt: skip


@pytest.mark.parametrize("name", [n for f in ("resnet", "inception", "vit") for n in models.family(f).PUBLISHED])
def test_published_counts_are_exact(name):
    assert count(name) == models.published(name)[1]["params"]


@pytest.mark.parametrize("name", GMAC)
def test_flops_are_the_published_ones(name):
    module, cfg = section(name)
    assert module.flops(cfg) / 2e9 == pytest.approx(GMAC[name], rel=2e-3)


def test_auxiliary_heads_and_true_windows_have_the_published_counts():
    assert count("inception-v1", auxiliary=0.3) - count("inception-v1") == 3_188_840 + 3_190_888
    assert count("inception-v3", auxiliary=0.4) == 27_161_264
    assert count("inception-v1", norm="batchnorm") == 7_005_832
    backbone = {
        "vit-g14": 1_011_202_432,
        "vit-G14": 1_842_775_680,
        "vit-e14": 3_805_421_312,
        "vit-so400m14": 412_444_656,
    }
    for name, params in backbone.items():
        assert count(name) - params == 1000 * (section(name)[1].width + 1)
    assert count("resnet-50", shortcut="pad") < count("resnet-50")


@pytest.mark.parametrize("version", ["v1", "v3"])
@pytest.mark.parametrize("depth", [1, 3, 5, 9, 20])
def test_a_rung_of_inception_has_its_modules(version, depth):
    rows = inception.modules(FrozenConfigDict(dict(version=version, depth=depth)))
    assert sum(map(len, rows)) == depth and len(rows) == min(3, depth) and all(rows)
    table = inception.V1 if version == "v1" else inception.V3
    assert depth != 9 or tuple(map(tuple, rows)) == table


def test_blocks_are_spread_over_stages():
    assert conv.spread(8, [1, 1, 1, 1]) == [2, 2, 2, 2]
    assert conv.spread(5, [1, 1, 1]) == [1, 2, 2]
    assert conv.spread(3, [2, 5, 2]) == [1, 1, 1]
    assert conv.spread(9, [2, 5, 2]) == [2, 5, 2]


# ------------------------------------------------------------------------------------------- mixing of examples


def mixing(**overrides):
    return FrozenConfigDict(classifier.get_config() | overrides)


def test_mixup_is_a_share_of_the_neighbour():
    x = jnp.arange(4.0)[:, None, None, None] * jnp.ones((4, 3, 3, 1))
    found, own = classifier.mixed(mixing(mixup=0.5), x, jax.random.key(3))
    expected = own * np.arange(4) + (1 - own) * np.array([3, 0, 1, 2])
    assert 0 < own < 1
    np.testing.assert_allclose(found[:, 1, 1, 0], expected, rtol=1e-5)


def test_cutmix_weighs_labels_by_the_area_that_is_left():
    x = jnp.arange(2.0)[:, None, None, None] * jnp.ones((2, 16, 12, 1))
    shares = []
    for seed in range(200):
        found, own = classifier.mixed(mixing(cutmix=1.0), x, jax.random.key(seed))
        assert float(jnp.mean(found[1])) == pytest.approx(float(own), abs=1e-6)  # of ones, the others are zeros
        rows, columns = (np.flatnonzero(np.asarray(found[0, :, :, 0]).any(axis=a)) for a in (1, 0))
        assert np.all(np.diff(rows) == 1) and np.all(np.diff(columns) == 1)  # one box
        shares.append(float(own))
    assert 0.5 < np.mean(shares) < 0.8  # uniform areas lose what reaches over the border


def test_the_loss_of_mixed_pictures_is_the_mix_of_losses():
    module, cfg = section("vit-ti16", image_height=32, image_width=32, width=12, depth=1, num_heads=2, ffn=0,
                          num_classes=5, mixup=1.0, smoothing=0.1, dropout=0.0)  # fmt: skip
    rng = np.random.default_rng(0)
    batch = {
        "image": jnp.asarray(rng.integers(0, 256, (3, 32, 32, 3)), jnp.uint8),
        "label": jnp.arange(3),
        "weight": jnp.ones(3),
    }
    model, variables, key = module.Model(cfg), drawn(module, cfg), jax.random.key(5)
    scalar, (metrics, _) = module.loss(model, variables, batch, key, True)
    k_mix, _ = jax.random.split(key)
    x, own = classifier.mixed(cfg, classifier.inputs(cfg, batch)[0], k_mix)
    logits = np.asarray(jax.nn.log_softmax(model.apply(variables, x)))
    soft = 0.9 * (own * np.eye(5)[[0, 1, 2]] + (1 - own) * np.eye(5)[[2, 0, 1]]) + 0.1 / 5
    assert float(scalar) == pytest.approx(float(-(soft * logits).sum(1).mean()), rel=1e-5)
    assert float(metrics["error"][0] + metrics["accuracy"][0]) == 3
    assert not module.decomposes(cfg)


# ------------------------------------------------------------------------------- stochastic depth, the moving average


def test_stochastic_depth_leaves_out_branches_of_examples():
    from bigmodel.models import layers

    rates = np.asarray(layers.drop_paths(0.4, 4))
    np.testing.assert_allclose(rates, [0.1, 0.2, 0.3, 0.4], rtol=1e-6)
    ones = jnp.ones((4000, 2, 3))
    found = np.asarray(
        layers.DropPath().apply({}, ones, jnp.float32(0.25), None, True, rngs={"dropout": jax.random.key(0)})
    )
    per_example = found.reshape(4000, -1)
    assert np.all(per_example == per_example[:, :1])  # whole branches
    np.testing.assert_allclose(np.unique(found), [0, 1 / 0.75], rtol=1e-6)
    assert abs((per_example[:, 0] == 0).mean() - 0.25) < 0.03
    assert layers.DropPath().apply({}, ones, jnp.float32(0.25), None, False) is ones


@pytest.mark.parametrize("name", ["resnet-20", "vit-ti16"])
def test_stochastic_depth_trains_some_of_a_network(name):
    small = dict(image_height=16, image_width=16, width=8, depth=3, num_classes=4)
    small |= dict(stages=()) if name == "resnet-20" else dict(num_heads=2, ffn=0, patch=8)
    module, cfg = section(name, drop_path=0.9, **small)
    model, variables = module.Model(cfg), drawn(module, cfg)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 16, 16, 3)), jnp.float32)

    def out(key, train):
        found = model.apply(variables, x, train, jnp.arange(8), rngs={"dropout": key}, mutable=["batch_stats"])[0]
        return np.asarray(found)

    a, b = (out(jax.random.key(k), True) for k in (0, 1))
    assert not np.allclose(a, b)
    np.testing.assert_array_equal(out(jax.random.key(0), False), out(jax.random.key(1), False))


# --------------------------------------------------------------------------------- pictures of another size


def test_a_run_on_larger_pictures_starts_from_a_resized_grid_of_positions(tmp_path, monkeypatch):
    sys.path.insert(0, str(ROOT / "tests/golden"))
    import make

    make.pictures(tmp_path / "pictures")

    def trained(**more):
        cfg = budget.base("vit", "images")
        cfg.data.update(dict(name="pictures", flat=False))
        cfg.model.update(dict(width=8, depth=1, num_heads=2, patch=4))
        cfg.train.update(dict(batch_size=8, steps=2))
        cfg.run.update(dict(data_dir=str(tmp_path), wandb="off", eval_every=0))
        config.override_all(cfg, list(more.items()))
        home = tmp_path / "runs" / session.train(cfg, str(tmp_path / "runs"), quiet=True)["run_id"]
        return home, evaluate.restore(str(home)).variables["params"]

    first, small = trained()
    monkeypatch.setattr(make, "SIDE", 20)
    make.pictures(tmp_path / "larger")
    more = {"data.name": "larger", "train.init_from": str(first), "optim.lr": 1e-12, "train.steps": 1}
    home, large = trained(**more)
    a, b = (np.asarray(p["embed"]["positions"]) for p in (small, large))
    assert a.shape == (10, 8) and b.shape == (26, 8)
    np.testing.assert_allclose(b[0], a[0], atol=1e-6)
    np.testing.assert_allclose(b[1:].reshape(5, 5, 8)[2, 2], a[1:].reshape(3, 3, 8)[1, 1], atol=1e-6)  # the centre
    # Halfway between two, but for the border: linear.
    expected = jax.image.resize(a[1:].reshape(3, 3, 8), (5, 5, 8), "linear")
    np.testing.assert_allclose(b[1:].reshape(5, 5, 8), expected, atol=1e-6)
    assert "embed/positions resized from (10, 8)" in (home / "start.txt").read_text()


# ------------------------------------------------------------------------------------------------- bad settings


@pytest.mark.parametrize(
    ("name", "overrides", "says"),
    [
        ("resnet-18", dict(stages=(1, 1), depth=3), "depth=3 blocks in all"),
        ("resnet-18", dict(stages=(), depth=2), "at least a block for each of 4 stages"),
        ("resnet-18", dict(preactivation=True, zero_scale=True), "doesn't end in a norm"),
        ("resnet-18", dict(pixel_mean=(0.5, 0.5)), "one a channel, and there are 3"),
        ("resnet-18", dict(pixel_std=(0.0,)), "must be positive"),
        ("resnet-18", dict(block="bottle"), "did you mean 'bottleneck'"),
        ("inception-v3", dict(image_height=64, image_width=64), "at least 75 pixels"),
        ("inception-v1", dict(version="v2"), "'v2' is not one of v1, v3"),
        ("vit-b16", dict(image_height=30), "doesn't divide image_height=30"),
        ("vit-b16", dict(width=6, num_heads=2, position="sincos2d"), "a multiple of 4"),
        ("vit-b16", dict(drop_path=1.0), "drop_path"),
    ],
)
def test_impossible_shapes_are_one_line(name, overrides, says):
    with pytest.raises(UsageError, match=re.escape(says)):
        section(name, **overrides)


AUXILIARY = [("v1", "imagenet", 0.3), ("v1", "small", 0.3), ("v3", "imagenet", 0.4), ("v3", "small", 0.4)]


@pytest.mark.parametrize(
    ("version", "stem", "auxiliary"),
    [*AUXILIARY, ("v3", "imagenet", 0.0), ("v3", "small", 0.0), ("v1", "small", 0.0)],
)
def test_the_smallest_picture_of_inception_is_one_that_fits(version, stem, auxiliary):
    made = dict(version=version, stem=stem, auxiliary=auxiliary, width=8, num_classes=3, norm="batchnorm")
    cfg = models.family("inception").get_config()
    cfg.update(made)
    least = inception.smallest(cfg)
    cfg.image_height = cfg.image_width = least
    inception.finalize(cfg)
    shapes = jax.eval_shape(
        lambda: inception.Model(cfg).init(jax.random.key(0), jnp.zeros((1, least, least, 3)), True)["params"]
    )
    assert all(0 not in x.shape for x in jax.tree.leaves(shapes))
    assert tree.count(shapes) > 0


def test_no_remedy_of_a_pod_cuts_the_batch_of_batch_norm():
    from bigmodel.pods import layout, published

    def remedies(name):
        cfg, _ = published.config_of(name)
        return layout.remedies(budget.finalize(cfg, reads=False), layout.Topology("v5e:2x2"))

    assert any(r.overrides.get("train.microbatch") for r in remedies("vit-l16"))
    found = remedies("resnet-152")
    assert found and not any(r.overrides.get("train.microbatch") for r in found)


# ------------------------------------------------------------------------------------------------ linear probe


def test_a_probe_is_ridge_regression_by_scikit_learn():
    from sklearn.linear_model import Ridge

    from bigmodel.after import probe

    rng = np.random.default_rng(0)
    for n, c in ((40, 7), (7, 40)):  # by either of the two systems
        x, y, test = rng.normal(size=(n, c)), rng.choice([-1.0, 1.0], (n, 3)), rng.normal(size=(5, c))
        mean, std = x.mean(0), x.std(0) + 1e-8
        ones = [np.concatenate([(part - mean) / std, np.ones((len(part), 1))], 1) for part in (x, test)]
        expected = Ridge(probe.PENALTY, fit_intercept=False).fit(ones[0], y).predict(ones[1])
        np.testing.assert_allclose(probe.predictions(x, y, test), expected, rtol=1e-9, atol=1e-12)
