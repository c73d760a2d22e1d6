"""The one live line of a run."""

from __future__ import annotations

import math
import sys
import time
from typing import Any

from bigmodel.words import duration, human


class Line:
    """One line, rewritten on a terminal. Elsewhere, a line every `every` seconds."""

    def __init__(self, name: str, steps: int, quiet: bool = False, every: float = 10.0):
        self.name, self.steps, self.quiet = name, steps, quiet
        self.terminal = sys.stderr.isatty()
        self.every = 0.5 if self.terminal else every
        self.shown = time.time()
        self.drawn = False

    def due(self) -> bool:
        return time.time() - self.shown >= self.every

    def show(self, step: int, loss: float, speed: dict[str, Any], rate: float) -> None:
        """`rate`: steps per second since the line was last shown."""
        due, self.shown = self.due() or (self.terminal and step == self.steps), time.time()
        if self.quiet or not due:
            return
        eta = duration((self.steps - step) / rate) if rate else "?"
        units = next((f"{human(v)} {k.split('_')[0]}/s" for k, v in speed.items() if k.endswith("_per_second")), "")
        value = f"{loss:.4f}" if math.isfinite(loss) else "-"
        text = f"{self.name}  step {step}/{self.steps}  loss {value}  {units}  MFU {speed['mfu']:.0%}  ETA {eta}"
        if self.terminal:
            sys.stderr.write(f"\r\x1b[K{text}")
            self.drawn = True
        else:
            sys.stderr.write(text + "\n")
        sys.stderr.flush()

    def say(self, text: str) -> None:
        """Prints a line that stays, above the progress line."""
        if not self.quiet:
            self.close()
            sys.stderr.write(text + "\n")
            sys.stderr.flush()

    def close(self) -> None:
        if self.drawn:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
