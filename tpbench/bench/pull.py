"""The loop of a worker: take the first job that nobody has done or holds, do it, and look again.

All workers of a folder are alike, in however many commands and on however many hosts they run: each has the list of
all jobs, and the folder says what is left of it. The ranks of one torchrun are one worker: the first one chooses.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock, Timeout

from tpbench.bench.claim import Claim, Claims, Holder, Lost, key_of
from tpbench.errors import CellFailed
from tpbench.training import ranks
from tpbench.training.train import Update

SHORTEST = 0.1  # seconds between two looks for work, growing to
LONGEST = 2.0

chance = random.SystemRandom()  # not the generator that training seeds

WAIT = -1  # what a look finds where all that is left is in other hands
OVER = -2  # and where nothing is left


def never() -> bool:
    """No file shows that the job was done."""
    return False


@dataclass(frozen=True)
class Job:
    """A call function(context, argument, update) with a name, by which workers claim it."""

    name: str
    function: Callable[[Any, Any, Update], None]
    argument: Any
    needs: tuple[str, ...] = ()  # the names of the jobs that must be done first
    over: Callable[[], bool] = never  # whether the folder shows that it was done, by this worker or another
    counts: bool = True  # whether it is one of the cells that the user waits for
    alone: bool = False  # whether no other job may run on this host meanwhile
    once: bool = False  # whether a worker that finds it in other hands leaves it to them and does not wait
    work: float = 0.0  # in a unit that all jobs share, such as epochs


class Context(Protocol):
    """What jobs are done with, and what a worker must know of it."""

    claims: Claims
    writes: bool  # whether this process chooses jobs and writes results: the first of several ranks

    def check_time(self) -> None:
        """Raise OutOfTime after the time limit."""

    def same(self, number: int) -> int:
        """The first rank's number, on every rank."""


class Display(Protocol):
    """Where a worker shows what it does; see `tpbench.bench.progress.Progress`."""

    def update(self, name: str, text: str = "", share: float | None = None) -> None:
        """A job of this worker goes on."""

    def finish(self, name: str, counts: bool) -> None:
        """A job of this worker is done."""

    def gone(self, name: str, counts: bool) -> None:
        """A job was done by somebody else."""

    def elsewhere(self, holders: dict[str, str], waiting: bool) -> None:
        """Jobs are in the hands of other commands' workers, and this worker waits for them or not."""


def pull(jobs: Sequence[Job], context: Context, display: Display) -> set[str]:
    """Do jobs until none is left, whoever does them; the names of those that were left to other workers.

    The first error ends everything, since jobs handle the errors that they expect.
    """
    worker = Worker(jobs, context, display)
    try:
        while (job := worker.next()) is not None:
            worker.do(job)
    finally:
        worker.release()
    return worker.left_to_others


class Worker:
    """One worker: what it knows to be done, and the claim that it holds."""

    def __init__(self, jobs: Sequence[Job], context: Context, display: Display):
        self.jobs = jobs
        self.context = context
        self.display = display
        self.open = dict(enumerate(jobs))
        self.done: set[str] = set()
        self.left_to_others: set[str] = set()
        self.claim: Claim | None = None
        self.waiting: int | None = None  # the job, claimed already, that is to have the host for itself
        self.host = FileLock(Path(tempfile.gettempdir()) / "tpbench-alone.lock", mode=0o666)

    def next(self) -> Job | None:
        """Claim a job and return it; None when all are over. Wait while all that are left are in other hands."""
        pause = SHORTEST
        while True:
            number = self.context.same(self.look() if self.context.writes else WAIT)
            if number != WAIT:
                return None if number == OVER else self.jobs[number]
            self.context.check_time()
            time.sleep(pause * chance.uniform(0.5, 1.0))  # not in step with others who wait
            pause = min(LONGEST, 1.5 * pause)

    def look(self) -> int:
        """The number of a job that was claimed, WAIT or OVER."""
        living = self.context.claims.living()
        if self.waiting is not None:
            return self.waiting if self.undisturbed() else WAIT
        self.show(living, waiting=False)
        blocked = any(holder.here and holder.alone for holder in living.values())
        for number, job in list(self.open.items()):
            holder = living.get(key_of(job.name))
            if holder is not None:
                if job.once and self.context.claims.certain(holder):
                    self.left_to_others.add(job.name)
                    self.drop(number)
            elif not self.done.issuperset(job.needs):
                continue
            elif job.over():
                self.drop(number)
                self.display.gone(job.name, job.counts)
            elif not blocked and self.take(job):
                if not job.alone:
                    return number
                self.waiting = number
                self.display.update(job.name, "waiting until no other worker computes on this machine")
                return self.waiting if self.undisturbed() else WAIT
        self.show(living, waiting=bool(self.open))
        return WAIT if self.open else OVER

    def take(self, job: Job) -> bool:
        """Claim a job, unless another worker was faster or a job on this host wants to be alone."""
        claim = self.context.claims.take(job.name, job.alone)
        if claim is None:
            return False
        if job.over() or any(holder.here and holder.alone for holder in self.context.claims.others()):
            claim.release()
            return False
        self.claim = claim
        return True

    def undisturbed(self) -> bool:
        """Whether no other process works on this host, in this folder, or alone for another folder."""
        if any(holder.here for holder in self.context.claims.others()):
            return False
        try:
            self.host.acquire(blocking=False)
        except Timeout:
            return False
        return True

    def do(self, job: Job) -> None:
        """Do a job that was claimed. One that another worker took over is left to that worker."""
        try:
            job.function(self.context, job.argument, partial(self.update, job.name))
        except Lost as lost:
            if ranks.ranks() > 1:  # the others are still in the middle of it; torchrun ends them with this one
                raise CellFailed(str(lost)) from lost
            print(lost, file=sys.stderr)
        else:
            self.drop(self.jobs.index(job))
            if self.context.writes:
                self.display.finish(job.name, job.counts)
        self.release()

    def update(self, name: str, text: str = "", share: float | None = None) -> None:
        """Show how far the job is. Raises Lost where another worker has taken it over."""
        if self.claim is not None and self.claim.lost:
            raise Lost(f"{name} was taken over by another worker, which saw no sign of life of this one")
        if self.context.writes:
            self.display.update(name, text, share)

    def drop(self, number: int) -> None:
        """A job is done, whoever did it."""
        self.done.add(self.open.pop(number).name)

    def release(self) -> None:
        """Give the claim and the host back, if they are held."""
        if self.claim is not None:
            self.claim.release()
        self.claim = None
        self.waiting = None
        self.host.release()

    def show(self, living: dict[str, Holder], waiting: bool) -> None:
        """Show the jobs of workers of other commands."""
        names = {key_of(job.name): job.name for job in self.open.values()}
        others = {key: holder for key, holder in living.items() if not self.own(holder)}
        self.display.elsewhere({names[key]: str(holder) for key, holder in others.items() if key in names}, waiting)

    def own(self, holder: Holder) -> bool:
        """Whether a holder is a worker of this command."""
        return holder.here and holder.command == self.context.claims.command
