"""Decisions over a declared family of differences: Holm, ranks, margins, the paper's effect, and the null row.

A family is a list of differences that is declared before the run: the recipe's contrasts, or all pairs of rows of one
table. Holm's procedure limits the probability of any false decision in the whole family to ALPHA.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import isnan, nan
from typing import NamedTuple

import numpy as np

from tpbench.errors import UsageError
from tpbench.report.estimates import Difference, Differences
from tpbench.report.interval import LEVEL

ALPHA = 1 - LEVEL

BETTER = "better"
WORSE = "worse"
EQUIVALENT = "equivalent"
NOT_INFERIOR = "not inferior"
UNDECIDED = "undecided"
HOLDS = "holds"
FAILS = "does not hold"
EXCLUDED = "excluded"


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order of the input.

    The r-th smallest of n p-values (r from 0) is multiplied by n - r, made at least as large as the one before, and cut
    at 1. NaN stays NaN and does not count as a member of the family, since a missing difference cannot be a false
    positive.
    """
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p, kind="stable")[: int((~np.isnan(p)).sum())]  # NaN sorts last
    steps = p[order] * np.arange(len(order), 0, -1)
    adjusted = np.full(p.shape, nan)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return adjusted.tolist()


# ------------------------------------------------------------------------------------------ ranks


class Rank(NamedTuple):
    """The best and the worst rank that the data allow for a row, counted from 1."""

    best: int
    worst: int


def ranks(differences: Sequence[Difference], alpha: float = ALPHA) -> dict[str, Rank]:
    """Simultaneous confidence sets of ranks: with probability 1 - alpha, all true ranks lie in their sets.

    The best rank is 1 + the number of significantly better rows, the worst the number of rows minus those that are
    significantly worse, after Holm over all given differences (Mogstad, Romano, Shaikh and Wilhelm, 2024). A pair
    without an interval, or missing from the list, counts as not separated.
    """
    every = Differences.of(differences)
    names = list(dict.fromkeys(name for pair in zip(every.a, every.b) for name in pair))
    above = dict.fromkeys(names, 0)
    below = dict.fromkeys(names, 0)
    significant = np.array(holm(every.p_values())) <= alpha  # False for NaN
    for place in np.flatnonzero(significant):
        pair = (every.a[place], every.b[place])
        upper, lower = pair if every.value[place] > 0 else reversed(pair)
        above[lower] += 1
        below[upper] += 1
    return {name: Rank(1 + above[name], len(names) - below[name]) for name in names}


# ------------------------------------------------------------------------------------------ margins


class Judgement(NamedTuple):
    """One difference of a family, judged with a margin in points. P-values are corrected by Holm over the family.

    verdict: BETTER or WORSE (differs from zero, two-sided), otherwise EQUIVALENT (within ± margin), otherwise
    NOT_INFERIOR (above -margin), otherwise UNDECIDED. within_margin: whether the difference lies significantly within
    ± margin, whatever the verdict.
    """

    difference: Difference
    margin: float
    verdict: str
    within_margin: bool
    p_difference: float
    p_inferior: float
    p_equivalent: float


def judge(family: Sequence[Difference], margin: float, alpha: float = ALPHA) -> list[Judgement]:
    """Test each difference of a declared family for superiority, equivalence (TOST) and non-inferiority, each by Holm.

    Superiority is two-sided at alpha. The tests against the margin are one-sided at alpha, as in TOST: a single
    difference is equivalent at 5 % if its 90 % interval lies within ± margin. Raises UsageError unless the margin is
    positive.
    """
    if not margin > 0:
        raise UsageError(f"a margin is a positive number of points, not {margin:g}")
    every = Differences.of(family)
    different = holm(every.p_values())
    p_inferior_alone = every.p_above(-margin)
    inferior = holm(p_inferior_alone)
    outside = holm(np.maximum(p_inferior_alone, every.p_below(margin)))
    judgements = []
    for difference, p_difference, p_inferior, p_equivalent in zip(family, different, inferior, outside):
        within = p_equivalent <= alpha
        verdict = UNDECIDED
        if p_difference <= alpha:
            verdict = BETTER if difference.value > 0 else WORSE
        elif within:
            verdict = EQUIVALENT
        elif p_inferior <= alpha:
            verdict = NOT_INFERIOR
        judgements.append(
            Judgement(
                difference=difference,
                margin=margin,
                verdict=verdict,
                within_margin=within,
                p_difference=p_difference,
                p_inferior=p_inferior,
                p_equivalent=p_equivalent,
            )
        )
    return judgements


# ------------------------------------------------------------------------------------------ the paper's effect


class AgainstPaper(NamedTuple):
    """A contrast judged against the bound of a claim and the effect that the paper reports, in the difference's unit.

    verdict: HOLDS (the interval lies on the claimed side of the bound), FAILS (on the other side), EXCLUDED (the
    interval contains the bound and lies short of the paper's effect), UNDECIDED (it contains both).
    effect_excluded: whether the interval excludes the paper's effect, whatever the verdict.
    """

    difference: Difference
    effect: float
    verdict: str
    effect_excluded: bool


def against_paper(difference: Difference, effect: float, bound: float = 0.0, level: float = LEVEL) -> AgainstPaper:
    """Whether the difference lies on the claimed side of `bound`, and whether the paper's effect is still possible.

    The claimed side is that of the effect. If the paper gives no number (NaN), it is above the bound, and no effect can
    be excluded. Raises UsageError for an effect equal to the bound, which claims no direction.
    """
    if effect == bound:
        raise UsageError(f"an effect of {effect:g} at the bound claims no direction")
    low, high = difference.bounds(level)
    side = -1 if effect < bound else 1
    nearest, farthest = sorted((side * (low - bound), side * (high - bound)))
    claimed = side * (effect - bound)
    excluded = claimed < nearest or claimed > farthest  # False for NaN
    verdict = UNDECIDED
    if nearest > 0:
        verdict = HOLDS
    elif farthest < 0:
        verdict = FAILS
    elif farthest < claimed:
        verdict = EXCLUDED
    return AgainstPaper(difference=difference, effect=effect, verdict=verdict, effect_excluded=excluded)


# ------------------------------------------------------------------------------------------ the null row


class Rate(NamedTuple):
    """The share of `of` pairs that were called different, in [0, 1], with its exact 95 % interval (Clopper-Pearson)."""

    called: int
    of: int
    share: float
    low: float
    high: float


def null_rate(nulls: Iterable[Difference], level: float = LEVEL) -> Rate:
    """How often a table's procedure would call two fine-tunings of one method different.

    nulls: differences between rows of the same method with different fine-tuning seeds, each row in one pair only;
    pairs without an interval do not count. A pair is called different if its interval at this level excludes zero. In
    a sound table at most 1 - level of the pairs are, and fewer if fine-tuning is only part of the residual.
    """
    p_values = [p for p in (difference.p_value() for difference in nulls) if not isnan(p)]
    called = sum(p < 1 - level for p in p_values)
    return _rate(called, len(p_values))


def _rate(called: int, of: int) -> Rate:
    from scipy.special import betaincinv

    if of == 0:
        return Rate(called=0, of=0, share=nan, low=nan, high=nan)
    tail = (1 - LEVEL) / 2
    low = float(betaincinv(called, of - called + 1, tail)) if called else 0.0
    high = float(betaincinv(called + 1, of - called, 1 - tail)) if called < of else 1.0
    return Rate(called=called, of=of, share=called / of, low=low, high=high)
