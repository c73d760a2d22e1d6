"""Everything that follows from a config: N, D, C, steps, memory, time. Nothing derived is written by hand."""

from __future__ import annotations

import functools
import math
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict

from bigmodel import data, models, tree
from bigmodel.config import HORIZONS, bounded, flatten
from bigmodel.errors import NoData, UsageError, check_ranges, choose, nearest, note
from bigmodel.files import check_path
from bigmodel.ops import remat
from bigmodel.run import adapters, counts, optim, parametrize, weights
from bigmodel.run.record import read_result


def get_config() -> tuple[ConfigDict, ConfigDict]:
    """The `train` and `run` sections."""
    train = ConfigDict(
        dict(
            batch_size=32,  # examples a step
            microbatch=0,  # examples whose gradients are taken at once and accumulated; 0: the whole batch
            steps=0,  # the horizon: exactly one of these four is given
            tokens=0,  # D seen (examples, where a source has no tokens)
            flops=0.0,  # C = 3 x forward FLOPs x examples
            tokens_per_param=0.0,  # D / N, N without embeddings
            param_dtype="float32",  # or bfloat16, in which parameters are kept
            grad_dtype="float32",  # or bfloat16, in which gradients are summed over micro-batches and kept
            seed=0,
            eval_examples=0,  # validation examples evaluated; 0: all
            patience=0,  # early stopping: checks in a row without a lower held-out loss that end a run; 0: never
            patience_steps=50,  # steps between checks
            noise_scale=False,  # log the gradient noise scale, from micro-batches against the batch
            divergence=3.0,  # diverged once the loss stays above this multiple of the first loss ...
            divergence_steps=20,  # ... for this many steps in a row (a NaN: at once)
            init_from="",  # a finished run's folder, or a published .safetensors, whose parameters to start from
            init_parts=(),  # or of several: (run or file, prefix of its parameters' paths, prefix of ours) each
            init_only="",  # regex of the parameters' paths to take from there; the others start afresh. "": all
            init_fingerprint="",  # which run or file that is, filled from it
            # adapters (adapters.py): these learn, what the run starts from is frozen but for what optim.groups names
            lora_rank=0,  # 0: none
            lora_alpha=0.0,  # an adapter counts lora_alpha / lora_rank times; 0: lora_rank, that is once
            lora_targets="attention/(query|value)$",  # regex of the paths of matrices (Hu et al. 2021, section 4.2)
            lora_bits=0,  # 4: frozen matrices of layers are held in 4 bits (QLoRA, adapters.py); 0: as they are
        )
    )
    run = ConfigDict(
        dict(
            data_dir="data",  # where `bigmodel prepare` wrote; local or gs://
            mesh=dict(slices=1, data=-1, fsdp=1, sequence=1, tensor=1),  # sharding.py; -1: the devices that are left
            remat="none",  # or dots, full, offload: what the backward pass computes again, for memory
            attention="auto",  # or plain, splash (TPU), cudnn (GPU)
            loss_chunks=0,  # parts of the vocabulary that the loss takes one after another; 0: by size
            executable="",  # a file of `bigmodel compile --save`: the step isn't compiled, but read from there
            checkpoint_every=500,  # steps; there is always one at the end
            keep=1,  # checkpoints kept
            log_every=1,  # steps a row of metrics.jsonl
            eval_every=0,  # steps; 0: only at the end
            wandb="offline",  # or online, off
            workers=0,  # processes that read and augment training examples; 0: a thread of the run's own process
            watchdog=1800,  # seconds without a step after which a process gives up, to be started again; 0: never
        )
    )
    return train, run


def base(family: str, source: str) -> ConfigDict:
    """The complete default config of a family on a data source: their names, or paths of files of the user's."""
    train, run = get_config()
    family, source = (str(Path(name).absolute()) if name.endswith(".py") else name for name in (family, source))
    return ConfigDict(
        dict(
            family=family,
            model=models.family(family).get_config(),
            data={**data.source(source).get_config(), "source": source},
            optim=optim.get_config(),
            train=train,
            run=run,
        )
    )


