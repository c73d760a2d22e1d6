"""Pictures a second that the reader delivers, augmented, by 0, 1 and 2 worker processes.

    python benchmarks/input_pipeline.py                    # medians of 5 stretches of 10 batches of 128
    python benchmarks/input_pipeline.py --consumes=1000    # and how many times that many

Pictures of random bytes, 28 x 28 in grey and 64 x 64 in colour, by the source's own augmentation: a padded crop and
flips, and those with two layers of RandAugment at magnitude 10.
"""

import argparse
import functools
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from bigmodel import data
from bigmodel.data import loader

BATCH, BATCHES, STRETCHES = 128, 10, 5
KINDS = {"crop, flip": {}, "and RandAugment 2, 10": {"randaugment_layers": 2, "randaugment_magnitude": 10}}


def pictures(folder: Path, size: tuple[int, ...]) -> None:
    """2,000 pictures as `bigmodel prepare` writes them."""
    folder.mkdir()
    rng, splits = np.random.default_rng(0), {}
    for split in ("train", "validation"):
        np.save(folder / f"{split}-images.npy", rng.integers(0, 256, (2000, *size)).astype(np.uint8))
        np.save(folder / f"{split}-labels.npy", np.zeros(2000, np.int32))
        splits[split] = {"examples": 2000}
    manifest = {"format": 1, "hash": folder.name, "labels": ["a"], "size": list(size), "splits": splits, "files": {}}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def rate(cfg, split, workers: int) -> float:
    augment = functools.partial(data.source("images").augment, cfg)
    steps = BATCHES * (STRETCHES + 1)
    batches = loader.train_batches(split, BATCH, 0, 0, steps, (0, BATCH), workers=workers, augment=augment)
    found = []
    for _ in range(STRETCHES + 1):  # the first starts the workers
        began = time.perf_counter()
        for _ in range(BATCHES):
            next(batches)
        found.append(BATCH * BATCHES / (time.perf_counter() - began))
    return statistics.median(found[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--consumes", type=float, default=0.0, help="pictures a second of a training step")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        for size in ((28, 28), (64, 64, 3)):
            name = "x".join(map(str, size))
            pictures(Path(root) / name, size)
            for kind, more in KINDS.items():
                cfg = data.source("images").get_config()
                cfg.update(dict(name=name, flat=False, crop=2, flip=True, **more))
                data.source("images").finalize(cfg, root)
                split = data.source("images").open_split(cfg, root, "train")
                rates = [rate(cfg, split, workers) for workers in (0, 1, 2)]
                times = [f" ({r / args.consumes:.1f}x)" if args.consumes else "" for r in rates]
                text = ", ".join(f"{n} workers {r:,.0f}{t}" for n, (r, t) in enumerate(zip(rates, times, strict=True)))
                print(f"{name}, {kind}: pictures a second by {text}", flush=True)


if __name__ == "__main__":
    main()
