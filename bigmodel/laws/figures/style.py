"""One style for every figure: sizes of page and paper, colours safe for the colour-blind, ticks that fit, files.

Legend: N parameters, D examples or tokens, C training FLOPs, L loss.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, NullFormatter

from bigmodel.laws.texts import law_name as law_name
from bigmodel.laws.texts import short as short
from bigmodel.laws.texts import symbol as symbol

# Okabe & Ito 2008, "Color universal design": told apart by every common kind of colour vision.
INK, BLUE, ORANGE, VERMILLION = "#222222", "#0072B2", "#E69F00", "#D55E00"
GREEN, SKY, PURPLE, GREY = "#009E73", "#56B4E9", "#CC79A7", "#8a8a8a"
CYCLE = (BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY, INK, GREY)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")  # with CYCLE, so that no series is told by colour alone
# Viridis without its palest end, which vanishes on white.
COLOURS = ListedColormap(matplotlib.colormaps["viridis"](np.linspace(0, 0.92, 256)), name="bigmodel")
RUNS_GID = "runs"  # groups of run marks have ids that begin so; save() notes the row of each mark
Text = Callable[[float, int], str]  # (value, digits) -> a tick's label
FORMATS = ("png", "svg", "pdf")


@dataclass(frozen=True)
class Size:
    """Where a figure goes.

    Attributes:
      single: (width, height) of a figure of one panel, inches.
      double: width of a figure of several panels.
      font: points of plain text.
      stacked: panels one above the other; else side by side.
      dot: area of a run's mark, points^2.
    """

    single: tuple[float, float]
    double: float
    font: float
    stacked: bool
    dot: float

    def style(self) -> Any:
        """rcParams."""
        small = self.font - 1
        return {
            "figure.dpi": 100,
            "savefig.dpi": 200 if not self.stacked else 300,
            "font.size": self.font,
            "axes.titlesize": self.font,
            "axes.labelsize": self.font,
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
            "svg.hashsalt": "bigmodel",  # the same figure is the same file
            "pdf.fonttype": 42,  # outlines that journals accept
        }

    def panels(self, count: int, height: float = 3.5, **kwargs: Any) -> tuple[Figure, np.ndarray]:
        """A figure of `count` panels in rows `height` inches high, or in a column; (figure, axes (count,))."""
        if self.stacked:
            shape, inches = (count, 1), (self.single[0], self.single[1] * count)
        else:
            rows = 2 if count > 3 else 1
            shape = (rows, -(-count // rows))
            inches = (self.double if count > 1 else self.single[0], height * rows)
        figure = Figure(figsize=inches, layout=ConstrainedLayoutEngine(w_pad=0.06))
        grid = np.atleast_1d(figure.subplots(*shape, **kwargs)).ravel()
        for axes in grid[count:]:
            axes.remove()
        return figure, grid[:count]


PAGE = Size(single=(5.2, 3.7), double=7.6, font=9, stacked=False, dot=20)
COLUMN = Size(single=(3.25, 2.5), double=3.25, font=7.5, stacked=True, dot=11)  # one column of a two-column paper


def save(figure: Figure, stem: Path, marks: Mapping[str, Sequence[int]]) -> None:
    """Writes stem.png, .svg and .pdf, without dates. The SVG's groups of runs get data-rows: the row of each mark."""
    canvas = FigureCanvasAgg(figure)
    figure.get_layout_engine().execute(figure)  # type: ignore[union-attr]
    figure.set_layout_engine("none")
    # Not savefig: it draws every figure twice for the sake of the layout, which is done.
    dpi = matplotlib.rcParams["savefig.dpi"]
    figure.set_dpi(dpi)
    if "png" in FORMATS:
        canvas.print_png(stem.with_name(stem.name + ".png"), metadata={"Software": None})
    pdf = {"CreationDate": None, "Producer": None, "Creator": None}
    if "pdf" in FORMATS:
        FigureCanvasPdf(figure).print_pdf(stem.with_name(stem.name + ".pdf"), metadata=pdf)
    figure.set_dpi(dpi)  # of what is an image in the SVG; a PDF leaves its own
    buffer = io.StringIO()
    FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    for gid, rows in marks.items():
        text = text.replace(f'<g id="{gid}">', f'<g id="{gid}" data-rows="{" ".join(map(str, rows))}">', 1)
    # Matplotlib names equal images alike; an id must be one element's.
    seen: dict[str, int] = {}

    def number(match: re.Match[str]) -> str:
        seen[match[1]] = seen.get(match[1], -1) + 1
        return f'id="{match[1]}-{seen[match[1]]}"'

    text = re.sub(r'\bid="(image[0-9a-f]+)"', number, text)
    stem.with_name(stem.name + ".svg").write_text(text, encoding="utf-8")


# ------------------------------------------------------------------------------------- colours


def log_norm(values: Any) -> LogNorm:
    """The range of `values`, widened when there is one value only."""
    low, high = float(np.min(values)), float(np.max(values))
    return LogNorm(low, high) if high > low * 1.001 else LogNorm(low / 2, high * 2)


def colour(norm: Normalize, value: float) -> Any:
    return COLOURS(norm(value))


