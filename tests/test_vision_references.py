"""ResNet, Inception and ViT with random weights against torchvision and transformers: logits, gradients, statistics."""

import base64
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import FrozenConfigDict
from references import close, randomized, same_leaves, vision

from bigmodel import models, tree

pytestmark = pytest.mark.reference
CLASSES, BATCH = 7, 4


def ours(name, values):
    """torch's array in our layout."""
    x = values.detach().numpy()
    return x.transpose(2, 3, 1, 0) if x.ndim == 4 else x.T if x.ndim == 2 else x


def placed(rename, state):
    """(params, batch_stats) of torch's state by `rename`: its module -> our path, or (path, place in a stack)."""
    kinds = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
    flat, stacks = {}, {}
    for name, x in state.items():
        module, _, kind = name.rpartition(".")
        if kind == "num_batches_tracked":
            continue
        found = rename(module, x.ndim, kind)
        where, place = found if isinstance(found, tuple) else (found, None)
        if kind == "weight" and x.ndim > 1:
            path = where
        else:
            path = f"{where}_bias" if where.endswith("head") else f"{where}/{kinds[kind]}"
        if place is None:
            flat[path] = ours(name, x)
        else:
            stacks.setdefault(path, {})[place] = ours(name, x)
    flat |= {path: np.stack([found[i] for i in sorted(found)]) for path, found in stacks.items()}
    groups = {"params": {}, "batch_stats": {}}
    for path, x in flat.items():
        group = "batch_stats" if path.endswith(("/mean", "/var")) else "params"
        *parents, last = path.split("/")
        node = groups[group]
        for part in parents:
            node = node.setdefault(part, {})
        node[last] = jnp.asarray(x)
    return groups


def resnet_name(module, ndim, kind):
    """`ndim`: of the value; convolutions have 4."""
    top = {"conv1": "stem/kernel", "bn1": "stem_norm", "fc": "head"}
    if module in top:
        return top[module]
    layer, block, *rest = module.split(".")
    inner = {"downsample.0": "shortcut/kernel", "downsample.1": "shortcut_norm"}.get(".".join(rest))
    if inner is None:
        inner = f"{rest[0]}/kernel" if rest[0].startswith("conv") else rest[0].replace("bn", "norm")
    stage = layer.replace("layer", "stage")
    return f"{stage}/first/{inner}" if block == "0" else (f"{stage}/rest/{inner}", int(block))


def unit(path, module):
    return f"{path}/conv/kernel" if module.endswith("conv") else f"{path}/norm"


def googlenet_name(module, ndim, kind):
    if module == "fc":
        return "head"
    first, *rest = module.split(".")
    if first.startswith("conv"):
        return unit(f"stem/{first}", module)
    stage, letter = int(first[-2]), "abcde".index(first[-1]) + 1
    names = {"branch1": "one", "branch2.0": "three1", "branch2.1": "three2", "branch3.0": "five1", "branch3.1": "five2"}
    branch = names.get(".".join(rest[:-1]), "pool")
    return unit(f"stage{stage - 2}_{letter}/{branch}", module)


V3 = {
    "Conv2d_1a_3x3": "stem/conv1", "Conv2d_2a_3x3": "stem/conv2", "Conv2d_2b_3x3": "stem/conv3",
    "Conv2d_3b_1x1": "stem/conv4", "Conv2d_4a_3x3": "stem/conv5",
    **{f"Mixed_5{x}": f"stage1_{i}" for i, x in enumerate("bcd", 1)},
    **{f"Mixed_6{x}": f"stage2_{i}" for i, x in enumerate("bcde", 1)},
    **{f"Mixed_7{x}": f"stage3_{i}" for i, x in enumerate("bc", 1)},
    "Mixed_6a": "reduction1", "Mixed_7a": "reduction2", "AuxLogits": "auxiliary1",
}  # fmt: skip
BRANCHES = {
    "stage1": {"branch1x1": "one", "branch5x5_": "five", "branch3x3dbl_": "three", "branch_pool": "pool"},
    "stage2": {"branch1x1": "one", "branch7x7_": "seven", "branch7x7dbl_": "twice", "branch_pool": "pool"},
    "stage3": {
        "branch1x1": "one", "branch3x3_1": "three", "branch3x3_2a": "three_wide", "branch3x3_2b": "three_high",
        "branch3x3dbl_1": "twice1", "branch3x3dbl_2": "twice2", "branch3x3dbl_3a": "twice_wide",
        "branch3x3dbl_3b": "twice_high", "branch_pool": "pool",
    },
    "reduction1": {"branch3x3": "three", "branch3x3dbl_1": "twice_1", "branch3x3dbl_2": "twice_2",
                   "branch3x3dbl_3": "twice"},
    "reduction2": {"branch3x3_1": "three_", "branch3x3_2": "three", "branch7x7x3_4": "seven", "branch7x7x3_": "seven_"},
    "auxiliary1": {"conv0": "reduce", "conv1": "all"},
}  # fmt: skip


