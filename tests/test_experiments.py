"""Every experiment and sweep that comes along is one that could run: its keys exist, its model can be built."""

import pytest
from conftest import ROOT

from bigmodel import config, models, optim, sweep

VARIANTS = {
    "gpt3": ("125m", "175b"), "sentiment": ("minilm", "pretrain", "prose", "zh", "zh_pretrain"),
    "translate": ("de", "zh"), "vaswani": ("transformer-base", "transformer-big", "transformer-learned"),
}  # fmt: skip
EXPERIMENTS = [
    f"experiments/{path.name}{f':{variant}' if variant else ''}"
    for path in sorted((ROOT / "experiments").glob("*.py"))
    for variant in VARIANTS.get(path.stem, ("",))
]


def check(cfg):
    """As a run would, but for what only the data says."""
    for key, value in {"vocab_size": 300, "seq_len": cfg.data.get("seq_len", 0), "num_features": 8}.items():
        if key in cfg.model:
            cfg.model[key] = cfg.model[key] or value
    if "num_classes" in cfg.model:
        cfg.model.num_classes = cfg.model.num_classes or 2
    models.family(cfg.family).finalize(cfg.model)
    optim.finalize(cfg.optim)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_can_be_built(name):
    check(config.load(ROOT / name))


@pytest.mark.parametrize("path", sorted((ROOT / "sweeps").glob("*.py")), ids=lambda p: p.stem)
def test_a_sweep_s_rows_can_be_built(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    module = sweep.load(str(path))
    rows = module.get_sweep()
    assert len({str(sorted(row.items())) for row in rows}) == len(rows) > 1
    for row in rows:
        cfg = config.load(row.get("experiment", module.CONFIG))
        config.override_all(cfg, [(k, v) for k, v in row.items() if k not in ("experiment", "start")])
        check(cfg)
        if "start" in row:
            check(config.load(row["start"]))
