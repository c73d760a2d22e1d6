"""Weights in and out: six published layouts there and back, and folders that are refused."""

import json
import shutil

import jax
import numpy as np
import pytest
from conftest import drawn
from ml_collections import FrozenConfigDict
from safetensors.numpy import load_file, save_file

from bigmodel import models, tree
from bigmodel.after import convert, decode, generate, opened
from bigmodel.cli import main
from bigmodel.errors import UsageError
from bigmodel.ops import sharding
from bigmodel.run import session

SMALL = dict(vocab_size=60, depth=2, width=16, num_heads=4)
PLAIN = dict(scale_residual=False, init_std=0.1)
SECTIONS = {
    "gpt2": ("decoder", dict(**SMALL, seq_len=24)),
    "opt": ("decoder", dict(**SMALL, seq_len=24, position_offset=2, activation="relu", embed_dim=8)),
    "opt_post": (
        "decoder",
        dict(**SMALL, seq_len=24, position_offset=2, activation="relu", norm_placement="post", final_norm=False),
    ),
    "llama": (
        "decoder",
        dict(**SMALL, seq_len=24, position="rope", norm="rmsnorm", bias=False, attention_bias=False, num_kv_heads=2,
             activation="swiglu", ffn=40, tied_head=False),
    ),
    "neox": ("decoder", dict(**SMALL, seq_len=24, position="rope", activation="gelu", ffn=40)),
    "bert": ("bert", dict(**SMALL, seq_len=24, cls_token=1, sep_token=2, mask_token=3, objective="masked_next")),
    "bert_classes": (
        "bert", dict(**SMALL, seq_len=24, cls_token=1, sep_token=2, mask_token=3, objective="classify", num_classes=5),
    ),
    "t5": (
        "encdec",
        dict(**SMALL, decoder_depth=3, seq_len=24, norm="rmsnorm", norm_placement="pre", bias=False,
             position="relative_bias", score_scale=1.0, scale_embed=False, scale_logits=True, start_token=0),
    ),
    "t5_gated": (
        "encdec",
        dict(**SMALL, seq_len=24, norm="rmsnorm", norm_placement="pre", bias=False, tied_head=False, start_token=0,
             position="relative_bias", score_scale=1.0, scale_embed=False, activation="geglu_tanh"),
    ),
    "marian": (
        "encdec", dict(**SMALL, seq_len=24, attention_bias=True, output_bias=True, activation="silu", start_token=59),
    ),
    "lstm": ("recurrent", dict(vocab_size=60, depth=2, width=16, seq_len=24)),
}  # fmt: skip


def section(family, **overrides):
    cfg = models.family(family).get_config()
    cfg.update(overrides)
    models.family(family).finalize(cfg)
    return FrozenConfigDict(cfg)


def model(name, **more):
    """An untrained model of a layout, all its parameters at random."""
    family, overrides = SECTIONS[name]
    cfg = section(family, **overrides, **more)
    return opened.Opened(family, cfg, drawn(models.family(family), cfg)["params"], "", (2,))


def outputs(found, seed=0):
    """Logits of random tokens."""
    module, rng = found.module, np.random.default_rng(seed)
    tokens = rng.integers(1, 59, (3, 20)).astype(np.int32)
    keys = np.arange(20) < np.array([20, 9, 5])[:, None]
    given = {"encdec": (tokens, tokens[:, ::-1], False, keys), "bert": (tokens, False, keys)}
    out = module.Model(found.cfg).apply({"params": found.params}, *given.get(found.family, (tokens,)))
    return np.asarray(getattr(out, "logits", out))


def same(a, b):
    for path, x, y in zip(tree.paths(a), jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y, err_msg=path)


