"""Differences between rows of a study, over seeds and, where outcomes are kept, over images.

S seeds, I images
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import nan, sqrt
from statistics import fmean, median, stdev
from typing import NamedTuple

import numpy as np
import pandas as pd

from tpbench.claims.study import FINE_TUNED, Study
from tpbench.errors import UsageError
from tpbench.outcomes import paired
from tpbench.report.estimates import Difference, combined
from tpbench.report.statistics import fit
from tpbench.report.two_way import from_outcomes, with_images

SAME_MACS = 0.01  # largest difference in MACs between rows at equal MACs, as a share of the base's
SAME_LATENCY = 0.05  # the same of latency: `measure.latency_budget` finds it no finer


def between(study: Study, a: str, b: str, schedules: Sequence[str], stage: str = FINE_TUNED) -> Difference | None:
    """Row a minus row b in points, the mean over schedules; None where they share no seed at all of these.

    The residual over seeds is that of all rows of the table (one linear model), the noise of images that several seeds
    test is added from the outcomes of the two rows.
    """
    table = mean_table([study.top1(schedule, stage) for schedule in schedules])
    if not {a, b} <= set(table.index):
        return None
    common = table.loc[[a, b]].dropna(axis="columns").columns
    if common.empty:
        return None
    over_seeds = fit(table).difference(a, b)
    if not study.has_outcomes:
        return over_seeds
    points = [points_of(study, a, b=b, schedule=schedule, stage=stage, seeds=common) for schedule in schedules]
    return with_images(over_seeds, np.mean(points, axis=0))


def mean_table(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """The mean of several tables, cell by cell, for the cells that all of them have."""
    total = tables[0]
    for table in tables[1:]:
        total = total + table
    return (total / len(tables)).dropna(how="all")


def points_of(study: Study, a: str, b: str, schedule: str, stage: str, seeds: Sequence[int]) -> np.ndarray:
    """[S, I] points of row a minus row b at a schedule, for these seeds; UsageError where outcomes are missing."""
    rows = []
    for method in (a, b):
        place = "none" if method == study.base else schedule
        own = study.outcomes(method, place, stage)
        lacking = [str(seed) for seed in seeds if seed not in own]
        if lacking:
            raise UsageError(f"{study.name}: {method} {place} has top-1 without outcomes in seed {', '.join(lacking)}")
        rows.append({seed: own[seed] for seed in seeds})
    return paired(*rows)


def of_values(values: Mapping[int, float], a: str, b: str) -> Difference:
    """The mean of one number a seed; its standard error by the scatter over seeds."""
    numbers = list(values.values())
    if len(numbers) < 2:
        return Difference(
            value=numbers[0] if numbers else nan, standard_error=nan, df=0.0, seeds=len(numbers), a=a, b=b
        )
    return Difference(
        value=fmean(numbers),
        standard_error=stdev(numbers) / sqrt(len(numbers)),
        df=len(numbers) - 1.0,
        seeds=len(numbers),
        a=a,
        b=b,
    )


def of_samples(means: Sequence[float], sds: Sequence[float], images: Sequence[int], a: str, b: str) -> Difference:
    """The mean over seeds of means over images.

    The images' own variance is added as if all seeds had tested the same images; where they did not, the interval is
    too wide and never too narrow.
    """
    over_seeds = of_values(dict(enumerate(means)), a, b)
    if over_seeds.seeds < 2:
        return over_seeds
    of_images = fmean(sd**2 / count for sd, count in zip(sds, images))
    parts = [(over_seeds.standard_error**2, over_seeds.df), (of_images, float(sum(images) - len(images)))]
    standard_error, df = combined([part for part in parts if part[0] > 0])
    return Difference(value=over_seeds.value, standard_error=standard_error, df=df, seeds=over_seeds.seeds, a=a, b=b)


# ------------------------------------------------------------------------------------------ at a given cost


class Place(NamedTuple):
    """A schedule and its share of the base's multiply-adds; "" is the base itself."""

    schedule: str
    share: float


