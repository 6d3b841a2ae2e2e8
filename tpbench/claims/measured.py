"""Claim 2 and the first part of claim 7, from measurements on the trained bases: one file for each seed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import log
from statistics import fmean
from typing import Any

from tpbench.claims.closed_form import ITERATIONS
from tpbench.claims.contrasts import from_samples, from_values
from tpbench.claims.study import OTHER_START, Study
from tpbench.claims.verdict import Reading, Rule, decide

# Our bounds, since the paper gives no number for "robust" and "converges".
SAME_OBJECTIVE = 0.05  # the relative change of the clustering objective that another start may cause
CONVERGED = 0.01  # the relative distance of the objective from that of the converged clustering
STARTS = "objective from other starts"
ITERATED = f"objective after {ITERATIONS} iterations"


def low_pass(study: Study) -> Iterator[Reading]:
    """Claim 2: the gain of low over high frequencies, as a logarithm.

    Only the model's own attention counts. With keys as queries, attention is the very filter that defines the
    frequencies (up to the norms of the keys), so that the claim would be nearly a tautology.
    """
    tests = {
        "as_it_is": ("gain of low over high frequencies in the model's own attention", ""),
        "one_key_norm": ("the same with all keys at one norm", "not the model's own attention"),
        "at_the_keys": (
            "the same with keys as queries",
            "nearly a tautology: this filter defines the frequencies",
        ),
    }
    for name, (topic, shown_only) in tests.items():
        logs = {seed: -log(getattr(found, name).high_over_low) for seed, found in enumerate(study.spectra)}
        reading = Reading(
            claim=2,
            topic=topic,
            test=f"{topic} (lowest quarter over upper half)",
            study=study.name,
            schedule="",
            unit="ratio",
            rule=Rule(low=0.0),
            ours=from_values(logs, "low", "high"),
            logarithm=True,
            shown_only=shown_only,
            missing="" if logs else "spectra of the bases: run the recipe again",
        )
        yield from decide([reading])


def clustering_is_robust(study: Study) -> Iterator[Reading]:
    """Claim 7: the clustering objective per image, by start and after the default number of iterations."""
    if not study.starts:
        missing = "clustering objectives of the bases: run the recipe again"
        for topic, rule in ((STARTS, _same()), (ITERATED, _converged())):
            yield Reading(
                claim=7,
                topic=topic,
                test=topic,
                study=study.name,
                schedule="",
                unit="ratio",
                rule=rule,
                logarithm=True,
                missing=missing,
            )
        return
    default = study.starts[0]["default"]
    others = [start for start in study.starts[0]["starts"] if start != default["start"]]
    yield from decide([_start(study, start, default["start"]) for start in others])
    for start in (default["start"], *others):
        reading = _convergence(study, start)
        detail = "" if start == default["start"] else OTHER_START
        yield from decide([replace(reading, shown_only=detail)])


def _same() -> Rule:
    return Rule(-log(1 + SAME_OBJECTIVE), log(1 + SAME_OBJECTIVE))


def _converged() -> Rule:
    return Rule(high=log(1 + CONVERGED))


def _start(study: Study, start: str, default: str) -> Reading:
    samples = [found["starts"][start][str(ITERATIONS)] for found in study.starts]
    test = f"objective after {ITERATIONS} iterations, start {start} over {default}"
    return _objective(study, STARTS, test=test, rule=_same(), samples=samples)


def _convergence(study: Study, start: str) -> Reading:
    samples = [found["unconverged"][start] for found in study.starts]
    test = f"objective after {ITERATIONS} iterations over the converged one, start {start}"
    settled = 100 * fmean(sample["settled"] for sample in samples)
    note = f"{settled:.0f} % of the clusterings change no more after {ITERATIONS} iterations"
    return replace(_objective(study, ITERATED, test=test, rule=_converged(), samples=samples), note=note)


def _objective(study: Study, topic: str, test: str, rule: Rule, samples: list[dict[str, Any]]) -> Reading:
    means = [sample["mean"] for sample in samples]
    sds = [sample["sd"] for sample in samples]
    images = [found["images"] for found in study.starts]
    return Reading(
        claim=7,
        topic=topic,
        test=f"{test} (geometric mean over images)",
        study=study.name,
        schedule=study.starts[0]["schedule"],
        unit="ratio",
        rule=rule,
        ours=from_samples(means, sds, images=images, a="", b=""),
        paper="stated, no number",
        logarithm=True,
    )