def v3_name(module, ndim, kind):
    if module in ("fc", "AuxLogits.fc"):
        return "head" if module == "fc" else "auxiliary1/head"
    first, *rest = module.split(".")
    if len(rest) == 1:
        return unit(V3[first], module)
    names, branch = BRANCHES[V3[first].split("_")[0]], rest[0]
    found = names[branch] if branch in names else names[branch[:-1]] + branch[-1]
    return unit(f"{V3[first]}/{found}", module)


def net(name):
    """(torch's module, our module, our cfg, names, side of the pictures)"""
    torchvision = vision()
    plain = dict(weights=None, num_classes=CLASSES)
    if name.startswith("resnet"):
        made, rename, side = getattr(torchvision.models, name.replace("-", ""))(**plain), resnet_name, 64
    elif name == "inception-v1-bn":
        more = dict(aux_logits=False, init_weights=False, dropout=0.0, transform_input=False)
        made, rename, side = torchvision.models.googlenet(**plain, **more), googlenet_name, 64
    else:
        more = dict(aux_logits=True, init_weights=False, dropout=0.0, transform_input=False)
        made, rename, side = torchvision.models.inception_v3(**plain, **more), v3_name, 107 + 32 * 6
    family, row = models.published(name)
    module = models.family(family)
    cfg = module.get_config()
    cfg.update(row["model"] | dict(num_classes=CLASSES, image_height=side, image_width=side))
    if family == "inception":
        cfg.update(dict(dropout=0.0, auxiliary=0.4 if name == "inception-v3" else 0.0))
    module.finalize(cfg)
    return randomized(made), module, FrozenConfigDict(cfg), rename, side


def compared(theirs, model, variables, rename, x, train):
    """Logits, and the gradients of all parameters of a loss of the logits."""
    import torch

    theirs.train(train)
    out = theirs(torch.tensor(x.transpose(0, 3, 1, 2)))
    logits = [out.logits, out.aux_logits] if hasattr(out, "aux_logits") else [getattr(out, "logits", out)]
    weights = np.random.default_rng(1).normal(size=(len(logits), *logits[0].shape))
    theirs.zero_grad()
    sum((part * torch.tensor(w)).sum() for part, w in zip(logits, weights, strict=True)).backward()
    grads = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}

    @jax.jit
    def run(params):
        def objective(params):
            given = {**variables, "params": params}
            out = model.apply(given, x, train, mutable=["batch_stats"])[0] if train else model.apply(given, x)
            parts = [out[0], out[1][0][1]] if isinstance(out, tuple) else [out]
            return sum(jnp.sum(part * w) for part, w in zip(parts, weights, strict=True)), parts

        return jax.grad(objective, has_aux=True)(params)

    used = {**variables["params"]}
    found, parts = run(used)
    for a, b in zip(parts, logits, strict=True):
        close(a, b.detach().numpy(), "logits")
    want = placed(rename, grads)["params"]
    found = {k: v for k, v in found.items() if k in want}  # without auxiliary heads in evaluation
    same_leaves(found, want, "gradient of")


@pytest.mark.parametrize("name", ["resnet-18", "resnet-50", "inception-v1-bn", "inception-v3"])
def test_convolutional_networks_are_torchvisions(name):
    """In float64: in float32 a rectifier or a maximum that rounding decides differs by more than is asked for."""
    theirs, module, cfg, rename, side = net(name)
    theirs.double()
    with jax.enable_x64(True):
        variables, model = placed(rename, theirs.state_dict()), module.Model(cfg)
        x = np.random.default_rng(0).normal(size=(BATCH, side, side, 3))
        compared(theirs, model, variables, rename, x, train=False)
        compared(theirs, model, variables, rename, x, train=True)


@pytest.mark.parametrize("name", ["resnet-18", "inception-v1-bn"])
def test_running_statistics_after_20_steps_are_torchvisions(name):
    import torch

    theirs, module, cfg, rename, side = net(name)
    theirs.double().train()
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        variables, model = placed(rename, theirs.state_dict()), module.Model(cfg)
        step = jax.jit(lambda v, x: model.apply(v, x, True, mutable=["batch_stats"])[1]["batch_stats"])
        for i in range(20):
            x = rng.normal(size=(BATCH, side, side, 3)) * (1 + i / 10)
            with torch.no_grad():
                theirs(torch.tensor(x.transpose(0, 3, 1, 2)))
            variables = {**variables, "batch_stats": step(variables, x)}
        expected = placed(rename, theirs.state_dict())["batch_stats"]
        same_leaves(variables["batch_stats"], expected, "statistics", 1e-5)


