"""The law of transfer of sweeps/adapt.py, from planted losses; the first windows of a text as its whole data."""

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

from bigmodel import data
from bigmodel.config import load_module
from bigmodel.errors import UsageError
from bigmodel.run import budget

adapt = load_module(ROOT / "sweeps/adapt.py", "sweep")
K, ALPHA, BETA = 90.0, 0.4, 0.3


def planted(noise=0.0, sizes=(4096, 10240, 22528, 55296, 131072)):
    """Three seeds whose pretraining is worth K D^ALPHA N^BETA bytes; the loss from scratch is a sum of powers."""
    rng, rows = np.random.default_rng(0), []
    curve = lambda d, n: 20 * d**-0.2 + 30 * n**-0.3  # noqa: E731
    for params in (20_000, 68_000, 246_000):
        for seed in range(3):
            for own in np.geomspace(8e3, 2e6, 40):
                rows.append((params, int(own), -1, seed, curve(own, params)))
            for own in sizes:
                worth = own + K * own**ALPHA * params**BETA
                rows.append((params, own, 0, seed, curve(worth, params) * np.exp(noise * rng.normal())))
    frame = pd.DataFrame(rows, columns=["params", "bytes", "rank", "seed", "loss"])
    return frame.assign(trainable=frame.params, run_id=[str(i) for i in frame.index])


def test_a_planted_law_of_transfer_is_found():
    table = adapt.cells(planted())
    found = adapt.fit(table)
    assert len(table) == 15 and found == pytest.approx([np.log(K), ALPHA, BETA], abs=0.05)
    law = adapt.law(planted(noise=0.003), 0, draws=60)
    for name, true in {"log_k": np.log(K), "alpha": ALPHA, "beta": BETA}.items():
        assert law[name]["low"] < true < law[name]["high"], name
    assert law["alpha"]["high"] - law["alpha"]["low"] < 0.2 and law["cells"] == 15


def test_what_no_run_from_scratch_reaches_is_outside():
    frame = planted()
    frame.loc[(frame["rank"] == 0) & (frame.bytes == 131072), "loss"] = 0.1
    table = adapt.cells(frame)
    assert table[table.bytes == 131072].effective.isna().all() and table[table.bytes < 131072].effective.notna().all()
    assert adapt.fit(table[table.params == 20_000]) is None  # one size of model: no exponent of it


def test_the_first_windows_of_a_text_can_be_all_its_data(tiny):
    frozen = budget.finalize(tiny(data__examples=5))
    source = data.source("text")
    assert source.describe(frozen.data, frozen.run.data_dir).train_examples == 5
    few, whole = (
        source.open_split(budget.finalize(tiny(data__examples=n)).data, frozen.run.data_dir, "train") for n in (5, 0)
    )
    assert len(few) == 5 < len(whole) and (few[4]["tokens"] == whole[4]["tokens"]).all()
    assert budget.derive(frozen).epochs == 12 * 8 / 5
    with pytest.raises(UsageError, match=r"config.data.examples=100000000: there are \d+ training examples"):
        budget.finalize(tiny(data__examples=10**8))
