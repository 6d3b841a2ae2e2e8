"""The eight claims of the Token Pooling paper, tested against the records. Nothing here is tuned towards the paper.

Each claim is a function from a study to its readings. This module collects the readings and decides which ones count.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from math import inf

from tpbench.claims import accuracy, at_base, closed_form, measured
from tpbench.claims.study import Study
from tpbench.claims.verdict import Reading, decide

CLAIMS = {
    1: "Fully connected layers take more than 80 % of a vision transformer's computation at 224 pixels",
    2: "Softmax attention is a low-pass filter over key space",
    3: "Equal accuracy at 42 % fewer computations",
    4: "Token Pooling beats PoWER-BERT, importance, random selection and convolution at equal cost",
    5: "Weighting the clusters helps a little",
    6: "The cost of clustering is counted and small",
    7: "Robust to initialisation, converged within 5 iterations",
    8: "Works without fine-tuning",
}
BY_MEASUREMENT = (measured.low_pass, closed_form.measured_costs, measured.clustering_is_robust)
BY_ACCURACY = (
    at_base.loss_on_one_base,
    accuracy.beats_the_others,
    accuracy.weighting_helps,
    accuracy.settings_do_not_matter,
    at_base.off_the_shelf,
)
NO_OUTCOMES = "no per-image outcomes"
SAME_BASES = "has the same bases as "


def readings(studies: Sequence[Study]) -> list[Reading]:
    """All readings, ordered by claim. A study with a `no_evidence` reason contributes none."""
    evidence = [study for study in studies if not study.no_evidence]
    found = [reading for study in evidence for claim in BY_MEASUREMENT for reading in claim(study)]
    found += [reading for study in evidence for claim in BY_ACCURACY for reading in by_accuracy(claim(study), study)]
    groups = sharing_a_hull(evidence)
    found += [at_base.loss_on_the_hull(group) for group in groups or [[]]]
    found += [reading for group in groups for reading in at_base.loss_of_a_cheaper_base(group)]
    once = counted_once(_without_redundant_gaps(found), evidence)
    closed = [*closed_form.fully_connected(), *closed_form.clustering_is_cheap()]
    return sorted([*decide(closed), *once], key=lambda reading: reading.claim)


def by_accuracy(readings: Iterable[Reading], study: Study) -> Iterator[Reading]:
    """Readings of accuracies; without per-image outcomes they are shown but do not count."""
    for reading in readings:
        without = "" if study.has_outcomes else NO_OUTCOMES
        reasons = [reading.shown_only, without] if reading.start else [reading.shown_only or without]
        yield replace(reading, shown_only="; ".join(filter(None, reasons)))


def sharing_a_hull(studies: Sequence[Study]) -> list[list[Study]]:
    """Groups of studies that can share a Pareto hull: on the same images, fine-tuned equally long, with outcomes.

    Of several studies of one recipe, the one with the most records is taken.
    """
    groups: dict[tuple[str, int], dict[str, Study]] = {}
    for study in studies:
        if not study.has_outcomes:
            continue
        own = groups.setdefault((study.images, study.fine_tuned_on), {})
        if study.recipe not in own or len(study.records) > len(own[study.recipe].records):
            own[study.recipe] = study
    return [list(own.values()) for own in groups.values()]


# ------------------------------------------------------------------------------------------ which readings count


def _without_redundant_gaps(readings: Sequence[Reading]) -> list[Reading]:
    """The readings without those that lack measurements for a topic that another reading covers.

    Where no reading measures a topic, the first of its gaps is kept, so that the table names what is missing.
    """
    settled = {_topic(reading) for reading in readings if not reading.missing and not reading.start}
    kept = []
    for reading in readings:
        if not reading.missing or _topic(reading) not in settled:
            kept.append(reading)
        settled.add(_topic(reading))
    return kept


def counted_once(readings: Sequence[Reading], studies: Sequence[Study]) -> list[Reading]:
    """The readings, of which only the most precise of each test counts among studies that share their bases.

    Such readings are not independent. The others are shown only, with the reason.
    """
    by_name = {study.name: study for study in studies}
    counted: dict[tuple[int, str], list[Reading]] = {}
    found = list(readings)
    most_precise_first = sorted(range(len(found)), key=lambda place: imprecision(found[place]))
    for place in most_precise_first:
        reading = found[place]
        if not reading.counts:
            continue
        own = counted.setdefault(_test(reading), [])
        study = by_name.get(reading.study)
        same = [other.study for other in own if _share(study, by_name.get(other.study))]
        if same:
            found[place] = replace(reading, shown_only=f"{SAME_BASES}{same[0]}, which counts")
        else:
            own.append(reading)
    return found


def _test(reading: Reading) -> tuple[int, str]:
    return reading.claim, reading.test


def _topic(reading: Reading) -> tuple[int, str]:
    return reading.claim, reading.topic


def _share(study: Study | None, other: Study | None) -> bool:
    return study is not None and other is not None and study.shares_bases(other)


def imprecision(reading: Reading) -> float:
    """Half the width of a reading's interval, which tells few seeds from many; infinite where there is none."""
    return reading.ours.half_width() if reading.ours.known else inf
