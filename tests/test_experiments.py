"""Every experiment that comes along is one that could run: its keys exist, its model can be built."""

import pytest
from conftest import ROOT

from bigmodel import config, models
from bigmodel.run import optim

VARIANTS = {
    "adapt": ("48", "pretrain-48-0"), "dvae": ("", "gumbel"), "gpt3": ("125m", "175b"),
    "sentiment": ("minilm", "pretrain", "prose", "zh", "zh_pretrain"),
    "translate": ("de", "zh"), "vaswani": ("transformer-base", "transformer-big", "transformer-learned"),
}  # fmt: skip
EXPERIMENTS = [
    f"experiments/{path.name}{f':{variant}' if variant else ''}"
    for path in sorted((ROOT / "experiments").glob("*.py"))
    for variant in VARIANTS.get(path.stem, ("",))
]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_can_be_built(name):
    """As a run would, but for what only the data says."""
    cfg = config.load(ROOT / name)
    for key, value in {"vocab_size": 300, "seq_len": cfg.data.get("seq_len", 0), "num_features": 8}.items():
        if key in cfg.model:
            cfg.model[key] = cfg.model[key] or value
    if "num_classes" in cfg.model:
        cfg.model.num_classes = cfg.model.num_classes or 2
    models.family(cfg.family).finalize(cfg.model)
    optim.finalize(cfg.optim)
