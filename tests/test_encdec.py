"""Encoder-decoder: references, caches, span corruption, beam search, padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import drawn
from ml_collections import FrozenConfigDict

from bigmodel.after import generate
from bigmodel.models import encdec
from bigmodel.run import starts

SMALL = dict(width=16, depth=2, num_heads=2, vocab_size=50, seq_len=12, source_len=9, dropout=0.0)
T5 = dict(
    position="relative_bias", norm="rmsnorm", norm_placement="pre", norm_eps=1e-6, bias=False, score_scale=1.0,
    scale_embed=False, scale_logits=True, start_token=0,
)  # fmt: skip
MARIAN = dict(attention_bias=True, activation="silu", output_bias=True, start_token=49)
VARIANTS = {
    "vaswani": {},
    "t5": T5,
    "marian": MARIAN,
    "learned": dict(position="learned"),
    "rope_untied": dict(position="rope", tied_head=False, norm_placement="pre", num_kv_heads=1, value_dim=4),
}


def section(**overrides):
    cfg = encdec.get_config()
    cfg.update({**SMALL, **overrides})
    encdec.finalize(cfg)
    return FrozenConfigDict(cfg)


def ready(variant="vaswani", **more):
    """(cfg, model, variables, source 4 x 9 of several lengths, keys, tokens 4 x 12)"""
    cfg = section(**VARIANTS[variant], **more)
    rng = np.random.default_rng(0)
    source, tokens = (jnp.asarray(rng.integers(1, 50, (4, n))) for n in (9, 12))
    keys = jnp.arange(9) < jnp.array([9, 4, 6, 1])[:, None]
    return cfg, encdec.Model(cfg), drawn(encdec, cfg, 0.3), source, keys, tokens


@pytest.mark.parametrize("variant", VARIANTS)
def test_cached_steps_equal_the_full_forward(variant):
    cfg, model, variables, source, keys, tokens = ready(variant)
    full = jax.jit(lambda: model.apply(variables, source, tokens, False, keys))()
    first = jax.jit(lambda t, c: model.apply(variables, t, c, source, keys, method=model.step))
    step = jax.jit(lambda t, c: model.apply(variables, t, c, method=model.step))
    logits, cache = first(tokens[:, :3], encdec.init_cache(cfg, 4))
    parts = [logits]
    for i in range(3, 12):
        logits, cache = step(tokens[:, i : i + 1], cache)
        parts.append(logits)
    np.testing.assert_allclose(jnp.concatenate(parts, axis=1), full, atol=3e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_padding_and_the_future_are_not_seen(variant):
    _, model, variables, source, keys, tokens = ready(variant)
    apply = jax.jit(lambda s, t: model.apply(variables, s, t, False, keys))
    whole = apply(source, tokens)
    np.testing.assert_allclose(apply(jnp.where(keys, source, 7), tokens), whole, atol=1e-6)
    later = apply(source, tokens.at[:, 6].set(3))
    np.testing.assert_allclose(later[:, :6], whole[:, :6], atol=1e-6)
    assert (jnp.abs(later[:, 6:] - whole[:, 6:]).max(axis=(1, 2)) > 1e-4).all()
    # An encoder sees both sides: the last token that counts changes what is predicted first.
    changed = apply(source.at[0, 8].set(3), tokens)
    assert jnp.abs(changed[0, 0] - whole[0, 0]).max() > 1e-4


def test_targets_that_don_t_count_aren_t_in_the_loss():
    cfg, model, variables, source, _, tokens = ready()
    batch = dict(
        source=source, source_length=jnp.array([9, 4, 6, 1]), target=tokens, target_length=jnp.array([12, 3, 5, 8]),
        weight=jnp.ones(4),
    )  # fmt: skip
    loss = jax.jit(lambda b: encdec.loss(model, variables, b, jax.random.key(0), False))
    value, (metrics, _) = loss(batch)
    assert float(metrics["loss"][1]) == 12 + 3 + 5 + 8
    padded = {**batch, "target": jnp.where(jnp.arange(12) < batch["target_length"][:, None], tokens, 1)}
    np.testing.assert_allclose(loss(padded)[0], value, rtol=1e-6)
    # Label smoothing is in what is minimised, and not in what is reported.
    other = encdec.Model(FrozenConfigDict({**cfg.to_dict(), "smoothing": 0.0}))
    plain, (same, _) = jax.jit(lambda b: encdec.loss(other, variables, b, jax.random.key(0), False))(batch)
    reported = [m["loss"][0] / m["loss"][1] for m in (metrics, same)]
    np.testing.assert_allclose([plain, reported[0]], reported[1], rtol=1e-6)
    assert abs(float(value - plain)) > 1e-3


def test_smoothed_cross_entropy_is_torch_s_definition():
    """(1 - e) nll + e mean over classes of -log p."""
    from bigmodel.models import losses

    logits, labels = jax.random.normal(jax.random.key(0), (5, 7)), jnp.arange(5)
    log_p = jax.nn.log_softmax(logits)
    want = -jnp.mean(0.9 * log_p[jnp.arange(5), labels] + 0.1 * jnp.mean(log_p, axis=1))
    np.testing.assert_allclose(losses.cross_entropy(logits, labels, jnp.ones(5), smoothing=0.1)[0], want, rtol=1e-6)


def test_corrupted_spans_put_together_are_the_text():
    cfg = section(objective="span", seq_len=40, source_len=0)
    noise, M = encdec.spans(cfg)
    S, L = encdec.lengths(cfg)
    assert (noise, M) == (6, 2) and (S, L) == (36, 9)
    text = jnp.arange(40) % 50
    corrupt = jax.jit(lambda key: encdec.corrupt(cfg, text, key))
    cuts = set()
    for seed in range(30):
        source, target = map(np.asarray, corrupt(jax.random.key(seed)))
        first = cfg.vocab_size + 1
        pieces = np.split(target, np.flatnonzero(target >= first))[1:]
        assert [p[0] for p in pieces] == [first, first + 1, first + 2] and len(pieces[-1]) == 1
        held = {p[0]: p[1:] for p in pieces}
        assert all(len(held[first + m]) for m in range(M))
        whole = np.concatenate([held[t] if t >= first else [t] for t in source])
        np.testing.assert_array_equal(whole, text)
        cuts.add(tuple(np.flatnonzero(source >= first)))
    assert len(cuts) > 10  # the last span is always the text's end


def test_a_beam_scores_no_less_than_greedy_and_its_score_is_its_own():
    """Of 16 sources; beams find better ones than greedy does. Without an end they are long, and go wrong where a beam
    goes on from another one's cache."""
    cfg = section(**VARIANTS["rope_untied"])  # a tied head repeats its input
    model, variables = encdec.Model(cfg), drawn(encdec, cfg, 0.5)
    source = jnp.asarray(np.random.default_rng(1).integers(1, 50, (16, 9)))
    length = 10

    def step(t, c, *more):
        stacked = {**c, "layers": generate.joined(c["layers"])}
        logits, c = model.apply(variables, t, stacked, *more, method=model.step)
        return logits, generate.cut_cache(c)

    @jax.jit
    def both(end):
        first = jnp.full((16, 1), encdec.start(cfg))
        logits, cache = step(first, generate.cut_cache(encdec.init_cache(cfg, 16)), source)
        plain = generate.greedy(step, logits[:, -1], cache, length, end)
        beams = (generate.beam(step, logits[:, -1], cache, length, end, J, 0.6) for J in (1, 4))
        return plain, *((texts[:, 0], scores[:, 0]) for texts, scores in beams)

    @jax.jit
    def score(tokens, end):
        """log p / ((5 + n) / 6)^0.6 by the full forward pass, and n."""
        n = jnp.minimum(jnp.argmax(tokens == end, axis=1) + 1, length)
        n = jnp.where((tokens == end).any(axis=1), n, length)
        logits = model.apply(variables, source, encdec.shifted(cfg, tokens))
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[..., None], axis=2)[..., 0]
        return jnp.sum(picked * (jnp.arange(length) < n[:, None]), axis=1) / ((5 + n) / 6) ** 0.6, n

    for end in (3, 10_000):
        (tokens, log_p), *beams = both(end)
        greedy_score, n = score(tokens, end)
        np.testing.assert_allclose(log_p / ((5 + n) / 6) ** 0.6, greedy_score, atol=1e-4)
        for found, scores in beams:
            np.testing.assert_allclose(score(found, end)[0], scores, atol=1e-4)
        for _, scores in beams:
            assert (scores >= greedy_score - 1e-5).all()
        for _, scores in beams[1:]:
            assert (scores > greedy_score + 1e-3).sum() > 4


