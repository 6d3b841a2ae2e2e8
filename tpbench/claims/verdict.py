"""How a claim is judged: by a number with its interval, against the claim's bound and the paper's effect."""

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
    """The bounds of a claim: it holds if the true value lies between them."""

    low: float = -inf
    high: float = inf

    @property
    def side(self) -> int:
        """1 if the claim asks for large values, -1 if it asks for small values, 0 for equivalence."""
        return int(isfinite(self.low)) - int(isfinite(self.high))

    @property
    def bound(self) -> float:
        """The only bound of a one-sided claim."""
        return self.low if isfinite(self.low) else self.high


@dataclass(frozen=True)
class Reading:
    """One way to test one claim on one study. `decide` gives the verdict.

    topic: the name of the quantity in the summary; test: what exactly was compared. ours: our value in `unit`, with
    its standard error over seeds (and images), or without one if the value is computed and not sampled (exact).
    effect: the paper's number in the same unit, NaN if it gives none; paper: the same in words; claimed: what to
    call the effect where it is no difference that the paper measured, such as "a difference of 0". logarithm: whether
    value, rule and effect are logarithms, which are shown as ratios. missing: what would have to be measured.
    shown_only: why this reading does not count, for instance because another reading averages it with others. start:
    where the clustering starts, if not by default; such a reading is only shown. members: the studies that a reading
    over several of them compares.
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
    claimed: str = ""
    exact: bool = False
    logarithm: bool = False
    missing: str = ""
    shown_only: str = ""
    start: str = ""
    members: tuple[str, ...] = ()
    note: str = ""
    verdict: str = UNDECIDED
    effect_excluded: bool = False

    @property
    def studies(self) -> tuple[str, ...]:
        """The studies that the reading is from, usually one."""
        return self.members or (self.study,)

    @property
    def counts(self) -> bool:
        """Whether the reading is evidence: it was measured and is not only shown."""
        return not self.missing and not self.shown_only

    @property
    def value(self) -> float:
        """The estimate in the unit that is shown; logarithms are shown as ratios."""
        return self.shown(self.ours.value)

    @property
    def bounds(self) -> tuple[float, float]:
        """The ends of the 95 % interval in the unit that is shown; NaN if there is no interval."""
        if self.exact:
            return nan, nan
        low, high = self.ours.bounds()
        return self.shown(low), self.shown(high)

    def shown(self, number: float) -> float:
        """A number on the reading's scale, in the unit that is shown."""
        return exp(number) if self.logarithm else number

    @property
    def why_undecided(self) -> str:
        """What is missing, or what would decide the reading; "" if it is decided."""
        if self.missing:
            return self.missing
        if self.verdict != UNDECIDED:
            return ""
        if self.ours.known:
            return "more seeds"
        return ONE_SEED if self.ours.seeds == 1 else NO_INTERVAL


def decide(family: Sequence[Reading]) -> list[Reading]:
    """The readings with their verdicts. P-values are corrected by Holm over the family, which is declared in advance.

    All rules of a family are of one kind: one-sided, or equivalence with one margin for all.
    One-sided: HOLDS if the value differs significantly from the bound on the claimed side, FAILS if it does so on the
    other side; EXCLUDED if it does neither and is significantly smaller than the paper's effect; otherwise UNDECIDED.
    For a single reading this is `families.against_paper`.
    Equivalence: HOLDS by two one-sided tests, FAILS if the value lies significantly outside the margin.
    """
    decided = {place: _exact(reading) for place, reading in enumerate(family) if reading.exact}
    sampled = {place: reading for place, reading in enumerate(family) if not reading.exact}
    equivalence = any(reading.rule.side == 0 for reading in sampled.values())
    decide_together = _equivalent if equivalence else _one_sided
    decided.update(zip(sampled, decide_together(list(sampled.values()))))
    return [decided[place] for place in range(len(family))]


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
        excluded = p_effect <= ALPHA  # False if p_effect is NaN
        verdict = UNDECIDED
        if p_bound <= ALPHA:
            verdict = HOLDS if side * (reading.ours.value - reading.rule.bound) > 0 else FAILS
        elif excluded and side * (reading.effect - reading.ours.value) > 0:
            verdict = EXCLUDED
        decided.append(replace(reading, verdict=verdict, effect_excluded=excluded))
    return decided


def _effect(reading: Reading) -> float:
    """The paper's effect; NaN if it does not lie on the claimed side of the bound."""
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
