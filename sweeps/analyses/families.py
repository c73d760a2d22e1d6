"""A law and a frontier for each family of a sweep over the same budgets, in one table and one figure.

Legend: N parameters, D tokens, C training FLOPs, L loss. Losses of different objectives don't compare; exponents do.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from analyses import heldout
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bigmodel.laws import fit, rows, sources
from bigmodel.laws.figures import style
from bigmodel.laws.figures.transfer import write

NAMES = {
    "alpha": "$\\alpha$ of N",
    "beta": "$\\beta$ of D",
    "a": "a of $N_{opt} \\propto C^a$, by the law",
    "isoflop": "a, by the budgets' parabolas",
}
Label = Callable[[dict[str, Any]], str]


def compare(folder: str | Path, label: Label, bootstrap: int = 1000) -> list[dict[str, Any]]:
    """Fits one law per label.

    Args:
      label: of a run's config, the name of the law that the run belongs to.

    Returns:
      For each label: n; E; alpha, beta and a (N_opt ~ C^a by the law), each as (value, low, high) with 95 % intervals
      over runs; `isoflop`, a by the budgets' parabolas; `error`, of the largest budget's runs as predicted from the
      others; `best`, the least loss of that budget.
    """
    labels: dict[str, list[str]] = {}
    for result, config in sources.runs(folder):
        labels.setdefault(label(config), []).append(result["run_id"])
    frame = rows.load(folder)
    found = []
    for name, ids in labels.items():
        part = frame[frame["run_id"].isin(ids)].reset_index(drop=True)
        part.attrs = dict(frame.attrs)
        law = fit.fit(part, bootstrap=bootstrap, holdout=0)
        iso = heldout.parabolas(part, bootstrap)
        top = heldout.top_budget(part, bootstrap=bootstrap)

        def triple(value: float | None, ends: Any) -> tuple[float, float, float] | None:
            return None if value is None or ends is None else (float(value), float(ends[0]), float(ends[1]))

        found.append(
            {
                "label": name,
                "n": len(part),
                "E": law["params"]["E"],
                **{k: triple(law["params"][k], law["ci"].get(k)) for k in ("alpha", "beta")},
                "a": triple(law["optimal"]["a"], law["ci"].get("a")),
                "isoflop": triple(iso["params"]["a"], iso["ci"].get("a")) if iso else None,
                "error": top["mean_error"],
                "held_out_by": top["law"],
                "best": float(part[part["C"] > part["C"].max() / 1.5]["L"].min()),
            }
        )
    return found


def figure(rows: Sequence[dict[str, Any]], names: Mapping[str, str]) -> Figure:
    """One panel for each of `names` (key -> label of its axis), one line for each of `rows`.

    A row has "label", and for each key (value, low, high) or None.
    """
    fig, panels = style.PAGE.panels(len(names), height=0.9 + 0.32 * len(rows), sharey=True, squeeze=False)
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
    return fig


def report(folder: str | Path, out: str | Path, label: Label) -> str:
    """Writes families.json, families.csv and families.png, .svg, .pdf into `out`; returns the table in Markdown."""
    found = compare(folder, label)
    home = Path(out)
    home.mkdir(parents=True, exist_ok=True)
    (home / "families.json").write_text(json.dumps(found, indent=1) + "\n")
    flat = []
    for row in found:
        cells: dict[str, Any] = {}
        for key, value in row.items():
            three = isinstance(value, tuple)
            cells |= dict(zip((key, f"{key}_low", f"{key}_high"), value, strict=True)) if three else {key: value}
        flat.append(cells)
    pd.DataFrame(flat).to_csv(home / "families.csv", index=False)
    drawn = write(figure, home / "families", found, NAMES)

    def text(value: Any) -> str:
        return "-" if value is None else f"{value[0]:.3f} [{value[1]:.3f}, {value[2]:.3f}]"

    lines = ["| | runs | alpha | beta | a, law | a, IsoFLOP | least loss | held out | by |", "|---" * 9 + "|"]
    lines += [
        f"| {r['label']} | {r['n']} | {text(r['alpha'])} | {text(r['beta'])} | {text(r['a'])} | {text(r['isoflop'])} | "
        f"{r['best']:.4f} | {r['error']:.2%} | {r['held_out_by']} |"
        for r in found
    ]
    return "\n".join([*lines, f"figure: {drawn}"])
