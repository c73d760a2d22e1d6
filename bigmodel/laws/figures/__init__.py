"""Figures of a fit, as PNG, SVG and PDF, for the page and at the width of a paper's column.

Legend: N parameters, D examples or tokens, C training FLOPs, L loss.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

from bigmodel.laws.figures import optima, runs, style, trust
from bigmodel.laws.figures.study import Study

# In the order of the page. Each: (study, size) -> Figure, or None where the columns don't allow it. The first paragraph
# of its docstring is its caption.
FIGURES = {
    "compute": runs.compute,
    "curves": runs.curves,
    "residuals": runs.residuals,
    "contours": optima.contours,
    "isoflop": optima.isoflop,
    "frontier": optima.frontier,
    "comparison": trust.comparison,
    "clouds": trust.clouds,
    "forest": trust.forest,
    "heatmap": runs.heatmap,
}
FORMER = ("size_data", "fan")  # drawn by earlier versions
SIZES = {"": style.PAGE, "column": style.COLUMN}  # by the folder under figures/


def write(study: Study, folder: Path) -> dict[str, Path]:
    """Draws every figure that the columns allow as NAME.png, .svg and .pdf in `folder`, and again under column/ for a
    column of a two-column paper (3.25 inches). Removes an earlier report's. Returns name -> its PNG."""
    drawn: dict[str, Path] = {}
    for part, size in SIZES.items():
        home = folder / part
        home.mkdir(parents=True, exist_ok=True)
        for name in (*FIGURES, *FORMER):
            for form in style.FORMATS:
                (home / f"{name}.{form}").unlink(missing_ok=True)
        with matplotlib.rc_context(size.style()):
            for name, draw in FIGURES.items():
                figure = draw(study, size)
                if figure is not None:
                    style.save(figure, home / name)
                    drawn.setdefault(name, home / f"{name}.png")
    return drawn
