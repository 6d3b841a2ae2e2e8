"""Claims 4 and 5 and the second part of claim 7: pairs of methods compared by top-1 after fine-tuning."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from math import nan
from statistics import fmean
from typing import NamedTuple

from tpbench.claims.closed_form import ITERATIONS, gram_note
from tpbench.claims.contrasts import between, unequal
from tpbench.claims.study import OTHER_START, POOLING, Study
from tpbench.claims.verdict import Reading, Rule, decide
from tpbench.report import published
from tpbench.report.methods import without_settings

RIVALS = {"topk": "PoWER-BERT", "importance": "importance", "random": "random", "strided_conv": "convolution"}
WEIGHTED = {"wkmedoids": "kmedoids", "wkmeans": "kmeans"}
ROBUST = 0.5  # points; our choice, since the paper gives no number for "robust" and "converges"
EQUAL_MACS = "equal MACs"
COSTS = {EQUAL_MACS: "macs=", "equal latency": "latency=", "equal tokens": ""}
SECOND = "the paper compares at equal multiply-adds"
DETAIL = "one of several schedules, whose mean counts"


class Contrast(NamedTuple):
    """A declared comparison: row a minus row b."""

    a: str
    b: str
    name: str


class Family(NamedTuple):
    """Contrasts that are decided together as one family for Holm's correction, and what their readings share."""

    study: Study
    claim: int
    heading: str  # the prefix of each contrast's name
    rule: Rule
    topic: str = ""  # the name under which the summary groups them; "": each contrast is a topic of its own


def beats_the_others(study: Study) -> Iterator[Reading]:
    """Claim 4: Token Pooling against its four rivals, which form one family; other starts of it are only shown."""
    yield from at_equal_cost(study, 4, list(to_rivals(POOLING)))
    family = Family(study=study, claim=4, heading=f"{EQUAL_MACS}: ", rule=Rule(low=0))
    for start, method in study.other_starts().items():
        for reading in over_schedules(family, list(to_rivals(method)), study.schedules(COSTS[EQUAL_MACS])):
            if not reading.shown_only:
                yield replace(reading, shown_only=OTHER_START, start=start)


def to_rivals(pooling: str) -> Iterator[Contrast]:
    """Token Pooling, with or without settings of its own, against each of its four rivals."""
    for rival, name in RIVALS.items():
        yield Contrast(pooling, rival, f"{pooling} minus {rival} ({name})")


def weighting_helps(study: Study) -> Iterator[Reading]:
    """Claim 5: the weighted against the plain form of two algorithms, which form one family."""
    contrasts = [Contrast(weighted, plain, f"{weighted} minus {plain}") for weighted, plain in WEIGHTED.items()]
    yield from at_equal_cost(study, 5, contrasts)


def at_equal_cost(study: Study, claim: int, contrasts: Sequence[Contrast]) -> Iterator[Reading]:
    """The contrasts at equal MACs, which count, and at equal latency and at equal tokens, which are only shown."""
    for cost, prefix in COSTS.items():
        schedules = study.schedules(prefix) if prefix else study.schedules()
        family = Family(study=study, claim=claim, heading=f"{cost}: ", rule=Rule(low=0))
        second = "" if cost == EQUAL_MACS else SECOND
        measured = []
        for reading in over_schedules(family, contrasts, schedules):
            measured.append(reading.test)
            yield replace(reading, shown_only=reading.shown_only or second)
        for contrast in contrasts:
            test = family.heading + contrast.name
            if cost == EQUAL_MACS and test not in measured:
                missing = f"records of {contrast.a} and {contrast.b} at a schedule {prefix}..."
                yield unmeasured(family, topic=_topic(family, contrast), test=test, missing=missing)


def unmeasured(family: Family, *, topic: str, test: str, missing: str) -> Reading:
    """The reading of a test in points whose records are missing."""
    return Reading(
        claim=family.claim,
        topic=topic,
        test=test,
        study=family.study.name,
        schedule="",
        unit="points",
        rule=family.rule,
        missing=missing,
    )


