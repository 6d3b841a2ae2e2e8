"""One sentence a claim: the verdict, and the number and interval of each quantity that decides it."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan

from tpbench.claims.claims import CLAIMS, imprecision
from tpbench.claims.verdict import Reading
from tpbench.report.families import EXCLUDED, FAILS, HOLDS, UNDECIDED
from tpbench.report.layout import fixed

FROM_WORST = (FAILS, EXCLUDED, UNDECIDED, HOLDS)


def sentences(readings: Sequence[Reading]) -> list[str]:
    """The eight claims in their order."""
    return [sentence(claim, [r for r in readings if r.claim == claim]) for claim in CLAIMS]


def sentence(claim: int, readings: Sequence[Reading]) -> str:
    """The most precise study decides every topic by its least favourable reading; other studies are named."""
    chosen = deciding(readings)
    text = f"{claim}. {CLAIMS[claim]}: {overall(readings)}"
    parts = [part(reading, alone(reading, readings)) for reading in chosen]
    parts += dict.fromkeys(f"not measured: {reading.missing}" for reading in absent(readings))
    if not chosen:
        reasons = [reading.shown_only for reading in readings if reading.shown_only and not reading.missing]
        parts += [f"nothing counts: {reason}" for reason in reasons[:1]]
    return f"{text}{' - ' if parts else ''}{'; '.join(parts)}{_studies(readings, chosen)}."


def overall(readings: Sequence[Reading]) -> str:
    """A claim holds where each of its topics does; the worst verdict among them is the claim's."""
    verdicts = {reading.verdict for reading in deciding(readings)}
    if not verdicts or absent(readings):
        verdicts.add(UNDECIDED)
    return next(verdict for verdict in FROM_WORST if verdict in verdicts)


def deciding(readings: Sequence[Reading]) -> list[Reading]:
    """For every topic the least favourable reading of the study that measures it most precisely."""
    chosen = []
    for topic in dict.fromkeys(reading.topic for reading in readings if reading.counts):
        own = [reading for reading in readings if reading.counts and reading.topic == topic]
        study = min(own, key=imprecision).study
        chosen.append(min((reading for reading in own if reading.study == study), key=favour))
    return chosen


def absent(readings: Sequence[Reading]) -> list[Reading]:
    """For every topic that nothing measures, what is missing."""
    counted = {reading.topic for reading in readings if reading.counts}
    missing = {reading.topic: reading for reading in readings if reading.missing and reading.topic not in counted}
    return list(missing.values())


def favour(reading: Reading) -> tuple[int, float]:
    """From the least favourable reading on: by verdict, then by how far the value lies within the claim's bounds."""
    value = reading.ours.value
    return FROM_WORST.index(reading.verdict), min(value - reading.rule.low, reading.rule.high - value)


def alone(reading: Reading, readings: Sequence[Reading]) -> bool:
    """Whether its study has no other reading of the same topic, so that the topic says which it is."""
    own = [other for other in readings if other.counts and other.study == reading.study]
    return [other.topic for other in own].count(reading.topic) == 1


def part(reading: Reading, named_by_topic: bool) -> str:
    """A reading in words, such as "wkmedoids minus topk +0.05 [-0.94, 1.04] points (undecided: ...)"."""
    name = reading.topic if named_by_topic else reading.test
    return f"{name} {measured(reading)} {reading.unit} ({_because(reading)})"


def measured(reading: Reading) -> str:
    """The value and its 95 % interval, the value alone where there is none."""
    decimals = 3 if reading.unit == "ratio" else 2
    value = fixed(reading.value, decimals)
    if reading.unit == "points" and reading.value > 0:
        value = f"+{value}"
    low, high = reading.bounds
    return value if isnan(low) else f"{value} [{fixed(low, decimals)}, {fixed(high, decimals)}]"


def _because(reading: Reading) -> str:
    effect = fixed(reading.shown(reading.effect), 2)
    if reading.verdict == EXCLUDED or (reading.effect_excluded and reading.verdict != UNDECIDED):
        return f"{reading.verdict}: the paper's {effect} is ruled out"
    if reading.verdict != UNDECIDED or not reading.ours.known:
        return reading.verdict if reading.verdict != UNDECIDED else f"{UNDECIDED}: {reading.open_because}"
    low, high = (fixed(end, 2) for end in reading.bounds)
    places = {1: f"above {high}", -1: f"below {low}", 0: f"outside {low} to {high}"}
    return f"{UNDECIDED}: values {places[reading.rule.side]} are ruled out"


def _studies(readings: Sequence[Reading], chosen: Sequence[Reading]) -> str:
    """Where the numbers come from, and what other studies say."""
    used = list(dict.fromkeys(reading.study for reading in chosen if reading.study))
    text = f" ({', '.join(f'{study}, {_seeds(chosen, study)}' for study in used)})" if used else ""
    counted = [reading for reading in readings if reading.counts and reading.study]
    others = [study for study in dict.fromkeys(reading.study for reading in counted) if study not in used]
    texts = [f"{study}: {overall([r for r in counted if r.study == study])}" for study in others]
    return text + (f"; also {', '.join(texts)}" if texts else "")


def _seeds(chosen: Sequence[Reading], study: str) -> str:
    counts = sorted({reading.ours.seeds for reading in chosen if reading.study == study})
    if counts == [1]:
        return "1 seed"
    return f"{' to '.join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))} seeds"
