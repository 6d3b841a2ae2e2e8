"""The evaluation of a timing session: medians, and speed-ups with intervals. No torch, no pandas.

A speed-up is the median over rounds of the reference's seconds divided by the row's. The reference of a group is timm's
unreduced model in its fastest mode. A busy minute affects both sides of a round's ratio alike, so the median of ratios
has a far narrower interval than the ratio of medians. Intervals resample rounds with replacement (percentile
bootstrap).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from tpbench.measure.timings import Group, Row, Session

LEVEL = 0.95
RESAMPLES = 1000
P95_SAMPLES = 200  # samples that the 95th percentile needs at least
NEAR = 0.02  # a row is marked if its latency is off by more, as a share of the requested one


@dataclass(frozen=True)
class Ratio:
    """The median of ratios, or of other numbers, with the ends of its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def includes_one(self) -> bool:
        """Whether the interval contains 1, so that no change is certain."""
        return self.low <= 1 <= self.high


@dataclass(frozen=True)
class Speed:
    """One row in numbers.

    median, low, high: seconds, with the ends of the median's 95 % interval. p95: seconds, None below P95_SAMPLES.
    promised: the speed-up that multiply-adds alone would give. off: the relative error of the requested latency, None
    if none was requested.
    """

    row: Row
    samples: int
    median: float
    low: float
    high: float
    p95: float | None
    speedup: Ratio
    promised: float
    off: float | None

    @property
    def images_per_second(self) -> float:
        """Images per second at the median time."""
        return self.row.batch / self.median

    @property
    def misses_latency(self) -> bool:
        """Whether the row misses the requested latency by more than 2 %."""
        return self.off is not None and abs(self.off) > NEAR


def speeds(session: Session, group: Group) -> list[Speed]:
    """All timed rows of a group, compared with the fastest unreduced model; controls are left out."""
    best = reference(session, group)
    return [speed(row, best) for row in session.of(group, "reference", "reduced")]


def reference(session: Session, group: Group) -> Row:
    """timm's unreduced model in the mode with the smallest median."""
    return min(session.of(group, "reference"), key=lambda row: np.median(row.seconds))


def control(session: Session, group: Group) -> Ratio:
    """The ratio of two rows of the same model, which differs from 1 only by noise."""
    (again,) = session.of(group, "control")
    first = next(row for row in session.of(group, "reference") if row.mode == again.mode)
    return ratio(first.seconds, again.seconds)


def speed(row: Row, best: Row) -> Speed:
    """A row in numbers, compared with the fastest unreduced row."""
    samples = np.asarray(row.seconds)
    middle = resampled(samples)
    speedup = ratio(best.seconds, row.seconds)
    return Speed(
        row=row,
        samples=len(samples),
        median=middle.value,
        low=middle.low,
        high=middle.high,
        p95=float(np.percentile(samples, 95)) if len(samples) >= P95_SAMPLES else None,
        speedup=speedup,
        promised=best.macs / row.macs,
        off=None if row.asked is None else 1 / (speedup.value * row.asked) - 1,
    )


def ratio(above: Sequence[float], below: Sequence[float]) -> Ratio:
    """The median of above / below, where sample i of both comes from round i."""
    if len(above) != len(below):
        raise ValueError(f"{len(above)} and {len(below)} samples come from different rounds")
    return resampled(np.asarray(above) / np.asarray(below))


def resampled(values: np.ndarray) -> Ratio:
    """The median of one value per round, [rounds], with its interval by resampling rounds."""
    medians = np.median(values[rounds_drawn(len(values))], axis=1)
    low, high = np.quantile(medians, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Ratio(float(np.median(values)), float(low), float(high))


@cache
def rounds_drawn(rounds: int) -> np.ndarray:
    """The rounds of each resample, the same for all rows: [RESAMPLES, rounds]."""
    return np.random.default_rng(0).integers(0, rounds, (RESAMPLES, rounds))
