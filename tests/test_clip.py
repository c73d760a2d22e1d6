"""CLIP: published counts, the numbers of transformers and of the published ResNet, the loss on any mesh and in parts,
retrieval, captions that are prepared."""

import itertools
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, drawn
from ml_collections import FrozenConfigDict
from references import close, randomized, same_leaves, vision

from bigmodel import models, tree
from bigmodel.after import retrieval
from bigmodel.errors import UsageError
from bigmodel.models import clip
from bigmodel.ops import sharding
from bigmodel.ops.bounded import at_most
from bigmodel.run import counts

SMALL = dict(width=32, depth=2, num_heads=2, embed=24, vocab_size=40, seq_len=9, image_height=32, image_width=32)
VIT = dict(tower="vit", width=48, depth=2, num_heads=3, patch=8)
RESNET = dict(tower="resnet", width=8, depth=4, num_heads=4, stages=(1, 1, 1, 1))


def section(tower=VIT, **overrides):
    cfg = clip.get_config()
    cfg.update(SMALL | overrides)
    cfg.vision.update(tower)
    clip.finalize(cfg)
    return FrozenConfigDict(cfg)


def batch(cfg, size=8, seed=0):
    rng = np.random.default_rng(seed)
    length = rng.integers(2, cfg.seq_len + 1, size).astype(np.int32)
    tokens = rng.integers(1, cfg.vocab_size - 1, (size, cfg.seq_len)).astype(np.int32)
    for row, n in zip(tokens, length, strict=True):
        row[n - 1], row[n:] = cfg.vocab_size - 1, 0
    image = rng.integers(0, 256, (size, cfg.image_height, cfg.image_width, 3)).astype(np.uint8)
    return {"image": image, "tokens": tokens, "length": length, "weight": np.ones(size, np.float32)}


# ----------------------------------------------------------------------------------------------- counts


GMAC = {"clip-vit-b32": 7.40, "clip-vit-b16": 20.57, "clip-vit-l14": 87.73, "clip-vit-h14": 190.97}
# Vision and text towers with their projections (papers of the table in `clip.PUBLISHED`).
TOWERS = {
    "clip-vit-b32": (87_849_216, 63_428_096),
    "clip-vit-b16": (86_192_640, 63_428_096),
    "clip-vit-l14": (303_966_208, 123_650_304),
    "clip-vit-l14-336": (304_293_888, 123_650_304),
    "clip-vit-h14": (632_076_800, 354_032_640),
}


@pytest.mark.parametrize("name", clip.PUBLISHED)
def test_published_counts_are_exact(name):
    cfg = clip.get_config()
    cfg.update(models.published(name)[1]["model"])
    clip.finalize(cfg)
    cfg = FrozenConfigDict(cfg)
    shapes = counts.shapes("clip", cfg)
    assert tree.count(shapes) == models.published(name)[1]["params"]
    if name in TOWERS:
        assert (tree.count(shapes["vision"]), tree.count(shapes["text"])) == TOWERS[name]
    if name in GMAC:
        assert clip.flops(cfg) / 2e9 == pytest.approx(GMAC[name], rel=2e-3)


# ------------------------------------------------------------------------------------------- references


def of_transformers(state, shapes):
    """Our tree from tensors of transformers' names."""
    names = {
        "attention/query": "self_attn.q_proj", "attention/key": "self_attn.k_proj", "attention/value":
        "self_attn.v_proj", "attention/out": "self_attn.out_proj", "mlp/up": "mlp.fc1", "mlp/down": "mlp.fc2",
        "norm_attention": "layer_norm1", "norm_mlp": "layer_norm2",
    }  # fmt: skip
    vision, text = "vision_model.", "text_model."
    ends = {
        "scale": "logit_scale", "vision/projection": "visual_projection.weight",
        "text/projection": "text_projection.weight", "text/embed/table": text + "embeddings.token_embedding.weight",
        "text/embed/positions": text + "embeddings.position_embedding.weight",
        "vision/embed/class": vision + "embeddings.class_embedding",
        "vision/embed/positions": vision + "embeddings.position_embedding.weight",
        "vision/patch/kernel": vision + "embeddings.patch_embedding.weight",
    }  # fmt: skip
    norms = {"text/norm": "text_model.final_layer_norm", "vision/norm": "vision_model.post_layernorm",
             "vision/norm_first": "vision_model.pre_layrnorm"}  # fmt: skip

    def leaf(path, shape):
        kind = "bias" if path.endswith("bias") else "weight"
        if path in ends:
            found = state[ends[path]]
            found = found.transpose(2, 3, 1, 0) if found.ndim == 4 else found
            return jnp.asarray(found.T if path.endswith("projection") else found).reshape(shape.shape)
        if (head := path.rpartition("/")[0]) in norms:
            return jnp.asarray(state[f"{norms[head]}.{kind}"])
        tower, _, inner = path.partition("/blocks/")
        inner = inner.rpartition("/")[0] if inner.startswith("norm") else inner.removesuffix("_bias")
        rows = [state[f"{tower}_model.encoder.layers.{i}.{names[inner]}.{kind}"] for i in range(shape.shape[0])]
        return jnp.asarray(np.stack([r.T if r.ndim == 2 else r for r in rows])).reshape(shape.shape)

    return tree.map_paths(leaf, shapes)


