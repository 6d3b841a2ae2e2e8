"""What changed between two sets of records, row by row: accuracy, MACs, tokens and speed of B compared with A.

A row is a method at a schedule. Changes are B minus A.

Accuracy: fine-tuned at the schedules where both sides are fine-tuned, otherwise off the shelf; the difference over the
seeds that both sides have. If both hold the outcomes of the same images, it is paired by image and its interval covers
seeds and images (`two_way.from_outcomes`); otherwise it is paired by seed (`statistics.fit` of the two rows). Each row
has its own residual: a change of the base moves all methods of a seed together, so a residual pooled over the methods
would be too small. All rows of a machine form one family for Holm.
MACs and tokens: counts, which are equal or not.
Speed: the change of the time relative to the unreduced model of the same timing session. Its interval covers the rounds
of both sessions, but not what differs between one sitting and the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import exp, log, nan
from statistics import NormalDist, fmean

import numpy as np
import pandas as pd

from tpbench.errors import UsageError
from tpbench.measure import speeds
from tpbench.measure.speeds import Ratio
from tpbench.measure.timings import Session
from tpbench.outcomes import Outcomes, paired, unpack
from tpbench.record import Record
from tpbench.report.contrast import declared
from tpbench.report.estimates import Difference, Estimate, combined
from tpbench.report.families import Judgement, judge
from tpbench.report.methods import family
from tpbench.report.standings import FINE_TUNED, OFF_THE_SHELF, UNKNOWN, stage_compared
from tpbench.report.statistics import fit
from tpbench.report.two_way import from_outcomes

A = "A"
B = "B"
IMAGES = "images"
SEEDS = "seeds"
Key = tuple[str, str]  # schedule, method
BySeed = dict[int, Record]


@dataclass(frozen=True)
class Cost:
    """The cost of a row on one side. macs: multiply-adds per image, mean over seeds; tokens: achieved, as text."""

    macs: float
    tokens: str


@dataclass(frozen=True)
class TimeChange:
    """The change of a row's time at one batch size, dtype and mode, relative to the unreduced model of its session.

    a, b: the speed-ups of the two sides. log_ratio: an estimate of the logarithm of time B over time A; if it is
    positive, B is slower.
    """

    group: str
    mode: str
    a: Ratio
    b: Ratio
    log_ratio: Estimate

    @property
    def percent(self) -> float:
        """The increase of the row's time, in percent."""
        return 100 * (exp(self.log_ratio.value) - 1)

    @property
    def bounds_percent(self) -> tuple[float, float]:
        """The 95 % interval of the change of time, in percent."""
        low, high = self.log_ratio.bounds()
        return 100 * (exp(low) - 1), 100 * (exp(high) - 1)


