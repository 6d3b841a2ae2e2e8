"""Jobs in one-thread processes side by side, and what the user sees meanwhile."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from tpbench.errors import CellFailed

_context: Any = None  # one worker process's own, made when it starts
_messages: Any = None


class Tell(Protocol):
    """How a job says where it is."""

    def __call__(self, text: str, share: float | None = None) -> None:
        """share: of its work done, where it knows; an empty text leaves the last one."""


@dataclass(frozen=True)
class Job:
    """function(context, argument, tell) under a name."""

    name: str
    function: Callable[[Any, Any, Tell], None]
    argument: Any
    needs: tuple[str, ...] = ()  # the names of the jobs that must be done before
    counts: bool = True  # whether it is one of the cells that the user waits for
    work: float = 0.0  # in a unit that jobs share, such as epochs


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


def side_by_side(jobs: Sequence[Job], workers: int, here: Any, make: Callable[[], Any], progress: Progress) -> None:
    """Run jobs in their order on `workers` processes, each as soon as the job that it needs is done.

    Each process has its own context, make(), which must pickle; with one worker that is this process, and `here` its
    context. The first error ends everything: jobs deal with what they expect themselves. A worker that dies without a
    word (killed, out of memory) is a CellFailed; what was finished is kept.
    """
    if workers <= 1 or not jobs:
        for job in jobs:
            job.function(here, job.argument, partial(progress.tell, job.name))
            progress.finish(job.name, job.counts)
        return
    # Forked, so that the many seconds of imports are paid once: safe here because this process has computed on one
    # thread only, has no GPU in use and starts its own threads later.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    messages = context.SimpleQueue()
    pool = ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(make, messages, os.getpid()))
    listener = threading.Thread(target=_listen, args=(messages, progress), daemon=True)
    try:
        waiting, running, done = list(jobs), set(), set()
        while waiting or running:
            ready = [job for job in waiting if done.issuperset(job.needs)]
            waiting = [job for job in waiting if job not in ready]
            running |= {pool.submit(_work, job) for job in ready}
            if not listener.is_alive():
                listener.start()
            ended, running = wait(running, return_when=FIRST_COMPLETED)
            for job in (future.result() for future in ended):
                done.add(job.name)
                progress.finish(job.name, job.counts)
    except BrokenProcessPool as error:
        raise CellFailed(
            "a worker process died (killed, or out of memory); finished cells are kept, the same command continues"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        if listener.is_alive():
            messages.put(None)
            listener.join(timeout=5)


def _begin(make: Callable[[], Any], messages: Any, parent: int) -> None:
    """Start of a worker process: one thread for computing, one to end with the parent."""
    global _context, _messages
    import torch

    torch.set_num_threads(1)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    _messages, _context = messages, make()


def _work(job: Job) -> Job:
    job.function(_context, job.argument, lambda text, share=None: _messages.put((job.name, text, share)))
    return job


def _end_with(parent: int) -> None:
    """A killed benchmark leaves no worker behind that would write into the next one's folder."""
    while os.getppid() == parent:
        time.sleep(0.25)
    os._exit(1)


def _listen(messages: Any, progress: Progress) -> None:
    while (message := messages.get()) is not None:
        progress.tell(*message)