def test_vit_is_transformers():
    vision()
    import torch
    import transformers

    shape = dict(hidden_size=48, num_hidden_layers=3, num_attention_heads=4, intermediate_size=96)
    config = transformers.ViTConfig(
        **shape, image_size=32, patch_size=8, layer_norm_eps=1e-6, num_labels=CLASSES, attn_implementation="eager"
    )
    theirs = randomized(transformers.ViTForImageClassification(config)).eval()
    module = models.family("vit")
    cfg = module.get_config()
    cfg.update(dict(width=48, depth=3, num_heads=4, ffn=96, image_height=32, image_width=32, patch=8))
    cfg.num_classes = CLASSES
    module.finalize(cfg)
    cfg = FrozenConfigDict(cfg)
    model = module.Model(cfg)
    x = np.random.default_rng(0).normal(size=(BATCH, 32, 32, 3)).astype(np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)["params"]

    def mapped(state):
        """Our tree from tensors of transformers' names."""
        state = {name.removeprefix("vit."): value.detach().numpy() for name, value in state.items()}

        def layer(i, name, kind):
            (found,) = (v for k, v in state.items() if f".{i}." in k and k.endswith(f"{name}.{kind}"))
            return found.T if kind == "weight" and found.ndim == 2 else found

        ends = {
            "attention/query": "query", "attention/key": "key", "attention/value": "value",
            "attention/out": "attention.output.dense", "mlp/up": "intermediate.dense",
        }  # fmt: skip
        if any("q_proj" in k for k in state):
            ends = {
                "attention/query": "q_proj", "attention/key": "k_proj", "attention/value": "v_proj",
                "attention/out": "o_proj", "mlp/up": "fc1", "mlp/down": "fc2",
            }  # fmt: skip
        norms = {"norm_attention": "layernorm_before", "norm_mlp": "layernorm_after"}

        def leaf(path, shape):
            top = {
                "embed/class": "embeddings.cls_token", "embed/positions": "embeddings.position_embeddings",
                "patch/bias": "embeddings.patch_embeddings.projection.bias", "norm/scale": "layernorm.weight",
                "norm/bias": "layernorm.bias", "head_bias": "classifier.bias",
            }  # fmt: skip
            if path in top:
                return state[top[path]].reshape(shape.shape)
            if path == "head":
                return state["classifier.weight"].T
            if path == "patch/kernel":
                return state["embeddings.patch_embeddings.projection.weight"].transpose(2, 3, 1, 0)
            inner = path.removeprefix("blocks/")
            if inner.startswith("norm"):
                name, kind = norms[inner.split("/")[0]], "weight" if inner.endswith("scale") else "bias"
            else:
                name, kind = ends.get(inner.removesuffix("_bias")), "bias" if inner.endswith("_bias") else "weight"
                name = name or f"{'.'}output.dense"
            picked = [layer(i, name, kind) if name != ".output.dense" else last(i, kind) for i in range(3)]
            return np.stack(picked).reshape(shape.shape)

        def last(i, kind):
            (key,) = (k for k in state if k.endswith(f".{i}.output.dense.{kind}"))
            return state[key].T if kind == "weight" else state[key]

        return tree.map_paths(lambda path, shape: jnp.asarray(leaf(path, shape)), shapes)

    params = mapped(theirs.state_dict())
    out = theirs(torch.tensor(x.transpose(0, 3, 1, 2))).logits
    w = np.random.default_rng(1).normal(size=out.shape).astype(np.float32)
    (out * torch.tensor(w)).sum().backward()
    expected = mapped({name: p.grad for name, p in theirs.named_parameters()})
    grads, logits = jax.jit(jax.grad(lambda p: (jnp.sum((y := model.apply({"params": p}, x)) * w), y), has_aux=True))(
        params
    )
    close(logits, out.detach().numpy(), "logits")
    same_leaves(grads, expected, "gradient of")