def at_share(study: Study, method: str, share: float, stage: str = FINE_TUNED) -> tuple[Difference, str] | None:
    """A method minus the base at a share of the base's MACs, in points, and the schedules it was read from.

    Linear between the two measured schedules nearest to the share from either side, the same for all seeds; the base
    itself is the point at the full share. None without a schedule at or below the share. Accuracy rises ever more
    slowly with cost, so that a straight line flatters no method.
    """
    places = [Place(text, study.macs_share(method, text)) for text in priced(study, method, stage)]
    below = max((place for place in places if place.share <= share), key=lambda place: place.share, default=None)
    if below is None or not study.base:
        return None
    above = min((place for place in places if place.share > share), key=lambda place: place.share, default=Place("", 1))
    weight = (above.share - share) / (above.share - below.share)
    difference = to_base(study, method, weights={below.schedule: weight, above.schedule: 1 - weight}, stage=stage)
    if difference is None:
        return None
    names = " and ".join(name or "the base" for name in (below.schedule, above.schedule))
    return difference, f"between {names}"


def priced(study: Study, method: str, stage: str = FINE_TUNED) -> list[str]:
    """The schedules at which a method has an accuracy, and multiply-adds that do not depend on the clock."""
    texts = [text for text in study.schedules() + study.schedules("macs=") if study.of(method, text)]
    texts = [text for text in texts if all(record.macs for record in study.of(method, text))]
    return [text for text in texts if any(f"{stage}_top1" in record.metrics for record in study.of(method, text))]


def to_base(study: Study, method: str, weights: Mapping[str, float], stage: str) -> Difference | None:
    """The weighted mean over schedules of a method minus the base; the base minus itself ("") is 0."""
    weights = {schedule: weight for schedule, weight in weights.items() if schedule and weight}
    base = study.top1("none", stage)
    tables = {schedule: study.top1(schedule, stage) for schedule in weights}
    if base.empty or any(method not in table.index for table in tables.values()):
        return None
    gaps = [weights[text] * (table.loc[method] - base.loc[study.base]) for text, table in tables.items()]
    values = sum(gaps[1:], gaps[0]).dropna()
    if values.empty:
        return None
    if not study.has_outcomes:
        return of_values(values.to_dict(), method, study.base)
    seeds = list(values.index)
    points = [
        weights[text] * points_of(study, method, b=study.base, schedule=text, stage=stage, seeds=seeds)
        for text in weights
    ]
    return from_outcomes(np.sum(points, axis=0), method, study.base)


# ------------------------------------------------------------------------------------------ equal cost


def unequal(study: Study, a: str, b: str, schedule: str) -> str:
    """Why two rows do not cost the same what their schedule says; "" where they do, or where tokens are equal."""
    if schedule.startswith("macs="):
        off = 100 * (study.macs_share(a, schedule) - study.macs_share(b, schedule))
        return f"MACs differ by {off:+.1f} % of the base's" if abs(off) > 100 * SAME_MACS else ""
    if schedule.startswith("latency="):
        ratios = [_latency_ratio(study, method, schedule) for method in (a, b)]
        if not all(ratios):
            return "latency was not measured"
        off = 100 * (ratios[0] - ratios[1])
        return f"latencies differ by {off:+.1f} % of the base's" if abs(off) > 100 * SAME_LATENCY else ""
    return ""


def _latency_ratio(study: Study, method: str, schedule: str) -> float:
    """A row's latency at the largest batch over the base's, mean over seeds; 0 where it was not measured."""
    ratios = []
    for record in study.of(method, schedule):
        if record.latency:
            samples = record.latency[max(record.latency, key=int)]
            ratios.append(median(samples["reduced"]) / median(samples["unreduced"]))
    return fmean(ratios) if ratios else 0.0
