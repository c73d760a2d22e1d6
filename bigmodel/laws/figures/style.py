"""The style of every figure: sizes for the page and for a paper, colour-blind-safe colours, log axes, and files.

Legend: N parameters, D examples or tokens, C training FLOPs, L loss.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, NullLocator

from bigmodel.laws.texts import short as short

# Okabe & Ito 2008, "Color universal design": every common kind of colour vision can tell them apart.
INK, BLUE, ORANGE, VERMILLION = "#222222", "#0072B2", "#E69F00", "#D55E00"
GREEN, SKY, PURPLE, GREY = "#009E73", "#56B4E9", "#CC79A7", "#8a8a8a"
CYCLE = (BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY, INK, GREY)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")  # used with CYCLE, so that colour alone never identifies a series
DASHED = (0, (5, 2))
# Viridis without its palest end, which vanishes on white.
COLOURS = ListedColormap(matplotlib.colormaps["viridis"](np.linspace(0, 0.92, 256)), name="bigmodel")
FORMATS = ("png", "svg", "pdf")


@dataclass(frozen=True)
class Size:
    """Where a figure goes."""

    single: tuple[float, float]  # (width, height) of a figure with one panel, inches
    double: float  # width of a figure with several panels, inches
    across: int  # most panels in a row
    font: float  # points
    dot: float  # area of a run's mark, points^2
    dpi: int  # of the PNG

    def style(self) -> Any:
        """rcParams."""
        small = self.font - 1
        return {
            "savefig.dpi": self.dpi,
            "font.size": self.font,
            "axes.titlesize": self.font,
            "xtick.labelsize": small,
            "ytick.labelsize": small,
            "legend.fontsize": small,
            "legend.frameon": False,
            "legend.handlelength": 1.6,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.color": "#e4e4e4",
            "grid.linewidth": 0.6,
            "axes.axisbelow": True,
            "svg.hashsalt": "bigmodel",  # the same figure gives the same file
            "pdf.fonttype": 42,  # outlines that journals accept
        }

    def panels(self, count: int, height: float | None = None, **kwargs: Any) -> tuple[Figure, np.ndarray]:
        """(figure, axes (count,)): rows of at most `across` panels, each `height` inches high."""
        rows = -(-count // self.across)
        columns = -(-count // rows)
        width = self.single[0] if count == 1 else self.double
        figure = Figure(figsize=(width, (height or self.single[1]) * rows), layout=ConstrainedLayoutEngine(w_pad=0.06))
        grid = np.atleast_1d(figure.subplots(rows, columns, **kwargs)).ravel()
        for axes in grid[count:]:
            axes.remove()
        return figure, grid[:count]


PAGE = Size(single=(5.2, 3.7), double=7.6, across=3, font=9, dot=20, dpi=200)
COLUMN = Size(single=(3.25, 2.5), double=3.25, across=1, font=7.5, dot=11, dpi=300)  # of a two-column paper


def save(figure: Figure, stem: Path) -> None:
    """Writes stem.png, .svg and .pdf, without dates: the same figure gives the same bytes."""
    metadata: dict[str, dict[str, Any]] = {
        "png": {"Software": None},
        "svg": {"Date": None, "Creator": None},
        "pdf": {"CreationDate": None, "Producer": None, "Creator": None},
    }
    for form in FORMATS:
        figure.savefig(stem.with_name(f"{stem.name}.{form}"), metadata=metadata[form])
        figure.set_layout_engine("none")  # the first format has placed everything


# ------------------------------------------------------------------------------------- colours


def log_norm(values: Any) -> LogNorm:
    """The range of `values`, widened if they are all equal."""
    low, high = float(np.min(values)), float(np.max(values))
    return LogNorm(low, high) if high > low * 1.001 else LogNorm(low / 2, high * 2)


def colour(norm: Normalize, value: float) -> Any:
    return COLOURS(norm(value))


def colour_bar(figure: Figure, axes: Any, norm: LogNorm, label: str, reverse: bool = False) -> None:
    """A colour bar beside the axes (one or several)."""
    mappable = ScalarMappable(norm, COLOURS.reversed() if reverse else COLOURS)
    bar = figure.colorbar(mappable, ax=axes, pad=0.02, aspect=30, label=label)
    bar.outline.set_visible(False)  # type: ignore[operator]
    _ticks(bar.ax.yaxis, float(norm.vmin or 1), float(norm.vmax or 1), most=6)


# -------------------------------------------------------------------------------------- axes


def log_axis(axes: Axes, which: str, low: float, high: float, text: Callable[[float], str] | None = None) -> None:
    """A log scale from low to high, with as many labels as fit; `text` makes a label of a value."""
    axes.set(**{f"{which}scale": "log", f"{which}lim": (low, high)})
    box, (wide, tall) = axes.get_position(), axes.get_figure(root=True).get_size_inches()  # type: ignore[union-attr]
    most = box.width * wide / 0.65 if which == "x" else box.height * tall / 0.3
    _ticks(getattr(axes, f"{which}axis"), low, high, int(most), text)


def _ticks(axis: Any, low: float, high: float, most: int, text: Callable[[float], str] | None = None) -> None:
    """At most `most` labelled ticks, but two at least. matplotlib's log locator labels too many or too few."""
    text = text or (power if high >= 1e13 or low < 1e-3 else short)  # FLOPs are not counted in billions
    locators = [LogLocator(subs=(1, 2, 5)), LogLocator(subs=(1, 3)), LogLocator(numticks=max(2, most))]
    counts = [sum(low <= tick <= high for tick in locator.tick_values(low, high)) for locator in locators]
    fitting = [locator for locator, count in zip(locators, counts, strict=True) if 2 <= count <= most]
    few = MaxNLocator(max(2, min(most - 1, 7)), steps=[1, 2, 5, 10])
    axis.set_major_locator(few if high < 6 * low or not fitting else fitting[0])
    axis.set_major_formatter(lambda value, _: text(value))
    axis.set_minor_locator(LogLocator(subs=(1, 2, 5)) if high > 6 * low else NullLocator())
    axis.set_minor_formatter(NullFormatter())


def loss_axis(axes: Axes, losses: np.ndarray) -> None:
    """A log y axis over the losses; a linear one where some aren't positive."""
    low, high = float(np.min(losses)), float(np.max(losses))
    if low <= 0:
        return
    room = max((high / low) ** 0.08, 1.01)
    log_axis(axes, "y", low / room, high * room)


def power(value: float) -> str:
    """3 x 10^15, as mathematics."""
    lead, exponent = f"{value:.3e}".split("e")
    factor = "" if float(lead) == 1 else f"{float(lead):g}{{\\times}}"
    return f"${factor}10^{{{int(exponent)}}}$"