def colour_bar(
    figure: Figure, axes: Any, norm: Normalize, label: str, reverse: bool = False, beside: bool = False
) -> None:
    """A bar beside the axes (one or several), with its label above, or along it where the label is long."""
    cmap = COLOURS.reversed() if reverse else COLOURS
    panels = axes if isinstance(axes, list) else [axes]
    rows = len({round(panel.get_position().y0, 3) for panel in panels})
    bar = figure.colorbar(ScalarMappable(norm, cmap), ax=panels, pad=0.02, aspect=30 * rows)
    if beside:
        bar.set_label(label)
    else:
        bar.ax.set_title(label, fontsize="small", loc="right", pad=6)
    bar.outline.set_visible(False)  # type: ignore[operator]
    low, high = float(norm.vmin or 1), float(norm.vmax or 1)
    log_ticks(bar.ax.yaxis, low, high, power if high >= 1e14 else None)


# --------------------------------------------------------------------------------------- ticks


def log_axis(axes: Axes, which: str, low: float, high: float, text: Text | None = None) -> None:
    """A log scale from low to high with ticks that fit."""
    axes.set(**{f"{which}scale": "log", f"{which}lim": (low, high)})
    box = axes.get_position()
    wide, tall = axes.get_figure(root=True).get_size_inches()  # type: ignore[union-attr]
    # A colour bar and labels will take a fifth of what there is before the layout.
    room = 0.8 * (box.width * wide if which == "x" else box.height * tall)
    log_ticks(axes.xaxis if which == "x" else axes.yaxis, low, high, text, room, across=which == "x")


def loss_axis(axes: Axes, observed: np.ndarray, curve: np.ndarray | None = None) -> None:
    """A log y axis with plain numbers; long curves mustn't squeeze the runs."""
    low, high = float(np.min(observed)), float(np.max(observed))
    if curve is not None and np.isfinite(curve).any():
        low = min(low, max(float(np.nanmin(curve)), low / 1.3))
    room = max((high / low) ** 0.08, 1.01)
    log_axis(axes, "y", low / room, high * room)


def log_ticks(
    axis: Any, low: float, high: float, text: Text | None = None, inches: float = 2.0, across: bool = False
) -> None:
    """Labelled ticks at round numbers that fit on `inches` of a log axis; unlabelled ones between decades.

    Matplotlib's own locators count ticks, not the room that their labels take.
    """
    points = float(matplotlib.rcParams["xtick.labelsize"])
    span = np.log10(high / low)
    ticks, labels = np.array([np.sqrt(low * high)]), [""]
    for candidate in _candidates(low, high):
        if len(candidate) < 2:
            continue
        written = _labels(candidate, text)
        need = 1.6 * points / 72
        if across:
            need = (0.68 * points * max(map(_letters, written)) + 0.8 * points) / 72
        ticks, labels = candidate, written
        if np.diff(np.log10(candidate)).min() / span * inches >= need:
            break
    axis.set_major_locator(FixedLocator(list(ticks)))
    axis.set_major_formatter(FixedFormatter(labels))
    steps = (1, 2, 5) if span >= 0.9 else ()
    between = [m * 10.0**e for e in _decades(low, high) for m in steps]
    axis.set_minor_locator(FixedLocator([v for v in between if low <= v <= high and v not in ticks]))
    axis.set_minor_formatter(NullFormatter())


def _decades(low: float, high: float) -> range:
    return range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)


def _candidates(low: float, high: float) -> Iterator[np.ndarray]:
    """Sets of round numbers in [low, high], from many to few."""
    if high < 8 * low:
        for bins in (6, 5, 4, 3, 2, 1):
            plain = np.asarray(MaxNLocator(nbins=bins, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high))
            yield plain[(plain >= low) & (plain <= high)]
    for steps in ((1, 2, 5), (1, 3), (1,)):
        found = np.array([m * 10.0**e for e in _decades(low, high) for m in steps])
        found = found[(found >= low * (1 - 1e-9)) & (found <= high * (1 + 1e-9))]
        if len(found) <= 8:
            yield found
    for stride in (1, 2, 3, 4, 6):
        found = np.array([10.0**e for e in _decades(low, high) if e % stride == 0])
        yield found[(found >= low * (1 - 1e-9)) & (found <= high * (1 + 1e-9))]


def _labels(ticks: np.ndarray, text: Text | None) -> list[str]:
    """Each tick's label, with as many digits as tell them apart."""
    text = text or (power if ticks.max() >= 1e15 or ticks.min() < 1e-3 else short)
    for digits in range(3, 10):
        labels = [text(float(v), digits) for v in ticks]
        if len(set(labels)) == len(labels):
            break
    return labels


def _letters(label: str) -> float:
    """How wide a label is, in letters; exponents are small."""
    stem, _, exponent = label.replace("{\\times}", "x").partition("^")
    return len(stem.strip("$")) + 0.7 * len(exponent.strip("{}$"))


def power(value: float, digits: int = 3) -> str:
    """3 x 10^15, for FLOPs, which no one counts in billions."""
    if not value > 0:
        return ""
    exponent = int(np.floor(np.log10(value) + 1e-9))
    lead = f"{value / 10.0**exponent:.{digits}g}"
    return f"$10^{{{exponent}}}$" if lead == "1" else f"${lead}{{\\times}}10^{{{exponent}}}$"


def times(value: float, digits: int = 3) -> str:
    """2.5×, for ratios."""
    return f"{value:.{digits}g}×"
