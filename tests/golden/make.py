"""Golden values: losses of tiny runs, run ids of the sweeps, fits. `tests/test_golden.py` compares with them.

    python tests/golden/make.py                        # measures again and writes losses.json, ids.json, fits.json
    python tests/golden/make.py losses ids             # only these
    python tests/golden/make.py --data DATA            # and data.json, of prepared data sets (`bigmodel prepare ...`)

Regenerate a file only with a change that is meant to change its values: a mended loss, another order of random numbers,
another way to make run ids. Say in the commit which values changed and why; `benchmarks/identity.py COMMIT` lists them.
A refactor, a speed-up or a new option with a neutral default changes none.

    losses.json  case -> overrides, losses of each step and evaluations; on eight devices, and resumed at step 3
    data.json    data set -> manifest without the texts' origin, so that sweeps are planned where the data isn't
    ids.json     sweep -> the ids of its planned rows; study of docs/studies -> how many of its ids are found again
    ids-23bee87.json  the keys and ids of that commit, which runs on users' disks have: never made again
    fits.json    points and law -> parameters, objective, exponents, held-out errors, intervals
"""

import argparse
import hashlib
import json
import math
import os
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
POINTS = Path(os.environ.get("BIGMODEL_POINTS", ROOT.parent / "shared/points"))
BESIROGLU = "besiroglu2024_chinchilla_points.csv"
STEPS, HALF = 6, 3

if __name__ == "__main__":
    sys.path.append(str(HERE.parent))  # behind PYTHONPATH, which names the tree that is measured
    import conftest  # noqa: F401  (the suite's XLA flags and compilation cache)

# ----------------------------------------------------------------------------------- losses

