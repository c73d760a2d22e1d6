"""200 small and odd files of points through `fit` and `plan`: one clear line, or numbers whose intervals are intervals.

A file has 5 to 12 runs about a planted law and one or two oddities, all a function of its number; every fifth is in the
quick suite.
"""

import json
import re
import warnings

import numpy as np
import pandas as pd
import pytest

from bigmodel.cli import main

FILES = 200
NEVER = ("Traceback", "Warning:", "numpy", "None")
LAWS = ("chinchilla", "chinchilla", "gadre", "kaplan_nd", "power:x=C", "isoflop", "envelope")
ASKED = {"flops": "C", "params": "N", "tokens": "D"}  # given, so that they have no interval


def planted(rng):
    """5 to 12 runs of columns params, tokens, loss; sizes on a grid of three by four, or anywhere."""
    runs = int(rng.integers(5, 13))
    grid = [(n, d) for n in (1e6, 1e7, 1e8) for d in (1e8, 1e9, 1e10, 1e11)]
    pairs = [grid[i] for i in rng.choice(12, runs, replace=False)]
    if rng.random() < 0.5:
        pairs = [(n * 2 ** rng.uniform(-1, 1), d * 2 ** rng.uniform(-1, 1)) for n, d in pairs]
    n, d = np.array(pairs).T
    noise = rng.choice([0.0, 1e-5, 0.003, 0.003, 0.05])
    loss = (1.7 + 400 / n**0.34 + 410 / d**0.28) * np.exp(noise * rng.standard_normal(runs))
    return pd.DataFrame({"params": n, "tokens": d, "loss": loss})


def one(frame, rng, column, value):
    """One cell changed."""
    cells = frame[column].astype(object).to_list()
    i = int(rng.integers(len(cells)))
    cells[i] = value(cells[i]) if callable(value) else value
    return frame.assign(**{column: cells})


def twice(frame, rng, changed=lambda rows: rows):
    return pd.concat([frame, changed(frame.sample(min(3, len(frame)), random_state=int(rng.integers(1000))))])


