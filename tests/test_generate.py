"""Continuations: the same tokens whatever the batch, the chunk and the mesh; draws by the asked distribution; files
that survive a kill; text that is never cut within a character."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, bigmodel, drawn
from ml_collections import FrozenConfigDict
from scipy import stats

from bigmodel import models, tree
from bigmodel.after import continuations, decode, generate
from bigmodel.after.generate import Sampling
from bigmodel.cli import main
from bigmodel.errors import UsageError
from bigmodel.ops import sharding
from bigmodel.prepare import tokenizer
from bigmodel.run.session import train

ONE = sharding.make_mesh(sharding.ALONE, jax.devices()[:1])
SMALL = dict(width=16, depth=2, vocab_size=40, seq_len=32)
VARIANTS = {
    "learned": ("decoder", dict(**SMALL, num_heads=2)),
    "rope_grouped": (
        "decoder",
        dict(**SMALL, num_heads=4, num_kv_heads=2, position="rope", norm="rmsnorm", bias=False, activation="swiglu"),
    ),
    "relative": ("decoder", dict(**SMALL, num_heads=2, position="relative", tied_head=False)),
    "relative_bias": ("decoder", dict(**SMALL, num_heads=2, position="relative_bias")),
    "prefix": ("decoder", dict(**SMALL, num_heads=2, position="rope", objective="prefix")),
    "lstm": ("recurrent", dict(**SMALL)),
    "encdec": ("encdec", dict(**SMALL, num_heads=2, position="rope", tied_head=False)),
}  # fmt: skip
PROMPTS = [[3, 1, 4], [1, 5, 9, 2, 6, 5, 3, 5], [8], [9, 7, 9, 3, 2]]


def made(name, std=0.3):
    family_name, overrides = VARIANTS[name]
    family = models.family(family_name)
    cfg = family.get_config()
    cfg.update(overrides)
    family.finalize(cfg)
    cfg = FrozenConfigDict(cfg)
    return family, cfg, drawn(family, cfg, std)["params"]


def decoder(name, mesh=ONE, ends=()):
    family, cfg, params = made(name)
    put = decode.placing(family, mesh, "float32")
    return decode.Decoder(family, cfg, tree.map_paths(put, params), mesh, ends)


def rows(parts):
    """Tokens of each row, from the chunks of `sample`."""
    tokens = np.concatenate([t for t, _ in parts], axis=1)
    return [[int(t) for t in row if t >= 0] for row in tokens]


def plain(name, prompts, length):
    """Greedy tokens and their log-probabilities by whole forward passes, of each prompt by itself."""
    family, cfg, params = made(name)
    model = family.Model(cfg)

    @jax.jit
    def logits(tokens, prefix, source):
        given = {"prefix_B": prefix[None]} if cfg.get("objective") == "prefix" else {}
        return model.apply({"params": params}, *source, tokens[None], **given)[0]

    for prompt in prompts:
        target, log_ps = [family.start(cfg)] if family.start else list(prompt), []
        source = (jnp.asarray([prompt]),) if family.start else ()
        for _ in range(length):
            padded = jnp.zeros(20, jnp.int32).at[: len(target)].set(jnp.asarray(target))  # no token sees a later one
            log_p = jax.nn.log_softmax(logits(padded, jnp.int32(len(prompt)), source)[len(target) - 1])
            target.append(int(jnp.argmax(log_p)))
            log_ps.append(float(log_p[target[-1]]))
        yield target[-length:], log_ps


@pytest.mark.parametrize("name", VARIANTS)
def test_greedy_tokens_are_those_of_whole_forward_passes(name):
    """Of prompts of several lengths in one batch."""
    d = decoder(name)
    parts = list(d.sample(d.batch(list(enumerate(PROMPTS))), 7, Sampling(), chunk=4))
    assert [t.shape[1] for t, _ in parts] == [1, 4, 2]
    found, log_p = rows(parts), np.concatenate([p for _, p in parts], axis=1)
    for k, (tokens, expected) in enumerate(plain(name, PROMPTS[:2], 7)):
        assert found[k] == tokens
        np.testing.assert_allclose(log_p[k], expected, atol=1e-4)


def test_relative_positions_in_bfloat16():
    family, cfg, params = made("relative")
    cfg = FrozenConfigDict({**cfg.to_dict(), "dtype": "bfloat16"})
    put = decode.placing(family, ONE, "bfloat16")
    d = decode.Decoder(family, cfg, tree.map_paths(put, params), ONE)
    (_, first), (_, log_p) = d.sample(d.batch([(0, PROMPTS[1])]), 5, Sampling())
    ((_, expected),) = plain("relative", PROMPTS[1:2], 5)
    np.testing.assert_allclose(np.concatenate([first, log_p], axis=1)[0], expected, atol=0.1)


def test_what_is_drawn_depends_on_seed_prompt_and_sequence_alone():
    d, how = decoder("rope_grouped"), Sampling(temperature=1.0)
    numbered = list(enumerate(PROMPTS))
    found = rows(d.sample(d.batch(numbered), 9, how, sequences=3, seed=5))
    assert len({tuple(r) for r in found}) == 12  # 4 prompts x 3 sequences, all others
    alone = rows(d.sample(d.batch(numbered[2:3], rows=2), 9, how, sequences=3, seed=5, chunk=3))
    assert alone[:3] == found[6:9] and alone[3:] == [[]] * 3  # the second row only fills the batch
    assert rows(d.sample(d.batch(numbered), 9, how, sequences=3, seed=6)) != found


def test_a_row_ends_at_its_end_and_the_loop_with_the_last_row():
    d = decoder("rope_grouped")
    free = rows(d.sample(d.batch(list(enumerate(PROMPTS))), 12, Sampling()))
    end = free[0][4]
    d = decoder("rope_grouped", ends=(end,))
    parts = list(d.sample(d.batch(list(enumerate(PROMPTS))), 12, Sampling(), chunk=2))
    for before, after in zip(free, rows(parts), strict=True):
        assert after == (before[: before.index(end) + 1] if end in before else before)
    drawn_ = d.sample(d.batch([(0, PROMPTS[1])]), 12, Sampling(), chunk=2)
    next(drawn_)
    with pytest.raises(StopIteration):
        drawn_.send(np.array([True]))


def test_a_least_length_keeps_ends_away_and_changes_nothing_else():
    end = rows(decoder("rope_grouped").sample(decoder("rope_grouped").batch([(0, PROMPTS[0])]), 12, Sampling()))[0][2]
    d = decoder("rope_grouped", ends=(end,))
    batch = d.batch([(0, PROMPTS[0])])
    (short,), (long,) = (rows(d.sample(batch, 12, Sampling(min_new_tokens=n))) for n in (2, 5))
    assert short[2] == end and len(short) == 3 and end not in long[:5] and long[:2] == short[:2]


def reference_probabilities(logits, how):
    """The distribution that `Sampling` describes, by sorting."""
    x = logits.astype(np.float64) / how.temperature
    keep = np.ones(len(x), bool)
    if how.top_k:
        keep &= x >= np.sort(x)[-how.top_k]
    p = np.where(keep, np.exp(x - x.max()), 0)
    p /= p.sum()
    if how.top_p < 1:
        order = np.argsort(-p, kind="stable")
        before = np.concatenate([[0], np.cumsum(p[order])[:-1]])
        keep[order[before >= how.top_p]] = False
    keep &= p >= how.min_p * p.max()
    p = np.where(keep, p, 0)
    return p / p.sum()


SETTINGS = [
    Sampling(temperature=1.0), Sampling(temperature=0.6), Sampling(temperature=1.3, top_k=6),
    Sampling(temperature=1.0, top_p=0.8), Sampling(temperature=1.0, min_p=0.15),
    Sampling(temperature=1.4, top_k=20, top_p=0.9, min_p=0.05, repetition_penalty=1.3),
]  # fmt: skip


@pytest.mark.parametrize("how", SETTINGS, ids=str)
def test_draws_follow_the_asked_distribution(how):
    """The first tokens of 100,000 sequences of one prompt, by the compiled program."""
    d, n = decoder("rope_grouped"), 100_000
    (tokens, _), *_ = d.sample(d.batch([(0, PROMPTS[1])]), 1, how, sequences=n, seed=3)
    family, cfg, params = made("rope_grouped")
    logits = np.asarray(family.Model(cfg).apply({"params": params}, jnp.asarray([PROMPTS[1]]))[0, -1])
    seen = np.isin(np.arange(40), PROMPTS[1])
    if how.repetition_penalty != 1:
        scaled = np.where(logits < 0, logits * how.repetition_penalty, logits / how.repetition_penalty)
        logits = np.where(seen, scaled, logits)
    expected = reference_probabilities(logits, how)
    counts = np.bincount(tokens[:, 0], minlength=40)
    assert not counts[expected == 0].any()
    there = expected > 0
    p = stats.chisquare(counts[there], n * expected[there]).pvalue
    print(how, f"p = {p:.3f}")
    assert p > 0.01


@pytest.mark.reference
def test_filters_are_those_of_transformers():
    import torch
    from transformers.generation import logits_process as theirs

    logits = np.random.default_rng(0).normal(0, 2, (5, 300)).astype(np.float32)
    seen = np.random.default_rng(1).integers(0, 300, (5, 40))
    how = Sampling(0.7, 50, 0.85, 0.02, 1.2)
    x = torch.tensor(logits)
    for process in (
        theirs.RepetitionPenaltyLogitsProcessor(1.2), theirs.TemperatureLogitsWarper(0.7), theirs.TopKLogitsWarper(50),
        theirs.TopPLogitsWarper(0.85), theirs.MinPLogitsWarper(0.02),
    ):  # fmt: skip
        x = process(torch.tensor(seen), x)
    mask = np.zeros((5, 300), bool)
    mask[np.arange(5)[:, None], seen] = True
    ours = generate.filtered(generate.penalised(jnp.asarray(logits), jnp.asarray(mask), 1.2), how)
    np.testing.assert_array_equal(np.isfinite(ours), np.isfinite(x.numpy()))
    np.testing.assert_allclose(jax.nn.softmax(ours), torch.softmax(x, dim=-1), atol=1e-6)


def test_beams_are_hypotheses_in_order_of_their_score():
    d = decoder("rope_grouped", ends=(7,))
    batch = d.batch(list(enumerate(PROMPTS)))
    tokens, score = d.beam(batch, 6, beams=4, penalty=0.6, best=3)
    assert tokens.shape == (4, 3, 6) and (np.diff(score, axis=1) <= 0).all()
    assert all(len({tuple(t) for t in texts.tolist()}) == 3 for texts in tokens)
    family, cfg, params = made("rope_grouped")
    for prompt, texts, own in zip(PROMPTS, tokens, score, strict=True):
        for text, scored in zip(texts.tolist(), own, strict=True):
            text = text[: text.index(7) + 1] if 7 in text else text
            logits = family.Model(cfg).apply({"params": params}, jnp.asarray([prompt + text]))[0]
            log_p = jax.nn.log_softmax(logits)[len(prompt) - 1 : -1]
            total = float(sum(log_p[i, t] for i, t in enumerate(text)))
            assert scored == pytest.approx(total / ((5 + len(text)) / 6) ** 0.6, abs=1e-4)


def test_beams_end_at_each_of_several_ends():
    """In whatever order they are named; the score is that of the text up to its end."""
    found, ends = [], (7, 28)
    family, cfg, params = made("rope_grouped")
    for named in (ends, ends[::-1]):
        d = decoder("rope_grouped", ends=named)
        tokens, score = d.beam(d.batch(list(enumerate(PROMPTS))), 6, beams=4, best=3)
        last = [[next((i for i, t in enumerate(text) if t in ends), 5) for text in texts] for texts in tokens.tolist()]
        texts = [[t[: i + 1].tolist() for t, i in zip(*one, strict=True)] for one in zip(tokens, last, strict=True)]
        found.append(texts)
    assert found[0] == found[1] and any(t[-1] == 28 and len(t) < 6 for texts in found[0] for t in texts)
    for prompt, texts, own in zip(PROMPTS, found[1], score, strict=True):
        logits = family.Model(cfg).apply({"params": params}, jnp.asarray([prompt + texts[0]]))[0]
        log_p = jax.nn.log_softmax(logits)[len(prompt) - 1 : -1]
        total = float(sum(log_p[i, t] for i, t in enumerate(texts[0])))
        assert own[0] == pytest.approx(total / ((5 + len(texts[0])) / 6) ** 0.6, abs=1e-4)


def test_extreme_temperatures_and_nuclei_are_greedy():
    d = decoder("rope_grouped")
    batch = d.batch(list(enumerate(PROMPTS)))
    expected = rows(d.sample(batch, 4, Sampling()))
    for how in (Sampling(1e-38), Sampling(1e-45), Sampling(5.0, top_p=1e-45), Sampling(5.0, min_p=1.0)):
        assert rows(d.sample(batch, 4, how, seed=2**32 - 1)) == expected, how


def test_a_target_has_the_positions_that_its_windows_leave():
    cfg = FrozenConfigDict(dict(seq_len=32, source_len=20, position="learned", objective="prefix"))
    assert decode.room(cfg, [20], 64, True) == 12


MESH = """
import jax, sys
jax.config.update("jax_num_cpu_devices", 8)
sys.path.insert(0, "tests")
from test_generate import PROMPTS, decoder, rows
from bigmodel.after.generate import Sampling
from bigmodel.ops import sharding
mesh = sharding.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
for name in ("rope_grouped", "encdec"):
    d = decoder(name, mesh)
    print(rows(d.sample(d.batch(list(enumerate(PROMPTS))), 6, Sampling(temperature=0.7), sequences=2, seed=1)))
