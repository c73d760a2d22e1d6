"""Augmented batches: a function of (seed, i), whoever reads them and from wherever they are resumed."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

from bigmodel import data
from bigmodel.data import loader

SIZE, BATCH, STEPS = 13, 4, 9  # three epochs, whose ends lie within batches


class Pictures:
    """Numbered pictures of one channel."""

    def __len__(self):
        return SIZE

    def __getitem__(self, k):
        return {"picture": np.full((6, 6), k, np.float32), "label": np.int32(k)}


def augment(example, rng):
    """A random crop with noise on it."""
    row, column = rng.integers(0, 3, 2)
    crop = example["picture"][row : row + 4, column : column + 4]
    return {**example, "picture": crop + rng.normal(size=crop.shape).astype(np.float32)}


def broken(example, rng):
    raise ArithmeticError("no such picture")


def read(start=0, stop=STEPS, seed=3, rows=(0, BATCH), workers=0, augment=augment, source=None, **more):
    return list(
        loader.train_batches(
            source or Pictures(), BATCH, seed, start, stop, rows, workers=workers, augment=augment, **more
        )
    )


def assert_same(found, wanted):
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            assert a[key].dtype == b[key].dtype
            np.testing.assert_array_equal(a[key], b[key])


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_workers_read_the_same_batches_from_any_start(workers):
    whole = read()
    assert whole[0]["picture"].shape == (BATCH, 4, 4)
    assert_same(read(workers=workers), whole)
    assert_same(read(start=5, workers=workers), whole[5:])
    assert_same(read(start=5), whole[5:])


def test_a_process_that_reads_some_rows_augments_them_alike():
    part = [{key: value[1:3] for key, value in batch.items()} for batch in read()]
    assert_same(read(rows=(1, 3)), part)


@pytest.mark.parametrize("in_order", [False, True])
def test_each_row_of_each_batch_is_augmented_by_itself(in_order):
    rows = [row for batch in read(in_order=in_order) for row in batch["picture"]]
    noise = [row - np.round(row.mean()) for row in rows]
    assert len({x.tobytes() for x in noise}) == len(noise) == STEPS * BATCH
    others = [row for batch in read(seed=4, in_order=in_order) for row in batch["picture"]]
    assert not {x.tobytes() for x in rows} & {x.tobytes() for x in others}


@pytest.mark.parametrize("in_order", [False, True])
def test_augmentation_does_not_change_which_examples_are_read(in_order):
    plain, augmented = (read(augment=a, in_order=in_order) for a in (None, augment))
    for a, b in zip(plain, augmented, strict=True):
        np.testing.assert_array_equal(a["label"], b["label"])
        np.testing.assert_array_equal(a["picture"], np.broadcast_to(a["label"][:, None, None], (BATCH, 6, 6)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["text", "tables"])
def test_workers_open_a_source_by_themselves(name, data_dir):
    source = data.source(name)
    cfg = source.get_config()
    cfg.update({"text": {"name": "speech", "seq_len": 16}, "tables": {}}[name])
    source.finalize(cfg, data_dir)
    examples = source.open_split(cfg, data_dir, "train")
    whole = read(source=examples, augment=None)
    assert_same(read(source=examples, augment=None, start=2, workers=2), whole[2:])


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_the_augmentation_is_raised_by_the_reader(workers):
    with pytest.raises(ArithmeticError, match="no such picture"):
        read(workers=workers, augment=broken)


@pytest.mark.slow
def test_a_signal_to_the_whole_group_leaves_the_workers_at_work():
    """As Ctrl-C and a scheduler's SIGTERM arrive: the loop saves after its step, and needs its batches until then."""
    batches = loader.train_batches(Pictures(), BATCH, 3, 0, 200, (0, BATCH), workers=2, augment=augment)
    found = [next(batches)]
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    for worker in workers:
        os.kill(worker.pid, signal.SIGINT)
        os.kill(worker.pid, signal.SIGTERM)
    found += [next(batches) for _ in range(99)]
    assert all(worker.is_alive() for worker in workers)
    batches.close()
    assert_same(found, read(stop=100))
    assert not any(worker.is_alive() for worker in workers)


READER = """
import multiprocessing, time
from test_augmentation import BATCH, Pictures, augment
from bigmodel.data import loader
if __name__ == "__main__":
    batches = loader.train_batches(Pictures(), BATCH, 3, 0, 10**6, (0, BATCH), workers=2, augment=augment)
    next(batches)
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    time.sleep(600)
"""


@pytest.mark.slow
def test_workers_end_with_a_killed_process(tmp_path):
    (tmp_path / "reader.py").write_text(READER)
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    with subprocess.Popen(
        [sys.executable, tmp_path / "reader.py"], env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.PIPE
    ) as reader:
        workers = [Path(f"/proc/{pid.decode()}") for pid in reader.stdout.readline().split()]
        assert len(workers) == 2 and all(worker.exists() for worker in workers)
        reader.kill()
    until = time.monotonic() + 60
    while any(worker.exists() for worker in workers):
        assert time.monotonic() < until
        time.sleep(0.05)