@dataclass(frozen=True)
class Change:
    """A row that both sides have.

    stage: the accuracy that is compared, FINE_TUNED or OFF_THE_SHELF. top1: mean top-1 of A and B in percent over the
    seeds that both have; difference: B minus A in points; paired: by IMAGES or by SEEDS. identical: whether both sides
    classify every image of every seed alike. times: changes of time. no_numbers: the sides on which the row failed or
    was unreachable, with the reasons; failed_seeds: for sides with numbers, the seeds that have none there but on the
    other side. notes: what else differs, such as settings.
    """

    method: str
    schedule: str
    family: str
    stage: str = OFF_THE_SHELF
    top1: tuple[float, float] = (nan, nan)
    difference: Difference | Estimate = UNKNOWN
    paired: str = ""
    identical: bool = False
    judgement: Judgement | None = None
    costs: tuple[Cost, Cost] | None = None
    times: tuple[TimeChange, ...] = ()
    no_numbers: dict[str, str] = field(default_factory=dict)
    failed_seeds: dict[str, list[int]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The row's name in messages."""
        return f"{self.method} at {self.schedule}"

    @property
    def macs_percent(self) -> float:
        """The increase of the row's multiply-adds, in percent; NaN if they are unknown."""
        if self.costs is None:
            return nan
        before, after = self.costs
        return 100 * (after.macs / before.macs - 1)


@dataclass(frozen=True)
class Changes:
    """The comparison of two machines, which are often the same. only: by side, the rows that the other side lacks."""

    machines: tuple[str, str]
    recipes: tuple[str, str]  # name and digest
    margin: float
    records: tuple[list[Record], list[Record]]
    rows: list[Change]
    only: dict[str, list[Key]]

    @property
    def same_recipe(self) -> bool:
        """Whether both sides ran the same version of a recipe."""
        return self.recipes[0] == self.recipes[1]

    @property
    def judged(self) -> list[Change]:
        """The family of comparisons: the rows whose accuracy has an interval."""
        return [row for row in self.rows if row.judgement is not None and row.difference.known]


def changes(
    a: list[Record],
    b: list[Record],
    sessions: tuple[Session | None, Session | None] = (None, None),
    margin: float | None = None,
) -> Changes:
    """Compare the records of two machines.

    sessions: their timing sessions, None where there is none. margin: in points of top-1; None for that of B's recipe.
    """
    if margin is None:
        margin = declared(b[0].recipe).margin
    stages = stages_compared(a, b)
    first = grouped(a)
    second = grouped(b)
    times = time_changes(*sessions)
    rows = [
        _row(key, a=first[key], b=second[key], stage=stages[key[0]], times=times.get(key, ()))
        for key in first
        if key in second
    ]
    known = [row for row in rows if row.paired]
    judgements = judge([row.difference for row in known], margin)
    found = {row.name: judgement for row, judgement in zip(known, judgements)}
    return Changes(
        machines=(a[0].machine, b[0].machine),
        recipes=(f"{a[0].recipe} ({a[0].recipe_digest})", f"{b[0].recipe} ({b[0].recipe_digest})"),
        margin=margin,
        records=(a, b),
        rows=[replace(row, judgement=found.get(row.name)) for row in rows],
        only={A: [key for key in first if key not in second], B: [key for key in second if key not in first]},
    )


def stages_compared(a: Sequence[Record], b: Sequence[Record]) -> dict[str, str]:
    """The accuracy to compare at each schedule that both sides have."""
    stages: list[dict[str, str]] = []
    for records in (a, b):
        by_schedule: dict[str, list[Record]] = {}
        for record in records:
            by_schedule.setdefault(record.schedule, []).append(record)
        stages.append({schedule: stage_compared(own) for schedule, own in by_schedule.items()})
    first, second = stages
    return {
        schedule: FINE_TUNED if stage == second[schedule] == FINE_TUNED else OFF_THE_SHELF
        for schedule, stage in first.items()
        if schedule in second
    }


def grouped(records: Sequence[Record]) -> dict[Key, BySeed]:
    """Records by row and seed."""
    rows: dict[Key, BySeed] = {}
    for record in records:
        rows.setdefault((record.schedule, record.method), {})[record.seed] = record
    return rows


def _row(key: Key, a: BySeed, b: BySeed, stage: str, times: tuple[TimeChange, ...]) -> Change:
    schedule, method = key
    blank = Change(method=method, schedule=schedule, family=family(method), stage=stage, times=times)
    healthy = {name: _healthy(own) for name, own in ((A, a), (B, b))}
    without = {name: _reason(own) for name, own in ((A, a), (B, b)) if not healthy[name]}
    if without:
        return replace(blank, no_numbers=without)
    failed = {
        A: sorted(healthy[B].keys() & (a.keys() - healthy[A].keys())),
        B: sorted(healthy[A].keys() & (b.keys() - healthy[B].keys())),
    }
    row = replace(
        blank,
        costs=_costs(healthy[A], healthy[B]),
        failed_seeds={side: seeds for side, seeds in failed.items() if seeds},
        notes=tuple(_notes(healthy[A], healthy[B])),
    )
    return _with_accuracy(row, a=healthy[A], b=healthy[B])


def _healthy(records: BySeed) -> BySeed:
    return {seed: record for seed, record in records.items() if record.error is None}


def _reason(records: BySeed) -> str:
    return " ".join((next(iter(records.values())).error or "no reason given").split())


# ------------------------------------------------------------------------------------------ accuracy


def _with_accuracy(row: Change, a: BySeed, b: BySeed) -> Change:
    """The row with the difference of its accuracies, if the sides have a seed in common."""
    name = f"{row.stage}_top1"
    if row.stage == OFF_THE_SHELF and any(record.new_parameters for record in (*a.values(), *b.values())):
        return row  # with untrained parameters, the accuracy means nothing
    seeds = [seed for seed in sorted(a.keys() & b.keys()) if name in a[seed].metrics and name in b[seed].metrics]
    if not seeds:
        both = "has an accuracy of the same kind on both sides" if a.keys() & b.keys() else "is in common"
        return replace(row, notes=(*row.notes, f"no seed {both}"))
    before = [100 * a[seed].metrics[name] for seed in seeds]
    after = [100 * b[seed].metrics[name] for seed in seeds]
    found = replace(row, top1=(fmean(before), fmean(after)))
    points, why = _points(a, b, seeds=seeds, stage=row.stage)
    if points is None:
        table = pd.DataFrame([after, before], index=[B, A], columns=seeds)
        notes = (*row.notes, why) if why else row.notes
        return replace(found, difference=fit(table).difference(B, A), paired=SEEDS, notes=notes)
    alike = bool((np.nan_to_num(points) == 0).all())
    return replace(found, difference=from_outcomes(points, B, A), paired=IMAGES, identical=alike)


def _points(a: BySeed, b: BySeed, seeds: Sequence[int], stage: str) -> tuple[np.ndarray | None, str]:
    """B minus A in points by image, [S, I]; or None and why images cannot be paired ("" without outcomes)."""
    if not all(stage in side[seed].outcomes for side in (a, b) for seed in seeds):
        return None, ""
    try:
        return paired(_outcomes(b, seeds, stage), _outcomes(a, seeds, stage)), ""
    except UsageError as error:
        return None, f"paired by seed only: {error}"


def _outcomes(records: BySeed, seeds: Sequence[int], stage: str) -> dict[int, Outcomes]:
    return {seed: unpack(records[seed].outcomes[stage]) for seed in seeds}


# ------------------------------------------------------------------------------------------ cost


def _costs(a: BySeed, b: BySeed) -> tuple[Cost, Cost]:
    """The costs of both sides over their common seeds, or over each side's own where they have none in common."""
    common = a.keys() & b.keys()
    if not common:
        return _cost(a), _cost(b)
    return _cost({seed: a[seed] for seed in common}), _cost({seed: b[seed] for seed in common})


def _cost(records: BySeed) -> Cost:
    totals = [record.macs["total"] for record in records.values() if "total" in record.macs]
    counts = dict.fromkeys(",".join(map(str, record.tokens.get("achieved", ()))) for record in records.values())
    return Cost(fmean(totals) if totals else nan, " or ".join(counts))


def _notes(a: BySeed, b: BySeed) -> list[str]:
    """What differs apart from the code: the method's settings, its tuned fine-tuning, the images."""
    first = next(iter(a.values()))
    second = next(iter(b.values()))
    found = []
    for what, before, after in (
        ("settings", first.config | {"site": first.site}, second.config | {"site": second.site}),
        ("fine-tuning", first.finetune, second.finetune),
    ):
        if before != after:
            names = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
            values = ", ".join(f"{name} {before.get(name, 'absent')} -> {after.get(name, 'absent')}" for name in names)
            found.append(f"{what} differ: {values}")
    if first.data.get("fingerprint") != second.data.get("fingerprint"):
        found.append("measured on other images")
    return found


def time_changes(a: Session | None, b: Session | None) -> dict[Key, tuple[TimeChange, ...]]:
    """The changes of every row that both sessions timed at the same batch size, dtype and mode."""
    if a is None or b is None:
        return {}
    found: dict[Key, list[TimeChange]] = {}
    before = {speed.row.key: speed for group in a.groups for speed in speeds.speeds(a, group)}
    after = {speed.row.key: speed for group in b.groups for speed in speeds.speeds(b, group)}
    for key, speed in before.items():
        if key.role != "reduced" or key not in after:
            continue
        other = after[key]
        change = TimeChange(
            group=str(speed.row.group),
            mode=key.mode,
            a=speed.speedup,
            b=other.speedup,
            log_ratio=log_time_ratio(speed.speedup, rounds_a=speed.samples, b=other.speedup, rounds_b=other.samples),
        )
        found.setdefault((key.schedule, key.method), []).append(change)
    return {key: tuple(own) for key, own in found.items()}


def log_time_ratio(a: Ratio, rounds_a: int, b: Ratio, rounds_b: int) -> Estimate:
    """The logarithm of time B over time A from the speed-ups in two independent sessions.

    Standard errors are derived from the speed-ups' two-sided 95 % intervals, assuming a normal distribution.
    """
    parts = [(_log_error(ratio) ** 2, rounds - 1.0) for ratio, rounds in ((a, rounds_a), (b, rounds_b))]
    standard_error, df = combined([part for part in parts if part[0] > 0])
    return Estimate(log(a.value) - log(b.value), standard_error=standard_error, df=df, seeds=0)


def _log_error(ratio: Ratio) -> float:
    width = log(ratio.high) - log(ratio.low)
    return width / (2 * NormalDist().inv_cdf((1 + speeds.LEVEL) / 2))
