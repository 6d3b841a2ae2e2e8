"""Find the counts at which methods cost a given share of the unreduced model's latency, by timing them in turns.

A pass times one candidate of each method, and the unreduced model, over some rounds in random order. If a method's best
candidate is near the target, it is timed again until it has samples from several passes. Otherwise the next candidate's
multiply-adds are those of the best one, corrected by the error of its latency.
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
from tpbench.measure.session import Watch, no_garbage_collection, one_round, unchecked, unwatched, warmed
from tpbench.measure.speeds import NEAR
from tpbench.registry import Variant
from tpbench.schedule import Kind, Schedule, spell

FARTHEST = 0.05  # a method whose latency is off by more, as a share of the target, cannot meet it
PASSES = 9
ROUNDS = 8  # in a pass; with a time limit fewer, but at least LEAST_ROUNDS
LEAST_ROUNDS = 3
CONFIRMED = 3  # passes from which a result needs samples
SLOPES = (0.3, 2.0)  # limits for the slope of latency over multiply-adds, both as shares
LEAST_SHARE = 0.02  # of the multiply-adds that a step tries
HALVINGS = 6  # attempts to reach a share of multiply-adds, each halving the distance to a known one


class Solution(NamedTuple):
    """The counts that come nearest to a share of latency, their relative error `off`, and all candidates.

    counts is None if the error is too large; `error` then says how near the method comes. Counts with an error above
    NEAR are kept and marked in tables. tried: {"counts", "reduced", "unreduced"} of each candidate, seconds in turns.
    """

    counts: list[int] | None
    off: float | None
    error: str | None
    tried: list[dict[str, Any]]


@dataclass
class Candidate:
    """Counts with samples of their latency. macs: as a share of the unreduced model's multiply-adds."""

    macs: float
    counts: tuple[int, ...]
    passes: int = 0
    reduced: list[float] = field(default_factory=list)
    unreduced: list[float] = field(default_factory=list)

    @property
    def latency(self) -> float:
        """The latency as a share of the unreduced model's: the median over rounds, as in `measure.speeds`."""
        return median(own / other for own, other in zip(self.reduced, self.unreduced))


@dataclass(frozen=True)
class TimingSetup:
    """What all methods are timed with: the subject, its model in a dtype, images of one batch, and the mode."""

    subject: Subject
    model: nn.Module
    images: Tensor  # [B, C, H, W]
    mode: Mode
    macs: int  # of the unreduced model, per image

    @classmethod
    def of(cls, subject: Subject, batch: int, dtype: torch.dtype, mode: Mode) -> TimingSetup:
        """The setup of a subject at a batch size, dtype and mode."""
        return cls(
            subject=subject,
            model=subject.in_dtype(dtype),
            images=subject.images.pixels[:batch].to(dtype),
            mode=mode,
            macs=sum(vit.reduce(subject.model, "none").macs().values()),
        )