def creation_order():
    """torchvision's names of the 94 convolutions in the order in which Keras numbers them."""
    towers = {
        "bcd": (
            "Mixed_5",
            "branch1x1 branch5x5_1 branch5x5_2 branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3 branch_pool",
        ),
        "bcde": (
            "Mixed_6",
            "branch1x1 branch7x7_1 branch7x7_2 branch7x7_3 branch7x7dbl_1 branch7x7dbl_2 branch7x7dbl_3 branch7x7dbl_4 "
            "branch7x7dbl_5 branch_pool",
        ),
        "bc": (
            "Mixed_7",
            "branch1x1 branch3x3_1 branch3x3_2a branch3x3_2b branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3a "
            "branch3x3dbl_3b branch_pool",
        ),
    }
    reductions = {
        "Mixed_6": "branch3x3 branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3",
        "Mixed_7": "branch3x3_1 branch3x3_2 branch7x7x3_1 branch7x7x3_2 branch7x7x3_3 branch7x7x3_4",
    }
    names = ["Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3"]
    for letters, (stage, branches) in towers.items():
        names += [f"{stage}a.{branch}" for branch in reductions.get(stage, "").split()]
        names += [f"{stage}{letter}.{branch}" for letter in letters for branch in branches.split()]
    return names


def published_v3():
    """{"conv2d_1/kernel": array, ...} of nsfwjs' Inception v3: a byte a value; the manifest has each min and scale."""
    from bigmodel.prepare.registries import Package, fetch, members

    sha256 = "4496790efc9bdc6f"
    archive = fetch(Package("npm", "nsfwjs", "4.3.0"))
    assert archive.sha256.startswith(sha256)
    files = dict(members(archive.path, "package/dist/models/inception_v3/*"))
    shards = sorted(name for name in files if "shard" in name)
    text = [max(re.findall(rb"[A-Za-z0-9+/=]{1000,}", files[name]), key=len) for name in shards]
    content = b"".join(base64.b64decode(part) for part in text)
    (model,) = (data.decode() for name, data in files.items() if name.endswith("model.min.js"))
    pattern = r'name:"([^"]+)",shape:\[([\d,]+)\],dtype:"float32",quantization:\{min:([-\d.e]+),scale:([-\d.e]+),'
    found, at = {}, 0
    for name, shape, low, scale in re.findall(pattern, model[model.index("weightsManifest") :]):
        sizes = [int(n) for n in shape.split(",")]
        values = np.frombuffer(content, np.uint8, int(np.prod(sizes)), at)
        found[name] = (float(low) + float(scale) * values.astype(np.float64)).reshape(sizes)
        at += values.size
    assert at == len(content) == 22_360_869
    return found


@pytest.mark.network
def test_the_features_of_real_inception_v3_weights_are_torchvisions():
    """Keras' layout has no scale: ones. Each of 21,802,784 values is used once."""
    import torch

    values = published_v3()
    theirs, module, cfg, rename, side = net("inception-v3")
    theirs.AuxLogits, theirs.fc = None, torch.nn.Identity()
    state, used = {}, 0
    for i, name in enumerate(creation_order(), 1):
        kernel = values[f"conv2d_{i}/kernel"]
        parts = {part: values[f"batch_normalization_{i}/{part}"] for part in ("beta", "moving_mean", "moving_variance")}
        state[f"{name}.conv.weight"] = kernel.transpose(3, 2, 0, 1).copy()
        state[f"{name}.bn.weight"] = np.ones(kernel.shape[-1])
        for theirs_, ours_ in {"bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}.items():
            state[f"{name}.bn.{theirs_}"] = parts[ours_]
        used += kernel.size + 3 * kernel.shape[-1]
    assert used == 21_802_784
    tensors = {name: torch.tensor(x) for name, x in state.items()}
    theirs.double().eval()
    missing = theirs.load_state_dict(tensors, strict=False)
    assert not missing.unexpected_keys and all(key.endswith("num_batches_tracked") for key in missing.missing_keys)

    changed = cfg.as_configdict()
    changed.update(dict(num_classes=2048, auxiliary=0.0))
    model = module.Model(FrozenConfigDict(changed))
    columns, rows = np.meshgrid(np.linspace(-1, 1, side), np.linspace(-1, 1, side))
    picture = np.stack([columns, np.sin(9 * rows), columns * rows], axis=-1)
    x = np.stack([picture, np.random.default_rng(0).uniform(-1, 1, picture.shape)])
    with torch.no_grad():
        expected = theirs(torch.tensor(x.transpose(0, 3, 1, 2))).numpy()
    with jax.enable_x64(True):
        variables = placed(rename, tensors)
        variables["params"] |= {"head": jnp.eye(2048), "head_bias": jnp.zeros(2048)}
        found = np.asarray(jax.jit(model.apply)(variables, x))
    assert expected.std() > 0.01 and (expected > 0).any(1).all()  # no constant
    close(found, expected, "features")
