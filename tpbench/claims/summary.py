"""A summary of each claim: the verdict, the quantities that decide it, with intervals, and other studies' verdicts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import isnan
from typing import NamedTuple

from tpbench.claims.claims import CLAIMS, SAME_BASES, imprecision
from tpbench.claims.verdict import Reading
from tpbench.report.families import EXCLUDED, FAILS, HOLDS, UNDECIDED
from tpbench.report.layout import fixed

FROM_WORST = (FAILS, EXCLUDED, UNDECIDED, HOLDS)
NEGATIVE = (FAILS, EXCLUDED)
DIFFERS = "differs between studies"


class Summary(NamedTuple):
    """What is known of a claim, in words.

    heading: the claim with its verdict. parts: the readings that decide it, and what was not measured. studies: where
    their numbers come from; "" for computed ones, and where the parts come from several studies and name them. others:
    the verdicts of other starts and of the other studies.
    """

    heading: str
    parts: list[str]
    studies: str
    others: list[str]

    @property
    def sentence(self) -> str:
        """All of it in one sentence."""
        parts = f" - {'; '.join(self.parts)}" if self.parts else ""
        studies = f" ({self.studies})" if self.studies else ""
        others = f"; also {', '.join(self.others)}" if self.others else ""
        return f"{self.heading}{parts}{studies}{others}."


def summaries(readings: Sequence[Reading]) -> list[Summary]:
    """The summaries of the eight claims, in order."""
    return [summary(claim, [r for r in readings if r.claim == claim]) for claim in CLAIMS]


def summary(claim: int, readings: Sequence[Reading]) -> Summary:
    """A claim with its verdict, the readings that decide it, what was not measured, and other studies' verdicts."""
    chosen = deciding(readings)
    used = list(dict.fromkeys(reading.study for reading in chosen if reading.study))
    parts = [part(reading, named_by_topic=is_only_one_of_topic(reading, readings)) for reading in chosen]
    if len(used) > 1:
        parts = [f"{text} on {r.study}, {_seeds([r], r.study)}" for text, r in zip(parts, chosen)]
    parts += dict.fromkeys(f"not measured: {reading.missing}" for reading in not_measured(readings))
    if not chosen:
        reasons = [reading.shown_only for reading in readings if reading.shown_only and not reading.missing]
        parts += [f"nothing counts: {reason}" for reason in reasons[:1]]
    return Summary(
        heading=f"{claim}. {CLAIMS[claim]}: {overall(readings)}",
        parts=parts,
        studies=f"{used[0]}, {_seeds(chosen, used[0])}" if len(used) == 1 else "",
        others=[*_other_starts(readings), *_others(readings)],
    )


def overall(readings: Sequence[Reading]) -> str:
    """The verdict on a claim: the worst verdict of its topics, unless another study decides the contrary.

    A topic without a reading is undecided.
    """
    chosen = deciding(readings)
    verdicts = {reading.verdict for reading in chosen}
    if not verdicts or not_measured(readings):
        verdicts.add(UNDECIDED)
    worst = next(verdict for verdict in FROM_WORST if verdict in verdicts)
    return DIFFERS if contradicted(worst, chosen, readings) else worst


def contradicted(verdict: str, chosen: Sequence[Reading], readings: Sequence[Reading]) -> bool:
    """Whether another study decides the contrary of a verdict on a claim.

    chosen: the readings that the verdict rests on. A claim that holds is contradicted wherever a reading counts that
    does not. One that does not hold is contradicted by a study that has all the tests which failed, if everything holds
    there: also what does not count because another study has the same bases.
    """
    counted = [reading for reading in readings if reading.counts]
    if verdict == HOLDS:
        return any(reading.verdict in NEGATIVE for reading in counted)
    if verdict not in NEGATIVE:
        return False
    deciders = {(reading.topic, reading.study) for reading in chosen}
    failed = {r.test for r in counted if r.verdict in NEGATIVE and (r.topic, r.study) in deciders}
    for study in dict.fromkeys(study for reading in counted for study in reading.studies):
        own = [reading for reading in readings if study in reading.studies]
        tested = {reading.test for reading in own if reading.counts}
        judged = [reading for reading in own if reading.counts or reading.shown_only.startswith(SAME_BASES)]
        if failed <= tested and all(reading.verdict == HOLDS for reading in judged):
            return True
    return False


