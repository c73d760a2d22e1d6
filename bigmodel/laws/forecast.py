"""Forecasts: the loss of a run, sealed before the run starts and scored after it ends.

A folder holds 0001.json, 0002.json ...: each is one forecast with the SHA-256 of the file before it, so that one which
is edited, removed from the middle, moved or dated back breaks the chain (Haber & Stornetta 1991, J. Cryptology 3,
section 5.1). No file holds the newest: publish its SHA-256, as a commit of the folder does. 0001.score.json is what
came out of 0001.json.

Legend: N parameters, D tokens or examples, C training FLOPs, L loss.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from bigmodel import files
from bigmodel.errors import UsageError
from bigmodel.laws.texts import percent, short


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def paths(folder: Path) -> list[Path]:
    """The forecasts of a folder, in order."""
    return sorted(path for path in folder.glob("*.json") if path.stem.isdigit())


def score_of(path: Path) -> Path:
    return path.with_suffix(".score.json")


def verify(folder: Path, now: str, last: str = "") -> str:
    """The first break of a folder's chain in one line; "" if it is whole.

    Args:
      now: the time in UTC as "2026-12-01T00:00:00Z", after which nothing can have been sealed.
      last: the SHA-256 of the newest forecast as it was published; "": not checked.
    """
    previous, before = "", ""
    for k, path in enumerate(paths(folder), 1):
        if path.stem != f"{k:04}":
            return f"{k:04}.json is missing: the next file is {path.name}"
        try:
            record = _read(path)
            scored = _read(score_of(path)) if score_of(path).exists() else None
        except UsageError as e:
            return str(e)
        if record["number"] != k:
            return f"{path.name} was moved: it was sealed as number {record['number']}"
        if record["previous"] != previous:
            return f"{path.name} was sealed after another file than this {k - 1:04}.json, which was changed or replaced"
        if not before <= str(record["date"]) <= now:
            return f"{path.name} is dated {record['date']}, which is not between {before or 'the start'} and {now}"
        previous, before = digest(path), record["date"]
        if scored and scored["forecast"] != previous:
            return f"{score_of(path).name} is of another {path.name}"
    if last and last != previous:
        return f"the newest forecast has SHA-256 {previous or 'of none'}, not {last}: changed, or some removed after it"
    return ""


def load(folder: Path, now: str) -> list[tuple[Path, dict[str, Any]]]:
    """The forecasts of a folder. UsageError: its chain is broken."""
    if broken := verify(folder, now):
        raise UsageError(f"forecast: the chain of {str(folder)!r} is broken: {broken}")
    return [(path, _read(path)) for path in paths(folder)]


def _read(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(files.read_text(path, "forecast"))
        wanted = ("forecast",) if path.name.endswith(".score.json") else ("number", "previous", "date", "run_id", "law")
        if all(key in record for key in (*wanted, "crc32")):
            files.check_whole(record, path)
            return record  # type: ignore[no-any-return]
    except (ValueError, TypeError, RecursionError):
        pass
    raise UsageError(f"{str(path)!r} is no forecast that `bigmodel forecast` wrote")


def seal(folder: Path, record: Mapping[str, Any]) -> Path:
    """Writes the next forecast of a folder, whose chain `load` found whole, and returns its path.

    Args:
      record: what `bigmodel forecast seal` lists; with "date" in UTC, "run_id" and "law".

    Raises:
      UsageError: this run was forecast by this very law before, or the folder can't be written.
    """
    chain = load(folder, record["date"])
    same = [(path, old) for path, old in chain if old["run_id"] == record["run_id"]]
    if twice := next((p for p, old in same if old["law"]["sha256"] == record["law"]["sha256"]), None):
        raise UsageError(f"forecast: {twice} is of run {record['run_id']} by the same fit: it stands")
    number = len(chain) + 1
    linked = {"number": number, "previous": digest(chain[-1][0]) if chain else "", "revises": [p.name for p, _ in same]}
    path = folder / f"{number:04}.json"
    _write(path, {**linked, **record}, "x")
    return path


def _write(path: Path, record: dict[str, Any], mode: str) -> None:
    with files.writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, mode, encoding="utf-8") as file:
            file.write(json.dumps(files.sealed(record), indent=1, allow_nan=False) + "\n")


# -------------------------------------------------------------------------------------- scores


def score(path: Path, record: Mapping[str, Any], ended: Mapping[str, Any]) -> dict[str, Any]:
    """Writes and returns what came out of a forecast.

    Args:
      ended: "loss" (None: the run diverged), "started" (UTC; "": unknown), "curve" (step -> loss), and what else is to
        be noted of the run.

    Returns:
      A dict: `ended` without its curve; error (L / forecast - 1), inside (of the interval), z (`z_score`), and
      uncounted, why calibration leaves the forecast out ("": it doesn't); curve, a list of D, predicted, observed,
      error; curve_error, the mean |error| of it.
    """
    run, observed = record["prediction"]["run"], ended["loss"]
    found = {"forecast": digest(path), **{k: v for k, v in ended.items() if k != "curve"}}
    found["error"], found["inside"], found["z"] = None, False, None  # of a run that diverged
    if observed is not None:
        found["error"], found["inside"] = observed / run["value"] - 1, run["low"] <= observed <= run["high"]
        found["z"] = z_score(run, observed, record["prediction"]["level"])
    late = "started before it was sealed" if ended["started"] < record["date"] else ""
    found["uncounted"] = late if ended["started"] else "when the run started is not known"
    found["curve"] = [
        {"D": at["D"], "predicted": at["run"], "observed": loss, "error": loss / at["run"]["value"] - 1}
        for at in record["curve"]
        if (loss := ended["curve"].get(at["step"])) is not None
    ]
    errors = [abs(at["error"]) for at in found["curve"]]
    found["curve_error"] = float(np.mean(errors)) if errors else None
    _write(score_of(path), found, "w")
    return found


def z_score(run: Mapping[str, float], observed: float, level: float) -> float:
    """Where a loss falls in a forecast, as a standard normal quantile, of ln L: the half of the interval on that side
    of the estimate is as many standard deviations as a normal distribution's is."""
    end = run["high"] if observed > run["value"] else run["low"]
    deviation = abs(math.log(end / run["value"])) / stats.norm.ppf(0.5 + level / 2)
    return float(math.log(observed / run["value"]) / deviation)


def calibration(chain: Sequence[tuple[Path, dict[str, Any]]]) -> dict[str, Any]:
    """How forecasts came true, over all that are scored and counted.

    Returns:
      A dict: forecasts, scored, counted, inside, level (mean of the intervals' levels), coverage and its 95 % interval
      coverage_ci (Clopper & Pearson 1934, Biometrika 26), mean_abs_error, rows (one per forecast).
    """
    scores = [_read(score_of(path)) if score_of(path).exists() else None for path, _ in chain]
    rows = [{"file": path.name, **record, "score": came} for (path, record), came in zip(chain, scores, strict=True)]
    counted = [row for row in rows if row["score"] and not row["score"]["uncounted"]]
    inside = sum(row["score"]["inside"] for row in counted)
    errors = [abs(row["score"]["error"]) for row in counted if row["score"]["error"] is not None]
    out = {"forecasts": len(rows), "scored": len(rows) - scores.count(None), "counted": len(counted), "inside": inside}
    out |= {"level": None, "coverage": None, "coverage_ci": None, "mean_abs_error": None, "rows": rows}
    if counted:
        out["level"] = float(np.mean([row["prediction"]["level"] for row in counted]))
        out["coverage"] = inside / len(counted)
        out["coverage_ci"] = [float(end) for end in stats.binomtest(inside, len(counted)).proportion_ci(0.95)]
    if errors:
        out["mean_abs_error"] = float(np.mean(errors))
    return out


# ---------------------------------------------------------------------------------------- page


def summary(found: Mapping[str, Any]) -> str:
    """The calibration in one line."""
    head = f"{found['forecasts']} sealed, {found['scored']} scored, {found['counted']} counted"
    if not found["counted"]:
        return f"{head}: no coverage yet"
    low, high = (percent(end) for end in found["coverage_ci"])
    coverage = f"{percent(found['coverage'])} [{low}, {high}], for intervals of {percent(found['level'])}"
    return f"{head}: {found['inside']} inside ({coverage}), mean |error| {percent(found['mean_abs_error'])}"


def table(found: Mapping[str, Any]) -> pd.DataFrame:
    """One row per forecast, as text."""
    cells = []
    for row in found["rows"]:
        run, came = row["prediction"]["run"], row["score"] or {}
        came_out = ("inside" if came["inside"] else "OUTSIDE") if came else "not finished"
        cells.append(
            {
                "forecast": row["file"], "sealed": row["date"], "commit": f"{row['commit']}"[:8] + "+" * row["dirty"],
                "run": row["run_id"], "law": row["law"]["law"], "N": short(row["N"]), "D": short(row["D"]),
                "gap": f"{row['gap']:.3g}x", "predicted": f"{run['value']:.4f} [{run['low']:.4f}, {run['high']:.4f}]",
                "observed": f"{came['loss']:.4f}" if came.get("loss") else came.get("status", ""),
                "error": percent(came["error"], sign=True) if came.get("loss") else "",
                "z": f"{came['z']:+.2f}" if came.get("loss") else "", "came out": came_out,
                "curve, mean |error|": percent(came["curve_error"]) if came.get("curve_error") else "",
                "not counted": came.get("uncounted", ""),
            }
        )  # fmt: skip
    return pd.DataFrame(cells)


PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>$title</title>
<style>body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem; } img { max-width: 48rem; }
table { border-collapse: collapse; font-size: .85rem; } td, th { padding: .2rem .6rem; text-align: right; }</style>
<h1>$title</h1><p>$summary</p>$table<figure>$figure</figure><p><code>$command</code></p></html>
"""


def page(folder: Path, out: Path, now: str, command: str) -> dict[str, Any]:
    """Writes index.html, which needs no other file, and calibration.png, .svg and .pdf; returns the `calibration`."""
    from bigmodel.laws.figures import forecasts, transfer  # Matplotlib takes a second to import

    found = calibration(load(folder, now))
    if not found["rows"]:
        raise UsageError(f"forecast: no forecasts in {str(folder)!r}: `bigmodel forecast seal` makes the first")
    figure = "No forecast is scored yet."
    with files.writing(out):
        out.mkdir(parents=True, exist_ok=True)
        if any(row["score"] and row["score"]["loss"] for row in found["rows"]):
            drawn = transfer.write(forecasts.calibration, out / "calibration", found)
            data = base64.b64encode(drawn.read_bytes()).decode()
            caption = html.escape(forecasts.calibration.__doc__ or "")
            figure = f'<img src="data:image/png;base64,{data}" alt="calibration"><figcaption>{caption}</figcaption>'
        text = Template(PAGE).substitute(
            title=f"Forecasts of {html.escape(folder.resolve().name)}",
            summary=html.escape(summary(found)),
            table=table(found).to_html(index=False, border=0),
            figure=figure,
            command=html.escape(command),
        )
        (out / "index.html").write_text(text, encoding="utf-8")
    return found
