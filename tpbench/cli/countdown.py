"""Progress of a verb that works for minutes: what it does, how much is done, and the time left, on standard error."""

from __future__ import annotations

import sys
import time

from tpbench.bench.progress import clock_time

EVERY = 15.0  # seconds between two lines where standard error is no terminal


class Countdown:
    """A callable that shows a stage, the share of it that is done and the seconds left in it."""

    def __init__(self) -> None:
        self.terminal = sys.stderr.isatty()
        self.stage = ""
        self.shown = 0.0

    def __call__(self, stage: str, share: float, left: float) -> None:
        now = time.monotonic()
        new = stage != self.stage
        if not new and not self.terminal and now - self.shown < EVERY:
            return
        self.stage = stage
        self.shown = now
        text = f"{stage}: {share:4.0%}, about {clock_time(left)} left" if share else f"{stage} ..."
        if self.terminal:
            print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
        else:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Clear the line."""
        if self.terminal and self.stage:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
