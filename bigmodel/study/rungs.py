"""The buildable model nearest to a size: width and depth of a family for a number of parameters.

A law asks for 7.31e10 parameters; a family offers widths in steps of its head size and whole layers. Counts come from
`eval_shape`, and few of them: between counted shapes N is interpolated, and what is chosen is counted itself.

Legend: N parameters, by one of the conventions of `COUNTS`; D tokens or examples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from bigmodel import config, data, files, models
from bigmodel.errors import UsageError, choose
from bigmodel.run import budget

COUNTS = ("total", "nonembedding", "kaplan")  # which parameters N counts, in the order of `budget.counts`
# Kaplan et al. 2020 (arXiv:2001.08361), figure 5: between these ratios of width to depth the loss hardly changes.
FLATTEST, DEEPEST = 200.0, 10.0
CHECKED = 6  # candidates counted for certain
MOST_DEPTH = 400


@dataclass(frozen=True)
class Base:
    """What stays as it is while width and depth move.

    Attributes:
      family: its name.
      model: the model section, not yet finalised: what is 0 there follows from the others.
      experiment: the file it is from, or "".
      overrides: of the experiment, dotted keys, in their types.
      max_tokens: of data that a run may see (inf where the data isn't there or isn't asked).
      unit: what D counts; "": not known.
      note: what of this is guessed, in one line, or "".
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
    """An experiment, with what its data decides where the data is there.

    Raises:
      UsageError: no such experiment, or an override that it doesn't take.
    """
    if ".py" not in path:  # a run's config.json: its ffn and head size were filled for one width
        raise UsageError(f"--config={path}: give the experiment, as experiments/gpt.py, and not a config made from it")
    unfrozen = config.load(path, overrides)
    budget.fill(unfrozen)
    flat = config.flatten(unfrozen)
    typed = {key: flat[key] for key, _ in overrides}
    model = unfrozen.model.copy_and_resolve_references()
    most, unit, note = math.inf, "", ""
    source = data.source(unfrozen.data.source)
    try:
        section = unfrozen.data.copy_and_resolve_references().unlock()
        source.finalize(section, unfrozen.run.data_dir)
        info = source.describe(section, unfrozen.run.data_dir)
    except UsageError as e:
        note = f"sizes of the data are the config's own, since {e}"
    else:
        # A step less: the horizon is rounded to whole steps.
        most = float(info.units_per_example * (info.train_examples * section.epochs - unfrozen.train.batch_size))
        unit = info.unit
        with model.unlocked():
            for key in info.sizes.keys() & model.keys():
                model[key] = info.sizes[key]
    return Base(unfrozen.family, model, path, typed, most, unit, note)


# ------------------------------------------------------------------------------------------- count


def build(base: Base, width: int, depth: int) -> Any:
    """The finalised model section of a shape, as the family's rung says. UsageError: it can't be built."""
    section = ConfigDict({"model": base.model.copy_and_resolve_references()})
    config.override_all(section, models.family(base.family).rung(width, depth).items())
    with section.model.unlocked():
        models.family(base.family).finalize(section.model)
    return section.model


def count(base: Base, width: int, depth: int, counted: str) -> int | None:
    """N of a shape by `eval_shape`; None where it can't be built."""
    try:
        numbers = budget.counts(base.family, build(base, width, depth))
    except UsageError:
        return None
    return numbers[COUNTS.index(counted)]


def step_of(width: float) -> int:
    """Widths come in multiples of this: whole heads of 64, and of 128 where that is a small part of the width."""
    return 4 if width < 32 else 8 if width < 64 else 16 if width < 256 else 64 if width < 2048 else 128


def aspect_of(params: float) -> float:
    """Width / depth: through the smallest and the largest of Brown et al. 2020 (arXiv:2005.14165, table 2.1).

    768 / 12 = 64 at 125M and 12288 / 96 = 128 at 175B, a power of N between; 30 to 200 beyond.
    """
    power = math.log(128 / 64) / math.log(175e9 / 125e6)
    return float(np.clip(64 * (params / 125e6) ** power, 30.0, FLATTEST))


def nearest(base: Base, params: float, counted: str = "total", aspect: float | None = None) -> dict[str, Any]:
    """The shape whose N is nearest to `params`, among those of about that aspect ratio.

    Args:
      params: N wanted, by the convention `counted`.
      aspect: width / depth to stay near; None: as `aspect_of`.

    Returns:
      A dict: width, depth, overrides (the family's rung, dotted keys), N (by `counted`), params (all), deviation
      (N / params - 1), train_flops_per_unit (of one token or example: three times forward, as runs count it).

    Raises:
      UsageError: no shape of the family comes within a factor 2.
    """
    choose("--count", counted, COUNTS)
    wanted = float(np.clip(aspect if aspect is not None else aspect_of(params), DEEPEST, FLATTEST))
    best: tuple[float, int, int, int] | None = None
    tried: dict[tuple[int, int], int] = {}
    centre = _by_power(base, params, counted, wanted, tried)
    for _ in range(2):  # once more around what was found, now that counts near it are known
        shapes = _shapes(centre, wanted)
        guesses = _interpolate(tried, shapes)
        off = np.abs(np.log(np.maximum(guesses, 1) / params))
        # 1 % of N is worth a third of a doubling of the aspect ratio, about where shape stops to matter.
        cost = off + 0.03 * np.abs(np.log2(shapes[:, 0] / shapes[:, 1] / wanted))
        for i in np.argsort(cost, kind="stable")[:CHECKED]:
            width, depth = (int(v) for v in shapes[i])
            found = tried[width, depth] if (width, depth) in tried else count(base, width, depth, counted)
            if not found:
                continue
            tried[width, depth] = found
            score = abs(math.log(found / params)) + 0.03 * abs(math.log2(width / depth / wanted))
            if best is None or score < best[0]:
                best = (score, width, depth, found)
        if best is not None:
            centre = (best[1], best[2])
    if best is None or abs(math.log(best[3] / params)) > math.log(2):
        raise UsageError(f"family {base.family!r} has no shape near {params:.4g} parameters by {counted} count")
    _, width, depth, found = best
    section = build(base, width, depth)
    family = models.family(base.family)
    per_example = section.seq_len if "seq_len" in section else 1
    return {
        "width": width,
        "depth": depth,
        "overrides": family.rung(width, depth),
        "N": found,
        "params": budget.counts(base.family, section)[0],
        "deviation": found / params - 1,
        "train_flops_per_unit": 3 * family.flops(section) / per_example,
    }