def finalize(config: ConfigDict, reads: bool = True) -> FrozenConfigDict:
    """Checks a config whole, fills what follows from other keys, and freezes it.

    Args:
      reads: whether the data is to be there; else sizes that it decides are the config's own.

    Raises:
      UsageError: an unknown or missing key, an impossible value, data that isn't there or isn't enough.
    """
    config = config.copy_and_resolve_references()
    fill(config)
    family = models.family(config.family)
    config.unlock()
    if reads:
        data.finalize(config.data, config.run.data_dir)
        sizes = data.describe(config.data, config.run.data_dir).sizes
    else:
        sizes = {key: value for key, value in config.data.items() if key in config.model}
    for key, value in sizes.items():
        if key == "num_classes" and "label" not in family.spec(config.model):
            continue  # labels that the family doesn't read
        if key not in config.model:
            raise UsageError(
                f"family {config.family!r} can't read data source {config.data.source!r}: it has no model.{key}"
            )
        if config.model[key] not in (value, family.get_config()[key]):
            raise UsageError(f"config.model.{key}={config.model[key]}: the data decides it, and says {value}")
        config.model[key] = value
    if family.base:
        choose("config.model.parametrization", config.model.parametrization, parametrize.NAMES)
    family.finalize(config.model)
    optim.finalize(config.optim)
    _check_train(config)
    if config.optim.layer_decay != 1 and not any("depth" in names for _, names in family.RULES):
        raise UsageError(f"config.optim.layer_decay: family {config.family!r} has no stack of layers")
    adapters.finalize(config.train, family.RULES, lambda: counts.shapes(config.family, FrozenConfigDict(config.model)))
    config.lock()
    frozen = FrozenConfigDict(config)
    if reads:
        derive(frozen)
    return frozen


def fill(config: ConfigDict, quiet: bool = False) -> None:
    """Gives a config the options that it lacks, as one of an earlier version does, at their defaults: one line says so.

    Raises:
      UsageError: it has a key that there isn't, or a value of another type.
    """
    for section in ("family", "data"):
        if section not in config:
            raise UsageError(f"config has no section {section!r}")
    if not isinstance(config.data, ConfigDict):
        raise UsageError(f"config.data={config.data!r} is not a section of keys")
    if "source" not in config.data:
        raise UsageError("config has no key 'data.source'")
    defaults = base(config.family, config.data.source)
    want, have = flatten(defaults), flatten(config)
    for key in sorted(have.keys() - want.keys()):
        raise UsageError(f"config has an unknown key {key!r}{nearest(key, want)}")
    if lacking := sorted(want.keys() - have.keys()):
        for key in lacking:  # not even the sections that they belong to may be something else
            *parents, leaf = key.split(".")
            at: Any = config
            for part in parents:
                at = at.get(part, {}) if isinstance(at, (ConfigDict, dict)) else {}
            if isinstance(at, ConfigDict) and leaf in at:
                raise UsageError(f"config.{key} is a section of keys: expected {type(want[key]).__name__}")
        own = config.to_dict()
        with config.unlocked(), config.ignore_type():
            config.update(defaults)
            config.update(own)
        have = flatten(config)
        if not quiet:
            filled = ", ".join(f"{key}={want[key]!r}" for key in lacking)
            note(f"the config lacks options, as one of an earlier version does; filled in: {filled}")
    for key, value in want.items():
        if type(have[key]) is not type(value):
            raise UsageError(f"config.{key}={have[key]!r}: expected {type(value).__name__}, as in {value!r}")
        if isinstance(value, float) and not math.isfinite(have[key]):
            raise UsageError(f"config.{key}={have[key]!r}: must be finite")
        if type(value) in (int, float):
            bounded(key, have[key])