def deciding(readings: Sequence[Reading]) -> list[Reading]:
    """For each topic, the least favourable reading of the study that measures it most precisely."""
    chosen = []
    for topic in dict.fromkeys(reading.topic for reading in readings if reading.counts):
        own = [reading for reading in readings if reading.counts and reading.topic == topic]
        study = min(own, key=imprecision).study
        chosen.append(min((reading for reading in own if reading.study == study), key=favourability))
    return chosen


def not_measured(readings: Sequence[Reading]) -> list[Reading]:
    """For each topic that no reading measures, a reading that says what is missing."""
    counted = {reading.topic for reading in readings if reading.counts}
    missing = {reading.topic: reading for reading in readings if reading.missing and reading.topic not in counted}
    return list(missing.values())


def favourability(reading: Reading) -> tuple[int, float]:
    """The key that sorts readings from the least favourable on: by verdict, then by distance to the nearest bound."""
    value = reading.ours.value
    return FROM_WORST.index(reading.verdict), min(value - reading.rule.low, reading.rule.high - value)


def is_only_one_of_topic(reading: Reading, readings: Sequence[Reading]) -> bool:
    """Whether the study has no other reading of the topic, so that the topic identifies the reading."""
    own = [other for other in readings if other.counts and other.study == reading.study]
    return [other.topic for other in own].count(reading.topic) == 1


def part(reading: Reading, named_by_topic: bool) -> str:
    """A reading in words, such as "wkmedoids minus topk +0.05 [-0.94, 1.04] points (undecided: ...)"."""
    name = reading.topic if named_by_topic else reading.test
    return f"{name} {value_text(reading)} {reading.unit} ({_because(reading)})"


def value_text(reading: Reading) -> str:
    """The value with its 95 % interval; the value alone if there is no interval."""
    decimals = 3 if reading.unit == "ratio" else 2
    value = fixed(reading.value, decimals)
    if reading.unit == "points" and reading.value > 0:
        value = f"+{value}"
    low, high = reading.bounds
    return value if isnan(low) else f"{value} [{fixed(low, decimals)}, {fixed(high, decimals)}]"


def _because(reading: Reading) -> str:
    effect = reading.claimed or f"the paper's {fixed(reading.shown(reading.effect), 2)}"
    if reading.verdict == EXCLUDED or (reading.effect_excluded and reading.verdict != UNDECIDED):
        return f"{reading.verdict}: {effect} is ruled out"
    if reading.verdict != UNDECIDED:
        return reading.verdict
    if not reading.ours.known:
        return f"{UNDECIDED}: {reading.why_undecided}"
    low, high = (fixed(end, 2) for end in reading.bounds)
    places = {1: f"above {high}", -1: f"below {low}", 0: f"outside {low} to {high}"}
    return f"{UNDECIDED}: values {places[reading.rule.side]} are ruled out"


def _other_starts(readings: Sequence[Reading]) -> Iterator[str]:
    """The verdicts from other starts of Token Pooling, where they have every reading that its default start has."""
    for study, start in dict.fromkeys((reading.study, reading.start) for reading in readings if reading.start):
        own = [reading for reading in readings if (reading.study, reading.start) == (study, start)]
        default = [reading for reading in readings if reading.counts and reading.study == study]
        if len(own) == len(default) and {r.schedule for r in own} == {r.schedule for r in default}:
            worst = min(own, key=favourability)
            value = f"{worst.topic} {value_text(worst)} {worst.unit}"
            yield f"from the start {start}, on {study}: {worst.verdict} ({value})"


def _others(readings: Sequence[Reading]) -> Iterator[str]:
    """The verdicts of every study on the topics that other studies decide, each with its least favourable reading."""
    decided = {(reading.topic, reading.study) for reading in deciding(readings)}
    counted = [reading for reading in readings if reading.counts and reading.study]
    for study in dict.fromkeys(reading.study for reading in counted):
        everything = [reading for reading in counted if reading.study == study]
        own = [reading for reading in everything if (reading.topic, study) not in decided]
        if not own:
            continue
        rest = "" if len(own) == len(everything) else ", on the other quantities"
        worst = min(deciding(own), key=favourability)
        name = worst.topic if is_only_one_of_topic(worst, own) else worst.test
        yield f"{study}{rest}: {overall(own)} ({name} {value_text(worst)} {worst.unit})"


def _seeds(chosen: Sequence[Reading], study: str) -> str:
    counts = sorted({reading.ours.seeds for reading in chosen if reading.study == study})
    if counts == [1]:
        return "1 seed"
    return f"{' to '.join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))} seeds"