@pytest.mark.parametrize("name", SECTIONS)
def test_a_model_is_written_and_read_again_to_the_bit(name, tmp_path):
    start = model(name)
    convert.write_folder(start, str(tmp_path / "a"))
    found = opened.open_published(str(tmp_path / "a"))
    assert found.ends == (2,)
    expected = start.params
    if name == "lstm":
        expected = convert.folded("recurrent", start.cfg, start.params)[1]
    same(found.params, expected)
    np.testing.assert_allclose(outputs(found), outputs(start), atol=1e-5)
    # As a run, and from there back.
    convert.write_run(found, str(tmp_path / "a"), str(tmp_path / "run"))
    again = opened.open_run(str(tmp_path / "run"))
    same(again.params, expected)
    convert.write_folder(again, str(tmp_path / "b"))
    first, second = (load_file(tmp_path / part / "model.safetensors") for part in "ab")
    assert first.keys() == second.keys()
    for key, x in first.items():
        np.testing.assert_array_equal(x, second[key], err_msg=key)
    assert json.loads((tmp_path / "a/config.json").read_text()) == json.loads((tmp_path / "b/config.json").read_text())


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("gpt2", dict(parametrization="completep", base_width=8, base_depth=1, base_num_heads=2)),
        ("llama", dict(parametrization="mup", base_width=8, base_num_heads=4)),
        ("gpt2", dict(parametrization="mup", base_width=8, base_num_heads=4, tied_head=False)),
        ("bert", dict(parametrization="mup", base_width=8, base_num_heads=2)),
        ("bert_classes", dict(parametrization="completep", base_width=8, base_depth=1, base_num_heads=4)),
    ],
)
def test_a_parametrisations_factors_are_folded_into_the_weights(name, more, tmp_path):
    start = model(name, **more)
    same_but = {k: v for k, v in more.items() if k == "tied_head"}
    plain = opened.Opened(start.family, model(name, **same_but).cfg, start.params, "")
    assert np.abs(outputs(start) - outputs(plain)).max() > 1e-3  # the factors matter
    convert.write_folder(start, str(tmp_path / "a"))
    found = opened.open_published(str(tmp_path / "a"))
    assert found.cfg.parametrization == "standard"
    np.testing.assert_allclose(outputs(found), outputs(start), atol=1e-5)


def test_rows_that_we_add_to_a_vocabulary_are_part_of_the_written_one(tmp_path):
    for name, own in (("bert", dict(cls_token=-1, sep_token=-1, mask_token=-1)), ("marian", dict(start_token=-1))):
        family, overrides = SECTIONS[name]
        cfg = section(family, **overrides | own)
        start = opened.Opened(family, cfg, drawn(models.family(family), cfg)["params"], "")
        convert.write_folder(start, str(tmp_path / name))
        found = opened.open_published(str(tmp_path / name))
        assert found.cfg.vocab_size == 60 + len(own)
        np.testing.assert_allclose(outputs(found), outputs(start), atol=1e-5)


def test_an_untied_head_is_out_by_in_in_every_layout(tmp_path):
    for name in ("gpt2", "opt", "llama"):
        convert.write_folder(model(name, tied_head=False) if name != "llama" else model(name), str(tmp_path / name))
        head = load_file(tmp_path / name / "model.safetensors")["lm_head.weight"]
        assert head.shape == (60, 8 if name == "opt" else 16)


def test_a_marian_of_ours_pads_with_a_token_that_it_has(tmp_path):
    convert.write_folder(model("marian"), str(tmp_path / "a"))
    config = json.loads((tmp_path / "a/config.json").read_text())
    assert config["pad_token_id"] == config["decoder_start_token_id"] == 59


def test_a_run_is_written_with_the_end_of_its_texts_or_not_at_all(tiny, tmp_path, capsys):
    cfg = tiny(("train.steps", 2), ("model.position", "learned"), ("model.parametrization", "standard"))
    run, out = str(tmp_path / session.train(cfg, str(tmp_path), quiet=True)["run_id"]), tmp_path / "theirs"
    assert main.main(["convert", run, f"--out={out}", f"--data-dir={tmp_path}"]) == 2
    assert not out.exists() and not (tmp_path / "theirs.part").exists()
    assert main.main(["convert", run, f"--out={out}/"]) == 0, capsys.readouterr().err
    assert json.loads((out / "config.json").read_text())["eos_token_id"] == 0
    assert opened.open_published(str(out)).ends == (0,)


