"""The columns that identify a row, and those of its accuracy and statistics."""

from __future__ import annotations

from collections.abc import Callable
from math import nan
from typing import Any

import pandas as pd

from tpbench.report import layout
from tpbench.report.column import Column, Source, shared_column, significant_p
from tpbench.report.methods import NULL, family, null_of
from tpbench.report.standings import FINE_TUNED, OFF_THE_SHELF


def columns() -> list[Column]:
    """The columns in the order of the CSV file."""
    return [*_identity(), *_training(), *_ranks(), *_seeds(), *_top1(), *_differences()]


def _identity() -> list[Column]:
    return [
        shared_column("machine", "the machine that measured it; records of different machines are never averaged"),
        shared_column("recipe", "the recipe's name"),
        shared_column(
            "recipe_digest", "twelve hexadecimal digits of everything in the recipe that can change a result"
        ),
        shared_column(
            "schedule", "the token budget as the recipe writes it", head="Schedule", text=lambda row: row["schedule"]
        ),
        shared_column("method", "the method's name", head="Method", text=layout.name_with_signs, brief=_brief_method),
        Column(
            "family",
            "clustering, merging, pruning, learned queries, grid or trivial; null row: a method that is measured "
            "again, fine-tuned with another seed",
            lambda source: (
                "" if source.first["unreduced"] else NULL if null_of(source.method) else family(source.method)
            ),
            head="Family",
            text=lambda row: row["family"],
            narrow=False,
        ),
        shared_column("title", "the method's name in words"),
        shared_column("unreduced", "True for the base: the model that keeps every token"),
        shared_column("site", "where in a block the method reduces: mid (before the MLP) or end"),
        shared_column(
            "count",
            "exact: the method keeps the requested number of tokens; at_most: it may keep fewer; masked: it removes "
            "none, and about the requested number are not masked",
        ),
    ]


def _brief_method(row: layout.Row) -> str:
    """The name in the first table; a null row is named after the row that it repeats."""
    return f"{null_of(row['method'])} again" if row["family"] == NULL else layout.name_with_signs(row)


def _training() -> list[Column]:
    return [
        Column(
            "new_parameters",
            "number of parameters that the method adds, which start untrained; 0 for records of schema 1, which do "
            "not hold it",
            lambda source: max(cell["new_parameters"] for cell in source.cells),
        ),
        Column(
            "teacher",
            "True where the method learns from the unreduced model",
            lambda source: any(cell["teacher"] for cell in source.cells),
        ),
        Column(
            "loss_fall_nats",
            "fall of the mean training loss in the last epoch, in nats, mean over seeds; a row above 0.05 would gain "
            "from longer fine-tuning",
            lambda source: source.mean("training_loss_fall"),
        ),
        shared_column(
            "tuned",
            "settings of the fine-tuning that were tuned for the method; blank if it has the recipe's",
            head="Tuned",
            unit="of fine-tuning",
            text=lambda row: row["tuned"],
            narrow=False,
        ),
    ]


def _ranks() -> list[Column]:
    return [
        Column(
            "rank",
            "the best rank that the data allow for the method at its schedule: 1 + the number of significantly better "
            "methods, after Holm over all pairs of methods. Sets of ranks are simultaneous at 95 %. Blank below 2 "
            "degrees of freedom",
            lambda source: source.table.ranks[source.method].best if source.method in source.table.ranks else pd.NA,
            head="Rank",
            text=layout.rank,
        ),
        Column(
            "rank_worst",
            "the worst rank: the number of methods minus those that are significantly worse",
            lambda source: source.table.ranks[source.method].worst if source.method in source.table.ranks else pd.NA,
        ),
        Column(
            "stands_alone",
            "True if the method is significantly better than every other method at its schedule",
            lambda source: source.method in source.table.ranks and source.table.ranks[source.method].worst == 1,
        ),
    ]


def _seeds() -> list[Column]:
    return [
        Column(
            "seeds",
            "n: the number of seeds measured without failure",
            lambda source: sum(cell["error"] == "" for cell in source.cells),
            head="Seeds",
            text=layout.seeds,
        ),
        Column("seeds_expected", "number of seeds of all records of this machine", lambda source: source.machine_seeds),
    ]


