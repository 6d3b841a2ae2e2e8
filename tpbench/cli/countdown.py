"""Progress of a verb that works for minutes: what it does, how much is done, and the time left, on standard error."""

from __future__ import annotations

import sys
import time

from tpbench.bench.progress import clock_time

EVERY = 15.0  # seconds between two lines where standard error is no terminal


class Countdown:
    """Called with a stage, the share of it that is done and the seconds left in it; shows them."""

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
        print(
            f"\r\033[K{text}" if self.terminal else text, end="" if self.terminal else "\n", file=sys.stderr, flush=True
        )

    def close(self) -> None:
        """Leave the line free."""
        if self.terminal and self.stage:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
