"""Metrics are sums over what was evaluated: the batch size changes none, and bits per byte count just those bytes."""

import math

import jax
import numpy as np
import pytest
from conftest import ROOT
from families import small
from ml_collections import FrozenConfigDict

from bigmodel import config, data, models
from bigmodel.data import loader
from bigmodel.ops import sharding
from bigmodel.run import budget, counts, optim, program, session

CASES = [
    ("mlp", dict(class_weights=(1.0, 5.0, 0.2, 3.0, 1.0), num_classes=5)),
    ("bert", dict(objective="classify", class_weights=(0.1, 4.0, 1.0, 2.0, 7.0), num_classes=5)),
    ("bert", dict(objective="tag", num_classes=5)),
    ("bert", dict(objective="masked")),
    ("decoder", dict(objective="prefix")),
    ("decoder", dict(objective="infill", position="rope")),
    ("encdec", dict(objective="span")),
    ("encdec", dict(objective="translate")),
]


QUICK = ("masked", "prefix", "classify", "")  # one of each kind of weight
MARKED = [
    case if case[1].get("objective", "") in QUICK else pytest.param(*case, marks=pytest.mark.slow) for case in CASES
]


class Drawn:
    """Examples of a family, at random."""

    def __init__(self, module, cfg, count):
        from families import batch_of

        self.batch = batch_of(module, cfg, count, 3)
        self.batch.pop("weight")
        self.count = count

    def __len__(self):
        return self.count

    def take(self, indices):
        return {key: value[indices] for key, value in self.batch.items()}


@pytest.mark.parametrize("family, options", MARKED, ids=[f"{f}-{o.get('objective', '')}" for f, o in CASES])
def test_no_metric_depends_on_the_batch_size(family, options):
    module = models.family(family)
    cfg = small(module, **{"depth": 1, **options})
    examples, mesh = Drawn(module, cfg, 61), sharding.make_mesh(sharding.ALONE)
    train_, run = budget.get_config()
    sections = {"model": cfg.to_dict(), "optim": optim.get_config(), "train": train_, "run": run}
    compiled = program.build(program.static_part(FrozenConfigDict({"family": family, **sections})), mesh)
    variables = {"params": compiled.init(jax.random.key(0))["params"]}
    found = {}
    for size in (5, 50, 61):
        batches = loader.eval_batches(examples, size, 0, (0, size))
        total = program.totals(compiled, variables, (sharding.place(b, mesh, size) for b in batches))
        found[size] = program.scores(compiled, total)
    assert found[61]["loss"] > 0
    for size in (5, 50):
        assert found[size] == pytest.approx(found[61], rel=1e-6), size


def test_accuracy_counts_examples_whatever_their_class_weighs():
    module = models.family("mlp")
    cfg = small(module, class_weights=(1.0, 100.0, 1.0, 1.0, 1.0), num_classes=5, depth=0)
    examples = Drawn(module, cfg, 40)
    batch = {**examples.take(np.arange(40)), "weight": np.ones(40, np.float32)}
    variables = jax.jit(lambda: counts.init(module, cfg, jax.random.key(0)))()
    _, (metrics, _) = module.loss(module.Model(cfg), variables, batch, jax.random.key(0), False)
    predicted = np.argmax(module.Model(cfg).apply(variables, batch["features"]), axis=-1)
    assert float(metrics["accuracy"][1]) == 40
    assert float(metrics["accuracy"][0]) == np.sum(predicted == batch["label"])
    assert float(metrics["loss"][1]) == np.sum(np.where(batch["label"] == 1, 100.0, 1.0))


def test_bits_per_byte_count_the_bytes_of_what_was_evaluated(tmp_path):
    """Of a BPE whose first windows are of longer tokens than the rest; a run that evaluates 3 windows of many."""
    from bigmodel.prepare.prepare import prepare

    out = tmp_path / "data" / "speech"
    prepare(str(ROOT / "tests/data"), str(out), "bpe", 512, validation_fraction=0.2, workers=1, progress=False)
    pairs = [
        ("model.width", 8), ("model.depth", 1), ("model.num_heads", 1), ("data.name", "speech"), ("data.seq_len", 16),
        ("train.steps", 1), ("train.batch_size", 2), ("train.eval_examples", 3), ("optim.name", "adamw"),
        ("run.wandb", "off"), ("run.data_dir", str(tmp_path / "data")),
    ]  # fmt: skip
    cfg = config.load(ROOT / "experiments/gpt.py", pairs)
    result = session.train(cfg, str(tmp_path / "runs"), quiet=True)
    frozen = budget.finalize(cfg)
    from bigmodel.prepare import tokenizer

    windows = data.source("text").open_split(frozen.data, frozen.run.data_dir, "validation")
    read = tokenizer.load(out)
    targets = np.concatenate([windows[k]["tokens"][1:] for k in range(3)])
    # Tokens of a byte-level BPE are byte strings: the text of each, in its byte alphabet, is as long as its bytes.
    strings = [read.tokenizer.id_to_token(int(t)) for t in targets if t != read.separator]
    size = sum(map(len, strings))
    assert size != 3 * 16
    assert result["bits_per_byte"] == pytest.approx(result["loss"] * len(targets) / math.log(2) / size, rel=1e-6)
