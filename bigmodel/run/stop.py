"""Signals that ask a run to save and end."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from typing import Any

import jax
from jax.experimental import multihost_utils

from bigmodel import errors
from bigmodel.run import processes


class Stop:
    """SIGTERM and SIGINT ask the loop to save and leave; the same one again ends the process at once, with code 75.

    Not outside the main thread. Where several processes train together they have to stop at the same step:
    there JAX's preemption service hears of SIGTERM, and agrees on one.
    """

    def __init__(self) -> None:
        self.asked = False
        self.alone = jax.process_count() == 1
        self.main = threading.current_thread() is threading.main_thread() and self.alone

    def __enter__(self) -> Stop:
        if self.main:
            self.old = {s: signal.signal(s, self._ask) for s in (signal.SIGTERM, signal.SIGINT)}
            # Python's handlers run once the main thread is back from a step, maybe minutes later: a thread answers.
            heard, self.told = os.pipe()
            os.set_blocking(self.told, False)
            self.old_told = signal.set_wakeup_fd(self.told, warn_on_full_buffer=False)
            threading.Thread(target=self._answer, args=(heard,), daemon=True).start()
        return self

    def _ask(self, *_: Any) -> None:
        self.asked = True

    def _answer(self, heard: int) -> None:
        first: dict[int, float] = {}  # signal -> when it came first
        start = "\r\x1b[K" if sys.stderr.isatty() else ""  # over the progress line
        while number := os.read(heard, 1):
            signum, now = number[0], time.monotonic()
            if signum in self.old and signum not in first:
                if not first:
                    print(f"{start}bigmodel: saving after this step; again to quit now", file=sys.stderr, flush=True)
                first[signum] = now
            elif signum in self.old and now - first[signum] > 0.5:  # sooner: one Ctrl-C, passed on by a parent as well
                print(f"{start}bigmodel: not saved; the same command continues from the last save", file=sys.stderr)
                processes.leave(errors.EXIT_RETRY)
        os.close(heard)

    def at(self, step: int) -> bool:
        """Whether to stop after `step`. Asked once a step, by every process."""
        return self.asked if self.alone else multihost_utils.reached_preemption_sync_point(step)

    def __exit__(self, *_: Any) -> None:
        if self.main:
            for s, handler in self.old.items():
                signal.signal(s, handler)
            signal.set_wakeup_fd(self.old_told)
            os.close(self.told)
