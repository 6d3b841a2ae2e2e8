"""How a claim is judged: a number with its interval against the claim's bound and against the paper's effect."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import exp, inf, isfinite, isnan, nan
from typing import NamedTuple

from tpbench.report.estimates import Difference
from tpbench.report.families import ALPHA, EXCLUDED, FAILS, HOLDS, UNDECIDED, holm, judge

UNKNOWN = Difference(value=nan, standard_error=nan, df=0.0, seeds=0, a="", b="")
ONE_SEED = "one seed: no interval"
NO_INTERVAL = "too few seeds for an interval, or no scatter between them"


class Rule(NamedTuple):
    """The claim holds where the true value lies between the bounds."""

    low: float = -inf
    high: float = inf

    @property
    def side(self) -> int:
        """1 where the claim is about large values, -1 where it is about small ones, 0 for equivalence."""
        return int(isfinite(self.low)) - int(isfinite(self.high))

    @property
    def bound(self) -> float:
        """The bound of a claim about one side."""
        return self.low if isfinite(self.low) else self.high


@dataclass(frozen=True)
class Reading:
    """One way to test one claim on one study. `decide` gives the verdict.

    topic: what the summary calls the quantity, test: what exactly was compared. ours: the value in `unit` with its
    standard error over seeds (and images), or without one where it is counted and not sampled (exact). effect: the
    paper's number in the same unit, NaN where it gives none; paper: in words. logarithm: value, rule and effect are
    logarithms, and shown as ratios. missing: what would have to be measured. shown_only: why this reading does not
    count, for instance as one schedule of several that another reading averages.
    """

    claim: int
    topic: str
    test: str
    study: str  # recipe and machine; "" for what follows from shapes alone
    schedule: str
    unit: str
    rule: Rule
    ours: Difference = UNKNOWN
    effect: float = nan
    paper: str = ""
    exact: bool = False
    logarithm: bool = False
    missing: str = ""
    shown_only: str = ""
    note: str = ""
    verdict: str = UNDECIDED
    effect_excluded: bool = False

    @property
    def counts(self) -> bool:
        """Whether the reading is evidence: measured, and no detail of another."""
        return not self.missing and not self.shown_only

    @property
    def value(self) -> float:
        """The estimate as it is shown: a ratio where the reading is on logarithms."""
        return self.shown(self.ours.value)

    @property
    def bounds(self) -> tuple[float, float]:
        """The ends of the 95 % interval as they are shown; NaN without one."""
        if self.exact:
            return nan, nan
        low, high = self.ours.bounds()
        return self.shown(low), self.shown(high)

    def shown(self, number: float) -> float:
        """A number of the reading's scale as it is shown."""
        return exp(number) if self.logarithm else number

    @property
    def open_because(self) -> str:
        """What would decide the reading; "" where it is decided."""
        if self.missing:
            return self.missing
        if self.verdict != UNDECIDED:
            return ""
        if self.ours.known:
            return "more seeds"
        return ONE_SEED if self.ours.seeds == 1 else NO_INTERVAL


def decide(family: Sequence[Reading]) -> list[Reading]:
    """The readings with their verdicts; the p-values are Holm's over the family, which was declared before the run.

    All rules of a family claim the same: values on one side of a bound, or equivalence (one margin for all).
    One side: HOLDS or FAILS where the value differs from the bound to the claimed or to the other side; EXCLUDED where
    neither is so and the value lies significantly short of the paper's effect; UNDECIDED otherwise. For a single
    reading that is `families.against_paper`. Equivalence: HOLDS by two one-sided tests, FAILS where the value lies
    significantly outside the margin.
    """
    sampled = [reading for reading in family if not reading.exact]
    judged = iter(_equivalent(sampled) if any(r.rule.side == 0 for r in sampled) else _one_sided(sampled))
    return [_exact(reading) if reading.exact else next(judged) for reading in family]


def decide_each(readings: Sequence[Reading]) -> list[Reading]:
    """Every reading as a family of its own."""
    return [decided for reading in readings for decided in decide([reading])]


def _exact(reading: Reading) -> Reading:
    if isnan(reading.ours.value):
        return reading
    inside = reading.rule.low < reading.ours.value < reading.rule.high
    return replace(reading, verdict=HOLDS if inside else FAILS)


def _one_sided(family: list[Reading]) -> list[Reading]:
    from_bound = holm([reading.ours.p_value(reading.rule.bound) for reading in family])
    from_effect = holm([reading.ours.p_value(_effect(reading)) for reading in family])
    decided = []
    for reading, p_bound, p_effect in zip(family, from_bound, from_effect):
        side = reading.rule.side
        excluded = p_effect <= ALPHA  # never so with NaN
        verdict = UNDECIDED
        if p_bound <= ALPHA:
            verdict = HOLDS if side * (reading.ours.value - reading.rule.bound) > 0 else FAILS
        elif excluded and side * (reading.effect - reading.ours.value) > 0:
            verdict = EXCLUDED
        decided.append(replace(reading, verdict=verdict, effect_excluded=excluded))
    return decided


def _effect(reading: Reading) -> float:
    """The paper's effect; NaN where it does not lie on the claimed side of the bound, so that it is no effect."""
    claimed = reading.rule.side * (reading.effect - reading.rule.bound) > 0
    return reading.effect if claimed else nan


def _equivalent(family: list[Reading]) -> list[Reading]:
    margin = family[0].rule.high
    within = [judgement.within_margin for judgement in judge([reading.ours for reading in family], margin)]
    outside = holm([2 * min(r.ours.p_below(-margin), r.ours.p_above(margin)) for r in family])
    return [
        replace(reading, verdict=HOLDS if inside else FAILS if p_outside <= ALPHA else UNDECIDED)
        for reading, inside, p_outside in zip(family, within, outside)
    ]