def _by_power(
    base: Base, params: float, counted: str, aspect: float, tried: dict[tuple[int, int], int]
) -> tuple[int, int]:
    """A shape of about the aspect ratio and size, by a secant in ln N over ln width; fills `tried`."""
    log_width, slope = math.log(max(8.0, (params * aspect / 12) ** (1 / 3))), 3.0  # N = 12 depth width^2
    last: tuple[float, float] | None = None
    for _ in range(8):
        exact = math.exp(min(log_width, math.log(1e6)))
        step = step_of(exact)
        width = max(step, step * round(exact / step))
        depth = int(np.clip(round(exact / aspect), 1, MOST_DEPTH))
        if (width, depth) in tried:
            break
        found = count(base, width, depth, counted)
        if not found:  # None, or a count of nothing, as Kaplan's of a model without blocks
            log_width += 0.3
            continue
        tried[width, depth] = found
        here = (math.log(width), math.log(found))
        if last is not None and abs(here[0] - last[0]) > 1e-9:
            slope = float(np.clip((here[1] - last[1]) / (here[0] - last[0]), 0.5, 4.0))
        last = here
        if abs(here[1] - math.log(params)) < 0.05:
            break
        log_width += (math.log(params) - here[1]) / slope
    if not tried:
        raise UsageError(f"family {base.family!r} has no shape near {params:.4g} parameters by {counted} count")
    # Its neighbours, for the slopes of N in width and depth.
    step = step_of(width)
    for shape in ((width + step, depth), (width, depth + 1), (max(step, width - step), max(1, depth - 1))):
        if shape not in tried:
            found = count(base, *shape, counted)
            if found:
                tried[shape] = found
    return width, depth


def _shapes(centre: tuple[int, int], aspect: float) -> np.ndarray:
    """Widths within a factor 1.5 of the centre's, depths that keep the aspect ratio within a factor 2; (m, 2)."""
    width = centre[0]
    step = step_of(width)
    widths = range(max(step, step * math.floor(width / 1.5 / step)), math.ceil(1.5 * width) + step, step)
    shapes = [
        (w, d)
        for w in widths
        for d in range(max(1, int(w / aspect / 2)), min(MOST_DEPTH, math.ceil(2 * w / aspect) + 1))
    ]
    return np.array(shapes or [centre])


def _interpolate(tried: Mapping[tuple[int, int], int], shapes: np.ndarray) -> np.ndarray:
    """N of shapes (m, 2), from counted ones: depth (a width^2 + b width) + c width + d, which most families have.

    Least squares of relative errors, the shortest solution where few are counted.
    """

    def features(s: np.ndarray) -> np.ndarray:
        w, d = s[:, 0].astype(float), s[:, 1].astype(float)
        return np.stack([d * w * w, w * w, d * w, w, np.ones_like(w)], axis=1)

    known, counts = np.array(list(tried)), np.array(list(tried.values()), dtype=float)
    matrix = features(known) / counts[:, None]
    scale = np.maximum(np.abs(matrix).max(axis=0), 1e-300)
    solution = np.linalg.lstsq(matrix / scale, np.ones(len(counts)), rcond=1e-10)[0]
    return features(shapes) / scale @ solution


# ------------------------------------------------------------------------------------------- sweep


def flags(built: Mapping[str, Any]) -> str:
    """What to say on the command line for a config of `nearest` with its data "D"."""
    pairs = {**built["overrides"], "train.tokens": built["D"]}
    return " ".join(f"--config.{key}={value}" for key, value in pairs.items())


def text(built: Mapping[str, Any], unit: str = "tokens") -> str:
    """A config of `nearest` in lines for a terminal."""
    flops = built["train_flops_per_unit"] * built["D"]
    lines = [
        f"config: width {built['width']}, depth {built['depth']}: N {built['N']:,} by {built['count']} count "
        f"({100 * built['deviation']:+.2f} %), of {built['params']:,} parameters in all",
        f"  {built['D']:,} {unit}, loss {built['loss']:.4f} by the law; {flops:.4g} FLOPs as runs count them",
        f"  {flags(built)}",
    ]
    return "\n".join(lines + ([f"  note: {built['note']}"] if built["note"] else []))


def write_sweep(path: str, base: Base, built: Sequence[Mapping[str, Any]], title: str) -> int:
    """Writes a sweep file of configs of `nearest` with their data "D", for `bigmodel sweep`. How many rows.

    Raises:
      UsageError: there is such a file, or it can't be written.
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
