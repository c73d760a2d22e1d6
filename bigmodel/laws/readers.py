"""Tables as their authors left them: a file of runs -> named columns of raw cells -> numbers.

No ambiguity is resolved silently: a file that can be read in two ways, or a cell that can mean two numbers, is an error
that names it. Rows are numbered from 1, without the header.
"""

from __future__ import annotations

import ast
import bz2
import csv
import gzip
import io
import json
import lzma
import re
import zlib
from collections.abc import Iterable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from bigmodel.errors import UsageError, nearest

SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".parquet")
PACKED = {b"\x1f\x8b": gzip.decompress, b"BZh": bz2.decompress, b"\xfd7zXZ\x00": lzma.decompress}
PACKED_SUFFIXES = (".gz", ".bz2", ".xz")
DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
# Values of W&B's `State` (docs.wandb.ai, "Run states").
WANDB_STATES = {"finished", "crashed", "failed", "killed", "running", "pending", "preempting", "preempted"}
SUMMARIES = ("summary", "summaryMetrics", "summary_metrics")


class Table(NamedTuple):
    """Raw cells: text from .csv and .tsv, else whatever the file holds; index: row numbers, from 1."""

    cells: pd.DataFrame
    duplicates: frozenset[str]  # names that several columns share: the first of them is in `cells`
    state: str  # the column with the state of W&B's runs, or ""


def read(path: Path) -> Table:
    """Reads .csv, .tsv, .json, .jsonl or .parquet, each plain or packed as .gz, .bz2 or .xz.

    Exports of W&B have `config` and `summary` objects, which become columns: a key of the summary under its name, one
    of the config as `config.model.width`.

    Raises:
      UsageError: no such file, another format, or a place in it that can't be read.
    """
    name = repr(str(path))
    if not path.is_file():
        siblings = [str(p) for p in path.parent.glob("*")] if path.parent.is_dir() else []
        raise UsageError(f"no file or directory {name}{nearest(str(path), siblings)}")
    suffix = Path(path.stem).suffix if path.suffix in PACKED_SUFFIXES else path.suffix
    if suffix not in SUFFIXES:
        raise UsageError(f"{name}: can't read {suffix or 'a file without a suffix'}; use {', '.join(SUFFIXES)}")
    try:
        data = path.read_bytes()
    except OSError as e:
        raise UsageError(f"can't read {name}: {e.strerror}") from e
    for magic, unpack in PACKED.items():
        if data.startswith(magic):
            try:
                data = unpack(data)
            except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as e:
                raise UsageError(f"can't read {name}: its compression is damaged ({e})") from e
    if suffix == ".parquet" or data.startswith(b"PAR1"):
        cells = _parquet(data, name)
    elif suffix in (".json", ".jsonl"):
        cells = _from_records(_records(_text(data, name), name))
    else:
        cells = _delimited(_text(data, name), "\t" if suffix == ".tsv" else ",", name)
    repeated = cells.columns.duplicated()
    duplicates = frozenset(cells.columns[repeated])
    cells = cells.loc[:, ~repeated]
    if any(_is_nested(cells[column]) for column in cells.columns):
        cells = _from_records(cells.to_dict("records")).set_axis(cells.index)
    if cells.empty:
        raise UsageError(f"{name} has no rows")
    return Table(cells, duplicates, _state(cells))


def _text(data: bytes, name: str) -> str:
    if data.startswith(b"PK\x03\x04"):
        raise UsageError(f"can't read {name}: it is an Excel or zip file; save the table as .csv")
    codec = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = data.decode(codec)
    except UnicodeDecodeError as e:
        byte = f"byte {e.start} is 0x{data[e.start]:02x}"
        raise UsageError(f"can't read {name}: it isn't {codec.removesuffix('-sig').upper()} text ({byte})") from e
    if not text.strip():
        raise UsageError(f"can't read {name}: it is empty")
    if "\0" in text:
        raise UsageError(f"can't read {name}: it isn't text in UTF-8 (byte {text.index(chr(0))} is 0)")
    return text


