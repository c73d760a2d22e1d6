"""The model of a family whose number of parameters is nearest to a wanted one.

A law asks for 7.31e10 parameters; a family offers widths in steps of its head size and whole layers. N is counted by
`eval_shape` for a few shapes and interpolated between them; every shape that is returned was counted itself.

Legend: N parameters, by one of the conventions of `COUNTS`; D tokens or examples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from bigmodel import config, data, files, models
from bigmodel.errors import UsageError, choose
from bigmodel.run import budget, counts

COUNTS = ("total", "nonembedding", "kaplan")  # which parameters N counts, in the order of `counts.counts`
# Kaplan et al. 2020 (arXiv:2001.08361), figure 5: between these ratios of width to depth the loss hardly changes.
FLATTEST, DEEPEST = 200.0, 10.0
CHECKED = 6  # candidates that are counted, of those with the best interpolated N
MOST_DEPTH, MOST_WIDTH = 400, 10**6


@dataclass(frozen=True)
class Base:
    """What stays fixed while width and depth change.

    Attributes:
      family: its name.
      model: the model section, not finalised: a 0 in it follows from the other keys.
      experiment: the file that it comes from, or "".
      overrides: of the experiment, dotted keys, typed values.
      max_tokens: data that a run may see (inf: not known).
      unit: what D counts; "": not known.
      note: what is assumed, in one line, or "".
    """

    family: str
    model: Any
    experiment: str = ""
    overrides: Mapping[str, Any] | None = None
    max_tokens: float = math.inf
    unit: str = ""
    note: str = ""


def of_family(name: str) -> Base:
    note = f"sizes of the data, as the vocabulary, are the defaults of family {name!r}; --config=FILE takes its own"
    return Base(name, models.family(name).get_config(), note=note)


def of_config(path: str, overrides: Sequence[tuple[str, Any]] = ()) -> Base:
    """The base of an experiment, with the sizes of its data if that is there. UsageError: a wrong path or override."""
    if ".py" not in path:  # a run's config.json: its ffn and head size were filled for one width
        raise UsageError(f"--config={path}: give the experiment, as experiments/gpt.py, and not a config made from it")
    unfrozen = config.load(path, overrides)
    budget.fill(unfrozen)
    flat = config.flatten(unfrozen)
    typed = {key: flat[key] for key, _ in overrides}
    model = unfrozen.model.copy_and_resolve_references()
    source = data.source(unfrozen.data.source)
    section = unfrozen.data.copy_and_resolve_references().unlock()
    try:
        source.finalize(section, unfrozen.run.data_dir)
        info = source.describe(section, unfrozen.run.data_dir)
    except UsageError as e:
        note = f"sizes of the data are the config's own, since {e}"
        return Base(unfrozen.family, model, path, typed, note=note)
    with model.unlocked():
        for key in info.sizes.keys() & model.keys():
            model[key] = info.sizes[key]
    # One step less: the horizon is rounded to whole steps.
    examples = info.train_examples * section.epochs - unfrozen.train.batch_size
    return Base(unfrozen.family, model, path, typed, float(info.units_per_example * examples), info.unit)


def build(base: Base, width: int, depth: int) -> Any:
    """The finalised model section of the family's rung. UsageError: it can't be built."""
    section = ConfigDict({"model": base.model.copy_and_resolve_references()})
    config.override_all(section, models.family(base.family).rung(width, depth).items())
    with section.model.unlocked():
        models.family(base.family).finalize(section.model)
    return section.model


def step_of(width: float) -> int:
    """Widths are multiples of this: whole heads of 64, and of 128 where that is a small part of the width."""
    return 4 if width < 32 else 8 if width < 64 else 16 if width < 256 else 64 if width < 2048 else 128


def aspect_of(params: float) -> float:
    """Width / depth, a power of N between the smallest and largest of Brown et al. 2020 (arXiv:2005.14165, table 2.1).

    768 / 12 = 64 at 125M and 12288 / 96 = 128 at 175B; clipped to 30 and 200.
    """
    power = math.log(128 / 64) / math.log(175e9 / 125e6)
    return float(np.clip(64 * (params / 125e6) ** power, 30.0, FLATTEST))


def nearest(base: Base, params: float, counted: str = "total", aspect: float | None = None) -> dict[str, Any]:
    """The shape whose N is nearest to `params`, among those of about one aspect ratio.

    Args:
      params: N wanted, by the convention `counted`.
      aspect: width / depth to stay near; None: `aspect_of(params)`.

    Returns:
      A dict: width, depth, overrides (the family's rung, dotted keys), N (by `counted`), params (all), deviation
      (N / params - 1), train_flops_per_unit (per token or example: three times the forward pass).

    Raises:
      UsageError: no shape of the family is within a factor 2.
    """
    choose("--count", counted, COUNTS)
    ratio = float(np.clip(aspect if aspect is not None else aspect_of(params), DEEPEST, FLATTEST))
    tried: dict[tuple[int, int], int] = {}

    def count(width: int, depth: int) -> int:
        """N; 0 if the shape can't be built or has none, as Kaplan's of a model without blocks."""
        if (width, depth) not in tried:
            try:
                numbers = counts.counts(base.family, build(base, width, depth))
                tried[width, depth] = numbers[COUNTS.index(counted)]
            except UsageError:
                tried[width, depth] = 0
        return tried[width, depth]

    def cost(n: Any, width: Any, depth: Any) -> Any:
        # 1 % of N is worth a third of a doubling of the aspect ratio, about where shape stops to matter.
        return np.abs(np.log(np.maximum(n, 1) / params)) + 0.03 * np.abs(np.log2(width / depth / ratio))

    first = _first_guess(count, tried, params, ratio)
    chosen: list[tuple[int, int]] = []  # the best first
    for _ in range(2):  # once more around the best shape, when counts near it are known
        shapes = _shapes(chosen[0] if chosen else first, ratio)
        guesses = cost(_interpolate(tried, shapes), *shapes.T)
        candidates = [(int(w), int(d)) for w, d in shapes[np.argsort(guesses, kind="stable")[:CHECKED]]]
        chosen = sorted(chosen + [s for s in candidates if count(*s)], key=lambda s: cost(count(*s), *s))
    if not chosen or abs(math.log(count(*chosen[0]) / params)) > math.log(2):
        raise UsageError(f"family {base.family!r} has no shape near {params:.4g} parameters by {counted} count")
    width, depth = chosen[0]
    found = count(width, depth)
    section = build(base, width, depth)
    family = models.family(base.family)
    per_example = section.seq_len if "seq_len" in section else 1
    return {
        "width": width,
        "depth": depth,
        "overrides": family.rung(width, depth),
        "N": found,
        "params": counts.counts(base.family, section)[0],
        "deviation": found / params - 1,
        "train_flops_per_unit": 3 * family.flops(section) / per_example,
    }


def _first_guess(
    count: Callable[[int, int], int], tried: Mapping[tuple[int, int], int], params: float, ratio: float
) -> tuple[int, int]:
    """A shape of about that N and aspect ratio, by a secant in ln N over ln width.

    Counts some of its neighbours too, for `_interpolate`.
    """
    log_width, slope = math.log(max(8.0, (params * ratio / 12) ** (1 / 3))), 3.0  # N = 12 depth width^2
    last: tuple[float, float] | None = None
    for _ in range(8):
        exact = math.exp(min(log_width, math.log(MOST_WIDTH)))
        step = step_of(exact)
        width = max(step, step * round(exact / step))
        depth = int(np.clip(round(exact / ratio), 1, MOST_DEPTH))
        if tried.get((width, depth)):
            break
        n = count(width, depth)
        if not n:
            log_width += 0.3
            continue
        here = (math.log(width), math.log(n))
        if last is not None and abs(here[0] - last[0]) > 1e-9:
            slope = float(np.clip((here[1] - last[1]) / (here[0] - last[0]), 0.5, 4.0))
        last = here
        if abs(here[1] - math.log(params)) < 0.05:
            break
        log_width += (math.log(params) - here[1]) / slope
    step = step_of(width)
    for neighbour in ((width + step, depth), (width, depth + 1), (max(step, width - step), max(1, depth - 1))):
        count(*neighbour)
    return width, depth


def _shapes(centre: tuple[int, int], ratio: float) -> np.ndarray:
    """Widths within a factor 1.5 of the centre's, depths that keep the aspect ratio within a factor 2; (m, 2)."""
    width = centre[0]
    step = step_of(width)
    widths = range(max(step, step * math.floor(width / 1.5 / step)), math.ceil(1.5 * width) + step, step)
    shapes = [
        (w, d) for w in widths for d in range(max(1, int(w / ratio / 2)), min(MOST_DEPTH, math.ceil(2 * w / ratio) + 1))
    ]
    return np.array(shapes or [centre])


def _interpolate(tried: Mapping[tuple[int, int], int], shapes: np.ndarray) -> np.ndarray:
    """N of shapes (m, 2), from counted ones: depth (a width^2 + b width) + c width^2 + d width + e, as most families.

    Least squares of relative errors; the shortest solution if few are counted.
    """

    def features(s: np.ndarray) -> np.ndarray:
        w, d = s[:, 0].astype(float), s[:, 1].astype(float)
        return np.stack([d * w * w, w * w, d * w, w, np.ones_like(w)], axis=1)

    known = {shape: n for shape, n in tried.items() if n}
    if not known:
        return np.ones(len(shapes))
    matrix = features(np.array(list(known))) / np.array(list(known.values()), dtype=float)[:, None]
    scale = np.maximum(np.abs(matrix).max(axis=0), 1e-300)
    solution = np.linalg.lstsq(matrix / scale, np.ones(len(known)), rcond=1e-10)[0]
    return features(shapes) / scale @ solution


def flags(built: Mapping[str, Any]) -> str:
    """The command-line flags of a config of `nearest` with its data "D"."""
    pairs = {**built["overrides"], "train.tokens": built["D"]}
    return " ".join(f"--config.{key}={value}" for key, value in pairs.items())


def text(built: Mapping[str, Any], unit: str = "tokens") -> str:
    """A config of `nearest` as text for a terminal."""
    flops = built["train_flops_per_unit"] * built["D"]
    lines = [
        f"config: width {built['width']}, depth {built['depth']}: N {built['N']:,} by {built['count']} count "
        f"({100 * built['deviation']:+.2f} %), of {built['params']:,} parameters in all",
        f"  {built['D']:,} {unit}, loss {built['loss']:.4f} by the law; {flops:.4g} FLOPs as runs count them",
        f"  {flags(built)}",
    ]
    return "\n".join(lines + ([f"  note: {built['note']}"] if built["note"] else []))


def write_sweep(path: str, base: Base, built: Sequence[Mapping[str, Any]], title: str) -> int:
    """Writes a sweep file of configs of `nearest` with their data "D"; returns the number of rows.

    UsageError: the file exists, or can't be written.
    """
    rows = [{**(base.overrides or {}), **b["overrides"], "train.tokens": b["D"]} for b in built]
    rows = [row for i, row in enumerate(rows) if row not in rows[:i]]
    listed = "\n".join(f"        {row!r}," for row in rows)
    content = (
        f'"""{title}\n\nbigmodel sweep run {path}\n\n'
        "Rates and batch sizes are the experiment's: where the fitted runs scaled them with size, do so here.\n"
        f'"""\n\nCONFIG = {base.experiment!r}\n\n\ndef get_sweep():\n    return [\n{listed}\n    ]\n'
    )
    with files.writing(path):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(path, "x", encoding="utf-8") as file:
                file.write(content)
        except FileExistsError:
            raise UsageError(f"{path!r} is there already: choose another --out, or remove it") from None
    return len(rows)
