"""Starting from published weights or from another run: every tensor and every parameter is accounted for."""

import json
import re

import jax
import numpy as np
import pytest
from conftest import ROOT, drawn
from ml_collections import FrozenConfigDict
from safetensors.numpy import save_file

from bigmodel import config, models, tree
from bigmodel.after import evaluate
from bigmodel.cli import main
from bigmodel.errors import UsageError
from bigmodel.run import budget, identity, record, starts, weights

BERT = [
    ("model.width", 16), ("model.depth", 2), ("model.num_heads", 2), ("model.parametrization", "standard"),
    ("model.base_width", 0), ("model.base_num_heads", 0), ("model.base_depth", 0), ("model.position", "learned"),
    ("model.segments", 2), ("model.norm_placement", "post"), ("data.name", "speech"), ("data.seq_len", 32),
    ("data.epochs", 1000), ("train.batch_size", 8), ("train.tokens", 0), ("train.steps", 1), ("train.eval_examples", 8),
    ("optim.lr", 1e-12), ("run.wandb", "off"),
]  # fmt: skip


def section(family, **overrides):
    cfg = models.family(family).get_config()
    cfg.update(overrides)
    models.family(family).finalize(cfg)
    return FrozenConfigDict(cfg)


SMALL_BERT = dict(width=16, depth=2, num_heads=2, vocab_size=50, seq_len=12)


def published(family, params, side=lambda name: True):
    """Parameters as a checkpoint names and keeps them, of the names that `side` lets through."""
    leaves = dict(zip(tree.paths(params), map(np.asarray, jax.tree.leaves(params)), strict=True))

    def tensor(path, x):
        if path.startswith("embed/") or x.ndim < 2:
            return x
        if path.endswith(("bias", "scale")):
            return x.reshape(-1)
        return np.ascontiguousarray((x.reshape(-1, x.shape[-1]) if path.endswith("/out") else x.reshape(len(x), -1)).T)

    out = {}
    layouts = models.family(family).WEIGHTS.values()
    for name, path in {name: path for layout in layouts for name, path in layout.names.items()}.items():
        if path not in leaves or not side(name):
            continue
        layers = enumerate(leaves[path]) if "{}" in name else [(0, leaves[path])]
        out |= {name.replace("{}", str(i)): tensor(path, x) for i, x in layers}
    return out


def official(tensors):
    """As google-bert's files have them: TensorFlow's LayerNorm, the body under `bert.`."""
    renamed = {re.sub(r"LayerNorm\.weight$", "LayerNorm.gamma", k): v for k, v in tensors.items()}
    renamed = {re.sub(r"LayerNorm\.bias$", "LayerNorm.beta", k): v for k, v in renamed.items()}
    return {k if k.startswith("cls.") else f"bert.{k}": v for k, v in renamed.items()}


def same(a, b):
    for path, x, y in zip(tree.paths(a), jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-6, err_msg=path)


@pytest.fixture
def bert(data_dir):
    """A tiny BERT on real text that hardly moves; call it with more overrides."""

    def make(*overrides):
        return config.load(ROOT / "experiments/bert.py", [*BERT, ("run.data_dir", data_dir), *overrides])

    return make


@pytest.fixture
def trained(bert, tmp_path, capsys):
    """Trains that BERT from `start`, a path or tensors, by its command: (exit code, lines of stderr, run's folder)."""

    def run(start, *overrides):
        if isinstance(start, dict):
            save_file(start, tmp_path / "x.safetensors")
            start = tmp_path / "x.safetensors"
        record.write_text(tmp_path / "config.json", config.to_json(bert(("train.init_from", str(start)), *overrides)))
        capsys.readouterr()
        code = main.main(["train", str(tmp_path / "config.json"), f"--runs={tmp_path / 'runs'}", "--json"])
        found = capsys.readouterr()
        home = tmp_path / "runs" / json.loads(found.out)["run_id"] if code == 0 else None
        return code, found.err.splitlines(), home

    return run