def _check_train(config: ConfigDict) -> None:
    train, run, family = config.train, config.run, models.family(config.family)
    counts_ = dict.fromkeys(("batch_size", "divergence_steps", "patience_steps"), "[1, inf)")
    or_none = dict.fromkeys(("microbatch", "eval_examples", "patience", *HORIZONS), "[0, inf)")
    # JAX's keys drop the bits above 32, and two seeds would be one.
    check_ranges("config.train.", train, seed=f"[0, {2**32})", divergence="(1, inf)", **counts_, **or_none)
    or_never = dict.fromkeys(("checkpoint_every", "eval_every", "workers", "watchdog", "loss_chunks"), "[0, inf)")
    check_ranges("config.run.", run, keep="[1, inf)", log_every="[1, inf)", **or_never)
    for key in ("param_dtype", "grad_dtype"):
        choose(f"config.train.{key}", train[key], optim.DTYPES)
    choose("config.run.wandb", run.wandb, ["offline", "online", "off"])
    choose("config.run.remat", run.remat, remat.POLICIES)
    choose("config.run.attention", run.attention, ["auto", "plain", "splash", "cudnn"])
    if train.microbatch and train.batch_size % train.microbatch:
        raise UsageError(
            f"config.train.microbatch={train.microbatch} doesn't divide train.batch_size={train.batch_size}"
        )
    if train.noise_scale and train.batch_size in (1, train.microbatch):
        raise UsageError(
            f"config.train.noise_scale: needs batch_size={train.batch_size} above microbatch={train.microbatch} and 1"
        )
    if not family.decomposes(config.model):
        why = "in this model each example's loss depends on the whole batch"
        instead = "; config.model.grad_cache does it exactly" if "grad_cache" in config.model else ""
        for key in ("microbatch", "noise_scale"):
            if train[key]:
                raise UsageError(
                    f"config.train.{key}={train[key]}: {why}, which is never cut into micro-batches{instead}"
                )
        if train.batch_size == 1 and not family.carries(config.model):
            raise UsageError(f"config.train.batch_size=1: {why}: use at least 2")
    given = [k for k in HORIZONS if train[k]]
    if len(given) != 1:
        said = f"{', '.join(given)} are" if given else "none is"
        raise UsageError(f"how long to train: give exactly one of train.{{{', '.join(HORIZONS)}}}; {said} given")
    _check_start(config)
    if config.optim.groups or train.init_only:
        paths = tree.paths(counts.shapes(config.family, FrozenConfigDict(config.model)))
        patterns = [("config.optim.groups", group[0]) for group in config.optim.groups]
        for key, pattern in [*patterns, ("config.train.init_only", train.init_only)]:
            try:
                if not any(re.search(pattern, path) for path in paths):
                    raise UsageError(f"{key}: no parameter has a path like {pattern!r}{nearest(pattern, paths)}")
            except re.error as e:
                raise UsageError(f"{key}={pattern!r}: not a regular expression: {e}") from e


def starts(train: Any) -> tuple[tuple[str, str, str], ...]:
    """(run or file, prefix of its parameters' paths, prefix of ours) of all that a run starts from."""
    return ((train.init_from, "", ""),) if train.init_from else train.init_parts


def _check_start(config: ConfigDict) -> None:
    """Checks what a run starts from, and fills in its fingerprint."""
    train = config.train
    named = train.init_fingerprint.split("+") if train.init_fingerprint else []
    parts = starts(train)
    if not parts and named:  # which decides the run id
        raise UsageError(
            f"config.train.init_fingerprint={train.init_fingerprint!r} names what to start from, and train.init_from "
            "is empty: to start afresh, --config.train.init_fingerprint="
        )
    if train.lora_rank and config.optim.ema:
        raise UsageError(f"config.optim.ema={config.optim.ema}: adapters (train.lora_rank) have no moving average")
    if train.lora_rank and not parts:
        raise UsageError(
            f"config.train.lora_rank={train.lora_rank}: adapters of what? Say it with config.train.init_from"
        )
    if train.init_from and train.init_parts:
        raise UsageError("config.train: give init_from or init_parts, not both")
    for part in parts:
        if not isinstance(part, tuple) or len(part) != 3 or not all(isinstance(text, str) for text in part):
            raise UsageError(f"config.train.init_parts: {part!r}: expected (run or file, its prefix, our prefix)")
    if named and len(named) != len(parts):
        raise UsageError(
            f"config.train.init_fingerprint={train.init_fingerprint!r}: names {len(named)} of {len(parts)}"
        )
    found = []
    for i, (path, _, _) in enumerate(parts):
        check_path("config.train.init_from", path)
        published = weights.is_published(path)
        if published:
            _check_published(config, path)
        start = {"run_id": digest(path)} if published else read_result(path)
        if start is None and not named:  # with a fingerprint, a run that is yet to be trained can be meant
            raise UsageError(f"config.train.init_from={path!r}: no finished run there (no result.json), and no weights")
        found.append(start["run_id"] if start else named[i])
        if named and named[i] != found[i]:
            raise UsageError(f"config.train.init_from={path!r} is {found[i]}; the config asks for {named[i]}")
    if found:
        train.init_fingerprint = "+".join(found)


def _check_published(config: ConfigDict, path: str) -> None:
    """Refuses published weights where none can be meant, before anything is read."""
    where, model = f"config.train.init_from={path!r}", config.model
    if not models.family(config.family).WEIGHTS:
        raise UsageError(f"{where}: family {config.family!r} has no map of published names; start from a run's folder")
    base = ("base_width", "width"), ("base_depth", "depth"), ("base_num_heads", "num_heads")
    if model.get("parametrization", "standard") != "standard" and any(model[a] != model[b] for a, b in base):
        raise UsageError(
            f"{where}: published weights aren't scaled, as config.model.parametrization={model.parametrization!r} does "
            f"from model.base_width={model.base_width}; use --config.model.parametrization=standard"
        )


