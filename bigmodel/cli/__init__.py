"""What each verb of the command does: one function a verb, which imports what it needs when it runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

LAWS = ("fit", "report", "plan", "paper")  # the others are runs'


def verb(name: str) -> Callable[[Any, Any], int]:
    """The function of a verb: (parsed arguments, config overrides) -> exit code."""
    if name == "compile":
        from bigmodel.cli import pods as part
    elif name in ("launch", "upload"):
        from bigmodel.cli import launching as part  # type: ignore[no-redef]
    elif name in LAWS:
        from bigmodel.cli import laws as part  # type: ignore[no-redef]
    elif name == "evaluate":
        from bigmodel.cli import evaluation as part  # type: ignore[no-redef]
    else:
        from bigmodel.cli import runs as part  # type: ignore[no-redef]
    return getattr(part, "launch_sweep" if name == "launch" else name)


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, default=str))


def print_table(head: list[str], rows: list[list[Any]]) -> None:
    """Aligned plain text: whole on a narrow terminal and in a pipe. Numbers to the right."""
    cells = [[str(c) for c in row] for row in rows]
    widths = [max(len(row[i]) for row in [head, *cells]) for i in range(len(head))]
    right = [all(c[i][:1].isdigit() for c in cells) and i > 1 for i in range(len(head))]
    for row in [head, *cells]:
        aligned = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)]
        print("  ".join(aligned).rstrip())