def _delimited(text: str, usual: str, name: str) -> pd.DataFrame:
    """Cells of a CSV text. pandas.read_csv would fill short rows with NaN and take long ones for an index."""
    first = next(line for line in io.StringIO(text, newline="") if line.strip()).rstrip("\r\n")
    try:
        delimiter = max((usual, *DELIMITERS), key=lambda d: len(next(csv.reader([first], delimiter=d))))
    except csv.Error as e:
        raise UsageError(f"can't read {name}: its first line isn't names of columns: {e}") from e
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=True)
    rows: dict[int, tuple[str, ...]] = {}
    try:
        header = next(([cell.strip() for cell in row] for row in reader if any(row)), [])
        while header and not header[-1]:  # a comma at the end of every line
            header.pop()
        width = len(header)
        if all(_is_number(cell) for cell in header):
            raise UsageError(f"{name} has no header: its first line is {first.strip()[:80]!r}; name its columns there")
        for number, row in enumerate(reader, start=1):
            if not any(row):  # a blank line, or Excel's line of commas
                continue
            if len(row) != width and (len(row) < width or any(row[width:])):  # Excel ends lines with empty cells
                why = f" (separated by {DELIMITERS[delimiter]})"
                if delimiter == "," and len(row) > width:
                    why += "; a number with a comma needs quotes"
                raise UsageError(f"can't read {name}: row {number} has {len(row)} cells, the header {width}{why}")
            rows[number] = tuple(row[:width])  # tuples of text, unlike lists, cost the garbage collector nothing
    except csv.Error as e:
        raise UsageError(f"can't read {name}: line {reader.line_num}: {e}") from e
    cells = pd.DataFrame(list(rows.values()), index=list(rows), columns=header, dtype=object)
    return cells.loc[:, cells.columns != ""]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _parquet(data: bytes, name: str) -> pd.DataFrame:
    try:
        cells = pd.read_parquet(io.BytesIO(data))
    except (OSError, ValueError, ImportError) as e:
        line = (str(e).splitlines() or [""])[0]
        raise UsageError(f"can't read {name}: {type(e).__name__}: {line}") from e
    # pandas writes an index beside the columns: one with a name holds a column of the table.
    named = [i for i, level in enumerate(cells.index.names) if level is not None and level not in cells.columns]
    cells = cells.reset_index(level=named).reset_index(drop=True) if named else cells
    cells.columns = [str(column).strip() for column in cells.columns]
    # Categories, and pandas' and Arrow's own kinds of text, become Python's objects.
    cells = cells.astype({c: object for c in cells if not pd.api.types.is_numeric_dtype(cells[c])})
    return cells.set_axis(range(1, len(cells) + 1))


def _records(text: str, name: str) -> list[Mapping[str, Any]]:
    """Runs of a JSON text: a list, a line each, columns of rows, an object around the list, or one run."""
    try:
        value = json.loads(text)
    except RecursionError as e:
        raise UsageError(f"can't read {name}: its JSON is nested too deeply") from e
    except ValueError as whole:
        # JSON's strings may hold U+2028 or U+0085, at which str.splitlines would cut.
        lines = [(i, line) for i, line in enumerate(re.split("\r\n|\r|\n", text), start=1) if line.strip()]
        if len(lines) == 1 or not lines[0][1].rstrip().endswith("}"):
            raise UsageError(f"can't read {name}: it isn't JSON: {whole}") from whole
        value = []
        for i, line in lines:
            try:
                value.append(json.loads(line))
            except (ValueError, RecursionError) as e:
                raise UsageError(f"can't read {name}: line {i} isn't JSON: {e}") from e
    if isinstance(value, dict) and value:
        value = _rows_of(value, name)
    if not isinstance(value, list):
        raise UsageError(f"can't read {name}: expected a list of runs, found {type(value).__name__}")
    for i, one in enumerate(value, start=1):
        if not isinstance(one, dict):
            raise UsageError(f"can't read {name}: row {i} isn't an object with names but {json.dumps(one)[:60]}")
        try:
            json.dumps(one, ensure_ascii=False).encode()
        except UnicodeEncodeError as e:  # JSON can name half of a surrogate pair; no text has one
            raise UsageError(f"can't read {name}: row {i} has {e.object[e.start]!r}, which is no character") from e
    return value


