"""The statistics of one table: the rows of one machine and one schedule, with the base.

Verdicts compare every method of the table with the recipe's reference; this family, whose errors Holm's procedure
limits, is declared before the run. Ranks are simultaneous over all pairs of methods. The base, methods that only mask
tokens, and null rows help to estimate the linear model but belong to neither family.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import combinations
from math import isnan, nan
from statistics import fmean, median

import pandas as pd

from tpbench.errors import UsageError
from tpbench.outcomes import unpack
from tpbench.record import Record
from tpbench.report import methods
from tpbench.report.contrast import Contrast
from tpbench.report.estimates import Difference, Differences, Estimate, MeanTop1
from tpbench.report.families import Judgement, Rank, judge, ranks
from tpbench.report.statistics import Additive, fit
from tpbench.report.two_way import Answers, answers, with_all_images

FINE_TUNED = "fine_tuned"
OFF_THE_SHELF = "off_the_shelf"
MOST_RIVALS = 200  # with more methods in a table, each is compared with the reference alone
UNKNOWN = Estimate(value=nan, standard_error=nan, df=0.0, seeds=0)


def stage_compared(records: Sequence[Record]) -> str:
    """The stage whose accuracy is compared: FINE_TUNED if any reduced model has it, otherwise OFF_THE_SHELF.

    Without a reduced model, the unreduced ones decide.
    """
    healthy = [record for record in records if record.error is None]
    reduced = [record for record in healthy if not record.unreduced]
    tuned = any("fine_tuned_top1" in record.metrics for record in reduced or healthy)
    return FINE_TUNED if tuned else OFF_THE_SHELF


@dataclass(frozen=True, eq=False)
class Standings:
    """One table's statistics. Differences are in points of top-1 at `stage`.

    means: by stage, then by row. judgements: Holm's family, every method against the reference. nulls: null rows
    against the rows that they repeat, not corrected. to_base: differences to the base by row. pairs: differences of all
    pairs of methods; of more than MOST_RIVALS methods, only those to the reference. left_out: rows without outcomes in
    a table where others have them; they are shown but not compared. with_images: whether differences contain the noise
    of the test images.
    """

    schedule: str
    stage: str
    reference: str
    margin: float
    seeds: int = 0
    model: Additive | None = None
    means: dict[str, dict[str, MeanTop1]] = field(default_factory=dict)
    judgements: dict[str, Judgement] = field(default_factory=dict)
    nulls: dict[str, Judgement] = field(default_factory=dict)
    to_base: dict[str, Difference] = field(default_factory=dict)
    pairs: Sequence[Difference] = ()
    ranks: dict[str, Rank] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    with_images: bool = False

    def judgement(self, method: str) -> Judgement | None:
        """The judgement of a row or null row; None if the row is not compared."""
        return self.nulls.get(method) or self.judgements.get(method)

    @property
    def rivals(self) -> int:
        """The number of methods that are compared with the reference: the size of the family."""
        return len(self.judgements)

    @cached_property
    def smallest(self) -> float:
        """The smallest difference to the reference that this table can detect, in points: two-sided 5 %, power 0.8."""
        return self._detectable(1)

    @cached_property
    def smallest_in_family(self) -> float:
        """The same for the first step of Holm's procedure over the table's methods."""
        return self._detectable(max(1, self.rivals))

    def _detectable(self, comparisons: int) -> float:
        """The smallest detectable difference, from the median standard error of the differences to the reference."""
        known = [judgement.difference for judgement in self.judgements.values() if judgement.difference.known]
        if not known:
            return nan if self.model is None else self.model.detectable(comparisons)
        middle = median(difference.standard_error for difference in known)
        df = median(difference.df for difference in known)
        return Estimate(value=0.0, standard_error=middle, df=df, seeds=self.seeds).detectable(comparisons)

    def _about_pairs(self) -> str:
        """A sentence for tables with too many methods to compare all pairs."""
        if self.rivals < MOST_RIVALS:  # the reference is one more
            return ""
        return f" Of more than {MOST_RIVALS} methods only differences to the reference are listed, and no ranks."

    def resolution(self) -> str:
        """One sentence with the model, its n and the smallest difference that the table can detect."""
        if self.model is None:
            return "No accuracy was measured."
        rows = f"top-1 ~ method + seed over {len(self.model.methods)} rows and {len(self.model.seeds)} seeds"
        if isnan(self.smallest):
            few = "One seed" if len(self.model.seeds) == 1 else "Too few values"
            return f"{few}: there are no intervals and no ranks, and nothing is decided ({rows})."
        own = ", ".join(f"{method} ({scatter.sd:.1f})" for method, scatter in self.model.apart.items())
        corrected = f", {self.smallest_in_family:.2f} after Holm over {self.rivals}" if self.rivals > 1 else ""
        return (
            f"Model: {rows}; residual SD {self.model.pooled.sd:.2f} points on {self.model.pooled.df:.0f} degrees of "
            f"freedom. The smallest detectable difference to {self.reference} (two-sided 5 %, power 0.8) is "
            f"{self.smallest:.2f} points{corrected}."
            + (f" Rows with a residual SD of their own: {own}." if own else "")
            + self._about_pairs()
        )


def standings(schedule: str, records: Sequence[Record], stage: str, contrast: Contrast) -> Standings:
    """The statistics of one schedule's records and those of the base.

    If some records hold outcomes, those without are left out, because the noise of the test images is not known for
    them. Raises UsageError if outcomes cannot be read or are of different images.
    """
    healthy = [record for record in records if record.error is None]
    with_images = any(stage in record.outcomes for record in healthy)
    part = [record for record in healthy if stage in record.outcomes or not with_images]
    left_out = tuple(sorted({record.method for record in healthy} - {record.method for record in part}))
    alone = {name: _mean_alone([record for record in healthy if record.method == name], stage) for name in left_out}
    other = OFF_THE_SHELF if stage == FINE_TUNED else FINE_TUNED
    means = {stage: alone, other: _means(_fitted(healthy, other))}
    empty = Standings(
        schedule=schedule,
        stage=stage,
        reference=contrast.reference,
        margin=contrast.margin,
        means=means,
        left_out=left_out,
    )
    model = _fitted(part, stage)
    if model is None:
        return empty
    outside = {record.method for record in part if record.unreduced or record.count == "masked"}
    bases = {record.method for record in part if record.unreduced}
    differences = _Differences(model, _answers(part, stage) if with_images else {})
    judged_alone = replace(empty, model=model, means={**means, stage: alone | _means(model)}, with_images=with_images)
    return _compared(judged_alone, differences, bases=bases, outside=outside)


def _compared(table: Standings, differences: _Differences, bases: set[str], outside: set[str]) -> Standings:
    """The table with its differences, verdicts and ranks."""
    model = differences.model
    nulls = [name for name in model.methods if methods.null_of(name)]
    rivals = [name for name in model.methods if name not in outside and name not in nulls]
    reference = table.reference
    if reference not in rivals and rivals:
        reference = max(rivals, key=lambda name: model.mean(name).value)
    asked = {
        "pairs": _pairs(rivals, reference),
        "family": [(name, reference) for name in rivals if name != reference],
        "nulls": _null_pairs(nulls, model),
        "to_base": [(name, base) for base in bases for name in model.methods if name not in bases],
    }
    found = differences.of(asked)
    pairs = found["pairs"]
    ranked = len(rivals) <= MOST_RIVALS and pairs.known.any()
    return replace(
        table,
        reference=reference,
        seeds=len(model.seeds),
        judgements=_by_row(judge(found["family"], table.margin)),
        nulls=_by_row([judge([null], table.margin)[0] for null in found["nulls"]]),
        to_base={difference.a: difference for difference in found["to_base"]},
        pairs=pairs,
        ranks=ranks(pairs) if ranked else {},
    )


@dataclass(frozen=True, eq=False)
class _Differences:
    """Differences of the pooled model, with the noise of the images where outcomes are known."""

    model: Additive
    answers: dict[str, Answers]

    def of(self, asked: dict[str, list[tuple[str, str]]]) -> dict[str, Differences]:
        """The differences of several lists of pairs, by the names of the lists. All are computed at once."""
        all_pairs = [pair for pairs in asked.values() for pair in pairs]
        every = with_all_images(self.model.differences(all_pairs), self.answers)
        found = {}
        first = 0
        for name, pairs in asked.items():
            found[name] = every.part(first, first + len(pairs))
            first += len(pairs)
        return found


def _table(records: Sequence[Record], stage: str) -> pd.DataFrame | None:
    """Top-1 in percent, methods by seeds; None if there are no values.

    Off the shelf, methods with untrained parameters are left out.
    """
    values: dict[str, dict[int, float]] = {}
    for record in records:
        value = record.metrics.get(f"{stage}_top1", nan)
        if not isnan(value) and not (stage == OFF_THE_SHELF and record.new_parameters):
            values.setdefault(record.method, {})[record.seed] = 100 * value
    if not values:
        return None
    seeds = sorted({seed for own in values.values() for seed in own})
    cells = [[values[method].get(seed, nan) for seed in seeds] for method in sorted(values)]
    return pd.DataFrame(cells, index=sorted(values), columns=seeds)


def _fitted(records: Sequence[Record], stage: str) -> Additive | None:
    top1 = _table(records, stage)
    return None if top1 is None else fit(top1)


def _means(model: Additive | None) -> dict[str, MeanTop1]:
    return {} if model is None else model.means


def _mean_alone(records: Sequence[Record], stage: str) -> MeanTop1:
    """The mean of a row that takes no part in the model, without an interval."""
    known = [100 * record.metrics[f"{stage}_top1"] for record in records if f"{stage}_top1" in record.metrics]
    return MeanTop1(
        value=fmean(known) if known else nan, standard_error=nan, df=0.0, seeds=len(known), method=records[0].method
    )


def _answers(records: Sequence[Record], stage: str) -> dict[str, Answers]:
    """Each row's outcomes. Raises UsageError, with the row's name, for outcomes that cannot be read."""
    rows: dict[str, dict] = {}
    for record in records:
        try:
            rows.setdefault(record.method, {})[record.seed] = unpack(record.outcomes[stage])
        except UsageError as error:
            raise UsageError(f"{record.method} {record.schedule} seed {record.seed}: {error}") from error
    return {method: answers(by_seed) for method, by_seed in rows.items()}


def _pairs(rivals: Sequence[str], reference: str) -> list[tuple[str, str]]:
    if len(rivals) <= MOST_RIVALS:
        return list(combinations(rivals, 2))
    return [(name, reference) for name in rivals if name != reference]


def _null_pairs(nulls: Sequence[str], model: Additive) -> list[tuple[str, str]]:
    """Pairs of a null row and another row of the same method, each row in at most one pair."""
    kinds: dict[str, list[str]] = {}
    for name in nulls:
        kinds.setdefault(methods.null_of(name), []).append(name)
    found = []
    for original, own in kinds.items():
        rows = [original, *own] if original in model.methods else own
        found += [(second, first) for first, second in zip(rows[::2], rows[1::2])]
    return found


def _by_row(judgements: Sequence[Judgement]) -> dict[str, Judgement]:
    return {judgement.difference.a: judgement for judgement in judgements}
