"""Claims 3 and 8: Token Pooling against the unreduced base, at the cost of the paper's headline result."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import pandas as pd

from tpbench.claims.contrasts import at_share, priced, to_base
from tpbench.claims.study import FINE_TUNED, OFF_THE_SHELF, OTHER_START, POOLING, Study
from tpbench.claims.verdict import Reading, Rule, decide
from tpbench.outcomes import Outcomes, paired
from tpbench.report.estimates import Difference
from tpbench.report.families import HOLDS
from tpbench.report.two_way import from_outcomes

SAVING = 42.0  # percent fewer computations at equal accuracy
SHARE = 1 - SAVING / 100
MARGIN = 0.6  # points: what the paper's own Token Pooling loses on DeiT-S alone at 43 % fewer computations
PRESERVED = -10.0  # points; the boundary between "preserved" and "10 to 40 points lost" in the sources
ONE_BASE = "on one base at 42 % fewer MACs"
HULL = "over bases of several widths at 42 % fewer MACs"
NO_DIFFERENCE = "a difference of 0"
UNREDUCED = "no pooled model: what a smaller model alone loses"
EACH = "one schedule, without interpolation"
NOT_INFERIOR = Rule(low=-MARGIN)


# ------------------------------------------------------------------------------------------ 3


def loss_on_one_base(study: Study) -> Iterator[Reading]:
    """Claim 3 on one base: non-inferiority with the paper's own margin. The paper's effect is a difference of 0.

    Other starts of Token Pooling are only shown.
    """
    blank = Reading(
        claim=3,
        topic=ONE_BASE,
        test=f"one base: {POOLING} at 42 % fewer MACs minus the base, both fine-tuned equally long",
        study=study.name,
        schedule="",
        unit="points",
        rule=NOT_INFERIOR,
        effect=0.0,
        claimed=NO_DIFFERENCE,
        paper="-0.6 at -43 % (DeiT-S); equal at -4 %",
    )
    steps = list(_by_schedule(study, blank, FINE_TUNED))
    yield replace(_at_headline_cost(study, blank, FINE_TUNED), note=not_inferior_down_to(steps))
    yield from steps
    for start, method in study.other_starts().items():
        test = blank.test.replace(POOLING, method)
        reading = _at_headline_cost(
            study, replace(blank, test=test, shown_only=OTHER_START, start=start), FINE_TUNED, method
        )
        if not reading.missing:
            yield reading


def _at_headline_cost(study: Study, blank: Reading, stage: str, method: str = POOLING) -> Reading:
    """The reading at SHARE of the base's multiply-adds, interpolated between schedules."""
    found = at_share(study, method, share=SHARE, stage=stage)
    if found is None:
        return replace(blank, missing=f"records of the base and of {method} at {SHARE:.0%} of its MACs or fewer")
    difference, where = found
    return decide([replace(blank, ours=difference, schedule=where)])[0]


def _by_schedule(study: Study, blank: Reading, stage: str) -> Iterator[Reading]:
    """One reading for each schedule, from the mildest to the harshest."""
    shares = {schedule: study.macs_share(POOLING, schedule) for schedule in priced(study, POOLING, stage)}
    for schedule in sorted(shares, key=lambda text: -shares[text]):
        difference = to_base(study, POOLING, weights={schedule: 1.0}, stage=stage)
        if difference is not None:
            test = f"{POOLING} minus the base at {100 * (1 - shares[schedule]):.0f} % fewer MACs"
            reading = replace(
                blank, topic=test, test=test, schedule=schedule, ours=difference, paper="", shown_only=EACH
            )
            yield decide([reading])[0]


def not_inferior_down_to(steps: Sequence[Reading]) -> str:
    """A sentence about the harshest schedule whose loss stays within the margin.

    Schedules are tested from the mildest on, up to the first whose loss does not. A fixed order needs no correction for
    the number of tests, since no schedule is selected by its result.
    """
    last = None
    for step in steps:
        if step.verdict != HOLDS:
            break
        last = step
    if not steps:
        return ""
    if last is None:
        return f"at no schedule is a loss of more than {MARGIN} points ruled out"
    return f"a loss of more than {MARGIN} points is ruled out from the mildest schedule down to {last.schedule}"


class Row(NamedTuple):
    """A pooled model on one of several bases."""

    study: Study
    schedule: str


