"""Meet a share of the unreduced model's latency: counts for many methods, found by the clock, all of them in turns.

A pass times one candidate of every method, and the unreduced model, in random order over some rounds. Where a method's
best candidate is near its share, it is timed again, until it has samples from several passes; else the next candidate
is the one whose multiply-adds differ from the best one's by what its latency was off.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tpbench import vit
from tpbench.errors import Unreachable, UsageError
from tpbench.measure.entries import EAGER, Entry, Subject, entry, unreduced
from tpbench.measure.modes import Mode
from tpbench.measure.session import Watch, one_round, unchecked, uncollected, unwatched, warmed
from tpbench.measure.speeds import NEAR
from tpbench.registry import Variant
from tpbench.schedule import Kind, Schedule, spell

FARTHEST = 0.05  # farther from its share than this, a method counts as unable to meet it
PASSES = 9
ROUNDS = 8  # of a pass, or as many as its part of the time allows, but at least LEAST_ROUNDS
LEAST_ROUNDS = 3
CONFIRMED = 3  # passes that the samples of a candidate must come from
SLOPES = (0.3, 2.0)  # of latency over multiply-adds, both as shares: what a step takes as possible
LEAST_SHARE = 0.02  # of the multiply-adds
HALVINGS = 6  # of the way back from a share of multiply-adds that a method cannot go to


class Solution(NamedTuple):
    """The counts that come nearest to a share of latency, how far off they are (as a share of it), and all candidates.

    counts is None where the nearest is too far off, and `error` says how near it is. Counts that are off
    by more than NEAR are kept and marked in the tables. tried: {"counts", "reduced", "unreduced"}, seconds in turns.
    """

    counts: list[int] | None
    off: float | None
    error: str | None
    tried: list[dict[str, Any]]


@dataclass
class Candidate:
    """Counts at their share of the unreduced model's multiply-adds, with samples of their latency."""

    macs: float
    counts: tuple[int, ...]
    passes: int = 0
    reduced: list[float] = field(default_factory=list)
    unreduced: list[float] = field(default_factory=list)

    @property
    def latency(self) -> float:
        """As a share of the unreduced model's: the median over rounds, as in `measure.speeds`."""
        return median(own / other for own, other in zip(self.reduced, self.unreduced))


@dataclass(frozen=True)
class Course:
    """What all methods of a search share: the subject, its model in a dtype, images of one batch and the mode."""

    subject: Subject
    model: nn.Module
    images: Tensor  # [B, C, H, W]
    mode: Mode
    macs: int  # of the unreduced model, per image

    @classmethod
    def of(cls, subject: Subject, batch: int, dtype: torch.dtype, mode: Mode) -> Course:
        """A course for a subject's images and weights in a dtype."""
        return cls(
            subject=subject,
            model=subject.in_dtype(dtype),
            images=subject.images.pixels[:batch].to(dtype),
            mode=mode,
            macs=sum(vit.reduce(subject.model, "none").macs().values()),
        )