def isoflop(frame, rng):
    """Two or three budgets of four sizes, the optimum inside or beyond them."""
    c = np.repeat([1e18, 1e19, 1e20][: int(rng.integers(2, 4))], 4)
    n = np.sqrt(c / 120) * np.tile([0.3, 0.8, 2.0, 5.0], len(c) // 4) * rng.choice([1.0, 8.0])
    d = c / 6 / n
    noise = rng.choice([0.0, 0.003]) * rng.standard_normal(len(c))
    return pd.DataFrame({"params": n, "tokens": d, "loss": (1.7 + 400 / n**0.34 + 410 / d**0.28) * np.exp(noise)})


ODD = {
    "few": lambda f, rng: f.head(5),
    "six": lambda f, rng: f.head(6),
    "rows twice": twice,
    "rows twice, other losses": lambda f, rng: twice(f, rng, lambda r: r.assign(loss=r.loss * 1.01)),
    "all rows thrice": lambda f, rng: pd.concat([f, f, f]),
    "one size": lambda f, rng: f.assign(params=1e7),
    "one amount of data": lambda f, rng: f.assign(tokens=1e9),
    "two sizes": lambda f, rng: f.assign(params=np.where(f.params < 2e7, 1e6, 1e8)),
    "one size but for a run": lambda f, rng: one(f.assign(params=1e7), rng, "params", 3e7),
    "collinear": lambda f, rng: f.assign(tokens=20 * f.params),
    "nearly collinear": lambda f, rng: f.assign(tokens=20 * f.params * (1 + 0.01 * rng.standard_normal(len(f)))),
    "constant loss": lambda f, rng: f.assign(loss=3.0),
    "constant loss but for a run": lambda f, rng: one(f.assign(loss=3.0), rng, "loss", 3.1),
    "loss of one digit": lambda f, rng: f.assign(loss=f.loss.round(1)),
    "rising loss": lambda f, rng: f.assign(loss=1 / f.loss),
    "huge losses": lambda f, rng: f.assign(loss=f.loss * 1e12),
    "tiny losses": lambda f, rng: f.assign(loss=f.loss * 1e-12),
    "huge sizes": lambda f, rng: f.assign(params=f.params * 1e15),
    "sizes in billions": lambda f, rng: f.assign(params=f.params / 1e9, tokens=f.tokens / 1e9),
    "tiny sizes": lambda f, rng: f.assign(params=f.params * 1e-20),
    "absurd sizes": lambda f, rng: f.assign(tokens=f.tokens * 1e47),
    "an empty loss": lambda f, rng: one(f, rng, "loss", ""),
    "a NaN": lambda f, rng: one(f, rng, "loss", "nan"),
    "a NaN size": lambda f, rng: one(f, rng, "params", "NaN"),
    "an infinite loss": lambda f, rng: one(f, rng, "loss", "inf"),
    "a loss below zero": lambda f, rng: one(f, rng, "loss", lambda v: -v),
    "a loss of zero": lambda f, rng: one(f, rng, "loss", 0),
    "losses below zero": lambda f, rng: f.assign(loss=-f.loss),
    "a text": lambda f, rng: one(f, rng, "loss", "diverged"),
    "units": lambda f, rng: f.assign(params=[f"{v / 1e6:.4g}M" for v in f.params]),
    "a unit": lambda f, rng: one(f, rng, "params", "1.3B"),
    "a column of notes": lambda f, rng: f.assign(note=[f"run {i}, ok" for i in range(len(f))]),
    "two data sets": lambda f, rng: f.assign(
        dataset=np.where(np.arange(len(f)) % 2, "a", "b"), loss=f.loss * np.where(np.arange(len(f)) % 2, 1, 1.2)
    ),
    "two seeds": lambda f, rng: pd.concat(
        [f.assign(seed=0), f.assign(seed=1, loss=f.loss * np.exp(0.003 * rng.standard_normal(len(f))))]
    ),
    "two seeds, the same losses": lambda f, rng: pd.concat([f.assign(seed=0), f.assign(seed=1)]),
    "checkpoints": lambda f, rng: pd.concat(
        [f.assign(run_id=[f"r{i}" for i in range(len(f))], tokens=f.tokens * t, loss=f.loss / t**0.05) for t in (1, 2)]
    ),
    "few runs of many points": lambda f, rng: pd.concat([f.assign(loss=f.loss * k) for k in (1, 1.01)]).assign(
        run_id=lambda f: [f"r{i % 3}" for i in range(len(f))]
    ),
    "an outlier above": lambda f, rng: one(f, rng, "loss", lambda v: 5 * v),
    "an outlier below": lambda f, rng: one(f, rng, "loss", lambda v: v / 5),
    "two outliers": lambda f, rng: one(one(f, rng, "loss", lambda v: 3 * v), rng, "loss", lambda v: 1000 * v),
    "noise": lambda f, rng: f.assign(loss=f.loss * np.exp(rng.standard_normal(len(f)))),
    "one compute": lambda f, rng: f.assign(tokens=1e18 / f.params),
    "another compute": lambda f, rng: f.assign(flops=f.params * f.tokens),
    "budgets": isoflop,
}  # fmt: skip


def make(number):
    """(what is odd, the file's text, the flags of `fit`) of one of the files."""
    rng = np.random.default_rng([19, number])
    names, frame = list(ODD), planted(rng)
    odd = [names[number % len(names)]] + ([str(rng.choice(names))] if rng.random() < 0.4 else [])
    law = "isoflop" if "budgets" in odd and rng.random() < 0.5 else str(rng.choice(LAWS))
    law = "bnsl:x=D,breaks=1" if number % 25 == 7 else law  # many seconds
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in odd:
            try:
                frame = ODD[name](frame, rng)
            except TypeError:  # the first has made texts of the numbers
                continue
    flags = [f"--law={law}", "--bootstrap=40"] + (["--estimator=likelihood"] if rng.random() < 0.1 else [])
    return ", ".join([*odd, *flags]), frame.to_csv(index=False), flags


def wrong(ends, value):
    """What is wrong with an interval; "" for one, and for None."""
    if ends is None:
        return ""
    low, high = (-np.inf if ends[0] is None else ends[0], np.inf if ends[1] is None else ends[1])
    if value is None or not low - 1e-6 * abs(value) <= value <= high + 1e-6 * abs(value):
        return f"[{low}, {high}] leaves out {value}"
    point = np.isfinite([low, high]).all() and high - low <= 1e-6 * max(abs(low), abs(high))
    return f"[{low}, {high}] is a point" if point else ""


def of_fit(fit):
    """(name, interval, estimate) of every interval of a fit.json."""
    estimates = {**fit["optimal"], **fit["params"]}  # a and b are parameters of some laws
    for method, found in {"ci": fit["ci"], **fit["intervals"]}.items():
        yield from ((f"{method} of {name}", ends, estimates[name]) for name, ends in found.items())
    at = fit["optimal"]["tokens_per_param_at"]
    yield from ((f"D/N at {c}", ends, at[c]) for c, ends in fit["optimal"]["tokens_per_param_ci"].items())
    for entry in [*fit["holdout"], *(held for law in fit["compared"] for held in law["holdout"])]:
        yield f"held out {entry['rungs']}", entry["mean_abs_rel_error_ci"], entry["mean_abs_rel_error"]
    yield from ((f"N_opt at {b['C']}", b["N_ci"], b["N_opt"]) for b in fit.get("budgets", []))


def of_plan(plan):
    for name in ("N", "D", "C", "loss", "tokens_per_param"):
        part = plan[name]
        if name not in {ASKED.get(key) for key in plan["asked"]} and (part["low"], part["high"]) != (None, None):
            yield name, (part["low"], part["high"]), part["value"]


def of_prediction(found):
    for part in ("loss", "run"):
        if (ends := (found[part]["low"], found[part]["high"])) != (None, None):
            yield part, ends, found[part]["value"]


def call(capfd, *args):
    """(exit code, stdout); an error is one line on stderr, and anything else leaves stderr empty."""
    code = main.main(list(args))
    out, err = capfd.readouterr()
    assert not (bad := [word for word in NEVER if re.search(rf"\b{word}", out + err)]), (bad, out + err)
    if code:
        assert code == 2 and out == "" and re.fullmatch(r"bigmodel: .{10,700}\n", err), (code, err)
    else:
        assert err == ""
    return code, out


def printed(out):
    """Intervals in a text that look like points."""
    pairs = [ends.replace("†", "").split(", ") for ends in re.findall(r"\[([^\[\]]*)\]", out)]
    return [f"printed {ends}" for ends in pairs if len(ends) == 2 and ends[0] == ends[1]]


@pytest.mark.parametrize(
    "number", [pytest.param(k, marks=() if k % 5 == 0 else pytest.mark.slow) for k in range(FILES)]
)
def test_an_odd_file_gives_intervals_or_one_line(number, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    odd, content, flags = make(number)
    (tmp_path / "points.csv").write_text(content)
    code, out = call(capfd, "fit", "points.csv", "--out=fit.json", *flags)
    if code:
        return
    fit = json.loads((tmp_path / "fit.json").read_text())
    found = [*printed(out), *(f"{name}: {why}" for name, ends, value in of_fit(fit) if (why := wrong(ends, value)))]
    most = {key: ends[1] for key, ends in fit["range"].items()}
    asked = {
        "plan": (f"--flops={10 * most.get('C', 1):g}",),
        "plan ": (f"--loss={0.97 * fit['range'].get('L', [1])[0]:g}",),
        "predict": (f"--params={3 * most.get('N', 1):g}", f"--tokens={most.get('D', 1):g}"),
    }
    for verb, flags in asked.items():
        code, out = call(capfd, verb.strip(), "--law=fit.json", *flags, "--json")
        if code == 0:
            answer = json.loads(out)
            parts = of_plan(answer) if verb.strip() == "plan" else of_prediction(answer)
            found += [f"{verb} {flags} {name}: {why}" for name, ends, v in parts if (why := wrong(ends, v))]
            found += printed(call(capfd, verb.strip(), "--law=fit.json", *flags)[1])
    assert not found, "\n".join([odd, *found])
