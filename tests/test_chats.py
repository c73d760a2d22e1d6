"""Conversations: rows of JSON -> a chat template -> tokens, and a loss on answers alone."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, TINY, bigmodel, drawn

from bigmodel import config, data, models
from bigmodel.cli import main
from bigmodel.errors import UsageError
from bigmodel.prepare import chats
from bigmodel.run import budget, session

ROWS = [
    {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"What is {n} + 1?"},
                  {"role": "assistant", "content": f"It is {n + 1}."}, {"role": "user", "content": "Thanks"}]}
    if n % 2 else {"prompt": f"Say {n}.", "answer": f"{n}!"}
    for n in range(60)
]  # fmt: skip


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The data folder of ROWS and of two rows that can't be used."""
    root = tmp_path_factory.mktemp("chats")
    more = [{"messages": [{"role": "user", "content": "Anybody?"}]}, {"prompt": "<|im_end|>", "answer": "No."}]
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS + more))
    done = bigmodel("prepare", root / "rows.jsonl", "--validation-fraction=0.2", "--out", root / "data/chats")
    assert done.returncode == 0, done.stderr
    assert "2 rows with no answer, or <|im_start|> or <|im_end|> in a message (first: 61)" in done.stderr
    return root / "data"


def make(prepared, *overrides):
    pairs = [("run.data_dir", str(prepared)), ("data.name", "chats"), ("data.seq_len", 120), *overrides]
    cfg = config.load(ROOT / "experiments/gpt.py", [(k, v) for k, v in TINY if not k.startswith("data.")])
    source = data.source("tasks")
    with cfg.unlocked(), cfg.ignore_type():
        cfg.data = {**source.get_config(), "source": "tasks"}
    config.override_all(cfg, [*pairs, ("data.epochs", 1000)])
    return cfg


def test_what_the_assistant_says_counts_and_nothing_else(prepared):
    frozen = budget.finalize(make(prepared))
    found = {}
    for split in ("train", "validation", "test"):
        examples = data.source("tasks").open_split(frozen.data, frozen.run.data_dir, split)
        for k in range(len(examples)):
            tokens, counts = examples[k]["tokens"], examples[k]["counts"]
            assert tokens.shape == (121,) and counts.shape == (120,) and counts.dtype == np.float32
            found[bytes(tokens[tokens > 0].tolist()).decode()] = bytes(tokens[1:][counts > 0].tolist()).decode()
    assert len(found) == len(ROWS)
    assert found["<|im_start|>user\nSay 4.<|im_end|>\n<|im_start|>assistant\n4!<|im_end|>\n"] == "4!<|im_end|>"
    (long,) = (text for text in found if "What is 7 + 1?" in text)
    assert long.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat")
    assert "It is 8.<|im_end|>"[: len(found[long])] == found[long]  # the rest is beyond the window


def test_the_loss_is_the_mean_over_counted_targets(prepared):
    frozen = budget.finalize(make(prepared))
    family = models.family("decoder")
    examples = data.source("tasks").open_split(frozen.data, frozen.run.data_dir, "train")
    batch = {key: jnp.stack([examples[k][key] for k in range(4)]) for key in ("tokens", "counts")}
    batch["weight"] = jnp.array([1.0, 1, 1, 0])
    model, variables = family.Model(frozen.model), drawn(family, frozen.model)
    loss, (metrics, _) = jax.jit(lambda b: family.loss(model, variables, b, jax.random.key(0), False))(batch)
    log_p = jax.nn.log_softmax(model.apply(variables, batch["tokens"][:, :-1]).astype(jnp.float32))
    nats = -jnp.take_along_axis(log_p, batch["tokens"][:, 1:, None], axis=-1)[..., 0]
    weight = batch["counts"] * batch["weight"][:, None]
    assert float(loss) == pytest.approx(float(jnp.sum(nats * weight) / jnp.sum(weight)), rel=1e-5)
    assert float(metrics["loss"][1]) == float(jnp.sum(weight)) > 0


def test_a_decoder_trains_on_conversations_and_is_asked(prepared, tmp_path, capsys):
    """Over bytes, where the marks are text."""
    steps = [("train.steps", 60), ("model.width", 32), ("optim.lr", 0.02)]
    result = session.train(make(prepared, *steps, ("model.position", "rope")), str(tmp_path), quiet=True)
    assert result["status"] == "done"
    run = str(tmp_path / result["run_id"])
    capsys.readouterr()
    assert (
        main.main(["generate", run, "--chat", "--prompt=Say 4.", "--prompt=Say 6.", "--max-new-tokens=20", "--json"])
        == 0
    )
    for row in json.loads(capsys.readouterr().out):
        assert "<|im_end|>" not in row["text"] and (row["finish"] == "stop") == (
            bytes(row["tokens"])[-10:] == b"<|im_end|>"
        )
    assert row["finish"] == "stop"  # by now it has learnt to


@pytest.mark.parametrize("objective", ["prefix", "infill"])
def test_conversations_are_refused_where_nothing_weighs_them(prepared, objective, tmp_path):
    with pytest.raises(UsageError, match="conversations are learnt with causal alone"):
        session.train(
            make(prepared, ("model.objective", objective), ("model.position", "rope")), str(tmp_path), quiet=True
        )


def test_marks_are_the_tokenizers_own_where_it_has_them():
    class Encoder:
        content, vocab_size, separator = "json", 300, 1

        class tokenizer:
            token_to_id = {"<|im_start|>": 298, "<|im_end|>": 299}.get

        def clean(self, text):
            return text

        def arrays(self, texts):
            return [np.frombuffer(text.encode(), np.uint8) for text in texts]

    (example,) = (chats.tasks.Example("0", {"text": "<|im_start|>assistant\nHi<|im_end|>\n"}),)
    found = chats.tokens([example], Encoder(), ())
    assert found["text"].tolist() == [298, *b"assistant\nHi", 299, ord("\n"), 1]
    assert found["counts"].tolist() == [0] * 11 + [1, 1, 1, 0, 0] and found["text_ends"].tolist() == [16]


@pytest.mark.parametrize(
    "row", [{"prompt": "a", "answer": 3}, {"messages": [{"role": "user"}]}, {"messages": "no"}, []]
)
def test_a_row_that_is_no_conversation_is_refused_in_one_line(tmp_path, row):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "a", "answer": "b"}) + "\n" + json.dumps(row))
    with pytest.raises(UsageError, match="line 2: expected messages, each with role and content, or prompt and answer"):
        list(chats.examples(path))