class Pursuit:
    """The search for the counts of one method at one share of latency."""

    def __init__(self, variant: Variant, schedule: Schedule):
        self.variant = variant
        self.schedule = schedule
        self.target = float(schedule.budget)
        self.tried: dict[tuple[int, ...], Candidate] = {}
        self.now: Candidate | None = None  # being timed
        self.exhausted = False  # no other candidate is left to try
        self.error: str | None = None

    @property
    def nearest_first(self) -> list[Candidate]:
        """The candidates that were timed, those nearest to the target first."""
        timed = [candidate for candidate in self.tried.values() if candidate.reduced]
        return sorted(timed, key=lambda candidate: abs(candidate.latency - self.target))

    @property
    def off(self) -> float:
        """How far the best candidate is from the target, as a share of it."""
        return self.nearest_first[0].latency / self.target - 1

    @property
    def done(self) -> bool:
        """Whether more timing would change nothing: confirmed and near, confirmed and without another, or failed."""
        if self.error is not None:
            return True
        if not self.nearest_first or self.nearest_first[0].passes < CONFIRMED:
            return False
        return self.exhausted or abs(self.off) <= NEAR

    def next(self, course: Course) -> Entry | None:
        """What to time in the next pass; None where the method cannot go anywhere, and `error` then says why."""
        near = bool(self.nearest_first) and abs(self.off) <= NEAR / 2
        if not near and not self.exhausted:
            try:
                model = self.reachable(course, self.step())
            except UsageError as error:
                self.exhausted = True
                if not self.tried:
                    self.error = str(error)
                    return None
            else:
                return self.entry(course, model)
        return self.again(course)

    def step(self) -> float:
        """The share of multiply-adds to try next."""
        near = self.nearest_first
        if not near:
            return self.target
        slope = 1.0
        if len(near) > 1 and near[0].macs != near[1].macs:
            slope = (near[0].latency - near[1].latency) / (near[0].macs - near[1].macs)
        slope = min(max(slope, SLOPES[0]), SLOPES[1])
        return min(max(near[0].macs + (self.target - near[0].latency) / slope, LEAST_SHARE), 1.0)

    def reachable(self, course: Course, share: float) -> vit.TokenViT:
        """The model at a share of the multiply-adds, or where the method cannot go there, at one nearer to the known.

        Raises Unreachable where it can go nowhere.
        """
        known = min((candidate.macs for candidate in self.tried.values()), default=1.0)
        reason: Unreachable
        for halving in range(HALVINGS):
            nearer = share + (known - share) * (1 - 0.5**halving)
            wanted = Fraction(nearer).limit_denominator(10_000)
            schedule = Schedule(self.schedule.text, self.schedule.blocks, kind=Kind.MACS, budget=wanted)
            try:
                return course.subject.reduce(course.subject.model, self.variant, schedule)
            except Unreachable as error:
                reason = error
        raise reason

    def again(self, course: Course) -> Entry:
        """The best candidate once more."""
        counting = self.schedule.counting(self.nearest_first[0].counts)
        return self.entry(course, course.subject.reduce(course.subject.model, self.variant, counting))

    def entry(self, course: Course, model: vit.TokenViT) -> Entry:
        """The row of a candidate, which from now on is the one being timed."""
        counts = tuple(k for _, k in model.requested)
        if counts in self.tried and self.tried[counts] is not self.nearest_first[0]:
            self.exhausted = True  # the steps go in circles: the best stays the best
            return self.again(course)
        self.exhausted = self.exhausted or (counts in self.tried and abs(self.off) > NEAR / 2)
        self.now = self.tried.setdefault(counts, Candidate(sum(model.macs().values()) / course.macs, counts))
        own = course.subject.reduce(course.model, self.variant, self.schedule.counting(counts))
        about = {"method": str(self.variant), "schedule": self.schedule.text}
        about |= {"counts": list(counts), "macs": sum(model.macs().values()), "asked": self.target}
        return entry(own.to(course.images.dtype), course.images, course.mode, **about)

    def take(self, reduced: list[float], unreduced: list[float]) -> None:
        """Add a pass's samples to those of the candidate that was timed."""
        self.now.reduced += reduced
        self.now.unreduced += unreduced
        self.now.passes += 1

    def solution(self, farthest: float = FARTHEST) -> Solution:
        """The best candidate if it is within `farthest` of the target, as a share of it, and all that was tried."""
        timed = [candidate for candidate in self.tried.values() if candidate.reduced]
        tried = [{"counts": list(c.counts), "reduced": c.reduced, "unreduced": c.unreduced} for c in timed]
        if not timed:
            return Solution(counts=None, off=None, error=self.error, tried=tried)
        best = self.nearest_first[0]
        if abs(self.off) <= farthest:
            return Solution(counts=list(best.counts), off=self.off, error=None, tried=tried)
        error = (
            f"schedule {self.schedule.text!r}: the method cannot cost {self.target:g} of the unreduced model's latency;"
            f" the nearest it reaches is {best.latency:.3f}, by {spell(best.counts, self.schedule.blocks)}"
        )
        return Solution(counts=None, off=self.off, error=error, tried=tried)


def solve(
    subject: Subject,
    asked: Sequence[tuple[Variant, Schedule]],
    batch: int,
    dtype: torch.dtype,
    mode: Mode = EAGER,
    *,
    seconds: float | None = None,
    farthest: float = FARTHEST,
    watch: Watch = unwatched,
    check: Callable[[], None] = unchecked,
) -> dict[tuple[Variant, Schedule], Solution]:
    """Counts with which each method, at this batch size, dtype and mode, costs its schedule's share of latency.

    seconds is about how long this may take: passes then have fewer rounds, and some may be left out. A method whose
    nearest counts are farther off than `farthest`, as a share of what was asked, has none.
    """
    course = Course.of(subject, batch, dtype=dtype, mode=mode)
    pursuits = {(variant, schedule): Pursuit(variant, schedule) for variant, schedule in asked}
    start = time.monotonic()
    for number in range(PASSES):
        going = {p: entry for p in pursuits.values() if not p.done and (entry := p.next(course)) is not None}
        spent = time.monotonic() - start
        if not going or (number and seconds is not None and spent > seconds):  # one pass is needed in any case
            break
        check()
        watch("meeting the latency", number / PASSES, spent / max(number, 1) * (PASSES - number))
        allowed = None if seconds is None else (seconds - spent) / (PASSES - number)
        time_all(course, going, allowed)
    return {pair: pursuit.solution(farthest) for pair, pursuit in pursuits.items()}


def time_all(course: Course, going: Mapping[Pursuit, Entry], allowed: float | None) -> None:
    """Time the candidates of a pass in turns with the unreduced model, in about so many seconds."""
    references = unreduced(course.subject, course.model, images=course.images, modes=course.mode.permitted())[:-1]
    calls, rows, a_round = warmed([*references, *going.values()], course.images.device, calls_each=1)
    failed = {row.key: row.error for row in rows if row.error is not None}
    rounds = ROUNDS if allowed is None else min(ROUNDS, max(LEAST_ROUNDS, int(allowed / a_round)))
    with uncollected():
        taken = [one_round(calls, course.images.device, number) for number in range(rounds)]
    samples = {key: [seconds[key] for seconds in taken] for key in calls}
    fastest = min((samples[reference.row.key] for reference in references), key=median)
    for pursuit, timed in going.items():
        if timed.row.key in failed:
            pursuit.error = failed[timed.row.key]
        else:
            pursuit.take(samples[timed.row.key], fastest)
