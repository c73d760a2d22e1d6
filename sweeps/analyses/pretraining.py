"""What pretraining is worth in data: fine-tuned runs beside runs from scratch, at several sizes of the training set.

How many examples would a run from scratch need to be as good? Hernandez et al. 2021 (arXiv:2102.01293) call them the
effective data, D_E; what is not the fine-tuned run's own, D_T = D_E - D_F, was transferred, and follows k D_F^alpha.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from bigmodel.laws import sources
from bigmodel.laws.figures import style
from bigmodel.laws.figures.transfer import write


def read(folder: str | Path) -> pd.DataFrame:
    """One row per finished run of a classifier: start, examples, seed, accuracy, loss, run_id.

    `start` is 'scratch' or 'pretrained'.
    """
    rows = [
        {
            "start": "pretrained" if config["train"]["init_from"] else "scratch",
            "examples": config["data"]["examples"] or result["unique_tokens"], "seed": result["seed"],
            "accuracy": result["eval_accuracy"], "loss": result["loss"], "run_id": result["run_id"],
        }
        for result, config in sources.runs(folder)
        if config["data"]["source"] == "tasks" and result["status"] == "done"
    ]  # fmt: skip
    columns = ["start", "examples", "seed", "accuracy", "loss", "run_id"]
    return pd.DataFrame(rows, columns=columns).sort_values(columns[:3]).reset_index(drop=True)


def effective(examples: np.ndarray, accuracy: np.ndarray, reached: float) -> float:
    """How many examples from scratch reach an accuracy.

    The curve is made to rise and interpolated in log examples. Above it: infinite. Below it: its least size.
    """
    rising = np.maximum.accumulate(accuracy)
    if reached > rising[-1]:
        return float("inf")
    k = int(np.searchsorted(rising, reached))
    if k == 0:
        return float(examples[0])
    part = (reached - rising[k - 1]) / (rising[k] - rising[k - 1])
    return float(np.exp(np.interp(part, [0, 1], np.log(examples[k - 1 : k + 1]))))


def table(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """One row for each size that has both kinds of runs.

    Mean accuracies; their standard deviations over seeds (NaN for one seed); `gain`, in points; `effective` data, in
    examples (None above the curve from scratch, which may have more sizes); `transferred`, effective less own.
    """
    every = frame.pivot_table("accuracy", "examples", "start", "mean")
    mean, scratch = every.dropna(), every["scratch"].dropna()
    deviation = frame.groupby(["examples", "start"]).accuracy.std().unstack().loc[mean.index]
    sizes = scratch.index.to_numpy(float)
    rows = []
    for n in mean.index:
        found = effective(sizes, scratch.to_numpy(), mean.loc[n, "pretrained"])
        rows.append(
            {
                "examples": int(n),
                **{s: float(mean.loc[n, s]) for s in ("scratch", "pretrained")},
                **{f"{s}_deviation": float(deviation.loc[n, s]) for s in ("scratch", "pretrained")},
                "gain": 100 * float(mean.loc[n, "pretrained"] - mean.loc[n, "scratch"]),
                "effective": found if np.isfinite(found) else None,
                "transferred": found - n if np.isfinite(found) else None,
            }
        )
    return rows


def law(rows: list[dict[str, Any]]) -> dict[str, float] | None:
    """k and alpha of D_T = k D_F^alpha by least squares in logs; None from fewer than three sizes."""
    known = [(r["examples"], r["transferred"]) for r in rows if r["transferred"] and r["transferred"] > 0]
    if len(known) < 3:
        return None
    own, transferred = np.log(np.array(known)).T
    alpha, log_k = np.polyfit(own, transferred, 1)
    return {"k": float(np.exp(log_k)), "alpha": float(alpha), "sizes": len(known)}


def figure(frame: pd.DataFrame) -> Figure:
    """Accuracy against examples, with bands of one standard deviation over seeds; effective data against own data."""
    rows = table(frame)
    sizes = np.sort(frame.examples.unique()).astype(float)
    fig, (left, right) = style.PAGE.panels(2, height=3.2, squeeze=False)
    for k, name in enumerate(("pretrained", "scratch")):
        here = 100 * frame[frame.start == name].groupby("examples").accuracy.agg(["mean", "std"])
        left.plot(here.index, here["mean"], color=style.CYCLE[k], marker=style.MARKERS[k], markersize=4, label=name)
        left.fill_between(
            here.index, here["mean"] - here["std"], here["mean"] + here["std"], color=style.CYCLE[k], alpha=0.2,
            linewidth=0,
        )  # fmt: skip
    left.set(xlabel="training examples", ylabel="held-out accuracy (%)")
    left.legend(loc="upper left")
    known = [(r["examples"], r["effective"]) for r in rows if r["effective"]]
    beyond = [r["examples"] for r in rows if r["effective"] is None]
    top = sizes[-1] * 2
    right.plot(sizes, sizes, color=style.GREY, linewidth=1, label="no transfer")
    if known:
        right.plot(*np.array(known).T, color=style.CYCLE[0], marker="o", markersize=4, label="effective data")
    if beyond:
        right.plot(
            beyond, [sizes[-1]] * len(beyond), "^", color=style.CYCLE[0], markerfacecolor="none",
            label=f"more than {sizes[-1]:,.0f}",
        )  # fmt: skip
    right.set(xlabel="training examples", ylabel="examples from scratch\nas good")
    right.legend(loc="lower right")
    for axes in (left, right):
        style.log_axis(axes, "x", sizes[0] / 1.2, sizes[-1] * 1.2)
    style.log_axis(right, "y", sizes[0] / 1.2, top)
    return fig


def report(folder: str | Path, out: str | Path) -> str:
    """Writes pretraining.csv, .json and .png, .svg, .pdf into `out`; returns lines of text."""
    frame = read(folder)
    sizes = {start: set(here.examples) for start, here in frame.groupby("start")}
    if len(sizes) < 2:
        return "no finished runs from scratch and from a pretrained one yet"
    if alone := sorted(sizes["pretrained"] - sizes["scratch"]):  # a curve with a hole would be read wrongly beside it
        return f"runs are missing: sizes {', '.join(f'{n:,}' for n in alone)} have none from scratch"
    rows = table(frame)
    fitted = law(rows)
    home = Path(out)
    home.mkdir(parents=True, exist_ok=True)
    frame.to_csv(home / "pretraining.csv", index=False)
    (home / "pretraining.json").write_text(json.dumps({"sizes": rows, "law": fitted}, indent=1) + "\n")
    drawn = write(figure, home / "pretraining", frame)
    seeds = frame.groupby(["start", "examples"]).seed.nunique()
    lines = [
        f"{start}, {n:,} examples: {count} of {seeds.max()} seeds"
        for (start, n), count in seeds.items()
        if count < seeds.max()
    ]
    lines += [
        f"{r['examples']:>7,} examples: {r['pretrained']:.1%} fine-tuned, {r['scratch']:.1%} from scratch "
        f"({r['gain']:+.1f} points; deviations {r['pretrained_deviation']:.1%}, {r['scratch_deviation']:.1%}); worth "
        + (f"{r['effective']:,.0f} examples" if r["effective"] else f"more than {max(sizes['scratch']):,}")
        for r in rows
    ]
    if fitted:
        lines.append(f"transferred: {fitted['k']:.3g} x examples^{fitted['alpha']:.2f}, by {fitted['sizes']} sizes")
    return "\n".join([*lines, f"figure: {drawn}"])