TEXT = {
    "data.name": "speech", "data.seq_len": 64, "data.epochs": 1000, "train.batch_size": 16, "train.steps": STEPS,
    "train.eval_examples": 16, "run.eval_every": HALF, "run.checkpoint_every": HALF, "run.keep": 2, "run.wandb": "off",
}  # fmt: skip
# 16 windows of 64 are 1,024 tokens a step: two micro-batches on one CPU device.
TABLE = {key: value for key, value in TEXT.items() if key != "data.seq_len"}
TABLE |= {"model.width": 16, "model.depth": 1, "optim.lr": 0.01}
PICTURES = {**TABLE, "data.name": "pictures", "data.flat": False, "data.crop": 2, "data.flip": True, "model.width": 8}
CONVOLVED = {**PICTURES, "model.stem": "small"}
PAIRED = {
    **{key: value for key, value in TABLE.items() if key != "model.width"}, "data.name": "captioned",
    "data.seq_len": 12, "model.width": 16, "model.num_heads": 2, "model.embed": 8, "model.vision.width": 16,
    "model.vision.depth": 2, "model.vision.num_heads": 2, "model.vision.patch": 4,
}  # fmt: skip
CODED = {key: value for key, value in PAIRED.items() if "vision" not in key and key != "model.embed"}
CODED["data.name"] = "coded"
BLOCKS = {"model.width": 32, "model.depth": 1, "model.num_heads": 2, "optim.lr": 0.003}
ROTARY = {"model.position": "rope", "model.init_std": 0.0}
BERT = {**BLOCKS, **ROTARY, "model.segments": 0, "model.norm_placement": "pre"}
CELLS = {"model.width": 32, "model.depth": 2, "optim.lr": 0.01}
PAIRS = {"data.name": "pairs", "model.position": "rope", "model.norm_placement": "pre"}
DEEP = {"model.depth": 2, "model.base_width": 16, "model.base_depth": 1, "model.base_num_heads": 1}
MIXED = {"run.mesh.data": 1, "run.mesh.fsdp": 2, "run.mesh.sequence": 2, "run.mesh.tensor": 2}
CASES = {
    # family, source, overrides; random: whether masks, dropout, spans, prefixes or blanks are drawn; eight: a mesh
    "decoder-causal": ("decoder", "text", {**BLOCKS}, {"eight": {"run.mesh.data": 8}, "resume": True}),
    "decoder-prefix": ("decoder", "text", {**BLOCKS, "model.objective": "prefix"}, {"random": True}),
    "decoder-infill": ("decoder", "text", {**BLOCKS, **ROTARY, "model.objective": "infill"}, {"random": True}),
    "decoder-dropout": (
        "decoder", "text", {**BLOCKS, "model.dropout": 0.1}, {"random": True, "eight": MIXED, "resume": True}
    ),
    "decoder-gqa-rope-swiglu": (
        "decoder", "text",
        {**BLOCKS, **ROTARY, "model.depth": 2, "model.num_heads": 4, "model.num_kv_heads": 2,
         "model.activation": "swiglu", "model.norm": "rmsnorm", "model.qk_norm": True, "model.bias": False,
         "model.tied_head": False},
        {"eight": MIXED},
    ),
    "decoder-mup-accumulated": (
        "decoder", "text",
        {**BLOCKS, **ROTARY, **DEEP, "model.parametrization": "mup", "train.microbatch": 4, "train.noise_scale": True},
        {},
    ),
    "decoder-completep-muon": (
        "decoder", "text",
        {**BLOCKS, **ROTARY, **DEEP, "model.parametrization": "completep", "model.tied_head": False,
         "model.execution": "scan", "optim.name": "muon", "optim.momentum": 0.95},
        {"resume": True},
    ),
    "bert-masked": ("bert", "text", {**BERT}, {"random": True, "eight": {"run.mesh.data": 8}, "resume": True}),
    "bert-masked-next": ("bert", "text", {**BLOCKS, "model.objective": "masked_next"}, {"random": True}),
    "bert-classify": (
        "bert", "tasks",
        {**BLOCKS, "data.name": "labelled", "model.objective": "classify", "model.class_weights": (1.0, 3.0)},
        {},
    ),
    "encdec-span": ("encdec", "text", {**BLOCKS, "model.objective": "span", "model.dropout": 0.0}, {"random": True}),
    "encdec-prefix": (
        "encdec", "text",
        {**BLOCKS, "model.objective": "prefix", "model.dropout": 0.0, "optim.name": "adafactor", "optim.lr": 0.03},
        {},
    ),
    "encdec-translate": ("encdec", "tasks", {**BLOCKS, **PAIRS, "model.dropout": 0.0}, {"eight": MIXED}),
    "encdec-translate-dropout": ("encdec", "tasks", {**BLOCKS, **PAIRS}, {"random": True}),
    "recurrent-lstm": ("recurrent", "text", {**CELLS, "model.depth": 1}, {"eight": {"run.mesh.data": 8}}),
    "recurrent-rnn-carry": (
        "recurrent", "text",
        {**CELLS, "model.depth": 1, "model.cell": "rnn", "model.carry": True, "data.seq_len": 16},
        {"resume": True},
    ),
    "recurrent-dropout": ("recurrent", "text", {**CELLS, "model.dropout": 0.2}, {"random": True}),
    "mlp-classify-batchnorm": (
        "mlp", "tables",  # not Adam, whose updates of what batch norm cancels are the sign of a rounding error
        {**TABLE, "data.name": "digits", "model.norm": "batchnorm", "optim.name": "sgd", "optim.lr": 0.1},
        {"resume": True},
    ),
    "mlp-classify-dropout": (
        "mlp", "tables", {**TABLE, "data.name": "digits", "model.dropout": 0.2}, {"random": True}
    ),
    "resnet-augmented": (
        "resnet", "images",
        {**CONVOLVED, "model.num_stages": 2, "model.depth": 4, "data.erase": 0.3, "optim.ema": 0.5,
         "optim.name": "sgd", "optim.nesterov": True, "optim.lr": 0.1, "optim.lr_batch": 32},
        {"eight": {"run.mesh.data": 8}, "resume": True},
    ),
    "inception-auxiliary-mixup": (
        "inception", "images",
        {**CONVOLVED, "model.depth": 3, "model.auxiliary": 0.3, "model.mixup": 0.5, "model.smoothing": 0.1},
        {"random": True},
    ),
    "vit-drop-path-cutmix": (
        "vit", "images",
        {**PICTURES, "model.depth": 2, "model.patch": 4, "model.num_heads": 2, "model.drop_path": 0.3,
         "model.cutmix": 1.0},
        {"random": True, "resume": True},
    ),
    "clip-vit-cached": (
        "clip", "captions",
        {**PAIRED, "model.grad_cache": 4, "data.flip": True},
        {"eight": {"run.mesh.data": 1, "run.mesh.fsdp": 4, "run.mesh.tensor": 2}, "resume": True},
    ),
    "clip-resnet-sigmoid": (
        "clip", "captions",
        {**PAIRED, "model.objective": "sigmoid", "model.vision.tower": "resnet", "model.vision.width": 4,
         "model.vision.stages": (1, 1), "optim.name": "sgd"},
        {},
    ),
    "dalle-sparse": (
        "dalle", "captions",
        {**CODED, "model.depth": 4, "model.neighbourhood": 3, "model.dropout": 0.1, "train.microbatch": 8},
        {"random": True, "eight": MIXED, "resume": True},
    ),
    "dvae-relaxed": (
        "dvae", "images",
        {**PICTURES, "model.num_groups": 3, "model.num_codes": 16, "model.code_width": 8, "model.temperature_steps": 5,
         "model.kl_weight": 1.0, "model.kl_steps": 4, "train.microbatch": 8},
        {"random": True, "eight": {"run.mesh.data": 8}, "resume": True},
    ),
    "dvae-averages": (
        "dvae", "images",
        {**PICTURES, "model.num_groups": 3, "model.num_codes": 16, "model.code_width": 8, "model.quantizer": "vq"},
        {"random": True, "resume": True},
    ),
    "mlp-regress": ("mlp", "tables", {**TABLE, "data.name": "diabetes", "model.objective": "regress"}, {}),
}  # fmt: skip