def masked(bert):
    """Its parameters, all at random."""
    return drawn(models.family("bert"), budget.finalize(bert()).model)["params"]


# -------------------------------------------------------------------------- published weights


def test_berts_official_names_are_understood(bert, trained):
    params = masked(bert)
    tensors = official(published("bert", params)) | {"bert.embeddings.position_ids": np.arange(32)}
    assert "bert.embeddings.LayerNorm.gamma" in tensors and "cls.predictions.transform.LayerNorm.beta" in tensors
    code, said, home = trained(tensors)
    assert code == 0
    total = len(tree.paths(params))
    (line,) = [s for s in said if "parameters taken" in s]
    assert f"x.safetensors: {total} of {total} parameters taken; unused tensors: bert.embeddings.position_ids" in line
    assert (home / "start.txt").read_text() == line + "\n"
    same(evaluate.restore(str(home)).variables["params"], params)


@pytest.mark.parametrize("prefix", ["", "model.", "transformer.", "module.bert.", "model.encoder."])
def test_names_are_known_after_the_prefixes_of_wrappers(prefix):
    cfg = section("bert", **SMALL_BERT)
    params = drawn(models.family("bert"), cfg)["params"]
    tensors = {prefix + k: v for k, v in published("bert", params).items()}
    found, said = starts.convert("bert", cfg, tensors)
    assert said == f"{len(tree.paths(params))} of {len(tree.paths(params))} parameters taken"
    same(found, params)


def without(*words):
    return lambda tensors: {k: v for k, v in tensors.items() if not any(word in k for word in words)}


def added(**more):
    return lambda tensors: tensors | more


def layer_more(tensors):
    return tensors | {k.replace("layer.1.", "layer.2."): v for k, v in tensors.items() if "layer.1." in k}


QUERY, UP = "encoder.layer.1.attention.self.query.weight", "encoder.layer.0.intermediate.dense.weight"
MISFITS = {
    "one unrelated tensor": (lambda _: {"a.b": np.ones(3, np.float32)}, ["knows none of its 1 tensors", "'bert'"]),
    "one layer of two": (without("layer.1."), ["no 'encoder.layer.1.", "the file has 1 of the model's 2 layers"]),
    "a deeper model": (layer_more, ["encoder.layer.2.", "the file has 3 layers, the model 2"]),
    "no table": (without("word_embeddings"), ["no 'embeddings.word_embeddings.weight' for 'embed/tokens'"]),
    "one tensor of a stack": (without(QUERY), [f"no {QUERY!r}", "1 of the model's 2 layers"]),
    "another width": (lambda t: t | {UP: np.ones((64, 8), np.float32)}, [UP, "[64, 8]", "'blocks/mlp/up'"]),
    "sides exchanged": (lambda t: t | {UP: t[UP].T.copy()}, [UP, "[16, 64]", "[16, 64] a layer"]),
    "no table at all": (
        lambda t: t | {"embeddings.position_embeddings.weight": np.ones((), np.float32)},
        ["'embeddings.position_embeddings.weight' is [], where 'embed/positions' is [32, 16]"],
    ),
    "layers unlike": (lambda t: t | {QUERY: np.ones((8, 16), np.float32)}, [QUERY, "[8, 16]"]),
    "quantised": (lambda t: t | {UP: np.ones((64, 16), np.int8)}, [UP, "is int8"]),
    "twice": (lambda t: t | {f"bert.{UP}": t[UP]}, [UP, f"'bert.{UP}'", "are both"]),
    "a gate in each layer": (
        added(**{"encoder.layer.0.intermediate.gate.weight": np.ones((64, 16), np.float32)}),
        ["'encoder.layer.0.intermediate.gate.weight' is of a layer"],
    ),
}


