"""The discrete VAE: published counts and networks, its likelihood, schedules, codes and codebook, and its scores."""

import json
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from conftest import ROOT, drawn
from families import batch_of, small
from ml_collections import FrozenConfigDict

from bigmodel import config, tree
from bigmodel.after import evaluate
from bigmodel.cli import main
from bigmodel.errors import UsageError
from bigmodel.models import dvae
from bigmodel.run import budget, counts, session

SMALL = dict(width=8, depth=2, num_groups=3, num_codes=12, code_width=6, image_height=16, image_width=24, channels=3)


def made(**overrides):
    """(frozen cfg, model, variables at random, batch of 4)"""
    cfg = small(dvae, **{**SMALL, **overrides})
    return cfg, dvae.Model(cfg), drawn(dvae, cfg), batch_of(dvae, cfg, 4)


def test_counts_are_the_published_ones():
    cfg = dvae.get_config()
    dvae.finalize(cfg)
    found = counts.shapes("dvae", FrozenConfigDict(cfg))
    assert tree.count(found["encoder"]) == 53_786_240
    assert tree.count(found["decoder"]) + tree.count(found["codebook"]) == 43_829_766
    assert tree.count(found) == dvae.PUBLISHED["dalle-dvae"]["params"] == 97_616_006


# ------------------------------------------------------------------------------------- against the published networks


