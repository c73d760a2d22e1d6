"""One model on several corpora and tokenisations: losses per byte, which compare where those per token don't."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from bigmodel.laws import sources
from bigmodel.laws.figures import style

COLUMNS = ["family", "data", "width", "params", "tokens", "loss", "bits_per_byte", "accuracy", "seed", "run_id"]


def read(folder: str | Path) -> pd.DataFrame:
    """A row a finished run: COLUMNS; loss in nats per predicted token, accuracy of predicted tokens.

    `bits_per_byte` of masked tokens count each as a mean token's bytes, which causal runs of the same corpus tell; NaN
    without such runs.
    """
    rows = [
        {c: result.get("eval_accuracy" if c == "accuracy" else c) for c in COLUMNS}
        for result, config in sources.runs(folder)
        if result["status"] == "done" and config["data"]["source"] == "text"
    ]
    frame = pd.DataFrame(rows, columns=COLUMNS).sort_values(COLUMNS[:3]).reset_index(drop=True)
    told = frame.bits_per_byte.astype(float)
    bits = (told / frame.loss).groupby(frame.data).transform("mean")
    return frame.assign(bits_per_byte=told.fillna(bits * frame.loss))


def figure(frame: pd.DataFrame) -> Figure:
    """Bits per byte against width: a panel a family, a curve a corpus."""
    families = sorted(frame.family.unique())
    names = sorted(frame.data.unique())
    fig, panels = style.PAGE.panels(len(families), height=3.2, squeeze=False)
    for axes, family in zip(panels, families, strict=True):
        for k, name in enumerate(names):
            here = frame[(frame.family == family) & (frame.data == name)].groupby("width").bits_per_byte.mean()
            axes.plot(
                here.index, here, color=style.CYCLE[k], marker=style.MARKERS[k], markersize=4, linewidth=1.2, label=name
            )
        style.log_axis(axes, "x", frame.width.min() / 1.2, frame.width.max() * 1.2)
        axes.set(title=family, xlabel="width", ylabel="held-out bits per byte")
    panels[0].legend()
    return fig


def report(folder: str | Path, out: str | Path) -> str:
    """Writes corpora.csv and corpora.png, .svg, .pdf into `out`; returns the table in lines."""
    frame = read(folder)
    if frame.empty:
        return "no finished runs on text yet"
    home = Path(out)
    home.mkdir(parents=True, exist_ok=True)
    frame.to_csv(home / "corpora.csv", index=False)
    with matplotlib.rc_context(style.PAGE.style()):
        style.save(figure(frame), home / "corpora")
    lines = [
        f"{r.family:<10} {r.data:<14} width {r.width:>4}, {r.tokens:>9,} tokens: loss {r.loss:.4f}, "
        f"{r.bits_per_byte:.4f} bits per byte"
        for r in frame.itertuples()
    ]
    return "\n".join([*lines, f"figure: {home / 'corpora.png'}"])