@pytest.mark.parametrize("misfit", MISFITS)
def test_a_body_that_does_not_fit_is_refused_in_one_line(bert, trained, tmp_path, misfit):
    change, words = MISFITS[misfit]
    code, said, _ = trained(change(published("bert", masked(bert))))
    assert code == 2, said
    (line,) = said
    assert line.startswith("bigmodel: config.train.init_from=") and "x.safetensors" in line
    for word in words:
        assert word in line
    assert not (tmp_path / "runs").exists()


def test_a_tensor_of_the_body_that_the_model_lacks_is_refused(bert, trained):
    tensors = published("bert", masked(bert))
    code, (line,), _ = trained(tensors, ("model.segments", 0))
    assert code == 2 and "'embeddings.token_type_embeddings.weight' is 'embed/segments', which this model lacks" in line


def test_heads_start_afresh_and_those_left_over_are_named():
    of = {kind: section("bert", **SMALL_BERT, objective=kind) for kind in ("masked_next", "classify")}
    theirs, start = (
        drawn(models.family("bert"), cfg, std)["params"] for cfg, std in zip(of.values(), (0.1, 0.2), strict=True)
    )
    found, said = starts.convert("bert", of["classify"], published("bert", theirs), start)
    same(found["blocks"], theirs["blocks"])
    same(found["pooler"], theirs["pooler"])
    np.testing.assert_array_equal(found["head"], start["head"])
    assert re.fullmatch(
        r"\d+ of \d+ parameters taken; fresh: head, head_bias; unused tensors: cls\.predictions\..* and 2 more", said
    )
    with pytest.raises(UsageError, match=r"'cls\.\S+' is no parameter of this model"):
        starts.convert("bert", of["classify"], published("bert", theirs))


def test_init_only_takes_a_part_and_the_rest_is_fresh_by_request():
    cfg = section("bert", **SMALL_BERT)
    theirs, start = (drawn(models.family("bert"), cfg, std)["params"] for std in (0.1, 0.2))
    tensors = layer_more(published("bert", theirs))  # of other layers, which aren't asked for
    found, said = starts.convert("bert", cfg, tensors, start, only="^embed/")
    same(found["embed"], theirs["embed"])
    same(found["blocks"], start["blocks"])
    assert said.startswith("5 of ") and "fresh: blocks/" in said
    with pytest.raises(UsageError, match=r"nothing of it is in config.train.init_only='\^head'"):
        starts.convert("bert", cfg, tensors, start, only="^head")


def test_positions_past_the_window_are_cut_and_said():
    cfg, longer = section("bert", **SMALL_BERT), section("bert", **SMALL_BERT | dict(seq_len=20))
    params = drawn(models.family("bert"), longer)["params"]
    found, said = starts.convert("bert", cfg, published("bert", params))
    np.testing.assert_array_equal(found["embed"]["positions"], params["embed"]["positions"][:12])
    assert said.endswith("embed/positions: the first 12 of 20, of a shorter window")
    with pytest.raises(UsageError, match=r"\[12, 16\], where 'embed/positions' is \[20, 16\]"):
        starts.convert("bert", longer, published("bert", drawn(models.family("bert"), cfg)["params"]))


