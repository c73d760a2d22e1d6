"""Figures of a fit, as PNG, SVG and PDF, for the page and at the width of a paper's column.

Legend: N parameters, D examples or tokens, C training FLOPs, L loss.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd

from bigmodel.laws.figures import optima, runs, style, trust
from bigmodel.laws.figures.study import MOST_MARKS, Marks, Study

# In the order of the page. Each: (study, size, marks) -> Figure, or None where the columns don't allow it.
FIGURES = {
    "compute": runs.compute,
    "size_data": runs.size_data,
    "curves": runs.curves,
    "residuals": runs.residuals,
    "contours": optima.contours,
    "isoflop": optima.isoflop,
    "frontier": optima.frontier,
    "fan": trust.fan,
    "clouds": trust.clouds,
    "forest": trust.forest,
    "comparison": trust.comparison,
    "heatmap": runs.heatmap,
}
SIZES = {"": style.PAGE, "column": style.COLUMN}  # by the folder under figures/


def write(
    frame: pd.DataFrame,
    result: Mapping[str, Any],
    out_dir: str | Path,
    unit: str = "tokens",
    loss: str = "loss",
    frontiers: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Path]:
    """Draws every figure that the columns allow.

    Args:
      frame: as given to `fit.fit`.
      result: as `fit.fit` returns; without resamples there are no bands and no clouds.
      out_dir: made if absent; each figure is written as NAME.png, .svg and .pdf, and again under column/ for a column
        of a two-column paper (3.25 inches).
      unit: what D counts: "tokens" or "examples".
      loss: axis label of L, with its unit.
      frontiers: results of `frontier.isoflop` and `frontier.envelope` over the same runs.

    Returns:
      name -> path of the SVG, for the figures drawn, of those in FIGURES. In the SVG each group of run marks has an id
      that begins with "runs" and the attribute data-rows: the row of `frame` behind each mark. Of more than
      MOST_MARKS runs, as many are drawn, evenly over the frame.
    """
    study = Study(frame, result, unit, loss, frontiers)
    out = Path(out_dir)
    drawn: dict[str, Path] = {}
    for part, size in SIZES.items():
        folder = out / part
        folder.mkdir(parents=True, exist_ok=True)
        with matplotlib.rc_context(size.style()):
            for name, draw in FIGURES.items():
                marks = Marks(study, size)
                figure = draw(study, size, marks)
                if figure is None:
                    for form in style.FORMATS:  # an earlier report's
                        (folder / f"{name}.{form}").unlink(missing_ok=True)
                    continue
                style.save(figure, folder / name, marks.rows)
                drawn.setdefault(name, folder / f"{name}.svg")
    return drawn


__all__ = ["FIGURES", "MOST_MARKS", "Study", "short", "write"]
short = style.short
