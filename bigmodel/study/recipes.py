"""Recipes: learning rate, batch, beta2, warm-up and decay as functions of size and data.

A law fitted to badly tuned runs is wrong: Porian et al. 2024 (arXiv:2406.19146) move Kaplan's exponent from 0.84 to
0.50 by tuning every size and matching warm-up and decay to each run. A recipe tunes all rungs of a ladder equally well.
`RECIPE = "step_law"` in a sweep file applies one to its rows, except to the keys that a row sets itself. It can also be
a `Recipe` with a function of your own.

Legend: N parameters without embeddings, D tokens of the run.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from bigmodel.errors import choose


@dataclass(frozen=True)
class Tuning:
    """Hyperparameters of one run; where one is None the experiment's own value stays.

    Attributes:
      lr: peak learning rate.
      batch: tokens per step.
      warmup: tokens of linear warm-up.
      b2: AdamW's second moment.
      final_lr: last rate over peak rate.
      fixed: further overrides.
    """

    lr: float
    batch: float | None = None
    warmup: float | None = None
    b2: float | None = None
    schedule: str | None = None
    final_lr: float | None = None
    fixed: dict[str, Any] = field(default_factory=dict)

    def overrides(self, tokens: float, tokens_per_example: int) -> dict[str, Any]:
        """Overrides of a config that trains on `tokens`."""
        found = {"optim.lr": self.lr, **self.fixed}
        if self.batch is not None:
            found["train.batch_size"] = max(1, round(self.batch / tokens_per_example))
        if self.warmup is not None:
            found["optim.warmup"] = min(1.0, self.warmup / tokens)
        others = {"optim.b2": self.b2, "optim.schedule": self.schedule, "optim.final_lr": self.final_lr}
        return found | {key: value for key, value in others.items() if value is not None}


@dataclass(frozen=True)
class Recipe:
    """`of` maps (N, D) to a Tuning; `source` says where its numbers come from."""

    name: str
    source: str
    of: Callable[[float, float], Tuning]


def between(points: Sequence[tuple[float, float]], x: float) -> float:
    """Log-linear interpolation of points (x, y) in order of x; constant outside them."""
    if x <= points[0][0]:
        return points[0][1]
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if x <= x1:
            t = math.log(x / x0) / math.log(x1 / x0)
            return math.exp((1 - t) * math.log(y0) + t * math.log(y1))
    return points[-1][1]


# Brown et al. 2020 (arXiv:2005.14165), table 2.1: N, learning rate, tokens a batch
GPT3 = (
    (125e6, 6.0e-4, 0.5e6), (350e6, 3.0e-4, 0.5e6), (760e6, 2.5e-4, 0.5e6), (1.3e9, 2.0e-4, 1e6), (2.7e9, 1.6e-4, 1e6),
    (6.7e9, 1.2e-4, 2e6), (13e9, 1.0e-4, 2e6), (175e9, 0.6e-4, 3.2e6),
)  # fmt: skip


def _gpt3(n: float, d: float) -> Tuning:
    return Tuning(
        lr=between([(size, lr) for size, lr, _ in GPT3], n),
        batch=between([(size, batch) for size, _, batch in GPT3], n),
        warmup=min(375e6, 0.1 * d),  # 375M tokens, which would be most of a short run
        b2=0.95,
        schedule="cosine",
        final_lr=0.1,
        fixed={"optim.weight_decay": 0.1, "optim.clip": 1.0},
    )


def _chinchilla(n: float, d: float) -> Tuning:
    # The rates of the family's smallest and largest models are recalled from its appendix; Chinchilla's is table 4's.
    return Tuning(
        lr=between([(44e6, 2e-4), (16e9, 1.25e-4), (70e9, 1e-4)], n), batch=between([(1e9, 0.5e6), (70e9, 1.5e6)], n),
        b2=0.95, schedule="cosine", final_lr=0.1,
    )  # fmt: skip


def _step_law(n: float, d: float) -> Tuning:
    lr = 1.79 * n**-0.713 * d**0.307
    return Tuning(lr=lr, batch=0.58 * d**0.571, b2=0.95, schedule="cosine", final_lr=min(1.0, 1e-5 / lr))


def _porian(n: float, d: float) -> Tuning:
    sequences = 160 * (n / 108e6) ** (2 / 3)
    return Tuning(
        lr=0.0047 * (n / 108e6) ** (-1 / 3),
        batch=2048 * sequences,
        warmup=min(n, 0.5 * d),  # as many tokens as parameters
        b2=0.99 if sequences < 128 else 0.95,
        schedule="constant",
    )


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe("gpt3", "Brown et al. 2020, arXiv:2005.14165, table 2.1 and appendix B", _gpt3),
        Recipe("chinchilla", "Hoffmann et al. 2022, arXiv:2203.15556, table 4 and appendix", _chinchilla),
        Recipe("step_law", "Li et al. 2025, arXiv:2503.04715, equation 1; last rate 1e-5", _step_law),
        Recipe(
            "porian_tuned",
            "Porian et al. 2024, arXiv:2406.19146, the rounded fits of github.com/formll/"
            "resolving-scaling-law-discrepancies, plotting.py; batches in sequences of 2048",
            _porian,
        ),
    )
}


def get(name: str | Recipe) -> Recipe:
    """The recipe of a name. UsageError: unknown; names the nearest."""
    return name if isinstance(name, Recipe) else RECIPES[choose("recipe", name, RECIPES)]