def _top1() -> list[Column]:
    return [
        *_estimated(
            "off_the_shelf_top1_percent",
            "top-1 with the base's weights and no fine-tuning, percent, mean over seeds; blank if the method adds "
            "untrained parameters",
            lambda source: source.top1(OFF_THE_SHELF),
            head="Off the shelf",
            unit="top-1 %",
            interval=False,
        ),
        *_estimated(
            "fine_tuned_top1_percent",
            "top-1 after fine-tuning with tokens reduced, percent, mean over the table's seeds (for a seed that the "
            "row lacks, the prediction of the linear model is used)",
            lambda source: source.top1(FINE_TUNED),
            head="Fine-tuned",
            unit="top-1 %",
        ),
    ]


def _differences() -> list[Column]:
    return [
        *_estimated(
            "base_difference_points",
            "top-1 minus that of the base with the same seed, both fine-tuned equally long, percentage points",
            Source.to_base,
            head="To base",
            unit="points",
            sign="+",
        ),
        Column(
            "reference",
            "the row that the next difference is to: the recipe's reference, or the most accurate method if the "
            "reference was not run; for a null row, the row that it repeats",
            _reference,
        ),
        *_estimated(
            "reference_difference_points",
            "top-1 minus that of the reference, percentage points",
            Source.to_reference,
            head="To reference",
            unit="points",
            sign="+",
        ),
        *_verdicts(),
    ]


def _verdicts() -> list[Column]:
    return [
        Column(
            "p_holm",
            "two-sided p-value of that difference, after Holm over the schedule's methods; not corrected for a null "
            "row",
            lambda source: significant_p(_judged(source, "p_difference", nan)),
        ),
        Column(
            "verdict",
            "after Holm at 5 %: better or worse than the reference, otherwise equivalent (within the margin), "
            "otherwise not inferior (above minus the margin), otherwise undecided",
            _verdict,
            head="Verdict",
            text=lambda row: row["verdict"],
            narrow=False,
        ),
        Column("margin_points", "the recipe's margin, percentage points", lambda source: source.table.margin),
        Column(
            "smallest_difference_points",
            "the smallest difference to the reference that the schedule's table can detect: two-sided 5 %, power 0.8, "
            "for one comparison, percentage points",
            lambda source: nan if source.first["unreduced"] else source.table.smallest,
        ),
        Column(
            "smallest_difference_in_family_points",
            "the same for the first step of Holm's procedure over the schedule's methods",
            lambda source: nan if source.first["unreduced"] else source.table.smallest_in_family,
        ),
    ]


def _estimated(
    name: str,
    meaning: str,
    estimate: Callable[[Source], Any],
    *,
    head: str,
    unit: str,
    sign: str = "",
    interval: bool = True,
) -> list[Column]:
    """Three columns: a value, its half-width and its n. interval: whether the first table shows the half-width."""
    stem = name.removesuffix("_top1_percent").removesuffix("_points")
    return [
        Column(
            name,
            meaning,
            lambda source: estimate(source).value,
            head=head,
            unit=unit,
            text=layout.as_interval(name, sign),
            brief=layout.as_short_interval(name, sign) if interval else layout.as_fixed(name, 1),
        ),
        Column(
            layout.half_width_of(name),
            "half-width of its 95 % interval, percentage points; blank below 2 degrees of freedom",
            lambda source: estimate(source).half_width(),
        ),
        Column(f"{stem}_seeds", "number of seeds that it is based on", lambda source: estimate(source).seeds),
    ]


def _judged(source: Source, name: str, otherwise: Any) -> Any:
    judgement = source.table.judgement(source.method)
    return otherwise if judgement is None else getattr(judgement, name)


def _verdict(source: Source) -> str:
    is_reference = source.method == source.table.reference and source.method in source.table.means[source.table.stage]
    return "reference" if is_reference else _judged(source, "verdict", "")


def _reference(source: Source) -> str:
    difference = source.to_reference()
    return getattr(difference, "b", "")
