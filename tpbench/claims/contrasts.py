"""Differences between rows of a study, over seeds and, where per-image outcomes are recorded, over images.

Shapes: S seeds, I images.
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
from tpbench.report.cost_columns import SAME_MACS
from tpbench.report.estimates import MIN_DF, Difference, combined
from tpbench.report.statistics import fit
from tpbench.report.two_way import from_outcomes, with_images

SAME_LATENCY = 0.05  # the same for latency, which `measure.latency_budget` meets no more precisely


def between(study: Study, a: str, b: str, schedules: Sequence[str], stage: str = FINE_TUNED) -> Difference | None:
    """Row a minus row b in points, mean over schedules; None if no seed has both rows at all of these schedules.

    The residual over seeds is pooled over all rows of the table (one linear model). The noise of images that several
    seeds test is estimated from the outcomes of the two rows and added.
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
    """The mean of several tables, cell by cell; NaN where any of them lacks the cell."""
    total = tables[0]
    for table in tables[1:]:
        total = total + table
    return (total / len(tables)).dropna(how="all")


def points_of(study: Study, a: str, b: str, schedule: str, stage: str, seeds: Sequence[int]) -> np.ndarray:
    """Row a minus row b in points for each image: [S, I] for these seeds. Raises UsageError if outcomes are missing."""
    rows = []
    for method in (a, b):
        place = "none" if method == study.base else schedule
        own = study.outcomes(method, place, stage)
        lacking = [str(seed) for seed in seeds if seed not in own]
        if lacking:
            raise UsageError(f"{study.name}: {method} {place} has top-1 without outcomes in seed {', '.join(lacking)}")
        rows.append({seed: own[seed] for seed in seeds})
    return paired(*rows)


def from_values(values: Mapping[int, float], a: str, b: str) -> Difference:
    """The mean of one number per seed, with the standard error from the scatter over seeds."""
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


def from_samples(means: Sequence[float], sds: Sequence[float], images: Sequence[int], a: str, b: str) -> Difference:
    """The mean over seeds of means over images. sds: the standard deviation over the images of each seed.

    The variance over images is added as if all seeds had tested the same images. If they did not, the interval is too
    wide, never too narrow. There is none where the seeds alone have none.
    """
    over_seeds = from_values(dict(enumerate(means)), a, b)
    if over_seeds.df < MIN_DF:
        return over_seeds
    of_images = fmean(sd**2 / count for sd, count in zip(sds, images))
    parts = [(over_seeds.standard_error**2, over_seeds.df), (of_images, float(sum(images) - len(images)))]
    standard_error, df = combined([part for part in parts if part[0] > 0])
    return Difference(value=over_seeds.value, standard_error=standard_error, df=df, seeds=over_seeds.seeds, a=a, b=b)


# ------------------------------------------------------------------------------------------ at a given cost


class Place(NamedTuple):
    """A schedule and its share of the base's multiply-adds. The schedule "" is the base itself."""

    schedule: str
    share: float


def at_share(study: Study, method: str, share: float, stage: str = FINE_TUNED) -> tuple[Difference, str] | None:
    """A method minus the base at a share of the base's MACs, in points, and the schedules that it was read from.

    The value is interpolated linearly between the two nearest measured schedules below and above the share, the same
    two for all seeds; the base itself is the point at the full share. None if no schedule lies at or below the share.
    Accuracy is usually concave in cost, so a straight line does not flatter a method.
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
    """The schedules at which a method has an accuracy and counted multiply-adds, without budgets of latency."""
    texts = [text for text in study.schedules() + study.schedules("macs=") if study.of(method, text)]
    texts = [text for text in texts if all(record.macs for record in study.of(method, text))]
    return [text for text in texts if any(f"{stage}_top1" in record.metrics for record in study.of(method, text))]


def to_base(study: Study, method: str, weights: Mapping[str, float], stage: str) -> Difference | None:
    """A method minus the base in points, as a weighted mean over schedules. The schedule "" is the base: it adds 0."""
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
        return from_values(values.to_dict(), method, study.base)
    seeds = list(values.index)
    points = [
        weights[text] * points_of(study, method, b=study.base, schedule=text, stage=stage, seeds=seeds)
        for text in weights
    ]
    return from_outcomes(np.sum(points, axis=0), method, study.base)


# ------------------------------------------------------------------------------------------ equal cost


def unequal(study: Study, a: str, b: str, schedule: str) -> str:
    """Why two rows do not cost the same at a schedule that promises it; "" if they do, or if it fixes only tokens."""
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
    """A row's latency over the base's at the largest batch, mean over seeds; 0 if it was not measured."""
    ratios = []
    for record in study.of(method, schedule):
        if record.latency:
            samples = record.latency[max(record.latency, key=int)]
            ratios.append(median(samples["reduced"]) / median(samples["unreduced"]))
    return fmean(ratios) if ratios else 0.0
