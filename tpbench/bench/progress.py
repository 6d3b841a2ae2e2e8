"""What the user sees while jobs run."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tpbench.bench.jobs import Job


class Progress:
    """Progress on standard error: one line that changes on a terminal, one line per finished job elsewhere."""

    def __init__(self) -> None:
        self.total = 0
        self.done = 0
        self.began = time.monotonic()
        self.terminal = sys.stderr.isatty()
        self.now: dict[str, str] = {}
        self.ahead = Ahead()

    def start(self, total: int, done: int, jobs: Sequence[Job]) -> None:
        """Begin to count: `done` of `total` cells were measured before, and these jobs are to run."""
        self.total = total
        self.done = done
        self.ahead = Ahead(jobs)
        if done:
            self.say(f"{done} of {total} cells have been measured before and are kept; --fresh measures them again")

    def update(self, name: str, text: str = "", share: float | None = None) -> None:
        """Show where a job stands: a text (empty: unchanged) and the share of its work that is done, if known."""
        self.now[name] = text or self.now.get(name, "")
        first = not self.ahead.speeds
        if share is not None:
            self.ahead.note(name, share, time.monotonic())
        if first and self.ahead.speeds:
            self.say(f"about {spell(self.ahead.seconds())} of training ahead, by the first steps")
        if self.terminal:
            running = " | ".join(f"{job}: {state}" for job, state in self.now.items())
            print(
                f"\r\033[K[{self.done}/{self.total}] {self.clock()} {running}"[:160],
                end="",
                file=sys.stderr,
                flush=True,
            )

    def finish(self, name: str, counts: bool) -> None:
        """Show that a job is done. Jobs that train bases or find budgets do not count as cells."""
        last = self.now.pop(name, "")
        self.done += counts
        self.ahead.drop(name)
        self.say(f"[{self.done}/{self.total}] {self.clock()} {name}{': ' + last if last else ''}")

    def say(self, text: str) -> None:
        print(("\r\033[K" if self.terminal else "") + text, file=sys.stderr, flush=True)

    def clock(self) -> str:
        left = f" (training left: about {spell(self.ahead.seconds())})" if self.ahead.speeds and self.ahead.work else ""
        return spell(time.monotonic() - self.began) + left


class Ahead:
    """Estimates the time of the training still to do from the speed of the running jobs; other work is left out."""

    def __init__(self, jobs: Sequence[Job] = ()):
        self.work = {job.name: job.work for job in jobs if job.work}
        self.begun: dict[str, tuple[float, float]] = {}  # the first share that a job reported, and when
        self.shares: dict[str, float] = {}
        self.speeds: dict[str, float] = {}  # work per second; those of the last jobs where none is running

    def note(self, name: str, share: float, now: float) -> None:
        first, when = self.begun.setdefault(name, (share, now))
        self.shares[name] = share
        if share > first and now > when:
            self.speeds = {job: speed for job, speed in self.speeds.items() if job in self.shares}
            self.speeds[name] = (share - first) * self.work.get(name, 0.0) / (now - when)

    def drop(self, name: str) -> None:
        """A job is done."""
        self.work.pop(name, None)
        self.shares.pop(name, None)

    def seconds(self) -> float:
        """Seconds of training still to do; 0 while no speed is known."""
        left = sum(work * (1 - self.shares.get(name, 0.0)) for name, work in self.work.items())
        speed = sum(self.speeds.values())
        return left / speed if speed else 0.0


def spell(seconds: float) -> str:
    """A duration as on a clock: "2:05" or "1:02:05"."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
