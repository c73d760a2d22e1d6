"""Porian et al. 2024, "Resolving Discrepancies in Compute-Optimal Scaling of Language Models", arXiv:2406.19146.

From Kaplan's exponent of N_opt ~ C^a to Chinchilla's in four steps, each undoing one choice. The points are the tables
that the authors' repository stores as Python objects, written as CSV: its `optima` (the best N of each of 12
budgets, with its standard error) and the runs of each IsoFLOP curve.
"""

import pandas as pd

from bigmodel.errors import UsageError
from bigmodel.laws import frontier
from bigmodel.papers import Frames, Points, Row

TITLE = "From Kaplan's exponent to Chinchilla's (Porian et al. 2024)"
SOURCE = "arXiv:2406.19146, Figure 1 and the stored fits of github.com/formll/resolving-scaling-law-discrepancies"
SETTING = ("dataset", "hparams", "warmup", "decay", "param_count", "val", "file")
ORIGIN = "github.com/formll/resolving-scaling-law-discrepancies, data/summary_df*.pickle.xz, as CSV"
POINTS = (
    Points("porian2024_optima.csv", ORIGIN, "MIT", ("flops", "n", "n_star_std"), SETTING, gaps=True),
    Points("porian2024_isoflop_points.csv", ORIGIN, "MIT", ("flops", "N", "D", "L"), SETTING),
)

# step: (setting; exponents: RefinedWeb's as stored, weighted; RefinedWeb's and OpenWebText2's as printed)
PATH = {
    "Kaplan's setting": ("base,long,kaplan,kaplan,train", 0.8353, 0.835, 0.858),
    "counting the last layer": ("base,long,kaplan,standard,val", 0.7065, 0.705, 0.694),
    "correct warm-up": ("base,short,kaplan,standard,val", 0.6020, 0.604, 0.600),
    "cosine to the budget": ("base,short,chinchilla,standard,val", 0.5715, 0.573, 0.575),
    "tuned, no decay": ("tuned,short,const,standard,val", 0.4969, 0.497, 0.518),
}
# Variants on RefinedWeb: (setting, the authors' file, exponent).
VARIANTS = {
    "Kaplan's count, tuned": ("tuned,long,const,kaplan,train", "summary_df_kaplan_tuned_hparams", 0.712),
    "attention counted, last layer counted": ("base,long,kaplan,attention,train", "summary_df_att", 0.717),
    "attention counted, correct warm-up": ("base,short,kaplan,attention,train", "summary_df_att", 0.622),
    "attention counted, cosine to the budget": ("base,short,chinchilla,attention,train", "summary_df_att", 0.578),
    "attention counted, tuned": ("tuned,short,const,attention,train", "summary_df_att", 0.504),
}
CENTRE = "The printed number is the centre of a bootstrap over noisy curves; ours is one fit of the stored optima."
CURVES = {
    "akima": "Our own optima of each budget, on Akima's interpolation of its runs, as the authors'; no noise model.",
    "parabola": "Our own optima of each budget, on a parabola through the runs near the best, as Hoffmann et al. 2022.",
}


def rows(points: Frames) -> list[Row]:
    out = []
    if POINTS[0].name in points:
        optima = points[POINTS[0].name]
        part = "N_opt ~ C^a, RefinedWeb, weighted by the optima's standard errors"
        for step, (setting, weighted, printed, _) in PATH.items():
            chosen = _choose(optima, "rw", setting)
            a = frontier.power_law(chosen["flops"], chosen["n"], chosen["n_star_std"])[0]
            out.append(Row(part, f"{step}, stored", weighted, a, 5e-5, True, ".4f"))
            out.append(Row(part, f"{step}, printed", printed, a, 0.003, True, ".4f", CENTRE))
        part = "The same without weights"
        for step, (setting, _, printed, _) in PATH.items():
            chosen = _choose(optima, "rw", setting)
            a = frontier.power_law(chosen["flops"], chosen["n"])[0]
            out.append(Row(part, step, printed, a, None, True, ".4f", CENTRE))
        part = "N_opt ~ C^a, OpenWebText2, weighted"
        for step, (setting, _, _, printed) in PATH.items():
            chosen = _choose(optima, "owt2", setting)
            a = frontier.power_law(chosen["flops"], chosen["n"], chosen["n_star_std"])[0]
            out.append(Row(part, step, printed, a, 0.01, True, ".4f", CENTRE))
        part = "N_opt ~ C^a, RefinedWeb, other ways to count, weighted"
        for step, (setting, file, printed) in VARIANTS.items():
            chosen = _choose(optima, "rw", setting, file)
            a = frontier.power_law(chosen["flops"], chosen["n"], chosen["n_star_std"])[0]
            out.append(Row(part, step, printed, a, 0.01, True, ".4f", CENTRE))
    if POINTS[1].name in points:
        runs = points[POINTS[1].name].rename(columns={"flops": "C"})
        for dataset, name in (("rw", "RefinedWeb"), ("owt2", "OpenWebText2")):
            part = f"From the runs of the IsoFLOP curves, {name}"
            for step, (setting, _, *both) in PATH.items():
                printed = both[dataset == "owt2"]
                for shape, note in CURVES.items():
                    found = frontier.isoflop(_choose(runs, dataset, setting), bootstrap=100, shape=shape)
                    a = found["params"]["a"]
                    out.append(Row(part, f"{step}, {shape}", printed, a, 0.03, True, ".4f", note))
    return out


def _choose(frame: pd.DataFrame, dataset: str, setting: str, file: str = "") -> pd.DataFrame:
    """The rows of a setting "hparams,warmup,decay,param_count,val"; of the authors' main analysis, or of `file`."""
    file = file or {"rw": "summary_df", "owt2": "summary_df_owt2"}[dataset]
    chosen = frame[(frame[[*SETTING]] == (dataset, *setting.split(","), file)).all(axis=1)]
    if len(chosen) < 3:
        raise UsageError(f"{file}: {len(chosen)} rows of {dataset},{setting}; an exponent needs three")
    return chosen
