"""Models of torch with random weights, and what is compared with them."""

import importlib
import re
import sys

import jax
import numpy as np

from bigmodel import tree


def randomized(module, seed=0):
    """torch's module with everything at random: convolutions about as large as they start, norms far from identity."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, x in module.state_dict().items():
            if name.endswith("num_batches_tracked"):
                continue
            noise = torch.randn(x.shape, generator=generator)
            if name.endswith("running_var"):
                x.copy_(1 + 0.3 * noise.abs())
            elif x.ndim > 1:
                x.copy_(noise * (1.5 / x[0].numel()) ** 0.5)
            else:
                x.copy_((1.0 if name.endswith("weight") else 0.0) + 0.2 * noise)
    return module


def vision():
    """torchvision. Beside a torch that its own kernels weren't built for, its import asks for some of them, which no
    model here calls: they are declared, so that the models can be imported."""
    import torch

    for _ in range(20):
        try:
            return importlib.import_module("torchvision")
        except RuntimeError as e:
            name = re.fullmatch(r"operator torchvision::(\w+) does not exist", str(e))[1]
            DECLARED.append(torch.library.Library("torchvision", "FRAGMENT"))
            DECLARED[-1].define(f"{name}(Tensor x) -> Tensor")
            for part in [part for part in sys.modules if part.startswith("torchvision")]:
                del sys.modules[part]
    raise AssertionError("torchvision can't be imported")


DECLARED = []


def close(a, b, what, tolerance=1e-4, least=0.0):
    a, b = np.asarray(a), np.asarray(b)
    assert np.abs(a - b).max() <= tolerance * max(np.abs(b).max(), least), (what, np.abs(a - b).max(), np.abs(b).max())


def same_leaves(found, expected, what, tolerance=1e-4):
    """Within a part of each leaf's largest value; of a leaf that is zero but for rounding, of a thousandth of all's."""
    assert tree.paths(found) == tree.paths(expected)
    least = 1e-3 * max(np.abs(x).max() for x in jax.tree.leaves(expected))
    for path, a, b in zip(tree.paths(found), jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        close(a, b, f"{what} {path}", tolerance, least)