def test_a_family_without_a_map_refuses_published_weights(digits, tmp_path, capsys):
    save_file({"h.0.attn.c_attn.weight": np.ones((16, 48), np.float32)}, tmp_path / "gpt2.safetensors")
    start = ("train.init_from", str(tmp_path / "gpt2.safetensors"))
    for family, cfg in (("mlp", digits(start)),):
        record.write_text(tmp_path / "config.json", config.to_json(cfg))
        assert main.main(["train", str(tmp_path / "config.json"), f"--runs={tmp_path / 'runs'}"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"family {family!r} has no map of published names; start from a run's folder" in line
    assert not (tmp_path / "runs").exists()


def test_published_weights_are_not_scaled_by_a_parametrisation(bert, tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"")
    scaled = [("model.parametrization", "ntk"), ("model.base_width", 8)]
    with pytest.raises(UsageError, match=r"published weights aren't scaled, as config.model.parametrization='ntk'"):
        budget.finalize(bert(("train.init_from", str(tmp_path / "x.safetensors")), *scaled))


@pytest.mark.parametrize("cell", ["lstm", "rnn"])
def test_both_of_torchs_biases_are_taken(cell):
    cfg = section("recurrent", cell=cell, width=8, vocab_size=20, seq_len=6)
    params = drawn(models.family("recurrent"), cfg)["params"]
    tensors = published("recurrent", params, lambda name: not name.startswith(("lstm", "rnn")) or cell in name)
    second = {k: v + 1 for k, v in tensors.items() if "bias_hh" in k}
    assert len(second) == 2
    found, said = starts.convert("recurrent", cfg, tensors | second)
    np.testing.assert_allclose(found["blocks"]["bias"], 2 * params["blocks"]["bias"] + 1, atol=1e-6)
    assert "unused" not in said
    backwards = {f"{cell}.weight_ih_l0_reverse": tensors[f"{cell}.weight_ih_l0"]}
    with pytest.raises(UsageError, match="weight_ih_l0_reverse' is of a layer"):
        starts.convert("recurrent", cfg, tensors | backwards)


def test_t5s_files_are_understood():
    cfg = section(
        "encdec", width=16, depth=2, num_heads=2, vocab_size=50, seq_len=12, norm="rmsnorm", norm_placement="pre",
        bias=False, position="relative_bias", start_token=0, tied_head=False,
    )  # fmt: skip
    params = drawn(models.family("encdec"), cfg)["params"]
    tensors = published("encdec", params, lambda name: ("block" in name and "wi_" not in name) or name.count(".") == 1
                        or ("final_layer_norm" in name and "layers" not in name))  # fmt: skip
    tensors["encoder.embed_tokens.weight"] = tensors["shared.weight"]
    tensors["decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"] = np.ones((32, 2), np.float32)
    found, said = starts.convert("encdec", cfg, tensors)
    same(found, params)  # the untied head, too
    assert "unused" not in said
    gated = {"encoder.block.0.layer.1.DenseReluDense.wi_0.weight": np.ones((64, 16), np.float32)}
    with pytest.raises(UsageError, match=r"wi_0.weight' is of a layer, and no parameter of this model"):
        starts.convert("encdec", cfg, tensors | gated)
    other = {"encoder.embed_tokens.weight": tensors["shared.weight"] + 1}
    with pytest.raises(UsageError, match=r"'encoder.embed_tokens.weight' differs from 'shared.weight'.*\(tied\)"):
        starts.convert("encdec", cfg, tensors | other)


def test_marians_names_are_known_with_and_without_their_prefix():
    cfg = section("encdec", width=16, depth=1, num_heads=2, vocab_size=50, seq_len=12, start_token=0, output_bias=True,
                  attention_bias=True)  # fmt: skip
    params = drawn(models.family("encdec"), cfg)["params"]
    tensors = published("encdec", params, lambda name: "block" not in name)
    tensors["final_logits_bias"] = tensors["final_logits_bias"][None]
    heads = ("final_logits_bias", "lm_head.weight")
    for prefix in ("model.", ""):
        named = {k if k in heads else prefix + k: v for k, v in tensors.items()}
        found, said = starts.convert("encdec", cfg, named | {"lm_head.weight": tensors["shared.weight"]})
        same(found, params)
        assert "unused" not in said


def test_a_folder_with_weights_in_it_is_taken_as_they_are(bert, tmp_path):
    with pytest.raises(UsageError, match=r"no finished run there \(no result.json\), and no weights"):
        budget.finalize(bert(("train.init_from", str(tmp_path))))
    save_file(published("bert", masked(bert)), tmp_path / "model.safetensors")
    paths = (str(tmp_path), str(tmp_path / "model.safetensors"))
    folder, file = (budget.finalize(bert(("train.init_from", path))).train.init_fingerprint for path in paths)
    assert folder == file != ""


@pytest.mark.network
def test_minilms_tensors_are_all_accounted_for(tmp_path):
    from bigmodel.prepare.published import prepare_weights

    prepare_weights("minilm", str(tmp_path / "minilm"))
    cfg = section("bert", width=384, depth=6, num_heads=12, seq_len=40, cls_token=101, sep_token=102, mask_token=103)
    start = drawn(models.family("bert"), cfg)["params"]
    _, said = starts.load(str(tmp_path / "minilm/model.safetensors"), "bert", cfg, start)
    body = len(weights.read(str(tmp_path / "minilm/model.safetensors")).tensors) - 3 - 16 * 6 + 16  # of 6 layers
    assert said == (
        f"{body} of {body + 5} parameters taken; fresh: output_bias, transform/bias, transform/kernel, "
        "transform/norm/bias, transform/norm/scale; unused tensors: embeddings.position_ids, pooler.dense.bias, "
        "pooler.dense.weight; embed/positions: the first 40 of 512, of a shorter window"
    )


# --------------------------------------------------------------------------------- other runs


@pytest.fixture(scope="module")
def pretrained(data_dir, tmp_path_factory):
    """The folder of a masked BERT with the next-sentence head, trained for a step."""
    from bigmodel.run.session import train

    root = tmp_path_factory.mktemp("pretrained")
    pairs = [*BERT, ("run.data_dir", data_dir), ("model.objective", "masked_next")]
    return root / train(config.load(ROOT / "experiments/bert.py", pairs), str(root), quiet=True)["run_id"]


def test_what_is_taken_of_a_run_is_said(trained, pretrained):
    code, said, home = trained(pretrained, ("model.objective", "masked"))
    total = len(tree.paths(evaluate.restore(str(home)).variables["params"]))
    line = f"{pretrained}: {total} of {total} parameters taken; unused parameters of that run: next, next_bias, pooler/"
    assert code == 0 and any(line in s for s in said), said
    code, said, home = trained(pretrained, ("model.objective", "masked"), ("train.init_only", "^embed/"))
    assert code == 0 and any(f"{pretrained}: 5 of {total} parameters taken; fresh: blocks/" in s for s in said), said


def test_a_parameter_of_the_other_runs_body_is_not_dropped_unsaid(trained, pretrained, tmp_path):
    code, (line,), _ = trained(pretrained, ("model.segments", 0))
    assert code == 2 and f"init_from={str(pretrained)!r}: its 'embed/segments' is no parameter of this model" in line
    assert not (tmp_path / "runs").exists()


def test_a_run_that_scales_its_weights_otherwise_is_refused(trained, pretrained):
    scaled = [("model.parametrization", "ntk"), ("model.base_width", 8), ("model.base_num_heads", 1)]
    code, (line,), _ = trained(pretrained, ("model.objective", "masked_next"), *scaled)
    assert code == 2 and "its model.parametrization is 'standard', here it is 'ntk'" in line


def test_a_start_from_a_run_that_diverged_says_so(trained, pretrained, tmp_path):
    import shutil

    shutil.copytree(pretrained, tmp_path / "other")
    result = record.read_json(tmp_path / "other/result.json")
    record.write_json(tmp_path / "other/result.json", result | {"status": "diverged", "last_good_step": 1})
    code, said, _ = trained(tmp_path / "other", ("model.objective", "masked_next"))
    assert code == 0 and any("that run diverged: of its step 1" in s for s in said), said


def test_a_config_that_names_a_start_without_its_place_is_refused(bert, pretrained):
    started = bert(("train.init_from", str(pretrained)), ("model.objective", "masked_next"))
    frozen = budget.finalize(started)
    again = config.from_json(config.to_json(frozen))
    again.train.init_from = ""  # the same id as of the run that started there
    assert identity.run_id(again) == identity.run_id(frozen)
    with pytest.raises(UsageError, match=r"init_from is empty: to start afresh, --config.train.init_fingerprint="):
        budget.finalize(again)