def digest(path: str) -> str:
    """SHA-256 of published weights; a plan asks for it a row."""
    try:
        return weights.identity(path)
    except OSError as e:
        raise UsageError(f"config.train.init_from={path!r}: {e.strerror or e}") from e
    except UsageError as e:
        raise UsageError(f"config.train.init_from={path!r}: {e}") from e


# ------------------------------------------------------------------------------- derived


@dataclass(frozen=True)
class Budget:
    """What a run is and costs. FLOPs: 2 per multiply-add; bytes: of the whole state, all devices together."""

    params: int  # N, tied tables once
    params_nonembedding: int  # without what is under `embed/`
    params_kaplan: int  # the blocks' matrices alone (Kaplan et al. 2020)
    trainable: int  # that learn, adapters included; all but adapters are in `params`
    tokens: int  # D seen: steps x batch x units per example
    unique_tokens: int
    epochs: float
    unit: str  # 'tokens' or 'examples'
    steps: int
    flops: float  # C = 3 x forward x examples: forward, and twice that backward
    flops_6nd: float  # 6 N D with N non-embedding (Kaplan et al. 2020)
    flops_per_step: float
    state_bytes: int  # float32 parameters, gradients, optimizer moments

    def to_dict(self) -> dict[str, Any]:
        """Without `trainable` where that is `params`."""
        return {key: value for key, value in asdict(self).items() if key != "trainable" or value != self.params}

    def after(self, steps: int) -> dict[str, Any]:
        """What a run has seen and cost if it ended after `steps` steps."""
        part = steps / self.steps
        tokens = round(self.tokens * part)
        whole = {"flops": self.flops, "flops_6nd": self.flops_6nd, "epochs": self.epochs}
        scaled = {key: value * part for key, value in whole.items()}
        return {"steps": steps, "tokens": tokens, "unique_tokens": min(self.unique_tokens, tokens), **scaled}


@functools.lru_cache(maxsize=4096)  # a plan asks twice: when it checks a row, and when it prints it
def derive(config: FrozenConfigDict) -> Budget:
    """N, D, C, steps and the rest of a finalised config.

    Raises:
      UsageError: more tokens asked than `data.epochs` passes over the data give.
    """
    train = config.train
    family = models.family(config.family)
    info = data.describe(config.data, config.run.data_dir)
    total, nonembedding, kaplan, _ = counts.counts(config.family, config.model)
    learning, state_bytes = counts.training(config.family, config.model, config.optim, train)
    per_step = train.batch_size * info.units_per_example
    flops_per_step = 3 * family.flops(config.model) * train.batch_size
    if train.steps:
        steps = train.steps
    elif train.tokens:
        steps = round(train.tokens / per_step)
    elif train.flops:
        steps = round(train.flops / flops_per_step)
    else:
        steps = round(train.tokens_per_param * nonembedding / per_step)
    if steps < 1:
        raise UsageError(
            f"the horizon is less than one step: a step of train.batch_size={train.batch_size} is "
            f"{per_step} {info.unit}, {flops_per_step:.3g} FLOPs"
        )
    if family.carries(config.model) and info.train_examples < train.batch_size:
        raise UsageError(
            f"config.train.batch_size={train.batch_size}: with model.carry each row reads a part of the data, which "
            f"has only {info.train_examples} windows"
        )
    unique = info.train_examples * info.units_per_example
    epochs = steps * per_step / unique
    if epochs > config.data.epochs + 1e-9:
        error = NoData(
            f"{steps * per_step:,} {info.unit} asked, {unique:,} unique ones there are: {epochs:.2f} epochs; "
            f"allow them with --config.data.epochs={math.ceil(epochs)}"
        )
        error.epochs = math.ceil(epochs)
        raise error
    return Budget(
        params=total,
        params_nonembedding=nonembedding,
        params_kaplan=kaplan,
        tokens=steps * per_step,
        unique_tokens=min(unique, steps * per_step),
        epochs=epochs,
        unit=info.unit,
        steps=steps,
        flops=flops_per_step * steps,
        flops_6nd=6.0 * nonembedding * steps * per_step,
        flops_per_step=flops_per_step,
        trainable=learning,
        state_bytes=state_bytes,
    )


def horizon(cfg: Any, params_nonembedding: int, units: int, flops_per_step: float) -> float:
    """Units of data that a config asks for, whether or not its data is there."""
    train = cfg.train
    step = train.batch_size * units
    if train.steps:
        return float(train.steps * step)
    if train.flops:
        return float(train.flops / flops_per_step * step)
    return float(train.tokens or train.tokens_per_param * params_nonembedding)
