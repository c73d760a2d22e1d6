"""Shared by all tests: real text prepared once, one compilation cache, no network and no W&B unless asked."""

import importlib.metadata
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CACHE = Path(tempfile.gettempdir()) / f"bigmodel-test-cache-{os.getuid()}"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE / "xla"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
os.environ.setdefault("BIGMODEL_CACHE", str(CACHE))
os.environ["JAX_PLATFORMS"] = "cpu"
# Compiling is most of the suite's time. At LLVM's level 0, with XLA's older emitters of fusions, it takes a third. XLA
# ends a process for a flag that it doesn't know, as later ones do that have no older emitters.
OLDER = ("--xla_cpu_use_fusion_emitters=false",) if importlib.metadata.version("jaxlib").startswith("0.10.") else ()
os.environ.setdefault("XLA_FLAGS", " ".join(("--xla_backend_optimization_level=0", *OLDER)))

TINY = [
    ("model.width", 16),
    ("model.depth", 1),
    ("model.num_heads", 2),
    ("data.name", "speech"),
    ("data.seq_len", 32),
    ("data.epochs", 1000),
    ("train.batch_size", 8),
    ("train.tokens", 0),
    ("train.steps", 12),
    ("train.eval_examples", 16),
    ("optim.name", "adamw"),  # compiles in two thirds of the time that the experiment's Muon takes
    ("optim.lr", 0.01),
    ("run.wandb", "off"),
]


def drawn(family, cfg, std=0.1):
    """A model's variables with all weights, biases and scales at random: nothing hides behind a zero, and a family's
    own start takes longer to compile than most tests of its model."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from bigmodel import tree
    from bigmodel.run import counts

    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: counts.init(family, cfg, jax.random.key(0)))
    return tree.map_paths(
        lambda path, x: jnp.asarray(path.endswith(("scale", "/var")) + std * rng.normal(size=x.shape), x.dtype), shapes
    )


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """Token shards of two State of the Union addresses (public domain) and some Chinese."""
    from bigmodel.prepare.prepare import prepare

    root = tmp_path_factory.mktemp("data")
    prepare(str(ROOT / "tests/data"), str(root / "speech"), validation_fraction=0.2, workers=1, progress=False)
    return str(root)


@pytest.fixture
def tiny(data_dir):
    """A tiny GPT on real text; call it with more overrides."""
    from bigmodel import config

    def make(*overrides, **named):
        pairs = [*TINY, ("run.data_dir", data_dir), *overrides]
        pairs += [(k.replace("__", "."), v) for k, v in named.items()]
        return config.load(ROOT / "experiments/gpt.py", pairs)

    return make


@pytest.fixture
def digits():
    """A tiny MLP on scikit-learn's digits; call it with more overrides."""
    from bigmodel import config

    def make(*overrides):
        base = [("model.width", 8), ("train.tokens", 0), ("train.steps", 10), ("run.wandb", "off")]
        return config.load(ROOT / "experiments/digits.py", [*base, *overrides])

    return make


def bigmodel(*args, cwd=ROOT, env=None, timeout=300):
    """The command as a user runs it: a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "bigmodel", *map(str, args)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
