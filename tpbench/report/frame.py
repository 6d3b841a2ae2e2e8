"""Records as data frames. Nothing is rounded here, and machines are never mixed.

compare(records)     one Comparison per machine, with
    .cells           one row per record, in the record's own units: shares, seconds, bytes, MACs
    .frame           one row per schedule and method, over seeds; see `tpbench.report.columns`
    .pairs           one row per schedule and two methods: their difference
    .tables          the statistics of every schedule
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import nan
from statistics import median
from typing import Any

import pandas as pd

from tpbench.errors import UsageError
from tpbench.measure.timings import Session
from tpbench.record import Record
from tpbench.report import columns, p_values, sessions
from tpbench.report.column import Cell, Source
from tpbench.report.contrast import Contrast, declared
from tpbench.report.families import Rate, holm, null_rate
from tpbench.report.interval import percentile_95
from tpbench.report.layout import Row
from tpbench.report.standings import Standings, judged, standings

IDENTITY = ("machine", "recipe", "recipe_digest", "schedule", "method", "title", "unreduced", "site", "count")


@dataclass(frozen=True, eq=False)
class Comparison:
    """The comparison of one machine's records. tables: the statistics by schedule, in the frame's order."""

    machine: str
    records: list[Record]
    contrast: Contrast
    by: str  # the accuracy that rows are compared by: "fine_tuned" or "off_the_shelf"
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

    @property
    def top1(self) -> str:
        """The column of the accuracy that rows are compared by."""
        return f"{self.by}_top1_percent"

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
    by = judged(records)
    base = [record for record in records if record.unreduced]
    schedules: dict[str, list[Record]] = {}
    for record in records:
        if not record.unreduced:
            schedules.setdefault(record.schedule, []).append(record)
    measured = {schedule: any(record.error is None for record in own) for schedule, own in schedules.items()}
    tables = {
        schedule: standings(
            schedule, records=base + own, by=judged(own) if measured[schedule] else by, contrast=contrast
        )
        for schedule, own in schedules.items()
    }
    if not tables:
        tables = {
            record.schedule: standings(record.schedule, records=base, by=by, contrast=contrast) for record in base[:1]
        }
    rows = [cell(record) for record in records]
    cells = pd.DataFrame(rows)
    frame = comparison(rows, tables=tables, by=by, batches=batch_sizes(cells), timed=sessions.by_row(session))
    order = [schedule for schedule in frame["schedule"].unique() if schedule in tables]
    return Comparison(
        machine=machine,
        records=records,
        contrast=contrast,
        by=by,
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


# ------------------------------------------------------------------------------------------ one record


def cell(record: Record) -> Cell:
    """A record as one row. A failed record has blank numbers and its reason in `error`."""
    row = {name: getattr(record, name) for name in IDENTITY}
    row |= {"seed": record.seed, "config": json.dumps(record.config, sort_keys=True), "error": ""}
    row |= {"new_parameters": record.new_parameters, "teacher": record.teacher}
    row["tuned"] = ", ".join(f"{line}={value:g}" for line, value in sorted(record.finetune.items()))
    if record.error is not None:
        row["error"] = " ".join(record.error.split()) or "no reason given"
        record = Record("", recipe_digest="", machine="", method="", schedule="", seed=0)  # without measurements
    return row | _sizes(record) | _training(record) | _latencies(record)


def _sizes(record: Record) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for name in ("requested", "achieved"):
        row[f"tokens_{name}"] = _listed(record.tokens.get(name, ()))
    row["tokens_live"] = _listed(record.tokens.get("live", ()))
    for name in ("total", "unreduced", "reducers", "closed_form", "live"):
        row[f"macs_{name}"] = record.macs.get(name, nan)
    for name in ("reduced", "unreduced"):
        row[f"peak_memory_bytes_{name}"] = record.peak_memory_bytes.get(name, nan)
    return row


def _fall(losses: Sequence[float]) -> float:
    """The fall of the mean training loss, in nats, from the last epoch but one to the last."""
    return losses[-2] - losses[-1] if len(losses) > 1 else nan


def _training(record: Record) -> dict[str, Any]:
    row = {"off_the_shelf_top1": nan, "fine_tuned_top1": nan} | record.metrics
    row["training_seconds"] = record.training.get("seconds", nan)
    row["training_images"] = record.training.get("images", nan)
    row["training_loss_fall"] = _fall(record.training.get("losses", ()))
    for name in ("images_per_second", "outside_model_share"):
        known = record.training.get("pace", {}).get(name)
        row[f"training_{name}"] = nan if known is None else known
    row["test_images"] = record.evaluation.get("test", nan)
    return row


def _latencies(record: Record) -> dict[str, float]:
    """Seconds by batch size, and the ratio of the medians; the samples were taken in turns."""
    row = {}
    for batch in sorted(record.latency, key=int):
        name = f"latency_b{batch}"
        samples = record.latency[batch]
        for model, prefix in (("reduced", ""), ("unreduced", "unreduced_")):
            ordered = sorted(samples[model])
            row[f"{prefix}{name}_median_seconds"] = median(ordered)
            row[f"{prefix}{name}_p95_seconds"] = percentile_95(ordered)
        row[f"{name}_ratio"] = row[f"{name}_median_seconds"] / row[f"unreduced_{name}_median_seconds"]
    return row


def _listed(counts: Sequence[int]) -> str:
    return ",".join(str(count) for count in counts)


def batch_sizes(frame: pd.DataFrame) -> list[int]:
    """The batch sizes at which latency was measured, from a cells or a comparison frame."""
    found = (re.fullmatch(r"latency_b(\d+)_ratio", name) for name in frame)
    return sorted(int(match[1]) for match in found if match and frame[match[0]].notna().any())


def timed_sizes(frame: pd.DataFrame) -> list[int]:
    """The batch sizes of the timing session, from a comparison frame."""
    found = (re.fullmatch(r"timed_b(\d+)_speedup", name) for name in frame)
    return sorted(int(match[1]) for match in found if match)


# ------------------------------------------------------------------------------------------ over seeds


def pairs(machine: str, tables: dict[str, Standings]) -> pd.DataFrame:
    """One row per pair of methods of a schedule: their difference in points."""
    rows = []
    for schedule, table in tables.items():
        adjusted = holm(p_values.different(table.pairs))
        for pair, p in zip(table.pairs, adjusted):
            rows.append([machine, schedule, *(column.value(pair, p) for column in columns.PAIRS)])
    return pd.DataFrame(rows, columns=["machine", "schedule", *(column.name for column in columns.PAIRS)])


def comparison(
    cells: Sequence[Cell], tables: dict[str, Standings], by: str, batches: Sequence[int], timed: sessions.Timed
) -> pd.DataFrame:
    """One row per schedule and method of one machine: the base, then schedules from high to low cost."""
    grouped: dict[tuple[str, str], list[Cell]] = {}
    for one in cells:
        grouped.setdefault((one["schedule"], one["method"]), []).append(one)
    for one in cells:
        _fill(one, batches)
    seeds = len({one["seed"] for one in cells})
    declared_columns = columns.all_columns(batches, sessions.batch_sizes(timed))
    rows = []
    for (schedule, method), own in grouped.items():
        table = tables[schedule] if schedule in tables else _widest(tables, own[0]["method"], by)
        source = Source(own, table=table, batches=batches, machine_seeds=seeds, timed=timed.get((method, schedule), {}))
        rows.append({column.name: column.value(source) for column in declared_columns})
    frame = pd.DataFrame(rows, columns=[column.name for column in declared_columns])
    ranks = {name: pd.array(frame[name], dtype="Int64") for name in ("rank", "rank_worst")}
    return _ordered(frame.assign(**ranks), by)


def _fill(one: Cell, batches: Sequence[int]) -> None:
    """Fill in blanks for the batch sizes at which a record was not measured."""
    for batch in batches:
        for quantity in ("median_seconds", "p95_seconds", "ratio"):
            one.setdefault(f"latency_b{batch}_{quantity}", nan)


def _widest(tables: dict[str, Standings], base: str, by: str) -> Standings:
    """The table with the widest interval for the base, which is a row of every table."""

    def half_width(table: Standings) -> float:
        mean = table.means.get(by, {}).get(base)
        return mean.half_width() if mean is not None and mean.known else -1.0

    return max(tables.values(), key=half_width)


def _ordered(frame: pd.DataFrame, by: str) -> pd.DataFrame:
    """Sort: the base first, schedules by falling mean share of MACs, then methods by falling accuracy."""
    cost = -frame.groupby("schedule")["macs_share"].transform("mean")
    keys = frame.assign(reduced=~frame["unreduced"], cost=cost, loss=-frame[f"{by}_top1_percent"])
    order = keys.sort_values(["reduced", "cost", "schedule", "loss", "method"]).index
    return frame.loc[order].reset_index(drop=True)