def _rows_of(value: dict[str, Any], name: str) -> Any:
    """The list of runs in a JSON object; [value] where the object is one run itself."""
    inner = list(value.values())
    if len(inner) == 1 and isinstance(inner[0], list):  # {"runs": [...]}
        return inner[0]
    if value.keys() == {"columns", "index", "data"}:  # pandas' to_json(orient="split")
        return [dict(zip(value["columns"], row, strict=True)) for row in value["data"]]
    if value.keys() == {"schema", "data"}:  # and of orient="table"
        return value["data"]
    if all(isinstance(v, dict) and all(k.isdigit() for k in v) for v in inner):  # and without
        rows = dict.fromkeys(row for v in inner for row in v)
        return [{c: v[row] for c, v in value.items() if row in v} for row in rows]
    if all(isinstance(v, dict) for v in inner) and not {"config", *SUMMARIES} & value.keys():
        return [{"run_id": run, **one} for run, one in value.items()]
    if all(isinstance(v, list) for v in inner):
        if len({len(v) for v in inner}) > 1:
            lengths = ", ".join(f"{c!r} {len(v)}" for c, v in value.items())
            raise UsageError(f"can't read {name}: its columns have different lengths: {lengths[:200]}")
        return [dict(zip(value, row, strict=True)) for row in zip(*inner, strict=True)]
    return [value]


# ----------------------------------------------------------------------------- nested, and W&B


def _is_nested(column: pd.Series) -> bool:
    """Objects in cells; as text only where W&B's recipe writes them: DataFrame({"summary", "config"}).to_csv()."""
    if column.dtype != object:
        return False
    if column.name == "config" or column.name in SUMMARIES:
        return any(isinstance(_object(cell), dict) for cell in column)
    return dict in set(map(type, column))


def _from_records(records: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    flat = [_flatten(record) for record in records]
    names = dict.fromkeys(name for row in flat for name in row)
    columns = {name: pd.Series([row.get(name) for row in flat], dtype=object) for name in names}
    return pd.DataFrame(columns).set_axis(range(1, len(flat) + 1))


def _flatten(record: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted names. A run of W&B: its summary's keys by their names, unless the run itself has such a field."""
    out: dict[str, Any] = {}
    summary: dict[str, Any] = {}
    for key, value in record.items():
        name = str(key).strip()
        value = _object(value) if name == "config" or name in SUMMARIES else value
        if not isinstance(value, dict):
            out[name] = value
        elif name in SUMMARIES:
            _dotted(value, "", summary)
        else:
            _dotted(value, f"{name}.", out)
    return out | {f"summary.{k}" if k in out else k: v for k, v in summary.items()}


def _dotted(tree: Mapping[str, Any], prefix: str, out: dict[str, Any]) -> None:
    for key, value in tree.items():
        if str(key).startswith("_wandb"):
            continue
        if isinstance(value, dict) and "value" in value and value.keys() <= {"value", "desc"}:  # W&B's config.yaml
            value = value["value"]
        if isinstance(value, dict):
            _dotted(value, f"{prefix}{key}.", out)
        else:
            out[f"{prefix}{str(key).strip()}"] = value


def _object(value: Any) -> Any:
    """An object that was written as text, by JSON or by Python."""
    if not (isinstance(value, str) and value.strip().startswith("{")):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        try:  # Python's text of a dict has nan and inf, which are no literals
            return ast.literal_eval(re.sub(r"\binf\b", "1e999", re.sub(r"\bnan\b", "None", value)))
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            return value


def _state(cells: pd.DataFrame) -> str:
    """The column of W&B's run states, if every cell of it is one."""
    for name in ("State", "state"):
        found = {str(v).strip() for v in cells[name].dropna()} - {""} if name in cells else set()
        if found and found <= WANDB_STATES:
            return name
    return ""


# ----------------------------------------------------------------------------- cells as numbers

EMPTY = {"", "-", "–", "—", "na", "n/a", "#n/a", "nan", "null", "none"}
UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12}
PLAIN = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:[ed][+-]?\d+)?)\s*([kmbgt]?)", re.IGNORECASE)  # 2e9, 1.5D+09, 1.3 B
SPACED = re.compile(r"[+-]?\d{1,3}(?:[ \u00a0\u202f'’]\d{3})+(?:\.\d+)?")  # 1 000 000
COMMAS = {
    "thousands": r"[+-]?\d{1,3}(?:(?:,\d{3}){2,}(?:\.\d*)?|(?:,\d{3})+\.\d*)\s*[kmbgt]?",
    "either": r"[+-]?[1-9]\d{0,2},\d{3}\s*[kmbgt]?",  # 3,141
    "decimal": r"[+-]?\d*,\d+(?:e[+-]?\d+)?\s*[kmbgt]?",  # 3,14
}
SMALL = 1e5  # beside cells like 1.3B, a smaller number without a unit may be one of millions