def loss_on_the_hull(group: Sequence[Study]) -> Reading:
    """The best pooled model over all bases at 42 % fewer MACs than the largest base, minus that base.

    For each seed, the best row is chosen by the mean over all other seeds, so that no result selects itself.
    """
    blank = Reading(
        claim=3,
        topic=HULL,
        test=f"bases of several widths: the best {POOLING} at 42 % fewer MACs minus the largest base",
        study=" + ".join(study.name for study in group),
        members=tuple(study.name for study in group),
        schedule="",
        unit="points",
        rule=NOT_INFERIOR,
        effect=0.0,
        claimed=NO_DIFFERENCE,
        paper="0 at -42 % (hull over four widths)",
    )
    if not several_widths(group):
        return replace(blank, missing="the same recipe on bases of other widths")
    largest = max(group, key=lambda study: study.base_macs)
    base = largest.top1("none", FINE_TUNED)
    rows = affordable(group, SHARE * largest.base_macs)
    if base.empty or not rows:
        return replace(blank, missing=f"{POOLING} at {SHARE:.0%} of the largest base's MACs or fewer")
    table = pd.DataFrame(
        [row.study.top1(row.schedule, FINE_TUNED).loc[POOLING] for row in rows], index=range(len(rows))
    )
    table = table.reindex(columns=base.columns).dropna(how="all").dropna(axis="columns")  # seeds that all rows have
    if table.empty or len(table.columns) < 2:
        return replace(blank, missing="two seeds that the largest base and the pooled models share")
    chosen = {seed: rows[place] for seed, place in chosen_by_other_seeds(table).items()}
    names = sorted({f"{row.schedule} of {row.study.recipe}" for row in chosen.values()})
    difference = _of_chosen(largest, chosen)
    return decide([replace(blank, ours=difference, schedule="; ".join(names))])[0]


def loss_of_a_cheaper_base(group: Sequence[Study]) -> Iterator[Reading]:
    """What a smaller model alone loses: the dearest unreduced base at 42 % fewer MACs or more, minus the largest base.

    It is only shown, beside the pooled models of the same group.
    """
    largest = max(group, key=lambda study: study.base_macs)
    cheaper = [study for study in group if study.base and study.base_macs <= SHARE * largest.base_macs]
    if not cheaper or not largest.base:
        return
    dearest = max(cheaper, key=lambda study: study.base_macs)
    bases = [study.outcomes(study.base, "none", FINE_TUNED) for study in (dearest, largest)]
    common = sorted(bases[0].keys() & bases[1].keys())
    if not common:
        return
    fewer = 100 * (1 - dearest.base_macs / largest.base_macs)
    test = f"a cheaper base: {dearest.recipe}, unreduced, at {fewer:.0f} % fewer MACs minus the largest base"
    points = paired(*({seed: own[seed] for seed in common} for own in bases))
    reading = Reading(
        claim=3,
        topic=test,
        test=test,
        study=f"{largest.name} + {dearest.name}",
        members=(largest.name, dearest.name),
        schedule="none",
        unit="points",
        rule=NOT_INFERIOR,
        ours=from_outcomes(points, dearest.base, largest.base),
        shown_only=UNREDUCED,
    )
    yield decide([reading])[0]


def several_widths(group: Sequence[Study]) -> bool:
    """Whether the bases of these studies cost different numbers of multiply-adds."""
    return len({study.base_macs for study in group if study.base}) > 1


def affordable(group: Sequence[Study], macs: float) -> list[Row]:
    """The pooled models that cost at most `macs` multiply-adds per image."""
    rows = [Row(study, schedule) for study in group for schedule in priced(study, POOLING)]
    return [row for row in rows if row.study.macs_share(POOLING, row.schedule) * row.study.base_macs <= macs]


def chosen_by_other_seeds(table: pd.DataFrame) -> dict[int, int]:
    """For each seed (column), the label of the row with the highest mean over the other seeds."""
    return {seed: table.drop(columns=seed).mean(axis=1).idxmax() for seed in table.columns}


def _of_chosen(largest: Study, chosen: dict[int, Row]) -> Difference:
    pooled: dict[int, Outcomes] = {}
    for seed, row in chosen.items():
        pooled[seed] = row.study.outcomes(POOLING, row.schedule, FINE_TUNED)[seed]
    points = paired(pooled, largest.outcomes(largest.base, "none", FINE_TUNED))
    return from_outcomes(points, POOLING, largest.base)


# ------------------------------------------------------------------------------------------ 8


def off_the_shelf(study: Study) -> Iterator[Reading]:
    """Claim 8: Token Pooling in the trained base against the base itself, neither fine-tuned."""
    blank = Reading(
        claim=8,
        topic="off the shelf at 42 % fewer MACs",
        test=f"off the shelf: {POOLING} at 42 % fewer MACs minus the base",
        study=study.name,
        schedule="",
        unit="points",
        rule=Rule(low=PRESERVED),
        paper="sources conflict: preserved, or 10 to 40 points lost",
    )
    if study.expected is None:
        unknown = f"the base that recipe {study.recipe} expects: only a packaged recipe states expected_base here"
        yield replace(blank, missing=unknown)
        return
    yield _at_headline_cost(study, blank, OFF_THE_SHELF)
    yield from _by_schedule(study, blank, OFF_THE_SHELF)