@pytest.mark.reference
def test_it_is_transformers_clip():
    vision()
    import torch
    import transformers

    cfg = section()
    more = dict(hidden_act="quick_gelu", attn_implementation="eager")
    text = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128, vocab_size=40,
                max_position_embeddings=9, eos_token_id=39, bos_token_id=1, pad_token_id=0, **more)  # fmt: skip
    pictures = dict(hidden_size=48, num_hidden_layers=2, num_attention_heads=3, intermediate_size=192, image_size=32,
                  patch_size=8, **more)  # fmt: skip
    config = transformers.CLIPConfig(text_config=text, vision_config=pictures, projection_dim=24)
    theirs = randomized(transformers.CLIPModel(config)).eval()
    with torch.no_grad():
        theirs.logit_scale.fill_(2.0)
    rows = batch(cfg)
    image, tokens, length = clip.inputs(cfg, rows)
    pixels = torch.tensor(np.asarray(image).transpose(0, 3, 1, 2))
    out = theirs(input_ids=torch.tensor(tokens).long(), pixel_values=pixels, return_loss=True)
    out.loss.backward()
    shapes = counts.shapes("clip", cfg)
    params = of_transformers({k: v.detach().numpy() for k, v in theirs.state_dict().items()}, shapes)
    expected = of_transformers({k: p.grad.numpy() for k, p in theirs.named_parameters()}, shapes)
    model = clip.Model(cfg)

    def objective(params):
        return clip.loss(model, {"params": params}, rows, jax.random.key(0), True)

    grads, (metrics, _) = jax.jit(jax.grad(objective, has_aux=True))(params)
    ours = model.apply({"params": params}, image, tokens, length)
    close(ours[0], out.image_embeds.detach().numpy(), "pictures")
    close(ours[1], out.text_embeds.detach().numpy(), "captions")
    assert float(metrics["loss"][0] / 8) == pytest.approx(float(out.loss.detach()), rel=1e-5)
    same_leaves(grads, expected, "gradient of")


