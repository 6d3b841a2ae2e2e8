"""What the user sees while jobs run."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from tpbench.bench.jobs import Job


class Tell(Protocol):
    """How a job says where it is."""

    def __call__(self, text: str, share: float | None = None) -> None:
        """share: of its work done, where it knows; an empty text leaves the last one."""


class Progress:
    """Progress on standard error: one line that changes on a terminal, one line per finished job elsewhere."""

    def __init__(self) -> None:
        self.total = self.done = 0
        self.began = time.monotonic()
        self.terminal = sys.stderr.isatty()
        self.now: dict[str, str] = {}
        self.ahead = Ahead()

    def start(self, total: int, done: int, jobs: Sequence[Job]) -> None:
        self.total, self.done, self.ahead = total, done, Ahead(jobs)
        if done:
            self.say(f"{done} of {total} cells have been measured before and are kept; --fresh measures them again")

    def tell(self, name: str, text: str, share: float | None = None) -> None:
        """A job says where it is."""
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
        """A job is done; bases are jobs too but no cells."""
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
    """The training that is ahead, by the speed of the jobs that are at it. What comes besides it is not foreseen."""

    def __init__(self, jobs: Sequence[Job] = ()):
        self.work = {job.name: job.work for job in jobs if job.work}
        self.begun: dict[str, tuple[float, float]] = {}  # the first share of a job that was told, and when
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
        left = sum(work * (1 - self.shares.get(name, 0.0)) for name, work in self.work.items())
        return left / sum(self.speeds.values()) if sum(self.speeds.values()) else 0.0


def spell(seconds: float) -> str:
    """ "2:05", "1:02:05" """
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
