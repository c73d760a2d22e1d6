"""Figures of a fit: PNG for slides, SVG for the report. One style, safe for the colour-blind.

Legend: N parameters, D examples or tokens, C training FLOPs, L loss.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from bigmodel.scaling import fit as fits
from bigmodel.scaling import laws

# Okabe & Ito 2008, "Color universal design": told apart by every common kind of colour vision.
INK, BLUE, ORANGE, VERMILLION = "#222222", "#0072B2", "#E69F00", "#D55E00"
# Viridis without its palest end, which vanishes on white.
COLOURS = ListedColormap(matplotlib.colormaps["viridis"](np.linspace(0, 0.92, 256)), name="bigmodel")
STYLE: Any = {
    "figure.dpi": 100,
    "savefig.dpi": 200,
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "svg.hashsalt": "bigmodel",  # the same figure is the same file
}
SINGLE, DOUBLE = (5.2, 3.7), (7.6, 3.5)  # inches: one and one and a half columns of text
CURVES = 5
RUNS_GID = "runs"  # the report links the n-th mark of this group to the n-th row of its table


def write(
    frame: pd.DataFrame, result: Mapping[str, Any], out_dir: str | Path, unit: str = "tokens", loss: str = "loss"
) -> dict[str, Path]:
    """Draws every figure that the columns allow.

    Args:
      frame: as given to `fit.fit`.
      result: as `fit.fit` returns; without its bootstrap_samples the frontier has no band.
      out_dir: made if absent; each figure is written as NAME.png and NAME.svg.
      unit: what D counts: "tokens" or "examples".
      loss: axis label of L, with its unit.

    Returns:
      name -> path of the SVG, for the figures drawn: compute, residuals, size_data, heatmap.
    """
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    frame = frame if "C" in frame else frame.assign(C=laws.FLOPS_PER_PARAM_TOKEN * frame["N"] * frame["D"])
    drawn: dict[str, Path] = {}
    with matplotlib.rc_context(STYLE):
        for name, figure in (
            ("compute", _compute(frame, result, loss)),
            ("residuals", _residuals(frame, result)),
            ("size_data", _size_data(frame, result, unit, loss)),
            ("heatmap", _heatmap(frame, unit, loss)),
        ):
            if figure is None:
                continue
            FigureCanvasAgg(figure)
            figure.savefig(out / f"{name}.png")
            figure.savefig(out / f"{name}.svg", metadata={"Date": None})
            drawn[name] = out / f"{name}.svg"
    return drawn


# ------------------------------------------------------------------------------------ figures


def _compute(frame: pd.DataFrame, result: Mapping[str, Any], loss: str) -> Figure:
    """Loss against compute: runs, the law at constant N, and the law's frontier.

    Laws count C = 6 N D; runs may count exactly. Curves of one N are drawn at the C of that N's runs, the frontier at
    6 N D times the runs' median C / (6 N D), so that marks and curves share the axis.
    """
    exact = frame["C"] / (laws.FLOPS_PER_PARAM_TOKEN * frame["N"] * frame["D"])
    figure = Figure(figsize=SINGLE, layout="constrained")
    axes = figure.add_subplot()
    norm = _norm(frame["N"])
    low, high = frame["C"].min() / 1.5, frame["C"].max() * 4
    compute = np.geomspace(low, high, 200)
    for size in _spread(frame["N"]):
        data = np.geomspace(frame["D"].min() / 3, frame["D"].max() * 3, 100)
        flops = laws.FLOPS_PER_PARAM_TOKEN * size * data * float(exact[frame["N"] == size].median())
        axes.plot(flops, fits.predict(result, size, data), color=_colour(norm, size), lw=0.9, alpha=0.75, zorder=2)
    budget = compute / float(exact.median())
    best = _frontier(result["law"], result["params"], budget)
    if np.isfinite(best).all():
        band = _band(result, budget)
        if band is not None:
            axes.fill_between(compute, *band, color=ORANGE, alpha=0.3, lw=0, zorder=1, label="95 % of resamples")
        axes.plot(compute, best, color=INK, lw=1.6, ls=(0, (5, 2)), zorder=3, label="best for its compute, by the law")
    _runs(axes, frame, frame["C"], frame["L"], norm)
    held = _held(result, len(frame))
    if held.any():
        style: dict[str, Any] = {"s": 70, "facecolors": "none", "edgecolors": VERMILLION, "lw": 1.3, "zorder": 5}
        axes.scatter(frame["C"][held], frame["L"][held], label="held out in the refit", **style)
    axes.set(xlabel="training compute C (FLOPs)", ylabel=loss, xscale="log", xlim=(low, high))
    _loss_axis(axes, frame["L"], best)
    _log_ticks(axes.xaxis, low, high, _power)
    _sizes_bar(figure, axes, norm)
    axes.legend(loc="lower left")  # where no run is: losses fall to the right
    return figure


def _size_data(frame: pd.DataFrame, result: Mapping[str, Any], unit: str, loss: str) -> Figure:
    """Loss against N at fixed D, and against D at fixed N."""
    figure = Figure(figsize=DOUBLE, layout=ConstrainedLayoutEngine(w_pad=0.12))
    for axes, x, other, label, name in zip(
        figure.subplots(1, 2, sharey=True),
        ("N", "D"),
        ("D", "N"),
        ("parameters N", f"{unit} D"),
        (f"{unit} D", "parameters N"),
        strict=True,
    ):
        norm = _norm(frame[other])
        low, high = frame[x].min() / 1.5, frame[x].max() * 1.5
        grid = np.geomspace(low, high, 120)
        for value in _spread(frame[other]):
            pair = {x: grid, other: value}
            axes.plot(grid, fits.predict(result, pair["N"], pair["D"]), color=_colour(norm, value), lw=1, zorder=2)
        _runs(axes, frame, frame[x], frame["L"], norm, values=frame[other], gid=f"{RUNS_GID}-{x}")
        axes.set(xlabel=label, ylabel=loss if x == "N" else "", xscale="log", xlim=(low, high))
        _loss_axis(axes, frame["L"])
        _log_ticks(axes.xaxis, low, high)
        _sizes_bar(figure, axes, norm, name)
    return figure


def _heatmap(frame: pd.DataFrame, unit: str, loss: str) -> Figure | None:
    """Least loss of each width and depth, at the most data that the cell has."""
    if not {"width", "depth"} <= set(frame.columns):
        return None
    known = frame.dropna(subset=["width", "depth"])
    if known.empty:
        return None
    most = known[known["D"] >= known.groupby(["width", "depth"])["D"].transform("max") * (1 - 1e-9)]
    cells = most.sort_values("L").groupby(["width", "depth"], as_index=False).first()
    widths, depths = sorted(cells["width"].unique()), sorted(cells["depth"].unique())
    table = cells.pivot(index="depth", columns="width", values="L").reindex(index=depths, columns=widths)
    data = cells.pivot(index="depth", columns="width", values="D").reindex(index=depths, columns=widths)
    same = cells["D"].max() <= cells["D"].min() * (1 + 1e-9)
    size = (max(3.6, 1.7 + 0.75 * len(widths)), max(2.6, 1.3 + 0.5 * len(depths)))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    norm = Normalize(float(cells["L"].min()), float(cells["L"].max()) + 1e-12)
    image = axes.pcolormesh(table.to_numpy(dtype=float), cmap=COLOURS.reversed(), norm=norm, edgecolors="white", lw=1.5)
    for i in range(len(depths)):
        for j in range(len(widths)):
            value = table.iloc[i, j]
            if np.isfinite(value):
                red, green, blue, _ = image.cmap(norm(value))
                dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
                text = f"{value:.3f}" if value >= 0.1 else f"{value:.2e}"
                text += "" if same else f"\n{short(data.iloc[i, j])}"
                axes.text(j + 0.5, i + 0.5, text, ha="center", va="center", fontsize=8, color="white" if dark else INK)
    axes.set_xticks(np.arange(len(widths)) + 0.5, [f"{w:g}" for w in widths])
    axes.set_yticks(np.arange(len(depths)) + 0.5, [f"{d:g}" for d in depths])
    what = f"at {short(cells['D'].max())} {unit}" if same else f"at each shape's most {unit} (second line)"
    axes.set(xlabel="width", ylabel="depth")
    figure.suptitle(f"best {loss}\n{what}", fontsize=9)
    axes.grid(False)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return figure


def _residuals(frame: pd.DataFrame, result: Mapping[str, Any]) -> Figure:
    """How far each run lies from the law, against compute."""
    figure = Figure(figsize=SINGLE, layout="constrained")
    axes = figure.add_subplot()
    norm = _norm(frame["N"])
    error = 100 * (frame["L"] / fits.predict(result, frame["N"].to_numpy(), frame["D"].to_numpy()) - 1)
    axes.axhline(0, color=INK, lw=0.9, zorder=1)
    _runs(axes, frame, frame["C"], error, norm)
    low, high = frame["C"].min() / 1.5, frame["C"].max() * 1.5
    reach = max(1.15 * float(error.abs().max()), 1e-3)
    axes.set(xlabel="training compute C (FLOPs)", ylabel="observed above the law (%)", xscale="log")
    axes.set(xlim=(low, high), ylim=(-reach, reach))
    _log_ticks(axes.xaxis, low, high, _power)
    _sizes_bar(figure, axes, norm)
    return figure


# -------------------------------------------------------------------------------------- parts


def _runs(
    axes: Axes,
    frame: pd.DataFrame,
    x: pd.Series,
    y: pd.Series,
    norm: Normalize,
    values: pd.Series | None = None,
    gid: str = RUNS_GID,
) -> None:
    values = frame["N"] if values is None else values
    dots = axes.scatter(x, y, c=values, cmap=COLOURS, norm=norm, s=20, edgecolors="white", linewidths=0.4, zorder=4)
    dots.set_gid(gid)


def _norm(values: pd.Series) -> LogNorm:
    low, high = float(values.min()), float(values.max())
    return LogNorm(low, high) if high > low * 1.001 else LogNorm(low / 2, high * 2)


def _colour(norm: Normalize, value: float) -> Any:
    return COLOURS(norm(value))


def _spread(values: pd.Series) -> list[float]:
    """At most CURVES of the distinct values, evenly over their range of logarithms."""
    distinct = np.unique(values.to_numpy(dtype=float))
    if len(distinct) <= CURVES:
        return [float(v) for v in distinct]
    wanted = np.linspace(np.log(distinct[0]), np.log(distinct[-1]), CURVES)
    return sorted({float(distinct[np.abs(np.log(distinct) - w).argmin()]) for w in wanted})


def _frontier(law: str, params: Mapping[str, float], compute: np.ndarray) -> np.ndarray:
    """Least loss the law allows for each budget of FLOPs, (n,); nan where it has no optimum."""
    model = laws.get(law)
    if model.optimum is None:
        return np.full(len(compute), np.nan)
    pairs = np.array([model.optimum(params, c) for c in compute])
    usable = np.isfinite(pairs).all(axis=1) & (pairs > 0).all(axis=1)
    out = np.full(len(compute), np.nan)
    if usable.any():
        out[usable] = model.predict(params, {"N": pairs[usable, 0], "D": pairs[usable, 1], "C": compute[usable]})
    return out


def _band(result: Mapping[str, Any], compute: np.ndarray, most: int = 400) -> tuple[np.ndarray, np.ndarray] | None:
    samples = result.get("bootstrap_samples")
    if samples is None or len(samples) < 2:
        return None
    names = laws.get(result["law"]).names
    # Every fifth budget is enough for a smooth band.
    coarse = compute[::5]
    curves = np.array([_frontier(result["law"], dict(zip(names, row, strict=True)), coarse) for row in samples[:most]])
    curves = curves[np.isfinite(curves).all(axis=1)]
    if len(curves) < 2:
        return None
    ends = np.percentile(curves, [2.5, 97.5], axis=0)
    low, high = (np.interp(np.log(compute), np.log(coarse), end) for end in ends)
    return low, high


def _held(result: Mapping[str, Any], n: int) -> np.ndarray:
    held = np.zeros(n, dtype=bool)
    for entry in result["holdout"]:
        held[entry["held_out"]] = True
    return held


def _sizes_bar(figure: Figure, axes: Axes, norm: LogNorm, label: str = "parameters N") -> None:
    bar = figure.colorbar(ScalarMappable(norm, COLOURS), ax=axes, pad=0.02, aspect=30)
    bar.ax.set_title(label, fontsize=8, loc="right", pad=6)
    bar.outline.set_visible(False)  # type: ignore[operator]
    _log_ticks(bar.ax.yaxis, float(norm.vmin or 1), float(norm.vmax or 1))


def _loss_axis(axes: Axes, observed: pd.Series, frontier: np.ndarray | None = None) -> None:
    """A log axis with plain numbers; long curves mustn't squeeze the runs."""
    low, high = float(observed.min()), float(observed.max())
    if frontier is not None and np.isfinite(frontier).any():
        low = min(low, max(float(np.nanmin(frontier)), low / 1.3))
    room = max((high / low) ** 0.08, 1.01)
    low, high = low / room, high * room
    axes.set(yscale="log", ylim=(low, high))
    _log_ticks(axes.yaxis, low, high)