def torch_resnet(width, stages, heads, embed, side):
    """The published network's modules, by their names (openai/CLIP, clip/model.py, MIT): deep stem, pooled strides,
    attention in place of the last mean."""
    import torch
    from torch import nn

    class Bottleneck(nn.Module):
        def __init__(self, wide, planes, stride):
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(wide, planes, 1, bias=False), nn.BatchNorm2d(planes)
            self.conv2, self.bn2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False), nn.BatchNorm2d(planes)
            self.conv3, self.bn3 = nn.Conv2d(planes, 4 * planes, 1, bias=False), nn.BatchNorm2d(4 * planes)
            self.pool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
            self.downsample = None
            if stride > 1 or wide != 4 * planes:
                made = [nn.Conv2d(wide, 4 * planes, 1, bias=False), nn.BatchNorm2d(4 * planes)]
                self.downsample = nn.ModuleList(made)

        def forward(self, x):
            y = torch.relu(self.bn1(self.conv1(x)))
            y = torch.relu(self.bn2(self.conv2(y)))
            y = self.bn3(self.conv3(self.pool(y)))
            if self.downsample is not None:
                x = self.downsample[1](self.downsample[0](self.pool(x)))
            return torch.relu(x + y)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            half, places = width // 2, (side // 32) ** 2 + 1
            self.conv1, self.bn1 = nn.Conv2d(3, half, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(half)
            self.conv2, self.bn2 = nn.Conv2d(half, half, 3, padding=1, bias=False), nn.BatchNorm2d(half)
            self.conv3, self.bn3 = nn.Conv2d(half, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
            blocks, wide = [], width
            for i, n in enumerate(stages):
                for k in range(n):
                    blocks.append(Bottleneck(wide, width * 2**i, 2 if i and k == 0 else 1))
                    wide = 4 * width * 2**i
            self.blocks = nn.ModuleList(blocks)
            self.positions = nn.Parameter(torch.zeros(places, wide))
            self.read = nn.MultiheadAttention(wide, heads, batch_first=True)
            self.project = nn.Linear(wide, embed)

        def forward(self, x):
            for i in (1, 2, 3):
                x = torch.relu(getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(x)))
            x = nn.functional.avg_pool2d(x, 2)
            for block in self.blocks:
                x = block(x)
            x = x.flatten(2).transpose(1, 2)
            x = torch.cat([x.mean(1, keepdim=True), x], 1) + self.positions
            # c_proj of the published network maps to the joint space at once, without the layer's own.
            y = self.read(x[:, :1], x, x)[0]
            return self.project(y[:, 0])

    net = randomized(Net())
    with torch.no_grad():
        net.read.out_proj.weight.copy_(torch.eye(net.read.embed_dim))
        net.read.out_proj.bias.zero_()
    return net


@pytest.mark.reference
@pytest.mark.parametrize("train", [True, False])
def test_the_resnet_tower_is_the_published_network(train):
    import torch

    cfg = section(RESNET, image_height=64, image_width=64)
    theirs = torch_resnet(8, RESNET["stages"], 4, 24, 64).train(train)
    module = clip.Pictures(cfg)
    x = np.random.default_rng(0).normal(size=(4, 64, 64, 3)).astype(np.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)

    def leaf(state, path, shape):
        kind = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
        *parts, last = path.split("/")
        last = kind.get(last, last)
        if parts[0] == "trunk":
            where = parts[1]
            if where.startswith("stem"):
                norm, number = "norm" in where, where[-1] if where[-1] in "123" else "3" if "norm" in where else "1"
                name = f"{'bn' if norm else 'conv'}{number}"
            else:
                inner = parts[3]
                one = {"shortcut": "downsample.0", "shortcut_norm": "downsample.1"}.get(
                    inner, inner.replace("norm", "bn")
                )
                name = f"blocks.{int(where[-1]) - 1}.{one}"
            found = state[f"{name}.{last}"]
            found = found.transpose(2, 3, 1, 0) if found.ndim == 4 else found
        elif path == "pool/positions":
            found = state["positions"]
        elif parts[-1] == "out":
            found = state[f"project.{last}"].T
        else:
            place = ("query", "key", "value").index(parts[-1])
            found = np.split(state[f"read.in_proj_{last}"], 3)[place].T
        return jnp.asarray(found).reshape(shape.shape)

    def mapped(state, part):
        return tree.map_paths(lambda path, shape: leaf(state, path, shape), shapes[part])

    before = {k: v.detach().numpy().copy() for k, v in theirs.state_dict().items()}
    variables = {part: mapped(before, part) for part in ("params", "batch_stats")}
    out = theirs(torch.tensor(x.transpose(0, 3, 1, 2)))
    w = np.random.default_rng(1).normal(size=out.shape).astype(np.float32)
    (out * torch.tensor(w)).sum().backward()

    def objective(params):
        y, state = module.apply({**variables, "params": params}, x, train, mutable=["batch_stats"])
        return jnp.sum(y * w), (y, state["batch_stats"])

    grads, (ours, stats) = jax.jit(jax.grad(objective, has_aux=True))(variables["params"])
    close(ours, out.detach().numpy(), "features")
    after = mapped({k: v.detach().numpy() for k, v in theirs.state_dict().items()}, "batch_stats")
    same_leaves(stats, after, "statistics")
    given = {k: p.grad.numpy() for k, p in theirs.named_parameters() if p.grad is not None}
    same_leaves(grads, mapped(given, "params"), "gradient of")


# --------------------------------------------------------------------------------------------- the loss


def reference(image, text, scale, offset=None):
    """In float64, by the definitions."""
    logits = np.exp(scale) * image.astype(np.float64) @ text.astype(np.float64).T
    if offset is not None:
        signs = 2 * np.eye(len(logits)) - 1
        return np.log1p(np.exp(-signs * (logits + offset))).sum() / len(logits)
    nats = [np.log(np.exp(x).sum(axis=1)) - np.diagonal(x) for x in (logits, logits.T)]
    return np.mean(nats)


@pytest.mark.parametrize("objective", ["softmax", "sigmoid"])
def test_the_loss_is_the_definition_and_padding_takes_no_part(objective):
    cfg = section(objective=objective)
    model, variables = clip.Model(cfg), drawn(clip, cfg)
    variables["params"]["scale"] = jnp.float32(1.5)
    rows = batch(cfg)
    image, text = (np.asarray(x) for x in model.apply(variables, *clip.inputs(cfg, rows)))
    offset = float(variables["params"]["offset"]) if objective == "sigmoid" else None
    evaluate = jax.jit(lambda rows: clip.loss(model, variables, rows, None, False))
    found, (metrics, _) = evaluate(rows)
    assert float(found) == pytest.approx(reference(image, text, 1.5, offset), rel=1e-5)
    right = sum(np.sum(np.argmax(x, axis=1) == np.arange(8)) for x in (image @ text.T, text @ image.T))
    assert float(metrics["accuracy"][0]) == right and float(metrics["error"][1]) == 16
    padded = {**rows, "weight": np.float32([1] * 5 + [0] * 3)}
    found, (metrics, _) = evaluate(padded)
    assert float(found) == pytest.approx(reference(image[:5], text[:5], 1.5, offset), rel=1e-5)
    assert float(metrics["loss"][1]) == 5


def test_the_scale_is_at_most_100_and_comes_back():
    for scale, pull, expected in [(1.0, 1.0, 1.0), (5.0, -1.0, 0.0), (5.0, 1.0, 1.0)]:
        value, gradient = jax.value_and_grad(lambda s, pull=pull: pull * at_most(s, clip.LARGEST))(jnp.float32(scale))
        assert float(abs(value)) == pytest.approx(min(scale, np.log(100)), rel=1e-6)
        assert float(gradient) == expected


def value_and_gradient(cfg, variables, rows, mesh=None):
    model = clip.Model(cfg)

    def objective(params):
        found, (metrics, _) = clip.loss(model, {**variables, "params": params}, rows, jax.random.key(0), True)
        return found, metrics["error"]

    mesh = mesh or sharding.make_mesh(sharding.ALONE, jax.devices()[:1])
    with sharding.use(mesh):
        (found, error), gradient = jax.jit(jax.value_and_grad(objective, has_aux=True))(variables["params"])
    return float(found), float(error[0]), jax.tree.map(np.asarray, gradient)


def test_gradient_caching_changes_nothing():
    cfg = section()
    variables, rows = drawn(clip, cfg), batch(cfg, 12)
    whole, error, expected = value_and_gradient(cfg, variables, rows)
    found, error_too, gradient = value_and_gradient(section(grad_cache=4), variables, rows)
    assert found == pytest.approx(whole, rel=1e-6) and error == error_too
    for path, a, b in zip(tree.paths(expected), jax.tree.leaves(gradient), jax.tree.leaves(expected), strict=True):
        close(a, b, path, tolerance=1e-5, least=1e-3)


FEW = ["2-1-1-1-1", "1-8-1-1-1", "1-1-2-2-2"]
MESHES = ["-".join(map(str, n)) for n in itertools.product((1, 2, 4, 8), repeat=5) if np.prod(n) in (2, 8)]


@pytest.mark.parametrize("meshes", [FEW, pytest.param(MESHES, marks=pytest.mark.slow)], ids=["few", "all"])
def test_the_loss_is_over_the_whole_batch_on_every_mesh(meshes, tmp_path):
    out = tmp_path / "out.json"
    command = [sys.executable, str(ROOT / "tests/clip_worker.py"), str(out), ",".join(meshes)]
    done = subprocess.run(command, cwd=ROOT / "tests", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name, by_mesh in json.loads(out.read_text()).items():
        assert list(by_mesh) == meshes
        for mesh, (loss, gradient) in by_mesh.items():
            # Gradients are differences of logits of 14 in float32, which has 1e-6 of them.
            assert loss <= 1e-6 and gradient <= (1e-5 if name == "cached" else 3e-6), (name, mesh, loss, gradient)


@pytest.mark.parametrize(
    ("overrides", "tower", "says"),
    [
        (dict(grad_cache=4), RESNET, "batch normalisation reads the whole batch"),
        (dict(objective="cosine"), VIT, "objective"),
        (dict(), VIT | dict(num_heads=5), "config.model.vision.num_heads=5 doesn't divide"),
        (dict(), VIT | dict(patch=7), "config.model.vision.patch=7 doesn't divide"),
        (dict(), VIT | dict(tower="cnn"), "vision.tower"),
        (dict(), RESNET | dict(num_heads=7), "doesn't divide 32 x width=8"),
        (dict(position="rope"), VIT, "learned positions"),
        (dict(temperature=0.0), VIT, "temperature"),
        (dict(dropout=0.1), VIT, "the towers have none"),
    ],
)
def test_impossible_towers_are_one_line(overrides, tower, says):
    with pytest.raises(UsageError, match=says):
        cfg = section(tower, **overrides)
        counts.shapes("clip", cfg)


# -------------------------------------------------------------------------------------------- retrieval


def test_recall_counts_ties_against_and_says_chance():
    score = np.array([[3.0, 2.0, 1.0, 1.0], [0.0, 5.0, 5.0, 1.0], [1.0, 1.0, 1.0, 1.0]])
    right = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]], bool)
    found = retrieval.recall(score, right)
    assert (found["r1"], found["r5"]) == (1 / 3, 1.0)
    assert found["chance_r1"] == pytest.approx(1 / 4) and found["chance_r5"] == 1
    many = np.zeros((1, 100), bool)
    many[0, :3] = True
    expected = 1 - (97 * 96 * 95 * 94 * 93) / (100 * 99 * 98 * 97 * 96)
    assert retrieval.recall(np.zeros((1, 100)), many)["chance_r5"] == pytest.approx(expected)
