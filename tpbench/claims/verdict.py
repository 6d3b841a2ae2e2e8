"""How a claim is judged: a quantity with its interval against the bounds between which the claim holds."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isnan, nan
from typing import NamedTuple

from tpbench.report.interval import Interval

HOLDS, FAILS, OPEN = "holds", "does not hold", "cannot be decided here"
UNKNOWN = Interval(nan, nan, 0)


class Rule(NamedTuple):
    """The claim holds where the quantity lies between the bounds."""

    low: float = -inf
    high: float = inf

    def __str__(self) -> str:
        if self.low == -inf:
            return f"below {self.high:g}"
        return f"above {self.low:g}" if self.high == inf else f"between {self.low:g} and {self.high:g}"


@dataclass(frozen=True)
class Reading:
    """One way to test one claim on one study.

    ours is a mean with its 95 % interval over seeds, or for what is counted and not sampled a number with none (exact).
    missing says what would have to be measured where nothing was.
    """

    claim: int
    test: str
    study: str  # recipe and machine; "" for what follows from shapes alone
    schedule: str
    paper: str
    unit: str
    rule: Rule
    ours: Interval = UNKNOWN
    exact: bool = False
    missing: str = ""
    detail: bool = False  # one schedule of several that another reading averages: shown, not counted
    note: str = ""

    @property
    def verdict(self) -> str:
        """The whole interval on one side of the bounds, or nothing is decided."""
        spread = 0.0 if self.exact else self.ours.half_width
        if isnan(self.ours.mean) or isnan(spread):
            return OPEN
        low, high = self.ours.mean - spread, self.ours.mean + spread
        if self.rule.low < low and high < self.rule.high:
            return HOLDS
        return FAILS if high <= self.rule.low or low >= self.rule.high else OPEN

    @property
    def decided_by(self) -> str:
        """What would decide it."""
        if self.verdict != OPEN:
            return ""
        if self.missing or isnan(self.ours.mean):
            return self.missing or "records of these methods without failure"
        return "more seeds: the interval holds a bound" if self.ours.n > 1 else "a second seed: there is no interval"