# ------------------------------------------------------------------------------------- references


def reference(name):
    """(a randomly started model of transformers, our section)"""
    import transformers

    common = dict(vocab_size=50, d_model=16, num_heads=2)
    if name == "t5":
        shape = dict(d_kv=8, d_ff=24, num_layers=2, num_decoder_layers=3, feed_forward_proj="relu", dropout_rate=0.0)
        theirs = transformers.T5ForConditionalGeneration(transformers.T5Config(**common, **shape))
        return theirs, section(**T5, ffn=24, decoder_depth=3, seq_len=40, source_len=40)
    shape = dict(
        encoder_layers=2, decoder_layers=3, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=24,
        decoder_ffn_dim=24, activation_function="swish", scale_embedding=True, pad_token_id=49,
        decoder_start_token_id=49, dropout=0.0, max_position_embeddings=64, eos_token_id=0,
    )  # fmt: skip
    theirs = transformers.MarianMTModel(transformers.MarianConfig(vocab_size=50, d_model=16, **shape))
    return theirs, section(**MARIAN, ffn=24, decoder_depth=3, seq_len=40, source_len=40)


@pytest.mark.reference
@pytest.mark.parametrize("name", ["t5", "marian"])
def test_the_reference_s_numbers(name):
    """Random weights of transformers' model in ours: the same logits, with padded sources."""
    import torch

    torch.manual_seed(0)
    theirs, cfg = reference(name)
    theirs.eval()
    with torch.no_grad():
        for path, p in theirs.named_parameters():
            if "embed_positions" not in path:  # sinusoids
                p.add_(0.2 * torch.randn_like(p))
        if name == "marian":
            theirs.final_logits_bias.add_(torch.randn_like(theirs.final_logits_bias))
    rng = np.random.default_rng(0)
    source, tokens = rng.integers(1, 49, (3, 40)), rng.integers(1, 49, (3, 40))
    keys = np.arange(40) < np.array([40, 17, 5])[:, None]
    with torch.no_grad():
        want = theirs(
            input_ids=torch.tensor(source),
            attention_mask=torch.tensor(keys).long(),
            decoder_input_ids=torch.tensor(tokens),
        ).logits.numpy()
    state = {k: v.numpy() for k, v in theirs.state_dict().items()}
    params, _ = starts.convert("encdec", cfg, state)
    got = encdec.Model(cfg).apply({"params": params}, source, tokens, False, keys)
    print(name, "largest difference", np.abs(got - want).max(), "of", np.abs(want).max())
    np.testing.assert_allclose(got, want, atol=1e-4)