def over_schedules(family: Family, contrasts: Sequence[Contrast], schedules: Sequence[str]) -> Iterator[Reading]:
    """Each contrast as the mean over its schedules; then, if there are several, at each schedule alone.

    A schedule at which the two methods do not cost the same is shown with the reason and left out of the mean.
    """
    usable: dict[Contrast, list[str]] = {}
    for contrast in contrasts:
        usable[contrast] = []
        for schedule in schedules:
            if between(family.study, contrast.a, b=contrast.b, schedules=[schedule]) is None:
                continue
            reason = unequal(family.study, contrast.a, b=contrast.b, schedule=schedule)
            if reason:
                yield replace(_reading(family, contrast, [schedule]), shown_only=f"not equal: {reason}")
            else:
                usable[contrast].append(schedule)
    yield from decide([_reading(family, contrast, texts) for contrast, texts in usable.items() if texts])
    for schedule in schedules:
        several = [contrast for contrast, texts in usable.items() if len(texts) > 1 and schedule in texts]
        for reading in decide([_reading(family, contrast, [schedule]) for contrast in several]):
            yield replace(reading, shown_only=DETAIL)


def _reading(family: Family, contrast: Contrast, schedules: Sequence[str]) -> Reading:
    study = family.study
    shares = [study.macs_share(contrast.a, schedule) for schedule in schedules]
    effects = [paper_difference(without_settings(contrast.a), contrast.b, share) for share in shares]
    effect = fmean(effects) if family.rule.side else nan
    difference = between(study, contrast.a, b=contrast.b, schedules=schedules)
    test = family.heading + contrast.name
    several = f"mean of {len(schedules)} schedules: {'; '.join(schedules)}"
    return Reading(
        claim=family.claim,
        topic=_topic(family, contrast),
        test=test,
        study=study.name,
        schedule=schedules[0] if len(schedules) == 1 else several,
        unit="points",
        rule=family.rule,
        ours=difference,
        effect=effect,
        paper="" if effect != effect else f"{effect:+.2f} at {100 * fmean(shares):.0f} % of MACs",
        note=gram_note(study, contrast.a, schedules[0]),
    )


def _topic(family: Family, contrast: Contrast) -> str:
    """The name of a contrast in the summary; "equal MACs", which the claims are about, is left out."""
    if family.topic:
        return family.topic
    return contrast.name if family.heading == f"{EQUAL_MACS}: " else family.heading + contrast.name


def paper_difference(method: str, rival: str, share: float) -> float:
    """The paper's difference in points between two methods at a share of MACs; NaN outside either curve's range."""
    base = "hull" if "kmedoids" in (method, rival) else "deit_small"
    curves = [published.curve(name, base) for name in (method, rival)]
    return accuracy_at(curves[0], share) - accuracy_at(curves[1], share)


def accuracy_at(line: Sequence[tuple[float, float]], macs: float) -> float:
    """A curve's accuracy at a share of MACs, interpolated linearly; NaN outside its range."""
    for (low, a), (high, b) in pairwise(line):
        if low <= macs <= high:
            return a + (b - a) * (macs - low) / (high - low)
    return nan


# ------------------------------------------------------------------------------------------ settings

SETTINGS = "accuracy, settings minus the default"
SETTING = re.compile(rf"^{POOLING}\((init|iterations)=(\w+)\)$")


def settings_do_not_matter(study: Study) -> Iterator[Reading]:
    """Claim 7 by accuracy: other settings of Token Pooling are equivalent to its default. They form one family."""
    contrasts = []
    for method in study.methods():
        match = SETTING.match(method)
        if match and (match[1] == "init" or int(match[2]) > ITERATIONS):
            contrasts.append(Contrast(method, POOLING, f"{match[1]}={match[2]} minus the default"))
    family = Family(study=study, claim=7, heading="accuracy, ", rule=Rule(-ROBUST, ROBUST), topic=SETTINGS)
    schedules = study.schedules() + study.schedules("macs=")
    found = list(over_schedules(family, contrasts, schedules))
    yield from found
    if not found:
        missing = "records of other starts and of more iterations: the recipe ablations"
        yield unmeasured(family, topic=SETTINGS, test=SETTINGS, missing=missing)
