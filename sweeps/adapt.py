"""What is a pretraining worth, by the data and the model's size? The law of transfer, from a ladder of our own.

    bigmodel prepare prose --out=data/prose-bytes && bigmodel prepare wordnet --out=data/wordnet-bytes
    bigmodel sweep run sweeps/adapt.py && bigmodel report sweeps/adapt.py

Byte-level GPTs of three widths read 3 million bytes of prose, then 4 to 131 thousand bytes of WordNet's definitions,
four times each: whole, or by adapters of rank 8 (at one width of 1 and 32, too). Runs from scratch read up to 518
thousand bytes of the definitions, four times too; the bytes from scratch that are as good as a fine-tuned run's are
read off their losses: Hernandez et al. 2021's effective data (arXiv:2102.01293), and the law k D_F^alpha N^beta of
what was transferred, but at four passes over any data instead of at convergence.

Rates were chosen at width 64 by the held-out loss of one seed: 0.002 of 0.001, 0.002, 0.004 for 32 windows and of
0.002, 0.004, 0.008 for 256, 0.008 of 0.004, 0.008, 0.016 for 2,048; from scratch 0.01 of 0.006, 0.01, 0.018, 0.03.
"""

import json
from pathlib import Path

import numpy as np
import pandas as pd
from analyses import pretraining

from bigmodel.laws import sources
from bigmodel.laws.figures import style
from bigmodel.laws.figures.transfer import write

CONFIG = "experiments/adapt.py:48"
LAW = None  # the law of transfer is the report's
WIDTHS = (24, 48, 96)
FINE = {32: 0.002, 80: 0.002, 176: 0.002, 432: 0.004, 1024: 0.006}  # windows of 128 bytes -> rate
SCRATCH = (360, 808, 1808, 4048)
MORE = {24: (7200,), 48: (7200,)}  # where a fine-tuned run is as good as more than 4,048 from scratch
PASSES, WINDOW = 4, 128
RANKS = {24: (8,), 48: (1, 8, 32), 96: (8,)}
ADAPTERS = 0.02  # their rate
COLUMNS = ["params", "bytes", "rank", "seed", "loss", "trainable", "run_id"]  # rank -1: from scratch, 0: whole


def rows(width, sizes, seed, start=None, **more):
    """One row for each of `sizes`, windows -> rate."""
    return [
        {
            "experiment": f"experiments/adapt.py:{width}", **({"start": start} if start else {}),
            "data.examples": n, "train.tokens": PASSES * WINDOW * n, "optim.lr": lr, "train.seed": seed, **more,
        }
        for n, lr in sizes.items()
    ]  # fmt: skip


def get_sweep():
    whole, ranks = [], []
    for width in WIDTHS:
        for seed in range(3):
            start = f"experiments/adapt.py:pretrain-{width}-{seed}"
            whole += rows(width, FINE, seed, start)
            whole += rows(width, dict.fromkeys((*SCRATCH, *MORE.get(width, ())), 0.01), seed)
            for rank in RANKS[width]:
                ranks += rows(width, dict.fromkeys(FINE, ADAPTERS), seed, start, **{"train.lora_rank": rank})
    return whole + ranks


def read(folder):
    """One row per finished run on the definitions, with COLUMNS; params without embeddings, loss in nats a byte."""
    found = []
    for result, config in sources.runs(folder):
        train = config["train"]
        if config["data"]["examples"] and result["status"] == "done":
            rank = train.get("lora_rank", 0) if train["init_from"] else -1
            own = dict(
                params=result["params_nonembedding"], bytes=config["data"]["examples"] * config["data"]["seq_len"]
            )
            trainable = result.get("trainable", result["params"])
            found.append(
                {**own, "rank": rank, "trainable": trainable, **{k: result[k] for k in ("seed", "loss", "run_id")}}
            )
    return pd.DataFrame(found, columns=COLUMNS).sort_values(COLUMNS[:4]).reset_index(drop=True)


def cells(frame):
    """One row per params, bytes and rank of the runs that started from another: mean loss, D_E (`effective`, None
    outside the runs from scratch) and D_T = D_E - D_F (`transferred`)."""
    mean = frame.groupby(["params", "bytes", "rank"]).loss.mean()
    out = []
    for (params, own, rank), loss in mean.items():
        if rank >= 0 and (params, -1) in {(p, r) for p, _, r in mean.index}:
            curve = mean.xs((params, -1), level=("params", "rank"))
            inside = curve.min() <= loss <= curve.max()
            found = pretraining.effective(curve.index.to_numpy(float), -np.log(curve.to_numpy()), -np.log(loss))
            row = dict(params=params, bytes=own, rank=rank, loss=loss, effective=found if inside else None)
            out.append({**row, "transferred": found - own if inside else None})
    return pd.DataFrame(out, columns=["params", "bytes", "rank", "loss", "effective", "transferred"])


def fit(table):
    """(log k, alpha, beta) of D_T = k D_F^alpha N^beta by least squares in logs; None where these aren't determined."""
    known = table[table.transferred.astype(float) > 0]
    x = np.column_stack([np.ones(len(known)), np.log(known.bytes.astype(float)), np.log(known.params.astype(float))])
    if len(known) < 4 or np.linalg.matrix_rank(x) < 3:
        return None
    return np.linalg.lstsq(x, np.log(known.transferred.astype(float)), rcond=None)[0]