"""


def test_a_mesh_writes_the_same():
    out = subprocess.run([sys.executable, "-c", MESH], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert out.returncode == 0, out.stderr[-2000:]
    for name, line in zip(("rope_grouped", "encdec"), out.stdout.splitlines(), strict=True):
        d = decoder(name)
        here = rows(d.sample(d.batch(list(enumerate(PROMPTS))), 6, Sampling(temperature=0.7), sequences=2, seed=1))
        assert json.loads(line) == here


# ---------------------------------------------------------------------------------------------- text


class Fixed:
    """A decoder that writes given bytes, whatever it is asked, n of them at a time."""

    ends, reads_source = np.array([0]), False

    def __init__(self, texts):
        self.texts = [list(t) for t in texts]
        self.stopped = []

    def batch(self, prompts, rows):
        return None

    def sample(self, batch, length, how, sequences, seed, chunk):
        at = 0
        while at < length:
            part = [t[at : at + chunk] for t in self.texts]
            tokens = np.array([p + [-1] * (chunk - len(p)) for p in part])
            done = yield tokens, np.zeros(tokens.shape)
            self.stopped.append(done.tolist())
            at += chunk


def continued(texts, chunk=1, **settings):
    d, shown = Fixed([t.encode() for t in texts]), []
    prompts = [(k, "", [1]) for k in range(len(texts))]
    chosen = continuations.Settings(max_new_tokens=max(len(t) for t in d.texts), **settings)
    found = continuations.run(d, tokenizer.Bytes(), prompts, chosen, chunk=chunk, on_text=shown.append)
    return found, shown, d


@pytest.mark.parametrize("chunk", [1, 2, 5])
def test_streamed_text_is_never_cut_within_a_character(chunk):
    text = "今天天气很好，我们去公园散步吧。🙂 naïve"
    found, shown, _ = continued([text], chunk)
    assert found[0]["text"] == "".join(shown) == text
    assert not any("�" in part for part in shown) and len(shown) > 3


def test_a_text_that_the_limit_cuts_within_a_character_ends_before_it():
    d = Fixed(["好好".encode()[:5]])
    found = continuations.run(d, tokenizer.Bytes(), [(0, "", [1])], continuations.Settings(max_new_tokens=5), chunk=5)
    assert found[0]["text"] == "好" and len(found[0]["tokens"]) == 5 and found[0]["finish"] == "length"


def test_a_stop_string_ends_a_row_before_it_and_is_never_shown():
    texts = ["one two. three", "another. row", "no stop here"]
    found, shown, d = continued(texts, 3, stop=(". ", "row"))
    assert [r["text"] for r in found] == ["one two", "another", "no stop here"]
    assert [r["finish"] for r in found] == ["stop", "stop", "length"]
    assert "".join(shown) == "one two"
    assert [any(done[k] for done in d.stopped) for k in range(3)] == [True, True, False]
    assert found[0]["tokens"] == list(b"one two. ")


def test_a_word_after_the_prompt_keeps_its_space_and_one_of_a_translation_has_none(tmp_path):
    """Of a tokenizer whose decoder strips the first space, as Llama's."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    made = Tokenizer(models.BPE(vocab={"▁": 0, "a": 1, "▁a": 2}, merges=[("▁", "a")]))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    made.save(str(tmp_path / "tokenizer.json"))
    published = tokenizer.Published(str(tmp_path / "tokenizer.json"))
    for d, stop, text in ((Fixed([[2, 1]]), (), " aa"), (Fixed([[2, 1]]), (" aa",), ""), (Fixed([[2, 1]]), (), "aa")):
        d.reads_source = text == "aa"
        chosen = continuations.Settings(max_new_tokens=2, stop=stop)
        assert continuations.run(d, published, [(0, "a", published.encode("a"))], chosen)[0]["text"] == text


