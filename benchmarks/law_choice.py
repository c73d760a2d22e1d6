"""Does the law that is chosen on small runs predict the large ones? A row per table and gap, as CSV.

    python benchmarks/law_choice.py TABLE.csv ... [--gaps=10,100] [--out=FILE.csv]

A table has columns N, D and L, and optionally `target`, 1 for the runs to predict. Without it they are the runs within
a factor 1.5 of the largest C = 6 N D, at least four. A law is chosen on the runs that are at least `gap` times smaller,
or on the 20 smallest if fewer would be left. Every candidate is fitted to the same runs, and its error on the target
runs gives the best in hindsight. Nothing of the target is used before.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from bigmodel.laws import choice, fit

FEWEST = 20


def error(frame, law, target):
    predicted = fit.predict(fit.fit(frame, law, bootstrap=0, holdout=0), target["N"], target["D"])
    return float(np.abs(predicted / target["L"] - 1).mean())


def split(frame, gap):
    """(runs to fit, runs to predict)"""
    flops = 6 * frame["N"] * frame["D"]
    if "target" in frame:
        held = frame["target"] == 1
        return frame[~held], frame[held]
    order = np.sort(flops)[::-1]
    held = flops >= min(order[0] / 1.5, order[3])
    fitted = flops <= max(order[0] / gap, order[-FEWEST])
    return frame[fitted & ~held], frame[held]


def row(path, gap):
    frame = pd.read_csv(path).astype(float)  # N D of integers overflows
    runs, target = split(frame, gap)
    runs = runs.reset_index(drop=True)
    how = {"delta": 1e-3, "above": 1.0, "estimator": "huber"}
    ranked, why = choice.compare(runs, choice.CANDIDATES, how)
    errors = {law: error(runs, law, target) for law in choice.CANDIDATES}
    best = min(errors.values())
    chosen, averaged = (choice.named(rule, ranked) for rule in choice.RULES)
    asked = (target["N"] * target["D"]).max() / (runs["N"] * runs["D"]).max()
    return {
        "table": Path(path).stem,
        "gap": round(float(asked), 1),
        "runs": len(runs),
        "targets": len(target),
        **{f"{law} %": round(100 * value, 3) for law, value in errors.items()},
        "auto": chosen,
        "auto / best": round(errors[chosen] / best, 2),
        "average": averaged.partition("=")[2] or averaged,
        "average / best": round(error(runs, averaged, target) / best, 2),
        "why": "; ".join(why),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="+")
    parser.add_argument("--gaps", default="10,100")
    parser.add_argument("--out")
    args = parser.parse_args()
    rows = []
    for path in args.tables:
        has_target = "target" in pd.read_csv(path, nrows=1)
        for gap in ["0"] if has_target else args.gaps.split(","):
            rows.append(row(path, float(gap) or 1.0))
            print(
                pd.DataFrame(rows[-1:]).drop(columns="why").to_csv(index=False, header=len(rows) == 1),
                end="",
                flush=True,
            )
    if args.out:
        pd.DataFrame(rows).to_csv(args.out, index=False)


if __name__ == "__main__":
    main()
