"""Numbers in words, for tables and progress lines."""

from __future__ import annotations

import math


def human(x: float, digits: int = 3) -> str:
    """1234567 -> '1.23M'"""
    if not math.isfinite(x):
        return str(x)
    for suffix, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(x) >= size and abs(x) < 1e15:
            return f"{x / size:.{digits}g}{suffix}"
    return f"{x:.{digits}g}"


def duration(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "?"
    whole = int(seconds)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{whole % 60:02d}s" if minutes else f"{seconds:.1f}s"
