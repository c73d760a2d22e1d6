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
            row = _row(path)
        except UsageError as e:
            return str(e)
        if row["number"] != k:
            return f"{path.name} was moved: it was sealed as number {row['number']}"
        if row["previous"] != previous:
            return f"{path.name} was sealed after another file than this {k - 1:04}.json, which was changed or replaced"
        if not before <= str(row["date"]) <= now:
            return f"{path.name} is dated {row['date']}, which is not between {before or 'the start'} and {now}"
        previous, before = digest(path), row["date"]
        if row["score"] and row["score"]["forecast"] != previous:
            return f"{score_of(path).name} is of another {path.name}"
    if last and last != previous:
        return f"the newest forecast has SHA-256 {previous or 'of none'}, not {last}: changed, or some removed after it"
    return ""


def load(folder: Path, now: str) -> list[dict[str, Any]]:
    """The forecasts of a folder, each with its "file" and its "score", or None. UsageError: the chain is broken."""
    if broken := verify(folder, now):
        raise UsageError(f"forecast: the chain of {str(folder)!r} is broken: {broken}")
    return [_row(path) for path in paths(folder)]


def _row(path: Path) -> dict[str, Any]:
    score = _read(score_of(path), {"forecast"}) if score_of(path).exists() else None
    return {"file": path.name, **_read(path, {"number", "previous", "date", "run_id", "law"}), "score": score}


def _read(path: Path, keys: set[str]) -> dict[str, Any]:
    try:
        record = json.loads(files.read_text(path, "forecast"))
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict) or not keys | {"crc32"} <= record.keys():
        raise UsageError(f"{str(path)!r} is no forecast that `bigmodel forecast` wrote")
    files.check_whole(record, path)
    return record


def _write(path: Path, record: dict[str, Any], mode: str) -> None:
    with files.writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, mode, encoding="utf-8") as file:
            file.write(json.dumps(files.sealed(record), indent=1, allow_nan=False) + "\n")


def seal(folder: Path, record: Mapping[str, Any]) -> Path:
    """Writes the next forecast of a folder, and returns its path.

    `record` is what `bigmodel forecast seal` lists: "date" in UTC, "run_id", "law" and more. UsageError: the chain is
    broken, this run was forecast by this very law before, or the folder can't be written.
    """
    rows = load(folder, record["date"])
    same = [row for row in rows if row["run_id"] == record["run_id"]]
    for row in same:
        if row["law"]["sha256"] == record["law"]["sha256"]:
            raise UsageError(f"forecast: {folder / row['file']} is of run {row['run_id']} by the same fit: it stands")
    number, revises = len(rows) + 1, [row["file"] for row in same]
    previous = digest(folder / rows[-1]["file"]) if rows else ""
    path = folder / f"{number:04}.json"
    _write(path, {"number": number, "previous": previous, "revises": revises, **record}, "x")
    return path


# -------------------------------------------------------------------------------------- scores


def score(path: Path, row: Mapping[str, Any], ended: Mapping[str, Any], curve: Mapping[int, float]) -> None:
    """Writes what came out of a forecast: `ended`, and its error (L / forecast - 1), whether it is inside the interval,
    `z_score`, why `calibration` doesn't count it ("": it does), and the curve with its mean |error|.

    Args:
      row: the forecast, as `load` reads it.
      ended: "loss" (None: the run diverged), "started" (UTC; "": unknown), and what else is to be noted of the run.
      curve: the run's loss at each step that was evaluated.
    """
    run, loss, started = row["prediction"]["run"], ended["loss"], ended["started"]
    diverged, late = loss is None, started < row["date"]
    points = [
        {"D": at["D"], "predicted": at["run"], "observed": own, "error": own / at["run"]["value"] - 1}
        for at in row["curve"]
        if (own := curve.get(at["step"])) is not None
    ]
    came = {
        "forecast": digest(path),
        **ended,
        "error": None if diverged else loss / run["value"] - 1,
        "inside": not diverged and run["low"] <= loss <= run["high"],
        "z": None if diverged else z_score(run, loss, row["prediction"]["level"]),
        "uncounted": "when the run started is not known" if not started else "started before it was sealed" * late,
        "curve": points,
        "curve_error": _mean([abs(at["error"]) for at in points]),
    }
    _write(score_of(path), came, "w")