def law(frame, rank, draws=1000):
    """The law of one rank with 95 % intervals: each draw takes seeds of every size of model, as a start has a seed, for
    the runs from scratch others, and then cells of the table, with replacement."""
    here = frame[frame["rank"].isin((rank, -1))]
    table = cells(here)
    best = fit(table)
    if best is None:
        return None
    known = table[table.transferred.astype(float) > 0].astype(float)
    off = np.log(known.transferred) - best[0] - best[1] * np.log(known.bytes) - best[2] * np.log(known.params)
    rng, seeds, found = np.random.default_rng(0), np.sort(here.seed.unique()), []
    groups = {key: part for key, part in here.groupby(["params", here["rank"] < 0])}
    for _ in range(draws):
        parts = []
        for part in groups.values():
            parts += [part[part.seed == s] for s in rng.choice(seeds, len(seeds))]
        drawn = cells(pd.concat(parts))
        theta = fit(drawn.iloc[rng.integers(0, len(drawn), len(drawn))])
        found += [theta] if theta is not None else []
    low, high = np.percentile(found, [2.5, 97.5], axis=0)
    names = ("log_k", "alpha", "beta")
    own = {name: dict(value=best[i], low=low[i], high=high[i]) for i, name in enumerate(names)}
    return {**own, "cells": len(known), "draws": len(found), "rms": float(np.sqrt(np.mean(off**2)))}


def figure(frame, laws):
    """Left: loss against bytes of definitions. Right: bytes transferred against them, with the law of whole models."""
    fig, (left, right) = style.PAGE.panels(2, height=3.4, squeeze=False)
    table, mean = cells(frame), frame.groupby(["rank", "params", "bytes"]).loss.mean()
    for k, params in enumerate(sorted(frame.params.unique())):
        colour, name = style.CYCLE[k], f"N = {params:,}"
        for rank, line, face in ((-1, ":", "none"), (0, "-", colour)):
            if (rank, params) in mean.index.droplevel("bytes"):
                here = mean.xs((rank, params))
                left.plot(
                    here.index, here, line, color=colour, marker=style.MARKERS[k], markersize=4, markerfacecolor=face,
                    label=name if rank == 0 else None,
                )  # fmt: skip
        for rank, face, size in ((0, colour, 5), (8, "none", 6)):
            here = table[(table.params == params) & (table["rank"] == rank) & table.transferred.notna()]
            label = name if rank == 0 else f"{name}, adapters of rank 8"
            right.plot(
                here.bytes, here.transferred.astype(float), style.MARKERS[k], color=colour, markersize=size,
                markerfacecolor=face, label=label if len(here) else None,
            )  # fmt: skip
        if laws.get(0):
            theta, x = [laws[0][n]["value"] for n in ("log_k", "alpha", "beta")], np.geomspace(3e3, 2e5, 20)
            right.plot(x, np.exp(theta[0]) * x ** theta[1] * params ** theta[2], color=colour, linewidth=1)
    left.plot([], [], ":", color=style.GREY, marker="o", markersize=4, markerfacecolor="none", label="from scratch")
    left.set(xlabel="bytes of definitions, read four times", ylabel="held-out loss (nats a byte)")
    right.set(xlabel="bytes of definitions, read four times", ylabel="bytes transferred")
    sizes = frame.bytes
    style.log_axis(left, "x", sizes.min() / 1.3, sizes.max() * 1.3)
    style.log_axis(right, "x", sizes.min() / 1.3, 2e5)
    known = table.transferred.dropna().astype(float)
    if len(known):
        style.log_axis(right, "y", known.min() / 1.3, known.max() * 1.3)
    left.legend(fontsize="small", loc="lower left")
    right.legend(fontsize="small", loc="lower right")
    return fig


def report(folder, out):
    """Writes adapt.csv (all runs), adapt.json (laws, cells) and adapt.png, .svg, .pdf; returns lines of text."""
    frame = read(folder)
    table = cells(frame)
    if table.empty:
        return "no finished runs from scratch and from a pretrained one yet"
    laws = {rank: found for rank in (0, 8) if (found := law(frame, rank))}
    home = Path(out)
    home.mkdir(parents=True, exist_ok=True)
    frame.to_csv(home / "adapt.csv", index=False)
    rows_ = json.loads(table.to_json(orient="records"))
    (home / "adapt.json").write_text(json.dumps({"laws": laws, "cells": rows_}, indent=1) + "\n")
    drawn = write(figure, home / "adapt", frame, laws)
    counts = frame.groupby(["params", "bytes", "rank"]).seed.nunique()
    lines = [f"N {p:,}, {b:,} bytes, rank {r}: {n} seeds" for (p, b, r), n in counts.items() if n < counts.max()]
    for r in table.itertuples():
        how = f"adapters of rank {r.rank}" if r.rank else "whole"
        worth = (
            f"worth {r.effective:,.0f}"
            if r.effective is not None and np.isfinite(r.effective)
            else "outside the runs from scratch"
        )
        lines.append(f"N {r.params:>7,}, {r.bytes:>7,} bytes, {how}: loss {r.loss:.4f}, {worth}")
    for rank, found in laws.items():
        said = ", ".join(
            f"{n} {v['value']:.3g} [{v['low']:.3g}, {v['high']:.3g}]" for n, v in found.items() if isinstance(v, dict)
        )
        how = f"adapters of rank {rank}" if rank else "whole"
        lines.append(
            f"{how}: D_T = k D_F^alpha N^beta over {found['cells']} cells, off by {found['rms']:.1%} (rms): {said}"
        )
    return "\n".join([*lines, f"figure: {drawn}"])
