"""Figures of transfer over shapes: coordinate checks, and the loss against the learning rate at each size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bigmodel.laws.figures import style


def write(figure_of: Any, stem: Path, *args: Any) -> Path:
    """Draws a figure of this file for the page: stem.png, .svg, .pdf. Returns the PNG."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(style.PAGE.style()):
        style.save(figure_of(*args), stem)
    return stem.with_name(stem.name + ".png")


def coordinates(rows: Sequence[dict[str, Any]]) -> Figure:
    """The change of each module's output against size, a panel a parametrisation, after the first and last steps."""
    frame = pd.DataFrame(rows)
    names = list(frame.parametrization.unique())
    axis, last = frame.axis.iloc[0], int(frame.step.max())
    figure, panels = style.PAGE.panels(len(names), height=3.2, sharey=True, squeeze=False)
    sizes = sorted(frame["size"].unique())
    seen = frame[(frame.step > 0) & (frame.change > 0)]
    low, high = seen.change.min() / 1.5, seen.change.max() * 1.5
    for axes, name in zip(panels, names, strict=True):
        for i, module in enumerate(frame.module.unique()):
            here = frame[(frame.parametrization == name) & (frame.module == module)]
            for step, alpha in ((1, 0.35), (last, 1.0)):
                mean = here[here.step == step].groupby("size").change.mean()
                axes.plot(
                    mean.index, mean.to_numpy(), color=style.CYCLE[i % 8], marker=style.MARKERS[i % 8], markersize=3.5,
                    alpha=alpha, linewidth=1.2, label=module if step == last else None,
                )  # fmt: skip
        style.log_axis(axes, "x", sizes[0] / 1.15, sizes[-1] * 1.15)
        style.log_axis(axes, "y", low, high)
        axes.set(xlabel=axis, title=name)
    panels[0].set_ylabel(f"rms change of the output\nafter 1 (pale) and {last} steps")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def rates(rows: Sequence[dict[str, Any]], best: Sequence[dict[str, Any]]) -> Figure:
    """Loss against the learning rate, a curve a size, a panel a parametrisation; stars where each curve is lowest.

    Args:
      rows: parametrization, axis, size, lr, loss (mean over seeds are drawn).
      best: parametrization, size, lr, loss of each curve's minimum.
    """
    frame, stars = pd.DataFrame(rows), pd.DataFrame(best)
    names = list(frame.parametrization.unique())
    axis = frame.axis.iloc[0]
    sizes = sorted(frame["size"].unique())
    norm = style.log_norm(sizes)
    figure, panels = style.PAGE.panels(len(names), height=3.2, sharey=True, squeeze=False)
    top = frame.groupby(["parametrization", "size"]).loss.min().max()
    for axes, name in zip(panels, names, strict=True):
        for i, size in enumerate(sizes):
            here = frame[(frame.parametrization == name) & (frame["size"] == size)]
            mean = here.groupby("lr").loss.mean()
            colour = style.colour(norm, size)
            axes.plot(
                mean.index, mean.to_numpy(), color=colour, marker=style.MARKERS[i % 8], markersize=3, linewidth=1.2,
                label=f"{axis} {size}",
            )  # fmt: skip
            star = stars[(stars.parametrization == name) & (stars["size"] == size)]
            axes.plot(star.lr, star.loss, marker="*", markersize=11, color=colour, markeredgecolor=style.INK, zorder=5)
        style.log_axis(axes, "x", frame.lr.min() / 1.3, frame.lr.max() * 1.3)
        axes.set(xlabel="learning rate at the base", title=name, ylim=(frame.loss.min() * 0.97, top * 1.25))
    panels[0].set_ylabel("held-out loss")
    panels[-1].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def branches(frame: pd.DataFrame) -> Figure:
    """Loss against tokens: decays from one trunk (filled) and a run each (open), a colour a shape."""
    figure, (axes,) = style.PAGE.panels(1)
    for i, (shape, here) in enumerate(frame.groupby(["width", "depth"])):
        name = f"width {shape[0]}, depth {shape[1]}"
        axes.plot(here.tokens, here.wsd, color=style.CYCLE[i], marker="o", markersize=5, label=f"{name}, WSD branches")
        axes.plot(
            here.tokens, here.cosine, color=style.CYCLE[i], marker="o", markersize=8, markerfacecolor="none",
            linestyle=":", label=f"{name}, cosine runs",
        )  # fmt: skip
    style.log_axis(axes, "x", frame.tokens.min() / 1.2, frame.tokens.max() * 1.2)
    axes.set(xlabel="tokens", ylabel="held-out loss")
    axes.legend()
    return figure


def shapes(frame: pd.DataFrame) -> Figure:
    """Loss against width / depth, a number of layers at each mark."""
    figure, (axes,) = style.PAGE.panels(1)
    mean = frame.groupby(["aspect", "depth"], as_index=False)["L"].mean()
    axes.plot(mean.aspect, mean["L"], color=style.BLUE, marker="o")
    for row in mean.itertuples():
        axes.annotate(f"{row.depth}", (row.aspect, row.L), textcoords="offset points", xytext=(4, 5), fontsize="small")
    style.log_axis(axes, "x", mean.aspect.min() / 1.5, mean.aspect.max() * 1.5)
    axes.set(xlabel="width / depth (marks: layers)", ylabel="held-out loss")
    return figure


def tuning(best: Sequence[dict[str, Any]]) -> Figure:
    """Least loss over rates against the batch, a curve a horizon, as a ratio to that curve's least; the best rate at
    each mark."""
    frame = pd.DataFrame(best)
    horizons = sorted(frame.tokens.unique())
    norm = style.log_norm(horizons)
    figure, (axes,) = style.PAGE.panels(1)
    for i, tokens in enumerate(horizons):
        here = frame[frame.tokens == tokens].sort_values("batch_size")
        ratio = here.loss / here.loss.min()
        axes.plot(
            here.batch_size, ratio, color=style.colour(norm, tokens), marker=style.MARKERS[i % 8], markersize=5,
            linewidth=1.2, label=f"{tokens:,} tokens: {here.loss.min():.3f}",
        )  # fmt: skip
        for row, y in zip(here.itertuples(), ratio, strict=True):
            axes.annotate(
                f"{row.lr:.2g}", (row.batch_size, y), textcoords="offset points", xytext=(4, 4), fontsize="x-small"
            )
    style.log_axis(axes, "x", frame.batch_size.min() / 1.2, frame.batch_size.max() * 1.4)
    axes.set(xlabel="batch, examples (marks: the best rate)", ylabel="held-out loss over the horizon's least")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), title="least loss")
    return figure


def forest(rows: Sequence[dict[str, Any]], names: Mapping[str, str]) -> Figure:
    """A panel for each of `names` (key -> its axis' label), a line each of `rows`: label, and under each key (value,
    low, high) or None."""
    figure, panels = style.PAGE.panels(len(names), height=0.9 + 0.32 * len(rows), sharey=True, squeeze=False)
    for axes, (name, label) in zip(panels, names.items(), strict=True):
        for k, row in enumerate(rows):
            if row[name] is not None:
                value, low, high = row[name]
                axes.plot([low, high], [-k, -k], color=style.BLUE, lw=2.2, solid_capstyle="butt")
                axes.plot(value, -k, "o", color=style.BLUE, ms=4.5, zorder=4)
        axes.set(xlabel=label, ylim=(-len(rows) + 0.4, 0.6))
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.grid(axis="y", visible=False)
    panels[0].set_yticks([-k for k in range(len(rows))], [row["label"] for row in rows])
    return figure