class Published:
    """The published encoder and decoder in torch, by the names of their weights, which are drawn at their first use."""

    def __init__(self, width, groups, blocks):
        import torch

        self.torch, self.state = torch, {}
        self.width, self.groups, self.blocks = width, groups, blocks
        self.generator = torch.Generator().manual_seed(0)

    def conv(self, name, x, channels, window):
        shape = channels, x.shape[1], window, window
        for key, size, std in (("w", shape, 2 / (x.shape[1] * window**2) ** 0.5), ("b", (channels,), 0.3)):
            value = std * self.torch.randn(size, generator=self.generator)
            self.state.setdefault(f"{name}.{key}", value)
        w, b = (self.state[f"{name}.{key}"] for key in "wb")
        return self.torch.nn.functional.conv2d(x, w, b, padding=window // 2)

    def group(self, name, x, channels, windows):
        for k in range(1, self.blocks + 1):
            y, block = x, f"{name}.block_{k}"
            for i, window in enumerate(windows, 1):
                out = channels if i == 4 else channels // 4
                y = self.conv(f"{block}.res_path.conv_{i}", self.torch.relu(y), out, window)
            short = x if x.shape[1] == channels else self.conv(f"{block}.id_path", x, channels, 1)
            x = short + y / (self.groups * self.blocks) ** 2
        return x

    def encoder(self, x, codes):
        x = self.conv("encoder.input", x, self.width, 7)
        for g in range(self.groups):
            x = self.group(f"encoder.group_{g + 1}", x, self.width * 2**g, (3, 3, 3, 1))
            x = self.torch.nn.functional.max_pool2d(x, 2) if g < self.groups - 1 else x
        return self.conv("encoder.output.conv", self.torch.relu(x), codes, 1)

    def decoder(self, x, code_width, channels):
        x = self.conv("decoder.input", x, code_width, 1)
        for g in range(self.groups):
            x = self.group(f"decoder.group_{g + 1}", x, self.width * 2 ** (self.groups - 1 - g), (1, 3, 3, 3))
            x = self.torch.nn.functional.interpolate(x, scale_factor=2) if g < self.groups - 1 else x
        return self.conv("decoder.output.conv", self.torch.relu(x), 2 * channels, 1)

    def params(self):
        """The weights in our layout."""
        found, stacks = {}, {}
        for name, x in self.state.items():
            module, kind = name.rsplit(".", 1)
            path = module.replace(".", "/").replace("_path", "").replace("res/", "").replace("group_", "group")
            path = path.replace("conv_", "conv").replace("/id", "/shortcut").replace("output/conv", "head")
            path = path.replace("encoder/input", "encoder/stem").replace("decoder/input", "codebook")
            value = x.numpy().transpose(2, 3, 1, 0) if x.ndim == 4 else x.numpy()
            place = int(re.search(r"block_(\d+)|$", path)[1] or 1)
            path = re.sub(r"block_\d+", "first" if place == 1 else "rest", path)
            path += {"w": "/kernel", "b": "/bias"}[kind]
            if place == 1:
                found[path] = value
            else:
                stacks.setdefault(path, {})[place] = value
        return found | {path: np.stack([at[k] for k in sorted(at)]) for path, at in stacks.items()}


@pytest.mark.reference
@pytest.mark.parametrize("shape", [dict(), dict(num_groups=2, depth=1), dict(num_groups=4, depth=3)])
def test_networks_are_the_published_ones(shape):
    cfg, model, variables, batch = made(**shape)
    theirs = Published(cfg.width, cfg.num_groups, cfg.depth)
    x = np.asarray(dvae.inputs(cfg, batch)[0])
    logits = theirs.encoder(theirs.torch.tensor(x).permute(0, 3, 1, 2), cfg.num_codes)
    soft = theirs.torch.softmax(3 * theirs.torch.randn(logits.shape, generator=theirs.generator), dim=1)
    decoded = theirs.decoder(soft, cfg.code_width, cfg.channels)
    weights = theirs.params()
    assert weights.keys() == set(tree.paths(variables["params"]))
    params = tree.map_paths(lambda path, _: jnp.asarray(weights[path]), variables["params"])

    def ours(model, x, soft):
        return model.encoder(x), model.decoder(model.codebook(soft))

    soft = jnp.asarray(soft.permute(0, 2, 3, 1).numpy())
    found = model.apply({"params": params}, x, soft, method=ours)
    for a, b in zip(found, (logits, decoded), strict=True):
        b = b.permute(0, 2, 3, 1).numpy()
        assert b.std() > 0.3
        np.testing.assert_allclose(a, b, atol=1e-4)
    codes = dvae.codes(model, {"params": params}, batch["image"])
    np.testing.assert_array_equal(codes, logits.argmax(1).numpy())


def test_convolutions_start_at_one_over_the_root_of_what_they_read():
    cfg = small(dvae, **{**SMALL, "width": 64})
    params = jax.jit(lambda key: counts.init(dvae, cfg, key))(jax.random.key(0))["params"]
    for path in ("encoder/group2/rest/conv2/kernel", "decoder/group1/first/conv4/kernel", "encoder/stem/kernel"):
        x = np.asarray(dict(zip(tree.paths(params), jax.tree.leaves(params), strict=True))[path])
        fan_in = np.prod(x.shape[-4:-1])
        assert x.std() == pytest.approx(fan_in**-0.5, rel=0.05), path


# --------------------------------------------------------------------------------------------------------- likelihood


def test_nats_are_those_of_the_logit_laplace_distribution():
    image = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    x = np.asarray(dvae.inputs(None, {"image": image})[0], np.float64)
    assert x.min() == pytest.approx(0.1) and x.max() == pytest.approx(0.9)
    mean, log_scale = 0.4, 0.2
    decoded = jnp.broadcast_to(jnp.array([mean, log_scale]), (1, 16, 16, 2))
    found = np.asarray(dvae.nats(decoded, jnp.asarray(x)))
    scale = np.exp(np.logaddexp(log_scale, dvae.SHARPEST))
    # The density of x, by the change of variables from its logit.
    density = scipy.stats.laplace.pdf(np.log(x / (1 - x)), mean, scale) / (x * (1 - x))
    np.testing.assert_allclose(found, -np.log(density * 0.8 / 255), rtol=1e-5)
    inside = np.diff(scipy.stats.laplace.cdf(np.log(np.array([0.1, 0.9]) / np.array([0.9, 0.1])), mean, scale))
    assert np.exp(-found).sum() == pytest.approx(inside[0], rel=0.01)  # the probabilities of all bytes


def test_no_byte_has_more_than_all_probability():
    image = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    x = dvae.inputs(None, {"image": image})[0]
    logit = jnp.log(x / (1 - x))
    sharpest = dvae.nats(jnp.concatenate([logit, jnp.full_like(logit, -30.0)], -1), x)
    assert 0 < float(sharpest.min()) < 0.1
    grad = jax.grad(lambda s: dvae.nats(jnp.concatenate([logit + 1, s], -1), x).sum())(jnp.full_like(logit, -5.0))
    assert float(grad.max()) < 0  # what is too sharp and wrong becomes wider


# ----------------------------------------------------------------------------------------------- relaxation, schedules


def test_a_cold_relaxation_is_a_sample_of_the_encoder():
    cfg, model, variables, batch = made()
    x, key, rows = dvae.inputs(cfg, batch)[0], jax.random.key(3), jnp.arange(4)
    cold, kl = model.apply(variables, x, True, 1e-4, key, rows)
    logits = model.apply(variables, x, method=lambda model, x: model.encoder(x))
    noise = np.stack([jax.random.gumbel(jax.random.fold_in(key, row), logits.shape[1:]) for row in rows])
    codes = np.argmax(logits + noise, axis=-1)
    assert (codes != np.argmax(logits, axis=-1)).mean() > 0.2
    np.testing.assert_allclose(cold, model.apply(variables, codes, method="decode"), atol=1e-4)
    q = np.asarray(jax.nn.softmax(logits), np.float64)
    np.testing.assert_allclose(kl, (q * np.log(q * cfg.num_codes)).sum((1, 2, 3)), rtol=1e-4)


def test_every_parameter_learns_from_the_relaxation():
    _, model, variables, batch = made(width=64)
    grads = jax.grad(lambda v: dvae.loss(model, v, batch, jax.random.key(0), True)[0])(variables)
    for path, g in zip(tree.paths(grads), jax.tree.leaves(grads), strict=True):
        assert float(jnp.abs(g).max()) > 0, path


def test_schedules_end_where_they_should():
    cfg = FrozenConfigDict(dict(temperature=1.0, final_temperature=0.0625, temperature_steps=100))

    def at(step):
        return float(dvae.temperature(cfg, {"step": jnp.full(4, step)}))

    assert at(0) == 1 and at(50) == pytest.approx((1 + 0.0625) / 2) and at(100) == at(5000) == pytest.approx(0.0625)
    assert dvae.temperature(cfg, {}) == pytest.approx(0.0625)
    assert dvae.progress({"step": jnp.full(4, 3)}, 0) == 1


sys.path.insert(0, str(ROOT / "tests/golden"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    import make

    root = tmp_path_factory.mktemp("data")
    make.pictures(root / "pictures")
    return root


def section(pictures, **more):
    cfg = budget.base("dvae", "images")
    cfg.data.update(dict(name="pictures", flat=False))
    cfg.model.update(dict(width=8, depth=1, num_groups=2, num_codes=16, code_width=8, kl_steps=0, temperature_steps=8))
    cfg.train.update(dict(batch_size=8, steps=6))
    cfg.run.update(dict(data_dir=str(pictures), wandb="off", eval_every=0))
    config.override_all(cfg, list(more.items()))
    return cfg


def trained(cfg, root):
    home = root / session.train(cfg, str(root), quiet=True)["run_id"]
    rows = [json.loads(line) for line in (home / "metrics.jsonl").read_text().splitlines()]
    return home, [row for row in rows if "loss" in row], rows[-1]


def test_the_step_says_the_schedules_how_far_the_run_is(pictures, tmp_path):
    """Through the compiled step, whole and in micro-batches."""
    schedule = {"model.kl_weight": 2.0, "model.kl_steps": 4}
    _, rows, last = trained(section(pictures, **schedule), tmp_path / "whole")
    weights = [(row["loss"] - row["nll"]) / row["kl"] for row in rows]
    np.testing.assert_allclose(weights, [0, 0.5, 1, 1.5, 2, 2], atol=1e-3)
    assert (last["eval_loss"] - last["eval_nll"]) / last["eval_kl"] == pytest.approx(2, rel=1e-3)
    _, micro, _ = trained(section(pictures, **schedule, **{"train.microbatch": 2}), tmp_path / "micro")
    np.testing.assert_allclose([r["loss"] for r in micro], [r["loss"] for r in rows], rtol=1e-4)
    assert rows[5]["loss"] != pytest.approx(
        trained(section(pictures, **schedule, **{"model.temperature_steps": 0}), tmp_path / "cold")[1][5]["loss"]
    )


# ------------------------------------------------------------------------------------------------------------- scores


@pytest.mark.parametrize("quantizer", ["gumbel", "vq"])
def test_scores_are_those_of_the_decoded_pictures(pictures, tmp_path, capsys, quantizer):
    """`bigmodel evaluate` on 24 pictures in batches of 8, against NumPy's on all of them."""
    home, _, last = trained(section(pictures, **{"model.quantizer": quantizer}), tmp_path)
    assert main.main(["evaluate", str(home), "--split=validation", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["psnr"] == pytest.approx(last["eval_psnr"], rel=1e-6)
    assert main.main(["evaluate", str(home), "--probe=2"]) == 2
    assert "this run has none" in capsys.readouterr().err
    run = evaluate.restore(str(home))
    images = np.stack([example["image"] for example in run.examples("validation")])
    codes = dvae.codes(run.model, run.variables, images)
    assert codes.shape == (24, 6, 6) and codes.dtype == jnp.int32
    again = dvae.decode(run.model, run.variables, codes)
    assert again.dtype == jnp.uint8 and again.shape == images.shape
    error = np.mean(np.square(np.asarray(again, np.float64) - images)) / 255**2
    assert found["psnr"] == pytest.approx(-10 * np.log10(error), abs=0.02)  # bytes are rounded
    often = np.bincount(np.asarray(codes).ravel(), minlength=16) / codes.size
    assert found["codes_used"] == (often > 0).mean()
    assert found["codes_perplexity"] == pytest.approx(np.exp(scipy.stats.entropy(often)), rel=1e-5)


def test_psnr_is_of_all_errors_together():
    """Not the mean of batches' decibels; and of a perfect picture it is finite."""
    parts = [
        {"square": 4.0, "values": 100.0, "codes": np.eye(4)[0]},
        {"square": 0.0, "values": 100.0, "codes": np.eye(4)[2]},
    ]
    both = jax.tree.map(np.add, *parts)
    assert dvae.summarize(both) == {
        "psnr": pytest.approx(-10 * np.log10(0.02)), "codes_perplexity": pytest.approx(2), "codes_used": 0.5
    }  # fmt: skip
    assert dvae.summarize(parts[1])["psnr"] == 120


# ----------------------------------------------------------------------------------------------------------- codebook


def moved(cfg, model, variables, batch, seed):
    x = dvae.inputs(cfg, batch)[0]
    _, state = model.apply(variables, x, True, 1.0, jax.random.key(seed), jnp.arange(4), mutable=["codebook"])
    return jax.tree.map(np.asarray, state["codebook"]["codebook"])


def test_codes_start_at_vectors_of_the_batch_and_then_move_by_averages():
    cfg, model, variables, batch = made(quantizer="vq", num_codes=5, codebook_decay=0.9)
    variables = {**variables, "codebook": jax.tree.map(jnp.zeros_like, variables["codebook"])}
    x = dvae.inputs(cfg, batch)[0]
    z_NE = np.asarray(model.apply(variables, x, method=lambda model, x: model.encoder(x))).reshape(-1, cfg.code_width)
    first = moved(cfg, model, variables, batch, 0)
    near = np.abs(first["table"][:, None] - z_NE).max(-1)
    assert near.min(1)[1:].max() < 1e-5  # each is one of them; the first was nearest to all
    np.testing.assert_allclose(first["table"][0], z_NE.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(first["counts"], len(z_NE) * np.array([0.1, 0.2, 0.2, 0.2, 0.2]), rtol=1e-5)

    variables = {**variables, "codebook": {"codebook": first}}
    codes = np.square(z_NE[:, None] - first["table"]).sum(-1).argmin(1)
    np.testing.assert_array_equal(dvae.codes(model, variables, batch["image"]).ravel(), codes)
    hot = np.eye(5)[codes]
    second = moved(cfg, model, variables, batch, 1)
    np.testing.assert_allclose(second["counts"], 0.9 * first["counts"] + 0.1 * hot.sum(0), rtol=1e-5)
    sums = 0.9 * first["sums"] + 0.1 * hot.T @ z_NE
    np.testing.assert_allclose(second["table"], sums / second["counts"][:, None], rtol=1e-4, atol=1e-5)


def test_the_encoder_learns_what_the_decoder_asks_of_its_codes():
    """Straight through: the gradient at the encoder's vectors is that at the codes', and the commitment's."""
    cfg, model, variables, batch = made(quantizer="vq")
    x = dvae.inputs(cfg, batch)[0]

    def through(bias, weight):
        params = {**variables["params"], "encoder": {**variables["params"]["encoder"]}}
        params["encoder"]["head"] = {**params["encoder"]["head"], "bias": bias}
        decoded, cost = model.apply({**variables, "params": params}, x, True, 1.0, jax.random.key(0), None)
        return jnp.sum(jnp.sin(decoded)) * (1 - weight) + weight * jnp.sum(cost)

    bias = variables["params"]["encoder"]["head"]["bias"]
    codes = dvae.codes(model, variables, batch["image"])
    e = model.apply(variables, codes, method=lambda model, codes: model.codebook(codes))
    at_codes = jax.grad(lambda e: jnp.sum(jnp.sin(model.apply(variables, e, method=lambda m, e: m.decoder(e)))))(e)
    np.testing.assert_allclose(jax.grad(through)(bias, 0.0), at_codes.sum((0, 1, 2)), rtol=1e-3, atol=1e-5)
    z = model.apply(variables, x, method=lambda model, x: model.encoder(x))
    committed = (2 * (z - e) / np.prod(z.shape[1:])).sum((0, 1, 2))
    np.testing.assert_allclose(jax.grad(through)(bias, 1.0), committed, rtol=1e-4, atol=1e-6)


def test_a_codebook_of_averages_takes_the_batch_whole(pictures):
    budget.finalize(section(pictures, **{"train.microbatch": 2}))
    with pytest.raises(UsageError, match="never cut into micro-batches"):
        budget.finalize(section(pictures, **{"model.quantizer": "vq", "train.microbatch": 2}))


# ------------------------------------------------------------------------------------------------------- bad settings


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (dict(image_height=18), "a code is 4 pixels wide, which doesn't divide image_height=18"),
        (dict(num_codes=1), "num_codes=1"),
        (dict(temperature=0.0), "temperature=0.0"),
        (dict(codebook_decay=1.0), "codebook_decay=1.0"),
        (dict(quantizer="gumble"), "did you mean 'gumbel'"),
        (dict(width=2), "width=2"),
    ],
)
def test_impossible_settings_are_one_line(overrides, says):
    with pytest.raises(UsageError, match=re.escape(says)):
        made(**overrides)


def test_labels_are_left_alone(pictures):
    cfg = budget.finalize(section(pictures))
    assert "num_classes" not in cfg.model and dvae.spec(cfg.model).keys() == {"image"}
