"""What sweeps/dalle.py derives from a run of `dvae` on captioned pictures: the same pairs, with codes for pictures."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np

from bigmodel import data
from bigmodel.after import evaluate
from bigmodel.data import captions
from bigmodel.models import dvae

BATCH = 64


def info(config):
    """As `captions.describe` will say of it, for captions as long as the source's own default."""
    source = data.manifest(config.data, config.run.data_dir, "captions")
    size = [config.model[side] // dvae.reduction(config.model) for side in ("image_height", "image_width")]
    told = {**source, "task": "codes", "size": size, "num_codes": config.model.num_codes}
    train, validation = (source["splits"][split]["examples"] for split in ("train", "validation"))
    return data.Info("examples", 1, train, validation, captions.sizes(told, captions.get_config().seq_len))


def make(run, out):
    found = evaluate.restore(str(run))
    config, out = found.config, Path(out)
    source = data.folder(config.data, config.run.data_dir)
    manifest = data.manifest(config.data, config.run.data_dir, "captions")
    encode = jax.jit(lambda image: dvae.codes(found.model, found.variables, image))
    for split in manifest["splits"]:
        images = np.load(str(source / f"{split}-images.npy"), mmap_mode="r")
        codes = []
        for first in range(0, len(images), BATCH):
            part = np.asarray(images[first : first + BATCH])
            padded = np.pad(part, ((0, BATCH - len(part)), (0, 0), (0, 0), (0, 0)))
            codes.append(np.asarray(encode(padded))[: len(part)])
        stored = np.concatenate(codes).astype(np.uint16 if config.model.num_codes <= 2**16 else np.int32)
        np.save(out / f"{split}-codes.npy", stored)
        for name in (f"{split}.npz", f"{split}.jsonl"):
            shutil.copy(str(source / name), out / name)
    if (source / "tokenizer.json").exists():
        shutil.copy(str(source / "tokenizer.json"), out / "tokenizer.json")
    made_of = {"run": str(Path(run).resolve()), "run_id": found.result["run_id"], "data": manifest["hash"]}
    told = {"task": "codes", "size": list(codes[0].shape[1:]), "num_codes": config.model.num_codes, "files": {}}
    (out / "manifest.json").write_text(json.dumps({**manifest, **told, "made_of": made_of}))
