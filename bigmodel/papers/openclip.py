"""Cherti et al. 2022, "Reproducible scaling laws for contrastive language-image learning", arXiv:2212.07143.

Exponents of E = beta C^alpha: E is 1 - accuracy or 1 - recall@5, C the GMAC of a sample x the samples seen. The points
are of 29 models trained on LAION and of OpenAI's three, trained on WIT, as the authors' figures.ipynb reads them.
"""

from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from bigmodel.errors import UsageError
from bigmodel.laws import fit, frontier, readers
from bigmodel.papers import Frames, Points, Row, table

TITLE = "OpenCLIP: error against training compute (Cherti et al. 2022)"
SOURCE = "arXiv:2212.07143, Figure 1, sections 4.1 and 4.2; github.com/LAION-AI/scaling-laws-openclip, figures.ipynb"
TOP1, RECALL = "acc1", "image_retrieval_recall@5"
POINTS = (
    Points(
        "zeroshot_results.csv",
        "github.com/LAION-AI/scaling-laws-openclip",
        "none stated",
        ("gmacs", "samples_seen"),
        ("upstream_dataset", "downstream_dataset", TOP1, RECALL),  # of the last two a row has one
    ),
)

# Task: (dataset, measure, exponents of models trained on LAION and on WIT).
TASKS = {
    "ImageNet": ("imagenet1k", TOP1, -0.11, -0.16),
    "ImageNet robustness": ("imagenet_robustness", TOP1, -0.13, -0.24),
    "MS-COCO image retrieval": ("mscoco_captions", RECALL, -0.08, -0.05),
    "Flickr30K image retrieval": ("flickr30k", RECALL, -0.19, -0.10),
}
BINS, BEYOND = 5, 0.1  # the notebook's bins of log10 C, which end this much above the largest
# Model: (GMAC of a sample, by the repository's arch_info.csv; samples seen; predicted top-1 accuracy on ImageNet, %).
SEEN_34B = 407_332_084 * 84
PREDICTED = {
    "ViT-g/14, 34B samples": (290.74, SEEN_34B, 79.1),
    "ViT-H/14, 68B samples": (190.97, 2 * SEEN_34B, 79.7),
    "ViT-g/14, 68B samples": (290.74, 2 * SEEN_34B, 80.7),
    "ViT-G/14, 68B samples": (532.92, 2 * SEEN_34B, 81.9),
}
LEAST = 5  # runs on the frontier for a fit and its interval

BINNED = "As the notebook: least squares through the least error of each of five bins, at the bin's middle."
WIT = "Least squares, as the notebook; three runs leave one degree of freedom to Student's interval."
FRONT = "Our fit, with its interval, of the runs that no run of at most their compute beats."
EVERY = "Not judged: our fit of all runs, also those off the frontier."


def rows(points: Frames) -> list[Row]:
    if POINTS[0].name not in points:
        return []
    out = []
    for task, (dataset, measure, in_laion, in_wit) in TASKS.items():
        runs = _runs(points[POINTS[0].name], dataset, measure)
        laion, wit = (runs[runs["data"].str.startswith(name)] for name in ("LAION", "CLIP-WIT"))
        front = laion[laion["L"] < laion["L"].cummin().shift(fill_value=np.inf)].reset_index(drop=True)
        if len(front) < LEAST or wit["C"].nunique() < 3:
            raise UsageError(
                f"{POINTS[0].name}, {dataset}: {len(front)} LAION runs that no cheaper one beats, {wit['C'].nunique()} "
                f"budgets of CLIP-WIT; the exponents need {LEAST} and 3"
            )
        how: Any = {"absolute": True, "format": ".4f"}
        part = f"{task}: exponent of the error, LAION"
        binned, coefficient = frontier.power_law(*_bins(laion))
        found = fit.fit(front[["C", "L"]], law="power:x=C", holdout=0)
        low, high = found["ci"]["alpha"] or (np.nan, np.nan)
        every = fit.fit(laion[["C", "L"]], law="power:x=C", bootstrap=0, holdout=0)
        out += [
            Row(part, "five bins", in_laion, binned, 0.0051, note=BINNED, **how),
            Row(part, f"frontier, {len(front)} runs", in_laion, -found["params"]["alpha"], 0.01, note=FRONT, **how),
            *table(part, [("95 %, low", in_laion, -high), ("95 %, high", in_laion, -low)], note=FRONT, **how),
            Row(part, f"all {len(laion)} runs", in_laion, -every["params"]["alpha"], note=EVERY, **how),
        ]
        part = f"{task}: exponent of the error, WIT"
        line = stats.linregress(np.log(wit["C"]), np.log(wit["L"]))
        wide = float(stats.t.ppf(0.975, len(wit) - 2) * line.stderr)
        ends = [("95 %, low", in_wit, line.slope - wide), ("95 %, high", in_wit, line.slope + wide)]
        out += [Row(part, f"{len(wit)} runs", in_wit, line.slope, 0.0051, note=WIT, **how)]
        out += table(part, ends, note=WIT, **how)
        if dataset == "imagenet1k":
            part = "ImageNet: top-1 accuracy predicted by the five bins, %"
            for model, (gmac, seen, printed) in PREDICTED.items():
                ours = 100 * (1 - coefficient * (gmac * seen) ** binned)
                out.append(Row(part, model, printed, ours, 0.051, True, ".2f"))
    return out


def _runs(points: pd.DataFrame, dataset: str, measure: str) -> pd.DataFrame:
    """C (GMAC), L (error, 0 to 1) and data of the runs evaluated on a dataset, from the cheapest."""
    chosen = points[points["downstream_dataset"] == dataset]
    runs = pd.DataFrame({"C": chosen["gmacs"] * chosen["samples_seen"], "data": chosen["upstream_dataset"]})
    runs["L"] = 1 - readers.numbers(chosen[measure]).values
    wrong = ~((runs["L"] > 0) & (runs["L"] < 1) & (runs["C"] > 0))
    if wrong.any():
        row = chosen[wrong].iloc[0]
        said = ", ".join(f"{column} {str(row[column])!r}" for column in ("gmacs", "samples_seen", measure))
        wanted = f"expected {measure} between 0 and 1 and positive numbers"
        raise UsageError(f"{POINTS[0].name}, row {row.name + 1} ({dataset}): {said}; {wanted}")
    return runs.sort_values(["C", "L"], ignore_index=True)


def _bins(runs: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """The middle of each bin of log10 C that has a run, and the least error there."""
    x = np.log10(runs["C"].to_numpy())
    edges = np.linspace(x.min(), x.max() + BEYOND, BINS + 1)
    bins = np.digitize(x, edges) - 1
    least = runs["L"].groupby(bins).min()
    return 10 ** ((edges[:-1] + edges[1:]) / 2)[least.index], least.to_numpy()