def z_score(run: Mapping[str, float], observed: float, level: float) -> float:
    """Where a loss falls in a forecast, as a standard normal quantile, of ln L: the half of the interval on that side
    of the estimate is as many standard deviations as a normal distribution's is."""
    end = run["high"] if observed > run["value"] else run["low"]
    deviation = abs(math.log(end / run["value"])) / stats.norm.ppf(0.5 + level / 2)
    return float(math.log(observed / run["value"]) / deviation)


def calibration(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """How the forecasts that `load` reads came true: how many are scored, counted and inside; the mean level of their
    intervals, the coverage and its 95 % interval (Clopper & Pearson 1934, Biometrika 26); the mean |error|."""
    counted = [row for row in rows if row["score"] and not row["score"]["uncounted"]]
    came = [row["score"] for row in counted]
    n, inside = len(came), sum(score["inside"] for score in came)
    return {
        "forecasts": len(rows),
        "scored": sum(row["score"] is not None for row in rows),
        "counted": n,
        "inside": inside,
        "level": _mean([row["prediction"]["level"] for row in counted]),
        "coverage": inside / n if n else None,
        "coverage_ci": list(map(float, stats.binomtest(inside, n).proportion_ci(0.95))) if n else None,
        "mean_abs_error": _mean([abs(score["error"]) for score in came if score["error"] is not None]),
        "rows": rows,
    }


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


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
        loss = came.get("loss")
        cells.append(
            {
                "forecast": row["file"], "sealed": row["date"], "commit": f"{row['commit']}"[:8] + "+" * row["dirty"],
                "run": row["run_id"], "law": row["law"]["law"], "N": short(row["N"]), "D": short(row["D"]),
                "gap": f"{row['gap']:.3g}x", "predicted": f"{run['value']:.4f} [{run['low']:.4f}, {run['high']:.4f}]",
                "observed": f"{loss:.4f}" if loss else came.get("status", ""),
                "error": percent(came["error"], sign=True) if loss else "", "z": f"{came['z']:+.2f}" if loss else "",
                "came out": ("inside" if came["inside"] else "OUTSIDE") if came else "not finished",
                "curve, mean |error|": percent(came["curve_error"]) if came.get("curve_error") else "",
                "not counted": came.get("uncounted", ""),
            }
        )  # fmt: skip
    return pd.DataFrame(cells)


STYLE = """<style>body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem; } img { max-width: 48rem; }
table { border-collapse: collapse; font-size: .85rem; } td, th { padding: .2rem .6rem; text-align: right; }</style>"""


def page(folder: Path, out: Path, now: str, command: str) -> dict[str, Any]:
    """Writes index.html, which needs no other file, and calibration.png, .svg and .pdf; returns the `calibration`."""
    from bigmodel.laws.figures import forecasts, transfer  # Matplotlib takes a second to import

    found = calibration(load(folder, now))
    if not found["rows"]:
        raise UsageError(f"forecast: no forecasts in {str(folder)!r}: `bigmodel forecast seal` makes the first")
    texts = (f"Forecasts of {folder.resolve().name}", summary(found), command, forecasts.calibration.__doc__ or "")
    title, said, command, caption = map(html.escape, texts)
    figure = "No forecast is scored yet."
    with files.writing(out):
        out.mkdir(parents=True, exist_ok=True)
        if any(row["score"] and row["score"]["loss"] for row in found["rows"]):
            drawn = transfer.write(forecasts.calibration, out / "calibration", found)
            data = base64.b64encode(drawn.read_bytes()).decode()
            figure = f'<img src="data:image/png;base64,{data}" alt="calibration"><figcaption>{caption}</figcaption>'
        head = f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{title}</title>\n{STYLE}\n'
        body = f"<h1>{title}</h1><p>{said}</p>{table(found).to_html(index=False, border=0)}<figure>{figure}</figure>"
        (out / "index.html").write_text(f"{head}{body}<p><code>{command}</code></p></html>\n", encoding="utf-8")
    return found