def test_a_model_that_no_layout_holds_is_refused(tmp_path):
    for name, more, word in (
        ("gpt2", dict(position="relative"), "model.position='relative', where it has 'learned'"),
        ("llama", dict(qk_norm=True), "model.qk_norm=True, where it has False"),
        ("lstm", dict(tied_head=True), "model.tied_head=True"),
    ):
        with pytest.raises(UsageError, match=f"no published layout holds this model.*{word}"):
            convert.write_folder(model(name, **more), str(tmp_path / "a"))
    assert not (tmp_path / "a").exists()


# ------------------------------------------------------------------------- folders as users have them


@pytest.fixture
def folder(tmp_path):
    """A GPT-2 folder, and functions to change its tensors and config."""
    home = tmp_path / "gpt2"
    convert.write_folder(model("gpt2"), str(home))

    def change(tensors=None, config=None):
        if tensors:
            held = tensors(load_file(home / "model.safetensors"))
            save_file(held, home / "model.safetensors")
        if config:
            found = json.loads((home / "config.json").read_text())
            (home / "config.json").write_text(json.dumps(config(found)))
        return home

    return change


def shards(home, cut=0, lie=False):
    """The folder's tensors in two files and an index; `cut`: without the second file."""
    held = load_file(home / "model.safetensors")
    names = sorted(held)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    where = {name: file for file, part in parts.items() for name in part}
    for file, part in parts.items():
        save_file({k: held[k] for k in part if not (lie and k == names[1])}, home / file)
    (home / "model.safetensors").unlink()
    (home / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    if cut:
        (home / "model-00002-of-00002.safetensors").unlink()


def float8(home):
    """The token table as a type that numpy hasn't."""
    content = (home / "model.safetensors").read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header["transformer.wte.weight"] |= {"dtype": "F8_E4M3", "shape": [60, 64]}
    told = json.dumps(header).encode()
    (home / "model.safetensors").write_bytes(len(told).to_bytes(8, "little") + told + content[8 + size :])


def renamed(old, new):
    return lambda t: {k.replace(old, new): v for k, v in t.items()}


def layer_more(t):
    return t | {k.replace("h.1.", "h.2."): v for k, v in t.items() if "h.1." in k}


H0 = "transformer.h.0."
MALFORMED = {
    "a missing shard": (lambda f: shards(f(), cut=1), "lacks the shard 'model-00002-of-00002.safetensors', which"),
    "a shard without a tensor": (lambda f: shards(f(), lie=True), "lacks 'transformer.*which model.safetensors.index"),
    "a wrong shape": (
        lambda f: f(lambda t: t | {H0 + "mlp.c_fc.weight": np.ones((16, 60), np.float32)}),
        r"'transformer.h.0.mlp.c_fc.weight' is \[16, 60\], where 'blocks/mlp/up' is \[16, 64\] a layer",
    ),
    "exchanged sides": (
        lambda f: f(lambda t: t | {H0 + "mlp.c_fc.weight": t[H0 + "mlp.c_fc.weight"].T.copy()}),
        r"\[64, 16\], where 'blocks/mlp/up' is \[16, 64\]",
    ),
    "an unknown prefix": (lambda f: f(renamed("transformer.", "backbone.")), "knows none of its|no parameter of"),
    "renamed norms": (lambda f: f(renamed("ln_1", "norm1")), r"norm1.\w+' is of a layer, and no parameter of this"),
    "an extra layer": (lambda f: f(layer_more), "the file has 3 layers, the model 2"),
    "a missing layer": (
        lambda f: f(lambda t: {k: v for k, v in t.items() if "h.1." not in k}), "1 of the model's 2 layers",
    ),
    "a missing tensor": (
        lambda f: f(lambda t: {k: v for k, v in t.items() if "wpe" not in k}), "no 'wpe.weight' for 'embed/positions'",
    ),
    "a left-over tensor": (
        lambda f: f(lambda t: t | {"transformer.adapter.weight": np.ones(3, np.float32)}),
        "'transformer.adapter.weight' is no parameter of this model",
    ),
    "a weight that is no number": (
        lambda f: f(lambda t: t | {H0 + "mlp.c_fc.weight": np.full((16, 64), np.nan, np.float32)}),
        "'transformer.h.0.mlp.c_fc.weight' has values that aren't finite",
    ),
    "another tied head": (
        lambda f: f(lambda t: t | {"lm_head.weight": t["transformer.wte.weight"] + 1}),
        r"'lm_head.weight' differs from 'transformer.wte.weight', which this model uses in its place",
    ),
    "integers": (
        lambda f: f(lambda t: t | {H0 + "mlp.c_fc.weight": np.ones((16, 64), np.int8)}), "int8, where 'blocks/mlp/up'",
    ),
    "a pickle": (
        lambda f: (f() / "model.safetensors").rename(f() / "pytorch_model.bin"), "as a pickle .*never opened",
    ),
    "a torn file": (
        lambda f: (f() / "model.safetensors").write_bytes((f() / "model.safetensors").read_bytes()[:900]),
        "can't be read as safetensors",
    ),
    "no config": (lambda f: (f() / "config.json").unlink(), "no config.json"),
    "a config that is no JSON": (lambda f: (f() / "config.json").write_text("{"), "config.json' can't be read"),
    "another architecture": (lambda f: f(config=lambda c: c | {"model_type": "gptj"}), "type 'gptj'.*known are bert"),
    "an option that changes the function": (
        lambda f: f(config=lambda c: c | {"scale_attn_by_inverse_layer_idx": True}),
        "scale_attn_by_inverse_layer_idx=True isn't supported, only False",
    ),
    "heads that don't divide": (lambda f: f(config=lambda c: c | {"n_head": 3}), "num_heads=3 doesn't divide width=16"),
    "a missing size": (
        lambda f: f(config=lambda c: {k: v for k, v in c.items() if k != "n_layer"}), "it has no 'n_layer'",
    ),
    "an unknown activation": (
        lambda f: f(config=lambda c: c | {"activation_function": "gelu_nw"}), "did you mean 'gelu_new'",
    ),
    "eight bits": (lambda f: float8(f()), "'transformer.wte.weight' can't be read: .*float8"),
    "a model_type that is a list": (lambda f: f(config=lambda c: c | {"model_type": ["gpt2"]}), "known are bert"),
    "a size that is no integer": (lambda f: f(config=lambda c: c | {"n_head": 2.5}), "can't be built: .*num_heads"),
    "a huge size": (lambda f: f(config=lambda c: c | {"n_embd": 10**30}), "is no number of a model"),
    "a huge depth": (lambda f: f(config=lambda c: c | {"n_layer": 10**9}), "2 of the model's 1000000000 layers"),
    "words for a truth": (
        lambda f: f(config=lambda c: c | {"tie_word_embeddings": "no"}), "tie_word_embeddings: 'no' is not one of True",
    ),
    "a config of brackets": (lambda f: (f() / "config.json").write_text("[" * 10**5), "config.json' can't be read"),
    "an index of nothing": (
        lambda f: (f() / "model.safetensors.index.json").write_text('{"weight_map": {}}'), "weight_map is empty",
    ),
    "two files": (
        lambda f: shutil.copy(f() / "model.safetensors", f() / "other.safetensors"), "2 files of weights.*name one",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_folder_is_one_clear_line_and_nothing_is_written(folder, case, tmp_path, capsys):
    break_it, said = MALFORMED[case]
    home = folder()
    break_it(folder)
    assert main.main(["convert", str(home), f"--out={tmp_path / 'run'}"]) == 2
    out = capsys.readouterr()
    (line,) = out.err.splitlines()
    import re

    assert re.search(said, line), line
    assert out.out == "" and not (tmp_path / "run").exists() and not (tmp_path / "run.part").exists()


@pytest.mark.parametrize("scaling", ["linear", {"type": "linear", "factor": 2.0}, {"rope_type": "yarn"}])
def test_rope_that_is_scaled_is_refused_also_beside_plain_parameters(scaling, tmp_path):
    convert.write_folder(model("llama"), str(tmp_path / "a"))
    config = json.loads((tmp_path / "a/config.json").read_text())
    config |= {"rope_parameters": {"rope_theta": 1e4, "rope_type": "default"}, "rope_scaling": scaling}
    (tmp_path / "a/config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match=r"rope_type='(linear|yarn)' isn't supported"):
        opened.open_published(str(tmp_path / "a"))


def gguf_file(path, tensors, **changes):
    """Llama's tensors as llama.cpp has them: neighbours of a head paired by rotary positions, not its halves."""
    import gguf

    sizes = dict(block_count=2, embedding_length=16, feed_forward_length=40, head_count=4, head_count_kv=2) | changes
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in {**sizes, "context_length": 24, "layer_norm_rms_eps": 1e-5, "rope_freq_base": 1e4}.items():
        if value:
            getattr(writer, f"add_{key}")(value)
    layer = {f"self_attn.{k}_proj": f"attn_{k}" for k in "qkv"} | {f"mlp.{k}_proj": f"ffn_{k}" for k in ("gate", "up")}
    layer |= {"self_attn.o_proj": "attn_output", "mlp.down_proj": "ffn_down"}
    layer |= {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
    others = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    for name, x in tensors.items():
        stem = name.removesuffix(".weight")
        if stem not in others:
            _, _, number, part = stem.split(".", 3)
            others[stem] = f"blk.{number}.{layer[part]}"
            if layer[part] in ("attn_q", "attn_k"):
                x = x.reshape(-1, 2, 2, 16).swapaxes(1, 2).reshape(x.shape).copy()
        writer.add_tensor(f"{others[stem]}.weight", x)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_is_the_folder_that_it_was_made_of(tmp_path):
    pytest.importorskip("gguf")
    start = model("llama")
    convert.write_folder(start, str(tmp_path / "a"))
    tensors = load_file(tmp_path / "a/model.safetensors")
    gguf_file(tmp_path / "a.gguf", tensors)
    found = opened.open_published(str(tmp_path / "a.gguf"))
    same(found.params, start.params)
    np.testing.assert_allclose(outputs(found), outputs(start), atol=1e-5)
    gguf_file(tmp_path / "b.gguf", tensors, head_count=0)
    with pytest.raises(UsageError, match=r"b.gguf' has no 'llama.attention.head_count'"):
        opened.open_published(str(tmp_path / "b.gguf"))
    gguf_file(tmp_path / "c.gguf", {k: x for k, x in tensors.items() if "embed" not in k})
    with pytest.raises(UsageError, match=r"c.gguf' has no 'token_embd.weight'"):
        opened.open_published(str(tmp_path / "c.gguf"))


def test_a_pickle_is_never_opened(folder, tmp_path, monkeypatch):
    home = folder()
    (home / "model.safetensors").unlink()
    (home / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch " + str(tmp_path / "ran").encode() + b"'\ntR.")
    assert main.main(["convert", str(home), f"--out={tmp_path / 'run'}"]) == 2
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_comes_back_to_the_bit(folder, dtype, tmp_path):
    import ml_dtypes  # noqa: F401

    home = folder(lambda t: {k: v.astype(np.dtype(dtype)) for k, v in t.items()}, lambda c: c | {"dtype": dtype})
    found = opened.open_published(str(home))
    assert jax.tree.leaves(found.params)[0].dtype == "float32"
    convert.write_run(found, str(home), str(tmp_path / "run"))
    convert.write_folder(opened.open_run(str(tmp_path / "run")), str(tmp_path / "b"))
    first, second = load_file(home / "model.safetensors"), load_file(tmp_path / "b/model.safetensors")
    for key, x in first.items():
        assert second[key].dtype == x.dtype == dtype
        np.testing.assert_array_equal(x, second[key])


def test_a_tied_head_that_is_stored_too_is_taken(folder):
    home = folder(lambda t: t | {"lm_head.weight": t["transformer.wte.weight"].copy()})
    assert "unused" not in opened.open_published(str(home)).said


def test_shards_are_read_and_written(folder, tmp_path, monkeypatch):
    whole = opened.open_published(str(folder()))
    shards(folder())
    found = opened.open_published(str(folder()))
    same(found.params, whole.params)
    monkeypatch.setattr(convert, "SHARD", 5000)
    convert.write_folder(found, str(tmp_path / "b"))
    assert len(list((tmp_path / "b").glob("model-*-of-*.safetensors"))) > 2
    same(opened.open_published(str(tmp_path / "b")).params, whole.params)


@pytest.mark.parametrize("start", ["theirs", "run"])
def test_training_goes_on_from_published_weights(start, data_dir, tmp_path, capsys):
    """By the config that a conversion writes, from the folder or from the run that it became."""
    family, overrides = SECTIONS["gpt2"]
    cfg = section(family, **overrides | dict(vocab_size=256, seq_len=40))
    first = opened.Opened(family, cfg, drawn(models.family(family), cfg)["params"], "")
    theirs, run = tmp_path / "theirs", tmp_path / "run"
    convert.write_folder(first, str(theirs))
    assert main.main(["convert", str(theirs), f"--out={run}", "--window=32"]) == 0
    pairs = {"data.name": "speech", "run.data_dir": data_dir, "run.wandb": "off", "train.batch_size": 2,
             "train.eval_examples": 4, "optim.lr": 1e-12, "train.init_from": tmp_path / start}  # fmt: skip
    capsys.readouterr()
    given = [f"--config.{key}={value}" for key, value in pairs.items()]
    assert main.main(["train", str(run / "config.json"), f"--runs={tmp_path / 'runs'}", "--json", *given]) == 0
    out = capsys.readouterr()
    cut = "; embed/positions: the first 32 of 40, of a shorter window" if start == "theirs" else ""
    assert f"{tmp_path / start}: 20 of 20 parameters taken{cut}" in out.err
    trained = opened.open_run(str(tmp_path / "runs" / json.loads(out.out)["run_id"]))
    assert trained.cfg.seq_len == 32
    np.testing.assert_allclose(trained.params["blocks"]["mlp"]["up"], first.params["blocks"]["mlp"]["up"], atol=1e-6)
    np.testing.assert_allclose(trained.params["embed"]["positions"], first.params["embed"]["positions"][:32], atol=1e-6)


def test_berts_marks_are_its_tokenizers_and_one_label_is_refused(tmp_path):
    home = tmp_path / "a"
    convert.write_folder(model("bert_classes"), str(home))
    found = json.loads((home / "config.json").read_text())
    bare = {k: v for k, v in found.items() if not k.endswith("_token_id")}
    (home / "config.json").write_text(json.dumps(bare))
    added = [{"id": k, "content": mark} for k, mark in ((7, "[CLS]"), (8, "[SEP]"), (9, "[MASK]"))]
    (home / "tokenizer.json").write_text(json.dumps({"added_tokens": added}))
    cfg = opened.open_published(str(home)).cfg
    assert (cfg.cls_token, cfg.sep_token, cfg.mask_token) == (7, 8, 9)
    for change in ({"num_labels": 1, "problem_type": None}, {"problem_type": "multi_label_classification"}):
        (home / "config.json").write_text(json.dumps(bare | change))
        with pytest.raises(UsageError, match=r"problem_type='.*' isn't supported, only 'single_label"):
            opened.open_published(str(home))


# -------------------------------------------------------------------------------------- the reference


@pytest.mark.reference
def test_a_run_writes_the_same_text_in_transformers(tiny, tmp_path, capsys):
    """Its tokenizer, of bytes, and its model, muP's factors folded in, through the auto classes."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    scaled = [("model.parametrization", "mup"), ("model.base_width", 8), ("model.base_num_heads", 1)]
    result = session.train(tiny(*scaled, ("train.steps", 30)), str(tmp_path), quiet=True)
    run, folder = str(tmp_path / result["run_id"]), str(tmp_path / "published")
    assert main.main(["convert", run, f"--out={folder}"]) == 0
    capsys.readouterr()
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    for prompt in ("The people", "今天天气 🙂", " a\n\tb"):
        assert main.main(["generate", run, f"--prompt={prompt}", "--max-new-tokens=12", "--json"]) == 0
        (row,) = json.loads(capsys.readouterr().out)
        given = tokenizer(prompt, return_tensors="pt")
        assert given.input_ids[0].tolist() == [0, *prompt.encode()]
        out = model.generate(**given, max_new_tokens=12, do_sample=False, pad_token_id=0)
        assert out[0, given.input_ids.shape[1] :].tolist() == row["tokens"]


def theirs(name):
    """A random model of Hugging Face's transformers."""
    import transformers as t

    small = dict(vocab_size=60)
    return {
        "gpt2": lambda: t.GPT2LMHeadModel(t.GPT2Config(n_embd=16, n_layer=2, n_head=4, n_positions=24, **small)),
        "gpt2_untied": lambda: t.GPT2LMHeadModel(t.GPT2Config(
            n_embd=16, n_layer=2, n_head=4, n_positions=24, n_inner=40, tie_word_embeddings=False, **small)),
        "opt": lambda: t.OPTForCausalLM(t.OPTConfig(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=4, ffn_dim=40, max_position_embeddings=24,
            word_embed_proj_dim=8, **small)),
        "opt_post": lambda: t.OPTForCausalLM(t.OPTConfig(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=4, ffn_dim=40, max_position_embeddings=24,
            word_embed_proj_dim=8, do_layer_norm_before=False, **small)),
        "llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=40,
            max_position_embeddings=24, **small)),
        "llama_tied": lambda: t.LlamaForCausalLM(t.LlamaConfig(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=40,
            max_position_embeddings=24, tie_word_embeddings=True, rope_theta=1e5, head_dim=8, **small)),
        "neox": lambda: t.GPTNeoXForCausalLM(t.GPTNeoXConfig(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40,
            max_position_embeddings=24, use_parallel_residual=False, rotary_pct=1.0, **small)),
        "neox_tied": lambda: t.GPTNeoXForCausalLM(t.GPTNeoXConfig(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=40, hidden_act="gelu_new",
            max_position_embeddings=24, use_parallel_residual=False, rotary_pct=1.0, rotary_emb_base=500.0,
            tie_word_embeddings=True, **small)),
        "bert": lambda: t.BertForPreTraining(bert_config(t)),
        "bert_masked": lambda: t.BertForMaskedLM(bert_config(t)),
        "bert_classes": lambda: t.BertForSequenceClassification(bert_config(t, num_labels=5)),
        "t5": lambda: t.T5ForConditionalGeneration(t.T5Config(
            d_model=16, d_kv=4, d_ff=40, num_layers=2, num_decoder_layers=3, num_heads=4, decoder_start_token_id=0,
            **small)),
        "t5_gated": lambda: t.T5ForConditionalGeneration(t.T5Config(
            d_model=16, d_kv=4, d_ff=40, num_layers=2, num_heads=4, decoder_start_token_id=0,
            feed_forward_proj="gated-gelu", tie_word_embeddings=False, scale_decoder_outputs=False, **small)),
        "marian": lambda: t.MarianMTModel(t.MarianConfig(
            d_model=16, encoder_layers=2, decoder_layers=3, encoder_attention_heads=4, decoder_attention_heads=4,
            encoder_ffn_dim=40, decoder_ffn_dim=40, max_position_embeddings=24, pad_token_id=59,
            decoder_start_token_id=59, activation_function="swish", scale_embedding=True, **small)),
    }[name]()  # fmt: skip


def bert_config(t, **more):
    return t.BertConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40,
        max_position_embeddings=24, **more,
    )  # fmt: skip


THEIRS = [
    "gpt2", "gpt2_untied", "opt", "opt_post", "llama", "llama_tied", "neox", "neox_tied", "bert", "bert_masked",
    "bert_classes", "t5", "t5_gated", "marian",
]  # fmt: skip


@pytest.mark.reference
@pytest.mark.parametrize("name", THEIRS)
def test_transformers_logits_and_tensors_there_and_back(name, tmp_path):
    import torch
    import transformers

    torch.manual_seed(0)
    ref = theirs(name).eval()
    with torch.no_grad():
        for path, p in ref.named_parameters():
            if "embed_positions" not in path or "opt" in name:  # Marian's are sinusoids
                p.add_(0.2 * torch.randn_like(p))
        if name == "marian":
            ref.final_logits_bias.add_(torch.randn_like(ref.final_logits_bias))
    ref.save_pretrained(tmp_path / "theirs")
    config = json.loads((tmp_path / "theirs/config.json").read_text())
    if ref.config.model_type == "bert":  # BERT's published marks are past this vocabulary
        config |= {"cls_token_id": 1, "sep_token_id": 2, "mask_token_id": 3}
        (tmp_path / "theirs/config.json").write_text(json.dumps(config))
    found = opened.open_published(str(tmp_path / "theirs"))

    rng = np.random.default_rng(0)
    tokens = rng.integers(4, 58, (3, 20)).astype(np.int32)
    keys = np.arange(20) < np.array([20, 9, 5])[:, None]

    def their_logits(m):
        ids = torch.tensor(tokens).long()
        with torch.no_grad():
            if found.family == "encdec":
                out = m(input_ids=ids, attention_mask=torch.tensor(keys).long(), decoder_input_ids=ids.flip(1))
            elif found.family == "bert":
                out = m(input_ids=ids, attention_mask=torch.tensor(keys).long())
            else:
                out = m(input_ids=ids)
        return (out.prediction_logits if name == "bert" else out.logits).numpy()

    given = {"encdec": (tokens, tokens[:, ::-1], False, keys), "bert": (tokens, False, keys)}
    out = found.module.Model(found.cfg).apply({"params": found.params}, *given.get(found.family, (tokens,)))
    ours, want = np.asarray(getattr(out, "logits", out)), their_logits(ref)
    shown = keys[..., None] if name in ("bert", "bert_masked") else True
    print(name, "largest difference", np.abs((ours - want) * shown).max(), "of", np.abs(want).max())
    np.testing.assert_allclose(ours * shown, want * shown, atol=1e-4)

    if found.family != "bert":  # and what they write, greedily, of prompts of two lengths
        mesh = sharding.make_mesh(sharding.ALONE, jax.devices()[:1])
        params = tree.map_paths(decode.placing(found.module, mesh, "float32"), found.params)
        decoder, prompts = decode.Decoder(found.module, found.cfg, params, mesh), [tokens[0, :9], tokens[1, :5]]
        parts = decoder.sample(decoder.batch([(k, p.tolist()) for k, p in enumerate(prompts)]), 8, generate.Sampling())
        written = np.concatenate([t for t, _ in parts], axis=1)
        ref.generation_config.eos_token_id = ref.generation_config.forced_eos_token_id = None
        for prompt, row in zip(prompts, written, strict=True):
            ids = torch.tensor(prompt[None]).long()
            wanted = ref.generate(ids, max_new_tokens=8, do_sample=False, use_cache=False)
            assert wanted[0, -8:].tolist() == row.tolist()

    convert.write_run(found, str(tmp_path / "theirs"), str(tmp_path / "run"))
    convert.write_folder(opened.open_run(str(tmp_path / "run")), str(tmp_path / "ours"))
    first, second = load_file(tmp_path / "theirs/model.safetensors"), load_file(tmp_path / "ours/model.safetensors")
    assert first.keys() - second.keys() <= {
        "model.encoder.embed_positions.weight",
        "model.decoder.embed_positions.weight",
    }
    assert second.keys() <= first.keys()
    for key in second:
        np.testing.assert_array_equal(first[key], second[key], err_msg=key)
    again, info = getattr(transformers, type(ref).__name__).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    np.testing.assert_array_equal(their_logits(again.eval()), want)
