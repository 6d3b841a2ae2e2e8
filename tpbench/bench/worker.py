"""A worker's loop: take the first job that is neither done nor claimed, do it, and look again.

All workers of a folder are equal, whatever their command or host: each has the list of all jobs, and the folder shows
which are left. The ranks of one torchrun are one worker, and the first rank chooses its jobs.
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
from typing import TYPE_CHECKING, Any, Protocol

from filelock import FileLock, Timeout

from tpbench.bench.claim import Claim, ClaimLost, Claims, Holder, key_of
from tpbench.errors import CellFailed
from tpbench.training import ranks
from tpbench.training.train import Update

if TYPE_CHECKING:
    import torch

SHORTEST = 0.1  # seconds between two looks for work; the pause grows up to LONGEST
LONGEST = 2.0

chance = random.SystemRandom()  # separate from the generators that training seeds

WAIT = -1  # instead of a job's number: other workers hold all remaining jobs
NOTHING_LEFT = -2  # instead of a job's number: all jobs are done


def never() -> bool:
    """Return False: no file shows that the job was done."""
    return False


@dataclass(frozen=True)
class Job:
    """A call of function(context, argument, update), claimed by its name."""

    name: str
    function: Callable[[Any, Any, Update], None]
    argument: Any
    needs: tuple[str, ...] = ()  # the names of the jobs that must be done first
    is_done: Callable[[], bool] = never  # whether the folder shows that any worker has done it
    counts: bool = True  # whether progress counts it as a cell
    alone: bool = False  # whether no other job may run on this host at the same time
    once: bool = False  # whether a worker that finds it claimed leaves it to the holder, without waiting
    work: float = 0.0  # in a unit that all jobs share, such as epochs of the unreduced model


class Context(Protocol):
    """What a worker needs of the context that jobs are called with."""

    claims: Claims
    device: torch.device
    writes: bool  # whether this process chooses jobs and writes results: the first of several ranks

    def check_time(self) -> None:
        """Raise OutOfTime after the time limit."""

    def same_on_all_ranks(self, number: int) -> int:
        """The first rank's number, on every rank."""


class Display(Protocol):
    """Where a worker shows its progress; see `tpbench.bench.progress.Progress`."""

    def update(self, name: str, text: str = "", share: float | None = None) -> None:
        """A job of this worker makes progress."""

    def finish(self, name: str, counts: bool) -> None:
        """A job of this worker is done."""

    def done_elsewhere(self, name: str, counts: bool) -> None:
        """Another worker has done a job."""

    def show_other_runs(self, holders: dict[str, str], waiting: bool) -> None:
        """Other commands' workers hold these jobs; waiting: whether this worker waits for them."""


def pull(jobs: Sequence[Job], context: Context, display: Display) -> set[str]:
    """Do jobs until none is left, and return the names of those that were left to other workers.

    Any error ends the loop, since jobs handle the errors that they expect.
    """
    worker = Worker(jobs, context, display)
    try:
        while (job := worker.next_job()) is not None:
            worker.do(job)
    finally:
        worker.release()
    return worker.left_to_others


class Worker:
    """One worker: the jobs that it knows to be done, and the claim that it holds."""

    def __init__(self, jobs: Sequence[Job], context: Context, display: Display):
        self.jobs = jobs
        self.context = context
        self.display = display
        self.open = dict(enumerate(jobs))
        self.done: set[str] = set()
        self.left_to_others: set[str] = set()
        self.claim: Claim | None = None
        self.waiting: int | None = None  # the claimed job that waits to be alone on the host
        self.host = FileLock(Path(tempfile.gettempdir()) / "tpbench-alone.lock", mode=0o666)

    def next_job(self) -> Job | None:
        """Claim a job and return it; None when all are done. Wait while other workers hold all that are left."""
        pause = SHORTEST
        while True:
            number = self.context.same_on_all_ranks(self.claim_next() if self.context.writes else WAIT)
            if number != WAIT:
                return None if number == NOTHING_LEFT else self.jobs[number]
            self.context.check_time()
            time.sleep(pause * chance.uniform(0.5, 1.0))  # so that waiting workers do not look at the same time
            pause = min(LONGEST, 1.5 * pause)

    def claim_next(self) -> int:
        """Claim a job and return its number, or WAIT or NOTHING_LEFT."""
        holders = self.context.claims.holders()
        if self.waiting is not None:
            return self.waiting if self.undisturbed() else WAIT
        self.show(holders, waiting=False)
        blocked = any(holder.on_this_host and holder.alone for holder in holders.values())
        for number, job in list(self.open.items()):
            holder = holders.get(key_of(job.name))
            if holder is not None:
                if job.once and self.context.claims.is_certain(holder):
                    self.left_to_others.add(job.name)
                    self.mark_done(number)
            elif not self.done.issuperset(job.needs):
                continue
            elif job.is_done():
                self.mark_done(number)
                self.display.done_elsewhere(job.name, job.counts)
            elif not blocked and self.take(job):
                if not job.alone:
                    return number
                self.waiting = number
                self.display.update(job.name, "waiting until no other worker computes on this machine")
                return self.waiting if self.undisturbed() else WAIT
        self.show(holders, waiting=bool(self.open))
        return WAIT if self.open else NOTHING_LEFT

    def take(self, job: Job) -> bool:
        """Claim a job, unless another worker was faster or a job must run alone on this host."""
        claim = self.context.claims.take(job.name, job.alone)
        if claim is None:
            return False
        if job.is_done() or any(holder.on_this_host and holder.alone for holder in self.context.claims.others()):
            claim.release()
            return False
        self.claim = claim
        return True

    def undisturbed(self) -> bool:
        """Whether no other process works on this host in this folder, or alone in another folder."""
        if any(holder.on_this_host for holder in self.context.claims.others()):
            return False
        try:
            self.host.acquire(blocking=False)
        except Timeout:
            return False
        return True

    def do(self, job: Job) -> None:
        """Do a claimed job. A job that another worker took over is left to that worker."""
        try:
            job.function(self.context, job.argument, partial(self.update, job.name))
        except ClaimLost as lost:
            if ranks.world_size() > 1:  # the other ranks are still in the job; torchrun ends them with this one
                raise CellFailed(str(lost)) from lost
            print(lost, file=sys.stderr)
        else:
            self.mark_done(self.jobs.index(job))
            if self.context.writes:
                self.display.finish(job.name, job.counts)
        self.release()

    def update(self, name: str, text: str = "", share: float | None = None) -> None:
        """Show a job's progress. Raises ClaimLost if another worker has taken it over."""
        if self.claim is not None and self.claim.lost:
            raise ClaimLost(f"{name} was taken over by another worker, which saw no heartbeat of this one")
        if self.context.writes:
            self.display.update(name, text, share)

    def mark_done(self, number: int) -> None:
        """Note that a job is done, by any worker."""
        self.done.add(self.open.pop(number).name)

    def release(self) -> None:
        """Release the claim and the host, if they are held."""
        if self.claim is not None:
            self.claim.release()
        self.claim = None
        self.waiting = None
        self.host.release()

    def show(self, holders: dict[str, Holder], waiting: bool) -> None:
        """Show which jobs other commands' workers hold."""
        names = {key_of(job.name): job.name for job in self.open.values()}
        others = {key: holder for key, holder in holders.items() if not self.is_ours(holder)}
        self.display.show_other_runs(
            {names[key]: str(holder) for key, holder in others.items() if key in names}, waiting
        )

    def is_ours(self, holder: Holder) -> bool:
        """Whether a holder is a worker of this command."""
        return holder.on_this_host and holder.command == self.context.claims.command