class Numbers(NamedTuple):
    """Cells as numbers: nan where a cell is empty, or isn't a number; then `bad` is the first such place (from 0)."""

    values: np.ndarray  # (n,) float64
    bad: int = -1
    why: str = ""  # of `bad`: what is wrong with it
    note: str = ""  # how the column was read, where that is worth saying


def numbers(column: pd.Series) -> Numbers:
    """A column's cells as numbers, units (1.3B, 350M) and thousands separators included."""
    if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column):
        return Numbers(column.to_numpy(dtype=np.float64, na_value=np.nan))
    cells = column.tolist()
    if set(map(type, cells)) <= {str, float, int}:
        try:
            return Numbers(np.array(list(map(float, cells)), dtype=np.float64))
        except (ValueError, OverflowError):
            pass
    texts = list(dict.fromkeys(cell for cell in cells if isinstance(cell, str)))
    commas = {_comma(text.strip()): text for text in reversed(texts) if "," in text}  # the first cell of each kind
    unit = next((text for text in texts if _unit(text)), "")
    values = np.full(len(cells), np.nan)
    bad, why = -1, ""
    for i, cell in enumerate(cells):
        try:
            values[i] = _number(cell, commas, unit)
        except ValueError as e:
            if bad < 0:
                bad, why = i, str(e)
    note = "the commas are read as decimal points" if "decimal" in commas and bad < 0 else ""
    return Numbers(values, bad, why, note)


def _comma(text: str) -> str:
    return next((kind for kind, form in COMMAS.items() if re.fullmatch(form, text, re.IGNORECASE)), "neither")


def _unit(text: str) -> str:
    match = PLAIN.fullmatch(text.strip().replace(",", ""))
    return match[2] if match else ""


def _number(cell: Any, commas: Mapping[str, str], unit: str) -> float:
    """The number of a cell; a ValueError says what is wrong with it.

    Args:
      commas: kind of comma -> a cell of this column that has it.
      unit: a cell of this column that has a unit, or "".
    """
    if cell is None or cell is pd.NA:
        return np.nan
    if isinstance(cell, float | int | np.number | Decimal) and not isinstance(cell, bool):
        try:
            return float(cell)
        except OverflowError:
            raise ValueError("too large") from None
    if not isinstance(cell, str):
        raise ValueError("not a number")
    text = cell.strip()
    if text.lower() in EMPTY:
        return np.nan
    if text.endswith("%"):
        raise ValueError("a percentage; write the number itself")
    if "," in text:
        kind = _comma(text)
        if kind == "either" and "thousands" not in commas and "decimal" not in commas:
            raise ValueError(f"{text.replace(',', '')} or {text.replace(',', '.')}; write it without the comma")
        if kind == "neither":
            raise ValueError("not a number")
        if {"thousands", "decimal"} <= commas.keys():
            both = f"{commas['thousands']!r} and {commas['decimal']!r}"
            raise ValueError(f"and this column has commas both at thousands and at decimals ({both})")
        text = text.replace(",", "" if "thousands" in commas else ".")
    if SPACED.fullmatch(text):
        text = re.sub(r"[^\d.+-]", "", text)
    match = PLAIN.fullmatch(text)
    if not match:
        if _is_number(text):  # inf
            return float(text)
        raise ValueError("not a number")
    value = float(re.sub("[dD]", "e", match[1])) * UNITS[match[2].lower()]
    if unit and not match[2] and 0 < abs(value) < SMALL:
        raise ValueError(f"without a unit, beside {unit!r}: write all with one, or none")
    return value