def cases():
    """{name: {family, source, overrides, random, resume, eight}}, whole enough to be run by another commit's code."""
    made = {}
    for name, (family, source, own, facts) in CASES.items():
        overrides = {**(TEXT if source not in ("tables", "images", "captions") else {}), **own}
        made[name] = {"family": family, "source": source, "overrides": overrides, "random": False, **facts}
    return made


def prepare(root):
    """Two addresses of tests/data, 80 pairs and 80 labelled texts of drawn bytes, in `root`."""
    import numpy as np

    from bigmodel.prepare.prepare import prepare as prepare_text

    prepare_text(str(HERE.parent / "data"), str(root / "speech"), validation_fraction=0.2, workers=1, progress=False)
    pictures(root / "pictures")
    captioned(root / "captioned", root / "pictures")
    captioned(root / "coded", root / "pictures", side=3)
    rng = np.random.default_rng(0)
    for name, fields in {"pairs": ("source", "target"), "labelled": ("text",)}.items():
        (root / name).mkdir()
        splits = {}
        for split, count in {"train": 80, "validation": 24, "test": 24}.items():
            arrays = {"label": rng.integers(0, 2, count).astype(np.int32)} if name == "labelled" else {}
            for field in fields:
                lengths = rng.integers(5, 60, count)
                ends = np.cumsum(lengths)
                tokens = rng.integers(1, 64, ends[-1])
                tokens[ends - 1] = 0
                arrays |= {field: tokens.astype(np.uint8), f"{field}_ends": ends}
            np.savez(root / name / f"{split}.npz", **arrays)
            content = (root / name / f"{split}.npz").read_bytes()
            splits[split] = {"examples": count, "sha256": hashlib.sha256(content).hexdigest()}
        labels = ["bad", "good"] if name == "labelled" else []
        kind = {"task": "labelled" if labels else "pairs", "labels": labels, "splits": splits}
        text = {"kind": "bytes", "vocab_size": 64, "separator": 0, "file": ""}
        (root / name / "manifest.json").write_text(
            json.dumps({"format": 1, "name": name, "tokenizer": text, "hash": f"golden-{name}", **kind})
        )


