"""DALL-E's decoder: its count, what each layer sees, cached streams, codes derived from a run, and pictures drawn."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import drawn
from ml_collections import FrozenConfigDict

from bigmodel import models
from bigmodel.after import generate, paint
from bigmodel.cli import main
from bigmodel.errors import UsageError
from bigmodel.models import dalle
from bigmodel.run import counts

SMALL = dict(width=16, depth=5, num_heads=2, vocab_size=30, seq_len=6, num_codes=11, grid_height=4, grid_width=5)


def section(**overrides):
    cfg = dalle.get_config()
    cfg.update(SMALL | dict(neighbourhood=3) | overrides)
    dalle.finalize(cfg)
    return FrozenConfigDict(cfg)


def batch(cfg, size=3):
    rng = np.random.default_rng(0)
    return {
        "tokens": rng.integers(0, cfg.vocab_size, (size, cfg.seq_len)).astype(np.int32),
        "length": np.arange(2, 2 + size).astype(np.int32),
        "codes": rng.integers(0, cfg.num_codes, (size, cfg.grid_height, cfg.grid_width)).astype(np.int32),
        "weight": np.ones(size, np.float32),
    }


def test_the_published_shape_has_twelve_billion_parameters():
    cfg = dalle.get_config()
    cfg.update(models.published("dalle-12b")[1]["model"])
    dalle.finalize(cfg)
    total, _, kaplan, _ = counts.counts("dalle", FrozenConfigDict(cfg))
    assert kaplan == 12 * 64 * 3968**2 == 12_092_178_432
    assert total == models.published("dalle-12b")[1]["params"]
    tables = (16384 + 8192) * 3968 * 2 + (2 * 256 + 64 + 1) * 3968  # tables and heads; padding, places, rows, columns
    vectors = 64 * 13 * 3968 + 2 * 3968  # biases and norms of the blocks, the last norm
    assert total == kaplan + tables + vectors


def by_definition(cfg, kind, i, j):
    """Whether stream place i sees place j <= i; codes' places follow T of the caption's."""
    T, W = cfg.seq_len, cfg.grid_width
    if i < T or j < T:
        return True
    (row, column), (other_row, other_column) = divmod(i - T, W), divmod(j - T, W)
    if kind == "row":
        return i - j <= W
    if kind == "column":
        return column == other_column
    if kind == "neighbourhood":
        return abs(row - other_row) <= cfg.neighbourhood // 2 and abs(column - other_column) <= cfg.neighbourhood // 2
    return True


def test_layers_see_rows_columns_and_a_neighbourhood():
    cfg = section()
    assert [dalle.KINDS[k] for k in dalle.kinds(cfg)] == ["row", "column", "row", "row", "neighbourhood"]
    assert dalle.kinds(section(pattern="full")).tolist() == [0] * 5
    seen = dalle.seen(cfg)
    L = cfg.seq_len + 20
    for k, kind in enumerate(dalle.KINDS):
        expected = [[by_definition(cfg, kind, i, j) for j in range(i + 1)] for i in range(L)]
        assert all(seen[k, i, : i + 1].tolist() == expected[i] for i in range(L))


@pytest.mark.parametrize("kind", range(4))
def test_a_place_depends_on_what_its_layer_sees_alone(kind, monkeypatch):
    cfg = section(depth=1)
    monkeypatch.setattr(dalle, "kinds", lambda cfg: np.array([kind], np.int32))
    variables, rows = drawn(dalle, cfg), batch(cfg, 1)
    model, (tokens, length, codes) = dalle.Model(cfg), dalle.inputs(cfg, rows)
    length = length + 3
    run = jax.jit(lambda codes: model.apply(variables, tokens, length, codes)[1][0])
    before, seen = np.asarray(run(codes)), dalle.seen(cfg)[kind]
    for k in (0, 3, 7, 12, 18):
        after = np.asarray(run(jnp.asarray(codes).at[0, k].set((int(codes[0, k]) + 1) % 11)))
        changed = np.abs(after - before).max(axis=1) > 1e-7
        # Code k is the input of the place after its own.
        expected = [p > k and seen[cfg.seq_len + p, cfg.seq_len + k + 1] for p in range(20)]
        assert changed.tolist() == expected, (kind, k)


def test_padding_of_a_caption_takes_no_part_but_its_place():
    cfg = section()
    variables, rows = drawn(dalle, cfg), batch(cfg)
    model = dalle.Model(cfg)
    changed = rows["tokens"].copy()
    for row, n in zip(changed, rows["length"], strict=True):
        row[n:] = (row[n:] + 7) % cfg.vocab_size
    one, other = (
        dalle.loss(model, variables, {**rows, "tokens": t}, jax.random.key(0), False) for t in (rows["tokens"], changed)
    )
    assert float(one[0]) == float(other[0])
    metrics = {name: float(total / weight) for name, (total, weight) in one[1][0].items()}
    assert metrics["loss"] == pytest.approx(metrics["text_loss"] / 8 + 7 * metrics["image_loss"] / 8, rel=1e-6)
    logits_text, logits = model.apply(variables, *dalle.inputs(cfg, rows))
    nats = -np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), rows["codes"].reshape(3, -1, 1), 2)
    assert metrics["image_loss"] == pytest.approx(float(nats.mean()), rel=1e-5)
    nats = -np.take_along_axis(np.asarray(jax.nn.log_softmax(logits_text)), rows["tokens"][..., None], 2)[..., 0]
    means = [nats[i, :n].mean() for i, n in enumerate(rows["length"])]
    assert metrics["text_loss"] == pytest.approx(float(np.mean(means)), rel=1e-5)


def test_a_cached_stream_has_the_logits_of_the_whole():
    cfg = section()
    variables, rows = drawn(dalle, cfg), batch(cfg)
    model, (tokens, length, codes) = dalle.Model(cfg), dalle.inputs(cfg, rows)
    whole = np.asarray(model.apply(variables, tokens, length, codes)[1])
    logits, cache = model.apply(variables, tokens, length, dalle.empty(cfg, 3), method="caption")
    step = jax.jit(lambda codes, place, cache: model.apply(variables, codes, place, cache, method="step"))
    np.testing.assert_allclose(logits, whole[:, 0], atol=1e-5)
    for place in range(1, 20):
        logits, cache = step(codes[:, place - 1], jnp.int32(place), cache)
        np.testing.assert_allclose(logits, whole[:, place], atol=1e-5)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [(dict(neighbourhood=4), "odd"), (dict(pattern="checks"), "pattern"), (dict(text_weight=1.0), "text_weight"),
     (dict(num_codes=1), "num_codes"), (dict(position="rope"), "learned"), (dict(grid_width=0), "grid_width")],
)  # fmt: skip
def test_impossible_shapes_are_one_line(overrides, says):
    with pytest.raises(UsageError, match=says):
        section(**overrides)


def test_a_stream_is_sampled_from_its_own_logits():
    """Of 4,000 samples of a picture of two codes, pairs are as often as the model says."""
    cfg = section(grid_height=1, grid_width=2, num_codes=3, depth=2)
    variables = drawn(dalle, cfg, std=0.7)
    model = dalle.Model(cfg)
    tokens, length = np.ones((1, 6), np.int32), np.array([4], np.int32)
    first = np.asarray(jax.nn.softmax(model.apply(variables, tokens, length, np.zeros((1, 2), np.int32))[1][0, 0]))
    pairs = np.array([
        first[a] * np.asarray(jax.nn.softmax(model.apply(variables, tokens, length, np.array([[a, 0]]))[1][0, 1]))
        for a in range(3)
    ])  # fmt: skip

    class Run:
        config = FrozenConfigDict({"model": cfg.to_dict()})

    run = Run()
    run.model, run.variables = model, variables
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paint, "rows", lambda run, encoder, texts: (tokens, length))
        found = paint.codes(run, None, ["x"], 4000, generate.Sampling(temperature=1.0), seed=3)[0, :, 0]
        again = paint.codes(run, None, ["x"], 40, generate.Sampling(temperature=1.0), seed=3)[0, :, 0]
    assert np.array_equal(found[:40], again)
    counted = np.array([[np.sum((found == (a, b)).all(axis=1)) for b in range(3)] for a in range(3)])
    from scipy.stats import chisquare

    pairs = pairs.astype(np.float64).ravel()
    assert chisquare(counted.ravel(), 4000 * pairs / pairs.sum()).pvalue > 1e-3


def test_two_stages_in_one_sweep_and_pictures_of_captions(tmp_path, capsys, monkeypatch):
    """A row of dvae, codes of it, a row of dalle; killed in between nothing is made twice; pictures put in order."""
    from test_captions import folder

    monkeypatch.chdir(tmp_path)
    assert main.main(["prepare", str(folder(tmp_path / "mine")), "--out=data/mine", "--size=8"]) == 0
    body = {
        "dvae": "config.model.update(dict(width=8, depth=1, num_groups=3, num_codes=16, code_width=8))\n"
        "    config.data.text = False",
        "dalle": "config.model.update(dict(width=16, depth=2, num_heads=2, neighbourhood=3))",
        "clip": "config.model.update(dict(width=16, depth=1, num_heads=2, embed=8))\n"
        "    config.model.vision.update(dict(width=16, depth=1, num_heads=2, patch=4))",
    }
    for family, lines in body.items():
        (tmp_path / f"{family}.py").write_text(
            "from bigmodel import budget\n\n\ndef get_config():\n"
            f"    config = budget.base('{family}', 'captions')\n"
            f"    config.data.name, config.optim.lr, config.run.wandb = 'mine', 0.01, 'off'\n    {lines}\n"
            "    config.train.batch_size, config.train.steps = 16, 12\n    return config\n"
        )
    from conftest import ROOT

    (tmp_path / "codes.py").write_text((ROOT / "sweeps/analyses/codes.py").read_text())
    (tmp_path / "study.py").write_text(
        "CONFIG = 'dalle.py'\nLAW = None\n\n\ndef get_sweep():\n"
        "    rows = [{'derive': ('dvae.py', 'codes.py'), 'model.width': w} for w in (8, 16)]\n"
        "    return [*rows, {'experiment': 'clip.py'}]\n"
    )
    assert main.main(["sweep", "run", "study.py", "--runs=runs"]) == 0
    rows = [json.loads(row) for row in (tmp_path / "runs/study/plan.jsonl").open()]
    of = {row["config"]["family"]: row["run_id"] for row in rows if "run_id" in row}
    assert set(of) == {"dvae", "dalle", "clip"} and len(list((tmp_path / "data").glob("derived-*"))) == 1
    capsys.readouterr()
    model = f"runs/study/{of['dalle']}"
    command = ["generate", model, "--prompt=a red thing", "--prompt=蓝色", "--num-return-sequences=3", "--seed=1"]
    assert main.main([*command, "--out=drawn", f"--rerank=runs/study/{of['clip']}"]) == 0
    assert re.search(r"likelier than another's: \d+\.\d% of", capsys.readouterr().out)
    found = json.loads((tmp_path / "drawn/codes.json").read_text())
    assert [row["caption"] for row in found] == ["a red thing"] * 3 + ["蓝色"] * 3
    for k in (0, 3):
        assert sorted((row["likeness"] for row in found[k : k + 3]), reverse=True) == [
            row["likeness"] for row in found[k : k + 3]
        ]
    assert all((tmp_path / "drawn" / row["file"]).is_file() and len(row["codes"]) == 4 for row in found)
    assert (tmp_path / "drawn/sheet.png").is_file() and (tmp_path / "drawn/sheet.svg").is_file()
    assert main.main([*command, "--out=again"]) == 0
    again = {row["file"]: row["codes"] for row in json.loads((tmp_path / "again/codes.json").read_text())}
    assert again == {row["file"]: row["codes"] for row in found}
    capsys.readouterr()
    wrong = {
        "--beams=3": "--beams", "--chat": "--chat", "--repetition-penalty=2": "--repetition-penalty",
        f"--rerank={model}": "must be 'clip'",
        f"--autoencoder=runs/study/{of['clip']}": "not 'dvae'", "--temperature=0": "greedy has one answer",
    }  # fmt: skip
    for flag, says in wrong.items():
        code, err = main.main([*command, "--out=wrong", flag]), capsys.readouterr().err
        assert code == 2 and says in err.strip().splitlines()[-1], (flag, err)
    assert main.main(command) == 2 and "--out=FOLDER" in capsys.readouterr().err
    assert not (tmp_path / "wrong").exists()