def test_an_end_token_is_no_text():
    found, _, _ = continued(["ab\0cd"], 2)
    assert found[0]["text"] == "ab" and found[0]["finish"] == "end" and found[0]["tokens"] == [97, 98, 0]


# ----------------------------------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def trained(data_dir, tmp_path_factory):
    """A tiny GPT's folder, trained for a few steps on bytes; its context is 32."""
    from conftest import TINY

    from bigmodel import config

    cfg = config.load(ROOT / "experiments/gpt.py", [*TINY, ("run.data_dir", data_dir), ("model.position", "rope")])
    root = tmp_path_factory.mktemp("runs")
    return str(root / train(cfg, str(root), quiet=True)["run_id"])


def said(capsys, *args):
    code = main.main(["generate", *args])
    out = capsys.readouterr()
    return code, out.out, out.err.splitlines()


def test_a_run_continues_a_prompt(trained, capsys):
    code, out, _ = said(capsys, trained, "--prompt=The people ", "--max-new-tokens=10")
    assert code == 0 and out.startswith("The people ") and out.endswith("\n")
    code, out, err = said(capsys, trained, "--prompt=The", "--prompt=我们", "--num-return-sequences=3", "--json")
    found = json.loads(out)
    assert [(r["number"], r["sequence"]) for r in found] == [(p, s) for p in range(2) for s in range(3)]
    assert len({r["text"] for r in found[:3]}) == 3
    assert all(len(r["tokens"]) == len(r["log_probs"]) <= 64 and max(r["log_probs"]) < 0 for r in found)
    assert any("sampled at temperature 1" in line for line in err)
    assert any("the model was trained on a window of 32" in line for line in err)
    code, out, _ = said(capsys, trained, "--prompt=The", "--beams=3", "--num-return-sequences=2", "--max-new-tokens=8")
    assert code == 0 and out.count("--- 1.") == 2


