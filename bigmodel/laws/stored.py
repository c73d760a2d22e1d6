"""A report that is up to date is not made again.

`report.key` in a report's folder is a JSON object: "key", a SHA-256 of everything that the report depends on;
"files", the SHA-256 of each of its files; "text", the law as it was printed. Imports neither NumPy nor Matplotlib, so
that an unchanged report takes a fraction of a second.
"""

import hashlib
import importlib.metadata
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bigmodel.files import is_whole, sealed

NAME = "report.key"
SOURCES = ("*.py", "laws/**/*.py", "cli/report.py")  # the code that makes a report
PACKAGES = ("numpy", "scipy", "pandas", "matplotlib")
FILES = ("index.html", "fit.json", "rows.csv", "law.md", "tables/*.*", "figures/*.*", "figures/column/*.*")


def key(inputs: Iterable[Path], options: Mapping[str, Any]) -> str:
    """A SHA-256 of the input files, the options, the code of reports, and the versions of its packages."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    digest = hashlib.sha256(json.dumps([options, versions], sort_keys=True).encode())
    package = Path(__file__).parents[1]
    code = sorted(path for pattern in SOURCES for path in package.glob(pattern))
    for path in (*code, *sorted(inputs)):
        digest.update(os.fsencode(f"{path} {_digest(path)}\n"))
    return digest.hexdigest()


def text(folder: Path, wanted: str) -> str | None:
    """The law as it was printed; None if the report has another key, or if one of its files changed or is missing."""
    try:
        content = json.loads((folder / NAME).read_text(encoding="utf-8"))
        current = is_whole(content) and content["key"] == wanted and content["files"] == _files(folder)
        return content["text"] if current else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # no report yet, or a damaged file
        return None


def write(folder: Path, wanted: str, text: str) -> None:
    """Writes report.key for the report in `folder`, after all of its files."""
    content = sealed({"key": wanted, "files": _files(folder), "text": text})
    (folder / NAME).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _files(folder: Path) -> dict[str, str]:
    found = sorted(path for pattern in FILES for path in folder.glob(pattern))
    return {path.relative_to(folder).as_posix(): _digest(path) for path in found}


def _digest(path: Path) -> str:
    """The SHA-256 of a file; "" if it can't be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""
