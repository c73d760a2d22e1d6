"""Short texts for numbers, for tables and progress lines."""

import math


def human(x: float, digits: int = 3) -> str:
    """1234567 -> '1.23M'"""
    for suffix, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if size <= abs(x) < 1e15:
            return f"{x / size:.{digits}g}{suffix}"
    return f"{x:.{digits}g}"


def duration(seconds: float) -> str:
    """3725 -> '1h02m'; '?' if it isn't finite."""
    if not math.isfinite(seconds):
        return "?"
    minutes, whole = divmod(int(seconds), 60)
    hours, rest = divmod(minutes, 60)
    return f"{hours}h{rest:02d}m" if hours else f"{minutes}m{whole:02d}s" if minutes else f"{seconds:.1f}s"