REFUSED = [
    (["--prompt=a", "--temperature=-1"], "--temperature=-1.0: must be at least 0"),
    (["--prompt=a", "--top-p=0"], "--top-p=0.0: must be in (0, 1]"),
    (["--prompt=a", "--num-return-sequences=2", "--temperature=0"], "greedy has one answer"),
    (["--prompt=a", "--temperature=0", "--top-k=5"], "change nothing"),
    (["--prompt=a", "--beams=2", "--num-return-sequences=3"], "at most --beams=2"),
    (["--prompt=a", "--beams=2", "--temperature=1"], "takes no temperature"),
    ([], "give --prompt=TEXT or --prompts=FILE"),
    (["--prompts=x.txt"], "--out=FILE.jsonl belong together"),
    (["--prompts=nowhere.txt", "--out=x.jsonl"], "can't read --prompts='nowhere.txt'"),
    (["--prompt=a", "--stop="], "an empty string ends every text"),
    (["--prompt=a", "--chat"], "which are no conversations; it continues text"),
    (["--prompt=a", "--mesh=dat=2"], "did you mean 'data'"),
    (["--prompt=a", "--mesh=data=99"], "doesn't fill the"),
    (["--prompt=a", "--dtype=float16"], "'float16' is not one of float32, bfloat16"),
    (["--prompt=a", "--prompt=\ud83d"], "prompt 2 is no text"),
    (["--prompt=a", "--beams=256"], "more than the 256 tokens of the model can begin"),
    (["--prompt=a", "--max-tokens=3"], "did you mean '--max-new-tokens'"),
]


