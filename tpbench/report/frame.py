"""Records as data frames. Nothing is rounded here, and machines are never mixed.

compare(records)     one Comparison per machine, with
    .cells           one row per record, in the record's own units: shares, seconds, bytes, MACs
    .frame           one row per schedule and method, over seeds; see `tpbench.report.columns`
    .pairs           one row per schedule and two methods: their difference
    .tables          the statistics of every schedule
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import pandas as pd

from tpbench.errors import UsageError
from tpbench.measure.timings import Session
from tpbench.record import Record
from tpbench.report import columns, sessions
from tpbench.report.cells import Rows, cell, fill
from tpbench.report.column import Source
from tpbench.report.contrast import Contrast, declared
from tpbench.report.estimates import Differences
from tpbench.report.families import Rate, holm, null_rate
from tpbench.report.layout import Row
from tpbench.report.standings import Standings, stage_compared, standings


@dataclass(frozen=True, eq=False)
class Comparison:
    """The comparison of one machine's records. tables: the statistics by schedule, in the frame's order."""

    machine: str
    records: list[Record]
    contrast: Contrast
    stage: str  # the stage whose accuracy is compared: "fine_tuned" or "off_the_shelf"
    cells: pd.DataFrame
    frame: pd.DataFrame
    pairs: pd.DataFrame
    tables: dict[str, Standings]
    session: Session | None = None  # in which all rows were timed

    @cached_property
    def rows(self) -> list[Row]:
        """The frame's rows as dictionaries."""
        names = list(self.frame)
        return [dict(zip(names, values)) for values in zip(*(self.frame[name].tolist() for name in names))]

    def without_session(self) -> Comparison:
        """The same without the columns of the timing session."""
        if self.session is None:
            return self
        timed = [name for name in self.frame if name.startswith("timed_")]
        return replace(self, frame=self.frame.drop(columns=timed), session=None)

    @property
    def top1(self) -> str:
        """The column of the accuracy that rows are compared by."""
        return f"{self.stage}_top1_percent"

    @property
    def null_rate(self) -> Rate:
        """How often two fine-tunings of one method are called different, over all schedules."""
        return null_rate(null.difference for table in self.tables.values() for null in table.nulls.values())


def compare(
    records: Iterable[Record], contrast: Contrast | None = None, timed: Iterable[Session] = ()
) -> list[Comparison]:
    """One comparison per machine, with the timing session of that machine.

    contrast: which comparisons to make; by default what the records' recipe declares.
    """
    by_name = {session.machine: session for session in timed}
    return [
        _compared(machine, records=own, contrast=contrast, session=by_name.get(machine))
        for machine, own in by_machine(records).items()
    ]


def _compared(machine: str, records: list[Record], contrast: Contrast | None, session: Session | None) -> Comparison:
    contrast = contrast or declared(records[0].recipe)
    stage = stage_compared(records)
    base = [record for record in records if record.unreduced]
    schedules: dict[str, list[Record]] = {}
    for record in records:
        if not record.unreduced:
            schedules.setdefault(record.schedule, []).append(record)
    tables: dict[str, Standings] = {}
    for schedule, own in schedules.items():
        measured = any(record.error is None for record in own)
        own_stage = stage_compared(own) if measured else stage
        tables[schedule] = standings(schedule, records=base + own, stage=own_stage, contrast=contrast)
    if base and not tables:
        schedule = base[0].schedule
        tables[schedule] = standings(schedule, records=base, stage=stage, contrast=contrast)
    cells, frame = frames(records, tables=tables, stage=stage, timed=sessions.by_row(session))
    order = [schedule for schedule in frame["schedule"].unique() if schedule in tables]
    return Comparison(
        machine=machine,
        records=records,
        contrast=contrast,
        stage=stage,
        cells=cells,
        frame=frame,
        pairs=pairs(machine, tables),
        tables={schedule: tables[schedule] for schedule in order},
        session=session,
    )