class LatencySearch:
    """The search for the counts of one method at one share of latency."""

    def __init__(self, variant: Variant, schedule: Schedule):
        self.variant = variant
        self.schedule = schedule
        self.target = float(schedule.budget)
        self.tried: dict[tuple[int, ...], Candidate] = {}
        self.current: Candidate | None = None  # is being timed
        self.exhausted = False  # whether no other candidate is left to try
        self.error: str | None = None

    @property
    def nearest_first(self) -> list[Candidate]:
        """The candidates that were timed, sorted by distance to the target."""
        timed = [candidate for candidate in self.tried.values() if candidate.reduced]
        return sorted(timed, key=lambda candidate: abs(candidate.latency - self.target))

    @property
    def off(self) -> float:
        """The relative error of the best candidate's latency."""
        return self.nearest_first[0].latency / self.target - 1

    @property
    def done(self) -> bool:
        """Whether the search is over: it failed, or the best candidate is confirmed and near or has no alternative."""
        if self.error is not None:
            return True
        if not self.nearest_first or self.nearest_first[0].passes < CONFIRMED:
            return False
        return self.exhausted or abs(self.off) <= NEAR

    def next(self, setup: TimingSetup) -> Entry | None:
        """The row to time in the next pass; None if no counts are possible, and `error` then says why."""
        near = bool(self.nearest_first) and abs(self.off) <= NEAR / 2
        if not near and not self.exhausted:
            try:
                model = self.reachable(setup, self.step())
            except UsageError as error:
                self.exhausted = True
                if not self.tried:
                    self.error = str(error)
                    return None
            else:
                return self.entry(setup, model)
        return self.again(setup)

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

    def reachable(self, setup: TimingSetup, share: float) -> vit.TokenViT:
        """The model at a share of the multiply-adds or, if the method cannot meet it, at a share nearer to a known one.

        Raises Unreachable if it cannot meet any of these.
        """
        known = min((candidate.macs for candidate in self.tried.values()), default=1.0)
        reason: Unreachable
        for halving in range(HALVINGS):
            nearer = share + (known - share) * (1 - 0.5**halving)
            wanted = Fraction(nearer).limit_denominator(10_000)
            schedule = Schedule(self.schedule.text, self.schedule.blocks, kind=Kind.MACS, budget=wanted)
            try:
                return setup.subject.reduce(setup.subject.model, self.variant, schedule)
            except Unreachable as error:
                reason = error
        raise reason

    def again(self, setup: TimingSetup) -> Entry:
        """The row that times the best candidate once more."""
        schedule = self.schedule.with_counts(self.nearest_first[0].counts)
        return self.entry(setup, setup.subject.reduce(setup.subject.model, self.variant, schedule))

    def entry(self, setup: TimingSetup, model: vit.TokenViT) -> Entry:
        """The row that times a model's counts, which become the current candidate.

        Counts that were tried before mean that no other candidate is left (`exhausted`). If they are not the best ones,
        the best ones are timed again instead.
        """
        counts = tuple(k for _, k in model.requested)
        if counts in self.tried and self.tried[counts] is not self.nearest_first[0]:
            self.exhausted = True  # the steps repeat, so the best candidate will not change
            return self.again(setup)
        self.exhausted = self.exhausted or (counts in self.tried and abs(self.off) > NEAR / 2)
        self.current = self.tried.setdefault(counts, Candidate(sum(model.macs().values()) / setup.macs, counts))
        own = setup.subject.reduce(setup.model, self.variant, self.schedule.with_counts(counts))
        about = {"method": str(self.variant), "schedule": self.schedule.text}
        about |= {"counts": list(counts), "macs": sum(model.macs().values()), "asked": self.target}
        return entry(own.to(setup.images.dtype), setup.images, setup.mode, **about)

    def take(self, reduced: list[float], unreduced: list[float]) -> None:
        """Add a pass's samples, in seconds, to the current candidate."""
        self.current.reduced += reduced
        self.current.unreduced += unreduced
        self.current.passes += 1

    def solution(self, farthest: float = FARTHEST) -> Solution:
        """The best candidate if its relative error is at most `farthest`, with all that were tried."""
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
    """Find the counts at which each method costs its schedule's share of latency, at a batch size, dtype and mode.

    seconds: roughly how long this may take; passes then have fewer rounds, and some may be left out. A method whose
    best relative error is larger than `farthest` gets no counts. check is called before each pass and may raise.
    """
    setup = TimingSetup.of(subject, batch, dtype=dtype, mode=mode)
    searches = {(variant, schedule): LatencySearch(variant, schedule) for variant, schedule in asked}
    start = time.monotonic()
    for number in range(PASSES):
        candidates: dict[LatencySearch, Entry] = {}
        for search in searches.values():
            candidate = None if search.done else search.next(setup)
            if candidate is not None:
                candidates[search] = candidate
        spent = time.monotonic() - start
        if not candidates or (number and seconds is not None and spent > seconds):  # one pass is needed in any case
            break
        check()
        watch("meeting the latency", number / PASSES, spent / max(number, 1) * (PASSES - number))
        allowed = None if seconds is None else (seconds - spent) / (PASSES - number)
        time_all(setup, candidates, allowed)
    return {pair: search.solution(farthest) for pair, search in searches.items()}


def time_all(setup: TimingSetup, candidates: Mapping[LatencySearch, Entry], allowed: float | None) -> None:
    """Time the candidates of a pass in turns with the unreduced model. allowed: seconds, approximately."""
    references = unreduced(setup.subject, setup.model, images=setup.images, modes=setup.mode.permitted())[:-1]
    calls, rows, round_seconds = warmed([*references, *candidates.values()], setup.images.device, calls_each=1)
    failed = {row.key: row.error for row in rows if row.error is not None}
    rounds = ROUNDS if allowed is None else min(ROUNDS, max(LEAST_ROUNDS, int(allowed / round_seconds)))
    with no_garbage_collection():
        taken = [one_round(calls, setup.images.device, number) for number in range(rounds)]
    samples = {key: [seconds[key] for seconds in taken] for key in calls}
    fastest = min((samples[reference.row.key] for reference in references), key=median)
    for search, timed in candidates.items():
        if timed.row.key in failed:
            search.error = failed[timed.row.key]
        else:
            search.take(samples[timed.row.key], fastest)