SIDE = 12


def pictures(folder):
    """80 pictures of SIDE x SIDE in three colours and 24 held-out ones; the redder, the higher of 4 classes."""
    import numpy as np

    rng, files, splits = np.random.default_rng(0), {}, {}
    folder.mkdir()
    for split, count in {"train": 80, "validation": 24, "test": 24}.items():
        labels = rng.integers(0, 4, count).astype(np.int32)
        images = rng.integers(0, 128, (count, SIDE, SIDE, 3))
        images[..., 0] += 40 * labels[:, None, None]
        for kind, array in {"images": images.astype(np.uint8), "labels": labels}.items():
            np.save(folder / f"{split}-{kind}.npy", array)
            content = (folder / f"{split}-{kind}.npy").read_bytes()
            files[f"{split}-{kind}.npy"] = hashlib.sha256(content).hexdigest()
        splits[split] = {"examples": count}
    kind = {"labels": ["a", "b", "c", "d"], "size": [SIDE, SIDE, 3], "splits": splits, "files": files}
    (folder / "manifest.json").write_text(
        json.dumps({"format": 1, "name": "pictures", "hash": f"golden-{folder.name}", **kind})
    )


def captioned(folder, images, side=0):
    """The pictures of `images`, each with two captions: its class and a drawn letter, and the other way round.

    side: of a grid of codes in their place, each of the eight that a patch's redness is.
    """
    import numpy as np

    told = json.loads((images / "manifest.json").read_text())
    rng, files, splits = np.random.default_rng(0), {}, {}
    folder.mkdir()
    for split, part in told["splits"].items():
        pictures, name = np.load(images / f"{split}-images.npy"), f"{split}-{'codes' if side else 'images'}.npy"
        if side:
            patches = pictures[..., 0].reshape(-1, side, SIDE // side, side, SIDE // side)
            pictures = (patches.mean((2, 4)) // 32).astype(np.uint16)
        np.save(folder / name, pictures)
        files[name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        labels = np.repeat(np.load(images / f"{split}-labels.npy"), 2)
        tokens = np.stack([labels + 1, rng.integers(10, 20, len(labels)), np.zeros_like(labels)], 1)
        tokens[::2, :2] = tokens[::2, 1::-1]
        arrays = {"text": tokens.astype(np.uint8).ravel(), "text_ends": 3 * np.arange(1, len(labels) + 1)}
        arrays |= {"label": labels, "picture": np.arange(len(labels)) // 2, "language": np.arange(len(labels)) % 2}
        np.savez(folder / f"{split}.npz", **arrays)
        sha256 = hashlib.sha256((folder / f"{split}.npz").read_bytes()).hexdigest()
        splits[split] = {"examples": 2 * part["examples"], "pictures": part["examples"], "sha256": sha256}
    kind = {"labels": told["labels"], "asked": {}, "languages": ["en", "zh"], "size": told["size"]}
    kind |= {"task": "codes", "size": [side, side], "num_codes": 8} if side else {"task": "captions"}
    text = {"kind": "bytes", "vocab_size": 64, "separator": 0, "file": ""}
    (folder / "manifest.json").write_text(
        json.dumps({"format": 1, "name": folder.name, "tokenizer": text, "splits": splits, "files": files,
                    "hash": f"golden-{folder.name}", **kind})
    )  # fmt: skip


def config_of(case, data_dir, more=()):
    from bigmodel import config
    from bigmodel.run import budget

    found = budget.base(case["family"], case["source"])
    config.override_all(found, [*case["overrides"].items(), ("run.data_dir", str(data_dir)), *more])
    return found


def _rows(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    evaluated = {str(r["step"]): {k: v for k, v in r.items() if k.startswith("eval_")} for r in rows}
    return {"losses": [r["loss"] for r in rows if "loss" in r], "eval": {k: v for k, v in evaluated.items() if v}}


def run(case, data_dir, folder, mesh=None):
    """{losses, eval} of a case; `resumed`: of the same, continued from its checkpoint at step HALF."""
    from bigmodel.run import session

    def go(root):
        return root / session.train(config_of(case, data_dir, (mesh or {}).items()), str(root), quiet=True)["run_id"]

    home = go(folder / "whole")
    found = _rows(home)
    if case.get("resume") and not mesh:
        import shutil

        again = folder / "again" / home.name
        shutil.copytree(home / "checkpoints" / str(HALF), again / "checkpoints" / str(HALF))
        for name in ("metrics.jsonl", "speed.jsonl"):
            shutil.copy(home / name, again)
        go(folder / "again")
        found["resumed"] = _rows(again)
        assert json.loads((again / "attempts.jsonl").read_text())["step"] == HALF
    return found


def losses(wanted, devices=1, names=()):
    """{case: what `run` gives}; with eight devices, of the cases that have a mesh there."""
    with tempfile.TemporaryDirectory() as folder:
        data_dir = Path(folder) / "data"
        data_dir.mkdir()
        prepare(data_dir)
        found = {}
        for name, case in wanted.items():
            mesh = case.get("eight") if devices > 1 else None
            if (devices == 1 or mesh) and (not names or name in names):
                found[name] = run(case, data_dir, Path(folder) / name, mesh)
    return found


# -------------------------------------------------------------------------------------- ids


def stubs(root):
    """Folders that a plan can be made of, by data.json: manifests, and counts of labelled texts, but no data."""
    import numpy as np

    for name, manifest in json.loads((HERE / "data.json").read_text())["sets"].items():
        (root / name).mkdir(parents=True)
        for split, part in manifest["splits"].items() if "task" in manifest else ():
            path = root / name / f"{split}.npz"
            n = part["examples"]
            np.savez(path, text=np.zeros(n, np.uint8), text_ends=np.arange(1, n + 1), label=np.zeros(n, np.int32))
            part["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
        (root / name / "manifest.json").write_text(json.dumps({"files": {}, **manifest}))


def plans(data_dir, names=()):
    """{sweep: its planned rows, in order}, by the manifests in `data_dir`."""
    from bigmodel.run import budget
    from bigmodel.study import sweep

    digests = json.loads((HERE / "data.json").read_text())["files"]
    whole, budget.digest = budget.digest, digests.__getitem__  # of weights that aren't there
    try:
        paths = [p for p in sorted((ROOT / "sweeps").glob("*.py")) if not names or p.stem in names]
        return {p.stem: sweep.make_plan(str(p), [("run.data_dir", str(data_dir))]) for p in paths}
    finally:
        budget.digest = whole


def ids(planned):
    return {name: [row.run_id for row in rows] for name, rows in planned.items()}


# Ids of docs/studies are older than 23bee87: the hash of configs without the keys that came since, and with those that
# had another value or place then. (without, with) of each age:
RECENT = {"optim.state_dtype", "train.grad_dtype", "train.param_dtype"}
OLDER = RECENT | {"optim.l1", "optim.l2", "train.init_only", "train.patience", "train.patience_steps"}
OLDEST = OLDER | {"model.attention_bias", "model.norm_eps", "model.score_scale", "model.value_dim"}
AGES = [
    (RECENT, {}),
    (RECENT, {"model.remat": False}),
    (RECENT, {"model.remat": False, "model.pool": "first"}),
    (OLDER, {"model.remat": False}),
    (OLDEST, {"model.remat": False}),
]


def id_of_23bee87(config, without=(), more=None):
    """A run's id as that commit made it: the hash of all that it knew but `run`. Keys that came later don't count."""
    import hashlib

    known = set(json.loads((HERE / "ids-23bee87.json").read_text())["keys"]) - set(without)
    if config.data.source == "text":  # an option of other sources then
        known.discard("data.examples")
    tree = {k: v for k, v in config.to_dict().items() if k != "run"}
    if tree["train"]["init_fingerprint"]:
        del tree["train"]["init_from"]
    for section, keys in tree.items():
        if isinstance(keys, dict):
            tree[section] = {key: value for key, value in keys.items() if f"{section}.{key}" in known}
    for name, value in (more or {}).items():
        section, key = name.split(".")
        tree[section][key] = value
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:12]


def studies(planned):
    """{study of docs/studies: its number of ids, and how many are those of the rows planned today, in some age}.

    What isn't found is not in today's sweep files: gpt_isoflop had two heads and a larger rate (12d466d plans it),
    wsd_decay20 a decay of 0.2 (3985845 plans it); no commit's sweep was found that plans gpt_isoflop_horizons.
    """
    import pandas as pd

    configs = [row.config for rows in planned.values() for row in rows]
    made = {id_of_23bee87(c, without, more) for c in configs for without, more in [((), {}), *AGES]}
    made |= {row.run_id for rows in planned.values() for row in rows}  # of options that commit hadn't
    frames = {p.stem: pd.read_csv(p, dtype=str) for p in sorted((ROOT / "docs/studies").glob("*.csv"))}
    ran = {name: set(frame["run_id"]) for name, frame in frames.items() if "run_id" in frame}
    return {name: {"ids": len(found), "found": len(found & made)} for name, found in ran.items()}


def data(root):
    """data.json of the data sets prepared in `root`."""
    import hashlib

    kept = ("format", "name", "tokenizer", "dtype", "splits", "hash", "task", "labels", "size", "languages", "asked")
    sets = {}
    for path in sorted(root.glob("*/manifest.json")):
        found = json.loads(path.read_text())
        sets[path.parent.name] = {key: found[key] for key in kept if key in found}
    weights = root / "minilm/model.safetensors"
    return {"sets": sets, "files": {"data/minilm/model.safetensors": hashlib.sha256(weights.read_bytes()).hexdigest()}}


# ------------------------------------------------------------------------------------- fits

STUDIES = ROOT / "docs/studies"
FITS = {
    # points, where, law, further arguments of fit.fit
    "isoflop-chinchilla": ("gpt_isoflop.csv", "", "chinchilla", {}),
    "isoflop-gadre": ("gpt_isoflop.csv", "", "gadre", {}),
    "isoflop-frontier": ("gpt_isoflop.csv", "", "isoflop", {}),
    "isoflop-envelope": ("gpt_isoflop.csv", "", "envelope", {}),
    "heads-likelihood": ("gpt_isoflop_heads.csv", "", "chinchilla", {"estimator": "likelihood"}),
    "horizons-kaplan": ("gpt_isoflop_horizons.csv", "", "kaplan_nd", {"against": ("chinchilla", "gadre")}),
    "families-decoder": ("families.csv", "family=decoder", "chinchilla", {}),
    "families-lstm": ("families.csv", "family=lstm", "chinchilla", {"above": 0.5}),
    "families-bert": ("families.csv", "family=bert", "chinchilla", {"bootstrap": 0}),  # ill-determined, as its ends are
    "by-family-mlp": ("by_family.csv", "sweep=mlp", "chinchilla", {"holdout": 1}),
    "besiroglu": (BESIROGLU, "", "chinchilla", {}),
    "besiroglu-likelihood": (BESIROGLU, "", "chinchilla", {"estimator": "likelihood"}),
}  # fmt: skip


def points_of(name):
    """The file of a fit's points; one of ../shared/points may not be there."""
    file = FITS[name][0]
    return POINTS / file if file == BESIROGLU else STUDIES / file


def fit(name):
    """{params, objective, ci, optimal, holdout, ...} of a fit, with 100 resamples unless FITS says otherwise."""
    from bigmodel.laws import fit as fits
    from bigmodel.laws import rows

    file, where, law, more = FITS[name]
    columns = {"N": "Model Size", "C": "Training FLOP"} if file == BESIROGLU else {}
    frame = rows.load(points_of(name), columns, drop_highest=5 if file == BESIROGLU else 0, where=where)
    found = fits.to_json(fits.fit(frame, law=law, **{"bootstrap": 100, **more}))
    kept = ("params", "objective", "scale", "n_points", "ci", "se", "optimal")
    out = {key: found[key] for key in kept if found.get(key) is not None}
    held = ("n_held_out", "flops_gap", "mean_abs_rel_error", "max_abs_rel_error", "mean_rel_error", "params")
    out["holdout"] = [{key: row[key] for key in held if key in row} for row in found["holdout"]]
    return out


# ------------------------------------------------------------------------------------- files


def rounded(value):
    """Floats to 9 digits."""
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(v) for v in value]
    return float(f"{value:.9g}") if isinstance(value, float) else value


def differences(want, have, rel, path=""):
    """['losses[2]: 3.41 -> 3.42 (1.2e-03)', ...] of two trees of numbers and text."""
    if isinstance(want, dict) and isinstance(have, dict):
        missing = [f"{path}.{k}: only in one" for k in sorted(want.keys() ^ have.keys())]
        both = [differences(want[k], have[k], rel, f"{path}.{k}".lstrip(".")) for k in want if k in have]
        return [*missing, *(line for lines in both for line in lines)]
    if isinstance(want, list | tuple) and isinstance(have, list | tuple) and len(want) == len(have):
        pairs = enumerate(zip(want, have, strict=True))
        return [line for i, (a, b) in pairs for line in differences(a, b, rel, f"{path}[{i}]")]
    if isinstance(want, float | int) and isinstance(have, float | int):
        error = abs(have - want) / max(abs(want), 1e-30) if want != have else 0.0
        return [f"{path}: {want!r} -> {have!r} ({error:.1e})"] if not error <= rel or math.isnan(error) else []
    return [] if want == have else [f"{path}: {want!r} -> {have!r}"]


def measure(what, case_file=None, devices=1):
    """The content of losses.json (one device's or eight's part), ids.json or fits.json."""
    if what == "losses":
        return losses(json.loads(Path(case_file).read_text()) if case_file else cases(), devices)
    if what == "ids":
        with tempfile.TemporaryDirectory() as folder:
            stubs(Path(folder))
            planned = plans(Path(folder))
        return {"sweeps": ids(planned), "studies": studies(planned)}
    return {name: fit(name) for name in FITS if points_of(name).is_file()}


def eight(case_file, out):
    """Measures on eight devices: in a process of its own, since JAX counts them once."""
    import subprocess

    command = [sys.executable, __file__, "losses", "--cases", case_file, "--out", out, "--devices=8"]
    made = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr[-4000:]
    return json.loads(Path(out).read_text())


def write(path, value):
    path.write_text(json.dumps(rounded(value), indent=1) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=["losses", "ids", "fits"])
    parser.add_argument("--data", type=Path, help="folder of prepared data sets: writes data.json")
    parser.add_argument("--cases", help="with --out: a JSON of cases, run as they are there")
    parser.add_argument("--out", type=Path, help="writes what was measured there, with all digits, and no golden file")
    parser.add_argument("--devices", type=int, default=1)
    args = parser.parse_args()
    import jax

    jax.config.update("jax_num_cpu_devices", args.devices)
    if args.out:
        (what,) = args.what
        args.out.write_text(json.dumps(measure(what, args.cases, args.devices)))
        return
    if args.data:
        write(HERE / "data.json", data(args.data))
    for what in args.what:
        found = measure(what)
        if what == "losses":
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "cases.json"
                path.write_text(json.dumps(cases()))
                more = eight(path, Path(folder) / "out.json")
            on_eight = {name: {"on_eight": value} for name, value in more.items()}
            found = {name: {**case, **found[name], **on_eight.get(name, {})} for name, case in cases().items()}
        write(HERE / f"{what}.json", found)


if __name__ == "__main__":
    main()