@pytest.mark.parametrize(("args", "words"), REFUSED)
def test_a_mistake_is_one_line(trained, args, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = said(capsys, trained, *args)
    assert code == 2 and out == "" and len(err) == 1 and words in err[0], err
    assert not list(tmp_path.iterdir())


def test_a_place_without_a_model_and_a_model_that_writes_nothing_are_refused(trained, tmp_path, capsys, digits):
    code, _, (line,) = said(capsys, str(tmp_path), "--prompt=a")
    assert code == 2 and "holds neither a run (config.json, result.json), nor published weights" in line
    code, _, (line,) = said(capsys, trained[:-1], "--prompt=a")
    assert code == 2 and f"did you mean '{trained}'" in line
    root = str(tmp_path / "runs")
    folder = f"{root}/{train(digits(), root, quiet=True)['run_id']}"
    code, _, err = said(capsys, folder, "--prompt=a")
    assert code == 2 and "a model of family 'mlp' can't generate: it predicts no token after another" in err[-1]


def test_a_learned_window_bounds_what_is_written(tiny, tmp_path, capsys):
    cfg = tiny(("train.steps", 2), ("model.position", "learned"))
    folder = str(tmp_path / train(cfg, str(tmp_path), quiet=True)["run_id"])
    code, out, err = said(capsys, folder, "--prompt=The people", "--max-new-tokens=99", "--json")
    assert code == 0 and len(json.loads(out)[0]["tokens"]) == 32 - len("The people") - 1
    assert any("the model's window of 32 positions leaves 21" in line for line in err)
    code, _, err = said(capsys, folder, "--prompt=" + "x" * 40)
    assert code == 2 and "a prompt has 41 tokens, and the model's window 32: shorten it" in err[-1]


def test_rows_of_another_tokenizer_are_not_gone_on_with(trained, capsys, tmp_path, monkeypatch):
    from bigmodel.cli import generate as verb

    (tmp_path / "prompts.txt").write_bytes("\ufeffThe\r\npeople".encode())  # with a byte-order mark
    args = [trained, f"--prompts={tmp_path / 'prompts.txt'}", f"--out={tmp_path / 'x.jsonl'}", "--max-new-tokens=1"]
    assert said(capsys, *args)[0] == 0
    assert [json.loads(row)["prompt"] for row in (tmp_path / "x.jsonl").open()] == ["The", "people"]
    open_ = verb._open
    monkeypatch.setattr(verb, "_open", lambda args: (*open_(args)[:2], lambda _: [1, 2], ()))
    code, _, err = said(capsys, *args)
    assert code == 2 and "has rows of other settings, prompts or weights" in err[-1]


@pytest.mark.slow
def test_a_killed_file_of_prompts_goes_on_and_loses_none(trained, tmp_path):
    """kill -9 several times during 1,000 prompts; the rows are those of an undisturbed run."""
    rng = np.random.default_rng(0)
    words = (ROOT / "tests/data/1790_george_washington_n.txt").read_text().split()
    prompts = [" ".join(rng.choice(words, rng.integers(1, 5))) for _ in range(1000)]
    (tmp_path / "prompts.txt").write_text("\n".join(prompts) + "\n")
    args = [trained, f"--prompts={tmp_path / 'prompts.txt'}", "--max-new-tokens=4", "--num-return-sequences=2",
            "--temperature=0.9", "--batch-size=16", "--stop=th"]  # fmt: skip
    whole, part = tmp_path / "whole.jsonl", tmp_path / "part.jsonl"
    done = bigmodel("generate", *args, f"--out={whole}")
    assert done.returncode == 0, done.stderr
    kills = 0
    for share in (0.1, 0.4, 0.7):
        process = subprocess.Popen(
            [sys.executable, "-m", "bigmodel", "generate", *args, f"--out={part}"], cwd=ROOT, stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        goal = share * whole.stat().st_size
        while process.poll() is None and not (part.exists() and part.stat().st_size > goal):
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
    assert kills >= 2 and part.stat().st_size < whole.stat().st_size
    with part.open("ab") as f:
        f.write(b'{"number": 3, "torn')  # what a kill in the middle of a write leaves
    done = bigmodel("generate", *args, f"--out={part}")
    assert done.returncode == 0 and re.search(r"\d+ of 1000 prompts are in", done.stderr)
    assert part.read_text() == whole.read_text()
    found = [json.loads(line) for line in part.read_text().split("\n")[:-1]]
    assert [(r["number"], r["sequence"]) for r in found] == [(p, s) for p in range(1000) for s in range(2)]
    assert [r["prompt"] for r in found[::2]] == prompts
    again = bigmodel("generate", *args[:-1], "--seed=3", f"--out={part}")
    assert again.returncode == 2 and "has rows of other settings, prompts or weights: use another --out" in again.stderr
    assert part.read_text() == whole.read_text()


def test_two_processes_don_t_write_one_file(tmp_path):
    first = continuations.Rows(str(tmp_path / "x.jsonl"), {"a": 1})
    with pytest.raises(UsageError, match="is being written by another process"):
        continuations.Rows(str(tmp_path / "x.jsonl"), {"a": 1})
    first.add([{"number": 0, "sequence": 0}])
    first.file.close()
    assert continuations.Rows(str(tmp_path / "x.jsonl"), {"a": 1}).done == {0}


def test_a_write_that_is_cut_between_the_sequences_of_a_prompt_doubles_none(tmp_path):
    path, made = tmp_path / "x.jsonl", {"a": 1}
    every = [{"number": n, "sequence": s} for n in range(3) for s in range(3)]
    first = continuations.Rows(str(path), made, 3)
    first.add(every)
    first.file.close()
    content = path.read_bytes()
    for size in range(len(content) + 1):
        path.write_bytes(content[:size])
        rows = continuations.Rows(str(path), made, 3)
        rows.add([r for r in every if r["number"] not in rows.done])
        rows.finish()
        rows.file.close()
        assert path.read_bytes() == content, size


@pytest.mark.parametrize("content", ["notes without a newline", '{"prompt": "a"}', "two\nlines\n"])
def test_a_file_of_something_else_stays_as_it_is(content, tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text(content)
    with pytest.raises(UsageError, match=r"no rows? of `bigmodel generate`"):
        continuations.Rows(str(path), {})
    assert path.read_text() == content
    with pytest.raises(UsageError, match="'/dev/null' is no file"):
        continuations.Rows("/dev/null", {})