def _log_ticks(axis: Any, low: float, high: float, text: Callable[[float], str] | None = None) -> None:
    """Labels that fit: whole decades over a wide range, else about five plain numbers."""
    decades = np.log10(high / low)
    if decades >= 3.2 or (decades >= 2.2 and text is _power):
        axis.set_major_locator(LogLocator(base=10, numticks=7))
        axis.set_minor_locator(LogLocator(base=10, subs=range(2, 10), numticks=90))
        axis.set_minor_formatter(NullFormatter())
        return
    if decades >= 0.9:
        subs = (1, 2, 5) if decades < 1.6 else (1, 3) if decades < 2.2 else (1,)
        axis.set_major_locator(LogLocator(base=10, subs=subs))
    else:
        axis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10]))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: (text or short)(value)))


def _power(value: float) -> str:
    """3 x 10^15, for FLOPs, which no one counts in billions."""
    exponent = int(np.floor(np.log10(value) + 1e-9))
    lead = f"{value / 10**exponent:.3g}"
    return f"$10^{{{exponent}}}$" if lead == "1" else f"${lead}{{\\times}}10^{{{exponent}}}$"


def short(value: float, digits: int = 4) -> str:
    """1.5M, 20B, 2.75: short enough for a tick."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size * (1 - 1e-9):
            return f"{value / size:.{digits}g}{letter}"
    return f"{value:.{digits}g}"
