"""The first tables of a report: for each schedule at most eight columns, with rows grouped by family, in order of rank.

The same sections are printed on the terminal and written to OUT/README.md. Wide tables are separate files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pandas as pd

from tpbench.report.column import Column
from tpbench.report.columns import chosen
from tpbench.report.frame import Comparison, batch_sizes, timed_sizes
from tpbench.report.layout import (
    NEW_PARAMETERS,
    STEEP,
    STILL_FALLING,
    TEACHER,
    Row,
    failure,
    fixed,
    left_out,
    plus_minus,
)
from tpbench.report.layout import sections as schedules
from tpbench.report.methods import NULL
from tpbench.report.timed_columns import misses_latency

MOST_SCHEDULES = 6  # in tables and figures; further schedules are only in the files
MOST_ROWS = 60  # of one schedule
PADDED = 0.98  # a note says so if the MACs without padding are less than this share of those with it
MARKS = (
    f"{NEW_PARAMETERS}: adds parameters that start untrained; {TEACHER}: learns from the unreduced model; "
    f"{STILL_FALLING}: the training loss fell by more than {STEEP} nats in the last epoch, so longer fine-tuning would "
    "probably help this row."
)
NOT_COUNTED = (
    "MACs count matrix products, convolutions and the reducers' own operators. They do not count additions (such as "
    "the means of merging), norms, softmax, scores without a matrix product, sorting and gathering."
)


TIMED = (
    "Milliseconds and speed-ups are medians of one timing session, in which all rows took turns; ± is the wider side "
    "of the 95 % interval over its rounds. A speed-up is relative to timm's unreduced model in its fastest mode; the "
    "promised speed-up is that of multiply-adds alone."
)
MISSED = "* misses the requested latency by more than 2 %."


class Section(NamedTuple):
    """The table of one schedule. groups: (family, rows), first the base under ""; notes: sentences about the table."""

    title: str
    columns: list[Column]
    groups: list[tuple[str, list[Row]]]
    notes: list[str]


def sections(comparison: Comparison) -> list[Section]:
    """The tables of the schedules that are shown first, from costly to cheap."""
    frame = comparison.frame
    shown_first = fullest(comparison)
    found = []
    for schedule, rows in schedules(comparison.rows):
        if schedule not in shown_first:
            continue
        shown = [row for row in rows if row["unreduced"] or (row["seeds"] and row["count"] != "masked")]
        best = sorted(shown, key=_order)[: MOST_ROWS + 1]
        notes = [comparison.tables[schedule].resolution(), *_notes(rows)]
        if len(best) < len(shown):
            notes.append(f"{len(shown) - len(best)} more rows are in the files.")
        found.append(Section(title=schedule, columns=_columns(frame, best), groups=_grouped(best), notes=notes))
    return found


def fullest(comparison: Comparison) -> list[str]:
    """The schedules at which most rows were measured, at most MOST_SCHEDULES; of equal ones the costly."""
    measured = {schedule: sum(row["seeds"] > 0 for row in rows) for schedule, rows in schedules(comparison.rows)}
    return sorted(measured, key=lambda schedule: -measured[schedule])[:MOST_SCHEDULES]


def _columns(frame: pd.DataFrame, rows: Sequence[Row]) -> list[Column]:
    """At most eight columns, without those that are blank in all reduced rows.

    With a timing session the share of MACs is left out, because the promised speed-up is its inverse.
    """
    batches = batch_sizes(frame)
    timed = timed_sizes(frame)
    cost = ["macs_share"]
    speed = [f"latency_b{batch}_ratio" for batch in batches[-1:]]
    if timed:
        cost = []
        speed = [f"timed_b{timed[-1]}_ms", f"timed_b{timed[-1]}_speedup"]
    names = ["method", *cost, "off_the_shelf_top1_percent", "fine_tuned_top1_percent"]
    names += ["reference_difference_points", "verdict", *speed, "rank"]
    reduced = [row for row in rows if not row["unreduced"]]
    return [column for column in chosen(names, batches, timed) if any(column.short(row) for row in reduced or rows)]


def _grouped(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """The rows by family; the family of the best row comes first, null rows last."""
    families: dict[str, list[Row]] = {}
    for row in sorted(rows, key=_order):
        families.setdefault(row["family"], []).append(row)
    return sorted(families.items(), key=lambda item: item[0] == NULL)


def _order(row: Row) -> tuple[bool, float, float, str]:
    """The sorting key: the base first, then by the middle of the simultaneous rank and by mean; rows without one last.

    By the best rank alone, a row of which little is known would stand before all others.
    """
    ranked = not pd.isna(row["rank"])
    middle = (float(row["rank"]) + float(row["rank_worst"])) / 2 if ranked else float("inf")
    mean = (
        row["off_the_shelf_top1_percent"] if pd.isna(row["fine_tuned_top1_percent"]) else row["fine_tuned_top1_percent"]
    )
    return not row["unreduced"], middle, float("inf") if pd.isna(mean) else -mean, row["method"]


# ------------------------------------------------------------------------------------------ notes and remarks


def _notes(rows: Sequence[Row]) -> Iterator[str]:
    """Sentences about rows that compute padding, and rows without numbers."""
    for row in rows:
        if row["live_macs_share"] < PADDED * row["macs_share"] and row["count"] != "masked":
            living = f"keep {row['tokens_live']} tokens and " if row["tokens_live"] else ""
            live = f"{living}cost {100 * row['live_macs_share']:.1f} % of the MACs"
            yield (
                f"{row['method']} pads its batches and costs {100 * row['macs_share']:.1f} % of the MACs; without"
                f" padding it would {live}."
            )
    for row in rows:
        if failure(row) and row["count"] != "masked":
            yield f"{row['method']}: {failure(row)}"


def remarks(comparison: Comparison) -> list[str]:
    """Sentences about all tables of a machine."""
    frame = comparison.frame
    found = [*_saves_nothing(frame), *_about_records(comparison)]
    if left_out(comparison.rows):
        found.append(f"Seeds left out: {'; '.join(left_out(comparison.rows))}.")
    if (frame["new_parameters"] > 0).any() or frame["teacher"].any() or (frame["loss_fall_nats"] > STEEP).any():
        found.append(MARKS)
    if comparison.session is not None:
        found.append(TIMED)
    if any(misses_latency(row) for row in comparison.rows):
        found.append(MISSED)
    if len(comparison.tables) > MOST_SCHEDULES:
        more = len(comparison.tables) - MOST_SCHEDULES
        found.append(f"{more} more schedules are in tables/{comparison.machine}.md.")
    return [*found, NOT_COUNTED]


def _saves_nothing(frame: pd.DataFrame) -> Iterator[str]:
    masked = frame[frame["count"] == "masked"]
    for method, own in masked.groupby("method", sort=False):
        texts = [_accuracies(row) for row in own[own["seeds"] > 0].to_dict("records")]
        yield f"Saves nothing: {method}, which masks tokens and removes none; {'; '.join(texts) or 'not run'}."


def _accuracies(row: Row) -> str:
    names = {"off_the_shelf_top1_percent": "off the shelf", "fine_tuned_top1_percent": "fine-tuned"}
    parts = [f"{plus_minus(row, name)} % {words}" for name, words in names.items() if not pd.isna(row[name])]
    return (
        f"at {row['schedule']} {fixed(100 * row['macs_share'], 1)} % of the MACs, {', '.join(parts) or 'no accuracy'}"
    )


def _about_records(comparison: Comparison) -> Iterator[str]:
    """Sentences about records that take no part in comparisons."""
    healthy = [record for record in comparison.records if record.error is None]
    without = [record for record in healthy if not record.outcomes]
    old = (
        ""
        if all(record.schema > 1 for record in healthy)
        else " Records of schema 1 do not say which parameters a method adds."
    )
    if without and len(without) == len(healthy):
        yield f"No record holds outcomes: intervals are over seeds, without the noise of the test images.{old}"
    elif without:
        yield (
            f"{len(without)} of {len(healthy)} records hold no outcomes. Their rows are shown without intervals and "
            f"take no part in differences, verdicts and ranks.{old}"
        )
    if shelf := [record for record in healthy if record.outcomes and comparison.stage not in record.outcomes]:
        yield (
            f"{len(shelf)} of {len(healthy)} records were not fine-tuned. If other rows of their schedule were, they "
            "take no part in differences, verdicts and ranks."
        )