def by_machine(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Records by machine, the base first. Raises UsageError for records that cannot share a table."""
    machines: dict[str, list[Record]] = {}
    for record in sorted(records, key=lambda r: (r.machine, not r.unreduced, r.schedule, r.method, r.seed)):
        machines.setdefault(record.machine, []).append(record)
    for machine, own in machines.items():
        _refuse_mixture(machine, own)
    return machines


def _refuse_mixture(machine: str, records: list[Record]) -> None:
    recipes = sorted({f"{record.recipe} ({record.recipe_digest})" for record in records})
    if len(recipes) > 1:
        raise UsageError(f"machine {machine} has records of several recipes: {', '.join(recipes)}")
    bases = sorted({record.method for record in records if record.unreduced})
    if len(bases) > 1:
        raise UsageError(f"machine {machine} has several unreduced bases: {', '.join(bases)}")
    names = [f"{record.method} {record.schedule} seed {record.seed}" for record in records]
    for name, following in pairwise(names):
        if name == following:
            raise UsageError(f"machine {machine} has two records of {name}")


def batch_sizes(frame: pd.DataFrame) -> list[int]:
    """The batch sizes at which latency was measured, from a comparison frame."""
    found = (re.fullmatch(r"latency_b(\d+)_ratio", name) for name in frame)
    return sorted(int(match[1]) for match in found if match and frame[match[0]].notna().any())


def timed_sizes(frame: pd.DataFrame) -> list[int]:
    """The batch sizes of the timing session, from a comparison frame."""
    found = (re.fullmatch(r"timed_b(\d+)_speedup", name) for name in frame)
    return sorted(int(match[1]) for match in found if match)


# ------------------------------------------------------------------------------------------ over seeds


def pairs(machine: str, tables: dict[str, Standings]) -> pd.DataFrame:
    """One row per pair of methods of a schedule: their difference in points."""
    names = ["machine", "schedule", *(column.name for column in columns.PAIRS)]
    values: dict[str, list[Any]] = {name: [] for name in names}
    for schedule, table in tables.items():
        own = Differences.of(table.pairs)
        adjusted = holm(own.p_values())
        values["machine"] += [machine] * len(own)
        values["schedule"] += [schedule] * len(own)
        for column in columns.PAIRS:
            values[column.name] += column.values(own, adjusted)
    return pd.DataFrame(values, columns=names)


def frames(
    records: Sequence[Record], tables: dict[str, Standings], stage: str, timed: sessions.Timed
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """One row per record of one machine; and one per schedule and method, the base first, then from high to low cost.

    Only the cells of one row are held as dictionaries at a time.
    """
    grouped: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        grouped.setdefault((record.schedule, record.method), []).append(record)
    batches = sorted({int(batch) for record in records if record.error is None for batch in record.latency})
    seeds = len({record.seed for record in records})
    declared_columns = columns.all_columns(batches, sessions.batch_sizes(timed))
    cells = Rows()
    rows: dict[str, list[Any]] = {column.name: [] for column in declared_columns}
    for (schedule, method), own in grouped.items():
        made = [cell(record) for record in own]
        for one in made:
            cells.append(one)
            fill(one, batches)
        table = tables[schedule] if schedule in tables else _widest(tables, method, stage)
        source = Source(
            made, table=table, batches=batches, machine_seeds=seeds, timed=timed.get((method, schedule), {})
        )
        for column in declared_columns:
            rows[column.name].append(column.value(source))
    frame = pd.DataFrame(rows)
    ranks = {name: pd.array(frame[name], dtype="Int64") for name in ("rank", "rank_worst")}
    return cells.frame(), _ordered(frame.assign(**ranks), stage)


def _widest(tables: dict[str, Standings], base: str, stage: str) -> Standings:
    """The table with the widest interval for the base, which is a row of every table."""

    def half_width(table: Standings) -> float:
        mean = table.means.get(stage, {}).get(base)
        return mean.half_width() if mean is not None and mean.known else -1.0

    return max(tables.values(), key=half_width)


def _ordered(frame: pd.DataFrame, stage: str) -> pd.DataFrame:
    """Sort: the base first, schedules by falling mean share of MACs, then methods by falling accuracy."""
    cost = -frame.groupby("schedule")["macs_share"].transform("mean")
    keys = frame.assign(reduced=~frame["unreduced"], cost=cost, loss=-frame[f"{stage}_top1_percent"])
    order = keys.sort_values(["reduced", "cost", "schedule", "loss", "method"]).index
    return frame.loc[order].reset_index(drop=True)
